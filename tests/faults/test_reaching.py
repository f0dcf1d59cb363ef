"""Faults between the program and its server: names, packets, servers that are not there yet."""

import contextlib
import itertools
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests import faults, program, servers, tools
from tests.conftest import CreateDatabase, Run, Start, StartServer, WriteMigrations
from tests.faults.conftest import Answers

QUICKLY = {"PREFLIGHT_BACKUP": "off"}
ONE = {"001_one.sql": "CREATE TABLE one (id int);\n"}


@pytest.mark.fault("A003")
def test_a003_name_that_is_known_later_is_asked_for_again(
    start: Start, answers: Answers, migrations: WriteMigrations, tmp_path: Path
) -> None:
    """A Service that is created after the job: nothing remembers that it was not there."""
    migrations(ONE)
    known = tmp_path / "known"
    process = start(env={**QUICKLY, **answers(resolver=str(known)), "PGHOST": "db.example"})
    waiting = process.wait_for_event("server.waiting")
    known.touch()
    result = process.wait()

    assert "db.example" in waiting["reason"]
    assert (0, ["001_one"]) == (result.code, result.finished["applied"]), str(result)


@pytest.mark.fault("A004")
@pytest.mark.parametrize("how", ["hangs", "fails"])
def test_a004_resolver_that_is_no_help_keeps_nobody_beyond_the_deadline(
    run: Run, answers: Answers, migrations: WriteMigrations, how: str
) -> None:
    """Whether it says so or nothing at all."""
    migrations(ONE)
    env = {**answers(resolver=how), "PGHOST": "db.example", "PREFLIGHT_WAIT_TIMEOUT_S": "1"}
    result = run(env={**env, "PGCONNECT_TIMEOUT": "2"}, timeout=20)

    assert (10, "server.not_ready") == (result.code, result.finished["error"]["code"])
    assert "db.example" in result.finished["error"]["message"]


@contextlib.contextmanager
def black_hole() -> Iterator[dict[str, str]]:
    """Listen with a queue that is full: the kernel drops what comes, without a word."""
    with contextlib.ExitStack() as open_:
        listener = open_.enter_context(socket.socket())
        listener.bind((servers.HOST, 0))
        listener.listen(0)
        for _ in range(3):
            caller = open_.enter_context(socket.socket())
            caller.setblocking(False)  # noqa: FBT003 - the method's own way
            with contextlib.suppress(BlockingIOError):
                caller.connect(listener.getsockname())
        yield {"PGHOST": servers.HOST, "PGPORT": str(listener.getsockname()[1])}


@pytest.mark.fault("A007")
def test_a007_packets_that_vanish_end_at_the_deadline(
    run: Run, migrations: WriteMigrations
) -> None:
    """Not after the two minutes that a kernel goes on asking."""
    migrations(ONE)
    with black_hole() as nowhere:
        result = run(env={**nowhere, "PREFLIGHT_WAIT_TIMEOUT_S": "1"}, timeout=20)

    assert (10, "server.not_ready") == (result.code, result.finished["error"]["code"])


class Refuses(faults.Fault):
    """Answers the first logins with an error of the server's."""

    def __init__(self, code: bytes, message: bytes, times: int) -> None:
        """Let everybody in after so many."""
        self.answer = faults.refusal(code, message)
        self.logins, self.times = itertools.count(), times

    def startup(self, message: bytes) -> bytes | None:
        """Refuse, or go on."""
        del message
        return self.answer if next(self.logins) < self.times else None


def test_server_that_is_not_ready_yet_is_waited_for_in_any_language(
    run: Run, server: servers.Server, migrations: WriteMigrations
) -> None:
    """57P03 passes, whatever the words are."""
    migrations(ONE)
    refuses = Refuses(b"57P03", b"das Datenbanksystem erholt sich", 2)
    with faults.through(server, refuses) as proxy:
        result = run(env={**QUICKLY, **proxy.env()})

    assert (0, ["001_one"]) == (result.code, result.finished["applied"]), str(result)
    assert "server.waiting" in result.names


def sqlstates(events: list[program.Event]) -> set[str]:
    """Return the codes of the server's that these events tell of."""
    return {each["sqlstate"] for each in events if "sqlstate" in each}


@pytest.mark.fault("A010")
def test_a010_server_that_starts_or_recovers_is_waited_for(
    start: Start,
    start_server: StartServer,
    create_database: CreateDatabase,
    migrations: WriteMigrations,
) -> None:
    """One that replays its WAL after it was stopped, and one whose session was killed."""
    migrations(ONE)
    server = start_server()
    database = create_database(server, "app")
    wal = server.home / "wal"  # while it is not there, the archive does not answer
    server.configure(restore_command=f"until test -e {wal}; do sleep 0.05; done; false")
    env = {**QUICKLY, **database.env()}

    def goes_on(process: program.Process) -> None:
        """Let the server be ready when it has told the run that it is not."""
        faults.until(lambda: "57P03" in sqlstates(process.events), "the run was refused")
        wal.touch()

    server.stop()
    server.put("recovery.signal", "")
    process = start(env=env)
    watch = threading.Thread(target=goes_on, args=(process,))
    watch.start()
    server.start()  # returns when it is ready
    watch.join()
    started = process.wait()

    wal.unlink()
    server.put("recovery.signal", "")
    migrations({"002_two.sql": "CREATE TABLE two (id int);\n"})
    with contextlib.suppress(psycopg.OperationalError), server.connect() as session:
        os.kill(session.info.backend_pid, signal.SIGKILL)
        session.execute("SELECT pg_sleep(60)")
    process = start(env=env)
    goes_on(process)
    recovered = process.wait()

    said = server.log.read_text()
    assert (0, ["001_one"]) == (started.code, started.finished["applied"]), str(started)
    assert "FATAL:  the database system is starting up" in said
    assert (0, ["002_two"]) == (recovered.code, recovered.finished["applied"]), str(recovered)
    assert "FATAL:  the database system is in recovery mode" in said


@pytest.mark.fault("A027")
def test_a027_pooler_whose_server_is_down_is_waited_for(
    run: Run, server: servers.Server, migrations: WriteMigrations
) -> None:
    """08P01 may be anything; that nobody answers behind it passes."""
    migrations(ONE)
    refuses = Refuses(b"08P01", b"server login has been failed, try again later", 2)
    with faults.through(server, refuses) as proxy:
        later = run("check", env=proxy.env())
    with faults.through(server, Refuses(b"08P01", b"query_wait_timeout", 1000)) as proxy:
        never = run("check", env={**proxy.env(), "PREFLIGHT_WAIT_TIMEOUT_S": "1"})

    assert 3 == later.code, str(later)
    assert "server.waiting" in later.names
    assert (10, "server.not_ready") == (never.code, never.finished["error"]["code"])


@pytest.mark.fault("A029")
def test_a029_connection_that_is_cut_while_the_server_works_is_lost(
    start: Start,
    run: Run,
    server: servers.Server,
    database: servers.Database,
    migrations: WriteMigrations,
) -> None:
    """13, the server notices within seconds, and the next run does it."""
    asleep = (
        "SELECT pid FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event = 'PgSleep'"
    )
    migrations({"001_nap.sql": "CREATE TABLE nap (id int);\nSELECT pg_sleep(600);\n"})
    with faults.through(server, faults.Fault()) as proxy:
        process = start(env={**QUICKLY, **proxy.env(), "PREFLIGHT_WAIT_TIMEOUT_S": "2"})
        faults.until(lambda: database.query(asleep), "the file sleeps")
        proxy.close()
        cut = process.wait()
    faults.until(lambda: not database.query(asleep), "the server has noticed")
    migrations({"001_nap.sql": "CREATE TABLE nap (id int);\n"})
    again = run(env=QUICKLY)

    assert (13, "connection.lost") == (cut.code, cut.finished["error"]["code"]), str(cut)
    assert (0, ["001_nap"]) == (again.code, again.finished["applied"]), str(again)


@pytest.mark.fault("A030")
def test_a030_server_that_is_too_old_is_refused_by_its_version(
    run: Run, migrations: WriteMigrations, backup_dir: Path
) -> None:
    """PostgreSQL 12 itself: good enough to look; the versions that will do are named."""
    migrations(ONE)
    try:
        server = servers.start(12)
    except servers.Unavailable as reason:
        tools.lacking(str(reason))
    database = servers.Database(server, "postgres")
    looked, refused = run("check", env=database.env()), run(env=database.env())
    made = database.query("SELECT nspname FROM pg_namespace WHERE nspname = 'preflight'")
    server.remove()

    assert 3 == looked.code, str(looked)
    require_too_old(refused)
    assert ([], []) == (made, list(backup_dir.iterdir()))


class SaysItIsOld(faults.Fault):
    """Leads to a server of 17, and gives another version wherever that one gives its own."""

    def to_client(self, kind: bytes, message: bytes) -> bytes:
        """Change what the login and the answers say; nothing gets longer."""
        if kind in {b"S", b"D"}:
            return re.sub(rb"\b17(00\d\d|\.\d\d)\b", rb"12\1", message)
        return message


@pytest.mark.fault("A030")
def test_a030_server_that_says_it_is_too_old_is_refused(
    run: Run, server: servers.Server, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Where there is no such server any more."""
    migrations(ONE)
    with faults.through(server, SaysItIsOld()) as proxy:
        refused = run(env=proxy.env())

    require_too_old(refused)
    assert [None] == database.query("SELECT to_regnamespace('preflight')")


def require_too_old(refused: program.Result) -> None:
    """Raise AssertionError unless a run was refused for the server's version, without waiting."""
    error = refused.finished["error"]
    assert (22, "target.version") == (refused.code, error["code"]), str(refused)
    assert "PostgreSQL 12 is not supported" == error["message"]
    assert "Supported: 13 to 18." == error["hint"]
    assert "server.waiting" not in refused.names
