"""Run a recorded file again, or record one without running it."""

import re

import pytest

from tests import faults, servers
from tests.conftest import CreateDatabase, Run, WriteMigrations

VERIFY = "SELECT 's' AS suite, '{0} is there' AS \"check\", to_regclass('{0}') IS NOT NULL AS ok;\n"
A = {
    "001_a.sql": "CREATE TABLE IF NOT EXISTS a (id int);\n",
    "001_a_verify.sql": VERIFY.format("a"),
}
B = {
    "002_b.sql": "CREATE TABLE IF NOT EXISTS b (id int);\n",
    "002_b_verify.sql": VERIFY.format("b"),
}
MARK = "-- preflight: no-transaction\n"
ROWS = "SELECT version, how FROM preflight.migrations WHERE state = 'done' ORDER BY 1"
JOURNAL = "SELECT event, version FROM preflight.journal ORDER BY id"


@pytest.fixture
def environment(environment: dict[str, str]) -> dict[str, str]:
    """Do without backups, but where a test asks for one."""
    return environment | {"PREFLIGHT_BACKUP": "off"}


# --- force ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "version"),
    [(["force"], 2), (["--force"], 2), (["force", "1"], 1), (["--force", "001"], 1)],
)
def test_force_runs_one_recorded_file_again(
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    arguments: list[str],
    version: int,
) -> None:
    """The newest that is recorded, or the one named, after a backup of its own."""
    migrations(A | B)
    run()
    migrations({"003_c.sql": "CREATE TABLE c ();"})
    database.script("DROP TABLE a, b")
    result = run(*arguments, env={"PREFLIGHT_BACKUP": "required"})

    name = {1: "a", 2: "b"}[version]
    assert 0 == result.code, result
    assert [f"00{version}_{name}"] == result.finished["applied"]
    assert 1 == len(result.event("backup.verified"))
    assert [(v, "forced" if v == version else "applied") for v in (1, 2)] == database.query(ROWS)
    assert ("forced", version) == database.query(JOURNAL)[-1]
    assert [name] == database.query("SELECT relname::text FROM pg_class WHERE relname IN ('a','b')")


def test_force_accepts_an_edit_and_the_journal_keeps_both_checksums(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Before it the run ends with 26, after it everything is current."""
    migrations(A)
    run()
    (before,) = database.query("SELECT checksum FROM preflight.migrations")
    migrations({"001_a.sql": A["001_a.sql"] + "ALTER TABLE a ADD COLUMN x int;"})
    refused, forced, current = run(), run("force"), run("check")
    (after,) = database.query("SELECT checksum FROM preflight.migrations")

    assert [26, 0, 0] == [refused.code, forced.code, current.code]
    assert before != after
    assert [("applied", before, None), ("forced", after, before)] == database.query(
        "SELECT event, checksum, checksum_before FROM preflight.journal ORDER BY id"
    )


def test_force_settles_no_other_conflict(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """What is wrong with another file stays a conflict; what was never applied is for `up`."""
    migrations(A | B)
    assert 20 == run("force").code
    assert 20 == run("force", "1").code
    run()
    migrations({"001_a.sql": "SELECT 1;", "003_c.sql": "SELECT 3;"})

    assert (26, "001_a") == (
        (other := run("force", "2")).code,
        other.finished["error"]["migration"],
    )
    assert "once no other file differs" in other.finished["error"]["hint"]
    assert 20 == run("force", "3").code
    assert 20 == run("force", "9").code
    assert [(1, "applied"), (2, "applied")] == database.query(ROWS)


def test_force_that_fails_leaves_the_row_as_it_was(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """And what the file did is rolled back."""
    migrations(A)
    run()
    row = "SELECT to_jsonb(m) FROM preflight.migrations m"
    before = database.query(row)
    migrations({"001_a.sql": "CREATE TABLE x (); SELECT 1 / 0;"})
    result = run("force")

    assert 30 == result.code
    assert before == database.query(row)
    assert [None] == database.query("SELECT to_regclass('x')")
    assert [("applied", 1), ("failed", 1)] == database.query(JOURNAL)


@pytest.mark.parametrize("command", ["force", "rollback"])
def test_file_without_transaction_whose_first_statement_fails_stays_recorded(
    run: Run, database: servers.Database, migrations: WriteMigrations, command: str
) -> None:
    """Nothing ran, so nothing is part-way: 31 once, and `up` has nothing to do."""
    migrations(
        {
            "001_a.sql": "CREATE TABLE a (x int);",
            "002_i.sql": f"{MARK}CREATE INDEX CONCURRENTLY i ON a (x); VACUUM a;",
            "002_i_rollback.sql": f"{MARK}DROP INDEX CONCURRENTLY j; DROP INDEX i;",
        }
    )
    assert 0 == run().code
    before = database.query("SELECT m::text FROM preflight.migrations m ORDER BY version")

    result = run(command)

    assert 31 == result.code, str(result)
    assert "stays recorded as it was" in result.finished["error"]["message"]
    assert [] == [each for each in result.events if "in progress" in str(each.get("notice"))]
    assert before == database.query("SELECT m::text FROM preflight.migrations m ORDER BY version")
    assert ["failed"] == database.query(
        "SELECT event FROM preflight.journal WHERE event NOT IN ('applied')"
    )
    assert 0 == run("check").code
    assert 0 == run().code


def test_force_that_did_something_before_it_failed_is_part_way(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """What ran again stays, so the file is not as it was recorded."""
    migrations(
        {
            "001_a.sql": "CREATE TABLE a (x int);",
            "002_i.sql": f"{MARK}DROP INDEX CONCURRENTLY IF EXISTS i;"
            "CREATE INDEX CONCURRENTLY i ON a (x); CREATE TABLE b (x int);",
        }
    )
    assert 0 == run().code

    result = run("force")

    assert 31 == result.code, str(result)
    assert [("failed", 2)] == database.query(
        "SELECT state, statements_done FROM preflight.migrations WHERE version = 2"
    )


def test_force_starts_a_file_without_transaction_from_its_start(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Also after a 32: what was done before is done again."""
    migrations({"001_a.sql": MARK + "CREATE TABLE a (); SELECT 1 / 0;"})
    assert 31 == run().code
    migrations({"001_a.sql": MARK + "CREATE TABLE IF NOT EXISTS a (); CREATE TABLE b ();"})
    stuck, looked, forced = run(), run("check"), run("force")

    assert [32, 32, 0] == [stuck.code, looked.code, forced.code], forced
    assert [("done", "forced", 2)] == database.query(
        "SELECT state, how, statements_done FROM preflight.migrations"
    )
    text = MARK + "CREATE TABLE IF NOT EXISTS a (); DROP TABLE b; CREATE TABLE b ();"
    migrations({"001_a.sql": text})
    assert 0 == run("force").code
    assert 0 == run("check").code


def test_forced_commit_whose_answer_is_lost_is_success(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """The history, read back, says that it came through."""
    migrations(A)
    run()
    with faults.through(database.server, faults.LostCommit(2)) as proxy:
        result = run("force", env={"PGPORT": str(proxy.port)})

    assert [(1, "forced")] == database.query(ROWS)
    assert 0 == result.code, result


def test_force_whose_outcome_is_unknown_is_not_to_run_the_file_twice(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """13 says what to look at before it is run again, and how to read that."""
    migrations(A)
    run()
    env = {"PREFLIGHT_WAIT_TIMEOUT_S": "0.5"}
    with faults.through(database.server, faults.LostAndGone(2)) as proxy:
        result = run("force", env=proxy.env() | env)

    hint = result.finished["error"]["hint"]
    query = re.search(r"SELECT .*? WHERE version = \d+", hint)
    assert query is not None, result
    ((state, run_id),) = database.query(query[0])
    assert (13, "done", result.finished["run_id"]) == (result.code, state, run_id)
    assert f"`done` by {run_id}: it came through" in hint


# --- adopt ----------------------------------------------------------------------------------------


def test_adopt_records_all_that_agree_and_runs_nothing(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """The leading files whose verify files say present; the rest stays pending."""
    migrations(A | B | {"003_c.sql": "CREATE TABLE c ();", "003_c_verify.sql": VERIFY.format("c")})
    database.script(A["001_a.sql"] + B["002_b.sql"] + "CREATE VIEW uses AS SELECT * FROM a")
    result = run("adopt")

    assert 0 == result.code, result
    assert ["001_a", "002_b"] == result.finished["adopted"]
    assert [(1, "adopted"), (2, "adopted")] == database.query(ROWS)
    assert [("adopted", 1), ("adopted", 2)] == database.query(JOURNAL)
    assert 3 == run("check").code
    assert [None] == database.query("SELECT to_regclass('c')")


def test_adopt_on_an_empty_database_records_nothing(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Nothing is there to be recorded, and it says what is pending."""
    migrations(A)
    result = run("adopt")

    assert 0 == result.code
    assert [["001_a"]] == [event["pending"] for event in result.event("plan.made")]
    assert [] == database.query(ROWS)


@pytest.mark.parametrize(
    ("verify", "arguments", "code"),
    [
        (A["001_a_verify.sql"], ["adopt", "1"], 33),
        (A["001_a_verify.sql"] + VERIFY.format("there"), ["adopt", "1"], 33),
        (A["001_a_verify.sql"] + VERIFY.format("there"), ["adopt"], 33),
        (VERIFY.format("a").replace(" AS ok", " AS ok, false AS effect"), ["adopt", "1"], 33),
        ("SELECT 1 / 0 AS ok;", ["adopt", "1"], 33),
        (None, ["adopt"], 26),
        (None, ["adopt", "9"], 20),
        (None, ["adopt", "1"], 0),
    ],
)
def test_adopt_believes_the_verify_file_only(  # noqa: PLR0913, PLR0917 - fixtures
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    verify: str | None,
    arguments: list[str],
    code: int,
) -> None:
    """Absent or partial is 33 and recorded nowhere; named, a file without one is believed."""
    migrations({"001_a.sql": A["001_a.sql"]} | ({"001_a_verify.sql": verify} if verify else {}))
    database.script("CREATE TABLE there ()")
    result = run(*arguments)

    assert code == result.code, result
    recorded = database.query("SELECT to_regclass('preflight.migrations') IS NOT NULL")[0]
    assert ([(1, "adopted")] if code == 0 else []) == (database.query(ROWS) if recorded else [])


def test_adopt_settles_an_edit_without_running_it(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """The journal keeps both checksums."""
    migrations(A)
    run()
    (before,) = database.query("SELECT checksum FROM preflight.migrations")
    migrations({"001_a.sql": "SELECT 1 / 0;", "001_a_verify.sql": VERIFY.format("more")})
    refused = run("adopt", "1")
    migrations({"001_a_verify.sql": A["001_a_verify.sql"]})
    result = run("adopt", "1")

    assert (33, "verify.not_there") == (refused.code, refused.finished["error"]["code"])
    assert "`force 1`" in refused.finished["error"]["hint"]  # `up` would say 26, and send back here

    assert 0 == result.code, result
    assert [before] == database.query(
        "SELECT checksum_before FROM preflight.journal WHERE event = 'vouched'"
    )
    assert 0 == run().code


def test_adopt_leaves_a_file_that_is_recorded_as_it_is(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """0, and says so: when it ran and its backup stay; its checks are asked all the same."""
    migrations(A)
    run(env={"PREFLIGHT_BACKUP": "required"})
    whole = "SELECT row_to_json(m)::text FROM preflight.migrations m"
    before = database.query(whole), database.query(JOURNAL)
    result = run("adopt", "1")
    after = database.query(whole), database.query(JOURNAL)
    migrations({"001_a_verify.sql": VERIFY.format("more")})

    assert (0, "ok", []) == (
        result.code,
        result.finished["outcome"],
        result.event("migration.adopted") + result.event("plan.made"),
    )
    assert before == after
    assert "001_a is recorded already" in result.event("config.warned")[0]["warning"]
    assert 33 == run("adopt", "1").code


@pytest.mark.parametrize("which", ["1", "--through 1", "1 companion"])
def test_adopt_settles_a_text_and_keeps_when_it_ran(
    run: Run, database: servers.Database, migrations: WriteMigrations, which: str
) -> None:
    """An edit, or another rollback file, is recorded; how, when, how long and the backup stay."""
    migrations(A)
    run(env={"PREFLIGHT_BACKUP": "required"})
    ran = """SELECT how, applied_at::text, duration_ms, applied_by, backup
 FROM preflight.migrations WHERE backup IS NOT NULL"""
    before = database.query(ran)
    up, *companion = which.split(" companion")
    migrations({} if companion else {"001_a.sql": A["001_a.sql"] + "-- edited\n"})
    migrations({"001_a_rollback.sql": "DROP TABLE a;"})
    result = run("adopt", *up.split())

    assert (0, ["001_a"]) == (result.code, result.finished["adopted"]), str(result)
    assert (1, before) == (len(before), database.query(ran))
    assert ["DROP TABLE a;"] == database.query("SELECT rollback_sql FROM preflight.migrations")
    assert [("applied", 1), ("vouched", 1)] == database.query(JOURNAL)
    assert 0 == run("check").code


def test_adopted_companion_that_the_encoding_cannot_hold_names_its_file(
    run: Run, create_database: CreateDatabase, server: servers.Server, migrations: WriteMigrations
) -> None:
    """The file is recorded as it is, and only what is new beside it cannot be."""
    latin = create_database(
        server, options="ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    )
    env = {"PGDATABASE": latin.name}
    migrations(A)
    assert 0 == run(env=env).code
    migrations({"001_a_verify.sql": "-- →\nSELECT 's' AS suite, 'c' AS \"check\", true AS ok;"})
    result = run("adopt", "1", env=env)

    assert (26, "migration.not_recorded", "001_a") == (
        result.code,
        result.finished["error"]["code"],
        result.finished["error"]["migration"],
    ), str(result)


def test_adopt_settles_what_stopped_part_way(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Only by name: a run of `adopt` for all does not touch it."""
    migrations(A | {"001_a.sql": MARK + "CREATE TABLE a (); SELECT 1 / 0;"})
    assert 31 == run().code
    migrations({"001_a.sql": A["001_a.sql"]})
    assert 32 == run().code
    assert 0 == run("adopt").code
    assert 32 == run().code

    assert 0 == run("adopt", "1").code
    assert [(1, "adopted")] == database.query(ROWS)
    assert 0 == run().code


# --- another file under a recorded number ---------------------------------------------------------


OTHER = {
    "002_colours.sql": "CREATE TABLE colours (id int);\n",
    "002_colours_verify.sql": VERIFY.format("colours"),
}


@pytest.mark.parametrize("command", ["up", "check", "plan", "force", "adopt", "verify", "wait"])
def test_another_migration_of_that_number_is_told_and_left_alone(
    run: Run, database: servers.Database, migrations: WriteMigrations, command: str
) -> None:
    """26 names both and does not speak of an edit: what was recorded may not be forgotten."""
    folder = migrations(A | B)
    run()
    for name in B:
        (folder / name).unlink()
    migrations(OTHER)
    more = {"force": ["2"], "adopt": ["2"], "verify": ["2"], "wait": ["--schema"]}

    result = run(command, *more.get(command, []))

    error = result.finished["error"]
    assert (26, "history.conflict") == (result.code, error["code"]), str(result)
    assert "another migration" in error["message"]
    assert ("002_b" in error["message"], "edited" in error["message"]) == (True, False)
    assert [(1, "001_a"), (2, "002_b")] == database.query(
        "SELECT version, name FROM preflight.migrations ORDER BY 1"
    )
    if command == "check":
        (row,) = [m for m in result.event("migration.listed") if m["version"] == 2]
        assert ("other", "002_b") == (row["state"], row["recorded_as"])


@pytest.mark.parametrize("which", [[], ["3"]], ids=["all", "one"])
def test_nothing_is_adopted_from_another_migrations_folder(
    run: Run, database: servers.Database, migrations: WriteMigrations, which: list[str]
) -> None:
    """26, also for the files above: a wrong directory is mounted, or another branch."""
    folder = migrations(A | B)
    run()
    for name in B:
        (folder / name).unlink()
    database.script("CREATE TABLE c (id int)")
    migrations(
        OTHER | {"003_c.sql": "CREATE TABLE c (id int);", "003_c_verify.sql": VERIFY.format("c")}
    )

    result = run("adopt", *which)

    assert 26 == result.code, str(result)
    assert "another migration" in result.finished["error"]["message"]
    assert [1, 2] == database.query("SELECT version FROM preflight.migrations ORDER BY 1")


@pytest.mark.fault("D087")
def test_renamed_file_is_told_and_adopted_under_its_new_name(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """The text is the same: 26 says that it was renamed, and `adopt` settles it."""
    folder = migrations(A | B)
    run()
    for name in B:
        (folder / name).rename(folder / name.replace("002_b", "002_boats"))

    for command, *more in (["up"], ["check"], ["plan"], ["force", "2"], ["verify"]):
        result = run(command, *more)
        assert 26 == result.code, str(result)
        assert "002_boats was recorded as 002_b" in result.finished["error"]["message"]
    assert 0 == run("adopt", "2").code
    assert ["002_boats"] == database.query(
        "SELECT name FROM preflight.migrations WHERE version = 2"
    )
    assert 0 == run("check").code


def test_part_way_file_is_not_taken_for_another_of_its_number(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """The rest of 001_a may be edited; a file of another name is no edit, whatever its text."""
    begun = MARK + "CREATE TABLE a (id int);\nSELECT 1/0;\nSELECT 2;"
    folder = migrations({"001_a.sql": begun})
    assert 31 == run().code
    (folder / "001_a.sql").unlink()
    migrations({"001_z.sql": begun.replace("1/0", "1")})

    assert [26, 26, 26] == [run(*each).code for each in (["up"], ["force", "1"], ["adopt", "1"])]
    assert [("001_a", "failed")] == database.query("SELECT name, state FROM preflight.migrations")


def test_renamed_part_way_file_goes_on_under_its_new_name(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """To adopt it, as a renamed file that is done, would record what never ran."""
    begun = MARK + "CREATE TABLE a (id int);\nINSERT INTO b VALUES (1);"
    folder = migrations({"001_a.sql": begun})
    assert 31 == run().code
    (folder / "001_a.sql").rename(folder / "001_z.sql")
    database.script("CREATE TABLE b (id int)")

    assert ["partial"] == [each["state"] for each in run("check").event("migration.listed")]
    assert 0 == run().code
    assert [("001_z", "done")] == database.query("SELECT name, state FROM preflight.migrations")
    assert [1] == database.query("SELECT id FROM b")


@pytest.mark.parametrize("command", ["force", "rollback"])
def test_one_adopted_file_neither_runs_again_nor_goes_while_others_are_to_be_recorded(
    run: Run, database: servers.Database, migrations: WriteMigrations, command: str
) -> None:
    """It would end first contact, and `up` would run what is there already."""
    migrations(A | B | {"001_a_rollback.sql": "DROP TABLE a;"})
    database.script("CREATE TABLE a (id int); CREATE TABLE b (id int)")
    assert 0 == run("adopt", "1").code

    result = run(command)
    assert (26, "history.first_contact") == (result.code, result.finished["error"]["code"])
    assert ["002_b"] == run("up").finished["adopted"]
    assert 0 == run("force").code


@pytest.mark.parametrize("rehearse", ["off", "always"])
def test_force_that_meets_its_own_objects_is_not_told_to_adopt(
    run: Run, migrations: WriteMigrations, rehearse: str
) -> None:
    """It is recorded as it is, so that would do nothing; an edited file may be adopted."""
    migrations({"001_a.sql": "CREATE TABLE a ();", "001_a_rollback.sql": "DROP TABLE a;"})
    assert 0 == run().code
    env = {"PREFLIGHT_REHEARSE": rehearse, "PREFLIGHT_BACKUP": "required"}

    same = run("force", env=env).finished["error"]
    migrations({"001_a.sql": "CREATE TABLE a (id int);"})
    edited = run("force", env=env).finished["error"]

    assert ["42P07"] * 2 == [same["sqlstate"], edited["sqlstate"]]
    assert "`adopt" not in same["hint"], same
    assert "take it back first (`rollback`), or write it so that it can run twice" in same["hint"]
    assert "`adopt 1`" in edited["hint"], edited


# --- a file that got another number ---------------------------------------------------------------

X = "CREATE TABLE x (id int);\nINSERT INTO x VALUES (42);\n"
BACK = "DROP TABLE x;\n"


def anew(migrations: WriteMigrations, files: dict[str, str]) -> None:
    """Leave these files alone in the migrations directory."""
    for each in migrations.directory.iterdir():
        each.unlink()
    migrations(files)


@pytest.mark.parametrize("words", [["adopt", "5"], ["adopt"], ["adopt", "--through", "5"]])
@pytest.mark.parametrize("now", ["005_x", "003_x"], ids=["above", "below"])
def test_renumbered_file_is_recorded_once(
    now: str, words: list[str], run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Its row moves: 26 names `adopt`, nothing runs twice, and a rollback takes it back once."""
    x = {"{}.sql": X, "{}_rollback.sql": BACK, "{}_verify.sql": VERIFY.format("x")}
    migrations(A | B | {name.format("004_x"): text for name, text in x.items()})
    assert 0 == run().code
    anew(migrations, A | B | {name.format(now): text for name, text in x.items()})
    version = int(now[:3])
    words = [f"{version}" if word == "5" else word for word in words]

    refused = [run(env={"PREFLIGHT_OUT_OF_ORDER": order}) for order in ("fail", "allow")]
    adopted, check, again = run(*words), run("check"), run()

    assert [26, 26] == [each.code for each in refused], str(refused[1])
    said = refused[1].finished["error"]["hint"]
    assert f"`adopt {version}`" in said
    assert [0, 0, 0] == [each.code for each in (adopted, check, again)], str(adopted)
    assert [(1, "applied"), (2, "applied"), (version, "applied")] == database.query(ROWS)
    assert [42] == database.query("TABLE x")
    told = database.query("SELECT error FROM preflight.journal WHERE version = %s", version)
    assert ["it was recorded as 004_x"] == told
    assert (0, [now]) == ((back := run("rollback")).code, back.finished["rolled_back"])
    assert 3 == run("check").code


def test_number_that_two_branches_took_is_settled_by_the_one_that_moved(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """The database has this branch's 004; on merge it is 005, and 004 is somebody else's."""
    migrations(A | B | {"004_x.sql": X})
    assert 0 == run().code
    merged = {"004_y.sql": "CREATE TABLE y ();\n", "005_x.sql": X}
    anew(migrations, A | B | merged)

    refused, through = run(), run("adopt", "--through", "5")
    adopted, late = run("adopt", "5"), run()
    done = run(env={"PREFLIGHT_OUT_OF_ORDER": "allow"})

    assert [26, 26, 0, 26, 0] == [each.code for each in (refused, through, adopted, late, done)], (
        str(adopted)
    )
    assert "`adopt 5`" in str(refused.finished["error"])
    assert ["004_y"] == done.finished["applied"]
    assert [42] == database.query("TABLE x")


def test_file_that_is_missing_still_is_named_by_adopt(
    run: Run, migrations: WriteMigrations
) -> None:
    """What it settles is not that; and the way back is said, whichever version it is."""
    c = {"003_c.sql": "CREATE TABLE c ();\n", "003_c_rollback.sql": "DROP TABLE c;\n"}
    migrations(A | B | c)
    assert 0 == run().code
    anew(migrations, A | {"002_b.sql": B["002_b.sql"], "004_d.sql": "CREATE TABLE d ();\n"})

    refused, adopted = run(), run("adopt", "2")
    back, after = run("rollback"), run()

    assert [26, 0, 0, 0] == [each.code for each in (refused, adopted, back, after)], str(refused)
    assert "`rollback` takes it back" in refused.finished["error"]["hint"]
    warned = [each["warning"] for each in adopted.event("config.warned")]
    assert any("003_c is recorded in the database but its file is" in each for each in warned)
