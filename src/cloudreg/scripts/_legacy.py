"""What the modules of the 2021 interface share: their warning, their command lines, their paths."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cloudreg.errors import CloudRegError, InputError
from cloudreg.execution.progress import enable
from cloudreg.io.precomputed import PREFIX
from cloudreg.space import parse_orientation


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


def run(action: Callable[[argparse.Namespace], object], arguments: argparse.Namespace) -> int:
    """Do what a command line asks for; return its exit code, with an error as one line.

    Parameters
    ----------
    action
        Takes the arguments.
    arguments
        As parsed.
    """
    enable()
    try:
        action(arguments)
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


def three(values: ArrayLike, what: str) -> NDArray[np.float64]:
    """Return three numbers x, y, z, for one number or for three."""
    given = np.atleast_1d(np.asarray(values, dtype=float))
    if given.shape not in ((1,), (3,)) or not np.isfinite(given).all():
        raise InputError(f"expected one number or three (x, y, z) for the {what}, got {given.tolist()}")
    return np.broadcast_to(given, 3).copy()


def axis_letters(letters: str) -> str:
    """Return BrainGlobe's letters (z, y, x, the side where an axis starts) for those of 2021 (x, y, z, where it goes).

    Examples
    --------
    >>> axis_letters("PIR")
    'lsa'
    """
    opposite = dict(zip("apsilr", "paisrl", strict=True))
    return "".join(opposite[letter] for letter in reversed(parse_orientation(letters)))
