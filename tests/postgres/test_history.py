"""The two tables: who may read them, what is written when, and what harms them."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from tests import program, servers
from tests.conftest import Run, WriteMigrations

A = {"001_a.sql": "CREATE TABLE a ();", "001_a_rollback.sql": "DROP TABLE a;"}


@pytest.fixture
def environment(environment: dict[str, str]) -> dict[str, str]:
    """Do without backups, which have tests of their own."""
    return environment | {"PREFLIGHT_BACKUP": "off"}


@pytest.fixture
def role(database: servers.Database) -> Iterator[dict[str, str]]:
    """Give a role without any right: its variables."""
    name = f"{database.name}_app"
    database.query(SQL("CREATE ROLE {} LOGIN PASSWORD 'p'").format(Identifier(name)))
    yield {"PGUSER": name, "PGPASSWORD": "p"}
    database.query(SQL("REASSIGN OWNED BY {} TO postgres").format(Identifier(name)))
    database.query(SQL("DROP OWNED BY {} CASCADE").format(Identifier(name)))
    database.query(SQL("DROP ROLE {}").format(Identifier(name)))


def error_of(result: program.Result) -> dict[str, Any]:
    """Return the error that a run ended with."""
    found: dict[str, Any] = result.finished["error"]
    return found


def grant_create(database: servers.Database, role: dict[str, str]) -> None:
    """Let the role make schemas in the database and tables in public."""
    name = Identifier(role["PGUSER"])
    database.query(SQL("GRANT CREATE ON DATABASE {} TO {}").format(Identifier(database.name), name))
    database.query(SQL("GRANT CREATE ON SCHEMA public TO {}").format(name))


def test_tables_have_the_columns_of_the_contract(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Other programs read them."""
    migrations(A)
    result = run()

    promised = {
        ("version", "bigint"),
        ("name", "text"),
        ("checksum", "text"),
        ("state", "text"),
        ("how", "text"),
        ("statements_done", "integer"),
        ("statements_started", "integer"),
        ("up_sql", "text"),
        ("rollback_sql", "text"),
        ("breaking", "boolean"),
        ("applied_at", "timestamp with time zone"),
        ("duration_ms", "bigint"),
        ("applied_by", "text"),
        ("backup", "text"),
        ("tool_version", "text"),
        ("run_id", "text"),
    }
    found = database.query(
        "SELECT column_name, data_type FROM information_schema.columns WHERE "
        "(table_schema, table_name) = ('preflight', 'migrations')"
    )
    assert set() == promised - set(found)
    run_id = result.finished["run_id"]
    assert [
        (1, "001_a", "done", "applied", 1, "CREATE TABLE a ();", "DROP TABLE a;", False, run_id)
    ] == database.query(
        "SELECT version, name, state, how, statements_done, up_sql, rollback_sql, breaking, run_id "
        "FROM preflight.migrations"
    )
    assert [("applied", 1, run_id, "postgres")] == database.query(
        "SELECT event, version, run_id, role FROM preflight.journal"
    )


def test_everyone_may_read_five_columns_and_nothing_else(
    run: Run, database: servers.Database, migrations: WriteMigrations, role: dict[str, str]
) -> None:
    """A role with CONNECT only can wait for the schema, but sees no text."""
    migrations(A)
    run()

    with psycopg.connect(
        database.conninfo(user=role["PGUSER"], password=role["PGPASSWORD"])
    ) as session:
        session.autocommit = True
        assert (1, "001_a", "done", False) == session.execute(
            "SELECT version, name, state, breaking FROM preflight.migrations WHERE checksum <> ''"
        ).fetchone()
        for query in (
            "SELECT up_sql FROM preflight.migrations",
            "SELECT rollback_sql FROM preflight.migrations",
            "SELECT applied_by FROM preflight.migrations",
            "TABLE preflight.journal",
            "DELETE FROM preflight.migrations",
            "CREATE TABLE preflight.x ()",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute(query)
    assert 0 == run(env=role).code
    assert 0 == run("check", env=role).code


def test_history_of_another_role_is_refused(
    run: Run, database: servers.Database, migrations: WriteMigrations, role: dict[str, str]
) -> None:
    """26 when there is work to do, and it names the owner."""
    migrations(A)
    run()
    grant_create(database, role)
    migrations({"002_b.sql": "CREATE TABLE b ();"})

    result = run(env=role)

    assert (26, "history.owner") == (result.code, error_of(result)["code"])
    assert "'postgres'" in error_of(result)["message"]


def test_no_right_to_make_the_schema_is_told_before_the_backup(
    run: Run, migrations: WriteMigrations, role: dict[str, str]
) -> None:
    """22: a dump of an hour must not come before it."""
    migrations(A)

    result = run(env=role | {"PREFLIGHT_BACKUP": "required"})

    assert (22, "target.no_right") == (result.code, error_of(result)["code"])
    assert [] == result.event("backup.started")


def test_schema_that_an_administrator_made_is_used(
    run: Run, database: servers.Database, migrations: WriteMigrations, role: dict[str, str]
) -> None:
    """The role may create in it, but neither schemas nor comments on that one."""
    database.query("CREATE SCHEMA preflight")
    database.query(
        SQL("GRANT USAGE, CREATE ON SCHEMA preflight, public TO {}").format(
            Identifier(role["PGUSER"])
        )
    )
    migrations(A)

    result = run(env=role)

    assert 0 == result.code, str(result)
    assert [role["PGUSER"]] == database.query("SELECT applied_by FROM preflight.migrations")


@pytest.mark.parametrize(
    "harm",
    [
        "ALTER TABLE preflight.migrations DROP COLUMN up_sql",
        "ALTER TABLE preflight.migrations DROP COLUMN checksum CASCADE",
        "ALTER TABLE preflight.journal DROP COLUMN error",
        "ALTER TABLE preflight.migrations ALTER version TYPE text",
        "ALTER TABLE preflight.migrations ALTER breaking DROP DEFAULT, ALTER breaking TYPE text",
        "DROP TABLE preflight.migrations",
        (
            "CREATE TABLE m AS TABLE preflight.migrations; DROP TABLE preflight.migrations; "
            "CREATE VIEW preflight.migrations AS TABLE m"
        ),
    ],
)
def test_damaged_history_is_told_and_not_guessed_at(
    run: Run, database: servers.Database, migrations: WriteMigrations, harm: str
) -> None:
    """26, and nothing runs."""
    migrations(A)
    run()
    database.script(harm)
    migrations({"002_b.sql": "CREATE TABLE b ();"})

    result = run()

    assert (26, "history.damaged") == (result.code, error_of(result)["code"]), str(result)
    assert [None] == database.query("SELECT to_regclass('b')")


@pytest.mark.parametrize("path", ['"$user", public', "public, pg_catalog"])
def test_nothing_in_public_can_come_between(
    run: Run, database: servers.Database, migrations: WriteMigrations, path: str
) -> None:
    """Functions, operators, casts and types that somebody planted are not ours to call."""
    database.script(TROJANS)
    database.query(
        SQL("ALTER DATABASE {} SET search_path = {}").format(
            Identifier(database.name),
            SQL(path),
        )
    )
    migrations(
        {
            "001_a.sql": "CREATE TABLE a ();",
            "002_b.sql": "-- preflight: no-transaction\nCREATE TABLE b (i int4);\n"
            "CREATE INDEX CONCURRENTLY b_i ON b (i);",
        }
    )

    result = run(env={"PREFLIGHT_FIRST_CONTACT": "pending"})

    assert 0 == result.code, str(result)
    assert ["001_a", "002_b"] == result.finished["applied"]
    assert 0 == run("check").code


TROJANS = (
    """
CREATE FUNCTION trap() RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RAISE 'trojan'; END $$;
CREATE DOMAIN public.oid AS pg_catalog.int4 CHECK (trap());
CREATE DOMAIN public.name AS pg_catalog.text CHECK (trap());
CREATE DOMAIN public.text AS pg_catalog.text CHECK (trap());
CREATE DOMAIN public.int4 AS pg_catalog.int4 CHECK (trap());
CREATE DOMAIN public.int8 AS pg_catalog.int8 CHECK (trap());
CREATE DOMAIN public.float8 AS pg_catalog.float8 CHECK (trap());
CREATE DOMAIN public.regclass AS pg_catalog.text CHECK (trap());
DROP DOMAIN public.int4;
"""
    + "".join(
        f"""
CREATE FUNCTION public.trap(l pg_catalog.{left}, r pg_catalog.{right}) RETURNS pg_catalog.bool
 LANGUAGE plpgsql AS $$ BEGIN RAISE 'trojan'; END $$;
CREATE OPERATOR public.= (LEFTARG = pg_catalog.{left}, RIGHTARG = pg_catalog.{right},
 FUNCTION = public.trap);
CREATE OPERATOR public.<> (LEFTARG = pg_catalog.{left}, RIGHTARG = pg_catalog.{right},
 FUNCTION = public.trap);
"""
        for left, right in [
            ("int8", "int8"),
            ("int8", "int4"),
            ("int8", "int2"),
            ("text", "text"),
            ("name", "name"),
            ("name", "text"),
            ("oid", "oid"),
            ("int2", "int4"),
            ("int4", "int4"),
            ("bool", "bool"),
        ]
    )
    + "".join(
        f"CREATE FUNCTION public.{name}({kind}) RETURNS pg_catalog.{kind} LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE 'trojan'; END $$;\n"
        for name, kind in [
            ("upper", "text"),
            ("lower", "text"),
            ("count", "int8"),
            ("format", "text"),
        ]
    )
)


def test_event_trigger_that_objects_is_named(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """22 with its words when it forbids our tables; one that only looks on is no matter."""
    database.script(
        "CREATE FUNCTION public.no() RETURNS event_trigger LANGUAGE plpgsql AS "
        "$$ BEGIN IF current_setting('test.deny', true) = 'on' THEN RAISE 'no DDL today'; END IF; "
        "RAISE NOTICE 'DDL'; END $$; CREATE EVENT TRIGGER no ON ddl_command_start "
        "EXECUTE FUNCTION public.no();"
    )
    migrations(A)
    env = {"PREFLIGHT_FIRST_CONTACT": "pending"}

    denied = run(env=env | {"PGOPTIONS": "-c test.deny=on"})

    assert (22, "target.no_history") == (denied.code, error_of(denied)["code"])
    assert "no DDL today" in error_of(denied)["message"]
    assert 0 == run(env=env).code


def test_tables_of_other_tools_stay_as_they_are(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Also when they are called as ours are, in another schema."""
    database.script(
        "CREATE TABLE schema_migrations (version text); INSERT INTO schema_migrations VALUES ('7');"
        "CREATE TABLE public.migrations (id int); INSERT INTO public.migrations VALUES (7)"
    )
    migrations(A)

    assert 0 == run(env={"PREFLIGHT_FIRST_CONTACT": "pending"}).code
    assert [("7", 7)] == database.query(
        "SELECT s.version, m.id FROM schema_migrations s, migrations m"
    )


def test_two_schemas_are_two_histories(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Two apps share a database."""
    migrations(A)
    assert 0 == run().code
    migrations({"001_a.sql": "CREATE TABLE a2 ();"})

    other = {"PREFLIGHT_SCHEMA": "other", "PREFLIGHT_FIRST_CONTACT": "pending"}
    result = run(env=other)

    assert ["001_a"] == result.finished["applied"]
    assert [1, 1] == database.query(
        "SELECT count(*) FROM preflight.migrations UNION ALL SELECT count(*) FROM other.migrations"
    )
    assert 26 == run().code


@pytest.mark.parametrize(
    ("harm", "code", "words"),
    [
        ("UPDATE preflight.migrations SET checksum = 'x'", 26, "edited"),
        (
            (
                "INSERT INTO preflight.migrations (version, name, checksum, state, how, up_sql, "
                "tool_version, run_id) VALUES (0, '000_z', '', 'done', 'applied', '', '', '')"
            ),
            26,
            "missing",
        ),
        ("UPDATE preflight.migrations SET state = 'running'", 32, "transaction now"),
    ],
)
def test_history_that_contradicts_the_files_stops_the_run(  # noqa: PLR0913, PLR0917 -- fixtures
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    harm: str,
    code: int,
    words: str,
) -> None:
    """Edited, missing, and a row that no transactional file leaves behind."""
    migrations(A)
    run()
    database.script(harm)

    result = run()

    assert code == result.code, str(result)
    assert words in error_of(result)["message"]


def test_late_file_is_out_of_order(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """26, or it runs where that is allowed."""
    migrations({"002_b.sql": "CREATE TABLE b ();"})
    run()
    migrations(A)

    assert 26 == run().code
    assert ["001_a"] == run(env={"PREFLIGHT_OUT_OF_ORDER": "allow"}).finished["applied"]
    assert [2] == database.query("SELECT count(*) FROM preflight.migrations")


def test_history_that_drops_new_rows_ends_the_run(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """26 after a few rounds, with one backup.skipped, instead of planning for ever."""
    migrations({"001_a.sql": "CREATE TABLE a ();"})
    assert 0 == run().code
    database.script(
        "CREATE FUNCTION preflight.drop() RETURNS trigger LANGUAGE plpgsql "
        "AS 'BEGIN RETURN NULL; END'; CREATE TRIGGER drop BEFORE INSERT ON preflight.migrations "
        "FOR EACH ROW EXECUTE FUNCTION preflight.drop()"
    )
    migrations({"002_b.sql": "CREATE TABLE b ();"})
    result = run(env={"PREFLIGHT_BACKUP": "off"})

    assert (26, "history.damaged") == (result.code, result.finished["error"]["code"]), str(result)
    assert "cannot be written" in result.finished["error"]["message"]
    assert 1 == len(result.event("backup.skipped"))
    assert [None] == database.query("SELECT to_regclass('b')")
