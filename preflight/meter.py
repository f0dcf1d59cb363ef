"""What the statements of a rehearsal cost: how long, which lock on which table, what they rewrite.

The session's own look at `pg_locks` right after a statement, inside its transaction; of statements
outside any, whose locks are gone by then, the documented lock is told.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import pq

from preflight import explain, sql, statements

if TYPE_CHECKING:
    from preflight.migrations import Migration, Script
    from preflight.server import Session

SHORT_S = 0.1  # a change of rows that takes less is not looked at: its lock is in nobody's way
MOST = 50  # statements in one event
KEPT = 10_000  # short changes of rows that are remembered; a file may have a million
ROWS = {"INSERT", "UPDATE", "DELETE", "MERGE", "COPY", *sql.READING, "SET", "RESET", "COMMENT"}

_TABLES = """
SELECT c.oid::int8, coalesce(pg_catalog.pg_relation_filenode(c.oid), 0::oid)::int8,
 CASE WHEN c.relkind IN ('r', 'm') THEN pg_catalog.pg_total_relation_size(c.oid) ELSE 0 END,
 CASE WHEN n.nspname <> 'public' THEN pg_catalog.quote_ident(n.nspname::text) || '.' ELSE '' END
  || pg_catalog.quote_ident(c.relname::text)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'm', 'f', 'v') AND n.nspname::text NOT LIKE 'pg\\_%'
 AND n.nspname NOT IN ('information_schema', '{schema}')
"""
_LOCKED = """
SAVEPOINT preflight_meter;
SELECT l.relation::int8, l.mode,
 coalesce(pg_catalog.pg_relation_filenode(c.oid), 0::oid)::int8,
 CASE WHEN l.mode = 'AccessExclusiveLock' AND c.relkind IN ('r', 'm')
  THEN pg_catalog.pg_total_relation_size(c.oid) ELSE 0 END
FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_class c ON c.oid = l.relation
WHERE l.pid = pg_catalog.pg_backend_pid() AND l.locktype = 'relation' AND l.granted
 AND l.relation >= 16384::oid;
RELEASE SAVEPOINT preflight_meter
"""


@dataclass(slots=True)
class Taken:
    """A lock on a table that was there before the file; held until the transaction ended."""

    table: str
    mode: str
    held_s: float = 0.0
    documented: bool = False  # not seen, but what the manual says

    def data(self) -> dict[str, Any]:
        """Return it as log data."""
        found = {"table": self.table, "mode": self.mode, "held_s": round(self.held_s, 3)}
        return found | ({"documented": True} if self.documented else {})


@dataclass(slots=True)
class Measured:
    """One statement of a file; sizes are of the table with its indexes, in bytes."""

    migration: Migration
    script: Script
    start: int  # the statement's first byte
    began: float
    duration_s: float = 0.0
    locks: list[Taken] = field(default_factory=list)
    rewrites: list[dict[str, Any]] = field(default_factory=list)

    def place(self) -> tuple[int, int]:
        """Return the line and the column of its first token."""
        return sql.position(self.script.text, self.start)

    def data(self) -> dict[str, Any]:
        """Return what it cost, as log data."""
        found: dict[str, Any] = {"duration_s": round(self.duration_s, 3)}
        if self.locks:
            found["locks"] = [taken.data() for taken in self.locks]
        if self.rewrites:
            found["rewrites"] = self.rewrites
        return found


class Meter:
    """Measures the statements that a session runs, a file at a time."""

    def __init__(self, session: Session) -> None:
        self.session = session
        # by file and place: one that is retried counts once
        self.found: dict[tuple[str, int], Measured] = {}
        self.counts: dict[str, int] = {}  # of each file's statements
        self._last = -1
        self._migration: Migration | None = None
        self._tables: dict[int, tuple[int, int, str]] = {}  # what was there: filenode, bytes, name
        self._held: dict[int, int] = {}  # the strongest lock that the transaction has

    @contextmanager
    def over(self, migration: Migration) -> Iterator[None]:
        """Measure one migration's file."""
        query = _TABLES.format(schema=self.session.config.schema)
        self._tables = {oid: rest for oid, *rest in self.session.execute(query).fetchall()}
        self._migration, self._held = migration, {}
        self.session.observe = self._observe
        try:
            yield
        finally:
            self.session.observe = None
        ended = time.monotonic()
        for item in self.found.values():
            for taken in item.locks if item.migration is migration else ():
                whole = item.script.transactional
                taken.held_s = ended - item.began if whole else item.duration_s

    @contextmanager
    def _observe(self, script: Script, statement: sql.Statement) -> Iterator[None]:
        assert self._migration is not None  # noqa: S101 -- set in `over`, which sets us
        item = Measured(self._migration, script, statement.start, time.monotonic())
        yield
        item.duration_s = time.monotonic() - item.began
        if item.start <= self._last or script.file not in self.counts:
            self.counts[script.file] = 0  # another file, or another attempt at this one
        self.counts[script.file] += 1
        self._last = item.start
        said = sql.words(statements.head(script, statement).lstrip(b"( \t\n"), 1)
        if not ROWS.intersection(said) or item.duration_s >= SHORT_S:
            self.found[script.file, item.start] = item
            self._look(item, statement.text(script.text))
        elif len(self.found) < KEPT:
            self.found[script.file, item.start] = item

    def _look(self, item: Measured, text: bytes) -> None:
        session = self.session
        said = [
            Taken(lock.table, lock.mode, documented=True) for lock in explain.effect(text).locks
        ]
        if session.connection.info.transaction_status != pq.TransactionStatus.INTRANS:
            item.locks = said
            return
        try:
            cursor = session.execute(_LOCKED)
        except psycopg.Error:
            if not session.lost:
                session.execute("ROLLBACK TO SAVEPOINT preflight_meter")
            return  # a timeout that the file has set: its own affair, not the file's failure
        cursor.nextset()
        if not item.script.transactional:
            self._held = {}
        for oid, (rank, filenode, size) in _strongest(cursor.fetchall()).items():
            if oid not in self._tables:
                continue  # nobody waits for what this file has made
            before, bytes_before, table = self._tables[oid]
            if rank > self._held.get(oid, -1):
                self._held[oid] = rank
                item.locks.append(Taken(table, explain.STRENGTH[rank]))
            if size and before != filenode:
                sizes = {"before_bytes": bytes_before, "after_bytes": size}
                item.rewrites.append({"table": table, **sizes})
                self._tables[oid] = (filenode, size, table)
        # what the transaction had already, it would have had to wait for here
        there = {table for _, _, table in self._tables.values()}
        seen = {taken.table for taken in item.locks}
        item.locks += [taken for taken in said if taken.table in there - seen]

    def told(self) -> list[dict[str, Any]]:
        """Return what an event has room for: strong locks, rewrites, and what took longest."""
        found = list(self.found.values())
        worst = {id(item) for item in sorted(found, key=_weight, reverse=True)[:MOST]}
        return [
            {"file": item.script.file, "line": item.place()[0], **item.data()}
            for item in found
            if id(item) in worst
        ]


def _weight(item: Measured) -> tuple[int, float]:
    strongest = max((explain.STRENGTH.index(taken.mode) for taken in item.locks), default=-1)
    harmless = strongest <= explain.STRENGTH.index("ROW EXCLUSIVE")
    return -1 if harmless else strongest, item.duration_s


def _strongest(rows: list[tuple[int, str, int, int]]) -> dict[int, tuple[int, int, int]]:
    """Return for each table the strongest lock's rank, the table's filenode and bytes."""
    found: dict[int, tuple[int, int, int]] = {}
    for oid, mode, filenode, size in rows:
        rank = explain.STRENGTH.index(mode_of(mode))
        if rank > found.get(oid, (-1,))[0]:
            found[oid] = (rank, filenode, size)
    return found


def mode_of(lock: str) -> str:
    """Return a lock mode of `pg_locks` as SQL writes it: AccessShareLock is ACCESS SHARE."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", lock.removesuffix("Lock")).upper()
