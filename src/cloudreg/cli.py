"""The command line: parses, builds settings, calls; no logic.

Heavy packages are imported inside the commands, so that ``cloudreg --help`` answers at once.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cloudreg.cli_cloud import aws_app
from cloudreg.cli_cluster import cluster_app
from cloudreg.cli_view import view
from cloudreg.errors import CloudRegError

if TYPE_CHECKING:
    from cloudreg.execution import Engine
    from cloudreg.settings import RunSettings

app = typer.Typer(
    help="From raw light-sheet tiles to a registered brain with numbers for every region.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="With --debug, anywhere on the line, an error shows its traceback.",
)


def _whole_numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"expected whole numbers with commas between, such as 0,1; got {text!r}") from error


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"expected numbers with commas between, such as 1,1.1,1; got {text!r}") from error


Raw = Annotated[
    str,
    typer.Argument(
        help="Folder or s3://… of a COLM acquisition (the one with Experiment.ini), or of OME-TIFF or OME-Zarr tiles; "
        "a table of tiles (.csv, .yaml); a TeraStitcher project (.xml)."
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Stop at a plane that can't be read, instead of taking it for lost.")
]
VolumeIn = Annotated[str, typer.Argument(help="TIFF, folder of TIFFs, NIfTI, NRRD, OME-Zarr or precomputed volume.")]
VolumeOut = Annotated[
    str, typer.Argument(help="New volume: *.ome.zarr, precomputed://PATH, *.tif, *.nii.gz or *.nrrd.")
]
Registration = Annotated[Path, typer.Argument(help="Registration folder, or the folder of a run.")]
Settings = Annotated[Path | None, typer.Option("--settings", help="YAML file; flags override it.")]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Threads; default: one a core.")]
Memory = Annotated[str | None, typer.Option("--memory", help="Such as 8GB; default: 60 % of what is free.")]
Cluster = Annotated[
    str | None,
    typer.Option(
        "--cluster", help="tcp://host:8786, slurm:20 (sge, pbs, lsf…), or a YAML file; default: this machine."
    ),
]
VoxelSize = Annotated[
    tuple[float, float, float] | None,
    typer.Option(
        "--voxel-size", "-v", metavar="Z Y X", help="Micrometres along the array's axes; overrides the header."
    ),
]
Orientation = Annotated[
    str | None,
    typer.Option("--orientation", help="Side where each axis z, y, x starts, such as asr; overrides the header."),
]
AtlasName = Annotated[
    str | None, typer.Option("--atlas", help="BrainGlobe atlas such as allen_mouse_25um, or a folder.")
]
Template = Annotated[str | None, typer.Option("--template", help="Template volume of an atlas of your own.")]
Labels = Annotated[str | None, typer.Option("--labels", help="Label volume of that template.")]
Ontology = Annotated[str | None, typer.Option("--ontology", help="Names of those labels: JSON or CSV.")]
AtlasOrientation = Annotated[str | None, typer.Option("--atlas-orientation", help="Overrides the atlas's header.")]
AtlasVoxelSize = Annotated[
    tuple[float, float, float] | None,
    typer.Option("--atlas-voxel-size", metavar="Z Y X", help="Of the template, micrometres; overrides the header."),
]
Channel = Annotated[int, typer.Option("--channel", min=0, help="Which channel.")]
# Typer has no type for this; `_whole_numbers` gives a tuple of int, or the default None.
Channels = Annotated[
    Any, typer.Option("--channels", "--channel", parser=_whole_numbers, metavar="N,N…", help="Default: all.")
]
To = Annotated[Literal["target", "atlas"], typer.Option("--to", help="The space to go to.")]
Resolution = Annotated[float | None, typer.Option("--resolution", metavar="UM", help="Voxel size of the finest level.")]
AffineKind = Annotated[
    Literal["rigid", "similarity", "scales", "affine"] | None,
    typer.Option("--affine", help="6, 7, 9 or 12 parameters; rigid keeps the scale it starts from. Default: affine."),
]
Rotation = Annotated[
    tuple[float, float, float] | None,
    typer.Option("--rotation", metavar="Z Y X", help="Start: turn the atlas about the target's x, then y, z; degrees."),
]
Translation = Annotated[
    tuple[float, float, float] | None,
    typer.Option("--translation", metavar="Z Y X", help="Start: middle on middle, then by this, micrometres."),
]
Scale = Annotated[
    Any,
    typer.Option("--scale", parser=_numbers, metavar="S or Z,Y,X", help="Start: scale of the atlas; 1 if rigid."),
]
MissingData = Annotated[
    bool | None,
    typer.Option("--missing-data/--no-missing-data", help="Give what was not observed no weight. Default: yes."),
]
GridCorrection = Annotated[
    Literal["none", "z", "y", "x"] | None,
    typer.Option("--grid-correction", help="Take off what all planes across this axis share. Default: none."),
]
BiasCorrection = Annotated[
    bool | None,
    typer.Option("--bias-correction/--no-bias-correction", help="Take off slow illumination first. Default: no."),
]
Shading = Annotated[
    Path | None, typer.Option("--shading", help="Flat field of the tiles (shading/channel_NN of a run); default: none.")
]
Level = Annotated[int | None, typer.Option("--level", min=0, help="Level to take; 0 is the finest.")]
NearResolution = Annotated[
    float | None, typer.Option("--resolution", metavar="UM", help="Take the coarsest level that is at least as fine.")
]
Region = Annotated[
    str | None, typer.Option("--region", metavar="Z0:Z1,Y0:Y1,X0:X1", help="Box to take, in voxels of that level.")
]
Verify = Annotated[bool, typer.Option("--verify", help="Read the result back and compare every voxel.")]
FillMissing = Annotated[bool, typer.Option("--fill-missing", help="Take chunks that are missing for zeros.")]
Device = Annotated[Literal["cpu", "cuda"] | None, typer.Option("--device", help="Where the solver runs.")]


def _engine(workers: int | None, memory: str | None, cluster: str | None = None) -> Engine:
    from cloudreg.execution import Engine, progress
    from cloudreg.execution.compiling import say_when_compiling

    progress.enable()
    say_when_compiling()
    return Engine(workers=workers, memory=memory, cluster=cluster)


def _settings(path: Path | None, **flags: object) -> RunSettings:
    from cloudreg.settings import RunSettings, load_settings, override

    settings = RunSettings() if path is None else load_settings(path)
    return override(settings, {name.replace("__", "."): value for name, value in flags.items()})


def _atlas(
    name: str | None,
    template: str | None,
    labels: str | None,
    ontology: str | None,
    orientation: str | None,
    voxel_size_um: tuple[float, float, float] | None,
) -> dict[str, object]:
    values = {
        "name": name,
        "template": template,
        "labels": labels,
        "ontology": ontology,
        "orientation": orientation,
        "voxel_size_um": voxel_size_um,
    }
    # A name or a template is another atlas than that of the settings file; the rest alone corrects it.
    return {"atlas": values} if name or template else {f"atlas__{key}": value for key, value in values.items()}


def _command() -> str:
    return shlex.join(["cloudreg", *sys.argv[1:]])


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(help="Folder to make.")] = Path("cloudreg-demo"),
    workers: Workers = None,
    memory: Memory = None,
) -> None:
    """Run everything on an acquisition made here, and print the errors against the known truth."""
    from cloudreg import commands

    with _engine(workers, memory) as engine:
        commands.demo(out, engine, command=_command())


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
            parser=_whole_numbers,
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

    chosen = _settings(
        settings,
        **_atlas(atlas, template, labels, ontology, atlas_orientation, atlas_voxel_size),
        channels=channels,
        registration_channel=registration_channel,
        orientation=orientation,
        registration__resolution_um=resolution,
        registration__device=device,
    )
    with _engine(workers, memory, cluster) as engine:
        pipeline.run(raw, out, chosen, engine, command=_command(), voxel_size_um=voxel_size, strict=strict)


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

    chosen = _settings(settings, channels=channels)
    with _engine(workers, memory, cluster) as engine:
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

    chosen = _settings(settings, align__method=method, align__placement=placement)
    with _engine(workers, memory, cluster) as engine:
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

    chosen = _settings(settings)
    with _engine(workers, memory, cluster) as engine:
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
    from cloudreg import pipeline
    from cloudreg.io import open_volume

    chosen = _settings(settings)
    with _engine(workers, memory, cluster) as engine:
        volume = open_volume(source, voxel_size_um=voxel_size)
        regions = None if labels is None else open_volume(labels, kind="labels")
        pipeline.correct_volume(volume, out, chosen.illumination, engine, channel=channel, labels=regions)


@app.command()
def convert(
    source: VolumeIn,
    out: VolumeOut,
    voxel_size: VoxelSize = None,
    orientation: Orientation = None,
    labels: Annotated[bool, typer.Option("--labels", help="Region ids, whatever the file says.")] = False,
    level: Level = None,
    resolution: NearResolution = None,
    region: Region = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="Such as uint16; rounds and clips.")] = None,
    sharded: Annotated[
        bool | None,
        typer.Option("--sharded/--no-sharded", help="Many chunks an object; default: for more than a gigabyte."),
    ] = None,
    fill_missing: FillMissing = False,
    verify: Verify = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say how many objects and requests it would take.")
    ] = False,
    workers: Workers = None,
    memory: Memory = None,
    cluster: Cluster = None,
) -> None:
    """Write a volume in another format, told by the new name; a stopped run goes on where it was."""
    from cloudreg import commands

    with _engine(workers, memory, cluster) as engine:
        commands.convert(
            source,
            out,
            engine,
            voxel_size_um=voxel_size,
            orientation=orientation,
            kind="labels" if labels else None,
            level=level,
            resolution_um=resolution,
            region=region,
            dtype=dtype,
            sharded=sharded,
            fill_missing=fill_missing,
            verify=verify,
            dry_run=dry_run,
        )


@app.command()
def download(
    source: VolumeIn,
    out: VolumeOut,
    voxel_size: VoxelSize = None,
    level: Level = None,
    resolution: NearResolution = None,
    region: Region = None,
    fill_missing: FillMissing = False,
    verify: Verify = False,
    workers: Workers = None,
    memory: Memory = None,
) -> None:
    """Fetch a volume, a level or a box of it, into files; a stopped run goes on where it was."""
    from cloudreg import commands

    with _engine(workers, memory) as engine:
        commands.convert(
            source,
            out,
            engine,
            voxel_size_um=voxel_size,
            level=level,
            resolution_um=resolution,
            region=region,
            fill_missing=fill_missing,
            verify=verify,
        )


@app.command()
def pyramid(
    volume: Annotated[str, typer.Argument(help="OME-Zarr or precomputed volume; its coarser levels are made anew.")],
    fill_missing: FillMissing = False,
    workers: Workers = None,
    memory: Memory = None,
    cluster: Cluster = None,
) -> None:
    """Make the coarser resolutions of a chunked volume; a stopped run goes on where it was."""
    from cloudreg import commands

    with _engine(workers, memory, cluster) as engine:
        commands.pyramid(volume, engine, fill_missing=fill_missing)


@app.command()
def info(
    path: Annotated[str, typer.Argument(help="Volume, acquisition, run or registration.")],
    voxel_size: VoxelSize = None,
) -> None:
    """Say what a path holds."""
    from cloudreg import commands

    commands.info(path, voxel_size_um=voxel_size)


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
            parser=_whole_numbers,
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

    if atlas is None and template is None and settings is None:
        raise typer.BadParameter("which atlas? give --atlas NAME, or --template T with --labels L")

    chosen = _settings(
        settings,
        **_atlas(atlas, template, labels, ontology, atlas_orientation, atlas_voxel_size),
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
    with _engine(workers, memory, cluster) as engine:
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
            command=_command(),
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

    with _engine(workers, memory, cluster) as engine:
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

    with _engine(workers, memory) as engine:
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

    with _engine(workers, memory, cluster) as engine:
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

    with _engine(workers, memory) as engine:
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
        app(arguments)
    except (CloudRegError, OSError, MemoryError) as error:
        if len(arguments) < len(sys.argv) - 1:
            raise
        line = " ".join(str(error).split()) or type(error).__name__
        print(f"error: {line}", file=sys.stderr)
        sys.exit(error.exit_code if isinstance(error, CloudRegError) else 1)
