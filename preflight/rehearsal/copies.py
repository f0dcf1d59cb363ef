"""A proven copy of a backup on a server that others use, and what any proven copy has to show.

It is made, compared, closed to others, and dropped in the end.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
import structlog

from preflight.backup import (
    children,
    clients,
    manifests,
    new_database,
    parts,
    snapshots,
    store,
    take,
)
from preflight.backup.progress import Progress
from preflight.base import console, quoting
from preflight.base.errors import (
    BackupFailed,
    BackupInterrupted,
    BackupUnverified,
    ConnectionLost,
    RehearsalFailed,
    causes,
)
from preflight.files import reach, scan
from preflight.history import journal
from preflight.rehearsal import burden, cluster, confined, limits, local, scratch, some_rows
from preflight.server import catalog, sessions

if TYPE_CHECKING:
    from preflight.backup.take import Taken
    from preflight.base.config import Config
    from preflight.files.migrations import Script
    from preflight.files.reach import Reach
    from preflight.server.sessions import Session
NO_RIGHT = "42501"
# of a relation: no dump says how it is made, nor what is in it
UNMADE = "added to an extension (ALTER EXTENSION … ADD), and not made by CREATE EXTENSION"
DETACHED = "added to a table of an extension, and not made by CREATE EXTENSION"
UNFILLED = "55000"  # a query reads a materialised view without rows
# what any server refuses; all else may be for want of what is built into the live one
_ANYWHERE = re.compile("inherits conflicting default values")


class Undumped(NamedTuple):
    """What was added to extensions, and to their relations, and so is in no dump."""

    unmade: Sequence[catalog.Unmade]
    detached: Sequence[catalog.Attached] = ()
    switched: Sequence[catalog.Key] = ()  # what is off on the live database, and on here


@dataclass(frozen=True, slots=True)
class Copy:
    """A restored copy with a session on it, and how long the way there was, in seconds."""

    session: Session
    name: str
    restore_s: float
    began: float
    home: Session
    wal: int | None = None  # that the server had written before, in bytes, where anybody cares
    paused_s: float = 0.0
    empty: tuple[str, ...] = ()  # views that are not filled in it
    where: str = "server"  # `server`, `url`, `clone`, or `local`: thrown away with its server
    fidelity: str | None = None  # in what it is not as the live one
    without: tuple[str, ...] = ()  # owners and rights, where they could not be had
    server: local.Server | None = None  # the one that is thrown away with it
    part: manifests.Part | None = None  # of which it is a copy, where it is of some schemas
    lacking: tuple[limits.Absent, ...] = ()  # what needs the others, and is not in it
    altered: tuple[limits.Altered, ...] = ()  # what it has in another state
    choice: some_rows.Choice | None = None  # of the tables that have rows, where not all have
    beside: bool = False  # on the live database's own server

    @property
    def whole(self) -> bool:
        """Whether it is in all as the live database."""
        less = self.empty or self.without or self.part or self.lacking or self.choice
        return not (less or self.altered or self.unsorted or self.newer)

    @property
    def unsorted(self) -> bool:
        """Whether text sorts in it otherwise than in the live one."""
        return cluster.COLLATION in (self.fidelity or "")

    @property
    def newer(self) -> bool:
        """Whether its server is of another major version than the live one."""
        return (self.fidelity or "").startswith("PostgreSQL ")

    @property
    def unspoken(self) -> list[str]:
        """Which settings of the live server's locales it has not: of money, numbers and days."""
        return [name for name in cluster.LOCALES if name in (self.fidelity or "")]

    def evidence(self, saved: Taken | None) -> str | None:
        """How far the backup is proven by it."""
        if self.where == "clone" or self.choice:
            return saved.backup.manifest.verified if saved else None
        return "restored"


@contextmanager
def named_loss(session: Session) -> Iterator[None]:
    """Say what it means when the live server goes away while a copy is on it."""
    try:
        yield
    except psycopg.OperationalError as error:
        if not session.lost:
            raise
        raise ConnectionLost(
            "connection.lost",
            f"{sessions.lost(error)} (during the rehearsal; nothing was migrated)",
            "Run again. If the server crashed or ran full meanwhile, the next run goes without a "
            "rehearsal there, and says so; with PREFLIGHT_REHEARSE=always it ends with 27.",
            sqlstate=error.sqlstate,
        ) from error


def elsewhere(session: Session, lost: ConnectionLost) -> scratch.Unavailable:
    """Return what the loss of the scratch server means; raises it when it is the live one."""
    session.execute("SELECT 1")
    config = session.config
    if config.rehearse_clone_url is not None:
        return scratch.Unavailable(f"the server of PREFLIGHT_REHEARSE_CLONE_URL went away: {lost}")
    if config.rehearse_url is None:
        raise lost
    return scratch.Unavailable(f"the server of PREFLIGHT_REHEARSE_URL went away: {lost}")


@contextmanager
def restored(
    session: Session,
    config: Config,
    saved: Taken,
    scripts: Sequence[Script],
    reads: Sequence[Script] = (),
) -> Iterator[Copy]:
    """Yield a copy restored from a backup and compared; raises Unavailable, BackupUnverified.

    `reads` are all whose rows are to be there where the database is too large: `scripts`, and what
    runs with them.
    """
    began = time.monotonic()
    live_bytes = _require_allowed(session, config)
    choice = _chosen(session, config, reads, live_bytes)
    live_bytes = choice.size if choice else live_bytes
    where = "server" if config.rehearse_url is None else "url"
    live = new_database.described(session, saved.identity.database)
    with (
        _home(session, saved, scripts, reads, live_bytes) as (home, beside),
        scratch.made(home, saved.identity, live, placed=beside) as name,
    ):
        jobs, wal = new_database.jobs(home), burden.wal(home)
        quiet, calling = new_database.quiet(home), catalog.calling(session)
        part = saved.backup.manifest.partial
        unlike = scratch.fidelity(session, home)
        settings = scratch.settings_for(session, live)
        filling = new_database.filling(home)
        fast = filling | {"synchronous_commit": "off"}  # nobody waits for a copy's disk
        restoring = Restoring(
            name, jobs, live_bytes, fast, calling, session.tell, part, choice,
            tuple(each for each in settings if not each.late), beside,
            partial(scratch.has_setting, session), unlike,
        )  # fmt: skip
        tell_started(
            saved,
            restoring,
            where=where,
            server=f"{home.connection.info.host}:{home.connection.info.port}",
            wal_bytes_expected=burden.wal_expected(home, live_bytes, jobs),
            fidelity=unlike,
        )
        minute = burden.Minute(config.rehearse_wal_mb_per_min * 1_000_000)
        try:
            refused, without = _filled(home, saved, restoring, minute)
            restored_s = time.monotonic() - began
            session.tell("comparing the copy")
            with scratch.reached(home, name, filling | snapshots.ROOM) as copy:
                empty, undumped = proven(
                    copy,
                    saved,
                    refused,
                    live=session,
                    empty_allowed=bool(calling or refused),
                    choice=choice,
                    rights=not without,
                    unlike=unlike,
                )
            scratch.apply_settings(home, [each for each in settings if each.late], name)
            if live:
                scratch.share_rights(session, home, live, name)
            believe(config, saved, restoring, refused, without, undumped)
            quiet.pop("event_triggers", None)  # from here on they fire as in production
            with scratch.reached(home, name, quiet) as copy:
                if scripts:
                    new_database.analyze(copy)
                if not beside:
                    copy.instead = partial(scratch.require_same_version, session, copy)
                yield Copy(
                    copy, name, restored_s, began, home, wal, minute.paused_s, empty, where,
                    fidelity=unlike, without=without, part=part,
                    lacking=lacking(saved, refused, undumped), altered=altered(saved, undumped),
                    choice=choice, beside=beside,
                )  # fmt: skip
        except BackupUnverified:
            take.hide(saved)
            raise


@contextmanager
def _home(
    session: Session,
    saved: Taken,
    scripts: Sequence[Script],
    reads: Sequence[Script],
    live_bytes: int,
) -> Iterator[tuple[Session, bool]]:
    """Yield a session on the server that is to have the copy, and whether it is the live one.

    Unavailable where it cannot bear it.

    On the live one nothing may reach beyond the copy, and the journal says that it is there.
    """
    with ExitStack() as stack:
        home = stack.enter_context(scratch.home(session))
        there, _ = take.identity_of(home)
        beside = there.system == saved.identity.system
        if beside:
            require_inside(session, scripts)
            require_tame(session, reads)
            _require_bearable(session, home, live_bytes)
            stack.enter_context(_noted(session, home, saved, scripts))
        else:
            scratch.require_no_older(session, home, "the server of PREFLIGHT_REHEARSE_URL")
            require_inside(session, scripts, elsewhere=True)
        if home is not session:
            scratch.sweep(home, saved.identity)
        yield home, beside


def require_complete(config: Config, saved: Taken | None) -> None:
    """Where a proof is demanded, take no backup that is without something; RehearsalFailed."""
    without = saved.backup.manifest.without if saved else ()
    _require_nothing(config, [e for e in without if not e.why.startswith(catalog.NO_LOSS)])


def _require_nothing(config: Config, without: Sequence[manifests.Lacking]) -> None:
    if without and config.rehearse == "always":
        named = console.some([f"{each.what} ({each.why})" for each in without])
        raise RehearsalFailed(
            "rehearsal.incomplete",
            f"a proof was demanded, but the backup is without {named}",
            "Do what each says, where it is a right run as a role that has it, or keep it "
            "elsewhere and use "
            "PREFLIGHT_REHEARSE=auto, which goes on. Nothing was migrated.",
        )


def tell_started(
    saved: Taken,
    restoring: Restoring,
    *,
    where: str,
    server: str,
    wal_bytes_expected: int,
    **more: str | None,
) -> None:
    """Say what is restored, and where."""
    structlog.get_logger().info(
        "rehearsal.started",
        backup=saved.name if saved.visible else None,
        database=restoring.name,
        where=where,
        server=server,
        **more,
        rows=sum((saved.backup.manifest.rows or {}).values()),
        jobs=restoring.jobs,
        live_bytes=restoring.live_bytes,
        wal_bytes_expected=wal_bytes_expected,
        **told_of(restoring.choice),
    )


def believe(  # noqa: PLR0913, PLR0917 -- all that is known of it
    config: Config,
    saved: Taken,
    restoring: Restoring,
    refused: Sequence[new_database.Complaint],
    without: Sequence[str],
    undumped: Undumped,
) -> None:
    """Keep and say how far a copy that was compared proves its backup; raises RehearsalFailed."""
    unmade = undumped.unmade
    left = [manifests.Lacking(each.name, _why(each)) for each in unmade]
    left += [manifests.Lacking(each.told, DETACHED) for each in undumped.detached]
    if restoring.choice is None:
        given = [manifests.Lacking(what, manifests.NOT_GIVEN) for what in without]
        record(saved, refused, [*given, *left])
    lost = {each.name for each in unmade if each.table or not each.moved}
    lost |= {each.told for each in undumped.detached}
    _require_nothing(config, [each for each in left if each.what in lost])
    for why in dict.fromkeys(each.why for each in left):
        names = [each.what for each in left if each.why == why]
        structlog.get_logger().warning(
            "rehearsal.warned",
            reason=f"the backup is without {console.some(names)}: {why}",
            objects=names[:100],
        )
    tell_empty(config, refused, restoring.calling.values())


def _why(unmade: catalog.Unmade) -> str:
    """Say why no dump has a relation of an extension."""
    if not unmade.moved:
        return UNMADE
    rows = ", with the rows that CREATE EXTENSION makes" if unmade.table else ""
    return f"moved out of the schema {unmade.moved}, and a restore has it there{rows}"


def lacking(
    saved: Taken, refused: Sequence[new_database.Complaint], undumped: Undumped
) -> tuple[limits.Absent, ...]:
    """Return what a copy has not though the live database has it."""
    said = (each.what.partition(" ") for each in saved.backup.manifest.without)
    unseen = [(kind, name) for kind, _, name in said if kind in limits.MISSING.values()]
    known = [*unseen, *(("relation", each.name) for each in undumped.unmade)]
    return (
        *(limits.Absent("", schema, name) for schema, name in parts.lost(refused)),
        *(limits.Absent(kind, *quoting.parts(name)[:2]) for kind, name in known),
        *(
            limits.Absent(kind, "", each.name)
            for each in undumped.detached
            if each.name
            for kind in (each.kind if each.kind == "column" else "", limits.DECIDING)
            if kind != limits.DECIDING or each.decides
        ),
    )


def altered(saved: Taken, undumped: Undumped) -> tuple[limits.Altered, ...]:
    """Return what a copy has in another state than the live database."""
    without = saved.backup.manifest.without
    pending = [each.what for each in without if each.why == catalog.PENDING]
    return (*limits.switched(undumped.switched), *map(limits.pending, pending))


def record(
    saved: Taken,
    refused: Sequence[new_database.Complaint] = (),
    without: Sequence[manifests.Lacking] = (),
) -> None:
    """Write into the manifest how far the backup was restored; a plan's nobody will read."""
    if saved.visible:
        with store.usable(saved.store):
            manifest = saved.backup.manifest
            restored_too = dataclasses.replace(
                manifest,
                verified="restored",
                without=(*manifest.without, *without),
                excepted=tuple(dict.fromkeys(each.entry for each in refused)) or manifest.excepted,
            )
            saved.store.improve(saved.backup, restored_too)
        # from here on it is true, whatever becomes of the files that are tried on the copy
        structlog.get_logger().debug(
            "rehearsal.progressed",
            backup=saved.name,
            verified=restored_too.verified,
            without=[each.what for each in without[:100]] or None,
        )


def _require_allowed(session: Session, config: Config) -> int:
    """Make sure that this role may make a copy; return the live database's size in bytes."""
    may_create, _, role = session.execute(scratch.RIGHTS).fetchone() or (False, False, "")
    _, size = take.identity_of(session)
    if config.rehearse_url is None and not may_create:
        raise scratch.Unavailable(
            f"the role {role} may not create a database (ALTER ROLE … CREATEDB)"
        )
    return int(size)


def _chosen(
    session: Session, config: Config, reads: Sequence[Script], size: int
) -> some_rows.Choice | None:
    """Return whose rows the copy has, where `auto` finds the database too large for all."""
    limit = config.rehearse_max_mb * 1_000_000
    if config.rehearse_url is not None or config.rehearse == "always" or size <= limit:
        return None
    reason = (
        f"the database has {console.size(size)}, more than PREFLIGHT_REHEARSE_MAX_MB="
        f"{config.rehearse_max_mb}"
    )
    return some_rows.chosen(session, config, reads, limit, reason)


def told_of(choice: some_rows.Choice | None) -> dict[str, Any]:
    """Return a choice as `rehearsal.started` has it; say of what it may be without."""
    if choice is None:
        return {}
    if choice.doubt:
        structlog.get_logger().warning(
            "rehearsal.warned",
            reason=f"the rehearsal is partial, and may be without what the files need: "
            f"{choice.doubt}",
            objects=list(choice.left_out[:100]),
        )
    if choice.untried:
        structlog.get_logger().warning(
            "rehearsal.warned",
            reason="the rehearsal is partial, and what these would say to the files is not tried: "
            f"{console.some(choice.untried)}",
            objects=list(choice.untried[:100]),
        )
    return {**choice.told(), "without": choice.lacking[:100] or None, "reason": choice.reason}


def _require_bearable(session: Session, home: Session, live_bytes: int) -> None:
    """Make sure that a copy on the live server cannot stop it, as far as anybody can tell."""
    reason = burden.against(home) or burden.without_room(home, live_bytes)
    if reason:
        raise scratch.Unavailable(reason)
    before = journal.rehearsed(session, _place(session))
    if before is None:
        return
    how = None
    if before.sqlstate == scratch.DISK_FULL:
        how = "ran full"
    elif before.event == "rehearsing" and burden.crashed(before.life, burden.life(home)):
        how = "crashed"
    if how:
        raise scratch.Unavailable(
            f"the server {how} during the rehearsal of run {before.run_id} ({before.at} UTC): none "
            "is made there again (PREFLIGHT_REHEARSE_ON=local and PREFLIGHT_REHEARSE_URL name "
            "other places; docs/rehearsal.md says how to allow it)"
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
        journal.note_rehearsal,
        session,
        name=scripts[0].migration if scripts else "backup",
        version=scripts[0].version if scripts else 0,
        place=_place(session),
        life=burden.life(home),
        backup=saved.name,
    )
    try:
        note("rehearsing")
    except psycopg.Error as error:
        if session.lost or sessions.passing(error):
            raise
        raise scratch.Unavailable(
            f"the journal cannot be written: {error.diag.message_primary}"
        ) from error
    sqlstate = None
    try:
        yield
    except BaseException as error:
        sqlstate = scratch.DISK_FULL if _ran_full(error) else None
        raise
    finally:
        if not session.lost:
            with suppress(psycopg.Error):  # the next run sees that the server lives
                note("rehearsed", sqlstate=sqlstate)


def _ran_full(error: BaseException | None) -> bool:
    """Tell whether the server's disk, which was full, is the reason of an error."""
    # the words of a server alone: our own disk, which the backup has filled, is another one
    return any(
        getattr(each, "sqlstate", None) == scratch.DISK_FULL
        or (isinstance(each, psycopg.Error) and new_database.FULL in str(each))
        for each in causes(error)
    )


def require_inside(session: Session, scripts: Sequence[Script], *, elsewhere: bool = False) -> None:
    """Make sure that no statement reaches beyond its database: what it does there would stay.

    On a server that is `elsewhere`, or thrown away, beyond that one; what nobody can read is tried
    there.
    """
    bounds = reach.Bounds(foreign_tables(session, scripts), server=elsewhere)
    for script, statement, far in reaching(scripts, bounds):
        line, column = scan.position(script.text, statement.start)
        where: dict[str, Any] = {
            **script.named,
            "file": script.file,
            "line": line,
            "column": column,
        }
        said = f"{script.file}:{line} {far.words}"
        if elsewhere and not far.certain:
            reason = f"{said}: it is tried on the other server all the same"
            structlog.get_logger().warning("rehearsal.warned", reason=reason, **where)
            continue
        why = "and would do so from the copy" if elsewhere else "and the copy is on the same server"
        level = "info" if far.certain else "warning"
        raise scratch.Unavailable(f"{said}, {why}", level=level, **where)


def require_tame(session: Session, scripts: Sequence[Script]) -> None:
    """Make sure that no function which files may call makes roles and the like: they would stay.

    For a copy on the live server; raises Unavailable.
    """
    if not scripts:
        return
    try:
        found = some_rows.far(session, scripts)
    except psycopg.Error as error:
        if session.lost:
            raise
        raise scratch.Unavailable(
            f"what the files may call cannot be read: {error.diag.message_primary or error}",
            level="warning",
        ) from error
    if found:
        script, name, words = found
        raise scratch.Unavailable(
            f"{script.file} may call the function {name}: it {reach.holding(words)}, and the copy "
            "is on the same server",
            level="warning",
            **script.named,
            file=script.file,
        )


def foreign_tables(session: Session, scripts: Sequence[Script]) -> set[str]:
    """Return the names of the foreign tables: of those that are there, and that files make."""
    there = {name for (name,) in session.execute(scratch.FOREIGN).fetchall()}
    return there.union(*map(reach.foreign_made, scripts))


def reaching(
    scripts: Sequence[Script], bounds: reach.Bounds = reach.DATABASE
) -> Iterator[tuple[Script, scan.Statement, Reach]]:
    """Yield the statements with an effect beyond their bounds, and what they reach."""
    for script in scripts:
        for statement in script.statements():
            if far := reach.beyond(statement.read(script.text), bounds):
                yield script, statement, far


@dataclass(frozen=True, slots=True)
class Restoring:
    """How the dump gets into the scratch database."""

    name: str
    jobs: int
    live_bytes: int
    quiet: Mapping[str, str]  # settings of the sessions that restore
    calling: Mapping[int, str]  # materialised views that are not refreshed, by oid
    others: Callable[[str], None]  # tells whoever waits for this run
    part: manifests.Part | None = None  # of which it is, where it is of some schemas
    choice: some_rows.Choice | None = None  # of the tables that get rows, where not all do
    settings: tuple[new_database.Setting, ...] = ()  # of the live database, that the copy lacks
    placed: bool = True  # in the tablespaces of the live server, for its disks have the room
    missed: Callable[[str], bool] | None = None  # whether words name a setting of the live server
    unlike: str | None = None  # the copy's major version, where it is not the live one

    def progress(self) -> Progress:
        """Return what tells how far it is."""
        return Progress("rehearsal.progressed", "live_bytes", self.live_bytes, self.others)


def _filled(
    home: Session, saved: Taken, restoring: Restoring, minute: burden.Minute
) -> tuple[list[new_database.Complaint], tuple[str, ...]]:
    """Restore the dump, without owners and rights where that cannot be had with them.

    Return what could not be filled again, and what the copy is without.
    """
    try:
        return _fill(home, saved, restoring, minute), ()
    except scratch.NoRight as reason:
        structlog.get_logger().info("rehearsal.progressed", waiting=f"once more without: {reason}")
    try:
        scratch.make_anew(home, restoring.name)
    except psycopg.Error as error:
        if home.lost:
            raise
        raise scratch.Unavailable(f"no copy can be made: {error.diag.message_primary}") from error
    return _fill(home, saved, restoring, minute, *new_database.BARE), ("owners", "rights")


def _fill(
    home: Session, saved: Taken, restoring: Restoring, minute: burden.Minute, *options: str
) -> list[new_database.Complaint]:
    """Restore the dump; return what could not be filled again.

    Raises Unavailable for what only the scratch side lacks, BackupUnverified, BackupInterrupted.
    """
    restoring.others("restoring")

    def begin() -> None:
        _begun(home, restoring)
        if not options:  # whom the schema is open to instead is not restored either
            close(home, saved, restoring)

    def anew() -> None:
        scratch.make_anew(home, restoring.name)
        begin()

    begin()
    with restoring.progress() as progress, ExitStack() as stack:
        try:
            code, problems = new_database.fill(
                home,
                restoring.name,
                stack.enter_context(saved.dump()),
                restoring.jobs,
                *_publications(home),
                "--no-subscriptions",
                *(() if restoring.placed else ("--no-tablespaces",)),
                *options,
                *listed(stack, home, saved, restoring),
                settings=restoring.quiet,
                tick=lambda: progress.tell(partial(new_database.size_of, home, restoring.name)),
                hold=_brake(home, minute, restoring.name),
                anew=anew,
                there=parts.there(restoring.part),
            )
        except burden.Overloaded as overloaded:
            raise scratch.Unavailable(
                f"the restore would have to wait for long: {overloaded}"
            ) from None
        except (children.ClientFailed, BackupFailed) as failure:  # none here, or too old for there
            raise scratch.Unavailable(f"pg_restore: {failure}") from failure
        except psycopg.Error as error:  # the copy could not be made anew for another attempt
            if home.lost:
                raise
            raise scratch.Unavailable(
                f"no copy can be made: {error.diag.message_primary}"
            ) from error
    problems = parts.marked(problems, restoring.part)
    if code != 0 or problems:
        home.execute("SELECT 1")  # a server that went away says so here
        other = None if home.config.rehearse_url is None else "the server of PREFLIGHT_REHEARSE_URL"
        judge(
            home,
            saved,
            code,
            problems,
            elsewhere=other,
            bare=bool(options),
            some=restoring.choice is not None,
            missed=restoring.missed,
            foreign=partial(_theirs, home, restoring),
            unlike=restoring.unlike,
        )
    return problems


def close(home: Session, saved: Taken, restoring: Restoring) -> None:
    """Take from everybody what an empty copy gives, and the live database's schema public not."""
    if new_database.OPEN in saved.backup.manifest.lacks:
        with scratch.reached(home, restoring.name, restoring.quiet) as inside:
            new_database.strip(inside, {new_database.OPEN})


def unpublished(copy: Copy) -> bool:
    """Tell whether a copy is without the live database's publications."""
    apart = copy.where in {"server", "url"} and bool(_publications(copy.home))
    return apart or copy.part is not None


def _publications(home: Session) -> tuple[str, ...]:
    """Return the option that leaves publications out where this role may not make every one."""
    _, superuser, _ = home.execute(scratch.RIGHTS).fetchone() or (False, False, "")
    return () if superuser else ("--no-publications",)


def _begun(home: Session, restoring: Restoring) -> None:
    """Make what the rows are read by, and what a partial dump needs and lacks; Unavailable."""
    scratch.apply_settings(home, restoring.settings, restoring.name)
    if restoring.part is None or not restoring.part.extensions:
        return
    with scratch.reached(home, restoring.name, restoring.quiet) as inside:
        lacking = parts.make(inside, restoring.part.extensions)
    if lacking:
        named = console.some([f"extension {name} ({why})" for name, why in lacking.items()])
        raise scratch.Unavailable(f"the copy cannot have {named}", list(lacking))


def _theirs(home: Session, restoring: Restoring) -> set[tuple[str, str]]:
    """Return schema and name of what this role does not own in the copy."""
    with scratch.reached(home, restoring.name, restoring.quiet) as copy:
        return new_database.theirs(copy)


def judge(  # noqa: PLR0913 -- an error, and all that it is judged by
    home: Session,
    saved: Taken,
    code: int,
    problems: list[new_database.Complaint],
    *,
    elsewhere: str | None,
    bare: bool = False,
    some: bool = False,
    foreign: Callable[[], set[tuple[str, str]]] = set,
    missed: Callable[[str], bool] | None = None,
    unlike: str | None = None,
) -> None:
    """Say whose lack an error of pg_restore is; returns when nothing is lost that we can have.

    `bare`: owners and rights were left out already; `foreign` names what is another's in the copy;
    `some`: of the tables, some have no rows, which what is built on others may miss.

    On a server that is `elsewhere`, which names it, things may be missing that the live one has;
    `missed` tells whether that is what an error names. One that is `unlike` has another major,
    which may refuse what the live one took.
    """
    said = "; ".join(told(home.config, problem) for problem in problems[:3])
    if not problems:
        raise BackupInterrupted(
            "rehearsal.client",
            f"pg_restore ended with {code}, without a word",
            "Run again; nothing was migrated.",
        )
    problems = [problem for problem in problems if not problem.outside]
    if all(problem.sort == "refresh" for problem in problems):
        return  # a query that ran anew: every row of the dump is there
    take.require_there(saved, again=True)  # whoever restores: a damaged dump is no backup
    unread = [problem for problem in problems if problem.sort == "archive"]
    words = "; ".join(problem.text for problem in unread)
    if any(problem.lost for problem in problems):
        lost = f"the connection of pg_restore was lost: {said}"
        if elsewhere:
            raise scratch.Unavailable(lost)
        raise BackupInterrupted("rehearsal.client", lost, "Run again; nothing was migrated.")
    if unread and children.hope_of(code, words) == "passing":
        raise scratch.Unavailable(f"the copy cannot be restored: {words}")
    _require_enough(problems, said)
    others = foreign()
    theirs = [p for p in problems if p.sort == "content" and p.touches(p.entry.split(), others)]
    if all(p.sort == "refresh" or p.rebuilt or p.touches([p.name], others) for p in problems):
        return  # whose rows or counters those are, only he may write

    asked = [p for p in problems if p.sort == "content" and missed and missed(p.said)]
    asked = asked if elsewhere and one_reason(problems, asked) else []

    def needs_more(problem: new_database.Complaint) -> bool:
        kept = problem.sort == "content" and confined.forbade(problem.text)
        return problem.sort == "program" or bool(elsewhere and kept) or problem in asked

    lacking = [p for p in problems if p.sort == "right" or needs_more(p) or p in theirs]
    (_, superuser, role) = home.execute(scratch.RIGHTS).fetchone() or (False, False, "")
    if (
        lacking
        and not unread
        and (
            not superuser
            or any(map(needs_more, lacking))
            or (elsewhere and (home.config.rehearse_url or may_lack(lacking[0].text)))
        )
    ):
        programs = [problem for problem in lacking if needs_more(problem)]
        kept = programs or [problem for problem in lacking if problem.no_tablespace]
        kind = scratch.Unavailable if kept or bare else scratch.NoRight
        lacking = kept or lacking  # what lacks an extension fails because of it
        objects = list(dict.fromkeys(problem.entry for problem in lacking))
        raise kind(
            f"{elsewhere or f'the role {role}'} cannot restore {console.some(objects)}: "
            f"{lacking[0].text}",
            objects[:100],
        )
    if (some or unlike) and not unread:
        how = "with the rows of some tables alone" if some else f"on {unlike},"
        raise scratch.Unavailable(
            f"a copy {how} cannot be restored: {said}",
            list(dict.fromkeys(problem.entry for problem in problems))[:100],
            level="warning",
        )
    raise BackupUnverified(
        "backup.not_restorable",
        f"the dump was restored with errors: {said}",
        "A backup that does not restore is none: it is hidden again, and nothing was migrated. "
        "Correct what is named in the live database; PREFLIGHT_REHEARSE=off goes without "
        "this proof.",
    )


def one_reason(
    problems: Iterable[new_database.Complaint], blamed: Sequence[new_database.Complaint]
) -> bool:
    """Tell whether errors are all for one reason: those that have it, and what lacks their rows.

    Where something could not even be made, what needs it says that it does not exist.
    """
    unmade = any(problem.sort != "content" for problem in blamed)
    return all(
        problem in blamed
        or problem.sort in {"refresh", "program"}
        or problem.rebuilt
        or problem.entry.startswith("FK CONSTRAINT ")
        or (unmade and "does not exist" in problem.said)
        for problem in problems
    )


def may_lack(first: str) -> bool:
    """Tell whether a first error may be for want of what the live server has; more follow it."""
    return _ANYWHERE.search(first) is None


def _require_enough(problems: Sequence[new_database.Complaint], said: str) -> None:
    """Make sure that nothing failed for want of what the copy's server has; Unavailable."""
    if any(problem.no_room for problem in problems):
        raise scratch.Full(f"the server has no room for a copy: {said}")
    for problem in problems:
        if problem.limited:
            raise scratch.Unavailable(f"a limit of the server is in a copy's way: {problem.text}")


def listed(stack: ExitStack, home: Session, saved: Taken, restoring: Restoring) -> tuple[str, ...]:
    """Return the options that keep the restore from calling other servers, and to some rows."""
    without: dict[str, Collection[int] | None] = {new_database.REFRESH: restoring.calling}
    comments: Sequence[str] = ()
    if choice := restoring.choice:
        without = choice.without()
        without[new_database.REFRESH] = {*restoring.calling, *choice.views}
        comments = choice.comments()
    elif not restoring.calling:
        return ()

    def same(oid: int, entry: str) -> None:
        if choice and (now := choice.renamed(oid, entry)):
            raise scratch.Unavailable(
                f"{choice.reason}, and since the backup a table was renamed: {now}", level="warning"
            )

    programs, environment = clients.clients(home.config, home), home.config.child_env
    dump = stack.enter_context(saved.dump())
    wanted = clients.list_without(dump, programs, environment, without, comments, same)
    return (f"{clients.USE_LIST}{stack.enter_context(wanted)}",)


def tell_empty(
    config: Config, refused: Sequence[new_database.Complaint], calling: Iterable[str]
) -> None:
    """Say which materialised views the copy has unfilled; raises RehearsalFailed on demand."""
    if names := list(calling):
        structlog.get_logger().info(
            "rehearsal.warned",
            reason="materialised views are not filled in the copy: they read foreign tables, and "
            "another server is not asked for a proof",
            objects=names,
        )
    outside = [problem for problem in refused if problem.outside]
    views = [p for p in refused if p.sort == "refresh" and not p.outside]
    others = [p for p in refused if p.sort != "refresh" and not p.outside]
    names = [problem.entry.removeprefix(f"{new_database.REFRESH} ") for problem in views]
    _tell_refused(
        config,
        views,
        names,
        "No row of the dump is missing; the view's own query fails after a restore. Let it not "
        "rely on a search_path, on row security or on another server.",
    )
    _tell_refused(
        config,
        others,
        [problem.entry for problem in others],
        "All else is proven. An index that PostgreSQL cannot build again relies on a search_path: "
        "name the schema in its functions, or ALTER FUNCTION … SET search_path. What an extension "
        "made belongs to another role.",
    )

    _tell_refused(
        config,
        outside,
        list(dict.fromkeys(problem.entry.strip() for problem in outside)),
        "All else is proven. They need what PREFLIGHT_SCHEMAS leaves out, and a restore of this "
        "backup alone will be without them: name those schemas, too, or back them up as well.",
    )


def _tell_refused(
    config: Config, refused: Sequence[new_database.Complaint], names: list[str], hint: str
) -> None:
    if not refused:
        return
    message = f"{console.some(names)} cannot be filled again: {told(config, refused[0])}"
    if config.rehearse == "always":
        raise RehearsalFailed("rehearsal.incomplete", message, hint)
    reason = f"{message}. {hint}"
    structlog.get_logger().warning("rehearsal.warned", reason=reason, objects=names)


def told(config: Config, problem: new_database.Complaint) -> str:
    """Return a complaint with its entry; the words about rows may hold their values."""
    if problem.entry.startswith("TABLE DATA") and config.log_sql != "on":
        return f"{problem.entry} (PREFLIGHT_LOG_SQL=on shows why)"
    return f"{problem.entry}: {problem.text}" if problem.entry else problem.text


def _brake(home: Session, minute: burden.Minute, name: str) -> Callable[[], bool] | None:
    """Return what tells whether the restore has to pause, if it ever has to."""
    if not minute.limit_bytes or burden.wal(home) is None:
        return None
    told = False

    def hold() -> bool:
        nonlocal told
        busy = partial(burden.at_work, home, name)  # a client that stands still stops no index
        above = minute.above(time.monotonic(), burden.wal(home) or 0, busy)
        if above and not told:
            structlog.get_logger().info(
                "rehearsal.progressed",
                paused=True,
                wal_mb_per_min=minute.limit_bytes // 1_000_000,
            )
        told = above
        return above

    return hold


def proven(  # noqa: PLR0913 -- a copy, and all that it is held against
    copy: Session,
    saved: Taken,
    refused: Sequence[new_database.Complaint] = (),
    *,
    live: Session,
    empty_allowed: bool,
    choice: some_rows.Choice | None = None,
    rights: bool = True,
    unlike: str | None = None,
) -> tuple[tuple[str, ...], Undumped]:
    """Compare the copy with what the snapshot's session saw; raises BackupUnverified.

    `refused` is what cannot be there, and why is known; `choice` says which tables have rows;
    `rights`: owners and rights were restored, too. On a server that is `unlike` another major says
    what has the same shape in other words.

    Return which views are not filled there, where that is known to be no lack of the backup, and
    what was added to an extension, and so is in no dump.
    """
    take.require_there(saved)
    schemas = saved.backup.schemas
    wanted, shapes = saved.witness.objects, catalog.shapes(copy, schemas)
    empty = catalog.unfilled(wanted, shapes) if empty_allowed or choice else []
    bare = {each.told for each in choice.empty.values()} if choice else set[str]()
    gone = [problem for problem in refused if problem.sort != "refresh"]

    def left(name: str) -> bool:
        return any(problem.fills(name) for problem in gone)

    outside = [problem for problem in refused if problem.outside]
    excused = {*empty, *(key.told for key in choice.keys.values())} if choice else {*empty}
    excused |= {n for n, _ in wanted if parts.excused(n, outside)} if outside else set()
    excused |= {*catalog.reshaped(wanted, shapes)} if unlike else set()
    excused |= {n for n, _ in wanted if n.startswith("index ") and left(n[6:])} if gone else set()
    rows = saved.backup.manifest.rows or {}
    there = {n: c for n, c in rows.items() if n not in bare and not left(n)}
    different = snapshots.differing(copy, there)
    short = bool(different)
    different += catalog.lacking(wanted, shapes, excused)
    stood = {n: at for n, at in saved.witness.sequences.items() if not left(n)}
    different += _behind(live, stood, catalog.sequences(copy, schemas), schemas)
    if new_database.OPEN in saved.backup.manifest.lacks and rights:
        may, decided = new_database.is_open(copy)
        different += [f"it has {new_database.OPEN}"] if may and decided else []
    if different:
        raise BackupUnverified(
            "backup.restore_differs",
            f"the restored copy is not what was dumped: {console.some(different)}",
            "A backup that lacks something is none: it is hidden again, and nothing was migrated."
            + (" Is the pg_dump on PATH a real and whole one?" if short else ""),
        )
    new_database.strip(copy, {*saved.backup.manifest.lacks} - {new_database.OPEN})
    unmade = catalog.unmade(saved.witness.members, catalog.members(copy), schemas)
    detached = catalog.detached(saved.witness.attached, catalog.attached(copy), schemas)
    switched = catalog.switch(copy, saved.backup.manifest.switched)
    return tuple(empty), Undumped(unmade, detached, switched)


def _behind(
    live: Session,
    stood: catalog.Sequences,
    found: catalog.Sequences,
    schemas: Sequence[str],
) -> list[str]:
    """Name the sequences that do not stand where they should, but for what is set back live."""
    late = catalog.behind(stood, found)
    if not late:
        return []
    moving = catalog.set_back(live, stood, schemas)
    used = {name for name, (_, last) in found.items() if last is not None}
    anywhere = {name for name, unused in moving.items() if unused or name in used}
    return catalog.behind({n: at for n, at in stood.items() if n not in anywhere}, found)
