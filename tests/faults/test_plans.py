"""Plans of statements at random beside the server, a sample: `make plans` goes on with it."""

from pathlib import Path

import pytest

from tests import servers
from tests.faults import plans


@pytest.mark.parametrize("seed", ["sample/1", "sample/4"])  # quick: every change
def test_what_statements_lock_and_destroy_is_in_the_plan(
    outer_server: servers.Server, database: servers.Database, tmp_path: Path, seed: str
) -> None:
    """No lock less and none more, in sequences in which names move, and through views and keys."""
    assert plans.walk(database, tmp_path, seed), outer_server
