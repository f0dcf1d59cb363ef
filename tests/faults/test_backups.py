"""Faults of the disk, of the clock and of the clients while a backup is taken."""

import errno
import json
import os
from pathlib import Path

import pytest

from tests import servers
from tests.conftest import Run, WriteMigrations
from tests.fakes import Fakes, contents
from tests.faults.conftest import Answers

ITEMS = "CREATE TABLE items AS SELECT n AS id FROM generate_series(1, 1000) n;"
ONE = {"001_one.sql": "CREATE TABLE one (id int);\n"}


@pytest.fixture(autouse=True)
def made_by_hand(environment: dict[str, str], database: servers.Database) -> None:
    """Begin with a database that holds something."""
    environment["PREFLIGHT_FIRST_CONTACT"] = "pending"
    database.script(ITEMS)


@pytest.mark.parametrize(
    ("answer", "dotted"),
    [
        pytest.param(
            {"fsync": errno.ENOSPC}, "no_space", id="full", marks=pytest.mark.fault("C047")
        ),
        pytest.param(
            {"fsync": errno.EDQUOT}, "no_space", id="quota", marks=pytest.mark.fault("C047")
        ),
        pytest.param(
            {"write": errno.EIO}, "directory", id="write fails", marks=pytest.mark.fault("C048")
        ),
        pytest.param(
            {"fsync": errno.EIO}, "directory", id="fsync fails", marks=pytest.mark.fault("C048")
        ),
    ],
)
def test_c047_c048_disk_that_fails_late_leaves_nothing(  # noqa: PLR0913, PLR0917 - fixtures
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    backup_dir: Path,
    answers: Answers,
    answer: dict[str, int],
    dotted: str,
) -> None:
    """What was written goes, nothing is migrated, the older backup stays as it is."""
    migrations(ONE)
    assert 0 == run("backup").code
    older = contents(backup_dir)
    result = run(env=answers(**answer))

    assert (23, f"backup.{dotted}") == (result.code, result.finished["error"]["code"]), str(result)
    assert older == contents(backup_dir)
    assert [None] == database.query("SELECT to_regclass('one')")


def test_swap_on_a_full_disk_says_that_it_is_full(run: Run, answers: Answers) -> None:
    """Its record finds no room; what was restored is not lost, and the same command goes on."""
    codes = [run(*words).code for words in (["backup"], ["restore", "latest"])]
    full = run("restore", "latest", "--swap", env=answers(dirsync=errno.ENOSPC))

    assert [0, 0] == codes
    assert (23, "backup.no_space") == (full.code, full.finished["error"]["code"]), str(full)
    assert 0 == run("restore", "latest", "--swap").code


@pytest.mark.fault("C048")
@pytest.mark.parametrize(
    "answer",
    [
        pytest.param({"dirsync": errno.EINVAL}, id="no fsync of directories"),
        pytest.param({"flock": errno.ENOLCK}, id="no locks"),
        pytest.param({"dirsync": errno.EBADF, "flock": errno.ENOTSUP}, id="neither"),
    ],
)
def test_c048_file_system_that_lacks_a_call_holds_backups_all_the_same(
    run: Run,
    migrations: WriteMigrations,
    backup_dir: Path,
    answers: Answers,
    answer: dict[str, int],
) -> None:
    """FUSE, SMB and NFS have no fsync of directories, or no locks; PostgreSQL puts up with them."""
    migrations(ONE)
    result = run(env=answers(**answer))

    assert 0 == result.code, str(result)
    assert [result.event("backup.verified")[0]["backup"]] == [
        each.name for each in backup_dir.iterdir()
    ]


@pytest.mark.fault("C064")
def test_c064_client_that_warns_and_succeeds_has_made_a_backup(
    run: Run, migrations: WriteMigrations, tmp_path: Path
) -> None:
    """What TimescaleDB's tables earn says nothing of a lack: with `always`, too."""
    migrations(ONE)
    fakes = Fakes(tmp_path / "fakes")
    warning = "pg_dump: warning: there are circular foreign-key constraints on this table:"
    fakes.write(f'echo "{warning}" >&2; echo "pg_dump: detail: chunk" >&2; exec "$REAL" "$@"')
    result = run(env={"PATH": fakes.path, "PREFLIGHT_REHEARSE": "always"})

    (proven,) = result.event("rehearsal.passed")
    assert (0, "restored", None) == (result.code, proven["verified"], proven["without"])


@pytest.mark.fault("C065")
def test_c065_smaller_dump_of_a_smaller_database_is_whole(
    run: Run, database: servers.Database, backup_dir: Path
) -> None:
    """Not the last backup is the measure: the rows of the same snapshot are."""
    assert 0 == run("backup").code
    database.script("TRUNCATE items")
    result = run("backup")
    rows = {
        json.loads((each / "manifest.json").read_text())["rows"]["public.items"]
        for each in backup_dir.iterdir()
    }

    assert 0 == result.code, str(result)
    assert {0, 1000} == rows


@pytest.mark.fault("C066")
def test_c066_two_backups_in_the_same_second_have_two_names(
    run: Run, backup_dir: Path, answers: Answers
) -> None:
    """Also when the clock stands still."""
    still = answers(now=2_000_000_000)
    results = [run("backup", env=still) for _ in range(2)]

    assert [0, 0] == [each.code for each in results], "\n".join(map(str, results))
    assert 2 == len(list(backup_dir.iterdir()))
    assert all("2033" in each.name for each in backup_dir.iterdir())


@pytest.mark.fault("C067")
def test_c067_clock_that_jumps_back_removes_no_new_backup(
    run: Run, backup_dir: Path, answers: Answers
) -> None:
    """The number in the manifest decides; neither a name nor a time does."""

    def up(**more: str) -> str:
        result = run("backup", env={"PREFLIGHT_BACKUP_KEEP": "2", **more})
        assert 0 == result.code, str(result)
        name: str = result.event("backup.verified")[0]["backup"]
        return name

    late = up(**answers(now=2_000_000_000))
    for each in (backup_dir / late, *(backup_dir / late).iterdir()):
        os.utime(each, (2_000_000_000, 2_000_000_000))  # the file system's clock is the same
    second, third = up(), up()

    assert "-2033" in late
    assert {second, third} == {each.name for each in backup_dir.iterdir()}
