"""Rows of plain values say nothing of what an INSERT does, and all else is looked at."""

import pytest

from preflight.files import effects, parser, reach

PLAIN = (
    "(1, -2, +3.5, 1e9, 1.)",
    "('a', 'it''s', '', ' ), (', '(1),(2)')",
    "(NULL, true, False, DEFAULT)",
    "( 1 ,\n 'a\nb' )",
    "('--', '/*', '$$', 'x; DROP TABLE t')",
    "(now(), CURRENT_TIMESTAMP, clock_timestamp( ), gen_random_uuid())",
    "('a\\', E'it\\'s \\n', X'1F', b'01', .5)",
    "('{}'::jsonb, '1'::numeric(10, 2)::text, 1::double precision, '{1}'::int[])",
    "(DATE '2026-01-01', timestamp '2026-01-01'::timestamptz, INTERVAL '1 day')",
    "(ARRAY[1, 2], ARRAY[]::text[], array['a']::varchar(3)[], lower('A'), md5('a')::uuid)",
)
OTHER = (
    "(lo_import('/x'))",
    "(1, dblink_exec('x'))",
    "(E'a\\', 1), (', dblink_exec('x'))",
    "('a\\', 1), ('b', dblink_exec('x'))",
    "('a'\n'b', dblink_exec('x'))",
    "(1 /* ) */, dblink_exec('x'))",
    "(1), -- (2)\n(dblink_exec('x'))",
    "($a$,$a$, dblink_exec('x'))",
    "((SELECT dblink_exec('x')))",
    "('1'::int, dblink_exec('x'))",
    "(now(), lo_import('/x'))",
    "(E'\\'', dblink_exec('x'))",
    "(lower(dblink_exec('x')))",
    "(ARRAY[dblink_exec('x')])",
    "(now() + dblink_exec('x'))",
    "(CURRENT_TIMESTAMP::text || dblink_exec('x'))",
    "(B'1', dblink_exec('x'))",
    "(1) ON CONFLICT (id) DO UPDATE SET id = dblink_exec('x')",
    "(1) RETURNING dblink_exec('x')",
)
HEADS = ("INSERT INTO t VALUES ", 'insert into "S"."T" (a, "b c") values\n')
LONG = ",\n".join(["(1, 'a ''quoted'' text')"] * 400)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("row", PLAIN)
def test_insert_of_plain_rows_does_the_same_whatever_they_hold(head: str, row: str) -> None:
    """Any number of rows is parsed as one, and the effect is that of the whole text."""
    for text in (f"{head}{row}", f"{head}{LONG}, {row}", f"{head}{row}, {LONG};"):
        raw = text.encode()
        node = parser.parsed(raw, whole=True)
        assert node is not None
        assert effects.of_node(node, raw) == effects.of(raw)
        assert len(parser.shortened(raw)) < parser.SHALLOW
        assert parser.complaint(raw) is None


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("row", OTHER)
def test_what_is_more_than_plain_rows_is_looked_at(head: str, row: str) -> None:
    """A call behind any number of rows, in any spelling that could hide it, is seen."""
    for text in (f"{head}{row}", f"{head}{LONG}, {row}", f"{head}(0), {row}"):
        raw = text.encode()
        whole = parser.parsed(raw, whole=True)
        short = parser.parsed(raw)
        assert parser.typical(raw) == raw
        assert (whole is None) == (short is None)
        assert reach.beyond(raw), row


@pytest.mark.parametrize(
    "text",
    [
        "(1, 2 3)",
        "(1,)",
        "()",
        "(1) (2)",
        "(1), (2),",
        "(1.2.3)",
        "(1a)",
        "(now()",
        "('a'::)",
        "(E'\\u12')",
        "(md5(,))",
        "(ARRAY[)",
    ],
)
def test_fault_among_rows_is_still_a_complaint(text: str) -> None:
    """What the grammar does not take is said, in front of a long list and behind it."""
    for rows in (text, f"{LONG}, {text}", f"{text}, {LONG}"):
        assert parser.complaint(f"INSERT INTO t VALUES {rows}".encode()), rows[:40]
