"""A copy that somebody else has made: checked, used, and left as it is afterwards.

A branch, a snapshot, a recovery cluster: nothing is restored there, so it proves no backup; that it
is a copy of the live database, and not the live one, is asked before a file runs.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

import psycopg
import structlog

from preflight.backup import new_database
from preflight.base import console
from preflight.base.errors import HistoryConflict, RehearsalFailed
from preflight.history import ledger
from preflight.rehearsal import copies, scratch
from preflight.server import catalog

if TYPE_CHECKING:
    from preflight.base.config import Config
    from preflight.files.migrations import Script
    from preflight.history.plan import History
    from preflight.server.sessions import Session

VARIABLE = "PREFLIGHT_REHEARSE_CLONE_URL"
# of whoever holds this key: is it our own database, or another one of the same server
_SEEN = """
SELECT l.database = (SELECT d.oid FROM pg_catalog.pg_database d
 WHERE d.datname = pg_catalog.current_database()) FROM pg_catalog.pg_locks l
WHERE l.locktype = 'advisory' AND l.objsubid = 1
 AND l.classid = %(high)s::oid AND l.objid = %(low)s::oid
"""
_OF_OTHERS = "SELECT s.name::text FROM pg_catalog.pg_settings s WHERE s.context <> 'user'"
_SINCE = "EXTRACT(epoch FROM pg_catalog.clock_timestamp() - {})::float8"


@contextmanager
def checked(session: Session, config: Config, scripts: Sequence[Script]) -> Iterator[copies.Copy]:
    """Yield the clone once it is known to be one; it is neither made nor dropped.

    Raises RehearsalFailed where it is the live database, or nobody can tell; Unavailable where it
    cannot be reached, is another database, or is not as the live one is.
    """
    began = time.monotonic()
    assert config.rehearse_clone_url is not None  # noqa: S101 -- only then this is called
    name = f"the database of {VARIABLE}"
    with scratch.elsewhere(config, config.rehearse_clone_url, name) as clone:
        clone.target = clone.address() | clone.secrets()  # of several hosts this one stays it
        same = _on_the_same_server(session, clone)
        scratch.require_no_older(session, clone, name)
        copies.require_inside(session, scripts, elsewhere=not same)
        if same:
            copies.require_tame(session, scripts)
        unlike = scratch.fidelity(session, clone)
        _require_alike(session, clone, unlike)
        unset = _unset(session, clone)
        _on_the_same_server(session, clone)  # a look at the history may have connected anew
        structlog.get_logger().info(
            "rehearsal.started",
            database=clone.connection.info.dbname,
            where="clone",
            server=f"{clone.connection.info.host}:{clone.connection.info.port}",
            age_s=_age(clone),
            fidelity=unlike,
        )
        clone.copy = True
        if scripts:
            ledger.ensure(clone)  # where it was made before the first run
        name = clone.connection.info.dbname
        with scratch.reached(clone, name, unset) if unset else nullcontext(clone) as copy:
            yield copies.Copy(
                copy, name, 0.0, began, clone, where="clone", fidelity=unlike, beside=same
            )


def _unset(session: Session, clone: Session) -> dict[str, str]:
    """Return the live database's settings that the clone has not; Unavailable where it has more.

    They are no part of a database, and CREATE DATABASE … TEMPLATE leaves them out. Those that not
    every role may set (logs, limits) change no file's outcome, and a login with them is refused.
    """
    here, there = _settings(session), _settings(clone)
    if more := sorted(there.keys() - here.keys()):
        raise scratch.Unavailable(
            f"the clone has settings that the live database has not: {console.some(more)}", more
        )
    return {name: value for name, value in here.items() if there.get(name) != value}


def _settings(session: Session) -> dict[str, str]:
    """Return what a database sets for whoever logs in to it as we do; what is for us alone wins."""
    own = new_database.described(session, session.connection.info.dbname)
    found = sorted(scratch.settings_for(session, own), key=lambda each: each.role is not None)
    others = {name for (name,) in session.execute(_OF_OTHERS).fetchall()}
    return {each.name: each.setting.partition("=")[2] for each in found if each.name not in others}


def _on_the_same_server(session: Session, clone: Session) -> bool:
    """Tell whether the clone shares a server with the live database; it may not be that itself.

    A lock that the live session holds is seen there, whatever alias or pooler leads to it.
    """
    key = secrets.randbits(64)
    number = key - 2**64 if key >= 2**63 else key
    session.execute("SELECT pg_catalog.pg_advisory_lock(%s::int8)", [number])
    try:
        found = clone.execute(_SEEN, {"high": key >> 32, "low": key & 0xFFFFFFFF}).fetchall()
    except psycopg.Error as error:
        raise RehearsalFailed(
            "rehearsal.clone_unknown",
            f"whether {VARIABLE} names a copy cannot be asked: {error.diag.message_primary}",
            "The role needs SELECT on pg_catalog.pg_locks there. Nothing was run on it, and the "
            "live database was not changed.",
            sqlstate=error.sqlstate,
        ) from error
    finally:
        if not session.lost:
            session.execute("SELECT pg_catalog.pg_advisory_unlock(%s::int8)", [number])
    if (True,) in found:
        raise RehearsalFailed(
            "rehearsal.clone_is_live",
            f"{VARIABLE} names the live database itself",
            "Name a copy of it, or unset the variable. Nothing was run on it.",
        )
    return bool(found)


def _require_alike(session: Session, clone: Session, unlike: str | None) -> None:
    """Make sure that a clone is as the live database is now; raises Unavailable."""
    try:
        there = ledger.read(clone)
    except HistoryConflict as conflict:
        raise scratch.Unavailable(f"the history of the clone: {conflict}") from conflict
    here = ledger.read(session)
    versions = here.records.keys() | there.records.keys()
    other = [v for v in sorted(versions) if here.records.get(v) != there.records.get(v)]
    named = [f"{version:03d}" for version in other or _further(session, clone, here)]
    repeated = here.repeated.keys() | there.repeated.keys()
    named += [n for n in sorted(repeated) if here.repeated.get(n) != there.repeated.get(n)]
    if named:  # empty tables that this run has made a moment ago are as good as none
        raise scratch.Unavailable(
            f"the clone has another history than the live database: {console.some(named)} "
            "(was it used before, or made before the last deployment? Make it anew)"
        )
    own = session.config.schema
    different = catalog.difference(_shapes(session, own), _shapes(clone, own))
    if different:
        major = f" ({unlike})" if unlike else ""
        raise scratch.Unavailable(
            f"the clone{major} is not as the live database is: {console.some(different)}",
            different[:100],
        )


def _further(session: Session, clone: Session, here: History) -> list[int]:
    """Return the files that stopped part-way, but not at the same statement on both sides."""
    if all(record.state == "done" for record in here.records.values()):
        return []
    try:
        rows, others = ledger.unfinished(session), ledger.unfinished(clone)
    except psycopg.Error as error:
        if session.lost:
            raise
        raise scratch.Unavailable(
            f"how far the clone's history is cannot be read: {error.diag.message_primary or error}"
        ) from error
    return sorted({row.version for row in {*rows} ^ {*others}})


def _shapes(session: Session, own: str) -> catalog.Objects:
    """Return what a database holds, but for our own tables and for how many large objects."""
    but = {"large objects", f"schema {own}"}
    found = catalog.shapes(session)
    return (row for row in found if row[0] not in but and f" {own}." not in row[0])


def _age(clone: Session) -> float | None:
    """Return how old the clone's newest known change is, in seconds; None where nobody can tell."""
    queries = [
        f"SELECT {_SINCE.format('pg_catalog.pg_last_xact_replay_timestamp()')}",
        f"SELECT {_SINCE.format('max(j.at)')} FROM {clone.config.schema}.journal j",  # noqa: S608 -- a checked name
    ]
    ages: list[float] = []
    for query in queries:
        with suppress(psycopg.ProgrammingError):  # not ours to read, or not there
            (age,) = clone.execute(query).fetchone() or (None,)
            ages += [] if age is None else [age]
    return round(min(ages), 1) if ages else None
