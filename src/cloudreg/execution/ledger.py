"""Which blocks of a stage are done."""

from __future__ import annotations

import os
import threading
from pathlib import Path


class Ledger:
    """An append-only list of finished blocks, one name a line.

    A line counts only with its line end, so a run killed while writing one does that block again.

    Parameters
    ----------
    path
        Text file; made with its folder at the first mark.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        text = self.path.read_text() if self.path.exists() else ""
        whole, _, torn = text.rpartition("\n")
        self._done = set(whole.split("\n")) - {""}
        self._torn = bool(torn)

    def __contains__(self, name: str) -> bool:
        return name in self._done

    def __len__(self) -> int:
        return len(self._done)

    def mark(self, name: str) -> None:
        """Record that a block is finished; call only after its data is written."""
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(("\n" if self._torn else "") + name + "\n")
                file.flush()
                os.fsync(file.fileno())
            self._torn = False
            self._done.add(name)

    def clear(self) -> None:
        """Forget all blocks: what they made is gone."""
        with self._lock:
            self.path.unlink(missing_ok=True)
            self._done, self._torn = set(), False
