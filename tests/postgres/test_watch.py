"""Who is in the way of a file: looked at again with each attempt, and only while he is there."""

from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from preflight.base.config import Config
from preflight.files.migrations import Migration, Script
from preflight.server import sessions, watch
from tests import faults, servers

LOCK = b"LOCK TABLE t"


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
