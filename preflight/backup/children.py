"""A client as a child process: started, listened to, held, ended with us."""

from __future__ import annotations

import fcntl
import os
import re
import select
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Self

from preflight.base import stop, threads

if TYPE_CHECKING:
    from pathlib import Path

CHUNK = 1 << 17  # stays in a processor's cache while it is hashed and counted
PIPE, LITTLE, GATHER_S = 1 << 20, 1 << 16, 0.001
HOLD_EVERY_S = 0.1
LAST_WORDS_S = 5.0  # of a client that has ended: on a busy machine they come late
END_S = 1.5  # how long a client may take to end when asked; the whole stop takes less than 5 s
TERM, KILL = 15, 9
STOP, CONT = (17, 19) if sys.platform == "darwin" else (19, 18)


class ClientFailed(Exception):
    """A client program failed; `hope` is `busy`, `passing`, `unknown` or `none`.

    `hint` says what to do about it, where that is known.
    """

    def __init__(self, text: str, hope: str, hint: str = "") -> None:
        super().__init__(text)
        self.hope = hope
        self.hint = hint


_NONE = re.compile(
    r"server version mismatch|row-level security|permission denied|out of shared memory|"
    r"unrecognized option|invalid option"
)
_PASSING = re.compile(
    r"connection to server|server closed the connection|lost synchronization|no connection to the|"
    r"could not obtain lock on relation"
)
_LOCKED = re.compile(r"[Qq]uery was: LOCK TABLE")  # small before pg_dump 15


def hope_of(code: int, said: str) -> str:
    """Tell from a client's exit code and words how much hope another attempt has.

    Only the client's own words are sure to be English; a server's may be localised.
    """
    if _NONE.search(said):
        return "none"
    if _LOCKED.search(said):
        return "busy"  # somebody queues for the table between our session and pg_dump
    if code < 0 or code > 128 or _PASSING.search(said):  # noqa: PLR2004 -- 128 + a signal's number
        return "passing"
    return "unknown"


# a child


@contextmanager
def started(
    command: Sequence[str],
    environment: Mapping[str, str],
    hear: Callable[[str], None] = lambda _: None,
    *,
    fed: bool = False,
) -> Iterator[tuple[subprocess.Popen[bytes], _Words]]:
    """Run a client program; it ends with us: by signal here, by its broken pipe after kill -9."""

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 -- a command that we built
            list(command),
            env=dict(environment),
            stdin=subprocess.PIPE if fed else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a terminal's Ctrl-C is ours to handle
        )

    try:
        child = threads.process(start)
    except OSError as error:
        why = f"{command[0]} does not start: {error.strerror}"
        raise ClientFailed(why, "none", threads.room(error)) from error
    words = _Words(child, hear)
    try:
        yield child, words
    finally:
        _end(child)
        words.thread.join(1)
        for stream in (child.stdout, child.stderr):
            # who still listens holds it, and closing would wait: something that the client has
            # left behind may have it for ever
            if stream is not None and not (stream is child.stderr and words.thread.is_alive()):
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


@contextmanager
def guarded(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """See that a client and its own children do not outlive us, if we are killed meanwhile.

    For one that writes nothing to us, and so does not notice.
    """
    guard = _guard(child)
    try:
        yield
    finally:
        guard.kill()
        guard.communicate()


def _guard(child: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    """Start a process that notices our end by its end of a pipe, and then ends a client."""
    command = [sys.executable, "-I", "-S", "-c", _GUARD, str(child.pid), str(KILL)]
    return _watching(command)


def _watching(command: Sequence[str]) -> subprocess.Popen[bytes]:
    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 -- a command that we built
            command, stdin=subprocess.PIPE, start_new_session=True
        )

    return threads.process(start)


_REMOVER = """import os, shutil, sys, time
sys.stdin.buffer.read()
for _ in range(100):
    shutil.rmtree(sys.argv[1], True)
    if not os.path.exists(sys.argv[1]):
        break
    time.sleep(0.1)
"""  # a client that still writes there is about to end


def removed_with_us(folder: Path) -> Callable[[], None]:
    """See that a folder is gone when we end, however that is; return what ends the watch.

    It is removed then, too, if it is still there.
    """
    command = [sys.executable, "-I", "-S", "-c", _REMOVER, str(folder)]
    guard = _watching(command)

    def end() -> None:
        guard.communicate()

    return end


class Brake:
    """Lets a client and its own children stand still for a while.

    A process that stands still would do so for ever if we were killed meanwhile: a guard ends it
    then.
    """

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self.child = child
        self.guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Let the child run until it is to stand still."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let it go on."""
        self.set(on=False)

    def set(self, *, on: bool) -> None:
        """Let the child stand still, or go on."""
        if on == (self.guard is not None):
            return
        if on:
            self.guard = _guard(self.child)
        with suppress(ProcessLookupError):
            os.killpg(self.child.pid, STOP if on else CONT)
        if not on and self.guard is not None:
            self.guard.kill()
            self.guard.communicate()
            self.guard = None


def chunks(
    child: subprocess.Popen[bytes],
    tick: Callable[[], None] = lambda: None,
    every_s: float = 1.0,
    over: Callable[[], bool] = lambda: False,
) -> Iterator[bytes]:
    """Yield what a client writes; `tick` is called at least that often, also in silence.

    Where it is `over`, silence is the end.
    """
    descriptor, wide = _stream(child.stdout).fileno(), widen(_stream(child.stdout))
    while True:
        with stop.allowed():
            ready, _, _ = select.select([descriptor], [], [], every_s)
            chunk = os.read(descriptor, CHUNK) if ready else None
        tick()
        if chunk == b"":
            return
        if chunk:
            yield chunk
            if wide:
                with stop.allowed():
                    gather(chunk)
        elif over():
            return


def widen(stream: IO[bytes]) -> bool:
    """Give a pipe more room, where the system can; tell whether it has it."""
    with suppress(OSError, AttributeError):
        return fcntl.fcntl(stream.fileno(), fcntl.F_SETPIPE_SZ, PIPE) >= PIPE
    return False


def gather(chunk: bytes) -> None:
    """Let more come behind a little: the clients write 4 KiB at a time, and each would wake us."""
    if len(chunk) < LITTLE:
        time.sleep(GATHER_S)


def several(clients: Sequence[subprocess.Popen[bytes]]) -> Iterator[tuple[int, bytes]]:
    """Yield what several clients write, each with the number of who wrote it, to the last end."""
    numbers = {_stream(each.stdout).fileno(): number for number, each in enumerate(clients)}
    while numbers:
        with stop.allowed():
            ready, _, _ = select.select(list(numbers), [], [], 1.0)
        for descriptor in ready:
            if chunk := os.read(descriptor, CHUNK):
                yield numbers[descriptor], chunk
            else:
                del numbers[descriptor]


def _stream(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None  # noqa: S101 -- every child is started with pipes
    return stream


def wait(child: subprocess.Popen[bytes]) -> int:
    """Wait for a client's end; return its exit code."""
    with stop.allowed():
        return child.wait()


# what names the entry that a complaint is about is none, and jobs write into each other's lines
_CHATTER = re.compile(
    r"(?:pg_\w+: )+(?! *(?:pg_\w+:|error:|fatal:|warning:|detail:|hint:|from TOC entry))"
)
_WARNED = re.compile(r"(?:pg_dump: )+warning: (.*)")
_DETAIL = re.compile(r"(?:pg_dump: )+(?:detail|hint): +(.*)")
MOST_WARNINGS = 100
_OWN, _QUERY = re.compile(r"pg_\w+: "), re.compile(r"[Qq]uery was:")
_BEGUN = re.compile(r'(?:pg_dump: )+dumping contents of table "(.*)"$')
_FINISHED = re.compile(r"(?:pg_dump: )+finished item (\d+) TABLE DATA (.*)$")


class _Words:
    """What a client says on stderr: which tables it has begun, and its last complaints.

    Several sessions of one client also say which are `finished`: number in the archive, and name.
    """

    def __init__(self, child: subprocess.Popen[bytes], hear: Callable[[str], None]) -> None:
        self.begun: list[str] = []
        self.finished: list[tuple[int, str]] = []
        self.warnings: list[str] = []
        self._lines: deque[str] = deque(maxlen=10)
        self._hear = hear
        self._stream = _stream(child.stderr)
        self.thread = threading.Thread(target=self._listen, daemon=True)
        threads.start(self.thread)

    def _listen(self) -> None:
        quoting = False  # a query of many lines, which would push the error out
        for line in self._stream:
            text = line.decode("utf-8", "replace").rstrip()
            if found := _BEGUN.match(text):
                self.begun.append(found[1])
            elif found := _FINISHED.match(text):
                self.finished.append((int(found[1]), found[2]))
            elif text and not _CHATTER.match(text):
                self._warn(text[:300])
                quoting = quoting and not _OWN.match(text)
                if not quoting:
                    self._lines.append(text[:300])
                quoting = quoting or _QUERY.search(text) is not None
                self._hear(text[:300])

    def _warn(self, text: str) -> None:
        found = _WARNED.match(text)
        if found and len(self.warnings) < MOST_WARNINGS:
            self.warnings.append(found[1])
        elif self.warnings and (found := _DETAIL.match(text)):
            self.warnings[-1] = f"{self.warnings[-1]} {found[1]}"[:1000]

    def lines(self) -> list[str]:
        """Return the complaints, once the client has ended."""
        self.thread.join(LAST_WORDS_S)
        return list(self._lines)

    def said(self) -> str:
        """Return the complaints as one line."""
        return "; ".join(re.sub(r"^pg_\w+: ", "", line).strip() for line in self.lines())
