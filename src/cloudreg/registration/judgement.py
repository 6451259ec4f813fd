"""What is known about a fit, whether it is a registration at all, and what speaks against it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError, RegistrationFailedError
from cloudreg.registration.fit import Solution
from cloudreg.registration.flow import jacobian_determinant
from cloudreg.registration.levels import Image
from cloudreg.registration.pose import MOST_ANISOTROPY, MOST_VOLUME, TIE
from cloudreg.registration.solver import Explanation
from cloudreg.transforms import Transform
from cloudreg.transforms.transform import inverse_consistency_um


def figures_of(
    solution: Solution,
    transform: Transform,
    explanation: Explanation,
    template: Image,
    given: NDArray[np.float64],
) -> dict[str, Any]:
    """Return the numbers by which to judge a fit, as the manifest keeps them.

    Parameters
    ----------
    solution, transform, explanation
        What was found.
    template
        Of the first pair, normalised.
    given
        3 x 3, what the atlas's scales were known to be: atlas um to target um up to a turn.

    Raises
    ------
    InputError
        If hardly a voxel of the atlas's brain lies on the target.
    """
    fit, level = solution.fit, solution.problem.level
    tissue = (explanation.atlas > 0.15) & (level.target.weight > 0)
    grey, predicted = level.target.values[tissue].astype(float), explanation.predicted[tissue].astype(float)
    if grey.size < 100:
        raise InputError("the atlas's brain and the target do not overlap: check the orientation and the voxel size")
    determinant = jacobian_determinant(fit.flow.displacement, fit.flow.spacing)
    scale = np.linalg.svd(transform.affine[:3, :3], compute_uv=False)
    beyond = np.linalg.svd(np.linalg.solve(given, transform.affine[:3, :3]), compute_uv=False)
    # One grey has no correlation.
    varied = min(float(np.std(grey)), float(np.std(predicted))) > 0
    index = np.argwhere(explanation.atlas > 0.15)
    sample = level.target.grid.index_to_um(index[:: max(1, len(index) // 20000)])
    inside_atlas, _ = transform.target_to_atlas(sample)
    consistency = inverse_consistency_um(transform, inside_atlas)
    poses = solution.poses
    matched = float(explanation.match[tissue].mean())
    observed = _observed(level.target, template, transform)
    return {
        "resolution_um": level.voxel_um,
        # Whole voxels of the file are averaged, so that the fit's are near that.
        "voxel_um": [float(v) for v in level.target.grid.voxel_size_um],
        "explained_variance": 1 - float(np.var(grey - predicted) / max(np.var(grey), 1e-12)),
        "correlation": float(np.corrcoef(grey, predicted)[0, 1]) if varied else None,
        "matched_fraction": matched,
        "observed_fraction": observed,
        "score": matched * observed,
        "noise": fit.mixture.sigma_match,
        "affine_scales": [float(s) for s in scale],
        "affine_scales_beyond_given": [float(s) for s in beyond],
        "displacement_median_um": float(np.median(np.linalg.norm(fit.flow.displacement, axis=-1))),
        "displacement_max_um": float(np.linalg.norm(fit.flow.displacement, axis=-1).max()),
        "jacobian_min": float(determinant.min()),
        "jacobian_max": float(determinant.max()),
        "inverse_consistency_median_um": float(np.median(consistency)),
        "inverse_consistency_p99_um": float(np.quantile(consistency, 0.99)),
        "cuts": [cut.describe() for cut in solution.cuts],
        "pose": poses[0].name,
        "pose_objective": poses[0].objective,
        "pose_margin": poses[1].objective - poses[0].objective if len(poses) > 1 else None,
    }


def _observed(target: Image, template: Image, transform: Transform) -> float:
    """Return the part of the template's brain that lies on voxels of the target that were observed."""
    tissue = np.argwhere(template.values > 0.15)
    there, _ = transform.atlas_to_target(template.grid.index_to_um(tissue[:: max(1, len(tissue) // 20000)]))
    index = np.rint(target.grid.um_to_index(there)).astype(int)
    inside = ((index >= 0) & (index < target.weight.shape)).all(axis=1)
    return float((target.weight[tuple(index[inside].T)] > 0).sum() / max(1, len(index)))


def refuse_failure(figures: dict[str, Any]) -> None:
    """Raise where the fit is no registration at all; finer judgements are the report's."""
    low, high = min(figures["affine_scales_beyond_given"]), max(figures["affine_scales_beyond_given"])
    advice = "check the orientation letters, the voxel size and the channel"
    # Clearing swells and shrinks a brain by some tens of per cent, and not one way half as much again as another: half
    # a brain taken for a whole one is squeezed like that.
    if low < 0.3 or high > 3 or high > 1.5 * low:
        raise RegistrationFailedError(
            f"the registration failed: it scales the brain by {low:.2f} one way and {high:.2f} another; {advice}"
        )
    correlation = figures["correlation"]
    if figures["matched_fraction"] < 0.2 or (correlation is not None and correlation < 0.1):
        said = "has but one grey" if correlation is None else f"correlates {correlation:.2f} with the target"
        raise RegistrationFailedError(
            f"the registration failed: only {figures['matched_fraction']:.0%} of the brain matches the atlas and the "
            f"predicted image {said}; {advice}"
        )
    if figures["jacobian_min"] <= 0:
        raise RegistrationFailedError("the registration failed: the map folds; raise the regularization")


def doubts_about(figures: dict[str, Any]) -> list[str]:
    """Return what speaks against a fit that isn't refused, a sentence each."""
    low, high = min(figures["affine_scales_beyond_given"]), max(figures["affine_scales_beyond_given"])
    volume = float(np.prod(figures["affine_scales_beyond_given"]))
    doubts = []
    if not 1 / MOST_VOLUME < volume < MOST_VOLUME:
        doubts.append(f"the atlas had to be scaled to {volume:.2f} of its volume: check the voxel size")
    if high > MOST_ANISOTROPY * low:
        doubts.append(f"the atlas was scaled by {low:.2f} one way and {high:.2f} another: check the voxel size")
    if figures["cuts"]:
        where = " and ".join(figures["cuts"])
        doubts.append(f"the brain was taken to be cut at {where}: regions beyond are a guess from the rest")
    if figures["within"]:
        doubts.append(
            "the target shows more than a brain: where the brain lies in it was found by trying, and only what is near "
            "was used, so look at the result or give a volume of the brain alone"
        )
    if figures["inverse_consistency_p99_um"] > figures["resolution_um"]:
        apart = figures["inverse_consistency_p99_um"]
        doubts.append(f"the map and its inverse miss each other by {apart:.0f} um and more at a hundredth of the brain")
    if figures["matched_fraction"] < 0.5:
        doubts.append(f"only {figures['matched_fraction']:.0%} of the brain matches the atlas")
    if figures["pose_margin"] is not None and figures["pose_margin"] < TIE:
        doubts.append("another pose explains the brain as well: give --orientation, or compare with it")
    return doubts
