"""TeraStitcher's steps, done by our stitching; `_terastitcher` lets TeraStitcher's own programs do them."""

from __future__ import annotations

import hashlib
import os
import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from cloudreg.errors import InputError
from cloudreg.execution import Engine, Ledger
from cloudreg.execution.progress import say
from cloudreg.io import Volume, open_volume, remove_volume
from cloudreg.io.blocks import blocks_within
from cloudreg.io.lengths import VoxelSizeUnknownError
from cloudreg.io.terafly import TeraflyForm, write_terafly
from cloudreg.scripts import _planner as planner
from cloudreg.scripts import _words as words
from cloudreg.scripts._commands import read_params
from cloudreg.scripts._legacy import run
from cloudreg.scripts._terastitcher import drive
from cloudreg.settings import AlignSettings, FusionSettings
from cloudreg.space import Box
from cloudreg.stitching import align_in_steps, fuse
from cloudreg.tiles import Acquisition, Project, open_acquisition, read_project, write_project

_STEPS = {"displcompute": "2", "displproj": "3", "displthres": "4", "placetiles": "5", "merge": "6"}
_NAMES = {"2": "displcomp", "3": "displproj", "4": "displthres", "5": "merging"}
_FORMS: dict[str, TeraflyForm] = {
    "series2d": "series",
    "tiled2d": "tiles_2d",
    "tiled3d": "tiles_3d",
    "tiled4d": "tiles_4d",
}
_SOURCES = ("unstitched2d", "unstitched3d", "series2d", "3d")
_USED = {
    "2": {"projin", "projout", "sV", "sH", "sD", "subvoldim", "imin_channel"},
    "3": {"projin", "projout"},
    "4": {"projin", "projout", "threshold"},
    "5": {"projin", "projout"},
    "6": {"info", "isotropic"},
}


def as_program(params: Sequence[str], explanation: str | None, *, conversion: bool = False) -> int:
    """Run a command line, see `run_step`, or explain it where ``--help`` is asked for; return the exit code."""
    if {"-h", "--help"} & {*params}:
        print(explanation)
        return 0
    return run(lambda given: run_step(given.words, conversion=conversion), Namespace(words=params))


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
    if workers and not (workers.isdecimal() and int(workers)):
        raise InputError(f"expected a number of processes for -np, got {workers!r}")
    steps = {_STEPS.get(word.strip("-"), word.strip("-")) for word in params if "=" not in word} & set("23456")
    if conversion:
        steps = {"6"}
    if len(steps) != 1 or chosen not in ("own", "terastitcher"):
        raise InputError("expected one step, -2 to -6, and --engine own or terastitcher")
    (step,) = steps
    with Engine(workers=int(workers) if workers else None, cluster=cluster or None) as engine:
        if chosen == "terastitcher":
            drive(step, params, engine)
        elif step == "6":
            convert(params, engine)
        else:
            _say_unused(step, params)
            _place(step, params, engine)


def subordinate() -> None:
    """Do nothing, successfully: the workers of the main process do what subordinate processes did."""
    say("this process has nothing to do: the main one works in parallel by itself")


def convert(params: Sequence[str], engine: Engine) -> list[Path]:
    """Do step 6: stitch a placed project, or take a volume, and write it as folders of TIFF files.

    A stopped conversion of the same source to the same place goes on where it was.
    """
    source, output, wb1, wb2, wb3, sfmt, dfmt, levels, most, others, *_ = read_params(params)
    form = _form(dfmt)
    if _plain(sfmt) not in _SOURCES:
        raise InputError(
            'expected "TIFF (unstitched, 3D)", "TIFF (series, 2D)" or "TIFF (3D)" as the format to read, got '
            f"{sfmt!r}: leave -sfmt out for what cloudreg convert reads, or give --engine terastitcher"
        )
    _say_unused("6", others)
    asked = {word.strip("-") for word in others}
    isotropic = "isotropic" in asked
    out = Path(output)
    if "info" in asked:
        print(f"memory needed: {engine.memory_bytes / 1e9:.3f} GBytes at most")
        return []
    what = f"{Path(source).absolute()} {_age(source)} {form} {levels} {isotropic} {wb1} {wb2} {wb3}"
    key = hashlib.sha256(what.encode()).hexdigest()[:16]
    stitched = out / f".stitched.{key}.ome.zarr"
    ledgers = [out / f".{key}.{name}.ledger" for name in ("fuse", "planes")]
    volume = _volume(source, stitched, engine, Ledger(ledgers[0]))
    if form == "series":
        # Whole chunks, so that none is read twice, and whole voxels of the coarsest resolution.
        unit = [-(-n // 2**most) * 2**most for n in volume.chunk]
        boxes = blocks_within(volume.grid.shape, unit, 3 * volume.dtype.itemsize, engine.memory_per_block_bytes)
    else:
        boxes = _planned(volume.grid.shape, (wb1, wb2, wb3), most)
    folders = write_terafly(
        volume, out, boxes, form=form, levels=levels, isotropic=isotropic, engine=engine, ledger=Ledger(ledgers[1])
    )
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
        acquisition, channel = _opened(project, words.check_flag(params, "-imin_channel=", False))
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


def _say_unused(step: str, params: Sequence[str]) -> None:
    """Name the parameters of TeraStitcher that have no meaning for our engine."""
    names = [word.lstrip("-").partition("=")[0] for word in params if word.startswith("-")]
    unused = [name for name in names if name not in _USED[step] and _STEPS.get(name, name) != step]
    if unused:
        say(f"parameters that only TeraStitcher needs, not used here: {', '.join(unused)}")


def _opened(project: Project, wanted: str | None = None) -> tuple[Acquisition, int]:
    """Open the tiles of a project, and find out which channel it is of, unless one is wanted."""
    acquisition = open_acquisition(project.stacks_dir)
    if wanted not in (None, "all"):
        if not wanted.isdecimal() or int(wanted) not in acquisition.channels:
            raise InputError(
                f"expected one of the channels {', '.join(map(str, acquisition.channels))} of {project.stacks_dir} "
                f"for -imin_channel, got {wanted!r}"
            )
        return acquisition, int(wanted)
    pattern = next((tile.pattern for tile in project.tiles if tile.pattern), "")
    named = re.search(r"CHN(\d+)", pattern)
    if named is not None:
        return acquisition, int(named[1])
    if len(acquisition.channels) != 1:
        raise InputError(f"expected a project that names a channel (IMG_REGEX), that of {project.stacks_dir} does not")
    return acquisition, acquisition.channels[0]


def _search_um(params: list[str], acquisition: Acquisition) -> tuple[float, float, float]:
    """Return how far to search along z, y and x, as given in pixels (-sD=, -sV=, -sH=) or as usual."""
    usual = zip("DVH", AlignSettings().search_um, acquisition.voxel_size_um, strict=True)
    z, y, x = (words.read_item(params, f"-s{axis}=", um / size, message=False) * size for axis, um, size in usual)
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


def _plain(name: str) -> str:
    """Return a format's name without what differs: it is written with brackets or with commas."""
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("tiff", ""))


def _form(name: str) -> TeraflyForm:
    """Return what a format of TeraConverter is called here."""
    if _plain(name) not in _FORMS:
        raise InputError(
            'expected "TIFF (series, 2D)", "TIFF (tiled, 2D)", "TIFF (tiled, 3D)" or "TIFF (tiled, 4D)" as the format '
            f"to write, got {name!r}: for one TIFF file or OME-Zarr run cloudreg convert, for others give "
            "--engine terastitcher"
        )
    return _FORMS[_plain(name)]


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
