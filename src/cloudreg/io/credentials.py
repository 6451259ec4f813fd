"""Who we are to an object store: the standard AWS chain, then the secrets files of CloudVolume, else nobody.

In order: the environment, a profile of ``~/.aws``, a container's or a pod's role, CloudVolume's files, the role of an
EC2 machine, anonymous. A custom server and region come from the environment or the profile.
"""

from __future__ import annotations

import configparser
import functools
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloudreg.errors import InputError

_ROLE_VARIABLES = (
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
)


@dataclass(frozen=True)
class S3Access:
    """How to reach one bucket.

    Parameters
    ----------
    source
        Where the credentials come from, in words.
    credentials
        For tensorstore.
    endpoint, region
        Of a server that isn't Amazon's, and of a bucket; None lets tensorstore find out.
    """

    source: str
    credentials: tuple[tuple[str, str], ...]
    endpoint: str | None = None
    region: str | None = None

    @property
    def anonymous(self) -> bool:
        """Whether requests carry no name."""
        return self.credentials == (("type", "anonymous"),)

    @property
    def spec(self) -> dict[str, Any]:
        """Return the part of a tensorstore S3 specification that says so."""
        spec: dict[str, Any] = {"aws_credentials": dict(self.credentials)}
        if self.endpoint is not None:
            spec["endpoint"] = self.endpoint.rstrip("/")
        if self.region is not None:
            spec["aws_region"] = self.region
        return spec

    @staticmethod
    def of(bucket: str) -> S3Access:
        """Find out how to reach a bucket, from the environment and the files of this user."""
        asked = _first("AWS_PROFILE", "AWS_DEFAULT_PROFILE")
        profile = asked or "default"
        written = _profile(profile)
        if asked and not written:
            raise InputError(
                f"expected a profile {asked} in {_config_file()} or {_credentials_file()}, got none: correct the "
                "environment variable AWS_PROFILE"
            )
        endpoint = _first("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") or written.get("endpoint_url")
        region = _first("AWS_REGION", "AWS_DEFAULT_REGION") or written.get("region")
        source, credentials = _credentials(bucket, profile, written)
        # Servers of other makers don't care which region is signed for; tensorstore would ask Amazon's way.
        return S3Access(source, credentials, endpoint, region or ("us-east-1" if endpoint else None))


def set_google_credentials(bucket: str) -> None:
    """Let Google's chain find CloudVolume's file for a bucket, if it has nothing else to go by."""
    file = _secrets_file(bucket, "google")
    if file is not None:
        os.environ.setdefault("GOOGLE_APPLICATION_CREDENTIALS", str(file))


def _credentials(bucket: str, profile: str, written: Mapping[str, str]) -> tuple[str, tuple[tuple[str, str], ...]]:
    if _is_true("AWS_NO_SIGN_REQUEST"):
        return "AWS_NO_SIGN_REQUEST", (("type", "anonymous"),)
    if os.environ.get("AWS_ACCESS_KEY_ID") and os.environ.get("AWS_SECRET_ACCESS_KEY"):
        return "AWS_ACCESS_KEY_ID", (("type", "environment"),)
    if written.keys() & {"aws_access_key_id", "role_arn"}:
        files = (("config_file", _or_none(_config_file())), ("credentials_file", _or_none(_credentials_file())))
        return f"profile {profile}", (("type", "profile"), ("profile", profile), *files)
    if written.keys() & {"sso_session", "sso_start_url", "credential_process"}:
        raise InputError(
            f"the AWS profile {profile} gets its keys from another program: "
            f'run eval "$(aws configure export-credentials --profile {profile} --format env)" first'
        )
    if any(os.environ.get(name) for name in _ROLE_VARIABLES):
        return "this container's role", (("type", "default"),)
    file = _secrets_file(bucket, "aws")
    if file is not None:
        files = (("config_file", os.devnull), ("credentials_file", _as_credentials_file(file)))
        return str(file), (("type", "profile"), ("profile", "default"), *files)
    if _on_ec2() and not _is_true("AWS_EC2_METADATA_DISABLED"):
        return "this machine's role", (("type", "imds"),)
    return "nobody", (("type", "anonymous"),)


def _first(*names: str) -> str | None:
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


def _is_true(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "on")


def _config_file() -> Path:
    return Path(os.environ.get("AWS_CONFIG_FILE") or "~/.aws/config").expanduser()


def _credentials_file() -> Path:
    return Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials").expanduser()


def _or_none(file: Path) -> str:
    """Return the path of a file, or of one without content: tensorstore wants both files to be there."""
    return str(file) if file.is_file() else os.devnull


def _profile(name: str) -> dict[str, str]:
    """Return what both files say of a profile; the credentials file wins."""
    values: dict[str, str] = {}
    section = name if name == "default" else f"profile {name}"
    for file, title in ((_config_file(), section), (_credentials_file(), name)):
        parser = configparser.RawConfigParser()
        try:
            parser.read(file)
        except configparser.Error as error:
            reason = str(error).replace("\n", " ")
            raise InputError(f"expected an AWS settings file at {file}, got {reason}: mend it") from error
        if parser.has_section(title):
            values |= dict(parser.items(title))
    return values


def _secrets_file(bucket: str, maker: str) -> Path | None:
    """Return CloudVolume's file of a bucket, or of all buckets."""
    homes = [os.environ.get("CLOUD_FILES_DIR"), os.environ.get("CLOUD_VOLUME_DIR"), "~/.cloudfiles", "~/.cloudvolume"]
    names = [f"{bucket}-{maker}-secret.json", f"{maker}-secret.json"]
    files = (Path(home).expanduser() / "secrets" / name for name in names for home in homes if home)
    return next((file for file in files if file.is_file()), None)


@functools.lru_cache
def _private_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder that only this user may read, and that goes with the process."""
    return tempfile.TemporaryDirectory(prefix="cloudreg-")


def _as_credentials_file(secrets: Path) -> str:
    """Return the path of CloudVolume's file in the form that tensorstore reads."""
    try:
        values = json.loads(secrets.read_text())
        lines = ["[default]", f"aws_access_key_id = {values['AWS_ACCESS_KEY_ID']}"]
        lines.append(f"aws_secret_access_key = {values['AWS_SECRET_ACCESS_KEY']}")
        if values.get("AWS_SESSION_TOKEN"):
            lines.append(f"aws_session_token = {values['AWS_SESSION_TOKEN']}")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"expected AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in {secrets}, got something else: mend it"
        ) from error
    text = "\n".join(lines) + "\n"
    copy = Path(_private_folder().name) / secrets.name
    if not copy.exists() or copy.read_text() != text:
        copy.touch(mode=0o600)
        copy.write_text(text)
    return str(copy)


def _on_ec2() -> bool:
    vendor = Path("/sys/devices/virtual/dmi/id/sys_vendor")
    return vendor.is_file() and "Amazon EC2" in vendor.read_text(errors="replace")
