"""Registration from files to folder."""

import csv
import json

import numpy as np
import pytest

from brains import SHAPE, VOXEL_UM, brain, displacement_field, head, warped
from cloudreg.atlas import load_atlas
from cloudreg.errors import InputError, RegistrationFailedError
from cloudreg.io import open_volume, write_volume
from cloudreg.registration import open_registration, register_volume, write_registration
from cloudreg.registration.judgement import doubts_about
from cloudreg.registration.prepare import labelled_part, prepare
from cloudreg.registration.trust import region_trust
from cloudreg.settings import RegistrationSettings
from cloudreg.space import Grid
from cloudreg.viewer.fitted import registration_sections

SETTINGS = RegistrationSettings(levels=2, resolution_um=VOXEL_UM, iterations=(6, 10))
ATLAS_GRID = Grid.from_spacing(SHAPE, (VOXEL_UM,) * 3)
TARGET_GRID = Grid.from_spacing((46, 38, 42), (VOXEL_UM,) * 3, (-250.0, -220.0, -190.0))


def labels_of(template):
    z, y, x = np.indices(template.shape)
    halves = 1 + (z > 22) + 2 * (y > 18) + 4 * (x > 20)
    return np.where(template > 0.3, halves, 0).astype(np.uint32) * np.uint32(400_000_001)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes")
    write_volume(str(folder / "template.ome.zarr"), brain(), ATLAS_GRID, orientation="asr")
    write_volume(str(folder / "labels.ome.zarr"), labels_of(brain()), ATLAS_GRID, kind="labels", orientation="asr")
    seen, truth = warped(brain(), TARGET_GRID, np.eye(3), (60.0, 30.0, -50.0), displacement_field(4, 250.0))
    noise = np.random.default_rng(0).normal(0, 12, seen.shape)
    target = np.clip(100 + 900 * seen + noise, 1, None).astype(np.uint16)
    write_volume(str(folder / "target.ome.zarr"), target, TARGET_GRID, orientation="asr")
    np.save(folder / "truth.npy", truth)
    return folder


def atlas(files):
    return load_atlas(template=files / "template.ome.zarr", labels=files / "labels.ome.zarr")


@pytest.fixture(scope="module")
def folder(files, tmp_path_factory):
    from cloudreg.execution import Engine

    out = tmp_path_factory.mktemp("out") / "registration"
    with Engine(workers=2, memory="1GB") as engine:
        target = open_volume(str(files / "target.ome.zarr"))
        registration = register_volume(target, atlas(files), SETTINGS, engine=engine)
        write_registration(registration, target, atlas(files), out, engine=engine, settings={"levels": 2})
    return out


def test_the_map_is_right_both_ways(files, folder):
    transform = open_registration(folder).transform
    truth = np.load(files / "truth.npy")
    index = np.argwhere(open_volume(str(files / "target.ome.zarr")).read() > 500)
    points, expected = TARGET_GRID.index_to_um(index), truth[tuple(index.T)]
    found, inside = transform.target_to_atlas(points)
    assert inside.all()
    assert np.median(np.linalg.norm(found - expected, axis=1)) < 0.2 * VOXEL_UM
    back, _ = transform.atlas_to_target(found)
    assert np.linalg.norm(back - points, axis=1).max() < 0.1 * VOXEL_UM


def test_labels_are_where_the_pushed_points_say(files, folder):
    opened = open_registration(folder)
    labels = open_volume(str(folder / "labels_in_target.ome.zarr"))
    assert labels.grid == TARGET_GRID
    values = labels.read()
    assert set(np.unique(values)) <= set(np.unique(labels_of(brain())))
    index = np.argwhere(values >= 0)[::7]
    points, _ = opened.transform.target_to_atlas(TARGET_GRID.index_to_um(index))
    assert (opened.open_atlas().labels_at(points) == values[tuple(index.T)]).mean() > 0.999


def test_volumes_lie_on_the_grids_that_they_are_named_after(folder):
    assert open_volume(str(folder / "template_in_target.ome.zarr")).grid == TARGET_GRID
    assert open_volume(str(folder / "target_in_atlas.ome.zarr")).grid == ATLAS_GRID


def test_the_deformed_template_looks_like_the_target(files, folder):
    target = open_volume(str(files / "target.ome.zarr")).read().astype(float)
    template = open_volume(str(folder / "template_in_target.ome.zarr")).read().astype(float)
    tissue = template > 0.3
    assert np.corrcoef(target[tissue], template[tissue])[0, 1] > 0.9


def test_the_folder_describes_itself(files, folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["target"]["path"] == str(files / "target.ome.zarr")
    assert manifest["figures"]["matched_fraction"] > 0.8
    assert manifest["figures"]["jacobian_min"] > 0
    with (folder / "energies.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(float(row["gained"]) >= 0 for row in rows)
    # Levels see other voxels, and affine steps other noise: only steps of one kind and level can be held together.
    finest = [
        float(row["total"]) for row in rows if (row["level_um"], row["step"]) == (rows[-1]["level_um"], "velocity")
    ]
    assert finest[-1] < finest[0]
    weights = open_volume(str(folder / "weights.ome.zarr"))
    assert weights.channels == 2
    match = weights.read(channel=0)
    assert match.min() >= 0 and match.max() <= 1


def test_a_finished_folder_is_not_overwritten(files, folder, engine):
    target = open_volume(str(files / "target.ome.zarr"))
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(InputError, match="already holds a registration"):
        write_registration(None, target, atlas(files), folder, engine=engine)
    assert (folder / "manifest.json").read_bytes() == before


def test_an_unfinished_folder_is_none(folder, tmp_path):
    with pytest.raises(InputError, match="run cloudreg register first"):
        open_registration(tmp_path)


def test_mirrored_letters_are_refused(files, engine):
    target = open_volume(str(files / "target.ome.zarr"), orientation="asl")
    with pytest.raises(InputError, match="mirror images"):
        register_volume(target, atlas(files), SETTINGS, engine=engine)


def test_noise_is_no_brain(files, tmp_path, engine):
    noise = np.random.default_rng(1).integers(1, 1000, (30, 30, 30)).astype(np.uint16)
    write_volume(
        str(tmp_path / "noise.ome.zarr"), noise, Grid.from_spacing((30, 30, 30), (300.0,) * 3), orientation="asr"
    )
    with pytest.raises((RegistrationFailedError, InputError)):
        register_volume(open_volume(str(tmp_path / "noise.ome.zarr")), atlas(files), SETTINGS, engine=engine)


@pytest.fixture
def half(files, tmp_path):
    values = open_volume(str(files / "target.ome.zarr")).read().copy()
    values[:, :, : values.shape[2] // 2] = 100
    write_volume(str(tmp_path / "half.ome.zarr"), values, TARGET_GRID, orientation="asr")
    return open_volume(str(tmp_path / "half.ome.zarr"))


def test_half_a_brain_is_not_squeezed_and_the_report_says_where_it_was_cut(files, half, engine, tmp_path):
    registration = register_volume(half, atlas(files), SETTINGS, engine=engine)
    figures = registration.figures
    assert any("cut at the low end of axis x" in doubt for doubt in figures["doubts"])
    assert figures["cuts"] == ["the low end of axis x"]
    assert max(figures["affine_scales"]) < 1.3 * min(figures["affine_scales"])
    write_registration(registration, half, atlas(files), tmp_path / "half", engine=engine)
    sections = registration_sections(tmp_path / "half", tmp_path / "none.csv")
    assert any("Beware: the brain was taken to be cut at the low end of axis x" in s.lead for s in sections)


def test_a_softened_map_is_right_both_ways_and_the_report_says_it(files, engine, tmp_path):
    seen, truth = warped(brain(), TARGET_GRID, np.eye(3), (60.0, 30.0, -50.0), displacement_field(3, 450.0, 3.5))
    shown = np.clip(100 + 900 * seen + np.random.default_rng(0).normal(0, 12, seen.shape), 1, None)
    write_volume(str(tmp_path / "folded.ome.zarr"), shown.astype(np.uint16), TARGET_GRID, orientation="asr")
    target = open_volume(str(tmp_path / "folded.ome.zarr"))
    stiff = {"regularization": (0.03, 0.03), "kernel_um": 600.0, "velocity_spacing_um": 350.0}
    registration = register_volume(target, atlas(files), SETTINGS.model_copy(update=stiff), engine=engine)
    assert registration.figures["prior_softened"] > 1
    index = np.argwhere(seen > 0.5)
    points = TARGET_GRID.index_to_um(index)
    found, _ = registration.transform.target_to_atlas(points)
    assert np.median(np.linalg.norm(found - truth[tuple(index.T)], axis=1)) < 0.5 * VOXEL_UM
    back, _ = registration.transform.atlas_to_target(found)
    assert np.linalg.norm(back - points, axis=1).max() < 0.5 * VOXEL_UM
    last = registration.energies[-1]
    finest = [e["iteration"] for e in registration.energies if all(e[k] == last[k] for k in ("level_um", "step"))]
    assert finest == list(range(len(finest))) and len(finest) > SETTINGS.iterations[-1]
    write_registration(registration, target, atlas(files), tmp_path / "folded", engine=engine)
    (lead,) = (s.lead for s in registration_sections(tmp_path / "folded", tmp_path / "none.csv") if s.anchor == "trust")
    assert "A softer map foretold more of the sample" in lead


def test_an_inverse_that_misses_is_doubted(folder):
    figures = dict(open_registration(folder).manifest["figures"])
    assert not any("inverse" in doubt for doubt in doubts_about(figures))
    figures["inverse_consistency_p99_um"] = 1.5 * figures["resolution_um"]
    assert any("the map and its inverse miss each other" in doubt for doubt in doubts_about(figures))


def test_what_lies_beyond_the_target_was_not_observed(files, engine, tmp_path):
    whole = open_volume(str(files / "target.ome.zarr"))
    cropped = Grid.from_spacing((46, 38, 21), (VOXEL_UM,) * 3, TARGET_GRID.index_to_um((0, 0, 21)).tolist())
    write_volume(str(tmp_path / "right.ome.zarr"), whole.read()[:, :, 21:], cropped, orientation="asr")
    start = np.eye(4)
    start[:3, 3] = (60.0, 30.0, -50.0)
    registration = register_volume(
        open_volume(str(tmp_path / "right.ome.zarr")), atlas(files), SETTINGS, engine=engine, initial_affine=start
    )
    assert registration.figures["observed_fraction"] == pytest.approx(0.5, abs=0.1)
    assert registration.figures["score"] < 0.65


@pytest.mark.parametrize("start", ["scale", "affine"])
def test_a_brain_that_is_known_to_be_scaled_is_no_failure(files, engine, tmp_path, start):
    large = Grid.from_spacing(TARGET_GRID.shape, (4 * VOXEL_UM,) * 3)
    values = open_volume(str(files / "target.ome.zarr")).read()
    write_volume(str(tmp_path / "large.ome.zarr"), values, large, orientation="asr")
    target = open_volume(str(tmp_path / "large.ome.zarr"))
    with pytest.raises(InputError, match=r"times as wide as the atlas's.*--scale"):
        register_volume(target, atlas(files), SETTINGS, engine=engine)
    settings = RegistrationSettings(levels=2, iterations=(6, 10))
    initial = None
    if start == "scale":
        settings = settings.model_copy(update={"scale": (4.0,)})
    else:
        initial = np.diag([4.0, 4.0, 4.0, 1.0])
    found = register_volume(target, atlas(files), settings, engine=engine, initial_affine=initial).figures
    np.testing.assert_allclose(found["affine_scales"], 4, rtol=0.15)
    np.testing.assert_allclose(found["affine_scales_beyond_given"], np.array(found["affine_scales"]) / 4)
    assert not any("scaled" in doubt for doubt in found["doubts"])


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (np.diag([1.0, 1.0, -1.0, 1.0]), "keeps left and right, got one that mirrors.*allow_mirror"),
        (np.diag([1.0, 0.0, 1.0, 1.0]), "4 x 4 and invertible"),
        (np.full((4, 4), np.nan), "4 x 4 and invertible"),
        (np.eye(3), "4 x 4 and invertible"),
    ],
)
def test_a_start_that_is_no_map_of_a_brain_is_refused(files, engine, start, message):
    target = open_volume(str(files / "target.ome.zarr"))
    with pytest.raises(InputError, match=message):
        register_volume(target, atlas(files), SETTINGS, engine=engine, initial_affine=start)


def test_two_masks_have_no_correlation_and_are_judged_by_what_matches(engine, tmp_path):
    shape = (brain() > 0.3).astype(np.uint8)
    for name in ("template", "target"):
        write_volume(str(tmp_path / f"{name}.ome.zarr"), shape, ATLAS_GRID, orientation="asr")
    shown = load_atlas(template=tmp_path / "template.ome.zarr")
    registration = register_volume(open_volume(str(tmp_path / "target.ome.zarr")), shown, SETTINGS, engine=engine)
    figures = registration.figures
    assert figures["correlation"] is None
    assert figures["matched_fraction"] > 0.9
    json.dumps(figures, allow_nan=False)


@pytest.mark.parametrize(("factor", "dtype", "inside"), [(1, "u1", 255), (4, "f4", 1.0)])
def test_a_mask_of_all_ones_changes_nothing_however_coarse(files, folder, engine, tmp_path, factor, dtype, inside):
    grid = TARGET_GRID.downsampled((factor,) * 3)
    write_volume(str(tmp_path / "mask.ome.zarr"), np.full(grid.shape, inside, dtype=dtype), grid)
    target, mask = open_volume(str(files / "target.ome.zarr")), open_volume(str(tmp_path / "mask.ome.zarr"))
    masked = register_volume(target, atlas(files), SETTINGS, engine=engine, mask=mask)
    np.testing.assert_array_equal(masked.transform.affine, open_registration(folder).transform.affine)


def test_a_mask_of_no_numbers_is_refused(files, engine, tmp_path):
    mask = np.ones(TARGET_GRID.shape, dtype=np.float32)
    mask[3, 4, 5] = np.nan
    write_volume(str(tmp_path / "mask.ome.zarr"), mask, TARGET_GRID)
    target, mask = open_volume(str(files / "target.ome.zarr")), open_volume(str(tmp_path / "mask.ome.zarr"))
    with pytest.raises(InputError, match="mask holds values that are no numbers"):
        register_volume(target, atlas(files), SETTINGS, engine=engine, mask=mask)


def test_half_a_brain_squeezed_into_a_whole_one_is_called_failed(files, half, engine):
    whole = SETTINGS.model_copy(update={"find_cuts": False})
    with pytest.raises(RegistrationFailedError, match="one way"):
        register_volume(half, atlas(files), whole, engine=engine)


def test_a_wrong_voxel_size_is_doubted_and_a_right_one_is_not(files, folder, engine, tmp_path):
    assert open_registration(folder).manifest["figures"]["doubts"] == []
    values = open_volume(str(files / "target.ome.zarr")).read()
    wrong = Grid.from_spacing(TARGET_GRID.shape, [1.25 * v for v in TARGET_GRID.voxel_size_um])
    write_volume(str(tmp_path / "wrong.ome.zarr"), values, wrong, orientation="asr")
    registered = register_volume(open_volume(str(tmp_path / "wrong.ome.zarr")), atlas(files), SETTINGS, engine=engine)
    assert any("voxel size" in doubt for doubt in registered.figures["doubts"])


def test_an_initial_affine_replaces_the_letters(files, engine):
    target = open_volume(str(files / "target.ome.zarr"), orientation="asr")
    start = np.eye(4)
    start[:3, 3] = [-100.0, 50.0, 0.0]
    found = register_volume(
        target, atlas(files), SETTINGS.model_copy(update={"deform": False}), engine=engine, initial_affine=start
    )
    assert found.figures["pose"] == "given"
    assert found.figures["displacement_max_um"] == 0
    assert np.abs(found.transform.affine[:3, :3] - np.eye(3)).max() < 0.05


def test_the_same_again_is_the_same_and_a_start_from_the_folder_finds_it_again(files, folder, engine):
    target, opened = open_volume(str(files / "target.ome.zarr")), open_registration(folder)
    again = register_volume(target, atlas(files), SETTINGS, engine=engine).transform
    points = TARGET_GRID.index_to_um(np.argwhere(target.read() > 500))
    known, _ = opened.transform.target_to_atlas(points)
    np.testing.assert_array_equal(again.target_to_atlas(points)[0], known)
    start = opened.transform.affine
    restarted = register_volume(target, atlas(files), SETTINGS, engine=engine, initial_affine=start).transform
    apart = np.linalg.norm(restarted.target_to_atlas(points)[0] - known, axis=1)
    assert np.median(apart) < 0.1 * VOXEL_UM


def registered_to_head(files, labels, engine, tmp_path):
    """Register the target to a head of which the brain has labels; return that, and the truth and what was found."""
    values, grid = head()
    margin = (values.shape[0] - SHAPE[0]) // 2
    write_volume(str(tmp_path / "head.ome.zarr"), values, grid, orientation="asr")
    write_volume(str(tmp_path / "labels.ome.zarr"), np.pad(labels, margin), grid, kind="labels", orientation="asr")
    shown = load_atlas(template=tmp_path / "head.ome.zarr", labels=tmp_path / "labels.ome.zarr")
    target = open_volume(str(files / "target.ome.zarr"))
    registration = register_volume(target, shown, SETTINGS, engine=engine)
    index = np.argwhere(target.read() > 500)
    found, _ = registration.transform.target_to_atlas(TARGET_GRID.index_to_um(index))
    return registration, np.load(files / "truth.npy")[tuple(index.T)], found


def test_a_template_that_shows_a_head_is_left_its_labelled_brain(files, engine, tmp_path):
    registration, truth, found = registered_to_head(files, labels_of(brain()), engine, tmp_path)
    assert np.median(np.linalg.norm(found - truth, axis=1)) < 0.3 * VOXEL_UM
    assert not any("voxel size" in doubt for doubt in registration.figures["doubts"])


def test_what_the_labels_of_a_head_leave_out_of_its_brain_is_told_by_the_target(files, engine, tmp_path):
    labels = labels_of(brain())
    # As labels of grey matter know nothing of the brain stem: a third of the brain, open below.
    labels[14:32, 14:, 13:27] = 0
    _, truth, found = registered_to_head(files, labels, engine, tmp_path)
    error = np.linalg.norm(found - truth, axis=1) / VOXEL_UM
    left_out = labels[tuple(np.rint(truth / VOXEL_UM).astype(int).clip(0, np.array(SHAPE) - 1).T)] == 0
    assert np.median(error) < 0.15
    assert np.median(error[left_out]) < 0.15


def test_labels_as_large_as_the_template_leave_it_as_it_is(files, engine):
    image = prepare(brain(), np.ones(SHAPE, np.float32), ATLAS_GRID, name="template", missing_data=False)
    whole = atlas(files).labels
    assert whole is not None and labelled_part(image, whole, engine) is None


def trust_of(folder):
    with (folder / "trust.csv").open() as file:
        return {(int(row["id"]), row["side"]): row for row in csv.DictReader(file)}


def test_every_region_of_a_good_fit_is_trusted(files, folder):
    rows = trust_of(folder)
    labels = labels_of(brain())
    assert {i for i, _ in rows} == set(np.unique(labels)) - {0}
    for region in np.unique(labels[labels > 0]):
        volumes = [float(rows[region, side]["volume_mm3"]) for side in ("left", "right") if (region, side) in rows]
        assert sum(volumes) == pytest.approx((labels == region).sum() * (VOXEL_UM / 1000) ** 3, rel=1e-4)
    assert all(row["doubt"] == "" for row in rows.values())
    assert all(float(row["observed"]) > 0.99 and float(row["matched"]) > 0.8 for row in rows.values())
    assert all(float(row["residual"]) < 0.1 and 0.8 < float(row["swelling"]) < 1.25 for row in rows.values())


def test_regions_beyond_a_cut_or_out_of_the_field_are_not_trusted(files, half, engine, tmp_path):
    registration = register_volume(half, atlas(files), SETTINGS, engine=engine)
    write_registration(registration, half, atlas(files), tmp_path / "half", engine=engine)
    rows = trust_of(tmp_path / "half")
    # Ids count x > 20 as 4 of 8: the lower half of x was cut away.
    away = {i for i, _ in rows if (int(i) // 400_000_001 - 1) & 4 == 0}
    for (region, _), row in rows.items():
        if region in away:
            assert "was seen" in row["doubt"] and float(row["observed"]) < 0.3
        else:
            assert row["doubt"] == "" and float(row["observed"]) > 0.8
    page = [part for s in registration_sections(tmp_path / "half", tmp_path / "none.csv") for part in s.parts]
    titles = [part.title for part in page]
    lost = sum(region in away for region, _ in rows)
    assert any(title.startswith(f"Regions not to be trusted: {lost} of {len(rows)}") for title in titles)


def test_a_region_that_was_bleached_does_not_match(files, engine, tmp_path):
    values = open_volume(str(files / "target.ome.zarr")).read().copy()
    points = TARGET_GRID.index_to_um(np.argwhere(np.ones(TARGET_GRID.shape, dtype=bool)))
    region = atlas(files).labels_at(np.load(files / "truth.npy").reshape(-1, 3)).reshape(TARGET_GRID.shape)
    bleached = 3 * 400_000_001
    assert len(points) == region.size
    values[region == bleached] = 104
    write_volume(str(tmp_path / "bleached.ome.zarr"), values, TARGET_GRID, orientation="asr")
    target = open_volume(str(tmp_path / "bleached.ome.zarr"))
    registration = register_volume(target, atlas(files), SETTINGS, engine=engine)
    rows = {(row.region.id, row.side): row for row in region_trust(registration, atlas(files))}
    for (region_id, _), row in rows.items():
        assert ("looks like the atlas" in row.doubt) == (region_id == bleached), (region_id, row)


def outlined(values):
    """Two channels: one shows no more than the outline of the brain, the other its texture."""
    return np.stack([np.where(values > 0.3, np.float32(0.65), values), values])


def median_error(registration, files):
    index = np.argwhere(open_volume(str(files / "target.ome.zarr")).read() > 500)
    found, _ = registration.transform.target_to_atlas(TARGET_GRID.index_to_um(index))
    return np.median(np.linalg.norm(found - np.load(files / "truth.npy")[tuple(index.T)], axis=1))


def test_channels_of_the_target_are_fitted_together(files, engine, tmp_path):
    seen = (open_volume(str(files / "target.ome.zarr")).read().astype(np.float32) - 100) / 900
    noise = np.random.default_rng(0).normal(0, 12, (2, *seen.shape))
    values = np.clip(100 + 900 * outlined(seen) + noise, 1, None).astype(np.uint16)
    write_volume(str(tmp_path / "two.ome.zarr"), values, TARGET_GRID, orientation="asr")
    two = open_volume(str(tmp_path / "two.ome.zarr"))
    one, both = (register_volume(two, atlas(files), SETTINGS, engine=engine, channel=c) for c in (0, (0, 1)))
    assert median_error(both, files) < 0.25 * VOXEL_UM
    assert median_error(both, files) < 0.5 * median_error(one, files)
    with pytest.raises(InputError, match="channel"):
        register_volume(two, atlas(files), SETTINGS, engine=engine, channel=(0, 2))


def test_channels_of_the_template_are_fitted_together(files, engine, tmp_path):
    target = open_volume(str(files / "target.ome.zarr"))
    write_volume(str(tmp_path / "one.ome.zarr"), outlined(brain())[0], ATLAS_GRID, orientation="asr")
    write_volume(str(tmp_path / "two.ome.zarr"), outlined(brain()), ATLAS_GRID, orientation="asr")
    one, both = (
        register_volume(target, load_atlas(template=tmp_path / f"{name}.ome.zarr"), SETTINGS, engine=engine)
        for name in ("one", "two")
    )
    assert median_error(both, files) < 0.3 * VOXEL_UM
    assert median_error(both, files) < 0.5 * median_error(one, files)
