"""The pending files are tried on a restored copy first; production learns nothing of it."""

import contextlib
import errno
import json
import signal
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from preflight.base.config import Config
from preflight.base.errors import BackupFailed, RehearsalFailed
from preflight.files.migrations import Script
from preflight.rehearsal import copies, scratch, some_rows
from preflight.server import sessions
from tests import faults, program, servers
from tests.conftest import CreateDatabase, Run, Start, StartServer, WriteMigrations

USERS = """
CREATE TABLE users (id int PRIMARY KEY, email text, age text);
INSERT INTO users SELECT n, 'user-' || n, n::text FROM generate_series(1, 1000) n;
INSERT INTO users VALUES (0, 'user-1', 'secret-value'), (-1, NULL, '1');
CREATE TABLE orders (id int PRIMARY KEY, user_id int);
INSERT INTO orders VALUES (1, 1), (2, 5000);
"""
CATALOG = """
SELECT md5(string_agg((to_jsonb(c) - 'relpages' - 'reltuples' - 'relallvisible' -- autovacuum's
 - 'relfrozenxid')::text, ' ' ORDER BY c.oid)) FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'public'
"""
SCRATCH = "SELECT datname FROM pg_database WHERE datname LIKE 'preflight\\_scratch%'"
SLEEPING = """
SELECT count(*) FROM pg_stat_activity
WHERE datname LIKE 'preflight\\_scratch%' AND query LIKE '%pg_sleep%' AND state = 'active'
"""
ONE = {"001_one.sql": "CREATE TABLE one (id int);"}
SLEEPER = {"001_sleeper.sql": "CREATE TABLE slept ();\nSELECT pg_sleep(100);\n"}


@pytest.fixture(autouse=True)
def settings(environment: dict[str, str]) -> None:
    """Begin with a database that was made by hand, and rehearse."""
    environment["PREFLIGHT_FIRST_CONTACT"] = "pending"
    environment["PREFLIGHT_REHEARSE"] = "auto"


def verified(backup_dir: Path) -> list[str]:
    """Return how far each backup is verified, the oldest first."""
    found = [json.loads(each.read_bytes()) for each in backup_dir.glob("[!.]*/manifest.json")]
    return [each["verified"] for each in sorted(found, key=lambda each: each["sequence"])]


def scratches(server: servers.Server) -> list[str]:
    """Return the scratch databases of a server."""
    return servers.Database(server, "postgres").query(SCRATCH)


@contextlib.contextmanager
def readers(database: servers.Database) -> Iterator[None]:
    """Read every table in a transaction that stays open: ACCESS EXCLUSIVE would wait for it."""
    with psycopg.connect(database.conninfo()) as reader:
        reader.execute("SELECT * FROM users, orders LIMIT 1")
        yield


# --- what only real data shows --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "sqlstate"),
    [
        pytest.param("CREATE UNIQUE INDEX ON users (email);", "23505", id="unique"),
        pytest.param("ALTER TABLE users ALTER email SET NOT NULL;", "23502", id="not null"),
        pytest.param("ALTER TABLE users ADD CHECK (id > 0);", "23514", id="check"),
        pytest.param("ALTER TABLE users ALTER age TYPE int USING age::int;", "22P02", id="cast"),
        pytest.param(
            "ALTER TABLE orders ADD FOREIGN KEY (user_id) REFERENCES users;", "23503", id="orphan"
        ),
    ],
)
def test_what_the_data_forbids_is_found_on_the_copy(  # noqa: PLR0913, PLR0917 -- a case each
    statement: str,
    sqlstate: str,
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    backup_dir: Path,
) -> None:
    """27 with the place; nobody had to make room for it in production, where nothing changed."""
    database.script(USERS)
    migrations(ONE | {"002_two.sql": f"CREATE TABLE two ();\n\n  {statement}\n"})
    before = database.query(CATALOG)
    with readers(database):
        result = run(env={"PREFLIGHT_LOCK_TIMEOUT_MS": "50", "PREFLIGHT_LOCK_RETRY_S": "0"})

    error = result.finished["error"]
    assert (27, "rehearsal.failed") == (result.code, error["code"])
    assert ("002_two", "002_two.sql", 3, sqlstate) == (
        error["migration"],
        error["file"],
        error["line"],
        error["sqlstate"],
    )
    assert before == database.query(CATALOG)
    assert [0] == database.query("SELECT count(*) FROM preflight.migrations")
    assert ["restored"] == verified(backup_dir)
    assert [] == scratches(database.server)


def test_failure_shows_a_row_only_when_asked(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """The hint says how; DETAIL may hold what nobody should read in a log."""
    database.script(USERS)
    migrations({"001_one.sql": "CREATE UNIQUE INDEX ON users (email);"})
    plain, told = run(), run(env={"PREFLIGHT_LOG_SQL": "on"})

    assert "user-1" not in plain.stdout
    assert "PREFLIGHT_LOG_SQL=on" in plain.finished["error"]["hint"]
    assert "(email)=(user-1)" in told.finished["error"]["detail"]


def test_verify_file_is_asked_on_the_copy(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """A file that does not do what it promises never reaches production."""
    verify = {"001_one_verify.sql": "SELECT 's' AS suite, 'c' AS check, false AS ok;"}
    migrations(ONE | verify)
    result = run()
    migrations({"001_one.sql": f"-- preflight: no-transaction\n{ONE['001_one.sql']}"})
    outside = run()

    assert (27, "001_one") == (result.code, result.finished["error"]["migration"])
    assert (27, "001_one") == (outside.code, outside.finished["error"]["migration"])
    said = {each.finished["error"]["hint"].partition(". ")[0] for each in (result, outside)}
    assert {"Correct the migration or its verify file"} == said  # a copy keeps nothing
    assert [] == result.event("check.failed")
    assert [None] == database.query("SELECT to_regclass('one')")


def test_limit_that_ends_a_statement_on_the_copy_is_named(
    run: Run, migrations: WriteMigrations
) -> None:
    """Neither the data nor a file is to be corrected: a verify file is none too slow either."""
    check = "SELECT 's' AS suite, 'c' AS \"check\", true AS ok FROM pg_sleep(60)"
    migrations(ONE | {"001_one_verify.sql": check})
    result = run(env={"PREFLIGHT_STATEMENT_TIMEOUT_S": "0.5"})

    error = result.finished["error"]
    assert (27, "57014") == (result.code, error["sqlstate"]), result
    assert (
        "It took longer than PREFLIGHT_STATEMENT_TIMEOUT_S (0.5 s): raise it, or write "
        "`-- preflight: statement-timeout 5min` at the top of 001_one.sql. "
        "The live database was not changed."
    ) == error["hint"]


def test_value_of_a_row_is_in_no_message(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """A cast that one row breaks quotes the row; what stands in the file may be shown."""
    database.script(USERS)
    cast = "ALTER TABLE users ALTER age TYPE int USING age::int;"
    migrations({"001_one.sql": cast})
    hidden = run()
    shown = run(env={"PREFLIGHT_LOG_SQL": "on"}).finished["error"]["message"]
    migrations({"001_one.sql": "SELECT 'a-literal'::int;"})
    literal = run().finished["error"]["message"]

    assert "invalid input syntax for type integer: …" in hidden.finished["error"]["message"]
    assert "secret-value" not in hidden.stdout
    assert ('"secret-value"' in shown, '"a-literal"' in literal) == (True, True)


# --- what passes ----------------------------------------------------------------------------------


def test_rehearsal_comes_between_the_backup_and_the_first_file(
    run: Run, database: servers.Database, migrations: WriteMigrations, backup_dir: Path
) -> None:
    """Nothing that is done to the copy is told as if it were done to the database."""
    database.script(USERS)
    migrations(ONE | {"002_two.sql": "CREATE TABLE two ();"})
    result = run()

    wanted = ["backup.started", "backup.verified", "rehearsal.started", "rehearsal.passed"]
    wanted += ["migration.started", "migration.applied"] * 2 + ["run.finished"]
    assert wanted == result.names[result.names.index("backup.started") :]
    assert 0 == result.code
    assert ["restored"] == verified(backup_dir)
    assert [] == scratches(database.server)
    passed = result.event("rehearsal.passed")[0]
    assert (["001_one", "002_two"], "restored") == (passed["migrations"], passed["verified"])


@pytest.mark.parametrize("client", [17, 18])
def test_older_server_is_the_normal_case(  # noqa: PLR0913, PLR0917 -- a server of its own
    client: int,
    run: Run,
    start_server: StartServer,
    create_database: CreateDatabase,
    migrations: WriteMigrations,
    backup_dir: Path,
) -> None:
    """A client 17 or 18 complains of a server 16 in each of its jobs; that is no error."""
    database = create_database(start_server(16))
    database.script(USERS)
    migrations(ONE)
    result = run(env={**database.env(), "PATH": program.path(client)})

    assert 0 == result.code
    assert ["restored"] == verified(backup_dir)
    assert [2] <= [each["jobs"] for each in result.event("rehearsal.started")]


def test_measures_are_told(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Which statement takes which lock on which table for how long, and what it rewrites."""
    database.script(USERS)
    migrations(
        {
            "001_one.sql": "CREATE TABLE one (id int);\nALTER TABLE one ADD n int;\n"
            "ALTER TABLE orders ADD note text;\nALTER TABLE users ALTER id TYPE bigint;\n"
            "SELECT pg_sleep(0.2);\n"
        }
    )
    passed = run().event("rehearsal.passed")[0]

    told = {each["line"]: each for each in passed["statements"]}
    assert [1, 2, 3, 4, 5] == sorted(told)
    assert {"locks", "rewrites"}.isdisjoint(told[1].keys() | told[2].keys())
    locks = [(each["table"], each["mode"]) for line in (3, 4) for each in told[line]["locks"]]
    assert [("orders", "ACCESS EXCLUSIVE"), ("users", "ACCESS EXCLUSIVE")] == locks
    assert 0.2 <= told[3]["locks"][0]["held_s"]
    assert 0.2 <= told[5]["duration_s"]
    (rewrite,) = told[4]["rewrites"]
    assert "users" == rewrite["table"]
    assert 0 < min(rewrite["before_bytes"], rewrite["after_bytes"])
    assert 0 < min(passed["size_before_bytes"], passed["size_after_bytes"])


def test_file_without_a_transaction_is_rehearsed_as_it_runs(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Step by step, also one that an earlier run left half done."""
    database.script(USERS)
    text = "-- preflight: no-transaction\nCREATE TABLE IF NOT EXISTS one ();\n"
    text += "CREATE UNIQUE INDEX CONCURRENTLY u ON users (email);\n"
    migrations({"001_one.sql": text})
    first = run()
    left = run(env={"PREFLIGHT_REHEARSE": "off"})
    database.script("DELETE FROM users WHERE id = 0")
    second = run()

    assert (27, 31, 0) == (first.code, left.code, second.code)
    locks = [each.get("locks") for each in second.event("rehearsal.passed")[0]["statements"]]
    mode = "SHARE UPDATE EXCLUSIVE"
    assert [("users", mode, True)] == [
        (each["table"], each["mode"], each["documented"]) for each in locks[0]
    ]
    assert [True] == database.query(
        "SELECT indisvalid FROM pg_index WHERE indexrelid = 'u'::regclass"
    )


def test_copy_has_the_settings_of_the_database(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """A file that relies on the database's search_path finds its tables on the copy, too."""
    database.script(
        "CREATE SCHEMA app; CREATE TABLE app.here (id int); "
        f"ALTER DATABASE {database.name} SET search_path = app, public"
    )
    migrations({"001_one.sql": "ALTER TABLE here ADD n int;"})

    assert 0 == run().code


def test_copy_has_no_schema_that_the_database_lacks(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """A file that counts on `public` fails on the copy, as it would in earnest."""
    database.script("DROP SCHEMA public; CREATE SCHEMA app; CREATE TABLE app.here (id int)")
    migrations(ONE)
    result = run()

    assert (27, "3F000") == (result.code, result.finished["error"]["sqlstate"]), result


@pytest.fixture
def becoming(database: servers.Database) -> Iterator[dict[str, str]]:
    """Give the environment of a role that becomes the owner of everything when it logs in."""
    name = database.name
    database.script(
        f"CREATE ROLE {name}_owner CREATEDB; "
        f"CREATE ROLE {name}_job LOGIN NOINHERIT PASSWORD 'x' IN ROLE {name}_owner; "
        f"ALTER ROLE {name}_job SET role = '{name}_owner'; "
        f"ALTER ROLE {name}_job IN DATABASE {name} SET search_path = app; "
        f"ALTER DATABASE {name} OWNER TO {name}_owner; SET ROLE {name}_owner; "
        "CREATE SCHEMA app; CREATE TABLE app.here (id int)"
    )
    yield database.env(user=f"{name}_job", password="x")  # noqa: S106 -- as it says
    database.script(f"DROP OWNED BY {name}_owner CASCADE; DROP ROLE {name}_job")
    database.script(f"REASSIGN OWNED BY {name}_owner TO postgres; DROP ROLE {name}_owner")


def test_role_that_becomes_another_one_is_rehearsed_as_it_runs(
    run: Run, becoming: dict[str, str], migrations: WriteMigrations
) -> None:
    """Settings of a database are those of the role that logs in; the copy belongs to the other."""
    migrations({"001_one.sql": "ALTER TABLE here ADD n int;"})
    result = run(env=becoming)

    assert (0, 1) == (result.code, len(result.event("rehearsal.passed"))), result


def test_function_that_makes_roles_is_not_called_from_a_copy_beside_the_live_database(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """They would stay: neither by a file nor by a trigger; what writes rows alone is tried."""
    role = f"{database.name}_tenant"
    make = "EXECUTE format('CREATE ROLE %I', {})"
    database.script(f"""
        CREATE TABLE tenants (name text); CREATE TABLE others (name text); CREATE TABLE log (n int);
        CREATE FUNCTION make(n text) RETURNS void LANGUAGE plpgsql AS
         $$ BEGIN {make.format("n")}; END $$;
        CREATE FUNCTION admit() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN {make.format("new.name")}; RETURN new; END $$;
        CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN -- no CREATE ROLE here
         EXECUTE format('INSERT INTO %I VALUES (1)', 'l' || 'og'); RETURN new; END $$;
        CREATE TRIGGER admit BEFORE INSERT ON tenants FOR EACH ROW EXECUTE FUNCTION admit();
        CREATE TRIGGER note BEFORE INSERT ON others FOR EACH ROW EXECUTE FUNCTION note();
        """)
    said = []
    for text in (
        f"SELECT make('{role}')",
        f"INSERT INTO tenants VALUES ('{role}')",
        f"DO $$ BEGIN INSERT INTO tenants VALUES ('{role}'); END $$",
        "ALTER TABLE tenants ADD n int",
        f"INSERT INTO others VALUES ('{role}')",
    ):
        migrations({"001_one.sql": f"{text};"})
        said.append(run("plan", "--rehearse").finished.get("error", {}).get("code"))

    assert ["rehearsal.unavailable"] * 3 + [None] * 2 == said
    assert [] == database.query(f"SELECT rolname FROM pg_roles WHERE rolname = '{role}'")


def test_triggers_count_for_what_a_file_does_to_their_table(database: servers.Database) -> None:
    """For INSERT alone, also by a view, a rule or a function; not one that is off and stays so."""
    database.script("""
        CREATE TABLE tenants (name text); CREATE VIEW everybody AS SELECT * FROM tenants;
        CREATE TABLE former (name text); CREATE TABLE kept (name text);
        CREATE TABLE orders (id int); CREATE TABLE moved (name text);
        CREATE INDEX i ON tenants (name);
        CREATE TABLE parts (id int) PARTITION BY LIST (id);
        CREATE TABLE part PARTITION OF parts FOR VALUES IN (1);
        CREATE TABLE parents (id int PRIMARY KEY);
        CREATE TABLE children (id int REFERENCES parents ON DELETE SET NULL);
        CREATE FUNCTION admit() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN EXECUTE format('CREATE ROLE %I', new.name); RETURN new; END $$;
        CREATE TRIGGER admit BEFORE INSERT ON tenants FOR EACH ROW EXECUTE FUNCTION admit();
        CREATE TRIGGER admit BEFORE INSERT ON former FOR EACH ROW EXECUTE FUNCTION admit();
        CREATE TRIGGER admit BEFORE INSERT ON part FOR EACH ROW EXECUTE FUNCTION admit();
        CREATE TRIGGER admit BEFORE UPDATE ON children FOR EACH ROW EXECUTE FUNCTION admit();
        ALTER TABLE former DISABLE TRIGGER admit;
        CREATE RULE also AS ON INSERT TO moved DO ALSO INSERT INTO tenants VALUES (new.name);
        CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN INSERT INTO tenants VALUES ('x'); RETURN new; END $$;
        CREATE TRIGGER note BEFORE INSERT ON kept FOR EACH ROW EXECUTE FUNCTION note();
        """)
    tame = (
        "UPDATE tenants SET name = 'x'",
        "DELETE FROM orders USING everybody; DROP INDEX i; ALTER TABLE tenants ADD n int",
        "INSERT INTO orders SELECT 1 FROM tenants; COPY tenants TO STDOUT",
        "INSERT INTO former VALUES ('x')",
        "UPDATE kept SET name = 'x'; DELETE FROM parts",
        "INSERT INTO parents VALUES (1); TRUNCATE tenants",
    )
    wild = (
        "WITH a AS (INSERT INTO tenants VALUES ('x') RETURNING 1) SELECT * FROM a",
        "COPY tenants FROM STDIN;\nx\n\\.\n",
        "MERGE INTO public.tenants USING orders ON false WHEN NOT MATCHED THEN INSERT VALUES ('x')",
        "INSERT INTO everybody VALUES ('x')",
        "INSERT INTO moved VALUES ('x')",
        "ALTER TABLE former ENABLE TRIGGER admit; INSERT INTO former VALUES ('x')",
        "INSERT INTO kept VALUES ('x')",
        "UPDATE parts SET id = 1",
        "DELETE FROM parents",
        "TRUNCATE parents CASCADE",
        "UPDATE tenants SET name = 'x'; DO $$ BEGIN PERFORM 1; END $$",
    )
    target = {name: str(value) for name, value in conninfo_to_dict(database.conninfo()).items()}
    config = Config(target, {}, Path("/nowhere"), run_id="run", wait_timeout_s=15)
    with sessions.connect(config) as session:
        found = {
            text: some_rows.far(session, [Script("001_one.sql", text.encode(), "sum")]) is not None
            for text in (*tame, *wild)
        }

    assert {**dict.fromkeys(tame, False), **dict.fromkeys(wild, True)} == found


def test_publication_that_the_copy_cannot_have_is_no_fault_of_the_file(
    run: Run, database: servers.Database, becoming: dict[str, str], migrations: WriteMigrations
) -> None:
    """Only a superuser restores every one; what nobody has is a mistake of the file."""
    database.script(f"SET ROLE {database.name}_owner; CREATE PUBLICATION published")
    migrations({"001_one.sql": "ALTER PUBLICATION nobodys ADD TABLE here;"})
    failed = run(env=becoming)
    untold = "'ALTER PUBLICATION publi' || 'shed ADD TABLE here'"  # what is no word of the file
    migrations({"001_one.sql": f"DO $$ BEGIN EXECUTE {untold}; END $$;"})
    result = run(env=becoming)
    again = "DROP PUBLICATION published;\nALTER PUBLICATION published DROP TABLE here;"
    migrations({"002_two.sql": again})
    twice = run(env={"PREFLIGHT_REHEARSE": "auto"})  # a copy that has it

    assert (27, "42704") == (failed.code, failed.finished["error"].get("sqlstate")), failed
    (skipped,) = result.event("rehearsal.skipped")
    assert (0, "warning") == (result.code, skipped["level"]), result
    assert "without publications" in skipped["reason"]
    assert (27, []) == (twice.code, twice.event("rehearsal.skipped")), twice


def test_role_that_becomes_another_one_drops_its_copy(
    start: Start,
    database: servers.Database,
    becoming: dict[str, str],
    migrations: WriteMigrations,
) -> None:
    """Though the owner may not end the sessions of the role that logged in."""
    migrations({"001_one.sql": "CREATE TABLE one ();\nSELECT pg_sleep(1);\n"})
    process = start(env=becoming)
    asleep(database)
    copy = servers.Database(database.server, scratches(database.server)[0])
    user = becoming["PGUSER"]
    with contextlib.closing(psycopg.connect(copy.conninfo(user=user, password="x"))):  # noqa: S106 -- as it says
        result = process.wait()

    assert ([], 0) == (result.event("rehearsal.warned"), result.code), result
    assert [] == scratches(database.server)


@pytest.mark.parametrize("role", ["postgres", "plain"])
def test_backup_that_does_not_restore_is_none_for_any_role(
    role: str,
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    backup_dir: Path,
) -> None:
    """Rows that break a constraint of their own: 24 that names it, and nothing is migrated."""
    name = f"{database.name}_plain"
    database.script(
        f"CREATE ROLE {name} LOGIN CREATEDB PASSWORD 'x'; ALTER DATABASE {database.name} OWNER TO "
        f"{name}; SET session_replication_role = replica; SET ROLE {name}; CREATE SCHEMA app; "
        "CREATE TABLE app.a (id int PRIMARY KEY); CREATE TABLE app.b (a int REFERENCES app.a)"
    )
    database.script("SET session_replication_role = replica; INSERT INTO app.b VALUES (1)")
    migrations(ONE)
    env = database.env(user=name, password="x") if role == "plain" else {}  # noqa: S106 -- as it says
    try:
        result = run(env=env)
    finally:
        database.script(f"REASSIGN OWNED BY {name} TO postgres; DROP ROLE {name}")

    error = result.finished["error"]
    assert (24, "backup.not_restorable") == (result.code, error["code"]), result
    assert "FK CONSTRAINT" in error["message"]
    assert ([], []) == (verified(backup_dir), scratches(database.server))
    assert [None] == database.query("SELECT to_regclass('one')")


def test_index_or_view_that_needs_a_search_path_stops_no_deployment_and_no_restore(
    run: Run,
    start_server: StartServer,
    create_database: CreateDatabase,
    migrations: WriteMigrations,
    backup_dir: Path,
) -> None:
    """PostgreSQL restores with an empty path: all else is proven, both are named; or 27."""
    database = create_database(start_server(16))
    database.script(
        "CREATE FUNCTION plain(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT lower($1)'; "
        "CREATE FUNCTION nested(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT plain($1)'; "
        "CREATE TABLE named (n text); CREATE INDEX odd ON named (nested(n)); "
        "INSERT INTO named VALUES ('A'); "
        "CREATE MATERIALIZED VIEW seen AS SELECT nested(n) AS n FROM named; "
        "CREATE FUNCTION told(text) RETURNS text IMMUTABLE LANGUAGE plpgsql "
        "AS 'BEGIN RETURN plain($1); END'; CREATE STATISTICS felt ON told(n) FROM named; "
        "CREATE STATISTICS read_when_planned ON nested(n) FROM named"
    )
    migrations(ONE)
    refused = run(env={**database.env(), "PREFLIGHT_REHEARSE": "always"})
    done = run(env={**database.env(), "PREFLIGHT_REHEARSE": "auto"})
    restored = run("restore", "latest", env=database.env())

    error = refused.finished["error"]
    assert (27, "rehearsal.incomplete") == (refused.code, error["code"]), refused
    assert "seen postgres" in error["message"]
    assert "search_path" in error["hint"]
    assert 0 == done.code, done
    assert ["seen postgres", "INDEX odd postgres"] == [
        name for each in done.event("rehearsal.warned") for name in each.get("objects", [])
    ]
    newest = max(backup_dir.glob("*/manifest.json"), key=lambda path: path.stat().st_mtime)
    manifest = json.loads(newest.read_bytes())
    assert "restored" == manifest["verified"]
    assert ["INDEX odd postgres", "MATERIALIZED VIEW DATA seen postgres"] == manifest["except"]
    assert 0 == restored.code, restored
    views, indexes = (each["warning"] for each in restored.event("config.warned"))
    assert "not filled: seen postgres (" in views
    assert "not built: INDEX odd postgres (" in indexes


def test_what_is_there_already_is_adopted_on_the_way(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """First contact and a rehearsal of the rest in one run."""
    database.script("CREATE TABLE one (id int)")
    verify = "SELECT 's' AS suite, 'c' AS check, to_regclass('{}') IS NOT NULL AS ok;"
    migrations(
        ONE
        | {"001_one_verify.sql": verify.format("one")}
        | {"002_two.sql": "CREATE TABLE two ();", "002_two_verify.sql": verify.format("two")}
    )
    result = run()

    assert (0, ["002_two"]) == (result.code, result.event("rehearsal.passed")[0]["migrations"])
    assert 1 == len(result.event("migration.adopted"))


# --- and back -------------------------------------------------------------------------------------


def test_rollback_is_tried_and_the_file_run_again(run: Run, migrations: WriteMigrations) -> None:
    """A rollback file that leaves nothing behind is named, and nothing else is said."""
    migrations(
        ONE
        | {"001_one_rollback.sql": "DROP TABLE one;", "002_two.sql": "CREATE TABLE two ();"}
        | {"002_two_rollback.sql": "DROP TABLE two;"}
    )
    result = run()

    passed = result.event("rehearsal.passed")[0]
    assert (0, ["002_two", "001_one"]) == (result.code, passed["rollbacks_tried"])
    assert [] == result.event("rehearsal.warned")


INCOMPLETE = {
    "001_one.sql": "CREATE TABLE one (id int);\nCREATE INDEX one_id ON two (id);\n"
    "ALTER TABLE two ALTER n SET DEFAULT 2;\nCOMMENT ON TABLE two IS 'x';\n",
    "001_one_rollback.sql": "ALTER TABLE one ADD m int;\n",
}


def test_rollback_is_tried_where_objects_have_nothing_but_a_name(
    database: servers.Database, run: Run, migrations: WriteMigrations
) -> None:
    """A foreign server without options, and a dictionary without any, have no definition."""
    database.script(
        "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER far FOREIGN DATA WRAPPER w;"
        "CREATE TEXT SEARCH DICTIONARY plain (TEMPLATE = simple)"
    )
    migrations(ONE | {"001_one_rollback.sql": "DROP TABLE one;"})
    result = run()

    assert 0 == result.code, str(result)
    assert ["001_one"] == result.event("rehearsal.passed")[0]["rollbacks_tried"]


def test_rollback_that_leaves_something_is_named_object_by_object(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """A warning; the migration itself goes on."""
    database.script("CREATE TABLE two (id int, n int DEFAULT 1)")
    migrations(INCOMPLETE)
    result = run()

    assert 0 == result.code
    (warned,) = result.event("rehearsal.warned")
    assert ("warning", "001_one") == (warned["level"], warned["migration"])
    assert [
        "column public.one.id is new",
        "column public.one.m is new",
        "column public.two.n differs",
        "index public.one_id is new",
        "table public.one is new",
        "table public.two differs",
    ] == warned["objects"]


def test_rollback_that_leaves_something_is_refused_with_always(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Who demands a rehearsal demands a way back."""
    database.script("CREATE TABLE two (id int, n int DEFAULT 1)")
    migrations(INCOMPLETE)
    result = run(env={"PREFLIGHT_REHEARSE": "always"})

    error = result.finished["error"]
    assert (27, "rehearsal.rollback_differs") == (result.code, error["code"])
    assert "index public.one_id is new" in error["message"]
    assert [None] == database.query("SELECT to_regclass('one')")
    assert [] == scratches(database.server)


def test_rollback_that_fails_on_the_copy_is_a_warning_or_27_with_always(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """With the place in the rollback file; nobody takes anything back now."""
    migrations(ONE | {"001_one_rollback.sql": "\nDROP TABEL one;"})
    demanded = run(env={"PREFLIGHT_REHEARSE": "always"})
    before = database.query("SELECT to_regclass('one')")
    result = run()

    error = demanded.finished["error"]
    assert (27, "001_one_rollback.sql", 2) == (demanded.code, error["file"], error["line"])
    assert [None] == before
    assert 0 == result.code, str(result)
    (warned,) = result.event("rehearsal.warned")
    assert "001_one_rollback.sql:2:6: syntax error" in warned["reason"]
    assert ["one"] == database.query("SELECT to_regclass('one')::text")
    (remark,) = run("lint", "--json").json()["files"][0]["remarks"][-1:]
    assert remark.startswith("001_one_rollback.sql:2:1 does not parse: syntax error")


SEEDS = {
    "001_one.sql": "CREATE TABLE IF NOT EXISTS one (id int PRIMARY KEY);\n"
    "INSERT INTO one VALUES (1);",
    "001_one_rollback.sql": "SELECT 1; -- the rows stay",
    "002_two.sql": "CREATE TABLE two ();",
}


@pytest.mark.parametrize(("rehearse", "code"), [("auto", 0), ("always", 27)])
def test_file_that_cannot_follow_its_rollback_is_the_rollbacks_fault(
    rehearse: str, code: int, run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """It passed its first run, so `auto` warns and goes on; the row that stays is no object."""
    database.script("CREATE TABLE one (id int PRIMARY KEY)")
    migrations({name: text for name, text in SEEDS.items() if not name.startswith("002")})
    result = run(env={"PREFLIGHT_REHEARSE": rehearse})

    said = [each["reason"] for each in result.event("rehearsal.warned")]
    said += [result.finished["error"]["message"]] if code else []
    assert code == result.code
    assert 1 == len(said)
    assert "after its rollback the file does not run a second time" in said[0]
    assert "001_one.sql:2" in said[0]


def test_rollback_that_makes_the_same_again_is_no_difference(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Whatever numbers the server gives the new ones."""
    table = "CREATE TABLE app (id serial PRIMARY KEY, n text COLLATE \"C\" DEFAULT 'x')"
    policy = "CREATE POLICY mine ON app TO postgres USING (id > 0)"
    database.script(f"{table}; {policy}")
    migrations({"001_one.sql": "DROP TABLE app;", "001_one_rollback.sql": f"{table};\n{policy};\n"})
    result = run(env={"PREFLIGHT_REHEARSE": "always"})

    assert (0, ["001_one"]) == (
        result.code,
        result.event("rehearsal.passed")[0]["rollbacks_tried"],
    ), result


LISTS = """
CREATE TABLE app (id int, n int) WITH (autovacuum_vacuum_scale_factor = 0.05, fillfactor = 80);
ALTER TABLE app ALTER n SET (n_distinct = 7, n_distinct_inherited = 3);
GRANT SELECT (n) ON app TO pg_monitor, pg_read_all_stats;
CREATE INDEX app_n ON app (n) WITH (fillfactor = 60, deduplicate_items = off);
CREATE POLICY mine ON app TO pg_monitor, pg_read_all_stats;
CREATE FUNCTION f() RETURNS int LANGUAGE sql SET work_mem = '4MB' SET jit = off AS 'SELECT 1';
CREATE FOREIGN DATA WRAPPER w OPTIONS (one '1', two '2');
CREATE SERVER far FOREIGN DATA WRAPPER w OPTIONS (one '1', two '2');
CREATE TEXT SEARCH DICTIONARY plain (TEMPLATE = simple, accept = true, stopwords = english);
"""


@pytest.mark.parametrize(
    ("there", "back"),
    [
        ("ALTER TABLE app SET (autovacuum_vacuum_scale_factor = 0.01)",
         "ALTER TABLE app SET (autovacuum_vacuum_scale_factor = 0.05)"),
        ("ALTER TABLE app ALTER n SET (n_distinct = 5)",
         "ALTER TABLE app ALTER n SET (n_distinct = 7)"),
        ("REVOKE SELECT (n) ON app FROM pg_monitor", "GRANT SELECT (n) ON app TO pg_monitor"),
        ("ALTER INDEX app_n SET (fillfactor = 50)", "ALTER INDEX app_n SET (fillfactor = 60)"),
        ("ALTER POLICY mine ON app TO pg_monitor",
         "ALTER POLICY mine ON app TO pg_read_all_stats, pg_monitor"),
        ("ALTER FUNCTION f RESET work_mem", "ALTER FUNCTION f SET work_mem = '4MB'"),
        ("ALTER FOREIGN DATA WRAPPER w OPTIONS (DROP one)",
         "ALTER FOREIGN DATA WRAPPER w OPTIONS (ADD one '1')"),
        ("ALTER SERVER far OPTIONS (DROP one)", "ALTER SERVER far OPTIONS (ADD one '1')"),
        ("ALTER TEXT SEARCH DICTIONARY plain (accept = false)",
         "ALTER TEXT SEARCH DICTIONARY plain (accept = true)"),
    ],
)  # fmt: skip
def test_order_of_what_has_none_is_no_difference(
    run: Run, database: servers.Database, migrations: WriteMigrations, there: str, back: str
) -> None:
    """The server puts last what is set or granted anew; what was not set back is one still."""
    database.script(LISTS)
    migrations({"001_one.sql": f"{there};", "001_one_rollback.sql": f"{back};"})
    same = run("plan", "--rehearse", env={"PREFLIGHT_REHEARSE": "always"})
    migrations({"001_one.sql": f"{there};", "001_one_rollback.sql": "SELECT;"})
    other = run("plan", "--rehearse", env={"PREFLIGHT_REHEARSE": "always"})

    assert 0 == same.code, str(same)
    assert [] == same.event("rehearsal.warned")
    assert "rehearsal.rollback_differs" == other.finished["error"]["code"], str(other)


def test_file_that_goes_on_has_no_way_back_to_compare(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """What a half-done file has made before is not what its rollback leaves."""
    database.script(USERS)
    migrations(
        {
            "001_one.sql": "-- preflight: no-transaction\nCREATE TABLE one ();\n"
            "CREATE UNIQUE INDEX CONCURRENTLY u ON users (email);\n",
            "001_one_rollback.sql": "DROP INDEX u; DROP TABLE one;",
        }
    )
    left = run(env={"PREFLIGHT_REHEARSE": "off"})
    database.script("DELETE FROM users WHERE id = 0")
    result = run(env={"PREFLIGHT_REHEARSE": "always"})

    assert (31, 0) == (left.code, result.code), result


def test_rollback_command_is_rehearsed(
    run: Run, database: servers.Database, migrations: WriteMigrations, backup_dir: Path
) -> None:
    """What it would fail at, it fails at on the copy."""
    rollback = (
        migrations(ONE | {"001_one_rollback.sql": "DROP TABLE one;"}) / "001_one_rollback.sql"
    )
    assert 0 == run().code
    database.script("CREATE VIEW seen AS SELECT * FROM one")
    failed = run("rollback")
    rollback.write_text("DROP TABLE one CASCADE;")
    done = run("rollback")

    assert (27, "2BP01") == (failed.code, failed.finished["error"]["sqlstate"])
    assert (0, ["001_one"]) == (done.code, done.event("rehearsal.passed")[0]["migrations"])
    assert ["restored"] * 3 == verified(backup_dir)
    assert [None] == database.query("SELECT to_regclass('one')")


def test_force_is_rehearsed(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """A file that cannot run twice is not run twice."""
    migrations(ONE)
    assert 0 == run().code
    failed = run("force")
    migrations({"001_one.sql": "CREATE TABLE IF NOT EXISTS one (id int);"})
    done = run("force")

    assert (27, "42P07") == (failed.code, failed.finished["error"]["sqlstate"])
    assert (0, ["001_one"]) == (done.code, done.event("rehearsal.passed")[0]["migrations"])
    assert ["forced"] == database.query("SELECT how FROM preflight.migrations")


def test_backup_command_restores_what_it_made(run: Run, backup_dir: Path) -> None:
    """One backup, proven."""
    assert 0 == run("backup").code
    assert ["restored"] == verified(backup_dir)


# --- where nothing can be rehearsed ---------------------------------------------------------------

SKIPPED = [
    pytest.param({"PREFLIGHT_BACKUP": "off"}, {}, "PREFLIGHT_BACKUP=off", id="no backup"),
    pytest.param({}, {"001_one.sql": "\n CREATE ROLE x;"}, "001_one.sql:2 roles", id="role"),
    pytest.param(
        {},
        {"001_one.sql": "DO $$ BEGIN IF false THEN CREATE ROLE x; END IF; END $$;"},
        "001_one.sql:1 holds `CREATE ROLE x`",
        id="role in a block",
    ),
    pytest.param(
        {},
        {"001_one.sql": "DO $$ BEGIN EXECUTE (SELECT string_agg('SELECT 1', ';')); END $$;"},
        "a text that is only known when it runs",
        id="a text that nobody can read",
    ),
    pytest.param(
        {"PREFLIGHT_REHEARSE_URL": "postgresql://postgres@127.0.0.1:1/postgres"},
        {},
        "PREFLIGHT_REHEARSE_URL",
        id="nobody there",
    ),
]


@pytest.mark.fault("D100")
@pytest.mark.parametrize(("env", "files", "reason"), SKIPPED)
def test_auto_says_why_it_does_not_rehearse(  # noqa: PLR0913, PLR0917 -- a case each
    env: Mapping[str, str],
    files: Mapping[str, str],
    reason: str,
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    backup_dir: Path,
) -> None:
    """One event with the reason; the backup has been read back, and the files run."""
    migrations({**ONE, **files})
    result = run(env={**env, "PREFLIGHT_WAIT_TIMEOUT_S": "3"})
    database.script("DROP ROLE IF EXISTS x")

    (skipped,) = result.event("rehearsal.skipped")
    assert 0 == result.code
    assert reason in skipped["reason"]
    assert ("warning" if "only known" in reason else "info") == skipped["level"]
    assert [] == result.event("rehearsal.passed")
    assert ([] if "PREFLIGHT_BACKUP" in env else ["read"]) == verified(backup_dir)


@pytest.mark.fault("C073")
@pytest.mark.parametrize(("env", "files", "reason"), SKIPPED)
def test_always_ends_where_it_cannot_rehearse(  # noqa: PLR0913, PLR0917 -- a case each
    env: Mapping[str, str],
    files: Mapping[str, str],
    reason: str,
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
) -> None:
    """27, and nothing is migrated."""
    migrations({**ONE, **files})
    result = run(env={**env, "PREFLIGHT_REHEARSE": "always", "PREFLIGHT_WAIT_TIMEOUT_S": "3"})

    error = result.finished["error"]
    assert (27, "rehearsal.unavailable") == (result.code, error["code"])
    assert reason in error["message"]
    assert [0] == database.query("SELECT count(*) FROM preflight.migrations")
    assert [] == database.query("SELECT 1 FROM pg_roles WHERE rolname = 'x'")


def test_large_database_is_rehearsed_only_when_demanded(
    run: Run, migrations: WriteMigrations, backup_dir: Path
) -> None:
    """REHEARSE_MAX_MB is for `auto` alone."""
    migrations(ONE)
    automatic = run("backup", env={"PREFLIGHT_REHEARSE_MAX_MB": "1"})
    demanded = run(env={"PREFLIGHT_REHEARSE_MAX_MB": "1", "PREFLIGHT_REHEARSE": "always"})

    assert "PREFLIGHT_REHEARSE_MAX_MB=1" in automatic.event("rehearsal.skipped")[0]["reason"]
    assert (0, 0) == (automatic.code, demanded.code)
    assert ["read", "restored"] == verified(backup_dir)


def test_off_says_nothing(run: Run, migrations: WriteMigrations, backup_dir: Path) -> None:
    """Who has switched it off knows it."""
    migrations(ONE)
    result = run(env={"PREFLIGHT_REHEARSE": "off"})

    assert [] == [name for name in result.names if name.startswith("rehearsal")]
    assert ["read"] == verified(backup_dir)


# --- another server -------------------------------------------------------------------------------


def url_of(server: servers.Server) -> str:
    """Return how the superuser reaches a server."""
    password = quote(servers.PASSWORD, safe="")
    return f"postgresql://{servers.SUPERUSER}:{password}@{server.host}:{server.port}/postgres"


def test_other_server_can_be_rehearsed_on(
    run: Run,
    database: servers.Database,
    start_server: StartServer,
    migrations: WriteMigrations,
) -> None:
    """There also what reaches beyond the database may be tried; here nothing is made."""
    other = start_server(18)
    database.script(USERS)
    migrations({"001_one.sql": "CREATE ROLE made_here; CREATE TABLE one ();"})
    result = run(env={"PREFLIGHT_REHEARSE_URL": url_of(other)})
    elsewhere = servers.Database(other, "postgres")
    database.script("DROP ROLE IF EXISTS made_here")

    assert 0 == result.code, result
    assert f"{other.host}:{other.port}" == result.event("rehearsal.started")[0]["server"]
    assert 1 == len(elsewhere.query("SELECT 1 FROM pg_roles WHERE rolname = 'made_here'"))
    assert ([], []) == (scratches(other), scratches(database.server))
    assert servers.PASSWORD not in result.stdout


@pytest.fixture
def older(
    running: Callable[[int], servers.Server], create_database: CreateDatabase
) -> servers.Database:
    """Give a database on a server of 14 with a view, which 17 tells in other words."""
    live = create_database(running(14))
    live.script("CREATE TABLE t AS SELECT 1 AS id; CREATE VIEW v AS SELECT t.id FROM t")
    return live


def test_copy_on_a_newer_major_says_so(
    run: Run,
    older: servers.Database,
    server: servers.Server,
    create_database: CreateDatabase,
    migrations: WriteMigrations,
) -> None:
    """It proves the backup, but what passes there may fail in earnest: `fidelity`, and a warning.

    A clone by somebody else tells it as well; it has to be as the live database in every word.
    """
    clone = create_database(server)
    migrations({"001_one.sql": "CREATE TABLE one (id int);"})
    env = {**older.env(), "PREFLIGHT_REHEARSE": "always", "PREFLIGHT_FIRST_CONTACT": "pending"}
    result = run("plan", "--rehearse", env={**env, "PREFLIGHT_REHEARSE_URL": url_of(server)})
    older.script("DROP VIEW v; DROP TABLE t")
    at = url_of(server).removesuffix("postgres") + clone.name
    on_clone = run(env={**env, "PREFLIGHT_REHEARSE_CLONE_URL": at})

    assert [0, 0] == [result.code, on_clone.code], f"{result}{on_clone}"
    for each, verified in ((result, "restored"), (on_clone, "read")):
        (passed,), (started,) = each.event("rehearsal.passed"), each.event("rehearsal.started")
        assert (unlike := "PostgreSQL 17, not 14") == passed["fidelity"] == started["fidelity"]
        assert verified == passed["verified"]
        assert [True] == [unlike in said["reason"] for said in each.event("rehearsal.warned")]


def test_error_on_a_newer_major_is_no_reason_to_call_a_backup_bad(
    run: Run, older: servers.Database, server: servers.Server, backup_dir: Path
) -> None:
    """A rule may ask for the version; the backup stays, and is told as read."""
    below = "CHECK (current_setting('server_version_num')::int < 150000)"
    older.script(f"CREATE TABLE old (id int {below}); INSERT INTO old VALUES (1)")
    result = run("backup", env={**older.env(), "PREFLIGHT_REHEARSE_URL": url_of(server)})

    (skipped,) = result.event("rehearsal.skipped")
    assert (0, ["read"]) == (result.code, verified(backup_dir)), result
    assert ["TABLE DATA old"] == [each.rpartition(" ")[0] for each in skipped["objects"]]
    assert "a copy on PostgreSQL 17, not 14, cannot be restored: " in skipped["reason"]


@pytest.mark.parametrize("variable", ["PREFLIGHT_REHEARSE_URL", "PREFLIGHT_REHEARSE_CLONE_URL"])
def test_copy_on_an_older_major_is_none(
    run: Run,
    database: servers.Database,
    older: servers.Database,
    migrations: WriteMigrations,
    variable: str,
) -> None:
    """Both versions are named, where the server refused an option of CREATE DATABASE."""
    database.script(USERS)
    migrations({"001_one.sql": "CREATE TABLE one (id int);"})
    at = url_of(older.server).removesuffix("postgres") + older.name
    demanded = run(env={variable: at, "PREFLIGHT_REHEARSE": "always"})
    result = run(env={variable: at})

    (skipped,) = result.event("rehearsal.skipped")
    assert [27, 0] == [demanded.code, result.code], f"{demanded}{result}"
    said = f"of {variable} is PostgreSQL 14, not 17: an older one"
    assert said in skipped["reason"]
    assert said in demanded.finished["error"]["message"]


def service_of(database: servers.Database, place: Path) -> dict[str, str | None]:
    """Have a service file say all of the live database, its password too."""
    said = database.env()
    names = {"PGHOST": "host", "PGPORT": "port", "PGUSER": "user", "PGDATABASE": "dbname"}
    names["PGPASSWORD"] = "password"
    lines = [f"{key}={said[name]}" for name, key in names.items()]
    (place / "services").write_text("\n".join(["[live]", *lines, ""]))
    alone = {"PGSERVICE": "live", "PGSERVICEFILE": str(place / "services")}
    return {**dict.fromkeys(names), **alone}


def test_password_of_a_service_is_not_in_the_way_of_that_server_s_own(
    run: Run,
    database: servers.Database,
    start_server: StartServer,
    migrations: WriteMigrations,
    tmp_path: Path,
) -> None:
    """The client, too, has the password of the URL."""
    other = start_server(18)
    other_role = "CREATE ROLE scratch LOGIN SUPERUSER PASSWORD 'its own'"
    servers.Database(other, "postgres").script(other_role)
    migrations({"001_one.sql": "CREATE TABLE one ();"})
    url = f"postgresql://scratch:its%20own@{other.host}:{other.port}/postgres"
    env = {"PREFLIGHT_REHEARSE_URL": url, "PREFLIGHT_REHEARSE": "always"}
    result = run(env={**service_of(database, tmp_path), **env})

    assert 0 == result.code, result
    assert "rehearsal.passed" in result.names


def test_password_of_a_service_is_kept_from_that_server(
    run: Run, database: servers.Database, migrations: WriteMigrations, tmp_path: Path
) -> None:
    """Whoever asks for one, where its URL has none, gets none."""
    heard: list[bytes] = []

    def ask(caller: socket.socket) -> None:
        """Ask for a password in the clear."""
        code = faults.SSL_REQUEST
        while code in (faults.SSL_REQUEST, faults.GSS_REQUEST):
            length, code = struct.unpack("!ii", caller.recv(8))
            caller.sendall(b"N" * (code in (faults.SSL_REQUEST, faults.GSS_REQUEST)))
        caller.recv(length)
        caller.sendall(b"R" + struct.pack("!ii", 8, 3))
        heard.append(caller.recv(4096))

    migrations({"001_one.sql": "CREATE TABLE one ();"})
    with faults.stranger(ask) as there:
        url = f"postgresql://scratch@{there['PGHOST']}:{there['PGPORT']}/postgres"
        env = {"PREFLIGHT_REHEARSE_URL": url, "PREFLIGHT_WAIT_TIMEOUT_S": "0.5"}
        result = run("plan", "--rehearse", env={**service_of(database, tmp_path), **env})

    assert 27 == result.code, result
    assert {b""} == set(heard)


def test_what_leaves_that_server_is_not_tried_there_either(
    run: Run,
    database: servers.Database,
    start_server: StartServer,
    migrations: WriteMigrations,
) -> None:
    """A program, and a foreign table, would be reached from there as they are from here."""
    other = start_server(18)
    database.script(USERS)
    migrations({"001_one.sql": "COPY (SELECT 1) TO PROGRAM 'cat > /dev/null';"})
    result = run(env={"PREFLIGHT_REHEARSE_URL": url_of(other)})

    (skipped,) = result.event("rehearsal.skipped")
    assert 0 == result.code, result
    assert "would do so from the copy" in skipped["reason"]


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER DATABASE {} SET timezone = 'UTC';",
        "SELECT FROM {}.pg_catalog.pg_class LIMIT 1;",
        """DO $$ BEGIN IF current_database() <> '{0}' THEN -- as pg_cron does
RAISE EXCEPTION 'can only create extension in database {0}'; END IF; END $$;""",
    ],
)
def test_file_that_names_its_own_database_is_not_at_fault_where_that_is_called_otherwise(
    statement: str,
    run: Run,
    database: servers.Database,
    start_server: StartServer,
    migrations: WriteMigrations,
) -> None:
    """On another server the copy has a name of its own: the file goes on, and it is said."""
    other = start_server(18)
    database.script(USERS)
    migrations({"001_one.sql": f"CREATE TABLE one ();\n{statement.format(database.name)}"})
    result = run(env={"PREFLIGHT_REHEARSE_URL": url_of(other)})

    assert 0 == result.code, result
    (skipped,) = result.event("rehearsal.skipped")
    assert "another name" in skipped["reason"]


def test_live_server_is_asked_for_what_a_copy_says_is_not_there(database: servers.Database) -> None:
    """A setting also where the role may not read it; what it has not is a mistake of the file."""
    target = {name: str(value) for name, value in conninfo_to_dict(database.conninfo()).items()}
    config = Config(target, {}, Path("/nowhere"), run_id="run", wait_timeout_s=15)
    said = {
        'unrecognized configuration parameter "data_directory"': "42704",
        'unrecognized configuration parameter "no.such_setting"': "42704",
        f"can only create extension in database {database.name} (app.sql:1)": "P0001",
        "can only create extension in database another": "P0001",
    }
    with sessions.connect(config) as session:
        session.execute("SET ROLE pg_signal_backend")
        found = [
            scratch.lacks(session, RehearsalFailed("rehearsal.failed", text, sqlstate=state))
            for text, state in said.items()
        ]

    assert [True, False, True, False] == found


def test_filling_a_copy_waits_for_no_disk_and_the_files_do(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """What is dropped in the end need not survive; the files meet what they will in earnest."""
    database.script(
        "CREATE MATERIALIZED VIEW seen AS SELECT current_setting('synchronous_commit') AS how"
    )
    check = "DO $$ BEGIN ASSERT (SELECT how || current_setting('synchronous_commit') = 'offon'"
    migrations({"001_one.sql": f"{check} FROM seen); END $$;"})
    result = run("plan", "--rehearse", env={"PREFLIGHT_REHEARSE_ON": "server"})

    assert ["on"] == database.query("SELECT how FROM seen")
    assert 0 == result.code, result


def test_url_of_the_same_server_is_the_same_server(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """A role made by a rehearsal would stay, whatever name the server is called by."""
    password = quote(servers.PASSWORD, safe="")
    here = f"{servers.SUPERUSER}:{password}@localhost:{database.server.port}/postgres"
    migrations(ONE)
    proven = run(env={"PREFLIGHT_REHEARSE_URL": f"postgresql://{here}"})
    migrations({"002_two.sql": "CREATE ROLE made_twice;"})
    result = run(env={"PREFLIGHT_REHEARSE_URL": f"postgresql://{here}"})
    database.script("DROP ROLE IF EXISTS made_twice")

    assert (0, 1) == (proven.code, len(proven.event("rehearsal.passed")))
    assert "on the same server" in result.event("rehearsal.skipped")[0]["reason"]
    assert 0 == result.code


def test_other_server_that_goes_away_keeps_nobody_waiting(
    start: Start, start_server: StartServer, migrations: WriteMigrations
) -> None:
    """The live one is well: `auto` goes on without a rehearsal."""
    other = start_server(18)
    password = quote(servers.PASSWORD, safe="")
    url = f"postgresql+asyncpg://postgres:{password}@{other.host}:{other.port}/postgres"
    migrations({"001_one.sql": "CREATE TABLE one ();\nSELECT pg_sleep(0.5);\n"})
    process = start(env={"PREFLIGHT_REHEARSE_URL": url, "PREFLIGHT_WAIT_TIMEOUT_S": "3"})
    elsewhere = servers.Database(other, "postgres")
    faults.until(lambda: elsewhere.query(SLEEPING) == [1], "the copy's session sleeps")
    other.stop("immediate")
    result = process.wait()

    (skipped,) = result.event("rehearsal.skipped")
    assert (0, ["001_one"]) == (result.code, result.finished["applied"]), result
    assert "went away" in skipped["reason"]


def test_password_of_the_live_server_is_not_offered_to_another(
    run: Run, start_server: StartServer, migrations: WriteMigrations
) -> None:
    """A URL without a password means that there is none."""
    other = start_server(18)
    url = f"postgresql://postgres@{other.host}:{other.port}/postgres"
    migrations(ONE)
    env = {"PREFLIGHT_REHEARSE_URL": url, "PREFLIGHT_WAIT_TIMEOUT_S": "1"}
    result = run(env={**env, "POSTGRES_PASSWORD": None, "PGPASSWORD": servers.PASSWORD})

    assert 0 == result.code, result
    assert "no password supplied" in result.event("rehearsal.skipped")[0]["reason"]
    assert [] == result.event("rehearsal.started")  # else it was, and only pg_restore was refused


# --- nothing is left ------------------------------------------------------------------------------


def asleep(database: servers.Database) -> None:
    """Return when the file of SLEEPER sleeps on the copy."""
    faults.until(lambda: database.query(SLEEPING) == [1], "the copy's session sleeps")


def killed_on_the_copy(
    start: Start, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Kill a run in the middle of its rehearsal, and leave a file that the next one can apply."""
    directory = migrations(SLEEPER)
    process = start()
    asleep(database)
    process.signal(signal.SIGKILL)
    process.wait()
    (directory / "001_sleeper.sql").write_text("CREATE TABLE slept ();")


def test_signal_drops_the_copy(
    start: Start, run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """143 within 5 s, the copy gone, the lock free, and production never knew."""
    database.script(USERS)
    directory = migrations(SLEEPER)
    process = start()
    asleep(database)
    process.signal(signal.SIGTERM)
    result = process.wait(5)

    assert 143 == result.code, result
    assert "unfinished work is rolled back; the lock is free" in result.finished["error"]["message"]
    assert [] == scratches(database.server)
    assert [None] == database.query("SELECT to_regclass('slept')")
    (directory / "001_sleeper.sql").write_text("CREATE TABLE slept ();")
    assert 0 == run().code


@pytest.mark.fault("C073")
def test_next_run_drops_what_a_killed_one_left(
    start: Start, run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """It settles by itself."""
    killed_on_the_copy(start, database, migrations)
    left = scratches(database.server)
    result = run()

    assert 1 == len(left)
    assert (0, []) == (result.code, scratches(database.server))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_end_in_the_middle_of_the_restore_settles(  # noqa: PLR0913, PLR0917 -- a case each
    number: signal.Signals,
    start: Start,
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    backup_dir: Path,
) -> None:
    """Also while pg_restore is at work, which may live on for a while after a kill."""
    database.script("CREATE TABLE big AS SELECT md5(n::text) FROM generate_series(1, 300000) n")
    migrations(ONE)
    process = start()
    copy = process.wait_for_event("rehearsal.started")["database"]
    loading = f"SELECT 1 FROM pg_stat_activity WHERE datname = '{copy}' AND query LIKE 'COPY %'"
    faults.until(lambda: database.query(loading), "pg_restore loads rows")
    process.signal(number)
    code = process.wait(5).code
    left = scratches(database.server)
    again = run()

    stopped = (143, []) if number == signal.SIGTERM else (-9, [copy])
    assert stopped == (code, left)
    assert (0, []) == (again.code, scratches(database.server)), again
    assert ["read", "restored"] == verified(backup_dir)


def test_run_without_a_rehearsal_sweeps_too(
    start: Start, run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """A copy of production must not stay because somebody switched rehearsals off.

    Nor because the database was frozen meanwhile, whose sessions change nothing.
    """
    killed_on_the_copy(start, database, migrations)
    database.script(f"ALTER DATABASE {database.name} SET default_transaction_read_only = on")
    result = run("backup", env={"PREFLIGHT_REHEARSE": "off"})

    assert (0, []) == (result.code, scratches(database.server)), result


def test_copy_of_a_living_run_is_not_swept(
    start: Start, run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """A plan needs no lock, so one may be at work on its copy while another run comes by.

    Also one that reaches the server another way.
    """
    migrations(SLEEPER)
    plan = start("plan", "--rehearse")
    asleep(database)
    password = quote(servers.PASSWORD, safe="")
    url = f"postgresql://postgres:{password}@localhost:{database.server.port}/postgres"
    assert 0 == run("backup").code
    assert 0 == run("backup", env={"PREFLIGHT_REHEARSE_URL": url}).code
    left = scratches(database.server)
    plan.signal(signal.SIGTERM)

    assert 1 == len(left)
    assert (143, []) == (plan.wait().code, scratches(database.server))


@pytest.mark.fault("C073")
def test_database_that_is_not_ours_is_left_alone(
    run: Run, database: servers.Database, migrations: WriteMigrations, start: Start
) -> None:
    """Its name alone makes no database a leftover."""
    migrations(SLEEPER)
    process = start()
    asleep(database)
    (ours,) = scratches(database.server)
    process.signal(signal.SIGTERM)
    process.wait()
    theirs = "_".join([*ours.split("_")[:-2], "0123456789ab", "1"])
    database.script(f"CREATE DATABASE {theirs}")
    try:
        assert 0 == run("backup").code
        assert [theirs] == scratches(database.server)
    finally:
        database.script(f"DROP DATABASE {theirs}")


def test_copy_is_closed_to_everybody_else(
    start: Start, database: servers.Database, migrations: WriteMigrations
) -> None:
    """A new database lets everyone connect; this one holds everyone's rows.

    What publishes them is there, too, as it decides what may be updated; what subscribes is not.
    """
    database.script(
        "CREATE PUBLICATION p FOR ALL TABLES; CREATE ROLE stranger LOGIN PASSWORD 'x'; "
        "CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1 port=1' PUBLICATION p "
        "WITH (connect = false)"
    )
    migrations(SLEEPER)
    process = start()
    try:
        asleep(database)
        copy = servers.Database(database.server, scratches(database.server)[0])
        closed = "permission denied for database"
        with pytest.raises(psycopg.OperationalError, match=closed):
            psycopg.connect(copy.conninfo(user="stranger", password="x"))  # noqa: S106 -- as it says
        here = "SELECT count(*) FROM pg_subscription WHERE subdbid = "
        here += "(SELECT oid FROM pg_database WHERE datname = current_database())"
        assert ([1], [0]) == (copy.query("SELECT count(*) FROM pg_publication"), copy.query(here))
    finally:
        process.signal(signal.SIGTERM)
        process.wait()
        database.script("ALTER SUBSCRIPTION s SET (slot_name = NONE)")
        database.script("DROP SUBSCRIPTION s")
        database.script("DROP ROLE stranger")


def test_lost_session_ends_with_13_and_the_next_run_settles(
    start: Start, run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """The session that holds the lock makes and drops the copy; without it there is no going on."""
    directory = migrations(SLEEPER)
    process = start()
    asleep(database)
    database.script(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        f"WHERE application_name LIKE 'pg-preflight%' AND (datname = '{database.name}' "
        "OR datname LIKE 'preflight%')"
    )
    result = process.wait()
    (directory / "001_sleeper.sql").write_text("CREATE TABLE slept ();")
    again = run()

    assert (13, 0) == (result.code, again.code), result
    assert [] == scratches(database.server)


def test_many_at_once_rehearse_once(
    start: Start, database: servers.Database, migrations: WriteMigrations, backup_dir: Path
) -> None:
    """One takes the lock, proves and applies; the others find it done."""
    database.script(USERS)
    migrations(ONE)
    results = [each.wait(120) for each in [start() for _ in range(12)]]

    assert [0] * 12 == [each.code for each in results]
    assert 1 == sum(len(each.event("rehearsal.passed")) for each in results)
    assert (["restored"], []) == (verified(backup_dir), scratches(database.server))


# --- plan -----------------------------------------------------------------------------------------


def test_plan_says_what_was_measured_on_a_copy(
    run: Run, database: servers.Database, migrations: WriteMigrations, backup_dir: Path
) -> None:
    """And it writes nothing: no backup, no history, no copy that stays."""
    database.script(USERS)
    migrations({"001_one.sql": "\nALTER TABLE users ALTER id TYPE bigint;\n"})
    document = run("plan", "--rehearse", "--json", env={"PREFLIGHT_REHEARSE": "off"}).json()
    table = run("plan", "--rehearse", "--table").stdout

    (step,) = document["statements"]
    assert ("users", "ACCESS EXCLUSIVE") == (
        step["measured"]["locks"][0]["table"],
        step["measured"]["locks"][0]["mode"],
    )
    assert "users" == step["measured"]["rewrites"][0]["table"]
    assert "ACCESS EXCLUSIVE on users, 0." in table
    assert " kB → " in table
    assert [None] == database.query("SELECT to_regclass('preflight.migrations')")
    assert ([], []) == ([*backup_dir.iterdir()], scratches(database.server))


def test_plan_that_fails_on_the_copy_is_shown_and_ends_with_27(
    run: Run, database: servers.Database, migrations: WriteMigrations, backup_dir: Path
) -> None:
    """The table first, then the reason."""
    database.script(USERS)
    migrations({"001_one.sql": "CREATE UNIQUE INDEX ON users (email);\n"})
    result = run("plan", "--rehearse", "--table")

    assert (27, "23505") == (result.code, result.finished["error"]["sqlstate"])
    assert "001:1" in result.stdout
    assert ([], []) == ([*backup_dir.iterdir()], scratches(database.server))


def test_role_that_becomes_another_one_is_rehearsed_without_owners(
    run: Run,
    database: servers.Database,
    becoming: dict[str, str],
    migrations: WriteMigrations,
) -> None:
    """The copy that is made anew, where an owner cannot be had, lets the role in as the first."""
    stranger = f"{database.name}_stranger"
    database.script(
        f"CREATE ROLE {stranger}; CREATE TABLE app.theirs (id int); "
        f"GRANT SELECT ON app.theirs TO {database.name}_owner; "
        f"ALTER TABLE app.theirs OWNER TO {stranger}"
    )
    migrations({"001_one.sql": "ALTER TABLE here ADD n int;"})
    result = run(env=becoming)
    database.script(f"DROP OWNED BY {stranger}; DROP ROLE {stranger}")

    assert 0 == result.code, result
    (passed,) = result.event("rehearsal.passed")
    assert ["owners", "rights"] == passed["without"]


def test_limit_of_a_role_makes_no_healthy_backup_a_bad_one(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """An index that may not be sorted again is nothing that the dump lacks."""
    role = f"{database.name}_limited"
    database.script(
        f"CREATE ROLE {role} LOGIN CREATEDB PASSWORD 'x'; ALTER ROLE {role} SET temp_file_limit = "
        f"'64kB'; ALTER ROLE {role} SET maintenance_work_mem = '1MB'; "
        f"ALTER DATABASE {database.name} OWNER TO {role}; CREATE TABLE many AS "
        "SELECT n, md5(n::text) AS name FROM generate_series(1, 100000) n; "
        f"ALTER TABLE many ADD PRIMARY KEY (name); ALTER TABLE many OWNER TO {role}"
    )
    migrations({"001_one.sql": "CREATE TABLE one (id int);"})
    env = {**database.env(user=role, password="x"), "PREFLIGHT_FIRST_CONTACT": "pending"}  # noqa: S106 -- as it says
    result = run(env=env | {"PREFLIGHT_REHEARSE": "auto"})
    with database.server.connect() as connection:
        connection.execute(f"DROP DATABASE {database.name} WITH (FORCE)".encode())
        connection.execute(f"DROP ROLE {role}".encode())

    assert 0 == result.code, result
    assert "temp_file_limit" in result.event("rehearsal.skipped")[0]["reason"]


def test_full_disk_of_ours_is_not_the_servers() -> None:
    """The backup's disk may be full when a proof is noted: no copy is refused ever after."""
    ours = BackupFailed("backup.not_writable", "no space for a backup: No space left on device")
    ours.__cause__ = OSError(errno.ENOSPC, "No space left on device")

    assert not copies._ran_full(ours)  # noqa: SLF001 -- what the journal says
    assert copies._ran_full(scratch.Full("no room"))  # noqa: SLF001
    assert copies._ran_full(psycopg.errors.DiskFull("No space left on device"))  # noqa: SLF001


def leave_invalid(database: servers.Database) -> None:
    """Make a table with an index `ib` that is INVALID."""
    database.script("CREATE TABLE t (id int, b int); INSERT INTO t VALUES (1, 1), (2, 1)")
    with (
        database.server.connect(database.name) as session,
        pytest.raises(psycopg.errors.UniqueViolation),
    ):
        session.execute("CREATE UNIQUE INDEX CONCURRENTLY ib ON t (b)")
    database.script("DELETE FROM t WHERE id = 2")


@pytest.mark.parametrize(
    "statement",
    ["DROP INDEX ib", "DROP INDEX CONCURRENTLY public.ib", "REINDEX INDEX CONCURRENTLY ib",
     "ALTER INDEX ib RENAME TO was_ib"],
)  # fmt: skip
def test_file_that_names_an_invalid_index_cannot_be_tried_and_is_no_fault(
    run: Run, database: servers.Database, migrations: WriteMigrations, statement: str
) -> None:
    """No dump holds one, so no copy does; and to drop it is what we advise."""
    leave_invalid(database)
    migrations({"001_one.sql": f"-- preflight: no-transaction\n{statement};"})
    plan = run("plan", "--json", env={"PREFLIGHT_FIRST_CONTACT": "pending"})
    result = run(env={"PREFLIGHT_REHEARSE": "auto", "PREFLIGHT_FIRST_CONTACT": "pending"})

    (told,) = plan.json()["statements"]
    mode = "ACCESS EXCLUSIVE" if statement == "DROP INDEX ib" else "SHARE UPDATE EXCLUSIVE"
    assert {mode} == {each["mode"] for each in told["locks"]}, told
    assert 0 == result.code, result
    (skipped,) = result.event("rehearsal.skipped")
    assert "does not exist" in skipped["reason"]


def test_invalid_index_is_told_with_the_backup_and_where_its_name_is_taken(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """No copy has it, so the rehearsal cannot see it in the way; it is no loss, and none to adopt.

    Where something else has its name, too, nobody knows which is meant.
    """
    leave_invalid(database)
    migrations({"001_one.sql": "CREATE INDEX ib ON t (id);"})
    env = {"PREFLIGHT_REHEARSE": "always", "PREFLIGHT_FIRST_CONTACT": "pending"}
    result = run(env=env)
    database.script("CREATE SCHEMA other; CREATE TABLE other.ib ()")
    doubtful = run(env=env)

    assert [30, 30] == [result.code, doubtful.code], str(result)
    (without,) = result.event("backup.verified")[0]["without"]
    assert {"what": "index public.ib", "why": "INVALID, no dump holds it"} == without
    assert len(result.event("rehearsal.passed")) == 1
    hints = [each.finished["error"]["hint"] for each in (result, doubtful)]
    assert [True, False] == ["DROP INDEX CONCURRENTLY public.ib;" in each for each in hints]
    assert [False, True] == ["adopt" in each for each in hints]
