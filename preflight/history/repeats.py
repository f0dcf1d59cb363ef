"""Files without a version: run again, after all versions, when their text has changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from preflight import __version__
from preflight.history import journal, tables

if TYPE_CHECKING:
    from preflight.files.migrations import Migration
    from preflight.server.sessions import Session

_TABLE = """
CREATE TABLE {schema}.repeatables (
  name pg_catalog.text PRIMARY KEY,
  checksum pg_catalog.text NOT NULL,
  how pg_catalog.text NOT NULL,
  up_sql pg_catalog.text NOT NULL,
  applied_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
  duration_ms bigint,
  applied_by pg_catalog.text NOT NULL DEFAULT current_user,
  backup pg_catalog.text,
  tool_version pg_catalog.text NOT NULL,
  run_id pg_catalog.text NOT NULL
)
"""


def read(session: Session) -> Mapping[str, str]:
    """Return what is recorded: the checksum of each name. Call where the table is there."""
    table = f"{session.config.schema}.repeatables"
    rows = session.ask(f"SELECT r.name, r.checksum FROM ONLY {table} r")  # noqa: S608
    return {row["name"]: row["checksum"] for row in rows}


def ensure(session: Session) -> None:
    """Make the table where there is none; call in a transaction, under the lock."""
    tables.add(session, "repeatables", _TABLE, "name, checksum")


def ran_here(session: Session) -> set[str]:
    """Return the names whose recorded text was run here; call where the table is there."""
    table = f"{session.config.schema}.repeatables"
    rows = session.execute(f"SELECT r.name FROM ONLY {table} r WHERE r.how <> 'taken_over'")  # noqa: S608
    return {name for (name,) in rows.fetchall()}


def claim(
    session: Session, file: Migration, backup: str | None = None, how: str = "applied"
) -> bool:
    """Record the text that is about to run; False when it is recorded already."""
    cursor = session.execute(
        f"""INSERT INTO {session.config.schema}.repeatables AS r
 (name, checksum, how, up_sql, backup, tool_version, run_id) VALUES (%s, %s, %s, %s, %s, %s, %s)
 ON CONFLICT (name) DO UPDATE SET checksum = excluded.checksum, how = excluded.how,
 up_sql = excluded.up_sql, backup = excluded.backup, tool_version = excluded.tool_version,
 run_id = excluded.run_id, applied_at = pg_catalog.clock_timestamp(), applied_by = current_user
 WHERE r.checksum <> excluded.checksum""",  # noqa: S608 -- a checked name
        [file.name, file.checksum, how, file.up.kept, backup, __version__, session.config.run_id],
    )
    return cursor.rowcount == 1


def ran(session: Session, file: Migration) -> bool:
    """Tell whether this run has recorded the text, with its end mark."""
    row = session.execute(
        f"""SELECT r.duration_ms IS NOT NULL FROM ONLY {session.config.schema}.repeatables r
 WHERE r.name = %s AND r.checksum = %s AND r.run_id = %s""",  # noqa: S608 -- a checked name
        [file.name, file.checksum, session.config.run_id],
    ).fetchone()
    return bool(row and row[0])


def finish(session: Session, file: Migration, *, duration_ms: int, backup: str | None) -> int:
    """Write the end mark and the journal's row; return how many rows were there to mark."""
    updated = session.execute(
        f"""UPDATE {session.config.schema}.repeatables SET duration_ms = %s,
 applied_at = pg_catalog.clock_timestamp() WHERE name = %s AND run_id = %s""",  # noqa: S608
        [duration_ms, file.name, session.config.run_id],
    )
    journal.journal(session, "applied", file, duration_ms=duration_ms, backup=backup)
    return updated.rowcount
