"""How soon either end of a connection gives up a peer that vanished: what the kernel was told.

Nobody waits here until it does: the options of the living processes' own sockets are read, through
copies of these (`pidfd_getfd`; it needs Linux, and for a server that runs as another user, root).
"""

import contextlib
import ctypes
import math
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

Address = tuple[str, int]

_GET_FD = 438  # of pidfd_getfd, on every machine


@dataclass(frozen=True)
class End:
    """One end of a connection: whose it is, and after how many seconds a silent peer is given up.

    inf: never. `command` is how the program was called.
    """

    pid: int
    program: str
    waits_s: float
    command: str


def end(here: Address, there: Address) -> End | None:
    """Return this end; None where nobody has it any more, or nobody may look at it."""
    number = _number(here, there)
    for pid, descriptor in _owners(number) if number else ():
        with contextlib.suppress(OSError), _copied(pid, descriptor) as found:
            if (found.getsockname(), found.getpeername()) == (here, there):  # and no other by now
                program, command = (
                    Path(f"/proc/{pid}/{each}").read_text("utf-8") for each in ("comm", "cmdline")
                )
                waits_s = max(_idle_s(found), _at_work_s(found))
                return End(pid, program.strip(), waits_s, command.replace("\0", " "))
    return None


def _idle_s(found: socket.socket) -> float:
    """Return how long it waits for one who has nothing to say."""
    if not found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE):
        return math.inf
    asked = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    idle, between, count = (found.getsockopt(socket.IPPROTO_TCP, each) for each in asked)
    return float(idle + between * count)


def _at_work_s(found: socket.socket) -> float:
    """Return how long it waits for what it sent to arrive."""
    return found.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) / 1000 or math.inf


def _number(here: Address, there: Address) -> str:
    """Return the inode of the socket between two addresses, as the kernel lists it."""
    wanted = [_listed(here), _listed(there)]
    for line in Path("/proc/net/tcp").read_text("ascii").splitlines():
        fields = line.split()
        if fields[1:3] == wanted and fields[9] != "0":
            return fields[9]
    return ""


def _listed(address: Address) -> str:
    host, port = address
    return f"{int.from_bytes(socket.inet_aton(host), 'little'):08X}:{port:04X}"


def _owners(number: str) -> Iterator[tuple[int, int]]:
    """Yield each process that has a socket, the newest first, and as what."""
    for process in sorted((int(each.name) for each in Path("/proc").glob("[0-9]*")), reverse=True):
        with contextlib.suppress(OSError):
            for descriptor in Path(f"/proc/{process}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(descriptor.readlink()) == f"socket:[{number}]":
                        yield process, int(descriptor.name)


@contextlib.contextmanager
def _copied(pid: int, descriptor: int) -> Iterator[socket.socket]:
    """Have another process's socket, too; raises OSError where that may not be."""
    process = os.pidfd_open(pid)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        copy = libc.syscall(_GET_FD, process, descriptor, 0)
        if copy < 0:
            raise OSError(ctypes.get_errno(), "its socket cannot be looked at")
        with socket.socket(fileno=copy) as found:
            yield found
    finally:
        os.close(process)
