"""What a rehearsal measures decides: how long locks are held, and what the server can bear."""

from collections.abc import Mapping

import pytest

from tests import servers
from tests.conftest import Run, WriteMigrations

USERS = "CREATE TABLE users (id int PRIMARY KEY, n int); INSERT INTO users VALUES (1, 1)"
SLEEP = "SELECT pg_sleep(0.3);\n"
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
        pytest.param(LIMIT, f"UPDATE users SET n = 2;\n{SLEEP}", id="weak lock"),
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
    database.script(USERS)
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
    (measured,) = result.event("rehearsal.measured")
    assert ([1, 2], 0) == (
        [each["line"] for each in measured["statements"]],
        measured["statements_untold"],
    )
    one, _, two, _ = [each["measured"] for each in document.json()["statements"]]
    assert ("users", True, None) == (one["locks"][0]["table"], "rewrites" in one, two)
    assert 0.12 <= one["locks"][0]["held_s"]
    assert "ACCESS EXCLUSIVE on users, 0." in table.stdout


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
