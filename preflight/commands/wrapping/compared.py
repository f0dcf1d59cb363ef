"""What a command made of a catalog, object by object, and whether two databases agree on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg

from preflight.base import stop
from preflight.server import catalog, packed
from preflight.server.sessions import PASSING

if TYPE_CHECKING:
    from preflight.server.sessions import Session

T = TypeVar("T")
TRIES_S = 10.0  # for as long others may be dropping what a definition is made of
_ROWS = {"large objects"}  # their number is the app's affair, as that of rows is
State = packed.Rows  # as `catalog.definitions` gives it


@dataclass(frozen=True, slots=True)
class Changes:
    """What is new, what is another, what is gone; each with what it was and what it is."""

    made: dict[str, str]
    changed: dict[str, tuple[str, str]]
    dropped: dict[str, str]

    @property
    def names(self) -> list[str]:
        """Every object that is not as it was, and how."""
        return (
            [f"{name} made" for name in self.made]
            + [f"{name} changed" for name in self.changed]
            + [f"{name} dropped" for name in self.dropped]
        )

    def data(self) -> dict[str, Any]:
        """Return them as log data."""
        found: dict[str, dict[str, Any]] = {
            "made": self.made,
            "changed": self.changed,
            "dropped": self.dropped,
        }
        return {name: list(objects) for name, objects in found.items() if objects}


def state(session: Session) -> State:
    """Return each object of a database with all that is known of it."""
    return asked(session, catalog.definitions)


def asked(session: Session, look: Callable[[Session], T]) -> T:
    """Return what a look at a catalog returns.

    In production others may be at work on it: what fails for that is asked again for a while.
    """
    for waited in stop.looks(0.1, 0.3):
        try:
            return look(session)
        except psycopg.Error as error:
            passing = error.sqlstate in PASSING or error.sqlstate in {"XX000", "42P01", "42704"}
            if session.lost or not passing or waited > TRIES_S:
                raise
    raise AssertionError  # looks() does not end


def between(before: State, after: State, schema: str = "") -> Changes:
    """Return what changed; our own tables, in `schema`, are not the command's doing."""
    ours = (f" {schema}.", f"schema {schema}")
    changes = Changes({}, {}, {})
    for name, one, other in packed.unlike(before, after):
        if (schema and (ours[0] in name or name == ours[1])) or name in _ROWS:
            continue
        if one and other:
            changes.changed[name] = one[1], other[1]
        elif one:
            changes.dropped[name] = one[1]
        elif other:
            changes.made[name] = other[1]
    return changes


def differing(rehearsed: Changes, happened: Changes, *, bare: bool = False) -> list[str]:
    """Name what was done on one side only, or came out otherwise.

    `bare`: the copy had neither owners nor rights, or others, so only what is left of an object is
    compared. What stood there before a restore is printed another way after it: of that only the
    shape counts.
    """
    found: list[str] = []
    sides = (
        ("made", rehearsed.made, happened.made),
        ("changed", rehearsed.changed, happened.changed),
        ("dropped", rehearsed.dropped, happened.dropped),
    )
    for what, copy, live in sides:
        found += [f"{name} was {what} on the copy only" for name in copy if name not in live]
        found += [
            f"{name} was {what} on the live database only" for name in live if name not in copy
        ]
    for name, made in rehearsed.made.items():
        other = happened.made.get(name, made)
        if (catalog.shape_of(made) != catalog.shape_of(other)) if bare else (made != other):
            found.append(f"{name} came out otherwise")
    for name, (_, after) in rehearsed.changed.items():
        other = happened.changed[name][1] if name in happened.changed else after
        if catalog.shape_of(after) != catalog.shape_of(other):
            found.append(f"{name} came out otherwise")
    return found
