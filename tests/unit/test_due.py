"""What is refused of the files that are due, before the first of them runs."""

import re

import pytest

from preflight.files import due, reading, scan
from preflight.files.migrations import Script

SIZE = 4_000_000
LITERAL = f"INSERT INTO a VALUES ('{'x' * SIZE}');\n"
SHAPES = {  # a text, and how many times its size is the least that sending it takes
    "one statement": (LITERAL, 3),
    "one statement of several": (f"CREATE TABLE a (b text);\n{LITERAL}", 3),
    "in a transaction of its own": (f"BEGIN;\nSELECT 1;\n{LITERAL}COMMIT;\n", 3),
    "rows of COPY": (f"COPY a FROM stdin;\n{'x' * SIZE}\n\\.\n", 2),
    "small statements": ("INSERT INTO a VALUES (1);\n" * (SIZE // 26), 2),
    "a comment before": (f"/* {'x' * SIZE} */ SELECT 1;\n", 2),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_file_is_refused_only_where_it_cannot_fit(shape: str) -> None:
    """A byte more than the least that it takes is enough not to be refused."""
    text, times = SHAPES[shape]
    script = reading.kept(7, "007_load", "up", text.encode())
    least = due.OURS + times * SIZE

    assert [] == due.too_large([script], None)
    assert [] == due.too_large([script], least + SIZE // 100)
    (problem,) = due.too_large([script], least - SIZE // 100)
    assert (7, "007_load.sql") == (problem.version, problem.file)
    assert re.search(r"MB takes at least \d+ MB of memory, and there are \d+ MB", problem.message)
    assert ("COPY … FROM stdin" in str(problem.hint)) == (times > 2)


def test_all_files_of_a_run_are_at_hand_together() -> None:
    """Three files that fit one by one do not where there is room for two."""
    text = SHAPES["rows of COPY"][0].encode()
    scripts = [reading.kept(n, f"00{n}_load", "up", text) for n in (1, 2, 3)]
    limit = due.OURS + 3 * SIZE + SIZE // 2

    assert [] == due.too_large(scripts[:2], limit)
    assert [1, 2, 3] == [problem.version for problem in due.too_large(scripts, limit)]


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("SELECT 1; COMMIT; DELETE FROM a", True),
        (f"SELECT '{'x' * 9000}'; COMMIT", True),
        ("CREATE RULE r AS ON INSERT TO a DO (SELECT 1; SELECT 2)", False),
        ("CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2.; END", False),
        ("CREATE SOMETHING NEW (SELECT 1; SELECT 2); COMMIT", False),  # of a grammar to come
        (f"SELECT {'1 + ' * 50_000}1; COMMIT", False),  # too large a tree
    ],
)
def test_statement_that_the_server_reads_as_several_is_refused(text: str, *, refused: bool) -> None:
    """Behind the cut, as a second wall: nobody would see those behind the first."""
    whole = scan.Statement(10, 10 + len(text), semicolons=True)
    script = Script("007_a.sql", f"SELECT 0;\n{text}".encode(), "", semicolons=(whole,), version=7)
    found = [(each.version, each.file, each.line, each.column) for each in due.refused(script)]

    assert ([(7, "007_a.sql", 2, 1)] if refused else []) == found


def test_statements_with_semicolons_in_them_are_kept_to_be_asked_about() -> None:
    """Those alone: no other can be several."""
    texts = [
        "SELECT ';', $$;$$ /* ; */",
        "CREATE RULE r AS ON INSERT TO a DO (SELECT 1; SELECT 2)",
        "INSERT INTO a VALUES (1), (2)",
        "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 2.; END",
    ]
    script = reading.kept(7, "007_a", "up", ";\n".join(texts).encode())

    kept = [each.text(script.text).decode() for each in script.semicolons]
    assert [texts[1], texts[3]] == kept
