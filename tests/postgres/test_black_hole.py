"""A node that vanishes: no packet comes or goes any more, and nobody is told."""

import os
import time
from collections.abc import Iterator

import psycopg
import pytest

from tests import faults, servers
from tests.conftest import CreateDatabase, Start, StartServer, WriteMigrations

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a network of its own needs root")

PROMISED_S = 20.0
SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pg-preflight%'"
AT = "SELECT 1 FROM pg_stat_activity WHERE query LIKE %s AND state = %s AND pid <> pg_backend_pid()"


@pytest.fixture
def lonely(
    start_server: StartServer, create_database: CreateDatabase
) -> Iterator[tuple[faults.Island, servers.Database]]:
    """Give a server on an island of its own; the test and the program are there, too."""
    with faults.island() as island:
        server = start_server()
        server.configure(unix_socket_directories=str(server.home))
        server.restart()
        yield island, create_database(server, "app")
        island.connect()


@pytest.mark.fault("B035")
@pytest.mark.parametrize(
    ("sql", "there", "state"),
    [
        ("SELECT pg_sleep(3);", "SELECT pg_sleep(3)%", "active"),  # its result goes into nothing
        ("SELECT pg_sleep(600);", "SELECT pg_sleep(600)%", "active"),
        ("SELECT pg_sleep(600);", "%pg_blocking_pids%", "idle"),  # the session that watches
    ],
)
def test_vanished_node_holds_nothing_for_long(  # noqa: PLR0913, PLR0917 -- fixtures
    start: Start,
    migrations: WriteMigrations,
    lonely: tuple[faults.Island, servers.Database],
    sql: str,
    there: str,
    state: str,
) -> None:
    """Lock, transaction and sessions are gone 20 s after the black hole, whatever they did."""
    island, database = lonely
    migrations({"001_a.sql": f"CREATE TABLE a (); {sql}"})
    process = start(env={**database.env(), "PREFLIGHT_BACKUP": "off"})
    aside = database.conninfo(host=str(database.server.home))
    with psycopg.connect(aside, autocommit=True) as observer:
        faults.until(lambda: observer.execute(AT, [there, state]).fetchone(), "it is at work")
        island.cut()
        began = time.monotonic()
        process.kill()
        faults.until(
            lambda: observer.execute(SESSIONS).fetchone() == (0,), "all are gone", PROMISED_S + 15
        )
        took = time.monotonic() - began
        locks = observer.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")

        assert (0,) == locks.fetchone()
    assert took < PROMISED_S + (3 if "(3)" in sql else 0), f"{took:.1f} s"
