"""The processes below a process, as Linux tells them; elsewhere nobody knows any."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")


def below(pid: int) -> list[int]:
    """Return the processes that a process started, and theirs, the nearest first."""
    children: dict[int, list[int]] = {}
    for path in PROC.glob("[0-9]*/stat"):
        with suppress(OSError):
            # its name may hold anything: what follows it begins behind the last bracket
            state, parent = path.read_bytes().rpartition(b")")[2].split()[:2]
            if state != b"Z":
                children.setdefault(int(parent), []).append(int(path.parent.name))
    found = [pid]
    for each in found:
        found += children.get(each, ())
    return found[1:]
