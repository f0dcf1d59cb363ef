"""Writable, locked, backed up, proven, rehearsed: what stands between a wish and a change.

`up` and every command that changes something goes through here; what needs a backup or a copy is
imported only once work is due.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

import structlog

from preflight.apply import contact
from preflight.base import stop
from preflight.base.errors import (
    BackupDamaged,
    BackupUnverified,
    LockBusy,
    PlanChanged,
    RehearsalFailed,
)
from preflight.files import folder
from preflight.files.layout import OURS
from preflight.history import fence, journal, ledger, numbers, plan
from preflight.server import lock, ready

if TYPE_CHECKING:
    from preflight.apply import back
    from preflight.backup.archiving import Point
    from preflight.backup.exports import Place
    from preflight.backup.take import Taken
    from preflight.base.config import Config
    from preflight.files.migrations import Migration
    from preflight.history.journal import Row
    from preflight.rehearsal.trial import Tenant
    from preflight.server.sessions import Session

T = TypeVar("T")
INSTEAD = ("archive", "command")  # of PREFLIGHT_BACKUP: no dump is taken
# what each statement of a plan took on a copy, by file and place, and what failed there
Tried = tuple[dict[tuple[str, int], dict[str, Any]], RehearsalFailed | None]
ROUNDS = 5  # plans in a row that come to nothing before the history is called damaged


def files(config: Config) -> folder.Folder:
    """Read the files and say so; raises ConfigInvalid, FilesInvalid."""
    found = folder.load(config)
    structlog.get_logger().info(
        "files.loaded",
        count=len(found),
        newest=found[-1].name if found else None,
        directory=str(config.migrations_dir),
        **({} if found.tool == OURS else {"layout": found.tool}),
    )
    return found


def planned(session: Session, known: plan.History, on_disk: Sequence[Migration]) -> plan.Plan:
    """Make the plan and say so; raises HistoryConflict, SchemaAhead."""
    config = session.config
    made = plan.of(config, on_disk, known)
    tell_ahead(made.ahead)
    pending = [migration.name for migration in made.todo]
    structlog.get_logger().info("plan.made", pending=pending, **_above(made.todo, known))
    return made


def _above(todo: Sequence[Migration], known: plan.History) -> dict[str, int | str]:
    """Return the version above which `rollback --to` takes back what is to be done and no more.

    0 takes everything back, so it stands for nothing recorded; version 000 is written so.
    """
    newest = max(known.records, default=-1)
    if not todo or any(each.version <= newest for each in todo if not each.repeat):
        return {}
    return {"above": known.records[newest].label or newest or "000" if known.records else 0}


def tell_ahead(records: Sequence[plan.Record]) -> None:
    """Say which newer migrations the database holds, and which of them stopped part-way."""
    if records:
        part_way = [record.name for record in records if record.state != "done"]
        structlog.get_logger().warning(
            "schema.ahead",
            migrations=[record.name for record in records],
            **({"part_way": part_way} if part_way else {}),
        )


def recorded(session: Session, *, others: bool = True) -> plan.History:
    """Return the history of a database that has every schema that was named.

    Raises what `ledger.read` raises, and TargetUnusable, also where nothing is to be done.
    """
    known = ledger.read(session, others=others)
    ready.require_schemas(session)
    return known


def pending(session: Session, on_disk: folder.Folder) -> bool:
    """Tell whether anything is to be done: the common case is one query and a no."""
    known = recorded(session)
    return not planned(session, known, numbers.settled(on_disk, known)).empty


def enter(session: Session) -> None:
    """Make sure that the server takes changes, and be the only one that makes any.

    The lock is held until the session ends. Raises TargetUnusable, LockBusy.
    """
    ready.require_writable(session)
    ready.require_schemas(session)
    lock.acquire(session)


def proven(
    session: Session, todo: Sequence[Migration], purpose: str = "up", again: Row | None = None
) -> str | None:
    """Back up, prove the backup by restoring it, rehearse `todo` on the copy; return its name.

    `again` is the row of a migration that is recorded already; None is returned when backups are
    off. Raises what `take.take` and `trial.run` raise.
    """
    from preflight.rehearsal import trial  # noqa: PLC0415 -- only when work is due

    if session.config.backup in INSTEAD:
        return _pointed(session, todo, partial(trial.run, session, None, todo, again))[1]

    def attempt() -> str | None:
        with _backed_up(session, todo, purpose) as (saved, _):
            trial.run(session, saved, todo, again)
        return saved.name if saved else None

    name = twice(attempt)
    if todo:
        session.tell("migrating")
    return name


def proven_all(
    session: Session, tenants: Sequence[Tenant]
) -> tuple[str | None, dict[str, object] | None]:
    """Back a database up once, prove that, rehearse on one copy what is due in each schema.

    Return the backup's name and, where it is a point, what is to be noted of it. Raises what
    `proven` raises, with the target that is to blame.
    """
    from preflight.rehearsal import trial  # noqa: PLC0415 -- only when work is due

    todo = trial.together(tenants)
    if session.config.backup in INSTEAD:
        told: list[dict[str, object]] = []
        rehearse = partial(trial.each, session, None, tenants)
        _, name = _pointed(session, todo, rehearse, lambda point: told.append(point.data()))
        return name, told[0]

    def attempt() -> str | None:
        with _backed_up(session, todo, among=[tenant.name for tenant in tenants]) as (saved, _):
            trial.each(session, saved, tenants)
        return saved.name if saved else None

    return twice(attempt), None


def proven_for(
    session: Session, due: object, rehearse: Callable[[Taken | None], T]
) -> tuple[T, str | None]:
    """Back up before a wrapped command; return what `rehearse` makes of the backup, and its name.

    It restores and compares it, and tries the command on the copy. `due` is the command, as JSON.
    Raises what `take.take` raises.
    """
    if session.config.backup in INSTEAD:
        return _pointed(session, (), partial(rehearse, None))

    def attempt() -> tuple[T, str | None]:
        with _backed_up(session, (), "wrap", [due]) as (saved, _):
            return rehearse(saved), saved.name if saved else None

    return twice(attempt)


def proven_back(session: Session, steps: Sequence[back.Step]) -> tuple[Place | None, str | None]:
    """Back up before a rollback, prove that, export into it, rehearse the steps.

    Return where exports are, and the backup's name. Where others keep it they are apart.

    Raises what `take.take`, `exports.export` and `trial.backward` raise.
    """
    from preflight.backup import exports  # noqa: PLC0415 -- only when work is due
    from preflight.rehearsal import trial  # noqa: PLC0415 -- only when work is due

    if session.config.backup in INSTEAD:
        with ExitStack() as unneeded:  # nothing is taken back yet, and the next run saves it again

            def rehearse() -> exports.Apart | None:
                unneeded.close()
                saved = exports.apart(session, steps)
                if saved:
                    unneeded.callback(saved.forget)
                files = exports.export(session, steps, saved)
                trial.backward(session, None, steps)
                if saved:
                    exports.require_there(saved, files)
                return saved

            apart, name = _pointed(session, [step.migration for step in steps], rehearse)
            if apart:
                apart.note(name, session.config.run_id)
            unneeded.pop_all()
        session.tell("rolling back")
        return apart, name

    def attempt() -> Taken | None:
        files = [step.migration for step in steps]
        with _backed_up(session, files, "rollback") as (saved, beside):
            beside.extend(exports.export(session, steps, saved))
            trial.backward(session, saved, steps)
        return saved

    backup = twice(attempt)
    session.tell("rolling back")
    return backup, backup.name if backup else None


@contextmanager
def _backed_up(
    session: Session,
    todo: Sequence[Migration],
    purpose: str = "up",
    due: Sequence[object] = (),
    among: Sequence[str] = (),
) -> Iterator[tuple[Taken | None, list[str]]]:
    """Take a backup, keep it if what follows finds nothing wrong; yield it, and a list for more.

    `among` are the targets in which something is due: fewer, and something was done in between.
    What a copy needs besides is made meanwhile.
    """
    from preflight.backup import take  # noqa: PLC0415 -- only when work is due
    from preflight.rehearsal import throwaway  # noqa: PLC0415 -- only when work is due

    with throwaway.ahead(session, len(todo)):
        after = journal.last_change(session)
        if among:
            left = hashlib.sha256("\n".join(sorted(among)).encode()).hexdigest()
            after = f"{after} {left[:16]}"
        saved = take.take(session, todo, purpose, due, after)
        with take.kept(saved) as beside:
            yield saved, beside


def _pointed(
    session: Session,
    todo: Sequence[Migration],
    rehearse: Callable[[], T],
    keep: Callable[[Point], None] | None = None,
) -> tuple[T, str]:
    """Rehearse without a backup to restore, then name the point that stands in a dump's place.

    The point is the last thing before the first file: what others write before it is kept. Raises
    what `points.made` raises.
    """
    from preflight.backup import points  # noqa: PLC0415 -- only where no dump is taken

    points.require(session)
    found = rehearse()
    point = points.made(
        session, keep or (lambda made: note_point(session, todo, made.name, made.data()))
    )
    session.tell("migrating")
    return found, point.name


def note_point(
    session: Session, todo: Sequence[Migration], point: str, said: Mapping[str, object]
) -> None:
    """Note in the journal how to come back to what was before these files."""
    name, version = (todo[0].name, todo[0].version) if todo else ("backup", 0)
    journal.note_point(session, name, version, point, said)


def tried(session: Session, files: Sequence[Migration], todo: Sequence[Migration]) -> Tried:
    """Try a plan on a copy of a backup that nobody keeps; return what it took, and what failed.

    Nothing is changed and no lock is held. Raises what `take.draft` and `trial.look` raise besides.
    """
    from preflight.backup import take  # noqa: PLC0415 -- only when asked
    from preflight.rehearsal import meter, throwaway, trial  # noqa: PLC0415 -- only when asked

    ready.require_writable(session)
    session.prepare()
    gauge = meter.Meter()

    def attempt() -> None:
        ahead = throwaway.ahead(session, len(todo), demanded=True)
        with ahead, take.draft(session, todo) as saved:
            trial.look(session, saved, files, todo, gauge)

    try:
        twice(attempt)
    except RehearsalFailed as failure:  # what passed was measured, whatever came after it
        return gauge.costs(), failure
    return gauge.costs(), None


def tried_all(session: Session, tenants: Sequence[Tenant]) -> dict[str, Tried]:
    """Try on one copy the plan of each schema of a database, as `tried` one; by their names."""
    from preflight.backup import take  # noqa: PLC0415 -- only when asked
    from preflight.rehearsal import throwaway, trial  # noqa: PLC0415 -- only when asked

    session.look()
    ready.require_writable(session)
    session.prepare()
    todo = trial.together(tenants)

    def attempt() -> dict[str, Tried]:
        ahead = throwaway.ahead(session, len(todo), demanded=True)
        with ahead, take.draft(session, todo) as saved:
            found = trial.look_each(session, saved, tenants)
            return {name: (gauge.costs(), failure) for name, (gauge, failure) in found.items()}

    try:
        return twice(attempt)
    except RehearsalFailed as failure:  # there is no copy for any of them
        return {tenant.name: ({}, failure) for tenant in tenants}


def twice(attempt: Callable[[], T]) -> T:
    """Return what an attempt with a backup of its own gives; raises what the second one raises.

    What is wrong with a dump may come from what was changed while it was made: one more is taken
    before the first is called bad, unless that was damaged.
    """
    try:
        return attempt()
    except BackupDamaged:
        raise
    except BackupUnverified as failure:
        structlog.get_logger().info("backup.progressed", attempt=2, waiting=str(failure))
    return attempt()


@contextmanager
def undisturbed(session: Session) -> Iterator[None]:
    """Say what it means when the history is not as it was a moment ago.

    Raises HistoryConflict where another tool went on, else LockBusy.
    """
    try:
        yield
    except PlanChanged as changed:
        plan.require_alone(ledger.read(session))
        raise LockBusy(
            "history.changed",
            "another run changed the history meanwhile, or the connection broke at COMMIT",
            "Look with `check --table`, and run again if it is still wanted.",
        ) from changed


def require_chosen(
    session: Session, chosen: plan.Record, by: str | None, newest: plan.Record | None
) -> None:
    """Make sure that what was chosen before the lock is what there is under it; raises LockBusy.

    `by` is the run that had written it, `newest` what would be chosen now: another run may have
    done what was asked for, and twice it is not wanted.
    """
    if newest is None or newest.version < chosen.version:
        what = f"took {chosen.name} back"
    elif newest.version > chosen.version:
        what = f"applied {newest.name}"
    elif ledger.writer(session, chosen.version) != by:
        what = f"ran {chosen.name} again, or began to take it back,"
    else:
        return
    raise LockBusy(
        "history.changed",
        f"another run {what} meanwhile",
        "Look with `check --table`, and run again if it is still wanted.",
    )


class Round:
    """One plan under the lock; a change of the history meanwhile ends it without an error."""

    def __init__(self, session: Session, todo: Sequence[Migration], *, first: bool) -> None:
        self.session = session
        self.todo = todo
        self.first = first
        self.changed = False

    def proven(self) -> str | None:
        """Return the name of this round's backup; an earlier round's is of another state.

        Raises what `proven` raises, and HistoryConflict where a file fails on the copy because
        another tool has applied it meanwhile.
        """
        if self.session.config.backup == "off" and not self.first:
            return None  # as was said before
        try:
            return proven(self.session, self.todo)
        except RehearsalFailed:
            if not self.session.lost:
                plan.require_alone(ledger.read(self.session))
            raise

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        """Take note when another run was there, or the session had to be replaced."""
        self.changed = kind is not None and issubclass(kind, PlanChanged)
        return self.changed


def rounds(session: Session, on_disk: folder.Folder) -> Iterator[Round]:
    """Yield what is to be done, under the lock, until it was done or nothing is left.

    Raises what `enter`, `contact.settle` and `planned` raise, and HistoryConflict when the history
    never becomes what was written to it.
    """
    same = 0
    for waited in stop.looks(0.05, 0.25):
        enter(session)
        if on_disk.open:
            on_disk = numbers.settled(on_disk, ledger.read(session))
        made = planned(session, contact.settle(session, on_disk), on_disk)
        if made.empty:
            return  # another run did it, or everything was there already
        attempt = Round(session, made.todo, first=not waited)
        yield attempt
        if not attempt.changed:
            return
        left = planned(session, ledger.read(session), on_disk)
        if left.empty:
            return  # before the lock: the server may not have noticed yet that our session is gone
        same = same + 1 if left == made else 0
        if same == ROUNDS:
            raise fence.unwritable(session)
