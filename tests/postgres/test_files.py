"""The program at its edges: files, settings, plan, logs and exit codes, as a user meets them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest

from preflight.files import kinds
from tests import program, servers
from tests.conftest import Run, StartServer, WriteMigrations

CANARY = "hunter2-Sésame"
ONE = {"001_one.sql": "CREATE TABLE one (id int);\n"}
TWO = {"002_two.sql": "CREATE TABLE two (id int);\n"}
THREE = {"003_three.sql": "CREATE TABLE three (id int);\n"}


def tables(database: servers.Database) -> list[str]:
    """Return the names of the tables in `public`."""
    return database.query(
        "SELECT relname::text FROM pg_class WHERE relkind = 'r'"
        " AND relnamespace = 'public'::regnamespace ORDER BY 1"
    )


# files


@pytest.mark.fault("D076")
def test_invalid_files_end_with_25_before_any_connection(
    run_bare: Run, migrations: WriteMigrations, termination_log: Path
) -> None:
    """All problems at once, and nobody even knocks at the server's door."""
    migrations({"001_a.sql": "SELECT 1;\nCOMMIT;", "002_b.sql": b"\xff", "bad.sql": ""})
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        result = run_bare(env={"PGHOST": "127.0.0.1", "PGPORT": port})
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()

    assert 25 == result.code
    assert ["run.started", "run.finished"] == result.names
    error = result.finished["error"]
    assert ("files.invalid", "001_a", 2, 1) == tuple(
        error[key] for key in ("code", "migration", "line", "column")
    )
    assert ["001_a.sql", "002_b.sql", "bad.sql"] == sorted(p["file"] for p in error["problems"])
    finished = {
        key: value for key, value in result.finished.items() if key in ("exit_code", "error")
    }
    message = json.loads(termination_log.read_bytes())
    assert finished == {key: message[key] for key in finished}


def test_files_are_checked_without_any_server(run_bare: Run, migrations: WriteMigrations) -> None:
    """A name that leads nowhere does not matter yet."""
    migrations({"001_a.sql": "\\i other.sql"})

    assert 25 == run_bare(env={"PGHOST": "no-such-host.invalid"}).code


@pytest.mark.fault("D094")
@pytest.mark.parametrize("how", ["empty", "missing"])
def test_directory_without_files_ends_with_20(
    run_bare: Run, migrations: WriteMigrations, how: str
) -> None:
    """A wrong mount is a matter of configuration."""
    if how == "missing":
        migrations.directory.rmdir()
    result = run_bare()

    assert (20, "config.migrations_dir") == (result.code, result.finished["error"]["code"])


@pytest.mark.fault("D099")
def test_copy_data_of_all_kinds_arrives(
    run: Run, migrations: WriteMigrations, database: servers.Database
) -> None:
    r"""Data that looks like SQL, no data, CSV, and a statement after each `\.`."""
    rows = "1\tDROP TABLE t; -- '\n2\t\\N\n3\t\\\\.\n4\tit''s $$ /*\n"
    migrations(
        {
            "001_copy.sql": "CREATE TABLE t (a int, b text);\n"
            f"COPY t FROM stdin; -- rows\n{rows}\\.\n"
            'COPY t (a, b) FROM STDIN WITH (FORMAT csv);\n5,\'a;\n6,"b\n""c"\n\\.\n'
            "COPY t FROM stdin;\n\\.\n"
            "INSERT INTO t VALUES (7, E'\\';');"
        }
    )
    result = run()

    assert 0 == result.code, result
    assert [
        (1, "DROP TABLE t; -- '"), (2, None), (3, "\\."), (4, "it''s $$ /*"),
        (5, "'a;"), (6, 'b\n"c'), (7, "';"),
    ] == database.query("SELECT a, b FROM t ORDER BY a")  # fmt: skip


def test_statements_with_semicolons_inside_run_whole(
    run: Run, migrations: WriteMigrations, database: servers.Database
) -> None:
    """Bodies, rules and a transaction around the file, cut as the server understands them."""
    migrations(
        {
            "001_bodies.sql": "BEGIN;\nCREATE TABLE t (a int); CREATE TABLE log (a int);\n"
            "CREATE FUNCTION f(a int) RETURNS int LANGUAGE sql BEGIN ATOMIC\n"
            "  SELECT 1; SELECT CASE WHEN a > 0 THEN 2 ELSE 3 END; END;\n"
            "CREATE FUNCTION g() RETURNS int LANGUAGE plpgsql AS $g$ BEGIN RETURN 4; END; $g$;\n"
            "CREATE FUNCTION h(a int) RETURNS numeric LANGUAGE sql BEGIN ATOMIC\n"
            "  SELECT 2 AS end; SELECT 0.5 * CASE WHEN a > 0 THEN 2 ELSE 0.5 END; END;\n"
            "CREATE FUNCTION k(a int) RETURNS numeric BEGIN ATOMIC SELECT a * 1.0; END;\n"
            "CREATE RULE r AS ON INSERT TO t DO ALSO\n"
            "  (INSERT INTO log VALUES (NEW.a);\n"
            "   INSERT INTO log VALUES (f(1) + g() * h(1) * k(1)));\n"
            "DO $$ BEGIN INSERT INTO t VALUES (1); END; $$;\nCOMMIT;\n"
        }
    )
    result = run()

    assert 0 == result.code, result
    assert [1, 6] == database.query("SELECT a FROM log ORDER BY a")


STATEMENTS = (
    "CREATE INDEX CONCURRENTLY i2 ON t (a)",
    "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS i3 ON t (a)",
    "CREATE INDEX i4 ON t (a)",
    'CREATE TABLE "concurrently" (a int)',
    "DROP INDEX CONCURRENTLY i1",
    "DROP INDEX i1",
    "REINDEX INDEX i1",
    "REINDEX TABLE CONCURRENTLY t",
    "REINDEX (CONCURRENTLY) INDEX i1",
    "REINDEX (CONCURRENTLY false) INDEX i1",
    "REINDEX SCHEMA public",
    "REINDEX (VERBOSE) DATABASE",
    "VACUUM t",
    "VACUUM (ANALYZE) t",
    "ANALYZE t",
    "CLUSTER",
    "CLUSTER t USING i1",
    "CREATE DATABASE never",
    "DROP DATABASE IF EXISTS never",
    "ALTER DATABASE postgres SET TABLESPACE pg_default",
    "ALTER DATABASE postgres SET work_mem = '4MB'",
    "CREATE TABLESPACE never LOCATION '/never'",
    "DROP TABLESPACE IF EXISTS never",
    "ALTER SYSTEM SET work_mem = '4MB'",
    "DISCARD ALL",
    "DISCARD TEMP",
    "ALTER TABLE parted DETACH PARTITION part CONCURRENTLY",
    "ALTER TABLE parted DETACH PARTITION part",
    "CREATE SUBSCRIPTION s2 CONNECTION 'dbname=x' PUBLICATION p",
    "CREATE SUBSCRIPTION s3 CONNECTION 'dbname=x' PUBLICATION p WITH (connect = false)",
    "CREATE SUBSCRIPTION s4 CONNECTION 'dbname=x' PUBLICATION p WITH (create_slot = false)",
    "ALTER SUBSCRIPTION s1 SET PUBLICATION q",
    "ALTER SUBSCRIPTION s1 SET PUBLICATION q WITH (refresh = false)",
    "ALTER SUBSCRIPTION s1 REFRESH PUBLICATION",
    "ALTER SUBSCRIPTION s1 SET (synchronous_commit = off)",
    "REFRESH MATERIALIZED VIEW m",
    "REFRESH MATERIALIZED VIEW CONCURRENTLY m",
    "ALTER TYPE e ADD VALUE 'b'",
    "CREATE ROLE never",
    "CHECKPOINT",
    "TRUNCATE t",
)
REFRESHES = ("ALTER SUBSCRIPTION s1 SET PUBLICATION q", "ALTER SUBSCRIPTION s1 REFRESH PUBLICATION")


@pytest.mark.fault("D102")
def test_what_is_refused_in_a_transaction_is_known(
    any_server: servers.Server, database: servers.Database
) -> None:
    """Our answer for each statement is the server's: SQLSTATE 25001, or not."""
    database.script(
        "CREATE TABLE t (a int); CREATE INDEX i1 ON t (a); CREATE TYPE e AS ENUM ('a');"
        "CREATE TABLE parted (a int) PARTITION BY LIST (a);"
        "CREATE TABLE part PARTITION OF parted FOR VALUES IN (1);"
        "CREATE MATERIALIZED VIEW m AS SELECT 1 AS a; CREATE UNIQUE INDEX ON m (a);"
        "CREATE SUBSCRIPTION s1 CONNECTION 'dbname=x' PUBLICATION p WITH (connect = false)"
    )
    answers = {}
    with any_server.connect(database.name) as session:
        for statement in STATEMENTS:
            session.execute("BEGIN; ALTER SUBSCRIPTION s1 ENABLE")
            state = None
            try:
                session.execute(statement.encode())
            except psycopg.Error as error:
                state = error.sqlstate
            session.execute("ROLLBACK")
            if state != "42601":  # this version does not know it
                answers[statement] = state == "25001"
    database.script("ALTER SUBSCRIPTION s1 SET (slot_name = NONE)")
    database.script("DROP SUBSCRIPTION s1")

    if any_server.major == 13:  # it lets a refresh into a transaction; the files do not know that
        assert 2 == sum(not answers.pop(each) for each in REFRESHES)
    assert len(answers) > 30
    assert answers == {each: kinds.outside_transaction(each.encode()) for each in answers}


# settings


@pytest.mark.fault("F143")
def test_malformed_url_shows_no_password_anywhere(
    run_bare: Run, migrations: WriteMigrations, termination_log: Path
) -> None:
    """Not on stdout, not on stderr, not in the termination message."""
    migrations(ONE)
    for url in (f"postgresql://u:{CANARY}@x@h/d", f"postgresql://u:{CANARY}%zz@h/d", f"p {CANARY}"):
        result = run_bare(env={"DATABASE_URL": url})

        assert (20, "config.invalid") == (result.code, result.finished["error"]["code"])
        written = result.stdout + result.stderr + termination_log.read_text()
        assert "hunter2" not in written
        assert "same" not in written


def test_all_wrong_settings_are_reported_at_once(run_bare: Run) -> None:
    """Also those of the log itself, and before the files are read."""
    result = run_bare(
        env={"PREFLIGHT_LOG": "loud", "PREFLIGHT_LOG_LEVEL": "x", "PREFLIGHT_BAKUP": "off"}
    )

    assert 20 == result.code
    assert 3 == len(result.finished["error"]["problems"])
    assert "PREFLIGHT_BACKUP" in result.stdout


@pytest.mark.fault("F141")
def test_service_links_do_not_disturb_a_run(run: Run, migrations: WriteMigrations) -> None:
    """A pod beside Services named postgres and preflight works, and warns once."""
    migrations(ONE)
    links = {
        "POSTGRES_PORT": "tcp://10.0.0.1:5432",
        "POSTGRES_SERVICE_HOST": "10.0.0.1",
        "POSTGRES_PORT_5432_TCP_PORT": "5432",
        "PREFLIGHT_PORT": "tcp://10.0.0.1:80",
        "PREFLIGHT_SERVICE_PORT": "80",
        "PREFLIGHT_PORT_80_TCP_PORT": "80",
        "PGSSLMODE": "",
    }
    result = run(env=links)

    assert 0 == result.code, result
    assert 1 == len(result.event("config.warned"))


@pytest.mark.parametrize("locale", ["C", "de_DE.ISO-8859-1"])
def test_password_of_any_letters_works_in_any_locale(
    run: Run, migrations: WriteMigrations, locale: str
) -> None:
    """The servers' password holds a space, quotes, a backslash, %, @, : and é."""
    migrations(ONE)

    assert 0 == run(env={"LC_ALL": locale}).code


def test_password_file_works_like_the_password(
    run: Run, migrations: WriteMigrations, tmp_path: Path
) -> None:
    """For the session and for pg_dump."""
    migrations(ONE)
    secret = tmp_path / "secret"
    secret.write_text(servers.PASSWORD + "\n", encoding="utf-8")

    assert 0 == run(env={"PGPASSWORD": None, "POSTGRES_PASSWORD_FILE": str(secret)}).code


def test_url_works_with_a_driver_and_an_encoded_password(
    run: Run, migrations: WriteMigrations, database: servers.Database, server: servers.Server
) -> None:
    """As SQLAlchemy's users have it."""
    migrations(ONE)
    password = "".join(f"%{byte:02X}" for byte in servers.PASSWORD.encode())
    url = f"postgresql+asyncpg://postgres:{password}@127.0.0.1:{server.port}/{database.name}"
    result = run(env=dict.fromkeys(database.env()) | {"DATABASE_URL": url})

    assert 0 == result.code, result
    assert ["one"] == tables(database)


# arguments


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["chekc"], "check"),
        (["--chekc"], ""),
        (["up", "now"], "now"),
        (["check", "--jsno"], "--jsno"),
        (["check", "--json", "--table"], "not allowed"),
        ([""], ""),
        (["\udcff"], ""),
    ],
)
def test_wrong_arguments_end_with_20(run_bare: Run, arguments: list[str], words: str) -> None:
    """Never 2, and with one `run.finished` that says what was meant."""
    result = run_bare(*arguments)

    assert (20, "config.arguments") == (result.code, result.finished["error"]["code"])
    assert words in json.dumps(result.finished["error"])
    assert ["run.finished"] == result.names


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["check", "--help"]])
def test_help_teaches(run_bare: Run, arguments: list[str]) -> None:
    """Exit 0, on stdout, with an example."""
    result = run_bare(*arguments)

    assert (0, "") == (result.code, result.stderr)
    assert "check" in result.stdout
    assert "usage:" in result.stdout


# plan


class Case(NamedTuple):
    """Files that were applied, what happens to them (None: removed), and what comes of it."""

    before: dict[str, str]
    after: dict[str, str | None]
    code: int
    named: str | None = None
    settings: dict[str, str] = {}  # noqa: RUF012 - nobody writes to it


CASES = {
    "edited": Case(ONE | TWO, {"001_one.sql": "SELECT 1;"}, 26, "001_one"),
    "missing": Case(ONE | TWO, {"001_one.sql": None}, 26, "001_one"),
    "late": Case(ONE | THREE, {**TWO}, 26, "002_two"),
    "late-allowed": Case(
        ONE | THREE, {**TWO}, 0, settings={"PREFLIGHT_OUT_OF_ORDER": "allow"}
    ),
    "ahead": Case(ONE | TWO, {"002_two.sql": None}, 0),
    "ahead-refused": Case(
        ONE | TWO, {"002_two.sql": None}, 28, "002_two", {"PREFLIGHT_AHEAD": "fail"}
    ),
    "breaking": Case(
        ONE | {"002_two.sql": "-- preflight: breaking\nSELECT 1;"},
        {"002_two.sql": None},
        28,
        "002_two",
    ),
}  # fmt: skip


@pytest.mark.fault("D085", "D086")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_history_and_files_that_disagree(
    run: Run, migrations: WriteMigrations, database: servers.Database, case: Case
) -> None:
    """`up` and `check` say the same; what is refused changes nothing and makes no backup."""
    off = {"PREFLIGHT_BACKUP": "off"}
    migrations(case.before)
    assert 0 == run(env=off).code
    for name, text in case.after.items():
        if text is None:
            (migrations.directory / name).unlink()
        else:
            migrations({name: text})
    there = tables(database)

    result = run(env=off | case.settings)

    assert case.code == result.code, result
    assert case.named == result.finished.get("error", {}).get("migration")
    assert case.code == run("check", env=case.settings).code
    if case.code:
        assert there == tables(database)
        assert not result.event("backup.skipped")
    else:
        assert bool(result.event("schema.ahead")) == ("002_two.sql" in case.before)


# logs and the last word


def test_every_line_is_an_event_with_its_keys_in_order(
    run: Run, migrations: WriteMigrations
) -> None:
    """Machines read every line, and each begins the same."""
    migrations({"001_one.sql": "DO $$ BEGIN RAISE WARNING E'a\\n\\033[31m\"b\"'; END $$;"})
    result = run()

    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert 0 == result.code
    assert {("timestamp", "level", "event", "run_id")} == {tuple(line)[:4] for line in lines}
    assert 1 == len({line["run_id"] for line in lines})
    assert 'a\n\x1b[31m"b"' in [line.get("notice") for line in lines]
    assert "" == result.stderr


def test_level_hides_all_but_the_end(run: Run, migrations: WriteMigrations) -> None:
    """Errors only, and still one `run.finished`, which knows what was applied."""
    migrations(ONE)
    result = run(env={"PREFLIGHT_LOG_LEVEL": "error"})

    assert ["run.finished"] == result.names
    assert ["001_one"] == result.finished["applied"]


def test_console_lines_have_no_colour_in_a_pipe(run: Run, migrations: WriteMigrations) -> None:
    """Asked for, they are plain text."""
    migrations(ONE)
    result = run(env={"PREFLIGHT_LOG": "console"})

    assert 0 == result.code
    assert "\x1b" not in result.stdout
    lines = [line.partition(" ")[2] for line in result.stdout.splitlines()]
    assert 1 == sum(line.startswith("✓ applied 001_one (") for line in lines)


def shell(environment: dict[str, str], command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a shell's line in which $UP is the program."""
    return subprocess.run(
        ["/bin/bash", "-c", command],
        env=environment | {"UP": f"{sys.executable} {program.ENTRYPOINT}"},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.fault("F138")
@pytest.mark.parametrize(
    "command",
    [
        "$UP | head -n 1; exit ${PIPESTATUS[0]}",
        "$UP > /dev/full",
        "$UP >&-",
        "$UP <&- >&- 2>&-",
    ],
    ids=["head", "full", "closed", "all-closed"],
)
def test_nobody_listening_does_not_end_the_job(
    environment: dict[str, str],
    migrations: WriteMigrations,
    database: servers.Database,
    tmp_path: Path,
    command: str,
) -> None:
    """The work is done, the backup is there, and the exit code is right."""
    migrations(ONE | TWO)
    done = shell(environment, command, tmp_path)

    assert (0, "") == (done.returncode, done.stderr)
    assert ["one", "two"] == tables(database)
    assert 1 == len(list(Path(environment["PREFLIGHT_BACKUP_DIR"]).iterdir()))


@pytest.mark.fault("F138")
def test_nobody_listening_does_not_hide_a_failure(
    environment: dict[str, str], migrations: WriteMigrations, tmp_path: Path
) -> None:
    """The exit code of a failed run survives a closed pipe, too."""
    migrations({"001_one.sql": "SELECT 1/0;"})
    done = shell(environment, "$UP | head -n 1; exit ${PIPESTATUS[0]}", tmp_path)

    assert (30, "") == (done.returncode, done.stderr)


@pytest.mark.fault("F146")
@pytest.mark.parametrize("what", ["missing", "directory", "fifo", "full"])
def test_termination_log_that_cannot_be_written_changes_nothing(
    run: Run, migrations: WriteMigrations, tmp_path: Path, what: str
) -> None:
    """It is a courtesy: the log has it all."""
    migrations(ONE)
    path = tmp_path / "message"
    match what:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "full":
            path.symlink_to("/dev/full")

    result = run(env={"PREFLIGHT_TERMINATION_LOG": str(path)})

    assert (0, "") == (result.code, result.stderr)


@pytest.mark.fault("F148")
def test_name_that_is_not_utf8_is_reported_whole(
    run_bare: Run, migrations: WriteMigrations, termination_log: Path
) -> None:
    """One JSON line, one JSON message, exit 25."""
    (migrations(ONE) / os.fsdecode(b"002_\xff\n\x1b[31m.sql")).write_text("")
    result = run_bare()

    assert 25 == result.code
    assert "002_\udcff\n\x1b[31m.sql" == result.finished["error"]["file"]
    assert result.finished["error"] == json.loads(termination_log.read_bytes())["error"]


# nothing pending


def test_nothing_pending_imports_only_what_it_needs(
    run: Run, environment: dict[str, str], migrations: WriteMigrations
) -> None:
    """Every pod start pays for it: no parser, no retries, no processes, no command line."""
    migrations(ONE)
    assert 0 == run().code
    code = (
        "import sys; sys.argv = ['entrypoint.py']; import entrypoint; code = entrypoint.main();"
        "sys.stderr.write(' '.join(sys.modules)); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=servers.REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stderr.split())

    unwanted = {
        "postgast", "google.protobuf", "tenacity", "argparse", "difflib",
        "preflight.backup.take", "preflight.apply.forward", "preflight.commands.registry",
        "preflight.commands.arguments",
        "preflight.rehearsal.trial", "preflight.base.console", "preflight.server.watch",
        "preflight.apply.indexes",
    }  # fmt: skip
    assert "preflight.history.plan" in loaded
    assert set() == loaded & unwanted


def test_nothing_pending_is_one_connection_and_one_query(
    start_server: StartServer, bare_environment: dict[str, str], migrations: WriteMigrations,
    tmp_path: Path,
) -> None:  # fmt: skip
    """The server's own log says so."""
    server = start_server(log_statement="all", log_connections="on")
    main = program.Program({**bare_environment, **server.env("postgres")}, tmp_path)
    migrations(ONE)
    assert 0 == main.run().code
    before = server.log.stat().st_size

    result = main.run()

    assert 0 == result.code
    said = server.log.read_text(errors="replace").encode()[before:].decode().splitlines()
    assert 1 == len([line for line in said if "connection authorized" in line]), said
    assert 1 == len([line for line in said if "statement:" in line or "execute " in line]), said
