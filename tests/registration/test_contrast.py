import numpy as np

from cloudreg.registration.contrast import _solve_each, initial_contrast


def moments_of(t, grey, weight, order):
    powers = np.stack([weight * t**k for k in range(2 * order + 1)], axis=-1).sum(axis=0)
    cross = np.stack([weight * t**k * grey for k in range(order + 1)], axis=-1).sum(axis=0)
    return np.concatenate([powers, cross])


def start(order=3, nodes=None):
    values = np.linspace(0, 1, 101, dtype=np.float32)
    contrast = initial_contrast(values, order, (0.0, 0.9))
    if nodes is not None:
        contrast = contrast.on_nodes(nodes, np.full(3, 5.0))
    return contrast


def test_start_takes_background_and_bright_tissue_to_the_targets():
    contrast = start()
    centre, scale, lowest, _, _ = contrast.scale
    constant, slope = contrast.coefficients[0, 0, 0, :2]
    assert constant + slope * lowest == 0
    np.testing.assert_allclose(constant + slope * (0.9 - centre) * scale, 0.9, rtol=1e-5)


def test_a_cubic_that_turns_over_is_recovered():
    truth = np.array([0.4, 0.1, -0.3, 0.05])
    t = np.linspace(-1.5, 1.5, 200)
    contrast = start()
    moments = np.zeros((2, 2, 2, 11))
    moments[0, 0, 0] = moments_of(t, sum(c * t**k for k, c in enumerate(truth)), np.ones_like(t), 3)
    np.testing.assert_allclose(contrast.refitted(moments, None).coefficients[1, 1, 1], truth, atol=1e-4)


def test_contrast_follows_a_change_across_the_target_and_bridges_what_was_not_observed():
    t = np.linspace(-1.5, 1.5, 50)
    contrast = start(nodes=(41, 6, 6))
    count = contrast.coefficients.shape[0]
    moments = np.zeros((*contrast.coefficients.shape[:3], 11))
    slopes = np.linspace(0.2, 0.6, count)
    for z in range(count):
        if z != count // 2:
            moments[z] = moments_of(t, slopes[z] * t, np.ones_like(t), 3)
    fitted = contrast.refitted(moments, np.full(3, 0.8)).coefficients[..., 1]
    assert np.abs(fitted[2:-2].mean(axis=(1, 2)) - slopes[2:-2]).max() < 0.03
    # The global mean would be off by the full range at the ends.
    assert fitted[1].mean() < 0.33 < 0.47 < fitted[-2].mean()


def test_nothing_observed_changes_nothing():
    contrast = start(nodes=(11, 6, 6))
    moments = np.zeros((*contrast.coefficients.shape[:3], 11))
    assert contrast.refitted(moments, np.ones(3)) is contrast


def test_nodes_are_centred_on_the_target():
    contrast = start(nodes=(13, 6, 6))
    scale, offset = contrast.to_nodes[0]
    last = contrast.coefficients.shape[0] - 1
    assert offset >= 0
    np.testing.assert_allclose(0 * scale + offset, last - (12 * scale + offset), atol=1e-9)


def test_many_small_systems_are_solved_as_one_by_one():
    rng = np.random.default_rng(3)
    factors = rng.standard_normal((50, 4, 4))
    matrices = factors @ factors.transpose(0, 2, 1) + 0.1 * np.eye(4)
    right = rng.standard_normal((50, 4))
    expected = np.linalg.solve(matrices, right[..., None])[..., 0]
    np.testing.assert_allclose(np.stack(_solve_each(matrices.T, right.T), axis=1), expected, rtol=1e-9)
