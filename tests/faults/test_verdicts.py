"""Verdicts, a sample of them: `make verdicts` puts databases together for as long as it is told."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import servers
from tests.faults import verdicts

SAMPLE = range(1, 9)
MAJORS = (15, 16, 17, 18)


@pytest.mark.parametrize(
    ("number", "major"),
    [
        pytest.param(
            number, MAJORS[number % 4], marks=pytest.mark.xdist_group(f"pg{MAJORS[number % 4]}")
        )
        for number in SAMPLE
    ],
)
def test_whole_database_is_never_called_bad_and_a_damaged_dump_always_is(
    running: Callable[[int], servers.Server], tmp_path: Path, number: int, major: int
) -> None:
    """Whatever it holds, whoever owns it, whoever writes to it meanwhile."""
    if wrong := verdicts.judge(running(major), tmp_path / "home", f"sample/{number}", number):
        pytest.fail(wrong)  # all of it: it may not come again
