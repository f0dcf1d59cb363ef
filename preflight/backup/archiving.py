"""Continuous archiving in a dump's place: it works now, a base backup is young, a point is named.

What the server says of its archiver is not enough, `/bin/true` satisfies it: a segment that we
have switched is looked for in the archive itself.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from preflight.backup import archive_asked, archive_status
from preflight.backup.archive_asked import NOTHING, source
from preflight.base import quoting, stop
from preflight.base.errors import BackupFailed, BackupInterrupted, Failure

if TYPE_CHECKING:
    from preflight.backup.archive_status import Base, Status
    from preflight.base.config import Config
    from preflight.server.sessions import Session

CLOCKS = timedelta(minutes=5)  # how far two clocks may be apart
TELL_EVERY_S = 10.0
FAILURES = 2  # in a row: the server tries again after one, and that may have passed
FUNCTIONS = ("pg_create_restore_point(text)", "pg_switch_wal()")
_FACTS = """SELECT CASE WHEN pg_catalog.current_setting('archive_command') = ''
  AND coalesce(pg_catalog.current_setting('archive_library', true), '') = ''
  THEN 'without archive_command' ELSE pg_catalog.current_setting('archive_mode') END,
 pg_catalog.pg_is_in_recovery(), current_user::text,
 (SELECT system_identifier::text FROM pg_catalog.pg_control_system()), ARRAY(
  SELECT f.name FROM pg_catalog.unnest(%s::text[]) f(name)
  WHERE NOT pg_catalog.has_function_privilege('pg_catalog.' || f.name, 'EXECUTE'))"""
_ARCHIVER = """SELECT a.failed_count, coalesce(a.last_failed_wal, ''),
 coalesce(a.last_archived_wal, ''), coalesce(a.last_failed_time > a.last_archived_time, true)
FROM pg_catalog.pg_stat_archiver a"""
_POINT = """SELECT p.lsn::text, pg_catalog.pg_walfile_name(p.lsn),
 pg_catalog.pg_size_bytes(pg_catalog.current_setting('wal_segment_size')),
 pg_catalog.to_char(pg_catalog.timezone('UTC', pg_catalog.clock_timestamp()),
 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
 FROM (SELECT pg_catalog.pg_create_restore_point(%s) AS lsn) p"""


@dataclass(frozen=True, slots=True)
class Point:
    """A point to come back to: its name here, its time in UTC, and the command that leads there."""

    name: str  # `archive:` or `command:`, and what its own tool calls it
    at: str
    restore: str
    lsn: str | None = None
    base: str | None = None  # the base backup that it starts from
    base_at: str | None = None
    timeline: int | None = None  # that it is on: once somebody came back, not the newest any more

    def data(self) -> dict[str, object]:
        """Return what is known, as an event has it."""
        told = asdict(self)
        told["backup"] = told.pop("name")
        return {key: value for key, value in told.items() if value is not None}


def require(session: Session) -> None:
    """Make sure of all that can be known before a point is made; raises BackupFailed."""
    _young(session.config, archive_asked.status(session.config, _system(session)))


def made(session: Session) -> Point:
    """Name a restore point, and see its segment come into the archive.

    Raises BackupFailed, and BackupInterrupted where it does not come within LOCK_RETRY_S.
    """
    config, system = session.config, _system(session)
    earlier = archive_asked.status(config, system)
    base = _young(config, earlier)
    name = f"pg-preflight-{config.run_id}-{os.urandom(8).hex()}"
    before = _archiver(session)
    lsn, segment, size, at = session.execute(_POINT, [name]).fetchone() or ("", "", 0, "")
    if earlier.holds(segment):
        raise _ahead(config, segment)
    session.execute("SELECT pg_catalog.pg_switch_wal()")
    _come(session, system, base, _Wanted(segment, size), before)
    timeline = int(segment[:8], 16)
    return Point(
        f"archive:{name}",
        at,
        _way_back(base, name, at, timeline),
        lsn,
        base.name,
        base.finished_at.astimezone(UTC).isoformat(),
        timeline,
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
            f"GRANT EXECUTE ON FUNCTION pg_catalog.{each} TO {quoting.name(role)}"
            for each in missing
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
        other += f" ({'; '.join(sorted(status.troubles))})" * bool(status.troubles)
        raise BackupFailed(
            "archive.no_base_backup",
            f"{source(config)} knows no base backup of this server{other}",
            "WAL alone restores nothing. Is that this server's stanza or archive? Take a base "
            f"backup. {NOTHING}",
        )
    age = datetime.now(UTC) - base.finished_at
    if age < -CLOCKS:
        raise BackupFailed(
            "archive.unclear",
            f"the newest base backup, {base.name}, was finished at {base.finished_at.isoformat()}, "
            f"which is still to come, as {source(config)} says",
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


def _ahead(config: Config, segment: str) -> BackupFailed:
    return BackupFailed(
        "archive.ahead",
        f"{source(config)} said that {segment} or a later one was archived before "
        "this server had written it to its end",
        "Does the job say what is written in place of what is archived, or does another server, a "
        f"clone perhaps, archive into the same place? Then what is there is not ours. {NOTHING}",
    )


@dataclass(frozen=True, slots=True)
class _Archiver:
    """What the server says of its archiver."""

    failures: int
    failed: str
    archived: str
    fails: bool  # the last thing that it did

    def broken(self, before: _Archiver, most: int) -> bool:
        """Tell whether it has failed so often since, and not done it meanwhile."""
        return self.fails and self.failures >= before.failures + most


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A segment that is to come, and how many bytes each has."""

    segment: str
    size: int


def _archiver(session: Session) -> _Archiver:
    return _Archiver(*(session.execute(_ARCHIVER).fetchone() or (0, "", "", False)))


def _come(session: Session, system: str, base: Base, wanted: _Wanted, before: _Archiver) -> None:
    """Wait until all is in the archive from the base backup to a segment.

    Raises BackupFailed, BackupInterrupted.
    """
    config, told, segment = session.config, 0.0, wanted.segment
    begin, missing = base, None
    for waited in stop.looks(*archive_asked.LOOK_S):
        now = _archiver(session)  # first: what it says is archived must be seen afterwards
        late = waited >= config.lock_retry_s
        if now.broken(before, 1 if late else FAILURES):
            raise BackupFailed(
                "archive.failing",
                f"archiving fails now: the server could not archive {now.failed}",
                f"Its log says why: a full disk, a wrong path, rights, a network. {NOTHING}",
            )
        status = archive_asked.status(config, system)
        there = status.holds(segment)
        if there:
            missing = archive_asked.gap(config, status, begin, segment, wanted.size)
            if missing is None:
                return
            begin = replace(base, segment=missing)  # what comes before it is there
        said = archive_status.SEGMENT.match(now.archived)
        claimed = bool(said) and now.archived[:8] == segment[:8] and now.archived >= segment
        if claimed and not there and config.archive_status_file is None:
            raise BackupFailed(
                "archive.elsewhere",
                f"the server says that {segment} is archived, and {source(config)} does not have "
                "it",
                "Does archive_command keep what it is given, in that archive and under that "
                f"stanza? {NOTHING}",
            )
        if late:
            raise _late(config, status, base, segment, missing if there else None)
        if waited - told >= TELL_EVERY_S:
            told = waited
            structlog.get_logger().info(
                "backup.progressed", waiting=f"{segment} is not in the archive yet"
            )


def _late(config: Config, status: Status, base: Base, segment: str, missing: str | None) -> Failure:
    """Return why it was waited for in vain."""
    if missing:  # not before: several may be on their way at a time
        return BackupFailed(
            "archive.gap",
            f"{missing} is missing in the archive, as {source(config)} says: "
            f"from the base backup {base.name} nobody comes to {segment}",
            f"Archive it, if the server still has it; else take a base backup. {NOTHING}",
        )
    if not status.segments:
        return BackupFailed(
            "archive.unseen",
            f"{source(config)} does not say which segment of this server is the newest",
            "It must: archive[].max of pgBackRest, wal-show of WAL-G, or an object with "
            f"`archived`. What the server says of its archiver proves nothing. {NOTHING}",
        )
    return BackupInterrupted(
        "archive.late",
        f"{segment} is not in the archive after {config.lock_retry_s:g} s, as {source(config)} "
        "says",
        f"Run again; PREFLIGHT_LOCK_RETRY_S says for how long it is waited for. {NOTHING}",
    )


# the way back


def _way_back(base: Base, name: str, at: str, timeline: int) -> str:
    """Return the command that brings the server back to a restore point.

    The newest timeline, which is the usual one, has it no more once somebody came back before it.
    """
    if base.tool == "pgbackrest":
        return (
            f"pgbackrest --stanza={shlex.quote(base.stanza)} --set={base.name} --type=name "
            f"--target={name} --target-timeline={timeline} --target-action=promote --delta restore"
        )
    target = (
        f"recovery_target_name = '{name}', recovery_target_timeline = '{timeline}', "
        "recovery_target_action = 'promote'"
    )
    if base.tool == "wal-g":
        return (
            f"wal-g backup-fetch PGDATA {shlex.quote(base.name)}; then recovery.signal and "
            f"restore_command = 'wal-g wal-fetch %f %p', {target}"
        )
    if base.tool == "cloudnative-pg":
        return (
            f"a new Cluster with bootstrap.recovery from {base.name} and recoveryTarget: "
            f'{{targetName: {name}, targetTLI: "{timeline}", backupID: that of the backup of '
            f"{base.finished_at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}}}; without a backupID a name "
            "is not looked for from the right backup"
        )
    clean = re.sub(r"[^\x20-\x7e]", "?", base.name)
    return f"restore the base backup {clean}; then recovery.signal and {target} (it was at {at})"
