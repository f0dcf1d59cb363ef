"""The error codes that the tests have met: those a run has ended with, and those only raised.

A run ends with what its `run.finished` says, or `target.finished` of one of many; what is only
raised was made by a function that a test called itself. Every process of pytest writes down what it
meets, and the last one compares.
"""

import functools
import json
import os
import re
import sys
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from preflight.base import errors
from tests import servers, tools

ENDED, RAISED = "ended", "raised"
LAST = ("run.finished", "target.finished")
_TABLE = re.compile(r"^\| error code \|.*\n\|[-|]+\n((?:\|.*\n)+)", re.MULTILINE)
_CODE = re.compile(r"^\| `([^`]+)` \|", re.MULTILINE)
_PROGRAM = str(servers.REPOSITORY / "preflight")

# What no run ends with in `make test`, and why: a test calls the function that raises it.
RAISED_ONLY = {
    "files.converted": "a bug of `convert`: no folder is known that gets there",
    "wrap.no_wall": "a kernel that has the wall and refuses it cannot be had",
}
# What is no part of `make test`. No code needs another tool that may be lacking.
WITH_DOCKER = {"backup.not_mounted": "needs the layer of a container: tests/image/test_running.py"}


class Notes:
    """What this process has met, kept in a file of its own below a directory of all."""

    def __init__(self) -> None:
        """Keep nothing until there is a directory."""
        self.directory: Path | None = None
        self._known: set[tuple[str, str]] = set()

    def add(self, kind: str, code: str) -> None:
        """Write a code down, once."""
        if self.directory is None or (kind, code) in self._known:
            return
        with suppress(OSError):  # a test may have forked, and be somebody else there
            with (self.directory / str(os.getpid())).open("a", encoding="utf-8") as file:
                file.write(f"{kind} {code}\n")
            self._known.add((kind, code))

    def met(self) -> set[tuple[str, str]]:
        """Return what all processes have met."""
        files = self.directory.iterdir() if self.directory else []
        lines = [line for file in files for line in file.read_text("utf-8").splitlines()]
        return {(kind, code) for kind, _, code in (line.partition(" ") for line in lines)}


NOTES = Notes()


def ended(events: Iterable[dict[str, object]]) -> None:
    """Note what runs have ended with, as their events say."""
    for event in events:
        error = event.get("error")
        if event.get("event") in LAST and isinstance(error, dict):
            NOTES.add(ENDED, str(error.get("code")))


def told(*outputs: str) -> None:
    """Note what runs have ended with whose output this is, a line of it or all."""
    for output in outputs:
        if '.finished"' in output:
            ended(each for line in output.splitlines() for each in _finished(line))


def _finished(line: str) -> list[dict[str, object]]:
    try:
        found = json.loads(line) if '.finished"' in line else None
    except ValueError:
        return []
    return [found] if isinstance(found, dict) else []


def watch() -> None:
    """Note from now on each failure that the program makes in this process."""
    plain = errors.Failure.__init__

    @functools.wraps(plain)
    def noted(self: errors.Failure, code: str, *given: str, **where: object) -> None:
        if _of_program(sys._getframe(1)):  # noqa: SLF001 -- who makes it, not what it says
            NOTES.add(RAISED, code)
        plain(self, code, *given, **where)  # type: ignore[arg-type]

    errors.Failure.__init__ = noted  # type: ignore[assignment, method-assign]


def _of_program(frame: FrameType | None) -> bool:
    """Tell whether it is the program that makes a failure, and not a test that needs one."""
    while frame is not None and frame.f_code.co_filename == errors.__file__:
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename.startswith(_PROGRAM)


def documented() -> list[str]:
    """Return the codes of docs/exit-codes.md."""
    text = (servers.REPOSITORY / "docs/exit-codes.md").read_text("utf-8")
    (table,) = _TABLE.findall(text)
    return _CODE.findall(table)


@dataclass(frozen=True)
class Unmet:
    """The codes that a run was to meet and did not, and those for which it is no failure."""

    failing: tuple[str, ...] = ()
    excused: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Say it to who reads the end of a run."""
        wrong = [f"FAILED no test has met the error code {each}" for each in self.failing]
        said = [
            f"no test has met the error code {each}: tests were skipped" for each in self.excused
        ]
        return [*said, *wrong]


def unmet(
    wanted: Collection[str], seen: Collection[tuple[str, str]], skipped: Collection[str]
) -> Unmet:
    """Compare; `seen` are codes with how they were met, `skipped` the reasons of skipped tests.

    Where more was skipped than tests of others' tools, which no code needs, any code may be missing
    for that.
    """
    met = {code for kind, code in seen if kind == ENDED or code in RAISED_ONLY}
    gone = sorted({*wanted} - met - WITH_DOCKER.keys())
    partly = any(not reason.startswith(tools.LACKING) for reason in skipped)
    return Unmet((), tuple(gone)) if partly else Unmet(tuple(gone), ())
