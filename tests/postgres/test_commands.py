"""Looking and proving: check, verify, lint, backup and backups."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg.sql import SQL, Identifier, Literal

from tests import faults, program, servers
from tests.conftest import Run, Start, WriteMigrations

SECRET = "p w"  # noqa: S105 - of a role that lives for a test
VERIFY = "SELECT 's{0}' AS suite, 'c' AS \"check\", to_regclass('{0}') IS NOT NULL AS ok;\n"
A = {"001_a.sql": "CREATE TABLE a (id int);\n", "001_a_verify.sql": VERIFY.format("a")}
B = {"002_b.sql": "CREATE TABLE b (id int);\n", "002_b_verify.sql": VERIFY.format("b")}
MARK = "-- preflight: no-transaction\n"
CATALOG = (
    "SELECT (SELECT array_agg(oid ORDER BY oid) FROM pg_class), (SELECT count(*) FROM pg_namespace)"
)


@pytest.fixture
def environment(environment: dict[str, str]) -> dict[str, str]:
    """Do without backups, but where a test asks for one."""
    return environment | {"PREFLIGHT_BACKUP": "off"}


@pytest.fixture
def reader(database: servers.Database) -> Iterator[dict[str, str]]:
    """Give the environment of a role that may only connect."""
    name = f"{database.name}_reader"
    with database.server.connect() as connection:
        connection.execute(
            SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(Identifier(name), Literal(SECRET))
        )
    yield {"PGUSER": name, "PGPASSWORD": SECRET}
    with database.server.connect() as connection:
        connection.execute(SQL("DROP ROLE {}").format(Identifier(name)))


# --- check ----------------------------------------------------------------------------------------


def test_check_document_is_that_of_the_contract(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Every state that a healthy database can show, with when, how long and by whom."""
    migrations(A | B | {"003_c.sql": "CREATE TABLE c ();", "009_z.sql": "SELECT 9;"})
    database.script(A["001_a.sql"])
    folder = migrations({})
    run()
    (folder / "009_z.sql").unlink()
    migrations({"004_d.sql": "SELECT 4;"})
    result = run("check", "--json", env={"PREFLIGHT_OUT_OF_ORDER": "allow"})
    document = result.json()

    assert 3 == result.code
    assert (database.name, False) == (document["database"], document["current"])
    assert [
        (1, "001_a", "adopted"),
        (2, "002_b", "applied"),
        (3, "003_c", "applied"),
        (4, "004_d", "pending"),
        (9, "009_z", "ahead"),
    ] == [(m["version"], m["name"], m["state"]) for m in document["migrations"]]
    second, fourth = document["migrations"][1], document["migrations"][3]
    assert "postgres" == second["applied_by"]
    assert isinstance(second["duration_ms"], int)
    assert second["applied_at"].startswith("20")
    assert [None] * 3 == [fourth[k] for k in ("applied_at", "duration_ms", "applied_by")]
    assert "run.finished" in result.stderr


def test_check_before_first_contact_says_what_would_be_adopted(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """It writes nothing; what is there in part is 33, what cannot be told 26."""
    migrations(A | B)
    database.script(A["001_a.sql"])
    before = database.query(CATALOG)
    adoptable = run("check", "--json")
    migrations({"001_a_verify.sql": A["001_a_verify.sql"] + VERIFY.format("none")})
    partial = run("check", "--json")
    (migrations.directory / "001_a_verify.sql").unlink()
    unknown = run("check")

    assert ["adoptable", "pending"] == [m["state"] for m in adoptable.json()["migrations"]]
    assert ["partial", "pending"] == [m["state"] for m in partial.json()["migrations"]]
    assert (33, partial.finished["error"]) == (partial.json()["exit_code"], partial.json()["error"])
    assert {"database", "current", "migrations"} == adoptable.json().keys()
    assert [3, 33, 26] == [adoptable.code, partial.code, unknown.code]
    assert before == database.query(CATALOG)


def test_check_after_everything_was_rolled_back_is_no_first_contact(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """`up` runs the files again then, and `check` says so, though one has no verify file."""
    migrations({"001_a.sql": "CREATE TABLE a ();", "001_a_rollback.sql": "DROP TABLE a;"})
    database.script("CREATE TABLE other ()")
    assert 0 == run(env={"PREFLIGHT_FIRST_CONTACT": "pending"}).code
    assert 0 == run("rollback").code

    assert [3, 0, 0] == [run("check").code, run().code, run("check").code]


def test_check_reports_the_first_that_holds(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """26, then 28, then 32, then 3."""
    stuck = MARK + "CREATE TABLE c (); SELECT 1 / 0;"
    migrations(A | {"002_b.sql": stuck} | {"009_z.sql": "-- preflight: breaking\nSELECT 9;"})
    assert 31 == run().code
    migrations({"002_b.sql": MARK + "SELECT 2;"})
    repair = run("check")
    migrations({"002_b.sql": stuck})
    pending = run("check")
    migrations({"002_b.sql": MARK + "SELECT 2;"})
    database.script(
        "INSERT INTO preflight.migrations (version, name, checksum, state, how, up_sql, breaking,"
        " tool_version, run_id) VALUES (9, '009_z', 'x', 'done', 'applied', '', true, 'x', 'x')"
    )
    (migrations.directory / "009_z.sql").unlink()
    ahead = run("check")
    migrations({"001_a.sql": "SELECT 1;"})
    edited = run("check", "--json")

    assert [32, 3, 28, 26] == [repair.code, pending.code, ahead.code, edited.code], repair
    assert ["edited", "partial", "ahead"] == [m["state"] for m in edited.json()["migrations"]]
    assert (26, edited.finished["error"]) == (edited.json()["exit_code"], edited.json()["error"])


def test_check_leaves_a_live_run_alone(
    run: Run, start: Start, database: servers.Database, migrations: WriteMigrations
) -> None:
    """What a run is in the middle of is pending; once that run was killed, it is 32."""
    migrations({"001_a.sql": MARK + "CREATE TABLE a (); SELECT pg_sleep(60);"})
    process = start("up")
    asleep = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = %s"
    faults.until(lambda: database.query(asleep, database.name), "the statement sleeps")
    migrations({"001_a.sql": MARK + "SELECT 1;"})
    alive = run("check")
    process.kill()
    faults.until(lambda: database.sessions() == 0, "the server has noticed")

    assert [3, 32, 32] == [alive.code, run("check").code, run().code]


def test_check_needs_no_right_but_connect(
    run: Run, migrations: WriteMigrations, reader: dict[str, str]
) -> None:
    """It shows what everyone may know: version, name and state."""
    migrations(A)
    run()
    result = run("check", "--json", env=reader)
    (row,) = result.json()["migrations"]

    assert 0 == result.code
    assert (1, "001_a", "applied", None) == (
        row["version"],
        row["name"],
        row["state"],
        row["applied_at"],
    )
    migrations(B)
    assert 3 == run("check", env=reader).code


# --- verify ---------------------------------------------------------------------------------------


def test_verify_runs_what_is_applied(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Each check is an event; one that fails is 33, named, whatever the form of the result."""
    also = {
        "003_d.sql": "SELECT 3;",
        "003_d_verify.sql": "SELECT 'sa' suite, 'd' \"check\", true ok",
    }
    migrations(A | B | also)
    run()
    migrations({"004_c.sql": "CREATE TABLE c ();", "004_c_verify.sql": VERIFY.format("c")})
    good = run("verify")
    database.script("DROP TABLE b")
    bad, table, document = run("verify"), run("verify", "--table"), run("verify", "--json")

    assert [0, 33, 33, 33] == [r.code for r in (good, bad, table, document)]
    suites = ["001_a", "003_d", "002_b"]
    assert suites == [event["migration"] for event in good.event("check.passed")]
    assert [("002_b", "sb")] == [(e["migration"], e["suite"]) for e in bad.event("check.failed")]
    assert ["001  sa     c      ok", "003  sa     d      ok", "002  sb     c      FAILED"] == [
        line.replace("version", "") for line in _squeezed(table.stdout)[1:]
    ]
    assert [True, True, False] == [check["ok"] for check in document.json()["checks"]]
    assert not document.json()["ok"]
    assert "002_b" == document.finished["error"]["migration"]
    assert (33, document.finished["error"]) == (
        document.json()["exit_code"],
        document.json()["error"],
    )


@pytest.mark.parametrize(
    ("asked", "unverified", "ok"),
    [({}, ["001_a", "002_b"], None), (A, ["002_b"], True), (A | B, [], True)],
    ids=["none", "one", "both"],
)
def test_verify_names_what_it_could_not_ask_of(
    run: Run,
    migrations: WriteMigrations,
    asked: dict[str, str],
    unverified: list[str],
    ok: bool | None,  # noqa: FBT001 - as above
) -> None:
    """0 as ever, but where not one check was asked it is not called well."""
    migrations({"001_a.sql": A["001_a.sql"], "002_b.sql": B["002_b.sql"]} | asked)
    run()
    document, table = run("verify", "--json"), run("verify", "--table")

    assert [0, 0] == [document.code, table.code]
    assert (unverified, ok) == (document.json()["unverified"], document.json()["ok"])
    assert bool(unverified) == bool(warned := document.event("config.warned"))
    assert all(name in warned[0]["warning"] for name in unverified)
    assert (not ok) == (
        "nothing was verified: no applied file has a verify file\n" == table.stdout
    ), str(table)


def _squeezed(text: str) -> list[str]:
    return ["{:<5}{:<7}{:<7}{}".format(*line.split()[:4]) for line in text.splitlines() if line]


def test_verify_one_version_whether_applied_or_not(run: Run, migrations: WriteMigrations) -> None:
    """And 20 where there is nothing to ask."""
    migrations(A | B | {"003_c.sql": "SELECT 3;"})
    assert [33, 20, 20] == [run("verify", v).code for v in ("2", "3", "9")]
    run()

    assert 0 == run("verify", "2").code


def test_verify_of_nothing_recorded_is_no_success(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Nothing was asked, so nothing is well: 3 before the first run, and where all is newer."""
    migrations(A)
    database.script("CREATE TABLE a (id int)")
    before, document = run("verify"), run("verify", "--json")
    assert (3, "verify.nothing_recorded") == (before.code, before.finished["error"]["code"])
    assert (3, False, []) == (document.code, document.json()["ok"], document.json()["checks"])
    assert ([], []) == (document.json()["unverified"], before.event("config.warned"))

    run()
    assert 0 == run("verify").code
    (migrations.directory / "001_a.sql").rename(migrations.directory / "002_a.sql")
    (migrations.directory / "001_a_verify.sql").rename(migrations.directory / "002_a_verify.sql")
    other = run("verify")
    assert (3, "verify.nothing_recorded") == (other.code, other.finished["error"]["code"])


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["lint"], ["migration.listed", "migration.listed"]),
        (["check"], ["migration.listed", "migration.listed"]),
        (["plan"], ["plan.made"]),
        (["verify"], ["check.passed", "check.passed"]),
        (["check", "--json"], []),
    ],
    ids=" ".join,
)
def test_level_does_not_hide_what_was_asked_for(
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    command: list[str],
    told: list[str],
) -> None:
    """The result is events in a pipe, and there is no other; a document holds it all."""
    database.script(A["001_a.sql"] + B["002_b.sql"])
    migrations(A | B)
    if command == ["verify"]:
        run("adopt")
    result = run(*command, env={"PREFLIGHT_LOG_LEVEL": "error"})

    assert [*told, "run.finished"] == [each["event"] for each in program.parse(result.stdout)] + [
        each["event"] for each in program.parse(result.stderr)
    ]


# --- lint, backup, backups ------------------------------------------------------------------------


def test_lint_needs_no_server_and_remarks_on_valid_files(
    run_bare: Run, migrations: WriteMigrations
) -> None:
    """What a careful reader would say; an invalid file is 25, with a document that says so."""
    migrations(
        {
            "001_a.sql": "CREATE TABLE a ();",
            "002_b.sql": "DROP TABLE a;\nCREATE ROLE x;",
            "002_b_rollback.sql": "SELECT 1;",
        }
    )
    result = run_bare("lint", "--json")
    remarks = [file["remarks"] for file in result.json()["files"]]
    migrations({"003_c.sql": "SELECT 'open"})
    invalid = run_bare("lint", "--json")

    assert 0 == result.code
    assert ["no verify file: nobody can tell whether it is applied",
            "no rollback file: it cannot be taken back"] == remarks[0]  # fmt: skip
    assert ["no export file", "line 1 destroys table a",
            "line 2 roles belong to the whole server"] == remarks[1][1:]  # fmt: skip
    assert (25, 25) == (invalid.code, invalid.json()["exit_code"])
    assert invalid.finished["error"] == invalid.json()["error"]


def test_failure_with_json_is_one_document(
    run: Run, run_bare: Run, migrations: WriteMigrations
) -> None:
    """Also when the arguments themselves are wrong."""
    migrations(A)
    typo, off = (
        run_bare("check", "--json", "--nonsense"),
        run("check", "--json", env={"PGPORT": "x"}),
    )

    for each in (typo, off):
        assert 20 == each.code
        assert {"exit_code": 20, "error": each.finished["error"]} == each.json()


def test_backup_is_made_whatever_the_settings_and_the_history_say(
    run: Run, database: servers.Database, backup_dir: Path
) -> None:
    """With PREFLIGHT_BACKUP=off, and in a schema that is not ours."""
    database.script("CREATE SCHEMA preflight; CREATE TABLE preflight.migrations (x int)")
    result = run("backup")

    assert 0 == result.code, result
    (path,) = backup_dir.iterdir()
    assert "backup" == json.loads((path / "manifest.json").read_bytes())["taken_for"]["command"]


def test_backups_are_listed_without_a_server(
    run: Run, run_bare: Run, backup_dir: Path, database: servers.Database
) -> None:
    """Events, a table or a document; an empty directory is an empty list, a missing one 23."""
    empty = run_bare("backups", "--json")
    run("backup")
    (path,) = backup_dir.iterdir()
    (backup_dir / "somebody's").mkdir()
    events, table, document = (run_bare("backups", *o) for o in ([], ["--table"], ["--json"]))
    missing = run_bare("backups", env={"PREFLIGHT_BACKUP_DIR": str(backup_dir / "none")})

    assert (0, []) == (empty.code, empty.json()["backups"])
    (row,) = document.json()["backups"]
    assert (path.name, database.name, "backup", "read", 0) == (
        row["backup"], row["database"], row["taken_for"], row["verified"], row["rows"]
    )  # fmt: skip
    assert [path.name] == [event["backup"] for event in events.event("backup.listed")]
    assert path.name in table.stdout
    assert (23, "backup.directory") == (missing.code, missing.finished["error"]["code"])
