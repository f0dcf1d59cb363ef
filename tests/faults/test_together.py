"""Faults of several runs at once."""

import signal
from pathlib import Path

import pytest

from tests import faults, servers
from tests.conftest import Run, Start, WriteMigrations
from tests.faults import together

QUICKLY = {"PREFLIGHT_BACKUP": "off"}
AT_THE_GATE = (
    "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
)


@pytest.mark.fault("B041")
def test_b041_frozen_run_keeps_the_lock_and_goes_on_when_it_wakes(
    start: Start, run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """The others give up and name it; what it does is done once."""
    waits = "-- preflight: lock-timeout 60s\nSELECT pg_advisory_xact_lock(4711);\n"
    migrations(
        {"001_wait.sql": f"{waits}CREATE TABLE one ();", "002_two.sql": "CREATE TABLE two ();"}
    )
    with database.server.connect(database.name) as gate:
        gate.execute("SELECT pg_advisory_lock(4711)")
        frozen = start(env=QUICKLY)
        faults.until(lambda: database.query(AT_THE_GATE), "the file waits")
        frozen.signal(signal.SIGSTOP)
    other = run(env={**QUICKLY, "PREFLIGHT_LOCK_WAIT_S": "0.5"})
    frozen.signal(signal.SIGCONT)
    woken = frozen.wait()

    assert (11, "lock.busy") == (other.code, other.finished["error"]["code"]), str(other)
    assert (0, ["001_wait", "002_two"]) == (woken.code, woken.finished["applied"]), str(woken)
    assert 0 == run(env=QUICKLY).code


@pytest.mark.parametrize("seed", ["sample/1"])  # quick enough for every change
def test_two_runs_at_once_end_as_each_would_alone(
    server: servers.Server, tmp_path: Path, seed: str
) -> None:
    """One is held anywhere while the other goes to its end: `make together` goes on with it."""
    assert together.walk(server, tmp_path, "together", seed)
