import numpy as np
import pytest

from cloudreg.registration.memory import Memory
from cloudreg.registration.smoothness import Smoothness, dot

SHAPE = (6, 5, 7)
SMOOTHNESS = Smoothness(SHAPE, np.full(3, 500.0, dtype=np.float32), 600.0)


@pytest.fixture
def valley():
    """The bottom of a quadratic that is stiff along the first axis and slack along the last, and its slope."""
    rng = np.random.default_rng(5)
    stiffness = np.array([40.0, 5.0, 0.2], dtype=np.float32)
    bottom = SMOOTHNESS.motion(rng.standard_normal((*SHAPE, 3)).astype(np.float32)).velocity
    return bottom, lambda velocity: stiffness * (bottom - velocity)


def solve(downhill):
    """A step that knows nothing of the valley."""
    return SMOOTHNESS.motion(downhill).times(0.02)


def distance_left(bottom, downhill, memory, steps):
    here = SMOOTHNESS.motion(np.zeros((*SHAPE, 3), dtype=np.float32))
    for _ in range(steps):
        slope = downhill(here.velocity)
        step = memory.improved(slope, solve)
        assert dot(step.velocity, slope) > 0
        # The best length along the step, as a line search would find it.
        curvature = dot(step.velocity, slope - downhill(here.velocity + step.velocity))
        step = step.times(dot(step.velocity, slope) / curvature)
        here = here.plus(1.0, step)
        memory.remember(step, slope, downhill(here.velocity))
    return float(np.linalg.norm(here.velocity - bottom) / np.linalg.norm(bottom))


def test_what_a_step_did_to_the_slope_takes_that_step(valley):
    _, downhill = valley
    memory = Memory()
    before = downhill(np.zeros((*SHAPE, 3), dtype=np.float32))
    step = solve(before)
    after = downhill(step.velocity)
    memory.remember(step, before, after)
    again = memory.improved(before - after, solve)
    np.testing.assert_allclose(again.velocity, step.velocity, rtol=1e-4, atol=1e-6 * np.abs(step.velocity).max())


def test_a_memory_finds_the_bottom_of_a_valley_sooner(valley):
    assert distance_left(*valley, Memory(8), 20) < 0.5 * distance_left(*valley, Memory(0), 20)


def test_what_is_forgotten_changes_nothing(valley):
    _, downhill = valley
    slope = downhill(np.zeros((*SHAPE, 3), dtype=np.float32))
    memory = Memory()
    assert memory.empty
    step = solve(slope)
    memory.remember(step, slope, downhill(step.velocity))
    assert not memory.empty
    memory.forget()
    np.testing.assert_array_equal(memory.improved(slope, solve).velocity, step.velocity)


def test_negative_curvature_is_not_remembered():
    memory = Memory()
    slope = np.ones((*SHAPE, 3), dtype=np.float32)
    memory.remember(solve(slope), slope, 2 * slope)
    assert memory.empty
