"""Who is in the way of a file: looked at again with each attempt, and only while he is there."""

from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from preflight.base.config import Config
from preflight.files.migrations import Migration, Script
from preflight.files.planned import Blocker
from preflight.server import sessions, watch
from tests import faults, servers
from tests.conftest import CreateDatabase, Run, Start, StartServer, WriteMigrations

LOCK = b"LOCK TABLE t"
VACUUM = "autovacuum of public.a, to prevent wraparound"


def test_attempt_is_looked_at_at_once_and_who_has_ended_is_not_named(
    database: servers.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was seen in an earlier attempt counts for a later one as long as his session lives."""
    monkeypatch.setattr(watch, "LOOK_EVERY_S", 600.0)
    database.script("CREATE TABLE t ()")
    target = {name: str(value) for name, value in conninfo_to_dict(database.conninfo()).items()}
    config = Config(target, {}, Path("/nowhere"), run_id="run", lock_timeout_ms=200)
    file = Migration(1, "001_a", Script("001_a.sql", LOCK, ""))
    with ExitStack() as stack:
        first, second, waiter = (
            stack.enter_context(database.server.connect(database.name)) for _ in range(3)
        )
        session = stack.enter_context(sessions.connect(config))
        first.execute(b"BEGIN; " + LOCK)
        wait_for(database, waiter, first)
        seen = stack.enter_context(watch.over(session, file))
        seen.pid = waiter.info.backend_pid
        seen.begin(1)
        faults.until(lambda: pids(seen) == [first.info.backend_pid], "the first is seen")
        seen.begin(1)
        seen.recall(session)
        assert [first.info.backend_pid] == pids(seen)
        waiter.close()
        ended = first.info.backend_pid
        first.close()
        there = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)"
        faults.until(lambda: database.query(there, ended) == [False], "it has ended")
        seen.recall(session)
        assert [] == pids(seen)
        second.execute(b"BEGIN; " + LOCK)
        waiter = stack.enter_context(database.server.connect(database.name))
        wait_for(database, waiter, second)
        seen.pid = waiter.info.backend_pid
        seen.tried.set()
        faults.until(lambda: pids(seen) == [second.info.backend_pid], "the second is seen")
        waiter.close()


def pids(seen: watch.Watch) -> list[int]:
    """Return whom a lock timeout would be blamed on."""
    return [each.pid for each in seen.blockers("55P03")]


def wait_for(
    database: servers.Database, waiter: psycopg.Connection, holder: psycopg.Connection
) -> None:
    """Have one session wait for the other's lock."""
    waiter.execute("BEGIN")
    waiter.pgconn.send_query(LOCK)
    query = "SELECT %s::int = ANY (pg_blocking_pids(%s))"
    both = (holder.info.backend_pid, waiter.info.backend_pid)
    faults.until(lambda: database.query(query, *both) == [True], "it waits")


def test_autovacuum_that_must_be_done_is_named(
    run: Run,
    start: Start,
    start_server: StartServer,
    create_database: CreateDatabase,
    migrations: WriteMigrations,
) -> None:
    """Every other one gives way by itself; this one begins anew where it is ended."""
    database = create_database(start_server(autovacuum_naptime=1))
    slow = "autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1"
    database.script(
        "CREATE TABLE a WITH (autovacuum_enabled = off, autovacuum_freeze_max_age = 100000, "
        f"{slow}) AS SELECT repeat('x', 2000) FROM generate_series(1, 2000); "
        "CREATE TEMP TABLE n (); DO $$ BEGIN FOR i IN 1..100100 LOOP "
        "BEGIN INSERT INTO n DEFAULT VALUES; EXCEPTION WHEN OTHERS THEN NULL; END; END LOOP; END $$"
    )
    migrations({"001_a.sql": "DROP TABLE a;"})
    ours = database.env() | {"PREFLIGHT_BACKUP": "off", "PREFLIGHT_FIRST_CONTACT": "pending"}
    ours["PREFLIGHT_LOCK_TIMEOUT_MS"] = "60000"
    at_work = "FROM pg_stat_progress_vacuum WHERE relid = 'a'::regclass"
    faults.until(lambda: bool(database.query(f"SELECT 1 {at_work}")), "the autovacuum is at work")

    (planned,) = run("plan", env=ours).event("statement.planned")
    waiting = start("up", env=ours)
    told = waiting.wait_for_event("migration.blocked")
    database.query(f"SELECT pg_terminate_backend(pid) {at_work}")

    assert 0 == waiting.wait().code
    for event in (planned, told):
        assert [VACUUM] == [each["kind"] for each in event["blocked_by"]]


def test_autovacuum_that_must_be_done_is_not_to_be_ended() -> None:
    """Who reads what is in the way and what to do about it is not told to end it."""
    must, other = Blocker(7, state="active", age_s=3.0, kind=VACUUM), Blocker(8, "psql")

    assert f"pid 7 ({VACUUM}, active, 3.0 s), pid 8 (psql, " in watch.named([must, other])
    assert watch.ending([must]).startswith("let the autovacuum finish (ended, it starts anew")
    assert ["end the blocker"] * 2 == [watch.ending(each) for each in ([], [must, other])]
