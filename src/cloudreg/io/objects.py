"""Files by name, wherever they lie: disks, S3 and its likes, Google's store, web servers; by tensorstore.

An address is ``s3://bucket/folder``, ``gs://bucket/folder``, ``http(s)://server/folder`` or ``file:///folder``; all
else is a path on this machine.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cloudreg.errors import InputError, StoreUnreachableError
from cloudreg.io.credentials import S3Access, set_google_credentials

Json = dict[str, Any]


class WholeFilesOnlyError(InputError):
    """A web server that knows no ranges of bytes was asked for a part of a file."""


_REMOTE = ("s3://", "gs://", "http://", "https://", "memory://")


def is_remote(path: str) -> bool:
    """Whether a path is the address of an object store or a web server."""
    return path.startswith(_REMOTE)


def plain_address(text: str) -> str:
    """Return an address without a slash at its end, or the absolute path of something on this machine.

    Raises
    ------
    InputError
        If it is an address of another kind, or of no bucket or server.
    """
    path = text.removeprefix("file://")
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path)
    if scheme is None:
        return os.path.abspath(path.rstrip("/") or "/")  # noqa: PTH100 - text, not a Path
    if not is_remote(path):
        raise InputError(f"expected a path, or an address that starts with s3://, gs:// or https://, got {text}")
    address = path.rstrip("/")
    if len(address) <= len(scheme[0]):
        raise InputError(f"expected the name of a bucket or a server after {scheme[0]}, got {text}")
    return address


def kvstore(path: str, *, conditional: bool = False) -> Json | str:
    """Return tensorstore's description of the folder at a path or address.

    Parameters
    ----------
    conditional
        Whether writes will be conditional; not every object store knows them.
    """
    if path.startswith("s3://"):
        bucket, _, folder = path.removeprefix("s3://").partition("/")
        access = S3Access.of(bucket)
        spec = {"driver": "s3", "bucket": bucket, "path": f"{folder.rstrip('/')}/" if folder else "", **access.spec}
        return {**spec, "use_conditional_write": True} if conditional else spec
    if path.startswith("gs://"):
        set_google_credentials(path.removeprefix("gs://").partition("/")[0])
    if is_remote(path):
        return path.rstrip("/") + "/"
    return {"driver": "file", "path": os.path.join(os.path.abspath(path), "")}  # noqa: PTH100, PTH118 - text, not a Path


def context(*, patient: bool = True) -> Any:
    """Return how tensorstore behaves, the same for all arrays of this process.

    Failed requests are made again after a time that doubles, with some randomness: for about four minutes within a
    long job, in which a server may start anew, and for a few seconds at its beginning (``patient=False``), where an
    address is more likely wrong.
    """
    # tensorstore keeps credentials with the context: new ones in the environment need a new context.
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    return _context(patient, hash(tuple(os.environ.get(key) for key in keys)))


@functools.lru_cache
def _context(patient: bool, who: int) -> Any:
    import tensorstore as ts

    tries = {"max_retries": 12 if patient else 4, "initial_delay": "0.5s", "max_delay": "32s"}
    return ts.Context(dict.fromkeys(("s3_request_retries", "gcs_request_retries", "http_request_retries"), tries))


def read_files(path: str, keys: Sequence[str]) -> dict[str, bytes]:
    """Read those of the named files of a folder that exist, all at once.

    Raises
    ------
    InputError
        If the folder can't be reached.
    """
    with explaining(path, "read"):
        store = _open(path)
        pending = {key: store.read(key) for key in keys}
        found, refused = {}, None
        for key, future in pending.items():
            try:
                result = future.result()
            except ValueError as error:
                if "PERMISSION_DENIED" not in str(error):
                    raise
                # Who may read and not list is told so of files that aren't there, too.
                refused = error
            else:
                if result.state == "value":
                    found[key] = result.value
        if refused is not None and not found:
            raise refused
    return found


def read_jsons(path: str, keys: Sequence[str]) -> dict[str, Json]:
    """Read those of the named JSON objects of a folder that exist, all at once.

    Raises
    ------
    InputError
        If the folder can't be reached or a file is no JSON object.
    """
    return {key: _as_json(path, key, text) for key, text in read_files(path, keys).items()}


def read_json(path: str, key: str) -> Json | None:
    """Return the JSON object in file ``key`` of a folder, or None where there is no such file; see `read_jsons`."""
    return read_jsons(path, [key]).get(key)


def write_json(path: str, key: str, value: Json) -> None:
    """Write a JSON object as file ``key`` of a folder, at once or not at all."""
    with explaining(path, "write"):
        _open(path).write(key, _as_bytes(value)).result()


def write_new_json(path: str, key: str, value: Json) -> bool:
    """Write a JSON object as file ``key`` if there is no such file yet; return whether there was none.

    Of two programs that do this at the same moment one gets True.
    """
    with explaining(path, "write"):
        store = _open(path, conditional=True)
        found = store.read(key).result()
        if found.state == "value":
            return False
        return bool(store.write(key, _as_bytes(value), if_equal=found.stamp.generation).result().generation)


def list_files(path: str, under: str = "") -> list[str]:
    """Return the names of all files in a folder and in its folders, that start with ``under``, sorted."""
    import tensorstore as ts

    with explaining(path, "list"):
        store = _open(path)
        wanted = ts.KvStore.KeyRange(under, under[:-1] + chr(ord(under[-1]) + 1)) if under else None
        keys = store.list(wanted).result() if wanted is not None else store.list().result()
    return sorted(key.decode() for key in keys)


def remove_folder(path: str) -> None:
    """Remove all files of a folder of an object store."""
    import tensorstore as ts

    with explaining(path, "remove"):
        _open(path).delete_range(ts.KvStore.KeyRange()).result()


def require_bucket(path: str) -> None:
    """Say so if the bucket of an address doesn't exist: reading a file of it only says that there is no file.

    Raises
    ------
    InputError
        If there is no such bucket.
    """
    if path.startswith(("s3://", "gs://")):
        list_files(path, ".cloudreg-is-there-a-bucket")


@contextmanager
def explaining(path: str, doing: str) -> Iterator[None]:
    """Turn tensorstore's errors into ours, with the address and what to do.

    Parameters
    ----------
    path
        What is read or written.
    doing
        What is done to it, such as ``"read"``.
    """
    try:
        yield
    except InputError:
        raise
    except ValueError as error:  # tensorstore's word for nearly everything that a file or a server can do
        raise explained(error, path, doing) from error


def explained(error: ValueError, path: str, doing: str) -> InputError | StoreUnreachableError:
    """Return one line for what tensorstore says of an address."""
    text = str(error)
    words = first_words(error)
    bucket = path.partition("://")[2].partition("/")[0]
    access = S3Access.of(bucket) if path.startswith("s3://") else None
    where = f"{path} (server {access.endpoint})" if access is not None and access.endpoint else path
    if "NoSuchBucket" in text or "The specified bucket does not exist" in text:
        return InputError(f"expected a bucket named {bucket} for {where}, got none: make it, or check the address")
    if re.search("SignatureDoesNotMatch|InvalidAccessKeyId|InvalidToken|ExpiredToken|UNAUTHENTICATED", text):
        source = access.source if access is not None else "this machine"
        return InputError(f"could not {doing} {where}: the credentials of {source} are refused ({words}): renew them")
    if re.search("AuthorizationHeaderMalformed|PermanentRedirect|IllegalLocation|aws_region|Moved Permanently", text):
        return InputError(f"could not {doing} {where}: the bucket is in another region ({words}): set AWS_REGION")
    if "No space left" in text:
        return InputError(f"could not {doing} {where}: the disk is full: make room and run the same command again")
    if "PERMISSION_DENIED" in text:
        who = f"with the credentials of {access.source}" if access is not None else "as you"
        if access is not None and access.anonymous:
            who = (
                "without credentials, for none were found: run 'aws configure' or set AWS_ACCESS_KEY_ID and its secret"
            )
        return InputError(f"could not {doing} {where} {who}: access is denied")
    if "byte range" in text and "ignored by server" in text:
        return WholeFilesOnlyError(
            f"could not {doing} {where}: this server gives files as a whole only, and parts are needed: copy it here"
        )
    if "SSL" in text and "certificate" in text:
        return InputError(
            f"could not {doing} {where}: its certificate is not trusted ({words}): name the file of who vouches for it "
            "in TENSORSTORE_CA_BUNDLE"
        )
    if doing.startswith("read box") and "is missing" in text:
        return InputError(
            f"could not {doing} {where}: {words}: finish the copy, or give --fill-missing to take what is missing for "
            "zeros"
        )
    if doing.startswith("read box") and re.search("FAILED_PRECONDITION|OUT_OF_RANGE|DATA_LOSS", text):
        return InputError(f"could not {doing} {where}, where a chunk is damaged ({words}): copy the volume again")
    if "CURL error" in text or "retry attempts failed" in text:
        return StoreUnreachableError(
            f"could not {doing} {where}: no answer ({words}): run the same command again later"
        )
    return InputError(f"could not {doing} {where}: {words}")


def first_words(error: Exception) -> str:
    """Return tensorstore's message without the JSON that follows it."""
    return str(error).split(" [")[0].replace("\n", " ")


def _open(path: str, *, conditional: bool = False) -> Any:
    import tensorstore as ts

    return ts.KvStore.open(kvstore(path, conditional=conditional), context=context(patient=False)).result()


def _as_json(path: str, key: str, text: bytes) -> Json:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InputError(f"expected JSON in {path}/{key}, got text that is none ({error}): restore the file") from error
    if not isinstance(value, dict):
        raise InputError(f"expected a JSON object in {path}/{key}, got a {type(value).__name__}: restore the file")
    return value


def _as_bytes(value: Json) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
