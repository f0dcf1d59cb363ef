"""Continuous archiving in a dump's place: it works now, a base backup is young, a point is named.

What the server says of its archiver is not enough, `/bin/true` satisfies it: a segment that we
have switched is looked for in the archive itself.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from preflight.backup import archive_status, children
from preflight.base import stop
from preflight.base.errors import BackupFailed, BackupInterrupted, Failure

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from preflight.backup.archive_status import Base, Status
    from preflight.base.config import Config
    from preflight.server.sessions import Session

LOOK_S = (0.2, 0.5)
CLOCKS = timedelta(minutes=5)  # how far two clocks may be apart
TELL_EVERY_S = 10.0
ASK_S = 60.0  # for one answer of a tool
MOST_BYTES = 32 << 20
FUNCTIONS = ("pg_create_restore_point(text)", "pg_switch_wal()")
TOOLS = {  # that are asked where no file is named, the first one on PATH
    "pgbackrest": (("info", "--output=json"),),
    "wal-g": (("wal-show", "--detailed-json"), ("backup-list", "--detail", "--json")),
}
_FACTS = """SELECT CASE WHEN pg_catalog.current_setting('archive_command') = ''
  AND coalesce(pg_catalog.current_setting('archive_library', true), '') = ''
  THEN 'without archive_command' ELSE pg_catalog.current_setting('archive_mode') END,
 pg_catalog.pg_is_in_recovery(), current_user::text,
 (SELECT system_identifier::text FROM pg_catalog.pg_control_system()), ARRAY(
  SELECT f.name FROM pg_catalog.unnest(%s::text[]) f(name)
  WHERE NOT pg_catalog.has_function_privilege('pg_catalog.' || f.name, 'EXECUTE'))"""
_ARCHIVER = """SELECT a.failed_count, coalesce(a.last_failed_wal, ''),
 coalesce(a.last_archived_wal, '') FROM pg_catalog.pg_stat_archiver a"""
_POINT = """SELECT p.lsn::text, pg_catalog.pg_walfile_name(p.lsn),
 pg_catalog.to_char(pg_catalog.timezone('UTC', pg_catalog.clock_timestamp()),
 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
 FROM (SELECT pg_catalog.pg_create_restore_point(%s) AS lsn) p"""
NOTHING = "Nothing was migrated."


@dataclass(frozen=True, slots=True)
class Point:
    """A point to come back to: its name here, its time in UTC, and the command that leads there."""

    name: str  # `archive:` or `command:`, and what its own tool calls it
    at: str
    restore: str
    lsn: str | None = None
    base: str | None = None  # the base backup that it starts from
    base_at: str | None = None

    def data(self) -> dict[str, object]:
        """Return what is known, as an event has it."""
        told = asdict(self)
        told["backup"] = told.pop("name")
        return {key: value for key, value in told.items() if value is not None}


def require(session: Session) -> None:
    """Make sure of all that can be known before a point is made; raises BackupFailed."""
    _young(session.config, _status(session.config, _system(session)))


def made(session: Session) -> Point:
    """Name a restore point, and see its segment come into the archive.

    Raises BackupFailed, and BackupInterrupted where it does not come within LOCK_RETRY_S.
    """
    config, system = session.config, _system(session)
    base = _young(config, _status(config, system))
    name = f"pg-preflight-{config.run_id}-{os.urandom(8).hex()}"
    before = _archiver(session)
    lsn, segment, at = session.execute(_POINT, [name]).fetchone() or ("", "", "")
    session.execute("SELECT pg_catalog.pg_switch_wal()")
    _come(session, system, base, segment, before)
    return Point(
        f"archive:{name}",
        at,
        _way_back(base, name, at),
        lsn,
        base.name,
        base.finished_at.astimezone(UTC).isoformat(),
    )


def _system(session: Session) -> str:
    """Return the server's system identifier; raises BackupFailed where it cannot be a gate."""
    row = session.execute(_FACTS, [list(FUNCTIONS)]).fetchone()
    mode, standby, role, system, missing = row or ("off", False, "", "", [])
    if standby:
        raise BackupFailed(
            "archive.standby",
            "a standby switches no segment and names no restore point",
            "Connect to the primary.",
        )
    if mode not in ("on", "always"):
        raise BackupFailed(
            "archive.off",
            f"the server archives nothing: archive_mode is {mode.replace('without', 'on without')}",
            "Set up continuous archiving (archive_mode needs a restart), or leave PREFLIGHT_BACKUP "
            f"at required. {NOTHING}",
        )
    if missing:
        grants = "; ".join(
            f'GRANT EXECUTE ON FUNCTION pg_catalog.{each} TO "{role}"' for each in missing
        )
        raise BackupFailed(
            "archive.no_right",
            f"the role {role} may not execute {' and '.join(missing)}",
            f"A superuser, in this database: {grants}.",
        )
    return str(system)


def _young(config: Config, status: Status) -> Base:
    """Return the newest base backup; raises BackupFailed where it is none, or too old."""
    base, most = status.newest, config.archive_max_age_h
    if base is None:
        other = f" (it speaks of system {', '.join(sorted(status.others))})" * bool(status.others)
        raise BackupFailed(
            "archive.no_base_backup",
            f"{_source(config)} knows no base backup of this server{other}",
            "WAL alone restores nothing. Is that this server's stanza or archive? Take a base "
            f"backup. {NOTHING}",
        )
    age = datetime.now(UTC) - base.finished_at
    if age < -CLOCKS:
        raise BackupFailed(
            "archive.unclear",
            f"the newest base backup, {base.name}, was finished at {base.finished_at.isoformat()}, "
            f"which is still to come, as {_source(config)} says",
            f"Is a clock wrong, or a time zone? How old it is cannot be told. {NOTHING}",
        )
    if age > timedelta(hours=most):
        hours = age.total_seconds() / 3600
        raise BackupFailed(
            "archive.old_base_backup",
            f"the newest base backup, {base.name}, is {hours:.1f} h old; "
            f"PREFLIGHT_ARCHIVE_MAX_AGE_H is {most:g}",
            f"Take one, or see why none was taken. {NOTHING}",
        )
    return base


@dataclass(frozen=True, slots=True)
class _Archiver:
    """What the server says of its archiver."""

    failures: int
    failed: str
    archived: str


def _archiver(session: Session) -> _Archiver:
    return _Archiver(*(session.execute(_ARCHIVER).fetchone() or (0, "", "")))


def _come(session: Session, system: str, base: Base, segment: str, before: _Archiver) -> None:
    """Wait until all is in the archive from the base backup to a segment.

    Raises BackupFailed, BackupInterrupted.
    """
    config, told = session.config, 0.0
    for waited in stop.looks(*LOOK_S):
        now = _archiver(session)  # first: what it says is archived must be seen afterwards
        if now.failures > before.failures:
            raise BackupFailed(
                "archive.failing",
                f"archiving fails now: the server could not archive {now.failed}",
                f"Its log says why: a full disk, a wrong path, rights, a network. {NOTHING}",
            )
        status = _status(config, system)
        there = status.holds(segment)
        if there and not status.gap(base, segment):
            return
        said = archive_status.SEGMENT.match(now.archived)
        claimed = bool(said) and now.archived[:8] == segment[:8] and now.archived >= segment
        if claimed and not there and config.archive_status_file is None:
            raise BackupFailed(
                "archive.elsewhere",
                f"the server says that {segment} is archived, and {_source(config)} does not have "
                "it",
                "Does archive_command keep what it is given, in that archive and under that "
                f"stanza? {NOTHING}",
            )
        if waited >= config.lock_retry_s:
            raise _late(config, status, base, segment)
        if waited - told >= TELL_EVERY_S:
            told = waited
            structlog.get_logger().info(
                "backup.progressed", waiting=f"{segment} is not in the archive yet"
            )


def _late(config: Config, status: Status, base: Base, segment: str) -> Failure:
    """Return why it was waited for in vain."""
    if status.holds(segment):  # not before: several may be on their way at a time
        return BackupFailed(
            "archive.gap",
            f"{status.gap(base, segment)} is missing in the archive, as {_source(config)} says: "
            f"from the base backup {base.name} nobody comes to {segment}",
            f"Archive it, if the server still has it; else take a base backup. {NOTHING}",
        )
    if not status.segments:
        return BackupFailed(
            "archive.unseen",
            f"{_source(config)} does not say which segment of this server is the newest",
            "It must: archive[].max of pgBackRest, wal-show of WAL-G, or an object with "
            f"`archived`. What the server says of its archiver proves nothing. {NOTHING}",
        )
    return BackupInterrupted(
        "archive.late",
        f"{segment} is not in the archive after {config.lock_retry_s:g} s, as {_source(config)} "
        "says",
        f"Run again; PREFLIGHT_LOCK_RETRY_S says for how long it is waited for. {NOTHING}",
    )


# who is asked


def _tool() -> str | None:
    return next((name for name in TOOLS if shutil.which(name)), None)


def _source(config: Config) -> str:
    return str(config.archive_status_file or _tool() or "nobody")


def _status(config: Config, system: str) -> Status:
    """Return what the archive holds of this server; raises BackupFailed, BackupInterrupted."""
    if config.archive_status_file is not None:
        texts = [_read(config.archive_status_file)]
    elif tool := _tool():
        texts = list(_asked(config, tool))
    else:
        raise BackupFailed(
            "archive.unknown",
            "nobody can be asked what is in the archive: neither pgbackrest nor wal-g is on PATH, "
            "and PREFLIGHT_ARCHIVE_STATUS_FILE is not set",
            "What the server says of its archiver proves nothing. Let a job write that file; "
            f"docs/archive.md says how. {NOTHING}",
        )
    try:
        return archive_status.read("\n".join(texts), system)
    except archive_status.Unclear as why:
        raise BackupFailed(
            "archive.unclear", f"what {_source(config)} says {why}", NOTHING
        ) from why


def _read(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            return (file.read(MOST_BYTES) or b"").decode("utf-8", "replace")
    except OSError as error:
        raise BackupFailed(
            "archive.unknown",
            f"PREFLIGHT_ARCHIVE_STATUS_FILE names {path}, which cannot be read: {error.strerror}",
            f"Does the job that writes it run? {NOTHING}",
        ) from error


def _asked(config: Config, tool: str) -> Iterator[str]:
    for arguments in TOOLS[tool]:
        code, answer, words = answered([tool, *arguments], config.child_env, ASK_S)
        if code is None:
            raise BackupInterrupted(
                "archive.late",
                f"{tool} {arguments[0]} did not answer within {ASK_S:.0f} s",
                f"Is its repository in reach? Run again. {NOTHING}",
            )
        if code:
            raise BackupFailed(
                "archive.unknown",
                f"{tool} {arguments[0]} failed with {code}: {words or 'it said nothing'}",
                f"It must run here as it does where the backups are made. {NOTHING}",
            )
        yield answer


def answered(
    command: Sequence[str], environment: Mapping[str, str], limit_s: float
) -> tuple[int | None, str, str]:
    """Run a program; return its exit code (None: over its time, and ended), stdout and last words.

    What it leaves behind is not waited for, whatever of ours it holds. A stop ends it, and what it
    started. Raises BackupFailed where it does not start.
    """
    until, parts, size = time.monotonic() + limit_s, [], 0

    def tick() -> None:
        if time.monotonic() >= until:
            raise TimeoutError

    try:
        with children.started(command, environment) as (child, words):
            try:
                for chunk in children.chunks(child, tick, 0.2, lambda: child.poll() is not None):
                    size += len(chunk)
                    if size <= MOST_BYTES:
                        parts.append(chunk)
                while child.poll() is None:
                    tick()
                    stop.sleep(0.05)
            except TimeoutError:
                return None, "", ""
            said = words.said() if child.returncode else ""
            return child.returncode, b"".join(parts).decode("utf-8", "replace"), said
    except children.ClientFailed as failed:
        raise BackupFailed(
            "backup.command_not_started",
            str(failed),
            f"Is it in this image, executable, and on PATH? {NOTHING}",
        ) from failed


# the way back


def _way_back(base: Base, name: str, at: str) -> str:
    """Return the command that brings the server back to a restore point."""
    if base.tool == "pgbackrest":
        return (
            f"pgbackrest --stanza={shlex.quote(base.stanza)} --set={base.name} --type=name "
            f"--target={name} --target-action=promote --delta restore"
        )
    target = f"recovery_target_name = '{name}', recovery_target_action = 'promote'"
    if base.tool == "wal-g":
        return (
            f"wal-g backup-fetch PGDATA {shlex.quote(base.name)}; then recovery.signal and "
            f"restore_command = 'wal-g wal-fetch %f %p', {target}"
        )
    if base.tool == "cloudnative-pg":
        return (
            f"a new Cluster with bootstrap.recovery from {base.name} and "
            f"recoveryTarget.targetName: {name}"
        )
    clean = re.sub(r"[^\x20-\x7e]", "?", base.name)
    return f"restore the base backup {clean}; then recovery.signal and {target} (it was at {at})"
