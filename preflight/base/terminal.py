"""What is on the terminal just now: whether the log is for people, and a progress bar."""

from __future__ import annotations

from collections.abc import Callable

bars: list[Callable[[], None]] = []  # what takes a bar away, while one is drawn
_for_people: list[bool] = []


def log_for_people(*, yes: bool) -> None:
    """Say for whom the log is."""
    _for_people[:] = [True] if yes else []


def for_people() -> bool:
    """Tell whether the log is for people: beside a bar they need no progress events."""
    return bool(_for_people)


def clear() -> None:
    """Take the bar away: a line of the log has a line of its own."""
    if bars:
        bars[-1]()
