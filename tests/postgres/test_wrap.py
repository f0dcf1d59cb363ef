"""Other tools' commands behind the gate: led to a copy, kept off the live database, run once."""

import hashlib
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import LiteralString
from urllib.parse import quote

import psycopg
import pytest

from preflight.base.config import Config
from preflight.base.errors import DatabaseBusy
from preflight.commands.wrapping import orphans, tools, wall, written
from preflight.history import journal, wraps
from preflight.server import catalog, sessions
from tests import faults, servers
from tests.conftest import CreateDatabase, Run, Start, StartServer

TOOL = """
import json, os, sys, time
import psycopg

def address():
    return os.environ["DATABASE_URL"]

def migrations():
    folder = os.path.dirname(os.path.abspath(__file__))
    return sorted(n for n in os.listdir(folder + "/versions") if n.endswith(".sql"))

def run(connection):
    folder = os.path.dirname(os.path.abspath(__file__)) + "/versions/"
    connection.execute(
        "CREATE TABLE IF NOT EXISTS schema_migrations (version text PRIMARY KEY)")
    done = {v for (v,) in connection.execute("SELECT version FROM schema_migrations")}
    for name in migrations():
        if name in done:
            continue
        print("applying", name, flush=True)
        with connection.transaction():
            connection.execute(open(folder + name).read())
            connection.execute("INSERT INTO schema_migrations VALUES (%s)", [name])

def leave(at, statement, code):
    other, looking = (psycopg.connect(each, autocommit=True) for each in (at, address()))
    other.pgconn.send_query(statement)
    other.pgconn.flush()
    at_work = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    while looking.execute(at_work).fetchone() == (0,):
        pass
    os._exit(code)

if __name__ == "__main__":
    print("connecting to", address(), flush=True)
    with psycopg.connect(address(), autocommit=True) as connection:
        run(connection)
"""
GOOD = "ALTER TABLE items ADD COLUMN price int NOT NULL DEFAULT 0; CREATE INDEX ON items (price)"
SPOILS = "UPDATE pg_catalog.pg_index SET indisvalid = false"
HOLDS = "ALTER TABLE items ADD CHECK (id > 0), ADD COLUMN more int; SELECT pg_sleep(60)"
LOOKS = """
SELECT query_start FROM pg_stat_activity WHERE query LIKE '%client_port > 0%'
 AND pid <> pg_backend_pid() AND query_start > (SELECT backend_start FROM pg_stat_activity
  WHERE pid = pg_backend_pid())
"""
# one look has up to three starts, those of Parse, Bind and Execute: with four, one has ended
LOOKED = 4
END_THE_SLEEPER = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
)
BREAKS = "ALTER TABLE items ADD CONSTRAINT named CHECK (name <> 'b')"


@pytest.fixture
def app(tmp_path: Path, database: servers.Database) -> Path:
    """Give an app with a small migrator, one migration that has run, and rows."""
    folder = tmp_path / "app"
    (folder / "versions").mkdir(parents=True)
    (folder / "tool.py").write_text(TOOL)
    first = "CREATE TABLE items (id int PRIMARY KEY, name text)"
    (folder / "versions/001.sql").write_text(first)
    database.script(
        f"{first}; INSERT INTO items VALUES (1, 'a'), (2, 'b');"
        "CREATE TABLE schema_migrations (version text PRIMARY KEY);"
        "INSERT INTO schema_migrations VALUES ('001.sql')"
    )
    return folder


@pytest.fixture(autouse=True)
def alone(database: servers.Database) -> Iterator[None]:
    """Have autovacuum write nothing: its transactions are somebody's, and nobody can tell whose."""
    server = database.server
    server.configure(autovacuum="off")
    server.reload()
    try:
        yield
    finally:
        server.configure(autovacuum="on")
        if server.running:
            server.reload()


@pytest.fixture(autouse=True)
def wrapped(environment: dict[str, str], database: servers.Database) -> None:
    """Have a rehearsal, and the address of the database as a URL alone."""
    del environment["PREFLIGHT_MIGRATIONS_DIR"]
    env = database.env()
    for name in env:
        environment.pop(name, None)
    password = quote(env["PGPASSWORD"], safe="")
    url = f"postgresql://{env['PGUSER']}:{password}@{env['PGHOST']}:{env['PGPORT']}/{database.name}"
    environment |= {"DATABASE_URL": url, "PREFLIGHT_REHEARSE": "auto"}


def command(app: Path, *more: str) -> list[str]:
    """Return the arguments that wrap the app's migrator."""
    return ["wrap", "--watch", str(app), *more, "--", sys.executable, str(app / "tool.py")]


@pytest.fixture
def local() -> Iterator[dict[str, str | None]]:
    """Have the copy on a throwaway server; not below pytest's own place, which it closes."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o711)
        yield {"PREFLIGHT_REHEARSE_ON": "local", "PREFLIGHT_REHEARSE_DIR": place}


def wordy(app: Path) -> None:
    """Have the app's migrator say of an error what node does: its object, of thirty lines."""
    text = TOOL.replace(
        "        run(connection)\n",
        "        try:\n            run(connection)\n        except psycopg.Error as error:\n"
        "            print('error:', error.diag.message_primary, '{')\n"
        "            print(*['  detail: undefined,'] * 30, '}', sep='\\n')\n"
        "            sys.exit(1)\n",
    )
    (app / "tool.py").write_text(text)


def stubborn(app: Path, database: servers.Database, body: str) -> None:
    """Have the app's migrator take its address from a file, and do as `body` says."""
    (app / "address").write_text(database.conninfo())
    text = TOOL.replace(
        'os.environ["DATABASE_URL"]',
        'open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "address")).read()',
    )
    (app / "tool.py").write_text(text.replace("        run(connection)\n", f"        {body}\n"))


def tables(database: servers.Database) -> list[str]:
    """Return the columns of the live database's tables."""
    return database.query(
        "SELECT format('%s.%s', attrelid::regclass, attname) FROM pg_attribute"
        " JOIN pg_class c ON c.oid = attrelid WHERE relnamespace = 'public'::regnamespace"
        " AND attnum > 0 AND NOT attisdropped ORDER BY 1"
    )


def test_command_is_rehearsed_run_and_recorded(
    run: Run, app: Path, database: servers.Database
) -> None:
    """The whole way: backup, copy, in earnest, compared; the second start starts nothing."""
    (app / "versions/002.sql").write_text(GOOD)
    starts = app / ".starts"
    (app / "tool.py").write_text(TOOL + f"    open({str(starts)!r}, 'a').write('x')\n")

    first = run(*command(app))
    again = run(*command(app))

    assert 0 == first.code, first
    assert ["net"] == [each["kept_off"] for each in first.event("wrap.redirected")]
    assert "unseen" not in first.event("wrap.redirected")[0]  # who may see all misses nobody
    assert [["DATABASE_URL"]] == [each["variables"] for each in first.event("wrap.redirected")]
    (rehearsed,) = first.event("wrap.rehearsed")
    assert "unchanged" == rehearsed["second_run"]
    assert "column public.items.price" in rehearsed["made"]
    assert first.event("wrap.matched"), first
    assert [2] == database.query("SELECT count(*)::int FROM schema_migrations")
    assert "***" in first.event("wrap.said")[0]["text"]
    assert servers.PASSWORD not in first.stdout.replace("PREFLIGHT", "")
    assert 0 == again.code, again
    assert [] == again.event("wrap.said")
    assert "xxx" == starts.read_text()  # twice on the copy, once in earnest


def test_command_is_led_to_a_server_of_our_own(
    run: Run, app: Path, local: dict[str, str | None], environment: dict[str, str]
) -> None:
    """The throwaway server has a port and a password of its own, and the command gets both.

    An address that it cannot get to is nobody's business.
    """
    (app / "versions/002.sql").write_text(GOOD)
    environment["AUDIT_URL"] = f"{environment['DATABASE_URL']}_audit"

    found = run(*command(app), env=local)

    assert 0 == found.code, found
    (redirected,) = found.event("wrap.redirected")
    assert ("local", *(("wall", None) if wall.available() else ("net", ["AUDIT_URL"]))) == (
        redirected["where"],
        redirected["kept_off"],
        redirected.get("not_led"),
    )
    assert [] == found.event("wrap.differs")
    assert found.event("wrap.matched")


def test_command_makes_a_database_on_a_server_of_our_own(
    run: Run, database: servers.Database, environment: dict[str, str], local: dict[str, str | None]
) -> None:
    """Nobody of ours is in the one that is copied for it, also where the copy is `postgres`."""
    environment["DATABASE_URL"] = environment["DATABASE_URL"].replace(database.name, "postgres")
    script = "psycopg.connect(os.environ['DATABASE_URL'], autocommit=True).execute"
    script = f"import os, psycopg; {script}('CREATE DATABASE made')"
    options = ("--rehearse", "--always", "--trust-environment")

    found = run("plan", *options, "--", sys.executable, "-c", script, env=local)

    assert 0 == found.code, found
    (rehearsed,) = found.event("wrap.rehearsed")
    assert "local" == rehearsed["where"]


def test_serializable_transaction_is_rehearsed(
    run: Run, app: Path, database: servers.Database
) -> None:
    """What it has read is a lock of a mode of its own, which nobody waits for."""
    database.script(
        f"ALTER DATABASE \"{database.name}\" SET default_transaction_isolation = 'serializable'"
    )
    (app / "versions/002.sql").write_text(
        f"UPDATE items SET name = 'x'; {GOOD}; SELECT pg_sleep(0.3)"
    )

    found = run(*command(app))

    assert 0 == found.code, found
    assert ["ACCESS EXCLUSIVE"] == [
        each["mode"] for each in found.event("wrap.rehearsed")[0]["locks"]
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
@pytest.mark.parametrize(("mode", "code"), [(0o444, 0), (0o440, 27)])
def test_command_that_goes_on_as_another_user_reads_its_secret_on_the_copy(
    run: Run, app: Path, environment: dict[str, str], mode: int, code: int
) -> None:
    """The private file in the secret's place is his where that one is, and is not where not."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        secret = Path(place) / "url"
        secret.write_text(environment.pop("DATABASE_URL"))
        secret.chmod(mode)
        environment["DATABASE_URL_FILE"] = str(secret)
        change = "ALTER TABLE items ADD COLUMN n int"
        psql = f'{servers.client_bin(18)}/psql "$url" -c "{change}"'
        psql = f"url=$(cat $DATABASE_URL_FILE) && {psql}"
        other = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]

        found = run("wrap", "--watch", str(app / "versions"), "--", *other, "sh", "-c", psql)

    assert code == found.code, found
    assert bool(code) == ("Permission denied" in found.stdout)


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
@pytest.mark.parametrize(
    ("address", "own", "lines"),
    [
        ("", ":{tool}", "{database}"),  # the tool's role has its password, the gate's is alone
        ('"$DATABASE_URL"', "", "{database}"),  # the copy's has the password in it
        ('"$APP_URL"', "", "*"),  # its passfile is good for the copy as it is
    ],
)
def test_command_that_goes_on_as_another_user_has_its_passfile_on_the_copy(  # noqa: PLR0913, PLR0917 -- fixtures
    run: Run,
    app: Path,
    database: servers.Database,
    environment: dict[str, str],
    two_roles: dict[str, str],
    address: str,
    own: str,
    lines: str,
) -> None:
    """That of its own home, as it reads on the live database: ours it cannot read."""
    gate, tool = two_roles["gate"], two_roles["tool"]
    given = {"tool": tool, "database": database.name}
    environment["APP_URL"] = two_roles["url"].replace(f":{tool}@", f"{own.format(**given)}@")
    environment["DATABASE_URL"] = environment["DATABASE_URL"].replace(f":{gate}@", "@")
    if not address:
        del environment["DATABASE_URL"]
        env = database.env() | {"PGUSER": gate}
        environment |= {name: env[name] for name in env if name != "PGPASSWORD"}
    insert = "INSERT INTO items VALUES (3, 'c') ON CONFLICT DO NOTHING"
    psql = f'{servers.client_bin(18)}/psql {address} -c "{insert}"'
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        for user in (0, 65534):
            passfile = Path(place) / str(user) / ".pgpass"
            passfile.parent.mkdir()
            at = f"*:*:{lines.format(**given)}"
            passfile.write_text(f"{at}:{gate}:{gate}\n{at}:{tool}:{tool}\n")
            passfile.chmod(0o600)
            os.chown(passfile, user, user)
        environment["HOME"] = f"{place}/0"
        other = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
        other += ["env", f"HOME={place}/65534", "sh", "-c", psql]

        found = run("wrap", "--watch", str(app / "versions"), "--", *other)

    assert 0 == found.code, found
    assert found.event("wrap.matched")


def test_options_of_a_service_hold_on_the_copy(
    run: Run, app: Path, database: servers.Database, environment: dict[str, str]
) -> None:
    """The search_path of a service file leads the command into the same schema on both.

    An argument that names the service leads elsewhere, one that only looks so is the tool's.
    """
    database.script("CREATE SCHEMA app")
    del environment["DATABASE_URL"]
    services = app / "services"
    keys = {"PGHOST": "host", "PGPORT": "port", "PGUSER": "user", "PGPASSWORD": "password"}
    lines = [f"{keys[name]}={text}" for name, text in database.env().items() if name in keys]
    lines += [f"dbname={database.name}", "options=-c search_path=app"]
    services.write_text("\n".join(["[live]", *lines, ""]))
    (app / "tool.py").write_text(TOOL.replace('os.environ["DATABASE_URL"]', '""'))

    found = run(
        *command(app),
        "service=live",
        "service=web",
        env={"PGSERVICE": "live", "PGSERVICEFILE": str(services)},
    )

    assert 0 == found.code, found
    assert [["argument 3"]] == [each["not_led"] for each in found.event("wrap.redirected")]
    assert [] == found.event("wrap.differs")
    assert ["app", "public"] == database.query(
        "SELECT relnamespace::regnamespace::text FROM pg_class"
        " WHERE relname = 'schema_migrations' ORDER BY 1"
    )


def test_command_is_rehearsed_where_it_is_said(  # noqa: PLR0913, PLR0917 -- fixtures
    run: Run,
    app: Path,
    database: servers.Database,
    server: servers.Server,
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    """On another server, and on a clone that somebody has made before the first run.

    The metrics call only that backup restored which was.
    """
    metrics = tmp_path / "wrap.prom"
    environment["PREFLIGHT_METRICS_FILE"] = str(metrics)
    (app / "versions/002.sql").write_text(GOOD)
    clone = f"clone_of_{database.name}"
    database.script(f'CREATE DATABASE {clone} TEMPLATE "{database.name}"')
    try:
        first = run(*command(app), env={"PREFLIGHT_REHEARSE_CLONE_URL": server.conninfo(clone)})
        last = [metrics.read_text().splitlines()[-1]]  # of the series: how far it is proven
        (app / "versions/003.sql").write_text("ALTER TABLE items ADD COLUMN more int")
        home = server.conninfo("postgres")
        second = run(*command(app), env={"PREFLIGHT_REHEARSE_URL": home})
        last.append(metrics.read_text().splitlines()[-1])
    finally:
        database.script(f"DROP DATABASE {clone} WITH (FORCE)")
    listed = run("backups", "--json")

    assert [] == first.event("rehearsal.skipped")
    for found, where in ((first, "clone"), (second, "url")):
        assert 0 == found.code, found
        assert [where] == [each["where"] for each in found.event("wrap.rehearsed")], found
        assert found.event("wrap.matched")
    assert ["0", "1"] == [each.split()[-1] for each in last if "backup_restored" in each]
    assert '"wrapped": "' in listed.stdout


def test_role_of_another_name_on_the_copy_is_no_difference(
    run: Run, app: Path, database: servers.Database
) -> None:
    """What it makes there belongs to the role of PREFLIGHT_REHEARSE_URL: --strict passes."""
    role = f"scratch_of_{database.name}"
    (app / "versions/002.sql").write_text("CREATE TABLE more (id int PRIMARY KEY)")
    database.script(f"CREATE ROLE {role} SUPERUSER LOGIN PASSWORD '{role}'")
    try:
        home = database.server.conninfo("postgres", user=role, password=role)
        found = run(*command(app, "--strict"), env={"PREFLIGHT_REHEARSE_URL": home})
    finally:
        database.script(f"DROP ROLE {role}")

    assert 0 == found.code, found
    assert found.event("wrap.matched")


def test_failure_on_the_copy_leaves_the_live_database_alone(
    run: Run, app: Path, database: servers.Database
) -> None:
    """27 with what the command says of it; and nothing is recorded, so the next start tries again.

    What it has committed on the copy is somebody's writing on the live server, and not for sure
    somebody else's. A copy of some schemas is no excuse where nothing of another one is missing.
    """
    (app / "versions/002.sql").write_text(GOOD)
    (app / "versions/003.sql").write_text(BREAKS)
    wordy(app)
    database.script("CREATE SCHEMA other")

    found = run(*command(app))
    again = run(*command(app), env={"PREFLIGHT_SCHEMAS": "public"})

    assert (27, 27) == (found.code, again.code), found
    assert "PREFLIGHT_SCHEMAS" in again.finished["error"]["hint"]
    error = found.event("run.finished")[0]["error"]
    assert "wrap.rehearsal_failed" == error["code"]
    assert "with exit code 1: error: check constraint" in error["message"]
    assert error["context"].startswith("error: check constraint")
    assert "can tell: the server was written to meanwhile, by the command or by" in error["hint"]
    assert [1] == database.query("SELECT count(*)::int FROM schema_migrations")
    assert [] == found.event("wrap.started")


@pytest.mark.parametrize(
    ("history", "second", "check", "expected"),
    [
        ("public", "SELECT", "", "public.schema_migrations, and the backup is of"),
        ("shop", "SELECT FROM public.users", "", 'relation "public.users" does not exist'),
        ("shop", "SELECT", " FROM public.users", 'c.sql:1 names "public"."users"'),
    ],
    ids=["history", "named", "checked"],
)
def test_what_a_copy_of_some_schemas_cannot_tell_stops_nothing(  # noqa: PLR0913, PLR0917 -- fixtures
    run: Run,
    app: Path,
    database: servers.Database,
    history: str,
    second: str,
    check: str,
    expected: str,
) -> None:
    """What needs another schema than those of the backup is not rehearsed, and that is said.

    However much the tool says of it.
    """
    wordy(app)
    database.script(
        "CREATE SCHEMA shop; ALTER TABLE items SET SCHEMA shop; CREATE TABLE users AS SELECT 1;"
        f"ALTER TABLE schema_migrations SET SCHEMA {history};"
        "CREATE TABLE alembic_version (version_num text PRIMARY KEY)"  # another tool's
    )
    (app / "versions/001.sql").write_text("CREATE TABLE shop.items (id int)")
    (app / "versions/002.sql").write_text(second)
    (app.parent / "c.sql").write_text(f"SELECT 's' suite, 'c' \"check\", true ok{check}")
    env = {"PREFLIGHT_SCHEMAS": "shop"}
    if history == "shop":
        env["PGOPTIONS"] = "-c search_path=shop,public"

    found = run(*command(app, "--verify", str(app.parent / "c.sql")), env=env)

    assert 0 == found.code, found
    (skipped,) = found.event("rehearsal.skipped")
    assert "warning" == skipped["level"]
    assert expected in skipped["reason"]
    assert "(PREFLIGHT_SCHEMAS)" in skipped["reason"]


def test_command_that_hangs_behind_something_missing_is_no_trial_to_be_skipped(
    run: Run, database: servers.Database
) -> None:
    """It went on behind that line: what it hangs on would hang in earnest, too."""
    database.script("CREATE SCHEMA shop CREATE TABLE items (id int); CREATE TABLE users (id int)")
    says = """import psycopg, sys, time
with psycopg.connect("", autocommit=True) as app:
    try:
        app.execute("SELECT FROM public.users")
    except psycopg.Error as error:
        print("ERROR: ", error, file=sys.stderr, flush=True)
    app.execute("CREATE TABLE shop.more (id int)")
    app.execute("SELECT pg_sleep(600)")
"""
    tool = ("wrap", "--always", "--timeout", "3", "--trust-environment", "--")
    found = run(*tool, sys.executable, "-c", says, env={"PREFLIGHT_SCHEMAS": "shop"})

    assert 27 == found.code, found
    assert [] == found.event("rehearsal.skipped")


def test_what_a_trial_changes_for_the_whole_server_is_31(
    run: Run, app: Path, database: servers.Database
) -> None:
    """What the command made for real is named, also where it failed then: a role, a slot."""
    role = f"reader_of_{database.name}"
    (app / "versions/002.sql").write_text(
        f"CREATE ROLE {role}; ALTER DATABASE \"{database.name}\" SET work_mem = '5MB';"
        f"SELECT pg_create_physical_replication_slot('slot_{role}')"
    )
    (app / "versions/003.sql").write_text(BREAKS)
    try:
        found = run(*command(app))
        again = run(*command(app))
    finally:
        database.script(f"DROP ROLE IF EXISTS {role}")
        database.script(f"SELECT pg_drop_replication_slot('slot_{role}')")

    error = found.finished["error"]
    assert f"replication slot slot_{role} made" in error["message"]
    assert (31, "wrap.changed_server") == (found.code, error["code"]), found
    assert f"role {role} made, settings of database {database.name} made" in error["message"]
    assert "check constraint" in error["context"]
    assert "not changed" not in f"{error}"
    assert "PREFLIGHT_REHEARSE_ON=local" in error["hint"]
    assert 27 == again.code, again
    assert "an earlier trial has left" in again.finished["error"]["hint"]


def test_stop_of_a_trial_says_what_stays_on_the_server(
    start: Start, app: Path, database: servers.Database
) -> None:
    """A setting of the live database that the command has committed is not called rolled back."""
    (app / "versions/002.sql").write_text(f'ALTER DATABASE "{database.name}" SET work_mem = 64')
    (app / "versions/003.sql").write_text("SELECT pg_sleep(60)")
    running = start(*command(app))
    while "applying 003.sql" not in str(running.events):
        running.wait_for_event("wrap.said")
    running.signal(signal.SIGTERM)
    found = running.wait()

    assert 143 == found.code, found
    assert f"settings of database {database.name} made" in found.finished["error"]["message"]


def test_what_somebody_else_changes_for_the_whole_server_stops_nothing(
    run: Run, app: Path, database: servers.Database
) -> None:
    """Roles and databases come and go; where it fails in earnest, it says what was there."""
    role = f"other_of_{database.name}"
    (app / ".other").write_text(role)
    other = (
        "    if connection.info.dbname.startswith('preflight_scratch'):\n"
        "        name = open(os.path.dirname(os.path.abspath(__file__)) + '/.other').read()\n"
        "        with psycopg.connect(address(), dbname='postgres', autocommit=True) as other:\n"
        "            if not other.execute(f\"SELECT FROM pg_roles WHERE rolname = '{name}'\""
        ").fetchall():\n"
        "                other.execute(f'CREATE ROLE {name}')\n"
        "                other.execute(f'CREATE DATABASE {name}')\n"
    )
    (app / "tool.py").write_text(
        TOOL.replace("def run(connection):\n", f"def run(connection):\n{other}")
    )
    (app / "versions/002.sql").write_text(
        f"SELECT 1 / (current_database() <> '{database.name}')::int"
    )
    try:
        found = run(*command(app))
    finally:
        database.script(f"DROP DATABASE IF EXISTS {role}")
        database.script(f"DROP ROLE IF EXISTS {role}")

    assert 30 == found.code, found
    assert [[f"role {role} made"]] == [each["objects"] for each in found.event("rehearsal.warned")]
    assert f"the live server was changed: role {role} made" in found.finished["error"]["message"]


def test_what_a_trial_changes_on_a_server_of_its_own_stays_there(
    run: Run, app: Path, database: servers.Database, start_server: StartServer
) -> None:
    """On PREFLIGHT_REHEARSE_URL it is a warning: the live server has nothing of it yet."""
    role = f"reader_of_{database.name}"
    (app / "versions/002.sql").write_text(f"CREATE ROLE {role}")
    try:
        found = run(*command(app), env={"PREFLIGHT_REHEARSE_URL": start_server().conninfo()})
    finally:
        database.script(f"DROP ROLE IF EXISTS {role}")

    assert 0 == found.code, found
    assert [[f"role {role} made"]] == [each["objects"] for each in found.event("rehearsal.warned")]


def test_command_that_writes_into_what_is_watched_is_told_why_it_is_due_again(
    run: Run, app: Path
) -> None:
    """Nobody can tell its schema dump from what a person changed, so it runs again, and says so."""
    dump = "    open(sys.path[0] + '/versions/dump', 'w').write(str(time.time()))\n"
    (app / "tool.py").write_text(TOOL + dump)

    found = run(*command(app), env={"PREFLIGHT_REHEARSE": "off"})
    checked = run("check", *command(app)[1:])

    (finished,) = found.event("wrap.finished")
    assert (0, "warning", 3) == (found.code, finished["level"], checked.code), found
    assert "the watched files changed while it ran" in finished["reason"]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("address from a file", "run(connection)"),
        (
            "DDL before its row",
            "connection.execute('CREATE TABLE early (n int)'); run(connection)",
        ),
        ("no row at all", "connection.execute('CREATE TABLE early (n int)')"),
    ],
)
def test_command_with_an_address_of_its_own_is_found_out(
    run: Run,
    app: Path,
    database: servers.Database,
    kind: str,
    body: str,
) -> None:
    """With the net it is refused, or told as a change of the live database: never a success."""
    stubborn(app, database, body)
    (app / "versions/002.sql").write_text(GOOD)
    before = tables(database)

    found = run(*command(app))

    error = found.event("run.finished")[0]["error"]
    if "early" in body:
        assert (31, "wrap.changed_live") == (found.code, error["code"]), (kind, found)
        assert "table public.early" in error["message"]
        (made,) = found.event("backup.verified")
        assert error["hint"].endswith(f"; the backup {made['backup']} is from before it.")
        database.script("DROP TABLE early")
        looked = run("plan", "--rehearse", *command(app)[1:])
        assert (31, "wrap.changed_live") == (looked.code, looked.finished["error"]["code"]), looked
        assert looked.finished["error"]["hint"].endswith("Look at what is named.")  # it kept none
    else:
        assert (27, "wrap.not_redirected") == (found.code, error["code"]), (kind, found)
        assert before == tables(database)
    assert [] == found.event("wrap.started")


@pytest.mark.parametrize(
    ("rehearse", "where", "code"),
    [("auto", "local", 0), ("always", "local", 27), ("auto", "server", 27)],
)
def test_command_that_demands_tls_is_not_tried_on_a_server_without(  # noqa: PLR0913, PLR0917 -- fixtures
    run: Run,
    app: Path,
    database: servers.Database,
    local: dict[str, str | None],
    rehearse: str,
    where: str,
    code: int,
) -> None:
    """What its own settings say no variable takes away: that stops nobody who has TLS live.

    Beside the live database it fails as it would there.
    """
    live = f":{database.env()['PGPORT']}/{database.name}"
    demands = f"**({{}} if address().endswith({live!r}) else {{'sslmode': 'require'}})"
    text = TOOL.replace("address(), autocommit=True", f"address(), autocommit=True, {demands}")
    (app / "tool.py").write_text(text)
    (app / "versions/002.sql").write_text(GOOD)
    places: dict[str, str | None] = {"PREFLIGHT_REHEARSE_ON": where}

    found = run(*command(app), env=local | places | {"PREFLIGHT_REHEARSE": rehearse})

    assert code == found.code, found
    error = found.finished.get("error") or {"code": "", "message": ""}
    warned = [each["reason"] for each in found.event("rehearsal.skipped")]
    reason = error["message"] or warned[0]
    assert "server does not support SSL, but SSL was required" in reason
    assert ("PREFLIGHT_REHEARSE_ON=server" in reason) == (where == "local")
    codes = {"server": "wrap.rehearsal_failed", "always": "rehearsal.unavailable"}
    assert error["code"] == codes.get(where, codes.get(rehearse, ""))


def test_who_speaks_of_tls_and_was_on_the_copy_was_tried(
    run: Run, app: Path, local: dict[str, str | None]
) -> None:
    """Its failure is the command's: nothing goes on in earnest that broke on the copy."""
    (app / "versions/002.sql").write_text(GOOD)
    end = "sys.exit('server does not support SSL, but SSL was required')"
    (app / "tool.py").write_text(TOOL.replace("run(connection)\n", f"run(connection), {end}\n"))

    found = run(*command(app), env=local)

    error = found.finished["error"]
    assert (27, "wrap.rehearsal_failed") == (found.code, error["code"]), found
    assert error["message"].endswith(
        "exit code 1: server does not support SSL, but SSL was required"
    )
    assert "the TLS that it demands, PREFLIGHT_REHEARSE_ON=server" in error["hint"]


def test_other_database_of_the_server_is_told(
    run: Run,
    app: Path,
    create_database: CreateDatabase,
    database: servers.Database,
    environment: dict[str, str],
) -> None:
    """There is no copy of it: its address is named, and who is there; not a look at postgres."""
    other = create_database(database.server)
    environment["AUDIT_URL"] = environment["DATABASE_URL"].replace(database.name, other.name)
    (app / "tool.py").write_text(
        TOOL.replace(
            "        run(connection)\n",
            "        run(connection)\n"
            f"    looked, query = set(), {LOOKS!r}\n"
            "    url = os.environ['AUDIT_URL']\n"
            "    usual = psycopg.connect(url.rpartition('/')[0] + '/postgres')\n"
            "    with psycopg.connect(url, autocommit=True) as there:\n"
            "        there.execute('CREATE TABLE IF NOT EXISTS seen (n int)')\n"
            f"        while len(looked) < {LOOKED}:\n"
            "            looked |= set(there.execute(query).fetchall())\n",
        )
    )

    found = run(*command(app))

    assert 0 == found.code, found
    (redirected,) = found.event("wrap.redirected")
    assert (["AUDIT_URL"], "warning") == (redirected["not_led"], redirected["level"])
    told = [each for each in found.event("rehearsal.warned") if "session" in each["reason"]]
    assert [[f"database {other.name}"]] == [each["objects"] for each in told]


def test_base_backup_that_the_command_takes_is_left_alone(
    run: Run, app: Path, database: servers.Database
) -> None:
    """It reads the server's files and is in no database: not a session on the live one."""
    program = str(database.server.bin / "pg_basebackup")
    options = ["--pgdata=-", "--format=tar", "--wal-method=none", "--checkpoint=fast"]
    (app / "tool.py").write_text(
        TOOL.replace("import psycopg", "import psycopg, subprocess").replace(
            "        run(connection)\n",
            "        run(connection)\n"
            f"    taking = [{program!r}, *{options!r}, '--dbname=' + address()]\n"
            "    with subprocess.Popen(taking, stdout=subprocess.PIPE) as backup:\n"
            "        backup.stdout.read(1)\n"
            "        with psycopg.connect(address(), autocommit=True) as there:\n"
            f"            looked, query = set(), {LOOKS!r}\n"
            f"            while len(looked) < {LOOKED}:\n"
            "                looked |= set(there.execute(query).fetchall())\n"
            "        while backup.stdout.read(1 << 20):\n"
            "            pass\n"
            "    sys.exit(backup.returncode)\n",
        )
    )

    found = run(*command(app))

    assert 0 == found.code, found
    assert "server" == found.event("wrap.redirected")[0]["where"]
    assert [] == found.event("rehearsal.warned")


@pytest.mark.parametrize("then", ["", "connection.execute('SELECT pg_sleep(60)')"])
def test_rows_that_it_may_have_written_there_are_not_denied(
    run: Run, app: Path, database: servers.Database, then: str
) -> None:
    """No object shows them. Whose session was seen there is 31: nobody can tell what it wrote."""
    stubborn(app, database, f"connection.execute(\"UPDATE items SET name = 'x'\"); {then}")
    (app / "versions/002.sql").write_text(GOOD)

    found = run(*command(app))

    error = found.event("run.finished")[0]["error"]
    assert ["x", "x"] == database.query("SELECT name FROM items")
    assert "was not changed" not in f"{error}"
    assert "nobody can tell" in error["hint"] or "rows or sequences, perhaps" in error["message"]
    if then:  # it stays until it is ended
        assert (31, "wrap.changed_live") == (found.code, error["code"]), found


@pytest.fixture
def two_roles(
    app: Path, database: servers.Database, environment: dict[str, str]
) -> Iterator[dict[str, str]]:
    """Give the gate and the tool a role each, of which neither is a member of the other."""
    del app  # was there before: its tables change hands
    env = database.env()
    names = {"gate": f"gate_of_{database.name}", "tool": f"tool_of_{database.name}"}
    gate, tool = names["gate"], names["tool"]
    database.script(
        f"CREATE ROLE {gate} LOGIN CREATEDB PASSWORD '{gate}'; GRANT {gate} TO CURRENT_USER;"
        f"CREATE ROLE {tool} LOGIN PASSWORD '{tool}';"
        f'ALTER DATABASE "{database.name}" OWNER TO {gate}; ALTER SCHEMA public OWNER TO {gate};'
        f"GRANT CREATE, USAGE ON SCHEMA public TO {tool}; ALTER TABLE items OWNER TO {gate};"
        f"ALTER TABLE schema_migrations OWNER TO {gate};"
        f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {tool}"
    )
    where = f"{env['PGHOST']}:{env['PGPORT']}/{database.name}"
    environment["DATABASE_URL"] = f"postgresql://{gate}:{gate}@{where}"
    try:
        yield {**names, "url": f"postgresql://{tool}:{tool}@{where}"}
    finally:
        database.script(
            f'ALTER DATABASE "{database.name}" OWNER TO CURRENT_USER;'
            f"REASSIGN OWNED BY {gate} TO CURRENT_USER; DROP OWNED BY {tool}, {gate};"
            f"DROP ROLE {gate}, {tool}"
        )


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("connection.execute(\"INSERT INTO schema_migrations VALUES ('x')\")", 27),
        (f"leave(address(), b'{HOLDS}', 0)", 31),  # ends by itself: what it left holds a table
    ],
)
def test_second_run_that_goes_to_the_live_database_is_found_out(
    run: Run, app: Path, database: servers.Database, body: str, code: int
) -> None:
    """It went to the copy once, then to the live database: refused, or nobody can tell what."""
    stubborn(app, database, f"{body} if os.path.exists('{app}/.later') else run(connection)")
    text = (app / "tool.py").read_text()
    later = f"if os.path.exists({str(app / '.later')!r}) else os.environ['DATABASE_URL']"
    text = text.replace('"address")).read()', f'"address")).read() {later}')
    text += f"    open({str(app / '.later')!r}, 'w').close()\n"
    (app / "tool.py").write_text(text)
    (app / "versions/002.sql").write_text(GOOD)

    with faults.through(database.server, faults.Fault()) as pooler:  # nobody knows its sessions
        (app / "address").write_text(database.conninfo(port=pooler.port))
        found = run(*command(app), env={"PREFLIGHT_LOCK_TIMEOUT_MS": "100"}, timeout=120)
        database.query(END_THE_SLEEPER)

    error = found.finished["error"]
    assert code == found.code, found
    said = "waits for the tool's history table" if code == 27 else "nobody can tell"
    assert said in error["message"]
    assert [] == found.event("wrap.started")


def test_session_that_may_not_be_ended_ends_the_command(
    run: Run, app: Path, database: servers.Database, two_roles: dict[str, str]
) -> None:
    """Who may see the command's sessions and not end them ends the command: 27, not 22."""
    database.script(f"GRANT pg_monitor TO {two_roles['gate']}")
    stubborn(app, database, "time.sleep(60)")
    (app / "address").write_text(two_roles["url"])

    found = run(*command(app))

    assert (27, "wrap.not_kept_off") == (found.code, found.finished["error"]["code"]), found
    assert "may not end" in found.finished["error"]["message"]
    assert [0] == database.query(
        "SELECT count(*)::int FROM pg_stat_activity"
        f" WHERE usename IN ('{two_roles['tool']}', '{two_roles['gate']}')"
    )


def test_session_that_may_not_be_ended_and_goes_on_is_31(
    run: Run, app: Path, database: servers.Database, two_roles: dict[str, str]
) -> None:
    """The server does not notice soon that its client is gone: what comes of it nobody knows."""
    database.script(f"GRANT pg_monitor TO {two_roles['gate']}")
    stubborn(app, database, "connection.execute('SELECT pg_sleep(30)')")
    (app / "address").write_text(two_roles["url"])
    try:
        found = run(*command(app))
    finally:
        database.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE usename = '{two_roles['tool']}'"
        )

    assert (31, "wrap.changed_live") == (found.code, found.finished["error"]["code"]), found
    assert "still at work" in found.finished["error"]["message"]


@pytest.mark.parametrize("where", ["local", "server"])
def test_commands_own_role_has_its_settings_on_the_copy(  # noqa: PLR0913, PLR0917 -- fixtures
    run: Run,
    app: Path,
    database: servers.Database,
    two_roles: dict[str, str],
    environment: dict[str, str],
    local: dict[str, str | None],
    where: str,
) -> None:
    """Those that it has everywhere, and those that it has in this database.

    One that the gate may not give it is said, by its name alone.
    """
    role = f"ALTER ROLE {two_roles['tool']}"
    here = f'IN DATABASE "{database.name}" SET'
    database.script(f"{role} SET work_mem = '7MB'; {role} {here} search_path = shop, public")
    asks = "print(*connection.execute('SHOW work_mem').fetchone(),"
    asks += " *connection.execute('SHOW search_path').fetchone(), flush=True)"
    text = TOOL.replace("        run(connection)\n", f"        {asks}\n")
    (app / "tool.py").write_text(text.replace('["DATABASE_URL"]', '["APP_URL"]'))
    environment["APP_URL"] = two_roles["url"]
    if where == "server":
        database.script(f"{role} {here} app.key = 'hidden'; {role} SUPERUSER")
        refused = run(*command(app))
        database.script(f"{role} NOSUPERUSER; ALTER ROLE {two_roles['gate']} SUPERUSER")
        warned = [each["reason"] for each in refused.event("rehearsal.warned")]
        assert 2 == len(warned), refused
        assert f"role {two_roles['tool']} cannot have its setting app.key: " in warned[1]
        assert "hidden" not in refused.stdout

    found = run(*command(app, "--always"), env=local if where == "local" else {})

    assert 0 == found.code, found
    said = [each["text"] for each in found.event("wrap.said")]
    assert ["7MB shop, public"] * 3 == [text for text in said if "MB" in text]
    assert [] == found.event("rehearsal.warned")


@pytest.mark.parametrize("given", ["passfile", "argument", "option"])
def test_commands_own_password_is_its_own_beside_the_live_database(  # noqa: PLR0913, PLR0917 -- fixtures
    run: Run,
    app: Path,
    database: servers.Database,
    two_roles: dict[str, str],
    environment: dict[str, str],
    given: str,
) -> None:
    """The gate's, whose URL alone has it, does not go before it."""
    (app / "tool.py").write_text(TOOL.replace('["DATABASE_URL"]', '["APP_URL"]'))
    (app / "versions/002.sql").write_text("INSERT INTO items VALUES (3, 'c')")
    create = "CREATE TABLE IF NOT EXISTS schema_migrations (version text PRIMARY KEY)"
    (app / "tool.py").write_text((app / "tool.py").read_text().replace(create, "SELECT 1"))
    tool = two_roles["tool"]
    environment["APP_URL"] = two_roles["url"].replace(f":{tool}@", "@")
    (app / "pass").write_text(f"*:*:{database.name}:{tool}:{tool}\n")
    (app / "pass").chmod(0o600)
    if given != "argument":
        environment["PGPASSFILE"] = str(app / "pass")
    before, after = command(app)[:-2], command(app)[-2:]
    if given == "option":
        del environment["APP_URL"]
        env, psql = database.env(), str(servers.client_bin(18) / "psql")
        after = [psql, "-h", env["PGHOST"], "-p", env["PGPORT"], "-U", tool, database.name]
        after += ["-c", "INSERT INTO items VALUES (3, 'c') ON CONFLICT DO NOTHING"]
    own = ["env", f"PGPASSWORD={tool}"] if given == "argument" else []

    found = run(*before, *own, *after)

    assert 0 == found.code, found
    assert found.event("wrap.matched")


BY_OPTIONS = """
import sys, psycopg
from urllib.parse import parse_qsl
said = dict(each[1:].split("=", 1) for each in sys.argv[1:])
url, _, more = said.pop("url").removeprefix("jdbc:").partition("?")
with psycopg.connect(url, **(said | dict(parse_qsl(more)))) as connection:  # as pgjdbc: it wins
    connection.execute("ALTER TABLE items ADD COLUMN price int")
"""


def test_role_that_an_option_names_is_tried(
    run: Run, app: Path, two_roles: dict[str, str], local: dict[str, str | None]
) -> None:
    """As Flyway has it: what that role may not, it may not on the copy either."""
    (app / "tool.py").write_text(BY_OPTIONS)
    url, tool = two_roles["url"].rpartition("@")[2], two_roles["tool"]
    told = [f"-url=jdbc:postgresql://{url}", f"-user={tool}", f"-password={tool}"]

    found = run(*command(app), *told, env=local)

    assert (27, "wrap.rehearsal_failed") == (found.code, found.finished["error"]["code"]), found
    assert "must be owner of table items" in found.finished["error"]["context"]


def test_options_and_variables_of_psql_are_led(
    run: Run, app: Path, database: servers.Database, environment: dict[str, str]
) -> None:
    """Letters in one word as psql reads them; of its variables the value and nothing more.

    Also behind a launcher with words of its own.
    """
    (app / "x.sql").write_text(
        'GRANT CONNECT ON DATABASE :"dbname" TO PUBLIC;'
        "ALTER TABLE items ADD COLUMN IF NOT EXISTS price int"
    )
    env = database.env()
    environment["PGPASSWORD"] = env["PGPASSWORD"]
    at = [f"-qXh{env['PGHOST']}", "-p", env["PGPORT"], "-U", env["PGUSER"], "-qXd", database.name]
    told = ["-v", "ON_ERROR_STOP=1", "-v", f"dbname={database.name}", "-f", str(app / "x.sql")]
    psql = ["timeout", "-k", "5", "60", str(servers.client_bin(18) / "psql")]

    found = run("wrap", "--always", "--", *psql, *at, *told)

    assert 0 == found.code, found
    assert found.event("wrap.matched")
    assert ["argument 12", "argument 16"] == found.event("wrap.redirected")[0]["variables"][1:]
    assert [] == found.event("rehearsal.warned")


@pytest.mark.usefixtures("two_roles")
def test_sessions_that_cannot_be_seen_are_said(run: Run, app: Path) -> None:
    """Without pg_read_all_stats nobody sees whence another role's session comes."""
    (app / "versions/002.sql").write_text(GOOD)

    found = run(*command(app))

    assert 0 == found.code, found
    for name in ("wrap.redirected", "wrap.finished"):
        assert ["sessions of other roles (GRANT pg_read_all_stats shows them)"] == [
            each.get("unseen") for each in found.event(name)
        ], name


def test_session_that_cannot_be_seen_and_stays_is_31(
    run: Run, app: Path, database: servers.Database, two_roles: dict[str, str]
) -> None:
    """The command's or not: while it is at work nobody says that nothing stays."""
    only_live = f"""
        if connection.info.dbname == {database.name!r} and '{two_roles["tool"]}' not in address():
            import subprocess
            other = psycopg.connect({two_roles["url"]!r}, autocommit=True)
            other.pgconn.send_query(b"SELECT pg_sleep(30)")
            sys.exit(3)
"""
    text = TOOL.replace("        run(connection)\n", only_live)
    (app / "tool.py").write_text(text)
    try:
        found = run(*command(app))
    finally:
        database.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE usename = '{two_roles['tool']}'"
        )

    assert (31, "wrap.partial") == (found.code, found.finished["error"]["code"]), found
    assert re.search(r"may be its own, .* \(pid \d+\)", found.finished["error"]["message"])


def leaves_behind(
    app: Path, database: servers.Database, url: str, statement: str, looks: int = 0
) -> None:
    """Have the app's migrator begin a statement on the live database, by a URL, and die.

    After so many looks of ours at its own session.
    """
    only_live = f"""
        if connection.info.dbname == {database.name!r}:
            at = set()
            while len(at) < {looks}:
                at |= set(connection.execute(
                    "SELECT query_start FROM pg_stat_activity "
                    "WHERE pid <> pg_backend_pid() AND query LIKE '%a.client_port%'"))
            leave({url!r}, {statement.encode()!r}, 3)
"""
    (app / "tool.py").write_text(TOOL.replace("        run(connection)\n", only_live))


def test_transaction_that_is_at_work_has_not_come_to_naught(
    app: Path, database: servers.Database
) -> None:
    """Its number is above all that a snapshot knows of; ours, and one from before, do not count.

    Nor does one that is named.
    """
    del app
    config = Config.from_env({**database.env()}, Path("/nowhere"), "run")
    with (
        sessions.connect(config) as session,
        database.server.connect(database.name) as early,
        early.transaction(),
    ):
        early.execute("INSERT INTO items VALUES (8, 'x')")
        session.look()
        before = written.look(session, None)
        quiet = [written.aborted(session, before), written.aborted(session, before)]
        with (
            database.server.connect(database.name) as other,
            other.transaction(force_rollback=True),
        ):
            other.execute("INSERT INTO items VALUES (9, 'x')")
            busy = written.aborted(session, before)
        ended = written.aborted(session, before)
        commits = "INSERT INTO items VALUES (9, 'x') RETURNING pg_current_xact_id()::text::int8"
        numbers = database.query(commits)
        named = [written.aborted(session, before, each) for each in ([], [1], [1, *numbers])]

    assert ([True, True], False, True) == (quiet, busy, ended)
    assert [False, False, True] == named


def test_statement_that_goes_on_there_after_the_trial_may_change_the_live_database_yet(
    run: Run, app: Path, database: servers.Database
) -> None:
    """It has no number yet, and its session shows no port of the command's: nobody can tell."""
    statement = b"INSERT INTO items SELECT 9, 'x' FROM (SELECT pg_sleep(30)) s"
    with faults.through(database.server, faults.Fault()) as pooler:
        url = database.conninfo(port=pooler.port)
        only_copy = f"""
        if connection.info.dbname != {database.name!r}:
            leave({url!r}, {statement!r}, 3)
"""
        (app / "tool.py").write_text(TOOL.replace("        run(connection)\n", only_copy))
        found = run(*command(app))
        database.query(END_THE_SLEEPER)

    error = found.finished["error"]
    assert (27, "wrap.rehearsal_failed") == (found.code, error["code"]), found
    assert "a session that came meanwhile is still at work" in error["hint"]


@pytest.mark.parametrize("looks", [0, 3])
def test_statement_that_goes_on_by_another_way_is_31(
    run: Run, app: Path, database: servers.Database, looks: int
) -> None:
    """A pooler's session shows no port of the command's, although another of its sessions does."""
    statement = "INSERT INTO items SELECT 9, 'x' FROM (SELECT pg_sleep(30)) s"  # has no number yet
    with faults.through(database.server, faults.Fault()) as pooler:
        leaves_behind(app, database, database.conninfo(port=pooler.port), statement, looks)
        found = run(*command(app))
        database.query(END_THE_SLEEPER)

    assert (31, "wrap.partial") == (found.code, found.finished["error"]["code"]), found
    assert "still at work" in found.finished["error"]["message"]


def test_command_that_died_and_still_holds_what_we_look_at_is_31(
    run: Run, app: Path, database: servers.Database
) -> None:
    """What it has changed cannot be read: nobody can tell, and nothing was rolled back."""
    leaves_behind(app, database, database.conninfo(), HOLDS)
    found = run(*command(app), env={"PREFLIGHT_LOCK_TIMEOUT_MS": "100"})
    database.query(END_THE_SLEEPER)

    error = found.finished["error"]
    assert (31, "wrap.partial") == (found.code, error["code"]), found
    assert "nobody can tell" in error["message"]
    assert "failed" in database.query("SELECT event FROM preflight.journal")


def leaves_a_process(app: Path, statement: str) -> None:
    """Have the app's migrator end well while a process of its own is at a statement."""
    other = f"leave(address(), {statement.encode()!r}, 0)"
    text = TOOL.replace("    os._exit(code)", "    time.sleep(60)").replace(
        "        run(connection)\n", f"        os.fork() or {other}\n"
    )
    at_work = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    waits = f"    while psycopg.connect(address()).execute({at_work!r}).fetchone() == (0,): pass\n"
    (app / "tool.py").write_text(f"{text}{waits}    os._exit(0)\n")


@pytest.mark.parametrize("rehearse", ["auto", "off"])
def test_session_that_is_left_at_work_is_no_success(
    run: Run, app: Path, database: servers.Database, rehearse: str
) -> None:
    """Its process is ended, and what it was at with it: 27 on the copy, 30 in earnest."""
    leaves_a_process(app, HOLDS)
    before = tables(database)

    found = run(*command(app), env={"PREFLIGHT_REHEARSE": rehearse})
    checked = run("check", *command(app)[1:])

    code = {"auto": (27, "wrap.rehearsal_failed"), "off": (30, "wrap.failed")}[rehearse]
    assert (*code, 3) == (found.code, found.finished["error"]["code"], checked.code), found
    said = "ended with exit code 0 and left a session at work, which was ended with what it was at"
    assert said in found.finished["error"]["message"]
    assert before == tables(database)
    assert [0] == database.query(
        "SELECT count(*)::int FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    )


def test_timeout_ends_what_the_command_is_at(
    run: Run, app: Path, database: servers.Database
) -> None:
    """Its lock on the live database goes with it: 30, and the next start can go on."""
    (app / "versions/002.sql").write_text(HOLDS)

    found = run(*command(app, "--timeout", "1"), env={"PREFLIGHT_REHEARSE": "off"})
    tried = run(*command(app, "--timeout", "1"))

    assert (27, "wrap.rehearsal_failed") == (tried.code, tried.finished["error"]["code"]), tried
    for each in (found, tried):  # an entrypoint that goes on to be the app
        assert "rap only what migrates" in each.finished["error"]["hint"]
        assert "correct the data" not in each.finished["error"]["hint"]
    error = found.finished["error"]
    assert (30, "wrap.failed") == (found.code, error["code"]), found
    assert re.search(r"was ended after [1-9]\d* s \(--timeout\)", error["message"]), error
    assert [0] == database.query(
        "SELECT count(*)::int FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    )


def test_session_that_is_left_and_only_reads_is_ended_and_no_failure(
    run: Run, app: Path, database: servers.Database
) -> None:
    """Who watches in the background, or stands ready there, loses nothing."""
    leaves_a_process(app, "SELECT count(*), pg_sleep(60) FROM items")

    found = run(*command(app), env={"PREFLIGHT_REHEARSE": "off"})

    assert 0 == found.code, found
    assert [1] == [each["processes"] for each in found.event("wrap.left_behind")]
    assert [0] == database.query(
        "SELECT count(*)::int FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    )


def leaves_a_worker(app: Path, when_asked: str) -> None:
    """Have the app's migrator leave a worker, once: one that waits to be asked to end.

    One of its sessions has written, another one only holds a table.
    """
    body = f"""
        other, holder = (psycopg.connect(address()) for _ in "xy")
        holder.execute("LOCK TABLE items IN SHARE UPDATE EXCLUSIVE MODE")
        if not other.execute("SELECT to_regclass('worker')").fetchone()[0]:
            other.execute("CREATE TABLE worker (n int)")
            if os.fork() == 0:
                {when_asked}
                os._exit(0)
        os._exit(0)
"""
    text = TOOL.replace("import json,", "import json, signal,")
    text = text.replace("        run(connection)\n", f"        run(connection){body}")
    (app / "tool.py").write_text(text)


ASKED = "signal.sigwait([signal.SIGTERM])"
INSERTS_LATER = (
    "other.commit(); other.pgconn.send_query(b'INSERT INTO items SELECT 9 FROM pg_sleep(60)');"
    " other.pgconn.flush()"
)
BLOCKED = "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])"


def test_worker_that_commits_when_it_is_asked_to_end_is_no_failure(run: Run, app: Path) -> None:
    """Nothing of it is cut off, on the copy and in earnest; nor a lock of who wrote nothing."""
    leaves_a_worker(app, f"{BLOCKED}; {ASKED}; other.commit()")

    found = run(*command(app))

    assert 0 == found.code, found
    assert 2 == len(found.event("wrap.left_behind"))
    assert found.event("wrap.matched")


@pytest.mark.parametrize(
    "when_asked",
    [
        "signal.pause()",
        f"{BLOCKED}; {INSERTS_LATER}; {ASKED}; other.cancel(); other.close()",
    ],
)
def test_worker_that_is_cut_off_and_gone_is_no_success(
    run: Run, app: Path, when_asked: str
) -> None:
    """Its server's process has ended with it: what it was at is lost all the same."""
    leaves_a_worker(app, when_asked)

    found = run(*command(app), env={"PREFLIGHT_REHEARSE": "off"})

    assert found.code in {30, 31}, found
    assert "left a session at work" in found.finished["error"]["message"]


@pytest.mark.parametrize(
    ("env", "way"),
    [
        ({"PREFLIGHT_SCHEMAS": "public"}, "makes a database beside it"),
        ({"PREFLIGHT_BACKUP": "command"}, "says how to come back"),
    ],
)
def test_way_back_is_one_that_there_is(
    run: Run, app: Path, tmp_path: Path, env: dict[str, str], way: str
) -> None:
    """Neither some schemas nor a point that others keep are swapped in."""
    (app / "versions/002.sql").write_text(GOOD)
    (app / "tool.py").write_text(f"{TOOL}    sys.exit(3)\n")
    snapshot = tmp_path / "snapshot.sh"
    snapshot.write_text(
        "#!/bin/sh\nd=$(date -u +%Y-%m-%dT%H:%M:%S+00:00)\n"
        """printf '{"backup": "s1", "taken_at": "%s", "restore": "aws it"}' "$d"\n"""
    )
    snapshot.chmod(0o755)
    off = {"PREFLIGHT_REHEARSE": "off"}
    off |= {"PREFLIGHT_BACKUP_COMMAND": str(snapshot)} if "PREFLIGHT_BACKUP" in env else {}
    found = run(*command(app), env=env | off)

    error = found.finished["error"]
    assert (31, "wrap.partial") == (found.code, error["code"]), found
    assert way in error["hint"]
    assert "--swap" not in error["hint"]


def test_stop_after_the_command_has_ended_says_that_it_stays(
    start: Start, app: Path, tmp_path: Path, database: servers.Database
) -> None:
    """What it has committed is not rolled back because we are stopped while we look at it."""
    (app / "versions/002.sql").write_text(GOOD)
    check = tmp_path / "check.sql"
    check.write_text(
        "SELECT 's' AS suite, 'c' AS \"check\", true AS ok FROM pg_sleep("
        f"CASE WHEN current_database() = '{database.name}' THEN 60 ELSE 0 END)"
    )
    running = start(*command(app, "--verify", str(check)))
    running.wait_for_event("wrap.matched")
    sleeping = "SELECT count(*)::int FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    faults.until(lambda: [1] == database.query(sleeping), "the check is asked")
    running.signal(signal.SIGTERM)
    found = running.wait()

    assert 143 == found.code, found
    assert "what the command has committed stays" in found.finished["error"]["message"]


def test_loss_of_our_connection_after_the_command_says_that_it_is_not_recorded(
    run: Run, app: Path, tmp_path: Path, database: servers.Database
) -> None:
    """It ended well, and what it committed stays; that it has run is told nowhere: 13."""
    (app / "versions/002.sql").write_text(GOOD)
    check = tmp_path / "check.sql"
    check.write_text(
        "SELECT 's' AS suite, 'c' AS \"check\", CASE WHEN current_database() = "
        f"'{database.name}' THEN pg_terminate_backend(pg_backend_pid()) ELSE true END AS ok"
    )
    found = run(*command(app, "--verify", str(check)))

    assert (13, "connection.lost") == (found.code, found.finished["error"]["code"]), found
    assert "is not recorded" in found.finished["error"]["message"]
    assert "public.items.price" in " ".join(f"public.{each}" for each in tables(database))


@pytest.mark.parametrize("kept_off", ["net", "wall"])
def test_command_that_dies_before_it_connects_says_why_itself(
    run: Run, app: Path, local: dict[str, str | None], kept_off: str
) -> None:
    """A syntax error is 27 with its last lines, and no riddle about addresses."""
    (app / "tool.py").write_text("import no_such_module\n")
    env = (local if kept_off == "wall" else {}) | {"WHERE": "nowhere"}

    found = run(*command(app, "--url-variable", "WHERE"), env=env)

    error = found.finished["error"]
    assert (27, "wrap.rehearsal_failed") == (found.code, error["code"]), found
    assert "No module named 'no_such_module'" in error["message"]
    assert "Traceback" in error["context"]
    assert "The live database was not changed" in error["hint"]
    assert "(not led: WHERE;" in error["hint"]


def test_sequence_that_went_on_is_written_too(
    run: Run, app: Path, database: servers.Database
) -> None:
    """No rollback takes back nextval and setval: 31 that names them."""
    database.script("CREATE SEQUENCE s; CREATE SEQUENCE t; SELECT setval('t', 7)")
    fails = f"SELECT 1 / (current_database() <> '{database.name}')::int"
    (app / "versions/002.sql").write_text(f"SELECT nextval('s'), setval('t', 1); {fails}")

    found = run(*command(app))

    assert (31, "wrap.partial") == (found.code, found.finished["error"]["code"]), found
    assert "sequence public.s, sequence public.t" in found.finished["error"]["message"]


def test_history_that_is_not_there_is_said_each_time(
    run: Run, app: Path, database: servers.Database
) -> None:
    """A typing error in --history is no silence from the second start on."""
    options = ("--history", "schema_migration", "--trust-environment")
    said = "there is no table schema_migration (--history)"

    first, second = run(*command(app, *options)), run(*command(app, *options))
    checked = run("check", *command(app, *options)[1:])
    waited = run("wait", "--schema", *command(app, *options)[1:])

    assert (0, 0, 0, 0) == (first.code, second.code, checked.code, waited.code), second
    assert said in first.event("wrap.finished")[0]["reason"]
    assert [] == second.event("wrap.started")
    for each in (second, checked, waited):
        assert said in str(each.event("config.warned")), each
    database.script("ALTER TABLE schema_migrations RENAME TO schema_migration")
    found = run(*command(app, *options))
    assert [] == found.event("config.warned"), found


def test_row_of_a_history_counts_with_all_its_columns(
    database: servers.Database, environment: dict[str, str]
) -> None:
    """Also where one of them has the name that our query gives the table."""
    database.script("CREATE TABLE done (t int, name text)")
    database.script("INSERT INTO done VALUES (NULL, 'b'), (1, 'a')")
    with sessions.connect(Config.from_env(environment, Path("/"), "run")) as session:
        found = tools.rows(session, tools.history(session, "done"))

    assert [f"public.done:{hashlib.sha256(b'(,b)' + bytes([10]) + b'(1,a)').hexdigest()}"] == found


def test_second_run_on_the_copy_may_not_reach_the_live_database_either(
    run: Run, app: Path, database: servers.Database
) -> None:
    """What it changes there, when it finds nothing left to do on the copy, is 31, too."""
    stubborn(app, database, "")
    live = "psycopg.connect(open(os.path.dirname(os.path.abspath(__file__)) + '/address').read())"
    text = TOOL.replace(
        "        run(connection)\n",
        '        if not connection.execute("SELECT 1 FROM schema_migrations WHERE version = '
        "'002.sql'\").fetchone():\n            run(connection)\n        else:\n"
        f"            with {live} as other:\n"
        "                other.execute('CREATE TABLE late (n int)')\n",
    )
    (app / "tool.py").write_text(text)
    (app / "versions/002.sql").write_text(GOOD)

    found = run(*command(app))

    error = found.event("run.finished")[0]["error"]
    assert (31, "wrap.changed_live") == (found.code, error["code"]), found
    assert "table public.late" in error["message"]
    assert [] == found.event("wrap.started")


def test_second_run_may_note_itself_in_the_tools_own_tables(
    run: Run, app: Path, database: servers.Database
) -> None:
    """A log of each run and a lock that is a row are no change; an app's rows are, and named."""
    database.script(
        "CREATE TABLE _yoyo_log (n int); CREATE TABLE held (n int); CREATE TABLE audit (n int)"
    )
    each = (
        "connection.execute('INSERT INTO _yoyo_log VALUES (1)');"
        " connection.execute('INSERT INTO held VALUES (1)');"
        " connection.execute('DELETE FROM held')"
    )
    (app / "tool.py").write_text(
        TOOL.replace("        run(connection)\n", f"        run(connection); {each}\n")
    )
    quiet = run(*command(app))
    (app / "tool.py").write_text(
        TOOL.replace(
            "        run(connection)\n",
            f"        {each}; connection.execute('INSERT INTO audit VALUES (1)')\n",
        )
    )
    told = run(*command(app))

    assert (0, 0) == (quiet.code, told.code), quiet
    assert ["unchanged"] == [each["second_run"] for each in quiet.event("wrap.rehearsed")], quiet
    (warned,) = told.event("rehearsal.warned")
    assert ["rows of table public.audit"] == warned["objects"]


def test_what_was_not_looked_at_is_said(run: Run, app: Path) -> None:
    """A history table that nobody has, and --strict where nothing was rehearsed."""
    (app / "versions/002.sql").write_text(GOOD)
    options = ("--history", "schema_migration", "--strict")

    found = run(*command(app, *options), env={"PREFLIGHT_REHEARSE": "off"})

    assert 0 == found.code, found
    (finished,) = found.event("wrap.finished")
    assert "warning" == finished["level"]
    assert "no table schema_migration (--history)" in finished["reason"]
    assert "--strict had nothing to compare" in finished["reason"]


def test_schema_that_a_url_says_for_the_command_is_the_commands(
    run: Run, app: Path, database: servers.Database, environment: dict[str, str]
) -> None:
    """Prisma's `?schema=`: the gate leaves it out, the command has it, and there its history is."""
    database.script(
        "CREATE SCHEMA shop; ALTER TABLE items SET SCHEMA shop; CREATE TABLE shop.schema_migrations"
        " AS TABLE schema_migrations"  # and the other one is somebody else's
    )
    (app / "versions/002.sql").write_text("ALTER TABLE items ADD COLUMN price int")
    environment["DATABASE_URL"] += "?schema=shop"
    text = TOOL.replace(
        'return os.environ["DATABASE_URL"]',
        'url, _, path = os.environ["DATABASE_URL"].partition("?schema=")\n'
        '    return url + "?options=-csearch_path%3D" + path',
    )
    (app / "tool.py").write_text(text)

    found = run(*command(app))
    database.script("INSERT INTO schema_migrations VALUES ('by hand')")
    current = run("check", *command(app)[1:])
    database.script("INSERT INTO shop.schema_migrations VALUES ('by hand')")
    pending = run("check", *command(app)[1:])

    assert (0, 0, 3) == (found.code, current.code, pending.code), (found, current)
    assert found.event("wrap.rehearsed")
    assert "DATABASE_URL: schema: not" in found.event("config.warned")[0]["warning"]
    assert [2, 1] == [
        *database.query(
            "SELECT count(*)::int FROM shop.schema_migrations WHERE version <> 'by hand'"
        ),
        *database.query("SELECT count(*)::int FROM schema_migrations WHERE version <> 'by hand'"),
    ]
    assert 20 == run("check").code


@pytest.mark.skipif(not wall.available(), reason="this kernel has no TCP rules of Landlock")
@pytest.mark.parametrize(
    "body", ["run(connection)", "connection.execute('CREATE TABLE early (n int)')"]
)
def test_wall_keeps_a_command_off_the_live_database(  # noqa: PLR0913, PLR0917 -- fixtures
    run: Run,
    app: Path,
    database: servers.Database,
    body: str,
    local: dict[str, str | None],
    environment: dict[str, str],
) -> None:
    """It cannot connect to anything but the copy, so the live database is never touched.

    What leads to another database of its server is named: that may be where it wanted to go.
    """
    stubborn(app, database, body)
    local["AUDIT_URL"] = environment["DATABASE_URL"].rpartition("/")[0] + "/audit"
    (app / "versions/002.sql").write_text(GOOD)
    before = tables(database)

    found = run(*command(app), env=local)

    error = found.event("run.finished")[0]["error"]
    assert (27, "wrap.not_redirected") == (found.code, error["code"]), found
    assert "(AUDIT_URL)" in error["hint"]
    assert error["hint"].index("Put what that says into the environment") < error["hint"].index(
        "--"
    )
    assert before == tables(database)


@pytest.mark.skipif(not wall.available(), reason="this kernel has no TCP rules of Landlock")
@pytest.mark.parametrize("named", [True, False])
def test_what_else_a_command_needs_is_asked_behind_the_wall(
    run: Run,
    app: Path,
    local: dict[str, str | None],
    environment: dict[str, str],
    named: bool,  # noqa: FBT001
) -> None:
    """It fails for that, not for its data: its line and the variable are told, and what helps."""
    url = environment["DATABASE_URL"].rpartition("/")[0] + "/queue"
    there = 'os.environ["QUEUE_URL"]' if named else repr(url)
    local["QUEUE_URL"] = url if named else None
    text = TOOL.replace("run(connection)\n", f"run(connection)\n        psycopg.connect({there})\n")
    (app / "tool.py").write_text(text)

    found = run(*command(app), env=local)

    error = found.finished["error"]
    assert (27, "wrap.rehearsal_failed") == (found.code, error["code"]), found
    assert re.search(r"exit code 1: .*[Pp]ermission denied", error["message"])
    assert named == ("(QUEUE_URL)" in error["hint"])
    assert "PREFLIGHT_REHEARSE_ON=server" in error["hint"]
    assert "correct the data" not in error["hint"]


@pytest.mark.skipif(not wall.available(), reason="this kernel has no TCP rules of Landlock")
@pytest.mark.parametrize("ends", ["ERROR", "never"])
def test_refusal_that_a_command_lived_through_is_told_behind_what_ended_it(
    run: Run, app: Path, local: dict[str, str | None], ends: str
) -> None:
    """A cache that it does without has nothing to do with its data, nor with its end."""
    then = "raise SystemExit('ERROR:  wrong')" if ends == "ERROR" else "time.sleep(60)"
    refused = "cache: connect: Permission denied"
    text = f"run(connection)\n        print({refused!r}, flush=True)\n        {then}\n"
    (app / "tool.py").write_text(TOOL.replace("run(connection)\n", text))

    found = run(*command(app, "--timeout", "60" if ends == "ERROR" else "2"), env=local)

    error = found.finished["error"]
    assert (27, "wrap.rehearsal_failed") == (found.code, error["code"]), found
    if ends == "ERROR":
        assert f": ERROR:  wrong; it also said: {refused}" in error["message"]
        assert "correct the data" in error["hint"]
        assert "the copy alone" not in error["hint"]
    else:
        hint = error["hint"]
        assert -1 < hint.index("wrap only what migrates") < hint.index("the copy alone")


def test_command_that_waits_for_the_net_is_asked_what_it_did_before(
    run: Run, app: Path, database: servers.Database
) -> None:
    """Behind a pooler nobody knows its sessions: what it has committed until then is 31."""
    stubborn(
        app,
        database,
        "connection.execute('CREATE TABLE early (n int)');"
        " connection.execute(\"INSERT INTO schema_migrations VALUES ('early')\")",
    )
    (app / "versions/002.sql").write_text(GOOD)
    with faults.through(database.server, faults.Fault()) as pooler:
        (app / "address").write_text(database.conninfo(port=pooler.port))
        found = run(*command(app), timeout=120)

    error = found.event("run.finished")[0]["error"]
    assert (31, "wrap.changed_live") == (found.code, error["code"]), found
    assert "table public.early" in error["message"]
    assert [] == found.event("wrap.started")


@pytest.mark.skipif(not wall.available(), reason="this kernel has no TCP rules of Landlock")
def test_command_that_was_nowhere_may_have_gone_around_the_wall(
    start: Start, app: Path, database: servers.Database, local: dict[str, str | None]
) -> None:
    """A Unix socket is not closed: a change of the live database meanwhile is not called none."""
    (app / "tool.py").write_text(
        "import os, time\nprint('ready', flush=True)\n"
        f"while not os.path.exists({str(app / '.go')!r}):\n    time.sleep(0.02)\n"
    )
    running = start(*command(app), env=local)
    running.wait_for_event("wrap.said", 120)
    database.script("CREATE TABLE around (n int)")
    (app / ".go").touch()
    found = running.wait()

    error = found.event("run.finished")[0]["error"]
    assert (31, "wrap.changed_live") == (found.code, error["code"]), found
    assert "table public.around" in error["message"]


def test_nothing_is_started_where_nothing_keeps_it_off(
    run: Run, app: Path, database: servers.Database
) -> None:
    """The first run of a tool without a history table, beside the live database: 27 before it."""
    database.script("DROP TABLE schema_migrations, items")

    refused = run(*command(app))
    trusted = run(*command(app, "--trust-environment"))

    assert 27 == refused.code, refused
    assert "wrap.not_kept_off" == refused.event("run.finished")[0]["error"]["code"]
    assert [] == refused.event("wrap.said")
    assert 0 == trusted.code, trusted
    assert ["trust"] == [each["kept_off"] for each in trusted.event("wrap.redirected")]
    assert 0 == run(*command(app)).code


def test_command_without_an_address_is_not_started(
    run: Run,
    app: Path,
    environment: dict[str, str],
    database: servers.Database,
) -> None:
    """Where no variable names the live database there is nothing to lead."""
    del environment["DATABASE_URL"]
    env = database.env()
    environment |= {name: env[name] for name in ("PGHOST", "PGPORT", "PGPASSWORD")}
    environment["PGUSER"] = env["PGUSER"]
    database.script("CREATE DATABASE unicorn_db")
    try:
        with database.server.connect("unicorn_db") as connection:
            connection.execute("CREATE TABLE schema_migrations (version text)")
        found = run(*command(app, "--url-variable", "WHERE"), env={"WHERE": "nowhere"})
    finally:
        database.script("DROP DATABASE unicorn_db WITH (FORCE)")

    assert (27, "wrap.no_address") == (
        found.code,
        found.event("run.finished")[0]["error"]["code"],
    ), found
    assert "(WHERE)" in found.finished["error"]["message"]
    assert [] == found.event("wrap.said")


def test_failure_in_earnest_says_whether_anything_stays(
    run: Run, app: Path, database: servers.Database
) -> None:
    """30 when all it did was rolled back; 31 that names what it changed, and why it failed.

    An INVALID index that it does not speak of is no cause.
    """
    only_live = f"SELECT 1 / (current_database() <> '{database.name}')::int"
    (app / "versions/002.sql").write_text(f"{GOOD}; {only_live}")
    database.script("CREATE INDEX unrelated ON items (name)")
    database.script(f"{SPOILS} WHERE indexrelid = 'unrelated'::regclass")
    wordy(app)

    clean = run(*command(app))
    (app / "versions/002.sql").write_text(GOOD)
    (app / "versions/003.sql").write_text(only_live)
    partial = run(*command(app))

    assert 30 == clean.code, clean
    assert "wrap.failed" == clean.event("run.finished")[0]["error"]["code"]
    assert 31 == partial.code, partial
    error = partial.event("run.finished")[0]["error"]
    assert "wrap.partial" == error["code"]
    assert "column public.items.price" in error["message"]
    assert "with exit code 1: error: division by zero {; " in clean.finished["error"]["message"]
    assert str(clean.event("backup.verified")[0]["backup"]) not in error["hint"]
    hints = [clean.finished["error"]["hint"], error["hint"]]
    assert [True, False] == ["what is different here?" in each for each in hints]
    assert not any("unrelated" in each for each in hints)
    assert ["failed", "failed"] == database.query(
        "SELECT event FROM preflight.journal WHERE event IN ('failed', 'wrapped') ORDER BY id"
    )


def test_invalid_index_is_named_by_the_run_that_leaves_it_and_by_those_after(
    run: Run, app: Path, database: servers.Database
) -> None:
    """No dump holds it, so the copy cannot tell that it is in the way.

    31 that names it as changed; then a warning before the trial and in the hint of the failure; in
    `wrap.finished` where a command passes over it.
    """
    builds = "CREATE UNIQUE INDEX CONCURRENTLY named ON items ((id * 0))"
    tool = app / "tool.py"
    tool.write_text(
        TOOL.replace("        run(connection)\n", f"        connection.execute({builds!r})\n")
    )
    drop = "DROP INDEX CONCURRENTLY public.named"
    index = "INVALID index public.named of public.items"

    left = run(*command(app), env={"PREFLIGHT_REHEARSE": "off"})
    database.query("DELETE FROM items WHERE id = 2")
    blocked = run(*command(app))
    tool.write_text(tool.read_text().replace("CONCURRENTLY", "CONCURRENTLY IF NOT EXISTS"))
    passed = run(*command(app))

    error = left.finished["error"]
    assert (31, "wrap.partial") == (left.code, error["code"]), left
    assert f"it has changed {index} made" in error["message"]
    assert drop in error["hint"]
    error = blocked.finished["error"]
    assert blocked.code in {30, 31}, blocked
    assert drop in error["hint"]
    assert "what is different here?" not in error["hint"]
    assert "made" not in error["message"]
    (warned,) = [each for each in blocked.event("rehearsal.warned") if drop in each["reason"]]
    assert [index] == warned["objects"]
    (finished,) = passed.event("wrap.finished")
    assert (0, "warning") == (passed.code, finished["level"]), passed
    assert drop in finished["reason"]


def test_index_that_somebody_is_at_is_not_called_left(
    two_roles: dict[str, str], database: servers.Database
) -> None:
    """It is INVALID until it is whole or gone, and who builds or drops it is no command of ours.

    Who may not see that says nothing.
    """
    config = Config.from_env({**database.env()}, Path("/nowhere"), "run")
    invalid = "SELECT count(*) FROM pg_index WHERE NOT indisvalid"
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    with (
        sessions.connect(config) as session,
        database.server.connect(database.name) as holds,
        database.server.connect(database.name) as builds,
    ):

        def while_at(statement: bytes, seen: LiteralString) -> list[catalog.Invalid]:
            builds.pgconn.send_query(statement)
            builds.pgconn.flush()
            while database.query(seen) == [0]:
                pass
            found = written.invalid(session)
            builds.cancel_safe()
            while builds.pgconn.get_result() is not None:
                pass
            return found

        before = written.look(session, None)
        builds.autocommit = True
        with holds.transaction(force_rollback=True):
            holds.execute("INSERT INTO items VALUES (9, 'x')")
            at_work = while_at(b"CREATE INDEX CONCURRENTLY named ON items (name)", invalid)
        given_up = written.invalid(session)
        with holds.transaction(force_rollback=True):
            holds.execute("INSERT INTO items VALUES (9, 'x')")
            at_work += while_at(b"DROP INDEX CONCURRENTLY named", waiting)
        name = two_roles["gate"]
        session.execute(f"REVOKE SELECT ON pg_catalog.pg_locks FROM PUBLIC; SET ROLE {name}")
        unseen = written.invalid(session)

    assert [] == unseen
    assert [True, True] == [each.busy for each in at_work]
    assert [] == written.left(before, at_work)
    assert ["public.named"] == [each.name for each in written.left(before, given_up)]


def test_invalid_index_of_a_partition_is_built_anew(database: servers.Database) -> None:
    """The server refuses to drop what the partitioned table's index requires."""
    database.script(
        "CREATE TABLE p (id int) PARTITION BY RANGE (id); CREATE INDEX ON p (id);"
        "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (9); CREATE INDEX other ON p1 (id)"
    )
    database.script(f"{SPOILS} WHERE indrelid = 'p1'::regclass")
    config = Config.from_env({**database.env()}, Path("/nowhere"), "run")
    with sessions.connect(config) as session:
        remedies = [each.remedy for each in written.invalid(session)]
        with database.server.connect(database.name) as other:
            for remedy in remedies:
                other.execute(remedy)
        after = written.invalid(session)

    there = ["DROP INDEX CONCURRENTLY public.other", "REINDEX INDEX CONCURRENTLY public.p1_id_idx"]
    assert (there, []) == (remedies, after)


@pytest.mark.parametrize(
    ("statement", "undo", "named"),
    [
        (
            "SELECT pg_create_physical_replication_slot('wrapped')",
            "SELECT pg_drop_replication_slot('wrapped')",
            "replication slot wrapped made",
        ),
        (
            "ALTER SYSTEM SET commit_delay = 7",
            "ALTER SYSTEM RESET commit_delay",
            "parameter commit_delay made",
        ),
    ],
    ids=["slot", "setting"],
)
def test_what_no_rollback_takes_back_is_31(
    run: Run, database: servers.Database, statement: str, undo: str, named: str
) -> None:
    """No transaction came through, no object is another one: something stays all the same."""
    env = {"PREFLIGHT_REHEARSE": "off", "PREFLIGHT_BACKUP": "off"}
    script = f'psycopg.connect(os.environ["DATABASE_URL"], autocommit=True).execute("{statement}")'
    script = f"import os, psycopg; {script}; raise SystemExit(3)"
    try:
        found = run("wrap", "--always", "--", sys.executable, "-c", script, env=env)
    finally:
        database.query(undo)

    error = found.finished["error"]
    assert (31, "wrap.partial") == (found.code, error["code"]), found
    assert f"it has changed {named}" in error["message"]


@pytest.mark.usefixtures("two_roles")
def test_who_may_not_see_all_does_not_say_that_nothing_stays(run: Run) -> None:
    """What ALTER SYSTEM has set only a superuser sees."""
    env = {"PREFLIGHT_REHEARSE": "off", "PREFLIGHT_BACKUP": "off"}

    found = run("wrap", "--always", "--", "false", env=env)

    error = found.finished["error"]
    assert (30, "wrap.failed") == (found.code, error["code"]), found
    assert "nothing of it stays" not in error["message"]
    assert "(ALTER SYSTEM), this role may not see" in error["message"]


def test_what_the_database_cannot_hold_is_recorded_as_escapes(
    create_database: CreateDatabase, environment: dict[str, str], database: servers.Database
) -> None:
    """A byte that is no text, a NUL, half an emoji and, in LATIN1, a snowman: no run is lost."""
    options = "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    latin = create_database(database.server, options=options)
    url = f"{environment['DATABASE_URL'].rpartition('/')[0]}/{latin.name}"
    odd = "\udcff\0\ud83d\u2603\u00e9"
    with sessions.connect(Config.from_env({"DATABASE_URL": url}, Path("/"), "run")) as session:
        wraps.ensure(session)
        wraps.record(session, "key", command=odd, watched=odd, duration_ms=1, backup=None)
        wraps.journal(session, "failed", odd, "key", error=odd)

    kept = "\\udcff\\x00\\ud83d\\u2603\u00e9"
    assert [(kept, kept)] == latin.query("SELECT command, watched FROM preflight.wraps")
    assert [(kept, None), (kept, kept)] == latin.query(
        "SELECT name, error FROM preflight.journal ORDER BY id"
    )


def test_checks_are_asked_on_the_copy_and_afterwards(
    run: Run, app: Path, tmp_path: Path, database: servers.Database
) -> None:
    """A check that cannot hold ends the run on the copy; one that fails only live is 33."""
    (app / "versions/002.sql").write_text(GOOD)
    check = tmp_path / "check.sql"
    check.write_text("SELECT 's' AS suite, 'c' AS \"check\", false AS ok")
    on_copy = run(*command(app, "--verify", str(check)))
    check.write_text(
        f"SELECT 's' AS suite, 'c' AS \"check\", current_database() <> '{database.name}' AS ok"
    )
    live = run(*command(app, "--verify", str(check)))

    assert 27 == on_copy.code, on_copy
    assert [1] == database.query(
        "SELECT count(*)::int FROM schema_migrations WHERE version = '001.sql'"
    )
    assert (33, "wrap.verify_failed") == (live.code, live.finished["error"]["code"]), live
    assert [] == database.query("SELECT key FROM preflight.wraps")


def test_what_happens_otherwise_than_rehearsed_is_told(
    run: Run, app: Path, database: servers.Database
) -> None:
    """A warning; with --strict 33."""
    (app / "versions/002.sql").write_text(
        f"DO $$BEGIN IF current_database() = '{database.name}' THEN CREATE TABLE only_live (n int);"
        " END IF; END$$"
    )

    found = run(*command(app, "--strict"))

    assert 33 == found.code, found
    assert "wrap.not_as_rehearsed" == found.event("run.finished")[0]["error"]["code"]
    (differs,) = found.event("wrap.differs")
    assert "table public.only_live was made on the live database only" in differs["objects"]


@pytest.mark.parametrize("strict", [False, True])
def test_success_that_cannot_be_compared_is_a_success(
    start: Start, run: Run, app: Path, database: servers.Database, *, strict: bool
) -> None:
    """Who holds a lock on what we look at takes it from nobody: recorded, 33 with --strict."""
    database.script("CREATE VIEW seen AS SELECT * FROM items")
    held = "FROM pg_locks WHERE relation = 'items'::regclass AND mode = 'AccessExclusiveLock'"
    (app / "versions/002.sql").write_text(
        f"CREATE TABLE more (n int); DO $$BEGIN WHILE current_database() = '{database.name}'"
        f" AND NOT EXISTS (SELECT {held}) LOOP PERFORM pg_sleep(0.01); END LOOP; END$$"
    )
    arguments = command(app, *(["--strict"] if strict else []))
    running = start(*arguments)
    running.wait_for_event("wrap.started")
    with database.server.connect(database.name) as blocker:
        blocker.execute("BEGIN; LOCK TABLE items IN ACCESS EXCLUSIVE MODE")
        waits = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE %s = ANY ("
        waits = f"{waits % blocker.info.backend_pid}pg_blocking_pids(pid))"
        faults.until(lambda: database.query(waits), "the look waits for the lock")
        found = running.wait()
    checked = run("check", *command(app)[1:])

    assert [] == found.event("wrap.matched")
    if strict:
        assert (33, "wrap.not_compared") == (found.code, found.finished["error"]["code"]), found
        assert 3 == checked.code
    else:
        assert (0, 0) == (found.code, checked.code), found
        (finished,) = found.event("wrap.finished")
        assert "could not be compared" in finished["reason"]


def test_lock_on_the_tools_history_is_waited_for_at_the_end(
    start: Start, app: Path, database: servers.Database
) -> None:
    """The key has its rows in it: one lock timeout more, and the success is recorded."""
    held = "SELECT FROM pg_locks WHERE relation = 'schema_migrations'::regclass"
    held += " AND mode = 'AccessExclusiveLock' AND granted"
    (app / "tool.py").write_text(
        "import os, psycopg\n"
        "with psycopg.connect(os.environ['DATABASE_URL'], autocommit=True) as connection:\n"
        f"    while not connection.execute({held!r}).fetchall(): pass\n"
    )
    env = {"PREFLIGHT_REHEARSE": "off", "PREFLIGHT_BACKUP": "off"}
    running = start(*command(app), env={**env, "PREFLIGHT_LOCK_TIMEOUT_MS": "100"})
    running.wait_for_event("wrap.started")
    with database.server.connect(database.name) as blocker:
        blocker.execute("BEGIN; LOCK TABLE schema_migrations IN ACCESS EXCLUSIVE MODE")
        pid = blocker.info.backend_pid
        waits = f"SELECT 1 FROM pg_stat_activity WHERE {pid} = ANY (pg_blocking_pids(pid))"
        faults.until(lambda: database.query(waits), "the last look waits")
        faults.until(lambda: not database.query(waits), "it has given up once")
    found = running.wait()

    assert 0 == found.code, found
    assert [1] == database.query("SELECT count(*)::int FROM preflight.wraps")


def test_check_and_wait_tell_by_the_key(
    run: Run, start: Start, app: Path, connection: psycopg.Connection
) -> None:
    """Pending before, current after, pending when a file is new or somebody wrote the history.

    Who holds what is read is waited for. An address among the arguments is part of the key,
    unless a shell reads it.
    """
    behind = command(app)[1:]
    pending = run("check", *behind)
    jdbc = "-url=jdbc:postgresql://db/app?user=me&password=secret12"
    addressed, of_java = (
        run("check", *behind, each).finished["error"]["hint"]
        for each in ("postgres://me@db/app", jdbc)
    )
    assert addressed == of_java
    password = run("check", *behind, "-password=secret12").finished["error"]["hint"]
    registry = ("npx", "--registry", "https://token@npm.example/", "x")
    other = run("check", "--watch", str(app / "versions"), "--", *registry).finished["error"]
    assert (False, False) == ("makes another" in other["hint"], "DATABASE_URL" in password)
    assert "The key has the password that is among the arguments" in password
    script = 'psql "postgres://$DB_USER:$DB_PW@$DB_HOST/app" -v password="$DB_PW"'
    read = run("check", "--watch", str(app / "versions"), "--", "sh", "-c", script)
    planned = run("plan", "--rehearse", "--json", *behind)
    waited = run("wait", "--schema", *behind, env={"PREFLIGHT_WAIT_TIMEOUT_S": "0"})
    assert 0 == run(*command(app)).code
    current = run("check", "--json", *behind)

    assert (3, 0, 3, 0) == (pending.code, planned.code, waited.code, current.code), planned
    assert "wrap.rehearsed" in planned.names
    hints = [each.finished["error"]["hint"] for each in (pending, read, waited)]
    said = "makes another key"
    assert (True, [False, False, False]) == (said in addressed, [said in each for each in hints])
    assert planned.json()["pending"]
    assert current.json()["current"] is True
    for table in ("preflight.wraps", "schema_migrations"):
        connection.execute(f"BEGIN; LOCK TABLE {table}".encode())
        soon = {"PREFLIGHT_LOCK_TIMEOUT_MS": "100", "PREFLIGHT_LOCK_RETRY_S": "0"}
        process = start("wait", "--schema", *behind, env=soon)
        process.wait_for_event("server.waiting")
        connection.execute("COMMIT")
        assert 0 == process.wait().code
    (app / "versions/002.sql").write_text(GOOD)
    assert 3 == run("check", *behind).code


@pytest.mark.parametrize("why", ["table", "schema", "rows"])
def test_who_may_not_read_the_tools_history_is_told_what_to_grant(
    run: Run, app: Path, database: servers.Database, two_roles: dict[str, str], why: str
) -> None:
    """As SQL, and that helps: the app's role that waits reads it, and needs no more of it."""
    tool, behind = two_roles["tool"], command(app)[1:]
    table = "public.schema_migrations"
    if why == "schema":
        table = '"Of shop".schema_migrations'
        database.script(
            f'CREATE SCHEMA "Of shop" AUTHORIZATION {two_roles["gate"]}; ALTER TABLE'
            f' schema_migrations SET SCHEMA "Of shop"; ALTER ROLE {two_roles["gate"]} IN DATABASE'
            f' {database.name} SET search_path = "Of shop", public'
        )
    assert 0 == run(*command(app), env={"PREFLIGHT_REHEARSE": "off"}).code
    kept = f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY"
    database.script(kept if why == "rows" else f"REVOKE ALL ON {table} FROM {tool}")

    env: dict[str, str | None] = {"DATABASE_URL": two_roles["url"]}
    refused = [run("check", *behind, env=env), run("wait", "--schema", *behind, env=env)]
    hints = {each.finished["error"]["hint"] for each in refused}
    codes = {(each.code, each.finished["error"]["code"]) for each in refused}
    (hint,) = hints
    database.script(hint.partition("; as the role")[0])

    assert {(22, "wrap.history_not_readable")} == codes, refused
    granted = f"GRANT SELECT ON {table} TO {tool}"
    assert (why != "rows", why == "schema") == (granted in hint, "GRANT USAGE ON SCHEMA" in hint)
    assert 0 == run("wait", "--schema", *behind, env=env).code


def test_thirty_starts_at_once_run_it_once(
    start: Start, app: Path, database: servers.Database
) -> None:
    """One works, the others wait and find nothing to do."""
    (app / "versions/002.sql").write_text(GOOD)

    started = [start(*command(app)) for _ in range(30)]
    ended = [each.wait(300) for each in started]

    assert [0] * 30 == [each.code for each in ended], ended[0]
    assert 1 == sum(len(each.event("wrap.started")) for each in ended)
    assert [1] == database.query("SELECT count(*)::int FROM preflight.wraps")


@pytest.mark.parametrize("event", ["backup.started", "wrap.redirected", "wrap.started"])
def test_run_that_is_killed_is_settled_by_the_next(
    start: Start, run: Run, app: Path, event: str,
    database: servers.Database,
) -> None:  # fmt: skip
    """Whenever it dies: the next one ends with the command run once, and no lock is left."""
    (app / "versions/002.sql").write_text(GOOD)
    killed = start(*command(app))
    killed.wait_for_event(event)
    killed.signal(signal.SIGKILL)
    killed.wait()

    found = run(*command(app))

    assert 0 == found.code, found
    assert [2] == database.query("SELECT count(*)::int FROM schema_migrations")
    assert 0 == run("check", *command(app)[1:]).code


def test_statement_of_a_killed_run_is_waited_for(
    start: Start, run: Run, app: Path, database: servers.Database
) -> None:
    """It goes on at the server: 12 that names it, or a wait, before anything else is done."""
    (app / "versions/002.sql").write_text(f"SELECT pg_advisory_lock(4711); {GOOD}")
    with database.server.connect(database.name) as holder:
        holder.execute("SELECT pg_advisory_lock(4711)")
        killed = start(*command(app))
        killed.wait_for_event("wrap.started", 60)
        noted = "SELECT split_part(checksum_before, ' ', 1)::int FROM preflight.journal"
        noted += " WHERE event = 'running'"
        faults.until(lambda: database.query(noted), "the session is noted")
        waits = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'advisory'"
        faults.until(lambda: database.query(waits), "the command is at work")
        killed.signal(signal.SIGKILL)
        killed.wait()

        busy = run(*command(app), env={"PREFLIGHT_LOCK_WAIT_S": "0"})
        patient = start(*command(app))
        told = patient.wait_for_event("lock.busy")
    found = patient.wait()

    (pid,) = database.query(noted + " ORDER BY id LIMIT 1")
    assert (12, "wrap.still_at_work") == (busy.code, busy.finished["error"]["code"]), busy
    assert f"pg_terminate_backend({pid})" in busy.finished["error"]["hint"]
    assert [] == busy.event("backup.started")
    assert pid == told["holder_pid"]
    assert 0 == found.code, found
    assert [2] == database.query("SELECT count(*)::int FROM schema_migrations")


def test_session_is_known_by_its_process_and_when_it_began(
    database: servers.Database, environment: dict[str, str]
) -> None:
    """Nobody waits for who has the number now, who is idle, or what a run that ended well had."""
    config = Config.from_env(environment | {"PREFLIGHT_LOCK_WAIT_S": "0"}, Path("/"), "run")
    with sessions.connect(config) as session, database.server.connect(database.name) as other:
        wraps.ensure(session)
        other.execute("BEGIN")
        (port,) = other.execute("SELECT inet_client_port()").fetchone() or (0,)
        pid = other.info.backend_pid
        noted = journal.note_running(session, "name", "key", [pid], [port])
        nobody = journal.note_running(session, "name", "key", [pid], [port + 1])
        at_work = [(each[0], each[4]) for each in journal.running(session)]
        with pytest.raises(DatabaseBusy) as busy:
            orphans.wait(session)
        with suppress(psycopg.errors.UndefinedTable):
            other.execute("TABLE nowhere")
        failed = journal.running(session)
        other.execute("COMMIT")
        idle = journal.running(session)
        other.execute("BEGIN; TABLE preflight.journal; SAVEPOINT before")
        with suppress(psycopg.errors.UndefinedTable):
            other.execute("TABLE nowhere")
        behind = [(each[0], each[4]) for each in journal.running(session)]
        other.execute("ROLLBACK; BEGIN")
        row = "UPDATE preflight.journal SET checksum_before = %s WHERE event = 'running'"
        (said,) = database.query("SELECT checksum_before FROM preflight.journal")
        session.execute(row, [f"{pid} 1"])
        another = journal.running(session)
        session.execute(row, [said])
        again = [each[0] for each in journal.running(session)]
        wraps.journal(session, "wrapped", "name", "key")
        ended = journal.running(session)
        other.execute("COMMIT")

    assert (1, []) == (len(noted), nobody)
    assert [(pid, "idle in transaction")] == at_work
    assert [(pid, "idle in transaction (aborted)")] == behind, "a savepoint's failure is not all"
    assert "holds a transaction open and does nothing" in str(busy.value)
    assert (busy.value.problem.hint or "").startswith(f"SELECT pg_terminate_backend({pid}) ends it")
    assert ([], [], [], [pid], []) == (failed, idle, another, again, ended)


def test_loss_of_our_connection_in_earnest_is_31_and_ends_the_command(
    start: Start, app: Path, database: servers.Database
) -> None:
    """Without the lock it may not go on, and nobody can tell what it had done."""
    (app / "versions/002.sql").write_text(
        f"SELECT pg_sleep(CASE WHEN current_database() = '{database.name}' THEN 60 ELSE 0 END)"
    )
    running = start(*command(app))
    running.wait_for_event("wrap.started")
    sleeping = (
        "SELECT count(*)::int FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        " AND datname = current_database()"
    )
    faults.until(lambda: [1] == database.query(sleeping), "the command is at work")
    database.query(
        "SELECT pg_terminate_backend(l.pid) FROM pg_locks l WHERE l.locktype = 'advisory'"
        " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    found = running.wait()

    assert (31, "wrap.partial") == (found.code, found.finished["error"]["code"]), found
    assert "--swap" in found.finished["error"]["hint"] or "no backup" in str(found.finished)


PREPARES = """
import os, sys, time, psycopg
with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
    connection.execute("BEGIN; %s; PREPARE TRANSACTION %r")
    print("prepared", flush=True)
    %s
"""


@pytest.fixture
def preparing(
    start_server: StartServer, create_database: CreateDatabase, environment: dict[str, str]
) -> servers.Database:
    """Give a database where transactions can be prepared, and its address to who is wrapped."""
    live = create_database(start_server(max_prepared_transactions=3, autovacuum="off"), "live")
    live.script("CREATE TABLE items (id int); CREATE TABLE schema_migrations (version text)")
    environment["DATABASE_URL"] = live.conninfo()
    return live


def prepares(
    gid: str, ends: str, statement: str = "ALTER TABLE items ADD COLUMN n int"
) -> list[str]:
    """Return the arguments that wrap a command which prepares a transaction, and how it ends."""
    return ["wrap", "--always", "--", sys.executable, "-c", PREPARES % (statement, gid, ends)]


def test_prepared_transaction_on_the_copy_is_27_and_goes_with_it(
    start: Start, run: Run, preparing: servers.Database
) -> None:
    """Of a killed run, of a command that failed and says why, and of one that ended with 0."""
    killed = start(*prepares("one", "time.sleep(60)"))
    killed.wait_for_event("wrap.said")
    killed.signal(signal.SIGKILL)
    killed.wait()
    there = "SELECT gid FROM pg_prepared_xacts"
    left = preparing.query(there)

    failed = run(*prepares("one", "sys.exit(4)"))
    well = run(*prepares("one", "pass"))

    assert ["one"] == left
    assert (27, "wrap.rehearsal_failed") == (failed.code, failed.finished["error"]["code"]), failed
    assert "exit code 4" in failed.finished["error"]["message"]
    assert (27, "wrap.rehearsal_failed") == (well.code, well.finished["error"]["code"]), well
    assert "left a prepared transaction" in well.finished["error"]["message"]
    assert "for ever: 'one'" in well.finished["error"]["message"]
    assert [] == preparing.query(there)
    assert ["live", "postgres"] == preparing.query(
        "SELECT datname::text FROM pg_database WHERE NOT datistemplate ORDER BY 1"
    )


ONLY_LIVE = """
import os, sys, psycopg
with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
    if connection.info.dbname == "live":
        %s
"""
WAITS_FOR = """there = "SELECT count(*) FROM pg_prepared_xacts"
        while connection.execute(there).fetchone() != (%d,):
            pass"""
IS_SEEN = f"""connection.execute("BEGIN; CREATE TABLE three ()")
        looked = set()
        with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as other:
            while len(looked) < {LOOKED}:
                looked |= set(other.execute({LOOKS!r}).fetchall())
        connection.execute("PREPARE TRANSACTION 'three'")"""


def only_live(body: str) -> list[str]:
    """Return the arguments that wrap a command which does something on the live database alone."""
    return ["wrap", "--always", "--", sys.executable, "-c", ONLY_LIVE % body]


def test_prepared_transaction_in_earnest_is_named(run: Run, preparing: servers.Database) -> None:
    """A failure with it is 31, a success is one, and who is to end it is told."""
    off = {"PREFLIGHT_REHEARSE": "off", "PREFLIGHT_BACKUP": "off"}
    another = "CREATE ROLE another; SET ROLE another; BEGIN; PREPARE TRANSACTION 'of another'"
    preparing.script(another)

    failed = run(*prepares("one", "sys.exit(4)", "CREATE TABLE one ()"), env=off)
    preparing.query("ROLLBACK PREPARED 'one'")
    well = run(*prepares("two", "pass", "CREATE TABLE two ()"), env=off)
    seen = run(*only_live(IS_SEEN))  # on its copy it left none, and 'two' has its owner
    for gid in ("two", "three", "of another"):
        preparing.query(f"ROLLBACK PREPARED '{gid}'")

    assert (31, "wrap.partial") == (failed.code, failed.finished["error"]["code"]), failed
    assert "'one', prepared meanwhile" in failed.finished["error"]["message"]
    for name, found in {"two": well, "three": seen}.items():
        assert 0 == found.code, found
        (finished,) = found.event("wrap.finished")
        assert finished["reason"].startswith(f"'{name}', prepared meanwhile"), finished
        assert "COMMIT PREPARED or ROLLBACK PREPARED" in finished["reason"]
        assert [name] == finished["prepared"]


def test_prepared_transaction_of_an_app_is_no_warning(
    start: Start, preparing: servers.Database
) -> None:
    """A command left none on its copy, or the owner had one before it: it is told, and no doubt."""
    offs = {"PREFLIGHT_REHEARSE": "off", "PREFLIGHT_BACKUP": "off"}
    finished = []
    for number, env in enumerate(({}, offs), 1):
        running = start(*only_live(WAITS_FOR % number), env=env)
        running.wait_for_event("wrap.started", 60)
        preparing.script(f"BEGIN; INSERT INTO items VALUES (1); PREPARE TRANSACTION 'app {number}'")
        found = running.wait()
        assert 0 == found.code, found
        finished += found.event("wrap.finished")
    for number in (1, 2):
        preparing.query(f"ROLLBACK PREPARED 'app {number}'")

    told = [("info", None, ["app 1"]), ("info", None, ["app 2"])]
    assert told == [(each["level"], each.get("reason"), each["prepared"]) for each in finished]


def test_stop_is_passed_on(start: Start, app: Path, database: servers.Database) -> None:
    """143 once the command has ended; its session is gone."""
    (app / "versions/002.sql").write_text(
        f"SELECT pg_sleep(CASE WHEN current_database() = '{database.name}' THEN 60 ELSE 0 END)"
    )
    running = start(*command(app))
    running.wait_for_event("wrap.started")
    while "applying" not in str([each.get("text") for each in running.events][-1]):
        running.wait_for_event("wrap.said")
    sleeping = (
        "SELECT count(*)::int FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        " AND datname = current_database()"
    )
    while [1] != database.query(sleeping):
        pass
    running.signal(signal.SIGTERM)
    found = running.wait()

    assert 143 == found.code, found
    assert [0] == database.query(sleeping)
    assert [0] == database.query(
        "SELECT count(*)::int FROM pg_locks WHERE locktype = 'advisory'"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["wrap"], "wrap.no_command"),
        (["wrap", "--always", "--"], "wrap.no_command"),
        (["wrap", "--", "true"], "wrap.no_watch"),
        (["wrap", "--watch", "/nowhere", "--", "true"], "wrap.watch"),
        (["wrap", "--watch", "", "--", "true"], "config.arguments"),
        (["wrap", "--always", "--", "/no/such/program"], "wrap.not_started"),
        (["wrap", "--always", "--url-variable", "NONE", "--", "true"], "wrap.url_variable"),
        (["wrap", "--always", "--verify", "/nowhere", "--", "true"], "wrap.verify"),
        (["wrap", "--always", "--lock-timeout", "soon", "--", "true"], "wrap.lock_timeout"),
        (["wrap", "--always", "--lock-timeout", "2", "--", "true"], "wrap.lock_timeout"),
        (["wrap", "--always", "--timeout", "nan", "--", "true"], "wrap.timeout"),
        (["wrap", "--always", "--history", "a b", "--", "true"], "wrap.history"),
        (["check", "--strict"], "wrap.no_command"),
        (["up", "--", "true"], "config.arguments"),
    ],
)
def test_what_cannot_be_wrapped_is_refused(run: Run, arguments: list[str], code: str) -> None:
    """20 before anything is done."""
    found = run(*arguments)

    error = found.finished["error"]
    assert (20, code) == (found.code, error["code"]), found
    assert ("(.env, a configuration)" in error["hint"]) == (code == "wrap.url_variable")


def test_program_that_does_not_start_is_refused_before_a_backup(run: Run, app: Path) -> None:
    """A script with Windows line ends, say, which the kernel calls absent; `plan` says it, too."""
    (app / "migrate.sh").write_bytes(b"#!/bin/sh\r\necho\r\n")
    (app / "migrate.sh").chmod(0o755)
    behind = ["--watch", str(app), "--", str(app / "migrate.sh")]

    found = [run("wrap", *behind), run("plan", "--rehearse", *behind)]

    errors = [each.finished["error"] for each in found]
    assert [(20, "wrap.not_started")] * 2 == [
        (each.code, error["code"]) for each, error in zip(found, errors, strict=True)
    ]
    assert all("ends with a carriage return" in error["message"] for error in errors)
    assert [] == found[0].event("backup.verified")


@pytest.mark.usefixtures("any_server")
def test_every_server_can_be_wrapped(run: Run, app: Path, database: servers.Database) -> None:
    """What is asked of the server is known to each version."""
    (app / "versions/002.sql").write_text(GOOD)

    found = run(*command(app))

    assert 0 == found.code, found
    assert found.event("wrap.matched")
    assert [2] == database.query("SELECT count(*)::int FROM schema_migrations")


def test_lock_timeout_reaches_the_command(run: Run, app: Path) -> None:
    """Through PGOPTIONS, on the copy and in earnest."""
    asks = "print(connection.execute('SHOW lock_timeout').fetchone()[0], flush=True)"
    text = TOOL.replace("        run(connection)\n", f"        run(connection); {asks}\n")
    (app / "tool.py").write_text(text)

    found = run(*command(app, "--lock-timeout", "3s"))

    assert 0 == found.code, found
    assert ["3s"] * 3 == [
        each["text"] for each in found.event("wrap.said") if each["text"] == "3s"
    ], found
