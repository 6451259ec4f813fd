import gc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from brains import brain, image_of
from cloudreg.registration.contrast import initial_contrast
from cloudreg.registration.flow import Flow
from cloudreg.registration.levels import make_level
from cloudreg.registration.mixture import Mixture
from cloudreg.registration.smoothness import Motion, Smoothness
from cloudreg.registration.solver import Fit, Intensity, Problem
from cloudreg.space import Grid
from plain_model import explain

SPACING = 500.0


@pytest.fixture(scope="module")
def case():
    """A fit away from the optimum: turned, displaced, with a contrast that varies and turns over."""
    rng = np.random.default_rng(5)
    atlas = image_of(brain())
    weight = (rng.random(atlas.values.shape) > 0.1) * rng.uniform(0.3, 1, atlas.values.shape)
    target = image_of(
        brain()[:, ::-1, :] * 0.7 + 0.05 * rng.standard_normal(atlas.values.shape), (-300.0, 100.0, 50.0), weight=weight
    )
    level = make_level(target, atlas, 200.0)
    grid = Grid.from_spacing((20, 18, 19), (SPACING,) * 3, (-800.0, -800.0, -800.0))
    spacing = np.full(3, SPACING, dtype=np.float32)
    smoothness = Smoothness(grid.shape, spacing, 800.0)
    rough = Smoothness(grid.shape, spacing, 800.0, power=1)
    field = rough.motion(rng.standard_normal((*grid.shape, 3)).astype(np.float32)).velocity
    field = np.ascontiguousarray(field * 200 / np.abs(field).max(), dtype=np.float32)
    contrast = initial_contrast(level.atlas[level.atlas > 0.05], 3, (0.0, 0.8))
    contrast = contrast.on_nodes(target.grid.shape, np.full(3, 6.0))
    bumpy = contrast.coefficients + 0.1 * rng.standard_normal(contrast.coefficients.shape).astype(np.float32)
    contrast = replace(contrast, coefficients=bumpy.astype(np.float32))
    turn = np.eye(4)
    turn[:3, :3] += 0.05 * rng.standard_normal((3, 3))
    turn[:3, 3] = [150.0, -80.0, 40.0]
    mixture = Mixture(0.25, 0.6, 0.3, 1.1, -0.05, (0.75, 0.15, 0.1))
    fit = Fit(turn, Motion(0 * field, 0 * field), Flow(spacing, (field,)), (Intensity(contrast, mixture),))
    return Problem(level, grid, smoothness, 1.0), fit


def test_objective_agrees_with_the_plain_reference(case):
    problem, fit = case
    explanation = explain(problem.level, problem.velocity_grid, fit)
    expected = -np.sum(problem.level.target.weight * explanation.log_likelihood, dtype=float)
    assert problem.evaluate(fit).data == pytest.approx(expected, rel=2e-5)


def test_maps_agree_with_the_plain_reference(case):
    problem, fit = case
    expected = explain(problem.level, problem.velocity_grid, fit)
    found = problem.explain(fit)
    for name in ("atlas", "predicted", "match", "artifact"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=2e-5)


def test_both_loops_agree_on_the_objective(case):
    problem, fit = case
    assert problem.linearize(fit).data == pytest.approx(problem.evaluate(fit).data, rel=1e-6)


def test_statistics_agree_with_the_plain_reference(case):
    problem, fit = case
    explanation = explain(problem.level, problem.velocity_grid, fit)
    weight, grey = problem.level.target.weight, problem.level.target.values
    tissue = explanation.atlas > fit.contrast.scale[4]
    match = weight * explanation.match
    expected = [
        match[tissue].sum(),
        (match * (grey - explanation.predicted) ** 2)[tissue].sum(),
        (weight * explanation.artifact).sum(),
        (weight * explanation.artifact * grey).sum(),
        (weight * explanation.background).sum(),
        (weight * explanation.background * grey).sum(),
        (weight * explanation.artifact * grey**2).sum(),
        (weight * explanation.background * grey**2).sum(),
    ]
    np.testing.assert_allclose(problem.evaluate(fit).statistics[0], expected, rtol=1e-3)


def test_moments_count_each_matching_voxel_once(case):
    problem, fit = case
    explanation = explain(problem.level, problem.velocity_grid, fit)
    moments = problem.evaluate(fit).moments[0]
    match = problem.level.target.weight * explanation.match
    assert moments[..., 0].sum() == pytest.approx(match.sum(), rel=1e-4)
    first_cross = 2 * fit.contrast.order + 1
    assert moments[..., first_cross].sum() == pytest.approx((match * problem.level.target.values).sum(), rel=1e-3)


def test_velocity_gradient_is_the_limit_of_differences(case):
    problem, fit = case
    rng = np.random.default_rng(7)
    rough = Smoothness(problem.velocity_grid.shape, fit.flow.spacing, 800.0, power=1)
    change = rough.motion(rng.standard_normal(fit.flow.displacement.shape).astype(np.float32)).velocity
    gradient = problem.linearize(fit).gradient

    def data(step):
        moved = Flow(fit.flow.spacing, (fit.flow.displacement + np.float32(step) * change,))
        return problem.evaluate(replace(fit, flow=moved)).data

    step = 2.0 / np.abs(change).max()
    difference = (data(step) - data(-step)) / (2 * step)
    assert np.sum(gradient.astype(float) * change) == pytest.approx(difference, rel=5e-3)


@pytest.mark.parametrize("kind", ["rigid", "similarity", "scales", "affine"])
def test_affine_step_lowers_the_objective(case, kind):
    from cloudreg.registration.affine import affine_group

    problem, fit = case
    centre = np.array([4000.0, 3500.0, 4000.0])
    update = problem.affine_step(fit, problem.linearize(fit), affine_group(kind, centre, centre, 6000.0))
    small = replace(fit, to_atlas=update(100.0))
    assert problem.evaluate(small).data < problem.evaluate(fit).data


def test_affine_gradient_is_the_limit_of_differences(case):
    problem, fit = case
    gradient = problem.linearize(fit).affine_gradient
    exact, measured = [], []
    for row in range(3):
        for column in range(4):
            direction = np.zeros((4, 4))
            # A shift of 1 um, or as much at the far side of the brain.
            direction[row, column] = 1.0 if column == 3 else 2e-4
            ahead = replace(fit, to_atlas=fit.to_atlas + direction)
            behind = replace(fit, to_atlas=fit.to_atlas - direction)
            measured.append((problem.evaluate(ahead).data - problem.evaluate(behind).data) / 2)
            exact.append(float(gradient @ (direction @ problem.level.target.grid.affine)[:3].ravel()))
    # The rest is the kinks of trilinear interpolation and of the clamped contrast.
    assert np.linalg.norm(np.subtract(measured, exact)) < 0.02 * np.linalg.norm(measured)


def unseen(problem, **changes):
    """Return the problem with its voxels anew, which have seen nothing."""
    level = replace(problem.level, active=problem.level.active.copy(), **changes)
    return Problem(level, problem.velocity_grid, problem.smoothness, problem.prior_weight)


@pytest.mark.parametrize("where", ["moved", "turned"])
def test_what_was_seen_from_one_place_serves_no_other(case, where):
    problem, fit = case
    turn = np.diag([1.0, 0.98, 1.02, 1.0])
    other = {
        "moved": replace(fit, flow=Flow(fit.flow.spacing, (0.5 * fit.flow.displacement,))),
        "turned": replace(fit, to_atlas=fit.to_atlas @ turn),
    }[where]
    here, there = (unseen(problem).linearize(f).gradient for f in (fit, other))
    assert not np.array_equal(here, there)
    for f, expected in ((fit, here), (other, there), (fit, here)):
        problem.evaluate(f)
        np.testing.assert_array_equal(problem.linearize(f).gradient, expected)


def test_what_was_seen_in_one_atlas_serves_no_other(case):
    problem, fit = case
    fainter = replace(problem.level, atlas=0.9 * problem.level.atlas)
    other = Problem(fainter, problem.velocity_grid, problem.smoothness, problem.prior_weight)
    problem.evaluate(fit)
    assert other.evaluate(fit).data == unseen(other).evaluate(fit).data != problem.evaluate(fit).data


def test_what_was_seen_is_kept_no_longer_than_the_voxels(case):
    from cloudreg.registration import kernels

    problem, fit = case
    kept = len(kernels._last)
    once = unseen(problem)
    once.evaluate(fit)
    assert len(kernels._last) == kept + 1
    del once
    gc.collect()
    assert len(kernels._last) == kept


def test_what_was_seen_serves_no_more_once_looking_elsewhere_has_failed(case, monkeypatch):
    from cloudreg.registration import kernels

    problem, fit = case
    expected = problem.evaluate(fit).data

    def failing(*arguments):
        arguments[-1][:] = 0
        raise RuntimeError("stopped")

    with monkeypatch.context() as broken, pytest.raises(RuntimeError):
        broken.setattr(kernels, "_look", failing)
        problem.evaluate(replace(fit, to_atlas=1.01 * fit.to_atlas))
    assert problem.evaluate(fit).data == expected


def test_sums_do_not_depend_on_the_number_of_threads(case, monkeypatch):
    from cloudreg.registration import threads

    problem, fit = case
    results = []
    for count in (1, 3):
        with ThreadPoolExecutor(count) as pool:
            monkeypatch.setattr(threads, "threads", lambda pool=pool: pool)
            fresh = unseen(problem)
            results.append((fresh.evaluate(fit), fresh.linearize(fit)))
    (one, one_slope), (many, many_slope) = results
    assert one.data == many.data
    np.testing.assert_array_equal(one.moments[0], many.moments[0])
    np.testing.assert_array_equal(one_slope.gradient, many_slope.gradient)
