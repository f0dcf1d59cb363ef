"""Backups that go wrong: nothing is migrated, nothing is left, older backups stay as they are."""

import contextlib
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from preflight import archive
from preflight.errors import BackupUnverified
from tests import faults, program, servers
from tests.conftest import Run, Start, StartServer, WriteMigrations
from tests.fakes import Fakes, contents, run_without_privileges

ITEMS = """
CREATE TABLE items (id int PRIMARY KEY, note text);
INSERT INTO items SELECT n, md5(n::text) FROM generate_series(1, 5000) n;
CREATE TABLE others (id int);
"""


@pytest.fixture(autouse=True)
def settings(environment: dict[str, str]) -> None:
    """Begin with a database that was made by hand."""
    environment["PREFLIGHT_FIRST_CONTACT"] = "pending"
    environment["PREFLIGHT_REHEARSE"] = "off"


@pytest.fixture
def older(
    run: Run, database: servers.Database, migrations: WriteMigrations, backup_dir: Path
) -> dict[str, bytes]:
    """Have a good backup, a table that holds something, and a second migration to apply."""
    database.script(ITEMS)
    migrations({"001_one.sql": "CREATE TABLE one (id int);"})
    assert 0 == run().code
    migrations({"002_two.sql": "CREATE TABLE two (id int);"})
    return contents(backup_dir)


@pytest.fixture
def unharmed(
    database: servers.Database, older: dict[str, bytes], backup_dir: Path
) -> Callable[[], bool]:
    """Tell whether nothing was migrated, nothing is left, and the older backup is what it was."""
    done = (
        "SELECT array_agg(version)::text || (to_regclass('two') IS NULL) FROM preflight.migrations"
    )
    return lambda: older == contents(backup_dir) and ["{1}true"] == database.query(done)


@pytest.fixture
def fakes(tmp_path: Path) -> Fakes:
    """Give a place for fake clients."""
    return Fakes(tmp_path / "fakes")


def code_of(result: program.Result) -> tuple[int, str]:
    """Return the exit code and the dotted code of the error."""
    return result.code, result.finished.get("error", {}).get("code", "")


# --- pg_dump lies or dies -------------------------------------------------------------------------

# through a pipe: into a file pg_dump would write a second list behind the rows
CUT = """case "$*" in *zstd*) exec "$REAL" "$@";; esac
"$REAL" "$@" | cat > "$HERE/whole"
head -c $(( $(stat -c %s "$HERE/whole") * {percent} / 100 )) "$HERE/whole" """


@pytest.mark.parametrize(
    ("code", "dotted", "script"),
    [
        pytest.param(24, "empty", "exit 0", id="writes nothing"),
        pytest.param(24, "unreadable", CUT.format(percent=98), id="cut to 98 percent"),
        pytest.param(24, "unreadable", CUT.format(percent=2), id="cut to 2 percent"),
        pytest.param(
            24,
            "unreadable",
            '"$REAL" "$@" | cat > "$HERE/whole"; echo hello; cat "$HERE/whole"',
            id="garbage before",
        ),
        pytest.param(24, "unreadable", '"$REAL" "$@" && echo bye', id="garbage after"),
        pytest.param(24, "unreadable", "echo I am no archive", id="garbage only"),
        pytest.param(
            24, "rows_differ", 'exec "$REAL" "$@" --exclude-table=items', id="leaves a table out"
        ),
        pytest.param(
            24, "rows_differ", 'exec "$REAL" "$@" --exclude-table-data=items', id="leaves rows out"
        ),
        pytest.param(24, "rows_differ", 'exec "$REAL" "$@" --schema-only', id="no rows at all"),
        pytest.param(23, "pg_dump", "echo 'cannot think' >&2; exit 1", id="fails"),
        pytest.param(14, "interrupted", 'printf PGDMP; kill -9 "$$"', id="killed"),
        pytest.param(
            14,
            "interrupted",
            "echo 'pg_dump: error: server closed the connection unexpectedly' >&2; exit 1",
            id="loses its connection",
        ),
    ],
)
def test_dump_that_cannot_be_trusted_stops_the_run(  # noqa: PLR0913, PLR0917 - what, and fixtures
    run: Run, unharmed: Callable[[], bool], fakes: Fakes, code: int, dotted: str, script: str
) -> None:
    """Whatever its exit code says: the dump is read back and compared with the database."""
    result = run(env={"PATH": fakes.write(script)})

    assert (code, f"backup.{dotted}") == code_of(result), str(result)
    assert unharmed()
    if dotted == "rows_differ":
        assert "public.items" in result.finished["error"]["message"]
    if dotted == "pg_dump":
        assert "cannot think" in result.finished["error"]["message"]


@pytest.mark.usefixtures("older")
def test_failure_that_passes_is_tried_again(run: Run, fakes: Fakes) -> None:
    """A server that was restarted is no reason to wake somebody."""
    fakes.write(
        """[ -e "$HERE/failed" ] && exec "$REAL" "$@"
        touch "$HERE/failed"; printf PGDMP; kill -9 $$"""
    )
    result = run(env={"PATH": fakes.path})

    assert 0 == result.code, str(result)
    assert [1, 2] == [event["attempt"] for event in result.event("backup.started")]


@pytest.mark.parametrize("script", ["exit 1", 'kill -SEGV "$$"', "exit 0"])
def test_pg_restore_that_cannot_read_the_dump_stops_the_run(
    run: Run, unharmed: Callable[[], bool], fakes: Fakes, script: str
) -> None:
    """It may crash on a broken archive, or read nothing and say that all is well."""
    result = run(env={"PATH": fakes.write(script, "pg_restore")})

    assert 24 == result.code, str(result)
    assert unharmed()


def test_bit_that_flips_on_the_disk_is_found(
    run: Run, database: servers.Database, migrations: WriteMigrations, backup_dir: Path
) -> None:
    """In zstd pg_restore reads over it; the hash of what was sent does not."""
    database.script(ITEMS)
    migrations({"001_one.sql": "CREATE TABLE one (id int);"})
    assert 0 == run(env={"PATH": program.path(17)}).code
    (backup,) = backup_dir.iterdir()
    dump = backup / "database.dump"
    home = servers.client_bin(17)
    clients = archive.Clients(str(home / "pg_dump"), str(home / "pg_restore"), "17")
    digest, size = archive.hash_of(dump)
    wanted = {(b"public", b"items"): ("public.items", 5000)}

    assert size == archive.require_whole(dump, digest, clients, os.environ, wanted)
    flipped = bytearray(dump.read_bytes())
    flipped[size // 2] ^= 1
    dump.write_bytes(flipped)
    with pytest.raises(BackupUnverified) as raised:
        archive.require_whole(dump, digest, clients, os.environ, wanted)
    assert "backup.corrupt" == raised.value.code


# --- stops and kills ------------------------------------------------------------------------------


def test_client_that_ignores_a_stop_is_ended_all_the_same(
    start: Start, unharmed: Callable[[], bool], fakes: Fakes
) -> None:
    """With the processes that it started; 143, and nothing is left."""
    os.mkfifo(fakes.here / "gate")
    fakes.write(
        """trap '' TERM; (trap '' TERM; echo alive; read _ < "$HERE/gate") & printf PGDMP
        touch "$HERE/up"; while :; do wait; done"""
    )
    process = start(env={"PATH": fakes.path})
    faults.until((fakes.here / "up").exists, "pg_dump runs")
    process.signal(signal.SIGTERM)
    result = process.wait()

    assert 143 == result.code, str(result)
    assert unharmed()
    with pytest.raises(OSError, match="No such device"):  # nobody reads from the gate any more
        os.open(fakes.here / "gate", os.O_WRONLY | os.O_NONBLOCK)


def test_kill_leaves_no_lock_and_its_rest_is_swept(
    start: Start, run: Run, older: dict[str, bytes], backup_dir: Path, fakes: Fakes
) -> None:
    """After kill -9 the hidden half stays; the next run removes it and takes its own."""
    fakes.hold()
    process = start(env={"PATH": fakes.path})
    process.wait_for_event("backup.started")
    faults.until(lambda: held(fakes), "pg_dump runs")
    process.kill()
    left = contents(backup_dir).keys() - older.keys()
    passfile = Path(held(fakes))
    fakes.let_go()  # what it writes now has no reader
    result = run()

    assert {"."} == {name[0] for name in left}
    assert 0 == result.code, str(result)
    assert 2 == len(list(backup_dir.iterdir()))
    assert older.items() <= contents(backup_dir).items()
    assert not passfile.exists()  # the password was in it


def held(fakes: Fakes) -> str:
    """Return the passfile of the pg_dump that is held, once it is."""
    file = fakes.here / "held"
    return file.read_text().strip() if file.exists() else ""


def test_server_that_restarts_during_the_dump_ends_the_run_before_any_migration(
    start: Start,
    start_server: StartServer,
    migrations: WriteMigrations,
    backup_dir: Path,
    fakes: Fakes,
) -> None:
    """The lock is gone with the session that held it: code 14, and the next run begins anew."""
    server = start_server()
    database = servers.Database(server, "postgres")
    migrations({"001_one.sql": "CREATE TABLE one (id int);"})
    fakes.hold()
    process = start(env={**database.env(), "PATH": fakes.path})
    process.wait_for_event("backup.started")
    server.stop()
    server.start()
    fakes.let_go()
    result = process.wait()

    assert (14, "backup.interrupted") == code_of(result), str(result)
    assert [None] == database.query("SELECT to_regclass('one')::text")
    assert [] == list(backup_dir.iterdir())


# --- no room --------------------------------------------------------------------------------------


@contextlib.contextmanager
def limit(size: int) -> Iterator[None]:
    """Limit the size of files, for what is started inside: a disk that is full in the middle."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_dump_that_becomes_too_large_is_removed(start: Start, unharmed: Callable[[], bool]) -> None:
    """The hidden half goes; what is there already stays."""
    with limit(20_000):
        process = start()
    result = process.wait()

    assert (23, "backup.no_space") == code_of(result), str(result)
    assert unharmed()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a file system of 12 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["/bin/mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no right to mount: {error}")
    yield disk
    subprocess.run(["/bin/umount", disk], check=True)


def test_full_disk_stops_the_run_and_nothing_is_left_on_it(
    run: Run, database: servers.Database, migrations: WriteMigrations, small_disk: Path
) -> None:
    """Free space is looked at first, but others write as well; it may end in the middle."""
    database.script(
        """CREATE TABLE noise AS SELECT (SELECT string_agg(sha512((n * 100 + i)::text::bytea), '')
        FROM generate_series(1, 80) i) AS raw FROM generate_series(1, 3000) n"""
    )
    migrations({"001_one.sql": "CREATE TABLE one (id int);"})
    in_the_middle = run(env={"PREFLIGHT_BACKUP_DIR": str(small_disk)})
    left = contents(small_disk)
    (small_disk / "theirs").write_bytes(bytes(11_500_000))
    at_once = run(env={"PREFLIGHT_BACKUP_DIR": str(small_disk)})

    assert (23, "backup.no_space") == code_of(in_the_middle), str(in_the_middle)
    assert 1 == len(in_the_middle.event("backup.started"))
    assert {} == left
    assert (23, "backup.no_space") == code_of(at_once), str(at_once)
    assert 0 == len(at_once.event("backup.started"))
    assert "MB are needed" in at_once.finished["error"]["message"]
    assert ["theirs"] == list(contents(small_disk))
    assert [None] == database.query("SELECT to_regclass('one')::text")


# --- the directory --------------------------------------------------------------------------------


def test_directory_that_is_none_is_refused(
    run: Run, database: servers.Database, migrations: WriteMigrations, tmp_path: Path
) -> None:
    """Missing, a file, or a link to itself: the hint says what to set."""
    migrations({"001_one.sql": "CREATE TABLE one (id int);"})
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    results = [
        run(env={"PREFLIGHT_BACKUP_DIR": str(tmp_path / name)})
        for name in ("missing", "file", "loop")
    ]

    assert [(23, "backup.directory")] * 3 == [code_of(result) for result in results]
    assert ["PREFLIGHT_BACKUP_DIR" in each.finished["error"]["hint"] for each in results] == (
        [True] * 3
    )
    assert [None] == database.query("SELECT to_regclass('one')::text")


@pytest.mark.parametrize("mode", [0o555, 0o333, 0o000])
def test_directory_without_rights_is_refused(
    environment: dict[str, str],
    database: servers.Database,
    migrations: WriteMigrations,
    backup_dir: Path,
    mode: int,
) -> None:
    """Read-only, unreadable, closed: the hint says which user needs it."""
    migrations({"001_one.sql": "CREATE TABLE one (id int);"})
    backup_dir.chmod(mode)
    result = run_without_privileges(environment)
    backup_dir.chmod(0o755)

    assert (23, "backup.directory") == code_of(result), str(result)
    assert f"user {os.getuid()}" in result.finished["error"]["hint"]
    assert [None] == database.query("SELECT to_regclass('one')::text")
    assert [] == list(backup_dir.iterdir())


@pytest.mark.usefixtures("older")
def test_directory_behind_a_link_is_used(run: Run, backup_dir: Path, tmp_path: Path) -> None:
    """It is resolved once, at the start."""
    (tmp_path / "link").symlink_to(backup_dir)
    result = run(env={"PREFLIGHT_BACKUP_DIR": str(tmp_path / "link")})

    assert 0 == result.code, str(result)
    assert 2 == len(list(backup_dir.iterdir()))


def test_session_that_holds_the_snapshot_may_be_terminated(
    start: Start,
    database: servers.Database,
    older: dict[str, bytes],
    backup_dir: Path,
    fakes: Fakes,
) -> None:
    """Another attempt is made."""
    fakes.hold()
    process = start(env={"PATH": fakes.path})
    process.wait_for_event("backup.started")
    holders = (
        "SELECT pg_terminate_backend(pid) FROM pg_locks"
        " WHERE relation = 'items'::regclass AND granted"
    )
    assert [True] == database.query(psycopg.sql.SQL(holders))
    fakes.let_go()
    result = process.wait()

    assert 0 == result.code, str(result)
    assert 2 == len(result.event("backup.started"))
    assert older.items() <= contents(backup_dir).items()
