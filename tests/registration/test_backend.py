import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d, map_coordinates

from cloudreg.errors import MissingExtraError
from cloudreg.registration.backend import MAIN_MEMORY, backend_for, backend_of
from cloudreg.registration.threads import along

FIT = """
import sys
sys.path.insert(0, {tests!r})
import numpy as np
from brains import VOXEL_UM, brain, image_of
from cloudreg import cli, pipeline
from cloudreg.registration import register_volume
from cloudreg.registration.backend import backend_for
from cloudreg.registration.fit import choose_scales, solve
from cloudreg.settings import RegistrationSettings
image = image_of(brain())
settings = RegistrationSettings(resolution_um=2 * VOXEL_UM, levels=1, iterations=(2,), find_cuts=False)
scales = choose_scales(image, image.grid, image.grid, settings)
solved = solve(image, image, [], settings, scales=scales, initial=np.eye(4), backend=backend_for(settings.device))
assert solved.energies
print([name for name in ("torch", "triton", "array_api_compat.torch") if name in sys.modules])
"""


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_filter_along_an_axis_gives_the_same_bytes_in_threads(axis):
    large = np.random.default_rng(0).random((60, 50, 70), dtype=np.float32)
    whole = gaussian_filter1d(large, 2.0, axis=axis)
    assert along(axis, gaussian_filter1d, large, 2.0).tobytes() == whole.tobytes()


def test_an_image_is_resampled_in_slabs_as_it_is_at_once():
    image = np.random.default_rng(0).random((30, 20, 25), dtype=np.float32)
    step = np.eye(4)
    step[:3] += np.random.default_rng(1).normal(0, 0.02, (3, 4))
    at = step[:3, :3] @ np.indices((37, 22, 24)).reshape(3, -1) + step[:3, 3:]
    expected = map_coordinates(image, at, order=1, mode="constant").reshape(37, 22, 24)
    np.testing.assert_allclose(MAIN_MEMORY.resampled(image, step, (37, 22, 24)), expected, atol=1e-5)


def test_a_fit_on_the_cpu_never_imports_torch():
    code = FIT.format(tests=str(Path(__file__).parents[1]))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_the_cpu_is_the_main_memory():
    assert backend_for("cpu") is MAIN_MEMORY
    assert backend_of(np.zeros(3)) is MAIN_MEMORY


@pytest.mark.parametrize("package", ["torch", "triton"])
def test_a_missing_library_names_the_extra_that_brings_it(package, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"^{package} is needed.*pip install 'cloudreg\[gpu\]'"):
        backend_for("cuda")
