"""The password for a client, in a private file that does not outlive it."""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from preflight.base.errors import BackupFailed
from preflight.server import sessions

if TYPE_CHECKING:
    from preflight.server.sessions import Session
MEMORY = Path("/dev/shm")  # noqa: S108 -- a secret there never reaches a disk; `_held` makes it safe
PASSFILE = "pg-preflight-password-"
FILES = "the command's private files"


def memory() -> Path:
    """Return where small private files go."""
    return MEMORY if os.access(MEMORY, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())


@contextmanager
def passfile(session: Session) -> Iterator[tuple[Mapping[str, str], dict[str, str]]]:
    """Yield an environment, and where a client is to go; the password is in a private file.

    That is removed afterwards. A service file may have a password or a passfile of its own, which
    libpq takes before the environment's: so both are said, of the password that it is not there.
    """
    environment, address = session.config.child_env, session.client_address() | sessions.UNSAID
    password = session.secrets().get("password")
    if hidden := sorted(session.secrets().keys() - {"password"}):
        raise BackupFailed(
            "backup.password",
            f"pg_dump cannot be given {', '.join(hidden)} without showing it to other users",
            "Use a key file without a passphrase, or a password.",
        )
    if not password:
        yield environment, address
        return
    if re.search(r"[\r\n]", password):
        raise BackupFailed(
            "backup.password",
            "the password holds a line break, which a libpq passfile cannot hold",
            "Give the role a password of one line.",
        )
    escaped = password.replace("\\", "\\\\").replace(":", "\\:")
    what = "pg_dump's private passfile"
    with placed(what):
        place = memory()
        sweep(place)
        file = _held(place)
    with _gone_afterwards(file):
        _write(file, [f"*:*:*:*:{escaped}\n".encode()], what)
        yield {**environment, "PGPASSFILE": file.name}, address | {"passfile": file.name}


@contextmanager
def private(lines: Iterable[bytes]) -> Iterator[Path]:
    """Yield a private file of lines for another program, removed afterwards."""
    what = "a private list for pg_restore"
    with placed(what):
        file = _held(memory())
    with _gone_afterwards(file):
        _write(file, lines, what)
        yield Path(file.name)


@contextmanager
def folder(prefix: str) -> Iterator[Path]:
    """Yield a directory for the private files of another program, removed afterwards."""
    with placed(FILES):
        made = tempfile.TemporaryDirectory(prefix=prefix, dir=memory())
    with made as path:
        yield Path(path)


@contextmanager
def placed(what: str) -> Iterator[None]:
    """Say what has no place: nowhere may this user write, or nothing is free there."""
    try:
        yield
    except OSError as error:
        raise BackupFailed(
            "backup.no_temporary",
            f"no place for {what}: {error.strerror}",
            f"Let this user write to {MEMORY} or /tmp, or set TMPDIR, and free room there.",
        ) from error


def _write(file: IO[bytes], lines: Iterable[bytes], what: str) -> None:
    """Write all of it, so that others see it."""
    with placed(what):
        try:
            file.writelines(lines)
            file.flush()
        except OSError:
            with suppress(OSError):  # it tries to write the rest once more
                file.close()
            raise


def _held(place: Path) -> IO[bytes]:
    """Make a file (0600) that no sweep takes: it is locked, and was not taken before that."""
    while True:
        file = tempfile.NamedTemporaryFile(prefix=PASSFILE, dir=place, delete=False)  # noqa: SIM115 -- `_gone_afterwards` closes it
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(file, fcntl.LOCK_SH)
        if Path(file.name).exists():
            return file
        file.close()


@contextmanager
def _gone_afterwards(file: IO[bytes]) -> Iterator[None]:
    try:
        with file:
            yield
    finally:
        Path(file.name).unlink(missing_ok=True)


def sweep(place: Path) -> None:
    """Remove what a run left that was killed before pg_dump was connected."""
    for path in place.glob(f"{PASSFILE}*"):
        with suppress(OSError), path.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
