"""Read a dump back from the disk: its hash, its end and the rows of every table."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING

from preflight.backup import beside, children, clients, manifests
from preflight.base import console, stop, threads
from preflight.base.errors import BackupDamaged, BackupFailed, BackupUnverified

if TYPE_CHECKING:
    from concurrent.futures import Future
    from pathlib import Path

    from preflight.backup.store import Store, Stream

Judge = Callable[["RowCounter"], dict[clients.Key, int]]  # of what an ended client has written
STREAMED = 8 << 20  # bytes that are asked of a store at a time
FOLLOWED = 4 << 20  # bytes from which on a dump is read while it is written
FOLLOW_S = 0.02  # before it is looked for more
POLITE = 5  # niceness of who reads meanwhile: the dump holds a snapshot, and comes first
_END = bytes(5)  # the chunk of length 0 that ends a custom archive's last data block


def require_whole(  # noqa: PLR0913, PLR0917 -- all that it is held against
    backups: Store,
    name: str,
    digest: str,
    programs: clients.Clients,
    environment: Mapping[str, str],
    wanted: Mapping[clients.Key, tuple[str, int]],
    roots: Mapping[clients.Key, clients.Key] | None = None,
) -> int:
    """Read a backup's dump: hash, whole archive, rows of each table; return its size in bytes.

    `wanted` gives for each table its name for people and its rows. Raises BackupUnverified.
    """
    rows: Mapping[clients.Key, int] | None = None
    if backups.remote:
        found, rows = _streamed(backups, name, digest, programs, environment)
    else:
        found = hashed(backups, name)
    if found.size_bytes == 0:
        raise BackupUnverified("backup.empty", "pg_dump wrote nothing", clients.HINT)
    require_same(found, digest)
    expected = sum(count for _, count in wanted.values())
    if rows is None:
        with backups.local(name, manifests.DUMP) as dump:
            rows = rows_of(dump, programs, environment, expected)
    require_rows(found, rows, wanted, roots)
    return found.size_bytes


def require_same(found: Hashed, digest: str) -> None:
    """Make sure that the store has what was sent to it; raises BackupDamaged."""
    if found.sha256 != digest:
        raise damaged(f"its hash is {found.sha256[:12]}, and not {digest[:12]}")


def damaged(how: str) -> BackupDamaged:
    """Return what it is that a store has something else than was sent to it."""
    return BackupDamaged(
        "backup.corrupt",
        f"what is stored is not what was sent: {how}",
        "Check the disk below PREFLIGHT_BACKUP_DIR, or who else writes there; nothing was "
        "migrated.",
    )


def require_rows(
    found: Hashed | None,
    rows: Mapping[clients.Key, int],
    wanted: Mapping[clients.Key, tuple[str, int]],
    roots: Mapping[clients.Key, clients.Key] | None = None,
) -> None:
    """Make sure that an archive holds the rows that were counted, to its end.

    None: a folder, which ends with the last row of each of its files. Raises BackupUnverified.
    """
    rows = _settled(rows, wanted, roots or {})
    different = [
        f"{name} has {rows.get(key, 'no')} rows in the dump, {count} in the database"
        for key, (name, count) in wanted.items()
        if rows.get(key) != count
    ]
    if different:
        raise BackupUnverified(
            "backup.rows_differ",
            f"{len(different)} tables differ: {'; '.join(different[:5])}",
            clients.HINT,
        )
    if wanted and found and found.end != _END:
        raise BackupUnverified(
            "backup.unreadable", "the dump does not end as an archive ends", clients.HINT
        )


def _settled(
    rows: Mapping[clients.Key, int],
    wanted: Mapping[clients.Key, tuple[str, int]],
    roots: Mapping[clients.Key, clients.Key],
) -> dict[clients.Key, int]:
    """Give partitions the rows that were dumped to be loaded through their root, if all are there.

    pg_dump does so where a row's hash may be another after a restore: of an enum's value.
    """
    settled = dict(rows)
    through = {key: roots[key] for key in wanted if key not in rows and roots.get(key) in rows}
    for root in set(through.values()):
        parts = [key for key, its in through.items() if its == root]
        if sum(wanted[key][1] for key in parts) == rows[root]:
            settled |= {key: wanted[key][1] for key in parts}
    return settled


@dataclass(frozen=True, slots=True)
class Hashed:
    """What a file is: its SHA-256, its size, and its last bytes."""

    sha256: str
    size_bytes: int
    end: bytes


def hashed(backups: Store, name: str, file: str = manifests.DUMP) -> Hashed:
    """Read a file as its store has it; raises OSError."""
    size = STREAMED if backups.remote else children.CHUNK  # each part is a request there
    with backups.open(name, file) as stream:
        return _hashed(iter(partial(part, stream, size), b""))


def _hashed(chunks: Iterable[bytes]) -> Hashed:
    digest, size, end = hashlib.sha256(), 0, b""
    for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
        end = (end + chunk[-len(_END) :])[-len(_END) :]
    return Hashed(digest.hexdigest(), size, end)


def part(stream: Stream, size: int) -> bytes:
    """Return the next part of a file; a stop request ends the waiting for it."""
    with stop.allowed():
        return stream.read(size)


def _streamed(
    backups: Store,
    name: str,
    digest: str,
    programs: clients.Clients,
    environment: Mapping[str, str],
) -> tuple[Hashed, dict[clients.Key, int]]:
    """Read a dump once, for its hash and for its rows: nothing of it touches this machine's disk.

    Raises OSError, and what `rows_of` raises where the hash is right.
    """
    with backups.open(name, manifests.DUMP) as stream:
        ended = threading.Event()
        reading: list[Future[Hashed]] = []

        def feed(pipe: IO[bytes]) -> None:
            reading.append(beside.asked(lambda: _hashed(_passed_on(stream, pipe, ended))))

        try:
            rows = rows_of(None, programs, environment, feed=feed)
        except BackupUnverified:
            if (found := beside.answer(reading[0])).sha256 == digest:
                raise
            return found, {}
        except BaseException:
            ended.set()
            raise
        return beside.answer(reading[0]), rows


def _passed_on(stream: Stream, pipe: IO[bytes], ended: threading.Event) -> Iterator[bytes]:
    """Yield what a stream gives, and write it to a client as long as that reads."""
    listening = True
    try:
        while not ended.is_set() and (chunk := stream.read(STREAMED)):
            if listening:
                try:
                    pipe.write(chunk)
                except OSError:  # it has seen enough, or it failed and says so
                    listening = False
            yield chunk
    finally:
        with suppress(OSError):
            pipe.close()


def rows_of(
    dump: Path | None,
    programs: clients.Clients,
    environment: Mapping[str, str],
    expected: int = 0,
    feed: Callable[[IO[bytes]], None] | None = None,
) -> dict[clients.Key, int]:
    """Return the rows of every table in an archive; raises BackupUnverified if it does not read.

    Without a file it comes through the pipe that `feed` is given.
    """
    counter = RowCounter()
    command = clients.read_command(programs.pg_restore, dump)
    try:
        with (
            console.Bar("read back") as bar,
            children.started(command, environment, fed=dump is None) as (child, words),
        ):
            if feed and child.stdin:
                feed(child.stdin)
            for chunk in children.chunks(child):
                counter.feed(chunk)
                if bar.due:
                    found = sum(counter.rows.values())
                    share = found / expected if expected else None
                    bar.show(share, f"{found:,} of {expected:,} rows")
            code, said = children.wait(child), words.said()
    except children.ClientFailed as failure:
        raise clients.unusable(failure) from failure
    return judged(counter, programs, code, said)


def judged(
    counter: RowCounter, programs: clients.Clients, code: int, said: str
) -> dict[clients.Key, int]:
    """Return the rows that pg_restore wrote, if it came to the end of the archive."""
    if code != 0 and (why := clients.unable(said)):
        raise BackupFailed(
            "backup.client_too_old",
            f"{programs.pg_restore} cannot read what {programs.version} writes: {why}",
            "Both must be of one installation: correct PATH, or use the image.",
        )
    if code != 0 or counter.inside:
        raise BackupUnverified(
            "backup.unreadable",
            f"pg_restore cannot read the dump back (it ended with {code}): {said or 'no words'}",
            clients.HINT,
        )
    return counter.rows


@contextmanager
def passing(programs: clients.Clients, environment: Mapping[str, str]) -> Iterator[Passing]:
    """Read an archive that is on its way elsewhere, as `rows_of` reads one that lies somewhere."""
    with _counted(programs, environment) as counted:
        yield Passing(*counted)


@contextmanager
def _counted(
    programs: clients.Clients, environment: Mapping[str, str], polite: int = 0
) -> Iterator[tuple[IO[bytes], IO[bytes], Judge]]:
    """Yield where an archive is written to, what its rows are read from, and what judges them."""
    command = clients.read_command(programs.pg_restore, None)
    with ExitStack() as stack:
        try:
            child, words = stack.enter_context(children.started(command, environment, fed=True))
        except children.ClientFailed as failure:
            raise clients.unusable(failure) from failure
        assert child.stdin is not None  # noqa: S101 -- it is fed
        assert child.stdout is not None  # noqa: S101 -- and heard
        with suppress(OSError):  # of one that has ended
            if polite:
                nice = os.getpriority(os.PRIO_PROCESS, child.pid)
                os.setpriority(os.PRIO_PROCESS, child.pid, nice + polite)
        yield (
            child.stdin,
            child.stdout,
            lambda rows: judged(rows, programs, children.wait(child), words.said()),
        )


class Counting:
    """A pg_restore that reads an archive, and a thread that counts what it writes."""

    def __init__(self, pipe: IO[bytes], written: IO[bytes], judge: Judge) -> None:
        self.pipe = pipe
        self._judge, self._counter = judge, RowCounter()
        self._failed: BaseException | None = None
        wide = children.widen(written)
        own = os.dup(written.fileno())  # the other one may be closed before the thread ends
        self._thread = threading.Thread(target=self._count, args=(own, wide), daemon=True)
        threads.start(self._thread)

    def _count(self, written: int, wide: bool) -> None:  # noqa: FBT001 -- a thread's
        with os.fdopen(written, "rb", buffering=0) as stream:
            while chunk := stream.read(children.CHUNK):  # to its end: it waits for who reads
                try:
                    if self._failed is None:
                        self._counter.feed(chunk)
                except BaseException as error:  # noqa: BLE001 -- told to who waits for the count
                    self._failed = error
                if wide:
                    children.gather(chunk)

    def rows(self) -> dict[clients.Key, int]:
        """Return the rows of every table, once the pipe is closed; raises BackupUnverified."""
        while self._thread.is_alive():
            with stop.allowed():
                self._thread.join(0.2)
        if self._failed:
            raise self._failed
        return self._judge(self._counter)


class Passing(Counting):
    """An archive on its way: its size, its end and its rows."""

    def __init__(self, pipe: IO[bytes], written: IO[bytes], judge: Judge) -> None:
        super().__init__(pipe, written, judge)
        self._listening, self._size, self._end = True, 0, b""

    def write(self, data: bytes | bytearray | memoryview, /) -> None:
        """Look at the next part; that the client has heard enough is told at the end."""
        self._size += len(data)
        self._end = (self._end + bytes(data[-len(_END) :]))[-len(_END) :]
        rest = memoryview(data)
        try:
            while rest and self._listening:
                with stop.allowed():
                    rest = rest[os.write(self.pipe.fileno(), rest) :]
        except BrokenPipeError:
            self._listening = False

    def finish(self, digest: str) -> tuple[Hashed, dict[clients.Key, int]]:
        """Return what it was, whose hash somebody else made; raises BackupUnverified."""
        with suppress(OSError):
            self.pipe.close()
        if self._size == 0:
            raise BackupUnverified("backup.empty", "pg_dump wrote nothing", clients.HINT)
        return Hashed(digest, self._size, self._end), self.rows()


@contextmanager
def following(
    backups: Store, name: str, programs: clients.Clients, environment: Mapping[str, str]
) -> Iterator[Following]:
    """Read a large dump while it is written to a store, as far as it is there."""
    with ExitStack() as stack:
        found = Following(
            partial(backups.open, name, manifests.DUMP),
            lambda: Counting(*stack.enter_context(_counted(programs, environment, POLITE))),
        )
        try:
            yield found
        finally:
            found.end()


class Following:
    """Reads behind pg_dump, never in its way: who lags catches up when the dump is whole.

    What it does not come to read, for whatever reason, is read back afterwards.
    """

    def __init__(
        self,
        opened: Callable[[], AbstractContextManager[Stream]],
        begin: Callable[[], Counting],
    ) -> None:
        self._opened, self._begin = opened, begin
        self._counted: Counting | None = None
        self._tried = False
        self._whole = threading.Event()

    def look(self, size: int) -> None:
        """Begin when so many bytes make a large dump."""
        if self._tried or size < FOLLOWED:
            return
        self._tried = True
        with suppress(BackupFailed):
            self._counted = self._begin()
            pipe = self._counted.pipe
            threads.start(threading.Thread(target=self._feed, args=(pipe,), daemon=True))

    def _feed(self, pipe: IO[bytes]) -> None:
        with suppress(OSError), pipe, self._opened() as stream:
            while True:
                whole = self._whole.is_set()  # first: what was written before that is there now
                if chunk := stream.read(children.CHUNK):
                    pipe.write(chunk)
                elif whole:
                    return
                else:
                    self._whole.wait(FOLLOW_S)

    def rows(self) -> dict[clients.Key, int] | None:
        """Return the rows of the dump that is whole by now, None where they were not read."""
        if self._counted is None:
            return None
        self.end()
        with suppress(BackupFailed, BackupUnverified):
            return self._counted.rows()
        return None

    def end(self) -> None:
        """Nothing more is written."""
        self._whole.set()


_NAME = rb'("(?:[^"]|""|)*+"|[^\s"(.]++)'
_COPY = re.compile(rb"COPY " + _NAME + rb"\." + _NAME + rb"[ (].*FROM stdin;", re.DOTALL)
# a comment, a line for psql, or a statement (which is all that is not in quotes up to a semicolon)
_ITEM = re.compile(
    rb"""\s*+(?:--[^\n]*+\n|\\[^\n]*+\n|(?!--|\\)((?:[^'";]++|'[^']*+'|"[^"]*+"|)*+;))"""
)
_DATA_END = b"\n\\.\n"


class RowCounter:
    """Counts the rows in pg_restore's COPY blocks, a chunk at a time."""

    def __init__(self) -> None:
        self.rows: dict[clients.Key, int] = {}
        self.table: clients.Key | None = None
        self.rest = b""

    @property
    def inside(self) -> bool:
        """Tell whether the stream ended in the middle of a table."""
        return self.table is not None

    def feed(self, chunk: bytes) -> None:
        """Take the next part of the stream."""
        data, again = self.rest + chunk, True
        while again:
            data, again = self._rows(data, self.table) if self.table else self._item(data)
        self.rest = data

    def _item(self, data: bytes) -> tuple[bytes, bool]:
        position = 0
        while item := _ITEM.match(data, position):
            position = item.end()
            if item[1] and (found := _COPY.fullmatch(item[1])):
                self.table = (_bare(found[1]), _bare(found[2]))
                # the header's own line end is counted with the rows; a root may come again
                self.rows[self.table] = self.rows.get(self.table, 0) - 1
                return data[position:], True
        return data[position:], False

    def _rows(self, data: bytes, table: clients.Key) -> tuple[bytes, bool]:
        end = data.find(_DATA_END) if b"\\" in data else -1  # one byte is found much sooner
        if end >= 0:
            self.rows[table] += data.count(b"\n", 0, end + 1)
            self.table = None
            return data[end + len(_DATA_END) :], True
        whole = max(0, len(data) - len(_DATA_END) + 1)
        self.rows[table] += data.count(b"\n", 0, whole)
        return data[whole:], False


def _bare(name: bytes) -> bytes:
    return name[1:-1].replace(b'""', b'"') if name.startswith(b'"') else name
