"""Errors that no other test names: each is met once, by its own code."""

import errno
import os
import re
from pathlib import Path

import pytest

from preflight.base.errors import RehearsalFailed
from preflight.commands.wrapping import child, wall
from tests import faults, servers
from tests.conftest import Run, Start, WriteMigrations
from tests.fakes import Fakes
from tests.faults.conftest import Answers

QUICKLY = {"PREFLIGHT_BACKUP": "off"}
THERE = "SELECT 's' AS suite, 'c' AS \"check\", to_regclass('{}') IS NOT NULL AS ok;\n"
TWO = {
    "001_one.sql": "CREATE TABLE one ();\n",
    "001_one_verify.sql": THERE.format("one"),
    "002_two.sql": "CREATE TABLE two ();\n",
    "002_two_verify.sql": THERE.format("two"),
}


@pytest.mark.parametrize(
    ("there", "command", "code", "dotted"),
    [
        ("two", ["adopt", "2"], 26, "history.gap"),
        ("one", ["adopt", "2"], 33, "verify.not_there"),
        ("two", ["up"], 33, "verify.out_of_order"),
    ],
)
def test_what_is_there_in_the_wrong_order_is_told_by_its_code(  # noqa: PLR0913, PLR0917 - fixtures
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    there: str,
    command: list[str],
    code: int,
    dotted: str,
) -> None:
    """Nothing is recorded."""
    migrations(TWO)
    database.script(f"CREATE TABLE {there} ()")
    result = run(*command, env=QUICKLY)

    assert (code, dotted) == (result.code, result.finished["error"]["code"]), str(result)
    assert "applied" not in result.finished


def test_something_else_than_postgresql_is_told_by_its_code(
    run: Run, migrations: WriteMigrations
) -> None:
    """A web server on the port is a wrong address."""
    migrations(TWO)
    with faults.stranger(faults.speaks_http) as elsewhere:
        result = run(env={**elsewhere, "PREFLIGHT_WAIT_TIMEOUT_S": "0.3"})

    assert (22, "target.not_postgresql") == (result.code, result.finished["error"]["code"])


def test_backup_directory_that_is_gone_is_told_to_restore(run: Run, tmp_path: Path) -> None:
    """23, as to any command, with what to set."""
    result = run("restore", "latest", env={"PREFLIGHT_BACKUP_DIR": str(tmp_path / "gone")})

    assert (23, "backup.directory") == (result.code, result.finished["error"]["code"]), str(result)


class EndsTheTransaction(faults.Fault):
    """Has the server say after one statement that no transaction is open any more."""

    def __init__(self) -> None:
        """Say nothing before that statement."""
        self.seen = False

    def to_server(self, kind: bytes, message: bytes) -> bytes:
        """Notice the statement."""
        del kind
        self.seen = self.seen or b"CREATE TABLE one" in message
        return message

    def to_client(self, kind: bytes, message: bytes) -> bytes:
        """Change ReadyForQuery."""
        return message[:5] + b"I" if kind == b"Z" and self.seen else message


def test_statement_that_ends_our_transaction_is_an_error(
    run: Run, server: servers.Server, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Whatever brought it about: without a transaction nothing could be rolled back."""
    migrations({"001_one.sql": TWO["001_one.sql"]})
    with faults.through(server, EndsTheTransaction()) as proxy:
        result = run(env={**QUICKLY, **proxy.env()})

    assert (30, "migration.left_transaction") == (
        result.code,
        result.finished["error"]["code"],
    ), str(result)
    assert [None] == database.query("SELECT to_regclass('one')")


def test_place_for_the_password_that_cannot_be_had_is_told(
    run: Run, migrations: WriteMigrations, answers: Answers, backup_dir: Path
) -> None:
    """No file of the password's own, no backup."""
    migrations(TWO)
    result = run(env=answers(passfile=errno.ENOSPC))

    assert (23, "backup.no_temporary") == (result.code, result.finished["error"]["code"])
    assert [] == list(backup_dir.iterdir())


def test_system_without_a_temporary_directory_has_no_throwaway_server(
    run: Run, migrations: WriteMigrations, answers: Answers
) -> None:
    """As with a read-only root: the backup is made, and it is said what a proof would need."""
    migrations(TWO)
    proof = {"PREFLIGHT_REHEARSE": "auto", "PREFLIGHT_REHEARSE_ON": "local"}
    result = run("backup", env={**proof, **answers(temporary=errno.EROFS)})

    (skipped,) = result.event("rehearsal.skipped")
    assert 0 == result.code, str(result)
    assert "PREFLIGHT_REHEARSE_DIR" in skipped["reason"], skipped


def test_wall_that_cannot_be_built_starts_no_command(tmp_path: Path) -> None:
    """A command is not run beside the live database because the kernel says no."""
    nowhere = wall.Wall((1 << 16,))  # no kernel has such a port
    with pytest.raises(RehearsalFailed) as raised:
        child.run(
            ["touch", str(tmp_path / "ran")],
            {"PATH": os.environ["PATH"]},
            wall=nowhere,
            secrets=(),
            timeout_s=30,
        )

    assert "wrap.no_wall" == raised.value.code
    assert [] == list(tmp_path.iterdir())


def test_parameter_that_libpq_does_not_know_is_a_wrong_setting(
    run: Run, migrations: WriteMigrations
) -> None:
    """It is not waited for."""
    migrations(TWO)
    result = run(env={"PGSSLMODE": "sometimes"})

    assert (20, "config.connection") == (result.code, result.finished["error"]["code"]), str(result)


@pytest.fixture
def fakes(tmp_path: Path) -> Fakes:
    """Give a place for fake clients."""
    return Fakes(tmp_path / "fakes")


def test_schema_that_is_not_there_is_a_wrong_target(run: Run, migrations: WriteMigrations) -> None:
    """A backup without it would be one of something else."""
    migrations(TWO)
    result = run(env={"PREFLIGHT_SCHEMAS": "nowhere"})

    assert (22, "target.no_schema") == (result.code, result.finished["error"]["code"]), str(result)


def test_history_that_changes_before_a_rollback_stops_it(
    start: Start, run: Run, database: servers.Database, migrations: WriteMigrations, fakes: Fakes
) -> None:
    """Somebody else took it back meanwhile: nothing of ours runs."""
    migrations({"001_one.sql": TWO["001_one.sql"], "001_one_rollback.sql": "DROP TABLE one;"})
    assert 0 == run(env=QUICKLY).code
    fakes.hold()
    process = start("rollback", env={"PATH": fakes.path})
    faults.until((fakes.here / "held").exists, "the backup has begun")
    database.script("DELETE FROM preflight.migrations")
    fakes.let_go()
    result = process.wait()

    assert (11, "history.changed") == (result.code, result.finished["error"]["code"]), str(result)
    assert ["one"] == database.query("SELECT to_regclass('one')::text")


def test_history_that_changes_before_the_copy_is_made_stops_the_rehearsal(
    start: Start,
    run: Run,
    server: servers.Server,
    database: servers.Database,
    migrations: WriteMigrations,
) -> None:
    """The plan is of another history than the copy."""
    migrations(TWO)
    assert 0 == run(env=QUICKLY).code
    migrations({"003_three.sql": "CREATE TABLE three ();\n"})
    held = faults.Held(b"pg_export_snapshot")
    with faults.through(server, held) as proxy:
        process = start(env={**proxy.env(), "PREFLIGHT_REHEARSE": "always"})
        faults.until(held.reached.is_set, "the snapshot is asked for")
        database.script(
            "INSERT INTO preflight.migrations SELECT (jsonb_populate_record(m,"
            ' \'{"version": 3, "name": "003_three"}\')).* FROM preflight.migrations m LIMIT 1'
        )
        held.free.set()
        result = process.wait()

    assert (27, "rehearsal.changed") == (result.code, result.finished["error"]["code"]), str(result)
    assert [None] == database.query("SELECT to_regclass('three')")


def test_client_that_ends_without_a_word_proves_nothing(
    run: Run, database: servers.Database, migrations: WriteMigrations, fakes: Fakes
) -> None:
    """That passes, and nothing was migrated."""
    migrations(TWO)
    script = 'case "$*" in *dbname=*) exit 9;; esac; exec "$REAL" "$@"'
    result = run(env={"PATH": fakes.write(script, "pg_restore"), "PREFLIGHT_REHEARSE": "always"})

    assert (14, "rehearsal.client") == (result.code, result.finished["error"]["code"]), str(result)
    assert [None] == database.query("SELECT to_regclass('one')")


def test_archive_that_cannot_be_read_is_not_restored(run: Run, fakes: Fakes) -> None:
    """What pg_restore says is told, and no half database is left."""
    assert 0 == run("backup").code
    error = "pg_restore: error: could not read from input file: end of file"
    script = f'case "$*" in *dbname=*) echo "{error}" >&2; exit 1;; esac; exec "$REAL" "$@"'
    path = fakes.write(script, "pg_restore")
    result = run("restore", "latest", "--into", "half", env={"PATH": path})

    assert (24, "restore.failed") == (result.code, result.finished["error"]["code"]), str(result)


def test_verify_file_that_is_blocked_leaves_a_file_part_way(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Without a transaction its statements stay; once the way is free the next run asks again."""
    head = "-- preflight: no-transaction\n-- preflight: lock-timeout 100ms\n"
    check = "-- why\nSELECT 's' AS suite, 'c' AS \"check\", count(*) = 0 AS ok FROM theirs"
    migrations({"001_one.sql": f"{head}CREATE TABLE one ();", "001_one_verify.sql": check})
    database.script("CREATE TABLE theirs ()")
    env = {**QUICKLY, "PREFLIGHT_FIRST_CONTACT": "pending", "PREFLIGHT_LOCK_RETRY_S": "0.2"}
    assert 0 == run("up", env={**env, "PREFLIGHT_MIGRATIONS_DIR": str(empty(migrations))}).code
    with database.server.connect(database.name) as other:
        other.execute("BEGIN; LOCK theirs")
        busy = run(env=env)
    again = run(env=env)

    error = busy.finished["error"]
    assert (31, "verify.busy", 2) == (busy.code, error["code"], error["line"]), str(busy)
    assert 0 == again.code, str(again)


class Older(faults.Fault):
    """Has the server say that it is of a version that nobody supports any more."""

    def to_client(self, kind: bytes, message: bytes) -> bytes:
        """Change server_version_num, wherever it is asked for."""
        return (
            re.sub(rb"(?<=\0\0\0\x06)1\d0{2}\d\d", b"120022", message) if kind == b"D" else message
        )


def test_server_that_is_too_old_is_told_by_its_code(
    run: Run, server: servers.Server, migrations: WriteMigrations
) -> None:
    """22, and nothing was tried there."""
    migrations(TWO)
    with faults.through(server, Older()) as proxy:
        result = run(env=proxy.env())

    assert (22, "target.version") == (result.code, result.finished["error"]["code"]), str(result)
    assert "PostgreSQL 12 is not supported" == result.finished["error"]["message"]


def test_password_that_no_passfile_can_hold_is_told(
    run: Run, server: servers.Server, database: servers.Database, tmp_path: Path
) -> None:
    """Libpq takes one with a line break, pg_dump is given none on its command line."""
    role = f"broken_{database.name}"
    (tmp_path / "password").write_text("two\nlines")
    with server.connect() as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD E'two\\nlines'".encode())
        try:
            who = database.env(role, "") | {"PGPASSWORD": None}
            result = run("backup", env={**who, "PGPASSWORD_FILE": str(tmp_path / "password")})
        finally:
            connection.execute(f"DROP ROLE {role}".encode())

    assert (23, "backup.password") == (result.code, result.finished["error"]["code"]), str(result)


def test_versions_that_no_number_is_left_for_are_told(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Nothing of them is done, and what is recorded keeps its numbers."""
    migrations({"V1__one.sql": "CREATE TABLE one ();", "V2__two.sql": "CREATE TABLE two ();"})
    assert 0 == run(env=QUICKLY).code
    asked = "SELECT version FROM preflight.migrations ORDER BY 1"
    first, second = database.query(asked)
    migrations({f"V1.{each}__x.sql": "SELECT 1;" for each in range(1, second - first + 1)})
    result = run(env=QUICKLY)

    assert (26, "history.no_room") == (result.code, result.finished["error"]["code"]), str(result)
    assert [first, second] == database.query(asked)


def empty(migrations: WriteMigrations) -> Path:
    """Return a directory with one file that makes nothing: first contact is over after it."""
    made = migrations.directory.parent / "first"
    made.mkdir()
    (made / "000_first.sql").write_text("-- nothing\n;")
    (migrations.directory / "000_first.sql").write_text("-- nothing\n;")
    return made
