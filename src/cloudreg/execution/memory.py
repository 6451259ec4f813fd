"""How much memory and disk a stage may use."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

import psutil

from cloudreg.errors import InputError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def memory_budget_bytes(requested: str | int | None = None) -> int:
    """Return how many bytes a stage may hold at once.

    Parameters
    ----------
    requested
        Bytes, or text such as ``"4GB"`` or ``"512MiB"``; by default 60 % of what is free, the limit of a
        container included.

    Raises
    ------
    InputError
        If the text is no size, or the size is under 64 MB.
    """
    if requested is None:
        return int(0.6 * min(psutil.virtual_memory().available, _cgroup_free_bytes()))
    if isinstance(requested, str):
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*((?:[kmgt]i?)?)b?\s*", requested.lower())
        if match is None:
            raise InputError(f"a memory size is a number with a unit, such as 4GB or 512MiB; got {requested!r}")
        requested = int(float(match[1]) * _UNITS[match[2]])
    if requested < 64 * 10**6:
        raise InputError(f"a stage needs at least 64MB of memory; got {requested} bytes")
    return requested


def require_free_space(folder: str | Path, needed_bytes: int, what: str) -> None:
    """Refuse to start writing what the disk can't hold, or where this user may not.

    Parameters
    ----------
    folder
        Where the output will be; it need not exist yet.
    needed_bytes
        Upper bound of the output's size.
    what
        What will be written, for the message.

    Raises
    ------
    InputError
        If the disk has less free space than that, or a folder can't be made or written there.
    """
    existing = require_writable(folder, what)
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise InputError(
            f"{what} needs {needed_bytes / 1e9:.3g} GB and the disk of {existing} has {free / 1e9:.3g} GB free: "
            "make room or choose another output place"
        )


def require_writable(folder: str | Path, what: str) -> Path:
    """Refuse a place where nothing new can be made; nothing is left there.

    Parameters
    ----------
    folder
        Where the output will be; it need not exist yet.
    what
        What will be written, for the message.

    Returns
    -------
    Path
        The nearest folder above that exists.

    Raises
    ------
    InputError
        If that is no folder, or takes no new files.
    """
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(f"expected a folder at {existing} for {what}, got a file: choose another place")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"could not write {what}: you have no right to write in {existing}: choose another place")
    try:
        # Rights alone don't tell: /proc, and much that is mounted, gives them and takes no files.
        with tempfile.TemporaryFile(dir=existing):
            return existing
    except OSError as error:
        raise InputError(
            f"could not write {what}: no file can be made in {existing} ({error.strerror}): choose another place"
        ) from error


def _cgroup_free_bytes() -> int:
    """Bytes that a container's memory limit leaves free; very large where there is none."""
    root = Path(os.environ.get("CLOUDREG_CGROUP", "/sys/fs/cgroup"))
    try:
        limit = (root / "memory.max").read_text().strip()
        used = int((root / "memory.current").read_text())
    except OSError:
        return 2**62
    return 2**62 if limit == "max" else max(0, int(limit) - used)
