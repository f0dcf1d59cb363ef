"""Take migrations back: backup, export, rollback file, and what proves that nothing is left."""

import csv
import re
import signal
import stat
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from preflight.server import lock
from tests import faults, servers
from tests.conftest import CreateDatabase, Run, Start, WriteMigrations
from tests.fakes import Fakes

REPOSITORY = {"PREFLIGHT_MIGRATIONS_DIR": str(servers.REPOSITORY / "migrations")}
VERIFY = "SELECT 's' AS suite, '{0} is there' AS \"check\", to_regclass('{0}') IS NOT NULL AS ok;\n"
A = {
    "001_a.sql": "CREATE TABLE a (id int PRIMARY KEY, t text);\n",
    "001_a_rollback.sql": "DROP TABLE a;\n",
    "001_a_verify.sql": VERIFY.format("a"),
}
B = {
    "002_b.sql": "CREATE TABLE b (id int);\n",
    "002_b_rollback.sql": "DROP TABLE b;\n",
    "002_b_verify.sql": VERIFY.format("b"),
}
MARK = "-- preflight: no-transaction\n"
PRESENT = "SELECT version FROM preflight.migrations WHERE state = 'done' ORDER BY 1"
JOURNAL = "SELECT event, version FROM preflight.journal ORDER BY id"


def backups(directory: Path) -> list[Path]:
    """Return what can be seen in the backup directory."""
    return sorted(path for path in directory.iterdir() if not path.name.startswith("."))


def dropped(database: servers.Database, *tables: str) -> bool:
    """Tell whether none of these tables is there."""
    return all(database.query("SELECT to_regclass(%s)", name) == [None] for name in tables)


# --- which ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        (["rollback"], [1]),
        (["--rollback"], [1]),
        (["rollback", "--to", "1"], [1]),
        (["rollback", "--to", "001"], [1]),
        (["rollback", "--to", "0"], []),
        (["--rollback", "--to", "2"], [1, 2]),
    ],
)
def test_rollback_takes_back_what_was_asked(
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    arguments: list[str],
    left: list[int],
) -> None:
    """Newest first; each is told, with what happens at the next start of the same image."""
    migrations(A | B)
    run()
    result = run(*arguments)

    gone = [f"00{v}_{n}" for v, n in ((2, "b"), (1, "a")) if v not in left]
    assert 0 == result.code, result
    assert left == database.query(PRESENT)
    assert gone == [event["migration"] for event in result.event("migration.rolled_back")]
    assert gone == result.finished.get("rolled_back", [])
    assert all("applies it again" in e["note"] for e in result.event("migration.rolled_back"))
    assert (1 if gone else 0) == len(result.event("backup.verified"))
    assert 0 == run().code
    assert [1, 2] == database.query(PRESENT)


def test_nothing_recorded_is_nothing_to_do(
    run: Run, database: servers.Database, migrations: WriteMigrations, backup_dir: Path
) -> None:
    """It says so, writes nothing and takes no backup."""
    migrations(A)
    result = run("rollback")

    assert 0 == result.code
    assert [[]] == [event["rollback"] for event in result.event("plan.made")]
    assert dropped(database, "preflight.migrations")
    assert [] == backups(backup_dir)


def test_version_that_nobody_knows_is_20(run: Run, migrations: WriteMigrations) -> None:
    """A typing error must not take everything back."""
    migrations(A | B)
    run()
    result = run("rollback", "--to", "7")

    assert (20, "config.arguments") == (result.code, result.finished["error"]["code"])
    assert "1, 2" in result.finished["error"]["hint"]


def test_plan_names_the_version_that_leads_back_to_before_it(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Numbers have gaps: `--to` that version takes back what the run applied, and no more."""
    tables = {"003_c": "c", "005_d": "d", "009_e": "e"}
    files = {f"{name}.sql": f"CREATE TABLE {table} ();" for name, table in tables.items()}
    files |= {f"{name}_rollback.sql": f"DROP TABLE {table};" for name, table in tables.items()}
    migrations({name: text for name, text in files.items() if name.startswith("003")})
    first = run()
    migrations(files)
    (above,) = {event["above"] for event in run().event("plan.made")}

    assert {0} == {event["above"] for event in first.event("plan.made")}
    assert 3 == above
    assert ["009_e", "005_d"] == run("rollback", "--to", str(above)).finished["rolled_back"]
    assert [3] == database.query(PRESENT)


def test_missing_rollback_file_is_told_before_any_backup(
    run: Run, database: servers.Database, migrations: WriteMigrations, backup_dir: Path
) -> None:
    """Every version that lacks one is named, and nothing is taken back."""
    migrations({"001_a.sql": A["001_a.sql"]} | B)
    run(env={"PREFLIGHT_BACKUP": "off"})
    result = run("rollback", "--to", "0")

    error = result.finished["error"]
    assert (25, "files.no_rollback", 1) == (result.code, error["code"], error["version"])
    assert [] == backups(backup_dir)
    assert [1, 2] == database.query(PRESENT)


@pytest.mark.parametrize(
    ("layout", "forward", "back"),
    [
        ("ours", "001_a.sql", "001_a_rollback.sql"),
        ("golang-migrate", "1_a.up.sql", "1_a.down.sql"),
        ("dbmate", "1_a.sql", "1_a.sql"),
    ],
)
def test_rollback_file_without_a_statement_is_none(  # noqa: PLR0913, PLR0917 -- fixtures
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    layout: str,
    forward: str,
    back: str,
) -> None:
    """It would be forgotten that the file ran, and all of it would still be there."""
    above, below = ("-- migrate:up\n", "-- migrate:down\n") if forward == back else ("", "")
    one = f"{above}CREATE TABLE a ();\n{below}"
    before = one if forward == back else ""
    migrations({forward: one} | {back: f"{before}-- irreversible\n"})
    off = {"PREFLIGHT_BACKUP": "off", "PREFLIGHT_LAYOUT": layout}

    (listed,) = run("lint", env=off).event("migration.listed")
    (applied,) = run("up", env=off).event("migration.applied")
    refused = run("rollback", env=off)
    recorded = database.query("SELECT version FROM preflight.migrations")
    migrations({back: f"{before}SELECT;\n"})
    nothing = run("rollback", env=off)

    assert "no statement in its rollback file: it cannot be taken back" in listed["remarks"]
    assert applied["rollback"] is False
    error = refused.finished["error"]
    assert (25, "files.no_rollback", 1) == (refused.code, error["code"], error["version"])
    assert "holds no statement" in error["message"]
    assert ([1], 0) == (recorded, nothing.code), str(nothing)


@pytest.mark.fault("B042")
@pytest.mark.parametrize("how", ["applied", "adopted"])
def test_older_image_takes_back_a_newer_migration(
    run: Run, database: servers.Database, migrations: WriteMigrations, how: str
) -> None:
    """The rollback text comes from the history, also of one that was only recorded."""
    folder = migrations(A | {"002_b.sql": "-- preflight: breaking\n" + B["002_b.sql"]})
    migrations({"002_b_rollback.sql": B["002_b_rollback.sql"]})
    if how == "adopted":
        database.script(A["001_a.sql"] + B["002_b.sql"])
        run("adopt", "1")
        run("adopt", "2")
    else:
        run()
    for path in folder.glob("002_*"):
        path.unlink()
    before = run()
    result = run("rollback")

    assert (28, 0) == (before.code, result.code), result
    assert [1] == database.query(PRESENT)
    assert dropped(database, "b")
    assert 0 == run().code


def test_late_migration_is_taken_back_by_its_number(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Newest is the highest version, not the one applied last."""
    migrations(A | {"003_c.sql": "CREATE TABLE c ();", "003_c_rollback.sql": "DROP TABLE c;"})
    run()
    migrations(B)
    assert 0 == run(env={"PREFLIGHT_OUT_OF_ORDER": "allow"}).code
    assert 0 == run("rollback").code

    assert [1, 2] == database.query(PRESENT)


# --- the backup and its exports -------------------------------------------------------------------


def test_export_is_csv_that_tells_null_from_empty(
    run: Run, database: servers.Database, migrations: WriteMigrations, backup_dir: Path
) -> None:
    """Everything a text can hold comes back from it; private, counted, and kept for ever."""
    texts = ["", "a,b", 'say "no"', "two\nlines\r\n", "né 日本 🐘", " x ", "\\N", "NULL", ";'--"]
    migrations(A | {"001_a_export.sql": "SELECT t, id FROM a ORDER BY id; -- all\nSELECT 1 AS x"})
    run()
    with database.server.connect(database.name) as connection:
        connection.cursor().executemany("INSERT INTO a VALUES (%s, %s)", list(enumerate(texts)))
        connection.execute("INSERT INTO a VALUES (99, NULL)")
    result = run("rollback")
    (name,) = [event["backup"] for event in result.event("backup.verified")]
    path = backup_dir / name / "export-001_a-1.csv"
    raw = path.read_bytes()

    assert 0 == result.code, result
    assert [10, 1] == [event["rows"] for event in result.event("export.saved")]
    assert b'\n"",0\n' in raw
    assert raw.endswith(b"\n,99\n")
    with path.open(encoding="utf-8", newline="") as file:
        assert [["t", "id"], *([t, str(i)] for i, t in enumerate(texts)), ["", "99"]] == list(
            csv.reader(file)
        )
    files = {item.name: stat.S_IMODE(item.stat().st_mode) for item in path.parent.iterdir()}
    assert {0o600} == set(files.values())
    assert {"export-001_a-1.csv", "export-001_a-2.csv", "database.dump", "manifest.json"} == set(
        files
    )
    for _ in range(3):
        assert 0 == run("backup", env={"PREFLIGHT_BACKUP_KEEP": "1"}).code
    assert path.exists()
    assert 2 == len(backups(backup_dir))


@pytest.mark.parametrize("mark", ["", MARK])
@pytest.mark.parametrize("query", ["SELECT id FROM a ORDER BY 1", "SELECT id FROM of_a ORDER BY 1"])
def test_row_that_is_written_after_the_export_is_in_it_all_the_same(  # noqa: PLR0913, PLR0917 - fixtures
    start: Start,
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    backup_dir: Path,
    mark: str,
    query: str,
) -> None:
    """Writers are kept off and the export is made again, right before its rows are destroyed."""
    migrations(
        A
        | {
            "001_a_export.sql": query,
            "001_a_rollback.sql": f"{mark}DROP VIEW of_a; DROP TABLE a;",
        }
    )
    run()
    database.script("CREATE VIEW of_a AS SELECT * FROM a; INSERT INTO a VALUES (1)")
    with database.server.connect(database.name) as app:
        app.execute("BEGIN; INSERT INTO a VALUES (2)")
        process = start("rollback", env={"PREFLIGHT_LOCK_TIMEOUT_MS": "20000"})
        process.wait_for_event("migration.blocked")
        app.execute("COMMIT")
    result = process.wait()

    assert 0 == result.code, str(result)
    (path,) = backup_dir.glob("*/export-*.csv")
    assert ["id", "1", "2"] == path.read_text().split()
    assert [1, 2] == [event["rows"] for event in result.event("export.saved")]


def test_resumed_rollback_exports_what_is_left_to_be_destroyed(
    start: Start, run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """What is gone already keeps nothing else from being saved, up to the last moment."""
    text = f"{MARK}DROP VIEW of_a;\nSELECT {{}};\nDROP TABLE a;\n"
    text += "DO $$ BEGIN IF false THEN DROP ROLE nobody; END IF; END $$;\n"  # not by the claim
    export = "SELECT id FROM of_a;\nSELECT id FROM a ORDER BY 1;\n"
    migrations(A | {"001_a_export.sql": export, "001_a_rollback.sql": text.format("1 / 0")})
    run()
    database.script("CREATE VIEW of_a AS SELECT * FROM a; INSERT INTO a VALUES (1)")
    assert 31 == run("rollback").code
    migrations({"001_a_rollback.sql": text.format(1)})
    with database.server.connect(database.name) as app:
        app.execute("BEGIN; INSERT INTO a VALUES (2)")
        process = start("rollback", env={"PREFLIGHT_LOCK_TIMEOUT_MS": "100"})
        process.wait_for_event("migration.retried")
        app.execute("COMMIT")
    result = process.wait()

    assert 0 == result.code, str(result)
    saved = [(event["file"], event["rows"]) for event in result.event("export.saved")]
    assert [("export-001_a-2.csv", 1), ("export-001_a-2.csv", 2)] == saved
    told = [event.get("notice") for event in result.event("migration.progressed")]
    assert ['001_a_export.sql:1 is not saved: relation "of_a" does not exist'] == told


def test_export_of_a_step_is_not_made_poorer_by_the_steps_before_it(
    run: Run, database: servers.Database, migrations: WriteMigrations, backup_dir: Path
) -> None:
    """What an earlier step of the same rollback destroyed is still in the first export."""
    migrations(
        A
        | {
            "001_a_export.sql": "SELECT * FROM a",
            "002_b.sql": "ALTER TABLE a ADD b text DEFAULT 'b';",
            "002_b_rollback.sql": "ALTER TABLE a DROP b;",
        }
    )
    run()
    database.script("INSERT INTO a VALUES (1, 't')")

    assert 0 == run("rollback", "--to", "0").code
    found = {path.name: path.read_text().split() for path in backup_dir.glob("*/export-*.csv")}
    assert {
        "export-001_a-1.csv": ["id,t,b", "1,t,b"],
        "export-001_a-1-late.csv": ["id,t", "1,t"],
    } == found


def test_values_of_an_export_do_not_depend_on_settings(
    run: Run, database: servers.Database, migrations: WriteMigrations, backup_dir: Path
) -> None:
    """Digits, the order of a date and bytes are as in a dump, whatever the role has set."""
    name = Identifier(database.name)
    with database.server.connect(database.name) as connection:
        for setting in (
            "DateStyle = 'SQL, DMY'",
            "IntervalStyle = 'sql_standard'",
            "extra_float_digits = 0",
            "bytea_output = 'escape'",
        ):
            connection.execute(SQL("ALTER DATABASE {} SET ").format(name) + SQL(setting))
    columns = "d date, ts timestamptz, f float8, r real, i interval, b bytea"
    migrations(
        {
            "001_a.sql": f"CREATE TABLE a ({columns}); INSERT INTO a VALUES ('03/04/2026', "
            "'03/04/2026 05:06:07.123456+00', 0.1::float8 + 0.2::float8, 5592405.5, "
            "'1 day -2 hours', '\\x00ff');",
            "001_a_rollback.sql": "DROP TABLE a;",
            "001_a_export.sql": "SELECT d, ts AT TIME ZONE 'UTC', f, r, i, b, "
            "'05/04/2026'::date FROM a;",
        }
    )
    run()

    assert 0 == run("rollback").code
    (path,) = backup_dir.glob("*/export-*.csv")
    assert (
        "2026-04-03,2026-04-03 05:06:07.123456,0.30000000000000004,5.5924055e+06,1 day -02:00:00,"
        "\\x00ff,2026-04-05"
    ) == path.read_text().splitlines()[1]


def test_server_waits_for_the_store_of_an_export(
    run: Run, migrations: WriteMigrations, backup_dir: Path
) -> None:
    """A bucket that stands still for a minute costs no lock: the server takes it for no silence."""
    migrations(A | {"001_a_export.sql": "SELECT current_setting('tcp_user_timeout') AS patience;"})
    run()

    assert 0 == run("rollback").code
    (path,) = backup_dir.glob("*/export-*.csv")
    assert ["patience", "420000"] == path.read_text().splitlines()


def test_export_that_fails_takes_nothing_back(
    run: Run, database: servers.Database, migrations: WriteMigrations, backup_dir: Path
) -> None:
    """The place is named; what would be destroyed is still there, and no half file is."""
    migrations(A | {"001_a_export.sql": "SELECT id FROM a;\nSELECT 1 / 0;"})
    run()
    result = run("rollback")

    error = result.finished["error"]
    assert (30, "22012", 2) == (result.code, error["sqlstate"], error["line"])
    assert [1] == database.query(PRESENT)
    assert [] == list(backup_dir.rglob("*.partial"))


def test_export_that_somebody_is_in_the_way_of_is_named(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """12 says which of its queries waited, or that it is about the tables that it reads."""
    export = "SELECT id FROM a;\nSELECT pg_advisory_xact_lock(4711);"
    migrations(A | {"001_a_export.sql": export})
    env = {"PREFLIGHT_LOCK_TIMEOUT_MS": "100", "PREFLIGHT_LOCK_RETRY_S": "0"}
    env["PREFLIGHT_REHEARSE"] = "off"
    run(env=env)
    found = []
    for held in ("SELECT pg_advisory_lock(4711)", "BEGIN; INSERT INTO a VALUES (1)"):
        with database.server.connect(database.name) as app:
            app.execute(held)
            busy = run("rollback", env=env)
        error = busy.finished["error"]
        found.append((busy.code, error.get("file"), error.get("line")))

    assert [(12, "001_a_export.sql", 2), (12, "001_a_export.sql", None)] == found


def test_late_export_that_fails_says_what_was_taken_back_before(
    run: Run, database: servers.Database, migrations: WriteMigrations, tmp_path: Path
) -> None:
    """Of several only one stays: "nothing" would be a lie then."""
    rows = "INSERT INTO a SELECT n, repeat('x', 6000) FROM generate_series(1, 2500) n;"
    migrations(A | B | {
        "001_a_export.sql": "SELECT * FROM a;", "002_b_rollback.sql": f"DROP TABLE b;\n{rows}\n",
    })  # fmt: skip
    run()
    try:
        with faults.small_disk(tmp_path / "disk", 12) as disk:
            env = {"PREFLIGHT_BACKUP_DIR": str(disk)}
            result = run("rollback", "--to", "0", env=env)
    except PermissionError as error:
        pytest.skip(str(error))

    assert (23, ["002_b"]) == (result.code, result.finished["rolled_back"]), str(result)
    assert result.finished["error"]["hint"].endswith("; 001_a was not taken back.")
    assert [1] == database.query(PRESENT)


def test_export_without_a_backup_is_refused(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """It has no place to go; without an export file a backup may be off."""
    migrations(A | B | {"001_a_export.sql": "SELECT id FROM a;"})
    run()
    off = {"PREFLIGHT_BACKUP": "off"}
    with_export, without = run("rollback", "--to", "0", env=off), run("rollback", env=off)

    assert (23, "backup.no_export") == (with_export.code, with_export.finished["error"]["code"])
    assert 0 == without.code
    assert 1 == len(without.event("backup.skipped"))
    assert [1] == database.query(PRESENT)


def test_failed_backup_takes_nothing_back(
    run: Run, database: servers.Database, migrations: WriteMigrations, fakes: Fakes
) -> None:
    """No backup, no rollback."""
    migrations(A)
    run()
    result = run("rollback", env={"PATH": fakes.write("exit 0")})

    assert 24 == result.code, result
    assert [1] == database.query(PRESENT)
    assert not dropped(database, "a")


# --- one transaction ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rollback", "code"),
    [
        ("DROP TABLE a;\nSELECT 1 / 0;", "migration.sql_error"),
        ("SELECT 1;", "rollback.incomplete"),
        ("DROP SCHEMA preflight CASCADE; DROP TABLE a;", "migration.not_recorded"),
    ],
)
def test_rollback_that_fails_changes_nothing(
    run: Run, database: servers.Database, migrations: WriteMigrations, rollback: str, code: str
) -> None:
    """Neither the database nor the history; also one that leaves its columns behind."""
    migrations(A | {"001_a_rollback.sql": rollback})
    run()
    result = run("rollback")

    assert (30, code) == (result.code, result.finished["error"]["code"]), result
    assert [1] == database.query(PRESENT)
    assert not dropped(database, "a")
    assert [("applied", 1), ("failed", 1)] == database.query(JOURNAL)
    assert 0 == run().code


def test_steps_before_the_failing_one_stay_taken_back(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Each migration is its own transaction; running again takes up where it stopped."""
    migrations(A | B | {"001_a_rollback.sql": "SELECT 1 / 0;"})
    run()
    failed = run("rollback", "--to", "0")
    assert (30, [1]) == (failed.code, database.query(PRESENT))

    migrations({"001_a_rollback.sql": "DROP TABLE a;"})
    assert 0 == run("rollback", "--to", "0").code
    assert [] == database.query(PRESENT)


def test_blocked_rollback_is_tried_again(
    start: Start, run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Like a migration: the blocker is named, and when it goes the rollback comes through."""
    migrations(A)
    run()
    with psycopg.connect(database.conninfo(application_name="reader")) as reader:
        reader.execute("SELECT * FROM a")
        quick = {"PREFLIGHT_LOCK_TIMEOUT_MS": "100"}
        busy = run("rollback", env=quick | {"PREFLIGHT_LOCK_RETRY_S": "1"})
        process = start("rollback", env=quick)
        process.wait_for_event("migration.retried")
        reader.rollback()
        done = process.wait()

    error = busy.finished["error"]
    assert (12, "database.busy", 1) == (busy.code, error["code"], error["line"])
    assert error["message"].startswith("001_a_rollback.sql:1:1: canceling statement")
    assert "reader" in error["message"]
    assert 0 == done.code, done
    assert dropped(database, "a")


SLEEP = "DROP TABLE a; SELECT pg_sleep(60);"
ASLEEP = (
    "SELECT pid FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%' AND wait_event = 'PgSleep'"
)


def wait_until_asleep(database: servers.Database) -> int:
    """Return the process of the session that sleeps, once it does."""
    faults.until(lambda: database.query(ASLEEP), "the sleeping statement")
    return int(database.query(ASLEEP)[0])


@pytest.mark.parametrize("how", ["stop", "kill", "cut"])
def test_interrupted_rollback_changed_nothing_and_can_be_done_again(
    start: Start, run: Run, database: servers.Database, migrations: WriteMigrations, how: str
) -> None:
    """SIGTERM, kill -9, or a session that is terminated in the middle of the file."""
    migrations(A | {"001_a_rollback.sql": SLEEP})
    run()
    process = start("rollback")
    process.wait_for_event("migration.started")
    pid = wait_until_asleep(database)
    if how == "stop":
        process.signal(signal.SIGTERM)
        assert 143 == process.wait(10).code
    elif how == "kill":
        process.kill()
    else:
        database.query("SELECT pg_terminate_backend(%s)", pid)
        assert 13 == process.wait().code
    faults.until(lambda: not database.query(ASLEEP), "the end of the session")

    assert [1] == database.query(PRESENT)
    migrations({"001_a_rollback.sql": "DROP TABLE a;"})
    assert 0 == run("rollback").code
    assert dropped(database, "a")


# --- without a transaction ------------------------------------------------------------------------


def test_failed_file_without_transaction_can_be_taken_back(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """What it never made need not be exported; then it is as if it had not been run."""
    migrations(
        A
        | {
            "002_b.sql": MARK + "CREATE TABLE b (id int); SELECT 1 / 0; CREATE TABLE c ();",
            "002_b_rollback.sql": "DROP TABLE IF EXISTS b, c;",
            "002_b_export.sql": "SELECT * FROM c;",
        }
    )
    assert 31 == run().code
    result = run("rollback")

    assert 0 == result.code, result
    assert [1] == database.query(PRESENT)
    assert dropped(database, "b")


def test_rollback_without_transaction_resumes_where_it_stopped(
    outer_server: servers.Server, run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """A done statement is not run twice; until it is through, `up` does not touch the file."""
    assert outer_server is database.server
    migrations(
        A
        | {
            "002_b.sql": "CREATE TABLE b (id int); CREATE INDEX b_id ON b (id);",
            "002_b_rollback.sql": MARK
            + "DROP INDEX CONCURRENTLY b_id; ALTER TABLE b DROP COLUMN id; SELECT 1 / 0;",
            "002_b_verify.sql": VERIFY.format("b"),
        }
    )
    run()
    failed, again, looked = run("rollback"), run(), run("check")
    changed = {"002_b_rollback.sql": MARK + "SELECT 1; DROP TABLE b;"}
    migrations(changed)
    refused = run("rollback")
    migrations(
        {
            "002_b_rollback.sql": MARK
            + "DROP INDEX CONCURRENTLY b_id; ALTER TABLE b DROP COLUMN id; DROP TABLE b;"
        }
    )
    done = run("rollback")

    assert (31, "22012") == (failed.code, failed.finished["error"]["sqlstate"])
    assert [32, 32, 32] == [again.code, looked.code, refused.code], again
    told = refused.finished["error"]
    assert "the rollback of 002_b stopped after 2 of 3 statements" in told["message"]
    assert "`adopt" not in told["hint"]  # it would record what is gone in part
    assert [] == refused.event("backup.started")
    assert 0 == done.code, done
    assert [1] == database.query(PRESENT)
    assert dropped(database, "b")
    assert 0 == run().code
    assert [1, 2] == database.query(PRESENT)


def test_rollback_without_transaction_that_leaves_something_goes_on_behind_it(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """What has run of it may not be another text: the rest is added behind, as the hint says."""
    first = "DROP INDEX CONCURRENTLY i;\n"
    migrations({
        "001_a.sql": "CREATE TABLE a (b int); CREATE INDEX i ON a (b); CREATE INDEX j ON a (b);",
        "001_a_rollback.sql": MARK + first,
        "001_a_verify.sql": VERIFY.format("i") + VERIFY.format("j"),
    })  # fmt: skip
    off = {"PREFLIGHT_BACKUP": "off"}
    assert 0 == run(env=off).code
    left = run("rollback", env=off)
    migrations({"001_a_rollback.sql": MARK + "DROP TABLE a;\n"})
    changed = run("rollback", env=off)
    migrations({"001_a_rollback.sql": MARK + first + "DROP TABLE a;\n"})
    done = run("rollback", env=off)

    assert [31, 32, 0] == [left.code, changed.code, done.code], f"{left}{changed}{done}"
    error = left.finished["error"]
    assert "rollback.incomplete" == error["code"]
    assert error["hint"].startswith("Add what is missing behind the statements that have run")
    assert "what is missing behind that" in changed.finished["error"]["hint"]
    assert dropped(database, "a")


def test_killed_rollback_without_transaction_is_finished_by_the_next(
    start: Start, run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """The statement in which it was killed runs again, the one before it does not."""
    text = MARK + "ALTER TABLE a DROP COLUMN t; SELECT pg_sleep({}); DROP TABLE a;"
    migrations(A | {"001_a_rollback.sql": text.format(60)})
    run()
    process = start("rollback")
    process.wait_for_event("migration.started")
    wait_until_asleep(database)
    process.kill()
    faults.until(lambda: not database.query(ASLEEP), "the end of the session")
    migrations({"001_a_rollback.sql": text.format(0)})

    assert 32 == run("check").code
    assert 0 == run("rollback").code
    assert dropped(database, "a")
    assert [] == database.query(PRESENT)


def test_unfinished_rollback_gives_way_to_force(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """The other way out of it: the file again, from its start."""
    migrations(
        {
            "001_a.sql": "CREATE TABLE IF NOT EXISTS a (id int);",
            "001_a_rollback.sql": MARK + "DROP TABLE a; SELECT 1 / 0;",
        }
    )
    run()
    assert 31 == run("rollback").code
    assert 0 == run("force").code

    assert not dropped(database, "a")
    assert [(False, "forced")] == database.query("SELECT undoing, how FROM preflight.migrations")
    assert 0 == run().code


def test_adopt_of_a_file_whose_rollback_stopped_says_what_finishes_it(
    run: Run, migrations: WriteMigrations
) -> None:
    """It is as it was recorded: to put it back would help nobody."""
    verify = "SELECT 's' AS suite, 'a' AS \"check\", to_regclass('a') IS NOT NULL AS ok;\n"
    migrations(
        {
            "001_a.sql": "CREATE TABLE a (id int);",
            "001_a_verify.sql": verify,
            "001_a_rollback.sql": MARK + "DROP TABLE a; SELECT 1 / 0;",
        }
    )
    run()
    assert 31 == run("rollback").code

    result = run("adopt", "1")

    assert (33, "verify.not_there") == (result.code, result.finished["error"]["code"])
    assert "`rollback` finishes that" in result.finished["error"]["hint"]


# --- there and back -------------------------------------------------------------------------------


def catalog(database: servers.Database) -> tuple[str, dict[str, list[Any]]]:
    """Return the schema as pg_dump writes it, and every row of every table but its times."""
    pg_dump = str(servers.client_bin(18) / "pg_dump")
    done = subprocess.run(
        [pg_dump, "--schema-only", "--exclude-schema=preflight", "--restrict-key=x"],
        env=database.env(),
        capture_output=True,
        check=True,
        text=True,
    )
    tables = database.query(
        "SELECT relname::text FROM pg_class WHERE relkind = 'r' "
        "AND relnamespace = 'public'::regnamespace ORDER BY 1"
    )
    rows = "SELECT to_jsonb(t) - 'created_at' - 'updated_at' FROM {} t ORDER BY 1"
    return done.stdout, {
        name: database.query(SQL(rows).format(Identifier(name))) for name in tables
    }


def test_there_and_back_and_there_again_is_the_same_as_there(
    outer_server: servers.Server,
    run: Run,
    database: servers.Database,
    create_database: CreateDatabase,
) -> None:
    """The repository's own migrations leave nothing behind, on an old server or a new one."""
    once = create_database(outer_server)
    assert 0 == run(env={**REPOSITORY, **once.env()}).code
    empty = catalog(database)
    assert 0 == run(env=REPOSITORY).code
    back = run("rollback", "--to", "0", env=REPOSITORY)

    assert 0 == back.code, back
    assert ["002_add_system_api_keys", "001_create_llm_tables"] == back.finished["rolled_back"]
    assert empty == catalog(database)
    assert 0 == run(env=REPOSITORY).code
    assert catalog(once) == catalog(database)


# --- what is recorded, and what is on disk --------------------------------------------------------


OTHER = {
    "002_colours.sql": "CREATE TABLE colours (id int);\n",
    "002_colours_rollback.sql": "DROP TABLE IF EXISTS colours;\n",
    "002_colours_verify.sql": VERIFY.format("colours"),
}


@pytest.mark.parametrize(
    "there",
    [
        OTHER,  # another number's owner
        {"002_renamed.sql": B["002_b.sql"], "002_renamed_rollback.sql": "SELECT 1/0;"},
        {"002_b.sql": "CREATE TABLE b (id int, t text);", "002_b_rollback.sql": "SELECT 1/0;"},
    ],
    ids=["other", "renamed", "edited"],
)
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "not kept"])
def test_rollback_never_runs_the_file_of_another_migration(
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    there: dict[str, str],
    *,
    kept: bool,
) -> None:
    """It is what the history keeps that runs; 26, and nothing is touched, where it keeps none."""
    gone = [name for name in B if kept or name != "002_b_rollback.sql"]
    folder = migrations(A | {name: B[name] for name in gone})
    run()
    for name in gone:
        (folder / name).unlink()
    migrations(there)

    result = run("rollback")

    assert (0 if kept else 26) == result.code, str(result)
    assert kept == dropped(database, "b")
    assert [1] if kept else [1, 2] == database.query(PRESENT)
    if kept:
        assert ["002_b"] == result.finished["rolled_back"]
    else:
        assert "002_b" in result.finished["error"]["message"]
        assert "history.conflict" == result.finished["error"]["code"]


def test_rollback_to_zero_takes_back_version_000(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """0 is before all, whatever number the first file has; 000 is the version, which stays."""
    migrations({"000_z.sql": "CREATE TABLE z ();", "000_z_rollback.sql": "DROP TABLE z;"})
    first = run()
    migrations(A)
    second = run()

    assert [0, "000"] == [each.event("plan.made")[0]["above"] for each in (first, second)]
    assert ["001_a"] == run("rollback", "--to", "000").finished["rolled_back"]
    assert ["000_z"] == run("rollback", "--to", "0").finished["rolled_back"]
    assert [] == database.query(PRESENT)
    assert dropped(database, "a", "z")


TWO_IN_ONE = (
    "SELECT 's' AS suite, x.c AS \"check\", x.ok FROM (VALUES "
    "('b is readable', (SELECT count(*) >= 0 FROM b)), "
    "('a has y', EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('a') "
    "AND attname = 'y' AND NOT attisdropped))) x (c, ok);"
)


def test_verify_query_that_fails_after_a_rollback_is_no_proof_that_nothing_is_left(
    run: Run, migrations: WriteMigrations
) -> None:
    """A column stays, and the query that would find it names a table that is gone: a warning."""
    text = "CREATE TABLE b ();\nALTER TABLE a ADD y int;\n"
    migrations(A | B | {"002_b.sql": text, "002_b_verify.sql": TWO_IN_ONE})
    run()

    result = run("rollback")

    assert 0 == result.code, str(result)
    (told,) = [e for e in result.event("migration.progressed") if "no evidence" in str(e)]
    assert "warning" == told["level"]


EXPORTED = {"002_b_export.sql": "SELECT id FROM b;"}
TABLES_OF_0_1 = "ALTER TABLE preflight.migrations DROP COLUMN verify_sql, DROP COLUMN export_sql"


def test_image_without_the_files_exports_and_verifies_as_they_did(
    run: Run, database: servers.Database, migrations: WriteMigrations, backup_dir: Path
) -> None:
    """The history keeps the texts: no export is 23, an effect that is left 30."""
    incomplete = {"002_b_rollback.sql": "SELECT 1;"}
    folder = migrations(A | B | EXPORTED | incomplete)
    run()
    for name in B | EXPORTED:
        (folder / name).unlink()
    database.query("INSERT INTO b VALUES (7)")

    assert 23 == run("rollback", env={"PREFLIGHT_BACKUP": "off"}).code
    left = run("rollback", env={"PREFLIGHT_REHEARSE": "off"})

    assert (30, "rollback.incomplete") == (left.code, left.finished["error"]["code"]), str(left)
    (export,) = left.event("export.saved")
    assert 1 == export["rows"]
    assert "id\n7\n" == (backup_dir / export["backup"] / export["file"]).read_text()


def test_tables_of_an_older_version_are_read_and_completed(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Reading does not need the new columns; the next run that writes adds and fills them."""
    folder = migrations(A | B | EXPORTED)
    run()
    database.query(TABLES_OF_0_1)
    codes = [run(each).code for each in ("up", "check", "verify", "plan")]
    (folder / "002_b_rollback.sql").rename(folder / ".kept")
    migrations({"003_c.sql": "SELECT 3;"})

    assert ([0] * 4, 0) == (codes, run(env={"PREFLIGHT_BACKUP": "off"}).code)
    assert [(B["002_b_verify.sql"], EXPORTED["002_b_export.sql"]), ("", "")] == database.query(
        "SELECT verify_sql, export_sql FROM preflight.migrations WHERE version > 1 ORDER BY version"
    )
    (folder / ".kept").rename(folder / "002_b_rollback.sql")
    assert [True] == database.query(
        "SELECT rollback_sql IS NOT NULL FROM preflight.migrations WHERE version = 2"
    )
    database.query(TABLES_OF_0_1)
    for name in ["003_c.sql", *B, *EXPORTED]:
        (folder / name).unlink()
    database.query("DELETE FROM preflight.migrations WHERE version = 3")
    result = run("rollback", env={"PREFLIGHT_BACKUP": "off"})
    assert 0 == result.code, str(result)
    assert "older version" in str(result.event("migration.progressed"))


def test_newer_tables_are_read_and_not_written(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """28 where a row would lack what a newer version keeps; nothing pending is still 0."""
    migrations(A)
    run()
    database.query("ALTER TABLE preflight.migrations ADD COLUMN tenant text NOT NULL DEFAULT ''")
    assert [0, 0, 0] == [run(each).code for each in ("up", "check", "verify")]
    migrations(B)

    result = run()

    assert (28, "schema.newer_history") == (result.code, result.finished["error"]["code"])
    assert 28 == run("rollback").code
    assert [] == result.event("backup.started")


class _LostAsOthersCome(faults.LostCommit):
    """Loses the answer to a COMMIT, and does something else before anybody hears of it."""

    def __init__(self, number: int, come: Callable[[], object]) -> None:
        super().__init__(number)
        self.come = come

    def to_client(self, kind: bytes, message: bytes) -> bytes:
        """Come once the server is through."""
        if self.committing and kind == b"Z":
            self.come()
        return super().to_client(kind, message)


def test_version_is_not_taken_back_beneath_one_that_another_run_applied_meanwhile(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """The lock went with a lost connection, so the plan is of another history: 11."""
    migrations(A | B)
    assert 0 == run().code
    database.script("CREATE TABLE kept AS SELECT * FROM preflight.migrations WHERE version = 2")

    def another_run() -> None:
        columns = database.query(
            "SELECT string_agg(quote_ident(attname), ', ') FROM pg_attribute"
            " WHERE attrelid = 'kept'::regclass AND attnum > 0"
        )[0]
        database.script(
            "UPDATE kept SET run_id = 'another';"
            f"INSERT INTO preflight.migrations ({columns}) SELECT {columns} FROM kept"
        )

    with faults.through(database.server, _LostAsOthersCome(2, another_run)) as proxy:
        result = run("rollback", "--to", "0", env=proxy.env() | {"PREFLIGHT_BACKUP": "off"})

    assert (11, "history.changed") == (result.code, result.finished["error"]["code"]), str(result)
    assert ["002_b"] == result.finished["rolled_back"]
    assert [1, 2] == database.query("SELECT version FROM preflight.migrations ORDER BY 1")


@pytest.mark.parametrize(
    ("command", "left", "said"),
    [
        (["rollback"], [1], "another run took 002_b back meanwhile"),
        (["force"], [1, 2], "another run ran 002_b again, or began to take it back, meanwhile"),
        (
            ["force", "2"],
            [1, 2],
            "another run ran 002_b again, or began to take it back, meanwhile",
        ),
    ],
)
def test_two_at_once_change_what_each_of_them_saw_and_that_once(  # noqa: PLR0913, PLR0917 - fixtures
    run: Run,
    start: Start,
    database: servers.Database,
    migrations: WriteMigrations,
    command: list[str],
    left: list[int],
    said: str,
) -> None:
    """Both chose the newest before the lock; who comes second finds another one there: 11."""
    migrations(A | B | {"002_b.sql": "CREATE TABLE IF NOT EXISTS b (id int);\n"})
    assert 0 == run(env={"PREFLIGHT_BACKUP": "off"}).code
    with database.server.connect(database.name) as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", [lock.key("preflight")])
        both = [start(*command, env={"PREFLIGHT_BACKUP": "off"}) for _ in range(2)]
        for each in both:
            each.wait_for_event("lock.busy")
    first, second = sorted((each.wait() for each in both), key=lambda result: result.code)

    assert (0, 11) == (first.code, second.code), f"{first}{second}"
    error = second.finished["error"]
    assert ("history.changed", said) == (error["code"], error["message"])
    assert left == database.query(PRESENT)


def test_newest_that_came_while_the_lock_was_waited_for_is_left_alone(
    run: Run, start: Start, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Who asked for the newest meant the one that he saw: 11, and nothing is taken back."""
    migrations(A)
    assert 0 == run(env={"PREFLIGHT_BACKUP": "off"}).code
    with database.server.connect(database.name) as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", [lock.key("preflight")])
        process = start("rollback", env={"PREFLIGHT_BACKUP": "off"})
        process.wait_for_event("lock.busy")
        database.script(
            "INSERT INTO preflight.migrations (version, name, checksum, state, how, up_sql,"
            " rollback_sql, tool_version, run_id)"
            " VALUES (2, '002_b', '', 'done', 'applied', '', 'DROP TABLE a', '', '')"
        )
    result = process.wait()

    error = result.finished["error"]
    assert (11, "another run applied 002_b meanwhile") == (result.code, error["message"])
    assert [1, 2] == database.query(PRESENT)


class _CutsAtCommit(faults.CommitFault):
    """Cuts the connection instead of a COMMIT; others come before anybody connects again."""

    def __init__(self, number: int, come: Callable[[], object]) -> None:
        super().__init__(number)
        self.others = threading.Thread(target=come)

    def connected(self) -> faults.CommitFault:
        """Let them be through."""
        if self.others.ident is not None:
            self.others.join()
        return super().connected()

    def to_server(self, kind: bytes, message: bytes) -> bytes:
        """Send nothing of it; they wait for what our transaction holds."""
        message = super().to_server(kind, message)
        if self.committing:
            self.others.start()
            raise faults.Cut
        return message


def test_row_that_another_run_took_over_is_no_proof_that_ours_is_gone(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Nothing was rolled back, whoever is at work on the row now: 13."""
    migrations(A)
    assert 0 == run().code
    update = "UPDATE preflight.migrations SET run_id = 'another'"
    cut = _CutsAtCommit(2, lambda: database.script(update))
    with faults.through(database.server, cut) as proxy:
        result = run("rollback", env=proxy.env() | {"PREFLIGHT_BACKUP": "off"})

    assert 13 == result.code, str(result)
    assert [] == result.event("migration.rolled_back")
    assert [(1, "another")] == database.query("SELECT version, run_id FROM preflight.migrations")


@pytest.mark.parametrize(("number", "locks"), [(2, 2), (3, 1)])
def test_lost_answer_to_a_rollback_is_read_back(
    run: Run, database: servers.Database, migrations: WriteMigrations, number: int, locks: int
) -> None:
    """It goes on under the lock, which nobody waits for when nothing is left to do."""
    migrations(A | B)
    assert 0 == run().code
    with faults.through(database.server, faults.LostCommit(number)) as proxy:
        result = run("rollback", "--to", "0", env=proxy.env() | {"PREFLIGHT_BACKUP": "off"})

    assert 0 == result.code, str(result)
    assert ["002_b", "001_a"] == result.finished["rolled_back"]
    assert locks == len(result.event("lock.acquired"))


def test_rollback_that_does_nothing_leaves_how_far_the_file_came(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """A file that stopped part-way goes on from there, though its way back failed at once."""
    migrations({
        "001_a.sql": f"{MARK}CREATE TABLE a (id int);\nINSERT INTO a VALUES (1), (1);\n"
        "CREATE UNIQUE INDEX CONCURRENTLY i ON a (id);\n",
        "001_a_rollback.sql": f"{MARK}DROP INDEX CONCURRENTLY missing;\nDROP TABLE a;\n",
    })  # fmt: skip
    off = {"PREFLIGHT_BACKUP": "off"}
    assert 31 == run(env=off).code
    marks = "SELECT state, statements_done, statements_started FROM preflight.migrations"
    before = database.query(marks)
    back = run("rollback", env=off)
    after = database.query(marks)
    database.script("DELETE FROM a WHERE ctid = '(0,1)'")
    forward = run(env=off)

    assert (31, before) == (back.code, after), back
    assert 0 == forward.code, forward


@pytest.mark.parametrize(("there", "below"), [((1, 2), "1"), ((0, 1), "000"), ((1,), "0")])
def test_rollback_whose_outcome_is_unknown_is_not_to_take_back_one_more(
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    there: tuple[int, ...],
    below: str,
) -> None:
    """13 names the command that does nothing if it came through."""
    for version in there:
        migrations({
            f"00{version}_t.sql": f"CREATE TABLE t{version} (id int);",
            f"00{version}_t_rollback.sql": f"DROP TABLE t{version};",
        })  # fmt: skip
    assert 0 == run().code
    off = {"PREFLIGHT_BACKUP": "off"}
    with faults.through(database.server, faults.LostAndGone(2)) as proxy:
        bare = run("rollback", env=proxy.env() | off | {"PREFLIGHT_WAIT_TIMEOUT_S": "0.5"})
    again = re.search(r"rollback (--to \d+)", str(bare.finished["error"]["hint"]))
    assert again is not None, bare
    repeated = run("rollback", *again[1].split(), env=off)

    assert (13, 0) == (bare.code, repeated.code), str(repeated)
    assert f"--to {below}" == again[1]
    assert [] == repeated.event("migration.rolled_back")
    assert list(there[:-1]) == database.query(PRESENT)
