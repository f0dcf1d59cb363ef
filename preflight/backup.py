"""Take a backup and read it back: pg_dump, pg_restore, manifest, retention.

`pg_restore --list` proves nothing (it passes on a dump cut to 2 %), and a flipped bit in zstd or
lz4 passes a full read. So the dump is hashed as it is written, read back from the disk, and its
rows are counted against the snapshot that it was taken from.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import psycopg
import structlog

from preflight import __version__, report, server, stop
from preflight.errors import BackupFailed, BackupInterrupted, BackupUnverified

if TYPE_CHECKING:
    import io

    from preflight.config import Config
    from preflight.migrations import Migration
    from preflight.server import Session

CHUNK = 1 << 18
ATTEMPTS = 3  # a table dropped at the wrong moment, a server restarted in the middle
TELL_EVERY_S = 5.0
DUMP, MANIFEST, LOCK = "database.dump", "manifest.json", ".lock"
COMPRESSIONS = ("zstd:1", "gzip:1")

# every table whose rows pg_dump dumps, and why we may not read it, if we may not
_TABLES = """
SELECT n.nspname::text, c.relname::text,
 pg_catalog.has_schema_privilege(n.oid, 'USAGE')
  AND pg_catalog.has_table_privilege(c.oid, 'SELECT') AS readable,
 pg_catalog.row_security_active(c.oid) AS filtered
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND n.nspname::text NOT LIKE 'pg\\_%%'
 AND n.nspname <> 'information_schema' AND NOT EXISTS (
  SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::regclass
   AND d.objid = c.oid AND d.deptype = 'e')
 AND (c.relkind = 'r' OR %s::bool)
ORDER BY 1, 2
"""
_SEQUENCES = """
SELECT n.nspname::text, c.relname::text
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'S' AND n.nspname::text NOT LIKE 'pg\\_%'
 AND n.nspname <> 'information_schema' AND NOT EXISTS (
  SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::regclass
   AND d.objid = c.oid AND d.deptype = 'e')
 AND NOT (pg_catalog.has_schema_privilege(n.oid, 'USAGE')
  AND pg_catalog.has_sequence_privilege(c.oid, 'SELECT'))
"""


@dataclass(frozen=True, slots=True)
class Backup:
    """A verified backup: its directory, its manifest."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.name


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose backups these are: the server's system identifier and the database."""

    system: str
    database: str

    @property
    def slug(self) -> str:
        """The database's name as a safe part of a file name."""
        return re.sub(r"[^A-Za-z0-9_.]", "_", self.database).lstrip(".") or "_"

    def owns(self, manifest: Mapping[str, Any]) -> bool:
        """Tell whether a manifest is about this database."""
        return (manifest.get("system_identifier"), manifest.get("database")) == (
            self.system,
            self.database,
        )


def take(session: Session, todo: Sequence[Migration], purpose: str = "up") -> Backup | None:
    """Back the database up before `todo`; return None when backups are off.

    Raises BackupInterrupted (passing), BackupFailed (change something), BackupUnverified.
    """
    config, log = session.config, structlog.get_logger()
    if config.backup == "off":
        log.warning("backup.skipped", reason="PREFLIGHT_BACKUP=off")
        return None
    began = time.monotonic()
    clients = _clients(config, session)
    identity = _identity(session)
    taken_for = {
        "command": purpose,
        "pending": [{"version": file.version, "checksum": file.checksum} for file in todo],
    }
    directory = require_directory(config.backup_dir)
    sweep(directory, identity)
    _require_space(session, directory, identity)
    with ExitStack() as stack:
        hidden = stack.enter_context(_building(directory, identity, config.run_id))
        manifest = _dump(session, hidden, clients, identity) | {
            "run_id": config.run_id,
            "taken_for": taken_for,
            "sequence": 1
            + max((b.manifest.get("sequence", 0) for b in listing(directory)), default=0),
        }
        made = _publish(hidden, directory, identity, manifest)
    log.info(
        "backup.verified",
        backup=made.name,
        verified=manifest["verified"],
        size_bytes=manifest["size_bytes"],
        tables=len(manifest["rows"]),
        rows=sum(manifest["rows"].values()),
        sha256=manifest["sha256"],
        duration_s=round(time.monotonic() - began, 3),
    )
    prune(directory, identity, config.backup_keep)
    return made


# the directory


def require_directory(directory: Path) -> Path:
    """Make sure that backups can be kept there; raises BackupFailed."""
    try:
        resolved = directory.resolve(strict=True)
        if not resolved.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        descriptor, probe = tempfile.mkstemp(prefix=".probe-", dir=resolved)
        os.close(descriptor)
        Path(probe).unlink()
    except OSError as error:
        raise _no_directory(directory, error) from error
    if in_own_layer(resolved):
        raise BackupFailed(
            "backup.not_mounted",
            f"{directory} is in this container's own layer: a backup there dies with the container",
            f"Mount a volume: `docker run -v backups:{directory} …`, in compose "
            f"`volumes: [backups:{directory}]`, in Kubernetes a volumeMount of a PVC.",
        )
    return resolved


def _no_directory(directory: Path, error: OSError) -> BackupFailed:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _no_space(directory)
    hint = "Set PREFLIGHT_BACKUP_DIR to a directory that exists, or mount a volume there."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        hint = (
            f"Make it writable for user {os.getuid()} (chown, or fsGroup in Kubernetes), "
            "or set PREFLIGHT_BACKUP_DIR."
        )
    return BackupFailed(
        "backup.directory", f"backups cannot be written to {directory}: {error.strerror}", hint
    )


def _no_space(directory: Path, need: str = "") -> BackupFailed:
    return BackupFailed(
        "backup.no_space",
        f"no space left in {directory}{need}",
        "Free or add space; older backups were not touched. PREFLIGHT_BACKUP_KEEP says how many "
        "are kept.",
    )


def in_own_layer(directory: Path) -> bool:
    """Tell whether a directory lies in a container's own file system, which dies with it."""
    marks = ("/.dockerenv", "/run/.containerenv", "/var/run/secrets/kubernetes.io")
    if not any(Path(mark).exists() for mark in marks):
        return False
    with open("/proc/self/mountinfo", encoding="utf-8") as mounts:  # noqa: PTH123
        found = [(line.split()[4], line.split(" - ")[1].split()[0]) for line in mounts]
    points = {point: kind for point, kind in found if directory.is_relative_to(point)}
    nearest = max(points, key=len, default="/")
    return nearest == "/" and points.get("/") == "overlay"


def listing(directory: Path) -> list[Backup]:
    """Return every visible backup that has a readable manifest, the oldest first."""
    found = []
    for path in sorted(directory.iterdir()):
        if path.name.startswith(".") or not path.is_dir():
            continue
        with suppress(OSError, ValueError):
            manifest = json.loads((path / MANIFEST).read_bytes())
            if isinstance(manifest, dict) and manifest.get("format") == 1:
                found.append(Backup(path, manifest))
    return sorted(found, key=lambda item: (item.manifest.get("sequence", 0), item.name))


def sweep(directory: Path, identity: Identity) -> None:
    """Remove what killed runs left: hidden directories of this database whose lock is free."""
    for path in directory.glob(f".partial-{identity.system}-{identity.slug}-*"):
        with suppress(OSError):
            descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
            finally:
                os.close(descriptor)


def prune(directory: Path, identity: Identity, keep: int) -> None:
    """Keep the newest backups of this database; those with exports always. Failure is a warning."""
    ours = [item for item in listing(directory) if identity.owns(item.manifest)]
    plain = [item for item in ours if not any(item.path.glob("export-*.csv"))]
    for item in surplus(plain, keep):
        try:
            shutil.rmtree(item.path)
        except OSError as error:
            structlog.get_logger().warning("backup.pruned", backup=item.name, failed=error.strerror)
        else:
            structlog.get_logger().info("backup.pruned", backup=item.name)


def surplus(backups: Sequence[Backup], keep: int) -> list[Backup]:
    """Return what may go, the oldest first given: all but the newest `keep`.

    Of a set of files that fails again and again only its first and its newest backup stay.
    """
    sets: dict[str, list[Backup]] = {}
    for item in backups:
        wanted = json.dumps(item.manifest.get("taken_for", {}), sort_keys=True)
        sets.setdefault(wanted, []).append(item)
    between = [
        item
        for wanted, group in sets.items()
        if json.loads(wanted).get("pending")
        for item in group[1:-1]
    ]
    left = [item for item in backups if item not in between]
    return between + left[: max(0, len(left) - max(1, keep))]


@contextmanager
def _building(directory: Path, identity: Identity, run_id: str) -> Iterator[Path]:
    """Yield a hidden directory that this run holds a file lock on; removed unless published."""
    hidden = directory / f".partial-{identity.system}-{identity.slug}-{run_id}"
    descriptor = -1
    try:
        hidden.mkdir(mode=0o700)
        descriptor = os.open(hidden / LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield hidden
    except OSError as error:
        raise _no_directory(directory, error) from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        if descriptor >= 0:
            os.close(descriptor)


def _publish(hidden: Path, directory: Path, identity: Identity, manifest: dict[str, Any]) -> Backup:
    """Make a finished backup visible, durably."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    final = directory / f"{identity.slug}-{stamp}-{manifest['run_id']}"
    while final.exists():  # two backups of one run in one second
        final = final.with_name(final.name + "b")
    _write_durably(hidden / MANIFEST, json.dumps(manifest, indent=2).encode() + b"\n")
    with stop.deferred():
        (hidden / LOCK).unlink()
        _sync(hidden)
        hidden.rename(final)
        _sync(directory)
    return Backup(final, manifest)


def _write_durably(path: Path, content: bytes) -> None:
    with open(path, "xb", opener=_private) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _require_space(session: Session, directory: Path, identity: Identity) -> None:
    ours = [item for item in listing(directory) if identity.owns(item.manifest)]
    if ours:
        need = int(1.5 * int(ours[-1].manifest.get("size_bytes", 0)))
    else:
        row = session.execute(
            "SELECT pg_catalog.pg_database_size(pg_catalog.current_database()) / 4"
        ).fetchone()
        need = row[0] if row else 0
    found = os.statvfs(directory)
    free = found.f_bavail * found.f_frsize
    if free < need:
        raise _no_space(
            directory, f": {free / 1e6:.0f} MB are free, about {need / 1e6:.0f} MB are needed"
        )


# the snapshot


def _identity(session: Session) -> Identity:
    row = session.execute(
        """SELECT (SELECT system_identifier::text FROM pg_catalog.pg_control_system()),
 pg_catalog.current_database()::text"""
    ).fetchone()
    system, database = row or ("", "")
    return Identity(system, database)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What an exported snapshot holds: rows of every table, under its name and its quoted name."""

    name: str
    taken_at: str
    rows: Mapping[tuple[str, str], int]


@contextmanager
def _snapshot(session: Session) -> Iterator[Snapshot]:
    """Yield an exported snapshot with its counts, held by a session of its own.

    ACCESS SHARE on every table comes first: a TRUNCATE in between would empty the dump.
    """
    with server.beside(session) as other:
        tables = _require_readable(other)
        while True:
            other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            if tables:
                names = ", ".join(f"ONLY {_quoted(*table)}" for table in tables)
                other.execute(f"LOCK TABLE {names} IN ACCESS SHARE MODE")
            row = other.execute(
                "SELECT pg_catalog.pg_export_snapshot(), pg_catalog.now()::text"
            ).fetchone()
            seen = _table_names(other)
            if set(seen) <= set(tables):
                break
            other.execute("ROLLBACK")  # a table was made in between
            tables = _require_readable(other)
        counts = {}
        for table in _table_names(other, partitioned=False):
            found = other.execute(f"SELECT count(*) FROM ONLY {_quoted(*table)}").fetchone()  # noqa: S608
            counts[table] = found[0] if found else 0
        name, taken_at = row or ("", "")
        yield Snapshot(name, taken_at, counts)
        other.execute("COMMIT")


def _table_names(session: Session, *, partitioned: bool = True) -> list[tuple[str, str]]:
    rows = session.execute(_TABLES, [partitioned]).fetchall()
    return [(schema, table) for schema, table, *_ in rows]


def _require_readable(session: Session) -> list[tuple[str, str]]:
    """Return every table; raises BackupFailed that names those this role cannot dump whole."""
    rows = session.execute(_TABLES, [True]).fetchall()
    hidden = [_quoted(schema, table) for schema, table, readable, _ in rows if not readable]
    hidden += [_quoted(*found) for found in session.execute(_SEQUENCES).fetchall()]
    if hidden:
        raise BackupFailed(
            "backup.not_readable",
            f"this role may not read {', '.join(hidden[:10])}"
            + (f" and {len(hidden) - 10} more" if len(hidden) > 10 else ""),  # noqa: PLR2004
            "GRANT SELECT on them (or the role pg_read_all_data, PostgreSQL 14 and later): a dump "
            "without them would be no backup.",
            sqlstate="42501",
        )
    filtered = [_quoted(schema, table) for schema, table, _, active in rows if active]
    if filtered:
        raise BackupFailed(
            "backup.row_security",
            f"row security hides rows of {', '.join(filtered[:10])} from this role",
            "Run as the tables' owner (without FORCE ROW LEVEL SECURITY) or as a role with "
            "BYPASSRLS: a dump without those rows would be no backup.",
            sqlstate="42501",
        )
    return [(schema, table) for schema, table, *_ in rows]


def _quoted(*names: str) -> str:
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


# pg_dump and pg_restore


@dataclass(frozen=True, slots=True)
class Clients:
    """The client programs and their major version."""

    pg_dump: str
    pg_restore: str
    version: str


def _clients(config: Config, session: Session) -> Clients:
    """Return pg_dump and pg_restore; raises BackupFailed when they cannot dump this server."""
    path = config.child_env.get("PATH", os.defpath)
    found = [shutil.which(name, path=path) for name in ("pg_dump", "pg_restore")]
    if None in found:
        missing = " and ".join(
            name for name, at in zip(("pg_dump", "pg_restore"), found, strict=True) if at is None
        )
        raise BackupFailed(
            "backup.no_client",
            f"{missing} cannot be found",
            "Install the PostgreSQL client of the server's major version or a newer one.",
        )
    pg_dump, pg_restore = (str(at) for at in found)
    try:
        said = subprocess.run(  # noqa: S603 -- found on PATH
            [pg_dump, "--version"],
            env=dict(config.child_env),
            capture_output=True,
            check=True,
            timeout=30,
        ).stdout.decode()
    except (OSError, subprocess.SubprocessError) as error:
        raise BackupFailed(
            "backup.no_client", f"{pg_dump} does not run: {error}", "Reinstall the client."
        ) from error
    number = re.search(r"(\d+)(\.\d+)*", said)
    major = int(number[1]) if number else 0
    server_major = session.facts.major if session.facts else 0
    if major < server_major:
        raise BackupFailed(
            "backup.client_too_old",
            f"pg_dump {major} cannot dump a PostgreSQL {server_major} server",
            f"Use the image tagged pg{server_major}, or install the client {server_major}.",
        )
    return Clients(pg_dump, pg_restore, said.strip())


def dump_command(
    clients: Clients, address: Mapping[str, str], snapshot: str, compression: str
) -> list[str]:
    """Return the pg_dump call; the password is in a passfile, never here."""
    conninfo = psycopg.conninfo.make_conninfo("", **address)
    return [
        clients.pg_dump,
        "--format=custom",
        f"--compress={compression}",
        f"--snapshot={snapshot}",
        "--lock-wait-timeout=10s",
        "--no-password",
        "--verbose",
        f"--dbname={conninfo}",
    ]


def read_command(clients: Clients, dump: Path) -> list[str]:
    """Return the pg_restore call that reads every data block and writes the rows to stdout."""
    return [clients.pg_restore, "--data-only", "--file=-", str(dump)]


def _dump(session: Session, hidden: Path, clients: Clients, identity: Identity) -> dict[str, Any]:
    """Write the dump and read it back, with retries for passing reasons; return the manifest."""
    said = ""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with _snapshot(session) as snapshot, _passfile(session) as child_env:
                structlog.get_logger().info(
                    "backup.started",
                    attempt=attempt,
                    tables=len(snapshot.rows),
                    rows=sum(snapshot.rows.values()),
                    client=clients.version,
                )
                digest = _write(session, hidden, clients, snapshot, child_env)
        except _ChildFailed as failure:
            permanent = failure.permanent or str(failure) == said
            said = str(failure)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.UndefinedTable) as error:
            permanent, said = False, str(error.diag.message_primary)
        except psycopg.OperationalError as error:
            permanent, said = False, str(error).strip()
        else:
            break
        (hidden / DUMP).unlink(missing_ok=True)
        if permanent:
            raise BackupFailed(
                "backup.pg_dump",
                f"pg_dump failed: {said}",
                "See pg_dump's words; nothing was migrated.",
            )
        if attempt == ATTEMPTS:
            raise BackupInterrupted(
                "backup.interrupted", f"no backup after {attempt} attempts: {said}", "Run again."
            )
        stop.sleep(random.uniform(0.2, 1.0) * attempt)  # noqa: S311 -- jitter, not a secret
    size = _read_back(hidden / DUMP, clients, digest, snapshot, session.config)
    facts = session.facts
    return {
        "format": 1,
        "version": __version__,
        "database": identity.database,
        "system_identifier": identity.system,
        "server_version": facts.version if facts else None,
        "pg_dump": clients.version,
        "snapshot_at": snapshot.taken_at,
        "file": DUMP,
        "size_bytes": size,
        "sha256": digest,
        "rows": {f"{schema}.{table}": count for (schema, table), count in snapshot.rows.items()},
        "verified": "read",
    }


class _ChildFailed(Exception):
    def __init__(self, text: str, *, permanent: bool) -> None:
        super().__init__(text)
        self.permanent = permanent


_PERMANENT = re.compile(
    r"server version mismatch|row-level security|permission denied|out of shared memory|"
    r"unrecognized|invalid option|No space left|not found"
)


@contextmanager
def _passfile(session: Session) -> Iterator[dict[str, str]]:
    """Yield an environment whose password is in a private file, removed afterwards."""
    environment = dict(session.config.child_env)
    password = session.target.get("password")
    if password is None:
        yield environment
        return
    escaped = password.replace("\\", "\\\\").replace(":", "\\:")
    descriptor, name = tempfile.mkstemp(prefix="pg-preflight-")  # 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(f"*:*:*:*:{escaped}\n")
        yield environment | {"PGPASSFILE": name}
    finally:
        Path(name).unlink(missing_ok=True)


def _write(
    session: Session,
    hidden: Path,
    clients: Clients,
    snapshot: Snapshot,
    environment: Mapping[str, str],
) -> str:
    """Run pg_dump into the file, hashing on the way; return the SHA-256 of what it sent."""
    for compression in COMPRESSIONS:
        command = dump_command(clients, session.address(), snapshot.name, compression)
        try:
            return _pump(command, environment, hidden / DUMP, snapshot)
        except _ChildFailed as failure:
            unknown = "support compression" in str(failure) or "compression algorithm" in str(
                failure
            )
            if not unknown or compression == COMPRESSIONS[-1]:
                raise
            (hidden / DUMP).unlink()
    raise AssertionError  # the last compression returns or raises


def _pump(
    command: Sequence[str], environment: Mapping[str, str], path: Path, snapshot: Snapshot
) -> str:
    digest, size = hashlib.sha256(), 0
    with (
        open(path, "xb", buffering=0, opener=_private) as file,
        _child(command, environment) as (child, words),
    ):
        progress = _Progress(snapshot, words)
        while chunk := _read(child.stdout):
            digest.update(chunk)
            _write_all(file, chunk)
            size += len(chunk)
            progress.tell(size)
        code = _wait(child)
        progress.close()
        if code != 0:
            text = words.last()
            raise _ChildFailed(text or f"exit code {code}", permanent=bool(_PERMANENT.search(text)))
        os.fsync(file.fileno())
    return digest.hexdigest()


def _read(stream: IO[bytes] | None) -> bytes:
    assert stream is not None  # noqa: S101 -- both children are started with a pipe
    with stop.allowed():
        return os.read(stream.fileno(), CHUNK)


def _write_all(file: io.FileIO, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[file.write(view) :]


def _wait(child: subprocess.Popen[bytes]) -> int:
    with stop.allowed():
        return child.wait()


@contextmanager
def _child(
    command: Sequence[str], environment: Mapping[str, str]
) -> Iterator[tuple[subprocess.Popen[bytes], _Words]]:
    """Run a client program; it ends with us: by signal here, by its broken pipe after kill -9."""
    try:
        child = subprocess.Popen(  # noqa: S603 -- a command that we built
            list(command),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a terminal's Ctrl-C is ours to handle
        )
    except OSError as error:
        raise _ChildFailed(
            f"{command[0]} does not start: {error.strerror}", permanent=True
        ) from error
    words = _Words(child)
    try:
        yield child, words
    finally:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(2)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        words.thread.join(2)
        for stream in (child.stdout, child.stderr):
            if stream is not None:
                stream.close()


class _Words:
    """What a client says on stderr: how far it is, and its last words."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self.lines: list[str] = []
        self.tables_begun: list[str] = []
        self.stream = child.stderr
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def _listen(self) -> None:
        assert self.stream is not None  # noqa: S101 -- started with a pipe
        for line in self.stream:
            text = line.decode("utf-8", "replace").rstrip()
            if found := re.search(r'dumping contents of table "(.*)"$', text):
                self.tables_begun.append(found[1])
            if re.search(r"error|fatal|warning|detail|hint", text):
                self.lines = [*self.lines[-9:], text]

    def last(self) -> str:
        self.thread.join(2)
        return "; ".join(re.sub(r"^pg_\w+: ", "", line) for line in self.lines)


class _Progress:
    """Tells how far a long dump is: by rows of the tables begun, and by bytes."""

    def __init__(self, snapshot: Snapshot, words: _Words) -> None:
        self.rows = {".".join(table): count for table, count in snapshot.rows.items()}
        self.all_rows = sum(self.rows.values())
        self.words = words
        self.began = self.told = time.monotonic()
        self.bar = report.Bar("backup")

    def tell(self, size: int) -> None:
        now = time.monotonic()
        begun = self.words.tables_begun
        rows = sum(self.rows.get(name, 0) for name in begun[:-1])
        share = rows / self.all_rows if self.all_rows else 0.0
        self.bar.show(share, f"{size / 1e6:.1f} MB, table {len(begun)} of {len(self.rows)}")
        if now - self.told >= TELL_EVERY_S:
            self.told = now
            structlog.get_logger().info(
                "backup.progressed",
                size_bytes=size,
                tables_begun=len(begun),
                tables=len(self.rows),
                rows_done=rows,
                rows=self.all_rows,
                percent=round(100 * share, 1),
                elapsed_s=round(now - self.began, 1),
            )

    def close(self) -> None:
        self.bar.close()


# reading back


def _read_back(
    dump: Path, clients: Clients, digest: str, snapshot: Snapshot, config: Config
) -> int:
    """Read the file from the disk: hash, whole archive, rows per table; return its size."""
    found, size = hash_of(dump)
    if size == 0:
        raise BackupUnverified("backup.empty", "pg_dump wrote nothing", _UNVERIFIED_HINT)
    if found != digest:
        raise BackupUnverified(
            "backup.corrupt",
            f"the dump on disk is not what pg_dump sent: {found[:12]} instead of {digest[:12]}",
            "Check the disk below the backup directory; nothing was migrated.",
        )
    rows = archived_rows(dump, clients, config.child_env)
    different = [
        f"{_quoted(*table)} has {rows.get(table, 'no')} rows in the dump, {count} in the database"
        for table, count in snapshot.rows.items()
        if rows.get(table) != count
    ]
    if different:
        raise BackupUnverified(
            "backup.rows_differ",
            f"{len(different)} tables differ: {'; '.join(different[:5])}",
            _UNVERIFIED_HINT,
        )
    return size


_UNVERIFIED_HINT = "Is the pg_dump on PATH a real and whole one? Nothing was migrated."


def hash_of(path: Path) -> tuple[str, int]:
    """Return a file's SHA-256 and size in bytes, read from the disk and not from the cache."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 -- unbuffered
        with suppress(OSError, AttributeError):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while chunk := _read(file):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


def archived_rows(
    dump: Path, clients: Clients, environment: Mapping[str, str]
) -> dict[tuple[str, str], int]:
    """Return the rows of every table in an archive; raises BackupUnverified if it does not read."""
    counter = RowCounter()
    with _child(read_command(clients, dump), environment) as (child, words):
        while chunk := _read(child.stdout):
            counter.feed(chunk)
        code = _wait(child)
        text = words.last()
    if code != 0 or counter.inside:
        raise BackupUnverified(
            "backup.unreadable",
            f"pg_restore cannot read the dump back (exit code {code}): {text or 'no words'}",
            _UNVERIFIED_HINT,
        )
    return counter.rows


_COPY = re.compile(
    rb"(?:\A|\n)COPY ((?:\"(?:[^\"]|\"\")*\"|[^\s\"(.]+)\.(?:\"(?:[^\"]|\"\")*\"|[^\s\"(.]+))"
    rb"[^\n]*? FROM stdin;(?=\n)"
)
_PART = re.compile(rb"\"((?:[^\"]|\"\")*)\"|([^\s\".]+)")
_DATA_END = b"\n\\.\n"


class RowCounter:
    """Counts the rows in pg_restore's COPY blocks, a chunk at a time."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], int] = {}
        self.table: tuple[str, str] | None = None
        self.rest = b""

    @property
    def inside(self) -> bool:
        """Tell whether the stream ended in the middle of a table."""
        return self.table is not None

    def feed(self, chunk: bytes) -> None:
        """Take the next part of the stream."""
        data = self.rest + chunk
        while data:
            data, again = self._rows(data) if self.table else self._header(data)
            if not again:
                break
        self.rest = data

    def _header(self, data: bytes) -> tuple[bytes, bool]:
        found = _COPY.search(data)
        if found is None:
            begun = data.rfind(b"\nCOPY ")
            return (data[begun:] if begun >= 0 else data[-8:]), False
        parts = [(bare or quoted.replace(b'""', b'"')) for quoted, bare in _PART.findall(found[1])]
        self.table = (parts[0].decode(), parts[1].decode())
        self.rows[self.table] = -1  # the header's own line end is counted with the rows
        return data[found.end() :], True

    def _rows(self, data: bytes) -> tuple[bytes, bool]:
        assert self.table is not None  # noqa: S101 -- only called inside a table
        end = data.find(_DATA_END)
        if end >= 0:
            self.rows[self.table] += data.count(b"\n", 0, end + 1)
            self.table = None
            return data[end + len(_DATA_END) - 1 :], True
        whole = max(0, len(data) - len(_DATA_END) + 1)
        self.rows[self.table] += data.count(b"\n", 0, whole)
        return data[whole:], False
