"""The two tables: who may read them, what is written when, and what harms them."""

import hashlib
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from preflight.history import ledger, remembered, tables
from preflight.server import lock
from tests import house, program, servers
from tests.conftest import CreateDatabase, Run, Start, WriteMigrations

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
    run: Run, database: servers.Database, migrations: WriteMigrations, role: dict[str, str]
) -> None:
    """22: a dump of an hour must not come before it."""
    migrations(A)

    result = run(env=role | {"PREFLIGHT_BACKUP": "required"})

    assert (22, "target.no_right") == (result.code, error_of(result)["code"])
    assert [] == result.event("backup.started")
    assert "CREATE ON DATABASE" in error_of(result)["hint"]

    database.query("CREATE SCHEMA preflight")
    database.query(SQL("GRANT USAGE ON SCHEMA preflight TO {}").format(Identifier(role["PGUSER"])))
    half = run(env=role)

    assert (22, "target.no_right") == (half.code, error_of(half)["code"])
    assert "may not make the history's tables" in error_of(half)["message"]
    assert "GRANT USAGE, CREATE ON SCHEMA preflight" in error_of(half)["hint"]


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


@pytest.mark.fault("E127")
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


EVERY = (
    ("check",), ("plan",), ("verify",), ("wait", "--schema"), ("up",), ("rollback",),
    ("force", "1"), ("adopt", "1"),
)  # fmt: skip
TWO = (("check",), ("up",))  # one that reads and one that writes: all others look the same way


@pytest.mark.fault("E127")
@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("DROP TABLE preflight.migrations", "migrations is gone"),
        ("DROP TABLE preflight.journal", "journal is gone"),
        ("ALTER TABLE preflight.migrations DROP COLUMN how", "no column how"),
        ("ALTER TABLE preflight.journal DROP COLUMN at", "no column at"),
        ("ALTER TABLE preflight.migrations ALTER duration_ms TYPE text", "duration_ms is text"),
        (
            (
                "CREATE DOMAIN public.sum AS text; "
                "ALTER TABLE preflight.migrations ALTER checksum TYPE public.sum"
            ),
            "checksum is public.sum",
        ),
        (
            (
                "ALTER TABLE preflight.migrations DROP COLUMN breaking, "
                "ADD breaking bool GENERATED ALWAYS AS (version > 9) STORED"
            ),
            "breaking is generated",
        ),
        ("CREATE TABLE c () INHERITS (preflight.migrations)", "inherits"),
        ("CREATE RULE r AS ON INSERT TO preflight.journal DO INSTEAD NOTHING", "a rule"),
        ("DROP TABLE preflight.migrations; CREATE SEQUENCE preflight.migrations", "a sequence"),
        ("DROP TABLE preflight.journal; CREATE TYPE preflight.journal AS (i int)", "a type"),
        (
            (
                "ALTER TABLE preflight.migrations DROP CONSTRAINT migrations_pkey; "
                "INSERT INTO preflight.migrations TABLE preflight.migrations"
            ),
            "no primary key",
        ),
        ("ALTER TABLE preflight.journal ALTER id DROP IDENTITY", "no default for id"),
        ("ALTER TABLE preflight.journal ALTER role DROP DEFAULT", "no default for role"),
        ("ALTER TABLE preflight.migrations ALTER undoing DROP DEFAULT", "no default for undoing"),
        (
            (
                "ALTER TABLE preflight.migrations ADD extra int NOT NULL DEFAULT 1; "
                "ALTER TABLE preflight.migrations ALTER extra DROP DEFAULT"
            ),
            "no default for extra",
        ),
        (
            (
                "ALTER TABLE preflight.migrations ALTER checksum DROP NOT NULL; "
                "UPDATE preflight.migrations SET checksum = NULL"
            ),
            "incomplete",
        ),
    ],
)
def test_damaged_history_is_26_for_every_command(
    run: Run, database: servers.Database, migrations: WriteMigrations, harm: str, words: str
) -> None:
    """Whether it reads or writes: never "not applied", never made anew, never a bug of ours."""
    migrations(A)
    run()
    database.script(harm)

    for command in EVERY if harm == "DROP TABLE preflight.migrations" else TWO:
        result = run(*command)
        assert (26, "history.damaged") == (result.code, error_of(result)["code"]), str(result)
        assert words in error_of(result)["message"]
    assert ["a"] == database.query("SELECT relname FROM pg_class WHERE relname = 'a'")


def test_adoption_that_cannot_be_recorded_is_no_bug_of_ours(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """A constraint that somebody added refuses our rows: 26, and nothing is changed."""
    migrations(A)
    run()
    database.script("ALTER TABLE preflight.migrations ADD CHECK (false) NOT VALID")
    migrations({name: f"{text}-- edited" for name, text in A.items()})

    result = run("adopt", "1")

    assert (26, "migration.not_recorded") == (result.code, error_of(result)["code"]), str(result)
    assert ["applied"] == database.query("SELECT how FROM preflight.migrations")


@pytest.mark.parametrize(
    ("what", "busy"),
    [
        ("TABLE pg_locks", False),
        ("TABLE pg_stat_activity", True),  # who holds the lock
        ("FUNCTION pg_control_system()", False),
    ],
)
def test_catalog_that_was_closed_is_named(  # noqa: PLR0913 -- fixtures
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    role: dict[str, str],
    what: str,
    *,
    busy: bool,
) -> None:
    """22 for a role that may not look, where nothing can be done without; never a bug of ours."""
    grant_create(database, role)
    migrations(A)
    database.script(f"REVOKE ALL ON {what} FROM PUBLIC")
    with psycopg.connect(database.conninfo(), autocommit=True) as session:
        if busy:
            session.execute("SELECT pg_advisory_lock(%s)", [lock.key("preflight")])
        result = run(env=role | {"PREFLIGHT_BACKUP": "required"})

    assert (22, "target.denied") == (result.code, error_of(result)["code"]), str(result)
    assert what.split()[1].removesuffix("()") in error_of(result)["message"]


CANCEL_WAITING = """SELECT pg_cancel_backend(pid) FROM pg_stat_activity
WHERE application_name LIKE 'pg-preflight%' AND datname = current_database()
AND cardinality(pg_blocking_pids(pid)) > 0"""


def test_question_that_somebody_cancels_is_no_bug_of_ours(
    run: Run,
    start: Start,
    database: servers.Database,
    connection: psycopg.Connection,
    migrations: WriteMigrations,
) -> None:
    """12: run again; nothing is wrong with the database or with us."""
    migrations(A)
    run()
    connection.execute("BEGIN; LOCK TABLE preflight.migrations")
    process = start("check", env={"PREFLIGHT_LOCK_TIMEOUT_MS": "30000"})
    while not database.query(CANCEL_WAITING):
        assert process.running
    result = process.wait()

    assert (12, "database.cancelled") == (result.code, error_of(result)["code"]), str(result)
    assert "57014" == error_of(result)["sqlstate"]


def test_name_that_is_no_text_is_no_bug_of_ours(
    run: Run,
    server: servers.Server,
    create_database: CreateDatabase,
    migrations: WriteMigrations,
) -> None:
    """What nobody can read in a database without an encoding is unknown, or 22 in its words."""
    options = "TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'"
    database = create_database(server, options=options)
    with psycopg.connect(database.conninfo(), client_encoding="SQL_ASCII") as session:
        session.execute(b"CREATE SCHEMA s; CREATE TABLE s.caf\xe9 ()")
    migrations({"001_s.sql": "DROP SCHEMA s CASCADE;"})

    result = run("plan", "--json", env=database.env() | {"PREFLIGHT_FIRST_CONTACT": "pending"})

    (statement,) = result.json()["statements"]
    assert (0, True) == (result.code, statement["unknown"]), str(result)
    assert str(statement["destroys"]).startswith("schema s")

    with psycopg.connect(database.conninfo(), client_encoding="SQL_ASCII") as session:
        column = b"caf\xe9 int GENERATED ALWAYS AS (id) STORED"
        session.execute(b"CREATE TABLE t (id int, " + column + b")")
    migrations({"001_s.sql": "ALTER TABLE t DROP COLUMN id CASCADE;"})

    result = run("plan", env=database.env() | {"PREFLIGHT_FIRST_CONTACT": "pending"})

    assert (22, "target.refused") == (result.code, error_of(result)["code"]), str(result)
    assert "UTF8" in error_of(result)["message"]


def test_list_of_settings_that_is_kept_from_a_role_is_done_without(
    run: Run, database: servers.Database, migrations: WriteMigrations, role: dict[str, str]
) -> None:
    """What a file leaves in its session is asked for in another way; a word of it is enough."""
    grant_create(database, role)
    database.query("REVOKE SELECT ON pg_settings FROM PUBLIC")
    texts = ["CREATE SCHEMA s; -- to set t.usr later", "SET LOCAL app.a = 1", "CREATE TABLE s.t ()"]
    migrations({f"{n:03}_x.sql": text for n, text in enumerate(texts, 1)})

    result = run(env=role | {"PREFLIGHT_BACKUP": "off"})

    assert (0, [1, 2, 3]) == (
        result.code,
        [e["version"] for e in result.event("migration.applied")],
    )


@pytest.mark.parametrize("force", [False, True])
def test_row_security_on_the_history_is_26_for_every_command(
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    role: dict[str, str],
    *,
    force: bool,
) -> None:
    """Rows that a role cannot see are not taken for files that were never applied."""
    migrations(A)
    run()
    said = "FORCE" if force else "ENABLE"
    database.script(
        "ALTER TABLE preflight.migrations ENABLE ROW LEVEL SECURITY; "
        f"ALTER TABLE preflight.migrations {said} ROW LEVEL SECURITY"
    )

    for command in TWO if force else EVERY:
        result = run(*command, env={} if force else role)
        assert (26, "history.not_readable") == (result.code, error_of(result)["code"]), str(result)
        assert "row security" in error_of(result)["message"]


def test_event_trigger_that_protects_every_table_does_not_hide_the_history(
    run: Run, database: servers.Database, migrations: WriteMigrations, role: dict[str, str]
) -> None:
    """Hosted databases have one that switches row security on for each new table."""
    database.script(
        "CREATE FUNCTION public.protect() RETURNS event_trigger LANGUAGE plpgsql AS $$ DECLARE "
        "made record; BEGIN FOR made IN SELECT * FROM pg_event_trigger_ddl_commands() "
        "WHERE object_type = 'table' LOOP EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL "
        "SECURITY', made.object_identity); "
        "END LOOP; END $$; CREATE EVENT TRIGGER protect ON ddl_command_end "
        "WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION public.protect()"
    )
    migrations(A)

    assert 0 == run(env={"PREFLIGHT_FIRST_CONTACT": "pending"}).code
    assert 0 == run("wait", "--schema", env=role).code


@pytest.mark.parametrize(
    ("harm", "codes"),
    [
        ("SET applied_at = 'infinity'", {"check": 26}),
        ("SET applied_at = '-infinity'", {"check": 26}),
        ("SET applied_at = '0044-03-15 BC'", {"check": 26}),
        ("SET applied_at = '12345-01-01'", {"check": 26}),
        ("SET state = 'running', statements_started = 9", {"check": 32, "up": 32}),
        ("SET state = 'failed', statements_done = -3", {"check": 32, "up": 32}),
    ],
)
def test_history_with_impossible_values_is_no_bug_of_ours(
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    harm: str,
    codes: dict[str, int],
) -> None:
    """A time that no calendar has, a count beyond the file's statements: 26 or 32, never 70."""
    migrations({"001_a.sql": "-- preflight: no-transaction\nCREATE TABLE a ();\nVACUUM a;"})
    run()
    database.script(f"UPDATE preflight.migrations {harm}")

    assert codes == {name: run(name).code for name in codes}


def test_rights_taken_from_the_owner_are_named(
    run: Run, database: servers.Database, migrations: WriteMigrations, role: dict[str, str]
) -> None:
    """26 with the GRANT, before anything is done; it is not a bug of ours."""
    grant_create(database, role)
    migrations(A)
    assert 0 == run(env=role).code
    database.query(
        SQL("REVOKE ALL ON preflight.migrations FROM {}").format(Identifier(role["PGUSER"]))
    )
    migrations({"002_b.sql": "CREATE TABLE b ();"})

    for command in ("up",), ("rollback",), ("force", "1"), ("adopt", "1"):
        result = run(*command, env=role)
        assert (26, "history.not_readable") == (result.code, error_of(result)["code"]), str(result)
        assert 'GRANT ALL ON preflight.migrations TO "' in error_of(result)["hint"]


# --- whose it is ----------------------------------------------------------------------------------

STRANGER = """
CREATE SCHEMA preflight;
CREATE FUNCTION preflight.trap() RETURNS int8 IMMUTABLE LANGUAGE plpgsql AS
 $$ BEGIN RAISE LOG 'sprung in %', current_database(); RETURN 1; END $$;
CREATE FUNCTION preflight.trap_row() RETURNS trigger LANGUAGE plpgsql AS
 $$ BEGIN PERFORM preflight.trap(); RETURN NEW; END $$;
GRANT USAGE ON SCHEMA preflight TO PUBLIC;
"""
LIE = """SELECT 1::int8 AS version, '001_a'::text AS name, '{checksum}'::text AS checksum,
 'done'::text AS state, false AS breaking"""
MAKES_NO_MEMBERS = 15  # the major from which on a role cannot grant itself
PLANTED = {
    "view": (
        "CREATE VIEW preflight.migrations AS SELECT preflight.trap() AS version, q.name, "
        "q.checksum, q.state, q.breaking FROM ({lie}) q"
    ),
    "materialized view": "CREATE MATERIALIZED VIEW preflight.migrations AS {lie}",
    "table": "CREATE TABLE preflight.migrations AS {lie}",
    "our very tables": "{tables}; INSERT INTO preflight.migrations (version, name, checksum, "
    "state, how, up_sql, tool_version, run_id) VALUES (1, '001_a', '{checksum}', 'done', "
    "'applied', '', '', ''); CREATE TRIGGER trap BEFORE INSERT OR UPDATE OR DELETE "
    "ON preflight.migrations FOR EACH ROW EXECUTE FUNCTION preflight.trap_row()",
    "row security": "{tables}; ALTER TABLE preflight.migrations ENABLE ROW LEVEL SECURITY; "
    "CREATE POLICY p ON preflight.migrations USING (preflight.trap() = 1)",
}


@pytest.fixture
def sprung(database: servers.Database) -> Callable[[], int]:
    """Count how often a trap of this database's said so in the server's log."""

    def count() -> int:
        return database.server.log.read_text(errors="replace").count(f"sprung in {database.name}\n")

    return count


@pytest.mark.parametrize("superuser", [False, True])
@pytest.mark.parametrize("what", PLANTED)
def test_history_of_a_stranger_is_neither_believed_nor_run(  # noqa: PLR0913, PLR0917 -- fixtures
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    role: dict[str, str],
    sprung: Callable[[], int],
    what: str,
    *,
    superuser: bool,
) -> None:
    """Who may make a schema could lie to us, or have code run as us: 26 before a row is read."""
    grant_create(database, role)
    file = migrations(A) / "001_a.sql"
    lie = {"checksum": hashlib.sha256(file.read_bytes()).hexdigest()}
    lie |= {"lie": LIE.format(**lie), "tables": ledger._TABLES.format(schema="preflight")}  # noqa: SLF001
    mine = {"user": role["PGUSER"], "password": role["PGPASSWORD"]}
    with psycopg.connect(database.conninfo(**mine), autocommit=True) as stranger:
        stranger.execute((STRANGER + PLANTED[what].format(**lie)).encode())
        stranger.execute("GRANT ALL ON ALL TABLES IN SCHEMA preflight TO PUBLIC")
    other = f"{database.name}_other"
    database.script(
        f"CREATE ROLE {other} LOGIN PASSWORD 'p'; GRANT CREATE ON SCHEMA public TO {other}; "
        f"GRANT CREATE ON DATABASE {database.name} TO {other}"
    )
    us = {} if superuser else {"PGUSER": other, "PGPASSWORD": "p"}
    try:
        for command in EVERY if what == "view" else TWO:
            result = run(*command, env=us)
            assert 26 == result.code, str(result)
            assert error_of(result)["code"] in {"history.owner", "history.damaged"}, str(result)
    finally:
        database.script(f"DROP OWNED BY {other}; DROP ROLE {other}")
    assert 0 == sprung()
    assert [None] == database.query("SELECT to_regclass('public.a')")


BESIDE = {
    "view": "CREATE VIEW preflight.{name} AS SELECT preflight.trap()::text AS tool, "
    "'pg_class'::text AS place, '' AS said, '' AS newest, preflight.trap()::text AS name, "
    "'' AS checksum",
    "row security": "CREATE TABLE preflight.{name} (tool text, place text, said text, newest text, "
    "name text, checksum text); INSERT INTO preflight.{name} VALUES ('goose', 'pg_class'); "
    "ALTER TABLE preflight.{name} ENABLE ROW LEVEL SECURITY; "
    "CREATE POLICY p ON preflight.{name} USING (preflight.trap() = 1)",
}


@pytest.mark.parametrize("name", ["takeovers", "repeatables"])
@pytest.mark.parametrize("what", BESIDE)
def test_what_others_put_beside_the_history_is_not_run(  # noqa: PLR0913, PLR0917 -- fixtures
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    role: dict[str, str],
    sprung: Callable[[], int],
    what: str,
    name: str,
) -> None:
    """Who may make tables in our schema has none of his functions run as us: 26."""
    grant_create(database, role)
    migrations(A)
    assert 0 == run("up").code
    database.query(
        SQL("GRANT CREATE, USAGE ON SCHEMA preflight TO {}").format(Identifier(role["PGUSER"]))
    )
    mine = {"user": role["PGUSER"], "password": role["PGPASSWORD"]}
    planted = STRANGER.split(";", 1)[1] + BESIDE[what].format(name=name)
    with psycopg.connect(database.conninfo(**mine), autocommit=True) as stranger:
        stranger.execute(planted.encode())
        stranger.execute(f"GRANT SELECT ON preflight.{name} TO PUBLIC".encode())

    for command in TWO:
        result = run(*command)
        assert (26, "history.damaged") == (result.code, error_of(result)["code"]), str(result)
        assert f"{name} is not the table" in error_of(result)["message"]
    assert 0 == sprung()


def test_name_of_another_tools_table_is_not_run(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """What is recorded of it is quoted anew: a table can have any name, a statement's too."""
    migrations(A)
    assert 0 == run("up").code
    database.script(f"""{remembered._TABLE.format(schema="preflight")};
 CREATE TABLE x (id int, version_id bigint, is_applied bool);
 CREATE TABLE "x;commit;select/**/lo_create(4711)" (LIKE x);
 INSERT INTO preflight.takeovers VALUES
  ('goose', 'public.x;commit;select/**/lo_create(4711)', '', '', now(), '', '')""")  # noqa: SLF001

    result = run("check")

    assert (26, "history.conflict") == (result.code, error_of(result)["code"]), str(result)
    assert [0] == database.query("SELECT count(*) FROM pg_largeobject_metadata")


def test_stranger_who_makes_us_his_member_is_still_a_stranger(
    any_server: servers.Server, run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Before PostgreSQL 15 he can; the right to act as him is no reason to believe him."""
    file = migrations(A) / "001_a.sql"
    lie = {"checksum": hashlib.sha256(file.read_bytes()).hexdigest()}
    lie["tables"] = ledger._TABLES.format(schema="preflight")  # noqa: SLF001
    stranger, other = f"{database.name}_stranger", f"{database.name}_other"
    for role in (stranger, other):
        database.script(
            f"CREATE ROLE {role} LOGIN PASSWORD 'p'; GRANT CREATE ON SCHEMA public TO {role}; "
            f"GRANT CREATE ON DATABASE {database.name} TO {role}"
        )
    try:
        mine = database.conninfo(user=stranger, password="p")  # noqa: S106 -- a test's
        with psycopg.connect(mine, autocommit=True) as session:
            planted = STRANGER + PLANTED["our very tables"].format(**lie)
            session.execute(planted.encode())
            with suppress(psycopg.errors.InsufficientPrivilege):  # PostgreSQL 15 and later
                session.execute(f"GRANT {stranger} TO {other}".encode())
                assert any_server.major < MAKES_NO_MEMBERS
        for command in TWO:
            result = run(*command, env={"PGUSER": other, "PGPASSWORD": "p"})
            assert (26, "history.owner") == (result.code, error_of(result)["code"]), str(result)
    finally:
        for role in (stranger, other):
            database.script(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_trigger_with_the_function_of_a_stranger_is_not_fired(
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    role: dict[str, str],
    sprung: Callable[[], int],
) -> None:
    """A right to make triggers was enough to have code run as us: 26 before a row is written."""
    migrations(A)
    run()
    grant_create(database, role)
    database.script(f"GRANT TRIGGER ON preflight.migrations TO {role['PGUSER']}")
    mine = {"user": role["PGUSER"], "password": role["PGPASSWORD"]}
    with psycopg.connect(database.conninfo(**mine), autocommit=True) as stranger:
        stranger.execute(
            "CREATE FUNCTION public.trap() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "RAISE LOG 'sprung in %', current_database(); RETURN NEW; END $$; CREATE TRIGGER trap "
            "BEFORE INSERT ON preflight.migrations FOR EACH ROW EXECUTE FUNCTION public.trap()"
        )
    migrations({"002_b.sql": "CREATE TABLE b ();"})

    result = run()

    assert (26, "history.damaged") == (result.code, error_of(result)["code"]), str(result)
    assert "stranger" in error_of(result)["message"]
    assert 0 == sprung()


def test_history_that_the_database_owner_vouches_for_is_read_by_every_role(
    run: Run, database: servers.Database, migrations: WriteMigrations, role: dict[str, str]
) -> None:
    """A migrating role that does not own the database made it: its app needs no membership."""
    grant_create(database, role)
    migrations(A)
    assert 0 == run(env=role).code
    app = f"{database.name}_reader"
    reader = {"PGUSER": app, "PGPASSWORD": "p"}
    database.script(f"CREATE ROLE {app} LOGIN PASSWORD 'p'")
    try:
        refused = run("wait", "--schema", env=reader)
        assert (26, "history.owner") == (refused.code, error_of(refused)["code"])
        assert "ALTER SCHEMA preflight OWNER TO" in error_of(refused)["hint"]
        assert "superuser" in error_of(refused)["hint"]  # the owner of the schema is another role

        database.script("ALTER SCHEMA preflight OWNER TO CURRENT_USER")
        assert 0 == run("wait", "--schema", env=reader).code
        assert 0 == run("check", env=reader).code
        migrations({"002_b.sql": "CREATE TABLE b ();"})
        assert 0 == run(env=role).code

        database.script(
            f"ALTER SCHEMA preflight OWNER TO {role['PGUSER']}; "
            f"ALTER DATABASE {database.name} OWNER TO {role['PGUSER']}"
        )
        assert 0 == run("wait", "--schema", env=reader).code
    finally:
        database.script(f"ALTER DATABASE {database.name} OWNER TO postgres; DROP ROLE {app}")


def test_schema_that_somebody_vouched_for_takes_tables_by_the_grants_that_are_named(
    run: Run, database: servers.Database, migrations: WriteMigrations, role: dict[str, str]
) -> None:
    """The change of its owner takes CREATE away; 26 names that GRANT, and 22 where it was missed.

    A file without a version needs one more table of ours.
    """
    grant_create(database, role)
    migrations({"V1__a.sql": "CREATE TABLE a ();"})
    assert 0 == run(env=role).code
    app = f"{database.name}_reader"
    database.script(f"CREATE ROLE {app} LOGIN PASSWORD 'p'")
    try:
        reader = {"PGUSER": app, "PGPASSWORD": "p"}
        hint = error_of(run("wait", "--schema", env=reader))["hint"]
        database.script("ALTER SCHEMA preflight OWNER TO CURRENT_USER")
        migrations({"R__b.sql": "CREATE OR REPLACE VIEW b AS SELECT 1 AS n;"})
        denied = run(env=role)
        grant = re.search("GRANT CREATE ON SCHEMA preflight TO [^,;]+", error_of(denied)["hint"])
        assert grant is not None, denied
        database.script(grant[0])
        done = run(env=role)

        assert (22, "target.no_history", 0) == (denied.code, error_of(denied)["code"], done.code)
        assert grant[0] in hint
        assert 0 == run("wait", "--schema", env=reader).code
    finally:
        database.script(f"DROP ROLE {app}")


def test_schema_that_was_given_to_a_role_without_more_rights_is_believed(
    run: Run, database: servers.Database, migrations: WriteMigrations, role: dict[str, str]
) -> None:
    """CREATE SCHEMA … AUTHORIZATION: it could not have made one itself."""
    database.script(
        f"CREATE SCHEMA preflight AUTHORIZATION {role['PGUSER']}; "
        f"GRANT CREATE ON SCHEMA public TO {role['PGUSER']}"
    )
    migrations(A)
    assert 0 == run(env=role).code
    app = f"{database.name}_reader"
    database.script(f"CREATE ROLE {app} LOGIN PASSWORD 'p'")
    try:
        assert 0 == run("wait", "--schema", env={"PGUSER": app, "PGPASSWORD": "p"}).code
    finally:
        database.script(f"DROP ROLE {app}")


def test_schema_that_was_prepared_for_a_role_with_more_rights_is_believed(
    run: Run, database: servers.Database, migrations: WriteMigrations, role: dict[str, str]
) -> None:
    """As docs/operations.md says it: for a migrating role that may make schemas, and its apps."""
    grant_create(database, role)
    page = (servers.REPOSITORY / "docs" / "operations.md").read_text()
    (recipe,) = re.findall(r"^CREATE SCHEMA preflight;\n.*?(?=```)", page, re.MULTILINE | re.DOTALL)
    database.script(recipe.replace("MIGRATOR", role["PGUSER"]))
    migrations(A)
    assert 0 == run(env=role).code
    app = f"{database.name}_reader"
    database.script(f"CREATE ROLE {app} LOGIN PASSWORD 'p'")
    try:
        assert 0 == run("wait", "--schema", env={"PGUSER": app, "PGPASSWORD": "p"}).code
        assert 0 == run("check").code
    finally:
        database.script(f"DROP ROLE {app}")


# --- who may do what with it ----------------------------------------------------------------------

GIVEN = """
SELECT c.relname::text, a.grantee::regrole::text, a.privilege_type
FROM pg_class c, aclexplode(c.relacl) a
WHERE c.relnamespace = 'preflight'::regnamespace AND a.grantee <> c.relowner
UNION ALL SELECT 'preflight', a.grantee::regrole::text, a.privilege_type
FROM pg_namespace n, aclexplode(n.nspacl) a
WHERE n.nspname = 'preflight' AND a.grantee <> n.nspowner
UNION ALL SELECT c.relname || '.' || t.attname, a.grantee::regrole::text, a.privilege_type
FROM pg_class c JOIN pg_attribute t ON t.attrelid = c.oid, aclexplode(t.attacl) a
WHERE c.relnamespace = 'preflight'::regnamespace AND a.grantee <> c.relowner ORDER BY 1, 2, 3
"""
OPEN = [("migrations." + name, "-", "SELECT") for name in sorted(tables.PUBLIC)]
OPEN.append(("preflight", "-", "USAGE"))


@pytest.mark.parametrize("whom", ["role", "PUBLIC"])
def test_default_privileges_do_not_open_the_history(
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    role: dict[str, str],
    whom: str,
) -> None:
    """An app that is given every new table gets neither the texts nor the journal."""
    whom = role["PGUSER"] if whom == "role" else whom
    for kind in "TABLES", "SEQUENCES", "SCHEMAS", "FUNCTIONS":
        database.script(f"ALTER DEFAULT PRIVILEGES GRANT ALL ON {kind} TO {whom}")
    migrations(A)

    assert 0 == run().code

    assert OPEN == database.query(GIVEN)
    assert 0 == run("wait", "--schema", env=role).code


def test_default_privileges_in_a_schema_that_was_there_do_not_open_the_history(
    run: Run, database: servers.Database, migrations: WriteMigrations, role: dict[str, str]
) -> None:
    """IN SCHEMA, as an administrator says who made it; what the schema itself is stays his."""
    whom = role["PGUSER"]
    database.script(
        f"CREATE SCHEMA preflight; GRANT USAGE, CREATE ON SCHEMA preflight TO {whom}; "
        f"ALTER DEFAULT PRIVILEGES IN SCHEMA preflight GRANT ALL ON TABLES TO {whom}, PUBLIC; "
        f"ALTER DEFAULT PRIVILEGES IN SCHEMA preflight GRANT ALL ON SEQUENCES TO {whom}"
    )
    migrations(A)

    assert 0 == run().code

    mine = [("preflight", whom, "CREATE"), ("preflight", whom, "USAGE")]
    assert sorted(OPEN + mine) == database.query(GIVEN)


def test_default_privileges_that_take_from_the_owner_do_not_lock_us_out(
    run: Run, database: servers.Database, migrations: WriteMigrations, role: dict[str, str]
) -> None:
    """Our own rights on what we make are said, and not what a default happens to leave."""
    grant_create(database, role)
    for what in "TABLES", "SEQUENCES", "SCHEMAS":
        database.script(
            f"ALTER DEFAULT PRIVILEGES FOR ROLE {role['PGUSER']} "
            f"REVOKE ALL ON {what} FROM {role['PGUSER']}"
        )
    migrations({"001_a.sql": "SELECT 1;"})

    assert 0 == run(env=role | {"PREFLIGHT_BACKUP": "required"}).code
    assert 0 == run("backup", env=role).code
    assert 0 == run("check", env=role).code


def test_administrator_who_opens_the_history_to_few_is_left_alone(
    run: Run, database: servers.Database, migrations: WriteMigrations, role: dict[str, str]
) -> None:
    """Who has nothing but what everybody may read had it by our own hint."""
    migrations(A)
    run()
    database.script(
        "ALTER TABLE preflight.migrations ADD COLUMN label text UNIQUE; "
        f"REVOKE SELECT ({', '.join(tables.PUBLIC)}) ON preflight.migrations FROM PUBLIC"
    )
    closed = run("wait", "--schema", env=role)
    (columns,) = re.findall(r"SELECT \((.*?)\)", error_of(closed)["hint"])
    database.script(f"GRANT SELECT ({columns}) ON preflight.migrations TO {role['PGUSER']}")
    opened = run("wait", "--schema", env=role)
    migrations({"002_b.sql": "CREATE TABLE b ();"})
    result = run()

    assert (26, "history.not_readable") == (closed.code, error_of(closed)["code"]), closed
    assert (0, 0) == (opened.code, result.code), opened
    assert [] == result.event("config.warned")
    assert [False] == database.query(
        "SELECT has_column_privilege('public', 'preflight.migrations', 'version', 'SELECT')"
    )


def test_history_that_an_earlier_version_left_open_is_closed(
    run: Run, database: servers.Database, migrations: WriteMigrations, role: dict[str, str]
) -> None:
    """When we write anyway, and it says from whom rights were taken back."""
    migrations(A)
    run()
    database.script(
        f"GRANT ALL ON ALL TABLES IN SCHEMA preflight TO {role['PGUSER']} WITH GRANT OPTION; "
        f"GRANT ALL ON ALL SEQUENCES IN SCHEMA preflight TO PUBLIC; "
        f"GRANT SELECT (up_sql) ON preflight.migrations TO {role['PGUSER']}"
    )
    assert 0 == run().code  # nothing pending: nothing is written
    migrations({"002_b.sql": "CREATE TABLE b ();"})

    result = run()

    assert 0 == result.code, str(result)
    assert OPEN == database.query(GIVEN)
    warnings = [event["warning"] for event in result.event("config.warned")]
    assert 1 == len([text for text in warnings if role["PGUSER"] in text and "PUBLIC" in text])


# --- what others planted --------------------------------------------------------------------------


# Functions, aggregates, operators, types and relations called as what our statements use, with the
# very arguments of pg_catalog's; they say in the server's log that they ran.
PLANT = """
DO $plant$
DECLARE
 body text := $$ LANGUAGE plpgsql AS
  'BEGIN RAISE LOG ''sprung in {database}''; RAISE ''trojan''; END' $$;
 found record; operator text; l text; r text; kinds text[];
BEGIN
 EXECUTE 'CREATE FUNCTION {schema}.trap() RETURNS pg_catalog.bool' || body;
 EXECUTE 'CREATE FUNCTION {schema}.trap(pg_catalog.int8) RETURNS pg_catalog.int8' || body;
 CREATE AGGREGATE {schema}.count(*) (SFUNC = {schema}.trap, STYPE = pg_catalog.int8);
 FOREACH kinds SLICE 1 IN ARRAY ARRAY[
  ARRAY['oid', 'regclass', 'int2', 'int4', 'int8'],
  ARRAY['text', 'name', '"char"', '_text', '_name'],
  ARRAY['bool', 'timestamptz', 'interval', 'float8', 'numeric']] LOOP
  FOREACH l IN ARRAY kinds LOOP FOREACH r IN ARRAY kinds LOOP
   EXECUTE format('CREATE FUNCTION {schema}.trap(pg_catalog.%s, pg_catalog.%s)'
    ' RETURNS pg_catalog.bool', l, r) || body;
   FOREACH operator IN ARRAY ARRAY['=', '<>', '<', '>', '>=', '||', '~~', '!~~', '-'] LOOP
    EXECUTE format('CREATE OPERATOR {schema}.%s (LEFTARG = pg_catalog.%s, RIGHTARG ='
     ' pg_catalog.%s, FUNCTION = {schema}.trap)', operator, l, r);
   END LOOP;
  END LOOP; END LOOP;
 END LOOP;
 FOR found IN SELECT p.proname, pg_get_function_identity_arguments(p.oid) AS arguments,
   format_type(p.prorettype, NULL) AS returned
  FROM pg_proc p WHERE p.pronamespace = 'pg_catalog'::regnamespace
   AND p.proname = ANY ('{{{words}}}') AND p.proname <> 'count' LOOP
  BEGIN
   EXECUTE format('CREATE FUNCTION {schema}.%I(%s) RETURNS %s', found.proname, found.arguments,
    found.returned) || body;
  EXCEPTION WHEN OTHERS THEN NULL;  -- plpgsql knows no "any"
  END;
 END LOOP;
 FOR found IN SELECT c.relname FROM pg_class c WHERE c.relkind IN ('r', 'v')
   AND c.relnamespace = 'pg_catalog'::regnamespace AND c.relname = ANY ('{{{words}}}') LOOP
  EXECUTE format('CREATE VIEW {schema}.%I AS SELECT {schema}.trap()', found.relname);
 END LOOP;
 FOR found IN SELECT t.typname FROM pg_type t WHERE t.typtype = 'b'
   AND t.typnamespace = 'pg_catalog'::regnamespace AND t.typname = ANY ('{{{words}}}') LOOP
  EXECUTE format('CREATE DOMAIN {schema}.%I AS pg_catalog.text CHECK ({schema}.trap())',
   found.typname);
 END LOOP;
END $plant$;
"""
CHECKS = "SELECT 's' AS suite, '{0}' AS \"check\", to_regclass('public.{0}') IS NOT NULL AS ok"
AMONG_TRAPS = {  # they fall into none by themselves: no operator, and names in full
    "001_a.sql": "CREATE TABLE public.a (i int); CREATE INDEX a_i ON public.a (i); "
    "INSERT INTO public.a VALUES (1);",
    "001_a_verify.sql": CHECKS.replace("to_reg", "pg_catalog.to_reg").format("a"),
    "001_a_rollback.sql": "DROP TABLE public.a;",
    "001_a_export.sql": "SELECT a.i FROM public.a",
    "002_b.sql": "-- preflight: no-transaction\nDROP INDEX public.a_i;\n"
    "CREATE INDEX CONCURRENTLY a_j ON public.a (i);\nREINDEX INDEX CONCURRENTLY public.a_j;",
    "002_b_rollback.sql": "DROP INDEX public.a_j; CREATE INDEX a_i ON public.a (i);",
}


@pytest.mark.fault("E126")
@pytest.mark.parametrize(
    ("schema", "path"), [("public", '"$user", public'), ("evil", "evil, public, pg_catalog")]
)
def test_no_command_steps_into_what_others_planted(  # noqa: PLR0913, PLR0917 -- fixtures
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    role: dict[str, str],
    sprung: Callable[[], int],
    schema: str,
    path: str,
) -> None:
    """No statement of ours finds it, whatever the path of the role or the database is."""
    grant_create(database, role)
    sources = house.rooms().values()
    words = {word for file in sources for word in re.findall(r"[a-z]\w+", file.read_text())}
    said = {"schema": schema, "database": database.name, "words": ",".join(sorted(words))}
    mine = {"user": role["PGUSER"], "password": role["PGPASSWORD"]}
    with psycopg.connect(database.conninfo(**mine), autocommit=True) as other:
        other.execute("SET search_path = pg_catalog")
        if schema != "public":
            other.execute(f"CREATE SCHEMA {schema}".encode())
        other.execute(PLANT.format(**said).encode())
    database.script(f"ALTER DATABASE {database.name} SET search_path = {path}")
    with pytest.raises(psycopg.errors.RaiseException):  # as a statement of ours would
        database.query("SELECT 1::pg_catalog.oid = 'pg_catalog.pg_class'::pg_catalog.regclass")
    assert 1 == sprung()
    migrations(AMONG_TRAPS)
    env = {"PREFLIGHT_FIRST_CONTACT": "pending", "PREFLIGHT_BACKUP": "required"}
    env |= {"PREFLIGHT_REHEARSE": "always"}

    def ends(code: int, *command: str, **more: str) -> None:
        result = run(*command, env=env | more)
        assert (code, 1) == (result.code, sprung()), f"{command}: {result}"

    ends(3, "check")
    ends(3, "verify")
    ends(0, "plan", "--rehearse")
    with psycopg.connect(database.conninfo(), autocommit=True) as session:
        session.execute("SET search_path = pg_catalog")
        session.execute("SELECT pg_advisory_lock(%s)", [lock.key("preflight")])
        ends(11, "up", PREFLIGHT_LOCK_WAIT_S="0")
        with session.transaction(force_rollback=True):
            session.execute("CREATE TABLE public.a (i int); CREATE INDEX a_i ON public.a (i)")
            session.execute("LOCK TABLE public.a")
            ends(0, "plan")
    ends(0, "up")
    ends(0, "up")
    ends(0, "check")
    ends(0, "verify")
    ends(0, "wait", "--schema")
    database.script(
        "SET search_path = pg_catalog; "
        "UPDATE preflight.migrations SET state = 'failed' WHERE version = 2"
    )
    ends(3, "check")
    ends(0, "adopt", "2")
    ends(0, "rollback", "--to", "0")
    ends(0, "up")
    ends(27, "force", "1")
    ends(0, "backup")
    ends(0, "restore", "latest", "--into", f"{database.name}_copy")
    database.query(SQL("DROP DATABASE {}").format(Identifier(f"{database.name}_copy")))


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


def test_event_trigger_finds_what_it_finds_for_the_app(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """The usual log of DDL names its table without a schema; ours is logged as the app's is."""
    database.script(
        "CREATE TABLE public.ddl_log (tag text); CREATE FUNCTION public.log() RETURNS event_trigger"
        " LANGUAGE plpgsql AS $$ BEGIN INSERT INTO ddl_log VALUES (tg_tag); END $$; CREATE EVENT "
        "TRIGGER log ON ddl_command_end EXECUTE FUNCTION public.log()"
    )
    directory = migrations(A)
    env = {"PREFLIGHT_FIRST_CONTACT": "pending", "PREFLIGHT_BACKUP": "off"}

    first = run(env=env)
    database.script(
        "DROP EVENT TRIGGER log; ALTER TABLE preflight.migrations DROP COLUMN verify_sql; GRANT "
        "DELETE ON preflight.migrations TO PUBLIC; CREATE EVENT TRIGGER log ON ddl_command_end "
        "EXECUTE FUNCTION public.log(); TRUNCATE public.ddl_log"
    )
    migrations({"002_b.sql": "SELECT 1;"})
    older = run(env=env)
    altered = database.query("SELECT tag FROM public.ddl_log")
    wrapped = run("wrap", "--watch", str(directory), "--", "true", env=env)

    assert [0, 0, 0] == [each.code for each in (first, older, wrapped)], f"{first}{older}{wrapped}"
    assert ["ALTER TABLE", "REVOKE", "REVOKE", "GRANT"] == altered


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


@pytest.mark.fault("D084")
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


def test_nobody_is_told_to_become_a_superuser(
    run: Run, database: servers.Database, migrations: WriteMigrations, role: dict[str, str]
) -> None:
    """A database that was restored as one: what the hint says is typed as it stands, and helps."""
    grant_create(database, role)
    migrations(A)
    assert 0 == run(env={"PREFLIGHT_BACKUP": "off"}).code  # as the superuser
    migrations({"002_b.sql": "CREATE TABLE b ();"})
    refused = run(env=role)
    hint = error_of(refused)["hint"]
    database.script(hint.partition("migrates: ")[2].partition(". Or run")[0])
    result = run(env={**role, "PREFLIGHT_BACKUP": "off"})

    assert (26, "history.owner") == (refused.code, error_of(refused)["code"]), str(refused)
    assert "GRANT" not in hint
    assert 0 == result.code, str(result)


@pytest.mark.parametrize(
    ("any_server", "more"),
    [
        pytest.param(15, ", and ALTER ROLE {} INHERIT", marks=pytest.mark.xdist_group("pg15")),
        pytest.param(17, " WITH INHERIT TRUE", marks=pytest.mark.xdist_group("pg17")),
    ],
    indirect=["any_server"],
)
def test_member_without_inherit_is_told_to_take_on_the_owner_s_role(  # noqa: PLR0913, PLR0917 -- fixtures
    run: Run,
    any_server: servers.Server,
    database: servers.Database,
    migrations: WriteMigrations,
    role: dict[str, str],
    more: str,
) -> None:
    """What the hint says is typed as it stands, and leads out; so does the GRANT to no member."""
    grant_create(database, role)
    migrations(A)
    assert 0 == run(env=role).code
    migrations({"002_b.sql": "CREATE TABLE b ();"})
    owner, deployer = role["PGUSER"], f'{database.name} "d"'
    login = Identifier(deployer)
    odd = f"{owner} O'Neil"
    database.query(SQL("CREATE ROLE {} LOGIN NOINHERIT PASSWORD 'p'").format(login))
    deploys = {"PGUSER": deployer, "PGPASSWORD": "p"}
    try:
        database.query(SQL("ALTER ROLE {} RENAME TO {}").format(Identifier(owner), Identifier(odd)))
        stranger = error_of(run(env=deploys))["hint"]
        database.query(SQL("GRANT {} TO {}").format(Identifier(odd), login))
        refused = run(env=deploys)
        hint = error_of(refused)["hint"]
        (typed,) = shlex.split(hint.partition("PGOPTIONS=")[2].partition(", or for good ")[0])
        result = run(env=deploys | {"PGOPTIONS": typed})
        database.script(hint.partition(", or for good ")[2].partition(";")[0])
        migrations({"003_c.sql": "CREATE TABLE c ();"})
        again = run(env=deploys)
    finally:
        database.query(SQL("ALTER ROLE {} RENAME TO {}").format(Identifier(odd), Identifier(owner)))
        database.query(SQL("DROP ROLE {}").format(login))

    written = f'"{database.name} ""d"""'
    assert f'or GRANT "{odd}" TO {written}{more.format(written)};' in stranger, any_server
    assert (26, "history.owner") == (refused.code, error_of(refused)["code"]), str(refused)
    assert [0, 0] == [result.code, again.code], str(result)


@pytest.mark.parametrize("words", [["up"], ["adopt", "2"], ["rollback"], ["force"]])
def test_reader_who_is_in_the_way_of_new_columns_is_named(
    words: list[str],
    run: Run,
    start: Start,
    database: servers.Database,
    migrations: WriteMigrations,
) -> None:
    """The first command that writes to an older version's history waits for a dump of it."""
    migrations({"001_a.sql": "CREATE TABLE a ();\n", "001_a_rollback.sql": "DROP TABLE a;\n"})
    assert 0 == run().code
    database.script(
        "ALTER TABLE preflight.migrations DROP COLUMN verify_sql, DROP COLUMN export_sql"
    )
    if words[0] in {"up", "adopt"}:
        migrations({"002_b.sql": "CREATE TABLE b ();\n"})
    if words[0] == "force":
        database.script("DROP TABLE a")
    soon = {"PREFLIGHT_LOCK_TIMEOUT_MS": "100", "PREFLIGHT_BACKUP": "off"}
    with psycopg.connect(database.conninfo()) as dump:
        dump.execute("SELECT FROM preflight.migrations")
        pid = dump.info.backend_pid
        busy = run(*words, env={**soon, "PREFLIGHT_LOCK_RETRY_S": "0"})
        waiting = start(*words, env=soon)
        told = waiting.wait_for_event("server.waiting")
        dump.rollback()
        result = waiting.wait()

    error = busy.finished["error"]
    assert (12, "database.busy") == (busy.code, error["code"]), str(busy)
    assert f"cannot be changed after 0 s: blocked by pid {pid}" in error["message"]
    assert [pid] == [each["pid"] for each in told["blocked_by"]]
    assert 0 == result.code, str(result)
