"""Folders of other tools, read as they are; and their histories, taken over and never written."""

import contextlib
import dataclasses
import hashlib
import json
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, LiteralString, NamedTuple
from urllib.parse import quote

import psycopg
import pytest

from tests import faults, migrators, program, servers, tools
from tests.conftest import CreateDatabase, Run, Start

CATALOG = """
SELECT 'column', c.relname || '.' || a.attname, format_type(a.atttypid, a.atttypmod)
 FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
 WHERE c.relnamespace = 'public'::regnamespace AND a.attnum > 0 AND c.relkind <> 'i'
  AND c.relname !~ '(schema_migrations|goose_db_version|sqlx_migrations|ledger)'
UNION ALL SELECT 'index', c.relname, pg_get_indexdef(c.oid) FROM pg_class c
 WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'i'
  AND c.relname !~ '(schema_migrations|goose_db_version|sqlx_migrations|ledger)'
UNION ALL SELECT 'function', p.proname, p.prosrc FROM pg_proc p
 WHERE p.pronamespace = 'public'::regnamespace
ORDER BY 1, 2, 3
"""
IMPATIENT = {"PREFLIGHT_WAIT_TIMEOUT_S": "0.5"}
FUNCTION = "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$ BEGIN\n RETURN 1;\nEND $$;\n"


@dataclasses.dataclass(frozen=True)
class Tool:
    """A tool, a folder of three versions in the shapes that it allows, and how it is run."""

    name: str
    files: Mapping[str, str]
    up: Callable[[servers.Database, Path, int], None]  # so many of its versions
    table: LiteralString
    idle: Callable[[servers.Database, Path], None]  # runs all there is
    columns: LiteralString = "*"

    def rows(self, database: servers.Database) -> list[Any]:
        """Return the tool's own history, without its times."""
        return database.query(f"SELECT {self.columns} FROM {self.table} ORDER BY 1")


def url(database: servers.Database) -> str:
    """Return where a database is, as tools written in Go want it."""
    env = database.env()
    user = f"{env['PGUSER']}:{quote(env['PGPASSWORD'], safe='')}"
    return f"postgres://{user}@{env['PGHOST']}:{env['PGPORT']}/{env['PGDATABASE']}?sslmode=disable"


def succeed(*command: object) -> None:
    """Run a tool."""
    result = tools.call(command)
    assert 0 == result.returncode, result.stdout + result.stderr


def golang_migrate(database: servers.Database, folder: Path, count: int) -> None:
    """Run golang-migrate for so many versions."""
    migrate = tools.go("migrate")
    result = tools.call([migrate, "-path", folder, "-database", url(database), "up", str(count)])
    assert 0 == result.returncode, result.stderr


def goose(database: servers.Database, folder: Path, count: int) -> None:
    """Run goose for so many versions."""
    for _ in range(count):
        command = [tools.go("goose"), "-dir", folder, "postgres", url(database), "up-by-one"]
        result = tools.call(command)
        assert 0 == result.returncode, result.stdout + result.stderr


def there(database: servers.Database, table: LiteralString) -> set[str]:
    """Return the versions in a tool's history."""
    (made,) = database.query("SELECT to_regclass(%s) IS NOT NULL", table)
    return set(map(str, database.query(f"SELECT version FROM {table}"))) if made else set()


@contextlib.contextmanager
def few(folder: Path, applied: set[str], count: int) -> Iterator[str]:
    """Give a folder of what is applied and so many more, for a tool that knows only all."""
    files = sorted(each for each in folder.iterdir() if each.name[:1].isdigit())
    left = [each for each in files if each.name.split("_")[0].replace("-", "") not in applied]
    with tempfile.TemporaryDirectory() as some:
        for file in set(files) - set(left[count:]):
            (Path(some) / file.name).symlink_to(file)
        yield some


def dbmate(database: servers.Database, folder: Path, count: int) -> None:
    """Run dbmate for so many versions."""
    program = tools.dbmate()
    with few(folder, there(database, "schema_migrations"), count) as some:
        options = ("--migrations-dir", some, "--no-dump-schema", "--url", url(database))
        succeed(program, *options, "migrate")


def diesel(database: servers.Database, folder: Path, count: int) -> None:
    """Run Diesel for so many versions."""
    with few(folder, there(database, "__diesel_schema_migrations"), count) as some:
        options = ("--migration-dir", some, "--database-url", url(database))
        succeed(tools.rust("diesel"), "migration", "run", *options, "--config-file", "/dev/null")


def sqlx(database: servers.Database, folder: Path, count: int) -> None:
    """Run sqlx for so many versions."""
    versions = sorted({int(each.name.split("_")[0]) for each in folder.glob("[0-9]*.sql")})
    target = (0, *versions)[len(there(database, "_sqlx_migrations")) + count]
    options = ("--source", folder, "--database-url", url(database), "--target-version", target)
    succeed(tools.rust("sqlx"), "migrate", "run", *options)


GOLANG_MIGRATE = Tool(
    "golang-migrate",
    {
        "1_init.up.sql": "BEGIN;\nCREATE TABLE a (x int);\nCREATE TABLE b (y int);\nCOMMIT;\n",
        "1_init.down.sql": "DROP TABLE a, b;\n",
        "2_index.up.sql": "-- alone, as the tool sends it\nCREATE INDEX CONCURRENTLY i ON a (x);\n",
        "2_drop_index.down.sql": "DROP INDEX CONCURRENTLY i;\n",
        "10_function.up.sql": FUNCTION,
        "10_function.down.sql": "DROP FUNCTION f();\n",
        "README.md": "nothing to run",
    },
    golang_migrate,
    "schema_migrations",
    lambda database, folder: succeed(
        tools.go("migrate"), "-path", folder, "-database", url(database), "up"
    ),
)
GOOSE = Tool(
    "goose",
    {
        "00001_init.sql": "-- +goose Up\nCREATE TABLE a (x int);\nCREATE TABLE b (y int);\n\n"
        "-- +goose Down\nDROP TABLE a, b;\n",
        "00002_index.sql": "-- +goose NO TRANSACTION\n-- +goose Up\n"
        "CREATE INDEX CONCURRENTLY i ON a (x);\n-- +goose Down\nDROP INDEX CONCURRENTLY i;\n",
        "00003_function.sql": "-- a word before\n-- +goose Up\n-- +goose StatementBegin\n"
        + FUNCTION
        + "-- +goose StatementEnd\n\n-- +goose Down\nDROP FUNCTION f();\n",
    },
    goose,
    "goose_db_version",
    lambda database, folder: succeed(
        tools.go("goose"), "-dir", folder, "postgres", url(database), "up"
    ),
    "version_id, is_applied",
)
DBMATE = Tool(
    "dbmate",
    {
        "20240101000000_init.sql": "-- migrate:up\nCREATE TABLE a (x int);\n"
        "CREATE TABLE b (y int);\n\n-- migrate:down\nDROP TABLE a, b;\n",
        "20240102000000_index.sql": "-- migrate:up transaction:false\n"
        "CREATE INDEX CONCURRENTLY i ON a (x);\n\n-- migrate:down transaction:false\n"
        "DROP INDEX CONCURRENTLY i;\n",
        "20240103000000_function.sql": "-- migrate:up\n" + FUNCTION + "-- migrate:down\n"
        "DROP FUNCTION f();\n",
    },
    dbmate,
    "schema_migrations",
    lambda database, folder: dbmate(database, folder, 0),
)
SQLX = Tool(
    "sqlx",
    {
        "1_init.up.sql": "CREATE TABLE a (x int);\nCREATE TABLE b (y int);\n",
        "1_init.down.sql": "DROP TABLE a, b;\n",
        "2_index.up.sql": "-- no-transaction\nCREATE INDEX CONCURRENTLY i ON a (x);\n",
        "2_index.down.sql": "-- no-transaction\nDROP INDEX CONCURRENTLY i;\n",
        "10_function.up.sql": FUNCTION,
        "10_function.down.sql": "DROP FUNCTION f();\n",
        "notes.sql": "of no version: passed over\n",
    },
    sqlx,
    "_sqlx_migrations",
    lambda database, folder: succeed(
        *(tools.rust("sqlx"), "migrate", "run", "--source", folder, "--database-url", url(database))
    ),
)
DIESEL = Tool(
    "diesel",
    {
        "00000000000000_init/up.sql": "CREATE TABLE a (x int);\nCREATE TABLE b (y int);\n",
        "00000000000000_init/down.sql": "DROP TABLE a, b;\n",
        "2024-01-02-000000_index/up.sql": "CREATE INDEX CONCURRENTLY i ON a (x);\n",
        "2024-01-02-000000_index/down.sql": "DROP INDEX CONCURRENTLY i;\n",
        "2024-01-02-000000_index/metadata.toml": "run_in_transaction = false\n",
        "2024-01-03-000000-0001_function/up.sql": FUNCTION,
        "2024-01-03-000000-0001_function/down.sql": "DROP FUNCTION f();\n",
    },
    diesel,
    "__diesel_schema_migrations",
    lambda database, folder: diesel(database, folder, 0),
    "version",
)
TOOLS = [GOLANG_MIGRATE, GOOSE, DBMATE, SQLX, DIESEL]
every = pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)


def write(folder: Path, files: Mapping[str, str]) -> Path:
    """Write a folder of a tool, folders inside it included."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give the migrations directory."""
    return tmp_path / "migrations"


def states(result: program.Result) -> list[str]:
    """Return the states that `check` shows, in order."""
    return [each["state"] for each in result.event("migration.listed")]


@pytest.mark.parametrize("applied", [0, 2])
def test_version_of_golang_migrate_without_a_way_forward_is_one(
    applied: int, run: Run, database: servers.Database, folder: Path
) -> None:
    """To the tool it is an empty one: it is recorded, taken over, and taken back."""
    write(
        folder,
        {
            name: GOLANG_MIGRATE.files[name]
            for name in GOLANG_MIGRATE.files
            if name != "2_index.up.sql"
        },
    )
    write(folder, {"2_drop_index.down.sql": "CREATE TABLE back ();\n"})
    if applied:
        golang_migrate(database, folder, applied)

    result, back = run(), run("rollback", "--to", "1")

    assert (0, 3) == (
        result.code,
        len(result.finished["applied"]) + len(result.finished.get("adopted", [])),
    )
    assert 0 == back.code, str(back)
    assert [True] == database.query("SELECT to_regclass('public.back') IS NOT NULL")


@every
def test_folder_makes_the_catalog_that_its_tool_makes(
    tool: Tool,
    run: Run,
    database: servers.Database,
    create_database: CreateDatabase,
    folder: Path,
) -> None:
    """On an empty database, with no word said of whose folder it is; and the way back."""
    write(folder, tool.files)
    by_tool = create_database(database.server)
    tool.up(by_tool, folder, 3)

    result, again = run(), run()

    assert 0 == result.code, str(result)
    assert tool.name == result.event("files.loaded")[0]["layout"]
    assert 3 == len(result.finished["applied"])
    assert by_tool.query(CATALOG) == database.query(CATALOG)
    assert (0, []) == (again.code, again.event("lock.acquired"))
    assert 0 == (back := run("rollback", "--to", "0")).code, str(back)
    assert [] == database.query(CATALOG)
    assert (0, 3) == ((once_more := run()).code, len(once_more.finished["applied"]))


@every
@pytest.mark.parametrize("applied", [0, 2, 3])
def test_history_is_taken_over_where_it_stands(
    tool: Tool, applied: int, run: Run, database: servers.Database, folder: Path
) -> None:
    """What the tool applied is recorded, the rest runs, and the tool finds nothing changed."""
    write(folder, tool.files)
    tool.up(database, folder, 1)
    tool.up(database, folder, applied - 1) if applied > 1 else None
    if not applied:
        database.script("DROP TABLE a, b")
        database.script(f"DELETE FROM {tool.table}")
    before = tool.rows(database)

    look, result = run("check"), run()
    if applied == len(states(look)):
        tool.idle(database, folder)  # has nothing to do either, as its rows show below

    assert ["adoptable"] * applied + ["pending"] * (3 - applied) == states(look)
    assert 0 == result.code, str(result)
    assert applied == len(result.finished.get("adopted", []))
    assert 3 - applied == len(result.finished.get("applied", []))
    assert ["taken_over"] * applied + ["applied"] * (3 - applied) == database.query(
        "SELECT how FROM preflight.migrations ORDER BY version"
    )
    assert before == tool.rows(database)
    assert ["taken_over"] * applied + ["applied"] * (3 - applied) == states(run("check"))
    assert (0, []) == ((again := run()).code, again.event("lock.acquired"))


@every
def test_tool_that_goes_on_is_found_out(
    tool: Tool, run: Run, database: servers.Database, folder: Path
) -> None:
    """26 at the next start; `adopt --through` settles it once somebody has looked."""
    files = {name: text for name, text in tool.files.items() if "function" not in name}
    write(folder, files)
    tool.up(database, folder, 2)
    assert 0 == (first := run()).code, str(first)
    write(folder, tool.files)
    tool.up(database, folder, 1)

    result = run()

    assert 26 == result.code, str(result)
    assert tool.name in result.finished["error"]["message"]
    assert 26 == run("check").code
    version = run("check").event("migration.listed")[-1]["version"]
    assert 0 == (vouched := run("adopt", "--through", str(version))).code, str(vouched)
    assert 0 == run().code


def test_what_a_tool_applied_is_vouched_for_with_its_file_or_not_at_all(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """Once its file has come it would run again: 26 until then, also in a folder written anew."""
    rows = "INSERT INTO a VALUES ({});\n"
    write(folder, {"1_a.up.sql": A, "2_b.up.sql": B})
    database.script(f"{A}; {B}; CREATE TABLE schema_migrations (version bigint, dirty boolean)")
    database.script("INSERT INTO schema_migrations VALUES (2, false)")
    assert 0 == (first := run()).code, str(first)
    database.script(f"UPDATE schema_migrations SET version = 4; {rows.format(3)}{rows.format(4)}")

    vouched, refused = run("adopt", "--through", "2"), run()
    shutil.rmtree(folder)
    write(folder, {"001_a.sql": A, "002_b.sql": B})
    write(folder, {f"00{number}_row.sql": rows.format(number) for number in (3, 4)})
    early, still = run("adopt", "--through", "3"), run()
    late, settled = run("adopt", "--through", "4"), run()

    assert [0, 26] * 2 + [0, 0] == [
        each.code for each in (vouched, refused, early, still, late, settled)
    ], str(refused)
    for each in (vouched, early):
        (warned,) = each.event("config.warned")
        assert "not recorded: 4;" in warned["warning"]
    assert [3, 4] == database.query("SELECT x FROM a ORDER BY x")


def test_nothing_is_changed_beneath_a_tool_that_goes_on(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """Neither back nor again; what only reads goes on."""
    write(folder, {name: text for name, text in DBMATE.files.items() if "index" not in name})
    database.script(
        "CREATE TABLE a (x int); CREATE TABLE b (y int);"
        "CREATE TABLE schema_migrations (version varchar PRIMARY KEY);"
        "INSERT INTO schema_migrations VALUES ('20240101000000')"
    )
    assert 0 == (first := run()).code, str(first)
    database.script("INSERT INTO schema_migrations VALUES ('20240102000000')")
    before = database.query("TABLE preflight.migrations")

    changing = [run("rollback"), run("force")]

    assert [26, 26] == [each.code for each in changing], str(changing)
    assert all("dbmate was run" in each.finished["error"]["message"] for each in changing)
    assert before == database.query("TABLE preflight.migrations")
    assert 0 == run("verify").code
    assert 0 == run("wait", "--schema", "20240103000000").code


OLD_POD = """
CREATE TABLE a (x int); CREATE TABLE schema_migrations (version varchar PRIMARY KEY);
INSERT INTO schema_migrations VALUES ('1');
CREATE FUNCTION old_pod(v text) RETURNS void LANGUAGE sql AS
 'INSERT INTO public.schema_migrations VALUES (v); INSERT INTO public.a VALUES (1)'
"""  # as dbmate does in a pod that still runs


@pytest.mark.parametrize("options", ["", " transaction:false"])
def test_file_that_the_tool_applies_meanwhile_does_not_run_again(
    options: str, run: Run, database: servers.Database, folder: Path
) -> None:
    """Asked before each file: 26, and what ran before it is there."""
    row = f"-- migrate:up{options}\nINSERT INTO a VALUES (1);\n"
    pod = "-- migrate:up\nSELECT old_pod('3');\n"
    write(folder, {"1_init.sql": f"-- migrate:up\n{A}", "2_pod.sql": pod, "3_row.sql": row})
    database.script(OLD_POD)

    result = run(env={"PREFLIGHT_BACKUP": "off"})

    assert (26, ["2_pod"]) == (result.code, result.finished["applied"]), str(result)
    assert "dbmate was run" in result.finished["error"]["message"]
    assert [1] == database.query("TABLE a")
    assert [0, 26] == [run("adopt", "--through", "2").code, run().code]  # 3 is not vouched for
    assert 0 == run("adopt", "--through", "3").code
    assert (0, []) == ((again := run()).code, again.event("lock.acquired"))


@pytest.mark.parametrize("options", ["", " transaction:false"])
def test_tool_that_goes_on_during_the_backup_is_found_out(
    options: str, run: Run, database: servers.Database, folder: Path, tmp_path: Path
) -> None:
    """By the first takeover, and by every command that changes: what was planned is not done."""
    down = f"-- migrate:down{options}\nDELETE FROM a;\n"
    row = f"-- migrate:up{options}\nINSERT INTO a VALUES (1);\n"
    write(folder, {"1_init.sql": f"-- migrate:up\n{A}{down}", "2_row.sql": row})
    database.script(OLD_POD)
    snapshot = write(
        tmp_path,
        {
            "snapshot.py": "import json, psycopg\nfrom datetime import datetime, timezone\n"
            f"with psycopg.connect({url(database)!r}) as connection:\n"
            "    connection.execute(\"SELECT old_pod('2')\")\n"
            "now = datetime.now(timezone.utc).isoformat()\n"
            "print(json.dumps({'backup': 'b', 'taken_at': now, 'restore': 'r'}))\n"
        },
    )
    command = f"{sys.executable} '{snapshot}/snapshot.py'"
    env = {"PREFLIGHT_BACKUP": "command", "PREFLIGHT_BACKUP_COMMAND": command}

    for words in ([], ["force"], ["rollback"]):
        result = run(*words, env=env)

        assert (26, "history.conflict") == (result.code, result.finished["error"]["code"])
        assert "dbmate was run" in result.finished["error"]["message"], str(result)
        assert [1] == database.query("TABLE a")
        assert [(1, "taken_over", "done")] == database.query(
            "SELECT version, how, state FROM preflight.migrations"
        )
        database.script("DELETE FROM schema_migrations WHERE version = '2'; DELETE FROM a")


def test_history_that_somebody_locks_is_waited_for(
    run: Run, start: Start, database: servers.Database, folder: Path
) -> None:
    """Who is in the way is named, with the table; what has no need of it goes on."""
    write(folder, {"1_init.sql": f"-- migrate:up\n{A}"})
    database.script(OLD_POD)
    soon = {"PREFLIGHT_LOCK_TIMEOUT_MS": "100"}
    with psycopg.connect(database.conninfo()) as other:
        other.execute("LOCK TABLE schema_migrations IN ACCESS EXCLUSIVE MODE")
        busy = run("check", env={**soon, "PREFLIGHT_LOCK_RETRY_S": "0"})
        waiting = start(env=soon)
        told = waiting.wait_for_event("server.waiting")
        other.rollback()
        result = waiting.wait()
        other.execute("LOCK TABLE schema_migrations IN ACCESS EXCLUSIVE MODE")
        codes = [run("wait", "--schema", "1", env=soon).code, run("verify", env=soon).code]

    error = busy.finished["error"]
    assert (12, "database.busy") == (busy.code, error["code"]), str(busy)
    assert '"public"."schema_migrations"' in error["message"]
    assert f"pid {told['blocked_by'][0]['pid']} (" in error["message"]
    assert (0, ["1_init"]) == (result.code, result.finished["adopted"]), str(result)
    assert [0, 0] == codes


def test_file_that_writes_to_the_old_tool_s_table_is_no_run_of_that_tool(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """A dumped schema brings rows of its history; the tool itself is found out as before."""
    row = "INSERT INTO Schema_Migrations VALUES ('20240103000000')"
    gone = "DELETE FROM schema_migrations WHERE version = '20240103000000'"
    third = f"-- migrate:up{{0}}\n{row};\n-- migrate:down{{0}}\n{gone};\n"
    write(folder, {**DBMATE.files, "20240103000000_function.sql": third.format("")})
    DBMATE.up(database, folder, 2)

    first, next_start = run(), run()
    back = run("rollback", "--to", "20240102000000")
    alone = third.format(" transaction:false")
    write(folder, {"20240103000000_function.sql": alone})
    again, last = run(), run()
    database.script("INSERT INTO schema_migrations VALUES ('20240104000000')")

    assert [0, 0] == [first.code, next_start.code], str(next_start)
    assert 0 == back.code, str(back)
    assert [0, 0] == [again.code, last.code], str(last)
    assert 26 == run().code


def test_history_that_another_layout_would_take_over_is_named(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """Plain numbered files are ours under `auto`, though Supabase has run them."""
    write(folder, {"20240101000000_a.sql": A})
    _, table, row, values, _ = KEPT["supabase"]
    database.script(f"{table}; {A}")
    database.query(row, *values)

    result = run()
    hint = result.finished["error"]["hint"]

    assert (26, "history.first_contact") == (result.code, result.finished["error"]["code"])
    assert "PREFLIGHT_LAYOUT=supabase" in hint
    assert 0 == run(env={"PREFLIGHT_LAYOUT": "supabase"}).code


def test_dirty_version_is_refused(run: Run, database: servers.Database, folder: Path) -> None:
    """A version that golang-migrate left half done is for a person, whose word is of his files."""
    write(folder, GOLANG_MIGRATE.files)
    GOLANG_MIGRATE.up(database, folder, 1)
    database.script("UPDATE schema_migrations SET version = 2, dirty = true")

    result = run()

    assert (26, "takeover.refused") == (result.code, result.finished["error"]["code"])
    assert [False] == database.query("SELECT to_regclass('preflight.migrations') IS NOT NULL")
    assert "`adopt --through 1`, and it will run" in result.finished["error"]["hint"]
    assert [0, 26] == [run("adopt", "1").code, run().code]
    assert [0, 0] == [run("adopt", "--through", "1").code, (after := run()).code], str(after)
    assert ["2_index", "10_function"] == after.finished["applied"]


def test_row_that_no_tool_writes_is_no_bug_of_ours(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """Somebody wrote it by hand: 26, before a takeover and after."""
    write(folder, {"001_a.up.sql": A})
    made = "CREATE TABLE schema_migrations (version bigint, dirty boolean)"
    database.script(f"{A}; {made}; INSERT INTO schema_migrations VALUES (NULL, false)")

    before = run()
    database.script("UPDATE schema_migrations SET version = 1")
    assert 0 == run().code
    database.script("UPDATE schema_migrations SET version = NULL")
    after = run()

    assert [(26, "takeover.refused")] * 2 == [
        (each.code, each.finished["error"]["code"]) for each in (before, after)
    ]


def test_tool_that_nobody_knows_is_no_bug_of_ours(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """What is kept of a takeover may be a newer version's, or written by hand: 26."""
    write(folder, {"001_a.up.sql": A})
    database.script(f"{A}; CREATE TABLE schema_migrations (version bigint, dirty boolean)")
    database.script("INSERT INTO schema_migrations VALUES (1, false)")
    assert 0 == run().code
    database.script("UPDATE preflight.takeovers SET tool = 'another'")

    result = run()

    assert (26, "history.damaged") == (result.code, result.finished["error"]["code"])


@every
def test_applied_version_without_its_file_is_refused(
    tool: Tool, run: Run, database: servers.Database, folder: Path
) -> None:
    """An old or wrong directory must not make a history with a hole."""
    write(folder, tool.files)
    tool.up(database, folder, 2)
    for file in folder.iterdir():
        if "index" in file.name:
            shutil.rmtree(file) if file.is_dir() else file.unlink()

    result = run(env={"PREFLIGHT_LAYOUT": tool.name})

    assert (26, "takeover.refused") == (result.code, result.finished["error"]["code"])
    assert "--through" in result.finished["error"]["hint"]


@pytest.mark.parametrize(
    "tool", [each for each in TOOLS if each is not DIESEL], ids=lambda tool: tool.name
)
def test_renamed_history_table_is_found_by_its_shape(
    tool: Tool, run: Run, database: servers.Database, folder: Path
) -> None:
    """These tools let people choose its name; its columns say what it is."""
    write(folder, tool.files)
    tool.up(database, folder, 2)
    database.script(f"ALTER TABLE {tool.table} RENAME TO our_migration_ledger")

    result = run()

    assert 0 == result.code, str(result)
    assert (2, 1) == (len(result.finished["adopted"]), len(result.finished["applied"]))


def test_two_tools_in_one_database_are_told_apart(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """The folder says whose history counts; the other one is nobody's business."""
    write(folder, GOOSE.files)
    GOOSE.up(database, folder, 1)
    database.script(
        "CREATE TABLE schema_migrations (version bigint PRIMARY KEY, dirty boolean NOT NULL);"
        "INSERT INTO schema_migrations VALUES (77, false)"
    )

    result = run()

    assert (0, 1) == (result.code, len(result.finished["adopted"])), str(result)


def test_two_histories_of_one_tool_are_a_question(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """Neither is in the search path: which one counts is never guessed."""
    write(folder, GOOSE.files)
    GOOSE.up(database, folder, 1)
    database.script(
        "CREATE SCHEMA one; CREATE SCHEMA two;"
        "CREATE TABLE two.goose_db_version AS TABLE public.goose_db_version;"
        "ALTER TABLE public.goose_db_version SET SCHEMA one"
    )

    result = run()

    assert (26, "takeover.ambiguous") == (result.code, result.finished["error"]["code"])
    database.script(
        f'ALTER ROLE CURRENT_USER IN DATABASE "{database.name}" SET search_path = two, public'
    )
    assert (0, 1) == ((after := run()).code, len(after.finished["adopted"])), str(after)
    assert ["two.goose_db_version"] == database.query(
        "SELECT replace(place, '\"', '') FROM preflight.takeovers"
    )


def test_history_of_other_files_in_a_schema_apart_is_not_taken_over(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """Supabase's own service keeps one like dbmate's: no version of it has a file here."""
    write(folder, {"1_a.sql": f"-- migrate:up\n{A}", "2_b.sql": f"-- migrate:up\n{B}"})
    database.script(
        "CREATE SCHEMA auth; CREATE TABLE auth.schema_migrations (version varchar(255) PRIMARY "
        "KEY); INSERT INTO auth.schema_migrations VALUES ('20171026211738'), ('00')"
    )

    refused, result = run(), run(env={"PREFLIGHT_FIRST_CONTACT": "pending"})

    assert (26, "history.first_contact") == (refused.code, refused.finished["error"]["code"])
    assert (0, ["1_a", "2_b"]) == (result.code, result.finished["applied"]), str(result)


def test_history_of_another_app_s_schema_is_not_taken_over(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """Two apps number their files from 1: PREFLIGHT_SCHEMAS says which schemas are ours."""
    write(folder, {"1_a.up.sql": A, "2_b.up.sql": B})
    database.script(
        "CREATE SCHEMA other; CREATE TABLE other.schema_migrations (version bigint PRIMARY KEY, "
        "dirty boolean NOT NULL); INSERT INTO other.schema_migrations VALUES (1, false)"
    )

    result = run(env={"PREFLIGHT_SCHEMAS": "public"})

    assert (0, ["1_a", "2_b"]) == (result.code, result.finished["applied"]), str(result)


def test_who_vouches_is_not_asked_which_history_it_is(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """The other way out of two histories; what is above is not guessed either."""
    write(folder, GOOSE.files)
    GOOSE.up(database, folder, 3)
    database.script(
        "CREATE SCHEMA one; CREATE TABLE one.goose_db_version AS TABLE public.goose_db_version;"
        "CREATE SCHEMA two; ALTER TABLE public.goose_db_version SET SCHEMA two"
    )
    refused = run()
    assert "--through" in refused.finished["error"]["hint"]

    vouched, result = run("adopt", "--through", "3"), run()

    assert (0, 3) == (vouched.code, len(vouched.finished["adopted"])), str(vouched)
    assert (0, []) == (result.code, result.event("lock.acquired")), str(result)


def test_files_behind_what_was_vouched_for_run_as_the_hint_says(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """Not by themselves: a database that has objects may have theirs, too."""
    write(folder, DBMATE.files)
    DBMATE.up(database, folder, 1)
    database.script("CREATE SCHEMA meta; ALTER TABLE schema_migrations SET SCHEMA meta")
    hint = run().finished["error"]["hint"]
    vouched = run("adopt", "--through", "20240101000000")
    refused, result = run(), run(env={"PREFLIGHT_FIRST_CONTACT": "pending"})

    assert (0, 26, 0) == (vouched.code, refused.code, result.code), str(result)
    assert "run with PREFLIGHT_FIRST_CONTACT=pending, where the role's names lead." in hint
    assert "is called otherwise" not in refused.finished["error"]["hint"], str(refused)
    assert [*sorted(DBMATE.files)[1:]] == [f"{each}.sql" for each in result.finished["applied"]]


def test_out_of_order_history_is_taken_over_as_it_is(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """A version that the other tool passed over is late, and runs where that is allowed."""
    write(folder, DBMATE.files)
    DBMATE.up(database, folder, 3)
    database.script("DROP INDEX i; DELETE FROM schema_migrations WHERE version ~ '^20240102'")

    refused, result = run(), run(env={"PREFLIGHT_OUT_OF_ORDER": "allow"})

    assert 26 == refused.code, str(refused)
    assert (0, ["20240102000000_index"]) == (result.code, result.finished["applied"])


def test_error_is_placed_in_the_file_itself(run: Run, folder: Path) -> None:
    """Line and path are the file's own, though only a section of it runs."""
    write(
        folder,
        {"001_a.sql": "-- a\n-- migrate:up\nCREATE TABLE a ();\n\nSELECT nope;\n-- migrate:down\n"},
    )

    result = run()

    assert 30 == result.code, str(result)
    error = result.finished["error"]
    assert ("001_a.sql", 5, 8) == (error["file"], error["line"], error["column"])


def test_files_of_ours_stay_ours_when_one_has_a_mark(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """Who uses our layout notices nothing; a new file with another tool's marks is refused.

    So is one that would run again, or be recorded with them.
    """
    write(folder, {"001_a.sql": "CREATE TABLE a ();\n", "002_b.sql": "SELECT 1;\n"})
    assert 0 == run().code
    marked = "-- migrate:up\nCREATE TABLE a ();\n-- migrate:down\n"
    write(folder, {"001_a.sql": marked})  # recorded by a version that knew no marks
    database.query(
        "UPDATE preflight.migrations SET checksum = %s WHERE version = 1",
        hashlib.sha256(marked.encode()).hexdigest(),
    )
    assert 0 == run().code
    again = [run("force", "1"), run("adopt", "1")]
    assert [(25, "files.layout")] * 2 == [
        (each.code, each.finished["error"]["code"]) for each in again
    ], str(again)
    text = "-- migrate:up\nCREATE TABLE c ();\n-- migrate:down\nDROP TABLE c;\n"
    write(folder, {"003_c.sql": text})

    result = run()

    assert (25, "files.layout") == (result.code, result.finished["error"]["code"]), str(result)
    assert "PREFLIGHT_LAYOUT=dbmate" in result.finished["error"]["hint"]
    assert ["a"] == database.query("SELECT relname FROM pg_class WHERE relname IN ('a', 'c')")


def test_checksum_is_that_of_the_section(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """The way back may be corrected after the file was applied; the way forward may not."""
    write(folder, DBMATE.files)
    assert 0 == run().code
    name = "20240101000000_init.sql"
    text = DBMATE.files[name]
    up = text.partition("-- migrate:down")[0].encode()
    assert [hashlib.sha256(up).hexdigest()] == database.query(
        "SELECT checksum FROM preflight.migrations WHERE version = 20240101000000"
    )

    write(folder, {name: text.replace("DROP TABLE a, b", "DROP TABLE b, a -- a word")})
    assert 0 == run().code
    write(folder, {name: f"-- a word above\n{text}"})
    assert 0 == run().code
    write(folder, {name: text.replace("CREATE TABLE b", "-- a word inside\nCREATE TABLE b")})
    assert 26 == run().code
    write(folder, {name: text.replace("(x int)", "(x bigint)")})
    assert 26 == run().code


def test_takeover_asks_verify_files_too(run: Run, database: servers.Database, folder: Path) -> None:
    """What the other tool says and the database denies is recorded by nobody."""
    write(folder, GOOSE.files)
    GOOSE.up(database, folder, 2)
    check = "SELECT 'tables' AS suite, 'a' AS \"check\", to_regclass('a') IS NOT NULL AS ok;\n"
    write(folder, {"preflight/verify_00001_init.sql": check})
    database.script("DROP TABLE a")

    result = run()

    assert (33, "verify.not_there") == (result.code, result.finished["error"]["code"])
    database.script("CREATE TABLE a (x int)")
    assert 0 == (after := run()).code, str(after)
    assert 0 == run("verify").code
    assert json.loads(run("check", "--json").stdout)["current"]


# --- tools whose tables are made here as they made them -------------------------------------------


def checksums(text: str) -> dict[str, Any]:
    """Return what each tool would keep of a file."""
    found = zlib.crc32("".join(text.splitlines()).encode())
    return {
        "crc32": found - (1 << 32) if found >= 1 << 31 else found,
        "sha1": hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def committed(text: str, before: str = "") -> tuple[str, str]:
    """Return a file as graphile-migrate commits it, and its hash; `before` is that of the last."""
    whole = f"{before}\n{text}".strip() + "\n"
    hashed = f"sha1:{checksums(whole)['sha1']}"
    return f"--! Previous: {before or '-'}\n--! Hash: {hashed}\n\n{text}", hashed


A, B = "CREATE TABLE a (x int);\n", "CREATE TABLE b (y int);\n"


class Kept(NamedTuple):
    """A folder, the tool's table, its row for the first file, and what makes that row wrong."""

    files: Mapping[str, str]
    table: LiteralString
    row: LiteralString
    values: Sequence[object]
    spoil: LiteralString


# sqlx-cli 0.9.0 and Diesel CLI 2.3.14 wrote their tables and rows on 2026-11-28, as pg_dump said
KEPT = {
    "flyway": Kept(
        {"V1__a.sql": A, "V1.1__b.sql": B, "U1.1__b.sql": "DROP TABLE b;"},
        "CREATE TABLE flyway_schema_history (installed_rank integer PRIMARY KEY, version "
        "varchar(50), description varchar(200) NOT NULL, type varchar(20) NOT NULL, script "
        "varchar(1000) NOT NULL, checksum integer, installed_by varchar(100) NOT NULL, "
        "installed_on timestamp NOT NULL DEFAULT now(), execution_time integer NOT NULL, "
        "success boolean NOT NULL)",
        "INSERT INTO flyway_schema_history VALUES (1, '1', 'a', 'SQL', 'V1__a.sql', %s, 'me', "
        "now(), 1, true)",
        [checksums(A)["crc32"]],
        "UPDATE flyway_schema_history SET checksum = 1",
    ),
    "sqlx": Kept(
        {"1_a.sql": A, "2_b.sql": B},
        "CREATE TABLE _sqlx_migrations (version bigint PRIMARY KEY, description text NOT NULL, "
        "installed_on timestamptz NOT NULL DEFAULT now(), success boolean NOT NULL, checksum bytea "
        "NOT NULL, execution_time bigint NOT NULL)",
        "INSERT INTO _sqlx_migrations VALUES (1, 'a', '2026-11-28 03:55:03.087935+00', true, "
        r"'\xcbe28b8c771c8fbdf5f49fc3df4d0f7200d3dd1d73637600d014eaceb18975e925d8b8f57a8c1e6b021bf70"
        "81c2e8fa3', 1730855)",
        [],
        "UPDATE _sqlx_migrations SET success = false",
    ),
    "prisma": Kept(
        {"01_init/migration.sql": A, "02_more/migration.sql": B, "migration_lock.toml": ""},
        "CREATE TABLE _prisma_migrations (id varchar(36) PRIMARY KEY, checksum varchar(64) NOT "
        "NULL, finished_at timestamptz, migration_name varchar(255) NOT NULL, logs text, "
        "rolled_back_at timestamptz, started_at timestamptz NOT NULL DEFAULT now(), "
        "applied_steps_count integer NOT NULL DEFAULT 0)",
        "INSERT INTO _prisma_migrations VALUES ('i', %s, now(), '01_init', NULL, NULL, now(), 1)",
        [checksums(A)["sha256"]],
        "UPDATE _prisma_migrations SET finished_at = NULL",
    ),
    "supabase": Kept(
        {"20240101000000_a.sql": A, "20240102000000_b.sql": B},
        "CREATE SCHEMA supabase_migrations; CREATE TABLE supabase_migrations.schema_migrations "
        "(version text NOT NULL PRIMARY KEY, statements text[], name text)",
        "INSERT INTO supabase_migrations.schema_migrations VALUES ('20240101000000', NULL, 'a')",
        [],
        "INSERT INTO supabase_migrations.schema_migrations VALUES ('20230101000000')",
    ),
    "diesel": Kept(
        {"2024-01-01-000000_a/up.sql": A, "2024-01-02-000000_b/up.sql": B},
        "CREATE TABLE __diesel_schema_migrations (version varchar(50) PRIMARY KEY, run_on "
        "timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP)",
        "INSERT INTO __diesel_schema_migrations VALUES ('20240101000000', '2026-11-28 03:55:03')",
        [],
        "UPDATE __diesel_schema_migrations SET version = '20230101000000'",
    ),
    "graphile": Kept(
        {
            "committed/000001-a.sql": committed(A)[0],
            "committed/000002.sql": committed(B, committed(A)[1])[0],
        },
        "CREATE SCHEMA graphile_migrate; CREATE TABLE graphile_migrate.migrations (hash text "
        "PRIMARY KEY, previous_hash text REFERENCES graphile_migrate.migrations, filename text NOT "
        "NULL, date timestamptz NOT NULL DEFAULT now())",
        "INSERT INTO graphile_migrate.migrations VALUES (%s, NULL, '000001.sql')",
        [committed(A)[1]],
        "UPDATE graphile_migrate.migrations SET hash = 'sha1:0'",
    ),
    "sqitch": Kept(
        {
            "sqitch.plan": "%project=app\n\nz_first 2024-01-01T00:00:00Z A <a@b> # a\n"
            "b_then 2024-01-01T00:00:00Z A <a@b> # b\n",
            "deploy/z_first.sql": A,
            "deploy/b_then.sql": B,
        },
        "CREATE SCHEMA sqitch; CREATE TABLE sqitch.changes (change_id text PRIMARY KEY, "
        "script_hash text UNIQUE, change text NOT NULL, project text NOT NULL, note text NOT NULL "
        "DEFAULT '', committed_at timestamptz NOT NULL DEFAULT now(), planned_at timestamptz NOT "
        "NULL)",
        "INSERT INTO sqitch.changes VALUES ('i', %s, 'z_first', 'app', '', now(), now())",
        [checksums(A)["sha1"]],
        "UPDATE sqitch.changes SET script_hash = '0'",
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_history_of_every_tool_is_taken_over(
    name: str, run: Run, database: servers.Database, folder: Path
) -> None:
    """The first of two files is applied, says the table, and only the second one runs."""
    files, table, row, values, _ = KEPT[name]
    write(folder, files)
    database.script(f"{table}; {A}")
    database.query(row, *values)
    env = {"PREFLIGHT_LAYOUT": name}

    look, result, again = run("check", env=env), run(env=env), run(env=env)

    assert ["adoptable", "pending"] == states(look)
    assert 0 == result.code, str(result)
    assert (1, 1) == (len(result.finished["adopted"]), len(result.finished["applied"]))
    assert (0, []) == (again.code, again.event("lock.acquired"))
    assert ["taken_over", "applied"] == states(run("check", env=env))


def test_renamed_history_of_flyway_is_found_by_its_shape(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """`flyway.table` is a setting of it: the ten columns say what the table is.

    Before `up` takes it over, all who are asked say the same, also of files that run again.
    """
    files, table, row, values, _ = KEPT["flyway"]
    write(folder, files)
    database.script(f"{table}; {A}")
    database.query(row, *values)
    database.script("ALTER TABLE flyway_schema_history RENAME TO schema_version")
    view = "CREATE VIEW v AS SELECT 1;\n"
    write(folder, {"R__v.sql": view, "R__w.sql": "CREATE VIEW w AS SELECT 1;\n"})
    database.script(view)
    database.query(
        "INSERT INTO schema_version VALUES (2, NULL, 'v', 'SQL', 'R__v.sql', %s, 'me', now(), 1, "
        "true)",
        checksums(view)["crc32"],
    )

    refused, look, plan, result = run("adopt"), run("check"), run("plan", "--json"), run()

    assert "A history of flyway is here: `up` takes it over." in refused.finished["error"]["hint"]
    assert ["adoptable", "pending", "adoptable", "pending"] == states(look)
    assert "2 of 4 migrations are pending" in look.finished["error"]["message"]
    assert 0 == result.code, str(result)
    assert ["V1__a", "R__v"] == json.loads(plan.stdout)["adopts"] == result.finished["adopted"]
    assert ["V1.1__b", "R__w"] == json.loads(plan.stdout)["pending"] == result.finished["applied"]


def test_file_that_flyway_ran_again_is_recorded_with_what_a_person_vouches_for(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """It does not run once more. What ran here since does: the table tells of what was before."""
    files, table, row, values, _ = KEPT["flyway"]
    first, second, third = (f"CREATE OR REPLACE VIEW v AS SELECT {n} AS x;\n" for n in (1, 2, 3))
    ours = first.replace("v", "w")
    write(folder, {"V1__a.sql": files["V1__a.sql"], "R__of_v.sql": first, "R__w.sql": ours})
    database.script(f"{table}; {A}; {first}; {ours}")
    database.query(row, *values)

    def ran(rank: int, title: str, text: str) -> None:
        database.query(
            "INSERT INTO flyway_schema_history VALUES (%s, NULL, %s, 'SQL', 'R', %s, 'me', now(), "
            "1, true)",
            rank, title, checksums(text)["crc32"],
        )  # fmt: skip

    ran(2, "of v", first)
    ran(3, "w", ours)
    assert ["V1__a", "R__of_v", "R__w"] == run().finished["adopted"]
    write(folder, {"R__w.sql": ours.replace("1", "3")})
    assert ["R__w"] == run().finished["applied"]
    write(folder, {"R__w.sql": ours})
    ran(4, "of v", second)
    early = run("adopt", "--through", "1")
    write(folder, {"R__of_v.sql": third})
    ran(5, "of v", third)

    refused, vouched, after = run(), run("adopt", "--through", "1"), run()

    warnings = [event["warning"] for event in early.event("config.warned")]
    assert ["flyway last ran R__of_v with another text than is here"] == [
        warning.partition(",")[0] for warning in warnings
    ]
    error = refused.finished["error"]
    assert (26, True) == (refused.code, error["message"].endswith("its last row is of R__of v"))
    assert "is still 1, but it says something else" in error["message"]
    assert (0, ["R__of_v"]) == (vouched.code, vouched.finished.get("adopted")), str(vouched)
    assert (0, ["R__w"]) == (after.code, after.finished.get("applied")), str(after)


@pytest.mark.parametrize("name", KEPT)
def test_history_that_does_not_fit_the_files_is_refused(
    name: str, run: Run, database: servers.Database, folder: Path
) -> None:
    """Failed, edited or without a file: 26, until a person vouches for what is there."""
    files, table, row, values, spoil = KEPT[name]
    write(folder, files)
    database.script(f"{table}; {A}")
    database.query(row, *values)
    database.script(spoil)
    env = {"PREFLIGHT_LAYOUT": name}

    result = run(env=env)

    assert (26, "takeover.refused") == (result.code, result.finished["error"]["code"])
    first = run("lint", "--json", env=env)
    assert 0 == first.code
    label = {"flyway": "1", "sqlx": "1", "prisma": "01_init", "graphile": "1", "sqitch": "z_first"}
    said = label.get(name, "20240101000000")
    assert 0 == (vouched := run("adopt", "--through", said, env=env)).code, str(vouched)
    assert (0, 1) == ((after := run(env=env)).code, len(after.finished["applied"])), str(after)


def test_applied_file_that_is_changed_to_be_read_here_is_accepted_as_its_hints_say(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """A placeholder, written out: the checksum is another one, and a person vouches for it."""
    _, table, row, _, _ = KEPT["flyway"]
    text = f"{A}COMMENT ON TABLE a IS '${{env}}';\n"
    write(folder, {"V1__a.sql": text, "V1.1__b.sql": B})
    database.script(f"{table}; {A}")
    database.query(row, checksums(text)["crc32"])

    refused = run()
    write(folder, {"V1__a.sql": text.replace("${env}", "prod")})
    edited, vouched, after = run(), run("adopt", "--through", "1"), run()

    told = [(each.code, each.finished["error"]["hint"]) for each in (refused, edited)]
    assert [(25, True), (26, True)] == [(code, "`adopt --through 1`" in it) for code, it in told]
    assert "where it had to be changed to be read here" in told[1][1]
    assert (0, 0, ["V1.1__b"]) == (vouched.code, after.code, after.finished["applied"]), str(after)


@pytest.mark.parametrize("applied", [1, 2])
def test_flyway_s_own_history_is_taken_over(
    applied: int, run: Run, database: servers.Database, tmp_path: Path
) -> None:
    """Its checksums are what we reckon; it finds nothing to do and nothing changed afterwards."""
    (flyway,) = [each for each in migrators.MIGRATORS if each.name == "flyway"]
    app, odd = tmp_path / "app", "CREATE TABLE é (x int);\r\n\r\n-- two lines"
    for number, text in enumerate((odd, B)[:applied], 1):
        flyway.write(app, number, text)
    migrators.apply(flyway, app, database)
    flyway.write(app, 2, B)
    env = {"PREFLIGHT_MIGRATIONS_DIR": str(app / "migrations")}

    result = run(env=env)

    assert 0 == result.code, str(result)
    assert (applied, 2 - applied) == (
        len(result.finished["adopted"]),
        len(result.finished.get("applied", [])),
    )
    if applied > 1:
        migrators.apply(flyway, app, database)
        assert (0, []) == ((again := run(env=env)).code, again.event("lock.acquired"))
    flyway.write(app, 1, odd.replace("int", "bigint"))
    assert 26 == run(env=env).code


@pytest.mark.parametrize("first", [(), ("B2__b.sql", "V3__c.sql")], ids=["new", "begun"])
def test_second_baseline_makes_what_flyway_makes(
    first: Sequence[str],
    run: Run,
    database: servers.Database,
    create_database: CreateDatabase,
    tmp_path: Path,
) -> None:
    """It is for new databases; whoever began with the first one goes on with the versions."""
    (flyway,) = [each for each in migrators.MIGRATORS if each.name == "flyway"]
    one = "CREATE TABLE a (x int);\n"
    three, four = "ALTER TABLE a ADD y int;\n", "CREATE TABLE b (z int);\n"
    files = {
        "B2__b.sql": one, "V3__c.sql": three, "V4__d.sql": four, "B4__d.sql": one + three + four,
    }  # fmt: skip
    app = tmp_path / "app"

    def made(database: servers.Database) -> list[Any]:
        return [row for row in database.query(CATALOG) if "flyway" not in row[1]]

    by_tool, begun = create_database(database.server), create_database(database.server)
    if first:
        write(app / "migrations", {name: files[name] for name in first})
        for each in (by_tool, begun):
            migrators.apply(flyway, app, each)
        assert 0 == run(env={"PREFLIGHT_MIGRATIONS_DIR": str(app / "migrations")}).code
    write(app / "migrations", files)
    migrators.apply(flyway, app, by_tool)

    for each in (database, begun) if first else (database,):
        result = run(env={"PREFLIGHT_MIGRATIONS_DIR": str(app / "migrations"), **each.env()})

        assert 0 == result.code, str(result)
        assert made(by_tool) == made(each)


def test_graphile_migrate_s_own_history_is_taken_over(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """The hash in its files is the one in its table, and it finds nothing to do afterwards."""
    program = tools.npm("graphile-migrate@1.4.1") / ".bin/graphile-migrate"
    there = url(database).partition("?")[0]
    settings = {"connectionString": there, "shadowConnectionString": f"{there}_shadow"}
    write(folder, {**KEPT["graphile"].files, "../.gmrc": json.dumps(settings), "current.sql": ""})
    (folder / "committed/000002.sql").unlink()
    config = ("--config", folder.parent / ".gmrc")
    first = tools.call(["env", "-C", folder.parent, program, "migrate", *config])
    assert 0 == first.returncode, first.stdout + first.stderr
    query = "SELECT hash, previous_hash, filename FROM graphile_migrate.migrations"
    before = database.query(query)

    result = run(env={"PREFLIGHT_LAYOUT": "graphile"})
    again = tools.call(["env", "-C", folder.parent, program, "migrate", *config])

    assert (0, 1) == (result.code, len(result.finished["adopted"])), str(result)
    assert (0, before) == (again.returncode, database.query(query)), again.stdout
    assert 1 == len(before)


SQITCH = {
    **KEPT["sqitch"].files,
    "sqitch.conf": "[core]\n\tengine = pg\n",
    "revert/b_then.sql": "DROP TABLE b;\n",
}
LATER = "c 2024-01-02T00:00:00Z A <a@b> # c\n"
# a change that is worked over keeps its old scripts under the name of the tag between
REWORKED = {
    "sqitch.plan": SQITCH["sqitch.plan"] + "@v1 2024-01-03T00:00:00Z A <a@b> # one\n"
    "b_then [b_then@v1] 2024-01-04T00:00:00Z A <a@b> # again\n",
    "deploy/b_then@v1.sql": B,
    "deploy/b_then.sql": "ALTER TABLE b ADD z int;\n",
}


def sqitch(database: servers.Database, folder: Path, *words: str) -> str:
    """Deploy with sqitch itself; returns what it says."""
    there = database.env()
    target = f"db:pg://{there['PGHOST']}:{there['PGPORT']}/{database.name}"
    environment = {**there, "PATH": program.path(), "SQITCH_FULLNAME": "A", "SQITCH_EMAIL": "a@b"}
    command = (tools.found("sqitch"), "deploy", "--target", target, *words)
    result = tools.call(command, environment, cwd=folder)
    assert 0 == result.returncode, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize("applied", ["z_first", "b_then"])
def test_sqitch_s_own_history_is_taken_over(
    applied: str,
    run: Run,
    database: servers.Database,
    create_database: CreateDatabase,
    folder: Path,
) -> None:
    """Its hashes are what we reckon, it has nothing to do afterwards; and when it goes on: 26."""
    write(folder, SQITCH)
    sqitch(database, folder, "--to", applied)
    by_tool = create_database(database.server)
    sqitch(by_tool, folder)
    query = "SELECT change_id, script_hash, change, project FROM sqitch.changes ORDER BY 3"
    before = database.query(query)

    result = run()

    assert 0 == result.code, str(result)
    assert len(before) == len(result.finished["adopted"])
    assert (by_tool.query(CATALOG), before) == (database.query(CATALOG), database.query(query))
    assert (0, []) == ((again := run()).code, again.event("lock.acquired"))
    if applied == "b_then":
        assert "up-to-date" in sqitch(database, folder)
        write(folder, {"sqitch.plan": SQITCH["sqitch.plan"] + LATER, "deploy/c.sql": "SELECT 1;\n"})
        sqitch(database, folder)
        assert (26, True) == ((on := run()).code, "sqitch was run" in str(on))


def test_change_of_sqitch_that_is_worked_over_runs_its_new_script_alone(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """Its old script has another file's name now, and is what it was; nothing says 26."""
    write(folder, SQITCH)
    sqitch(database, folder)
    assert 0 == run().code
    write(folder, REWORKED)

    result, again = run(), run()

    assert (0, ["b_then:2"]) == (result.code, result.finished.get("applied")), str(result)
    assert (0, []) == (again.code, again.event("lock.acquired"))
    assert ["z_first", "b_then", "b_then:2"] == database.query(
        "SELECT label FROM preflight.migrations ORDER BY version"
    )


def test_reworked_changes_of_sqitch_are_taken_over(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """Two rows of one name are two changes, in the order in which they were deployed."""
    write(folder, {**SQITCH, **REWORKED})
    sqitch(database, folder)

    result = run()

    assert 0 == result.code, str(result)
    assert ["z_first", "b_then", "b_then:2"] == result.finished["adopted"]


@pytest.mark.parametrize("name", ["goose", "dbmate", "flyway", "sqitch"])
def test_converted_folder_takes_the_place_of_the_old_one(
    name: str, run: Run, database: servers.Database, folder: Path, tmp_path: Path
) -> None:
    """26 says that the files were renamed, `adopt --through` accepts them: nothing runs again."""
    flyway = {**KEPT["flyway"].files, "V2__nothing.sql": ";"}
    theirs = {"goose": GOOSE.files, "dbmate": DBMATE.files, "flyway": flyway}
    write(folder, theirs[name] if name in theirs else KEPT[name].files)
    if name == "sqitch":
        _, table, row, values, _ = KEPT[name]
        database.script(f"{table}; {A}")
        database.query(row, *values)
    assert 0 == (first := run()).code, str(first)
    target = str(tmp_path / "ours")
    assert 0 == run("convert", str(folder), target).code
    env = {"PREFLIGHT_MIGRATIONS_DIR": target}

    refused = run(env=env)
    newest = str(database.query("SELECT max(version) FROM preflight.migrations")[0])
    adopted, again = run("adopt", "--through", newest, env=env), run(env=env)

    assert (26, True) == (refused.code, "--through" in str(refused) or "adopt" in str(refused))
    assert 0 == adopted.code, str(adopted)
    assert (0, []) == (again.code, again.event("lock.acquired"))
    assert 0 == run("wait", "--schema", newest, env={**env, **IMPATIENT}).code
    assert json.loads(run("check", "--json", env=env).stdout)["current"]
    assert (
        len(adopted.finished["adopted"])
        == database.query("SELECT count(*) FROM preflight.migrations")[0]
    )


def test_other_file_under_the_number_is_not_adopted(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """One with other statements is another migration, whoever vouches for it."""
    write(folder, GOOSE.files)
    assert 0 == run().code
    (folder / "00001_init.sql").unlink()
    write(folder, {"00001_start.sql": "-- +goose Up\nCREATE TABLE c ();\n"})

    result = run("adopt", "--through", "3")

    assert (26, "history.conflict") == (result.code, result.finished["error"]["code"])
    assert ["00001_init"] == database.query(
        "SELECT name FROM preflight.migrations WHERE version = 1"
    )


def test_text_versions_work_in_every_command(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """`1.1` is what people write; its number is what it was given when it was recorded."""
    write(folder, {"V1__a.sql": A, "U1__a.sql": "DROP TABLE a;", **KEPT["flyway"].files})
    check = "SELECT 'b' AS suite, 'b' AS \"check\", to_regclass('b') IS NOT NULL AS ok;\n"
    write(folder, {"preflight/verify_V1.1__b.sql": check})
    assert 0 == (first := run()).code, str(first)
    assert [("1", 1000), ("1.1", 2000)] == database.query(
        "SELECT label, version FROM preflight.migrations ORDER BY version"
    )
    waited = {each: run("wait", "--schema", each, env=IMPATIENT).code for each in ("1_1", "2000")}
    assert {"1_1": 0, "2000": 3} == waited  # that is the number of 1.1, and may be a later text
    assert (0, 1) == ((checked := run("verify", "1.1")).code, len(checked.event("check.passed")))
    assert 20 == run("verify", "1.2").code
    assert 0 == (back := run("rollback", "--to", "1")).code, str(back)
    assert ["V1.1__b"] == back.finished["rolled_back"]
    write(folder, {"V1.0.5__between.sql": "CREATE TABLE IF NOT EXISTS c ();"})
    assert 0 == (on := run()).code, str(on)
    assert ["V1.0.5__between", "V1.1__b"] == on.finished["applied"]
    assert 0 == (forced := run("force", "1.0.5")).code, str(forced)
    assert ["V1.0.5__between"] == forced.finished["applied"]
    document = json.loads(run("check", "--json").stdout)
    assert ["1", "1.0.5", "1.1"] == [each["label"] for each in document["migrations"]]


def test_repeatable_file_whose_commit_answer_is_lost_is_read_back(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """It came through: nothing failed, and the run goes on with the next."""
    write(folder, {"V1__a.sql": A, "R__one.sql": "CREATE VIEW one AS SELECT 1;\n"})
    write(folder, {"R__two.sql": "CREATE VIEW two AS SELECT 2;\n"})
    with faults.through(database.server, faults.LostCommit(3)) as proxy:
        result = run(env=proxy.env() | {"PREFLIGHT_BACKUP": "off"})

    assert (0, 3) == (result.code, len(result.event("migration.applied"))), str(result)
    assert [] == result.event("migration.failed")
    assert [None, True, None] == [
        each.get("read_back") for each in result.event("migration.applied")
    ]
    assert [3] == database.query("SELECT count(*)::int FROM preflight.journal")


def test_migration_that_does_nothing_is_taken_back_with_the_others(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """An empty file is nothing to do, forward and back, also for an image that has none of it."""
    one = {"1_a.up.sql": A, "1_a.down.sql": "DROP TABLE a;"}
    empty = {"2_nothing.up.sql": "", "2_nothing.down.sql": ""}
    last = {"3_b.up.sql": "CREATE TABLE b ();", "3_b.down.sql": "DROP TABLE b;"}
    write(folder, one | empty | last)
    assert 0 == (done := run()).code, str(done)
    for name in empty | last:
        (folder / name).unlink()

    back = run("rollback", "--to", "1")

    assert (0, ["3_b", "2_nothing"]) == (back.code, back.finished.get("rolled_back")), str(back)
    assert [1] == database.query("SELECT version FROM preflight.migrations")


def test_repeatable_file_runs_when_its_text_changes(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """After the versions, once for each text; a rehearsal tries it, too."""
    view = "CREATE OR REPLACE VIEW v AS SELECT x FROM a;\n"
    write(folder, {"V1__a.sql": A, "R__view.sql": view})
    env = {"PREFLIGHT_REHEARSE": "always"}

    first, again = run(env=env), run(env=env)
    assert 0 == first.code, str(first)
    assert ["V1__a", "R__view"] == first.finished["applied"]
    assert (0, []) == (again.code, again.event("lock.acquired"))

    write(folder, {"R__view.sql": view.replace("SELECT x", "SELECT x, 1 AS one")})
    assert (3, ["applied", "pending"]) == ((look := run("check")).code, states(look))
    changed = run(env=env)
    assert (0, ["R__view"]) == (changed.code, changed.finished["applied"]), str(changed)
    assert ["applied", "applied"] == states(run("check"))
    write(folder, {"R__view.sql": view.replace("SELECT x", "SELECT x, 1 AS one, 2 AS two")})
    people = run(env={"PREFLIGHT_LOG": "console"})
    assert (0, True) == (people.code, "go back" in people.stdout), str(people)
    assert ["x", "one", "two"] == database.query(
        "SELECT attname::text FROM pg_attribute WHERE attrelid = 'v'::regclass AND attnum > 0"
    )


def test_default_privileges_do_not_open_the_texts_of_repeatable_files(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """Whatever a role's new tables are given away to: everybody reads name and checksum alone.

    A folder may hold nothing but such files.
    """
    database.script("ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC")
    write(folder, {"R__view.sql": "CREATE OR REPLACE VIEW v AS SELECT 1 AS x;\n"})

    assert ["R__view"] == run().finished["applied"]
    assert (0, ["applied"]) == ((look := run("check")).code, states(look))
    assert 0 == run("verify").code

    of_all, of_columns = database.query(
        """SELECT (SELECT count(*) FROM aclexplode(c.relacl) a WHERE a.grantee <> c.relowner),
 (SELECT array_agg(t.attname::text || ' ' || a.privilege_type ORDER BY t.attname)
  FROM pg_attribute t, aclexplode(t.attacl) a WHERE t.attrelid = c.oid)
 FROM pg_class c WHERE c.oid = 'preflight.repeatables'::regclass"""
    )[0]
    assert (0, ["checksum SELECT", "name SELECT"]) == (of_all, of_columns)


def test_history_that_a_stranger_could_have_made_is_not_believed(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """A view runs its maker's code, and says what he likes."""
    write(folder, GOOSE.files)
    database.script(
        "CREATE TABLE t (); CREATE VIEW goose_db_version AS SELECT 1 AS id, 1::bigint AS "
        "version_id, true AS is_applied, now() AS tstamp"
    )

    result = run()

    assert (26, "takeover.not_believed") == (result.code, result.finished["error"]["code"])
    assert "GRANT" not in result.finished["error"]["hint"]


def test_who_vouches_is_not_asked_again_about_a_history_that_is_not_believed(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """The way out that is named is one; what nobody vouched for is still not guessed."""
    up = "-- +goose Up\n"
    write(folder, {"00001_a.sql": up + A, "00002_b.sql": f"{up}CREATE TABLE b ();\n"})
    database.script(
        f"{A}; CREATE VIEW goose_db_version AS SELECT 1 AS id, 1::bigint AS version_id, "
        "true AS is_applied, now() AS tstamp"
    )
    assert 26 == run().code

    assert 0 == run("adopt", "--through", "1").code

    refused = run()
    assert (26, "history.first_contact") == (refused.code, refused.finished["error"]["code"])
    applied = run(env={"PREFLIGHT_FIRST_CONTACT": "pending"})
    assert (0, ["00002_b"]) == (applied.code, applied.finished["applied"]), str(applied)
    assert 0 == run().code


def test_many_files_on_a_database_without_rows_are_not_rehearsed(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """It says so; `always` is always, and one row is enough to rehearse."""
    write(folder, {f"{number:03d}_x.sql": "SELECT 1;\n" for number in range(1, 12)})
    auto = {"PREFLIGHT_REHEARSE": "auto"}

    empty = run(env=auto)
    assert (0, 11) == (empty.code, len(empty.finished["applied"])), str(empty)
    assert ["no row" in each["reason"] for each in empty.event("rehearsal.skipped")] == [True]

    database.script("CREATE TABLE a (x int); DROP SCHEMA preflight CASCADE")
    pending = {"PREFLIGHT_FIRST_CONTACT": "pending"}
    always = run(env={"PREFLIGHT_REHEARSE": "always", **pending})
    assert (0, 1) == (always.code, len(always.event("rehearsal.passed"))), str(always)

    database.script("INSERT INTO a VALUES (1); DROP SCHEMA preflight CASCADE")
    full = run(env={**auto, **pending})
    assert (0, 1) == (full.code, len(full.event("rehearsal.passed"))), str(full)
