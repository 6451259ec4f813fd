"""Transforms in the files of other programs, read back by these programs and by the letter of each format."""

import json
import re

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from scipy.ndimage import binary_erosion, map_coordinates

from cloudreg.atlas import Region, Regions, save_atlas
from cloudreg.errors import InputError
from cloudreg.execution import Engine
from cloudreg.io import open_volume, write_volume
from cloudreg.space import Grid
from cloudreg.transforms import DisplacementField, Frame, Transform, apply_image, export_transform
from cloudreg.transforms.brainglobe import array_letters, downsampled_grid, export_brainglobe
from cloudreg.transforms.frames import over_both

ATLAS = Frame(Grid.from_spacing((24, 20, 22), (50.0, 50.0, 50.0), (0.0, 100.0, -200.0)), "ipl")
TARGET = Frame(Grid.from_spacing((30, 26, 24), (40.0, 45.0, 50.0), (30.0, -20.0, 10.0)), "asr")


def turn(angle):
    c, s = np.cos(angle), np.sin(angle)
    matrix = np.eye(4)
    matrix[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) * [1.05, 0.95, 1.1]
    return matrix


@pytest.fixture(scope="module")
def transform():
    """A smooth map between volumes whose axes name other sides, its inverse found at the nodes."""
    nodes = Grid.from_spacing((17, 17, 17), (75.0, 75.0, 75.0), (-50.0, 50.0, -250.0))

    def wave(points):
        z, y, x = np.moveaxis(points / 1600 * 2 * np.pi, -1, 0)
        return 30 * np.stack([np.sin(y), np.cos(z + x), np.sin(x - y)], axis=-1)

    at = nodes.index_to_um(np.moveaxis(np.indices(nodes.shape), 0, -1))
    back = np.zeros_like(at)
    for _ in range(50):
        back = -wave(at + back)
    affine = turn(0.2)
    affine[:3, 3] = TARGET.grid.index_to_um((14.5, 12.5, 11.5)) - affine[:3, :3] @ ATLAS.grid.index_to_um(
        (11.5, 9.5, 10.5)
    )
    fields = [DisplacementField(nodes, np.moveaxis(u, -1, 0)) for u in (wave(at), back)]
    return Transform(affine, *fields)


def inside(frame, n=300, seed=0):
    """Return points of a volume, its outermost voxels left out."""
    shape = np.asarray(frame.grid.shape)
    return frame.grid.index_to_um(np.random.default_rng(seed).uniform(1, shape - 2, (n, 3)))


def in_lps(frame, points):
    """Micrometres to LPS millimetres by the letters alone: the word of the format, not our function."""
    result = np.zeros((len(points), 3))
    for axis, letter in enumerate(frame.orientation):
        # An axis that starts at a side leads away from it.
        place, sign = {"r": (0, 1), "l": (0, -1), "a": (1, 1), "p": (1, -1), "i": (2, 1), "s": (2, -1)}[letter]
        result[:, place] = sign * points[:, axis] / 1000
    return result


def through(itk, points):
    return np.array([itk.TransformPoint(p) for p in points.tolist()])


@pytest.fixture(scope="module")
def itk_folder(transform, tmp_path_factory):
    folder = tmp_path_factory.mktemp("itk") / "out"
    export_transform(transform, ATLAS, TARGET, folder, "itk")
    return folder


@pytest.fixture(scope="module")
def nifti_folder(transform, tmp_path_factory):
    folder = tmp_path_factory.mktemp("nifti") / "out"
    export_transform(transform, ATLAS, TARGET, folder, "nifti")
    return folder


def test_itk_maps_points_of_each_side_to_the_other_as_we_do(transform, itk_folder):
    points = inside(ATLAS)
    there = through(sitk.ReadTransform(itk_folder / "target_images_to_atlas.h5"), in_lps(ATLAS, points))
    np.testing.assert_allclose(there, in_lps(TARGET, transform.atlas_to_target(points)[0]), atol=2e-6)
    points = inside(TARGET)
    back = through(sitk.ReadTransform(itk_folder / "atlas_images_to_target.h5"), in_lps(TARGET, points))
    np.testing.assert_allclose(back, in_lps(ATLAS, transform.target_to_atlas(points)[0]), atol=2e-6)


def test_the_affine_files_of_itk_are_the_affine_alone(transform, itk_folder):
    points = inside(ATLAS)
    there = through(sitk.ReadTransform(itk_folder / "affine_target_images_to_atlas.tfm"), in_lps(ATLAS, points))
    expected = points @ transform.affine[:3, :3].T + transform.affine[:3, 3]
    np.testing.assert_allclose(there, in_lps(TARGET, expected), atol=1e-9)
    back = through(sitk.ReadTransform(itk_folder / "affine_atlas_images_to_target.tfm"), there)
    np.testing.assert_allclose(back, in_lps(ATLAS, points), atol=1e-9)


@pytest.fixture(scope="module")
def resampled(transform, tmp_path_factory):
    """Return the files of a smooth atlas image and of what we make of it on the target's grid."""
    folder = tmp_path_factory.mktemp("images")
    z, y, x = np.indices(ATLAS.grid.shape)
    image = (1000 + 200 * np.sin(z / 4) + 150 * np.cos(y / 3) + 100 * np.sin(x / 5 + 1)).astype(np.float32)
    write_volume(str(folder / "atlas.nii.gz"), image, ATLAS.grid, orientation=ATLAS.orientation)
    with Engine(workers=1) as engine:
        apply_image(
            transform,
            open_volume(str(folder / "atlas.nii.gz")),
            TARGET.grid,
            str(folder / "ours.nii.gz"),
            to="target",
            labels=False,
            engine=engine,
            orientation=TARGET.orientation,
        )
    return folder / "atlas.nii.gz", folder / "ours.nii.gz"


def same_inside(theirs, ours):
    """Compare where neither fades into the background."""
    inner = binary_erosion((theirs > 0) & (ours > 0), iterations=2)
    assert inner.mean() > 0.3
    np.testing.assert_allclose(theirs[inner], ours[inner], atol=0.01)


def test_an_image_that_itk_resamples_is_the_image_that_we_resample(itk_folder, resampled):
    atlas, ours = (sitk.ReadImage(path) for path in resampled)
    itk = sitk.ReadTransform(itk_folder / "atlas_images_to_target.h5")
    theirs = sitk.Resample(atlas, ours, itk, sitk.sitkLinear, 0.0)
    same_inside(sitk.GetArrayFromImage(theirs), sitk.GetArrayFromImage(ours))


def warped(path, points):
    """Move LPS points by a warp, as ANTs reads it: place by the header, vectors in LPS."""
    image = nibabel.load(path)
    assert image.header.get_intent()[0] == "vector"
    assert image.shape[3:] == (1, 3)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    index = (points - lps[:3, 3]) @ np.linalg.inv(lps[:3, :3]).T
    data = np.asarray(image.dataobj)
    return points + np.stack([map_coordinates(data[..., 0, c], index.T, order=1) for c in range(3)], axis=-1)


def commands(folder):
    """Return the files of each antsApplyTransforms that the README recommends, by what it makes."""
    lines = [line for line in (folder / "README.txt").read_text().splitlines() if "antsApplyTransforms" in line]
    assert len(lines) == 2
    return {line.split(":")[0].removeprefix("warp_")[:5]: re.findall(r"-t (\S+)", line) for line in lines}


def test_warps_and_affines_in_the_order_of_the_readme_are_the_map(transform, nifti_folder):
    orders = commands(nifti_folder)
    for side, other, files, map_points in (
        (ATLAS, TARGET, orders["targe"], transform.atlas_to_target),
        (TARGET, ATLAS, orders["atlas"], transform.target_to_atlas),
    ):
        points = inside(side)
        end = in_lps(side, points)
        # ANTs does the first -t to the points first, as its own SyN's "-t 1Warp.nii.gz -t 0GenericAffine.mat" shows.
        for name in files:
            path = nifti_folder / name
            end = warped(path, end) if name.endswith(".nii.gz") else through(sitk.ReadTransform(path), end)
        np.testing.assert_allclose(end, in_lps(other, map_points(points)[0]), atol=2e-5)


def test_ants_itself_agrees(transform, nifti_folder):
    ants = pytest.importorskip("ants", reason="pip install antspyx")
    import pandas

    orders = commands(nifti_folder)
    for side, other, names, map_points in (
        (ATLAS, TARGET, orders["targe"], transform.atlas_to_target),
        (TARGET, ATLAS, orders["atlas"], transform.target_to_atlas),
    ):
        points, files = inside(side, 50), [str(nifti_folder / name) for name in names]
        table = pandas.DataFrame(in_lps(side, points), columns=["x", "y", "z"])
        there = ants.apply_transforms_to_points(3, table, files, whichtoinvert=[False, False])[["x", "y", "z"]]
        np.testing.assert_allclose(there.to_numpy(), in_lps(other, map_points(points)[0]), atol=2e-5)


@pytest.mark.parametrize("form", ["itk", "nifti"])
def test_ants_resamples_images_as_we_do(form, transform, itk_folder, nifti_folder, resampled):
    ants = pytest.importorskip("ants", reason="pip install antspyx")
    files = ["atlas_images_to_target.h5"] if form == "itk" else commands(nifti_folder)["atlas"]
    files = [str((itk_folder if form == "itk" else nifti_folder) / name) for name in files]
    atlas, ours = (ants.image_read(str(path)) for path in resampled)
    theirs = ants.apply_transforms(ours, atlas, files, whichtoinvert=[False] * len(files)).numpy()
    same_inside(theirs, ours.numpy())


def test_programs_that_stop_where_nodes_end_find_nodes_over_both_volumes(transform):
    whole = over_both(transform, ATLAS, TARGET)
    for frame, there, field in (
        (ATLAS, lambda p: p, whole.to_target),
        (TARGET, lambda p: p @ transform.inverse_affine[:3, :3].T + transform.inverse_affine[:3, 3], whole.to_atlas),
    ):
        index = field.grid.um_to_index(there(frame.corners_um()))
        assert (index >= 0).all() and (index <= np.asarray(field.grid.shape) - 1).all()
    points = np.concatenate([inside(ATLAS), ATLAS.corners_um()])
    np.testing.assert_allclose(whole.atlas_to_target(points)[0], transform.atlas_to_target(points)[0], atol=1e-6)


def test_a_scene_of_ome_zarr_says_the_map_in_so_many_words(transform, tmp_path):
    """Read the scene with zarr and do what its JSON says, knowing nothing of how it was written."""
    import zarr

    export_transform(transform, ATLAS, TARGET, tmp_path / "scene", "rfc5")
    scene = zarr.open_group(tmp_path / "scene", mode="r").attrs["ome"]["scene"]
    systems = {s["name"]: s["axes"] for s in scene["coordinateSystems"]}
    assert [a["orientation"]["value"] for a in systems["atlas"]] == [
        "inferior-to-superior",
        "posterior-to-anterior",
        "left-to-right",
    ]
    assert all(a["unit"] == "micrometer" for axes in systems.values() for a in axes)
    (bijection,) = scene["coordinateTransformations"]
    assert (bijection["input"]["name"], bijection["output"]["name"]) == ("atlas", "target")

    def done(step, points):
        if step["type"] == "sequence":
            for part in step["transformations"]:
                points = done(part, points)
            return points
        if step["type"] == "affine":
            matrix = np.array(step["affine"])
            return points @ matrix[:, :3].T + matrix[:, 3]
        assert step["type"] == "displacements" and step["interpolation"] == "linear"
        group = zarr.open_group(tmp_path / "scene" / step["path"], mode="r")
        (level,) = group.attrs["ome"]["multiscales"][0]["datasets"]
        (place,) = level["coordinateTransformations"]
        scale, translation = place["transformations"]
        index = (points - translation["translation"][1:]) / scale["scale"][1:]
        vectors = group[level["path"]][:]
        return points + np.stack([map_coordinates(v, index.T, order=1) for v in vectors], axis=-1)

    points = inside(ATLAS)
    there = done(bijection["forward"], points)
    np.testing.assert_allclose(there, transform.atlas_to_target(points)[0], atol=1e-2)
    points = inside(TARGET)
    back = done(bijection["inverse"], points)
    np.testing.assert_allclose(back, transform.target_to_atlas(points)[0], atol=1e-2)


def test_the_readme_names_every_file_and_both_frames(itk_folder, nifti_folder):
    for folder in (itk_folder, nifti_folder):
        text = (folder / "README.txt").read_text()
        names = {file.name for file in folder.iterdir()} - {"README.txt"}
        assert len(names) == 4
        assert all(f"\n{name}: " in text for name in names)
        for line in (line for line in text.splitlines() if "to micrometres" in line):
            assert np.shape(json.loads(line.split(": ")[1])) == (4, 4)
        assert "start at ipl" in text and "start at asr" in text


def test_a_folder_that_holds_something_is_left_alone(transform, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        export_transform(transform, ATLAS, TARGET, tmp_path, "itk")
    assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]


def test_nodes_that_a_format_cannot_place_are_refused_and_nothing_is_left(tmp_path):
    sheared = np.diag([50.0, 50.0, 50.0, 1.0])
    sheared[0, 1] = 20
    grid = Grid((5, 5, 5), sheared)
    for form in ("itk", "nifti", "rfc5"):
        with pytest.raises(InputError, match="compose"):
            export_transform(Transform.from_affine(np.eye(4), grid), ATLAS, TARGET, tmp_path / form, form)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    folder = tmp_path_factory.mktemp("atlas")
    z, y, x = np.indices(ATLAS.grid.shape)
    labels = np.where((z > 3) & (z < 20) & (y > 3) & (y < 16), 1 + (z > 11) + 2 * (x > 10), 0).astype(np.uint32)
    template = (labels * 900 + 100).astype(np.uint16)
    return save_atlas(
        folder / "toy_50um_v1.2",
        name="toy",
        template=template,
        labels=labels,
        grid=ATLAS.grid,
        orientation="ipl",
        regions=Regions([Region(i, f"r{i}", f"region {i}") for i in (1, 2, 3, 4)]),
    )


@pytest.fixture(scope="module")
def brainglobe(transform, atlas, tmp_path_factory):
    folder = tmp_path_factory.mktemp("brainglobe")
    z, y, x = np.indices(TARGET.grid.shape)
    write_volume(
        str(folder / "target.nii.gz"), (z * 100 + y * 10 + x).astype(np.uint16), TARGET.grid, orientation="asr"
    )
    target = open_volume(str(folder / "target.nii.gz"), orientation="asr")
    with Engine(workers=1) as engine:
        export_brainglobe(transform, atlas, target, folder / "out", engine=engine)
    return folder / "out", target


def test_a_brainreg_folder_says_where_each_voxel_lies_in_the_atlas(transform, atlas, brainglobe):
    folder, target = brainglobe
    fields = np.stack([tifffile.imread(folder / f"deformation_field_{axis}.tiff") for axis in range(3)])
    image = tifffile.imread(folder / "downsampled.tiff")
    grid = downsampled_grid(transform, atlas.template.grid, target.grid)
    assert fields.shape[1:] == image.shape == grid.shape
    np.testing.assert_allclose(grid.voxel_size_um, atlas.template.grid.voxel_size_um)
    index = np.random.default_rng(0).integers(0, grid.shape, (200, 3))
    where = transform.target_to_atlas(grid.index_to_um(index))[0]
    expected = atlas.template.grid.um_to_index(where) * 0.05
    np.testing.assert_allclose(fields[:, *index.T].T, expected, atol=1e-5)


def test_the_regions_of_a_brainreg_folder_are_the_atlas_at_the_places_its_fields_name(atlas, brainglobe):
    folder, _ = brainglobe
    fields = np.stack([tifffile.imread(folder / f"deformation_field_{axis}.tiff") for axis in range(3)])
    registered = tifffile.imread(folder / "registered_atlas.tiff")
    index = np.rint(fields / 0.05).astype(int)
    shape = np.asarray(atlas.labels.grid.shape)[:, None, None, None]
    within = ((index >= 0) & (index < shape)).all(axis=0)
    looked_up = np.where(within, np.asarray(atlas.labels.read())[tuple(np.clip(index, 0, shape - 1))], 0)
    assert set(np.unique(registered)) == {0, 1, 2, 3, 4}
    # Rounding a place half way between voxels may differ.
    assert (looked_up == registered).mean() > 0.995
    hemispheres = tifffile.imread(folder / "registered_hemispheres.tiff")
    assert set(np.unique(hemispheres)) <= {0, 1, 2}
    # The atlas starts at its left: low x is left.
    assert (hemispheres[within & (index[2] < 9)] == 1).all()
    assert (hemispheres[within & (index[2] > 12)] == 2).all()


def test_boundaries_lie_between_regions_and_nowhere_else(brainglobe):
    folder, _ = brainglobe
    labels, edges = tifffile.imread(folder / "registered_atlas.tiff"), tifffile.imread(folder / "boundaries.tiff")
    for index in np.argwhere(labels > 0)[::37]:
        around = [tuple(np.clip(index + step, 0, np.asarray(labels.shape) - 1)) for step in (*np.eye(3, dtype=int),)]
        around += [tuple(np.clip(index - step, 0, None)) for step in np.eye(3, dtype=int)]
        assert edges[tuple(index)] == any(labels[n] != labels[tuple(index)] for n in around)
    assert not edges[labels == 0].any()


def test_brainreg_json_has_what_the_plugins_open_it_by(atlas, brainglobe):
    folder, _ = brainglobe
    about = json.loads((folder / "brainreg.json").read_text())
    assert about["atlas"] == "toy_50um"
    assert about["voxel_sizes"] == ["40", "45", "50"]
    assert len(about["orientation"]) == 3


def test_the_letters_say_how_the_target_lies_as_the_transform_sees_it():
    grid = Grid.from_spacing((4, 5, 6), (10.0, 10.0, 10.0))
    atlas = type("Toy", (), {"template": type("V", (), {"grid": grid}), "orientation": "asr"})
    matrix = np.zeros((4, 4))
    # Target z runs along atlas y, target y against atlas z, target x along atlas x.
    matrix[0, 1], matrix[1, 0], matrix[2, 2], matrix[3, 3] = 1, -1, 1, 1
    assert array_letters(Transform.from_affine(matrix, grid), atlas, grid) == "spr"
    turned = downsampled_grid(Transform.from_affine(matrix, grid), grid, grid)
    assert turned.shape == (5, 4, 6)


def test_brainglobe_reads_the_fields_as_they_are_meant(transform, atlas, brainglobe):
    reader = pytest.importorskip("brainglobe_utils.brainreg.transform", reason="pip install brainglobe-utils")
    folder, target = brainglobe
    grid = downsampled_grid(transform, atlas.template.grid, target.grid)
    index = np.random.default_rng(1).integers(3, np.asarray(grid.shape) - 3, (30, 3))
    there, outside = reader.transform_points_from_downsampled_to_atlas_space(
        index,
        type("Atlas", (), {"resolution": (50.0, 50.0, 50.0)}),
        deformation_field_paths=[folder / f"deformation_field_{axis}.tiff" for axis in range(3)],
    )
    assert not outside
    where = transform.target_to_atlas(grid.index_to_um(index))[0]
    np.testing.assert_allclose(np.asarray(there), atlas.template.grid.um_to_index(where), atol=0.501)
