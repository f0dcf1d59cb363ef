"""The backup directory: what is in it, what is being built there, and how much is kept.

A backup is built under a hidden name on which its run holds a file lock, and renamed when it is
whole. What a killed run leaves keeps the hidden name and a free lock: the next run removes it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import stat
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import structlog

from preflight import stop
from preflight.errors import BackupFailed

FORMAT = 1
ABANDONED_S = 3600.0  # a directory without its lock file is being made or removed, or is left over
MANIFEST_MAX_BYTES = 32 << 20  # a line for each of 200,000 tables
READER_S, RENEW_S = 3600.0, 60.0  # a reader is gone when it has not renewed its mark for so long
CANNOT_SYNC = {errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
CANNOT_LOCK = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
LOOPBACK = {"127.0.0.1", "::1"}
DUMP, MANIFEST, LOCK, READER = "database.dump", "manifest.json", ".lock", ".reader-"
IMAGE_MARK = "/.pg-preflight-image"  # made by our own image: its root is a container's, always
CONTAINER_MARKS = ("/.dockerenv", "/run/.containerenv", "/var/run/secrets/kubernetes.io")


@dataclass(frozen=True, slots=True)
class Backup:
    """A verified backup: its directory, its manifest."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.name

    @property
    def origin(self) -> tuple[str, str]:
        """The server's system identifier, and its address as configured ("": an older backup)."""
        said = self.manifest
        return said.get("system_identifier", ""), said.get("address", "")


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose backups these are: of which server, reached where, and of which database.

    A physical copy of a server has its system identifier, too, so the address as it is configured
    tells them apart. The timeline does not: a failover changes it.
    """

    system: str
    database: str
    address: str = ""

    @property
    def slug(self) -> str:
        """The database's name as a safe part of a file name."""
        return re.sub(r"[^A-Za-z0-9_.]", "_", self.database).lstrip(".") or "_"

    def ours(self, known: Sequence[Backup]) -> list[Backup]:
        """Return which backups are surely of this database.

        One that does not say its address is, where no other address is said beside it.
        """
        whose = (self.system, self.database)
        own = [item for item in known if (item.origin[0], item.manifest.get("database")) == whose]
        agreed = {item.origin[1] for item in own} <= {"", self.address}
        return [item for item in own if item.origin[1] in ((self.address, "")[: 1 + agreed])]

    def hidden(self, what: str, name: str) -> str:
        """Return the name of something of ours that is no backup, or none any more."""
        return f".{what}-{self.system}-{self.slug}-{self._tag}-{name}"

    def patterns(self, what: str) -> tuple[str, str]:
        """Return the globs of what `hidden` names, and of what older versions did: no address."""
        return self.hidden(what, "*"), f".{what}-{self.system}-{self.slug}-[!@]*"

    @property
    def _tag(self) -> str:
        return f"@{zlib.crc32(self.address.encode()):08x}"


def address(target: Mapping[str, str]) -> str:
    """Return how libpq parameters name a server: `host:port` of each host, in order of the names.

    No user and no secret. The names of this machine are one; a host's name is kept as it is, and
    not resolved: it may lead elsewhere tomorrow.
    """
    hosts = (target.get("host") or target.get("hostaddr") or "").split(",")
    ports = target.get("port", "").split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    pairs = zip(hosts, ports, strict=False)
    return ",".join(sorted({f"{_host(host)}:{port or 5432}" for host, port in pairs}))


def _host(name: str) -> str:
    if name.startswith(("/", "@")):
        return name
    lower = name.lower().rstrip(".")
    return "localhost" if lower in LOOPBACK else lower


def origins(known: Sequence[Backup]) -> dict[tuple[str, str], list[Backup]]:
    """Return backups by where they are from; one that does not say joins the only others."""
    found: dict[tuple[str, str], list[Backup]] = {}
    for item in known:
        system, where = item.origin
        said = {other.origin[1] for other in known if other.origin[0] == system} - {""}
        where = where or (said.pop() if len(said) == 1 else "")
        found.setdefault((system, where), []).append(item)
    return found


# the directory


@contextmanager
def usable(directory: Path) -> Iterator[Path]:
    """Yield the real path of a directory that holds backups; what it refuses is BackupFailed."""
    try:
        resolved = Path(os.path.realpath(directory, strict=True))
        if not resolved.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        yield resolved
    except OSError as error:
        raise _unusable(directory, error) from error


def require_mounted(directory: Path) -> None:
    """Refuse a container's own layer; raises BackupFailed."""
    if unmounted(directory):
        raise BackupFailed(
            "backup.not_mounted",
            f"{directory} is in this container's own layer: a backup there dies with it",
            f"Mount a volume: `docker run -v backups:{directory} …`, in compose "
            f"`volumes: [backups:{directory}]`, in Kubernetes a volumeMount of a PVC.",
        )


def unmounted(directory: Path) -> bool:
    """Tell whether a directory lies in this container's own layer; on a host none does."""
    marks = [mark for mark in (IMAGE_MARK, *CONTAINER_MARKS) if Path(mark).exists()]
    return in_own_layer(directory, _mounts(), marks)


def in_container() -> bool:
    """Tell whether this process runs in a container, whose root is no place to keep anything."""
    return unmounted(Path("/"))


def mount_kind(directory: Path) -> str:
    """Return the type of the file system that a directory lies on, "" where nobody can tell."""
    return nearest_mount(directory, _mounts())[1]


def _unusable(directory: Path, error: OSError) -> BackupFailed:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return _no_space(directory, os.strerror(error.errno))
    hint = "Set PREFLIGHT_BACKUP_DIR to a directory that exists, or mount a volume there."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        hint = (
            f"Make it writable for user {os.getuid()} (chown, or fsGroup in Kubernetes), "
            "or set PREFLIGHT_BACKUP_DIR."
        )
    return BackupFailed(
        "backup.directory", f"backups cannot be kept in {directory}: {error.strerror}", hint
    )


def _no_space(directory: Path, why: str) -> BackupFailed:
    return BackupFailed(
        "backup.no_space",
        f"no space for a backup in {directory}: {why}",
        "Free or add space; older backups were not touched. PREFLIGHT_BACKUP_KEEP says how many "
        "are kept.",
    )


def _mounts() -> str:
    with suppress(OSError):  # not Linux, or /proc is not there
        return Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
    return ""


# where container engines keep what is theirs; with a container's mark, also what only looks like it
_ENGINE = re.compile(r"/(docker|containers|containerd|buildkit)/|io\.containerd\.")
_ENGINE_LIKE = re.compile(r"[0-9a-f]{64}|/dev/mapper/(docker|containerd)-")
_LAYERED = {"overlay", "aufs", "fuse.fuse-overlayfs", "9p", "virtiofs"}


def in_own_layer(directory: Path, mountinfo: str, marks: Collection[str]) -> bool:
    """Tell whether a directory lies in a container's own file system, which dies with it.

    `mountinfo` as in proc_pid_mountinfo(5), `marks` those of a container that exist. The nearest
    mount decides: any but "/" was put there by somebody. At "/" our image's mark is proof; without
    it (a machine may carry the mark of an image that it was made from) the file system must look
    like a container's: in layers, or from a place where engines keep what is theirs.
    """
    point, kind, source = nearest_mount(directory, mountinfo)
    if point != "/":
        return False
    if IMAGE_MARK in marks or _ENGINE.search(source):
        return True
    return bool(marks) and (kind in _LAYERED or bool(_ENGINE_LIKE.search(source)))


def nearest_mount(directory: Path, mountinfo: str) -> tuple[str, str, str]:
    """Return where the mount that a directory lies on begins, its type and its source."""
    nearest = ("/", "", "")
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        root, point = (_unescaped(field) for field in before.split()[3:5])
        if directory.is_relative_to(point) and len(point) >= len(nearest[0]):
            nearest = (point, after.split(maxsplit=1)[0], f"{root} {after}")
    return nearest


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


def require_space(directory: Path, identity: Identity, database_bytes: int) -> None:
    """Make sure that a backup will fit; raises BackupFailed."""
    ours = identity.ours(listing(directory))
    need = space_needed(ours[-1].manifest["size_bytes"] if ours else None, database_bytes)
    found = os.statvfs(directory)
    free = found.f_bavail * found.f_frsize
    if free < need:
        raise _no_space(
            directory, f"{free / 1e6:.1f} MB are free, about {need / 1e6:.1f} MB are needed"
        )


def space_needed(newest_bytes: int | None, database_bytes: int) -> int:
    """Return how many bytes must be free: by the newest backup, or by the database's size."""
    return database_bytes // 4 if newest_bytes is None else newest_bytes * 3 // 2


# what is in it


class Unreadable(Exception):
    """A directory that is no whole backup of ours; the text says what is wrong with it."""


def listing(directory: Path) -> list[Backup]:
    """Return every whole backup, the oldest first; what is not one of ours is left out."""
    found = []
    for path in directory.iterdir():
        with suppress(Unreadable):
            found.append(read(path))
    return sorted(found, key=lambda item: (item.manifest["sequence"], item.name))


def read(path: Path) -> Backup:
    """Return the backup in a directory; raises Unreadable.

    A clock may jump, so its `sequence` says when it was. Others may write there: nothing is
    followed, waited for, or believed to be of the type that it should be.
    """
    try:
        if path.name.startswith(".") or path.is_symlink():
            raise Unreadable("it is a link, or hidden")
        manifest = json.loads(_small(path / MANIFEST))
        dump = (path / DUMP).lstat()
    except OSError as error:
        raise Unreadable(f"{error.filename or path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise Unreadable(f"{MANIFEST} is not the JSON that it should be") from error
    if wrong := _wrong(manifest):
        raise Unreadable(f"{MANIFEST} is not one of ours: {wrong}")
    if not stat.S_ISREG(dump.st_mode) or dump.st_size != manifest["size_bytes"]:
        raise Unreadable(f"{DUMP} is no file of {manifest['size_bytes']} bytes")
    return Backup(path, manifest)


def _small(path: Path) -> bytes:
    """Return what is in a plain file of bounded size."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Unreadable(f"{path.name} is no plain file")
        text = file.read(MANIFEST_MAX_BYTES + 1)
    if len(text) > MANIFEST_MAX_BYTES:
        raise Unreadable(f"{path.name} is larger than {MANIFEST_MAX_BYTES} bytes")
    return text


def _count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _text(value: object) -> bool:
    return isinstance(value, str)


SCHEMA: dict[str, Callable[[Any], bool]] = {
    "format": lambda value: type(value) is int and value == FORMAT,
    "sequence": _count,
    "size_bytes": _count,
    "sha256": _text,
    "rows": lambda value: isinstance(value, dict) and all(map(_count, value.values())),
    "database": _text,
    "system_identifier": _text,
    "address": _text,
    "timeline": lambda value: value is None or _count(value),
    "snapshot_at": _text,
    "taken_for": lambda value: (
        isinstance(value, dict)
        and isinstance(value.get("command"), str)
        and isinstance(value.get("pending", []), list)
    ),
    "verified": _text,
}
ALWAYS = {"format", "sequence", "size_bytes"}


def _wrong(manifest: object) -> str | None:
    """Name a key of a manifest that is not as it should be."""
    if not isinstance(manifest, dict):
        return "no object"
    for key, right in SCHEMA.items():
        if (key in manifest or key in ALWAYS) and not right(manifest.get(key)):
            return f"`{key}`"
    return None


def holds(backup: Backup) -> bool:
    """Tell whether a visible backup is there, under the manifest that was written for its dump."""
    try:
        found = read(backup.path).manifest
    except Unreadable:
        return False
    return all(found.get(key) == backup.manifest[key] for key in ("sha256", "size_bytes", "run_id"))


def seen(path: Path) -> tuple[int, ...]:
    """Return what changes when somebody writes to a file, replaces it or moves it away."""
    found = path.lstat()
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


# building


@contextmanager
def building(directory: Path, identity: Identity, run_id: str) -> Iterator[Path]:
    """Yield a hidden directory that this run holds a file lock on; removed unless published."""
    hidden = directory / identity.hidden("partial", run_id)
    hidden.mkdir(mode=0o700)
    descriptor = -1
    try:
        unlocked = hidden / f"{LOCK}.new"  # a sweep never meets the lock's file without its lock
        descriptor = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unlocked.rename(hidden / LOCK)
        yield hidden
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        if descriptor >= 0:
            os.close(descriptor)


def publish(
    hidden: Path, directory: Path, identity: Identity, manifest: Mapping[str, Any]
) -> Backup:
    """Make a finished backup visible, durably."""
    earlier = (item.manifest["sequence"] for item in listing(directory))
    manifest = {**manifest, "sequence": 1 + max(earlier, default=0)}
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    final = directory / f"{identity.slug}-{stamp}-{manifest['run_id']}"
    while final.exists():  # two backups of one run in one second
        final = final.with_name(f"{final.name}b")
    write_durably(hidden / MANIFEST, manifest)
    sync(hidden)
    with stop.deferred():
        hidden.rename(final)
        try:
            sync(directory)
        except OSError:
            final.rename(hidden)  # what the message says is not there must not be seen
            raise
    with suppress(OSError):  # the lock goes with our descriptor; its file is of no use any more
        (final / LOCK).unlink()
    return Backup(final, manifest)


def write_durably(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write a manifest, or a record beside it: whole on the disk, or not there."""
    new = path.with_name(f".{path.name}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(json.dumps(manifest, indent=2, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    sync(path.parent)


def sync(directory: Path) -> None:
    """Make the names in a directory durable, where its file system can."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # CIFS, vboxsf, some of FUSE: PostgreSQL goes on there, too
        if error.errno not in CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)


def improve(backup: Backup, **said: object) -> Backup:
    """Replace a backup's manifest by one that says more; atomic and durable."""
    manifest = {**backup.manifest, **said}
    write_durably(backup.path / MANIFEST, manifest)
    return Backup(backup.path, manifest)


def record_swap(backup: Backup, system: str, oid: int, said: Mapping[str, Any]) -> None:
    """Write beside a backup that a database with these rows is about to become the live one."""
    write_durably(_swap_record(backup, system, oid), said)


def swaps(backup: Backup, identity: Identity) -> dict[int, dict[str, Any]]:
    """Return what was recorded of each database that was made from a backup and swapped in."""
    found = {}
    for path in sorted(backup.path.glob(f"swap-{int(identity.system)}-*.json")):
        try:
            said = json.loads(_small(path))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError, Unreadable):
            said = None  # it was, and nobody knows when
        said = said if isinstance(said, dict) else {}
        number = path.stem.rpartition("-")[2]
        if number.isdecimal() and said.get("address") in (None, identity.address):
            found[int(number)] = said
    return found


def _swap_record(backup: Backup, system: str, oid: int) -> Path:
    return backup.path / f"swap-{int(system)}-{oid}.json"


def withdraw(backup: Backup, identity: Identity) -> None:
    """Hide a backup that turned out to be none, for somebody to look at until the next `sweep`."""
    with suppress(FileNotFoundError):  # hidden already, or removed by somebody
        backup.path.rename(backup.path.with_name(identity.hidden("unproven", backup.name)))
    sync(backup.path.parent)


# keeping


def sweep(directory: Path, identity: Identity) -> None:
    """Remove what killed runs left of this database: the hidden, if no run holds its lock."""
    for kind in ("pruned", "unproven", "partial"):
        for path in (path for each in identity.patterns(kind) for path in directory.glob(each)):
            with suppress(OSError):
                if not path.is_symlink() and (kind != "partial" or _abandoned(path)):
                    shutil.rmtree(path, ignore_errors=True)


def _abandoned(path: Path) -> bool:
    """Tell whether nobody builds there any more; raises OSError.

    Without a lock file it was killed while it was made, or while it was removed. Where there are
    no locks, time tells: a run at work writes.
    """
    if not (path / LOCK).exists():
        return time.time() - path.stat().st_mtime > ABANDONED_S
    free = _free(path / LOCK)
    if free is None:
        return time.time() - max(each.lstat().st_mtime for each in path.iterdir()) > ABANDONED_S
    return free


def _free(path: Path) -> bool | None:
    """Tell whether nobody holds a file's lock; None where locks cannot be had."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in CANNOT_LOCK:
            return None
        raise
    else:
        return True
    finally:
        os.close(descriptor)


@contextmanager
def reading(backup: Backup) -> Iterator[Callable[[], None]]:
    """Keep a backup from being pruned; yields what to call now and then meanwhile.

    A lock says so on this machine; to others, and where there are no locks, a mark beside the
    dump that is renewed. Neither is a must: the directory may be read-only. Raises OSError.
    """
    mark = backup.path / f"{READER}{os.urandom(6).hex()}"
    dump = backup.path / DUMP
    descriptor = os.open(dump, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    renewed = time.monotonic()

    def renew() -> None:
        nonlocal renewed
        if time.monotonic() - renewed >= RENEW_S:
            renewed = time.monotonic()
            with suppress(OSError):
                os.utime(mark)

    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with suppress(OSError):
            mark.touch(0o600)
        if not os.path.samestat(os.fstat(descriptor), dump.lstat()):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(dump))
        yield renew
    finally:
        with suppress(OSError):
            mark.unlink()
        os.close(descriptor)


def _in_use(backup: Backup) -> bool:
    """Tell whether somebody reads a backup; raises OSError."""
    for mark in backup.path.glob(f"{READER}*"):
        if time.time() - mark.lstat().st_mtime < READER_S:
            return True
    return _free(backup.path / DUMP) is False


def prune(directory: Path, identity: Identity, keep: int) -> None:
    """Keep the newest backups of this database; those with exports always. Failure is a warning."""
    log = structlog.get_logger()
    ours = identity.ours(listing(directory))
    plain = [item for item in ours if not any(item.path.glob("export-*.csv"))]
    for item in surplus(plain, keep):
        hidden = directory / identity.hidden("pruned", item.name)
        try:
            if _in_use(item):
                log.warning("backup.pruned", backup=item.name, failed="it is being restored")
                continue
            item.path.rename(hidden)  # a kill in between leaves no half of a backup in view
            shutil.rmtree(hidden)
        except OSError as error:
            log.warning("backup.pruned", backup=item.name, failed=error.strerror)
        else:
            log.info("backup.pruned", backup=item.name)


def _awaited(backup: Backup) -> str | None:
    """Return the set of files that `up` took a backup for."""
    taken_for = backup.manifest.get("taken_for")
    if not isinstance(taken_for, dict) or taken_for.get("command") != "up":
        return None
    return json.dumps(taken_for, sort_keys=True) if taken_for.get("pending") else None


def surplus(backups: Sequence[Backup], keep: int) -> list[Backup]:
    """Return what may go, the oldest first given: all but the newest `keep`.

    Of a set of files that fails again and again only its first and its newest backup stay: `up`
    takes backups of one and the same set in a row only as long as it is not applied.
    """
    between: list[Backup] = []
    for wanted, group in groupby(backups, key=_awaited):
        between += list(group)[1:-1] if wanted else []
    left = [item for item in backups if item not in between]
    return between + left[: max(0, len(left) - max(1, keep))]
