"""What a copy costs the server that it is on, and whether that server can bear it now.

A full disk in the data directory is an error for one statement; a full disk in `pg_wal` is a PANIC
for everybody. Free space cannot be seen through SQL, but what keeps WAL from being recycled can.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from preflight.backup import mounts
from preflight.base import console

if TYPE_CHECKING:
    from preflight.server.sessions import Session

MINUTE_S = 60.0
WAL_SHARE = 0.9  # of a database's size is the WAL of its restore, at most, as measured
MINIMAL_SHARE = 0.02  # where jobs load tables that their own transaction has just emptied

# a slot that is lost holds no WAL any more
_SLOTS = """
SELECT s.slot_name::text FROM pg_catalog.pg_replication_slots s
WHERE NOT s.active AND s.restart_lsn IS NOT NULL AND s.wal_status IS DISTINCT FROM 'lost'
ORDER BY s.slot_name
"""
# with no command PostgreSQL keeps every segment until there is one
_ARCHIVER = """
SELECT pg_catalog.current_setting('archive_mode') <> 'off'
  AND pg_catalog.current_setting('archive_command') IN ('', '(disabled)')
  AND coalesce((SELECT p.setting FROM pg_catalog.pg_settings p
   WHERE p.name = 'archive_library'), '') = '',
 pg_catalog.current_setting('archive_mode') <> 'off'
  AND coalesce(a.last_failed_time > coalesce(a.last_archived_time, '-infinity'), false),
 a.last_failed_wal
FROM pg_catalog.pg_stat_archiver a
"""
_WAL = "SELECT pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), '0/0')::int8"
_MINIMAL = "SELECT pg_catalog.current_setting('wal_level') = 'minimal'"
_AT_WORK = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_activity a WHERE a.datname = %s::name
 AND a.state = 'active' AND a.wait_event_type IS DISTINCT FROM 'Client')
"""
# a crash forgets the statistics; a clean restart, or a run that was killed, does not
_LIFE = """
SELECT pg_catalog.concat_ws(' ', EXTRACT(epoch FROM a.stats_reset)::text,
 EXTRACT(epoch FROM b.stats_reset)::text)
FROM pg_catalog.pg_stat_archiver a, pg_catalog.pg_stat_bgwriter b
"""
_HOME = """
SELECT (SELECT p.setting FROM pg_catalog.pg_settings p WHERE p.name = 'data_directory'),
 pg_catalog.floor(EXTRACT(epoch FROM pg_catalog.pg_postmaster_start_time()))::int8,
 (SELECT p.setting::int8 FROM pg_catalog.pg_settings p WHERE p.name = 'max_wal_size') * 1048576
"""


class Overloaded(Exception):
    """Others alone write more WAL than the restore is to be part of."""


def against(session: Session) -> str | None:
    """Return why this server should not be given a copy now, or None."""
    return _asked(session, _held_by_slots) or _asked(session, _held_by_archiver)


def _asked(session: Session, question: Callable[[Session], str | None]) -> str | None:
    try:
        return question(session)
    except psycopg.errors.InsufficientPrivilege as error:
        return (
            "whether the server could run out of room for its WAL cannot be told: "
            f"{error.diag.message_primary}"
        )


def _held_by_slots(session: Session) -> str | None:
    names = [name for (name,) in session.execute(_SLOTS).fetchall()]
    if not names:
        return None
    return (
        f"replication slot {console.some(names)} is inactive and holds WAL: that of a restore "
        "would "
        "stay on the server's disk (start its consumer, or pg_drop_replication_slot)"
    )


def _held_by_archiver(session: Session) -> str | None:
    idle, failing, segment = session.execute(_ARCHIVER).fetchone() or (False, False, None)
    if idle:
        return (
            "archive_mode is on and there is no archive_command: all WAL, also that of a restore, "
            "stays on the server's disk"
        )
    if failing:
        return (
            f"archiving fails, last with {segment}: the WAL of a restore would stay on the "
            "server's disk (see archive_command and the server's log)"
        )
    return None


def wal(session: Session) -> int | None:
    """Return how many bytes of WAL the server has ever written; None where this is not for us."""
    try:
        (position,) = session.execute(_WAL).fetchone() or (None,)
    except psycopg.errors.InsufficientPrivilege:
        return None
    return None if position is None else int(position)


def at_work(home: Session, name: str) -> bool:
    """Tell whether the server is at work in a database, and does not only wait for its client."""
    (busy,) = home.execute(_AT_WORK, [name]).fetchone() or (False,)
    return bool(busy)


def wal_expected(session: Session, live_bytes: int, jobs: int) -> int:
    """Return about how many bytes of WAL the restore of a database of this size will write."""
    (minimal,) = session.execute(_MINIMAL).fetchone() or (False,)
    return round(live_bytes * (MINIMAL_SHARE if minimal and jobs > 1 else WAL_SHARE))


def life(session: Session) -> str:
    """Return what changes in every part when the server crashes, and only then."""
    try:
        (mark,) = session.execute(_LIFE).fetchone() or ("",)
    except psycopg.errors.InsufficientPrivilege:
        return ""
    return str(mark)


def crashed(before: str, now: str) -> bool:
    """Tell from two marks of its life whether the server crashed in between.

    One part alone changes also when somebody resets these statistics.
    """
    pairs = list(zip(before.split(), now.split(), strict=False))
    return bool(pairs) and all(one != other for one, other in pairs)


def without_room(session: Session, live_bytes: int) -> str | None:
    """Return what the disk lacks, where it is ours as well and so can be seen; else None."""
    row = session.execute(_HOME).fetchone() or (None, 0, None)
    directory, started, most_wal = row
    if directory is None or not _is_here(Path(directory), started):
        return None
    needed = live_bytes + min(round(WAL_SHARE * live_bytes), 2 * (most_wal or 0))
    places = (Path(directory), Path(directory) / "pg_wal")
    free = min((each for each in map(mounts.free, places) if each is not None), default=needed)
    if free >= needed:
        return None
    return (
        f"the server's disk has {console.size(free)} free, and a copy with its WAL needs "
        f"{console.size(needed)}"
    )


def _is_here(directory: Path, started: int) -> bool:
    """Tell whether a data directory of that name on this machine is the one of this server."""
    try:
        lines = (directory / "postmaster.pid").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return False  # another machine, another container, or not for us
    return abs(int("".join(lines[2:3]) or 0) - started) <= 1


class Minute:
    """How much WAL was written in the last minute, and whether that is too much."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.paused_s = 0.0
        self._seen: deque[tuple[float, int]] = deque()
        self._paused_at: float | None = None
        self._theirs_since = 0.0

    def above(self, now: float, position: int, ours: Callable[[], bool] = lambda: False) -> bool:
        """Tell whether to pause, at a time in seconds with so much WAL ever written.

        Raises Overloaded when a minute's pause has changed nothing: it is not us, as long as the
        server is not at work on `ours` still.
        """
        self._seen.append((now, position))
        while len(self._seen) > 1 and self._seen[1][0] <= now - MINUTE_S:
            self._seen.popleft()
        written = position - self._seen[0][1]
        if written <= self.limit_bytes:
            if self._paused_at is not None:
                self.paused_s += now - self._paused_at
                self._paused_at = None
            return False
        if self._paused_at is None:
            self._paused_at = self._theirs_since = now
        if now - self._theirs_since > 1.1 * MINUTE_S:
            if ours():
                self._theirs_since = now
                return True
            raise Overloaded(
                f"others write {console.size(written)} of WAL in a minute, more than "
                f"PREFLIGHT_REHEARSE_WAL_MB_PER_MIN={self.limit_bytes // 1_000_000}"
            )
        return True
