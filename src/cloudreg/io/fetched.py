"""Single files of a bucket or a web server, copied here to be read: their formats want a file."""

from __future__ import annotations

import functools
import hashlib
import tempfile
from pathlib import Path

from cloudreg.errors import InputError
from cloudreg.execution import require_free_space
from cloudreg.io.objects import read_files, require_bucket


def fetched_file(address: str) -> Path:
    """Copy a file here, through memory and once in a process; the copy goes with the process.

    Raises
    ------
    InputError
        If there is no such file, or the disk is too small.
    """
    parent, _, name = address.rpartition("/")
    file = Path(_folder().name) / hashlib.sha256(address.encode()).hexdigest()[:16] / name
    if not file.exists():
        content = read_files(parent, [name]).get(name)
        if content is None:
            require_bucket(parent)
            raise InputError(f"expected a file at {address}, got nothing: check the address")
        require_free_space(_folder().name, len(content), f"a copy of {address}")
        file.parent.mkdir(exist_ok=True)
        part = file.with_name(f".part.{name}")
        part.write_bytes(content)
        part.replace(file)
    return file


@functools.lru_cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="cloudreg-files-")
