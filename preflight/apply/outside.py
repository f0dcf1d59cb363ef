"""A non-transactional file, statement by statement, each with its mark in the history.

A statement that may run in a transaction runs in one together with its mark. The others are marked
before and read back after, so that a run that was killed can be taken up where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import psycopg
import structlog

from preflight.apply import fresh, indexes, patience, resume, statements, verify
from preflight.base import stop
from preflight.base.errors import Failure, HistoryConflict, MigrationPartial
from preflight.files import kinds, lasting, scan
from preflight.history import fence, ledger
from preflight.server import sessions, watch

if TYPE_CHECKING:
    from preflight.files.migrations import Migration
    from preflight.history.journal import Row
    from preflight.server.sessions import Session


def run(
    session: Session,
    migration: Migration,
    backup: str | None,
    seen: watch.Watch,
    again: Row | None = None,
) -> int:
    """Run or resume a non-transactional file, or run it `again` from its start.

    Return how many statements it has.

    Raises MigrationPartial, NeedsRepair (it cannot be resumed), LockBusy and PlanChanged.
    """
    began = time.monotonic()
    row = None if again else ledger.row_of(session, migration.version)
    with (
        fence.recorded(session, migration, MigrationPartial),
        untouched(session, migration, again),
    ):
        if again:
            with sessions.transaction(session):
                fence.fence(session, lambda: ledger.claim(session, migration, again, backup))
                ledger.require_unmoved(session)
            _tell_left(session, migration)
        else:
            _claim(session, migration, backup, row)
        statements.prepare(session, migration.up, "SET")
        count = run_statements(session, migration, row, seen)
        session.reset()
        with marked(session, migration, count):
            fresh.before_checks(session, migration, seen)
            with sessions.transaction(session):
                verify.require(session, migration, MigrationPartial)
                ledger.finish(session, migration, began, count, backup=backup, before=again)
                session.compare()
    return count


def _tell_left(session: Session, migration: Migration) -> None:
    """Warn of what an earlier run of the file may have left: indexes without a name."""
    for number, statement in enumerate(migration.up.statements(), 1):
        if scan.first_word(migration.up.text, statement.start) != b"CREATE":
            continue
        if left := indexes.perhaps_left(session, statement.text(migration.up.text)):
            structlog.get_logger().warning(
                "migration.progressed",
                **migration.named,
                statement=number,
                notice=f"INVALID on its table: {', '.join(left)}; an earlier run of this "
                f"statement may have left it, and nothing takes it away but {indexes.drops(left)}",
            )


def _claim(session: Session, migration: Migration, backup: str | None, row: Row | None) -> None:
    with sessions.transaction(session):
        if row is None:
            fence.fence(session, lambda: ledger.insert(session, migration, backup, "applied"))
        else:
            resume.require_resumable(migration, row, session)
            fence.fence(session, lambda: ledger.take_over(session, migration, row, backup))
        ledger.require_unmoved(session)
    if row and row.statements_done:
        structlog.get_logger().info(
            "migration.progressed",
            **migration.named,
            resumed_after_statement=row.statements_done,
        )


def run_statements(
    session: Session, migration: Migration, row: Row | None, seen: watch.Watch
) -> int:
    """Run what is left of a file whose row is claimed, with marks; return how many there are."""
    done, started = (row.statements_done, row.statements_started) if row else (0, 0)
    number, patient = 0, migration.up.lock_timeout_ms is None
    seconds: float = session.config.lock_retry_s
    locked, gone = lasting.again(migration.up, done), lasting.superseded(migration.up, done)
    stop.leaves(session, _stays(session, migration, done))
    for number, statement in enumerate(migration.up.statements(), 1):
        each = _Statement(session, migration, statement, number, seen)
        if number > done:
            seen.begin(number)
            each.warn()
            alone = kinds.outside_transaction(each.text)
            if alone or started >= number:  # begun before, so it ran outside
                each.patient = patient and kinds.queues_nobody(each.text)
                each.outside(begun_before=started >= number)
            else:
                done_inside, seconds = each.inside(seconds)
                if not done_inside:
                    each.outside(begun_before=started >= number)
            stop.leaves(session, _stays(session, migration, number))
        elif (each.sets and number not in gone) or (locked and lasting.locks(each.text)):
            with marked(session, migration, done, lambda: started):
                each.again()  # what a done statement set or locked went with its session
        patient = patient and not (each.sets and kinds.sets_lock_timeout(each.text))
    return number


@contextmanager
def untouched(session: Session, migration: Migration, row: Row | None) -> Iterator[None]:
    """Leave the history as it is when the first statement now fails and leaves nothing.

    `row` is the one that is claimed inside; None: of a file that is not recorded.
    """
    kept = ledger.copy_of(session, row.version) if row else None
    try:
        yield
    except (Exception, stop.Stopped) as error:
        if session.lost or not _put_back(session, migration.version, kept):
            raise
        stop.leaves(session, None)
        if not isinstance(error, MigrationPartial):
            raise
        stays = "stays recorded as it was" if row else "is not recorded"
        raise error.retold(
            MigrationPartial,
            message=f"{error}; no statement of {migration.up.file} is done, so {migration.name} "
            f"{stays}",
        ) from error


def _put_back(session: Session, version: int, kept: str | None) -> bool:
    try:
        sessions.roll_back(session)
        session.reset()
        with sessions.locally(session):
            return ledger.put_back(session, version, kept)
    except psycopg.Error:
        return False  # it is marked as failed, and the first failure is the one to tell


def _stays(session: Session, migration: Migration, done: int) -> str | None:
    if session.copy:
        return None  # it is dropped
    return (
        f"the finished statements of {migration.up.file} ({done}) stay, and an index that was "
        "being built may be INVALID"
    )


@contextmanager
def marked(
    session: Session, migration: Migration, done: int, started: Callable[[], int] | None = None
) -> Iterator[None]:
    """Mark the file as failed after `done` statements when what is inside fails or is stopped.

    Raises MigrationPartial when somebody is in the way of the mark: no statement is rolled back.
    """
    try:
        yield
    except (Exception, stop.Stopped) as error:
        if not session.lost:
            # where it cannot be marked, the first failure is the one to tell
            with suppress(psycopg.Error, HistoryConflict):
                begun = started() if started else done  # asks in transactions of its own
                with sessions.locally(session):
                    ledger.mark(
                        session, migration.version, done=done, started=begun, state="failed"
                    )
        if isinstance(error, psycopg.Error) and sessions.passing(error):
            raise MigrationPartial(
                "migration.not_recorded",
                f"{migration.name}: its progress cannot be recorded: {error.diag.message_primary}",
                "End the session that locks the history, and run again: the finished statements "
                "stay.",
                **migration.named,
                sqlstate=error.sqlstate,
            ) from error
        raise


DENIED, SKIPPED = "42501", "42P07"
_PASSES = (["LOCAL"], ["TRANSACTION"], ["CONSTRAINTS"])  # SET that holds for a transaction


class _Statement:
    """One statement of a non-transactional file."""

    def __init__(
        self,
        session: Session,
        migration: Migration,
        statement: scan.Statement,
        number: int,
        seen: watch.Watch,
    ) -> None:
        self.session, self.migration, self.seen = session, migration, seen
        self.statement, self.number = statement, number
        self.said = scan.words(statements.head(migration.up, statement), 2)
        self.patient = False  # may wait for its locks as long as it takes

    @property
    def text(self) -> bytes:
        """The statement, cut out of its file: not kept, for it may have 100 MB."""
        return self.statement.text(self.migration.up.text)

    @property
    def sets(self) -> bool:
        """Tell whether the statement sets something for the rest of the session."""
        return self.said[:1] in (["SET"], ["RESET"]) and self.said[1:2] not in _PASSES

    def warn(self) -> None:
        """Say that a setting of a transaction goes with it, where the server has no cause to."""
        if self.said[:1] == ["SET"] and self.said[1:2] in _PASSES:
            structlog.get_logger().warning(
                "migration.progressed",
                **self.migration.named,
                notice=f"{' '.join(self.said)} ends with its own statement ({self.number}): each "
                "has a transaction of its own here",
            )

    def run(self) -> None:
        with self._located():
            statements.execute(self.session, self.migration.up, self.statement)

    def again(self) -> None:
        """Run it once more, for what the rest needs of it in this session."""
        try:
            self.run()
        except MigrationPartial as failure:
            raise failure.retold(
                MigrationPartial,
                hint=f"Statement {self.number} is done, and holds for the rest, so it has to come "
                "through again: bring back what it names, and run again.",
            ) from failure

    @contextmanager
    def _located(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            if self.session.lost:
                raise
            failure = statements.located(
                MigrationPartial,
                self.session,
                self.migration,
                self.migration.up,
                self.statement,
                error,
            )
            raise self._blocked(failure, error) from error

    def _blocked(self, failure: Failure, error: psycopg.Error) -> Failure:
        """Name who was in the way, if it was somebody: the file need not be corrected."""
        if not patience.passing(error, self.seen):
            return failure
        within = self.session.connection.info.transaction_status != sessions.IDLE
        again = within and self._repeated()
        longer = (
            "let it wait longer: PREFLIGHT_LOCK_RETRY_S, and the lock timeout"
            if again
            else "give it a longer lock timeout: it is tried once"
        )
        other = "" if again else patience.unless(error)
        ending = watch.ending(self.seen.blockers(error.sqlstate))
        return failure.retold(
            MigrationPartial,
            message=f"{failure}; {patience.in_the_way(error, self.seen)}",
            hint=f"What is finished stays. Run again at a quieter time{other}, {ending}, or "
            f"{longer}.",
        )

    def mark(self, *, done: int, started: int) -> None:
        ledger.mark(self.session, self.migration.version, done=done, started=started)

    def inside(self, seconds: float) -> tuple[bool, float]:
        """Run it in a transaction with its progress mark, again while somebody is in the way.

        Return False when the server takes it in none, and what is left of the seconds for that.
        What its text does not tell: whether a relation has partitions, a subscription its slot.
        """
        began = last = time.monotonic()

        def attempt() -> None:
            nonlocal last
            last = time.monotonic()
            self._inside()

        with marked(self.session, self.migration, self.number - 1):
            try:
                patience.tried(
                    self.session,
                    self.migration,
                    self.seen,
                    attempt,
                    partial(self.seen.begin, self.number),
                    seconds,
                    lambda: not self._repeated(),
                )
            except MigrationPartial as failure:
                alone = kinds.may_be_refused(self.text)
                if failure.problem.sqlstate == kinds.IN_TRANSACTION and alone:
                    return False, seconds
                raise
        return True, seconds - (last - began)

    def _repeated(self) -> bool:
        from preflight.files import reach  # noqa: PLC0415 -- only where somebody is in the way

        return (
            kinds.may_be_repeated(self.text) and reach.beyond(self.text, reach.ROLLED_BACK) is None
        )

    def _inside(self) -> None:
        script = self.migration.up
        own = (self.session, self.migration, script, self.statement)
        with statements.committed(MigrationPartial, *own), sessions.transaction(self.session):
            self.run()
            with self._located():  # else a deferred constraint fails where no statement is named
                self.session.execute("SET CONSTRAINTS ALL IMMEDIATE")
            self.mark(done=self.number, started=self.number)

    def outside(self, *, begun_before: bool) -> None:
        """Run it outside any transaction: marked before, read back after."""
        index = indexes.wanted(self.text)
        reindex = indexes.reindexed(self.text)
        if self._detached(begun_before=begun_before) or (begun_before and self._unsubscribed()):
            return
        before = self.number - 1
        begun_already = self.number if begun_before else before
        with marked(self.session, self.migration, before, lambda: begun_already):
            with self._looking():
                there = index is not None and self._settle(index, begun_before=begun_before)
                if reindex and reindex.relation and begun_before:
                    self._drop_left(reindex)
            with sessions.transaction(self.session):
                self.mark(done=self.number if there else before, started=self.number)
        if there:
            return
        begun = partial(self._begun, index, reindex)
        with marked(self.session, self.migration, before, begun):
            try:
                with self._patience(), self._hearing() as skipped:
                    self.run()
            except MigrationPartial as failure:
                # where nothing is to be added it is the failure itself, and no cause of its own
                raise self._explained(index, reindex, failure) from failure.__cause__
            if index is not None:
                with self._looking():
                    self._require(index, skipped=bool(skipped))
            with sessions.transaction(self.session):
                self.mark(done=self.number, started=self.number)

    @contextmanager
    def _patience(self) -> Iterator[None]:
        """Let what queues nobody wait for its locks as long as it takes."""
        if not self.patient:
            yield
            return
        self.session.execute("SET lock_timeout = 0")
        try:
            yield
        finally:
            if not self.session.lost:
                lock_ms, _ = statements.timeouts(self.session, self.migration.up)
                self.session.execute(f"SET lock_timeout = {lock_ms}")

    @contextmanager
    def _hearing(self) -> Iterator[list[str]]:
        """Yield a list that is not empty once the server says that it skips what is there."""
        heard: list[str] = []

        def hear(notice: psycopg.errors.Diagnostic) -> None:
            if notice.sqlstate == SKIPPED:
                heard.append(SKIPPED)

        connection = self.session.connection
        connection.add_notice_handler(hear)
        try:
            yield heard
        finally:
            connection.remove_notice_handler(hear)

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """Say of a look at indexes that somebody has locked what they belong to."""
        try:
            yield
        except psycopg.Error as error:
            if self.session.lost or not patience.passing(error):
                raise
            raise self._failure(
                "index.busy",
                f"what indexes there are cannot be seen: {error.diag.message_primary or error}",
                "What is finished stays. End the session that locks the table, and run again.",
            ) from error

    def _detached(self, *, begun_before: bool) -> bool:
        """Finish a DETACH CONCURRENTLY that an earlier run left half done; return whether it is."""
        names = kinds.detached(self.text)
        state = indexes.attached(self.session, *names) if names else "attached"
        if state == "attached" or (state is None and not begun_before):
            return False
        with (
            marked(self.session, self.migration, self.number - 1, lambda: self.number),
            sessions.transaction(self.session),
        ):
            if state == "pending":
                try:
                    with self._located():
                        self.session.execute(_finalize(self.text))
                except MigrationPartial as failure:
                    raise self._explained_detach(failure) from failure
            self.mark(done=self.number, started=self.number)
        return True

    def _unsubscribed(self) -> bool:
        """Mark a DROP SUBSCRIPTION of an earlier run as done, when it is gone."""
        name = kinds.unsubscribed(self.text)
        if name is None or indexes.subscribed(self.session, name):
            return False
        with (
            marked(self.session, self.migration, self.number - 1, lambda: self.number),
            sessions.transaction(self.session),
        ):
            self.mark(done=self.number, started=self.number)
        return True

    def _is_pending(self) -> bool:
        names = kinds.detached(self.text)
        return names is not None and indexes.attached(self.session, *names) == "pending"

    def _explained_detach(self, failure: MigrationPartial) -> MigrationPartial:
        said = _finalize(self.text)
        return failure.retold(
            MigrationPartial,
            message=f"{failure}; the partition is left with its detaching pending",
            hint=f"End what is in its way and run again: `{said}` finishes it then.",
        )

    def _settle(self, index: indexes.Index, *, begun_before: bool) -> bool:
        """Read back what an earlier run left; return whether nothing is left to do."""
        found = indexes.find(self.session, index)
        if index.dropped:
            return begun_before and found is None
        if found and not found.valid:  # or somebody builds it this moment
            self._wait(found.table)
            found = indexes.find(self.session, index)
        if found is None:
            return False
        compared = begun_before or (found.valid and index.if_not_exists)
        same = compared and indexes.made_by(self.session, found, self.text)
        if isinstance(same, psycopg.Error):
            raise self._unknown(found, same)
        ours = begun_before and same
        if ours and not found.valid:
            self._drop(found.name)
            return False
        if ours:
            return True
        if not found.valid:
            raise self._failure(
                "index.invalid",
                f"index {found.name} exists and is INVALID, and this file did not make it",
                f"DROP INDEX CONCURRENTLY {found.name}; then run again.",
            )
        if index.if_not_exists and not same:
            raise self._differs(found)
        return False

    def _unknown(self, found: indexes.Found, error: psycopg.Error) -> MigrationPartial:
        grant = "GRANT this role TEMPORARY on the database; or " if error.sqlstate == DENIED else ""
        return self._failure(
            "index.unknown",
            f"index {found.name} exists, and whether it is the one that is wanted cannot be told: "
            "it cannot be made on an empty copy of its table, to compare with: "
            f"{error.diag.message_primary or error}",
            f"{grant}{indexes.drops([found.name])} or if it is the one, write behind CREATE INDEX "
            f"CONCURRENTLY IF NOT EXISTS what the server does: {found.definition}. Then run again.",
        )

    def _differs(self, found: indexes.Found) -> MigrationPartial:
        return self._failure(
            "index.differs",
            f"index {found.name} exists with another definition, so IF NOT EXISTS would skip "
            "the one that is wanted",
            f"Rename or drop {found.name}, or correct the file; then run again.",
        )

    def _wait(self, table: str) -> None:
        """Let whoever is at work on a table's indexes finish: what is INVALID may be theirs."""
        try:
            indexes.wait(self.session, table)
        except psycopg.Error as error:
            if self.session.lost:
                raise
            raise self._failure(
                "index.busy",
                f"an index of {table} is INVALID, and somebody may be at work on it: "
                f"{error.diag.message_primary or error}",
                "Let them finish, or end their session; then run again.",
            ) from error

    def _drop_left(self, reindex: indexes.Reindex) -> None:
        """Drop what an earlier run of this REINDEX left."""
        for table in set(indexes.left(self.session, reindex).values()):
            self._wait(table)
        for name in indexes.left(self.session, reindex):
            self._drop(name)

    def _drop(self, name: str) -> None:
        """Drop an INVALID index that an earlier run of this statement left."""
        structlog.get_logger().warning(
            "migration.progressed",
            **self.migration.named,
            statement=self.number,
            dropped_invalid_index=name,
        )
        with self._patience(), self._located():
            self.session.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")

    def _begun(self, index: indexes.Index | None, reindex: indexes.Reindex | None) -> int:
        """Return how many statements left something, now that this one failed."""
        if stop.requested():  # its end may have been faster: the next run reads it back
            return self.number
        try:
            return self.number if self._left(index, reindex) else self.number - 1
        except psycopg.Error:  # it may have left something
            return self.number

    def _left(self, index: indexes.Index | None, reindex: indexes.Reindex | None) -> object:
        """Return what this statement left half done, if anything."""
        if reindex is not None:
            return indexes.left(self.session, reindex)
        return self._is_pending() or (self._left_invalid(index) if index else self._left_unnamed())

    def _left_invalid(self, index: indexes.Index) -> indexes.Found | None:
        """Return the INVALID index that this statement left; somebody else's is none."""
        found = indexes.find(self.session, index)
        if found is None or found.valid:
            return None
        if index.dropped or indexes.made_by(self.session, found, self.text) is not False:
            return found
        return None

    def _left_unnamed(self) -> dict[str, str]:
        """Return the INVALID indexes that this statement may have made, where it names none."""
        return indexes.unnamed(self.session, self.text) if indexes.unnamed_index(self.text) else {}

    def _explained(
        self,
        index: indexes.Index | None,
        reindex: indexes.Reindex | None,
        failure: MigrationPartial,
    ) -> Failure:
        """Add to a failure what it left behind, where that can be seen."""
        if self.session.lost:
            return failure
        try:
            told = self._with_what_is_left(index, reindex, failure)
        except psycopg.Error:
            return failure
        cause = failure.problem.hint
        if told is failure or failure.problem.sqlstate != sessions.CANCELLED:
            return told
        return told.retold(MigrationPartial, hint=f"{cause} {told.problem.hint}")

    def _with_what_is_left(
        self,
        index: indexes.Index | None,
        reindex: indexes.Reindex | None,
        failure: MigrationPartial,
    ) -> Failure:
        if reindex is not None:
            return self._explained_reindex(reindex, failure)
        if self._is_pending():
            return self._explained_detach(failure)
        if index is None and (names := self._left_unnamed()):
            return failure.retold(
                MigrationPartial,
                message=f"{failure}; left INVALID: {', '.join(names)}",
                hint=f"Remove the cause, and {indexes.drops(names)} What a build without a "
                f"name did cannot be read back: `force {self.migration.written}` runs the file "
                "again from its start.",
            )
        if index is None or (found := self._left_invalid(index)) is None:
            return failure
        ours = index.dropped or indexes.made_by(self.session, found, self.text)
        again = "it is dropped then" if index.dropped else "the index is dropped and built anew"
        return failure.retold(
            MigrationPartial,
            message=f"{failure}; index {found.name} is left INVALID",
            hint=f"Remove the cause and run again: {again}."
            if ours is True
            else f"Remove the cause, {indexes.drops([found.name])} and run again.",
        )

    def _explained_reindex(
        self, reindex: indexes.Reindex, failure: MigrationPartial
    ) -> MigrationPartial:
        names = indexes.left(self.session, reindex)
        if not names:
            return failure
        return failure.retold(
            MigrationPartial,
            message=f"{failure}; left INVALID: {', '.join(names)}",
            hint="Remove the cause and run again: what is left INVALID is dropped first."
            if reindex.relation
            else f"Remove the cause, {indexes.drops(names)} and run again.",
        )

    def _require(self, index: indexes.Index, *, skipped: bool) -> None:
        found = indexes.find(self.session, index)
        if index.dropped:
            return
        if found and found.valid:
            # somebody's, whose transaction we have waited for, is skipped as well
            in_doubt = index.if_not_exists and (skipped or indexes.quiet(self.session))
            if in_doubt and indexes.made_by(self.session, found, self.text) is False:
                raise self._differs(found)
            return
        if found is None:
            raise self._failure(
                "index.elsewhere",
                f"there is no index {index.name} on {index.place} after its statement",
                "Has another table an index of that name, so that IF NOT EXISTS skipped this one? "
                "Choose another name.",
            )
        raise self._failure(
            "index.invalid",
            f"index {found.name} is INVALID after its statement",
            "Run again: it is dropped and built anew.",
        )

    def _failure(self, code: str, message: str, hint: str) -> MigrationPartial:
        line, column = scan.position(self.migration.up.text, self.statement.start)
        return MigrationPartial(
            code,
            message,
            hint,
            **self.migration.named,
            file=self.migration.up.file,
            line=line,
            column=column,
        )


def _finalize(text: bytes) -> str:
    """Return what finishes a DETACH PARTITION CONCURRENTLY whose second half did not come."""
    table, partition = kinds.detached(text) or ("", "")
    return f"ALTER TABLE {table} DETACH PARTITION {partition} FINALIZE"
