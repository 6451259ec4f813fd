"""Chunked volumes that CloudReg wrote: taken up again, or removed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from cloudreg.errors import InputError
from cloudreg.io.adopt import adopt_volume
from cloudreg.io.chunked import ChunkedSource
from cloudreg.io.layout import KEY, Layout
from cloudreg.io.lengths import VoxelSizeUnknownError
from cloudreg.io.levels import pyramid_grids
from cloudreg.io.missing import requiring_chunks
from cloudreg.io.objects import is_remote, plain_address, read_json, read_jsons, remove_folder, write_json
from cloudreg.io.opening import ROOTS, open_volume, unfinished
from cloudreg.io.precomputed import PREFIX
from cloudreg.io.writer import ROOT, VolumeWriter, metadata_of, opened_writer

_FINEST = "finest_complete"
"""Says of an unfinished volume that it lacks nothing but coarser levels."""


def remove_volume(path: str) -> None:
    """Remove a volume that CloudReg wrote, if there is one.

    Raises
    ------
    InputError
        If the path holds anything else.
    """
    address = plain_address(path.removeprefix(PREFIX))
    folder = None if is_remote(address) else Path(address)
    if folder is not None and not folder.exists():
        return
    roots = {} if folder is not None and not folder.is_dir() else read_jsons(address, ROOTS)
    if not any(KEY in found.get("attributes", found) for found in roots.values()):
        if not roots and (folder is None or (folder.is_dir() and not any(folder.iterdir()))):
            return
        raise InputError(f"expected a volume written by CloudReg at {address}, got something else: remove it yourself")
    if folder is None:
        remove_folder(address)
    else:
        shutil.rmtree(folder)


def reopen_volume(path: str | os.PathLike[str], *, fill_missing: bool = False) -> VolumeWriter:
    """Take up a volume, to add the levels that it lacks.

    One that CloudReg wrote counts as unfinished until then, and levels that it has are made anew. See `adopt_volume`
    for those of other programs.

    Parameters
    ----------
    fill_missing
        Take chunks that are missing in another program's volume for zeros; see `requiring_chunks`.

    Raises
    ------
    InputError
        If the path holds no precomputed or OME-Zarr volume, or one whose finest level is not all there.
    """
    try:
        volume = open_volume(path, allow_incomplete=True)
    except VoxelSizeUnknownError:
        volume = open_volume(path, voxel_size_um=(1.0, 1.0, 1.0))
        if volume.format in ROOT:
            raise
    folder = volume.path.removeprefix(PREFIX)
    root = ROOT.get(volume.format)
    found = None if root is None else read_json(folder, root)
    if found is None or KEY not in found.get("attributes", found):
        if not fill_missing:
            volume = requiring_chunks(volume, 0)
        return adopt_volume(volume)
    own = found.get("attributes", found)[KEY]
    whole = own.get("complete") is not False
    if not whole and not own.get(_FINEST):
        raise unfinished(volume.path)
    layout = Layout(
        path=folder,
        format="precomputed" if volume.format == "precomputed" else "ome-zarr",
        levels=volume.levels if len(volume.levels) > 1 else pyramid_grids(volume.grid),
        dtype=volume.dtype,
        channels=volume.channels,
        kind=volume.kind,
        chunk=volume.chunk,
        orientation=volume.orientation,
        channel_names=volume.channel_names,
        sharded=isinstance(volume.source, ChunkedSource) and volume.source.arrays[0].is_sharded,
    )
    metadata = metadata_of(layout, complete=False)
    metadata.get("attributes", metadata)[KEY][_FINEST] = True
    write_json(folder, ROOT[layout.format], metadata)
    return opened_writer(layout, is_new=whole)
