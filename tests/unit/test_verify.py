"""What the rows of a verify file say together."""

import pytest

from preflight import verify
from preflight.verify import Check

YES, NO = Check("s", "yes", ok=True), Check("s", "no", ok=False)
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
