"""What to do after an end whose outcome nobody knows: run again, or what its command says instead.

Most commands do nothing a second time. One that would do more says so once it knows what it does.
"""

from __future__ import annotations

ADVICE = "Run again: what was recorded decides what is left to do."
_instead: list[str] = []


def instead(advice: str | None) -> None:
    """Give another advice from now on; None: the usual one."""
    _instead[:] = [advice] if advice else []


def advice() -> str:
    """Return the next step after the connection was lost."""
    return _instead[0] if _instead else ADVICE
