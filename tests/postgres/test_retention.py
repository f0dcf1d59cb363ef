"""Which backups stay, and what is never touched."""

import fcntl
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from psycopg.sql import SQL, Identifier

from tests import faults, program, servers
from tests.conftest import CreateDatabase, Run, Start, WriteMigrations
from tests.fakes import Fakes, contents, run_without_privileges


@pytest.fixture(autouse=True)
def settings(environment: dict[str, str]) -> None:
    """Keep two, unless a test says otherwise."""
    environment["PREFLIGHT_BACKUP_KEEP"] = "2"
    environment["PREFLIGHT_REHEARSE"] = "off"


Up = Callable[..., str]


@pytest.fixture
def up(run: Run, migrations: WriteMigrations, backup_dir: Path) -> Up:
    """Apply one more migration with its backup, and return the backup's name."""
    numbers = iter(range(1, 100))

    def up(**env: str) -> str:
        number = next(numbers)
        migrations({f"{number:03}_next.sql": f"CREATE TABLE t{number} (id int);"})
        result = run(env=env)
        assert 0 == result.code, str(result)
        name: str = result.event("backup.verified")[0]["backup"]
        assert (backup_dir / name).is_dir()
        return name

    return up


def names(backup_dir: Path) -> list[str]:
    """Return everything in the directory, also the hidden."""
    return sorted(path.name for path in backup_dir.iterdir())


def test_newest_backups_are_kept_and_the_others_said_goodbye_to(
    up: Up, run: Run, migrations: WriteMigrations, backup_dir: Path
) -> None:
    """Each removal is an event."""
    first, second = up(), up()
    migrations({"003_next.sql": "CREATE TABLE t3 (id int);"})
    result = run()
    third = result.event("backup.verified")[0]["backup"]

    assert [first] == [event["backup"] for event in result.event("backup.pruned")]
    assert sorted([second, third]) == names(backup_dir)


def test_crash_loop_keeps_its_first_and_its_newest_backup(
    up: Up, run: Run, migrations: WriteMigrations, backup_dir: Path
) -> None:
    """The state before the trouble began, and the last; the older backups are not pushed out."""
    before = [up(PREFLIGHT_BACKUP_KEEP="4"), up(PREFLIGHT_BACKUP_KEEP="4")]
    migrations({"010_broken.sql": "SELECT 1/0;"})
    results = [run(env={"PREFLIGHT_BACKUP_KEEP": "4"}) for _ in range(5)]
    taken = [result.event("backup.verified")[0]["backup"] for result in results]

    assert [30] * 5 == [result.code for result in results]
    assert sorted([*before, taken[0], taken[-1]]) == names(backup_dir)


def test_command_that_succeeds_each_time_is_no_crash_loop(
    run: Run, backup_dir: Path, environment: dict[str, str]
) -> None:
    """`wrap --always` takes each backup before the same, and has done it each time."""
    del environment["PREFLIGHT_MIGRATIONS_DIR"]
    results = [
        run("wrap", "--always", "--", "true", env={"PREFLIGHT_BACKUP_KEEP": "5"}) for _ in range(4)
    ]
    taken = [result.event("backup.verified")[0]["backup"] for result in results]

    assert [0] * 4 == [result.code for result in results], results
    assert sorted(taken) == names(backup_dir)


def test_same_files_in_other_histories_are_no_crash_loop(
    run: Run, migrations: WriteMigrations, backup_dir: Path, environment: dict[str, str]
) -> None:
    """One app for each schema: the same files are applied in one after the other."""
    environment |= {"PREFLIGHT_BACKUP_KEEP": "5", "PREFLIGHT_FIRST_CONTACT": "pending"}
    migrations({"001_first.sql": "SELECT 1;"})
    results = [run(env={"PREFLIGHT_SCHEMA": f"tenant_{n}"}) for n in range(4)]
    taken = [name["backup"] for result in results for name in result.event("backup.verified")]

    assert [0] * 4 == [result.code for result in results], results
    assert sorted(taken) == names(backup_dir)


def test_backup_with_exports_is_never_removed(up: Up, backup_dir: Path) -> None:
    """It holds what a rollback destroyed, and nothing else does."""
    precious = up()
    (backup_dir / precious / "export-001_next-1.csv").touch()
    up()
    second, third = up(), up()

    assert sorted([precious, second, third]) == names(backup_dir)


def test_databases_that_share_a_directory_do_not_see_each_other(
    up: Up, server: servers.Server, create_database: CreateDatabase, backup_dir: Path
) -> None:
    """Each keeps its own."""
    other = create_database(server)
    theirs = up(**other.env())
    up()
    mine = [up(), up()]

    assert sorted([theirs, *mine]) == names(backup_dir)


@pytest.mark.fault("C069", "C050")
def test_what_is_not_ours_is_never_touched(up: Up, backup_dir: Path, tmp_path: Path) -> None:
    """Files of others, broken backups, and links that lead out of the directory."""
    first = up()
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").write_text("precious")
    (backup_dir / "lost+found").mkdir()
    (backup_dir / "app.dump").write_text("by hand")
    (backup_dir / first.replace("-", "-0", 1)).symlink_to(victim)
    broken = backup_dir / f"{first}-broken"
    broken.mkdir()
    (broken / "manifest.json").write_text("{")
    manifest = json.loads((backup_dir / first / "manifest.json").read_text())
    for prefix in ("partial", "pruned"):
        hidden = f".{prefix}-{manifest['system_identifier']}-{manifest['database']}-x"
        (backup_dir / hidden).symlink_to(victim)
    before = contents(backup_dir).items()
    up(), up()

    left = contents(backup_dir).items()
    assert {item for item in before if first not in item[0] or "broken" in item[0]} <= set(left)
    assert {"precious": b"precious"} == contents(victim)


def test_backup_that_is_a_link_is_named(up: Up, run: Run, backup_dir: Path, tmp_path: Path) -> None:
    """Moved away and linked it is none: nobody is to find that out on the day that he needs it."""
    name = up()
    (backup_dir / name).rename(tmp_path / name)
    (backup_dir / name).symlink_to(tmp_path / name)

    listed, restored = run("backups"), run("restore", name)

    assert (0, []) == (listed.code, listed.event("backup.listed"))
    (warned,) = listed.event("config.warned")
    assert f"{name} (it is a link" in warned["warning"]
    assert 24 == restored.code, str(restored)
    assert "it is a link" in restored.finished["error"]["message"]


def hidden_rest(backup_dir: Path, system: str, database: str, name: str) -> Path:
    """Make what a killed run leaves."""
    made = backup_dir / f".partial-{system}-{database}-{name}"
    made.mkdir()
    (made / ".lock").touch()
    (made / "database.dump").write_bytes(b"PGDMP")
    return made


def test_only_a_dead_runs_rest_of_this_database_is_swept(
    up: Up, database: servers.Database, backup_dir: Path
) -> None:
    """Another run of another app in the same database may be at work; its lock says so."""
    (system,) = database.query("SELECT system_identifier::text FROM pg_control_system()")
    dead = hidden_rest(backup_dir, system, database.name, "dead")
    live = hidden_rest(backup_dir, system, database.name, "live")
    elsewhere = hidden_rest(backup_dir, "1", database.name, "dead")
    neighbour = hidden_rest(backup_dir, system, f"{database.name}_2", "dead")
    with (live / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        backup = up()

    assert not dead.exists()
    assert sorted([backup, live.name, elsewhere.name, neighbour.name]) == names(backup_dir)


def test_backup_of_a_run_at_work_is_not_one_too_many_for_another_app(
    start: Start, run: Run, server: servers.Server, migrations: WriteMigrations
) -> None:
    """It is proven and rehearsed on, and the first file has yet to run; afterwards it may go."""
    migrations({"001_one.sql": "CREATE TABLE one ();"})
    hold = faults.Held(b"CREATE DATABASE")  # of the copy
    with faults.through(server, hold) as proxy:
        env = {**proxy.env(), "PREFLIGHT_BACKUP_KEEP": "1"}
        at_work = start(env={**env, "PREFLIGHT_REHEARSE": "auto"})
        faults.until(hold.reached.is_set, "the copy is about to be made")
        other = run("backup", env={**env, "PREFLIGHT_SCHEMA": "other"})
        hold.free.set()
        ended = at_work.wait()
        later = run("backup", env={**env, "PREFLIGHT_SCHEMA": "other"})

    (backup,) = ended.event("backup.verified")
    (stays,) = other.event("backup.pruned")
    assert (0, ["001_one"]) == (ended.code, ended.finished["applied"]), str(ended)
    assert ("warning", backup["backup"], "it is in use") == (
        *(stays["level"], stays["backup"], stays["failed"]),
    )
    assert backup["backup"] in {each["backup"] for each in later.event("backup.pruned")}


def test_rest_without_a_lock_file_is_swept_once_it_is_old(
    up: Up, database: servers.Database, backup_dir: Path
) -> None:
    """A kill may hit while the directory is made, or while it is removed."""
    (system,) = database.query("SELECT system_identifier::text FROM pg_control_system()")
    young = hidden_rest(backup_dir, system, database.name, "young")
    old = hidden_rest(backup_dir, system, database.name, "old")
    for each in (young, old):
        (each / ".lock").unlink()
    os.utime(old, (0, 0))
    up()

    assert (True, False) == (young.exists(), old.exists())


def test_backup_that_cannot_be_removed_is_a_warning(
    up: Up, environment: dict[str, str], migrations: WriteMigrations, backup_dir: Path
) -> None:
    """The run has its backup; the rest is for a person to look at."""
    stubborn = backup_dir / up()
    (stubborn / "inner").mkdir()
    (stubborn / "inner" / "file").touch()
    (stubborn / "inner").chmod(0o500)
    up()
    migrations({"003_next.sql": "CREATE TABLE t3 (id int);"})
    result: program.Result = run_without_privileges(environment)
    for left in backup_dir.rglob("inner"):
        left.chmod(0o700)

    assert 0 == result.code, str(result)
    (warned,) = result.event("backup.pruned")
    assert ("warning", stubborn.name) == (warned["level"], warned["backup"])
    assert "failed" in warned


def rewrite(path: Path, **said: object) -> None:
    """Change what a backup's manifest says; None removes a key."""
    manifest = {**json.loads((path / "manifest.json").read_bytes()), **said}
    kept = {key: value for key, value in manifest.items() if value is not None}
    (path / "manifest.json").write_text(json.dumps(kept))


def test_physical_copy_prunes_nothing_of_its_origin(up: Up, backup_dir: Path) -> None:
    """It has the same system identifier, and is configured under another address."""
    origin = up()
    rewrite(backup_dir / origin, address="prod:5432")
    mine = [up(), up(), up()][1:]

    assert sorted([origin, *mine]) == names(backup_dir)


def test_failover_stops_no_pruning(up: Up, backup_dir: Path) -> None:
    """A higher timeline under the same address is the same server."""
    old = up()
    rewrite(backup_dir / old, timeline=7)
    mine = [up(), up()]

    assert sorted(mine) == names(backup_dir)


@pytest.mark.parametrize("shared", [False, True])
def test_backup_without_an_address_counts_where_all_agree(
    up: Up, backup_dir: Path, *, shared: bool
) -> None:
    """It was made by an older version; beside backups of two addresses nobody can tell whose."""
    old = up()
    rewrite(backup_dir / old, address=None)
    others = []
    if shared:
        others = [up()]
        rewrite(backup_dir / others[0], address="prod:5432")
        others.append(old)
    mine = [up(), up()]

    assert sorted([*others, *mine]) == names(backup_dir)


def test_address_is_one_however_this_machine_is_called(
    up: Up, server: servers.Server, backup_dir: Path
) -> None:
    """In a list of hosts in any order, too."""
    up(PGHOST="localhost")
    second = up(PGHOST="127.0.0.1")
    addresses = {
        json.loads((p / "manifest.json").read_bytes())["address"] for p in backup_dir.iterdir()
    }
    third = up(PGHOST="127.0.0.1")

    assert {f"localhost:{server.port}"} == addresses
    assert sorted([second, third]) == names(backup_dir)


def test_backup_that_is_being_restored_is_not_pruned(
    up: Up, start: Start, database: servers.Database, backup_dir: Path
) -> None:
    """The restore goes on to its end; the run that would have pruned it says why it did not."""
    fakes = Fakes(backup_dir.with_name("fakes"))
    first = up()
    process = start("restore", first, env={"PATH": fakes.hold_restore()})
    faults.until((fakes.here / "waiting").exists, "pg_restore has begun")
    second, third = up(), up()
    kept = names(backup_dir)
    fakes.let_go()
    result = process.wait()
    fourth = up()
    database.query(SQL("DROP DATABASE {}").format(Identifier(f"{database.name}_restored")))

    assert 0 == result.code, result
    assert sorted([first, second, third]) == kept
    assert sorted([third, fourth]) == names(backup_dir)


@pytest.mark.parametrize("age_s", [0, 7200])
def test_reader_on_another_machine_keeps_a_backup_by_its_mark(
    up: Up, backup_dir: Path, age_s: int
) -> None:
    """As long as the mark is renewed: one that was killed does not keep it for ever."""
    first = up()
    mark = backup_dir / first / ".reader-x"
    mark.touch()
    os.utime(mark, (time.time() - age_s,) * 2)
    mine = [up(), up()]

    assert sorted(mine if age_s else [first, *mine]) == names(backup_dir)
