"""One run at a time: the lock is waited for, its holder named, its loss noticed."""

import signal
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from preflight.server import lock
from tests import faults, servers
from tests.conftest import Run, Start, WriteMigrations
from tests.program import Process

ONE = {"001_one.sql": "CREATE TABLE one (id int);\n"}
QUICKLY = {"PREFLIGHT_BACKUP": "off"}
RUNS = "locktype = 'advisory' AND objid <> 1"


@contextmanager
def held(database: servers.Database, schema: str = "preflight") -> Iterator[psycopg.Connection]:
    """Hold the lock as a run elsewhere would."""
    name = "pg-preflight@elsewhere"
    with psycopg.connect(database.conninfo(application_name=name), autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", [lock.key(schema)])
        yield holder


@pytest.mark.fault("B032", "B040")
def test_busy_lock_names_its_holder(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Code 11 at the deadline, with what an operator needs to find the other run and end it."""
    migrations(ONE)
    with held(database) as holder:
        result = run(env={"PREFLIGHT_LOCK_WAIT_S": "0.5"})
        pid = holder.info.backend_pid

    busy = result.event("lock.busy")[0]
    error = result.finished["error"]
    assert (11, "lock.busy") == (result.code, error["code"])
    assert (pid, "pg-preflight@elsewhere") == (busy["holder_pid"], busy["holder"])
    assert busy["holder_age_s"] >= 0
    assert f"pid {pid}, 'pg-preflight@elsewhere'" in error["message"]
    assert "connected for" in error["message"]
    assert f"pg_terminate_backend({pid})" in error["hint"]
    assert "backup.started" not in result.names


def test_no_patience_is_no_wait(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """LOCK_WAIT_S=0 looks once."""
    migrations(ONE)
    with held(database):
        result = run(env={"PREFLIGHT_LOCK_WAIT_S": "0"})

    assert 11 == result.code, str(result)


def test_holder_of_another_role_is_named_as_far_as_it_shows(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Without pg_monitor the age of somebody else's session is hidden; its name is not."""
    migrations(ONE)
    role = f"owner_{database.name}"
    database.script(
        f"CREATE ROLE {role} LOGIN PASSWORD 'x';"
        f' GRANT CREATE ON DATABASE "{database.name}" TO {role}'
    )
    with held(database):
        result = run(env={**database.env(role, "x"), "PREFLIGHT_LOCK_WAIT_S": "0"})
    database.script(f"DROP OWNED BY {role}; DROP ROLE {role}")

    assert 11 == result.code, str(result)
    assert "pg-preflight@elsewhere" in result.finished["error"]["message"]


def test_who_waits_is_told_what_the_holder_does(
    run: Run, start: Start, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Whoever finds the lock held learns which step the other run is at, and its host as before."""
    migrations({"001_wait_for_me.sql": "SELECT pg_advisory_xact_lock(1);"})
    database.script("CREATE TABLE one (id int)")
    at_once = {"PREFLIGHT_LOCK_WAIT_S": "0", "PREFLIGHT_FIRST_CONTACT": "pending"}
    with psycopg.connect(database.conninfo()) as other:
        other.execute("SELECT pg_advisory_lock(1)")
        other.execute("LOCK TABLE one IN ACCESS EXCLUSIVE MODE")
        holder = start(env={"PREFLIGHT_FIRST_CONTACT": "pending"})
        holder.wait_for_event("backup.progressed")
        first = run(env=at_once)
        other.rollback()
        holder.wait_for_event("migration.started")
        second = run(env=at_once)
    holder.wait()

    found = [each for result in (first, second) for each in result.event("lock.busy")]
    assert ["backing up", "migrating"] == [each["holder_doing"] for each in found]
    assert [f"pg-preflight@{socket.gethostname()}"[:40]] * 2 == [e["holder"][:40] for e in found]
    assert "migrating" in second.finished["error"]["message"]


def test_nothing_pending_needs_no_lock(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Every pod start looks; only work queues."""
    migrations(ONE)
    run(env=QUICKLY)
    with held(database):
        result = run(env={"PREFLIGHT_LOCK_WAIT_S": "0"})

    assert 0 == result.code, str(result)


@pytest.mark.fault("B043")
def test_apps_with_schemas_of_their_own_do_not_wait_for_each_other(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """The schema is part of the lock's key."""
    migrations(ONE)
    with held(database):
        result = run(env={**QUICKLY, "PREFLIGHT_SCHEMA": "other", "PREFLIGHT_LOCK_WAIT_S": "0"})

    assert 0 == result.code, str(result)
    assert "lock.busy" not in result.names
    assert [1] == database.query("SELECT version FROM other.migrations")


@pytest.mark.parametrize(
    ("sessions", "schema", "warned"),
    [(-1, "app", 0), (1, "public", 1)],
    ids=["renewed", "no other to be had"],
)
def test_other_run_is_waited_for(  # noqa: PLR0913, PLR0917 -- a case each
    start: Start,
    database: servers.Database,
    migrations: WriteMigrations,
    sessions: int,
    schema: str,
    warned: int,
) -> None:
    """It ends, and the work is looked at again; what it gave new sessions is there, too."""
    role = database.limited(sessions, "app", "public")
    migrations({**ONE, "002_two.sql": "CREATE TABLE two (id int);\n"})
    with held(database) as holder:
        process = start(env={**QUICKLY, **database.env(role, "x")})
        process.wait_for_event("lock.busy")
        holder.execute(f"ALTER DATABASE {database.name} SET search_path = app".encode())
    result = process.wait()
    found = database.query("SELECT schemaname FROM pg_tables WHERE tablename IN ('one', 'two')")
    database.script(f"DROP OWNED BY {role}; DROP ROLE {role}")

    assert 0 == result.code, str(result)
    assert [schema] * 2 == found
    assert ["lock.busy", "lock.acquired"] == [
        each for each in result.names if each.startswith("lock.")
    ]
    assert warned == len([e for e in result.events if "new sessions" in str(e.get("notice"))])


@pytest.mark.fault("B034")
def test_killed_holder_frees_the_lock_in_the_middle_of_a_statement(
    start: Start, database: servers.Database, migrations: WriteMigrations
) -> None:
    """The server looks once a second whether its client is still there, and ends the statement."""
    migrations({"001_nap.sql": "SELECT pg_sleep(current_setting('app.nap')::float8);\n"})
    database.script(f"ALTER DATABASE \"{database.name}\" SET app.nap = '600'")
    holder = start(env=QUICKLY)
    faults.until(lambda: napping(database), "the migration sleeps")
    database.script(f"ALTER DATABASE \"{database.name}\" SET app.nap = '0'")
    waiter = start(env=QUICKLY)
    waiter.wait_for_event("lock.busy")
    holder.kill()
    result = waiter.wait()

    assert 0 == result.code, str(result)
    assert [(1, "done")] == database.query("SELECT version, state FROM preflight.migrations")


def napping(database: servers.Database) -> bool:
    """Tell whether a migration sleeps."""
    return [1] == database.query(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND wait_event = 'PgSleep'"
    )


@pytest.mark.fault("B036")
def test_waiter_does_not_hold_an_index_up(
    start: Start, run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """CREATE INDEX CONCURRENTLY waits for every open snapshot: a blocked waiter would be one."""
    migrations(ONE)
    run(env=QUICKLY)
    migrations(
        {
            "002_index.sql": "-- preflight: no-transaction\n"
            "CREATE INDEX CONCURRENTLY one_id ON one (id);\n"
        }
    )
    with database.server.connect(database.name) as reader, reader.transaction():
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT FROM one")
        builder = start(env=QUICKLY)
        faults.until(
            lambda: database.query("SELECT pid FROM pg_stat_progress_create_index"),
            "the index is being built",
        )
        waiter = start(env=QUICKLY)
        waiter.wait_for_event("lock.busy")
    results = [builder.wait(), waiter.wait()]

    assert [0, 0] == [each.code for each in results], "\n".join(map(str, results))
    assert [True] == database.query(
        "SELECT indisvalid FROM pg_index WHERE indexrelid = 'one_id'::regclass"
    )


UNREAD = "DO $$BEGIN EXECUTE 'SELECT pg_advisory_' || 'unlock_all()'; END$$;\n"


@pytest.mark.fault("B038")
@pytest.mark.parametrize("gives", ["", "ALTER DATABASE {} SET work_mem = '5MB';\n"])
def test_lock_that_a_file_let_go_is_missed(
    run: Run, database: servers.Database, migrations: WriteMigrations, gives: str
) -> None:
    """Nothing runs without it: the run ends with 13, and the next one goes on where it stopped."""
    migrations(
        {
            "001_careless.sql": f"CREATE TABLE one (id int);\n{UNREAD}"
            + gives.format(database.name),
            "002_two.sql": "CREATE TABLE two (id int);\n",
        }
    )
    result = run(env=QUICKLY)
    applied = database.query("SELECT version FROM preflight.migrations")
    again = run(env=QUICKLY)

    assert (13, "lock.lost") == (result.code, result.finished["error"]["code"])
    assert "Run again: it goes on behind what is recorded" in result.finished["error"]["hint"]
    assert [1] == applied
    assert 0 == again.code, str(again)
    assert [1, 2] == database.query("SELECT version FROM preflight.migrations ORDER BY 1")


def test_run_that_came_between_two_sessions_is_noticed(
    start: Start, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Where a file needs a new session, and another run has the lock first, it is planned again."""
    migrations(
        {
            "001_a.sql": "SELECT pg_advisory_xact_lock(1);\n"
            f"ALTER DATABASE {database.name} SET work_mem = '5MB';",
            "002_b.sql": "CREATE TABLE b ();",
        }
    )
    key = lock.key("preflight")
    with psycopg.connect(database.conninfo(), autocommit=True) as other, ThreadPoolExecutor() as us:
        other.execute("SELECT pg_advisory_lock(1)")
        process = start(env=QUICKLY)
        process.wait_for_event("migration.started")

        def come() -> None:
            with psycopg.connect(database.conninfo(), autocommit=True) as comes:
                comes.execute("SELECT pg_advisory_lock(%s)", [key])
                comes.execute("UPDATE preflight.journal SET id = DEFAULT")

        came = us.submit(come)
        waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'advisory' AND objid <> 1"
        faults.until(lambda: database.query(waits), "another waits for the lock")
        other.execute("SELECT pg_advisory_unlock(1)")
        came.result()
        result = process.wait()

    assert 0 == result.code, str(result)
    planned = [each["pending"] for each in result.event("plan.made")]
    assert [["001_a", "002_b"]] * 2 + [["002_b"]] * 2 == planned


@contextmanager
def met(
    start: Start, database: servers.Database, asks: str, asking: str
) -> Iterator[tuple[Process, psycopg.Connection, Future[Any]]]:
    """Yield a run that is let go on in its first file once another session asks for its lock.

    The file waits for the advisory lock 1; `asking` finds who asks. With both what is asked.
    """
    with (
        psycopg.connect(database.conninfo(), autocommit=True) as other,
        psycopg.connect(database.conninfo(), autocommit=True) as comes,
        ThreadPoolExecutor() as us,
    ):
        other.execute("SELECT pg_advisory_lock(1)")
        process = start(env=QUICKLY)
        process.wait_for_event("migration.started")
        came = us.submit(comes.execute, asks.encode())
        faults.until(lambda: database.query(asking), "another asks for the lock")
        other.execute("SELECT pg_advisory_unlock(1)")
        yield process, comes, came


@pytest.fixture
def overtaken(
    start: Start, database: servers.Database, migrations: WriteMigrations
) -> Iterator[tuple[Process, psycopg.Connection]]:
    """Yield a run whose next file gets a new session, and who waited for the lock before that."""
    migrations(
        {
            "001_a.sql": "SELECT pg_advisory_xact_lock(1);\nSET LOCAL app.a = 'x';",
            "002_b.sql": "CREATE TABLE b ();",
        }
    )
    waits = f"SELECT {{}} FROM pg_locks WHERE NOT granted AND {RUNS} AND pid <> {{}}".format
    asks = f"SELECT pg_advisory_lock({lock.key('preflight')})"
    with met(start, database, asks, waits(1, 0)) as (process, comes, came):
        came.result()
        pid = comes.info.backend_pid
        faults.until(lambda: database.query(waits(1, pid)), "the new session waits, too")
        yield process, comes


def test_new_session_that_may_not_wait_for_the_lock_asks_for_it_again(
    database: servers.Database, overtaken: tuple[Process, psycopg.Connection]
) -> None:
    """As any other run that waits: who has it is told of, and done with what he has done."""
    process, comes = overtaken
    pid = comes.info.backend_pid
    database.query(f"SELECT pg_cancel_backend(pid) FROM pg_locks WHERE NOT granted AND {RUNS}")
    busy = process.wait_for_event("lock.busy")
    comes.close()
    result = process.wait()

    assert 0 == result.code, str(result)
    assert pid == busy["holder_pid"]
    assert 2 == len(result.event("lock.acquired"))


class _NobodyQueues(faults.Fault):
    """Ends each session that is to wait for the lock, before it does."""

    def to_server(self, kind: bytes, message: bytes) -> bytes:
        """Let all others be."""
        del kind
        if b"'lock_timeout'" in message:
            raise faults.Cut
        return message


def test_new_session_that_ends_before_it_waits_costs_no_lock(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """The old one goes on with what it has, and says so."""
    migrations(
        {
            "001_a.sql": f"ALTER DATABASE {database.name} SET work_mem = '5MB';",
            "002_b.sql": "CREATE TABLE b ();",
        }
    )
    with faults.through(database.server, _NobodyQueues()) as proxy:
        result = run(env={**QUICKLY, **proxy.env()})

    assert (0, 1) == (result.code, len(result.event("lock.acquired"))), str(result)
    notices = [each.get("notice", "") for each in result.event("migration.progressed")]
    assert 1 == sum("settings from before" in each for each in notices)


class _HeldFromTheQueue(faults.Held):
    """Holds the new session's wait for the lock, and counts how often the old one looks for it."""

    looks = 0

    def to_server(self, kind: bytes, message: bytes) -> bytes:
        """Let all others be."""
        self.looks += b"NOT l.granted" in message
        return super().to_server(kind, message)


def test_old_session_has_the_lock_until_the_new_one_waits_for_it(
    start: Start, database: servers.Database, migrations: WriteMigrations
) -> None:
    """However long it takes to come to wait: who asks meanwhile gets nothing."""
    migrations({"001_a.sql": "SET LOCAL app.a = 'x';", "002_b.sql": "CREATE TABLE b ();"})
    asks = f"SELECT pg_try_advisory_lock({lock.key('preflight')})"
    held, got = _HeldFromTheQueue(b"'lock_timeout'"), list[bool]()

    def over() -> bool:
        got.extend(database.query(asks))
        return any(got) or held.looks > 3

    with faults.through(database.server, held) as proxy:
        process = start(env={**QUICKLY, **proxy.env()})
        assert held.reached.wait(60)
        faults.until(over, "the old session looks for the new one")
        held.free.set()
        result = process.wait()

    assert (0, {False}) == (result.code, set(got)), str(result)


def test_stop_leaves_no_session_that_waits_for_the_lock(
    database: servers.Database, overtaken: tuple[Process, psycopg.Connection]
) -> None:
    """Neither the old one nor the new one is there afterwards; what was done stays."""
    process, _ = overtaken
    process.signal(signal.SIGTERM)
    result = process.wait()

    assert 143 == result.code, str(result)
    ours = "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'pg-preflight%'"
    faults.until(lambda: not database.query(ours), "all sessions are gone")
    assert [(1, "done")] == database.query("SELECT version, state FROM preflight.migrations")


def test_nobody_gets_the_lock_between_two_sessions(
    start: Start, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Whoever asks for it all the time has it when the last file is done, and no moment earlier."""
    gives = ["SET LOCAL app.a = 'x'", f"ALTER DATABASE {database.name} SET work_mem = '{{}}MB'"]
    texts = ["SELECT pg_advisory_xact_lock(1)", *(gives * 4), "CREATE TABLE b ()"]
    migrations({f"{n:03}_x.sql": text.format(n) for n, text in enumerate(texts, 1)})
    polls = f"""DO $$ BEGIN LOOP EXIT WHEN pg_try_advisory_lock({lock.key("preflight")});
     END LOOP; END $$"""
    with met(start, database, polls, _POLLS) as (process, comes, came):
        came.result()
        done = database.query("SELECT count(*) FROM preflight.migrations WHERE state = 'done'")
        comes.close()
        result = process.wait()

    assert 0 == result.code, str(result)
    assert [len(texts)] == done
    assert 1 + 2 * 4 == len(result.event("lock.acquired"))
    assert "lock.busy" not in result.names


_POLLS = "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'DO%'"


def test_lock_that_a_rollback_file_let_go_is_missed(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """What comes after it is not taken back without the lock: 13, and the next run goes on."""
    migrations(
        {
            "001_one.sql": "CREATE TABLE one (id int);\n",
            "001_one_rollback.sql": "DROP TABLE one;\n",
            "002_two.sql": "CREATE TABLE two (id int);\n",
            "002_two_rollback.sql": "DROP TABLE two;\nSELECT pg_advisory_unlock_all();\n",
        }
    )
    run(env=QUICKLY)
    result = run("rollback", "--to", "0", env=QUICKLY)
    left = database.query("SELECT version FROM preflight.migrations")
    again = run("rollback", "--to", "0", env=QUICKLY)

    assert (13, "lock.lost") == (result.code, result.finished["error"]["code"]), str(result)
    assert [1] == left
    assert 0 == again.code, str(again)
    assert [None] == database.query("SELECT to_regclass('one')")
