"""The settings of every stage: one frozen model each, and one YAML file a run.

Lengths are micrometres. A setting left out of the file has the default shown here.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, ValidationError, model_validator

from cloudreg.errors import InputError


class Settings(BaseModel):
    """A frozen model that refuses names it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Model = TypeVar("Model", bound=Settings)


Triple = tuple[float, float, float]


class ShadingSettings(Settings):
    """Background and vignetting of the tiles."""

    method: Literal["combined", "mean", "n4", "basic", "none"] = Field(
        "combined", description="from overlaps and mean tile, or the mean tile alone, its N4 field, or by BaSiC"
    )
    background: float | None = Field(
        None, ge=0, description="what the camera reads without light; found where some of the field is empty"
    )
    samples: int = Field(512, ge=16, description="planes drawn from all tiles for the mean tile")
    working_side: int = Field(128, ge=32, description="side of the mean tile, in blocks of pixels")
    spline_distance_fraction: float = Field(
        0.5, gt=0, le=2, description="distance of N4's control points, as a fraction of the tile side"
    )


class AlignSettings(Settings):
    """Pairwise shifts and global placement of the tiles."""

    channel: int | None = Field(None, ge=0, description="channel to align by; the registration channel by default")
    search_um: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = Field(
        (30.0, 60.0, 60.0), description="largest deviation from the nominal position looked at, z y x"
    )
    minimum_correlation: float = Field(0.3, ge=0, le=1, description="a link below it is ignored")
    stage_weight: float = Field(1e-3, gt=0, description="weight of the nominal stage position beside a perfect link")
    method: Literal["volume", "projections"] = Field(
        "volume", description="compare overlaps in 3D to a fraction of a pixel, or their projections as TeraStitcher"
    )
    placement: Literal["least_squares", "tree"] = Field(
        "least_squares", description="place by all links together, or along the most reliable chain as TeraStitcher"
    )
    drift: Literal["none", "layers"] = Field(
        "none", description="layers: tiles may drift sideways over their depth, and are compared in layers all over it"
    )
    layer_planes: int = Field(60, ge=1, description="most planes that are projected together")
    minimum_reliability: float = Field(
        0.3, ge=0, le=1, description="along an axis of lower reliability, what projections show does not count"
    )

    @model_validator(mode="after")
    def _drift_is_seen(self) -> AlignSettings:
        if self.drift == "layers" and self.method == "projections":
            raise ValueError("projections don't show how tiles drift: choose method volume, or drift none")
        return self


class FusionSettings(Settings):
    """Blending of the placed tiles into one volume."""

    blending: Literal["cosine", "linear", "content"] = Field(
        "cosine", description="weights across an overlap; content: cosine, times the contrast that a tile shows there"
    )
    balance_exposure: bool = Field(False, description="give each tile a gain and an offset by its overlaps")
    depth: Literal["union", "intersection"] = "union"
    chunk: tuple[int, int, int] = Field((64, 128, 128), description="voxels per stored chunk, z y x")


class IlluminationSettings(Settings):
    """Slow illumination of the whole stitched volume."""

    method: Literal["regions", "n4", "none"] = Field(
        "regions", description="what changes within the regions of a registration, N4 where there are none; or N4 alone"
    )
    working_voxel_um: float = Field(15.0, gt=0, description="voxel size on which the field is found")
    working_voxels: int = Field(100_000, ge=10_000, description="upper bound on the voxels N4 runs on")
    spline_distance_um: float = Field(4000.0, gt=0, description="distance of N4's control points")


class RegistrationSettings(Settings):
    """EM-LDDMM registration of a volume to an atlas."""

    resolution_um: float | None = Field(
        None,
        gt=0,
        description="voxel size of the finest level; by default one unit (100 um in a mouse), or the images' voxels "
        "where these are coarser",
    )
    levels: int | None = Field(
        None,
        ge=1,
        le=10,
        description="resolution levels, each twice as fine as the one before; by default the first has "
        "some 20 voxels across the brain",
    )
    affine: Literal["rigid", "similarity", "scales", "affine"] = Field(
        "affine",
        description="6, 7, 9 or 12 parameters: rigid keeps the scale it starts from, similarity fits one, scales one "
        "along each of the atlas's axes",
    )
    rotation_deg: Triple | None = Field(
        None, description="start: turn the atlas about the target's x, then y, then z axis; given as z y x, degrees"
    )
    translation_um: Triple | None = Field(
        None, description="start: from middle to middle of the volumes, then by this along the target's axes z y x"
    )
    scale: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None, description="start: of the atlas, one number, or one for each of the target's axes z y x; 1 if rigid"
    )
    deform: bool = Field(True, description="fit a velocity field after the affine")
    velocity: Literal["stationary", "time-dependent"] = Field(
        "stationary", description="one velocity for the whole way from target to atlas, or one for each part of it"
    )
    time_steps: int = Field(4, ge=1, le=32, description="parts of the way with a velocity each, where time-dependent")
    kernel_um: float | None = Field(None, gt=0, description="length a of the smoothness operator (1 - a^2 Laplacian)^2")
    velocity_spacing_um: float | None = Field(None, gt=0, description="voxel size of the velocity grid")
    regularization: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.01, 0.002, 0.0005),
        min_length=1,
        description="weight of the velocity's energy per level, coarse to fine; with regions in the target's greys "
        "the finest level has that of the one before",
    )
    iterations: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (8, 15, 25), min_length=1, description="largest number of Gauss-Newton steps per level"
    )
    contrast_order: int = Field(3, ge=1, le=5, description="degree of the polynomial that maps atlas to target grey")
    contrast_spacing_um: float | None = Field(None, gt=0, description="distance of the contrast's nodes")
    recolour: bool = Field(
        True,
        description="where the template's greys tell little of the target, give its regions the greys that they have "
        "in the target, and go on with these",
    )
    soften: bool = Field(
        True,
        description="in the end, weaken the smoothness prior, and shorten its kernel, where that foretells more of "
        "parts of the target that were withheld",
    )
    missing_data: bool = Field(True, description="give voxels that were not observed no weight")
    grid_correction: Literal["none", "z", "y", "x"] = Field(
        "none", description="take off the pattern that all planes across this axis have in common, as tiles leave it"
    )
    bias_correction: bool = Field(
        False, description="take off slow illumination by histogram flow; what regions have of their own may go too"
    )
    find_cuts: bool = Field(True, description="see whether flat faces of the brain are cuts, beyond which is no air")
    mixture: bool = Field(True, description="three-class EM: matching tissue, artifact, background")
    estimate: tuple[Literal["noise", "greys", "variances", "priors"], ...] = Field(
        ("noise", "greys"),
        description="what of the mixture follows the data: noise (the spread of matching tissue), greys and variances "
        "(of artifacts and background), priors; the last two from the second level on",
    )
    allow_mirror: bool = False
    device: Literal["cpu", "cuda"] = Field("cpu", description="where the solver runs; cuda needs the extra gpu")

    @model_validator(mode="after")
    def _scale_fits(self) -> RegistrationSettings:
        if self.scale is not None and len(self.scale) not in (1, 3):
            raise ValueError("a scale is one number, or three (z y x)")
        if self.affine == "similarity" and len(set(self.scale or ())) > 1:
            raise ValueError("a similarity has one scale: give one number, or choose --affine scales")
        if not self.mixture and set(self.estimate) & {"variances", "priors"}:
            raise ValueError("variances and priors are those of the mixture, which is switched off")
        return self

    @property
    def moved(self) -> bool:
        """Whether it says where the atlas begins, and not only how it is oriented and how large."""
        return self.rotation_deg is not None or self.translation_um is not None


class AtlasSettings(Settings):
    """Which atlas: one of BrainGlobe's by name, or a template and labels of one's own."""

    name: str | None = Field(None, description="name of a BrainGlobe atlas, or a folder that holds a saved one")
    template: str | None = Field(None, description="path of a template volume, instead of a name")
    labels: str | None = Field(None, description="path of the template's label volume")
    ontology: str | None = Field(None, description="table of the labels' names: structures.json, Allen JSON, or CSV")
    orientation: str | None = Field(None, description="letters of the template's axes z y x")
    voxel_size_um: tuple[float, float, float] | None = Field(None, description="of the template, z y x")
    labels_share: Literal["corner", "centre"] | None = Field(
        None,
        description="where labels without a frame begin: at the template's outer corner or first voxel centre; "
        "by default as the files' headers say",
    )

    @model_validator(mode="after")
    def _one_atlas(self) -> AtlasSettings:
        if (self.name is None) == (self.template is None):
            raise ValueError("an atlas is either a name or a template, and one of them is needed")
        return self


class RunSettings(Settings):
    """All stages of ``cloudreg run``."""

    channels: tuple[int, ...] | None = Field(None, description="channels to process; all by default")
    registration_channel: Annotated[int, Field(ge=0)] | tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None,
        description="channel to align by and register, the first by default; of several all are fitted together, and "
        "the first is what is aligned by and finds the pose",
    )
    orientation: str | None = Field(None, description="letters of the stitched volume's axes z y x")
    atlas: AtlasSettings = AtlasSettings(name="allen_mouse_25um")
    shading: ShadingSettings = ShadingSettings()
    align: AlignSettings = AlignSettings()
    fusion: FusionSettings = FusionSettings()
    illumination: IlluminationSettings = IlluminationSettings()
    registration: RegistrationSettings = RegistrationSettings()

    @property
    def names_atlas(self) -> bool:
        """Whether the atlas was chosen, and is not the default."""
        return "atlas" in self.model_fields_set


_SECTIONS = {name for name, field in RunSettings.model_fields.items() if isinstance(field.default, Settings)}
_EXAMPLE = "see settings.yaml in the folder of any run"


def load_settings(path: str | Path) -> RunSettings:
    """Read the settings of a run from YAML.

    Raises
    ------
    InputError
        If the file is missing, is no YAML mapping, or holds an unknown name or a value out of range.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).replace("\n", " ")
        raise InputError(f"expected a YAML file of settings at {path}: {reason}") from error
    if values is not None and not isinstance(values, dict):
        raise InputError(f"expected settings by name in {path}, got a {type(values).__name__}: {_EXAMPLE}")
    # A section with nothing below it, as is left when its lines are commented out, holds no settings.
    named = {name: value for name, value in (values or {}).items() if value is not None or name not in _SECTIONS}
    return _checked(RunSettings, named, f" in {path}")


def override(settings: Model, values: Mapping[str, object]) -> Model:
    """Return settings with some values replaced, checked like those of a file.

    Parameters
    ----------
    settings
        Left as they are.
    values
        By name, with a dot before the name of a stage's setting (``registration.device``); None changes nothing.

    Raises
    ------
    InputError
        If there is no such name, or a value is out of range.
    """
    dump = settings.model_dump()
    for name, value in values.items():
        *stages, last = name.split(".")
        place = dump
        for stage in stages:
            place = place[stage]
        if value is not None:
            place[last] = value
    return _checked(type(settings), dump, "")


def _checked(model: type[Model], values: dict[str, object], where: str) -> Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise InputError(f"there is no setting {name}{where}: {_closest(model, name)}") from error
        reason = first["msg"].removeprefix("Value error, ")
        # What several values do wrong together is said by the reason; all of them are too many to show.
        got = "" if isinstance(first["input"], dict) else f", got {first['input']!r}"
        raise InputError(f"setting {name}{where}: {reason}{got}") from error


def _closest(model: type[Settings], name: str) -> str:
    """Return what may be meant by a name that there is none of: names of its section, or else of any."""
    section, _, last = name.rpartition(".")
    known = _names(model, "")
    for among in ([n for n in known if n.rpartition(".")[0] == section], known):
        found = get_close_matches(last, {n.rpartition(".")[2] for n in among}, n=2)
        if found:
            return f"closest: {', '.join(n for word in found for n in among if n.rpartition('.')[2] == word)}"
    return _EXAMPLE


def _names(model: type[Settings], before: str) -> list[str]:
    names = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        names.append(before + name)
        if isinstance(inner, type) and issubclass(inner, Settings):
            names += _names(inner, f"{before}{name}.")
    return names


def save_settings(settings: Settings, path: str | Path) -> None:
    """Write settings as YAML, defaults included."""
    Path(path).write_text(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
