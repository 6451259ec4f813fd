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


GARBAGE = """
import gc
from numba import njit
from numba.core import event
from cloudreg.execution.compiling import say_when_compiling

say_when_compiling()

class Listener(event.Listener):
    def on_start(self, event):
        print(gc.isenabled())

    def on_end(self, event):
        pass

event.register("numba:compile", Listener())
print(gc.isenabled())
njit(lambda x: x + 1)(1)
print(gc.isenabled())
"""


def test_no_garbage_is_collected_while_something_is_compiled_and_afterwards_it_is_again():
    done = subprocess.run([sys.executable, "-c", GARBAGE], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "True"]
