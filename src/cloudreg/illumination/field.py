"""A slow field of illumination over a volume."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.space import Grid

_FIELD = "log_bias.tif"
_NUMBERS = "bias.json"
_PICTURE = "bias.png"


@dataclass(frozen=True, eq=False)
class BiasField:
    """A volume shows ``exp(log_field) * tissue``.

    Parameters
    ----------
    grid
        Nodes of the field, coarse.
    log_field
        (z, y, x), float32; the mean of its exponential over the tissue is 1.
    """

    grid: Grid
    log_field: NDArray[np.float32]

    @property
    def gain(self) -> NDArray[np.float32]:
        """What a volume is multiplied with at each node, (z, y, x)."""
        return np.exp(-self.log_field)

    def nodes_along(self, axis: int, volume: Grid) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """Return between which nodes the voxels of a volume lie along an axis.

        Parameters
        ----------
        axis
            Of both arrays.
        volume
            A grid with the same axes as the field's, any spacing and origin.

        Returns
        -------
        node
            (n,), index of the lower node; the next is the upper one. There is one more node than the field has if
            it has only one, see `correct_block`.
        weight
            (n,), of the upper node, 0..1. Beyond the first and the last node the field stays as it is there.

        Raises
        ------
        InputError
            If the axes are not the same.
        """
        to_node = np.linalg.inv(self.grid.affine) @ volume.affine
        linear = to_node[:3, :3]
        if not np.allclose(linear, np.diag(np.diag(linear)), atol=1e-6):
            raise InputError("the illumination field and the volume have different axes: find the field on this volume")
        last = self.grid.shape[axis] - 1
        position = np.clip(np.arange(volume.shape[axis]) * linear[axis, axis] + to_node[axis, 3], 0, last)
        node = np.clip(np.floor(position), 0, max(last - 1, 0)).astype(np.intp)
        return node, (position - node).astype(np.float32)


def save_bias(bias: BiasField, folder: str | Path) -> None:
    """Write ``log_bias.tif``, a picture, and ``bias.json``; the numbers last, as the mark of a whole folder."""
    import tifffile

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(folder / _FIELD, bias.log_field, photometric="minisblack", metadata=None)
    _draw(bias, folder / _PICTURE)
    field = np.exp(bias.log_field)
    numbers = {"grid": bias.grid.to_dict(), "darkest": float(field.min()), "brightest": float(field.max())}
    (folder / _NUMBERS).write_text(json.dumps(numbers, indent=2) + "\n")


def load_bias(folder: str | Path) -> BiasField:
    """Read what `save_bias` wrote.

    Raises
    ------
    InputError
        If the folder does not hold it.
    """
    import tifffile

    folder = Path(folder)
    try:
        grid = Grid.from_dict(json.loads((folder / _NUMBERS).read_text())["grid"])
        log_field = tifffile.imread(folder / _FIELD).astype(np.float32).reshape(grid.shape)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"expected an illumination field in {folder} ({_FIELD}, {_NUMBERS}): {reason}") from error
    if not np.isfinite(log_field).all():
        raise InputError(f"expected {folder / _FIELD} to hold finite numbers: find the field again")
    return BiasField(grid, log_field)


def _draw(bias: BiasField, path: Path) -> None:
    # Figure alone, without pyplot: no window system, and safe in threads.
    from matplotlib.figure import Figure

    field = np.exp(bias.log_field)
    low, high = float(field.min()), float(field.max())
    figure = Figure(figsize=(12, 4), layout="constrained")
    names = "zyx"
    for axis, axes in enumerate(figure.subplots(1, 3)):
        across = [i for i in range(3) if i != axis]
        height, width = (bias.grid.size_um[i] / 1000 for i in across)
        middle = np.take(field, field.shape[axis] // 2, axis=axis)
        image = axes.imshow(middle, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), extent=(0, width, height, 0))
        axes.set_title(f"middle plane across {names[axis]}")
        axes.set_ylabel(f"{names[across[0]]} (mm)")
        axes.set_xlabel(f"{names[across[1]]} (mm)")
    figure.colorbar(image, ax=figure.axes, label="illumination, mean 1 over the tissue")
    figure.savefig(path, dpi=100)
