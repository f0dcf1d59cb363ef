"""Try again while somebody is in the way."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import psycopg
import structlog

from preflight.apply import statements
from preflight.base import stop
from preflight.base.errors import DatabaseBusy, MigrationPartial
from preflight.server import lock, sessions, watch

if TYPE_CHECKING:
    from tenacity import RetryCallState

    from preflight.files.migrations import Migration, Script
    from preflight.server.sessions import Session

T = TypeVar("T")


def patiently(
    session: Session,
    migration: Migration,
    seen: watch.Watch,
    transaction: Callable[[], T],
    *,
    claims: bool = False,
) -> T:
    """Run a file's transaction, again while somebody is in the way; return what it does.

    One with an effect beyond the database is not run again: that would not be rolled back. One that
    only `claims` the file has none.
    """

    def anew() -> None:
        seen.begin()
        session.reset(sessions.FORGET)  # prepared statements outlive a rollback
        lock.let_go(session)  # so do locks of the session

    seconds = session.config.lock_retry_s
    beyond = (lambda: None) if claims else partial(_beyond, migration.up)
    try:
        return tried(session, migration, seen, transaction, anew, seconds, beyond)
    except psycopg.Error as error:
        if session.lost or not passing(error):
            raise
        reached = beyond()
        raise DatabaseBusy(
            "database.busy",
            f"{migration.name}: {error.diag.message_primary or error}"
            f"{'' if reached else ' after all retries'}; "
            f"blocked by {watch.named(seen.blockers(error.sqlstate))}",
            f"It was rolled back but not tried again, for it {reached}. Put that into a file of "
            "its own, and run again at a quieter time."
            if reached
            else f"{'Nothing was begun' if claims else 'It was rolled back'}. Run again at a "
            "quieter time, end the blocker, or raise PREFLIGHT_LOCK_RETRY_S.",
            **migration.named,
            sqlstate=error.sqlstate,
        ) from error


def tried(  # noqa: PLR0913, PLR0917 -- what is tried, and how
    session: Session,
    migration: Migration,
    seen: watch.Watch,
    attempt: Callable[[], T],
    anew: Callable[[], None],
    seconds: float,
    beyond: Callable[[], object],
) -> T:
    """Return what an attempt gives, made `anew` while somebody is in the way; raises the last one.

    Where something is done `beyond` the database it is made once.
    """
    began = time.monotonic()
    try:
        return attempt()
    except (psycopg.Error, MigrationPartial) as error:
        if session.lost or not passing(error):
            raise
        first: Exception | None = error
    # nearly no file has to load what repeats
    from tenacity import Retrying, retry_if_exception, wait_random_exponential  # noqa: PLC0415

    def once() -> T:
        nonlocal first
        if first is None:
            return attempt()
        raised, first = first, None
        raise raised

    def before(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        sqlstate = passing(error)
        structlog.get_logger().warning(
            "migration.retried",
            **migration.named,
            attempt=state.attempt_number,
            sqlstate=sqlstate,
            blocked_by=watch.told(seen.blockers(sqlstate)),
        )
        anew()

    deadline = began + seconds
    retrying = Retrying(
        retry=retry_if_exception(lambda error: bool(passing(error) and not beyond())),
        wait=wait_random_exponential(0.1, max=5, min=0.1),
        stop=lambda _: time.monotonic() >= deadline,
        sleep=stop.sleep,
        before_sleep=before,
        reraise=True,
    )
    return retrying(once)


def passing(error: BaseException | None) -> str | None:
    """Return the SQLSTATE of a failure for which somebody else is to blame."""
    told = error.problem if isinstance(error, MigrationPartial) else error
    sqlstate: str | None = getattr(told, "sqlstate", None)
    return sqlstate if sqlstate in sessions.PASSING else None


def _beyond(script: Script) -> str | None:
    """Return the first effect beyond the database of a file that met somebody in its way."""
    from preflight.files import reach  # noqa: PLC0415 -- only then

    reached = (reach.beyond(text) for _, text in statements.each(script))
    return next((found.words for found in reached if found), None)
