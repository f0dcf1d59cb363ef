"""A database that was migrated by hand, or belongs to others: adopt, run, or stop; never guess."""

from typing import Any

import psycopg
import pytest

from tests import faults, program, servers
from tests.conftest import Run, Start, WriteMigrations

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


def test_files_above_those_that_were_vouched_for_are_asked_for_by_name(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Who starts without saying what they are is told what is known, and what runs them."""
    database.script(OTHER)
    migrations({f"00{each}_x{each}.sql": f"CREATE TABLE x{each} ()" for each in (1, 2, 3)})
    adopted = run("adopt", "--through", "2")
    refused = run()
    ran = run(env={"PREFLIGHT_FIRST_CONTACT": "pending"})

    assert [0, 26, 0] == [each.code for each in (adopted, refused, ran)], f"{adopted}{refused}{ran}"
    assert error_of(refused)["message"] == (
        "nothing was ever run here, 2 files are vouched for, and 003_x3 has no verify file that "
        "could tell whether it was applied"
    )


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
        assert "`verify 1` lists every check" in error_of(result)["hint"]
    assert 33 == (listed := run("verify", "1")).code  # as it says
    assert checks == [each["check"] for each in listed.event("check.failed")]
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


# --- a database that was migrated by hand, told by name -------------------------------------------


UNVERIFIED = {"001_t.sql": "CREATE TABLE t (price int);"}
TWICE = {
    "002_u.sql": "CREATE TABLE IF NOT EXISTS u ();\nUPDATE t SET price = price * 100;",
    "002_u_verify.sql": "SELECT 'tables' AS suite, 'u' AS \"check\", "
    "to_regclass('u') IS NOT NULL AS ok",
}
BY_HAND = "CREATE TABLE t (price int); INSERT INTO t VALUES (1); CREATE TABLE u ();"


def test_adopting_one_file_by_name_does_not_end_first_contact(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Following the hint of 26 must not run 002, which is in the database, a second time."""
    database.script(BY_HAND)
    migrations(UNVERIFIED | TWICE)

    assert "`adopt 1`" in error_of(run())["hint"]
    assert 0 == run("adopt", "1").code
    before, result = run("check"), run()

    assert (3, ["adopted", "adoptable"]) == (
        before.code,
        [each["state"] for each in before.event("migration.listed")],
    )
    assert (0, ["002_u"]) == (result.code, result.finished.get("adopted")), str(result)
    assert [1] == database.query("SELECT price FROM t")
    migrations({"003_c.sql": "CREATE TABLE c ();", "003_c_verify.sql": "SELECT 's' AS suite, "
                "'c' AS \"check\", to_regclass('c') IS NOT NULL AS ok"})  # fmt: skip
    assert ["003_c"] == run().finished["applied"]


def test_first_contact_ends_with_the_first_file_that_ran(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Also where it stopped part-way: what comes after is ours, and needs no verify file."""
    database.script(OTHER)
    migrations({"001_a.sql": "-- preflight: no-transaction\nCREATE TABLE a (); SELECT 1/0;"})
    assert 31 == run(env={"PREFLIGHT_FIRST_CONTACT": "pending"}).code
    text = "-- preflight: no-transaction\nCREATE TABLE a (); SELECT 1;"
    migrations({"001_a.sql": text, "002_b.sql": "CREATE TABLE b ();"})

    result = run()

    assert (0, ["001_a", "002_b"]) == (result.code, result.finished.get("applied")), str(result)


def test_earlier_files_are_shown_adoptable_when_a_later_one_cannot_be_told(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """What was found before the verify file that fails is not forgotten."""
    database.script(OTHER + A["001_a.sql"])
    migrations(A | B | {"002_b_verify.sql": "SELECT 1/0"})

    result = run("check")

    assert (33, ["adoptable", "pending"]) == (
        result.code,
        [each["state"] for each in result.event("migration.listed")],
    )


def test_adopt_by_name_first_adopts_what_is_below(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """No hole is left that the next run would call out of order."""
    database.script(OTHER + A["001_a.sql"] + "CREATE TABLE c ()")
    migrations(A | {"002_c.sql": "CREATE TABLE c ();"})

    assert "`adopt 2`" in error_of(run())["hint"]
    result = run("adopt", "2")

    assert (0, ["001_a", "002_c"]) == (result.code, result.finished.get("adopted")), str(result)
    assert 0 == run().code


@pytest.mark.parametrize(
    ("below", "name"),
    [
        (A | B, "002_b"),  # absent
        (A | {"002_b.sql": B["002_b.sql"]}, "002_b"),  # nobody can tell
        ({"001_a.sql": A["001_a.sql"]} | B, "001_a"),
    ],
)
def test_adopt_records_nothing_above_a_hole(
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    below: dict[str, str],
    name: str,
) -> None:
    """26 names the first file below that is not known to be there; no row stays, none is told."""
    database.script(OTHER + A["001_a.sql"])
    migrations(below | {"003_c.sql": "CREATE TABLE c ();"})

    result = run("adopt", "3")

    assert (26, name) == (result.code, error_of(result)["migration"]), str(result)
    assert [] == result.event("migration.adopted")
    assert [] == database.query("SELECT version FROM preflight.migrations")


def test_lock_timeout_says_nothing_of_a_verify_file(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """12, not 33: somebody is in the way, and the next run finds it there."""
    database.script(OTHER + A["001_a.sql"])
    asks = A["001_a_verify.sql"] + ";\nSELECT 's' AS suite, 'n' AS \"check\", "
    migrations(A | {"001_a_verify.sql": asks + "count(*) >= 0 AS ok FROM a"})
    with database.server.connect(database.name) as other:
        other.execute("BEGIN; LOCK TABLE a")
        env = {"PREFLIGHT_LOCK_TIMEOUT_MS": "100", "PREFLIGHT_LOCK_RETRY_S": "0.1"}
        blocked = [run(each, env=env) for each in ("up", "check")]

    assert [(12, "55P03")] * 2 == [(each.code, error_of(each)["sqlstate"]) for each in blocked]
    assert {("001_a_verify.sql", 3)} == {
        (error_of(each)["file"], error_of(each)["line"]) for each in blocked
    }
    assert ["001_a"] == run().finished["adopted"]


def test_adoption_is_told_only_when_it_is_committed(
    start: Start, database: servers.Database, migrations: WriteMigrations
) -> None:
    """A connection that is cut before the COMMIT leaves neither the row nor the event."""
    database.script(OTHER + A["001_a.sql"])
    migrations(A | {"002_b.sql": B["002_b.sql"], "002_b_verify.sql": "SELECT 's' AS suite, "
               "'b' AS \"check\", pg_sleep(600) IS NULL AS ok"})  # fmt: skip
    process = start()
    sleeping = (
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        " AND wait_event = 'PgSleep'"
    )
    faults.until(lambda: database.query(sleeping), "the second verify file is asked")
    database.query("SELECT pg_terminate_backend(%s)", database.query(sleeping)[0])
    result = process.wait()

    assert (13, []) == (result.code, result.event("migration.adopted")), str(result)
    assert [0] == database.query(OURS)


def test_file_that_comes_after_first_contact_is_new(
    run: Run, migrations: WriteMigrations, database: servers.Database
) -> None:
    """Everything was adopted then; a later file runs, also without a verify file."""
    database.query("CREATE TABLE a (id int)")
    there = "SELECT 's' AS suite, 'a' AS \"check\", to_regclass('a') IS NOT NULL AS ok;"
    migrations({"001_a.sql": "CREATE TABLE a (id int);", "001_a_verify.sql": there})
    adopted = run()
    migrations({"002_b.sql": "CREATE TABLE b (id int);"})
    applied = run()

    assert (0, ["001_a"]) == (adopted.code, adopted.finished["adopted"])
    assert (0, ["002_b"]) == (applied.code, applied.finished["applied"]), str(applied)


# --- what lies above a file that is absent --------------------------------------------------------


CENTS = {
    "003_cents.sql": "UPDATE accounts SET cents = cents * 100;",
    "003_cents_verify.sql": "SELECT 's' AS suite, 'cents' AS \"check\", "
    "col_description(to_regclass('accounts'), 1) IS NOT DISTINCT FROM 'cents' AS ok",
}
INDEX = {"002_i.sql": "CREATE INDEX i ON accounts (cents);"}
ASKED = {
    "002_i_verify.sql": "SELECT 's' AS suite, 'i' AS \"check\", to_regclass('i') IS NOT NULL AS ok"
}
ACCOUNTS = (
    "CREATE TABLE accounts (cents int); INSERT INTO accounts VALUES (100);"
    "COMMENT ON COLUMN accounts.cents IS 'cents';"
)


@pytest.mark.parametrize(
    ("files", "setting"),
    [(INDEX | ASKED, "refuse"), (INDEX, "pending"), (INDEX | ASKED, "pending")],
    ids=["absent", "said to be absent", "both"],
)
def test_file_that_is_there_above_an_absent_one_does_not_run_again(
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    files: dict[str, str],
    setting: str,
) -> None:
    """33 names both, for `check` and `plan` as for `up`; OUT_OF_ORDER=allow adopts it."""
    database.script(ACCOUNTS)
    migrations(files | CENTS)
    env = {"PREFLIGHT_FIRST_CONTACT": setting, "PREFLIGHT_BACKUP": "off"}

    for command in ("up", "check", "plan", "adopt"):
        refused = run(command, env=env)
        assert 33 == refused.code, str(refused)
        named = [
            "002_i" in error_of(refused)["message"],
            "003_cents" in error_of(refused)["message"],
        ]
        assert [True, True] == named or command == "adopt"
        told = "correct its verify file, then `adopt 2`" in error_of(refused)["hint"]
        assert told == ("002_i_verify.sql" in files) or command == "adopt"
        states = {e["migration"]: e["state"] for e in refused.event("migration.listed")}
        shown = (states.get("002_i"), states.get("003_cents"))
        assert shown == ("pending", "adoptable") or command != "check"
    allowed = run(env=env | {"PREFLIGHT_OUT_OF_ORDER": "allow"})

    assert 0 == allowed.code, str(allowed)
    assert (["003_cents"], ["002_i"]) == (allowed.finished["adopted"], allowed.finished["applied"])
    assert [100] == database.query("SELECT cents FROM accounts")


def test_later_file_that_cannot_be_told_is_pending_like_the_absent_one_below(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Its query fails because what 001 makes is not there: no reason to stop a new database."""
    database.script(OTHER)
    migrations(
        B
        | {
            "003_c.sql": "ALTER TABLE b ADD c int;",
            "003_c_verify.sql": "SELECT 's' AS suite, x.n AS \"check\", x.ok FROM (VALUES "
            "('b', (SELECT count(*) >= 0 FROM b)), ('c', true)) x (n, ok)",
            "004_d.sql": "SELECT 4;",
        }
    )

    result = run(env={"PREFLIGHT_BACKUP": "off"})

    assert (0, ["002_b", "003_c", "004_d"]) == (result.code, result.finished.get("applied"))


def test_query_of_many_checks_that_fails_is_no_evidence_of_absence(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """33: half of it may be there, and the one query that could tell names a missing table.

    Whoever knows that nothing of it is there says so with FIRST_CONTACT=pending.
    """
    database.script("CREATE TABLE users (team_id int)")
    both = (
        "SELECT 's' AS suite, x.n AS \"check\", x.ok FROM (VALUES "
        "('teams', (SELECT count(*) >= 0 FROM teams)), "
        "('team_id', to_regclass('users') IS NOT NULL)) x (n, ok)"
    )
    migrations({"001_t.sql": "CREATE TABLE teams ();", "001_t_verify.sql": both})

    for command in ("up", "check", "plan"):
        result = run(command)
        assert (33, "verify.untold") == (result.code, error_of(result)["code"]), str(result)
    assert [0] == database.query(OURS)
    said = run(env={"PREFLIGHT_FIRST_CONTACT": "pending", "PREFLIGHT_BACKUP": "off"})
    assert (0, ["001_t"]) == (said.code, said.finished.get("applied")), str(said)


def test_query_of_one_check_about_a_missing_table_says_absent(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """The ordinary verify file stops no first deployment beside other things in the database."""
    database.script(OTHER)
    one = """SELECT 's' AS suite, 'rows' AS "check", count(*) >= 0 AS ok FROM teams"""
    migrations({"001_t.sql": "CREATE TABLE teams ();", "001_t_verify.sql": one})

    result = run(env={"PREFLIGHT_BACKUP": "off"})

    assert (0, ["001_t"]) == (result.code, result.finished.get("applied")), str(result)


def test_tables_of_the_app_in_our_schema_are_not_ours(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """PREFLIGHT_SCHEMA=app beside the app's tables: the database is not empty, and 001 is asked."""
    database.script(
        "CREATE SCHEMA app; CREATE TABLE app.accounts (cents int);"
        "INSERT INTO app.accounts VALUES (100)"
    )
    there = (
        "SELECT 's' AS suite, 'accounts' AS \"check\", "
        "to_regclass('app.accounts') IS NOT NULL AS ok"
    )
    migrations(
        {"001_a.sql": "UPDATE app.accounts SET cents = cents * 100;", "001_a_verify.sql": there}
    )

    before, result = (run(each, env={"PREFLIGHT_SCHEMA": "app"}) for each in ("check", "up"))

    assert ["adoptable"] == [each["state"] for each in before.event("migration.listed")]
    assert (0, ["001_a"]) == (result.code, result.finished.get("adopted")), str(result)
    assert [100] == database.query("SELECT cents FROM app.accounts")


def test_what_is_there_already_is_not_called_pending(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """The first line that the owner of a database migrated by hand reads."""
    holds = "SELECT 's' AS suite, 'c' AS \"check\", to_regclass('{}') IS NOT NULL AS ok;"
    for n, table in enumerate("abc", 1):
        name = f"00{n}_{table}"
        files = {f"{name}.sql": f"CREATE TABLE {table} ();"}
        migrations(files | {f"{name}_verify.sql": holds.format(table)})
    said = []
    for table in "abc":
        database.script(f"CREATE TABLE {table} ()")
        result = run("check")
        assert 3 == result.code
        said.append(result.finished["error"]["message"])

    plan = run("plan", "--table")

    assert [
        "2 of 3 migrations are pending, first 002_b; 1 of 3 are there already, and not recorded",
        "1 of 3 migrations are pending, first 003_c; 2 of 3 are there already, and not recorded",
        "3 of 3 are there already, and not recorded",
    ] == said
    assert plan.stdout.startswith(
        "nothing is pending; there already, and recorded by the next `up`"
    )
