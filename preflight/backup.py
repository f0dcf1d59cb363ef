"""Take a backup and read it back: the rows are counted in the very snapshot that is dumped.

`archive` runs the client programs, `store` keeps the directory; here is what the server is asked.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import psycopg
import structlog

from preflight import __version__, archive, belongings, catalog, report, server, sql, stop, store
from preflight.errors import (
    BackupDamaged,
    BackupFailed,
    BackupInterrupted,
    BackupUnverified,
    ConnectionLost,
    DatabaseBusy,
    NotReady,
)

if TYPE_CHECKING:
    from preflight.archive import Clients
    from preflight.migrations import Migration
    from preflight.server import Session
    from preflight.store import Backup, Identity

TOLD = 20  # things that a backup is without, in an event; the manifest has all
LISTINGS = 20  # tables may be made and dropped between their list and their locks
ATTEMPTS = 3  # a table dropped at the wrong moment, a server restarted in the middle

# Every relation of one kind that pg_dump dumps: not the system's, of extensions only what they
# declare as configuration. The names also as the archive spells them, in the database's encoding.
_RELATIONS = """
SELECT n.nspname::text, c.relname::text,
 pg_catalog.convert_to(n.nspname::text, pg_catalog.getdatabaseencoding()),
 pg_catalog.convert_to(c.relname::text, pg_catalog.getdatabaseencoding()),
 c.relkind = 'r', coalesce(config.condition, ''),
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
WHERE c.relkind::text = ANY (%s::text[]) AND (config.relation IS NOT NULL
 OR n.nspname::text NOT LIKE 'pg\\_%%' AND n.nspname <> 'information_schema' AND NOT EXISTS (
  SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
   AND d.objid = c.oid AND d.deptype = 'e'))
ORDER BY 1, 2
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
_LOCKERS = """
SELECT DISTINCT l.relation::pg_catalog.regclass::text, a.pid, a.application_name
FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock' AND l.relation >= 16384::oid
 AND a.datname = pg_catalog.current_database() LIMIT 3
"""


@dataclass(frozen=True, slots=True)
class Witness:
    """What the snapshot's session saw besides the rows: what a restored copy has to show, too."""

    objects: catalog.Objects
    sequences: catalog.Sequences


@dataclass(frozen=True, slots=True)
class Taken:
    """A backup that this run made, whose it is, and what a copy of it has to show."""

    backup: Backup
    identity: Identity
    witness: Witness
    seen: tuple[int, ...]  # of the dump's file, before its hash was read back
    visible: bool = True  # a plan's is removed afterwards

    @property
    def name(self) -> str:
        """The backup's name."""
        return self.backup.name

    @property
    def path(self) -> Path:
        """The backup's directory."""
        return self.backup.path


def take(session: Session, todo: Sequence[Migration], purpose: str = "up") -> Taken | None:
    """Back the database up before `todo`; return None when backups are off.

    Raises BackupInterrupted (passing), BackupFailed (change something), BackupUnverified.
    """
    log = structlog.get_logger()
    if session.config.backup == "off":
        log.warning("backup.skipped", reason="PREFLIGHT_BACKUP=off")
        return None
    began = time.monotonic()
    with _made(session, todo, purpose) as draft:
        with store.usable(session.config.backup_dir) as directory:
            made = store.publish(draft.path, directory, draft.identity, draft.backup.manifest)
        manifest = made.manifest
        log.info(
            "backup.verified",
            backup=made.name,
            verified=manifest["verified"],
            size_bytes=manifest["size_bytes"],
            tables=len(manifest["rows"]),
            rows=sum(manifest["rows"].values()),
            sha256=manifest["sha256"],
            **({"without": manifest["without"][:TOLD]} if "without" in manifest else {}),
            duration_s=round(time.monotonic() - began, 3),
        )
        with suppress(OSError):  # one more than is to stay: what this one is worth is not known yet
            store.prune(made.path.parent, draft.identity, session.config.backup_keep + 1)
    return Taken(made, draft.identity, draft.witness, draft.seen)


@contextmanager
def draft(session: Session, todo: Sequence[Migration]) -> Iterator[Taken]:
    """Yield a backup that nobody sees and that is gone afterwards; raises what `take` raises."""
    with _made(session, todo, "plan") as made:
        yield made


@contextmanager
def _made(session: Session, todo: Sequence[Migration], purpose: str) -> Iterator[Taken]:
    """Yield a whole backup under its hidden name; it is removed unless it gets another one."""
    config = session.config
    programs = archive.clients(config, session)
    identity, size = identity_of(session)
    own = belongings.read(session, identity.database)
    taken_for = {
        "command": purpose,
        "pending": [{"version": file.version, "checksum": file.checksum} for file in todo],
    }
    with ExitStack() as stack:
        with store.usable(config.backup_dir) as directory:
            store.require_mounted(directory)
            store.sweep(directory, identity)
            store.require_space(directory, identity, size)
            hidden = stack.enter_context(store.building(directory, identity, config.run_id))
            found, witness, seen = _dumped(session, hidden / store.DUMP, programs)
            manifest = {
                "format": store.FORMAT,
                "version": __version__,
                "run_id": config.run_id,
                "database": identity.database,
                "system_identifier": identity.system,
                "address": identity.address,
                "timeline": _timeline(session),
                "server_version": session.facts.version if session.facts else None,
                "pg_dump": programs.version,
                "file": store.DUMP,
                **found,
                "belongings": own.told() if own else None,
                "taken_for": taken_for,
                "verified": "read",
            }
        yield Taken(store.Backup(hidden, manifest), identity, witness, seen, visible=False)


def prune(session: Session, saved: Taken) -> None:
    """Let go what is more than BACKUP_KEEP; call once it is known what the newest is worth."""
    with suppress(OSError):  # the backup is there; what cannot be removed is told by the store
        store.prune(saved.path.parent, saved.identity, session.config.backup_keep)


def proven(
    take_one: Callable[[], Taken | None],
    prove: Callable[[Taken | None], None],
    beside: Callable[[Taken | None], Sequence[Path]] = lambda _: (),
) -> Taken | None:
    """Take a backup and prove it; return it as long as it is there. Raises what both raise.

    What is wrong with a dump may come from what was changed while it was made: one more is taken
    before the first is called bad, unless that was damaged. `beside` says what else it holds.
    """
    for last in (False, True):
        saved = take_one()
        try:
            files = beside(saved)
            prove(saved)
            require_there(saved, files)
        except BackupUnverified as failure:
            if saved:
                hide(saved)
            if last or isinstance(failure, BackupDamaged):
                raise
            structlog.get_logger().info("backup.progressed", attempt=2, waiting=str(failure))
        else:
            break
    return saved


def require_there(saved: Taken | None, files: Sequence[Path] = (), *, again: bool = False) -> None:
    """Make sure that a backup is still what was verified; raises BackupDamaged.

    The hash is read again only where the dump's file is not as it was seen, or with `again`.
    """
    if saved is None:
        return
    dump, digest = saved.path / store.DUMP, saved.backup.manifest["sha256"]
    try:
        if again or store.seen(dump) != saved.seen:
            digest, _ = archive.hash_of(dump)
        gone = [str(path) for path in files if not path.is_file()]
    except OSError as error:
        gone = [f"{dump} ({error.strerror})"]
    if digest != saved.backup.manifest["sha256"]:
        raise BackupDamaged(
            "backup.corrupt",
            f"the dump in {saved.path} is not what was verified a moment ago: its hash differs",
            "Who else writes to the backup directory? Check that, and the disk; the backup is "
            "hidden again, and nothing was migrated.",
        )
    if gone or (saved.visible and not store.holds(saved.backup)):
        raise BackupDamaged(
            "backup.vanished",
            f"the backup that was verified a moment ago is gone: {report.some(gone) or saved.path}",
            "Who else removes files in the backup directory? Nothing was migrated.",
        )


def hide(saved: Taken) -> None:
    """Take a backup out of view that turned out to be none."""
    if saved.visible:
        with store.usable(saved.path.parent):
            store.withdraw(saved.backup, saved.identity)


def identity_of(session: Session) -> tuple[Identity, int]:
    """Return whose backups these are, and the database's size in bytes."""
    row = session.execute(
        """SELECT (SELECT system_identifier::text FROM pg_catalog.pg_control_system()),
 pg_catalog.current_database()::text,
 pg_catalog.pg_database_size(pg_catalog.current_database())"""
    ).fetchone()
    system, database, size = row or ("", "", 0)
    return store.Identity(system, database, _address(session)), size


def _address(session: Session) -> str:
    """Return the server's address as it is configured; a service's and a default is libpq's."""
    info, configured = session.connection.info, dict(session.target)
    if not configured.keys() & {"host", "hostaddr"}:
        told = {each.keyword.decode(): each.val or b"" for each in session.connection.pgconn.info}
        configured |= {key: told[key].decode() for key in ("host", "port") if told.get(key)}
    return store.address({"host": info.host, "port": str(info.port), **configured})


def _timeline(session: Session) -> int | None:
    """Return the server's timeline, which a failover changes; None where it may not be asked."""
    may = "SELECT pg_catalog.has_function_privilege('pg_catalog.pg_control_checkpoint()','EXECUTE')"
    if (session.execute(may).fetchone() or (False,))[0]:
        query = "SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()"
        return int((session.execute(query).fetchone() or (0,))[0])
    return None


# attempts


def _dumped(
    session: Session, path: Path, programs: Clients
) -> tuple[dict[str, Any], Witness, tuple[int, ...]]:
    """Write the dump and read it back; return what the manifest says of it, and what else was seen.

    Last comes what its file looked like before its hash was read back.

    A table lock is waited for as long as LOCK_RETRY_S says; other passing reasons get ATTEMPTS.
    """
    began, attempt, said = time.monotonic(), 0, ""
    while True:
        attempt += 1
        try:
            taken_at, seen, written = _attempted(session, path, programs, attempt)
            break
        except (archive.ClientFailed, psycopg.Error, ConnectionLost, DatabaseBusy, _Moved) as error:
            hope, before, said = _hope_of(error), said, str(error).strip()
        path.unlink(missing_ok=True)
        if hope == "none" or (hope == "unknown" and said == before):
            raise BackupFailed("backup.pg_dump", f"the dump failed: {said}", _HINT)
        others = _lockers(session)
        patient = time.monotonic() - began < session.config.lock_retry_s
        if not (patient if hope == "busy" else attempt < ATTEMPTS):
            raise BackupInterrupted(
                "backup.interrupted",
                f"no backup after {attempt} attempts: {said}{others}",
                "Run again; nothing was migrated.",
            )
        structlog.get_logger().info("backup.progressed", attempt=attempt, waiting=f"{said}{others}")
        stop.sleep(random.uniform(0.2, 1.0) * min(attempt, ATTEMPTS))  # noqa: S311 -- jitter
    looks, without = store.seen(path), catalog.unseen(session)
    wanted = {table.key: (table.name, rows) for table, rows in seen.rows.items()}
    roots = {table.key: table.root for table in seen.rows if table.root}
    digest, environment = written.sha256, session.config.child_env
    size = archive.require_whole(path, digest, programs, environment, wanted, roots)
    listed = any(each["what"].startswith("subscription ") for each in without)
    without += [
        {"what": warning, "why": "a warning of pg_dump"}
        for warning in written.warnings
        if not (listed and warning.startswith("subscriptions not dumped"))
    ]
    found = {
        "snapshot_at": taken_at,
        "size_bytes": size,
        "sha256": digest,
        "rows": {table.name: rows for table, rows in seen.rows.items()},
        **({"without": without} if without else {}),
    }
    return found, seen.witness, looks


class _Moved(Exception):
    """What no lock holds still was changed while it was dumped."""


def _attempted(
    session: Session, path: Path, programs: Clients, attempt: int
) -> tuple[str, _Count, archive.Written]:
    """Dump once, and count meanwhile; return when, what was seen in the snapshot, and the dump.

    pg_dump starts as soon as there is a snapshot: whoever queues for a table after that waits for
    our locks, and pg_dump would wait for him.
    """
    with _snapshot(session) as snapshot:
        stood = catalog.sequences(session)
        structlog.get_logger().info(
            "backup.started",
            attempt=attempt,
            tables=len(snapshot.tables),
            client=programs.version,
        )
        with _Count(snapshot).running() as count:
            progress = archive.Progress(len(snapshot.tables), count.plain)
            written = archive.write(session, programs, snapshot.name, path, progress, count.check)
            count.finish()
    if moved := catalog.moved(count.marks, catalog.marks(session)):
        raise _Moved(f"changed while it was dumped: {report.some(moved)}")
    count.sequences = catalog.settled(stood, catalog.sequences(session))
    return snapshot.taken_at, count, written


_HINT = "These are the words of pg_dump or of the server; nothing was migrated."


_GONE = (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName)


def _hope_of(error: Exception) -> str:
    """Return `busy`, `passing`, `unknown` or `none`."""
    if isinstance(error, archive.ClientFailed):
        return error.hope
    gone = (*_GONE, ConnectionLost, _Moved)
    if isinstance(error, DatabaseBusy):
        return "busy"
    if isinstance(error, gone):
        return "passing"  # a table dropped between the list and its lock; a server restarted
    return "unknown"


def _lockers(session: Session) -> str:
    """Name who has or wants a table for itself; raises BackupInterrupted when our lock is gone."""
    try:
        rows = session.execute(_LOCKERS).fetchall()
    except psycopg.OperationalError as error:
        raise BackupInterrupted(
            "backup.interrupted",
            "the connection that holds the run's lock was lost during the backup",
            "Run again; nothing was migrated.",
        ) from error
    names = [f"{table} by pid {pid} ({name or 'unnamed'})" for table, pid, name in rows]
    return f"; locked: {', '.join(names)}" if names else ""


# the snapshot


@dataclass(frozen=True, slots=True)
class Table:
    """A table, or rather what of it pg_dump dumps."""

    schema: str
    table: str
    key: archive.Key
    has_rows: bool  # a partitioned table has none of its own
    condition: str  # of an extension's configuration table: which rows are the user's
    root: archive.Key | None = None  # of a partition

    @property
    def name(self) -> str:
        """Return `schema.table`; a name that holds a dot or a quote is quoted, to stay one name."""
        parts = (self.schema, self.table)
        return ".".join(sql.quoted(part) if set(part) & {".", '"'} else part for part in parts)

    @property
    def plain(self) -> str:
        """The name as pg_dump says it while it works."""
        return f"{self.schema}.{self.table}"

    @property
    def sql(self) -> str:
        """The name for a statement."""
        return f"ONLY {sql.quoted(self.schema)}.{sql.quoted(self.table)}"

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
def _snapshot(session: Session) -> Iterator[Snapshot]:
    """Yield an exported snapshot, held by a session of its own.

    ACCESS SHARE on every table comes first: a TRUNCATE in between would empty the dump.
    """
    with _second(session) as other:
        tables = require_readable(other)
        for left in reversed(range(LISTINGS)):
            other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            try:
                if tables:
                    names = ", ".join(table.sql for table in tables)
                    other.execute(f"LOCK TABLE {names} IN ACCESS SHARE MODE")
            except _GONE:  # dropped since it was listed
                if not left:
                    raise
            else:
                name, taken_at = other.execute(_EXPORT).fetchone() or ("", "")
                now = _tables(other)
                if set(now) <= set(tables):
                    break
            other.execute("ROLLBACK")  # or a table was made in between
            tables = require_readable(other)
        else:
            raise _Moved("tables are made and dropped faster than they can be locked")
        yield Snapshot(name, taken_at, [table for table in now if table.has_rows], other)
        other.execute("COMMIT")


class _Count:
    """Counts the rows of a snapshot, and looks at what else is in it, while pg_dump is at work.

    In a thread of its own, as the main one listens to pg_dump and to a request to stop; what goes
    wrong in it is raised there. Each count is in a savepoint that is rolled back: planning locks
    every index, and a server has room for only so many locks.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.rows: dict[Table, int] = {}
        self.plain: dict[str, int] = {}
        self.marks: catalog.Marks = {}
        self.objects: catalog.Objects = {}
        self.sequences: catalog.Sequences = {}
        self._tables = snapshot.tables
        self._connection = snapshot.session.connection
        # whoever has an index for himself (REINDEX) keeps nobody waiting but us
        self._patience_s = snapshot.session.config.lock_retry_s
        self._error: BaseException | None = None
        self._unwanted = False
        self._done = threading.Event()

    @property
    def witness(self) -> Witness:
        """What a copy has to show besides the rows; of sequences, those that were there."""
        stood = {n: at for n, at in self.sequences.items() if f"sequence {n}" in self.objects}
        return Witness(self.objects, stood)

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Count meanwhile; in the end it counts no more."""
        threading.Thread(target=self._run, daemon=True).start()
        try:
            yield self
        finally:
            self._unwanted = True
            until = time.monotonic() + archive.END_S
            while not self._done.wait(0.05) and time.monotonic() < until:
                with suppress(psycopg.Error):
                    self._connection.cancel_safe(timeout=archive.END_S)

    def check(self) -> None:
        """Raise what went wrong so far."""
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Wait until everything is counted."""
        with stop.allowed():
            self._done.wait()
        self.check()

    def _run(self) -> None:
        try:
            self._look()
        except BaseException as error:  # noqa: BLE001 -- raised in the main thread
            self._error = error
        finally:
            self._done.set()

    def _look(self) -> None:
        quiet = cast("Session", self._connection)  # a stop request is the main thread's
        self.marks = catalog.marks(quiet)
        self.objects = catalog.shapes(quiet)
        quiet.execute(f"SET LOCAL lock_timeout = {round(1000 * self._patience_s)}")
        # planning inlines what an index calls, and that may rely on the role's own path
        quiet.execute("SET LOCAL search_path TO DEFAULT")
        for table in self._tables:
            if self._unwanted:
                return
            self.rows[table] = self.plain[table.plain] = _count_alone(self._connection, table)


def _count_alone(connection: psycopg.Connection[Any], table: Table) -> int:
    """Count in one round trip, and keep no lock but the table's.

    A condition's operators are looked for as pg_dump does, not where others may have put some.
    """
    path = server.PATH if table.condition else "search_path TO DEFAULT"
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
        with server.beside(session) as other:
            yield other
    except NotReady as failure:
        raise BackupInterrupted(
            "backup.no_session",
            f"the server is up, but a second session could not be had: {failure}",
            "A backup needs three sessions at a time (ours, the snapshot's, pg_dump's): raise the "
            "CONNECTION LIMIT of the role or the database, or run again when fewer are connected.",
            sqlstate=failure.problem.sqlstate,
        ) from failure


def _tables(session: Session) -> list[Table]:
    rows = session.execute(_RELATIONS, [["r", "p"]]).fetchall()
    return [
        Table(
            row[0], row[1], (row[2], row[3]), row[4], row[5], (row[8], row[9]) if row[9] else None
        )
        for row in rows
    ]


def _counts(session: Session) -> dict[Table, int]:
    return {
        table: (session.execute(table.count).fetchone() or (0,))[0]
        for table in _tables(session)
        if table.has_rows
    }


def differing(copy: Session, wanted: Mapping[str, int], *, exactly: bool = False) -> list[str]:
    """Name the tables whose rows are not as many as wanted; `exactly`: and those that are new.

    Rows may lie in other partitions than they did (an enum's value has another hash in every
    database), but none may be lost on the way.
    """
    counts = _counts(copy)
    rows = {table.name: count for table, count in counts.items()}
    roots = {table.name: table.root for table in counts}
    short: dict[archive.Key, int] = {}
    for name, count in wanted.items():
        if root := roots.get(name):
            short[root] = short.get(root, 0) + rows[name] - count
    return [
        f"{name} has {rows.get(name, 'no')} rows, not {count}"
        for name, count in wanted.items()
        if rows.get(name) != count and ((root := roots.get(name)) is None or short[root] != 0)
    ] + [f"{name} is new" for name in rows if exactly and name not in wanted]


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
    rows = session.execute(_RELATIONS, [["r", "p", "S"]]).fetchall()
    # of one that was dropped a moment ago the privilege is NULL: it is in no dump
    hidden = [f"{sql.quoted(row[0])}.{sql.quoted(row[1])}" for row in rows if row[6] is False]
    objects = session.execute(_LARGE_OBJECTS).fetchall()
    hidden += [f"large object {found[0]}" for found in objects]
    if hidden:
        raise BackupFailed(
            "backup.not_readable",
            f"this role may not read {report.some(hidden)}",
            "GRANT USAGE on the schema and SELECT on the object (or the role pg_read_all_data, "
            "PostgreSQL 14 and later, but for large objects): a dump without it is no backup.",
            sqlstate="42501",
        )
    if filtered := [f"{sql.quoted(row[0])}.{sql.quoted(row[1])}" for row in rows if row[7]]:
        raise BackupFailed(
            "backup.row_security",
            f"row security hides rows of {report.some(filtered)} from this role",
            "Run as the tables' owner (without FORCE ROW LEVEL SECURITY) or as a role with "
            "BYPASSRLS: a dump without those rows is no backup.",
            sqlstate="42501",
        )
    return _tables(session)


# for people


def described(directory: Path) -> list[dict[str, Any]]:
    """Return what the manifests in a directory say, the oldest first; raises BackupFailed."""
    with store.usable(directory) as resolved:
        return [
            {
                "backup": item.name,
                "database": item.manifest.get("database"),
                "address": item.manifest.get("address"),
                "snapshot_at": item.manifest.get("snapshot_at"),
                "size_bytes": item.manifest.get("size_bytes"),
                "rows": sum(item.manifest.get("rows", {}).values()),
                "taken_for": (item.manifest.get("taken_for") or {}).get("command"),
                "verified": item.manifest.get("verified"),
            }
            for item in store.listing(resolved)
        ]
