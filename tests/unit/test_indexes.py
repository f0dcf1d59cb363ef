"""Whether the index in the catalog is the one that a statement asks for."""

import pytest

from preflight.apply import indexes
from preflight.apply.indexes import Index

CATALOG = (
    "CREATE UNIQUE INDEX i ON public.t USING btree (a DESC, lower(b)) INCLUDE (c) WHERE (a > 0)"
)


@pytest.mark.parametrize(
    ("expected", "statement"),
    [
        (
            True,
            "create unique index concurrently i on t (A desc, lower(b)) include (c) where a > 0",
        ),
        (
            True,
            'CREATE UNIQUE INDEX i ON t ("a" DESC NULLS FIRST, (lower(b))) INCLUDE (c) WHERE a>0',
        ),
        (False, "CREATE INDEX i ON t (a DESC, lower(b)) INCLUDE (c) WHERE a > 0"),
        (False, "CREATE UNIQUE INDEX i ON u (a DESC, lower(b)) INCLUDE (c) WHERE a > 0"),
        (False, "CREATE UNIQUE INDEX i ON t USING gist (a DESC, lower(b)) INCLUDE (c) WHERE a > 0"),
        (False, "CREATE UNIQUE INDEX i ON t (a, lower(b)) INCLUDE (c) WHERE a > 0"),
        (False, "CREATE UNIQUE INDEX i ON t (a DESC NULLS LAST, lower(b)) INCLUDE (c) WHERE a > 0"),
        (False, "CREATE UNIQUE INDEX i ON t (a DESC, b) INCLUDE (c) WHERE a > 0"),
        (False, "CREATE UNIQUE INDEX i ON t (lower(b), a DESC) INCLUDE (c) WHERE a > 0"),
        (False, "CREATE UNIQUE INDEX i ON t (a DESC, lower(b)) WHERE a > 0"),
        (False, "CREATE UNIQUE INDEX i ON t (a DESC, lower(b)) INCLUDE (c)"),
        (True, "CREATE UNIQUE INDEX i ON t (a DESC, lower(b::text)) INCLUDE (c) WHERE 0 < a"),
        (False, "no index at all"),
    ],
)
def test_index_is_known_by_what_it_is(*, expected: bool, statement: str) -> None:
    """However it is spelled; expressions count by their presence."""
    assert expected == indexes.same(CATALOG, statement.encode())


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
