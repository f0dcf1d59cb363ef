"""Rename a restored database into the live one's place, and the live one out of it."""

from __future__ import annotations

import itertools
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import structlog

from preflight.backup import manifests, new_database, restored, store
from preflight.base import console, quoting, stop, threads
from preflight.base.errors import BackupFailed, BackupInterrupted, TargetUnusable
from preflight.server import dial, sessions

if TYPE_CHECKING:
    from preflight.backup.manifests import Identity
    from preflight.server.sessions import Session
RENAME_TRIES = 3  # each keeps the app out for the 5 s that the server waits for sessions to go
ENDED_EVERY_S = 0.05
PREPARED_S = 10.0  # for prepared transactions that are there to be ended
# servers older than 17.3, 16.7, 15.11 and the like let no parallel worker into a closed database
ALONE = {"max_parallel_workers_per_gather": "0"}
LAST_SESSIONS_S = 2.0
TWICE_S = 24 * 3600.0  # a swap that is asked for again so soon is the same one

_SESSIONS = """
SELECT a.pid, coalesce(nullif(a.application_name, ''), 'unnamed'), a.usename::text,
 a.datname::text
FROM pg_catalog.pg_stat_activity a
WHERE a.datname IN (%s::name, %s::name) AND a.pid <> ALL (%s::int4[])
 AND a.usesysid IS NOT NULL  -- of other roles' sessions, backend_type may not be seen
"""


def swapped_before(session: Session, place: restored.Place, identity: Identity) -> bool:
    """Tell whether the live database came from this very backup a short while ago.

    What was written since would leave it. Raises TargetUnusable when that was long ago.
    """
    live = new_database.described(session, place.live)
    if live is None:
        return False
    swaps = _swaps(place, identity)
    said = swaps.pop(live.oid, None)
    if said is None:
        _require_not_replaced(session, place, swaps)
        return False
    at = said.get("epoch_s")
    (now,) = session.execute(_NOW).fetchone() or (0.0,)
    when = said.get("at", "at an unknown time")
    what = f"{place.live!r} was restored from {place.source.name} and swapped in already ({when})"
    if isinstance(at, int | float) and now - at < TWICE_S:
        structlog.get_logger().warning(
            "restore.finished",
            backup=place.source.name,
            database=place.live,
            reason=f"{what}: nothing was done; --again does it again",
        )
        return True
    raise TargetUnusable(
        "restore.swapped",
        what,
        "What was written since would leave the live database: if that is wanted, add --again.",
    )


def _require_not_replaced(
    session: Session, place: restored.Place, swaps: Mapping[int, Any]
) -> None:
    """Make sure that no call of long ago is done again over what took its place since.

    A swap that failed left its database waiting. Where a run was killed, and both databases are
    gone by now, nobody knows.
    """
    for oid, said in swaps.items():
        if said.get("database") not in (None, place.live):
            continue
        asked = [oid, place.into, said.get("kept_as"), oid, f"{restored.MARK}%"]
        waits, known = session.execute(_FATE, asked).fetchone() or (False, False)
        if not waits:
            raise TargetUnusable(
                "restore.swapped",
                f"{place.source.name} {'was' if known else 'may have been'} swapped in before "
                f"({said.get('at', 'some time ago')}), and {place.live!r} is another database now",
                "What it holds would leave the live place: if that is wanted, add --again.",
            )


# whether a database still waits to be swapped in, and whether there is any sign that it was
_FATE = """
SELECT bool_or(d.oid = %s::oid AND d.datname = %s::name) IS TRUE,
 bool_or(d.datname = %s::name OR d.oid = %s::oid
  AND coalesce(pg_catalog.shobj_description(d.oid, 'pg_database'), '') NOT LIKE %s) IS TRUE
FROM pg_catalog.pg_database d
"""


def _family(identity: Identity) -> str:
    """Return how the records of swaps on one server begin; a database's number follows."""
    return f"swap-{int(identity.system)}-"


def _swaps(place: restored.Place, identity: Identity) -> dict[int, dict[str, Any]]:
    """Return what was recorded of each database that was made from a backup and swapped in."""
    recorded: dict[int, dict[str, Any]] = {}
    pattern = re.compile(re.escape(_family(identity)) + r"(\d+)\.json")
    with store.usable(place.store):
        files = place.store.files(place.source.name)
    for number, file in ((match[1], each) for each in files if (match := pattern.fullmatch(each))):
        try:
            record = json.loads(store.small(place.store, place.source.name, file))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError, manifests.Unreadable):
            record = None  # it was, and nobody knows when
        record = record if isinstance(record, dict) else {}
        if record.get("address") in (None, identity.address) and not record.get("undone"):
            recorded[int(number)] = record
    return recorded


_NOW = "SELECT EXTRACT(epoch FROM pg_catalog.clock_timestamp())::float8"


def swap(
    session: Session,
    place: restored.Place,
    state: restored.State,
    identity: Identity,
    asked: restored.Asked,
) -> str | None:
    """Rename both databases in one transaction; return the old one's new name.

    Nobody is let into the new one from before it is compared until it has its name.
    """
    kept = unused(place.live, datetime.now(UTC), partial(new_database.described, session))
    into, record = quoting.name(place.into), None
    try:
        settings = new_database.quiet(session) | ALONE
        with sessions.beside(session, place.into, settings) as other:
            session.execute(f"ALTER DATABASE {into} ALLOW_CONNECTIONS false")
            ours = [item.pid for item in (session, other)]
            _clear(session, place, ours, end_sessions=asked.end_sessions)
            restored.require_same(other, place, state)
        begun = _begun(session, place, identity, kept)
        _record(place, begun, again=asked.again)
        record = begun
        slots = session.execute(_SLOTS, [place.live]).fetchall()
        subscribed = session.execute(_SUBSCRIBED, [place.live]).fetchall()
        renamed = _renamed(session, place, kept, end_sessions=asked.end_sessions)
    except BaseException as error:
        if not session.lost:
            with suppress(psycopg.Error, BackupFailed, BackupInterrupted):
                let_in(session, place.into)  # so it is there, and not the live one
                if record:
                    _record(place, (record[0], {**record[1], "undone": True}), again=False)
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            raise TargetUnusable(
                "restore.no_right",
                f"this role may not swap the databases: {error.diag.message_primary}",
                f"Run as the owner with CREATEDB; the restored database {place.into!r} is complete "
                "and waits.",
                sqlstate=error.sqlstate,
            ) from error
        raise
    if slots:
        _tell_slots([name for (name,) in slots], kept)
    if subscribed:
        _tell_subscribed([name for (name,) in subscribed], place.live, kept)
    return renamed


def unused(live: str, now: datetime, there: Callable[[str], object]) -> str:
    """Return a dated name for what was live; a second swap within a second has another one."""
    names = (
        restored.suffixed(live, f"_before_{now:%Y%m%dT%H%M%SZ}{f'_{number}' * (number > 1)}")
        for number in itertools.count(1)
    )
    return next(name for name in names if there(name) is None)


_SLOTS = """
SELECT s.slot_name::text FROM pg_catalog.pg_replication_slots s
WHERE s.database = %s::name AND NOT s.temporary ORDER BY 1
"""


def _tell_slots(names: Sequence[str], kept: str) -> None:
    structlog.get_logger().warning(
        "config.warned",
        warning=f"logical replication slots stay with {kept!r}: {console.some(names)}. What is "
        "written from now on is in none of them, and they keep WAL: drop them and make them anew",
    )


# the columns that any role may read
_SUBSCRIBED = """
SELECT s.subname::text FROM pg_catalog.pg_subscription s
JOIN pg_catalog.pg_database d ON d.oid = s.subdbid
WHERE d.datname = %s::name AND s.subenabled ORDER BY 1
"""


def _tell_subscribed(names: Sequence[str], live: str, kept: str) -> None:
    commands = [f"ALTER SUBSCRIPTION {quoting.name(name)} DISABLE;" for name in names[:10]]
    structlog.get_logger().warning(
        "config.warned",
        warning=f"{kept!r} goes on receiving what it has subscribed to: {console.some(names)}, and "
        f"{live!r} has none of it. Connect to {kept!r} and {' '.join(commands)} then make them "
        f"anew in {live!r}",
    )


def let_in(session: Session, name: str) -> None:
    """Open a database again; a stop request waits for that."""
    session.connection.execute(
        f"ALTER DATABASE {quoting.name(name)} ALLOW_CONNECTIONS true".encode()
    )


def _clear(
    session: Session, place: restored.Place, ours: Sequence[int], *, end_sessions: bool
) -> None:
    """Make sure that nobody is in the new database; raises TargetUnusable."""
    others = _others(session, place, ours)
    if others and not end_sessions:
        names = ", ".join(f"pid {pid} ({name}, {user})" for pid, name, user, _ in others[:10])
        raise _in_the_way(place, f"{len(others)} sessions are connected: {names}")
    _end(session, place, [each for each in others if each[-1] == place.into])
    for waited in stop.looks(0.1, 0.1):
        there = _connected(session, place, ours)
        left = [pid for pid, *_, where in there if where == place.into]
        if not left:
            break
        if waited >= LAST_SESSIONS_S:
            said = f"sessions do not end: pid {', '.join(map(str, left))}"
            raise _in_the_way(place, said, ended=end_sessions)


_PREPARED = """
SELECT p.gid, p.owner::text, p.database::text FROM pg_catalog.pg_prepared_xacts p
WHERE p.database = ANY (%s::name[])
"""


def _prepared(session: Session, place: restored.Place) -> set[tuple[str, str, str]]:
    """Return the prepared transactions that keep a name: no end of a session ends one."""
    return set(session.execute(_PREPARED, [[place.live, place.into]]).fetchall())


def _require_settled(session: Session, place: restored.Place) -> None:
    """Wait until those that are there now have ended; raises TargetUnusable that names who stays.

    What is prepared meanwhile the server waits for, as it does for sessions.
    """
    found = _prepared(session, place)
    for waited in stop.looks(0.1, 0.2):
        found &= _prepared(session, place)
        if not found:
            return
        if waited >= PREPARED_S:
            break
    said = [f"{gid!r} of {owner} in {database!r}" for gid, owner, database in sorted(found)]
    gid = quoting.literal(min(found)[0])
    raise TargetUnusable(
        "restore.sessions",
        f"{len(found)} prepared transactions are in the way: {console.some(said)}",
        "If its coordinator lives, let it finish. Else, as that had decided: COMMIT PREPARED "
        f"{gid} or ROLLBACK PREPARED {gid}, said in its database; --end-sessions does not end it. "
        f"The restored database {place.into!r} is complete and waits: then run the same command "
        "again.",
    )


def _begun(
    session: Session, place: restored.Place, identity: Identity, kept: str
) -> tuple[str, dict[str, Any]]:
    """Return the record of a swap: its file, by the new database's number, and what it says.

    It is true once the database of that number has the live one's name, so a swap that is killed
    after it needs nothing undone.
    """
    (oid,) = session.execute(_OID, [place.into]).fetchone() or (0,)
    (now,) = session.execute(_NOW).fetchone() or (0.0,)
    at = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")
    record = {"database": place.live, "at": at, "epoch_s": now, "kept_as": kept}
    return f"{_family(identity)}{oid}.json", {**record, "address": identity.address}


def _record(place: restored.Place, record: tuple[str, dict[str, Any]], *, again: bool) -> None:
    """Write down which database is about to take the live one's place."""
    file, said = record
    try:
        with place.store.sink(place.source.name, file) as sink:
            sink.write(json.dumps(said, indent=2, ensure_ascii=False).encode() + b"\n")
    except OSError as error:
        if not again:
            failure = place.store.failure(error)
            raise type(failure)(
                failure.code,
                f"the swap cannot be recorded, and {place.into} stays beside: {failure}",
                f"{failure.problem.hint} Then the same command goes on from there; --again goes "
                "without a record.",
            ) from error


_OID = "SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = %s::name"


def _renamed(
    session: Session, place: restored.Place, kept: str, *, end_sessions: bool
) -> str | None:
    ours = [session.pid]
    for attempt in range(1, RENAME_TRIES + 1):
        others = _others(session, place, ours)
        if others and not end_sessions:
            names = ", ".join(f"pid {pid} ({name}, {user})" for pid, name, user, _ in others[:10])
            raise _in_the_way(place, f"{len(others)} sessions are connected: {names}")
        if attempt == 1:  # before anybody is disturbed
            _require_settled(session, place)
        try:
            with sessions.transaction(session):
                _end(session, place, others)
                with _ending(session, place) if end_sessions else nullcontext():
                    return _rename(session, place, kept)
        except psycopg.errors.ObjectInUse as error:  # somebody connected in between
            if attempt == RENAME_TRIES:
                said = f"{error.diag.message_primary}: {error.diag.message_detail}"
                raise _in_the_way(place, said, ended=end_sessions) from error
            stop.sleep(0.1 * attempt)
    return None


def _end(session: Session, place: restored.Place, others: Sequence[tuple[Any, ...]]) -> None:
    """End sessions; raises TargetUnusable that names the first one that this role may not end."""
    for pid, name, user, _ in others:
        try:
            session.execute("SELECT pg_catalog.pg_terminate_backend(%s::int4)", [pid])
        except psycopg.errors.InsufficientPrivilege as error:
            us = quoting.name(session.facts.user) if session.facts else "this role"
            member = f"GRANT {quoting.name(user)} TO {us}, or " if user else ""  # else dropped
            raise TargetUnusable(
                "restore.no_right",
                f"this role may not end a session: pid {pid} ({name}, {user}): "
                f"{error.diag.message_primary}",
                f"{member}GRANT pg_signal_backend TO {us} (a "
                "superuser's session only a superuser ends); or stop it by hand. The restored "
                f"database {place.into!r} is complete and waits: then run the same command again.",
                sqlstate=error.sqlstate,
            ) from error


@contextmanager
def _ending(session: Session, place: restored.Place) -> Iterator[None]:
    """End whoever gets into the live database before its name is locked, while that is waited for.

    Once the server waits for them to go it lets nobody new in, so those are the last ones.
    """
    live = new_database.described(session, place.live)
    if live is None:
        yield
        return
    over = threading.Event()
    target = session.address() | session.secrets()
    ours = session.pid
    ends = partial(_end_all, target, live.oid, ours, over)
    thread = threading.Thread(target=ends, daemon=True, name="end sessions")
    threads.start(thread)
    try:
        yield
    finally:
        over.set()
        thread.join(sessions.CANCEL_S)


# by its number: the new one has its name a moment later
_IN = """
SELECT a.pid FROM pg_catalog.pg_stat_activity a
WHERE a.datid = %s::oid AND a.pid <> %s::int4 AND a.usesysid IS NOT NULL
"""


def _end_all(target: Mapping[str, str], oid: int, ours: int, over: threading.Event) -> None:
    """End the sessions of a database until it is over; whom this role may not end stays."""
    while not over.is_set():
        with suppress(dial.Refused, psycopg.Error), dial.from_thread(target) as connection:
            connection.execute(f"SET {sessions.PATH}; SET statement_timeout = '5s'")
            while not over.wait(ENDED_EVERY_S):
                for (pid,) in connection.execute(_IN, [oid, ours]).fetchall():
                    with suppress(psycopg.errors.InsufficientPrivilege):
                        connection.execute("SELECT pg_catalog.pg_terminate_backend(%s)", [pid])
        over.wait(ENDED_EVERY_S)


def _connected(
    session: Session, place: restored.Place, ours: Sequence[int]
) -> list[tuple[Any, ...]]:
    return session.execute(_SESSIONS, [place.live, place.into, list(ours)]).fetchall()


def _others(session: Session, place: restored.Place, ours: Sequence[int]) -> list[tuple[Any, ...]]:
    """Return who is connected to either database, once our own last sessions had time to end."""
    found: list[tuple[Any, ...]] = []
    for waited in stop.looks(0.1, 0.1):
        found = _connected(session, place, ours)
        if not found or waited >= LAST_SESSIONS_S:
            break
    return found


def _in_the_way(place: restored.Place, what: str, *, ended: bool = False) -> TargetUnusable:
    return TargetUnusable(
        "restore.sessions",
        what,
        f"The restored database {place.into!r} is complete and waits. Stop the app and run the "
        f"same command again{'' if ended else ', or add --end-sessions'}.",
    )


def _rename(session: Session, place: restored.Place, kept: str) -> str | None:
    live, into = quoting.name(place.live), quoting.name(place.into)
    before = new_database.described(session, place.live)
    if before:
        session.execute(f"ALTER DATABASE {live} RENAME TO {quoting.name(kept)}")
    session.execute(f"ALTER DATABASE {into} RENAME TO {live}")
    known = place.own.comment if place.own else None
    comment = before.comment if before else known
    said = quoting.literal(comment) if comment else "NULL"
    session.execute(f"COMMENT ON DATABASE {live} IS {said}")
    session.execute(f"ALTER DATABASE {live} ALLOW_CONNECTIONS true")
    return kept if before else None
