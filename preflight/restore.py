"""Restore a backup beside the live database and, when asked, put it in its place.

The new database is closed to PUBLIC until its rows are compared. Both renames of a swap are one
transaction, so a swap is done or not; what an interrupted call left is told by the comment on the
new database. That only says what it held then: before an answer and before a swap it is compared
again, for a swap with nobody let in from then on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import structlog

from preflight import (
    archive,
    backup,
    belongings,
    catalog,
    history,
    lock,
    report,
    server,
    sibling,
    sql,
    stop,
    store,
)
from preflight.errors import (
    BackupFailed,
    BackupInterrupted,
    BackupUnverified,
    ConfigInvalid,
    TargetUnusable,
)

if TYPE_CHECKING:
    from preflight.arguments import Arguments
    from preflight.belongings import Belongings
    from preflight.config import Config
    from preflight.server import Session
    from preflight.store import Backup, Identity

MAINTENANCE = ("postgres", "template1", "template0")  # nobody is in their way there
MARK = "pg-preflight restore: "
RENAME_TRIES = 10
UNFINISHED = f"{MARK}unfinished"
NO_SUBSCRIPTIONS = "--no-subscriptions"  # it would take its origin's place at the publisher
LAST_SESSIONS_S = 2.0
TWICE_S = 24 * 3600.0  # a swap that is asked for again so soon is the same one
NAME_BYTES = 63
NO_RIGHT = "42501"

_SESSIONS = """
SELECT a.pid, coalesce(nullif(a.application_name, ''), 'unnamed'), a.usename::text,
 a.datname::text
FROM pg_catalog.pg_stat_activity a
WHERE a.datname IN (%s::name, %s::name) AND a.pid <> ALL (%s::int4[])
 AND a.usesysid IS NOT NULL  -- of other roles' sessions, backend_type may not be seen
"""


# what deparsing an expression depends on
_ONE_WAY = """
SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres'; SET TimeZone = 'UTC';
SET extra_float_digits = 1; SET bytea_output = 'hex'; SET lc_monetary = 'C'
"""
_SAID = re.compile(
    re.escape(MARK)
    + r"(?P<name>.+?)(?: \((?P<xid>\d+) (?P<objects>[0-9a-f]+) (?P<own>[0-9a-f]+)\))?"
)


@dataclass(frozen=True, slots=True)
class Place:
    """Which backup goes where, and what is to belong to it (None: nobody knows)."""

    source: Backup
    live: str
    into: str
    own: Belongings | None = None
    without: frozenset[str] = frozenset()

    @property
    def steps(self) -> list[belongings.Step]:
        """What gives the new database what belongs to it."""
        return self.own.steps(self.into, self.without) if self.own else []


@dataclass(frozen=True, slots=True)
class State:
    """What a database held when it was complete: the last transaction, and hashes of the rest.

    Of its objects, and of what belongs to it. Its comment says so, until it is swapped in.
    """

    xid: int
    objects: str
    own: str = ""

    def mark(self, source: Backup) -> str:
        """Return the comment that says which backup a database holds, completely."""
        return f"{MARK}{source.name} ({self.xid} {self.objects} {self.own})"


def run(config: Config, said: Arguments) -> None:
    """Restore into a new database; with `swap`, rename it into the live one's place.

    Raises ConfigInvalid (no such backup), BackupUnverified (damaged, or rows differ),
    TargetUnusable (no right, name taken or changed since, sessions in the way, swapped before).
    """
    began = time.monotonic()
    known = find(config.backup_dir, said.backup, config.database)
    live, into = _names(config, said.into)
    home = next(name for name in MAINTENANCE if name not in (live, into))
    maintenance = dataclasses.replace(config, target={**config.target, "dbname": home})
    with server.connect(maintenance) as session:
        session.learn(session.ask(f"SELECT {server.FACTS}")[0])
        server.require_writable(session)
        session.grow_up()
        lock.acquire(session)
        identity = dataclasses.replace(backup.identity_of(session)[0], database=live)
        place = _place(session, choose(known, identity), live, into, said.without)
        if said.swap and not said.again and _swapped_before(session, place, identity):
            return
        _tell_started(session, place, identity, known)
        with _read(place.source) as renew:
            state = _there(session, place)
            if state is None:
                state = _made(session, place, renew)
            elif not said.swap:
                with server.beside(session, into, sibling.quiet(session)) as other:
                    _require_same(other, place, state)
            _tell_closed(place)
            kept = _swap(session, place, state, identity, said) if said.swap else None
    structlog.get_logger().info(
        "restore.finished",
        backup=place.source.name,
        database=place.live if said.swap else place.into,
        kept_as=kept,
        left_out=[f"subscription {name}" for name in place.own.subscriptions] if place.own else [],
        rows=sum(place.source.manifest["rows"].values()),
        duration_s=round(time.monotonic() - began, 3),
    )


def _names(config: Config, into: str | None) -> tuple[str, str]:
    live = config.database
    target = into or _suffixed(live, "_restored")
    if target == live or len(target.encode()) > NAME_BYTES:
        reason = "is the live database itself" if target == live else "is longer than 63 bytes"
        raise ConfigInvalid(
            "config.arguments",
            f"--into {target!r} {reason}",
            "A restore goes beside it, under another name; --swap puts it in its place.",
        )
    return live, target


def _place(
    session: Session, source: Backup, live: str, into: str, without: frozenset[str]
) -> Place:
    """Return where it goes with what belongs to it: as the backup says, else as the live one has.

    Raises BackupUnverified when the manifest says what no version of ours has written.
    """
    try:
        own = belongings.of_manifest(source.manifest.get("belongings"))
    except ValueError as wrong:
        raise BackupUnverified(
            "backup.corrupt",
            f"{source.name} cannot be used: `{wrong}` in its manifest is not one of ours",
            "Use another backup (`backups --table`) and check the disk.",
        ) from wrong
    return Place(source, live, into, own or belongings.read(session, live), without)


def _suffixed(name: str, suffix: str) -> str:
    """Return a database's name with a suffix, as long as the server lets it be."""
    return name.encode()[: NAME_BYTES - len(suffix)].decode("utf-8", "ignore") + suffix


# which backup


def find(directory: Path, name: str, database: str) -> list[Backup]:
    """Return what a name, a path or `latest` of a database may mean, the oldest first.

    Raises ConfigInvalid (there is none), BackupUnverified (it is none).
    """
    at = Path(name)
    if at.is_absolute() or "/" in name:
        directory, name = at.parent, at.name
    try:
        known = store.listing(directory)
    except OSError as error:
        raise ConfigInvalid(
            "config.backup_dir",
            f"the backups in {directory} cannot be read: {error.strerror}",
            "Set PREFLIGHT_BACKUP_DIR, or mount the volume.",
        ) from error
    ours = [item for item in known if item.manifest.get("database") == database]
    if found := ours if name == "latest" else [item for item in known if item.name == name]:
        return found
    if name and (directory / name).is_dir():
        _require_readable(directory / name)
    raise ConfigInvalid(
        "config.arguments",
        f"there is no backup {name!r} in {directory}",
        "See `backups --table`." if known else "That directory holds no backup.",
    )


def _require_readable(path: Path) -> None:
    try:
        store.read(path)
    except store.Unreadable as why:
        raise BackupUnverified(
            "backup.corrupt",
            f"{path.name} is no whole backup: {why}",
            "Use another backup (`backups --table`) and check the disk.",
        ) from why


def choose(known: Sequence[Backup], identity: Identity) -> Backup:
    """Return the newest of this server's backups, or of the only others; raises ConfigInvalid.

    On a new server none is its own: then all must be from one place, as they are of one database.
    """
    if ours := identity.ours(known):
        return ours[-1]
    places = store.origins(known)
    if len(places) == 1:
        return known[-1]
    each = [f"{items[-1].name} {_from(origin)}" for origin, items in places.items()]
    raise ConfigInvalid(
        "config.arguments",
        f"`latest` may be of {len(places)} servers, and none is this one "
        f"({identity.system} at {identity.address}): the newest of each are {'; '.join(each)}",
        "Name the one that you want: `restore NAME`.",
    )


def _from(origin: tuple[str, str]) -> str:
    system, where = origin
    return f"(of server {system or 'unknown'}{f' at {where}' if where else ''})"


def _tell_started(
    session: Session, place: Place, identity: Identity, known: Sequence[Backup]
) -> None:
    """Say what is restored; a backup of another server or database is a warning."""
    log, source = structlog.get_logger(), place.source
    live = belongings.read(session, place.live)
    data = {
        "backup": source.name,
        "database": place.into,
        "differs": place.own.differing(live) if place.own and live else [],
        "without": sorted(place.without),
    }
    if source in identity.ours(known):
        log.info("restore.started", **data)
        return
    whose = source.manifest.get("database")
    log.warning(
        "restore.started",
        **data,
        reason=f"it is a backup of {whose} {_from(source.origin)}, and this is {place.live} "
        f"{_from((identity.system, identity.address))}",
    )


def _tell_closed(place: Place) -> None:
    """Say that PUBLIC is still locked out where nobody knows whether it was let in."""
    if place.own is None or "grants" in place.without:
        structlog.get_logger().warning(
            "config.warned",
            warning=f"who may connect to {place.into!r} is not known: nobody but its owner may. "
            f"GRANT CONNECT ON DATABASE … TO …; PUBLIC is let in as in a new database by GRANT "
            "CONNECT, TEMPORARY ON DATABASE … TO PUBLIC.",
        )


@contextmanager
def _read(source: Backup) -> Iterator[Callable[[], None]]:
    """Keep the backup from being pruned meanwhile."""
    try:
        with store.reading(source) as renew:
            yield renew
    except OSError as error:
        raise BackupFailed(
            "backup.directory",
            f"{source.path} cannot be read: {error.strerror}",
            "Correct its rights, or run as the user that made it. If another run has just removed "
            "it, choose another one (`backups --table`).",
        ) from error


def _require_whole(source: Backup) -> None:
    if missing := sorted({"rows", "sha256"} - source.manifest.keys()):
        raise BackupUnverified(
            "backup.corrupt",
            f"{source.name} cannot be compared: its manifest lacks {' and '.join(missing)}",
            "Use another backup (`backups --table`).",
        )
    digest, _ = archive.hash_of(source.path / store.DUMP)
    if digest != source.manifest["sha256"]:
        raise BackupUnverified(
            "backup.corrupt",
            f"{source.name} is not what was written: its hash differs from the manifest's",
            "Use another backup (`backups --table`) and check the disk.",
        )


# the new database


def _there(session: Session, place: Place) -> State | None:
    """Return what an earlier call restored there; drop what one left half done."""
    found = sibling.described(session, place.into)
    if found is None:
        return None
    comment = found["comment"] or ""
    if comment == UNFINISHED or sibling.newborn(found):
        try:
            sibling.drop(session, place.into)
        except psycopg.Error as error:
            if session.lost:
                raise
            raise TargetUnusable(
                "restore.exists",
                f"the database {place.into!r}, which another call left half done, cannot be "
                f"dropped: {error.diag.message_primary or error}",
                "Remove what is in the way and drop it, or choose another name with --into.",
                sqlstate=error.sqlstate,
            ) from error
        return None
    said = _SAID.fullmatch(comment)
    if said and said["name"] == place.source.name and said["xid"]:
        if not found["everything"]["datallowconn"]:  # a swap was killed
            _let_in(session, place.into)
        return State(int(said["xid"]), said["objects"], said["own"])
    what = f"is the restore of {said['name']}" if said else "is not ours"
    if said and said["name"] == place.source.name:
        what += " by an older version, which left nothing to compare it with"
    raise TargetUnusable(
        "restore.exists",
        f"the database {place.into!r} exists already and {what}",
        "Choose another name with --into, or drop it.",
    )


def _made(session: Session, place: Place, renew: Callable[[], None]) -> State:
    """Make the database, fill it, compare it, and give it what belongs to it."""
    _require_whole(place.source)
    with _new_database(session, place):
        state = _fill(session, place, renew)
        belongings.give(session, place.steps)
        state = dataclasses.replace(state, own=_own(session, place))
        sibling.say(session, place.into, state.mark(place.source))
    return state


@contextmanager
def _new_database(session: Session, place: Place) -> Iterator[None]:
    """Make the database, closed to everybody else; drop it again when what follows fails."""
    problems = _create(session, place)
    try:
        _require_had(problems + belongings.refused(session, place.steps))
        yield
    except BaseException:
        if not session.lost:
            _drop(session, place.into)
        raise


def _create(session: Session, place: Place) -> list[tuple[str, str | None]]:
    """Make the database; return what of it cannot be had here. Raises TargetUnusable."""
    major = session.facts.major if session.facts else 0
    problems: list[tuple[str, str | None]] = []
    without = place.without
    if (
        place.own
        and "tablespace" not in without
        and (why := belongings.no_place(session, place.own))
    ):
        problems.append((why, None))
        without |= {"tablespace"}
    model = place.own.model(major, without) if place.own else None
    try:
        sibling.create(session, place.into, model, UNFINISHED)
    except psycopg.errors.InsufficientPrivilege as error:
        raise TargetUnusable(
            "restore.no_right",
            "this role may not create a database",
            "ALTER ROLE … CREATEDB, or run the restore as a role that may.",
            sqlstate=error.sqlstate,
        ) from error
    except TEXT_RULES as error:
        own = place.own
        if own is None:
            raise
        rules = (own.encoding, own.lc_collate, own.lc_ctype, own.locale_provider, own.locale)
        said = f"text rules {' '.join(filter(None, rules))}: {error.diag.message_primary}"
        problems.append((said, error.sqlstate))
        _require_had(problems)
    return problems


TEXT_RULES = (
    psycopg.errors.WrongObjectType,
    psycopg.errors.InvalidParameterValue,
    psycopg.errors.FeatureNotSupported,
    psycopg.errors.UndefinedObject,
    psycopg.errors.InvalidObjectDefinition,
    psycopg.errors.SyntaxError,
)


def _require_had(problems: Sequence[tuple[str, str | None]]) -> None:
    """Refuse, before a row is restored, what this server cannot give; raises TargetUnusable."""
    if not problems:
        return
    what = f"what belongs to it: {'; '.join(text for text, _ in problems)}"
    advice = (
        "leave it out: --without tablespace,grants,settings,locale (grants: also the owner). "
        "Nothing was restored."
    )
    if all(state == NO_RIGHT for _, state in problems):
        raise TargetUnusable(
            "restore.no_right",
            f"this role may not give the new database {what}",
            f"Run as the live database's owner or as a superuser, or {advice}",
            sqlstate=NO_RIGHT,
        )
    raise TargetUnusable(
        "restore.lacking",
        f"the new database cannot have {what}",
        f"Make it on this server (CREATE ROLE, CREATE TABLESPACE, locales), or {advice}",
        sqlstate=problems[0][1],
    )


def _drop(session: Session, name: str) -> None:
    """Drop what failed; that this fails, too, must not hide why."""
    try:
        sibling.drop(session, name)
    except psycopg.Error as error:
        structlog.get_logger().warning(
            "config.warned",
            warning=f"the database {name!r} could not be dropped: "
            f"{error.diag.message_primary or error}",
        )


def _fill(session: Session, place: Place, renew: Callable[[], None]) -> State:
    """Run pg_restore and compare every table's rows with the manifest."""
    dump, jobs = place.source.path / store.DUMP, sibling.jobs(session)
    quiet = sibling.quiet(session)  # a login event trigger would write into what is compared
    filled = sibling.fill(
        session, place.into, dump, jobs, NO_SUBSCRIPTIONS, settings=quiet, tick=renew
    )
    _require_clean(*filled)
    with server.beside(session, place.into, quiet) as other:
        different = backup.differing(other, place.source.manifest["rows"])
        other.execute("ANALYZE")
        objects = _objects(other)
        (xid,) = other.execute("SELECT pg_catalog.txid_current()").fetchone() or (0,)
    if different:
        raise BackupUnverified(
            "restore.rows_differ",
            f"{len(different)} tables differ from the manifest: {'; '.join(different[:5])}",
            "The new database was dropped; the live one was not touched.",
        )
    return State(xid, objects)


def _objects(other: Session) -> str:
    """Return a hash of what a database is made of but rows: definitions, rights, sequences."""
    other.execute(_ONE_WAY)
    looks = (catalog.definitions, catalog.sequences, catalog.counts)
    found = [sorted(look(other).items()) for look in looks]
    return hashlib.sha256(repr(found).encode()).hexdigest()[:32]


def _own(session: Session, place: Place) -> str:
    """Return a hash of what belongs to the new database, without the comment."""
    found = belongings.read(session, place.into)
    told = dataclasses.replace(found, comment=None) if found else None
    return hashlib.sha256(repr(told).encode()).hexdigest()[:32]


def _require_same(other: Session, place: Place, state: State) -> None:
    """Compare with what was restored there earlier; raises TargetUnusable that names tables."""
    try:
        wanted = place.source.manifest["rows"]
        different = backup.differing(other, wanted, exactly=True)
        different += backup.written_since(other, state.xid)
        if not different and _objects(other) != state.objects:
            different = ["its objects, rights or sequences were changed"]
        if not different and (touched := catalog.written_since(other, state.xid)):
            different = [f"its objects or rights were changed ({', '.join(touched)})"]
        if _own(other, place) != state.own:
            different.append("the owner, settings or rights of the database were changed")
    except psycopg.errors.InsufficientPrivilege as error:
        raise TargetUnusable(
            "restore.no_right",
            f"{place.into!r} cannot be compared: {error.diag.message_primary}",
            "Run as its owner, or choose another name with --into.",
            sqlstate=error.sqlstate,
        ) from error
    if different:
        raise TargetUnusable(
            "restore.changed",
            f"the database {place.into!r} is no longer what was restored there: "
            f"{report.some(different)}",
            f"Drop it (DROP DATABASE {sql.quoted(place.into)}) and restore again, or choose "
            "another name with --into. The live database was not touched.",
        )


def _require_clean(code: int, problems: list[sibling.Complaint]) -> None:
    """Make sure that pg_restore did all of it; raises BackupUnverified, BackupInterrupted.

    A materialised view that cannot be filled now is a warning: its rows are in no dump.
    """
    if problems and all(problem.sort == "refresh" for problem in problems):
        names = [problem.entry.removeprefix(f"{sibling.REFRESH} ") for problem in problems]
        structlog.get_logger().warning(
            "config.warned",
            warning=f"restored, but not filled: {report.some(names)} ({problems[0].text}); remove "
            "the cause and REFRESH MATERIALIZED VIEW",
        )
    elif problems:
        raise BackupUnverified(
            "restore.failed",
            f"pg_restore reports: {'; '.join(problem.text for problem in problems[:3])}",
            "The new database was dropped; the live one was not touched. A dump of a newer major "
            "version or of roles that this server lacks cannot be restored here.",
        )
    elif code != 0:
        raise BackupInterrupted(
            "restore.client",
            f"pg_restore ended with {code}, without a word",
            "Run again; the live database was not touched.",
        )


# the swap


def _swapped_before(session: Session, place: Place, identity: Identity) -> bool:
    """Tell whether the live database came from this very backup a short while ago.

    What was written since would leave it. Raises TargetUnusable when that was long ago.
    """
    live = sibling.described(session, place.live)
    if live is None:
        return False
    swaps = store.swaps(place.source, identity)
    said = swaps.pop(live["oid"], None)
    if said is None:
        _require_not_replaced(session, place, swaps)
        return False
    at = said.get("epoch_s")
    (now,) = session.execute(_NOW).fetchone() or (0.0,)
    when = said.get("at", "at an unknown time")
    what = f"{place.live!r} was restored from {place.source.name} and swapped in already ({when})"
    if isinstance(at, int | float) and now - at < TWICE_S:
        structlog.get_logger().warning(
            "restore.finished",
            backup=place.source.name,
            database=place.live,
            reason=f"{what}: nothing was done; --again does it again",
        )
        return True
    raise TargetUnusable(
        "restore.swapped",
        what,
        "What was written since would leave the live database: if that is wanted, add --again.",
    )


def _require_not_replaced(session: Session, place: Place, swaps: Mapping[int, Any]) -> None:
    """Make sure that no call of long ago is done again over what took its place since.

    A swap that failed left its database where this one wants to restore.
    """
    (waiting,) = session.execute(_OID, [place.into]).fetchone() or (0,)
    if gone := [said for oid, said in swaps.items() if oid != waiting]:
        raise TargetUnusable(
            "restore.swapped",
            f"{place.source.name} was swapped in before ({gone[-1].get('at', 'some time ago')}), "
            f"and {place.live!r} is another database now",
            "What it holds would leave the live place: if that is wanted, add --again.",
        )


_NOW = "SELECT EXTRACT(epoch FROM pg_catalog.clock_timestamp())::float8"


def _swap(
    session: Session, place: Place, state: State, identity: Identity, said: Arguments
) -> str | None:
    """Rename both databases in one transaction; return the old one's new name.

    Nobody is let into the new one from before it is compared until it has its name.
    """
    kept = _suffixed(place.live, f"_before_{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
    into = sql.quoted(place.into)
    try:
        with server.beside(session, place.into, sibling.quiet(session)) as other:
            session.execute(f"ALTER DATABASE {into} ALLOW_CONNECTIONS false")
            ours = [item.connection.info.backend_pid for item in (session, other)]
            _clear(session, place, ours, end_sessions=said.end_sessions)
            _require_same(other, place, state)
        _record(session, place, identity, kept, again=said.again)
        return _renamed(session, place, kept, end_sessions=said.end_sessions)
    except BaseException as error:
        if not session.lost:
            with suppress(psycopg.Error):
                _let_in(session, place.into)
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            raise TargetUnusable(
                "restore.no_right",
                f"this role may not swap the databases: {error.diag.message_primary}",
                f"Run as the owner with CREATEDB (to end sessions: pg_signal_backend); the "
                f"restored database {place.into!r} is complete and waits.",
                sqlstate=error.sqlstate,
            ) from error
        raise


def _let_in(session: Session, name: str) -> None:
    """Open a database again; a stop request waits for that."""
    session.connection.execute(f"ALTER DATABASE {sql.quoted(name)} ALLOW_CONNECTIONS true".encode())


def _clear(session: Session, place: Place, ours: Sequence[int], *, end_sessions: bool) -> None:
    """Make sure that nobody is in the new database; raises TargetUnusable."""
    others = _others(session, place, ours)
    if others and not end_sessions:
        names = ", ".join(f"pid {pid} ({name}, {user})" for pid, name, user, _ in others[:10])
        raise _in_the_way(place, f"{len(others)} sessions are connected: {names}")
    for pid, *_, where in others:
        if where == place.into:
            session.execute("SELECT pg_catalog.pg_terminate_backend(%s::int4)", [pid])
    until = time.monotonic() + LAST_SESSIONS_S
    while left := [
        pid for pid, *_, where in _connected(session, place, ours) if where == place.into
    ]:
        if time.monotonic() >= until:
            raise _in_the_way(place, f"sessions do not end: pid {', '.join(map(str, left))}")
        stop.sleep(0.1)


def _record(session: Session, place: Place, identity: Identity, kept: str, *, again: bool) -> None:
    """Write down which database is about to take the live one's place, by its number.

    It is true once the database of that number has the live one's name, so a swap that fails
    after it needs nothing undone.
    """
    (oid,) = session.execute(_OID, [place.into]).fetchone() or (0,)
    (now,) = session.execute(_NOW).fetchone() or (0.0,)
    at = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")
    said = {"database": place.live, "at": at, "epoch_s": now, "kept_as": kept}
    said["address"] = identity.address
    try:
        store.record_swap(place.source, identity.system, oid, said)
    except OSError as error:
        if not again:
            raise BackupFailed(
                "backup.directory",
                f"the swap cannot be recorded in {place.source.path}: {error.strerror}",
                f"The same command would do it again. Make it writable for user {os.getuid()}, or "
                "go without a record: --again.",
            ) from error


_OID = "SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = %s::name"


def _renamed(session: Session, place: Place, kept: str, *, end_sessions: bool) -> str | None:
    ours = [session.connection.info.backend_pid]
    for attempt in range(1, RENAME_TRIES + 1):
        others = _others(session, place, ours)
        if others and not end_sessions:
            names = ", ".join(f"pid {pid} ({name}, {user})" for pid, name, user, _ in others[:10])
            raise _in_the_way(place, f"{len(others)} sessions are connected: {names}")
        try:
            with history.transaction(session):
                for pid, *_ in others:
                    session.execute("SELECT pg_catalog.pg_terminate_backend(%s::int4)", [pid])
                return _rename(session, place, kept)
        except psycopg.errors.ObjectInUse as error:  # somebody connected in between
            if attempt == RENAME_TRIES:
                said = f"{error.diag.message_primary}: {error.diag.message_detail}"
                raise _in_the_way(place, said) from error
            stop.sleep(0.1 * attempt)
    return None


def _connected(session: Session, place: Place, ours: Sequence[int]) -> list[tuple[Any, ...]]:
    return session.execute(_SESSIONS, [place.live, place.into, list(ours)]).fetchall()


def _others(session: Session, place: Place, ours: Sequence[int]) -> list[tuple[Any, ...]]:
    """Return who is connected to either database, once our own last sessions had time to end."""
    until = time.monotonic() + LAST_SESSIONS_S
    while found := _connected(session, place, ours):
        if time.monotonic() >= until:
            break
        stop.sleep(0.1)
    return found


def _in_the_way(place: Place, what: str) -> TargetUnusable:
    return TargetUnusable(
        "restore.sessions",
        what,
        f"The restored database {place.into!r} is complete and waits. Stop the app and run the "
        "same command again, or add --end-sessions.",
    )


def _rename(session: Session, place: Place, kept: str) -> str | None:
    live, into = sql.quoted(place.live), sql.quoted(place.into)
    before = sibling.described(session, place.live)
    if before:
        session.execute(f"ALTER DATABASE {live} RENAME TO {sql.quoted(kept)}")
    session.execute(f"ALTER DATABASE {into} RENAME TO {live}")
    known = place.own.comment if place.own else None
    comment = before["comment"] if before else known
    said = sql.literal(comment) if comment else "NULL"
    session.execute(f"COMMENT ON DATABASE {live} IS {said}")
    session.execute(f"ALTER DATABASE {live} ALLOW_CONNECTIONS true")
    return kept if before else None
