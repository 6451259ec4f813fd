"""Templates in the greys of their targets."""

import numpy as np
import pytest

from brains import (
    SHAPE,
    VOXEL_UM,
    atlas_grid,
    brain,
    displacement_field,
    error_um,
    image_of,
    prepared,
    regions,
    stain,
    warped,
)
from cloudreg.atlas import load_atlas
from cloudreg.errors import InputError
from cloudreg.io import open_volume, write_volume
from cloudreg.registration import recolour, register_volume
from cloudreg.registration.checkpoint import Checkpoint
from cloudreg.registration.fit import choose_scales, solve
from cloudreg.registration.recolour import colours, needs_colour, recoloured, tells_little, told
from cloudreg.registration.solver import Explanation
from cloudreg.settings import RegistrationSettings
from cloudreg.space import Grid
from cloudreg.transforms import DisplacementField

# A contrast that varies over the brain as slowly as a mouse's does, in a brain of a few dozen voxels.
SETTINGS = {"resolution_um": 0.8 * VOXEL_UM, "levels": 2, "contrast_spacing_um": 8 * VOXEL_UM}
GRID = Grid.from_spacing(SHAPE, (VOXEL_UM,) * 3)
NOWHERE = DisplacementField.zero(GRID)


def voxels(count=20_000, seed=0):
    """Greys of a template, the regions that they are in, and a line for each region."""
    rng = np.random.default_rng(seed)
    region = rng.integers(0, 12, count)
    grey = rng.uniform(0, 1, count).astype(np.float32)
    line = rng.uniform(-0.5, 0.5, (12, 2))
    return grey, region, line, 0.2 + 0.5 * grey**2 + line[region, 0] + line[region, 1] * grey


def test_each_region_has_a_line_of_its_own_and_damage_changes_none():
    grey, region, _, seen = voxels()
    damaged = seen.copy()
    damaged[::10] = 3.0
    for image in (seen, damaged):
        found = colours(image.astype(np.float32), grey, region, np.ones_like(grey), regions=12, sure=1e-6)
        np.testing.assert_allclose(found.of(grey, region), seen, atol=0.03)


def test_voxels_without_weight_tell_nothing():
    grey, region, _, seen = voxels()
    weight = (region < 6).astype(np.float32)
    wrong = np.where(region < 6, seen, 100.0)
    found = colours(wrong.astype(np.float32), grey, region, weight, regions=12, sure=1e-6)
    np.testing.assert_allclose(found.of(grey, region)[region < 6], seen[region < 6], atol=0.01)


def test_the_smaller_a_region_the_more_it_has_the_brains_grey():
    grey = np.full(2000, 0.5, dtype=np.float32)
    region = np.repeat([1, 2], [1990, 10])
    noise = np.random.default_rng(0).normal(0, 0.02, 2000)
    seen = (np.where(region == 1, 0.4, 0.8) + noise).astype(np.float32)
    own = [
        float(colours(seen, grey, region, np.ones_like(grey), regions=3, sure=sure).of(grey[-1:], region[-1:])[0])
        for sure in (1e-3, 10.0, 1000.0)
    ]
    assert own[0] == pytest.approx(0.8, abs=0.03)
    assert own[1] == pytest.approx(0.6, abs=0.05)
    assert own[2] == pytest.approx(0.4, abs=0.02)


def explanation(atlas, predicted):
    return Explanation(atlas, predicted, np.ones_like(atlas), np.zeros_like(atlas))


def test_a_perfect_fit_tells_all_whatever_is_damaged_and_one_that_predicts_one_grey_nothing():
    target = brain()
    assert told(image_of(target), explanation(brain(), target)) == 1
    saturated = target.copy()
    saturated[10:18] = 1.6
    assert told(image_of(saturated), explanation(brain(), target)) == 1
    assert told(image_of(target), explanation(brain(), np.full_like(target, 0.6))) == pytest.approx(0, abs=1e-4)
    weight = np.ones_like(target)
    weight[:, :20] = 0
    wrong = np.where(weight > 0, target, 0).astype(np.float32)
    assert told(image_of(target, weight=weight), explanation(brain(), wrong)) == 1


def test_where_there_is_nothing_to_tell_nothing_is_missed():
    flat = np.full(SHAPE, 0.5, dtype=np.float32)
    assert told(image_of(flat), explanation(flat, brain())) == 1
    assert told(image_of(flat), explanation(np.zeros(SHAPE, dtype=np.float32), brain())) == 1


def test_only_templates_that_tell_some_but_not_most_get_other_greys():
    assert [needs_colour(share) for share in (-1.0, 0.1, 0.5, 0.7, 0.9, 1.0)] == [
        False,
        False,
        True,
        True,
        False,
        False,
    ]
    assert [tells_little(share) for share in (-1.0, 0.1, 0.5, 0.7, 0.9, 1.0)] == [True] * 4 + [False] * 2


def test_a_template_gets_the_greys_that_its_regions_have_in_the_target(monkeypatch):
    numbers = regions()
    target, truth = warped(stain(numbers), GRID, np.eye(3), (0, 0, 0), displacement_field(2))
    # The map from target to atlas that the target was made by, on the atlas's grid as the solver has it.
    moved = truth - GRID.index_to_um(np.indices(SHAPE).reshape(3, -1).T).reshape(truth.shape)
    field = DisplacementField(GRID, np.moveaxis(moved, 3, 0))
    arguments = image_of(target), image_of(brain()), numbers, np.eye(4), field, VOXEL_UM / 3
    new = recoloured(*arguments)
    deep = (numbers > 0) & (brain() > 0.4)
    assert np.corrcoef(new.values[deep], stain(numbers)[deep])[0, 1] > 0.95
    assert np.corrcoef(brain()[deep], stain(numbers)[deep])[0, 1] < 0.4
    assert abs(new.values[brain() == 0]).max() < 0.3 and new.values[0].max() == 0
    assert new.grid == GRID
    monkeypatch.setattr(recolour, "_SLAB_VOXELS", 3 * SHAPE[1] * SHAPE[2])
    np.testing.assert_array_equal(recoloured(*arguments).values, new.values)


def test_a_target_of_which_nothing_was_seen_changes_no_template():
    nothing = image_of(brain(), weight=np.zeros(SHAPE))
    template = image_of(brain())
    assert recoloured(nothing, template, regions(), np.eye(4), NOWHERE, VOXEL_UM) is template


def fitted(target, numbers, checkpoint=None, others=(), **settings):
    atlas = prepared(brain(), atlas_grid(), "template", missing_data=False)
    chosen = RegistrationSettings(**{**SETTINGS, **settings})
    scales = choose_scales(atlas, GRID, atlas_grid(), chosen)
    return solve(
        prepared(target, GRID),
        atlas,
        [("asr", np.eye(3))],
        chosen,
        scales=scales,
        more=[(prepared(other, GRID), atlas) for other in others],
        regions=None if numbers is None else lambda: numbers,
        checkpoint=checkpoint,
    )


@pytest.fixture(scope="module")
def stained():
    """A target of another stain, in which the template's grey says nothing of a region's."""
    target, truth = warped(stain(regions()), GRID, np.eye(3), (0, 0, 0), displacement_field(2))
    noise = np.random.default_rng(1).normal(0, 0.01, target.shape)
    return np.where(target > 0.05, target + noise, 0).astype(np.float32), truth


def test_another_stain_is_fitted_by_its_regions(stained):
    target, truth = stained
    with_regions, without = fitted(target, regions()), fitted(target, None)
    errors = [np.median(error_um(solution, GRID, truth)[0]) for solution in (with_regions, without)]
    assert with_regions.recoloured == (True,) and without.recoloured == (False,)
    assert with_regions.share == without.share
    weights = [solution.problem.prior_weight for solution in (with_regions, without)]
    assert weights[0] / weights[1] == pytest.approx(0.002 / 0.0005)
    # 30 and 93 um.
    assert errors[0] < 0.5 * errors[1]
    assert errors[0] < 0.25 * VOXEL_UM
    assert fitted(target, regions(), recolour=False).recoloured == (False,)


def test_each_channel_is_judged_by_itself(stained):
    target, truth = stained
    same, _ = warped(brain(), GRID, np.eye(3), (0, 0, 0), displacement_field(2))
    both = fitted(target, regions(), others=[same])
    assert both.recoloured == (True, False)
    assert np.median(error_um(both, GRID, truth)[0]) < 0.125 * VOXEL_UM


def test_labels_that_know_nothing_and_a_single_step_do_no_harm(stained):
    target, truth = stained
    plain = np.median(error_um(fitted(target, None), GRID, truth)[0])
    for numbers in (np.zeros_like(regions()), (regions() > 0).astype(np.int32)):
        assert np.median(error_um(fitted(target, numbers), GRID, truth)[0]) < 1.1 * plain
    hurried = fitted(target, regions(), iterations=(1, 1))
    assert hurried.recoloured == (True,)
    assert np.median(error_um(hurried, GRID, truth)[0]) < plain


def test_the_same_stain_keeps_its_greys_and_nobody_asks_for_regions():
    target, _ = warped(brain(), GRID, np.eye(3), (0, 0, 0), displacement_field(2))
    whole = fitted(target, None)
    assert whole.recoloured == (False,) and whole.share > 0.9
    atlas = prepared(brain(), atlas_grid(), "template", missing_data=False)
    chosen = RegistrationSettings(**SETTINGS)

    def never():
        raise InputError("regions were read")

    scales = choose_scales(atlas, GRID, atlas_grid(), chosen)
    again = solve(prepared(target, GRID), atlas, [("asr", np.eye(3))], chosen, scales=scales, regions=never)
    np.testing.assert_array_equal(again.fit.motion.velocity, whole.fit.motion.velocity)


def test_a_fit_that_was_stopped_goes_on_with_the_same_greys(stained, tmp_path):
    target, _ = stained
    kept = []

    class Keeping(Checkpoint):
        def save(self, progress):
            super().save(progress)
            kept.append(self.path.read_bytes())

    # The regions get their greys at the second level of three, and the third goes on with them.
    settings = {"iterations": (4, 6, 6), "levels": 3, "resolution_um": 0.4 * VOXEL_UM}
    whole = fitted(target, regions(), Keeping(tmp_path, "whole"), **settings)
    assert whole.recoloured == (True,) and len(kept) == 3
    for number, stopped in enumerate(kept):
        again = Checkpoint(tmp_path, f"stopped-{number}")
        again.path.write_bytes(stopped)
        solution = fitted(target, regions(), again, **settings)
        assert solution.recoloured == (True,)
        np.testing.assert_array_equal(solution.fit.motion.velocity, whole.fit.motion.velocity)
        np.testing.assert_array_equal(solution.fit.contrast.coefficients, whole.fit.contrast.coefficients)
    # With other regions only what was found before theirs were asked for still holds.
    others = np.where(regions() > 0, regions() % 7 + 1, 0)
    again.path.write_bytes(kept[-1])
    resumed, fresh = fitted(target, others, again, **settings), fitted(target, others, **settings)
    np.testing.assert_array_equal(resumed.fit.motion.velocity, fresh.fit.motion.velocity)


def registered(folder, target, letters, engine):
    """Register a phantom with labels from files; return the figures."""
    path = folder / f"target-{len(list(folder.iterdir()))}.ome.zarr"
    write_volume(str(path), target, GRID, orientation=letters)
    atlas = load_atlas(template=folder / "template.ome.zarr", labels=folder / "labels.ome.zarr")
    return register_volume(open_volume(str(path)), atlas, RegistrationSettings(**SETTINGS), engine=engine).figures


def test_wrong_letters_are_doubted_and_the_right_ones_named(tmp_path, engine):
    write_volume(str(tmp_path / "template.ome.zarr"), brain(), GRID, orientation="asr")
    write_volume(str(tmp_path / "labels.ome.zarr"), regions().astype(np.uint32), GRID, kind="labels", orientation="asr")
    target, _ = warped(brain(), GRID, np.eye(3), (0, 0, 0), displacement_field(2))
    assert registered(tmp_path, target, "asr", engine)["doubts"] == []
    turned = np.ascontiguousarray(target[::-1, ::-1])
    assert registered(tmp_path, turned, "pir", engine)["doubts"] == []
    doubts = registered(tmp_path, turned, "asr", engine)["doubts"]
    assert doubts[0] == "turned as pir it looks more like the atlas than as asr: check the letters"
