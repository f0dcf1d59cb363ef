"""What a command says of itself and takes: each command's file has one `COMMAND`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass


def _nothing(_parser: argparse.ArgumentParser) -> None:
    """Take no options."""


@dataclass(frozen=True, slots=True)
class Command:
    """What the help says of a command, where it stands in the list, and what runs it.

    `run` gets the configuration and, by name, what its options say; without one it is `up`, the
    story of entrypoint.py.
    """

    place: int
    does: str
    example: str
    run: Callable[..., None] | None = None
    options: Callable[[argparse.ArgumentParser], None] = _nothing
    version: str | None = None  # what the optional VERSION means
    result: bool = False  # --table and --json


def version(text: str) -> int:
    """Return a version as it stands in a file's name; raises ArgumentTypeError."""
    if not text.isdecimal() or len(text) > 18:  # noqa: PLR2004 -- the digits of a file name
        raise argparse.ArgumentTypeError(f"{text!r} is not a version: write its number, 2 or 002")
    return int(text)
