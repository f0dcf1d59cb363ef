"""Restores, a sample of them: `make restores` goes on for as long as told."""

from pathlib import Path

import pytest

from tests.conftest import StartServer
from tests.faults import restores


@pytest.mark.parametrize("seed", ["sample/1"])  # quick enough for every change
def test_backups_restores_and_swaps_agree_with_a_model_whatever_happens(
    start_server: StartServer, tmp_path: Path, seed: str
) -> None:
    """What was there at the backup is what is restored and put in place, or nothing is."""
    here, there = start_server(18), start_server(18)
    for each in (here, there):
        restores.prepare(each)

    assert restores.walk(here, there, tmp_path, seed)
