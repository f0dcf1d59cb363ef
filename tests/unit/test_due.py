"""What is refused of the files that are due, before the first of them runs."""

import re

import pytest

from preflight.files import due, reading

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
