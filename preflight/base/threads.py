"""Threads, which a job cannot start where its processes are limited: others may end, so run again.

Who only watches is gone without; whoever needs one ends the run, before anything of it is begun.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from preflight.base import stop
from preflight.base.errors import BackupInterrupted, Failure, NotReady

if TYPE_CHECKING:
    import threading
    from concurrent.futures import ThreadPoolExecutor

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
        left = f"; {found}" if (found := stop.left()) else ""
        message = f"no other thread can be started: {error}"
        raise outcome(message, f"{LIMITED}{left}.") from error


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
