"""Crash anywhere, a sample of it: `make crash` strikes at random, for as long as it is told."""

import itertools
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import buckets, servers
from tests.conftest import DEFAULT_MAJOR
from tests.faults import crash
from tests.faults.crash import Strike


@pytest.fixture(scope="module")
def names() -> Iterator[str]:
    """Give a new database's name each time."""
    return (f"crash_{number}" for number in itertools.count(1))


@pytest.mark.parametrize(
    "strikes",
    [
        pytest.param(
            [
                Strike("job", event="lock.acquired"),
                Strike("job", event="backup.started"),
                Strike("job", event="backup.verified"),
            ],
            id="job before the first file",
            marks=pytest.mark.fault("E122", "F136"),
        ),
        pytest.param(
            [
                Strike("job", event="migration.started"),
                Strike("job", event="migration.applied"),
                Strike("connection", 110),
            ],
            id="job among the files",
            marks=pytest.mark.fault("E122", "F136"),
        ),
        pytest.param(
            [
                Strike("backend", 60),
                Strike("postmaster", 100),
                Strike("backend", event="migration.started"),
                Strike("postmaster", event="run.finished"),
            ],
            id="server",
            marks=pytest.mark.fault("E122"),
        ),
        pytest.param(
            [
                Strike("pg_dump", 200, "clients"),
                Strike("job", event="rehearsal.started", rehearse="auto"),
                Strike("postmaster", event="rehearsal.started", rehearse="auto"),
            ],
            id="clients and copies",
            marks=pytest.mark.fault("E122"),
        ),
    ],
)
def test_e122_whatever_is_killed_the_next_run_settles_it(
    running: Callable[[int], servers.Server],
    tmp_path: Path,
    names: Iterator[str],
    strikes: list[Strike],
) -> None:
    """After each end every promise holds, and the run after the last applies all, once."""
    world = crash.World(running(DEFAULT_MAJOR), tmp_path / "world", next(names), "up", None)

    assert any(hit for _, hit in crash.crash(world, strikes))
    world.drop()


@pytest.mark.fault("E122")
@pytest.mark.parametrize(
    ("told", "strikes"),
    [
        pytest.param("rollback", [
            Strike("job", event="migration.rolled_back"), Strike("backend", event="lock.acquired"),
        ]),
        pytest.param("force", [Strike("job", commit=2), Strike("job", event="migration.started")]),
        pytest.param("adopt", [Strike("postmaster", event="lock.acquired")]),
        pytest.param("backup", [Strike("pg_dump", 100, "clients")]),
        pytest.param("restore", [
            Strike("pg_dump", 40, "clients"), Strike("job", event="restore.started"),
        ]),
        pytest.param("swap", [Strike("job", event="restore.started"), Strike("backend", 90)]),
        pytest.param("folder", [
            Strike("job", 40, "clients"), Strike("pg_dump", event="backup.started"),
            Strike("job", event="backup.verified"),
        ]),
        pytest.param("wrap", [
            Strike("job", event="wrap.rehearsed", rehearse="auto"),
            Strike("pg_dump", event="wrap.started", rehearse="auto"),
        ]),
        pytest.param("bucket", [
            Strike("job", event="backup.started"), Strike("job", event="migration.applied"),
        ], marks=pytest.mark.xdist_group("buckets")),
    ],
)  # fmt: skip
def test_e122_whatever_writes_is_settled_by_its_next_call(  # noqa: PLR0913, PLR0917 - fixtures
    request: pytest.FixtureRequest,
    running: Callable[[int], servers.Server],
    tmp_path: Path,
    names: Iterator[str],
    told: str,
    strikes: list[Strike],
) -> None:
    """Every command, each kind of dump and place: struck, called again, and all is as promised."""
    more = request.getfixturevalue("place").env() if told == "bucket" else None
    world = crash.World(running(DEFAULT_MAJOR), tmp_path / "world", next(names), told, more)

    assert any(hit for _, hit in crash.crash(world, strikes))
    world.drop()


@pytest.mark.fault("F129", "F130")
@pytest.mark.parametrize(
    ("told", "strikes"),
    [
        pytest.param("up", [
            # the first COMMIT is that of the history's tables
            Strike("stop", commit=2, answered=False), Strike("stop", commit=1, stop=signal.SIGINT),
            Strike("stop", commit=3),
        ]),
        pytest.param("rollback", [
            Strike("stop", commit=2), Strike("stop", event="migration.started", stop=signal.SIGINT),
        ]),
    ],
)  # fmt: skip
def test_f130_whoever_is_asked_to_stop_says_what_is_true(
    running: Callable[[int], servers.Server],
    tmp_path: Path,
    names: Iterator[str],
    told: str,
    strikes: list[Strike],
) -> None:
    """What was committed is listed, or nobody knows (13); the rest is as if it had not begun."""
    home, quickly = tmp_path / "world", {"PREFLIGHT_BACKUP": "off"}
    world = crash.World(running(DEFAULT_MAJOR), home, next(names), told, quickly)

    assert all(hit for _, hit in crash.crash(world, strikes))
    world.drop()


@pytest.fixture(scope="module")
def place() -> Iterator[buckets.Bucket]:
    """Give a bucket."""
    with buckets.s3() as found:
        yield found
