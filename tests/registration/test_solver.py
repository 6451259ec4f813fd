from dataclasses import replace

import numpy as np
import pytest

from brains import VOXEL_UM, brain, image_of
from cloudreg.registration.contrast import initial_contrast
from cloudreg.registration.flow import integrate
from cloudreg.registration.kernels import Mixture
from cloudreg.registration.levels import make_level
from cloudreg.registration.smoothness import Smoothness
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
    momentum *= np.float32(150) / np.abs(smoothness.root(momentum)).max()
    contrast = initial_contrast(values[values > 0.05], 2, (0.0, 0.9))
    intensity = Intensity(contrast, Mixture(0.2, 0.5, 0.2, 1.0, 0.0, (0.79, 0.2, 0.01)))
    fit = Fit(np.eye(4), momentum, integrate(smoothness.root(momentum), SPACING), (intensity,))
    return Problem(level, GRID, smoothness, 0.01), fit


def moved(problem, fit, momentum):
    return replace(fit, momentum=momentum, flow=integrate(problem.smoothness.root(momentum), SPACING))


def objective(problem, fit):
    return problem.evaluate(fit).data + problem.prior(fit)


def test_a_step_promises_the_slope_of_the_objective(case):
    problem, fit = case
    step, promised = problem.velocity_step(fit, problem.linearize(fit, affine=False), 20)
    short = np.float32(0.02)
    after, before = (objective(problem, moved(problem, fit, fit.momentum + s * step)) for s in (short, -short))
    # The rest is the kinks of trilinear interpolation.
    assert (before - after) / (2 * short) == pytest.approx(promised, rel=5e-3)


def test_a_whole_step_lowers_the_objective(case):
    problem, fit = case
    step, promised = problem.velocity_step(fit, problem.linearize(fit, affine=False), 20)
    gained = objective(problem, fit) - objective(problem, moved(problem, fit, fit.momentum + step))
    # A quadratic whose curvature is right gains half.
    assert 0.4 * promised < gained < promised
    assert step.shape == fit.momentum.shape


def test_equal_steps_in_time_cost_what_the_stationary_velocity_does(case):
    problem, fit = case
    one = fit.momentum if fit.momentum.ndim == 4 else fit.momentum[0]
    four = replace(fit, momentum=np.stack([one / 2] * 4))
    assert problem.prior(four) == pytest.approx(problem.prior(replace(fit, momentum=one)))
