"""The two text files that describe a COLM acquisition: ``Experiment.ini`` and ``Scanned Cells.txt``."""

from __future__ import annotations

import configparser
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.io.remote import RemotePath

PIXEL_UM = {4.0: 1.46, 10.0: 0.585, 25.0: 0.234}
"""Pixel size at 2048 pixels a side, by magnification of the objective."""

_FULL_SIDE = 2048

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Experiment:
    """What ``Experiment.ini`` says.

    Parameters
    ----------
    rows, columns
        Size of the stage grid.
    planes, height, width
        Size of a tile in pixels.
    step_um
        Distance of the planes.
    overlap
        Vertical and horizontal, fractions.
    channels
        How many were enabled.
    objective
        Its name, with the magnification before the first ``x``.
    pixel_um
        Where the file states it (a key of our own, for acquisitions that no such objective made); else None.
    """

    rows: int
    columns: int
    planes: int
    height: int
    width: int
    step_um: float
    overlap: tuple[float, float]
    channels: int
    objective: str
    pixel_um: float | None = None

    @property
    def pixel_size_um(self) -> float | None:
        """Size of a pixel: as stated, or that of the objective times the binning; None where neither tells."""
        return self.pixel_um or objective_pixel_um(self.objective, self.width)


def objective_pixel_um(objective: str, width: int) -> float | None:
    """Return the pixel size of a camera image of ``width`` pixels; None for an objective that is not in the table."""
    match = re.search(r"(\d+(?:\.\d+)?)\s*x", objective, re.IGNORECASE)
    full = PIXEL_UM.get(float(match[1])) if match else None
    return None if full is None else full * _FULL_SIDE / width


def read_experiment(path: Path | RemotePath) -> Experiment:
    """Read ``Experiment.ini``.

    Raises
    ------
    InputError
        If the file is missing, cut off, or lacks a value or holds one out of range.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise InputError(f"expected {path}, the description of a COLM acquisition: {error.strerror}") from error
    parser = configparser.ConfigParser(interpolation=None, strict=False, delimiters=("=",), allow_no_value=True)
    try:
        # Indented lines would be read as the continuation of the value before.
        parser.read_string("\n".join(line.strip() for line in text.splitlines()))
    except configparser.Error as error:
        reason = " ".join(str(error).split())
        raise InputError(f"expected sections and 'key = value' lines in {path}: {reason}") from error
    ini = _Ini(path, parser)
    region, stats, general = "North Scan Region", "North Scan Region Stats", "Experiment Settings"
    width = ini.number(general, "X Resolution", int)
    stated = ini.has("CloudReg", "Pixel Size (um)")
    return Experiment(
        rows=ini.number(region, "Num Vertical", int),
        columns=ini.number(region, "Num Horizontal", int),
        planes=ini.number(general, "Num in stack (Top Left Corner)", int),
        height=ini.number("CloudReg", "Y Resolution", int) if ini.has("CloudReg", "Y Resolution") else width,
        width=width,
        # Rounded to a femtometre: 0.0029 mm is 2.9 um, without the digits that binary fractions add.
        step_um=round(1000 * ini.number(region, "Stack Step (mm)", float), 9),
        overlap=(
            ini.percent(stats, "Actual Vertical Overlap (%)"),
            ini.percent(stats, "Actual Horizontal Overlap (%)"),
        ),
        channels=ini.number(general, "Num Enabled Channels", int),
        objective=ini.text("Objectives", "North"),
        pixel_um=ini.number("CloudReg", "Pixel Size (um)", float) if stated else None,
    )


def format_experiment(experiment: Experiment) -> str:
    """Return the text of an ``Experiment.ini``, with line ends as COLM writes them."""
    own = {}
    if experiment.pixel_um is not None:
        own["Pixel Size (um)"] = experiment.pixel_um
    if experiment.height != experiment.width:
        own["Y Resolution"] = experiment.height
    sections: dict[str, dict[str, object]] = {
        "Experiment Settings": {
            "X Resolution": experiment.width,
            "Num in stack (Top Left Corner)": experiment.planes,
            "Num Enabled Channels": experiment.channels,
        },
        "North Scan Region": {
            "Num Horizontal": experiment.columns,
            "Num Vertical": experiment.rows,
            "Stack Step (mm)": round(experiment.step_um / 1000, 12),
        },
        "North Scan Region Stats": {
            "Actual Horizontal Overlap (%)": round(100 * experiment.overlap[1], 10),
            "Actual Vertical Overlap (%)": round(100 * experiment.overlap[0], 10),
        },
        "Objectives": {"North": experiment.objective},
        **({"CloudReg": dict(own)} if own else {}),
    }
    lines = []
    for section, values in sections.items():
        lines += [f"[{section}]", *(f'{key} = "{value}"' for key, value in values.items())]
    return "".join(f"{line}\r\n" for line in lines)


def read_scanned_cells(path: Path | RemotePath, rows: int, columns: int) -> NDArray[np.bool_]:
    """Read which cells of the stage grid were imaged.

    Returns
    -------
    array
        (rows, columns).

    Raises
    ------
    InputError
        If the file is missing, or is no table of 0 and 1 of that shape.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise InputError(f"expected {path}, the grid of imaged cells: {error.strerror}") from error
    lines = [[cell.strip() for cell in line.split(",")] for line in text.strip().splitlines()]
    widths = {len(line) for line in lines}
    if len(lines) != rows or widths != {columns}:
        found = f"{len(lines)} line(s) of {' or '.join(str(w) for w in sorted(widths)) or 'no'} cell(s)"
        raise InputError(f"expected {rows} line(s) of {columns} cell(s) in {path} as Experiment.ini says, got {found}")
    wrong = {cell for line in lines for cell in line} - {"0", "1"}
    if wrong:
        raise InputError(f"expected 0 or 1 in each cell of {path}, got {min(wrong)!r}")
    return np.array([[cell == "1" for cell in line] for line in lines])


def format_scanned_cells(scanned: NDArray[np.bool_]) -> str:
    """Return the text of a ``Scanned Cells.txt``."""
    return "".join(",".join(str(int(cell)) for cell in row) + "\r\n" for row in scanned)


class _Ini:
    """Typed look-up in a parsed file, with errors that name the key."""

    def __init__(self, path: Path | RemotePath, parser: configparser.ConfigParser) -> None:
        self._path = path
        self._parser = parser

    def has(self, section: str, key: str) -> bool:
        return self._parser.has_option(section, key)

    def text(self, section: str, key: str) -> str:
        value = self._parser.get(section, key, fallback=None)
        if value is None or not value.strip():
            raise InputError(f"{self._path} has no '{key}' in [{section}]: it is not a whole Experiment.ini")
        value = value.strip()
        if value.startswith('"') and (len(value) == 1 or not value.endswith('"')):
            raise InputError(f"{self._path} breaks off in '{key}' of [{section}]: it is not a whole Experiment.ini")
        return value.strip('"').strip()

    def number(self, section: str, key: str, kind: Callable[[str], Number]) -> Number:
        value = self._convert(section, key, kind)
        if not value > 0:
            raise InputError(f"expected '{key}' in [{section}] of {self._path} to be above 0, got {value}")
        return value

    def percent(self, section: str, key: str) -> float:
        value = self._convert(section, key, float)
        if not 0 <= value < 100:
            raise InputError(f"expected '{key}' in [{section}] of {self._path} in 0 to 100, got {value}")
        return round(value / 100, 12)

    def _convert(self, section: str, key: str, kind: Callable[[str], Number]) -> Number:
        text = self.text(section, key)
        try:
            value = kind(text)
        except ValueError as error:
            raise InputError(f"expected a number for '{key}' in [{section}] of {self._path}, got {text!r}") from error
        if not math.isfinite(value):
            raise InputError(f"expected a finite number for '{key}' in [{section}] of {self._path}, got {text!r}")
        return value
