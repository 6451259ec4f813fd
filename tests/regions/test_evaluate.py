"""Measures of a registration whose quality is known."""

import numpy as np
import pytest

from cloudreg.atlas import Atlas, Regions
from cloudreg.errors import InputError
from cloudreg.io import write_volume
from cloudreg.regions import evaluate
from cloudreg.space import Grid
from cloudreg.transforms import DisplacementField, Transform

SHAPE = (24, 24, 24)
GRID = Grid.from_spacing(SHAPE, (50.0, 50.0, 50.0))
FIELD = Grid.from_spacing((9, 9, 9), (200.0, 200.0, 200.0), (-100.0, -100.0, -100.0))
IDENTITY = Transform.from_affine(np.eye(4), FIELD)


def shifted(um):
    affine = np.eye(4)
    affine[2, 3] = um
    return Transform.from_affine(affine, FIELD)


@pytest.fixture(scope="module")
def labels():
    array = np.zeros(SHAPE, np.uint32)
    array[2:22, 2:22, 2:12] = 3_000_000_000
    array[2:22, 2:22, 12:22] = 2
    array[0, 0, :10] = 9
    return array


@pytest.fixture(scope="module")
def atlas(tmp_path_factory, labels):
    folder = tmp_path_factory.mktemp("atlas")
    template = write_volume(str(folder / "t.ome.zarr"), np.arange(24**3).reshape(SHAPE).astype("u2"), GRID)
    volume = write_volume(str(folder / "l.ome.zarr"), labels, GRID, kind="labels")
    return Atlas("example", template, volume, "asr", Regions.from_ids([2, 9, 3_000_000_000]))


def test_a_perfect_registration_is_perfect(atlas, engine):
    points = np.random.default_rng(0).uniform(0, 1000, (20, 3))
    got = evaluate(
        IDENTITY, atlas, engine=engine, points_target=points, points_atlas=points, labels_target=atlas.labels
    )
    assert got.figures["landmark_max_um"] == got.figures["inverse_consistency_max_um"] == 0
    assert got.figures["jacobian_min"] == got.figures["jacobian_max"] == 1
    assert got.figures["dice_mean"] == got.figures["dice_min"] == 1 and got.figures["dice_regions"] == 2
    assert got.dice == {2: 1, 9: 1, 3_000_000_000: 1}


def test_a_known_shift_is_measured(atlas, engine):
    points = np.random.default_rng(0).uniform(0, 1000, (20, 3))
    got = evaluate(
        shifted(100.0), atlas, engine=engine, points_target=points, points_atlas=points, labels_target=atlas.labels
    )
    assert got.figures["landmark_median_um"] == pytest.approx(100)
    assert got.figures["landmark_p90_um"] == pytest.approx(100)
    # Two of ten columns of each region left it, and two of another came.
    assert got.dice[2] == pytest.approx(0.8) and got.dice[3_000_000_000] == pytest.approx(0.8)
    assert got.figures["dice_mean"] == pytest.approx(0.8)


def test_landmarks_outside_the_field_are_counted_not_measured(atlas, engine):
    points = np.array([[100.0, 100, 100], [1e6, 0, 0]])
    figures = evaluate(IDENTITY, atlas, engine=engine, points_target=points, points_atlas=points).figures
    assert (figures["landmarks"], figures["landmarks_outside"], figures["landmark_max_um"]) == (1, 1, 0)


def test_a_fold_and_a_wrong_inverse_show(atlas, engine):
    nodes = FIELD.index_to_um(np.moveaxis(np.indices(FIELD.shape), 0, -1))
    folding = DisplacementField(FIELD, np.moveaxis(nodes * (0, 0, -1.25), -1, 0))
    figures = evaluate(Transform(np.eye(4), folding, DisplacementField.zero(FIELD)), atlas, engine=engine).figures
    assert figures["jacobian_min"] == pytest.approx(-0.25, abs=1e-5) and figures["jacobian_folded_fraction"] == 1
    # Nodes within the template reach to x = 1100 um.
    assert figures["inverse_consistency_max_um"] == pytest.approx(1.25 * 1100, rel=1e-5)


def test_what_does_not_fit_is_refused(atlas, engine):
    points = np.zeros((2, 3))
    with pytest.raises(InputError, match="give both"):
        evaluate(IDENTITY, atlas, engine=engine, points_target=points)
    with pytest.raises(InputError, match="same n"):
        evaluate(IDENTITY, atlas, engine=engine, points_target=points, points_atlas=np.zeros((3, 3)))
    bare = Atlas("bare", atlas.template, None, "asr", Regions([]))
    with pytest.raises(InputError, match="has no labels"):
        evaluate(IDENTITY, bare, engine=engine, labels_target=atlas.labels)
    far = Transform.from_affine(np.eye(4), Grid.from_spacing((3, 3, 3), (10, 10, 10), (1e7, 0, 0)))
    with pytest.raises(InputError, match="does not reach the template"):
        evaluate(far, atlas, engine=engine)
