"""The registration folder: everything that a registration leaves behind, and how to open it again."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cloudreg.atlas import Atlas, load_atlas
from cloudreg.errors import InputError
from cloudreg.execution import Engine
from cloudreg.illumination import save_bias
from cloudreg.io import Kind, Volume, create_volume, open_volume
from cloudreg.registration.register import Registration
from cloudreg.registration.trust import TRUST, region_trust, write_trust_csv
from cloudreg.run_folder import load_manifest, require_in_manifest
from cloudreg.space import Box, Grid
from cloudreg.transforms import Frame, Transform, apply_image

MANIFEST = "manifest.json"
LABELS_IN_TARGET = "labels_in_target.ome.zarr"
TEMPLATE_IN_TARGET = "template_in_target.ome.zarr"
TARGET_IN_ATLAS = "target_in_atlas.ome.zarr"
WEIGHTS = "weights.ome.zarr"
ENERGIES = "energies.csv"
BIAS = "bias"
_FORMAT = 1
_PARTS = (
    *("target.path", "target.channel", "target.grid", "target.orientation", "figures"),
    *("atlas.name", "atlas.source", "atlas.orientation", "atlas.template_grid"),
)
"""What is needed of the manifest to open the folder, beside its format."""
_FRAMES = (
    "Lengths in micrometres; vectors and matrices in order z y x. With A the affine, atlas x goes to target "
    "y = A (x + displacement_atlas_to_target(x)); target y comes from atlas x = q + displacement_target_to_atlas(q), "
    "q = inverse A (y). Both displacements lie on grids in atlas space."
)


@dataclass(frozen=True)
class OpenRegistration:
    """A registration read back from its folder.

    Parameters
    ----------
    folder
        Where it lies.
    transform
        Between atlas and target.
    manifest
        Contents of ``manifest.json``.
    """

    folder: Path
    transform: Transform
    manifest: dict[str, Any]

    @property
    def target_path(self) -> str:
        """Path of the volume that was registered."""
        return str(self.manifest["target"]["path"])

    @property
    def target_grid(self) -> Grid:
        """Grid of the volume that was registered."""
        return Grid.from_dict(self.manifest["target"]["grid"])

    @property
    def target_orientation(self) -> str | None:
        """Letters of the target's physical axes, if they were known."""
        letters = self.manifest["target"]["orientation"]
        return None if letters is None else str(letters)

    @property
    def target_frame(self) -> Frame:
        """Where the volume that was registered lies."""
        return Frame(self.target_grid, self.target_orientation)

    @property
    def atlas_frame(self) -> Frame:
        """Where the template lies."""
        atlas = self.manifest["atlas"]
        return Frame(Grid.from_dict(atlas["template_grid"]), str(atlas["orientation"]))

    def open_target(self, path: str | None = None, *, kind: Kind = "image") -> Volume:
        """Open the volume that was registered, or another one of its grid, where it lay: whatever the file says.

        Raises
        ------
        InputError
            If there is no such volume, or it has another shape.
        """
        grid = self.target_grid
        volume = open_volume(path or self.target_path, voxel_size_um=grid.voxel_size_um, kind=kind)
        if volume.grid.shape != grid.shape:
            raise InputError(
                f"expected a volume of shape {grid.shape}, that of the registered one, at {volume.path}, "
                f"got {volume.grid.shape}: resample it first with cloudreg apply"
            )
        return replace(volume.placed(grid.affine), orientation=self.target_orientation)

    def open_atlas(self) -> Atlas:
        """Open the atlas that was registered to."""
        return load_atlas(**self.manifest["atlas"]["source"])


def write_registration(
    registration: Registration,
    target: Volume,
    atlas: Atlas,
    folder: str | Path,
    *,
    engine: Engine,
    channel: int = 0,
    settings: dict[str, Any] | None = None,
) -> OpenRegistration:
    """Write transform, resampled volumes, maps and figures; ``manifest.json`` comes last and marks the folder whole.

    Parameters
    ----------
    registration
        From `cloudreg.registration.register_volume`.
    target, atlas
        What was registered.
    folder
        New, or an unfinished registration of the same.
    engine
        Runs the blocks.
    channel
        Of the target.
    settings
        Kept in the manifest.

    Raises
    ------
    InputError
        If the disk is too small for the volumes, or the folder holds another registration.
    """
    from cloudreg import __version__

    folder = Path(folder)
    if (folder / MANIFEST).exists():
        raise InputError(f"{folder} already holds a registration: choose another folder or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    transform = registration.transform
    transform.save(folder)
    _write_energies(registration, folder / ENERGIES)
    _write_weights(registration, target, folder / WEIGHTS)
    for number, bias in registration.biases.items():
        save_bias(bias, folder / BIAS / f"channel_{number:02d}")
    if atlas.labels is not None:
        write_trust_csv(region_trust(registration, atlas), folder / TRUST)
    pulled = [(atlas.template, TEMPLATE_IN_TARGET, False)]
    if atlas.labels is not None:
        pulled.append((atlas.labels, LABELS_IN_TARGET, True))
    for source, name, labels in pulled:
        apply_image(
            transform,
            source,
            target.grid,
            str(folder / name),
            to="target",
            labels=labels,
            engine=engine,
            orientation=target.orientation,
        )
    apply_image(
        transform,
        target,
        atlas.template.grid,
        str(folder / TARGET_IN_ATLAS),
        to="atlas",
        labels=False,
        engine=engine,
        channel=channel,
        orientation=atlas.orientation,
    )
    manifest = {
        "format": _FORMAT,
        "version": __version__,
        "frames": _FRAMES,
        "target": {
            "path": target.path,
            "channel": channel,
            "grid": target.grid.to_dict(),
            "orientation": target.orientation,
        },
        "atlas": {
            "name": atlas.name,
            "source": dict(atlas.source),
            "orientation": atlas.orientation,
            "template_grid": atlas.template.grid.to_dict(),
        },
        "scales_um": asdict(registration.scales),
        "figures": registration.figures,
        "settings": settings,
    }
    unfinished = folder / (MANIFEST + ".unfinished")
    unfinished.write_text(json.dumps(manifest, indent=2) + "\n")
    unfinished.replace(folder / MANIFEST)
    return OpenRegistration(folder, transform, manifest)


def open_registration(folder: str | Path) -> OpenRegistration:
    """Open a registration folder.

    Raises
    ------
    InputError
        If it is none, is unfinished, or was written by a newer program.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise InputError(
            f"expected a finished registration folder (with {MANIFEST}) at {folder}: run cloudreg register first"
        )
    manifest = load_manifest(folder)
    if manifest.get("format") != _FORMAT:
        raise InputError(f"{folder} is no registration of format {_FORMAT}: got {manifest.get('format')!r}")
    require_in_manifest(manifest, _PARTS, folder / MANIFEST)
    return OpenRegistration(folder, Transform.load(folder), manifest)


def _write_energies(registration: Registration, path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(registration.energies[0]))
        writer.writeheader()
        writer.writerows(registration.energies)


def _write_weights(registration: Registration, target: Volume, path: Path) -> None:
    """Write the posteriors of matching tissue and artifact, times the data weight."""
    grid = registration.target_grid
    writer = create_volume(
        str(path),
        grid,
        np.dtype(np.float32),
        channels=2,
        orientation=target.orientation,
        levels=1,
        channel_names=["match", "artifact"],
    )
    weight = registration.target.weight
    for number, posterior in enumerate((registration.explanation.match, registration.explanation.artifact)):
        writer.write(Box.whole(grid.shape), posterior * weight, channel=number)
    writer.complete()
