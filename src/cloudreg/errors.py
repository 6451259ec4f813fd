"""What can go wrong, in the words of the person who can mend it.

Every message is one sentence that says what was expected, what came and what to do.
"""


class CloudRegError(Exception):
    """Something failed that is not the user's fault; the command line exits with 1."""

    exit_code = 1


class InputError(CloudRegError, ValueError):
    """The input, a setting or a path is not what a stage needs; the command line exits with 2."""

    exit_code = 2


class StoreUnreachableError(CloudRegError, ConnectionError):
    """An object store or a web server gave no answer for as long as it is worth to wait."""


class ServerUnreachableError(CloudRegError, ConnectionError):
    """Another machine gave no answer, or the connection to it was cut."""


class CloudServiceError(CloudRegError, RuntimeError):
    """A cloud's service refused or failed, for a reason that the input does not show."""


class CommandFailedError(CloudRegError, RuntimeError):
    """Another program, here or on another machine, ended with an error; our exit code is its.

    Parameters
    ----------
    what
        The program, in words.
    exit_code
        What it ended with: 1 to 255, where 128 and more is 128 and the number of a signal.
    last_words
        What it said at the end, if anything.
    """

    def __init__(self, what: str, exit_code: int, last_words: str = "") -> None:
        self.exit_code = exit_code
        super().__init__(f"{what} ended with exit status {exit_code}" + (f": {last_words}" if last_words else ""))


class VerificationError(CloudRegError, RuntimeError):
    """What was read back is not what was written."""


class MissingExtraError(InputError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is needed for this and is not installed: run pip install 'cloudreg[{extra}]'")


class BlocksFailedError(CloudRegError, RuntimeError):
    """Some blocks of a stage failed; the others were finished first."""

    def __init__(self, label: str, failures: dict[str, BaseException], *, kept: bool) -> None:
        self.failures = failures
        first = next(iter(failures))
        what = "the finished blocks are kept: run the same command again to go on"
        super().__init__(
            f"{label}: {len(failures)} block(s) failed, first {first}: {failures[first]!r}; "
            f"{what if kept else 'nothing is kept: mend that, and run the same command again'}"
        )


class RegistrationFailedError(CloudRegError, RuntimeError):
    """The fit did not reach a result that can be trusted."""
