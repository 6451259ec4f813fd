"""One command in one ssh session, by asyncssh."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from dataclasses import dataclass
from typing import TextIO

import asyncssh

from cloudreg.cloud.host_keys import HostKeys
from cloudreg.cloud.ssh import Server
from cloudreg.errors import InputError, ServerUnreachableError
from cloudreg.execution.progress import say

_KEPT_CHARACTERS = 65536
_ONE_TRY_S = 20.0
_SILENCE_S = 15.0
_HUNG_UP = 5


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status, or 128 and the number of a signal; the end of its standard error."""

    exit_code: int
    errors: str


async def run_command(server: Server, command: str, out: TextIO, err: TextIO) -> Ended:
    """Run a command to its end, and hand on what it prints; see `cloudreg.cloud.ssh.run_on_server`."""
    connection = await _connect(server)
    cut = ServerUnreachableError(
        f"the connection to {server.address} was cut before the command ended: see there how far it came"
    )
    async with connection:
        try:
            if server.last_will is not None:
                # Its input is open for as long as the connection is: at its end, the next command comes.
                await connection.create_process(f"cat >/dev/null; {server.last_will}", stderr=asyncssh.DEVNULL)
            process = await connection.create_process(
                command, stdin=asyncssh.DEVNULL, encoding="utf-8", errors="replace"
            )
            try:
                _, errors = await asyncio.gather(_pass_on(process.stdout, out), _pass_on(process.stderr, err))
                await process.wait_closed()
            except asyncio.CancelledError:
                process.terminate()
                raise
        except (asyncssh.DisconnectError, OSError) as error:
            raise cut from error
        except asyncssh.ChannelOpenError as error:
            raise ServerUnreachableError(f"{server.address} does not run commands: {error}") from error
    if process.exit_signal is not None:
        return Ended(128 + _number(process.exit_signal[0]), errors)
    if process.exit_status is None:
        raise cut
    return Ended(process.exit_status, errors)


async def _pass_on(source: asyncssh.SSHReader[str], sink: TextIO) -> str:
    """Write what comes to ``sink`` at once, progress bars without an end of line too; return the end of it."""
    end = ""
    while text := await source.read(_KEPT_CHARACTERS):
        sink.write(text)
        sink.flush()
        end = (end + text)[-_KEPT_CHARACTERS:]
    return end


async def _connect(server: Server) -> asyncssh.SSHClientConnection:
    until = time.monotonic() + server.patience_s
    attempt = 0
    while True:
        try:
            return await _try_to_connect(server)
        except socket.gaierror as error:
            raise InputError(f"could not find a machine named {server.address}: check the address") from error
        except (OSError, asyncssh.ConnectionLost) as error:
            # A server that has none of the keys that we know hangs up, sometimes before we can say what is wrong.
            hung_up = isinstance(error, asyncssh.ConnectionLost) and attempt < _HUNG_UP
            if time.monotonic() >= until and not hung_up:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise ServerUnreachableError(
                    f"{server.address} does not answer ssh ({reason}): check that it runs, and that its firewall "
                    "(security group) lets you in"
                ) from error
        attempt += 1
        if attempt == 2:
            say(f"waiting until {server.address} answers")
        await asyncio.sleep(min(2.0, max(0.1, until - time.monotonic())))


async def _try_to_connect(server: Server) -> asyncssh.SSHClientConnection:
    check = HostKeys(server)
    keys = {} if server.key is None else {"client_keys": [str(server.key)], "agent_path": None}
    port = {} if server.port is None else {"port": server.port}
    try:
        return await asyncssh.connect(
            server.address,
            username=server.username,
            client_factory=lambda: check,
            known_hosts=check.lookup,
            host_key_alias=server.name,
            connect_timeout=_ONE_TRY_S,
            login_timeout=_ONE_TRY_S,
            keepalive_interval=_SILENCE_S,
            keepalive_count_max=4,
            **keys,
            **port,
        )
    except asyncssh.PermissionDenied as error:
        what = "your keys are" if server.key is None else f"the key {server.key} is"
        raise InputError(f"{what} refused by {server.username}@{server.address}: give the machine's own key") from error
    except asyncssh.KeyImportError as error:
        if "assphrase" in str(error):
            raise InputError(
                f"the key {server.key} has a passphrase: add it to your agent (ssh-add) and give no key"
            ) from error
        raise InputError(f"expected a private ssh key at {server.key}, got something else ({error})") from error
    except asyncssh.HostKeyNotVerifiable as error:
        raise check.problem or InputError(f"the host key of {server.address} is not trusted: {error}") from error
    except asyncssh.KeyExchangeFailed as error:
        raise check.missing_type() or InputError(f"no ssh with {server.address} is possible: {error}") from error
    except asyncssh.ConfigParseError as error:
        raise InputError(f"your ssh configuration can't be read: {error}") from error


def _number(name: str) -> int:
    return int(getattr(signal, f"SIG{name}", 0))
