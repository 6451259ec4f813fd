"""TeraStitcher's project files, one schema for all of its steps: the names in them, and a lenient reader.

TeraStitcher's positions and displacements are whole pixels. Ours are real numbers: the attributes that TeraStitcher
reads hold them rounded, and attributes that it does not know (``POSITION_V`` …, ``displ_px``) hold them whole. Others
(``SIGMA_V`` …) say how well a position is known, and how a tile drifts sideways over its depth (``DRIFT_V`` …): its
position is the mean then, and who does not know these attributes lays it there, straight.
Its axes are V = vertical = y, H = horizontal = x, D = depth = z.
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Collection
from pathlib import Path
from xml.etree.ElementTree import Element

from cloudreg.errors import InputError
from cloudreg.execution.progress import say
from cloudreg.tiles.acquisition import Intervals
from cloudreg.tiles.project import (
    AxisDisplacement,
    Certainty,
    Displacement,
    Drift,
    Extras,
    Project,
    ProjectTile,
    Triple,
)

ROOT = "TeraStitcher"
HEADER = {
    "stacks_dir": ("value",),
    "mdata_bin": ("value",),
    "ref_sys": ("ref1", "ref2", "ref3"),
    "voxel_dims": ("V", "H", "D"),
    "origin": ("V", "H", "D"),
    "mechanical_displacements": ("V", "H"),
    "dimensions": ("stack_rows", "stack_columns", "stack_slices"),
}
SIDES = tuple(f"{side}_displacements" for side in ("NORTH", "EAST", "SOUTH", "WEST"))

_ROOT_NAMES = ("volume_format", "input_plugin")
_STACK_NAMES = (
    *("N_CHANS", "N_BYTESxCHAN", "ROW", "COL", "ABS_V", "ABS_H", "ABS_D", "STITCHABLE", "DIR_NAME", "Z_RANGES"),
    *("IMG_REGEX", "POSITION_V", "POSITION_H", "POSITION_D"),
    *("SIGMA_V", "SIGMA_H", "SIGMA_D", "SIGMA_WORST", "STAGE_SHARE"),
    *("DRIFT_PLANES", "DRIFT_V", "DRIFT_H"),
)
_AXIS_NAMES = (
    *("displ", "default_displ", "reliability", "nccPeak", "nccWidth", "nccWRangeThr", "nccInvWidth", "delay"),
    "displ_px",
)
_INTERVAL = re.compile(r"\[\s*(\d+)\s*,\s*(\d+)\s*\)")


def read_project(path: str | Path) -> Project:
    """Read a TeraStitcher project of any step.

    Displacements towards east and south are believed; those towards west and north are their mirror images. What the
    format does not know is kept.

    Raises
    ------
    InputError
        If the file is missing, is no such XML, lacks what can't be guessed, or contradicts itself.
    """
    path = Path(path)
    try:
        # Expat fetches no DTD.
        root = ElementTree.fromstring(path.read_bytes())
    except OSError as error:
        raise InputError(f"expected a TeraStitcher project at {path}: {error.strerror}") from error
    except ElementTree.ParseError as error:
        raise InputError(f"expected a TeraStitcher project in XML at {path}: {error}") from error
    if root.tag != ROOT:
        raise InputError(f"expected the XML of a TeraStitcher project in {path}, its root is <{root.tag}>")
    return _Reader(path).project(root)


class _Reader:
    """Takes a document apart, with errors that name the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def project(self, root: Element) -> Project:
        if root.get("volume_format") == "MultiVolume":
            raise InputError(f"{self._path} lists the projects of several channels: choose one of those")
        dimensions = self._child(root, "dimensions")
        rows, columns = self._whole(dimensions, "stack_rows"), self._whole(dimensions, "stack_columns")
        slices = self._whole(dimensions, "stack_slices")
        stacks = self._child(root, "STACKS").findall("Stack")
        if len(stacks) != rows * columns:
            raise InputError(f"expected {rows} x {columns} <Stack> elements in {self._path}, got {len(stacks)}")
        voxel, pitch = self._child(root, "voxel_dims"), self._child(root, "mechanical_displacements")
        origin, reference, cache = root.find("origin"), root.find("ref_sys"), root.find("mdata_bin")
        extras = {
            ROOT: _extras(root, _ROOT_NAMES, (*HEADER, "STACKS")),
            "STACKS": _extras(self._child(root, "STACKS"), (), ("Stack",)),
        }
        for tag, names in HEADER.items():
            if (found := root.find(tag)) is not None:
                extras[tag] = _extras(found, names, ())
        size = self._triple(voxel, "")
        if min(size) <= 0:
            raise InputError(f"expected <voxel_dims> above 0 in {self._path}, got {size}")
        return Project(
            rows=rows,
            columns=columns,
            slices=slices,
            voxel_size_um=size,
            pitch_um=(self._real(pitch, "V"), self._real(pitch, "H")),
            stacks_dir=Path(self._child(root, "stacks_dir").get("value", "")),
            tiles=tuple(self._tile(stack, *divmod(i, columns), slices) for i, stack in enumerate(stacks)),
            origin_mm=(0.0, 0.0, 0.0) if origin is None else self._triple(origin, ""),
            axes=None if reference is None else self._axes(reference),
            volume_format=root.get("volume_format", "TiledXY|2Dseries"),
            input_plugin=root.get("input_plugin", "tiff2D"),
            cache=None if cache is None else cache.get("value"),
            extras={tag: extra for tag, extra in extras.items() if extra != Extras()},
        )

    def _tile(self, stack: Element, row: int, column: int, slices: int) -> ProjectTile:
        stated = stack.get("ROW", str(row)), stack.get("COL", str(column))
        if stated != (str(row), str(column)):
            say(f"{self._path}: tile {row}, {column} calls itself {', '.join(stated)}; its place in the file counts")
        rounded = self._triple(stack, "ABS_")
        exact = self._triple(stack, "POSITION_") if "POSITION_V" in stack.keys() else rounded  # noqa: SIM118
        # A tool that knows nothing of our attributes may have moved the tile.
        ours = whole_position(exact) == whole_position(rounded)
        position = exact if ours else rounded
        ranges = stack.get("Z_RANGES")
        return ProjectTile(
            row,
            column,
            name=stack.get("DIR_NAME", ""),
            position_px=position,
            planes=None if ranges is None else self._intervals(ranges, slices),
            pattern=stack.get("IMG_REGEX", ""),
            stitchable=stack.get("STITCHABLE", "no").strip().lower() == "yes",
            east=self._displacements(stack, "EAST"),
            south=self._displacements(stack, "SOUTH"),
            channels=self._whole(stack, "N_CHANS", 1),
            bytes_per_channel=self._whole(stack, "N_BYTESxCHAN", 2),
            certainty=self._certainty(stack) if ours and "SIGMA_WORST" in stack.keys() else None,  # noqa: SIM118
            drift=self._drift(stack) if "DRIFT_PLANES" in stack.keys() else None,  # noqa: SIM118
            extras=_extras(stack, _STACK_NAMES, SIDES),
        )

    def _certainty(self, stack: Element) -> Certainty:
        worst, share = (self._real(stack, name) for name in ("SIGMA_WORST", "STAGE_SHARE"))
        return Certainty(self._triple(stack, "SIGMA_"), worst, share)

    def _drift(self, stack: Element) -> Drift:
        texts = [stack.get(f"DRIFT_{name}", "") for name in ("PLANES", "V", "H")]
        try:
            planes, down, right = (tuple(float(part) for part in text.split(";")) for text in texts)
            if not all(map(math.isfinite, planes + down + right)):
                raise ValueError("not all are finite")
            return Drift(planes, down, right)
        except ValueError as error:
            raise InputError(
                f"expected DRIFT_PLANES, DRIFT_V and DRIFT_H of equally many numbers such as '0;99.5;199' in "
                f"{self._path}, planes ascending: {error}"
            ) from error

    def _displacements(self, stack: Element, side: str) -> tuple[Displacement, ...]:
        found = stack.find(f"{side}_displacements")
        return () if found is None else tuple(self._displacement(d) for d in found.findall("Displacement"))

    def _displacement(self, element: Element) -> Displacement:
        return Displacement(
            z=self._axis(self._child(element, "D")),
            y=self._axis(self._child(element, "V")),
            x=self._axis(self._child(element, "H")),
            method=element.get("TYPE", "MIP_NCC"),
            extras=_extras(element, ("TYPE",), ("V", "H", "D")),
        )

    def _axis(self, element: Element) -> AxisDisplacement:
        whole = self._real(element, "displ")
        exact = self._real(element, "displ_px", whole)
        return AxisDisplacement(
            px=exact if whole_px(exact) == whole_px(whole) else whole,
            nominal_px=self._whole(element, "default_displ"),
            peak=self._real(element, "nccPeak", 0),
            width_px=self._real(element, "nccWidth", 30),
            largest_width_px=self._real(element, "nccWRangeThr", 29),
            infinite_width_px=self._real(element, "nccInvWidth", 30),
            search_px=self._whole(element, "delay", -1),
            extras=_extras(element, _AXIS_NAMES, ()),
        )

    def _axes(self, element: Element) -> tuple[int, int, int]:
        return self._whole(element, "ref1"), self._whole(element, "ref2"), self._whole(element, "ref3")

    def _intervals(self, text: str, slices: int) -> Intervals:
        intervals = tuple((int(a), int(b)) for a, b in _INTERVAL.findall(text))
        if _INTERVAL.sub("", text).strip("; \t\r\n") or any(a >= b for a, b in intervals):
            raise InputError(f"expected Z_RANGES such as '[0,17);[19,40)' in {self._path}, got {text!r}")
        ends = [end for interval in intervals for end in interval]
        if ends != sorted(ends) or max(ends, default=0) > slices:
            raise InputError(
                f"expected Z_RANGES that ascend within [0,{slices}) in {self._path}, got {text!r}: mend them, or "
                "stack_slices"
            )
        return intervals

    def _child(self, parent: Element, tag: str) -> Element:
        child = parent.find(tag)
        if child is None:
            raise InputError(f"expected <{tag}> in <{parent.tag}> of {self._path}: it is not a whole project")
        return child

    def _triple(self, element: Element, prefix: str) -> Triple:
        """Return D, V, H, which are our z, y, x."""
        d, v, h = (self._real(element, prefix + axis) for axis in "DVH")
        return d, v, h

    def _whole(self, element: Element, name: str, default: int | None = None) -> int:
        return whole_px(self._real(element, name, default))

    def _real(self, element: Element, name: str, default: float | None = None) -> float:
        text = element.get(name, "" if default is None else str(default))
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise InputError(f"expected a number for {name} of <{element.tag}> in {self._path}, got {text!r}")
        return value


def whole_px(value: float) -> int:
    """Round to the nearest pixel, halves up."""
    return math.floor(value + 0.5)


def whole_position(position: Triple) -> tuple[int, int, int]:
    """Round a position (z, y, x) to whole pixels."""
    z, y, x = position
    return whole_px(z), whole_px(y), whole_px(x)


def _extras(element: Element, attributes: Collection[str], children: Collection[str]) -> Extras:
    unknown = (
        ElementTree.tostring(child, encoding="unicode").strip() for child in element if child.tag not in children
    )
    return Extras({k: v for k, v in element.attrib.items() if k not in attributes}, tuple(unknown))
