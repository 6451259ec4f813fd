"""Addresses in S3."""

from __future__ import annotations

from cloudreg.errors import InputError


class S3Url:
    """The parts of an ``s3://`` address.

    Parameters
    ----------
    url
        ``s3://bucket/key``; the key may hold ``?`` and ``#``.

    Raises
    ------
    InputError
        If it is no such address.

    Examples
    --------
    >>> s = S3Url("s3://bucket/hello/world")
    >>> s.bucket
    'bucket'
    >>> s.key
    'hello/world'
    >>> s.url
    's3://bucket/hello/world'

    >>> s = S3Url("s3://bucket/hello/world?qwe1=3#ddd")
    >>> s.bucket
    'bucket'
    >>> s.key
    'hello/world?qwe1=3#ddd'
    >>> s.url
    's3://bucket/hello/world?qwe1=3#ddd'

    >>> s = S3Url("s3://bucket/hello/world#foo?bar=2")
    >>> s.key
    'hello/world#foo?bar=2'
    >>> s.url
    's3://bucket/hello/world#foo?bar=2'
    """

    def __init__(self, url: str) -> None:
        scheme, _, rest = url.partition("://")
        bucket, _, key = rest.partition("/")
        if scheme != "s3" or not bucket:
            raise InputError(f"expected an address such as s3://bucket/folder, got {url!r}")
        self._bucket, self._key, self._url = bucket, key.lstrip("/"), url

    @property
    def bucket(self) -> str:
        """Name of the bucket."""
        return self._bucket

    @property
    def key(self) -> str:
        """What follows the bucket, without a slash at its beginning."""
        return self._key

    @property
    def url(self) -> str:
        """The address as it was given."""
        return self._url

    @classmethod
    def of(cls, text: str) -> S3Url:
        """Read an address that may lack ``s3://`` or start with ``precomputed://``."""
        plain = text.removeprefix("precomputed://").rstrip("/")
        return cls(plain if "://" in plain else f"s3://{plain}")
