"""2021: the COLM pipeline on a machine of EC2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cloudreg.scripts._legacy import moved, run, text_or_none

moved("run_colm_pipeline_ec2", "cloudreg aws run … -- run RAW OUT")

__all__ = ["run_colm_pipeline"]


def run_colm_pipeline(
    ssh_key_path: str,
    instance_id: str,
    input_s3_path: str,
    output_s3_path: str,
    num_channels: int,
    autofluorescence_channel: int,
    log_s3_path: str | None = None,
    instance_type: str = "r5d.24xlarge",
    username: str = "ubuntu",
    python: str = "python3",
    new_host: str = "accept",
) -> None:
    """Run the COLM pipeline on a machine of EC2, which is started for it and stopped whatever happens.

    Parameters
    ----------
    ssh_key_path
        Private key, of any type, that the machine knows.
    instance_id
        The machine; it has to be stopped, and has to have CloudReg.
    input_s3_path
        Raw data.
    output_s3_path
        Where the precomputed volume of each channel goes, in a folder of its number.
    num_channels
        How many channels there are.
    autofluorescence_channel
        The channel to align by.
    log_s3_path
        Where intermediates go.
    instance_type
        What the machine is to be.
    username, python
        Login name, and the Python there that has CloudReg.
    new_host
        ``"accept"``: the machine's own key is trusted at the first contact and remembered; or ``"refuse"``.

    Raises
    ------
    CommandFailedError
        If the pipeline failed there; its exit status is the error's ``exit_code``.
    """
    words = [input_s3_path, output_s3_path, str(int(num_channels)), str(int(autofluorescence_channel))]
    if log_s3_path:
        words += ["--log_s3_path", log_s3_path]
    on_ec2("colm_pipeline", words, ssh_key_path, instance_id, instance_type, username, python, new_host)


def on_ec2(
    module: str, words: Sequence[str], key: str, instance_id: str, kind: str, username: str, python: str, new_host: str
) -> None:
    """Run a module of this package on a machine of EC2."""
    from cloudreg.cloud.remote import Machine, run_on_machine
    from cloudreg.errors import InputError

    if new_host not in ("accept", "refuse"):
        raise InputError(f"new_host is accept or refuse, got {new_host!r}")
    machine = Machine(instance_id, key, kind, username, "accept" if new_host == "accept" else "refuse")
    run_on_machine(machine, [python, "-m", f"cloudreg.scripts.{module}", *words])


def add_machine(parser: argparse.ArgumentParser, instance_type: str) -> None:
    """Add the arguments that say which machine; those after the third are new."""
    parser.add_argument("-ssh_key_path", required=True, help="private key that the machine knows")
    parser.add_argument("-instance_id", required=True, help="machine, such as i-0123456789abcdef0")
    parser.add_argument("--instance_type", default=instance_type, help="what it is to be (default: %(default)s)")
    parser.add_argument("--username", default="ubuntu", help="who to be there (default: %(default)s)")
    parser.add_argument("--python", default="python3", help="Python there that has CloudReg (default: %(default)s)")
    parser.add_argument(
        "--new_host", default="accept", choices=["accept", "refuse"], help="a machine met for the first time"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        "python -m cloudreg.scripts.run_colm_pipeline_ec2", description="COLM pipeline on a machine of EC2"
    )
    add_machine(parser, "r5d.16xlarge")
    parser.add_argument("-input_s3_path", required=True, help="raw data")
    parser.add_argument("-output_s3_path", required=True, help="where the volumes go")
    parser.add_argument("-num_channels", required=True, type=int, help="number of channels")
    parser.add_argument("-autofluorescence_channel", required=True, type=int, help="channel to align by")
    parser.add_argument("-log_s3_path", default=None, type=text_or_none, help="where intermediates go")
    return run(lambda given: run_colm_pipeline(**vars(given)), parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
