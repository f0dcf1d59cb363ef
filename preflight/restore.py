"""Restore a backup beside the live database and, when asked, put it in its place.

The new database is closed to PUBLIC until its rows are compared. Both renames of a swap are one
transaction, so a swap is done or not; what an interrupted call left is told by the comment on the
new database, and used or dropped.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import structlog

from preflight import archive, backup, history, lock, server, sibling, sql, stop, store
from preflight.errors import (
    BackupFailed,
    BackupInterrupted,
    BackupUnverified,
    ConfigInvalid,
    TargetUnusable,
)

if TYPE_CHECKING:
    from preflight.config import Config
    from preflight.server import Session
    from preflight.store import Backup

MAINTENANCE = ("postgres", "template1", "template0")  # nobody is in their way there
MARK = "pg-preflight restore: "
RENAME_TRIES = 10
UNFINISHED = f"{MARK}unfinished"
LAST_SESSIONS_S = 2.0
NAME_BYTES = 63

_GRANTS = """
SELECT a.grantee = 0::oid AS to_public, pg_catalog.pg_get_userbyid(a.grantee)::text,
 a.privilege_type, a.is_grantable
FROM pg_catalog.pg_database d, pg_catalog.aclexplode(
 coalesce(d.datacl, pg_catalog.acldefault('d', d.datdba))) a
WHERE d.oid = %s::oid
"""
_SESSIONS = """
SELECT a.pid, coalesce(nullif(a.application_name, ''), 'unnamed'), a.usename::text
FROM pg_catalog.pg_stat_activity a
WHERE a.datname IN (%s::name, %s::name) AND a.pid <> pg_catalog.pg_backend_pid()
 AND a.usesysid IS NOT NULL  -- of other roles' sessions, backend_type may not be seen
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Which backup goes where."""

    source: Backup
    live: str
    into: str

    @property
    def mark(self) -> str:
        """The comment that says which backup a database holds, completely."""
        return f"{MARK}{self.source.name}"


def run(config: Config, name: str, *, into: str | None, swap: bool, end_sessions: bool) -> None:
    """Restore into a new database; with `swap`, rename it into the live one's place.

    Raises ConfigInvalid (no such backup), BackupUnverified (damaged, or rows differ),
    TargetUnusable (no right, name taken, sessions in the way).
    """
    began = time.monotonic()
    place = _place(config, name, into)
    home = next(name for name in MAINTENANCE if name not in (place.live, place.into))
    maintenance = dataclasses.replace(config, target={**config.target, "dbname": home})
    with server.connect(maintenance) as session:
        session.learn(session.ask(f"SELECT {server.FACTS}")[0])
        server.require_writable(session)
        session.grow_up()
        lock.acquire(session)
        if not _finished_before(session, place):
            _require_whole(place.source)
            with _new_database(session, place):
                _fill(session, config, place)
                try:
                    _dress(session, place)
                except psycopg.errors.InsufficientPrivilege as error:
                    raise TargetUnusable(
                        "restore.no_right",
                        "this role may not give the new database the owner, rights and settings "
                        f"of the live one: {error.diag.message_primary}",
                        "Run as the live database's owner, or as a superuser.",
                        sqlstate=error.sqlstate,
                    ) from error
        kept = _swap(session, place, end_sessions=end_sessions) if swap else None
    structlog.get_logger().info(
        "restore.finished",
        backup=place.source.name,
        database=place.live if swap else place.into,
        kept_as=kept,
        rows=sum(place.source.manifest["rows"].values()),
        duration_s=round(time.monotonic() - began, 3),
    )


def _place(config: Config, name: str, into: str | None) -> Place:
    source = find(config.backup_dir, name, config.database)
    live = config.database
    target = into or _suffixed(live, "_restored")
    if target == live or len(target.encode()) > NAME_BYTES:
        reason = "is the live database itself" if target == live else "is longer than 63 bytes"
        raise ConfigInvalid(
            "config.arguments",
            f"--into {target!r} {reason}",
            "A restore goes beside it, under another name; --swap puts it in its place.",
        )
    return Place(source, live, target)


def _suffixed(name: str, suffix: str) -> str:
    """Return a database's name with a suffix, as long as the server lets it be."""
    return name.encode()[: NAME_BYTES - len(suffix)].decode("utf-8", "ignore") + suffix


def find(directory: Path, name: str, database: str) -> Backup:
    """Return a backup by name, path, or `latest` of a database; raises ConfigInvalid."""
    at = Path(name)
    if at.is_absolute() or "/" in name:
        directory, name = at.parent, at.name
    try:
        known = store.listing(directory)
    except OSError as error:
        raise ConfigInvalid(
            "config.backup_dir",
            f"the backups in {directory} cannot be read: {error.strerror}",
            "Set PREFLIGHT_BACKUP_DIR, or mount the volume.",
        ) from error
    ours = [item for item in known if item.manifest.get("database") == database]
    if name == "latest" and ours:
        return ours[-1]
    for item in known:
        if item.name == name:
            return item
    raise ConfigInvalid(
        "config.arguments",
        f"there is no backup {name!r} in {directory}",
        "See `backups --table`." if known else "That directory holds no backup.",
    )


def _require_whole(source: Backup) -> None:
    try:
        digest, _ = archive.hash_of(source.path / store.DUMP)
    except OSError as error:
        raise BackupFailed(
            "backup.directory",
            f"{source.path / store.DUMP} cannot be read: {error.strerror}",
            "Correct its rights, or run as the user that made it.",
        ) from error
    if digest != source.manifest["sha256"]:
        raise BackupUnverified(
            "backup.corrupt",
            f"{source.name} is not what was written: its hash differs from the manifest's",
            "Use another backup (`backups --table`) and check the disk.",
        )


def _finished_before(session: Session, place: Place) -> bool:
    """Tell whether an earlier call restored this backup there; drop what one left half done."""
    found = sibling.described(session, place.into)
    if found is None:
        return False
    said = found["comment"] or ""
    if said == place.mark:
        return True
    if said == UNFINISHED or sibling.newborn(found):
        sibling.drop(session, place.into)
        return False
    what = f"the restore of {said.removeprefix(MARK)}" if said.startswith(MARK) else "not ours"
    raise TargetUnusable(
        "restore.exists",
        f"the database {place.into!r} exists already and is {what}",
        "Choose another name with --into, or drop it.",
    )


@contextmanager
def _new_database(session: Session, place: Place) -> Iterator[None]:
    """Make the database, closed to everybody else; drop it again when what follows fails."""
    try:
        sibling.create(session, place.into, sibling.described(session, place.live), UNFINISHED)
    except psycopg.errors.InsufficientPrivilege as error:
        raise TargetUnusable(
            "restore.no_right",
            "this role may not create a database",
            "ALTER ROLE … CREATEDB, or run the restore as a role that may.",
            sqlstate=error.sqlstate,
        ) from error
    try:
        yield
        sibling.say(session, place.into, place.mark)
    except BaseException:
        if not session.lost:
            sibling.drop(session, place.into)
        raise


def _fill(session: Session, config: Config, place: Place) -> None:
    """Run pg_restore and compare every table's rows with the manifest."""
    dump = place.source.path / store.DUMP
    _require_clean(*sibling.fill(session, place.into, dump, sibling.jobs(session)))
    found = dataclasses.replace(config, target={**config.target, "dbname": place.into})
    with server.connect(found) as other:
        other.facts = session.facts
        other.grow_up()
        different = backup.differing(other, place.source.manifest["rows"])
        other.execute("ANALYZE")
    if different:
        raise BackupUnverified(
            "restore.rows_differ",
            f"{len(different)} tables differ from the manifest: {'; '.join(different[:5])}",
            "The new database was dropped; the live one was not touched.",
        )


def _require_clean(code: int, problems: list[sibling.Complaint]) -> None:
    """Make sure that pg_restore did all of it; raises BackupUnverified, BackupInterrupted."""
    if problems:
        raise BackupUnverified(
            "restore.failed",
            f"pg_restore reports: {'; '.join(problem.text for problem in problems[:3])}",
            "The new database was dropped; the live one was not touched. A dump of a newer major "
            "version or of roles that this server lacks cannot be restored here.",
        )
    if code != 0:
        raise BackupInterrupted(
            "restore.client",
            f"pg_restore ended with {code}, without a word",
            "Run again; the live database was not touched.",
        )


def _dress(session: Session, place: Place) -> None:
    """Give the new database the live one's owner, settings, rights and connection limit."""
    live = sibling.described(session, place.live)
    name = sql.quoted(place.into)
    if live is None:  # nothing to copy from: a restore on a new server
        session.execute(f"GRANT CONNECT, TEMPORARY ON DATABASE {name} TO PUBLIC")
        return
    for role, setting in sibling.settings(session, live):
        session.execute(sibling.setting_command(name, role, setting))
    session.execute(f"ALTER DATABASE {name} CONNECTION LIMIT {live['connection_limit']}")
    for to_public, role, privilege, grantable in session.execute(_GRANTS, [live["oid"]]).fetchall():
        if to_public or role != live["owner"]:
            to = "PUBLIC" if to_public else sql.quoted(role)
            option = " WITH GRANT OPTION" if grantable else ""
            session.execute(f"GRANT {privilege} ON DATABASE {name} TO {to}{option}")
    session.execute(f"ALTER DATABASE {name} OWNER TO {sql.quoted(live['owner'])}")


def _swap(session: Session, place: Place, *, end_sessions: bool) -> str | None:
    """Rename both databases in one transaction; return the old one's new name."""
    kept = _suffixed(place.live, f"_before_{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
    for attempt in range(1, RENAME_TRIES + 1):
        others = _others(session, place)
        if others and not end_sessions:
            names = ", ".join(f"pid {pid} ({name}, {user})" for pid, name, user in others[:10])
            raise _in_the_way(place, f"{len(others)} sessions are connected: {names}")
        try:
            with history.transaction(session):
                for pid, *_ in others:
                    session.execute("SELECT pg_catalog.pg_terminate_backend(%s::int4)", [pid])
                return _rename(session, place, kept)
        except psycopg.errors.ObjectInUse as error:  # somebody connected in between
            if attempt == RENAME_TRIES:
                said = f"{error.diag.message_primary}: {error.diag.message_detail}"
                raise _in_the_way(place, said) from error
            stop.sleep(0.1 * attempt)
        except psycopg.errors.InsufficientPrivilege as error:
            raise TargetUnusable(
                "restore.no_right",
                f"this role may not swap the databases: {error.diag.message_primary}",
                f"Run as the owner with CREATEDB (to end sessions: pg_signal_backend); the "
                f"restored database {place.into!r} is complete and waits.",
                sqlstate=error.sqlstate,
            ) from error
    return None


def _others(session: Session, place: Place) -> list[tuple[Any, ...]]:
    """Return who is connected to either database, once our own last sessions had time to end."""
    until = time.monotonic() + LAST_SESSIONS_S
    while found := session.execute(_SESSIONS, [place.live, place.into]).fetchall():
        if time.monotonic() >= until:
            break
        stop.sleep(0.1)
    return found


def _in_the_way(place: Place, what: str) -> TargetUnusable:
    return TargetUnusable(
        "restore.sessions",
        what,
        f"The restored database {place.into!r} is complete and waits. Stop the app and run the "
        "same command again, or add --end-sessions.",
    )


def _rename(session: Session, place: Place, kept: str) -> str | None:
    live, into = sql.quoted(place.live), sql.quoted(place.into)
    before = sibling.described(session, place.live)
    if before:
        session.execute(f"ALTER DATABASE {live} RENAME TO {sql.quoted(kept)}")
    session.execute(f"ALTER DATABASE {into} RENAME TO {live}")
    comment = before["comment"] if before else None
    said = sql.literal(comment) if comment else "NULL"
    session.execute(f"COMMENT ON DATABASE {live} IS {said}")
    return kept if before else None
