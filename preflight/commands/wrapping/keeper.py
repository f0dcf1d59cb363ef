"""The process between us and COMMAND: it ends all that COMMAND started, with COMMAND or with us.

A kill -9 of ours, a daemon that COMMAND leaves behind, a shell that does not pass a signal on: none
of them may leave somebody at work on the database. The keeper hears of our end by its end of a
pipe, and is the one to whom Linux gives the orphans of those below it.

Its stdin: a line with a length, so many bytes of COMMAND's environment, then one byte for each
signal that is to be passed on. What it says on the status pipe, a line each: `started PID`,
`failed N` and `unwalled N` with an errno, `clearing 0` once COMMAND has ended, `asking 0` before
what it left behind is asked to end, `ended CODE LEFT` with how many processes those were.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from preflight.commands.wrapping import tree, wall

SET_PARENT_DEATH_SIGNAL, SET_CHILD_SUBREAPER = 1, 36
LEAVE_S = 1.5  # what COMMAND left behind gets so long to end by itself, and again when asked to
NO_WALL = "-"


def keep(arguments: Sequence[str]) -> None:
    """Run COMMAND to its end, or to ours; does not return.

    `arguments`: the status pipe's number, the wall's ports or `-`, COMMAND.
    """
    status, ports, command = int(arguments[0]), arguments[1], arguments[2:]
    os.set_inheritable(status, False)  # noqa: FBT003 -- has no name
    environment = _environment()
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    _control(SET_CHILD_SUBREAPER, 1)
    keeper = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become(keeper, status, ports, command, environment)
    os.write(status, f"started {pid}\n".encode())
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    code = _watch(pid, woken)
    with suppress(OSError):  # nobody hears it any more
        os.write(status, b"clearing 0\n")
    left = _clear(pid, status)
    os.write(status, f"ended {code} {left}\n".encode())
    os._exit(0)


def _environment() -> dict[bytes, bytes]:
    length = b""
    while not length.endswith(b"\n"):
        length += os.read(0, 1) or os._exit(1)
    left, text = int(length), b""
    while len(text) < left:
        text += os.read(0, left - len(text)) or os._exit(1)
    return dict(each.split(b"=", 1) for each in text.split(b"\0") if each)


def _control(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _become(
    keeper: int, status: int, ports: str, command: Sequence[str], environment: dict[bytes, bytes]
) -> None:
    """Become COMMAND: its own session, nothing to read, nothing of ours but the two streams."""
    word = "failed"
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)  # Python ignores the last two
        _control(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(1)  # it was ended just before
        if ports != NO_WALL:
            word = "unwalled"
            wall.build(wall.Wall(tuple(int(port) for port in ports.split(",") if port)))
            word = "failed"
        os.execvpe(command[0], list(command), environment)  # noqa: S606 -- as it stands, without a shell
    except OSError as error:
        os.write(status, f"{word} {error.errno or 0}\n".encode())
    finally:
        os._exit(127)


def _watch(pid: int, woken: int) -> int:
    """Wait for COMMAND's end and pass signals on meanwhile; return its exit code, or -signal.

    When we are gone it is killed, with all that it started.
    """
    while True:
        for each, code in _reaped():
            if each == pid:
                return code
        for descriptor in select.select([0, woken], [], [])[0]:
            said = os.read(descriptor, 512)
            if descriptor == woken:
                continue
            for number in said:
                _send(pid, number)
            if not said:
                _end(pid)
                os._exit(1)


def _reaped() -> list[tuple[int, int]]:
    """Return who has ended, and how."""
    found: list[tuple[int, int]] = []
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            found.append((ended[0], os.waitstatus_to_exitcode(ended[1])))
    return found


def _send(pid: int, number: int) -> list[int]:
    """Send a signal to all that COMMAND started, and let go on who stands still; return whom."""
    found = tree.below(os.getpid())
    if sys.platform != "linux":
        found = [-pid]
    for each in found:
        for what in (number, signal.SIGCONT):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(each, what)
    return found


def _end(pid: int) -> None:
    """Kill all that there is until nobody is left; who starts others meanwhile is killed, too."""
    until = time.monotonic() + LEAVE_S
    while _send(pid, signal.SIGKILL) and time.monotonic() < until:
        _reaped()
        time.sleep(0.005)


def _clear(pid: int, status: int) -> int:
    """End what COMMAND left behind, if it does not end by itself; return how many those were."""
    if sys.platform != "linux":
        _send(pid, signal.SIGTERM)
        return 0
    if not _stay():
        return 0
    with suppress(OSError):
        os.write(status, b"asking 0\n")
    left = len(_send(pid, signal.SIGTERM))
    if _stay():
        _end(pid)
    return left


def _stay() -> bool:
    """Tell whether anybody is still there after a while."""
    until = time.monotonic() + LEAVE_S
    while found := bool(tree.below(os.getpid())):
        if time.monotonic() >= until:
            break
        gone, _, _ = select.select([0], [], [], 0.01)
        _reaped()
        if gone and not os.read(0, 512):
            break  # we are gone: no time is left
    return found
