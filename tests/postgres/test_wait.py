"""`wait`: for app pods whose migrations somebody else runs."""

from collections.abc import Iterator

import psycopg
import pytest
from psycopg.sql import SQL, Identifier, Literal

from tests import servers
from tests.conftest import Run, Start, WriteMigrations

SECRET = "p w"  # noqa: S105 - of a role that lives for a test
A = {"001_a.sql": "CREATE TABLE a ();"}
B = {"002_b.sql": "CREATE TABLE b ();"}
IMPATIENT = {"PREFLIGHT_WAIT_TIMEOUT_S": "0.5"}


@pytest.fixture
def reader(database: servers.Database) -> Iterator[dict[str, str]]:
    """Give the environment of a role that may only connect, without a backup directory."""
    name = f"{database.name}_reader"
    with database.server.connect() as connection:
        connection.execute(
            SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(Identifier(name), Literal(SECRET))
        )
    yield {"PGUSER": name, "PGPASSWORD": SECRET, "PREFLIGHT_BACKUP_DIR": "/nonexistent"}
    with database.server.connect() as connection:
        connection.execute(SQL("DROP ROLE {}").format(Identifier(name)))


def test_server_alone_is_enough_without_a_schema(
    run: Run, reader: dict[str, str], database: servers.Database
) -> None:
    """No files, no history, no rights: it only has to let us in."""
    env = reader | {"PREFLIGHT_MIGRATIONS_DIR": "/nonexistent"}
    database.script("CREATE SCHEMA preflight; CREATE VIEW preflight.migrations AS SELECT 1 AS x")

    assert 0 == run("wait", env=env).code


@pytest.mark.parametrize("schema", [["--schema"], ["--schema", "2"]])
def test_schema_is_waited_for_until_another_run_made_it(
    run: Run,
    start: Start,
    migrations: WriteMigrations,
    reader: dict[str, str],
    schema: list[str],
) -> None:
    """3 at the deadline; 0 as soon as it is there; with no right but CONNECT."""
    migrations(A | B)
    late = run("wait", *schema, env=reader | IMPATIENT)
    process = start("wait", *schema, env=reader)
    process.wait_for_event("server.waiting")
    assert 0 == run("up").code
    waited = process.wait()
    at_once = run("wait", *schema, env=reader)

    assert (3, "schema.pending") == (late.code, late.finished["error"]["code"])
    assert [0, 0] == [waited.code, at_once.code]
    assert [] == at_once.event("server.waiting")


def test_history_that_somebody_locks_is_waited_for(
    run: Run,
    start: Start,
    migrations: WriteMigrations,
    reader: dict[str, str],
    connection: psycopg.Connection,
) -> None:
    """Waiting goes on to its deadline, whatever LOCK_RETRY_S; a look as long as that: then 12."""
    migrations(A)
    assert 0 == run("up", env={"PREFLIGHT_BACKUP": "off"}).code
    soon = {"PREFLIGHT_LOCK_TIMEOUT_MS": "100", "PREFLIGHT_LOCK_RETRY_S": "0"}
    connection.execute("BEGIN; LOCK TABLE preflight.migrations")
    late = run("wait", "--schema", env=reader | soon | IMPATIENT)
    busy = run("check", env=soon)
    process = start("wait", "--schema", env=reader | soon)
    patient = start("up", env=soon | {"PREFLIGHT_LOCK_RETRY_S": "60"})
    held = process.wait_for_event("server.waiting")
    patient.wait_for_event("server.waiting")
    connection.execute("COMMIT")

    assert [0, 0] == [process.wait().code, patient.wait().code]
    pid = connection.info.backend_pid
    assert [pid] == [each["pid"] for each in held["blocked_by"]]
    assert "WAIT_TIMEOUT_S" in late.finished["error"]["hint"]
    for ended in (late, busy):
        assert (12, "database.busy") == (ended.code, ended.finished["error"]["code"]), str(ended)
        assert f"pid {pid} (" in ended.finished["error"]["message"]


def test_version_is_what_counts_not_the_files(
    run: Run, migrations: WriteMigrations, reader: dict[str, str]
) -> None:
    """An app that needs 1 starts though 2 is pending, and one that needs 3 does not."""
    migrations(A)
    run("up")
    migrations(B)
    env = reader | IMPATIENT

    assert [0, 3, 3] == [run("wait", "--schema", *v, env=env).code for v in (["1"], ["3"], [])]


def test_text_is_not_waited_for_where_versions_are_numbers(
    run: Run, migrations: WriteMigrations, reader: dict[str, str]
) -> None:
    """20 at once; where the files cannot be read it may be the version of another tool's folder."""
    migrations(A)
    reader |= IMPATIENT
    unread = reader | {"PREFLIGHT_MIGRATIONS_DIR": "/nonexistent"}
    found = [run("wait", "--schema", "latest", env=env) for env in (reader, unread)]

    codes = [(each.code, each.finished["error"]["code"]) for each in found]
    assert [(20, "config.arguments"), (3, "schema.pending")] == codes
    assert "there is no version 'latest'" in found[0].finished["error"]["message"]


def test_part_of_a_file_is_not_enough(
    run: Run, migrations: WriteMigrations, reader: dict[str, str]
) -> None:
    """A migration that stopped half way is not applied."""
    migrations({"001_a.sql": "-- preflight: no-transaction\nCREATE TABLE a (); SELECT 1 / 0;"})
    assert 31 == run("up").code

    assert 3 == run("wait", "--schema", env=reader | IMPATIENT).code


def test_conflict_is_told_at_once(
    run: Run, migrations: WriteMigrations, reader: dict[str, str]
) -> None:
    """An edited file is 26, a newer migration that breaks this version 28: waiting cannot help."""
    folder = migrations(A | {"002_b.sql": "-- preflight: breaking\nSELECT 1;"})
    run("up")
    (folder / "002_b.sql").unlink()
    ahead = run("wait", "--schema", env=reader)
    migrations({"001_a.sql": "SELECT 1;"})
    edited = run("wait", "--schema", env=reader)

    assert [28, 26] == [ahead.code, edited.code]
