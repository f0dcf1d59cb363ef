"""What a dump may lie in meanwhile, on this machine: a file without a name, or a folder.

Both are gone with us: a folder, which has a name, by a guard that notices our end.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from preflight.backup import children, mounts
from preflight.base import console

if TYPE_CHECKING:
    from collections.abc import Callable

PREFIX = ".preflight-spool-"
YOUNG_S = 60.0  # one without a lock may just be made
SET = (
    "Set PREFLIGHT_SPOOL_DIR to a directory with room for the dump; what is put there is gone with "
    "the run."
)
HINT = f"{SET} Or copy the whole backup into a directory, and restore from there."
DESCRIPTORS = "/proc/self/fd"  # through which other programs find a file without a name


def unusable(directory: Path, needed: int) -> str | None:
    """Return why a copy of so many bytes cannot lie there, if that is known before it is made."""
    try:
        free = mounts.free(directory)
    except OSError as error:
        return error.strerror
    if free is None or free >= needed:
        return None
    return f"{console.size(free)} are free, {console.size(needed)} are needed"


def _sweep(directory: Path) -> None:
    """Remove what killed runs left on a system without /proc: nobody holds its lock."""
    for path in directory.glob(f"{PREFIX}*"):
        with suppress(OSError), path.open("rb") as left:
            fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - path.stat().st_mtime > YOUNG_S:
                path.unlink()


class Spool:
    """An open file, which other programs find under `path`; raises OSError."""

    def __init__(self, directory: Path) -> None:
        if not Path(DESCRIPTORS).exists():
            _sweep(directory)
        self._file = tempfile.NamedTemporaryFile(prefix=PREFIX, dir=directory)  # noqa: SIM115 -- closed by `close`
        self.path = self._named = Path(self._file.name)
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if Path(DESCRIPTORS).exists():
            self.path.unlink(missing_ok=True)  # a kill leaves nothing
            self.path = Path(f"/proc/{os.getpid()}/fd/{self._file.fileno()}")

    def __enter__(self) -> Self:
        """Do nothing: it is there from the beginning."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let it go."""
        self.close()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next part."""
        self._file.write(data)

    def flush(self) -> None:
        """Let others see all of it."""
        self._file.flush()

    def close(self) -> None:
        """Let it go, and its room with it."""
        with suppress(OSError):
            if self.path != self._named:
                self._named.touch(0o600)  # which the file's own end removes
        with suppress(OSError):
            self._file.close()


FOLDER = f"{PREFIX}folder-"


def _sweep_folders(directory: Path) -> None:
    """Remove the folders that nobody holds any more: the machine went down, and the guard too."""
    for path in directory.glob(f"{FOLDER}*"):
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - path.stat().st_mtime > YOUNG_S:
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)


class Folder:
    """An empty folder at `path` for another program to write into; raises OSError."""

    def __init__(self, directory: Path) -> None:
        _sweep_folders(directory)
        self.path = Path(tempfile.mkdtemp(prefix=FOLDER, dir=directory.resolve()))
        held = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(held, fcntl.LOCK_SH)  # who sweeps has it for a moment
        guard = children.removed_with_us(self.path)
        self._end = weakref.finalize(self, _remove, self.path, held, guard)

    def __enter__(self) -> Self:
        """Do nothing: it is there from the beginning."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let it go."""
        self.close()

    def close(self) -> None:
        """Let it go, and its room with it."""
        self._end()


def _remove(path: Path, held: int, guard: Callable[[], None]) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(held)
    guard()
