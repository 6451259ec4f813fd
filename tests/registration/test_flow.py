import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from cloudreg.registration.flow import integrate, invert, jacobian_determinant, smallest_determinant
from cloudreg.registration.smoothness import Smoothness

SHAPE = (14, 12, 13)
SPACING = np.array([300.0, 350.0, 400.0], dtype=np.float32)


@pytest.fixture
def velocity():
    rng = np.random.default_rng(1)
    smooth = Smoothness(SHAPE, SPACING, 700.0, power=1)
    field = smooth.motion(rng.standard_normal((*SHAPE, 3)).astype(np.float32)).velocity
    return (field * 400 / np.abs(field).max()).astype(np.float32)


def test_no_velocity_moves_nothing():
    flow = integrate(np.zeros((*SHAPE, 3), dtype=np.float32), SPACING)
    assert not flow.displacement.any()


def test_a_constant_velocity_is_a_shift_of_its_own_length():
    velocity = np.broadcast_to(np.array([120.0, -60.0, 30.0], dtype=np.float32), (*SHAPE, 3)).copy()
    np.testing.assert_allclose(integrate(velocity, SPACING).displacement, velocity, rtol=1e-5)


def test_derivative_is_the_limit_of_differences(velocity):
    rng = np.random.default_rng(2)
    change = rng.standard_normal(velocity.shape).astype(np.float32)
    flow = integrate(velocity, SPACING)
    step = 2.0
    after = integrate(velocity + step * change, SPACING).displacement.astype(float)
    before = integrate(velocity - step * change, SPACING).displacement.astype(float)
    difference = (after - before) / (2 * step)
    derivative = flow.derivative(change)
    # Trilinear interpolation has kinks, which a finite difference straddles here and there.
    error = np.linalg.norm(difference - derivative) / np.linalg.norm(difference)
    assert error < 0.02


def test_adjoint_is_the_transpose_of_the_derivative(velocity):
    rng = np.random.default_rng(3)
    a = rng.standard_normal(velocity.shape).astype(np.float32)
    b = rng.standard_normal(velocity.shape).astype(np.float32)
    flow = integrate(velocity, SPACING)
    left = np.sum(flow.derivative(a).astype(float) * b)
    right = np.sum(a.astype(float) * flow.adjoint(b))
    assert left == pytest.approx(right, rel=1e-5)


@pytest.mark.parametrize("times", [1, 5])
def test_inverse_undoes_the_map_everywhere(velocity, times):
    forward = integrate(times * velocity, SPACING).displacement
    # The stronger one widens some tissue to more than its double.
    widened = max(float(np.diff(forward[..., k], axis=k).max() / SPACING[k]) for k in range(3))
    assert (widened > 1.5) == (times > 1) and smallest_determinant(integrate(times * velocity, SPACING)) > 0.05
    inverse = invert(forward, SPACING, refine=2)
    # At every fine node q, q + inverse(q) must be taken back to q by the forward map.
    nodes = np.argwhere(np.ones(inverse.shape[:3], dtype=bool)) / 2
    moved = nodes + inverse.reshape(-1, 3) / SPACING
    back = moved + np.stack(
        [map_coordinates(forward[..., k], moved.T, order=1, mode="nearest") / SPACING[k] for k in range(3)], axis=1
    )
    assert np.abs(back - nodes).max() < 1e-4


def test_determinant_of_a_linear_stretch():
    z = np.arange(SHAPE[0], dtype=np.float32)[:, None, None] * SPACING[0]
    displacement = np.zeros((*SHAPE, 3), dtype=np.float32)
    displacement[..., 0] = 0.25 * z
    np.testing.assert_allclose(jacobian_determinant(displacement, SPACING), 1.25, rtol=1e-5)


def test_determinant_sees_a_fold():
    displacement = np.zeros((*SHAPE, 3), dtype=np.float32)
    displacement[6, ..., 0] = 400.0
    assert jacobian_determinant(displacement, SPACING).min() < 0


def test_forces_go_back_half_the_way_and_none_is_lost(velocity):
    flow = integrate(velocity, SPACING)
    force = np.zeros_like(velocity)
    force[6, 5, 6, 1] = 2.0
    back = flow.half_way_back(force)
    assert back[..., 1].sum() == pytest.approx(2.0, rel=1e-5)
    place = [
        np.average(np.arange(n), weights=back[..., 1].sum(axis=tuple({0, 1, 2} - {k}))) for k, n in enumerate(SHAPE)
    ]
    half = integrate(velocity / 2, SPACING).displacement[6, 5, 6] / SPACING
    np.testing.assert_allclose(np.array(place) - [6, 5, 6], half, atol=0.02)


def velocities(steps, shape=SHAPE, seed=6, spacing=SPACING, largest=400.0):
    """Smooth velocities, another at each step, in float64 and of the size that `integrate` takes."""
    rng = np.random.default_rng(seed)
    smooth = Smoothness(shape, spacing, 700.0, power=1)
    fields = smooth.motion(rng.standard_normal((steps, *shape, 3)).astype(np.float32)).velocity.astype(float)
    return fields * largest / np.abs(fields).max() / np.sqrt(steps)


@pytest.mark.parametrize("steps", [1, 2, 4, 5])
@pytest.mark.parametrize(("shape", "largest"), [(SHAPE, 400.0), ((9, 16, 7), 900.0), ((11, 8, 10), 50.0)])
def test_the_adjoint_of_a_flow_in_time_is_exact(steps, shape, largest):
    rng = np.random.default_rng(3)
    velocity = velocities(steps, shape=shape, largest=largest)
    a, b = rng.standard_normal(velocity.shape), rng.standard_normal((*shape, 3))
    flow = integrate(velocity, SPACING)
    left, right = np.sum(flow.derivative(a) * b), np.sum(a * flow.adjoint(b))
    assert left == pytest.approx(right, rel=1e-6)
    assert flow.adjoint(b).dtype == np.float64


@pytest.mark.parametrize("steps", [2, 5])
def test_the_derivative_of_a_flow_in_time_is_the_limit_of_differences(steps):
    velocity = velocities(steps)
    change = np.random.default_rng(2).standard_normal(velocity.shape)
    step = 0.01
    ahead, behind = (integrate(velocity + s * change, SPACING).displacement for s in (step, -step))
    difference = (ahead - behind) / (2 * step)
    error = np.linalg.norm(difference - integrate(velocity, SPACING).derivative(change))
    assert error < 2e-3 * np.linalg.norm(difference)


@pytest.mark.parametrize("steps", [1, 4, 5])
def test_equal_steps_are_the_stationary_flow(velocity, steps):
    stationary = integrate(velocity, SPACING).displacement
    flow = integrate(np.stack([velocity / steps**0.5] * steps), SPACING)
    # Interpolation between nodes, oftener where there are more steps, is all that differs.
    assert np.abs(flow.displacement - stationary).max() < (0.03 if steps > 1 else 1e-6) * SPACING.min()
    change = np.random.default_rng(2).standard_normal(velocity.shape).astype(np.float32)
    force = Smoothness(SHAPE, SPACING, 700.0, power=1).motion(change).velocity
    one, many = integrate(velocity, SPACING).adjoint(force), flow.adjoint(force) / steps**0.5
    assert np.linalg.norm(many.sum(axis=0) - one) < 0.02 * np.linalg.norm(one)


def moved_by(displacement, points):
    """Where a displacement takes points (n, 3), in nodes."""
    moves = [map_coordinates(c, points.T, order=1, mode="nearest") for c in np.moveaxis(displacement, 3, 0)]
    return points + np.stack(moves, axis=1) / SPACING


def test_the_last_step_acts_first():
    flow = integrate(velocities(3), SPACING)
    nodes = np.argwhere(np.ones(SHAPE, dtype=bool))
    right, wrong = nodes, nodes
    for first_to_last, last_to_first in zip(flow.parts, reversed(flow.parts), strict=True):
        wrong = moved_by(first_to_last.displacement, wrong)
        right = moved_by(last_to_first.displacement, right)
    found = moved_by(flow.displacement, nodes)
    assert np.abs(found - right).max() < 0.03
    assert np.abs(found - right).mean() < 0.2 * np.abs(found - wrong).mean()


def test_a_flow_in_time_does_not_fold_where_it_moves_by_several_nodes():
    velocity = velocities(4, shape=(20, 20, 20), largest=3000.0)
    flow = integrate(velocity, SPACING)
    assert np.abs(flow.displacement / SPACING).max() > 2
    assert min(smallest_determinant(part) for part in flow.parts) > 0
    assert smallest_determinant(flow) > 0


def test_a_flow_in_time_backwards_and_with_the_other_sign_is_the_inverse():
    velocity = velocities(4)
    forward, backward = (integrate(v.astype(np.float32), SPACING) for v in (velocity, -velocity[::-1]))
    inverse = invert(forward.displacement, SPACING, refine=1)
    assert np.abs(inverse - backward.displacement)[2:-2, 2:-2, 2:-2].max() < 0.1 * SPACING.min()


def test_curvature_goes_back_to_the_middle_of_each_step():
    flow = integrate(velocities(3), SPACING)
    point = np.array([[6.0, 5.0, 6.0]])
    force = np.zeros((*SHAPE, 3))
    force[6, 5, 6, 1] = 2.0
    back = flow.half_way_back(force)[..., 1]
    np.testing.assert_allclose(back.sum(axis=(1, 2, 3)), 2.0, rtol=1e-5)
    # From the target: the last step's first half, then all of it and the first half of the one before, and so on.
    for part, here in zip(reversed(flow.parts), back[::-1], strict=True):
        place = [np.average(np.arange(n), weights=here.sum(axis=tuple({0, 1, 2} - {k}))) for k, n in enumerate(SHAPE)]
        np.testing.assert_allclose(place, moved_by(part.steps[-2], point)[0], atol=0.02)
        point = moved_by(part.displacement, point)


def test_the_curvature_of_each_step_is_no_less_than_that_of_the_whole():
    """So that the step along it is a descent that's not too long, for changes that are smooth."""
    rng = np.random.default_rng(4)
    velocity = velocities(4, largest=100.0)
    flow = integrate(velocity, SPACING)
    force = np.repeat(rng.uniform(0, 1, (*SHAPE, 1)), 3, axis=3)
    back = flow.half_way_back(force)
    smooth = Smoothness(SHAPE, SPACING, 900.0, power=1)
    different = smooth.motion(rng.standard_normal(velocity.shape).astype(np.float32)).velocity
    alike = np.stack([different[0]] * 4)
    for change, ratio in ((different, 0.6), (alike, 1.2)):
        true = np.sum(force * flow.derivative(change) ** 2)
        assumed = np.sum(back * change**2)
        assert 0 < true < ratio * assumed
    assert true > 0.7 * assumed
