"""Each target in a process of its own: one's end, its signals and its memory are no other's.

It is forked from ours, so that nothing is loaded and no file is read twice; what it says comes
through a pipe and is said by us, with the target's name.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

import structlog

from preflight import run
from preflight.base import logs, repeat, stop, threads
from preflight.base.errors import ExitCode, Failure
from preflight.commands.fleet import alone
from preflight.commands.fleet.targets import Target

HARD_STOP_S = 2.5  # less than ours: what it still has to say is to reach us
ENDED_S = 3.0  # for all of them to end, once asked
BESIDE_S = 1.0  # for threads of ours to come to their end before the first one begins
PR_SET_PDEATHSIG = 1
KINDS = (130, 143), (70,), range(30, 40), range(20, 30), range(10, 20), (3,), (0,)
_UNKNOWN = {
    "code": "target.unknown",
    "message": "its process was still at work when ours had to end",
    "hint": repeat.ADVICE,
}
Work = Callable[[Target], Any]  # returns what JSON can say


@dataclass(slots=True)
class Planned:
    """What the command `plan` found due in a target; what `up` plans is no result."""

    pending: Sequence[str]
    adopts: Sequence[str]
    destructive: int = 0  # statements

    @property
    def due(self) -> str:
        """Say it in short; "" where there is nothing."""
        said = [f"{len(self.pending)} pending, first {self.pending[0]}"] if self.pending else []
        said += [f"{len(self.adopts)} to be recorded"] if self.adopts else []
        said += [f"{self.destructive} destructive"] if self.destructive else []
        return "; ".join(said)


@dataclass(slots=True)
class Outcome:
    """How one target ended; `given` is what its work returned."""

    target: Target
    exit_code: int = 0
    error: dict[str, Any] | None = None
    given: Any = None
    applied: list[str] = field(default_factory=list)
    adopted: list[str] = field(default_factory=list)
    planned: Planned | None = field(default=None, init=False)

    @property
    def told(self) -> dict[str, Any]:
        """Return its error as others are told of it: with what leads a command to it alone."""
        return alone.told(self.target, self.error) if self.error else {}

    @property
    def word(self) -> str:
        """Say it in one word."""
        if self.exit_code == ExitCode.PENDING:
            return "pending"
        if self.exit_code in (ExitCode.SIGINT, ExitCode.SIGTERM):
            return "stopped"
        if self.exit_code:
            return "failed"
        if self.planned and self.planned.due:
            return "pending"
        return "applied" if self.applied else "adopted" if self.adopted else "ok"

    @property
    def done(self) -> dict[str, list[str]]:
        """Return the files that something was done with, as events have them."""
        return {"applied": self.applied} | ({"adopted": self.adopted} if self.adopted else {})

    @property
    def rank(self) -> int:
        """Return how bad it is, the worst first: signal, 70, 3x, 2x, 1x, 3, 0."""
        return next((n for n, kind in enumerate(KINDS) if self.exit_code in kind), 1)


@dataclass(slots=True)
class _Child:
    """One process at work."""

    target: Target
    pid: int
    pipe: int
    left: bytearray = field(default_factory=bytearray)
    result: dict[str, Any] | None = None
    done: dict[str, list[str]] = field(default_factory=dict)  # `applied` and `adopted`
    planned: Planned | None = None

    def hear(self, data: bytes) -> None:
        """Say what it says."""
        self.left += data
        if b"\n" not in data:
            return  # a long line is not searched again for each piece
        *lines, self.left = self.left.split(b"\n")
        for line in lines:
            try:
                said = json.loads(line)
            except ValueError:
                continue  # a stop came in the middle of it
            if "result" in said:
                self.result = said["result"]
                continue
            event, level = said.pop("event"), said.pop("level")
            if key := run.Tally.LISTS.get(event):
                self.done.setdefault(key, []).append(said["migration"])
            if event == "plan.made" and "adopts" in said:
                self.planned = Planned(said["pending"], said["adopts"])
            elif event == "statement.planned" and self.planned and said.get("destroys"):
                self.planned.destructive += 1
            getattr(structlog.get_logger(), level)(event, target=self.target.name, **said)

    def ended(self) -> Outcome:
        """Return how it ended, once it is gone."""
        os.close(self.pipe)
        _, status = os.waitpid(self.pid, 0)
        if self.result is None:
            code = os.waitstatus_to_exitcode(status)
            self.result = _unsaid(code)
        said: dict[str, Any] = {**self.done, **self.result}
        found = Outcome(self.target, **said)
        found.planned = self.planned
        return found


def _unsaid(code: int) -> dict[str, Any]:
    """Return the result of a process that told none."""
    if code in (ExitCode.SIGINT, ExitCode.SIGTERM):
        return {"exit_code": code}
    if code == ExitCode.CONNECTION_LOST:  # its own hard end
        return {"exit_code": code, "error": _UNKNOWN}
    if code == ExitCode.INTERNAL:
        said = "a bug in pg-preflight: its process ended by itself and told nothing"
        return {"exit_code": code, "error": _UNKNOWN | {"code": "internal.error", "message": said}}
    error = _UNKNOWN | {
        "code": "target.killed",
        "message": f"its process ended with {code} and told nothing: was it killed, or out of "
        "memory?",
    }
    return {"exit_code": int(ExitCode.CONNECTION_LOST), "error": error}


def each(
    work: Work,
    chosen: Sequence[Target],
    most: int,
    done: Callable[[Outcome], None],
    *,
    over: Callable[[], bool] = lambda: False,
) -> None:
    """Do a work for each target, at most so many at a time; `done` is told as they end.

    Once it is `over` no more is begun, and what runs is waited for. A stop is passed on; raises
    Stopped.
    """
    waiting, running = list(chosen), dict[int, _Child]()
    stop.leaves(running, "the history of each target says what stands there")
    try:
        while running or (waiting and not over()):
            while waiting and len(running) < most and not over():
                try:
                    child = _begun(work, waiting[0], running)
                except OSError:  # no more processes or files: as many as there can be
                    if not running:
                        raise
                    break
                del waiting[0]
                running[child.pipe] = child
            with stop.allowed():  # only to wait: what was heard is not to be lost
                ready = _ready(running, 1.0)
            _hear(running, ready, done)
    except BaseException as error:
        if not isinstance(error, KeyboardInterrupt):
            stop.leaves(running, None)
        _end(running, done)
        raise
    stop.leaves(running, None)


def settle() -> None:
    """Let threads of ours come to their end, for a moment: what one holds no child could let go.

    One that takes longer waits for others, and holds nothing. Call before the first one begins.
    """
    until = time.monotonic() + BESIDE_S
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(max(0.0, until - time.monotonic()))


def _ready(running: Iterable[int], within_s: float) -> list[int]:
    poll = select.poll()  # select() knows no more than 1024 files
    for pipe in running:
        poll.register(pipe, select.POLLIN)
    return [pipe for pipe, _ in poll.poll(within_s * 1000)]


def _hear(
    running: dict[int, _Child], ready: Iterable[int], done: Callable[[Outcome], None]
) -> None:
    for pipe in ready:
        if data := os.read(pipe, 1 << 16):
            running[pipe].hear(data)
        else:
            done(running.pop(pipe).ended())


def _end(running: dict[int, _Child], done: Callable[[Outcome], None]) -> None:
    """Pass a stop on, and wait for a little while; what they still say is said."""
    for child in running.values():
        with suppress(ProcessLookupError):
            os.kill(child.pid, stop.requested() or signal.SIGTERM)
    until = time.monotonic() + ENDED_S
    while running and (left := until - time.monotonic()) > 0:
        _hear(running, _ready(running, left), done)
    for child in running.values():
        done(Outcome(child.target, int(ExitCode.CONNECTION_LOST), _UNKNOWN, **child.done))


# in the process of one target


def _begun(work: Work, target: Target, others: Mapping[int, _Child]) -> _Child:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    read, write = os.pipe()
    ours = os.getpid()
    try:
        pid = os.fork()
    except OSError:
        os.close(read)
        os.close(write)
        raise
    if pid:
        os.close(write)
        return _Child(target, pid, read)
    try:
        os.close(read)
        for other in others:
            os.close(other)
        stop.leaves(others, None)  # which is our parent's to say
        _apart(work, target, write, ours)
    finally:
        os._exit(ExitCode.INTERNAL)


def _apart(work: Work, target: Target, pipe: int, parent: int) -> NoReturn:
    """Do the work, say how it ended, and leave."""
    if sys.platform == "linux":  # nobody would listen any more
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != parent:
            os._exit(ExitCode.SIGTERM)

    say = _Voice(pipe)
    logs.pass_on(say)
    _listen()
    say({"result": _result(work, target)})
    run.leave(0)


class _Voice:
    """Says a line at a time, whoever says it: those who watch a file have threads of their own."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe
        self.one = threading.Lock()
        self.torn = False  # a stop came in the middle of a line

    def __call__(self, said: MutableMapping[str, Any]) -> None:
        line = json.dumps(said, default=logs.plain).encode() + b"\n"
        with self.one, suppress(OSError):
            left = memoryview(b"\n" + line if self.torn else line)
            self.torn = True
            while left:
                left = left[os.write(self.pipe, left) :]
            self.torn = False


def _listen() -> None:
    def ask(number: int, _frame: object) -> None:
        if stop.requested() is None:
            timer = threading.Timer(HARD_STOP_S, _hard)
            timer.daemon = True
            threads.started(timer)
        stop.request(number)

    stop.listen(ask)


def _hard() -> None:
    lost = stop.busy.is_set()
    os._exit(ExitCode.CONNECTION_LOST if lost else stop.code(stop.requested()))


def _result(work: Work, target: Target) -> dict[str, Any]:
    try:
        stop.check()
        return {"exit_code": 0, "given": work(target)}
    except Failure as failure:
        return {
            "exit_code": int(failure.exit_code),
            "error": failure.data(),
            "given": failure.given or failure.target,
        }
    except KeyboardInterrupt:
        error = {
            "code": "run.stopped",
            "message": f"stopped; {stop.left() or 'unfinished work was rolled back'}",
            "hint": "Run again.",
        }
        return {"exit_code": stop.code(stop.requested() or signal.SIGINT), "error": error}
    except Exception as error:  # noqa: BLE001 -- as in run.py: the last resort
        return {"exit_code": int(ExitCode.INTERNAL), "error": run.internal(error)}


@contextmanager
def spoken(outcomes: list[Outcome], chosen: Sequence[Target]) -> Iterator[None]:
    """Say of each target how it ended, also of those that nobody came to."""
    try:
        yield
    finally:
        known = {each.target.name: each for each in outcomes}
        # at a stop there may be no time for all: those first that something was done for
        for target in sorted(chosen, key=lambda each: each.name not in known):
            found = known.get(target.name) or Outcome(target, int(ExitCode.PENDING))
            error = {"error": told} if (told := found.told) else {}
            log = structlog.get_logger()
            (log.error if found.error and found.word == "failed" else log.info)(
                "target.finished",
                target=target.name,
                outcome=found.word,
                exit_code=found.exit_code,
                **found.done,
                **error,
            )
