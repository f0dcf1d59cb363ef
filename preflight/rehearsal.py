"""Prove a backup by restoring it, and try the pending files on that copy.

The copy is a scratch database: on the same server, or on the one that REHEARSE_URL names. It is
closed to PUBLIC before a row is in it and dropped in the end; what a killed run left is dropped by
the next one, which knows it by its name, its comment and the session that made it, which is gone.
"""

from __future__ import annotations

import dataclasses
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import psycopg
import structlog

from preflight import (
    apply,
    archive,
    backup,
    burden,
    catalog,
    history,
    logs,
    meter,
    plan,
    reach,
    report,
    server,
    sibling,
    sql,
    stop,
    store,
    undo,
)
from preflight.errors import (
    BackupFailed,
    BackupInterrupted,
    BackupUnverified,
    ConnectionLost,
    Failure,
    HistoryConflict,
    MigrationFailed,
    MigrationPartial,
    NeedsRepair,
    PlanChanged,
    Problem,
    RehearsalFailed,
    VerifyFailed,
)

if TYPE_CHECKING:
    from preflight.backup import Taken
    from preflight.config import Config
    from preflight.history import Row
    from preflight.migrations import Migration, Script
    from preflight.reach import Reach
    from preflight.server import Session

PREFIX = "preflight_scratch_"
TELL_EVERY_S = 5.0
WARN_LOCK_S = 2.0  # where no limit is set; a request that waits for longer is one that people see
# what a file does wrong; a busy or vanished server is no fault of it
FAILURES = (MigrationFailed, MigrationPartial, VerifyFailed, NeedsRepair, HistoryConflict)
_RIGHTS = """
SELECT r.rolcreatedb OR r.rolsuper, r.rolsuper, current_user::text,
 pg_catalog.pg_database_size(pg_catalog.current_database())
FROM pg_catalog.pg_roles r WHERE r.rolname = current_user
"""
_FOREIGN = """
SELECT c.relname::text FROM pg_catalog.pg_class c WHERE c.relkind = 'f'
"""
# when a session began is not for everyone to see, so a number that is in use again counts as alive
_ALIVE = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_activity a WHERE a.pid = %s::int4
 AND (a.backend_start IS NULL OR %s::text IS NULL OR {since} = %s::text))
"""
_SINCE = "EXTRACT(epoch FROM a.backend_start)::text"
_MYSELF = f"""
SELECT a.pid, {_SINCE}, session_user::text, current_user::text
FROM pg_catalog.pg_stat_activity a WHERE a.pid = pg_catalog.pg_backend_pid()
"""  # noqa: S608 -- a constant
# as the role that logged in: the one that it became may not end its sessions
_END_OURS = """
SET ROLE NONE;
SELECT pg_catalog.pg_terminate_backend(a.pid) FROM pg_catalog.pg_stat_activity a
WHERE a.datname = {name}::name AND a.usename = session_user;
RESET ROLE
"""
DISK_FULL = "53100"
DROP_TRIES = 3  # each waits for 5 s
UNFILLED = "55000"  # a query reads a materialised view without rows


class Unavailable(Exception):
    """Nothing can be rehearsed here; `objects` are what only the scratch side lacks.

    At level warning where a better informed look might have rehearsed it.
    """

    def __init__(
        self, reason: str, objects: Sequence[str] = (), *, level: str = "info", **where: object
    ) -> None:
        super().__init__(reason)
        self.objects = list(objects)
        self.level = level
        self.where = where


@dataclass(frozen=True, slots=True)
class Copy:
    """A restored copy with a session on it, and how long the way there was, in seconds."""

    session: Session
    name: str
    restore_s: float
    began: float
    home: Session
    wal: int | None  # that the server had written before, in bytes
    paused_s: float
    empty: tuple[str, ...] = ()  # views that are not filled in it


# what the stories call


def run(
    session: Session, saved: Taken | None, todo: Sequence[Migration], again: Row | None = None
) -> None:
    """Restore the backup, compare it, and try the files on the copy as `apply` will run them.

    Raises BackupUnverified (the copy is not what was dumped), BackupInterrupted, RehearsalFailed
    (a file fails on it; or it cannot be tried and PREFLIGHT_REHEARSE is `always`).
    """
    _require_complete(session.config, saved)
    with _copy(session, saved, [file.up for file in todo]) as copy:
        if copy is not None:
            gauge = meter.Meter()
            with _judged(session.config, gauge):
                trial = _trial(copy.session, todo, again, gauge)
            _tell_passed(copy, saved, trial)


def back(session: Session, saved: Taken | None, steps: Sequence[undo.Step]) -> None:
    """Restore the backup, compare it, and try the rollback files on the copy; raises as `run`."""
    _require_complete(session.config, saved)
    with _copy(session, saved, [step.script for step in steps]) as copy:
        if copy is None:
            return
        trial = Trial(meter.Meter(), [step.migration for step in steps])
        with _judged(session.config, trial.gauge), _quietly():
            trial.size = _size(copy.session)
            for step in steps:
                with trial.gauge.over(copy.session, step.migration):
                    _tried(step.migration, partial(undo.back, copy.session, step, None))
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
    with _copy(session, saved, [file.up for file in todo], always) as copy:
        assert copy is not None  # noqa: S101 -- `always` gives one or raises
        with _quietly():
            known = history.settle(copy.session, files)
        made = plan.make(files, known, ahead=config.ahead, out_of_order=config.out_of_order)
        with _judged(config, gauge):
            trial = _trial(copy.session, made.todo, None, gauge)
        _tell_passed(copy, saved, trial)


# the trial


@dataclass(slots=True)
class Trial:
    """What was tried on a copy; the size is of the copy before it, in bytes."""

    gauge: meter.Meter
    files: Sequence[Migration]
    undone: list[Migration] = field(default_factory=list)
    size: int = 0


def _trial(
    copy: Session, todo: Sequence[Migration], again: Row | None, gauge: meter.Meter
) -> Trial:
    """Run the files forward, then back and forward again as far as rollback files reach."""
    trial = Trial(gauge, todo)
    trouble: list[str] = []
    with _quietly():
        trial.size = _size(copy)
        if todo:
            _analyze(copy)
        way_back = _reversible(copy, todo) if again is None else []
        state: catalog.Objects = {}
        changes: list[dict[str, str | None]] = []
        for file in todo:
            if file in way_back and not state:
                state = catalog.definitions(copy)
            with gauge.over(copy, file):
                _tried(file, partial(apply.forward, copy, file, None, again))
            if file in way_back:
                state, before = catalog.definitions(copy), state
                changes.append(catalog.undoing(before, state))
        for file in reversed(way_back):
            state = catalog.undone(state, changes.pop())
            trial.undone.append(file)
            if trouble := _back(copy, file, state):
                break
        for file in reversed(() if trouble else trial.undone):
            if trouble := _second(copy, file):
                trial.undone = [file]
                break
    if trouble:
        _tell_trouble(copy.config, trial.undone[-1], trouble)
    return trial


def _reversible(copy: Session, todo: Sequence[Migration]) -> list[Migration]:
    """Return the last files, as many as can be taken back: a half-done one has no way back."""
    found: list[Migration] = []
    for file in reversed(todo):
        begun = history.row_of(copy, file.version)
        if begun or file.rollback is None or _reaching([file.rollback]):
            break
        found.insert(0, file)
    return found


def _second(copy: Session, file: Migration) -> list[str]:
    """Run a file again after its rollback; return what went wrong: the rollback's doing."""
    try:
        _tried(file, partial(apply.forward, copy, file, None))
    except RehearsalFailed as failure:
        return [f"after its rollback the file does not run a second time: {failure}"]
    return []


def _analyze(copy: Session) -> None:
    """Give the planner the statistics that it has in production, as far as they can be had."""
    try:
        copy.execute("ANALYZE")
    except psycopg.Error:  # a function in an index may fail: no fault of the files
        if copy.lost:
            raise


def _back(copy: Session, file: Migration, before: catalog.Objects) -> list[str]:
    """Take a file back on the copy; return what is not as it was before it, object by object."""
    row = history.row_of(copy, file.version)
    if row is None or file.rollback is None:
        return []
    step = undo.Step(dataclasses.replace(file, verify=None), row, file.rollback)
    _tried(file, partial(undo.back, copy, step, None))
    return catalog.difference(before, catalog.definitions(copy))


def _tell_trouble(config: Config, file: Migration, trouble: Sequence[str]) -> None:
    """Say what a rollback file leaves; raises RehearsalFailed with PREFLIGHT_REHEARSE=always."""
    script = file.rollback.file if file.rollback else file.name
    message = f"{script} does not return the database to where it was: {report.some(trouble)}"
    if config.rehearse == "always":
        raise RehearsalFailed(
            "rehearsal.rollback_differs",
            message,
            "Correct the rollback file; PREFLIGHT_REHEARSE=auto makes this a warning. "
            "The live database was not changed.",
            migration=file.name,
            version=file.version,
            file=script,
        )
    structlog.get_logger().warning(
        "rehearsal.warned",
        migration=file.name,
        version=file.version,
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
            migration=file.name,
            version=file.version,
        ) from changed


def _failed(failure: Failure) -> RehearsalFailed:
    where = failure.problem.data()
    message, hint = where.pop("message"), where.pop("hint", None)
    if where.get("sqlstate") == DISK_FULL:  # a copy and more did not fit: what is live may
        raise Unavailable(f"the server has no room: {message}") from failure
    advice = "The live database was not changed: correct the data or the file, and run again."
    if "detail" not in where and str(where.get("sqlstate", ""))[:2] in ("22", "23"):
        advice += " PREFLIGHT_LOG_SQL=on shows the row."
    return RehearsalFailed(
        "rehearsal.failed",
        f"on the restored copy: {message}",
        f"{hint} {advice}" if hint else advice,
        **where,
    )


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep to ourselves what happens to the copy: it is no news, and nothing of it stays."""
    stop.on_copy.set()
    try:
        with logs.muted():
            yield
    finally:
        stop.stays = None
        stop.on_copy.clear()


def _size(copy: Session) -> int:
    query = "SELECT pg_catalog.pg_database_size(pg_catalog.current_database())"
    (size,) = copy.execute(query).fetchone() or (0,)
    return int(size)


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


def _tell_passed(copy: Copy, saved: Taken | None, trial: Trial) -> None:
    wal = burden.wal(copy.home)
    structlog.get_logger().info(
        "rehearsal.passed",
        backup=saved.name if saved and saved.visible else None,
        verified="restored",
        migrations=[file.name for file in trial.files],
        rollbacks_tried=[file.name for file in trial.undone],
        **trial.gauge.told(),
        size_before_bytes=trial.size,
        size_after_bytes=_size(copy.session),
        wal_bytes=None if copy.wal is None or wal is None else wal - copy.wal,
        paused_s=round(copy.paused_s, 1),
        restore_s=round(copy.restore_s, 3),
        duration_s=round(time.monotonic() - copy.began, 3),
    )


# the copy


@contextmanager
def _copy(
    session: Session,
    saved: Taken | None,
    scripts: Sequence[Script],
    config: Config | None = None,
) -> Iterator[Copy | None]:
    """Yield a proven copy of the backup; None, and why, where there can be none."""
    config = config or session.config
    with _named_loss(session):
        try:
            with ExitStack() as stack:
                copy = _had(stack, session, saved, scripts, config)
                with _readable(copy):
                    yield copy
        except (ConnectionLost, Unavailable) as gone:
            why = _elsewhere(session, gone) if isinstance(gone, ConnectionLost) else gone
            _tell_skipped(config, scripts, why)


@contextmanager
def _readable(copy: Copy | None) -> Iterator[None]:
    """Say that a file cannot be tried where it reads what only the copy has not filled."""
    try:
        yield
    except RehearsalFailed as failure:
        if copy is None or not copy.empty or failure.problem.sqlstate != UNFILLED:
            raise
        raise Unavailable(f"{failure}, which the copy cannot fill", copy.empty) from failure


def _had(
    stack: ExitStack,
    session: Session,
    saved: Taken | None,
    scripts: Sequence[Script],
    config: Config,
) -> Copy | None:
    """Return a copy that goes with `stack`; None, and why, where there can be none."""
    copy, why = None, None
    if saved is not None:
        _sweep(session, saved.identity)
    try:
        if config.rehearse != "off":
            copy = stack.enter_context(_restored(session, config, saved, scripts))
    except Unavailable as reason:
        why = reason
    except ConnectionLost as lost:
        why = _elsewhere(session, lost)
    if saved is not None and saved.visible:
        backup.prune(session, saved)  # not before it is known what the newest is worth
    if why is not None:
        _tell_skipped(config, scripts, why)
    elif copy is None:
        _tell_unmeasured(config, scripts, "PREFLIGHT_REHEARSE=off")
    return copy


@contextmanager
def _named_loss(session: Session) -> Iterator[None]:
    """Say what it means when the live server goes away while a copy is on it."""
    try:
        yield
    except psycopg.OperationalError as error:
        if not session.lost:
            raise
        raise ConnectionLost(
            "connection.lost",
            f"{server.lost(error)} (during the rehearsal; nothing was migrated)",
            "Run again. If the server crashed or ran full meanwhile, the next run goes without a "
            "rehearsal there, and says so; with PREFLIGHT_REHEARSE=always it ends with 27.",
            sqlstate=error.sqlstate,
        ) from error


def _elsewhere(session: Session, lost: ConnectionLost) -> Unavailable:
    """Return what the loss of the scratch server means; raises it when it is the live one."""
    session.execute("SELECT 1")
    if session.config.rehearse_url is None:
        raise lost
    return Unavailable(f"the server of PREFLIGHT_REHEARSE_URL went away: {lost}")


def _tell_skipped(config: Config, scripts: Sequence[Script], why: Unavailable) -> None:
    """Say why nothing is rehearsed; raises RehearsalFailed when it was demanded."""
    if config.rehearse == "always":
        raise RehearsalFailed(
            "rehearsal.unavailable",
            f"a rehearsal was demanded, but {why}",
            "PREFLIGHT_REHEARSE=auto goes on without one; PREFLIGHT_REHEARSE_URL names another "
            "server to rehearse on. Nothing was migrated.",
            **why.where,
        )
    objects = {"objects": why.objects} if why.objects else {}
    log = structlog.get_logger()
    say = log.warning if why.level == "warning" else log.info
    say("rehearsal.skipped", reason=str(why), **objects, **why.where)
    _tell_unmeasured(config, scripts, str(why))


@contextmanager
def _restored(
    session: Session, config: Config, saved: Taken | None, scripts: Sequence[Script]
) -> Iterator[Copy]:
    if saved is None:
        raise Unavailable("there is no backup to restore (PREFLIGHT_BACKUP=off)")
    began = time.monotonic()
    live_bytes = _require_allowed(session, config)
    live = sibling.described(session, saved.identity.database)
    with ExitStack() as stack:
        home = stack.enter_context(_home(session))
        there, _ = backup.identity_of(home)
        if there.system == saved.identity.system:
            _require_inside(session, scripts)
            _require_bearable(session, home, live_bytes)
            stack.enter_context(_noted(session, home, saved, scripts))
        if home is not session:
            _sweep(home, saved.identity)
        name = stack.enter_context(_scratch(home, saved.identity, live))
        jobs, wal = sibling.jobs(home), burden.wal(home)
        structlog.get_logger().info(
            "rehearsal.started",
            backup=saved.name if saved.visible else None,
            database=name,
            server=f"{home.connection.info.host}:{home.connection.info.port}",
            rows=sum(saved.backup.manifest["rows"].values()),
            jobs=jobs,
            live_bytes=live_bytes,
            wal_bytes_expected=burden.wal_expected(home, live_bytes, jobs),
        )
        minute = burden.Minute(config.rehearse_wal_mb_per_min * 1_000_000)
        quiet, calling = sibling.quiet(home), catalog.calling(session)
        try:
            restoring = Restoring(name, jobs, live_bytes, quiet, calling)
            refused = _fill(home, saved, restoring, minute)
            restored_s = time.monotonic() - began
            _dress(session, home, live, name)
            with _reached(home, name, quiet) as copy:
                backup.require_there(saved)
                empty = _compare(copy, saved, empty_allowed=bool(calling or refused))
                _strip(copy, saved)
            _record(saved)
            _tell_empty(config, refused, calling.values())
            quiet.pop("event_triggers", None)  # from here on they fire as in production
            with _reached(home, name, quiet) as copy:
                yield Copy(copy, name, restored_s, began, home, wal, minute.paused_s, tuple(empty))
        except BackupUnverified:
            backup.hide(saved)
            raise


def _require_complete(config: Config, saved: Taken | None) -> None:
    """Where a proof is demanded, take no backup that is without something; RehearsalFailed."""
    without = saved.backup.manifest.get("without") if saved else None
    if without and config.rehearse == "always":
        named = report.some([f"{each['what']} ({each['why']})" for each in without])
        raise RehearsalFailed(
            "rehearsal.incomplete",
            f"a proof was demanded, but the backup is without {named}",
            "Run as a role that may see it (a superuser may), or keep it elsewhere and use "
            "PREFLIGHT_REHEARSE=auto, which goes on. Nothing was migrated.",
        )


def _record(saved: Taken) -> None:
    """Write into the manifest that the backup was restored; a plan's nobody will read."""
    if saved.visible:
        with store.usable(saved.path.parent):
            store.improve(saved.backup, verified="restored")


def _require_allowed(session: Session, config: Config) -> int:
    """Make sure that this role may make a copy, and that `auto` finds it small enough.

    Return the live database's size in bytes.
    """
    row = session.execute(_RIGHTS).fetchone() or (False, False, "", 0)
    may_create, _, role, size = row
    if config.rehearse_url is None and not may_create:
        raise Unavailable(f"the role {role} may not create a database (ALTER ROLE … CREATEDB)")
    if config.rehearse == "auto" and size > config.rehearse_max_mb * 1_000_000:
        raise Unavailable(
            f"the database has {report.size(size)}, more than PREFLIGHT_REHEARSE_MAX_MB="
            f"{config.rehearse_max_mb}"
        )
    return int(size)


def _require_bearable(session: Session, home: Session, live_bytes: int) -> None:
    """Make sure that a copy on the live server cannot stop it, as far as anybody can tell."""
    reason = burden.against(home) or burden.without_room(home, live_bytes)
    if reason:
        raise Unavailable(reason)
    before = history.rehearsed(session, _place(session))
    if before is None:
        return
    how = None
    if before.sqlstate == DISK_FULL:
        how = "ran full"
    elif before.event == "rehearsing" and burden.crashed(before.life, burden.life(home)):
        how = "crashed"
    if how:
        raise Unavailable(
            f"the server {how} during the rehearsal of run {before.run_id} ({before.at} UTC): none "
            "is made there again until PREFLIGHT_REHEARSE_URL changes (docs/rehearsal.md says how "
            "to allow it)"
        )


def _place(session: Session) -> str:
    """Return what names the place of a rehearsal on the live server."""
    url = session.config.rehearse_url
    return "server" if url is None else f"{url.get('host', '')}:{url.get('port', '')}"


@contextmanager
def _noted(
    session: Session, home: Session, saved: Taken, scripts: Sequence[Script]
) -> Iterator[None]:
    """Keep in the journal that a copy is on the live server: what ends us may be the server's end.

    The row stands before the copy is made, and another one when it is gone. A plan writes nothing.
    """
    if not saved.visible:
        yield
        return
    note = partial(
        history.note_rehearsal,
        session,
        name=scripts[0].file.removesuffix(".sql") if scripts else "backup",
        place=_place(session),
        life=burden.life(home),
        backup=saved.name,
    )
    try:
        note("rehearsing")
    except psycopg.Error as error:
        if session.lost or error.sqlstate in server.PASSING:
            raise
        raise Unavailable(f"the journal cannot be written: {error.diag.message_primary}") from error
    sqlstate = None
    try:
        yield
    except BaseException as error:
        sqlstate = DISK_FULL if _ran_full(error) else None
        raise
    finally:
        if not session.lost:
            with suppress(psycopg.Error):  # the next run sees that the server lives
                note("rehearsed", sqlstate=sqlstate)


def _ran_full(error: BaseException | None) -> bool:
    """Tell whether a disk that was full is the reason of an error."""
    while error is not None:
        if getattr(error, "sqlstate", None) == DISK_FULL or "No space left" in str(error):
            return True
        error = error.__cause__
    return False


def _require_inside(session: Session, scripts: Sequence[Script]) -> None:
    """Make sure that no statement reaches beyond its database: what it does there would stay."""
    foreign = {name for (name,) in session.execute(_FOREIGN).fetchall()}
    if found := _reaching(scripts, foreign):
        script, statement, far = found
        line, column = sql.position(script.text, statement.start)
        raise Unavailable(
            f"{script.file}:{line} {far.words}, and the copy is on the same server",
            level="info" if far.certain else "warning",
            file=script.file,
            line=line,
            column=column,
        )


def _reaching(
    scripts: Sequence[Script], foreign: set[str] | None = None
) -> tuple[Script, sql.Statement, Reach] | None:
    """Return the first statement with an effect beyond its database, and what it reaches."""
    for script in scripts:
        for statement in script.statements():
            if far := reach.beyond(statement.text(script.text), foreign or set()):
                return script, statement, far
    return None


@contextmanager
def _home(session: Session) -> Iterator[Session]:
    """Yield the session that makes and drops the copy: ours, or one on the scratch server."""
    config = session.config
    if config.rehearse_url is None:
        yield session
        return
    wait_s = min(config.wait_timeout_s, server.BESIDE_S)
    elsewhere = dataclasses.replace(config, target=config.rehearse_url, wait_timeout_s=wait_s)
    with ExitStack() as stack:
        try:
            with logs.muted():
                other = stack.enter_context(server.connect(elsewhere))
            other.learn(other.ask(f"SELECT {server.FACTS}")[0])
            server.require_writable(other)
            other.grow_up()
        except Failure as failure:
            raise Unavailable(f"the server of PREFLIGHT_REHEARSE_URL: {failure}") from failure
        yield other


@contextmanager
def _scratch(home: Session, identity: store.Identity, live: dict[str, Any] | None) -> Iterator[str]:
    """Make the scratch database; its name and its comment tell which session made it."""
    pid, since, logged_in, us = home.execute(_MYSELF).fetchone() or (0, "", "", "")
    name = f"{_family(identity)}{home.config.run_id}_{pid}"
    try:
        try:
            sibling.create(home, name, live, _mark(name, identity.database, since))
            if logged_in != us:  # a role that becomes another one at once, by its own settings
                here, whom = sql.quoted(name), sql.quoted(logged_in)
                home.execute(f"GRANT CONNECT ON DATABASE {here} TO {whom}")
        except psycopg.Error as error:
            if home.lost:
                raise
            raise Unavailable(
                f"no copy can be made: {error.diag.message_primary or error}",
            ) from error
        yield name
    finally:
        _drop(home, name)


def _family(identity: store.Identity) -> str:
    """Return how the names of all copies of one database begin."""
    whose = zlib.crc32(f"{identity.system}/{identity.database}".encode())
    return f"{PREFIX}{whose:08x}_"


def _mark(name: str, database: str, since: str) -> str:
    """Return the comment that says what a scratch database is."""
    run = name.split("_")[-2]
    return f"pg-preflight: scratch copy of {database}, of run {run}, by a session of {since}"


def _sweep(home: Session, identity: store.Identity) -> None:
    """Drop what killed runs left of this database's copies: those whose session is gone."""
    family = _family(identity)
    for found in sibling.like(home, family.replace("_", r"\_") + "%"):
        name, said = found["name"], found["comment"] or ""
        pid, since = name.rpartition("_")[2], said.rpartition(" ")[2] or None
        ours = sibling.newborn(found) or said == _mark(name, identity.database, str(since))
        if name.count("_") != family.count("_") + 1 or not pid.isdecimal() or not ours:
            continue
        query = _ALIVE.format(since=_SINCE)
        (alive,) = home.execute(query, [int(pid), since, since]).fetchone() or (True,)
        if not alive:
            _drop(home, name)


def _drop(home: Session, name: str) -> None:
    """Drop a scratch database; what cannot be dropped is named, and the next run tries again."""
    try:
        try:
            sibling.drop(home, name)
        except psycopg.errors.InsufficientPrivilege:  # autovacuum, or sessions of another name
            _drop_gently(home, name)
    except psycopg.Error as error:
        if not home.lost:
            structlog.get_logger().warning(
                "rehearsal.warned",
                reason=f"the scratch database {name} could not be dropped: "
                f"{error.diag.message_primary or error}",
            )


def _drop_gently(home: Session, name: str) -> None:
    """Drop without FORCE, which a plain role may not use against autovacuum; this cancels it."""
    for attempt in range(1, DROP_TRIES + 1):
        home.connection.execute(_END_OURS.format(name=sql.literal(name)).encode())
        try:
            home.connection.execute(f"DROP DATABASE IF EXISTS {sql.quoted(name)}".encode())
        except psycopg.errors.ObjectInUse:
            if attempt == DROP_TRIES:
                raise
        else:
            return


@contextmanager
def _reached(home: Session, name: str, settings: Mapping[str, str]) -> Iterator[Session]:
    """Yield a session on the copy; where pg_hba.conf or a limit lets none in, Unavailable."""
    with ExitStack() as stack:
        try:
            copy = stack.enter_context(server.beside(home, name, settings))
        except Failure as failure:
            raise Unavailable(f"the copy cannot be connected to: {failure}") from failure
        copy.copy = True
        yield copy


@dataclass(frozen=True, slots=True)
class Restoring:
    """How the dump gets into the scratch database."""

    name: str
    jobs: int
    live_bytes: int
    quiet: Mapping[str, str]  # settings of the sessions that restore
    calling: Mapping[int, str]  # materialised views that are not refreshed, by oid


def _fill(
    home: Session, saved: Taken, restoring: Restoring, minute: burden.Minute
) -> list[sibling.Complaint]:
    """Restore the dump; return which materialised views could not be refreshed.

    Raises Unavailable for what only the scratch side lacks, BackupUnverified, BackupInterrupted.
    """
    with _Progress(home, restoring.name, restoring.live_bytes) as progress, ExitStack() as stack:
        try:
            code, problems = sibling.fill(
                home,
                restoring.name,
                saved.path / store.DUMP,
                restoring.jobs,
                "--no-publications",
                "--no-subscriptions",
                *_listed(stack, home, saved, restoring.calling),
                settings=restoring.quiet,
                tick=progress.tell,
                hold=_brake(home, minute),
            )
        except burden.Overloaded as overloaded:
            raise Unavailable(f"the restore would have to wait for long: {overloaded}") from None
        except (archive.ClientFailed, BackupFailed) as failure:  # none here, or too old for there
            raise Unavailable(f"pg_restore: {failure}") from failure
        except psycopg.Error as error:  # the copy could not be made anew for another attempt
            if home.lost:
                raise
            raise Unavailable(f"no copy can be made: {error.diag.message_primary}") from error
    if code != 0 or problems:
        home.execute("SELECT 1")  # a server that went away says so here
        _judge(home, saved, code, problems)
    return problems


def _judge(home: Session, saved: Taken, code: int, problems: list[sibling.Complaint]) -> None:
    """Say whose lack an error of pg_restore is; returns when no row of the dump is concerned."""
    said = "; ".join(_told(home.config, problem) for problem in problems[:3])
    if not problems:
        raise BackupInterrupted(
            "rehearsal.client",
            f"pg_restore ended with {code}, without a word",
            "Run again; nothing was migrated.",
        )
    if all(problem.sort == "refresh" for problem in problems):
        return  # a query that ran anew: every row of the dump is there
    backup.require_there(saved, again=True)  # whoever restores: a damaged dump is no backup
    unread = [problem for problem in problems if problem.sort == "archive"]
    words = "; ".join(problem.text for problem in unread)
    if unread and archive.hope_of(code, words) == "passing":
        raise Unavailable(f"the copy cannot be restored: {words}")
    if any("No space left on device" in problem.text for problem in problems):
        raise Unavailable(f"the server has no room for a copy: {said}")
    lacking = [problem for problem in problems if problem.sort in {"right", "program"}]
    (_, superuser, role, _) = home.execute(_RIGHTS).fetchone() or (False, False, "", 0)
    elsewhere = home.config.rehearse_url is not None
    if (
        lacking
        and not unread
        and (elsewhere or not superuser or any(p.sort == "program" for p in lacking))
    ):
        objects = list(dict.fromkeys(problem.entry for problem in lacking))
        raise Unavailable(
            f"the role {role} cannot restore {report.some(objects)}: {lacking[0].text}",
            objects[:100],
        )
    raise BackupUnverified(
        "backup.not_restorable",
        f"the dump was restored with errors: {said}",
        "A backup that does not restore is none: it is hidden again, and nothing was migrated. "
        "Correct what is named in the live database; PREFLIGHT_REHEARSE=off goes without "
        "this proof.",
    )


def _listed(
    stack: ExitStack, home: Session, saved: Taken, calling: Mapping[int, str]
) -> tuple[str, ...]:
    """Return the options that keep the restore from calling other servers."""
    if not calling:
        return ()
    programs, environment = archive.clients(home.config, home), home.config.child_env
    dump = saved.path / store.DUMP
    wanted = archive.list_without(dump, programs, environment, sibling.REFRESH, calling)
    return (f"--use-list={stack.enter_context(wanted)}",)


def _tell_empty(
    config: Config, refused: Sequence[sibling.Complaint], calling: Iterable[str]
) -> None:
    """Say which materialised views the copy has unfilled; raises RehearsalFailed on demand."""
    if names := list(calling):
        structlog.get_logger().info(
            "rehearsal.warned",
            reason="materialised views are not filled in the copy: they read foreign tables, and "
            "another server is not asked for a proof",
            objects=names,
        )
    if not refused:
        return
    names = [problem.entry.removeprefix(f"{sibling.REFRESH} ") for problem in refused]
    message = f"{report.some(names)} cannot be filled again: {_told(config, refused[0])}"
    hint = "No row of the dump is missing; the view's own query fails after a restore. Let it not "
    hint += "rely on a search_path or on another server."
    if config.rehearse == "always":
        raise RehearsalFailed("rehearsal.incomplete", message, hint)
    reason = f"{message}. {hint}"
    structlog.get_logger().warning("rehearsal.warned", reason=reason, objects=names)


def _told(config: Config, problem: sibling.Complaint) -> str:
    """Return a complaint with its entry; the words about rows may hold their values."""
    if problem.entry.startswith("TABLE DATA") and config.log_sql != "on":
        return f"{problem.entry} (PREFLIGHT_LOG_SQL=on shows why)"
    return f"{problem.entry}: {problem.text}" if problem.entry else problem.text


def _brake(home: Session, minute: burden.Minute) -> Callable[[], bool] | None:
    """Return what tells whether the restore has to pause, if it ever has to."""
    if not minute.limit_bytes or burden.wal(home) is None:
        return None
    told = False

    def hold() -> bool:
        nonlocal told
        above = minute.above(time.monotonic(), burden.wal(home) or 0)
        if above and not told:
            structlog.get_logger().info(
                "rehearsal.progressed",
                paused=True,
                wal_mb_per_min=minute.limit_bytes // 1_000_000,
            )
        told = above
        return above

    return hold


class _Progress:
    """Tells how far a long restore is, by the size of the copy."""

    def __init__(self, home: Session, name: str, live_bytes: int) -> None:
        self.home, self.name, self.live_bytes = home, name, live_bytes
        self.began = self.told = time.monotonic()
        self.bar = report.Bar("restore")

    def __enter__(self) -> Self:
        """Nothing is shown yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the bar."""
        self.bar.close()

    def tell(self) -> None:
        """Show it on a terminal, and log it now and then."""
        now = time.monotonic()
        if now - self.told < (1.0 if self.bar.on else TELL_EVERY_S):
            return
        query = "SELECT pg_catalog.pg_database_size(%s::name)"
        (size,) = self.home.execute(query, [self.name]).fetchone() or (0,)
        share = min(0.99, size / max(1, self.live_bytes))  # the live one may be bloated
        self.bar.show(share, f"{report.size(size)} of {report.size(self.live_bytes)} at most")
        if now - self.told >= TELL_EVERY_S:
            self.told = now
            structlog.get_logger().info(
                "rehearsal.progressed",
                size_bytes=size,
                live_bytes=self.live_bytes,
                elapsed_s=round(now - self.began, 1),
            )


def _dress(session: Session, home: Session, live: dict[str, Any] | None, name: str) -> None:
    """Give the copy the live database's settings, for every role and for ours."""
    (us,) = session.execute("SELECT session_user::text").fetchone() or ("",)
    for role, setting in sibling.settings(session, live) if live else ():
        if role not in (None, us) or setting.partition("=")[0] in sibling.QUIET:
            continue
        try:
            command = sibling.setting_command(sql.quoted(name), role, setting)
            # its own settings a role may change only as itself
            home.execute(f"SET ROLE NONE; {command}; RESET ROLE" if role else command)
        except psycopg.Error as error:
            if home.lost:
                raise
            home.execute("RESET ROLE")
            raise Unavailable(
                f"the copy cannot have the setting {setting.partition('=')[0]} of the live "
                f"database: {error.diag.message_primary or error}"
            ) from error


def _compare(copy: Session, saved: Taken, *, empty_allowed: bool) -> list[str]:
    """Compare the copy with what the snapshot's session saw; raises BackupUnverified.

    Return which views are not filled there, where that is known to be no lack of the backup.
    """
    wanted, shapes = saved.witness.objects, catalog.shapes(copy)
    empty = catalog.unfilled(wanted, shapes) if empty_allowed else []
    different = backup.differing(copy, saved.backup.manifest["rows"])
    different += catalog.lacking(wanted, {**shapes, **{name: wanted[name] for name in empty}})
    different += catalog.behind(saved.witness.sequences, catalog.sequences(copy))
    if different:
        raise BackupUnverified(
            "backup.restore_differs",
            f"the restored copy is not what was dumped: {report.some(different)}",
            "A backup that lacks something is none: it is hidden again, and nothing was migrated. "
            "Is the pg_dump on PATH a real and whole one?",
        )
    return empty


def _strip(copy: Session, saved: Taken) -> None:
    """Drop the schema that template0 brought along where the live database has it no more."""
    if "schema public" in saved.witness.objects:
        return
    try:
        copy.execute("DROP SCHEMA IF EXISTS public")
    except psycopg.Error:  # before PostgreSQL 15 it is the superuser's
        if copy.lost:
            raise
