"""2021: registration of a precomputed volume to an atlas, and the affine of Neuroglancer that shows it."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cloudreg import pipeline
from cloudreg.atlas import Atlas, load_atlas
from cloudreg.errors import InputError
from cloudreg.execution import Engine
from cloudreg.io import Volume, convert, open_volume
from cloudreg.io.objects import plain_address, read_json
from cloudreg.registration import open_registration
from cloudreg.registration.folder import MANIFEST
from cloudreg.scripts._affine import about_middles
from cloudreg.scripts._legacy import axis_letters, boolean, moved, precomputed, run, text_or_none, three
from cloudreg.scripts._precomputed import finest_scale
from cloudreg.scripts._storage import store
from cloudreg.settings import RegistrationSettings, override
from cloudreg.space import axes_between
from cloudreg.viewer import write_registration_report

moved("registration", "cloudreg register")

__all__ = ["get_affine_matrix", "register"]

USUAL_ATLAS = "allen_mouse_25um"
_USUAL_LETTERS = "PIR"
_USUAL_REGULARIZATION = 5000.0


def get_affine_matrix(
    translation: ArrayLike,
    rotation: ArrayLike,
    from_orientation: str,
    to_orientation: str,
    fixed_scale: ArrayLike,
    s3_path: str,
    center: bool = False,
) -> NDArray[np.float64]:
    """Return the 4 x 4 affine, x y z in micrometres, that turns a precomputed volume for Neuroglancer.

    Parameters
    ----------
    translation, rotation
        In the axes of the target, micrometres and degrees. The volume is turned about its middle: about the target's
        x, then y, then z.
    from_orientation, to_orientation
        Three letters each, of the source and of the target.
    fixed_scale
        Scale factor, or one for each axis of the target; translations are scaled too.
    s3_path
        The volume: where its middle is.
    center
        Put the middle at the origin. Otherwise it lies where that of the reoriented volume does, so that a volume
        that is neither turned nor moved begins at the origin.
    """
    middle = finest_scale(s3_path).middle_um
    reoriented = np.abs(axes_between(from_orientation, to_orientation, allow_mirror=True)) @ middle
    there = np.zeros(3) if center else reoriented
    return about_middles(translation, rotation, from_orientation, to_orientation, fixed_scale, (middle, there))


def register(
    input_s3_path: str,
    atlas_s3_path: str | None,
    parcellation_s3_path: str | None,
    atlas_orientation: str,
    output_s3_path: str | None,
    log_s3_path: str | None,
    orientation: str,
    fixed_scale: ArrayLike,
    translation: ArrayLike,
    rotation: ArrayLike,
    missing_data_correction: bool,
    grid_correction: bool,
    bias_correction: bool,
    regularization: float,
    num_iterations: int,
    registration_resolution: float,
    output_local_path: str | None = None,
) -> None:
    """Register a precomputed volume to an atlas by EM-LDDMM.

    Parameters
    ----------
    input_s3_path, atlas_s3_path, parcellation_s3_path
        Precomputed volumes: what is registered, the atlas, and the atlas's regions. With None for the last two, the
        atlas is that of the Allen Institute, CCFv3 at 25 um, from BrainGlobe: downloaded at its first use, with names
        of regions.
    atlas_orientation, orientation
        Three letters each, of the atlas and of what is registered.
    output_s3_path
        Where the atlas's regions, carried into the space of the input, are written as a precomputed volume.
    log_s3_path
        Where the whole registration folder goes, with its table of regions and its report.
    fixed_scale, translation, rotation
        Where the fit starts, in the axes of the input: see `get_affine_matrix`. It then adapts all of them.
    missing_data_correction
        Give voxels that are 0 no weight.
    grid_correction
        Take off the pattern that all planes have in common, before the fit.
    bias_correction
        Take off the slow illumination, before the fit.
    regularization
        A larger one regularizes less.
    num_iterations
        Most iterations.
    registration_resolution
        Finest voxel size of the fit, micrometres.
    output_local_path
        Where the registration folder is kept on this machine; by default nowhere. The same call takes up one that is
        there.
    """
    given = dict(locals())
    settings = _settings(
        (missing_data_correction, grid_correction, bias_correction),
        regularization,
        num_iterations,
        registration_resolution,
    )
    command = "cloudreg.scripts.registration " + " ".join(
        f"{name}={value}"
        for name, value in given.items()
        if name not in ("output_s3_path", "log_s3_path", "output_local_path")
    )
    _require_new(output_s3_path, log_s3_path, command)
    _require_atlas(atlas_s3_path, parcellation_s3_path, atlas_orientation)
    axes_between(axis_letters(orientation), axis_letters(atlas_orientation))
    with tempfile.TemporaryDirectory(prefix="cloudreg-registration-") as temporary, Engine() as engine:
        home = Path(temporary) if output_local_path is None else Path(output_local_path).expanduser()
        folder = home / f"registration_of_{Path(input_s3_path.rstrip('/')).name}"
        home.mkdir(parents=True, exist_ok=True)
        target = open_volume(precomputed(input_s3_path), orientation=axis_letters(orientation))
        if not _is_done(folder, command):
            atlas = _atlas(atlas_s3_path, parcellation_s3_path, atlas_orientation)
            start = _start(atlas, target, translation, rotation, orientation, fixed_scale)
            pipeline.register_to_atlas(target, atlas, folder, settings, engine, initial_affine=start, command=command)
        pipeline.measure_regions(folder, {"input": target}, folder / "regions.csv", engine)
        write_registration_report(folder)
        if output_s3_path:
            convert(folder / "labels_in_target.ome.zarr", precomputed(output_s3_path), engine=engine)
        if log_s3_path:
            store(folder, log_s3_path, engine)


def _require_new(output: str | None, log: str | None, command: str) -> None:
    """Refuse places that hold a finished volume, or another registration; what a stopped call left is taken up."""
    if output:
        try:
            found = open_volume(precomputed(output)).path
        except InputError:
            pass
        else:
            raise InputError(f"expected nothing at {output}, got a finished volume, {found}: choose a new place")
    manifest = read_json(plain_address(log), MANIFEST) if log else None
    if manifest is not None and manifest.get("settings", {}).get("command") != command:
        raise InputError(f"expected no registration at {log}, got another one: choose a new place or remove it")


def _require_atlas(template: str | None, labels: str | None, letters: str) -> None:
    """Refuse half an atlas, and letters that the usual one does not have."""
    if (template is None) != (labels is None):
        raise InputError(
            "expected atlas_s3_path and parcellation_s3_path, or neither for the Allen atlas of BrainGlobe, got one"
        )
    if template is None and letters.upper() != _USUAL_LETTERS:
        raise InputError(
            f"expected atlas_orientation {_USUAL_LETTERS} for the Allen atlas, got {letters!r}: other letters need "
            "atlas_s3_path and parcellation_s3_path"
        )


def _atlas(template: str | None, labels: str | None, letters: str) -> Atlas:
    if template is None or labels is None:
        return load_atlas(USUAL_ATLAS)
    return load_atlas(template=precomputed(template), labels=precomputed(labels), orientation=axis_letters(letters))


def _start(
    atlas: Atlas, target: Volume, translation: ArrayLike, rotation: ArrayLike, letters: str, scale: ArrayLike
) -> NDArray[np.float64] | None:
    """Return atlas um to target um (z y x) from middle to middle; None where only letters are given."""
    moved_by = three(translation, "translation")
    if not (moved_by.any() or three(rotation, "rotation").any() or (three(scale, "scale") != 1).any()):
        return None
    here, there = (np.mean(volume.grid.bounds_um(), axis=0)[::-1] for volume in (atlas.template, target))
    # The same relation backwards: letters of 2021 for those of the atlas.
    source = axis_letters(atlas.orientation)
    affine = about_middles(moved_by, rotation, source, letters, scale, (here, there))
    order = [2, 1, 0, 3]
    return np.ascontiguousarray(affine[np.ix_(order, order)])


def _is_done(folder: Path, command: str) -> bool:
    """Whether a folder holds the result of the very same call."""
    if not folder.exists():
        return False
    if open_registration(folder).manifest["settings"]["command"] != command:
        raise InputError(f"{folder} holds another registration: choose another place, or remove it first")
    return True


def _settings(
    corrections: tuple[bool, bool, bool], regularization: float, iterations: int, resolution: float
) -> RegistrationSettings:
    usual = RegistrationSettings()
    missing, grid, bias = corrections
    if not regularization > 0 or iterations < 1:
        raise InputError(
            f"expected a regularization above 0 and at least 1 iteration, got {regularization} and {iterations}"
        )
    most = sum(usual.iterations)
    return override(
        usual,
        {
            "missing_data": missing,
            "grid_correction": "z" if grid else "none",
            "bias_correction": bias,
            "resolution_um": float(resolution),
            # The energy of the velocity counts 1 / (2 sigma^2).
            "regularization": [w * (_USUAL_REGULARIZATION / regularization) ** 2 for w in usual.regularization],
            "iterations": [max(1, n * min(iterations, most) // most) for n in usual.iterations],
        },
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser("python -m cloudreg.scripts.registration", description="register to an atlas")
    parser.add_argument("-input_s3_path", required=True, help="precomputed volume")
    parser.add_argument("-log_s3_path", required=True, type=text_or_none, help="where the registration folder goes")
    parser.add_argument("--output_s3_path", default=None, type=text_or_none, help="where the regions go")
    parser.add_argument(
        "--atlas_s3_path",
        type=text_or_none,
        help="precomputed template; without it and its regions, the Allen atlas of BrainGlobe",
    )
    parser.add_argument("--parcellation_s3_path", type=text_or_none, help="its regions")
    parser.add_argument("--atlas_orientation", default="PIR", help="letters of the atlas (default: %(default)s)")
    parser.add_argument("-orientation", required=True, help="letters of the volume")
    parser.add_argument("--fixed_scale", nargs="+", type=float, default=[1.0, 1.0, 1.0], help="one, or one an axis")
    parser.add_argument("--translation", nargs="+", type=float, default=[0, 0, 0], help="x y z, micrometres")
    parser.add_argument("--rotation", nargs="+", type=float, default=[0, 0, 0], help="x y z, degrees")
    for name, default in {"bias": True, "missing_data": True, "grid": False}.items():
        parser.add_argument(f"--{name}_correction", type=boolean, default=default, help="True or False")
    parser.add_argument("--regularization", type=float, default=5000.0)
    parser.add_argument("--iterations", dest="num_iterations", type=int, default=3000)
    parser.add_argument("--registration_resolution", type=float, default=100, help="micrometres")
    parser.add_argument("--output_local_path", default="~/", help="where the folder is kept on this machine")
    return run(lambda given: register(**vars(given)), parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
