"""A backup that others keep, as the gate: continuous archiving, or a program's word."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests import faults, servers, tools
from tests.conftest import Run, Start, StartServer, WriteMigrations
from tests.program import Result

ONE = {"001_one.sql": "CREATE TABLE one (id int);"}
TWO = {"002_two.sql": "DROP TABLE one;"}
EMPTY = "0" * 24


class Archive:
    """A server that archives into a directory, and the file of the job that looks at it."""

    def __init__(self, server: servers.Server, place: Path, wal: Path) -> None:
        """Keep what the tests look at."""
        self.server = server
        self.status = place / "status.json"
        self.wal = wal
        self.says()

    def says(self, hours_old: float = 1, **more: object) -> None:
        """Let the job know of a base backup so old."""
        at = (datetime.now(UTC) - timedelta(hours=hours_old)).isoformat()
        said = {"base_backup": {"name": "base-1", "finished_at": at}}
        self.status.write_text(json.dumps(said | more) + "\n")
        self.status.chmod(0o666)
        self.status.parent.chmod(0o777)

    def command(self) -> str:
        """Return the archive_command: it keeps the segment, then a job says which it was."""
        said = json.dumps({"archived": "%f"})
        return f"cp %p {self.wal}/%f && echo '{said}' >> {self.status}"

    def system(self) -> int:
        """Return the server's system identifier."""
        query = "SELECT system_identifier FROM pg_control_system()"
        return int(servers.Database(self.server, "postgres").query(query)[0])

    def archives_with(self, command: str) -> None:
        """Have the server use another command from now on."""
        self.server.configure(archive_command=command)
        self.server.reload()

    def env(self) -> dict[str, str | None]:
        """Return what a run is told of it."""
        return {
            **self.server.env("postgres"),
            "PREFLIGHT_BACKUP": "archive",
            "PREFLIGHT_ARCHIVE_STATUS_FILE": str(self.status),
            "PREFLIGHT_BACKUP_DIR": None,
            "PREFLIGHT_REHEARSE": "auto",
        }


@pytest.fixture(scope="module")
def archiving() -> Iterator[servers.Server]:
    """Give a server of this module's own that archives; each test names its own command."""
    server = servers.start(17, archive_mode="on", archive_command="/bin/true", wal_level="replica")
    yield server
    server.remove()


@pytest.fixture
def archive(archiving: servers.Server) -> Iterator[Archive]:
    """Give that server with an archive that works, and no table of ours."""
    place = Path(archiving.home) / f"archive-{datetime.now(UTC):%H%M%S%f}"
    (place / "wal").mkdir(parents=True)
    (place / "wal").chmod(0o777)
    made = Archive(archiving, place, place / "wal")
    made.archives_with(made.command())
    yield made
    made.archives_with("/bin/true")
    servers.Database(archiving, "postgres").script(
        "DROP SCHEMA IF EXISTS preflight CASCADE; DROP TABLE IF EXISTS one, two"
    )


def code_of(result: Result) -> tuple[int, str]:
    """Return the exit code and what it is called."""
    return result.code, result.finished.get("error", {}).get("code", "")


def test_segment_is_seen_in_the_archive_and_the_point_is_named(
    run: Run, archive: Archive, migrations: WriteMigrations
) -> None:
    """Log, history and journal name the point, its LSN and the command; `restore` says it: 20."""
    migrations(ONE)
    result = run(env=archive.env())

    assert 0 == result.code, result
    (event,) = result.event("backup.verified")
    names = ("backup.verified", "migration.started")
    assert names == tuple(name for name in result.names if name in names)
    assert ("archive", "base-1") == (event["verified"], event["base"])
    point = event["backup"].removeprefix("archive:")
    assert f"'{point}', recovery_target_timeline = '1'" in event["restore"]
    assert 1 == event["timeline"]
    assert event["backup"] == result.finished["backup"]
    database = servers.Database(archive.server, "postgres")
    assert [event["backup"]] == database.query("SELECT backup FROM preflight.migrations")
    noted = database.query("SELECT checksum_before FROM preflight.journal WHERE event = 'pointed'")
    assert event["lsn"] == json.loads(noted[0])["lsn"]
    wal = database.query("SELECT pg_walfile_name(%s)", event["lsn"])
    assert (archive.wal / wal[0]).exists()
    assert "PREFLIGHT_BACKUP=archive" in result.event("rehearsal.skipped")[0]["reason"]

    back = run("restore", event["backup"], env=archive.env())
    assert (20, "backup.elsewhere") == code_of(back)
    assert event["restore"] in back.finished["error"]["message"]
    assert (20, "config.arguments") == code_of(run("restore", "archive:none", env=archive.env()))


def test_backup_makes_a_point_of_the_archive(run: Run, archive: Archive) -> None:
    """The command `backup` takes no dump where archiving is the gate; no history is needed."""
    result = run("backup", env=archive.env())

    assert 0 == result.code, result
    assert "archive" == result.event("backup.verified")[0]["verified"]


def says_as_pgbackrest(archive: Archive, start: str | None = None, **more: object) -> None:
    """Let the job say what `pgbackrest info --output=json` says of the server."""
    said = {
        "name": "main",
        "db": [{"id": 1, "repo-key": 1, "system-id": archive.system()}],
        "archive": [{"database": {"id": 1, "repo-key": 1}, "id": "17-1", "max": EMPTY} | more],
        "backup": [
            {
                "database": {"id": 1, "repo-key": 1},
                "archive": {"start": start, "stop": start},
                "label": "20261128-010000F",
                "timestamp": {"stop": int(datetime.now(UTC).timestamp())},
                "error": False,
            }
        ],
    }
    archive.status.write_text(json.dumps([said]) + "\n")


def stand_in(archive: Archive, text: str) -> dict[str, str | None]:
    """Put a shell script in the place of pgbackrest; return what a run is told."""
    program = archive.wal.parent / "pgbackrest"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return {"PREFLIGHT_ARCHIVE_STATUS_FILE": None, "PATH": f"{program.parent}:/usr/bin:/bin"}


def test_what_passes_by_itself_stops_nothing(
    run: Run, archive: Archive, migrations: WriteMigrations
) -> None:
    """An archive_command that fails once, a tool that fails once, half an answer: not 23."""
    migrations(ONE)

    def once(name: str, otherwise: str) -> str:
        mark = archive.wal / name
        return f"{{ test -e {mark} || {{ touch {mark}; {otherwise}; }}; }}"

    archive.archives_with(f"{once('tried', 'false')} && {archive.command()}")
    says_as_pgbackrest(archive)
    tool = f"{once('broken', 'exit 1')}; {once('half', 'echo [{; exit')}; cat {archive.status}"
    result = run(env={**archive.env(), **stand_in(archive, tool)})

    assert 0 == result.code, result
    assert {"tried", "broken", "half"} <= {each.name for each in archive.wal.iterdir()}


def test_cluster_is_led_back_to_its_base_backup(
    run: Run, archive: Archive, migrations: WriteMigrations
) -> None:
    """CloudNativePG finds no backup by a point's name: the way back says of which one."""
    at = (datetime.now(UTC) - timedelta(hours=1)).replace(microsecond=0)
    said = {"kind": "Cluster", "metadata": {"name": "main"}, "status": {
        "systemID": str(archive.system()), "lastSuccessfulBackup": at.isoformat()}}  # fmt: skip
    archive.status.write_text(json.dumps(said) + "\n")
    migrations(ONE)
    result = run(env=archive.env())

    assert 0 == result.code, result
    (event,) = result.event("backup.verified")
    assert event["backup"].removeprefix("archive:") in event["restore"]
    assert 'targetTLI: "1"' in event["restore"]
    assert f"backupID: that of the backup of {at:%Y-%m-%dT%H:%M:%SZ}" in event["restore"]


BROKEN: dict[str, tuple[int, str, Callable[[Archive], Mapping[str, str | None]]]] = {}


def broken(
    code: int, name: str
) -> Callable[[Callable[[Archive], Mapping[str, str | None]]], Callable[[Archive], Any]]:
    """Collect a way in which an archive is none; it returns what else the run is told."""

    def collect(
        way: Callable[[Archive], Mapping[str, str | None]],
    ) -> Callable[[Archive], Mapping[str, str | None]]:
        BROKEN[way.__name__] = (code, name, way)
        return way

    return collect


@broken(23, "archive.failing")
def archiver_fails(archive: Archive) -> Mapping[str, str | None]:
    """Break the command."""
    archive.archives_with("/bin/false")
    return {}


@broken(23, "archive.failing")
def archive_is_full(archive: Archive) -> Mapping[str, str | None]:
    """Let the archive's disk be full, as a device that is always full is."""
    archive.archives_with("cp %p /dev/full")
    return {}


@broken(14, "archive.late")
def archiver_only_says_so(archive: Archive) -> Mapping[str, str | None]:
    """Archive into nothing: the server believes it."""
    archive.says(archived=EMPTY)
    archive.archives_with("/bin/true")
    return {"PREFLIGHT_LOCK_RETRY_S": "2"}


@broken(23, "archive.elsewhere")
def archive_is_another_one(archive: Archive) -> Mapping[str, str | None]:
    """Ask a tool, here a stand-in for pgbackrest, that never gets the segment."""
    says_as_pgbackrest(archive)
    archive.archives_with("/bin/true")
    return stand_in(archive, f"cat {archive.status}")


@broken(23, "archive.unseen")
def file_says_nothing_of_segments(archive: Archive) -> Mapping[str, str | None]:
    """Name base backups alone."""
    archive.archives_with("/bin/true")
    return {"PREFLIGHT_LOCK_RETRY_S": "1"}


@broken(23, "archive.old_base_backup")
def base_backup_is_old(archive: Archive) -> Mapping[str, str | None]:
    """Take none for too long."""
    archive.says(hours_old=27)
    return {}


@broken(23, "archive.old_base_backup")
def base_backup_is_older_than_wanted(_archive: Archive) -> Mapping[str, str | None]:
    """Want a younger one."""
    return {"PREFLIGHT_ARCHIVE_MAX_AGE_H": "0.5"}


@broken(23, "archive.unclear")
def base_backup_is_to_come(archive: Archive) -> Mapping[str, str | None]:
    """Let the job's clock say what is not true: it would be young for ever."""
    archive.says(hours_old=-1)
    return {}


@broken(23, "archive.gap")
def segment_is_missing_on_the_way(archive: Archive) -> Mapping[str, str | None]:
    """Lose one between the base backup and now, as `wal-g wal-show` tells it."""
    timeline = {"end_segment": EMPTY, "missing_segments": [f"{1:08X}{1:016X}"]}
    base = {
        "backup_name": "base_1",
        "time": datetime.now(UTC).isoformat(),
        "wal_file_name": f"{1:08X}{1:016X}",
    }
    archive.status.write_text(json.dumps([timeline]) + json.dumps([base]))
    return {"PREFLIGHT_LOCK_RETRY_S": "1"}


@broken(23, "archive.gap")
def archive_begins_after_the_base_backup(archive: Archive) -> Mapping[str, str | None]:
    """Keep the base backup, and let what is needed with it be swept away."""
    says_as_pgbackrest(archive, min=f"{1:08X}{2:016X}", start=f"{1:08X}{1:016X}")
    return {"PREFLIGHT_LOCK_RETRY_S": "1"}


@broken(23, "archive.ahead")
def job_says_what_is_written(archive: Archive) -> Mapping[str, str | None]:
    """Say where the server writes, which is no segment that anybody has archived."""
    now = "SELECT pg_walfile_name(pg_current_wal_lsn())"
    archive.says(archived=servers.Database(archive.server, "postgres").query(now)[0])
    archive.archives_with("/bin/true")
    return {}


@broken(23, "archive.ahead")
def clone_archives_into_the_same_place(archive: Archive) -> Mapping[str, str | None]:
    """Let another server with our history be ahead of us."""
    archive.says(archived=f"{1:08X}{'F' * 16}")
    return {}


@broken(23, "archive.no_base_backup")
def base_backup_is_of_another_server(archive: Archive) -> Mapping[str, str | None]:
    """Look at the wrong archive."""
    archive.says(system_identifier="7000000000000000000")
    return {}


@broken(23, "archive.unknown")
def status_file_is_gone(archive: Archive) -> Mapping[str, str | None]:
    """Name a file that nobody has written."""
    return {"PREFLIGHT_ARCHIVE_STATUS_FILE": f"{archive.status}.gone"}


@broken(23, "archive.unknown")
def nobody_can_be_asked(archive: Archive) -> Mapping[str, str | None]:
    """Have neither tool nor file."""
    return {"PREFLIGHT_ARCHIVE_STATUS_FILE": None, "PATH": str(archive.wal)}


@broken(23, "archive.unclear")
def status_file_is_no_json(archive: Archive) -> Mapping[str, str | None]:
    """Write something else."""
    archive.status.write_text("ok\n")
    return {}


@broken(27, "rehearsal.unavailable")
def rehearsal_is_demanded(_archive: Archive) -> Mapping[str, str | None]:
    """Demand a proof of what is not restored."""
    return {"PREFLIGHT_REHEARSE": "always"}


@pytest.mark.parametrize("way", BROKEN)
def test_archive_that_is_none_stops_the_run(
    way: str, run: Run, archive: Archive, migrations: WriteMigrations
) -> None:
    """No file runs where going back could not be."""
    code, name, spoil = BROKEN[way]
    migrations(ONE)
    more = spoil(archive)
    result = run(env={**archive.env(), **more})

    assert (code, name) == code_of(result), result
    assert result.finished["error"]["hint"]
    assert [None] == servers.Database(archive.server, "postgres").query("SELECT to_regclass('one')")


def test_role_without_the_rights_is_told_what_to_grant(
    run: Run, archive: Archive, migrations: WriteMigrations
) -> None:
    """The very statements of the hint let the next run through."""
    migrations(ONE)
    database = servers.Database(archive.server, "postgres")
    database.script(
        "DROP ROLE IF EXISTS app; CREATE ROLE app LOGIN PASSWORD 'app';"
        "GRANT CREATE ON DATABASE postgres TO app; GRANT CREATE ON SCHEMA public TO app"
    )
    env = {**archive.env(), "PGUSER": "app", "PGPASSWORD": "app"}
    result = run(env=env)
    assert (23, "archive.no_right") == code_of(result), result

    grants = result.finished["error"]["hint"].partition(": ")[2].rstrip(".")
    assert 2 == grants.count("GRANT EXECUTE")
    database.script(grants)
    assert 0 == run(env=env).code
    database.script("DROP SCHEMA preflight CASCADE; DROP OWNED BY app; DROP ROLE app")


def test_server_without_archiving_is_no_gate(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """The server's own settings say so; nothing is asked of anybody else."""
    migrations(ONE)
    result = run(env={"PREFLIGHT_BACKUP": "archive"})

    assert (23, "archive.off") == code_of(result), result
    assert [None] == database.query("SELECT to_regclass('one')")


# pgBackRest


@pytest.fixture
def pgbackrest(
    start_server: StartServer,
) -> tuple[servers.Server, Callable[..., None], dict[str, str]]:
    """Give a server with a stanza of pgBackRest, what calls it, and its environment."""
    program = shutil.which("pgbackrest") or tools.lacking("pgbackrest is not on PATH")
    server = start_server(14, archive_mode="on", archive_command="/bin/false", wal_level="replica")
    home = server.home / "pgbackrest"
    for name in ("", "repo", "log", "lock", "spool"):
        (home / name).mkdir(mode=0o777)
        (home / name).chmod(0o777)
    config = home / "pgbackrest.conf"
    config.write_text(
        f"[global]\nrepo1-path={home}/repo\nlock-path={home}/lock\nlog-path={home}/log\n"
        f"spool-path={home}/spool\nlog-level-file=off\n[main]\npg1-path={server.data}\n"
        f"pg1-port={server.port}\npg1-socket-path={home}\npg1-user={servers.SUPERUSER}\n"
    )
    pushed = f"{program} --config={config} --stanza=main archive-push %p"
    server.configure(archive_command=pushed, unix_socket_directories=str(home))
    server.restart()

    def call(*arguments: str) -> None:
        done = subprocess.run(
            [program, f"--config={config}", "--stanza=main", *arguments],
            env={"PGPASSWORD": servers.PASSWORD, "PATH": "/usr/bin:/bin"},
            cwd="/", text=True, capture_output=True, check=False,
            **servers._identity(),  # noqa: SLF001 -- it is theirs
        )  # fmt: skip
        assert 0 == done.returncode, done.stdout + done.stderr

    return server, call, {"PGBACKREST_CONFIG": str(config)}


@contextmanager
def lost(server: servers.Server) -> Iterator[str]:
    """Let the newest segment be lost after it was archived; yield its name."""
    database = servers.Database(server, "postgres")
    (name,) = database.query("SELECT pg_walfile_name(pg_current_wal_lsn())")
    database.script("SELECT pg_switch_wal()")
    while [name] != database.query("SELECT last_archived_wal FROM pg_stat_archiver"):
        pass
    folder = server.home / "pgbackrest/repo/archive/main/14-1" / name[:16]
    (kept,) = folder.glob(f"{name}-*")
    kept.rename(server.home / kept.name)
    yield name
    (server.home / kept.name).rename(kept)


def test_pgbackrest_restores_to_the_named_point(
    run: Run,
    pgbackrest: tuple[servers.Server, Callable[..., None], dict[str, str]],
    migrations: WriteMigrations,
) -> None:
    """Backed up, migrated, restored with the command that the log has: the rows are as before.

    Also when somebody came back to an earlier point before, which began another timeline.
    """
    server, call, environment = pgbackrest
    env = {**server.env("postgres"), **environment, "PREFLIGHT_BACKUP": "archive"}
    path = {"PATH": f"{Path(shutil.which('pgbackrest') or '').parent}:/usr/bin:/bin"}
    call("stanza-create")
    migrations(ONE)
    assert (23, "archive.no_base_backup") == code_of(run(env={**env, **path}))
    call("backup", "--type=full", "--start-fast")
    earlier = run(env={**env, **path})
    assert 0 == earlier.code, earlier
    database = servers.Database(server, "postgres")
    database.script("INSERT INTO one SELECT generate_series(1, 1000)")
    migrations(TWO)
    with lost(server) as name:
        result = run(env={**env, **path, "PREFLIGHT_LOCK_RETRY_S": "1"})
        assert (23, "archive.gap") == code_of(result), result
        assert name in result.finished["error"]["message"]
    result = run(env={**env, **path})
    assert 0 == result.code, result
    assert [] == result.event("config.warned")
    database.script("CREATE TABLE later ()")

    begun = server.home / "pgbackrest/repo/archive/main/14-1/00000002.history"
    for each in (earlier, result):
        server.stop()
        command = each.event("backup.verified")[0]["restore"].split()
        assert "pgbackrest" == command[0]
        call(*(word for word in command[1:] if word != "--stanza=main"))
        server.start()
        waiting = "SELECT pg_is_in_recovery()"
        while [True] == database.query(waiting):
            pass
        if each is earlier:
            assert [None] == database.query("SELECT to_regclass('one')")
            faults.until(begun.exists, "another timeline is in the archive")
    assert [(1000, 500500)] == [
        tuple(row) for row in database.query("SELECT count(*), sum(id) FROM one")
    ]
    assert [None] == database.query("SELECT to_regclass('later')")
    assert [1] == database.query("SELECT version FROM preflight.migrations")


# a program


@pytest.fixture
def told(tmp_path: Path) -> Callable[[str], dict[str, str | None]]:
    """Give what makes the variables of a run whose program has this Python text."""

    def make(text: str) -> dict[str, str | None]:
        script = tmp_path / "snap shot.py"
        script.write_text(
            "import json, sys, time\nfrom datetime import datetime, timedelta, timezone\n"
            "now = datetime.now(timezone.utc)\n"
            f"{text}\n"
        )
        return {
            "PREFLIGHT_BACKUP": "command",
            "PREFLIGHT_BACKUP_COMMAND": f"{sys.executable} '{script}' \"two words\"",
            "PREFLIGHT_BACKUP_DIR": None,
        }

    return make


ANSWER = "answer = {'backup': 'snap-1', 'taken_at': now.isoformat(), 'restore': 'aws rds x'}\n"
GIVE = "print(json.dumps(answer))"
GIVE_LATIN = "sys.stdout.buffer.write(json.dumps(answer, ensure_ascii=False).encode('latin-1'))"


def test_answer_of_a_program_stands_for_the_backup(
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    told: Callable[[str], dict[str, str | None]],
    tmp_path: Path,
) -> None:
    """Its answer is in log, history and journal, and `restore` says how to come back: 20.

    It is not told where the database is.
    """
    migrations(ONE)
    env = told(
        f"{ANSWER}assert sys.argv[1:] == ['two words']\nimport os\n"
        f"assert not [each for each in os.environ if each.startswith(('PG', 'POSTGRES'))]\n{GIVE}"
    )
    password = tmp_path / "password"
    password.write_text(servers.PASSWORD)
    env |= {"POSTGRES_DB": database.name, "POSTGRES_PASSWORD_FILE": str(password)}
    result = run(env=env)

    assert 0 == result.code, result
    (event,) = result.event("backup.verified")
    assert ("command", "command:snap-1", "aws rds x") == (
        event["verified"], event["backup"], event["restore"],
    )  # fmt: skip
    assert ["command:snap-1"] == database.query("SELECT backup FROM preflight.migrations")
    back = run("restore", "command:snap-1", env=env)
    assert (20, "backup.elsewhere") == code_of(back)
    assert "aws rds x" in back.finished["error"]["message"]


def test_point_is_noted_in_the_journal_of_every_schema(
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    told: Callable[[str], dict[str, str | None]],
    tmp_path: Path,
) -> None:
    """One snapshot stands for all schemas of a database; whoever looks finds the way back."""
    names = ("a", "b")
    database.script("; ".join(f"CREATE SCHEMA {name}" for name in names))
    path = tmp_path / "targets"
    lines = [{"name": each, "schema": f"of_{each}", "search_path": each} for each in names]
    path.write_text("\n".join(map(json.dumps, lines)))
    migrations(ONE)
    env = told(ANSWER + GIVE)
    result = run("up", "--targets", str(path), env=env)

    assert 0 == result.code, result
    assert 1 == len(result.event("backup.verified"))
    for name in names:
        noted = f"SELECT backup FROM of_{name}.journal WHERE event = 'pointed'"
        assert ["command:snap-1"] == database.query(noted)
    back = run("restore", "command:snap-1", env={**env, "PREFLIGHT_SCHEMA": "of_b"})
    assert "aws rds x" in back.finished["error"]["message"]


WRONG = {
    "nothing": ("", 23, "backup.command_answer"),
    "no JSON": ("print('done')", 23, "backup.command_answer"),
    "two answers": (f"{ANSWER}{GIVE};{GIVE}", 23, "backup.command_answer"),
    "much": ("print('x' * 10_000_000)", 23, "backup.command_answer"),
    "a name of two lines": (
        f"{ANSWER}answer['backup'] = 'a\\nb';{GIVE}", 23, "backup.command_answer",
    ),
    "another encoding": (
        f"{ANSWER}answer['backup'] = '\xfc'\n{GIVE_LATIN}",
        23, "backup.command_answer",
    ),
    "a list": ("print('[]')", 23, "backup.command_answer"),
    "no way back": (f"{ANSWER}del answer['restore'];{GIVE}", 23, "backup.command_answer"),
    "no zone": (
        f"{ANSWER}answer['taken_at'] = '2026-01-01T00:00:00';{GIVE}", 23, "backup.command_answer",
    ),
    "an old one": (
        f"{ANSWER}answer['taken_at'] = (now - timedelta(hours=1)).isoformat();{GIVE}",
        23, "backup.command_answer",
    ),
    "one to come": (
        f"{ANSWER}answer['taken_at'] = (now + timedelta(hours=1)).isoformat();{GIVE}",
        23, "backup.command_answer",
    ),
    "an error": (f"{ANSWER}{GIVE};sys.exit('quota')", 23, "backup.command_failed"),
    "for ever": ("time.sleep(600)", 14, "backup.command_late"),
}  # fmt: skip


@pytest.mark.parametrize("way", WRONG)
def test_answer_that_names_no_snapshot_stops_the_run(
    way: str,
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    told: Callable[[str], dict[str, str | None]],
) -> None:
    """Whatever it answered in place of one, no file runs."""
    text, code, name = WRONG[way]
    migrations(ONE)
    result = run(env={**told(text), "PREFLIGHT_LOCK_RETRY_S": "1" if code == 14 else "60"})

    assert (code, name) == code_of(result), result
    assert [None] == database.query("SELECT to_regclass('one')")


def test_program_that_is_not_there_stops_the_run(run: Run, migrations: WriteMigrations) -> None:
    """It is named; so is a command without PREFLIGHT_BACKUP=command."""
    migrations(ONE)
    env = {"PREFLIGHT_BACKUP": "command", "PREFLIGHT_BACKUP_COMMAND": "/nowhere/snapshot"}
    result = run(env=env)
    assert (23, "backup.command_not_started") == code_of(result), result
    assert 20 == run(env={**env, "PREFLIGHT_BACKUP": None}).code
    assert 20 == run(env={**env, "PREFLIGHT_BACKUP_COMMAND": None}).code
    assert 20 == run(env={**env, "PREFLIGHT_BACKUP_COMMAND": "'unclosed"}).code


def test_programs_last_words_hide_secrets(
    run: Run, migrations: WriteMigrations, told: Callable[[str], dict[str, str | None]]
) -> None:
    """What it echoes of its environment (`set -x`) is in no line of ours, in whatever spelling."""
    migrations(ONE)
    echoed = "s3cr/t+ pä'ss"
    text = (
        "import os; from urllib.parse import quote\nsecret = os.environ['AWS_SECRET_ACCESS_KEY']\n"
        "sys.exit(f'denied: {secret} and {quote(secret)}')"
    )
    result = run(env={**told(text), "AWS_SECRET_ACCESS_KEY": echoed})

    assert (23, "backup.command_failed") == code_of(result), result
    assert "denied: *** and ***" in result.finished["error"]["message"]


def test_stop_is_passed_on_to_the_program(
    start: Start,
    tmp_path: Path,
    migrations: WriteMigrations,
    told: Callable[[str], dict[str, str | None]],
) -> None:
    """SIGTERM reaches it, so that it can take back what it began."""
    migrations(ONE)
    mark, began = tmp_path / "ended", tmp_path / "began"
    text = (
        "import signal\n"
        f"def end(*_):\n    open({str(mark)!r}, 'w').close(); sys.exit(1)\n"
        f"signal.signal(signal.SIGTERM, end)\nopen({str(began)!r}, 'w').close()\ntime.sleep(600)"
    )
    process = start(env=told(text))
    process.wait_for_event("backup.started")
    while not began.exists():
        assert process.running
    process.signal(signal.SIGTERM)

    assert 143 == process.wait().code
    assert mark.exists()


def test_what_a_program_leaves_behind_is_not_waited_for(
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    told: Callable[[str], dict[str, str | None]],
    tmp_path: Path,
) -> None:
    """A daemon has its stdout and stderr; the answer counts once the program has ended."""
    migrations(ONE)
    left = tmp_path / "left"
    name = 'snap "1"; DROP TABLE ü\'--%s'
    text = (
        f"import subprocess\nchild = subprocess.Popen(['sleep', '600'])\n"
        f"open({str(left)!r}, 'w').write(str(child.pid))\n{ANSWER}answer['backup'] = {name!r}\n"
        f"{GIVE}"
    )
    result = run(env={**told(text), "PREFLIGHT_LOCK_RETRY_S": "600"})
    os.kill(int(left.read_text()), signal.SIGKILL)  # it is still there

    assert 0 == result.code, result
    assert [f"command:{name}"] == database.query("SELECT backup FROM preflight.migrations")


EXPORTED = {
    "001_one.sql": "CREATE TABLE one AS SELECT 7 AS id;",
    "001_one_rollback.sql": "DROP TABLE one;",
    "001_one_export.sql": "SELECT * FROM one;",
}


@pytest.fixture
def exported(
    run: Run, migrations: WriteMigrations, told: Callable[[str], dict[str, str | None]]
) -> dict[str, str | None]:
    """Have a file applied, with a snapshot, whose rollback has rows to export."""
    migrations(EXPORTED)
    env = told(ANSWER + GIVE)
    assert 0 == run(env=env).code
    return env


def test_export_without_a_directory_stops_a_rollback(
    run: Run,
    database: servers.Database,
    exported: dict[str, str | None],
    tmp_path: Path,
) -> None:
    """What a rollback destroys has to be kept somewhere: 23 before the program runs."""
    result = run("rollback", env={**exported, "PREFLIGHT_BACKUP_DIR": str(tmp_path / "nowhere")})

    assert (23, "backup.no_export") == code_of(result), result
    assert "PREFLIGHT_BACKUP_DIR" in result.finished["error"]["hint"]
    assert [] == result.event("backup.verified")
    assert ["one"] == database.query("SELECT to_regclass('one')::text")


def test_export_is_kept_apart_from_a_snapshot_and_never_pruned(
    run: Run,
    database: servers.Database,
    exported: dict[str, str | None],
    backup_dir: Path,
) -> None:
    """In the backup directory, beside a note of the point; it is no backup, and backups go by."""
    result = run("rollback", env={**exported, "PREFLIGHT_BACKUP_DIR": str(backup_dir)})
    (apart,) = backup_dir.iterdir()
    dumps = [run("backup", env={"PREFLIGHT_BACKUP_KEEP": "1"}) for _ in range(2)]
    listed = [each["backup"] for each in run("backups", "--json").json()["backups"]]

    assert 0 == result.code, result
    assert [(apart.name, "export-001_one-1.csv", 1)] == [
        (each["backup"], each["file"], each["rows"]) for each in result.event("export.saved")
    ]
    assert "id\n7\n" == (apart / "export-001_one-1.csv").read_text()
    assert "command:snap-1" == json.loads((apart / "point.json").read_text())["backup"]
    assert {"export-001_one-1.csv", "point.json"} == {each.name for each in apart.iterdir()}
    assert [None] == database.query("SELECT to_regclass('one')::text")
    assert [0, 0] == [each.code for each in dumps], "\n".join(map(str, dumps))
    assert [dumps[1].event("backup.verified")[0]["backup"]] == listed
    assert {apart.name, *listed} == {each.name for each in backup_dir.iterdir()}


@pytest.mark.usefixtures("exported")
def test_export_of_a_rollback_that_never_began_is_not_left(
    run: Run,
    database: servers.Database,
    told: Callable[[str], dict[str, str | None]],
    backup_dir: Path,
) -> None:
    """The point cannot be had: each try would leave rows that nobody looks for, and no note."""
    env = {**told("raise SystemExit(1)"), "PREFLIGHT_BACKUP_DIR": str(backup_dir)}
    result = run("rollback", env=env)

    assert 23 == result.code, result
    saved = [each["backup"] for each in result.event("export.saved")]
    assert 1 == len(saved)
    assert saved == [each["backup"] for each in result.event("backup.pruned")]
    assert [] == list(backup_dir.iterdir())
    assert ["one"] == database.query("SELECT to_regclass('one')::text")


@pytest.mark.usefixtures("exported")
def test_export_that_was_changed_meanwhile_is_saved_again_apart(
    run: Run,
    database: servers.Database,
    told: Callable[[str], dict[str, str | None]],
    backup_dir: Path,
) -> None:
    """The program writes a row after the export: what is destroyed is what is kept."""
    late = f"import psycopg\npsycopg.connect({database.conninfo()!r}, autocommit=True).execute("
    late += "'INSERT INTO one VALUES (8)')\n"
    env = {**told(late + ANSWER + GIVE), "PREFLIGHT_BACKUP_DIR": str(backup_dir)}
    result = run("rollback", env=env)
    (apart,) = backup_dir.iterdir()

    assert 0 == result.code, result
    assert [1, 2] == [each["rows"] for each in result.event("export.saved")]
    assert "id\n7\n8\n" == (apart / "export-001_one-1.csv").read_text()


def test_rollback_and_wrap_name_the_point(
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    told: Callable[[str], dict[str, str | None]],
) -> None:
    """Whatever changes the database goes through the same gate."""
    migrations({**ONE, "001_one_rollback.sql": "DROP TABLE one;"})
    env = told(ANSWER + GIVE)
    assert 0 == run(env=env).code
    result = run("rollback", env=env)

    assert 0 == result.code, result
    assert "command:snap-1" == result.event("backup.verified")[0]["backup"]
    said = "SELECT backup FROM preflight.journal WHERE event = 'rolled_back'"
    assert ["command:snap-1"] == database.query(said)


@pytest.mark.parametrize("way", ["archive", "command"])
def test_wrapped_command_runs_behind_the_point(
    way: str,
    run: Run,
    archive: Archive,
    told: Callable[[str], dict[str, str | None]],
    tmp_path: Path,
) -> None:
    """The point is kept with the command; where there can be none the command does not run."""
    by_archive = way == "archive"
    env = archive.env() | ({} if by_archive else told(ANSWER + GIVE))
    watched, mark = tmp_path / "watched", tmp_path / "mark"
    watched.write_text("one")
    child = [sys.executable, "-c", f"open({str(mark)!r}, 'x')"]
    words = ["wrap", "--watch", str(watched), "--", *child]
    result = run(*words, env={**env, "PREFLIGHT_MIGRATIONS_DIR": None})

    assert 0 == result.code, result
    assert mark.exists()
    (event,) = result.event("backup.verified")
    assert event["backup"].startswith(f"{way}:")
    database = servers.Database(archive.server, "postgres")
    assert [event["backup"]] == database.query("SELECT backup FROM preflight.wraps")

    mark.unlink()
    watched.write_text("two")
    broken = {} if by_archive else told("sys.exit(1)")
    archive.archives_with("/bin/false")
    again = run(*words, env={**env, **broken, "PREFLIGHT_MIGRATIONS_DIR": None})
    assert 23 == again.code, again
    assert not mark.exists()


def test_standby_names_no_point(run: Run, archive: Archive) -> None:
    """It can be dumped, but switches no segment."""
    server = archive.server
    server.stop()
    signal_file = server.put("standby.signal", "")
    server.start()
    try:
        result = run("backup", env=archive.env())
        assert (23, "archive.standby") == code_of(result), result
    finally:
        server.stop()
        signal_file.unlink()
        server.start()
