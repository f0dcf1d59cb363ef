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


def test_what_is_noted_of_a_trial_or_a_failure_waits_for_no_standby(
    run: Run,
    start_server: StartServer,
    create_database: CreateDatabase,
    migrations: WriteMigrations,
) -> None:
    """Copy and journal are made without it, and a file that fails ends with its own words."""
    server = start_server(synchronous_standby_names="gone", synchronous_commit="local")
    database = create_database(server)
    migrations({"001_one.sql": "CREATE TABLE one ();"})
    assert 0 == run(env={**QUICKLY, **database.env()}).code
    migrations({"002_two.sql": "DO $$ BEGIN PERFORM 1 / 0; END $$;"})
    waits = {**QUICKLY, **database.env(), "PGOPTIONS": "-c synchronous_commit=on"}
    tried = run(env={**waits, "PREFLIGHT_BACKUP": "required", "PREFLIGHT_REHEARSE": "always"})
    failed = run(env=waits)

    assert (27, 30) == (tried.code, failed.code), f"{tried}{failed}"
    assert [
        ("rehearsing", None),
        ("rehearsed", None),
        ("failed", "22012"),
    ] == database.query("SELECT event, sqlstate FROM preflight.journal WHERE id > 1 ORDER BY id")


def test_stop_ends_every_wait_of_a_statement_that_commits_by_itself(
    start: Start,
    start_server: StartServer,
    create_database: CreateDatabase,
    migrations: WriteMigrations,
) -> None:
    """CREATE INDEX CONCURRENTLY waits in each of its transactions; the lock is free, as is said."""
    server = start_server()
    database = create_database(server)
    database.script("CREATE TABLE t (a int)")
    migrations({"001_i.sql": "-- preflight: no-transaction\nCREATE INDEX CONCURRENTLY i ON t (a);"})
    with server.connect(database.name) as blocker:
        blocker.execute("BEGIN; SET LOCAL synchronous_commit = local; LOCK TABLE t IN SHARE MODE")
        blocker.execute("INSERT INTO t VALUES (1)")
        process = start(env={**QUICKLY, **database.env()})
        process.wait_for_event("migration.blocked")
        lose_the_standby(server)
        blocker.execute("COMMIT")
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    faults.until(lambda: database.query(waiting) == [1], "it waits for the standby")
    process.signal(signal.SIGTERM)
    stopped = process.wait()

    assert 143 == stopped.code, str(stopped)
    assert "; the lock is free" in stopped.finished["error"]["message"]
    faults.until(lambda: database.query(OUR_LOCKS) == [0], "it is")


def lose_the_standby(server: servers.Server) -> None:
    """Have every COMMIT wait from now on for a standby that is not there."""
    server.configure(synchronous_standby_names="gone")
    server.reload()

    def waits() -> bool:
        with server.connect() as other, server.connect() as probe:
            probe.pgconn.send_query(b"SELECT pg_catalog.pg_logical_emit_message(true, 'x', 'x')")
            query = "SELECT wait_event, state FROM pg_stat_activity WHERE pid = %s"
            found = ("", "active")
            while found[1] == "active" and found[0] != "SyncRep":
                found = other.execute(query, [probe.info.backend_pid]).fetchone() or ("", "")
            other.execute("SELECT pg_terminate_backend(%s)", [probe.info.backend_pid])
            probe.close()
        return found[0] == "SyncRep"

    faults.until(waits, "the server waits for a standby")


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
