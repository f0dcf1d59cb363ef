"""The two tables, and every SQL statement about them.

`migrations` is the present, one row a version; `journal` is append-only. Everyone may read what
`wait --schema` needs, never the texts.
"""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import structlog

from preflight import __version__, lasting, sql, stop, tables, verify
from preflight.errors import (
    Failure,
    HistoryConflict,
    LockBusy,
    NeedsRepair,
    PlanChanged,
    Problem,
    TargetUnusable,
    VerifyFailed,
)
from preflight.plan import History, Record
from preflight.server import LOOK, PASSING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from preflight.migrations import Migration, Script
    from preflight.server import Session

_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
_TABLES = """
CREATE TABLE {schema}.migrations (
  version bigint PRIMARY KEY,
  name text NOT NULL,
  checksum text NOT NULL,
  state text NOT NULL CHECK (state IN ('running', 'done', 'failed')),
  how text NOT NULL CHECK (how IN ('applied', 'adopted', 'forced')),
  statements_done int NOT NULL DEFAULT 0,
  statements_started int NOT NULL DEFAULT 0,
  undoing bool NOT NULL DEFAULT false,
  up_sql text NOT NULL,
  rollback_sql text,
  verify_sql text,
  export_sql text,
  breaking bool NOT NULL DEFAULT false,
  applied_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
  duration_ms bigint,
  applied_by text NOT NULL DEFAULT current_user,
  backup text,
  tool_version text NOT NULL,
  run_id text NOT NULL
);
CREATE TABLE {schema}.journal (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
  event text NOT NULL,
  version bigint NOT NULL,
  name text NOT NULL,
  checksum text,
  checksum_before text,
  run_id text NOT NULL,
  host text NOT NULL,
  role text NOT NULL DEFAULT current_user,
  duration_ms bigint,
  backup text,
  sqlstate text,
  error text,
  tool_version text NOT NULL
);
GRANT USAGE ON SCHEMA {schema} TO PUBLIC;
ALTER TABLE {schema}.migrations DISABLE ROW LEVEL SECURITY;
ALTER TABLE {schema}.journal DISABLE ROW LEVEL SECURITY;
GRANT SELECT (version, name, checksum, state, breaking) ON {schema}.migrations TO PUBLIC;
COMMENT ON TABLE {schema}.migrations IS
 'pg-preflight: what was applied to this database, and when';
"""
_RIGHT = """
SELECT pg_catalog.has_database_privilege(pg_catalog.current_database()::text, 'CREATE')
"""
# nothing of anybody's: no relation, type or function but the system's, extensions' and our tables
_EMPTY = """
WITH theirs AS (
 SELECT n.oid FROM pg_catalog.pg_namespace n
 WHERE n.nspname NOT IN ('pg_catalog', 'information_schema')
  AND n.nspname::text NOT LIKE 'pg\\_%%'
), members AS (
 -- of an extension, or made along with something else: a row's type, an array, a multirange
 SELECT d.classid, d.objid FROM pg_catalog.pg_depend d WHERE d.deptype IN ('e', 'i')
 UNION ALL
 SELECT 'pg_catalog.pg_class'::regclass, c.oid
 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = %s::name AND c.relname IN ('migrations', 'journal') AND c.relkind = 'r'
  AND pg_catalog.pg_has_role(c.relowner, 'USAGE')
  AND (SELECT pg_catalog.count(*) FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid
   AND a.attname::text = ANY (ARRAY['version', 'name', 'checksum', 'run_id', 'tool_version'])) = 5
)
SELECT NOT EXISTS (
 SELECT FROM pg_catalog.pg_class c JOIN theirs ON theirs.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f', 'c') AND NOT EXISTS (
  SELECT FROM members m WHERE m.classid = 'pg_catalog.pg_class'::regclass AND m.objid = c.oid)
) AND NOT EXISTS (
 SELECT FROM pg_catalog.pg_type t JOIN theirs ON theirs.oid = t.typnamespace
 WHERE NOT EXISTS (
  SELECT FROM members m WHERE m.classid = 'pg_catalog.pg_type'::regclass AND m.objid = t.oid)
) AND NOT EXISTS (
 SELECT FROM pg_catalog.pg_proc p JOIN theirs ON theirs.oid = p.pronamespace
 WHERE NOT EXISTS (
  SELECT FROM members m WHERE m.classid = 'pg_catalog.pg_proc'::regclass AND m.objid = p.oid)
)
"""


@dataclass(frozen=True, slots=True)
class Row:
    """What only a run under the lock needs to know of a recorded migration."""

    version: int
    name: str
    state: str
    statements_done: int
    statements_started: int
    up_sql: str
    rollback_sql: str | None
    run_id: str
    checksum: str
    undoing: bool = False  # the two counts are of the rollback file's statements
    verify_sql: str | None = None  # None: not known, recorded by an older version; "": none
    export_sql: str | None = None


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """The journal's last row about a rehearsal: `rehearsing`, or `rehearsed` when it was over."""

    event: str
    life: str  # of the server, when it began
    sqlstate: str | None
    run_id: str
    at: str  # in UTC


def read(session: Session) -> History:
    """Return the history and learn the server's facts; raises HistoryConflict for a damaged one."""
    return session.again(partial(_read, session))


def _read(session: Session) -> History:
    """Look whose the tables are and what they are, and in the same transaction read them.

    In one message where all is as it should be; what is not, the second look tells.
    """
    query = f"""SELECT {", ".join(f"m.{name}" for name in tables.PUBLIC)}
 FROM ONLY {session.config.schema}.migrations m ORDER BY m.version"""  # noqa: S608 -- checked names
    with suppress(psycopg.DataError, psycopg.ProgrammingError), session.looking():
        message = f"{LOOK}; {tables.look_strictly(session)}; {query}; COMMIT"
        found, rows = session.results(message)
        session.learn(found[0])
        tables.require(session, found)
        return _recorded(session, rows)
    with session.looking():
        found = session.rows(f"{LOOK}; {tables.look(session)}")
        session.learn(found[0])
        if not tables.present(found):
            return History(present=False)
        tables.require(session, found)
        try:
            rows = session.rows(f"{query}; COMMIT")
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
            raise tables.damaged(session, "a table was dropped this moment") from error
        except psycopg.errors.InsufficientPrivilege as error:
            raise HistoryConflict(
                "history.not_readable",
                f"the history cannot be read: {error.diag.message_primary}",
                f"GRANT USAGE ON SCHEMA {session.config.schema} and SELECT "
                f"({', '.join(tables.PUBLIC)}) ON {session.config.schema}.migrations to this role, "
                "or choose another PREFLIGHT_SCHEMA.",
                sqlstate=error.sqlstate,
            ) from error
    return _recorded(session, rows)


def _recorded(session: Session, rows: Sequence[Mapping[str, Any]]) -> History:
    kinds = (int, str, str, str, bool)
    records = {}
    for row in rows:
        values = [row[name] for name in tables.PUBLIC]
        if not all(map(isinstance, values, kinds)) or row["version"] in records:
            raise tables.damaged(session, "a row of migrations is incomplete, or there twice")
        records[row["version"]] = Record(*values)
    return History(records)


@contextmanager
def looking(session: Session) -> Iterator[None]:
    """Look in one transaction under our own search_path; nothing of it stays in the session."""
    with session.looking():
        session.execute(LOOK)
        yield


def unwritable(session: Session) -> HistoryConflict:
    """Return the failure for a history that takes no new rows, without saying why."""
    return tables.damaged(
        session, "rows of the history cannot be written (does a trigger or a rule drop them?)"
    )


@contextmanager
def transaction(session: Session) -> Iterator[None]:
    """Run statements in one transaction, rolled back when they raise."""
    session.execute(_BEGIN)
    try:
        yield
    except BaseException:
        roll_back(session)
        raise
    commit(session)


@contextmanager
def recorded(
    session: Session, migration: Migration, outcome: Callable[..., Failure]
) -> Iterator[None]:
    """Turn what keeps us from recording a migration into a failure of that migration."""
    try:
        yield
    except (psycopg.Error, HistoryConflict) as error:
        sqlstate = getattr(error, "sqlstate", None)
        if session.lost or sqlstate in PASSING:
            raise
        message = error.diag.message_primary if isinstance(error, psycopg.Error) else None
        raise outcome(
            "migration.not_recorded",
            f"{migration.name} cannot be recorded: {message or error}",
            f"Does the file drop or change schema {session.config.schema}, make its transaction "
            "read only, or hold characters that the database's encoding lacks?",
            migration=migration.name,
            version=migration.version,
            sqlstate=sqlstate,
        ) from error


def fence(session: Session, claim: Callable[[], bool]) -> None:
    """Claim the history row; call before anything else in a transaction, which may begin anew.

    Raises PlanChanged when the row is not as planned, LockBusy when another run still holds it at
    LOCK_WAIT_S.
    """
    began = time.monotonic()
    told = False
    while True:
        try:
            claimed = claim()
        except psycopg.errors.LockNotAvailable as error:
            session.execute("ROLLBACK")
            found = _writer(session)
            waited = time.monotonic() - began
            if waited >= session.config.lock_wait_s:
                raise _fenced(found, waited, error) from error
            if not told:
                told = True
                structlog.get_logger().info("lock.busy", waited_s=round(waited, 1), **found)
            stop.sleep(random.uniform(0.1, 0.4))  # noqa: S311 -- jitter, not a secret
            session.execute(_BEGIN)
        else:
            break
    if not claimed:
        raise PlanChanged


def _writer(session: Session) -> dict[str, object]:
    """Return which other session writes the history, as log data."""
    row = session.execute(
        """SELECT a.pid, a.application_name, a.client_addr::text
 FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a USING (pid)
 WHERE l.locktype = 'relation' AND l.granted AND l.mode <> 'AccessShareLock'
 AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d
  WHERE d.datname = pg_catalog.current_database())
 AND l.relation = %s::regclass AND a.pid <> pg_catalog.pg_backend_pid()
 ORDER BY a.xact_start LIMIT 1""",
        [f"{session.config.schema}.migrations"],
    ).fetchone()
    names = ("holder_pid", "holder", "holder_address")
    return {name: value for name, value in zip(names, row or (), strict=False) if value is not None}


def _fenced(found: dict[str, object], waited: float, error: psycopg.Error) -> LockBusy:
    who = f": pid {found['holder_pid']}, {found.get('holder')!r}" if found else ""
    return LockBusy(
        "lock.fence",
        f"another run is still in the middle of this migration after {waited:.0f} s{who}",
        "Let it finish and run again; if it hangs, "
        f"SELECT pg_terminate_backend({found.get('holder_pid', 'pid')}) ends it.",
        sqlstate=error.sqlstate,
    )


def commit(session: Session) -> None:
    """Commit; a stop request waits until the answer is there. Raises what the server says."""
    with session.ending() if session.ending else nullcontext(), stop.deferred():
        result = session.connection.execute("COMMIT")
    if result.statusmessage != "COMMIT":
        raise psycopg.errors.InFailedSqlTransaction("the transaction was rolled back at COMMIT")


def roll_back(session: Session) -> None:
    """Roll back if there is anything to roll back on."""
    if not session.lost:
        try:
            session.connection.execute("ROLLBACK")
        except psycopg.OperationalError:
            session.close()


def settle(session: Session, files: Sequence[Migration]) -> History:
    """Return the history as it stands under the lock, made or completed where it is missing.

    First contact: what is already there is adopted. Raises HistoryConflict, NeedsRepair,
    VerifyFailed (partial), TargetUnusable (no right to make the tables), FilesInvalid (a file that
    is to run could not be taken up).
    """
    session.grow_up()
    adopted: list[tuple[Migration, tuple[verify.Check, ...]]] = []
    with _made(session), transaction(session):
        new, closed = _make_tables(session)
        if new or untold(session):
            adopted = _first_contact(session, files)
        _keep(session, files)
    tables.tell_closed(session, closed)
    tell_adopted(adopted)
    history = read(session)
    for row in _unfinished(session):
        file = next((file for file in files if file.version == row.version), None)
        if file is not None:
            require_resumable(file, row)
    lasting.require([file.up for file in files if file.version not in history.records])
    return history


@contextmanager
def _made(session: Session) -> Iterator[None]:
    """Name what keeps us from making or reading our tables: an event trigger, a lost right."""
    try:
        yield
    except psycopg.Error as error:
        if session.lost or error.sqlstate in PASSING:
            raise
        raise TargetUnusable(
            "target.no_history",
            f"the history in schema {session.config.schema} cannot be made or read: "
            f"{error.diag.message_primary or error}",
            "Does this role have the rights, or does an event trigger of the database object?",
            sqlstate=error.sqlstate,
        ) from error


def _make_tables(session: Session) -> tuple[bool, list[str]]:
    """Make the tables where there are none; return whether, and whose rights were taken back."""
    schema = session.config.schema
    found = session.rows(tables.look(session))
    if tables.present(found):
        tables.require_ours(session, found)
        tables.complete(session, found)
        return False, tables.close(session)
    tables.require_place(session, found)
    (in_database,) = session.execute(_RIGHT).fetchone() or (False,)
    new = found[0]["place"] is None
    if not (in_database if new else found[0]["may_create"]):
        raise TargetUnusable(
            "target.no_right",
            f"this role may not create the schema {schema} for the history",
            "As the database's owner: GRANT CREATE ON DATABASE … TO this role, or CREATE SCHEMA "
            f"{schema} AUTHORIZATION this role.",
            sqlstate="42501",
        )
    if new:  # IF NOT EXISTS would ask for the right to make it even where it is
        session.execute(f"CREATE SCHEMA {schema}")
        tables.close_schema(session)
    session.execute(_TABLES.format(schema=schema))
    tables.keep(session)
    tables.close(session)
    return True, []


def _keep(session: Session, files: Sequence[Migration]) -> None:
    """Keep the companions of what an older version recorded without them, where it is the same."""
    table = f"{session.config.schema}.migrations"
    lacking = session.execute(
        f"SELECT version FROM {table} WHERE verify_sql IS NULL AND state = 'done'"  # noqa: S608
    ).fetchall()
    versions = {version for (version,) in lacking}
    for file in files:
        if file.version in versions:
            session.execute(
                f"""UPDATE {table} SET rollback_sql = coalesce(%s, rollback_sql), verify_sql = %s,
 export_sql = %s WHERE version = %s AND name = %s AND checksum = %s""",  # noqa: S608 -- a checked name
                [*_kept(file), file.version, file.name, file.checksum],
            )


def _kept(file: Migration) -> list[str | bytes | None]:
    """Return the companions as the history keeps them: an empty text says that there was none."""
    rollback, *others = (file.rollback, file.verify, file.export)
    return [rollback.text if rollback else None, *(each.text if each else "" for each in others)]


def untold(session: Session) -> bool:
    """Tell whether first contact is still to come: nothing ran, nothing but named files adopted."""
    schema = session.config.schema
    row = session.execute(
        f"""SELECT NOT EXISTS (SELECT FROM {schema}.migrations m WHERE m.how <> 'adopted')
 AND NOT EXISTS (SELECT FROM {schema}.journal j
  WHERE j.event NOT IN ('failed', 'vouched', 'rehearsing', 'rehearsed'))"""  # noqa: S608 -- a checked name
    ).fetchone()
    return bool(row and row[0])


def _first_contact(
    session: Session, files: Sequence[Migration]
) -> list[tuple[Migration, tuple[verify.Check, ...]]]:
    if is_empty(session):
        return []
    schema = session.config.schema
    rows = session.execute(f"SELECT version FROM {schema}.migrations").fetchall()  # noqa: S608
    known = {version for (version,) in rows}
    adopted = []
    for file, checks in adoptable(session, [file for file in files if file.version not in known]):
        adopt(session, file)
        adopted.append((file, checks))
    return adopted


def tell_adopted(adopted: Sequence[tuple[Migration, tuple[verify.Check, ...]]]) -> None:
    """Log what was adopted; call after the COMMIT, before which it is not true."""
    for file, checks in adopted:
        structlog.get_logger().info(
            "migration.adopted", migration=file.name, version=file.version, checks=len(checks)
        )


def adoptable(
    session: Session, unrecorded: Sequence[Migration]
) -> Iterator[tuple[Migration, tuple[verify.Check, ...]]]:
    """Yield the files that a database already holds, with their checks; reads only.

    Call inside a transaction. Raises VerifyFailed (partial, or there above one that is absent),
    HistoryConflict (cannot be told).
    """
    absent: Migration | None = None
    for file in unrecorded:
        checks = verify.run(session, file.verify) if file.verify else ()
        answer = verify.answer(checks)
        guess = absent is None and session.config.first_contact != "pending"
        if answer == "unknown" and guess:
            raise _cannot_tell(file)
        if answer == "untold" and guess:
            raise _untold(file, checks)
        if answer == "partial":
            raise _in_part(file, checks, absent)
        if answer != "present":
            absent = absent or file
        elif absent is not None and session.config.out_of_order == "fail":
            raise _above(file, absent)
        else:
            yield file, checks


def _cannot_tell(file: Migration) -> HistoryConflict:
    return HistoryConflict(
        "history.first_contact",
        f"the database has objects but nothing was ever run here, and {file.name} has no verify "
        "file that could tell whether it was applied",
        f"It is there: `adopt {file.version}`. It is not: set PREFLIGHT_FIRST_CONTACT=pending, and "
        "it will run.",
        migration=file.name,
        version=file.version,
    )


def _in_part(
    file: Migration, checks: Sequence[verify.Check], absent: Migration | None
) -> VerifyFailed:
    verify.report(file, checks)
    below = f"; and {absent.name} below it is absent" if absent else ""
    return VerifyFailed(
        "verify.partial",
        f"{file.name} is in the database only in part: {verify.described(checks)}{below}",
        "Complete it or take it back by hand, then run again; `verify` lists every check.",
        migration=file.name,
        version=file.version,
    )


def _untold(file: Migration, checks: Sequence[verify.Check]) -> VerifyFailed:
    verify.report(file, checks)
    return VerifyFailed(
        "verify.untold",
        f"whether {file.name} is in the database cannot be told: {verify.described(checks)}, "
        "and a query that fails says nothing of the other checks that it would have made",
        "Write one query a check, with to_regclass in place of FROM. Or say it yourself: it is "
        "not there, also not in part: PREFLIGHT_FIRST_CONTACT=pending.",
        migration=file.name,
        version=file.version,
    )


def _above(file: Migration, absent: Migration) -> VerifyFailed:
    return VerifyFailed(
        "verify.out_of_order",
        f"{file.name} is in the database, but {absent.name} below it is not",
        f"{absent.name} is there all the same: `adopt {absent.version}`. It is to run although "
        f"{file.name} is there: PREFLIGHT_OUT_OF_ORDER=allow. {file.name} is not there: mark the "
        "checks that hold without it with `false AS effect`.",
        migration=file.name,
        version=file.version,
    )


def is_empty(session: Session) -> bool:
    """Tell whether the database holds nothing of anybody's."""
    row = session.execute(_EMPTY, [session.config.schema]).fetchone()
    return bool(row and row[0])


def _unfinished(session: Session) -> list[Row]:
    return _rows(session, "m.state <> 'done'")


def row_of(session: Session, version: int) -> Row | None:
    """Return a recorded migration, or None."""
    rows = _rows(session, f"m.version = {int(version)}")
    return rows[0] if rows else None


def _rows(session: Session, where: str) -> list[Row]:
    # a column that the table lacks is found one level further out, and is NULL
    rows = session.execute(
        f"""SELECT r.* FROM (SELECT NULL::text AS verify_sql, NULL::text AS export_sql) lacking,
 LATERAL (SELECT m.version, m.name, m.state, m.statements_done, m.statements_started, m.up_sql,
  m.rollback_sql, m.run_id, m.checksum, m.undoing, verify_sql, export_sql
  FROM {session.config.schema}.migrations m WHERE {where}) r ORDER BY r.version"""  # noqa: S608 -- a checked name, a constant or a number
    ).fetchall()
    return [Row(*row) for row in rows]


def require_resumable(file: Migration, row: Row) -> None:
    """Make sure that a file which stopped part-way can go on; raises NeedsRepair."""
    if row.undoing:
        raise NeedsRepair(
            "migration.needs_repair",
            f"the rollback of {file.name} stopped after {row.statements_done} statements",
            f"Finish it: `rollback`. Or run the file again from its start: `force {file.version}`.",
            migration=file.name,
            version=file.version,
        )
    before = row.up_sql.encode()
    old = [_sent(statement, before) for statement in sql.statements(before)]
    new = [_sent(statement, file.up.text) for statement in file.up.statements()]
    begun = max(row.statements_done, row.statements_started)
    reason = None
    if not 0 <= row.statements_done <= begun <= len(old):
        reason = f"its marks ({row.statements_done}, {row.statements_started}) cannot be ours"
    elif file.up.transactional:
        reason = "the file runs in a transaction now"
    elif old[:begun] != new[:begun]:
        reason = f"the file's first {begun} statements changed since they ran"
    elif row.statements_started > row.statements_done and not repeatable(new[begun - 1][0]):
        reason = f"what statement {begun} did cannot be read back"
    elif gone := lasting.before(file.up, row.statements_done):
        reason = gone
    if reason:
        raise NeedsRepair(
            "migration.needs_repair",
            f"{file.name} stopped after {row.statements_done} of {len(old)} statements, and "
            f"{reason}",
            f"Look at the database. All of it is there: `adopt {file.version}`. Run it again from "
            f"its start: `force {file.version}`.",
            migration=file.name,
            version=file.version,
        )


def _sent(statement: sql.Statement, script: bytes) -> tuple[bytes, bytes]:
    """Return all that a statement sends: its text, and the rows of a COPY."""
    first, last = statement.data or (0, 0)
    return statement.text(script), script[first:last]


def repeatable(text: bytes) -> bool:
    """Tell whether a statement outside a transaction can be read back or simply run again."""
    if sql.words(text[:400], 1)[:1] in (["VACUUM"], ["REINDEX"], ["CLUSTER"]):
        return True
    node = sql.parsed(text)
    kind = node.WhichOneof("node") if node else None
    if sql.detached(text):
        return True
    return kind == "drop_stmt" or (kind == "index_stmt" and not unnamed_index(text))


def unnamed_index(text: bytes) -> bool:
    """Tell whether a statement makes an index that the server is to name."""
    node = sql.parsed(text)
    return (
        node is not None and node.WhichOneof("node") == "index_stmt" and not node.index_stmt.idxname
    )


def insert(session: Session, migration: Migration, backup: str | None, how: str) -> bool:
    """Claim a version that was not recorded; return False when another run was there."""
    return record(session, migration, how=how, state="running", backup=backup)


def record(
    session: Session,
    migration: Migration,
    *,
    how: str,
    state: str = "done",
    backup: str | None = None,
) -> bool:
    """Insert a version's row; return False when there is one."""
    return (
        session.execute(
            f"""INSERT INTO {session.config.schema}.migrations
 (version, name, checksum, state, how, up_sql, rollback_sql, verify_sql, export_sql, breaking,
 backup, tool_version, run_id)
 VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (version) DO NOTHING""",  # noqa: S608
            [
                migration.version,
                migration.name,
                migration.checksum,
                state,
                how,
                migration.up.text,
                *_kept(migration),
                migration.up.breaking,
                backup,
                __version__,
                session.config.run_id,
            ],
        ).rowcount
        == 1
    )


def take_over(session: Session, migration: Migration, row: Row, backup: str | None) -> bool:
    """Claim a row as it was planned, to go on with its file; False when it changed meanwhile."""
    return (
        session.execute(
            f"""UPDATE {session.config.schema}.migrations SET name = %s, checksum = %s,
 state = 'running', up_sql = %s, rollback_sql = %s, verify_sql = %s, export_sql = %s, breaking = %s,
 backup = %s, tool_version = %s, run_id = %s, applied_by = current_user, undoing = false
 WHERE version = %s AND state = %s AND run_id = %s""",  # noqa: S608 -- a checked name
            [
                migration.name,
                migration.checksum,
                migration.up.text,
                *_kept(migration),
                migration.up.breaking,
                backup,
                __version__,
                session.config.run_id,
                row.version,
                row.state,
                row.run_id,
            ],
        ).rowcount
        == 1
    )


def claim(session: Session, migration: Migration, row: Row | None, backup: str | None) -> bool:
    """Claim a version from its start: one that was not recorded, or a row as it was planned."""
    if row is None:
        return insert(session, migration, backup, "applied")
    if not take_over(session, migration, row, backup):
        return False
    session.execute(
        f"""UPDATE {session.config.schema}.migrations
 SET how = 'forced', statements_done = 0, statements_started = 0 WHERE version = %s""",  # noqa: S608
        [row.version],
    )
    return True


def give_up(session: Session, row: Row) -> bool:
    """Delete a row as it was planned; False when it changed meanwhile."""
    deleted = session.execute(
        f"""DELETE FROM {session.config.schema}.migrations
 WHERE version = %s AND state = %s AND run_id = %s""",  # noqa: S608 -- a checked name
        [row.version, row.state, row.run_id],
    )
    return deleted.rowcount == 1


def begin_undo(session: Session, row: Row, rollback: Script, *, done: int, started: int) -> bool:
    """Mark a row whose non-transactional rollback begins; False when it changed meanwhile."""
    updated = session.execute(
        f"""UPDATE {session.config.schema}.migrations SET state = 'running', undoing = true,
 rollback_sql = %s, statements_done = %s, statements_started = %s, run_id = %s
 WHERE version = %s AND state = %s AND run_id = %s""",  # noqa: S608 -- a checked name
        [
            rollback.text,
            done,
            started,
            session.config.run_id,
            row.version,
            row.state,
            row.run_id,
        ],
    )
    return updated.rowcount == 1


def adopt(session: Session, migration: Migration, *, by_name: bool = False) -> None:
    """Record a file that is in the database already, whatever was recorded of it before.

    One that a person named says nothing of the others, so first contact goes on.
    """
    with recorded(session, migration, HistoryConflict):
        before = row_of(session, migration.version)
        if before is not None:
            give_up(session, before)
        if not record(session, migration, how="adopted"):
            raise unwritable(session)
        journal(session, "vouched" if by_name else "adopted", migration, before=before)


def ensure(session: Session) -> None:
    """Make the tables where they are missing; nothing is adopted."""
    session.grow_up()
    with _made(session), transaction(session):
        _, closed = _make_tables(session)
    tables.tell_closed(session, closed)


def mark(
    session: Session, version: int, *, done: int, started: int, state: str = "running"
) -> None:
    """Record how far a non-transactional file is, in counts of statements.

    Call at the end of a transaction: until its COMMIT the session is ours again, whatever role and
    search_path the file has set.
    """
    cursor = session.execute(
        f"""SET LOCAL SESSION AUTHORIZATION DEFAULT; SET LOCAL role TO DEFAULT;
 SET LOCAL search_path = pg_catalog, pg_temp; UPDATE {session.config.schema}.migrations
 SET statements_done = {int(done)}, statements_started = {int(started)}, state = '{state}'
 WHERE version = {int(version)} AND run_id = '{session.config.run_id}'"""  # noqa: S608
    )
    while cursor.nextset():
        pass
    _require_one(session, cursor.rowcount)


def finish(  # noqa: PLR0913 -- one row
    session: Session,
    migration: Migration,
    *,
    duration_ms: int,
    statements: int,
    backup: str | None,
    before: Row | None = None,
) -> None:
    """Write the end mark and the journal's success row, in the caller's transaction."""
    updated = session.execute(
        f"""UPDATE {session.config.schema}.migrations SET state = 'done', duration_ms = %s,
 statements_done = %s, statements_started = %s, applied_at = pg_catalog.clock_timestamp()
 WHERE version = %s AND run_id = %s""",  # noqa: S608 -- a checked name
        [duration_ms, statements, statements, migration.version, session.config.run_id],
    )
    _require_one(session, updated.rowcount)
    event = "forced" if before else "applied"
    journal(session, event, migration, duration_ms=duration_ms, backup=backup, before=before)


def _require_one(session: Session, count: int) -> None:
    if count != 1:
        raise tables.damaged(session, "the row of the running migration is gone")


def journal(  # noqa: PLR0913 -- one row
    session: Session,
    event: str,
    migration: Migration,
    *,
    duration_ms: int | None = None,
    backup: str | None = None,
    problem: Problem | None = None,
    before: Row | None = None,
) -> None:
    """Append what happened; `before` is the row that it replaced."""
    session.execute(
        f"""INSERT INTO {session.config.schema}.journal (event, version, name, checksum,
 checksum_before, run_id, host, duration_ms, backup, sqlstate, error, tool_version)
 VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)""",  # noqa: S608 -- a checked name
        [
            event,
            migration.version,
            migration.name,
            migration.checksum,
            before.checksum if before else None,
            session.config.run_id,
            socket.gethostname(),
            duration_ms,
            backup,
            problem.sqlstate if problem else None,
            problem.message if problem else None,
            __version__,
        ],
    )


def _ours(session: Session) -> bool:
    """Tell whether the tables are ours to write: a backup is taken whatever they are like."""
    found = session.rows(tables.look(session))
    try:
        if tables.present(found):
            tables.require_ours(session, found)
    except HistoryConflict:
        return False
    return tables.present(found)


def rehearsed(session: Session, place: str) -> Rehearsed | None:
    """Return the last row about a rehearsal in a place; None where there is none for us to see."""
    if not _ours(session):
        return None
    row = session.execute(
        f"""SELECT j.event, coalesce(j.checksum, ''), j.sqlstate, j.run_id,
 pg_catalog.to_char(pg_catalog.timezone('UTC', j.at), 'YYYY-MM-DD HH24:MI')
 FROM {session.config.schema}.journal j WHERE j.event IN ('rehearsing', 'rehearsed')
 AND j.checksum_before = %s::text ORDER BY j.id DESC LIMIT 1""",  # noqa: S608 -- a checked name
        [place],
    ).fetchone()
    return Rehearsed(*row) if row else None


def note_rehearsal(  # noqa: PLR0913 -- one row
    session: Session,
    event: str,
    name: str,
    *,
    place: str,
    life: str,
    backup: str,
    sqlstate: str | None = None,
) -> bool:
    """Append that a rehearsal begins or is over; False where there is no journal."""
    there = _ours(session)
    if there:
        version = name.partition("_")[0]
        session.execute(
            f"""INSERT INTO {session.config.schema}.journal (event, version, name, checksum,
 checksum_before, run_id, host, backup, sqlstate, tool_version)
 VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)""",  # noqa: S608 -- a checked name
            [
                event,
                int(version) if version.isdecimal() else 0,
                name,
                life,
                place,
                session.config.run_id,
                socket.gethostname(),
                backup,
                sqlstate,
                __version__,
            ],
        )
    return there


def listing(session: Session) -> list[dict[str, Any]]:
    """Return every row for people: all that this role may read; `applied_at` is in UTC."""
    schema = session.config.schema
    try:
        rows = session.ask(
            f"""SELECT m.version, m.name, m.checksum, m.state, m.breaking, m.how,
 EXTRACT(epoch FROM m.applied_at)::pg_catalog.float8 AS applied_at,
 m.duration_ms, m.applied_by, m.backup, m.statements_done
 FROM {schema}.migrations m ORDER BY m.version"""  # noqa: S608 -- a checked name
        )
    except psycopg.errors.InsufficientPrivilege:
        return session.ask(
            f"""SELECT m.version, m.name, m.checksum, m.state, m.breaking
 FROM {schema}.migrations m ORDER BY m.version"""  # noqa: S608 -- a checked name
        )
    for row in rows:  # as a number, because a role's DateStyle may be one that nobody can parse
        try:
            row["applied_at"] = datetime.fromtimestamp(row["applied_at"], UTC)
        except (TypeError, ValueError, OverflowError, OSError) as error:  # infinity, BC, after 9999
            raise tables.damaged(
                session, f"applied_at of version {row['version']} is no time of this era"
            ) from error
    return rows
