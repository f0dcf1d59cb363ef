"""A file system that refuses what it is asked, a sample of it: `make calls` goes on with it."""

import errno
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import servers
from tests.faults import calls
from tests.faults.calls import Refusal

pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None, reason="no C compiler: apt install gcc libc6-dev"
)


@pytest.mark.fault("C047", "C048")
@pytest.mark.parametrize("seed", ["sample/1"])  # quick enough for every change
def test_file_system_that_lacks_a_call_is_one_and_of_one_that_fails_all_is_true(
    server: servers.Server, tmp_path: Path, seed: str
) -> None:
    """Each command on one that lacks locks, modes and fsync of directories; and one call failed."""
    assert calls.walk(server, tmp_path, "calls", seed, strikes=1)


@pytest.fixture
def world(server: servers.Server, tmp_path: Path) -> Iterator[calls.World]:
    """Give a database and a place for its backups, and clients that change modes of no folder."""
    made = calls.World(server, tmp_path, "calls", random.Random(1))  # noqa: S311 - no secret
    made.client = 17
    yield made
    made.close()


@pytest.mark.fault("C048")
def test_c048_file_system_without_modes_or_a_clean_close_holds_backups_all_the_same(
    world: calls.World,
) -> None:
    """FAT and some of FUSE have no chmod; a lock's file, where nothing was written, may not close.

    Neither is a bug of ours (70), nor a reason not to keep a backup (23).
    """
    lock = Refusal(("close",), errno.ENOSPC, of="/.lock")
    modes = Refusal(("chmod",), errno.EPERM)
    done = [
        calls.strike(world, told, each, lacking=True)
        for told, each in (("backup", lock), ("folder", modes))
    ]

    assert all(each.refused for each in done), done
