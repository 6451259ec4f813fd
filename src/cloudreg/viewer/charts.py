"""Charts of a report as inline SVG, in one style."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cloudreg.viewer.pictures import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, LINE = "#1c2430", "#667085", "#dfe3e8"
ACCENT, WARM, COOL = "#0b7285", "#e8590c", "#748ffc"
_STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "svg.hashsalt": "cloudreg",
}


@contextmanager
def _chart(charts: list[Picture], caption: str, width: float, height: float) -> Iterator[Axes]:
    """Give axes to draw on; append the finished chart."""
    with _figure(charts, caption, width, height) as figure:
        yield figure.subplots()


@contextmanager
def _figure(charts: list[Picture], caption: str, width: float, height: float) -> Iterator[Figure]:
    """Give a figure to draw on; append the finished chart."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure
        text = StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    encoded = base64.b64encode(text.getvalue().encode()).decode()
    charts.append(Picture(f"data:image/svg+xml;base64,{encoded}", caption, width / height))


def tile_layout(
    corners_um: NDArray[np.float64],
    size_um: tuple[float, float],
    names: Sequence[str],
    links: Sequence[tuple[int, int, float]],
    caption: str,
) -> Picture:
    """Draw where the tiles lie and how well neighbours match.

    Parameters
    ----------
    corners_um
        (n, 2): first row and column of each tile.
    size_um
        Height and width of a tile.
    names
        Of the tiles.
    links
        First tile, second tile, correlation (NaN where their overlap was empty).
    caption
        Line under the chart.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    charts: list[Picture] = []
    height, width = size_um
    with _chart(charts, caption, 5.6, 4.0) as axes:
        for (top, left), name in zip(corners_um, names, strict=True):
            axes.add_patch(Rectangle((left, top), width, height, facecolor="#0b728512", edgecolor=MUTED, linewidth=0.7))
            axes.text(left + width / 2, top + 0.22 * height, name, ha="center", va="center", color=MUTED, fontsize=7)
        colours = ScalarMappable(Normalize(0, 1), "viridis")
        centres = corners_um + np.asarray(size_um) / 2
        for first, second, correlation in links:
            ends = centres[[first, second]]
            measured = np.isfinite(correlation)
            axes.plot(
                ends[:, 1],
                ends[:, 0],
                color=colormaps["viridis"](correlation) if measured else MUTED,
                linewidth=3 if measured else 1,
                linestyle="-" if measured else ":",
                solid_capstyle="round",
            )
        axes.plot(centres[:, 1], centres[:, 0], "o", color=INK, markersize=3)
        axes.set_xlim(corners_um[:, 1].min() - 0.05 * width, corners_um[:, 1].max() + 1.05 * width)
        axes.set_ylim(corners_um[:, 0].max() + 1.05 * height, corners_um[:, 0].min() - 0.05 * height)
        axes.set_aspect("equal")
        axes.grid(visible=False)
        axes.set_xlabel("columns, µm")
        axes.set_ylabel("rows, µm")
        bar = axes.figure.colorbar(colours, ax=axes, shrink=0.8, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_label("correlation of the overlap")
    return charts[0]


def histogram(values: NDArray[np.float64], label: str, counted: str, caption: str) -> Picture:
    """Draw how values are distributed, with their median."""
    from matplotlib.ticker import MaxNLocator

    charts: list[Picture] = []
    values = values[np.isfinite(values)]
    with _chart(charts, caption, 4.6, 3.0) as axes:
        if values.size:
            axes.hist(values, bins=min(40, max(8, values.size // 3)), color=ACCENT, alpha=0.85)
            axes.axvline(float(np.median(values)), color=WARM, linewidth=1.5)
            axes.set_title(f"median {np.median(values):.3g}", color=WARM)
        axes.set_xlabel(label)
        axes.set_ylabel(counted)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="x", visible=False)
    return charts[0]


def lines(
    series: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
    x: str,
    y: str,
    caption: str,
    *,
    logarithmic: bool = False,
) -> Picture:
    """Draw named curves of (x, y), the latter perhaps on a logarithmic scale."""
    charts: list[Picture] = []
    colours = (ACCENT, WARM, COOL, "#2b8a3e", "#862e9c", "#c92a2a")
    with _chart(charts, caption, 4.6, 3.0) as axes:
        for (name, (xs, ys)), colour in zip(series.items(), colours * (1 + len(series) // len(colours)), strict=False):
            axes.plot(xs, ys, color=colour, linewidth=1.6, label=name, marker="." if len(xs) < 60 else None)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        if logarithmic:
            axes.set_yscale("log")
        if len(series) > 1:
            # Curves may be anywhere inside.
            axes.figure.legend(loc="outside upper left", ncols=2)
    return charts[0]


def seam_map(
    corners_um: NDArray[np.float64],
    size_um: tuple[float, float],
    seams: Sequence[tuple[int, int, float, float]],
    caption: str,
) -> Picture:
    """Draw each seam of the grid in the colour of its correlation, before and after.

    Parameters
    ----------
    corners_um
        (n, 2): first row and column of each tile.
    size_um
        Height and width of a tile.
    seams
        First tile, second tile, correlation before, and after (NaN where nothing was compared).
    caption
        Line under the chart.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    height, width = size_um
    charts: list[Picture] = []
    with _figure(charts, caption, 10.4, 3.9) as figure:
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        for panel, title, column in zip(panels, ("as the stage placed them", "placed and evened"), (2, 3), strict=True):
            for top, left in corners_um:
                panel.add_patch(Rectangle((left, top), width, height, facecolor="#0b728508", edgecolor=LINE))
            for seam in seams:
                middle = (corners_um[seam[0]] + corners_um[seam[1]] + size_um) / 2
                across = np.abs(corners_um[seam[1]] - corners_um[seam[0]])
                # A seam between left and right is upright.
                reach = np.array([0.38 * height, 0]) if across[1] > across[0] else np.array([0, 0.38 * width])
                value = seam[column]
                colour = colormaps["RdYlGn"](np.clip(value, 0, 1)) if np.isfinite(value) else LINE
                ends = np.stack([middle - reach, middle + reach])
                panel.plot(ends[:, 1], ends[:, 0], color=colour, linewidth=5, solid_capstyle="butt")
            panel.set_xlim(corners_um[:, 1].min() - 0.05 * width, corners_um[:, 1].max() + 1.05 * width)
            panel.set_ylim(corners_um[:, 0].max() + 1.05 * height, corners_um[:, 0].min() - 0.05 * height)
            panel.set_aspect("equal")
            panel.grid(visible=False)
            panel.set_title(title)
        bar = figure.colorbar(ScalarMappable(Normalize(0, 1), "RdYlGn"), ax=list(panels), shrink=0.8, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_label("correlation across the seam")
    return charts[0]


def residual_map(
    corners_um: NDArray[np.float64],
    size_um: tuple[float, float],
    residuals: Sequence[tuple[int, int, NDArray[np.float64]]],
    caption: str,
) -> Picture:
    """Draw on the grid how far the placement is from each measured shift: an arrow in the plane, a number in 3D.

    Parameters
    ----------
    corners_um, size_um
        As for `seam_map`.
    residuals
        First tile, second tile, and the residual (z, y, x) in pixels.
    caption
        Line under the chart.
    """
    from matplotlib.patches import Rectangle

    height, width = size_um
    lengths = np.array([np.linalg.norm(r) for *_, r in residuals])
    # The longest arrow is a third of a tile.
    scale = 0.33 * min(height, width) / max(float(lengths.max(initial=0.0)), 0.5)
    charts: list[Picture] = []
    with _chart(charts, caption, 5.6, 4.0) as axes:
        for top, left in corners_um:
            axes.add_patch(Rectangle((left, top), width, height, facecolor="none", edgecolor=LINE, linewidth=0.7))
        for (first, second, residual), length in zip(residuals, lengths, strict=True):
            y, x = (corners_um[first] + corners_um[second] + size_um) / 2
            colour = WARM if length > 2 else ACCENT
            axes.annotate(
                "",
                (x + scale * residual[2], y + scale * residual[1]),
                (x, y),
                arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0},
            )
            if len(residuals) <= 120:
                axes.text(x, y - 0.04 * height, f"{length:.2f}", ha="center", color=colour, fontsize=6)
        axes.set_xlim(corners_um[:, 1].min() - 0.05 * width, corners_um[:, 1].max() + 1.05 * width)
        axes.set_ylim(corners_um[:, 0].max() + 1.05 * height, corners_um[:, 0].min() - 0.05 * height)
        axes.set_aspect("equal")
        axes.grid(visible=False)
        axes.set_xlabel("columns, µm")
        axes.set_ylabel("rows, µm")
    return charts[0]
