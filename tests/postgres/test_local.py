"""The throwaway server: what it is, that it ends with the job, and what it says where it cannot."""

import contextlib
import dataclasses
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest

from preflight.base import landlock
from preflight.base.config import Config, child_environment
from preflight.rehearsal import cluster, confined, local
from preflight.server import sessions
from tests import faults, servers

MAJORS = (16, 17, 18)  # whose wheels have initdb
ROOT = os.geteuid() == 0
STRANGER = 65531  # a user without a name
LONG = "a-directory-whose-name-is-longer-than-a-socket-may-be" * 2


@pytest.fixture
def directory() -> Iterator[Path]:
    """Give a directory that the server's user can enter, whoever we are."""
    made = Path(tempfile.mkdtemp(prefix="pg-preflight-local-", dir="/tmp"))
    made.chmod(0o777)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="session")
def find() -> Callable[[int], local.Programs]:
    """Find the server programs of a major, as they are found beside pg_dump."""

    def found(major: int) -> local.Programs:
        return local.find(major, pg_dump(major), "")

    return found


def pg_dump(major: int) -> str:
    """Return where the pg_dump of a major is, at a place that every user reaches."""
    try:
        return str(servers.installation(major) / "bin" / "pg_dump")
    except servers.Unavailable as reason:
        pytest.skip(f"no PostgreSQL {major}: {reason}")


@pytest.fixture(scope="session")
def template(find: Callable[[int], local.Programs]) -> Iterator[Path]:
    """Give a cluster to copy, as the image has one, readable for everybody."""
    home = Path(tempfile.mkdtemp(prefix="pg-preflight-template-", dir="/tmp"))
    home.chmod(0o777)
    with local.started(find(17), home, "template", need=0) as server:
        server.end()
        shutil.copytree(server.data, home / "cluster", copy_function=shutil.copyfile)
    for path in (home / "cluster", *(home / "cluster").rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (home / "cluster" / "postmaster.pid").unlink(missing_ok=True)
    yield home / "cluster"
    shutil.rmtree(home)


@pytest.fixture(scope="session")
def programs(find: Callable[[int], local.Programs], template: Path) -> local.Programs:
    """Give the programs with a cluster to copy, which is quicker than initdb."""
    return dataclasses.replace(find(17), template=template)


def config(**environment: str) -> Config:
    """Return a run's configuration in an environment."""
    return Config({}, child_environment(environment), Path("/nowhere"), run_id="run")


class Job:
    """A process with a throwaway server."""

    def __init__(
        self, directory: Path, run_id: str = "job", before: Sequence[str] = (), **wanted: object
    ) -> None:
        """Start it, by a command that stands `before`; what it says is read by `begun`."""
        asked = {
            "major": 17,
            "pg_dump": pg_dump(17),
            "directory": str(directory),
            "run_id": run_id,
            **wanted,
        }
        self.process = subprocess.Popen(
            [*before, sys.executable, "-m", "tests.throwaway", json.dumps(asked)],
            cwd=servers.REPOSITORY,
            env={"PATH": os.defpath, "PYTHONPATH": str(servers.REPOSITORY)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def begun(self) -> dict[str, Any]:
        """Return what it said once its server ran, or why there is none."""
        assert self.process.stdout is not None
        said: dict[str, Any] = json.loads(self.process.stdout.readline())
        return said

    def end(self, number: signal.Signals | None = None) -> int:
        """End it by a signal, or by its end of input; return its code."""
        if number is not None:
            self.process.send_signal(number)
        self.process.communicate(timeout=60)
        return self.process.returncode


@contextlib.contextmanager
def job(
    directory: Path, run_id: str = "job", before: Sequence[str] = (), **wanted: object
) -> Iterator[Job]:
    """Start a job; it is killed in the end if it still runs."""
    started = Job(directory, run_id, before, **wanted)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.communicate()


def wait_until_gone(home: Path) -> None:
    """Wait for the end of every process in a run's directory, not longer than half a minute."""
    for pid in faults.processes_in(home):
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            try:
                assert select.select([descriptor], [], [], 30)[0], f"{pid} still runs"
            finally:
                os.close(descriptor)


def ours(directory: Path) -> list[str]:
    """Return what of ours lies in a directory."""
    return sorted(path.name for path in directory.glob(".*"))


# --- what it is -----------------------------------------------------------------------------------


@pytest.mark.parametrize("major", MAJORS)
def test_server_is_of_that_major_listens_on_its_socket_alone_and_leaves_nothing(
    find: Callable[[int], local.Programs], directory: Path, major: int
) -> None:
    """The copy's data is for nobody else, is not made durable, and is gone in the end."""
    with local.started(find(major), directory, "run", need=0) as server:
        with cluster.connected(config(), server) as session:
            shown = {
                name: session.execute(f"SHOW {name}").fetchone()
                for name in ("listen_addresses", "fsync", "wal_level", "shared_preload_libraries")
            }
            version = session.facts.major if session.facts else 0
        mode = server.directory.stat().st_mode & 0o777
        whose = Path(f"/proc/{server.process.pid}").stat().st_uid if server.process else 0
        assert [".preflight-rehearsal-run"] == ours(directory)

    assert major == version
    assert [("",), ("off",), ("minimal",), ("",)] == list(shown.values())
    assert (0o711 if ROOT else 0o700) == mode
    assert whose != 0
    assert [] == ours(directory)
    assert [] == faults.processes_in(directory)


def test_second_copy_of_a_run_finds_its_place_free(
    programs: local.Programs, directory: Path
) -> None:
    """The first had its cluster made ahead, in the directory of that name."""
    with local.ahead(lambda: programs, directory, "run", 0):
        for _ in range(2):
            with local.started(programs, directory, "run", need=0) as server:
                assert [".preflight-rehearsal-run"] == ours(directory)
                assert server.ended(0.0) is None
    local.sweep(directory)

    assert [] == ours(directory)


def test_limits_and_wal_level_are_the_callers(programs: local.Programs, directory: Path) -> None:
    """What a file runs into on the live server, it runs into on the copy."""
    wanted = {"max_locks_per_transaction": "77", "wal_level": "logical", "max_connections": "13"}

    with (
        local.started(programs, directory, "run", need=0, settings=wanted) as server,
        cluster.connected(config(), server) as session,
    ):
        found = {name: session.execute(f"SHOW {name}").fetchone() for name in wanted}

    assert {name: (value,) for name, value in wanted.items()} == found


def test_server_can_listen_on_this_machine_with_a_password(
    programs: local.Programs, directory: Path
) -> None:
    """A command that knows no sockets is let in over 127.0.0.1, but not without a password."""
    with (
        local.started(programs, directory, "run", need=0, tcp=True) as server,
        cluster.connected(config(), server) as session,
    ):
        session.execute("CREATE ROLE app LOGIN PASSWORD 'secret'")
        address = f"host=127.0.0.1 port={server.port} user=app dbname={local.HOME}"
        with psycopg.connect(f"{address} password=secret") as connection:
            found = connection.execute("SELECT current_user").fetchone()
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(address)

    assert ("app",) == found


def test_socket_lets_nobody_in_but_who_was_named(programs: local.Programs, directory: Path) -> None:
    """Roles may log in as on the live server, and what runs inside finds no way to be another."""
    users = ["a b", "all"]
    with (
        local.started(programs, directory, "run", need=0, users=users) as server,
        cluster.connected(config(), server) as session,
    ):
        session.execute('CREATE ROLE "a b" LOGIN; CREATE ROLE other LOGIN SUPERUSER')
        address = f"host={server.socket} dbname={local.HOME}"
        with psycopg.connect(address, user="a b") as connection:
            found = connection.execute("SELECT current_user").fetchone()
        with pytest.raises(psycopg.OperationalError, match="no pg_hba"):
            psycopg.connect(address, user="other")

    assert ("a b",) == found


@pytest.mark.parametrize("by_service", [False, True])
def test_environment_leads_nowhere_else(
    programs: local.Programs,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    by_service: bool,
) -> None:
    """What libpq reads for the live server, of variables or a service, counts for it alone."""
    asked = {
        "hostaddr": "203.0.113.1",
        "port": "1",
        "sslmode": "verify-full",
        "sslrootcert": "system",
        "sslcertmode": "require",
        "sslnegotiation": "direct",
        "min_protocol_version": "3.2",
        "require_auth": "scram-sha-256",
        "requirepeer": "nobody_at_all",
        "channel_binding": "require",
        "target_session_attrs": "standby",
        "options": "-c role=nobody_at_all",
    }
    known = {
        option.keyword.decode(): (option.envvar or b"").decode()
        for option in psycopg.pq.Conninfo.get_defaults()
    }
    said = {name: value for name, value in asked.items() if name in known}
    environment = {known[name]: value for name, value in said.items()}
    if by_service:
        lines = [f"{name}={value}\n" for name, value in said.items()]
        (directory / "services").write_text("".join(["[live]\n", *lines]))
        environment = {"PGSERVICE": "live", "PGSERVICEFILE": str(directory / "services")}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    with (
        local.started(programs, directory, "run", need=0) as server,
        cluster.connected(config(**environment), server) as session,
    ):
        found = session.execute("SELECT current_user::text").fetchone()
        led, clients = session.config, session.client_address()

    assert (local.SUPERUSER,) == found
    assert [] == [name for name in led.child_env if name.startswith("PG")]
    assert set() == sessions.LENIENT.keys() & clients.keys()  # an older one would not know them


def test_long_path_gets_a_short_socket_that_goes_with_it(
    programs: local.Programs, directory: Path
) -> None:
    """A socket's path has 107 bytes; the directory may have more."""
    long = directory / LONG
    long.mkdir(mode=0o777)

    with local.started(programs, long, "run", need=0) as server:
        with cluster.connected(config(), server) as session:
            answer = session.execute("SELECT 1").fetchone()
        short = server.socket
        mode = short.stat().st_mode & 0o777

    assert (1,) == answer
    assert (0o700, False) == (mode, short.is_relative_to(directory))
    assert not short.exists()


def test_user_without_a_name_starts_from_the_template(directory: Path, template: Path) -> None:
    """Kubernetes gives any number, OpenShift a new one; initdb would refuse it."""
    with job(directory, template=str(template), uid=STRANGER if ROOT else None) as started:
        said = started.begun()
        owner = Path(f"/proc/{said['pid']}").stat().st_uid
        code = started.end()

    assert (STRANGER if ROOT else os.geteuid(), 0) == (owner, code)
    assert [] == ours(directory)


@pytest.mark.parametrize("without", ["/dev/shm"] if ROOT else [])  # noqa: S108 - a mount
def test_server_needs_no_shared_memory_on_a_disk(
    directory: Path, template: Path, without: str
) -> None:
    """A container may have none, or 64 MB of it."""
    away = f'while umount -l {without} 2>&-; do :; done; exec "$@"'
    with job(
        directory, before=["unshare", "--mount", "sh", "-c", away, "sh"], template=str(template)
    ) as started:
        said = started.begun()
        mounts = Path(f"/proc/{said['pid']}/mounts").read_text()
        code = started.end()

    assert f" {without} " not in mounts
    assert 0 == code
    assert [] == ours(directory)


@pytest.mark.parametrize("uid", [STRANGER] if ROOT else [])
def test_user_without_a_name_and_without_a_template_is_told(directory: Path, uid: int) -> None:
    """What initdb says is passed on, and nothing is left."""
    with job(directory, uid=uid) as started:
        said = started.begun()
        started.end()

    assert "NotHere" == said["unavailable"]
    assert "initdb failed" in said["why"]
    assert str(STRANGER) in said["why"]
    assert [] == ours(directory)


# --- its end --------------------------------------------------------------------------------------


def test_killed_job_leaves_no_process_and_after_the_next_run_no_directory(
    programs: local.Programs, directory: Path, template: Path
) -> None:
    """Kill -9 gives nobody a chance to clean up: the kernel ends the server, a run the rest."""
    with job(directory, template=str(template)) as started:
        home = Path(started.begun()["home"])
        started.end(signal.SIGKILL)
        wait_until_gone(home)
        left = ours(directory)

    with local.started(programs, directory, "next", need=0):
        after = ours(directory)

    assert [home.name] == left
    assert [".preflight-rehearsal-next"] == after
    assert [] == ours(directory)


def test_job_killed_over_a_long_path_leaves_no_short_directory(
    directory: Path, template: Path
) -> None:
    """The short directory of the socket is found by what the long one says."""
    long = directory / LONG
    long.mkdir(mode=0o777)
    with job(long, template=str(template)) as started:
        said = started.begun()
        started.end(signal.SIGKILL)
        wait_until_gone(Path(said["home"]))

    swept = local.sweep(long)

    assert [Path(said["home"]).name] == swept
    assert not Path(said["socket"]).exists()


def test_server_that_outlived_its_job_is_ended_by_the_next_run(
    directory: Path, template: Path
) -> None:
    """One that is stopped in a debugger hears no signal but KILL."""
    with job(directory, template=str(template)) as started:
        said = started.begun()
        os.kill(said["pid"], signal.SIGSTOP)
        started.end(signal.SIGKILL)
        assert faults.processes_in(directory)

        swept = local.sweep(directory)
        wait_until_gone(directory)

    assert [Path(said["home"]).name] == swept
    assert [] == ours(directory)


def test_stopped_job_ends_its_server_at_once(directory: Path, template: Path) -> None:
    """A stop takes no shutdown: nothing in there is worth one."""
    with job(directory, template=str(template)) as started:
        said = started.begun()
        began = time.monotonic()
        code = started.end(signal.SIGTERM)
        took = time.monotonic() - began

    assert 143 == code
    assert [] == faults.processes_in(Path(said["home"]))
    assert [] == ours(directory)
    assert took < local.END_S + 1


def test_sweep_leaves_a_living_run_and_a_strangers_process_alone(
    programs: local.Programs, directory: Path
) -> None:
    """A pid may have been given again, and a neighbour may be at work."""
    left = directory / ".preflight-rehearsal-dead"
    (left / "data").mkdir(parents=True)
    (left / ".lock").touch()
    with (
        subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as stranger,
        local.started(programs, directory, "alive", need=0) as server,
    ):
        if left.exists():  # `started` has swept it already
            pytest.fail("a dead run's directory was left")
        (left / "data").mkdir(parents=True)
        (left / ".lock").touch()
        (left / "data" / "postmaster.pid").write_text(f"{stranger.pid}\n")

        swept = local.sweep(directory)

        assert ([left.name], None) == (swept, stranger.poll())
        assert server.running
        stranger.kill()


def test_link_is_not_swept(directory: Path, tmp_path: Path) -> None:
    """What somebody links there under our name is not ours to remove."""
    (tmp_path / ".lock").touch()
    (directory / ".preflight-rehearsal-link").symlink_to(tmp_path)

    assert [] == local.sweep(directory)
    assert (tmp_path / ".lock").exists()


def test_crash_of_a_backend_is_the_servers_end_and_says_so(
    programs: local.Programs, directory: Path
) -> None:
    """Out of memory in here is no fault of a file, nor of the backup."""
    with local.started(programs, directory, "run", need=0) as server:
        before = server.death()
        with cluster.connected(config(), server) as session:
            os.kill(session.connection.info.backend_pid, signal.SIGKILL)
            assert server.process is not None
            server.process.wait(30)
        death = server.death()

    assert before is None
    assert "the throwaway server ended by itself" in str(death)
    assert "terminated by signal 9" in str(death)


def test_twenty_at_once_share_a_directory(directory: Path, template: Path) -> None:
    """Each has its own, none sweeps another's, and nothing of them stays."""
    with job(directory, count=20, template=str(template)) as started:
        homes = {started.begun()["home"] for _ in range(20)}
        running = ours(directory)
        code = started.end()

    assert sorted(Path(home).name for home in homes) == running
    assert (20, 0) == (len(running), code)
    assert [] == ours(directory)
    assert [] == faults.processes_in(directory)


# --- room -----------------------------------------------------------------------------------------


def test_too_little_room_is_known_before_a_byte_is_written(
    programs: local.Programs, directory: Path
) -> None:
    """The file system's, or the limit that only we were told of."""
    (directory / "others").write_bytes(bytes(2_000_000))
    free = local.room(directory).free

    with pytest.raises(local.NoRoom, match="on its file system") as by_disk:
        begin(programs, directory, need=2 * free)
    with pytest.raises(local.NoRoom, match="PREFLIGHT_REHEARSE_DIR_MB=10") as by_limit:
        begin(programs, directory, need=9_000_000, limit_mb=10)

    assert "are needed" in str(by_disk.value)
    assert "8.0 MB are free" in str(by_limit.value)
    assert [] == ours(directory)


def begin(programs: local.Programs, directory: Path, *, need: int, limit_mb: int = 0) -> None:
    """Start a server that is not to start."""
    with local.started(programs, directory, "run", need=need, limit_mb=limit_mb):
        pytest.fail("it started")


def test_what_a_run_was_promised_no_other_gets(programs: local.Programs, directory: Path) -> None:
    """Two that begin together must not both count the same free bytes."""
    half = local.room(directory).free // 2 + 100_000_000

    with (
        local.started(programs, directory, "first", need=half),
        pytest.raises(local.NoRoom, match="for other runs"),
        local.started(programs, directory, "second", need=half),
    ):
        pass

    assert [] == ours(directory)


def test_restore_is_stopped_before_the_bound(programs: local.Programs, directory: Path) -> None:
    """A kubelet evicts the pod whose emptyDir is too large: stop before it does."""
    with local.started(programs, directory, "run", need=0, limit_mb=150) as server:
        server.require_room()
        before = server.used()
        with cluster.connected(config(), server) as session:
            session.execute(
                "CREATE TABLE public.big AS SELECT repeat('x', 1900) FROM generate_series(1, 40000)"
            )
        server.forget()

        with pytest.raises(local.NoRoom, match="left below PREFLIGHT_REHEARSE_DIR_MB=150"):
            server.require_room()
        assert server.used() > before + 70_000_000


@pytest.mark.parametrize("megabytes", [100] if ROOT else [])
def test_small_tmpfs_is_full_before_it_is_full(
    programs: local.Programs, directory: Path, megabytes: int
) -> None:
    """A mounted tmpfs with its size: no room, and what room there is counts its memory."""
    options = f"size={megabytes}m,mode=0777"
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory],  # noqa: S607 - this machine's
        check=True,
    )
    try:
        with pytest.raises(local.NoRoom, match="are needed"):
            begin(programs, directory, need=local.needed(0))
        with local.started(programs, directory, "run", need=0) as server:
            left = server.require_room()
            (directory / "others").write_bytes(bytes(20_000_000))
            with pytest.raises(local.NoRoom, match="by now"):
                server.require_room()
        assert 0 < left < megabytes * 1_000_000
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)  # noqa: S607 - as above


# --- where it cannot be ---------------------------------------------------------------------------


def test_other_major_is_not_taken_and_named(programs: local.Programs) -> None:
    """A file that runs on 17 proves nothing for 16."""
    found = programs

    with pytest.raises(local.NotHere, match="no server program of PostgreSQL 12 is here") as why:
        local.find(12, str(found.postgres.with_name("pg_dump")), "")

    assert f"{found.version} in {found.postgres.parent}" in str(why.value)
    assert "pg12-full" in str(why.value)


def test_folder_without_initdb_and_without_a_template_is_told(
    programs: local.Programs, directory: Path
) -> None:
    """A server program alone makes no cluster."""
    found = programs
    bare = local.Programs(found.postgres, None, None, found.version, found.major)

    with pytest.raises(local.NotHere, match="neither initdb nor a template"):
        begin(bare, directory, need=0)

    assert [] == ours(directory)


def test_directory_that_is_not_there_or_not_ours_is_told(directory: Path) -> None:
    """On a host the temporary directory will do, but not instead of one that was named."""
    file = directory / "file"
    file.touch()

    with pytest.raises(local.NotHere, match="there is no directory /"):
        local.place(directory / "nowhere")
    with pytest.raises(local.NotHere, match="is no directory"):
        local.place(file)

    assert directory == local.place(directory)


@pytest.mark.parametrize("mode", [0o700] if ROOT else [])
def test_directory_that_the_servers_user_may_not_enter_is_told(
    programs: local.Programs, directory: Path, mode: int
) -> None:
    """As root the server runs as another user, who must get there."""
    directory.chmod(mode)

    with pytest.raises(local.NotHere, match=f"may not enter {directory}"):
        begin(programs, directory, need=0)


def test_sweep_follows_no_link_of_the_servers_user(directory: Path, tmp_path: Path) -> None:
    """What a dead run left is his, and he may have put links there: nothing behind them goes."""
    victim = tmp_path / "victim/1"
    victim.mkdir(parents=True)
    (victim / "precious").write_text("here")
    left = directory / f"{local.PREFIX}of-a-dead-run"
    for name, target in (("a", "base"), ("b", "base/1")):
        link = left / name / target
        link.parent.mkdir(parents=True)
        link.symlink_to(victim.parent if target == "base" else victim)
    (left / "c").symlink_to(victim.parent)
    (left / local.LOCK).touch()

    assert [left.name] == local.sweep(directory)
    assert not left.exists()
    assert "here" == (victim / "precious").read_text()


def test_directory_that_somebody_locks_is_not_waited_for_for_ever(
    directory: Path, programs: local.Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a host it may be /tmp, which anybody may lock: there is no rehearsal then, and why."""
    monkeypatch.setattr(local, "TURN_S", 0.0)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(local.NotHere, match="somebody holds a lock on"):
            begin(programs, directory, need=0)
    finally:
        os.close(descriptor)


def test_lock_that_is_gone_is_no_sign_of_a_dead_run(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who opened it before its run removed it must not take the run's next copy for a dead one."""
    home = directory / f"{local.PREFIX}of-a-run"
    home.mkdir()
    (home / local.LOCK).touch()
    real = fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        real(descriptor, operation)
        (home / local.LOCK).unlink()
        (home / local.LOCK).touch()  # the next copy's

    monkeypatch.setattr(fcntl, "flock", late)

    assert [] == local.sweep(directory)
    assert home.exists()


# --- what it may do -------------------------------------------------------------------------------

needs_landlock = pytest.mark.skipif(
    not confined.available(), reason="this kernel has no Landlock (Linux 5.19)"
)
needs_scopes = pytest.mark.skipif(
    landlock.version() < landlock.SCOPES_ABI, reason="Landlock knows signals since Linux 6.12"
)


def tried(where: str, statements: Sequence[str]) -> list[str]:
    """Run statements as the server's superuser; return the SQLSTATE of each, 00000 for none."""
    found = []
    target = psycopg.conninfo.make_conninfo(
        host=where, port=local.PORT, user=local.SUPERUSER, dbname=local.HOME
    )
    with psycopg.connect(target, autocommit=True) as connection:
        for statement in statements:
            try:
                connection.execute(statement.encode())
                found.append("00000")
            except psycopg.Error as error:
                found.append(error.sqlstate or "")
    return found


@needs_landlock
@pytest.mark.parametrize("uid", [STRANGER, None] if ROOT else [None])
def test_superusers_code_reaches_nothing_of_the_job(
    directory: Path, template: Path, uid: int | None
) -> None:
    """A dump has code that runs while rows are loaded: it gets nowhere, by file or program."""
    open_to_all = Path(tempfile.mkdtemp(prefix="pg-preflight-open-", dir="/tmp"))
    open_to_all.chmod(0o777)
    (open_to_all / "backup").write_text("rows")
    try:
        with job(directory, template=str(template), uid=uid) as started:
            said = started.begun()
            pid, there = started.process.pid, open_to_all
            states = tried(
                said["socket"],
                [
                    f"SELECT pg_read_file('/proc/{pid}/environ', 0, 10)",
                    f"SELECT pg_read_file('{there}/backup')",
                    f"SELECT pg_ls_dir('{there}')",
                    f"COPY (SELECT 1) TO '{there}/written'",
                    f"COPY (SELECT 1) TO '{there}/backup'",
                    f"COPY (SELECT 1) TO PROGRAM 'echo gone > {there}/backup'",
                    f"COPY (SELECT 1) TO PROGRAM 'rm {there}/backup'",
                    f"COPY (SELECT 1) TO PROGRAM 'ln -s /nowhere {there}/link'",
                    f"COPY (SELECT 1) TO PROGRAM 'cat /proc/{pid}/environ'",
                    "COPY (SELECT 1) TO PROGRAM 'cat /proc/self/environ > /dev/null'",
                    "SELECT pg_read_file('/usr/share/zoneinfo/UTC', 0, 0)",
                    "CREATE TABLE own (id int)",
                    "COPY own TO PROGRAM 'cat > own'",
                    "COPY own FROM PROGRAM 'cat own'",
                    "CREATE DATABASE other",
                    "CHECKPOINT",
                ],
            )
            code = started.end()
        left = {each.name: each.is_file() and each.read_text() for each in open_to_all.iterdir()}
    finally:
        shutil.rmtree(open_to_all)

    assert ["42501"] * 5 + ["38000"] * 4 + ["00000"] * 7 == states
    assert ({"backup": "rows"}, 0) == (left, code)


@needs_scopes
def test_server_connects_to_nobody_and_signals_nobody(directory: Path, template: Path) -> None:
    """Neither by TCP, nor to a process of its own user that is not of its making."""
    with (
        servers_port() as port,
        subprocess.Popen(["sleep", "600"], user=STRANGER if ROOT else None) as other,  # noqa: S607
        job(directory, template=str(template), uid=STRANGER if ROOT else None) as started,
    ):
        states = tried(
            started.begun()["socket"],
            [
                "CREATE EXTENSION dblink",
                f"SELECT dblink_connect('host=127.0.0.1 port={port} connect_timeout=5')",
                f"COPY (SELECT 1) TO PROGRAM 'kill {other.pid}'",
            ],
        )
        started.end()
        lives = other.poll() is None
        other.kill()

    assert ["00000", "08001", "38000"] == states
    assert lives


@contextlib.contextmanager
def servers_port() -> Iterator[int]:
    """Give a TCP port on which somebody listens, who must not be reached."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        yield server.getsockname()[1]
        with pytest.raises(BlockingIOError):
            server.accept()


def test_names_in_a_runs_directory_are_not_its_servers(directory: Path, template: Path) -> None:
    """It can put no link where the job, or another run, looks for a file of this one."""
    with job(directory, template=str(template)) as started:
        said = started.begun()
        home = Path(said["home"])
        names = [f"mv {home}/data {home}/other", f"ln -s /nowhere {home}/link"]
        names += [f"rm {home}/{local.LOCK}", f"echo 1 > {home}/{local.LOG}", f"mkdir {home}/more"]
        states = tried(said["socket"], [f"COPY (SELECT 1) TO PROGRAM '{each}'" for each in names])
        found = sorted(each.name for each in home.iterdir())
        started.end()

    assert ["38000"] * len(names) == states
    assert sorted([local.DATA, local.SOCKET, local.LOG, local.LOCK, "tablespaces", "tmp"]) == found


@pytest.mark.parametrize("what", ["link", "pipe", "device", "folder", "words", "endless"])
def test_file_that_is_none_misleads_no_other_run(
    what: str, directory: Path, tmp_path: Path
) -> None:
    """Without Landlock a server may put anything in their place: nobody waits, or strikes."""
    stranger = subprocess.Popen(["sleep", "600"], cwd=tmp_path)  # noqa: S607
    left = directory / f"{local.PREFIX}of-a-dead-run"
    (left / local.DATA).mkdir(parents=True)
    for file in (left / local.DATA / "postmaster.pid", left / local.LOG, left / local.LOCK):
        if what == "link":
            (tmp_path / "pid").write_text(str(stranger.pid))
            file.symlink_to(tmp_path / "pid")
        elif what == "pipe":
            os.mkfifo(file)
        elif what == "device":
            file.symlink_to("/dev/zero")
        elif what == "folder":
            file.mkdir()
        else:
            file.write_text({"words": '{"need": Infinity}', "endless": "[" * 100_000}[what])
    if what == "words":  # the directory itself leads to where somebody works
        shutil.rmtree(left / local.DATA)
        (left / local.DATA).symlink_to(tmp_path)
        (tmp_path / "postmaster.pid").write_text(f"{stranger.pid}\n")
    try:
        assert local.short(directory, 0, 0) is None
        local.sweep(directory)

        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("uid", [None] if ROOT else [])
def test_socket_is_not_for_another_runs_server(directory: Path, template: Path, uid: None) -> None:
    """As root the servers of all runs are one user, who does not get to the socket of another."""
    with job(directory, template=str(template), uid=uid) as started:
        where = started.begun()["socket"]
        mode = Path(where).stat()
        states = tried(where, ["SELECT 1"])
        started.end()

    assert (0, 0o700, ["00000"]) == (mode.st_uid, mode.st_mode & 0o777, states)


def test_password_of_another_server_is_not_offered(
    programs: local.Programs, directory: Path
) -> None:
    """A passfile for every host would give it to whoever asks on that socket."""
    with local.started(programs, directory, "run", need=0) as server:
        passfile = Path(server.target()["passfile"])

        assert (server.socket, False) == (passfile.parent, os.path.lexists(passfile))


def test_log_that_is_a_link_is_not_read(
    programs: local.Programs, directory: Path, tmp_path: Path
) -> None:
    """The server's directory is its user's: what he puts there leads us to no file of ours."""
    secret = tmp_path / "secret"
    secret.write_text("of ours")
    with local.started(programs, directory, "run", need=0) as server:
        log = server.directory / local.LOG
        before = server.said()
        log.unlink()
        log.symlink_to(secret)

        assert "ready to accept connections" in before
        assert "" == server.said()
