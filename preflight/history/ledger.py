"""The two tables, and every SQL statement about them.

`migrations` is the present, one row a version; `journal` is append-only. Everyone may read what
`wait --schema` needs, never the texts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg

from preflight import __version__
from preflight.base import quoting
from preflight.base.errors import (
    HistoryConflict,
    Problem,
    TargetUnusable,
)
from preflight.history import fence, journal, repeats, tables
from preflight.history.plan import History, Record
from preflight.server import sessions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from preflight.files.migrations import Migration, Script
    from preflight.server.sessions import Session
_TABLES = """
CREATE TABLE {schema}.migrations (
  version bigint PRIMARY KEY,
  name pg_catalog.text NOT NULL,
  checksum pg_catalog.text NOT NULL,
  state pg_catalog.text NOT NULL CHECK (
   state OPERATOR(pg_catalog.=) ANY (ARRAY['running', 'done', 'failed']::pg_catalog.text[])),
  how pg_catalog.text NOT NULL CHECK ({how}),
  statements_done int NOT NULL DEFAULT 0,
  statements_started int NOT NULL DEFAULT 0,
  undoing pg_catalog.bool NOT NULL DEFAULT false,
  up_sql pg_catalog.text NOT NULL,
  rollback_sql pg_catalog.text,
  verify_sql pg_catalog.text,
  export_sql pg_catalog.text,
  breaking pg_catalog.bool NOT NULL DEFAULT false,
  applied_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
  duration_ms bigint,
  applied_by pg_catalog.text NOT NULL DEFAULT current_user,
  backup pg_catalog.text,
  tool_version pg_catalog.text NOT NULL,
  run_id pg_catalog.text NOT NULL
);
CREATE TABLE {schema}.journal (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
  event pg_catalog.text NOT NULL,
  version bigint NOT NULL,
  name pg_catalog.text NOT NULL,
  checksum pg_catalog.text,
  checksum_before pg_catalog.text,
  run_id pg_catalog.text NOT NULL,
  host pg_catalog.text NOT NULL,
  role pg_catalog.text NOT NULL DEFAULT current_user,
  duration_ms bigint,
  backup pg_catalog.text,
  sqlstate pg_catalog.text,
  error pg_catalog.text,
  tool_version pg_catalog.text NOT NULL
);
GRANT USAGE ON SCHEMA {schema} TO PUBLIC;
ALTER TABLE {schema}.migrations DISABLE ROW LEVEL SECURITY;
ALTER TABLE {schema}.journal DISABLE ROW LEVEL SECURITY;
GRANT SELECT (version, name, checksum, state, breaking) ON {schema}.migrations TO PUBLIC;
COMMENT ON TABLE {schema}.migrations IS
 'pg-preflight: what was applied to this database, and when';
""".replace("{how}", tables.HOW)


def read(session: Session, *, others: bool = True, until: float | None = None) -> History:
    """Return the history and learn the server's facts; raises HistoryConflict for a damaged one.

    `others`: asked is, too, whether another tool goes on with what was taken over from it. Who
    holds it is waited for `until` then, or as long as LOCK_RETRY_S; raises DatabaseBusy.
    """
    look = partial(session.again, partial(_read, session, others=others))
    return tables.unlocked_ours(session, look, until)


def _read(session: Session, *, others: bool) -> History:
    """Look whose the tables are and what they are, and in the same transaction read them.

    In one message where all is as it should be; what is not, the second look tells.
    """
    # a column that the table lacks is found one level further out, and is NULL
    query = f"""SELECT r.* FROM (SELECT NULL::text AS label) lacking,
 LATERAL (SELECT {", ".join(f"m.{name}" for name in tables.PUBLIC)}, label
 FROM ONLY {session.config.schema}.migrations m) r ORDER BY r.version"""  # noqa: S608 -- checked names
    with suppress(psycopg.DataError, psycopg.ProgrammingError), session.looking():
        message = f"{session.beginning}; {tables.look_strictly(session)}; {query}; COMMIT"
        found, rows = session.results(message)
        session.keep_facts(found[0])
        tables.require(session, found)
        return _seen(session, found, rows, others=others)
    with session.looking():
        found = session.rows(f"{session.beginning}; {tables.look(session)}")
        session.keep_facts(found[0])
        if not tables.present(found):
            return History(present=False)
        tables.require(session, found)
        try:
            rows = session.rows(f"{query}; COMMIT")
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
            raise tables.damaged(session, "a table was dropped this moment") from error
        except psycopg.errors.InsufficientPrivilege as error:
            schema, columns = session.config.schema, ", ".join(tables.open_columns(found))
            raise HistoryConflict(
                "history.not_readable",
                f"the history cannot be read: {error.diag.message_primary}",
                f"GRANT USAGE ON SCHEMA {schema} and SELECT ({columns}) ON {schema}.migrations to "
                "this role, or choose another PREFLIGHT_SCHEMA.",
                sqlstate=error.sqlstate,
            ) from error
    return _seen(session, found, rows, others=others)


def _seen(
    session: Session, found: tables.Rows, rows: Sequence[Mapping[str, Any]], *, others: bool
) -> History:
    """Return the history, and whether another tool goes on with what was taken over from it."""
    known = _recorded(session, rows)
    if found[0]["repeats"]:
        known = replace(known, repeated=repeats.read(session))
    if not (others and found[0]["taken_over"] and known.records) or session.copy:
        return known
    from preflight.history import remembered  # noqa: PLC0415 -- only where there was one

    return replace(known, moved=remembered.moved(session))


def _recorded(session: Session, rows: Sequence[Mapping[str, Any]]) -> History:
    kinds = (int, str, str, str, bool)
    records = {}
    for row in rows:
        values = [row[name] for name in (*tables.PUBLIC, "label")]
        if not all(map(isinstance, values, kinds)) or row["version"] in records:
            raise tables.damaged(session, "a row of migrations is incomplete, or there twice")
        records[row["version"]] = Record(*values)
    return History(records)


@contextmanager
def looking(session: Session) -> Iterator[None]:
    """Look in one transaction under our own search_path; nothing of it stays in the session."""
    with session.looking():
        session.execute(session.beginning)
        yield


def make_tables(session: Session) -> tuple[bool, list[str]]:
    """Make the tables where there are none; return whether, and whose rights were taken back."""
    schema = session.config.schema
    found = session.rows(tables.look(session))
    if tables.present(found):
        tables.require_ours(session, found)
        tables.complete(session, found)
        return False, tables.close(session)
    new = _require_makeable(session, found)
    if new:  # IF NOT EXISTS would ask for the right to make it even where it is
        tables.define(session, f"CREATE SCHEMA {schema}")
        tables.close_schema(session)
    tables.define(session, _TABLES.format(schema=schema))
    tables.keep(session)
    tables.close(session)
    return True, []


def _require_makeable(session: Session, found: tables.Rows) -> bool:
    """Make sure that the role may make the tables; return whether their schema is new, too."""
    tables.require_place(session, found)
    (in_database,) = session.execute(fence.RIGHT).fetchone() or (False,)
    schema, new = session.config.schema, found[0]["place"] is None
    if not (in_database if new else found[0]["may_create"]):
        message = f"this role may not create the schema {schema} for the history"
        hint = "As the database's owner: GRANT CREATE ON DATABASE … TO this role, or CREATE SCHEMA "
        hint += f"{schema} AUTHORIZATION this role."
        if not new:
            message = f"this role may not make the history's tables in the schema {schema}"
            hint = f"As the schema's owner: GRANT USAGE, CREATE ON SCHEMA {schema} TO this role."
        raise TargetUnusable("target.no_right", message, hint, sqlstate="42501")
    return new


def keep(session: Session, files: Sequence[Migration]) -> None:
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
    return [rollback.kept if rollback else None, *(each.text if each else "" for each in others)]


def unfinished(session: Session) -> list[journal.Row]:
    """Return the rows of files that stopped part-way."""
    return _rows(session, "m.state <> 'done'")


def row_of(session: Session, version: int) -> journal.Row | None:
    """Return a recorded migration, or None."""
    rows = _rows(session, f"m.version = {int(version)}")
    return rows[0] if rows else None


def writer(session: Session, version: int) -> str | None:
    """Return the id of the run that wrote a version's row, as far as there is one for us to see."""
    query = f"SELECT m.run_id FROM {session.config.schema}.migrations m WHERE m.version = {version}"  # noqa: S608 -- a checked name, and a number
    with suppress(psycopg.errors.InsufficientPrivilege):
        return next((each["run_id"] for each in session.ask(query)), None)
    return None


def _rows(session: Session, where: str) -> list[journal.Row]:
    # a column that the table lacks is found one level further out, and is NULL
    rows = session.execute(
        f"""SELECT r.* FROM (SELECT NULL::text AS verify_sql, NULL::text AS export_sql,
 NULL::text AS label) lacking,
 LATERAL (SELECT m.version, m.name, m.state, m.statements_done, m.statements_started, m.up_sql,
  m.rollback_sql, m.run_id, m.checksum, m.undoing, verify_sql, export_sql, label
  FROM {session.config.schema}.migrations m WHERE {where}) r ORDER BY r.version"""  # noqa: S608 -- a checked name, a constant or a number
    ).fetchall()
    return [journal.Row(*row) for row in rows]


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
    query, values = _insertion(session, migration, how=how, state=state, backup=backup)
    return session.execute(query, values).rowcount == 1


def _insertion(
    session: Session, migration: Migration, *, how: str, state: str, backup: str | None
) -> tuple[str, list[object]]:
    column, value = (", label", ", %s") if migration.label else ("", "")
    return (
        f"""INSERT INTO {session.config.schema}.migrations
 (version, name, checksum, state, how, up_sql, rollback_sql, verify_sql, export_sql, breaking,
 backup, tool_version, run_id{column})
 VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s{value})
 ON CONFLICT (version) DO NOTHING""",  # noqa: S608
        [
            migration.version,
            migration.name,
            migration.checksum,
            state,
            how,
            migration.up.kept,
            *_kept(migration),
            migration.up.breaking,
            backup,
            __version__,
            session.config.run_id,
            *([migration.label] if migration.label else []),
        ],
    )


def claiming(session: Session, migration: Migration, backup: str | None) -> str:
    """Return the statement that claims a version which was not recorded; a row says that it did.

    It says whether another tool's history was taken over. To be sent together with others.
    """
    query, values = _insertion(session, migration, how="applied", state="running", backup=backup)
    return quoting.filled(f"{query} RETURNING {_taken_over(session)}", values)


def _taken_over(session: Session) -> str:
    return f"pg_catalog.to_regclass('{session.config.schema}.takeovers') IS NOT NULL"


def take_over(session: Session, migration: Migration, row: journal.Row, backup: str | None) -> bool:
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
                migration.up.kept,
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


def claim(
    session: Session, migration: Migration, row: journal.Row | None, backup: str | None
) -> bool:
    """Claim a version from its start: one that was not recorded, or a row as it was planned."""
    if migration.repeat:
        return repeats.claim(session, migration, backup)
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


def copy_of(session: Session, version: int) -> str | None:
    """Return a version's whole row, to be put back."""
    table = f"{session.config.schema}.migrations"
    query = f"SELECT pg_catalog.row_to_json(m)::text FROM {table} m WHERE version = %s"  # noqa: S608
    row = session.execute(query, [version]).fetchone()
    return row[0] if row else None


def put_back(session: Session, version: int, kept: str | None) -> bool:
    """Put a version's row back as it was before this run claimed it, if nothing was done since.

    None: it was not recorded, or only as begun by a run of which nothing is left.
    """
    table = f"{session.config.schema}.migrations"
    deleted = session.execute(
        f"""DELETE FROM {table} WHERE version = %s AND run_id = %s
 AND statements_done = 0 AND statements_started = 0 AND (%s OR how = 'applied')""",  # noqa: S608 -- a checked name
        [version, session.config.run_id, kept is not None],
    )
    if deleted.rowcount != 1:
        return False
    if kept is None:
        return True
    session.execute(
        f"""INSERT INTO {table}
 SELECT r.* FROM pg_catalog.json_populate_record(NULL::{table}, %s::pg_catalog.json) r""",  # noqa: S608
        [kept],
    )
    return True


def give_up(session: Session, row: journal.Row) -> bool:
    """Delete a row as it was planned; False when it changed meanwhile."""
    deleted = session.execute(
        f"""DELETE FROM {session.config.schema}.migrations
 WHERE version = %s AND state = %s AND run_id = %s""",  # noqa: S608 -- a checked name
        [row.version, row.state, row.run_id],
    )
    return deleted.rowcount == 1


def begin_undo(
    session: Session, row: journal.Row, rollback: Script, *, done: int, started: int
) -> bool:
    """Mark a row whose non-transactional rollback begins; False when it changed meanwhile."""
    updated = session.execute(
        f"""UPDATE {session.config.schema}.migrations SET state = 'running', undoing = true,
 rollback_sql = %s, statements_done = %s, statements_started = %s, run_id = %s
 WHERE version = %s AND state = %s AND run_id = %s""",  # noqa: S608 -- a checked name
        [
            rollback.kept,
            done,
            started,
            session.config.run_id,
            row.version,
            row.state,
            row.run_id,
        ],
    )
    return updated.rowcount == 1


def adopt(
    session: Session,
    migration: Migration,
    *,
    by_name: bool = False,
    how: str = "adopted",
    was: Record | None = None,
) -> None:
    """Record a file that is in the database already, whatever was recorded of it before.

    Of one that was applied, when and how stays as it is, also where it `was` recorded under another
    number. One that a person named says nothing of the others, so first contact goes on.
    """
    with fence.recorded(session, migration, HistoryConflict):
        before = row_of(session, was.version if was else migration.version)
        if before is not None and before.state == "done":
            written = _settle(session, migration, before)
        else:
            if before is not None:
                give_up(session, before)
            written = record(session, migration, how=how)
        if not written:
            raise fence.unwritable(session)
        told = Problem(f"it was recorded as {was.name}") if was else None
        event = "vouched" if by_name else how
        journal.journal(session, event, migration, before=before, problem=told)


def _settle(session: Session, migration: Migration, row: journal.Row) -> bool:
    """Take a file for what was applied, as its row was read; False when it changed meanwhile."""
    texts = migration.label or row.label  # a converted file has a number in the place of one
    label, value = (", label = %s", [migration.label or None]) if texts else ("", [])
    updated = session.execute(
        f"""UPDATE {session.config.schema}.migrations SET version = %s, name = %s, checksum = %s,
 up_sql = %s, rollback_sql = %s, verify_sql = %s, export_sql = %s, breaking = %s,
 tool_version = %s, run_id = %s{label} WHERE version = %s AND state = %s AND run_id = %s""",  # noqa: S608 -- a checked name
        [
            migration.version,
            migration.name,
            migration.checksum,
            migration.up.kept,
            *_kept(migration),
            migration.up.breaking,
            __version__,
            session.config.run_id,
            *value,
            row.version,
            row.state,
            row.run_id,
        ],
    )
    return updated.rowcount == 1


def holds(session: Session, migration: Migration) -> bool:
    """Tell whether a file is recorded as done as it is, and its companions as well."""
    with fence.recorded(session, migration, HistoryConflict):
        row = session.execute(
            f"""SELECT EXISTS (SELECT FROM {session.config.schema}.migrations m
 WHERE m.version = %s AND m.state = 'done' AND m.name = %s AND m.checksum = %s
 AND m.rollback_sql IS NOT DISTINCT FROM %s::pg_catalog.text
 AND m.verify_sql IS NOT DISTINCT FROM %s::pg_catalog.text
 AND m.export_sql IS NOT DISTINCT FROM %s::pg_catalog.text)""",  # noqa: S608 -- a checked name
            [migration.version, migration.name, migration.checksum, *_kept(migration)],
        ).fetchone()
    return bool(row and row[0])


def require_writable(session: Session) -> None:
    """Make sure that this version can write the history there is; raises SchemaAhead."""
    with session.looking():
        found = session.rows(f"{session.beginning}; {tables.look(session)}")
    if tables.present(found):
        tables.require_known(found)


def require_rights(session: Session) -> None:
    """Make sure that the history can be made, or is ours to write; nothing is changed.

    Raises SchemaAhead, HistoryConflict, TargetUnusable.
    """
    with session.looking():
        found = session.rows(f"{session.beginning}; {tables.look(session)}")
        if tables.present(found):
            tables.require_known(found)
            tables.require_ours(session, found)
        else:
            _require_makeable(session, found)


def ensure(session: Session, *, labelled: bool = False) -> None:
    """Make the tables where they are missing; nothing is adopted. Raises DatabaseBusy."""

    def make() -> list[str]:
        with fence.made(session), sessions.transaction(session):
            _, closed = make_tables(session)
            if labelled:
                tables.labelled(session)
        return closed

    session.prepare()
    tables.tell_closed(session, tables.unlocked_ours(session, make, None))


def mark(
    session: Session, version: int, *, done: int, started: int, state: str = "running"
) -> None:
    """Record how far a non-transactional file is, in counts of statements.

    Call at the end of a transaction: until its COMMIT the session is ours again, whatever role and
    search_path the file has set.
    """
    who = ["SET LOCAL SESSION AUTHORIZATION DEFAULT", "SET LOCAL role TO DEFAULT"]
    cursor = session.execute(
        f"""{"; ".join([*who, *session.role("SET LOCAL")])};
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
    began: float,
    count: int,
    *,
    backup: str | None,
    before: journal.Row | None = None,
) -> None:
    """Write the end mark and the journal's success row, in the caller's transaction.

    `began` is a reading of the monotonic clock, in seconds; `count` is of the statements that ran.
    """
    duration_ms = round(1000 * (time.monotonic() - began))
    if migration.repeat:
        marked = repeats.finish(session, migration, duration_ms=duration_ms, backup=backup)
        _require_one(session, marked)
        follow(session, migration.up)
        return
    updated = session.execute(*_end_mark(session, migration, duration_ms, count)).fetchall()
    finished(session, migration, [there for (there,) in updated])
    event = "forced" if before else "applied"
    journal.journal(
        session, event, migration, duration_ms=duration_ms, backup=backup, before=before
    )


def _end_mark(
    session: Session, migration: Migration, duration_ms: int, count: int
) -> tuple[str, list[object]]:
    schema = session.config.schema
    return (
        f"""UPDATE {schema}.migrations SET state = 'done', duration_ms = %s,
 statements_done = %s, statements_started = %s, applied_at = pg_catalog.clock_timestamp()
 WHERE version = %s AND run_id = %s
 RETURNING {_taken_over(session)}""",  # noqa: S608 -- a checked name
        [duration_ms, count, count, migration.version, session.config.run_id],
    )


def finishing(
    session: Session, migration: Migration, began: float, count: int, backup: str | None
) -> str:
    """Return what `finish` sends for a version that was not recorded before.

    To be sent together with others; `finished` is to be told the rows of the one before the last.
    """
    duration_ms = round(1000 * (time.monotonic() - began))
    mark = quoting.filled(*_end_mark(session, migration, duration_ms, count))
    row = journal.appended(session, "applied", migration, duration_ms=duration_ms, backup=backup)
    return f"{mark}; {quoting.filled(*row)}"


def finished(session: Session, migration: Migration, there: Sequence[bool]) -> None:
    """Make sure that the end mark was set; raises HistoryConflict.

    It says whether another tool's history was taken over, once for each row that it found.
    """
    _require_one(session, len(there))
    follow(session, migration.up, there=there[0])


def follow(session: Session, script: Script, *, there: bool | None = None) -> None:
    """Keep what another tool's history says now that a file of ours may have written to it.

    `there`: whether one was taken over, where that was asked on the way.
    """
    if tables.there(session, "takeovers") if there is None else there:
        from preflight.history import remembered  # noqa: PLC0415 -- only where there was one

        remembered.follow(session, script.text)


def require_unmoved(session: Session, *, there: bool | None = None) -> None:
    """Make sure that another tool, whose history was taken over, has not gone on; PlanChanged.

    Call in the transaction of a file that has claimed its row, as `follow`. A restored copy is
    older, and nobody else is there.
    """
    if session.copy:
        return
    if tables.there(session, "takeovers") if there is None else there:
        from preflight.history import remembered  # noqa: PLC0415 -- only where there was one

        remembered.require_unmoved(session)


def _require_one(session: Session, count: int) -> None:
    if count != 1:
        raise tables.damaged(session, "the row of the running migration is gone")


@dataclass(frozen=True, slots=True)
class Listed:
    """A row for people; None is also what this role may not read."""

    version: int
    name: str
    checksum: str
    state: str
    breaking: bool
    how: str | None = None
    applied_at: datetime | None = None  # in UTC
    duration_ms: int | None = None
    applied_by: str | None = None
    backup: str | None = None
    statements_done: int | None = None


def listing(session: Session) -> list[Listed]:
    """Return every row, all of it that this role may read."""
    schema = session.config.schema
    try:
        rows = session.ask(
            f"""SELECT m.version, m.name, m.checksum, m.state, m.breaking, m.how,
 EXTRACT(epoch FROM m.applied_at)::pg_catalog.float8 AS applied_at,
 m.duration_ms, m.applied_by, m.backup, m.statements_done
 FROM {schema}.migrations m ORDER BY m.version"""  # noqa: S608 -- a checked name
        )
    except psycopg.errors.InsufficientPrivilege:
        rows = session.ask(
            f"""SELECT m.version, m.name, m.checksum, m.state, m.breaking
 FROM {schema}.migrations m ORDER BY m.version"""  # noqa: S608 -- a checked name
        )
        return [Listed(**row) for row in rows]
    for row in rows:  # as a number, because a role's DateStyle may be one that nobody can parse
        try:
            row["applied_at"] = datetime.fromtimestamp(row["applied_at"], UTC)
        except (TypeError, ValueError, OverflowError, OSError) as error:  # infinity, BC, after 9999
            raise tables.damaged(
                session, f"applied_at of version {row['version']} is no time of this era"
            ) from error
    return [Listed(**row) for row in rows]
