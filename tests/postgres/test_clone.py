"""A copy that somebody else makes: known to be one before a file runs, and left as it is."""

from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from tests import servers
from tests.conftest import CreateDatabase, Run, WriteMigrations

ONE = {"001_one.sql": "CREATE TABLE one (id int);"}
TWO = {"002_two.sql": "CREATE TABLE two (id int); INSERT INTO two SELECT 1 FROM one;"}
UNIQUE = {"002_unique.sql": "CREATE UNIQUE INDEX once ON one (id);"}
THREE = {"003_three.sql": "CREATE TABLE three ();"}
MakeClone = Callable[[], tuple[servers.Database, dict[str, str]]]


def url(database: servers.Database, user: str = servers.SUPERUSER, host: str = "") -> str:
    """Return the URL of a database, with the superuser's password."""
    password, place = quote(servers.PASSWORD, safe=""), host or database.server.host
    return f"postgresql://{user}:{password}@{place}:{database.server.port}/{database.name}"


@pytest.fixture
def make_clone(database: servers.Database, create_database: CreateDatabase) -> MakeClone:
    """Give what copies the live database as a provider would: another database, file by file."""

    def make() -> tuple[servers.Database, dict[str, str]]:
        options = f"TEMPLATE {database.name}"
        clone = create_database(database.server, None, options)
        return clone, {"PREFLIGHT_REHEARSE_CLONE_URL": url(clone), "PREFLIGHT_REHEARSE": "always"}

    return make


@pytest.fixture
def applied(run: Run, database: servers.Database, migrations: WriteMigrations) -> None:
    """Bring the live database to 001, with two rows that are the same."""
    migrations(ONE)
    assert 0 == run(env={"PREFLIGHT_REHEARSE": "off"}).code
    database.script("INSERT INTO one VALUES (7), (7)")


@pytest.mark.usefixtures("applied")
def test_clone_is_used_and_left_as_it_is(
    run: Run,
    database: servers.Database,
    make_clone: MakeClone,
    migrations: WriteMigrations,
    backup_dir: Path,
) -> None:
    """The files run there first and stay there; no backup is called restored for it."""
    clone, env = make_clone()
    migrations({**ONE, **TWO})
    result = run(env=env)

    (passed,), (started,) = result.event("rehearsal.passed"), result.event("rehearsal.started")
    assert 0 == result.code, result
    assert ("clone", "read", ["002_two"]) == (
        passed["where"], passed["verified"], passed["migrations"],
    )  # fmt: skip
    assert (clone.name, "clone") == (started["database"], started["where"])
    assert 0 <= started["age_s"]
    assert [1, 1] == clone.query("SELECT id FROM two") == database.query("SELECT id FROM two")
    assert '"restored"' not in next(backup_dir.glob("*/manifest.json")).read_text()
    assert servers.PASSWORD not in result.stdout


def test_clone_is_used_before_the_first_run(
    run: Run, make_clone: MakeClone, migrations: WriteMigrations
) -> None:
    """Neither side has a history: that is the same on both."""
    clone, env = make_clone()
    migrations(ONE)
    result = run(env=env)

    assert (0, ["001_one"]) == (result.code, result.finished["applied"]), result
    assert ["clone"] == [each["where"] for each in result.event("rehearsal.passed")]
    assert [0] == clone.query("SELECT count(*)::int FROM one")


@pytest.mark.usefixtures("applied")
def test_clone_is_met_with_the_settings_of_the_live_database(
    run: Run, database: servers.Database, make_clone: MakeClone, migrations: WriteMigrations
) -> None:
    """A template leaves them out; what the clone has of its own nobody can take back."""
    database.script(
        f"CREATE SCHEMA app; ALTER DATABASE {database.name} SET search_path = app, public;"
        f"ALTER DATABASE {database.name} SET app.tenant = 'it''s \\ b'"
    )
    clone, env = make_clone()
    migrations({"002_two.sql": "CREATE TABLE two AS SELECT current_setting('app.tenant') AS t;"})
    result = run(env=env)
    clone.script(f"ALTER DATABASE {clone.name} SET work_mem = '5MB'")
    migrations(THREE)
    refused = run(env=env)

    assert 0 == result.code, result
    assert ["it's \\ b"] == clone.query("SELECT t FROM app.two")
    assert (27, True) == (refused.code, "work_mem" in refused.finished["error"]["message"])


def test_setting_that_the_role_may_not_make_costs_no_clone(
    run: Run, database: servers.Database, make_clone: MakeClone, migrations: WriteMigrations
) -> None:
    """The server refuses a login with it, and no file's outcome depends on it."""
    role = database.limited(9, "preflight")
    env = {**database.env(user=role, password="x"), "PREFLIGHT_REHEARSE": "off"}  # noqa: S106 -- of a minute's role
    migrations(ONE | {"001_one.sql": "SELECT 1;"})
    first = run(env=env)
    database.script(f"ALTER DATABASE {database.name} SET log_lock_waits = on")
    clone, _ = make_clone()
    where = url(clone, role).replace(quote(servers.PASSWORD, safe=""), "x")
    migrations({"002_two.sql": "SELECT 2;"})
    more = {"PREFLIGHT_REHEARSE": "always", "PREFLIGHT_REHEARSE_CLONE_URL": where}
    result = run(env=env | more)
    for each in (database, clone):
        each.script(f"DROP OWNED BY {role}")
    database.script(f"DROP ROLE {role}")

    assert (0, 0) == (first.code, result.code), result


@pytest.mark.usefixtures("applied")
def test_file_that_fails_on_the_clone_is_not_run(
    run: Run, database: servers.Database, make_clone: MakeClone, migrations: WriteMigrations
) -> None:
    """27 from the clone's rows; the live database is as it was. No backup is needed for that."""
    _, env = make_clone()
    migrations({**ONE, **UNIQUE})
    result = run(env={**env, "PREFLIGHT_BACKUP": "off"})

    assert (27, "rehearsal.failed") == (result.code, result.finished["error"]["code"]), result
    assert [1] == database.query("SELECT version FROM preflight.migrations")
    assert [] == database.query("SELECT indexrelid FROM pg_index WHERE indrelid = 'one'::regclass")


@pytest.mark.usefixtures("applied")
@pytest.mark.parametrize("host", ["localhost", "127.1"])
def test_live_database_is_no_clone_whatever_its_name(
    host: str, run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """A lock that we hold is seen there: 27 also with `auto`, and not one statement was run."""
    migrations({**ONE, **TWO})
    there = url(database, host=host)
    result = run(env={"PREFLIGHT_REHEARSE_CLONE_URL": there, "PREFLIGHT_REHEARSE": "auto"})

    assert (27, "rehearsal.clone_is_live") == (result.code, result.finished["error"]["code"])
    assert [1] == database.query("SELECT version FROM preflight.migrations")
    assert [] == result.event("rehearsal.started")


@pytest.mark.usefixtures("applied")
def test_clone_that_cannot_be_asked_is_none(
    run: Run, database: servers.Database, make_clone: MakeClone, migrations: WriteMigrations
) -> None:
    """27 where the locks there are not for our eyes: it could be the live one."""
    clone, env = make_clone()
    clone.script("REVOKE SELECT ON pg_locks FROM PUBLIC; CREATE ROLE blind LOGIN PASSWORD 'x'")
    named = url(clone, "blind").replace(quote(servers.PASSWORD, safe=""), "x")
    migrations({**ONE, **TWO})
    result = run(env={**env, "PREFLIGHT_REHEARSE_CLONE_URL": named, "PREFLIGHT_REHEARSE": "auto"})
    database.script("DROP ROLE blind")

    assert (27, "rehearsal.clone_unknown") == (result.code, result.finished["error"]["code"])


@pytest.mark.usefixtures("applied")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("DELETE FROM preflight.migrations", "another history than the live database: 001"),
        ("DROP SCHEMA preflight CASCADE", "another history than the live database: 001"),
        ("ALTER TABLE one ADD COLUMN more int", "column public.one.more"),
        ("DROP TABLE one", "table public.one is missing"),
    ],
)
def test_clone_that_is_not_as_the_live_database_is_not_used(
    change: str, reason: str, run: Run, make_clone: MakeClone, migrations: WriteMigrations
) -> None:
    """`auto` says why and goes on, `always` is 27: what is tried there would tell nothing."""
    clone, env = make_clone()
    clone.script(change)
    migrations({**ONE, **THREE})
    demanded = run(env=env)
    result = run(env={**env, "PREFLIGHT_REHEARSE": "auto"})

    assert (27, "rehearsal.unavailable") == (demanded.code, demanded.finished["error"]["code"])
    assert reason in demanded.finished["error"]["message"]
    assert 0 == result.code, result
    assert reason in result.event("rehearsal.skipped")[0]["reason"]


@pytest.mark.usefixtures("applied")
def test_clone_that_is_further_in_a_file_is_not_used(
    run: Run, database: servers.Database, make_clone: MakeClone, migrations: WriteMigrations
) -> None:
    """Both have stopped in it, but not at the same statement: that would be another trial."""
    stops = "-- preflight: no-transaction\nUPDATE one SET id = 8; SELECT 1 / count(*) FROM three;"
    migrations({**ONE, "002_part.sql": stops})
    database.script("CREATE TABLE three (id int)")
    off = {"PREFLIGHT_REHEARSE": "off"}
    assert 31 == run(env=off).code
    clone, env = make_clone()
    same = run(env=env)
    clone.script("UPDATE preflight.migrations SET statements_done = 0 WHERE version = 2")
    other = run(env=env)

    assert "rehearsal.failed" == same.finished["error"]["code"], same
    assert (27, "rehearsal.unavailable") == (other.code, other.finished["error"]["code"]), other
    assert "another history than the live database: 002" in other.finished["error"]["message"]


def test_clone_with_other_repeatable_files_is_not_used(
    run: Run, make_clone: MakeClone, migrations: WriteMigrations
) -> None:
    """A file that it had in another text is not what is tried."""
    flyway = {"PREFLIGHT_LAYOUT": "flyway", "PREFLIGHT_REHEARSE": "off"}
    view = {"R__ids.sql": "CREATE OR REPLACE VIEW ids AS SELECT id FROM one;"}
    migrations({"V1__one.sql": "CREATE TABLE one (id int);", **view})
    assert 0 == run(env=flyway).code
    clone, env = make_clone()
    clone.script("UPDATE preflight.repeatables SET checksum = repeat('0', 64)")
    migrations({"V3__three.sql": "CREATE TABLE three ();"})
    result = run(env={**flyway, **env})

    assert 27 == result.code, result
    assert "another history than the live database: " in result.finished["error"]["message"]
    assert "ids" in result.finished["error"]["message"]


@pytest.mark.usefixtures("applied")
def test_clone_that_takes_no_changes_is_not_used(
    run: Run, make_clone: MakeClone, migrations: WriteMigrations
) -> None:
    """Read-only, as a standby is: `auto` says so and goes on."""
    clone, env = make_clone()
    clone.script(f"ALTER DATABASE {clone.name} SET default_transaction_read_only = on")
    migrations({**ONE, **THREE})
    result = run(env={**env, "PREFLIGHT_REHEARSE": "auto", "PREFLIGHT_WAIT_TIMEOUT_S": "1"})

    assert 0 == result.code, result
    assert "read-only" in result.event("rehearsal.skipped")[0]["reason"]


@pytest.mark.usefixtures("applied")
def test_clone_that_is_the_second_of_several_hosts_stays_it(
    run: Run, make_clone: MakeClone, migrations: WriteMigrations
) -> None:
    """The session is led to where the first one was, and no file meets another host."""
    clone, env = make_clone()
    there = url(clone, host=f"127.0.0.1:1,{clone.server.host}")
    migrations({**ONE, **TWO})
    result = run(env={**env, "PREFLIGHT_REHEARSE_CLONE_URL": there})

    assert (0, ["002_two"]) == (result.code, result.finished["applied"]), result
    assert [1, 1] == clone.query("SELECT id FROM two")


@pytest.mark.usefixtures("applied")
def test_clone_on_the_same_server_keeps_its_files_inside(
    run: Run, database: servers.Database, make_clone: MakeClone, migrations: WriteMigrations
) -> None:
    """A role that a rehearsal made there would be production's; a clone that was used is none."""
    clone, env = make_clone()
    env["PREFLIGHT_REHEARSE"] = "auto"
    migrations({**ONE, "002_role.sql": "CREATE ROLE made_in_earnest;"})
    skipped = run(env=env)
    database.script("DROP ROLE made_in_earnest")
    migrations({**ONE, "002_role.sql": "CREATE ROLE made_in_earnest;", **THREE})
    used = run(env=env)

    assert "on the same server" in skipped.event("rehearsal.skipped")[0]["reason"]
    assert "another history" in used.event("rehearsal.skipped")[0]["reason"]
    assert [1] == clone.query("SELECT version FROM preflight.migrations")


def test_two_places_to_rehearse_are_one_too_many(run: Run, migrations: WriteMigrations) -> None:
    """20, naming both variables and no value."""
    migrations(ONE)
    here = "postgresql://x:secret@nowhere/y"
    names = ("PREFLIGHT_REHEARSE_URL", "PREFLIGHT_REHEARSE_CLONE_URL")
    result = run(env=dict.fromkeys(names, here))

    assert 20 == result.code, result
    assert all(name in result.finished["error"]["message"] for name in names)
    assert "secret" not in result.stdout
