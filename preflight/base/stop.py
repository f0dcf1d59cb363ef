"""A stop request: remembered at once, acted on only where waiting is allowed to end.

A signal handler that raises anywhere would tear clean-up apart, and one that raises an ordinary
exception leaves the server's statement running. So the handler only remembers; code that waits
says `with stop.allowed():`, and only there the request is raised, as a KeyboardInterrupt, on which
psycopg cancels the statement. COMMIT and the backup's rename stand outside.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType


class Stopped(KeyboardInterrupt):
    """The run was asked to stop; `signum` is the signal's number."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


_requested: int | None = None
_raised = False
_depth = 0
_left: dict[int, str] = {}  # by the session at work: what a stop would leave of its file
busy = threading.Event()
AGAIN_S = 0.01
PIECE_S = 0.5
_asking: threading.Thread | None = None


def listen(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> None:
    """Have SIGTERM, SIGINT and SIGHUP handled from now on.

    SIGHUP, of a terminal that is closed, stays ignored where it is: nohup asks for that.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def code(number: int | None) -> int:
    """Return the exit code of a run that a signal has stopped."""
    return 130 if number == signal.SIGINT else 143


def remember(signum: int, _frame: FrameType | None) -> None:
    """Remember a stop request: the handler until more is loaded.

    As process 1 of a container a signal that nobody handles is lost.
    """
    request(signum)


def request(signum: int) -> None:
    """Ask the run to stop; called by the signal handler, in the main thread."""
    global _requested  # noqa: PLW0603 -- one process, one stop request
    if _requested is None:
        _requested = signum
    if _depth:
        _raise()


def _raise() -> None:
    global _raised  # noqa: PLW0603 -- see request
    if _requested is not None and not _raised:
        _raised = True
        raise Stopped(_requested)


def check() -> None:
    """Raise Stopped if a stop was asked for and nobody was told yet."""
    _raise()


def requested() -> int | None:
    """Return the number of the signal that asked us to stop, if one did."""
    return _requested


def leaves(session: object, what: str | None) -> None:
    """Say what a stop would leave of the file that a session runs; None: it is rolled back."""
    if what is None:
        _left.pop(id(session), None)
    else:
        _left[id(session)] = what


def left(session: object = None) -> str | None:
    """Return what a stop would leave of the file that a session runs, or any, if anything."""
    if session is not None:
        return _left.get(id(session))
    return "; ".join(_left.values()) or None


@contextmanager
def allowed() -> Iterator[None]:
    """Let a stop request end the waiting inside; raises Stopped, once a run."""
    global _depth  # noqa: PLW0603 -- see request
    before = _depth
    try:
        _depth = before + 1
        check()
        yield
    finally:
        _depth = before


@contextmanager
def held() -> Iterator[None]:
    """Keep a stop request back where nothing can be raised: in what a library in C calls."""
    global _depth  # noqa: PLW0603 -- see request
    before, _depth = _depth, 0
    try:
        yield
    finally:
        _depth = before
        if _requested is not None and not _raised:
            again()


def again() -> None:
    """Make the request once more, until it is heard: where it was raised nobody could hear it."""
    global _raised, _asking  # noqa: PLW0603 -- see request
    _raised = False
    if _asking is None or not _asking.is_alive():
        _asking = threading.Thread(target=_ask_again, daemon=True)
        with suppress(RuntimeError):  # no thread can be started: the hard end comes
            _asking.start()


def _ask_again() -> None:
    while not _raised and _requested is not None:
        time.sleep(AGAIN_S)
        signal.pthread_kill(threading.main_thread().ident or 0, _requested)


@contextmanager
def deferred() -> Iterator[None]:
    """Mark what must come to its end even when the time to stop runs out: COMMIT, rename."""
    busy.set()
    try:
        yield
    finally:
        busy.clear()


def until(done: Callable[[float], object]) -> None:
    """Wait until `done(seconds)`, which waits so long at most, returns something true.

    In pieces: a signal that comes just before a thread sleeps, or to another thread, wakes nobody.
    """
    with allowed():
        while not done(PIECE_S):
            pass


def looks(least: float, most: float) -> Iterator[float]:
    """Yield 0 at once, and after each pause of `least` to `most` seconds how many have passed.

    The one way to wait for what nobody tells us of: who waits looks, and leaves when it has seen
    enough or has waited for too long. A stop request ends a pause; raises Stopped.
    """
    began, passed = time.monotonic(), 0.0
    while True:
        yield passed
        pause(least, most)
        passed = time.monotonic() - began


def pause(least: float, most: float) -> None:
    """Wait for a time between the two, so that who began together does not look together."""
    sleep(random.uniform(least, most))  # noqa: S311 -- jitter, not a secret


def sleep(seconds: float) -> None:
    """Wait, unless asked to stop."""
    with allowed():
        time.sleep(max(0.0, seconds))
