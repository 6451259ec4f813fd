"""From tiles to a project: links, placement, and both written down as TeraStitcher does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from cloudreg.execution import Engine
from cloudreg.execution.progress import say
from cloudreg.settings import AlignSettings
from cloudreg.stitching.certainty import doubt_lines
from cloudreg.stitching.drift import Drifts, find_drifts, without_drift
from cloudreg.stitching.layers import FLOOR_PX
from cloudreg.stitching.links import (
    Link,
    Matrix,
    drift_layers,
    measure_again,
    measure_links,
    neighbours,
    search_radius_px,
)
from cloudreg.stitching.placement import Placement, place_tiles
from cloudreg.stitching.projections import WIDEST_PX, infinite_width_px, measure_displacements
from cloudreg.stitching.tree import place_by_tree
from cloudreg.tiles import (
    Acquisition,
    AxisDisplacement,
    Displacement,
    Project,
    ProjectTile,
    to_project,
    write_project,
)
from cloudreg.tiles.project import require_same_grid
from cloudreg.tiles.terastitcher_write import Step

if TYPE_CHECKING:
    from cloudreg.flatfield import Shading

Value = TypeVar("Value")

# Tiles in doubt are named in so many lines at most.
_MOST_LINES = 20
# Fewer links than these say nothing of the stage; a share of the tile's side by which it may be off.
_FEW_LINKS = 3
_WRONG_OVERLAP = 0.02
# A peak that is a Gaussian falls to 80 % where its curvature times the squared distance is this.
_FALL = 2 * math.log(1 / 0.8)


@dataclass(frozen=True)
class Alignment:
    """What was measured, and where the tiles were placed by it.

    Parameters
    ----------
    measured
        Every displacement that was found, none where an overlap was empty; tiles at their nominal positions.
    placed
        One displacement for each pair, nominal where none counted, and the tiles' positions.
    drifts
        How the tiles drift over their depth, where that was looked for and found; it is in both projects too.
    """

    measured: Project
    placed: Project
    drifts: Drifts | None = None


def align(
    acquisition: Acquisition, channel: int, shading: Shading | None, settings: AlignSettings, engine: Engine
) -> Project:
    """Find where the tiles of an acquisition lie.

    Parameters
    ----------
    acquisition, channel
        What to align by.
    shading
        Evens the tiles before they are compared, or None.
    settings
        Search window, smallest correlation, weight of the stage, and which methods.
    engine
        Runs the pairs of neighbours.

    Returns
    -------
    Project
        Positions to a fraction of a pixel. Links that did not vote or were rejected are nominal in it, with
        reliability 0.
    """
    return align_in_steps(acquisition, channel, shading, settings, engine).placed


def align_in_steps(
    acquisition: Acquisition,
    channel: int,
    shading: Shading | None,
    settings: AlignSettings,
    engine: Engine,
    *,
    start: Project | None = None,
) -> Alignment:
    """Do what `align` does, and keep what was measured; or go on from a project in which it was.

    Parameters
    ----------
    acquisition, channel, shading, settings, engine
        As for `align`.
    start
        A project of this acquisition, of any step: if it holds displacements, they are taken instead of measuring.

    Raises
    ------
    InputError
        If the project has another grid of tiles than the acquisition.
    """
    if start is not None:
        require_same_grid(acquisition, start)
    if start is not None and any(tile.east or tile.south for tile in start.tiles):
        fresh = to_project(acquisition, channel).drifting({(tile.row, tile.column): tile.drift for tile in start.tiles})
        measured = fresh.linked(
            {
                (tile.row, tile.column, side): displacements
                for tile in start.tiles
                for side, displacements in (("east", tile.east), ("south", tile.south))
            }
        )
    elif settings.method == "projections":
        measured = measure_displacements(acquisition, channel, shading, settings, engine)
    else:
        links = measure_links(acquisition, channel, shading, settings, engine)
        fresh, drifts = to_project(acquisition, channel), None
        if settings.drift == "layers":
            drifts = find_drifts(acquisition, links, settings)
            if drifts is not None:
                links = measure_again(acquisition, channel, shading, settings, engine, links, drifts.tiles)
                drifts = find_drifts(acquisition, links, settings)
            if drifts is not None:
                links, fresh = without_drift(links, drifts), fresh.drifting(_by_cell(acquisition, drifts.tiles))
            _report_drifts(acquisition, drifts, settings)
        radius = search_radius_px(acquisition, settings)
        found = [(link, (_displacement(link, radius),)) for link in links]
        measured = fresh.linked(
            {_side(acquisition, link): displacements for link, displacements in found if not link.is_empty}
        )
        if settings.placement == "least_squares":
            placement = place_tiles(acquisition, links, settings)
            project = fresh.linked({_side(acquisition, k): d for k, d in found})
            return Alignment(measured, _placed(acquisition, project, links, placement), drifts)
    kept = measured.thresholded(settings.minimum_reliability)
    if settings.placement == "tree":
        return Alignment(measured, place_by_tree(kept))
    links = links_of(acquisition, kept)
    return Alignment(measured, _placed(acquisition, kept, links, place_tiles(acquisition, links, settings)))


def write_steps(alignment: Alignment, folder: str | Path, settings: AlignSettings) -> None:
    """Write the project of each of TeraStitcher's steps into a new folder: ``xml_import.xml`` to ``xml_merging.xml``.

    TeraStitcher reads any of them and does the steps after it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    measured = alignment.measured
    steps: dict[Step, Project] = {
        "import": measured,
        "displcomp": measured,
        "displproj": measured.projected(),
        "displthres": measured.thresholded(settings.minimum_reliability),
        "merging": alignment.placed,
    }
    for step, project in steps.items():
        write_project(project, folder / f"xml_{step}.xml", step=step)


def reuse_alignment(project: Project, acquisition: Acquisition, channel: int) -> Project:
    """Return a project for another channel with the positions and displacements of one that was aligned.

    Raises
    ------
    InputError
        If there is no such channel, or the project has another grid of tiles than the acquisition.
    """
    require_same_grid(acquisition, project)
    known = {(tile.row, tile.column): tile for tile in project.tiles}
    fresh = to_project(acquisition, channel)

    def take(tile: ProjectTile) -> ProjectTile:
        aligned = known[tile.row, tile.column]
        return replace(
            tile,
            position_px=aligned.position_px,
            stitchable=aligned.stitchable,
            certainty=aligned.certainty,
            drift=aligned.drift,
            east=aligned.east,
            south=aligned.south,
            extras=aligned.extras,
        )

    return replace(fresh, origin_mm=project.origin_mm, axes=project.axes, extras=project.extras).mapped(take)


def links_of(acquisition: Acquisition, project: Project) -> list[Link]:
    """Return the displacements of a project as links; one of no reliability along any axis is empty."""
    links = []
    for first, second in neighbours(acquisition.tiles):
        one, other = acquisition.tiles[first], acquisition.tiles[second]
        cell = project.tile(one.row, one.column)
        (displacement,) = cell.south if other.row > one.row else cell.east
        nominal = np.subtract(acquisition.nominal_px(other), acquisition.nominal_px(one))
        axes = displacement.axes
        heights = [axis.peak for axis in axes if axis.reliability > 0]
        links.append(
            Link(
                first,
                second,
                _triple([axis.px if axis.reliability > 0 else n for axis, n in zip(axes, nominal, strict=True)]),
                _triple(nominal.tolist()),
                correlation=float(np.mean(heights)) if heights else math.nan,
                information=_diagonal([(axis.reliability / FLOOR_PX) ** 2 for axis in axes]),
                sharpness=_triple([_FALL / axis.width_px**2 if axis.reliability > 0 else 0.0 for axis in axes]),
            )
        )
    return links


def _placed(acquisition: Acquisition, project: Project, links: Sequence[Link], placement: Placement) -> Project:
    """Move the tiles of a project, and make nominal in it what did not vote or was rejected."""
    positions = _by_cell(acquisition, [_triple(position) for position in placement.positions_px.tolist()])
    certainties = _by_cell(acquisition, placement.certainties)
    displacements = {}
    for link, residual, outlier in zip(links, placement.residuals_px, placement.outliers, strict=True):
        row, column, side = _side(acquisition, link)
        if outlier or np.isnan(residual).any():
            cell = project.tile(row, column)
            (displacement,) = cell.south if side == "south" else cell.east
            z, y, x = (axis.rejected for axis in displacement.axes)
            displacements[row, column, side] = (replace(displacement, z=z, y=y, x=x),)
    placed = project.moved(positions, certainties).linked(displacements).thresholded()
    _report(acquisition, links, placement, placed)
    return placed


def _by_cell(acquisition: Acquisition, values: Sequence[Value]) -> dict[tuple[int, int], Value]:
    """Return what belongs to each tile by its row and column."""
    return {(tile.row, tile.column): value for tile, value in zip(acquisition.tiles, values, strict=True)}


def _side(acquisition: Acquisition, link: Link) -> tuple[int, int, str]:
    """Which of a project's lists a link belongs to."""
    first, second = acquisition.tiles[link.first], acquisition.tiles[link.second]
    return first.row, first.column, "south" if second.row > first.row else "east"


def _diagonal(values: Sequence[float]) -> Matrix:
    z, y, x = (_triple(row) for row in np.diag(values).tolist())
    return z, y, x


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    z, y, x = (float(v) for v in values)
    return z, y, x


def _displacement(link: Link, search_px: tuple[int, int, int]) -> Displacement:
    """Describe a link in TeraStitcher's terms: the half width is where the peak falls to 80 %."""
    infinite = infinite_width_px(search_px)
    axes = []
    for shift, nominal, sharpness, radius in zip(
        link.shift_px, link.nominal_px, link.sharpness, search_px, strict=True
    ):
        width = math.sqrt(_FALL / sharpness) if sharpness > 0 else infinite
        axes.append(
            AxisDisplacement(
                px=shift,
                nominal_px=math.trunc(nominal + 1e-6),
                peak=0.0 if link.is_empty else max(link.correlation, 0.0),
                width_px=min(width, infinite),
                largest_width_px=float(min(radius, WIDEST_PX)),
                infinite_width_px=infinite,
                search_px=radius,
            )
        )
    z, y, x = axes
    return Displacement(z, y, x)


def _report(acquisition: Acquisition, links: Sequence[Link], placement: Placement, placed: Project) -> None:
    empty = sum(link.is_empty for link in links)
    voted = ~np.isnan(placement.residuals_px).any(axis=1) & ~placement.outliers
    weak = len(links) - empty - int(voted.sum()) - int(placement.outliers.sum())
    say(
        f"align: {voted.sum()} of {len(links)} overlaps used, {empty} empty, {weak} below the smallest correlation, "
        f"{placement.outliers.sum()} contradicted by the others"
    )
    if voted.any():
        distance = np.linalg.norm(placement.residuals_px[voted], axis=1)
        say(f"align: residuals {np.median(distance):.2f} px median, {distance.max():.2f} px at most")
    if not voted.any() and len(acquisition.tiles) > 1:
        say("align: WARNING no overlap could be used: all tiles are placed by the stage")
    elif len(acquisition.tiles) > 1:
        lines = doubt_lines(placed)
        for line in lines[:_MOST_LINES]:
            say(f"align: WARNING {line}")
        if len(lines) > _MOST_LINES:
            say(f"align: WARNING {len(lines) - _MOST_LINES} more such lines: the report names all tiles")
    _doubt_the_overlap(acquisition, links, voted)


def _report_drifts(acquisition: Acquisition, drifts: Drifts | None, settings: AlignSettings) -> None:
    if not drift_layers(acquisition, settings):
        say(f"align: WARNING {acquisition.tile_shape[0]} planes are too few to see how tiles drift: none is looked for")
    if drifts is None:
        return
    far = [max(np.ptp(drift.y_px), np.ptp(drift.x_px)) for drift in drifts.tiles]
    most = int(np.argmax(far))
    say(f"align: tiles drift sideways over their depth, {acquisition.tiles[most].name} most, by {far[most]:.2f} px")
    for layer in drifts.layers:
        left = f"{layer.px:.2f} px left of a link (median of {layer.links}), {layer.straight_px:.2f} px without drift"
        say(f"align: around plane {layer.plane:.0f}: {left if layer.links else 'no overlap could be used'}")


def _doubt_the_overlap(acquisition: Acquisition, links: Sequence[Link], voted: NDArray[np.bool_]) -> None:
    """Say so if the tiles overlap by another share than the description states, or hardly at all."""
    for axis, word in ((1, "vertical"), (2, "horizontal")):
        mine = [k for k, link in enumerate(links) if abs(link.nominal_px[axis]) > abs(link.nominal_px[3 - axis])]
        if len(mine) < _FEW_LINKS:
            continue
        stated = acquisition.overlap[axis - 1]
        off = [links[k].shift_px[axis] - links[k].nominal_px[axis] for k in mine if voted[k]]
        if len(off) < 0.25 * len(mine):
            say(
                f"align: WARNING few {word} overlaps could be used: if there is tissue in the others, the stated "
                f"overlap of {stated:.1%} or the voxel size is wrong, or align.search_um is too small"
            )
        elif abs(share := float(np.median(off)) / acquisition.tile_shape[axis]) > _WRONG_OVERLAP:
            found = stated - share
            say(f"align: WARNING the {word} overlap is stated as {stated:.1%}; the tiles overlap by {found:.1%}")
