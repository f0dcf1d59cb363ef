"""Reach the server: wait, tell passing from lasting failures, and keep the session's settings."""

from __future__ import annotations

import math
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import psycopg
import structlog
from psycopg import capabilities, generators, pq
from psycopg.rows import dict_row

from preflight.base import plain, quoting, repeat, stop, threads
from preflight.base.config import completed
from preflight.base.errors import (
    ConnectionLost,
    DatabaseBusy,
    NotReady,
    TargetUnusable,
)
from preflight.server import dial, waiting
from preflight.server.dial import Refused

if TYPE_CHECKING:
    from collections.abc import Generator

    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGconn, PGresult

    from preflight.base.config import Config
    from preflight.files.migrations import Script
    from preflight.files.scan import Statement

CANCEL_S = 2.0  # for the server to end a statement: the whole stop takes less than 5 s
BESIDE_S = 15.0  # for another session where we have one: nobody else gets the lock meanwhile
SECRETS = (
    "password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key",
)  # fmt: skip
UNSAID = {"password": ""}  # a service's is none of another server's; libpq then asks a passfile
# what an older libpq does not know, and any does well without: of no protection, of no address
OURS = {"min_protocol_version", "max_protocol_version", "sslkeylogfile", "load_balance_hosts"}
# what may be asked of a connection by a variable or a service, as it is where nobody does
LENIENT = {
    "require_auth": "",
    "requirepeer": "",
    "sslnegotiation": "postgres",
    "sslcertmode": "allow",
    "sslrootcert": "",
    "min_protocol_version": "3.0",
}
PASSING = frozenset({"55P03", "40P01", "40001"})  # lock timeout, deadlock, serialization failure
CANCELLED, MISSPELT = "57014", "42601"  # by pg_cancel_backend; a syntax error of ours
# of two sessions that change one row of a catalog the later one: no locale translates these words
_COLLIDED = {"tuple concurrently updated", "tuple concurrently deleted"}
_INTERNAL, _CATALOG_UPDATES = "XX000", {"simple_heap_update", "simple_heap_delete"}
UNIQUE = "23505"

MARK = "pg_preflight.session"  # a word among the options of a connection: see `Session.own`
FACTS = f"""pg_catalog.pg_backend_pid() AS fact_pid,
 pg_catalog.current_setting('{MARK}', true) AS fact_mark,
 pg_catalog.pg_is_in_recovery() AS fact_standby,
 pg_catalog.current_setting('default_transaction_read_only') AS fact_read_only,
 pg_catalog.current_setting('server_version_num')::pg_catalog.int4 AS fact_version,
 pg_catalog.current_database()::pg_catalog.text AS fact_database,
 current_user::pg_catalog.text AS fact_user"""

_SETTINGS = {
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "standard_conforming_strings": "on",
    "client_min_messages": "notice",
    "quote_all_identifiers": "off",
}
# success is on the disk before it is told; which standby has it by then is the role's to say. Not
# among the options of a connection: what was said without us would not be seen
_DURABLE = (
    "SELECT pg_catalog.set_config('synchronous_commit', 'on', false) "
    "WHERE pg_catalog.current_setting('synchronous_commit') = 'off'"
)
_LOCAL = "SET LOCAL synchronous_commit = local"
# RESET: of what was said when the process began, and not set by who passed it on
_MARKED = f"""RESET {MARK}; SELECT pg_catalog.pg_backend_pid() AS pid,
 pg_catalog.current_setting('{MARK}', true) AS mark"""
# how soon the server notices that we are gone: a vanished node holds no lock for longer, neither
# idle (keepalives) nor with an answer on its way into nothing (tcp_user_timeout)
_GONE = {
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "15000",
}
# either side of a client program may stand still, healthy, for as long as a store is waited for: a
# window that stays closed counts as silence, though the probes are answered
PATIENT = {"tcp_user_timeout": "420000"}  # milliseconds: RETRY_S + ANSWER_S of backup/objects.py
# the same for what a session of ours streams into a store, to the end of its transaction
PATIENTLY = f"""SELECT pg_catalog.set_config(s.name, '{PATIENT["tcp_user_timeout"]}', true)
 FROM pg_catalog.pg_settings s
 WHERE s.name = 'tcp_user_timeout' AND s.setting = '{_GONE["tcp_user_timeout"]}'"""  # noqa: S608 -- words of ours
KEEPALIVE = {  # of ours, and of pg_dump's: else a server that vanished is waited for for two hours
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}
# our own statements find nothing that somebody planted; a file's own are given the role's path.
# Not among the options of a connection: `SET search_path TO DEFAULT` would lead back to it
PATH = "search_path = pg_catalog, pg_temp"
# a look leaves nothing behind in the session, which may be a pooler's
LOOK = (
    f"BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL {PATH}; "
    "SET LOCAL row_security = off"
)
LIMITED_SINCE = 17  # major version: a transaction may be limited, by the role or the database
UNLIMITED = "SET LOCAL transaction_timeout = 0"
_SPECIAL = re.compile(r"[\\\s]")  # what has a backslash before it in the `options` of a connection
_SINCE = {  # settings that older servers do not know
    14: {"client_connection_check_interval": "1s", "idle_session_timeout": "0"},
    LIMITED_SINCE: {"transaction_timeout": "0"},
}
# a number for what ALTER DATABASE and ALTER ROLE have set for whoever connects as this session did
_GIVEN = """SELECT coalesce(pg_catalog.sum(pg_catalog.hashtextextended(s::pg_catalog.text, 0)), 0)
 FROM pg_catalog.pg_db_role_setting s
 WHERE s.setdatabase IN (0, (SELECT d.oid FROM pg_catalog.pg_database d
  WHERE d.datname = pg_catalog.current_database()))
 AND s.setrole IN (0, pg_catalog.quote_ident(session_user)::pg_catalog.regrole::pg_catalog.oid)"""
# settings with a dot that functions here set, as far as their texts say it
_NAMES_OF_FUNCTIONS = r"""SELECT DISTINCT pg_catalog.lower(n.name) FROM pg_catalog.pg_proc p,
 LATERAL (SELECT m[1] AS name FROM pg_catalog.regexp_matches(p.prosrc, '(?:set_config"?\s*\(\s*''+'
   || '|\mset\s+(?:(?:local|session)\s+)?"?)([a-z0-9_$]+(?:\.[a-z0-9_$]+)+)', 'gi') m
  UNION ALL SELECT pg_catalog.split_part(c, '=', 1) FROM pg_catalog.unnest(p.proconfig) c
  WHERE c ~ '^[A-Za-z0-9_$]+\.[A-Za-z0-9_$.]+=') n
 WHERE p.oid >= 16384 AND p.prolang NOT IN (12, 13) LIMIT 200"""  # neither internal nor in C
_LACKING = """SELECT n FROM pg_catalog.unnest(ARRAY[{}]) n
 WHERE pg_catalog.current_setting(n, true) IS NULL"""
_EMPTIED = """SELECT n FROM pg_catalog.unnest(ARRAY[{}]) n
 WHERE pg_catalog.current_setting(n, true) OPERATOR(pg_catalog.=) ''"""
# one that a library has defined meanwhile is reset; only then its list is looked through
_LEFT = """EXISTS (SELECT FROM pg_catalog.unnest(ARRAY[{}]) n
 WHERE CASE WHEN pg_catalog.current_setting(n, true) IS NOT NULL THEN {} END)"""
_NO_LIBRARY = """NOT EXISTS (
  SELECT FROM pg_catalog.pg_settings s WHERE pg_catalog.lower(s.name) = n)"""
_LISTS = """SELECT 'settings' WHERE
 pg_catalog.has_table_privilege('pg_catalog.pg_settings'::pg_catalog.regclass, 'SELECT')"""
# what a session begins with, asked for before its search_path is ours, and by no operator; and what
# a RESET leads back to, where there is an event trigger that may have set something at the login
_AT_FIRST = """SELECT pg_catalog.current_setting('role') AS role,
 pg_catalog.current_setting('search_path') AS search_path"""
_LOGINS = """SELECT 1 AS one FROM pg_catalog.pg_event_trigger e
 WHERE e.evtevent = 'login' AND e.evtenabled <> 'D' LIMIT 1"""
_UNDONE = "SELECT s.reset_val FROM pg_catalog.pg_settings s WHERE s.name = 'search_path'"
KNOWS_LOGINS = 17  # major version
_RESET = ("RESET SESSION AUTHORIZATION", "RESET ROLE", "RESET ALL")
FORGET = "CLOSE ALL; DEALLOCATE ALL; DISCARD TEMP; DISCARD SEQUENCES; UNLISTEN *"
ACTIVE, IDLE = pq.TransactionStatus.ACTIVE, pq.TransactionStatus.IDLE
ANSWER_S = (2.0, 8.0)  # least and most that a question waits for its answer, beside lock_timeout
AT_ONCE = 1000  # rows of a long answer that are in memory
FEW = 5  # of those that nobody reads: one may have megabytes
_COPYING = {pq.ExecStatus.COPY_IN, pq.ExecStatus.COPY_OUT, pq.ExecStatus.COPY_BOTH}
Parameters = Sequence[object] | Mapping[str, object] | None
T = TypeVar("T")
Observer = Callable[["Script", "Statement"], AbstractContextManager[None]]  # around a statement
Other = Callable[["Script", "Statement"], bytes | None]
HandOver = Callable[["Session", "Session"], bool]  # from the one to the other
Ending = Callable[[], AbstractContextManager[None]]  # around a COMMIT


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


class Session:
    """The one connection that reads, holds the lock and does the work."""

    connection: psycopg.Connection[Any]
    facts: Facts | None

    def __init__(self, config: Config, target: Mapping[str, str] | None = None) -> None:
        self.config = config
        self.target = config.target if target is None else target
        self.deadline = time.monotonic() + config.wait_timeout_s
        self.facts = None
        self.attempts = 1
        self.observe: Observer | None = None
        self.ending: Ending | None = None
        self.instead: Other | None = None  # what a file's statement is here, where it is another
        self.copy = False  # a restored copy's history was looked at where it comes from
        self._options = True
        self._prepared = False
        self._at_work = False  # a lock may be held: from now on patience has no end
        self._silent = False
        self.called = ""  # the name that other sessions see, where it says more
        self._password: dict[str, str] = {}  # that libpq found for this connection
        self._refused: set[str] = set()
        self._resets: dict[tuple[object, ...], str] = {}  # said three times a file
        self.mark = ""  # see `own`
        self._pid: int | None = None
        self.locked = False  # the run's lock was taken by this very connection
        self.given: str | None = None  # what `_GIVEN` said when nobody had run a file yet
        self.stale = False  # a new connection would be given something else by now
        self.at_login: dict[str, str] = {}  # `role` and `search_path`, as a trigger set them
        self.worn = False  # a file left a setting in it that only a new one is without
        self.doubted = False  # or may have left what nobody can be asked for: files/remains.py
        self.warned = False  # that one of these stays
        self._said: set[str] | None = None  # settings with a dot that files and functions name
        self._asked: set[str] = set()  # of those, which this very connection was asked for
        self._lacking: set[str] = set()  # and did not have when no file had set them yet
        self._emptied: set[str] = set()  # of those that a file left, where it had to stay
        self._unlisted = ""  # what tells that no library has defined one
        self._hears: Callable[[psycopg.errors.Diagnostic], None] | None = None

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

        said_in = self.config.said_in
        patience = waiting.Patience(self.target, began, self.deadline, first, said_in)
        try:
            Retrying(
                retry=retry_if_exception_type(Refused),
                wait=patience.pause,
                stop=patience.over,
                sleep=stop.sleep,
                reraise=True,
            )(patience.attempt, self._attempt)
        except Refused as refused:
            raise patience.failure(refused) from None
        self.attempts = patience.attempts + 1

    def _attempt(self) -> None:
        target = dict(self.target) | {
            "application_name": self.called or application_name(),
            "client_encoding": "UTF8",
        }
        target = KEEPALIVE | target
        if self._options:
            mark = {MARK: self.mark} if self.mark else {}
            target |= _options(target, self._ours() | _GONE | mark)
        try:
            self._begin(dial.connect(target, self.deadline - time.monotonic()))
        except Refused as refused:
            refused_one = refused.kind in ("config", "alien") and refused.sqlstate is not None
            if not (refused.kind == "options" or refused_one) or not self._options:
                raise
            # an older PgBouncer or Amazon's RDS Proxy, good enough to read through; or a server
            # that refuses one of them: each is set on its own before work
            self._options = False
            self._attempt()

    def _begin(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection
        # a passfile's line may be for this database alone; it is read anew when we connect again
        self._password = dial.password(connection.pgconn)
        self._prepared = self._at_work = self._silent = self.locked = self.stale = False
        self.worn = self.doubted = False
        self.at_login = {}
        self._asked, self._lacking, self._emptied = set(), set(), set()
        self.given = self._pid = None
        if self._hears:
            connection.add_notice_handler(self._hears)

    def close(self) -> None:
        """End the session; the lock goes with it."""
        with suppress(AttributeError, psycopg.Error):
            self.connection.close()

    def reopen(self) -> None:
        """Connect anew, with the settings that the session had."""
        grown_up = self._prepared
        self.close()
        self.open()
        if grown_up:
            self.prepare()

    def renew(self, hand_over: HandOver | None = None) -> bool:
        """Go on with a new connection; False where none can be had, and the old one stays.

        It is to the same server: of several hosts, the first may be another one by now. What the
        old one holds is let go; before that `hand_over` may give the run's lock to the new one, and
        tells whether it has it (else it is to be taken again), or raises Refused.
        """
        new = Session(self.config, self.address() | self.secrets())
        new.mark = self.mark
        new.deadline = self.deadline = max(self.deadline, time.monotonic() + BESIDE_S)
        try:
            new._attempt()
            with _closed_where_it_fails(new):
                _require_together(self, new)
                has_it = hand_over is not None and hand_over(self, new)
        except Refused:
            return False
        with suppress(psycopg.Error), closing(self.connection):
            self.connection.execute("SELECT pg_catalog.pg_advisory_unlock_all()")
        self._options = new._options
        self._begin(new.connection)
        self.locked = has_it
        self.prepare()
        return True

    @contextmanager
    def meanwhile(self, query: str) -> Iterator[Callable[[], None]]:
        """Have the server begin with a query; yield what waits for its end, or raises its error.

        Who does not wait for it, or is asked to stop, leaves nothing behind at the server.
        """

        def wait() -> None:
            with connection.lock:
                found = connection.wait(generators.execute(connection.pgconn))
            for result in found:
                _require_done(connection, result)

        connection = self.connection
        with self._bounded(), self._stoppable():
            with connection.lock:
                connection.pgconn.send_query(query.encode())
            try:
                yield wait
            finally:
                if connection.info.transaction_status == ACTIVE:
                    self._cancel()

    def answered(self) -> bool:
        """Tell whether the server has answered what it was asked meanwhile, or is gone."""
        try:
            self.connection.pgconn.consume_input()
        except psycopg.Error:
            self.close()
            raise
        return not self.connection.pgconn.is_busy()

    def listen(self, hear: Callable[[psycopg.errors.Diagnostic], None] | None) -> None:
        """Have somebody told what the server notices, also on a new connection; None: nobody."""
        if self._hears and not self.lost:
            self.connection.remove_notice_handler(self._hears)
        self._hears = hear
        if hear:
            self.connection.add_notice_handler(hear)

    def notice(self) -> None:
        """Keep in mind what the server gave this session at its start, as far as we may see it."""
        if self.given is None:
            try:
                row = self.execute(_GIVEN).fetchone()
            except psycopg.errors.InsufficientPrivilege:
                row = None
            self.given = str(row[0]) if row else ""

    def expect(self, names: set[str]) -> None:
        """Keep in mind which of these settings with a dot this session does not have yet.

        And, from the first file on, of those that functions name: a trigger may set them.
        """
        if self._said is None:
            self._said = self._named(_NAMES_OF_FUNCTIONS)
        self._said |= names
        if new := self._said - self._asked:
            self._lacking |= self._named(_LACKING.format(_listed(new)))
            self._asked |= new
        if self._lacking and not self._unlisted:
            self._unlisted = _NO_LIBRARY if self._named(_LISTS) else "true"

    def _named(self, query: str) -> set[str]:
        try:
            return {name for (name,) in self.execute(query).fetchall()}
        except psycopg.errors.InsufficientPrivilege:
            return set()

    def asks(self) -> str:
        """Return the query that tells in two rows whether a new session would be the same.

        Whether it would be given the same, and whether no file has left a setting in this one.
        """
        given = f"({_GIVEN}) = {self.given}" if self.given else "true"
        left = "false"
        if self._lacking:
            left = _LEFT.format(_listed(self._lacking), self._unlisted)
        return f"SELECT pg_catalog.unnest(ARRAY[{given}, NOT {left}])"

    def learn(self, told: Sequence[bool]) -> None:
        """Keep in mind what these rows say."""
        same, clean = told
        self.stale, self.worn = not same, not clean

    def compare(self) -> None:
        """See whether this session is stale, or worn."""
        self.learn([row[0] for row in self.execute(self.asks()).fetchall()])

    def emptied(self) -> list[str]:
        """Return the settings with a dot that a file has left empty, where a new session has NULL.

        They are so once the session was reset.
        """
        lacking = self._lacking
        found = self._named(_EMPTIED.format(_listed(lacking))) if lacking else set[str]()
        return sorted(found | self._emptied)

    def stay(self) -> None:
        """Go on with this session as it is by now: no other can be had."""
        self._emptied = set(self.emptied())
        self.stale = self.worn = self.doubted = False
        self._asked, self._lacking = set(), set()
        self.given = None
        self.notice()

    def execute(self, query: str | bytes, parameters: Parameters = None) -> psycopg.Cursor[Any]:
        """Run one statement; a stop request cancels it."""
        with self._bounded(), self._stoppable():
            return self.connection.execute(query, parameters)

    def rows(self, script: str) -> list[dict[str, Any]]:
        """Run statements in one round trip; return the rows of the last one that has any."""
        return self.results(script)[-1]

    def results(self, script: str) -> list[list[dict[str, Any]]]:
        """Run statements in one round trip; return the rows of each one that may have any."""
        found: list[list[dict[str, Any]]] = []
        with (
            self._bounded(),
            self._stoppable(),
            self.connection.cursor(row_factory=dict_row) as cursor,
        ):
            cursor.execute(script.encode())
            while True:
                if cursor.description is not None:
                    found.append(cursor.fetchall())
                if not cursor.nextset():
                    return found

    def picked(self, script: str, *places: int) -> list[list[bool]]:
        """Run statements in one round trip; return the rows, a truth each, of those at places."""
        with self._bounded(), self._stoppable():
            found = _results(self.connection, script)
        return [
            [found[place].get_value(row, 0) == b"t" for row in range(found[place].ntuples)]
            for place in places
        ]

    def drain(self, text: bytes, start: int = 0, end: int | None = None) -> None:
        """Run the statement at a place of a text, and let its rows go as they come, unread.

        Not all that a server can hold has a place among Python's values.
        """
        alone = self.connection.info.transaction_status == IDLE  # so it commits by itself
        guard = partial(_guarded, self, alone=True) if alone else _unguarded
        with self._stoppable():
            _drained(self.connection, text, start, len(text) if end is None else end, guard)

    def answer(self, query: bytes) -> PGresult:
        """Run one query; return what the server wrote, of which no value is made Python's."""
        with self._stoppable():
            return _results(self.connection, query)[-1]

    def read(self, query: str, take: Callable[[Iterator[tuple[Any, ...]]], T]) -> T:
        """Return what `take` makes of a query's rows, of which few are in memory at a time."""
        with self._bounded(), self._stoppable():
            return read(self.connection, query, take)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Leave no transaction open, however the look inside ends."""
        try:
            yield
        finally:
            if not self.lost and self.connection.info.transaction_status != IDLE:
                with suppress(psycopg.OperationalError):
                    self.connection.execute("ROLLBACK")

    def ask(self, query: str) -> list[dict[str, Any]]:
        """Return the rows of a query that may be asked again: reconnects until the deadline."""

        def look() -> list[dict[str, Any]]:
            with self.looking():
                return self.rows(f"{self.beginning}; {query}; COMMIT")

        return self.again(look)

    @property
    def unlimited(self) -> list[str]:
        """What lets a transaction take the time that it needs, whatever the role was given.

        By the version that the server tells whoever connects: a look may be what asks for the rest.
        """
        knows = self.connection.info.server_version >= LIMITED_SINCE * 10000
        return [UNLIMITED] if knows and "transaction_timeout" not in self._refused else []

    @property
    def beginning(self) -> str:
        """What begins a look, in one message with more of it or alone."""
        return "; ".join([LOOK, *self.unlimited])

    def again(self, look: Callable[[], T]) -> T:
        """Return what a look returns that may be taken again: reconnects until the deadline.

        Not under the lock, which would be lost with the connection, and nobody would know.
        """
        for waited in stop.looks(0.05, 0.25):
            try:
                if waited:
                    self.reopen()
                return look()
            except psycopg.OperationalError as error:
                late = time.monotonic() >= self.deadline
                if not self.lost or self.locked or (self._at_work and late):
                    raise
                if late:
                    raise self._unanswered(error) from error
            except NotReady:
                if time.monotonic() >= self.deadline:
                    raise
        raise AssertionError  # looks() does not end

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Let a stop request end a statement, and leave none behind: others follow, to clean up.

        psycopg cancels what it waits for; a request may come just before it begins to, and where
        nobody takes the cancel it gives up.
        """
        try:
            with stop.allowed():
                yield
        except stop.Stopped:
            if self.connection.info.transaction_status == ACTIVE:
                self._cancel()
            raise

    def _cancel(self) -> None:
        """Have the server end what it is at; hang up on one that does not say so."""
        timer = threading.Timer(CANCEL_S, self._hang_up)
        timer.daemon = True
        threads.started(timer)
        try:
            with suppress(psycopg.Error), self.connection.lock:
                self.connection.cancel_safe(timeout=CANCEL_S)
                self.connection.wait(generators.execute(self.connection.pgconn))
        finally:
            timer.cancel()
        if self.connection.info.transaction_status == ACTIVE:
            self.close()

    @contextmanager
    def _bounded(self) -> Iterator[None]:
        """Hang up on a server that does not answer a look in time; raises NotReady.

        Work is not bounded: there a lost connection is a lost lock.
        """
        if self._at_work:
            yield
            return
        least, most = (self.config.lock_timeout_ms / 1000 + each for each in ANSWER_S)
        within_s = max(least, min(most, self.deadline - time.monotonic()))
        timer = threading.Timer(within_s, self._hang_up)
        timer.daemon = True
        with threads.needed(threads.no_server):
            timer.start()
        try:
            yield
        except psycopg.Error as error:
            if self._silent:
                raise self._unanswered(error) from error
            raise
        finally:
            timer.cancel()

    def _hang_up(self) -> None:
        with suppress(OSError, psycopg.Error):  # it was closed meanwhile
            connection = socket.socket(fileno=os.dup(self.connection.pgconn.socket))
            self._silent = True
            connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _unanswered(self, error: psycopg.Error) -> NotReady:
        where = dial.called(self.target)
        said = "it did not answer in time" if self._silent else str(lost(error))
        return NotReady(
            "server.not_ready",
            f"{where} lets us in, but was not usable: {said}",
            "Is the database behind it running? Then run again.",
            sqlstate=error.sqlstate,
        )

    @property
    def lost(self) -> bool:
        """Tell whether the connection is gone."""
        return self.connection.closed

    @property
    def at_work(self) -> bool:
        """Tell whether this session may have done more than look."""
        return self._at_work

    @property
    def local(self) -> bool:
        """Tell whether this is a Unix socket."""
        return not self.connection.info.hostaddr

    def look(self) -> Facts:
        """Ask for the facts: version, role, standby, pooler."""
        return self.keep_facts(self.ask(f"SELECT {FACTS}")[0])

    def keep_facts(self, row: Mapping[str, Any]) -> Facts:
        """Keep and return the facts that came with a query's row."""
        self._pid = row["fact_pid"]
        marked = self.mark and row["fact_mark"] == self.mark
        self.facts = Facts(
            version=row["fact_version"],
            database=row["fact_database"],
            user=row["fact_user"],
            standby=row["fact_standby"],
            read_only=row["fact_read_only"] == "on",
            pooler=not marked and self._pid != self.connection.pgconn.backend_pid,
        )
        return self.facts

    def own(self) -> bool:
        """Tell whether the server's process is this session's alone, and connect anew to know.

        A proxy may give out keys of its own (Neon's does), as a pooler does. So the process is
        asked for a word that only he can have who began it for this very connection; another
        session's is to be another process, with that one's word. Call before any work.
        """
        self.mark = os.urandom(8).hex()
        self.reopen()
        if self.look().pooler:
            return False
        other = Session(self.config, self.address() | self.secrets())
        other.mark = os.urandom(8).hex()
        other.deadline = min(other.deadline, time.monotonic() + BESIDE_S)
        with _opened(other):
            found = [each.ask(_MARKED)[0] for each in (self, other, self)]
        pids = [each["pid"] for each in found]
        marks = [each["mark"] for each in found]
        return (
            marks == [self.mark, other.mark, self.mark]
            and pids[0] == pids[2] == self._pid
            and pids[0] != pids[1]
        )

    @property
    def pid(self) -> int:
        """The number of the server's process, which a proxy may not have told."""
        return self._pid or self.connection.info.backend_pid

    def prepare(self) -> None:
        """Set what only newer servers know; call before work, not before a look.

        The facts are asked for where nobody has: never inside a transaction.
        """
        if self._prepared:
            return
        facts = self.facts or self.look()
        if facts.major >= KNOWS_LOGINS:
            said = "; ".join([_AT_FIRST, *self._needed(), _LOGINS])
            (first,), *_, logins = self.results(said)
            path = self._named(_UNDONE) if logins else set[str]()
            undone = {"role": "none", "search_path": path.pop()} if path else first
            self.at_login = {name: first[name] for name in first if first[name] != undone[name]}
        else:
            self.execute("; ".join(self._needed()))
        self._ask_for(self._good(facts.major))
        if self.mark and self._pid is None:
            (self._pid,) = self.execute("SELECT pg_catalog.pg_backend_pid()").fetchone() or (None,)
        self._prepared = self._at_work = True

    def _needed(self) -> list[str]:
        """Return the statements that make a session ours."""
        said = [f"SET {PATH}", *([] if self._options else _sets(self._ours())), _DURABLE]
        return said + ([f"SET {self._name()}"] if self.called else [])  # RESET ALL took it

    def path(self, how: str) -> str:
        """Return what gives the role's own search_path; `how` is SET or SET LOCAL."""
        if (said := self.at_login.get("search_path")) is None:
            return f"{how} search_path TO DEFAULT"
        local = "true" if how == "SET LOCAL" else "false"
        return f"SELECT pg_catalog.set_config('search_path', {quoting.literal(said)}, {local})"

    def role(self, how: str) -> list[str]:
        """Return what gives the role back that a trigger chose at the login, if one did."""
        role = self.at_login.get("role")
        return [f"{how} ROLE {quoting.name(role)}"] if role else []

    def _good(self, major: int) -> dict[str, str]:
        """Return the settings that are good to have, without those that this server refused."""
        wanted = {} if self._options else dict(_GONE)
        for since, newer in _SINCE.items():
            wanted |= newer if major >= since else {}
        return {name: value for name, value in wanted.items() if name not in self._refused}

    def _ask_for(self, settings: Mapping[str, str]) -> None:
        """Set what is good to have and no server must grant (Windows, forks, older ones)."""
        said = _sets(settings)
        try:
            if said:
                self.execute("; ".join(said))
        except psycopg.Error:
            if self.lost:
                raise
            if len(said) == 1:
                self._refused |= settings.keys()
                return
            for name, value in settings.items():
                self._ask_for({name: value})

    def _ours(self) -> dict[str, str]:
        return _SETTINGS | {"lock_timeout": str(self.config.lock_timeout_ms)}

    def reset(self, more: str = "") -> None:
        """Undo what a file left in the session, but keep the advisory lock (never DISCARD ALL).

        In one message, with `more` of a file's to undo, where the server has granted all of it.
        """
        if said := self.resetting(more):
            self.execute(said)
        else:
            self.execute("; ".join([*_RESET, *self.role("SET"), *filter(None, [more])]))
            self.prepare()

    def resetting(self, more: str = "") -> str | None:
        """Return what `reset` sends; None where it takes more than one message."""
        if not self._prepared or self.facts is None:
            return None
        role = self.role("SET")
        known = (more, self.called, self._options, len(self._refused), self.facts.major, *role)
        if known not in self._resets:
            ours = [*self._needed(), *_sets(self._good(self.facts.major))]
            self._resets[known] = "; ".join([*_RESET, *role, *filter(None, [more]), *ours])
        return self._resets[known]

    @property
    def plain(self) -> bool:
        """Tell whether the server reads a text as we write it, whatever a file has set."""
        said = self.connection.pgconn.parameter_status
        return (said(b"client_encoding"), said(b"standard_conforming_strings")) == (b"UTF8", b"on")

    def forget(self) -> None:
        """Drop what a file left for the session only: no other session would see it."""
        self.execute(FORGET)

    def tell(self, doing: str) -> None:
        """Say what this run is doing, in the name that other sessions see: who waits for us, asks.

        It stays until the next word; nobody's work depends on it.
        """
        self.called = application_name(doing)
        with suppress(psycopg.Error):
            self.execute(f"SET {self._name()}")

    def _name(self) -> str:
        return f"application_name = {quoting.literal(self.called)}"

    def secrets(self) -> dict[str, str]:
        """Return the libpq parameters that nobody may see."""
        return {name: self.target[name] for name in SECRETS if name in self.target} | self._password

    def address(self) -> dict[str, str]:
        """Return the libpq parameters that lead to this very server, without any secret."""
        kept = {name: value for name, value in self.target.items() if name not in SECRETS}
        info = self.connection.info
        here = {"host": info.host, "port": str(info.port), "user": info.user, "dbname": info.dbname}
        for name in ("target_session_attrs", "client_encoding"):  # a dump is in the database's own
            kept.pop(name, None)
        if self.secrets().get("password"):
            kept.pop("passfile", None)  # it would be read instead of ours
        if info.hostaddr and not info.host.startswith("/"):
            here["hostaddr"] = info.hostaddr
        here = {name: value for name, value in here.items() if value}
        return KEEPALIVE | kept | here | (_options(kept, _GONE) if self._options else {})

    def client_address(self) -> dict[str, str]:
        """Return the address for pg_dump or pg_restore, whose own stops are no silence.

        Their libpq may be older than ours: what nobody asks of a connection is not said either,
        where no variable or service of theirs could ask for it.
        """
        alone = not {"PGSERVICE", *map(_variable, LENIENT)} & self.config.child_env.keys()
        alone = alone and "service" not in self.target
        known = {
            name: value
            for name, value in self.address().items()
            if name not in OURS and not (alone and LENIENT.get(name) == value)
        }
        patient = known | {k: v for k, v in PATIENT.items() if k not in self.target}
        return with_settings(patient, PATIENT if self._options else {})


def _variable(name: str) -> str:
    """Return the environment variable of one of libpq's parameters."""
    return f"PG{name.replace('_', '').upper()}"


@contextmanager
def _closed_where_it_fails(session: Session) -> Iterator[None]:
    try:
        yield
    except BaseException:
        session.close()
        raise


def _require_together(one: Session, other: Session) -> None:
    """Make sure that two sessions share a database: a lock of the one the other cannot have."""
    number = [int.from_bytes(os.urandom(7), "big")]
    one.execute("SELECT pg_catalog.pg_advisory_lock(%s::int8)", number)
    try:
        row = other.execute("SELECT pg_catalog.pg_try_advisory_lock(%s::int8)", number).fetchone()
        if row != (False,):
            raise Refused("alien", "the new session is on another server")
    except (NotReady, psycopg.Error) as error:
        raise Refused("lost", str(error)) from error
    finally:
        one.execute("SELECT pg_catalog.pg_advisory_unlock(%s::int8)", number)


def _listed(names: set[str]) -> str:
    return ", ".join(map(quoting.literal, sorted(names)))


def _sets(settings: Mapping[str, str]) -> list[str]:
    return [f"SET {name} = '{value}'" for name, value in sorted(settings.items())]


def _options(target: Mapping[str, str], settings: Mapping[str, str]) -> dict[str, str]:
    """Return libpq's `options` with settings of ours behind those that were said.

    Ours would take the place of a service's.
    """
    if "service" in target and "options" not in target:
        target = completed(target)
    said = [option(name, value) for name, value in settings.items()]
    return {"options": " ".join([target.get("options", ""), *said]).strip()}


def option(name: str, value: str) -> str:
    """Return a setting as libpq's `options` have it."""
    return f"-c {name}=" + _SPECIAL.sub(r"\\\g<0>", value)


def with_settings(target: Mapping[str, str], settings: Mapping[str, str]) -> dict[str, str]:
    """Return libpq parameters for a session that begins with these settings."""
    return {**target, **(_options(target, settings) if settings else {})}


@contextmanager
def beside(
    session: Session,
    database: str | None = None,
    settings: Mapping[str, str] | None = None,
    config: Config | None = None,
    called: str = "",
) -> Iterator[Session]:
    """Yield a second session on the same server, in the same database or in another one.

    `config` is of whom it is for, where that is somebody else. Others see it as `called` from the
    first moment on.
    """
    where = {"dbname": database} if database else {}
    target = with_settings(session.address() | session.secrets() | where, settings or {})
    other = Session(config or session.config, target)
    other.mark = session.mark
    other.called = called
    other.deadline = min(other.deadline, time.monotonic() + BESIDE_S)
    with _opened(other):
        other.facts = session.facts
        other.copy, other.instead = session.copy, session.instead
        other.prepare()
        yield other


Place = Session | psycopg.Connection[Any]  # the latter hears of no stop request


def read(
    place: Place,
    query: str,
    take: Callable[[Iterator[tuple[Any, ...]]], T],
) -> T:
    """Return what `take` makes of a query's rows, of which few are in memory at a time."""
    if isinstance(place, Session):
        return place.read(query, take)
    chunk = AT_ONCE if capabilities.has_stream_chunked() else 1  # libpq 17 has chunks
    with place.cursor() as cursor:
        rows = cast("Generator[tuple[Any, ...]]", cursor.stream(query.encode(), size=chunk))
        with closing(rows):  # else whoever is stopped in between leaves the session busy
            return take(rows)


@contextmanager
def connect(config: Config, *, asked: bool = False) -> Iterator[Session]:
    """Wait for the server and yield a session on the target database.

    `asked`: until it has answered a question, too; a pooler lets us in without any server.
    """
    began = time.monotonic()
    with _heard(), _opened(Session(config)) as session:
        if asked:
            session.look()
        waited_s = round(time.monotonic() - began, 3)
        structlog.get_logger().info("server.ready", attempts=session.attempts, waited_s=waited_s)
        yield session


@contextmanager
def _heard() -> Iterator[None]:
    """Take what the server says of a question of ours for its own word, and no bug of ours."""
    try:
        yield
    except psycopg.Error as error:
        if error.sqlstate in (None, MISSPELT):
            raise
        raise _refused(error) from error


@contextmanager
def _opened(session: Session) -> Iterator[Session]:
    try:
        with _told(session):
            session.open()
            yield session
    finally:
        session.close()


@contextmanager
def _told(session: Session) -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        if session.lost:
            raise lost(error) from error
        if passing(error):
            raise _busy(session, error) from error
        if error.sqlstate == "42501":  # a file's own statements say so of the file
            raise _denied(error) from error
        raise


@contextmanager
def ours(session: Session) -> Iterator[None]:
    """Say of a failed question of ours, in the middle of a file's, what it means outside of one."""
    with _heard(), _told(session):
        yield


def passing(error: psycopg.Error) -> bool:
    """Tell whether somebody else is to blame, so that the same may come through later."""
    return error.sqlstate in PASSING or collided(error)


def collided(error: psycopg.Error) -> bool:
    """Tell whether another session changed the same row of a catalog, or was the first to add it.

    A statement adds one that is there already by its own fault, too: it fails again, then.
    """
    diag = error.diag
    if error.sqlstate == UNIQUE:
        return diag.schema_name == "pg_catalog"
    return (
        error.sqlstate == _INTERNAL
        and diag.source_function in _CATALOG_UPDATES
        and diag.message_primary in _COLLIDED
    )


def place(error: psycopg.Error, **where: object) -> None:
    """Keep on an error at which place of a file it came, for whoever tells of it."""
    vars(error)["place"] = where


def placed(error: psycopg.Error) -> dict[str, Any]:
    """Return the place of a file that an error was kept for: file, line, column, and more."""
    found: dict[str, Any] = vars(error).get("place", {})
    return found


def spot(error: psycopg.Error) -> str:
    """Return that place as a message begins with it; nothing where none is known."""
    where = placed(error)
    return ":".join(str(where[each]) for each in ("file", "line", "column") if each in where)


def _busy(session: Session, error: psycopg.Error) -> DatabaseBusy:
    begun = "what was begun was rolled back" if session.at_work else "nothing was begun"
    left = stop.left() or begun
    at = f"{found}: " if (found := spot(error)) else ""
    return DatabaseBusy(
        "database.busy",
        f"{at}another session is in the way: {error.diag.message_primary or error}",
        f"{left[0].upper()}{left[1:]}. Run again at a quieter time, or end the blocker.",
        sqlstate=error.sqlstate,
        **placed(error),
    )


def _denied(error: psycopg.Error) -> TargetUnusable:
    return TargetUnusable(
        "target.denied",
        f"the server keeps from this role what is needed: {error.diag.message_primary or error}",
        "Was a right revoked that PUBLIC has in a new database? GRANT it to this role: SELECT on "
        "the view, or EXECUTE on the function.",
        sqlstate=error.sqlstate,
    )


def _refused(error: psycopg.Error) -> DatabaseBusy | TargetUnusable:
    left = stop.left() or "what was begun was rolled back"
    said = error.diag.message_primary or str(error)
    if error.sqlstate == CANCELLED:
        return DatabaseBusy(
            "database.cancelled",
            f"somebody cancelled what we asked of the server: {said}",
            f"Run again; {left}.",
            sqlstate=error.sqlstate,
        )
    return TargetUnusable(
        "target.refused",
        f"the server does not do what is needed: {said}",
        f"Its log may say more. Remove the cause and run again; {left}.",
        sqlstate=error.sqlstate,
    )


def lost(error: psycopg.Error) -> ConnectionLost:
    """Return the failure for a connection that went away."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
    return ConnectionLost(
        "connection.lost",
        f"the connection to the server was lost: {reason}",
        repeat.advice(),
        sqlstate=error.sqlstate,
    )


def application_name(doing: str = "") -> str:
    """Return the name that other sessions see, with our host and what we do; at most 63 bytes."""
    said = f": {doing}" if doing else ""
    return f"pg-preflight@{plain.host()}"[: 63 - len(said)] + said


AT_COMMIT = (
    "at COMMIT"  # noted on what it raises: not what we wrote is to blame, but what is due then
)


def begin_with(isolation: str = "") -> str:
    """Return what begins a transaction that may write, at the level that a file says."""
    return f"BEGIN ISOLATION LEVEL {isolation or 'READ COMMITTED'} READ WRITE"


BEGIN = begin_with()


@contextmanager
def transaction(session: Session, begin: Callable[[], object] | None = None) -> Iterator[None]:
    """Run statements in one transaction, rolled back when they raise; `begin` may say more."""
    try:
        begin() if begin else session.execute(BEGIN)
        yield
    except BaseException:
        roll_back(session)
        raise
    commit(session)


@contextmanager
def locally(session: Session) -> Iterator[None]:
    """Run statements in one transaction that waits for no standby, only for the disk.

    For what is written down of a failure, a stop or a trial: nobody relies on it elsewhere, and a
    standby that is gone must not keep us from saying so.
    """
    with transaction(session, lambda: session.execute(f"{BEGIN}; {_LOCAL}")):
        yield


def commit(session: Session) -> None:
    """Commit; a stop request waits until the answer is there. Raises what the server says."""
    with session.ending() if session.ending else nullcontext(), stop.deferred():
        try:
            (result,) = _results(session.connection, "COMMIT", partial(_guarded, session))
        except psycopg.Error as error:
            error.add_note(AT_COMMIT)
            raise
    if result.command_status != b"COMMIT":
        raise psycopg.errors.InFailedSqlTransaction("the transaction was rolled back at COMMIT")


def _guarded(session: Session, answer: PQGen[T], *, alone: bool = False) -> PQGen[T]:
    """Have somebody look where the answer to a COMMIT does not come.

    Or, behind a stop, to a statement that stands `alone`, outside any transaction.
    """
    from preflight.server import standby  # noqa: PLC0415 -- what a start with nothing to do spares

    def call() -> standby.Vigil:
        target, pid = session.address() | session.secrets(), session.pid
        ends = (0.0, standby.LAST_S) if alone else ()
        return standby.Vigil(target, pid, f"{application_name()[:55]} watch", *ends)

    return standby.guarded(answer, call, *([math.inf] if alone else []))


def _unguarded(answer: PQGen[T]) -> PQGen[T]:
    return answer


def _results(
    connection: psycopg.Connection[Any],
    script: str | bytes,
    through: Callable[[PQGen[list[PGresult]]], PQGen[list[PGresult]]] = _unguarded,
) -> list[PGresult]:
    """Run statements in one round trip, without a cursor, which would cost more than the trip."""
    with connection.lock:
        connection.pgconn.send_query(script.encode() if isinstance(script, str) else script)
        answer = generators.execute(connection.pgconn)
        found: list[PGresult] = connection.wait(through(answer))
    for result in found:
        _require_done(connection, result)
    return found


def _require_done(connection: psycopg.Connection[Any], result: PGresult) -> None:
    if result.status == pq.ExecStatus.FATAL_ERROR:
        raise psycopg.errors.error_from_result(result, encoding=connection.info.encoding)
    if result.status in _COPYING:
        raise psycopg.ProgrammingError("there are no rows for COPY here, and no place for them")


def _drained(
    connection: psycopg.Connection[Any],
    text: bytes,
    start: int,
    end: int,
    through: Callable[[PQGen[PGresult]], PQGen[PGresult]],
) -> None:
    """Run one statement; a few of its rows at a time are in memory."""
    with connection.lock:
        dial.send(connection.pgconn, text, start, end)
        if capabilities.has_stream_chunked():
            connection.pgconn.set_chunked_rows_mode(FEW)
        else:
            connection.pgconn.set_single_row_mode()
        # in one wait: whoever is stopped meanwhile cancels it, and waits for its end
        ended = connection.wait(through(_draining(connection.pgconn)))
    _require_done(connection, ended)


def _draining(pgconn: PGconn) -> PQGen[PGresult]:
    """Wait for all that a statement says; return the last of it."""
    yield from generators.send(pgconn)
    ended: PGresult | None = None
    try:
        while (result := (yield from generators.fetch(pgconn))) is not None:
            ended = result
            if result.status in _COPYING:
                break
    except psycopg.DatabaseError:  # it may have hung up when it had said why
        if ended is None or ended.status != pq.ExecStatus.FATAL_ERROR:
            raise
    if ended is None:
        raise psycopg.InternalError("the server has nothing to say of a statement")
    return ended


@contextmanager
def undone(session: Session) -> Iterator[None]:
    """Run statements in one transaction, of which nothing stays."""
    session.execute(BEGIN)
    try:
        yield
    finally:
        roll_back(session)


def roll_back(session: Session) -> None:
    """Roll back if there is anything to roll back, and on: an idle session would be warned."""
    if not session.lost and session.connection.info.transaction_status != IDLE:
        try:
            session.connection.execute("ROLLBACK")
        except psycopg.OperationalError:
            session.close()
