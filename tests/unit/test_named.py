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


# each kind of object whose name is more than a schema and a name, and each list that is no name
MEANT = {
    "COMMENT ON COLUMN t.x IS 'x'": {("", "t")},
    "COMMENT ON COLUMN d.b.t.x IS 'x'": {("b", "t")},
    "SECURITY LABEL ON COLUMN t.x IS 'x'": {("", "t")},
    "COMMENT ON CONSTRAINT c ON t IS 'x'": {("", "t")},
    "COMMENT ON CONSTRAINT c ON b.t IS 'x'": {("b", "t")},
    "COMMENT ON CONSTRAINT c ON DOMAIN m IS 'x'": {("", "m")},
    "COMMENT ON CONSTRAINT c ON DOMAIN b.m IS 'x'": {("b", "m")},
    "DROP TRIGGER g ON t": {("", "t")},
    "COMMENT ON TRIGGER g ON t IS 'x'": {("", "t")},
    "ALTER TRIGGER g ON t DEPENDS ON EXTENSION e": {("", "t")},
    "DROP POLICY p ON t": {("", "t")},
    "COMMENT ON POLICY p ON b.t IS 'x'": {("b", "t")},
    "DROP RULE r ON t": {("", "t")},
    "COMMENT ON RULE r ON t IS 'x'": {("", "t")},
    "CREATE SEQUENCE s OWNED BY t.x": {("", "s"), ("", "t")},
    "ALTER SEQUENCE s OWNED BY b.t.x": {("", "s"), ("b", "t")},
    "ALTER SEQUENCE s OWNED BY NONE": {("", "s")},
    "CREATE FUNCTION f(t.x%TYPE) RETURNS b.t.x%TYPE LANGUAGE sql": {
        ("", "f"), ("", "t"), ("b", "t")
    },
    "DROP OPERATOR CLASS c USING btree": set(),
    "DROP OPERATOR FAMILY b.c USING btree": {("b", "c")},
    "COMMENT ON OPERATOR FAMILY c USING btree IS 'x'": set(),
    "ALTER OPERATOR CLASS c USING btree OWNER TO o": set(),
    "ALTER OPERATOR CLASS c USING btree SET SCHEMA b": {("b", "")},
    "ALTER EXTENSION e ADD OPERATOR CLASS b.c USING btree": {("b", "c")},
    "ALTER EXTENSION e ADD CAST (b.x AS y)": {("b", "x"), ("", "y")},
    "DROP CAST (b.x AS y)": {("b", "x"), ("", "y")},
    "COMMENT ON TRANSFORM FOR b.x LANGUAGE l IS 'x'": {("b", "x")},
    "COMMENT ON LARGE OBJECT 1 IS 'x'": set(),
    "COMMENT ON AGGREGATE b.f(*) IS 'x'": {("b", "f")},
    "DROP TABLE d.b.t": {("b", "t")},
    "DROP TEXT SEARCH PARSER b.x": {("b", "x")},
    "DROP SCHEMA b, c": {("b", ""), ("c", "")},
    "DROP PUBLICATION b, c": set(),
    "DROP EXTENSION b, c": set(),
    "DROP SERVER b, c": set(),
    "DROP FOREIGN DATA WRAPPER b, c": set(),
    "DROP EVENT TRIGGER b, c": set(),
    "GRANT USAGE ON LANGUAGE b, c TO o": set(),
    "GRANT USAGE ON FOREIGN SERVER b, c TO o": set(),
    "GRANT USAGE ON TYPE b.x TO o": {("b", "x")},
    "ALTER DEFAULT PRIVILEGES IN SCHEMA b, c GRANT SELECT ON TABLES TO o": {("b", ""), ("c", "")},
    "ALTER TEXT SEARCH CONFIGURATION x ALTER MAPPING FOR b, c WITH b.y": {("b", "y")},
    "CREATE EVENT TRIGGER g ON sql_drop WHEN TAG IN ('b', 'c') EXECUTE FUNCTION f()": {("", "f")},
    "CREATE TRIGGER g AFTER INSERT ON t EXECUTE FUNCTION f('b', 'c')": {("", "t"), ("", "f")},
    "CREATE SUBSCRIPTION s CONNECTION '' PUBLICATION b, c": set(),
    "CREATE FUNCTION f() RETURNS b.x LANGUAGE c AS 'b', 'c' SUPPORT b.y": {
        ("", "f"), ("b", "x"), ("b", "y")
    },
    "CREATE VIEW v (b, c) AS SELECT 1, 2": {("", "v")},
    "WITH w (b, c) AS (SELECT 1, 2) TABLE t": {("", "t")},
    "VACUUM t (b, c)": {("", "t")},
    "COPY t TO STDOUT (FORMAT csv, FORCE_QUOTE (b, c))": {("", "t")},
    "CREATE COLLATION x FROM b.y": {("", "x"), ("b", "y")},
    "CREATE TYPE r AS RANGE (subtype = b.x)": {("", "r"), ("b", "x")},
    "CREATE TABLE t (id b.x GENERATED ALWAYS AS IDENTITY (SEQUENCE NAME b.s))": {
        ("", "t"), ("b", "x"), ("b", "s")
    },
    "CREATE TABLE t (EXCLUDE USING gist (x WITH OPERATOR(b.&&)))": {("", "t"), ("b", "&&")},
    "SELECT FROM t TABLESAMPLE b.m(1)": {("", "t"), ("b", "m")},
    "CREATE FOREIGN DATA WRAPPER w HANDLER b.h VALIDATOR b.v": {("b", "h"), ("b", "v")},
}  # fmt: skip


@pytest.mark.parametrize("statement", MEANT)
def test_name_is_that_of_the_relation_that_has_the_object(statement: str) -> None:
    """Of columns, triggers and constraints the table; of operator classes not what they are for."""
    found = {(each.schema, each.name) for each in named.names(statement.encode())}
    assert MEANT[statement] == found


def test_what_is_made_is_the_first_name_whatever_columns_it_has() -> None:
    """The others are of what it is made of."""
    for statement in ("CREATE VIEW v (b, c) AS TABLE b.t", "CREATE TYPE v AS RANGE (subtype=b.x)"):
        assert ["v"] == [each.name for each in named.names(statement.encode()) if each.made]
