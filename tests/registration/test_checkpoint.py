"""A killed registration goes on, to the same bytes."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from brains import VOXEL_UM, brain, displacement_field, image_of, warped
from cloudreg.io import write_volume
from cloudreg.registration.checkpoint import Checkpoint, Progress, digest
from cloudreg.registration.contrast import initial_contrast
from cloudreg.registration.cuts import Cut
from cloudreg.registration.mixture import Mixture
from cloudreg.registration.pose import Pose
from cloudreg.registration.smoothness import Motion
from cloudreg.registration.solver import Energy, Intensity
from cloudreg.space import Grid

REGISTER = """
import os, signal, sys
from cloudreg.registration.checkpoint import Checkpoint

save = Checkpoint.save

def save_and_die(self, progress):
    save(self, progress)
    if progress.levels == int(os.environ.get("DIE_AFTER", -1)):
        os.kill(os.getpid(), signal.SIGKILL)

Checkpoint.save = save_and_die
from cloudreg.cli import main
main()
"""

SETTINGS = f"""
registration:
  resolution_um: {0.8 * VOXEL_UM}
  iterations: [3, 3]
  velocity: time-dependent
  time_steps: 2
"""


def register(folder, data, **environment):
    command = [sys.executable, "-c", REGISTER, "register", str(data / "target.nii.gz"), "registration", "--no-report"]
    command += ["--template", str(data / "template.nii.gz"), "--orientation", "asr", "--atlas-orientation", "asr"]
    command += ["--settings", str(data / "settings.yaml")]
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def contents(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    grid = Grid.from_spacing((40, 34, 38), (VOXEL_UM,) * 3, (100.0, 50.0, 60.0))
    seen, truth = warped(brain(), grid, np.eye(3), (60.0, 30.0, -50.0), displacement_field(4, 300.0))
    # Half a brain, so that there is a cut to remember.
    seen = np.where(truth[..., 2] < (brain().shape[2] - 1) / 2 * VOXEL_UM, seen, 0)
    noise = np.random.default_rng(0).normal(0, 12, seen.shape)
    target = np.clip(100 + 900 * seen + noise, 1, None).astype(np.float32)
    write_volume(str(folder / "target.nii.gz"), target, grid)
    write_volume(str(folder / "template.nii.gz"), brain(), Grid.from_spacing(brain().shape, (VOXEL_UM,) * 3))
    (folder / "settings.yaml").write_text(SETTINGS)
    return folder


@pytest.mark.slow
def test_a_registration_killed_after_any_level_goes_on_to_the_same_bytes(data, tmp_path):
    whole = register(tmp_path / "whole", data)
    assert whole.returncode == 0, whole.stderr[-2000:]
    assert [path.name for path in (tmp_path / "whole").iterdir()] == ["registration"]
    killed = tmp_path / "killed"
    for level in ("0", "1"):
        assert register(killed, data, DIE_AFTER=level).returncode == -signal.SIGKILL
        assert not (killed / "registration").exists()
    done = register(killed, data)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "going on where the fit was stopped, after 1 of 2 levels" in done.stdout + done.stderr
    assert contents(killed) == contents(tmp_path / "whole")


def progress():
    values = brain()
    contrast = initial_contrast(values[values > 0.05], 3, (0.0, 1 / 3))
    mixture = Mixture(float(np.float32(0.1)), 0.5, 0.2, 1 / 3, 0.0, (0.79, 0.2, 0.01))
    rng = np.random.default_rng(0)
    affine = np.eye(4) + rng.standard_normal((4, 4)) / 3
    return Progress(
        2,
        affine,
        Motion(*rng.standard_normal((2, 4, 3, 3, 3)).astype(np.float32)),
        (Intensity(contrast, mixture), Intensity(contrast, replace(mixture, artifact=2 / 3))),
        [Energy(400.0, 1, "velocity", 1 / 3, 2 / 3, 1e-300, 1e17 / 3, 0.1)],
        [Pose("asr", affine / 7), Pose("pli", affine, 1 / 3)],
        [Cut(affine[0, :3], np.float64(1 / 3), 2.0, 0.5)],
        (True, False),
        1 / 3,
        "regions",
    )


def test_progress_is_kept_to_the_last_bit(tmp_path):
    before = progress()
    checkpoint = Checkpoint(tmp_path / "new" / "folder", "key")
    assert checkpoint.load() is None
    checkpoint.save(replace(before, levels=1))
    checkpoint.save(before)
    after = checkpoint.load()
    assert [path.name for path in checkpoint.path.parent.iterdir()] == ["key.npz"]
    assert repr(after.energies) == repr(before.energies)
    assert (after.recoloured, after.share, after.regions) == (before.recoloured, before.share, before.regions)
    assert after.levels == 2 and [i.mixture for i in after.intensities] == [i.mixture for i in before.intensities]
    for a, b in (
        (after.to_atlas, before.to_atlas),
        (after.motion.momentum, before.motion.momentum),
        (after.motion.velocity, before.motion.velocity),
        (after.intensities[1].contrast.coefficients, before.intensities[1].contrast.coefficients),
        (after.intensities[0].contrast.to_nodes, before.intensities[0].contrast.to_nodes),
        (after.intensities[0].contrast.scale, before.intensities[0].contrast.scale),
        (after.poses[0].to_atlas, before.poses[0].to_atlas),
        (after.cuts[0].normal, before.cuts[0].normal),
    ):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert after.cuts[0].offset_um == before.cuts[0].offset_um
    assert np.isnan(after.poses[0].objective) and after.poses[1].objective == 1 / 3


def test_half_a_file_is_none(tmp_path):
    checkpoint = Checkpoint(tmp_path, "key")
    checkpoint.save(progress())
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:-200])
    assert checkpoint.load() is None


def test_another_voxel_place_or_setting_is_another_fit():
    image = image_of(brain())
    changed = brain()
    changed[20, 20, 20] += np.float32(1e-4)
    other = [
        digest([image], {"kernel_um": 1.0}),
        digest([image_of(changed)], {"kernel_um": 2.0}),
        digest([image_of(brain(), (0.0, 0.0, 1.0))], {"kernel_um": 2.0}),
        digest([image, image], {"kernel_um": 2.0}),
    ]
    same = [digest([image_of(brain())], {"kernel_um": 2.0}) for _ in range(2)]
    assert same[0] == same[1]
    assert len({same[0], *other}) == 5
