"""What a process has needed."""

from __future__ import annotations

from pathlib import Path


def peak_gib() -> float:
    """The most memory that this process has held so far.

    Not getrusage's peak: that remembers the process that started this one.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**20  # KiB
