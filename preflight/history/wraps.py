"""The history of wrapped commands: the key of what has run, and when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg

from preflight import __version__
from preflight.base import plain
from preflight.base.errors import HistoryConflict
from preflight.history import fence, ledger, tables
from preflight.history.journal import writable
from preflight.server import sessions
from preflight.server.sessions import LOOK

if TYPE_CHECKING:
    from preflight.server.sessions import Session

_TABLE = """
CREATE TABLE {schema}.wraps (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  key pg_catalog.text NOT NULL,
  command pg_catalog.text NOT NULL,
  watched pg_catalog.text NOT NULL,
  at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
  duration_ms bigint,
  backup pg_catalog.text,
  run_id pg_catalog.text NOT NULL,
  tool_version pg_catalog.text NOT NULL
);
ALTER TABLE {schema}.wraps DISABLE ROW LEVEL SECURITY;
GRANT SELECT (id, key) ON {schema}.wraps TO PUBLIC;
COMMENT ON TABLE {schema}.wraps IS 'pg-preflight: which wrapped commands have run, and when'
"""
_LAST = "SELECT w.key FROM ONLY {schema}.wraps w ORDER BY w.id DESC LIMIT 1"


def last(session: Session, until: float | None = None) -> str | None:
    """Return the key of the last success, and learn the server's facts; None where none was.

    Who holds the history is waited for, as `ledger.read` does. Raises HistoryConflict for a
    damaged one, DatabaseBusy.
    """
    return tables.unlocked_ours(session, lambda: session.again(lambda: _last(session)), until)


def _last(session: Session) -> str | None:
    """Look whose the tables are and what they are, and in the same transaction read the key."""
    query = _LAST.format(schema=session.config.schema)
    with suppress(psycopg.DataError, psycopg.ProgrammingError), session.looking():
        found, rows = session.results(f"{LOOK}; {tables.look_strictly(session)}; {query}; COMMIT")
        session.keep_facts(found[0])
        tables.require(session, found)
        return _key(rows)
    with session.looking():
        found = session.rows(f"{LOOK}; {tables.look(session)}")
        session.keep_facts(found[0])
        if not tables.present(found):
            return None
        tables.require(session, found)
        if not tables.wraps_present(found):
            return None
        try:
            return _key(session.rows(f"{query}; COMMIT"))
        except psycopg.errors.InsufficientPrivilege as error:
            raise HistoryConflict(
                "history.not_readable",
                f"the history cannot be read: {error.diag.message_primary}",
                f"GRANT USAGE ON SCHEMA {session.config.schema} and SELECT "
                f"({', '.join(tables.WRAPS_PUBLIC)}) ON {session.config.schema}.wraps to this "
                "role, or choose another PREFLIGHT_SCHEMA.",
                sqlstate=error.sqlstate,
            ) from error


def _key(rows: Sequence[Mapping[str, Any]]) -> str | None:
    return str(rows[0]["key"]) if rows else None


def ensure(session: Session) -> None:
    """Make the tables where they are missing; call under the lock.

    Raises TargetUnusable (no right to make them), HistoryConflict, SchemaAhead.
    """

    def make() -> list[str]:
        with fence.made(session), sessions.transaction(session):
            _, closed = ledger.make_tables(session)
            if not tables.wraps_present(session.rows(tables.look(session))):
                tables.define(session, _TABLE.format(schema=session.config.schema))
                tables.keep(session)
                tables.close(session)
        return closed

    session.prepare()
    tables.tell_closed(session, tables.unlocked_ours(session, make, None))


def record(  # noqa: PLR0913 -- one row
    session: Session,
    key: str,
    *,
    command: str,
    watched: str,
    duration_ms: int,
    backup: str | None,
) -> None:
    """Record a success, with its journal row in the same transaction."""
    schema, run_id = session.config.schema, session.config.run_id
    said = [writable(session, text) for text in (command, watched)]
    with sessions.transaction(session):
        session.execute(
            f"""INSERT INTO {schema}.wraps (key, command, watched, duration_ms, backup, run_id,
 tool_version) VALUES (%s, %s, %s, %s, %s, %s, %s)""",  # noqa: S608 -- a checked name
            [key, *said, duration_ms, backup, run_id, __version__],
        )
        journal(session, "wrapped", command, key, duration_ms=duration_ms, backup=backup)


def journal(  # noqa: PLR0913 -- one row
    session: Session,
    event: str,
    command: str,
    key: str,
    *,
    duration_ms: int | None = None,
    backup: str | None = None,
    error: str | None = None,
) -> None:
    """Append to the journal what became of a command; it has no version, so that is 0."""
    session.execute(
        f"""INSERT INTO {session.config.schema}.journal (event, version, name, checksum, run_id,
 host, duration_ms, backup, error, tool_version)
 VALUES (%s, 0, %s, %s, %s, %s, %s, %s, %s, %s)""",  # noqa: S608 -- a checked name
        [
            event,
            writable(session, command),
            key,
            session.config.run_id,
            plain.host(),
            duration_ms,
            backup,
            None if error is None else writable(session, error),
            __version__,
        ],
    )


def newest(session: Session) -> dict[str, Any] | None:
    """Return the last success for people, as far as this role may read it; `at` is ISO, in UTC."""
    try:
        rows = session.ask(
            f"""SELECT w.key, w.command, w.duration_ms, w.backup, w.run_id,
 pg_catalog.to_char(pg_catalog.timezone('UTC', w.at), 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS at
 FROM {session.config.schema}.wraps w ORDER BY w.id DESC LIMIT 1"""  # noqa: S608 -- a checked name
        )
    except psycopg.errors.InsufficientPrivilege:
        return None
    return rows[0] if rows else None
