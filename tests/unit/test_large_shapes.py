"""Files of 100 MB of any shape: reading one costs in proportion to its size, whatever is in it.

The sizes are small and the bounds wide: what looks at everything behind each piece takes more than
ten times as many processor seconds here, and hours at 100 MB.
"""

import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from preflight.base.errors import FilesInvalid
from preflight.commands import plan
from preflight.files import (
    due,
    effects,
    foreign,
    lasting,
    parser,
    planned,
    reach,
    reading,
    remains,
    review,
    scan,
)
from preflight.files.layout import NATIVE, Source
from preflight.files.layouts import dbmate, flyway, goose
from preflight.files.migrations import Migration, Script

MOST_S = 4.0  # processor seconds
FORWARD = Source(1, "001_a", "up")


def spent(walk: Callable[[], object]) -> float:
    """Return the processor seconds of a call."""
    began = time.process_time()
    walk()
    return time.process_time() - began


def peak(walk: Callable[[], object]) -> int:
    """Return the most bytes that a call held at once."""
    tracemalloc.start()
    try:
        walk()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def read(text: bytes) -> reading.Reading:
    """Read a forward file."""
    found = reading.Reading(NATIVE.file("001_a", "up"), FORWARD)
    found.script(text)
    return found


SHAPES = {
    "comments in one line": b"/**/" * 120_000 + b"SELECT 1;",
    "comments inside a statement in one line": b"SELECT" + b"/**/" * 120_000 + b"1;",
    "a directive with a gap": b"-- preflight: breaking" + b" " * 100_000 + b"?\nSELECT 1;",
    "CREATE in one line": b"CREATE/**/TABLE t();" * 20_000,
    "deep parentheses": b"SELECT " + b"(" * 100_000 + b"1" + b")" * 100_000 + b";",
    "nested comments": b"/*" * 200_000 + b"*/" * 200_000 + b"SELECT 1;",
    "backslashes": b"SELECT E'" + b"\\\\" * 400_000 + b"';",
    "tags that are none": b"SELECT " + b"$1" * 100_000 + b";",
    "a string that never ends": b"SELECT '" + b"a''b " * 200_000,
    "a comment that never ends": b"/* " * 200_000,
    "bodies in bodies": b"CREATE FUNCTION f() RETURNS int BEGIN ATOMIC "
    + b"SELECT CASE WHEN true THEN 1 END;" * 10_000
    + b"END;",
}


@pytest.mark.fault("D095")
@pytest.mark.parametrize("shape", SHAPES)
def test_cutting_a_file_costs_in_proportion_to_its_size(shape: str) -> None:
    """Every piece is looked at a few times, however long the line is that it stands in."""
    assert spent(lambda: list(scan.items(SHAPES[shape]))) < MOST_S


@pytest.mark.fault("D095")
def test_reading_directives_and_meta_commands_costs_in_proportion_to_the_file() -> None:
    """They are told up to a number, and what they say is told in a few words."""
    directives, commands = b"-- preflight: breaking\n" * 100_000, b"\\restrict x\n" * 100_000
    assert spent(lambda: [read(directives), read(commands)]) < MOST_S
    told = [problem.message for problem in read(directives).problems]
    assert any("more than 1,000 directives" in message for message in told)
    assert "so much is wrong" in read(commands).problems[0].message
    for long in (b"-- preflight: " + b"x" * 100_000 + b"\nSELECT 1;", b"\\" + b"x" * 100_000):
        assert all(len(problem.message) < 500 for problem in read(long).problems)


@pytest.mark.fault("D095")
def test_places_in_one_long_line_cost_in_proportion_to_it() -> None:
    """Lines and columns are those that each offset has alone, in characters."""
    short = "SELECT 'é😀';\n-- ü\n SELECT 2; SELECT 3;\n\nSELECT 4;".encode()
    starts = [each.start for each in scan.statements(short)]
    assert [(1, 1), (3, 2), (3, 12), (5, 1)] == list(scan.places(short, starts))
    assert [scan.position(short, at) for at in starts] == list(scan.places(short, starts))

    long = "SELECT 'é';".encode() * 60_000
    starts = [each.start for each in scan.statements(long)]
    assert spent(lambda: list(scan.places(long, starts))) < MOST_S
    script = Script("001_a.sql", b"SELECT 1 FROM;" * 20, "")
    assert [f"001_a.sql:1:{1 + 14 * number}" for number in range(20)] == [
        said.partition(" ")[0] for said in review.unparsed(script)
    ]


@pytest.mark.fault("D095")
def test_place_at_the_end_of_a_long_line_needs_no_copy_of_it() -> None:
    """One character of four bytes would make four bytes of each."""
    text = "😀".encode() + b"x" * 16_000_000
    assert peak(lambda: scan.position(text, len(text))) < 4_000_000


@pytest.mark.fault("D095")
def test_comment_behind_create_needs_no_memory() -> None:
    """It is passed over, and what follows it is what is made: nested comments, too."""
    text = b"CREATE /* " + b"x" * 1_000_000 + b" */ TABLE t();"
    assert peak(lambda: list(scan.items(text))) < len(text)
    body = b"CREATE /* /* ; */ ; */ FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END"
    assert [body] == [each.text(body) for each in scan.statements(body)]


@pytest.mark.fault("D095")
def test_marks_of_other_tools_are_found_without_a_copy_of_the_lines(tmp_path: Path) -> None:
    """The lines of a goose file, the comments above dbmate's mark, and Flyway's checksum."""
    rows = b"x\n" * 100_000
    assert peak(lambda: sum(1 for _ in foreign.lines(rows))) < len(rows)
    above = b"-- a\n" * 50_000 + b"-- migrate:up\nSELECT 1;\n"
    assert peak(lambda: list(dbmate.LAYOUT(tmp_path).sections(FORWARD, "", above))) < len(above)
    script = Script("V1__a.sql", rows, "")
    file, known = Migration(1, "V1__a", script), str(zlib.crc32(b"x" * 100_000))
    rule = flyway.LAYOUT(tmp_path)
    assert peak(lambda: rule.agrees(file, known)) < len(rows)
    assert [(0, b"a"), (2, b""), (3, b"b")] == list(foreign.lines(b"a\n\nb"))
    assert [(0, b"a"), (2, b"")] == list(foreign.lines(b"a\n"))
    marked = b"-- +goose Up\nSELECT 1;\n-- +goose Down\nSELECT 2;"
    assert ["up", "rollback"] == [
        each.kind for each in goose.LAYOUT(tmp_path).sections(FORWARD, "1_a.sql", marked)
    ]


@pytest.mark.fault("D095")
@pytest.mark.parametrize("piece", [b"${a} ", b"${"])
def test_placeholders_in_a_comment_of_one_line_cost_in_proportion_to_it(
    piece: bytes, tmp_path: Path
) -> None:
    """Flyway's are looked for once a line of comments; the next line counts as before."""
    text = b"-- " + piece * 200_000 + b"\nSELECT 1;"
    rule, source = flyway.LAYOUT(tmp_path), Source(1, "V1__a", "up")
    assert spent(lambda: list(rule.sections(source, "V1__a.sql", text))) < MOST_S
    with pytest.raises(foreign.Wrong, match="placeholder"):
        list(rule.sections(source, "V1__a.sql", text + b"\nSELECT ${b};"))


@pytest.mark.fault("D095")
def test_texts_that_a_block_runs_cost_in_proportion_to_it() -> None:
    """What looks like the beginning of a text in a name is none, and has no end to look for."""
    names = " || ".join(f"a$b{n}$" for n in range(30_000))
    block = f"DO $do$ BEGIN EXECUTE {names}; PERFORM 'set'; END $do$"
    assert spent(lambda: lasting.left(block.encode(), {})) < MOST_S
    for text in ("'LISTEN a'", "$a$ LISTEN a $a$", "a$b$ || $$LISTEN a$$", "'' || 'LISTEN a'"):
        block = f"DO LANGUAGE plpgsql $do$ BEGIN EXECUTE {text}; END $do$"
        assert "LISTEN" == lasting.left(block.encode(), {})


@pytest.mark.fault("D095")
def test_setting_whose_quote_never_ends_costs_in_proportion_to_the_file() -> None:
    """Its end is looked for once, and not behind each dot."""
    text = b'SELECT 1; -- set "' + b"a." * 200_000
    assert spent(lambda: remains.names([Script("001_a.sql", text, "")])) < MOST_S
    assert spent(lambda: remains.unknown([Script("001_a.sql", text, "")])) < MOST_S
    said = remains.names([Script("001_a.sql", b'SET "b.c" TO 1; SET b.d TO 1; ' + text, "")])
    assert {"b.c", "b.d"} == said - remains.names([Script("001_a.sql", text, "")])


@pytest.mark.fault("D095")
def test_file_that_leaves_much_in_its_session_is_told_up_to_a_number() -> None:
    """The rest is more of the same, and each place is counted from the beginning."""
    text = b"-- preflight: no-transaction\n" + b"LISTEN a;\nSELECT 1;\n" * 100
    script = Script("001_a.sql", text, "", transactional=False)
    assert lasting.REFUSED_MAX == len(lasting.refused(script))
    with pytest.raises(FilesInvalid):
        due.require([script])


# --- what is parsed -------------------------------------------------------------------------------

TOO_LARGE = {
    "rows of calls": "INSERT INTO t VALUES " + "(1, f('a')), " * 13_000 + "(1, f('a'))",
    "a wide query": "SELECT " + "x, " * 50_000 + "1",
    "a long list": "DELETE FROM t WHERE i IN (" + "1, " * 50_000 + "1)",
    "a long CASE": "UPDATE t SET i = CASE " + "WHEN i = 1 THEN 2 " * 8_000 + "END",
    "a long UNION": "CREATE VIEW v AS " + "SELECT 1 UNION ALL " * 8_000 + "SELECT 1",
    "a body in SQL": "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC "
    + "SELECT 1;" * 15_000
    + "SELECT 1; END",
    "a wide table": "CREATE TABLE t (" + "user_ int,\n" * 13_000 + "z int)",
}
LONG_TEXTS = {
    "a text": ("INSERT INTO t (c) SELECT '" + "user '' " * 200_000 + "'", "insert rows t"),
    "a block": ("DO $$ BEGIN\n" + "PERFORM 1;\n" * 120_000 + "END $$", "do"),
    "a comment": ("CREATE VIEW v AS /* " + "user " * 300_000 + " */ SELECT 1", "create view v"),
    "a function": (
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS '" + "SELECT 1;" * 120_000 + "'",
        "create function f",
    ),
}


@pytest.mark.fault("D095")
@pytest.mark.parametrize("shape", TOO_LARGE)
def test_statement_that_is_too_large_for_a_tree_is_not_parsed_and_said_to_be_unknown(
    shape: str,
) -> None:
    """A tree takes 300 times the bytes of its text; without one nothing is called harmless."""
    text = TOO_LARGE[shape].encode()
    script = Script("001_a.sql", text, "")
    file = Migration(1, "001_a", script)

    assert None is parser.parsed(text)
    assert None is parser.outlined(text)
    assert spent(lambda: [reach.beyond(text), review.unparsed(script)]) < MOST_S
    (statement,) = planned.each(file).statements
    assert statement.does.endswith("(too large to be understood here)")
    assert statement.data()["unknown"]
    _, (row,) = plan.planned_table([statement])
    assert ["not known", "not known"] == list(row[2:4])
    assert "locks is not known" in " ".join(review.remarks(file, [statement]))


@pytest.mark.fault("D095")
@pytest.mark.parametrize("shape", LONG_TEXTS)
def test_statement_that_is_long_in_its_texts_is_understood_without_them(shape: str) -> None:
    """A megabyte of text or of comment is no reason not to know what the rest does."""
    text, does = LONG_TEXTS[shape]
    raw = text.encode()
    assert len(raw) > parser.LARGEST_TEXT
    assert len(parser.outlined(raw) or raw) < 200
    assert effects.of(raw).does.startswith(does)
    assert not effects.of(raw).unknown
    assert None is reach.beyond(raw)


HIDDEN = ("CREATE ROLE a;", "GRANT a TO b;", "PERFORM dblink_exec('x');", "COPY t TO PROGRAM 'x';")

SIZES = ((12_500, 0), (0, 12_500), (1_250, 12_000), (96_000, 0))  # statements around it


@pytest.mark.fault("D095")
@pytest.mark.parametrize("quote", ["$body$", "'", "E'"])
def test_what_a_long_body_reaches_is_found_by_its_words(quote: str) -> None:
    """At its beginning, at its end and where two looks at it meet; EXECUTE may run anything."""
    ends = quote.removeprefix("E")
    for hidden in (*HIDDEN, "EXECUTE f();"):
        said = hidden.replace("'", "''") if ends == "'" else hidden
        for before, behind in SIZES if hidden == HIDDEN[2] else SIZES[:1]:
            body = "PERFORM 1;\n" * before + said + "PERFORM 1;\n" * behind
            found = reach.beyond(f"DO {quote}BEGIN {body} END{ends}".encode())
            assert found, hidden
            assert found.certain == (hidden in HIDDEN)


@pytest.mark.fault("D095")
@pytest.mark.parametrize("text", ["", "x" * parser.LARGEST_TEXT], ids=["short", "long"])
@pytest.mark.parametrize("quote", ["$$", "'"])
def test_what_a_long_body_leaves_in_its_session_is_found(text: str, quote: str) -> None:
    """At its end and where two looks meet; a SET of an UPDATE is none, and a function is called."""
    inner = "''" if quote == "'" else "'"
    body = f"PERFORM {inner}{text}{inner};" + "UPDATE t SET a = 1;" * 1_200
    for said in ("SET a.b TO 1;", "LISTEN a;", "CREATE TEMP TABLE a ();"):
        block = f"DO {quote}BEGIN {body}{said} END{quote}"
        assert lasting.left(block.encode(), {}), said
    harmless = f"DO {quote}BEGIN {body} /* temp */ END{quote}"
    assert None is lasting.left(harmless.encode(), {})
    functions: dict[str, str] = {}
    made = f"CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS {quote}BEGIN {body}"
    assert None is lasting.left(f"{made} SET a.b TO 1; END{quote}".encode(), functions)
    assert "SET inside a block" == lasting.left(b"SELECT f()", functions)


@pytest.mark.fault("D095")
def test_only_row_of_an_insert_is_not_copied() -> None:
    """It may have nearly all of the file."""
    text = b"INSERT INTO t VALUES ('" + b"x" * 4_000_000 + b"')"
    assert text is parser.shortened(text)
    assert peak(lambda: parser.parsed(text, texts=False)) < len(text) / 4


@pytest.mark.fault("D095")
def test_large_statement_that_may_reach_beyond_is_not_called_harmless() -> None:
    """By a name in quotes, a catalog of the server or a foreign table; texts are no names."""
    rows = "(1, f('see http://x, dblink, a role')), " * 4_000
    abroad = reach.Bounds(foreign=["far"])
    assert None is reach.beyond(f"INSERT INTO t VALUES {rows}(1, f(''))".encode(), abroad)
    for head, last in (
        ("INSERT INTO t VALUES ", "(1, \"dblink_exec\"('x'))"),
        ("INSERT INTO pg_authid VALUES ", "(1, f(''))"),
        ("INSERT INTO far VALUES ", "(1, f(''))"),
        ('INSERT INTO "far" VALUES ', "(1, f(''))"),
        ("INSERT INTO t VALUES ", "(1, lo_import('/x'))"),
        ("EXPLAIN ANALYZE INSERT INTO role VALUES ", "(1, f(''))"),
    ):
        assert reach.beyond(f"{head}{rows}{last}".encode(), abroad), (head, last)


@pytest.mark.fault("D095")
def test_statements_that_differ_in_values_alone_are_parsed_once() -> None:
    """Numbers and texts say nothing of what a statement does, but for there being some."""
    text = "".join(
        f"COMMENT ON TABLE a IS '{n}';UPDATE a SET i = {n}, t = 'x{n}' WHERE i = 1.{n};"
        for n in range(500)
    ).encode()
    assert 2 == len({parser.alike(each.text(text)) for each in scan.statements(text)})
    for one in ("SELECT a1, $1, 'b'", "SELECT E'\\'', c2", 'SELECT "1"', "SELECT 1 -- 2'\n'"):
        assert one.encode() == parser.alike(one.encode())
    for one in ("COPY t FROM '/x'", "COPY t FROM PROGRAM 'x'", "DELETE FROM t1 WHERE i = 12"):
        raw = one.encode()
        node = parser.parsed(raw)
        assert node is not None
        assert effects.of_node(node, raw) == effects.of(raw)


@pytest.mark.fault("D095")
def test_plan_of_very_many_statements_tells_those_that_matter() -> None:
    """The others are counted: a file may have millions, and a plan is held as a whole."""
    text = b"SELECT 1;" * (planned.MOST + 7) + b"DROP TABLE lost;LOCK TABLE shut;"
    told = planned.each(Migration(1, "001_a", Script("001_a.sql", text, "")))
    assert (planned.MOST + 9, 7) == (told.count, told.untold)
    assert ["drop table lost", "lock shut"] == [each.does for each in told.statements[-2:]]
    assert planned.MOST + 9 == told.statements[-1].number
