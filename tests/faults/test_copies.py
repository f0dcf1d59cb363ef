"""Where a copy may be made: never on a server that would keep its WAL, or may run full of it."""

import contextlib
from collections.abc import Iterator

import pytest

from tests import faults, program, servers
from tests.conftest import CreateDatabase, StartServer, WriteMigrations

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
