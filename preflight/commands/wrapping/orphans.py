"""Sessions of a wrapped command that outlive its run: noted in time, waited for by the next run.

Whoever kills the gate takes its lock away at once, and the command's processes. The statement that
one of these is at goes on at the server: beside it the command may not run again. A session is
known by its process's number and by when it began, so a number in use again is nobody's, and
neither is one on another server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg

from preflight.base import stop
from preflight.base.errors import DatabaseBusy
from preflight.history import journal
from preflight.server import lock

if TYPE_CHECKING:
    from preflight.commands.wrapping.asked import Wrapped
    from preflight.commands.wrapping.onlooker import OnLive
    from preflight.server.sessions import Session


class Noted:
    """The sessions of a command in earnest, each written down when it is first seen."""

    def __init__(self, session: Session, wrapped: Wrapped) -> None:
        self.session = session
        self.wrapped = wrapped
        self.pids: set[int] = set()
        self.numbers: list[int] = []  # of the transactions that this took

    def note(self, live: OnLive) -> None:
        """Write down who is new; the command runs on where that cannot be written."""
        new = live.pids - self.pids
        if not new:
            return
        self.pids |= new
        name, key = self.wrapped.name, self.wrapped.files_key
        try:
            self.numbers += journal.note_running(self.session, name, key, new, live.ports)
        except psycopg.Error:
            if self.session.lost:
                raise


def wait(session: Session) -> None:
    """Wait for the sessions of commands whose run is gone; call under the lock.

    Raises DatabaseBusy at LOCK_WAIT_S, naming one of them. Nobody is ended.
    """
    waiting = lock.Waiting(session)
    for waited in stop.looks(*lock.POLL_S):
        left = journal.running(session)
        if not left:
            return
        first = lock.Holder.seen(*left[0][:4])
        if waiting.over(waited, first.data):
            does, advice = _told(first, left[0][4])
            raise DatabaseBusy(
                "wrap.still_at_work",
                f"a session of a wrapped command, whose run is gone, {does} after {waited:.0f} s: "
                f"{first}",
                advice,
            )


def _told(holder: lock.Holder, state: str) -> tuple[str, str]:
    """Say what a session does, and what to do about it: one that does nothing does not finish."""
    if not state.startswith("idle in transaction"):
        return "is still at work", lock.advice(holder)
    ends = f"SELECT pg_terminate_backend({holder.pid}) ends it, and rolls back what it was at"
    return "still holds a transaction open and does nothing", f"{ends}; then run again."
