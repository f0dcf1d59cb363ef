"""What a command says of itself and takes: each command's file has one `COMMAND`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_VERSION = re.compile(r"\w[\w!-~]{0,254}")


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
    wraps: bool = False  # takes `-- COMMAND`, another tool's
    fleet: bool = False  # takes --targets and --each-database


def many(parser: argparse.ArgumentParser) -> None:
    """Take what is said of many databases or schemas."""
    group = parser.add_argument_group("of many databases, or schemas of one")
    who = group.add_mutually_exclusive_group()
    who.add_argument(
        "--targets",
        type=Path,
        metavar="FILE",
        help="a JSON object a line: name, and any of url_file, database, schema, role, search_path",
    )
    who.add_argument(
        "--each-database", metavar="LIKE", help="every database with such a name: 'tenant_%%'"
    )
    group.add_argument(
        "--waves",
        type=_sizes,
        metavar="N,N,…",
        help="how many at a time, one wave after the other; the last to the end (default: 1,5)",
    )


def _sizes(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9][0-9]{0,2}(,[1-9][0-9]{0,2})*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not how many at a time: write 1,5,20")
    return tuple(map(int, text.split(",")))


def wrapped(parser: argparse.ArgumentParser) -> None:
    """Take what is said of another tool's command."""
    group = parser.add_argument_group("of a wrapped command, which stands behind `--`")
    several: tuple[tuple[str, str, Callable[[str], object], str], ...] = (
        ("--watch", "PATH", _path, "what it depends on: files and directories"),
        ("--url-variable", "NAME", str, "a variable that names the live database in its own way"),
        ("--verify", "FILE", _path, "a verify file to ask afterwards"),
    )
    for name, metavar, kind, words in several:
        group.add_argument(
            name, action="append", type=kind, metavar=metavar, help=f"{words} (several times)"
        )
    once: tuple[tuple[str, str, type, str], ...] = (
        ("--history", "TABLE", str, "its own history table, if that is not a known one"),
        ("--timeout", "S", float, "end it after so many seconds"),
        ("--lock-timeout", "DURATION", str, "give it a lock_timeout, by PGOPTIONS and URLs: 2s"),
    )
    for name, metavar, kind, words in once:
        group.add_argument(name, type=kind, metavar=metavar, help=words)
    for name, words in (
        ("--always", "run it each time, whatever has changed"),
        ("--trust-environment", "rehearse though nothing keeps it off the live database"),
        ("--strict", "exit 33 when what happened is not what was rehearsed"),
    ):
        group.add_argument(name, action="store_true", default=None, help=words)


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("an empty path: is the variable in it set?")
    return Path(text)


class Version(int):
    """A version that was written as a number, and how it was written."""

    said: str


def version(text: str) -> int | str:
    """Return a version as it stands in a file's name; raises ArgumentTypeError.

    What is no number is the text version of another tool's folder: with sqitch any name. So are
    more digits than a number has here.
    """
    if not _VERSION.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a version: write its number, 2 or 002")
    if not (text.isascii() and text.isdecimal()) or len(text) > 18:  # noqa: PLR2004 -- the digits of a file name
        return text
    found = Version(text)
    found.said = text
    return found
