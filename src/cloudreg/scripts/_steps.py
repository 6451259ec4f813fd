"""TeraStitcher's steps, done by our stitching or by TeraStitcher's own programs."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from cloudreg.errors import CloudRegError, InputError
from cloudreg.execution import Engine, Ledger
from cloudreg.execution.progress import say
from cloudreg.io import Volume, open_volume, remove_volume
from cloudreg.io.blocks import blocks_within
from cloudreg.io.lengths import VoxelSizeUnknownError
from cloudreg.io.terafly import TeraflyForm, write_terafly
from cloudreg.scripts import _planner as planner
from cloudreg.scripts import _words as words
from cloudreg.settings import AlignSettings, FusionSettings
from cloudreg.space import Box
from cloudreg.stitching import align_in_steps, fuse
from cloudreg.tiles import Acquisition, Displacement, Project, open_acquisition, read_project, write_project

_STEPS = {"displcompute": "2", "displproj": "3", "displthres": "4", "placetiles": "5", "merge": "6"}
_NAMES = {"2": "displcomp", "3": "displproj", "4": "displthres", "5": "merging"}
_FORMS: dict[str, TeraflyForm] = {"series2d": "series", "tiled2d": "tiles_2d", "tiled3d": "tiles_3d"}


def run_step(params: Sequence[str], *, conversion: bool = False) -> None:
    """Do the step that a command line in TeraStitcher's manner asks for.

    Parameters
    ----------
    params
        ``-2``, ``-3``, ``-4``, ``-5`` or ``-6`` and its parameters, and ``--engine``, ``--cluster``, ``-np``.
    conversion
        Step 6 is meant, without a word.
    """
    if _mpi_rank():
        # One process does it all, with as many workers as there are cores.
        subordinate()
        return
    params = [*params]
    chosen = _option(params, "engine", "own")
    workers = _option(params, "np", "")
    cluster = _option(params, "cluster", "")
    steps = {_STEPS.get(word.strip("-"), word.strip("-")) for word in params if "=" not in word} & set("23456")
    if conversion:
        steps = {"6"}
    if len(steps) != 1 or chosen not in ("own", "terastitcher"):
        raise InputError("expected one step, -2 to -6, and --engine own or terastitcher")
    (step,) = steps
    with Engine(workers=int(workers) if workers else None, cluster=cluster or None) as engine:
        if chosen == "terastitcher":
            program = "teraconverter" if step == "6" else "terastitcher"
            if shutil.which(program) is None:
                raise InputError(f"expected TeraStitcher's program {program} on the PATH for --engine, found none")
            drive = {"2": _drive_alignment, "6": _drive_conversion}.get(step)
            drive(params, engine) if drive else worker(shlex.join([program, *params]))
        elif step == "6":
            convert(params, engine)
        else:
            _place(step, params, engine)


def subordinate() -> None:
    """Do nothing, successfully: the workers of the main process do what subordinate processes did."""
    say("this process has nothing to do: the main one works in parallel by itself")


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
    commands = list(queue.values()) if isinstance(queue, Mapping) else list(queue)
    ledger = None if rs_fname is None else Ledger(rs_fname)
    with Engine() if engine is None else nullcontext(engine) as running:
        running.run(worker, commands, label="commands", unit="commands", ledger=ledger)


def convert(params: Sequence[str], engine: Engine) -> list[Path]:
    """Do step 6: stitch a placed project, or take a volume, and write it as folders of TIFF files.

    A stopped conversion of the same source to the same place goes on where it was.
    """
    source, output, wb1, wb2, wb3, _, dfmt, levels, most, *_ = words.read_params(params)
    form = _form(dfmt)
    out = Path(output)
    if "info" in {word.strip("-") for word in params}:
        print(f"memory needed: {engine.memory_bytes / 1e9:.3f} GBytes at most")
        return []
    key = hashlib.sha256(f"{Path(source).absolute()} {_age(source)} {form} {levels} {wb1} {wb2} {wb3}".encode())
    stitched = out / f".stitched.{key.hexdigest()[:16]}.ome.zarr"
    ledgers = [out / f".{key.hexdigest()[:16]}.{name}.ledger" for name in ("fuse", "planes")]
    volume = _volume(source, stitched, engine, Ledger(ledgers[0]))
    if form == "series":
        # Whole chunks, so that none is read twice, and whole voxels of the coarsest resolution.
        unit = [-(-n // 2**most) * 2**most for n in volume.chunk]
        boxes = blocks_within(volume.grid.shape, unit, 3 * volume.dtype.itemsize, engine.memory_per_block_bytes)
    else:
        boxes = _planned(volume.grid.shape, (wb1, wb2, wb3), most)
    folders = write_terafly(volume, out, boxes, form=form, levels=levels, engine=engine, ledger=Ledger(ledgers[1]))
    if stitched.exists():
        remove_volume(str(stitched))
    for ledger in ledgers:
        ledger.unlink(missing_ok=True)
    return folders


def _place(step: str, params: list[str], engine: Engine) -> None:
    """Do one of the steps 2 to 5."""
    projin = words.check_flag(params, "-projin=", False)
    if not projin:
        raise InputError("expected -projin=, the project to go on from")
    out = Path(words.check_flag(params, "-projout=", False) or Path(projin).with_name(f"xml_{_NAMES[step]}.xml"))
    project = read_project(projin)
    if step == "2":
        acquisition, channel = _opened(project)
        settings = AlignSettings(
            search_um=_search_um(params, acquisition),
            layer_planes=words.read_item(params, "-subvoldim=", 60, message=False),
        )
        write_project(align_in_steps(acquisition, channel, None, settings, engine).measured, out, step="displcomp")
    elif step == "3":
        write_project(project.projected(), out, step="displproj")
    elif step == "4":
        threshold = words.read_item(params, "-threshold=", 0.7, message=False)
        write_project(project.thresholded(threshold), out, step="displthres")
    else:
        acquisition, channel = _opened(project)
        # What step 4 rejected has reliability 0 already.
        settings = AlignSettings(minimum_reliability=0.0)
        placed = align_in_steps(acquisition, channel, None, settings, engine, start=project).placed
        write_project(placed, out, step="merging")


def _drive_alignment(params: list[str], engine: Engine) -> None:
    """Do step 2 by several runs of TeraStitcher, each for a part of the grid and of the depth."""
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
    write_project(_merged(project, sorted(parts.glob("*.xml"))), projout, step="displcomp")
    shutil.rmtree(parts)


def _drive_conversion(params: list[str], engine: Engine) -> None:
    """Do step 6 by several runs of TeraConverter, one a block."""
    params = [word for word in params if word.strip("-") not in ("6", "merge")]
    first, commands, sizes, final = words.create_commands(engine.workers, words=params)
    out = words.read_params(params)[1]
    Path(out).mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256("\n".join([first, *commands.values()]).encode()).hexdigest()[:16]
    resume = Path(out) / f".{key}.ledger"
    if not resume.exists():
        worker(first)
    order = planner.sort_elaborations(planner.score_function(sizes))
    dispatch(planner.sort_work(commands, order), str(resume), engine)
    worker(final)
    resume.unlink(missing_ok=True)


def _merged(project: Project, parts: Sequence[Path]) -> Project:
    """Return a project with the displacements of all its parts, each once."""
    found: dict[tuple[int, int, str], list[Displacement]] = defaultdict(list)
    for part in parts:
        for tile in read_project(part).tiles:
            for side, displacements in (("east", tile.east), ("south", tile.south)):
                known = found[tile.row, tile.column, side]
                known += [d for d in displacements if d not in known]
    return project.linked({place: tuple(displacements) for place, displacements in found.items()})


def _opened(project: Project) -> tuple[Acquisition, int]:
    """Open the tiles of a project, and find out which channel it is of."""
    acquisition = open_acquisition(project.stacks_dir)
    pattern = next((tile.pattern for tile in project.tiles if tile.pattern), "")
    named = re.search(r"CHN(\d+)", pattern)
    if named is not None:
        return acquisition, int(named[1])
    if len(acquisition.channels) != 1:
        raise InputError(f"expected a project that names a channel (IMG_REGEX), that of {project.stacks_dir} does not")
    return acquisition, acquisition.channels[0]


def _search_um(params: list[str], acquisition: Acquisition) -> tuple[float, float, float]:
    usual = AlignSettings().search_um
    given = [words.check_flag(params, f"-s{axis}=", False) for axis in "DVH"]
    sizes = acquisition.voxel_size_um
    z, y, x = (u if g is None else float(g) * size for g, u, size in zip(given, usual, sizes, strict=True))
    return z, y, x


def _volume(source: str, stitched: Path, engine: Engine, ledger: Ledger) -> Volume:
    if not source.endswith(".xml"):
        try:
            return open_volume(source)
        except VoxelSizeUnknownError:
            return open_volume(source, voxel_size_um=(1, 1, 1))
    project = read_project(source)
    acquisition, channel = _opened(project)
    try:
        return open_volume(stitched)
    except InputError:
        stitched.parent.mkdir(parents=True, exist_ok=True)
    return fuse(acquisition, channel, project, None, stitched, FusionSettings(), engine, ledger)


def _planned(shape: Sequence[int], rough: Sequence[int], level: int) -> list[Box]:
    """Return the planners' blocks, those of most voxels first."""
    sizes = [planner.create_sizes(n, w, level) for n, w in zip(shape, rough, strict=True)]
    _, first, last, lengths = planner.blocks(sizes)
    boxes = {n: Box((a[2], a[1], a[0]), (b[2], b[1], b[0])) for n, (a, b) in enumerate(zip(first, last, strict=True))}
    order = planner.sort_elaborations(planner.score_function(lengths))
    return list(planner.sort_work(boxes, order).values())


def _form(name: str) -> TeraflyForm:
    """Return what a format of TeraConverter is called here; it writes them with brackets or commas."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower().replace("tiff", ""))
    if plain not in _FORMS:
        known = '"TIFF (series, 2D)", "TIFF (tiled, 2D)" and "TIFF (tiled, 3D)"'
        raise InputError(f"expected {known} as the format to write, got {name!r}: convert with cloudreg convert")
    return _FORMS[plain]


def _even(length: int, parts: int) -> list[int]:
    """Cut a length as evenly as possible, the longer parts first."""
    return [length // parts + (i < length % parts) for i in range(parts)]


def _sharing(count: int, parts: int) -> list[tuple[int, int]]:
    """Cut a row of tiles into ranges (first and last) that share a tile, so that no pair of neighbours is lost."""
    if count == 1:
        return [(0, 0)]
    starts, ends = planner.create_starts_end(_even(count - 1, min(parts, count - 1)))
    return list(zip(starts, ends, strict=True))


def _option(params: list[str], name: str, default: str) -> str:
    """Take ``--name=value`` or ``--name value`` out of a command line."""
    for index, word in enumerate(params):
        if word.lstrip("-") == name and index + 1 < len(params):
            value = params[index + 1]
            del params[index : index + 2]
            return value
    return words.check_flag(params, f"--{name}=", True) or default


def _age(source: str) -> int:
    return Path(source).stat().st_mtime_ns if Path(source).exists() else 0


def _mpi_rank() -> int:
    """Return which of several processes of an MPI launcher this is."""
    names = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")
    return int(next((os.environ[name] for name in names if name in os.environ), "0"))
