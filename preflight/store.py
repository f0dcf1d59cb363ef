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
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
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
DUMP, MANIFEST, LOCK = "database.dump", "manifest.json", ".lock"
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


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose backups these are: the server's system identifier and the database."""

    system: str
    database: str

    @property
    def slug(self) -> str:
        """The database's name as a safe part of a file name."""
        return re.sub(r"[^A-Za-z0-9_.]", "_", self.database).lstrip(".") or "_"

    def owns(self, backup: Backup) -> bool:
        """Tell whether a backup is of this database."""
        found = backup.manifest.get("system_identifier"), backup.manifest.get("database")
        return found == (self.system, self.database)

    def hidden(self, what: str, name: str) -> str:
        """Return the name of something of ours that is no backup, or none any more."""
        return f".{what}-{self.system}-{self.slug}-{name}"


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
    marks = [mark for mark in (IMAGE_MARK, *CONTAINER_MARKS) if Path(mark).exists()]
    if in_own_layer(directory, _mounts(), marks):
        raise BackupFailed(
            "backup.not_mounted",
            f"{directory} is in this container's own layer: a backup there dies with it",
            f"Mount a volume: `docker run -v backups:{directory} …`, in compose "
            f"`volumes: [backups:{directory}]`, in Kubernetes a volumeMount of a PVC.",
        )


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
    nearest = ("/", "", "")
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        root, point = (_unescaped(field) for field in before.split()[3:5])
        if directory.is_relative_to(point) and len(point) >= len(nearest[0]):
            nearest = (point, after.split(maxsplit=1)[0], f"{root} {after}")
    point, kind, source = nearest
    if point != "/":
        return False
    if IMAGE_MARK in marks or _ENGINE.search(source):
        return True
    return bool(marks) and (kind in _LAYERED or bool(_ENGINE_LIKE.search(source)))


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


def require_space(directory: Path, identity: Identity, database_bytes: int) -> None:
    """Make sure that a backup will fit; raises BackupFailed."""
    ours = [item for item in listing(directory) if identity.owns(item)]
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


def listing(directory: Path) -> list[Backup]:
    """Return every whole backup, the oldest first; what is not one of ours is left out."""
    found = [_read(path) for path in directory.iterdir() if not path.name.startswith(".")]
    return sorted(filter(None, found), key=lambda item: (item.manifest["sequence"], item.name))


def _read(path: Path) -> Backup | None:
    """Return the backup in a directory; a clock may jump, so its `sequence` says when it was."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        if path.is_symlink():
            return None
        manifest = json.loads((path / MANIFEST).read_bytes())
        numbers = (manifest["sequence"], manifest["size_bytes"])
        if manifest["format"] == FORMAT and all(type(number) is int for number in numbers):
            whole = (path / DUMP).lstat().st_size == manifest["size_bytes"]
            return Backup(path, manifest) if whole else None
    return None


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
        sync(directory)
    with suppress(OSError):  # the lock goes with our descriptor; its file is of no use any more
        (final / LOCK).unlink()
    return Backup(final, manifest)


def write_durably(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write a manifest so that it is whole on the disk, or not there; replaces an older one."""
    new = path.with_name(f".{path.name}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(json.dumps(manifest, indent=2, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    sync(path.parent)


def sync(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def improve(backup: Backup, **said: object) -> Backup:
    """Replace a backup's manifest by one that says more; atomic and durable."""
    manifest = {**backup.manifest, **said}
    write_durably(backup.path / MANIFEST, manifest)
    return Backup(backup.path, manifest)


def withdraw(backup: Backup, identity: Identity) -> None:
    """Hide a backup that turned out to be none, for somebody to look at until the next `sweep`."""
    backup.path.rename(backup.path.with_name(identity.hidden("unproven", backup.name)))
    sync(backup.path.parent)


# keeping


def sweep(directory: Path, identity: Identity) -> None:
    """Remove what killed runs left of this database: the hidden, if no run holds its lock."""
    for kind in ("pruned", "unproven"):
        for path in directory.glob(identity.hidden(kind, "*")):
            shutil.rmtree(path, ignore_errors=True)
    for path in directory.glob(identity.hidden("partial", "*")):
        with suppress(OSError):
            if path.is_symlink():
                continue
            if not (path / LOCK).exists() and time.time() - path.stat().st_mtime > ABANDONED_S:
                shutil.rmtree(path)  # killed while it was made, or while it was removed
                continue
            descriptor = os.open(path / LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
            finally:
                os.close(descriptor)


def prune(directory: Path, identity: Identity, keep: int) -> None:
    """Keep the newest backups of this database; those with exports always. Failure is a warning."""
    log = structlog.get_logger()
    ours = [item for item in listing(directory) if identity.owns(item)]
    plain = [item for item in ours if not any(item.path.glob("export-*.csv"))]
    for item in surplus(plain, keep):
        hidden = directory / identity.hidden("pruned", item.name)
        try:
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
