"""What a statement says of its index, and what the catalog does."""

import pytest

from preflight.apply import indexes
from preflight.apply.indexes import Index


@pytest.mark.parametrize(
    ("expected", "made", "definition"),
    [
        (True, "INDEX i ON pg_temp.x USING btree (a)", "INDEX j ON public.t USING btree (a)"),
        (True, "UNIQUE INDEX i ON s.x USING gin (a)", "UNIQUE INDEX i ON ONLY s.t USING gin (a)"),
        (
            True,
            "INDEX i ON pg_temp.x USING btree (lower(' USING '))",
            """INDEX "a USING b" ON "x.y"."t""USING "" c" USING btree (lower(' USING '))""",
        ),
        (
            True,
            """INDEX i ON s.x USING btree (f((x.*)::s."T t"), ((x.* IS NULL)))""",
            """INDEX i ON s."T t" USING btree (f("T t".*), (("T t".* IS NULL)))""",
        ),
        (False, "INDEX i ON s.x USING btree (a)", "UNIQUE INDEX i ON s.x USING btree (a)"),
        (False, "INDEX i ON s.x USING btree (a)", "INDEX i ON s.x USING hash (a)"),
    ],
)
def test_names_are_no_part_of_what_an_index_is(
    made: str, definition: str, *, expected: bool
) -> None:
    """Whatever stands in them."""
    assert expected == indexes.alike(f"CREATE {made}", f"CREATE {definition}")


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
