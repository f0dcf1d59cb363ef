"""Transactional files: what runs, what is rolled back, and what a failure tells."""

import hashlib
import os
import re
import select
import signal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from preflight.apply import forward
from preflight.base import errors
from preflight.base.config import Config
from preflight.files.migrations import Migration, Script
from preflight.server import sessions
from tests import faults, program, servers
from tests.conftest import CreateDatabase, Run, Start, StartServer, WriteMigrations


@pytest.fixture
def environment(environment: dict[str, str]) -> dict[str, str]:
    """Do without backups, which have tests of their own."""
    return environment | {"PREFLIGHT_BACKUP": "off"}


def error_of(result: program.Result) -> dict[str, Any]:
    """Return the error that a run ended with."""
    found: dict[str, Any] = result.finished["error"]
    return found


def place_of(result: program.Result) -> tuple[int, int | None, int | None, str | None]:
    """Return exit code, line, column and SQLSTATE."""
    error = error_of(result)
    return result.code, error.get("line"), error.get("column"), error.get("sqlstate")


# what counts the branches has memory of its own
ALONE = pytest.mark.skipif("COVERAGE_FILE" in os.environ, reason="branches are counted")
TABLE = "CREATE TABLE t (id int PRIMARY KEY, name text);\n"
# it waits for a lock until somebody lets go, and nothing is tried before
PATIENT = {
    "PREFLIGHT_LOCK_TIMEOUT_MS": "60000",
    "PREFLIGHT_FIRST_CONTACT": "pending",
    "PREFLIGHT_REHEARSE": "off",
}


# --- what a failure leaves ------------------------------------------------------------------------


# a COMMIT that is a text to whoever does not know that backslashes escape now
HIDDEN = (
    "SELECT set_config('standard_conforming_strings', 'off', true);\n"
    "DROP TABLE IF EXISTS one;\nSELECT 'x\\', ', 1; COMMIT; SELECT {}; --';\n"
)


@pytest.mark.parametrize("then", ["1/0", "1"])
def test_what_a_file_has_committed_is_never_told_as_rolled_back(
    run: Run, database: servers.Database, migrations: WriteMigrations, then: str
) -> None:
    """Where it ended our transaction in a way that nobody sees: 31, and that it stays."""
    migrations({"001_a.sql": "CREATE TABLE one ()", "002_b.sql": HIDDEN.format(then)})
    failed = run()

    assert 31 == failed.code, str(failed)
    assert "what ran before the file ended the runner's transaction stays" in str(failed)
    assert "nothing of it stayed" not in str(failed)
    assert [None] == database.query("SELECT to_regclass('one')")

    forced = run("force", "2")
    assert (31, False) == (forced.code, "nothing of it stayed" in str(forced)), str(forced)


def test_what_a_file_has_committed_on_the_copy_is_nothing_to_adopt(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """The copy is dropped, and on the live database nothing of the file ran."""
    migrations({"001_a.sql": "CREATE TABLE one (a int); INSERT INTO one VALUES (1)"})
    assert 0 == run().code
    migrations({"002_b.sql": HIDDEN.format("1/0")})
    failed = run(env={"PREFLIGHT_BACKUP": "required", "PREFLIGHT_REHEARSE": "always"})

    assert 27 == failed.code, str(failed)
    error = error_of(failed)
    assert error["message"].endswith("; before that the file ended the runner's transaction")
    assert "adopt" not in error["hint"]
    assert "force" not in error["hint"]
    assert [1] == database.query("SELECT count(*)::int FROM one")


def test_what_a_rollback_file_has_committed_is_never_told_as_rolled_back(
    run: Run, migrations: WriteMigrations
) -> None:
    """Its row is gone with what it did."""
    migrations({"001_a.sql": "CREATE TABLE one ()", "001_a_rollback.sql": HIDDEN.format("1/0")})
    applied, failed = run(), run("rollback")

    assert [0, 31] == [applied.code, failed.code], f"{applied}{failed}"
    assert "the history has no row of it any more" in error_of(failed)["hint"]
    assert 3 == run("check").code


@pytest.mark.fault("E108")
def test_failing_file_is_rolled_back_and_later_ones_do_not_run(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """The third of five fails: two stay, the third leaves nothing, the rest never ran."""
    migrations(
        {
            "001_a.sql": "CREATE TABLE a ();",
            "002_b.sql": "CREATE TABLE b ();",
            "003_c.sql": "CREATE TABLE c ();\n  SELECT 1/0;",
            "004_d.sql": "CREATE TABLE d ();",
            "005_e.sql": "CREATE TABLE e ();",
        }
    )

    result = run()

    assert (30, 2, 3, "22012") == place_of(result)
    assert ["001_a", "002_b"] == result.finished["applied"]
    tables = "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    assert {"a", "b"} == set(database.query(tables))
    assert [(1, "done"), (2, "done")] == database.query(
        "SELECT version, state FROM preflight.migrations ORDER BY version"
    )
    assert [("applied", 1), ("applied", 2), ("failed", 3)] == database.query(
        "SELECT event, version FROM preflight.journal ORDER BY id"
    )
    assert [("22012", "003_c.sql:2:3: division by zero")] == database.query(
        "SELECT sqlstate, error FROM preflight.journal WHERE event = 'failed'"
    )

    migrations({"003_c.sql": "CREATE TABLE c ();"})
    assert 0 == run().code
    assert [5] == database.query("SELECT count(*) FROM preflight.migrations WHERE state = 'done'")


@pytest.mark.fault("E108")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT 'äöü€😀', nope;", (1, 17, "42703")),
        ("-- é\n/* ü\n*/ SELECT nope;", (3, 11, "42703")),
        ("SELECT 1; SELECT 'é'; SELEC 2;", (1, 23, "42601")),
        (TABLE + "\n  INSERT INTO t VALUES (1), (1);", (3, 3, "23505")),
        (TABLE + "COPY t FROM stdin;\n1\ta\n2\tb\nx\tc\n\\.\n", (5, 1, "22P02")),
        ('CREATE TABLE "T 9" (a int);COPY "T 9" FROM stdin;\n1\nx\n\\.\n', (3, 1, "22P02")),
        (
            (
                "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$\nBEGIN\n"
                "  RETURN 1/0;\nEND $$;\nSELECT f();"
            ),
            (5, 1, "22012"),
        ),
        (
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS $$\n  SELECT nope $$;",
            (2, 10, "42703"),
        ),
        ("DO $$ BEGIN COMMIT; END $$;", (1, 4, "2D000")),
        (
            "CREATE PROCEDURE p() LANGUAGE plpgsql AS 'BEGIN COMMIT; END';CALL p();",
            (1, 62, "2D000"),
        ),
        (
            (
                "CREATE TABLE p (id int PRIMARY KEY);"
                "CREATE TABLE c (p int REFERENCES p DEFERRABLE INITIALLY DEFERRED);"
                "INSERT INTO c VALUES (1);"
            ),
            (None, None, "23503"),
        ),
        ("SELECT 1; SET TRANSACTION READ ONLY;", (None, None, "25006")),
        ("SELECT 1;\nSET TRANSACTION ISOLATION LEVEL SERIALIZABLE;", (2, 1, "25001")),
    ],
)
def test_failure_names_line_column_and_sqlstate(
    run: Run,
    migrations: WriteMigrations,
    text: str,
    expected: tuple[int | None, int | None, str],
) -> None:
    """Where the server gives a position it is that one, else the statement's first token."""
    migrations({"001_a.sql": text})

    result = run()

    assert (30, *expected) == place_of(result)
    assert "001_a" == error_of(result)["migration"]
    assert ["001_a"] == [each["migration"] for each in result.event("migration.failed")]
    assert "no-transaction" not in error_of(result).get("hint", "")


def test_statement_that_is_too_large_for_the_server_says_how_to_load_rows(
    run: Run, migrations: WriteMigrations
) -> None:
    """What ends the server's stack or memory is no fault of the data."""
    migrations({"001_a.sql": f"SELECT {'1 + ' * 40_000}1;"})
    result = run()

    assert (30, 1, 1, "54001") == place_of(result)
    assert "One statement of 0.2 MB is too much" in error_of(result)["hint"]
    assert "COPY" in error_of(result)["hint"]


def test_deferred_constraint_is_the_files_failure(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """It is checked before COMMIT, where it would look as if the history could not be written."""
    migrations(
        {
            "001_a.sql": "CREATE TABLE p (id int PRIMARY KEY);"
            "CREATE TABLE c (p int REFERENCES p DEFERRABLE INITIALLY DEFERRED);"
            "INSERT INTO c VALUES (1);"
        }
    )
    result = run()

    assert (30, "migration.sql_error") == (result.code, error_of(result)["code"])
    assert [None] == database.query("SELECT to_regclass('p')")


@pytest.mark.parametrize("mark", ["", "-- preflight: no-transaction\n"])
def test_success_is_on_the_disk_before_it_is_told(
    run: Run, database: servers.Database, migrations: WriteMigrations, mark: str
) -> None:
    """COMMIT waits for the disk, whatever the database or the file says of synchronous_commit."""
    database.script(f"ALTER DATABASE {database.name} SET synchronous_commit = off")
    ok = "current_setting('synchronous_commit') = 'on' AS ok"
    migrations(
        {
            "001_a.sql": f"{mark}CREATE TABLE a ();\nSET synchronous_commit = off;\n",
            "001_a_verify.sql": f"SELECT 's' AS suite, 'it waits' AS \"check\", {ok};\n",
        }
    )
    result = run(env={"PREFLIGHT_FIRST_CONTACT": "pending"})

    assert 0 == result.code, str(result)


@pytest.mark.fault("F147")
def test_row_data_and_sql_are_told_only_when_asked_for(
    run: Run,
    migrations: WriteMigrations,
    termination_log: Path,
) -> None:
    """DETAIL and SQL text may hold secrets."""
    migrations({"001_a.sql": TABLE + "INSERT INTO t VALUES (1, 's3cret'), (1, 's3cret');"})

    quiet, loud = run(), run(env={"PREFLIGHT_LOG_SQL": "on"})

    assert "s3cret" not in str(quiet)
    assert "Key (id)" not in str(quiet)
    assert "Key (id)=(1) already exists." == error_of(loud)["detail"]
    assert "s3cret" in error_of(loud)["sql"]
    assert "s3cret" in termination_log.read_text()


# --- what runs ------------------------------------------------------------------------------------


@pytest.mark.fault("D105")
def test_text_reaches_the_server_unchanged(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Nothing is a placeholder; COPY data loads; BEGIN and COMMIT around the file are dropped."""
    migrations(
        {
            "001_a.sql": "BEGIN;\n"
            + TABLE
            + "INSERT INTO t VALUES (1, '100% {} %s $1 :v returning');\n"
            'COPY t (id, name) FROM stdin;\n2\tit\'s "50%" \\\\ é\n3\t\\N\n4\ta\\tb\n\\.\n'
            'COPY t FROM stdin WITH (FORMAT csv);\n5,"a ""b""\nc"\n\\.\nCOMMIT;\n',
            "002_b.sql": "SELECT id INTO copied FROM t; WITH x AS (SELECT 9 AS a) INSERT INTO t "
            "SELECT a, 'cte' FROM x; UPDATE t SET name = 'u' WHERE id = 9 RETURNING *; "
            "COPY t TO STDOUT; EXPLAIN SELECT 1; SHOW search_path; (SELECT 1); VALUES (1); "
            "TABLE t; "
            "PREPARE q AS SELECT 1; EXECUTE q; DECLARE c CURSOR FOR TABLE t; FETCH ALL FROM c; "
            "SELECT 5 % 2;",
        }
    )

    result = run()

    assert 0 == result.code, str(result)
    assert [
        (1, "100% {} %s $1 :v returning"),
        (2, 'it\'s "50%" \\ é'),
        (3, None),
        (4, "a\tb"),
        (5, 'a "b"\nc'),
        (9, "u"),
    ] == database.query("SELECT id, name FROM t ORDER BY id")
    assert [5] == database.query("SELECT count(*) FROM copied")


@pytest.mark.fault("D105")
@pytest.mark.parametrize("mark", ["", "-- preflight: no-transaction\n"])
def test_rows_that_a_file_returns_are_not_read(
    run: Run, database: servers.Database, migrations: WriteMigrations, mark: str
) -> None:
    """Nor the values that a check tells of: not all that a server holds has a place in Python."""
    database.script(
        f"""CREATE TABLE odd AS SELECT 1 AS n, timestamptz 'infinity' AS a,
        date '4713-01-01 BC' AS b, time '24:00' AS c, interval '1 year 2 s' AS d,
        daterange('2026-01-01', 'infinity') AS e,
        ARRAY[date '-infinity'] AS f, (repeat('[', 5000) || repeat(']', 5000))::json AS g,
        repeat('9', 5000)::json AS h, timestamptz '2026-01-01' AS i;
        ALTER DATABASE {database.name} SET datestyle = 'German';
        ALTER DATABASE {database.name} SET intervalstyle = 'iso_8601'"""
    )
    migrations(
        {
            "001_a.sql": f"{mark}SELECT * FROM odd; TABLE odd;\nUPDATE odd SET n = n + 1 "
            "RETURNING *; WITH x AS (SELECT * FROM odd) INSERT INTO odd TABLE x RETURNING *;\n"
            "SET datestyle = 'SQL, DMY'; TABLE odd;"
            + ("" if mark else "PREPARE q AS TABLE odd; EXECUTE q;"),
            "001_a_verify.sql": 'SELECT n AS suite, f AS "check", true AS ok, odd::text AS '
            "detail, false AS effect, a, b, c, d, e, g, h, i FROM odd; "
            "SELECT 's' AS suite, 'c' AS \"check\", count(*) = 2 AS ok, max(i) AS detail FROM odd;",
        }
    )
    results = [
        run(*words, env={"PREFLIGHT_FIRST_CONTACT": "pending", **more})
        for words, more in (
            (("up",), {"PREFLIGHT_BACKUP": "required", "PREFLIGHT_REHEARSE": "always"}),
            (("verify",), {}),
            (("check", "--table"), {}),
            (("plan",), {}),
        )
    ]

    assert [0] * 4 == [each.code for each in results], results
    assert [2, 2] == database.query("SELECT n FROM odd")


@pytest.mark.fault("D106")
def test_nothing_that_a_file_sets_reaches_the_next(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Role, settings, temporary tables, prepared statements, cursors and channels end with it."""
    database.script(
        "CREATE SCHEMA elsewhere; CREATE ROLE someone_else; GRANT CREATE ON SCHEMA public "
        "TO someone_else; CREATE SEQUENCE s"
    )
    try:
        migrations(
            {
                "001_a.sql": "SET search_path = elsewhere; SET lock_timeout = '7s'; "
                "SET session_replication_role = replica; SET default_transaction_read_only = on; "
                "SET statement_timeout = '9s'; SET client_encoding = 'LATIN1'; "
                "CREATE TEMP TABLE leak (); LISTEN leak; PREPARE leak AS SELECT 1; "
                "DECLARE leak CURSOR WITH HOLD FOR SELECT 1; SELECT nextval('public.s'); "
                "SET SESSION AUTHORIZATION someone_else; SET ROLE someone_else; "
                "CREATE TABLE public.theirs ();",
                "002_b.sql": "CREATE TABLE state AS SELECT current_user::text AS who, "
                "session_user::text AS session, current_setting('role') AS role, "
                "current_setting('search_path') AS path, current_setting('lock_timeout') AS wait, "
                "current_setting('session_replication_role') AS rep, "
                "current_setting('default_transaction_read_only') AS ro, "
                "current_setting('statement_timeout') AS st, "
                "current_setting('client_encoding') AS e, "
                "to_regclass('leak')::text AS temp, (SELECT count(*) FROM pg_prepared_statements "
                "WHERE name = 'leak') AS prepared, (SELECT count(*) FROM pg_cursors WHERE name = "
                "'leak') AS cursors, (SELECT count(*) FROM pg_listening_channels()) AS channels; "
                "DO $$ BEGIN PERFORM lastval(); RAISE 'leak'; EXCEPTION WHEN "
                "object_not_in_prerequisite_state THEN NULL; END $$;",
            }
        )

        result = run(env={"PREFLIGHT_FIRST_CONTACT": "pending"})

        assert 0 == result.code, str(result)
        assert [
            (
                *("postgres", "postgres", "none", '"$user", public', "2s", "origin", "off", "0"),
                *("UTF8", None, 0, 0, 0),
            )
        ] == database.query("TABLE public.state")
        assert ["postgres"] == database.query(
            "SELECT DISTINCT applied_by FROM preflight.migrations"
        )
        assert ["someone_else"] == database.query(
            "SELECT relowner::regrole::text FROM pg_class WHERE relname = 'theirs'"
        )
    finally:
        database.script("DROP OWNED BY someone_else; DROP ROLE someone_else")


@pytest.mark.fault("D107")
@pytest.mark.parametrize(
    "text",
    [
        "DROP SCHEMA preflight CASCADE;",
        "DROP TABLE preflight.migrations;",
        "DELETE FROM preflight.migrations;",
        "ALTER TABLE preflight.migrations DROP COLUMN run_id;",
    ],
)
def test_file_that_harms_the_history_fails_and_is_rolled_back(
    run: Run, database: servers.Database, migrations: WriteMigrations, text: str
) -> None:
    """It says what it cannot do instead of falling over."""
    migrations({"001_a.sql": "CREATE TABLE a ();" + text})

    result = run()

    assert 30 == result.code, str(result)
    assert "migration.not_recorded" == error_of(result)["code"]
    assert [0] == database.query("SELECT count(*) FROM preflight.migrations")
    assert [None] == database.query("SELECT to_regclass('a')")


def test_file_that_the_encoding_cannot_hold_says_so(
    run: Run, create_database: CreateDatabase, server: servers.Server, migrations: WriteMigrations
) -> None:
    """The history keeps the file's text, and a LATIN1 database cannot keep a snowman."""
    latin = create_database(
        server, options="ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    )
    migrations({"001_a.sql": "-- ☃\nCREATE TABLE a ();"})

    result = run(env={"PGDATABASE": latin.name})

    assert (30, "22P05") == (result.code, error_of(result)["sqlstate"])
    assert "encoding" in error_of(result)["hint"]


@pytest.mark.fault("E112")
def test_defaults_of_the_role_do_not_bite(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Timeouts and odd formats that an administrator gave the role are ours to override."""
    database.script(
        "CREATE ROLE bitten LOGIN SUPERUSER PASSWORD 'p'; "
        "ALTER ROLE bitten SET statement_timeout = '1ms'; "
        "ALTER ROLE bitten SET lock_timeout = '1ms'; "
        "ALTER ROLE bitten SET idle_in_transaction_session_timeout = '1ms'; "
        "ALTER ROLE bitten SET idle_session_timeout = '1s'; "
        "ALTER ROLE bitten SET transaction_timeout = '1s'; "
        "ALTER ROLE bitten SET default_transaction_isolation = serializable; "
        "ALTER ROLE bitten SET standard_conforming_strings = off; "
        "ALTER ROLE bitten SET datestyle = 'German'; "
        "ALTER ROLE bitten SET timezone = 'Asia/Kathmandu'; "
        "ALTER ROLE bitten SET search_path = public, pg_catalog; "
    )
    try:
        migrations(
            {
                "001_a.sql": "SELECT pg_sleep(1.1); CREATE TABLE seen AS SELECT 'a\\b'::text AS a, "
                "current_setting('transaction_isolation') AS isolation;"
            }
        )

        result = run(env={"PGUSER": "bitten", "PGPASSWORD": "p"})
        again = run("check", "--json", env={"PGUSER": "bitten", "PGPASSWORD": "p"})

        assert 0 == result.code, str(result)
        assert [("a\\b", "read committed")] == database.query("TABLE seen")
        assert 0 == again.code, str(again)
    finally:
        database.script("DROP OWNED BY bitten CASCADE; DROP ROLE bitten")


@ALONE
@pytest.mark.fault("E125")
def test_flood_of_notices_and_rows_leaves_memory_flat(
    start: Start, migrations: WriteMigrations, database: servers.Database
) -> None:
    """100,000 notices, a million rows and rows of a megabyte: the process stays below 64 MB."""
    migrations(
        {
            "001_a.sql": "DO $$ BEGIN FOR i IN 1..100000 LOOP RAISE NOTICE 'n %', i; END LOOP; "
            "RAISE WARNING 'look'; END $$;\n"
            "SELECT i, 'some text' FROM generate_series(1, 1000000) i;\n"
            "SELECT repeat('x', 1000000) FROM generate_series(1, 50);\n",
            "002_b.sql": "SELECT pg_advisory_lock(42);",
        }
    )
    with database.server.connect(database.name) as blocker:
        blocker.execute("SELECT pg_advisory_lock(42)")
        process = start(env={"PREFLIGHT_LOCK_TIMEOUT_MS": "60000"})
        process.wait_for_event("migration.applied")
        peak_kb = _peak_kb(process.pid)
    result = process.wait()

    assert 0 == result.code, str(result)
    assert 64 * 1024 > peak_kb
    assert 20 > len(result.event("migration.progressed"))


def test_warning_is_told_behind_any_number_of_notices(
    run: Run, migrations: WriteMigrations
) -> None:
    """Those that are left out are counted, and their number is a warning."""
    migrations(
        {
            "001_a.sql": "DO $$ BEGIN FOR i IN 1..25 LOOP RAISE NOTICE 'n %', i; END LOOP; "
            "FOR i IN 1..22 LOOP RAISE WARNING 'w %', i; END LOOP; END $$;"
        }
    )

    told = [(each["level"], each["notice"]) for each in run().event("migration.progressed")]

    expected = [f"w {i}" for i in range(1, 21)] + ["2 more warnings"]
    assert [("warning", each) for each in expected] == told


def _peak_kb(pid: int) -> int:
    with Path(f"/proc/{pid}/status").open(encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


@ALONE
@pytest.mark.fault("D095")
@pytest.mark.parametrize(
    "kind", ["inserts", "one statement", "copy", "one of several", "one in the middle"]
)
def test_large_file_needs_its_copies_and_no_more(
    start: Start, migrations: WriteMigrations, database: servers.Database, kind: str
) -> None:
    """Two copies are libpq's, beside the text that was read; 48 MB are our own."""
    row = "x" * 990
    many = 20_000
    text = {
        "inserts": TABLE + f"INSERT INTO t VALUES (1, '{row}') ON CONFLICT DO NOTHING;\n" * many,
        "one of several": TABLE + f"INSERT INTO t VALUES (1, '{row * many}');\n",
        "one in the middle": TABLE + f"INSERT INTO t VALUES (1, '{row * many}'); SELECT 1 FROM t;",
        "one statement": "CREATE TABLE t AS VALUES " + ",\n".join([f"(1, '{row}')"] * many) + ";\n",
        "copy": TABLE.replace(" PRIMARY KEY", "")
        + "COPY t FROM stdin;\n"
        + f"1\t{row}\n" * many
        + "\\.\n",
    }[kind]
    migrations({"001_a.sql": text, "002_b.sql": "SELECT pg_advisory_lock(42);"})
    with database.server.connect(database.name) as blocker:
        blocker.execute("SELECT pg_advisory_lock(42)")
        process = start(env={"PREFLIGHT_LOCK_TIMEOUT_MS": "60000"})
        process.wait_for_event("migration.applied", timeout=60)
        peak_kb = _peak_kb(process.pid)
    assert 0 == process.wait().code
    assert 3 * len(text) / 1024 + 48 * 1024 > peak_kb


# --- locks ----------------------------------------------------------------------------------------


@pytest.mark.fault("E110")
def test_blocked_file_is_tried_again_and_readers_go_on(
    start: Start, database: servers.Database, migrations: WriteMigrations
) -> None:
    """The blocker is named, readers pass between the tries, and its end lets the file through."""
    database.script(TABLE)
    migrations({"001_a.sql": "ALTER TABLE t ADD COLUMN b int;"})
    with database.server.connect(database.name) as blocker:
        blocker.execute("SET application_name = 'long report'")
        blocker.execute("BEGIN; TABLE t")
        process = start(
            env={"PREFLIGHT_LOCK_TIMEOUT_MS": "400", "PREFLIGHT_FIRST_CONTACT": "pending"}
        )
        blocked = process.wait_for_event("migration.blocked")
        process.wait_for_event("migration.retried")
        with database.server.connect(database.name) as reader:
            reader.execute("SET statement_timeout = '10s'")
            for _ in range(3):
                assert (0,) == reader.execute("SELECT count(*) FROM t").fetchone()
        pid = blocker.info.backend_pid
        blocker.execute("COMMIT")
    result = process.wait()

    assert 0 == result.code, str(result)
    named = blocked["blocked_by"][0]
    assert (pid, "long report", "idle in transaction") == (
        named["pid"],
        named["application"],
        named["state"],
    )
    assert named["age_s"] >= 0
    assert ["001_a"] == result.finished["applied"]


@pytest.mark.fault("E110")
def test_exhausted_retries_name_the_blocker(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """12: run again unchanged; the file left nothing. Which statement it was is told, too."""
    database.script(TABLE)
    migrations({"001_a.sql": "CREATE TABLE a ();\n  ALTER TABLE t ADD COLUMN b int; SELECT 1;"})
    with database.server.connect(database.name) as blocker:
        blocker.execute("SET application_name = 'long report'")
        blocker.execute("BEGIN; TABLE t")
        result = run(
            env={
                "PREFLIGHT_LOCK_TIMEOUT_MS": "1000",
                "PREFLIGHT_LOCK_RETRY_S": "0",
                "PREFLIGHT_FIRST_CONTACT": "pending",
            }
        )
        pid = blocker.info.backend_pid

    assert (12, 2, 3, "55P03") == place_of(result)
    assert error_of(result)["message"].startswith("001_a.sql:2:3: canceling statement")
    assert f"pid {pid} (long report" in error_of(result)["message"]
    (written,) = database.query("SELECT error FROM preflight.journal WHERE event = 'failed'")
    assert error_of(result)["message"] == written
    assert [None] == database.query("SELECT to_regclass('a')")
    assert [0] == database.query("SELECT count(*) FROM preflight.migrations")


def test_each_attempt_names_who_is_in_its_way_and_nobody_who_has_ended(
    start: Start, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Another session took the lock meanwhile: it is the one to end, also from a new session."""
    database.script("CREATE TABLE t (a int)")
    migrations({"001_a.sql": "SET LOCAL app.a = 'x'; INSERT INTO t VALUES (1);"})
    env = {
        "PREFLIGHT_BACKUP": "off",
        "PREFLIGHT_FIRST_CONTACT": "pending",
        "PREFLIGHT_LOCK_TIMEOUT_MS": "400",
        "PREFLIGHT_LOCK_RETRY_S": "600",
    }
    with database.server.connect(database.name) as second:
        with database.server.connect(database.name) as first:
            pids = [each.info.backend_pid for each in (first, second)]
            first.execute("BEGIN; LOCK TABLE t")
            second.execute("BEGIN")
            process = start(env=env)
            faults.until(lambda: pids[:1] in named(process.events), "the first is named")
            second.pgconn.send_query(b"LOCK TABLE t")
            waiting = "SELECT pg_blocking_pids(%s) = ARRAY[%s::int]"
            faults.until(lambda: database.query(waiting, pids[1], pids[0]) == [True], "it waits")
        faults.until(lambda: pids[1:] in named(process.events), "the second is named")
        second.close()
    result = process.wait()

    assert 0 == result.code, str(result)
    found = named(result.events)
    assert pids[:1] not in found[found.index(pids[1:]) :]


def named(events: list[program.Event]) -> list[list[int]]:
    """Return who was in the way of each attempt."""
    return [
        [by["pid"] for by in each["blocked_by"]]
        for each in events
        if each["event"] == "migration.retried"
    ]


@pytest.mark.fault("D100")
def test_effect_beyond_the_database_is_not_repeated(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """12 at once: what a program was told cannot be rolled back; a rollback file, too."""
    out = "COPY (SELECT 1) TO PROGRAM 'cat >/dev/null';"
    migrations({"001_a.sql": "CREATE TABLE t ();", "001_a_rollback.sql": f"{out} DROP TABLE t;"})
    assert 0 == run().code
    migrations({"002_b.sql": f"{out} ALTER TABLE t ADD COLUMN b int;"})
    env = {"PREFLIGHT_LOCK_TIMEOUT_MS": "100", "PREFLIGHT_LOCK_RETRY_S": "600"}
    with database.server.connect(database.name) as blocker:
        blocker.execute("BEGIN; TABLE t")
        results = [run(env=env), run("rollback", env=env)]

    for result in results:
        assert (12, "55P03") == (result.code, error_of(result)["sqlstate"]), str(result)
        assert "not tried again" in error_of(result)["hint"]
        assert [] == result.event("migration.retried")


def test_file_that_has_to_wait_lets_go_of_the_locks_of_its_session(
    start: Start, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Who stands in its way may wait for them; a rollback leaves them, whatever their key."""
    taken = ["(7)", "(7)", "(-7)", "_shared(8)", "(-1, 2)", "_shared(1, -2)"]
    database.script("CREATE TABLE t ()")
    migrations({
        "001_a.sql": "".join(f"SELECT pg_advisory_lock{key};\n" for key in taken)
        + "DROP TABLE t;\n" + "".join(f"SELECT pg_advisory_unlock{key};\n" for key in taken),
        "002_b.sql": "CREATE TABLE held AS SELECT count(*) FROM pg_locks"
        " WHERE locktype = 'advisory' AND pid = pg_backend_pid();",
    })  # fmt: skip
    with database.server.connect(database.name) as app:
        app.execute("BEGIN; TABLE t")
        process = start(
            env={
                "PREFLIGHT_LOCK_TIMEOUT_MS": "100",
                "PREFLIGHT_LOCK_RETRY_S": "600",
                "PREFLIGHT_FIRST_CONTACT": "pending",
            }
        )
        process.wait_for_event("migration.retried")
        app.execute("SET statement_timeout = '30s'")
        for key in taken:
            app.execute(f"SELECT pg_advisory_xact_lock{key.removeprefix('_shared')}".encode())
        app.execute("COMMIT")
        result = process.wait()

    assert 0 == result.code, str(result)
    assert [1] == database.query("TABLE held")  # that of the run


@pytest.mark.parametrize("command", ["up", "rollback"])
def test_what_fails_only_at_commit_is_the_fault_of_the_file(
    run: Run, database: servers.Database, migrations: WriteMigrations, command: str
) -> None:
    """The rows of a cursor WITH HOLD are read then: 30, with the server's words."""
    holds = "DECLARE c CURSOR WITH HOLD FOR SELECT 1 / generate_series(0, 0);"
    migrations({"001_a.sql": "CREATE TABLE t ();", "001_a_rollback.sql": holds})
    assert 0 == run(env={"PREFLIGHT_BACKUP": "off"}).code
    migrations({"002_b.sql": holds} if command == "up" else {})
    result = run(command, env={"PREFLIGHT_BACKUP": "off"})

    file = "002_b.sql" if command == "up" else "001_a_rollback.sql"
    error = error_of(result)
    assert 30 == result.code, str(result)
    assert ("migration.sql_error", "22012") == (error["code"], error["sqlstate"])
    assert f"{file}: fails at COMMIT: division by zero" == error["message"]
    assert [1] == database.query("SELECT version FROM preflight.migrations")


HELD = """CREATE TABLE held{0} AS SELECT count(*) FROM pg_locks
 WHERE locktype = 'advisory' AND pid = pg_backend_pid();\n"""


def test_lock_of_a_file_does_not_stay_over_the_files_behind_it(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """An app's worker may wait for it: each next file has the lock of the run alone."""
    takes = "SELECT pg_advisory_lock(7), pg_advisory_lock_shared(-1, 2), pg_advisory_lock(7);\n"
    own = "SET search_path = app;\n" + HELD.format("4") + takes
    migrations(
        {
            "001_a.sql": "CREATE SCHEMA app;\n" + takes,
            "001_a_rollback.sql": HELD.format("6") + takes,
            "002_b.sql": HELD.format("2") + "DO $$ BEGIN PERFORM pg_advisory_lock(8); END $$;",
            "002_b_rollback.sql": HELD.format("5") + takes,
            "003_c.sql": f"-- preflight: no-transaction\n{HELD.format('3')}"
            "SELECT pg_advisory_lock(9);",
            "003_c_rollback.sql": takes,
            "004_d.sql": own,
            "004_d_rollback.sql": takes,
        }
    )
    env = {"PREFLIGHT_BACKUP": "off"}
    results = [run(env=env), run("rollback", "--to", "0", env=env)]

    assert [0, 0] == [each.code for each in results], "\n".join(map(str, results))
    for table in ("held2", "held3", "app.held4", "held5", "held6"):
        assert (table, [1]) == (table, database.query(f"TABLE {table}"))


TIMES_OUT = "SET transaction_timeout = '300ms'; SELECT pg_sleep(60);"
ENDS_ALL = """SELECT 1;
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database();"""


@pytest.mark.parametrize(
    ("text", "said", "code"),
    [
        (TIMES_OUT, "migration.timed_out", 30),
        (f"-- preflight: no-transaction\n{TIMES_OUT}", "migration.timed_out", 31),
        (ENDS_ALL, "migration.sql_error", 30),
        (f"-- preflight: no-transaction\n{ENDS_ALL}", "migration.sql_error", 31),
    ],
)
def test_file_that_ends_its_own_session_failed(  # noqa: PLR0913, PLR0917 -- fixtures
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    text: str,
    said: str,
    code: int,
) -> None:
    """Run again would be wrong advice: it is told and kept like any other failure of a file."""
    migrations({"001_a.sql": text})
    result = run(env={"PREFLIGHT_REHEARSE": "off"})

    assert (code, said) == (result.code, error_of(result)["code"]), str(result)
    assert "001_a" == result.event("migration.failed")[0]["migration"]
    assert ["failed"] == database.query("SELECT event FROM preflight.journal")


def test_timeout_that_ends_a_session_between_two_statements_is_the_files_own(
    database: servers.Database,
) -> None:
    """The server says why while nothing is asked, which libpq takes for a notice."""
    target = {key: str(value) for key, value in conninfo_to_dict(database.conninfo()).items()}
    config = Config(target, {}, Path("/nowhere"), run_id="run", wait_timeout_s=15)
    file = Migration(1, "001_a", Script("001_a.sql", b"SELECT 1", ""))

    def once(_: object) -> int:
        session.execute("SET idle_session_timeout = '1ms'")
        pgconn = session.connection.pgconn
        select.select([pgconn.socket], [], [])  # nobody asks: it has hung up
        pgconn.consume_input()
        pgconn.notifies()
        session.execute("SELECT 1")
        return 1

    with sessions.connect(config) as session:
        session.prepare()
        with pytest.raises(errors.MigrationFailed, match="idle-session timeout") as failed:
            forward.guarded(session, file, once, lambda _: False, "migration.applied")

    assert "migration.timed_out" == failed.value.code


def test_session_that_somebody_else_ended_is_told_to_run_again(
    run: Run, migrations: WriteMigrations
) -> None:
    """Also in a statement that ends other sessions, and spares its own."""
    migrations({
        "001_a.sql": "CREATE FUNCTION somebody() RETURNS bool LANGUAGE sql AS "
        "'SELECT pg_terminate_backend(pg_backend_pid())';\n"
        "SELECT somebody() UNION SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND datname = 'none';"
    })  # fmt: skip

    assert 13 == run(env={"PREFLIGHT_REHEARSE": "off"}).code


@pytest.mark.fault("E111")
@pytest.mark.parametrize("sqlstate", ["40P01", "40001", "55P03"])
def test_passing_failure_runs_the_whole_file_again(
    run: Run, database: servers.Database, migrations: WriteMigrations, sqlstate: str
) -> None:
    """A sequence counts the tries, because it does not roll back."""
    database.script("CREATE SEQUENCE tries")
    migrations(
        {
            "001_a.sql": "CREATE TABLE a (); PREPARE p AS SELECT 1;\n"
            "DO $$ BEGIN IF nextval('tries') < 3 THEN "
            f"RAISE 'not now' USING ERRCODE = '{sqlstate}'; END IF; END $$;"
        }
    )

    result = run(env={"PREFLIGHT_FIRST_CONTACT": "pending"})

    assert 0 == result.code, str(result)
    assert [sqlstate] * 2 == [each["sqlstate"] for each in result.event("migration.retried")]
    assert [3] == database.query("SELECT last_value FROM tries")


@pytest.mark.fault("E111")
@pytest.mark.parametrize("mark", ["", "-- preflight: no-transaction\n"])
@pytest.mark.parametrize(
    ("text", "others", "sqlstate"),
    [
        ("GRANT USAGE ON SCHEMA a TO PUBLIC", "GRANT CREATE ON SCHEMA a TO PUBLIC", "XX000"),
        ("GRANT TEMP ON DATABASE {} TO PUBLIC", "GRANT CREATE ON DATABASE {} TO PUBLIC", "XX000"),
        ("CREATE SCHEMA IF NOT EXISTS made", "CREATE SCHEMA made", "23505"),
    ],
)
def test_file_that_meets_another_at_a_row_of_a_catalog_is_tried_again(  # noqa: PLR0913, PLR0917 -- fixtures
    start: Start,
    create_database: CreateDatabase,
    start_server: StartServer,
    migrations: WriteMigrations,
    mark: str,
    text: str,
    others: str,
    sqlstate: str,
) -> None:
    """It is no fault of the file's: two targets of a wave share schemas, databases and roles."""
    # Autovacuum writes a database's row, too: a GRANT that waits behind it reads the row again.
    database = create_database(start_server(autovacuum="off"))
    database.script("CREATE SCHEMA a")
    migrations({"001_a.sql": f"{mark}CREATE TABLE a ();\n{text.format(database.name)};\n"})
    with database.server.connect(database.name) as other:
        other.execute(f"BEGIN; {others.format(database.name)}".encode())
        process = start(env={**database.env(), **PATIENT})
        process.wait_for_event("migration.blocked")
        other.execute("COMMIT")
    result = process.wait()

    assert 0 == result.code, str(result)
    assert [sqlstate] == [each["sqlstate"] for each in result.event("migration.retried")]


LEVEL = "SELECT current_setting('transaction_isolation')"


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ;\n{};", "repeatable read"),
        ("SET lock_timeout = '1s'; SET TRANSACTION ISOLATION LEVEL SERIALIZABLE, DEFERRABLE;\n{};",
         "serializable"),
        ("BEGIN;\nSET TRANSACTION ISOLATION LEVEL REPEATABLE READ;\n{};\nCOMMIT;",
         "repeatable read"),
        ("BEGIN ISOLATION LEVEL SERIALIZABLE READ WRITE;\n{};\nCOMMIT;", "serializable"),
        ("START TRANSACTION ISOLATION LEVEL READ UNCOMMITTED;\n{};\nCOMMIT;", "read committed"),
        ("BEGIN;\nSET LOCAL transaction_isolation = 'repeatable read';\n{};\nCOMMIT;",
         "repeatable read"),
    ],
)  # fmt: skip
def test_file_runs_at_the_level_that_it_says(
    run: Run, database: servers.Database, migrations: WriteMigrations, text: str, level: str
) -> None:
    """On the copy, forward, by force and back; its transaction is the runner's all the same."""
    database.script("CREATE TABLE seen (level text)")
    seen = f"INSERT INTO seen {LEVEL}"
    migrations({
        "001_a.sql": text.format(f"CREATE TABLE IF NOT EXISTS a (); {seen}"),
        "001_a_verify.sql": "SELECT 's' AS suite, 'a' AS \"check\", to_regclass('a') IS NOT NULL "
        "AS ok",
        "001_a_rollback.sql": text.format(f"DROP TABLE a; {seen}"),
    })  # fmt: skip
    env = {"PREFLIGHT_BACKUP": "required", "PREFLIGHT_REHEARSE": "always"}
    results = [run(*each.split(), env=env) for each in ("up", "force 1", "rollback")]

    assert [0, 0, 0] == [each.code for each in results], "".join(map(str, results))
    assert [level] * 3 == database.query("TABLE seen")


def test_file_at_its_own_level_is_tried_again_where_another_wrote_first(
    start: Start, database: servers.Database, migrations: WriteMigrations
) -> None:
    """What READ COMMITTED would wait for and go on with is 40001 here."""
    database.script("CREATE TABLE c AS SELECT 1 AS n")
    migrations(
        {"001_a.sql": "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; UPDATE c SET n = 10 * n"}
    )
    with database.server.connect(database.name) as other:
        other.execute("BEGIN; UPDATE c SET n = n + 1")
        process = start(env=PATIENT)
        process.wait_for_event("migration.blocked")
        other.execute("COMMIT")
    result = process.wait()

    assert 0 == result.code, str(result)
    assert ["40001"] == [each["sqlstate"] for each in result.event("migration.retried")]
    assert [20] == database.query("TABLE c")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("SET TRANSACTION READ ONLY;\n", "a READ ONLY transaction cannot be recorded"),
        ("-- preflight: lock-timeout 5\n", "'lock-timeout 5' says no unit, and is 5 ms"),
        ("-- preflight: max-lock 597h\n", "'max-lock 597h' does not fit"),
        (
            "SELECT pg_advisory_unlock_all();\n",
            "pg_advisory_unlock_all gives away the lock of this run",
        ),
    ],
)
def test_file_that_is_due_and_cannot_be_meant_is_refused_where_it_says_so(
    run: Run, migrations: WriteMigrations, text: str, said: str
) -> None:
    """Before the first of them runs: what cannot be recorded, and a number that looks like seconds.

    `lint` has a remark of it, for it does not know what is recorded.
    """
    migrations({"001_a.sql": "SELECT 1;", "002_b.sql": f"{text}SELECT 1;"})
    remarked, result = run("lint"), run()

    assert (25, 1, 1, None) == place_of(result), str(result)
    assert all(f"002_b.sql:1:1: {said}" in str(each) for each in (remarked, result))
    assert 3 == run("check").code


def test_verify_file_that_gives_the_lock_away_is_refused_of_what_has_not_run(
    run: Run, migrations: WriteMigrations
) -> None:
    """The file after it would run without the lock; what is recorded is not judged."""
    checks = "SELECT 's' AS suite, 'c' AS \"check\", pg_advisory_unlock_all() IS NOT NULL AS ok;"
    migrations({"001_a.sql": "SELECT 1;"})
    applied = run()
    migrations({"001_a_verify.sql": checks, "002_b.sql": "SELECT 2;"})
    recorded = run()
    migrations({"003_c.sql": "SELECT 3;", "003_c_verify.sql": checks})
    remarked, planned, result = run("lint"), run("plan"), run()

    assert [0, 0, 0] == [each.code for each in (applied, recorded, remarked)], str(recorded)
    assert [25, 25] == [each.code for each in (planned, result)], str(result)
    said = "003_c_verify.sql:1:1: pg_advisory_unlock_all gives away the lock of this run"
    assert all(said in str(each) for each in (remarked, planned, result))


def test_rollback_that_could_miss_what_its_export_saves_is_refused(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Its transaction reads as of its first statement, before it has the tables for itself."""
    migrations({
        "001_a.sql": "CREATE TABLE a (n int)",
        "001_a_rollback.sql": "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE; DROP TABLE a",
        "001_a_export.sql": "SELECT * FROM a",
    })  # fmt: skip
    applied = run()
    result = run("rollback", env={"PREFLIGHT_BACKUP": "required"})

    assert [0, 25] == [each.code for each in (applied, result)], f"{applied}{result}"
    assert "001_a_rollback.sql" == error_of(result)["file"]
    assert [1] == database.query("SELECT count(*)::int FROM preflight.migrations")


@pytest.mark.parametrize(
    "text",
    [
        "BEGIN ISOLATION LEVEL SERIALIZABLE;\nLOCK a; {does}; COMMIT;",
        "SET work_mem = '8MB'; SET TRANSACTION ISOLATION LEVEL SERIALIZABLE;\nLOCK a; {does};",
    ],
)
def test_level_of_a_file_that_locks_first_is_refused(
    run: Run, database: servers.Database, migrations: WriteMigrations, text: str
) -> None:
    """What others commit while it waits would be lost: the history is claimed before its LOCK."""
    migrations({"001_a.sql": "CREATE TABLE a (n int)", "001_a_rollback.sql": "DROP TABLE a"})
    assert 0 == run().code
    anew = "CREATE TABLE b AS SELECT * FROM a; DROP TABLE a; ALTER TABLE b RENAME TO a"
    migrations({"002_b.sql": text.format(does=anew)})
    forward = run()
    migrations({"002_b.sql": "SELECT 1", "002_b_rollback.sql": text.format(does="DELETE FROM a")})
    applied, back = run(), run("rollback")

    assert [25, 0, 25] == [each.code for each in (forward, applied, back)], f"{forward}{back}"
    for refused in (forward, back):
        assert 2 == error_of(refused)["line"]
        assert "would miss what others commit while it waits" in error_of(refused)["message"]
    assert [2] == database.query("SELECT count(*)::int FROM preflight.migrations")


@pytest.mark.parametrize("seconds", ["0", "10"])
@pytest.mark.parametrize(("mark", "code"), [("", 30), ("-- preflight: no-transaction\n", 31)])
def test_row_of_a_catalog_that_nobody_else_adds_is_the_files_fault(
    run: Run, migrations: WriteMigrations, mark: str, code: int, seconds: str
) -> None:
    """A label twice in one type is there again: another try tells, however short patience is."""
    migrations({"001_a.sql": f"{mark}CREATE TYPE a AS ENUM ('one', 'one');"})
    result = run(env={"PREFLIGHT_REHEARSE": "off", "PREFLIGHT_LOCK_RETRY_S": seconds})
    assert 1 == len(result.event("migration.retried"))

    assert (code, "23505") == (result.code, error_of(result)["sqlstate"]), str(result)
    assert "Correct the file" in error_of(result)["hint"]


def test_directives_set_the_timeouts_of_their_file(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """And only of their file."""
    show = (
        "CREATE TABLE {} AS SELECT current_setting('lock_timeout') AS a, "
        "current_setting('statement_timeout') AS b;"
    )
    migrations(
        {
            "001_a.sql": "-- preflight: lock-timeout 7s\n-- preflight: statement-timeout 2min\n"
            + show.format("a"),
            "002_b.sql": show.format("b"),
            "003_c.sql": "-- preflight: statement-timeout 50ms\nSELECT pg_sleep(60);",
        }
    )

    result = run(env={"PREFLIGHT_LOCK_TIMEOUT_MS": "1500", "PREFLIGHT_STATEMENT_TIMEOUT_S": "90"})

    assert (30, 2, 1, "57014") == place_of(result)
    longer = "It took longer than `statement-timeout` in 003_c.sql (0.05 s): raise that."
    assert longer == error_of(result)["hint"]
    assert [("7s", "2min")] == database.query("TABLE a")
    assert [("1500ms", "90s")] == database.query("TABLE b")


@pytest.mark.parametrize("mark", ["", "-- preflight: no-transaction\n"])
@pytest.mark.parametrize("limit", ["directive", "variable"])
def test_verify_file_obeys_the_timeouts_of_its_file(
    run: Run, migrations: WriteMigrations, mark: str, limit: str
) -> None:
    """It runs while the file's locks are held; a rollback's verify file, too. It is told whose."""
    said = "-- preflight: statement-timeout 50ms\n" if limit == "directive" else ""
    env = {} if said else {"PREFLIGHT_STATEMENT_TIMEOUT_S": "0.05"}
    env |= {"PREFLIGHT_REHEARSE": "off"}
    check = "SELECT 's' AS suite, 'c' AS \"check\", to_regclass('a') IS NOT NULL AS ok"
    slow = {"001_a_verify.sql": f"{check} FROM pg_sleep(60);"}
    migrations(
        {
            "001_a.sql": f"{mark}{said}CREATE TABLE a ();",
            "001_a_rollback.sql": f"{mark}{said}DROP TABLE a;",
        }
        | slow
    )
    forward = run(env=env)
    migrations({"001_a_verify.sql": f"{check};"})
    assert 0 == run(env=env).code
    migrations(slow)
    back = run("rollback", env=env)

    code = 31 if mark else 30
    assert [(code, "57014")] * 2 == [
        (each.code, each.finished["error"].get("sqlstate")) for each in (forward, back)
    ], f"{forward}{back}"
    limits = [
        f"`statement-timeout` in {file} (0.05 s): raise that"
        if said
        else "PREFLIGHT_STATEMENT_TIMEOUT_S (0.05 s): raise it, or write `-- preflight: "
        f"statement-timeout 5min` at the top of {file}"
        for file in ("001_a.sql", "001_a_rollback.sql")
    ]
    assert [f"It took longer than {limit}." for limit in limits] == [
        error_of(each)["hint"] for each in (forward, back)
    ]


READ_AT_THE_TOP = {
    "plain": ("001_a.sql", "-- no-transaction\n"),
    "sqlx": ("20240101000000_a.sql", "-- no-transaction\n"),
    "graphile": ("000001-a.sql", "--! Previous: -\n--! Hash: {}\n"),
}


@pytest.mark.parametrize("tool", READ_AT_THE_TOP)
def test_directive_that_is_advised_leaves_a_file_as_its_tool_reads_it(
    run: Run, migrations: WriteMigrations, tool: str
) -> None:
    """What stands at the top has to: a file would run otherwise than before, or not at all."""
    file, top = READ_AT_THE_TOP[tool]
    text = "VACUUM;" if "no-transaction" in top else ""
    text += "SELECT pg_sleep(0.1);\n"
    digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
    top = top.format(f"sha1:{digest}")
    env = {"PREFLIGHT_STATEMENT_TIMEOUT_S": "0.05", "PREFLIGHT_REHEARSE": "off"}
    env |= {"PREFLIGHT_LAYOUT": tool} if tool != "plain" else {}
    migrations({file: top + text})
    hint = error_of(run(env=env))["hint"]
    graphile = tool == "graphile"
    where = f"below the `--!` lines of {file}, and `--! AllowInvalidHash` below its `--! Hash:`"
    assert hint.endswith(f"5min` {where if graphile else f'below the first line of {file}'}."), hint

    top += "--! AllowInvalidHash\n\n" if graphile else ""
    migrations({file: f"{top}-- preflight: statement-timeout 5min\n{text}"})
    result = run(env=env)

    assert (0, [file.removesuffix(".sql")]) == (result.code, result.finished["applied"]), str(
        result
    )


OURS = "than PREFLIGHT_STATEMENT_TIMEOUT_S (0.2 s): raise it, or write `-- preflight: "


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", f"{OURS}statement-timeout 5min` at the top of 001_a.sql. Or was it the "),
        ("-- preflight: statement-timeout 0\n", "than the statement_timeout that the file, or a "),
    ],
)
def test_statement_timeout_of_a_file_s_own_is_not_told_for_ours(
    run: Run, migrations: WriteMigrations, text: str, hint: str
) -> None:
    """Which of the two it was cannot be told where both hold; without ours it can."""
    migrations({"001_a.sql": f"{text}SET LOCAL statement_timeout = 100; SELECT pg_sleep(60);"})
    result = run(env={"PREFLIGHT_STATEMENT_TIMEOUT_S": "0.2", "PREFLIGHT_REHEARSE": "off"})

    assert (30, "57014") == (result.code, error_of(result)["sqlstate"]), str(result)
    assert error_of(result)["hint"].startswith(f"It took longer {hint}"), str(result)


def test_statement_that_somebody_cancelled_is_not_told_to_take_too_long(
    run: Run, migrations: WriteMigrations
) -> None:
    """The limit that holds for it has nothing to do with that."""
    migrations({"001_a.sql": "SELECT pg_cancel_backend(pg_backend_pid());"})
    result = run(env={"PREFLIGHT_STATEMENT_TIMEOUT_S": "60", "PREFLIGHT_REHEARSE": "off"})

    assert (30, "57014") == (result.code, error_of(result)["sqlstate"]), str(result)
    assert error_of(result)["hint"].startswith("Somebody cancelled it"), str(result)


def test_prepared_transaction_in_the_way_is_named(
    start_server: StartServer,
    create_database: CreateDatabase,
    run: Run,
    migrations: WriteMigrations,
) -> None:
    """It has no process, so it is named by the name that ends it."""
    database = create_database(start_server(max_prepared_transactions=2))
    database.script(TABLE)
    migrations({"001_a.sql": "ALTER TABLE t ADD COLUMN b int;"})
    with database.server.connect(database.name) as connection:
        for gid, statement in (("bystander", "CREATE TABLE u ()"), ("order 7", "TABLE t")):
            connection.execute(f"BEGIN; {statement}; PREPARE TRANSACTION '{gid}'")
        env = {
            **database.env(),
            "PREFLIGHT_LOCK_TIMEOUT_MS": "1000",
            "PREFLIGHT_LOCK_RETRY_S": "0",
            "PREFLIGHT_FIRST_CONTACT": "pending",
        }
        result, document = run(env=env), run("plan", "--json", env=env).json()
        table = run("plan", "--table", env=env).stdout
        for gid in ("bystander", "order 7"):
            connection.execute(f"ROLLBACK PREPARED '{gid}'")
        connection.execute("BEGIN; LOCK TABLE t; PREPARE TRANSACTION 'nightly'")
        backup = run("backup", env={**env, "PREFLIGHT_LOCK_TIMEOUT_MS": "100"})
        connection.execute("ROLLBACK PREPARED 'nightly'")

    assert (12, "55P03") == (result.code, error_of(result)["sqlstate"]), str(result)
    assert "blocked by prepared transaction 'order 7' of postgres" in error_of(result)["message"]
    assert [[(0, "order 7")]] == [
        [(each["pid"], each["gid"]) for each in event["blocked_by"]]
        for event in result.event("migration.blocked")
    ]
    assert [[(0, "order 7", "postgres")]] == [
        [(each["pid"], each["gid"], each["user"]) for each in step["blocked_by"]]
        for step in document["statements"]
    ]
    assert "prepared transaction 'order 7'" in table
    assert 14 == backup.code
    assert "t by prepared transaction 'nightly'" in error_of(backup)["message"]


def test_watch_that_cannot_connect_does_not_hammer_the_server(
    create_database: CreateDatabase,
    start_server: StartServer,
    run: Run,
    migrations: WriteMigrations,
) -> None:
    """Where no second session is free, one is asked for about once a second."""
    database = create_database(start_server())
    database.script(
        f"CREATE ROLE alone LOGIN PASSWORD $${servers.PASSWORD}$$ CONNECTION LIMIT 1;"
        f"GRANT CREATE ON DATABASE {database.name} TO alone;"
    )
    migrations({"001_a.sql": "SELECT pg_sleep(3);"})
    result = run(
        env={**database.env(), "PGUSER": "alone", "PREFLIGHT_REHEARSE": "off"},
    )

    assert 0 == result.code, str(result)
    refused = database.server.log.read_text().count('too many connections for role "alone"')
    assert 1 <= refused <= 4, refused


def test_blocker_of_an_earlier_statement_is_not_named(
    start: Start, database: servers.Database, migrations: WriteMigrations
) -> None:
    """What was in the way once has nothing to do with a later deadlock."""
    database.script(TABLE)
    migrations(
        {
            "001_a.sql": "ALTER TABLE t ADD COLUMN b int;\n"
            "DO $$ BEGIN RAISE 'dead' USING ERRCODE = '40P01'; END $$;"
        }
    )
    with database.server.connect(database.name) as blocker:
        blocker.execute("BEGIN; TABLE t")
        process = start(
            env={
                "PREFLIGHT_LOCK_TIMEOUT_MS": "60000",
                "PREFLIGHT_LOCK_RETRY_S": "0",
                "PREFLIGHT_FIRST_CONTACT": "pending",
            }
        )
        process.wait_for_event("migration.blocked")
        blocker.execute("COMMIT")
    result = process.wait()

    assert (12, "40P01") == (result.code, error_of(result)["sqlstate"]), str(result)
    assert error_of(result)["message"].endswith("the blocker was gone before it could be named")


# --- the fence ------------------------------------------------------------------------------------


@pytest.fixture
def claimed(run: Run, migrations: WriteMigrations) -> WriteMigrations:
    """Give a directory whose 002 is pending, in a database that knows 001."""
    migrations({"001_a.sql": "CREATE TABLE a ();"})
    assert 0 == run().code
    migrations({"002_b.sql": "CREATE TABLE b ();"})
    return migrations


CLAIM = (
    "INSERT INTO preflight.migrations (version, name, checksum, state, how, up_sql, tool_version, "
    "run_id) SELECT 2, '002_b', %s, 'done', 'applied', '', '', 'another'"
)


@pytest.mark.usefixtures("claimed")
def test_wait_on_the_fence_is_the_lock_being_busy(run: Run, database: servers.Database) -> None:
    """11, not 12: another run is in the middle of it; it is named, and the file did not fail."""
    with database.server.connect(database.name) as other:
        pid = other.info.backend_pid
        other.execute("BEGIN")
        other.execute(CLAIM, ["x"])
        result = run(env={"PREFLIGHT_LOCK_TIMEOUT_MS": "100", "PREFLIGHT_LOCK_WAIT_S": "1"})

    assert (11, "lock.fence") == (result.code, error_of(result)["code"])
    assert [pid] == [each["holder_pid"] for each in result.event("lock.busy")]
    assert f"pid {pid}" in error_of(result)["message"]
    assert [] == result.event("migration.failed")
    assert ["applied"] == database.query("SELECT event FROM preflight.journal")


@pytest.mark.fault("B039")
@pytest.mark.usefixtures("claimed")
def test_run_that_comes_second_plans_again(start: Start, database: servers.Database) -> None:
    """The other run commits while we wait on the fence: nothing is left to do."""
    checksum = hashlib.sha256(b"CREATE TABLE b ();").hexdigest()
    with database.server.connect(database.name) as other:
        other.execute("BEGIN")
        other.execute(CLAIM, [checksum])
        process = start(env={"PREFLIGHT_LOCK_TIMEOUT_MS": "100"})
        process.wait_for_event("lock.busy")
        other.execute("COMMIT")
    result = process.wait()

    assert 0 == result.code, str(result)
    assert "applied" not in result.finished
    assert [None] == database.query("SELECT to_regclass('b')")


def test_replaced_session_takes_a_backup_of_its_own(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Nobody held the lock for a moment: the first backup may be of another state."""
    migrations({f"00{n}_t.sql": f"CREATE TABLE t{n} ();" for n in (1, 2, 3)})
    with faults.through(database.server, faults.LostCommit(3)) as proxy:
        result = run(env={**proxy.env(), "PREFLIGHT_BACKUP": "required"})

    assert 0 == result.code, str(result)
    taken = [each["backup"] for each in result.event("backup.verified")]
    assert 2 == len(taken), str(result)
    assert taken == database.query(
        "SELECT backup FROM preflight.migrations GROUP BY backup ORDER BY min(version)"
    )


# --- connections that end -------------------------------------------------------------------------


@pytest.mark.fault("E113")
def test_terminated_session_is_connection_lost(
    start: Start, database: servers.Database, migrations: WriteMigrations
) -> None:
    """13: the file was rolled back, and the history says so to the next run."""
    migrations({"001_a.sql": "CREATE TABLE a (); SELECT pg_sleep(60);"})
    process = start()
    process.wait_for_event("migration.started")
    terminated = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE %s"
    while not database.query(terminated, "SELECT pg_sleep(60)%"):
        assert process.running
    result = process.wait()

    assert 13 == result.code, str(result)
    assert "001_a" == error_of(result)["migration"]
    assert [0] == database.query("SELECT count(*) FROM preflight.migrations")
    assert ["001_a"] == [each["migration"] for each in result.event("migration.failed")]
    assert [("failed", error_of(result)["message"])] == database.query(
        "SELECT event, error FROM preflight.journal"
    )


def test_stop_in_the_middle_of_a_statement_rolls_back(
    start: Start, database: servers.Database, migrations: WriteMigrations
) -> None:
    """143, no session of ours is left, and the next run does all of it."""
    migrations({"001_a.sql": "CREATE TABLE a (); SELECT pg_sleep(60);"})
    process = start()
    process.wait_for_event("migration.started")
    sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE %s AND state = 'active'"
    while database.query(sleeping, "SELECT pg_sleep(60)%") == [0]:
        assert process.running
    process.signal(signal.SIGTERM)
    result = process.wait(5)

    assert 143 == result.code, str(result)
    assert 0 == database.sessions()
    assert [None] == database.query("SELECT to_regclass('a')")


def test_plain_role_and_odd_names_work(
    run: Run, server: servers.Server, create_database: CreateDatabase, migrations: WriteMigrations
) -> None:
    """An owner who is no superuser, whose name and database need quotes."""
    database = create_database(server, 'Ünicorn\'s "db" = 100%')
    role = 'o\'Neil "%s" é'
    with server.connect() as connection:
        connection.execute(
            psycopg.sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'p'").format(
                psycopg.sql.Identifier(role)
            )
        )
        connection.execute(
            psycopg.sql.SQL("ALTER DATABASE {} OWNER TO {}").format(
                psycopg.sql.Identifier(database.name), psycopg.sql.Identifier(role)
            )
        )
    try:
        migrations({"001_a.sql": "CREATE SCHEMA app; CREATE TABLE app.a ();"})
        result = run(env=database.env(role, "p"))

        assert 0 == result.code, str(result)
        assert [(role, "done")] == database.query(
            "SELECT applied_by, state FROM preflight.migrations"
        )
    finally:
        with server.connect(database.name) as connection:
            connection.execute(
                psycopg.sql.SQL("ALTER DATABASE {} OWNER TO postgres").format(
                    psycopg.sql.Identifier(database.name)
                )
            )
            connection.execute(
                psycopg.sql.SQL("DROP OWNED BY {} CASCADE").format(psycopg.sql.Identifier(role))
            )
            connection.execute(psycopg.sql.SQL("DROP ROLE {}").format(psycopg.sql.Identifier(role)))


BLOCK = "CREATE TABLE t (a int);\n\nDO $$\nBEGIN\n  PERFORM 1;\n  PERFORM err_here FROM t;\nEND $$;"
CALLED = (
    "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $f$\nBEGIN\n  RAISE 'no';\nEND $f$;\n"
    "DO LANGUAGE plpgsql '\nDECLARE n int;\nBEGIN\n\n  PERFORM f(); END';"
)
MADE = (
    "SELECT 1;\nCREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS\n $x$\nBEGIN\n"
    "  IF 1 THEN nope nope; END IF;\nEND $x$;"
)


@pytest.mark.parametrize(
    ("text", "line", "context"),
    [
        (BLOCK, 6, "inline_code_block line 4 at PERFORM"),
        (CALLED, 9, "function f() line 3 at RAISE"),
        (MADE, 5, ""),
        ("DO $$ BEGIN PERFORM 1 / 0; END $$;", 1, "inline_code_block line 1 at PERFORM"),
    ],
)
def test_error_inside_a_block_names_its_line_there(
    run: Run, migrations: WriteMigrations, text: str, line: int, context: str
) -> None:
    """And the context that psql shows, without the texts and values in it."""
    migrations({"001_a.sql": text})

    error = run().finished["error"]

    assert line == error["line"], error
    assert f"001_a.sql:{line}:" in error["message"]
    assert context in error.get("context", "")
    assert "SQL statement" not in error.get("context", "")


THROUGH = """CREATE SCHEMA odd;
CREATE FUNCTION odd."F x"(a int, b numeric(5, 2), OUT c int) LANGUAGE plpgsql AS $$
BEGIN
  -- what fails is two lines below
  c := 1;
  RAISE EXCEPTION 'no';
END $$;
CREATE FUNCTION odd."F x"(a int) RETURNS int LANGUAGE plpgsql AS $$
BEGIN
  RETURN (SELECT c FROM odd."F x"(a, 2));
END $$;
DO $$
BEGIN
  PERFORM odd."F x"(1);
END $$;
"""


def test_line_inside_a_function_of_the_file_is_named(run: Run, migrations: WriteMigrations) -> None:
    """Of each one that the error came through, by its name and its arguments."""
    migrations({"001_called.sql": THROUGH})
    error = run().finished["error"]

    assert 14 == error["line"]
    assert [
        "line 5 at RAISE (001_called.sql:6)",
        "line 3 at RETURN (001_called.sql:10)",
        "line 3 at PERFORM",
    ] == [line[line.index("line ") :] for line in error["context"].splitlines()]


@pytest.mark.parametrize(
    ("text", "shows"),
    [
        ("CREATE TABLE t (a int UNIQUE); INSERT INTO t VALUES (7), (7);", True),
        ("CREATE TABLE t AS SELECT 'x7'::text AS a; SELECT a::int FROM t;", True),
        ("SELECT 1 / 0;", False),
        ("SELEC 1;", False),
    ],
)
def test_failed_file_has_a_hint_that_is_true(
    run: Run, migrations: WriteMigrations, text: str, *, shows: bool
) -> None:
    """30 says what to do; a row is promised only where there is one, and then it is shown."""
    migrations({"001_a.sql": text})

    error = run().finished["error"]
    people = run(env={"PREFLIGHT_LOG_SQL": "on", "PREFLIGHT_LOG": "console"}).stdout

    assert "run again" in error["hint"]
    assert shows == ("shows the row" in error["hint"])
    assert "7" not in error["message"].removeprefix("001_a.sql:1:")[3:]
    assert not shows or "(7)" in people or "x7" in people


VERIFIES = "SELECT 's' AS suite, 'c' AS \"check\", to_regclass('a') IS NOT NULL AS ok;"


@pytest.mark.parametrize(
    ("verify", "says", "other"),
    [
        (VERIFIES, "if its verify file agrees", "Else"),
        (None, "no other statement of it runs", "agrees"),
    ],
    ids=["verified", "not"],
)
def test_what_is_there_already_may_be_adopted_and_the_hint_says_at_what_price(  # noqa: PLR0913, PLR0917 -- a case each
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    verify: str | None,
    says: str,
    other: str,
) -> None:
    """Without a verify file nothing tells whether the rest of the file is there."""
    database.script("CREATE TABLE b ()")
    files = {"001_a.sql": "CREATE TABLE a ();\nCREATE TABLE b ();"}
    migrations(files | ({"001_a_verify.sql": verify} if verify else {}))

    error = run(env={"PREFLIGHT_FIRST_CONTACT": "pending"}).finished["error"]

    assert "42P07" == error["sqlstate"]
    assert "`adopt 1` records the file" in error["hint"]
    assert says in error["hint"]
    assert other not in error["hint"]


@pytest.mark.parametrize("mark", ["", "-- preflight: no-transaction\n"])
def test_way_back_that_meets_something_in_its_way_is_not_to_be_adopted(
    run: Run, database: servers.Database, migrations: WriteMigrations, mark: str
) -> None:
    """It is recorded already: to adopt it would leave the work undone."""
    files = {"001_a.sql": "DROP TABLE IF EXISTS b", "001_a_verify.sql": "SELECT 's' AS suite,"}
    files["001_a_verify.sql"] += " 'c' AS \"check\", to_regclass('b') IS NULL AS ok"
    migrations(files | {"001_a_rollback.sql": f"{mark}CREATE TABLE b ();"})
    assert 0 == run(env={"PREFLIGHT_FIRST_CONTACT": "pending"}).code
    database.script("CREATE TABLE b ()")

    error = run("rollback").finished["error"]

    assert "42P07" == error["sqlstate"]
    assert "`adopt" not in error["hint"]
    assert "in its way" in error["hint"]


def test_file_that_runs_again_is_not_to_be_adopted(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """It has no version that `adopt` could be given."""
    database.script("CREATE TABLE b ()")
    migrations({"V1__a.sql": "CREATE TABLE a ();", "R__x.sql": "CREATE TABLE b ();"})

    error = run(env={"PREFLIGHT_FIRST_CONTACT": "pending"}).finished["error"]

    assert "42P07" == error["sqlstate"]
    assert "`adopt" not in error["hint"]
    assert "IF NOT EXISTS" in error["hint"]


@pytest.mark.fault("D081")
def test_file_of_comments_only_is_recorded(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """With and without a transaction, there and back: nothing runs, and it is done."""
    migrations(
        {
            "001_a.sql": "-- nothing to do on PostgreSQL\n",
            "001_a_rollback.sql": "/* nothing to undo */",
            "002_b.sql": "-- preflight: no-transaction\n-- nothing\n;",
        }
    )

    assert 0 == run().code
    assert [("done", 0), ("done", 0)] == database.query(
        "SELECT state, statements_done FROM preflight.migrations"
    )
    assert [0, 0] == [run("plan").code, run("lint").code]
    database.script("DELETE FROM preflight.migrations WHERE version = 2")
    assert 0 == run("rollback").code


@pytest.mark.parametrize(
    ("verify", "expected"),
    [("", 4), ("SELECT 'x' AS suite, 'x' AS \"check\", true AS ok", 6)],
    ids=["plain", "verified"],
)
def test_a_file_costs_four_messages(
    run: Run, database: servers.Database, migrations: WriteMigrations, verify: str, expected: int
) -> None:
    """What a file costs beside its statements is counted: 500 small ones pay it 500 times."""
    database.query(f"ALTER DATABASE {database.name} SET log_statement = 'all'")
    log = database.server.log

    def messages(*numbers: int) -> int:
        migrations({f"{n:03}_x.sql": f"CREATE TABLE x{n} ();" for n in numbers})
        if verify:
            migrations({f"{n:03}_x_verify.sql": verify for n in numbers})
        before = log.stat().st_size
        assert 0 == run(env={"PREFLIGHT_BACKUP": "off"}).code
        return len(re.findall(rb"LOG:  (?:statement|execute [^:]*):", log.read_bytes()[before:]))

    messages(1)

    assert expected * 5 == messages(*range(10, 16)) - messages(20)


@pytest.mark.parametrize(
    ("sessions", "schema", "memory", "locked"),
    [(-1, "app", "5MB", 3), (1, "public", "4MB", 1)],
    ids=["renewed", "no other to be had"],
)
def test_next_file_gets_what_an_earlier_one_set_for_new_sessions(  # noqa: PLR0913, PLR0917 -- a case each
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    sessions: int,
    schema: str,
    memory: str,
    locked: int,
) -> None:
    """As in a run of its own; where no new session can be had, a warning says so."""
    role = database.limited(sessions, "app", "public")
    gives = f"ALTER ROLE {role} IN DATABASE {database.name} SET"
    migrations(
        {
            "001_a.sql": f"DO $$ BEGIN {gives} search_path = app; END $$;",
            "002_b.sql": "-- preflight: no-transaction\nCREATE TABLE t ();\n"
            f"{gives} work_mem = '5MB'",
            "003_c.sql": f"SELECT 1 / (current_setting('work_mem') = '{memory}')::int;",
        }
    )
    result = run(env=database.env(role, "x"))
    found = database.query("SELECT schemaname FROM pg_tables WHERE tablename = 't'")
    database.script(f"DROP OWNED BY {role}; DROP ROLE {role}")

    assert 0 == result.code, str(result)
    assert ([schema], locked) == (found, len(result.event("lock.acquired")))
    warned = [each for each in result.events if "new sessions" in str(each.get("notice"))]
    assert 2 * (sessions == 1) == len(warned)


@pytest.mark.parametrize(
    ("sessions", "null", "locked"),
    [(-1, "true", 4), (1, "false", 1)],
    ids=["renewed", "no other to be had"],
)
def test_setting_with_a_dot_does_not_reach_the_next_file(  # noqa: PLR0913, PLR0917 -- a case each
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    sessions: int,
    null: str,
    locked: int,
) -> None:
    """Each file gets it as in a run of its own: no value, or that of the database."""
    role = database.limited(sessions, "app", "public")
    database.script(f"ALTER DATABASE {database.name} SET app.kept = 'k'")
    expect = f"SELECT 1 / ((current_setting('app.{{}}', true) IS NULL) = {null})::int;\n"
    expect += "SELECT 1 / (current_setting('app.kept') = 'k')::int;\n"
    migrations(
        {
            "001_a.sql": "SET LOCAL app.a = 'x';",
            "002_b.sql": expect.format("a") + "DO $$ BEGIN PERFORM set_config('app.b', '', true);"
            " SET app.kept = 'other'; END $$",
            "003_c.sql": "-- preflight: no-transaction\n" + expect.format("b") + "SET app.c = 'x'",
            "004_d.sql": expect.format("c") + "CREATE TABLE d ();",
            "005_e.sql": "CREATE TABLE e ();",
        }
    )
    result = run(env=database.env(role, "x") | {"PREFLIGHT_BACKUP": "off"})
    database.script(f"DROP OWNED BY {role}; DROP ROLE {role}")

    assert 0 == result.code, str(result)
    assert locked == len(result.event("lock.acquired"))
    warned = [each for each in result.events if "dot in its name" in str(each.get("notice"))]
    assert 1 * (sessions == 1) == len(warned)  # said once


DOTTED = {
    "001_a.sql": "CREATE TABLE a (); SELECT 1; SET app.a = '1';",
    "001_a_rollback.sql": "DROP TABLE a; SELECT 1; SET app.a = '1';",
    "001_a_verify.sql": "SELECT 's' AS suite, 'a' AS \"check\", to_regclass('a') IS NOT NULL AS ok;"
    "SELECT 's' AS suite, 'b' AS \"check\", false AS effect,"
    " current_setting('app.a', true)::int IS NULL AS ok;",
}


def test_setting_with_a_dot_does_not_reach_the_verify_file_without_a_transaction(
    run: Run, migrations: WriteMigrations
) -> None:
    """It gets a new session, forward and back; one of a file that leaves nothing does not."""
    without = "-- preflight: no-transaction\n"
    plain = {
        "002_b.sql": "SELECT 2",
        "002_b_rollback.sql": "SELECT 2",
        "002_b_verify.sql": "SELECT 's' AS suite, 'c' AS \"check\", true AS ok, false AS effect",
    }
    files = DOTTED | plain
    migrations({n: files[n] if "verify" in n else without + files[n] for n in files})

    applied, back = run(), run("rollback", "--to", "0")

    assert [0, 0] == [applied.code, back.code], f"{applied}{back}"
    assert [2, 2] == [len(each.event("lock.acquired")) for each in (applied, back)]


def test_setting_with_a_dot_is_named_where_the_verify_file_of_a_transaction_finds_it(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """No other session sees what is not committed: the hint says how to read it."""
    migrations({n: t.replace("SET", "SET LOCAL") for n, t in DOTTED.items()})
    failed = run()
    database.script("CREATE TABLE a ()")
    adopted, back = run("adopt", "1"), run("rollback")

    assert [30, 0, 30] == [failed.code, adopted.code, back.code], f"{failed}{adopted}{back}"
    said = "Do the checks read app.a? "
    assert [said, said] == [error_of(each)["hint"][: len(said)] for each in (failed, back)]


def test_setting_with_a_dot_is_named_where_the_verify_file_can_have_no_new_session(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """The role may have one session only: the hint says how to read it, as in a transaction."""
    role = database.limited(1, "app", "public")
    without = "-- preflight: no-transaction\n"
    migrations({n: t if "verify" in n else without + t for n, t in DOTTED.items()})
    env = {"PREFLIGHT_BACKUP": "off", "PREFLIGHT_FIRST_CONTACT": "pending"}

    failed = run(env=database.env(role, "x") | env)
    database.script(f"DROP OWNED BY {role}; DROP ROLE {role}")

    assert 31 == failed.code, str(failed)
    assert error_of(failed)["hint"].startswith("Do the checks read app.a? ")


def test_setting_with_a_dot_is_seen_where_a_function_or_a_trigger_sets_it(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Of this run or an earlier one; to define it costs no session, nor does what came with it."""
    sets = (
        "RETURNS {} LANGUAGE plpgsql AS $$ BEGIN PERFORM set_config('app.{}', '', true); {} END $$"
    )
    database.script(
        f"""ALTER DATABASE {database.name} SET app.kept = 'k'; CREATE TABLE t (id int);
        CREATE FUNCTION b() {sets.format("trigger", "b", "RETURN new;")};
        CREATE TRIGGER b BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION b();
        CREATE FUNCTION c() RETURNS int LANGUAGE sql SET app.c = 'x' AS 'SELECT 1';"""
    )
    lacks = "SELECT 1 / (current_setting('app.{}', true) IS NULL)::int;\n".format
    migrations(
        {
            "001_f.sql": f"CREATE FUNCTION f() {sets.format('void', 'f', '')};",
            "002_g.sql": "CREATE FUNCTION g() RETURNS void LANGUAGE plpgsql"
            " AS 'BEGIN PERFORM dblink_connect(g); PERFORM set_config(g); END';",
            "003_b.sql": "INSERT INTO t VALUES (1);",
            "004_f.sql": lacks("b") + "SELECT f();",
            "005_c.sql": "-- preflight: no-transaction\n" + lacks("f") + "SELECT c();",
            "006_kept.sql": lacks("c") + "SET LOCAL app.kept = 'other';"
            "SET LOCAL plpgsql.extra_warnings = 'all'; DO $$ BEGIN END $$;",
            "007_kept.sql": "SELECT 1 / (current_setting('app.kept') = 'k')::int;",
        }
    )
    result = run(env={"PREFLIGHT_BACKUP": "off", "PREFLIGHT_FIRST_CONTACT": "pending"})

    assert 0 == result.code, str(result)
    events = [each for each in result.names if each in ("lock.acquired", "migration.started")]
    held, began = "lock.acquired", "migration.started"
    assert [held, *[began] * 3, *[held, began] * 3, began] == events


def test_setting_with_a_dot_does_not_reach_the_next_attempt(
    start: Start, database: servers.Database, migrations: WriteMigrations
) -> None:
    """What a rollback leaves of it is left behind with the session, each time."""
    database.script("CREATE TABLE t (a text); CREATE TABLE u (a int)")
    migrations(
        {
            "001_a.sql": "INSERT INTO t VALUES (coalesce(current_setting('app.a', true), 'none'));"
            "SET LOCAL app.a = 'x'; DO $$ BEGIN RAISE WARNING 'here'; END $$; LOCK TABLE u;"
        }
    )
    env = {
        "PREFLIGHT_BACKUP": "off",
        "PREFLIGHT_FIRST_CONTACT": "pending",
        "PREFLIGHT_LOCK_TIMEOUT_MS": "200",
        "PREFLIGHT_LOCK_RETRY_S": "600",
    }
    with database.server.connect(database.name) as blocker:
        blocker.execute("BEGIN; LOCK TABLE u")
        process = start(env=env)
        faults.until(
            lambda: 1 < [each["event"] for each in process.events].count("migration.retried"),
            "it is tried again, and once more",
        )
        blocker.execute("COMMIT")
    result = process.wait()

    assert 0 == result.code, str(result)
    assert ["none"] == database.query("TABLE t")
    attempts = 1 + len(result.event("migration.retried"))
    heard = [each for each in result.events if each.get("notice") == "here"]
    assert [attempts, attempts] == [len(heard), len(result.event("lock.acquired"))]


LOGIN = """CREATE SCHEMA app; CREATE ROLE {role}; GRANT ALL ON SCHEMA app TO {role};
GRANT CREATE ON DATABASE {database} TO {role};
CREATE FUNCTION app.login() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
 PERFORM set_config('search_path', 'app, public', false);
 PERFORM set_config('role', '{role}', false);
END $$;
CREATE EVENT TRIGGER login ON login EXECUTE FUNCTION app.login()"""


def test_what_a_trigger_sets_at_the_login_holds_for_every_file(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Schema and owner of what a file makes are those of a session of its own."""
    role = f"owner_{database.name}"
    migrations(
        {
            "001_a.sql": "CREATE TABLE a (id int); SET search_path = public; RESET ROLE;",
            "001_a_verify.sql": "SELECT 'a' AS suite, 'a' AS \"check\", count(*) = 0 AS ok FROM a",
            "002_b.sql": "-- preflight: no-transaction\nCREATE TABLE b (id int);\n"
            "CREATE INDEX CONCURRENTLY i ON b (id);",
            "003_c.sql": "CREATE TABLE c ();",
        }
    )
    database.script(LOGIN.format(role=role, database=database.name))
    result = run(env={"PREFLIGHT_BACKUP": "off", "PREFLIGHT_FIRST_CONTACT": "pending"})
    found = database.query(
        "SELECT relname::text, relnamespace::regnamespace::text, relowner::regrole::text"
        " FROM pg_class WHERE relname IN ('a', 'b', 'c', 'i', 'journal') ORDER BY 1"
    )
    database.script(f"RESET ROLE; DROP EVENT TRIGGER login; DROP OWNED BY {role}; DROP ROLE {role}")

    assert 0 == result.code, str(result)
    app = [(name, "app", role) for name in "abci"]
    assert [*app, ("journal", "preflight", role)] == found


NO = "FOR EACH ROW EXECUTE FUNCTION no()"
VERIFIED = "SELECT 'a' AS suite, 'a' AS \"check\", to_regprocedure('no()') IS NOT NULL AS ok"


def test_what_a_file_sets_changes_nothing_in_what_is_recorded(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Encoding, quoting, isolation, role: the history has each file as it is, byte for byte."""
    text = r"""COMMENT ON TABLE t IS E'\\ it''s 100%s, 10 €'; -- ü \' %(a)s $1"""
    sets = "".join(
        f"SET {said};\n"
        for said in (
            "client_encoding = 'LATIN1'",
            "standard_conforming_strings = off",
            "default_transaction_isolation = 'serializable'",
            "default_transaction_read_only = on",
            "search_path = nowhere",
            "statement_timeout = '1h'",
        )
    )
    files = {
        "001_a.sql": f"CREATE TABLE t ();\nCREATE TEMP TABLE u ();\n{sets}",
        "002_b.sql": f"{text}\n{sets}",
        "003_b.sql": text,
    }
    migrations(files)

    assert 0 == run(env={"PREFLIGHT_BACKUP": "off"}).code
    assert list(files.items()) == [
        (f"{name}.sql", said)
        for name, said in database.query("SELECT name, up_sql FROM preflight.migrations ORDER BY 1")
    ]
    assert ["001_a", "002_b", "003_b"] == database.query(
        "SELECT name FROM preflight.journal WHERE event = 'applied' ORDER BY id"
    )


@pytest.mark.parametrize("above", ["", "-- preflight: no-transaction\n"])
def test_backslashes_escape_where_a_file_sets_it(
    run: Run, database: servers.Database, migrations: WriteMigrations, above: str
) -> None:
    """A file from before standard_conforming_strings runs as psql runs it; the next one as ever."""
    old = r"""SET standard_conforming_strings = off;
CREATE TABLE t (a text DEFAULT '\';');
INSERT INTO t VALUES ('it\'s; ok'), (DEFAULT);
DO 'BEGIN INSERT INTO t VALUES (\'\'\';\'\'\'); END';
RESET standard_conforming_strings;
INSERT INTO t VALUES ('a\');
"""
    migrations({"001_a.sql": above + old, "002_b.sql": r"INSERT INTO t VALUES ('b\');"})

    planned = run("plan").event("statement.planned")
    assert (7, []) == (len(planned), [each for each in planned if each.get("unknown")])
    assert 0 == run(env={"PREFLIGHT_BACKUP": "off"}).code
    assert sorted(["';", "';'", "a\\", "b\\", "it's; ok"]) == sorted(
        database.query("SELECT a FROM t")
    )


@pytest.mark.parametrize(
    "verified", [{}, {"001_a_verify.sql": VERIFIED}], ids=["plain", "verified"]
)
@pytest.mark.parametrize(
    ("trouble", "code"),
    [
        ("INSERT INTO a VALUES (1, 9)", "migration.sql_error"),
        (f"CREATE TRIGGER no BEFORE UPDATE ON preflight.migrations {NO}", "migration.not_recorded"),
        (f"CREATE TRIGGER no BEFORE INSERT ON preflight.journal {NO}", "migration.not_recorded"),
    ],
    ids=["constraint", "end mark", "journal"],
)
def test_what_fails_at_the_end_of_a_file_is_told_apart(  # noqa: PLR0913, PLR0917 -- fixtures
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    trouble: str,
    code: str,
    verified: dict[str, str],
) -> None:
    """A deferred constraint is the file's; a row of ours that cannot be written is not."""
    migrations(
        {
            "001_a.sql": "CREATE TABLE a (id int PRIMARY KEY, a int REFERENCES a"
            " DEFERRABLE INITIALLY DEFERRED);\nCREATE FUNCTION no() RETURNS trigger"
            f" LANGUAGE plpgsql AS $$BEGIN RAISE 'no'; END$$;\n{trouble};\n",
            **verified,
        }
    )
    result = run(env={"PREFLIGHT_BACKUP": "off"})

    assert (30, code) == (result.code, error_of(result)["code"]), str(result)
    assert [] == database.query("SELECT version FROM preflight.migrations")


def test_search_path_that_leads_nowhere_is_named(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """The file is right: what the database sets for whoever connects is not."""
    migrations({"001_one.sql": "CREATE TABLE one (id int);\n"})
    database.script(f'ALTER DATABASE "{database.name}" SET search_path = nosuch')
    result = run()

    error = result.finished["error"]
    assert (30, "3F000") == (result.code, error["sqlstate"])
    assert "ALTER DATABASE … SET search_path" in error["hint"]
