"""A proven copy on a throwaway server inside the job: production gives a dump, and no more.

Its server is ours alone, so nothing of it has to be closed, marked or dropped, and the files meet
there the roles and rights that they will meet in earnest. What ends it is no fault of theirs.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import psycopg

from preflight.backup import children, clients, manifests, new_database, parts, take
from preflight.base import console, quoting
from preflight.base.errors import (
    BackupFailed,
    BackupUnverified,
    ConnectionLost,
    RehearsalFailed,
    causes,
)
from preflight.files import parser, scan
from preflight.rehearsal import cluster, confined, copies, local, scratch, some_rows
from preflight.server import catalog

if TYPE_CHECKING:
    from pathlib import Path

    from preflight.backup.take import Taken
    from preflight.base.config import Config
    from preflight.files.migrations import Script
    from preflight.server.sessions import Session

JOBS_AT_LEAST = 2  # only then pg_restore loads each table in a transaction that has emptied it
FEW = 10  # files that are rehearsed although there is no row that they could meet
EMPTY_BYTES = 10_000_000  # of a database that may hold none
DEATH_S = 6.0  # a server that lost a process needs up to 5 s to end the others
_LOST = re.compile(r"57P0\d|08\d{3}")
# what says of a file that its WAL has to be that of the live server
_ASKS_FOR_WAL = re.compile(
    rb"(?i)replication_slot|replication_origin|restore_point|backup_st|_start_backup|_stop_backup|"
    rb"wal_level|switch_wal|walfile|logical_emit|publication"
)
# errors of this server alone: what it is not loaded with, has not on its disk or does not reach
_OURS = {
    "55000": r"wal_level|WAL level|shared_preload_libraries|must be loaded via|has no handler",
    "22023": "locale",
    "42704": "collation .* for encoding",
    "58P01": "^(?!could not open extension control file)",
    "08001": "", "08006": "", "HV00N": "",
    "42501": confined.FORBIDDEN, "38000": confined.FORBIDDEN, "F0000": confined.FORBIDDEN,
}  # fmt: skip
# a superuser's alone, which a provider's server lets its customers do: its roles, or what it loads
_SUPERUSERS = re.compile(
    "must be superuser|only superuser|permission denied to (?:set parameter|"
    "(?:create|update) extension|(?:create|change owner of) (?:event trigger|foreign-data wrapper))"
)
_PROVIDED = """
SELECT FROM pg_catalog.pg_roles u WHERE u.rolname = current_user AND NOT u.rolsuper AND (
 EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE pg_catalog.pg_has_role(r.oid, 'MEMBER')
  AND r.rolname::text IN ('rds_superuser', 'cloudsqlsuperuser', 'alloydbsuperuser',
   'azure_pg_admin', 'neon_superuser'))
 OR EXISTS (SELECT FROM pg_catalog.pg_settings s WHERE s.name ~ '^(supautils|extwlist)[.]'))
"""
_OF_TEMPLATE = "of the template database"  # that of the live server may have the locale, too
_NO_COLLATION = re.compile("collation .* for encoding .* does not exist")  # in words that we chose
SORTED = "the copy sorts as C does, because the live database's locale is not here"
# money, to_number, to_date and what is made of their texts: 22P02, 22003, 22007, 22008
_NO_NUMBER = re.compile(
    'invalid input syntax for type |invalid input value for enum |invalid value .* for "|'
    ".*out of range(?: for type .*|: .*)?$|numeric field overflow$|value overflows numeric format$|"
    "source string too short for |conflicting values for "
)
# a wrapper without a handler connects nowhere, whatever a trigger or a view reads; what dblink
# takes from the options is of no use to it
_SHUT = """
UPDATE pg_catalog.pg_foreign_data_wrapper SET fdwhandler = 0::oid WHERE fdwhandler <> 0::oid;
UPDATE pg_catalog.pg_foreign_server SET srvoptions = ARRAY(
 SELECT CASE pg_catalog.split_part(o.o, '=', 1)
  WHEN 'host' THEN 'host=/nowhere' WHEN 'hostaddr' THEN 'hostaddr=' WHEN 'port' THEN 'port=1'
  WHEN 'service' THEN 'service=' ELSE o.o END
 FROM pg_catalog.unnest(srvoptions) o) WHERE srvoptions IS NOT NULL;
UPDATE pg_catalog.pg_user_mapping SET umoptions = ARRAY(
 SELECT CASE WHEN pg_catalog.split_part(o.o, '=', 1) ~* 'user|pass|secret|key|token'
   AND pg_catalog.split_part(o.o, '=', 1) <> 'password_required'
  THEN pg_catalog.split_part(o.o, '=', 1) || '=-' ELSE o.o END
 FROM pg_catalog.unnest(umoptions) o) WHERE umoptions IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class _Place:
    """A throwaway server, made like the live one as far as it can be."""

    home: Session
    server: local.Server
    around: cluster.Surroundings
    made: cluster.Made

    @property
    def fidelity(self) -> str | None:
        """In what it is not like the live one."""
        return ", ".join(self.made.fidelity) or None


@contextmanager
def restored(  # noqa: PLR0913 -- what a copy is made from, and for whom
    session: Session,
    config: Config,
    saved: Taken,
    scripts: Sequence[Script],
    reads: Sequence[Script] = (),
    *,
    guests: bool = False,
) -> Iterator[copies.Copy]:
    """Yield a copy on a server of our own, compared; with `guests` others can connect, too.

    `reads` are all whose rows are to be there where there is no room for every row.
    Raises local.NotHere where there can be none, Unavailable, BackupUnverified. Call in the main
    thread.
    """
    began = time.monotonic()
    directory, programs = _found(session, config)
    copies.require_inside(session, scripts, elsewhere=True)
    calling = catalog.calling(session)
    with _or_unavailable(session, "what is around the live database cannot be read"):
        around = cluster.look(session)
    _, live_bytes = take.identity_of(session)
    choice = _chosen(session, config, directory, reads, live_bytes)
    live_bytes = choice.size if choice else live_bytes
    (us,) = session.execute("SELECT session_user::text").fetchone() or ("",)
    wanted = settings(around, scripts, all_of_it=guests)
    part = saved.backup.manifest.partial
    with _started(
        session, config, programs, directory, live_bytes, wanted, us, guests=guests
    ) as server:
        with cluster.connected(session.config, server) as home:
            place = _made(home, server, around, part)
            name, quiet = place.made.database, new_database.filling(home)
            restoring = copies.Restoring(
                name, _jobs(home, config), live_bytes, quiet, calling, session.tell, part, choice,
                missed=partial(scratch.has_setting, session),
            )  # fmt: skip
            copies.tell_started(
                saved,
                restoring,
                where="local",
                server=f"PostgreSQL {programs.version} in {directory}",
                wal_bytes_expected=0,
                fidelity=place.fidelity,
            )
            try:
                refused = _filled(place, saved, restoring)
                restore_s = time.monotonic() - began
                session.tell("comparing the copy")
                used = bool(scripts or guests)
                empty, undumped = _compared(session, place, saved, restoring, refused, used=used)
            except BackupUnverified:
                if server.death() is None:
                    take.hide(saved)
                raise
            with _or_unavailable(home, "the copy cannot have the live database's settings"):
                cluster.settle(home, around, place.made, late=True)
            _require_whole(place.made, part)
            copies.believe(config, saved, restoring, refused, (), undumped)
            other = _other(home, name) if guests else None
        # nobody of ours stays in template1: CREATE DATABASE copies what nobody else is in
        with (
            cluster.connected(session.config, server, name, us) as copy,
            _beside(session.config, server, copy, other) as home,
        ):
            copy.copy = True
            copy.instead = partial(_instead, session, copy, server)
            yield copies.Copy(
                copy, name, restore_s, began, home, empty=empty, where="local",
                fidelity=place.fidelity, server=server, part=part,
                lacking=copies.lacking(saved, refused, undumped),
                altered=copies.altered(saved, undumped), choice=choice,
            )  # fmt: skip


def _other(home: Session, copy: str) -> str:
    """Return a database that is not the copy, for guests to look at first and for ours to be in.

    It is `postgres`, as on the live server; the image's cluster has none, for each start copies it.
    """
    other = local.OWN if copy == local.SPARE else local.SPARE
    there = "SELECT FROM pg_catalog.pg_database d WHERE d.datname = %s::name"
    if home.execute(there, [other]).fetchone() is None:
        with _or_unavailable(home, f"no database {other} can be made beside the copy"):
            home.execute(f"CREATE DATABASE {quoting.name(other)} TEMPLATE template0")
    return other


@contextmanager
def _beside(
    config: Config, server: local.Server, copy: Session, other: str | None
) -> Iterator[Session]:
    """Yield a superuser's session in another database where guests need one; else the copy's."""
    if other is None:
        yield copy
        return
    with cluster.connected(config, server, other) as home:
        yield home


def _instead(
    live: Session,
    copy: Session,
    server: local.Server,
    script: Script,
    statement: scan.Statement,
) -> bytes | None:
    """Return what runs on the copy where it is another statement; raises Unavailable."""
    scratch.require_same_version(live, copy, script, statement)
    return _nearby(server, script, statement)


def _nearby(server: local.Server, script: Script, statement: scan.Statement) -> bytes | None:
    """Return a statement that makes a tablespace with a directory of the throwaway server's.

    The one that it names is of production's machine, which may be this one. None: any other
    statement, and what every server refuses, stays as it is.
    """
    said = scan.bare(script.text, statement.start, statement.end)
    if [*islice(said, 2)] != ["CREATE", "TABLESPACE"]:
        return None
    node = parser.parsed(statement.read(script.text))
    if node is None:
        raise scratch.Unavailable("where a tablespace is to lie cannot be read")
    if not node.create_table_space_stmt.location.startswith("/"):
        return None
    folder = server.folder(f"tablespace-{secrets.token_hex(4)}")
    node.create_table_space_stmt.location = str(folder)
    return parser.written(node).encode()


@contextmanager
def ahead(session: Session, many: int = 0, *, demanded: bool = False) -> Iterator[None]:
    """Make meanwhile what a throwaway server starts from, where a copy will probably be on one.

    `many` is how many files there are to try.
    """
    config = session.config
    others = (config.rehearse_url, config.rehearse_clone_url)
    off = config.backup == "off" or (config.rehearse == "off" and not demanded)
    if off or others != (None, None) or config.rehearse_on == "server" or not config.run_id:
        yield
        return
    _, size = take.identity_of(session)
    if many > FEW and size < EMPTY_BYTES and config.rehearse != "always":
        yield  # it may hold no row, and then many files are not tried
        return
    pg_dump, path = clients.clients(config, session).pg_dump, _path(config)
    find = partial(local.find, session.facts.major if session.facts else 0, pg_dump, path)
    try:
        directory = local.place(config.rehearse_dir)
    except local.NotHere:
        yield
        return
    need = local.needed(size)
    with local.ahead(find, directory, config.run_id, need, config.rehearse_dir_mb):
        yield


def _path(config: Config) -> str:
    return config.child_env.get("PATH", os.defpath)


def sweep(config: Config) -> None:
    """Remove what killed runs left where throwaway servers live, whether we are to have one."""
    with suppress(local.NotHere, OSError):
        local.sweep(local.place(config.rehearse_dir))


# the server


def _found(session: Session, config: Config) -> tuple[Path, local.Programs]:
    """Return where the server will live and what it is made of; raises local.NotHere."""
    try:
        pg_dump = clients.clients(config, session).pg_dump
    except BackupFailed as failure:  # it was there a moment ago, for the backup
        raise scratch.Unavailable(str(failure)) from failure
    programs = local.find(session.facts.major if session.facts else 0, pg_dump, _path(config))
    return local.place(config.rehearse_dir), programs


def _chosen(
    session: Session, config: Config, directory: Path, reads: Sequence[Script], size: int
) -> some_rows.Choice | None:
    """Return whose rows the copy has, where there is no room for all."""
    limit_mb = config.rehearse_dir_mb
    if (short := local.short(directory, local.needed(size), limit_mb)) is None:
        return None
    free = local.holding(local.left(directory, limit_mb))
    return some_rows.chosen(session, config, reads, free, str(short))


def settings(
    around: cluster.Surroundings, scripts: Sequence[Script], *, all_of_it: bool = False
) -> dict[str, str]:
    """Return the settings of the live server that count here; its WAL's where a file asks for it.

    Less WAL is much less work: no table that is restored is written twice.
    """
    asked = all_of_it or any(_ASKS_FOR_WAL.search(script.text) for script in scripts)
    return dict(around.settings) | (dict(around.wal) if asked else {})


@contextmanager
def _or_unavailable(session: Session, what: str) -> Iterator[None]:
    """Take an error of the server for a reason to do without a copy; its end stays what it is."""
    try:
        yield
    except psycopg.Error as error:
        if session.lost:
            raise
        raise scratch.Unavailable(f"{what}: {error.diag.message_primary or error}") from error


@contextmanager
def _started(  # noqa: PLR0913, PLR0917 -- what it is made from
    session: Session,
    config: Config,
    programs: local.Programs,
    directory: Path,
    live_bytes: int,
    wanted: dict[str, str],
    us: str,
    *,
    guests: bool = False,
) -> Iterator[local.Server]:
    """Yield a server; what fails because it ended, or for its own sake, is Unavailable."""
    try:
        with local.started(
            programs,
            directory,
            config.run_id,
            need=local.needed(live_bytes),
            limit_mb=config.rehearse_dir_mb,
            settings=wanted,
            users=[us],
            tcp=guests,
        ) as server:
            try:
                with server.watched():
                    yield server
            except Exception as error:
                if why := _ours(session, server, error):
                    raise why from error
                raise
    except local.NotHere:
        raise
    except local.Unavailable as reason:
        raise scratch.Unavailable(str(reason)) from reason


def _ours(session: Session, server: local.Server, error: Exception) -> Exception | None:
    """Return what an error means when it is of the throwaway server's making; else None."""
    if session.lost:
        return None
    lost = _is_loss(error)
    if death := server.ended(DEATH_S if lost else 0.0):
        return death
    if isinstance(error, ConnectionLost):
        return scratch.Unavailable(f"the copy's session ended, but not its server: {error}")
    if not isinstance(error, RehearsalFailed):
        return None
    sure, said = _only_here(session, error), scratch.server_said(error)
    if sure or _unloaded(error) or _OF_TEMPLATE in said or _provided(session, error):
        return _not_here(error, sure=sure)
    return None


def _is_loss(error: BaseException | None) -> bool:
    """Tell whether the end of a connection is the reason of an error."""
    for each in causes(error):
        sqlstate = getattr(each, "sqlstate", "") or ""
        if isinstance(each, ConnectionLost) or _LOST.fullmatch(sqlstate):
            return True
        if isinstance(each, psycopg.OperationalError) and not sqlstate:
            return True
    return False


def _only_here(session: Session, failure: RehearsalFailed) -> bool:
    """Tell whether a file fails on the throwaway server for what the live one has or is."""
    if scratch.lacks(session, failure):
        return True
    pattern = _OURS.get(failure.problem.sqlstate or "")
    return pattern is not None and re.search(pattern, scratch.server_said(failure)) is not None


def _unloaded(failure: RehearsalFailed) -> bool:
    """Tell whether a library says in its own words that it has to be loaded at the start."""
    said = scratch.server_said(failure)
    return failure.problem.sqlstate == "XX000" and "shared_preload_libraries" in said


def _provided(session: Session, failure: RehearsalFailed) -> bool:
    """Tell whether a file lacks a superuser's right, on whose live server others have it, too."""
    return (
        failure.problem.sqlstate == copies.NO_RIGHT
        and _SUPERUSERS.search(scratch.server_said(failure)) is not None
        and session.execute(_PROVIDED).fetchone() is not None
    )


def _not_here(failure: RehearsalFailed, *, sure: bool) -> scratch.Unavailable:
    why = "which only the throwaway server says" if sure else "which the live server may allow"
    told = failure.problem.data()
    where: dict[str, Any] = {
        name: told[name] for name in ("file", "line", "column") if name in told
    }
    level = "info" if sure else "warning"
    return scratch.Unavailable(f"{failure}, {why}", (), level=level, **where)


def _made(
    home: Session,
    server: local.Server,
    around: cluster.Surroundings,
    part: manifests.Part | None,
) -> _Place:
    """Make the server like the live one; raises Unavailable where what is needed cannot be had."""
    with _or_unavailable(home, "the throwaway server cannot be made like the live one"):
        made = cluster.make(home, server, around)
    _require_whole(made, part)
    return _Place(home, server, around, made)


def _require_whole(made: cluster.Made, part: manifests.Part | None) -> None:
    """Make sure that this server has what the live one has; raises Unavailable that names it.

    Of a backup of some schemas, what is known to be needed.
    """
    spare = (
        {f"extension {each.name}" for each in part.extensions if not each.needed} if part else ()
    )
    if lacking := {what: why for what, why in made.lacking.items() if what not in spare}:
        named = console.some([f"{what} ({why})" for what, why in lacking.items()])
        raise scratch.Unavailable(
            f"the throwaway server lacks {named}; PREFLIGHT_REHEARSE_URL can name one of the live "
            "server's own image, which has it",
            list(lacking),
        )


# its content


def _jobs(home: Session, config: Config) -> int:
    """Return how many sessions restore."""
    jobs = new_database.jobs(home)
    return max(JOBS_AT_LEAST, jobs) if config.jobs == "auto" else jobs


def _filled(
    place: _Place, saved: Taken, restoring: copies.Restoring
) -> list[new_database.Complaint]:
    """Restore the dump; return which materialised views could not be refreshed.

    Raises local.Unavailable, Unavailable for what only this side lacks, BackupUnverified.
    """
    home, server, made = place.home, place.server, place.made
    restoring.others("restoring")
    begun = server.used()  # the cluster itself
    copies.close(home, saved, restoring)

    def anew() -> None:
        _make_anew(home, place.around)
        copies.close(home, saved, restoring)

    def filled() -> int:
        return max(0, server.used() - begun)

    with restoring.progress() as progress, ExitStack() as stack:
        try:
            code, problems = new_database.fill(
                home,
                made.database,
                stack.enter_context(saved.dump()),
                restoring.jobs,
                "--no-subscriptions",  # they would connect to where the rows come from
                *copies.listed(stack, home, saved, restoring),
                settings=restoring.quiet,
                tick=lambda: progress.tell(filled),
                anew=anew,
                there=parts.there(restoring.part) | set(made.schemas),
            )
        except (children.ClientFailed, BackupFailed) as failure:
            raise scratch.Unavailable(f"pg_restore: {failure}") from failure
    problems = parts.marked(problems, restoring.part)
    if problems or code != 0:
        if death := server.ended(1.0):  # its end looks like anything to who was connected
            raise death
        _require_locales(home.config, saved, made, problems)
        some = restoring.choice is not None
        copies.judge(
            home,
            saved,
            code,
            problems,
            elsewhere="the throwaway server",
            some=some,
            missed=restoring.missed,
        )
    return problems


def _compared(  # noqa: PLR0913 -- all that it is held against
    session: Session,
    place: _Place,
    saved: Taken,
    restoring: copies.Restoring,
    refused: Sequence[new_database.Complaint],
    *,
    used: bool,
) -> tuple[tuple[str, ...], copies.Undumped]:
    """Compare the copy, and close it to other servers; `used`: somebody will work on it.

    Return what `copies.proven` does; raises Unavailable, BackupUnverified.
    """
    with scratch.reached(place.home, restoring.name, restoring.quiet) as inside:
        found = copies.proven(
            inside,
            saved,
            refused,
            live=session,
            empty_allowed=bool(restoring.calling or refused),
            choice=restoring.choice,
        )
        with _or_unavailable(inside, "other servers cannot be closed to the copy"):
            inside.execute(_SHUT)
        if used:
            new_database.analyze(inside)
    return found


def _make_anew(home: Session, around: cluster.Surroundings) -> None:
    cluster.make_database(home, around)


def unspoken(locales: Iterable[str]) -> str:
    """Say which locales of money, numbers and days a copy has not."""
    return f"a locale of the live server is not here ({', '.join(locales)})"


def _require_locales(
    config: Config,
    saved: Taken,
    made: cluster.Made,
    problems: Sequence[new_database.Complaint],
) -> None:
    """Where a locale is not here, that may be why the copy cannot be had; raises Unavailable.

    What names one cannot be made; where text sorts otherwise, a row that breaks a rule here may
    keep it on the live server; and a number that is written otherwise cannot be read.
    """
    blamed = [problem for problem in problems if _NO_COLLATION.search(problem.text)]
    why = "a locale of the live server is not here"
    if cluster.COLLATION in made.fidelity and not blamed:
        blamed = [problem for problem in problems if problem.sort in {"content", "right"}]
        why = SORTED
    elif made.fidelity and not blamed:
        blamed = [problem for problem in problems if _NO_NUMBER.match(problem.said)]
        blamed = blamed if copies.one_reason(problems, blamed) else []
        why = unspoken(made.fidelity)
    if blamed:
        take.require_there(saved, again=True)
        raise scratch.Unavailable(
            f"{why}, and so this cannot be restored: {copies.told(config, blamed[0])}",
            [problem.entry for problem in blamed[:100]],
        )
