"""What a backup holds, who may take it, and what the others may do meanwhile."""

import hashlib
import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests import faults, program, servers
from tests.conftest import CreateDatabase, Run, Start, WriteMigrations
from tests.fakes import Fakes, contents, manifest, only

ONE = {"001_one.sql": "CREATE TABLE one (id int);\n"}
ITEMS = """
CREATE TABLE items (id int PRIMARY KEY, note text);
INSERT INTO items SELECT n, md5(n::text) FROM generate_series(1, 2000) n;
"""


@pytest.fixture(autouse=True)
def pending(environment: dict[str, str], migrations: WriteMigrations) -> None:
    """Have one migration to apply, so that every run takes a backup."""
    migrations(ONE)
    environment["PREFLIGHT_FIRST_CONTACT"] = "pending"
    environment["PREFLIGHT_REHEARSE"] = "off"


@pytest.fixture
def items(database: servers.Database) -> None:
    """Have a table of 2000 rows."""
    database.script(ITEMS)


# --- what it is -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("items")
def test_manifest_tells_what_the_backup_holds(
    run: Run, database: servers.Database, backup_dir: Path
) -> None:
    """A person and a restore find everything they need beside the dump."""
    system = database.query("SELECT system_identifier::text FROM pg_control_system()")
    version = database.query("SELECT current_setting('server_version_num')::int")
    before = database.query("SELECT to_json(timezone('UTC', now()))")[0]
    result = run()
    found = manifest(only(backup_dir))
    dump = (only(backup_dir) / "database.dump").read_bytes()

    assert 0 == result.code, str(result)
    assert rf"{database.name}-" == re.sub(r"\d{8}T\d{6}Z-\w+$", "", only(backup_dir).name)
    assert {
        "format": 1,
        "version": result.event("run.started")[0]["version"],
        "database": database.name,
        "system_identifier": system[0],
        "server_version": version[0],
        "size_bytes": len(dump),
        "sha256": hashlib.sha256(dump).hexdigest(),
        "rows": {"preflight.journal": 0, "preflight.migrations": 0, "public.items": 2000},
        "verified": "read",
        "sequence": 1,
    }.items() <= found.items()
    assert re.match(r"pg_dump \(PostgreSQL\) 18", found["pg_dump"])
    assert before < found["snapshot_at"] < result.finished["timestamp"]
    assert "up" == found["taken_for"]["command"]
    assert [1] == [each["version"] for each in found["taken_for"]["pending"]]
    assert [only(backup_dir).name] == database.query("SELECT backup FROM preflight.migrations")
    (verified,) = result.event("backup.verified")
    assert (only(backup_dir).name, 2000) == (verified["backup"], verified["rows"])


@pytest.mark.parametrize("schemas", [None, "b"], ids=["all", "some"])
def test_manifest_names_the_roles_that_a_server_has_from_the_start(
    schemas: str | None, run: Run, database: servers.Database, backup_dir: Path
) -> None:
    """The superuser's name is another elsewhere; what comes with a database needs none of them."""
    owner = f"{database.name}_owner"
    database.script(
        f"CREATE ROLE {owner}; CREATE SCHEMA b AUTHORIZATION {owner}; CREATE TABLE b.t (id int);"
        f"ALTER TABLE b.t OWNER TO {owner}; GRANT SELECT (id) ON b.t TO pg_monitor;"
        "CREATE EXTENSION pg_trgm; CREATE POLICY p ON b.t TO pg_signal_backend;"
    )
    asked = {"PREFLIGHT_SCHEMAS": schemas}
    alone = run("backup", env=asked)
    found = [manifest(only(backup_dir))["roles"]]
    database.query("CREATE VIEW b.v AS SELECT 1")
    beside = run("backup", env=asked)
    found.append(manifest(backup_dir / beside.event("backup.verified")[0]["backup"])["roles"])
    database.query(f"DROP OWNED BY {owner} CASCADE")
    database.query(f"DROP ROLE {owner}")

    assert [0, 0] == [alone.code, beside.code], (alone, beside)
    named = ["pg_monitor", "pg_signal_backend", owner]
    assert [sorted(named), sorted([*named, "postgres"])] == found


@pytest.mark.fault("C070")
@pytest.mark.usefixtures("items")
def test_backup_is_private_whatever_the_umask_says(run: Run, backup_dir: Path) -> None:
    """A dump holds everybody's data."""
    before = os.umask(0)
    try:
        result = run()
    finally:
        os.umask(before)

    assert 0 == result.code, str(result)
    assert 0o700 == only(backup_dir).stat().st_mode & 0o777
    assert {"database.dump": 0o600, "manifest.json": 0o600} == {
        path.name: path.stat().st_mode & 0o777 for path in only(backup_dir).iterdir()
    }


@pytest.mark.parametrize("name", ['a "quoted" name', "../up/and/away", ".hidden", "données'; --"])
def test_oddly_named_database_is_backed_up(
    run: Run, backup_dir: Path, server: servers.Server, create_database: CreateDatabase, name: str
) -> None:
    """Its backup is in the directory, visible, under a name that needs no quotes."""
    database = create_database(server, name)
    result = run(env=database.env())

    assert 0 == result.code, str(result)
    assert name == manifest(only(backup_dir))["database"]
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]+", only(backup_dir).name)


SCHEMA = """
CREATE TABLE parent (id int PRIMARY KEY, at date) ;
CREATE TABLE child (extra text) INHERITS (parent);
INSERT INTO parent SELECT n, 'today' FROM generate_series(1, 7) n;
INSERT INTO child SELECT n, 'today', 'x' FROM generate_series(8, 12) n;
CREATE TABLE split (id int, region text) PARTITION BY LIST (region);
CREATE TABLE split_eu PARTITION OF split FOR VALUES IN ('eu');
CREATE TABLE split_us PARTITION OF split DEFAULT;
INSERT INTO split SELECT n, CASE WHEN n % 3 = 0 THEN 'us' ELSE 'eu' END
 FROM generate_series(1, 30) n;
CREATE TABLE computed (
 id int GENERATED ALWAYS AS IDENTITY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED);
INSERT INTO computed (a) SELECT n FROM generate_series(1, 4) n;
CREATE TABLE no_columns ();
INSERT INTO no_columns DEFAULT VALUES;
INSERT INTO no_columns DEFAULT VALUES;
CREATE UNLOGGED TABLE unlogged (id int);
INSERT INTO unlogged VALUES (1);
CREATE TABLE empty (id int);
CREATE MATERIALIZED VIEW seen AS SELECT * FROM parent;
CREATE VIEW window_on AS SELECT * FROM parent;
CREATE SCHEMA "Select";
CREATE TABLE "Select"."Order" ("from" int, "a ""b"", c
COPY public.empty (id) FROM stdin;" text);
INSERT INTO "Select"."Order" VALUES (1, E'\\\\.'),
 (2, E'\\\\.\\nCOPY public.empty (id) FROM stdin;'), (3, E'\\r\\n\\t\\b'), (4, NULL), (5, '');
CREATE TABLE "quote""d.and
dotted" (id serial);
INSERT INTO "quote""d.and
dotted" DEFAULT VALUES;
CREATE TABLE "日本語 é" (id int);
INSERT INTO "日本語 é" VALUES (1);
CREATE TABLE wide (id int, note text, raw bytea);
INSERT INTO wide VALUES (1, repeat(E'\\\\.\\n', 1500000), decode(repeat('5c2e0a', 300000), 'hex'));
SELECT lo_from_bytea(0, '\\x5c2e0a');
CREATE TEMPORARY TABLE gone (id int);
CREATE TABLE settings (name text);
INSERT INTO settings VALUES ('theirs'), ('mine'), ('mine too');
ALTER EXTENSION plpgsql ADD TABLE settings;
CREATE TABLE internals (id int);
ALTER EXTENSION plpgsql ADD TABLE internals;
UPDATE pg_extension SET extconfig = ARRAY['settings'::regclass::oid],
 extcondition = ARRAY['WHERE name LIKE ''mine%'''] WHERE extname = 'plpgsql';
"""
ROWS = {
    "public.parent": 7,
    "public.child": 5,
    "public.split_eu": 20,
    "public.split_us": 10,
    "public.computed": 4,
    "public.no_columns": 2,
    "public.unlogged": 1,
    "public.empty": 0,
    "Select.Order": 5,
    'public."quote""d.and\ndotted"': 1,
    "public.日本語 é": 1,
    "public.wide": 1,
    "public.settings": 2,
    "preflight.journal": 0,
    "preflight.migrations": 0,
}


def test_rows_of_odd_tables_are_counted(
    run: Run, database: servers.Database, backup_dir: Path
) -> None:
    """Those pg_dump dumps, under their own names: of an extension only what is the user's."""
    database.script(SCHEMA)
    result = run()

    assert 0 == result.code, str(result)
    assert ROWS == manifest(only(backup_dir))["rows"]


def test_rows_of_foreign_tables_stay_where_they_are(
    run: Run, database: servers.Database, backup_dir: Path
) -> None:
    """A dump holds their definition; nobody connects to the other server."""
    database.script(
        """CREATE EXTENSION postgres_fdw;
        CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '1');
        CREATE FOREIGN TABLE distant (id int) SERVER far;"""
    )
    result = run()

    assert 0 == result.code, str(result)
    assert "public.distant" not in manifest(only(backup_dir))["rows"]


@pytest.mark.parametrize(
    "env",
    [
        {"PGCLIENTENCODING": "LATIN1"},
        {"DATABASE_URL": "postgresql://?client_encoding=LATIN1"},
    ],
    ids=["variable", "option"],
)
def test_encoding_meant_for_the_app_does_not_reach_the_dump(
    env: dict[str, str], run: Run, database: servers.Database
) -> None:
    """Names would be spelled another way there, and what LATIN1 lacks could not be dumped."""
    database.script("CREATE TABLE \"café\" (word text); INSERT INTO \"café\" VALUES ('日'), ('b')")

    result = run("backup", env=env)

    assert 0 == result.code, str(result)
    assert 2 == result.event("backup.verified")[0]["rows"]


def test_option_that_only_a_newer_client_knows_does_not_reach_pg_dump(run: Run) -> None:
    """Ours has libpq 18, pg_dump may be older; what it does not need is not said to it."""
    options = "min_protocol_version=3.0&max_protocol_version=latest&load_balance_hosts=random"
    env = {"DATABASE_URL": f"postgresql://?{options}&sslkeylogfile=/nowhere/keys"}
    result = run("backup", env={"PATH": program.path(17), **env})

    assert 0 == result.code, str(result)


def test_encoding_that_is_set_on_the_server_does_not_reach_the_dump(
    run: Run, server: servers.Server, database: servers.Database
) -> None:
    """A setting of the database is for its app; one byte that LATIN1 lacks would end the dump."""
    database.script("CREATE TABLE \"café\" (word text); INSERT INTO \"café\" VALUES ('日'), ('b')")
    with server.connect() as connection:
        connection.execute(
            f"ALTER DATABASE {database.name} SET client_encoding = 'LATIN1'".encode()
        )

    result = run("backup")

    assert 0 == result.code, str(result)
    assert 2 == result.event("backup.verified")[0]["rows"]


def test_names_in_another_encoding_are_found_in_the_dump(
    run: Run, server: servers.Server, create_database: CreateDatabase, backup_dir: Path
) -> None:
    """The archive of a LATIN1 database is in LATIN1."""
    database = create_database(
        server, None, "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    )
    database.query("CREATE TABLE café AS SELECT 'né' AS note")
    result = run(env=database.env())

    assert 0 == result.code, str(result)
    assert 1 == manifest(only(backup_dir))["rows"]["public.café"]


def test_backup_restores_with_the_same_rows(
    run: Run,
    any_server: servers.Server,
    database: servers.Database,
    create_database: CreateDatabase,
    backup_dir: Path,
) -> None:
    """Client 18 is the normal case for every server, and the manifest can be held against it."""
    database.script(ITEMS)
    result = run()
    assert 0 == result.code, str(result)

    copy = create_database(any_server)
    restored = subprocess.run(
        [
            servers.client_bin(18) / "pg_restore",
            f"--dbname={copy.conninfo()}",
            only(backup_dir) / "database.dump",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    errors = re.findall(r"Command was: (.*)", restored.stderr)
    known = ["SET transaction_timeout = 0;"] if any_server.major < 17 else []

    assert known == errors
    assert manifest(only(backup_dir))["rows"] == {
        "public.items": copy.query("SELECT count(*) FROM items")[0],
        "preflight.migrations": copy.query("SELECT count(*) FROM preflight.migrations")[0],
        "preflight.journal": copy.query("SELECT count(*) FROM preflight.journal")[0],
    }


# --- the clients ----------------------------------------------------------------------------------


@pytest.fixture
def old(
    running: Callable[[int], servers.Server], create_database: CreateDatabase
) -> servers.Database:
    """Give a database on the oldest server that all three clients can dump."""
    return create_database(running(16))


@pytest.mark.parametrize(("client", "compression"), [(16, "gzip"), (17, "zstd"), (18, "gzip")])
def test_compression_is_what_the_client_was_built_with(
    run: Run, old: servers.Database, backup_dir: Path, client: int, compression: str
) -> None:
    """The best it has; asking for more than it has loses no run."""
    result = run(env={**old.env(), "PATH": program.path(client)})
    assert 0 == result.code, str(result)

    listed = subprocess.run(
        [servers.client_bin(client) / "pg_restore", "--list", only(backup_dir) / "database.dump"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert [compression] == re.findall(r"Compression: (\w+)", listed.stdout)


def test_clients_that_know_only_numbers_compress_too(
    run: Run, fakes: Fakes, backup_dir: Path
) -> None:
    """Clients 13 to 15 refuse `--compress=zstd:1` in words of their own."""
    fakes.write(
        """case "$*" in *zstd*)
        echo 'pg_dump: error: invalid value "zstd:1" for option -Z/--compress' >&2; exit 1;; esac
        exec "$REAL" "$@" """
    )
    result = run(env={"PATH": fakes.path})

    assert 0 == result.code, str(result)
    assert "read" == manifest(only(backup_dir))["verified"]


@pytest.mark.fault("C052")
def test_client_older_than_the_server_is_refused_before_anything_starts(
    run: Run, database: servers.Database, backup_dir: Path
) -> None:
    """And the hint names the image that can."""
    result = run(env={"PATH": program.path(16)})

    assert (23, "backup.client_too_old") == (result.code, result.finished["error"]["code"])
    assert f"pg{database.server.major}" in result.finished["error"]["hint"]
    assert [] == result.event("backup.started")
    assert [] == list(backup_dir.iterdir())


@pytest.mark.fault("C053")
def test_missing_client_is_refused(run: Run, database: servers.Database) -> None:
    """Without pg_dump there is no backup, and without a backup no migration."""
    result = run(env={"PATH": "/nowhere"})

    assert (23, "backup.no_client") == (result.code, result.finished["error"]["code"])
    assert "pg_dump and pg_restore" in result.finished["error"]["message"]
    assert [None] == database.query("SELECT to_regclass('one')::text")


RECORD = """
tr '\\0' '\\n' < /proc/$$/cmdline > "$HERE/argv"
env > "$HERE/environ"
[ -n "$PGPASSFILE" ] && stat -c '%a %F' "$PGPASSFILE" > "$HERE/mode"
[ -n "$PGPASSFILE" ] && cp "$PGPASSFILE" "$HERE/content" && echo "$PGPASSFILE" > "$HERE/location"
exec "$REAL" "$@"
"""


@pytest.mark.fault("F144")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and GNU stat")
def test_password_is_in_a_private_file_and_nowhere_else(
    run: Run, database: servers.Database, fakes: Fakes, backup_dir: Path, termination_log: Path
) -> None:
    """Not where `ps`, a log, a manifest, the history or the name of a file would show it."""
    fakes.write(RECORD)
    secret = servers.PASSWORD
    result = run(env={"PATH": fakes.path})
    recorded = {name: text.decode() for name, text in contents(fakes.here).items()}
    history = database.query(
        "SELECT row_to_json(m)::text FROM preflight.migrations m"
        " UNION ALL SELECT row_to_json(j)::text FROM preflight.journal j"
    )

    assert 0 == result.code, str(result)
    assert "600 regular file\n" == recorded["mode"]
    escaped = secret.replace("\\", "\\\\").replace(":", "\\:")
    assert f"*:*:*:*:{escaped}\n" == recorded["content"]
    location = Path(recorded["location"].strip())
    assert backup_dir not in location.parents
    assert not location.exists()
    public = [
        recorded["argv"],
        recorded["environ"],
        result.stdout,
        result.stderr,
        termination_log.read_text(),
        (only(backup_dir) / "manifest.json").read_text(),
        only(backup_dir).name,
        *history,
    ]
    shown = [secret, json.dumps(secret)[1:-1], escaped]
    assert [] == [text for text in public for form in shown if form in text]


PASSWORDS = ["plain", " edges ", "a:b\\c\\\\:", "'\"`$(x)", "%40@/?#&=", "né日本", "*:*:*:*:x"]


@pytest.mark.fault("F142")
@pytest.mark.parametrize("password", PASSWORDS)
def test_any_password_reaches_pg_dump(run: Run, database: servers.Database, password: str) -> None:
    """Spaces at its ends, what a passfile escapes, what a shell or a URL would read otherwise."""
    role = sql.Identifier(f"{database.name}_role")
    database.query(
        sql.SQL("CREATE ROLE {} LOGIN SUPERUSER PASSWORD {}").format(role, sql.Literal(password))
    )
    try:
        result = run(env={"PGUSER": f"{database.name}_role", "PGPASSWORD": password})
    finally:
        database.query(sql.SQL("REASSIGN OWNED BY {} TO postgres").format(role))
        database.query(sql.SQL("DROP ROLE {}").format(role))

    assert 0 == result.code, str(result)
    assert 1 == len(result.event("backup.verified"))


# --- what the others do meanwhile -----------------------------------------------------------------


@pytest.mark.usefixtures("items")
def test_rows_written_after_the_snapshot_are_neither_counted_nor_dumped(
    start: Start, database: servers.Database, fakes: Fakes, backup_dir: Path
) -> None:
    """Counts and dump are of one moment, so that a difference always means something."""
    fakes.hold()
    process = start(env={"PATH": fakes.path})
    process.wait_for_event("backup.started")
    database.script("INSERT INTO items VALUES (0, 'late'); CREATE TABLE late (id int);")
    fakes.let_go()
    result = process.wait()

    assert 0 == result.code, str(result)
    assert 2000 == manifest(only(backup_dir))["rows"]["public.items"]
    assert "public.late" not in manifest(only(backup_dir))["rows"]


@pytest.mark.usefixtures("items")
def test_writers_do_not_disturb_the_counts(
    run: Run, database: servers.Database, backup_dir: Path
) -> None:
    """An application writes all the time."""
    over, written = threading.Event(), []

    def write() -> None:
        with database.server.connect(database.name) as session:
            while not over.is_set():
                session.execute("INSERT INTO items SELECT max(id) + 1, 'new' FROM items")
                session.execute("DELETE FROM items WHERE id = (SELECT min(id) FROM items)")
                written.append(1)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        result = run()
    finally:
        over.set()
        writer.join()

    assert 0 == result.code, str(result)
    assert written
    assert manifest(only(backup_dir))["rows"]["public.items"] in (2000, 2001)


@pytest.mark.usefixtures("items")
def test_truncate_cannot_empty_the_dump(
    start: Start, database: servers.Database, fakes: Fakes, backup_dir: Path
) -> None:
    """TRUNCATE is seen by older snapshots; the tables are locked before the snapshot is taken."""
    fakes.hold()
    process = start(env={"PATH": fakes.path})
    process.wait_for_event("backup.started")
    with pytest.raises(psycopg.errors.LockNotAvailable):
        database.script("SET lock_timeout = '50ms'; TRUNCATE items;")
    fakes.let_go()
    result = process.wait()

    assert 0 == result.code, str(result)
    assert 2000 == manifest(only(backup_dir))["rows"]["public.items"]


@pytest.mark.usefixtures("items")
def test_tables_are_locked_before_the_snapshot_is_taken(
    start: Start, server: servers.Server, database: servers.Database, backup_dir: Path
) -> None:
    """Else a TRUNCATE in between is in the snapshot and yet empties the table that is dumped."""
    held = faults.Held(b"pg_export_snapshot")
    with faults.through(server, held) as proxy:
        process = start(env=proxy.env())
        assert held.reached.wait(60)
        with pytest.raises(psycopg.errors.LockNotAvailable):
            database.script("SET lock_timeout = '50ms'; TRUNCATE items;")
        held.free.set()
        result = process.wait()

    assert 0 == result.code, str(result)
    assert 2000 == manifest(only(backup_dir))["rows"]["public.items"]


@pytest.mark.usefixtures("items")
def test_row_written_after_the_snapshot_is_neither_dumped_nor_counted(
    start: Start, server: servers.Server, database: servers.Database, backup_dir: Path
) -> None:
    """Both look at one moment, however long after it they begin."""
    held = faults.Held(b"SAVEPOINT one")
    with faults.through(server, held) as proxy:
        process = start(env=proxy.env())
        assert held.reached.wait(60)
        database.script("INSERT INTO items VALUES (9999, 'late')")
        held.free.set()
        result = process.wait()

    assert 0 == result.code, str(result)
    assert [] == result.event("backup.progressed")
    assert 2000 == manifest(only(backup_dir))["rows"]["public.items"]


WAITING = "SELECT 1 FROM pg_locks l WHERE NOT granted AND relation = 'items'::regclass"


@pytest.mark.usefixtures("items")
def test_writer_that_queues_between_our_session_and_pg_dump_gets_its_turn(
    start: Start, database: servers.Database, fakes: Fakes, backup_dir: Path
) -> None:
    """It waits for us, pg_dump for it: no deadlock that a server would see. We step back."""
    fakes.hold()
    process = start(env={"PATH": fakes.path, "PREFLIGHT_LOCK_TIMEOUT_MS": "200"})
    process.wait_for_event("backup.started")
    writer = threading.Thread(target=database.script, args=["TRUNCATE items"])
    writer.start()
    faults.until(lambda: database.query(WAITING), "somebody waits for the table")
    fakes.let_go()
    result = process.wait()
    writer.join()

    assert 0 == result.code, str(result)
    assert 2 <= len(result.event("backup.started"))
    assert 0 == manifest(only(backup_dir))["rows"]["public.items"]


@pytest.mark.fault("C056")
@pytest.mark.usefixtures("items")
def test_table_that_stays_locked_ends_the_run_before_any_migration(
    run: Run, database: servers.Database, backup_dir: Path
) -> None:
    """Code 14: run again. The table and who has it are named."""
    quickly = {"PREFLIGHT_LOCK_TIMEOUT_MS": "50", "PREFLIGHT_LOCK_RETRY_S": "0.5"}
    with psycopg.connect(database.conninfo(application_name="nightly")) as other:
        other.execute("LOCK TABLE items IN ACCESS EXCLUSIVE MODE")
        result = run(env=quickly)
        named = f"items by pid {other.info.backend_pid} (nightly)"

    assert (14, "backup.interrupted") == (result.code, result.finished["error"]["code"])
    assert named in result.finished["error"]["message"]
    assert [None] == database.query("SELECT to_regclass('one')::text")
    assert [] == list(backup_dir.iterdir())


@pytest.mark.fault("C057")
@pytest.mark.usefixtures("items")
def test_changes_under_our_list_of_tables_are_seen(
    start: Start, database: servers.Database, backup_dir: Path
) -> None:
    """While we wait for one table's lock, another is made and the first is dropped."""
    with psycopg.connect(database.conninfo()) as other:
        other.execute("DROP TABLE items")
        process = start(env={"PREFLIGHT_LOCK_TIMEOUT_MS": "10000"})
        faults.until(lambda: database.query(WAITING), "somebody waits for the table")
        database.script("CREATE TABLE young (id int); INSERT INTO young VALUES (1);")
        other.commit()
    result = process.wait()

    assert 0 == result.code, str(result)
    assert {"preflight.journal": 0, "preflight.migrations": 0, "public.young": 1} == manifest(
        only(backup_dir)
    )["rows"]


@pytest.mark.usefixtures("items")
def test_table_made_while_we_wait_for_a_lock_is_dumped(
    start: Start, database: servers.Database, backup_dir: Path
) -> None:
    """It is in the snapshot, so it has to be locked and counted as well."""
    with psycopg.connect(database.conninfo()) as other:
        other.execute("LOCK TABLE items IN ACCESS EXCLUSIVE MODE")
        process = start(env={"PREFLIGHT_LOCK_TIMEOUT_MS": "10000"})
        faults.until(lambda: database.query(WAITING), "somebody waits for the table")
        database.script("CREATE TABLE young (id int); INSERT INTO young VALUES (1);")
    result = process.wait()

    assert 0 == result.code, str(result)
    assert 1 == len(result.event("backup.started"))
    assert 1 == manifest(only(backup_dir))["rows"]["public.young"]


@pytest.mark.usefixtures("items")
def test_backup_holds_no_lock_while_files_are_applied(
    run: Run, migrations: WriteMigrations
) -> None:
    """Else every ALTER TABLE would wait for its own backup."""
    migrations(
        {
            "001_one.sql": """DO $$ BEGIN
            IF EXISTS (SELECT FROM pg_locks WHERE relation = 'items'::regclass) THEN
                RAISE 'somebody holds a lock';
            END IF; END $$;
            ALTER TABLE items ADD price int;"""
        }
    )
    result = run(env={"PREFLIGHT_LOCK_TIMEOUT_MS": "50", "PREFLIGHT_LOCK_RETRY_S": "0"})

    assert 0 == result.code, str(result)


# --- what the role may read -----------------------------------------------------------------------

RIGHTS = """
CREATE SCHEMA closed;
CREATE TABLE closed.secret (id int);
CREATE TABLE open (id int);
CREATE SEQUENCE numbers;
CREATE TABLE rows_of_many (id int);
GRANT USAGE ON SCHEMA closed TO {role};
GRANT SELECT ON closed.secret, open, numbers, rows_of_many TO {role};
GRANT CREATE ON SCHEMA public TO {role};
GRANT CREATE ON DATABASE {database} TO {role};
"""


@pytest.fixture
def role(database: servers.Database) -> Any:  # noqa: ANN401 - a generator of a name
    """Give a role that may read everything, until the test takes something away."""
    name = f"{database.name}_reader"
    known = {"role": sql.Identifier(name), "database": sql.Identifier(database.name)}
    database.query(
        sql.SQL("CREATE ROLE {role} LOGIN PASSWORD {password}").format(
            password=sql.Literal(servers.PASSWORD), **known
        )
    )
    database.query(sql.SQL(RIGHTS).format(**known))
    yield name
    database.query(sql.SQL("DROP OWNED BY {role}").format(**known))
    database.query(sql.SQL("DROP ROLE {role}").format(**known))


def test_role_that_may_read_everything_needs_no_more(run: Run, role: str, backup_dir: Path) -> None:
    """No superuser is needed."""
    result = run(env={"PGUSER": role})

    assert 0 == result.code, str(result)
    assert 0 == manifest(only(backup_dir))["rows"]["closed.secret"]


def test_row_security_of_a_partitioned_table_hides_nothing_from_a_dump(
    run: Run, role: str, database: servers.Database, backup_dir: Path
) -> None:
    """Its rows are read from its parts, whose own row security counts."""
    database.script(
        f"CREATE TABLE parted (id int) PARTITION BY RANGE (id);"
        f"CREATE TABLE part PARTITION OF parted DEFAULT; INSERT INTO parted VALUES (1), (2);"
        f"ALTER TABLE parted ENABLE ROW LEVEL SECURITY; GRANT SELECT ON parted, part TO {role}"
    )
    result = run("backup", env={"PGUSER": role})
    rows = manifest(only(backup_dir))["rows"]["public.part"]
    database.script("ALTER TABLE part ENABLE ROW LEVEL SECURITY")
    hidden = run("backup", env={"PGUSER": role})

    assert (0, 2) == (result.code, rows), str(result)
    assert "backup.row_security" == hidden.finished["error"]["code"], str(hidden)
    assert '"public"."part" ' in hidden.finished["error"]["message"]


@pytest.mark.parametrize("limited", [(1, "no_session"), (2, "interrupted")], ids=str)
def test_role_with_too_few_sessions_is_told_that_a_backup_needs_more(
    run: Run, role: str, database: servers.Database, backup_dir: Path, limited: tuple[int, str]
) -> None:
    """The server is there, so waiting for it is not the advice; pg_dump's is the third."""
    allow, (limit, dotted) = "ALTER ROLE {} CONNECTION LIMIT {}", limited
    database.query(sql.SQL(allow).format(sql.Identifier(role), limit))
    result = run(env={"PGUSER": role, "PREFLIGHT_WAIT_TIMEOUT_S": "1"})

    assert (14, f"backup.{dotted}") == (result.code, result.finished["error"]["code"])
    assert "CONNECTION LIMIT" in result.finished["error"]["hint"]
    assert [] == list(backup_dir.iterdir())


@pytest.mark.fault("C054", "C055")
@pytest.mark.parametrize(
    ("named", "code", "change"),
    [
        ('"public"."open"', "not_readable", "REVOKE SELECT ON open FROM {role}"),
        ('"closed"."secret"', "not_readable", "REVOKE USAGE ON SCHEMA closed FROM {role}"),
        ('"public"."numbers"', "not_readable", "REVOKE SELECT ON numbers FROM {role}"),
        ("large object 4711", "not_readable", "SELECT lo_create(4711)"),
        (
            '"public"."rows_of_many"',
            "row_security",
            "ALTER TABLE rows_of_many ENABLE ROW LEVEL SECURITY",
        ),
        (
            '"public"."rows_of_many"',
            "row_security",
            """ALTER TABLE rows_of_many OWNER TO {role};
            ALTER TABLE rows_of_many ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY""",
        ),
    ],
)
def test_what_the_role_cannot_read_is_named_before_anything_starts(  # noqa: PLR0913, PLR0917 - fixtures
    run: Run,
    database: servers.Database,
    role: str,
    backup_dir: Path,
    named: str,
    code: str,
    change: str,
) -> None:
    """A dump that leaves something out is no backup."""
    database.script(change.format(role=role))
    result = run(env={"PGUSER": role})

    assert (23, f"backup.{code}") == (result.code, result.finished["error"]["code"])
    assert named in result.finished["error"]["message"]
    assert [] == result.event("backup.started")
    assert [] == list(backup_dir.iterdir())
    assert [None] == database.query("SELECT to_regclass('one')::text")


# --- cost and progress ----------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_database(
    start: Start, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Under 64 MB, here with a dump of a good 30 MB and text of more than twice that."""
    database.script(
        """CREATE TABLE noise AS SELECT (SELECT string_agg(sha512((n * 100 + i)::text::bytea), '')
        FROM generate_series(1, 80) i) AS raw FROM generate_series(1, 6500) n"""
    )
    migrations({"001_one.sql": "SELECT pg_advisory_xact_lock(1);"})
    with psycopg.connect(database.conninfo()) as other:
        other.execute("SELECT pg_advisory_xact_lock(1)")
        process = start(env={"PREFLIGHT_LOCK_TIMEOUT_MS": "30000"})
        process.wait_for_event("migration.started")
        status = Path(f"/proc/{process.pid}/status").read_text()
    result = process.wait()
    peak_kb = re.findall(r"VmHWM:\s+(\d+) kB", status)

    assert 0 == result.code, str(result)
    assert result.event("backup.verified")[0]["size_bytes"] > 30e6
    assert int(peak_kb[0]) < 64 * 1024


@pytest.mark.usefixtures("items")
def test_progress_is_told_even_in_silence(start: Start, fakes: Fakes) -> None:
    """Whoever reads the log of a long dump sees that it lives, and how far it is."""
    fakes.hold()
    process = start(env={"PATH": fakes.path})
    told = process.wait_for_event("backup.progressed")
    fakes.let_go()
    result = process.wait()

    assert 0 == result.code, str(result)
    assert (0, 2000, 3) == (told["rows_done"], told["rows"], told["tables"])
    assert "" == result.stderr


@pytest.mark.usefixtures("items")
def test_bar_is_drawn_on_a_terminal(environment: dict[str, str]) -> None:
    """And removed again, so that only the events stay."""
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        process = subprocess.Popen(
            [sys.executable, program.ENTRYPOINT],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=theirs,
        )
        os.close(theirs)
        shown = b""
        try:
            while chunk := terminal.read(4096):
                shown += chunk
        except OSError:  # on Linux: the other end was closed
            pass

    assert 0 == process.wait()
    assert b"\r\x1b[Kbackup " in shown
    assert shown.endswith(b"\r\x1b[K")


# --- no backup ------------------------------------------------------------------------------------


@pytest.mark.fault("C072")
def test_nothing_pending_takes_no_backup_and_needs_no_directory(run: Run, backup_dir: Path) -> None:
    """Every start of every pod comes along here."""
    assert 0 == run().code
    before = contents(backup_dir), backup_dir.stat().st_mtime_ns
    again = run()
    elsewhere = run(env={"PREFLIGHT_BACKUP_DIR": "/nowhere", "PATH": "/nowhere"})

    assert (0, 0) == (again.code, elsewhere.code)
    assert before == (contents(backup_dir), backup_dir.stat().st_mtime_ns)
    assert [] == [name for name in again.names if name.startswith("backup")]


@pytest.mark.fault("C071")
def test_backup_that_is_off_is_a_warning_in_every_run(
    run: Run, database: servers.Database, backup_dir: Path
) -> None:
    """Nobody should find out afterwards."""
    result = run(env={"PREFLIGHT_BACKUP": "off", "PATH": "/nowhere"})

    assert 0 == result.code, str(result)
    assert ["warning"] == [event["level"] for event in result.event("backup.skipped")]
    assert [] == list(backup_dir.iterdir())
    assert [None] == database.query("SELECT backup FROM preflight.migrations")
