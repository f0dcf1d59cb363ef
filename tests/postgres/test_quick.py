"""The quick look at a database that needs nothing: it says what `up` would, or nothing at all."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import LiteralString
from urllib.parse import quote

import psycopg
import pytest

from preflight.quick import door
from tests import faults, program, servers
from tests.conftest import CreateDatabase, Run, WriteMigrations

FILES: dict[str, str | bytes] = {
    "001_one.sql": "CREATE TABLE one (id int);\n",
    "001_one_rollback.sql": "DROP TABLE one;\n",
    "001_one_verify.sql": "SELECT 's' AS suite, 'c' AS \"check\", to_regclass('one') <> 0 AS ok;\n",
    "002_two.sql": b"\xef\xbb\xbfCREATE TABLE two (id int);\r\n",
    "002_two_export.sql": "SELECT * FROM two;\n",
    "004_four.sql": "-- preflight: no-transaction\nCREATE INDEX CONCURRENTLY i ON one (id);\n",
}
ALONE = f"import sys; sys.path.insert(0, {str(servers.REPOSITORY)!r}); import entrypoint"
FULL = [sys.executable, "-c", f"{ALONE}; sys.exit(entrypoint.main())"]
QUICK = [sys.executable, str(program.ENTRYPOINT)]
MAY_BE_LOADED = {  # beside what Python itself loads before the first line of ours
    "_ctypes", "_sha256", "_sha2", "preflight", "preflight.base", "preflight.base.plain",
    "preflight.base.unloadable", "preflight.files", "preflight.files.names", "preflight.quick",
    "preflight.quick.asked", "preflight.quick.door", "preflight.quick.told", "gc",
}  # fmt: skip
Said = tuple[int, str, str, str]


@pytest.fixture
def applied(run: Run, migrations: WriteMigrations) -> None:
    """Apply FILES."""
    migrations(FILES)
    assert 0 == run(env={"PREFLIGHT_BACKUP": "off"}).code


@pytest.fixture
def done(
    applied: None, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[], bool]:
    """Give the question whether the quick look finds nothing to do, asked in this process."""
    assert applied is None
    for name in list(os.environ):
        if name.startswith(("PG", "POSTGRES_", "DATABASE_URL", "PREFLIGHT_")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["entrypoint.py"])
    monkeypatch.setattr(sys, "stdin", sys.stdout)

    def ask() -> bool:
        try:
            return door.answer() is not None
        except Exception:  # noqa: BLE001 -- as the door does
            return False

    assert ask()
    return ask


def said(command: list[str], env: dict[str, str]) -> Said:
    """Return all that a run leaves behind, but for its times and its number."""
    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    message = Path(env["PREFLIGHT_TERMINATION_LOG"])
    return ended.returncode, same(ended.stdout), same(ended.stderr), same(message.read_text())


def same(text: str) -> str:
    """Return a text without times and numbers of runs."""
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z", "TIME", text)
    text = re.sub(r'"run_id": "[0-9a-f]{12}"', '"run_id": "RUN"', text)
    return re.sub(r'(_s": )\d+\.\d+', r"\1S", text)


def loaded(env: dict[str, str]) -> set[str]:
    """Return what a run of the program imports."""
    told = subprocess.run(
        [sys.executable, "-X", "importtime", program.ENTRYPOINT],
        env=env, capture_output=True, text=True, check=True,
    ).stderr  # fmt: skip
    bare = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import stat"],
        env=env, capture_output=True, text=True, check=True,
    ).stderr  # fmt: skip
    pattern = re.compile(r"^import time: .*\| +(\S+)$", re.MULTILINE)
    return set(pattern.findall(told)) - set(pattern.findall(bare))


def vocabularies(env: dict[str, str]) -> dict[str, dict[str, str]]:
    """Return the same target as each vocabulary says it."""
    kept = {name: value for name, value in env.items() if not name.startswith("PG")}
    host, port, user, password, database = (
        env[name] for name in ("PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE")
    )
    official = {
        "POSTGRES_HOST": host, "POSTGRES_PORT": port, "POSTGRES_USER": user,
        "POSTGRES_PASSWORD": password, "POSTGRES_DB": database,
    }  # fmt: skip
    secret = Path(env["PREFLIGHT_TERMINATION_LOG"]).with_name("secret")
    secret.write_text(f"{password}\n")
    by_file = {name: value for name, value in official.items() if name != "POSTGRES_PASSWORD"}
    passfile = secret.with_name("passfile")
    escaped = password.replace("\\", "\\\\").replace(":", "\\:")
    passfile.write_text(f"{host}:{port}:*:{user}:{escaped}\n")
    passfile.chmod(0o600)
    unsaid = {name: value for name, value in env.items() if name != "PGPASSWORD"}
    url = f"postgresql://{user}:{quote(password)}@{host}:{port}/{database}"
    return {
        "PG*": env,
        "PGPASSFILE": unsaid | {"PGPASSFILE": str(passfile)},
        "POSTGRES_*": kept | official,
        "POSTGRES_PASSWORD_FILE": kept | by_file | {"POSTGRES_PASSWORD_FILE": str(secret)},
        "DATABASE_URL": kept | {"DATABASE_URL": url},
        "a name": env | {"PGHOST": "localhost"},
        "sslmode": kept | {"DATABASE_URL": f"{url}?sslmode=prefer", "PG_MAJOR": "17"},
        "gcp": env | {"PREFLIGHT_LOG": "gcp"},
        "settings": env | {"PREFLIGHT_LOG": "json", "PREFLIGHT_LOCK_TIMEOUT_MS": "500"},
    }


def test_nothing_to_do_is_said_in_the_same_words(
    applied: None, environment: dict[str, str]
) -> None:
    """The lines, the exit code and the termination message are those of the full path."""
    assert applied is None
    for name, env in vocabularies(environment).items():
        assert (name, said(FULL, env)) == (name, said(QUICK, env))
        assert "psycopg" not in loaded(env), f"{name} was left to the full path"


class Full(faults.Fault):
    """Has no place for the next so many logins."""

    code, left = b"53300", 0
    said = b"sorry, too many clients already\0Fproc.c\0L345\0RInitProcess"

    def startup(self, message: bytes) -> bytes | None:
        """Refuse as a server does, with the place in its source."""
        del message
        self.left -= 1
        return None if self.left < 0 else faults.refusal(self.code, self.said)


def test_full_server_is_waited_for_in_the_same_words(
    applied: None, environment: dict[str, str], server: servers.Server
) -> None:
    """A crowd of starts against few connections: nobody needs the full path for that."""
    assert applied is None
    full = Full()
    with faults.through(server, full) as proxy:
        env = environment | proxy.env()
        for times, host in ((1, {}), (3, {}), (1, {"PGHOST": "localhost"})):
            env |= host
            full.left = times
            expected = said(FULL, env)
            full.left = times
            assert expected == said(QUICK, env)
            assert f'"attempts": {times + 1},' in expected[1]
            full.left = times
            assert "psycopg" not in loaded(env)


def test_other_refusals_are_left_to_the_full_path(
    done: Callable[[], bool], server: servers.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the words for them, and says them at once; also for a server that stays full."""
    full = Full()
    with faults.through(server, full) as proxy:
        for name, value in proxy.env().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(door, "FULL_S", 0.1)
        for code, left, expected in (
            (b"57P03", 1, False), (b"28P01", 1, False), (b"53300", 99, False), (b"53300", 0, True)
        ):  # fmt: skip
            full.code, full.left = code, left
            assert (code, left, expected) == (code, left, done())


class Slow(faults.Fault):
    """Takes its time with every step of a login."""

    def to_client(self, kind: bytes, message: bytes) -> bytes:
        """Hold back what it says of the password, four times."""
        if kind == b"R":
            time.sleep(0.5)
        return message


def test_server_that_is_slow_but_answers_is_not_left_to_the_full_path(
    done: Callable[[], bool], server: servers.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where hundreds start at once each step takes long, and the full path would make it worse."""
    with faults.through(server, Slow()) as proxy:
        for name, value in proxy.env().items():
            monkeypatch.setenv(name, value)
        assert done()


def test_warning_at_the_login_is_no_line_of_ours(
    applied: None, environment: dict[str, str], database: servers.Database
) -> None:
    """Of a database whose collation's version moved; libpq would write it to stderr by itself."""
    assert applied is None
    database.query("UPDATE pg_database SET datcollversion = '1' WHERE datname = current_database()")
    full, quick = said(FULL, environment), said(QUICK, environment)

    assert full == quick
    assert "" == quick[2]
    assert "psycopg" not in loaded(environment)


def test_nothing_more_is_loaded(applied: None, environment: dict[str, str]) -> None:
    """An import here is paid by every pod that starts; what may be loaded is listed."""
    assert applied is None
    assert set() == loaded(environment) - MAY_BE_LOADED


def test_one_question_is_asked(
    applied: None, environment: dict[str, str], database: servers.Database
) -> None:
    """One connection and one message."""
    assert applied is None
    database.query("ALTER SYSTEM SET log_statement = 'all'")
    database.query("ALTER SYSTEM SET log_connections = on")
    try:
        database.server.reload()
        before = len(database.server.log.read_text(errors="replace"))
        assert 0 == said(QUICK, environment)[0]
        new = database.server.log.read_text(errors="replace")[before:]
    finally:
        database.query("ALTER SYSTEM RESET ALL")
        database.server.reload()

    assert 1 == new.count("connection received:")
    asked = [line for line in new.splitlines() if "/pg-preflight@" in line and "ment: " in line]
    assert 1 == len(asked), asked
    assert "statement: BEGIN ISOLATION LEVEL" in asked[0]


def test_it_is_quick_again_on_every_version(
    any_server: servers.Server,
    create_database: CreateDatabase,
    environment: dict[str, str],
    run: Run,
    migrations: WriteMigrations,
) -> None:
    """The tables that this version makes are recognised on every server."""
    migrations(FILES)
    env = environment | create_database(any_server).env() | {"PREFLIGHT_BACKUP": "off"}
    assert 0 == run(env=env).code

    assert "psycopg" not in loaded(env)


# what is left to the full path

FILE_STATES: dict[str, Callable[[Path], object]] = {
    "edited": lambda m: (m / "002_two.sql").write_text("CREATE TABLE two (id bigint);\n"),
    "new": lambda m: (m / "005_five.sql").write_text("SELECT 1;\n"),
    "between": lambda m: (m / "003_three.sql").write_text("SELECT 1;\n"),
    "one missing": lambda m: (m / "002_two.sql").unlink(),
    "newest missing": lambda m: (m / "004_four.sql").unlink(),
    "renamed": lambda m: (m / "002_two.sql").rename(m / "002_zwei.sql"),
    "other number": lambda m: (m / "002_two.sql").rename(m / "003_two.sql"),
    "digits added": lambda m: (m / "004_four.sql").rename(m / "0004_four.sql"),
    "version twice": lambda m: (m / "02_two.sql").write_text("SELECT 1;\n"),
    "version twice, well named": lambda m: (m / "0002_two.sql").write_text("SELECT 1;\n"),
    "empty": lambda m: (m / "004_four.sql").write_text(""),
    "bad name": lambda m: (m / "readme.sql").write_text("SELECT 1;\n"),
    "capitals": lambda m: (m / "005_Five.sql").write_text("SELECT 1;\n"),
    "companion alone": lambda m: (m / "005_five_verify.sql").write_text("SELECT 1;\n"),
    "companion new": lambda m: (m / "004_four_rollback.sql").write_text("DROP INDEX i;\n"),
    "companion edited": lambda m: (m / "001_one_rollback.sql").write_text("DROP TABLE x;\n"),
    "companion gone": lambda m: (m / "001_one_verify.sql").unlink(),
    "companion not UTF-8": lambda m: (m / "001_one_verify.sql").write_bytes(b"SELECT '\xff'"),
    "a link to nothing": lambda m: (m / "005_five.sql").symlink_to("nothing"),
    "a directory": lambda m: (m / "005_five.sql").mkdir(),
    "a FIFO": lambda m: os.mkfifo(m / "005_five.sql"),
    "a FIFO that gives the text": lambda m: flows(m / "001_one.sql"),
    "no file": lambda m: list(map(Path.unlink, m.iterdir())),
}
PLAIN_STATES: dict[str, Callable[[Path], object]] = {
    "hidden": lambda m: (m / ".005_five.sql").write_text("SELECT 1;\n"),
    "other files": lambda m: (m / "README.md").write_text("x"),
    "line ends": lambda m: (m / "001_one.sql").write_bytes(b"CREATE TABLE one (id int);\r\n"),
}


def flows(file: Path) -> None:
    """Put a pipe in a file's place that holds its text, and stays open."""
    text = file.read_bytes()
    file.unlink()
    os.mkfifo(file)
    os.write(os.open(file, os.O_RDWR), text)


def test_every_other_state_of_the_files_is_left_to_the_full_path(
    done: Callable[[], bool], migrations: WriteMigrations
) -> None:
    """A file too many, too few or other than recorded is never called nothing to do."""
    for states, expected in ((FILE_STATES, False), (PLAIN_STATES, True)):
        for name, change in states.items():
            change(migrations.directory)
            assert (name, expected) == (name, done())
            for path in migrations.directory.iterdir():
                path.rmdir() if path.is_dir() else path.unlink()
            migrations(FILES)
    assert done()


def other_text(file: Path) -> None:
    """Change a file so that only its text shows it: of the same size, and as old as before."""
    was = file.stat()
    file.write_bytes(file.read_bytes().swapcase())
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))


def moved(file: Path, name: str) -> Path:
    """Give a file another name."""
    return file.rename(file.with_name(name))


def copied(file: Path, name: str) -> Path:
    """Make a file beside another."""
    new = file.with_name(name)
    new.write_bytes(file.read_bytes())
    return new


MANY = 2_000  # also seen with 10,000
ONE_OF_MANY: dict[str, Callable[[Path], Path | None]] = {  # what is there now and was not
    "gone": lambda f: f.unlink(),
    "another text": other_text,
    "its last byte": lambda f: os.truncate(f, f.stat().st_size - 1),
    "a digit more": lambda f: moved(f, f"0{f.name}"),
    "capitals": lambda f: moved(f, f.name.upper()),
    "other digits": lambda f: moved(f, f"\u0661{f.name[1:]}"),
    "two underscores": lambda f: moved(f, f.name.replace("_", "__")),
    "no word": lambda f: moved(f, f.name.replace("_x", "_")),
    "twice": lambda f: copied(f, f"0{f.name}"),
    "a companion": lambda f: copied(f, f"{f.stem}_verify.sql"),
    "a stranger's companion": lambda f: copied(f, f"{f.stem}s_verify.sql"),
}


def test_one_of_many_files_is_never_overlooked(
    done: Callable[[], bool],
    connection: psycopg.Connection,
    migrations: WriteMigrations,
    environment: dict[str, str],
) -> None:
    """At the first, a middle and the last place of thousands."""
    connection.execute(
        """INSERT INTO preflight.migrations (version, name, checksum, state, how, up_sql,
 tool_version, run_id) SELECT n, n || '_x', encode(sha256(convert_to(t, 'UTF8')), 'hex'), 'done',
 'applied', t, '0.1.0', 'r' FROM generate_series(10000, 9999 + %s::int) n,
 LATERAL (SELECT format(E'SELECT %%s;\\n', n)) AS text (t)""",
        [MANY],
    )
    for number in range(10_000, 10_000 + MANY):
        (migrations.directory / f"{number}_x.sql").write_text(f"SELECT {number};\n")

    assert done()
    assert said(FULL, environment) == said(QUICK, environment)
    for number in (10_000, 10_000 + MANY // 2, 9_999 + MANY):
        file = migrations.directory / f"{number}_x.sql"
        text = file.read_bytes()
        for name, change in ONE_OF_MANY.items():
            new = change(file)
            assert (number, name, False) == (number, name, done())
            if new is not None:
                new.unlink()
            file.write_bytes(text)
    assert done()


def test_question_reads_as_much_however_many_tables_there_are(
    done: Callable[[], bool], connection: psycopg.Connection
) -> None:
    """A start is not the slower for the tables of the app."""
    assert done()
    from preflight.quick import asked  # noqa: PLC0415

    def pages() -> int:
        question = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT json) {asked.statements('preflight')[0]}"
        (plan,) = connection.execute(question.encode()).fetchone() or (None,)
        return int(plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"])

    before = pages()
    connection.execute(
        "DO $$BEGIN FOR n IN 1..500 LOOP "
        "EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY)', n); END LOOP; END$$"
    )
    assert pages() < before + 10
    assert done()


HISTORY_STATES: tuple[LiteralString, ...] = (
    "UPDATE preflight.migrations SET state = 'failed' WHERE version = 4",
    "UPDATE preflight.migrations SET state = 'running' WHERE version = 4",
    "UPDATE preflight.migrations SET checksum = 'x' WHERE version = 1",
    "UPDATE preflight.migrations SET name = '001_eins' WHERE version = 1",
    "UPDATE preflight.migrations SET version = 3 WHERE version = 2",
    "UPDATE preflight.migrations SET rollback_sql = 'DROP TABLE x' WHERE version = 1",
    "UPDATE preflight.migrations SET rollback_sql = NULL WHERE version = 1",
    "DELETE FROM preflight.migrations WHERE version = 4",
    "DELETE FROM preflight.migrations",
    """INSERT INTO preflight.migrations (version, name, checksum, state, how, up_sql,
 tool_version, run_id) VALUES (9, '009_x', 'x', 'done', 'applied', '', '1', 'r')""",
    "DROP TABLE preflight.journal",
    "DROP TABLE preflight.migrations",
    "DROP SCHEMA preflight CASCADE",
    """ALTER TABLE preflight.migrations RENAME TO m;
 CREATE VIEW preflight.migrations AS SELECT * FROM preflight.m""",
    "ALTER TABLE preflight.migrations ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE preflight.migrations DROP CONSTRAINT migrations_pkey",
    "ALTER TABLE preflight.migrations ALTER duration_ms SET NOT NULL",
    "ALTER TABLE preflight.migrations ADD COLUMN newer int",
    "ALTER TABLE preflight.migrations ALTER name TYPE varchar",
    "ALTER TABLE preflight.migrations ALTER name DROP NOT NULL",
    "ALTER TABLE preflight.migrations ALTER breaking DROP NOT NULL",
    "ALTER TABLE preflight.journal ALTER role DROP DEFAULT",
    "ALTER TABLE preflight.journal DROP COLUMN error",
    "CREATE RULE r AS ON INSERT TO preflight.migrations DO INSTEAD NOTHING",
    "CREATE TABLE preflight.child () INHERITS (preflight.migrations)",
    "CREATE TABLE preflight.takeovers (id int)",
    "CREATE VIEW preflight.beside AS SELECT 1",
    "CREATE SEQUENCE preflight.beside",
    "CREATE TYPE preflight.beside AS (id int)",
    "ALTER TABLE preflight.migrations DROP CONSTRAINT migrations_pkey, ADD PRIMARY KEY (name)",
    "ALTER TABLE preflight.journal ALTER id DROP IDENTITY",
    "CREATE TABLE preflight.beside (id int); ALTER TABLE preflight.journal ALTER id DROP IDENTITY",
    "CREATE ROLE stranger; ALTER TABLE preflight.migrations OWNER TO stranger",
    "CREATE ROLE stranger; ALTER SCHEMA preflight OWNER TO stranger",
)


def test_every_other_state_of_the_history_is_left_to_the_full_path(
    done: Callable[[], bool], connection: psycopg.Connection
) -> None:
    """A row, a table or an owner that is not exactly as we left it is never believed here."""
    connection.autocommit = False
    for change in HISTORY_STATES:
        connection.execute("SELECT 1")
        with connection.transaction(force_rollback=True):
            connection.execute(change)
            inside = said_inside(connection)
        connection.rollback()
        assert (change, None) == (change, inside)
    assert done()


def said_inside(connection: psycopg.Connection) -> list[str] | None:
    """Return what the quick look's question finds in an open transaction that is not committed."""
    from preflight.quick import asked  # noqa: PLC0415

    files = door.read(os.environ["PREFLIGHT_MIGRATIONS_DIR"])
    sound, rows = asked.statements("preflight")
    try:
        connection.execute(sound.encode())
        count, text = connection.execute(rows.encode()).fetchone() or (0, "")
    except psycopg.Error:
        return None
    found = (text or "").split("\n")
    return found if len(found) == count and set(found) == files.lines() else None


ENVIRONMENTS: tuple[dict[str, str], ...] = (
    {"PGPASSWORD": "wrong"},
    {"PGDATABASE": "nothing_of_that_name"},
    {"PGPORT": "1"},
    {"PGPORT": "x"},
    {"PGHOST": "name.invalid"},
    {"PGHOST": "127.0.0.1,127.0.0.1"},
    {"PGHOSTADDR": "127.0.0.1"},
    {"PGSERVICE": "x"},
    {"PGSSLMODE": ""},
    {"PGSSLMODE": "verify-full"},
    {"PGOPTIONS": "-c x.y=1"},
    {"PGTARGETSESSIONATTRS": "standby"},
    {"PGCONNECT_TIMEOUT": "10s"},
    {"PSYCOPG_IMPL": "c"},
    {"POSTGRES_HOST": "elsewhere"},
    {"POSTGRES_PASSWORD": "another"},
    {"POSTGRES_PORT": "tcp://10.0.0.1:5432"},
    {"POSTGRES_USER": '"postgres"'},
    {"POSTGRES_INITDB_ARGS": "'--data-checksums'"},
    {"PGPASSWORD_FILE": "/nothing"},
    {"DATABASE_URL": "mysql://a@b/c"},
    {"DATABASE_URL": "postgresql://postgres@127.0.0.1/x?schema=a"},
    {"PREFLIGHT_UNKNOWN": "1"},
    {"PREFLIGHT_LAYOUT": "flyway"},
    {"PREFLIGHT_SCHEMA": "public"},
    {"PREFLIGHT_SCHEMA": "select"},
    {"PREFLIGHT_SCHEMA": "preflight_other"},
    {"PREFLIGHT_BACKUP": "yes"},
    {"PREFLIGHT_BACKUP_KEEP": "0"},
    {"PREFLIGHT_LOG": "console"},
    {"PREFLIGHT_LOG_LEVEL": "error"},
    {"PREFLIGHT_MIGRATIONS_DIR": "/nonexistent"},
    {"PREFLIGHT_MIGRATIONS_DIR": "migrations/"},
)


def test_every_other_environment_is_left_to_the_full_path(
    done: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not said plainly, or leads to no answer, is never called nothing to do."""
    for more in ENVIRONMENTS:
        with monkeypatch.context() as changed:
            for name, value in more.items():
                changed.setenv(name, value)
            assert (more, False) == (more, done())
    assert done()


def test_a_locked_history_is_left_to_the_full_path(
    done: Callable[[], bool], connection: psycopg.Connection
) -> None:
    """Nobody is waited for."""
    with connection.transaction():
        connection.execute("LOCK TABLE preflight.migrations IN ACCESS EXCLUSIVE MODE")
        assert not done()
    assert done()


def test_another_command_is_left_to_the_full_path(
    done: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only `up` ends with nothing to do."""
    for arguments, expected in ((["up"], True), (["check"], False), (["up", "--help"], False)):
        monkeypatch.setattr(sys, "argv", ["entrypoint.py", *arguments])
        assert (arguments, expected) == (arguments, done())
