"""What is on the one terminal just now: whether a run's log is for people, and a progress bar.

Each run says anew for whom its log is; a bar takes itself away.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

bars: list[Callable[[], None]] = []  # what takes a bar away, while one is drawn
_for_people = threading.Event()


def log_for_people(*, yes: bool) -> None:
    """Say for whom this run's log is."""
    (_for_people.set if yes else _for_people.clear)()


def for_people() -> bool:
    """Tell whether the log is for people: beside a bar they need no progress events."""
    return _for_people.is_set()


def clear() -> None:
    """Take the bar away: a line of the log has a line of its own."""
    if bars:
        bars[-1]()
