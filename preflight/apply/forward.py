"""Run one file and record it."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import psycopg
import structlog
from psycopg import pq

from preflight.apply import fresh, indexes, outside, patience, statements, verify
from preflight.base import stop
from preflight.base.errors import (
    ConnectionLost,
    DatabaseBusy,
    Failure,
    LockBusy,
    MigrationFailed,
    MigrationPartial,
    NotReady,
    PlanChanged,
    Problem,
    TargetUnusable,
)
from preflight.files import remains
from preflight.history import fence, journal, ledger, repeats
from preflight.server import lock, sessions, watch

if TYPE_CHECKING:
    from preflight.files.migrations import Migration, Script
    from preflight.history.journal import Row
    from preflight.server.sessions import Session

NOTICES = 20  # a file, and as many warnings; a loop may raise 100,000
READ_BACK_S = 30.0
TOGETHER = 1 << 16  # bytes of a file with its companions that are written into a message
INTRANS, UNKNOWN = pq.TransactionStatus.INTRANS, pq.TransactionStatus.UNKNOWN
_CHECKED = "SET CONSTRAINTS ALL IMMEDIATE"
_ENDS_ITSELF = re.compile(
    rb"(?is)(?!\s*create\b)(?:(?!.*pg_backend_pid).*pg_terminate_backend"
    rb"|.*pg_terminate_backend\s*\(\s*pg_backend_pid)"
)


def forward(
    session: Session, migration: Migration, backup: str | None, again: Row | None = None
) -> None:
    """Apply one migration and record it; `again` is the row of one that is recorded already.

    Nothing is sent of it without the run's lock. Raises MigrationFailed (rolled back),
    MigrationPartial, DatabaseBusy, LockBusy, ConnectionLost, and PlanChanged when another run was
    there first or the connection broke.
    """
    fresh.anew(session, migration)
    together = again is None and _fits(session, migration)
    if again and (again.state, again.checksum) == ("done", migration.checksum):
        migration = dataclasses.replace(migration, recorded=True)
    if not together:
        _ready(session)

    def once(seen: watch.Watch) -> int:
        if not migration.up.transactional:
            return outside.run(session, migration, backup, seen, again)
        if together:
            run = partial(_together, session, migration, backup, seen)
        else:
            run = partial(_one_by_one, session, migration, backup, seen, again)
        return patience.patiently(session, migration, seen, run)

    def recorded(row: Row | None) -> bool:
        return row is not None and row.state == "done" and row.run_id == session.config.run_id

    # a repeatable is taken back by its earlier text
    lacking: dict[str, Any] = {} if migration.way_back or migration.repeat else {"rollback": False}
    if not guarded(session, migration, once, recorded, "migration.applied", **lacking):
        raise PlanChanged


def guarded(  # noqa: PLR0913, PLR0917 -- what the way forward and the way back share
    session: Session,
    migration: Migration,
    once: Callable[[watch.Watch], int],
    recorded: Callable[[Row | None], bool],
    event: str,
    script: Script | None = None,
    **more: object,
) -> bool:
    """Run a migration's file, watched; log how it went and keep the failure in the journal.

    Return False when the connection broke at COMMIT and the history, read on a new one, says that
    it came through: the lock has to be taken again.
    """
    log = structlog.get_logger().bind()  # once for both lines
    named = migration.named
    script = script or migration.up
    began = time.monotonic()
    seen: watch.Watch | None = None
    notices = _Notices(session, migration)
    known = {"rollback": more["rollback"]} if "rollback" in more else {}
    log.info("migration.started", **named, transactional=script.transactional, **known)
    session.doubted = session.doubted or remains.unknown([script, migration.verify])
    try:
        with watch.over(session, migration) as seen, notices:
            count = once(seen)
    except psycopg.Error as caught:
        if not session.lost:
            raise
        error = notices.last_word(caught)
        if not _read_back(session, migration, recorded):
            failure = _lost(session, migration, script, error, seen.statement if seen else 0)
            _record_failure(session, migration, failure)
            raise failure from caught
        stop.leaves(session, None)
        log.info(event, **named, duration_s=_since(began), read_back=True, **more)
        return False
    except (LockBusy, ConnectionLost, TargetUnusable):
        raise  # the file never ran, without the lock or without its row
    except Failure as failure:
        told: Failure | None = _what_stays(session, migration, script, failure)
        told = told or _with_invalid(session, failure)
        _record_failure(session, migration, told or failure)
        if told is None:
            raise
        raise told from failure
    except stop.Stopped:
        if left := stop.left(session):
            _journal_failure(session, migration, Problem(f"stopped by a signal; {left}"))
        raise
    stop.leaves(session, None)
    log.info(event, **named, duration_s=_since(began), statements=count, **more)
    return True


def _since(began: float) -> float:
    return round(time.monotonic() - began, 3)


def clean(session: Session) -> None:
    """Undo what an earlier file, or an earlier attempt, left in the session; the lock stays.

    Before a file and not after it: a signal after the last COMMIT comes too late to matter.
    """
    session.reset(sessions.FORGET)


def _one_by_one(
    session: Session,
    migration: Migration,
    backup: str | None,
    seen: watch.Watch,
    again: Row | None,
) -> int:
    began, begin = time.monotonic(), sessions.begin_with(migration.up.isolation)
    with (
        fence.recorded(session, migration, MigrationFailed),
        statements.committed(MigrationFailed, session, migration, migration.up),
        sessions.transaction(session, lambda: session.execute(begin)),
    ):
        fence.fence(session, lambda: ledger.claim(session, migration, again, backup), begin=begin)
        ledger.require_unmoved(session)
        statements.prepare(session, migration.up, "SET LOCAL")
        count = run_all(session, migration, migration.up, seen)
        _end_one_by_one(session, migration, backup, began, count, again)
    return count


def _ready(session: Session) -> None:
    """Do what comes before a file's transaction: its lock is ours still, and nothing is left."""
    if session.locked:
        lock.require_alone(session)
    clean(session)


def _end_one_by_one(  # noqa: PLR0913, PLR0917 -- what the history is told
    session: Session,
    migration: Migration,
    backup: str | None,
    began: float,
    count: int,
    again: Row | None = None,
) -> None:
    check_constraints(session, migration, migration.up)
    session.reset()
    verify.require(session, migration, MigrationFailed)
    ledger.finish(session, migration, began, count, backup=backup, before=again)
    session.compare()


def _fits(session: Session, migration: Migration) -> bool:
    """Tell whether what stands around a file's statements can be said in few messages.

    They are read as a whole before the first of it is done: nothing that an earlier file has set
    may change how.
    """
    kept = (migration.up, migration.rollback, migration.verify, migration.export)
    return (
        migration.up.transactional
        and not migration.repeat
        and sum(len(each.text) for each in kept if each) <= TOGETHER
        and session.resetting() is not None
        and session.plain
    )


def _together(session: Session, migration: Migration, backup: str | None, seen: watch.Watch) -> int:
    """Do what `_one_by_one` does in two messages beside the statements and the COMMIT."""
    began = time.monotonic()
    taken_over: list[bool] = []  # in whose place we are, if anybody's

    def claim() -> bool:
        taken_over[:] = _begin(session, migration, backup)
        return bool(taken_over)

    def begin() -> None:
        try:
            fence.fence(session, claim, begins=True)
        except psycopg.Error as error:
            if session.lost or patience.passing(error):
                raise
            sessions.roll_back(session)
            with sessions.ours(session):  # was it one of these?
                _ready(session)
            raise

    with (
        fence.recorded(session, migration, MigrationFailed),
        statements.committed(MigrationFailed, session, migration, migration.up),
        sessions.transaction(session, begin),
    ):
        if any(taken_over):  # else it costs no message
            session.reset()
            ledger.require_unmoved(session, there=True)
            statements.prepare(session, migration.up, "SET LOCAL")
        count = run_all(session, migration, migration.up, seen)
        if not session.plain or not _end(session, migration, backup, began, count):
            _end_one_by_one(session, migration, backup, began, count)
    return count


def _begin(session: Session, migration: Migration, backup: str | None) -> list[bool]:
    """Make the session ours, begin, look after the lock, claim; nothing when it is taken.

    Else whether another tool's history was taken over.
    """
    said = [
        f"BEGIN; {session.resetting(sessions.FORGET)}; COMMIT",
        sessions.begin_with(migration.up.isolation),
        lock.held(session) if session.locked else "VALUES (true), (true)",
        ledger.claiming(session, migration, backup),
        *statements.preparing(session, migration.up, "SET LOCAL"),
    ]
    held, claimed = session.picked("; ".join(said), 2 - len(said), 3 - len(said))
    ours, alone = held
    if not ours:
        raise lock.missing()
    if not alone:  # else it costs no message
        session.reset()
        lock.let_go(session)
        statements.prepare(session, migration.up, "SET LOCAL")
    return claimed


def _end(
    session: Session, migration: Migration, backup: str | None, began: float, count: int
) -> bool:
    """Check constraints, verify, record; False, with nothing done, where one of it fails.

    Which one it was is told by doing them one by one.
    """
    said = f"SAVEPOINT preflight_end; {_CHECKED}; {session.resetting()}"
    try:
        if migration.verify:
            said = f"{said}; {verify.opening(session, migration.verify, migration.up)}"
            session.picked(said)
            verify.require(session, migration, MigrationFailed, verify.asked)
            said = verify.CLOSING
        said = f"{said}; {ledger.finishing(session, migration, began, count, backup)}"
        rows, same = session.picked(f"{said}; {session.asks()}", -3, -1)
    except psycopg.Error as error:
        if session.lost or patience.passing(error):
            raise
        if error.sqlstate == sessions.CANCELLED:  # a second time it might come through
            raise statements.located(
                MigrationFailed, session, migration, migration.up, None, error
            ) from error
        session.execute("ROLLBACK TO SAVEPOINT preflight_end")
        return False
    ledger.finished(session, migration, rows)
    session.learn(same)
    return True


def run_all(session: Session, migration: Migration, script: Script, seen: watch.Watch) -> int:
    """Run every statement of a script inside the transaction; return how many there are."""
    count = 0
    for statement in script.statements():
        count += 1
        seen.begin(count)
        try:
            statements.execute(session, script, statement)
        except psycopg.Error as error:
            if session.lost:
                raise
            if patience.passing(error, seen):
                statements.place(session, script, statement, error)
                raise
            raise statements.located(
                MigrationFailed, session, migration, script, statement, error
            ) from error
        # where it is unknown the connection has just broken, as the next message is told
        if session.connection.info.transaction_status not in (INTRANS, UNKNOWN):
            session.execute("ROLLBACK")  # whatever it is told: what follows commits
            raise MigrationFailed(
                "migration.left_transaction",
                f"{script.file}: statement {count} ended the runner's transaction",
                "Leave transaction control to the runner.",
                **migration.named,
            )
    return count


def check_constraints(session: Session, migration: Migration, script: Script) -> None:
    """Check deferred constraints now, while the failure can still be named."""
    try:
        session.execute(_CHECKED)
    except psycopg.Error as error:
        if session.lost or patience.passing(error):
            raise
        raise statements.located(
            MigrationFailed, session, migration, script, None, error
        ) from error


class _Notices:
    """Passes a file's notices on, up to a number; memory stays flat in a flood."""

    def __init__(self, session: Session, migration: Migration) -> None:
        self.session = session
        self.migration = migration
        self.ended: psycopg.Error | None = None
        self.counts = {"debug": 0, "warning": 0}  # what says nothing new hides no warning

    def __enter__(self) -> None:
        self.session.listen(self.hear)

    def __exit__(self, *_: object) -> None:
        self.session.listen(None)
        for level, count in self.counts.items():
            if count > NOTICES:
                what = "warnings" if level == "warning" else "notices"
                self.tell(level, f"{count - NOTICES} more {what}")

    def hear(self, diag: psycopg.errors.Diagnostic) -> None:
        with stop.held():  # libpq calls us
            if diag.severity_nonlocalized == "FATAL" and diag.sqlstate in statements.OWN_TIMEOUTS:
                self.ended = psycopg.OperationalError(diag.message_primary or "")
                self.ended.sqlstate = diag.sqlstate
            level = "warning" if diag.severity_nonlocalized == "WARNING" else "debug"
            self.counts[level] += 1
            if self.counts[level] <= NOTICES:
                self.tell(level, diag.message_primary or "")

    def last_word(self, error: psycopg.Error) -> psycopg.Error:
        """Return why the server hung up: a notice to libpq where it was read between statements."""
        return self.ended if self.ended and error.sqlstate is None else error

    def tell(self, level: str, notice: str) -> None:
        log = structlog.get_logger()
        getattr(log, level)("migration.progressed", **self.migration.named, notice=notice)


def _record_failure(session: Session, migration: Migration, failure: Failure) -> None:
    """Log the failure and append it to the journal, if the server still listens."""
    problem = failure.problem
    structlog.get_logger().error("migration.failed", **migration.named, **_without_names(problem))
    _journal_failure(session, migration, problem)


def _with_invalid(session: Session, failure: Failure) -> Failure | None:
    """Return the failure with what helps where an INVALID index has the name that is wanted.

    Such a file is nothing to adopt: what it makes is not there.
    """
    if failure.problem.sqlstate != "42P07" or session.lost:
        return None
    try:
        name = indexes.in_the_way(session, str(failure))
    except psycopg.Error:
        return None
    if name is None:
        return None
    return failure.retold(
        type(failure),
        hint=f"That is an INVALID index, which no query uses: {indexes.drops([name])} then run "
        "again.",
    )


def _what_stays(
    session: Session, migration: Migration, script: Script, failure: Failure
) -> MigrationPartial | None:
    """Return the failure as it is to be told where the file has ended the runner's transaction.

    Then what claimed its row is committed, and so is all that ran before: nothing is rolled back.
    """
    if not script.transactional or migration.repeat or session.lost:
        return None
    if not isinstance(failure, MigrationFailed | DatabaseBusy):
        return None
    try:
        sessions.roll_back(session)
        session.reset()
        row = ledger.row_of(session, migration.version)
    except psycopg.Error:
        return None
    back = script != migration.up
    ours = row is not None and (row.run_id, row.state) == (session.config.run_id, "running")
    if not (row is None if back else ours):
        return None
    hint = "Leave transaction control to the runner."
    if session.copy:
        message = f"{failure}; before that the file ended the runner's transaction"
        return failure.retold(MigrationPartial, message=message, hint=hint)
    adopt, again = f"`adopt {migration.written}` where all of", f"`force {migration.written}` where"
    look = (
        f"the history has no row of it any more; {adopt} it is there still."
        if back
        else f"{adopt} it is there, {again} nothing of it is."
    )
    return failure.retold(
        MigrationPartial,
        message=f"{failure}; what ran before the file ended the runner's transaction stays",
        hint=f"{hint} Look at the database: {look}",
    )


def _journal_failure(session: Session, migration: Migration, problem: Problem) -> None:
    if session.lost:
        return
    try:
        sessions.roll_back(session)
        session.reset()
        with sessions.locally(session):
            journal.journal(session, "failed", migration, problem=problem)
    except psycopg.Error as error:
        structlog.get_logger().warning(
            "migration.failed", **migration.named, journal=f"not written: {error.sqlstate}"
        )


def _without_names(problem: Problem) -> dict[str, object]:
    return {
        key: value for key, value in problem.data().items() if key not in ("migration", "version")
    }


def _read_back(
    session: Session, migration: Migration, recorded: Callable[[Row | None], bool]
) -> bool:
    """Ask the history on a new connection whether a COMMIT whose answer was lost came through.

    Who is asked to stop meanwhile does not know it either.
    """
    session.deadline = time.monotonic() + min(READ_BACK_S, session.config.wait_timeout_s)
    try:
        session.reopen()
        ledger.read(session, others=False, until=session.deadline)
        if migration.repeat:
            return repeats.ran(session, migration)
        row = ledger.row_of(session, migration.version)
    except (NotReady, ConnectionLost, psycopg.Error, Failure, stop.Stopped):
        return False
    return recorded(row)


def _lost(
    session: Session, migration: Migration, script: Script, error: psycopg.Error, number: int
) -> Failure:
    """Return the failure for a session that ended in a statement: by the file itself, or 13."""
    outcome = MigrationFailed if script.transactional else MigrationPartial
    if error.sqlstate in statements.OWN_TIMEOUTS:
        return outcome(
            "migration.timed_out",
            f"{migration.name}: {error.diag.message_primary or error}",
            "The file sets a timeout that ends its session: remove it, or let it do less at once.",
            sqlstate=error.sqlstate,
            **migration.named,
        )
    if error.sqlstate == statements.ENDED and not session.lost:  # the server lives on
        at = max(number - 1, 0)
        for statement in islice(script.statements(), at, number):
            if _ENDS_ITSELF.match(script.text, statement.start, statement.end):
                return statements.located(outcome, session, migration, script, statement, error)
    failure = sessions.lost(error)
    return ConnectionLost(
        failure.code,
        f"{migration.name}: {failure}",
        failure.problem.hint,
        sqlstate=error.sqlstate,
        **migration.named,
    )
