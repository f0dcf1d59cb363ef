"""What a rehearsal measures decides: how long locks are held, and what the server can bear."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from preflight.backup import snapshots
from preflight.base.config import Config
from preflight.files import reading
from preflight.rehearsal import burden, meter
from preflight.server import sessions
from tests import faults, program, servers
from tests.conftest import CreateDatabase, Run, Start, StartServer, WriteMigrations

USERS = "CREATE TABLE users (id int PRIMARY KEY, n int); INSERT INTO users VALUES (1, 1)"
SLEEP = "SELECT pg_sleep(0.3);\n"
STORED = "CREATE MATERIALIZED VIEW stored AS TABLE users; CREATE UNIQUE INDEX ON stored (id)"
REFRESH = "REFRESH MATERIALIZED VIEW CONCURRENTLY stored;\n"
LIMIT = {"PREFLIGHT_REHEARSE_MAX_LOCK_S": "0.2"}
TRAP = """
CREATE TABLE log (n int);
CREATE FUNCTION locks() RETURNS trigger LANGUAGE plpgsql AS
 'BEGIN LOCK TABLE users IN SHARE MODE; RETURN NEW; END';
CREATE TRIGGER locking BEFORE INSERT ON log FOR EACH ROW EXECUTE FUNCTION locks();
"""


@pytest.fixture(autouse=True)
def settings(environment: dict[str, str]) -> None:
    """Begin with a database that was made by hand, and rehearse."""
    environment["PREFLIGHT_FIRST_CONTACT"] = "pending"
    environment["PREFLIGHT_REHEARSE"] = "auto"


ONE = {"001_one.sql": "CREATE TABLE one ();"}
SLEEPER = {"001_one.sql": "CREATE TABLE one ();\nSELECT pg_sleep(100);"}
SLEEPING = """
SELECT count(*) FROM pg_stat_activity
WHERE datname LIKE 'preflight\\_scratch%' AND query LIKE '%pg_sleep%' AND state = 'active'
"""
SCRATCH = "SELECT datname FROM pg_database WHERE datname LIKE 'preflight\\_scratch%'"


# --- how long a lock may be held ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "text", "line", "mode"),
    [
        pytest.param(
            LIMIT, f"ALTER TABLE users ADD a int;\n{SLEEP}", 1, "ACCESS EXCLUSIVE", id="variable"
        ),
        pytest.param(
            {}, f"-- preflight: max-lock 200ms\nCREATE INDEX ON users (n);\n{SLEEP}", 2, "SHARE",
            id="directive",
        ),
        pytest.param(
            {"PREFLIGHT_REHEARSE_MAX_LOCK_S": "60"},
            f"-- preflight: max-lock 200ms\nDO 'BEGIN LOCK TABLE users IN EXCLUSIVE MODE; END';\n"
            f"{SLEEP}", 2, "EXCLUSIVE", id="directive speaks for the file",
        ),
        pytest.param(
            LIMIT, f"SELECT 1;\nINSERT INTO log VALUES (1);\nSET DateStyle = iso;\n{SLEEP}", 4,
            "SHARE", id="trigger",
        ),
        pytest.param(
            {"PREFLIGHT_REHEARSE_MAX_LOCK_S": "0.001"},
            "INSERT INTO log SELECT 1 FROM (SELECT pg_sleep(0.05)) AS slept;\n", 1, "SHARE",
            id="last statement is short",
        ),
        pytest.param(
            {"PREFLIGHT_REHEARSE_MAX_LOCK_S": "0.001"},
            "-- preflight: no-transaction\nVACUUM (FULL) users;\n", 2, "ACCESS EXCLUSIVE",
            id="outside a transaction",
        ),
        pytest.param(
            LIMIT,
            "-- preflight: no-transaction\nSELECT 1;\nALTER TABLE users ADD a int DEFAULT "
            "length(pg_sleep(0.3)::text);\n", 3, "ACCESS EXCLUSIVE", id="step of its own",
        ),
    ],
)  # fmt: skip
def test_lock_that_is_held_for_longer_than_the_limit_is_refused(  # noqa: PLR0913, PLR0917 -- a case each
    env: Mapping[str, str],
    text: str,
    line: int,
    mode: str,
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
) -> None:
    """27 that names statement, table and seconds; to the end of its transaction it is held."""
    database.script(USERS)
    database.script(TRAP)
    migrations({"001_one.sql": text})
    result = run(env=env)

    error = result.finished["error"]
    assert (27, "rehearsal.lock_too_long") == (result.code, error["code"]), result
    assert ("001_one.sql", line) == (error["file"], error["line"]), result
    assert f"{mode} on users was" in error["message"]
    assert [0] == database.query("SELECT count(*) FROM preflight.migrations")
    (measured,) = result.event("rehearsal.measured")
    assert line in [each["line"] for each in measured["statements"]]


@pytest.mark.parametrize(
    ("env", "text"),
    [
        pytest.param(
            LIMIT, f"-- preflight: max-lock 10s\nALTER TABLE users ADD a int;\n{SLEEP}",
            id="the file allows more",
        ),
        pytest.param(LIMIT, f"UPDATE users SET n = 2;\n{REFRESH}{SLEEP}", id="weak locks"),
        pytest.param(
            {"PREFLIGHT_REHEARSE_MAX_LOCK_S": "0.001"}, f"-- preflight: no-transaction\n{REFRESH}",
            id="lock on what nobody writes to",
        ),
        pytest.param(
            LIMIT, f"CREATE TABLE mine (n int);\nLOCK TABLE mine;\n{SLEEP}", id="table of its own"
        ),
        pytest.param(LIMIT, f"LOCK TABLE zero;\n{SLEEP}", id="table that the same run makes"),
        pytest.param(
            LIMIT,
            f"-- preflight: no-transaction\nALTER TABLE users ADD a int;\n{SLEEP}",
            id="lock that was let go",
        ),
    ],
)  # fmt: skip
def test_lock_that_is_in_nobodys_way_is_not_refused(
    env: Mapping[str, str],
    text: str,
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
) -> None:
    """What writers need not wait for may last."""
    database.script(f"{USERS}; {STORED}")
    migrations({"000_zero.sql": "CREATE TABLE zero ();", "001_one.sql": text})
    result = run(env=env)

    assert (0, []) == (result.code, result.event("rehearsal.warned")), result


def test_long_lock_without_a_limit_is_a_warning(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Above 2 s, with the place; `rehearsal.passed` alone was read by nobody."""
    database.script(USERS)
    migrations({"001_one.sql": "LOCK TABLE users;\nSELECT pg_sleep(2.05);"})
    result = run()

    (warned,) = result.event("rehearsal.warned")
    assert (0, "001_one", 1) == (result.code, warned["migration"], warned["line"])
    assert "ACCESS EXCLUSIVE on users was held for 2." in warned["reason"]


@pytest.mark.parametrize(
    ("env", "text"),
    [
        ({**LIMIT, "PREFLIGHT_REHEARSE": "off"}, ""),
        ({"PREFLIGHT_REHEARSE_MAX_MB": "1"}, "-- preflight: max-lock 10s\n"),
        ({"PREFLIGHT_REHEARSE_MAX_LOCK_S": "0.001"}, "-- preflight: no-transaction\nVACUUM FULL;"),
    ],
    ids=["off", "skipped", "tables unknown"],
)
def test_limit_that_was_not_measured_is_said(
    env: Mapping[str, str], text: str, run: Run, migrations: WriteMigrations
) -> None:
    """A warning: who set a limit must not believe that it was kept."""
    migrations({"001_one.sql": f"{text}\nCREATE TABLE one ();"})
    result = run(env=env)

    (warned,) = result.event("rehearsal.warned")
    assert 0 == result.code
    assert "measured" in warned["reason"]


def test_measures_of_what_passed_are_told_when_a_later_file_fails(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """In the log of `up`, in the document and in the table of a plan: they were paid for."""
    database.script(USERS)
    migrations(
        {
            "001_one.sql": "ALTER TABLE users ALTER n TYPE bigint;\nSELECT pg_sleep(0.12);",
            "002_two.sql": "SELECT pg_sleep(0.11);\nSELECT 1 / 0;",
        }
    )
    result = run()
    document = run("plan", "--rehearse", "--json")
    table = run("plan", "--rehearse", "--table")

    assert [27] * 3 == [result.code, document.code, table.code]
    assert (27, document.finished["error"]) == (
        document.json()["exit_code"],
        document.json()["error"],
    )
    (measured,) = result.event("rehearsal.measured")
    assert ([1, 2], 0) == (
        [each["line"] for each in measured["statements"]],
        measured["statements_untold"],
    )
    one, _, two, _ = [each["measured"] for each in document.json()["statements"]]
    assert ("users", True, None) == (one["locks"][0]["table"], "rewrites" in one, two)
    assert 0.12 <= one["locks"][0]["held_s"]
    assert "ACCESS EXCLUSIVE on users, 0." in table.stdout


def test_file_without_a_version_is_measured_as_itself(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """All such files share the number 0: that one has passed says nothing of the next."""
    database.script(USERS)
    migrations(
        {
            "R__a.sql": "SELECT pg_sleep(0.12);",
            "R__b.sql": "ALTER TABLE users ALTER n TYPE bigint;\nSELECT pg_sleep(0.11);\n"
            "SELECT 1 / 0;",
        }
    )
    result = run(env={"PREFLIGHT_LAYOUT": "flyway"})

    assert 27 == result.code, str(result)
    (measured,) = result.event("rehearsal.measured")
    assert ["R__a.sql"] == [each["file"] for each in measured["statements"]]


def test_size_before_a_rewrite_is_that_which_earlier_files_left(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """A table is measured again once a file has changed its rows."""
    database.script(USERS)
    migrations(
        {
            "001_one.sql": "INSERT INTO users SELECT g, g FROM generate_series(2, 20000) g;",
            "002_two.sql": "ALTER TABLE users ALTER n TYPE bigint;",
        }
    )

    (measured,) = run().event("rehearsal.passed")
    (rewrite,) = measured["statements"][-1]["rewrites"]
    assert 20000 * 28 < rewrite["before_bytes"]


def test_table_is_measured_once(connection: psycopg.Connection, tmp_path: Path) -> None:
    """A rehearsal of many files does not size every table before each of them."""
    asked: list[list[int]] = []
    sized: list[bool] = []

    class Heard(psycopg.Cursor[Any]):
        def stream(self, query: bytes, *, size: int) -> Iterator[Any]:  # type: ignore[override]
            sized.append(b"pg_total_relation_size" in query)
            return super().stream(query, size=size)

    def execute(query: str, values: list[list[int]] | None = None) -> psycopg.Cursor:
        asked.extend(values or [])
        return connection.execute(query.encode(), values)

    session: Any = SimpleNamespace(
        execute=execute,
        cursor=lambda: Heard(connection),
        config=SimpleNamespace(schema="preflight"),
        connection=connection,
    )
    for number in (1, 2):
        (tmp_path / f"00{number}_x.sql").write_text(f"CREATE TABLE made_{number} ();")
    connection.execute("CREATE TABLE one (); CREATE TABLE two ()")
    measure = meter.Meter()
    for migration in reading.load(tmp_path):
        with measure.over(session, migration):
            connection.execute(migration.up.text)

    assert [True, False] == sized
    assert [1] == [len(oids) for oids in asked]


MANY = """
DO $$ BEGIN FOR n IN {first}..{last} LOOP EXECUTE format('CREATE TABLE some_%s ()', n); END LOOP;
END $$
"""


def test_lists_of_tables_are_kept_small(connection: psycopg.Connection) -> None:
    """A thousand more take less than 350 bytes each: while they are read, and kept as well."""
    session: Any = SimpleNamespace(
        execute=connection.execute,
        cursor=connection.cursor,
        config=SimpleNamespace(schema="preflight", only=()),
    )
    looks = (
        lambda: meter.tables(session),
        lambda: snapshots.require_readable(session),
        lambda: snapshots.differing(session, {}),
    )
    peaks = []
    for first, last in ((1, 500), (501, 1500)):
        connection.execute(MANY.format(first=first, last=last).encode())
        for look in looks:
            look()  # what is made once is no growth
            tracemalloc.start()
            look()
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()

    grown = [after - before for before, after in zip(peaks[:3], peaks[3:], strict=True)]
    assert [] == [each for each in grown if each > 350 * 1000], grown


def test_very_many_short_queries_are_looked_at_together(
    connection: psycopg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file may have millions; a strong lock that one of them took is seen in the end."""
    monkeypatch.setattr(meter, "QUERIES", 3)
    asked: list[str] = []

    def execute(query: str, values: list[list[int]] | None = None) -> psycopg.Cursor:
        asked.append(query)
        return connection.execute(query.encode(), values)

    session: Any = SimpleNamespace(
        execute=execute,
        cursor=connection.cursor,
        config=SimpleNamespace(schema="preflight"),
        connection=connection,
        lost=False,
    )
    (tmp_path / "001_x.sql").write_text("SELECT 1;" * 20)
    connection.execute("CREATE TABLE shut ()")
    (migration,) = reading.load(tmp_path)
    measure = meter.Meter()
    with measure.over(session, migration):
        connection.execute("BEGIN")
        for number, statement in enumerate(migration.up.statements()):
            with session.observe(migration.up, statement):
                connection.execute("LOCK TABLE shut" if number == 10 else "SELECT 1")
        with session.ending():
            connection.execute("COMMIT")

    assert 3 + 1 == sum("preflight_meter" in query for query in asked)
    assert [("shut", "ACCESS EXCLUSIVE")] == [
        (taken.table, taken.mode) for item in measure.found.values() for taken in item.locks
    ]


def test_lock_of_an_index_is_told_as_its_tables(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Nobody waits for an index: who reads or writes waits for its table, and a plan says so, too.

    Of an index that is gone behind the statement, and of one that the path leads to.
    """
    database.script(
        "CREATE SCHEMA other; CREATE TABLE other.k (id int PRIMARY KEY, b int);"
        "CREATE INDEX k_b ON other.k (b)"
    )
    drop, reindex = "DROP INDEX CONCURRENTLY k_b;", "REINDEX INDEX CONCURRENTLY k_pkey;"
    path = "SET search_path = other;"
    migrations({"001_a.sql": f"-- preflight: no-transaction\n{path}\n{drop}\n{reindex}"})
    _, *measured = run("plan", "--rehearse", "--json").json()["statements"]

    assert [[("other.k", "SHARE UPDATE EXCLUSIVE")]] * 2 == [
        [(lock["table"], lock["mode"]) for lock in each["measured"]["locks"]] for each in measured
    ]


def test_rewrite_outside_a_transaction_is_told(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """VACUUM FULL writes its table anew, as CLUSTER does; VACUUM leaves it where it is."""
    database.script("CREATE TABLE k AS SELECT n FROM generate_series(1, 10000) n; DELETE FROM k")
    migrations({"001_a.sql": "-- preflight: no-transaction\nVACUUM k;\nVACUUM (FULL) k;"})
    lazy, full = run("plan", "--rehearse", "--json").json()["statements"]

    assert "rewrites" not in lazy["measured"]
    assert ["k"] == [each["table"] for each in full["measured"]["rewrites"]]


def test_partitions_are_told_as_their_table(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Sixty of them in a dozen statements made a line of 71 kB, which docker cuts to pieces."""
    parts = "".join(
        f"CREATE TABLE part_{n} PARTITION OF parted FOR VALUES FROM ({n}) TO ({n + 1});"
        for n in range(30)
    )
    database.script(f"CREATE TABLE parted (id int, n int) PARTITION BY RANGE (id); {parts}")
    database.script("INSERT INTO parted SELECT n, n FROM generate_series(0, 29) n")
    columns = "".join(f"ALTER TABLE parted ADD c{n} int;\n" for n in range(12))
    migrations({"001_one.sql": f"ALTER TABLE parted ALTER n TYPE bigint;\n{columns}"})
    result = run()

    first = result.event("rehearsal.passed")[0]["statements"][0]
    assert [("parted", "ACCESS EXCLUSIVE", 30)] == [
        (each["table"], each["mode"], each["partitions"]) for each in first["locks"]
    ]
    assert [("parted", 30)] == [(each["table"], each["partitions"]) for each in first["rewrites"]]
    assert 16_000 > max(len(line) for line in result.stdout.splitlines())


# --- what the live server can bear ----------------------------------------------------------------


@contextlib.contextmanager
def slot(server: servers.Server, *, reserved: bool) -> Iterator[None]:
    """Make a replication slot that nobody uses."""
    here = servers.Database(server, "postgres")
    here.query("SELECT pg_create_physical_replication_slot('nobodys', %s)", reserved)
    try:
        yield
    finally:
        here.query("SELECT pg_drop_replication_slot('nobodys')")


def skipped(result: program.Result) -> list[str]:
    """Return why nothing was rehearsed."""
    return [each["reason"] for each in result.event("rehearsal.skipped")]


def test_slot_that_holds_wal_keeps_the_copy_off_the_server(
    run: Run, server: servers.Server, database: servers.Database, migrations: WriteMigrations
) -> None:
    """The WAL of the restore would stay on the disk: skipped with its name; 27 with `always`."""
    migrations(ONE)
    with slot(server, reserved=True):
        demanded = run(env={"PREFLIGHT_REHEARSE": "always"})
        nothing = database.query("SELECT to_regclass('one')")
        result = run()

    error = demanded.finished["error"]
    assert (27, "rehearsal.unavailable", [None]) == (demanded.code, error["code"], nothing)
    assert "replication slot nobodys is inactive and holds WAL" in error["message"]
    assert (0, ["001_one"]) == (result.code, result.finished["applied"])
    assert ["replication slot nobodys is inactive and holds WAL"] == [
        reason.partition(":")[0] for reason in skipped(result)
    ]


def test_slot_that_holds_nothing_is_no_reason(
    run: Run, server: servers.Server, migrations: WriteMigrations
) -> None:
    """One that reserves no WAL is harmless."""
    migrations(ONE)
    with slot(server, reserved=False):
        result = run()

    assert (0, []) == (result.code, skipped(result))


@pytest.fixture
def plain(
    start_server: StartServer, create_database: CreateDatabase
) -> tuple[servers.Database, dict[str, str]]:
    """Give a database on a server of its own whose owner is no superuser, and his environment."""
    database = create_database(start_server(archive_mode="on", archive_command="true"))
    database.script("CREATE ROLE plain LOGIN CREATEDB PASSWORD 'x'")
    database.script(f"ALTER DATABASE {database.name} OWNER TO plain")
    return database, database.env(user="plain", password="x")  # noqa: S106 -- as it says


@pytest.mark.parametrize(
    ("command", "reason"), [("false", "archiving fails, last with 0"), ("", "no archive_command")]
)
def test_archiving_that_does_not_work_keeps_the_copy_off_the_server(
    command: str,
    reason: str,
    plain: tuple[servers.Database, dict[str, str]],
    run: Run,
    migrations: WriteMigrations,
) -> None:
    """A plain role sees it, too; archiving that works again is no reason any more."""
    database, env = plain
    archived = "SELECT {} FROM pg_stat_archiver"
    failing = archived.format("last_failed_time > coalesce(last_archived_time, '-infinity')")
    database.server.configure(archive_command=command)
    database.server.reload()
    database.query("SELECT pg_switch_wal()")
    if command:
        faults.until(lambda: database.query(failing) == [True], "archiving fails")
    migrations(ONE)
    without = run(env=env)
    database.server.configure(archive_command="true")
    database.server.reload()
    if command:
        faults.until(lambda: database.query(failing) == [False], "archiving works", 90)
    migrations({"002_two.sql": "CREATE TABLE two ();"})
    again = run(env=env)

    assert (0, 1) == (without.code, len(skipped(without))), without
    assert reason in skipped(without)[0]
    assert (0, []) == (again.code, skipped(again)), again


@pytest.mark.parametrize("catalog", ["pg_replication_slots", "pg_stat_archiver"])
def test_server_that_does_not_tell_gets_no_copy(
    catalog: str,
    plain: tuple[servers.Database, dict[str, str]],
    run: Run,
    migrations: WriteMigrations,
) -> None:
    """Where a catalog is closed to the role nobody guesses, and nothing is called a bug."""
    database, env = plain
    database.script(f"REVOKE SELECT ON pg_catalog.{catalog} FROM PUBLIC")
    migrations(ONE)
    result = run(env=env)

    assert (0, 1) == (result.code, len(skipped(result))), result
    assert f"permission denied for view {catalog}" in skipped(result)[0]


def asleep(server: servers.Server) -> None:
    """Return when the file of SLEEPER sleeps on the copy."""
    here = servers.Database(server, "postgres")
    faults.until(lambda: here.query(SLEEPING) == [1], "the copy's session sleeps")


def test_server_that_crashed_during_a_rehearsal_gets_no_second_one(
    start: Start,
    run: Run,
    plain: tuple[servers.Database, dict[str, str]],
    migrations: WriteMigrations,
) -> None:
    """13 once; then the files run without, until another place is named. `always` is 27."""
    database, env = plain
    migrations(SLEEPER)
    process = start(env=env)
    asleep(database.server)
    database.server.restart("immediate")
    lost = process.wait()
    migrations(ONE)
    demanded = run(env={**env, "PREFLIGHT_REHEARSE": "always"})
    once = run(env=env)
    migrations({"002_two.sql": "CREATE TABLE two ();"})
    twice = run(env=env)
    migrations({"003_three.sql": "CREATE TABLE three ();"})
    url = f"postgresql://plain:x@localhost:{database.server.port}/{database.name}"
    elsewhere = run(env={**env, "PREFLIGHT_REHEARSE_URL": url})

    assert 13 == lost.code, lost
    assert "goes without a rehearsal" in lost.finished["error"]["hint"]
    assert (27, "rehearsal.unavailable") == (
        demanded.code,
        demanded.finished["error"]["code"],
    )
    assert [0, 0, 0] == [once.code, twice.code, elsewhere.code]
    assert [True, True] == [
        "the server crashed during the rehearsal of run" in reason
        for reason in skipped(once) + skipped(twice)
    ]
    assert ([], 1) == (skipped(elsewhere), len(elsewhere.event("rehearsal.passed")))


def test_run_that_was_killed_stops_no_rehearsal(
    start: Start,
    run: Run,
    plain: tuple[servers.Database, dict[str, str]],
    migrations: WriteMigrations,
) -> None:
    """Nor does a restart of the server in good order: nothing crashed."""
    database, env = plain
    migrations(SLEEPER)
    process = start(env=env)
    asleep(database.server)
    process.signal(signal.SIGKILL)
    process.wait()
    database.server.restart()
    migrations(ONE)
    result = run(env=env)

    assert (0, []) == (result.code, skipped(result)), result
    told = "SELECT event, name FROM preflight.journal ORDER BY id"
    assert [
        ("rehearsing", "001_one"),
        ("rehearsing", "001_one"),
        ("rehearsed", "001_one"),
        ("applied", "001_one"),
    ] == database.query(told)


def test_server_that_ran_full_during_a_rehearsal_gets_no_second_one(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """What did not fit beside a copy may fit without it: skipped, and not tried there again."""
    full = "DO 'BEGIN IF current_database() LIKE ''preflight%'' THEN "
    full += "RAISE EXCEPTION SQLSTATE ''53100'' USING MESSAGE = ''no room''; END IF; END';"
    migrations({"001_one.sql": full})
    first = run()
    migrations({"002_two.sql": "CREATE TABLE two ();"})
    second = run()
    migrations({"003_three.sql": "CREATE TABLE three ();"})
    database.script("UPDATE preflight.journal SET sqlstate = NULL WHERE event = 'rehearsed'")
    allowed = run()

    assert [0, 0, 0] == [first.code, second.code, allowed.code], first
    assert ["the server has no room: 001_one.sql:1:4: no room"] == skipped(first)
    assert "the server ran full during the rehearsal" in skipped(second)[0]
    assert [] == skipped(allowed)


def test_wal_is_announced_and_told(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Replicas, archives and bills see it, so it is no secret."""
    database.script("CREATE TABLE big AS SELECT md5(n::text) FROM generate_series(1, 20000) n")
    migrations(ONE)
    result = run()

    (started,), (passed,) = result.event("rehearsal.started"), result.event("rehearsal.passed")
    assert 0 < started["wal_bytes_expected"] < started["live_bytes"]
    assert 500_000 < passed["wal_bytes"] < 3 * started["live_bytes"]


def restoring(process: program.Process) -> list[Path]:
    """Return the /proc directories of the pg_restore of a run and its jobs, and of no other run."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent, group = (each / "stat").read_text().rpartition(")")[2].split()[1:3]
            if b"pg_restore" in (each / "cmdline").read_bytes():
                found.append((each, parent, group))
    groups = {group for _, parent, group in found if parent == str(process.pid)}
    return [each for each, _, group in found if group in groups]


def state(each: Path) -> str:
    """Return what the kernel says of a process, T for one that stands still; empty when gone."""
    with contextlib.suppress(OSError):
        return (each / "stat").read_text().rpartition(")")[2].split()[0].replace("Z", "")
    return ""


# a restore that is not over before it is stopped: a row takes its time there, and only there
SLOW_TO_RESTORE = """
CREATE FUNCTION public.slow() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF current_database() LIKE 'preflight%' THEN PERFORM pg_sleep(0.01); END IF;
    RETURN true;
END $$;
CREATE TABLE big (words text CONSTRAINT slow CHECK (public.slow()));
ALTER TABLE big ALTER words SET STORAGE EXTERNAL;
INSERT INTO big SELECT repeat(md5(n::text), 250) FROM generate_series(1, 2000) n;
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_restore_that_stands_still_ends_with_us(
    number: signal.Signals,
    start: Start,
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
) -> None:
    """It pauses above REHEARSE_WAL_MB_PER_MIN, and nothing of it stays when the run is ended."""
    database.script(SLOW_TO_RESTORE)
    migrations(ONE)
    process = start(env={"PREFLIGHT_REHEARSE_WAL_MB_PER_MIN": "1"})
    faults.until(
        lambda: [each for each in process.events if each.get("paused")], "the restore pauses"
    )
    faults.until(
        lambda: {"T"} == {state(each) for each in restoring(process)}, "all of it stands still"
    )
    clients = restoring(process)
    process.signal(number)
    code = process.wait(5).code
    faults.until(lambda: {""} == {state(each) for each in clients}, "all of it is gone")
    database.script("ALTER TABLE big DROP CONSTRAINT slow")
    again = run()

    assert (143 if number == signal.SIGTERM else -9) == code
    assert (0, []) == (again.code, database.query(SCRATCH)), again


@pytest.fixture
def small(start_server: StartServer, create_database: CreateDatabase) -> Iterator[servers.Database]:
    """Give a database of 40 MB on a server whose disk has room for its files, not for its WAL."""
    server = start_server(min_wal_size="32MB", max_wal_size="32MB", archive_mode="off")
    server.stop()
    disk = server.home / "disk"
    disk.mkdir()
    mount = ["/bin/mount", "-t", "tmpfs", "-o", "size=132m,mode=755", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no right to mount: {error}")
    try:
        subprocess.run(["/bin/cp", "-a", server.data, disk], check=True)
        shutil.chown(disk, server.home.stat().st_uid, server.home.stat().st_gid)
        server.data = disk / "data"
        server.start()
        database = create_database(server)
        database.script(
            "CREATE TABLE big AS SELECT n, md5(n::text) FROM generate_series(1, 400000) n"
        )
        database.script("CHECKPOINT")
        yield database
    finally:
        server.stop("immediate")
        subprocess.run(["/bin/umount", "--lazy", disk], check=True)


def test_small_disk_with_a_slot_is_not_filled_by_a_rehearsal(
    small: servers.Database, run: Run, migrations: WriteMigrations
) -> None:
    """It ended in a PANIC, every session with it, and in 13 "run again" time after time."""
    migrations(ONE)
    with slot(small.server, reserved=True):
        result = run(env=small.env())

    assert (0, ["001_one"]) == (result.code, result.finished["applied"]), result
    assert "replication slot nobodys is inactive" in skipped(result)[0]
    assert "PANIC" not in small.server.log.read_text()


def test_small_disk_with_a_slot_has_its_backup_proven_elsewhere(
    small: servers.Database, run: Run, migrations: WriteMigrations
) -> None:
    """The copy is on a throwaway server: where the PANIC was, a proven backup and an applied file.

    The disk is not written to but for the file.
    """
    here = Path(tempfile.mkdtemp(prefix="pg-preflight-scratch-", dir="/tmp"))
    here.chmod(0o777)
    migrations(ONE)
    env = small.env() | {"PATH": os.pathsep.join([str(small.server.bin), os.defpath])}
    env |= {"PREFLIGHT_REHEARSE_ON": "local", "PREFLIGHT_REHEARSE_DIR": str(here)}
    with slot(small.server, reserved=True):
        result = run(env=env)
    shutil.rmtree(here)

    assert (0, ["001_one"]) == (result.code, result.finished["applied"]), result
    assert ["restored"] == [each["verified"] for each in result.event("rehearsal.passed")]
    assert "PANIC" not in small.server.log.read_text()


def test_disk_that_is_ours_to_see_is_looked_at(
    small: servers.Database, run: Run, migrations: WriteMigrations
) -> None:
    """A server on this machine: its disk has no room for a copy and its WAL, so none is begun."""
    with (small.server.data.parent / "of_others").open("wb") as others:
        left = os.statvfs(small.server.data).f_bavail * os.statvfs(small.server.data).f_bsize
        others.write(bytes(max(0, left - (20 << 20))))
    migrations(ONE)
    result = run(env=small.env())

    assert (0, 1) == (result.code, len(skipped(result))), result
    assert "the server's disk has" in skipped(result)[0]
    assert [] == result.event("rehearsal.started")


def test_server_that_is_at_work_without_its_client_is_seen(database: servers.Database) -> None:
    """Sleeping, or building an index, it is; waiting for the rows of a COPY it is not."""
    config = Config.from_env(database.server.env("postgres"), Path("/nowhere"), "run")
    waits = "SELECT wait_event_type FROM pg_stat_activity WHERE pid = %s AND state = 'active'"
    found = []
    other = psycopg.connect(database.conninfo(), autocommit=True)
    with sessions.connect(config) as home, contextlib.closing(other):
        other.execute("CREATE TEMP TABLE t (id int)")
        pid = other.info.backend_pid
        other.pgconn.send_query(b"COPY t FROM STDIN")
        faults.until(lambda: database.query(waits, pid) == ["Client"], "it waits for rows")
        found.append(burden.at_work(home, database.name))
        other.pgconn.get_result()
        other.pgconn.put_copy_end()
        while other.pgconn.get_result():
            pass
        found.append(burden.at_work(home, database.name))
        other.pgconn.send_query(b"SELECT pg_sleep(60)")
        faults.until(lambda: database.query(waits, pid) == ["Timeout"], "it sleeps")
        found.append(burden.at_work(home, database.name))
        home.execute("SELECT pg_terminate_backend(%s)", [pid])
    assert [False, False, True] == found
