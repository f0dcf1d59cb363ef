"""Threads and processes, which a job cannot start where they are limited: others may end.

Who only watches is gone without; whoever needs one ends the run, before anything of it is begun.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from preflight.base import stop
from preflight.base.errors import BackupInterrupted, Failure, NotReady

if TYPE_CHECKING:
    import threading
    from concurrent.futures import ThreadPoolExecutor

T = TypeVar("T")
SHORT = frozenset({errno.EAGAIN, errno.ENOMEM})  # what fork() says at a limit, execve() of memory
PATIENCE_S = 3.0  # a process of somebody else may be about to end
LIMITED = (
    "The limit on the processes of this job or of its user (pids.max, `ulimit -u`) or its memory "
    "is used up: let others end, or raise it, and run again"
)


def no_backup(message: str, hint: str) -> Failure:
    """Return the failure of a backup, a proof or a restore."""
    return BackupInterrupted("backup.interrupted", message, hint)


def no_server(message: str, hint: str) -> Failure:
    """Return the failure of a look at the server."""
    return NotReady("server.not_ready", message, hint)


@contextmanager
def needed(outcome: Callable[[str, str], Failure] = no_backup) -> Iterator[None]:
    """Say that a thread that is started here cannot be; raises the outcome."""
    try:
        yield
    except RuntimeError as error:
        if "new thread" not in str(error):
            raise
        raise outcome(f"no other thread can be started: {error}", _limited()) from error


def _limited() -> str:
    left = f"; {found}" if (found := stop.left()) else ""
    return f"{LIMITED}{left}."


def room(error: Exception) -> str:
    """Return what to do where there was no room for a process, as a hint; else nothing."""
    return _limited() if isinstance(error, OSError) and error.errno in SHORT else ""


def process(start: Callable[[], T]) -> T:
    """Return the process that `start` starts, tried for a moment more where there is no room.

    Raises what `start` raises.
    """
    for waited in stop.looks(0.05, 1.0):
        try:
            return start()
        except OSError as error:
            if error.errno not in SHORT or waited >= PATIENCE_S:
                raise
    raise AssertionError  # the looks have no end


def start(thread: threading.Thread) -> None:
    """Start one without which there is no backup, no proof and no restore; raises 14."""
    with needed():
        thread.start()


def started(thread: threading.Thread) -> bool:
    """Start one that only watches; tell whether it is there."""
    try:
        thread.start()
    except RuntimeError:
        return False
    return True


@contextmanager
def pool(width: int) -> Iterator[ThreadPoolExecutor]:
    """Yield threads that work side by side; raises 14."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 -- of buckets only

    with needed(), ThreadPoolExecutor(width) as found:
        yield found
