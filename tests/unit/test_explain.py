"""What the plan says of a statement: what it does, what it destroys, what it reaches."""

import pytest

from preflight import explain


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
            "rows, by a DELETE inside the query",
        ),
        ("EXPLAIN DELETE FROM t", "explain delete rows t", None),
        ("EXPLAIN ANALYZE DELETE FROM t", "explain delete rows t", "all rows of t"),
        ('INSERT INTO "Odd ""one" VALUES (1)', 'insert rows "Odd ""one"', None),
        ("THIS IS no SQL", "this is no (not understood here)", None),
    ],
)
def test_statement_is_described(statement: str, does: str, destroys: str | None) -> None:
    """In words for people, with what nobody can get back."""
    found = explain.effect(statement.encode())

    assert (does, destroys) == (found.does, found.destroys)


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
    assert external == (explain.effect(statement.encode()).external is not None)
