"""Other programs' word on our OME-Zarr: zarr-python, ngff-zarr and the schema of the specification."""

import numpy as np
import pytest
import zarr

from cloudreg.io import build_pyramid, create_volume
from cloudreg.space import Box, Grid


@pytest.fixture(params=["sharded", "chunks", "channels"])
def volume(tmp_path, request):
    shape = (70, 130, 90)
    array = np.random.default_rng(0).integers(0, 4000, (2, *shape)).astype(np.uint16)
    grid = Grid.from_spacing(shape, (4, 2, 2), (1, 2, 3))
    channels = 2 if request.param == "channels" else 1
    writer = create_volume(
        tmp_path / "v.ome.zarr",
        grid,
        "uint16",
        channels=channels,
        sharded=request.param == "sharded",
        channel_names=["red", "green"] if channels == 2 else None,
    )
    for channel in range(channels):
        writer.write(Box.whole(shape), array[channel], channel=channel)
    build_pyramid(writer)
    return writer.complete()


def test_zarr_python_reads_every_level(volume):
    group = zarr.open_group(volume.path, mode="r")
    for level in range(len(volume.levels)):
        ours = volume.read(level=level, channel=None if volume.channels > 1 else 0)
        np.testing.assert_array_equal(group[str(level)][:], ours)


@pytest.mark.filterwarnings("ignore")
def test_ngff_zarr_validates_and_reads_it(volume):
    ngff_zarr = pytest.importorskip("ngff_zarr", reason="pip install 'ngff-zarr[validate]'")
    pytest.importorskip("jsonschema", reason="pip install jsonschema")
    images = ngff_zarr.from_ngff_zarr(volume.path, validate=True).images
    assert len(images) == len(volume.levels)
    for image, grid in zip(images, volume.levels, strict=True):
        assert [image.scale[a] for a in "zyx"] == pytest.approx(grid.voxel_size_um)
        assert [image.translation[a] for a in "zyx"] == pytest.approx(grid.origin_um)
        assert set(image.axes_units.values()) <= {"micrometer", None}
    first = np.asarray(images[0].data)
    np.testing.assert_array_equal(first.squeeze(), volume.read(channel=None).squeeze())
