"""Disks of every size: from nothing to plenty, a run makes a whole backup or leaves nothing."""

import contextlib
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import faults, program, servers
from tests.conftest import Run, WriteMigrations
from tests.fakes import contents
from tests.faults import together

MEGABYTES = 2
PAGE = 4096
# a dump of some 200 kB that cannot be compressed
NOISE = """
CREATE TABLE noise AS SELECT (SELECT string_agg(sha512((n * 100 + i)::text::bytea), '')
 FROM generate_series(1, 30) i) AS raw FROM generate_series(1, {}) n
"""
MADE = "SELECT relname::text FROM pg_class WHERE relname LIKE 'made%' ORDER BY 1"
ROWS = {"little": 1, "more": 100}
FORMS = {
    "file": {},
    "folder": {"PREFLIGHT_PARALLEL_MB": "0", "PREFLIGHT_JOBS": "2"},
}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Give a disk of its own, or skip without the right to mount."""
    try:
        with faults.small_disk(tmp_path / "disk", MEGABYTES) as place:
            yield place
    except PermissionError as error:
        pytest.skip(str(error))


def leave(disk: Path, free: int) -> int:
    """Have somebody else's file take all but so many bytes, in whole pages; return how many."""
    theirs = disk / "theirs"
    theirs.write_bytes(b"")
    taken = shutil.disk_usage(disk).free - free
    with contextlib.suppress(OSError), theirs.open("wb", buffering=0) as file:
        for _ in range(taken // PAGE):
            file.write(b"x" * PAGE)
    return shutil.disk_usage(disk).free


def sizes(choice: random.Random, dump: int) -> list[int]:
    """Return how many bytes are free, run by run: some below a dump's size, some about, some above.

    About it each page counts: one file or another is the first for which there is no room.
    """
    below = [0, *(choice.randrange(0, dump, PAGE) for _ in range(2))]
    about = [dump // PAGE * PAGE * 3 // 2 + PAGE * n for n in range(-1, 4)]
    above = choice.randrange(dump * 2, dump * 4 + 20 * PAGE)
    return choice.sample([choice.choice(below), *choice.sample(about, 3), above], 5)


def require_kept(result: program.Result, before: dict[str, bytes], disk: Path) -> None:
    """Raise AssertionError unless a disk has what it had, and each backup that a run made, whole.

    For the last word on a backup, that it was proven, there may be no room: it is one all the same.
    """
    after = contents(disk)
    assert before.items() <= after.items(), f"what was there was touched\n{result}"
    new = {each.partition("/")[0] for each in after.keys() - before.keys()}
    assert {each["backup"] for each in result.event("backup.verified")} == new, str(result)
    for each in new:
        together.require_whole(disk / each)
    if result.code:
        assert (23, "backup.no_space") == (result.code, result.finished["error"]["code"]), result


@pytest.mark.parametrize(
    ("rows", "form", "rehearse"),
    [("little", "file", "auto"), ("more", "file", "off"), ("more", "folder", "off")],
)
@pytest.mark.parametrize("seed", ["sample/1"])
def test_disk_of_any_size_has_a_whole_backup_or_nothing_was_begun_that_could_not_end(  # noqa: PLR0913, PLR0917 - fixtures
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    disk: Path,
    seed: str,
    rows: str,
    form: str,
    rehearse: str,
) -> None:
    """Where less is free than this database's last dump has, no client was started."""
    choice = random.Random(f"{seed} {rows} {form}")  # noqa: S311 - to be repeated, not secret
    env = {**FORMS[form], "PREFLIGHT_BACKUP_DIR": str(disk), "PREFLIGHT_REHEARSE": rehearse}
    env |= {"PREFLIGHT_FIRST_CONTACT": "pending", "PREFLIGHT_BACKUP_KEEP": "100"}
    database.script(NOISE.format(ROWS[rows]))
    (disk / "theirs").touch()
    first = run("backup", env=env)
    assert 0 == first.code, str(first)
    last = first.event("backup.verified")[0]["size_bytes"]
    for number, wanted in enumerate(sizes(choice, last), 1):
        migrations({f"{number:03}_made.sql": f"CREATE TABLE made_{number} ();"})
        made = database.query(MADE)
        free = leave(disk, wanted)
        before = contents(disk)
        result = run(choice.choice(["up", "backup"]), env=env)

        require_kept(result, before, disk)
        assert last <= free or not result.event("backup.started"), f"{free} of {last}\n{result}"
        assert 0 == result.code or made == database.query(MADE), str(result)
        for each in result.event("backup.verified"):  # of which the next run knows, and no other
            last = each["size_bytes"]
            for older in {"theirs", each["backup"]}.symmetric_difference(
                at.name for at in disk.iterdir()
            ):
                shutil.rmtree(disk / older)
    leave(disk, MEGABYTES << 20)
    assert 0 == run("up", env=env).code


SERVER_MB, FREE = 360, 30 << 20
# its log has room by then: it is no race which of log and rows finds the disk full
WAL = "SELECT pg_logical_emit_message(false, 'room', 'x'); SELECT pg_switch_wal();" * 7


@pytest.mark.parametrize("command", ["up", "restore"])
def test_server_that_has_no_room_for_a_copy_goes_on(
    run: Run,
    migrations: WriteMigrations,
    command: str,
) -> None:
    """DROP DATABASE asks for a checkpoint, for which there has to be room by then."""
    migrations({"001_made.sql": "CREATE TABLE made ();"})
    with contextlib.ExitStack() as stack:
        try:
            home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            home.chmod(0o755)  # a server is somebody else's
            place = stack.enter_context(faults.small_disk(home / "disk", SERVER_MB))
        except PermissionError as error:
            pytest.skip(str(error))
        place.chmod(0o777)
        server = servers.start_on(place, 17, max_wal_size="112MB", min_wal_size="112MB")
        stack.callback(server.remove)
        database = servers.Database(server, "app")
        with server.connect() as session:
            session.execute("CREATE ROLE app LOGIN CREATEDB PASSWORD 'x'")
            session.execute("CREATE DATABASE app OWNER app")
        env = {**database.env(user="app", password="x"), "PREFLIGHT_FIRST_CONTACT": "pending"}  # noqa: S106
        env |= {"PREFLIGHT_REHEARSE": "off"}
        database.script(
            "CREATE TABLE noise AS SELECT n, repeat(md5(random()::text), 4) AS raw"
            " FROM generate_series(1, 400000) n; ALTER TABLE noise OWNER TO app;"
            f"{WAL} CHECKPOINT"
        )
        made = run("backup", env=env)
        leave(place, FREE)
        how = {"PREFLIGHT_REHEARSE": "auto", "PREFLIGHT_REHEARSE_ON": "server"}
        how["PREFLIGHT_JOBS"] = "1"  # several empty a table first, and give its room back
        words = (command, "latest", "--into", "again") if command == "restore" else (command,)
        result = run(*words, env=env | how)

        assert 0 == made.code, str(made)
        assert [400000] == database.query("SELECT count(*) FROM noise"), str(result)
        assert 1 == server.log.read_text().count("could not extend file"), str(result)
        databases = "SELECT count(*) FROM pg_database WHERE datname NOT LIKE 'template%'"
        assert [2] == database.query(databases), str(result)
    if command == "up":
        assert (0, 1) == (result.code, len(result.event("rehearsal.skipped"))), str(result)
    else:
        assert (22, "restore.no_room") == (result.code, result.finished["error"]["code"])
