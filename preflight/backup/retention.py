"""Which backups stay and which leftovers go."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path

import structlog

from preflight.backup import manifests, store

ABANDONED_S = 3600.0  # a directory without its lock file is being made or removed, or is left over


def sweep(directory: Path, identity: manifests.Identity) -> None:
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
    if not (path / store.LOCK).exists():
        return time.time() - path.stat().st_mtime > ABANDONED_S
    free = _free(path / store.LOCK)
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
        if error.errno in store.CANNOT_LOCK:
            return None
        raise
    else:
        return True
    finally:
        os.close(descriptor)


@contextmanager
def reading(backup: manifests.Backup) -> Iterator[Callable[[], None]]:
    """Keep a backup from being pruned; yields what to call now and then meanwhile.

    A lock says so on this machine; to others, and where there are no locks, a mark beside the
    dump that is renewed. Neither is a must: the directory may be read-only. Raises OSError.
    """
    mark = backup.path / f"{store.READER}{os.urandom(6).hex()}"
    dump = backup.path / manifests.DUMP
    descriptor = os.open(dump, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    renewed = time.monotonic()

    def renew() -> None:
        nonlocal renewed
        if time.monotonic() - renewed >= store.RENEW_S:
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


def _in_use(backup: manifests.Backup) -> bool:
    """Tell whether somebody reads a backup; raises OSError."""
    for mark in backup.path.glob(f"{store.READER}*"):
        if time.time() - mark.lstat().st_mtime < store.READER_S:
            return True
    return _free(backup.path / manifests.DUMP) is False


def prune(directory: Path, identity: manifests.Identity, keep: int) -> None:
    """Keep the newest backups of this database; those with exports always. Failure is a warning."""
    log = structlog.get_logger()
    ours = identity.ours(store.listing(directory))
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


def _awaited(backup: manifests.Backup) -> str | None:
    """Return the set of files that `up` took a backup for."""
    taken_for = backup.manifest.taken_for
    if taken_for is None or taken_for.command != "up" or not taken_for.pending:
        return None
    return json.dumps(taken_for.pending, sort_keys=True)


def surplus(backups: Sequence[manifests.Backup], keep: int) -> list[manifests.Backup]:
    """Return what may go, the oldest first given: all but the newest `keep`.

    Of a set of files that fails again and again only its first and its newest backup stay: `up`
    takes backups of one and the same set in a row only as long as it is not applied.
    """
    between: list[manifests.Backup] = []
    for wanted, group in groupby(backups, key=_awaited):
        between += list(group)[1:-1] if wanted else []
    left = [item for item in backups if item not in between]
    return between + left[: max(0, len(left) - max(1, keep))]
