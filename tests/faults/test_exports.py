"""Exports of versions that have a table in common, a sample: `make exports` goes on with it."""

from pathlib import Path

import pytest

from tests import servers
from tests.faults import exports


@pytest.mark.parametrize("seed", ["sample/1"])  # quick enough for every change
def test_what_an_export_has_seen_is_not_lost_whatever_the_steps_destroy(
    database: servers.Database, tmp_path: Path, seed: str
) -> None:
    """Undisturbed, killed and called again, with rows written between the steps and meanwhile."""
    assert exports.walk(database, tmp_path, seed)
