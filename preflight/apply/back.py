"""Take migrations back: choose, export what would be destroyed, run the rollback file, record."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from preflight.apply import forward, fresh, outside, patience, resume, statements, verify
from preflight.base.errors import (
    ConfigInvalid,
    Failure,
    FilesInvalid,
    HistoryConflict,
    MigrationFailed,
    MigrationPartial,
    Problem,
    VerifyFailed,
)
from preflight.files import due, folder, migrations, reading
from preflight.files.layout import NATIVE
from preflight.history import fence, journal, ledger, plan
from preflight.server import sessions

if TYPE_CHECKING:
    from preflight.files.migrations import Migration, Script
    from preflight.history.journal import Row
    from preflight.history.plan import History
    from preflight.server.sessions import Session
    from preflight.server.watch import Watch


@dataclass(frozen=True, slots=True)
class Step:
    """One migration to take back: its row as planned, and its files or what the history kept."""

    migration: Migration
    row: Row
    script: Script

    @property
    def undo(self) -> Migration:
        """The way back as a file to run like any other."""
        return dataclasses.replace(self.migration, up=self.script, verify=None)


def choose(files: Sequence[Migration], known: History, to: int | None) -> tuple[int, ...]:
    """Return the versions to take back, newest first; raises ConfigInvalid for a wrong one.

    They are all above `to`: what is below any version stands for everything.
    """
    recorded = sorted(known.records, reverse=True)
    if to is None:
        return tuple(recorded[:1])
    if to > 0 and to not in known.records and to not in {file.version for file in files}:
        names = ", ".join(known.records[version].written for version in reversed(recorded))
        raise ConfigInvalid(
            "config.arguments",
            f"there is no version {to}",
            f"Recorded: {names or 'none'}; 0 takes all back.",
        )
    return tuple(version for version in recorded if version > to)


def prepare(session: Session, files: Sequence[Migration], versions: Sequence[int]) -> list[Step]:
    """Return what to run: of the disk what is the recorded migration's, else what was recorded.

    Raises FilesInvalid naming every version that cannot be taken back, HistoryConflict where only
    another migration's files are on disk, NeedsRepair when an earlier rollback stopped part-way and
    cannot be resumed.
    """
    on_disk = {file.version: file for file in files}
    found: list[Step] = []
    unwritten: list[Problem] = []
    foreign: list[Problem] = []
    for version in versions:
        row = ledger.row_of(session, version)
        if row is None:
            continue
        kept, there = _remembered(row), on_disk.get(version)
        same = there is not None and (there.name, there.checksum) == (row.name, row.checksum)
        file = _completed(there, kept) if there and same else kept
        if file.way_back is not None:
            found.append(Step(file, row, file.way_back))
            if not same and row.verify_sql is None:
                _tell_unknown(row)
        elif there is None or same:
            unwritten.append(_unwritten(files, file, there))
        else:
            foreign.append(_foreign(files, there, row))
    if foreign:
        raise HistoryConflict.of("history.conflict", foreign)
    if unwritten:
        raise FilesInvalid.of("files.no_rollback", unwritten)
    for step in found:
        _begun(step)
    due.require([step.script for step in found if not step.row.undoing], back=True)
    _require_saved_late(found)
    structlog.get_logger().info("plan.made", rollback=[step.migration.name for step in found])
    return found


def _require_saved_late(steps: Sequence[Step]) -> None:
    """Make sure that what is exported last is all that a rollback destroys; raises FilesInvalid.

    A transaction that reads as of its first statement would miss what was committed while it waited
    for the tables.
    """
    problems = [
        Problem(
            f"{step.script.file}: ISOLATION LEVEL {step.script.isolation} beside "
            f"{step.migration.export.file}, which could miss rows that the rollback destroys",
            "Leave ISOLATION LEVEL out of the rollback file.",
            **step.migration.named,
            file=step.script.file,
        )
        for step in steps
        if step.script.isolation and step.migration.export
    ]
    if problems:
        raise FilesInvalid.of("files.invalid", problems)


def _completed(file: Migration, kept: Migration) -> Migration:
    """Return a migration's files on disk, and what the history kept where one is gone."""
    return dataclasses.replace(
        file,
        rollback=file.rollback or kept.rollback,
        verify=file.verify or kept.verify,
        export=file.export or kept.export,
    )


def _called(
    files: Sequence[Migration], name: str, there: Migration | None = None
) -> tuple[str, str]:
    """Return what the forward and the rollback file of a version are called in this folder."""
    rule = folder.rule(files)
    if rule is not None and there is not None:
        return there.up.file, rule.way_back(there)
    layout = rule or NATIVE
    return layout.file(name, "up"), layout.file(name, "rollback")


def _unwritten(files: Sequence[Migration], file: Migration, there: Migration | None) -> Problem:
    """Say that a version has no way back; a companion alone, without its file, would be 25."""
    up, rollback = _called(files, file.name, there)
    how = f"Write {rollback}" if there else f"Put {up} back as it ran, with its {rollback}"
    hint = f"{how}, or restore a backup (`backups --table`)."
    message = f"{file.name} has no rollback file, on disk or in the history"
    if file.rollback is not None and file.way_back is None:
        message = (
            f"{file.rollback.file} holds no statement, so it takes nothing of {file.name} back"
        )
        hint += " Is there nothing to take back? `SELECT;` in it says so."
    return Problem(message, hint, **file.named)


def _tell_unknown(row: Row) -> None:
    structlog.get_logger().warning(
        "migration.progressed",
        migration=row.name,
        version=row.version,
        notice="it was recorded by an older version, which kept no verify and no export file: "
        "nothing is exported, and nothing tells whether the rollback is complete",
    )


def _foreign(files: Sequence[Migration], file: Migration, row: Row) -> Problem:
    """Say that the only rollback file of a version is not that of what was recorded."""
    found = plan.compared(file, plan.Record(row.version, row.name, row.checksum))
    differs = {
        "edited": f"{file.name} was edited since",
        "renamed": f"its file was renamed to {file.name}",
        "other": f"{file.name} on disk is another migration",
    }[found]
    up, rollback = _called(files, row.name, file if found == "edited" else None)
    return Problem(
        f"{row.name} cannot be taken back: the history keeps no rollback text of it, and {differs}",
        f"Put {up} back as it ran, with its {rollback}.",
        migration=row.name,
        version=row.version,
    )


def _begun(step: Step) -> Row:
    """Return how far an earlier rollback came, as the row of a file that runs forward."""
    row = step.row
    if not row.undoing:
        return dataclasses.replace(row, statements_done=0, statements_started=0)
    before = dataclasses.replace(row, up_sql=row.rollback_sql or "", undoing=False)
    resume.require_resumable(step.undo, before, back=True)
    return before


def _remembered(row: Row) -> Migration:
    """Return a migration that is not on disk as the history kept it: this image is older."""

    def kept(kind: str, text: str) -> Script:
        return reading.kept(row.version, row.name, kind, text.encode())

    return migrations.Migration(
        row.version,
        row.name,
        kept("up", row.up_sql),
        None if row.rollback_sql is None else kept("rollback", row.rollback_sql),
        kept("verify", row.verify_sql) if row.verify_sql else None,  # an empty text: there was none
        kept("export", row.export_sql) if row.export_sql else None,
        row.label or "",
    )


def back(
    session: Session,
    step: Step,
    backup: str | None,
    last_look: Callable[[], None] = lambda: None,
) -> bool:
    """Run one rollback file and take its row away; return False when the session was replaced.

    `last_look` is called in its transaction before anything is destroyed; without a transaction in
    the one that claims the row, right before the first statement.
    Raises MigrationFailed (also when the verify file still finds effects), MigrationPartial,
    DatabaseBusy, ConnectionLost, PlanChanged.
    """
    began = time.monotonic()
    fresh.anew(session, step.migration, step.script)
    forward.clean(session)

    def once(seen: Watch) -> int:
        if not step.script.transactional:
            return _step_by_step(session, step, backup, seen, began, last_look)
        return patience.patiently(
            session,
            step.undo,
            seen,
            lambda: _transaction(session, step, backup, seen, began, last_look),
        )

    return forward.guarded(
        session,
        step.migration,
        once,
        # a row that is there may be one that another run has made since
        lambda row: row is None or journal.took_back(session, step.row.version),
        "migration.rolled_back",
        note="an image that has this migration applies it again at its next start",
        script=step.script,
    )


def _transaction(  # noqa: PLR0913, PLR0917 -- what a rollback is made of
    session: Session,
    step: Step,
    backup: str | None,
    seen: Watch,
    began: float,
    last_look: Callable[[], None],
) -> int:
    begin = sessions.begin_with(step.script.isolation)
    with (
        fence.recorded(session, step.migration, MigrationFailed),
        statements.committed(MigrationFailed, session, step.migration, step.script),
        sessions.transaction(session, lambda: session.execute(begin)),
    ):
        fence.fence(session, lambda: ledger.give_up(session, step.row), begin=begin)
        ledger.require_unmoved(session)
        seen.begin(1)  # a wait for its tables is one of its own
        last_look()
        statements.prepare(session, step.script, "SET LOCAL")
        count = forward.run_all(session, step.migration, step.script, seen)
        forward.check_constraints(session, step.migration, step.script)
        session.reset()
        _require_absent(session, step, MigrationFailed)
        _record(session, step, backup, began)
    return count


def _step_by_step(  # noqa: PLR0913, PLR0917 -- what a rollback is made of
    session: Session,
    step: Step,
    backup: str | None,
    seen: Watch,
    began: float,
    last_look: Callable[[], None],
) -> int:
    """Run or resume a non-transactional rollback file; its row stays until all of it is done."""
    begun = _begun(step)
    done, started = begun.statements_done, begun.statements_started

    def claim() -> None:
        with sessions.transaction(session):
            fence.fence(
                session,
                lambda: ledger.begin_undo(
                    session, step.row, step.script, done=done, started=started
                ),
            )
            ledger.require_unmoved(session)
            seen.begin(1)
            last_look()

    with (
        fence.recorded(session, step.migration, MigrationPartial),
        outside.untouched(session, step.undo, step.row),
    ):
        patience.patiently(session, step.undo, seen, claim, claims=True)
        statements.prepare(session, step.script, "SET")
        count = outside.run_statements(session, step.undo, begun, seen)
        session.reset()
        with outside.marked(session, step.undo, count):
            fresh.before_checks(session, step.migration, seen)
            with sessions.transaction(session):
                row = ledger.row_of(session, step.row.version)
                fence.fence(session, lambda: row is not None and ledger.give_up(session, row))
                _require_absent(session, step, MigrationPartial)
                _record(session, step, backup, began)
    return count


def _record(session: Session, step: Step, backup: str | None, began: float) -> None:
    milliseconds = round(1000 * (time.monotonic() - began))
    ledger.follow(session, step.script)
    session.compare()
    journal.journal(session, "rolled_back", step.migration, duration_ms=milliseconds, backup=backup)


def _require_absent(session: Session, step: Step, outcome: Callable[..., Failure]) -> None:
    """Make sure that the verify file finds no effect any more."""
    if step.migration.verify is None:
        return
    try:
        checks = verify.run(session, step.migration.verify, step.script)
    except VerifyFailed as failure:
        hint = verify.advice(session, failure.problem.hint)
        raise failure.retold(outcome, hint=hint, **step.migration.named) from failure
    untold = [check for check in checks if not check.told]
    if untold:
        structlog.get_logger().warning(
            "migration.progressed",
            **step.migration.named,
            notice=f"{len(untold)} queries of the verify file fail now, which is no evidence that "
            f"nothing is left: {verify.described(untold)}; write one query a check",
        )
    left = [check for check in checks if check.effect and check.ok]
    if left:
        names = "; ".join(f"{check.suite}: {check.check}" for check in left[:5])
        hint = "Correct the rollback file; it must undo all that the verify file looks for."
        if not session.copy and not step.script.transactional:
            hint = verify.BEHIND
        raise outcome(
            "rollback.incomplete",
            f"{step.script.file} ran, but {len(left)} effects of {step.migration.name} are still "
            f"there ({names})",
            verify.advice(session, hint),
            **step.migration.named,
        )
