"""Faults of the platform: signals that come twice, processes that cannot be had, files too open."""

import datetime as dt
import errno
import json
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import faults, program, servers, tools
from tests.conftest import Run, Start, WriteMigrations
from tests.faults.conftest import Answers

QUICKLY = {"PREFLIGHT_BACKUP": "off"}
ASLEEP = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
)


@pytest.mark.fault("F131")
@pytest.mark.parametrize(
    "signals",
    [
        [signal.SIGTERM, signal.SIGTERM, signal.SIGTERM],
        [signal.SIGTERM, signal.SIGINT, signal.SIGINT],
        [signal.SIGINT, signal.SIGTERM],
    ],
)
def test_f131_stop_after_stop_is_as_clean_as_one(
    start: Start,
    database: servers.Database,
    migrations: WriteMigrations,
    signals: list[signal.Signals],
) -> None:
    """Either one may count that comes at once; no traceback, no session, nothing of the file."""
    migrations({"001_nap.sql": "CREATE TABLE nap ();\nSELECT pg_sleep(600);"})
    process = start(env=QUICKLY)
    faults.until(lambda: database.query(ASLEEP), "the file sleeps")
    for number in signals:
        process.signal(number)
    result = process.wait()
    faults.until(lambda: database.sessions() == 0, "our sessions are gone")

    assert result.code in {128 + each for each in signals}, str(result)
    assert "run.stopped" == result.finished["error"]["code"]
    assert "Traceback" not in result.stderr + result.stdout
    assert [None] == database.query("SELECT to_regclass('nap')")


@pytest.mark.fault("F137")
def test_f137_process_that_cannot_be_started_is_no_backup(
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    backup_dir: Path,
    answers: Answers,
) -> None:
    """EAGAIN of a pids limit: told, with what limits it, and nothing is migrated."""
    migrations({"001_a.sql": "CREATE TABLE a ();"})
    result = run(env=answers(fork=errno.EAGAIN))
    error = result.finished["error"]

    assert (23, "backup.no_client") == (result.code, error["code"]), str(result)
    assert "pids.max" in error["hint"]
    assert [] == list(backup_dir.iterdir())
    assert [None] == database.query("SELECT to_regclass('a')")


def test_process_that_can_be_started_a_moment_later_is_waited_for(
    run: Run, database: servers.Database, migrations: WriteMigrations, answers: Answers
) -> None:
    """Somebody else's process ends in between: there is a backup, and the file runs."""
    migrations({"001_a.sql": "CREATE TABLE a ();"})
    result = run(env=answers(fork=errno.EAGAIN, forks=2))

    assert (0, "applied") == (result.code, result.finished["outcome"]), str(result)
    assert 1 == len(result.event("backup.verified"))
    assert ["a"] == database.query("SELECT to_regclass('a')::text")


def test_command_that_cannot_be_started_for_want_of_room_is_told_so(
    run: Run, answers: Answers
) -> None:
    """It is there, and its rights are right: what is to be changed is the limit."""
    env = {"PREFLIGHT_BACKUP": "off", **answers(fork=errno.ENOMEM)}
    result = run("wrap", "--always", "--", "true", env=env)
    error = result.finished["error"]

    assert (20, "wrap.not_started") == (result.code, error["code"]), str(result)
    assert "pids.max" in error["hint"]


@pytest.mark.fault("F145")
def test_f145_password_file_that_others_may_read_is_told(
    run: Run, environment: dict[str, str], migrations: WriteMigrations, tmp_path: Path
) -> None:
    """Kubernetes makes it 0440 with fsGroup, and libpq ignores it then: the file is named."""
    migrations({"001_a.sql": "CREATE TABLE a ();"})
    passfile = tmp_path / "pgpass"
    secret = servers.PASSWORD.replace("\\", "\\\\").replace(":", "\\:")
    passfile.write_text(f"*:*:*:*:{secret}\n", encoding="utf-8")
    passfile.chmod(0o440)
    environment["PGPASSFILE"] = str(passfile)
    refused = run(env={"PGPASSWORD": None, **QUICKLY})
    passfile.chmod(0o400)
    read = run(env={"PGPASSWORD": None, **QUICKLY})

    error = refused.finished["error"]
    assert (21, "auth.rejected") == (refused.code, error["code"]), str(refused)
    assert str(passfile) in error["message"] + error.get("hint", "") + refused.stderr
    assert 0 == read.code, str(read)


@pytest.fixture
def not_utf8(tmp_path: Path) -> dict[str, str]:
    """Give Turkish in Latin-5, compiled here, for hardly a machine has it; else plain ASCII."""
    made = tmp_path / "tr_TR.ISO-8859-9"
    found = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    if localedef := shutil.which("localedef"):
        tools.call([localedef, "--no-archive", "-f", "ISO-8859-9", "-i", "tr_TR", made])
    if made.is_dir():  # the definitions may be missing, too
        found = {"LC_ALL": made.name, "LOCPATH": str(tmp_path), "PYTHONUTF8": "0"}
    spoken = "import locale, sys; print(locale.getencoding(), sys.getfilesystemencoding())"
    said = tools.call([sys.executable, "-c", spoken], found).stdout
    assert said in {"ISO-8859-9 iso8859-9\n", "ANSI_X3.4-1968 ascii\n"}
    return found


@pytest.mark.fault("F139")
def test_f139_odd_locale_and_time_zone_change_no_byte(  # noqa: PLR0913, PLR0917 - fixtures
    run: Run,
    environment: dict[str, str],
    database: servers.Database,
    migrations: WriteMigrations,
    backup_dir: Path,
    not_utf8: dict[str, str],
) -> None:
    """Texts, checksums and names are those of the files, and all times are UTC.

    People read their terminal's encoding.
    """
    text = "CREATE TABLE ñandú (i text DEFAULT 'İı');\n"
    migrations({"V1__ñandú.sql": text})
    for name, folder in ("MIGRATIONS", migrations.directory), ("BACKUP", backup_dir):
        odd = folder.rename(folder.with_name(f"{folder.name} ñ ŝ"))
        environment[f"PREFLIGHT_{name}_DIR"] = str(odd)
    there = {**not_utf8, "TZ": "Pacific/Kiritimati"}
    before = dt.datetime.now(dt.UTC)

    result = run(env=there)
    shown = subprocess.run(
        [*program.PYTHON, program.ENTRYPOINT, "check", "--table"],
        env={**environment, **there},
        capture_output=True,
        check=False,
    )

    assert 0 == result.code, str(result)
    found = database.query("SELECT name, up_sql FROM preflight.migrations")
    assert [("V1__ñandú", text)] == found
    assert 0 == run("check").code  # read in another locale it is the same file
    encoding = "ascii" if there["LC_ALL"] == "C" else "iso8859-9"
    assert "ñandú".encode(encoding, "backslashreplace") in shown.stdout, shown
    (saved,) = Path(environment["PREFLIGHT_BACKUP_DIR"]).iterdir()
    said = json.loads((saved / "manifest.json").read_text("utf-8"))
    told = [each["timestamp"] for each in result.events]
    assert [] == [each for each in told if not each.endswith("Z")]
    assert abs(dt.datetime.fromisoformat(told[0]) - before).total_seconds() < 3600
    assert said["snapshot_at"].endswith("Z"), said
    named = dt.datetime.strptime(saved.name.split("-")[-2], "%Y%m%dT%H%M%S%z")
    assert abs(named - before).total_seconds() < 3600, saved.name


GROWS = {
    "001_a.sql": "CREATE TABLE a (id int);",
    "002_b.sql": "CREATE TABLE b (id int);\nSELECT pg_advisory_xact_lock(7);",
    "003_c.sql": f"CREATE TABLE c (t text);\nINSERT INTO c VALUES ('{'x' * 5_000_000}');",
}
WAITS = "SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'advisory'"
MADE = "SELECT relname::text FROM pg_class WHERE relname = ANY ('{a,b,c}') ORDER BY 1"


def grown(
    start: Start, database: servers.Database, limit: Callable[[int], object]
) -> program.Result:
    """Run files, the last of which takes memory, and limit the process before it comes to that."""
    with database.server.connect(database.name) as holder:
        holder.execute("SELECT pg_advisory_lock(7)")
        process = start(env=QUICKLY)
        faults.until(lambda: database.query(WAITS), "the second file is at work")
        limit(process.pid)
    return process.wait()


@pytest.mark.fault("F136")
def test_f136_run_that_the_kernel_kills_for_its_memory_is_settled_by_the_next(
    run: Run, start: Start, database: servers.Database, migrations: WriteMigrations
) -> None:
    """137, in the middle of a file, as in a container whose limit is too low for it."""
    migrations(GROWS)
    try:
        with faults.small_memory(64) as group:
            enters = group / "cgroup.procs"
            killed = grown(start, database, lambda pid: enters.write_text(f"{pid}"))
            kills = faults.killed_in(group)
    except OSError as error:
        tools.lacking(f"a control group for memory: {error}")
    left = database.query(MADE)
    again = run(env=QUICKLY)

    assert (-signal.SIGKILL, 1) == (killed.code, kills), str(killed)
    assert "c" not in left
    assert 0 == again.code, str(again)
    assert ["a", "b", "c"] == [*left, *(each[-1] for each in again.finished["applied"])]


@pytest.mark.fault("F136")
def test_f136_run_that_gets_no_memory_is_settled_by_the_next(
    run: Run, start: Start, database: servers.Database, migrations: WriteMigrations
) -> None:
    """A limit of the process, as `ulimit -v` sets one: it fails, and says of what."""
    migrations(GROWS)

    def limit(pid: int) -> None:
        pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[0])
        has = pages * resource.getpagesize()
        resource.prlimit(pid, resource.RLIMIT_AS, (has, has))

    failed = grown(start, database, limit)
    left = database.query(MADE)
    again = run(env=QUICKLY)

    assert 70 == failed.code, str(failed)
    assert "there is no memory left" in failed.finished["error"]["message"]
    assert "c" not in left
    assert 0 == again.code, str(again)
    assert ["a", "b", "c"] == [*left, *(each[-1] for each in again.finished["applied"])]
