"""A synchronous standby that is gone: who does not wait for it is not made to; who does, ends."""

import signal

import pytest

from tests import faults, servers
from tests.conftest import CreateDatabase, Run, Start, StartServer, WriteMigrations

QUICKLY = {"PREFLIGHT_BACKUP": "off", "PREFLIGHT_FIRST_CONTACT": "pending"}
OUR_LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"


@pytest.mark.fault("F130")
def test_commit_waits_for_the_standby_that_the_role_waits_for(
    run: Run,
    start: Start,
    start_server: StartServer,
    create_database: CreateDatabase,
    migrations: WriteMigrations,
) -> None:
    """`local` is let be; `on` waits and says so, and a stop ends the wait, not the COMMIT."""
    server = start_server(synchronous_standby_names="gone", synchronous_commit="local")
    database = create_database(server)
    migrations({"001_one.sql": "CREATE TABLE one ();"})
    alone = run(env={**QUICKLY, **database.env()})
    migrations({"002_two.sql": "CREATE TABLE two ();"})
    process = start(env={**QUICKLY, **database.env(), "PGOPTIONS": "-c synchronous_commit=on"})
    told = process.wait_for_event("server.waiting")
    process.signal(signal.SIGTERM)
    stopped = process.wait()

    assert 0 == alone.code, str(alone)
    assert (
        "COMMIT waits for a synchronous standby: synchronous_standby_names=gone" == told["reason"]
    )
    assert (0, ["002_two"]) == (stopped.code, stopped.finished["applied"]), str(stopped)
    assert [1, 2] == database.query("SELECT version FROM preflight.migrations ORDER BY version")
    assert "canceling wait for synchronous replication due to user request" in str(stopped)
    faults.until(lambda: database.query(OUR_LOCKS) == [0], "the lock is free")


def test_role_that_waits_for_more_than_the_disk_is_let_be(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """`remote_apply` promises that a standby which is read has the tables when `up` ends."""
    database.script(f"ALTER DATABASE {database.name} SET synchronous_commit = remote_apply")
    ok = "current_setting('synchronous_commit') = 'remote_apply' AS ok"
    migrations(
        {
            "001_one.sql": "CREATE TABLE one ();\nSET synchronous_commit = off;\n",
            "001_one_verify.sql": f"SELECT 's' AS suite, 'it waits' AS \"check\", {ok};\n",
        }
    )
    result = run(env=QUICKLY)

    assert 0 == result.code, str(result)
