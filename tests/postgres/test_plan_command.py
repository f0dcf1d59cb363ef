"""`plan`: what `up` would do, and what is in its way now."""

import contextlib
import re
import threading

import psycopg
import pytest

from preflight.files import effects
from tests import faults, program, servers
from tests.conftest import Run, WriteMigrations

CATALOG = (
    "SELECT (SELECT array_agg(oid ORDER BY oid) FROM pg_class), (SELECT count(*) FROM pg_namespace)"
)
VERIFY = "SELECT 's' AS suite, '{0}' AS \"check\", to_regclass('{0}') IS NOT NULL AS ok;"
FILES = {
    "001_a.sql": "CREATE TABLE a (id int PRIMARY KEY);\n",
    "001_a_verify.sql": VERIFY.format("a"),
    "002_b.sql": "CREATE TABLE b (a_id int REFERENCES a);\nALTER TABLE b ADD COLUMN x int;\n\n"
    "  ALTER TABLE a ADD COLUMN n int;\nDROP INDEX old;\n"
    "DELETE FROM c;\nCREATE ROLE somebody;\n",
    "002_b_verify.sql": VERIFY.format("b"),
}


def test_plan_tells_what_each_statement_does(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Line, locks, what is destroyed, what reaches beyond; and it writes nothing."""
    migrations(FILES)
    database.script(
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE c (i int); CREATE INDEX old ON c (i)"
    )
    before = database.query(CATALOG)
    with psycopg.connect(database.conninfo(application_name="reader")) as reader:
        reader.execute("SELECT * FROM a")
        pid = reader.info.backend_pid
        document = (result := run("plan", "--json")).json()

    assert 0 == result.code
    assert before == database.query(CATALOG)
    assert {"database", "adopts", "pending", "statements"} == document.keys()
    assert (database.name, ["001_a"], ["002_b"]) == (
        document["database"],
        document["adopts"],
        document["pending"],
    )
    found = [
        (step["line"], [(item["table"], item["mode"]) for item in step["locks"]],
         [found["pid"] for found in step["blocked_by"]])
        for step in document["statements"]
    ]  # fmt: skip
    assert [
        (1, [("a", "SHARE ROW EXCLUSIVE")], []),
        (2, [], []),
        (4, [("a", "ACCESS EXCLUSIVE")], [pid]),
        (5, [("c", "ACCESS EXCLUSIVE")], []),
        (6, [("c", "ROW EXCLUSIVE")], []),
        (7, [], []),
    ] == found
    assert [None, None, None, None, "all rows of c", None] == [
        step["destroys"] for step in document["statements"]
    ]
    assert "whole server" in document["statements"][5]["external"]
    assert "reader" == document["statements"][2]["blocked_by"][0]["application"]


def test_plan_is_events_in_a_pipe_and_a_table_when_asked(
    run: Run, migrations: WriteMigrations
) -> None:
    """One event a statement; the table stands alone on stdout."""
    outside = "-- preflight: no-transaction\n"
    migrations({"000_a.sql": f"{outside}CREATE TABLE a (id int);\nDROP TABLE IF EXISTS z;"})
    events, table = run("plan"), run("plan", "--table")

    statements = events.event("statement.planned")
    assert [(2, 0, False), (3, 0, False)] == [
        (each["line"], each["version"], each["in_transaction"]) for each in statements
    ]
    assert {"destroys", "blocked_by", "unknown"}.isdisjoint(statements[0])
    assert ["000_a"] == events.event("plan.made")[0]["pending"]
    assert ["PLACE", "DOES", "LOCK", "DESTROYS", "BLOCKED", "NOW", "BY"] == table.stdout.split(
        "\n"
    )[0].split()
    assert "000:3" in table.stdout
    assert '"event"' not in table.stdout


@pytest.mark.parametrize(
    ("files", "by_hand", "code"),
    [
        ({"001_a.sql": "CREATE TABLE a ();"}, "CREATE TABLE x ()", 26),
        (
            FILES | {"001_a_verify.sql": FILES["001_a_verify.sql"] + FILES["002_b_verify.sql"]},
            "CREATE TABLE a ()",
            33,
        ),
    ],
)
def test_plan_ends_as_up_would(  # noqa: PLR0913, PLR0917 - fixtures
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    files: dict[str, str],
    by_hand: str,
    code: int,
) -> None:
    """What would stop `up` before it does anything stops the plan."""
    migrations(files)
    database.script(by_hand)

    assert [code, code] == [run("plan").code, run("up").code]


def test_nothing_pending_is_an_empty_plan(run: Run, migrations: WriteMigrations) -> None:
    """Nothing to do is no error."""
    migrations({"001_a.sql": "SELECT 1;"})
    run("up")
    result = run("plan", "--json")

    assert (0, [], []) == (result.code, result.json()["pending"], result.json()["statements"])


# --- the locks are PostgreSQL's -------------------------------------------------------------------

TABLES = """
CREATE TABLE a (id int PRIMARY KEY, n int, t text, CONSTRAINT n_pos CHECK (n > 0) NOT VALID);
CREATE TABLE b (id int PRIMARY KEY, a_id int CONSTRAINT b_fk REFERENCES a, g int);
CREATE INDEX a_n ON a (n); CREATE UNIQUE INDEX a_u ON a (n);
CREATE INDEX a_gin ON a USING gin (to_tsvector('simple', t));
CREATE INDEX a_brin ON a USING brin (n);
CREATE VIEW v AS SELECT * FROM a;
CREATE MATERIALIZED VIEW m AS SELECT id FROM a; CREATE UNIQUE INDEX m_id ON m (id);
CREATE TABLE p (id int) PARTITION BY RANGE (id);
CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
CREATE TABLE p2 (id int);
CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER tr BEFORE UPDATE ON a FOR EACH ROW EXECUTE FUNCTION f();
CREATE RULE ru AS ON INSERT TO b DO ALSO NOTHING;
CREATE POLICY po ON a USING (true);
CREATE SEQUENCE s; CREATE STATISTICS st ON id, n FROM a;
CREATE TABLE "Odd ""name" (id int);
CREATE TABLE par (id int); CREATE TABLE chi () INHERITS (par);
CREATE SCHEMA other; CREATE TYPE mood AS ENUM ('a'); CREATE DOMAIN dom AS int;
CREATE PUBLICATION pub FOR TABLE a;
CREATE TABLE idt (id int GENERATED ALWAYS AS IDENTITY, g int GENERATED ALWAYS AS (1) STORED);
CREATE MATERIALIZED VIEW nothing_else AS SELECT 1 AS id; CREATE UNIQUE INDEX ON nothing_else (id);
"""
STATEMENTS = """
SELECT * FROM a
SELECT * FROM a FOR UPDATE
SELECT * FROM a JOIN b ON true FOR UPDATE OF a
SELECT * FROM a WHERE id IN (SELECT id FROM b) FOR SHARE
WITH x AS (DELETE FROM a RETURNING *) SELECT * FROM x, b
WITH x AS (SELECT * FROM a) SELECT * FROM x
SELECT count(*) INTO n1 FROM a
INSERT INTO a VALUES (1)
INSERT INTO b SELECT id, id, id FROM a
UPDATE a SET n = 1
UPDATE a SET n = b.g FROM b WHERE b.id = a.id
DELETE FROM a
DELETE FROM b USING a WHERE a.id = b.a_id
TRUNCATE a, b
TRUNCATE b
CREATE TABLE n1 (id int)
CREATE TABLE n1 (id int REFERENCES a)
CREATE TABLE n1 (id int, FOREIGN KEY (id) REFERENCES a (id))
CREATE TABLE n1 (LIKE a)
CREATE TABLE n1 () INHERITS (par)
CREATE TABLE n1 PARTITION OF p FOR VALUES FROM (10) TO (20)
CREATE TABLE n1 AS SELECT * FROM a
CREATE MATERIALIZED VIEW n1 AS SELECT * FROM a
CREATE INDEX i1 ON a (n)
CREATE UNIQUE INDEX i1 ON a (n)
CREATE VIEW w AS SELECT * FROM a
CREATE OR REPLACE VIEW v AS SELECT * FROM a
CREATE OR REPLACE VIEW w AS SELECT * FROM a
CREATE TRIGGER t2 BEFORE INSERT ON a FOR EACH ROW EXECUTE FUNCTION f()
CREATE CONSTRAINT TRIGGER t2 AFTER INSERT ON a FOR EACH ROW EXECUTE FUNCTION f()
CREATE RULE r2 AS ON UPDATE TO a DO ALSO NOTHING
CREATE RULE r2 AS ON UPDATE TO a DO ALSO DELETE FROM b
CREATE POLICY p2 ON a USING (true)
CREATE POLICY p2 ON a USING (EXISTS (SELECT FROM b))
ALTER POLICY po ON a USING (false)
CREATE STATISTICS s2 ON id, t FROM a
ALTER STATISTICS st SET STATISTICS 10
COMMENT ON TABLE a IS 'x'
COMMENT ON COLUMN a.n IS 'x'
COMMENT ON VIEW v IS 'x'
COMMENT ON INDEX a_n IS 'x'
COMMENT ON CONSTRAINT n_pos ON a IS 'x'
COMMENT ON TRIGGER tr ON a IS 'x'
COMMENT ON POLICY po ON a IS 'x'
COMMENT ON MATERIALIZED VIEW m IS 'x'
COMMENT ON SCHEMA other IS 'x'
COMMENT ON FUNCTION f() IS 'x'
LOCK TABLE a
LOCK TABLE a, b IN SHARE MODE
LOCK TABLE a IN ROW EXCLUSIVE MODE
ANALYZE a
CLUSTER a USING a_n
REINDEX TABLE a
REINDEX INDEX a_n
ALTER TABLE a ADD COLUMN x int
ALTER TABLE a ADD COLUMN x int REFERENCES b
ALTER TABLE a ALTER COLUMN n SET DEFAULT 3
ALTER TABLE a ALTER COLUMN n DROP DEFAULT
ALTER TABLE a ALTER COLUMN n SET NOT NULL
ALTER TABLE a ALTER COLUMN id SET STATISTICS 10
ALTER TABLE a ALTER COLUMN t SET STORAGE external
ALTER TABLE a ALTER COLUMN n SET (n_distinct = 5)
ALTER TABLE a ALTER COLUMN n RESET (n_distinct)
ALTER TABLE a ADD CONSTRAINT c2 CHECK (n > 1)
ALTER TABLE a ADD CONSTRAINT c2 CHECK (n > 1) NOT VALID
ALTER TABLE a ADD CONSTRAINT c2 UNIQUE (t)
ALTER TABLE a ADD CONSTRAINT c2 UNIQUE USING INDEX a_u
ALTER TABLE b ADD CONSTRAINT f2 FOREIGN KEY (a_id) REFERENCES a
ALTER TABLE b ADD CONSTRAINT f2 FOREIGN KEY (a_id) REFERENCES a NOT VALID
ALTER TABLE b ADD FOREIGN KEY (a_id) REFERENCES a, ADD COLUMN z int
ALTER TABLE a VALIDATE CONSTRAINT n_pos
ALTER TABLE b VALIDATE CONSTRAINT b_fk
ALTER TABLE a DROP CONSTRAINT n_pos
ALTER TABLE a RENAME CONSTRAINT n_pos TO z
ALTER TABLE b ALTER CONSTRAINT b_fk DEFERRABLE
ALTER TABLE a DISABLE TRIGGER tr
ALTER TABLE a ENABLE ALWAYS TRIGGER tr
ALTER TABLE a DISABLE TRIGGER USER
ALTER TABLE b DISABLE RULE ru
ALTER TABLE a ENABLE ROW LEVEL SECURITY
ALTER TABLE a FORCE ROW LEVEL SECURITY
ALTER TABLE a CLUSTER ON a_n
ALTER TABLE a SET WITHOUT CLUSTER
ALTER TABLE a SET (fillfactor = 70)
ALTER TABLE a SET (autovacuum_enabled = off)
ALTER TABLE a RESET (fillfactor)
ALTER TABLE a SET (fillfactor = 70, user_catalog_table = true)
ALTER TABLE a RESET (user_catalog_table)
ALTER VIEW v SET (security_barrier = true)
ALTER TABLE b SET UNLOGGED
ALTER TABLE a REPLICA IDENTITY FULL
ALTER TABLE a OWNER TO postgres
ALTER TABLE a INHERIT par
ALTER TABLE chi NO INHERIT par
ALTER TABLE a SET SCHEMA other
ALTER TABLE a RENAME TO z
ALTER TABLE a RENAME COLUMN n TO z
ALTER VIEW v RENAME TO z
ALTER VIEW v SET SCHEMA other
ALTER INDEX a_n RENAME TO z
ALTER INDEX a_n SET (fillfactor = 50)
ALTER INDEX a_n SET (deduplicate_items = off)
ALTER INDEX a_gin SET (fastupdate = off)
ALTER INDEX a_gin RESET (gin_pending_list_limit)
ALTER INDEX a_brin SET (autosummarize = on)
ALTER TRIGGER tr ON a RENAME TO z
ALTER POLICY po ON a RENAME TO z
ALTER SEQUENCE s RENAME TO z
ALTER SEQUENCE s RESTART
ALTER TABLE p ATTACH PARTITION p2 FOR VALUES FROM (20) TO (30)
ALTER TABLE idt ALTER COLUMN id SET GENERATED BY DEFAULT
ALTER TABLE idt ALTER COLUMN id DROP IDENTITY
ALTER TABLE a ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY
ALTER TABLE idt ALTER COLUMN g DROP EXPRESSION
DROP VIEW v
DROP MATERIALIZED VIEW m
DROP INDEX a_n
DROP TRIGGER tr ON a
DROP RULE ru ON b
DROP POLICY po ON a
DROP SEQUENCE s
DROP SCHEMA other
DROP TYPE mood
COPY a TO '/dev/null'
COPY (SELECT * FROM a) TO '/dev/null'
COPY a FROM '/dev/null'
ALTER TYPE mood ADD VALUE 'b'
CREATE FUNCTION g() RETURNS int LANGUAGE sql AS 'SELECT 1'
CREATE TABLE "Odd" (id int REFERENCES a)
ALTER TABLE "Odd ""name" ADD COLUMN x int
EXPLAIN SELECT * FROM a
EXPLAIN ANALYZE DELETE FROM a
PREPARE q AS DELETE FROM a
DO 'BEGIN END'
CREATE PUBLICATION p9 FOR TABLE a
ALTER PUBLICATION pub ADD TABLE b
ALTER PUBLICATION pub DROP TABLE a
DROP PUBLICATION pub
ALTER TABLE b DROP COLUMN g
ALTER TABLE b ALTER COLUMN g TYPE bigint
ALTER TABLE b SET UNLOGGED
DROP TABLE "Odd ""name"
REFRESH MATERIALIZED VIEW nothing_else
REFRESH MATERIALIZED VIEW CONCURRENTLY nothing_else
"""
OUTSIDE = """
CREATE INDEX CONCURRENTLY i9 ON a (n)
DROP INDEX CONCURRENTLY a_n
REINDEX TABLE CONCURRENTLY a
REINDEX INDEX CONCURRENTLY a_n
VACUUM a
VACUUM (FULL) a
ANALYZE a
CLUSTER a USING a_n
"""
NAMES = (
    "SELECT oid, quote_ident(relname) FROM pg_class "
    "WHERE relkind IN ('r', 'p', 'v', 'm') AND relnamespace = 'public'::regnamespace"
)
HELD = "SELECT relation, mode FROM pg_locks WHERE locktype = 'relation' AND pid = %s"
MODES = {mode.title().replace(" ", "") + "Lock": mode for mode in effects.STRENGTH}


def strongest(locks: list[tuple[int, str]], names: dict[int, str]) -> dict[str, str]:
    """Return the strongest lock on each table that was there before."""
    found: dict[str, str] = {}
    for mode in effects.STRENGTH:
        found |= {names[oid]: mode for oid, held in locks if oid in names and MODES[held] == mode}
    return found


def said(statement: str, names: dict[int, str]) -> dict[str, str]:
    """Return what the plan says of the same tables; every index here is one of table a."""
    locks = effects.of(statement.encode()).locks
    found = {"a" if lock.of_index else lock.table: lock.mode for lock in locks}
    return {table: mode for table, mode in found.items() if table in names.values()}


def test_locks_of_the_plan_are_those_that_the_server_takes(
    any_server: servers.Server, connection: psycopg.Connection
) -> None:
    """Each kind of statement, run in a transaction, holds what was said: no more, no less."""
    connection.execute(TABLES.encode())
    tables: dict[int, str] = dict(connection.execute(NAMES).fetchall())
    indexes: dict[int, str] = dict(connection.execute(NAMES.replace("'r'", "'i', 'r'")).fetchall())
    wrong = {}
    for statement in STATEMENTS.strip().splitlines():
        names = indexes if statement.startswith("ALTER INDEX") else tables
        connection.execute("BEGIN")
        connection.execute(statement.encode())
        held = connection.execute(HELD, [connection.info.backend_pid]).fetchall()
        connection.execute("ROLLBACK")
        if (real := strongest(held, names)) != (claimed := said(statement, names)):
            wrong[statement] = {"real": real, "said": claimed}

    assert {} == wrong, any_server


def test_parts_of_a_partitioned_table_are_locked_with_it(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Where that takes no transaction, seen while it queues for one of them."""
    database.script(
        "CREATE TABLE p (id int) PARTITION BY RANGE (id); CREATE INDEX p_id ON p (id);"
        "CREATE TABLE p1 PARTITION OF p DEFAULT"
    )
    (oid,) = database.query("SELECT 'p1'::regclass::oid")
    statements = ("REINDEX TABLE p", "REINDEX INDEX p_id", "CLUSTER p USING p_id", "VACUUM FULL p")
    migrations(
        {
            f"{i:03d}_a.sql": f"-- preflight: no-transaction\n{text};"
            for i, text in enumerate(statements, 1)
        }
    )
    planned = run("plan", "--json", env={"PREFLIGHT_FIRST_CONTACT": "pending"})
    with psycopg.connect(database.conninfo()) as holder:
        holder.execute("LOCK TABLE p1 IN EXCLUSIVE MODE")
        real = [
            (text, strongest(asked_for(database, text), {oid: "p1"})["p1"]) for text in statements
        ]

    assert 0 == planned.code, str(planned)
    assert real == [
        (text, {lock["table"]: lock["mode"] for lock in step["locks"]}["p1"])
        for text, step in zip(statements, planned.json()["statements"], strict=True)
    ]


def asked_for(database: servers.Database, statement: str) -> list[tuple[int, str]]:
    """Return the locks that a statement queues for, while somebody else has the table."""
    with psycopg.connect(database.conninfo(), autocommit=True) as session:
        pid = session.info.backend_pid
        waiting = "SELECT relation, mode FROM pg_locks WHERE pid = %s AND NOT granted"
        runs = threading.Thread(target=until_ended, args=(session, statement))
        runs.start()
        faults.until(lambda: database.query(waiting, pid), f"{statement} waits")
        found = database.query(waiting, pid)
        database.query("SELECT pg_terminate_backend(%s)", pid)
        runs.join()
        return found


def until_ended(session: psycopg.Connection, statement: str) -> None:
    """Run a statement until somebody ends the session."""
    with contextlib.suppress(psycopg.OperationalError):
        session.execute(statement.encode())


def test_locks_outside_a_transaction_are_those_that_the_server_asks_for(
    connection: psycopg.Connection, database: servers.Database
) -> None:
    """What cannot run in a transaction, seen while it queues."""
    connection.execute(TABLES.encode())
    names: dict[int, str] = dict(connection.execute(NAMES).fetchall())
    with psycopg.connect(database.conninfo()) as holder:
        holder.execute("LOCK TABLE a IN EXCLUSIVE MODE")  # all but ACCESS SHARE wait
        found = {
            statement: strongest(asked_for(database, statement), names)
            for statement in OUTSIDE.strip().splitlines()
        }

    assert {statement: said(statement, names) for statement in found} == found


def test_plan_leaves_out_what_a_part_way_file_has_done(
    run: Run, migrations: WriteMigrations
) -> None:
    """What `up` would do is what is left; and what it refuses (32) is no plan."""
    text = "-- preflight: no-transaction\nCREATE TABLE t (x int);\nDELETE FROM t;\nSELECT 1 / {};\n"
    migrations({"001_t.sql": text.format("0")})
    assert 31 == run("up", env={"PREFLIGHT_BACKUP": "off"}).code

    result = run("plan", "--json")
    migrations({"001_t.sql": text.replace("FROM t", "FROM t WHERE x = 1").format("1")})
    edited = run("plan")

    assert 0 == result.code, str(result)
    assert [3] == [each["statement"] for each in result.json()["statements"]]
    assert {"001_t": 2} == result.json()["resumes_after"]
    assert [32, 32] == [edited.code, run("up").code]


def test_plan_of_a_part_way_file_tells_what_happens_to_tables_of_its_first_run(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """They are in use by then, like any other; what is still to be made is nobody's."""
    text = "-- preflight: no-transaction\nSET search_path = other;\nCREATE TABLE t (x int);\n{}"
    database.script("CREATE SCHEMA other")
    migrations({"001_t.sql": text.format("SELECT 1 / 0;")})
    assert 31 == run("up", env={"PREFLIGHT_BACKUP": "off"}).code
    rest = "TRUNCATE t; CREATE TABLE u (x int); DROP TABLE u;"
    migrations({"001_t.sql": text.format(rest)})

    with database.server.connect(database.name) as reader:
        reader.execute("BEGIN; SELECT FROM other.t")
        pid = reader.info.backend_pid
        truncate, create, drop = run("plan", "--json").json()["statements"]

    assert [{"table": "t", "mode": "ACCESS EXCLUSIVE"}] == truncate["locks"]
    assert ("all rows of t", [pid]) == (
        truncate["destroys"],
        [each["pid"] for each in truncate["blocked_by"]],
    )
    assert [([], None)] * 2 == [(each["locks"], each["destroys"]) for each in (create, drop)]


def test_newer_file_that_is_part_way_is_said_to_be(run: Run, migrations: WriteMigrations) -> None:
    """An older image goes on, and nobody takes the database for one that is only newer."""
    begun = "-- preflight: no-transaction\nSELECT 1; X;"
    migrations({"001_a.sql": "CREATE TABLE a ();", "002_b.sql": begun})
    assert 31 == run("up", env={"PREFLIGHT_BACKUP": "off"}).code
    (migrations.directory / "002_b.sql").unlink()

    for command in ("check", "plan", "up"):
        result = run(command)
        assert 0 == result.code, str(result)
        assert [["002_b"]] == [each["part_way"] for each in result.event("schema.ahead")]
    assert "partial" == run("check", "--json").json()["migrations"][1]["state"]
    refused = run("check", env={"PREFLIGHT_AHEAD": "fail"})
    assert "002_b (part-way)" in refused.finished["error"]["message"]


@pytest.mark.parametrize("command", ["check", "plan", "up"])
def test_history_of_a_newer_version_is_28_for_whoever_would_write_it(
    run: Run, database: servers.Database, migrations: WriteMigrations, command: str
) -> None:
    """`check` and `plan` say what `up` would; with nothing pending all of them end with 0."""
    migrations({"001_a.sql": "CREATE TABLE a ();"})
    assert 0 == run("up", env={"PREFLIGHT_BACKUP": "off"}).code
    database.script("ALTER TABLE preflight.migrations ADD COLUMN tenant text")
    current = run(command)
    migrations({"002_b.sql": "CREATE TABLE b ();"})

    result = run(command)

    assert (0, 28) == (current.code, result.code), str(result)
    assert "schema.newer_history" == result.finished["error"]["code"]


REACHING = """
ALTER TABLE b DROP CONSTRAINT b_fk
ALTER TABLE b DROP COLUMN a_id
ALTER TABLE a DROP COLUMN id CASCADE
ALTER TABLE a DROP CONSTRAINT a_pkey CASCADE
ALTER TABLE b ALTER COLUMN a_id TYPE bigint
ALTER TABLE b ALTER a_id TYPE bigint, DROP g
DROP TABLE b CASCADE
DROP TABLE c
DROP TABLE a CASCADE
DROP VIEW v CASCADE
DROP TYPE mood CASCADE
DROP SCHEMA away CASCADE
DROP DOMAIN dom CASCADE
TRUNCATE a CASCADE
TRUNCATE TABLE c, a CASCADE
DROP INDEX a_n
DROP MATERIALIZED VIEW m CASCADE
SELECT * FROM tree
UPDATE tree SET n = 1
DELETE FROM ONLY par2
DELETE FROM par2
INSERT INTO tree VALUES (1, 1)
TRUNCATE tree
TRUNCATE par2
LOCK TABLE tree IN SHARE MODE
ALTER TABLE tree ADD COLUMN x int
ALTER TABLE tree ALTER n TYPE bigint
ALTER TABLE tree ADD CHECK (n > 0)
ALTER TABLE tree ALTER n SET NOT NULL
ALTER TABLE tree DROP COLUMN n
ALTER TABLE tree RENAME COLUMN n TO nn
ALTER TABLE par2 ADD COLUMN x int
ALTER TABLE par2 SET (fillfactor = 50)
CREATE INDEX ON tree (n)
CREATE INDEX ON par2 (n)
CREATE TRIGGER tt BEFORE INSERT ON tree FOR EACH ROW EXECUTE FUNCTION f()
CREATE TABLE ref (id int REFERENCES tree)
ALTER TABLE tree ADD FOREIGN KEY (n) REFERENCES b
DROP TABLE tree
DROP TABLE par2 CASCADE
DROP FUNCTION f() CASCADE
DROP FUNCTION two(int, text[]) CASCADE
DROP FUNCTION two CASCADE
DROP EXTENSION citext CASCADE
DROP TABLE tree1
DROP TABLE tree21
DROP TABLE treed
DROP SCHEMA parted CASCADE
ALTER TABLE tree DETACH PARTITION tree1
ALTER TABLE tree DETACH PARTITION tree2
ALTER TABLE tree DETACH PARTITION treed
ALTER TABLE tree ATTACH PARTITION apart FOR VALUES FROM (20) TO (30)
CREATE TABLE n1 PARTITION OF tree FOR VALUES FROM (20) TO (30)
CREATE TABLE n1 PARTITION OF tree2 DEFAULT
ALTER TABLE tree ALTER n SET STATISTICS 10
DROP TRIGGER on_tree ON tree
REASSIGN OWNED BY {owner} TO postgres
DROP OWNED BY {owner}
ALTER TABLE ALL IN TABLESPACE pg_default OWNED BY {owner} SET TABLESPACE pg_default
ALTER TYPE comp ADD ATTRIBUTE y int CASCADE
DROP COLLATION coll CASCADE
DROP OPERATOR CLASS ops USING btree CASCADE
CREATE TABLE n1 PARTITION OF ptr FOR VALUES FROM (20) TO (30)
ALTER TABLE ptr ATTACH PARTITION ptr_new FOR VALUES FROM (20) TO (30)
ALTER TABLE ptr ATTACH PARTITION ptr_keyed FOR VALUES FROM (20) TO (30)
ALTER TABLE ptr DETACH PARTITION ptr1
DROP TABLE ptr1
DROP TABLE ptr
CREATE TABLE n1 PARTITION OF pkp FOR VALUES FROM (20) TO (30)
ALTER TABLE pkp ATTACH PARTITION pkp_new FOR VALUES FROM (20) TO (30)
ALTER TABLE pkp DETACH PARTITION pkp1
DROP TABLE pkp CASCADE
DELETE FROM rows
DELETE FROM ONLY rows WHERE id = 1
DELETE FROM rows1 WHERE id = 1
UPDATE rows SET id = 2
UPDATE rows SET n = 2
INSERT INTO rows VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET id = 3
WITH x AS (DELETE FROM rows RETURNING *) SELECT * FROM x
EXPLAIN ANALYZE DELETE FROM rows
ALTER DOMAIN dom ADD CHECK (VALUE > 0)
ALTER DOMAIN dom ADD CONSTRAINT big CHECK (VALUE > 0) NOT VALID
ALTER DOMAIN dom SET NOT NULL
ALTER DOMAIN dom VALIDATE CONSTRAINT small
ALTER DOMAIN dom DROP CONSTRAINT small
ALTER DOMAIN other.dom2 ADD CHECK (VALUE > 0)
"""
MORE = """
CREATE TABLE tree (id int PRIMARY KEY, n int) PARTITION BY RANGE (id);
CREATE TABLE tree1 PARTITION OF tree FOR VALUES FROM (0) TO (10);
CREATE TABLE tree2 PARTITION OF tree FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (id);
CREATE TABLE treed PARTITION OF tree DEFAULT PARTITION BY RANGE (id);
CREATE TABLE treed1 PARTITION OF treed FOR VALUES FROM (90) TO (99);
CREATE TABLE apart (id int NOT NULL, n int) PARTITION BY RANGE (id);
CREATE TABLE apart1 PARTITION OF apart DEFAULT;
CREATE SCHEMA parted CREATE TABLE far (k int) PARTITION BY LIST (k);
CREATE TABLE around (k int) PARTITION BY LIST (k);
CREATE TABLE parted.one PARTITION OF around FOR VALUES IN (1);
CREATE TABLE aroundd PARTITION OF around DEFAULT;
ALTER DOMAIN dom ADD CONSTRAINT small CHECK (VALUE < 99) NOT VALID;
CREATE DOMAIN other.dom2 AS dom; CREATE TABLE doms (d other.dom2) PARTITION BY LIST (d);
CREATE TABLE doms1 PARTITION OF doms DEFAULT; CREATE MATERIALIZED VIEW domm AS SELECT * FROM doms;
CREATE TRIGGER on_tree AFTER INSERT ON tree FOR EACH ROW EXECUTE FUNCTION f();
CREATE ROLE {owner}; CREATE TABLE owned (id int); ALTER TABLE owned OWNER TO {owner};
CREATE TYPE comp AS (x int); CREATE TABLE typed OF comp;
CREATE COLLATION coll (locale = 'C'); CREATE TABLE collated (t text COLLATE coll);
CREATE OPERATOR CLASS ops FOR TYPE int USING btree AS OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =,
 OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 btint4cmp(int, int);
CREATE TABLE opened (id int); CREATE INDEX ON opened (id ops);
CREATE TABLE reft (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE reft1 PARTITION OF reft DEFAULT; CREATE TABLE refu (id int PRIMARY KEY);
CREATE TABLE ptr (id int, r int REFERENCES reft, u int REFERENCES refu) PARTITION BY RANGE (id);
CREATE TABLE ptr1 PARTITION OF ptr FOR VALUES FROM (0) TO (10);
CREATE TABLE ptr_new (id int, r int, u int);
CREATE TABLE ptr_keyed (id int, r int REFERENCES reft, u int REFERENCES refu);
CREATE TABLE pkp (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE pkp1 PARTITION OF pkp FOR VALUES FROM (0) TO (10);
CREATE TABLE pkp_new (id int NOT NULL PRIMARY KEY); CREATE TABLE refers (id int REFERENCES pkp);
CREATE TABLE refers_p (id int REFERENCES pkp) PARTITION BY LIST (id);
CREATE TABLE refers_p1 PARTITION OF refers_p DEFAULT;
CREATE TABLE rows (id int PRIMARY KEY, n int) PARTITION BY RANGE (id);
CREATE TABLE rows1 PARTITION OF rows DEFAULT; INSERT INTO rows VALUES (1, 1);
CREATE TABLE follows (id int PRIMARY KEY REFERENCES rows ON DELETE CASCADE ON UPDATE CASCADE);
CREATE TABLE follows_p (id int REFERENCES follows ON DELETE CASCADE ON UPDATE CASCADE)
 PARTITION BY LIST (id); CREATE TABLE follows_p1 PARTITION OF follows_p DEFAULT;
CREATE TABLE forgets (id int REFERENCES rows ON DELETE SET NULL ON UPDATE SET NULL);
INSERT INTO follows VALUES (1); INSERT INTO follows_p VALUES (1); INSERT INTO forgets VALUES (1);
CREATE TABLE tree21 PARTITION OF tree2 FOR VALUES FROM (10) TO (15);
CREATE TABLE par2 (n int); CREATE TABLE chi2 () INHERITS (par2);
CREATE TABLE chi22 (more int) INHERITS (chi2);
CREATE FUNCTION two(int, text[]) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1';
CREATE TABLE uses (n int DEFAULT two(1, '{}')); CREATE INDEX ON par (two(id, '{}'));
CREATE VIEW vt AS SELECT two(n, '{}') FROM a;
CREATE EXTENSION citext; CREATE TABLE ci (c citext); CREATE VIEW vc AS SELECT c FROM ci;
CREATE TABLE c (id int PRIMARY KEY, m mood, d dom, b_id int REFERENCES b);
CREATE VIEW vv AS SELECT * FROM v;
CREATE SCHEMA away; CREATE TABLE away.x (id int PRIMARY KEY);
CREATE TABLE d (x_id int REFERENCES away.x);
CREATE VIEW vd AS SELECT * FROM away.x;
"""


def test_what_a_statement_reaches_beyond_its_tables_is_in_the_plan(
    any_server: servers.Server,
    run: Run,
    connection: psycopg.Connection,
    migrations: WriteMigrations,
) -> None:
    """Foreign keys, CASCADE, partitions, domains: no lock is understated, or it is unknown."""
    query = "SELECT 'citext' IN (SELECT name FROM pg_available_extensions)"
    (has_it,) = connection.execute(query).fetchone() or (False,)
    owner = f"owner_of_{connection.info.dbname}"
    made, statements = (x.strip().replace("{owner}", owner).splitlines() for x in (MORE, REACHING))
    if not has_it:  # not every package has the extension
        made, statements = (
            [each for each in x if "citext" not in each] for x in (made, statements)
        )
    connection.execute((TABLES + "\n".join(made)).encode())
    names: dict[int, str] = dict(connection.execute(NAMES).fetchall())
    migrations({f"{i:03d}_s.sql": text + ";" for i, text in enumerate(statements, 1)})

    planned = run("plan", "--json", env={"PREFLIGHT_FIRST_CONTACT": "pending"})

    assert 0 == planned.code, str(planned)
    wrong = {}
    for statement, step in zip(statements, planned.json()["statements"], strict=True):
        connection.execute("BEGIN")
        connection.execute(statement.encode())
        held = connection.execute(HELD, [connection.info.backend_pid]).fetchall()
        connection.execute("ROLLBACK")
        claimed = {item["table"]: item["mode"] for item in step["locks"]}
        real = strongest(held, names)
        weaker = {
            table: mode
            for table, mode in real.items()
            if effects.STRENGTH.index(mode)
            > effects.STRENGTH.index(claimed.get(table, effects.ACCESS_SHARE))
        }
        if weaker and not step["unknown"]:
            wrong[statement] = {"understated": weaker, "said": claimed}
    connection.execute(f"DROP OWNED BY {owner}; DROP ROLE {owner}".encode())
    unknown = [
        statement
        for statement, step in zip(statements, planned.json()["statements"], strict=True)
        if step["unknown"]
    ]
    lost = {step["does"]: step["destroys"] or "" for step in planned.json()["statements"]}
    assert {} == wrong, any_server
    assert statements[
        (at := statements.index(f"REASSIGN OWNED BY {owner} TO postgres")) : at + 6
    ] == (unknown)
    uses = {(table, "SHARE") for table in ("c", "doms1", "domm")}
    others = [  # partitions that are not touched when one comes or goes
        (statement, item["table"])
        for statement, step in zip(statements, planned.json()["statements"], strict=True)
        for item in step["locks"]
        if "PARTITION" in statement and item["table"] in {"tree21", "n1"} - {statement.split()[-1]}
    ]
    assert [("ALTER TABLE tree DETACH PARTITION tree2", "tree21")] == others
    assert [uses, set(), uses, uses, set(), uses - {("c", "SHARE")}] == [
        {(item["table"], item["mode"]) for item in step["locks"]}
        for step in planned.json()["statements"][-6:]  # of ALTER DOMAIN
    ]
    deleted = "rows of rows, rows of follows, rows of follows_p"
    assert deleted == lost["delete rows rows"]
    assert "all rows of b" in lost["truncate a"]
    assert "all rows of c" in lost["truncate a"]
    assert "table away.x" in lost["drop schema away"]
    assert "column c.m" in lost["drop type mood"]


def locked(result: program.Result) -> list[tuple[int, str, str]]:
    """Return each lock that a plan tells of: the statement's line, the table, the mode."""
    return [
        (step["line"], item["table"], item["mode"])
        for step in result.json()["statements"]
        for item in step["locks"]
    ]


def test_table_that_is_made_only_if_it_is_absent_is_locked_if_it_is_there(
    run: Run, connection: psycopg.Connection, migrations: WriteMigrations
) -> None:
    """Somebody may wait for it then; for one that the file makes nobody does."""
    connection.execute("CREATE TABLE users (id int)")
    connection.execute("CREATE MATERIALIZED VIEW sums AS SELECT 1 AS id")
    lines = (
        "CREATE TABLE IF NOT EXISTS users (id int)",
        "CREATE TABLE sums2 (id int)",
        "ALTER TABLE users ADD COLUMN a int",
        "CREATE TABLE IF NOT EXISTS fresh (id int)",
        "CREATE MATERIALIZED VIEW IF NOT EXISTS sums AS SELECT 1 AS id",
        "CREATE INDEX ON fresh (id)",
        "CREATE INDEX ON sums (id)",
        "CREATE INDEX ON sums2 (id)",
    )
    migrations({"001_a.sql": ";\n".join(lines) + ";"})
    connection.execute("BEGIN")
    connection.execute("SELECT * FROM users")

    result = run("plan", "--json", env={"PREFLIGHT_FIRST_CONTACT": "pending"})

    assert 0 == result.code, str(result)
    assert [(3, "users", "ACCESS EXCLUSIVE"), (7, "sums", "SHARE")] == locked(result)
    assert [connection.info.backend_pid] == [
        found["pid"] for found in result.json()["statements"][2]["blocked_by"]
    ]


def test_block_that_makes_a_table_or_changes_it_locks_the_one_that_is_there(
    run: Run, connection: psycopg.Connection, migrations: WriteMigrations
) -> None:
    """Whatever the order of its statements, and whichever way through it a condition takes."""
    connection.execute("CREATE TABLE a (id int)")
    blocks = (
        "IF to_regclass('a') IS NULL THEN CREATE TABLE a (); ELSE ALTER TABLE a ADD b int; END IF;",
        "ALTER TABLE a RENAME TO c; CREATE TABLE a (id int);",
        "CREATE TABLE new (id int); ALTER TABLE new ADD b int;",
    )
    migrations({"001_a.sql": "".join(f"DO $$ BEGIN {each} END $$;\n" for each in blocks)})

    result = run("plan", "--json", env={"PREFLIGHT_FIRST_CONTACT": "pending"})

    assert 0 == result.code, str(result)
    assert [(1, "a", "ACCESS EXCLUSIVE"), (2, "a", "ACCESS EXCLUSIVE")] == locked(result)


def test_type_whose_name_is_a_word_of_sql_is_found(
    run: Run, connection: psycopg.Connection, migrations: WriteMigrations
) -> None:
    """It is written in quotes there; a name of another database is none here."""
    connection.execute('CREATE DOMAIN "order" AS int; CREATE TYPE "user" AS ENUM (\'a\')')
    connection.execute('CREATE TABLE t (a "order", b "user")')
    migrations(
        {
            "001_a.sql": 'ALTER DOMAIN "order" ADD CHECK (VALUE > 0); DROP TYPE "user" CASCADE;\n'
            'DO $$ BEGIN DROP TYPE "user" CASCADE; END $$; ALTER DOMAIN x.y.z ADD CHECK (true);'
        }
    )

    result = run("plan", "--json", env={"PREFLIGHT_FIRST_CONTACT": "pending"})

    assert 0 == result.code, str(result)
    assert [["t"], ["t"], ["t"], []] == [
        [item["table"] for item in step["locks"]] for step in result.json()["statements"]
    ]


NOWHERE = """
DROP FUNCTION IF EXISTS f(mood) CASCADE
DROP FUNCTION IF EXISTS f(app.mood) CASCADE
DROP FUNCTION IF EXISTS f(t.id%TYPE) CASCADE
DROP AGGREGATE IF EXISTS app.ag(app.mood) CASCADE
DO $$ BEGIN DROP FUNCTION IF EXISTS f("Mood") CASCADE; END $$
DROP TYPE IF EXISTS app.mood CASCADE
DROP TABLE a.b.c.d
DROP TABLE IF EXISTS other.public.t CASCADE
TRUNCATE app.x CASCADE
COMMENT ON COLUMN other.public.t.id IS 'x'
DROP INDEX a.b.c.d
DROP SCHEMA IF EXISTS "中" CASCADE
DROP TABLE "中" CASCADE
ALTER TABLE t ADD COLUMN n int
"""


def test_name_that_means_nothing_on_the_server_does_not_stop_a_plan(
    any_server: servers.Server, run: Run, migrations: WriteMigrations
) -> None:
    """An earlier file may make it, or the statement may pass over it; of the rest it tells all."""
    migrations({"001_a.sql": ";\n".join(NOWHERE.strip().splitlines()) + ";"})
    with any_server.connect() as session:
        session.execute(
            "CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        )
    database = servers.Database(any_server, "latin")
    database.script("CREATE TABLE t (id int)")

    result = run("plan", "--json", env=database.env() | {"PREFLIGHT_FIRST_CONTACT": "pending"})
    with any_server.connect() as session:
        session.execute("DROP DATABASE latin")

    assert 0 == result.code, str(result)
    assert (14, "t", "ACCESS EXCLUSIVE") == locked(result)[-1]
    assert [False] * 14 == [step["unknown"] for step in result.json()["statements"]]


def test_name_that_the_role_may_not_look_up_makes_its_statement_unknown(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """What the text says is told all the same."""
    role = database.limited(-1, "public")
    database.script(
        "CREATE SCHEMA app CREATE TABLE t (id int); REVOKE ALL ON SCHEMA app FROM PUBLIC"
    )
    migrations({"001_a.sql": "ALTER TABLE app.t ADD COLUMN n int; CREATE INDEX ON app.t (n);"})

    env = database.env(role, "x") | {"PREFLIGHT_FIRST_CONTACT": "pending"}
    result = run("plan", "--json", env=env)
    database.script(f"DROP OWNED BY {role}; DROP ROLE {role}")

    assert 0 == result.code, str(result)
    assert [(1, "app.t", "ACCESS EXCLUSIVE"), (1, "app.t", "SHARE")] == locked(result)
    assert [True, True] == [step["unknown"] for step in result.json()["statements"]]


def test_names_are_meant_as_the_file_sets_its_path_and_role(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Each table has one partition, which tells it; where only the run knows, it is unknown."""
    role = f"{database.name}_owner"
    tables = {"public": "", "app": "", role: ""}
    database.script(
        f"CREATE ROLE {role};"
        + "".join(
            f"CREATE SCHEMA IF NOT EXISTS {schema}; CREATE TABLE {schema}.t (id int) PARTITION BY"
            f" LIST (id); CREATE TABLE {schema}.of_{schema} PARTITION OF {schema}.t DEFAULT;"
            for schema in tables
        )
        + f"GRANT ALL ON SCHEMA {role}, app, public TO {role}"
    )
    said = {
        "LOCK t": "of_public",
        "SET search_path TO app, public; LOCK t": "of_app",
        "SET LOCAL search_path = app; RESET search_path; LOCK t": "of_public",
        "SET SCHEMA 'app'; LOCK t": "of_app",
        "-- preflight: no-transaction\nSET LOCAL search_path = app; LOCK t": "of_public",
        f"SET ROLE {role}; LOCK t": f"of_{role}",
        f"SET ROLE {role}; SET ROLE NONE; LOCK t": "of_public",
        f"SET SESSION AUTHORIZATION {role}; LOCK t": f"of_{role}",
        f"SET search_path = '$user'; SET ROLE {role}; LOCK t": f"of_{role}",
        "SELECT set_config('search_path', 'app', true); LOCK t": None,
        "DO $$ BEGIN EXECUTE 'SET search_path TO app'; LOCK t; END $$": None,
        "CREATE ROLE made; SET ROLE made; LOCK t": None,
        "SELECT set_config('search_path', '', true); LOCK public.t": "public.of_public",
        "CREATE TABLE t (); SET search_path = app; LOCK t": "of_app",
    }
    migrations({f"{i:03d}_s.sql": f"{text};" for i, text in enumerate(said, 1)})

    result = run("plan", "--json", env={"PREFLIGHT_FIRST_CONTACT": "pending"})
    database.script(f"DROP OWNED BY {role} CASCADE; DROP SCHEMA {role} CASCADE; DROP ROLE {role}")

    assert 0 == result.code, str(result)
    last = {step["migration"]: step for step in result.json()["statements"]}
    found = [None if step["unknown"] else step["locks"][-1]["table"] for step in last.values()]
    expected = [each and each.removeprefix("public.") for each in said.values()]
    assert dict(zip(said, expected, strict=True)) == dict(zip(said, found, strict=True))
    assert all(step["locks"] for step in last.values())


def test_what_names_meant_last_is_told_where_only_the_run_knows(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Partitions, who is in the way and what goes along: more than it may be, and not less."""
    database.script(
        "CREATE TABLE parts (id int) PARTITION BY LIST (id); CREATE TABLE one PARTITION OF parts"
        " DEFAULT; CREATE TABLE t (id int PRIMARY KEY);"
        "CREATE TABLE kids (id int REFERENCES t ON DELETE CASCADE)"
    )
    steps = "LOCK parts; DELETE FROM t WHERE id = 1;"
    opened = ["SELECT set_config('search_path', current_user, true);", "SET ROLE nobody_yet;"]
    texts = [steps, *(f"{first} {steps}" for first in opened)]
    migrations({f"{i:03d}_s.sql": text for i, text in enumerate(texts, 1)})

    with psycopg.connect(database.conninfo()) as reader:
        reader.execute("SELECT * FROM parts")
        pid = reader.info.backend_pid
        result = run("plan", "--json", env={"PREFLIGHT_FIRST_CONTACT": "pending"})

    assert 0 == result.code, str(result)
    found: dict[str, list[object]] = {}
    unknown: dict[str, set[bool]] = {}
    for step in result.json()["statements"]:
        if step["locks"]:
            told = (step["locks"], step["destroys"], [who["pid"] for who in step["blocked_by"]])
            found.setdefault(step["migration"], []).append(told)
            unknown.setdefault(step["migration"], set()).add(step["unknown"])
    (known, *others) = found.values()
    assert [known, known] == others
    assert ["rows of t, rows of kids", [pid]] == [known[1][1], known[0][2]]  # type: ignore[index]
    assert [{False}, {True}, {True}] == list(unknown.values())


VIEWS = """
CREATE TABLE t (id int PRIMARY KEY, n int);
CREATE TABLE c (id int REFERENCES t ON DELETE CASCADE ON UPDATE CASCADE); CREATE TABLE o (id int);
CREATE VIEW v AS SELECT n, id AS k FROM t WHERE id NOT IN (SELECT id FROM o);
CREATE VIEW w AS SELECT k AS key, n FROM v;
CREATE TABLE p (id int) PARTITION BY LIST (id); CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);
CREATE VIEW pv AS SELECT * FROM p; CREATE VIEW joined AS SELECT t.id FROM t, o;
CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE VIEW i AS SELECT * FROM t; CREATE VIEW below AS SELECT * FROM i;
CREATE TRIGGER f INSTEAD OF INSERT OR DELETE ON i FOR EACH ROW EXECUTE FUNCTION f();
CREATE TABLE r (id int); CREATE RULE r AS ON INSERT TO r DO INSTEAD DELETE FROM t;
CREATE VIEW rv AS SELECT * FROM r;
INSERT INTO t VALUES (1, 1), (2, 2), (3, 3); INSERT INTO c VALUES (1), (2), (3);
"""
GONE = "rows of t, rows of c"
BEHIND: dict[str, str | None] = {  # a statement, and what it destroys
    "DELETE FROM v WHERE k = 1": f"rows of v, {GONE}",
    "DELETE FROM w": f"all rows of w, {GONE}",
    "WITH x AS (DELETE FROM w RETURNING *) SELECT * FROM x": f"rows of w, {GONE}",
    "DO $$ BEGIN DELETE FROM w; END $$": f"all rows of w, {GONE}",
    "EXPLAIN DELETE FROM w": None,
    "UPDATE w SET key = 9 WHERE key = 2": None,
    "UPDATE w SET n = 9 WHERE key = 3": None,
    "INSERT INTO w VALUES (4)": None,
    "INSERT INTO pv VALUES (1)": None,
    "DELETE FROM pv": "all rows of pv, rows of p",
    "UPDATE i SET n = 1 WHERE id = 9": None,
    "DELETE FROM rv WHERE id = 9": "rows of rv, rows of r",
    "UPDATE r SET id = 1 WHERE id = 9": None,
    "LOCK TABLE w IN SHARE MODE": None,
    "LOCK TABLE pv IN SHARE MODE": None,
    "SELECT * FROM w": None,
    "SELECT * FROM joined, pv": None,
    "INSERT INTO o SELECT key FROM w": None,
    "COPY (SELECT * FROM w) TO '/dev/null'": None,
    "DROP VIEW w": None,
    "CREATE OR REPLACE VIEW w AS SELECT k AS key, n FROM v": None,
}


def test_what_is_behind_a_view_is_locked_and_destroyed_with_it(
    run: Run,
    database: servers.Database,
    connection: psycopg.Connection,
    migrations: WriteMigrations,
) -> None:
    """Each statement, run in a transaction, holds what the plan says: near, far, by cascade."""
    database.script(VIEWS)
    migrations({f"{i:03d}_s.sql": f"{text};" for i, text in enumerate(BEHIND, 1)})

    result = run("plan", "--json", env={"PREFLIGHT_FIRST_CONTACT": "pending"})

    assert 0 == result.code, str(result)
    steps = dict(zip(BEHIND, result.json()["statements"], strict=True))
    names: dict[int, str] = dict(connection.execute(NAMES).fetchall())
    wrong = {}
    for statement, step in steps.items():
        connection.execute("BEGIN")
        connection.execute(statement.encode())
        held = connection.execute(HELD, [connection.info.backend_pid]).fetchall()
        connection.execute("ROLLBACK")
        said = {lock["table"]: lock["mode"] for lock in step["locks"]}
        if (real := strongest(held, names)) != said:
            wrong[statement] = {"real": real, "said": said}
    assert {} == wrong
    assert BEHIND == {statement: step["destroys"] for statement, step in steps.items()}
    assert not [step for step in steps.values() if step["unknown"]]


def test_who_holds_the_table_behind_a_view_is_in_the_way(
    run: Run,
    database: servers.Database,
    connection: psycopg.Connection,
    migrations: WriteMigrations,
) -> None:
    """Of a change through two views, and of the rows that go with its rows."""
    database.script(VIEWS)
    migrations({"001_a.sql": "DELETE FROM w;"})
    pid = connection.info.backend_pid
    found = []

    for table in ("t", "c", "o"):
        connection.execute(f"BEGIN; LOCK TABLE {table} IN SHARE MODE")
        result = run("plan", "--json", env={"PREFLIGHT_FIRST_CONTACT": "pending"})
        found.append([each["pid"] for each in result.json()["statements"][0]["blocked_by"]])
        connection.execute("ROLLBACK")

    assert [[pid], [pid], []] == found


def test_what_is_behind_a_view_is_told_where_the_role_may_not_look_into_its_schema(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """The view's rights are enough for its rows; of another table with that name nothing is."""
    role = database.limited(-1, "public")
    database.script(
        'CREATE SCHEMA "Hid"; CREATE TABLE "Hid".t (id int PRIMARY KEY); CREATE TABLE t (id int);'
        'CREATE TABLE "Hid".c (id int REFERENCES "Hid".t ON DELETE CASCADE);'
        f'CREATE VIEW v AS SELECT id FROM "Hid".t; GRANT DELETE ON v TO {role}'
    )
    migrations({"001_a.sql": "DELETE FROM v;"})

    env = database.env(role, "x") | {"PREFLIGHT_FIRST_CONTACT": "pending"}
    result = run("plan", "--json", env=env)
    database.script(f"DROP OWNED BY {role}; DROP ROLE {role}")

    assert 0 == result.code, str(result)
    (step,) = result.json()["statements"]
    expected = ('all rows of v, rows of "Hid".t, rows of "Hid".c', False)
    assert expected == (step["destroys"], step["unknown"])


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO r VALUES (1)",
        "INSERT INTO rv VALUES (1)",
        "DELETE FROM i",
        "DELETE FROM below WHERE id = 1",
        "COPY i FROM stdin;\n1\t1\n\\.\n",
        "DO $$ BEGIN INSERT INTO r VALUES (1); END $$",
        "CREATE VIEW n AS SELECT * FROM t; DELETE FROM n",
        "CREATE RULE x AS ON UPDATE TO o DO ALSO DELETE FROM t; UPDATE o SET id = 1",
        "DELETE FROM w; CREATE OR REPLACE VIEW v AS SELECT id AS n, id AS k FROM o; DELETE FROM w",
        "DO $$ BEGIN CREATE OR REPLACE VIEW v AS SELECT id, id AS k FROM o; DELETE FROM w; END $$",
        "ALTER VIEW w RENAME TO x; DELETE FROM x",
        "ALTER TABLE w RENAME TO x; DELETE FROM x",
        "CREATE SCHEMA y; ALTER VIEW w SET SCHEMA y; DELETE FROM y.w",
        "CREATE SCHEMA y; ALTER TABLE o SET SCHEMA y; DROP SCHEMA y CASCADE",
        "ALTER TABLE o ADD t_id int REFERENCES t; TRUNCATE t CASCADE",
        "ALTER TABLE o ADD t_id int REFERENCES t ON DELETE CASCADE; DELETE FROM t WHERE id = 1",
    ],
)
def test_what_takes_a_change_over_makes_it_unknown(
    run: Run, database: servers.Database, migrations: WriteMigrations, statement: str
) -> None:
    """A rule, a trigger, or what only a file makes a view, or moves: nobody knows what goes."""
    database.script(VIEWS)
    migrations({"001_a.sql": statement if statement.endswith("\n") else f"{statement};"})

    result = run("plan", "--json", env={"PREFLIGHT_FIRST_CONTACT": "pending"})

    assert 0 == result.code, str(result)
    assert result.json()["statements"][-1]["unknown"]


@pytest.mark.parametrize("name", ["p", "v"])
def test_plan_asks_about_a_table_once_however_often_it_is_named(
    run: Run, database: servers.Database, migrations: WriteMigrations, name: str
) -> None:
    """And about all its partitions together: it stands in one transaction meanwhile."""
    database.script(
        f"ALTER DATABASE {database.name} SET log_statement = 'all';"
        "CREATE TABLE p (id int, n int) PARTITION BY RANGE (id); CREATE VIEW v AS SELECT * FROM p"
    )
    log = database.server.log

    def messages(updates: int, partitions: range) -> int:
        database.script(
            "".join(
                f"CREATE TABLE p{i} PARTITION OF p FOR VALUES FROM ({i}) TO ({i + 1});"
                for i in partitions
            )
        )
        lines = [f"UPDATE {name} SET n = {i} WHERE id = {i};" for i in range(updates)]
        migrations({"001_a.sql": "\n".join(lines)})
        before = log.stat().st_size
        result = run("plan", "--json", env={"PREFLIGHT_FIRST_CONTACT": "pending"})
        assert 0 == result.code, str(result)
        named = 1 + (name == "v")
        assert {named + partitions.stop} == {
            len(step["locks"]) for step in result.json()["statements"]
        }
        return len(re.findall(rb"LOG:  (?:statement|execute [^:]*):", log.read_bytes()[before:]))

    assert messages(2, range(2)) == messages(9, range(2, 8))


def test_what_goes_by_cascade_is_told_as_what_it_is(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Views as views, no index, and nothing where the server refuses or makes it anew."""
    database.script(
        "CREATE TABLE a (id int PRIMARY KEY, u text CONSTRAINT a_u UNIQUE, n int,"
        " g int GENERATED ALWAYS AS (n + 1) STORED);"
        'CREATE VIEW v AS SELECT u FROM a; CREATE VIEW "V 2" AS SELECT * FROM v;'
        "CREATE MATERIALIZED VIEW m AS SELECT u FROM v; CREATE TYPE mood AS ENUM ('a');"
        "CREATE TABLE t (m mood); CREATE INDEX t_m ON t (m);"
        "CREATE SCHEMA s CREATE VIEW w AS SELECT 1 AS one;"
        "CREATE TABLE p (k int, n int) PARTITION BY LIST (k); CREATE TABLE p1 PARTITION OF p"
        " DEFAULT PARTITION BY LIST (k); CREATE TABLE p2 PARTITION OF p1 DEFAULT;"
        "CREATE VIEW of_p2 AS SELECT n FROM p2; CREATE TABLE base (n int, o int);"
        "CREATE TABLE heir (n int) INHERITS (base); CREATE VIEW of_heir AS SELECT n, o FROM heir"
    )
    views = 'view v, view "V 2", materialized view m'
    gone = {
        "ALTER TABLE a DROP CONSTRAINT a_u": None,
        "DROP TABLE a CASCADE": f"table a and all that depends on it, {views}",
        "ALTER TABLE a DROP COLUMN u CASCADE": f"column a.u, {views}",
        "ALTER TABLE a DROP COLUMN n CASCADE": "column a.n, column a.g",
        "ALTER TABLE a ALTER COLUMN u TYPE varchar(9)": "old values of a.u",
        "DROP TYPE mood CASCADE": "type mood and all that depends on it, column t.m",
        "DROP SCHEMA s CASCADE": "schema s and all that depends on it, view s.w",
        "ALTER TABLE p DROP COLUMN n CASCADE": "column p.n, view of_p2",
        "ALTER TABLE base DROP COLUMN n CASCADE": "column base.n",  # heir has one of its own
        "ALTER TABLE base DROP COLUMN o CASCADE": "column base.o, view of_heir",
    }
    migrations({f"{i:03d}_s.sql": text + ";" for i, text in enumerate(gone, 1)})

    result = run("plan", "--json", env={"PREFLIGHT_FIRST_CONTACT": "pending"})

    assert 0 == result.code, str(result)
    found = [step["destroys"] for step in result.json()["statements"]]
    assert gone == dict(zip(gone, found, strict=True))


def test_rows_of_a_table_that_the_file_has_made_are_nobodys(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Temporary or not; not one that was there, nor one that has got the name of such a table."""
    database.script("CREATE TABLE a (id int); CREATE TABLE there (id int);")
    said = {
        "CREATE TEMP TABLE made AS SELECT 1 AS id": None,
        "DELETE FROM made": None,
        "UPDATE made SET id = 2": None,
        "ALTER TABLE made DROP COLUMN id": None,
        "DO $$ BEGIN DELETE FROM made; END $$": None,
        "DELETE FROM a": "all rows of a",
        "TRUNCATE made, a": "all rows of made, a",
        "ALTER TABLE made RENAME TO mine": None,
        "DROP TABLE mine CASCADE": None,
        "ALTER TABLE a RENAME TO mine": None,
        "DROP TABLE mine": "table mine",
        "CREATE TABLE IF NOT EXISTS there (id int)": None,
        "DROP TABLE there": "table there",
    }
    migrations({"001_a.sql": ";\n".join(said) + ";", "001_a_rollback.sql": "SELECT 1;"})

    result = run("plan", "--json", env={"PREFLIGHT_FIRST_CONTACT": "pending"})
    remarks = run("lint", "--json").json()["files"][0]["remarks"]

    assert 0 == result.code, str(result)
    found = [step["destroys"] for step in result.json()["statements"]]
    assert said == dict(zip(said, found, strict=True))
    lines = [str(i) for i, lost in enumerate(said.values(), 1) if lost]
    assert lines == [each.split()[1] for each in remarks if " destroys " in each]


@pytest.mark.parametrize(
    ("statement", "table"),
    [
        ("WITH x AS (DELETE FROM a RETURNING *) INSERT INTO b SELECT * FROM x", "a"),
        ("WITH x AS (DELETE FROM a RETURNING *) UPDATE b SET n = 1 WHERE id = 1", "a"),
        ("CREATE TABLE n AS WITH x AS (DELETE FROM a RETURNING *) SELECT * FROM x", "a"),
        ("COPY (DELETE FROM a RETURNING *) TO STDOUT", "a"),
        ("MERGE INTO a USING b ON a.id = b.id WHEN MATCHED THEN DELETE", "a"),
        ("WITH x AS (SELECT 1) SELECT * FROM x", None),
        ("MERGE INTO a USING b ON a.id = b.id WHEN MATCHED THEN DO NOTHING", None),
    ],
)
def test_rows_that_a_statement_deletes_on_the_way_are_destroyed(
    statement: str, table: str | None
) -> None:
    """In a WITH, inside a COPY, as an action of MERGE; and the table is locked for it."""
    effect = effects.of(statement.encode())

    assert (f"rows of {table}" if table else None) == effect.destroys
    assert not table or effects.Lock(table, effects.ROW_EXCLUSIVE) in effect.locks
