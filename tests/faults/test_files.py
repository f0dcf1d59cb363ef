"""Faults of migration files: gaps, rights, changes under our hands, words of another program."""

from pathlib import Path

import pytest

from tests import faults, servers
from tests.conftest import Run, Start, WriteMigrations
from tests.fakes import Fakes, run_without_privileges

QUICKLY = {"PREFLIGHT_BACKUP": "off"}


@pytest.mark.fault("D083")
def test_d083_gap_between_versions_is_fine(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """A branch that was never merged."""
    migrations({"001_a.sql": "CREATE TABLE a ();", "009_b.sql": "CREATE TABLE b ();"})

    assert (0, 0) == (run(env=QUICKLY).code, run("check").code)
    assert [1, 9] == database.query("SELECT version FROM preflight.migrations ORDER BY 1")


@pytest.mark.fault("D093")
def test_d093_file_that_may_not_be_read_is_named(
    environment: dict[str, str], database: servers.Database, migrations: WriteMigrations
) -> None:
    """It is not left out, and nothing else runs."""
    directory = migrations({"001_a.sql": "CREATE TABLE a ();", "002_b.sql": "CREATE TABLE b ();"})
    (directory / "002_b.sql").chmod(0)
    result = run_without_privileges({**environment, **QUICKLY})

    assert (25, "files.invalid") == (result.code, result.finished["error"]["code"]), str(result)
    assert "002_b.sql" in str(result.finished["error"])
    assert [None] == database.query("SELECT to_regclass('a')")


@pytest.mark.fault("D096")
def test_d096_bytes_that_were_hashed_are_the_bytes_that_run(
    start: Start, run: Run, database: servers.Database, migrations: WriteMigrations, tmp_path: Path
) -> None:
    """Whatever becomes of the file meanwhile; the next run sees an edit."""
    directory = migrations({"001_a.sql": "CREATE TABLE a ();"})
    fakes = Fakes(tmp_path / "fakes")
    fakes.hold()
    process = start(env={"PATH": fakes.path})
    faults.until((fakes.here / "held").exists, "the backup has begun")
    (directory / "001_a.sql").write_text("CREATE TABLE b ();")
    fakes.let_go()
    result = process.wait()
    again = run()

    assert 0 == result.code, str(result)
    assert [("a", None)] == database.query("SELECT to_regclass('a')::text, to_regclass('b')::text")
    assert (26, "history.conflict") == (again.code, again.finished["error"]["code"]), str(again)


@pytest.mark.fault("D098")
def test_d098_variable_of_psql_is_an_error_with_its_place(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """The server says so, and nothing of the file stays."""
    migrations({"001_a.sql": "CREATE TABLE a ();\nCREATE TABLE :name ();"})
    error = run(env=QUICKLY).finished["error"]

    assert ("migration.sql_error", "42601") == (error["code"], error["sqlstate"])
    assert "001_a.sql:2:14" in error["message"]
    assert [None] == database.query("SELECT to_regclass('a')")
