"""Prove a backup by restoring it, and try the pending files on that copy.

The copy is on a throwaway server inside the job, or a scratch database: on the same server, or on
the one that REHEARSE_URL names. That is closed to PUBLIC before a row is in it and dropped in the
end; what a killed run left is dropped by the next one, which knows it by its name, its comment and
the session that made it, which is gone.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import structlog

from preflight.apply import back, contact, forward, statements
from preflight.backup import new_database, spool, take
from preflight.base import console, logs
from preflight.base.errors import (
    ConnectionLost,
    Failure,
    HistoryConflict,
    MigrationFailed,
    MigrationPartial,
    NeedsRepair,
    PlanChanged,
    Problem,
    RehearsalFailed,
    TargetUnusable,
    VerifyFailed,
    blamed,
)
from preflight.files import reach
from preflight.history import ledger, plan
from preflight.rehearsal import (
    burden,
    clone,
    copies,
    limits,
    local,
    meter,
    scratch,
    some_rows,
    throwaway,
)
from preflight.server import catalog, sessions

if TYPE_CHECKING:
    from preflight.backup.take import Taken
    from preflight.base.config import Config
    from preflight.files.migrations import Migration, Script
    from preflight.history.journal import Row
    from preflight.history.plan import History
    from preflight.server.sessions import Session
TELL_EVERY_S = 10.0
NOT_SUPPORTED = "0A000"  # as REFRESH … CONCURRENTLY of a view that is not filled
# a check of a row, bounds of partitions, a block that has looked at some
_BY_TEXT = frozenset({"23514", "42P17", "P0001", "P0004"})
# money, to_number and to_date: what is no such word, and what is too large for its place
_BY_NUMBER = frozenset({"22P02", "22003", "22007", "22008"})
WARN_LOCK_S = 2.0  # where no limit is set; a request that waits for longer is one that people see
# what a file does wrong; a busy or vanished server is no fault of it
FAILURES = (MigrationFailed, MigrationPartial, VerifyFailed, NeedsRepair, HistoryConflict)


# what the stories call


def run(
    session: Session, saved: Taken | None, todo: Sequence[Migration], again: Row | None = None
) -> None:
    """Restore the backup, compare it, and try the files on the copy as `apply` will run them.

    Raises BackupUnverified (the copy is not what was dumped), BackupInterrupted, RehearsalFailed
    (a file fails on it; or it cannot be tried and PREFLIGHT_REHEARSE is `always`).
    """
    copies.require_complete(session.config, saved)
    scripts = [limits.scripts_of(file) for file in todo]
    todo = todo[: _within(session, saved, scripts)]
    reads = [script for file in todo for script in (*limits.scripts_of(file), file.rollback)]
    with _copy(session, saved, [file.up for file in todo], reads=reads) as copy:
        if copy is not None:
            gauge = meter.Meter()
            session.tell("trying the files on a copy")
            with _judged(session.config, gauge):
                trial = _trial(copy, todo, again, gauge)
            _tell_passed(copy, saved, trial)


@dataclass(frozen=True, slots=True)
class Tenant:
    """A schema of a database, or all of it: what is due there, and how one goes there."""

    name: str
    config: Config
    extra: Mapping[str, str]  # settings of its sessions
    files: Sequence[Migration]
    todo: Sequence[Migration]


def together(tenants: Sequence[Tenant]) -> list[Migration]:
    """Return what is due in any of them, each file once."""
    return list({file.name: file for tenant in tenants for file in tenant.todo}.values())


def each(session: Session, saved: Taken | None, tenants: Sequence[Tenant]) -> None:
    """Restore the backup, compare it, and try on one copy what is due in each tenant of it.

    First contact is part of it: nothing was recorded on the live database. Raises as `run`.
    """
    copies.require_complete(session.config, saved)
    todo = together(tenants)
    if _within(session, saved, [limits.scripts_of(file) for file in todo]) < len(todo):
        return
    # of many, or beside others, no search_path says whose rows are meant
    only = len(tenants) == 1 and tenants[0].config.schemas == session.config.schemas
    alone = todo if only else ()
    reads = [script for file in alone for script in (*limits.scripts_of(file), file.rollback)]
    with _copy(session, saved, [file.up for file in todo], reads=reads) as copy:
        if copy is None:
            return
        told: Trial | None = None
        known: Mapping[int, meter.Table] = {}
        began = told_at = time.monotonic()
        for number, tenant in enumerate(tenants):
            if time.monotonic() - told_at >= TELL_EVERY_S:
                told_at = time.monotonic()
                _tell_tenants(number, len(tenants), told_at - began)
            trial = _of_tenant(session, copy, tenant, meter.Meter(known))
            known = trial.gauge.known
            told = trial.beside(told) if told else trial
        if told:
            _tell_passed(copy, saved, told)


@contextmanager
def _let_in(session: Session, copy: copies.Copy, tenant: Tenant) -> Iterator[None]:
    """Say that nothing can be tried where only the copy keeps from a tenant what its files need.

    It is not the live server that anything has to be done about.
    """
    try:
        yield
    except (TargetUnusable, HistoryConflict) as failure:
        if isinstance(failure, HistoryConflict) and failure.problem.sqlstate != copies.NO_RIGHT:
            raise
        raise scratch.Unavailable(
            f"on the copy, {tenant.name}: {failure}", level="warning"
        ) from failure
    except RehearsalFailed as failure:
        role, denied = tenant.extra.get("role"), failure.problem.sqlstate == copies.NO_RIGHT
        if role is None or not denied or copy.where == "local":
            raise
        said = scratch.server_said(failure)
        if why := scratch.kept_back(session, copy.home, copy.name, role, said):
            raise scratch.Unavailable(
                f"{tenant.name}: {failure}, and {why}", level="warning"
            ) from failure
        raise


def _tell_tenants(number: int, count: int, elapsed_s: float) -> None:
    structlog.get_logger().info(
        "rehearsal.progressed",
        targets_tried=number,
        target_count=count,
        elapsed_s=round(elapsed_s, 1),
        left_s=round(elapsed_s / number * (count - number)) if number else None,
    )


def _of_tenant(session: Session, copy: copies.Copy, tenant: Tenant, gauge: meter.Meter) -> Trial:
    """Try what is due in a tenant; `gauge` knows the tables, else all were sized for each."""
    session.tell(f"trying the files on a copy of {tenant.name}"[:40])
    with (
        blamed(tenant.name),
        _let_in(session, copy, tenant),
        scratch.reached(copy.session, copy.name, tenant.extra, tenant.config) as own,
    ):
        there = dataclasses.replace(copy, session=own)
        _settled(there, tenant.files)
        with _judged(tenant.config, gauge):
            return _trial(there, tenant.todo, None, gauge)


def _settled(copy: copies.Copy, files: Sequence[Migration]) -> History:
    """Make first contact with a copy; Unavailable where that fails on one that is not alike."""
    try:
        with _quietly():
            return contact.settle(copy.session, files)
    except (VerifyFailed, HistoryConflict) as failure:
        if copy.whole:
            raise
        raise scratch.Unavailable(
            f"the copy is not in all as the database, and first contact with it fails: {failure}",
            level="warning",
        ) from failure


def backward(session: Session, saved: Taken | None, steps: Sequence[back.Step]) -> None:
    """Restore the backup, compare it, and try the rollback files on the copy; raises as `run`."""
    copies.require_complete(session.config, saved)
    steps = steps[: _within(session, saved, [[step.script] for step in steps])]
    scripts = [step.script for step in steps]
    with _copy(session, saved, scripts, reads=scripts) as copy:
        if copy is None:
            return
        session.tell("trying the rollback on a copy")
        trial = Trial(meter.Meter(), [step.migration for step in steps])
        with _judged(session.config, trial.gauge), _quietly():
            trial.size = _size(copy)
            for step in steps:
                with trial.gauge.over(copy.session, step.migration):
                    _tried(step.migration, partial(back.back, copy.session, step, None))
        _tell_passed(copy, saved, trial)


def look(
    session: Session,
    saved: Taken,
    files: Sequence[Migration],
    todo: Sequence[Migration],
    gauge: meter.Meter,
) -> None:
    """Try on a copy what `up` would do to it, first contact included; `gauge` has what it cost.

    Of `files`, `todo` are those that will run. For a plan: raises RehearsalFailed also when nothing
    can be tried.
    """
    config = session.config
    always = dataclasses.replace(config, rehearse="always")
    _within(session, saved, [limits.scripts_of(file) for file in todo], always)
    reads = [script for file in todo for script in (*limits.scripts_of(file), file.rollback)]
    with _copy(session, saved, [file.up for file in todo], always, reads=reads) as copy:
        assert copy is not None  # noqa: S101 -- `always` gives one or raises
        made = plan.of(config, files, _settled(copy, files))
        with _judged(config, gauge):
            trial = _trial(copy, made.todo, None, gauge)
        _tell_passed(copy, saved, trial)


def look_each(
    session: Session, saved: Taken, tenants: Sequence[Tenant]
) -> dict[str, tuple[meter.Meter, RehearsalFailed | None]]:
    """Try on one copy what `up` would do in each tenant; return what it cost, and what failed.

    For a plan: one that fails is none of the others' concern. Raises RehearsalFailed where nothing
    can be tried at all.
    """
    always, todo = dataclasses.replace(session.config, rehearse="always"), together(tenants)
    _within(session, saved, [limits.scripts_of(file) for file in todo], always)
    found: dict[str, tuple[meter.Meter, RehearsalFailed | None]] = {}
    with _copy(session, saved, [file.up for file in todo], always) as copy:
        assert copy is not None  # noqa: S101 -- `always` gives one or raises
        told: Trial | None = None
        known: Mapping[int, meter.Table] = {}
        for tenant in tenants:
            gauge, failed = meter.Meter(known), None
            try:
                with _readable(session, copy, {file.up for file in todo}):
                    trial = _of_tenant(session, copy, tenant, gauge)
                told = trial.beside(told) if told else trial
            except RehearsalFailed as failure:
                failed = failure
            except scratch.Unavailable as why:
                failed = _demanded(why)
            known, found[tenant.name] = gauge.known, (gauge, failed)
        if told and not any(failed for _, failed in found.values()):
            _tell_passed(copy, saved, told)
    return found


@contextmanager
def opened(
    session: Session, saved: Taken | None, config: Config | None = None
) -> Iterator[copies.Copy | None]:
    """Yield a copy that another program can be led to; None, and why, where there can be none.

    Raises BackupUnverified, BackupInterrupted, and RehearsalFailed where one is demanded.
    """
    copies.require_complete(session.config, saved)
    with _copy(session, saved, (), config, guests=True) as copy:
        yield copy


def _within(
    session: Session,
    saved: Taken | None,
    files: Sequence[Sequence[Script | None]],
    config: Config | None = None,
) -> int:
    """Return how many files can be tried on a copy of some schemas, and say why no more can.

    Raises RehearsalFailed when that was demanded.
    """
    config = config or session.config
    part = saved.backup.manifest.partial if saved and config.rehearse_clone_url is None else None
    if config.rehearse == "off" or (found := limits.beyond(session, part, files)) is None:
        return len(files)
    number, why = found
    left = [script for file in files[number:] for script in file if script]
    _tell_skipped(config, left, why)
    return number


# the trial


@dataclass(slots=True)
class Trial:
    """What was tried on a copy; the size is of the copy before it, in bytes."""

    gauge: meter.Meter
    files: Sequence[Migration]
    undone: list[Migration] = field(default_factory=list)
    size: int = 0

    def beside(self, before: Trial) -> Trial:
        """Return this and one before it on the same copy: all files, and what took longest."""
        slower = max(before, self, key=lambda trial: trial.gauge.took_s)
        files, undone = (
            list({file.name: file for file in both}.values())
            for both in ([*before.files, *self.files], [*before.undone, *self.undone])
        )
        return Trial(slower.gauge, files, undone, before.size)


def _trial(
    proven: copies.Copy, todo: Sequence[Migration], again: Row | None, gauge: meter.Meter
) -> Trial:
    """Run the files forward, then back and forward again as far as rollback files reach."""
    copy = proven.session
    trial = Trial(gauge, todo)
    trouble: list[str] = []
    with _quietly(), console.Bar("rehearse") as bar:
        trial.size = _size(proven)
        way_back = _reversible(proven, todo) if again is None else []
        state: catalog.Objects | None = None
        changes: list[dict[str, str | None]] = []
        for number, file in enumerate(todo):
            bar.show(number / len(todo), file.name)
            if file in way_back and state is None:
                state = catalog.definitions(copy)
            with gauge.over(copy, file):
                _tried(file, partial(forward.forward, copy, file, None, again))
            if state is not None:
                state, before = catalog.definitions(copy), state
                changes.append(catalog.undoing(before, state))
        for file in reversed(way_back):
            bar.show(None, f"{file.name}, and back")
            state = catalog.undone(state or (), changes.pop())
            trial.undone.append(file)
            if trouble := _back(proven, file, state):
                break
        for file in reversed(() if trouble else trial.undone):
            bar.show(None, f"{file.name}, once more")
            if trouble := _second(copy, file):
                trial.undone = [file]
                break
    if trouble:
        _tell_trouble(copy.config, trial.undone[-1], trouble)
    return trial


def _reversible(copy: copies.Copy, todo: Sequence[Migration]) -> list[Migration]:
    """Return the last files, as many as can be taken back: a half-done one has no way back."""
    thrown_away = copy.where == "local"
    scripts = [script for file in todo for script in (file.up, file.rollback) if script]
    bounds = reach.Bounds(copies.foreign_tables(copy.session, scripts), server=thrown_away)
    part = copy.part
    found: list[Migration] = []
    for file in reversed(todo):
        if file.way_back is None or ledger.row_of(copy.session, file.version):
            break
        reaching = copies.reaching([file.way_back], bounds)
        if any(far.certain or not thrown_away for _, _, far in reaching):
            break
        if limits.beyond(copy.session, part, [[file.way_back]]):
            break
        found.insert(0, file)
    return found


def _second(copy: Session, file: Migration) -> list[str]:
    """Run a file again after its rollback; return what went wrong: the rollback's doing."""
    try:
        _tried(file, partial(forward.forward, copy, file, None))
    except RehearsalFailed as failure:
        return [f"after its rollback the file does not run a second time: {failure}"]
    return []


def _back(proven: copies.Copy, file: Migration, before: catalog.Objects) -> list[str]:
    """Take a file back on the copy; return what is not as it was before it, object by object."""
    copy = proven.session
    row = ledger.row_of(copy, file.version)
    if row is None or file.rollback is None:
        return []
    step = back.Step(dataclasses.replace(file, verify=None), row, file.rollback)
    try:
        _tried(file, partial(back.back, copy, step, None))
    except RehearsalFailed as failure:  # nobody takes anything back now
        if copy.config.rehearse == "always" or _unfilled(proven, failure):
            raise
        return [f"it fails {failure}"]
    return catalog.difference(before, catalog.definitions(copy))


def _tell_trouble(config: Config, file: Migration, trouble: Sequence[str]) -> None:
    """Say what a rollback file leaves; raises RehearsalFailed with PREFLIGHT_REHEARSE=always."""
    script = file.rollback.file if file.rollback else file.name
    message = f"{script} does not return the database to where it was: {console.some(trouble)}"
    if config.rehearse == "always":
        raise RehearsalFailed(
            "rehearsal.rollback_differs",
            message,
            "Correct the rollback file; PREFLIGHT_REHEARSE=auto makes this a warning. "
            "The live database was not changed.",
            **file.named,
            file=script,
        )
    structlog.get_logger().warning(
        "rehearsal.warned",
        **file.named,
        reason=message,
        objects=list(trouble[:100]),
    )


def _tried(file: Migration, attempt: Callable[[], object]) -> None:
    """Run a part of the trial; what fails there is RehearsalFailed, with the place."""
    try:
        attempt()
    except FAILURES as failure:
        raise _failed(failure) from failure
    except PlanChanged as changed:
        raise RehearsalFailed(
            "rehearsal.changed",
            f"{file.name}: the copy's history is not the one that was planned with",
            "Another run changed it meanwhile; run again.",
            **file.named,
        ) from changed


def _failed(failure: Failure) -> RehearsalFailed:
    where = failure.problem.data()
    message, hint = where.pop("message"), where.pop("hint", None)
    if where.get("sqlstate") == scratch.DISK_FULL:  # a copy and more did not fit: what is live may
        raise scratch.Unavailable(f"the server has no room: {message}") from failure
    advice = "The live database was not changed: correct the data or the file, and run again."
    if hint and where.get("sqlstate") == sessions.CANCELLED:  # neither is to blame
        advice = "The live database was not changed."
    for general in statements.HINTS:  # it is said below for what a copy is
        hint = str(hint or "").replace(general, "").strip()
    return RehearsalFailed(
        "rehearsal.failed",
        f"on the copy: {message}",
        f"{hint} {advice}" if hint else advice,
        **where,
    )


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep to ourselves what happens to the copy: it is no news."""
    with logs.muted():
        yield


def _size(copy: copies.Copy) -> int:
    """Return its size, as who made it: others may not be let in."""
    return new_database.size_of(copy.home, copy.name)


@contextmanager
def _judged(config: Config, gauge: meter.Meter) -> Iterator[None]:
    """Hold what a trial measured against the limits; when it fails, tell of the files that passed.

    Raises RehearsalFailed when a lock was held for too long.
    """
    try:
        yield
        _require_short_locks(config, gauge)
    except RehearsalFailed:
        if gauge.passed:
            structlog.get_logger().info("rehearsal.measured", **gauge.told())
        raise


def _limit(config: Config, script: Script) -> float:
    """Return for how many seconds a file may hold a lock that stops writers; 0 for any number."""
    if script.max_lock_ms is not None:
        return script.max_lock_ms / 1000
    return config.rehearse_max_lock_s


def _require_short_locks(config: Config, gauge: meter.Meter) -> None:
    """Refuse what holds a lock for longer than its limit; warn where there is none."""
    problems: list[tuple[float, Problem]] = []
    warned: dict[str, tuple[float, Problem]] = {}
    for item in gauge.found.values():
        taken, limit = item.longest(), _limit(config, item.script)
        if item.unknown and 0 < limit < item.duration_s:
            unseen = (item.duration_s, _unseen_lock(item, limit))
            warned[item.script.file] = max(warned.get(item.script.file, unseen), unseen, key=_first)
        if taken is None or taken.held_s <= (limit or WARN_LOCK_S):
            continue
        found = (taken.held_s, _long_lock(item, taken, limit))
        if limit:
            problems.append(found)
        else:
            warned[item.script.file] = max(warned.get(item.script.file, found), found, key=_first)
    for _, problem in warned.values():
        _warn(problem)
    if problems:
        longest = sorted(problems, key=_first, reverse=True)
        raise RehearsalFailed.of("rehearsal.lock_too_long", [problem for _, problem in longest])


def _first(pair: tuple[float, Problem]) -> float:
    return pair[0]


def _warn(problem: Problem) -> None:
    where = problem.data()
    reason, _ = where.pop("message"), where.pop("hint", None)
    structlog.get_logger().warning("rehearsal.warned", reason=reason, **where)


def _long_lock(item: meter.Measured, taken: meter.Taken, limit: float) -> Problem:
    """Return the problem of a lock that stops writers for long."""
    of_all = f" ({taken.partitions} partitions)" if taken.partitions else ""
    how = ", as the manual says," if taken.documented else ""
    said = f"the limit is {limit:g} s" if limit else "no limit is set"
    return _at_statement(
        item,
        f"{taken.mode} on {taken.table}{of_all} was{how} held for {taken.held_s:.2f} s on the "
        f"copy; {said}",
        "Split the file, or take a way that locks less (CONCURRENTLY, NOT VALID and VALIDATE); or "
        "allow it: `-- preflight: max-lock 30s` in the file, or PREFLIGHT_REHEARSE_MAX_LOCK_S. "
        "The live database was not changed.",
    )


def _unseen_lock(item: meter.Measured, limit: float) -> Problem:
    return _at_statement(
        item,
        f"which tables it locks, and for how long, could not be measured; it took "
        f"{item.duration_s:.2f} s, and the limit is {limit:g} s",
    )


def _at_statement(item: meter.Measured, message: str, hint: str | None = None) -> Problem:
    line, column = item.place()
    return Problem(
        f"{item.script.file}:{line}:{column}: {message}",
        hint,
        migration=item.migration.name,
        version=item.migration.version,
        file=item.script.file,
        line=line,
        column=column,
    )


def _tell_unmeasured(config: Config, scripts: Sequence[Script], why: str) -> None:
    """Say that nobody has seen whether the files keep the limits that are set for them."""
    files = [script.file for script in scripts if _limit(config, script)]
    if files:
        structlog.get_logger().warning(
            "rehearsal.warned",
            reason=f"how long locks are held was not measured, though a limit is set: {why}",
            objects=files[:100],
        )


def _tell_passed(copy: copies.Copy, saved: Taken | None, trial: Trial) -> None:
    wal = None if copy.wal is None else burden.wal(copy.home)
    if copy.choice:
        scripts = [file.up for file in trial.files]
        _tell_unmeasured(copy.session.config, scripts, "the rehearsal was partial")
    structlog.get_logger().info(
        "rehearsal.passed",
        backup=saved.name if saved and saved.visible else None,
        verified=copy.evidence(saved),
        **(copy.choice.told() if copy.choice else {}),
        where=copy.where,
        fidelity=copy.fidelity,
        **({"schemas": copy.part.schemas} if copy.part else {}),
        without=[*copy.without, *(copy.choice.lacking[:100] if copy.choice else ())] or None,
        migrations=[file.name for file in trial.files],
        rollbacks_tried=[file.name for file in trial.undone],
        **trial.gauge.told(),
        size_before_bytes=trial.size,
        size_after_bytes=_size(copy),
        wal_bytes=None if copy.wal is None or wal is None else wal - copy.wal,
        paused_s=round(copy.paused_s, 1),
        restore_s=round(copy.restore_s, 3),
        duration_s=round(time.monotonic() - copy.began, 3),
    )


# the copy


@contextmanager
def _copy(  # noqa: PLR0913 -- what a copy is made from, and for whom
    session: Session,
    saved: Taken | None,
    scripts: Sequence[Script],
    config: Config | None = None,
    *,
    guests: bool = False,
    reads: Sequence[Script | None] = (),
) -> Iterator[copies.Copy | None]:
    """Yield a proven copy of the backup; None, and why, where there can be none.

    `reads` are all scripts that will run there, some of them perhaps; where there is no room for
    every row, those that they touch are there.
    """
    config = config or session.config
    with copies.named_loss(session):
        try:
            with ExitStack() as stack:
                files = _Files(scripts, [script for script in reads if script], guests=guests)
                copy = _had(stack, session, saved, files, config)
                with _readable(session, copy, {*files.scripts, *files.reads}):
                    yield copy
        except (ConnectionLost, scratch.Unavailable) as gone:
            why = copies.elsewhere(session, gone) if isinstance(gone, ConnectionLost) else gone
            _tell_skipped(config, scripts, why)


@contextmanager
def _readable(
    session: Session, copy: copies.Copy | None, scripts: Collection[Script]
) -> Iterator[None]:
    """Say that a file cannot be tried where it needs what only the copy has not, or not filled.

    `scripts` are all that run on it.
    """
    try:
        yield
    except RehearsalFailed as failure:
        state = failure.problem.sqlstate
        of_rights = state == copies.NO_RIGHT or _is(failure, "verify.failed")
        if copy is not None and copy.without and of_rights:
            raise scratch.Unavailable(
                f"{failure}, and the copy is without {' and '.join(copy.without)}", level="warning"
            ) from failure
        if copy is not None and (unlike := _unlike(copy, failure)):
            raise scratch.Unavailable(f"{failure}, and {unlike}", level="warning") from failure
        if copy is not None and (
            why := limits.unlike(session, copy.altered, scripts, failure)
            or limits.explained(session, copy.part, copy.lacking, failure)
            or some_rows.explained(copy.choice, failure)
        ):
            raise why from failure
        if copy is not None and copy.where != "local" and _lacks(session, failure):
            said = f"{failure}: it is not there, or has another name"
            raise scratch.Unavailable(said) from failure
        unpublished = state == scratch.NO_OBJECT and copy is not None and copies.unpublished(copy)
        if unpublished and scratch.names_a_publication(session, failure):
            raise scratch.Unavailable(
                f"{failure}, and the copy is without publications", level="warning"
            ) from failure
        if copy is None or not _unfilled(copy, failure):
            raise
        raise scratch.Unavailable(f"{failure}, which the copy cannot fill", copy.empty) from failure


def _unfilled(copy: copies.Copy, failure: RehearsalFailed) -> bool:
    """Tell whether a file needs the rows of a materialised view that the copy alone has not."""
    state, said = failure.problem.sqlstate, scratch.server_said(failure)
    if state == NOT_SUPPORTED:
        return bool(copy.empty) and "CONCURRENTLY" in said  # which view it is goes unsaid
    views = (each for each in copy.empty if each.startswith("materialized view "))  # as it says
    names = (re.escape(each.rpartition(".")[2].strip('"')) for each in views)
    return state == copies.UNFILLED and any(re.search(rf"(?<!\w){n}(?!\w)", said) for n in names)


def _unlike(copy: copies.Copy, failure: RehearsalFailed) -> str | None:
    """Say for want of which locale a file may fail: of sorting and letters, or of numbers."""
    state = failure.problem.sqlstate
    if copy.unsorted and (state in _BY_TEXT or _is(failure, "verify.failed")):
        return throwaway.SORTED
    return throwaway.unspoken(copy.unspoken) if copy.unspoken and state in _BY_NUMBER else None


def _is(failure: RehearsalFailed, code: str) -> bool:
    """Tell whether it is this error that ended the trial."""
    return isinstance(failure.__cause__, Failure) and failure.__cause__.code == code


def _lacks(session: Session, failure: RehearsalFailed) -> bool:
    """Tell whether a file needs what the live server has, and a copy has not, or not so called."""
    if scratch.lacks(session, failure):
        return True
    across = "cross-database references are not implemented"
    return failure.problem.sqlstate == NOT_SUPPORTED and across in scratch.server_said(failure)


@dataclass(frozen=True, slots=True)
class _Files:
    """For what a copy is: the files, all that is run with them, and whether others connect."""

    scripts: Sequence[Script]
    reads: Sequence[Script]
    guests: bool = False


def _had(
    stack: ExitStack, session: Session, saved: Taken | None, files: _Files, config: Config
) -> copies.Copy | None:
    """Return a copy that goes with `stack`; None, and why, where there can be none."""
    copy, why, scripts = None, None, files.scripts
    if saved is not None:
        scratch.sweep(session, saved.identity)
    throwaway.sweep(config)
    try:
        if config.rehearse != "off":
            _require_worth(session, saved, scripts, config)
            copy = _entered(stack, session, saved, files, config)
    except scratch.Unavailable as reason:
        why = reason
    except ConnectionLost as lost:
        why = copies.elsewhere(session, lost)
    if saved is not None and saved.visible:
        take.prune(session, saved)  # not before it is known what the newest is worth
    if why is not None:
        _tell_skipped(config, scripts, why)
    elif copy is None:
        _tell_unmeasured(config, scripts, "PREFLIGHT_REHEARSE=off")
    return copy


def _require_worth(
    session: Session, saved: Taken | None, scripts: Sequence[Script], config: Config
) -> None:
    """Raise Unavailable for many files on a database without a row: to apply them is the trial.

    What stops a file there loses nothing, and a few are tried all the same.
    """
    rows = saved.backup.manifest.rows if saved else None
    if config.rehearse == "always" or rows is None or len(scripts) <= throwaway.FEW:
        return
    ours = f"{config.schema}."
    if any(count for table, count in rows.items() if not table.startswith(ours)):
        return
    objects = session.execute("SELECT EXISTS (SELECT FROM pg_catalog.pg_largeobject_metadata)")
    if objects.fetchone() == (False,):
        raise scratch.Unavailable(
            f"the database holds no row that one of the {len(scripts)} files could meet; "
            "PREFLIGHT_REHEARSE=always tries them all the same"
        )


def _entered(
    stack: ExitStack, session: Session, saved: Taken | None, files: _Files, config: Config
) -> copies.Copy:
    """Return a copy where the configuration wants it; raises Unavailable, BackupUnverified."""
    scripts, reads = files.scripts, files.reads
    if config.rehearse_clone_url is not None:
        return stack.enter_context(clone.checked(session, config, scripts))
    if saved is None:
        raise scratch.Unavailable(
            f"there is no backup to restore (PREFLIGHT_BACKUP={config.backup})"
        )
    if saved.lacking:
        level = "info" if config.spool_dir is None else "warning"  # it was meant to be a place
        raise scratch.Unavailable(saved.lacking, hint=spool.SET, level=level)
    alone = ""
    if config.rehearse_url is None and config.rehearse_on != "server":
        try:
            return stack.enter_context(
                throwaway.restored(session, config, saved, scripts, reads, guests=files.guests)
            )
        except local.NotHere as reason:
            if config.rehearse_on == "local":
                raise scratch.Unavailable(str(reason)) from reason
            alone = f"; and there is no server of our own: {reason}"
    try:
        return stack.enter_context(copies.restored(session, config, saved, scripts, reads))
    except scratch.Unavailable as reason:
        reason.args = (f"{reason}{alone}",)
        raise


def _tell_skipped(config: Config, scripts: Sequence[Script], why: scratch.Unavailable) -> None:
    """Say why nothing is rehearsed; raises RehearsalFailed when it was demanded."""
    if config.rehearse == "always":
        raise _demanded(why)
    objects = {"objects": why.objects} if why.objects else {}
    log = structlog.get_logger()
    say = log.warning if why.level == "warning" else log.info
    say("rehearsal.skipped", reason=str(why), **objects, **why.where)
    _tell_unmeasured(config, scripts, str(why))


def _demanded(why: scratch.Unavailable) -> RehearsalFailed:
    """Return what it means where a rehearsal was demanded that cannot be had."""
    places = "PREFLIGHT_REHEARSE_ON and PREFLIGHT_REHEARSE_URL name other places to rehearse."
    return RehearsalFailed(
        "rehearsal.unavailable",
        f"a rehearsal was demanded, but {why}",
        f"PREFLIGHT_REHEARSE=auto goes on without one. {why.hint or places} Nothing was migrated.",
        **why.where,
    )
