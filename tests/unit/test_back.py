"""What a migration is of which nothing is left but what the history kept."""

import pytest

from preflight.apply import back
from preflight.history import journal


@pytest.mark.parametrize(("text", "there"), [(None, False), ("", True), (";", True)])
def test_empty_rollback_is_one_and_none_is_none(text: str | None, *, there: bool) -> None:
    """What was recorded was judged when it ran: nothing to do, forward as well as back."""
    row = journal.Row(
        2000, "2_x", "done", 0, 0, text or "", text, "r", "c", verify_sql="", label="2"
    )

    kept = back._remembered(row)  # noqa: SLF001 -- what every rollback starts from

    assert (there, None) == (kept.rollback is not None, kept.verify)
    assert ("2", []) == (kept.written, kept.up.said())
