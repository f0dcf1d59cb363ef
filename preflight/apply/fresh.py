"""A new session for a file that must not find what earlier ones left in the old one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from preflight.base.errors import PlanChanged
from preflight.history import journal
from preflight.server import lock

if TYPE_CHECKING:
    from preflight.files.migrations import Migration
    from preflight.server.sessions import Session


def anew(session: Session, migration: Migration) -> None:
    """Give a file a new session where the old one is not what it would get in a run of its own.

    Earlier files changed what a session is given at its start, or left in it what nothing takes
    away. The old one gives it the lock; raises PlanChanged when another run did something in
    between nevertheless, LockBusy, ConnectionLost.
    """
    session.notice()
    if not (session.stale or session.worn):
        return
    if locked := session.locked:
        lock.require(session)
    before = journal.last_change(session)
    if not (lock.renew(session) if locked else session.renew()):
        structlog.get_logger().warning(
            "migration.progressed", **migration.named, notice=_notice(stale=session.stale)
        )
        session.stale, session.worn, session.given = False, False, None  # said once
    elif locked:
        lock.keep(session)
        if journal.last_change(session) != before:
            raise PlanChanged
    session.notice()


def _notice(*, stale: bool) -> str:
    if stale:
        return (
            "an earlier file changed settings of the database or the role for new sessions, "
            "and none can be had here: this file runs with the settings from before"
        )
    return (
        "a setting with a dot in its name, or a connection to another server, was left in this "
        "session, and no new one can be had here: such a setting is empty now, and not NULL"
    )
