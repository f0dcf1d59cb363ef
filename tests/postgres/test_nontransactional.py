"""Files that run outside a transaction: marks, resuming, and what is read back."""

import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import UniqueViolation
from psycopg.sql import SQL, Identifier

from preflight.apply import indexes
from preflight.base.config import Config
from preflight.server import sessions
from tests import program, servers
from tests.conftest import CreateDatabase, Run, Start, WriteMigrations

MARK = "-- preflight: no-transaction\n"
CIC = "CREATE INDEX CONCURRENTLY t_a ON t (a);"
UNIQUE = "CREATE UNIQUE INDEX CONCURRENTLY t_a ON t (a);"
INDEXES = (
    "SELECT c.relname::text, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
    "WHERE c.relnamespace = 'public'::regnamespace ORDER BY 1"
)
PROGRESS = "SELECT state, statements_done, statements_started FROM preflight.migrations"
ACTIVE = (
    "SELECT pid FROM pg_stat_activity WHERE state = 'active' AND query LIKE %s AND pid <> "
    "pg_backend_pid() AND clock_timestamp() - query_start > %s::interval"
)


@pytest.fixture
def environment(environment: dict[str, str]) -> dict[str, str]:
    """Do without backups; the tests make tables of their own first."""
    return environment | {"PREFLIGHT_BACKUP": "off", "PREFLIGHT_FIRST_CONTACT": "pending"}


@pytest.fixture
def table(database: servers.Database) -> None:
    """Give a table with rows that are not unique."""
    database.script("CREATE TABLE t (a int); INSERT INTO t VALUES (1), (1), (2)")


def error_of(result: program.Result) -> dict[str, Any]:
    """Return the error that a run ended with."""
    found: dict[str, Any] = result.finished["error"]
    return found


def wait_for_statement(
    process: program.Process, database: servers.Database, text: str, longer_than: str = "0s"
) -> None:
    """Return once the server is at a statement that contains this."""
    deadline = time.monotonic() + 30
    while not database.query(ACTIVE, f"%{text}%", longer_than):
        assert process.running
        assert time.monotonic() < deadline


def end_of_sessions(database: servers.Database) -> None:
    """Return once the server has noticed that the program is gone."""
    deadline = time.monotonic() + 30
    while database.sessions():
        assert time.monotonic() < deadline


@pytest.mark.fault("D103")
def test_what_cannot_run_in_a_transaction_runs(
    any_server: servers.Server, run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """On every version of the server, with what the statements before it set."""
    assert any_server is database.server
    migrations(
        {
            "001_a.sql": MARK + "CREATE SCHEMA app; SET search_path = app; SET lock_timeout = '7s';"
            "CREATE TABLE t (a int, b text DEFAULT current_setting('lock_timeout'));"
            "INSERT INTO t VALUES (1), (2);"
            'CREATE UNIQUE INDEX CONCURRENTLY "T a" ON t (a DESC) INCLUDE (b) WHERE a > 0;'
            "CREATE INDEX CONCURRENTLY IF NOT EXISTS expr ON app.t (lower(b), a NULLS FIRST);"
            'REINDEX INDEX CONCURRENTLY "T a"; VACUUM (ANALYZE) t; DROP INDEX CONCURRENTLY expr;'
            "CREATE TYPE mood AS ENUM ('sad'); ALTER TYPE mood ADD VALUE 'ok'; "
            "CREATE TABLE m AS SELECT 'ok'::mood AS now;",
            "001_a_verify.sql": "SELECT 's' AS suite, 'c' AS \"check\", "
            "count(*) = 2 AS ok FROM app.t",
            "002_b.sql": "CREATE TABLE after AS SELECT current_setting('search_path') AS path;",
        }
    )

    result = run()

    assert 0 == result.code, str(result)
    assert [("done", 13, 13), ("done", 1, 1)] == database.query(PROGRESS + " ORDER BY version")
    assert ["T a"] == database.query(
        "SELECT c.relname::text FROM pg_index JOIN pg_class c ON c.oid = indexrelid "
        "WHERE indisvalid AND c.relnamespace = 'app'::regnamespace"
    )
    assert [(1, "7s"), (2, "7s")] == database.query("SELECT a, b FROM app.t ORDER BY a")
    assert ['"$user", public'] == database.query("SELECT path FROM after")


def test_role_of_the_file_stays_and_marks_are_ours(
    any_server: servers.Server, run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """A role that may not touch the history runs the statements; the marks are still made."""
    role = f"{database.name}_other"
    with any_server.connect(database.name) as connection:
        connection.execute(SQL("CREATE ROLE {}").format(Identifier(role)))
        connection.execute(SQL("GRANT CREATE ON SCHEMA public TO {}").format(Identifier(role)))
    try:
        migrations(
            {
                "001_a.sql": MARK + f"SET ROLE {role}; CREATE TABLE a (i int); "
                "CREATE INDEX CONCURRENTLY a_i ON a (i);"
                f"RESET ROLE; SET SESSION AUTHORIZATION {role}; CREATE TABLE b ();"
            }
        )
        result = run()

        assert 0 == result.code, str(result)
        assert [role] == database.query(
            "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relname IN ('a','a_i','b')"
        )
    finally:
        with any_server.connect(database.name) as connection:
            connection.execute(SQL("DROP OWNED BY {}").format(Identifier(role)))
            connection.execute(SQL("DROP ROLE {}").format(Identifier(role)))


@pytest.mark.usefixtures("table")
def test_failed_file_resumes_where_the_done_statements_are_unchanged(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """31, then the later statement is corrected: what was done is not done again."""
    first = MARK + "SET search_path = public, pg_temp; INSERT INTO t VALUES (7);"
    first += "SELECT pg_advisory_lock(42); SET LOCAL work_mem = '8MB';\n"
    role = f"{database.name}_gone"
    used = f"CREATE ROLE {role}; SET ROLE {role}; RESET ROLE; DROP ROLE {role};"
    first = first.replace("SET LOCAL", f"{used} SET LOCAL")
    migrations({"001_a.sql": first + "  INSERT INTO nope VALUES (1); SELECT 1;"})

    failed = run()

    assert 31 == failed.code, str(failed)
    assert (3, 15, "42P01") == tuple(
        error_of(failed)[each] for each in ("line", "column", "sqlstate")
    )
    (warned,) = failed.event("migration.progressed")
    assert ("warning", True) == (warned["level"], "SET LOCAL ends" in warned["notice"])
    assert [("failed", 8, 8)] == database.query(PROGRESS)
    assert 3 == run("check").code
    assert ["failed"] == database.query("SELECT event FROM preflight.journal")

    path = "current_setting('search_path') AS p"
    held = "FROM pg_locks WHERE objid = 42 AND pid = pg_backend_pid()"
    migrations({"001_a.sql": f"{first}CREATE TABLE path AS SELECT {path}, count(*) AS n {held};"})
    resumed = run()

    assert 0 == resumed.code, str(resumed)
    assert [8] == [
        each["resumed_after_statement"] for each in resumed.event("migration.progressed")
    ]
    assert [1] == database.query("SELECT count(*) FROM t WHERE a = 7")
    assert [("public, pg_temp", 1)] == database.query("SELECT p, n FROM path")
    assert [("done", 9, 9)] == database.query(PROGRESS)


def test_setting_that_cannot_be_made_again_is_explained(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """A done statement is not to be corrected: what it names is to come back."""
    made = "CREATE TEXT SEARCH CONFIGURATION c (COPY = simple);"
    text = f"{MARK}{made} SET default_text_search_config = 'public.c'; SELECT 1/{{}};"
    migrations({"001_a.sql": text.format(0)})
    assert 31 == run().code
    database.script("DROP TEXT SEARCH CONFIGURATION c")
    migrations({"001_a.sql": text.format(1)})

    result = run()

    assert 31 == result.code, str(result)
    assert "bring back what it names" in error_of(result)["hint"]
    assert [("failed", 2, 2)] == database.query(PROGRESS)
    database.script(made)
    assert 0 == run().code


@pytest.mark.usefixtures("table")
def test_changed_beginning_cannot_be_resumed(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """32, naming both ways out, and nothing runs."""
    migrations({"001_a.sql": MARK + "INSERT INTO t VALUES (7); SELECT 1/0;"})
    run()
    migrations({"001_a.sql": MARK + "INSERT INTO t VALUES (8); SELECT 1;"})

    result = run()

    assert 32 == result.code, str(result)
    assert "adopt 1" in error_of(result)["hint"]
    assert "force 1" in error_of(result)["hint"]
    assert [0] == database.query("SELECT count(*) FROM t WHERE a = 8")


INDEXES_OF_MV = """SELECT indexrelid::regclass::text, indisvalid FROM pg_index
 WHERE indrelid = 'mv'::regclass"""


def test_invalid_index_of_a_materialised_view_is_built_anew(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """LOCK TABLE takes no such view: its index is waited for and dropped all the same."""
    database.script("""
        CREATE TABLE twice AS SELECT 1 AS a FROM generate_series(1, 2);
        CREATE MATERIALIZED VIEW mv AS SELECT a FROM twice
        """)
    migrations({"001_a.sql": f"{MARK}CREATE UNIQUE INDEX CONCURRENTLY mv_a ON mv (a);"})
    failed = run()
    left = database.query(INDEXES_OF_MV)
    database.script("DELETE FROM twice WHERE ctid = '(0,1)'; REFRESH MATERIALIZED VIEW mv")
    result = run()

    assert 31 == failed.code, str(failed)
    assert "transaction in progress" not in failed.stdout + failed.stderr
    assert [("mv_a", False)] == left
    assert 0 == result.code, str(result)
    assert [("mv_a", True)] == database.query(INDEXES_OF_MV)


@pytest.mark.usefixtures("table")
def test_invalid_index_that_cannot_be_dropped_is_named(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Somebody's transaction is in the way of the index, not of the history: the place is told."""
    database.script("INSERT INTO t VALUES (77), (77)")
    unique = "CREATE UNIQUE INDEX CONCURRENTLY t_unique ON t (a);"
    migrations({"001_a.sql": f"{MARK}-- preflight: lock-timeout 100ms\n{unique}"})
    failed = run()
    with database.server.connect(database.name) as blocker:
        blocker.execute("BEGIN; INSERT INTO t VALUES (78)")
        result = run()

    error = error_of(result)
    assert (31, 31) == (failed.code, result.code), str(result)
    assert ("001_a.sql", 3) == (error["file"], error["line"])
    assert ("migration.sql_error", "55P03") == (error["code"], error["sqlstate"])


def test_file_of_which_nothing_ran_is_not_recorded(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Its number is free: for another name, or for none."""
    folder = migrations({"001_a.sql": f"{MARK}CREATE TABEL a ();"})
    failed = run()
    assert 31 == failed.code, failed
    assert "001_a is not recorded" in error_of(failed)["message"]
    assert [] == database.query(PROGRESS)
    (folder / "001_a.sql").unlink()
    migrations({"001_b.sql": f"{MARK}CREATE TABLE a ();"})
    assert 0 == run().code


@pytest.mark.fault("E121")
@pytest.mark.usefixtures("table")
def test_killed_index_is_dropped_and_built_anew(
    start: Start, run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """After kill -9 there is an INVALID index; the next run knows it for its own."""
    migrations({"001_a.sql": MARK + CIC})
    with database.server.connect(database.name) as blocker:
        blocker.execute("BEGIN; INSERT INTO t VALUES (3)")
        process = start()
        process.wait_for_event("migration.blocked")
        process.signal(signal.SIGKILL)
        process.wait()
        end_of_sessions(database)
        blocker.execute("COMMIT")
    assert [("t_a", False)] == database.query(INDEXES)
    assert [("running", 0, 1)] == database.query(PROGRESS)

    result = run()

    assert 0 == result.code, str(result)
    assert "public.t_a" in [
        each.get("dropped_invalid_index") for each in result.event("migration.progressed")
    ]
    assert [("t_a", True)] == database.query(INDEXES)


@pytest.mark.usefixtures("table")
def test_stopped_index_is_dropped_and_built_anew(
    start: Start, run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """SIGTERM: 143 within 5 s although the index waits for somebody."""
    migrations({"001_a.sql": MARK + CIC})
    with database.server.connect(database.name) as blocker:
        blocker.execute("BEGIN; INSERT INTO t VALUES (3)")
        process = start()
        process.wait_for_event("migration.blocked")
        process.signal(signal.SIGTERM)
        stopped = process.wait(5)
        blocker.execute("COMMIT")

    assert 143 == stopped.code
    assert (
        "stopped by SIGTERM; the finished statements of 001_a.sql (0) stay, and an index that was "
        "being built may be INVALID; the lock is free"
    ) == error_of(stopped)["message"]
    assert [("failed", 0, 1)] == database.query(PROGRESS)
    assert ["failed"] == database.query("SELECT event FROM preflight.journal")
    assert 0 == run().code
    assert [("t_a", True)] == database.query(INDEXES)


@pytest.mark.fault("E119")
@pytest.mark.usefixtures("table")
def test_failed_index_is_named_and_built_once_the_cause_is_gone(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """A unique index over rows that are not."""
    migrations({"001_a.sql": MARK + UNIQUE})

    failed = run()

    assert (31, "23505") == (failed.code, error_of(failed)["sqlstate"])
    assert "public.t_a is left INVALID" in error_of(failed)["message"]
    database.query("DELETE FROM t WHERE a = 1")
    again = run()
    assert 0 == again.code, str(again)
    assert [("t_a", True)] == database.query(INDEXES)


@pytest.mark.usefixtures("table")
def test_index_of_a_role_without_temporary_tables_is_known_again(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """It may not read the table either; the server writes the predicate with casts of its own."""
    role = f"{database.name}_poor"
    database.script(
        f"REVOKE TEMP ON DATABASE {database.name} FROM PUBLIC; CREATE ROLE {role};"
        f"ALTER TABLE t ADD s varchar(9) DEFAULT 'on'; ALTER TABLE t OWNER TO {role};"
        f"GRANT CREATE ON SCHEMA public TO {role}; REVOKE SELECT ON t FROM {role}"
    )
    index = UNIQUE.replace(";", " WHERE s = 'on';")
    migrations({"001_a.sql": f"{MARK}SET ROLE {role};\n{index}"})
    try:
        failed = run()
        database.script("DELETE FROM t WHERE a = 1")
        again = run()

        assert [31, 0] == [failed.code, again.code], str(again)
        assert "public.t_a is left INVALID" in error_of(failed)["message"]
        assert [("t_a", True)] == database.query(INDEXES)
    finally:
        database.script(f"DROP OWNED BY {role}; DROP ROLE {role}")


KINDS = [  # what an index may be, and what else may have its name
    ("INDEX {} (a)", "INDEX {} (a DESC)"),
    ("UNIQUE INDEX {} (a)", "INDEX {} (a)"),
    ("INDEX {} (a DESC)", "INDEX {} (a DESC NULLS LAST)"),
    ("INDEX {} (a, b)", "INDEX {} (b, a)"),
    ("UNIQUE INDEX {} (a) INCLUDE (b)", "UNIQUE INDEX {} (a) INCLUDE (c)"),
    ("UNIQUE INDEX {} (a) NULLS NOT DISTINCT", "UNIQUE INDEX {} (a)"),
    ("INDEX {} (b text_pattern_ops)", "INDEX {} (b)"),
    ('INDEX {} (b COLLATE "C")', "INDEX {} (b)"),
    ("INDEX {} ((public.t.b || t.c)) WHERE t.a IN (1, 2)", "INDEX {} ((c || b)) WHERE a IN (1, 2)"),
    ("INDEX {} (lower(b)) WHERE a < 5", "INDEX {} (lower(b)) WHERE a < 6"),
    ("INDEX {} USING gist (p)", "INDEX {} USING spgist (p)"),
    ("INDEX {} USING gist (v tsvector_ops (siglen = 100))", "INDEX {} USING gist (v)"),
    ("INDEX {} (a) WITH (fillfactor = 70)", "INDEX {} (a) WITH (fillfactor = 80)"),
    ("INDEX {} (a) TABLESPACE space", "INDEX {} (a) TABLESPACE pg_default"),
    ("INDEX {} (a) WHERE e = 'x'", "INDEX {} (a) WHERE e = 'y'"),
    ("INDEX {} (row_of(t)) WHERE b IN ('x', 'y')", "INDEX {} (row_of(t)) WHERE b IN ('x')"),
    ("INDEX {} ((t.row_of)) WHERE b = 'x'", "INDEX {} ((t.row_of)) WHERE b = 'y'"),
    ("INDEX {} ((t IS NULL)) WHERE b = 'x'", "INDEX {} ((t IS NOT NULL)) WHERE b = 'x'"),
]


@pytest.mark.parametrize("temporary", [True, False])
def test_index_is_what_the_statement_makes_in_every_part(
    database: servers.Database, *, temporary: bool
) -> None:
    """Whether the server is asked on a temporary copy of the table, or the role may make none."""
    name, place = database.name, '"t USING i" ON t'
    database.script(
        f"CREATE ROLE {name}; REVOKE TEMP ON DATABASE {name} FROM PUBLIC;"
        "CREATE SCHEMA s; CREATE TYPE s.t AS ENUM ('x', 'y');"
        "CREATE TABLE t (a int, b varchar, c text, p point, v tsvector, e s.t);"
        "CREATE FUNCTION row_of(public.t) RETURNS text IMMUTABLE RETURN $1.b;"
        f"GRANT USAGE ON SCHEMA s TO {name};"
        f"ALTER TABLE t OWNER TO {name}; GRANT CREATE ON SCHEMA public TO {name};"
        + (f"GRANT TEMP ON DATABASE {name} TO {name}" if temporary else "")
    )
    target = {key: str(value) for key, value in conninfo_to_dict(database.conninfo()).items()}
    told: list[object] = []
    try:
        with sessions.connect(Config(target, {}, Path("/nowhere"), run_id="run")) as session:
            session.prepare()
            session.execute("SET allow_in_place_tablespaces = on; SET search_path = s, public")
            session.execute(f"CREATE TABLESPACE {name} LOCATION ''")
            session.execute(f"GRANT CREATE ON TABLESPACE {name} TO {name}; SET ROLE {name}")
            for mine, other in KINDS:
                made = "CREATE " + mine.format(place).replace("space", name)
                session.execute(made)
                found = indexes.find(session, indexes.Index("t USING i", "t"))
                assert found
                texts = (made.encode(), f"CREATE {other}".format(place).encode())
                told += [indexes.made_by(session, found, text) for text in texts]
                session.execute('DROP INDEX "t USING i"')

        assert [True, False] * len(KINDS) == told
        assert [name] == database.query(
            "SELECT tableowner::text FROM pg_tables WHERE schemaname = 'public'"
        )
    finally:
        database.script(f"DROP OWNED BY {name} CASCADE")
        database.script(f"DROP TABLESPACE IF EXISTS {name}")
        database.script(f"DROP ROLE {name}")


NO_COPY = """CREATE FUNCTION keep() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
 IF EXISTS (SELECT FROM pg_event_trigger_ddl_commands() WHERE schema_name <> 'preflight') THEN
  RAISE 'tables are made by hand here'; END IF; END $$;
CREATE EVENT TRIGGER keep ON ddl_command_end WHEN TAG IN ('CREATE TABLE')
 EXECUTE FUNCTION keep()"""


@pytest.mark.usefixtures("table")
def test_index_is_left_alone_where_nobody_can_tell_whose_it_is(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Where no copy of a table can be made: 31, the index stays, the server's reason is told."""
    database.script(NO_COPY)
    migrations({"001_a.sql": MARK + UNIQUE.replace(";", " WHERE a IN (1, 2);")})

    failed = run()
    again = run()

    assert [31, 31] == [failed.code, again.code], str(again)
    assert "DROP INDEX CONCURRENTLY public.t_a;" in error_of(failed)["hint"]
    assert "index.unknown" == error_of(again)["code"]
    assert "tables are made by hand here" in error_of(again)["message"]
    assert "TEMPORARY" not in error_of(again)["hint"]
    assert [("t_a", False)] == database.query(INDEXES)


@pytest.mark.usefixtures("table")
def test_index_is_known_again_without_a_copy_where_the_catalog_says_the_same(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """A column of the table's own name is not its row, though a text says the same of both."""
    database.script(
        "ALTER TABLE t RENAME TO a; CREATE INDEX t_a ON a ((a IS NULL)); CREATE INDEX t_b ON a (a);"
        f"CREATE INDEX t_c ON a ((a.* IS NULL)); {NO_COPY}"
    )
    name = "CREATE INDEX CONCURRENTLY IF NOT EXISTS"
    migrations(
        {
            "001_a.sql": f"{MARK}{name} t_b ON a (a);\n{name} t_c ON a ((public.a.* IS NULL));\n"
            f"{name} t_a ON a ((a.* IS NULL));"
        }
    )

    result = run()

    assert (31, "index.unknown") == (result.code, error_of(result)["code"]), str(result)
    assert [("failed", 2, 2)] == database.query(PROGRESS)


@pytest.mark.usefixtures("table")
def test_index_that_ours_has_built_is_not_compared(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """The server says what it skips; of our own build a copy could only say something false."""
    index = "CREATE INDEX CONCURRENTLY IF NOT EXISTS t_a ON t (a) WHERE a::text <> 'x\\\\y';"
    migrations({"001_a.sql": f"{MARK}SET standard_conforming_strings = off;\n{index}"})

    result = run()

    assert 0 == result.code, str(result)
    assert [("t_a", True)] == database.query(INDEXES)


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("quiet", ["", "SET client_min_messages = warning;\n"])
def test_index_that_is_made_while_ours_waits_does_not_pass_for_it(
    start: Start, database: servers.Database, migrations: WriteMigrations, quiet: str
) -> None:
    """IF NOT EXISTS waits for the table, and then takes any index of that name for its own."""
    migrations({"001_a.sql": MARK + quiet + CIC.replace("t_a", "IF NOT EXISTS t_a", 1)})
    with database.server.connect(database.name) as operator:
        operator.execute("BEGIN; CREATE INDEX t_a ON t (a DESC)")
        process = start()
        wait_for_statement(process, database, "IF NOT EXISTS t_a")
        operator.execute("COMMIT")
        result = process.wait()

    assert (31, "index.differs") == (result.code, error_of(result)["code"]), str(result)


@pytest.mark.usefixtures("table")
def test_index_without_a_name_is_named_where_it_is_left_invalid(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Built again beside it, a second one would stay; of a table that is not there nothing is."""
    text = MARK + "SELECT 1;\nCREATE UNIQUE INDEX CONCURRENTLY ON {} (a);"
    migrations({"001_a.sql": text.format("nosuch")})
    absent = run()
    migrations({"001_a.sql": text.format("t")})
    failed, again = run(), run()
    checked = run("check")
    drop = "DROP INDEX CONCURRENTLY public.t_a_idx;"
    database.script("DELETE FROM t WHERE ctid = '(0,1)'")
    database.script(drop)
    done = run("force", "1")

    assert [31, 31, 32, 0] == [each.code for each in (absent, failed, again, done)], str(done)
    assert "left INVALID: public.t_a_idx" in error_of(failed)["message"]
    assert [True] * 3 == [drop in error_of(each)["hint"] for each in (failed, again, checked)]
    assert "INVALID on its table: public.t_a_idx" in error_of(again)["message"]
    assert [("t_a_idx", True)] == database.query(INDEXES)


@pytest.mark.usefixtures("table")
def test_force_warns_of_an_index_without_a_name_that_it_leaves(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """The server gives the new one another name, so the INVALID one would stay unseen."""
    migrations({"001_a.sql": f"{MARK}CREATE UNIQUE INDEX CONCURRENTLY ON t (a);"})
    failed = run()
    database.script("DELETE FROM t WHERE ctid = '(0,1)'")
    forced, again = run("force", "1"), run("force", "1")
    database.script("DROP INDEX t_a_idx")
    quiet = run("force", "1")

    assert [31, 0, 0, 0] == [each.code for each in (failed, forced, again, quiet)], str(forced)
    assert [1, 1, 0] == [
        str(each.event("migration.progressed")).count("DROP INDEX CONCURRENTLY public.t_a_idx;")
        for each in (forced, again, quiet)
    ]


def test_part_way_file_that_lost_its_mark_goes_on_once_it_has_it_again(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """In one transaction its done statements would run again; 32 says what was taken away."""
    text = "CREATE TABLE a ();\nCREATE TABLE b ({});"
    migrations({"001_a.sql": MARK + text.format("wrong")})
    failed = run()
    migrations({"001_a.sql": text.format("")})
    refused = run()
    migrations({"001_a.sql": MARK + text.format("")})
    done = run()

    assert [31, 32, 0] == [each.code for each in (failed, refused, done)], str(done)
    assert f"Put `{MARK.strip()}` at the top of the file." in error_of(refused)["hint"]
    assert ["b"] == database.query("SELECT to_regclass('b')::text")


@pytest.mark.usefixtures("table")
def test_index_without_a_name_waits_for_a_locked_table(
    start: Start, database: servers.Database, migrations: WriteMigrations
) -> None:
    """It queues nobody, so it may; somebody else's INVALID index is no reason to ask earlier."""
    with database.server.connect(database.name) as other:
        with pytest.raises(UniqueViolation):
            other.execute("CREATE UNIQUE INDEX CONCURRENTLY theirs ON t (abs(a))")
        migrations({"001_a.sql": f"{MARK}CREATE INDEX CONCURRENTLY ON t (a);"})
        other.execute("BEGIN; LOCK TABLE t")
        process = start(env={"PREFLIGHT_LOCK_TIMEOUT_MS": "5"})
        process.wait_for_event("migration.blocked")
        other.execute("COMMIT")
    result = process.wait()

    assert 0 == result.code, str(result)


@pytest.mark.usefixtures("table")
def test_failure_is_told_where_nobody_can_see_what_it_left(
    start: Start, run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Somebody locks the table before we can look: the next run does."""
    migrations({"001_a.sql": MARK + CIC.replace(";", " WHERE a > 0;")})
    connect = database.server.connect
    with (
        ThreadPoolExecutor() as pool,
        connect(database.name) as locker,
        connect(database.name) as writer,
    ):
        writer.execute("BEGIN; INSERT INTO t VALUES (3)")
        process = start(env={"PREFLIGHT_LOCK_TIMEOUT_MS": "100"})
        process.wait_for_event("migration.blocked")
        locking = pool.submit(locker.execute, "BEGIN; LOCK TABLE t")
        wait_for_statement(process, database, "LOCK TABLE t")
        database.query(
            f"SELECT pg_cancel_backend(pid) FROM ({ACTIVE}) AS building", "%INDEX CONC%", "0s"
        )
        failed = process.wait()
        writer.execute("COMMIT")
        locking.result()
        locker.execute("COMMIT")
    resumed = run()

    assert (31, "57014") == (failed.code, error_of(failed)["sqlstate"]), str(failed)
    assert 0 == resumed.code, str(resumed)
    assert [("t_a", True)] == database.query(INDEXES)


@pytest.mark.usefixtures("table")
def test_build_that_takes_too_long_is_told_whose_limit_it_was(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Beside what it left, the limit is the cause that has to be removed."""
    migrations({"001_a.sql": MARK + CIC})
    with database.server.connect(database.name) as writer:
        writer.execute("BEGIN; INSERT INTO t VALUES (3)")
        result = run(env={"PREFLIGHT_STATEMENT_TIMEOUT_S": "0.3"})

    error = error_of(result)
    assert (31, "57014") == (result.code, error["sqlstate"]), str(result)
    assert error["hint"].startswith("It took longer than PREFLIGHT_STATEMENT_TIMEOUT_S (0.3 s): ")
    assert error["hint"].endswith("run again: the index is dropped and built anew.")


@pytest.mark.usefixtures("table")
def test_invalid_index_of_somebody_else_is_left_alone(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """31, naming it; not even the second run drops it."""
    with database.server.connect(database.name) as theirs, pytest.raises(Exception, match="unique"):
        theirs.execute(UNIQUE)
    oid = database.query("SELECT 't_a'::regclass::oid::int")
    migrations({"001_a.sql": MARK + CIC.replace("t_a", "IF NOT EXISTS t_a")})

    for _ in range(2):
        result = run()
        assert (31, "index.invalid") == (result.code, error_of(result)["code"]), str(result)
        assert "public.t_a" in error_of(result)["message"]
        assert oid == database.query("SELECT 't_a'::regclass::oid::int")


MADE = "CREATE UNIQUE INDEX CONCURRENTLY t_a ON t (a) "


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("", "WHERE a > 0"),
        ("WHERE a > 0", "WHERE a > -1"),
        ("WHERE a > 0", "WHERE a > 0 AND a < 9"),
        ("", "WITH (fillfactor = 50)"),
        ("INCLUDE (b)", "INCLUDE (c)"),
        ("WHERE lower(b) > ''", "WHERE upper(b) > ''"),
    ],
)
def test_only_what_the_statement_of_this_file_makes_is_dropped(
    run: Run, database: servers.Database, migrations: WriteMigrations, ours: str, theirs: str
) -> None:
    """What somebody else built under its name meanwhile stays, INVALID or not; 31 names it."""
    database.script("ALTER TABLE t ADD b text DEFAULT 'b', ADD c text")
    migrations({"001_a.sql": MARK + MADE + ours})
    assert 31 == run().code
    assert [("failed", 0, 1)] == database.query(PROGRESS)
    with database.server.connect(database.name) as operator:
        operator.execute("DROP INDEX t_a")
        with pytest.raises(Exception, match="unique"):
            operator.execute((MADE + theirs).encode())
    oid = database.query("SELECT 't_a'::regclass::oid::int")

    result = run()
    database.script("DELETE FROM t WHERE a = 1; REINDEX INDEX t_a")
    valid = run()

    assert (31, "index.invalid") == (result.code, error_of(result)["code"]), str(result)
    assert (31, "42P07") == (valid.code, error_of(valid)["sqlstate"]), str(valid)
    assert oid == database.query("SELECT 't_a'::regclass::oid::int")


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    "what", ["(lower(b), a) WHERE a IN (1, 2) AND b LIKE 'b%'", "(a, b) WITH (fillfactor = 70)"]
)
def test_index_is_known_for_ours_in_whatever_words_the_catalog_has_it(
    run: Run, database: servers.Database, migrations: WriteMigrations, what: str
) -> None:
    """The server writes expressions anew; what is ours is dropped and built all the same."""
    database.script("ALTER TABLE t ADD b text DEFAULT 'b'")
    migrations({"001_a.sql": MARK + f"CREATE UNIQUE INDEX CONCURRENTLY t_a ON t {what};"})
    failed = run()
    database.script("DELETE FROM t WHERE a = 1")

    again = run()

    assert "is left INVALID" in error_of(failed)["message"]
    assert 0 == again.code, str(again)
    assert [("t_a", True)] == database.query(INDEXES)


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("theirs", ["t_a ON t (a) WHERE a > 0", "t_a ON t (a)"])
def test_index_that_an_operator_builds_this_moment_is_left_to_him(
    start: Start, run: Run, database: servers.Database, migrations: WriteMigrations, theirs: str
) -> None:
    """It is INVALID as long as it is being built; what was killed before it made any is not it."""
    migrations({"001_a.sql": MARK + CIC})
    with database.server.connect(database.name) as blocker:
        blocker.execute("BEGIN; LOCK TABLE t IN SHARE UPDATE EXCLUSIVE MODE")
        process = start()
        process.wait_for_event("migration.blocked")
        process.kill()
        end_of_sessions(database)
    assert [] == database.query(INDEXES)
    with database.server.connect(database.name) as old, ThreadPoolExecutor() as pool:
        old.execute("BEGIN; INSERT INTO t VALUES (3)")
        done = pool.submit(database.script, f"CREATE INDEX CONCURRENTLY {theirs}")
        while not database.query(INDEXES):
            assert not done.done()
        busy = run()
        old.execute("ROLLBACK")
        done.result()
    oid = database.query("SELECT 't_a'::regclass::oid::int")

    later = run()

    assert (31, "index.busy") == (busy.code, error_of(busy)["code"]), str(busy)
    assert (0 if theirs == "t_a ON t (a)" else 31) == later.code, str(later)
    assert oid == database.query("SELECT 't_a'::regclass::oid::int")


@pytest.mark.usefixtures("table")
def test_index_with_a_name_like_a_leftover_is_nobodys_leftover(
    outer_server: servers.Server, run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """REINDEX CONCURRENTLY cleans up copies of indexes, and not what only has such a name."""
    database.script("CREATE INDEX t_b ON t (a)")
    migrations({"001_a.sql": MARK + "REINDEX (VERBOSE) TABLE CONCURRENTLY t;"})
    with outer_server.connect(database.name) as operator:
        with pytest.raises(Exception, match="unique"):
            operator.execute(UNIQUE.replace("t_a", "t_b_ccnew"))
        operator.execute("BEGIN; INSERT INTO t VALUES (3)")
        failed = run(env={"PREFLIGHT_STATEMENT_TIMEOUT_S": "0.5"})
        operator.execute("COMMIT")
    assert 31 == failed.code, str(failed)
    assert [("t_b", True), ("t_b_ccnew", False), ("t_b_ccnew1", False)] == database.query(INDEXES)

    again = run()

    assert 0 == again.code, str(again)
    assert [("t_b", True), ("t_b_ccnew", False)] == database.query(INDEXES)


@pytest.mark.fault("E120")
@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    ("before", "code"),
    [
        ("CREATE INDEX t_a ON t (abs(a) DESC) WHERE a > 1", "index.differs"),
        ("CREATE INDEX t_a ON t (sign(a)) WHERE a < 1", "index.differs"),
        ("CREATE UNIQUE INDEX t_a ON t (abs(a)) WHERE a > 1", "index.differs"),
        ("CREATE TABLE u (a int); CREATE INDEX t_a ON u (a)", "index.elsewhere"),
        ("CREATE INDEX t_a ON t (abs(a)) WHERE a > 1", None),
    ],
)
def test_if_not_exists_does_not_hide_another_index(
    run: Run, database: servers.Database, migrations: WriteMigrations, before: str, code: str | None
) -> None:
    """IF NOT EXISTS asks for the name only; the file asks for the index."""
    database.script(before)
    migrations(
        {
            "001_a.sql": MARK
            + "CREATE INDEX CONCURRENTLY IF NOT EXISTS t_a ON t (abs(t.a)) WHERE t.a > 1"
        }
    )

    result = run()

    assert (31 if code else 0) == result.code, str(result)
    assert code == result.finished.get("error", {}).get("code")


@pytest.mark.usefixtures("table")
def test_killed_statement_in_a_transaction_has_no_double_effect(
    start: Start, run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Its effect and its mark are one transaction."""
    migrations(
        {
            "001_a.sql": MARK + "INSERT INTO t VALUES (7);"
            "INSERT INTO t SELECT 8 FROM pg_advisory_xact_lock(42);"
        }
    )
    with database.server.connect(database.name) as blocker:
        blocker.execute("SELECT pg_advisory_lock(42)")
        process = start(env={"PREFLIGHT_LOCK_TIMEOUT_MS": "60000"})
        wait_for_statement(process, database, "INSERT INTO t SELECT")
        process.signal(signal.SIGKILL)
        process.wait()
        end_of_sessions(database)

    assert [("running", 1, 1)] == database.query(PROGRESS)
    assert 0 == run().code
    assert [7, 8] == database.query("SELECT a FROM t WHERE a > 6 ORDER BY a")


def test_statement_that_cannot_be_read_back_needs_repair(
    start: Start,
    run: Run,
    database: servers.Database,
    create_database: CreateDatabase,
    migrations: WriteMigrations,
) -> None:
    """CREATE DATABASE was under way when the run was killed: 32, and 32 again."""
    template = create_database(database.server)
    migrations(
        {"001_a.sql": MARK + f"CREATE DATABASE {template.name}_copy TEMPLATE {template.name};"}
    )
    with database.server.connect(template.name):  # makes CREATE DATABASE wait
        process = start()
        wait_for_statement(process, database, "CREATE DATABASE")
        process.signal(signal.SIGKILL)
        process.wait()
        end_of_sessions(database)

    for _ in range(2):
        result = run()
        assert (32, "migration.needs_repair") == (result.code, error_of(result)["code"])
    assert "cannot be read back" in error_of(result)["message"]
    assert [("running", 0, 1)] == database.query(PROGRESS)


@pytest.mark.usefixtures("table")
def test_time_that_was_too_short_is_raised_where_the_file_sets_it(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """It is no change of what ran, for it is said again; the index is built anew, as told."""
    text = MARK + "SET statement_timeout = {}; CREATE INDEX CONCURRENTLY slow_a ON t (slow(a));"
    database.script(
        "INSERT INTO t VALUES (1); CREATE FUNCTION slow(n int) RETURNS int IMMUTABLE "
        "LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.1); RETURN n; END'"
    )
    migrations({"001_a.sql": text.format("'50ms'")})
    stopped = run(env={"PREFLIGHT_REHEARSE": "off"})
    assert (31, "57014") == (stopped.code, error_of(stopped)["sqlstate"]), str(stopped)
    assert "raise that." in error_of(stopped)["hint"], str(stopped)

    migrations({"001_a.sql": text.format("'5min'") + "SET search_path = pg_catalog;"})
    result = run(env={"PREFLIGHT_REHEARSE": "off"})

    assert (0, ["001_a"]) == (result.code, result.finished["applied"]), str(result)
    assert [True] == database.query(
        "SELECT indisvalid FROM pg_index WHERE indexrelid = 'slow_a'::regclass"
    )


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("other", ["SET search_path = pg_catalog;", "SET work_mem = '9MB';"])
def test_other_setting_in_the_place_of_one_is_a_change_of_what_ran(
    run: Run, migrations: WriteMigrations, other: str
) -> None:
    """Only how long a statement may take is nobody's business but the next one's."""
    behind = "SELECT 1/0;"
    migrations({"001_a.sql": f"{MARK}SET statement_timeout = '1h'; VACUUM; {behind}"})
    assert 31 == run().code

    migrations({"001_a.sql": f"{MARK}{other} VACUUM;"})
    result = run()

    assert (32, "migration.needs_repair") == (result.code, error_of(result)["code"]), str(result)


@pytest.mark.usefixtures("table")
def test_failed_verify_file_is_asked_again(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """31: what has run stays and is not repeated; what is missing is added behind it."""
    migrations(
        {
            "001_a.sql": MARK + "INSERT INTO t VALUES (7);",
            "001_a_verify.sql": "SELECT 'rows' AS suite, 'there is an 8' AS \"check\", "
            "EXISTS (SELECT FROM t WHERE a = 8) AS ok",
        }
    )

    failed = run()

    assert (31, "verify.failed") == (failed.code, error_of(failed)["code"])
    assert ["there is an 8"] == [each["check"] for each in failed.event("check.failed")]
    assert error_of(failed)["hint"].startswith("Add what is missing behind the statements that")
    assert 31 == run().code
    migrations({"001_a.sql": MARK + "INSERT INTO t VALUES (8);"})
    changed = run()
    assert 32 == changed.code, str(changed)
    assert "as they ran, with what is missing behind them" in error_of(changed)["hint"]
    migrations({"001_a.sql": MARK + "INSERT INTO t VALUES (7);\nINSERT INTO t VALUES (8);"})
    assert 0 == run().code
    assert [1] == database.query("SELECT count(*) FROM t WHERE a = 7")


@pytest.mark.usefixtures("table")
def test_concurrently_waits_longer_than_the_lock_timeout(
    start: Start, database: servers.Database, migrations: WriteMigrations
) -> None:
    """It queues nobody, so the configured lock_timeout is not for it."""
    migrations({"001_a.sql": MARK + CIC})
    with database.server.connect(database.name) as blocker:
        blocker.execute("BEGIN; INSERT INTO t VALUES (3)")
        process = start(env={"PREFLIGHT_LOCK_TIMEOUT_MS": "100"})
        wait_for_statement(process, database, "CREATE INDEX", longer_than="400ms")
        blocker.execute("COMMIT")

    assert 0 == process.wait().code


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    "said", ["-- preflight: lock-timeout 100ms\n", "SET lock_timeout = '100ms';"]
)
def test_concurrently_obeys_the_lock_timeout_of_its_file(
    run: Run, database: servers.Database, migrations: WriteMigrations, said: str
) -> None:
    """31, and the statement before it stays done."""
    migrations({"001_a.sql": MARK + said + CIC})
    with database.server.connect(database.name) as blocker:
        blocker.execute("BEGIN; INSERT INTO t VALUES (3)")
        failed = run()
        blocker.execute("COMMIT")

    assert (31, "55P03") == (failed.code, error_of(failed)["sqlstate"])
    assert 0 == run().code
    assert [("t_a", True)] == database.query(INDEXES)


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    "statement",
    [
        "-- VACUUM FULL cannot run concurrently with anything\nVACUUM FULL t;",
        "REINDEX (CONCURRENTLY off) SCHEMA public;",
        'CREATE TABLE "concurrently" (a int); CLUSTER t USING t_b;',
    ],
)
def test_statement_that_queues_readers_obeys_the_lock_timeout(
    run: Run, database: servers.Database, migrations: WriteMigrations, statement: str
) -> None:
    """Whatever words stand in it or around it."""
    database.script("CREATE INDEX t_b ON t (a)")
    migrations({"001_a.sql": MARK + statement})
    with database.server.connect(database.name) as blocker:
        blocker.execute("BEGIN; SELECT * FROM t; INSERT INTO t VALUES (3)")
        failed = run(env={"PREFLIGHT_LOCK_TIMEOUT_MS": "100", "PREFLIGHT_LOCK_RETRY_S": "0"})

    assert (31, "55P03") == (failed.code, error_of(failed)["sqlstate"]), str(failed)
    inside = "CLUSTER" in statement  # a transaction, so that it may be tried again
    assert inside == ("PREFLIGHT_LOCK_RETRY_S" in error_of(failed)["hint"])


@pytest.mark.usefixtures("table")
def test_statement_in_a_transaction_waits_for_who_is_in_its_way(
    start: Start, run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """It is rolled back and tried again, as a file would be; in the end the blocker is named."""
    head = f"{MARK}SET search_path = public;\n"
    migrations({"001_a.sql": f"{head}DO $$ BEGIN ALTER TABLE t ADD b int; END $$;\n"})
    with database.server.connect(database.name) as blocker:
        pid = blocker.info.backend_pid
        blocker.execute("BEGIN; SELECT * FROM t")
        once = run(env={"PREFLIGHT_LOCK_TIMEOUT_MS": "100", "PREFLIGHT_LOCK_RETRY_S": "1"})
        migrations({"001_a.sql": f"{head}ALTER TABLE t ADD b int;\n"})
        failed = run(env={"PREFLIGHT_LOCK_TIMEOUT_MS": "1000", "PREFLIGHT_LOCK_RETRY_S": "0"})
        process = start(env={"PREFLIGHT_LOCK_TIMEOUT_MS": "100"})
        process.wait_for_event("migration.retried")
        blocker.execute("COMMIT")
    result = process.wait()

    assert (31, "55P03") == (failed.code, error_of(failed)["sqlstate"]), str(failed)
    assert f"blocked by pid {pid}" in error_of(failed)["message"]
    assert "PREFLIGHT_LOCK_RETRY_S" in error_of(failed)["hint"]
    assert (31, []) == (once.code, once.event("migration.retried")), str(once)
    assert "it is tried once" in error_of(once)["hint"]
    assert 0 == result.code, str(result)


def test_partition_that_is_half_detached_is_named_and_finished(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Its second half queues readers, so it obeys the lock timeout; the next run finishes it."""
    database.script(
        "CREATE TABLE p (a int) PARTITION BY LIST (a); CREATE TABLE p1 PARTITION OF p FOR VALUES "
        "IN (1); CREATE TABLE p2 PARTITION OF p FOR VALUES IN (2)"
    )
    migrations({"001_a.sql": MARK + "ALTER TABLE p DETACH PARTITION p1 CONCURRENTLY;"})
    with database.server.connect(database.name) as blocker:
        blocker.execute("BEGIN; SELECT * FROM p1")
        failed = run(env={"PREFLIGHT_LOCK_TIMEOUT_MS": "100"})
        again = run(env={"PREFLIGHT_LOCK_TIMEOUT_MS": "100"})
        blocker.execute("COMMIT")
    pending = database.query("SELECT inhdetachpending FROM pg_inherits ORDER BY 1")
    finished = run()

    for each in (failed, again):
        assert (31, "55P03") == (each.code, error_of(each)["sqlstate"]), str(each)
        assert "FINALIZE" in error_of(each)["hint"]
        assert "pending" in error_of(each)["message"]
    assert [False, True] == pending
    assert 0 == finished.code, str(finished)
    assert ["p2"] == database.query("SELECT inhrelid::regclass::text FROM pg_inherits")


@pytest.mark.usefixtures("table")
def test_file_that_drops_the_history_fails_clearly(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Its own statement cannot be marked, and so is rolled back."""
    migrations({"001_a.sql": MARK + "INSERT INTO t VALUES (7); DROP SCHEMA preflight CASCADE;"})

    result = run()

    assert (31, "migration.not_recorded") == (result.code, error_of(result)["code"])
    assert [("failed", 1, 1)] == database.query(PROGRESS)


def test_deferred_constraint_fails_at_its_statement(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """It is checked before the statement is marked."""
    migrations(
        {
            "001_a.sql": MARK + "CREATE TABLE p (id int PRIMARY KEY, "
            "up int REFERENCES p DEFERRABLE INITIALLY DEFERRED);\n"
            "  INSERT INTO p VALUES (1, 2);"
        }
    )

    result = run()

    assert (31, 3, 3, "23503") == (
        result.code,
        *(error_of(result).get(each) for each in ("line", "column", "sqlstate")),
    ), str(result)
    assert [("failed", 1, 1)] == database.query(PROGRESS)


@pytest.mark.usefixtures("table")
def test_statement_whose_mark_waits_in_vain_is_partial(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """31, not 12: the statements before it stay. The next run goes on there."""
    migrations(
        {
            "001_a.sql": MARK + "INSERT INTO t VALUES (7);"
            "CREATE FUNCTION busy() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE 'somebody has it' USING ERRCODE = '55P03'; END $$;"
            "CREATE TRIGGER busy BEFORE UPDATE ON preflight.migrations FOR EACH ROW "
            "WHEN (new.statements_done = 4) EXECUTE FUNCTION busy();"
            "INSERT INTO t VALUES (8);"
        }
    )

    failed = run(env={"PREFLIGHT_LOCK_RETRY_S": "0"})

    assert (31, "migration.not_recorded", "55P03") == (
        failed.code,
        *(error_of(failed)[each] for each in ("code", "sqlstate")),
    ), str(failed)
    assert [("failed", 3, 3)] == database.query(PROGRESS)
    database.script("DROP TRIGGER busy ON preflight.migrations")
    again = run()
    assert 0 == again.code, str(again)
    assert [7, 8] == database.query("SELECT a FROM t WHERE a > 6 ORDER BY a")


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("what", ["TABLE CONCURRENTLY t", "INDEX CONCURRENTLY public.t_b"])
def test_failed_reindex_is_named_and_cleaned_up(
    outer_server: servers.Server,
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    what: str,
) -> None:
    """The half-made copy is INVALID and would stay for ever, kept up to date at every write."""
    database.script("ALTER TABLE t ADD b text; CREATE INDEX t_b ON t (b)")
    migrations({"001_a.sql": MARK + f"-- preflight: lock-timeout 100ms\nREINDEX {what};"})
    with outer_server.connect(database.name) as blocker:
        blocker.execute("BEGIN; INSERT INTO t VALUES (3)")
        failed = run()
        blocker.execute("COMMIT")

    assert (31, "55P03") == (failed.code, error_of(failed)["sqlstate"]), str(failed)
    assert "left INVALID: " in error_of(failed)["message"]
    assert "public.t_b_ccnew" in error_of(failed)["message"]
    assert [("t_b", True), ("t_b_ccnew", False)] == database.query(INDEXES)
    again = run()
    assert 0 == again.code, str(again)
    assert [("t_b", True)] == database.query(INDEXES)
    assert [0] == database.query("SELECT count(*) FROM pg_index WHERE NOT indisvalid")


@pytest.mark.usefixtures("table")
def test_failed_reindex_of_a_schema_is_named_only(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Whose INVALID indexes there are in a whole schema, nobody can tell."""
    database.script("CREATE INDEX t_a ON t (a); CREATE INDEX t_b ON t (a, a)")
    migrations(
        {
            "001_a.sql": MARK + "-- preflight: lock-timeout 100ms\n"
            "REINDEX SCHEMA CONCURRENTLY public;"
        }
    )
    with database.server.connect(database.name) as blocker:
        blocker.execute("BEGIN; INSERT INTO t VALUES (3)")
        failed = run()
        blocker.execute("COMMIT")

    assert 31 == failed.code, str(failed)
    drops = "DROP INDEX CONCURRENTLY public.t_a_ccnew; DROP INDEX CONCURRENTLY public.t_b_ccnew;"
    assert drops in error_of(failed)["hint"]
    again = run()  # without them
    assert 0 == again.code, str(again)
    told = [each.get("notice", "") for each in again.event("migration.progressed")]
    assert 2 == len([each for each in told if "invalid index" in each])  # the server says it


def test_procedure_that_commits_by_itself_is_explained(
    run: Run, migrations: WriteMigrations
) -> None:
    """PostgreSQL says only "invalid transaction termination"."""
    migrations({"001_a.sql": MARK + "DO $$ BEGIN COMMIT; END $$;"})

    result = run()

    assert (31, "2D000") == (result.code, error_of(result)["sqlstate"])
    assert "commits by itself" in error_of(result)["hint"]


# --- what a resume would miss ---------------------------------------------------------------------


def test_edited_rows_of_a_done_copy_are_an_edit(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """32: the statement's text is the same, but new rows in its data would be nowhere."""
    text = MARK + "CREATE TABLE t (x int);\nCOPY t FROM stdin;\n1\n2\n\\.\nSELECT 1/0;\n"
    migrations({"001_t.sql": text})
    assert 31 == run().code
    migrations({"001_t.sql": text.replace("1\n2\n", "1\n2\n3\n").replace("1/0", "1")})

    assert [32, 32] == [run("check").code, run().code]
    migrations({"001_t.sql": text.replace("1/0", "1")})
    assert 0 == run().code
    assert [1, 2] == database.query("SELECT x FROM t ORDER BY 1")


@pytest.mark.parametrize("command", ["up", "plan", "rollback", "force"])
def test_what_a_resume_would_miss_is_refused_before_anything_runs(
    run: Run, database: servers.Database, migrations: WriteMigrations, command: str
) -> None:
    """25 before the backup; `lint` warns, and a file that is recorded is not judged by it."""
    wrong = MARK + "SELECT set_config('search_path', 'app', false);\nCREATE TABLE t (x int);\n"
    folder = migrations({"001_a.sql": "CREATE TABLE a (x int);"})
    if command == "rollback":
        migrations({"001_a_rollback.sql": wrong})
    elif command == "force":
        migrations({"001_a.sql": wrong})
    if command in ("rollback", "force"):
        assert 0 == run("adopt", "1").code
        assert 0 == run().code  # recorded: nobody asks
    else:
        (folder / "001_a.sql").unlink()
        migrations({"001_t.sql": wrong})

    result, linted = run(command), run("lint")

    assert (25, 2) == (result.code, result.finished["error"]["line"]), str(result)
    assert [] == result.event("backup.started")
    assert [None] == database.query("SELECT to_regclass('t')")
    assert 0 == linted.code
    assert "set_config" in str(linted.event("migration.listed")[0]["remarks"])


def test_half_done_file_whose_session_held_something_is_not_resumed(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """32 for one that began before such files were refused: the rest would run elsewhere."""
    text = MARK + "SELECT 1;\nCREATE TABLE t (x int);\nSELECT 1/0;\n"
    migrations({"001_t.sql": text})
    assert 31 == run().code
    held = text.replace("SELECT 1;", "SELECT set_config('search_path', 'app', false);")
    database.query("UPDATE preflight.migrations SET up_sql = %s", held)
    migrations({"001_t.sql": held.replace("1/0", "1")})

    result = run()

    assert (32, 32) == (result.code, run("check").code), str(result)
    assert "set_config" in result.finished["error"]["message"]


PARTITIONED = (
    "CREATE TABLE p (x int) PARTITION BY RANGE (x);"
    "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); CREATE INDEX p_x ON p (x)"
)
SUBSCRIBED = (
    "CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1 port=1 dbname=nowhere' PUBLICATION pub "
    "WITH (connect = false, slot_name = 'slot')"
)


@pytest.mark.parametrize(
    ("before", "statement"),
    [
        (PARTITIONED, "REINDEX TABLE p"),
        (PARTITIONED, "REINDEX (VERBOSE) INDEX public.p_x"),
        (PARTITIONED, "CLUSTER p USING p_x"),
        (PARTITIONED, "CLUSTER (VERBOSE) p USING p_x"),
    ],
)
def test_what_only_the_catalog_knows_to_need_no_transaction_runs_in_none(
    run: Run, database: servers.Database, migrations: WriteMigrations, before: str, statement: str
) -> None:
    """In a file with a transaction the hint names the directive, and with it the file runs."""
    database.script(before)
    migrations({"001_a.sql": f"{statement};"})
    refused = run()
    migrations({"001_a.sql": f"{MARK}CREATE TABLE a (x int); {statement}; CREATE TABLE b (x int);"})

    result = run()

    assert (30, "25001") == (refused.code, error_of(refused)["sqlstate"])
    assert "Put `-- preflight: no-transaction` at the top of the file." == error_of(refused)["hint"]
    assert 0 == result.code, str(result)
    assert [("done", 3, 3)] == database.query(PROGRESS)


INSIDE = (
    "CREATE FUNCTION v() RETURNS void LANGUAGE plpgsql AS 'BEGIN EXECUTE ''VACUUM''; END';\n",
    "CREATE PROCEDURE w() LANGUAGE sql AS 'SELECT v()';\n",
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("DO $$ BEGIN EXECUTE 'CREATE INDEX CONCURRENTLY i ON a (x)'; END $$;", True),
        ("SELECT v();", True),
        ("CALL w();", True),
        ("WITH x AS (SELECT v()) SELECT * FROM x;", True),
        ("SELECT set_config('transaction_isolation', 'serializable', true);", False),
    ],
)
def test_what_a_block_or_function_may_not_do_needs_a_statement_of_its_own(
    run: Run, database: servers.Database, migrations: WriteMigrations, text: str, *, said: bool
) -> None:
    """A file without a transaction is of no use to it, and the hint does not end at one."""
    database.script(f"CREATE TABLE a (x int); {''.join(INSIDE)}")
    env = {"PREFLIGHT_FIRST_CONTACT": "pending"}
    hints = []
    for mark in ("", MARK):
        migrations({"001_a.sql": mark + text})
        failed = run(env=env)
        if failed.code:
            assert "25001" == error_of(failed)["sqlstate"]
            hints.append(error_of(failed)["hint"])

    assert [said] * len(hints) == ["a statement of its own" in hint for hint in hints]
    assert [said, *[False] * (len(hints) - 1)] == ["no-transaction" in hint for hint in hints]


def test_hint_names_the_words_of_the_folders_own_tool(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """What only the catalog knows to need no transaction, in a folder of goose."""
    database.script(PARTITIONED)
    migrations({"001_a.sql": "-- +goose Up\nREINDEX TABLE p;\n-- +goose Down\nSELECT 1;\n"})

    error = error_of(run(env={"PREFLIGHT_FIRST_CONTACT": "pending"}))

    assert "25001" == error["sqlstate"]
    assert "Put `-- +goose NO TRANSACTION` at the top of the file." == error["hint"]


def test_subscription_with_a_slot_is_dropped_outside_a_transaction(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Its publisher cannot be reached: that is what is said, and a dropped one is read back."""
    database.script(SUBSCRIBED)
    migrations({"001_a.sql": f"{MARK}SELECT 1;\nDROP SUBSCRIPTION s;"})

    failed = run()

    assert (31, "08006") == (failed.code, error_of(failed)["sqlstate"]), str(failed)
    database.script("ALTER SUBSCRIPTION s SET (slot_name = NONE); DROP SUBSCRIPTION s")
    database.script("UPDATE preflight.migrations SET statements_started = 2")  # as after a kill
    again = run()
    assert 0 == again.code, str(again)
    assert [("done", 2, 2)] == database.query(PROGRESS)


def test_block_that_meets_such_a_refusal_is_not_run_twice(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Only a statement that the server refuses as a whole is tried without a transaction."""
    database.script("CREATE SEQUENCE tried")
    migrations(
        {
            "001_a.sql": MARK + "DO $$ BEGIN PERFORM nextval('tried'); RAISE SQLSTATE '25001';"
            " END $$;"
        }
    )

    result = run()

    assert (31, "25001") == (result.code, error_of(result)["sqlstate"]), str(result)
    assert [1] == database.query("SELECT last_value FROM tried")


def test_way_back_that_is_named_takes_back_what_was_applied(
    run: Run, migrations: WriteMigrations, database: servers.Database
) -> None:
    """A file that stopped part-way stands above it: `rollback` alone would take back that one."""
    migrations(
        {
            "001_a.sql": "CREATE TABLE a (n int);",
            "001_a_rollback.sql": "DROP TABLE a;",
            "002_b.sql": f"{MARK}CREATE TABLE b (n int); SELECT 1 / 0;",
            "002_b_rollback.sql": "DROP TABLE b;",
        }
    )
    failed = run(env={"PREFLIGHT_LOG": "console"})
    told = re.search(r"go back +`(rollback.*)` runs the rollback files\n", failed.stdout)
    assert told, failed
    back = run(*told[1].split())

    assert (31, 0) == (failed.code, back.code), back
    assert ["002_b", "001_a"] == back.finished["rolled_back"]
    assert [] == database.query("SELECT version FROM preflight.migrations")
