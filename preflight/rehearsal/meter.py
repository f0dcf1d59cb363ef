"""What the statements of a rehearsal cost: how long, which lock on which table, what they rewrite.

The session's own look at `pg_locks` right after a statement, inside its transaction; of statements
outside any, whose locks are gone by then, the documented lock is told.
"""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import pq

from preflight.apply import statements
from preflight.files import effects, kinds, scan
from preflight.server import sessions

if TYPE_CHECKING:
    from preflight.files.migrations import Migration, Script
    from preflight.server.sessions import Session

SHORT_S = 0.1  # a change of rows that takes less is not looked at: its lock is in nobody's way
MOST, MOST_BYTES = 50, 10_000  # statements in one event, and what they may take of its line
KEPT = 10_000  # short changes of rows that are remembered; a file may have a million
QUERIES = 2_000  # short ones of a file that are looked at, one by one; of the rest what is held
ROWS = {"INSERT", "UPDATE", "DELETE", "MERGE", "COPY", "SET", "RESET", "COMMENT"}
INDEXES = {b"DROP", b"REINDEX"}  # what may name one in place of its table
STRONG = effects.STRENGTH[effects.STRENGTH.index(effects.SHARE) :]  # nobody writes meanwhile

# all before each file, which is cheap; their sizes, which are not, only where they may be others
_TABLES = """
SELECT c.oid::int8, coalesce(pg_catalog.pg_relation_filenode(c.oid), 0::oid)::int8, {size},
 CASE WHEN n.nspname <> 'public' THEN pg_catalog.quote_ident(n.nspname::text) || '.' ELSE '' END
  || pg_catalog.quote_ident(c.relname::text),
 CASE WHEN c.relispartition THEN pg_catalog.pg_partition_root(c.oid)::oid::int8 END,
 c.relkind = 'm'
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'm', 'f', 'v') AND n.nspname::text NOT LIKE 'pg\\_%'
 AND n.nspname NOT IN ('information_schema', '{schema}')
"""
_SIZE = "CASE WHEN c.relkind IN ('r', 'm') THEN pg_catalog.pg_total_relation_size(c.oid) END"
_SIZES = """
SELECT c.oid::int8, pg_catalog.pg_total_relation_size(c.oid) FROM pg_catalog.pg_class c
WHERE c.relkind IN ('r', 'm') AND c.oid = ANY (%s::oid[])
"""
# the path is the file's here, and must be
_INDEXED = """
SELECT i.indrelid::pg_catalog.int8 FROM pg_catalog.pg_index i
WHERE i.indexrelid OPERATOR(pg_catalog.=) pg_catalog.to_regclass(%s::pg_catalog.text)
"""
_ANEW = """
SELECT c.oid::pg_catalog.int8,
 coalesce(pg_catalog.pg_relation_filenode(c.oid), 0::pg_catalog.oid)::pg_catalog.int8,
 pg_catalog.pg_total_relation_size(c.oid)
FROM pg_catalog.pg_class c
WHERE c.oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass(%s::pg_catalog.text)
 AND c.relkind OPERATOR(pg_catalog.=) ANY ('{r,m}'::pg_catalog."char"[])
"""
# under our own search_path; rolled back, the savepoint gives the file's back
_LOCKED = """
SAVEPOINT preflight_meter; SET LOCAL {path};
SELECT l.relation::int8, l.mode,
 coalesce(pg_catalog.pg_relation_filenode(c.oid), 0::oid)::int8,
 CASE WHEN l.mode = 'AccessExclusiveLock' AND c.relkind IN ('r', 'm')
  THEN pg_catalog.pg_total_relation_size(c.oid) ELSE 0 END
FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_class c ON c.oid = l.relation
WHERE l.pid = pg_catalog.pg_backend_pid() AND l.locktype = 'relation' AND l.granted
 AND l.relation >= 16384::oid;
ROLLBACK TO SAVEPOINT preflight_meter; RELEASE SAVEPOINT preflight_meter
"""


@dataclass(slots=True)
class Taken:
    """A lock on a table that was there before the file; held until the transaction ended."""

    table: str
    mode: str
    held_s: float = 0.0
    documented: bool = False  # not seen, but what the manual says
    alone: bool = False  # nobody uses or writes to what is locked
    root: str = ""  # of a partition
    partitions: int = 0  # that it stands for

    def data(self) -> dict[str, Any]:
        """Return it as log data."""
        found = {"table": self.table, "mode": self.mode, "held_s": round(self.held_s, 3)}
        found |= {"partitions": self.partitions} if self.partitions else {}
        return found | ({"documented": True} if self.documented else {})


@dataclass(slots=True)
class Rewrite:
    """A table that was written anew; bytes are with its indexes."""

    table: str
    before_bytes: int
    after_bytes: int
    root: str = ""  # of a partition
    partitions: int = 0  # that it stands for

    def data(self) -> dict[str, Any]:
        """Return it as log data."""
        sizes = {"before_bytes": self.before_bytes, "after_bytes": self.after_bytes}
        more = {"partitions": self.partitions} if self.partitions else {}
        return {"table": self.table, **sizes, **more}


@dataclass(slots=True)
class Measured:
    """One statement of a file; sizes are of the table with its indexes, in bytes."""

    migration: Migration
    script: Script
    start: int  # the statement's first byte
    began: float
    duration_s: float = 0.0
    locks: list[Taken] = field(default_factory=list)
    rewrites: list[Rewrite] = field(default_factory=list)
    unknown: bool = False  # which tables it locked, and for how long, was not to be seen
    outside: bool = False  # of any transaction

    def place(self) -> tuple[int, int]:
        """Return the line and the column of its first token."""
        return scan.position(self.script.text, self.start)

    def data(self) -> dict[str, Any]:
        """Return what it cost, as log data."""
        found: dict[str, Any] = {"duration_s": round(self.duration_s, 3)}
        if self.locks:
            found["locks"] = [taken.data() for taken in grouped(self.locks)]
        if self.rewrites:
            found["rewrites"] = [rewrite.data() for rewrite in summed(self.rewrites)]
        return found

    def longest(self) -> Taken | None:
        """Return the strong lock that was held for longest of those that somebody waits for.

        Inside a transaction only what was seen counts. Outside one the manual says which lock, and
        nobody can hold it for longer than the statement takes.
        """
        strong = [
            taken
            for taken in grouped(self.locks)
            if taken.mode in STRONG and not taken.alone and (self.outside or not taken.documented)
        ]
        return max(strong, key=lambda taken: taken.held_s, default=None)


class Meter:
    """Measures the statements that sessions run, a file at a time."""

    def __init__(self, known: Mapping[int, Table] | None = None) -> None:
        # by file and place: one that is retried counts once
        self.found: dict[tuple[str, int], Measured] = {}
        self.passed: set[str] = set()  # names of migrations whose file came to its end
        self._counts: dict[str, int] = {}  # of each file's statements
        self._queries = 0  # of the file under way, which were short and looked at
        self._last = -1
        self._tables: dict[int, Table] = {}  # what was there before the file
        self._old: set[int] | None = None  # and before the first one
        self._known = dict(known or {})  # whose size still holds
        self._held: dict[int, int] = {}  # the strongest lock that the transaction has
        self._open: list[Measured] = []  # statements of the transaction under way
        self._unseen: Measured | None = None  # the first one that was not looked at

    @contextmanager
    def over(self, session: Session, migration: Migration) -> Iterator[None]:
        """Measure one migration's file."""
        self._tables = tables(session, self._known)
        self._known = dict(self._tables)
        self._old = set(self._tables) if self._old is None else self._old
        self._begin()
        session.observe = partial(self._observe, session, migration)
        session.ending = partial(self._ending, session)
        try:
            yield
        finally:
            session.observe = session.ending = None
        self.passed.add(migration.name)

    def _begin(self) -> None:
        for oid in self._held:
            self._known.pop(oid, None)  # a row more or less
        self._held, self._open, self._unseen = {}, [], None

    @contextmanager
    def _observe(
        self,
        session: Session,
        migration: Migration,
        script: Script,
        statement: scan.Statement,
    ) -> Iterator[None]:
        item = Measured(migration, script, statement.start, time.monotonic())
        if item.start <= self._last or script.file not in self._counts:
            self._counts[script.file] = 0  # another file, or another attempt at this one
            self._queries = 0
            self._begin()
        led = self._led(session, script, statement)
        item.began = time.monotonic()
        yield
        item.duration_s = time.monotonic() - item.began
        self._counts[script.file] += 1
        self._last = item.start
        said = scan.words(statements.head(script, statement).lstrip(b"( \t\n"), 1)
        looked_at = item.duration_s >= SHORT_S or not ROWS.intersection(said)
        if looked_at and item.duration_s < SHORT_S and kinds.READING.intersection(said):
            self._queries += 1
            looked_at = self._queries <= QUERIES
        if looked_at:
            self._look(session, item, statement.read(script.text), led)
        else:
            self._unseen = self._unseen or item
        if looked_at or len(self.found) < KEPT:
            self.found[script.file, item.start] = item

    @contextmanager
    def _ending(self, session: Session) -> Iterator[None]:
        """Settle, at a COMMIT, for how long the transaction has held its locks."""
        inside = session.connection.info.transaction_status == pq.TransactionStatus.INTRANS
        if inside and (
            item := self._unseen
        ):  # a trigger, say, may have locked what nobody looked at
            locks = self._seen(session, item)
            item.locks += [taken for taken in locks if taken.mode in STRONG]
            if item.locks:
                self.found[item.script.file, item.start] = item
        yield
        ended = time.monotonic()
        for item in self._open:
            for taken in item.locks:
                taken.held_s = ended - item.began
        self._begin()

    def _led(self, session: Session, script: Script, statement: scan.Statement) -> dict[str, str]:
        """Return the tables of the indexes that are named outside a transaction.

        Before it runs: behind it an index may be gone. The lock is on its table.
        """
        if session.connection.info.transaction_status == pq.TransactionStatus.INTRANS or (
            scan.first_word(script.text, statement.start) not in INDEXES
        ):
            return {}
        found = {}
        for lock in effects.of(statement.read(script.text)).locks:
            if lock.of_index:
                with suppress(psycopg.Error):  # what is wrong there the statement itself says
                    row = session.execute(_INDEXED, [lock.table]).fetchone()
                    if row and (table := self._tables.get(row[0])) is not None:
                        found[lock.table] = table.name
        return found

    def _look(self, session: Session, item: Measured, text: bytes, led: Mapping[str, str]) -> None:
        """See which locks a statement took: what is documented only counts where nothing is.

        `led`: the tables of indexes that it names.
        """
        self._unseen = None
        effect = effects.of(text)
        said = [
            Taken(led.get(lock.table, lock.table), lock.mode, documented=True)
            for lock in effect.locks
        ]
        if session.connection.info.transaction_status != pq.TransactionStatus.INTRANS:
            item.outside, item.locks = True, said
            self._known.clear()  # what it touched was not to be seen
            item.unknown = effect.unknown
            item.rewrites = self._rewritten(session, said)
            for taken in said:
                taken.held_s = item.duration_s
                taken.alone = taken.mode in STRONG and self._named_alone(session, taken)
            return
        item.locks = self._seen(session, item)
        # what the transaction had already, it would have had to wait for here
        there = {table.name for table in self._tables.values()}
        seen = {taken.table for taken in item.locks}
        item.locks += [taken for taken in said if taken.table in there - seen]

    def _rewritten(self, session: Session, said: Sequence[Taken]) -> list[Rewrite]:
        """Return what a statement outside a transaction has written anew, as VACUUM FULL does."""
        found = []
        for taken in said:
            if taken.mode != effects.ACCESS_EXCLUSIVE:
                continue
            with suppress(psycopg.Error):  # a timeout that the file has set
                row = session.execute(_ANEW, [taken.table]).fetchone()
                oid, filenode, size = row or (0, 0, 0)
                table = self._tables.get(oid)
                if table is not None and table.filenode != filenode:
                    root = self._tables[table.root].name if table.root in self._tables else ""
                    found.append(Rewrite(table.name, table.size, size, root))
                    self._tables[oid] = dataclasses.replace(table, filenode=filenode, size=size)
        return found

    def _seen(self, session: Session, item: Measured) -> list[Taken]:
        """Return the locks that the transaction did not have before; note what is rewritten."""
        self._open.append(item)
        try:
            cursor = session.execute(_LOCKED.format(path=sessions.PATH))
        except psycopg.Error:
            if not session.lost:
                session.execute("ROLLBACK TO SAVEPOINT preflight_meter")
            item.unknown = True
            return []  # a timeout that the file has set: its own affair, not the file's failure
        cursor.nextset()
        cursor.nextset()
        found = []
        for oid, (rank, filenode, size) in _strongest(cursor.fetchall()).items():
            if (table := self._tables.get(oid)) is None:
                continue  # nobody waits for what this file has made
            root = self._tables[table.root].name if table.root in self._tables else ""
            if rank > self._held.get(oid, -1):
                self._held[oid] = rank
                taken = Taken(table.name, effects.STRENGTH[rank], root=root)
                taken.alone = self._alone(oid, taken.mode)
                found.append(taken)
            if size and table.filenode != filenode:
                item.rewrites.append(Rewrite(table.name, table.size, size, root))
                self._tables[oid] = dataclasses.replace(table, filenode=filenode, size=size)
        return found

    def _named_alone(self, session: Session, taken: Taken) -> bool:
        """Tell whether nobody waits for a lock on a table, by its name in the file."""
        # the path is the file's here, and must be
        query = (
            "SELECT pg_catalog.to_regclass(%s::pg_catalog.text)::pg_catalog.oid::pg_catalog.int8"
        )
        (oid,) = session.execute(query, [taken.table]).fetchone() or (None,)
        return oid is not None and self._alone(oid, taken.mode)

    def _alone(self, oid: int, mode: str) -> bool:
        """Tell whether nobody waits for a lock: on what the run has made, or on a view's rows.

        Nobody writes to a materialised view, so only who reads it can be stopped.
        """
        table = self._tables.get(oid)
        read = table is not None and table.view and mode != effects.ACCESS_EXCLUSIVE
        return read or (self._old is not None and oid not in self._old)

    @property
    def known(self) -> Mapping[int, Table]:
        """Tables whose size holds for who measures next on the same copy."""
        return self._known

    def costs(self) -> dict[tuple[str, int], dict[str, Any]]:
        """Return what each statement took, by file and place, of the files that passed."""
        items = self.found.items()
        return {at: item.data() for at, item in items if item.migration.name in self.passed}

    @property
    def took_s(self) -> float:
        """Return for how long the statements have run, in seconds."""
        return sum(item.duration_s for item in self.found.values())

    def told(self) -> dict[str, Any]:
        """Return what an event has room for: strong locks, rewrites, and what took longest."""
        found = [item for item in self.found.values() if item.migration.name in self.passed]
        worst, room = set(), MOST_BYTES
        data = {
            id(item): {"file": item.script.file, "line": item.place()[0], **item.data()}
            for item in sorted(found, key=_weight, reverse=True)[:MOST]
        }
        for key, said in data.items():  # the worst first
            room -= len(json.dumps(said))
            if room < 0:
                break
            worst.add(key)
        files = {item.script.file for item in found}
        count = sum(number for file, number in self._counts.items() if file in files)
        shown = [data[id(item)] for item in found if id(item) in worst]
        return {"statements": shown, "statements_untold": count - len(shown)}


@dataclass(frozen=True, slots=True)
class Table:
    """What was there before a file; the size in bytes with the indexes."""

    filenode: int
    size: int
    name: str
    root: int | None  # of a partition
    view: bool = False  # a materialised one


def tables(session: Session, known: Mapping[int, Table] | None = None) -> dict[int, Table]:
    """Return what can be locked and rewritten in a database, by oid.

    A table that is `known` keeps its size, unless it was written anew.
    """
    known = known or {}
    size = "NULL::int8" if known else _SIZE
    changed: list[int] = []

    def kept(rows: Iterator[tuple[Any, ...]]) -> dict[int, Table]:
        found = {}
        for oid, filenode, bytes_, name, root, view in rows:
            before = known.get(oid)
            same = before if before and before.filenode == filenode else None
            if known and filenode and not same:
                changed.append(oid)
            found[oid] = Table(filenode, same.size if same else bytes_ or 0, name, root, view)
        return found

    query = _TABLES.format(schema=session.config.schema, size=size)
    found = sessions.read(session, query, kept)
    for oid, bytes_ in session.execute(_SIZES, [changed]).fetchall() if changed else ():
        found[oid] = dataclasses.replace(found[oid], size=bytes_ or 0)
    return found


def grouped(locks: Sequence[Taken]) -> list[Taken]:
    """Return locks with those on the partitions of one table as one on that table."""
    found: dict[tuple[str, str, bool], Taken] = {}
    for taken in locks:
        key = (taken.root or taken.table, taken.mode, taken.documented)
        one = found.setdefault(key, dataclasses.replace(taken, table=key[0], root=""))
        one.held_s = max(one.held_s, taken.held_s)
        one.alone = one.alone and taken.alone
        one.partitions += bool(taken.root)
    return list(found.values())


def summed(rewrites: Sequence[Rewrite]) -> list[Rewrite]:
    """Return rewrites with those of the partitions of one table as one of that table."""
    found: dict[str, Rewrite] = {}
    for rewrite in rewrites:
        name = rewrite.root or rewrite.table
        one = found.setdefault(name, Rewrite(name, 0, 0))
        one.before_bytes += rewrite.before_bytes
        one.after_bytes += rewrite.after_bytes
        one.partitions += bool(rewrite.root)
    return list(found.values())


def _weight(item: Measured) -> tuple[int, float]:
    strongest = max((effects.STRENGTH.index(taken.mode) for taken in item.locks), default=-1)
    harmless = strongest <= effects.STRENGTH.index("ROW EXCLUSIVE")
    return -1 if harmless else strongest, item.duration_s


def _strongest(rows: list[tuple[int, str, int, int]]) -> dict[int, tuple[int, int, int]]:
    """Return for each table the strongest lock's rank, the table's filenode and bytes."""
    found: dict[int, tuple[int, int, int]] = {}
    for oid, mode, filenode, size in rows:
        rank = rank_of(mode)
        if rank > found.get(oid, (-1,))[0]:
            found[oid] = (rank, filenode, size)
    return found


def rank_of(lock: str) -> int:
    """Return how strong a lock mode of `pg_locks` is: AccessShareLock is 0.

    -1 is one that nobody waits for, as the SIReadLock of a serializable transaction.
    """
    mode = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", lock.removesuffix("Lock")).upper()
    return effects.STRENGTH.index(mode) if mode in effects.STRENGTH else -1
