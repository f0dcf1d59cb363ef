"""What is done in a thread of its own, so that a stop request ends the waiting and not the work.

Python handles a signal where it waits itself, and not inside a library that waits for a server.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from preflight.base import stop, threads

T = TypeVar("T")


def asked(work: Callable[[], T]) -> Future[T]:
    """Begin; nobody has to wait for its end."""
    future: Future[T] = Future()

    def done() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 -- told to who waits
            future.set_exception(error)

    threads.start(threading.Thread(target=done, daemon=True))
    return future


def answer(future: Future[T]) -> T:
    """Wait for its end; raises what it raised, or Stopped."""
    stop.until(lambda seconds: wait([future], seconds).done)
    return future.result()


def waited(work: Callable[[], T]) -> T:
    """Do it beside the main thread, which hears of signals; others may wait in it."""
    if threading.current_thread() is not threading.main_thread():
        return work()
    return asked(work).result()
