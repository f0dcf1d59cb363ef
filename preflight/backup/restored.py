"""What a restored database must hold, and how it is known again."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg

from preflight.backup import belongings, snapshots
from preflight.base import console, quoting
from preflight.base.errors import (
    TargetUnusable,
)
from preflight.server import catalog

if TYPE_CHECKING:
    from pathlib import Path

    from preflight.backup.belongings import Belongings
    from preflight.backup.manifests import Backup
    from preflight.backup.store import Store
    from preflight.server.sessions import Session
MARK = "pg-preflight restore: "
UNFINISHED = f"{MARK}unfinished"
NAME_BYTES = 63
NO_RIGHT = "42501"


# what deparsing an expression depends on
_ONE_WAY = """
SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres'; SET TimeZone = 'UTC';
SET extra_float_digits = 1; SET bytea_output = 'hex'; SET lc_monetary = 'C'
"""
SAID = re.compile(
    re.escape(MARK) + r"(?P<name>.+?)(?: \((?P<xid>\d+) (?P<objects>[0-9a-f]+)"
    r"(?: (?P<own>[0-9a-f]+)(?: (?P<left_out>[0-9a-f]+))?)?\))?"
)


@dataclass(frozen=True, slots=True)
class Asked:
    """Which backup is asked for, into which database, and what is to happen to the live one."""

    backup: str
    into: str | None = None
    swap: bool = False
    end_sessions: bool = False
    again: bool = False
    without: frozenset[str] = frozenset()
    skip: Sequence[str] = ()
    no_owner: bool = False
    identity_file: Path | None = None


_PART = r'("(?:[^"]|"")*"|[^."]*)'
_TABLE = re.compile(rf"{_PART}\.{_PART}")  # as a manifest has it: quoted for a dot or a quote alone


def _bare(part: str) -> str:
    return part[1:-1].replace('""', '"') if part.startswith('"') else part


@dataclass(frozen=True, slots=True)
class Place:
    """Which backup goes where, and what is to belong to it (None: nobody knows)."""

    store: Store
    source: Backup
    live: str
    into: str
    own: Belongings | None = None
    without: frozenset[str] = frozenset()
    skip: tuple[str, ...] = ()  # entries of the archive that are left out
    no_owner: bool = False  # owners and rights are
    identity_file: Path | None = None  # which opens it, if it is sealed

    @property
    def at(self) -> str:
        """How people call where the backup is."""
        return f"{self.store.place}/{self.source.name}"

    @property
    def rows(self) -> dict[str, int]:
        """What each table has to hold: none of those that are left out."""
        said = self.source.manifest.rows or {}
        entries = {" ".join(entry.split()) for entry in self.skip}
        tables = {
            entry.removeprefix(kind)
            for kind in ("TABLE ", "TABLE DATA ")
            for entry in entries
            if entry.startswith(kind)
        }
        return {
            name: count
            for name, count in said.items()
            if not (tables and self._skipped(name, tables))
        }

    def _skipped(self, name: str, tables: Collection[str]) -> bool:
        """Tell whether one of the tables that are left out, or their rows, is this one.

        What is said of them is no more than words: `my table` is `my table`, or `my` of the role
        `table`, where there is no such table.
        """
        found = _TABLE.fullmatch(name)
        if found is None:
            return False
        schema, own = (_bare(part) for part in found.groups())
        return any(
            said in {own, f"{schema} {own}"}
            or any(
                said.startswith(f"{names} ") and self._is_owner(said.removeprefix(f"{names} "), own)
                for names in (own, f"{schema} {own}")
            )
            for said in tables
        )

    def _is_owner(self, said: str, table: str) -> bool:
        if said in self.source.manifest.roles:
            return True
        tables = map(_TABLE.fullmatch, self.source.manifest.rows or ())
        longer = any(found and _bare(found[2]) == f"{table} {said}" for found in tables)
        return " " not in said and not longer

    @property
    def left_out(self) -> str:
        """A hash of what it is to be without, as this call asks for it."""
        said = (sorted(self.without), sorted(self.skip), self.no_owner)
        return hashlib.sha256(repr(said).encode()).hexdigest()[:16]

    @property
    def commands(self) -> list[belongings.Command]:
        """What gives the new database what belongs to it."""
        return self.own.commands(self.into, self.without) if self.own else []


@dataclass(frozen=True, slots=True)
class State:
    """What a database held when it was complete: the last transaction, and hashes of the rest.

    Of its objects, and of what belongs to it. Its comment says so, until it is swapped in.
    """

    xid: int
    objects: str
    own: str = ""

    def mark(self, place: Place) -> str:
        """Return the comment that says which backup a database holds, completely."""
        held = f"{self.xid} {self.objects} {self.own} {place.left_out}"
        return f"{MARK}{place.source.name} ({held})"


def suffixed(name: str, suffix: str) -> str:
    """Return a database's name with a suffix, as long as the server lets it be."""
    return name.encode()[: NAME_BYTES - len(suffix)].decode("utf-8", "ignore") + suffix


def put_aside(name: str, lives: Iterable[str]) -> str | None:
    """Return for which of the live ones a swap has put this database aside, if its name says so."""
    found = _PUT_ASIDE.search(name)
    return next((each for each in lives if found and suffixed(each, found[0]) == name), None)


_PUT_ASIDE = re.compile(r"_before_[0-9]{8}T[0-9]{6}Z(?:_[0-9]+)?\Z")  # as swap.unused makes it


TEXT_RULES = (
    psycopg.errors.WrongObjectType,
    psycopg.errors.InvalidParameterValue,
    psycopg.errors.FeatureNotSupported,
    psycopg.errors.UndefinedObject,
    psycopg.errors.InvalidObjectDefinition,
    psycopg.errors.SyntaxError,
)


def objects_of(other: Session) -> str:
    """Return a hash of what a database is made of but rows: definitions, rights, sequences."""
    other.execute(_ONE_WAY)
    found = hashlib.sha256()
    for row in itertools.chain(
        catalog.definitions(other),
        sorted(catalog.sequences(other).items()),
        sorted(catalog.counts(other).items()),
    ):
        found.update(repr(row).encode())
    return found.hexdigest()[:32]


def own_of(session: Session, place: Place) -> str:
    """Return a hash of what belongs to the new database, without the comment."""
    found = belongings.read(session, place.into)
    told = dataclasses.replace(found, comment=None) if found else None
    return hashlib.sha256(repr(told).encode()).hexdigest()[:32]


def dropping(place: Place) -> str:
    """Return what drops the new database: no template can be dropped."""
    name = quoting.name(place.into)
    template = place.own is not None and place.own.is_template
    return f"ALTER DATABASE {name} IS_TEMPLATE false; " * template + f"DROP DATABASE {name}"


def require_same(other: Session, place: Place, state: State) -> None:
    """Compare with what was restored there earlier; raises TargetUnusable that names tables."""
    try:
        different = snapshots.differing(other, place.rows)
        different += snapshots.written_since(other, state.xid)
        if not different and objects_of(other) != state.objects:
            different = ["its objects, rights or sequences were changed"]
        if not different and (touched := catalog.written_since(other, state.xid)):
            different = [f"its objects or rights were changed ({', '.join(touched)})"]
        if own_of(other, place) != state.own:
            different.append("the owner, settings or rights of the database were changed")
    except psycopg.errors.InsufficientPrivilege as error:
        raise TargetUnusable(
            "restore.no_right",
            f"{place.into!r} cannot be compared: {error.diag.message_primary}",
            "Run as its owner, or choose another name with --into.",
            sqlstate=error.sqlstate,
        ) from error
    if different:
        raise TargetUnusable(
            "restore.changed",
            f"the database {place.into!r} is no longer what was restored there: "
            f"{console.some(different)}",
            f"Drop it ({dropping(place)}) and restore again, or choose "
            "another name with --into. The live database was not touched.",
        )
