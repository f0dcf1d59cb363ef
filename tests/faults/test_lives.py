"""Lives, a sample of them: `make lives` has servers that are only temporary as long as told."""

from pathlib import Path

import pytest

from tests.conftest import StartServer
from tests.faults import lives


@pytest.mark.parametrize("seed", ["sample/2", "sample/3", "sample/6"])  # each kind of life
def test_nothing_is_done_to_a_server_that_is_only_temporary(
    start_server: StartServer, tmp_path: Path, seed: str
) -> None:
    """However it begins, lasts and ends, and whatever comes after it."""
    assert lives.walk(start_server(), tmp_path / "home", seed)
