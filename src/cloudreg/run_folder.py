"""The folder of a run: the name of every output, the manifest, and what is already done.

A stage's *key* is a hash of its name, its settings and the keys of what it reads. A stage that is done under the same
key is skipped; one that was stopped under the same key goes on; one whose key changed is cleared and done again. As
keys contain keys, a change reaches exactly the stages that depend on it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cloudreg.errors import InputError
from cloudreg.execution import Ledger
from cloudreg.settings import RunSettings, Settings, save_settings

FORMAT = 5
"""Raised when a stage gives another result for the same settings, so that older outputs are not taken for it."""

_PARTS = ("command", "versions", "input.path", "input.fingerprints", "settings", "stages")
"""What the manifest of a run holds beside its kind."""

_LIBRARIES = ("cloudreg", "numpy", "scipy", "simpleitk", "tensorstore", "numba", "dask", "tifffile")


@dataclass(frozen=True)
class Stage:
    """One stage of a run: what it is called, whether there is anything to do, and which of its blocks are done.

    Lines that are added to ``warnings`` while it runs are kept in the manifest.
    """

    name: str
    key: str
    needed: bool
    ledger: Ledger
    warnings: list[str] = field(default_factory=list)


class RunFolder:
    """The name of every output of a run.

    Parameters
    ----------
    path
        Folder of the run; it need not exist yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def manifest(self) -> Path:
        """What ran: versions, command line, settings, input, and the state of each stage."""
        return self.path / "manifest.json"

    @property
    def settings(self) -> Path:
        """All settings, defaults included."""
        return self.path / "settings.yaml"

    @property
    def project(self) -> Path:
        """Where each tile lies: a TeraStitcher project."""
        return self.path / "project.xml"

    @property
    def seams(self) -> Path:
        """How well neighbouring tiles agree, before and after."""
        return self.path / "seams"

    @property
    def registration(self) -> Path:
        """The registration folder."""
        return self.path / "registration"

    @property
    def labels(self) -> Path:
        """The atlas's regions on the grid of the stitched volume, if it has any."""
        return self.registration / "labels_in_target.ome.zarr"

    @property
    def regions(self) -> Path:
        """The region table of every channel."""
        return self.path / "regions.csv"

    @property
    def report(self) -> Path:
        """The quality-control report."""
        return self.path / "report.html"

    @property
    def score(self) -> Path:
        """The errors against the truth, where the truth is known."""
        return self.path / "score.json"

    def shading(self, channel: int) -> Path:
        """Flat field and background of a channel's tiles."""
        return self.path / "shading" / f"channel_{channel:02d}"

    def stitched(self, channel: int) -> Path:
        """The fused volume of a channel."""
        return self.path / "stitched" / f"channel_{channel:02d}.ome.zarr"

    def bias(self, channel: int) -> Path:
        """The illumination field of a channel's fused volume."""
        return self.path / "corrected" / f"channel_{channel:02d}.bias"

    def corrected(self, channel: int) -> Path:
        """The fused volume of a channel with even illumination."""
        return self.path / "corrected" / f"channel_{channel:02d}.ome.zarr"

    def ledger(self, stage: str) -> Path:
        """Which blocks of a stage are done."""
        return self.path / ".ledger" / f"{stage}.txt"

    def read_manifest(self) -> dict[str, Any] | None:
        """Return the manifest; None where there is no such folder, or nothing in it yet.

        Raises
        ------
        InputError
            If the folder holds anything that is not a run.
        """
        if not self.path.exists():
            return None
        if not self.path.is_dir():
            raise InputError(f"expected a folder for the run at {self.path}, found a file: choose another place")
        if not self.manifest.exists():
            # A run killed in its first moments leaves its lock only.
            if any(entry.name not in {".lock", _temporary(self.manifest).name} for entry in self.path.iterdir()):
                raise InputError(
                    f"{self.path} exists and is not the folder of a run (it has no manifest.json): "
                    "choose another output folder"
                )
            return None
        manifest = load_manifest(self.path)
        if manifest.get("kind") != "run":
            raise InputError(f"{self.path} holds something other than a run: choose another folder")
        require_in_manifest(manifest, _PARTS, self.manifest)
        require_in_manifest(manifest, [f"stages.{stage}.status" for stage in manifest["stages"]], self.manifest)
        return manifest


def load_manifest(folder: Path) -> dict[str, Any]:
    """Return what is in the manifest of a run or of a registration.

    Raises
    ------
    InputError
        If it can't be read, or holds no values by name.
    """
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not readable ({error}): choose another folder") from error
    if not isinstance(manifest, dict):
        raise InputError(f"{path} is damaged: expected values by name, got {manifest!r:.40}: choose another folder")
    return manifest


def require_in_manifest(manifest: dict[str, Any], names: Sequence[str], path: Path) -> None:
    """Refuse a manifest that lacks something; ``a.b`` is what ``a`` holds under ``b``."""
    for name in names:
        place: Any = manifest
        for part in name.split("."):
            if not isinstance(place, dict) or part not in place:
                raise InputError(f"{path} is damaged: expected {name} in it, found none: choose another folder")
            place = place[part]


class Run:
    """An open run: does stages, and keeps the manifest true. Made by `open_run`."""

    def __init__(self, folder: RunFolder, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self._manifest = manifest

    @contextmanager
    def stage(
        self,
        name: str,
        *,
        settings: Settings | Mapping[str, Any],
        after: Sequence[Stage | str],
        outputs: Sequence[Path],
        resumable: bool = False,
    ) -> Iterator[Stage]:
        """Enter a stage; its body does the work if ``stage.needed``.

        Parameters
        ----------
        name
            Unique in the run.
        settings
            Everything, apart from what it reads, that its result depends on.
        after
            The stages it reads from, and fingerprints of other inputs.
        outputs
            Everything that it writes, inside the run's folder.
        resumable
            Whether the stage can go on from half of its outputs by its ledger. Otherwise it starts from nothing.
        """
        values = settings.model_dump(mode="json") if isinstance(settings, Settings) else dict(settings)
        key = _digest([FORMAT, name, values, [item.key if isinstance(item, Stage) else item for item in after]])
        record = self._manifest["stages"].get(name, {})
        same = record.get("key") == key
        complete = all(output.exists() for output in outputs)
        if same and record.get("status") == "done" and complete:
            yield Stage(name, key, False, Ledger(self.folder.ledger(name)))
            return
        names = [str(output.relative_to(self.folder.path)) for output in outputs]
        if not (same and resumable and record.get("status") != "done"):
            # The key goes first, so that a run killed while it clears never takes half an output for a whole one.
            self._record(name, key=None, status="clearing", outputs=sorted({*record.get("outputs", []), *names}))
            self._clear(name)
        self._record(name, key=key, status="running", outputs=names, started=_now())
        started, finished = time.monotonic(), False
        stage = Stage(name, key, True, Ledger(self.folder.ledger(name)))
        try:
            yield stage
            finished = True
        finally:
            self._manifest["stages"][name]["seconds"] = round(time.monotonic() - started, 3)
            self._manifest["stages"][name]["status"] = "done" if finished else "stopped"
            if stage.warnings:
                self._manifest["stages"][name]["warnings"] = stage.warnings
            self._save()

    def _record(self, name: str, **values: Any) -> None:
        self._manifest["stages"][name] = values
        self._save()

    def _clear(self, name: str) -> None:
        for relative in self._manifest["stages"][name]["outputs"]:
            output = self.folder.path / relative
            if output.is_dir():
                shutil.rmtree(output)
            else:
                output.unlink(missing_ok=True)
        self.folder.ledger(name).unlink(missing_ok=True)

    def _save(self) -> None:
        write_atomically(self.folder.manifest, json.dumps(self._manifest, indent=2) + "\n")


@contextmanager
def open_run(
    path: str | Path, *, source: str | Path, fingerprints: Mapping[str, str], settings: RunSettings, command: str
) -> Iterator[Run]:
    """Open a new run, or go on with one.

    Parameters
    ----------
    path
        Folder of the run.
    source, fingerprints
        Where the raw input lies, and a hash of each part of it. A run goes on if either is the one it began with:
        moved data has its old fingerprint, and changed data its old place.
    settings, command
        Written into the folder.

    Raises
    ------
    InputError
        If the folder holds something else, or another process runs in it; nothing is touched then.
    """
    folder = RunFolder(path)
    _require_same_input(folder, source, fingerprints)
    folder.path.mkdir(parents=True, exist_ok=True)
    with _lock(folder.path / ".lock"):
        earlier = _require_same_input(folder, source, fingerprints) or {}
        manifest = {
            "kind": "run",
            "format": FORMAT,
            "command": command,
            "versions": library_versions(),
            "input": {"path": str(Path(source).absolute()), "fingerprints": dict(fingerprints)},
            "settings": settings.model_dump(mode="json"),
            "stages": earlier.get("stages", {}),
        }
        run = Run(folder, manifest)
        run._save()
        save_settings(settings, folder.settings)
        yield run


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}}


def content_fingerprint(*paths: str | Path | None) -> str:
    """Return a hash of files and of all files under folders: their names and their bytes.

    Parameters
    ----------
    *paths
        None is skipped. Of what is not on this file system, the address counts.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        if path is None:
            continue
        root = Path(path)
        if not root.exists():
            digest.update(str(path).encode())
            continue
        for file in sorted(root.rglob("*")) if root.is_dir() else [root]:
            if file.is_file():
                digest.update(str(file.relative_to(root.parent)).encode())
                with file.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).digest())
    return digest.hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is, at any moment, either the old one or the whole new one."""
    temporary = _temporary(path)
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _require_same_input(
    folder: RunFolder, source: str | Path, fingerprints: Mapping[str, str]
) -> dict[str, Any] | None:
    manifest = folder.read_manifest()
    if manifest is not None:
        known = manifest["input"]
        moved = any(known["fingerprints"].get(name) == value for name, value in fingerprints.items())
        if known["path"] != str(Path(source).absolute()) and not moved:
            raise InputError(
                f"{folder.path} holds a run of {known['path']}, not of {source}: choose another output folder"
            )
    return manifest


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a file's lock; the system lets go of it when the process ends, however it ends."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"another cloudreg is running in {path.parent}: wait for it to end, or choose another output folder"
            ) from error
        yield


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
