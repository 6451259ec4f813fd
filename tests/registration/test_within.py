"""Brains in heads: what is sought close by, where the whole of a target misleads."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from brains import SHAPE, VOXEL_UM, brain, head, image_of, scanned_head
from cloudreg.atlas import load_atlas
from cloudreg.errors import RegistrationFailedError
from cloudreg.io import open_volume, write_volume
from cloudreg.registration import register_volume
from cloudreg.registration.prepare import prepare
from cloudreg.registration.within import brain_within, enclosed, near_the_brain, shows_more
from cloudreg.settings import RegistrationSettings
from cloudreg.space import Grid

UNIT_UM = 70.0
POINTS = np.argwhere(brain() > 0.3) * VOXEL_UM


def scanned():
    values, grid = scanned_head()
    noise = np.random.default_rng(0).normal(0, 12, values.shape)
    return np.clip(100 + 900 * values + noise, 1, None).astype(np.float32), grid


def target_of(values, grid):
    return prepare(values, np.ones_like(values), grid, name="target", missing_data=True)


def error_um(to_atlas):
    return np.linalg.norm(POINTS @ to_atlas[:3, :3].T + to_atlas[:3, 3] - POINTS, axis=1)


def test_a_brain_is_found_in_a_head_that_shows_as_much_flesh_as_brain():
    target, atlas = target_of(*scanned()), image_of(brain())
    assert shows_more(target, atlas)
    found = brain_within(target, atlas, [np.eye(3)], UNIT_UM)
    assert np.median(error_um(found)) < VOXEL_UM
    assert enclosed(target, atlas, found, UNIT_UM)


def test_the_turn_that_explains_more_is_taken():
    target, atlas = target_of(*scanned()), image_of(brain())
    over = Rotation.from_rotvec([np.pi, 0, 0]).as_matrix()
    found = brain_within(target, atlas, [over, np.eye(3)], UNIT_UM)
    assert np.median(error_um(found)) < VOXEL_UM


def test_what_is_far_from_the_brain_loses_its_weight_and_what_is_near_keeps_it():
    target, atlas = target_of(*scanned()), image_of(brain())
    near = near_the_brain(target, atlas, np.eye(4), UNIT_UM)
    inside = np.pad(brain() > 0.3, 18)
    assert (near.weight[inside] == target.weight[inside]).all()
    assert near.weight[:6].max() == 0
    assert 1.2 * inside.sum() < np.count_nonzero(near.weight) < 3 * inside.sum()


def test_a_brain_alone_shows_no_more_and_one_stretched_along_an_axis_is_not_enclosed():
    atlas = image_of(brain())
    assert not shows_more(image_of(brain()), atlas)
    stretched = image_of(
        brain(), origin_um=(-0.45 * SHAPE[0] * VOXEL_UM, 0, 0), voxel_um=(1.9 * VOXEL_UM, 200.0, 200.0)
    )
    assert shows_more(stretched, atlas)
    assert not enclosed(stretched, atlas, np.eye(4), UNIT_UM)
    values, grid = head()
    shown = target_of(values, grid)
    assert shows_more(shown, atlas) and enclosed(shown, atlas, np.eye(4), UNIT_UM)


@pytest.mark.slow
def test_a_head_that_is_refused_as_a_brain_is_registered_by_its_brain_and_says_so(engine, tmp_path, monkeypatch):
    def refuse(figures):
        if not figures["within"]:
            raise RegistrationFailedError("a head is no brain")

    monkeypatch.setattr("cloudreg.registration.register.refuse_failure", refuse)
    values, grid = scanned()
    write_volume(str(tmp_path / "head.ome.zarr"), values.astype(np.uint16), grid, orientation="asr")
    whole = Grid.from_spacing(SHAPE, (VOXEL_UM,) * 3)
    write_volume(str(tmp_path / "template.ome.zarr"), brain(), whole, orientation="asr")
    target, atlas = open_volume(str(tmp_path / "head.ome.zarr")), load_atlas(template=tmp_path / "template.ome.zarr")
    settings = RegistrationSettings(levels=1, resolution_um=2 * VOXEL_UM, deform=False, find_cuts=False)
    registration = register_volume(target, atlas, settings, engine=engine)
    assert any("more than a brain" in doubt for doubt in registration.figures["doubts"])
    found, _ = registration.transform.target_to_atlas(POINTS)
    assert np.median(np.linalg.norm(found - POINTS, axis=1)) < 1.5 * VOXEL_UM
    monkeypatch.setattr("cloudreg.registration.register.shows_more", lambda target, atlas: False)
    with pytest.raises(RegistrationFailedError, match="no brain"):
        register_volume(target, atlas, settings, engine=engine)
