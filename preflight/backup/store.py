"""The backup directory: what is in it, what is being built there, and how much is kept.

A backup is built under a hidden name on which its run holds a file lock, and renamed when it is
whole. What a killed run leaves keeps the hidden name and a free lock: the next run removes it.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from preflight.backup import manifests
from preflight.base import stop
from preflight.base.errors import BackupFailed

READER_S, RENEW_S = 3600.0, 60.0  # a reader is gone when it has not renewed its mark for so long
CANNOT_SYNC = {errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
CANNOT_LOCK = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
LOCK, READER = ".lock", ".reader-"


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


def require_space(directory: Path, identity: manifests.Identity, database_bytes: int) -> None:
    """Make sure that a backup will fit; raises BackupFailed."""
    ours = identity.ours(listing(directory))
    need = space_needed(ours[-1].manifest.size_bytes if ours else None, database_bytes)
    found = os.statvfs(directory)
    free = found.f_bavail * found.f_frsize
    if free < need:
        raise _no_space(
            directory, f"{free / 1e6:.1f} MB are free, about {need / 1e6:.1f} MB are needed"
        )


def space_needed(newest_bytes: int | None, database_bytes: int) -> int:
    """Return how many bytes must be free: by the newest backup, or by the database's size."""
    return database_bytes // 4 if newest_bytes is None else newest_bytes * 3 // 2


def listing(directory: Path) -> list[manifests.Backup]:
    """Return every whole backup, the oldest first; what is not one of ours is left out."""
    found = []
    for path in directory.iterdir():
        with suppress(manifests.Unreadable):
            found.append(manifests.read(path))
    return sorted(found, key=lambda item: (item.manifest.sequence, item.name))


def holds(backup: manifests.Backup) -> bool:
    """Tell whether a visible backup is there, under the manifest that was written for its dump."""
    try:
        found = manifests.read(backup.path).manifest
    except manifests.Unreadable:
        return False
    wanted = backup.manifest
    return (found.sha256, found.size_bytes, found.run_id) == (
        wanted.sha256,
        wanted.size_bytes,
        wanted.run_id,
    )


def seen(path: Path) -> tuple[int, ...]:
    """Return what changes when somebody writes to a file, replaces it or moves it away."""
    found = path.lstat()
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


# building


@contextmanager
def building(directory: Path, identity: manifests.Identity, run_id: str) -> Iterator[Path]:
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
    hidden: Path, directory: Path, identity: manifests.Identity, manifest: manifests.Manifest
) -> manifests.Backup:
    """Make a finished backup visible, durably."""
    earlier = (item.manifest.sequence for item in listing(directory))
    manifest = dataclasses.replace(manifest, sequence=1 + max(earlier, default=0))
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    final = directory / f"{identity.slug}-{stamp}-{manifest.run_id}"
    while final.exists():  # two backups of one run in one second
        final = final.with_name(f"{final.name}b")
    write_durably(hidden / manifests.MANIFEST, manifest.data())
    with stop.deferred():
        hidden.rename(final)
        try:
            sync(directory)
        except OSError:
            final.rename(hidden)  # what the message says is not there must not be seen
            raise
    with suppress(OSError):  # the lock goes with our descriptor; its file is of no use any more
        (final / LOCK).unlink()
    return manifests.Backup(final, manifest)


def write_durably(path: Path, content: Mapping[str, Any]) -> None:
    """Write a manifest, or a record beside it: whole on the disk, or not there."""
    new = path.with_name(f".{path.name}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n")
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


def improve(backup: manifests.Backup, manifest: manifests.Manifest) -> manifests.Backup:
    """Replace a backup's manifest by one that says more; atomic and durable."""
    write_durably(backup.path / manifests.MANIFEST, manifest.data())
    return manifests.Backup(backup.path, manifest)


def record_swap(backup: manifests.Backup, system: str, oid: int, said: Mapping[str, Any]) -> None:
    """Write beside a backup that a database with these rows is about to become the live one."""
    write_durably(_swap_record(backup, system, oid), said)


def swaps(backup: manifests.Backup, identity: manifests.Identity) -> dict[int, dict[str, Any]]:
    """Return what was recorded of each database that was made from a backup and swapped in."""
    found = {}
    for path in sorted(backup.path.glob(f"swap-{int(identity.system)}-*.json")):
        try:
            said = json.loads(manifests.small(path))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError, manifests.Unreadable):
            said = None  # it was, and nobody knows when
        said = said if isinstance(said, dict) else {}
        number = path.stem.rpartition("-")[2]
        if number.isdecimal() and said.get("address") in (None, identity.address):
            found[int(number)] = said
    return found


def _swap_record(backup: manifests.Backup, system: str, oid: int) -> Path:
    return backup.path / f"swap-{int(system)}-{oid}.json"


def withdraw(backup: manifests.Backup, identity: manifests.Identity) -> None:
    """Hide a backup that turned out to be none, for somebody to look at until the next `sweep`."""
    with suppress(FileNotFoundError):  # hidden already, or removed by somebody
        backup.path.rename(backup.path.with_name(identity.hidden("unproven", backup.name)))
    sync(backup.path.parent)
