"""Try again while somebody is in the way."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import psycopg
import structlog

from preflight.apply import fresh
from preflight.base import stop
from preflight.base.errors import DatabaseBusy, MigrationPartial, causes
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
        if not claims:
            session.compare()
            fresh.anew(session, migration)
            session.doubted, seen.pid = doubted, session.pid  # the next attempt leaves it again

    doubted = session.doubted
    seconds = session.config.lock_retry_s
    beyond = (lambda: None) if claims else partial(_beyond, migration.up)
    try:
        return tried(session, migration, seen, transaction, anew, seconds, beyond)
    except psycopg.Error as error:
        if session.lost or not passing(error, seen):
            raise
        reached = beyond()
        seen.recall(session)
        raise DatabaseBusy(
            "database.busy",
            f"{sessions.spot(error) or migration.name}: {error.diag.message_primary or error}"
            f"{'' if reached else ' after all retries'}; {in_the_way(error, seen)}",
            f"It was rolled back but not tried again, for it {reached}. Put that into a file of "
            f"its own, and run again at a quieter time{unless(error)}."
            if reached
            else f"{'Nothing was begun' if claims else 'It was rolled back'}. Run again at a "
            f"quieter time, {watch.ending(seen.blockers(error.sqlstate))}, or raise "
            "PREFLIGHT_LOCK_RETRY_S.",
            **sessions.placed(error) | migration.named,
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
        if session.lost or not passing(error, seen):
            raise
        first: Exception | None = error
    # nearly no file has to load what repeats
    from tenacity import Retrying, retry_if_exception, wait_random_exponential  # noqa: PLC0415

    def once() -> T:
        nonlocal first
        if first is None:
            seen.tried.set()
            return attempt()
        raised, first = first, None
        raise raised

    def before(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        sqlstate = passing(error, seen)
        if error and sqlstate == sessions.UNIQUE:
            seen.collisions.add(_place(error, seen))
        seen.recall(session)
        structlog.get_logger().warning(
            "migration.retried",
            **migration.named,
            attempt=state.attempt_number,
            sqlstate=sqlstate,
            blocked_by=watch.told(seen.blockers(sqlstate)),
        )
        anew()

    def over(state: RetryCallState) -> bool:
        # whose fault a row is that is there already, another try tells: it is had in any case
        error = state.outcome.exception() if state.outcome else None
        return time.monotonic() >= deadline and passing(error, seen) != sessions.UNIQUE

    deadline = began + seconds
    retrying = Retrying(
        retry=retry_if_exception(lambda error: bool(passing(error, seen) and not beyond())),
        wait=wait_random_exponential(0.1, max=5, min=0.1),
        stop=over,
        sleep=stop.sleep,
        before_sleep=before,
        reraise=True,
    )
    return retrying(once)


def passing(error: BaseException | None, seen: watch.Watch | None = None) -> str | None:
    """Return the SQLSTATE of a failure for which somebody else is to blame.

    Who adds a row to a catalog that is there already may have been late once, at each place.
    """
    told = _told(error)
    if told is None or not sessions.passing(told):
        return None
    if seen and told.sqlstate == sessions.UNIQUE and _place(told, seen) in seen.collisions:
        return None
    return told.sqlstate


def in_the_way(error: psycopg.Error, seen: watch.Watch) -> str:
    """Say who was in the way of a statement that is not to blame itself."""
    if sessions.collided(error):
        return "another session was at the same row of a catalog"
    return f"blocked by {watch.named(seen.blockers(error.sqlstate))}"


def unless(error: psycopg.Error) -> str:
    """Say what else it may be where nothing was tried again, after `run again`."""
    return " (fails it so again, correct the file)" if error.sqlstate == sessions.UNIQUE else ""


def _told(error: BaseException | None) -> psycopg.Error | None:
    """Return what the server said, also where a statement of a file was found for it."""
    return next((each for each in causes(error) if isinstance(each, psycopg.Error)), None)


def _place(error: BaseException, seen: watch.Watch) -> tuple[int, str | None]:
    told = _told(error)
    return seen.statement, told.diag.constraint_name if told else None


def _beyond(script: Script) -> str | None:
    """Return the first effect beyond the database of a file that met somebody in its way."""
    from preflight.files import reach  # noqa: PLC0415 -- only then

    texts = (each.text(script.text) for each in script.statements())
    reached = (reach.beyond(text, reach.ROLLED_BACK) for text in texts)
    return next((found.words for found in reached if found), None)
