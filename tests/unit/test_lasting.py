"""What a statement leaves in its session, told from its text."""

import pytest

from preflight.base.errors import FilesInvalid
from preflight.files import due, lasting, reading
from tests.conftest import WriteMigrations

MARK = "-- preflight: no-transaction\n"
LEAVES = [
    "SELECT set_config('a.b', 'c', false)",
    "WITH x AS (SELECT pg_catalog.set_config('a.b', 'c', false)) SELECT 1 FROM x",
    "UPDATE pg_settings SET setting = 'x' WHERE name = 'a'",
    "CREATE TEMP TABLE x (a int)",
    "CREATE LOCAL TEMPORARY TABLE x AS SELECT 1",
    "SELECT 1 AS a INTO TEMP y",
    "SELECT 1 AS a INTO pg_temp.y",
    "EXPLAIN ANALYZE CREATE TABLE pg_temp.x AS SELECT 1",
    "EXPLAIN ANALYZE CREATE TEMP TABLE x AS SELECT 1",
    "CREATE TEMP VIEW v AS SELECT 1",
    "CREATE TEMP SEQUENCE s",
    "CREATE TABLE pg_temp.x (a int)",
    "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE DOMAIN pg_temp.d AS int",
    "CREATE TYPE pg_temp.x AS (a int)",
    "CREATE TYPE pg_temp.e AS ENUM ('a')",
    "SET search_path = pg_temp, app",
    "PREPARE a AS SELECT 1",
    "DO $$ BEGIN IF true THEN PREPARE a (numeric(10,2), int) AS SELECT 1; END IF; END $$",
    "DO $$ BEGIN EXECUTE 'SET ' || quote_ident('search_path') || ' TO app'; END $$",
    "DO $$ BEGIN EXECUTE 'LISTEN ' || quote_ident('a'); END $$",
    "DO $$ BEGIN EXECUTE concat('RESET', ' ROLE'); END $$",
    "DO $$ BEGIN EXECUTE concat_ws(' ', 'LISTEN', 'a'); END $$",
    "DO $$ BEGIN EXECUTE format('%s %s', 'SET', 'ROLE a'); END $$",
    "DO $$ BEGIN EXECUTE format('SET %I TO app', 'search_path'); END $$",
    "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
    "LOAD 'x'",
    "LISTEN a",
    "INSERT INTO t SELECT 1 FROM pg_advisory_lock(42)",
    "SELECT pg_advisory_lock(a) FROM t",
    "WITH x AS (DELETE FROM t) SELECT pg_advisory_lock(1)",
    "SELECT pg_advisory_lock(nextval('s'))",
    "SELECT pg_advisory_lock((SELECT max(a) FROM t))",
    "DO $$ BEGIN PERFORM pg_try_advisory_lock(42); END $$",
    "CREATE FUNCTION f() RETURNS void LANGUAGE sql AS 'SELECT pg_advisory_lock(1)'; SELECT f()",
    (
        "DO $$ BEGIN PERFORM pg_advisory_lock(1), set_config('a.b', 'c', false), "
        "pg_advisory_unlock(1); END $$"
    ),
    "DO $$ BEGIN PERFORM set_config('a.b', 'c', false); END $$",
    "DO $$ BEGIN CREATE TEMP TABLE x (a int); END $$",
    "DO $$ BEGIN EXECUTE 'create temp table x (a int)'; END $$",
    "DO $$ BEGIN SET search_path = app; END $$",
    "DO $$ BEGIN IF true THEN LISTEN a; END IF; END $$",
    "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN LISTEN a; END $$; SELECT f()",
    "CREATE FUNCTION f() RETURNS void LANGUAGE sql AS 'SELECT 1 AS a INTO TEMP y'; SELECT f()",
    "DO $$ BEGIN CREATE OR REPLACE TEMP VIEW x AS SELECT 1; END $$",
    "DO $$ BEGIN CREATE UNLOGGED TABLE IF NOT EXISTS pg_temp.x (a int); END $$",
    "DO $$ DECLARE a int; BEGIN LOAD 'x'; END $$",
    'DO $$ BEGIN IF true THEN NULL; ELSE LISTEN "A"; END IF; END $$',
    "DO $$ BEGIN IF true THEN PREPARE a (int) AS SELECT CASE WHEN true THEN 1 END; END IF; END $$",
    "DO $$ DECLARE a int; BEGIN IF true THEN RESET ALL; END IF; END $$",
    'DO $$ DECLARE a int; BEGIN DECLARE b int; BEGIN SET "b.c" = 1; END; END $$',
    "DO $$ BEGIN CASE 1 WHEN 1 THEN LISTEN a; END CASE; END $$",
]
NO_SESSION = ["LOCK TABLE t IN EXCLUSIVE MODE", "LOCK t", "DECLARE c CURSOR FOR SELECT 1"]
GIVES_THE_LOCK_AWAY = [
    "DISCARD ALL",
    "SELECT pg_advisory_unlock_all()",
    "DO $$ BEGIN PERFORM pg_advisory_lock(1); PERFORM pg_advisory_unlock_all(); END $$",
]
LEAVES_NOTHING = [
    "SET search_path = app",
    "SET search_path = pg_catalog, pg_temp",
    "SELECT set_config('a.b', 'c', true)",
    "SELECT load, set_config FROM t",
    "SELECT 1 AS a FROM pg_temp.x",
    "-- DISCARD ALL; set_config\nSELECT 'create temp table'",
    "CREATE TABLE templates (a int)",
    "CREATE TEMP TABLE x (a int) ON COMMIT DROP",
    "DO $$ BEGIN SET LOCAL search_path = app; END $$",
    "DO $$ BEGIN CREATE TEMP TABLE x (a int) ON COMMIT DROP; END $$",
    "DO $$ BEGIN UPDATE t SET a = 1; END $$",
    (
        "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql SET search_path = x, pg_temp AS "
        "$$ BEGIN PERFORM set_config('a.b', 'c', false); END $$"
    ),
    "UPDATE t SET load = 1, listen = 2",
    "DISCARD PLANS",
    "DO $$ BEGIN LOCK TABLE t; UPDATE t SET a = 1; END $$",
    "SET LOCAL work_mem = '8MB'",
    "SELECT pg_advisory_lock(hashtext('a'))",
    "SELECT pg_catalog.pg_try_advisory_lock_shared(1, 2)",
    "SELECT pg_advisory_xact_lock(1)",
    "INSERT INTO t SELECT 1 FROM pg_advisory_xact_lock(42)",
    "DO $$ BEGIN PERFORM pg_advisory_lock(1); PERFORM pg_advisory_unlock(1); END $$",
    "COMMENT ON TABLE lock IS 'cursor'",
    "SELECT pg_advisory_lock(1, hashtext(current_database()))",
    "SELECT pg_advisory_lock(('x' || md5('a'))::bit(64)::bigint)",
    "SELECT 1 FROM pg_advisory_lock(1)",
    "REVOKE EXECUTE ON FUNCTION pg_advisory_lock(bigint) FROM public",
    "CREATE VIEW v AS SELECT pg_try_advisory_lock(1)",
    "DO $$ DECLARE temp int; BEGIN SELECT count(*) INTO temp FROM t; END $$",
    "DO $$ DECLARE temp int; BEGIN SELECT INTO temp a FROM t; SELECT a INTO STRICT temp; END $$",
    "DO $$ DECLARE temp int; BEGIN INSERT INTO t VALUES (1) RETURNING a INTO temp; END $$",
    "DO $$ BEGIN EXECUTE 'INSERT INTO temp SELECT 1'; EXECUTE 'SELECT a FROM t' INTO temp; END $$",
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'INSERT INTO temp SELECT 1'; SELECT f()",
    "DO $$ BEGIN CREATE TABLE t (temp numeric, pg_temp int); END $$",
    "DO $$ BEGIN GRANT CREATE, TEMP ON DATABASE a TO b; END $$",
    "DO $$ BEGIN CREATE INDEX i ON t (temp); CREATE VIEW v AS SELECT temp FROM t; END $$",
    *(
        f"DO $$ DECLARE a int; {name} int; BEGIN UPDATE t SET a = CASE WHEN true THEN {name} "
        f"ELSE {name} + (1) END; IF true THEN a := {name}; END IF; END $$"
        for name in ("load", "listen", "prepare", "discard", "reset", "set", "notify", "temp")
    ),
    "DO $$ DECLARE load int; reset int; BEGIN load := 1; IF a THEN reset := load; END IF; END $$",
    "DO $$ BEGIN PERFORM CASE WHEN true THEN discard <> ALL (b) END FROM t; END $$",
    "DO $$ BEGIN EXECUTE format('COMMENT ON TABLE t IS %L', 'load'); END $$",
    "DO $$ BEGIN PERFORM set_config FROM t; END $$",
]


def refused(text: str) -> int:
    """Return how many statements of a file are refused."""
    return len(lasting.refused(reading.kept(1, "001_a", "up", text.encode())))


@pytest.mark.parametrize("statement", LEAVES + NO_SESSION)
def test_what_a_resume_cannot_bring_back_is_refused_before_another_statement(
    statement: str,
) -> None:
    """As the last one it does no harm, nor in a transaction, which is run whole or not at all."""
    assert (1, 0, 0) == (
        refused(f"{MARK}{statement};\nSELECT 2;"),
        refused(f"{MARK}{statement};"),
        refused(f"{statement};\nSELECT 2;"),
    )


@pytest.mark.parametrize("statement", GIVES_THE_LOCK_AWAY)
def test_statement_that_gives_the_lock_away_is_always_refused(statement: str) -> None:
    """Also as the last one: another run would come in before this one is recorded."""
    assert (1, 1) == (refused(f"{MARK}{statement};"), refused(f"{MARK}{statement};\nSELECT 2;"))


@pytest.mark.parametrize("statement", GIVES_THE_LOCK_AWAY[1:])
def test_lock_is_given_away_in_a_transaction_too(statement: str) -> None:
    """It is of the session; a way back may be the history's text, and ends with 13 behind itself.

    A function that is only made does nothing.
    """
    script = reading.kept(1, "001_a", "up", f"SELECT 1;\n{statement};\n".encode())
    body = "$$ SELECT pg_advisory_unlock_all() $$"

    assert [2] == [each.line for each in lasting.refused(script)]
    assert [] == lasting.refused(script, back=True)
    assert 0 == refused(f"CREATE FUNCTION f() RETURNS void LANGUAGE sql AS {body}")


@pytest.mark.parametrize("mark", ["", MARK], ids=["in a transaction", "without one"])
def test_discard_all_is_to_be_left_out_of_either_kind_of_file(
    migrations: WriteMigrations, mark: str
) -> None:
    """One hint does not lead to where the other one stands."""
    directory = migrations({"001_a.sql": f"{mark}DISCARD ALL; SELECT 1;"})
    with pytest.raises(FilesInvalid) as raised:
        due.require([each.up for each in reading.load(directory)])

    assert "in a transaction or not" in str(raised.value.problem.hint)
    assert "no-transaction" not in str(raised.value.problem.hint)


@pytest.mark.parametrize("statement", LEAVES_NOTHING)
def test_what_leaves_nothing_is_not_refused(statement: str) -> None:
    """SET is set again, and a word in a name, a comment or a text is no statement."""
    assert 0 == refused(f"{MARK}{statement};\nSELECT 2;")


def test_refusal_names_every_place() -> None:
    """All of it at once, with line and column."""
    script = reading.kept(1, "001_a", "up", f"{MARK}LISTEN a;\n  LOAD 'x';\nSELECT 1;".encode())

    with pytest.raises(FilesInvalid) as raised:
        due.require([script])

    assert [(2, 1), (3, 3)] == [(each.line, each.column) for each in raised.value.problems]


def test_what_is_recorded_is_not_judged_by_what_is_refused_of_new_files() -> None:
    """A rollback text may be the history's, and what a done LOCK TABLE held ended when it did."""
    text = f"{MARK}LOCK TABLE t;\nSELECT 1;\nSELECT 2;\n"
    script = reading.kept(1, "001_a", "up", text.encode())

    assert (1, 0) == (len(lasting.refused(script)), len(lasting.refused(script, back=True)))
    assert lasting.before(script, 2) is None


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ("SELECT pg_advisory_unlock(42)", True),
        ("DO $$ BEGIN PERFORM pg_advisory_unlock(42); END $$", False),
    ],
)
def test_lock_that_was_released_in_another_way_is_not_taken_again(
    release: str, *, expected: bool
) -> None:
    """Taken again by the run that goes on, it would be held to its end."""
    text = f"SELECT pg_advisory_lock(42);\n{release};\nSELECT 1;\n"
    script = reading.kept(1, "001_a", "up", text.encode())

    assert expected == lasting.again(script, 2)
    assert lasting.again(script, 1)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("SET ROLE a; RESET ROLE", {1}),
        ("SET search_path = a; SET default_text_search_config = c; SET search_path = b", ()),
        ("SET ROLE a; SET LOCAL search_path = b; RESET ROLE", {1}),
        ("SET ROLE a; SET work_mem = 64; RESET ROLE", set()),
        ("SET ROLE a; RESET ROLE; SET work_mem = 64; SET ROLE b; SET ROLE c", {1, 4}),
        ("SET work_mem = 64; SET ROLE a; SET datestyle = iso; RESET ALL", set()),
        ("SET SESSION AUTHORIZATION a; SET ROLE b; RESET SESSION AUTHORIZATION", {1, 2}),
    ],
)
def test_role_that_a_later_one_replaced_is_not_set_again(settings: str, expected: set[int]) -> None:
    """It may be gone; one under which a setting was made is needed, and every setting may be."""
    script = reading.kept(1, "001_a", "up", f"{MARK}{settings};\nSELECT 1;".encode())

    assert {*expected} == lasting.superseded(script, settings.count(";") + 1)
