"""A dump that is a folder: several sessions of one client write it, a file a table.

pg_dump writes these files itself. So each is read while it grows, out of what the system still
holds of it in memory, and hashed; afterwards it is read back from the disk, and hashed again.
Sealed, or for a bucket, it lies on this machine meanwhile, and each file is sent when it is whole.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from preflight.backup import (
    children,
    clients,
    lanes,
    manifests,
    new_database,
    passfile,
    progress,
    reading_back,
    sealing,
)
from preflight.base import stop
from preflight.base.errors import BackupUnverified

if TYPE_CHECKING:
    import io

    from preflight.backup.manifests import Piece, Stored
    from preflight.backup.store import Store
    from preflight.server.sessions import Session

MOST_FILES = 50_000  # tables and large objects: each is a file
MOST_SENT = 5_000  # to a bucket: each is three requests, and one more in a listing of thousands
AT_LEAST = 2  # sessions, for several
THREADS = min(4, os.cpu_count() or 1)
PART = 1 << 20
# the words of pg_dump for what one session would not meet, or not so
_OF_SEVERAL = re.compile(
    r"could not obtain lock on relation|connection to server|out of shared mem|"
    r"PREFLIGHT_SPOOL_DIR"
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


def way(session: Session, backups: Store, seal: sealing.Seal, size: int, tables: int) -> Way:
    """Return how a database of so many bytes and tables is dumped."""
    if size <= session.config.parallel_mb * 1_000_000:
        return Way(1)
    if session.config.jobs == 1:
        return Way(1, "PREFLIGHT_JOBS=1")
    if is_sent(backups, seal) and (why := seal.unplaced()):
        meanwhile = "sealed" if seal.on else "sent to a bucket"
        return Way(1, f"it is {meanwhile} while it is written, for {why}")
    (objects,) = session.execute(_LARGE_OBJECTS).fetchone() or (0,)
    if tables + objects > (MOST_SENT if backups.remote else MOST_FILES):
        return Way(1, f"{tables + objects} tables and large objects would be as many files")
    jobs = new_database.jobs(session, beside=1)  # the one that gives the others their work
    if jobs < AT_LEAST:
        return Way(1, "too few connections are free")
    return Way(jobs)


def is_sent(backups: Store, seal: sealing.Seal) -> bool:
    """Tell whether a folder lies on this machine first, and is sent to its store from there."""
    return seal.on or not backups.folders


_LARGE_OBJECTS = "SELECT pg_catalog.count(*) FROM pg_catalog.pg_largeobject_metadata"


# written


def write(  # noqa: PLR0913, PLR0917 -- whom, with what, of what, by how many, and who looks on
    session: Session,
    programs: clients.Clients,
    snapshot: str,
    jobs: int,
    folder: Callable[[], AbstractContextManager[Path]],
    sending: Callable[[Path], AbstractContextManager[Sending]] | None,
    progress: clients.Progress,
    check: Callable[[], None],
) -> clients.Written:
    """Run pg_dump into a folder; raises ClientFailed, and OSError for what the disk refused.

    `sending` is what takes the files elsewhere. `check` is called at least once a second and may
    end it.
    """

    def run(command: clients.Command) -> clients.Written:
        # others of it connect later, so the password stays to the end
        with (
            passfile.passfile(session) as (environment, address),
            folder() as path,
            sending(path) if sending else nullcontext() as sent,
        ):
            growing = Growing(path)

            def tick() -> None:
                check()
                whole = [number for number, _ in words.finished]
                growing.look()
                if sent:
                    sent.look(whole, growing.sizes)
                progress.tell_of_several(words.begun, words.finished, growing.sizes)

            called = [*command(address), f"--file={path}"]
            with (
                children.started(called, environment) as (child, words),
                children.guarded(child),
                progress,
            ):
                for _ in children.chunks(child, tick):  # it says nothing there, and ends
                    pass
                code, said = children.wait(child), words.said()
            if code != 0:
                raise _failed(code, said, elsewhere=sent is None)
            growing.look()
            pieces = sent.finish(growing.pieces) if sent else growing.pieces
        return clients.Written(manifests.combined(pieces), words.warnings, pieces)

    how = ["--format=directory", f"--jobs={jobs}"]
    return clients.compressed(session, programs, snapshot, how, run)


def _failed(code: int, said: str, *, elsewhere: bool) -> Exception:
    """Return what a client's last words are: its own or the server's, or the disk's.

    `elsewhere`: that disk is where backups are kept; else it is this machine's.
    """
    for number in _OF_THE_DISK:
        if os.strerror(number) in said and "from server" not in said:
            error = OSError(number, os.strerror(number))
            return error if elsewhere else sealing.unstaged(error)
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


# sent


@contextmanager
def sending(backups: Store, name: str, seal: sealing.Seal, path: Path) -> Iterator[Sending]:
    """Send a folder's files to a draft while it is written; after a failure none is there."""

    def send(lane: lanes.Lanes[Piece], file: str) -> Piece:
        with (path / file).open("rb", buffering=0) as stream:
            little = os.fstat(stream.fileno()).st_size <= lanes.LITTLE
            sent = seal.sent(_chunks(stream, lane))
            backups.send(name, f"{manifests.FOLDER}/{seal.file(file)}", sent, little=little)
        assert sent.piece is not None  # noqa: S101 -- all of it was taken
        return sent.piece

    try:
        with lanes.Lanes(send, 1) as lane:
            yield Sending(lane)
    except BaseException:
        if stop.requested() is None:  # else the draft's own end removes it
            with suppress(OSError):
                backups.discard(name, manifests.FOLDER)
        raise


def _chunks(stream: io.FileIO, lane: lanes.Lanes[Piece]) -> Iterator[bytes]:
    while chunk := stream.read(children.CHUNK):
        lane.went(len(chunk))
        yield chunk


class Sending:
    """The files of a folder on their way: one of the large ones at a time, many of the little."""

    def __init__(self, lane: lanes.Lanes[manifests.Piece]) -> None:
        self._lane = lane
        self._sent: set[str] = set()

    def look(self, whole: Iterable[int], sizes: Mapping[str, int]) -> None:
        """Send what is whole by now, as pg_dump numbers it; raises what went wrong."""
        self._lane.check()
        numbers = set(map(str, whole))
        self._add({name: size for name, size in sizes.items() if name.partition(".")[0] in numbers})

    def _add(self, sizes: Mapping[str, int]) -> None:
        for name in sizes.keys() - self._sent:
            self._sent.add(name)
            self._lane.add(name, sizes[name])

    def finish(self, written: Mapping[str, Piece]) -> dict[str, Piece]:
        """Send the rest; return what each is, sealed or not. Raises BackupDamaged."""
        self._add({name: piece.size_bytes for name, piece in written.items()})
        total = manifests.total(written)
        sent = self._lane.finish(progress.Moving("backup.progressed", "upload", total))
        for name, piece in written.items():
            if (sent[name].size_bytes, sent[name].sha256) != (piece.size_bytes, piece.sha256):
                raise reading_back.damaged(f"{name} is not what pg_dump wrote")
        return sent


# read back


def require_whole(  # noqa: PLR0913, PLR0917 -- all that it is held against
    backups: Store,
    name: str,
    spooled: Path | None,
    written: clients.Written,
    programs: clients.Clients,
    environment: Mapping[str, str],
    wanted: Mapping[clients.Key, tuple[str, int]],
    roots: Mapping[clients.Key, clients.Key],
    jobs: int,
) -> int:
    """Read a backup's folder: hashes, whole archive, rows of each table; return its size in bytes.

    What was sent there from a folder `spooled` on this machine has its rows counted there: of the
    same hash, that is what is stored.
    `wanted` gives for each table its name for people and its rows. Raises BackupUnverified.
    """
    found = pieces(backups, name)
    if manifests.TOC not in written.files:
        raise BackupUnverified("backup.empty", "pg_dump wrote nothing", clients.HINT)
    sealed = written.files[manifests.TOC].sealed_sha256 is not None
    sent = manifests.sealed(written.files) if sealed else written.files
    differing = sorted({file for file, _ in found.items() ^ sent.items()})
    if differing:
        raise reading_back.damaged(
            f"{len(differing)} files differ from what pg_dump wrote, as {differing[0]}"
        )
    with nullcontext(spooled) if spooled else backups.local(name, manifests.FOLDER) as dump:
        expected = sum(count for _, count in wanted.values())
        rows = rows_of(dump, programs, environment, jobs, expected)
    reading_back.require_rows(None, rows, wanted, roots)
    return manifests.total(written.files)


def pieces(backups: Store, name: str) -> dict[str, Piece]:
    """Read the files of a folder as the store has them; raises OSError."""
    part_bytes = lanes.ASKED if backups.remote else PART  # there each is a request

    def piece(lane: lanes.Lanes[Piece], file: str) -> Piece:
        digest, size = hashlib.sha256(), 0
        with backups.open(name, f"{manifests.FOLDER}/{file}") as stream:
            while part := stream.read(part_bytes):
                digest.update(part)
                size += len(part)
                lane.went(len(part))
        return manifests.Piece(size, digest.hexdigest())

    files = backups.pieces(name, manifests.FOLDER)
    with lanes.Lanes(piece, lanes.LARGE_AT_ONCE if backups.remote else THREADS) as reading:
        for file, size in files.items():
            reading.add(file, size or 0)
        total = sum(size or 0 for size in files.values())
        return reading.finish(progress.Moving("backup.progressed", "read back", total))


def digest_of(backups: Store, name: str, wanted: Stored) -> str:
    """Return the hash of a dump as its store has it, a file or a folder; raises OSError."""
    if wanted.files:
        return manifests.combined(pieces(backups, name))
    return reading_back.hashed(backups, name, wanted.file).sha256


def rows_of(
    dump: Path,
    programs: clients.Clients,
    environment: Mapping[str, str],
    jobs: int,
    expected: int = 0,
) -> dict[clients.Key, int]:
    """Return the rows of every table, read by several at a time; raises BackupUnverified."""
    command = clients.read_command(programs.pg_restore, dump)
    rows: Counter[clients.Key] = Counter()
    told = progress.Moving("backup.progressed", "count", expected, "rows")
    try:
        with ExitStack() as stack:
            stack.enter_context(told)
            lists = stack.enter_context(clients.lists_of_data(dump, programs, environment, jobs))
            readers = [
                stack.enter_context(children.started([*command, f"--use-list={each}"], environment))
                for each in lists
            ]
            counters = [reading_back.RowCounter() for _ in readers]
            for number, chunk in children.several([child for child, _ in readers]):
                counters[number].feed(chunk)
                if told.due:
                    told.tell(sum(sum(each.rows.values()) for each in counters))
            for (child, words), counter in zip(readers, counters, strict=True):
                code, said = children.wait(child), words.said()
                rows.update(reading_back.judged(counter, programs, code, said))
    except children.ClientFailed as failure:
        if failure.hope == "none" and "does not start" not in str(failure):
            raise BackupUnverified("backup.unreadable", str(failure), clients.HINT) from failure
        raise clients.unusable(failure) from failure
    return dict(rows)
