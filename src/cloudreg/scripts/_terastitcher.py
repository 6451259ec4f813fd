"""TeraStitcher's own programs, driven several at a time."""

from __future__ import annotations

import hashlib
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from cloudreg.errors import CloudRegError, InputError
from cloudreg.execution import Engine, Ledger
from cloudreg.scripts import _commands as commands
from cloudreg.scripts import _planner as planner
from cloudreg.scripts import _words as words
from cloudreg.tiles import read_project, write_project


def drive(step: str, params: Sequence[str], engine: Engine) -> None:
    """Let TeraStitcher do a step: 2 and 6 in parts, the others as they are.

    Raises
    ------
    InputError
        If the program that it needs is not on the PATH.
    CloudRegError
        If the program ends with an exit status other than 0.
    """
    program = "teraconverter" if step == "6" else "terastitcher"
    if shutil.which(program) is None:
        raise InputError(f"expected TeraStitcher's program {program} on the PATH for --engine, found none")
    if step == "2":
        _align(params, engine)
    elif step == "6":
        _convert(params, engine)
    else:
        worker(shlex.join([program, *params]))


def worker(input_file: str) -> None:
    """Run one command of a queue; an exit status other than 0 is an error."""
    done = subprocess.run(shlex.split(input_file), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise CloudRegError(f"{input_file} ended with exit status {done.returncode}: {last}")


def dispatch(
    queue: Iterable[str] | Mapping[int, str], rs_fname: str | None = None, engine: Engine | None = None
) -> None:
    """Run the commands of a queue side by side, in its order.

    Parameters
    ----------
    queue
        Commands, in a list or by index.
    rs_fname
        File that remembers which are done, so that a stopped queue goes on.
    engine
        Where; by default on all cores of this machine.
    """
    listed = list(queue.values()) if isinstance(queue, Mapping) else list(queue)
    ledger = None if rs_fname is None else Ledger(rs_fname)
    with Engine() if engine is None else nullcontext(engine) as running:
        running.run(worker, listed, label="commands", unit="commands", ledger=ledger)


def _align(params: Sequence[str], engine: Engine) -> None:
    """Do step 2 by several runs of TeraStitcher, each for a part of the grid and of the depth."""
    params = [*params]
    projin = words.check_flag(params, "-projin=", False)
    projout = words.check_flag(params, "-projout=", False)
    if not projin or not projout:
        raise InputError("expected -projin= and -projout=, the projects before and after")
    project = read_project(projin)
    planes = words.read_item(params, "-subvoldim=", 100, message=False)
    layers = planner.create_starts_end(_even(project.slices, -(-project.slices // planes)), open_dx=False)
    cuts = planner.do_additional_partition(engine.workers, project.rows, project.columns, len(layers[0]))
    rows, columns = _sharing(project.rows, cuts[0]), _sharing(project.columns, cuts[1])
    parts = Path(projout).with_name(f".parts.{Path(projout).name}")
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir(parents=True)
    rest = [w for w in params if w.lstrip("-").partition("=")[0] not in ("projout", "2", "displcompute")]
    queue = {}
    boxes = [(r, c, d) for r in rows for c in columns for d in zip(*layers, strict=True)]
    for number, ((r0, r1), (c0, c1), (d0, d1)) in enumerate(boxes):
        part = [f"-projout={parts / f'{number:05d}.xml'}", f"-R0={r0}", f"-R1={r1}", f"-C0={c0}", f"-C1={c1}"]
        queue[number] = shlex.join(["terastitcher", "-2", *rest, *part, f"-D0={d0}", f"-D1={d1}"])
    sizes = {n: [r[1] - r[0] + 1, c[1] - c[0] + 1, d[1] - d[0] + 1] for n, (r, c, d) in enumerate(boxes)}
    order = planner.sort_elaborations(planner.score_function(sizes))
    dispatch(planner.sort_work(queue, order), engine=engine)
    measured = [read_project(part) for part in sorted(parts.glob("*.xml"))]
    write_project(project.merged(measured), projout, step="displcomp")
    shutil.rmtree(parts)


def _convert(params: Sequence[str], engine: Engine) -> None:
    """Do step 6 by several runs of TeraConverter, one a block."""
    params = [word for word in params if word.strip("-") not in ("6", "merge")]
    first, queue, sizes, final = commands.create_commands(engine.workers, words=params)
    out = commands.read_params(params)[1]
    Path(out).mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256("\n".join([first, *queue.values()]).encode()).hexdigest()[:16]
    resume = Path(out) / f".{key}.ledger"
    if not resume.exists():
        worker(first)
    order = planner.sort_elaborations(planner.score_function(sizes))
    dispatch(planner.sort_work(queue, order), str(resume), engine)
    worker(final)
    resume.unlink(missing_ok=True)


def _even(length: int, parts: int) -> list[int]:
    """Cut a length as evenly as possible, the longer parts first."""
    return [length // parts + (i < length % parts) for i in range(parts)]


def _sharing(count: int, parts: int) -> list[tuple[int, int]]:
    """Cut a row of tiles into ranges (first and last) that share a tile, so that no pair of neighbours is lost."""
    if count == 1:
        return [(0, 0)]
    starts, ends = planner.create_starts_end(_even(count - 1, min(parts, count - 1)))
    return list(zip(starts, ends, strict=True))
