"""Files that are moved by several threads at once: a few of the large ones, many of the little.

A large one costs memory, a little one the time of its request. A stop request ends the waiting in
the main thread, which alone hears of it; the threads end by themselves, or with the process.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from preflight.base import stop, threads

if TYPE_CHECKING:
    from preflight.backup.progress import Moving

T = TypeVar("T")
LITTLE = 1 << 20  # bytes at most
ASKED = 1 << 20  # bytes that are asked of a store at a time: each lane holds as many, twice
LARGE_AT_ONCE, LITTLE_AT_ONCE = 2, 4
LOOK_S = 0.5
ENDED_S, STOPPED_S = 300.0, 3.0


class GivenUp(Exception):
    """What is under way is not wanted any more."""


class Lanes(Generic[T]):
    """Does the same with each file that is added; `found` has what came of it."""

    def __init__(
        self, work: Callable[[Lanes[T], str], T], large_at_once: int = LARGE_AT_ONCE
    ) -> None:
        self.found: dict[str, T] = {}
        self._work = work
        self._most = {False: large_at_once, True: LITTLE_AT_ONCE}
        self._queues: dict[bool, queue.SimpleQueue[str | None]] = {
            little: queue.SimpleQueue() for little in self._most
        }
        self._threads: dict[bool, list[threading.Thread]] = {little: [] for little in self._most}
        self._lock, self._news = threading.Lock(), threading.Event()
        self._added = self.moved = 0
        self._failed: BaseException | None = None
        self._ended = False

    def __enter__(self) -> Self:
        """Nothing is there to do yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """End what is under way, and wait until it has."""
        self._ended = True
        for little, lane in self._threads.items():
            for _each in lane:
                self._queues[little].put(None)
        waiting = [each for lane in self._threads.values() for each in lane]
        until = time.monotonic() + ENDED_S
        for thread in waiting:
            while thread.is_alive() and time.monotonic() < until:
                if stop.requested() is not None:
                    until = min(until, time.monotonic() + STOPPED_S)
                thread.join(LOOK_S)

    def add(self, file: str, size: int) -> None:
        """Take a file of so many bytes, as far as is known."""
        little = size <= LITTLE
        self._added += 1
        self._queues[little].put(file)
        lane = self._threads[little]
        if len(lane) < self._most[little]:
            lane.append(threading.Thread(target=self._run, args=(little,), daemon=True))
            threads.start(lane[-1])

    def _run(self, little: bool) -> None:  # noqa: FBT001 -- a thread's
        while (file := self._queues[little].get()) is not None and not self._ended:
            try:
                self.found[file] = self._work(self, file)
            except BaseException as error:  # noqa: BLE001 -- told to who waits
                self._failed = self._failed or error
                self._ended = True
            self._news.set()

    def went(self, size: int) -> None:
        """Count what was moved; raises GivenUp, in its thread, when nobody wants the rest."""
        if self._ended:
            raise GivenUp
        with self._lock:
            self.moved += size

    def check(self) -> None:
        """Raise what went wrong."""
        if self._failed is not None:
            raise self._failed

    def finish(self, told: Moving) -> dict[str, T]:
        """Wait until all is done; return what came of each. Raises what went wrong."""
        with told:
            while len(self.found) < self._added:
                self.check()
                told.tell(self.moved)
                with stop.allowed():
                    self._news.wait(LOOK_S)
                self._news.clear()
        return self.found
