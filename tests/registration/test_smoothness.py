import numpy as np
import pytest

from cloudreg.registration.smoothness import Smoothness

SHAPE = (16, 15, 18)


def kernel_at_zero(smoothness, shape):
    impulse = np.zeros((*shape, 3), dtype=np.float32)
    impulse[0, 0, 0, 1] = 1
    response = smoothness.motion(impulse).velocity
    return response[0, 0, 0]


@pytest.mark.parametrize("length", [300.0, 700.0])
def test_kernel_is_one_at_zero_whatever_the_length(length):
    spacing = np.array([350.0, 300.0, 400.0], dtype=np.float32)
    np.testing.assert_allclose(kernel_at_zero(Smoothness(SHAPE, spacing, length), SHAPE), [0, 1, 0], atol=2e-5)


def test_kernel_is_symmetric():
    rng = np.random.default_rng(0)
    smoothness = Smoothness(SHAPE, np.full(3, 350.0, dtype=np.float32), 500.0)
    a, b = rng.standard_normal((2, *SHAPE, 3)).astype(np.float32)
    one, other = smoothness.motion(a), smoothness.motion(b)
    assert one.with_velocity(other) == pytest.approx(other.with_velocity(one), rel=1e-4)


def test_kernel_is_centred_on_the_sample():
    """A kernel built off-centre would shift what it smooths (even sizes were hit by that in the first program)."""
    impulse = np.zeros((*SHAPE, 3), dtype=np.float32)
    impulse[8, 7, 9] = 1
    response = Smoothness(SHAPE, np.full(3, 350.0, dtype=np.float32), 400.0).motion(impulse).velocity[..., 0]
    for axis in range(3):
        line = response.sum(axis=tuple(k for k in range(3) if k != axis))
        centre = np.average(np.arange(line.size), weights=np.clip(line, 0, None) * (line > 0.1 * line.max()))
        assert centre == pytest.approx((8, 7, 9)[axis], abs=1e-3)
