"""No write to the history but of the run that holds the lock."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import psycopg
import structlog

from preflight.base import quoting, stop
from preflight.base.errors import (
    Failure,
    HistoryConflict,
    LockBusy,
    PlanChanged,
    TargetUnusable,
)
from preflight.history import tables
from preflight.server import lock, sessions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from preflight.files.migrations import Migration
    from preflight.server.sessions import Session
RIGHT = """
SELECT pg_catalog.has_database_privilege(pg_catalog.current_database()::text, 'CREATE')
"""


def unwritable(session: Session) -> HistoryConflict:
    """Return the failure for a history that takes no new rows, without saying why."""
    return tables.damaged(
        session, "rows of the history cannot be written (does a trigger or a rule drop them?)"
    )


@contextmanager
def recorded(
    session: Session, migration: Migration, outcome: Callable[..., Failure]
) -> Iterator[None]:
    """Turn what keeps us from recording a migration into a failure of that migration."""
    try:
        yield
    except (psycopg.Error, HistoryConflict) as error:
        sqlstate = getattr(error, "sqlstate", None)
        if session.lost or (isinstance(error, psycopg.Error) and sessions.passing(error)):
            raise
        if session.locked and isinstance(error, HistoryConflict):
            sessions.roll_back(session)
            lock.require(session)  # else it is another run's, which has taken the row, too
        message = error.diag.message_primary if isinstance(error, psycopg.Error) else None
        raise outcome(
            "migration.not_recorded",
            f"{migration.name} cannot be recorded: {message or error}",
            f"Does the file drop or change schema {session.config.schema}, make its transaction "
            "read only, or hold characters that the database's encoding lacks?",
            **migration.named,
            sqlstate=sqlstate,
        ) from error


def fence(
    session: Session,
    claim: Callable[[], bool],
    *,
    begins: bool = False,
    begin: str = sessions.BEGIN,
) -> None:
    """Claim the history row; call before anything else in a transaction, which may begin anew.

    A claim that `begins` has a BEGIN of its own, another one begins as `begin` says. Raises
    PlanChanged when the row is not as planned, LockBusy when another run still holds it at
    LOCK_WAIT_S.
    """
    began = time.monotonic()
    for again in stop.looks(0.1, 0.4):
        try:
            if again and not begins:
                session.execute(begin)
            claimed = claim()
        except psycopg.errors.LockNotAvailable as error:
            session.execute("ROLLBACK")
            found, waited = _writer(session), time.monotonic() - began
            if waited >= session.config.lock_wait_s:
                raise _fenced(found, waited, error) from error
            if not again:
                structlog.get_logger().info(
                    "lock.busy", waited_s=round(waited, 1), **lock.told(found)
                )
        else:
            break
    if not claimed:
        raise PlanChanged


def _writer(session: Session) -> lock.Holder | None:
    """Return which other session writes the history."""
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
    return lock.Holder.seen(*row) if row else None


def _fenced(found: lock.Holder | None, waited: float, error: psycopg.Error) -> LockBusy:
    who = f": pid {found.pid}, {found.name!r}" if found else ""
    return LockBusy(
        "lock.fence",
        f"another run is still in the middle of this migration after {waited:.0f} s{who}",
        lock.advice(found),
        sqlstate=error.sqlstate,
    )


@contextmanager
def made(session: Session) -> Iterator[None]:
    """Name what keeps us from making or reading our tables: an event trigger, a lost right."""
    try:
        yield
    except psycopg.Error as error:
        if session.lost or sessions.passing(error):
            raise
        raise TargetUnusable(
            "target.no_history",
            f"the history in schema {session.config.schema} cannot be made or read: "
            f"{error.diag.message_primary or error}",
            _lacked(session)
            or "Does this role have the rights, or does an event trigger of the database object? "
            "It runs as this role, under its search_path.",
            sqlstate=error.sqlstate,
        ) from error


_MAY_NOT_MAKE = """
SELECT current_user::text FROM pg_catalog.pg_namespace n WHERE n.nspname = %s::name
 AND NOT pg_catalog.has_schema_privilege(n.oid, 'CREATE')
"""


def _lacked(session: Session) -> str | None:
    """Say how this role gets the right to make tables in our schema, where it lacks that.

    Who vouches for a history takes the schema from who made it, and that right with it.
    """
    schema = session.config.schema
    with suppress(psycopg.Error):
        if row := session.execute(_MAY_NOT_MAKE, [schema]).fetchone():
            return f"GRANT CREATE ON SCHEMA {schema} TO {quoting.name(row[0])}; then run again."
    return None
