"""Where a registration starts: the files of ITK, ANTs, Slicer and ITK-SNAP, and the ways to give the wrong one."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.io import savemat

from cloudreg.errors import InputError
from cloudreg.space import Grid
from cloudreg.transforms import (
    Frame,
    affine_between_middles,
    load_initial_affine,
    read_itk_affine,
    save_affine,
    turned,
)

ATLAS = Frame(Grid.from_spacing((40, 50, 60), (50.0, 50.0, 50.0)), "ipl")
TARGET = Frame(Grid.from_spacing((60, 40, 50), (50.0, 50.0, 50.0), (100.0, 0.0, -50.0)), "asr")


@pytest.fixture
def affine():
    """Atlas to target, micrometres: centre to centre, turned so that like sides meet, and a little sheared."""
    matrix = np.eye(4)
    # Atlas z, y, x start at i, p, l; target's at a, s, r.
    matrix[:3, :3] = np.array([[0, -1, 0], [-1, 0, 0], [0, 0, -1]]) @ (
        np.array([[1.1, 0.05, 0], [-0.04, 1, 0.02], [0, 0, 1.1]])
    )
    middle = [np.asarray(f.grid.index_to_um((np.asarray(f.grid.shape) - 1) / 2)) for f in (ATLAS, TARGET)]
    matrix[:3, 3] = middle[1] - matrix[:3, :3] @ middle[0]
    return matrix


def itk_of(affine):
    """The same map between LPS millimetres, put together by hand: x, y, z from z, y, x and the letters."""
    atlas, target = np.zeros((4, 4)), np.zeros((4, 4))
    # ipl: x = -(third), y = -(second), z = +(first); asr: x = +(third), y = +(first), z = -(second).
    atlas[0, 2], atlas[1, 1], atlas[2, 0], atlas[3, 3] = -0.001, -0.001, 0.001, 1
    target[0, 2], target[1, 0], target[2, 1], target[3, 3] = 0.001, 0.001, -0.001, 1
    return target @ affine @ np.linalg.inv(atlas)


def as_itk(matrix, kind=sitk.AffineTransform):
    transform = kind(3)
    transform.SetMatrix(matrix[:3, :3].ravel().tolist())
    transform.SetTranslation(matrix[:3, 3].tolist())
    return transform


@pytest.mark.parametrize("suffix", [".tfm", ".txt", ".h5", ".mat"])
def test_a_file_of_itk_is_the_affine_that_it_says(affine, suffix, tmp_path):
    path = tmp_path / f"start{suffix}"
    sitk.WriteTransform(as_itk(itk_of(affine)), str(path))
    np.testing.assert_allclose(load_initial_affine(path, ATLAS, TARGET), affine, atol=1e-3)


def test_a_mat_of_ants_with_its_centre_is_read(affine, tmp_path):
    """ANTs' 0GenericAffine.mat: matrix and offset parameters about a fixed centre, in a MATLAB 4 file."""
    matrix, centre = itk_of(affine), np.array([1.5, -0.7, 2.0])
    translation = matrix[:3, 3] - centre + matrix[:3, :3] @ centre
    parameters = np.concatenate([matrix[:3, :3].ravel(), translation])[:, np.newaxis]
    contents = {"AffineTransform_double_3_3": parameters, "fixed": centre[:, np.newaxis]}
    savemat(tmp_path / "0GenericAffine.mat", contents, format="4")
    np.testing.assert_allclose(load_initial_affine(tmp_path / "0GenericAffine.mat", ATLAS, TARGET), affine, atol=1e-3)


def test_a_file_from_the_target_is_turned_round(affine, tmp_path):
    sitk.WriteTransform(as_itk(np.linalg.inv(itk_of(affine))), str(tmp_path / "back.tfm"))
    read = load_initial_affine(tmp_path / "back.tfm", ATLAS, TARGET, from_target=True)
    np.testing.assert_allclose(read, affine, atol=1e-3)
    save_affine(np.linalg.inv(affine), tmp_path / "back.txt")
    read = load_initial_affine(tmp_path / "back.txt", ATLAS, TARGET, from_target=True)
    np.testing.assert_allclose(read, affine, atol=1e-6)


def test_our_own_text_is_micrometres(affine, tmp_path):
    save_affine(affine, tmp_path / "affine.txt")
    np.testing.assert_array_equal(load_initial_affine(tmp_path / "affine.txt", ATLAS, TARGET), affine)


def test_a_chain_of_linear_transforms_is_one(affine, tmp_path):
    rigid = sitk.Euler3DTransform((1.0, 2.0, 3.0), 0.1, -0.2, 0.05, (0.3, 0.1, -0.2))
    scale = sitk.ScaleTransform(3, (1.1, 0.9, 1.05))
    chain = sitk.CompositeTransform([rigid, scale])
    sitk.WriteTransform(chain, str(tmp_path / "chain.h5"))
    matrix = read_itk_affine(tmp_path / "chain.h5")
    for point in np.random.default_rng(0).uniform(-5, 5, (10, 3)):
        np.testing.assert_allclose(matrix[:3, :3] @ point + matrix[:3, 3], chain.TransformPoint(point.tolist()))


def test_the_wrong_way_round_is_noticed_where_it_leaves_nothing_in_common(affine, tmp_path):
    affine[:3, 3] += 4e4
    far = Frame(Grid.from_spacing((60, 40, 50), (50.0,) * 3, (40100.0, 40000.0, 39950.0)), "asr")
    sitk.WriteTransform(as_itk(np.linalg.inv(itk_of(affine))), str(tmp_path / "back.tfm"))
    with pytest.raises(InputError, match="made the other way round"):
        load_initial_affine(tmp_path / "back.tfm", ATLAS, far)
    sitk.WriteTransform(sitk.TranslationTransform(3, (900.0, 0, 0)), str(tmp_path / "away.tfm"))
    with pytest.raises(InputError, match="same headers here"):
        load_initial_affine(tmp_path / "away.tfm", ATLAS, TARGET)


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda p: None, "found none"),
        (lambda p: p.write_text("#Insight Transform File V1.0\nTransform: nonsense\n"), "expected an ITK transform"),
        (lambda p: p.write_bytes(b"\x00\x01\x02"), "expected an ITK transform"),
        (lambda p: sitk.WriteTransform(sitk.Euler2DTransform(), str(p)), "three dimensions"),
        (lambda p: sitk.WriteTransform(sitk.BSplineTransform(3), str(p)), "linear"),
        (lambda p: sitk.WriteTransform(sitk.AffineTransform(3), str(p)) or flatten(p), "can be undone"),
    ],
    ids=["missing", "garbled", "binary", "two dimensions", "not linear", "singular"],
)
def test_what_is_no_affine_is_said(write, says, tmp_path):
    write(tmp_path / "start.tfm")
    with pytest.raises(InputError, match=says):
        read_itk_affine(tmp_path / "start.tfm")


def flatten(path):
    """Write zeros where the matrix was."""
    lines = path.read_text().splitlines()
    path.write_text("\n".join("Parameters: " + "0 " * 12 if x.startswith("Parameters") else x for x in lines) + "\n")


class TestAngles:
    """A rotation in degrees, a translation in micrometres and scales, all in the target's axes z, y, x."""

    @pytest.mark.parametrize(
        ("degrees", "source", "goes_to"),
        [
            # About x, y goes to z; about y, z to x; about z, x to y (vectors are z, y, x).
            ((0, 0, 90), (0, 1, 0), (1, 0, 0)),
            ((0, 90, 0), (1, 0, 0), (0, 0, 1)),
            ((90, 0, 0), (0, 0, 1), (0, 1, 0)),
            # x first: y to z, which y's turn then takes to x.
            ((0, 90, 90), (0, 1, 0), (0, 0, 1)),
            # z last: z to x by y's turn, then x to y.
            ((90, 90, 0), (1, 0, 0), (0, 1, 0)),
        ],
    )
    def test_turns_are_about_x_then_y_then_z(self, degrees, source, goes_to):
        np.testing.assert_allclose(turned(np.eye(3), degrees, (1.0,)) @ source, goes_to, atol=1e-12)

    def test_scales_are_along_the_axes_of_the_destination(self):
        axes = np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1.0]])
        matrix = turned(axes, (0, 0, 0), (2.0, 3.0, 4.0))
        np.testing.assert_allclose(matrix, np.array([[0, 2, 0], [3, 0, 0], [0, 0, -4.0]]))

    def test_nothing_but_letters_puts_middle_on_middle(self):
        affine = affine_between_middles(ATLAS, TARGET)
        atlas, target = (sum(frame.grid.bounds_um()) / 2 for frame in (ATLAS, TARGET))
        np.testing.assert_allclose(affine[:3, :3] @ atlas + affine[:3, 3], target)
        # Atlas z, y, x start at i, p, l; target's at a, s, r.
        np.testing.assert_allclose(affine[:3, :3], [[0, -1, 0], [-1, 0, 0], [0, 0, -1]])

    def test_a_shift_is_along_the_target_and_scaled(self):
        start = affine_between_middles(ATLAS, TARGET, scale=(1.0, 2.0, 1.0))
        shifted = affine_between_middles(ATLAS, TARGET, scale=(1.0, 2.0, 1.0), translation_um=(10, 20, 30))
        np.testing.assert_allclose(shifted[:3, 3] - start[:3, 3], (10, 40, 30))
        np.testing.assert_array_equal(shifted[:3, :3], start[:3, :3])

    def test_letters_must_be_known_and_no_mirrors(self):
        with pytest.raises(InputError, match="give --orientation too"):
            affine_between_middles(ATLAS, Frame(TARGET.grid, None))
        with pytest.raises(InputError, match="mirror images"):
            affine_between_middles(ATLAS, Frame(TARGET.grid, "asl"))
