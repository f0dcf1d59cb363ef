"""One run per database and schema: an advisory lock, polled.

Who holds it, for an operator with psql (`objsubid = 1` marks a key of 64 bits):

    SELECT a.pid, a.application_name, a.client_addr, a.backend_start, a.query
    FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1;

A blocking pg_advisory_lock() would deadlock with another run's CREATE INDEX CONCURRENTLY (40P01).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import structlog

from preflight.base import stop
from preflight.base.errors import ConnectionLost, LockBusy

if TYPE_CHECKING:
    from preflight.server.sessions import Session

POLL_S = (0.1, 0.4)
TELL_EVERY_S = 10.0

_HELD = """FROM pg_catalog.pg_locks l
 WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
 AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d
  WHERE d.datname = pg_catalog.current_database())
 AND l.classid = %(high)s::oid AND l.objid = %(low)s::oid"""
_HOLDER = f"""SELECT a.pid, a.application_name, a.client_addr::text,
 EXTRACT(epoch FROM pg_catalog.clock_timestamp() - a.backend_start)::float8
 FROM pg_catalog.pg_stat_activity a
 WHERE a.pid IN (SELECT l.pid {_HELD})"""  # noqa: S608 -- constants
_OURS = f"SELECT count(*) {_HELD} AND l.pid = pg_catalog.pg_backend_pid()"


def key(schema: str) -> int:
    """Return the advisory lock's key, a signed 64-bit number, for one schema of ours."""
    digest = hashlib.sha256(f"pg-preflight:{schema}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def acquire(session: Session) -> None:
    """Hold the lock until the session ends; raises LockBusy at LOCK_WAIT_S, naming the holder."""
    log = structlog.get_logger()
    session.prepare()
    number = key(session.config.schema)
    told = None
    for waited in stop.looks(*POLL_S):
        row = session.execute(
            "SELECT pg_catalog.pg_try_advisory_lock(%s::int8)", [number]
        ).fetchone()
        if row is not None and row[0]:
            break
        if told is None or waited - told >= TELL_EVERY_S:
            told = waited
            log.info("lock.busy", waited_s=round(waited, 1), **holder(session))
        if waited >= session.config.lock_wait_s:
            found = holder(session)
            raise LockBusy(
                "lock.busy",
                f"another run still holds the lock after {waited:.0f} s: {_described(found)}",
                "Let it finish and run again; if it hangs, "
                f"SELECT pg_terminate_backend({found.get('holder_pid', 'pid')}) ends it.",
            )
    log.info("lock.acquired", waited_s=round(waited, 3))


def require(session: Session) -> None:
    """Make sure that the lock is still ours; raises ConnectionLost when a file let it go."""
    row = session.execute(_OURS, _parameters(session)).fetchone()
    if not row or not row[0]:
        raise ConnectionLost(
            "lock.lost",
            "the run's advisory lock is gone",
            "Does a migration call pg_advisory_unlock_all() or DISCARD ALL? Remove it; run again.",
        )


def holder(session: Session) -> dict[str, object]:
    """Return who holds the lock, as log data; empty when it was let go meanwhile."""
    row = session.execute(_HOLDER, _parameters(session)).fetchone()
    if row is None:
        return {}
    names = ("holder_pid", "holder", "holder_address", "holder_age_s")
    found = {name: value for name, value in zip(names, row, strict=True) if value is not None}
    name, told, doing = str(found.get("holder", "")).partition(": ")
    if told:
        found |= {"holder": name, "holder_doing": doing}
    if isinstance(age := found.get("holder_age_s"), float):
        found["holder_age_s"] = round(age, 1)
    return found


def _described(found: dict[str, object]) -> str:
    if not found:
        return "it was let go this moment"
    address = f" from {found['holder_address']}" if "holder_address" in found else ""
    age = f", connected for {found['holder_age_s']} s" if "holder_age_s" in found else ""
    doing = f", {found['holder_doing']}" if "holder_doing" in found else ""
    return f"pid {found['holder_pid']}, {found.get('holder', 'unknown')!r}{address}{age}{doing}"


def _parameters(session: Session) -> dict[str, int]:
    number = key(session.config.schema) % 2**64
    return {"high": number >> 32, "low": number & 0xFFFFFFFF}
