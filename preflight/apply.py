"""Run one file and record it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import psycopg
import structlog
from psycopg import pq

from preflight import history, indexes, server, sql, stop, verify, watch
from preflight.errors import (
    ConnectionLost,
    DatabaseBusy,
    Failure,
    LockBusy,
    MigrationFailed,
    MigrationPartial,
    NotReady,
    PlanChanged,
    Problem,
    VerifyFailed,
)

if TYPE_CHECKING:
    from tenacity import RetryCallState

    from preflight.migrations import Migration, Script
    from preflight.server import Session

PASSING = {"55P03", "40P01", "40001"}  # lock_not_available, deadlock, serialization failure
COPY_CHUNK = 1 << 16
NOTICES = 20  # a file; a loop may raise 100,000
READ_BACK_S = 30.0
_RETURNING = re.compile(rb"(?i)\breturning\b")


def forward(session: Session, migration: Migration, backup: str | None) -> None:
    """Apply one migration and record it.

    Raises MigrationFailed (rolled back), MigrationPartial, DatabaseBusy, LockBusy, ConnectionLost,
    and PlanChanged when another run was there first or the session had to be replaced.
    """
    log = structlog.get_logger()
    named = {"migration": migration.name, "version": migration.version}
    began = time.monotonic()
    log.info("migration.started", **named, transactional=migration.up.transactional)
    run = _whole if migration.up.transactional else _step_by_step
    try:
        with watch.over(session, migration) as seen, _notices(session, migration):
            count = run(session, migration, backup, seen)
    except psycopg.OperationalError as error:
        if not session.lost:
            raise
        if not _read_back(session, migration):
            raise _lost(migration, error) from error
        log.info("migration.applied", **named, duration_s=_since(began), read_back=True)
        raise PlanChanged from None
    except Failure as failure:
        _record_failure(session, migration, failure)
        raise
    log.info("migration.applied", **named, duration_s=_since(began), statements=count)
    _clean(session)


def _since(began: float) -> float:
    return round(time.monotonic() - began, 3)


def _clean(session: Session) -> None:
    """Undo what the file left in the session; the lock stays."""
    session.reset()
    for statement in ("DISCARD TEMP", "UNLISTEN *", "CLOSE ALL", "DEALLOCATE ALL"):
        session.execute(statement)


def _whole(session: Session, migration: Migration, backup: str | None, seen: watch.Watch) -> int:
    """Run a file in one transaction, again while somebody is in the way; return the statements."""
    from tenacity import Retrying, retry_if_exception, wait_random_exponential  # noqa: PLC0415

    deadline = time.monotonic() + session.config.lock_retry_s
    retrying = Retrying(
        retry=retry_if_exception(_passing),
        wait=wait_random_exponential(0.1, max=5, min=0.1),
        stop=lambda _: time.monotonic() >= deadline,
        sleep=stop.sleep,
        before_sleep=lambda state: _tell_retry(migration, state, seen),
        reraise=True,
    )
    try:
        return retrying(_transaction, session, migration, backup, seen)
    except psycopg.Error as error:
        if session.lost or not _passing(error):
            raise
        raise DatabaseBusy(
            "database.busy",
            f"{migration.name}: {error.diag.message_primary or error} after all retries; "
            f"blocked by {watch.named(seen.blocked_by)}",
            "It was rolled back. Run again at a quieter time, end the blocker, or raise "
            "PREFLIGHT_LOCK_RETRY_S.",
            migration=migration.name,
            version=migration.version,
            sqlstate=error.sqlstate,
        ) from error


def _passing(error: BaseException) -> bool:
    return isinstance(error, psycopg.Error) and error.sqlstate in PASSING


def _tell_retry(migration: Migration, state: RetryCallState, seen: watch.Watch) -> None:
    error = state.outcome.exception() if state.outcome else None
    structlog.get_logger().warning(
        "migration.retried",
        migration=migration.name,
        version=migration.version,
        attempt=state.attempt_number,
        sqlstate=getattr(error, "sqlstate", None),
        blocked_by=seen.blocked_by,
    )


def _transaction(
    session: Session, migration: Migration, backup: str | None, seen: watch.Watch
) -> int:
    began = time.monotonic()
    with history.transaction(session):
        _fence(lambda: history.insert(session, migration, backup, "applied"))
        _set_timeouts(session, migration.up, "SET LOCAL")
        count = _statements(session, migration, migration.up, seen)
        _constraints(session, migration)
        session.reset()
        _verify(session, migration, MigrationFailed)
        history.finish(
            session,
            migration,
            duration_ms=round(1000 * (time.monotonic() - began)),
            statements=count,
            backup=backup,
        )
    return count


def _fence(claim: Callable[[], bool]) -> None:
    """Claim the history row before anything else; raises PlanChanged when it is not as planned."""
    try:
        claimed = claim()
    except psycopg.errors.LockNotAvailable as error:
        raise LockBusy(
            "lock.fence",
            "another run is in the middle of this migration",
            "Let it finish and run again.",
            sqlstate=error.sqlstate,
        ) from error
    if not claimed:
        raise PlanChanged


def _set_timeouts(session: Session, script: Script, how: str) -> None:
    config = session.config
    lock_ms = config.lock_timeout_ms if script.lock_timeout_ms is None else script.lock_timeout_ms
    statement_ms = (
        round(config.statement_timeout_s * 1000)
        if script.statement_timeout_ms is None
        else script.statement_timeout_ms
    )
    session.execute(f"{how} lock_timeout = {lock_ms}")
    session.execute(f"{how} statement_timeout = {statement_ms}")


def _statements(session: Session, migration: Migration, script: Script, seen: watch.Watch) -> int:
    count = 0
    for statement, text in _texts(script):
        seen.statement = count = count + 1
        try:
            execute(session, script, statement, text)
        except psycopg.Error as error:
            if session.lost or _passing(error):
                raise
            raise located(MigrationFailed, session, migration, script, statement, error) from error
        if session.connection.info.transaction_status != pq.TransactionStatus.INTRANS:
            raise MigrationFailed(
                "migration.left_transaction",
                f"{script.file}: statement {count} ended the runner's transaction",
                "Leave transaction control to the runner.",
                **_named(migration),
            )
    return count


def _texts(script: Script) -> list[tuple[sql.Statement, bytes]] | map:  # type: ignore[type-arg]
    """Return statements with their texts; a script of one statement is sent without a copy."""
    found = script.statements()
    first = next(found)
    second = next(found, None)
    if second is None:
        if first.data is None and not script.wrapped:
            return [(sql.Statement(0, len(script.text)), script.text)]
        return [(first, first.text(script.text))]
    return map(lambda item: (item, item.text(script.text)), script.statements())  # noqa: C417


def execute(session: Session, script: Script, statement: sql.Statement, text: bytes) -> None:
    """Run one statement; rows that it returns are thrown away as they come."""
    with stop.allowed(), session.connection.cursor() as cursor:
        if statement.data is not None:
            view = memoryview(script.text)
            at, end = sql.copy_data(script.text, statement)
            with cursor.copy(text) as copy:
                while at < end:
                    copy.write(view[at : min(at + COPY_CHUNK, end)])
                    at += COPY_CHUNK
        elif sql.reads_only(text) or _RETURNING.search(text):
            chunk = 500 if pq.version() >= 170000 else 1  # noqa: PLR2004 -- PQsetChunkedRowsMode
            for _ in cursor.stream(text, size=chunk):
                pass
        else:
            cursor.execute(text)


def _constraints(session: Session, migration: Migration) -> None:
    """Check deferred constraints now, while the failure can still be named."""
    try:
        session.execute("SET CONSTRAINTS ALL IMMEDIATE")
    except psycopg.Error as error:
        if session.lost or _passing(error):
            raise
        raise located(MigrationFailed, session, migration, migration.up, None, error) from error


def _verify(session: Session, migration: Migration, outcome: type[Failure]) -> None:
    if migration.verify is None:
        return
    try:
        checks = verify.run(session, migration.verify)
    except VerifyFailed as failure:
        raise outcome(failure.code, **failure.problem.data() | _named(migration)) from failure  # type: ignore[arg-type]
    if verify.failed(checks):
        verify.report(migration, checks)
        raise outcome(
            "verify.failed",
            f"{migration.name} ran, but {verify.described(checks)}",
            "Correct the migration or its verify file; "
            + (
                "everything was rolled back."
                if outcome is MigrationFailed
                else "its statements stay, and a re-run verifies again."
            ),
            **_named(migration),
        )


def _named(migration: Migration) -> dict[str, object]:
    return {"migration": migration.name, "version": migration.version}


def located(  # noqa: PLR0913, PLR0917 -- what is needed to name a place
    outcome: type[Failure],
    session: Session,
    migration: Migration,
    script: Script,
    statement: sql.Statement | None,
    error: psycopg.Error,
) -> Failure:
    """Return the failure with file, line, column, SQLSTATE and the server's hint."""
    diag = error.diag
    where: dict[str, object] = {}
    place = script.file
    if statement is not None:
        line, column = sql.position(script.text, _offset(script.text, statement, diag))
        where = {"line": line, "column": column}
        place = f"{script.file}:{line}:{column}"
    if session.config.log_sql == "on":
        where["detail"] = diag.message_detail
        if statement is not None:
            where["sql"] = statement.text(script.text)[:2000].decode("utf-8", "replace")
    hint = diag.message_hint
    if error.sqlstate == "25001":
        hint = "Put `-- preflight: no-transaction` at the top of the file."
    elif error.sqlstate in ("42P07", "42701", "42710"):
        hint = (
            f"Is it there already? `adopt {migration.version}` records the file without running "
            "it, if its verify file agrees."
        )
    elif error.sqlstate == "42501":
        hint = "This role lacks a right: run as the owner, or GRANT it."
    return outcome(
        "migration.sql_error",
        f"{place}: {diag.message_primary or error}",
        hint,
        file=script.file,
        sqlstate=error.sqlstate,
        **_named(migration),
        **where,
    )


def _offset(script: bytes, statement: sql.Statement, diag: psycopg.errors.Diagnostic) -> int:
    """Return the byte where the server sees the error, else the statement's first one."""
    text = statement.text(script)
    if diag.statement_position:
        characters = int(diag.statement_position) - 1
        return statement.start + len(text.decode("utf-8", "replace")[:characters].encode())
    if statement.data is not None and (
        row := re.match(r"COPY \D*(?:\"[^\"]*\")?\D*(\d+)", diag.context or "")
    ):
        at = statement.data[0]
        for _ in range(int(row[1]) - 1):
            at = script.find(b"\n", at, statement.data[1]) + 1 or at
        return at
    for item in sql.scan(text):  # a whole script may begin with comments
        if isinstance(item, sql.Statement):
            return statement.start + item.start
    return statement.start


def _notices(session: Session, migration: Migration) -> _Notices:
    return _Notices(session, migration)


class _Notices:
    """Passes a file's notices on, up to a number; memory stays flat in a flood."""

    def __init__(self, session: Session, migration: Migration) -> None:
        self.session = session
        self.migration = migration
        self.count = 0

    def __enter__(self) -> None:
        self.session.connection.add_notice_handler(self.hear)

    def __exit__(self, *_: object) -> None:
        if not self.session.lost:
            self.session.connection.remove_notice_handler(self.hear)
        if self.count > NOTICES:
            self.tell("debug", f"{self.count - NOTICES} more notices")

    def hear(self, diag: psycopg.errors.Diagnostic) -> None:
        self.count += 1
        if self.count <= NOTICES:
            warning = diag.severity_nonlocalized == "WARNING"
            self.tell("warning" if warning else "debug", diag.message_primary or "")

    def tell(self, level: str, notice: str) -> None:
        log = structlog.get_logger()
        getattr(log, level)("migration.progressed", **_named(self.migration), notice=notice)


def _step_by_step(
    session: Session, migration: Migration, backup: str | None, seen: watch.Watch
) -> int:
    """Run a non-transactional file, each statement with its mark; return the statements."""
    began = time.monotonic()
    row = history.row_of(session, migration.version)
    with history.transaction(session):
        if row is None:
            _fence(lambda: history.insert(session, migration, backup, "applied"))
        else:
            history.require_resumable(migration, row)
            _fence(lambda: history.take_over(session, migration, row, backup))
    done = row.statements_done if row else 0
    begun = row.statements_started if row else 0
    if done:
        structlog.get_logger().info(
            "migration.progressed", **_named(migration), resumed_after_statement=done
        )
    count = done
    for number, (statement, text) in enumerate(_texts(migration.up), 1):
        if number <= done:
            continue
        seen.statement = count = number
        _set_timeouts(session, migration.up, "SET")
        step = _Step(session, migration, statement, text, number)
        if sql.outside_transaction(text):
            step.outside(begun_before=begun >= number)
        else:
            step.inside()
    session.reset()
    with _partly(session, migration, count, count), history.transaction(session):
        _verify(session, migration, MigrationPartial)
        history.finish(
            session,
            migration,
            duration_ms=round(1000 * (time.monotonic() - began)),
            statements=count,
            backup=backup,
        )
    return count


class _partly:  # noqa: N801 -- reads as a word where it is used
    """Marks the file as failed at a place when what is inside fails."""

    def __init__(self, session: Session, migration: Migration, done: int, started: int) -> None:
        self.session, self.migration = session, migration
        self.done, self.started = done, started

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None or not isinstance(error, Exception) or self.session.lost:
            return
        history.mark(
            self.session,
            self.migration.version,
            done=self.done,
            started=self.started,
            state="failed",
        )


class _Step:
    """One statement of a non-transactional file."""

    def __init__(
        self,
        session: Session,
        migration: Migration,
        statement: sql.Statement,
        text: bytes,
        number: int,
    ) -> None:
        self.session, self.migration = session, migration
        self.statement, self.text, self.number = statement, text, number

    def run(self) -> None:
        try:
            execute(self.session, self.migration.up, self.statement, self.text)
        except psycopg.Error as error:
            if self.session.lost:
                raise
            raise located(
                MigrationPartial,
                self.session,
                self.migration,
                self.migration.up,
                self.statement,
                error,
            ) from error

    def mark(self, *, done: int, started: int) -> None:
        history.mark(self.session, self.migration.version, done=done, started=started)

    def inside(self) -> None:
        """Run it in a transaction together with its progress mark."""
        before = self.number - 1
        with (
            _partly(self.session, self.migration, before, before),
            history.transaction(self.session),
        ):
            self.run()
            self.session.execute("RESET ROLE")
            self.mark(done=self.number, started=self.number)

    def outside(self, *, begun_before: bool) -> None:
        """Run it outside any transaction: marked before, read back after."""
        before = self.number - 1
        index = indexes.wanted(self.text)
        if self.migration.up.lock_timeout_ms is None and index is not None:
            self.session.execute("SET lock_timeout = 0")  # CONCURRENTLY queues nobody
        with _partly(self.session, self.migration, before, before):
            if index is not None and self._settle_index(index, begun_before=begun_before):
                self.mark(done=self.number, started=self.number)
                return
            self.mark(done=before, started=self.number)
        # a failed index statement may leave an INVALID index of ours: its mark stays
        with _partly(self.session, self.migration, before, self.number if index else before):
            self.run()
            if index is not None:
                self._require_index(index)
            self.mark(done=self.number, started=self.number)

    def _settle_index(self, index: indexes.Index, *, begun_before: bool) -> bool:
        """Read back what an earlier run left; return whether nothing is left to do."""
        found = indexes.find(self.session, index)
        if index.dropped:
            return begun_before and found is None
        if found is None:
            return False
        if begun_before and not found.valid:
            structlog.get_logger().warning(
                "migration.progressed",
                **_named(self.migration),
                statement=self.number,
                dropped_invalid_index=found.name,
            )
            self.session.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {found.name}")
            return False
        if begun_before and indexes.same(found.definition, self.text):
            return True
        if not found.valid:
            raise self._index_failure(
                "index.invalid",
                f"index {found.name} exists and is INVALID, and this run did not make it",
                f"DROP INDEX CONCURRENTLY {found.name}; then run again.",
            )
        if index.if_not_exists and not indexes.same(found.definition, self.text):
            raise self._index_failure(
                "index.differs",
                f"index {found.name} exists with another definition, so IF NOT EXISTS would skip "
                "the one that is wanted",
                f"Rename or drop {found.name}, or correct the file; then run again.",
            )
        return False

    def _require_index(self, index: indexes.Index) -> None:
        found = indexes.find(self.session, index)
        if index.dropped:
            return
        if found is None or not found.valid:
            raise self._index_failure(
                "index.invalid",
                f"index {found.name if found else index.name} is not valid after its statement",
                "Run again: it is dropped and built anew.",
            )

    def _index_failure(self, code: str, message: str, hint: str) -> MigrationPartial:
        line, column = sql.position(self.migration.up.text, self.statement.start)
        return MigrationPartial(
            code, message, hint, line=line, column=column, **_named(self.migration)
        )


def _record_failure(session: Session, migration: Migration, failure: Failure) -> None:
    """Log the failure and append it to the journal, if the server still listens."""
    problem = failure.problem
    structlog.get_logger().error("migration.failed", **_named(migration), **_without_names(problem))
    if session.lost:
        return
    try:
        history.roll_back(session)
        session.reset()
        history.journal(session, "failed", migration, problem=problem)
    except psycopg.Error as error:
        structlog.get_logger().warning(
            "migration.failed", **_named(migration), journal=f"not written: {error.sqlstate}"
        )


def _without_names(problem: Problem) -> dict[str, object]:
    return {
        key: value for key, value in problem.data().items() if key not in ("migration", "version")
    }


def _read_back(session: Session, migration: Migration) -> bool:
    """Ask the history on a new connection whether a COMMIT whose answer was lost came through."""
    session.deadline = time.monotonic() + min(READ_BACK_S, session.config.wait_timeout_s)
    try:
        session.reopen()
        history.read(session)
        row = history.row_of(session, migration.version)
    except (NotReady, ConnectionLost, psycopg.Error, Failure):
        return False
    return row is not None and row.state == "done" and row.run_id == session.config.run_id


def _lost(migration: Migration, error: psycopg.Error) -> ConnectionLost:
    failure = server.lost(error)
    return ConnectionLost(
        failure.code,
        f"{migration.name}: {failure}",
        failure.problem.hint,
        sqlstate=error.sqlstate,
        **_named(migration),
    )
