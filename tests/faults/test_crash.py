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
            Strike("job", commit=3), Strike("backend", event="lock.acquired"),
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
            Strike("tool", deeds=("commits",), at="copy", rehearse="auto"),
        ]),
        pytest.param("pair", [Strike("connection", 24, "answers")]),
        pytest.param("wrap_pair", [Strike("job", event="wrap.started", rehearse="auto")]),
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
    assert world.between.ends, "nobody has looked how long a vanished peer is waited for"
    world.drop()


@pytest.mark.fault("E117")
def test_e117_whoever_loses_the_lock_with_the_connection_does_nothing_without_it(
    running: Callable[[int], servers.Server], tmp_path: Path, names: Iterator[str]
) -> None:
    """Cut at each answer that it gets under the lock, until the first file has begun."""
    home, quickly = tmp_path / "world", {"PREFLIGHT_BACKUP": "off"}
    world = crash.World(running(DEFAULT_MAJOR), home, next(names), "up_again", quickly)

    for answer in itertools.count(1):
        (result,), hit = crash.once(world, Strike("connection", answer, "answers"))
        assert hit, str(result)
        if "migration.started" in result.names:
            break
    crash.require_settled(world)
    world.drop()


@pytest.mark.fault("E122")
def test_e122_command_that_ends_by_itself_is_told_as_it_is(
    still: servers.Server, tmp_path: Path, names: Iterator[str]
) -> None:
    """Whatever its transactions are at then: where all came to naught, and only there, it is 30."""
    home, quickly = tmp_path / "world", {"PREFLIGHT_BACKUP": "off"}
    world = crash.World(still, home, next(names), "wrap", quickly)
    deeds = [("aborts", "opens"), ("opens", "prepares"), *((each,) for each in crash.DEEDS[2:])]
    strikes = [Strike("tool", deeds=each, rehearse="off") for each in deeds]

    assert all(hit for _, hit in crash.crash(world, strikes))
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
def still() -> Iterator[servers.Server]:
    """Give a server where nobody writes for himself, and transactions may be prepared."""
    server = servers.start(DEFAULT_MAJOR, **crash.SETTINGS)
    yield server
    server.remove()


@pytest.fixture(scope="module")
def place() -> Iterator[buckets.Bucket]:
    """Give a bucket."""
    with buckets.s3() as found:
        yield found
