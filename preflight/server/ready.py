"""What work needs of a server that a look does not: a writable primary that stays."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog

from preflight.base import quoting, stop
from preflight.base.errors import (
    TargetUnusable,
)

if TYPE_CHECKING:
    from preflight.server import sessions

OLDEST, NEWEST = 13, 18  # majors that are tested
YOUNG = "1 hour"  # a server that was filled for longer is not taken for an image's
STABLE_S = 3.0  # how long a server that may be temporary must live before work starts on it

_MISSING = """
SELECT w.name FROM pg_catalog.unnest(%s::text[]) w (name)
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_namespace n WHERE n.nspname::text = w.name) ORDER BY 1
"""
_ALIKE = "SELECT n.nspname::text FROM pg_catalog.pg_namespace n WHERE lower(n.nspname) = ANY (%s)"

# what others do may be hidden from this role: then whoever is there is at work
_LIFE = f"""SELECT pg_catalog.current_setting('listen_addresses') = '' AS alone,
 pg_catalog.clock_timestamp() - pg_catalog.pg_postmaster_start_time() < interval '{YOUNG}'
 AND EXISTS (SELECT FROM pg_catalog.pg_stat_activity a
  WHERE a.application_name = ANY ('{{psql,pg_restore}}') AND a.state IS DISTINCT FROM 'idle')
 AS scripted"""  # noqa: S608 -- a constant


def require_direct(session: sessions.Session) -> None:
    """Refuse a pooler, behind which no lock holds, and a server that is too old: TargetUnusable."""
    facts = session.facts
    if facts is not None and facts.pooler and not session.own():
        raise TargetUnusable(
            "target.pooler",
            "a connection pooler stands between us and the server: locks and session settings "
            "would not hold",
            "Connect to PostgreSQL directly for migrations (the app may keep the pooler).",
        )
    if facts is not None and facts.major < OLDEST:
        raise TargetUnusable(
            "target.version",
            f"PostgreSQL {facts.major} is not supported",
            f"Supported: {OLDEST} to {NEWEST}.",
        )


def require_writable(session: sessions.Session) -> None:
    """Wait for a writable primary that stays; a pooler is refused at once. Raises TargetUnusable.

    What comes after a server that did not stay is looked at anew.
    """
    told = ""
    for waited in stop.looks(0.2, 0.5):
        if waited:
            session.reopen()
            session.look()
        facts = session.facts or session.look()
        require_direct(session)
        if not (facts.standby or facts.read_only):
            if not session.local or _stays(session):
                return
            continue
        what = "a standby" if facts.standby else "read-only"
        if what != told:
            told = what
            reason = f"{what}: waiting for a writable primary"
            structlog.get_logger().info("server.waiting", reason=reason)
        if time.monotonic() >= session.deadline:
            raise TargetUnusable(
                "target.read_only",
                f"the server is {what}, and there is work to do",
                "Connect to the primary; with several hosts set PGTARGETSESSIONATTRS=read-write. "
                "If default_transaction_read_only is set for the database or the role, unset it.",
            )


def _stays(session: sessions.Session) -> bool:
    """Tell whether this is not the server that an image starts to initialise itself.

    The official image runs its init scripts on one that listens on the Unix socket alone, and then
    stops it. So a server without TCP must keep its sessions for a few seconds, and still be there;
    while it is young and somebody fills it, for as long as a server is waited for.
    """
    log, told = structlog.get_logger(), False
    seen, since = session.connection, 0.0
    for waited in stop.looks(0.2, 0.2):
        alone, scripted = _life(session)
        if session.connection is not seen:  # it was lost: the facts may be of another life
            return False
        if not alone:
            break
        if not waited:
            log.info(
                "server.waiting", reason=f"no TCP: making sure for {STABLE_S:g} s that it stays"
            )
        if scripted and time.monotonic() < session.deadline:
            since = waited
            if not told:
                told = True
                log.info(
                    "server.waiting", reason="no TCP, and psql is at work on it: init scripts?"
                )
        if waited - since >= STABLE_S:
            break
    return True


def _life(session: sessions.Session) -> tuple[bool, bool]:
    """Return whether the server has no TCP, and whether it is young and filled by a client."""
    row = session.ask(_LIFE)[0]
    return row["alone"], row["scripted"]


def require_schemas(session: sessions.Session) -> None:
    """Make sure that each schema that was named is there; raises TargetUnusable.

    But for ours, which is always among them, and made by the first run.
    """
    named = [name for name in session.config.schemas if name != session.config.schema]
    if not named:
        return
    gone = [name for (name,) in session.execute(_MISSING, [named]).fetchall()]
    if gone:
        lower = [name.lower() for name in gone]
        alike = [name for (name,) in session.execute(_ALIKE, [lower]).fetchall()]
        shown = ", ".join(map(quoting.name, gone))
        raise TargetUnusable(
            "target.no_schema",
            f"{session.config.named('schemas', 'PREFLIGHT_SCHEMAS')} names what the database does "
            f"not have: {shown}",
            f"{'There is ' + ', '.join(map(quoting.name, alike)) + '. ' if alike else ''}"
            "Names are taken as they are written, capitals and stars too. One that the files are "
            "to fill is made before the first run: CREATE SCHEMA …; one that a file has dropped "
            "or renamed is to be named no more.",
        )
