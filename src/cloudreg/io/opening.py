"""Find out what a path holds and describe it as a `Volume`."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cloudreg.errors import InputError
from cloudreg.io.dtypes import Kind
from cloudreg.io.fetched import fetched_file
from cloudreg.io.layout import KEY
from cloudreg.io.lengths import checked_voxel_size
from cloudreg.io.nifti import read_nifti
from cloudreg.io.nrrd import read_nrrd
from cloudreg.io.objects import WholeFilesOnlyError, is_remote, plain_address, read_jsons, require_bucket
from cloudreg.io.ome_zarr import read_ome_zarr
from cloudreg.io.plain_arrays import read_n5, read_zarr_array
from cloudreg.io.precomputed import PREFIX, read_precomputed
from cloudreg.io.remote import RemotePath
from cloudreg.io.tiff import TIFF_SUFFIXES, read_tiff, read_tiff_series
from cloudreg.io.volume import Volume
from cloudreg.space import Grid, parse_orientation

_FILE_SUFFIXES = (*TIFF_SUFFIXES, ".nii", ".nii.gz", ".nrrd")
_ZARR2, _ZARR3 = (".zarray", ".zattrs", ".zgroup"), ("zarr.json",)
_FORMATS = {PREFIX: ("info",), "zarr://": _ZARR3 + _ZARR2, "n5://": ("attributes.json",)}
_PREFIXES = _FORMATS | {"zarr2://": _ZARR2, "zarr3://": _ZARR3}
ROOTS = tuple(itertools.chain(*_FORMATS.values()))
"""The files that say what a folder of chunks is."""
_FILES = "a TIFF file or folder, NIfTI, NRRD, OME-Zarr, Zarr, N5 or precomputed volume"


def open_volume(
    path: str | os.PathLike[str],
    *,
    voxel_size_um: Sequence[float] | None = None,
    orientation: str | None = None,
    kind: Kind | None = None,
    allow_incomplete: bool = False,
) -> Volume:
    """Describe the volume at a path, without reading its voxels.

    Parameters
    ----------
    path
        A ``.tif``, ``.nii``, ``.nii.gz`` or ``.nrrd`` file, a folder of 2D TIFF files, a Zarr or N5 folder, a
        precomputed folder (with or without ``precomputed://``), or the ``s3://``, ``gs://`` or ``https://``
        address of one of these; NIfTI and NRRD are copied here first, and a web server can't list a folder of TIFF.
    voxel_size_um
        Overrides the file's, z y x, and puts the centre of the first voxel at zero. Needed where the file has none.
    orientation
        BrainGlobe letters of the array's axes z, y, x. A frame of the file that isn't the array's own (all NIfTI and
        NRRD frames are not) is dropped for the array's axes, with the first voxel's centre at zero.
    kind
        Whether it holds brightness or ids; see `likely_kind` for files that don't say.
    allow_incomplete
        Open a volume whose writing was not finished.

    Raises
    ------
    InputError
        If there is no volume, it is damaged or unfinished, its voxel size is not known, or the letters are wrong.
    """
    text = os.fspath(path)
    size = None if voxel_size_um is None else checked_voxel_size(voxel_size_um, text)
    letters = None if orientation is None else parse_orientation(orientation)
    volume = _open(text, size is not None, allow_incomplete)
    if size is None and letters is not None and _frame_differs(volume):
        size = volume.grid.voxel_size_um
    if size is not None:
        volume = dataclasses.replace(volume, levels=_reframed(volume, size), orientation=_array_letters(volume))
    if letters is not None:
        volume = dataclasses.replace(volume, orientation=letters)
    return volume if kind is None else dataclasses.replace(volume, kind=kind)


def _open(text: str, size_given: bool, allow_incomplete: bool) -> Volume:
    address = text
    for prefix in _PREFIXES:
        address = address.removeprefix(prefix)
    address = plain_address(address)
    if is_remote(address) and address.lower().endswith(TIFF_SUFFIXES):
        return _open_remote_tiff(RemotePath(address), size_given)
    if is_remote(address) and address.lower().endswith(_FILE_SUFFIXES):
        return dataclasses.replace(_open_file(fetched_file(address), size_given), path=address)
    if not is_remote(address):
        file = Path(address)
        if not file.exists():
            raise InputError(f"expected {_FILES} at {text}, got nothing: check the path")
        if not os.access(file, os.R_OK | (os.X_OK if file.is_dir() else 0)):
            raise InputError(f"could not read {text}: you have no right to: ask whoever owns it")
        if file.is_file():
            return _open_file(file, size_given)
        if not any(file.iterdir()):
            raise InputError(f"expected {_FILES} at {text}, got an empty folder: check the path")
    return _open_chunked(address, text, size_given, allow_incomplete)


def _open_remote_tiff(file: RemotePath, size_given: bool) -> Volume:
    """Describe a TIFF that is read where it lies, in parts, if the server can give these."""
    try:
        return read_tiff(file, ignore_scale=size_given)
    except WholeFilesOnlyError:
        return dataclasses.replace(read_tiff(fetched_file(str(file)), ignore_scale=size_given), path=str(file))
    except FileNotFoundError as error:
        require_bucket(str(file.parent))
        raise InputError(f"expected a file at {file}, got nothing: check the address") from error


def _open_file(file: Path, size_given: bool) -> Volume:
    name = file.name.lower()
    if name.endswith(TIFF_SUFFIXES):
        return read_tiff(file, ignore_scale=size_given)
    if name.endswith((".nii", ".nii.gz")):
        return read_nifti(file)
    if name.endswith((".nrrd", ".nhdr")):
        return read_nrrd(file)
    raise InputError(f"expected {_FILES}, got {file}: the end of its name is of none of these")


def _open_chunked(address: str, text: str, size_given: bool, allow_incomplete: bool) -> Volume:
    named = [prefix for prefix in _PREFIXES if text.startswith(prefix)]
    roots = read_jsons(address, _PREFIXES[named[0]] if named else ROOTS)
    if named and not roots:
        require_bucket(address)
        files = " or ".join(_PREFIXES[named[0]])
        raise InputError(f"expected a volume with {files} at {text}, got none: check the path")
    formats = [prefix for prefix, files in _FORMATS.items() if not roots.keys().isdisjoint(files)]
    if len(formats) > 1:
        raise InputError(
            f"expected one volume at {text}, got the metadata of two ({', '.join(sorted(roots))}): say which, "
            f"{' or '.join(f'{prefix}…' for prefix in formats)}"
        )
    info = roots.get("info")
    if info is not None:
        notes = _completeness(info, text, allow_incomplete)
        volume = read_precomputed(address, info)
        return dataclasses.replace(volume, notes=volume.notes + notes)
    node = roots.get("zarr.json")
    if node is not None and node.get("node_type") == "array":
        return read_zarr_array(address, "zarr3", node, size_given)
    if node is not None:
        attributes = node.get("attributes", {})
        return _open_group(address, "zarr3", {**attributes, **attributes.get("ome", {})}, size_given, allow_incomplete)
    array = roots.get(".zarray")
    if array is not None:
        return read_zarr_array(address, "zarr", array, size_given)
    attributes = roots.get(".zattrs")
    if attributes is not None or ".zgroup" in roots:
        return _open_group(address, "zarr", attributes or {}, size_given, allow_incomplete)
    attributes = roots.get("attributes.json")
    if attributes is not None:
        return read_n5(address, attributes, ignore_scale=size_given)
    if not is_remote(address):
        return read_tiff_series(Path(address), ignore_scale=size_given)
    require_bucket(address)
    # A web server doesn't say what it has, and a whole bucket may have too much.
    if not address.startswith(("http://", "https://")) and "/" in address.partition("://")[2]:
        return read_tiff_series(RemotePath(address), ignore_scale=size_given)
    raise InputError(
        f"expected a Zarr, N5 or precomputed volume at {text}, got none of their metadata: check the address"
    )


def _open_group(
    address: str, driver: str, attributes: dict[str, object], size_given: bool, allow_incomplete: bool
) -> Volume:
    if attributes.get("multiscales"):
        notes = _completeness(attributes, address, allow_incomplete)
        volume = read_ome_zarr(address, attributes, driver, ignore_scale=size_given)
        return dataclasses.replace(volume, notes=volume.notes + notes)
    if "bioformats2raw.layout" in attributes:
        return _open_chunked(f"{address}/0", f"{address}/0", size_given, allow_incomplete)
    raise InputError(
        f"expected an OME-Zarr image or a Zarr array at {address}, got a group: give the path of one in it"
    )


def _completeness(metadata: dict[str, object], path: str, allow_incomplete: bool) -> tuple[str, ...]:
    """Return what is to be said of an unfinished volume, if it may be opened."""
    own = metadata.get(KEY)
    if not isinstance(own, dict) or own.get("complete") is not False:
        return ()
    if not allow_incomplete:
        raise unfinished(path)
    return ("not finished: run the command that makes it again",)


def unfinished(path: str) -> InputError:
    """Return the error for a volume that was not written to its end."""
    return InputError(
        f"expected a finished volume, got {path}, whose writing was not: run the command that makes it again"
    )


def _frame_differs(volume: Volume) -> bool:
    return volume.format in ("nifti", "nrrd") or not volume.grid.is_axis_aligned


def _array_letters(volume: Volume) -> str | None:
    """Letters of the array's own axes: those that the physical axes have, carried over by the nearest axis."""
    if volume.orientation is None:
        return None
    opposite = dict(zip("apsilr", "paisrl", strict=True))
    linear = volume.grid.affine[:3, :3] / np.asarray(volume.grid.voxel_size_um)
    letters = ""
    for column in linear.T:
        axis = int(np.argmax(np.abs(column)))
        letter = volume.orientation[axis]
        letters += letter if column[axis] > 0 else opposite[letter]
    try:
        return parse_orientation(letters)
    except InputError:  # axes so oblique that two are nearest to the same one have no letters
        return None


def _reframed(volume: Volume, size: tuple[float, float, float]) -> tuple[Grid, ...]:
    """Return the levels as they lie on each other, the finest with this voxel size and no origin."""
    finest = Grid.from_spacing(volume.grid.shape, size)
    back = np.linalg.inv(volume.grid.affine)
    return tuple(
        finest if level == 0 else Grid(grid.shape, finest.affine @ back @ grid.affine)
        for level, grid in enumerate(volume.levels)
    )
