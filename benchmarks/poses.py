"""Is a brain found that lies in any direction, when nobody says which? Run on a template and another stain of it.

    python benchmarks/poses.py --data ALLEN [--volume OTHER.tif --voxel-size 50 40 40] [--turn 15] [--count 24]

Each of the 24 proper orientations, turned further about a random axis (``--turn 180``: anywhere), scaled by 0.85 to
1.15 and noisy, is registered without letters, affine only. The error is that of the affine inside the brain. Of
``--volume`` the truth is not known: its unturned pose, found with its letters, stands for it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation

from cloudreg.io import open_volume
from cloudreg.registration.fit import Solution, choose_scales, solve
from cloudreg.registration.levels import Image
from cloudreg.registration.prepare import prepare
from cloudreg.settings import RegistrationSettings
from cloudreg.space import Grid, axes_between, proper_orientations

_VOXEL_UM = 100.0
_SETTINGS = RegistrationSettings(deform=False)


def turned(values: np.ndarray, spacing: np.ndarray, turn: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the volume turned and scaled on a grid of 100 um that holds it, and the 4 x 4 back to its own um."""
    middle = (np.array(values.shape) - 1) / 2 * spacing
    corners = np.stack(np.meshgrid(*[[-1, 1]] * 3), axis=-1).reshape(-1, 3) * middle * scale
    shape = (2 * np.abs(corners @ turn.T).max(axis=0) / _VOXEL_UM).astype(int) + 3
    back = np.eye(4)
    back[:3, :3] = turn.T / scale
    back[:3, 3] = middle - back[:3, :3] @ ((shape - 1) / 2 * _VOXEL_UM)
    step = back[:3, :3] * _VOXEL_UM / spacing[:, None]
    return affine_transform(values, step, back[:3, 3] / spacing, tuple(shape), order=1), back


def fitted(
    values: np.ndarray, spacing: Sequence[float], atlas: Image, letters: Sequence[str]
) -> tuple[Solution, Image]:
    """Return the affine fit of a volume whose origin is 0."""
    grid = Grid.from_spacing(values.shape, spacing, (0.0, 0.0, 0.0))
    target = prepare(values, np.ones_like(values), grid, name="target", missing_data=False)
    rotations = [(name, axes_between(name, "asr")) for name in letters]
    scales = choose_scales(atlas, grid, atlas.grid, _SETTINGS)
    return solve(target, atlas, rotations, _SETTINGS, scales=scales), target


def main() -> None:
    """Print a line a pose and a summary a volume."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the Allen files")
    parser.add_argument("--volume", type=Path, help="another brain, for example a TIFF")
    parser.add_argument("--voxel-size", type=float, nargs=3)
    parser.add_argument("--orientation", default="psl", help="of --volume")
    parser.add_argument("--turn", type=float, default=15, help="largest turn away from a pose, degrees")
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()

    spacing = np.full(3, _VOXEL_UM)
    template = open_volume(str(chosen.data / "average_template_100.nrrd")).read().squeeze().astype(np.float32)
    nissl = open_volume(str(chosen.data / "ara_nissl_100_ccf.nrrd")).read().squeeze().astype(np.float32)
    grid = Grid.from_spacing(template.shape, spacing, (0.0, 0.0, 0.0))
    atlas = prepare(template, np.ones_like(template), grid, name="template", missing_data=False)
    volumes = {"template": (template**0.6, spacing, np.eye(4)), "Nissl": (nissl, spacing, np.eye(4))}
    if chosen.volume:
        other = open_volume(str(chosen.volume), voxel_size_um=chosen.voxel_size)
        values, size = other.read().squeeze().astype(np.float32), np.array(other.grid.voxel_size_um)
        step = tuple(max(1, round(_VOXEL_UM / v)) for v in size)
        values, size = values[:: step[0], :: step[1], :: step[2]], size * step
        truth = fitted(values, size.tolist(), atlas, [chosen.orientation])[0].fit.to_atlas
        volumes[chosen.volume.stem] = (values, size, truth)

    letters = proper_orientations("asr")
    for name, (values, size, truth) in volumes.items():
        rng = np.random.default_rng(chosen.seed)
        right, seconds = 0, []
        for number in range(chosen.count):
            axis = rng.standard_normal(3)
            angle = np.deg2rad(rng.uniform(0, chosen.turn))
            pose = axes_between(letters[number % 24], "asr")
            turn = pose @ Rotation.from_rotvec(angle * axis / np.linalg.norm(axis)).as_matrix()
            seen, back = turned(values, size, turn, rng.uniform(0.85, 1.15))
            noise = 0.02 * np.quantile(seen[seen > 0], 0.9) * rng.standard_normal(seen.shape)
            began = time.perf_counter()
            solution, target = fitted((seen + noise).astype(np.float32), [_VOXEL_UM] * 3, atlas, letters)
            seconds.append(time.perf_counter() - began)
            inside = target.grid.index_to_um(np.argwhere(target.foreground))
            difference = solution.fit.to_atlas - truth @ back
            error = np.median(np.linalg.norm(inside @ difference[:3, :3].T + difference[:3, 3], axis=1))
            # Half a millimetre is far less than any wrong pose and more than two stains disagree by.
            right += bool(error < 500)
            margin = solution.poses[1].objective - solution.poses[0].objective
            cut = "  called cut" if solution.cuts else ""
            print(f"{name} {number:3} {seconds[-1]:5.1f} s  {error:6.0f} um  margin {margin:.2f}{cut}", flush=True)
        print(f"{name}: {right} of {chosen.count} right, median {np.median(seconds):.1f} s", flush=True)


if __name__ == "__main__":
    main()
