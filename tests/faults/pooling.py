"""Poolers that pool: their clients share one process of the server's, in turn.

`pooled` is one of our own, in its worst shapes; `pgbouncer` the usual one, where it is installed.
"""

import contextlib
import os
import selectors
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from psycopg import pq, sql

from tests import faults, servers, tools

TOLD = ("server_version", "server_encoding", "client_encoding", "standard_conforming_strings")
RESET = b"DISCARD ALL"
ANSWERED = (b"Q", b"S", b"F")  # what the server ends its answer to with ReadyForQuery


@dataclass(frozen=True)
class Way:
    """How a pooler works: for how long a client has the process, and whose options it began with.

    They are ignored or passed: then the process has those of the first client.
    """

    turn: str  # transaction or session
    options: str = "ignored"

    def __str__(self) -> str:
        """Read as in `transaction, options ignored`."""
        return f"{self.turn}, options {self.options}"


class Backend:
    """A process of the server's."""

    def __init__(self, database: servers.Database, options: bytes) -> None:
        """Log in as libpq does, which hears nothing of what is said from then on."""
        where = database.conninfo(sslmode="disable", options=options.decode())
        self._login = pq.PGconn.connect(where.encode())
        assert self._login.status == pq.ConnStatus.OK, self._login.error_message
        self.socket = socket.socket(fileno=os.dup(self._login.socket))
        self.socket.setblocking(True)  # noqa: FBT003 - the method's own way
        self.told = {each: self._login.parameter_status(each.encode()) or b"" for each in TOLD}

    def reset(self) -> None:
        """Forget a client."""
        self.socket.sendall(_message(b"Q", RESET + b"\0"))
        while faults.message_of(self.socket)[:1] != b"Z":
            pass

    def close(self) -> None:
        """End it."""
        self._login.finish()
        self.socket.close()


class Pool(faults.Proxy):
    """A pooler with one process, which its clients have one after the other."""

    def __init__(self, database: servers.Database, way: Way) -> None:
        """Begin none before the first client comes."""
        self._database, self._way = database, way
        self._turn = threading.Lock()  # whose it is has the process
        self._backend: Backend | None = None
        super().__init__(database.server, faults.Fault())

    def close(self) -> None:
        """Hang up on everybody, on the server last."""
        super().close()
        with self._turn:
            self._end()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError, faults.Cut):
            options = _parameters(faults.startup_of(client)).get(b"options", b"")
            passed = options if self._way.options == "passed" else b""
            with self._turn:
                client.sendall(_welcome(self._begun(passed).told))
            while (message := faults.message_of(client))[:1] != b"X":
                with self._turn:
                    self._takes_turn(client, message, passed)
        faults.hang_up(client)

    def _begun(self, options: bytes) -> Backend:
        if self._backend is None:
            self._backend = Backend(self._database, options)
        return self._backend

    def _end(self) -> None:
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    def _takes_turn(self, client: socket.socket, message: bytes, options: bytes) -> None:
        """Let a client have the process; one that he leaves at work is ended."""
        backend, one = self._begun(options), self._way.turn == "transaction"
        if not _carried(client, backend.socket, message, one=one):
            self._end()
        elif not one:
            backend.reset()


def _carried(client: socket.socket, server: socket.socket, message: bytes, *, one: bool) -> bool:
    """Carry messages until one transaction is over, or the client leaves; tell whether all are."""
    asked, idle = 0, True
    gone = (OSError, ValueError, faults.Cut)  # ValueError: it was closed on our side
    with selectors.DefaultSelector() as ready, contextlib.suppress(*gone):
        for each in (client, server):
            ready.register(each, selectors.EVENT_READ)
        while message[:1] != b"X":
            server.sendall(message)
            asked, idle = asked + (message[:1] in ANSWERED), False
            while client not in {key.fileobj for key, _ in ready.select()}:
                answer = faults.message_of(server)
                client.sendall(answer)
                asked -= answer[:1] == b"Z"
                idle = not asked and answer[:1] + answer[5:] == b"ZI"
                if idle and one:
                    return True
            message = faults.message_of(client)
    return idle


def _welcome(told: dict[str, bytes]) -> bytes:
    """Return the answer to a login: nobody is asked for a password, and the key is made up."""
    said = [_message(b"S", name.encode() + b"\0" + value + b"\0") for name, value in told.items()]
    key = _message(b"K", struct.pack("!ii", 424242, 1))
    return _message(b"R", bytes(4)) + b"".join(said) + key + _message(b"Z", b"I")


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def _parameters(startup: bytes) -> dict[bytes, bytes]:
    words = startup[8:].split(b"\0")
    return dict(zip(words[::2], words[1::2], strict=False))


Environment = dict[str, str]


@contextlib.contextmanager
def pooled(database: servers.Database, way: Way) -> Iterator[Environment]:
    """Put a pooler of our own before a database; yield the variables that lead through it."""
    pool = Pool(database, way)
    try:
        yield pool.env()
    finally:
        pool.close()


PGBOUNCER = """
[databases]
{database} = host={host} port={server} user={role} password=x
[pgbouncer]
listen_addr = {host}
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 1
ignore_startup_parameters = options
"""


@contextlib.contextmanager
def pgbouncer(database: servers.Database) -> Iterator[Environment]:
    """Put PgBouncer before a database; skips where it is not installed.

    It gives out its one process by transaction, and is told to ignore what options clients have.
    """
    program = tools.found("pgbouncer")
    server, role = database.server, f"pooled_{database.name}"
    with socket.create_server((servers.HOST, 0)) as listener:
        port = listener.getsockname()[1]
    where = {"host": servers.HOST, "server": server.port, "port": port}
    settings = server.put(
        "pgbouncer.ini", PGBOUNCER.format(database=database.name, role=role, **where)
    )
    database.script(f"CREATE ROLE {role} SUPERUSER LOGIN PASSWORD 'x'")
    owner = server.home.stat().st_uid if os.geteuid() == 0 else None  # it refuses root
    process = subprocess.Popen([program, "-q", settings], cwd="/", user=owner)
    try:
        faults.until(lambda: _listens(port), "PgBouncer listens")
        yield {"PGPORT": str(port), "PGSSLMODE": "disable", "PGGSSENCMODE": "disable"}
    finally:
        process.kill()
        process.wait()
        settings.unlink()
        database.query(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((servers.HOST, port)):
        return True
    return False
