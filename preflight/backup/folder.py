"""A dump that is a folder: several sessions of one client write it, a file a table.

pg_dump writes these files itself. So each is read while it grows, out of what the system still
holds of it in memory, and hashed; afterwards it is read back from the disk, and hashed again.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from preflight.backup import children, clients, manifests, new_database, passfile, reading_back
from preflight.base import stop
from preflight.base.errors import BackupFailed, BackupUnverified

if TYPE_CHECKING:
    from preflight.backup.manifests import Piece, Stored
    from preflight.backup.store import Store
    from preflight.server.sessions import Session

MOST_FILES = 50_000  # tables and large objects: each is a file
AT_LEAST = 2  # sessions, for several
THREADS = min(4, os.cpu_count() or 1)
PART = 1 << 20
# the words of pg_dump for what one session would not meet, or not so
_OF_SEVERAL = re.compile(
    r"could not obtain lock on relation|connection to server|out of shared mem"
)
_OF_THE_DISK = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE]


@dataclass(frozen=True, slots=True)
class Way:
    """How a dump is written: by how many sessions, and why by one where several were to."""

    jobs: int
    why: str = ""

    @property
    def told(self) -> dict[str, object]:
        """What an event says of it."""
        form = "folder" if self.jobs > 1 else "file"
        because = {"one_file_because": self.why} if self.why else {}
        return {"form": form, "jobs": self.jobs, **because}

    def after(self, failure: Exception) -> Way | None:
        """Return how to try again what may have failed because there were several."""
        if self.jobs == 1 or not isinstance(failure, children.ClientFailed):
            return None
        if failure.hope != "unknown" and not _OF_SEVERAL.search(str(failure)):
            return None
        return Way(1, f"the attempt by {self.jobs} sessions failed")


def way(session: Session, backups: Store, size: int, tables: int, *, sealed: bool) -> Way:
    """Return how a database of so many bytes and tables is dumped."""
    if size <= session.config.parallel_mb * 1_000_000:
        return Way(1)
    if session.config.jobs == 1:
        return Way(1, "PREFLIGHT_JOBS=1")
    if sealed or not backups.folders:
        return Way(1, f"it is {'sealed' if sealed else 'sent to a bucket'} while it is written")
    (objects,) = session.execute(_LARGE_OBJECTS).fetchone() or (0,)
    if tables + objects > MOST_FILES:
        return Way(1, f"{tables + objects} tables and large objects would be as many files")
    jobs = new_database.jobs(session, beside=1)  # the one that gives the others their work
    if jobs < AT_LEAST:
        return Way(1, "too few connections are free")
    return Way(jobs)


_LARGE_OBJECTS = "SELECT pg_catalog.count(*) FROM pg_catalog.pg_largeobject_metadata"


# written


def write(  # noqa: PLR0913, PLR0917 -- whom, with what, of what, by how many, and who looks on
    session: Session,
    programs: clients.Clients,
    snapshot: str,
    jobs: int,
    folder: Callable[[], AbstractContextManager[Path]],
    progress: clients.Progress,
    check: Callable[[], None],
) -> clients.Written:
    """Run pg_dump into a folder; raises ClientFailed, and OSError for what the disk refused.

    `check` is called at least once a second and may end it.
    """

    def run(command: Sequence[str]) -> clients.Written:
        # others of it connect later, so the password stays to the end
        with passfile.passfile(session) as environment, folder() as path:
            growing = Growing(path)

            def tick() -> None:
                check()
                growing.look()
                progress.tell_of_several(words.begun, words.finished, growing.sizes)

            command = [*command, f"--file={path}"]
            with (
                children.started(command, environment) as (child, words),
                children.guarded(child),
                progress,
            ):
                for _ in children.chunks(child, tick):  # it says nothing there, and ends
                    pass
                code, said = children.wait(child), words.said()
            if code != 0:
                raise _failed(code, said)
            growing.look()
        return clients.Written(manifests.combined(growing.pieces), words.warnings, growing.pieces)

    how = ["--format=directory", f"--jobs={jobs}"]
    return clients.compressed(session, programs, snapshot, how, run)


def _failed(code: int, said: str) -> Exception:
    """Return what a client's last words are: its own or the server's, or the disk's."""
    for number in _OF_THE_DISK:
        if os.strerror(number) in said and "from server" not in said:
            return OSError(number, os.strerror(number))
    return children.ClientFailed(said or f"it ended with {code}", children.hope_of(code, said))


class Growing:
    """Files that another program appends to, hashed as far as they are."""

    def __init__(self, folder: Path) -> None:
        self.sizes: dict[str, int] = {}
        self._folder = folder
        self._hashes: dict[str, hashlib._Hash] = {}

    @property
    def pieces(self) -> dict[str, Piece]:
        """What was seen of each file."""
        return {
            name: manifests.Piece(self.sizes[name], each.hexdigest())
            for name, each in self._hashes.items()
        }

    def look(self) -> None:
        """Read on, to where each file ends now; raises OSError."""
        with os.scandir(self._folder) as found:
            ends = {each.name: each.stat(follow_symlinks=False).st_size for each in found}
        for name, end in ends.items():
            at = self.sizes.setdefault(name, 0)
            digest = self._hashes.setdefault(name, hashlib.sha256())
            if at < end:
                with (self._folder / name).open("rb", buffering=0) as file:
                    file.seek(at)
                    self.sizes[name] = _read_on(file.read, digest, at, end)


def _read_on(read: Callable[[int], bytes], digest: hashlib._Hash, at: int, end: int) -> int:
    while at < end:
        with stop.allowed():
            part = read(min(PART, end - at))
        if not part:
            break
        digest.update(part)
        at += len(part)
    return at


# read back


def require_whole(  # noqa: PLR0913, PLR0917 -- all that it is held against
    backups: Store,
    name: str,
    written: clients.Written,
    programs: clients.Clients,
    environment: Mapping[str, str],
    wanted: Mapping[clients.Key, tuple[str, int]],
    roots: Mapping[clients.Key, clients.Key],
    jobs: int,
) -> int:
    """Read a backup's folder: hashes, whole archive, rows of each table; return its size in bytes.

    `wanted` gives for each table its name for people and its rows. Raises BackupUnverified.
    """
    found = pieces(backups, name)
    if manifests.TOC not in found:
        raise BackupUnverified("backup.empty", "pg_dump wrote nothing", clients.HINT)
    differing = sorted({file for file, _ in found.items() ^ written.files.items()})
    if differing:
        raise reading_back.damaged(
            f"{len(differing)} files differ from what pg_dump wrote, as {differing[0]}"
        )
    with backups.local(name, manifests.FOLDER) as dump:
        rows = rows_of(dump, programs, environment, jobs)
    reading_back.require_rows(None, rows, wanted, roots)
    return sum(each.size_bytes for each in found.values())


def pieces(backups: Store, name: str) -> dict[str, Piece]:
    """Read the files of a folder as the store has them; raises OSError."""
    files, ended = backups.pieces(name, manifests.FOLDER), threading.Event()
    with ThreadPoolExecutor(THREADS) as pool:
        reading = {
            file: pool.submit(_piece, backups, name, f"{manifests.FOLDER}/{file}", ended)
            for file in files
        }
        try:
            with stop.allowed():
                wait(reading.values())
        except BaseException:
            ended.set()
            raise
    return {file: each.result() for file, each in reading.items()}


def _piece(backups: Store, name: str, file: str, ended: threading.Event) -> Piece:
    digest, size = hashlib.sha256(), 0
    if not ended.is_set():
        with backups.open(name, file) as stream:
            while not ended.is_set() and (part := stream.read(PART)):
                digest.update(part)
                size += len(part)
    return manifests.Piece(size, digest.hexdigest())


def digest_of(backups: Store, name: str, wanted: Stored) -> str:
    """Return the hash of a dump as its store has it, a file or a folder; raises OSError."""
    if wanted.files:
        return manifests.combined(pieces(backups, name))
    return reading_back.hashed(backups, name, wanted.file).sha256


def rows_of(
    dump: Path, programs: clients.Clients, environment: Mapping[str, str], jobs: int
) -> dict[clients.Key, int]:
    """Return the rows of every table, read by several at a time; raises BackupUnverified."""
    command = clients.read_command(programs.pg_restore, dump)
    rows: Counter[clients.Key] = Counter()
    try:
        with ExitStack() as stack:
            lists = stack.enter_context(clients.lists_of_data(dump, programs, environment, jobs))
            readers = [
                stack.enter_context(children.started([*command, f"--use-list={each}"], environment))
                for each in lists
            ]
            counters = [reading_back.RowCounter() for _ in readers]
            for number, chunk in children.several([child for child, _ in readers]):
                counters[number].feed(chunk)
            for (child, words), counter in zip(readers, counters, strict=True):
                code, said = children.wait(child), words.said()
                rows.update(reading_back.judged(counter, programs, code, said))
    except children.ClientFailed as failure:
        if failure.hope == "none" and "does not start" not in str(failure):
            raise BackupUnverified("backup.unreadable", str(failure), clients.HINT) from failure
        raise BackupFailed("backup.no_client", str(failure), "Reinstall the client.") from failure
    return dict(rows)
