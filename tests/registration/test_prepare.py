import numpy as np
import pytest

from brains import VOXEL_UM, brain
from cloudreg.errors import InputError
from cloudreg.registration.levels import otsu_threshold, thinned
from cloudreg.registration.prepare import prepare, sampled
from cloudreg.space import Grid


def prepared(values, observed=None, **options):
    values = np.asarray(values, dtype=np.float32)
    observed = (values != 0).astype(np.float32) if observed is None else observed.astype(np.float32)
    grid = Grid.from_spacing(values.shape, (VOXEL_UM,) * 3)
    return prepare(values, observed, grid, name="target", **{"missing_data": True, **options})


def camera(image):
    """What a camera with an offset makes of it: no zeros."""
    return 100 + 1000 * image + np.random.default_rng(0).uniform(0, 10, image.shape)


def test_background_is_0_and_bright_tissue_1():
    image = prepared(camera(brain()))
    tissue = brain() > 0.3
    assert abs(np.median(image.values[brain() == 0])) < 0.02
    assert np.quantile(image.values[tissue], 0.95) == pytest.approx(1, abs=0.05)


def test_scale_and_offset_of_the_camera_do_not_matter():
    first, second = prepared(camera(brain())), prepared(3 * camera(brain()) + 500)
    np.testing.assert_allclose(first.values, second.values, atol=1e-4)


def test_of_a_large_image_some_voxels_tell_the_greys_of_all():
    small = camera(brain())
    large = np.kron(small, np.ones((5, 5, 5)))
    assert large.size > 2**21
    expected = np.kron(prepared(small).values, np.ones((5, 5, 5)))
    np.testing.assert_allclose(prepared(large).values, expected, atol=0.02)


def test_a_large_image_of_which_next_to_nothing_was_observed_is_normalised_by_that():
    values = np.zeros((150, 150, 150))
    values[75, 75, :3] = (100, 900, 1000)
    np.testing.assert_array_equal(thinned(values), 0)
    assert prepared(values).values[75, 75, 1] > 0.5


@pytest.mark.parametrize("side", [3, 5, 9])
@pytest.mark.parametrize("times", [3, 20, 60])
@pytest.mark.parametrize("at", [(20, 16, 20), (0, 0, 0)], ids=["in the tissue", "in the air"])
def test_a_saturated_blob_does_not_set_the_scale(side, times, at):
    values = camera(brain())
    blob = tuple(slice(start, start + side) for start in at)
    spoilt = values.copy()
    spoilt[blob] = 1000 * times
    assert side**3 < 0.015 * values.size
    expected, found = prepared(values).values, prepared(spoilt).values
    assert found.max() < 2
    expected[blob] = found[blob] = 0
    np.testing.assert_allclose(found, expected, atol=0.03)


def test_noise_has_no_outliers_that_are_a_brain():
    values = 100 + np.random.default_rng(0).standard_normal((40, 40, 40))
    values[:6, :6, :6] += 1000
    # A brain as small as a tenth of its field each way is doubtful, but nothing else is there.
    assert 103 < otsu_threshold(values) < 1097


@pytest.mark.parametrize("times", [5, 60])
def test_what_a_mask_leaves_out_has_no_part_in_the_scale(times):
    values = camera(brain())
    mask = np.ones(values.shape, dtype=np.float32)
    mask[:3] = 0
    spoilt = values.copy()
    spoilt[:3] = 1000 * times
    np.testing.assert_allclose(prepared(spoilt, mask=mask).values, prepared(values, mask=mask).values, atol=1e-5)


@pytest.mark.parametrize("factor", [1, 2, 4, 40])
def test_a_coarse_image_is_sampled_to_its_faces(factor):
    coarse = np.ones((40 // factor,) * 3, dtype=np.float32)
    step = np.diag([1 / factor] * 3 + [1])
    # From voxel to voxel of a grid that begins at the same face, but for a little rounding.
    step[:3, 3] = 0.5 / factor - 0.5 - 1e-9
    np.testing.assert_array_equal(sampled(coarse, step, (40, 40, 40)), 1)
    shifted = step.copy()
    shifted[0, 3] += 10 / factor
    half = sampled(coarse, shifted, (40, 40, 40))
    assert (half[:30] == 1).all() and (half[30:] == 0).all()


def test_zeros_that_are_not_background_are_lost_data():
    values = camera(brain())
    values[10:14, 5:9] = 0
    weight = prepared(values).weight
    assert weight[10:14, 5:9].max() == 0 and weight.sum() == weight.size - 4 * 4 * weight.shape[2]


def test_zeros_are_kept_where_the_background_is_black_but_empty_planes_inside_are_lost():
    values = brain().copy()
    values[22:24] = 0
    weight = prepared(values).weight
    assert weight[22:24].max() == 0
    assert weight[:22].min() == 1 and weight[24:].min() == 1


def test_missing_data_can_be_switched_off():
    values = camera(brain())
    values[10:14] = 0
    assert prepared(values, missing_data=False).weight.min() == 1


def test_partly_observed_blocks_count_what_was_observed():
    values, observed = camera(brain()), np.ones(brain().shape)
    observed[:, :, 20] = 0.5
    halved = values.copy()
    halved[:, :, 20] *= 0.5  # the mean over the block, its zeros included
    whole = prepared(values)
    np.testing.assert_allclose(prepared(halved, observed).values[:, :, 20], whole.values[:, :, 20], atol=0.02)


def test_a_mask_is_a_weight():
    mask = np.ones(brain().shape, dtype=np.float32)
    mask[:5] = 0
    assert prepared(camera(brain()), mask=mask).weight[:5].max() == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((5, 6, 7), 3.0), "same value 3 everywhere"),
        (np.where(np.arange(210).reshape(5, 6, 7) == 8, np.nan, 1.0), "NaN"),
        (np.where(np.arange(210).reshape(5, 6, 7) == 8, np.inf, 1.0), "NaN or infinite"),
    ],
)
def test_what_can_not_be_registered_is_refused_in_one_line(values, message):
    with pytest.raises(InputError, match=message) as caught:
        prepared(values)
    assert "\n" not in str(caught.value)


def test_an_empty_mask_is_refused():
    with pytest.raises(InputError, match="check the mask"):
        prepared(camera(brain()), mask=np.zeros(brain().shape, dtype=np.float32))


def test_a_few_bright_layers_leave_the_rest_its_contrast():
    image = np.zeros((30, 30, 30), np.float32)
    image[5:25, 5:25, 5:25] = np.linspace(0.1, 0.3, 20)
    image[14, 5:25, 5:25] = image[15, 5:25, 5:10] = 0.7
    values = prepared(camera(image)).values
    tissue = values[5:25, 5:25, 5:25]
    assert np.median(tissue) == pytest.approx(0.65, abs=0.1)
    assert tissue[0, 0, -1] - tissue[0, 0, 0] > 0.2
    assert np.median(tissue[9]) == pytest.approx(1, abs=0.05)
    assert tissue[0].max() < 0.9
    assert abs(np.median(values[:4])) < 0.05
