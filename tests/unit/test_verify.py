"""What the rows of a verify file say together."""

import pytest

from preflight.apply import verify
from preflight.apply.verify import Check

YES, NO = Check("s", "yes", ok=True), Check("s", "no", ok=False)
ASKED = Check("s", "query", ok=False, told=False)
KEPT, LOST = Check("s", "kept", ok=True, effect=False), Check("s", "lost", ok=False, effect=False)


@pytest.mark.parametrize(
    ("expected", "checks"),
    [
        ("present", [YES, YES]),
        ("present", [YES, KEPT]),
        ("absent", [NO, NO]),
        ("absent", [NO, KEPT]),
        ("absent", [NO, LOST]),
        ("partial", [YES, NO]),
        ("partial", [YES, NO, KEPT]),
        ("partial", [YES, LOST]),
        ("partial", [YES, ASKED]),
        ("absent", [NO, ASKED]),
        ("untold", [ASKED]),
        ("untold", [ASKED, KEPT]),
        ("unknown", []),
        ("unknown", [KEPT]),
        ("unknown", [LOST]),
    ],
)
def test_answer_is_present_absent_partial_or_unknown(expected: str, checks: list[Check]) -> None:
    """Present: all hold. Absent: no effect holds. Only conditions say nothing of the file."""
    assert expected == verify.answer(checks)


def test_description_names_the_first_failures() -> None:
    """A sentence stays a sentence when a hundred checks fail."""
    described = verify.described([YES, *[NO] * 7])

    assert "7 of 8 checks fail (s: no; s: no; s: no; s: no; s: no and 2 more)" == described


@pytest.mark.parametrize(
    ("more", "query"),
    [
        (False, """SELECT 's' AS suite, 'c' AS "check", count(*) = 3 AS ok FROM t"""),
        (False, """SELECT 's' AS suite, 'c'::text AS "check", ok FROM t WHERE id = 1"""),
        (False, """WITH w AS (SELECT FROM t) SELECT 's' suite, 'c' "check", EXISTS (TABLE w) ok"""),
        (True, """SELECT 's' AS suite, x.c AS "check", x.ok FROM (VALUES ('c', true)) x (c, ok)"""),
        (True, """SELECT 's' suite, 'c' "check", true ok UNION ALL SELECT 's', 'd', true FROM t"""),
        (True, """SELECT 's' suite, unnest(ARRAY['c', 'd']) "check", true ok"""),
        (
            True,
            """SELECT suite, format('%s', c) AS "check", count(*) = 1 ok FROM t GROUP BY 1, 2""",
        ),
        (True, "SELECT * FROM checks"),
        (True, "VALUES (1)"),
        (True, "TABLE checks"),
    ],
)
def test_only_a_query_that_names_its_check_makes_no_other(*, more: bool, query: str) -> None:
    """What names it in a row, a list or a function may make many."""
    assert more == verify.asks_more(query.encode())
