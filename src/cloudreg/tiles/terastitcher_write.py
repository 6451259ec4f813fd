"""Writing TeraStitcher's project files as its steps do; see `cloudreg.tiles.terastitcher_xml` for what is in them."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Literal
from xml.etree.ElementTree import Element, SubElement

from cloudreg.tiles.project import AxisDisplacement, Displacement, Extras, Project, ProjectTile
from cloudreg.tiles.terastitcher_xml import HEADER, ROOT, SIDES, whole_position, whole_px

Step = Literal["import", "displcomp", "displproj", "displthres", "merging"]

_HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE TeraStitcher SYSTEM "TeraStitcher.DTD">\n'


def write_project(project: Project, path: str | Path, *, step: Step) -> None:
    """Write a project as TeraStitcher does after one of its steps.

    Parameters
    ----------
    project
        Its displacements are left out at the step ``import`` and written as they are at ``displcomp``; from
        ``displproj`` on each pair of neighbours gets exactly one, see `Project.projected`.
    path
        Appears when it is whole.
    step
        The last one that was done.
    """
    if step == "import":
        project = project.mapped(lambda tile: replace(tile, east=(), south=(), stitchable=False, drift=None))
    elif step == "displcomp":
        project = project.mapped(lambda tile: replace(tile, stitchable=False))
    else:
        project = project.projected()
    root = _project_element(project)
    ElementTree.indent(root, "    ")
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(_HEAD + ElementTree.tostring(root, encoding="unicode") + "\n", encoding="utf-8")
    unfinished.replace(path)


def _project_element(project: Project) -> Element:
    root = Element(ROOT, volume_format=project.volume_format, input_plugin=project.input_plugin)

    def header(tag: str, *values: object) -> None:
        element = SubElement(root, tag, dict(zip(HEADER[tag], map(_text, values), strict=True)))
        _add(element, project.extras.get(tag, Extras()))

    z, y, x = project.voxel_size_um
    header("stacks_dir", str(project.stacks_dir))
    if project.cache is not None:
        header("mdata_bin", project.cache)
    if project.axes is not None:
        header("ref_sys", *project.axes)
    header("voxel_dims", y, x, z)
    header("origin", project.origin_mm[1], project.origin_mm[2], project.origin_mm[0])
    header("mechanical_displacements", *project.pitch_um)
    header("dimensions", project.rows, project.columns, project.slices)
    stacks = SubElement(root, "STACKS")
    for tile in project.tiles:
        stacks.append(_stack_element(project, tile))
    _add(stacks, project.extras.get("STACKS", Extras()))
    _add(root, project.extras.get(ROOT, Extras()))
    return root


def _stack_element(project: Project, tile: ProjectTile) -> Element:
    z, y, x = whole_position(tile.position_px)
    attributes: dict[str, object] = {
        "N_CHANS": tile.channels,
        "N_BYTESxCHAN": tile.bytes_per_channel,
        "ROW": tile.row,
        "COL": tile.column,
        "ABS_V": y,
        "ABS_H": x,
        "ABS_D": z,
        "STITCHABLE": "yes" if tile.stitchable else "no",
        "DIR_NAME": tile.name,
    }
    if tile.planes is not None:
        attributes["Z_RANGES"] = ";".join(f"[{a},{b})" for a, b in tile.planes)
    attributes["IMG_REGEX"] = tile.pattern
    if tile.position_px != (z, y, x):
        attributes |= {f"POSITION_{axis}": tile.position_px[i] for axis, i in (("V", 1), ("H", 2), ("D", 0))}
    if tile.certainty is not None:
        sigma = dict(zip(("D", "V", "H", "WORST"), (*tile.certainty.sigma_px, tile.certainty.worst_px), strict=True))
        attributes |= {f"SIGMA_{name}": float(f"{sigma[name]:.4g}") for name in ("V", "H", "D", "WORST")}
        attributes["STAGE_SHARE"] = float(f"{tile.certainty.stage_share:.4g}")
    if tile.drift is not None:
        known = {"PLANES": tile.drift.planes, "V": tile.drift.y_px, "H": tile.drift.x_px}
        attributes |= {f"DRIFT_{name}": ";".join(map(_text, values)) for name, values in known.items()}
    element = Element("Stack", {name: _text(value) for name, value in attributes.items()})
    north = project.tile(tile.row - 1, tile.column).south if tile.row else ()
    west = project.tile(tile.row, tile.column - 1).east if tile.column else ()
    lists = (_mirrored(north), tile.east, tile.south, _mirrored(west))
    for side, displacements in zip(SIDES, lists, strict=True):
        parent = SubElement(element, side)
        parent.extend(_displacement_element(d) for d in displacements)
    _add(element, tile.extras)
    return element


def _mirrored(displacements: tuple[Displacement, ...]) -> tuple[Displacement, ...]:
    """Return the displacements as the neighbour sees them: all three components negated."""

    def negate(axis: AxisDisplacement) -> AxisDisplacement:
        return replace(axis, px=-axis.px, nominal_px=-axis.nominal_px)

    return tuple(replace(d, z=negate(d.z), y=negate(d.y), x=negate(d.x)) for d in displacements)


def _displacement_element(displacement: Displacement) -> Element:
    element = Element("Displacement", TYPE=displacement.method)
    for tag, axis in (("V", displacement.y), ("H", displacement.x), ("D", displacement.z)):
        whole = whole_px(axis.px)
        values: dict[str, object] = {
            "displ": whole,
            "default_displ": axis.nominal_px,
            "reliability": float(f"{axis.reliability:.6g}"),
            "nccPeak": axis.peak,
            "nccWidth": axis.width_px,
            "nccWRangeThr": axis.largest_width_px,
            "nccInvWidth": axis.infinite_width_px,
            "delay": axis.search_px,
        }
        if axis.px != whole:
            values["displ_px"] = axis.px
        child = SubElement(element, tag, {name: _text(value) for name, value in values.items()})
        _add(child, axis.extras)
    _add(element, displacement.extras)
    return element


def _add(element: Element, extras: Extras) -> None:
    element.attrib.update(extras.attributes)
    element.extend(ElementTree.fromstring(text) for text in extras.elements)


def _text(value: object) -> str:
    """Write a number in full, and whole ones without a decimal point."""
    return f"{int(value)}" if isinstance(value, float) and value.is_integer() else str(value)
