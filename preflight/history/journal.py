"""The journal: what was tried, when and by whom, and how it ended."""

from __future__ import annotations

import codecs
import json
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import psycopg

from preflight import __version__
from preflight.base import plain
from preflight.base.errors import (
    HistoryConflict,
    Problem,
)
from preflight.history import tables
from preflight.server import sessions

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from preflight.files.migrations import Migration
    from preflight.history.plan import Record
    from preflight.server.sessions import Session

_NO_CHANGES = ("failed", "rehearsing", "rehearsed", "pointed", "running")
# which session of all that ever were, whatever the time zone
_WHICH = """pg_catalog.format('%%s %%s', a.pid,
 (EXTRACT(epoch FROM a.backend_start) * 1000000)::int8)"""


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
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """The journal's last row about a rehearsal: `rehearsing`, or `rehearsed` when it was over."""

    event: str
    life: str  # of the server, when it began
    sqlstate: str | None
    run_id: str
    at: str  # in UTC


class Said(TypedDict, total=False):
    """What a row may say besides; `before` is the row that was replaced."""

    duration_ms: int | None
    backup: str | None
    problem: Problem | None
    before: Row | None


def journal(
    session: Session, event: str, migration: Migration | Record, **said: Unpack[Said]
) -> None:
    """Append what happened."""
    session.execute(*appended(session, event, migration, **said))


def appended(
    session: Session, event: str, migration: Migration | Record, **said: Unpack[Said]
) -> tuple[str, list[object]]:
    """Return the statement that appends what happened, and its parameters."""
    before, problem = said.get("before"), said.get("problem")
    return (
        f"""INSERT INTO {session.config.schema}.journal (event, version, name, checksum,
 checksum_before, run_id, host, duration_ms, backup, sqlstate, error, tool_version)
 VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)""",  # noqa: S608 -- a checked name
        [
            event,
            migration.version,
            writable(session, migration.name),
            migration.checksum,
            before.checksum if before else None,
            session.config.run_id,
            plain.host(),
            said.get("duration_ms"),
            said.get("backup"),
            problem.sqlstate if problem else None,
            writable(session, problem.message) if problem else None,
            __version__,
        ],
    )


def writable(session: Session, text: str) -> str:
    """Return a text as its database can hold it: what it cannot is an escape there."""
    coding = session.connection.info.parameter_status("server_encoding") or "ascii"
    try:
        codecs.lookup(coding)
    except LookupError:
        coding = "ascii"
    return text.replace("\0", r"\x00").encode(coding, "backslashreplace").decode(coding)


def _ours(session: Session) -> bool:
    """Tell whether the tables are ours to write: a backup is taken whatever they are like."""
    return _as_required(session, tables.require_ours)


def _readable(session: Session) -> bool:
    """Tell whether the tables are there and may be believed by who only reads them."""
    return _as_required(session, tables.require)


def _as_required(session: Session, require: Callable[[Session, tables.Rows], None]) -> bool:
    found = session.rows(tables.look(session))
    try:
        if tables.present(found):
            require(session, found)
    except HistoryConflict:
        return False
    return tables.present(found)


def last_change(session: Session) -> str | None:
    """Name the last change that came through, of this database and history alone.

    None where there is no journal for us to see.
    """
    if not _ours(session):
        return None
    with suppress(psycopg.errors.InsufficientPrivilege):
        row = session.execute(
            f"""SELECT d.oid, max(j.id) FROM pg_catalog.pg_database d
 LEFT JOIN {session.config.schema}.journal j ON j.event <> ALL (%s::text[])
 WHERE d.datname = pg_catalog.current_database() GROUP BY d.oid""",  # noqa: S608 -- a checked name
            [list(_NO_CHANGES)],
        ).fetchone()
        return f"{row[0]}.{session.config.schema}.{row[1] or 0}" if row else None
    return None


def took_back(session: Session, version: int) -> bool:
    """Tell whether this run has recorded that it took a version back."""
    row = session.execute(
        f"""SELECT EXISTS (SELECT FROM {session.config.schema}.journal j
 WHERE j.event = 'rolled_back' AND j.version = %s AND j.run_id = %s)""",  # noqa: S608 -- a checked name
        [version, session.config.run_id],
    ).fetchone()
    return bool(row and row[0])


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
    version: int,
    *,
    place: str,
    life: str,
    backup: str,
    sqlstate: str | None = None,
) -> bool:
    """Append that a rehearsal begins or is over; False where there is no journal."""
    there = _ours(session)
    if there:
        with sessions.locally(session):
            session.execute(
                f"""INSERT INTO {session.config.schema}.journal (event, version, name, checksum,
 checksum_before, run_id, host, backup, sqlstate, tool_version)
 VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)""",  # noqa: S608 -- a checked name
                [
                    event,
                    version,
                    name,
                    life,
                    place,
                    session.config.run_id,
                    plain.host(),
                    backup,
                    sqlstate,
                    __version__,
                ],
            )
    return there


def note_point(
    session: Session, name: str, version: int, point: str, said: Mapping[str, Any]
) -> bool:
    """Append how to come back to a point that no file of ours holds; False without a journal."""
    there = _ours(session)
    if there:
        with sessions.transaction(session):
            session.execute(
                f"""INSERT INTO {session.config.schema}.journal (event, version, name,
 checksum_before, run_id, host, backup, tool_version)
 VALUES ('pointed', %s, %s, %s, %s, %s, %s, %s)""",  # noqa: S608 -- a checked name
                [
                    version,
                    name,
                    json.dumps(said),
                    session.config.run_id,
                    plain.host(),
                    point,
                    __version__,
                ],
            )
    return there


def newest_point(session: Session) -> tuple[str, str] | None:
    """Return the name of the newest point that is noted, and when that was, in UTC; else None.

    Raises psycopg.Error, where this role may not read it.
    """
    if not _readable(session):
        return None
    row = session.execute(
        f"""SELECT j.backup, pg_catalog.to_char(pg_catalog.timezone('UTC', j.at),
  'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
 FROM {session.config.schema}.journal j
 WHERE j.event = 'pointed' AND j.backup IS NOT NULL ORDER BY j.id DESC LIMIT 1""",  # noqa: S608 -- a checked name
        [],
    ).fetchone()
    return (row[0], row[1]) if row else None


def point(session: Session, name: str) -> str | None:
    """Return what was noted of a point, as JSON; None where nothing is known of it."""
    if not _readable(session):
        return None
    row = session.execute(
        f"""SELECT j.checksum_before FROM {session.config.schema}.journal j
 WHERE j.event = 'pointed' AND j.backup = %s::text ORDER BY j.id DESC LIMIT 1""",  # noqa: S608 -- a checked name
        [name],
    ).fetchone()
    return row[0] if row else None


def note_running(
    session: Session, name: str, checksum: str, pids: Collection[int], ports: Collection[int]
) -> list[int]:
    """Append which sessions a wrapped command has; return the number of the transaction.

    By their processes, and the ports that they come from. None where they are gone already.
    """
    with sessions.locally(session):
        rows = session.execute(
            f"""INSERT INTO {session.config.schema}.journal (event, version, name, checksum,
 checksum_before, run_id, host, tool_version)
 SELECT 'running', 0, %s, %s, pg_catalog.string_agg({_WHICH}, ', '), %s, %s, %s
 FROM pg_catalog.pg_stat_activity a
 WHERE a.pid = ANY (%s::int4[]) AND a.client_port = ANY (%s::int4[])
 HAVING pg_catalog.count(a.backend_start) > 0
 RETURNING pg_catalog.pg_current_xact_id()::text::int8""",  # noqa: S608 -- a checked name
            [
                writable(session, name),
                checksum,
                session.config.run_id,
                plain.host(),
                __version__,
                list(pids),
                list(ports),
            ],
        ).fetchall()
    return [number for (number,) in rows]


def running(session: Session) -> list[tuple[int, str | None, str | None, float | None, str]]:
    """Return the sessions of wrapped commands that are at work, and whose run has not ended well.

    Their process, name, address, age in seconds and state. One that is idle waits for nobody any
    more, and one whose transaction has failed as a whole, and so holds no relation, changes
    nothing: behind a savepoint the rest of it may yet be committed.
    """
    if not _ours(session):
        return []
    return session.execute(
        f"""SELECT a.pid, a.application_name, a.client_addr::text,
 EXTRACT(epoch FROM pg_catalog.clock_timestamp() - a.backend_start)::float8, a.state
 FROM pg_catalog.pg_stat_activity a
 WHERE a.datname = pg_catalog.current_database()
 AND a.state <> 'idle'
 AND (a.state <> 'idle in transaction (aborted)' OR EXISTS (SELECT FROM pg_catalog.pg_locks l
  WHERE l.pid = a.pid AND l.locktype = 'relation'))
 AND {_WHICH} IN (
  SELECT pg_catalog.unnest(pg_catalog.string_to_array(j.checksum_before, ', '))
  FROM {session.config.schema}.journal j WHERE j.event = 'running' AND NOT EXISTS (
   SELECT FROM {session.config.schema}.journal w
   WHERE w.event = 'wrapped' AND w.run_id = j.run_id))
 ORDER BY a.backend_start""",  # noqa: S608 -- a checked name
        [],
    ).fetchall()
