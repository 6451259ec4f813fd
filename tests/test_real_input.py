"""Real brains through the command line: what a lab would do, with right answers where there are any."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import tifffile
import yaml
from scipy.stats import spearmanr

from cloudreg.io import open_volume, write_volume
from cloudreg.registration import open_registration
from cloudreg.space import Grid
from cloudreg.tiles import open_acquisition, read_project, write_colm

pytestmark = pytest.mark.real


def cloudreg(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "cloudreg", *(str(a) for a in arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def allen(test_data):
    folder = test_data / "allen_ccfv3"
    return [
        *("--template", folder / "average_template_100.nrrd"),
        *("--labels", folder / "annotation_50.nrrd"),
        *("--ontology", folder / "ara_ontology.json"),
        *("--atlas-orientation", "asr"),
    ]


@pytest.fixture(scope="module")
def brain(tmp_path_factory, request):
    """The whole two-photon brain registered to the Allen atlas."""
    import os
    from pathlib import Path

    data = Path(os.environ.get("CLOUDREG_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not data.is_dir():
        pytest.skip(f"no real volumes at {data}: set CLOUDREG_TEST_DATA")
    out = tmp_path_factory.mktemp("real") / "registration"
    target = data / "mouse_stpt" / "brain_psl_50x40x40um.tif"
    cloudreg("register", target, out, *allen(data), "--voxel-size", 50, 40, 40, "--orientation", "psl")
    return out


def read_table(path):
    with path.open() as file:
        return {(row["acronym"], row["side"]): row for row in csv.DictReader(file)}


def test_a_two_photon_brain_registers_to_the_allen_atlas(brain, test_data):
    figures = json.loads((brain / "manifest.json").read_text())["figures"]
    assert figures["correlation"] > 0.65
    assert figures["matched_fraction"] > 0.7
    assert figures["jacobian_min"] > 0
    assert figures["inverse_consistency_p99_um"] < 10

    template = open_volume(str(test_data / "allen_ccfv3" / "average_template_100.nrrd"), orientation="asr").read()
    ours = open_volume(str(brain / "target_in_atlas.ome.zarr")).read().astype(float)
    reference = test_data / "mouse_stpt" / "niftyreg_reference" / "downsampled_standard.tiff"
    theirs = tifffile.imread(reference).astype(float)
    tissue = template > 30
    # Ranks, for a few saturated spots in the tissue outweigh the brain in a correlation of the values.
    scores = [spearmanr(template[tissue], image[tissue])[0] for image in (ours, theirs)]
    assert scores[0] > scores[1] + 0.05
    assert (brain / "report.html").stat().st_size > 100_000


def test_left_and_right_come_out_alike_in_a_whole_brain(brain):
    table = read_table(brain / "regions.csv")
    # The bulbs are not among them: the volume ends inside them, on a slant.
    for acronym in ("CP", "CA1", "TH", "VISp1", "CENT3", "AON", "ENTl1"):
        if (acronym, "left") in table:
            left, right = (float(table[acronym, side]["volume_mm3"]) for side in ("left", "right"))
            assert left == pytest.approx(right, rel=0.15), acronym
    # The Allen reference brain's caudoputamen takes about 12.7 mm3 a side.
    assert 9 < float(table["CP", "left"]["volume_mm3"]) < 17


def test_tiles_cut_from_a_brain_give_its_region_table(brain, test_data, tmp_path):
    values = tifffile.imread(test_data / "mouse_stpt" / "brain_psl_50x40x40um.tif")
    rows, columns, side, depth = 2, 3, 112, 262
    rng = np.random.default_rng(0)
    jitter = rng.integers(-2, 3, (rows, columns, 3))
    padded = np.pad(values, ((0, 0), (8, 24), (8, 24)), mode="edge")
    pitch = side * 0.75
    ramp = np.linspace(-1, 1, side)
    flat = 1.1 - 0.25 * (ramp[:, None] - 0.1) ** 2 - 0.2 * (ramp[None, :] + 0.15) ** 2
    flat /= flat.mean()

    def plane(row, column, channel, number):
        z, y, x = np.array([4 + number, 8 + row * pitch, 8 + column * pitch], dtype=int) + jitter[row, column]
        cut = padded[z, y : y + side, x : x + side].astype(float)
        return np.clip(100 + flat * cut + rng.normal(0, 2, cut.shape), 0, 65535).astype(np.uint16)

    raw, out = tmp_path / "raw", tmp_path / "run"
    write_colm(
        raw,
        rows=rows,
        columns=columns,
        tile_shape=(depth, side, side),
        voxel_size_um=(50.0, 40.0, 40.0),
        overlap=(0.25, 0.25),
        channels=1,
        objective="10x 0.6NA",
        scanned=np.ones((rows, columns), dtype=bool),
        planes=plane,
    )
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump({"align": {"search_um": [200.0, 160.0, 160.0]}}))
    cloudreg("run", raw, out, *allen(test_data), "--orientation", "psl", "--settings", settings)

    acquisition = open_acquisition(raw)
    project = read_project(out / "project.xml")
    found = np.array([project.tile(t.row, t.column).position_px for t in acquisition.tiles])
    cells = [(t.row, t.column) for t in acquisition.tiles]
    true = np.array([(0, int(row * pitch), int(column * pitch)) + jitter[row, column] for row, column in cells])
    error = found - true - np.mean(found - true, axis=0)
    assert np.abs(error).max() < 0.5

    shading = tifffile.imread(out / "shading" / "channel_00" / "flat.tif")
    assert np.sqrt(np.mean((shading / flat - 1) ** 2)) < 0.08

    whole, tiled = read_table(brain / "regions.csv"), read_table(out / "regions.csv")
    large = [key for key, row in whole.items() if float(row["volume_mm3"]) > 1]
    ratios = np.array([float(tiled[key]["volume_mm3"]) / float(whole[key]["volume_mm3"]) for key in large])
    assert len(large) > 60
    assert abs(np.median(ratios) - 1) < 0.05
    assert np.quantile(np.abs(ratios - 1), 0.9) < 0.25


def test_a_warped_nissl_volume_comes_back_to_the_template(test_data, tmp_path):
    """Cross-modal, with the truth known: the Nissl volume lies exactly in the template's space."""
    from scipy.ndimage import map_coordinates
    from scipy.spatial.transform import Rotation

    from brains import displacement_field

    folder = test_data / "allen_ccfv3"
    nissl = open_volume(str(folder / "ara_nissl_100_ccf.nrrd"), orientation="asr")
    labels = open_volume(str(folder / "annotation_100.nrrd"), orientation="asr", kind="labels").read()
    grid = Grid.from_spacing([n + 20 for n in nissl.grid.shape], (100.0,) * 3, (-1000.0,) * 3)
    index = np.argwhere(np.ones(grid.shape, dtype=bool))
    middle = nissl.grid.index_to_um((np.array(nissl.grid.shape) - 1) / 2)
    linear = Rotation.from_rotvec([0.08, -0.06, 0.07]).as_matrix() @ np.diag([1.05, 0.96, 1.02])
    straight = (grid.index_to_um(index) - middle - [200, -150, 100]) @ linear.T + middle
    field = displacement_field(5, peak_um=500.0, smooth=8.0, shape=nissl.grid.shape)
    truth = straight + np.stack([map_coordinates(c, straight.T / 100, order=1, mode="nearest") for c in field], axis=1)
    seen = map_coordinates(nissl.read().astype(np.float32), truth.T / 100, order=1).reshape(grid.shape)
    write_volume(str(tmp_path / "nissl.ome.zarr"), seen.astype(np.uint16), grid, orientation="asr")
    cloudreg("register", tmp_path / "nissl.ome.zarr", tmp_path / "registration", *allen(test_data))

    brain = map_coordinates((labels > 0).astype(np.float32), truth.T / 100, order=1) > 0.5
    found, _ = open_registration(tmp_path / "registration").transform.target_to_atlas(grid.index_to_um(index[brain]))
    error = np.linalg.norm(found - truth[brain], axis=1)
    print(f"Nissl to template: median {np.median(error):.0f} um, 90th percentile {np.quantile(error, 0.9):.0f} um")
    # Allen's own alignment of the two volumes is off by the order of 100 um.
    assert np.median(error) < 150
