"""Opening atlases: names, folders, files, and what does not fit together."""

import json
import sys
import types

import numpy as np
import pytest
import tifffile

from cloudreg.atlas import Region, Regions, label_ids, load_atlas, save_atlas
from cloudreg.atlas import load as load_module
from cloudreg.errors import InputError
from cloudreg.io import write_volume
from cloudreg.space import Grid

SHAPE = (12, 9, 10)
GRID = Grid.from_spacing(SHAPE, (100.0, 120.0, 80.0))
TEMPLATE = np.random.default_rng(0).integers(1, 500, SHAPE).astype(np.uint16)
LABELS = np.where(np.indices(SHAPE)[2] < 5, 7, 614_454_277).astype(np.uint32)
FINE_LABELS = LABELS.repeat(4, 0).repeat(4, 1).repeat(4, 2)
REGIONS = Regions([Region(7, "A", "area"), Region(614_454_277, "B", "big id", 7)])


@pytest.fixture
def files(tmp_path):
    """Template and finer labels as NRRD files with the Allen Institute's misleading header, and an ontology."""
    write_nrrd(tmp_path / "template.nrrd", TEMPLATE, (100, 120, 80))
    write_nrrd(tmp_path / "labels.nrrd", FINE_LABELS, (25, 30, 20))
    REGIONS.write_csv(tmp_path / "names.csv")
    return {
        "template": tmp_path / "template.nrrd",
        "labels": tmp_path / "labels.nrrd",
        "ontology": tmp_path / "names.csv",
        "orientation": "asr",
        "labels_share": "corner",
    }


def write_nrrd(path, array, spacing):
    import nrrd

    header = {
        "space": "left-posterior-superior",
        "space directions": np.diag(np.asarray(spacing, float)),
        "space origin": [0, 0, 0],
    }
    nrrd.write(str(path), array, header)


def test_files_that_were_averaged_down_share_the_outer_corner(files):
    atlas = load_atlas(**files)
    assert atlas.template.grid == GRID
    np.testing.assert_allclose(atlas.labels.grid.corner_um(), GRID.corner_um())
    np.testing.assert_allclose(atlas.labels.grid.bounds_um(), GRID.bounds_um())
    assert atlas.resolution_um == pytest.approx((100, 120, 80))
    assert (atlas.name, atlas.orientation, atlas.regions[7].name) == ("template", "asr", "area")
    # The same physical point has the same label at both resolutions.
    points = GRID.index_to_um(np.argwhere(np.ones(SHAPE)))
    np.testing.assert_array_equal(atlas.labels_at(points), LABELS.ravel())


def test_headers_that_place_the_first_voxel_are_believed(files):
    atlas = load_atlas(**{**files, "labels_share": None})
    np.testing.assert_array_equal(atlas.labels.grid.origin_um, GRID.origin_um)


def test_files_without_a_header_cover_each_other(tmp_path, files):
    for name, array, grid in (("template", TEMPLATE, GRID), ("labels", FINE_LABELS, GRID.resampled((25, 30, 20)))):
        files[name] = tmp_path / f"{name}.tif"
        write_volume(str(files[name]), array, grid)
    atlas = load_atlas(**{**files, "labels_share": None})
    np.testing.assert_allclose(atlas.labels.grid.bounds_um(), GRID.bounds_um())


def test_labels_at_points_outside_are_background(files):
    atlas = load_atlas(**files)
    low, high = GRID.bounds_um()
    points = [low - 1, low + 1, high - 1, high + 1, [np.nan, 0, 0]]
    assert atlas.labels_at(points).tolist() == [0, 7, 614_454_277, 0, 0]


@pytest.mark.parametrize(
    ("letters", "low_side"), [("asr", "right"), ("asl", "left"), ("rsa", "right"), ("psl", "left"), ("sla", "left")]
)
def test_sides_follow_the_letters(files, letters, low_side):
    atlas = load_atlas(**{**files, "orientation": letters})
    axis = next(i for i, c in enumerate(letters) if c in "lr")
    low, high = GRID.bounds_um()
    points = np.tile((low + high) / 2, (3, 1))
    points[0, axis] -= 1
    points[1, axis] += 1
    high_side = {"left": "right", "right": "left"}[low_side]
    assert atlas.side(points).tolist() == [low_side, high_side, "left"]


def test_without_an_ontology_regions_are_called_by_their_id(files):
    atlas = load_atlas(**{**files, "ontology": None})
    assert [r.acronym for r in atlas.regions.values()] == ["7", "614454277"]
    assert label_ids(atlas.labels) == [7, 614_454_277]


def test_a_template_alone_is_an_atlas(files):
    atlas = load_atlas(template=files["template"], orientation="asr")
    assert atlas.labels is None and len(atlas.regions) == 0
    assert atlas.labels_at([[0, 0, 0]]).tolist() == [0]


def test_tiff_labels_without_voxel_size_cover_the_template(tmp_path):
    tifffile.imwrite(tmp_path / "t.tif", TEMPLATE)
    tifffile.imwrite(tmp_path / "l.tif", FINE_LABELS)
    atlas = load_atlas(
        template=tmp_path / "t.tif", labels=tmp_path / "l.tif", orientation="asr", voxel_size_um=(100, 120, 80)
    )
    np.testing.assert_allclose(atlas.labels.grid.voxel_size_um, (25, 30, 20))
    np.testing.assert_allclose(atlas.labels.grid.bounds_um(), atlas.template.grid.bounds_um())


@pytest.mark.parametrize("shape", [(6, 5, 5), (25, 18, 20), (6, 4, 5), (36, 27, 29)])
def test_labels_whose_shape_was_rounded_still_cover_the_template(tmp_path, shape):
    tifffile.imwrite(tmp_path / "t.tif", TEMPLATE)
    tifffile.imwrite(tmp_path / "l.tif", np.ones(shape, np.uint8))
    atlas = load_atlas(
        template=tmp_path / "t.tif", labels=tmp_path / "l.tif", orientation="asr", voxel_size_um=(100, 120, 80)
    )
    np.testing.assert_allclose(atlas.labels.grid.bounds_um(), GRID.bounds_um())


@pytest.mark.parametrize(
    ("suffix", "spacing"),
    [("tif", None), ("tif", (100, 120, 80)), ("ome.zarr", (100, 120, 80)), ("nrrd", (50, 60, 40))],
)
def test_labels_of_an_unknown_part_of_the_template_are_refused(tmp_path, suffix, spacing):
    write_volume(tmp_path / f"t.{'tif' if spacing is None else suffix}", TEMPLATE, GRID)
    part = LABELS[:1]
    if spacing is None:
        tifffile.imwrite(tmp_path / "l.tif", part)
    else:
        write_volume(tmp_path / f"l.{suffix}", part, Grid.from_spacing(part.shape, spacing))
    with pytest.raises(InputError, match=r"shape \(12, 9, 10\), got shape \(1, 9, 10\)"):
        load_atlas(template=tmp_path / f"t.{suffix}", labels=tmp_path / f"l.{suffix}", orientation="asr")


def test_labels_with_a_frame_of_their_own_stay_where_their_header_says(tmp_path):
    write_volume(
        str(tmp_path / "t.nii.gz"), TEMPLATE, Grid.from_spacing(SHAPE, (100,) * 3, (500, 0, -300)), orientation="ipl"
    )
    part = Grid.from_spacing((4, 5, 6), (100,) * 3, (700, 100, -200))
    write_volume(str(tmp_path / "l.nii.gz"), LABELS[2:6, 1:6, 1:7], part, kind="labels", orientation="ipl")
    atlas = load_atlas(template=tmp_path / "t.nii.gz", labels=tmp_path / "l.nii.gz")
    assert atlas.orientation == "ipl"
    np.testing.assert_allclose(atlas.labels.grid.bounds_um(), part.bounds_um(), atol=1e-2)


def test_a_saved_folder_is_an_atlas_by_name(tmp_path):
    grid = Grid.from_spacing(SHAPE, (100.0, 120.0, 80.0), (40.0, -500.0, 7.0))
    save_atlas(
        tmp_path / "mine",
        name="phantom",
        template=TEMPLATE,
        labels=LABELS,
        grid=grid,
        orientation="ASR",
        regions=REGIONS,
    )
    atlas = load_atlas(str(tmp_path / "mine"))
    assert (atlas.name, atlas.orientation) == ("phantom", "asr")
    assert atlas.template.grid == grid and atlas.labels.grid == grid
    np.testing.assert_array_equal(atlas.template.read(), TEMPLATE)
    np.testing.assert_array_equal(atlas.labels.read(), LABELS)
    assert list(atlas.regions.values()) == list(REGIONS.values())


@pytest.fixture
def brainglobe(tmp_path, monkeypatch):
    """An empty BrainGlobe folder, and a library that keeps to it and to nothing else."""
    home = tmp_path / "brainglobe"
    home.mkdir()
    monkeypatch.setattr("brainglobe_atlasapi.config.get_brainglobe_dir", lambda: home)

    def refuse(*args, **kwargs):
        raise ConnectionError("no internet\nat all")

    monkeypatch.setattr("brainglobe_atlasapi.BrainGlobeAtlas", refuse)
    return home


def install(home, version):
    folder = home / f"example_mouse_100um_v{version}"
    folder.mkdir()
    about = {"name": f"example {version}", "resolution": [100.0, 120.0, 80.0], "orientation": "asr"}
    (folder / "metadata.json").write_text(json.dumps(about))
    tifffile.imwrite(folder / "reference.tiff", TEMPLATE)
    tifffile.imwrite(folder / "annotation.tiff", LABELS)
    rows = [{"id": 7, "acronym": "A", "name": "area", "structure_id_path": [7]}]
    (folder / "structures.json").write_text(json.dumps(rows))
    return folder


def test_an_installed_brainglobe_atlas_is_opened_without_a_network_newest_first(brainglobe):
    install(brainglobe, "1.9")
    install(brainglobe, "1.10")
    atlas = load_atlas("example_mouse_100um")
    assert atlas.name == "example 1.10"
    assert atlas.template.grid == GRID and atlas.labels.grid == GRID
    assert atlas.regions[7].acronym == "A"


def test_a_brainglobe_folder_is_an_atlas_too(brainglobe):
    assert load_atlas(str(install(brainglobe, "1.0"))).orientation == "asr"


def test_an_atlas_that_is_not_there_is_downloaded(brainglobe, monkeypatch):
    def download(name, check_latest):
        assert (name, check_latest) == ("allen_mouse_100um", False)
        install(brainglobe, "1.2").rename(brainglobe / "allen_mouse_100um_v1.2")

    monkeypatch.setattr("brainglobe_atlasapi.BrainGlobeAtlas", download)
    assert load_atlas("allen_mouse_100um").template.grid == GRID


def test_a_download_that_fails_says_what_to_do(brainglobe):
    with pytest.raises(InputError, match="connect to the internet, or copy the folder allen_mouse_25um_v") as caught:
        load_atlas("allen_mouse_25um")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["alen_mouse_25um", "../allen_mouse_25um", "no such thing at all*"])
def test_an_unknown_name_brings_the_closest(brainglobe, name):
    with pytest.raises(InputError, match=r"closest names are .*allen_mouse_25um"):
        load_atlas(name)


def test_the_library_is_imported_for_names_only(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "brainglobe_atlasapi", types.ModuleType("brainglobe_atlasapi"))
    assert load_atlas(**files).labels is not None


def change(files, name, array, spacing=(100, 120, 80)):
    write_nrrd(files[name], array, spacing)
    return files


def test_labels_that_reach_out_of_the_template_are_refused(files):
    with pytest.raises(InputError, match="must lie inside the template") as caught:
        load_atlas(**change(files, "labels", LABELS, (160, 120, 80)))
    assert "\n" not in str(caught.value)
    # One template voxel of slack is allowed: 12 * 4 + 4 fine planes are 13 coarse ones.
    longer = np.pad(FINE_LABELS, ((0, 4), (0, 0), (0, 0)), mode="edge")
    load_atlas(**change(files, "labels", longer, (25, 30, 20)))
    with pytest.raises(InputError, match="must lie inside"):
        load_atlas(**change(files, "labels", np.pad(longer, ((0, 1), (0, 0), (0, 0))), (25, 30, 20)))


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("template", np.full(SHAPE, 7, np.uint16), "constant"),
        ("template", np.full(SHAPE, 7.5, np.float32), "constant"),
        ("template", np.where(np.indices(SHAPE)[0] == 5, np.nan, TEMPLATE).astype(np.float32), "NaN"),
        ("labels", LABELS.astype(np.float32) + 0.5 * (LABELS == 7), "whole numbers"),
        ("labels", LABELS.astype(np.int32) - 8, "whole numbers from 0"),
        ("labels", np.where(LABELS == 7, np.inf, LABELS).astype(np.float32), "whole numbers from 0"),
        ("labels", np.where(LABELS == 7, 2.0**70, LABELS).astype(np.float32), "whole numbers from 0"),
    ],
)
def test_volumes_that_are_no_template_or_labels_are_refused(files, name, array, message):
    with pytest.raises(InputError, match=message) as caught:
        load_atlas(**change(files, name, array))
    assert "\n" not in str(caught.value)


def test_whole_numbers_in_floats_are_labels(files):
    atlas = load_atlas(**{**change(files, "labels", LABELS.astype(np.float64)), "ontology": None})
    assert label_ids(atlas.labels) == [7, 614_454_277]
    assert atlas.labels_at([[0, 0, 0]]).tolist() == [7]


def test_a_late_nan_is_found(files, monkeypatch):
    monkeypatch.setattr("cloudreg.atlas.atlas._SLAB_VOXELS", 1)
    broken = TEMPLATE.astype(np.float32)
    broken[-1, -1, -1] = np.inf
    with pytest.raises(InputError, match="infinite"):
        load_atlas(**change(files, "template", broken))


def test_what_is_missing_is_named(files, tmp_path):
    with pytest.raises(InputError, match="either a name or a template"):
        load_atlas()
    with pytest.raises(InputError, match="either a name or a template"):
        load_atlas("allen_mouse_25um", template=files["template"])
    with pytest.raises(InputError, match=r"atlas\.json"):
        load_atlas(str(tmp_path))
    tifffile.imwrite(tmp_path / "t.tif", TEMPLATE)
    with pytest.raises(InputError, match="--atlas-orientation"):
        load_atlas(template=tmp_path / "t.tif", voxel_size_um=(100, 120, 80))
    with pytest.raises(InputError, match="orientation is three letters"):
        load_atlas(**{**files, "orientation": "asz"})


def test_a_damaged_folder_is_one_line(tmp_path):
    (tmp_path / load_module._DESCRIPTION).write_text('{"name": "x"}')
    with pytest.raises(InputError, match="does not describe an atlas"):
        load_atlas(str(tmp_path))


@pytest.mark.real
def test_the_allen_atlas(test_data):
    folder = test_data / "allen_ccfv3"
    atlas = load_atlas(
        template=folder / "average_template_100.nrrd",
        labels=folder / "annotation_25.nrrd",
        ontology=folder / "ara_ontology.json",
        orientation="asr",
    )
    assert atlas.template.grid.shape == (132, 80, 114)
    assert atlas.labels.grid.shape == (528, 320, 456)
    np.testing.assert_array_equal(atlas.labels.grid.origin_um, atlas.template.grid.origin_um)
    assert sum(i in atlas.regions for i in label_ids(atlas.labels)) > 600


@pytest.mark.real
def test_the_allen_files_share_the_centre_of_their_first_voxels(test_data):
    folder = test_data / "allen_ccfv3"
    agreement = {}
    for shared in ("corner", "centre"):
        coarse, fine = (
            load_atlas(
                template=folder / "average_template_100.nrrd",
                labels=folder / f"annotation_{um}.nrrd",
                ontology=folder / "ara_ontology.json",
                orientation="asr",
                labels_share=shared,
            )
            for um in (100, 50)
        )
        index = np.argwhere(coarse.labels.read() > 0)[::50]
        points = coarse.labels.grid.index_to_um(index)
        agreement[shared] = (fine.labels_at(points) == coarse.labels_at(points)).mean()
    assert agreement["centre"] == 1
    assert agreement["corner"] < 0.9
