"""NIfTI-1 and -2 files, by nibabel.

The array's axes are the file's (i, j, k are our z, y, x).

References
----------
.. [1] https://nifti.nimh.nih.gov/nifti-1
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.io.dtypes import Kind, held_dtype, likely_kind
from cloudreg.io.frames import RAS_LETTERS, grid_from_ras, ras_from_grid
from cloudreg.io.volume import Volume
from cloudreg.io.whole import WholeFile
from cloudreg.space import Grid

_LABEL_INTENT = 1002


class NiftiFile(WholeFile):
    """The voxels of a NIfTI file, scaled as its header says."""

    def load(self) -> NDArray[Any]:
        """Return the whole array, shape (c, z, y, x)."""
        from nibabel.filebasedimages import ImageFileError

        image = _load(self.file)
        proxy = image.dataobj
        try:
            # Unscaled where the scale does nothing: nibabel would turn integers into float64.
            array = np.asarray(proxy, dtype=np.float32) if _is_scaled(image) else proxy.get_unscaled()
        except (OSError, EOFError, ValueError, zlib.error, ImageFileError) as error:
            raise InputError(
                f"expected the whole file {self.file}, got a damaged one ({_line(error)}): copy it again"
            ) from error
        return np.asarray(np.moveaxis(np.asarray(array).reshape(_shape(image)), -1, 0))


def read_nifti(file: Path) -> Volume:
    """Describe a NIfTI file: 3D, or with channels or components in its further dimensions."""
    image = _load(file)
    z, y, x, channels = _shape(image)
    header = image.header
    unit = {"micron": 1.0, "meter": 1e6}.get(str(header.get_xyzt_units()[0]), 1000.0)
    notes: tuple[str, ...] = ()
    orientation: str | None = RAS_LETTERS
    if int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0:
        matrix = np.asarray(image.affine, dtype=float).copy()
        matrix[:3] *= unit
        grid = grid_from_ras((z, y, x), matrix)
    else:
        grid, orientation = _grid_without_world(header, (z, y, x), unit), None
        notes = ("no world frame in the header: axes and origin are the array's",)
    stored = held_dtype(header.get_data_dtype(), str(file))
    dtype = np.dtype(np.float32) if _is_scaled(image) else stored
    labels = int(header["intent_code"]) == _LABEL_INTENT
    return Volume(
        path=str(file),
        format="nifti",
        kind="labels" if labels else likely_kind(dtype),
        dtype=dtype,
        channels=channels,
        levels=(grid,),
        chunk=(z, y, x),
        source=NiftiFile(file),
        orientation=orientation,
        notes=notes,
    )


def write_nifti(file: Path, array: NDArray[Any], grid: Grid, kind: Kind, orientation: str | None) -> None:
    """Write a (z, y, x) or (c, z, y, x) array.

    With letters the header holds the RAS frame. Without, it says that the frame is unknown (codes 0), and its
    matrix keeps the grid's axes and origin in array order.
    """
    import nibabel as nib

    data = array if array.ndim == 3 else np.moveaxis(array, 0, -1)
    image = (
        nib.Nifti1Image(data, None, dtype=array.dtype)
        if max(data.shape) < 2**15
        else nib.Nifti2Image(data, None, dtype=array.dtype)
    )
    matrix = grid.affine.copy() if orientation is None else ras_from_grid(grid, orientation)
    matrix[:3] /= 1000.0
    code = 0 if orientation is None else 1
    image.header.set_zooms([v / 1000.0 for v in grid.voxel_size_um] + [1.0] * (data.ndim - 3))
    image.set_sform(matrix, code=code, update_affine=False)
    if orientation is not None:
        image.set_qform(matrix, code=code, strip_shears=True, update_affine=False)
    image.header.set_xyzt_units("mm")
    if kind == "labels":
        image.header.set_intent("label")
    nib.save(image, file)


def _load(file: Path) -> Any:
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError

    try:
        image = nib.load(file)
    except (OSError, EOFError, ValueError, ImageFileError) as error:
        raise InputError(f"expected a NIfTI file at {file}: {_line(error)}") from error
    if not isinstance(image, nib.Nifti1Image | nib.Nifti1Pair):
        raise InputError(f"expected a NIfTI file at {file}, got {type(image).__name__}")
    return image


def _shape(image: Any) -> tuple[int, int, int, int]:
    """Return z, y, x and what all further dimensions hold."""
    shape = tuple(int(n) for n in image.shape)
    z, y, x = (*shape[:3], 1, 1, 1)[:3]
    return z, y, x, int(np.prod(shape[3:], dtype=int))


def _is_scaled(image: Any) -> bool:
    proxy = image.dataobj
    return not (proxy.slope == 1.0 and proxy.inter == 0.0)


def _grid_without_world(header: Any, shape: tuple[int, int, int], unit: float) -> Grid:
    zooms = np.array([*header.get_zooms()[:3], 1.0, 1.0, 1.0][:3], dtype=float)
    zooms[zooms <= 0] = 1.0
    # A matrix without a code is no promise: many programs leave the identity there. One that agrees with the voxel
    # size is what `write_nifti` keeps the array's origin in.
    matrix = np.asarray(header.get_sform(), dtype=float)
    if np.allclose(np.linalg.norm(matrix[:3, :3], axis=0), zooms, rtol=1e-3) and abs(np.linalg.det(matrix)) > 0:
        matrix[:3] *= unit
        return Grid(shape, matrix)
    return Grid.from_spacing(shape, [float(v) * unit for v in zooms])


def _line(error: BaseException) -> str:
    return str(error).replace("\n", " ")
