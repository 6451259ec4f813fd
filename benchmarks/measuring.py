"""Running a command for its time and memory."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil


@dataclass(frozen=True)
class Usage:
    """What a process took: its children's CPU time counts, and the largest of them for memory."""

    code: int
    seconds: float
    cpu_seconds: float
    peak_bytes: float


def run_measured(command: list[str], output: IO[str]) -> Usage:
    """Run a command to its end; what it prints goes to ``output``.

    The system's own figure of memory for a process that ended begins with what its parent held when it was started, and
    that is the benchmark. So the process and its children are asked while they run.
    """
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    peak, ended = 0.0, 0
    while not ended:
        peak = max(peak, _peak_bytes(process.pid))
        time.sleep(0.02)
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Usage(process.returncode, time.perf_counter() - start, usage.ru_utime + usage.ru_stime, peak)


def _peak_bytes(pid: int) -> float:
    """Return the peak so far of the largest of a process and its children: the kernel's own on Linux."""
    peaks = [0.0]
    try:
        parent = psutil.Process(pid)
        for one in (parent, *parent.children(recursive=True)):
            status = Path(f"/proc/{one.pid}/status")
            if status.exists():
                lines = status.read_text().splitlines()
                peaks += [1024 * float(line.split()[1]) for line in lines if line.startswith("VmHWM")]
            else:
                peaks.append(float(one.memory_info().rss))
    except (psutil.NoSuchProcess, OSError):
        pass  # one of them has just ended; its peak was seen a moment ago
    return max(peaks)
