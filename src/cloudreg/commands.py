"""What the command line's commands do, where that is more than one call to a stage.

Each takes paths, opens what lies there, calls a stage, and leaves new files. Only these print results.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from cloudreg import pipeline
from cloudreg.atlas import load_atlas
from cloudreg.errors import InputError
from cloudreg.execution import Engine, Ledger, require_writable
from cloudreg.io import Kind, Volume, build_pyramid, describe, describe_cost, open_volume, parse_region, part_of
from cloudreg.io import convert as convert_volume
from cloudreg.io.objects import is_remote, plain_address
from cloudreg.io.volume import Source
from cloudreg.io.writing import writable_format
from cloudreg.regions import evaluate as evaluate_transform
from cloudreg.registration import OpenRegistration, open_registration
from cloudreg.run_folder import RunFolder, content_fingerprint, load_manifest, write_atomically
from cloudreg.settings import AlignSettings, AtlasSettings, FusionSettings, IlluminationSettings, RunSettings
from cloudreg.space import Box
from cloudreg.tiles import acquisition_of, open_acquisition, read_project, say_damage, write_project
from cloudreg.transforms import Frame, Side, apply_points_file, export_transform, load_initial_affine, read_all_points
from cloudreg.transforms.brainglobe import export_brainglobe
from cloudreg.transforms.export import FieldFormat
from cloudreg.transforms.images import apply_image

if TYPE_CHECKING:
    from cloudreg.flatfield.destripe import Destriping


def demo(out: Path, engine: Engine, *, command: str) -> None:
    """Make an acquisition, run everything on it at its defaults, and print how far the results are from the truth."""
    from cloudreg.datasets import make_acquisition, score_demo
    from cloudreg.flatfield import load_shading
    from cloudreg.viewer import write_run_report

    if not _is_demo(out):
        _require_new(out)
    truth = make_acquisition(out / "acquisition")
    settings = RunSettings(atlas=AtlasSettings(name=str(truth.atlas)), orientation=truth.orientation)
    # A score is of one result: it must not outlive it.
    RunFolder(out / "run").score.unlink(missing_ok=True)
    run = pipeline.run(truth.acquisition, out / "run", settings, engine, command=command)
    project = read_project(run.project)
    score = score_demo(
        truth,
        shadings={c: load_shading(run.shading(c)) for c in range(len(truth.flats))},
        positions_px=[project.position_px(int(row), int(column)) for row, column in truth.cells],
        transform=open_registration(run.registration).transform,
        labels=open_volume(run.registration / "labels_in_target.ome.zarr"),
        regions_csv=run.regions,
    )
    rows = [{"name": name, "unit": unit, "value": value} for name, unit, value in score.rows()]
    dice = dict(sorted(score.dice.items(), key=lambda item: item[1]))
    write_atomically(run.score, json.dumps({"rows": rows, "dice": dice}, indent=2) + "\n")
    write_run_report(run)
    table = Table("against the truth", "error or overlap", "unit", title="CloudReg demo", title_justify="left")
    for name, unit, value in score.rows():
        table.add_row(name, f"{value:.3g}", unit)
    console = Console()
    console.print(table)
    console.print(f"Look at {run.report}", soft_wrap=True)


def correct_tiles(
    raw: str,
    out: Path,
    settings: RunSettings,
    engine: Engine,
    *,
    known: Path | None = None,
    destriping: Destriping | None = None,
    voxel_size_um: Sequence[float] | None = None,
    strict: bool = False,
) -> None:
    """Write an acquisition anew without background and vignetting, and the fields that were taken off beside it.

    The fields are found, or those of other tiles are taken: a folder of ``channel_NN``, or one field for all channels.
    """
    from cloudreg.flatfield import estimate_shading, load_shading, save_shading
    from cloudreg.flatfield.apply import correct_tiles as take_off

    acquisition = open_acquisition(raw, voxel_size_um=voxel_size_um, strict=strict)
    channels = _chosen(settings.channels, acquisition.channels)
    shadings = {}
    if known is not None:
        one = (known / "shading.json").exists()
        shadings = {c: load_shading(known if one else known / f"channel_{c:02d}") for c in channels}
    # The same input and settings go on where they were stopped; others must not take those planes for their own.
    fields = [s.flat.tobytes() + str(s.background).encode() for s in shadings.values()]
    what = (acquisition.fingerprint(channels) + settings.shading.model_dump_json()).encode() + b"".join(fields)
    what += repr(destriping).encode()
    ledger = Ledger(out.with_name(f".{out.name}.{hashlib.sha256(what).hexdigest()[:16]}.ledger"))
    if not len(ledger):
        _require_new(out)
    if known is None:
        shadings = {c: estimate_shading(acquisition, c, settings.shading, engine) for c in channels}
    take_off(acquisition, shadings, out, engine, ledger, destriping=destriping)
    for channel, shading in shadings.items():
        save_shading(shading, out / "shading" / f"channel_{channel:02d}")
    ledger.path.unlink()
    say_damage()


def align(
    raw: str,
    project: Path,
    settings: AlignSettings,
    engine: Engine,
    *,
    channel: int,
    shading: Path | None,
    start: Path | None = None,
    reuse: Path | None = None,
    steps: Path | None = None,
    voxel_size_um: Sequence[float] | None = None,
    strict: bool = False,
) -> None:
    """Place the tiles of an acquisition, or take the places of another channel; all files written are new."""
    if reuse is not None and (start is not None or steps is not None):
        raise InputError("expected --reuse alone, got --from or --steps as well: nothing is measured or placed anew")
    if project.suffix.lower() != ".xml":
        raise InputError(f"expected the name of a new TeraStitcher project, *.xml, got {project}")
    _require_new_file(project)
    if steps is not None:
        _require_new(steps)
    acquisition = open_acquisition(raw, voxel_size_um=voxel_size_um, strict=strict)
    if reuse is not None:
        from cloudreg.stitching import reuse_alignment

        write_project(reuse_alignment(read_project(reuse), acquisition, channel), project, step="merging")
    else:
        pipeline.align_tiles(acquisition, channel, shading, project, settings, engine, start=start, steps=steps)
    say_damage()


def fuse(
    project: Path,
    out: str,
    settings: FusionSettings,
    engine: Engine,
    *,
    channel: int,
    shading: Path | None,
    raw: str | None = None,
    strict: bool = False,
) -> None:
    """Blend the tiles of a project, of ``raw`` or else of the folder that it names; a stopped one goes on."""
    _require_place(out)
    placed = read_project(project)
    source = raw or acquisition_of(project, placed)
    try:
        acquisition = open_acquisition(source, voxel_size_um=placed.voxel_size_um, strict=strict)
    except InputError as error:
        if raw is not None:
            raise
        # A project names the folder of its tiles and not the table that says where the stage was.
        raise InputError(f"{error}; or say with --raw which folder or table was aligned to {project}") from error
    what = [acquisition.fingerprint((channel,)), content_fingerprint(project, shading), settings.model_dump_json()]
    ledger = Ledger(_ledger_path(out), job=_digest(what))
    pipeline.fuse_tiles(acquisition, channel, project, shading, out, settings, engine, ledger)
    ledger.clear()
    say_damage()


def correct_volume(
    source: str,
    out: str,
    settings: IlluminationSettings,
    engine: Engine,
    *,
    channel: int,
    voxel_size_um: Sequence[float] | None,
    labels: str | None,
) -> None:
    """Even out the light of a volume, by the regions of ``labels`` if there are any."""
    _require_place(out)
    volume = open_volume(source, voxel_size_um=voxel_size_um)
    regions = None if labels is None else open_volume(labels, kind="labels")
    pipeline.correct_volume(volume, out, settings, engine, channel=channel, labels=regions)


def convert(
    source: str,
    out: str,
    engine: Engine,
    *,
    voxel_size_um: Sequence[float] | None = None,
    orientation: str | None = None,
    kind: Kind | None = None,
    level: int | None = None,
    resolution_um: float | None = None,
    region: str | None = None,
    dtype: str | None = None,
    sharded: bool | None = None,
    fill_missing: bool = False,
    verify: bool = False,
    dry_run: bool = False,
) -> None:
    """Write a volume, or a part of it, in another format and place; a stopped run goes on where it was."""
    if level is not None and resolution_um is not None:
        raise InputError("expected --level or --resolution, got both: --resolution chooses the level")
    volume = open_volume(source, voxel_size_um=voxel_size_um, orientation=orientation, kind=kind)
    level = level or 0 if resolution_um is None else volume.level_near(resolution_um)
    box = None if region is None else parse_region(region)
    part = part_of(volume, level=level, region=box)
    if dry_run:
        _print_rows(describe_cost(part, out, dtype=dtype, sharded=sharded))
        return
    stored = Path(volume.path.removeprefix("precomputed://"))
    age = stored.stat().st_mtime_ns if stored.exists() else 0
    what = [volume.path, age, volume.dtype.name, str(volume.grid.to_dict()), level, region, dtype, sharded]
    ledger = Ledger(_ledger_path(out), job=_digest(what))
    convert_volume(
        volume,
        out,
        engine=engine,
        level=level,
        region=box,
        dtype=dtype,
        sharded=sharded,
        fill_missing=fill_missing,
        verify=verify,
        ledger=ledger,
    )
    ledger.clear()


def pyramid(path: str, engine: Engine, *, fill_missing: bool = False) -> None:
    """Make the coarser levels of a volume in place; a stopped run goes on where it was."""
    address = plain_address(path.removeprefix("precomputed://"))
    ledger = Ledger(_cache() / f"{_digest(['pyramid', address])}.ledger")
    build_pyramid(path, engine=engine, ledger=ledger, fill_missing=fill_missing)
    ledger.clear()


def info(path: str, *, voxel_size_um: Sequence[float] | None) -> None:
    """Print what a path holds."""
    folder = Path(path)
    if (folder / "Experiment.ini").exists():
        acquisition = open_acquisition(folder)
        lines = {
            "format": "COLM acquisition",
            "grid": f"{acquisition.rows} x {acquisition.columns} cells, {len(acquisition.tiles)} scanned",
            "tile": f"{_by(acquisition.tile_shape)} {acquisition.dtype}",
            "voxel size": f"{_by(acquisition.voxel_size_um)} um",
            "overlap": f"{acquisition.overlap[0]:.1%} vertical, {acquisition.overlap[1]:.1%} horizontal",
            "channels": ", ".join(str(c) for c in acquisition.channels),
        }
    elif (folder / "manifest.json").exists():
        manifest = load_manifest(folder)
        if manifest.get("kind") == "run":
            manifest = RunFolder(folder).read_manifest() or {}
            lines = {"format": "run", "raw data": manifest["input"]["path"]}
            lines |= {name: stage["status"] for name, stage in manifest["stages"].items()}
        else:
            opened = open_registration(folder)
            manifest = opened.manifest
            lines = {"format": "registration", "target": opened.target_path, "atlas": manifest["atlas"]["name"]}
            lines |= {name.replace("_", " "): str(value) for name, value in manifest["figures"].items()}
    else:
        lines = describe(path) if voxel_size_um is None else describe(open_volume(path, voxel_size_um=voxel_size_um))
    _print_rows(lines)


def register(
    target: str,
    out: Path,
    settings: RunSettings,
    engine: Engine,
    *,
    channels: Sequence[int],
    voxel_size_um: Sequence[float] | None,
    mask: str | None,
    initial_affine: Path | None,
    initial_affine_from: Side = "atlas",
    report: bool = True,
    command: str,
) -> None:
    """Register a volume, measure its regions and write a report if wanted, all in a new folder."""
    _require_new(out)
    volume = open_volume(target, voxel_size_um=voxel_size_um, orientation=settings.orientation)
    atlas = load_atlas(**settings.atlas.model_dump())
    start = None
    if initial_affine is not None:
        frames = Frame(atlas.template.grid, atlas.orientation), Frame(volume.grid, volume.orientation)
        start = load_initial_affine(initial_affine, *frames, from_target=initial_affine_from == "target")
    pipeline.register_to_atlas(
        volume,
        atlas,
        out,
        settings.registration,
        engine,
        channels=channels,
        mask=None if mask is None else _mask(mask, volume),
        initial_affine=start,
        command=command,
    )
    if atlas.labels is not None:
        pipeline.measure_regions(out, _by_channel(volume, range(volume.channels)), out / "regions.csv", engine)
    if report:
        from cloudreg.viewer import write_registration_report

        write_registration_report(out)


def apply(
    registration: Path,
    source: str,
    out: str,
    engine: Engine,
    *,
    to: Side,
    like: str | None,
    labels: bool,
    channel: int,
    voxel_size_um: Sequence[float] | None,
    orientation: str | None,
) -> None:
    """Carry a volume into the other space, onto the grid of the volume ``like`` or of what was registered."""
    place = _require_place(out)
    if not is_remote(place):
        _require_new(Path(place))
    opened = _open_registration(registration)
    kind: Kind = "labels" if labels else "image"
    volume = open_volume(source, voxel_size_um=voxel_size_um, orientation=orientation, kind=kind)
    if like is not None:
        model = open_volume(like)
        grid, letters = model.grid, model.orientation
    elif to == "target":
        grid, letters = opened.target_grid, opened.target_orientation
    else:
        atlas = opened.open_atlas()
        grid, letters = atlas.template.grid, atlas.orientation
    apply_image(
        opened.transform,
        volume,
        grid,
        out,
        to=to,
        labels=labels,
        engine=engine,
        channel=channel,
        orientation=letters,
    )


def apply_points(registration: Path, points: Path, out: Path, *, to: Side) -> None:
    """Carry a file of points into the other space; the output is a new file."""
    _require_new_file(out)
    opened = _open_registration(registration)
    template = opened.open_atlas().template.grid if to == "target" else None
    outside, total = apply_points_file(
        opened.transform, points, out, to, target_grid=opened.target_grid, atlas_grid=template
    )
    if outside:
        print(f"{outside} of {total} points lie outside the registration's field: their coordinates are nan")


def export(registration: Path, out: Path, engine: Engine, *, form: FieldFormat | Literal["brainglobe"]) -> None:
    """Write the transform of a registration for other programs, in a new folder."""
    _require_new(out)
    opened = _open_registration(registration)
    if form != "brainglobe":
        export_transform(opened.transform, opened.atlas_frame, opened.target_frame, out, form)
        return
    channel = int(opened.manifest["target"]["channel"])
    export_brainglobe(opened.transform, opened.open_atlas(), opened.open_target(), out, engine=engine, channel=channel)


def regions(
    registration: Path, out: Path, engine: Engine, *, channels: Sequence[int] | None, cells: Path | None
) -> None:
    """Measure regions in the channels of a run, or in what was registered; the table is a new file."""
    _require_new_file(out)
    opened = _open_registration(registration)
    pipeline.measure_regions(opened.folder, _measured_volumes(opened, channels), out, engine, cells=cells)


def evaluate(
    registration: Path,
    engine: Engine,
    *,
    points_target: Path | None,
    points_atlas: Path | None,
    labels_target: str | None,
) -> None:
    """Print the figures of a registration."""
    opened = _open_registration(registration)
    atlas = opened.open_atlas()
    result = evaluate_transform(
        opened.transform,
        atlas,
        engine=engine,
        points_target=None if points_target is None else read_all_points(points_target, opened.target_grid),
        points_atlas=None if points_atlas is None else read_all_points(points_atlas, atlas.template.grid),
        labels_target=None if labels_target is None else opened.open_target(labels_target, kind="labels"),
    )
    table = Table("figure", "value")
    for name, value in result.figures.items():
        table.add_row(name, f"{value:.6g}")
    for region_id, dice in result.dice.items():
        table.add_row(f"Dice {atlas.regions.named(region_id).acronym}", f"{dice:.4f}")
    Console().print(table)


def report(path: Path) -> None:
    """Write the report of a run or a registration again."""
    from cloudreg.viewer import write_registration_report, write_run_report

    if not path.is_dir():
        raise InputError(f"expected the folder of a run or of a registration at {path}, found none: check the path")
    run = RunFolder(path)
    if run.manifest.exists() and load_manifest(path).get("kind") == "run":
        write_run_report(run)
    else:
        write_registration_report(path)


def _open_registration(path: Path) -> OpenRegistration:
    run = RunFolder(path)
    return open_registration(run.registration if run.registration.is_dir() else path)


def _measured_volumes(opened: OpenRegistration, channels: Sequence[int] | None) -> dict[str, Volume]:
    run = RunFolder(opened.folder.parent)
    if run.manifest.exists() and run.registration == opened.folder:
        done = (run.read_manifest() or {"stages": {}})["stages"]
        known = sorted(int(name.removeprefix("correct_")) for name in done if name.startswith("correct_"))
        volumes = {c: open_volume(run.corrected(c)) for c in _chosen(channels, known)}
        return {f"channel_{c:02d}": volume for c, volume in volumes.items()}
    target = opened.open_target()
    return _by_channel(target, _chosen(channels, list(range(target.channels))))


def _chosen(channels: Sequence[int] | None, known: Sequence[int]) -> list[int]:
    for channel in channels or ():
        if channel not in known:
            raise InputError(f"no channel {channel}: choose from {', '.join(str(c) for c in known)}")
    return list(known if channels is None else channels)


@dataclass(frozen=True)
class _OneChannel:
    """One channel of a source, as its only one."""

    source: Source
    channel: int

    def read(self, level: int, channels: slice, box: Box) -> NDArray[Any]:
        """Return the box, shape (1, z, y, x), whatever ``channels``."""
        return self.source.read(level, slice(self.channel, self.channel + 1), box)


def _by_channel(volume: Volume, channels: Sequence[int]) -> dict[str, Volume]:
    return {
        f"channel_{c:02d}": dataclasses.replace(
            volume, source=_OneChannel(volume.source, c), channels=1, channel_names=None
        )
        for c in channels
    }


def _mask(path: str, target: Volume) -> Volume:
    """Open a mask: one of the target's shape lies where the target lies, another one where its file says."""
    mask = open_volume(path, voxel_size_um=target.grid.voxel_size_um)
    return mask.placed(target.grid.affine) if mask.grid.shape == target.grid.shape else open_volume(path)


def _print_rows(rows: dict[str, str]) -> None:
    width = max(len(name) for name in rows) + 2
    for name, value in rows.items():
        print(f"{name:<{width}}{value}")


def _ledger_path(out: str) -> Path:
    """Return where to remember what is done of a volume: beside it, or on this machine for one that is elsewhere."""
    place = _require_place(out)
    if is_remote(place):
        return _cache() / f"{_digest([place])}.ledger"
    return Path(place).with_name(f".{Path(place).name}.ledger")


def _require_place(out: str) -> str:
    """Return the path or address of a new volume; refuse one that can't be, before anything is read for it."""
    writable_format(out)
    place = plain_address(out.removeprefix("precomputed://"))
    if not is_remote(place):
        require_writable(Path(place).parent, place)
    return place


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cloudreg"


def _digest(what: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


def _is_demo(folder: Path) -> bool:
    """Tell whether a folder holds an acquisition where `demo` puts it, whole or begun; which one is told later."""
    places = [folder / "acquisition", folder / ".acquisition.unfinished"]
    return any(place.is_dir() and any(place.iterdir()) for place in places)


def _require_new(path: Path) -> None:
    """Refuse an output that is there already, unless it is an empty folder, or whose place takes no files."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"{path} exists already: choose another place, or remove it first")
    require_writable(path.parent, str(path))


def _require_new_file(path: Path) -> None:
    """Refuse an output that is a folder, even an empty one, or that `_require_new` refuses."""
    if path.is_dir():
        raise InputError(f"expected the name of a new file, got the folder {path}: name a file in it")
    _require_new(path)


def _by(values: Sequence[float]) -> str:
    return " x ".join(f"{v:g}" for v in values)
