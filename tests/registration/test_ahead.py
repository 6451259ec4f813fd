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
from {module} import main

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

    def compiled(module, *arguments):
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
        command = [sys.executable, "-c", LISTENER.replace("{module}", module), *arguments]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
        return {line.split()[1] for line in done.stdout.splitlines() if line.startswith("compiled ")}

    needed = {"_look", "_evaluate", "_linearize", "_explain", "gather", "pull_own", "scatter", "smallest_determinant"}
    needed |= {"invert", "sample_linear", "sample_nearest"}
    assert needed <= compiled("cloudreg.registration.ahead")
    assert not needed & compiled("cloudreg.cli", "register", *paths, "--no-report")
