"""Real ssh servers on free ports of this machine, which truly run what they are told."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import threading
import time
from pathlib import Path

import asyncssh
import pytest

from processes import start_server

KEY_TYPES = {"ed25519": "ssh-ed25519", "rsa": "ssh-rsa", "ecdsa": "ecdsa-sha2-nistp256"}


def make_keys(folder: Path) -> dict[str, Path]:
    """Write a key pair of each type, and a file that lets all of them in."""
    folder.mkdir(parents=True)
    allowed = []
    for name, algorithm in KEY_TYPES.items():
        key = asyncssh.generate_private_key(algorithm)
        (folder / name).touch(mode=0o600)
        (folder / name).write_bytes(key.export_private_key("pkcs1-pem" if name == "rsa" else "openssh"))
        allowed.append(key.export_public_key("openssh").decode())
    (folder / "allowed").write_text("".join(allowed))
    return {name: folder / name for name in KEY_TYPES}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class SshServer:
    """Asyncssh's server. ``env`` and ``cwd`` are those of the commands that it runs."""

    def __init__(self, allowed: Path, host_key: str = "ssh-ed25519", port: int = 0) -> None:
        self.key = asyncssh.generate_private_key(host_key)
        self.allowed, self.port = allowed, port
        self.env, self.cwd = dict(os.environ), None
        self.commands, self.connections = [], []
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.start()

    def start(self) -> None:
        self._server = self._do(self._listen())
        self.port = self._server.get_port()

    def stop(self) -> None:
        self._do(self._close())
        self.drop()

    async def _close(self) -> None:
        """Close in the loop's own thread, where the last connection may be going at this moment."""
        self._server.close()

    def drop(self) -> None:
        """Cut all connections, as a broken network does."""
        for connection in self.connections:
            self._loop.call_soon_threadsafe(connection.abort)

    @property
    def known_hosts_line(self) -> str:
        return f"[127.0.0.1]:{self.port} {self.key.export_public_key('openssh').decode()}"

    @property
    def fingerprint(self) -> str:
        return self.key.get_fingerprint()

    def _do(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _listen(self):
        connections = self.connections

        class Watch(asyncssh.SSHServer):
            def connection_made(self, connection):
                connections.append(connection)

        return await asyncssh.listen(
            "127.0.0.1",
            self.port,
            server_host_keys=[self.key],
            authorized_client_keys=str(self.allowed),
            server_factory=Watch,
            process_factory=self._run,
            encoding=None,
        )

    async def _run(self, process) -> None:
        self.commands.append(process.command)
        child = await asyncio.create_subprocess_shell(
            process.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self.env,
            cwd=self.cwd,
        )
        feeding = asyncio.create_task(_feed(process.stdin, child.stdin))
        try:
            with contextlib.suppress(asyncssh.Error, OSError):
                await asyncio.gather(_pump(child.stdout, process.stdout), _pump(child.stderr, process.stderr))
                status = await child.wait()
                if status < 0:
                    process.exit_with_signal(signal.Signals(-status).name.removeprefix("SIG"))
                else:
                    process.exit(status)
        finally:
            # As with OpenSSH, a command whose client has gone goes on; it only sees the end of its input.
            await feeding
            await child.wait()


async def _feed(source, sink) -> None:
    with contextlib.suppress(asyncssh.Error, OSError):
        while data := await source.read(65536):
            sink.write(data)
    sink.close()


async def _pump(source, sink) -> None:
    while data := await source.read(65536):
        sink.write(data)
        await sink.drain()


class OpenSsh:
    """OpenSSH's sshd, for the user who runs the tests."""

    def __init__(self, folder: Path, allowed: Path) -> None:
        program = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/sbin")
        if program is None:
            pytest.skip("no sshd: apt-get install openssh-server")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # it wants this folder when root starts it
        folder.mkdir()
        self.port = free_port()
        key = asyncssh.generate_private_key("ssh-ed25519")
        (folder / "host_key").touch(mode=0o600)
        (folder / "host_key").write_bytes(key.export_private_key("openssh"))
        (folder / "config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nPidFile none\n"
            f"AuthorizedKeysFile {allowed}\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n"
        )
        self.log = folder / "log"
        self.process = start_server([program, "-D", "-f", str(folder / "config"), "-E", str(self.log)])
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            if self.process.poll() is not None:
                pytest.skip(f"sshd does not start here: {self.log.read_text()[-300:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()
