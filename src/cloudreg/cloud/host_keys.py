"""Whether a machine is the one that it says: its own key, compared with those remembered in known_hosts files.

A machine met for the first time is trusted if that is allowed, and its key is remembered, as OpenSSH does with
``StrictHostKeyChecking accept-new``. One whose key has changed never is.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import asyncssh

from cloudreg.cloud.ssh import Server
from cloudreg.errors import InputError
from cloudreg.execution.progress import say


class HostKeys(asyncssh.SSHClient):
    """Judges the key of one server; afterwards ``problem`` says what was wrong with it."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._file = server.known_hosts or Path("~/.ssh/known_hosts").expanduser()
        others = [] if server.known_hosts else [Path("/etc/ssh/ssh_known_hosts")]
        self._known = _read([self._file, *others])
        self._expected: list[asyncssh.SSHKey] = []
        self.problem: InputError | None = None

    def lookup(self, host: str, address: str, port: int | None) -> Any:
        """Return what is known of a host, for asyncssh."""
        # Under a name of its own, what is remembered of the address is of other machines that had it before.
        found = self._known.match(host, "" if self._server.name else address, port)
        self._expected = list(found[0])
        return found

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Decide on a key that is not remembered."""
        fingerprint = key.get_fingerprint()
        if self._expected:
            self.problem = self._changed(fingerprint)
            return False
        if self._server.new_host == "refuse":
            self.problem = InputError(
                f"{host} is a new machine, its host key ({fingerprint}) is not in {self._file}: compare it with the "
                "machine's own and add it, or allow new hosts"
            )
            return False
        self._remember(host if self._server.name or port == 22 else f"[{host}]:{port}", key)
        say(f"{host} is new: its host key {fingerprint} is remembered in {self._file}")
        return True

    def missing_type(self) -> InputError | None:
        """Return the error for a server that offers no key of the remembered kind, if some are remembered."""
        return self._changed("a key of another kind") if self._expected else None

    def _changed(self, got: str) -> InputError:
        expected = " or ".join(key.get_fingerprint() for key in self._expected)
        name = self._server.name or self._server.address
        return InputError(
            f"the host key of {name} has changed: expected {expected}, got {got}: somebody may stand between you and "
            f"it; if the machine was made anew, run ssh-keygen -f {self._file} -R {name} first"
        )

    def _remember(self, name: str, key: asyncssh.SSHKey) -> None:
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        text = self._file.read_bytes() if self._file.exists() else b"\n"
        line = b"" if text.endswith(b"\n") or not text else b"\n"
        line += name.encode() + b" " + key.export_public_key("openssh").split(b"\n")[0] + b"\n"
        descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "ab") as file:
            file.write(line)


def _read(files: list[Path]) -> asyncssh.SSHKnownHosts:
    known = asyncssh.SSHKnownHosts()
    for file in files:
        try:
            known.load(file.read_text(errors="replace") if file.is_file() else "")
        except (OSError, ValueError) as error:
            raise InputError(f"could not read the known hosts of {file}: {error}: mend it") from error
    return known
