"""Save as CSV what a rollback would destroy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Protocol

import psycopg
import structlog

from preflight.apply import back, statements, verify
from preflight.backup import reading_back, retention, sealing, store, stores, take
from preflight.base import console, stop
from preflight.base.errors import (
    BackupDamaged,
    BackupFailed,
    MigrationFailed,
)
from preflight.files import effects, parser, scan
from preflight.server import sessions

if TYPE_CHECKING:
    from preflight.backup.manifests import Identity
    from preflight.backup.store import Store
    from preflight.files.migrations import Migration, Script
    from preflight.server.sessions import Session


POINT = "point.json"
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


class Place(Protocol):
    """Where exports are kept: beside a dump, or apart from the backup that others keep."""

    @property
    def store(self) -> Store:
        """The store."""

    @property
    def name(self) -> str:
        """What it is called there."""

    @property
    def seal(self) -> sealing.Seal:
        """What is done to what holds rows."""


@dataclass(frozen=True, slots=True)
class Apart:
    """A place for exports alone."""

    store: Store
    name: str
    seal: sealing.Seal
    identity: Identity

    def note(self, point: str, run_id: str) -> None:
        """Keep whose they are, and which point was made beside them; raises BackupFailed."""
        said = {"backup": point, "run_id": run_id, **asdict(self.identity)}
        with store.usable(self.store), self.store.sink(self.name, POINT) as sink:
            sink.write(json.dumps(said, indent=2, ensure_ascii=False).encode() + b"\n")

    def forget(self) -> None:
        """Remove it with what was saved, and say so: nobody would look for rows there."""
        with suppress(OSError):
            self.store.forget(self.name)
            structlog.get_logger().info("backup.pruned", backup=self.name)


def apart(session: Session, steps: Sequence[back.Step]) -> Apart | None:
    """Make a place for exports where no dump is taken; None: there are none to keep.

    Raises BackupFailed.
    """
    files = [step.migration.export.file for step in steps if step.migration.export]
    if not files:
        return None
    config = session.config
    backups, (identity, size) = stores.of(config), take.identity_of(session)
    backups.expect(size)
    try:
        name = backups.apart(identity, config.run_id)
    except OSError as error:
        store.require_reached(backups, error)
        raise BackupFailed(
            "backup.no_export",
            f"{files[0]} cannot be saved in {backups.place}: {error.strerror}",
            f"Set PREFLIGHT_BACKUP_DIR: exports are kept there with PREFLIGHT_BACKUP="
            f"{config.backup}, too. Nothing was taken back.",
        ) from error
    return Apart(backups, name, sealing.Seal(config), identity)


def require_there(saved: Apart, files: Sequence[str]) -> None:
    """Make sure that exports are still where they were saved; raises BackupDamaged."""
    with store.usable(saved.store):
        gone = sorted(set(files) - set(saved.store.files(saved.name)))
    if gone:
        raise BackupDamaged(
            "backup.vanished",
            f"{console.some(gone)} in {saved.store.place}/{saved.name}, saved a moment ago, "
            "is gone",
            "Who else removes files there? Nothing was taken back.",
        )


def export(session: Session, steps: Sequence[back.Step], saved: Place | None) -> list[str]:
    """Save what the export files select as CSV in a backup, or apart; raises BackupFailed.

    Return the files that were written.
    """
    return [file for step in steps for file in _export(session, step, saved)]


def _export(session: Session, step: back.Step, saved: Place | None) -> list[str]:
    script = step.migration.export
    if script is None:
        return []
    if saved is None:
        raise BackupFailed(
            "backup.no_export",
            f"{script.file} cannot be saved: there is no backup to keep it in "
            f"(PREFLIGHT_BACKUP={session.config.backup})",
            "Take this one back with PREFLIGHT_BACKUP=required and a PREFLIGHT_BACKUP_DIR.",
        )
    session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        return _queries(session, step, script, saved, "")
    finally:
        sessions.roll_back(session)


def again(session: Session, step: back.Step, saved: Place | None, *, first: bool) -> None:
    """Save once more what the rollback is about to destroy, its tables locked against writers.

    Call in the rollback's transaction, before anything of it ran. What differs from the first
    export takes its place; beside it, once a step before this one may have destroyed something.
    """
    script = step.migration.export
    if script is None or saved is None:
        return
    _lock(session, script)
    session.execute("SAVEPOINT preflight_export; SET TRANSACTION READ ONLY")
    _queries(session, step, script, saved, "" if first else "-late", again=True)
    session.execute("ROLLBACK TO SAVEPOINT preflight_export; RELEASE SAVEPOINT preflight_export")


def _lock(session: Session, script: Script) -> None:
    """Keep writers off the tables that an export reads, to the end of the transaction."""
    statements.prepare(session, script, "SET LOCAL")
    nodes = [parser.parsed(each.read(script.text)) for each in script.statements()]
    names = sorted({name for node in nodes if node for name in effects.named_tables(node)})
    oids = [oid for (oid,) in session.execute(_NAMED, [names]).fetchall() if oid]
    session.execute(f"SET LOCAL {sessions.PATH}")
    tables = [name for (name,) in session.execute(_TABLES, [oids]).fetchall()]
    if tables:
        try:
            session.execute(f"LOCK TABLE {', '.join(tables)} IN SHARE ROW EXCLUSIVE MODE")
        except psycopg.Error as error:
            statements.place(session, script, None, error)
            raise


def _queries(  # noqa: PLR0913 -- what is saved, where, and beside what
    session: Session,
    step: back.Step,
    script: Script,
    saved: Place,
    suffix: str,
    *,
    again: bool = False,
) -> list[str]:
    """Save each query and say so; with `again` only what differs from the first time.

    Return the files.
    """
    session.execute(sessions.PATIENTLY)
    statements.prepare(session, script, "SET LOCAL")
    session.execute(_FORMATS)
    files = []
    for number, statement in enumerate(script.statements(), 1):
        name = f"{retention.EXPORT}{step.migration.name}-{number}"
        query, file = statement.text(script.text), f"{name}{suffix}.csv"
        before = _hash(saved, f"{name}.csv") if again else None
        session.execute("SAVEPOINT preflight_query")
        try:
            rows = _save(session, step.migration, query, saved, file, before)
        except psycopg.Error as error:
            if session.lost or sessions.passing(error):
                statements.place(session, script, statement, error)
                raise
            if error.sqlstate in verify.ABSENT and step.row.state != "done":
                # it stopped before it made what would be saved, or after it took that back
                session.execute("ROLLBACK TO SAVEPOINT preflight_query")
                if not again:
                    _tell_absent(step.migration, script, statement, error)
                continue
            raise statements.located(
                MigrationFailed, session, step.migration, script, statement, error
            ) from error
        if rows is not None:
            structlog.get_logger().info(
                "export.saved",
                **step.migration.named,
                file=saved.seal.file(file),
                backup=saved.name,
                rows=rows,
            )
            files.append(saved.seal.file(file))
    return files


def _tell_absent(
    migration: Migration, script: Script, statement: scan.Statement, error: psycopg.Error
) -> None:
    line, _ = scan.position(script.text, statement.start)
    structlog.get_logger().warning(
        "migration.progressed",
        **migration.named,
        notice=f"{script.file}:{line} is not saved: {error.diag.message_primary}",
    )


def _hash(saved: Place, file: str) -> str | None:
    if saved.seal.on:
        return saved.seal.hashes.get(file)
    with suppress(OSError):  # it was not saved, or cannot be compared: then both are kept
        return reading_back.hashed(saved.store, saved.name, file).sha256
    return None


def _save(  # noqa: PLR0913, PLR0917 -- what is saved, of what, and where
    session: Session,
    migration: Migration,
    query: bytes,
    saved: Place,
    file: str,
    before: str | None,
) -> int | None:
    """Write a query's rows as CSV: a header, NULL as nothing, an empty text as two quotes.

    Return how many they are; None, and nothing is kept, where the file would hash as `before`.
    """
    copied, digest = b"COPY (" + query + b"\n) TO STDOUT (FORMAT csv, HEADER)", hashlib.sha256()
    try:
        with saved.seal.sink(saved.store, saved.name, file) as sink:
            with stop.allowed(), session.connection.cursor() as cursor:
                with cursor.copy(copied) as copy:
                    for block in copy:
                        digest.update(block)
                        sink.write(block)
                rows = cursor.rowcount
            if same := digest.hexdigest() == before:
                sink.abandon()
    except OSError as error:
        store.require_reached(saved.store, error)
        raise BackupFailed(
            "backup.no_export",
            f"{file} cannot be written: {error.strerror}",
            "Free space or correct the rights of the backup directory; "
            f"{migration.name} was not taken back.",
        ) from error
    return None if same else rows
