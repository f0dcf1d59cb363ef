"""Backups that go wrong: nothing is migrated, nothing is left, older backups stay as they are."""

import contextlib
import json
import os
import resource
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import psycopg
import pytest

from preflight.backup import clients, reading_back, snapshots
from preflight.backup.directory import Directory
from preflight.base.errors import BackupUnverified
from tests import faults, program, servers
from tests.conftest import Run, Start, StartServer, WriteMigrations
from tests.fakes import Fakes, contents, manifest, only, run_without_privileges

if TYPE_CHECKING:
    from preflight.server.sessions import Session

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
        pytest.param(24, "empty", "exit 0", id="writes nothing", marks=pytest.mark.fault("C063")),
        pytest.param(
            24,
            "unreadable",
            CUT.format(percent=98),
            id="cut to 98 percent",
            marks=pytest.mark.fault("C059"),
        ),
        pytest.param(24, "unreadable", CUT.format(percent=2), id="cut to 2 percent"),
        pytest.param(
            24,
            "unreadable",
            '"$REAL" "$@" | cat > "$HERE/whole"; echo hello; cat "$HERE/whole"',
            id="garbage before",
            marks=pytest.mark.fault("C062"),
        ),
        pytest.param(
            24,
            "unreadable",
            '"$REAL" "$@" && echo bye',
            id="garbage after",
            marks=pytest.mark.fault("C062"),
        ),
        pytest.param(24, "unreadable", "echo I am no archive", id="garbage only"),
        pytest.param(
            24, "rows_differ", 'exec "$REAL" "$@" --exclude-table=items', id="leaves a table out"
        ),
        pytest.param(
            24, "rows_differ", 'exec "$REAL" "$@" --exclude-table-data=items', id="leaves rows out"
        ),
        pytest.param(24, "rows_differ", 'exec "$REAL" "$@" --schema-only', id="no rows at all"),
        pytest.param(23, "pg_dump", "echo 'cannot think' >&2; exit 1", id="fails"),
        pytest.param(
            14,
            "interrupted",
            'printf PGDMP; kill -9 "$$"',
            id="killed",
            marks=pytest.mark.fault("C044"),
        ),
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


@pytest.mark.fault("C044")
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


@pytest.mark.fault("C074")
@pytest.mark.parametrize("script", ["exit 1", 'kill -SEGV "$$"', "exit 0"])
def test_pg_restore_that_cannot_read_the_dump_stops_the_run(
    run: Run, unharmed: Callable[[], bool], fakes: Fakes, script: str
) -> None:
    """It may crash on a broken archive, or read nothing and say that all is well."""
    result = run(env={"PATH": fakes.write(script, "pg_restore")})

    assert 24 == result.code, str(result)
    assert unharmed()


@pytest.mark.fault("C060", "C061")
def test_bit_that_flips_on_the_disk_is_found(
    run: Run, database: servers.Database, migrations: WriteMigrations, backup_dir: Path
) -> None:
    """In zstd pg_restore reads over it; the hash of what was sent does not."""
    database.script(ITEMS)
    migrations({"001_one.sql": "CREATE TABLE one (id int);"})
    assert 0 == run(env={"PATH": program.path(17)}).code
    (saved,) = backup_dir.iterdir()
    dump = saved / "database.dump"
    home = servers.client_bin(17)
    counted = clients.Clients(str(home / "pg_dump"), str(home / "pg_restore"), "17")
    backups = Directory(backup_dir)
    found = reading_back.hashed(backups, saved.name)
    wanted = {(b"public", b"items"): ("public.items", 5000)}

    def read() -> int:
        return reading_back.require_whole(
            backups, saved.name, found.sha256, counted, os.environ, wanted
        )

    assert found.size_bytes == read()
    flipped = bytearray(dump.read_bytes())
    flipped[found.size_bytes // 2] ^= 1
    dump.write_bytes(flipped)
    with pytest.raises(BackupUnverified) as raised:
        read()
    assert "backup.corrupt" == raised.value.code


# --- read while it is written ---------------------------------------------------------------------

NOISE = """CREATE TABLE noise AS SELECT (SELECT string_agg(sha512((n * 100 + i)::text::bytea), '')
FROM generate_series(1, 80) i) AS raw FROM generate_series(1, 1600) n"""
# what pg_restore reads, told by its last word: the stream of a dump that grows, or its file
READER = """case "$*" in *--data-only*) echo "${{*##* }}" >> "$HERE/read"; {then} ;; esac
exec "$REAL" "$@" """


def large(run: Run, fakes: Fakes, then: str) -> tuple[program.Result, list[str]]:
    """Back up a dump of 8 MB with such a reader; return the result, and what each one read."""
    path = fakes.write(READER.format(then=then), "pg_restore")
    result = run("backup", env={"PATH": path, "PREFLIGHT_REHEARSE": "off"})
    return result, [Path(each).name for each in (fakes.here / "read").read_text().splitlines()]


def test_large_dump_is_read_while_it_is_written(
    run: Run, database: servers.Database, fakes: Fakes
) -> None:
    """Once, and behind pg_dump: what is stored is then only compared by its hash."""
    database.script(NOISE)
    result, read = large(run, fakes, ":")

    assert 0 == result.code, str(result)
    assert ["--file=-"] == read
    assert ["read"] == [each["verified"] for each in result.event("backup.verified")]


def test_dump_whose_reader_fails_on_the_way_is_read_back(
    run: Run, database: servers.Database, fakes: Fakes
) -> None:
    """A reader that was killed says nothing about the dump; what is stored decides."""
    database.script(NOISE)
    result, read = large(run, fakes, 'case "$*" in *-) exit 1;; esac')

    assert 0 == result.code, str(result)
    assert ["--file=-", "database.dump"] == read


@pytest.mark.fault("C061")
def test_bit_that_flips_behind_the_reader_is_found(
    run: Run, database: servers.Database, fakes: Fakes, backup_dir: Path
) -> None:
    """Every row was read from the cache; the disk is what counts."""
    database.script(NOISE)
    flip = f""""$REAL" "$@"; code=$?
    printf x | dd of="$(echo {backup_dir}/.*/database.dump)" bs=1 seek=5000000 conv=notrunc 2>&1
    exit $code"""
    result, _ = large(run, fakes, flip)

    assert (24, "backup.corrupt") == code_of(result), str(result)
    assert [] == result.event("backup.verified")


def test_large_dump_that_lacks_its_end_is_found_on_the_way(
    run: Run, database: servers.Database, fakes: Fakes
) -> None:
    """As one that is read back: cut, without a row, or with another's hash."""
    database.script(NOISE)
    fakes.write(CUT.format(percent=90))
    result, read = large(run, fakes, ":")

    assert (24, "backup.unreadable") == code_of(result), str(result)
    assert "--file=-" == read[0]


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


@pytest.mark.fault("B033", "C045")
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


@pytest.mark.fault("C058")
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
    try:
        with faults.small_disk(tmp_path / "disk", 12) as disk:
            yield disk
    except PermissionError as error:
        pytest.skip(str(error))


@pytest.mark.fault("C046")
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


@pytest.mark.fault("C049")
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


@pytest.mark.fault("C049")
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


@pytest.mark.fault("C051")
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


# --- what others do meanwhile ---------------------------------------------------------------------

MEANWHILE = """if {when}; then
"$(dirname "$REAL")/psql" -X -q -d {whom} -c "{sql}" >&2 || exit 9; fi
exec "$REAL" "$@" """
# the look at what was changed meanwhile is the only one of the run's session that is rolled back
LOOKED = """"$REAL" "$@" || exit
psql() {{ "$(dirname "$REAL")/psql" -X -q -A -t -d {whom} -c "$1"; }}
until psql "SELECT query FROM pg_stat_activity WHERE state = 'idle'" | grep -qx ROLLBACK
do n=$((n + 1)); [ $n -lt 300 ] || exit 9; done
psql "{sql}" >&2 """
SAME = """for each; do case "$each" in --snapshot=*) its="$each";; esac; done
[ -e "$HERE/its" ] || echo "$its" > "$HERE/its"; [ "$its" = "$(cat "$HERE/its")" ]"""
FIRST = 'mkdir "$HERE/first" 2>/dev/null'
CHANGES: dict[str, tuple[str, int]] = {
    "function re-created": (
        "DROP FUNCTION f(int); CREATE FUNCTION f(int) RETURNS int LANGUAGE sql AS 'SELECT 2'",
        2,
    ),
    "function dropped": ("DROP FUNCTION f(int)", 2),
    "view replaced": ("CREATE OR REPLACE VIEW v AS SELECT id, note, 1 AS one FROM items", 2),
    "label renamed": ("ALTER TYPE mood RENAME VALUE 'ok' TO 'okay'", 2),
    "trigger disabled": ("ALTER TABLE items DISABLE TRIGGER t", 2),
    "constraint validated": ("ALTER TABLE items VALIDATE CONSTRAINT later", 2),
    "index renamed": ("ALTER INDEX by_note RENAME TO by_the_note", 2),
    "sequence set back": ("SELECT setval('s', 3)", 1),
    "sequence begun anew": ("SELECT setval('s', 1, false)", 1),
    "sequence went on": ("SELECT nextval('s')", 1),
    "sequence restarted": ("ALTER SEQUENCE s RESTART", 1),
    "sequence altered": ("ALTER SEQUENCE s INCREMENT 2", 2),
    "view refreshed": ("REFRESH MATERIALIZED VIEW m", 1),
    "made anew as it was": (
        """CREATE OR REPLACE FUNCTION f(int) RETURNS int LANGUAGE sql AS 'SELECT 1';
        CREATE OR REPLACE VIEW v AS TABLE items; GRANT SELECT ON v TO PUBLIC;
        ALTER TABLE items DISABLE TRIGGER t; ALTER TABLE items ENABLE TRIGGER t""",
        1,
    ),
    "made meanwhile": (
        "CREATE TABLE new (id int); CREATE FUNCTION g() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        1,
    ),
}
CHANGING = """CREATE FUNCTION f(int) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE VIEW v AS TABLE items; GRANT SELECT ON v TO PUBLIC;
CREATE MATERIALIZED VIEW m AS TABLE items;
CREATE TYPE mood AS ENUM ('ok'); CREATE TABLE moods (m mood); INSERT INTO moods VALUES ('ok');
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END';
CREATE TRIGGER t BEFORE UPDATE ON items FOR EACH ROW EXECUTE FUNCTION touch();
ALTER TABLE items ADD CONSTRAINT later CHECK (id > 0) NOT VALID;
CREATE INDEX by_note ON items (note);
CREATE SEQUENCE s; SELECT setval('s', 500);"""


def meanwhile(database: servers.Database, change: str, when: str = FIRST) -> str:
    """Return a pg_dump before which somebody changes something, after the snapshot was taken."""
    return MEANWHILE.format(whom=shlex.quote(database.conninfo()), when=when, sql=change)


@pytest.mark.parametrize(("change", "attempts"), CHANGES.values(), ids=CHANGES.keys())
def test_what_no_lock_holds_still_is_dumped_again_when_it_was_changed(
    change: str,
    attempts: int,
    run: Run,
    database: servers.Database,
    fakes: Fakes,
) -> None:
    """pg_dump prints half of it as it was and half as it is; what may change is let be."""
    database.script(ITEMS)
    database.script(CHANGING)
    path = fakes.write(meanwhile(database, change))
    result = run("backup", env={"PATH": path, "PREFLIGHT_REHEARSE": "always"})

    assert 0 == result.code, str(result)
    assert attempts == len(result.event("backup.started"))
    assert "restored" == result.event("rehearsal.passed")[0]["verified"]


def test_indexes_that_are_built_anew_meanwhile_cost_no_dump(
    start: Start, database: servers.Database, fakes: Fakes
) -> None:
    """REINDEX CONCURRENTLY puts them in the old ones' place once the snapshot is gone."""
    names = [f"rebuilt_{number}" for number in range(8)]
    database.script("".join(f"CREATE TABLE {name} (id int PRIMARY KEY);" for name in names))
    process = start("backup", env={"PATH": fakes.hold(), "PREFLIGHT_REHEARSE": "off"})
    faults.until((fakes.here / "held").exists, "pg_dump has begun")
    waits = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ '^REINDEX'"
    with ThreadPoolExecutor(len(names)) as pool:
        rebuilt = [pool.submit(database.script, f"REINDEX TABLE CONCURRENTLY {n}") for n in names]
        faults.until(lambda: len(database.query(waits)) == len(names), "they wait for the snapshot")
        fakes.let_go()
        result = process.wait()
    assert [None] * len(names) == [each.result() for each in rebuilt]
    assert 0 == result.code, str(result)
    assert 1 == len(result.event("backup.started"))


def test_what_is_changed_while_rows_alone_are_dumped_costs_no_dump(
    run: Run, database: servers.Database, fakes: Fakes
) -> None:
    """A view that is made anew again and again is printed before, once and for all."""
    database.script(ITEMS)
    database.script(CHANGING)
    change = "DROP VIEW v; CREATE VIEW v AS SELECT id, note, 1 AS one FROM items"
    script = LOOKED.format(whom=shlex.quote(database.conninfo()), sql=change)
    result = run("backup", env={"PATH": fakes.write(script), "PREFLIGHT_REHEARSE": "always"})

    assert 0 == result.code, str(result)
    assert 1 == len(result.event("backup.started"))
    assert "restored" == result.event("rehearsal.passed")[0]["verified"]
    assert ["1"] == database.query("SELECT one::text FROM v LIMIT 1")


def test_what_changes_all_the_time_ends_with_14(
    run: Run, database: servers.Database, backup_dir: Path, fakes: Fakes
) -> None:
    """Running again is all it takes: nothing is to be corrected in the database."""
    database.script(ITEMS)
    database.script(CHANGING)
    result = run(
        "backup",
        env={
            "PATH": fakes.write(meanwhile(database, CHANGES["function re-created"][0], "true")),
            "PREFLIGHT_LOCK_RETRY_S": "0",
        },
    )

    assert (14, "backup.interrupted") == code_of(result), str(result)
    assert "function public.f" in result.finished["error"]["message"]
    assert [] == list(backup_dir.iterdir())


def test_one_fresh_dump_is_taken_before_a_backup_is_called_bad(
    run: Run, database: servers.Database, backup_dir: Path, fakes: Fakes
) -> None:
    """The first lacks something when it is restored, the second is whole."""
    database.script(ITEMS)
    database.script(CHANGING)
    script = f'{SAME} && set -- "$@" --exclude-table=v; exec "$REAL" "$@"'
    result = run("backup", env={"PATH": fakes.write(script), "PREFLIGHT_REHEARSE": "always"})

    assert 0 == result.code, str(result)
    (again,) = [each for each in result.event("backup.progressed") if "waiting" in each]
    assert "view public.v is missing" in again["waiting"]
    assert 1 == len(list(backup_dir.glob("[!.]*")))


def test_rows_are_counted_while_pg_dump_is_at_work(
    start: Start, database: servers.Database, fakes: Fakes
) -> None:
    """It starts at once, so nobody queues between its locks and ours; one attempt is enough."""
    database.script(ITEMS)
    path = fakes.write('"$REAL" "$@"; code=$?; touch "$HERE/dumped"; exit $code')
    with database.server.connect(database.name) as other:
        other.execute("BEGIN")
        other.execute("REINDEX INDEX items_pkey")  # a count has to wait for it, pg_dump has not
        process = start("backup", env={"PATH": path, "PREFLIGHT_LOCK_TIMEOUT_MS": "300"})
        faults.until((fakes.here / "dumped").exists, "pg_dump is through")
        other.execute("ROLLBACK")
    result = process.wait()

    assert 0 == result.code, str(result)
    assert 1 == len(result.event("backup.started"))


def test_stop_ends_a_count_that_waits(
    start: Start, database: servers.Database, backup_dir: Path, fakes: Fakes
) -> None:
    """With pg_dump through and the count in the way of somebody's lock: 143, nothing left."""
    database.script(ITEMS)
    path = fakes.write('"$REAL" "$@"; code=$?; touch "$HERE/dumped"; exit $code')
    with database.server.connect(database.name) as other:
        other.execute("BEGIN")
        other.execute("REINDEX INDEX items_pkey")
        process = start("backup", env={"PATH": path})
        faults.until((fakes.here / "dumped").exists, "pg_dump is through")
        process.signal(signal.SIGTERM)
        result = process.wait()

    assert 143 == result.code, str(result)
    assert [] == list(backup_dir.iterdir())


@pytest.mark.fault("C057")
def test_table_that_was_just_dropped_is_not_taken_for_an_unreadable_one(
    database: servers.Database,
) -> None:
    """Its privileges are unknown then, and an unknown right is no missing one."""
    database.script("CREATE TABLE gone (id serial); CREATE TABLE stays (id int)")
    with psycopg.connect(database.conninfo()) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("SELECT 1")
        database.query("DROP TABLE gone")
        asked = SimpleNamespace(
            execute=connection.execute, cursor=connection.cursor, config=SimpleNamespace(only=())
        )
        found = snapshots.require_readable(cast("Session", asked))

    assert ["gone", "stays"] == [table.table for table in found]


def test_backup_of_a_standby_is_without_what_is_unlogged_and_says_so(
    run: Run, start_server: StartServer, backup_dir: Path
) -> None:
    """No row of it is there, and pg_dump asks for none; all else is counted."""
    server = start_server()
    database = servers.Database(server, "postgres")
    database.script(
        ITEMS + "CREATE UNLOGGED TABLE cache (id serial); INSERT INTO cache VALUES (DEFAULT)"
    )
    server.stop()
    server.put("standby.signal", "")
    server.start()
    result = run("backup", env=database.env())

    assert 0 == result.code, str(result)
    found = manifest(only(backup_dir))
    lost = ["rows of public.cache", "the place of the sequence public.cache_id_seq"]
    assert lost == [each["what"] for each in found["without"]]
    assert {"public.items": 5000, "public.others": 0} == found["rows"]


def test_backup_needs_no_more_locks_than_pg_dump(
    run: Run, start_server: StartServer, backup_dir: Path
) -> None:
    """A count locks every index of its table, but not to the end of the backup."""
    server = start_server(
        max_locks_per_transaction=40,
        max_connections=8,
        max_wal_senders=0,
        max_worker_processes=0,
        autovacuum_max_workers=1,
    )
    database = servers.Database(server, "postgres")
    for first in range(0, 150, 50):
        database.script(
            f"""DO $$ BEGIN FOR i IN {first} .. {first + 49} LOOP EXECUTE format('CREATE TABLE t%s
            (id int PRIMARY KEY, a int UNIQUE, b int UNIQUE, c int UNIQUE)', i); END LOOP; END $$"""
        )
    pg_dump = str(servers.client_bin(18) / "pg_dump")
    subprocess.run([pg_dump, "--file=/dev/null", database.conninfo()], check=True)
    result = run("backup", env=database.env())

    assert 0 == result.code, str(result)
    assert 1 == len(list(backup_dir.iterdir()))


# --- what is not in it ----------------------------------------------------------------------------

LEFT_OUT = {
    "mapping": (
        """CREATE FOREIGN DATA WRAPPER w; CREATE SERVER far FOREIGN DATA WRAPPER w;
        ALTER SERVER far OWNER TO {0}; CREATE ROLE {0}_b IN ROLE {0};
        CREATE USER MAPPING FOR {0}_b SERVER far OPTIONS (password 'x')""",
        "options of the user mapping for {0}_b on server far",
    ),
    "subscription": (
        "CREATE SUBSCRIPTION {0}_s CONNECTION 'dbname=x' PUBLICATION p WITH (connect = false)",
        "subscription {0}_s",
    ),
    "warning": ("SELECT 1", "something was left out: of it all"),
}
WARNS = """echo 'pg_dump: warning: something was left out:' >&2
echo 'pg_dump: detail: of it all' >&2; exec "$REAL" "$@" """


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_what_a_dump_silently_leaves_out_is_said(
    kind: str, run: Run, database: servers.Database, backup_dir: Path, fakes: Fakes
) -> None:
    """In the manifest and in the event, with the reason; who demands a proof gets 27."""
    role = f"{database.name}_plain"
    script, what = (each.format(role) for each in LEFT_OUT[kind])
    database.script(
        f"CREATE ROLE {role} LOGIN CREATEDB PASSWORD 'x';"
        f"ALTER DATABASE {database.name} OWNER TO {role}"
    )
    with database.server.connect(database.name) as connection:
        for each in script.split(";"):
            connection.execute(each.encode())
    env = {"PGUSER": role, "PGPASSWORD": "x"}
    env |= {"PATH": fakes.write(WARNS)} if kind == "warning" else {}
    result = run("backup", env=env)
    (saved,) = backup_dir.iterdir()
    found = json.loads((saved / "manifest.json").read_bytes())
    demanded = run("backup", env=env | {"PREFLIGHT_REHEARSE": "always"})
    if kind == "subscription":
        database.query(f"ALTER SUBSCRIPTION {role}_s SET (slot_name = NONE)")
        database.query(f"DROP SUBSCRIPTION {role}_s")

    assert 0 == result.code, str(result)
    assert [what] == [each["what"] for each in found["without"]]
    assert found["without"] == result.event("backup.verified")[0]["without"]
    assert (27, "rehearsal.incomplete") == code_of(demanded), str(demanded)
    assert what in demanded.finished["error"]["message"]
