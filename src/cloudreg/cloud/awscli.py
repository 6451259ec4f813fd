"""The AWS command line, as a program of its own: its pinned libraries are not ours."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence

from cloudreg.errors import CommandFailedError, InputError


class ProgramMissingError(InputError, RuntimeError):
    """A program that is called is not installed; an error of running it, as callers of it expect."""


def aws_cli(*cmd: str | Sequence[str]) -> None:
    """Run the AWS command line, and show what it prints.

    Parameters
    ----------
    *cmd
        Its arguments, such as ``"s3", "sync", source, destination``; a list of them is taken for the same.

    Raises
    ------
    ProgramMissingError
        If the program ``aws`` is not installed.
    CommandFailedError
        If it ends with an error. Both are RuntimeErrors.
    """
    words = [word for part in cmd for word in ([part] if isinstance(part, str) else part)]
    program = shutil.which("aws")
    if program is None:
        raise ProgramMissingError("the program aws is needed for this and is not on the PATH: run pipx install awscli")
    last = ""
    with subprocess.Popen([program, *words], stderr=subprocess.PIPE, text=True, errors="replace") as running:
        for line in running.stderr or ():
            sys.stderr.write(line)
            last = line.strip() or last
    if running.returncode:
        code = running.returncode if running.returncode > 0 else 128 - running.returncode
        raise CommandFailedError(shlex.join(["aws", *words]), code, last)
