import os
import subprocess
import sys

import numpy as np
import pytest
import tifffile


@pytest.fixture
def convert(tmp_path):
    """Convert a small volume with a cache of compiled code of one's own; return what is said."""
    source = tmp_path / "volume.tif"
    tifffile.imwrite(source, np.ones((32, 200, 200), dtype=np.uint16))

    def run(name):
        command = [sys.executable, "-m", "cloudreg", "convert", str(source), str(tmp_path / name)]
        options = ["--voxel-size", "10", "10", "10"]
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
        done = subprocess.run([*command, *options], capture_output=True, text=True, env=environment, check=True)
        return done.stderr

    return run


def test_the_first_run_on_a_machine_says_once_that_it_compiles_and_the_second_does_not(convert):
    assert convert("first.ome.zarr").count("compiling") == 1
    assert "compiling" not in convert("second.ome.zarr")
