"""What the process may take of memory, what is left of it, and what it takes itself."""

import ctypes
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

M_ARENA_MAX = -8  # glibc's malloc.h
CGROUP, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")
MEMORY = "memory"  # the controller, and what its files' names begin with
_ONE, _TWO = ("limit_in_bytes", "usage_in_bytes"), ("max", "current")  # cgroup versions


def one_heap() -> None:
    """Have all threads allocate from one heap; a libc that knows no other way is left alone.

    glibc gives each thread one of its own, which keeps what it had at most: some megabytes for the
    few threads that watch, read back and wait. Python runs one of them at a time anyway. Call
    before the first thread. mallopt(3).
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def limit(cgroup: Path = CGROUP, mounted: Path = CGROUPS, meminfo: Path = MEMINFO) -> int | None:
    """Return the bytes beyond which the kernel ends the process; None without a limit.

    It is the least of what our cgroups (v1, v2) may have, with what they may swap. RLIMIT_AS is
    none: there a copy that could not be made is done without, or told as an error.
    """
    found = []
    swap = 1024 * (_told(meminfo, "SwapTotal") or 0)
    for group, (most, _used) in _groups(cgroup, mounted):
        if (number := _number(group / f"{MEMORY}.{most}")) is not None:
            beside = _number(group / f"{MEMORY}.swap.max")
            found.append(number + (swap if beside is None else min(beside, swap)))
    return min(found, default=None)


def left(
    cgroup: Path = CGROUP, mounted: Path = CGROUPS, meminfo: Path = MEMINFO
) -> list[tuple[int, str]]:
    """Return the bytes of memory that the machine and each of our cgroups (v1, v2) leave."""
    found = []
    if (free := _told(meminfo, "MemAvailable")) is not None:
        found.append((free * 1024, "the machine's"))
    for group, (most, used) in _groups(cgroup, mounted):
        free, now = _number(group / f"{MEMORY}.{most}"), _number(group / f"{MEMORY}.{used}")
        if free is not None and now is not None:
            # cached pages of files give way, so they count as free
            cached = _told(group / f"{MEMORY}.stat", "(?:total_)?inactive_file") or 0
            found.append((free - now + cached, "the cgroup's"))
    return found


def _groups(cgroup: Path, mounted: Path) -> Iterator[tuple[Path, tuple[str, str]]]:
    """Yield our cgroups that may have a limit, from the inside out, with the names of its files."""
    try:
        lines = cgroup.read_text().splitlines()
    except OSError:
        return  # not Linux
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and MEMORY not in controllers.split(","):
            continue
        root, names = (mounted / MEMORY, _ONE) if controllers else (mounted, _TWO)
        inside = root / path.lstrip("/")
        for group in (inside, *inside.parents):  # a container's own may be mounted at the root
            if group.is_relative_to(root):
                yield group, names


def _number(path: Path) -> int | None:
    with suppress(OSError, ValueError):  # `max` is no number: no limit
        return int(path.read_text())
    return None


def _told(path: Path, name: str) -> int | None:
    """Return the number behind a name at the beginning of a line; None where there is none."""
    with suppress(OSError):
        if found := re.search(rf"^{name}:?\s+(\d+)", path.read_text(), re.MULTILINE):
            return int(found[1])
    return None
