"""Landlock's TCP rules, a wall around a process and all that it starts; and whose a session is.

The wall is one against mistakes, not against malice. It holds for connecting by TCP, whatever the
program. It knows ports, not addresses: where the copy's port is the live server's, too, it parts
nothing. It does not see Unix sockets with a path (those without one are closed where the kernel
can: ABI 6), UDP, listening, MPTCP, what is open already, nor others that are asked to connect.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from preflight.base import landlock
from preflight.commands.wrapping import tree

_LINE = re.compile(
    r"^ *\d+: ([0-9A-F]+):([0-9A-F]{4}) [0-9A-F]+:([0-9A-F]{4}) \S+ \S+ \S+ \S+ +\d+ +\d+ (\d+)",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Wall:
    """Which TCP ports may be connected to, and no others."""

    ports: tuple[int, ...]


def available() -> bool:
    """Tell whether Landlock's TCP rules are there: the kernel has them and lets us use them."""
    return landlock.version() >= landlock.TCP_ABI


def build(wall: Wall) -> None:
    """Wall this process in, for ever and with all that it will start; raises OSError.

    It and they can no longer gain rights: a set-user-ID program runs without them.
    """
    if not available():
        raise OSError(0, "there are no TCP rules of Landlock")
    ruleset = landlock.rules(connect=wall.ports, scoped=landlock.ABSTRACT_UNIX_SOCKET)
    landlock.entering(ruleset)()
    os.close(ruleset)


# whose a session is


def sessions(
    pid: int, others: Sequence[tuple[str | None, int]], server_port: int | None = None
) -> set[tuple[str | None, int]]:
    """Return which (client_addr, client_port) are sockets of a process or of those below it.

    With the server's port only of connections to it: one local port may serve several. A session
    through a Unix socket has no address to tell it by, and one whose address somebody translates on
    the way is not recognised: neither is returned.
    """
    known = {
        (ipaddress.ip_address(address.partition("/")[0]), port): (address, port)
        for address, port in others
        if address is not None
    }
    if not known:
        return set()
    found: set[tuple[str | None, int]] = set()
    for each in (pid, *tree.below(pid)):
        with suppress(OSError):
            held = _sockets(each)
            for local, port, remote, inode in _connections(each):
                if inode in held and server_port in (None, remote) and (local, port) in known:
                    found.add(known[local, port])
    return found


def _sockets(pid: int) -> Collection[str]:
    """Return the numbers of the sockets that a process holds."""
    found = set()
    for entry in os.scandir(tree.PROC / str(pid) / "fd"):
        with suppress(OSError):  # closed meanwhile
            name = os.readlink(entry)  # noqa: PTH115 -- as text: it names no file
            if name.startswith("socket:["):
                found.add(name[8:-1])
    return found


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _connections(pid: int) -> Iterator[tuple[_Address, int, int, str]]:
    """Yield address, port, the other's port and number of each TCP socket in a process's network.

    The kernel prints an address as numbers of four bytes in its own order.
    """
    for name in ("tcp", "tcp6"):
        with suppress(FileNotFoundError):  # a kernel without IPv6
            text = (tree.PROC / str(pid) / "net" / name).read_text(encoding="ascii")
            for address, port, remote, inode in _LINE.findall(text):
                yield _address(address), int(port, 16), int(remote, 16), inode


def _address(text: str) -> _Address:
    raw = b"".join(
        int(text[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(text), 8)
    )
    address = ipaddress.ip_address(raw)
    return (address.ipv4_mapped or address) if address.version == 6 else address  # noqa: PLR2004
