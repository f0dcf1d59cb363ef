"""What the plan says of a statement: what it does, what it destroys, what it reaches."""

import dataclasses

import pytest

from preflight.files import effects, planned, reach, reading, review, where
from preflight.files.migrations import Migration, Script


@pytest.mark.parametrize(
    ("statement", "does", "destroys"),
    [
        ("CREATE TABLE s.t (id int)", "create table s.t", None),
        (
            "DROP TABLE a, s.b CASCADE",
            "drop table a, s.b",
            "table a, s.b and all that depends on it",
        ),
        ("DROP INDEX a_n", "drop index a_n", None),
        ("ALTER TABLE t DROP COLUMN c", "alter t: drop column c", "column t.c"),
        ("ALTER TABLE t ALTER c TYPE int", "alter t: change type of c", "old values of t.c"),
        ("ALTER TABLE t ADD COLUMN c int", "alter t: add column c", None),
        ("DELETE FROM t", "delete rows t", "all rows of t"),
        ("DELETE FROM t WHERE a", "delete rows t", "rows of t"),
        ("UPDATE t SET a = 1", "update rows t", "old values in every row of t"),
        ("UPDATE t SET a = 1 WHERE b", "update rows t", None),
        ("TRUNCATE a, b", "truncate a, b", "all rows of a, b"),
        (
            "WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x",
            "change rows in a query",
            "rows of t",
        ),
        ("EXPLAIN DELETE FROM t", "explain delete rows t", None),
        ("EXPLAIN ANALYZE DELETE FROM t", "explain delete rows t", "all rows of t"),
        ("EXPLAIN (VERBOSE, ANALYZE) DELETE FROM t", "explain delete rows t", "all rows of t"),
        ("EXPLAIN (ANALYZE off) DELETE FROM t", "explain delete rows t", None),
        ("EXPLAIN (ANALYZE 0, COSTS) DELETE FROM t", "explain delete rows t", None),
        ("VACUUM (FULL false) t", "vacuum t", None),
        ("VACUUM (FULL 0) t", "vacuum t", None),
        ("VACUUM FULL t", "vacuum full t", None),
        ("ALTER TABLE t ALTER c DROP EXPRESSION", "alter t: DropExpression c", None),
        ('INSERT INTO "Odd ""one" VALUES (1)', 'insert rows "Odd ""one"', None),
        ("CREATE INDEX CONCURRENTLY ON t (a)", "create index concurrently on t", None),
        ("NOTIFY abc, 'x'", "notify abc", None),
        ("EXECUTE ps(1)", "execute ps", None),
        ("THIS IS no SQL", "this is no (not understood here)", None),
    ],
)
def test_statement_is_described(statement: str, does: str, destroys: str | None) -> None:
    """In words for people, with what nobody can get back."""
    found = effects.of(statement.encode())

    assert (does, destroys) == (found.does, found.destroys)


ALONE = "-- preflight: no-transaction\n"


def planned_of(text: str) -> list[planned.Planned]:
    """Return what a plan says of the statements of a file."""
    script = Script("001_a.sql", text.encode(), "", transactional=ALONE not in text)
    return planned.each(Migration(1, "001_a", script)).statements


def of_block(body: str) -> planned.Planned:
    """Return what a plan says of a block."""
    (found,) = planned_of(f"DO $x$ {body} $x$")
    return found


@pytest.mark.parametrize(
    ("text", "destroys"),
    [
        (
            (
                "ALTER TABLE t RENAME TO old; CREATE TABLE t (i int) PARTITION BY RANGE (i);"
                " ALTER TABLE t ATTACH PARTITION old DEFAULT; DELETE FROM t"
            ),
            "all rows of t",
        ),
        (
            (
                "CREATE TABLE t (i int) PARTITION BY RANGE (i);"
                " ALTER TABLE t ATTACH PARTITION live DEFAULT; DROP TABLE t"
            ),
            "table t",
        ),
        (
            (
                "CREATE TABLE t (i int) PARTITION BY RANGE (i);"
                " CREATE TABLE s PARTITION OF t DEFAULT PARTITION BY RANGE (i);"
                " ALTER TABLE s ATTACH PARTITION live DEFAULT; TRUNCATE t"
            ),
            "all rows of t",
        ),
        (
            "CREATE TABLE t (); ALTER TABLE live INHERIT t; DROP TABLE t CASCADE",
            "table t and all that depends on it",
        ),
        ("CREATE TABLE t () INHERITS (live); DELETE FROM t", "all rows of t"),
        (
            "CREATE TABLE t (i int); DO $$ BEGIN ALTER TABLE live INHERIT t; DELETE FROM t; END $$",
            "all rows of t",
        ),
        (
            (
                "CREATE TEMP TABLE t (i int); WITH gone AS (DELETE FROM live RETURNING i)"
                " UPDATE t SET i = 1 FROM gone WHERE t.i = gone.i"
            ),
            "rows of live",
        ),
        (
            (
                "CREATE TEMP TABLE t (i int); WITH gone AS (DELETE FROM live RETURNING i)"
                " DELETE FROM t USING gone WHERE t.i = gone.i"
            ),
            "rows of t, rows of live",
        ),
        (
            (
                "CREATE TEMP TABLE t (i int); WITH gone AS (DELETE FROM live RETURNING i)"
                " UPDATE t SET i = 1 FROM gone"
            ),
            "old values in every row of t, rows of live",
        ),
        ("CREATE VIEW t AS SELECT * FROM live; DELETE FROM t", "all rows of t"),
        (
            (
                "SELECT set_config('search_path', 'a', true); CREATE TABLE t (i int);"
                " SELECT set_config('search_path', 'b', true); DROP TABLE t"
            ),
            "table t",
        ),
        (
            (
                "CREATE TABLE t (i int PRIMARY KEY); ALTER TABLE live"
                " ADD FOREIGN KEY (i) REFERENCES t ON DELETE CASCADE; DELETE FROM t"
            ),
            "all rows of t",
        ),
        (
            (
                "CREATE TABLE t (i int);"
                " CREATE RULE r AS ON DELETE TO t DO INSTEAD DELETE FROM live; DELETE FROM t"
            ),
            "all rows of t",
        ),
        ("CREATE TABLE t (i int); DROP TABLE t; TRUNCATE t", "all rows of t"),
        (
            (
                "CREATE TABLE t (i int); DROP TABLE public.t; ALTER TABLE a.t SET SCHEMA public;"
                " DROP TABLE t"
            ),
            "table t",
        ),
        (
            (
                "ALTER SCHEMA a RENAME TO b; CREATE SCHEMA a; CREATE TABLE a.t (i int);"
                " ALTER SCHEMA a RENAME TO c; ALTER SCHEMA b RENAME TO a; DROP TABLE a.t"
            ),
            "table a.t",
        ),
        ("CREATE TABLE a.t (i int); DROP SCHEMA a CASCADE; DELETE FROM a.t", "all rows of a.t"),
        ("CREATE TEMP TABLE t (i int); DISCARD TEMP; DELETE FROM t", "all rows of t"),
        (
            (
                "SAVEPOINT s; ALTER TABLE t RENAME TO u; CREATE TABLE t (i int); ROLLBACK TO s;"
                " DROP TABLE t"
            ),
            "table t",
        ),
        (
            "CREATE TABLE t (i int); DO $$ BEGIN EXECUTE (SELECT i FROM f); END $$; DELETE FROM t",
            "all rows of t",
        ),
        (f"{ALONE}CREATE TEMP TABLE t ON COMMIT DROP AS SELECT; DELETE FROM t", "all rows of t"),
        ("SET search_path = a, pg_temp; CREATE TEMP TABLE t (); TRUNCATE t", "all rows of t"),
        ("CREATE TEMP TABLE t (i int) ON COMMIT DROP; DELETE FROM t", None),
        ("SELECT 1 AS i INTO TEMP t; UPDATE t SET i = 2", None),
        ("CREATE TABLE t (i int); ALTER TABLE live RENAME TO v; DROP TABLE t", None),
    ],
)
def test_own_tables_are_told_once_they_may_lead_to_rows_of_others(
    text: str, destroys: str | None
) -> None:
    """By what is below them, along keys and rules, or under a name that has come to another."""
    assert destroys == planned_of(text)[-1].destroys


@pytest.mark.parametrize(
    ("text", "opens"),
    [
        ("SELECT set_config('search_path', 'a', true)", True),
        ("SELECT pg_catalog.set_config('ROLE'::text, 'a', false)", True),
        ("SELECT set_config(name, 'a', true) FROM t", True),
        (
            "SELECT set_config(setting_name => 'search_path', new_value => 'a', is_local => true)",
            True,
        ),
        ("SELECT set_config('session_' || 'authorization', 'a', true)", True),
        ("SELECT set_config('app.user', 'a', true)", False),
        ("INSERT INTO t VALUES ('see set_config in the manual')", False),
        ("SELECT set_config FROM t -- set_config('role', 'a', true)", False),
        ("DO $$ BEGIN UPDATE t SET role = 'a'; END $$", False),
        ("DO $$ BEGIN ALTER TABLE t SET SCHEMA a; END $$", False),
        ("DO $$ BEGIN ALTER FUNCTION f() SET search_path = a; END $$", False),
        ("DO $$ BEGIN RAISE NOTICE 'SET ROLE and search_path'; END $$", False),
        ("DO $$ BEGIN PERFORM set_config('app.user', 'a', true); END $$", False),
        ("DO $$ BEGIN SET LOCAL lock_timeout = '1s'; END $$", False),
        ("DO $$ BEGIN PERFORM set_config('role', 'a', true); END $$", True),
        ("DO $$ BEGIN SET LOCAL ROLE a; END $$", True),
        ("DO $$ BEGIN RESET ALL; END $$", True),
        ("DO $$ BEGIN EXECUTE format('SET search_path TO %I', current_user); END $$", True),
        ("DO $$ BEGIN EXECUTE 'SET ROLE ' || current_user; END $$", True),
        ("DO $$ BEGIN EXECUTE 'ALTER TABLE t SET SCHEMA ' || current_user; END $$", False),
        ("DO $$ BEGIN EXECUTE 'SET SCHEMA ' || quote_literal(current_user); END $$", True),
        ("DO $$ BEGIN EXECUTE 'UPDATE t SET role = ' || 1 + 1; END $$", False),
        ("DO $$ DECLARE a nobody.knows; BEGIN SET SESSION AUTHORIZATION a; END $$", True),
        ("DO $$ DECLARE a nobody.knows; BEGIN SET ROLE = a; END $$", True),
        ("DO $$ DECLARE a nobody.knows; BEGIN UPDATE t SET role = a; END $$", False),
    ],
)
def test_settings_are_open_only_after_what_may_set_them(text: str, opens: bool) -> None:  # noqa: FBT001 -- pytest
    """Neither the words in a text nor other settings make a name's meaning unknown."""
    assert opens == where.after(where.START, text.encode(), transactional=True).open


def test_schema_with_the_name_of_a_table_is_looked_for() -> None:
    """Only what is reached from the file's own tables needs no question."""
    text = (
        "CREATE TABLE a (i int); DROP SCHEMA a CASCADE; CREATE TABLE t (i int); TRUNCATE t CASCADE"
    )
    found = [each.reaches for each in planned_of(text)]

    assert [(), (effects.Reach("schema", "a", cascade=True),), (), ()] == found


@pytest.mark.parametrize(
    ("body", "destroys", "locks"),
    [
        ("BEGIN DELETE FROM t; DROP TABLE e; END", "all rows of t, table e", {"t", "e"}),
        (
            "BEGIN IF EXISTS (SELECT FROM pg_attribute) THEN ALTER TABLE t DROP c; END IF; END",
            "column t.c",
            {"t"},
        ),
        ("BEGIN EXECUTE 'TRUNCATE ' || 't'; END", "all rows of t", {"t"}),
        ("BEGIN DO 'BEGIN DROP TABLE t; END'; END", "table t", {"t"}),
        ("BEGIN CREATE TABLE t (a int); CREATE INDEX ON t (a); END", None, {"t"}),
        (
            "BEGIN CREATE TYPE e AS ENUM ('a'); EXCEPTION WHEN duplicate_object THEN END",
            None,
            set(),
        ),
        (
            "BEGIN IF NOT EXISTS (SELECT FROM pg_type) THEN CREATE TYPE e AS ENUM (); END IF; END",
            None,
            set(),
        ),
        ("DECLARE z app.a_domain; BEGIN INSERT INTO t VALUES (z); END", None, set()),
        ("BEGIN EXECUTE format('CREATE TABLE %I (a int)', x); END", None, set()),
        ("BEGIN ALTER TABLE t ADD CHECK (a > 0); PERFORM f(); RAISE 'DROP'; END", None, {"t"}),
    ],
)
def test_block_does_what_its_statements_do(
    body: str, destroys: str | None, locks: set[str]
) -> None:
    """Whichever of them a condition lets run; one that only makes something destroys nothing."""
    found = of_block(body)

    assert (destroys, False) == (found.destroys, found.unknown)
    assert locks == {lock.table for lock in found.locks}
    assert (("t",) if "CREATE TABLE t" in body else ()) == found.perhaps


@pytest.mark.parametrize(
    ("statement", "unknown"),
    [
        ("VACUUM FULL", True),
        ("VACUUM (FULL, ANALYZE)", True),
        ("CLUSTER", True),
        ("REINDEX SCHEMA s", True),
        ("REINDEX DATABASE d", True),
        ("REINDEX SYSTEM d", True),
        ("ALTER TABLE ALL IN TABLESPACE x SET TABLESPACE y", True),
        ("REASSIGN OWNED BY a TO b", True),
        ("VACUUM", False),
        ("VACUUM FULL t", False),
        ("CLUSTER t USING i", False),
        ("REINDEX TABLE t", False),
        ("REINDEX SCHEMA CONCURRENTLY s", False),
    ],
)
def test_what_shuts_others_out_of_tables_that_it_does_not_name_is_unknown(
    statement: str, *, unknown: bool
) -> None:
    """Its locks are; it takes away nothing that an export file could keep."""
    migration = Migration(
        1, "001_a", Script("001_a.sql", statement.encode(), "", transactional=False)
    )
    (found,) = planned.each(migration).statements
    (*_, said) = review.remarks(dataclasses.replace(migration, rollback=migration.up), [found])

    assert unknown == found.unknown
    assert unknown == said.endswith("what it locks is not known")
    assert "no export file" not in said


@pytest.mark.parametrize(
    "body",
    [
        "BEGIN EXECUTE q; END",
        "BEGIN EXECUTE format('DROP TABLE %I', x); END",
        "BEGIN EXECUTE format('ALTER TABLE %I.%I ADD c int', x, y); END",
        "DECLARE z app.a_domain; BEGIN DELETE FROM t; END",
        "BEGIN DROP TABLE t; END " + " " * 200_000,
    ],
)
def test_what_a_block_destroys_is_not_known_where_it_cannot_be_read(body: str) -> None:
    """Said by `plan` and by `lint`, and no name is made up."""
    found = of_block(body)
    (said,) = [text for text in review.remarks(found.of, [found]) if text.startswith("line")]

    assert (True, None, ()) == (found.unknown, found.destroys, found.locks)
    assert "line 1 do: what it destroys and locks is not known" == said


@pytest.mark.parametrize(
    ("statement", "reaches"),
    [
        ("ALTER DOMAIN s.d ADD CHECK (VALUE > 0)", [("domain", "s.d", effects.SHARE)]),
        ("ALTER DOMAIN d ADD CHECK (VALUE > 0) NOT VALID", []),
        ("ALTER DOMAIN d SET NOT NULL", [("domain", "d", effects.SHARE)]),
        ("ALTER DOMAIN d DROP NOT NULL", []),
        ("ALTER DOMAIN d SET DEFAULT 1", []),
        (
            "CREATE TABLE p1 PARTITION OF p DEFAULT",
            [
                ("default", "p", effects.ACCESS_EXCLUSIVE),
                ("referred", "p", effects.SHARE_ROW),
                ("referring", "p", effects.SHARE_ROW),
            ],
        ),
        ("CREATE TABLE c () INHERITS (p)", []),
        (
            "ALTER TABLE p DETACH PARTITION p1",
            [
                ("default", "p", effects.ACCESS_EXCLUSIVE),
                ("referred", "p", effects.SHARE_ROW),
                ("referring", "p", effects.ACCESS_EXCLUSIVE),
            ],
        ),
        (
            "MERGE INTO a USING b ON a.id = b.id WHEN MATCHED THEN DELETE",
            [("deleted", "a", effects.ROW_EXCLUSIVE)],
        ),
        (
            "MERGE INTO a USING b ON a.id = b.id WHEN MATCHED THEN UPDATE SET id = 1",
            [("updated", "a", effects.ROW_EXCLUSIVE)],
        ),
        ("EXPLAIN DELETE FROM a", []),
        ("CREATE RULE r AS ON INSERT TO a DO DELETE FROM b", []),
    ],
)
def test_what_only_the_catalogs_know_is_named_for_them(
    statement: str, reaches: list[tuple[str, str, str]]
) -> None:
    """Tables of a domain that is checked, the partition that holds the rest, foreign keys."""
    found = effects.of(statement.encode()).reaches

    assert reaches == [(each.kind, each.name, each.mode) for each in found]


@pytest.mark.parametrize(
    ("statement", "external"),
    [
        ("CREATE ROLE r", True),
        ("ALTER SYSTEM SET work_mem = '1MB'", True),
        ("COPY t TO PROGRAM 'cat'", True),
        ("COPY t FROM '/tmp/x'", True),
        ("COPY t FROM stdin", False),
        ("CREATE DATABASE d", True),
        ("CREATE SUBSCRIPTION s CONNECTION '' PUBLICATION p", True),
        ("CREATE SCHEMA s", False),
    ],
)
def test_what_reaches_beyond_the_database_is_said(statement: str, external: bool) -> None:  # noqa: FBT001 - a column of the table
    """Such a statement is never rehearsed on the same server."""
    assert external == (effects.of(statement.encode()).external is not None)


@pytest.mark.parametrize(
    ("statement", "reaches"),
    [
        ("GRANT admin TO unicorn", "roles"),
        ("GRANT SELECT ON t TO unicorn", None),
        ("DO $$ BEGIN CREATE ROLE r; END $$", "CREATE ROLE"),
        ("DO $$ BEGIN ALTER  USER\n MAPPING FOR u SERVER s; END $$", None),
        (
            "CREATE FUNCTION f() RETURNS int AS 'alter system reset all' LANGUAGE sql",
            "alter system",
        ),
        ("INSERT INTO docs VALUES ('first CREATE ROLE r')", None),
        ("SELECT dblink_exec('x', 'y')", "dblink_exec"),
        ("SELECT 'dblink_exec(' AS not_a_call -- dblink_exec()", None),
        ("SELECT pg_terminate_backend(pid) FROM pg_stat_activity", "pg_terminate_backend"),
        ("SELECT pg_create_logical_replication_slot('s', 'o')", "replication_slot"),
        ("SELECT * FROM pg_logical_slot_get_changes('s', NULL, NULL)", "slot_get_changes"),
        ("SELECT * FROM pg_logical_slot_peek_changes('s', NULL, NULL)", None),
        ("COPY t FROM PROGRAM 'cat'", "a program"),
        ("INSERT INTO app.far VALUES (1)", "foreign table app.far"),
        ("SELECT * FROM far", None),
        ("CREATE TABLE groups (role text, database text)", None),
        ("COMMENT ON DATABASE d IS 'x'", "databases"),
        ("COMMENT ON TABLE role IS 'x'", None),
        ("COMMENT ON ROLE r IS 'x'", "roles"),
        ("SECURITY LABEL FOR p ON ROLE r IS 'x'", "roles"),
        ("ALTER DATABASE d OWNER TO r", "databases"),
        ("ALTER DATABASE d RENAME TO e", "databases"),
        ("ALTER DATABASE d SET work_mem = '1MB'", "databases"),
        ("REVOKE CONNECT ON DATABASE d FROM PUBLIC", "databases"),
        ("GRANT CREATE ON TABLESPACE t TO r", "tablespaces"),
        ("GRANT SET ON PARAMETER work_mem TO r", "parameters"),
        ("GRANT ALL ON ALL TABLES IN SCHEMA public TO r", None),
        ("ALTER TABLE t OWNER TO r", None),
        ("ALTER SCHEMA s RENAME TO z", None),
        ("REASSIGN OWNED BY a TO b", "owned"),
        ("DROP OWNED BY a", "owned"),
        ("DO $$ BEGIN GRANT reader TO app; END $$", "GRANT reader TO"),
        ("DO $$ BEGIN GRANT SELECT ON t TO app; END $$", None),
        (
            "DO $$ BEGIN EXECUTE format('REVOKE CONNECT ON DATABASE %I FROM PUBLIC', d); END $$",
            "ON DATABASE",
        ),
        ("UPDATE pg_database SET datconnlimit = 1", "pg_database"),
        ("SELECT * FROM pg_database", None),
        ("DELETE FROM pg_catalog.pg_auth_members", "pg_auth_members"),
        ("SELECT cron.schedule('x', '* * * * *', 'VACUUM')", "cron"),
        ("ALTER TABLE ALL IN TABLESPACE a SET TABLESPACE b", "tablespaces"),
        ("IMPORT FOREIGN SCHEMA s FROM SERVER x INTO y", "another server"),
        ("CREATE SERVER s FOREIGN DATA WRAPPER w", None),
    ],
)
def test_reach_is_seen_in_bodies_but_not_in_texts(statement: str, reaches: str | None) -> None:
    """What is only talked about is done by nobody."""
    found = reach.beyond(statement.encode(), reach.Bounds({"far"}))

    assert (reaches is None) == (found is None), found
    assert (reaches or "").lower() in (found.words.lower() if found else "")


@pytest.mark.parametrize(
    ("statement", "reaches"),
    [
        ("CREATE ROLE r", None),
        ("GRANT admin TO unicorn", None),
        ("ALTER DATABASE d SET work_mem = '1MB'", None),
        ("ALTER SYSTEM SET work_mem = '1MB'", None),
        ("REASSIGN OWNED BY a TO b", None),
        ("ALTER TABLE ALL IN TABLESPACE a SET TABLESPACE b", None),
        ("GRANT SET ON PARAMETER work_mem TO r", None),
        ("UPDATE pg_database SET datallowconn = true", None),
        ("SELECT pg_terminate_backend(1)", None),
        ("SELECT pg_create_logical_replication_slot('s', 'o')", None),
        ("DO $$ BEGIN CREATE ROLE r; END $$", None),
        ("CREATE TABLESPACE t LOCATION '/x'", "directory for a tablespace"),
        ("COPY t TO '/x'", "file of the server"),
        ("COPY t FROM PROGRAM 'cat'", "a program"),
        ("SELECT dblink_exec('x', 'y')", "dblink_exec"),
        ("SELECT net.http_post('x')", "net.http_post"),
        ("SELECT pglogical.create_subscription('s', 'host=x')", "pglogical.create_subscription"),
        ("SELECT azure_storage.blob_put('a', 'b', 'c', t) FROM t", "azure_storage.blob_put"),
        ("SELECT run_command_on_workers('SELECT 1')", "run_command_on_workers"),
        ("SELECT pg_catalog.citus_add_node('x', 5432)", "citus_add_node"),
        ("SELECT spock, bdr FROM pglogical.tables", None),
        (
            "DO $$ DECLARE a nobody.knows; BEGIN PERFORM spock.sub_create('x'); END $$",
            "spock . sub",
        ),
        ("SELECT lo_export(1, '/x')", "lo_export"),
        ("INSERT INTO app.far VALUES (1)", "foreign table app.far"),
        ("CREATE SUBSCRIPTION s CONNECTION 'x' PUBLICATION p", "another server"),
        ("COMMENT ON SUBSCRIPTION s IS 'x'", "subscriptions"),
        ("UPDATE pg_subscription SET subenabled = true", "pg_subscription"),
        ("DO $$ BEGIN CREATE ROLE r; PERFORM dblink_exec('x', 'y'); END $$", "dblink_exec"),
        ("DO $$ BEGIN EXECUTE text; END $$", "only known when it runs"),
        ("DO $$ BEGIN PERFORM odd%type; COPY t TO PROGRAM 'x'; END $$", "copy t to program"),
    ],
)
def test_server_that_is_thrown_away_is_left_by_less(statement: str, reaches: str | None) -> None:
    """Its roles, databases and parameters go with it; its files and other servers do not."""
    found = reach.beyond(statement.encode(), reach.Bounds({"far"}, server=True))

    assert (reaches is None) == (found is None), found
    assert (reaches or "").lower() in (found.words.lower() if found else "")


TRIGGER = "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ {} $$"


@pytest.mark.parametrize(
    "body",
    [
        "BEGIN RAISE EXCEPTION 'nobody may create user names like this'; END",
        "BEGIN -- do not create user here\n NULL; END",
        "BEGIN NEW.note := 'alter role'; RETURN NEW; END",
        "DECLARE z app.a_domain; BEGIN /* drop database */ RAISE NOTICE 'create role x'; END",
        "DECLARE z app.a_domain; BEGIN SELECT 1 FROM a JOIN b ON database.id = a.id; END",
        "BEGIN EXECUTE 'ALTER TABLE ' || quote_ident(t) || ' ADD grant int'; END",
        "BEGIN EXECUTE format('ALTER TABLE %I ADD c text DEFAULT %L', t, v) USING 1; END",
        "DECLARE r record; BEGIN FOR r IN EXECUTE 'SELECT 1' LOOP NULL; END LOOP; END",
    ],
)
def test_words_of_a_body_switch_no_rehearsal_off(body: str) -> None:
    """A comment, a message, a text and a name are read as what they are."""
    assert None is reach.beyond(TRIGGER.format(body).encode())
    assert None is reach.beyond(f"DO $$ {body} $$".encode())
    assert None is reach.in_routine("plpgsql", body)


@pytest.mark.parametrize(
    ("language", "body", "expected"),
    [
        ("plpgsql", "BEGIN EXECUTE format('CREATE ROLE %I', n) ; END", "create role"),
        ("plpgsql", "BEGIN n := 'DROP USER ' || n; EXECUTE n; END", "drop user"),
        ("plpgsql", "BEGIN EXECUTE format('GRANT %s TO %I', n, m); END", "grant % s to"),
        ("plpgsql", "BEGIN PERFORM public.dblink_exec('a', 'b'); RETURN new; END", "dblink_exec ("),
        ("sql", "ALTER DATABASE d SET work_mem = '5MB'", "alter database"),
        ("plpython3u", "plpy.execute('CREATE TABLESPACE t')", "create tablespace"),
        ("plpython3u", "plpy.execute('CREATE TABLE t')", None),
        ("plpgsql", "BEGIN EXECUTE q; EXECUTE 'GRANT SELECT ON t TO ' || n; END", None),
        ("plpgsql", "BEGIN EXECUTE 'INSERT INTO ' || t || ' VALUES ($1)' USING NEW.id; END", None),
        ("plpgsql", "BEGIN EXECUTE q; -- it's no CREATE ROLE\n END", None),
    ],
)
def test_routine_that_is_there_is_wild_by_what_it_says(
    language: str, body: str, expected: str | None
) -> None:
    """EXECUTE alone stops no rehearsal, though nobody can read what it runs; what it says does."""
    assert expected == reach.in_routine(language, body)


@pytest.mark.parametrize(
    ("body", "certain"),
    [
        ("BEGIN CREATE ROLE r; END", True),
        ("DECLARE z app.a_domain; BEGIN CREATE ROLE r; END", True),
        ("BEGIN NEW.x := dblink('a', 'b'); RETURN NEW; END", True),
        ("BEGIN IF EXISTS (SELECT FROM dblink('a')) THEN NULL; END IF; END", True),
        ("DECLARE c CURSOR FOR SELECT dblink('x'); BEGIN OPEN c; END", True),
        ("BEGIN EXECUTE 'CREATE' || ' ROLE r'; END", True),
        ("BEGIN EXECUTE format('DROP ROLE %I', r); END", True),
        ("BEGIN DO 'BEGIN ALTER SYSTEM RESET ALL; END'; END", True),
        ("BEGIN NULL; EXCEPTION WHEN OTHERS THEN DROP OWNED BY r; END", True),
        ("BEGIN " + "IF true THEN " * 400 + "CREATE ROLE r;" + " END IF;" * 400 + " END", True),
        ("BEGIN EXECUTE 'ALTER TABLE ' || t; END", False),
        ("BEGIN EXECUTE format('ALTER TABLE %s ADD c int', t); END", False),
        ("BEGIN FOR r IN EXECUTE q LOOP NULL; END LOOP; END", False),
        ("DECLARE z app.a_domain; BEGIN EXECUTE q; END", False),
        ("BEGIN EXECUTE q; CREATE ROLE r; END", True),
    ],
)
def test_what_a_body_does_is_found_wherever_it_stands(body: str, certain: bool) -> None:  # noqa: FBT001 -- a column of the table
    """What only shows when it runs is not known, and said to be so."""
    for text in (TRIGGER.format(body), f"DO $$ {body} $$"):
        found = reach.beyond(text.encode())
        assert found is not None
        assert certain == found.certain, found


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT dblink('x'); END",
        "CREATE VIEW v AS SELECT dblink('x')",
        "EXPLAIN ANALYZE SELECT app.dblink_exec('x')",
        "SELECT * FROM http('x')",
    ],
)
def test_call_is_found_inside_any_statement(statement: str) -> None:
    """Also where only the parser sees that it is one."""
    assert "calls" in str(reach.beyond(statement.encode()))


@pytest.mark.parametrize(
    "name",
    [
        "http_status_class", "app.https", "http_header", "dblinks", "dblink_build_sql_insert",
        "citus_is_coordinator_node", "run_command_on_paper", "pg_file_settings_of", "pg_start",
        "pg_replication_origin_progress", "pg_wal_replays", "aws_billing.total", "azure_x.y",
        "aws_lambdas", "cron.job_names", "net.https_port", "net.http_status",
    ],
)  # fmt: skip
def test_function_whose_name_begins_as_that_of_an_extension_reaches_nowhere(name: str) -> None:
    """An app has names of its own, and what nothing is known to do elsewhere is tried."""
    bodies = ("SELECT {}(1)", "DO $$ BEGIN PERFORM {}(1); END $$",
              "DO $$ DECLARE a nobody.knows; BEGIN PERFORM {}(1); END $$")  # fmt: skip
    made = f"CREATE FUNCTION f(code int) RETURNS int LANGUAGE sql AS 'SELECT {name}(1)'"
    assert [] == [
        text
        for text in (made, *(body.format(name) for body in bodies))
        for server in (True, False)
        if reach.beyond(text.encode(), reach.Bounds(server=server))
    ]


@pytest.mark.parametrize(
    "name",
    [
        "http", "http_get", "public.http_post", "http_put", "http_patch", "http_delete",
        "http_head", "dblink", "dblink_connect", "dblink_connect_u", "dblink_exec", "dblink_open",
        "dblink_send_query", "dblink_get_result", "lo_import", "pg_file_write",
        "run_command_on_workers", "run_command_on_all_nodes", "run_command_on_placements",
        "citus_add_node", "citus_add_inactive_node", "citus_remove_node", "net.http_get",
        "net.http_delete", "cron.schedule", "cron.schedule_in_database", "cron.unschedule",
        "aws_s3.query_export_to_s3", "aws_lambda.invoke", "azure_openai.create_embeddings",
    ],
)  # fmt: skip
def test_every_function_that_leads_to_another_server_is_known(name: str) -> None:
    """By its whole name, called alone or in a body that only words tell of."""
    for text in (
        f"SELECT {name}(1)",
        f"DO $$ DECLARE a nobody.knows; BEGIN PERFORM {name}(1); END $$",
    ):
        assert reach.beyond(text.encode(), reach.Bounds(server=True)), text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("ALTER ROLE app SET statement_timeout = '30s'", False),
        ("GRANT app TO other", False),
        ("COMMENT ON DATABASE app IS 'x'", False),
        ("DO $$ DECLARE a nobody.knows; BEGIN ALTER ROLE app NOLOGIN; END $$", False),
        ("COPY t TO '/tmp/t'", True),
        ("SELECT pg_switch_wal()", True),
        ("SELECT dblink('', '')", True),
        ("DO $$ DECLARE a nobody.knows; BEGIN PERFORM pg_switch_wal(); END $$", True),
        ("DO $$ DECLARE a nobody.knows; BEGIN PERFORM dblink('', ''); END $$", True),
    ],
)
def test_what_a_rollback_takes_back_may_be_tried_again(text: str, left: bool) -> None:  # noqa: FBT001 -- pytest
    """Roles and databases are rows of the server's catalogs; calls and files are not."""
    assert left == bool(reach.beyond(text.encode(), reach.ROLLED_BACK))


def test_body_in_another_language_is_not_known() -> None:
    """Nobody here can read it."""
    found = reach.beyond(b"DO LANGUAGE plpython3u $$ import os $$")

    assert found is not None
    assert not found.certain


def test_file_that_cannot_be_recorded_is_not_said_to_be_recorded() -> None:
    """What only says how its transaction is to be holds no statement, and more than comments."""
    nothing = "nothing but comments: it is recorded, and nothing runs"

    def said(text: str) -> list[str]:
        script = reading.kept(1, "001_a", "up", text.encode())
        return review.remarks(Migration(1, "001_a", script), [])

    assert nothing in said("-- no more")
    assert nothing not in said("SET TRANSACTION READ ONLY;")
