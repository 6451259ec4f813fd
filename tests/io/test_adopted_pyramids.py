"""Levels for volumes of other programs, which go on reading them."""

import json

import numpy as np
import pytest
import tensorstore
import tifffile
import zarr

from cloudreg.errors import InputError
from cloudreg.io import build_pyramid, create_volume, downsample, open_volume, pyramid_grids
from cloudreg.space import Box, Grid

ARRAY = np.random.default_rng(0).integers(0, 4000, (70, 130, 90)).astype(np.uint16)


def ome_zarr(folder, version, *, sharded=False):
    group = zarr.open_group(folder, mode="w", zarr_format=2 if version == "0.4" else 3)
    shards = {"shards": (1, 32, 64, 64)} if sharded else {}
    group.create_array("0", data=ARRAY[None], chunks=(1, 32, 32, 32), **shards)
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": a, "type": "space", "unit": "nanometer"} for a in "zyx"]
    steps = [
        {"type": "scale", "scale": [1, 4000, 2000, 2000]},
        {"type": "translation", "translation": [0, 1000, 2000, 3000]},
    ]
    multiscales = [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": steps}]}]
    ome = {"multiscales": multiscales, "version": version}
    group.attrs.update(ome if version == "0.4" else {"ome": ome})


@pytest.mark.parametrize(("version", "sharded"), [("0.4", False), ("0.5", False), ("0.5", True)])
def test_ome_zarr(tmp_path, engine, version, sharded):
    ome_zarr(tmp_path / "v.zarr", version, sharded=sharded)
    if version == "0.4":
        zarr.consolidate_metadata(tmp_path / "v.zarr", zarr_format=2)
    build_pyramid(tmp_path / "v.zarr", engine=engine)
    volume = open_volume(tmp_path / "v.zarr")
    assert volume.levels == pyramid_grids(Grid.from_spacing(ARRAY.shape, (4, 2, 2), (1, 2, 3)))
    np.testing.assert_array_equal(volume.read(), ARRAY)
    whole = ARRAY
    group = zarr.open_group(tmp_path / "v.zarr", mode="r")
    for level in range(1, len(volume.levels)):
        finer, coarser = volume.levels[level - 1 : level + 1]
        whole = downsample(
            whole, [round(b / a) for a, b in zip(finer.voxel_size_um, coarser.voxel_size_um, strict=True)]
        )
        np.testing.assert_array_equal(volume.read(level=level), whole)
        np.testing.assert_array_equal(group[f"0_level{level}"][0], whole)
    with pytest.raises(InputError, match="expected a volume of one level"):
        build_pyramid(tmp_path / "v.zarr", engine=engine)


def test_half_a_volume_gets_no_levels_unless_zeros_will_do(tmp_path, engine):
    path = f"precomputed://{tmp_path}/v"
    create_volume(path, Grid.from_spacing(ARRAY.shape, (2, 2, 2)), "uint16", levels=1).write(
        Box.whole(ARRAY.shape), ARRAY
    )
    info = json.loads((tmp_path / "v" / "info").read_text())
    del info["cloudreg"]
    (tmp_path / "v" / "info").write_text(json.dumps(info))
    (tmp_path / "v" / "2000_2000_2000" / "0-64_0-64_0-64").unlink()
    with pytest.raises(InputError, match=r"expected 12 chunks .*, 1 are missing \(2000_2000_2000/0-64_0-64_0-64\)"):
        build_pyramid(path, engine=engine)
    assert len(open_volume(path).levels) == 1
    volume = build_pyramid(path, engine=engine, fill_missing=True)
    filled = ARRAY.copy()
    filled[:64, :64, :64] = 0
    np.testing.assert_array_equal(volume.read(level=1), downsample(filled, (2, 2, 2)))


@pytest.mark.parametrize("sharded", [False, True])
def test_precomputed(tmp_path, engine, sharded):
    scale = {
        "key": "fine",
        "size": [90, 130, 70],
        "resolution": [2000, 2000, 4000],
        "voxel_offset": [8, 16, -32],
        "chunk_sizes": [[32, 32, 32]],
        "encoding": "raw",
    }
    if sharded:
        scale["sharding"] = {
            "@type": "neuroglancer_uint64_sharded_v1",
            "preshift_bits": 2,
            "hash": "identity",
            "minishard_bits": 1,
            "shard_bits": 4,
            "minishard_index_encoding": "gzip",
            "data_encoding": "gzip",
        }
    info = {"type": "image", "data_type": "uint16", "num_channels": 1, "scales": [scale], "mesh": "mine"}
    (tmp_path / "info").write_text(json.dumps(info))
    spec = {"driver": "neuroglancer_precomputed", "kvstore": f"file://{tmp_path}/"}
    tensorstore.open(spec).result().write(ARRAY.transpose()[..., None]).result()
    build_pyramid(tmp_path, engine=engine)
    volume = open_volume(tmp_path)
    after = json.loads((tmp_path / "info").read_text())
    assert after["scales"][0] == scale and after["mesh"] == "mine"
    assert [s["voxel_offset"] for s in after["scales"]] == [[8, 16, -32], [4, 8, -32], [2, 4, -16]]
    np.testing.assert_array_equal(volume.read(level=1), downsample(ARRAY, (1, 2, 2)))
    theirs = tensorstore.open({**spec, "scale_index": 2}).result().read().result()
    np.testing.assert_array_equal(theirs[..., 0].transpose(), volume.read(level=2))


def test_a_killed_pyramid_leaves_the_volume_as_it_was(tmp_path):
    ome_zarr(tmp_path / "v.zarr", "0.5")
    before = (tmp_path / "v.zarr" / "zarr.json").read_bytes()

    class Stopped(Exception):
        pass

    class Engine:
        memory_per_block_bytes = 10**8

        def run(self, *arguments, **options):
            raise Stopped

    with pytest.raises(Stopped):
        build_pyramid(tmp_path / "v.zarr", engine=Engine())
    assert (tmp_path / "v.zarr" / "zarr.json").read_bytes() == before
    assert len(open_volume(tmp_path / "v.zarr").levels) == 1
    assert len(build_pyramid(tmp_path / "v.zarr").levels) == 3


@pytest.mark.parametrize("form", ["precomputed://{}/v", "{}/v.ome.zarr"])
def test_ours_keeps_its_shards(tmp_path, engine, form):
    grid = Grid.from_spacing(ARRAY.shape, (4, 2, 2))
    writer = create_volume(form.format(tmp_path), grid, "uint16", sharded=True, levels=1, chunk=(16, 16, 16))
    writer.write(Box.whole(ARRAY.shape), ARRAY)
    writer.complete()
    build_pyramid(form.format(tmp_path), engine=engine)
    volume = open_volume(form.format(tmp_path))
    assert len(volume.levels) == 3 and all(array.is_sharded for array in volume.source.arrays)
    np.testing.assert_array_equal(volume.read(level=1), downsample(ARRAY, (1, 2, 2)))


def test_planes_get_no_levels_where_they_are(tmp_path, refused):
    for z in range(3):
        tifffile.imwrite(tmp_path / f"p{z}.tif", ARRAY[z])
    assert "expected an OME-Zarr or precomputed volume, got tiff-series" in refused("pyramid", tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
