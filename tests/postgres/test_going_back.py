"""Another tool at work on a database beside us: found out whatever it began with."""

import hashlib
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import servers, tools
from tests.conftest import Run
from tests.postgres.test_takeover import (
    GOOSE,
    KEPT,
    A,
    Tool,
    dbmate,
    every,
    states,
    succeed,
    url,
    write,
)

ROW = "INSERT INTO a VALUES (7);\n"
SNAPSHOT = """import datetime, json, subprocess
subprocess.run({command!r}, check=True, stdout=subprocess.DEVNULL)
now = datetime.datetime.now(datetime.timezone.utc).isoformat()
print(json.dumps({{"backup": "b", "taken_at": now, "restore": "r"}}))
"""
MEANWHILE = {"PREFLIGHT_REHEARSE": "off", "PREFLIGHT_BACKUP": "off"}


def forth(name: str, text: str, back: str = "SELECT 1;\n") -> dict[str, str]:
    """Return a version as golang-migrate and sqlx read it."""
    return {f"{name}.up.sql": text, f"{name}.down.sql": back}


def both(text: str, back: str = "SELECT 1;\n") -> str:
    """Return a version as dbmate reads it."""
    return f"-- migrate:up\n{text}-- migrate:down\n{back}"


def recorded(database: servers.Database) -> list[tuple[int, str]]:
    """Return what the history says, and how it came."""
    rows: list[tuple[int, str]] = database.query(
        "SELECT version, how FROM preflight.migrations ORDER BY version"
    )
    return rows


def golang(database: servers.Database, folder: Path, *words: str) -> None:
    """Run golang-migrate."""
    succeed(tools.go("migrate"), "-path", folder, "-database", url(database), *words)


def sqlx_ran(database: servers.Database, files: dict[str, str]) -> None:
    """Write the history that sqlx has of some files."""
    database.script(KEPT["sqlx"].table)
    for name, text in files.items():
        version, checksum = int(name.partition("_")[0]), hashlib.sha384(text.encode()).digest()
        row = "INSERT INTO _sqlx_migrations VALUES (%s, 't', now(), true, %s, 1)"
        database.query(row, version, checksum)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give the migrations directory."""
    return tmp_path / "migrations"


@pytest.mark.parametrize("before", ["this release", "an older one"])
def test_who_goes_back_to_the_tool_is_found_out(
    before: str, run: Run, database: servers.Database, folder: Path
) -> None:
    """The database was born here, so there was no history to take over: nothing runs twice."""
    write(folder, {**forth("1_a", A), **forth("2_b", "SELECT 1;\n")})
    assert 0 == (first := run(env=MEANWHILE)).code, str(first)
    if before == "an older one":  # it remembered nothing of a tool that had no table
        database.script("DROP TABLE preflight.takeovers")
    golang(database, folder, "force", "2")
    write(folder, forth("3_row", ROW))
    golang(database, folder, "up")

    shown, planned, result = run("check"), run("plan"), run(env=MEANWHILE)

    assert [26, 26, 26] == [each.code for each in (shown, planned, result)], str(result)
    assert "golang-migrate" in result.finished["error"]["message"]
    assert [7] == database.query("TABLE a")
    assert 0 == (settled := run("adopt", "--through", "3")).code, str(settled)
    assert (0, []) == ((again := run(env=MEANWHILE)).code, again.event("lock.acquired"))
    assert [7] == database.query("TABLE a")


def test_table_that_says_nothing_is_no_alarm(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """A look with the old tool makes its table; where nothing was applied nobody went back."""
    write(folder, {"1_a.sql": both(A)})
    assert 0 == run(env=MEANWHILE).code
    database.script("CREATE TABLE schema_migrations (version varchar PRIMARY KEY)")
    write(folder, {"2_row.sql": both(ROW)})

    result = run(env=MEANWHILE)

    assert (0, ["2_row"]) == (result.code, result.finished["applied"]), str(result)


@pytest.mark.parametrize("table", ["none", "empty"])
def test_tool_that_is_first_during_our_backup_is_taken_over(
    table: str, run: Run, database: servers.Database, folder: Path, tmp_path: Path
) -> None:
    """On a fresh database: what it applied does not run again, table or none beforehand."""
    write(folder, {"1_a.sql": both(f"CREATE TABLE IF NOT EXISTS {A[13:]}"), "2_row.sql": both(ROW)})
    if table == "empty":
        database.script("CREATE TABLE schema_migrations (version varchar PRIMARY KEY)")
    program = tools.dbmate()
    words = ["--no-dump-schema", "--migrations-dir", str(folder), "--url", url(database), "up"]
    text = SNAPSHOT.format(command=[str(program), *words])
    snapshot = write(tmp_path, {"snapshot.py": text}) / "snapshot.py"
    command = f"{sys.executable} '{snapshot}'"

    result = run(env={"PREFLIGHT_BACKUP": "command", "PREFLIGHT_BACKUP_COMMAND": command})

    assert (0, ["1_a", "2_row"]) == (result.code, result.finished.get("adopted")), str(result)
    assert [7] == database.query("TABLE a")


@pytest.mark.parametrize("own", ["2", "none", ""])
def test_two_tools_that_read_one_folder_are_a_question(
    own: str, run: Run, database: servers.Database, folder: Path
) -> None:
    """The history of the other one says that it all ran; an old one, or an empty one, says less."""
    names = [f"2024010{day}000000_t" for day in (1, 2, 3)]
    texts = [f"CREATE TABLE IF NOT EXISTS {A[13:]}", "SELECT 1;\n", ROW]
    for name, text in zip(names, texts, strict=True):
        write(folder, forth(name, text))
        database.script(text)
    sqlx_ran(database, dict(zip(names, texts, strict=True)))
    if own:
        database.script("CREATE TABLE schema_migrations (version bigint, dirty boolean)")
    if own == "2":
        database.script("INSERT INTO schema_migrations VALUES (20240102000000, false)")
    pending = {"PREFLIGHT_FIRST_CONTACT": "pending"}

    results = [run(*words, env=pending) for words in (["check"], ["plan"], [])]
    said = {"PREFLIGHT_LAYOUT": "sqlx"}
    taken = run(env=said)

    assert [26] * 3 == [each.code for each in results], str(results[-1])
    error = results[-1].finished["error"]
    assert "takeover.ambiguous" == error["code"]
    assert "_sqlx_migrations" in error["message"]
    assert "PREFLIGHT_LAYOUT=sqlx" in error["hint"]
    assert (0, 3) == (taken.code, len(taken.finished["adopted"])), str(taken)
    assert [7] == database.query("TABLE a")


def test_who_says_whose_folder_it_is_is_not_asked(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """Nobody goes by the other history any more: PREFLIGHT_LAYOUT says so."""
    name = "20240101000000_t"
    write(folder, forth(name, f"CREATE TABLE IF NOT EXISTS {A[13:]}"))
    sqlx_ran(database, {name: f"CREATE TABLE IF NOT EXISTS {A[13:]}"})
    env = {"PREFLIGHT_LAYOUT": "golang-migrate", "PREFLIGHT_FIRST_CONTACT": "pending"}
    result = run(env=env)

    assert (0, [name]) == (result.code, result.finished["applied"]), str(result)


@pytest.mark.parametrize("left", ["nothing", "all"])
@pytest.mark.parametrize("how", ["taken over", "vouched for"])
def test_version_that_the_tool_took_back_is_not_recorded_without_a_word(
    how: str, left: str, run: Run, database: servers.Database, folder: Path
) -> None:
    """What is pending again is what a person does not vouch for: `up` brings it back."""
    write(
        folder,
        {f"{n}_t.sql": both(f"CREATE TABLE t{n} ();\n", f"DROP TABLE t{n};\n") for n in (1, 2)},
    )
    if how == "vouched for":
        dbmate(database, folder, 1)
        gone = shutil.move(folder / "2_t.sql", folder.parent / "2_t.sql")
        assert 0 == run(env=MEANWHILE).code
        shutil.move(gone, folder / "2_t.sql")
        dbmate(database, folder, 1)
        assert [26, 0] == [run().code, run("adopt", "--through", "2").code]
    else:
        dbmate(database, folder, 2)
    assert 0 == (first := run(env=MEANWHILE)).code, str(first)
    rollback = ("--migrations-dir", folder, "--no-dump-schema", "--url", url(database), "rollback")
    succeed(tools.dbmate(), *rollback)
    if there := left == "all":
        database.script("CREATE TABLE t2 ()")

    refused = run(env=MEANWHILE)
    settled = run("adopt", "--through", "2" if there else "1")
    shown, result = run("check"), run(env=MEANWHILE)

    assert 26 == refused.code, str(refused)
    assert "it took 2 back" in refused.finished["error"]["message"]
    assert 0 == settled.code, str(settled)
    (warned,) = settled.event("config.warned")
    assert ("stays recorded" if there else "pending again") in warned["warning"]
    assert (0 if there else 3) == shown.code, str(shown)
    assert (0, None if there else ["2_t"]) == (result.code, result.finished.get("applied"))
    assert [True] == database.query("SELECT to_regclass('t2') IS NOT NULL")
    assert (0, []) == ((again := run()).code, again.event("lock.acquired"))


def test_version_that_is_newer_than_all_files_is_vouched_for_by_nobody(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """Its file would run again once it came, also after another one was forced."""
    goose = "-- +goose Up\n{}-- +goose Down\nSELECT 1;\n"
    texts = {f"{n}_t.sql": goose.format(f"CREATE TABLE IF NOT EXISTS t{n} ();\n") for n in (1, 2)}
    write(folder, {**texts, "5_row.sql": goose.format(f"CREATE TABLE {A[13:]}{ROW}")})
    GOOSE.up(database, folder, 3)
    new = shutil.move(folder / "5_row.sql", folder.parent / "5_row.sql")

    first, vouched = run(), run("adopt", "--through", "2")
    write(folder, {"3_t.sql": goose.format("SELECT 1;\n")})
    refused = run()
    shutil.move(new, folder / "5_row.sql")
    result = run(env={"PREFLIGHT_OUT_OF_ORDER": "allow"})

    assert [26, 0, 26, 0] == [each.code for each in (first, vouched, refused, result)], str(result)
    (warned,) = vouched.event("config.warned")
    assert "goose has applied 5 (" in warned["warning"]
    assert ["5_row"] == result.finished["adopted"]
    assert [7] == database.query("TABLE a")


@every
def test_what_was_known_of_a_tool_does_not_run_when_its_file_comes(
    tool: Tool, run: Run, database: servers.Database, folder: Path
) -> None:
    """Known is what an older release was told of all of it; what was taken back here runs again."""
    write(folder, tool.files)
    tool.up(database, folder, 3)
    late = [each for each in folder.iterdir() if "function" in each.name]
    aside = folder.parent / "aside"
    aside.mkdir()
    for each in late:
        shutil.move(each, aside / each.name)
    versions = [each["version"] for each in run("check").event("migration.listed")]
    assert 0 == run("adopt", "--through", str(versions[-1])).code
    database.script("UPDATE preflight.migrations SET how = 'forced'")  # first contact is over
    for each in late:
        shutil.move(aside / each.name, folder / each.name)

    refused = [run(*words, env=MEANWHILE) for words in (["check"], ["plan"], [])]

    assert [26] * 3 == [each.code for each in refused], str(refused[-1])
    error = refused[-1].finished["error"]
    assert tool.name in error["message"]
    assert "function" in error["message"]
    newest = run("check").event("migration.listed")[-1]["version"]
    assert 0 == (settled := run("adopt", "--through", str(newest))).code, str(settled)
    assert 0 == run(env=MEANWHILE).code
    assert 0 == (back := run("rollback", env=MEANWHILE)).code, str(back)
    assert (0, 1) == ((forth := run(env=MEANWHILE)).code, len(forth.finished["applied"]))


def test_other_history_that_is_refused_is_named_all_the_more(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """A version of sqlx's failed: its files are not to run as ours, all of them again."""
    files = {"001_a": A, "002_b": "SELECT 1;\n"}
    write(folder, {f"{name}.sql": text for name, text in files.items()})
    sqlx_ran(database, files)
    database.script(f"{A}; UPDATE _sqlx_migrations SET success = version < 2")

    asked, pending = run(), run(env={"PREFLIGHT_FIRST_CONTACT": "pending"})

    assert [26, 26] == [asked.code, pending.code], str(pending)
    assert "A history of sqlx is here" in asked.finished["error"]["hint"]
    assert "PREFLIGHT_LAYOUT=sqlx" in pending.finished["error"]["hint"]
    assert [0] == database.query("SELECT count(*)::int FROM a")


@pytest.mark.parametrize("mark", ["-- +goose Up\n-- +goose Down\n", both("", "")])
def test_file_that_is_empty_both_ways_is_taken_back(mark: str, run: Run, folder: Path) -> None:
    """Nothing was done: the version is forgotten, as the tool forgets it."""
    write(folder, {"1_a.sql": mark})

    results = run(), run("rollback"), run()

    assert [0, 0, 0] == [each.code for each in results], str(results[1])
    assert ["1_a"] == results[1].finished["rolled_back"]


# --- who is no tool of ours -----------------------------------------------------------------------


def test_who_may_only_read_is_told_what_is_pending(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """The journal is not for everyone: 3, as in a folder of ours."""
    write(folder, forth("1_a", A))
    assert 0 == run(env=MEANWHILE).code
    write(folder, forth("2_row", ROW))
    database.script(
        "DROP ROLE IF EXISTS reader; CREATE ROLE reader LOGIN PASSWORD 'x';"
        "GRANT USAGE ON SCHEMA preflight TO reader"
    )

    result = run("check", env={"PGUSER": "reader", "PGPASSWORD": "x"})
    database.script("REVOKE ALL ON SCHEMA preflight FROM reader; DROP ROLE reader")

    assert (3, ["applied", "pending"]) == (result.code, states(result)), str(result)


class Neighbour(NamedTuple):
    """Our files, and another app's table in the same schema: as it is made, and as it moves on."""

    files: dict[str, str]
    later: dict[str, str]
    table: str
    moves: str


NEIGHBOURS = {
    "its numbers fit, under another name": Neighbour(
        forth("1_a", A),
        forth("2_row", ROW),
        "CREATE TABLE b_migrations (version bigint, dirty boolean);"
        "INSERT INTO b_migrations VALUES (5, false)",
        "UPDATE b_migrations SET version = 6",
    ),
    "Rails has the name and the column of dbmate's": Neighbour(
        {"20240101000000_a.sql": both(A)},
        {"20240102000000_row.sql": both(ROW)},
        "CREATE TABLE schema_migrations (version varchar PRIMARY KEY);"
        "INSERT INTO schema_migrations VALUES ('20230101101010')",
        "INSERT INTO schema_migrations VALUES ('20250101101010')",
    ),
}


@pytest.mark.parametrize("born", ["here", "under an older release"])
@pytest.mark.parametrize("case", NEIGHBOURS)
def test_neighbour_is_no_alarm(
    case: str, born: str, run: Run, database: servers.Database, folder: Path
) -> None:
    """Nothing in its table is recorded here, or it is no table that the tool would look into."""
    files, later, table, moves = NEIGHBOURS[case]
    write(folder, files)
    assert 0 == run(env=MEANWHILE).code
    if born != "here":
        database.script("DROP TABLE preflight.takeovers")
    database.script(table)
    write(folder, later)

    first = run(env=MEANWHILE)
    database.script(moves)

    (name,) = {each.partition(".")[0] for each in later}
    assert (0, [name]) == (first.code, first.finished["applied"]), str(first)
    assert [0, 0] == [run("check").code, run(env=MEANWHILE).code]


# --- who is ---------------------------------------------------------------------------------------


def test_tool_that_goes_on_beside_a_converted_folder_stays_found_out(
    run: Run, database: servers.Database, folder: Path, tmp_path: Path
) -> None:
    """What was remembered of an empty table is not forgotten with the old names."""
    write(folder, forth("1_a", A))
    database.script("CREATE TABLE schema_migrations (version bigint, dirty boolean)")
    assert 0 == run(env=MEANWHILE).code
    ours = tmp_path / "ours"
    assert 0 == run("convert", str(folder), str(ours)).code
    moved = MEANWHILE | {"PREFLIGHT_MIGRATIONS_DIR": str(ours)}
    assert 0 == run("adopt", "--through", "1", env=moved).code
    database.script(f"{ROW}; INSERT INTO schema_migrations VALUES (2, false)")
    (ours / "002_row.sql").write_text(ROW)

    codes = [run(*words, env=moved).code for words in ([], ["adopt", "--through", "1"], [])]
    settled = run("adopt", "--through", "2", env=moved)

    assert [26, 0, 26] == codes
    assert (0, 0) == (settled.code, run(env=moved).code), str(settled)
    assert [7] == database.query("TABLE a")


def test_what_was_applied_here_and_the_tool_took_back_is_missed(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """Its table said that it is there, by `force`: who recorded it first is no matter."""
    for n in (1, 2, 3):
        write(folder, forth(f"{n}_t", f"CREATE TABLE t{n} ();\n", f"DROP TABLE t{n};\n"))
    assert 0 == run(env=MEANWHILE).code
    golang(database, folder, "force", "3")
    assert [26, 0] == [run().code, run("adopt", "--through", "3").code]
    golang(database, folder, "down", "1")

    refused, settled, shown = run(), run("adopt", "--through", "2"), run("check")

    assert (26, 0, 3) == (refused.code, settled.code, shown.code), str(settled)
    assert "it took 3 back" in refused.finished["error"]["message"]
    assert ["3_t"] == (again := run(env=MEANWHILE)).finished["applied"], str(again)


def test_all_that_the_tool_took_back_is_pending_again(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """Nothing is left to vouch for: `adopt --through 0`, as the hint says."""
    for n in (1, 2):
        write(folder, forth(f"{n}_t", f"CREATE TABLE t{n} ();\n", f"DROP TABLE t{n};\n"))
    golang(database, folder, "up")
    assert 0 == run(env=MEANWHILE).code
    golang(database, folder, "down", "-all")

    refused, settled, result = run(), run("adopt", "--through", "0"), run(env=MEANWHILE)

    assert (26, 0, 0) == (refused.code, settled.code, result.code), str(settled)
    assert "which may be 0" in refused.finished["error"]["hint"]
    assert ["1_t", "2_t"] == result.finished["applied"]


def test_schema_that_the_first_file_makes_is_where_the_tool_is_found_out(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """Its table comes to lie where the role's names lead by then."""
    path = {"PGOPTIONS": "-c search_path=app,public"}
    write(folder, {**forth("1_app", "CREATE SCHEMA app;\n"), **forth("2_a", A)})
    assert 0 == (first := run(env=MEANWHILE | path)).code, str(first)
    database.script(
        "CREATE TABLE app.schema_migrations (version bigint, dirty boolean);"
        "INSERT INTO app.schema_migrations VALUES (2, false)"
    )

    assert [26, 26] == [run("check", env=path).code, run(env=path).code]


def test_late_file_that_the_tool_did_not_run_is_named_and_can_be_run(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """`adopt --through` records what is below, too: the hint says so, and how it runs then."""
    write(folder, {"1_a.sql": both(A), "3_row.sql": both(ROW)})
    first = folder.parent / "3_row.sql"
    shutil.move(folder / "3_row.sql", first)
    dbmate(database, folder, 1)
    assert 0 == run(env=MEANWHILE).code
    shutil.move(first, folder / "3_row.sql")
    dbmate(database, folder, 1)
    write(folder, {"2_late.sql": both("CREATE TABLE late ();\n")})

    refused, settled = run(), run("adopt", "--through", "3")
    forced = run("force", "2", env=MEANWHILE)

    assert [26, 0, 0] == [each.code for each in (refused, settled, forced)], str(forced)
    (warned,) = settled.event("config.warned")
    assert "That records 2 as well, which dbmate has not applied: `force`" in warned["warning"]
    assert [True] == database.query("SELECT to_regclass('late') IS NOT NULL")
    assert [7] == database.query("TABLE a")


def test_what_we_took_back_and_the_tool_applied_since_does_not_run_again(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """Nobody watched it: the database was made by an older release."""
    write(folder, {**forth("1_a", A), **forth("2_row", ROW, "DELETE FROM a;\n")})
    assert [0, 0] == [run(env=MEANWHILE).code, run("rollback", env=MEANWHILE).code]
    database.script("DROP TABLE preflight.takeovers")
    golang(database, folder, "force", "1")
    golang(database, folder, "up")

    refused, settled = run(env=MEANWHILE), run("adopt", "--through", "2")

    assert [26, 0] == [refused.code, settled.code], str(refused)
    assert 0 == run(env=MEANWHILE).code
    assert [7] == database.query("TABLE a")
