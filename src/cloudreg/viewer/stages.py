"""The sections of a report that show the stages before registration, and what ran."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from cloudreg.flatfield import load_shading
from cloudreg.io import open_volume
from cloudreg.run_folder import RunFolder
from cloudreg.stitching.certainty import doubts
from cloudreg.stitching.drift import LayerResidual
from cloudreg.stitching.seams import Seam, load_layers, load_seams
from cloudreg.tiles import Displacement, Project, ProjectTile, read_project
from cloudreg.viewer.charts import histogram, lines, residual_map, seam_map, tile_layout
from cloudreg.viewer.page import Fact, Part, Section
from cloudreg.viewer.pictures import coloured, encode, grey, middle_planes, shrink

# A residual, in pixels, a fall of a seam's correlation, and a difference of brightness (as a logarithm) that deserve a
# look; brightness is compared where the correlation says that both show the same.
_FAR_PX = 3.0
_WORSE = 0.1
_UNEVEN = 0.15
_ALIKE = 0.5
_SHOWN_DRIFTS = 6


def run_facts(folder: RunFolder, manifest: Mapping[str, Any]) -> list[Fact]:
    """Return the run's numbers for the top of the page."""
    facts = []
    channels = _channels(manifest, "fuse")
    if folder.project.exists():
        tiles = sum(bool(tile.name) for tile in read_project(folder.project).tiles)
        facts.append(Fact("tiles × channels", f"{tiles} × {len(channels)}"))
    if channels:
        volume = open_volume(folder.stitched(channels[0]))
        facts += [
            Fact("voxels, z y x", " × ".join(f"{n:,}" for n in volume.grid.shape)),
            Fact("voxel size, µm", " × ".join(f"{v:.4g}" for v in volume.grid.voxel_size_um)),
        ]
    facts.append(Fact("computing time", _duration(sum(s.get("seconds", 0) for s in manifest["stages"].values()))))
    return facts


def score_section(path: Path) -> list[Section]:
    """Return the errors against the truth, where the truth was known."""
    if not path.exists():
        return []
    score = json.loads(path.read_text())
    rows = [("what", "found", "unit"), *((row["name"], _number(row["value"]), row["unit"]) for row in score["rows"])]
    dice = [{"name": name, "percent": round(100 * v, 1), "value": f"{v:.2f}"} for name, v in score["dice"].items()]
    lead = "This acquisition was made from a known brain, so every stage can be compared with the truth."
    parts = [Part("table", rows=rows), Part("meters", title="Dice overlap of each region, lowest first", rows=dice)]
    return [Section("score", "Against the truth", lead, parts)]


def run_sections(folder: RunFolder, manifest: Mapping[str, Any]) -> list[Section]:
    """Return a section for each stage before registration that left something."""
    sections = []
    shaded = [c for c in _channels(manifest, "shade") if folder.shading(c).exists()]
    if shaded:
        sections.append(_shading_section(folder, shaded))
    if folder.project.exists():
        sections.append(alignment_section(read_project(folder.project), load_layers(folder.seams)))
    if (folder.seams / "seams.csv").exists() and folder.project.exists():
        sections.append(seam_section(read_project(folder.project), folder.seams))
    stitched = [c for c in _channels(manifest, "correct") if folder.corrected(c).exists()]
    if stitched:
        sections.append(_volume_section(folder, stitched))
    return sections


def about_section(manifest: Mapping[str, Any]) -> Section:
    """Return what is needed to do it again, and how long it took."""
    parts = []
    stages = [(name, stage) for name, stage in manifest.get("stages", {}).items() if "seconds" in stage]
    longest = max((stage["seconds"] for _, stage in stages), default=0) or 1
    bars = [
        {
            "name": _stage_name(name),
            "percent": round(100 * stage["seconds"] / longest, 1),
            "value": _duration(stage["seconds"]),
        }
        for name, stage in stages
    ]
    if bars:
        parts.append(Part("bars", title="Time", rows=bars))
    for name in ("command", "versions", "settings"):
        if manifest.get(name):
            value = manifest[name]
            text = value if isinstance(value, str) else yaml.safe_dump(value, sort_keys=False)
            parts.append(Part("text", summary=name.capitalize(), text=text))
    return Section("about", "What ran", "All that is needed to do it again.", parts)


def _shading_section(folder: RunFolder, channels: Sequence[int]) -> Section:
    pictures, profiles = [], {}
    for channel in channels:
        shading = load_shading(folder.shading(channel))
        flat = shading.flat
        low, high = float(flat.min()), float(flat.max())
        caption = f"channel {channel}: {low:.2f} dark to {high:.2f} bright; background {shading.background:.4g}"
        pictures.append(encode(coloured(flat, "viridis", low, high), caption))
        across = np.linspace(0, 1, flat.shape[1])
        profiles[f"channel {channel}, along a row"] = (across, flat.mean(axis=0).astype(float))
        down = np.linspace(0, 1, flat.shape[0])
        profiles[f"channel {channel}, along a column"] = (down, flat.mean(axis=1).astype(float))
    chart = lines(profiles, "place on the tile, 0 to 1", "relative brightness", "Means of the flat fields.")
    return Section(
        "shading",
        "Tiles",
        "How bright a tile is at each place, relative to its mean; each tile is divided by it. The field should be "
        "smooth, and show nothing of the tissue.",
        [Part("charts", pictures=[*pictures, chart])],
    )


def alignment_section(project: Project, layers: Sequence[LayerResidual] = ()) -> Section:
    """Return where the tiles were placed, how far from the stage and the links, and how they drift over their depth."""
    tiles = [tile for tile in project.tiles if tile.name]
    voxel = np.asarray(project.voxel_size_um)
    number = {(tile.row, tile.column): index for index, tile in enumerate(tiles)}
    corners = np.array([tile.position_px for tile in tiles]) * voxel
    links, residuals = [], []
    for first, second, displacement in _links(tiles, number):
        peak = float(np.mean([axis.peak for axis in displacement.axes]))
        links.append((first, second, peak if peak > 0 else float("nan")))
        placed = np.subtract(tiles[second].position_px, tiles[first].position_px)
        if peak > 0:
            residuals.append(placed - [axis.px for axis in displacement.axes])
    vertical, horizontal = _tile_size_um(project, tiles)
    layout = tile_layout(
        corners[:, 1:],
        (vertical, horizontal),
        [tile.name for tile in tiles],
        links,
        "Where the tiles were placed; a line joins neighbours, dotted where their overlap held nothing to compare.",
    )
    moved = np.array([_deviation_px(project, tile) for tile in tiles])
    moved = moved - np.median(moved, axis=0)
    charts = []
    if residuals:
        error = np.linalg.norm(np.array(residuals), axis=1)
        charts.append(histogram(error, "pixels", "links", "How far the placement is from each measured shift."))
    charts.append(
        histogram(
            np.linalg.norm(moved, axis=1), "pixels", "tiles", "How far the tiles lie from where the stage meant to be."
        )
    )
    return Section(
        "alignment",
        "Alignment",
        "Where neighbours overlap, their shift was measured; then all tiles were placed together. Links should be "
        "bright, and the placement agree with them to a fraction of a pixel.",
        [Part("charts", pictures=[layout]), Part("charts", pictures=charts), *_drift_parts(tiles, layers)],
    )


def _drift_parts(tiles: Sequence[ProjectTile], layers: Sequence[LayerResidual]) -> list[Part]:
    """Return how the tiles drift that do most, and what is left of the links in each layer; nothing where none does."""
    drifts = {tile.name: tile.drift for tile in tiles if tile.drift is not None}
    if not drifts:
        return []
    most = sorted(drifts, key=lambda name: -max(np.ptp(drifts[name].y_px), np.ptp(drifts[name].x_px)))[:_SHOWN_DRIFTS]
    charts = [
        lines(
            {name: (np.array(drifts[name].planes), np.array(getattr(drifts[name], along))) for name in most},
            "plane",
            f"pixels along {axis}",
            f"How tiles drift along {axis}, those that drift most.",
        )
        for axis, along in (("y", "y_px"), ("x", "x_px"))
    ]
    seen = [layer for layer in layers if layer.links]
    if seen:
        planes = np.array([layer.plane for layer in seen])
        left = {
            "as if no tile drifted": (planes, np.array([layer.straight_px for layer in seen])),
            "with the drift": (planes, np.array([layer.px for layer in seen])),
        }
        charts.append(lines(left, "plane", "pixels", "What is left of a link in each layer of planes, median."))
    return [Part("charts", title="Drift over the depth", pictures=charts)]


def seam_section(project: Project, folder: Path) -> Section:
    """Return how well neighbours agree before and after, and the tiles that look wrong."""
    seams, before, after = load_seams(folder)
    tiles = [tile for tile in project.tiles if tile.name]
    index = {tile.name: i for i, tile in enumerate(tiles)}
    corners = np.array([tile.position_px for tile in tiles]) * np.asarray(project.voxel_size_um)
    pairs = [(index[s.first], index[s.second], s.correlation_before, s.correlation_after) for s in seams]
    number = {(tile.row, tile.column): i for i, tile in enumerate(tiles)}
    residuals = [
        (first, second, np.subtract(tiles[second].position_px, tiles[first].position_px) - [a.px for a in link.axes])
        for first, second, link in _links(tiles, number)
        if any(axis.peak > 0 for axis in link.axes)
    ]
    size = _tile_size_um(project, tiles)
    charts = [
        seam_map(corners[:, 1:], size, pairs, "Each seam in the colour of its correlation; grey: nothing to compare."),
        residual_map(
            corners[:, 1:], size, residuals, "How far the placement is from each measured shift, in pixels; arrows y x."
        ),
    ]
    pictures = []
    for picture, name in ((before, "raw, as the stage placed the tiles"), (after, "evened and placed, unblended")):
        seen = picture[picture > 0]
        window = (float(np.percentile(seen, 1)), float(np.percentile(seen, 99.7))) if seen.size else (0.0, 1.0)
        pictures.append(encode(grey(picture, (window[0], max(window[1], window[0] + 1e-3))), f"middle plane, {name}"))
    parts = [
        Part("charts", pictures=charts[:1]),
        Part("charts", pictures=charts[1:]),
        Part("pictures", title="The tiles laid over each other", pictures=pictures),
    ]
    suspects = suspicious_tiles(project, seams)
    lead = "Seams should be green after placement, and the second picture show no edges of tiles. "
    lead += f"{len(suspects)} of {len(tiles)} tiles deserve a look." if suspects else "No tile looks wrong."
    if suspects:
        rows = [("tile", "what looks wrong"), *((name, "; ".join(why)) for name, why in suspects.items())]
        parts.insert(0, Part("table", title="Tiles to look at", rows=rows))
    return Section("seams", "Seams", lead, parts)


def suspicious_tiles(project: Project, seams: Sequence[Seam]) -> dict[str, list[str]]:
    """Return the names of the tiles that look wrong, with the reasons.

    A tile does that the images don't hold in all directions, that lost planes, that its neighbours contradict, whose
    seams are worse than before, or that is brighter or darker than its neighbours.
    """
    tiles = [tile for tile in project.tiles if tile.name]
    number = {(tile.row, tile.column): i for i, tile in enumerate(tiles)}
    reasons: dict[str, list[str]] = {tile.name: [] for tile in tiles}
    held = set()
    for first, second, link in _links(tiles, number):
        if not any(axis.peak > 0 for axis in link.axes):
            continue
        held |= {first, second}
        off = np.subtract(tiles[second].position_px, tiles[first].position_px) - [axis.px for axis in link.axes]
        distance = float(np.linalg.norm(off))
        if distance > _FAR_PX:
            for one, other in ((first, second), (second, first)):
                reasons[tiles[one].name].append(f"{distance:.1f} px from where {tiles[other].name} says it lies")
    doubtful = {tile.name: what for tile, what in doubts(project)} if len(tiles) > 1 else {}
    for i, tile in enumerate(tiles):
        if tile.name in doubtful:
            reasons[tile.name].append(doubtful[tile.name])
        elif i not in held and len(tiles) > 1:
            reasons[tile.name].append("no overlap with texture: placed by the stage")
        lost = 0 if tile.planes is None else project.slices - sum(stop - start for start, stop in tile.planes)
        if lost:
            reasons[tile.name].append(f"{lost} of {project.slices} planes lost")
    for seam in seams:
        if seam.correlation_before - seam.correlation_after > _WORSE:
            text = (
                f"correlation fell from {seam.correlation_before:.2f} to {seam.correlation_after:.2f} at the seam with"
            )
            reasons[seam.first].append(f"{text} {seam.second}")
            reasons[seam.second].append(f"{text} {seam.first}")
    for name, log in _brightness(list(reasons), seams).items():
        if abs(log) > _UNEVEN:
            percent = 100 * (np.exp(log) - 1)
            reasons[name].append(f"{abs(percent):.0f} % {'brighter' if percent > 0 else 'darker'} than the other tiles")
    return {name: why for name, why in reasons.items() if why}


def _brightness(names: Sequence[str], seams: Sequence[Seam]) -> dict[str, float]:
    """Return each tile's brightness as a logarithm, 0 for most, such that few seams are contradicted."""
    index = {name: i for i, name in enumerate(names)}
    compared = [s for s in seams if s.ratio_after > 0 and s.correlation_after > _ALIKE]
    if not compared:
        return {}
    design = np.zeros((len(compared), len(names)))
    for row, seam in zip(design, compared, strict=True):
        row[index[seam.first]], row[index[seam.second]] = -1, 1
    ratio = np.log([seam.ratio_after for seam in compared])
    weight, own = np.ones(len(compared)), np.full(len(names), 0.01)
    solution: NDArray[np.floating] = np.zeros(len(names))
    for _ in range(30):
        # Weights of one over the residual make the sum of absolute values least: few tiles are at fault, not all.
        normal = (design.T * weight) @ design + np.diag(own)
        solution = np.linalg.solve(normal, (design.T * weight) @ ratio)
        solution -= np.median(solution)
        weight = np.asarray(1 / (np.abs(ratio - design @ solution) + 0.01))
        own = np.asarray(0.1 / (np.abs(solution) + 0.01))
    return dict(zip(names, solution.tolist(), strict=True))


def _volume_section(folder: RunFolder, channels: Sequence[int]) -> Section:
    parts = []
    for channel in channels:
        before, after = shrink(open_volume(folder.stitched(channel))), shrink(open_volume(folder.corrected(channel)))
        # One window for both, so that what changed is what one sees.
        window = before.window()
        for volume, name in ((before, "before"), (after, "after")):
            title = f"Channel {channel}" if name == "before" else ""
            parts.append(Part("pictures", title=title, pictures=middle_planes(volume, window, name)))
    return Section(
        "volume",
        "Stitched volume",
        "The middle planes before and after correction of the slow illumination, in the same greys. No seam should "
        "show between tiles, and like tissue should be alike in brightness all over.",
        parts,
    )


def _links(
    tiles: Sequence[ProjectTile], number: Mapping[tuple[int, int], int]
) -> Iterator[tuple[int, int, Displacement]]:
    for index, tile in enumerate(tiles):
        for displacements, place in (
            (tile.east, (tile.row, tile.column + 1)),
            (tile.south, (tile.row + 1, tile.column)),
        ):
            if place in number:
                for displacement in displacements:
                    yield index, number[place], displacement


def _deviation_px(project: Project, tile: ProjectTile) -> np.ndarray[Any, np.dtype[np.float64]]:
    down, right = (um / voxel for um, voxel in zip(project.pitch_um, project.voxel_size_um[1:], strict=True))
    return np.subtract(tile.position_px, (0.0, tile.row * down, tile.column * right))


def _tile_size_um(project: Project, tiles: Sequence[ProjectTile]) -> tuple[float, float]:
    """The project does not say how large a tile is; one of its files does."""
    from tifffile import TiffFile

    for tile in tiles:
        for file in sorted((project.stacks_dir / tile.name).glob("*.tif*"))[:1]:
            with TiffFile(file) as opened:
                height, width = opened.pages[0].shape[-2:]
            return height * project.voxel_size_um[1], width * project.voxel_size_um[2]
    return project.pitch_um


def _channels(manifest: Mapping[str, Any], stage: str) -> list[int]:
    names = (name for name, record in manifest["stages"].items() if record["status"] == "done")
    return sorted(int(name.removeprefix(f"{stage}_")) for name in names if name.startswith(f"{stage}_"))


def _stage_name(name: str) -> str:
    stage, _, channel = name.partition("_")
    return f"{stage}, channel {int(channel)}" if channel else stage


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
