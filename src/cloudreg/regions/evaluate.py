"""How good a registration is, against landmarks, against labels, and by itself."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cloudreg.atlas import Atlas, as_ids, id_type
from cloudreg.errors import InputError
from cloudreg.execution import Engine
from cloudreg.io import Volume
from cloudreg.space import Box, Grid, split
from cloudreg.transforms import Transform, inverse_consistency_um, jacobian_determinant
from cloudreg.transforms.images import BlockPull
from cloudreg.transforms.resample import VoxelMap

_BLOCK = (128, 128, 128)
_LARGE_REGION_VOXELS = 500


@dataclass(frozen=True)
class Evaluation:
    """Figures by name, units in the names, and the Dice overlap of each region that the target's labels hold."""

    figures: dict[str, float]
    dice: dict[int, float] = field(default_factory=dict)


def evaluate(
    transform: Transform,
    atlas: Atlas,
    *,
    engine: Engine,
    points_target: ArrayLike | None = None,
    points_atlas: ArrayLike | None = None,
    labels_target: Volume | None = None,
) -> Evaluation:
    """Measure a registration.

    Parameters
    ----------
    transform
        Between atlas and target.
    atlas
        With labels, where ``labels_target`` is given.
    engine
        Runs the blocks of the label comparison.
    points_target, points_atlas
        Corresponding landmarks (n, 3), micrometres, z y x. The error is the distance in the target between a
        target landmark and where the atlas landmark is mapped; pairs outside the field are counted, not measured.
    labels_target
        Ids on a grid in the target's space, compared with the atlas labels pulled onto that grid.

    Returns
    -------
    Evaluation
        ``inverse_consistency_*_um`` (atlas to target and back) and ``jacobian_*`` (of the deformation, affine left
        out) over the field's nodes within the template; ``landmark_*`` and ``dice_*`` where they can be known.
        ``dice_mean`` and ``dice_min`` are over the regions with more than 500 voxels in the target's labels.

    Raises
    ------
    InputError
        If the numbers of landmarks differ, one list is missing, one is no number, there are labels for the target only,
        or they are no ids.
    """
    figures = _own_figures(transform, atlas.template.grid)
    if (points_target is None) != (points_atlas is None):
        raise InputError("landmarks come in pairs: give both --points-target and --points-atlas, row by row")
    if points_target is not None and points_atlas is not None:
        figures |= _landmark_figures(transform, np.asarray(points_target), np.asarray(points_atlas))
    dice: dict[int, float] = {}
    if labels_target is not None:
        voxels, dice = _dice(transform, atlas, labels_target, engine)
        large = [dice[i] for i in dice if voxels[i] > _LARGE_REGION_VOXELS]
        figures["dice_regions"] = float(len(large))
        figures["dice_mean"] = float(np.mean(large)) if large else float("nan")
        figures["dice_min"] = float(np.min(large)) if large else float("nan")
    return Evaluation(figures, dice)


def _own_figures(transform: Transform, template: Grid) -> dict[str, float]:
    grid = transform.to_target.grid
    nodes = grid.index_to_um(np.moveaxis(np.indices(grid.shape), 0, -1).reshape(-1, 3))
    low, high = template.bounds_um()
    within = ((nodes >= low) & (nodes <= high)).all(axis=1)
    if not within.any():
        raise InputError("the registration's field does not reach the template: is this the atlas it was made with?")
    return_um = inverse_consistency_um(transform, nodes[within])
    determinant = jacobian_determinant(transform.to_target).ravel()[within]
    return {
        "inverse_consistency_median_um": float(np.median(return_um)),
        "inverse_consistency_p90_um": float(np.percentile(return_um, 90)),
        "inverse_consistency_max_um": float(return_um.max()),
        "jacobian_min": float(determinant.min()),
        "jacobian_max": float(determinant.max()),
        "jacobian_folded_fraction": float((determinant <= 0).mean()),
    }


def _landmark_figures(
    transform: Transform, target: NDArray[np.float64], atlas: NDArray[np.float64]
) -> dict[str, float]:
    if target.shape != atlas.shape or target.ndim != 2 or target.shape[1] != 3 or len(target) == 0:
        raise InputError(
            f"landmarks come in pairs, row by row: got shapes {target.shape} in the target and {atlas.shape} in the "
            "atlas, expected (n, 3) and the same n, at least 1"
        )
    for name, points in (("target", target), ("atlas", atlas)):
        wrong = ~np.isfinite(points).all(axis=1)
        if wrong.any():
            raise InputError(
                f"expected three finite numbers for each landmark, got {points[wrong][0].tolist()} for landmark "
                f"{int(np.flatnonzero(wrong)[0]) + 1} in the {name}: leave the pair out"
            )
    mapped, inside = transform.atlas_to_target(atlas)
    error = np.linalg.norm(mapped - target, axis=1)[inside]
    figures = {"landmarks": float(inside.sum()), "landmarks_outside": float((~inside).sum())}
    for name, percentile in (("median", 50), ("p90", 90), ("max", 100)):
        figures[f"landmark_{name}_um"] = float(np.percentile(error, percentile)) if error.size else float("nan")
    return figures


def _dice(
    transform: Transform, atlas: Atlas, target: Volume, engine: Engine
) -> tuple[dict[int, int], dict[int, float]]:
    """Return voxels and Dice overlap of each id in the target's labels, 0 left out."""
    if atlas.labels is None:
        raise InputError(f"the atlas {atlas.name} has no labels to compare with {target.path}: give --labels")
    pull = BlockPull(
        voxel_map=VoxelMap.between(transform, atlas.labels.grid, target.grid, "target"),
        source=atlas.labels,
        level=0,
        channel=0,
        labels=True,
        dtype=id_type(atlas.labels.dtype),
        memory_bytes=engine.memory_per_block_bytes,
    )
    given: dict[int, int] = {}
    pulled: dict[int, int] = {}
    both: dict[int, int] = {}
    for part in engine.run(_Overlap(pull, target), split(target.grid.shape, _BLOCK), label="compare labels"):
        for total, counts in zip((given, pulled, both), part or (), strict=False):
            for region_id, n in counts.items():
                total[region_id] = total.get(region_id, 0) + n
    dice = {i: 2 * both.get(i, 0) / (given[i] + pulled.get(i, 0)) for i in sorted(given)}
    return given, dice


@dataclass(frozen=True)
class _Overlap:
    pull: BlockPull
    target: Volume

    def __call__(self, box: Box) -> tuple[dict[int, int], dict[int, int], dict[int, int]]:
        """Return voxels by id: in the target's labels, in the atlas's, in both alike."""
        given, pulled = as_ids(self.target.read(box), self.target.path), self.pull(box)
        return _counts(given), _counts(pulled), _counts(given[given == pulled])


def _counts(labels: NDArray[np.unsignedinteger]) -> dict[int, int]:
    ids, counts = np.unique(labels, return_counts=True)
    return {int(i): int(n) for i, n in zip(ids, counts, strict=True) if i}
