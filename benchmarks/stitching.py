"""Accuracy, time and memory of stitching, on tiles cut from volumes with a known answer; and throughput.

    python benchmarks/stitching.py --data VOLUME … --seeds 1 2 3
    python benchmarks/stitching.py --data VOLUME --cases textured --rivals RIVALS/bin/python
    python benchmarks/stitching.py --size 12x2048x200 --size 24x1024x50

VOLUME is any volume that CloudReg opens; without one the cases are cut from a synthetic texture. Every method runs as a
process of its own, from files to files, one at a time. ``cloudreg`` is the whole command ``cloudreg align``: start-up,
reading and writing are in its time. RIVALS is an interpreter with multiview-stitcher and zetastitcher; a rival that is
not in it is skipped. In their time importing is left out, and for multiview-stitcher reading too: its tiles are in
memory. They are told how far off the stage may be; cloudreg searches as far as it does by default.

The error is a tile's distance from the truth in pixels of all three axes, without the shift that all tiles have in
common, over the tiles that the images can place at all; ``blank`` is the largest error of the others. Tiles that
``cloudreg align`` doubts are counted, and the largest error of all others, blank ones included, is given as well.
Where tiles drift over their depth, it is the error of every plane of every tile, without what all tiles have in common.

``--size`` makes tiles x side x planes, in that many uint16 pixels, and measures flat field, alignment, fusion and
pyramid in one process, and then reading the same tiles and writing the same volume, and nothing else, in another. CPU
seconds are the time on all cores: what other programs do changes them little.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cloudreg.execution import Engine
from cloudreg.io import create_volume, open_volume
from cloudreg.pipeline import align_tiles, fuse_tiles, shade_tiles
from cloudreg.settings import AlignSettings, FusionSettings, ShadingSettings
from cloudreg.space import split
from cloudreg.stitching.certainty import doubts
from cloudreg.tiles import open_acquisition, read_project, write_colm
from measuring import Usage, run_measured
from stitching_cases import KINDS, VOXEL_UM, Case, Kind, make_case, read_specimen
from stitching_rivals import METHODS

_DRIFT = "cloudreg --drift layers"
_HERE = Path(__file__).resolve().parent
_MODULES = {"multiview-stitcher": "multiview_stitcher", "zetastitcher": "zetastitcher"}


@dataclass(frozen=True)
class Row:
    """One method on one case."""

    case: str
    volume: str
    seed: int
    method: str
    median_px: float
    max_px: float
    blank_px: float
    named: int
    not_named_px: float
    seconds: float
    peak_mb: float
    note: str = ""


@dataclass(frozen=True)
class Found:
    """What a method found of a case: positions (n, 3), unless it failed, and which tiles (n,) it calls doubtful."""

    positions_px: np.ndarray | None
    doubtful: np.ndarray | None
    seconds: float
    peak_bytes: float
    sway_px: np.ndarray | None = None


def timed(command: list[str], log: Path) -> Usage:
    """Run a command; what it prints is added to a log."""
    with log.open("a") as file:
        return run_measured(command, file)


def run_cloudreg(case: Case, folder: Path, *options: str) -> Found:
    """Align a case."""
    project = folder / "project.xml"
    project.unlink(missing_ok=True)
    command = [sys.executable, "-m", "cloudreg", "align", str(case.raw), str(project), *options]
    usage = timed(command, folder / "cloudreg.log")
    if usage.code:
        return Found(None, None, usage.seconds, usage.peak_bytes)
    found = read_project(project)
    drifts = [found.tile(int(r), int(c)).drift for r, c in case.cells]
    planes = np.arange(found.slices)
    doubtful = {(tile.row, tile.column) for tile, _ in doubts(found)}
    return Found(
        np.array([found.position_px(int(r), int(c)) for r, c in case.cells]),
        np.array([(int(r), int(c)) in doubtful for r, c in case.cells]),
        usage.seconds,
        usage.peak_bytes,
        np.array([np.zeros((len(planes), 2)) if drift is None else drift.at(planes) for drift in drifts]),
    )


def run_rival(method: str, python: str, kind: Kind, case: Case, folder: Path) -> Found:
    """Align a case with a rival; its tiles are 3D TIFFs whose names say where they are."""
    import tifffile

    stacks = folder / "stacks"
    shutil.rmtree(stacks, ignore_errors=True)
    stacks.mkdir()
    acquisition = open_acquisition(case.raw)
    names = []
    for tile, (_, y, x) in zip(acquisition.tiles, case.nominal_px, strict=True):
        names.append(f"x_{round(10 * x):06d}_y_{round(10 * y):06d}.tif")
        tifffile.imwrite(stacks / names[-1], acquisition.read(tile, 0, 0, kind.tile_shape[0]), photometric="minisblack")
    about = {
        "names": names,
        "nominal_px": case.nominal_px.tolist(),
        "search_px": [int(np.ceil(2 * j)) + 2 for j in kind.jitter_px],
        "tile_shape": kind.tile_shape,
        "overlap": kind.overlap,
    }
    (stacks / "stacks.json").write_text(json.dumps(about))
    command = [python, "-W", "ignore", str(_HERE / "stitching_rivals.py"), method, str(stacks)]
    usage = timed(command, folder / "rival.log")
    if usage.code:
        return Found(None, None, usage.seconds, usage.peak_bytes)
    seconds = float((stacks / "seconds.txt").read_text())
    return Found(np.load(stacks / "positions.npy"), None, seconds, usage.peak_bytes)


def compare(options: argparse.Namespace, folder: Path) -> list[Row]:
    """Run all methods on all cases."""
    rows = []
    rivals = [m for m in options.methods if m != "cloudreg"] if options.rivals else []
    rivals = [m for m in rivals if _has(options.rivals, _MODULES[m.split(",")[0]])]
    timed([sys.executable, "-m", "cloudreg", "--help"], folder / "warm.log")
    for path in options.data or [None]:
        for name in options.cases:
            kind = KINDS[name]
            if kind.whole and path is None:
                print("case whole needs a volume: skipped")
                continue
            for seed in options.seeds:
                here = folder / "case"
                shutil.rmtree(here, ignore_errors=True)
                case = make_case(here / "raw", kind, read_specimen(path, kind, seed), seed)
                if not rows:
                    run_cloudreg(case, here)  # compiles
                for method in ["cloudreg", *([_DRIFT] if kind.drifts else []), *rivals]:
                    if method in ("cloudreg", _DRIFT):
                        found = run_cloudreg(case, here, *method.split()[1:])
                    else:
                        found = run_rival(method, options.rivals, kind, case, here)
                    label = "synthetic" if path is None else path.name
                    rows.append(_row(name, label, seed, method, case, found))
                    print(json.dumps(asdict(rows[-1])), flush=True)
    return rows


def _has(python: str, module: str) -> bool:
    """Say so if a rival's package is not there."""
    if subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False).returncode:
        print(f"{python} has no {module}: skipped")
        return False
    return True


def _row(name: str, label: str, seed: int, method: str, case: Case, found: Found) -> Row:
    nan = float("nan")
    if found.positions_px is None:
        return Row(name, label, seed, method, nan, nan, nan, 0, nan, found.seconds, found.peak_bytes / 1e6, "failed")
    errors = case.errors(found.positions_px, found.sway_px)
    held = errors[case.held]
    sure = errors if found.doubtful is None else errors[~found.doubtful]
    return Row(
        name,
        label,
        seed,
        method,
        median_px=float(np.median(held)),
        max_px=float(held.max()),
        blank_px=float(errors[~case.held].max()) if (~case.held).any() else nan,
        named=len(errors) - len(sure),
        not_named_px=float(sure.max()) if len(sure) else nan,
        seconds=found.seconds,
        peak_mb=found.peak_bytes / 1e6,
    )


def show(rows: Sequence[Row]) -> None:
    """Print, for each case and method, the median and worst of all volumes and seeds."""
    print(
        "\n| case | method | runs | error, median px | largest, px | blank tiles, px | named | largest not named, px ",
        end="",
    )
    print("| seconds | MB |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for case, method in dict.fromkeys((row.case, row.method) for row in rows):
        mine = [row for row in rows if (row.case, row.method) == (case, method)]
        good = [row for row in mine if not row.note]
        runs = f"{len(mine)}" if len(good) == len(mine) else f"{len(mine)}, {len(mine) - len(good)} failed"
        if not good:
            print(f"| {case} | {method} | {runs} | | | | | | | |")
            continue
        blank = [row.blank_px for row in good if not np.isnan(row.blank_px)]
        print(
            f"| {case} | {method} | {runs} | {np.median([r.median_px for r in good]):.3f} "
            f"(worst {max(r.median_px for r in good):.3f}) | {max(r.max_px for r in good):.2f} "
            f"| {f'{max(blank):.1f}' if blank else ''} | {sum(r.named for r in good)} "
            f"| {max(r.not_named_px for r in good):.2f} | {np.median([r.seconds for r in good]):.1f} "
            f"| {max(r.peak_mb for r in good):.0f} |"
        )


def make_large(folder: Path, tiles: int, side: int, planes: int) -> None:
    """Write an acquisition of textured, vignetted, noisy tiles fast: each plane is the one before, moved at random.

    Were it always moved in one direction, the texture would look the same along a slanted line, and lie nowhere on it.
    """
    from scipy import ndimage

    rng = np.random.default_rng(0)
    rows = max(r for r in range(1, int(tiles**0.5) + 1) if tiles % r == 0)
    grid = (rows, tiles // rows)
    pitch = round(side * 0.85)
    extent = [(g - 1) * pitch + side + 64 for g in grid]
    noise = rng.standard_normal(extent).astype(np.float32)
    texture = sum(layer / layer.std() for layer in (ndimage.gaussian_filter(noise, s, mode="wrap") for s in (1.2, 6)))
    specimen = (200 * np.exp(0.3 * texture)).astype(np.float32)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    flat = (1.1 - 0.3 * (y * y + x * x)).astype(np.float32)
    grain = rng.standard_normal((side + 61, side)).astype(np.float32)
    cells = [(r, c) for r in range(rows) for c in range(grid[1])]
    corners = {(r, c): rng.integers(0, 17, 2) + np.array([8 + r * pitch, 8 + c * pitch]) for r, c in cells}

    path = np.cumsum(rng.integers(-1, 2, (planes, 2)), axis=0)

    def plane(row: int, column: int, channel: int, number: int) -> np.ndarray:
        top, left = corners[row, column] + path[number]
        lines = np.take(specimen, range(top, top + side), 0, mode="wrap")
        moved = np.take(lines, range(left, left + side), 1, mode="wrap")
        light = moved * flat
        start = int((13 * number + 7 * row + 3 * column) % 61)
        return np.clip(light + np.sqrt(light) * grain[start : start + side] + 100, 1, 65535).astype(np.uint16)

    write_colm(
        folder,
        rows=rows,
        columns=grid[1],
        tile_shape=(planes, side, side),
        voxel_size_um=VOXEL_UM,
        overlap=(1 - pitch / side, 1 - pitch / side),
        channels=1,
        objective="10x 0.6NA",
        scanned=np.ones(grid, bool),
        planes=plane,
    )


def stitch(folder: Path, workers: int, memory: str) -> None:
    """Flat field, alignment, fusion and pyramid; prints the seconds of each, and those of the CPU."""
    figures = {}

    @contextmanager
    def measured(name: str) -> Iterator[None]:
        clocks = time.perf_counter(), time.process_time()
        yield
        figures[name], figures[f"{name} cpu"] = time.perf_counter() - clocks[0], time.process_time() - clocks[1]

    acquisition = open_acquisition(folder / "raw")
    with Engine(workers=workers, memory=memory) as engine:
        with measured("shade"):
            shade_tiles(acquisition, 0, folder / "shading", ShadingSettings(), engine)
        with measured("align"):
            align_tiles(acquisition, 0, folder / "shading", folder / "project.xml", AlignSettings(), engine)
        with measured("fuse + pyramid"):
            out = str(folder / "fused.ome.zarr")
            fuse_tiles(acquisition, 0, folder / "project.xml", folder / "shading", out, FusionSettings(), engine)
    print(json.dumps(figures))


def copy(folder: Path, workers: int) -> None:
    """Read the tiles, and write the levels of the result again from memory; prints the seconds of both."""
    acquisition = open_acquisition(folder / "raw")
    volume = open_volume(folder / "fused.ome.zarr")
    depth = acquisition.tile_shape[0]
    writer = create_volume(folder / "copy.ome.zarr", volume.grid, volume.dtype, chunk=FusionSettings().chunk)
    with Engine(workers=workers, memory="4GB") as engine:
        tasks = [_Planes(t, z, min(z + 16, depth)) for t in range(len(acquisition.tiles)) for z in range(0, depth, 16)]
        start = time.perf_counter()
        engine.run(_ReadTiles(folder), tasks, label="read", unit="blocks")
        reading = time.perf_counter() - start
        writing = 0.0
        for level, grid in enumerate(writer.levels):
            block = [min(n, m) for n, m in zip((64, 1024, 1024), grid.shape, strict=True)]
            unit = writer.block_shape(level)
            block = [-(-b // u) * u for b, u in zip(block, unit, strict=True)]
            boxes = split(grid.shape, block)
            for first in range(0, len(boxes), workers):
                held = [(box, volume.read(box, level=level)) for box in boxes[first : first + workers]]
                start = time.perf_counter()
                waiting = [writer.begin_write(box, array, level=level) for box, array in held]
                for pending in waiting:
                    pending.wait()
                writing += time.perf_counter() - start
    print(json.dumps({"read": reading, "write": writing}))


@dataclass(frozen=True)
class _Planes:
    tile: int
    start: int
    stop: int


@dataclass(frozen=True)
class _ReadTiles:
    folder: Path

    def __call__(self, planes: _Planes) -> None:
        acquisition = open_acquisition(self.folder / "raw")
        acquisition.read(acquisition.tiles[planes.tile], 0, planes.start, planes.stop)


def throughput(size: str, options: argparse.Namespace, folder: Path) -> None:
    """Measure one size, and print a line of the table."""
    tiles, side, planes = (int(n) for n in size.split("x"))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    make_large(folder / "raw", tiles, side, planes)
    log = folder / "log.txt"
    figures: dict[str, float] = {}
    usages = {}
    for part, extra in (("stitch", [options.memory]), ("copy", [])):
        command = [sys.executable, __file__, "--part", part, str(folder), str(options.workers), *extra]
        log.write_text("")
        usages[part] = usage = timed(command, log)
        if usage.code:
            sys.exit(f"{part} failed:\n{log.read_text()[-3000:]}")
        figures |= json.loads(log.read_text().splitlines()[-1])
    ours = figures["shade"] + figures["align"] + figures["fuse + pyramid"]
    alone = figures["read"] + figures["write"]
    cpu = figures["shade cpu"], figures["align cpu"], figures["fuse + pyramid cpu"]
    print(
        f"| {size} | {tiles * side * side * planes * 2 / 1e9:.2f} | {figures['shade']:.1f} | {figures['align']:.1f} "
        f"| {figures['fuse + pyramid']:.1f} | {ours:.1f} | {figures['read']:.1f} + {figures['write']:.1f} "
        f"| {ours / alone:.2f} | {' + '.join(f'{c:.1f}' for c in cpu)} = {sum(cpu):.1f} "
        f"| {usages['stitch'].peak_bytes / 1e9:.2f} |",
        flush=True,
    )
    shutil.rmtree(folder)


def main() -> None:
    """Run what the command line asks for."""
    if sys.argv[1:2] == ["--part"]:
        part, folder, workers, *memory = sys.argv[2:]
        if part == "stitch":
            stitch(Path(folder), int(workers), memory[0])
        else:
            copy(Path(folder), int(workers))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="*", help="volumes to cut the tiles from")
    parser.add_argument("--cases", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--rivals", help="interpreter that has the rivals")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=["multiview-stitcher", "zetastitcher"])
    parser.add_argument("--size", action="append", help="TILESxSIDExPLANES: throughput instead of accuracy")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--memory", default="2.5GB", help="given to the throughput runs")
    parser.add_argument("--out", type=Path, help="also write the rows of the table as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stitching-") as name:
        folder = Path(name)
        if options.size:
            print("| tiles x side x planes | GB | shade, s | align, s | fuse + pyramid, s | all, s ", end="")
            print("| read + write alone, s | ratio | CPU, s | peak, GB |")
            print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
            for size in options.size:
                throughput(size, options, folder / "large")
            return
        rows = compare(options, folder)
    show(rows)
    if options.out:
        options.out.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
