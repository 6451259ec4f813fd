"""Commands on another machine: their output as it comes, and their exit status as ours."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO, TypeVar

from cloudreg.errors import CommandFailedError, InputError, MissingExtraError

NewHost = Literal["accept", "refuse"]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Server:
    """A machine that is reached by ssh. What is not said here, ``~/.ssh/config`` says (a jump host, for example).

    Parameters
    ----------
    address
        IP address or name.
    username
        Login name.
    key
        Private key file of any type; None takes the agent's and the usual ones of ``~/.ssh``.
    port
        22 by default.
    name
        Name under which the machine's own key is remembered; its address by default. A machine of EC2 has another
        address after each start, so its instance id serves better.
    new_host
        Whether a machine that no known_hosts file has is trusted at the first contact, and then remembered.
        A machine whose key is another than the remembered one is never trusted.
    known_hosts
        File of remembered keys that is also written to; ``~/.ssh/known_hosts`` by default, and then
        ``/etc/ssh/ssh_known_hosts`` is read too.
    patience_s
        How long to go on trying to connect: a machine that has just been started does not answer at once.
    last_will
        Shell command that the machine runs when the connection has ended, also when that is because this computer
        is gone.
    """

    address: str
    username: str = "ubuntu"
    key: Path | None = None
    port: int | None = None
    name: str | None = None
    new_host: NewHost = "accept"
    known_hosts: Path | None = None
    patience_s: float = 180.0
    last_will: str | None = None


def run_on_server(
    command: str,
    ssh_key_path: str | Path | None,
    ip_address: str,
    username: str = "ubuntu",
    *,
    port: int | None = None,
    name: str | None = None,
    new_host: NewHost = "accept",
    known_hosts: Path | None = None,
    patience_s: float = 180.0,
    last_will: str | None = None,
    out: TextIO | None = None,
    err: TextIO | None = None,
) -> str:
    """Run a shell command on another machine and show what it prints as it comes.

    Parameters
    ----------
    command
        For the shell of that user; quote file names with `shlex.quote`.
    ssh_key_path, ip_address, username, port, name, new_host, known_hosts, patience_s, last_will
        See `Server`.
    out, err
        Where its output and its errors go; by default to ours.

    Returns
    -------
    str
        What it wrote to its standard error (the last 64 kB of it).

    Raises
    ------
    CommandFailedError
        If the command ended with another status than 0, which is then the error's ``exit_code``, or by a signal (128
        and its number).
    InputError
        If the key can't be read or is refused, there is no such machine, or its own key is not the known one.
    ServerUnreachableError
        If nothing answers, or the connection is cut.
    """
    key = checked_key(ssh_key_path)
    from cloudreg.cloud.ssh_session import run_command

    server = Server(ip_address, username, key, port, name, new_host, known_hosts, patience_s, last_will)
    ended = _run(run_command(server, command, out or sys.stdout, err or sys.stderr))
    if ended.exit_code:
        last = ended.errors.strip().splitlines()[-1:]
        raise CommandFailedError(f"the command on {ip_address}", ended.exit_code, "".join(last))
    return ended.errors


def checked_key(ssh_key_path: str | Path | None) -> Path | None:
    """Return the path of a key file, in a form that is good for any folder.

    Raises
    ------
    InputError
        If there is no such file.
    MissingExtraError
        If asyncssh is not installed.
    """
    if importlib.util.find_spec("asyncssh") is None:
        raise MissingExtraError("asyncssh", "aws")
    if ssh_key_path is None:
        return None
    key = Path(ssh_key_path).expanduser().absolute()
    if not key.is_file():
        raise InputError(f"expected a private ssh key at {key}, got no file: check the path")
    return key


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end, also from a notebook, which has an event loop running already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()
