"""The snapshot that is dumped, and what was seen in it: tables, rows, objects, sequences."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

import psycopg

from preflight.backup import children, clients
from preflight.base import console, quoting, stop, threads
from preflight.base.errors import (
    BackupFailed,
    BackupInterrupted,
    NotReady,
)
from preflight.server import catalog, packed, sessions

if TYPE_CHECKING:
    from preflight.server.sessions import Session
T = TypeVar("T")
AT_ONCE = 20  # tables of a copy that are counted in one statement, which locks their indexes, too
SESSIONS = (
    "A backup needs three sessions at a time (ours, the snapshot's, pg_dump's): raise the "
    "CONNECTION LIMIT of the role or the database, or run again when fewer are connected."
)
# of a session that lists all there is: it sorts in memory, for temporary files may be limited
ROOM = {"work_mem": "64MB"}
_ROOMY = "; ".join(f"SET LOCAL {name} = '{value}'" for name, value in ROOM.items())
LISTINGS = 20  # tables may be made and dropped between their list and their locks

# Every relation of one kind that pg_dump dumps: not the system's, of extensions only what they
# declare as configuration. The names also as the archive spells them, in the database's encoding.
_RELATIONS = """
SELECT n.nspname::text, c.relname::text,
 pg_catalog.convert_to(n.nspname::text, pg_catalog.getdatabaseencoding()),
 pg_catalog.convert_to(c.relname::text, pg_catalog.getdatabaseencoding()),
 c.relkind = 'r' AND NOT (c.relpersistence = 'u' AND pg_catalog.pg_is_in_recovery()),
 coalesce(config.condition, ''),
 pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND CASE c.relkind
  WHEN 'S' THEN pg_catalog.has_sequence_privilege(c.oid, 'SELECT')
  ELSE pg_catalog.has_table_privilege(c.oid, 'SELECT') END,
 pg_catalog.row_security_active(c.oid),
 pg_catalog.convert_to(rn.nspname::text, pg_catalog.getdatabaseencoding()),
 pg_catalog.convert_to(rc.relname::text, pg_catalog.getdatabaseencoding())
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_class rc
 ON c.relispartition AND rc.oid = pg_catalog.pg_partition_root(c.oid)
LEFT JOIN pg_catalog.pg_namespace rn ON rn.oid = rc.relnamespace
LEFT JOIN (
 SELECT given.relation, given.condition FROM pg_catalog.pg_extension e,
  unnest(e.extconfig, e.extcondition) AS given(relation, condition)
) config ON config.relation = c.oid
WHERE c.relkind IN ({kinds}) {only} AND (config.relation IS NOT NULL
 OR n.nspname::text NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema' AND NOT EXISTS (
  SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
   AND d.objid = c.oid AND d.deptype = 'e'))
ORDER BY 1, 2
"""
# a search_path of all schemas
_EVERYWHERE = """
SELECT pg_catalog.string_agg(pg_catalog.quote_ident(n.nspname), ', ' ORDER BY n.oid)
FROM pg_catalog.pg_namespace n
WHERE n.nspname = 'pg_catalog' OR n.nspname NOT LIKE 'pg\\_%'
"""
# of one that was dropped a moment ago the privilege is NULL: it is in no dump
_UNREADABLE = """
SELECT r.schema, r.name, r.readable FROM ({relations})
 AS r(schema, name, schema_key, key, has_rows, condition, readable, filtered, root_schema, root)
WHERE NOT r.readable OR r.filtered AND r.has_rows ORDER BY 1, 2
"""
_LARGE_OBJECTS = """
SELECT o.oid::text FROM pg_catalog.pg_largeobject_metadata o
WHERE NOT pg_catalog.pg_has_role(o.lomowner, 'USAGE')
 AND pg_catalog.current_setting('lo_compat_privileges') = 'off' AND NOT EXISTS (
  SELECT FROM pg_catalog.aclexplode(o.lomacl) a WHERE a.privilege_type = 'SELECT'
   AND (a.grantee = 0::oid OR pg_catalog.pg_has_role(a.grantee, 'USAGE')))
LIMIT 11
"""
_EXPORT = """
SELECT pg_catalog.pg_export_snapshot(), pg_catalog.to_char(
 pg_catalog.timezone('UTC', pg_catalog.clock_timestamp()), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
"""


@dataclass(frozen=True, slots=True)
class Witness:
    """What the snapshot's session saw besides the rows: what a restored copy has to show, too."""

    objects: packed.Packed
    sequences: catalog.Sequences
    members: catalog.Members = frozenset()
    attached: frozenset[catalog.Attached] = frozenset()


class Moved(Exception):
    """What no lock holds still was changed while it was dumped."""


GONE = (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName)


@dataclass(frozen=True, slots=True)
class Table:
    """A table, or rather what of it pg_dump dumps."""

    schema: str
    table: str
    key: clients.Key
    has_rows: bool  # a partitioned table has none of its own, one that is UNLOGGED on no standby
    condition: str  # of an extension's configuration table: which rows are the user's
    root: clients.Key | None = None  # of a partition

    @property
    def name(self) -> str:
        """Return `schema.table`; a name that holds a dot or a quote is quoted, to stay one name."""
        parts = (self.schema, self.table)
        return ".".join(quoting.name(part) if set(part) & {".", '"'} else part for part in parts)

    @property
    def plain(self) -> str:
        """The name as pg_dump says it while it works."""
        return f"{self.schema}.{self.table}"

    @property
    def sql(self) -> str:
        """The name for a statement."""
        return f"ONLY {quoting.name(self.schema)}.{quoting.name(self.table)}"

    @property
    def count(self) -> str:
        """The query that counts what of it is dumped."""
        return f"SELECT pg_catalog.count(*) FROM {self.sql} {self.condition}"  # noqa: S608 -- quoted


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An exported snapshot, the session that holds it, and the tables that are locked in it."""

    name: str
    taken_at: str
    tables: Sequence[Table]  # those that have rows
    session: Session


@contextmanager
def exported(session: Session) -> Iterator[Snapshot]:
    """Yield an exported snapshot, held by a session of its own.

    ACCESS SHARE on every table comes first: a TRUNCATE in between would empty the dump.
    """
    with _second(session) as other:
        tables = require_readable(other)
        for left in reversed(range(LISTINGS)):
            other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            try:
                _lock(other, tables)
            except GONE:  # dropped since it was listed
                if not left:
                    raise
            else:
                name, taken_at = other.execute(_EXPORT).fetchone() or ("", "")
                now = _tables(other)
                if set(tables).issuperset(now):
                    break
            other.execute("ROLLBACK")  # or a table was made in between
            tables = require_readable(other)
        else:
            raise Moved("tables are made and dropped faster than they can be locked")
        tables = [table for table in now if table.has_rows]
        del now  # there may be ten thousand
        yield Snapshot(name, taken_at, tables, other)
        other.execute("COMMIT")


def _lock(session: Session, tables: Sequence[Table]) -> None:
    if tables:
        names = ", ".join(table.sql for table in tables)
        session.execute(f"LOCK TABLE {names} IN ACCESS SHARE MODE")


class Count:
    """Counts the rows of a snapshot, and looks at what else is in it, while pg_dump is at work.

    In a thread of its own, as the main one listens to pg_dump and to a request to stop; what goes
    wrong in it is raised there. Each count is in a savepoint that is rolled back: planning locks
    every index, and a server has room for only so many locks.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.rows: dict[Table, int] = {}
        self.plain: dict[str, int] = {}
        self.looked = self.looked_again = False  # at all but the rows
        self._marks: catalog.Marks = ()
        self._later: catalog.Marks | None = None  # as a whole, where something moved
        self.objects = packed.Packed(())
        self.sequences: catalog.Sequences = {}
        self.members: catalog.Members = frozenset()
        self.attached: frozenset[catalog.Attached] = frozenset()
        self._tables = snapshot.tables
        self._schemas = snapshot.session.config.only
        self._connection = snapshot.session.connection
        # whoever has an index for himself (REINDEX) keeps nobody waiting but us
        self._patience_s = snapshot.session.config.lock_retry_s
        self._error: BaseException | None = None
        self._unwanted = False
        self._done = threading.Event()

    @property
    def witness(self) -> Witness:
        """What a copy has to show besides the rows; of sequences, those that were there."""
        said = "sequence "
        there = {name[len(said) :] for name, _ in self.objects if name.startswith(said)}
        stood = {name: at for name, at in self.sequences.items() if name in there}
        return Witness(self.objects, stood, self.members, self.attached)

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Count meanwhile; in the end it counts no more."""
        threads.start(threading.Thread(target=self._run, daemon=True))
        try:
            yield self
        finally:
            self._unwanted = True
            until = time.monotonic() + children.END_S
            while not self._done.wait(0.05) and time.monotonic() < until:
                with suppress(psycopg.Error):
                    self._connection.cancel_safe(timeout=children.END_S)

    def check(self) -> None:
        """Raise what went wrong so far."""
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Wait until everything is counted."""
        stop.until(self._done.wait)
        self.check()

    def look_again(self, now: Session) -> None:
        """Look once more at what no lock holds still, when pg_dump has said all that it says of it.

        From then on it reads rows alone.
        """
        self.looked_again = True
        with now.looking():
            now.execute(f"{now.beginning}; {_ROOMY}")
            if catalog.moved(self._marks, catalog.marks(now, self._schemas)):
                self._later = catalog.marks(now, self._schemas, whole=True)

    def moved(self) -> list[str]:
        """Name what was another by then than in the snapshot; call when all is counted."""
        if self._later is None:
            return []
        # both are to say names alike
        self._connection.execute(f"SET LOCAL {sessions.PATH}; {_ROOMY}")
        stood = catalog.marks(self._connection, self._schemas, whole=True)
        return catalog.moved(stood, self._later)

    def _run(self) -> None:
        try:
            self._look()
        except BaseException as error:  # noqa: BLE001 -- raised in the main thread
            self._error = error
        finally:
            self._done.set()

    def _look(self) -> None:
        quiet = self._connection  # a stop request is the main thread's
        with _unlocked(quiet):
            self._marks = catalog.marks(quiet, self._schemas)
        with _unlocked(quiet):
            self.objects = catalog.shapes(quiet, self._schemas)
        with _unlocked(quiet):
            self.members = catalog.members(quiet)
            self.attached = catalog.attached(quiet)
        self.looked = True
        # 0 would be no limit at all
        quiet.execute(f"SET LOCAL lock_timeout = {max(1, round(1000 * self._patience_s))}")
        # planning inlines what an index calls, and that may rely on the role's own path
        quiet.execute("SET LOCAL search_path TO DEFAULT")
        for table in self._tables:
            if self._unwanted:
                return
            self.rows[table] = self.plain[table.plain] = _count_alone(self._connection, table)


@contextmanager
def _unlocked(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Keep no lock of a look inside a transaction: each catalog has one, and so has its index."""
    connection.execute(f"SAVEPOINT one; {_ROOMY}")
    yield
    connection.execute("ROLLBACK TO SAVEPOINT one; RELEASE SAVEPOINT one")


def _count_alone(connection: psycopg.Connection[Any], table: Table) -> int:
    """Count in one round trip, and keep no lock but the table's.

    A condition's operators are looked for as pg_dump does, not where others may have put some.
    """
    path = sessions.PATH if table.condition else "search_path TO DEFAULT"
    query = (
        f"SAVEPOINT one; SET LOCAL {path}; {table.count}; "
        "ROLLBACK TO SAVEPOINT one; RELEASE SAVEPOINT one"
    )
    cursor = connection.execute(query.encode())
    cursor.nextset()
    cursor.nextset()
    (count,) = cursor.fetchone() or (0,)
    return int(count)


@contextmanager
def _second(session: Session) -> Iterator[Session]:
    """Yield a session beside ours; that we may have only one is nothing to wait for in vain."""
    try:
        with sessions.beside(session) as other:
            yield other
    except NotReady as failure:
        raise BackupInterrupted(
            "backup.no_session",
            f"the server is up, but a second session could not be had: {failure}",
            SESSIONS,
            sqlstate=failure.problem.sqlstate,
        ) from failure


def _relations(session: Session, kinds: str) -> str:
    """Return the query for every relation of some kinds that pg_dump dumps."""
    return _RELATIONS.replace("{only}", catalog.only(session.config.only)).replace("{kinds}", kinds)


def _rows(session: Session, keep: Callable[[Iterator[tuple[Any, ...]]], T]) -> T:
    """Return what is kept of the tables' rows, each as `Table` takes it."""

    def kept(rows: Iterator[tuple[Any, ...]]) -> T:
        # a schema and a root are of many tables: one string for all of them
        once: dict[Any, Any] = {}
        return keep(
            (
                once.setdefault(row[0], row[0]),
                row[1],
                (once.setdefault(row[2], row[2]), row[3]),
                row[4],
                row[5],
                once.setdefault(row[8:], row[8:]) if row[9] else None,
            )
            for row in rows
        )

    return sessions.read(session, _relations(session, "'r', 'p'"), kept)


def _tables(session: Session) -> list[Table]:
    return _rows(session, lambda rows: [Table(*row) for row in rows])


def _counts(session: Session, wanted: Mapping[str, int]) -> Iterator[tuple[Table, int]]:
    """Count the rows of a copy's tables, some tables in one statement."""
    found = _rows(session, lambda rows: packed.Packed(row for row in rows if row[3]))
    tables = [0, sum(1 for _ in found)]
    expected, done = sum(wanted.values()), 0
    with console.Bar("compare") as bar:
        for some in _together(Table(*row) for row in found):  # type: ignore[arg-type]
            tables[0] += len(some)
            share = done / expected if expected else None
            bar.show(share, f"{some[-1].name}, table {tables[0]} of {tables[1]}")
            numbered = [
                each.count.replace("SELECT ", f"SELECT {n}, ", 1) for n, each in enumerate(some)
            ]
            for number, count in _planned(session, " UNION ALL ".join(numbered)):
                done += count
                yield some[number], count


def _planned(session: Session, query: str) -> list[tuple[int, int]]:
    """Return what a query of a copy finds, also where it cannot be planned with our search_path.

    Planning inlines the functions of statistics, which may rely on another one. Any schema will do:
    none of it counts for a number of rows.
    """
    try:
        return session.execute(query).fetchall()
    except psycopg.Error as error:
        if session.lost or not str(error.sqlstate).startswith("42"):
            raise
    (everywhere,) = session.execute(_EVERYWHERE).fetchone() or ("",)
    session.execute(f"SET search_path = {everywhere}")
    try:
        return session.execute(query).fetchall()
    finally:
        session.execute(f"SET {sessions.PATH}")


def _together(tables: Iterable[Table]) -> Iterator[list[Table]]:
    """Yield tables by some; one with a condition, which may end in a comment, is alone."""
    some: list[Table] = []
    for table in tables:
        if some and (table.condition or some[-1].condition or len(some) >= AT_ONCE):
            yield some
            some = []
        some.append(table)
    if some:
        yield some


def differing(copy: Session, wanted: Mapping[str, int]) -> list[str]:
    """Name the tables whose rows are not as many as wanted; what else is there may be more.

    An extension brings tables along that are in no backup of some schemas, or of an older version.
    Rows may lie in other partitions than they did (an enum's value has another hash in every
    database), but none may be lost on the way.
    """
    missing = set(wanted)
    off: dict[str, tuple[int, clients.Key | None]] = {}
    short: dict[clients.Key, int] = {}
    for table, count in _counts(copy, wanted):
        name, root = table.name, table.root
        if name not in wanted:
            continue
        missing.discard(name)
        if root:
            short[root] = short.get(root, 0) + count - wanted[name]
        if count != wanted[name]:
            off[name] = (count, root)
    lost = {name: count for name, (count, root) in off.items() if root is None or short[root] != 0}
    return [
        f"{name} has {lost.get(name, 'no')} rows, not {count}"
        for name, count in wanted.items()
        if name in missing or name in lost
    ]


def written_since(copy: Session, transaction: int) -> list[str]:
    """Name the tables with rows that were written after a transaction, by its 64-bit number."""
    recent = "pg_catalog.age(t.xmin) < pg_catalog.age(%s::text::xid)"
    found = []
    for table in _tables(copy):
        query = f"SELECT EXISTS (SELECT FROM {table.sql} t WHERE {recent})"  # noqa: S608 -- quoted
        (yes,) = copy.execute(query, [transaction % 2**32]).fetchone() or (False,)
        found += [f"{table.name} was written to"] if table.has_rows and yes else []
    for name in ("pg_catalog.pg_largeobject_metadata", "pg_catalog.pg_largeobject"):
        may = "SELECT pg_catalog.has_table_privilege(%s::text, 'SELECT')"
        if (copy.execute(may, [name]).fetchone() or (False,))[0]:
            query = f"SELECT EXISTS (SELECT FROM {name} t WHERE {recent})"  # noqa: S608 -- constant
            (yes,) = copy.execute(query, [transaction % 2**32]).fetchone() or (False,)
            found += ["large objects were written to"] if yes else []
    return list(dict.fromkeys(found))


def require_readable(session: Session) -> list[Table]:
    """Return every table; raises BackupFailed that names what this role cannot dump whole."""
    limited, query = bool(session.config.only), _relations(session, "'r', 'p', 'S'")
    rows = sessions.read(session, _UNREADABLE.replace("{relations}", query), list)
    hidden = [f"{quoting.name(row[0])}.{quoting.name(row[1])}" for row in rows if row[2] is False]
    objects = [] if limited else session.execute(_LARGE_OBJECTS).fetchall()
    hidden += [f"large object {found[0]}" for found in objects]
    others = "" if limited else (
        " If it is another app's, name the schemas of this one alone: PREFLIGHT_SCHEMAS=…"
    )  # fmt: skip
    if hidden:
        raise BackupFailed(
            "backup.not_readable",
            f"this role may not read {console.some(hidden)}",
            "GRANT USAGE on the schema and SELECT on the object (or the role pg_read_all_data, "
            "PostgreSQL 14 and later, but for large objects): a dump without it is no backup."
            + others,
            sqlstate="42501",
        )
    if filtered := [f"{quoting.name(row[0])}.{quoting.name(row[1])}" for row in rows]:
        raise BackupFailed(
            "backup.row_security",
            f"row security hides rows of {console.some(filtered)} from this role",
            "Run as the tables' owner (without FORCE ROW LEVEL SECURITY) or as a role with "
            "BYPASSRLS: a dump without those rows is no backup." + others,
            sqlstate="42501",
        )
    return _tables(session)
