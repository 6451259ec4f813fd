import os
import subprocess
import sys

import numpy as np
import pytest

from brains import VOXEL_UM, brain
from cloudreg.io import create_volume
from cloudreg.space import Box, Grid

LISTENER = """
from numba.core import event
from cloudreg.cli import main

class Listener(event.Listener):
    def on_start(self, event):
        print("compiled", event.data["dispatcher"].py_func.__name__)

    def on_end(self, event):
        pass

event.register("numba:compile", Listener())
main()
"""


@pytest.mark.slow
def test_a_registration_compiles_nothing_of_what_was_compiled_ahead_of_it(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-m", "cloudreg.registration.ahead"], env=environment, check=True)
    values = brain()
    for name, greys in (
        ("target", (1000 * values).astype(np.uint16)),
        ("template", (900 * values).astype(np.uint16)),
        ("labels", (values > 0.3).astype(np.uint32)),
    ):
        grid = Grid.from_spacing(values.shape, (VOXEL_UM,) * 3)
        writer = create_volume(str(tmp_path / f"{name}.ome.zarr"), grid, greys.dtype, levels=1)
        writer.write(Box.whole(grid.shape), greys)
        writer.complete()
    paths = ["target.ome.zarr", "out", "--template", "template.ome.zarr", "--labels", "labels.ome.zarr"]
    paths += ["--orientation", "asr", "--atlas-orientation", "asr"]
    command = [sys.executable, "-c", LISTENER, "register", *paths, "--no-report"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    compiled = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("compiled ")}
    assert "_linearize" in compiled
    ahead = {"_evaluate", "_explain", "pull_own", "scatter", "smallest_determinant", "invert", "sample_linear"}
    assert not compiled & {*ahead, "sample_nearest"}
