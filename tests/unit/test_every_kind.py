"""Every kind of statement that the grammar knows, before everything that judges a statement."""

from collections.abc import Callable

import pytest
from postgast import pg_query_pb2

from preflight.apply import indexes, resume, verify
from preflight.files import effects, kinds, lasting, named, parser, reach
from preflight.files.migrations import Script
from preflight.rehearsal import some_rows

# at least one a kind; those whose parts differ from what others of their kind have come twice
STATEMENTS = """
INSERT INTO t SELECT * FROM u ON CONFLICT (a) DO UPDATE SET a = 1 RETURNING *
INSERT INTO t DEFAULT VALUES
DELETE FROM t USING u WHERE t.a = u.a
UPDATE s.t SET (a, b) = (SELECT 1, 2) FROM u
UPDATE t SET a = 1 WHERE CURRENT OF c
MERGE INTO t USING u ON t.a = u.a WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN DO NOTHING
SELECT
SELECT 1 INTO t
SELECT 'x'::text AS "check", set_config('a.b', 'c', true) FROM t, LATERAL f(t) WHERE a = $1
SELECT set_config()
SELECT format(), pg_advisory_lock(), 'SELECT 1', 's.t'::regclass
WITH x AS (DELETE FROM t RETURNING a) TABLE x UNION ALL (VALUES (1) ORDER BY 1 FOR UPDATE)
SELECT * FROM JSON_TABLE('{}', '$' COLUMNS (a int)), XMLTABLE('/' PASSING '<a/>' COLUMNS a int)
CREATE SCHEMA s CREATE TABLE t (a int) CREATE VIEW v AS SELECT 1
CREATE SCHEMA AUTHORIZATION CURRENT_USER
ALTER TABLE t ADD a int, DROP COLUMN IF EXISTS b CASCADE, ALTER c TYPE text USING c::text
ALTER TABLE ONLY t ADD CONSTRAINT k FOREIGN KEY (a) REFERENCES u, DROP CONSTRAINT l
ALTER TABLE t ADD PRIMARY KEY USING INDEX i, OWNER TO CURRENT_USER, SET LOGGED
ALTER TABLE t REPLICA IDENTITY USING INDEX i, INHERIT u, NO INHERIT v, SET (fillfactor = 10)
ALTER TABLE t ATTACH PARTITION p FOR VALUES IN (1)
ALTER TABLE t DETACH PARTITION p CONCURRENTLY
ALTER TABLE t ENABLE TRIGGER ALL, ALTER a ADD GENERATED ALWAYS AS IDENTITY, ALTER b RESTART
ALTER TYPE t ADD ATTRIBUTE a int
ALTER INDEX i ATTACH PARTITION j
ALTER VIEW v ALTER a SET DEFAULT 1
ALTER SEQUENCE q OWNER TO o
ALTER COLLATION c REFRESH VERSION
ALTER DOMAIN d ADD CHECK (value > 0)
ALTER DOMAIN d DROP DEFAULT
GRANT SELECT (a) ON t TO PUBLIC WITH GRANT OPTION
GRANT ALL ON ALL TABLES IN SCHEMA s TO CURRENT_ROLE
GRANT SET ON PARAMETER a.b TO o
REVOKE ALL ON LARGE OBJECT 1 FROM o
GRANT o TO p WITH ADMIN OPTION
ALTER DEFAULT PRIVILEGES IN SCHEMA s GRANT SELECT ON TABLES TO o
COPY t (a) FROM PROGRAM 'x' WITH (FORMAT csv)
COPY (DELETE FROM t RETURNING *) TO STDOUT
COPY t TO '/f'
SET search_path = a, 'b'
SET search_path TO DEFAULT
SET LOCAL lock_timeout = 1
SET TRANSACTION ISOLATION LEVEL SERIALIZABLE
SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY
SET TRANSACTION SNAPSHOT 'x'
SET TIME ZONE INTERVAL '1' HOUR TO MINUTE
SET a.b = 1
RESET ALL
SHOW ALL
CREATE TABLE s.t (LIKE u INCLUDING ALL, a int REFERENCES v CHECK (a > 0), EXCLUDE (a WITH =))
CREATE TEMP TABLE t () INHERITS (u) ON COMMIT DROP
CREATE TABLE t PARTITION OF u DEFAULT PARTITION BY HASH (a)
CREATE TABLE t OF y (PRIMARY KEY (a))
CREATE TABLESPACE p LOCATION '/p'
DROP TABLESPACE IF EXISTS p
ALTER TABLESPACE p SET (random_page_cost = 1)
ALTER TABLE ALL IN TABLESPACE p SET TABLESPACE q NOWAIT
CREATE EXTENSION IF NOT EXISTS e SCHEMA s VERSION '1' CASCADE
ALTER EXTENSION e UPDATE
ALTER EXTENSION e ADD FUNCTION f(int)
ALTER EXTENSION e DROP SCHEMA s
CREATE FOREIGN DATA WRAPPER w HANDLER h NO VALIDATOR OPTIONS (a 'b')
ALTER FOREIGN DATA WRAPPER w NO HANDLER OPTIONS (DROP a)
CREATE SERVER r FOREIGN DATA WRAPPER w OPTIONS (host 'x')
ALTER SERVER r VERSION '2'
CREATE FOREIGN TABLE t (a int OPTIONS (b 'c')) SERVER r
CREATE USER MAPPING FOR PUBLIC SERVER r
ALTER USER MAPPING FOR USER SERVER r OPTIONS (SET a 'b')
DROP USER MAPPING IF EXISTS FOR o SERVER r
IMPORT FOREIGN SCHEMA s LIMIT TO (t) FROM SERVER r INTO u
CREATE POLICY p ON t USING (true)
ALTER POLICY p ON t TO PUBLIC
CREATE ACCESS METHOD m TYPE TABLE HANDLER h
CREATE TRIGGER g BEFORE UPDATE OF a ON t FOR EACH ROW WHEN (OLD.a > 0) EXECUTE FUNCTION f('x')
CREATE CONSTRAINT TRIGGER g AFTER INSERT ON t FROM u DEFERRABLE FOR EACH ROW EXECUTE FUNCTION s.f()
CREATE EVENT TRIGGER g ON ddl_command_end WHEN TAG IN ('DROP TABLE') EXECUTE FUNCTION f()
ALTER EVENT TRIGGER g DISABLE
CREATE TRUSTED LANGUAGE l HANDLER h
CREATE ROLE o LOGIN PASSWORD 'x' IN ROLE p
ALTER ROLE o VALID UNTIL 'infinity'
ALTER ROLE ALL IN DATABASE d SET search_path = a
ALTER USER CURRENT_USER RESET ALL
DROP ROLE IF EXISTS o, CURRENT_USER
CREATE SEQUENCE pg_temp.q OWNED BY t.a
ALTER SEQUENCE q RESTART
CREATE AGGREGATE a (int) (sfunc = f, stype = int)
CREATE OPERATOR s.+ (leftarg = int, rightarg = int, function = f)
CREATE TYPE y
CREATE TYPE pg_temp.y (input = f, output = g)
CREATE TEXT SEARCH DICTIONARY d (template = simple)
CREATE COLLATION IF NOT EXISTS c FROM "C"
CREATE DOMAIN pg_temp.d AS int CHECK (value > 0)
CREATE OPERATOR CLASS o DEFAULT FOR TYPE int USING btree AS OPERATOR 1 <, FUNCTION 1 f(int, int)
CREATE OPERATOR FAMILY o USING btree
ALTER OPERATOR FAMILY o USING btree DROP OPERATOR 1 (int, int)
DROP TABLE s.t, u CASCADE
DROP FUNCTION IF EXISTS f, s.g(int, OUT text)
DROP AGGREGATE a(*), b(int ORDER BY text)
DROP OPERATOR + (NONE, int)
DROP OPERATOR CLASS o USING btree
DROP TYPE s.y, int[]
DROP CAST (int AS text)
DROP TRANSFORM FOR int LANGUAGE l
DROP TRIGGER g ON s.t
DROP INDEX CONCURRENTLY s.i
DROP SCHEMA s, u
DROP EXTENSION e
DROP ACCESS METHOD m
DROP PUBLICATION p
TRUNCATE t, ONLY u RESTART IDENTITY CASCADE
COMMENT ON COLUMN s.t.a IS 'x'
COMMENT ON TRIGGER g ON t IS NULL
COMMENT ON DATABASE d IS 'x'
COMMENT ON LARGE OBJECT 1 IS 'x'
COMMENT ON FUNCTION f(int) IS 'x'
COMMENT ON CAST (int AS text) IS 'x'
COMMENT ON CONSTRAINT k ON DOMAIN d IS 'x'
COMMENT ON TYPE y IS 'x'
SECURITY LABEL ON ROLE o IS 'x'
DECLARE c CURSOR FOR SELECT 1
DECLARE c BINARY SCROLL CURSOR WITH HOLD FOR TABLE t
CLOSE ALL
FETCH BACKWARD ALL FROM c
MOVE 1 IN c
CREATE INDEX ON t (lower(a), (b) DESC) INCLUDE (c) WHERE a > 0
CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS i ON s.t USING gin (a s.ops (b = 1))
CREATE STATISTICS (ndistinct) ON a, (b + 1) FROM t
ALTER STATISTICS x SET STATISTICS 1
CREATE FUNCTION f() RETURNS int RETURN 3
CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC END
CREATE PROCEDURE s.p(a int, INOUT b text DEFAULT 'x') BEGIN ATOMIC INSERT INTO t VALUES (a); END
CREATE FUNCTION f() RETURNS TABLE (a int) LANGUAGE sql SET search_path = s AS $$ SELECT 1 $$
CREATE FUNCTION f() RETURNS int LANGUAGE c AS 'library', 'symbol'
CREATE FUNCTION f() RETURNS int LANGUAGE plpython3u AS 'return 3'
CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS ''
CREATE FUNCTION f() RETURNS int
ALTER FUNCTION f(int) RESET ALL
DO $$ BEGIN EXECUTE format('DROP TABLE %I', a) USING b; END $$
DO LANGUAGE plperl 'x'
DO ''
CALL s.p(1, b => 2)
ALTER TABLE t RENAME a TO b
ALTER SCHEMA s RENAME TO u
ALTER DOMAIN d RENAME CONSTRAINT a TO b
ALTER FUNCTION f(int) RENAME TO g
ALTER ROLE o RENAME TO p
ALTER INDEX i DEPENDS ON EXTENSION e
ALTER TABLE t SET SCHEMA s
ALTER AGGREGATE a(int) SET SCHEMA s
ALTER EXTENSION e SET SCHEMA s
ALTER FUNCTION f OWNER TO o
ALTER DATABASE d OWNER TO o
ALTER LARGE OBJECT 1 OWNER TO o
ALTER OPERATOR + (int, int) SET (RESTRICT = NONE)
ALTER TYPE y SET (send = f)
CREATE RULE r AS ON INSERT TO t DO INSTEAD (INSERT INTO u VALUES (1); NOTIFY x)
CREATE RULE r AS ON DELETE TO t DO NOTHING
NOTIFY x, 'y'
LISTEN x
UNLISTEN *
BEGIN ISOLATION LEVEL SERIALIZABLE, READ ONLY
COMMIT AND CHAIN
ROLLBACK TO SAVEPOINT x
PREPARE TRANSACTION 'x'
COMMIT PREPARED 'x'
CREATE TYPE s.y AS (a int, b text)
CREATE TYPE s.y AS ENUM ('a')
CREATE TYPE s.y AS RANGE (subtype = int)
ALTER TYPE y ADD VALUE 'b' AFTER 'a'
CREATE OR REPLACE RECURSIVE VIEW v (a) AS SELECT 1 UNION SELECT a FROM v
LOAD 'x'
CREATE DATABASE d TEMPLATE template0 ENCODING 6
ALTER DATABASE d SET TABLESPACE p
ALTER DATABASE d CONNECTION LIMIT 1
ALTER DATABASE d REFRESH COLLATION VERSION
ALTER DATABASE d SET search_path = s
DROP DATABASE IF EXISTS d WITH (FORCE)
ALTER SYSTEM RESET ALL
CLUSTER
CLUSTER VERBOSE t USING i
VACUUM
VACUUM (FULL, PARALLEL 2) t (a), u
ANALYZE t
EXPLAIN (ANALYZE, BUFFERS off) DELETE FROM t
EXPLAIN VERBOSE EXECUTE p(1)
CREATE TABLE t AS EXECUTE p WITH NO DATA
CREATE TEMP TABLE t ON COMMIT DROP AS SELECT 1
CREATE MATERIALIZED VIEW v AS SELECT 1 WITH NO DATA
REFRESH MATERIALIZED VIEW CONCURRENTLY v
CHECKPOINT
DISCARD ALL
DISCARD TEMP
LOCK TABLE ONLY t, u IN SHARE MODE NOWAIT
SET CONSTRAINTS ALL DEFERRED
SET CONSTRAINTS s.k IMMEDIATE
REINDEX TABLE CONCURRENTLY t
REINDEX (VERBOSE) DATABASE d
REINDEX SCHEMA s
CREATE DEFAULT CONVERSION c FOR 'UTF8' TO 'LATIN1' FROM f
CREATE CAST (int AS s.y) WITHOUT FUNCTION AS IMPLICIT
CREATE CAST (int AS text) WITH FUNCTION f(int)
CREATE TRANSFORM FOR int LANGUAGE l (FROM SQL WITH FUNCTION f(internal))
PREPARE p (int) AS UPDATE t SET a = $1
EXECUTE p(1, 'x')
DEALLOCATE ALL
DROP OWNED BY CURRENT_USER CASCADE
REASSIGN OWNED BY o TO CURRENT_USER
ALTER TEXT SEARCH DICTIONARY d (a = 'b')
ALTER TEXT SEARCH CONFIGURATION c DROP MAPPING FOR word
CREATE PUBLICATION p FOR TABLE t (a) WHERE (a > 0), TABLES IN SCHEMA s, CURRENT_SCHEMA
CREATE PUBLICATION p FOR ALL TABLES
ALTER PUBLICATION p SET (publish = 'insert')
CREATE SUBSCRIPTION p CONNECTION 'x' PUBLICATION q WITH (connect = false)
ALTER SUBSCRIPTION p REFRESH PUBLICATION
DROP SUBSCRIPTION p
""".strip().splitlines()
# never a statement by itself: what stands around or inside one
PARTS = {"raw_stmt", "set_operation_stmt", "return_stmt", "plassign_stmt", "replica_identity_stmt"}
SERVER = reach.Bounds(foreign=("t",), server=True)


def _tables(text: bytes) -> object:
    node = parser.parsed(text)
    return effects.named_tables(node) if node else None


JUDGES: dict[str, Callable[[bytes], object]] = {
    "what it reaches beyond its database": reach.beyond,
    "what it reaches beyond a server thrown away": lambda text: reach.beyond(text, SERVER),
    "what it does": lambda text: (effects.of(text), effects.matters(effects.of(text))),
    "its tables": _tables,
    "what it leaves": lambda text: lasting.left(text, {"f": "x", "t": "y"}),
    "what it leaves in a file": lambda text: lasting.refused(
        Script("x", text, "", transactional=False)
    ),
    "its locks": lasting.locks,
    "in a transaction": kinds.outside_transaction,
    "control": lambda text: (kinds.is_control(text), kinds.reads_only(text)),
    "queues": kinds.queues_nobody,
    "lock_timeout": kinds.sets_lock_timeout,
    "partition": kinds.detached,
    "subscription": kinds.unsubscribed,
    "what it names": lambda text: [*named.names(text)],
    "its path": named.path_of,
    "its rows": lambda text: [*some_rows._read(text, some_rows.Said(), 0)],  # noqa: SLF001
    "its index": indexes.wanted,
    "its REINDEX": indexes.reindexed,
    "again": resume.repeatable,
    "its checks": verify.asks_more,
    "its grammar": parser.complaint,
}


def test_there_is_a_statement_of_every_kind() -> None:
    """Whatever the grammar has a kind for stands in the list, so that a new one is missed here."""
    known = {field.name for field in pg_query_pb2.Node.DESCRIPTOR.fields}
    parsed = {text: parser.parsed(text.encode()) for text in STATEMENTS}
    assert [text for text, node in parsed.items() if node is None] == []
    listed = {str(node.WhichOneof("node")) for node in parsed.values() if node}
    assert {kind for kind in known if kind.endswith("_stmt")} - PARTS == listed


@pytest.mark.parametrize("judge", JUDGES)
def test_no_judgement_fails_at_a_kind_of_statement(judge: str) -> None:
    """Each comes to an answer of its own, also of what stands in a block."""
    failed = {}
    for text in STATEMENTS:
        for each in (text, f"DO $x$ BEGIN {text}; END $x$"):
            try:
                answer = repr(JUDGES[judge](each.encode()))
            except Exception as error:  # noqa: BLE001 -- whichever it is
                answer = f"not understood: {error!r}"
            if "not understood" in answer:  # the way out of what may fail at once
                failed[each] = answer
    assert {} == failed


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        (None, "CREATE FUNCTION f() RETURNS int RETURN 3"),
        (None, "CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC END"),
        (None, "CREATE PROCEDURE p(a int) BEGIN ATOMIC INSERT INTO s.t VALUES (a); END"),
        (
            reach.Reach("calls pg_reload_conf, which reaches beyond the database"),
            "CREATE FUNCTION f() RETURNS bool RETURN pg_reload_conf()",
        ),
        (
            reach.Reach("changes pg_roles, which belongs to the whole server"),
            "DECLARE c CURSOR FOR WITH x AS (DELETE FROM pg_roles RETURNING 1) TABLE x",
        ),
    ],
)
def test_bodies_that_are_no_text_are_looked_at(expected: reach.Reach | None, text: str) -> None:
    """What stands in the tree itself reaches what it says, and nothing else."""
    assert expected == reach.beyond(text.encode())


def test_judgement_that_fails_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows then what a statement does, and it is no reason to end."""

    def fail(_: bytes, **__: object) -> None:
        raise RecursionError

    monkeypatch.setattr(parser, "parsed", fail)
    assert reach.Reach(reach._UNREAD, certain=False) == reach.beyond(b"GRANT a TO b")  # noqa: SLF001
    expected = effects.Effect("grant a to (not understood here)", unknown=True)
    assert expected == effects.of(b"GRANT a TO b")
