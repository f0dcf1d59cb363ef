"""Run COMMAND: heard line by line, stopped with us, ended with all that it started."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from preflight.base import masks, stop, threads
from preflight.base.errors import RehearsalFailed
from preflight.commands.wrapping import keeper, program, said, wall

ROOT = Path(__file__).resolve().parents[3]
CHUNK = 1 << 16
EVERY_S = 0.1
TELL_EVERY_S = 30.0  # an app that it starts does not end, and whoever waits is to see for what
GRACE_S = 1.5  # how long it may take to end when asked; the whole stop takes less than 5 s
CLEAR_S = 2 * keeper.LEAVE_S + 1  # how long the keeper may take to end the rest
OURS = "PREFLIGHT_"
KEPT = "_PG_PREFLIGHT_"  # image/launcher.c: what the app's environment had before the launcher came
_KEEP = (
    "import sys; sys.path.insert(0, sys.argv[1]); from preflight.commands.wrapping import keeper; "
    "keeper.keep(sys.argv[2:])"
)


@dataclass(frozen=True, slots=True)
class Ended:
    """How COMMAND ended; a negative code is a signal's number, None our timeout.

    `telling`: the lines that may say why it fails, also those above the last ones. `left`: how many
    processes it left behind, which were ended.
    """

    code: int | None
    duration_s: float
    last: tuple[str, ...]
    telling: tuple[str, ...] = ()
    left: int = 0

    @property
    def closed(self) -> bool:
        """Whether it said that it may not connect."""
        return any(map(said.is_closed, self.telling))

    @property
    def failed(self) -> bool:
        """Whether it ended by itself and says that it failed: else it had gone on till then."""
        return self.code is not None and self.code > 0

    @property
    def why(self) -> tuple[str, ...]:
        """What its failure is told by: the last line where it did not end by itself."""
        return said.why(self.last, self.telling) if self.failed else self.last[-1:]

    @property
    def context(self) -> str | None:
        """Its last lines, and the one that says why."""
        return said.context(self.last, self.telling)


@dataclass(frozen=True, slots=True)
class Child:
    """COMMAND while it lives: all of its processes are below `pid`.

    `lingers` tells whether it has ended, and what it left behind may end by itself yet: nobody has
    asked it to.
    """

    pid: int
    lingers: Callable[[], bool]


def own(environment: Mapping[str, str]) -> dict[str, str]:
    """Return COMMAND's environment: nothing of ours, and what a launcher changed as it was."""
    kept = {name: value for name, value in environment.items() if not name.startswith((OURS, KEPT))}
    for name, value in environment.items():
        if name.startswith(KEPT):
            kept.pop(name.removeprefix(KEPT), None)
            if value.startswith("="):  # it had one; else it had none
                kept[name.removeprefix(KEPT)] = value[1:]
    return kept


def run(  # noqa: PLR0913 -- what, with what, and who looks on
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    secrets: Collection[str],
    timeout_s: float | None,
    wall: wall.Wall | None = None,
    each: Callable[[Child], None] | None = None,
    rehearsal: bool = False,
) -> Ended:
    """Run COMMAND to its end and tell each line that it says as `wrap.said`.

    `each` is called about ten times a second while it lives, and may end it by raising; and once
    before a stop request is passed on, or its time is over. Raises ConfigInvalid when it cannot be
    started, RehearsalFailed when the wall cannot be built, Stopped once a stop request was passed
    on to all that it started and they have ended.
    """
    began = time.monotonic()
    running = _Running(command, own(environment), wall, masks.Mask(secrets), rehearsal=rehearsal)
    try:
        code = running.listen(began + timeout_s if timeout_s else None, each)
    except stop.Stopped as stopped:
        with suppress(Exception):  # a last look; what counts is the stop
            if each is not None and not running.over():
                each(running.child())
        running.end(stopped.signum)
        raise
    finally:
        running.end(signal.SIGTERM)
    duration_s, kept = round(time.monotonic() - began, 3), running.kept
    return Ended(code, duration_s, tuple(kept.last), kept.telling, running.left)


class _Running:
    """COMMAND below its keeper, and the pipes to both."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        around: wall.Wall | None,
        mask: masks.Mask,
        *,
        rehearsal: bool,
    ) -> None:
        """Start it."""
        self.command = command
        self.more = {"rehearsal": True} if rehearsal else {}
        self.kept = said.Kept()
        self.result: tuple[str, int] | None = None
        self.group: int | None = None
        self.clearing = False  # it has ended in time, and what it left behind is being ended
        self.asked = False  # what it left behind, to end
        self.left = 0
        self._status = b""
        status, theirs = os.pipe()
        ports = keeper.NO_WALL if around is None else ",".join(map(str, around.ports))
        start = [sys.executable, "-I", "-S", "-c", _KEEP, str(ROOT), str(theirs), ports, *command]

        def begin() -> subprocess.Popen[bytes]:
            return subprocess.Popen(  # noqa: S603 -- COMMAND, as it was given
                start,
                env={"LC_ALL": "C.UTF-8"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                pass_fds=[theirs],
                start_new_session=True,  # a terminal's Ctrl-C is ours to handle
            )

        try:
            self.keeper = threads.process(begin)
        except (OSError, ValueError) as error:
            os.close(status)
            raise program.not_started(command[0], str(error), threads.room(error)) from error
        finally:
            os.close(theirs)
        self.heard: dict[int, said.Heard | None] = {status: None}
        for name, pipe in (("stdout", self.keeper.stdout), ("stderr", self.keeper.stderr)):
            assert pipe is not None  # noqa: S101 -- the keeper was started with pipes
            self.heard[pipe.fileno()] = said.Heard(name, mask, self.kept, rehearsal=rehearsal)
        self._send(_told(environment))

    def listen(self, until: float | None, each: Callable[[Child], None] | None) -> int | None:
        """Hear it to its end; return its exit code, None if that took too long."""
        looked, began = 0.0, time.monotonic()
        told = began
        while not self.over():
            with stop.allowed():
                self.hear(EVERY_S)
            now = time.monotonic()
            late = until is not None and now >= until and not self.clearing
            if each is not None and not self.over() and (late or now - looked >= EVERY_S):
                looked = now
                each(self.child())
            if now - told >= TELL_EVERY_S and not (self.over() or self.clearing):
                told = now
                structlog.get_logger().info(
                    "wrap.progressed",
                    waiting="for the command to end: one that starts the app afterwards does not",
                    elapsed_s=round(now - began, 1),
                    **self.more,
                )
            if late and not self.over():
                self.end(signal.SIGTERM)
                return None
        self._drain(CLEAR_S)
        return self._code()

    def child(self) -> Child:
        """Return it as who looks on sees it."""
        return Child(self.keeper.pid, self._lingers)

    def _lingers(self) -> bool:
        if self.clearing:
            self.hear(0)  # the keeper says that it asks before it does
        return self.clearing and not self.asked and not self.over()

    def over(self) -> bool:
        """Tell whether the keeper has said how it ended."""
        return self.result is not None

    def hear(self, most_s: float) -> None:
        """Take what it says, or what its keeper says of it; wait for it at most so long."""
        ready, _, _ = select.select(list(self.heard), [], [], most_s)
        for descriptor in ready:
            chunk = os.read(descriptor, CHUNK)
            stream = self.heard[descriptor]
            if stream is not None and chunk:
                stream.hear(chunk)
            elif stream is not None:
                stream.end()
                del self.heard[descriptor]
            elif chunk:
                self._told_of(chunk)
            else:
                self._lost()
                os.close(descriptor)
                del self.heard[descriptor]

    def _told_of(self, chunk: bytes) -> None:
        self._status += chunk
        *lines, self._status = self._status.split(b"\n")
        for line in lines:
            what, number, *left = line.decode().split()
            if what == "started":
                self.group = int(number)
            elif what == "clearing":
                self.clearing = True
            elif what == "asking":
                self.asked = True
            else:
                self.result = self.result or (what, int(number))
            if left and left != ["0"]:
                self.left = int(left[0])
                structlog.get_logger().warning("wrap.left_behind", processes=self.left)

    def _lost(self) -> None:
        """End what a keeper leaves that somebody killed: the kernel has ended COMMAND itself."""
        if self.result is None:
            self.result = ("ended", -signal.SIGKILL)
            if self.group is not None:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.group, signal.SIGKILL)

    def _code(self) -> int:
        what, number = self.result or ("ended", -signal.SIGKILL)
        if what == "failed":
            why = os.strerror(number)
            hint = threads.room(OSError(number, why))
            raise program.not_started(self.command[0], why, hint)
        if what == "unwalled":
            raise RehearsalFailed(
                "wrap.no_wall",
                "the kernel does not keep the command off the live database: "
                + os.strerror(number),
                "Nothing was changed. Beside the live database a lock keeps it off: "
                "PREFLIGHT_REHEARSE_ON=server.",
            )
        return number

    def _send(self, data: bytes) -> None:
        assert self.keeper.stdin is not None  # noqa: S101 -- it is a pipe
        with suppress(BrokenPipeError):
            view = memoryview(data)
            while view:
                view = view[self.keeper.stdin.write(view) or 0 :]

    def _drain(self, most_s: float) -> None:
        """Hear what is left to be heard, to the end of the pipes; at most so long."""
        until = time.monotonic() + most_s
        while self.heard and (left := until - time.monotonic()) > 0:
            self.hear(left)

    def end(self, number: int) -> None:
        """End it with all that it started, and hear its last words; once."""
        if self.keeper.stdin is None or self.keeper.stdin.closed:
            return
        if not self.over():
            self._send(bytes([number]))
            until = time.monotonic() + GRACE_S
            while not self.over() and (left := until - time.monotonic()) > 0:
                self.hear(left)
        self.keeper.stdin.close()  # whoever is still there is killed
        self._drain(GRACE_S)
        try:
            self.keeper.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self.keeper.kill()
            self.keeper.wait()
        for descriptor, stream in self.heard.items():
            if stream is None:
                os.close(descriptor)
            else:
                stream.end()
        for pipe in (self.keeper.stdout, self.keeper.stderr):
            if pipe is not None:
                pipe.close()


def _told(environment: Mapping[str, str]) -> bytes:
    """Return an environment as the keeper reads it."""
    text = "\0".join(f"{name}={value}" for name, value in environment.items())
    raw = text.encode("utf-8", "surrogateescape")
    return b"%d\n" % len(raw) + raw
