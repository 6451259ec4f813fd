"""The light of a volume whose regions are known, where their brightness looks like slow light itself."""

import numpy as np
import pytest

from cloudreg.errors import InputError
from cloudreg.illumination import estimate_bias, estimate_bias_by_regions
from cloudreg.illumination.by_regions import labels_on
from cloudreg.io import open_volume, write_volume
from cloudreg.settings import IlluminationSettings
from cloudreg.space import Grid

SETTINGS = IlluminationSettings(working_voxel_um=50, working_voxels=200_000, spline_distance_um=2000)
SHAPE = (44, 56, 64)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Slabs that get brighter along x under light that gets dimmer; volume, labels at half the resolution, truth."""
    folder = tmp_path_factory.mktemp("regions")
    random = np.random.default_rng(0)
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    inside = z**2 + y**2 + x**2 < 0.9
    ids = (1 + np.floor(4 * (x + 1)).astype(int) + 8 * (y > 0)) * inside
    level = 400 * np.exp(0.12 * np.floor(4 * (x + 1)) + random.normal(0, 0.2, 100)[ids])
    field = np.exp(-0.35 * x + 0.2 * y * y - 0.1 * z)
    shown = random.poisson(np.where(inside, level * field * np.exp(0.08 * random.normal(size=SHAPE)), 5))
    shown[20:22] = 0
    grid = Grid.from_spacing(SHAPE, (50.0, 50.0, 50.0), (10.0, -20.0, 30.0))
    write_volume(folder / "v.ome.zarr", shown.astype(np.uint16), grid)
    write_volume(folder / "l.ome.zarr", ids.astype(np.uint32), grid, kind="labels")
    return open_volume(folder / "v.ome.zarr"), open_volume(folder / "l.ome.zarr"), np.log(field), inside


def left(bias, truth, inside):
    """Part of the field's scatter that is left when the found one is taken off."""
    rest = (truth - bias.log_field)[inside]
    return rest.std() / truth[inside].std()


def test_light_is_told_from_regions(scene, engine):
    volume, labels, truth, inside = scene
    found = estimate_bias_by_regions(volume, 0, labels, SETTINGS, engine=engine)
    assert left(found, truth, inside) < 0.1
    assert np.exp(found.log_field[inside]).mean() == pytest.approx(1, abs=0.02)
    # From the picture alone it can't be.
    assert left(estimate_bias(volume, 0, SETTINGS, engine=engine), truth, inside) > 0.5


def test_even_light_is_found_even(scene, engine, tmp_path):
    volume, labels, truth, inside = scene
    even = np.rint(volume.read() / np.exp(truth)).astype(np.uint16)
    write_volume(tmp_path / "even.ome.zarr", even, volume.grid)
    found = estimate_bias_by_regions(open_volume(tmp_path / "even.ome.zarr"), 0, labels, SETTINGS, engine=engine)
    assert found.log_field[inside].std() < 0.02


def test_labels_of_another_resolution_and_box_are_put_on_the_grid(scene):
    _, labels, _, _ = scene
    coarse = labels.grid.downsampled((2, 2, 2))
    ids = labels.read()
    found = labels_on(labels, coarse)
    assert found.shape == coarse.shape
    assert (found == ids[1::2, 1::2, 1::2]).mean() > 0.9
    wide = Grid.from_spacing((44, 56, 70), (50.0,) * 3, (10.0, -20.0, -70.0))
    shifted = labels_on(labels, wide)
    np.testing.assert_array_equal(shifted[:, :, 2:66], ids)
    assert not shifted[:, :, 66:].any()
    turned = Grid(SHAPE, labels.grid.affine[:, [1, 0, 2, 3]])
    with pytest.raises(InputError, match="different axes"):
        labels_on(labels, turned)


def test_what_are_no_regions_of_the_volume_is_refused(scene, tmp_path):
    volume, labels, _, _ = scene
    with pytest.raises(InputError, match="expected a volume of region ids"):
        estimate_bias_by_regions(volume, 0, volume, SETTINGS)
    far = Grid.from_spacing(SHAPE, (50.0,) * 3, (90_000.0, 0.0, 0.0))
    write_volume(tmp_path / "far.ome.zarr", labels.read(), far, kind="labels")
    with pytest.raises(InputError, match="give the labels that were registered to this volume"):
        estimate_bias_by_regions(volume, 0, open_volume(tmp_path / "far.ome.zarr"), SETTINGS)


def test_the_command_takes_labels(scene, cloudreg, tmp_path):
    volume, labels, truth, inside = scene
    code, _, err = cloudreg("correct-volume", volume.path, tmp_path / "even.ome.zarr", "--labels", labels.path)
    assert code == 0, err
    even = open_volume(tmp_path / "even.ome.zarr").read().astype(float)
    seen = inside & (volume.read() > 0)
    ratio = np.log(even[seen] / (volume.read()[seen] / np.exp(truth[seen])))
    assert ratio.std() < 0.3 * truth[seen].std()
