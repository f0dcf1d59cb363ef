"""Runs whose lock is another's while they work, a sample: `make overtaken` goes on with it."""

import random
from pathlib import Path

import pytest

from tests import servers
from tests.faults import overtaken


@pytest.mark.fault("B038", "B039")
@pytest.mark.parametrize("seed", ["sample/1"])  # quick enough for every change
def test_whoever_is_overtaken_and_whoever_overtakes_do_everything_once(
    database: servers.Database, tmp_path: Path, seed: str
) -> None:
    """There and back, by the same release, an older or a newer one; both say what is true."""
    assert overtaken.walk(database, tmp_path, seed)


@pytest.mark.fault("B038")
def test_b038_file_without_a_transaction_that_was_overtaken_is_no_damaged_history(
    database: servers.Database, tmp_path: Path
) -> None:
    """Its lock is gone (13), and so is its row to the run that has the lock; nothing is stuck."""
    made = overtaken.Overtaken(database, tmp_path, random.Random(1))  # noqa: S311 - no secret

    made.meets("gives", "up", other="up", release="neither", outside=overtaken.OUTSIDE)
    assert made.told[-1].endswith("-> [13, 0]"), str(made)
