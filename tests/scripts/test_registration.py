"""Registration as in 2021: the affine of Neuroglancer, a whole registration, and landmarks."""

import json
import shutil
import urllib.parse

import numpy as np
import pytest
import tifffile

from brains import SHAPE, VOXEL_UM, brain, displacement_field, warped
from cloudreg.errors import InputError
from cloudreg.io import open_volume, write_volume
from cloudreg.registration import open_registration
from cloudreg.space import Grid

ATLAS_GRID = Grid.from_spacing(SHAPE, (VOXEL_UM,) * 3)
TARGET_GRID = Grid.from_spacing((46, 38, 42), (VOXEL_UM,) * 3, (-200.0, -200.0, -200.0))


@pytest.fixture
def registration(legacy):
    return legacy("registration")


@pytest.fixture(scope="module")
def brick(tmp_path_factory):
    """A volume of 60 x 40 x 20 um (x y z)."""
    path = f"{tmp_path_factory.mktemp('brick')}/brick"
    write_volume(f"precomputed://{path}", np.ones((5, 20, 20), np.uint8), Grid.from_spacing((5, 20, 20), (4, 2, 3)))
    return path


def corners():
    return np.array([[x, y, z, 1] for x in (0, 60) for y in (0, 40) for z in (0, 20)], dtype=float).T


class TestAffine:
    """A voxel of the source goes where its letters, rotation, scale and translation say."""

    def matrix(self, registration, brick, translation=(0, 0, 0), rotation=(0, 0, 0), to="RAS", scale=1.0, **more):
        return registration.get_affine_matrix(translation, rotation, "RAS", to, scale, brick, **more)

    def test_nothing_asked_for_changes_nothing(self, registration, brick):
        np.testing.assert_allclose(self.matrix(registration, brick), np.eye(4), atol=1e-12)

    @pytest.mark.parametrize("to", ["RAS", "LPS", "PIR", "ASR", "IRP"])
    def test_reoriented_axes_show_the_same_anatomy(self, registration, brick, to):
        affine = self.matrix(registration, brick, to=to)
        place = dict(zip("RAS", np.eye(3), strict=True)) | dict(zip("LPI", -np.eye(3), strict=True))
        for column, letter in enumerate("RAS"):
            # Going one step to the right, front or top is one step that way in the target's axes, too.
            step = [place[axis] @ place[letter] for axis in to]
            np.testing.assert_allclose(affine[:3, column], step, atol=1e-12)
        # It fills the same corner of space as the reoriented volume does.
        moved = affine @ corners()
        np.testing.assert_allclose(moved[:3].min(axis=1), 0, atol=1e-9)
        assert sorted(moved[:3].max(axis=1).round(6)) == [20, 40, 60]

    def test_rotations_are_about_x_then_y_then_z(self, registration, brick):
        affine = self.matrix(registration, brick, rotation=(90, 90, 0))
        # About x, y goes to z; about y, z goes to x.
        np.testing.assert_allclose(affine[:3, 1], (1, 0, 0), atol=1e-12)
        affine = self.matrix(registration, brick, rotation=(0, 0, 30))
        np.testing.assert_allclose(affine[:3, 0], (np.cos(np.pi / 6), 0.5, 0), atol=1e-12)

    @pytest.mark.parametrize("rotation", [(0, 0, 0), (10, -20, 30)])
    def test_the_middle_stays_or_goes_to_the_origin(self, registration, brick, rotation):
        middle = np.array([30, 20, 10, 1.0])
        np.testing.assert_allclose(self.matrix(registration, brick, rotation=rotation) @ middle, middle)
        centered = self.matrix(registration, brick, rotation=rotation, center=True)
        np.testing.assert_allclose(centered @ middle, (0, 0, 0, 1), atol=1e-9)

    def test_translations_are_micrometres_and_scaled(self, registration, brick):
        moved = self.matrix(registration, brick, translation=(5, -6, 7), center=True) @ [30, 20, 10, 1]
        np.testing.assert_allclose(moved[:3], (5, -6, 7))
        scaled = self.matrix(registration, brick, translation=(5, -6, 7), scale=[2.0], center=True)
        np.testing.assert_allclose(scaled @ [30, 20, 10, 1], (10, -12, 14, 1))
        np.testing.assert_allclose(scaled[:3, :3], 2 * np.eye(3))

    def test_a_mirror_is_warned_of(self, registration, brick):
        with pytest.warns(UserWarning, match="left and right are swapped"):
            affine = self.matrix(registration, brick, to="LAS")
        assert np.linalg.det(affine[:3, :3]) == pytest.approx(-1)

    def test_what_is_wrong_is_said(self, registration, brick):
        with pytest.raises(InputError, match=r"three numbers|one number or three"):
            self.matrix(registration, brick, rotation=(1, 2))
        with pytest.raises(InputError, match="scales above 0"):
            self.matrix(registration, brick, scale=0.0)
        with pytest.raises(InputError, match="an orientation is three letters"):
            self.matrix(registration, brick, to="RAX")
        with pytest.raises(InputError, match="expected a precomputed volume"):
            self.matrix(registration, "nowhere")


def labels_of(template):
    z, y, x = np.indices(template.shape)
    halves = 1 + (z > 22) + 2 * (y > 18) + 4 * (x > 20)
    return np.where(template > 0.3, halves, 0).astype(np.uint32) * np.uint32(400_000_001)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """An atlas whose axes x y z go to P, I, R, and a warped brain whose axes go to L, P, S; the true atlas points."""
    folder = tmp_path_factory.mktemp("volumes")
    write_volume(f"precomputed://{folder}/atlas", (1000 * brain()).astype(np.uint16), ATLAS_GRID)
    write_volume(f"precomputed://{folder}/regions", labels_of(brain()), ATLAS_GRID, kind="labels")
    seen, truth = warped(brain(), TARGET_GRID, np.eye(3), (260.0, 130.0, -250.0), displacement_field(4, 200.0))
    shown = np.clip(100 + 900 * seen + np.random.default_rng(0).normal(0, 12, seen.shape), 1, None)
    # Slow illumination along the first axis, which N4 takes off.
    shown *= np.linspace(0.6, 1.4, len(shown))[:, None, None]
    # Array axes R, I, P (z y x of PIR) to S, P, L.
    turned = np.ascontiguousarray(shown[::-1, ::-1].transpose(1, 2, 0))
    truth = truth[::-1, ::-1].transpose(1, 2, 0, 3)
    grid = Grid.from_spacing(turned.shape, (VOXEL_UM,) * 3)
    write_volume(f"precomputed://{folder}/brain", turned.astype(np.uint16), grid)
    return folder, turned, truth


def run(registration, folder, out, **changes):
    values = {
        "input_s3_path": f"{folder}/brain",
        "atlas_s3_path": f"{folder}/atlas",
        "parcellation_s3_path": f"{folder}/regions",
        "atlas_orientation": "PIR",
        "output_s3_path": f"{out}/regions_in_brain",
        "log_s3_path": f"{out}/log",
        "orientation": "LPS",
        "fixed_scale": 1.0,
        "translation": [0, 0, 0],
        "rotation": [0, 0, 0],
        "missing_data_correction": True,
        "grid_correction": False,
        "bias_correction": True,
        "regularization": 5000.0,
        "num_iterations": 20,
        "registration_resolution": 200,
    }
    registration.register(**values | changes)


@pytest.fixture(scope="module")
def registered(legacy, volumes, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    changes = {"output_local_path": str(out / "kept")}
    run(legacy("registration"), volumes[0], out, output_s3_path=None, log_s3_path=None, **changes)
    # The same call goes on from what is kept, and carries it where it is wanted.
    before = (out / "kept" / "registration_of_brain" / "affine.txt").stat().st_mtime_ns
    run(legacy("registration"), volumes[0], out, **changes)
    assert (out / "kept" / "registration_of_brain" / "affine.txt").stat().st_mtime_ns == before
    return out


def test_regions_come_to_lie_where_they_are(volumes, registered):
    _, brain_there, truth = volumes
    found = open_volume(f"precomputed://{registered}/regions_in_brain")
    assert found.kind == "labels" and found.dtype == np.uint32 and found.grid.shape == brain_there.shape
    index = np.clip(np.rint(truth / VOXEL_UM).astype(int), 0, np.array(SHAPE) - 1)
    expected = labels_of(brain())[tuple(index.reshape(-1, 3).T)].reshape(brain_there.shape)
    agree = (found.read() == expected)[expected > 0]
    # 0.89: the octants meet at planes that the image does not show.
    assert agree.mean() > 0.87
    assert set(np.unique(found.read())) <= set(np.unique(labels_of(brain())))


def test_everything_is_kept_in_the_log(registered):
    log = registered / "log"
    names = {p.name for p in log.iterdir()}
    assert {"manifest.json", "affine.txt", "regions.csv", "report.html"} <= names
    settings = json.loads((log / "manifest.json").read_text())["settings"]["registration"]
    assert settings["resolution_um"] == 200 and sum(settings["iterations"]) <= 20


def test_results_are_not_written_over(registration, volumes, registered, tmp_path):
    with pytest.raises(InputError, match=r"expected nothing at .*regions_in_brain, got a finished volume"):
        run(registration, volumes[0], registered)
    with pytest.raises(InputError, match=r"expected no registration at .*log, got another one"):
        run(registration, volumes[0], registered, output_s3_path=None, num_iterations=19)
    kept = tmp_path / "home"
    shutil.copytree(registered / "log", kept / "registration_of_brain")
    with pytest.raises(InputError, match="holds another registration"):
        run(registration, volumes[0], tmp_path / "new", num_iterations=19, output_local_path=str(kept))


def test_a_given_rotation_makes_up_for_wrong_letters(registration, volumes, tmp_path):
    # Left for right and back for front, and half a turn about z.
    changes = {"bias_correction": False, "grid_correction": True, "output_s3_path": None}
    run(registration, volumes[0], tmp_path, orientation="RAS", rotation=[0, 0, 180], **changes)
    opened = open_registration(tmp_path / "log")
    truth = volumes[2][::6, ::6, ::6].reshape(-1, 3)
    index = np.argwhere(np.ones(volumes[1].shape, bool)).reshape(*volumes[1].shape, 3)[::6, ::6, ::6].reshape(-1, 3)
    found, _ = opened.transform.target_to_atlas(opened.target_grid.index_to_um(index))
    inside = brain()[tuple(np.clip(np.rint(truth / VOXEL_UM).astype(int), 0, np.array(SHAPE) - 1).T)] > 0.3
    assert np.median(np.linalg.norm(found - truth, axis=1)[inside]) < 80


@pytest.fixture
def brainglobe(tmp_path, monkeypatch):
    """BrainGlobe's folder on this machine, empty; and no internet."""
    home = tmp_path / "brainglobe"
    home.mkdir()
    monkeypatch.setattr("brainglobe_atlasapi.config.get_brainglobe_dir", lambda: home)

    def refuse(*args, **kwargs):
        raise ConnectionError("no internet")

    monkeypatch.setattr("brainglobe_atlasapi.BrainGlobeAtlas", refuse)
    return home


def test_without_an_atlas_it_is_the_allen_one_of_brainglobe(registration, volumes, brainglobe, tmp_path):
    # The phantom in the axes in which BrainGlobe keeps it, which start at front, top and right.
    folder = brainglobe / "allen_mouse_25um_v1.2"
    folder.mkdir()
    about = {"name": "allen_mouse", "resolution": [VOXEL_UM] * 3, "orientation": "asr"}
    (folder / "metadata.json").write_text(json.dumps(about))

    def as_kept(array):
        # From R, I, P (z y x of PIR).
        return array.transpose(2, 1, 0)[:, :, ::-1]

    tifffile.imwrite(folder / "reference.tiff", as_kept(1000 * brain()).astype(np.uint16))
    tifffile.imwrite(folder / "annotation.tiff", as_kept(labels_of(brain())))
    rows = [{"id": int(i), "acronym": f"R{i}", "name": f"region {i}", "structure_id_path": [int(i)]}
            for i in np.unique(labels_of(brain()))[1:]]  # fmt: skip
    (folder / "structures.json").write_text(json.dumps(rows))
    words = {"atlas_s3_path": None, "parcellation_s3_path": None, "bias_correction": False}
    # A start that is given counts from the axes of PIR, too.
    run(registration, volumes[0], tmp_path, translation=[1, 0, 0], **words)
    found = open_volume(f"precomputed://{tmp_path}/regions_in_brain").read()
    index = np.clip(np.rint(volumes[2] / VOXEL_UM).astype(int), 0, np.array(SHAPE) - 1)
    expected = labels_of(brain())[tuple(index.reshape(-1, 3).T)].reshape(volumes[1].shape)
    assert (found == expected)[expected > 0].mean() > 0.9
    assert "region " in (tmp_path / "log" / "regions.csv").read_text()


def test_without_an_atlas_and_the_internet_it_says_what_to_do(legacy, volumes, brainglobe, capsys, monkeypatch):
    from cloudreg.execution import progress

    monkeypatch.setattr(progress, "_console", None)
    words = ["-input_s3_path", f"{volumes[0]}/brain", "-log_s3_path", "None", "-orientation", "LPS"]
    code = legacy("registration").main([*words, "--output_local_path", str(brainglobe / "out")])
    assert code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: the atlas allen_mouse_25um is not in") and "connect to the internet" in line


def test_a_given_atlas_needs_no_brainglobe(registration, monkeypatch):
    monkeypatch.setattr("cloudreg.atlas.load.brainglobe_folder", lambda name: pytest.fail("asked for an atlas"))
    with pytest.raises(InputError, match=r"no_template"):
        registration._atlas("no_template", "no_labels", "PIR")


@pytest.mark.parametrize("change", [{"atlas_s3_path": None}, {"parcellation_s3_path": None}])
def test_half_an_atlas_is_refused(registration, volumes, tmp_path, change):
    with pytest.raises(InputError, match="or neither for the Allen atlas of BrainGlobe, got one"):
        run(registration, volumes[0], tmp_path, **change)


def test_mirrors_are_refused(registration, volumes, tmp_path):
    with pytest.raises(InputError, match="mirror images"):
        run(registration, volumes[0], tmp_path, orientation="RPS")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"regularization": 0.0}, "regularization above 0"), ({"fixed_scale": [1, 2]}, "one number or three")],
)
def test_bad_numbers_are_said_before_anything_is_done(registration, volumes, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        run(registration, volumes[0], tmp_path, **change)
    assert not any(tmp_path.iterdir())


class TestAccuracy:
    """Distances of landmarks whose places are known."""

    @pytest.fixture
    def links(self, volumes):
        folder, there, truth = volumes
        inside = np.argwhere((there > 500) & (truth > 800).all(axis=-1))[::900][:12]
        on_atlas = truth[tuple(inside.T)] / VOXEL_UM

        def link(volume, points, voxel_m=2e-4):
            annotations = [
                {"type": "point", "point": [*((p[::-1] + 0.5).tolist())], "description": f"landmark {i}", "id": str(i)}
                for i, p in enumerate(points)
            ]
            dimensions = {axis: [voxel_m, "m"] for axis in "xyz"}
            layers = [
                {"type": "image", "name": "v", "source": {"url": f"precomputed://{volume}"}},
                {"type": "annotation", "name": "points", "annotations": annotations},
            ]
            state = {"dimensions": dimensions, "layers": layers}
            return "https://ara.viz.neurodata.io/#!" + urllib.parse.quote(json.dumps(state))

        return link(f"{folder}/brain", inside), link(f"{folder}/atlas", on_atlas)

    def test_a_registration_folder_brings_them_together(self, legacy, links, registered, capsys):
        accuracy = legacy("registration_accuracy").compute_regisration_accuracy
        before = accuracy(*links, "", "", [50.0] * 3)
        after = accuracy(*links, str(registered / "log"), "", [50.0] * 3)
        assert len(after) == len(before) >= 8
        assert np.median(after) < 80 < 300 < np.median(before)
        assert "landmark 0: " in capsys.readouterr().out

    def test_files_of_2021_are_understood(self, legacy, links, tmp_path, volumes):
        from scipy.io import savemat

        accuracy = legacy("registration_accuracy").compute_regisration_accuracy
        before = accuracy(*links, "", "", [50.0] * 3)
        affine = np.eye(4)
        affine[:3, :3] = [[0, 0, -1], [1, 0, 0], [0, -1, 0]]
        savemat(tmp_path / "A.mat", {"A": affine})
        np.testing.assert_allclose(accuracy(*links, str(tmp_path / "A.mat"), "", [50.0] * 3), before)
        # A constant flow along the atlas's x by 300 um, in 5 steps, y x z t in the file.
        shape = (8, 9, 7, 5)
        flow = {"vtx": np.full(shape, 300.0), "vty": np.zeros(shape), "vtz": np.zeros(shape)}
        savemat(tmp_path / "v.mat", flow)
        # The same by a translation of the target: x of the atlas is y of the target.
        moved = affine.copy()
        moved[1, 3] = 300.0
        savemat(tmp_path / "B.mat", {"A": moved})
        by_flow = accuracy(*links, str(tmp_path / "A.mat"), str(tmp_path / "v.mat"), [1000.0] * 3)
        by_affine = accuracy(*links, str(tmp_path / "B.mat"), "", [50.0] * 3)
        np.testing.assert_allclose(by_flow, by_affine)

    def test_states_without_points_are_said(self, legacy, links, tmp_path, volumes):
        accuracy = legacy("registration_accuracy").compute_regisration_accuracy
        (tmp_path / "state.json").write_text(json.dumps({"dimensions": {a: [1, "m"] for a in "xyz"}, "layers": []}))
        with pytest.raises(InputError, match="expected a volume and points"):
            accuracy(str(tmp_path / "state.json"), links[1], "", "", [50.0] * 3)
        with pytest.raises(InputError, match="expected one matrix of 4 x 4"):
            np.savetxt(tmp_path / "a.txt", np.eye(3))
            accuracy(*links, str(tmp_path / "a.txt"), "", [50.0] * 3)
