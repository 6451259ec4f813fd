"""A job on a machine of EC2: start it, run one command there, stop it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cloudreg.cloud.ec2 import running_instance, stops_at_shutdown
from cloudreg.cloud.ssh import NewHost, checked_key, run_on_server

_SHUT_DOWN = "sudo -n shutdown -P now"


@dataclass(frozen=True)
class Machine:
    """A machine of EC2 and how to enter it.

    Parameters
    ----------
    instance_id
        Such as ``i-0123456789abcdef0``; it has to be stopped, and keeps its disk from job to job.
    key
        Private ssh key file; None takes those of the agent.
    instance_type
        Such as ``r5.8xlarge``; None keeps what it has.
    username
        Login name.
    new_host
        Whether its own key is trusted at the first contact, then remembered under its instance id.
    """

    instance_id: str
    key: str | Path | None
    instance_type: str | None = None
    username: str = "ubuntu"
    new_host: NewHost = "accept"


def run_on_machine(machine: Machine, command: Sequence[str]) -> str:
    """Run one program with its arguments on a machine that is on for only as long.

    What it prints is shown as it comes. The machine is stopped when the command ends, fails, or we are interrupted;
    should this very computer go off meanwhile, then the machine shuts itself down as soon as it sees the connection
    gone.

    Returns
    -------
    str
        What it wrote to its standard error (the last 64 kB of it).

    Raises
    ------
    CommandFailedError
        If the command failed there; its exit status is the error's ``exit_code``.
    InputError, CloudServiceError, ServerUnreachableError
        As `running_instance` and `run_on_server` do.
    """
    key = checked_key(machine.key)  # before a machine is started for nothing
    with running_instance(machine.instance_id, machine.instance_type) as address:
        return run_on_server(
            shlex.join(command),
            key,
            address,
            machine.username,
            name=machine.instance_id,
            new_host=machine.new_host,
            last_will=_SHUT_DOWN if stops_at_shutdown(machine.instance_id) else None,
        )
