"""The client programs: pg_dump into a file, pg_restore out of it, and what they said.

`pg_restore --list` proves nothing (it passes on a dump cut to 2 %), and a flipped bit in zstd or
lz4 passes a full read. So the dump is hashed as it is written, read back from the disk, and its
rows are counted.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

import psycopg
import structlog

from preflight import report, stop
from preflight.errors import BackupDamaged, BackupFailed, BackupUnverified

if TYPE_CHECKING:
    import io

    from preflight.config import Config
    from preflight.server import Session

CHUNK = 1 << 18
TELL_EVERY_S = 5.0
HOLD_EVERY_S = 0.1
END_S = 1.5  # how long a client may take to end when asked; the whole stop takes less than 5 s
COMPRESSIONS = ("zstd:1", "1")  # what a build may lack, and gzip in the words of every version
MEMORY = Path("/dev/shm")  # noqa: S108 -- a secret there never reaches a disk; mkstemp makes it safe
PASSFILE = "pg-preflight-password-"
TERM, KILL = 15, 9
STOP, CONT = (17, 19) if sys.platform == "darwin" else (19, 18)
Key = tuple[bytes, bytes]  # schema and table, in the archive's encoding


# what may go wrong


class ClientFailed(Exception):
    """A client program failed; `hope` is `busy`, `passing`, `unknown` or `none`."""

    def __init__(self, text: str, hope: str) -> None:
        super().__init__(text)
        self.hope = hope


_NONE = re.compile(
    r"server version mismatch|row-level security|permission denied|out of shared memory|"
    r"unrecognized option|invalid option"
)
_PASSING = re.compile(
    r"connection to server|server closed the connection|lost synchronization|no connection to the"
)


def hope_of(code: int, said: str) -> str:
    """Tell from a client's exit code and words how much hope another attempt has.

    Only the client's own words are sure to be English; a server's may be localised.
    """
    if _NONE.search(said):
        return "none"
    if "Query was: LOCK TABLE" in said:
        return "busy"  # somebody queues for the table between our session and pg_dump
    if code < 0 or code > 128 or _PASSING.search(said):  # noqa: PLR2004 -- 128 + a signal's number
        return "passing"
    return "unknown"


# the programs


@dataclass(frozen=True, slots=True)
class Clients:
    """The client programs, and what pg_dump says its version is."""

    pg_dump: str
    pg_restore: str
    version: str


def clients(config: Config, session: Session) -> Clients:
    """Return pg_dump and pg_restore; raises BackupFailed when they cannot dump this server."""
    path = config.child_env.get("PATH", os.defpath)
    found = {name: shutil.which(name, path=path) for name in ("pg_dump", "pg_restore")}
    server_major = session.facts.major if session.facts else 0
    hint = f"Use the image tagged pg{server_major}, or install a client {server_major} or newer."
    if missing := [name for name, at in found.items() if at is None]:
        raise BackupFailed(
            "backup.no_client", f"{' and '.join(missing)} cannot be found on PATH", hint
        )
    pg_dump, pg_restore = (str(at) for at in found.values())
    try:
        said, problem = _said_version(pg_dump, config.child_env)
    except ClientFailed as failure:
        said, problem = "", str(failure)
    number = re.search(r"\d+", said)
    if number is None:
        raise BackupFailed(
            "backup.no_client", f"{pg_dump} does not tell its version: {problem or said!r}", hint
        )
    if int(number[0]) < server_major:
        raise BackupFailed(
            "backup.client_too_old",
            f"pg_dump {number[0]} cannot dump a PostgreSQL {server_major} server",
            hint,
        )
    return Clients(pg_dump, pg_restore, said)


def _said_version(pg_dump: str, environment: Mapping[str, str]) -> tuple[str, str]:
    with _child([pg_dump, "--version"], environment) as (child, words):
        said = b"".join(_chunks(child))
        _wait(child)
        return said.decode("utf-8", "replace").strip(), words.said()


def dump_command(
    pg_dump: str, address: Mapping[str, str], snapshot: str, compression: str, lock_timeout_ms: int
) -> list[str]:
    """Return the pg_dump call; the password is in a passfile, never here."""
    conninfo = psycopg.conninfo.make_conninfo("", **address)
    return [
        pg_dump,
        "--format=custom",
        f"--compress={compression}",
        f"--snapshot={snapshot}",
        f"--lock-wait-timeout={lock_timeout_ms}",
        "--no-password",
        "--verbose",
        f"--dbname={conninfo}",
    ]


def read_command(pg_restore: str, dump: Path) -> list[str]:
    """Return the pg_restore call that reads every data block and writes the rows to stdout."""
    return [pg_restore, "--data-only", "--file=-", str(dump)]


@contextmanager
def list_without(
    dump: Path, programs: Clients, environment: Mapping[str, str], kind: str, oids: Collection[int]
) -> Iterator[Path]:
    """Yield a file for pg_restore's --use-list: the archive's entries but those of these objects.

    Raises ClientFailed when the list cannot be had.
    """
    command = [programs.pg_restore, "--list", str(dump)]
    with _child(command, environment) as (child, words):
        entries = b"".join(_chunks(child)).splitlines(keepends=True)
        if _wait(child) != 0:
            raise ClientFailed(words.said() or "pg_restore --list failed", "none")
    entry = re.compile(rb"\d+; \d+ (\d+) " + kind.encode() + b" ")
    with tempfile.NamedTemporaryFile(prefix=PASSFILE, dir=_memory()) as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH)  # as a passfile's: a sweep leaves it alone
        file.writelines(
            line for line in entries if not ((found := entry.match(line)) and int(found[1]) in oids)
        )
        file.flush()
        yield Path(file.name)


def _memory() -> Path:
    """Return where small private files go."""
    return MEMORY if os.access(MEMORY, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())


@contextmanager
def passfile(session: Session) -> Iterator[dict[str, str]]:
    """Yield an environment whose password is in a private file, removed afterwards."""
    environment = dict(session.config.child_env)
    password = session.target.get("password")
    if hidden := sorted(session.secrets().keys() - {"password"}):
        raise BackupFailed(
            "backup.password",
            f"pg_dump cannot be given {', '.join(hidden)} without showing it to other users",
            "Use a key file without a passphrase, or a password.",
        )
    if password is None:
        yield environment
        return
    if re.search(r"[\r\n]", password):
        raise BackupFailed(
            "backup.password",
            "the password holds a line break, which a libpq passfile cannot hold",
            "Give the role a password of one line.",
        )
    escaped = password.replace("\\", "\\\\").replace(":", "\\:")
    try:
        place = _memory()
        _sweep_passfiles(place)
        descriptor, name = tempfile.mkstemp(prefix=PASSFILE, dir=place)  # 0600
    except OSError as error:
        raise BackupFailed(
            "backup.no_temporary",
            f"no place for pg_dump's private passfile: {error.strerror}",
            f"Let this user write to {MEMORY} or /tmp, or set TMPDIR.",
        ) from error
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            with suppress(OSError):  # some network file systems have no locks
                fcntl.flock(file, fcntl.LOCK_SH)  # tells a sweep that somebody needs it
            file.write(f"*:*:*:*:{escaped}\n")
            file.flush()
            yield environment | {"PGPASSFILE": name}
    finally:
        Path(name).unlink(missing_ok=True)


def _sweep_passfiles(place: Path) -> None:
    """Remove what a run left that was killed before pg_dump was connected."""
    for path in place.glob(f"{PASSFILE}*"):
        with suppress(OSError), path.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def listen(
    command: Sequence[str],
    environment: Mapping[str, str],
    hear: Callable[[str], None],
    tick: Callable[[], None] = lambda: None,
    hold: Callable[[], bool] | None = None,
) -> int:
    """Run a client to its end; return its exit code. Each line of its complaints goes to `hear`.

    `tick` is called about once a second meanwhile. While `hold`, asked more often, says so, the
    client stands still.
    """
    with _child(command, environment, hear) as (child, words), _Brake(child) as brake:

        def look() -> None:
            tick()
            if hold is not None:
                brake.set(on=hold())

        for _ in _chunks(child, look, 1.0 if hold is None else HOLD_EVERY_S):
            pass
        code = _wait(child)
        words.thread.join()  # a client that ended says nothing more
        return code


# dumping


@dataclass(frozen=True, slots=True)
class Written:
    """What pg_dump sent: its SHA-256, and what it warned about though it ended with 0."""

    sha256: str
    warnings: list[str]


def write(  # noqa: PLR0913, PLR0917 -- whom, with what, of what, where to, and who looks on
    session: Session,
    programs: Clients,
    snapshot: str,
    path: Path,
    progress: Progress,
    check: Callable[[], None],
) -> Written:
    """Run pg_dump into a new file; raises ClientFailed.

    `check` is called at least once a second and may end it.
    """
    for compression in COMPRESSIONS:
        command = dump_command(
            programs.pg_dump,
            session.address(),
            snapshot,
            compression,
            session.config.lock_timeout_ms,
        )
        try:
            return _pump(session, command, path, progress, check)
        except ClientFailed as failure:
            if "compress" not in str(failure) or compression == COMPRESSIONS[-1]:
                raise
            path.unlink()
    raise AssertionError  # the last compression returns or raises


def _pump(
    session: Session,
    command: Sequence[str],
    path: Path,
    progress: Progress,
    check: Callable[[], None],
) -> Written:
    def tick() -> None:
        check()
        progress.tell(words.begun)

    digest = hashlib.sha256()
    with ExitStack() as secret, open(path, "xb", buffering=0, opener=private) as file:
        environment = secret.enter_context(passfile(session))
        with _child(command, environment) as (child, words), progress:
            for chunk in _chunks(child, tick):
                secret.close()  # pg_dump is connected: nobody needs the password any more
                digest.update(chunk)
                _write_all(file, chunk)
                progress.size += len(chunk)
            code = _wait(child)
            said = words.said()
        if code != 0:
            raise ClientFailed(said or f"it ended with {code}", hope_of(code, said))
        os.fsync(file.fileno())
    return Written(digest.hexdigest(), words.warnings)


def private(path: str, flags: int) -> int:
    """Open a file that only this user can read; follows no link."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _write_all(file: io.FileIO, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[file.write(view) :]


class Progress:
    """Tells how far a long dump is: by the rows of the tables that it has begun, and by bytes.

    The rows are counted meanwhile: `rows` has those that are, of `tables` by pg_dump's names.
    """

    def __init__(self, tables: int, rows: Mapping[str, int]) -> None:
        self.tables = tables
        self.rows = rows
        self.size = 0
        self.began = self.told = time.monotonic()
        self.bar = report.Bar("backup")

    def __enter__(self) -> None:
        """Nothing is shown yet."""

    def __exit__(self, *_: object) -> None:
        """Remove the bar."""
        self.bar.close()

    def tell(self, begun: Sequence[str]) -> None:
        """Show it on a terminal, and log it now and then."""
        now = time.monotonic()
        rows = dict(self.rows)
        all_rows = sum(rows.values()) if len(rows) == self.tables else None
        done = sum(rows.get(name, 0) for name in begun[:-1])
        share = done / all_rows if all_rows else len(begun[:-1]) / max(1, self.tables)
        self.bar.show(share, f"{self.size / 1e6:.1f} MB, table {len(begun)} of {self.tables}")
        if now - self.told >= TELL_EVERY_S:
            self.told = now
            structlog.get_logger().info(
                "backup.progressed",
                size_bytes=self.size,
                tables_begun=len(begun),
                tables=self.tables,
                rows_done=done,
                rows=all_rows,
                percent=round(100 * share, 1),
                elapsed_s=round(now - self.began, 1),
            )


# a child


@contextmanager
def _child(
    command: Sequence[str],
    environment: Mapping[str, str],
    hear: Callable[[str], None] = lambda _: None,
) -> Iterator[tuple[subprocess.Popen[bytes], _Words]]:
    """Run a client program; it ends with us: by signal here, by its broken pipe after kill -9."""
    try:
        child = subprocess.Popen(  # noqa: S603 -- a command that we built
            list(command),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a terminal's Ctrl-C is ours to handle
        )
    except OSError as error:
        raise ClientFailed(f"{command[0]} does not start: {error.strerror}", "none") from error
    words = _Words(child, hear)
    try:
        yield child, words
    finally:
        _end(child)
        words.thread.join(1)
        for stream in (child.stdout, child.stderr):
            if stream is not None:
                stream.close()


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a client and what it started, which may be the real one behind a wrapper."""
    for number in (TERM, KILL):
        if child.poll() is not None:
            return
        with suppress(ProcessLookupError):
            os.killpg(child.pid, number)
            os.killpg(child.pid, CONT)  # it may stand still
        with suppress(subprocess.TimeoutExpired):
            child.wait(END_S)


_GUARD = "import os, sys; sys.stdin.buffer.read(); os.killpg(int(sys.argv[1]), int(sys.argv[2]))"


class _Brake:
    """Lets a client and its own children stand still for a while.

    A process that stands still would do so for ever if we were killed meanwhile: a guard, which
    notices by its end of a pipe, ends it then.
    """

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self.child = child
        self.guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.set(on=False)

    def set(self, *, on: bool) -> None:
        if on == (self.guard is not None):
            return
        if on:
            command = [sys.executable, "-I", "-S", "-c", _GUARD, str(self.child.pid), str(KILL)]
            self.guard = subprocess.Popen(  # noqa: S603 -- a command that we built
                command, stdin=subprocess.PIPE, start_new_session=True
            )
        with suppress(ProcessLookupError):
            os.killpg(self.child.pid, STOP if on else CONT)
        if not on and self.guard is not None:
            self.guard.kill()
            self.guard.communicate()
            self.guard = None


def _chunks(
    child: subprocess.Popen[bytes],
    tick: Callable[[], None] = lambda: None,
    every_s: float = 1.0,
) -> Iterator[bytes]:
    """Yield what a client writes; `tick` is called at least that often, also in silence."""
    descriptor = _stream(child.stdout).fileno()
    while True:
        with stop.allowed():
            ready, _, _ = select.select([descriptor], [], [], every_s)
            chunk = os.read(descriptor, CHUNK) if ready else None
        tick()
        if chunk == b"":
            return
        if chunk:
            yield chunk


def _stream(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None  # noqa: S101 -- every child is started with pipes
    return stream


def _wait(child: subprocess.Popen[bytes]) -> int:
    with stop.allowed():
        return child.wait()


# what names the entry that a complaint is about is none, and jobs write into each other's lines
_CHATTER = re.compile(
    r"(?:pg_\w+: )+(?!pg_\w+: |error:|fatal:|warning:|detail:|hint:|from TOC entry)"
)
_WARNED = re.compile(r"pg_dump: warning: (.*)")
_DETAIL = re.compile(r"pg_dump: (?:detail|hint): +(.*)")
MOST_WARNINGS = 100
_BEGUN = re.compile(r'pg_dump: dumping contents of table "(.*)"$')


class _Words:
    """What a client says on stderr: which tables it has begun, and its last complaints."""

    def __init__(self, child: subprocess.Popen[bytes], hear: Callable[[str], None]) -> None:
        self.begun: list[str] = []
        self.warnings: list[str] = []
        self._lines: deque[str] = deque(maxlen=10)
        self._hear = hear
        self._stream = _stream(child.stderr)
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def _listen(self) -> None:
        for line in self._stream:
            text = line.decode("utf-8", "replace").rstrip()
            if found := _BEGUN.match(text):
                self.begun.append(found[1])
            elif text and not _CHATTER.match(text):
                self._warn(text[:300])
                self._lines.append(text[:300])
                self._hear(text[:300])

    def _warn(self, text: str) -> None:
        found = _WARNED.match(text)
        if found and len(self.warnings) < MOST_WARNINGS:
            self.warnings.append(found[1])
        elif self.warnings and (found := _DETAIL.match(text)):
            self.warnings[-1] = f"{self.warnings[-1]} {found[1]}"[:1000]

    def lines(self) -> list[str]:
        """Return the complaints, once the client has ended."""
        self.thread.join(1)
        return list(self._lines)

    def said(self) -> str:
        """Return the complaints as one line."""
        return "; ".join(re.sub(r"^pg_\w+: ", "", line).strip() for line in self.lines())


# reading back


_HINT = "Is the pg_dump on PATH a real and whole one? Nothing was migrated."
_END = bytes(5)  # the chunk of length 0 that ends a custom archive's last data block


def require_whole(  # noqa: PLR0913, PLR0917 -- all that it is held against
    dump: Path,
    digest: str,
    programs: Clients,
    environment: Mapping[str, str],
    wanted: Mapping[Key, tuple[str, int]],
    roots: Mapping[Key, Key] | None = None,
) -> int:
    """Read a dump from the disk: hash, whole archive, rows of each table; return its size.

    `wanted` gives for each table its name for people and its rows. Raises BackupUnverified.
    """
    found, size = hash_of(dump)
    if size == 0:
        raise BackupUnverified("backup.empty", "pg_dump wrote nothing", _HINT)
    if found != digest:
        raise BackupDamaged(
            "backup.corrupt",
            f"the dump on disk is not what pg_dump sent: {found[:12]} instead of {digest[:12]}",
            "Check the disk below the backup directory; nothing was migrated.",
        )
    rows = _settled(rows_of(dump, programs, environment), wanted, roots or {})
    different = [
        f"{name} has {rows.get(key, 'no')} rows in the dump, {count} in the database"
        for key, (name, count) in wanted.items()
        if rows.get(key) != count
    ]
    if different:
        raise BackupUnverified(
            "backup.rows_differ",
            f"{len(different)} tables differ: {'; '.join(different[:5])}",
            _HINT,
        )
    if wanted and not _ends_as_it_should(dump):
        raise BackupUnverified(
            "backup.unreadable", "the dump does not end as an archive ends", _HINT
        )
    return size


def _settled(
    rows: Mapping[Key, int], wanted: Mapping[Key, tuple[str, int]], roots: Mapping[Key, Key]
) -> dict[Key, int]:
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


def hash_of(path: Path) -> tuple[str, int]:
    """Return a file's SHA-256 and size in bytes, read from the disk and not from the cache."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 -- unbuffered
        with suppress(OSError, AttributeError):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while chunk := _part(file):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


def _part(file: io.FileIO) -> bytes:
    with stop.allowed():
        return file.read(CHUNK)


def _ends_as_it_should(dump: Path) -> bool:
    with dump.open("rb") as file:
        file.seek(-len(_END), os.SEEK_END)
        return file.read() == _END


def rows_of(dump: Path, programs: Clients, environment: Mapping[str, str]) -> dict[Key, int]:
    """Return the rows of every table in an archive; raises BackupUnverified if it does not read."""
    counter = RowCounter()
    try:
        with _child(read_command(programs.pg_restore, dump), environment) as (child, words):
            for chunk in _chunks(child):
                counter.feed(chunk)
            code, said = _wait(child), words.said()
    except ClientFailed as failure:
        raise BackupFailed("backup.no_client", str(failure), "Reinstall the client.") from failure
    if code != 0 or counter.inside:
        raise BackupUnverified(
            "backup.unreadable",
            f"pg_restore cannot read the dump back (it ended with {code}): {said or 'no words'}",
            _HINT,
        )
    return counter.rows


_NAME = rb'("(?:[^"]|"")*+"|[^\s"(.]++)'
_COPY = re.compile(rb"COPY " + _NAME + rb"\." + _NAME + rb"[ (].*FROM stdin;", re.DOTALL)
# a comment, a line for psql, or a statement (which is all that is not in quotes up to a semicolon)
_ITEM = re.compile(
    rb"""\s*+(?:--[^\n]*+\n|\\[^\n]*+\n|(?!--|\\)((?:[^'";]++|'[^']*+'|"[^"]*+")*+;))"""
)
_DATA_END = b"\n\\.\n"


class RowCounter:
    """Counts the rows in pg_restore's COPY blocks, a chunk at a time."""

    def __init__(self) -> None:
        self.rows: dict[Key, int] = {}
        self.table: Key | None = None
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

    def _rows(self, data: bytes, table: Key) -> tuple[bytes, bool]:
        end = data.find(_DATA_END)
        if end >= 0:
            self.rows[table] += data.count(b"\n", 0, end + 1)
            self.table = None
            return data[end + len(_DATA_END) :], True
        whole = max(0, len(data) - len(_DATA_END) + 1)
        self.rows[table] += data.count(b"\n", 0, whole)
        return data[whole:], False


def _bare(name: bytes) -> bytes:
    return name[1:-1].replace(b'""', b'"') if name.startswith(b'"') else name
