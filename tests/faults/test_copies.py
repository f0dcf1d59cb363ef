"""Where a copy may be made: never on a server that would keep its WAL, may run full, or crashed."""

import contextlib
import os
import random
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql

from tests import faults, program, servers
from tests.conftest import CreateDatabase, Run, StartServer, WriteMigrations
from tests.faults import crash

FAILS = "SELECT last_failed_time > coalesce(last_archived_time, '-infinity') FROM pg_stat_archiver"
SLOT = "SELECT pg_create_physical_replication_slot('nobodys', true)"


@contextlib.contextmanager
def slot(database: servers.Database) -> Iterator[None]:
    """Have a slot hold WAL that nobody fetches."""
    database.query(SLOT)
    yield
    database.query("SELECT pg_drop_replication_slot('nobodys')")


@contextlib.contextmanager
def archiver(database: servers.Database) -> Iterator[None]:
    """Have archiving fail."""
    database.server.configure(archive_command="false")
    database.server.reload()
    database.query("SELECT pg_switch_wal()")
    faults.until(lambda: database.query(FAILS) == [True], "archiving fails")
    yield


def test_no_copy_is_made_on_a_server_that_keeps_the_wal_of_it(
    start_server: StartServer,
    create_database: CreateDatabase,
    environment: dict[str, str],
    migrations: WriteMigrations,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Whatever keeps it, and whichever command asks; a server that keeps nothing takes the copy."""
    database = create_database(start_server(archive_mode="on", archive_command="true"))
    migrations({"001_one.sql": "CREATE TABLE one ();"})
    rehearse = {"PREFLIGHT_REHEARSE": "auto", "PREFLIGHT_FIRST_CONTACT": "pending"}
    main = program.Program(
        environment | database.env() | rehearse, tmp_path_factory.mktemp("copies")
    )

    def copies(*command: str) -> tuple[int, int, int]:
        done = main.run(*command)
        made = len(done.event("rehearsal.passed"))
        return done.code, made, len(done.event("rehearsal.skipped"))

    assert (0, 1, 0) == copies("backup")
    with slot(database):
        assert (0, 0, 1) == copies("backup")
    with archiver(database):
        assert (0, 0, 1) == copies("up")
    main.close()


# --- a server that goes down, and runs that end, while a copy is there ----------------------------

SCRATCH = "SELECT datname FROM pg_database WHERE datname LIKE 'preflight\\_scratch%'"
# as docs/rehearsal.md says, when the server may have copies again
ALLOW = """
UPDATE preflight.journal SET event = 'rehearsed', sqlstate = NULL
WHERE event IN ('rehearsing', 'rehearsed')
"""


def backend_is_killed(server: servers.Server, job: program.Process) -> None:
    """Kill a server process that has nothing to do with us: all others end with it."""
    del job
    with contextlib.suppress(psycopg.OperationalError), server.connect() as session:
        os.kill(session.info.backend_pid, signal.SIGKILL)
        session.execute("SELECT pg_sleep(60)")


def postmaster_is_killed(server: servers.Server, job: program.Process) -> None:
    """Kill the main process."""
    del job
    server.signal_postmaster(signal.SIGKILL)


def stopped_at_once(server: servers.Server, job: program.Process) -> None:
    """Stop it without a checkpoint, as a machine does that is switched off."""
    del job
    server.stop("immediate")


def restarted(server: servers.Server, job: program.Process) -> None:
    """Restart it in good order."""
    del job
    server.stop()


def job_is_killed(server: servers.Server, job: program.Process) -> None:
    """Kill the run alone."""
    del server
    job.signal(signal.SIGKILL)


def connection_is_cut(server: servers.Server, job: program.Process) -> None:
    """Cut the connection alone."""
    del server, job
    raise faults.Cut


# What only sounds like more than the database: such a file is tried all the same.
SAYS_MUCH = "DO $$BEGIN /* create user here */ PERFORM 'drop database'; END$$;"
STOPS_WRITERS = ("SHARE", "SHARE ROW EXCLUSIVE", "EXCLUSIVE", "ACCESS EXCLUSIVE")
CRASHES = (backend_is_killed, postmaster_is_killed, stopped_at_once)
HARMLESS = (restarted, job_is_killed, connection_is_cut)


class OnCopy(faults.Fault):
    """Calls once, at a message on the connections that lead to a copy."""

    def __init__(self, message: int, call: Callable[[], None]) -> None:
        """Count from the first one on."""
        self.left, self.call = message, call
        self.lock = threading.Lock()
        self.caller = threading.local()  # a connection has a thread of its own

    def startup(self, message: bytes) -> None:
        """See where it leads."""
        self.caller.there = b"\0preflight_scratch" in message

    def connected(self) -> faults.Fault:
        """Count on these, and leave the others alone."""
        return self if self.caller.there else faults.Fault()

    def to_client(self, kind: bytes, message: bytes) -> bytes:
        """Call when it is time; rows are not counted."""
        if kind not in b"Dd":
            with self.lock:
                self.left -= 1
                due = self.left == 0
            if due:
                self.call()
        return message


class Struck:
    """A database whose server, or whose runs, come to an end while a copy is there."""

    def __init__(self, database: servers.Database, env: dict[str, str], home: Path) -> None:
        """Give it a history."""
        self.database, self.server, self.home = database, database.server, home
        self.between = crash.Through()
        self.proxy = faults.Proxy(self.server, self.between)
        self.main = program.Program({**env, **database.env(), **self.proxy.env()}, home)
        self.number = 0
        assert 0 == self.run("up", PREFLIGHT_BACKUP="off").code

    def run(self, *command: str, **more: str) -> program.Result:
        """Run a command undisturbed, with a file that is new."""
        return self.start(*command, **more).wait()

    def start(self, *command: str, **more: str) -> program.Process:
        """Start it."""
        self.number += 1
        file = self.home / "migrations" / f"{self.number:03}_made.sql"
        file.write_text(f"CREATE TABLE made_{self.number} (); {SAYS_MUCH}")
        return self.main.start(*command, env=more)

    def outstays(self, choice: random.Random) -> None:
        """Expect 27 of a file that stops writers for longer than it may, whatever others may."""
        more = choice.choice(({}, {"PREFLIGHT_REHEARSE_MAX_LOCK_S": "60"}))
        lock = f"LOCK TABLE made_1 IN {choice.choice(STOPS_WRITERS)} MODE"
        file = self.home / "migrations" / "999_long.sql"
        file.write_text(f"-- preflight: max-lock 1ms\n{lock};\nSELECT pg_sleep(0.2);\n")
        result = self.main.run("up", env=more)
        said = (result.code, (result.finished.get("error") or {}).get("code"))
        assert (27, "rehearsal.lock_too_long") == said, f"{lock}, {more}: {result}"
        file.unlink()

    def strike(
        self, how: Callable[[servers.Server, program.Process], None], command: str, message: int
    ) -> bool:
        """Strike a run at a message on its copy; tell whether the copy was there."""
        there: list[str] = []
        started, begun, done = threading.Event(), threading.Event(), threading.Event()

        def blow() -> None:
            begun.set()
            started.wait()
            there.extend(servers.Database(self.server, "postgres").query(SCRATCH))
            try:
                how(self.server, job)
            finally:
                done.set()

        self.between.now = OnCopy(message, blow)
        job = self.start(command)
        started.set()
        faults.until(lambda: done.is_set() or not (job.running or begun.is_set()), "struck", 60)
        self.server.start()  # here: a server ends with the thread that has started it
        result = job.wait()
        self.between.now = faults.Fault()
        faults.until(lambda: answers(self.server), "the server answers")
        assert result.code in {0, 13, -signal.SIGKILL}, str(result)
        return bool(there)

    def close(self) -> None:
        """End what still runs."""
        self.main.close()
        self.proxy.close()


def answers(server: servers.Server) -> bool:
    """Tell whether a server can be used."""
    with contextlib.suppress(psycopg.OperationalError), server.connect():
        return True
    return False


@pytest.mark.parametrize("seed", ["sample/1"])
def test_no_copy_is_made_on_a_server_that_crashed_with_one(
    start_server: StartServer,
    create_database: CreateDatabase,
    environment: dict[str, str],
    tmp_path: Path,
    seed: str,
) -> None:
    """However it crashed, at any message, until somebody allows it; what is no crash stops none."""
    choice = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    rehearse = {"PREFLIGHT_REHEARSE": "auto", "PREFLIGHT_FIRST_CONTACT": "pending"}
    database = create_database(start_server())
    struck = Struck(database, environment | rehearse, tmp_path)

    def copied(*command: str) -> bool:
        done = struck.run(*command)
        made, skipped = (len(done.event(f"rehearsal.{it}")) for it in ("passed", "skipped"))
        assert (0, 1) == (done.code, made + skipped), str(done)
        return made == 1

    for how in choice.sample(CRASHES + HARMLESS, len(CRASHES + HARMLESS)):
        command, message = choice.choice(["up", "backup"]), choice.randint(1, 60)
        there = struck.strike(how, command, message)
        told = f"{how.__name__} at message {message} of {command}"
        if there and how in CRASHES:
            assert not copied(choice.choice(["up", "backup"])), told
            assert not copied("up"), told
            database.script(ALLOW)
        assert copied(choice.choice(["up", "backup"])), told
    struck.outstays(choice)
    struck.close()


# --- who may get into a copy, and what another server hears ---------------------------------------


class Knocks(OnCopy):
    """Calls at each so-many-th message on the connections that lead to a copy."""

    EACH = 40

    def to_client(self, kind: bytes, message: bytes) -> bytes:
        """Call, whatever the message is."""
        del kind
        with self.lock:
            self.left -= 1
            due = self.left % self.EACH == 0
        if due:
            self.call()
        return message


TOOL = "import os, psycopg; psycopg.connect(os.environ['DATABASE_URL']).execute('SELECT 1')"


def test_no_ordinary_role_gets_into_a_copy(
    start_server: StartServer,
    create_database: CreateDatabase,
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    """Whichever command makes it, and however far it is."""
    database = create_database(start_server())
    with database.server.connect() as session:
        made = sql.SQL("CREATE ROLE visitor LOGIN PASSWORD {}")
        session.execute(made.format(sql.Literal(servers.PASSWORD)))
    rehearse = {"PREFLIGHT_REHEARSE": "auto", "PREFLIGHT_FIRST_CONTACT": "pending"}
    struck = Struck(database, environment | rehearse, tmp_path)
    refused: list[str] = []
    inside: list[str] = []

    def knock() -> None:
        for name in servers.Database(database.server, "postgres").query(SCRATCH):
            copy = servers.Database(database.server, name)
            try:
                psycopg.connect(copy.conninfo(user="visitor", connect_timeout=2)).close()
                inside.append(name)
            except psycopg.Error:
                refused.append(name)

    wrapped = ("wrap", "--always", "--trust-environment", "--", sys.executable, "-c", TOOL)
    for command in (("up",), ("backup",), ("plan", "--rehearse"), wrapped):
        refused.clear()
        struck.between.now = Knocks(0, knock)
        url = f"postgresql://postgres:{quote(servers.PASSWORD)}@{servers.HOST}"
        url = f"{url}:{struck.proxy.port}/{database.name}"
        result = struck.run(*command, DATABASE_URL=url)
        assert (0, []) == (result.code, inside), f"{command}: {result}"
        assert refused, f"nobody knocked: {command}: {result}"
    struck.close()


def said(env: dict[str, str], where: str) -> dict[str, str | None]:
    """Return the live password as a variable has it."""
    if where == "DATABASE_URL":
        login = f"{env['PGUSER']}:{quote(env['PGPASSWORD'])}"
        url = f"postgresql://{login}@{env['PGHOST']}:{env['PGPORT']}/{env['PGDATABASE']}"
        return {where: url}  # beside PGPASSWORD, as many say it twice
    return {"PGPASSWORD": None, where: env["PGPASSWORD"]}


@pytest.mark.parametrize("where", ["PGPASSWORD", "POSTGRES_PASSWORD", "DATABASE_URL"])
@pytest.mark.parametrize("command", ["up", "backup"])
def test_no_other_server_hears_the_live_password(
    run: Run, environment: dict[str, str], migrations: WriteMigrations, where: str, command: str
) -> None:
    """One that asks for it in clear hears nothing."""
    heard: list[bytes] = []

    def ask(caller: socket.socket) -> None:
        caller.recv(4096)
        caller.sendall(b"R" + struct.pack("!ii", 8, 3))
        heard.append(caller.recv(4096))

    migrations({"001_one.sql": "CREATE TABLE one ();"})
    with faults.stranger(ask) as there:
        url = "postgresql://postgres@{PGHOST}:{PGPORT}/postgres?sslmode=disable".format(**there)
        more = {"PREFLIGHT_REHEARSE": "auto", "PREFLIGHT_REHEARSE_URL": url}
        result = run(
            command, env=said(environment, where) | more | {"PREFLIGHT_WAIT_TIMEOUT_S": "1"}
        )

    assert 0 == result.code, result
    assert heard
    assert environment["PGPASSWORD"].encode() not in b"".join(heard)
