"""A database that was migrated by hand, or belongs to others: adopt, run, or stop; never guess."""

from typing import Any

import psycopg
import pytest

from tests import program, servers
from tests.conftest import Run, WriteMigrations

A = {
    "001_a.sql": "CREATE TABLE a (x int, y int);",
    "001_a_verify.sql": "SELECT 'columns' AS suite, w.name AS \"check\", EXISTS (SELECT FROM "
    "information_schema.columns c WHERE c.table_name = 'a' AND c.column_name = w.name) AS ok "
    "FROM (VALUES ('x'), ('y')) w (name);\n"
    "SELECT 'keeps' AS suite, 'other is there' AS \"check\", "
    "to_regclass('other') IS NOT NULL AS ok, false AS effect",
}
B = {
    "002_b.sql": "CREATE TABLE b ();",
    "002_b_verify.sql": "SELECT 'tables' AS suite, 'b' AS \"check\", "
    "to_regclass('b') IS NOT NULL AS ok",
}
OTHER = "CREATE TABLE other (); CREATE TABLE schema_migrations (); CREATE TABLE alembic_version ();"
OURS = "SELECT count(*) FROM pg_namespace WHERE nspname = 'preflight'"


def error_of(result: program.Result) -> dict[str, Any]:
    """Return the error that a run ended with."""
    found: dict[str, Any] = result.finished["error"]
    return found


def test_what_is_there_is_adopted_and_the_rest_runs(
    any_server: servers.Server, run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """The order of the files decides: the first absent one and all after it are pending."""
    assert any_server is database.server
    database.script(OTHER + A["001_a.sql"] + "INSERT INTO a VALUES (1, 2)")
    migrations(A | B)

    before = run("check")
    result = run()

    assert (3, ["adoptable", "pending"]) == (
        before.code,
        [each["state"] for each in before.event("migration.listed")],
    )
    assert 0 == result.code, str(result)
    assert (["001_a"], ["002_b"]) == (result.finished["adopted"], result.finished["applied"])
    assert [("adopted", "done"), ("applied", "done")] == database.query(
        "SELECT how, state FROM preflight.migrations ORDER BY version"
    )
    assert ["adopted", "applied"] == database.query(
        "SELECT event FROM preflight.journal ORDER BY id"
    )
    assert [(1, 2)] == database.query("TABLE a")


def test_everything_there_is_adopted_without_a_backup(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Nothing is pending then, and the next run has nothing to do at all."""
    database.script(OTHER + A["001_a.sql"])
    migrations(A)

    result, again = run(), run()

    assert (0, 0) == (result.code, again.code)
    assert ["001_a"] == result.finished["adopted"]
    assert [] == result.event("backup.started")
    assert [] == again.event("lock.acquired")
    assert ["adopted"] == [each["state"] for each in run("check").event("migration.listed")]


@pytest.mark.parametrize(
    ("there", "checks"),
    [
        (OTHER + "CREATE TABLE a (x int)", ["y"]),  # half of the effects
        ("CREATE TABLE unrelated (); CREATE TABLE a (x int, y int)", ["other is there"]),
    ],
)
def test_half_migrated_database_is_left_alone(
    run: Run, database: servers.Database, migrations: WriteMigrations, there: str, checks: list[str]
) -> None:
    """33 names the checks; not even our schema is made."""
    database.script(there)
    migrations(A | B)

    for command in ("up", "check"):
        result = run(command)
        assert (33, "verify.partial") == (result.code, error_of(result)["code"]), str(result)
        assert checks == [each["check"] for each in result.event("check.failed")]
        assert checks[0] in error_of(result)["message"]
    assert [0] == database.query(OURS)


def test_condition_without_effect_does_not_make_a_file_half_there(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """`other` is there, which says nothing of 001: it is absent, and runs."""
    database.script(OTHER)
    migrations(A)

    result = run()

    assert (0, ["001_a"]) == (result.code, result.finished.get("applied")), str(result)


def test_unverifiable_file_is_not_guessed_at(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """26 names both ways out, and FIRST_CONTACT=pending is one of them."""
    database.script(OTHER)
    migrations({"001_a.sql": "CREATE TABLE a ();"})

    refused = run()
    assert (26, "history.first_contact") == (refused.code, error_of(refused)["code"])
    assert "`adopt 1`" in error_of(refused)["hint"]
    assert "PREFLIGHT_FIRST_CONTACT=pending" in error_of(refused)["hint"]
    assert [0] == database.query(OURS)

    assert ["001_a"] == run(env={"PREFLIGHT_FIRST_CONTACT": "pending"}).finished["applied"]


def test_broken_verify_file_ends_first_contact(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """33: what cannot be told is not guessed."""
    database.script(OTHER)
    migrations(A | {"001_a_verify.sql": "SELECT 1/0"})

    result = run()

    error = error_of(result)
    assert (33, "verify.error", "22012") == (result.code, error["code"], error["sqlstate"])
    assert "001_a" == error["migration"]
    assert [0] == database.query(OURS)


@pytest.mark.parametrize(
    ("objects", "empty"),
    [
        ("SELECT 1", True),
        ("CREATE EXTENSION pg_trgm", True),
        ("CREATE EXTENSION hstore; CREATE EXTENSION btree_gist; CREATE SCHEMA bare", True),
        ("CREATE SCHEMA preflight", True),
        ("CREATE TYPE e AS ENUM ('a')", False),
        ("CREATE DOMAIN d AS int[]", False),
        ("CREATE TYPE c AS (a int)", False),
        ("CREATE TYPE r AS RANGE (subtype = int4)", False),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'", False),
        ("CREATE SEQUENCE s", False),
        ("CREATE VIEW v AS SELECT 1", False),
        ("CREATE SCHEMA other; CREATE TABLE other.t ()", False),
    ],
)
def test_empty_means_nothing_of_anybodys(
    run: Run, database: servers.Database, migrations: WriteMigrations, objects: str, *, empty: bool
) -> None:
    """No relation, type or function but the system's, extensions' and our own."""
    try:
        database.script(objects)
    except psycopg.errors.UndefinedFile:
        pytest.skip(f"this server's package lacks an extension: {objects}")
    migrations({"001_a.sql": "CREATE TABLE a ();"})

    result = run(env={"PREFLIGHT_BACKUP": "off"})

    assert (0 if empty else 26) == result.code, str(result)


def test_first_contact_happens_again_when_an_earlier_run_got_no_further(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """The tables are made, the file fails: what is done by hand then is adopted all the same."""
    database.script(OTHER)
    migrations(A | {"001_a.sql": "SELECT 1/0"})
    assert 30 == run(env={"PREFLIGHT_BACKUP": "off"}).code
    database.script("CREATE TABLE a (x int, y int)")

    result = run()

    assert (0, ["001_a"]) == (result.code, result.finished.get("adopted")), str(result)
