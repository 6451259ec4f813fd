"""Seconds, peak memory and MB/s of every stage, on a synthetic acquisition of a given size.

    python benchmarks/end_to_end.py --tiles 3x4 --side 256 --planes 100

Each stage is one command in a process of its own, so that its peak memory is its own. Start-up is part of the time; a
first round on a tiny acquisition fills the caches of compiled code, so that compilation is not.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from measuring import run_measured

_MAKE = (
    "import sys; from cloudreg.datasets import DemoSize, make_acquisition; "
    "make_acquisition(sys.argv[1], size=DemoSize.fitted(*map(int, sys.argv[2:])))"
)
_ORIENTATION = "import sys; from cloudreg.datasets import DemoTruth; print(DemoTruth.load(sys.argv[1]).orientation)"


@dataclass(frozen=True)
class Measurement:
    """What one stage took."""

    stage: str
    seconds: float
    peak_bytes: int
    megabytes: float


def measure(stage: str, command: list[str], megabytes: float, log: Path) -> Measurement:
    """Run a command, and return its time and the peak memory of its process."""
    with log.open("a") as file:
        usage = run_measured(command, file)
    if usage.code != 0:
        sys.exit(f"{stage} failed with exit code {usage.code}:\n{log.read_text()[-4000:]}")
    return Measurement(stage, usage.seconds, int(usage.peak_bytes), megabytes)


def run_stages(
    folder: Path, rows: int, columns: int, side: int, planes: int, options: list[str], resolution: list[str]
) -> list[Measurement]:
    """Make an acquisition in ``folder`` and run the stages on its first channel.

    The MB of a stage are those of the uint16 pixels that it reads: tiles, then the stitched volume.
    """
    cloudreg = [sys.executable, "-m", "cloudreg"]
    log = folder / "log.txt"
    demo, tiles, project = folder / "demo", folder / "tiles", folder / "project.xml"
    stitched, even, registration = folder / "stitched.ome.zarr", folder / "even.ome.zarr", folder / "registration"
    scanned = rows * columns - (rows * columns > 4)
    tile_mb = scanned * side * side * planes * 2 / 1e6
    height, width = ((n - 1) * 0.85 * side + side for n in (rows, columns))
    volume_mb = height * width * planes * 2 / 1e6

    make = [sys.executable, "-c", _MAKE, str(demo), *map(str, (rows, columns, side, planes))]
    done = [measure("make acquisition", make, 2 * tile_mb, log)]
    letters = subprocess.check_output([sys.executable, "-c", _ORIENTATION, str(demo)], text=True).strip()
    raw, atlas = str(demo / "raw"), str(demo / "atlas")
    register = ["register", str(even), str(registration), "--atlas", atlas, "--orientation", letters, *resolution]
    run = ["run", raw, str(folder / "run"), "--atlas", atlas, "--orientation", letters, *resolution]
    stages: list[tuple[str, list[str], float]] = [
        ("correct-tiles", ["correct-tiles", raw, str(tiles), "--channels", "0"], tile_mb),
        ("align", ["align", str(tiles), str(project)], tile_mb),
        ("fuse", ["fuse", str(project), str(stitched)], tile_mb),
        ("correct-volume", ["correct-volume", str(stitched), str(even)], volume_mb),
        ("register", register, volume_mb),
        ("regions", ["regions", str(registration), "--out", str(folder / "regions.csv")], volume_mb),
        ("run (all, two channels)", run, 2 * tile_mb),
    ]
    for stage, arguments, megabytes in stages:
        done.append(measure(stage, [*cloudreg, *arguments, *options], megabytes, log))
    return done


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", default="3x4", metavar="ROWSxCOLUMNS")
    parser.add_argument("--side", type=int, default=256, help="pixels of a tile")
    parser.add_argument("--planes", type=int, default=100)
    parser.add_argument("--workers", type=int, help="threads of each stage; default: one a core")
    parser.add_argument("--memory", help="budget of each stage, such as 4GB")
    parser.add_argument("--resolution", help="finest level of the registration in um; default: 100 for a mouse")
    parser.add_argument("--folder", type=Path, help="where to work; kept. Default: a temporary folder")
    parser.add_argument("--cold", action="store_true", help="skip the first round: count compilation")
    arguments = parser.parse_args()
    rows, columns = (int(n) for n in arguments.tiles.split("x"))
    options = [] if arguments.workers is None else ["--workers", str(arguments.workers)]
    options += [] if arguments.memory is None else ["--memory", arguments.memory]

    resolution = [] if arguments.resolution is None else ["--resolution", arguments.resolution]

    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="cloudreg-benchmark-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if not arguments.cold:
            warm_up = folder / "warm-up"
            warm_up.mkdir()
            run_stages(warm_up, 2, 2, 96, 48, options, ["--resolution", "100"])
            shutil.rmtree(warm_up)
        results = run_stages(folder, rows, columns, arguments.side, arguments.planes, options, resolution)
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder)
    print(
        f"{arguments.tiles} tiles of {arguments.planes} x {arguments.side} x {arguments.side}, {os.cpu_count()} cores"
    )
    print(f"{'stage':<28}{'seconds':>10}{'peak MB':>10}{'MB/s':>10}")
    for result in results:
        speed = result.megabytes / result.seconds
        print(f"{result.stage:<28}{result.seconds:>10.1f}{result.peak_bytes / 1e6:>10.0f}{speed:>10.1f}")


if __name__ == "__main__":
    main()
