"""Save as CSV what a rollback would destroy."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import psycopg
import structlog

from preflight.apply import back, statements, verify
from preflight.backup import store
from preflight.base import stop
from preflight.base.errors import (
    BackupFailed,
    MigrationFailed,
)
from preflight.files import effects, parser
from preflight.server import sessions

if TYPE_CHECKING:
    from pathlib import Path

    from preflight.backup.manifests import Backup
    from preflight.files import scan
    from preflight.files.migrations import Script
    from preflight.server.sessions import Session


# as pg_dump has them: a role's settings change neither digits nor the order of a date
_FORMATS = (
    "SET LOCAL DateStyle = 'ISO'; SET LOCAL IntervalStyle = 'postgres'; "
    "SET LOCAL extra_float_digits = 3; SET LOCAL bytea_output = 'hex'; SET LOCAL row_security = off"
)
_NAMED = """SELECT pg_catalog.to_regclass(said.name)::pg_catalog.oid::pg_catalog.int8
 FROM pg_catalog.unnest(%s::pg_catalog.text[]) said(name)"""
# the tables themselves and those behind views, as far as this role may change their rows
_TABLES = """WITH RECURSIVE reached AS (
 SELECT pg_catalog.unnest(%s::oid[]) AS oid
 UNION SELECT d.refobjid FROM reached r JOIN pg_rewrite w ON w.ev_class = r.oid
  JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid
  AND d.refclassid = 'pg_class'::regclass
) SELECT format('%%I.%%I', n.nspname, c.relname) FROM reached r JOIN pg_class c ON c.oid = r.oid
 JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p') AND c.oid >= 16384::oid
 AND has_table_privilege(c.oid, 'UPDATE, DELETE, TRUNCATE') ORDER BY 1"""


def export(session: Session, steps: Sequence[back.Step], saved: Backup | None) -> list[Path]:
    """Save what the export files select as CSV in the backup; raises BackupFailed.

    Return the files that were written.
    """
    return [path for step in steps for path in _export(session, step, saved)]


def _export(session: Session, step: back.Step, saved: Backup | None) -> list[Path]:
    script = step.migration.export
    if script is None:
        return []
    if saved is None:
        raise BackupFailed(
            "backup.no_export",
            f"{script.file} cannot be saved: backups are off",
            "Leave PREFLIGHT_BACKUP at required: an export belongs into a backup.",
        )
    session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        return [path for path, _ in _queries(session, step, script, saved, "")]
    finally:
        sessions.roll_back(session)


def again(session: Session, step: back.Step, saved: Backup | None, *, first: bool) -> None:
    """Save once more what the rollback is about to destroy, its tables locked against writers.

    Call in the rollback's transaction, before anything of it ran. What differs from the first
    export takes its place; beside it, once a step before this one may have destroyed something.
    """
    script = step.migration.export
    if script is None or saved is None:
        return
    _lock(session, script)
    session.execute("SAVEPOINT preflight_export; SET TRANSACTION READ ONLY")
    for path, rows in _queries(session, step, script, saved, "-late"):
        before = path.with_name(path.name.replace("-late.csv", ".csv"))
        if before.exists() and filecmp.cmp(before, path, shallow=False):
            path.unlink()
            continue
        if first:
            path = path.rename(before)  # noqa: PLW2901 -- it is the same file
            store.sync(path.parent)
        _tell(step, path, saved, rows)
    session.execute("ROLLBACK TO SAVEPOINT preflight_export; RELEASE SAVEPOINT preflight_export")


def _lock(session: Session, script: Script) -> None:
    """Keep writers off the tables that an export reads, to the end of the transaction."""
    statements.prepare(session, script, "SET LOCAL")
    nodes = [parser.parsed(each.text(script.text)) for each in script.statements()]
    names = sorted({name for node in nodes if node for name in effects.named_tables(node)})
    oids = [oid for (oid,) in session.execute(_NAMED, [names]).fetchall() if oid]
    session.execute(f"SET LOCAL {sessions.PATH}")
    tables = [name for (name,) in session.execute(_TABLES, [oids]).fetchall()]
    if tables:
        session.execute(f"LOCK TABLE {', '.join(tables)} IN SHARE ROW EXCLUSIVE MODE")


def _queries(
    session: Session, step: back.Step, script: Script, saved: Backup, suffix: str
) -> Iterator[tuple[Path, int]]:
    """Save each query, and yield its file and how many rows it has."""
    statements.prepare(session, script, "SET LOCAL")
    session.execute(_FORMATS)
    for number, statement in enumerate(script.statements(), 1):
        path = saved.path / f"export-{step.migration.name}-{number}{suffix}.csv"
        try:
            rows = _save(session, script, statement, path)
        except psycopg.Error as error:
            if session.lost or error.sqlstate in sessions.PASSING:
                raise
            if error.sqlstate in verify.ABSENT and step.row.state != "done":
                return  # it stopped before it made what would be saved
            raise statements.located(
                MigrationFailed, session, step.migration, script, statement, error
            ) from error
        if not suffix:
            _tell(step, path, saved, rows)
        yield path, rows


def _tell(step: back.Step, path: Path, saved: Backup, rows: int) -> None:
    structlog.get_logger().info(
        "export.saved", **step.migration.named, file=path.name, backup=saved.name, rows=rows
    )


def _save(session: Session, script: Script, statement: scan.Statement, path: Path) -> int:
    """Write one query's rows as CSV: a header, NULL as nothing, an empty text as two quotes."""
    query = b"COPY (" + statement.text(script.text) + b"\n) TO STDOUT (FORMAT csv, HEADER)"
    hidden = path.with_name(f".{path.name}.partial")
    descriptor = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            with stop.allowed(), session.connection.cursor() as cursor:
                with cursor.copy(query) as copy:
                    for block in copy:
                        file.write(block)
                rows = cursor.rowcount
            file.flush()
            os.fsync(file.fileno())
        hidden.rename(path)
        store.sync(path.parent)
    except OSError as error:
        raise BackupFailed(
            "backup.no_export",
            f"{path.name} cannot be written: {error.strerror}",
            "Free space or correct the rights of the backup directory; nothing was taken back.",
        ) from error
    finally:
        hidden.unlink(missing_ok=True)
    return rows
