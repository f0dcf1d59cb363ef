"""A migration and its scripts, as frozen values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from preflight.base.errors import Problem
from preflight.files import scan

OUTSIDE = "Put `-- preflight: no-transaction` at the top of the file."

DURATION = "Write 500ms, 5s, 2min or 1h."  # what it says of one without a unit, or none


@dataclass(frozen=True, slots=True)
class Script:
    """One file: the bytes that were hashed are the bytes that run (BOM removed, CRLF as LF).

    Timeouts are milliseconds, 0 for none, None where the file does not say.
    """

    file: str
    text: bytes
    checksum: str
    transactional: bool = True
    breaking: bool = False
    lock_timeout_ms: int | None = None
    statement_timeout_ms: int | None = None
    max_lock_ms: int | None = None
    wrapped: bool = False
    migration: str = ""  # whose it is
    version: int = 0
    elsewhere: bool = False  # what it says of its transaction stands outside its text
    outside: str = field(default=OUTSIDE, compare=False)  # how it would say that it needs none
    # its statements in which semicolons stand: several, if they were cut wrongly
    semicolons: tuple[scan.Statement, ...] = field(default=(), compare=False)
    # what its directives can hardly mean, though they are read, with a hint, line and column
    doubtful: tuple[tuple[str, str, int, int], ...] = ()
    isolation: str = ""  # of its transaction, where that is not READ COMMITTED
    opening: tuple[scan.Statement, ...] = ()  # its SET TRANSACTION before anything else

    @property
    def named(self) -> dict[str, Any]:
        """Its migration, as an event and an error name it."""
        return {"migration": self.migration, "version": self.version}

    def problem(self, place: scan.Statement | tuple[int, int], message: str, hint: str) -> Problem:
        """Return what is wrong at a statement, or at a line and a column."""
        at = scan.position(self.text, place.start) if isinstance(place, scan.Statement) else place
        line, column = at
        return Problem(
            f"{self.file}:{line}:{column}: {message}",
            hint,
            **self.named,
            file=self.file,
            line=line,
            column=column,
        )

    @property
    def kept(self) -> bytes:
        """The text as the history keeps it: with all that it takes to run it without the file."""
        return b"-- preflight: no-transaction\n" + self.text if self.elsewhere else self.text

    def said(self) -> list[bytes]:
        """Return the statements to run, each with its inline data."""
        return [
            self.text[each.start : each.data[1] if each.data else each.end]
            for each in self.statements()
        ]

    @property
    def empty(self) -> bool:
        """Tell whether there is no statement to run, as in a file of comments."""
        return next(self.statements(), None) is None

    def statements(self) -> Iterator[scan.Statement]:
        """Yield the statements to run.

        All but a BEGIN and COMMIT around the whole file and what says its transaction's level,
        which is the runner's.
        """
        found = scan.statements(self.text, unbound=self.elsewhere)
        if self.opening:
            starts = {each.start for each in self.opening}
            found = (each for each in found if each.start not in starts)
        if not self.wrapped:
            yield from found
            return
        next(found)
        held = next(found)
        for statement in found:
            yield held
            held = statement


@dataclass(frozen=True, slots=True)
class Migration:
    """A version, and what its files say."""

    version: int
    name: str
    up: Script
    rollback: Script | None = None
    verify: Script | None = None
    export: Script | None = None
    label: str = ""  # its version as text, where the folder's layout has no numbers
    repeat: bool = False  # it has no version, and runs again when its text changes
    # it runs again although it is recorded, and as it is
    recorded: bool = field(default=False, compare=False)

    @property
    def way_back(self) -> Script | None:
        """The rollback file, where it says how: without a statement it takes back what is none."""
        empty = self.rollback is None or (self.rollback.empty and not self.up.empty)
        return None if empty else self.rollback

    @property
    def named(self) -> dict[str, Any]:
        """It, as an event and an error name it."""
        if self.repeat:
            return {"migration": self.name}
        return {"migration": self.name, "version": self.version}

    @property
    def written(self) -> str:
        """Its version as people write it."""
        return self.label or str(self.version)

    @property
    def padded(self) -> str:
        """Its version as a table shows it; what has none is called by its name."""
        if self.repeat:
            return self.name
        return self.label or f"{self.version:03d}"

    @property
    def checksum(self) -> str:
        """The SHA-256 of the forward file."""
        return self.up.checksum
