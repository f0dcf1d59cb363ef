"""What each statement of a file does, as a plan and lint tell it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preflight.files.effects import Lock, Reach
    from preflight.files.migrations import Migration


@dataclass(frozen=True, slots=True)
class Blocker:
    """Who is in a statement's way: a session, or (pid 0) a prepared transaction."""

    pid: int
    application: str | None = None
    user: str | None = None
    state: str | None = None
    age_s: float | None = None  # of its transaction
    kind: str | None = None  # None: a client's session
    gid: str | None = None  # of a prepared transaction
    query: str | None = None

    def data(self) -> dict[str, Any]:
        """Return what is known, as an event has it."""
        return {
            key: value for key, value in dataclasses.asdict(self).items() if value or key in KEPT
        }


KEPT = ("pid", "age_s")  # zeros that say something


@dataclass(frozen=True, slots=True)
class Planned:
    """One statement: where it stands, what it does, and what it is held up by."""

    of: Migration
    number: int
    start: int  # its offset in the file
    line: int
    column: int
    does: str
    locks: tuple[Lock, ...] = ()
    destroys: str | None = None
    external: str | None = None
    blocked_by: tuple[Blocker, ...] = ()
    reaches: tuple[Reach, ...] = ()
    below: str = ""
    alone: tuple[str, ...] = ()
    perhaps: tuple[str, ...] = ()  # of its locks: on tables that the file makes if they are absent
    unknown: bool = False  # what it destroys and locks
    measured: dict[str, object] | None = None  # on a copy

    def data(self) -> dict[str, Any]:
        """Return it as an event and a document have it."""
        return {
            **self.of.named,
            "statement": self.number,
            "line": self.line,
            "column": self.column,
            "does": self.does,
            "locks": [{"table": lock.table, "mode": lock.mode} for lock in self.locks],
            "destroys": self.destroys,
            "external": self.external,
            "unknown": self.unknown,
            "in_transaction": self.of.up.transactional,
        }


MOST = 10_000  # statements of a file that are told, and as many that matter; it may have millions


@dataclass(frozen=True, slots=True)
class Told:
    """What the statements of a file do, and how many there are: those that matter most are told."""

    statements: list[Planned]
    count: int

    @property
    def untold(self) -> int:
        """Return how many are only counted."""
        return self.count - len(self.statements)


def each(file: Migration) -> Told:
    """Return what each statement of a file does; the parser is loaded here.

    Of very many, those that destroy, lock out others or are unknown come before the rest.
    """
    from preflight.files import effects, scan  # noqa: PLC0415 -- only a plan and lint need it

    room = {True: MOST, False: MOST}
    found: list[Planned] = []
    number = 0
    new: set[str] = set()  # nobody waits for a table that this file makes
    perhaps: set[str] = set()  # made if it is not there, which only a server knows
    starts = (statement.start for statement in file.up.statements())
    places = scan.places(file.up.text, starts)
    for number, statement in enumerate(file.up.statements(), 1):
        effect = effects.of(statement.text(file.up.text))
        line, column = next(places)
        if effect.creates:
            (perhaps if effect.if_absent else new).add(effect.creates)
        matters = effects.matters(effect)
        room[matters] -= 1
        if room[matters] < 0:
            continue
        locks = tuple(lock for lock in effect.locks if lock.table not in new)
        found.append(
            Planned(
                file,
                number,
                statement.start,
                line,
                column,
                effect.does,
                locks,
                effect.destroys,
                effect.external,
                reaches=effect.reaches,
                below=effect.below,
                alone=effect.alone,
                perhaps=tuple(lock.table for lock in locks if lock.table in perhaps),
                unknown=effect.unknown,
            )
        )
    return Told(found, number)
