"""Many runs at once, runs that are killed, and connections that break at any moment."""

import os
import signal
from pathlib import Path

import pytest

from tests import faults, program, servers
from tests.conftest import (
    CreateDatabase,
    Run,
    Start,
    StartServer,
    WriteMigrations,
)

QUICKLY = {"PREFLIGHT_BACKUP": "off"}
TWO = {
    "001_one.sql": "CREATE TABLE one (id int);\nINSERT INTO one VALUES (1);\n",
    "002_two.sql": "CREATE TABLE two (id int);\nINSERT INTO two SELECT id FROM one;\n",
}
NAP = {
    "001_nap.sql": "CREATE TABLE nap (id int);\n"
    "SELECT pg_sleep(current_setting('app.nap')::float8);\n"
}


@pytest.mark.fault("B031", "B037")
def test_thirty_runs_at_once_do_the_work_once(
    start: Start, database: servers.Database, migrations: WriteMigrations, backup_dir: Path
) -> None:
    """Every replica starts one: each file once, one backup, and all of them end with 0."""
    migrations(TWO)
    processes = [start() for _ in range(30)]
    results = [each.wait() for each in processes]

    assert [0] * 30 == [each.code for each in results], "\n".join(map(str, results))
    assert [1, 2] == database.query(
        "SELECT version FROM preflight.journal WHERE event = 'applied' ORDER BY id"
    )
    assert [(1, 1)] == database.query("SELECT (SELECT sum(id) FROM one), (SELECT sum(id) FROM two)")
    assert 1 == len(list(backup_dir.iterdir()))
    assert 1 == sum(len(each.event("backup.verified")) for each in results)


# a run that is killed


@pytest.fixture
def asleep(database: servers.Database, migrations: WriteMigrations) -> servers.Database:
    """Have a migration that sleeps in its middle, until `wake` is called."""
    migrations(NAP)
    database.script(f"ALTER DATABASE \"{database.name}\" SET app.nap = '600'")
    return database


def sleeping(database: servers.Database) -> list[int]:
    """Return the backends in which a migration sleeps."""
    return database.query(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        " AND wait_event = 'PgSleep'"
    )


def wake(database: servers.Database) -> None:
    """Let the next run through."""
    database.script(f"ALTER DATABASE \"{database.name}\" SET app.nap = '0'")


def test_killed_migration_is_run_again(start: Start, run: Run, asleep: servers.Database) -> None:
    """What kill -9 interrupts is rolled back by the server."""
    killed = start(env=QUICKLY)
    faults.until(lambda: sleeping(asleep), "the migration sleeps")
    killed.kill()
    wake(asleep)
    result = run(env=QUICKLY)

    assert 0 == result.code, str(result)
    assert [1] == asleep.query("SELECT version FROM preflight.journal WHERE event = 'applied'")


@pytest.mark.fault("C045")
def test_killed_backup_is_swept_and_made_again(
    start: Start, run: Run, migrations: WriteMigrations, backup_dir: Path, tmp_path: Path
) -> None:
    """After kill -9 a hidden half remains; the next run removes it."""
    migrations(TWO)
    (tmp_path / "bin").mkdir()
    marker = tmp_path / "marker"
    script = tmp_path / "bin" / "pg_dump"
    script.write_text(
        "#!/bin/sh\n"
        f'case "$1" in --version) exec "{servers.client_bin(18)}/pg_dump" "$@";; esac\n'
        f'printf partial\ntouch "{marker}"\nwhile printf . && sleep 0.1; do :; done\n'
    )
    script.chmod(0o755)
    killed = start(env={"PATH": f"{script.parent}:{program.path()}"})
    faults.until(marker.exists, "pg_dump runs")
    killed.kill()
    left = [each.name for each in backup_dir.iterdir()]
    result = run()

    assert [True] == [name.startswith(".") for name in left]
    assert 0 == result.code, str(result)
    assert [result.event("backup.verified")[0]["backup"]] == [
        each.name for each in backup_dir.iterdir()
    ]


# a connection that breaks


def test_terminated_session_is_a_lost_connection(
    start: Start, run: Run, asleep: servers.Database
) -> None:
    """pg_terminate_backend in the middle of a file: 13, rolled back, and the next run does it."""
    process = start(env=QUICKLY)
    faults.until(lambda: sleeping(asleep), "the migration sleeps")
    asleep.query("SELECT pg_terminate_backend(%s)", sleeping(asleep)[0])
    result = process.wait()
    left = asleep.query("SELECT to_regclass('nap'), count(*) FROM preflight.migrations")
    wake(asleep)
    again = run(env=QUICKLY)

    assert (13, "connection.lost") == (result.code, result.finished["error"]["code"])
    assert [(None, 0)] == left
    assert 0 == again.code, str(again)


@pytest.mark.fault("E114", "E115")
@pytest.mark.parametrize("how", ["restart", "crash"])
def test_server_that_goes_away_in_the_middle_leaves_no_doubt(  # noqa: PLR0913, PLR0917 - fixtures
    start: Start,
    run: Run,
    migrations: WriteMigrations,
    start_server: StartServer,
    create_database: CreateDatabase,
    how: str,
) -> None:
    """A restart, or a killed backend that takes all others with it: 13, then 0."""
    migrations({"000_before.sql": "CREATE TABLE before (id int);\n", **NAP})
    server = start_server(fsync="on")
    database = create_database(server, "app")
    database.script("ALTER DATABASE app SET app.nap = '600'")
    process = start(env={**QUICKLY, **database.env()})
    faults.until(lambda: sleeping(database), "the migration sleeps")
    if how == "crash":
        os.kill(sleeping(database)[0], signal.SIGKILL)
    else:
        server.restart("fast")
    result = process.wait()
    left = database.query("SELECT to_regclass('nap'), version FROM preflight.migrations")
    wake(database)
    again = run(env={**QUICKLY, **database.env()})

    assert (13, ["000_before"]) == (result.code, result.finished["applied"]), str(result)
    assert [(None, 0)] == left
    assert (0, ["001_nap"]) == (again.code, again.finished["applied"]), str(again)


@pytest.mark.fault("E116")
def test_commit_whose_answer_is_lost_is_read_back(
    run: Run, server: servers.Server, database: servers.Database, migrations: WriteMigrations
) -> None:
    """It came through, so the file is not run again, and the run goes on with the next."""
    migrations(TWO)
    with faults.through(server, faults.LostCommit(2)) as proxy:
        result = run(env={**QUICKLY, **proxy.env()})

    assert 0 == result.code, str(result)
    assert [True] == [each["read_back"] for each in result.event("migration.applied")[:1]]
    assert [1, 2] == database.query(
        "SELECT version FROM preflight.journal WHERE event = 'applied' ORDER BY id"
    )
    assert [1] == database.query("SELECT id FROM two")


class _CutsLookUnderTheLock(faults.Fault):
    """Cuts the connection at the first look of the session that holds the lock."""

    def __init__(self) -> None:
        self.locked = self.cut = False

    def to_server(self, kind: bytes, message: bytes) -> bytes:
        """Let the lock be taken first."""
        del kind
        if self.locked and not self.cut and b"READ ONLY" in message:
            self.cut = True
            raise faults.Cut
        self.locked = self.locked or b"pg_try_advisory_lock" in message
        return message


def test_lock_that_is_lost_with_its_connection_is_not_worked_without(
    run: Run, server: servers.Server, database: servers.Database, migrations: WriteMigrations
) -> None:
    """A look that may be asked again is not, where the lock would be gone unnoticed: 13."""
    migrations(TWO)
    with faults.through(server, _CutsLookUnderTheLock()) as proxy:
        result = run(env={**QUICKLY, **proxy.env()})

    assert (13, 1) == (result.code, len(result.event("lock.acquired"))), str(result)
    assert [None] == database.query("SELECT to_regclass('one')")


@pytest.mark.fault("E117")
@pytest.mark.parametrize("message", range(8, 248, 20))
def test_connection_cut_after_any_message_converges(
    run: Run,
    server: servers.Server,
    database: servers.Database,
    migrations: WriteMigrations,
    message: int,
) -> None:
    """Each file is applied once or not at all, the history tells which, and a re-run is 0."""
    migrations(TWO)
    cut = faults.CutAfter(message)
    with faults.through(server, cut) as proxy:
        first = run(env={**QUICKLY, **proxy.env()})
    known = database.query("SELECT to_regclass('preflight.migrations')") != [None]
    history = database.query("SELECT version FROM preflight.migrations ORDER BY 1") if known else []
    reality = database.query(
        "SELECT v FROM unnest(ARRAY[1, 2], ARRAY['one', 'two']) AS t(v, name)"
        " WHERE to_regclass(name) IS NOT NULL ORDER BY 1"
    )
    again = run(env=QUICKLY)

    assert cut.left < 0, "a run has fewer messages than that: nothing was cut"
    assert first.code in (0, 13), str(first)
    assert reality == history
    assert 0 == again.code, str(again)
    assert [1, 2] == database.query(
        "SELECT version FROM preflight.journal WHERE event = 'applied' ORDER BY id"
    )
    assert [(1, 1)] == database.query("SELECT (SELECT sum(id) FROM one), (SELECT sum(id) FROM two)")
