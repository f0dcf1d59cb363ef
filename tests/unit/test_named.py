"""What a statement names, by the parser's tree."""

import pytest

from preflight.files import named

IN_B = [
    "ALTER TABLE b.t ADD x int",
    "CREATE TABLE u (id int REFERENCES b.t)",
    "DROP TABLE u, b.t CASCADE",
    "DROP INDEX b.i",
    "DROP TRIGGER g ON b.t",
    "DROP FUNCTION b.f(int)",
    "DROP TYPE b.x",
    "DROP SCHEMA u, b",
    "CREATE SCHEMA b",
    "ALTER SCHEMA b RENAME TO c",
    "GRANT USAGE ON SCHEMA b TO x",
    "GRANT SELECT ON ALL TABLES IN SCHEMA b TO x",
    "ALTER DEFAULT PRIVILEGES IN SCHEMA b GRANT SELECT ON TABLES TO x",
    "ALTER TABLE t SET SCHEMA b",
    "ALTER TABLE t ALTER x TYPE b.mood",
    "ALTER TABLE t INHERIT b.t",
    "ALTER TYPE b.m ADD VALUE 'x'",
    "ALTER SEQUENCE s OWNED BY b.t.x",
    "CREATE TABLE p PARTITION OF b.t DEFAULT",
    "CREATE TRIGGER g BEFORE INSERT ON t EXECUTE FUNCTION b.f()",
    "CREATE INDEX i ON t USING gin (x b.ops)",
    "CREATE EXTENSION x SCHEMA b",
    "CREATE POLICY p ON t USING (EXISTS (SELECT FROM b.t))",
    "CREATE CAST (b.x AS int) WITH FUNCTION f(b.x)",
    "CREATE PUBLICATION p FOR TABLES IN SCHEMA b",
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT count(*) FROM b.t'",
    "COMMENT ON COLUMN b.t.x IS 'x'",
    "COMMENT ON SCHEMA b IS 'x'",
    "REINDEX SCHEMA b",
    "IMPORT FOREIGN SCHEMA r FROM SERVER s INTO b",
    "SELECT 1 OPERATOR(b.+) 2",
    "SELECT x COLLATE b.c FROM t",
    "SELECT to_regclass('b.t')",
    "SELECT true FROM information_schema.tables WHERE table_schema = 'b'",
    "DO $$ BEGIN EXECUTE 'DROP TABLE b.z'; END $$",
    'TRUNCATE "b".t',
]
NOT_IN_B = [
    "SELECT b.id FROM t b",  # an alias
    "CREATE TABLE b (b int PRIMARY KEY, c int, UNIQUE (b, c))",
    "CREATE TYPE m AS ENUM ('b', 'c')",
    "INSERT INTO t (b, c) VALUES ('b', 1)",
    "COMMENT ON TABLE t IS 'see b.t'",
    "-- b.t\nSELECT 1",
    "ALTER TABLE t DROP COLUMN b",
]


@pytest.mark.parametrize("statement", IN_B)
def test_schema_is_found_wherever_a_statement_names_it(statement: str) -> None:
    """In names, rights, bodies and in the texts that catalogs are asked with."""
    assert "b" in {name.schema for name in named.names(statement.encode())}


@pytest.mark.parametrize("statement", NOT_IN_B)
def test_what_only_looks_like_a_schema_is_none(statement: str) -> None:
    """Aliases, columns, values and comments."""
    assert "b" not in {name.schema for name in named.names(statement.encode())}
