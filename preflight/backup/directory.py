"""The store of backups that is a directory.

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
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from preflight.backup import manifests, mounts, store
from preflight.base import stop
from preflight.base.errors import BackupFailed

if TYPE_CHECKING:
    import io

    from preflight.backup.manifests import Backup, Identity, Listed, Manifest

READER_S, RENEW_S = 3600.0, 60.0  # a reader is gone when it has not renewed its mark for so long
AWAITED_S = 3.0  # for another run that removes a backup, or only looks whether it may
ABANDONED_S = 3600.0  # a directory without its lock file is being made or removed, or is left over
CANNOT_SYNC = {errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
CANNOT_CHMOD = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
SAYS_NOTHING = {  # of what is in a file
    errno.EACCES, errno.EPERM, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EMFILE,
    errno.ENFILE, errno.ENOMEM,
}  # fmt: skip
CANNOT_LOCK = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
LOCK, READER = ".lock", ".reader-"
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Directory(store.Store):
    """Backups in a directory, each in one of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def place(self) -> str:
        """The directory as it was named."""
        return str(self._path)

    @cached_property
    def _root(self) -> Path:
        """The real path: a link that is turned meanwhile leads nowhere else; raises OSError."""
        root = Path(os.path.realpath(self._path, strict=True))
        if not root.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return root

    def failure(self, error: OSError) -> BackupFailed:
        """Say whether it lacks room, rights or the directory."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return self._no_space(os.strerror(error.errno))
        hint = "Set PREFLIGHT_BACKUP_DIR to a directory that exists, or mount a volume there."
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            hint = (
                f"Make it writable for user {os.getuid()} (chown, or fsGroup in Kubernetes), "
                "or set PREFLIGHT_BACKUP_DIR."
            )
        return BackupFailed(
            "backup.directory", f"backups cannot be kept in {self.place}: {error.strerror}", hint
        )

    def _no_space(self, why: str) -> BackupFailed:
        return BackupFailed(
            "backup.no_space",
            f"no space for a backup in {self.place}: {why}",
            "Free or add space; older backups were not touched. PREFLIGHT_BACKUP_KEEP says how "
            "many are kept.",
        )

    # what is there

    def listed(self) -> Listed:
        """Return every backup; what is not one of ours is left out."""
        return store.listed(store.tried(self.read, path.name) for path in self._root.iterdir())

    def read(self, name: str) -> Backup:
        """Return one backup; raises FileNotFoundError, Unreadable.

        Others may write there: nothing is followed, waited for, or believed to be of the type that
        it should be.
        """
        path = self._root / name
        if not path.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        found = None
        try:
            if name.startswith("."):
                raise manifests.Never("it is hidden")
            if path.is_symlink():  # whoever can make one could lead us anywhere
                raise manifests.Unreadable("it is a link, and none is followed")
            said = json.loads(store.small(self, name, manifests.MANIFEST))
            found = manifests.parsed(said)
            wrong = _wrong(path, found.stored)
        except OSError as error:
            if not path.exists():
                raise  # removed meanwhile
            none = error.errno == errno.ENOENT and str(error.filename).endswith(manifests.MANIFEST)
            why = f"{error.filename or path} cannot be read: {error.strerror}"
            if none and manifests.CALLED.fullmatch(name) and _has_dump(path):
                raise manifests.Unreadable(f"its {manifests.MANIFEST} is not there") from error
            if error.errno in SAYS_NOTHING:
                raise manifests.Withheld(f"{why}{_whose(error, path)}", found) from error
            raise (manifests.Never if none else manifests.Unreadable)(why, found) from error
        except (ValueError, RecursionError, MemoryError) as error:
            why = f"{manifests.MANIFEST} is not the JSON that it should be"
            raise manifests.Unreadable(why) from error
        if wrong:
            raise manifests.Unreadable(wrong, found)
        return manifests.Backup(name, found)

    def files(self, name: str) -> list[str]:
        """Return what is there and not hidden."""
        names = sorted(each.name for each in (self._root / name).iterdir())
        return [each for each in names if not each.startswith(".")]

    @property
    def folders(self) -> bool:
        """A client writes into one as we do."""
        return True

    def pieces(self, name: str, folder: str) -> dict[str, int | None]:
        """Return what is in a folder and not hidden, and its size."""
        return _sizes(self._root / name / folder)

    # what is written

    def expect(self, most_bytes: int) -> None:
        """Let a file grow as it is written."""

    @contextmanager
    def draft(self, identity: Identity, run_id: str, needed: int) -> Iterator[str]:
        """Make a hidden directory that this run holds a file lock on; removed unless published."""
        mounts.require_mounted(self._root)
        sweep(self._root, identity)
        self._require_space(needed)
        hidden = self._root / identity.hidden("partial", run_id)
        hidden.mkdir(mode=0o700)
        descriptor = -1
        try:
            unlocked = hidden / f"{LOCK}.new"  # no sweep meets the lock's file without its lock
            descriptor = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            with suppress(OSError):  # some network file systems have no locks
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unlocked.rename(hidden / LOCK)
            yield hidden.name
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
            if descriptor >= 0:
                _close(descriptor)

    def _require_space(self, needed: int) -> None:
        free = mounts.free(self._root)
        if free is not None and free < needed:
            raise self._no_space(
                f"{free / 1e6:.1f} MB are free, about {needed / 1e6:.1f} MB are needed"
            )

    @contextmanager
    def sink(self, name: str, file: str) -> Iterator[store.Sink]:
        """Write beside the file and rename; in a draft, which nobody sees, in its place."""
        path = self._root / name / file
        new = path if name.startswith(".") else path.with_name(f".{file}.new")
        with _written(path, new) as made:
            yield made

    @contextmanager
    def folder(self, name: str, file: str) -> Iterator[Path]:
        """Make one, in place of what an earlier attempt left; what was written is made durable."""
        path = self._root / name / file
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(mode=0o700)
        try:
            yield path
            for each in path.iterdir():
                _settle(each)
            for each in (path, path.parent):
                sync(each)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise

    def send(self, name: str, file: str, chunks: Iterable[bytes], *, little: bool) -> None:  # noqa: ARG002 -- one way for all
        """Write it into a folder that is made with the first one."""
        with suppress(FileExistsError):
            (self._root / name / file).parent.mkdir(mode=0o700)
        with self.sink(name, file) as sink:
            for chunk in chunks:
                sink.write(chunk)
        sync((self._root / name / file).parent)

    def discard(self, name: str, folder: str) -> None:
        """Remove a folder with all that is in it."""
        shutil.rmtree(self._root / name / folder, ignore_errors=True)

    def publish(self, draft: str, identity: Identity, manifest: Manifest) -> Backup:
        """Rename the hidden directory once its manifest is on the disk."""
        hidden = self._root / draft
        manifest = dataclasses.replace(manifest, sequence=manifests.following(self.listing()))
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        final = self._root / f"{identity.slug}-{stamp}-{manifest.run_id}"
        while final.exists():  # two backups of one run in one second
            final = final.with_name(f"{final.name}b")
        _write_manifest(hidden, manifest)
        with stop.deferred():
            hidden.rename(final)
            try:
                sync(self._root)
            except OSError:
                final.rename(hidden)  # what the message says is not there must not be seen
                raise
        with suppress(OSError):  # the lock goes with our descriptor; its file is of no use any more
            (final / LOCK).unlink()
        return manifests.Backup(final.name, manifest)

    def improve(self, backup: Backup, manifest: Manifest) -> Backup:
        """Replace the manifest."""
        _write_manifest(self._root / backup.name, manifest)
        return manifests.Backup(backup.name, manifest)

    def withdraw(self, backup: Backup, identity: Identity) -> None:
        """Hide it, for somebody to look at until the next `sweep`."""
        with suppress(FileNotFoundError):  # hidden already, or removed by somebody
            hidden = self._root / identity.hidden("unproven", backup.name)
            (self._root / backup.name).rename(hidden)
        sync(self._root)

    def remove(self, backup: Backup, identity: Identity) -> bool:
        """Hide it and remove what is hidden: a kill in between leaves no half of it in view."""
        path, hidden = self._root / backup.name, self._root / identity.hidden("pruned", backup.name)
        with _alone(path) as alone:
            if not alone:
                return False
            path.rename(hidden)
        shutil.rmtree(hidden)
        return True

    def apart(self, identity: Identity, run_id: str) -> str:
        """Make a directory that has no manifest: it is in no listing, and nobody sweeps it."""
        mounts.require_mounted(self._root)
        path = self._root / f"{identity.slug}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{run_id}"
        while path.exists():  # two of one run in one second
            path = path.with_name(f"{path.name}b")
        path.mkdir(mode=0o700)
        sync(self._root)
        return path.name

    def forget(self, name: str) -> None:
        """Remove the directory."""
        shutil.rmtree(self._root / name, ignore_errors=True)

    @contextmanager
    def holding(self, name: str) -> Iterator[None]:
        """Lock the dump as a reader does, without a mark: nobody would remove that after a kill."""
        descriptor = -1
        try:
            with suppress(OSError):  # what is gone already is told at the end
                dump = _dump(self._root / name)
                descriptor = os.open(dump, _READ)
                _share(descriptor, dump)
            yield
        finally:
            if descriptor >= 0:
                _close(descriptor)

    # what is read

    @contextmanager
    def open(self, name: str, file: str) -> Iterator[store.Stream]:
        """Read from the disk, and not from the cache; no link is followed, no pipe waited for."""
        path = self._root / name / file
        with os.fdopen(os.open(path, _READ), "rb", buffering=0) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise OSError(errno.EINVAL, "it is no plain file", str(path))
            with suppress(OSError, AttributeError):
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            yield stream

    @contextmanager
    def local(self, name: str, file: str) -> Iterator[Path]:
        """Yield the file itself, or the folder."""
        yield self._root / name / file

    def stamp(self, name: str, file: str) -> object:
        """Return which file it is, its size and times."""
        path = self._root / name / file
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode):
            return _looks(found)
        with os.scandir(path) as within:
            files = sorted((each.name, _looks(each.stat(follow_symlinks=False))) for each in within)
        return _looks(found), files

    @contextmanager
    def reading(self, name: str) -> Iterator[Callable[[], None]]:
        """Lock the dump, which this machine sees, and renew a mark beside it, which others see.

        Where there are no locks the mark tells. Neither is a must: the directory may be read-only.
        """
        path = self._root / name
        mark, dump = path / f"{READER}{os.urandom(6).hex()}", _dump(path)
        descriptor = os.open(dump, _READ)
        renewed = time.monotonic()

        def renew() -> None:
            nonlocal renewed
            if time.monotonic() - renewed >= RENEW_S:
                renewed = time.monotonic()
                with suppress(OSError):
                    os.utime(mark)

        try:
            _share(descriptor, dump)
            with suppress(OSError):
                mark.touch(0o600)
            if not os.path.samestat(os.fstat(descriptor), dump.lstat()):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(dump))
            yield renew
        finally:
            with suppress(OSError):
                mark.unlink()
            _close(descriptor)


# files


def _looks(found: os.stat_result) -> tuple[int, ...]:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _whose(error: OSError, path: Path) -> str:
    """Return whose a file is that this user may not read, or the backup that it is in."""
    for each in (error.filename, path) if isinstance(error, PermissionError) else ():
        with suppress(OSError, TypeError):
            return f" (it is of user {Path(each).stat().st_uid}, and this is user {os.getuid()})"
    return ""


def _sizes(folder: Path) -> dict[str, int | None]:
    """Return how many bytes each file of a folder has, None: it is no plain file; raises OSError.

    What is hidden is left out: network file systems keep files so that are still open somewhere.
    """
    if not stat.S_ISDIR(folder.lstat().st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    with os.scandir(folder) as within:
        looks = {
            each.name: each.stat(follow_symlinks=False)
            for each in within
            if not each.name.startswith(".")
        }
    return {name: at.st_size if stat.S_ISREG(at.st_mode) else None for name, at in looks.items()}


def _wrong(path: Path, wanted: manifests.Stored) -> str | None:
    """Return what of a backup's dump is not there as its manifest says; raises OSError."""
    if not wanted.files:
        dump = (path / wanted.file).lstat()
        if stat.S_ISREG(dump.st_mode) and dump.st_size == wanted.size_bytes:
            return None
        return f"{wanted.file} is no file of {wanted.size_bytes} bytes"
    return wanted.lacks(_sizes(path / wanted.file))


def _close(descriptor: int) -> None:
    """Give back what holds nothing more to be written; FUSE and NFS may fail even so."""
    with suppress(OSError):
        os.close(descriptor)


def _settle(path: Path) -> None:
    """Make a file that another program wrote durable, and ours alone; raises OSError."""
    descriptor = os.open(path, _READ)
    try:
        try:
            os.fchmod(descriptor, 0o600)
        except OSError as error:  # FUSE, FAT: all files have the rights of the mount
            if error.errno not in CANNOT_CHMOD:
                raise
        os.fsync(descriptor)
    finally:
        _close(descriptor)


class _Sink:
    """A file that is being written."""

    def __init__(self, file: io.BufferedWriter) -> None:
        self.file = file
        self.abandoned = False

    def write(self, data: bytes | bytearray | memoryview, /) -> object:
        """Take the next part."""
        return self.file.write(data)

    def abandon(self) -> None:
        """Keep nothing."""
        self.abandoned = True


@contextmanager
def _written(path: Path, new: Path) -> Iterator[_Sink]:
    """Write a file under a new name, and give it its own when it is whole on the disk.

    In a draft it is the name itself: an earlier attempt may have left a whole dump there.
    """
    if new == path:
        path.unlink(missing_ok=True)
    how = os.O_EXCL if new == path else os.O_TRUNC
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | how
    made, whole = _Sink(os.fdopen(os.open(new, flags, 0o600), "wb")), False
    try:
        yield made
        if made.abandoned:
            return
        made.file.flush()
        os.fsync(made.file.fileno())
        if new != path:
            new.replace(path)
            sync(path.parent)
        whole = True
    finally:
        with suppress(OSError):  # what could not be flushed was said above
            made.file.close()
        if not whole:
            new.unlink(missing_ok=True)


def _write_manifest(directory: Path, manifest: Manifest) -> None:
    path = directory / manifests.MANIFEST
    with _written(path, path.with_name(f".{path.name}.new")) as made:
        made.write(manifest.text())


def sync(directory: Path) -> None:
    """Make the names in a directory durable, where its file system can."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # CIFS, vboxsf, some of FUSE: PostgreSQL goes on there, too
        if error.errno not in CANNOT_SYNC:
            raise
    finally:
        _close(descriptor)


# what others do there


def sweep(root: Path, identity: Identity) -> None:
    """Remove what killed runs left of this database: the hidden, if no run holds its lock."""
    for kind in ("pruned", "unproven", "partial"):
        for path in (path for each in identity.patterns(kind) for path in root.glob(each)):
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
    with _tried(path / LOCK) as free:
        pass
    if free is None:
        return time.time() - max(each.lstat().st_mtime for each in path.rglob("*")) > ABANDONED_S
    return free


@contextmanager
def _tried(path: Path) -> Iterator[bool | None]:
    """Hold a file's lock; yields whether it was free, None where locks cannot be had."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield _locked(descriptor)
    finally:
        _close(descriptor)


def _locked(descriptor: int) -> bool | None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in CANNOT_LOCK:
            return None
        raise
    return True


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Yield whether nobody reads a backup; where there are locks nobody begins meanwhile, either.

    Raises OSError.
    """
    marks = [mark.lstat().st_mtime for mark in path.glob(f"{READER}*")]
    if any(time.time() - renewed < READER_S for renewed in marks):
        yield False
        return
    with _tried(_dump(path)) as free:
        yield free is not False


def _has_dump(path: Path) -> bool:
    """Tell whether a dump is in a directory, sealed or not, a file or a folder, or a part of one.

    A run shows it with its manifest: where that lacks, it was lost, or a copy has not come so far.
    Other programs copy under a hidden name that begins so. Exports beside no dump have no manifest.
    """
    begins = (manifests.DUMP, manifests.FOLDER)
    try:
        return any(each.name.removeprefix(".").startswith(begins) for each in path.iterdir())
    except OSError:
        return False


def _share(descriptor: int, dump: Path) -> None:
    """Lock a dump as its readers do, where there are locks; who removes it keeps them out.

    Raises FileNotFoundError.
    """
    for waited in stop.looks(0.05, 0.2):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            if waited > AWAITED_S or not dump.exists():
                why = "another run is removing it"
                raise FileNotFoundError(errno.ENOENT, why, str(dump)) from None
        except OSError:
            return
        else:
            return


def _dump(path: Path) -> Path:
    """Return the dump's file, sealed or not, or the one that is in each folder."""
    sealed = path / f"{manifests.DUMP}{manifests.SEALED}"
    toc = path / manifests.FOLDER / manifests.TOC
    others = (sealed, toc, toc.with_name(f"{toc.name}{manifests.SEALED}"))
    return next((each for each in others if each.exists()), path / manifests.DUMP)
