"""One attempt at connecting: resolve, dial each address for a bounded time, say what went wrong.

psycopg gives connection failures no SQLSTATE and the server's texts are localised. libpq adds the
SQLSTATE to its text when PQsetErrorVerbosity is set between the start of a connection and its
first poll, so a connection is made here step by step; only libpq's own texts (C locale) are read.
"""

from __future__ import annotations

import ctypes
import os
import re
import select
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import pq
from psycopg.adapt import Buffer, Dumper
from psycopg.conninfo import make_conninfo

from preflight.base import stop
from preflight.base.config import completed

ATTEMPT_S = 5.0  # for each address; psycopg's own default is 130
LONG = 1 << 20  # bytes of a statement
LEAST_S = 1.0  # also for the last attempt before a deadline

Address = tuple[str, str, str]  # host, address, port

_SQLSTATE = re.compile(r":  ([0-9A-Z]{5}): ")
_VERBOSE, _DEFAULT = 2, 1  # PGVerbosity


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
            r"invalid (connection option|integer value|port number|\"?\w+\"? value|URI)|"
            r"missing \"=\"|invalid SCRAM (client|server) key|invalid LDAP URL|not compiled in|"
            r"service file \".*\" not found|definition of service|could not find .* service|"
            r"in service file|weak sslmode|could not match|specified more than once|"
            r"cannot be mixed with|protocol version range|\" is greater than \"|"
            r"server only supports protocol version|host name must be specified|"
            r"local user with ID \d+ does not exist|"
            # alone: another host may be good
            r"\A(could not parse network address|Unix-domain socket path) .*$"
        ),
        frozenset({"42704", "22023", "42601"}),
    ),
    (
        "auth",
        (
            r"does not support SSL|certificate|channel binding|no password supplied|"
            r"SSL error: (?!unexpected eof)|"
            r"private key|authentication method requirement|SCRAM|requirepeer|"
            r"doesn't support GSSAPI|GSSAPI encryption required but|"
            r"authentication method \d+ not supported|SASL authentication mechanisms"
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
NO_RIGHT = "42501"
# where a server looks for CONNECT, and for the right to set what an option sets
_AT_THE_DOOR = re.compile(r"(?m)^LOCATION: +CheckMyDatabase\b")
_SETTING = re.compile(r"(?m)^LOCATION: +(?:set_config|call_\w+_check_hook)")
POOLED = "08P01"  # PgBouncer says everything with it, and in English only
POOLER = (
    ("options", r"startup parameter"),
    ("database", r"[Nn]o such database|database \".*\" does not exist"),
    (
        "auth",
        (
            r"(password|SASL|SCRAM|certificate|PAM|LDAP|\"trust\") authentication failed|"
            r"SSL required|TLS (connection|client certificate) required|certificate name mismatch|"
            r"login rejected|[Nn]o such user|: [Aa]uth failed|(username|password) too long|"
            r"empty password returned|invalid SASL authentication mechanism|"
            # of its own login at the server
            r"wrong password type|server signature|SASL authentication mechanisms|"
            # what that says, handed on
            r"role \".*\" (does not exist|is not permitted to log in)|no pg_hba\.conf entry|"
            r"permission denied for database"
        ),
    ),
)


NO_ANSWER = "no answer within"
NO_THREAD = "no thread can be started to connect with"
NO_PASSPHRASE = " "  # noqa: S105 -- of no key; an empty one is none to libpq


def kind_of(text: str, sqlstates: list[str], *, needs_password: bool) -> str:
    """Return config, auth, database, alien, standby, options or passing.

    `_refusal` knows more: role, closed, options_refused, no_right.
    """
    if POOLED in sqlstates:
        return next((kind for kind, words in POOLER if re.search(words, text)), "passing")
    for kind, words, states in KINDS:
        if states.intersection(sqlstates):
            return kind
        if not sqlstates and re.search(words, text):
            if kind == "standby" and not all(map(re.compile(words).search, _each(text))):
                break  # one of several hosts, and another may be the one that is wanted
            return kind
    return "auth" if needs_password and not sqlstates else "passing"


def called(target: Mapping[str, str]) -> str:
    """Return how people know the server that a target, or its service, names: `host:port`."""
    known = completed(target)
    host = known.get("host") or known.get("hostaddr") or "the default host"
    return f"{host}:{known.get('port', '5432')}"


def with_password(target: Mapping[str, str]) -> dict[str, str]:
    """Return libpq's parameters with the password that a passfile has for them, if it has one.

    That is one for all hosts; where each has its own, libpq is left to look for it.
    """
    found = [_kept({**target, **where}) for where in _each_host(target)]
    return {**target, **found[0]} if all(each == found[0] for each in found) else dict(target)


def passwords(target: Mapping[str, str]) -> set[str]:
    """Return every password that libpq would offer: what is said, a service's, a passfile's."""
    found = [_kept({**target, **where}) for where in _each_host(target)]
    return {password for each in found for password in each.values()}


def _kept(target: Mapping[str, str]) -> dict[str, str]:
    """Return the password of one host.

    libpq reads it before it looks at where a host is, which is refused here: nobody is called.
    """
    pgconn = pq.PGconn.connect_start(make_conninfo("", **{**target, "hostaddr": "-"}).encode())
    found = password(pgconn)
    pgconn.finish()
    return found


def password(pgconn: pq.abc.PGconn) -> dict[str, str]:
    """Return libpq's parameter for the password that it found, if it is one that can be said."""
    with suppress(UnicodeDecodeError):
        if found := pgconn.password.decode():
            return {"password": found}
    return {}


def _each(text: str) -> list[str]:
    """Return what is said of each address."""
    return text.split("connection to server ")[1:] or [text]


def connect(target: Mapping[str, str], within_s: float) -> psycopg.Connection[Any]:
    """Connect once, each address bounded; a stop request ends the waiting. Raises Refused.

    A thread does it, because name resolution cannot be bounded or interrupted otherwise.
    """
    call = _Call(target, within_s)
    try:
        threading.Thread(target=call.run, daemon=True, name="dial").start()
    except RuntimeError as error:  # the limit of processes, or of memory: others may end
        raise Refused("passing", f"{NO_THREAD}: {error}") from None
    try:
        with stop.allowed():
            while not (finished := call.done.wait(call.left_s())) and call.left_s():
                pass  # it has learnt meanwhile that there are more addresses
    except BaseException:
        call.abandoned.set()
        raise
    if not finished:
        call.abandoned.set()
        raise Refused("passing", f"{NO_ANSWER} {call.longest_s:g} s")
    if call.error is not None:
        raise call.error
    return _wrapped(call.made)


def from_thread(target: Mapping[str, str]) -> psycopg.Connection[Any]:
    """Connect from a helper thread, which no stop request interrupts; raises Refused."""
    return _wrapped(_Call(target, ATTEMPT_S).connect())


def _wrapped(pgconn: pq.abc.PGconn | None) -> psycopg.Connection[Any]:
    """Wrap a finished libpq connection, as psycopg's own connect() does."""
    if pgconn is None:
        raise Refused("passing", "no connection")
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


class _Call:
    """One attempt at connecting, in a thread of its own."""

    def __init__(self, target: Mapping[str, str], within_s: float) -> None:
        self.target = dict(target)
        self.within_s = within_s
        self.began = time.monotonic()
        self.share(target.get("host", "").count(",") + 1)
        self.done = threading.Event()
        self.abandoned = threading.Event()  # nobody waits any more: whatever comes is closed
        self.made: pq.abc.PGconn | None = None
        self.error: Exception | None = None

    def share(self, addresses: int) -> None:
        """Give each of so many addresses its time, and as much to find them."""
        asked = self.target.get("connect_timeout", "")
        each_s = float(asked) if asked.isdecimal() and int(asked) > 0 else ATTEMPT_S
        self.each_s = max(LEAST_S, min(each_s, self.within_s / addresses))
        self.longest_s = self.each_s * (addresses + 1)

    def left_s(self) -> float:
        """Return how much longer it may take."""
        return max(0.0, self.began + self.longest_s - time.monotonic())

    def run(self) -> None:
        try:
            self.made = self.connect()
        except Exception as error:  # noqa: BLE001 -- carried over to the waiting thread
            self.error = error
        self.done.set()
        if self.abandoned.is_set() and self.made is not None:
            self.made.finish()

    def connect(self) -> pq.abc.PGconn:
        if "sslpassword" not in completed(self.target):  # else OpenSSL asks a terminal, for ever
            self.target["sslpassword"] = NO_PASSPHRASE
        addresses, unknown = _looked_up(self.target)
        self.share(max(1, len(addresses)))
        silent: list[str] = []
        try:
            while addresses and not self.abandoned.is_set():
                target = self.target | _lists(addresses)
                pgconn = pq.PGconn.connect_start(make_conninfo("", **target).encode())
                quiet = self.poll(pgconn)
                if quiet is None:
                    return pgconn
                pgconn.finish()
                host, address, port = quiet
                silent.append(f"{address or host}:{port}")
                addresses = _without(addresses, quiet)
        except Refused as refused:
            raise _beside(refused, self.unheard(silent) + unknown) from None
        raise Refused("passing", "; ".join(self.unheard(silent) + unknown))

    def unheard(self, silent: list[str]) -> list[str]:
        """Say which addresses have not answered, if there are any."""
        within = f"{NO_ANSWER} {self.each_s:g} s from"
        return [f"{within} {', '.join(silent)}"] if silent else []

    def poll(self, pgconn: pq.abc.PGconn) -> Address | None:
        """Drive the connection to its end; return the address that stays silent, if one does."""
        _set_verbosity(pgconn, _VERBOSE)
        address, until = None, time.monotonic() + self.each_s
        while True:
            if pgconn.status == pq.ConnStatus.BAD:
                raise _refusal(pgconn, self.target)
            status = pgconn.connect_poll()
            if status == pq.PollingStatus.OK:
                _set_verbosity(pgconn, _DEFAULT)
                return None
            if status == pq.PollingStatus.FAILED:
                raise _refusal(pgconn, self.target)
            if (now_at := _address(pgconn)) != address:
                address, until = now_at, time.monotonic() + self.each_s
            poller = select.poll()
            wanted = select.POLLIN if status == pq.PollingStatus.READING else select.POLLOUT
            poller.register(pgconn.socket, wanted)
            left = until - time.monotonic()
            if self.abandoned.is_set() or left <= 0 or not poller.poll(left * 1000):
                return address


def _beside(refused: Refused, unheard: list[str]) -> Refused:
    """Return what was refused, and of which hosts nothing was heard: one may be the one wanted."""
    kind = "passing" if unheard and refused.kind == "standby" else refused.kind
    return Refused(kind, "; ".join([str(refused), *unheard]), refused.sqlstate)


def _address(pgconn: pq.abc.PGconn) -> Address:
    host, address, port = pgconn.host, pgconn.hostaddr, pgconn.port
    return host.decode("utf-8", "replace"), address.decode(), port.decode("utf-8", "replace")


def _refusal(pgconn: pq.abc.PGconn, target: Mapping[str, str]) -> Refused:
    text = pgconn.error_message.decode("utf-8", "replace")
    sqlstates = _SQLSTATE.findall(text)
    kind = kind_of(text, sqlstates, needs_password=bool(pgconn.needs_password))
    said = dict(target) | {
        each.keyword.decode(): each.val.decode("utf-8", "replace")
        for each in pgconn.info
        if each.val
    }
    roles = roles_of(said.get("options", ""))
    if misses(text, roles):
        kind = "role"
    elif kind == "auth" and NO_RIGHT in sqlstates:
        kind = "closed" if _AT_THE_DOOR.search(text) else "no_right"
        if _SETTING.search(text) and said.get("options"):
            kind = "options_refused"
    text = _unsaid(text, said, roles)
    lines = [line.strip() for line in text.splitlines() if not line.startswith("LOCATION:")]
    # with and without TLS a server may say the same
    shown = _SQLSTATE.sub(":  ", "; ".join(dict.fromkeys(lines))).strip()
    pgconn.finish()
    return Refused(kind, shown or "no reason given", sqlstates[-1] if sqlstates else None)


PLAIN = ("host", "hostaddr", "user", "dbname", "application_name")  # said in every run, or ours
_SAID = (
    re.compile(r"(definition of service ).+( not found)"),
    re.compile(r"(-c |--)\S+( requires a value)"),
)
_ITEM = re.compile(r"[,\s=]+")
_ROLE = re.compile(r"(?i)(?:^|\s)(?:-c\s*|--)(?:role|session[_-]authorization)=((?:\\.|\S)+)")
_WRONG_VALUE = ":  22023: "  # as libpq writes it: also of a role that is not there
_QUOTES = '"«»„“”「」'  # of the languages that a server speaks


def roles_of(options: str) -> set[str]:
    """Return the roles that the options of a connection name."""
    return {re.sub(r"\\(.)", r"\1", each) for each in _ROLE.findall(options)}


def misses(text: str, roles: set[str]) -> bool:
    """Tell whether a refusal is for one of these roles, which is not there.

    It names nothing else before, as it does the parameter that has a wrong value.
    """
    _, wrong, said = text.rpartition(_WRONG_VALUE)
    quote = rf"[{_QUOTES}\ufffd]"  # or in another encoding
    named = rf"[^{_QUOTES}]*{quote}\s?(?:{'|'.join(map(re.escape, roles))})\s?{quote}"
    return bool(wrong and roles) and re.match(named, said) is not None


def _unsaid(text: str, said: Mapping[str, str], roles: set[str]) -> str:
    """Take the values of options out of libpq's and the server's words: one may be a password.

    What is no value of ours stays, such as a path, and the names that every run shows.
    """
    for each in _SAID:
        text = each.sub(r"\1…\2", text)
    plain = roles.union(*((said.get(key) or "").split(",") for key in PLAIN))
    values = {value for key, value in said.items() if key not in PLAIN}
    values |= {item for value in values for item in _ITEM.split(value)}
    for value in sorted(values - plain, key=len, reverse=True):
        if value and not value.startswith(("/", "~")):
            text = text.replace(f'"{value}"', '"…"')
    for value in filter(None, set(_ITEM.split(said.get("options", ""))) - roles):
        text = re.sub(rf"(?<=: ){re.escape(value)}$", "…", text, flags=re.MULTILINE)
    return text


def resolve(target: Mapping[str, str]) -> list[Address]:
    """Return (host, address, port) for every address of every host; the address is "" for libpq.

    What says a host is asked for nothing else: the environment's address would lead it elsewhere.
    Raises Refused when no name can be resolved; lists that do not match are left to libpq.
    """
    found, unknown = _looked_up(target)
    if not found:
        raise Refused("passing", "; ".join(unknown))
    return found


def _looked_up(target: Mapping[str, str]) -> tuple[list[Address], list[str]]:
    """Return the addresses, as `resolve` does, and what is wrong with names that have none."""
    listed = _listed(target)
    if not listed:
        return [("", "", "")], []
    found: list[Address] = []
    unknown: list[str] = []
    for host, address, port in listed:
        answers = [address]
        if host and not address and not host.startswith(("/", "@")):
            try:
                known = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError) as error:
                unknown.append(f"the name {host!r} cannot be resolved: {error}")
                continue
            answers = [str(each[0]) for *_, each in known]
        found += [(host, each, port or "5432") for each in answers]
    return list(dict.fromkeys(found)), list(dict.fromkeys(unknown))


def _listed(target: Mapping[str, str]) -> list[Address]:
    """Return (host, address, port) of each host as it is said; none if the lists do not match."""
    said = target if "host" in target else completed(target)
    hosts, given, ports = (said.get(key, "").split(",") for key in ("host", "hostaddr", "port"))
    many = max(len(hosts), len(given))
    hosts, given = (each * many if each == [""] else each for each in (hosts, given))
    ports = ports * many if len(ports) == 1 else ports
    if not len(hosts) == len(given) == len(ports):
        return []
    return list(zip(hosts, given, ports, strict=True))


def _each_host(target: Mapping[str, str]) -> list[dict[str, str]]:
    """Return how each host alone is said, by its name or, without one, its address."""
    each = [{"host": host or address, "port": port} for host, address, port in _listed(target)]
    return [{key: value for key, value in one.items() if value} for one in each] or [{}]


def _without(addresses: list[Address], quiet: Address) -> list[Address]:
    """Return what is still to try: of those before the silent one, libpq may have passed one by.

    Where a host has no name, libpq calls it by another.
    """
    for name in (quiet[0], ""):
        if (entry := (name, *quiet[1:])) in addresses:
            return [each for each in addresses if each != entry]
    return addresses[1:]


def _lists(addresses: list[Address]) -> dict[str, str]:
    if addresses == [("", "", "")]:
        return {}
    hosts, found, ports = map(",".join, zip(*addresses, strict=True))
    return {"host": hosts, "hostaddr": found.strip(",") and found, "port": ports}


def send(pgconn: pq.abc.PGconn, text: bytes, start: int, end: int) -> None:
    """Send what stands at a place of a text as a query; raises OperationalError.

    libpq takes what ends with a zero byte. A long statement is not cut out of its file for that,
    which would be one more copy: for the moment in which libpq makes its own, and nothing else of
    Python runs, there is one behind it.
    """
    library, pointer = _libpq(), getattr(pgconn, "pgconn_ptr", None)
    if end - start < LONG or library is None or not pointer:
        pgconn.send_query(text if (start, end) == (0, len(text)) else text[start:end])
        return
    first = ctypes.cast(ctypes.c_char_p(text), ctypes.c_void_p).value or 0
    behind = ctypes.c_ubyte.from_address(first + end)  # at its very end a text has one of its own
    was = behind.value
    try:
        behind.value = 0
        sent = library.PQsendQuery(pointer, first + start)
    finally:
        behind.value = was
    if not sent:
        raise psycopg.OperationalError(f"sending query failed: {pgconn.get_error_message()}")


def _set_verbosity(pgconn: pq.abc.PGconn, level: int) -> None:
    """Call PQsetErrorVerbosity of the very libpq that psycopg uses."""
    library = _libpq()
    pointer = getattr(pgconn, "pgconn_ptr", None)
    if library is not None and pointer:
        library.PQsetErrorVerbosity(pointer, level)


_library: list[ctypes.PyDLL | None] = []


def _libpq() -> ctypes.PyDLL | None:
    if not _library:
        found = None
        with suppress(OSError), open("/proc/self/maps", "rb") as maps:  # noqa: PTH123
            paths = [line.split(None, 5)[-1].strip() for line in maps if b"/libpq" in line]
            if paths:
                found = ctypes.PyDLL(os.fsdecode(paths[0]))  # no thread goes on during a call
                found.PQsetErrorVerbosity.argtypes = [ctypes.c_void_p, ctypes.c_int]
                found.PQsendQuery.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        _library.append(found)
    return _library[0]
