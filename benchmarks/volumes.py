"""Throughput of a TIFF series to a volume with its pyramid, beside the rivals, and of the pyramid's kernels.

    python benchmarks/volumes.py --gigabytes 2 --rivals rivals/bin/python

RIVALS is an interpreter with ``cloudreg[rivals]``; without it only ours and tensorstore run. Every run is a process of
its own, and the methods take turns, so that a busy machine is busy for all of them. MB/s are of the uint16 voxels of
the finest level; the table has medians of the rounds, the core seconds of the whole method, start included, which a
busy machine changes least, and the peak memory of its largest process (the rivals have two). ``tensorstore`` writes the
finest level only, from memory: what the disk and the codec allow.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from measuring import run_measured

_SIDE = 2048
_SOURCE = Path(__file__).resolve().parent


def make_series(folder: Path, planes: int) -> None:
    """Write planes that compress about as microscopy does: a smooth brightness and the noise of counting photons."""
    import tifffile

    rng = np.random.default_rng(0)
    y, x = np.mgrid[:_SIDE, :_SIDE] / _SIDE
    brightness = 120 + 300 * np.sin(3 * y) ** 2 * np.cos(4 * x) ** 2
    noisy = [rng.poisson(brightness).astype(np.uint16) for _ in range(8)]
    (folder / "series").mkdir()
    for z in range(planes):
        tifffile.imwrite(folder / "series" / f"{z:05d}.tif", np.roll(noisy[z % 8], z, axis=0), photometric="minisblack")


def make_kernel_inputs(folder: Path) -> None:
    """Store arrays to halve: noise to average, regions of 25 voxels to take the mode of."""
    rng = np.random.default_rng(0)
    image = rng.poisson(100, (128, 512, 512))
    z, y, x = (np.arange(n) // 25 for n in image.shape)
    labels = np.add.outer(np.add.outer(100 * z, 10 * y), x)
    for name in ("uint8", "uint16", "float32"):
        np.save(folder / f"kernel_image_{name}.npy", image.astype(name))
    for name in ("uint32", "uint64"):
        np.save(folder / f"kernel_labels_{name}.npy", labels.astype(name))


def cloudreg(folder: Path, form: str) -> dict[str, float]:
    """Convert the series; ``form`` is ``precomputed`` (raw chunks of 64^3) or ``ome-zarr`` (shards)."""
    from cloudreg.execution import Engine
    from cloudreg.io import convert

    out = f"precomputed://{folder}/ours" if form == "precomputed" else f"{folder}/ours.ome.zarr"
    with Engine(workers=2, memory="1.6GB") as engine:
        start = time.perf_counter()
        volume = convert(folder / "series", out, engine=engine, voxel_size_um=(2, 2, 2), sharded=form != "precomputed")
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "levels": len(volume.levels)}


def tensorstore(folder: Path, form: str) -> dict[str, float]:
    """Write the finest level from memory, in our layout, by tensorstore alone; a slab at a time if it is large."""
    import tifffile

    from cloudreg.io import create_volume
    from cloudreg.space import Box, Grid

    files = sorted((folder / "series").iterdir())
    depth = min(256, len(files))
    slab = np.stack([tifffile.imread(file) for file in files[:depth]])
    grid = Grid.from_spacing((len(files), _SIDE, _SIDE), (2, 2, 2))
    out = f"precomputed://{folder}/ours" if form == "precomputed" else f"{folder}/ours.ome.zarr"
    writer = create_volume(out, grid, "uint16", sharded=form != "precomputed", levels=1)
    seconds = 0.0
    for z in range(0, len(files), depth):
        box = Box((z, 0, 0), (min(z + depth, len(files)), _SIDE, _SIDE))
        start = time.perf_counter()
        writer.write(box, slab[: box.shape[0]])
        seconds += time.perf_counter() - start
    return {"seconds": seconds, "levels": 1}


def kernels(folder: Path) -> dict[str, float]:
    """Million voxels a second of one core that ours halves along three axes."""
    from cloudreg.io import downsample

    rates = {}
    for file in sorted(folder.glob("kernel_*.npy")):
        array = np.load(file)
        seconds = []
        for _ in range(16):
            start = time.thread_time()
            downsample(array, (2, 2, 2), "labels" if "labels" in file.stem else "image")
            seconds.append(time.thread_time() - start)
        rates[file.stem] = array.size / float(np.median(seconds[1:])) / 1e6
    return rates


OURS = {
    "tensorstore, raw precomputed": lambda folder: tensorstore(folder, "precomputed"),
    "CloudReg, raw precomputed": lambda folder: cloudreg(folder, "precomputed"),
    "tensorstore, sharded OME-Zarr": lambda folder: tensorstore(folder, "ome-zarr"),
    "CloudReg, sharded OME-Zarr": lambda folder: cloudreg(folder, "ome-zarr"),
    "kernels": kernels,
}
RIVALS = ("cloud-volume + tinybrain, raw", "cloud-volume + tinybrain, gzip", "cloud-volume + igneous, raw")


def measure(interpreter: str, script: str, method: str, folder: Path) -> dict[str, float]:
    """Run one method in a process of its own; return its figures and its peak memory in GB."""
    for name in ("ours", "ours.ome.zarr", "rival"):
        shutil.rmtree(folder / name, ignore_errors=True)
    os.sync()
    with (folder / "out").open("w+") as out:
        usage = run_measured([interpreter, str(_SOURCE / script), method, str(folder)], out)
        out.seek(0)
        printed = out.read()
    if usage.code != 0:
        sys.exit(f"{method} failed with exit code {usage.code}:\n{printed[-4000:]}")
    figures = json.loads(next(line for line in reversed(printed.splitlines()) if line.startswith("{")))
    return {**figures, "peak_gb": usage.peak_bytes / 1e9, "core_seconds": usage.cpu_seconds}


def main() -> None:
    """Parse, run in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the series")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rivals", help="interpreter that has them")
    parser.add_argument("--methods", nargs="+", help="only those whose names begin so; default: all, and the kernels")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        planes = max(64, round(options.gigabytes * 1e9 / (2 * _SIDE**2)))
        make_series(folder, planes)
        make_kernel_inputs(folder)
        megabytes = planes * 2 * _SIDE**2 / 1e6
        methods = [(sys.executable, "volumes.py", m) for m in OURS if m != "kernels"]
        if options.rivals:
            methods += [(options.rivals, "volume_rivals.py", m) for m in RIVALS]
        if options.methods:
            methods = [each for each in methods if each[2].startswith(tuple(options.methods))]
        runs: dict[str, list[dict[str, float]]] = {m: [] for _, _, m in methods}
        for _ in range(options.rounds):
            for interpreter, script, method in methods:
                runs[method].append(measure(interpreter, script, method, folder))
                print(f"{method}: {runs[method][-1]}", file=sys.stderr, flush=True)
        print(f"{megabytes:.0f} MB of uint16, medians of {options.rounds} rounds\n")
        print("| method | MB/s | core seconds a GB | peak GB |\n|---|---|---|---|")
        for method, found in runs.items():
            rate = megabytes / float(np.median([run["seconds"] for run in found]))
            cores = float(np.median([run["core_seconds"] for run in found])) / megabytes * 1e3
            print(f"| {method} | {rate:.0f} | {cores:.1f} | {max(run['peak_gb'] for run in found):.2f} |")
        if options.methods:
            return
        ours = measure(sys.executable, "volumes.py", "kernels", folder)
        theirs = measure(options.rivals, "volume_rivals.py", "kernels", folder) if options.rivals else {}
        print("\n| kernel, million voxels a second | CloudReg | tinybrain |\n|---|---|---|")
        for kernel, rate in ours.items():
            if kernel.startswith("kernel_"):
                name = kernel.removeprefix("kernel_").replace("_", ", ")
                print(f"| {name} | {rate:.0f} | {theirs.get(kernel, 0):.0f} |")


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] in OURS:
        print(json.dumps(OURS[sys.argv[1]](Path(sys.argv[2]))))
    else:
        main()
