"""How far a fit has come, kept in a folder, so that a killed registration goes on from there.

What is kept is exact: floats are written with all their bits, and the flow is integrated anew from the velocity. So a
fit that goes on ends with the same bytes as one that was never stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudreg.registration.contrast import Contrast
from cloudreg.registration.cuts import Cut
from cloudreg.registration.levels import Image
from cloudreg.registration.mixture import Mixture
from cloudreg.registration.pose import Pose
from cloudreg.registration.smoothness import Motion
from cloudreg.registration.solver import Energy, Intensity


@dataclass(frozen=True)
class Progress:
    """What is known when so many levels are done.

    Parameters
    ----------
    levels
        How many; 0 where only the pose is known.
    to_atlas, motion, intensities
        See `cloudreg.registration.solver.Fit`; in the main memory.
    energies, poses, cuts, recoloured, share
        See `cloudreg.registration.fit.Solution`.
    regions
        Stands for the regions whose greys were told; empty where none were, for till then nothing depends on them.
    """

    levels: int
    to_atlas: NDArray[np.float64]
    motion: Motion
    intensities: tuple[Intensity, ...]
    energies: list[Energy]
    poses: list[Pose]
    cuts: list[Cut]
    recoloured: tuple[bool, ...]
    share: float | None
    regions: str = ""


class Checkpoint:
    """Where the progress of one fit is kept.

    Parameters
    ----------
    folder
        For files of any number of fits; it need not exist yet.
    key
        Stands for everything that the fit depends on: see `digest`.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.path = folder / f"{key}.npz"

    def save(self, progress: Progress) -> None:
        """Keep this instead of what was kept before; at any moment the file is whole."""
        # The velocity too: computed anew from the momentum it would differ in its last bits.
        arrays: dict[str, Any] = {"to_atlas": progress.to_atlas, **vars(progress.motion)}
        for number, intensity in enumerate(progress.intensities):
            for name, value in vars(intensity.contrast).items():
                arrays[f"{name}_{number}"] = value
        rest = {
            "levels": progress.levels,
            "mixtures": [asdict(intensity.mixture) for intensity in progress.intensities],
            "energies": [asdict(energy) for energy in progress.energies],
            "poses": [asdict(pose) for pose in progress.poses],
            "cuts": [asdict(cut) for cut in progress.cuts],
            "recoloured": progress.recoloured,
            "share": progress.share,
            "regions": progress.regions,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".new")
        with temporary.open("wb") as file:
            np.savez(file, rest=np.array(json.dumps(rest, default=_plain)), allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)

    def load(self) -> Progress | None:
        """Return what was kept last; None where nothing was, or it can't be read."""
        try:
            with np.load(self.path, allow_pickle=False) as file:
                arrays = dict(file)
        except (OSError, ValueError, zipfile.BadZipFile):
            return None
        rest: dict[str, Any] = json.loads(str(arrays["rest"]))
        names = ("coefficients", "to_nodes", "scale")
        intensities = [
            Intensity(
                Contrast(*(arrays[f"{name}_{number}"] for name in names)),
                Mixture(**{**mixture, "priors": tuple(mixture["priors"])}),
            )
            for number, mixture in enumerate(rest["mixtures"])
        ]
        return Progress(
            rest["levels"],
            arrays["to_atlas"],
            Motion(arrays["momentum"], arrays["velocity"]),
            tuple(intensities),
            [Energy(**energy) for energy in rest["energies"]],
            [Pose(**{**pose, "to_atlas": np.array(pose["to_atlas"])}) for pose in rest["poses"]],
            [Cut(**{**cut, "normal": np.array(cut["normal"])}) for cut in rest["cuts"]],
            tuple(rest["recoloured"]),
            rest["share"],
            rest["regions"],
        )


def digest(images: Iterable[Image], *more: object) -> str:
    """Return a hash of images, voxel by voxel, and of whatever else JSON can say."""
    result = hashlib.blake2b(digest_size=16)
    for image in images:
        for array in (image.values, image.weight, image.grid.affine):
            _take_up(result, array)
    result.update(json.dumps(more, default=_plain).encode())
    return result.hexdigest()


def digest_of(array: NDArray[Any]) -> str:
    """Return a hash of an array."""
    result = hashlib.blake2b(digest_size=16)
    _take_up(result, array)
    return result.hexdigest()


def _take_up(result: hashlib.blake2b, array: NDArray[Any]) -> None:
    result.update(str(array.shape).encode())
    result.update(np.ascontiguousarray(array).data)


def _plain(value: object) -> object:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else vars(value)
