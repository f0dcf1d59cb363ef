"""SIGTERM, SIGINT and SIGHUP at every step: gone within five seconds, and nothing left behind."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from preflight import run
from preflight.base import stop
from preflight.base.config import Config
from preflight.server import lock, sessions
from tests import faults, program, servers
from tests.conftest import Run, Start, WriteMigrations

STOP_S = 5.0
LOADED_S = 15.0  # where the program waits out its own bounds, which leave a busy machine no time
ONE = {"001_one.sql": "CREATE TABLE one (id int);\n"}
NAP = {"001_nap.sql": "CREATE TABLE nap (id int);\nSELECT pg_sleep(600);\n"}
QUICKLY = {"PREFLIGHT_BACKUP": "off"}
OUR_LOCKS = (
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database ="
    " (SELECT oid FROM pg_database WHERE datname = current_database())"
)

LeavesNothing = Callable[[program.Result], None]


@pytest.fixture
def leaves_nothing(
    database: servers.Database, backup_dir: Path, termination_log: Path
) -> LeavesNothing:
    """Check what a stopped run leaves: one last event, its copy, and nothing else."""

    def check(result: program.Result) -> None:
        code = result.finished["exit_code"]
        assert (code, "stopped") == (result.code, result.finished["outcome"]), str(result)
        assert code == json.loads(termination_log.read_text())["exit_code"]
        assert [] == list(backup_dir.iterdir())
        faults.until(lambda: database.sessions() == 0, "our sessions are gone")
        assert [0] == database.query(OUR_LOCKS)

    return check


def asleep(database: servers.Database) -> list[int]:
    """Return the backends in which a migration sleeps."""
    return database.query(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        " AND wait_event = 'PgSleep'"
    )


@pytest.mark.parametrize(
    ("module", "number", "code"),
    [
        ("preflight.quick", signal.SIGTERM, 143),
        ("preflight.quick.door", signal.SIGINT, 130),
        ("preflight.run", signal.SIGTERM, 143),
        ("preflight.run", signal.SIGINT, 130),
        ("structlog", signal.SIGTERM, 143),
        ("structlog", signal.SIGINT, 130),
        ("structlog", signal.SIGHUP, 143),
        ("preflight.base.config", signal.SIGTERM, 143),
        ("preflight.base.config", signal.SIGINT, 130),
    ],
)
def test_stop_while_python_still_loads_ends_the_run(  # noqa: PLR0913, PLR0917 -- fixtures
    run: Run,
    leaves_nothing: LeavesNothing,
    database: servers.Database,
    tmp_path: Path,
    module: str,
    number: signal.Signals,
    code: int,
) -> None:
    """As later: its exit code, one last event, nothing done."""
    asks_itself(tmp_path, module, number)

    result = run(env={"PYTHONPATH": str(tmp_path)})

    leaves_nothing(result)
    assert code == result.code
    assert [None] == database.query("SELECT to_regclass('one')")


def asks_itself(place: Path, module: str, number: signal.Signals, first: str = "") -> None:
    """Have a program that finds this place on PYTHONPATH send itself a signal at an import."""
    (place / "sitecustomize.py").write_text(
        f"import os, signal, sys\n{first}\n"
        "class Ask:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), {int(number)})\n"
        "sys.meta_path.insert(0, Ask())\n"
    )


def test_closed_terminal_is_no_stop_after_nohup(
    run: Run, migrations: WriteMigrations, tmp_path: Path
) -> None:
    """Who starts a run so has asked for it; the programs that it starts go on as well."""
    migrations(ONE)
    ignored = "signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    asks_itself(tmp_path, "preflight.apply.forward", signal.SIGHUP, ignored)
    result = run(env={**QUICKLY, "PYTHONPATH": str(tmp_path)})

    assert (0, ["001_one"]) == (result.code, result.finished["applied"]), str(result)


class Blocked:
    """A client program that starts, says a little, and then never ends by itself."""

    def __init__(self, place: Path, name: str, *, stubborn: bool = False) -> None:
        """Put it in front of the real one on PATH."""
        place.mkdir()
        self.path = f"{place}:{program.path()}"
        self._pid = place / "pid"
        script = place / name
        ignore = "trap '' TERM" if stubborn else ""
        script.write_text(
            "#!/bin/sh\n"
            f'case "$1" in --version) exec "{servers.client_bin(18)}/{name}" "$@";; esac\n'
            f"{ignore}\n"
            f'printf partial\necho $$ > "{self._pid}.new"\nmv "{self._pid}.new" "{self._pid}"\n'
            "exec sleep 600\n"
        )
        script.chmod(0o755)

    def started(self) -> bool:
        """Tell whether it runs, or ran."""
        return self._pid.exists()

    def gone(self) -> bool:
        """Tell whether it is dead and buried."""
        try:
            os.kill(int(self._pid.read_text()), 0)
        except ProcessLookupError:
            return True
        return False


def asked_again(process: program.Process) -> bool:
    """Send SIGTERM once more; tell whether the process is gone."""
    process.signal(signal.SIGTERM)
    return not process.running


@pytest.mark.fault("F128")
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 143)],
)
def test_stop_while_waiting_for_the_server(
    start: Start,
    migrations: WriteMigrations,
    leaves_nothing: LeavesNothing,
    number: signal.Signals,
    code: int,
) -> None:
    """The code says which signal; a terminal that was closed is a SIGTERM."""
    migrations(ONE)
    with faults.stranger(faults.says_nothing) as silent:
        process = start(env={**silent, "PGCONNECT_TIMEOUT": "1"})
        process.wait_for_event("server.waiting")
        process.signal(number)
        result = process.wait(STOP_S)

    assert code == result.code
    leaves_nothing(result)


def test_stop_while_waiting_for_the_lock(
    start: Start,
    database: servers.Database,
    migrations: WriteMigrations,
    leaves_nothing: LeavesNothing,
) -> None:
    """The other run is not disturbed."""
    migrations(ONE)
    with psycopg.connect(database.conninfo(), autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", [lock.key("preflight")])
        process = start()
        process.wait_for_event("lock.busy")
        process.signal(signal.SIGTERM)
        result = process.wait(STOP_S)

        assert [1] == database.query(OUR_LOCKS)

    assert 143 == result.code
    leaves_nothing(result)


@pytest.mark.fault("C075")
@pytest.mark.parametrize(
    ("name", "stubborn"), [("pg_dump", False), ("pg_dump", True), ("pg_restore", False)]
)
def test_stop_while_the_backup_is_made(  # noqa: PLR0913, PLR0917 - fixtures
    start: Start,
    migrations: WriteMigrations,
    leaves_nothing: LeavesNothing,
    tmp_path: Path,
    name: str,
    stubborn: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """Asked again and again: the client program ends, its half of a dump is removed."""
    migrations(ONE)
    client = Blocked(tmp_path / "bin", name, stubborn=stubborn)
    process = start(env={"PATH": client.path})
    faults.until(client.started, f"{name} runs")
    faults.until(lambda: asked_again(process), "it is gone", STOP_S)
    result = process.wait()

    assert 143 == result.code
    assert client.gone()
    leaves_nothing(result)


@pytest.mark.fault("F129")
def test_stop_in_the_middle_of_a_migration(
    start: Start,
    database: servers.Database,
    migrations: WriteMigrations,
    leaves_nothing: LeavesNothing,
) -> None:
    """The statement is cancelled on the server, and the file rolled back."""
    migrations({**NAP, "002_two.sql": "CREATE TABLE two (id int);\n"})
    process = start(env=QUICKLY)
    faults.until(lambda: asleep(database), "the migration sleeps")
    process.signal(signal.SIGTERM)
    result = process.wait(STOP_S)

    assert 143 == result.code
    assert [] == asleep(database)
    assert [(None, None, 0)] == database.query(
        "SELECT to_regclass('nap'), to_regclass('two'), (SELECT count(*) FROM preflight.migrations)"
    )
    leaves_nothing(result)


def test_stop_between_the_steps_of_a_file_without_transaction(
    start: Start,
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    leaves_nothing: LeavesNothing,
) -> None:
    """What is done stays done, and the next run goes on from there."""
    migrations(
        {
            "001_steps.sql": "-- preflight: no-transaction\nCREATE TABLE one (id int);\n"
            "SELECT pg_sleep(current_setting('app.nap')::float8);\nCREATE TABLE two (id int);\n"
        }
    )
    database.script(f"ALTER DATABASE \"{database.name}\" SET app.nap = '600'")
    process = start(env=QUICKLY)
    faults.until(lambda: asleep(database), "the migration sleeps")
    process.signal(signal.SIGTERM)
    result = process.wait(STOP_S)
    leaves_nothing(result)
    database.script(f"ALTER DATABASE \"{database.name}\" SET app.nap = '0'")
    again = run(env=QUICKLY)

    assert 143 == result.code
    assert "finished statements of 001_steps.sql (1) stay" in result.finished["error"]["message"]
    assert 0 == again.code, str(again)
    assert [("done", 3)] == database.query(
        "SELECT state, statements_done FROM preflight.migrations"
    )


def test_bounds_of_a_stop_are_within_the_promise() -> None:
    """What the two tests below wait for, however busy the machine."""
    assert run.HARD_STOP_S + run.LAST_ANSWER_S + run.LAST_WORD_S < STOP_S


def test_stop_against_a_silent_server(
    start: Start, database: servers.Database, migrations: WriteMigrations
) -> None:
    """A backend that does not answer a cancel request cannot hold us; it rolls back later."""
    migrations(NAP)
    process = start(env=QUICKLY)
    faults.until(lambda: asleep(database), "the migration sleeps")
    backend = asleep(database)[0]
    os.kill(backend, signal.SIGSTOP)
    try:
        process.signal(signal.SIGTERM)
        result = process.wait(LOADED_S)
    finally:
        os.kill(backend, signal.SIGCONT)

    assert (143, 143) == (result.code, result.finished["exit_code"])
    assert "the lock is free" not in result.finished["error"]["message"]
    assert "when it notices that we are gone" in result.finished["error"]["message"]
    faults.until(lambda: database.sessions() == 0, "the backend has seen that we are gone")
    assert [None] == database.query("SELECT to_regclass('nap')")


def test_stop_after_the_last_commit_is_success(
    start: Start,
    server: servers.Server,
    database: servers.Database,
    migrations: WriteMigrations,
) -> None:
    """A COMMIT that is under way is waited for, and with it everything is done."""
    migrations(ONE)
    fault = faults.SlowCommit(2)  # the first is that of the history's tables
    with faults.through(server, fault) as proxy:
        process = start(env={**QUICKLY, **proxy.env()})
        assert fault.held.wait(20)
        process.signal(signal.SIGTERM)
        fault.let_go.set()
        result = process.wait(STOP_S)

    assert (0, ["001_one"]) == (result.code, result.finished.get("applied")), str(result)
    assert [1] == database.query("SELECT version FROM preflight.migrations")


@pytest.mark.fault("F130")
def test_stop_during_a_commit_without_answer_says_that_it_does_not_know(
    start: Start,
    run: Run,
    server: servers.Server,
    database: servers.Database,
    migrations: WriteMigrations,
) -> None:
    """Neither done nor rolled back can be promised then: 13, and the next run reads it back."""
    migrations(ONE)
    fault = faults.LostCommit(2, silently=True)  # the first is that of the history's tables
    with faults.through(server, fault) as proxy:
        process = start(env={**QUICKLY, **proxy.env()})
        assert fault.done.wait(20)
        process.signal(signal.SIGTERM)
        result = process.wait(LOADED_S)
    again = run(env=QUICKLY)

    assert (13, "connection.unanswered") == (result.code, result.finished["error"]["code"])
    assert 0 == again.code, str(again)
    assert [1] == database.query("SELECT version FROM preflight.migrations")


@pytest.mark.parametrize("command", ["up", "rollback"])
def test_stop_while_a_lost_commit_is_read_back_says_that_it_does_not_know(  # noqa: PLR0913, PLR0917 -- fixtures
    start: Start,
    run: Run,
    server: servers.Server,
    database: servers.Database,
    migrations: WriteMigrations,
    command: str,
) -> None:
    """It has come through here, and `rolled back` would be a lie."""
    migrations(ONE | {"001_one_rollback.sql": "DROP TABLE one;\n"})
    if command == "rollback":
        assert 0 == run(env=QUICKLY).code
    fault = faults.LostAndGone(2)
    with faults.through(server, fault) as proxy:
        process = start(command, env={**QUICKLY, **proxy.env()})
        assert fault.asked.wait(20)
        process.signal(signal.SIGTERM)
        result = process.wait(LOADED_S)

    assert (13, "connection.lost") == (result.code, result.finished["error"]["code"]), str(result)
    assert [1] * (command == "up") == database.query("SELECT version FROM preflight.migrations")


# as a container starts it


@pytest.fixture
def outside() -> Iterator[Path]:
    """Give a directory that every user can reach."""
    made = Path(tempfile.mkdtemp(prefix="pg-preflight-test-", dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.mark.fault("F133")
def test_any_user_without_a_home_can_run_it(
    outside: Path, bare_environment: dict[str, str], database: servers.Database
) -> None:
    """A user id that nobody knows, no HOME, a directory it may not write to, and one for TMPDIR."""
    for name, text in ONE.items():
        (outside / "migrations").mkdir()
        (outside / "migrations" / name).write_text(text)
    places = {"PREFLIGHT_BACKUP_DIR": outside / "backups", "TMPDIR": outside / "tmp"}
    for each in places.values():
        each.mkdir()
    user = []
    if os.geteuid() == 0 and program.ENTRYPOINT.stat().st_mode & 0o004:
        user = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", "--no-new-privs"]
        for each in places.values():
            os.chown(each, 54321, 54321)
    done = subprocess.run(
        [*user, sys.executable, program.ENTRYPOINT],
        env={
            **{name: value for name, value in bare_environment.items() if name == "PATH"},
            **database.env(),
            "PREFLIGHT_MIGRATIONS_DIR": str(outside / "migrations"),
            **{name: str(path) for name, path in places.items()},
        },
        cwd="/proc",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert 0 == done.returncode, done.stdout + done.stderr
    assert [1] == database.query("SELECT version FROM preflight.migrations")
    assert [] == list((outside / "tmp").iterdir())


AS_OTHER = ["setpriv", "--reuid=54322", "--regid=54322", "--clear-groups"]
UP = [*AS_OTHER, sys.executable, str(program.ENTRYPOINT)]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="a user of its own is root's to give")


@pytest.fixture
def others(
    outside: Path, bare_environment: dict[str, str], database: servers.Database
) -> dict[str, str]:
    """Give what a user of its own needs to run `up`."""
    (outside / "migrations").mkdir()
    for name, text in ONE.items():
        (outside / "migrations" / name).write_text(text)
    places = {"PREFLIGHT_BACKUP_DIR": outside / "backups", "TMPDIR": outside / "tmp"}
    for each in places.values():
        each.mkdir()
        os.chown(each, 54322, 54322)
    return {
        "PATH": bare_environment["PATH"],
        **database.env(),
        "PREFLIGHT_MIGRATIONS_DIR": str(outside / "migrations"),
        "PREFLIGHT_WAIT_TIMEOUT_S": "1",
        **{name: str(path) for name, path in places.items()},
    }


def said(command: Sequence[str], env: Mapping[str, str], timeout: float = 60) -> program.Result:
    """Run a command as somebody else, whose directory is nobody's."""
    done = subprocess.run(
        command, env=env, cwd="/proc", capture_output=True, text=True, timeout=timeout, check=False
    )
    return program.Result(done.returncode, done.stdout, done.stderr, 0.0)


@needs_root
def test_limit_of_processes_is_told_as_what_passes(
    outside: Path, others: dict[str, str], database: servers.Database
) -> None:
    """Wherever the next thread cannot be started: run again, with the limit named, and no bug."""
    codes = []
    for most in range(1, 12):
        result = said(["prlimit", f"--nproc={most}", *UP], others)
        codes.append(result.code)
        if result.code == 0:
            break
        error = result.finished["error"]
        assert result.code in range(10, 15), str(result)
        assert "thread can be started" in error["message"]
        assert "`ulimit -u`" in error["hint"]
        assert "Is the database running" not in error["hint"]

    assert (10, 0) == (codes[0], codes[-1])
    assert 14 in codes
    assert [1] == database.query("SELECT version FROM preflight.migrations")
    assert [] == list((outside / "tmp").iterdir())


@needs_root
def test_file_is_applied_where_nobody_can_watch_it(
    others: dict[str, str], database: servers.Database
) -> None:
    """Somebody takes the last process in the middle of a run: a thread that watches is spared."""
    env = {**others, "PREFLIGHT_BACKUP": "off", "PREFLIGHT_REHEARSE": "off"}
    with (
        psycopg.connect(database.conninfo(), autocommit=True) as holder,
        contextlib.ExitStack() as stack,
    ):
        holder.execute("SELECT pg_advisory_lock(%s)", [lock.key("preflight")])
        limited = ["prlimit", "--nproc=4", *UP]
        child = subprocess.Popen(limited, env=env, cwd="/proc", stdout=subprocess.PIPE, text=True)
        stack.enter_context(child)
        stack.callback(child.kill)
        assert child.stdout is not None
        said = next((line for line in child.stdout if '"lock.busy"' in line), "")
        for _ in range(3):
            echo = ["sh", "-c", "echo here; read end"]
            last = subprocess.Popen(
                [*AS_OTHER, *echo], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            stack.enter_context(last)
            assert last.stdout is not None
            assert b"here\n" == last.stdout.readline()
        holder.execute("SELECT pg_advisory_unlock_all()")
        said += child.stdout.read()
        child.wait()

    assert 0 == child.returncode, said
    assert [1] == database.query("SELECT version FROM preflight.migrations")


@needs_root
def test_service_without_a_user_is_named_where_ours_has_no_name(
    outside: Path, others: dict[str, str]
) -> None:
    """Libpq would call it like this process's user, whom nobody knows: 20, and nobody waits."""
    (outside / "services").write_text(
        f"[live]\nhost={others['PGHOST']}\nport={others['PGPORT']}\ndbname=d\n"
    )
    env = {name: value for name, value in others.items() if not name.startswith("PG")}
    env |= {"PGSERVICE": "live", "PGSERVICEFILE": str(outside / "services")}
    env |= {"PREFLIGHT_WAIT_TIMEOUT_S": "50"}
    result = said([*UP, "check"], env, timeout=30)
    error = result.finished["error"]

    assert (20, "config.connection") == (result.code, error["code"])
    assert "no user is said" in error["message"]
    assert "PGUSER" in error["hint"]


@pytest.fixture
def unasked(database: servers.Database, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Lead to the database from this very process, which nobody has asked to stop."""
    for name, value in (("_requested", None), ("_raised", False)):
        monkeypatch.setattr(stop, name, value)
    target = {name: str(value) for name, value in conninfo_to_dict(database.conninfo()).items()}
    return Config(target, {}, Path("/nowhere"), run_id="run", wait_timeout_s=15)


def stopped_once_it_is_sent(
    session: sessions.Session, first: Callable[[], object] = lambda: None
) -> None:
    """Ask for a stop when a statement is sent and not waited for yet; do something `first`."""

    def asked(frame: FrameType, event: str, _: object) -> None:
        if (event, frame.f_code.co_name) == ("return", "_execute_send"):
            sys.setprofile(None)
            first()
            stop.request(signal.SIGTERM)

    try:
        sys.setprofile(asked)
        with pytest.raises(stop.Stopped):
            session.execute("SELECT pg_sleep(600)")
    finally:
        sys.setprofile(None)


def test_stop_between_sending_and_waiting_leaves_the_session_free_for_the_clean_up(
    unasked: Config,
) -> None:
    """Psycopg cancels what it waits for, and does not know of what it has just sent."""
    with sessions.connect(unasked) as session:
        session.execute("BEGIN")
        stopped_once_it_is_sent(session)
        found = session.connection.execute("ROLLBACK").statusmessage

    assert "ROLLBACK" == found


def test_stop_between_sending_and_waiting_ends_although_nobody_takes_the_cancel(
    database: servers.Database, unasked: Config
) -> None:
    """A server that accepts and says no more is not asked for ever: the session is given up."""
    postmaster = int((database.server.data / "postmaster.pid").read_text().split()[0])

    with sessions.connect(unasked) as session, waking(postmaster) as waker:
        stopped_once_it_is_sent(session, lambda: os.kill(postmaster, signal.SIGSTOP))
        assert waker.poll() is None, "it came back only when somebody woke the server"
        assert session.lost


@contextlib.contextmanager
def waking(pid: int) -> Iterator[subprocess.Popen[bytes]]:
    """Have a process that stands still go on in the end, although no thread of ours may run."""
    wakes = f"import os, time; time.sleep(60); os.kill({pid}, {int(signal.SIGCONT)})"
    waker = subprocess.Popen([sys.executable, "-c", wakes])
    try:
        yield waker
    finally:
        waker.kill()
        waker.wait()
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("mark", ["", "-- preflight: no-transaction\n"])
def test_stop_in_a_flood_of_notices_is_a_stop(
    start: Start, database: servers.Database, migrations: WriteMigrations, mark: str
) -> None:
    """Also one that comes while libpq tells us of a notice, where nothing can be raised."""
    flood = "DO $$ BEGIN FOR i IN 1..100000000 LOOP RAISE WARNING 'n %', i; END LOOP; END $$;"
    migrations({"001_a.sql": f"{mark}CREATE TABLE t ();\n{flood}"})
    ends = []
    for _ in range(3):
        process = start("up", env={"PREFLIGHT_BACKUP": "off"})
        process.wait_for_event("migration.progressed")
        process.signal(signal.SIGTERM)
        result = process.wait()
        ends.append((result.code, result.finished["error"]["code"]))
        database.script("DROP TABLE IF EXISTS t; DROP SCHEMA preflight CASCADE")

    assert [(143, "run.stopped")] * 3 == ends
