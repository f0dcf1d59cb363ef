"""The same files over many databases or schemas: all are looked at first, then waves."""

import dataclasses
import json
import os
import re
import resource
import shlex
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from structlog.testing import capture_logs

from preflight.base import stop
from preflight.base.config import Config
from preflight.commands.fleet import apart, story, targets
from preflight.commands.fleet.targets import Target
from preflight.server import sessions
from tests import faults, servers
from tests.conftest import CreateDatabase, Run, Start, StartServer, WriteMigrations
from tests.program import Result

ONE = {"001_one.sql": "CREATE TABLE one (id int);"}
UNIQUE = {"002_once.sql": "CREATE UNIQUE INDEX once ON one (id);"}
Listed = Callable[[list[dict[str, str]]], str]


@pytest.fixture
def listed(tmp_path: Path) -> Listed:
    """Give what writes a file of targets and returns its path."""

    def write(targets: list[dict[str, str]]) -> str:
        path = tmp_path / "targets.jsonl"
        path.write_text("".join(json.dumps(each) + "\n" for each in targets))
        return str(path)

    return write


def tenants(database: servers.Database, number: int) -> list[dict[str, str]]:
    """Make so many schemas of a database; return the targets, a history each."""
    names = [f"tenant_{n}" for n in range(1, number + 1)]
    database.script(";".join(f"CREATE SCHEMA {name}" for name in names))
    return [
        {"name": name, "schema": f"preflight_{name}", "search_path": f"{name}, public"}
        for name in names
    ]


def ended(result: Result) -> dict[str, tuple[str, int]]:
    """Return how each target ended, as `run.finished` has it."""
    return {
        name: (each["outcome"], each["exit_code"])
        for name, each in result.finished["targets"].items()
    }


def test_schemas_of_one_database_share_a_backup_and_a_copy(
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    listed: Listed,
    backup_dir: Path,
) -> None:
    """Each has its own tables and history; the next run has nothing to do and backs nothing up."""
    path = listed(tenants(database, 12))
    migrations(ONE)
    env = {"PREFLIGHT_REHEARSE": "always"}
    result = run("up", "--targets", path, "--waves", "1,4", env=env)

    assert 0 == result.code, result
    assert {("applied", 0)} == set(ended(result).values())
    assert "applied" == result.finished["outcome"]
    assert (1, 1) == (len(result.event("backup.verified")), len(result.event("rehearsal.passed")))
    assert [1, 2, 3, 4] == [each["number"] for each in result.event("wave.started")]
    assert [1, 4, 4, 3] == [len(each["targets"]) for each in result.event("wave.started")]
    for number in (1, 12):
        assert [f"tenant_{number}.one"] == database.query(
            "SELECT to_regclass(%s)::text", f"tenant_{number}.one"
        )
    saved = next(backup_dir.iterdir()).name
    assert [saved] == database.query("SELECT backup FROM preflight_tenant_12.migrations")
    assert [None] == database.query("SELECT to_regclass('public.one')")

    again = run("up", "--targets", path, env=env)
    assert {("ok", 0)} == set(ended(again).values())
    assert [] == again.event("backup.started")


def test_target_whose_files_are_there_is_told_as_adopted(
    run: Run, database: servers.Database, migrations: WriteMigrations, listed: Listed
) -> None:
    """Not as one where nothing was due; so is the whole run where no file ran."""
    path = listed(tenants(database, 2))
    database.script("CREATE TABLE tenant_1.one (id int)")
    there = "SELECT 's' AS suite, 'c' AS \"check\", to_regclass('one') IS NOT NULL AS ok;"
    migrations({**ONE, "001_one_verify.sql": there})
    result = run("up", "--targets", path)
    database.script("DROP SCHEMA preflight_tenant_1 CASCADE")
    again = run("up", "--targets", path, env={"PREFLIGHT_LOG": "console"})

    assert {"tenant_1": ("adopted", 0), "tenant_2": ("applied", 0)} == ended(result)
    told = {each["target"]: each for each in result.event("target.finished")}
    assert [[], ["001_one"]] == [told["tenant_1"][key] for key in ("applied", "adopted")]
    assert ["001_one"] == result.finished["targets"]["tenant_1"]["adopted"]
    assert "applied" == result.finished["outcome"]
    assert "✓ adopted" in again.stdout
    assert "001_one adopted" in again.stdout


def test_row_in_one_of_many_stops_all_before_the_first_change(
    run: Run, database: servers.Database, migrations: WriteMigrations, listed: Listed
) -> None:
    """A duplicate in the 7th of 12 is found on the copy: 27 names it, nobody was changed."""
    path = listed(tenants(database, 12))
    migrations(ONE)
    assert 0 == run("up", "--targets", path).code
    database.script("INSERT INTO tenant_7.one VALUES (1), (1)")
    migrations(UNIQUE)
    result = run("up", "--targets", path, env={"PREFLIGHT_REHEARSE": "always"})

    assert (27, "rehearsal.failed") == (result.code, result.finished["error"]["code"]), result
    assert "tenant_7: " in result.finished["error"]["message"]
    found = ended(result)
    assert ("failed", 27) == found.pop("tenant_7")
    assert {("pending", 3)} == set(found.values())
    assert [None] == database.query("SELECT to_regclass('tenant_1.once')")


def test_fleet_stops_at_the_first_failure_and_goes_on_from_there(
    run: Run, database: servers.Database, migrations: WriteMigrations, listed: Listed
) -> None:
    """What nobody tried fails in its wave: those after it stay as they are until it is mended."""
    path = listed(tenants(database, 12))
    migrations(ONE)
    assert 0 == run("up", "--targets", path).code
    database.script("INSERT INTO tenant_7.one VALUES (1), (1)")
    migrations(UNIQUE)
    result = run("up", "--targets", path, "--waves", "1,5")

    assert 30 == result.code, result
    found = ended(result)
    assert (("failed", 30), ("pending", 3)) == (found.pop("tenant_7"), found.pop("tenant_12"))
    assert {("applied", 0)} == set(found.values())
    assert "tenant_7" == next(iter(result.finished["targets"]))
    assert [None] == database.query("SELECT to_regclass('tenant_12.once')")

    database.script("DELETE FROM tenant_7.one")
    again = run("up", "--targets", path)
    assert 0 == again.code, again
    words = [word for word, _ in ended(again).values()]
    assert (2, 10) == (words.count("applied"), words.count("ok"))
    assert 12 == sum(
        database.query(f"SELECT count(*) FROM preflight_tenant_{n}.migrations WHERE version = 2")[0]
        for n in range(1, 13)
    )


@contextmanager
def dropped_in_part(database: servers.Database) -> Iterator[None]:
    """Let a DROP DATABASE be interrupted: the server calls what is left invalid."""
    limit = f"UPDATE pg_database SET datconnlimit = {{}} WHERE datname = '{database.name}'"
    everyone = servers.Database(database.server, "postgres")
    everyone.script(limit.format(-2))
    yield
    everyone.script(limit.format(-1))


def test_each_database_has_its_own_backup(
    run: Run,
    server: servers.Server,
    create_database: CreateDatabase,
    migrations: WriteMigrations,
    backup_dir: Path,
) -> None:
    """Every database with such a name, and no template; what takes no connections is told.

    One that was restored is one like the others, and a warning says so: it may have been meant for
    a look, or a swap. What a restore left half done is none.
    """
    databases = [create_database(server, f"fleet_{name}") for name in ("a", "b", "c")]
    for name in ("e", "f"):
        create_database(server, f"fleet_{name}")
    with server.connect() as connection:
        connection.execute("COMMENT ON DATABASE fleet_b IS 'pg-preflight restore: old (7 a b c)'")
        connection.execute("COMMENT ON DATABASE fleet_f IS 'pg-preflight restore: unfinished'")
        connection.execute("ALTER DATABASE fleet_e ALLOW_CONNECTIONS false")
    with dropped_in_part(create_database(server, "fleet_d")):
        _each_database(run, databases, migrations, backup_dir)


def test_database_that_a_swap_has_put_aside_is_no_target(
    run: Run,
    server: servers.Server,
    create_database: CreateDatabase,
    migrations: WriteMigrations,
) -> None:
    """What it holds is kept as it was; whose pattern means it alone gets it."""
    for name in ("aside_1", "aside_1_before_20261129T000000Z", "aside_1_before_me"):
        create_database(server, name)
    migrations(ONE)
    result = run("check", "--each-database", "aside%", "--json")
    alone = run("check", "--each-database", "aside%\\_before%Z", "--json")

    assert ["aside_1", "aside_1_before_me"] == list(result.json()["targets"])
    (warned,) = [each["warning"] for each in result.events if each["event"] == "config.warned"]
    assert "aside_1_before_20261129T000000Z. " in warned
    assert ["aside_1_before_20261129T000000Z"] == list(alone.json()["targets"])


def _each_database(
    run: Run, databases: list[servers.Database], migrations: WriteMigrations, backup_dir: Path
) -> None:
    migrations(ONE)
    checked = run("check", "--each-database", "fleet\\__", "--json")
    assert 3 == checked.code, checked
    assert ["fleet_a", "fleet_b", "fleet_c"] == list(checked.json()["targets"])
    assert "pending" == checked.json()["targets"]["fleet_b"]["migrations"][0]["state"]

    metrics = backup_dir.with_name("fleet.prom")
    result = run("up", "--each-database", "fleet\\__", env={"PREFLIGHT_METRICS_FILE": str(metrics)})
    assert 0 == result.code, result
    assert 3 == len(list(backup_dir.iterdir()))
    proven = re.findall(r'backup_restored{database="(\w+)"', metrics.read_text())
    assert [each.name for each in databases] == proven
    assert [[1]] * 3 == [
        each.query("SELECT version FROM preflight.migrations") for each in databases
    ]
    closed, restored = [each["warning"] for each in result.event("config.warned")]
    assert "fleet_e takes no connections" in closed
    assert "`restore` has made them: fleet_b. " in restored
    table = run("check", "--each-database", "fleet\\__", "--table")
    assert (0, 3) == (table.code, table.stdout.count("fleet_")), table
    assert 20 == run("check", "--each-database", "no such %").code
    none = run("check", "--each-database", "fleet\\_e")
    assert (20, True) == (none.code, "closed: fleet_e" in str(none.finished["error"]["message"]))


def test_proof_that_is_too_old_is_made_again(
    run: Run, database: servers.Database, migrations: WriteMigrations, listed: Listed
) -> None:
    """At its turn a target whose backup is older than it may be is backed up and proven anew."""
    path = listed(tenants(database, 2))
    migrations(ONE)
    env = {"PREFLIGHT_TARGET_MAX_AGE_MIN": "0", "PREFLIGHT_REHEARSE": "auto"}
    result = run("up", "--targets", path, env=env)

    assert 0 == result.code, result
    whose = [each.get("schemas") for each in result.event("backup.verified")]
    assert [None, ["preflight_tenant_1", "tenant_1"], ["preflight_tenant_2", "tenant_2"]] == whose
    (warned,) = result.event("config.warned")
    assert "PREFLIGHT_TARGET_MAX_AGE_MIN is 0" in warned["warning"]


def test_proof_of_a_file_that_names_other_schemas_is_made_of_all_again(
    run: Run, database: servers.Database, migrations: WriteMigrations, listed: Listed
) -> None:
    """A backup of the tenant alone tells nothing of it; nor where only one has anything due."""
    targets = tenants(database, 2)
    path = listed(targets)
    database.script("CREATE TABLE public.shared (id int PRIMARY KEY)")
    migrations({"001_one.sql": "CREATE TABLE one (id int REFERENCES public.shared);"})
    env = {"PREFLIGHT_REHEARSE": "always"}
    old = {"PREFLIGHT_TARGET_MAX_AGE_MIN": "0"}
    result = run("up", "--targets", path, "--waves", "2", env=env | old)
    migrations({"002_two.sql": "ALTER TABLE one ADD other int REFERENCES public.shared;"})
    last = run("up", "--targets", listed(targets[1:]), env=env)

    assert (0, 0) == (result.code, last.code), (result, last)
    verified, passed = (
        [each for run in (result, last) for each in run.event(name)]
        for name in ("backup.verified", "rehearsal.passed")
    )
    assert [None] * 3 == [each.get("schemas") for each in verified]
    assert 3 == len(passed)


def test_target_has_its_own_address_and_role(  # noqa: PLR0913, PLR0917 -- what it needs
    run: Run,
    database: servers.Database,
    create_database: CreateDatabase,
    migrations: WriteMigrations,
    listed: Listed,
    tmp_path: Path,
) -> None:
    """A file beside the list holds its URL; what it makes belongs to its role."""
    other = create_database(database.server)
    (tmp_path / "url").write_text(
        f"postgresql://{servers.SUPERUSER}:{quote(servers.PASSWORD, safe='')}"
        f"@{servers.HOST}:{database.server.port}/{other.name}\n"
    )
    role = f"role_{database.name}"
    database.script(
        f"CREATE ROLE {role}; GRANT CREATE ON DATABASE {database.name} TO {role};"
        f"CREATE SCHEMA own AUTHORIZATION {role}; CREATE SCHEMA two"
    )
    migrations(ONE)
    far = {"name": "far", "url_file": "url"}
    near = {"name": "near", "schema": "preflight_own", "search_path": "own", "role": role}
    beside = {"name": "beside", "schema": "preflight_two", "search_path": "two"}
    path = listed([far, near, beside])
    result = run("up", "--targets", path)

    assert 0 == result.code, result
    assert 2 == len(result.event("backup.verified"))
    assert ["one"] == other.query("SELECT to_regclass('public.one')::text")
    owner = "SELECT tableowner FROM pg_tables WHERE schemaname = 'own' AND tablename = 'one'"
    assert [role] == database.query(owner)
    assert servers.PASSWORD not in result.stdout
    migrations(UNIQUE)  # the backup is of both schemas, and not made as the one's role
    again = run("up", "--targets", path)
    assert 0 == again.code, again
    database.script(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


def test_what_a_target_says_wrong_is_named_where_it_stands(
    run: Run, database: servers.Database, listed: Listed, migrations: WriteMigrations,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Its key and line, or the file of its URL: no variable says it."""
    migrations(ONE)
    place = f"{servers.HOST}:{database.server.port}"
    login = f"{servers.SUPERUSER}:{quote(servers.PASSWORD, safe='')}"
    (tmp_path / "url").write_text(f"postgresql://{login}@{place}/gone")
    (tmp_path / "stranger").write_text(f"postgresql://nobody:x@{place}/{database.name}")
    path = listed(
        [
            {"name": "a", "database": "none", "schema": "preflight_a"},
            {"name": "b", "url_file": "url", "schema": "preflight_b"},
            {"name": "c", "role": "norole", "schema": "preflight_c", "search_path": "c"},
            {"name": "d", "search_path": "nowhere", "schema": "preflight_d"},
            {"name": "e", "url_file": "stranger", "schema": "preflight_e", "search_path": "e"},
        ]
    )
    result = run("check", "--targets", path, env={"PREFLIGHT_WAIT_TIMEOUT_S": "0.3"})
    told = {each["target"]: each["error"] for each in result.event("target.finished")}
    said = {name: f"{error['message']} {error['hint']}" for name, error in told.items()}

    assert f"correct the name (`database` in {path}:1)." in said["a"]
    assert f"correct the name (the URL in {tmp_path}/url)." in said["b"]
    assert f"Create the role, or correct `role` in {path}:3." in said["c"]
    assert f"`search_path` in {path}:4 names what the database does not have" in said["d"]
    assert f"Check user, password (the URL in {tmp_path}/stranger), " in said["e"]
    assert [] == [each for each in said.values() if re.search("PG[A-DO]|POSTGRES_|DATABASE_", each)]


@contextmanager
def of_role(database: servers.Database) -> Iterator[tuple[str, dict[str, str]]]:
    """Give a role with a schema of its own in a database that is closed to others; its target."""
    role = f"r_{database.name}"
    database.script(
        f"CREATE ROLE {role}; CREATE SCHEMA own AUTHORIZATION {role};"
        f"REVOKE ALL ON DATABASE {database.name} FROM PUBLIC;"
        f"GRANT ALL ON DATABASE {database.name} TO {role}"
    )
    yield role, {"name": "own", "schema": "preflight_own", "search_path": "own", "role": role}
    database.script(
        f"ALTER DATABASE {database.name} OWNER TO {servers.SUPERUSER};"
        f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}"
    )


# on the copy alone: 1 / 0 where somebody may do what the live database does not let him
CLOSED = """DO $$ BEGIN IF current_database() LIKE 'preflight_scratch_%' THEN
 PERFORM 1 / (NOT has_database_privilege('pg_monitor', current_database(), 'CONNECT, CREATE, TEMP')
  AND (current_user = session_user
   OR NOT has_database_privilege(current_database(), 'CONNECT')))::int; END IF; END $$;"""


def test_role_of_a_tenant_may_on_a_shared_copy_what_it_may_live(
    run: Run, database: servers.Database, migrations: WriteMigrations, listed: Listed
) -> None:
    """It makes its history and temporary tables there, and nobody else is let in."""
    rights = "SELECT datacl::text FROM pg_database WHERE datname = current_database()"
    with of_role(database) as (_, own):
        before = database.query(rights)
        migrations({"001_one.sql": f"CREATE TEMP TABLE t (id int); CREATE TABLE one (); {CLOSED}"})
        path = listed([own, *tenants(database, 1)])
        result = run("up", "--targets", path, env={"PREFLIGHT_REHEARSE": "always"})

        assert 0 == result.code, result
        assert ["server"] == [each["where"] for each in result.event("rehearsal.passed")]
        assert {("applied", 0)} == set(ended(result).values())
        assert before == database.query(rights)


@pytest.mark.parametrize(
    "needs",
    ["SELECT pg_database_size(current_database());", "CREATE TABLE public.owners ();"],
)
def test_what_a_shared_copy_keeps_from_a_tenant_is_no_fault_of_its_file(
    needs: str,
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    listed: Listed,
) -> None:
    """What only the live database's owner may, or who is let in, is said, and is 27 on demand."""
    with of_role(database) as (role, own):
        database.script(f"ALTER DATABASE {database.name} OWNER TO {role}")
        migrations({"001_one.sql": f"{needs} CREATE TABLE one ();"})
        path = listed([own, *tenants(database, 1)])
        demanded = run("up", "--targets", path, env={"PREFLIGHT_REHEARSE": "always"})
        result = run("up", "--targets", listed([own]), env={"PREFLIGHT_REHEARSE": "off"})

        error = demanded.finished["error"]
        assert (27, "rehearsal.unavailable") == (demanded.code, error["code"]), demanded
        assert 0 == result.code, result


@pytest.mark.parametrize("needs", ["CREATE SCHEMA made;", "CREATE TEMP TABLE t ();"])
def test_right_that_only_a_clone_lacks_is_no_fault_of_a_tenants_file(  # noqa: PLR0913, PLR0917 -- what it needs
    needs: str,
    run: Run,
    database: servers.Database,
    create_database: CreateDatabase,
    migrations: WriteMigrations,
    listed: Listed,
) -> None:
    """CREATE DATABASE … TEMPLATE leaves grants out: nothing is tried, for a new history, too."""
    with of_role(database) as (role, own):
        migrations(ONE)
        path = listed([own])
        env = {"PREFLIGHT_REHEARSE": "off"}
        history = needs.startswith("CREATE SCHEMA") or run("up", "--targets", path, env=env).code
        clone = create_database(database.server, None, f"TEMPLATE {database.name}")
        clone.script(f"REVOKE ALL ON DATABASE {clone.name} FROM PUBLIC")
        address = url(clone, servers.SUPERUSER, servers.PASSWORD, servers.HOST).strip()
        migrations({"002_two.sql": needs})
        env = {"PREFLIGHT_REHEARSE": "auto", "PREFLIGHT_REHEARSE_CLONE_URL": address}
        result = run("up", "--targets", path, env=env)
        clone.script(f"DROP OWNED BY {role} CASCADE")

        assert 0 == result.code, result
        (skipped,) = result.event("rehearsal.skipped")
        said = "on the copy, own: this role may not" if history else "no TEMPORARY on the copy"
        assert said in skipped["reason"]


def test_role_that_a_scratch_server_lacks_is_no_fault_of_the_live_one(
    run: Run,
    database: servers.Database,
    start_server: StartServer,
    migrations: WriteMigrations,
    listed: Listed,
) -> None:
    """Nothing is rehearsed there, and it says that the role is missing."""
    url_of = url(servers.Database(start_server(), "postgres"), servers.SUPERUSER,
                 servers.PASSWORD, servers.HOST).strip()  # fmt: skip
    with of_role(database) as (_, own):
        migrations(ONE)
        env = {"PREFLIGHT_REHEARSE": "auto", "PREFLIGHT_REHEARSE_URL": url_of}
        path = listed([own, *tenants(database, 1)])
        result = run("up", "--targets", path, env=env)

        assert 0 == result.code, result
        (skipped,) = result.event("rehearsal.skipped")
        assert "does not exist" in skipped["reason"]


def test_failed_target_names_a_command_that_goes_to_it(
    run: Run, database: servers.Database, migrations: WriteMigrations, listed: Listed
) -> None:
    """What its next step says by hand works as it is typed, and touches no other history."""
    path = listed(tenants(database, 2))
    migrations(ONE)
    assert 0 == run("up", "--targets", path).code
    migrations({"001_one.sql": "CREATE TABLE one (id int); -- edited"})

    failed, checked = run("up", "--targets", path), run("check", "--targets", path, "--json")

    for each in checked.json()["targets"].values():
        assert ("edited", 26) == (each["migrations"][0]["state"], each["exit_code"])
        assert "by hand: `" in each["error"]["hint"]
    hints = {each["target"]: each["error"]["hint"] for each in failed.event("target.finished")}
    assert {"tenant_1", "tenant_2"} == hints.keys()
    for hint in hints.values():
        typed = re.search("by hand: `(.*) entrypoint.py (.*)`", hint)
        assert typed is not None, hint
        variables = dict(each.split("=", 1) for each in shlex.split(typed[1]))
        done = run(*typed[2].split(), env=variables)
        assert 0 == done.code, done
    assert 0 == run("check", "--targets", path).code
    assert [None] == database.query("SELECT to_regnamespace('preflight')")


def test_plan_is_rehearsed_as_up_rehearses(
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    listed: Listed,
    backup_dir: Path,
) -> None:
    """Schemas of one database share a copy of all of it, on which each is tried and measured.

    So one of them fails alone, and nothing is left or changed.
    """
    targets = tenants(database, 3)
    database.script(
        "CREATE TABLE public.shared (id int PRIMARY KEY);"
        "CREATE TABLE tenant_2.one ()"  # where it is in the way
    )
    migrations({"001_one.sql": "CREATE TABLE one (id int REFERENCES public.shared);"})
    env = {"PREFLIGHT_FIRST_CONTACT": "pending"}
    result = run("plan", "--rehearse", "--targets", listed(targets), "--json", env=env)
    database.script("DROP TABLE tenant_2.one")
    again = run("plan", "--rehearse", "--targets", listed(targets[:1]), "--json", env=env)

    told = result.json()["targets"]
    codes = {name: each["exit_code"] for name, each in told.items()}
    assert (27, {"tenant_1": 0, "tenant_2": 27, "tenant_3": 0}) == (result.code, codes), result
    assert "rehearsal.failed" == told["tenant_2"]["error"]["code"]
    measured = {name: each["statements"][0]["measured"] for name, each in told.items()}
    assert {"tenant_2"} == {name for name, cost in measured.items() if cost is None}
    assert ["shared"] == [each["table"] for each in measured["tenant_3"]["locks"]]
    assert 0 == again.code, again  # alone, and of the whole database all the same
    assert [] == list(backup_dir.iterdir())


def test_plan_of_many_says_what_is_due_in_each(
    run: Run, database: servers.Database, migrations: WriteMigrations, listed: Listed
) -> None:
    """How many files and which is first, what is only to be recorded, what destroys; else `ok`."""
    targets = tenants(database, 3)
    there = "SELECT 's' AS suite, 'c' AS \"check\", to_regclass('one') IS NOT NULL AS ok;"
    drop = "ALTER TABLE one DROP COLUMN id;"
    migrations({**ONE, "001_one_verify.sql": there, "002_drop.sql": drop})
    quickly = {"PREFLIGHT_BACKUP": "off", "PREFLIGHT_REHEARSE": "off"}
    assert 0 == run("up", "--targets", listed(targets[2:]), env=quickly).code
    database.script("CREATE TABLE tenant_2.one (id int)")
    env = {"PREFLIGHT_FIRST_CONTACT": "pending"}
    result = run("plan", "--targets", listed(targets), "--table", env=env)

    outcomes = {"tenant_1": "pending", "tenant_2": "pending", "tenant_3": "ok"}
    assert {name: (word, 0) for name, word in outcomes.items()} == ended(result)
    assert (0, "ok") == (result.code, result.finished["outcome"]), result
    first, second, third = result.stdout.splitlines()[-3:]
    assert "2 pending, first 001_one; 1 destructive" in first
    assert "1 pending, first 002_drop; 1 to be recorded; 1 destructive" in second
    assert "pending" not in third


WRONG: Mapping[str, tuple[str, str]] = {
    "nobody": ("", "no target"),
    "no JSON": ("tenant\n", ":1: is no JSON object"),
    "an unknown key": ('{"name": "a", "databse": "b"}', "databse"),
    "no name": ('{"database": "b"}', "no `name`"),
    "a name twice": ('{"name": "a", "database": "b"}\n{"name": "a", "database": "c"}', "called"),
    "a history twice": ('{"name": "a", "database": "b"}\n{"name": "c", "database": "b"}', "one `s"),
    "one place": (
        '{"name": "a", "schema": "x"}\n{"name": "c", "schema": "y"}', "one `search_path`",
    ),
    "one place, otherwise spelled": (
        ('{"name": "a", "schema": "x", "search_path": "p,public"}\n{"name": "c", "schema": "y", '
        '"search_path": "\\"p\\", q"}'), "one `search_path`",
    ),
    "one place, another role": (
        '{"name": "a", "schema": "x", "role": "r"}\n{"name": "c", "schema": "y"}',
        "or with none that is said",
    ),
    "a key twice": ('{"name": "a", "schema": "x", "schema": "y"}', "a key twice"),
    "nobody's path": ('{"name": "a", "search_path": "pg_temp"}', "names no schema"),
    "a reserved schema": ('{"name": "a", "schema": "public"}', "`schema`"),
    "a URL that is not there": ('{"name": "a", "url_file": "gone"}', "gone"),
    "a URL with a host that is none": ('{"name": "a", "url_file": "url"}', "no name and no addr"),
    "a URL with a certificate that is no file": (
        '{"name": "a", "url_file": "open"}', "says as sslcert what is a directory and no file"
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", WRONG)
def test_targets_that_cannot_be_meant_are_named(
    way: str, run_bare: Run, tmp_path: Path, migrations: WriteMigrations
) -> None:
    """20 before any server is asked."""
    text, said = WRONG[way]
    path = tmp_path / "targets.jsonl"
    path.write_text(text)
    (tmp_path / "url").write_text("dbname=d host=127.0.0.1:54991")
    (tmp_path / "open").write_text("dbname=d host=h sslcert=/")
    migrations(ONE)
    result = run_bare("up", "--targets", str(path))

    assert (20, "config.targets") == (result.code, result.finished["error"]["code"]), result
    assert said in result.finished["error"]["message"]


def test_waves_without_many_are_refused(run_bare: Run, migrations: WriteMigrations) -> None:
    """So is what is no number of targets."""
    migrations(ONE)
    assert 20 == run_bare("up", "--waves", "1,5").code
    assert 20 == run_bare("up", "--each-database", "x", "--waves", "0").code
    assert 20 == run_bare("up", "--each-database", "tenant\\").code


@pytest.mark.parametrize("command", [("up", "--waves", "5"), ("plan", "--rehearse")])
def test_targets_that_are_proven_side_by_side_do_not_meet(
    command: tuple[str, ...],
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    listed: Listed,
) -> None:
    """Each has a draft and a copy of its own, also where all are of one database."""
    path = listed(tenants(database, 6))
    migrations(ONE)
    env = {"PREFLIGHT_REHEARSE": "always", "PREFLIGHT_TARGET_MAX_AGE_MIN": "0"}
    result = run(*command, "--targets", path, env=env)

    assert {0} == {code for _, code in ended(result).values()}, result


def test_role_that_may_nothing_stops_all_before_the_first_change(
    run: Run, database: servers.Database, migrations: WriteMigrations, listed: Listed
) -> None:
    """Rights are looked at with all the rest, and not at a target's turn: 22 names it."""
    role = f"r_{database.name}"
    database.script(f"CREATE ROLE {role}; CREATE SCHEMA of_role AUTHORIZATION {role}")
    poor = {"name": "poor", "schema": "h", "search_path": "of_role", "role": role}
    migrations(ONE)
    result = run("up", "--targets", listed([*tenants(database, 1), poor]))
    database.script(f"DROP SCHEMA of_role; DROP ROLE {role}")

    assert (22, "target.no_right") == (result.code, result.finished["error"]["code"]), result
    assert {"poor": ("failed", 22), "tenant_1": ("pending", 3)} == ended(result)
    assert [] == result.event("backup.started")


def url(database: servers.Database, user: str, password: str, host: str, more: str = "") -> str:
    """Return the address of a database as a file of it has it."""
    port, secret = database.server.port, quote(password, safe="")
    return f"postgresql://{user}:{secret}@{host}:{port}/{database.name}{more}\n"


def test_two_addresses_of_one_database_are_refused(
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    listed: Listed,
    tmp_path: Path,
) -> None:
    """The second would be told ok while its schema stays as it is: 20, also where names differ."""
    one, two = tenants(database, 2)
    two["schema"] = one["schema"]
    migrations(ONE)
    for host, more in (("localhost.", ""), ("database.example", "?hostaddr=127.0.0.1")):
        address = url(database, servers.SUPERUSER, servers.PASSWORD, host, more)
        (tmp_path / "url").write_text(address)
        result = run("up", "--targets", listed([one, two | {"url_file": "url"}]))

        assert (20, "config.targets") == (result.code, result.finished["error"]["code"]), result
        assert "one database with one `schema`" in result.finished["error"]["message"]
    assert [] == result.event("backup.started")
    assert {("pending", 3)} == set(ended(result).values())


def test_tenants_with_users_of_their_own_are_tried_as_these(
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    listed: Listed,
    tmp_path: Path,
) -> None:
    """On the copy, too, each is in its own schema, and may what its user may."""
    users = [f"u{n}_{database.name}" for n in (1, 2)]
    for user in users:
        database.script(
            f"CREATE ROLE {user} LOGIN PASSWORD 'own'; CREATE SCHEMA AUTHORIZATION {user};"
            f"GRANT CREATE ON DATABASE {database.name} TO {user}"
        )
        (tmp_path / user).write_text(url(database, user, "own", servers.HOST))
    path = listed([
        {"name": user, "url_file": user, "schema": f"preflight_{user}", "search_path": '"$user"'}
        for user in users
    ])  # fmt: skip
    migrations({"001_one.sql": "CREATE TABLE one (id int); SELECT 1 / (current_schema() = "
                "current_user)::int;"})  # fmt: skip
    result = run("up", "--targets", path, env={"PREFLIGHT_REHEARSE_ON": "auto"})

    assert 0 == result.code, result
    assert 2 == len(result.event("backup.verified"))
    owners = "SELECT schemaname, tableowner FROM pg_tables WHERE tablename = 'one' ORDER BY 1"
    assert [(user, user) for user in users] == [tuple(row) for row in database.query(owners)]
    for user in users:
        database.script(f"DROP OWNED BY {user} CASCADE; DROP ROLE {user}")


HELD = {
    "001_one.sql": "CREATE TABLE one (id int); SELECT pg_advisory_xact_lock(77);",
    "001_one_verify.sql": "SELECT 's' AS suite, 'it is there' AS \"check\", "
    "to_regclass('one') IS NOT NULL AS ok;",
}


def test_fleets_at_once_take_turns(
    start: Start, database: servers.Database, migrations: WriteMigrations, listed: Listed
) -> None:
    """The second waits, and finds all done: it backs nothing up and lets no backup go."""
    path = listed(tenants(database, 2))
    migrations(HELD)
    with database.server.connect(database.name) as session:
        session.execute("SELECT pg_advisory_lock(77)")
        env = {"PREFLIGHT_REHEARSE": "off", "PREFLIGHT_BACKUP_KEEP": "1"}
        first = start("up", "--targets", path, env=env)
        first.wait_for_event("migration.started")
        second = start("up", "--targets", path, env=env)
        second.wait_for_event("lock.busy")
    result, other = first.wait(), second.wait()

    assert (0, 0) == (result.code, other.code), (result, other)
    assert (1, 0) == tuple(len(each.event("backup.verified")) for each in (result, other))
    assert {("ok", 0)} == set(ended(other).values())


@pytest.mark.parametrize("gone", ["what was only to be recorded", "the backup"])
def test_proof_that_holds_no_more_is_made_again(  # noqa: PLR0913, PLR0917 -- what it needs
    gone: str,
    start: Start,
    database: servers.Database,
    migrations: WriteMigrations,
    listed: Listed,
    backup_dir: Path,
) -> None:
    """While the first of two is at work, what the other was to rely on goes away."""
    path = listed(tenants(database, 2))
    migrations(HELD)
    adopted = gone.startswith("what")
    if adopted:
        database.script("CREATE TABLE tenant_2.one (id int)")
    with database.server.connect(database.name) as session:
        session.execute("SELECT pg_advisory_lock(77)")
        env = {"PREFLIGHT_REHEARSE": "off"}
        process = start("up", "--targets", path, "--waves", "1", env=env)
        process.wait_for_event("migration.started")
        if adopted:
            database.script("DROP TABLE tenant_2.one")
        else:
            shutil.rmtree(next(backup_dir.iterdir()))
    result = process.wait()

    assert 0 == result.code, result
    assert ["preflight_tenant_2", "tenant_2"] == result.event("backup.verified")[-1]["schemas"]
    (backup,) = database.query("SELECT backup FROM preflight_tenant_2.migrations")
    assert (backup_dir / backup / "manifest.json").exists()


def test_target_that_does_not_end_in_time_is_unknown_not_pending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that was at work when we had to leave is told as 13, never as untouched."""
    monkeypatch.setattr(apart, "ENDED_S", 0.0)
    monkeypatch.setattr(stop, "_left", {})
    read, write = os.pipe()
    targets = [Target(name, Config({}, {}, Path("/"))) for name in ("one", "two")]
    found: list[apart.Outcome] = []
    asked = iter([False, False])  # until the first one is begun
    pids: list[int] = []

    def work(_: Target) -> None:
        os.write(write, str(os.getpid()).encode())
        signal.pause()

    def over() -> bool:
        for answer in asked:
            return answer
        pids.append(int(os.read(read, 16)))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apart.each(work, targets, 2, found.append, over=over)
    os.kill(pids[0], signal.SIGKILL)
    os.waitpid(pids[0], 0)
    os.close(read)
    os.close(write)

    (outcome,) = found
    assert ("one", 13) == (outcome.target.name, outcome.exit_code)
    assert "target.unknown" == (outcome.error or {})["code"]


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)],
)
def test_target_is_told_the_signal_that_came(
    number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its outcome has the code of the run: Ctrl-C is none of a supervisor's."""
    for name, value in (("_left", {}), ("_requested", None), ("_raised", False)):
        monkeypatch.setattr(stop, name, value)
    read, write = os.pipe()
    found: list[apart.Outcome] = []
    asked = iter([False, False])  # until it is begun

    def work(_: Target) -> None:
        os.write(write, b"at work")
        stop.sleep(60)

    def over() -> bool:
        for answer in asked:
            return answer
        os.read(read, 16)
        monkeypatch.setattr(stop, "_requested", number)
        raise KeyboardInterrupt

    targets = [Target(name, Config({}, {}, Path("/"))) for name in ("one", "two")]
    with pytest.raises(KeyboardInterrupt):
        apart.each(work, targets, 2, found.append, over=over)
    os.close(read)
    os.close(write)

    assert [("one", "stopped", code)] == [
        (each.target.name, each.word, each.exit_code) for each in found
    ]


def test_targets_that_something_was_done_for_are_told_first() -> None:
    """A stop may leave no time to say of thousands that nobody came to them."""
    one, two, three = (Target(name, Config({}, {}, Path("/"))) for name in ("1", "2", "3"))
    with capture_logs() as events, apart.spoken([apart.Outcome(three, 143)], [one, two, three]):
        pass

    assert ["3", "1", "2"] == [each["target"] for each in events]


@pytest.fixture
def many_files_open() -> Iterator[None]:
    """Have so many files open that the next one has a number above 1024."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], 1300), limits[1]))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    yield
    for each in opened:
        os.close(each)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.usefixtures("many_files_open")
def test_wave_is_as_large_as_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """More files than select() knows are no bug of ours; where there are no more, some wait."""
    monkeypatch.setattr(stop, "_left", {})
    targets = [Target(str(number), Config({}, {}, Path("/"))) for number in range(8)]
    found: list[apart.Outcome] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    top = os.open(os.devnull, os.O_RDONLY)
    resource.setrlimit(resource.RLIMIT_NOFILE, (top + 4, hard))  # room for three
    try:
        apart.each(lambda target: target.name * 100_000, targets, 8, found.append)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(top)

    assert top > 1024
    assert [(str(n), 0, str(n) * 100_000) for n in range(8)] == sorted(
        (each.target.name, each.exit_code, each.given) for each in found
    )


SLOW = {"001_one.sql": "CREATE TABLE one (id int); SELECT pg_sleep(0.3);"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_fleet_that_was_stopped_goes_on(  # noqa: PLR0913, PLR0917 -- what it needs
    number: signal.Signals,
    run: Run,
    start: Start,
    database: servers.Database,
    migrations: WriteMigrations,
    listed: Listed,
) -> None:
    """Killed or stopped in the middle, no target is half done, and the next run does the rest."""
    path = listed(tenants(database, 4))
    migrations(SLOW)
    process = start("up", "--targets", path, "--waves", "1")
    process.wait_for_event("migration.applied")
    process.signal(number)
    result = process.wait()
    if number is signal.SIGTERM:
        assert 143 == result.code, result
        assert {"applied", "pending"} <= {word for word, _ in ended(result).values()}
        said = result.finished["error"]["message"]
        assert "stands in its target.finished" in said
        assert "the lock is free" not in said

    again = run("up", "--targets", path)
    assert 0 == again.code, again
    assert {"applied", "ok"} == {word for word, _ in ended(again).values()}
    there: list[Any] = [database.query(f"SELECT version FROM preflight_tenant_{n}.migrations")
                        for n in range(1, 5)]  # fmt: skip
    assert [[1]] * 4 == there


def test_backup_of_many_schemas_is_one(
    run: Run, database: servers.Database, listed: Listed, backup_dir: Path
) -> None:
    """The command `backup` takes one of each database."""
    path = listed(tenants(database, 3))
    result = run("backup", "--targets", path)

    assert 0 == result.code, result
    assert 1 == len(list(backup_dir.iterdir()))
    assert "schemas" not in result.event("backup.verified")[0]
    assert 3 == len(ended(result))


@pytest.mark.parametrize(
    ("number", "code", "name"),
    [(signal.SIGKILL, 13, "target.killed"), (signal.SIGTERM, 143, "target.stopped")],
)
def test_target_whose_process_is_ended_stops_the_fleet(  # noqa: PLR0913, PLR0917 -- what it needs
    number: signal.Signals,
    code: int,
    name: str,
    run: Run,
    start: Start,
    database: servers.Database,
    migrations: WriteMigrations,
    listed: Listed,
) -> None:
    """It alone is hit; nothing new begins, and the next run does the rest."""
    path = listed(tenants(database, 2))
    migrations({"001_one.sql": "CREATE TABLE one (id int); SELECT pg_sleep(5);"})
    process = start("up", "--targets", path, "--waves", "1")
    process.wait_for_event("migration.started")
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), number)
    result = process.wait()

    assert (code, name) == (result.code, result.finished["error"]["code"]), result
    words = ["failed" if number is signal.SIGKILL else "stopped", "pending"]
    assert words == [word for word, _ in ended(result).values()]
    assert result.finished["error"]["message"].startswith("tenant_1: ")
    migrations(ONE)
    assert 0 == run("up", "--targets", path).code


def test_target_that_does_not_end_when_the_run_is_stopped_is_unknown(
    start: Start, database: servers.Database, migrations: WriteMigrations, listed: Listed
) -> None:
    """Its process is frozen; ours ends, and does not say that nothing of it stays."""
    path = listed(tenants(database, 2))
    migrations({"001_one.sql": "CREATE TABLE one (id int); SELECT pg_sleep(60);"})
    process = start("up", "--targets", path, "--waves", "1")
    process.wait_for_event("migration.started")
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGSTOP)
    process.signal(signal.SIGTERM)
    try:
        result = process.wait()
    finally:
        with suppress(ProcessLookupError):
            os.kill(int(child), signal.SIGKILL)

    assert 143 == result.code, result
    told = {each["target"]: each for each in result.event("target.finished")}
    assert (13, "target.unknown") == (
        told["tenant_1"]["exit_code"],
        told["tenant_1"]["error"]["code"],
    ), result


def test_many_are_not_for_another_tools_command(run_bare: Run, listed: Listed) -> None:
    """20: a wrapped command has a database of its own."""
    path = listed([{"name": "a"}])
    result = run_bare("check", "--targets", path, "--always", "--", "true")

    assert (20, "config.arguments") == (result.code, result.finished["error"]["code"]), result


def test_target_is_looked_at_again_at_its_turn(
    start: Start,
    database: servers.Database,
    create_database: CreateDatabase,
    migrations: WriteMigrations,
    listed: Listed,
) -> None:
    """One that takes no changes any more, while those before it had theirs, ends with 22."""
    other = create_database(database.server)
    path = listed([{"name": each.name, "database": each.name} for each in (database, other)])
    migrations(HELD)
    with database.server.connect(database.name) as session:
        session.execute("SELECT pg_advisory_lock(77)")
        env = {"PREFLIGHT_REHEARSE": "off", "PREFLIGHT_WAIT_TIMEOUT_S": "3"}
        process = start("up", "--targets", path, "--waves", "1", env=env)
        process.wait_for_event("migration.started")
        session.execute(
            f"ALTER DATABASE {other.name} SET default_transaction_read_only = on".encode()
        )
    result = process.wait()

    assert (22, "target.read_only") == (result.code, result.finished["error"]["code"]), result
    assert ("applied", 0) == ended(result)[database.name]


def test_triggers_see_a_tenants_history_made_under_the_tenants_path(
    run: Run, database: servers.Database, migrations: WriteMigrations, listed: Listed
) -> None:
    """As its files; that what we make is found nowhere else is a test of the history."""
    path = listed(tenants(database, 1))
    database.script(
        "CREATE TABLE paths (path text); CREATE FUNCTION note() RETURNS event_trigger "
        "LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.paths "
        "VALUES (current_setting('search_path')); END $$; CREATE EVENT TRIGGER notes "
        "ON ddl_command_end WHEN TAG IN ('CREATE SCHEMA') EXECUTE FUNCTION note()"
    )
    migrations(ONE)
    result = run("up", "--targets", path, env={"PREFLIGHT_REHEARSE": "off"})

    assert 0 == result.code, result
    assert ["tenant_1, public"] == database.query("SELECT DISTINCT path FROM paths")


def test_lock_of_a_fleet_outlasts_the_servers_patience(
    database: servers.Database, environment: dict[str, str]
) -> None:
    """Its session does nothing until the last turn: no idle timeout of the server ends it."""
    database.script(f"ALTER DATABASE {database.name} SET idle_session_timeout = '10s'")
    config = Config.from_env({**environment, **database.env()}, Path("/"), "a-run")
    with sessions.connect(config) as session:
        story.alone(session)
        assert ("0",) == session.execute("SHOW idle_session_timeout").fetchone()


def test_no_lock_is_left_behind_a_pooler(
    database: servers.Database, environment: dict[str, str]
) -> None:
    """It would stay on the pooler's own session, and each later run would wait for it."""
    with faults.through(database.server, faults.Pooler()) as proxy:
        direct = Config.from_env({**environment, **database.env()}, Path("/"), "a-run")
        pooled = {**direct.target, "port": str(proxy.port)}
        config = dataclasses.replace(direct, target=pooled)
        with sessions.connect(config) as session, capture_logs() as events:
            assert not story.alone(session)
            held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = ("
            held += "SELECT oid FROM pg_database WHERE datname = current_database())"
            assert [0] == database.query(held)

    assert ["config.warned"] == [each["event"] for each in events if "config" in each["event"]]


def test_address_that_libpq_looks_up_is_an_address(tmp_path: Path) -> None:
    """Two services, or two addresses behind one name, are two servers and two backups."""
    base = Config.from_env({"POSTGRES_PASSWORD": "x", "POSTGRES_DB": "app"}, tmp_path, "a-run")

    def target(name: str, **more: str) -> Target:
        return Target(name, dataclasses.replace(base, target={**base.target, **more}))

    for key in ("service", "hostaddr"):
        two = [target("a", **{key: "10.0.0.1"}), target("b", **{key: "10.0.0.2"})]
        assert [] == targets.clashes(two)
        assert 2 == len(targets.databases(two))
    same = [target("a"), target("b")]
    assert 2 == len(targets.databases(same, {"a": "one", "b": "another"}))
    assert 1 == len(targets.databases(same, {"a": "one", "b": "one"}))


def test_torn_line_of_a_target_costs_no_other_line() -> None:
    """A stop in the middle of a long line is followed by a line of its own: the result is heard."""
    read, write = os.pipe()
    voice = apart._Voice(write)  # noqa: SLF001 -- as its process has it
    child = apart._Child(Target("one", Config({}, {}, Path("/"))), 0, read)  # noqa: SLF001
    os.write(write, b'{"event": "migration.pro')
    voice.torn = True
    voice({"result": {"exit_code": 0}})
    child.hear(os.read(read, 1000))
    os.close(read)
    os.close(write)

    assert {"exit_code": 0} == child.result
