"""Restore a backup beside the live database and, when asked, put it in its place.

The new database is closed to PUBLIC until its rows are compared. Both renames of a swap are one
transaction, so a swap is done or not; what an interrupted call left is told by the comment on the
new database. That only says what it held then: before an answer and before a swap it is compared
again, for a swap with nobody let in from then on.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import shlex
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import psycopg
import structlog

from preflight.backup import (
    belongings,
    children,
    clients,
    folder,
    inventory,
    manifests,
    new_database,
    parts,
    restored,
    sealing,
    snapshots,
    spool,
    store,
    stores,
    swap,
    take,
)
from preflight.backup.progress import Progress
from preflight.base import console, quoting
from preflight.base.errors import (
    AuthFailed,
    BackupFailed,
    BackupInterrupted,
    BackupUnverified,
    ConfigInvalid,
    Failure,
    NotReady,
    TargetUnusable,
)
from preflight.base.near import nearest
from preflight.server import catalog, dial, lock, ready, sessions

if TYPE_CHECKING:
    from pathlib import Path

    from preflight.backup.manifests import Backup, Bad, Identity, Listed
    from preflight.backup.store import Store
    from preflight.base.config import Config
    from preflight.server.sessions import Session

GONE = "The new database was dropped"
LATEST = "latest"
RIGHTS = "Correct its rights, or run as the user that made it."
AGAIN = "an image with newer files than the backup has applies them again at its next start"
# where nobody is in the way, and who stays in the other keeps CREATE DATABASE waiting
MAINTENANCE = ("postgres", "template1")
LOGIN = "28000"  # no line in pg_hba.conf, or the role itself may not log in
SKIPPED = 10  # entries more that a hint goes without
SHUT = {"42501", "3D000", LOGIN}  # no right to connect, no such database
PROBE_S = 1.0  # what a database is given to let a role in, before any is waited for
HISTORY_S = 5.0  # what a live database is given that is asked for its history alone
NO_SUBSCRIPTIONS = "--no-subscriptions"  # it would take its origin's place at the publisher


# of a history: the newest point that others keep, and when it was noted, in UTC
NewestPoint = Callable[["Session"], tuple[str, str] | None]


def run(config: Config, asked: restored.Asked, newest_point: NewestPoint) -> None:
    """Restore into a new database; with `swap`, rename it into the live one's place.

    `latest` is never older than what `newest_point` says of the live database's history.

    Raises ConfigInvalid (no such backup), BackupUnverified (damaged, or rows differ),
    TargetUnusable (no right, name taken or changed since, sessions in the way, swapped before).
    """
    began = time.monotonic()
    backups, name = stores.named(config, asked.backup)
    there = _sought(backups, name)
    try:
        known = find(there, name, backups.place, config.database, config.only)
    except ConfigInvalid as none:
        if name == LATEST and (last := _point_alone(config, newest_point)):
            unusable = _since(there.bad, last[1], config)
            raise none.retold(ConfigInvalid, hint=_back_to(last, unusable, none)) from none
        raise
    live, into = _names(config, asked.into)
    ways = MAINTENANCE if asked.swap else (MAINTENANCE[0], live, *MAINTENANCE[1:])
    homes = [name for name in ways if name != into and not (asked.swap and name == live)]
    with _home(config, homes or ["template0"]) as session:
        session.look()
        ready.require_writable(session)
        session.prepare()
        lock.acquire(session)
        for each in sorted({into, live} if asked.swap else {into}):  # another app's run has it, too
            lock.acquire_of(session, each)
        whose = take.identity_of(session)[0]
        identity = dataclasses.replace(whose, database=live, schemas=known[-1].schemas)
        source = choose(known, identity)
        newer = _newer(source, known, there.bad, identity) if name == LATEST else []
        place = _place(session, backups, source, live, into, asked)
        if asked.swap:
            _require_of_all(place.source)
        once = asked.swap and not (asked.again or newer)
        if once and swap.swapped_before(session, place, identity):
            return  # a point since is the app's, which was let in
        if name == LATEST:
            point = _point_after(session, live, source, identity, newest_point)
            meant = newer or source.origin[0] == identity.system  # else it is of another database
            _require_newest(source, newer, point, refuse=bool(asked.swap and meant))
        _tell_started(session, place, identity, known)
        with _read(place) as renew:
            state = _there(session, place)
            if state is None:
                state = _made(session, place, renew)
            elif not asked.swap:
                with sessions.beside(session, into, new_database.quiet(session)) as other:
                    restored.require_same(other, place, state)
            _tell_left_out(place)
            kept = swap.swap(session, place, state, identity, asked) if asked.swap else None
            if kept:
                _tell_without(source, kept)
    swapped = {"note": AGAIN} if asked.swap else {}
    structlog.get_logger().info(
        "restore.finished",
        backup=place.source.name,
        database=place.live if asked.swap else place.into,
        kept_as=kept,
        **swapped,
        **({"schemas": place.source.schemas} if place.source.schemas else {}),
        left_out=[f"subscription {name}" for name in place.own.subscriptions] if place.own else [],
        rows=sum(place.rows.values()),
        duration_s=round(time.monotonic() - began, 3),
    )


@contextmanager
def _home(config: Config, homes: Sequence[str]) -> Iterator[Session]:
    """Yield a session on the server, in the first of these databases that lets this role in.

    It is none that is renamed. Raises what the first one was refused with, and says what helps.
    """
    target = dial.with_password(config.target)  # the live one's own may have a password
    probe_s = min(PROBE_S, config.wait_timeout_s)
    refused: list[AuthFailed | TargetUnusable] = []
    with ExitStack() as stack:
        # each is asked once before, as the server may not be there yet, the first is waited for
        for waits, home in itertools.product((False, True), homes):
            if home == homes[0]:
                refused = []
            seconds = config.wait_timeout_s if waits and home == homes[0] else probe_s
            # a new database is looked at as a whole
            other = dataclasses.replace(
                config, target={**target, "dbname": home}, schemas=(), wait_timeout_s=seconds
            )
            try:
                session = stack.enter_context(sessions.connect(other))
            except NotReady:
                if waits:
                    raise
                continue
            except (AuthFailed, TargetUnusable) as failure:
                if failure.problem.sqlstate not in SHUT:
                    raise
                refused.append(failure)
                continue
            session.config = dataclasses.replace(other, wait_timeout_s=config.wait_timeout_s)
            session.deadline = time.monotonic() + config.wait_timeout_s
            yield session
            return
    first = refused[0]
    if all(each.problem.sqlstate == LOGIN for each in refused):
        raise first
    raise first.retold(
        type(first),
        hint=f"A restore goes through another database of the server, and this role gets into none "
        f"of {', '.join(homes)}. GRANT CONNECT ON DATABASE {quoting.name(homes[0])} TO it, with a "
        "line in pg_hba.conf that lets it in there; where it is gone, CREATE DATABASE makes it.",
    ) from first


def _names(config: Config, into: str | None) -> tuple[str, str]:
    live = config.database
    target = into or restored.suffixed(live, "_restored")
    if target == live or len(target.encode()) > restored.NAME_BYTES:
        own = "is the live database's own name"
        reason = own if target == live else "is longer than 63 bytes"
        raise ConfigInvalid(
            "config.arguments",
            f"--into {target!r} {reason}",
            "A restore goes beside it, under another name; --swap alone puts it in its place, or "
            "makes it where there is none.",
        )
    return live, target


def _place(  # noqa: PLR0913, PLR0917 -- from where to where
    session: Session, backups: Store, source: Backup, live: str, into: str, asked: restored.Asked
) -> restored.Place:
    """Return where it goes with what belongs to it: as the backup says, else as the live one has.

    Raises BackupUnverified when the manifest says what no version of ours has written.
    """
    try:
        own = belongings.of_manifest(sealing.belongings_of(source, asked.identity_file))
    except ValueError as wrong:
        raise BackupUnverified(
            "backup.corrupt",
            f"{source.name} cannot be used: `{wrong}` in its manifest is not one of ours",
            _another(backups),
        ) from wrong
    own = own or belongings.read(session, live)
    return restored.Place(
        backups,
        source,
        live,
        into,
        own,
        asked.without,
        tuple(asked.skip),
        asked.no_owner,
        asked.identity_file,
    )


# which backup


def _another(backups: Store) -> str:
    """Return what helps where a backup is not what was written."""
    where = "what else writes to the bucket" if backups.remote else "the disk"
    return f"Use another backup (`backups --table`) and check {where}."


def _sought(backups: Store, name: str) -> Listed:
    """Return the backup of that very name alone, for what lies beside it is no matter; else all.

    Raises ConfigInvalid, BackupUnverified, BackupFailed.
    """
    called = [] if name == LATEST else _called(backups, name)
    return manifests.Listed(called, []) if called else _listed(backups)


def _listed(backups: Store) -> Listed:
    """Return what is there; raises BackupFailed."""
    try:
        return backups.listed()
    except OSError as error:
        store.require_reached(backups, error)
        raise BackupFailed(
            "backup.directory",
            f"the backups in {backups.place} cannot be read: {error.strerror}",
            RIGHTS
            if isinstance(error, PermissionError)
            else "Set PREFLIGHT_BACKUP_DIR, or mount the volume.",
        ) from error


def find(
    there: Listed, name: str, place: str, database: str, schemas: Sequence[str] = ()
) -> list[Backup]:
    """Return what a name or `latest` of a database may mean, the oldest first.

    `latest` is of all schemas, or of those that PREFLIGHT_SCHEMAS names.

    Raises ConfigInvalid (there is none).
    """
    known = there.whole
    if name == LATEST:
        whose = (database, tuple(schemas))
        found = [item for item in known if (item.manifest.database, item.schemas) == whose]
    else:
        found = [item for item in known if item.name == name] or _begun(known, name, place)
    if found:
        return found
    store.warn_of(there.bad)
    near = nearest(name, [LATEST, *(item.name for item in known)])
    bad = console.some([f"{item.name} ({item.why})" for item in there.bad])
    usable = f" that can be used: {bad}" if bad else ""
    hint = "See `backups --table`." if known else f"That directory holds no backup{usable}."
    which = ""
    if name == LATEST:
        near, which = None, f" of the database {database!r}"
        of = sorted({item.manifest.database for item in known if item.manifest.database})
        if database in of:
            hint = "There are some of other schemas (PREFLIGHT_SCHEMAS): see `backups --table`."
        elif of:
            hint = (
                f"There are some of {console.some(of)}: name that database (PGDATABASE, or what "
                "you say it with), which need not be there, or a backup: see `backups --table`."
            )
    raise ConfigInvalid(
        "config.arguments",
        f"there is no backup {name!r}{which} in {place}",
        f"Did you mean {near}? {hint}" if near and known else hint,
    )


def _begun(known: Sequence[Backup], name: str, place: str) -> list[Backup]:
    """Return the one backup whose name begins so; raises ConfigInvalid when there are several."""
    found = [item for item in known if name and item.name.startswith(name)]
    if len(found) > 1:
        raise ConfigInvalid(
            "config.arguments",
            f"{len(found)} backups in {place} begin with {name!r}: "
            f"{console.some([item.name for item in found])}",
            "Say more of the name.",
        )
    return found


def _called(backups: Store, name: str) -> list[Backup]:
    """Return the backup of that very name, if anything is called so.

    Raises BackupUnverified (it is not whole), BackupFailed (it cannot be read).
    """
    try:
        return [backups.read(name)] if name else []
    except OSError as error:  # nothing is called so, or no file can be
        store.require_reached(backups, error)
        return []
    except manifests.Withheld as why:
        raise BackupFailed(
            "backup.directory",
            f"nobody knows whether {name} is whole: {why}",
            f"{RIGHTS} Where it is no matter of rights, see to the volume and run again.",
        ) from why
    except manifests.Unreadable as why:
        raise BackupUnverified(
            "backup.corrupt",
            f"{name} is no whole backup: {why}",
            _another(backups),
        ) from why


def choose(known: Sequence[Backup], identity: Identity) -> Backup:
    """Return the newest of this server's backups, or of the only others; raises ConfigInvalid.

    On a new server none is its own: then all must be from one place, as they are of one database.
    """
    if ours := identity.ours(known):
        return ours[-1]
    places = manifests.origins(known)
    if len(places) == 1:
        return known[-1]
    each = [f"{items[-1].name} {_from(origin)}" for origin, items in places.items()]
    raise ConfigInvalid(
        "config.arguments",
        f"`latest` may be of {len(places)} servers, and none is this one "
        f"({identity.system} at {identity.address}): the newest of each are {'; '.join(each)}",
        "Name the one that you want: `restore NAME`.",
    )


def _point_alone(config: Config, newest_point: NewestPoint) -> tuple[str, str] | None:
    """Return name and time of the live database's newest point, if it can be asked at once."""
    soon = dataclasses.replace(config, wait_timeout_s=min(PROBE_S, config.wait_timeout_s))
    with suppress(Failure, psycopg.Error), sessions.connect(soon) as session:
        session.look()
        return newest_point(session)
    return None


def _since(bad: Sequence[Bad], at: str, config: Config) -> list[str]:
    """Name the backups that may be of this database, and not older, and that cannot be used."""
    identity = manifests.Identity("", config.database, schemas=tuple(config.only))

    def taken(item: Bad) -> str | None:
        said = item.said.snapshot_at if item.said else None
        return said or _moment(identity.stamp(item.name))

    meant = [item for item in bad if identity.meant(item) and (taken(item) or at) >= at]
    return [f"{item.name} ({item.why})" for item in meant]


def _back_to(point: tuple[str, str], newer: Sequence[str], none: ConfigInvalid) -> str:
    """Return what helps where there is no dump, but a point that others keep."""
    name, at = point
    kept = f"A point of {at[:19]}Z is kept by another tool: `restore {shlex.quote(name)}` says how"
    if not newer:
        return f"{kept} to come back. {none.problem.hint}"
    return (
        f"Newer than what others keep, and of no use as it is: {console.some(newer)}. {RIGHTS} "
        f"Where it is no matter of rights, see to the volume. {kept} to come back to that."
    )


def _point_after(
    session: Session, live: str, source: Backup, identity: Identity, newest_point: NewestPoint
) -> str | None:
    """Name the newest point that the live database notes, if it is newer than a backup.

    None where there is no such database, or it does not let this role read that.
    """
    found = new_database.described(session, live)
    (may,) = session.execute(_MAY_CONNECT, [live]).fetchone() or (False,)
    if found is None or not found.open or not may:
        return None
    wait_s = min(HISTORY_S, session.config.wait_timeout_s)
    soon = dataclasses.replace(session.config, wait_timeout_s=wait_s)
    point, called = None, sessions.application_name(f"reads history {os.urandom(4).hex()}")
    with (
        suppress(Failure, psycopg.Error),
        sessions.beside(session, live, new_database.quiet(session), soon, called) as other,
    ):
        point = newest_point(other)
    new_database.end_called(session, live, called)  # or it would be in the way of the swap
    taken = source.manifest.snapshot_at or _moment(identity.stamp(source.name))
    return point[0] if point and taken and point[1] > taken else None


_MAY_CONNECT = """
SELECT pg_catalog.has_database_privilege(d.oid, 'CONNECT')
FROM pg_catalog.pg_database d WHERE d.datname = %s::name
"""


def _moment(stamp: str | None) -> str | None:
    """Return the time of a backup's name as manifests and histories have theirs, to be compared."""
    if stamp is None:
        return None
    return f"{stamp[:4]}-{stamp[4:6]}-{stamp[6:11]}:{stamp[11:13]}:{stamp[13:]}"


def _newer(
    source: Backup, known: Sequence[Backup], bad: Sequence[Bad], identity: Identity
) -> list[str]:
    """Name what may be meant by `latest` as well, and is newer.

    Of this database under another address, which a copy of its server has as well, or one that
    cannot be used.
    """
    system, taken = source.manifest.system_identifier, identity.stamp(source.name) or ""
    there = dataclasses.replace(identity, system=system)
    later = known[known.index(source) + 1 :]
    newer = [f"{item.name} {_from(item.origin)}" for item in later if item.origin[0] == system]
    return newer + [
        f"{item.name} (cannot be used: {item.why})"
        for item in bad
        if there.meant(item) and (at := identity.stamp(item.name)) and at >= taken
    ]


def _require_newest(
    source: Backup, newer: Sequence[str], point: str | None, *, refuse: bool
) -> None:
    """Refuse, else warn, where newer ones than `latest` are there, or a point that others keep.

    Raises ConfigInvalid.
    """
    newer = [*newer, f"{point} (kept by another tool)"] if point else newer
    if not newer:
        return
    back = f"; `restore {shlex.quote(point)}` says how to come back to the point" if point else ""
    what = f"`latest` is {source.name}, and newer ones may be meant: {console.some(newer)}"
    if refuse:
        raise ConfigInvalid(
            "config.arguments",
            what,
            f"Name the one that you want: `restore {source.name} --swap` takes the older one"
            f"{back}.",
        )
    structlog.get_logger().warning("config.warned", warning=f"{what}{back}")


def _from(origin: tuple[str, str]) -> str:
    system, where = origin
    return f"(of server {system or 'unknown'}{f' at {where}' if where else ''})"


def _tell_started(
    session: Session, place: restored.Place, identity: Identity, known: Sequence[Backup]
) -> None:
    """Say what is restored; a backup of another server or database is a warning."""
    log, source = structlog.get_logger(), place.source
    live = belongings.read(session, place.live)
    differs = place.own.differing(live) if place.own and live else []
    unknown = {"settings"} if sealing.is_closed(source, place.identity_file) else set()
    data = {
        "backup": source.name,
        "database": place.into,
        "differs": [each for each in differs if each not in unknown],
        "without": sorted(place.without),
    }
    if source in identity.ours(known):
        log.info("restore.started", **data)
        return
    whose = source.manifest.database
    log.warning(
        "restore.started",
        **data,
        reason=f"it is a backup of {whose} {_from(source.origin)}, and this is {place.live} "
        f"{_from((identity.system, identity.address))}",
    )


def _tell_without(source: Backup, kept: str) -> None:
    """Say what the live database has no more, because no dump has it."""
    told = {manifests.NOT_GIVEN, catalog.SWITCHED, catalog.PENDING, catalog.INVALID}
    without = [each for each in source.manifest.without if each.why not in told]
    if without:
        named = console.some([f"{each.what} ({each.why})" for each in without])
        structlog.get_logger().warning(
            "config.warned", warning=f"only {kept!r} has what the backup is without: {named}"
        )


def _tell_skipped(along: Sequence[str], several: Mapping[str, Sequence[str]]) -> None:
    """Say what is left out besides what `--skip` names, or by a word that means more than one."""
    log = structlog.get_logger()
    if along:
        log.warning(
            "config.warned", warning=f"left out with what --skip names: {console.some(along)}"
        )
    for word, entries in several.items():
        log.warning(
            "config.warned",
            warning=f"--skip {shlex.quote(word)} leaves out {len(entries)} entries: "
            f"{console.some(entries)}; with its schema one is meant alone",
        )


def _tell_left_out(place: restored.Place) -> None:
    """Say what it is without by `--without`, and that PUBLIC may be locked out for good."""
    if place.own and "settings" in place.without and (left := place.own.settled):
        structlog.get_logger().warning(
            "config.warned",
            warning=f"{place.into!r} is without its settings {console.some(left)}: ALTER DATABASE "
            "… SET, and for a role's ALTER ROLE … IN DATABASE … SET, gives it those that it needs",
        )
    if place.own is None or "grants" in place.without:
        structlog.get_logger().warning(
            "config.warned",
            warning=f"who may connect to {place.into!r} is not known: nobody but its owner may. "
            f"GRANT CONNECT ON DATABASE … TO …; PUBLIC is let in as in a new database by GRANT "
            "CONNECT, TEMPORARY ON DATABASE … TO PUBLIC.",
        )


@contextmanager
def _read(place: restored.Place) -> Iterator[Callable[[], None]]:
    """Keep the backup from being pruned meanwhile."""
    try:
        with place.store.reading(place.source.name) as renew:
            yield renew
    except OSError as error:
        store.require_reached(place.store, error)
        raise BackupFailed(
            "backup.directory",
            f"{place.at} cannot be read: {error.strerror}",
            f"{RIGHTS} If another run has just removed it, choose another one (`backups --table`).",
        ) from error


def _require_of_all(source: Backup) -> None:
    """Refuse to put some schemas in the place of a whole database; raises TargetUnusable."""
    if source.schemas:
        raise TargetUnusable(
            "restore.partial",
            f"{source.name} is of the schemas {', '.join(source.schemas)} alone: in the live "
            "database's place all others would be gone",
            "Restore it beside the live database, with --into, and copy from there.",
        )


def _require_whole(place: restored.Place) -> None:
    source = place.source
    said = {"rows": source.manifest.rows, "sha256": source.manifest.sha256}
    if missing := [name for name, value in said.items() if value is None]:
        raise BackupUnverified(
            "backup.corrupt",
            f"{source.name} cannot be compared: its manifest lacks {' and '.join(missing)}",
            "Use another backup (`backups --table`).",
        )
    wanted = source.manifest.stored
    if folder.digest_of(place.store, source.name, wanted) != wanted.sha256:
        raise BackupUnverified(
            "backup.corrupt",
            f"{source.name} is not what was written: its hash differs from the manifest's",
            _another(place.store),
        )


# the new database


def _there(session: Session, place: restored.Place) -> restored.State | None:
    """Return what an earlier call restored there; drop what one left half done."""
    found = new_database.described(session, place.into)
    if found is None:
        return None
    comment = found.comment or ""
    if comment == restored.UNFINISHED or found.newborn:
        try:
            new_database.drop(session, place.into)
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
    said = restored.SAID.fullmatch(comment)
    held = said if said and said["name"] == place.source.name else None
    if held and held["own"] and held["left_out"] == place.left_out:
        if not found.open:  # a swap was killed
            swap.let_in(session, place.into)
        return restored.State(int(held["xid"]), held["objects"], held["own"])
    what = f"is the restore of {said['name']}" if said else "is not ours"
    hint = "Choose another name with --into, or drop it."
    if held and held["left_out"]:
        what += ", made with other options (--without, --skip, --no-owner)"
        hint = f"Say the same options again. Else: {hint[0].lower()}{hint[1:]}"
    elif held:
        what += " by an older version, which left nothing to compare it with"
    raise TargetUnusable(
        "restore.exists", f"the database {place.into!r} exists already and {what}", hint
    )


def _made(session: Session, place: restored.Place, renew: Callable[[], None]) -> restored.State:
    """Make the database, fill it, compare it, and give it what belongs to it."""
    manifest = place.source.manifest
    if manifest.sealed:  # before all of it is read
        sealing.require_openable(place.source, place.identity_file, session.config.spool_dir)
    elif why := place.store.unspooled(manifest.size_bytes):
        raise BackupFailed("backup.spool", why, spool.HINT)
    _require_whole(place)
    _require_roles(session, place)
    with _dump(session, place) as dump:
        _require_meant(session, place, dump)
        with _new_database(session, place):
            state = _fill(session, place, dump, renew)
            with sessions.transaction(session):  # a half-done template could not be dropped
                belongings.give(session, place.commands, early=False)
                state = dataclasses.replace(state, own=restored.own_of(session, place))
                new_database.say(session, place.into, state.mark(place))
    return state


@contextmanager
def _dump(session: Session, place: restored.Place) -> Iterator[Path]:
    """Yield the dump as a file that pg_restore reads, opened if it is sealed."""
    with ExitStack() as stack:
        if place.source.manifest.sealed:
            spool, key = session.config.spool_dir, place.identity_file
            opened = sealing.opened(place.store, place.source, key, spool)
            path = stack.enter_context(opened)
        else:
            with store.usable(place.store):
                local = place.store.local(place.source.name, place.source.manifest.stored.file)
                path = stack.enter_context(local)
        yield path


def _require_meant(session: Session, place: restored.Place, dump: Path) -> None:
    """Refuse a word of --skip that means nothing: what it should leave out would be there."""
    if not place.skip:
        return
    manifest = place.source.manifest
    held = [*manifest.extensions, *(manifest.partial.extensions if manifest.partial else ())]
    made = {f"EXTENSION {each.name}" for each in held}  # by us, and in no archive
    programs, environment = clients.clients(session.config, session), session.config.child_env
    said = [each for each in place.skip if each not in made]
    try:
        found = clients.unmeant(dump, programs, environment, said)
    except children.ClientFailed:  # so will pg_restore, and say why
        return
    if found:
        words = console.some([shlex.quote(word) for word, _ in found])
        slips = [shlex.quote(entry) for _, entry in found if entry]
        advice = f"Did you mean {console.some(slips)}? " if slips else ""
        raise ConfigInvalid(
            "config.arguments",
            f"--skip {words} means no entry of {place.source.name}",
            f"{advice}`pg_restore --list` names all entries of a dump. Nothing was restored.",
        )


@contextmanager
def _new_database(session: Session, place: restored.Place) -> Iterator[None]:
    """Make the database, closed to everybody else; drop it again when what follows fails."""
    problems = _create(session, place)
    try:
        _require_had(session, place, problems + belongings.refused(session, place.commands))
        yield
    except BaseException as error:
        if not session.lost and not _drop(session, place.into) and isinstance(error, Failure):
            error.say_instead(GONE, f"The new database {place.into!r} could not be dropped")
        raise


def _create(session: Session, place: restored.Place) -> list[belongings.Refused]:
    """Make the database; return what of it cannot be had here. Raises TargetUnusable."""
    major = session.facts.major if session.facts else 0
    problems: list[belongings.Refused] = []
    without = place.without
    if (
        place.own
        and "tablespace" not in without
        and (why := belongings.no_place(session, place.own))
    ):
        problems.append(belongings.Refused(why))
        without |= {"tablespace"}
    own = place.own
    rules = own.rules(major) if own and "locale" not in without else None
    tablespace = own.tablespace if own and "tablespace" not in without else None
    try:
        new_database.create(session, place.into, rules, tablespace, restored.UNFINISHED)
    except psycopg.errors.InsufficientPrivilege as error:
        raise TargetUnusable(
            "restore.no_right",
            "this role may not create a database",
            "ALTER ROLE … CREATEDB, or run the restore as a role that may.",
            sqlstate=error.sqlstate,
        ) from error
    except restored.TEXT_RULES as error:
        if own is None:
            raise
        asked = (own.encoding, own.lc_collate, own.lc_ctype, own.locale_provider, own.locale)
        said = f"text rules {' '.join(filter(None, asked))}: {error.diag.message_primary}"
        problems.append(belongings.Refused(said, error.sqlstate))
        _require_had(session, place, problems)
    return problems


_ASKS_FOR_ADMIN = 16  # major version from which CREATEROLE alone changes no other role
# by the first word of what is refused: which part of `--without` it is of
_PARTS = {
    "tablespace": "tablespace", "owner": "grants", "grant": "grants", "revoke": "grants",
    "setting": "settings", "template": "settings", "text": "locale",
}  # fmt: skip
_MEANING = {
    "grants": "grants: also the owner",
    "locale": "locale: text is encoded and sorted as in any new database here, not as it was",
}


def _option(place: restored.Place, parts_of_it: Collection[str]) -> str:
    """Return the whole option that leaves out these parts, too, and what some of them mean."""
    named = [each for each in dict.fromkeys(_PARTS.values()) if each in parts_of_it]
    means = "; ".join(_MEANING[each] for each in named if each in _MEANING)
    whole = [each for each in dict.fromkeys(_PARTS.values()) if each in {*named, *place.without}]
    return f"--without {','.join(whole)}{f' ({means})' if means else ''}"


def _rights(session: Session, problems: Sequence[belongings.Refused]) -> str:
    """Return what gives this role, which owns the new database, what it lacks, as far as known."""
    lacking = [each for each in problems if _no_right(each)]
    named = sorted({each.parameter for each in lacking if each.parameter})
    roles = sorted({each.role for each in lacking if each.role})
    major = session.facts.major if session.facts else 0
    who = ["as the live database's owner"] * any(not (e.parameter or e.role) for e in lacking)
    if roles:
        admin = f" and ADMIN on {', '.join(map(quoting.name, roles))}"
        who.append(f"with CREATEROLE{admin * (major >= _ASKS_FOR_ADMIN)}")
    if named and major < new_database.KNOWS_PARAMETER_RIGHTS:
        return "Run as a superuser"
    if named and session.facts:
        role = quoting.name(session.facts.user)
        each = (f"GRANT SET ON PARAMETER {quoting.parameter(name)} TO {role};" for name in named)
        also = f"and run {' and '.join(who)}; " if who else ""
        return f"Have a superuser say {' '.join(each)} {also}or run as one"
    return f"Run as a superuser, or {' and '.join(who)}" if who else ""


def _no_right(refused: belongings.Refused) -> bool:
    return refused.sqlstate == restored.NO_RIGHT


def _require_had(
    session: Session, place: restored.Place, problems: Sequence[belongings.Refused]
) -> None:
    """Refuse, before a row is restored, what this server cannot give; raises TargetUnusable."""
    if not problems:
        return
    what = f"what belongs to it: {'; '.join(each.text for each in problems)}"
    words = [each.text.split(" ")[0] for each in problems]
    refused = {_PARTS[word] for word in words if word in _PARTS}
    rights = f"{said}. " if (said := _rights(session, problems)) else ""
    out = f"leave it out: {_options(place, parts_of_it=refused)}. " if refused else ""
    advice = f"{out}Nothing was restored."
    if all(map(_no_right, problems)):
        raise TargetUnusable(
            "restore.no_right",
            f"this role may not give the new database {what}",
            f"{rights}{'Or ' if out else ''}{advice}",
            sqlstate=restored.NO_RIGHT,
        )
    raise TargetUnusable(
        "restore.lacking",
        f"the new database cannot have {what}",
        "Make it on this server (CREATE ROLE, CREATE TABLESPACE, locales)"
        f"{', or ' if out else '. '}{advice} {rights}".rstrip(),
        sqlstate=problems[0].sqlstate,
    )


def _drop(session: Session, name: str) -> bool:
    """Drop what failed, and tell whether that went; that it did not must not hide why."""
    try:
        new_database.drop(session, name)
    except psycopg.Error as error:
        structlog.get_logger().warning(
            "config.warned",
            warning=f"the database {name!r} could not be dropped: "
            f"{error.diag.message_primary or error}",
        )
        if session.lost:  # nobody can say that the live one was not touched
            raise
        return False
    return True


def _fill(
    session: Session, place: restored.Place, dump: Path, renew: Callable[[], None]
) -> restored.State:
    """Run pg_restore and compare every table's rows with the manifest."""
    jobs = new_database.jobs(session)
    # a login event trigger, for one, would write into what is compared
    quiet = new_database.filling(session)
    with ExitStack() as stack:
        options = [NO_SUBSCRIPTIONS, *(new_database.BARE if place.no_owner else ())]
        options += ["--no-tablespaces"] if "tablespace" in place.without else []
        programs, environment = clients.clients(session.config, session), session.config.child_env
        if place.skip:
            left = clients.list_skipping(dump, programs, environment, place.skip)
            try:
                path, along, several = stack.enter_context(left)
            except children.ClientFailed as failure:  # as `_refuse` has it of pg_restore itself
                _refuse([new_database.Complaint(str(failure))], place=place)
                raise
            options.append(f"{clients.USE_LIST}{path}")
            _tell_skipped(along, several)
        expected = place.source.manifest.database_bytes
        told = stack.enter_context(Progress("restore.progressed", "expected_bytes", expected))

        part = place.source.manifest.partial

        def begin() -> None:
            belongings.give(session, place.commands, early=True)
            _stripped(session, place, quiet)
            _extended(session, place, quiet)

        def anew() -> None:
            new_database.make_anew(session, place.into)
            begin()

        begin()

        def tick() -> None:
            renew()  # the backup stays ours meanwhile
            told.tell(partial(new_database.size_of, session, place.into))

        code, problems = new_database.fill(
            session,
            place.into,
            dump,
            jobs,
            *options,
            settings=quiet,
            tick=tick,
            anew=anew,
            there=parts.there(part)
            | {each.schema for each in parts.dated(session, place.source.manifest.extensions)},
        )
        lines: list[bytes] = []
        try:
            lines = clients.asked_for(dump, programs, environment, options)
        except children.ClientFailed as failure:  # so has pg_restore, as a rule, and says why
            problems = problems if code else [new_database.Complaint(str(failure))]
    _require_reached(session, place, code, problems)
    _require_room(problems)
    strict = _without_outside(parts.marked(problems, part), part)
    with sessions.beside(session, place.into, quiet) as other:
        others = new_database.theirs(other) if strict else set()
        _require_clean(code if strict or not problems else 0, strict, others, place=place)
        _require_listed(other, place, lines, problems)
        _switch(other, place)
        different = snapshots.differing(other, place.rows)
        new_database.analyze(other)
        objects = restored.objects_of(other)
        (xid,) = other.execute("SELECT pg_catalog.txid_current()").fetchone() or (0,)
    if different:
        raise BackupUnverified(
            "restore.rows_differ",
            f"{len(different)} tables differ from the manifest: {'; '.join(different[:5])}",
            f"{GONE}; the live one was not touched.",
        )
    return restored.State(xid, objects)


def _require_reached(
    session: Session, place: restored.Place, code: int, problems: list[new_database.Complaint]
) -> None:
    """Make sure that pg_restore's connections were made, and were kept; raises Failure."""
    words = "; ".join(each.text for each in problems if each.sort == "archive")
    refused = words and children.hope_of(code, words) == "passing"
    if not refused and not any(problem.lost for problem in problems):
        return
    session.execute("SELECT 1")  # a server that went away says so here
    with sessions.beside(session, place.into):  # and one that lets nobody in says so here
        pass
    raise BackupInterrupted(
        "restore.client",
        f"a connection of pg_restore was refused or lost: {problems[0].text}",
        "Run again; the live database was not touched.",
    )


def _require_room(problems: Sequence[new_database.Complaint]) -> None:
    """Make sure that nothing failed for want of room, or by a limit; raises TargetUnusable."""
    for problem in problems:
        if problem.no_room or problem.limited:
            why = "has no room for it" if problem.no_room else "has a limit that is in the way"
            raise TargetUnusable(
                "restore.no_room",
                f"the backup cannot be restored here: the server {why}: {problem.text}",
                f"Make room or raise the limit, and run again. {GONE}; the live one was not "
                "touched.",
            )


def _stripped(session: Session, place: restored.Place, quiet: Mapping[str, str]) -> None:
    """Drop what the live database had dropped; say what this role cannot.

    Whatever a pg_dump from 15 on does not grant on the schema public is not to be there, also of a
    backup that does not say so.
    """
    manifest, lacks = place.source.manifest, set(place.source.manifest.lacks)
    part, old = manifest.partial, new_database.PUBLIC_CLOSED
    if (
        _major_of(manifest.pg_dump) >= old
        and not place.no_owner
        and (part is None or "public" in part.schemas)
        and session.facts is not None
        and session.facts.major < old
    ):
        lacks.add(new_database.OPEN)
    if not lacks:
        return
    with sessions.beside(session, place.into, quiet) as inside:
        before, _ = new_database.is_open(inside)
        left = new_database.strip(inside, lacks)
        closed = before and new_database.OPEN in lacks and new_database.OPEN not in left
    if closed and place.no_owner:
        structlog.get_logger().warning(
            "config.warned",
            warning=f"{place.into!r} has no {new_database.OPEN}, as the live database, and gives "
            "it to nobody else without owners and rights: GRANT CREATE ON SCHEMA public TO who "
            "needs it",
        )
    if left := [each for each in left if each in manifest.lacks]:
        structlog.get_logger().warning(
            "config.warned",
            warning=f"{place.into!r} has {' and '.join(left)}, which the live database had not: "
            "a superuser may take it away",
        )


def _major_of(version: str | None) -> int:
    """Return the major version that a program's words name; 0 where there is none."""
    found = re.search(r"\d+", version or "")
    return int(found[0]) if found else 0


def _extended(session: Session, place: restored.Place, quiet: Mapping[str, str]) -> None:
    """Make the extensions that a dump does not, or in another version; raises TargetUnusable."""
    part, held = place.source.manifest.partial, place.source.manifest.extensions
    wanted = part.extensions if part else parts.dated(session, held)
    if not wanted:
        return
    skipped = {entry.partition(" ")[2] for entry in place.skip if entry.startswith("EXTENSION ")}
    with sessions.beside(session, place.into, quiet) as inside:
        lacking = parts.make(inside, wanted)
    if named := [f"{name}: {why}" for name, why in lacking.items() if name not in skipped]:
        skip = _options(place, entries=[f"EXTENSION {name}" for name in lacking])
        raise TargetUnusable(
            "restore.lacking",
            f"this server or role cannot have the extension {console.some(named)}",
            f"Install it, or go without: {skip}. {GONE}; the live one was not touched.",
        )


def _without_outside(
    problems: list[new_database.Complaint], part: manifests.Part | None
) -> list[new_database.Complaint]:
    """Return what is not explained by what a backup leaves out; of that, tables are no trifle."""
    beside = [p for p in problems if p.outside and not p.entry.startswith(("TABLE ", "SEQUENCE"))]
    if beside and part:
        names = list(dict.fromkeys(problem.entry.strip() for problem in beside))
        structlog.get_logger().warning(
            "config.warned",
            warning=f"restored, but without {console.some(names)} ({beside[0].text}): the backup "
            f"is of the schemas {', '.join(part.schemas)} alone",
        )
    return [problem for problem in problems if problem not in beside]


def _require_roles(session: Session, place: restored.Place) -> None:
    """Name every role that the backup needs and this server lacks; raises TargetUnusable.

    Those of the database itself, too, where there are others: what it belongs to is in no archive.
    """
    inside = set(place.source.manifest.roles)
    of_itself = place.own.roles(place.without) if place.own else {}
    wanted = sorted(inside.union(*of_itself.values()))
    missing = {role for (role,) in session.execute(_MISSING, [wanted]).fetchall()}
    if not place.no_owner and missing & inside:
        out = {part for part, roles in of_itself.items() if missing & roles}
        options = _options(place, bare=True, parts_of_it=out)
        names = [quoting.name(role) for role in sorted(missing)]
        ours = [f"CREATE ROLE {name};" for name in names if not name.startswith("pg_")]
        raise TargetUnusable(
            "restore.lacking",
            f"this server lacks {len(names)} roles of the backup: {console.some(names)}",
            f"{' '.join([*ours[:10], 'or go'] if len(ours) == len(names) else ['Go'])} without "
            f"owners and rights: {options}. Nothing was restored.",
        )


_MISSING = """
SELECT w.name FROM pg_catalog.unnest(%s::text[]) w (name)
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.rolname = w.name::name) ORDER BY 1
"""


def _refuse(
    problems: Sequence[new_database.Complaint],
    others: Collection[tuple[str, str]] = (),
    *,
    place: restored.Place,
) -> None:
    """Say whose lack it is: this server's and role's, the client's, or the backup's."""
    gone = f"{GONE}; the live one was not touched."
    words = "; ".join(problem.text for problem in problems)
    if why := clients.unable(words):
        raise BackupFailed(
            "backup.client_too_old",
            f"this pg_restore cannot read the backup: {why}",
            f"Use a client of the version that made it, or newer. {gone}",
        )
    programs = [problem for problem in problems if problem.sort == "program"]
    sorts = ("right", "content") if place.skip else ("right",)  # what needs what was left out
    lacking = programs or [
        problem
        for problem in problems
        if problem.sort in sorts  # `others` own what this role may not fill
        or (problem.sort == "content" and problem.touches(problem.entry.split(), others))
    ]
    if not lacking or any(problem.sort == "archive" for problem in problems):
        raise BackupUnverified(
            "restore.failed",
            f"pg_restore reports: {'; '.join(problem.text for problem in problems[:3])}",
            gone,
        )
    placeless = [problem for problem in lacking if problem.no_tablespace]
    lacking = placeless or lacking
    roles = sorted({role for each in lacking for role in _ROLE.findall(each.text)})
    ours = " ".join(f"CREATE ROLE {quoting.name(role)};" for role in roles)
    advice = f"{ours} or " if roles else ""
    what = dict.fromkeys(f"{each.entry.rstrip()}: {each.text}" for each in lacking)
    out = _options(place, entries=[each.whole for each in lacking])
    bare = "" if place.no_owner else f"{_options(place, bare=True)} leaves owners and rights out, "
    advice += f"go without: {bare}{out} leaves entries out"
    advice += ", or run as a superuser." if all(map(_forbidden, lacking)) else "."
    if placeless:
        advice = (
            "Make the tablespace here (CREATE TABLESPACE, GRANT CREATE ON TABLESPACE), or let all "
            f"lie in the default one: {_options(place, parts_of_it=['tablespace'])}."
        )
    raise TargetUnusable(
        "restore.lacking",
        f"this server or role cannot have {console.some(list(what))}",
        f"{advice} {gone}",
    )


def _options(
    place: restored.Place,
    *,
    bare: bool = False,
    parts_of_it: Collection[str] = (),
    entries: Sequence[str] = (),
) -> str:
    """Return all that the next call is to leave out: what was said, and more, each once.

    `bare`: owners and rights; `parts_of_it`: of what belongs to the database.
    """
    said = place.skip
    more = dict.fromkeys(each.strip() for each in entries if each.strip() not in said)
    skips = [f"--skip {shlex.quote(each)}" for each in [*said, *list(more)[:SKIPPED]]]
    without = [_option(place, parts_of_it)] if parts_of_it or place.without else []
    return " ".join([*["--no-owner"] * (bare or place.no_owner), *skips, *without])


_ROLE = re.compile(r'role "([^"]+)" does not exist')
_FORBIDDEN = re.compile(r"permission denied|must be (?:owner|superuser|member|able)")


def _forbidden(problem: new_database.Complaint) -> bool:
    """Tell whether a right is all that is lacking, where the server speaks English."""
    return _FORBIDDEN.search(problem.said) is not None


def _require_clean(
    code: int,
    problems: list[new_database.Complaint],
    others: Collection[tuple[str, str]],
    *,
    place: restored.Place,
) -> None:
    """Make sure that pg_restore did all of it; raises BackupUnverified, BackupInterrupted.

    A materialised view that cannot be filled now is a warning: its rows are in no dump. So is an
    index that cannot be built.
    """
    views = [problem for problem in problems if problem.sort == "refresh"]
    rest = [problem for problem in problems if problem not in views]
    if left := [problem for problem in rest if not problem.rebuilt]:
        _refuse(left, others, place=place)
    if code != 0 and not problems:
        raise BackupInterrupted(
            "restore.client",
            f"pg_restore ended with {code}, without a word",
            "Run again; the live database was not touched.",
        )
    names = [problem.entry.removeprefix(f"{new_database.REFRESH} ") for problem in views]
    _warn("filled", views, names, "remove the cause and REFRESH MATERIALIZED VIEW")
    names = [problem.entry for problem in rest]
    _warn("built", rest, names, "name the schema in its functions and CREATE INDEX")


def _switch(other: Session, place: restored.Place) -> None:
    """Switch off what pg_restore has switched on; say what this role cannot, and what else is not.

    A partition whose detaching was pending is one again, with its rows.
    """
    manifest = place.source.manifest
    if again := [each.what for each in manifest.without if each.why == catalog.PENDING]:
        structlog.get_logger().warning(
            "config.warned",
            warning=f"restored, but attached again: {console.some(again)}. On the live database "
            "its detaching was pending: ALTER TABLE … DETACH PARTITION",
        )
    if left := catalog.switch(other, manifest.switched):
        names = list(dict.fromkeys(key.told for key in left))
        structlog.get_logger().warning(
            "config.warned",
            warning=f"restored, but switched on: {console.some(names)}. On the live database it "
            "was off: a superuser may ALTER TABLE … DISABLE TRIGGER",
        )


def _require_listed(
    other: Session,
    place: restored.Place,
    lines: Sequence[bytes],
    problems: Sequence[new_database.Complaint],
) -> None:
    """Make sure that what the archive lists was made, whatever was heard; raises BackupUnverified.

    What pg_restore complained of is told already. Of very many complaints some were not kept.
    """
    if len(problems) >= new_database.KEPT:
        return
    (encoding,) = other.execute("SELECT pg_catalog.getdatabaseencoding()").fetchone() or ("",)
    readable = place.own is not None and place.own.encoding == encoding
    told = {problem.number for problem in problems}
    if missing := inventory.lacking(other, lines, told, readable=readable):
        raise BackupUnverified(
            "restore.failed",
            f"pg_restore said nothing, and the new database lacks {console.some(missing)}",
            f"{GONE}; the live one was not touched. Is the pg_restore on PATH a real and whole "
            "one?",
        )


def _warn(
    lacks: str, problems: Sequence[new_database.Complaint], names: Sequence[str], hint: str
) -> None:
    if problems:
        structlog.get_logger().warning(
            "config.warned",
            warning=f"restored, but not {lacks}: {console.some(names)} ({problems[0].text}); "
            f"{hint}",
        )
