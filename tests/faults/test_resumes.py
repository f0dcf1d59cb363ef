"""Resumes, a sample of them: `make resumes` kills files without a transaction as long as told."""

from pathlib import Path

import pytest

from tests import servers
from tests.faults import resumes


@pytest.mark.parametrize("seed", ["sample/1"])  # quick enough for every change
def test_killed_file_without_a_transaction_ends_as_if_nobody_had_killed_it_or_is_refused(
    database: servers.Database, tmp_path: Path, seed: str
) -> None:
    """Whatever its session held, wherever it was killed, and whatever version began it."""
    assert {0, resumes.REFUSED} == resumes.walk(database, tmp_path / "home", seed)
