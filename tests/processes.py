"""Programs that don't outlive the tests."""

import subprocess

# The program runs until it ends, or until the pipe into it is closed: by whoever holds it, or by his death.
_UNTIL_CLOSED = 'exec 3<&0; (read _ <&3; kill -9 $$) & exec "$@" 3<&- </dev/null'


def start_server(command, **options):
    """Start a program as the leader of a process group; it is killed when this process ends, however it does."""
    words = ["sh", "-c", _UNTIL_CLOSED, "sh", *command]
    return subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True, **options)
