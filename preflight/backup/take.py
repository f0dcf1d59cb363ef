"""Take a backup and read it back: the rows are counted in the very snapshot that is dumped.

`archive` runs the client programs, `store` keeps the directory; here is what the server is asked.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import psycopg
import structlog

from preflight import __version__
from preflight.backup import (
    belongings,
    children,
    clients,
    folder,
    manifests,
    new_database,
    parts,
    reading_back,
    retention,
    sealing,
    snapshots,
    store,
    stores,
)
from preflight.backup.manifests import Backup, Identity, Manifest
from preflight.base import console, stop
from preflight.base.errors import (
    BackupDamaged,
    BackupFailed,
    BackupInterrupted,
    BackupUnverified,
    ConnectionLost,
    DatabaseBusy,
)
from preflight.server import catalog, watch

if TYPE_CHECKING:
    from pathlib import Path

    from preflight.backup.clients import Clients
    from preflight.backup.store import Store
    from preflight.files.migrations import Migration
    from preflight.server.sessions import Session

TOLD = 20  # things that a backup is without, in an event; the manifest has all
ATTEMPTS = 3  # a table dropped at the wrong moment, a server restarted in the middle
_LOCKERS = f"""
SELECT DISTINCT l.relation::pg_catalog.regclass::text, l.pid, a.application_name, p.gid
{watch.HELD} AND l.mode = 'AccessExclusiveLock' AND l.relation >= 16384::oid LIMIT 3
"""


@dataclass(frozen=True, slots=True)
class Taken:
    """A backup that this run made, where, whose it is, and what a copy of it has to show."""

    store: Store
    backup: Backup
    identity: Identity
    witness: snapshots.Witness
    seen: object  # of the dump's file, before its hash was read back
    seal: sealing.Seal
    visible: bool = True  # a plan's is removed afterwards

    @property
    def name(self) -> str:
        """The backup's name."""
        return self.backup.name

    @property
    def place(self) -> str:
        """How people call where it is."""
        return f"{self.store.place}/{self.name}"

    @property
    def lacking(self) -> str | None:
        """Why there is no place for a plain dump that another program could read."""
        if self.seal.spooled:
            return None
        if self.seal.on:
            return self.seal.unspooled
        return self.store.unspooled(self.backup.manifest.size_bytes)

    @contextmanager
    def dump(self) -> Iterator[Path]:
        """Yield its dump, a file or a folder, for another program; raises BackupFailed."""
        if self.seal.spooled:
            yield self.seal.spooled
            return
        with ExitStack() as stack:
            with store.usable(self.store):
                stored = self.backup.manifest.stored.file
                path = stack.enter_context(self.store.local(self.name, stored))
            yield path


def take(
    session: Session,
    todo: Sequence[Migration],
    purpose: str = "up",
    due: Sequence[object] = (),
    after: str | None = None,
) -> Taken | None:
    """Back the database up before `todo`; return None when backups are off.

    `due` is what else it is taken before, as JSON; `after` names the history's last change.

    Raises BackupInterrupted (passing), BackupFailed (change something), BackupUnverified.
    """
    log = structlog.get_logger()
    if session.config.backup == "off":
        log.warning("backup.skipped", reason="PREFLIGHT_BACKUP=off")
        return None
    began = time.monotonic()
    with _made(session, todo, manifests.Purpose(purpose, due, after)) as draft:
        with store.usable(draft.store):
            made = draft.store.publish(draft.name, draft.identity, draft.backup.manifest)
        manifest, rows = made.manifest, made.manifest.rows or {}
        log.info(
            "backup.verified",
            backup=made.name,
            directory=draft.store.place,
            verified=manifest.verified,
            size_bytes=manifest.size_bytes,
            form="folder" if manifest.files else "file",
            tables=len(rows),
            rows=sum(rows.values()),
            sha256=manifest.sha256,
            **({"schemas": made.schemas} if made.schemas else {}),
            **({"sealed_for": manifest.recipients} if manifest.sealed else {}),
            **({"without": manifest.data()["without"][:TOLD]} if manifest.without else {}),
            duration_s=round(time.monotonic() - began, 3),
        )
        with suppress(OSError):
            _prune(session, draft, but=made.name)
    return dataclasses.replace(draft, backup=made, visible=True)


@contextmanager
def draft(session: Session, todo: Sequence[Migration]) -> Iterator[Taken]:
    """Yield a backup that nobody sees and that is gone afterwards; raises what `take` raises."""
    with _made(session, todo, manifests.Purpose("plan")) as made:
        try:
            yield made
        finally:
            made.seal.close()


@contextmanager
def _made(
    session: Session, todo: Sequence[Migration], purpose: manifests.Purpose
) -> Iterator[Taken]:
    """Yield a whole backup under its hidden name; it is removed unless it gets another one."""
    config = session.config
    programs = clients.clients(config, session)
    session.tell("backing up")
    identity, size = identity_of(session)
    own, roles = belongings.read(session, identity.database), parts.roles(session)
    part = parts.look(session)
    files = [{"version": file.version, "checksum": file.checksum} for file in todo]
    backups, seal = stores.of(config), sealing.Seal(config)
    with ExitStack() as stack:
        stack.enter_context(seal.closed_on_failure())
        with store.usable(backups):
            there = backups.listed()
            store.warn_of([each for each in there.bad if identity.meant(each)])
            ours = identity.ours(there.whole)
            newest = ours[-1].manifest if ours else None
            if newest and newest.sealed and not seal.recipients:
                _tell_open(ours[-1].name)
            needed = store.space_needed(newest.size_bytes if newest else None, size)
            seal.expect(newest.size_bytes * 11 // 10 if newest else needed)
            backups.expect(store.most_expected(newest, size))
            name = stack.enter_context(backups.draft(identity, config.run_id, needed))
            into = _Draft(backups, name, programs, seal)
            found, witness, seen = _dumped(session, into, size)
            manifest = dataclasses.replace(
                found,
                version=__version__,
                run_id=config.run_id,
                database=identity.database,
                system_identifier=identity.system,
                address=identity.address,
                timeline=_timeline(session),
                server_version=session.facts.version if session.facts else None,
                pg_dump=programs.version,
                belongings=seal.belongings(own.told()) if own else None,
                taken_for=dataclasses.replace(purpose, pending=[*files, *purpose.pending]),
                verified="read",
                database_bytes=size,
                roles=tuple(roles),
                partial=part,
                extensions=() if part else parts.extensions(session),
                switched=tuple(catalog.switched(session, config.only)),
                lacks=(*_closed(session, part), *(() if part else _lacks(witness))),
            )
        backup = manifests.Backup(name, manifest)
        yield Taken(backups, backup, identity, witness, seen, seal, visible=False)


def _tell_open(sealed: str) -> None:
    """Say that a backup will not be sealed as the one before it was: a variable may be empty."""
    structlog.get_logger().warning(
        "config.warned",
        warning=f"this backup will not be sealed, as {sealed} is: {sealing.RECIPIENTS} is empty or "
        "not set",
    )


def _lacks(witness: snapshots.Witness) -> tuple[str, ...]:
    """Return what of a new database was dropped from the live one."""
    found = {name for name, _ in witness.objects if name in new_database.BROUGHT}
    return tuple(name for name in new_database.BROUGHT if name not in found)


def _closed(session: Session, part: manifests.Part | None) -> tuple[str, ...]:
    """Return the right that a new database gives, where the live one's schema has it no more."""
    major = session.facts.major if session.facts else 0
    there = "SELECT FROM pg_catalog.pg_namespace n WHERE n.nspname = 'public'"
    if major >= new_database.PUBLIC_CLOSED or (part and "public" not in part.schemas):
        return ()
    found = session.execute(there).fetchone() is not None
    return (new_database.OPEN,) if found and not new_database.is_open(session)[0] else ()


def prune(session: Session, saved: Taken) -> None:
    """Let go what is more than BACKUP_KEEP; call once it is known what the newest is worth."""
    saved.seal.close()
    with suppress(OSError):  # the backup is there; what cannot be removed is told by the store
        _prune(session, saved)


def _prune(session: Session, saved: Taken, but: str | None = None) -> None:
    keep, demanded = session.config.backup_keep, session.config.rehearse == "always"
    retention.prune(saved.store, saved.identity, keep, but, proven=demanded)


@contextmanager
def kept(saved: Taken | None) -> Iterator[list[str]]:
    """Take a backup out of view when what is done with it says that it is none.

    Meanwhile no other run lets it go as one too many, where the store can tell who is at work.
    Yields a list for the files that it holds besides; at the end all of it must still be there.
    Raises BackupDamaged.
    """
    beside: list[str] = []
    try:
        with saved.store.holding(saved.name) if saved else nullcontext():
            yield beside
            require_there(saved, beside)
    except BackupUnverified:
        if saved:
            hide(saved)
        raise
    finally:
        if saved:
            saved.seal.close()


def require_there(saved: Taken | None, files: Sequence[str] = (), *, again: bool = False) -> None:
    """Make sure that a backup is still what was verified; raises BackupDamaged.

    The hash is read again only where the dump's file is not as it was seen, or with `again`.
    """
    if saved is None:
        return
    wanted = saved.backup.manifest.stored
    digest, lost = wanted.sha256, None
    try:
        if again or saved.store.stamp(saved.name, wanted.file) != saved.seen:
            digest = folder.digest_of(saved.store, saved.name, wanted)
        there = saved.store.files(saved.name) if files else ()
        gone = [f"{saved.place}/{file}" for file in files if file not in there]
        if digest == wanted.sha256 and saved.visible:
            lost = store.lost(saved.store, saved.backup)
    except OSError as error:
        store.require_reached(saved.store, error)
        gone = [f"{saved.place}/{wanted.file} ({error.strerror})"]
    if digest != wanted.sha256:
        raise BackupDamaged(
            "backup.corrupt",
            f"the dump in {saved.place} is not what was verified a moment ago: its hash differs",
            "Who else writes to the backup directory? Check that, and the disk; the backup is "
            "hidden again, and nothing was migrated.",
        )
    if gone or lost:
        raise BackupDamaged(
            "backup.vanished",
            "the backup that was verified a moment ago is gone: "
            f"{console.some(gone) or f'{saved.place} ({lost})'}",
            "Who else removes files in the backup directory? Nothing was migrated.",
        )


def hide(saved: Taken) -> None:
    """Take a backup out of view that turned out to be none."""
    if saved.visible:
        with store.usable(saved.store):
            saved.store.withdraw(saved.backup, saved.identity)


def identity_of(session: Session) -> tuple[Identity, int]:
    """Return whose backups these are, and how many bytes what they are of has."""
    row = session.execute(
        """SELECT (SELECT system_identifier::text FROM pg_catalog.pg_control_system()),
 pg_catalog.current_database()::text,
 pg_catalog.pg_database_size(pg_catalog.current_database())"""
    ).fetchone()
    system, database, size = row or ("", "", 0)
    only = session.config.only
    whose = manifests.Identity(system, database, _address(session), only)
    return whose, parts.size(session) if only else size


def _address(session: Session) -> str:
    """Return the server's address as it is configured; a service's and a default is libpq's."""
    info, configured = session.connection.info, dict(session.target)
    if not configured.keys() & {"host", "hostaddr"}:
        told = {each.keyword.decode(): each.val or b"" for each in session.connection.pgconn.info}
        configured |= {key: told[key].decode() for key in ("host", "port") if told.get(key)}
    return manifests.address({"host": info.host, "port": str(info.port), **configured})


def _timeline(session: Session) -> int | None:
    """Return the server's timeline, which a failover changes; None where it may not be asked."""
    may = "SELECT pg_catalog.has_function_privilege('pg_catalog.pg_control_checkpoint()','EXECUTE')"
    if (session.execute(may).fetchone() or (False,))[0]:
        query = "SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()"
        return int((session.execute(query).fetchone() or (0,))[0])
    return None


# attempts


@dataclass(slots=True)
class _Draft:
    """Where a dump is written to, and how, once that is known."""

    store: Store
    name: str
    programs: Clients
    seal: sealing.Seal
    way: folder.Way | None = None

    @property
    def file(self) -> str:
        """What it is called there."""
        if self.way and self.way.jobs > 1:
            return manifests.FOLDER
        return self.seal.file(manifests.DUMP)


def _dumped(
    session: Session, into: _Draft, size: int
) -> tuple[Manifest, snapshots.Witness, object]:
    """Write the dump and read it back; return what the manifest says of it, and what else was seen.

    Last comes what its file looked like before its hash was read back.

    A table lock is waited for as long as LOCK_RETRY_S says, and so is who changes what is dumped;
    other passing reasons get ATTEMPTS, and so does he where one takes longer than that.
    """
    began, attempt, said = time.monotonic(), 0, ""
    while True:
        attempt += 1
        try:
            taken_at, seen, written, read = _attempted(session, into, attempt, size)
            break
        except (
            children.ClientFailed,
            psycopg.Error,
            ConnectionLost,
            DatabaseBusy,
            snapshots.Moved,
        ) as error:
            hope, before, said = _hope_of(error), said, str(error).strip()
            hint = getattr(error, "hint", "") or _HINT
            if into.way and (by_one := into.way.after(error)):
                hope, into.way = "passing", by_one
        if hope == "none" or (hope == "unknown" and said == before):
            raise BackupFailed("backup.pg_dump", f"the dump failed: {said}", hint)
        others = _lockers(session)
        patient = time.monotonic() - began < session.config.lock_retry_s
        if not tries_again(hope, attempt, patient=patient):
            raise BackupInterrupted(
                "backup.interrupted",
                f"no backup after {attempt} attempts: {said}{others}",
                snapshots.SESSIONS if _FULL.search(said) else "Run again; nothing was migrated.",
            )
        structlog.get_logger().info("backup.progressed", attempt=attempt, waiting=f"{said}{others}")
        stop.pause(0.2 * min(attempt, ATTEMPTS), 1.0 * min(attempt, ATTEMPTS))
    looks = into.store.stamp(into.name, into.file)
    without = _without(session, written.warnings)
    wanted = {table.key: (table.name, rows) for table, rows in seen.rows.items()}
    roots = {table.key: table.root for table in seen.rows if table.root}
    size = _read_back(session, into, written, read, wanted, roots)
    if session.config.rehearse == "off":
        into.seal.close()  # nobody needs the files on this machine any more
    found = Manifest(
        snapshot_at=taken_at,
        size_bytes=size,
        sha256=written.sha256,
        file=into.file,
        files=written.files,
        rows=dict(wanted.values()),
        without=without,
    )
    if written.files and into.seal.on:
        stored = manifests.sealed(written.files)
        found = dataclasses.replace(
            found,
            sealed_sha256=manifests.combined(stored),
            sealed_bytes=manifests.total(stored),
            recipients=into.seal.recipients,
        )
    elif sealed := into.seal.dumped:
        found = dataclasses.replace(
            found,
            sealed_sha256=sealed.sha256,
            sealed_bytes=sealed.size_bytes,
            recipients=into.seal.recipients,
        )
    return found, seen.witness, looks


def _without(session: Session, warnings: Iterable[str]) -> tuple[manifests.Lacking, ...]:
    """Return what a dump is without, as the catalogs and pg_dump's own warnings say."""
    if session.config.only:
        known = parts.lacking(session)
    else:
        known = [manifests.Lacking(*each) for each in catalog.unseen(session)]
    for asked in (catalog.constructors, catalog.unlogged, catalog.altered):
        known += [manifests.Lacking(*each) for each in asked(session, session.config.only)]
    listed = any(each.what.startswith("subscription ") for each in known)
    warned = [
        manifests.Lacking(warning, "a warning of pg_dump")
        for warning in warnings
        if not warning.startswith(_LACKS_NOTHING)
        and not (listed and warning.startswith("subscriptions not dumped"))
    ]
    return (*known, *warned)


def _read_back(  # noqa: PLR0913, PLR0917 -- all that it is held against
    session: Session,
    into: _Draft,
    written: clients.Written,
    read: Mapping[clients.Key, int] | None,
    wanted: Mapping[clients.Key, tuple[str, int]],
    roots: Mapping[clients.Key, clients.Key],
) -> int:
    """Read back what is stored; return the dump's size in bytes. Raises BackupUnverified.

    `read` are the rows that were read while it was written: of the same hash, that is what is
    stored. A sealed dump was read before it was sealed, and what is stored of it is only hashed.
    """
    environment = session.config.child_env
    if into.way and written.files:
        return folder.require_whole(
            into.store,
            into.name,
            into.seal.spooled,
            written,
            into.programs,
            environment,
            wanted,
            roots,
            into.way.jobs,
        )
    sealed = into.seal.dumped
    if sealed is None and read is None:
        return reading_back.require_whole(
            into.store, into.name, written.sha256, into.programs, environment, wanted, roots
        )
    found = reading_back.hashed(into.store, into.name, into.file)
    reading_back.require_same(found, sealed.sha256 if sealed else written.sha256)
    plain = sealed.plain if sealed else found
    reading_back.require_rows(plain, sealed.rows if sealed else read or {}, wanted, roots)
    return plain.size_bytes


def _attempted(
    session: Session, into: _Draft, attempt: int, size: int
) -> tuple[str, snapshots.Count, clients.Written, Mapping[clients.Key, int] | None]:
    """Dump once; return when, what was seen in the snapshot, the dump, and its rows if it was read.

    A large file is read while it is written, unless that would be a download, or is done already.
    """
    with ExitStack() as stack:
        follower = None
        if not (into.seal.on or into.store.remote):
            environment = session.config.child_env
            follower = stack.enter_context(
                reading_back.following(into.store, into.name, into.programs, environment)
            )
        dumped = _while_counting(session, into, attempt, size, follower)
        return *dumped, follower.rows() if follower else None  # nobody waits for us any more


def _while_counting(
    session: Session,
    into: _Draft,
    attempt: int,
    size: int,
    follower: reading_back.Following | None,
) -> tuple[str, snapshots.Count, clients.Written]:
    """Dump once, and count meanwhile; return when, what was seen in the snapshot, and the dump.

    pg_dump starts as soon as there is a snapshot: whoever queues for a table after that waits for
    our locks, and pg_dump would wait for him.
    """
    only = session.config.only
    with snapshots.exported(session) as snapshot:
        stood = catalog.sequences(session, only)
        if into.way is None:
            many = len(snapshot.tables)
            into.way = folder.way(session, into.store, into.seal, size, many)
        structlog.get_logger().info(
            "backup.started",
            attempt=attempt,
            tables=len(snapshot.tables),
            client=into.programs.version,
            **into.way.told,
        )
        with snapshots.Count(snapshot).running() as count:
            progress = clients.Progress(len(snapshot.tables), count.plain, session.tell)

            def look() -> None:
                count.check()
                if progress.begun and count.looked and not count.looked_again:
                    count.look_again(session)
                if follower and into.way and into.way.jobs == 1:
                    follower.look(progress.size)

            written = _written(session, into, snapshot.name, progress, look)
            count.finish()
        # as long as the tables are locked: who swaps an index (REINDEX CONCURRENTLY) waits for that
        if not count.looked_again:
            count.look_again(session)
        if moved := count.moved():
            raise snapshots.Moved(f"changed while it was dumped: {console.some(moved)}")
    count.sequences = catalog.settled(stood, catalog.sequences(session, only))
    return snapshot.taken_at, count, written


def _written(
    session: Session,
    into: _Draft,
    snapshot: str,
    progress: clients.Progress,
    check: Callable[[], None],
) -> clients.Written:
    """Run pg_dump, into a folder or a file."""
    programs = into.programs
    if into.way and into.way.jobs > 1:
        sent = folder.is_sent(into.store, into.seal)
        return folder.write(
            session,
            programs,
            snapshot,
            into.way.jobs,
            into.seal.staged if sent else partial(into.store.folder, into.name, manifests.FOLDER),
            partial(folder.sending, into.store, into.name, into.seal) if sent else None,
            progress,
            check,
        )
    environment = session.config.child_env
    sink = partial(into.seal.dump, into.store, into.name, programs, environment)
    return clients.write(session, programs, snapshot, sink, progress, check)


# warnings of pg_dump about the order of what is in the dump; TimescaleDB's tables earn the first
_LACKS_NOTHING = ("there are circular foreign-key constraints", "could not resolve dependency loop")
# the server's words for each of the limits of connections
_FULL = re.compile(r"too many (connections|clients)|remaining connection slots")
_HINT = "These are the words of pg_dump or of the server; nothing was migrated."


def tries_again(hope: str, attempt: int, *, patient: bool) -> bool:
    """Tell whether another attempt follows one that failed; `patient`: LOCK_RETRY_S is not over."""
    if hope in {"busy", "moving"} and patient:
        return True
    return hope != "busy" and attempt < ATTEMPTS


def _hope_of(error: Exception) -> str:
    """Return `busy`, `moving`, `passing`, `unknown` or `none`."""
    if isinstance(error, children.ClientFailed):
        return error.hope
    if isinstance(error, snapshots.Moved):
        return "moving"
    gone = (*snapshots.GONE, ConnectionLost)
    if isinstance(error, DatabaseBusy):
        return "busy"
    if isinstance(error, gone):
        return "passing"  # a table dropped between the list and its lock; a server restarted
    return "unknown"


def _lockers(session: Session) -> str:
    """Name who has or wants a table for itself; raises BackupInterrupted when our lock is gone."""
    try:
        rows = session.execute(_LOCKERS).fetchall()
    except psycopg.OperationalError as error:
        raise BackupInterrupted(
            "backup.interrupted",
            "the connection that holds the run's lock was lost during the backup",
            "Run again; nothing was migrated.",
        ) from error
    names = [
        f"{table} by pid {pid} ({name or 'unnamed'})"
        if pid
        else f"{table} by prepared transaction {gid!r} (COMMIT or ROLLBACK PREPARED ends it)"
        for table, pid, name, gid in rows
    ]
    return f"; locked: {', '.join(names)}" if names else ""
