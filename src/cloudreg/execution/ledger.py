"""Which blocks of a stage are done."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from cloudreg.errors import InputError


class Ledger:
    """An append-only list of finished blocks, one name a line.

    A line counts only with its line end, so a run killed while writing one does that block again.

    Parameters
    ----------
    path
        Text file; made with its folder at the first mark.
    job
        Whose blocks they are, in one line. What another job has noted at the path doesn't count, and goes with the
        first `mark` or `clear`: call one of them before writing over its blocks.
    """

    def __init__(self, path: str | Path, *, job: str = "") -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._title = f"job {job}\n" if job else ""
        text = self.path.read_text() if self.path.exists() else ""
        self._of_another = bool(text) and not text.startswith(self._title)
        if self._of_another:
            text = ""
        whole, _, torn = text.removeprefix(self._title).rpartition("\n")
        self._done = set(whole.split("\n")) - {""}
        self._torn = bool(torn)

    def __contains__(self, name: str) -> bool:
        return name in self._done

    def __len__(self) -> int:
        return len(self._done)

    def mark(self, name: str) -> None:
        """Record that a block is finished; call only after its data is written.

        Raises
        ------
        InputError
            If there is no room for the file, or no right to write it.
        """
        with self._lock:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("w" if self._of_another else "a") as file:
                    start = "\n" if self._torn else self._title if file.tell() == 0 else ""
                    file.write(f"{start}{name}\n")
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise InputError(
                    f"could not note in {self.path} what is done ({error.strerror}): make room or get the right to "
                    "write there, and run the same command again"
                ) from error
            self._torn = self._of_another = False
            self._done.add(name)

    def clear(self) -> None:
        """Forget all blocks: what they made is gone."""
        with self._lock:
            self.path.unlink(missing_ok=True)
            self._done, self._torn, self._of_another = set(), False, False
