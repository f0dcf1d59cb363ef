"""Save as CSV what a rollback would destroy."""

from __future__ import annotations

import os
from collections.abc import Sequence
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
from preflight.server import sessions

if TYPE_CHECKING:
    from pathlib import Path

    from preflight.backup.manifests import Backup
    from preflight.files import scan
    from preflight.files.migrations import Script
    from preflight.server.sessions import Session


def export(session: Session, steps: Sequence[back.Step], saved: Backup | None) -> list[Path]:
    """Save what the export files select as CSV in the backup; raises BackupFailed.

    Return the files that were written.
    """
    return [path for step in steps for path in _export(session, step, saved)]


def _export(session: Session, step: back.Step, saved: Backup | None) -> list[Path]:
    script = step.migration.export
    written: list[Path] = []
    if script is None:
        return written
    if saved is None:
        raise BackupFailed(
            "backup.no_export",
            f"{script.file} cannot be saved: backups are off",
            "Leave PREFLIGHT_BACKUP at required: an export belongs into a backup.",
        )
    session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        statements.prepare(session, script, "SET LOCAL")
        for number, statement in enumerate(script.statements(), 1):
            path = saved.path / f"export-{step.migration.name}-{number}.csv"
            try:
                rows = _save(session, script, statement, path)
            except psycopg.Error as error:
                if session.lost:
                    raise
                if error.sqlstate in verify.ABSENT and step.row.state != "done":
                    break  # it stopped before it made what would be saved
                raise statements.located(
                    MigrationFailed, session, step.migration, script, statement, error
                ) from error
            written.append(path)
            structlog.get_logger().info(
                "export.saved", **back.named(step), file=path.name, backup=saved.name, rows=rows
            )
    finally:
        sessions.roll_back(session)
    return written


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
