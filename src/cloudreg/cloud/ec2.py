"""Machines of EC2: started as the type that a job needs, and stopped whatever happens, for one that runs costs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from types import FrameType
from typing import Any

from cloudreg.cloud.aws import aws_client, explaining_aws
from cloudreg.errors import CloudRegError, CloudServiceError, InputError
from cloudreg.execution.progress import say

_ENDINGS = ("SIGINT", "SIGTERM", "SIGHUP")


@dataclass(frozen=True)
class Instance:
    """What AWS says of a machine."""

    instance_id: str
    name: str
    instance_type: str
    state: str
    since: datetime | None
    address: str | None


def list_instances() -> list[Instance]:
    """Describe all machines of the region, those that were destroyed left out."""
    client = aws_client("ec2")
    with explaining_aws(f"list the machines in region {client.meta.region_name}"):
        pages = client.get_paginator("describe_instances").paginate()
        found = [machine for page in pages for group in page["Reservations"] for machine in group["Instances"]]
    return [
        Instance(
            machine["InstanceId"],
            next((tag["Value"] for tag in machine.get("Tags", []) if tag["Key"] == "Name"), ""),
            machine["InstanceType"],
            machine["State"]["Name"],
            machine.get("LaunchTime"),
            machine.get("PublicIpAddress") or machine.get("PrivateIpAddress"),
        )
        for machine in found
        if machine["State"]["Name"] != "terminated"
    ]


def start_instance(instance_id: str, instance_type: str | None = None) -> str:
    """Start a machine, wait until it runs, and return its address.

    One that runs already, with the wanted type, is taken as it is; one that is just being stopped is waited for.

    Parameters
    ----------
    instance_id
        Such as ``i-0123456789abcdef0``.
    instance_type
        Such as ``r5.8xlarge``: a stopped machine is changed to it first. None keeps what it has.

    Returns
    -------
    str
        Public IP address; the private one of a machine that has no public one.

    Raises
    ------
    InputError
        If there is no such machine or type, it runs with another type, or the credentials do not allow it.
    CloudServiceError
        If AWS can't start it now.
    """
    client = aws_client("ec2")
    found = _settled(client, instance_id)
    if found["State"]["Name"] == "stopped":
        _start(client, instance_id, instance_type, found["InstanceType"])
    elif instance_type not in (None, found["InstanceType"]):
        raise InputError(
            f"instance {instance_id} runs as {found['InstanceType']}, not as {instance_type}: stop it first, its type "
            "can't change while it runs"
        )
    return _address(client, instance_id)


def stop_instance(instance_id: str) -> None:
    """Stop a machine; its disk is kept, and it costs no more than that.

    Raises
    ------
    CloudServiceError
        If that can't be had: the machine may still run.
    """
    try:
        client = aws_client("ec2")
        with explaining_aws(f"stop instance {instance_id}"):
            client.stop_instances(InstanceIds=[instance_id])
    except CloudRegError as error:
        raise CloudServiceError(
            f"INSTANCE {instance_id} MAY STILL RUN AND COST MONEY, for it could not be stopped ({error}): stop it by "
            f"hand, in the AWS console or by aws ec2 stop-instances --instance-ids {instance_id}"
        ) from error
    say(f"instance {instance_id} is stopped")


def stops_at_shutdown(instance_id: str) -> bool:
    """Whether a shutdown from within stops the machine, as is usual; it may also be set to destroy it."""
    client = aws_client("ec2")
    name = "instanceInitiatedShutdownBehavior"
    with explaining_aws(f"ask how instance {instance_id} shuts down"):
        answer = client.describe_instance_attribute(InstanceId=instance_id, Attribute=name)
    return bool(answer.get("InstanceInitiatedShutdownBehavior", {}).get("Value") == "stop")


@contextmanager
def running_instance(instance_id: str, instance_type: str | None = None) -> Iterator[str]:
    """Start a machine for as long as the block runs, and stop it whatever happens.

    It is stopped when the block ends, fails, or is interrupted: by Ctrl-C, by the end of the terminal, or by SIGTERM.
    A machine that runs already is left alone: somebody may be at work there.

    Yields
    ------
    str
        Address, as `start_instance` returns it.

    Raises
    ------
    InputError, CloudServiceError
        As `start_instance` and `stop_instance` do, and if the machine runs already.
    """
    client = aws_client("ec2")
    found = _settled(client, instance_id)
    if found["State"]["Name"] != "stopped":
        raise InputError(
            f"instance {instance_id} is running already, and somebody may be at work there: stop it first, by "
            f"aws ec2 stop-instances --instance-ids {instance_id}"
        )
    with _signals_as_exits():
        try:
            _start(client, instance_id, instance_type, found["InstanceType"])
            yield _address(client, instance_id)
        finally:
            with _signals_ignored():
                stop_instance(instance_id)


def _settled(client: Any, instance_id: str) -> dict[str, Any]:
    """Describe a machine, after it has stopped if it is about to."""
    found = _describe(client, instance_id)
    if found["State"]["Name"] == "stopping":
        say(f"instance {instance_id} is being stopped: waiting for the end of that")
        with explaining_aws(f"wait until instance {instance_id} is stopped"):
            client.get_waiter("instance_stopped").wait(InstanceIds=[instance_id])
        found = _describe(client, instance_id)
    if found["State"]["Name"] in ("terminated", "shutting-down"):
        raise InputError(f"instance {instance_id} was terminated and can't be started again: make a new one")
    return found


def _describe(client: Any, instance_id: str) -> dict[str, Any]:
    with explaining_aws(f"find instance {instance_id} in region {client.meta.region_name}"):
        answer = client.describe_instances(InstanceIds=[instance_id])
    found: dict[str, Any] = answer["Reservations"][0]["Instances"][0]
    return found


def _start(client: Any, instance_id: str, instance_type: str | None, present_type: str) -> None:
    if instance_type not in (None, present_type):
        with explaining_aws(f"make instance {instance_id} a {instance_type}"):
            client.modify_instance_attribute(InstanceId=instance_id, InstanceType={"Value": instance_type})
    say(f"starting instance {instance_id} as {instance_type or present_type}")
    with explaining_aws(f"start instance {instance_id}"):
        client.start_instances(InstanceIds=[instance_id])


def _address(client: Any, instance_id: str) -> str:
    with explaining_aws(f"wait until instance {instance_id} runs"):
        client.get_waiter("instance_running").wait(InstanceIds=[instance_id])
    found = _describe(client, instance_id)
    address = found.get("PublicIpAddress") or found.get("PrivateIpAddress")
    if not address:
        raise CloudServiceError(f"instance {instance_id} runs but has no address: give its network one")
    return str(address)


def _on_signals(handler: Any) -> dict[int, Any]:
    """Set what the signals that end a program do; return what they did. Python allows it to the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    numbers = [getattr(signal, name) for name in _ENDINGS if hasattr(signal, name)]
    return {number: signal.signal(number, handler(number)) for number in numbers}


@contextmanager
def _signals_as_exits() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the program as Ctrl-C does, instead of ending it at once."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    def chosen(number: int) -> Any:
        present = signal.getsignal(number)
        # Ctrl-C unwinds as it is, and what is ignored (as nohup has it) stays so.
        return present if number == signal.SIGINT or present is signal.SIG_IGN else end

    before = _on_signals(chosen)
    try:
        yield
    finally:
        _restore(before)


@contextmanager
def _signals_ignored() -> Iterator[None]:
    """Let nothing interrupt the block, not even an impatient second Ctrl-C."""
    before = _on_signals(lambda number: signal.SIG_IGN)
    try:
        yield
    finally:
        _restore(before)


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
