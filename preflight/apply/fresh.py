"""A new session for a file that must not find what earlier ones left in the old one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from preflight.base.errors import PlanChanged
from preflight.files import remains
from preflight.history import journal
from preflight.server import lock

if TYPE_CHECKING:
    from preflight.files.migrations import Migration, Script
    from preflight.server import watch
    from preflight.server.sessions import Session

_LEFT = (
    "a file left a setting with a dot in its name in this session, and no new one can be "
    "had here: it is empty now, and not NULL"
)
_DOUBTED = (
    "a file may have left a setting with a dot in its name, or a connection to another "
    "server, in this session, and no new one can be had here: such a setting is empty now, and "
    "not NULL"
)


def anew(session: Session, migration: Migration, script: Script | None = None) -> None:
    """Give a file a new session where the old one is not what it would get in a run of its own.

    Earlier files changed what a session is given at its start, or left in it what nothing takes
    away. The old one gives it the lock; raises PlanChanged when another run did something in
    between nevertheless, LockBusy, ConnectionLost.
    """
    session.notice()
    if session.stale or session.worn or session.doubted:
        _renew(session, migration)
    session.expect(remains.names([script or migration.up, migration.verify]))


def before_checks(session: Session, migration: Migration, seen: watch.Watch) -> None:
    """Give a verify file a new session where its own file left such a thing in the old one.

    Outside any transaction: what is not committed no other session sees. Raises as `anew`.
    """
    if migration.verify is None:
        return
    session.compare()
    if session.worn or session.doubted:
        _renew(session, migration)
        seen.pid = session.pid
        session.doubted = remains.unknown([migration.verify])
        session.expect(set())


def _renew(session: Session, migration: Migration) -> None:
    if locked := session.locked:
        lock.require(session)
    before = journal.last_change(session)
    if not (lock.renew(session) if locked else session.renew()):
        _warn(session, migration)
        session.stay()
        return
    if locked:
        lock.keep(session)
        if journal.last_change(session) != before:
            raise PlanChanged
    session.notice()


def _warn(session: Session, migration: Migration) -> None:
    """Say what the file finds; of what is left in the session once a run."""
    if session.stale:
        notice = (
            "an earlier file changed settings of the database or the role for new sessions, "
            "and none can be had here: this file runs with the settings from before"
        )
    elif session.warned:
        return
    else:
        session.warned = True
        notice = _LEFT if session.worn else _DOUBTED
    structlog.get_logger().warning("migration.progressed", **migration.named, notice=notice)
