"""From tiles to a project: links, placement, and both written down as TeraStitcher does."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from cloudreg.execution import Engine
from cloudreg.execution.progress import say
from cloudreg.settings import AlignSettings
from cloudreg.stitching.links import Link, measure_links, search_radius_px
from cloudreg.stitching.placement import Placement, place_tiles
from cloudreg.tiles import Acquisition, AxisDisplacement, Displacement, Project, to_project

if TYPE_CHECKING:
    from cloudreg.flatfield import Shading

# TeraStitcher looks at half widths up to this many pixels.
_WIDEST_PX = 29


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
        Search window, smallest correlation, weight of the stage.
    engine
        Runs the pairs of neighbours.

    Returns
    -------
    Project
        Positions to a fraction of a pixel. Links that did not vote or were rejected are nominal in it, with
        reliability 0.
    """
    links = measure_links(acquisition, channel, shading, settings, engine)
    placement = place_tiles(acquisition, links, settings)
    _report(acquisition, links, placement)
    project = to_project(acquisition, channel)
    places = [(tile.row, tile.column) for tile in acquisition.tiles]
    positions = {
        place: (float(z), float(y), float(x))
        for place, (z, y, x) in zip(places, placement.positions_px.tolist(), strict=True)
    }
    radius = search_radius_px(acquisition, settings)
    displacements = {}
    for link, residual, outlier in zip(links, placement.residuals_px, placement.outliers, strict=True):
        (row, column), (other, _) = places[link.first], places[link.second]
        displacement = _displacement(link, radius)
        if outlier or np.isnan(residual).any():
            z, y, x = (axis.rejected for axis in displacement.axes)
            displacement = replace(displacement, z=z, y=y, x=x)
        displacements[row, column, "south" if other > row else "east"] = (displacement,)
    return project.moved(positions).linked(displacements).thresholded()


def _displacement(link: Link, search_px: tuple[int, int, int]) -> Displacement:
    """Describe a link in TeraStitcher's terms: the half width is where the peak falls to 80 %."""
    infinite = 1.0 + max(min(radius, _WIDEST_PX) for radius in search_px)
    axes = []
    for shift, nominal, sharpness, radius in zip(
        link.shift_px, link.nominal_px, link.sharpness, search_px, strict=True
    ):
        width = math.sqrt(2 * math.log(1 / 0.8) / sharpness) if sharpness > 0 else infinite
        axes.append(
            AxisDisplacement(
                px=shift,
                nominal_px=math.trunc(nominal + 1e-6),
                peak=0.0 if link.is_empty else max(link.correlation, 0.0),
                width_px=min(width, infinite),
                largest_width_px=float(min(radius, _WIDEST_PX)),
                infinite_width_px=infinite,
                search_px=radius,
            )
        )
    z, y, x = axes
    return Displacement(z, y, x)


def _report(acquisition: Acquisition, links: list[Link], placement: Placement) -> None:
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
    if placement.stage_only and len(acquisition.tiles) > 1:
        names = ", ".join(acquisition.tiles[i].name for i in placement.stage_only)
        what = "no overlap could be used: all tiles are" if not voted.any() else f"{names}: no usable overlap,"
        say(f"align: WARNING {what} placed by the stage")
