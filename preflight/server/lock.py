"""One run per database and schema: an advisory lock, polled.

Who holds it, for an operator with psql (`objsubid = 1` marks a key of 64 bits):

    SELECT a.pid, a.application_name, a.client_addr, a.backend_start, a.query
    FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1;

A blocking pg_advisory_lock() would deadlock with another run's CREATE INDEX CONCURRENTLY (40P01).
Only where a run goes on with a new session the new one waits in the server, for the old one, which
is at nothing else: who polls gets nothing while somebody waits.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import psycopg
import structlog

from preflight.base import stop
from preflight.base.errors import ConnectionLost, LockBusy, NotReady
from preflight.server.dial import Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from preflight.server.sessions import Session

POLL_S = (0.1, 0.4)
LOOK_S = (0.001, 0.01)
TELL_EVERY_S = 10.0
QUEUED_S = 10.0  # for the server to let a new session of ours wait for the lock: we have it
HANDED_OVER_MS = 5000  # for it to have the lock then, whatever a file's statements are given

_HELD = """FROM pg_catalog.pg_locks l
 WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
 AND l.classid = %(high)s::oid AND l.objid = %(low)s::oid"""
_HOLDER = f"""SELECT a.pid, a.application_name, a.client_addr::text,
 EXTRACT(epoch FROM pg_catalog.clock_timestamp() - a.backend_start)::float8
 FROM pg_catalog.pg_stat_activity a
 WHERE a.pid IN (SELECT l.pid {_HELD}
 AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d
  WHERE d.datname = pg_catalog.current_database()))"""  # noqa: S608 -- constants
_QUEUED = """SELECT 1 FROM pg_catalog.pg_locks l
 WHERE l.locktype = 'advisory' AND NOT l.granted AND l.objsubid = 1
 AND l.classid = %(high)s::oid AND l.objid = %(low)s::oid
 AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d
  WHERE d.datname = pg_catalog.current_database())"""
_WAIT = f"""SELECT pg_catalog.pg_advisory_lock({{}}::pg_catalog.int8)
 FROM pg_catalog.set_config('lock_timeout', '{HANDED_OVER_MS}', true)"""  # noqa: S608 -- constants
# a session's own are in its own database; two rows: ours is among them, and no other is
_HELD_HERE = """SELECT pg_catalog.unnest(ARRAY[
 count(*) FILTER (WHERE k.ours) > 0, count(*) FILTER (WHERE NOT k.ours) = 0])
 FROM (SELECT l.objsubid = 1 AND l.classid = %(high)s::oid AND l.objid = %(low)s::oid AS ours
  FROM pg_catalog.pg_locks l WHERE l.locktype = 'advisory' AND l.granted
  AND l.pid = pg_catalog.pg_backend_pid()) k"""
# a key is one number of 64 bits, or two of 32; an oid has the bits of a negative one
_NOT_OURS = """SELECT CASE
 WHEN l.objsubid = 1 AND l.mode = 'ShareLock'
  THEN pg_catalog.pg_advisory_unlock_shared((l.classid::int8 << 32) | l.objid::int8)
 WHEN l.objsubid = 1 THEN pg_catalog.pg_advisory_unlock((l.classid::int8 << 32) | l.objid::int8)
 WHEN l.mode = 'ShareLock'
  THEN pg_catalog.pg_advisory_unlock_shared(l.classid::int4, l.objid::int4)
 ELSE pg_catalog.pg_advisory_unlock(l.classid::int4, l.objid::int4) END
 FROM pg_catalog.pg_locks l
 WHERE l.locktype = 'advisory' AND l.granted AND l.pid = pg_catalog.pg_backend_pid()
 AND NOT (l.objsubid = 1 AND l.classid = %(high)s::oid AND l.objid = %(low)s::oid)"""


def key(schema: str) -> int:
    """Return the advisory lock's key, a signed 64-bit number, for one schema of ours."""
    return _number(f"pg-preflight:{schema}")


def _number(text: str) -> int:
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def acquire(session: Session) -> float:
    """Hold the lock until the session ends; return for how many seconds it was waited for.

    Raises LockBusy at LOCK_WAIT_S, naming the holder.
    """
    session.prepare()
    session.notice()
    number = key(session.config.schema)
    for waited in _waited_for(session, number, "another run still holds the lock"):
        if waited:  # the files of who was waited for may have changed what a session is given
            session.compare()
        if not session.stale or not renew(session):
            break  # one that stays stale is told of before the first file
        session.notice()
        if session.locked:
            break
    session.locked = True
    _tell(waited)
    return waited


def _tell(waited: float) -> None:
    structlog.get_logger().info("lock.acquired", waited_s=round(waited, 3))


def renew(session: Session) -> bool:
    """Go on with a new session, to which the old one gives the lock; False where none can be had.

    Whether it has it, `session.locked` tells; nobody comes between who did not wait in the server.
    """
    return session.renew(_handed_over)


def keep(session: Session) -> None:
    """Say that a new session has the lock of the old one, or take it anew; raises LockBusy."""
    if session.locked:
        _tell(0.0)
    else:
        acquire(session)


def _handed_over(old: Session, new: Session) -> bool:
    """Let the new session wait for the lock before the old one lets it go; tell if it has it.

    Raises Refused where it is gone before that, or does not come to wait: the old one goes on.
    """
    let_go = False
    try:
        with new.meanwhile(_WAIT.format(key(old.config.schema))) as ended:
            for waited in stop.looks(*LOOK_S):
                if new.answered() or old.execute(_QUEUED, _parameters(old)).fetchone():
                    break
                if waited > QUEUED_S:
                    raise Refused("lost", "the new session does not come to wait")
            let_go = True
            old.execute("SELECT pg_catalog.pg_advisory_unlock_all()")
            ended()
    except (psycopg.Error, NotReady):
        if new.lost and not let_go:  # the old one can go on
            raise Refused("lost", "the new session ended") from None
        return False
    return True


def acquire_of(session: Session, database: str) -> None:
    """Hold a lock on the name of a database, too, whatever schema this run is of.

    It holds among sessions of the same database, until this one ends. Raises LockBusy at
    LOCK_WAIT_S, naming the holder.
    """
    number = _number(f"pg-preflight database:{database}")
    next(_waited_for(session, number, f"another run is still at work on the database {database!r}"))


class Waiting:
    """Says now and then who is waited for, and when LOCK_WAIT_S is over."""

    def __init__(self, session: Session) -> None:
        self._most_s = session.config.lock_wait_s
        self._told_at: float | None = None

    def over(self, waited: float, by_whom: Callable[[], Mapping[str, object]]) -> bool:
        """Tell whether that is long enough; say `by_whom` where it is time to."""
        if self._told_at is None or waited - self._told_at >= TELL_EVERY_S:
            self._told_at = waited
            structlog.get_logger().info("lock.busy", waited_s=round(waited, 1), **by_whom())
        return waited >= self._most_s


def _waited_for(session: Session, number: int, busy: str) -> Iterator[float]:
    """Yield after how many seconds a lock was taken; asked for more, take it again.

    Raises LockBusy at LOCK_WAIT_S, with these words.
    """
    waiting = Waiting(session)
    for waited in stop.looks(*POLL_S):
        if _taken(session, number):
            yield waited
            continue
        if waiting.over(waited, lambda: told(holder(session, number))):
            by = holder(session, number)
            raise LockBusy(
                "lock.busy",
                f"{busy} after {waited:.0f} s: {by or 'it was let go this moment'}",
                advice(by),
            )


def _taken(session: Session, number: int) -> bool:
    query = "SELECT pg_catalog.pg_try_advisory_lock(%s::int8)"
    row = session.execute(query, [number]).fetchone()
    return row is not None and bool(row[0])


def require(session: Session) -> None:
    """Make sure that the lock is still ours; raises ConnectionLost when a file let it go."""
    _held(session)


def require_alone(session: Session) -> None:
    """Make sure of the same, and release what an earlier file has left besides."""
    if not _held(session):
        let_go(session)


def _held(session: Session) -> bool:
    """Return whether ours is the only one; raises ConnectionLost where it is none of them."""
    (ours,), (alone,) = session.execute(_HELD_HERE, _parameters(session)).fetchall()
    if not ours:
        raise missing()
    return bool(alone)


def held(session: Session) -> str:
    """Return the query that tells whether the lock is ours, and ours the only one, in two rows.

    To be sent together with others.
    """
    return _HELD_HERE % _parameters(session)


def let_go(session: Session) -> None:
    """Release every advisory lock of the session but ours: a file's outlive it, or its rollback.

    One that was taken several times is held until it is released as often.
    """
    while (True,) in session.execute(_NOT_OURS, _parameters(session)).fetchall():
        pass


def missing() -> ConnectionLost:
    """Return the failure for a lock that is gone although its session is there."""
    return ConnectionLost(
        "lock.lost",
        "the run's advisory lock is gone",
        "A migration called pg_advisory_unlock_all(). Run again: it goes on behind what is "
        "recorded. Take the call out of files that have not run yet, and leave those that have "
        "as they are: an edit of them would be 26.",
    )


@dataclass(frozen=True, slots=True)
class Holder:
    """Whose session stands in the way; None is what this role may not see."""

    pid: int
    name: str | None = None
    address: str | None = None
    age_s: float | None = None
    doing: str | None = None  # as it says itself

    @classmethod
    def seen(
        cls, pid: int, said: str | None, address: str | None, age_s: float | None = None
    ) -> Self:
        """Return what pg_stat_activity shows; an application's name may say what it does."""
        name, _, doing = (said or "").partition(": ")
        age = None if age_s is None else round(age_s, 1)
        return cls(pid, name if doing else said, address, age, doing or None)

    def data(self) -> dict[str, object]:
        """Return what is known, as an event has it."""
        told = {
            "holder_pid": self.pid,
            "holder": self.name,
            "holder_address": self.address,
            "holder_age_s": self.age_s,
            "holder_doing": self.doing,
        }
        return {key: value for key, value in told.items() if value is not None}

    def __str__(self) -> str:
        """Say it in a sentence."""
        address = f" from {self.address}" if self.address else ""
        age = "" if self.age_s is None else f", connected for {self.age_s} s"
        doing = f", {self.doing}" if self.doing else ""
        return f"pid {self.pid}, {self.name or 'unknown'!r}{address}{age}{doing}"


def told(found: Holder | None) -> dict[str, object]:
    """Return what an event says of who stands in the way: nothing where nobody does any more."""
    return found.data() if found else {}


def advice(found: Holder | None) -> str:
    """Return what to do about who stands in the way."""
    return (
        "Let it finish and run again; if it hangs, "
        f"SELECT pg_terminate_backend({found.pid if found else 'pid'}) ends it."
    )


def holder(session: Session, number: int | None = None) -> Holder | None:
    """Return who holds the lock, or the one of that number; None when it was let go meanwhile."""
    known = _parameters(session) if number is None else _halves(number)
    row = session.execute(_HOLDER, known).fetchone()
    if row is None:
        return None
    return Holder.seen(*row)


def _parameters(session: Session) -> dict[str, int]:
    return _halves(key(session.config.schema))


def _halves(number: int) -> dict[str, int]:
    number %= 2**64
    return {"high": number >> 32, "low": number & 0xFFFFFFFF}
