"""2021: registration on a machine of EC2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cloudreg.scripts._legacy import boolean, moved, run, text_or_none
from cloudreg.scripts.run_colm_pipeline_ec2 import add_machine, on_ec2

moved("run_registration_ec2", "cloudreg aws run … -- register TARGET OUT")

__all__ = ["run_registration"]


def run_registration(
    ssh_key_path: str,
    instance_id: str,
    instance_type: str,
    input_s3_path: str,
    atlas_s3_path: str | None,
    parcellation_s3_path: str | None,
    atlas_orientation: str,
    output_s3_path: str,
    log_s3_path: str,
    initial_translation: Sequence[float],
    initial_rotation: Sequence[float],
    orientation: str,
    fixed_scale: float | Sequence[float],
    missing_data_correction: bool,
    grid_correction: bool,
    bias_correction: bool,
    sigma_regularization: float,
    num_iterations: int,
    registration_resolution: int,
    username: str = "ubuntu",
    python: str = "python3",
    new_host: str = "accept",
) -> None:
    """Run EM-LDDMM registration on a machine of EC2, which is started for it and stopped whatever happens.

    Parameters
    ----------
    ssh_key_path
        Private key, of any type, that the machine knows.
    instance_id, instance_type
        The machine (it has to be stopped, and has to have CloudReg), and what it is to be, such as ``r5.8xlarge``.
    input_s3_path, atlas_s3_path, parcellation_s3_path
        Precomputed volumes: what is registered, the atlas, and the atlas's regions. With None for the last two, the
        machine gets the Allen atlas from BrainGlobe.
    atlas_orientation, orientation
        Three letters each, of the atlas and of what is registered.
    output_s3_path
        Where the atlas's regions in the space of the input go.
    log_s3_path
        Where intermediates go.
    initial_translation, initial_rotation
        Of the input, x y z, in micrometres and degrees.
    fixed_scale
        Scale factor of the input: one, or one an axis.
    missing_data_correction, grid_correction, bias_correction
        Whether to ignore what is missing, to remove the grid of tiles, and to even out the illumination.
    sigma_regularization
        A larger one regularizes less.
    num_iterations, registration_resolution
        How many iterations at most; the finest voxel size in micrometres.
    username, python, new_host
        See `run_colm_pipeline_ec2.run_colm_pipeline`.

    Raises
    ------
    CommandFailedError
        If the registration failed there; its exit status is the error's ``exit_code``.
    """
    scales = list(fixed_scale) if isinstance(fixed_scale, Sequence) else [fixed_scale]
    words = ["-input_s3_path", input_s3_path, "-log_s3_path", log_s3_path, "-orientation", orientation]
    words += ["--output_s3_path", output_s3_path, "--atlas_orientation", atlas_orientation]
    if atlas_s3_path:
        words += ["--atlas_s3_path", atlas_s3_path]
    if parcellation_s3_path:
        words += ["--parcellation_s3_path", parcellation_s3_path]
    words += ["--fixed_scale", *map(_number, scales)]
    words += ["--translation", *map(_number, initial_translation), "--rotation", *map(_number, initial_rotation)]
    words += ["--missing_data_correction", str(bool(missing_data_correction))]
    words += ["--grid_correction", str(bool(grid_correction)), "--bias_correction", str(bool(bias_correction))]
    words += ["--regularization", _number(sigma_regularization), "--iterations", str(int(num_iterations))]
    words += ["--registration_resolution", _number(registration_resolution)]
    on_ec2("registration", words, ssh_key_path, instance_id, instance_type, username, python, new_host)


def _number(value: float) -> str:
    """Write a number without an exponent, after whose minus sign argparse would see an option."""
    return f"{float(value):.12f}".rstrip("0").rstrip(".")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        "python -m cloudreg.scripts.run_registration_ec2", description="registration on a machine of EC2"
    )
    add_machine(parser, "r5.12xlarge")
    for name in ("input_s3_path", "output_s3_path", "log_s3_path", "orientation"):
        parser.add_argument(f"-{name}", required=True)
    parser.add_argument(
        "--atlas_s3_path",
        type=text_or_none,
        help="precomputed template; without it and its regions, the Allen atlas of BrainGlobe",
    )
    parser.add_argument("--parcellation_s3_path", type=text_or_none, help="its regions")
    parser.add_argument("--atlas_orientation", default="PIR", help="letters of the atlas (default: %(default)s)")
    parser.add_argument("--fixed_scale", nargs="+", type=float, default=[1.0, 1.0, 1.0], help="one, or one an axis")
    for plane, axis in {"xy": "z", "xz": "y", "yz": "x"}.items():
        parser.add_argument(f"--{plane}", type=float, default=0.0, help=f"rotation about {axis}, degrees")
    for axis in "xyz":
        parser.add_argument(f"--{axis}", type=float, default=0.0, help=f"translation along {axis}, micrometres")
    for name, default in {"missing_data": True, "grid": False, "bias": True}.items():
        parser.add_argument(f"--{name}_correction", type=boolean, default=default, help="True or False")
    parser.add_argument("--regularization", dest="sigma_regularization", type=float, default=5000.0)
    parser.add_argument("--iterations", dest="num_iterations", type=int, default=3000)
    parser.add_argument("--registration_resolution", type=float, default=100, help="micrometres")

    def register(given: argparse.Namespace) -> None:
        values = vars(given)
        values["initial_translation"] = [values.pop(axis) for axis in "xyz"]
        values["initial_rotation"] = [values.pop(plane) for plane in ("yz", "xz", "xy")]
        run_registration(**values)

    return run(register, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
