"""Crash anywhere, a sample of it: `make crash` strikes at random, for as long as it is told."""

import itertools
import json
import os
import random
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from psycopg.conninfo import make_conninfo

from tests import buckets, program, servers
from tests.conftest import DEFAULT_MAJOR
from tests.faults import crash, leaks
from tests.faults.crash import Strike

SECRET = servers.PASSWORD


@pytest.mark.fault("F144")
@pytest.mark.parametrize(
    "text",
    [
        pytest.param(json.dumps({"error": f"no {SECRET}"}), id="JSON"),
        pytest.param(json.dumps(SECRET, ensure_ascii=False), id="JSON of UTF-8"),
        pytest.param(f"postgresql://postgres:{quote(SECRET)}@db", id="address"),
        pytest.param(make_conninfo(password=SECRET), id="keywords"),
        pytest.param("*:*:*:*:" + re.sub(r"([\\:])", r"\\\1", SECRET), id="passfile"),
        pytest.param(repr(SECRET), id="Python"),
        pytest.param(f'host "{SECRET.rpartition("us")[2]}"', id="a part of it"),
    ],
)
def test_f144_password_is_found_however_it_is_written(text: str) -> None:
    """What looks for it sees through the spellings that a log, a URL or a client's file has."""
    assert ["there"] == leaks.leaks({"there": text.encode(), "not there": b"superuser: 100%"})


@pytest.mark.fault("F144")
def test_f144_password_is_found_in_a_name_in_arguments_and_in_an_environment(
    tmp_path: Path,
) -> None:
    """Of a file, of a process below ours, of a client that should have a passfile."""
    (tmp_path / SECRET.replace("/", "")).touch()
    client = tmp_path / "pg_dump"
    client.symlink_to("/bin/sleep")
    child = subprocess.Popen([client, "60"], env={"PGPASSWORD": SECRET})
    other = subprocess.Popen(["/bin/sh", "-c", "read it", SECRET], stdin=subprocess.PIPE)
    try:
        seen = leaks.of_processes(os.getpid())
        expected = {f"environment of pg_dump {child.pid}", f"arguments of sh {other.pid}"}
        assert expected == {*leaks.leaks(seen)}
        assert 1 == len(leaks.leaks(leaks.of_files(tmp_path)))
    finally:
        for each in (child, other):
            each.kill()
            each.wait()
        if other.stdin:
            other.stdin.close()


@pytest.mark.fault("E122")
@pytest.mark.parametrize(
    "output",
    [
        '{"event": "run.started"}\n',
        'word\n{"event": "run.finished"}\n',
        '{"event": "run.finished"}\n{"event": "run.more"}\n',
        '{"event": "run.finished", "s": NaN}\n',
        '{"event": "run.finished"}',
        "",
    ],
)
def test_e122_log_with_another_line_or_without_its_end_is_none(output: str) -> None:
    """Each line is an event, and the last of a run that was not killed says how it ended."""
    with pytest.raises(AssertionError):
        program.strictly(output)


@pytest.mark.fault("E122")
def test_e122_of_who_was_killed_only_the_last_line_may_be_in_part() -> None:
    """It has not come to its end, but what it has said are events."""
    assert [{"event": "run.started"}] == program.strictly(
        '{"event": "run.started"}\n{"ev', killed=True
    )
    with pytest.raises(AssertionError):
        program.strictly('{"event": "run.started"}\nword\n', killed=True)


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


@pytest.mark.fault("F129")
@pytest.mark.parametrize(("told", "few"), [("up", 6), ("nothing", 3)])
def test_f129_whoever_is_asked_to_stop_where_it_loads_something_ends_as_ever(
    running: Callable[[int], servers.Server],
    tmp_path: Path,
    names: Iterator[str],
    told: str,
    few: int,
) -> None:
    """From its first module on: by each signal, and before its first word with nothing begun."""
    home, quickly = tmp_path / "world", {"PREFLIGHT_BACKUP": "off"}
    world = crash.World(running(DEFAULT_MAJOR), home, next(names), told, quickly)
    world.keep()
    counted = crash.undisturbed(world, "off")
    world.again()
    choice = random.Random(told)  # noqa: S311 - to be repeated, no secret
    strikes = crash.at_some_imports(choice, few, counted)

    tried = crash.crash(world, strikes)
    assert all(hit for _, hit in tried[: few // 2])
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
