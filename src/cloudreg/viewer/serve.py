"""A web server for folders of this machine, as viewers in browsers need it: ranges of bytes, any page may ask."""

from __future__ import annotations

import http.server
import mimetypes
import re
import secrets
import threading
import urllib.parse
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

_CHUNK = 1 << 20


class FolderServer:
    """Serves some folders and files, and nothing else, until it is closed.

    Parameters
    ----------
    host, port
        Where it listens; by default for this machine only, on any free port.

    Notes
    -----
    Any web page that the same browser shows could ask this server for files. The paths of shared folders therefore
    hold a word that can't be guessed.
    """

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._shared: dict[str, Path] = {}
        shared = self._shared

        class Handler(_Handler):
            folders = shared

        self._server = http.server.ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = True
        self.address = f"http://{host}:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def share(self, path: Path) -> str:
        """Serve a folder or a file from now on; return its address."""
        name = f"{secrets.token_urlsafe(16)}/{urllib.parse.quote(path.name)}"
        self._shared[urllib.parse.unquote(name)] = path.resolve()
        return f"{self.address}/{name}"

    @property
    def shares_something(self) -> bool:
        """Whether there is anything to serve."""
        return bool(self._shared)

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> FolderServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folders: Mapping[str, Path]

    def do_OPTIONS(self) -> None:
        self.send_response(HTTPStatus.NO_CONTENT)
        self.end_headers()

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def end_headers(self) -> None:
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Access-Control-Allow-Headers", "*")
        self.send_header("Access-Control-Allow-Methods", "GET, HEAD, OPTIONS")
        self.send_header("Access-Control-Expose-Headers", "Content-Range, Content-Length, Accept-Ranges")
        self.send_header("Access-Control-Allow-Private-Network", "true")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _answer(self, *, with_body: bool) -> None:
        found = self._find()
        if found is None:
            # A chunk that is not there is quite usual, and means zeros.
            self.send_response(HTTPStatus.NOT_FOUND)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        file, encoding = found
        with file.open("rb") as opened:
            self._send(opened, file, encoding, with_body)

    def _send(self, opened: BinaryIO, file: Path, encoding: str | None, with_body: bool) -> None:
        size = file.stat().st_size
        start, stop = self._range(size)
        if start >= stop and size:
            self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            self.send_header("Content-Range", f"bytes */{size}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        partial = stop - start < size
        self.send_response(HTTPStatus.PARTIAL_CONTENT if partial else HTTPStatus.OK)
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        if encoding:
            self.send_header("Content-Encoding", encoding)
        self.send_header("Content-Type", mimetypes.guess_type(file.name)[0] or "application/octet-stream")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if with_body:
            opened.seek(start)
            while start < stop and (data := opened.read(min(_CHUNK, stop - start))):
                self.wfile.write(data)
                start += len(data)

    def _range(self, size: int) -> tuple[int, int]:
        """Return the first byte that is asked for, and the one after the last."""
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "").strip())
        if match is None or match.groups() == ("", ""):
            return 0, size
        first, last = match.groups()
        if not first:
            return max(0, size - int(last)), size
        return int(first), min(size, int(last) + 1) if last else size

    def _find(self) -> tuple[Path, str | None] | None:
        """Return the file that a request means, and how it is encoded, if it is one of those that are shared."""
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).strip("/")
        parts = path.split("/")
        folder, rest = self.folders.get("/".join(parts[:2])), parts[2:]
        if folder is None:
            return None
        file = folder.joinpath(*rest).resolve()
        if file != folder and folder.resolve() not in file.parents:
            return None
        if file.is_file():
            return file, None
        # CloudVolume gzips the chunks of local volumes and adds to their names.
        packed = file.with_name(f"{file.name}.gz")
        return (packed, "gzip") if packed.is_file() else None
