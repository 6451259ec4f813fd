"""How well is the flat field of tiles found? On tiles with a known field, and on real ones against other methods.

    python benchmarks/shading.py [--exposure 0.15] [--seeds 20] [--first-seed 0] [--data SHARED/data]
                                 [--methods combined mean n4 basic]

Each seed draws a field (its kind, depth and centre), a stage grid, a brightness and a background, and cuts noisy tiles
out of three kinds of tissue: a brain that fills the grid, a sparse one that lies in few tiles, and, with ``--data``, a
real brain. With ``--exposure`` tiles differ in brightness, by this deviation of the logarithm. The error is the rms of
found over true field, both of mean 1, in per cent. With ``--data``, the fields of the 54 real tiles are compared with
each other, and by the seams that they leave.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tifffile
from scipy import ndimage

from cloudreg.errors import InputError
from cloudreg.execution import Engine
from cloudreg.flatfield import Shading, estimate_shading
from cloudreg.settings import ShadingSettings
from cloudreg.tiles import Acquisition, Tile

FIELDS = ("round", "cos4", "gauss", "sheet", "tilted")
SIDE, PLANES = 128, 24


@dataclass(frozen=True, eq=False)
class ArrayAcquisition(Acquisition):
    """Tiles that are arrays, by row and column."""

    stacks: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)

    def _fill(self, tile, channel, start, stop, rows, columns, out):
        out[...] = self.stacks[tile.row, tile.column][start:stop, rows, columns]

    def fingerprint(self, channels: Iterable[int]) -> str:  # noqa: D102
        return ""

    def file_pattern(self, channel: int) -> str:  # noqa: D102
        return ".*"

    @staticmethod
    def of(stacks: dict[tuple[int, int], np.ndarray], overlap: float) -> ArrayAcquisition:
        """Hold stacks of one shape."""
        shape = next(iter(stacks.values())).shape
        rows, columns = (max(place[axis] for place in stacks) + 1 for axis in (0, 1))
        tiles = tuple(Tile(f"{r}-{c}", r, c, {0: ((0, shape[0]),)}) for r, c in sorted(stacks))
        dtype = np.dtype(np.uint16)
        memory = Path("memory")
        return ArrayAcquisition(
            memory, rows, columns, shape, (5, 1, 1), (overlap, overlap), (0,), dtype, tiles, "", memory, stacks
        )


def draw_field(kind: str, random: np.random.Generator, side: int = SIDE) -> np.ndarray:
    """Draw a field of mean 1 that falls to 0.5 to 0.85 of its top."""
    centre, low = random.uniform(-0.3, 0.3, 2), random.uniform(0.5, 0.85)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    y, x = y - centre[0], x - centre[1]
    stretch = random.uniform(0.8, 1.25)
    r2 = (y * stretch) ** 2 + (x / stretch) ** 2
    if kind == "round":
        flat = 1 - (1 - low) * r2 / r2.max()
    elif kind == "cos4":
        flat = (1 + (low**-0.5 - 1) * r2 / r2.max()) ** -2
    elif kind == "gauss":
        flat = low ** (r2 / r2.max())
    elif kind == "sheet":
        # A sheet is a Gaussian across, and thins towards its waist along the beam.
        flat = low ** (y**2 / (y**2).max()) / np.sqrt(1 + 0.3 * x**2)
    else:
        flat = (1 - (1 - low) / 2 * r2 / r2.max()) * (1 + (1 - low) / 3 * (x * np.cos(7 * low) + y * np.sin(7 * low)))
    return flat / flat.mean()


def draw_tissue(shape: tuple[int, int, int], random: np.random.Generator, *, sparse: bool) -> np.ndarray:
    """Draw a brain: an ellipse with layers at its rim, slow and fine texture, dark ventricles, bright cells."""
    coarse = ndimage.gaussian_filter(random.normal(size=[n // 8 + 2 for n in shape]), (1, 5, 5))
    slow = ndimage.zoom(coarse / coarse.std(), 8, order=1)[: shape[0], : shape[1], : shape[2]]
    fine = ndimage.gaussian_filter(random.normal(size=shape).astype(np.float32), 1)
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape[1:]), indexing="ij")
    centre = random.uniform(-0.4, 0.4, 2) if sparse else (0, 0)
    radius = random.uniform(0.35, 0.5) if sparse else random.uniform(0.9, 1.15)
    r = np.hypot(y - centre[0], 1.15 * (x - centre[1])) / radius
    rim = 0.35 * np.exp(-(((r - 0.88) / 0.08) ** 2)) - 0.8 * np.exp(-(((r - 0.15) / 0.08) ** 2))
    tissue = np.exp(0.3 * slow + 0.15 * fine / fine.std() + rim) * (r < 1)
    points = np.zeros(shape, dtype=np.float32)
    points[tuple(random.integers(0, n, np.prod(shape) // 4000) for n in shape)] = random.uniform(20, 200)
    return (tissue + ndimage.gaussian_filter(points, (0.5, 1, 1)) * (tissue > 0)).astype(np.float32)


def read_brain(data: Path) -> np.ndarray:
    """Read a real brain, brightness about 1, finer in plane by a factor of 2 so that it fills many tiles."""
    brain = tifffile.imread(data / "mouse_stpt" / "brain_psl_50x40x40um.tif").astype(np.float32)
    brain = ndimage.zoom(brain, (1, 2, 2), order=1)
    dark = np.percentile(brain[::10], 5)
    return np.maximum(brain - dark, 0) / np.median(brain[brain > 3 * dark])


def cut_case(
    tissue: np.ndarray, flat: np.ndarray, random: np.random.Generator, gains: np.random.Generator, exposure: float
) -> ArrayAcquisition:
    """Expose the tiles that fit on a tissue: shot noise, read noise, a background, errors of the stage, own gains."""
    overlap, photons, background = random.uniform(0.1, 0.2), 10 ** random.uniform(2, 3.5), random.uniform(50, 300)
    side = flat.shape[0]
    pitch = round(side * (1 - overlap))
    rows, columns = (max(1, (n - 5 - side) // pitch + 1) for n in tissue.shape[1:])
    stacks = {}
    for place in np.ndindex(rows, columns):
        y, x = (a * pitch + int(random.integers(0, 5)) for a in place)
        light = np.exp(gains.normal(0, exposure)) * photons * tissue[:, y : y + side, x : x + side] * flat
        seen = random.poisson(light) + random.normal(background, 3, light.shape)
        stacks[place] = np.clip(np.rint(seen), 0, 65535).astype(np.uint16)
    return ArrayAcquisition.of(stacks, 1 - pitch / side)


def draw_case(kind: str, seed: int, brain: np.ndarray | None, exposure: float) -> tuple[ArrayAcquisition, np.ndarray]:
    """Return the tiles of a seed and the true field."""
    number = ("brain", "sparse", "real").index(kind)
    random, gains = np.random.default_rng([seed, number]), np.random.default_rng([seed, number, 1])
    flat = draw_field(FIELDS[seed % len(FIELDS)], random)
    if brain is None:
        rows, columns = (int(n) for n in random.integers(3, 6, 2))
        shape = PLANES, rows * 112 + SIDE, columns * 112 + SIDE
        return cut_case(draw_tissue(shape, random, sparse=kind == "sparse"), flat, random, gains, exposure), flat
    first = int(random.integers(40, len(brain) - 90))
    return cut_case(brain[first : first + 2 * PLANES : 2], flat, random, gains, exposure), flat


def rms_percent(found: np.ndarray, truth: np.ndarray) -> float:
    """Rms of the ratio of two fields, each scaled to mean 1."""
    ratio = found / truth
    return float(100 * np.sqrt(np.mean((ratio / ratio.mean() - 1) ** 2)))


def compare_on_known_fields(
    methods: list[str], seeds: range, data: Path | None, engine: Engine, exposure: float
) -> None:
    """Print a table of errors."""
    brain = None if data is None else read_brain(data)
    print(f"| tissue | method | median % | 90th % | worst % | under 1.5 % | seconds |\n|{'---|' * 7}")
    for kind in ("brain", "sparse", *(() if brain is None else ("real",))):
        cases = [draw_case(kind, seed, brain if kind == "real" else None, exposure) for seed in seeds]
        before = [rms_percent(np.ones_like(flat), flat) for _, flat in cases]
        print(f"| {kind} | *uncorrected* | {np.median(before):.2f} | | {max(before):.2f} | | |")
        for method in methods:
            settings = ShadingSettings(method=method)
            started, errors = time.perf_counter(), []
            try:
                errors = [rms_percent(estimate_shading(a, 0, settings, engine).flat, flat) for a, flat in cases]
            except InputError as error:
                print(f"| {kind} | {method} | {error} |")
                continue
            seconds = (time.perf_counter() - started) / len(seeds)
            figures = " | ".join(f"{v:.2f}" for v in (np.median(errors), np.percentile(errors, 90), max(errors)))
            passed = np.mean(np.array(errors) < 1.5)
            print(f"| {kind} | {method} | {figures} | {passed:.0%} | {seconds:.1f} |", flush=True)


def real_tiles(data: Path) -> ArrayAcquisition:
    """Read the 54 real tiles of the layout, one plane each, at the places that their layout says."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.unpack_archive(data / "tiles" / "WSI_brain.tar", folder)
        tiles = Path(folder) / "WSI_brain"
        entries = re.findall(r"(\S+\.tif); ; \(([-\d.]+), ([-\d.]+)\)", (tiles / "TileConfiguration.txt").read_text())
        stacks = {
            (round(float(y) / 460), round(float(x) / 460)): tifffile.imread(tiles / name).astype(np.uint16)[None]
            for name, x, y in entries
        }
    return ArrayAcquisition.of(stacks, 1 - 460 / 512)


def seam(acquisition: ArrayAcquisition, shading: Shading) -> float:
    """Median of how far two tiles that overlap are apart in brightness, where both are bright, in per cent."""
    ratios = []
    for (row, column), first in acquisition.stacks.items():
        for (dr, dc), here, there in (
            ((0, 1), np.s_[:, 460:], np.s_[:, :52]),
            ((1, 0), np.s_[460:], np.s_[:52]),
        ):
            second = acquisition.stacks.get((row + dr, column + dc))
            if second is None:
                continue
            a, b = (ndimage.uniform_filter(shading.apply(s)[0], 9) for s in (first, second))
            a, b = a[here][::6, ::6], b[there][::6, ::6]
            bright = (a > 2500) & (b > 2500)
            ratios.append(np.log(a[bright] / b[bright]))
    return 100 * float(np.median(np.abs(np.concatenate(ratios))))


def compare_on_real_tiles(methods: list[str], data: Path, engine: Engine) -> None:
    """Print how far the methods are apart on the real tiles, and which seams they leave."""
    acquisition = real_tiles(data)
    found = {}
    for method in methods:
        try:
            found[method] = estimate_shading(acquisition, 0, ShadingSettings(method=method), engine)
        except InputError as error:
            print(error)
    background = next(iter(found.values())).background
    print(f"\n54 real tiles, background {background:.0f}; rms difference of the fields in per cent, and seams left\n")
    print(f"| | {' | '.join(found)} | seams |\n|{'---|' * (len(found) + 2)}")
    print(f"| *uncorrected* | {' | ' * len(found)}{seam(acquisition, Shading(np.ones((512, 512)), background)):.1f} |")
    for one, shading in found.items():
        row = " | ".join(f"{rms_percent(shading.flat, other.flat):.2f}" for other in found.values())
        print(f"| {one} | {row} | {seam(acquisition, shading):.1f} |")


def hold_out(methods: list[str], data: Path, engine: Engine) -> None:
    """Print the seams that the field of one half of the real tiles leaves in the other half."""
    stacks = real_tiles(data).stacks
    middle = (max(column for _, column in stacks) + 1) // 2
    left, right = (
        ArrayAcquisition.of({place: s for place, s in stacks.items() if (place[1] < middle) == first}, 1 - 460 / 512)
        for first in (True, False)
    )
    print(f"\nheld out\n\n| | seams of the other half | halves differ |\n|{'---|' * 3}")
    for method in methods:
        try:
            one, other = (estimate_shading(half, 0, ShadingSettings(method=method), engine) for half in (left, right))
        except InputError as error:
            print(error)
            continue
        apart = rms_percent(one.flat, other.flat)
        print(f"| {method} | {seam(right, one):.1f}, {seam(left, other):.1f} | {apart:.1f} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="folder with mouse_stpt and tiles")
    parser.add_argument("--exposure", type=float, default=0.0, help="how much tiles differ in brightness")
    parser.add_argument("--methods", nargs="+", default=["combined", "mean", "n4", "basic"])
    options = parser.parse_args()
    with Engine(workers=2, memory="2GB") as engine:
        seeds = range(options.first_seed, options.first_seed + options.seeds)
        compare_on_known_fields(options.methods, seeds, options.data, engine, options.exposure)
        if options.data is not None:
            compare_on_real_tiles(options.methods, options.data, engine)
            hold_out(options.methods, options.data, engine)


if __name__ == "__main__":
    main()
