"""Verify files: what counts as a check, and what they may do to the database (nothing)."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests import program, servers
from tests.conftest import CreateDatabase, Run, Start, WriteMigrations

UP = "CREATE TABLE t (id int);\nINSERT INTO t VALUES (1);"
HOLDS = "SELECT 's' AS suite, 'c' AS \"check\", true AS ok"
V = "_verify"


@pytest.fixture
def environment(environment: dict[str, str]) -> dict[str, str]:
    """Do without backups, which have tests of their own."""
    return environment | {"PREFLIGHT_BACKUP": "off"}


def error_of(result: program.Result) -> dict[str, Any]:
    """Return the error that a run ended with."""
    found: dict[str, Any] = result.finished["error"]
    return found


def test_verify_of_a_file_without_a_verify_file_says_what_to_write(
    run: Run, migrations: WriteMigrations
) -> None:
    """And who shows the companions of each."""
    migrations({"001_a.sql": UP})
    result = run("verify", "1")

    assert (20, "version 1 has no verify file") == (result.code, error_of(result)["message"])
    hint = "Write 001_a_verify.sql; `lint --table` shows which files have one."
    assert hint == error_of(result)["hint"]


@pytest.mark.parametrize(
    ("verify", "failed"),
    [
        (HOLDS, []),
        (f"{HOLDS}, 5 % 2 AS n, '100%' AS detail;", []),
        ("SELECT 's', 'c' AS \"check\", true AS ok, 's' AS suite", []),
        (f"{HOLDS}; SELECT * FROM nope", ["query at 001_a_verify.sql:1"]),  # 42P01
        (f"{HOLDS};\nSELECT nope FROM t", ["query at 001_a_verify.sql:2"]),  # 42703
        (f"SELECT 'x'::nope; {HOLDS}", ["query at 001_a_verify.sql:1"]),  # 42704
        ("SELECT nope()", ["query at 001_a_verify.sql:1"]),  # 42883
        ("SELECT nope.nope()", ["query at 001_a_verify.sql:1"]),  # 3F000
        ("SELECT 's' AS suite, 'null' AS \"check\", NULL::boolean AS ok", ["null"]),
        (
            "SELECT 's' AS suite, 'no effect' AS \"check\", false AS ok, false AS effect",
            ["no effect"],
        ),
        (f"{HOLDS} WHERE false", ["query at 001_a_verify.sql:1 returns a check"]),
        (
            (
                "SELECT 's' AS suite, i::text AS \"check\", i <> 3 AS ok "
                "FROM generate_series(1, 50000) i"
            ),
            ["3"],
        ),
    ],
)
def test_check_that_does_not_hold_rolls_the_file_back(
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    verify: str,
    failed: list[str],
) -> None:
    """30 and one check.failed for each; what is not there is a failed check, not an error."""
    migrations({"001_a.sql": UP, "001_a_verify.sql": verify})

    result = run()

    assert (30 if failed else 0) == result.code, str(result)
    assert failed == [each["check"] for each in result.event("check.failed")]
    assert [not failed] == database.query("SELECT to_regclass('t') IS NOT NULL")


@pytest.mark.parametrize(
    ("verify", "code", "sqlstate"),
    [
        ("SELECT 1/0", "verify.error", "22012"),
        ("SELECT 1 AS suite, 2 AS ok", "verify.columns", None),
        ("SELECT write_it()", "verify.error", "25006"),
        ("SELECT nextval('s')", "verify.error", "25006"),
        ("SELECT set_config('transaction_read_only', 'off', true)", "verify.error", "25001"),
        ("WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x", "verify.error", "25006"),
        ("SELECT 's' AS suite, 'c' AS \"check\", 1 AS ok", "verify.columns", None),
    ],
)
def test_verify_file_that_fails_itself_is_an_error(  # noqa: PLR0913, PLR0917 -- fixtures
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    verify: str,
    code: str,
    sqlstate: str | None,
) -> None:
    """Its place is told, and it cannot write."""
    migrations(
        {
            "001_a.sql": UP
            + "CREATE SEQUENCE s; CREATE FUNCTION write_it() RETURNS void LANGUAGE sql "
            "AS 'INSERT INTO t VALUES (2)';",
            "001_a_verify.sql": f"{HOLDS};\n  {verify}",
        }
    )

    result = run()

    assert 30 == result.code, str(result)
    error = error_of(result)
    assert (code, sqlstate) == (error["code"], error.get("sqlstate"))
    assert ("001_a_verify.sql", 2, 3) == (error["file"], error["line"], error["column"])
    assert "001_a" == error["migration"]
    assert [None] == database.query("SELECT to_regclass('t')")


@pytest.mark.parametrize(
    "uses", ["txt::int", "txt::date", "txt::regclass", "current_setting(txt)", "run_it(txt)"]
)
@pytest.mark.parametrize("where", ["file", "verify"])
def test_row_s_value_is_not_repeated(  # noqa: PLR0913, PLR0917 -- fixtures
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    connection: psycopg.Connection,
    where: str,
    uses: str,
) -> None:
    """Neither by a verify file that trips over it nor by the file: not in the log, not kept."""
    connection.execute(
        "CREATE SCHEMA theirs; CREATE TABLE theirs.v (txt text); "
        "INSERT INTO theirs.v VALUES ('rowcanary!'); CREATE FUNCTION theirs.run_it(text) "
        "RETURNS int LANGUAGE plpgsql AS 'BEGIN EXECUTE $1; RETURN 1; END'"
    )
    uses = uses.replace("run_it", "theirs.run_it")
    query = f"SELECT 's' AS suite, 'c' AS \"check\", {uses} IS NOT NULL AS ok FROM theirs.v"
    files = {"001_a.sql": f"CREATE TABLE made AS {query};"}
    if where == "verify":
        files = {"001_a.sql": "CREATE TABLE t ();", "001_a_verify.sql": f"{query};"}
    migrations(files)

    result = run(env={"PREFLIGHT_FIRST_CONTACT": "pending"})

    assert result.code in {30, 33}, str(result)
    assert "rowcanary" not in result.stdout + result.stderr, str(result)
    if where == "file":
        (journal,) = database.query("SELECT string_agg(j::text, '') FROM preflight.journal j")
        assert "rowcanary" not in journal


def test_verify_file_leaves_the_transaction_usable(
    any_server: servers.Server, run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """On every version: read only ends with it, and the end mark is written."""
    assert any_server is database.server
    migrations(
        {"001_a.sql": UP, "001_a_verify.sql": HOLDS, "002_b.sql": "INSERT INTO t VALUES (2)"}
    )

    result = run()

    assert 0 == result.code, str(result)
    assert [1, 2] == database.query("SELECT id FROM t ORDER BY id")


@pytest.mark.parametrize(("head", "code"), [("", 12), ("-- preflight: no-transaction\n", 31)])
def test_lock_timeout_in_a_verify_file_says_nothing_of_it(
    run: Run, database: servers.Database, migrations: WriteMigrations, head: str, code: int
) -> None:
    """12 after retries; 31 where the statements stay, and a re-run only verifies."""
    migrations({"000_other.sql": "CREATE TABLE other ();"})
    assert 0 == run().code
    asks = f"{HOLDS}; SELECT 's' AS suite, 'n' AS \"check\", count(*) = 0 AS ok FROM other"
    migrations({"001_a.sql": head + UP, "001_a_verify.sql": asks})
    with database.server.connect(database.name) as other:
        other.execute("BEGIN; LOCK TABLE other")
        blocked = run(env={"PREFLIGHT_LOCK_TIMEOUT_MS": "100", "PREFLIGHT_LOCK_RETRY_S": "1"})
    again = run()

    assert (code, "55P03") == (blocked.code, error_of(blocked)["sqlstate"]), str(blocked)
    assert (code == 12) == bool(blocked.event("migration.retried"))
    assert 0 == again.code, str(again)
    assert [1] == database.query("SELECT id FROM t")


@pytest.mark.parametrize(
    ("own", "seen"),
    [
        ("CREATE TEMP TABLE kept AS SELECT 1 AS x", "to_regclass('kept') IS NOT NULL"),
        ("CREATE FUNCTION pg_temp.f() RETURNS int RETURN 1", "pg_temp.f() = 1"),
        (
            "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
            "EXISTS (SELECT FROM pg_cursors WHERE name = 'c')",
        ),
        (
            "PREPARE q AS SELECT 1",
            "EXISTS (SELECT FROM pg_prepared_statements WHERE name = 'q')",
        ),
    ],
)
@pytest.mark.parametrize("mark", ["", "-- preflight: no-transaction\n"])
def test_verify_file_does_not_see_what_only_the_files_session_has(  # noqa: PLR0913, PLR0917 - fixtures
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    own: str,
    seen: str,
    mark: str,
) -> None:
    """What no later `verify` will find is no evidence, neither forward nor back."""
    migrations(
        {
            "001_a.sql": "CREATE TABLE a (x int);",
            "001_a_rollback.sql": f"{mark}{own};",
            "002_b.sql": f"{mark}{own};",
            "002_b_verify.sql": f"SELECT 's' AS suite, 'c' AS \"check\", {seen} AS ok",
        }
    )
    forward = run()
    there = migrations.directory / "002_b_verify.sql"
    there.rename(migrations.directory / "001_a_verify.sql")
    (migrations.directory / "002_b.sql").unlink()
    database.script("DELETE FROM preflight.migrations WHERE version = 2")

    back = run("rollback")

    assert (31 if mark else 30) == forward.code, str(forward)
    assert 0 == back.code, str(back)


@pytest.mark.parametrize("major", [17, 18])
def test_transaction_timeout_of_the_role_does_not_bite_a_look(
    run: Run,
    running: Callable[[int], servers.Server],
    create_database: CreateDatabase,
    migrations: WriteMigrations,
    major: int,
) -> None:
    """Nor the database's: a verify file is asked for as long as it takes, and the next one, too.

    A limit that the file sets itself ends its session, and is the file's to take out: 33, not 13.
    """
    database = create_database(running(major))
    database.script(f"CREATE TABLE t (); ALTER DATABASE {database.name} SET transaction_timeout=99")
    slow = f"{HOLDS} FROM pg_sleep(0.15) WHERE to_regclass('t') IS NOT NULL"
    migrations({f"00{n}_{n}{of}.sql": text for n in "12" for of, text in {"": UP, V: slow}.items()})
    env = database.env()

    codes = [run(*said.split(), env=env).code for said in ("check", "plan", "up", "verify")]
    limits = "SELECT set_config('transaction_timeout', '50', true), pg_sleep(9)"
    migrations({"002_2_verify.sql": f"{slow};\n{limits}"})
    limited = run("verify", env=env)

    assert [3, 0, 0, 0] == codes
    assert (33, "verify.error") == (limited.code, error_of(limited)["code"]), str(limited)
    assert ("002_2_verify.sql", 2) == (error_of(limited)["file"], error_of(limited)["line"])


def test_table_that_somebody_holds_is_waited_for(
    run: Run, start: Start, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Who stops a look is named, also behind a view; it is 12 when nobody waits any longer."""
    soon = {"PREFLIGHT_LOCK_TIMEOUT_MS": "50"}
    at_once = soon | {"PREFLIGHT_LOCK_RETRY_S": "0"}
    database.script("CREATE TABLE t (); CREATE VIEW v AS TABLE t")
    counts = f"{HOLDS} FROM (SELECT count(*) FROM v) n"
    migrations({"001_a.sql": "CREATE TABLE t ();", "001_a_verify.sql": counts})

    with psycopg.connect(database.conninfo()) as other:
        other.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        commands = ("check", "plan", "adopt", "up")
        busy = {command: run(command, env=at_once) for command in commands}
        waiting = start("up", env=soon)
        told = [waiting.wait_for_event("server.waiting")]
        other.rollback()
        codes = [waiting.wait().code]
        other.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        busy["verify"] = run("verify", env=at_once)
        waiting = start("verify", env=soon)
        told.append(waiting.wait_for_event("server.waiting"))
        other.rollback()
        codes.append(waiting.wait().code)
        pid = other.info.backend_pid

    assert [0, 0] == codes
    assert [[pid]] * 2 == [[each["pid"] for each in event["blocked_by"]] for event in told]
    for command, ended in busy.items():
        error = error_of(ended)
        assert (12, "database.busy") == (ended.code, error["code"]), str(ended)
        assert f"blocked by pid {pid} (" in error["message"]
        assert ("001_a_verify.sql", 1) == (error["file"], error["line"])
        nothing = "recorded" if command in {"adopt", "up"} else "begun"
        assert error["hint"].startswith(f"Nothing was {nothing}."), command
