"""The options of the commands, and what becomes of them."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from cloudreg.execution import Engine
    from cloudreg.settings import RunSettings


def whole_numbers(text: str) -> tuple[int, ...]:
    """Parse whole numbers with commas between, each of them once."""
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"expected whole numbers with commas between, such as 0,1; got {text!r}") from error
    if len(set(values)) < len(values):
        raise typer.BadParameter(f"expected each number once, got {text!r}")
    return values


def numbers(text: str) -> tuple[float, ...]:
    """Parse numbers with commas between."""
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
VolumeIn = Annotated[
    str,
    typer.Argument(
        help="TIFF, folder of TIFFs, NIfTI, NRRD, OME-Zarr, Zarr, N5 or precomputed volume; here or s3://, gs://, https://."
    ),
]
VolumeOut = Annotated[
    str,
    typer.Argument(
        help="New volume: *.ome.zarr or precomputed://PATH, here or in a bucket; *.tif, *.nii, *.nii.gz or *.nrrd; "
        "a name without a dot: a folder of TIFF planes."
    ),
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
# Typer has no type for this; `whole_numbers` gives a tuple of int, or the default None.
Channels = Annotated[
    Any, typer.Option("--channels", "--channel", parser=whole_numbers, metavar="N,N…", help="Default: all.")
]
To = Annotated[Literal["target", "atlas"], typer.Option("--to", help="The space to go to.")]
Resolution = Annotated[
    float | None,
    typer.Option(
        "--resolution",
        metavar="UM",
        help="Voxel size of the finest level; default: 100 in a mouse, or the images' voxels where these are coarser.",
    ),
]
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
    typer.Option("--scale", parser=numbers, metavar="S or Z,Y,X", help="Start: scale of the atlas; 1 if rigid."),
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
Device = Annotated[Literal["cpu", "cuda"] | None, typer.Option("--device", help="Where the solver runs.")]


def new_engine(
    workers: int | None, memory: str | None, cluster: str | None = None, *, registers: bool = False
) -> Engine:
    """Return the engine of a command, which shows its progress from now on."""
    from cloudreg.execution import Engine, progress
    from cloudreg.execution.compiling import say_when_compiling

    progress.enable()
    say_when_compiling("cloudreg.registration.ahead" if registers else None)
    return Engine(workers=workers, memory=memory, cluster=cluster)


def chosen_settings(path: Path | None, **flags: object) -> RunSettings:
    """Return the settings of a file, or the defaults, with the flags that are not None put in; ``a__b`` is ``a.b``."""
    from cloudreg.settings import RunSettings, load_settings, override

    settings = RunSettings() if path is None else load_settings(path)
    return override(settings, {name.replace("__", "."): value for name, value in flags.items()})


def chosen_atlas(
    name: str | None,
    template: str | None,
    labels: str | None,
    ontology: str | None,
    orientation: str | None,
    voxel_size_um: tuple[float, float, float] | None,
) -> dict[str, object]:
    """Return the flags that choose an atlas, for `chosen_settings`."""
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


def require_atlas(settings: Path | None, name: str | None, template: str | None) -> None:
    """Refuse a command that is told no atlas, by its words or its file: it should not be one that nobody chose."""
    from cloudreg.errors import InputError
    from cloudreg.settings import load_settings

    if name is None and template is None and (settings is None or not load_settings(settings).names_atlas):
        where = "" if settings is None else f", or name one in {settings}"
        raise InputError(
            f"expected an atlas to register to, got none: give --atlas NAME, or --template T with --labels L{where}"
        )


def command_line() -> str:
    """Return the command as it was given, to be kept with its results."""
    return shlex.join(["cloudreg", *sys.argv[1:]])
