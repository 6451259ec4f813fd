"""What the modules of the 2021 interface share: their warning, their command lines, their paths."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from cloudreg.errors import CloudRegError
from cloudreg.execution import Engine
from cloudreg.execution.progress import enable
from cloudreg.io.precomputed import PREFIX


def moved(module: str, new: str) -> None:
    """Warn that a module is of 2021; silent where another module of this package imports it.

    Parameters
    ----------
    module
        Its name in ``cloudreg.scripts``.
    new
        What to use instead.
    """
    frame = sys._getframe(2)
    while frame.f_back is not None and "importlib" in frame.f_globals.get("__name__", ""):
        frame = frame.f_back
    importer = str(frame.f_globals.get("__name__", ""))
    spec = frame.f_globals.get("__spec__")
    if importer.startswith("cloudreg.scripts.") or getattr(spec, "name", "").startswith("cloudreg.scripts."):
        return
    warnings.warn(
        f"cloudreg.scripts.{module} is the interface of 2021, kept for old scripts: use {new}",
        FutureWarning,
        stacklevel=3,
    )


def run(action: Callable[[], object]) -> int:
    """Do what a command line asks for; return its exit code, with an error as one line."""
    enable()
    try:
        action()
    except (CloudRegError, OSError, MemoryError) as error:
        line = " ".join(str(error).split()) or type(error).__name__
        print(f"error: {line}", file=sys.stderr)
        return error.exit_code if isinstance(error, CloudRegError) else 1
    return 0


def boolean(text: str) -> bool:
    """Read ``True`` or ``False`` as the 2021 command lines wrote them.

    Examples
    --------
    >>> boolean("False")
    False
    """
    values = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"expected True or False, got {text!r}")
    return values[text.lower()]


def text_or_none(text: str) -> str | None:
    """Read a path that may be left out by the word ``None`` or nothing."""
    return None if text in ("None", "") else text


def precomputed(path: str) -> str:
    """Return the address of a precomputed volume with the prefix that says so."""
    return path if path.startswith(PREFIX) else PREFIX + path


def scalar_or_three(values: float | Sequence[float]) -> tuple[float, float, float]:
    """Return three numbers for one number, or for three."""
    listed = [float(v) for v in values] if isinstance(values, Sequence) else [float(values)]
    x, y, z = listed * 3 if len(listed) == 1 else listed
    return x, y, z


@contextmanager
def engine(workers: int | None = None) -> Iterator[Engine]:
    """Run blocks on this machine, by default with one worker a core."""
    with Engine(workers=workers) as running:
        yield running
