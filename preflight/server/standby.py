"""A COMMIT that waits for a synchronous standby: say so, and end the wait where we are to stop.

A statement outside any transaction commits several times by itself, and waits each time.
"""

from __future__ import annotations

import math
import threading
import time
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
import structlog
from psycopg import waiting

from preflight.base import stop, threads
from preflight.server import dial

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from psycopg.abc import PQGen

T = TypeVar("T")
SLOW_S = 1.0  # what a COMMIT may take before anybody looks
LOOK_EVERY_S = 0.25
PATIENCE_S = 1.0  # what a stop leaves the standby: one that is only slow has answered by then
LAST_S = 2.0  # behind a stop: a session that waits still, whatever was cancelled, is ended
TELL_EVERY_S = 10.0
_READY = "SET search_path = pg_catalog, pg_temp; SET statement_timeout = '5s'"
# in one statement: PostgreSQL ends the wait alone, what was committed stays, and no later
# statement is hit by it
_WAITS = """SELECT pg_catalog.current_setting('synchronous_standby_names'),
 CASE %s WHEN 'cancel' THEN pg_catalog.pg_cancel_backend(a.pid)
  WHEN 'terminate' THEN pg_catalog.pg_terminate_backend(a.pid) END
 FROM pg_catalog.pg_stat_activity a WHERE a.pid = %s::int4 AND a.wait_event = 'SyncRep'"""


def waits(connection: psycopg.Connection[Any], pid: int, end: str = "") -> str | None:
    """Say what a session waits for, if it is a synchronous standby.

    To `end` the wait `cancel` it, or `terminate` the session.
    """
    row = connection.execute(_WAITS, [end, pid]).fetchone()
    return f"waits for a synchronous standby: synchronous_standby_names={row[0]}" if row else None


def guarded(answer: PQGen[T], call: Callable[[], Vigil], slow_s: float = SLOW_S) -> PQGen[T]:
    """Wait for the answer to a COMMIT; have somebody look where it does not come.

    Or to a statement outside any transaction, which may be slow: then only behind a stop.
    """
    began, vigil = time.monotonic(), None
    try:
        wanted = next(answer)
        while True:
            ready = yield wanted
            if ready != waiting.Ready.NONE:
                wanted = answer.send(ready)
            elif vigil is None and (
                stop.requested() is not None or time.monotonic() - began >= slow_s
            ):
                vigil = call()
                vigil.begin()
    except StopIteration as ended:
        found: T = ended.value
        return found
    finally:
        if vigil is not None:
            vigil.end()


class Vigil:
    """The thread that looks after one COMMIT, over a connection of its own.

    After a stop it is patient for so long with what it waits for, and ends the session `last_s`
    behind the stop, if ever: the wait of a COMMIT is the only one.
    """

    def __init__(
        self,
        target: Mapping[str, str],
        pid: int,
        name: str,
        patience_s: float = PATIENCE_S,
        last_s: float = math.inf,
    ) -> None:
        self.target = {**target, "application_name": name}
        self.pid = pid
        self.patience_s, self.last_s = patience_s, last_s
        self.over = threading.Event()
        self.looking = threading.Lock()
        self.context = copy_context()  # of a copy nothing is told, here neither
        self.told: float | None = None
        self.asked: float | None = None  # when a stop was first seen

    def begin(self) -> None:
        """Look until the answer is there."""
        thread = threading.Thread(
            target=self.context.run, args=[self._run], daemon=True, name="vigil"
        )
        threads.started(thread)  # else it is waited for without a word

    def end(self) -> None:
        """Look no more; when it returns, no cancel is on its way."""
        self.over.set()
        if self.looking.acquire(timeout=2.0):
            self.looking.release()

    def _run(self) -> None:
        with suppress(dial.Refused, psycopg.Error), dial.from_thread(self.target) as connection:
            connection.execute(_READY)
            while not self.over.is_set():
                with self.looking:
                    if not self.over.is_set():
                        self._look(connection)
                self.over.wait(LOOK_EVERY_S)

    def _look(self, connection: psycopg.Connection[Any]) -> None:
        now = time.monotonic()
        if self.asked is None and stop.requested() is not None:
            self.asked = now
        passed = -1.0 if self.asked is None else now - self.asked
        end = "terminate" if passed >= self.last_s else "cancel" * (passed >= self.patience_s)
        found = waits(connection, self.pid, end)
        if found and (self.told is None or now - self.told >= TELL_EVERY_S):
            self.told = now
            structlog.get_logger().info("server.waiting", reason=f"COMMIT {found}")
