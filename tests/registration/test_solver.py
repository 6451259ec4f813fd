from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg

from brains import VOXEL_UM, brain, image_of
from cloudreg.registration.affine import affine_group
from cloudreg.registration.contrast import initial_contrast
from cloudreg.registration.flow import integrate
from cloudreg.registration.levels import make_level
from cloudreg.registration.mixture import Mixture
from cloudreg.registration.smoothness import Motion, Smoothness, dot
from cloudreg.registration.solver import Fit, Intensity, Problem
from cloudreg.space import Grid

GRID = Grid.from_spacing((22, 20, 21), (500.0,) * 3, (-900.0, -900.0, -900.0))
SPACING = np.full(3, 500.0, dtype=np.float32)


@pytest.fixture(scope="module", params=[None, 1, 4], ids=["stationary", "one step", "four steps"])
def case(request):
    """A brain and its neighbour, and a fit on the way from one to the other."""
    rng = np.random.default_rng(2)
    values = brain()
    level = make_level(image_of(np.roll(values, 1, axis=0), (60.0, -40.0, 90.0)), image_of(values), VOXEL_UM)
    smoothness = Smoothness(GRID.shape, SPACING, 900.0)
    times = () if request.param is None else (request.param,)
    momentum = rng.standard_normal((*times, *GRID.shape, 3)).astype(np.float32)
    motion = smoothness.motion(momentum)
    motion = motion.times(150 / float(np.abs(motion.velocity).max()))
    contrast = initial_contrast(values[values > 0.05], 2, (0.0, 0.9))
    intensity = Intensity(contrast, Mixture(0.2, 0.5, 0.2, 1.0, 0.0, (0.79, 0.2, 0.01)))
    fit = Fit(np.eye(4), motion, integrate(motion.velocity, SPACING), (intensity,))
    return Problem(level, GRID, smoothness, 0.01), fit


def moved(fit, length, step):
    motion = fit.motion.plus(length, step)
    return replace(fit, motion=motion, flow=integrate(motion.velocity, SPACING))


def step_and_promise(problem, fit):
    linear = problem.linearize(fit, affine=False)
    downhill = problem.downhill(fit, linear)
    step = problem.gauss_newton(fit, linear)(downhill)
    return step, dot(step.velocity, downhill)


def objective(problem, fit):
    return problem.evaluate(fit).data + problem.prior(fit)


def test_a_step_promises_the_slope_of_the_objective(case):
    problem, fit = case
    step, promised = step_and_promise(problem, fit)
    short = 0.02
    after, before = (objective(problem, moved(fit, s, step)) for s in (short, -short))
    # The rest is the kinks of trilinear interpolation.
    assert (before - after) / (2 * short) == pytest.approx(promised, rel=5e-3)


def test_a_whole_step_lowers_the_objective(case):
    problem, fit = case
    step, promised = step_and_promise(problem, fit)
    gained = objective(problem, fit) - objective(problem, moved(fit, 1.0, step))
    # A quadratic whose curvature is right gains half.
    assert 0.4 * promised < gained < promised
    assert step.velocity.shape == fit.motion.velocity.shape


def test_equal_steps_in_time_cost_what_the_stationary_velocity_does(case):
    problem, fit = case
    whole = fit.motion
    one = whole if whole.momentum.ndim == 4 else Motion(whole.momentum[0], whole.velocity[0])
    four = Motion(*(np.stack([field / 2] * 4) for field in (one.momentum, one.velocity)))
    assert problem.prior(replace(fit, motion=four)) == pytest.approx(problem.prior(replace(fit, motion=one)))


def test_a_step_of_the_affine_is_bounded_where_hardly_anything_tells_of_its_length(case):
    problem, fit = case
    group = affine_group("affine", np.full(3, 4000.0), np.full(3, 4000.0), 7000.0)
    linear = problem.linearize(fit, affine=True)
    lost = replace(linear, affine_hessian=1e-9 * linear.affine_hessian)
    change = problem.affine_step(fit, lost, group)(1e-2) @ np.linalg.inv(fit.to_atlas)
    assert np.abs(scipy.linalg.logm(change)[:3, :3]).max() <= 0.5 * (1 + 1e-6)
    # A step that is short anyhow is taken as it is.
    strong = replace(linear, affine_hessian=1e3 * linear.affine_hessian)
    twice = replace(linear, affine_hessian=2e3 * linear.affine_hessian)
    steps = [scipy.linalg.logm(problem.affine_step(fit, one, group)(1e-2))[:3] for one in (strong, twice)]
    np.testing.assert_allclose(steps[1], steps[0] / 2, atol=1e-3 * np.abs(steps[0]).max())
