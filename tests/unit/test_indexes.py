"""What a statement says of its index, and what the catalog does."""

import pytest

from preflight.apply import indexes
from preflight.apply.indexes import Index


@pytest.mark.parametrize(
    ("expected", "definition"),
    [
        (("", "USING btree (a)"), "CREATE INDEX i ON public.t USING btree (a)"),
        (("UNIQUE ", "USING gin (a, b)"), "CREATE UNIQUE INDEX i ON ONLY s.t USING gin (a, b)"),
        (
            ("", "USING btree (lower(' USING '))"),
            """CREATE INDEX "a USING b" ON "x.y"."t""USING "" c" USING btree (lower(' USING '))""",
        ),
    ],
)
def test_names_are_no_part_of_what_an_index_is(expected: tuple[str, ...], definition: str) -> None:
    """Whatever stands in them."""
    assert expected == indexes.told(definition)


@pytest.mark.parametrize(
    ("expected", "statement"),
    [
        (Index("i", '"t"'), "-- first\nCREATE INDEX CONCURRENTLY i ON t (a);"),
        (Index("I", '"s"."t""t"'), 'CREATE INDEX CONCURRENTLY "I" ON s."t""t" (a)'),
        (
            Index("i", '"t"', if_not_exists=True),
            "CREATE INDEX CONCURRENTLY IF NOT EXISTS i ON t (a)",
        ),
        (Index("i", '"s"."i"', dropped=True), "DROP INDEX CONCURRENTLY IF EXISTS s.i"),
        (None, "CREATE INDEX CONCURRENTLY ON t (a)"),
        (None, "VACUUM t"),
        (None, "not SQL"),
    ],
)
def test_statement_names_its_index(expected: Index | None, statement: str) -> None:
    """And the table, quoted, or for DROP the index itself."""
    assert expected == indexes.wanted(statement.encode())
