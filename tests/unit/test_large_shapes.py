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
from preflight.files import foreign, lasting, reading, review, scan
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
def test_file_that_leaves_much_in_its_session_is_told_up_to_a_number() -> None:
    """The rest is more of the same, and each place is counted from the beginning."""
    text = b"-- preflight: no-transaction\n" + b"LISTEN a;\nSELECT 1;\n" * 100
    script = Script("001_a.sql", text, "", transactional=False)
    assert lasting.REFUSED_MAX == len(lasting.refused(script))
    with pytest.raises(FilesInvalid):
        lasting.require([script])
