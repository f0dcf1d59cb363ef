"""Histories, a sample of them: `make histories` changes folders and databases as long as told."""

from pathlib import Path

import pytest

from tests import servers
from tests.faults import histories


@pytest.mark.fault("D084", "D085", "D086", "D087", "D100", "E126", "E127")
@pytest.mark.parametrize("seed", ["sample/1"])  # quick enough for every change
def test_e127_folder_history_and_database_agree_whatever_happens_to_them(
    database: servers.Database, tmp_path: Path, seed: str
) -> None:
    """A small model says how each command ends, in a database where everything is planted."""
    assert histories.walk(database, tmp_path / "home", seed)
