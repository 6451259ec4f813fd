"""The way of the data, in six stages: read this first.

    raw tiles -> corrected tiles -> stitched volume -> registered atlas -> corrected volume -> region table

A stage reads one thing, writes one new thing, and never changes its input. `run` calls the six in order through a run
folder, which knows what is already done. The corrected tiles are never stored: `shade_tiles` finds their flat fields,
and whoever reads a tile applies them. The atlas comes before the light: its regions are what tells slow light from
tissue, and the registration has a contrast of its own at each place, to which slow light is the same.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cloudreg.atlas import Atlas, load_atlas
from cloudreg.errors import InputError
from cloudreg.execution import Engine, Ledger, require_free_space, require_writable
from cloudreg.io import Volume, open_volume, stacked
from cloudreg.run_folder import RunFolder, content_fingerprint, library_versions, open_run
from cloudreg.settings import (
    AlignSettings,
    FusionSettings,
    IlluminationSettings,
    RegistrationSettings,
    RunSettings,
    ShadingSettings,
)
from cloudreg.space import axes_between
from cloudreg.tiles import Acquisition, open_acquisition, read_project, say_damage, write_project

if TYPE_CHECKING:
    from cloudreg.flatfield import Shading


def shade_tiles(acquisition: Acquisition, channel: int, out: Path, settings: ShadingSettings, engine: Engine) -> None:
    """Stage 1: find the background and the flat field of a channel's tiles, and write them to a folder."""
    from cloudreg.flatfield import estimate_shading, save_shading

    save_shading(estimate_shading(acquisition, channel, settings, engine), out)


def align_tiles(
    acquisition: Acquisition,
    channel: int,
    shading: Path | None,
    out: Path,
    settings: AlignSettings,
    engine: Engine,
    *,
    start: Path | None = None,
    steps: Path | None = None,
    seams: Path | None = None,
) -> None:
    """Stage 2: measure the shifts between neighbouring tiles, place all of them, and write a TeraStitcher project.

    With a project to start from, the shifts in it are taken instead. With a folder for the steps, the project of each
    of TeraStitcher's steps is written there too; with a folder for the seams, how well neighbours agree then.
    """
    from cloudreg.stitching import align_in_steps, write_steps
    from cloudreg.stitching.seams import save_seams

    flat = _field_of(acquisition, shading)
    begun = None if start is None else read_project(start)
    alignment = align_in_steps(acquisition, channel, flat, settings, engine, start=begun)
    if steps is not None:
        write_steps(alignment, steps, settings)
    if seams is not None:
        save_seams(acquisition, channel, flat, alignment.placed, seams, engine, drifts=alignment.drifts)
    write_project(alignment.placed, out, step="merging")


def placement_doubts(project: Path) -> list[str]:
    """Return a line for each way in which the images don't hold some of a project's tiles."""
    from cloudreg.stitching.certainty import doubt_lines

    return doubt_lines(read_project(project))


def fuse_tiles(
    acquisition: Acquisition,
    channel: int,
    project: Path,
    shading: Path | None,
    out: str,
    settings: FusionSettings,
    engine: Engine,
    ledger: Ledger | None = None,
) -> Volume:
    """Stage 3: blend the placed tiles into one volume with all its resolutions."""
    from cloudreg.stitching import fuse

    flat = _field_of(acquisition, shading)
    return fuse(acquisition, channel, read_project(project), flat, out, settings, engine, ledger)


def register_to_atlas(
    target: Volume,
    atlas: Atlas,
    out: Path,
    settings: RegistrationSettings,
    engine: Engine,
    *,
    channels: Sequence[int] = (0,),
    mask: Volume | None = None,
    initial_affine: NDArray[np.float64] | None = None,
    command: str = "",
) -> None:
    """Stage 4: fit the map between atlas and volume, and write a registration folder.

    The folder appears under its name only when it is whole. Until then a hidden one beside it keeps how far the fit has
    come, and a registration that was killed goes on from there.
    """
    from cloudreg.registration import register_volume, write_registration

    unfinished = out.with_name(f".{out.name}.unfinished")
    work = out.with_name(f".{out.name}.fit")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    registration = register_volume(
        target, atlas, settings, engine=engine, channel=channels, mask=mask, initial_affine=initial_affine, work=work
    )
    write_registration(
        registration,
        target,
        atlas,
        unfinished,
        engine=engine,
        channel=channels[0],
        settings={"command": command, "versions": library_versions(), "registration": settings.model_dump(mode="json")},
    )
    unfinished.rename(out)
    shutil.rmtree(work)


def correct_volume(
    volume: Volume,
    out: str,
    settings: IlluminationSettings,
    engine: Engine,
    ledger: Ledger | None = None,
    *,
    channel: int = 0,
    bias: Path | None = None,
    labels: Volume | None = None,
) -> Volume:
    """Stage 5: find the slow illumination of a volume, optionally keep it in a folder, and write the even volume.

    With the labels of a registration and the method "regions", what differs between regions is left to them.
    """
    from cloudreg.illumination import correct_volume as remove_bias
    from cloudreg.illumination import estimate_bias, estimate_bias_by_regions, save_bias

    if labels is not None and settings.method == "regions":
        field = estimate_bias_by_regions(volume, channel, labels, settings, engine=engine)
    else:
        field = estimate_bias(volume, channel, settings, engine=engine)
    if bias is not None:
        save_bias(field, bias)
    return remove_bias(volume, field, out, settings, engine, ledger)


def measure_regions(
    registration: Path, volumes: Mapping[str, Volume], out: Path, engine: Engine, *, cells: Path | None = None
) -> None:
    """Stage 6: measure every region of the registered atlas in each volume, count cells, and write a table."""
    from cloudreg.regions import region_table, write_regions_csv
    from cloudreg.registration import open_registration, read_doubts

    opened = open_registration(registration)
    table = region_table(opened.transform, opened.open_atlas(), volumes, engine=engine, cells=cells)
    write_regions_csv(table, out, doubts=read_doubts(registration))


def run(
    raw: str | Path,
    out: str | Path,
    settings: RunSettings,
    engine: Engine,
    *,
    command: str = "",
    voxel_size_um: Sequence[float] | None = None,
    strict: bool = False,
) -> RunFolder:
    """Do all six stages, and write a report; go on where an earlier run into the same folder was stopped.

    Parameters
    ----------
    raw
        An acquisition, see `open_acquisition`.
    out
        Folder of the run: new, or that of a run of the same raw data.
    settings
        Of all stages.
    engine
        Runs the blocks.
    command
        Command line, for the record.
    voxel_size_um, strict
        See `open_acquisition`.

    Raises
    ------
    InputError
        If the raw data, a setting or the output folder is not what it should be; before anything is written.
    """
    require_writable(out, f"the run {out}")
    acquisition = open_acquisition(raw, voxel_size_um=voxel_size_um, strict=strict)
    channels, register_by = _chosen_channels(acquisition, settings)
    align_by = register_by[0] if settings.align.channel is None else settings.align.channel
    shaded_channels = sorted({*channels, align_by})
    _require_space(acquisition, channels, Path(out))
    if settings.registration.device == "cuda":
        from cloudreg.registration.gpu import require_cuda

        require_cuda()
    atlas = load_atlas(**settings.atlas.model_dump())
    if settings.orientation is not None:
        axes_between(settings.orientation, atlas.orientation, allow_mirror=settings.registration.allow_mirror)
    fingerprints = {f"channel {c}": acquisition.fingerprint((c,)) for c in shaded_channels}
    atlas_print = content_fingerprint(
        atlas.template.path, None if atlas.labels is None else atlas.labels.path, settings.atlas.ontology
    )

    with open_run(out, source=raw, fingerprints=fingerprints, settings=settings, command=command) as work:
        here = work.folder
        shade, fuse, even = {}, {}, {}

        for c in shaded_channels:
            with work.stage(
                f"shade_{c:02d}",
                settings=settings.shading,
                after=[fingerprints[f"channel {c}"]],
                outputs=[here.shading(c)],
            ) as shade[c]:
                if shade[c].needed:
                    shade_tiles(acquisition, c, here.shading(c), settings.shading, engine)

        placed = [here.project, here.seams]
        with work.stage("align", settings=settings.align, after=[shade[align_by]], outputs=placed) as align:
            if align.needed:
                flat = here.shading(align_by)
                align_tiles(acquisition, align_by, flat, here.project, settings.align, engine, seams=here.seams)
                align.warnings.extend(placement_doubts(here.project))

        for c in channels:
            with work.stage(
                f"fuse_{c:02d}",
                settings=settings.fusion,
                after=[shade[c], align],
                outputs=[here.stitched(c)],
                resumable=True,
            ) as fuse[c]:
                if fuse[c].needed and not _is_whole(here.stitched(c)):
                    flat, stitched = here.shading(c), str(here.stitched(c))
                    fuse_tiles(acquisition, c, here.project, flat, stitched, settings.fusion, engine, fuse[c].ledger)

        with work.stage(
            "register",
            settings=settings.registration,
            after=[*(fuse[c] for c in register_by), atlas_print, settings.orientation or "unknown orientation"],
            outputs=[here.registration],
        ) as register:
            if register.needed:
                shown = [open_volume(here.stitched(c), orientation=settings.orientation) for c in register_by]
                register_to_atlas(
                    stacked(shown),
                    atlas,
                    here.registration,
                    settings.registration,
                    engine,
                    channels=range(len(shown)),
                    command=command,
                )

        by_regions = settings.illumination.method == "regions" and atlas.labels is not None
        for c in channels:
            with work.stage(
                f"correct_{c:02d}",
                settings=settings.illumination,
                after=[fuse[c], register] if by_regions else [fuse[c]],
                outputs=[here.corrected(c), here.bias(c)],
                resumable=True,
            ) as even[c]:
                if even[c].needed and not _is_whole(here.corrected(c)):
                    volume, corrected = open_volume(here.stitched(c)), str(here.corrected(c))
                    regions = open_volume(here.labels) if by_regions else None
                    correct_volume(
                        volume,
                        corrected,
                        settings.illumination,
                        engine,
                        even[c].ledger,
                        bias=here.bias(c),
                        labels=regions,
                    )

        tables = [here.regions, here.registration / here.regions.name]
        with work.stage("regions", settings={}, after=[register, *even.values()], outputs=tables) as measure:
            if measure.needed:
                volumes = {f"channel_{c:02d}": open_volume(here.corrected(c)) for c in channels}
                measure_regions(here.registration, volumes, here.regions, engine)
                shutil.copyfile(*tables)

        with work.stage("report", settings={}, after=[measure, *even.values()], outputs=[here.report]) as report:
            if report.needed:
                from cloudreg.viewer import write_run_report

                write_run_report(here)
    say_damage()
    return here


def _field_of(acquisition: Acquisition, folder: Path | None) -> Shading | None:
    """Return the shading in a folder, if any, and make sure that it fits the tiles."""
    from cloudreg.flatfield import load_shading

    if folder is None:
        return None
    shading = load_shading(folder)
    shading.require_size(*acquisition.tile_shape[1:])
    return shading


def _chosen_channels(acquisition: Acquisition, settings: RunSettings) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the channels to process, and which of them are registered; the first of these is aligned by."""
    channels = acquisition.channels if settings.channels is None else settings.channels
    for channel in channels:
        acquisition.require_channel(channel)
    wanted = channels[0] if settings.registration_channel is None else settings.registration_channel
    register_by = wanted if isinstance(wanted, tuple) else (wanted,)
    if not register_by:
        raise InputError("expected a channel to register by, got none: leave it out for the first")
    for reference in register_by:
        acquisition.require_channel(reference)
        if reference not in channels:
            raise InputError(
                f"the registration channel {reference} is not among the channels to process, "
                f"{', '.join(str(c) for c in channels)}: add it to --channels, or choose another"
            )
    if settings.align.channel is not None:
        acquisition.require_channel(settings.align.channel)
    return tuple(sorted(set(channels))), tuple(dict.fromkeys(register_by))


def _require_space(acquisition: Acquisition, channels: Sequence[int], out: Path) -> None:
    """Refuse a run whose volumes can't fit; what an earlier attempt wrote needs no more room."""
    depth, height, width = acquisition.tile_shape
    down, right = acquisition.pitch_px
    voxels = depth * ((acquisition.rows - 1) * down + height) * ((acquisition.columns - 1) * right + width)
    # Stitched and corrected, each with a pyramid that adds 1/7.
    volumes = 2 * len(channels) * voxels * acquisition.dtype.itemsize * 8 / 7
    written = sum(file.stat().st_size for file in out.rglob("*.zarr/**/*") if file.is_file())
    require_free_space(out, int(volumes) - written, "the run's stitched and corrected volumes")


def _is_whole(volume: Path) -> bool:
    """Tell whether a stage was killed in the moment between finishing its volume and saying so."""
    try:
        open_volume(volume)
    except InputError:
        return False
    return True
