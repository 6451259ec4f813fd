"""Amazon's services by boto3, with its errors in one line that says what to do."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cloudreg.errors import CloudServiceError, InputError, MissingExtraError, StoreUnreachableError

_WRONG_KEYS = re.compile(
    "AuthFailure|InvalidClientTokenId|SignatureDoesNotMatch|InvalidAccessKeyId|Expired|InvalidToken"
)
_NO_RIGHT = re.compile("UnauthorizedOperation|AccessDenied|Forbidden|^403$")
_NO_ROOM = re.compile("InsufficientInstanceCapacity|LimitExceeded")
_WRONG_INPUT = re.compile("^Invalid|^Malformed|^NoSuch|NotFound|^Unsupported|^IncorrectInstanceState|^404$")


def aws_client(service: str, region: str | None = None) -> Any:
    """Return boto3's client of a service, for the credentials, endpoint and (if none is given) region of the AWS chain.

    Raises
    ------
    MissingExtraError
        If boto3 is not installed.
    InputError
        If no region is set.
    """
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise MissingExtraError("boto3", "aws") from error
    with explaining_aws(f"speak to {service.upper()}"):
        # Standard mode makes a request again after failures of the network and of the server, with growing waits.
        attempts = int(os.environ.get("AWS_MAX_ATTEMPTS", "8"))
        config = Config(retries={"mode": "standard", "total_max_attempts": attempts})
        return boto3.Session().client(service, region_name=region, config=config)


@contextmanager
def explaining_aws(doing: str) -> Iterator[None]:
    """Turn botocore's errors into ours.

    Parameters
    ----------
    doing
        What is tried, such as ``"start instance i-0123"``.
    """
    from botocore import exceptions as boto

    try:
        yield
    except boto.NoRegionError as error:
        raise InputError(f"could not {doing}: no region is set: set AWS_REGION, or run 'aws configure'") from error
    except (boto.NoCredentialsError, boto.PartialCredentialsError) as error:
        raise InputError(
            f"could not {doing}: no AWS credentials were found: run 'aws configure', or set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        ) from error
    except (boto.ProfileNotFound, boto.ConfigParseError, boto.ParamValidationError) as error:
        raise InputError(f"could not {doing}: {_one_line(error)}") from error
    except boto.ClientError as error:
        raise _explained(error, doing) from error
    except (boto.HTTPClientError, boto.ConnectionError) as error:
        raise StoreUnreachableError(f"could not {doing}: no answer from AWS ({_one_line(error)}): try again") from error
    except boto.BotoCoreError as error:
        raise CloudServiceError(f"could not {doing}: {_one_line(error)}") from error


def _explained(error: Any, doing: str) -> InputError | CloudServiceError:
    answer = error.response.get("Error", {})
    code, message = (
        str(answer.get("Code", "")),
        str(answer.get("Message", "")).split("Encoded authorization")[0].strip(),
    )
    if _WRONG_KEYS.search(code):
        return InputError(f"could not {doing}: the AWS credentials are refused ({code}): renew them")
    if _NO_RIGHT.search(code):
        return InputError(f"could not {doing}: access is denied ({message or code}): ask for the right to do this")
    if _NO_ROOM.search(code):
        return CloudServiceError(
            f"could not {doing}: AWS has no room for it now ({message}): wait, or take another type"
        )
    if _WRONG_INPUT.search(code):
        return InputError(f"could not {doing}: {message or code}")
    return CloudServiceError(f"could not {doing}: {message} ({code})")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
