"""Reach the server: wait, tell passing from lasting failures, and keep the session's settings.

psycopg gives connection failures no SQLSTATE and the server's texts are localised. libpq adds the
SQLSTATE to its text when PQsetErrorVerbosity is set between the start of a connection and its
first poll, so a connection is made here step by step; only libpq's own texts (C locale) are read.
"""

from __future__ import annotations

import ctypes
import random
import re
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
import structlog
from psycopg import pq
from psycopg.adapt import Buffer, Dumper
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

from preflight import stop
from preflight.errors import (
    AuthFailed,
    ConfigInvalid,
    ConnectionLost,
    Failure,
    NotReady,
    TargetUnusable,
)

if TYPE_CHECKING:
    from tenacity import RetryCallState

    from preflight.config import Config

GRACE_S = 15.0  # a role or a database may be created a moment after the server
PAUSE_S = (0.05, 0.25)  # least and most between attempts while refused or starting up
AUTH_PAUSE_S = 3.0  # a lock-out policy must not be provoked
ATTEMPT_S = 5.0  # for each address; psycopg's own default is 130
SECRETS = ("password", "sslpassword")
OLDEST, NEWEST = 13, 18  # majors that are tested

FACTS = """pg_catalog.pg_backend_pid() AS fact_pid,
 pg_catalog.pg_is_in_recovery() AS fact_standby,
 pg_catalog.current_setting('transaction_read_only') AS fact_read_only,
 pg_catalog.current_setting('server_version_num')::int4 AS fact_version,
 pg_catalog.current_database()::text AS fact_database,
 current_user::text AS fact_user"""

_SETTINGS = {
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "default_transaction_isolation": r"read\ committed",
    "default_transaction_deferrable": "off",
    "synchronous_commit": "on",
    "standard_conforming_strings": "on",
    "client_min_messages": "notice",
    "quote_all_identifiers": "off",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
_SINCE = {  # settings that older servers do not know
    14: {"client_connection_check_interval": "1s", "idle_session_timeout": "0"},
    17: {"transaction_timeout": "0"},
}
_SQLSTATE = re.compile(r":  ([0-9A-Z]{5}): ")
Parameters = Sequence[object] | Mapping[str, object] | None
_VERBOSE, _DEFAULT = 2, 1  # PGVerbosity


@dataclass(frozen=True, slots=True)
class Facts:
    """What the server says of itself and of us."""

    version: int
    database: str
    user: str
    standby: bool
    read_only: bool
    pooler: bool

    @property
    def major(self) -> int:
        """The server's major version."""
        return self.version // 10000


class Refused(Exception):
    """One attempt to connect that did not succeed; `kind` says how much hope there is."""

    def __init__(self, kind: str, text: str, sqlstate: str | None = None) -> None:
        super().__init__(text)
        self.kind = kind
        self.sqlstate = sqlstate


KINDS: tuple[tuple[str, str, frozenset[str]], ...] = (
    # kind, libpq's own words under the C locale, the server's SQLSTATEs
    (
        "config",
        (
            r"invalid (connection option|integer value|port number|\w+ value|URI)|missing \"=\"|"
            r"service file \S+ not found|definition of service|could not find .* service"
        ),
        frozenset({"42704", "22023", "42601"}),
    ),
    (
        "auth",
        (
            r"does not support SSL|certificate|channel binding|no password supplied|SSL error|"
            r"private key|authentication method requirement|SCRAM|server does not support GSS"
        ),
        frozenset({"28P01", "28000", "42501"}),
    ),
    ("database", "$^", frozenset({"3D000"})),
    (
        "alien",
        (
            r"invalid response to (SSL|GSSAPI) negotiation|expected authentication request|"
            r"unsupported frontend protocol|invalid response"
        ),
        frozenset({"0A000"}),
    ),
    ("standby", r"session is (not )?read-only|server is (not )?in hot standby", frozenset()),
)


def kind_of(text: str, sqlstates: list[str], *, needs_password: bool) -> str:
    """Return config, auth, database, alien, standby, options or passing."""
    if "08P01" in sqlstates and "startup parameter" in text:
        return "options"
    for kind, words, states in KINDS:
        if states.intersection(sqlstates):
            return kind
        if not sqlstates and re.search(words, text):
            return kind
    return "auth" if needs_password and not sqlstates else "passing"


class Session:
    """The one connection that reads, holds the lock and does the work."""

    connection: psycopg.Connection[Any]
    facts: Facts | None

    def __init__(self, config: Config, target: Mapping[str, str] | None = None) -> None:
        self.config = config
        self.target = config.target if target is None else target
        self.deadline = time.monotonic() + config.wait_timeout_s
        self.facts = None
        self._options = True
        self._grown_up = False

    def open(self) -> None:
        """Connect, waiting until the deadline; raises 10, 20, 21 or 22 as the last attempt says."""
        began = time.monotonic()
        try:
            self._attempt()
        except Refused as refused:
            first = refused
        else:
            return
        from tenacity import Retrying, retry_if_exception_type  # noqa: PLC0415 -- only to wait

        patience = _Patience(self.deadline, began, first)
        try:
            Retrying(
                retry=retry_if_exception_type(Refused),
                wait=patience.pause,
                stop=patience.over,
                sleep=stop.sleep,
                reraise=True,
            )(patience.attempt, self._attempt)
        except Refused as refused:
            raise patience.failure(refused, self.config) from None

    def _attempt(self) -> None:
        target = dict(self.target) | {
            "application_name": application_name(),
            "client_encoding": "UTF8",
        }
        for name, value in {
            "keepalives_idle": "10",
            "keepalives_interval": "5",
            "keepalives_count": "3",
            "tcp_user_timeout": "20000",
        }.items():
            target.setdefault(name, value)
        if self._options:
            ours = _SETTINGS | {"lock_timeout": str(self.config.lock_timeout_ms)}
            said = " ".join(f"-c {name}={value}" for name, value in ours.items())
            target["options"] = f"{target.get('options', '')} {said}".strip()
        try:
            self.connection = connection(dial(target))
        except Refused as refused:
            if refused.kind != "options" or not self._options:
                raise
            self._options = False  # an older PgBouncer: good enough to read through
            self._attempt()
        self._grown_up = False

    def close(self) -> None:
        """End the session; the lock goes with it."""
        with suppress(AttributeError, psycopg.Error):
            self.connection.close()

    def reopen(self) -> None:
        """Connect anew."""
        self.close()
        self.open()

    def execute(self, query: str | bytes, parameters: Parameters = None) -> psycopg.Cursor[Any]:
        """Run one statement; a stop request cancels it."""
        with stop.allowed():
            return self.connection.execute(query, parameters)

    def ask(self, query: str) -> list[dict[str, Any]]:
        """Return the rows of a query that may be asked again: reconnects until the deadline."""
        while True:
            try:
                with stop.allowed(), self.connection.cursor(row_factory=dict_row) as cursor:
                    return cursor.execute(query.encode()).fetchall()
            except psycopg.OperationalError:
                if not self.lost or time.monotonic() >= self.deadline:
                    raise
            self.reopen()

    @property
    def lost(self) -> bool:
        """Tell whether the connection is gone."""
        return self.connection.closed

    def learn(self, row: Mapping[str, Any]) -> None:
        """Keep the facts that came with a query's row."""
        self.facts = Facts(
            version=row["fact_version"],
            database=row["fact_database"],
            user=row["fact_user"],
            standby=row["fact_standby"],
            read_only=row["fact_read_only"] == "on",
            pooler=row["fact_pid"] != self.connection.pgconn.backend_pid,
        )

    def grow_up(self) -> None:
        """Set what only newer servers know; call before work, not before a look."""
        if self._grown_up or self.facts is None:
            return
        for since, settings in _SINCE.items():
            if self.facts.major >= since:
                for name, value in settings.items():
                    self.execute(f"SET {name} = '{value}'")
        self._grown_up = True

    def reset(self) -> None:
        """Undo what a file left in the session, but keep the advisory lock (never DISCARD ALL)."""
        self.execute("RESET SESSION AUTHORIZATION")
        self.execute("RESET ALL")
        self._grown_up = False
        self.grow_up()

    def secrets(self) -> dict[str, str]:
        """Return the libpq parameters that nobody may see."""
        return {name: self.target[name] for name in SECRETS if name in self.target}

    def address(self) -> dict[str, str]:
        """Return the libpq parameters that lead to this very server, without any secret."""
        kept = {name: value for name, value in self.target.items() if name not in SECRETS}
        info = self.connection.info
        here = {"host": info.host, "port": str(info.port), "user": info.user, "dbname": info.dbname}
        kept.pop("target_session_attrs", None)
        if info.hostaddr and not info.host.startswith("/"):
            here["hostaddr"] = info.hostaddr
        return kept | {name: value for name, value in here.items() if value}


@contextmanager
def beside(session: Session) -> Iterator[Session]:
    """Yield a second, short session on the same server."""
    with _opened(Session(session.config, session.address() | session.secrets())) as other:
        other.facts = session.facts
        other.grow_up()
        yield other


@contextmanager
def connect(config: Config) -> Iterator[Session]:
    """Wait for the server and yield a session on the target database."""
    with _opened(Session(config)) as session:
        yield session


@contextmanager
def _opened(session: Session) -> Iterator[Session]:
    try:
        session.open()
        yield session
    except psycopg.OperationalError as error:
        if not session.lost:
            raise
        raise lost(error) from error
    finally:
        session.close()


def lost(error: psycopg.Error) -> ConnectionLost:
    """Return the failure for a connection that went away."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
    return ConnectionLost(
        "connection.lost",
        f"the connection to the server was lost: {reason}",
        "Run again: what was recorded decides what is left to do.",
        sqlstate=error.sqlstate,
    )


def require_writable(session: Session) -> None:
    """Wait for a writable primary; a pooler is refused at once. Raises TargetUnusable."""
    log = structlog.get_logger()
    waited = False
    while session.facts is not None:
        facts = session.facts
        if facts.pooler:
            raise TargetUnusable(
                "target.pooler",
                "a connection pooler stands between us and the server: locks and session settings "
                "would not hold",
                "Connect to PostgreSQL directly for migrations (the app may keep the pooler).",
            )
        if facts.major < OLDEST:
            raise TargetUnusable(
                "target.version",
                f"PostgreSQL {facts.major} is not supported",
                f"Supported: {OLDEST} to {NEWEST}.",
            )
        if not (facts.standby or facts.read_only):
            return
        what = "a standby" if facts.standby else "read-only"
        if time.monotonic() >= session.deadline:
            raise TargetUnusable(
                "target.read_only",
                f"the server is {what}, and there is work to do",
                "Connect to the primary; with several hosts set PGTARGETSESSIONATTRS=read-write. "
                "If default_transaction_read_only is set for the database or the role, unset it.",
            )
        if not waited:
            log.info("server.waiting", reason=f"{what}: waiting for a writable primary")
            waited = True
        stop.sleep(random.uniform(0.2, 0.5))  # noqa: S311 -- jitter, not a secret
        session.reopen()
        session.learn(session.ask(f"SELECT {FACTS}")[0])


class _Patience:
    """How long to wait and what to say meanwhile."""

    def __init__(self, deadline: float, began: float, first: Refused) -> None:
        self.deadline = deadline
        self.began = began
        self.answered: float | None = None
        self.attempts = 1
        self.said: tuple[str, float] = ("", 0.0)
        self.first: Refused | None = first

    def attempt(self, connect_once: Callable[[], None]) -> None:
        if self.first is not None:  # made before tenacity was imported
            first, self.first = self.first, None
            self.tell(first)
            raise first
        try:
            connect_once()
        except Refused as refused:
            self.attempts += 1
            self.tell(refused)
            raise
        structlog.get_logger().info(
            "server.ready",
            attempts=self.attempts + 1,
            waited_s=round(time.monotonic() - self.began, 3),
        )

    def tell(self, refused: Refused) -> None:
        now = time.monotonic()
        if refused.kind in ("auth", "database", "alien") and self.answered is None:
            self.answered = now
        key = f"{refused.kind} {refused.sqlstate}"
        if key == self.said[0] and now - self.said[1] < 10:  # noqa: PLR2004 -- seconds
            return
        self.said = (key, now)
        data = {"sqlstate": refused.sqlstate} if refused.sqlstate else {}
        structlog.get_logger().info(
            "server.waiting", reason=str(refused), attempts=self.attempts, **data
        )

    def pause(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        left = max(0.0, self.deadline - time.monotonic())
        if isinstance(error, Refused) and error.kind in ("auth", "database", "alien"):
            return min(AUTH_PAUSE_S, left)
        least, most = PAUSE_S
        longest = min(most, least * 2 ** min(state.attempt_number, 10))
        return min(random.uniform(least, longest), left)  # noqa: S311 -- jitter, not a secret

    def over(self, state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, Refused) and error.kind == "config":
            return True
        now = time.monotonic()
        return now >= self.deadline or (
            self.answered is not None
            and isinstance(error, Refused)
            and error.kind in ("auth", "database", "alien")
            and now - self.answered >= GRACE_S
        )

    def failure(self, refused: Refused, config: Config) -> Failure:
        target = config.target
        where = f"{target.get('host', 'the default host')}:{target.get('port', '5432')}"
        waited = f"after {time.monotonic() - self.began:.1f} s"
        database, user = target.get("dbname"), target.get("user")
        said = f"{refused} ({waited}, {self.attempts} attempts)"
        state = refused.sqlstate
        match refused.kind:
            case "config":
                hint = "Check the connection settings."
                return ConfigInvalid("config.connection", f"{where}: {refused}", hint)
            case "auth":
                return AuthFailed(
                    "auth.rejected",
                    f"{where} does not accept user {user!r}: {said}",
                    "Check user, password, pg_hba.conf and the TLS settings (PGSSLMODE, "
                    "PGSSLROOTCERT); nothing was sent without the protection that was asked for.",
                    sqlstate=state,
                )
            case "database":
                return TargetUnusable(
                    "target.no_database",
                    f"{where} has no database {database!r}: {said}",
                    "Create it, or correct the name (PGDATABASE, POSTGRES_DB or DATABASE_URL).",
                    sqlstate=state,
                )
            case "alien":
                return TargetUnusable(
                    "target.not_postgresql",
                    f"what listens on {where} does not speak PostgreSQL: {said}",
                    "Check host and port.",
                    sqlstate=state,
                )
            case "standby":
                return TargetUnusable(
                    "target.read_only",
                    f"no host of {where} is in the state that was asked for: {said}",
                    "Check PGTARGETSESSIONATTRS and the host list.",
                    sqlstate=state,
                )
            case _:
                return NotReady(
                    "server.not_ready",
                    f"{where} was not usable: {said}",
                    "Is the database running, and may this container reach it? Then run again.",
                    sqlstate=state,
                )


def application_name() -> str:
    """Return the name that other sessions see, with our host; at most 63 bytes."""
    return f"pg-preflight@{socket.gethostname()}"[:63]


def connection(pgconn: pq.abc.PGconn) -> psycopg.Connection[Any]:
    """Wrap a finished libpq connection, as psycopg's own connect() does."""
    pgconn.nonblocking = 1
    made: psycopg.Connection[Any] = psycopg.Connection(pgconn)
    made.autocommit = True
    made.prepare_threshold = None
    made.adapters.register_dumper(bytes, Utf8)
    return made


class Utf8(Dumper):
    """Sends bytes as text without copying them: a migration may have 100 MB."""

    format = pq.Format.BINARY
    oid = 25  # text

    def dump(self, obj: Buffer) -> Buffer | None:
        """Return the bytes themselves."""
        return obj


def call(target: Mapping[str, str]) -> psycopg.Connection[Any]:
    """Connect from a helper thread, which no stop request interrupts; raises Refused."""
    return connection(_Call(dict(target)).connect())


def dial(target: Mapping[str, str]) -> pq.abc.PGconn:
    """Connect once, at every address in turn, each bounded; raises Refused.

    A thread does it, because name resolution cannot be bounded or interrupted otherwise.
    """
    call = _Call(dict(target))
    threading.Thread(target=call.run, daemon=True, name="dial").start()
    try:
        with stop.allowed():
            finished = call.done.wait(call.longest_s)
    except BaseException:
        call.abandon()
        raise
    if not finished:
        call.abandon()
        raise Refused("passing", f"no answer within {call.longest_s:g} s")
    if call.error is not None:
        raise call.error
    if call.made is None:
        raise Refused("passing", "no connection")
    return call.made


class _Call:
    """One attempt at connecting, in a thread of its own."""

    def __init__(self, target: dict[str, str]) -> None:
        self.target = target
        asked = target.get("connect_timeout", "")
        self.each_s = float(asked) if asked.isdecimal() and int(asked) > 0 else ATTEMPT_S
        hosts = target.get("host", "").count(",") + 1
        self.longest_s = self.each_s * (hosts + 1)
        self.done = threading.Event()
        self.abandoned = threading.Event()
        self.made: pq.abc.PGconn | None = None
        self.error: Exception | None = None

    def abandon(self) -> None:
        """Nobody waits any more: whatever comes is closed."""
        self.abandoned.set()
        if self.done.is_set() and self.made is not None:
            self.made.finish()

    def run(self) -> None:
        try:
            made = self.connect()
            if self.abandoned.is_set():
                made.finish()
            self.made = made
        except Exception as error:  # noqa: BLE001 -- carried over to the waiting thread
            self.error = error
        self.done.set()

    def connect(self) -> pq.abc.PGconn:
        addresses = resolve(self.target)
        silent: list[str] = []
        while addresses:
            target = self.target | _lists(addresses)
            pgconn = pq.PGconn.connect_start(make_conninfo("", **target).encode())
            quiet_at = self.poll(pgconn)
            if quiet_at is None:
                return pgconn
            pgconn.finish()
            at = next((i for i, item in enumerate(addresses) if item[1] == quiet_at), 0)
            silent.append(quiet_at)
            addresses = addresses[at + 1 :]
        raise Refused(
            "passing", f"no answer within {self.each_s:g} s from {', '.join(filter(None, silent))}"
        )

    def poll(self, pgconn: pq.abc.PGconn) -> str | None:
        """Drive the connection to its end; return the address that stays silent, if one does."""
        _set_verbosity(pgconn, _VERBOSE)
        address, until = None, time.monotonic() + self.each_s
        while True:
            if pgconn.status == pq.ConnStatus.BAD:
                raise _refusal(pgconn)
            status = pgconn.connect_poll()
            if status == pq.PollingStatus.OK:
                _set_verbosity(pgconn, _DEFAULT)
                return None
            if status == pq.PollingStatus.FAILED:
                raise _refusal(pgconn)
            if (now_at := pgconn.hostaddr) != address:
                address, until = now_at, time.monotonic() + self.each_s
            poller = select.poll()
            wanted = select.POLLIN if status == pq.PollingStatus.READING else select.POLLOUT
            poller.register(pgconn.socket, wanted)
            left = until - time.monotonic()
            if self.abandoned.is_set() or left <= 0 or not poller.poll(left * 1000):
                return (address or b"").decode()


def _refusal(pgconn: pq.abc.PGconn) -> Refused:
    text = pgconn.error_message.decode("utf-8", "replace")
    sqlstates = _SQLSTATE.findall(text)
    kind = kind_of(text, sqlstates, needs_password=bool(pgconn.needs_password))
    lines = [line for line in text.splitlines() if not line.startswith("LOCATION:")]
    shown = _SQLSTATE.sub(":  ", "; ".join(lines)).strip()
    pgconn.finish()
    return Refused(kind, shown or "no reason given", sqlstates[-1] if sqlstates else None)


def resolve(target: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Return (host, address, port) for every address of every host; the address is "" for libpq.

    Raises Refused when no name can be resolved; a service file's hosts are left to libpq.
    """
    hosts, ports = target.get("host", "").split(","), target.get("port", "").split(",")
    if "host" not in target or "hostaddr" in target:
        return [("", "", "")]
    if len(ports) == 1:
        ports *= len(hosts)
    found: list[tuple[str, str, str]] = []
    problem = ""
    for host, port in zip(hosts, ports, strict=False):
        if not host or host.startswith(("/", "@")):
            found.append((host, "", port))
            continue
        try:
            answers = socket.getaddrinfo(host, int(port or 5432), type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            problem = f"the name {host!r} cannot be resolved: {error}"
            continue
        for *_, address in answers:
            entry = (host, str(address[0]), port)
            if entry not in found:
                found.append(entry)
    if not found:
        raise Refused("passing", problem)
    return found


def _lists(addresses: list[tuple[str, str, str]]) -> dict[str, str]:
    if addresses == [("", "", "")]:
        return {}
    hosts, found, ports = zip(*addresses, strict=True)
    lists = {"host": ",".join(hosts), "port": ",".join(ports)}
    return lists | ({"hostaddr": ",".join(found)} if any(found) else {})


def _set_verbosity(pgconn: pq.abc.PGconn, level: int) -> None:
    """Call PQsetErrorVerbosity of the very libpq that psycopg uses."""
    library = _libpq()
    pointer = getattr(pgconn, "pgconn_ptr", None)
    if library is not None and pointer:
        library.PQsetErrorVerbosity(pointer, level)


_library: list[ctypes.CDLL | None] = []


def _libpq() -> ctypes.CDLL | None:
    if not _library:
        found = None
        with suppress(OSError), open("/proc/self/maps", encoding="utf-8") as maps:  # noqa: PTH123
            paths = [line.split(None, 5)[-1].strip() for line in maps if "/libpq" in line]
            if paths:
                found = ctypes.CDLL(paths[0])
                found.PQsetErrorVerbosity.argtypes = [ctypes.c_void_p, ctypes.c_int]
        _library.append(found)
    return _library[0]
