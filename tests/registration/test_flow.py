import numpy as np
import pytest

from cloudreg.registration.flow import integrate, invert, jacobian_determinant
from cloudreg.registration.smoothness import Smoothness

SHAPE = (14, 12, 13)
SPACING = np.array([300.0, 350.0, 400.0], dtype=np.float32)


@pytest.fixture
def velocity():
    rng = np.random.default_rng(1)
    smooth = Smoothness(SHAPE, SPACING, 700.0)
    field = smooth.root(rng.standard_normal((*SHAPE, 3)).astype(np.float32))
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


def test_inverse_undoes_the_map_everywhere(velocity):
    forward = integrate(velocity, SPACING).displacement
    backward = integrate(-velocity, SPACING).displacement
    inverse = invert(forward, SPACING, backward, refine=2)
    # At every fine node q, q + inverse(q) must be taken back to q by the forward map.
    from scipy.ndimage import map_coordinates

    nodes = np.argwhere(np.ones(inverse.shape[:3], dtype=bool)) / 2
    moved = nodes + inverse.reshape(-1, 3) / SPACING
    back = moved + np.stack(
        [map_coordinates(forward[..., k], moved.T, order=1, mode="nearest") / SPACING[k] for k in range(3)], axis=1
    )
    assert np.abs(back - nodes).max() < 1e-3


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
