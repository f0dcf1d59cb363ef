"""Faults to inject: strangers on the port, a proxy that fails, a standby; and waiting for effects.

The proxy knows where a message of PostgreSQL's protocol ends; a `Fault` sees each one and may
change it, drop it, or cut the connection.
"""

import argparse
import contextlib
import copy
import ctypes
import fcntl
import itertools
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg

from tests import servers

MARK = re.compile(rb"(?<=pg_preflight\.session=)\w{16}")  # see `Session.own`
SSL_REQUEST, GSS_REQUEST, CANCEL_REQUEST = 80877103, 80877104, 80877102


class Cut(Exception):
    """Close the connection now, on both sides."""


def refusal(code: bytes, message: bytes) -> bytes:
    """Return the message with which a server, or a pooler, refuses a login."""
    body = b"SFATAL\0C" + code + b"\0M" + message + b"\0\0"
    return b"E" + struct.pack("!i", len(body) + 4) + body


class Fault:
    """What a proxy does with each message: nothing at all, unless a subclass says otherwise."""

    def connected(self) -> "Fault":
        """Return what sees the messages of a new connection: here the same for all."""
        return self

    def startup(self, message: bytes) -> bytes | None:
        """Return None to go on, or what the server would have answered before it hung up."""
        del message
        return None

    def opens(self, message: bytes) -> bytes:
        """Return the startup message that the server gets."""
        return message

    def joined(self, client: socket.socket, upstream: socket.socket) -> None:
        """See the sockets to both sides, before the server hears who calls."""

    def to_server(self, kind: bytes, message: bytes) -> bytes:
        """Return what the server gets."""
        del kind
        return message

    def to_client(self, kind: bytes, message: bytes) -> bytes:
        """Return what the program gets."""
        del kind
        return message


class Lacks(Fault):
    """Has no settings that a server on Windows has not: what names one is an error there."""

    LACKING = (b"client_connection_check_interval", b"tcp_user_timeout")

    def to_server(self, kind: bytes, message: bytes) -> bytes:
        """Make their names unknown."""
        for name in self.LACKING if kind == b"Q" else ():
            message = message.replace(name, name[:-1] + b"x")
        return message


class OwnKeys(Fault):
    """Tells a process id of its own, and leads each client to a process of his, as Neon's does."""

    def to_client(self, kind: bytes, message: bytes) -> bytes:
        """Change BackendKeyData."""
        return message[:5] + struct.pack("!i", 424242) + message[9:] if kind == b"K" else message


class Pooler(OwnKeys):
    """Tells one, too, and refuses options that it does not track, as PgBouncer does since 1.20."""

    def startup(self, message: bytes) -> bytes | None:
        """Answer as it does to one that no server would refuse."""
        said = b"unsupported startup parameter in options: pg_preflight.session"
        return refusal(b"08P01", said) if b"pg_preflight.session" in message else None


class DeafPooler(OwnKeys):
    """Ignores them where it is told to: the server's process began without."""

    def opens(self, message: bytes) -> bytes:
        """Say another word than the program's."""
        return MARK.sub(b"0" * 16, message)


class BlendingPooler(OwnKeys):
    """Gives each client a process that began for the first one, options and all."""

    def __init__(self) -> None:
        """Have seen nobody."""
        self.first = b""

    def opens(self, message: bytes) -> bytes:
        """Say the first client's word."""
        found = MARK.search(message)
        self.first = self.first or (found.group() if found else b"")
        return MARK.sub(self.first, message)


class OldPooler(Pooler):
    """Refuses the startup parameter `options`, as PgBouncer did before 1.20."""

    refuses = refusal(b"08P01", b"unsupported startup parameter: options")

    def startup(self, message: bytes) -> bytes | None:
        """Answer as PgBouncer 1.18 does."""
        return self.refuses if b"\0options\0" in message else None


class RdsProxy(OldPooler):
    """Refuses it, too, with the SQLSTATE of a server that does not know the protocol."""

    refuses = refusal(
        b"0A000",
        b"Feature not supported: RDS Proxy currently doesn't support command-line options.",
    )


class CutAfter(Fault):
    """Cuts one connection after so many messages of the server to anybody, then behaves."""

    def __init__(self, messages: int) -> None:
        """Count from the first connection on."""
        self.left = messages
        self.lock = threading.Lock()

    def to_client(self, kind: bytes, message: bytes) -> bytes:
        """Drop the message that is one too many."""
        del kind
        with self.lock:
            self.left -= 1
            if self.left == -1:
                raise Cut
        return message


class Held(Fault):
    """Holds the first message to the server that has these words until it is let go."""

    def __init__(self, words: bytes) -> None:
        """Hold nothing before that."""
        self.words = words
        self.reached, self.free = threading.Event(), threading.Event()

    def to_server(self, kind: bytes, message: bytes) -> bytes:
        """Wait; other connections go on."""
        del kind
        if self.words in message and not self.reached.is_set():
            self.reached.set()
            self.free.wait(60)
        return message


class CommitFault(Fault):
    """Counts the COMMITs of all connections, and notices one; the others are left alone."""

    def __init__(self, number: int = 1) -> None:
        """Mean the COMMIT with this number."""
        self.number = number
        self.numbers = itertools.count(1)
        self.committing = False

    def connected(self) -> "CommitFault":
        """Count with the others, but change nothing of theirs."""
        return copy.copy(self)

    def to_server(self, kind: bytes, message: bytes) -> bytes:
        """Notice the COMMIT."""
        if kind == b"Q" and message[5:].startswith(b"COMMIT"):
            self.committing = next(self.numbers) == self.number
        return message


class LostCommit(CommitFault):
    """Loses the answer to a COMMIT that the server has carried out, once; or all that follows."""

    def __init__(self, number: int = 1, *, silently: bool = False) -> None:
        """Lose that of the COMMIT with this number; silently: the connection stays open."""
        super().__init__(number)
        self.silently = silently
        self.done = threading.Event()

    def to_client(self, kind: bytes, message: bytes) -> bytes:
        """Swallow the answer; ReadyForQuery says that the server is through."""
        if not self.committing:
            return message
        if kind == b"Z":
            self.done.set()
            if not self.silently:
                raise Cut
        return b""


class LostAndGone(LostCommit):
    """Loses the answer to a COMMIT, and takes nobody back: a failover that takes its time."""

    def __init__(self, number: int = 1) -> None:
        """Lose that of the COMMIT with this number."""
        super().__init__(number)
        self.asked = threading.Event()

    def startup(self, message: bytes) -> bytes | None:
        """Refuse whoever comes afterwards, and notice him."""
        del message
        if not self.done.is_set():
            return None
        self.asked.set()
        return refusal(b"57P03", b"the database system is starting up")


class SlowCommit(CommitFault):
    """Keeps the answer to a COMMIT back until it is let go."""

    def __init__(self, number: int = 1) -> None:
        """Hold that of the COMMIT with this number."""
        super().__init__(number)
        self.held = threading.Event()
        self.let_go = threading.Event()

    def to_client(self, kind: bytes, message: bytes) -> bytes:
        """Wait with its answer."""
        del kind
        if self.committing:
            self.held.set()
            self.let_go.wait(30)
        return message


class Proxy:
    """A TCP proxy in front of a server; it answers TLS requests with no."""

    def __init__(self, server: servers.Server, fault: Fault, *, listens: bool = True) -> None:
        """Take a port, and listen unless that is to come later."""
        self.server = server  # where new connections go
        self._fault = fault
        self._listener = socket.socket()
        self._listener.bind((servers.HOST, 0))
        self.port = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        if listens:
            self.listen()

    def listen(self) -> None:
        """Let callers in; until then the port refuses them."""
        self._listener.listen(64)
        self._accepting.start()

    def env(self) -> dict[str, str]:
        """Return the variables that lead through here."""
        return {"PGPORT": str(self.port), "PGSSLMODE": "disable", "PGGSSENCMODE": "disable"}

    def close(self) -> None:
        """Hang up on everybody."""
        for each in (self._listener, *self._sockets):
            hang_up(each)
        if self._accepting.ident is not None:
            self._accepting.join(5)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._sockets.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError, Cut):
            startup = startup_of(client)
            if (answer := self._fault.startup(startup)) is not None:
                client.sendall(answer)
                raise Cut
            upstream = socket.create_connection((servers.HOST, self.server.port))
            self._sockets.append(upstream)
            for each in (client, upstream):  # else each answer waits 40 ms for an acknowledgement
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            fault = self._fault.connected()
            fault.joined(client, upstream)
            upstream.sendall(self._fault.opens(startup))
            pump = threading.Thread(
                target=_pump, args=(client, upstream, fault.to_server), daemon=True
            )
            pump.start()
            _pump(upstream, client, fault.to_client)
            pump.join()
        hang_up(client)


def startup_of(client: socket.socket) -> bytes:
    """Return what a client says first; TLS is answered with no."""
    while True:
        length = _exactly(client, 4)
        message = length + _exactly(client, struct.unpack("!i", length)[0] - 4)
        if struct.unpack("!i", message[4:8])[0] not in (SSL_REQUEST, GSS_REQUEST):
            return message
        client.sendall(b"N")


def _pump(
    source: socket.socket, sink: socket.socket, change: Callable[[bytes, bytes], bytes]
) -> None:
    try:
        while True:
            message = message_of(source)
            sink.sendall(change(message[:1], message))
    except (OSError, Cut):
        hang_up(sink)
        hang_up(source)


def message_of(source: socket.socket) -> bytes:
    """Return the next message of either side, its head included."""
    head = _exactly(source, 5)
    return head + _exactly(source, struct.unpack("!i", head[1:])[0] - 4)


def _exactly(source: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        chunk = source.recv(min(size - len(found), 1 << 16))
        if not chunk:
            raise Cut
        found += chunk
    return found


def hang_up(each: socket.socket) -> None:
    """Close a connection; whoever reads from it is told."""
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()


@contextlib.contextmanager
def through(server: servers.Server, fault: Fault) -> Iterator[Proxy]:
    """Put a proxy in front of a server."""
    proxy = Proxy(server, fault)
    try:
        yield proxy
    finally:
        proxy.close()


@contextlib.contextmanager
def stranger(answer: Callable[[socket.socket], None]) -> Iterator[dict[str, str]]:
    """Listen on a port and treat every caller alike; yield the variables that lead there."""
    listener = socket.create_server((servers.HOST, 0))
    called: list[socket.socket] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, _ = listener.accept()
                called.append(caller)
                with contextlib.suppress(OSError, Cut):
                    answer(caller)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield {"PGHOST": servers.HOST, "PGPORT": str(listener.getsockname()[1])}
    finally:
        for each in (listener, *called):
            hang_up(each)
        thread.join(5)


def hangs_up(caller: socket.socket) -> None:
    """Accept and close, as a load balancer without a server does."""
    caller.close()


def resets(caller: socket.socket) -> None:
    """Accept and send RST."""
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    caller.close()


def says_nothing(caller: socket.socket) -> None:
    """Accept and never answer."""
    del caller


def speaks_http(caller: socket.socket) -> None:
    """Answer as a web server does."""
    caller.recv(4096)
    caller.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
    caller.close()


def breaks_tls(caller: socket.socket) -> None:
    """Agree to speak TLS, then hang up, as a proxy whose server is not there yet."""
    if struct.unpack("!i", _exactly(caller, 8)[4:])[0] == SSL_REQUEST:
        caller.sendall(b"S")
        caller.recv(1)
    hang_up(caller)


@contextlib.contextmanager
def small_disk(place: Path, megabytes: int) -> Iterator[Path]:
    """Have a file system of that size; needs the right to mount, and raises OSError without."""
    place.mkdir()
    mount = ["/bin/mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        raise PermissionError(f"no right to mount: {error.stderr!r}") from error
    try:
        yield place
    finally:
        subprocess.run(["/bin/umount", "--lazy", str(place)], check=True)


@contextlib.contextmanager
def small_memory(kilobytes: int) -> Iterator[Path]:
    """Have a control group whose processes get so much from now on; raises OSError without rights.

    Who enters it keeps what he has.
    """
    mounted = Path("/sys/fs/cgroup")
    first = (mounted / "memory").is_dir()  # version 1
    limits = ["memory.max", "memory.swap.max"]
    if first:
        limits = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
    group = mounted / ("memory" if first else "") / f"pg-preflight-{os.getpid()}"
    group.mkdir()
    try:
        for limit, needed in zip(limits, (True, False), strict=True):  # a kernel without swap
            if needed or (group / limit).exists():
                (group / limit).write_text(f"{kilobytes * 1024}")
        yield group
    finally:
        group.rmdir()


def killed_in(group: Path) -> int:
    """Return how many processes of a control group the kernel killed for want of memory."""
    said = [group / "memory.oom_control", group / "memory.events"]
    text = next(each for each in said if each.exists()).read_text()
    return int(dict(line.split() for line in text.splitlines())["oom_kill"])


def until(condition: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
    """Return as soon as the condition holds; fail when it does not come true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.02)


def numbers(only: str, minutes: float) -> Iterator[int]:
    """Count from 1 until the time is over, or give the only number that is asked for."""
    if only:
        yield int(only)
        return
    end, number = time.monotonic() + 60 * minutes, 0
    while time.monotonic() < end:
        number += 1
        yield number


def walks(what: str, about: str | None, walk: Callable[[int, Path, str], object]) -> int:
    """Walk until the time is over that the command line gives; 1 when something did not hold.

    A walk is told its number, a directory that is there, and its seed.
    """
    parser = argparse.ArgumentParser(prog=f"make {what}", description=about)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--minutes", type=float, default=1.0)
    asked = parser.parse_args()
    seed, _, only = str(asked.seed).partition("/")
    home = Path(tempfile.mkdtemp(prefix=f"pg-preflight-{what}-"))
    wrong = done = 0
    for number in numbers(only, asked.minutes):
        done += 1
        (home / str(number)).mkdir()
        try:
            walk(number, home / str(number), f"{seed}/{number}")
        except (AssertionError, psycopg.Error) as error:
            wrong += 1
            sys.stdout.write(f"SEED={seed}/{number}: {error}\n")
    sys.stdout.write(f"seed {seed}: {done} walks, {wrong} wrong\n")
    shutil.rmtree(home)
    return min(wrong, 1)


def walks_on_a_server(
    what: str, about: str | None, walk: Callable[[servers.Server, Path, str, str], object]
) -> int:
    """Walk on one server until the time is over; 1 when something did not hold.

    A walk is told the server, its directory, a name that no other has, and its seed.
    """
    server = servers.start(17)
    try:
        return walks(
            what, about, lambda number, home, seed: walk(server, home, f"{what}_{number}", seed)
        )
    finally:
        server.remove()


def processes_in(home: Path) -> list[int]:
    """Return the processes that work below a directory."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (each / "cwd").readlink().is_relative_to(home):
                found.append(int(each.name))
    return found


@contextlib.contextmanager
def frozen(server: servers.Server) -> Iterator[None]:
    """Stop the main process from running for a while; its port still accepts."""
    server.signal_postmaster(signal.SIGSTOP)
    try:
        yield
    finally:
        server.signal_postmaster(signal.SIGCONT)


def make_standby(primary: servers.Server, standby: servers.Server) -> None:
    """Turn a server into a hot standby of another one of the same major version."""
    standby.stop()
    shutil.rmtree(standby.data)
    subprocess.run(
        [
            *(primary.bin / "pg_basebackup", "--checkpoint=fast", "--write-recovery-conf"),
            *(f"--pgdata={standby.data}", f"--dbname={primary.conninfo()}"),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    for each in (standby.data, *standby.data.rglob("*")):
        shutil.chown(each, standby.home.stat().st_uid, standby.home.stat().st_gid)
    standby.configure(port=standby.port)
    standby.start()


_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 0x1  # SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP


class Island:
    """A network of this thread's own: what it starts meanwhile is in it, and cut off with it."""

    def __init__(self) -> None:
        """Look for its only device from inside."""
        self._device = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def connect(self) -> None:
        """Let packets pass."""
        self._set(up=True)

    def cut(self) -> None:
        """Drop every packet from now on: nobody hears of it, not even that a socket was closed."""
        self._set(up=False)

    def close(self) -> None:
        """Forget it."""
        self._device.close()

    def _set(self, *, up: bool) -> None:
        asked = struct.pack("16sh14x", b"lo", 0)
        (flags,) = struct.unpack("16xh14x", fcntl.ioctl(self._device, _GET_FLAGS, asked))
        flags = flags | _UP if up else flags & ~_UP
        fcntl.ioctl(self._device, _SET_FLAGS, struct.pack("16sh14x", b"lo", flags))


@contextlib.contextmanager
def island() -> Iterator[Island]:
    """Leave the machine's network for one without any other machine; needs root.

    A server in it is reached from outside through its Unix socket.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open("rb") as home:
        if libc.unshare(_NEW_NETWORK) != 0:
            raise OSError(ctypes.get_errno(), "a network of one's own needs root")
        made = Island()
        try:
            made.connect()
            yield made
        finally:
            made.close()
            libc.setns(home.fileno(), _NEW_NETWORK)
