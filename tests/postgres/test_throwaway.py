"""The proof runs on a server of the job's own: production gives a dump, and knows no more of it."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from preflight.rehearsal import confined, local
from tests import faults, program, servers
from tests.conftest import CreateDatabase, Run, Start, StartServer, WriteMigrations

MAJOR = 17
PASSWORD = "x"  # noqa: S105 - of a role that lives for a minute
TRYING = f": {servers.SUPERUSER} test_"  # a process of the run's own role, as it calls itself
ONE = {"001_one.sql": "CREATE TABLE one (id int);"}
SLEEPER = {"001_sleeper.sql": "CREATE TABLE slept ();\nSELECT pg_sleep(100);\n"}
MANAGED = """
CREATE SCHEMA extensions AUTHORIZATION {name}_boss;
CREATE EXTENSION pgcrypto SCHEMA extensions; CREATE EXTENSION hstore SCHEMA extensions;
CREATE SCHEMA auth AUTHORIZATION {name}_admin;
CREATE TABLE auth.users (id int PRIMARY KEY, secret text);
INSERT INTO auth.users SELECT n, md5(n::text) FROM generate_series(1, 1000) n;
ALTER TABLE auth.users OWNER TO {name}_admin;
CREATE FUNCTION auth.hello() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1';
ALTER FUNCTION auth.hello() OWNER TO {name}_boss;
CREATE FUNCTION auth.watch() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN NULL; END';
CREATE EVENT TRIGGER {name}_watch ON ddl_command_end EXECUTE FUNCTION auth.watch();
ALTER EVENT TRIGGER {name}_watch OWNER TO {name}_boss;
ALTER DEFAULT PRIVILEGES FOR ROLE {name}_admin GRANT SELECT ON TABLES TO {name}_reader;
CREATE PUBLICATION everything FOR ALL TABLES;
GRANT USAGE ON SCHEMA auth TO {name}_app; GRANT SELECT ON auth.users TO {name}_app;
CREATE SCHEMA app AUTHORIZATION {name}_app;
CREATE TABLE app.mine (id int PRIMARY KEY, tags extensions.hstore);
INSERT INTO app.mine VALUES (1, 'a=>1'), (2, 'b=>2');
ALTER TABLE app.mine OWNER TO {name}_app;
"""
BIG = """
CREATE TABLE big AS SELECT n, md5(n::text) FROM generate_series(1, {}) n;
ALTER TABLE big ADD PRIMARY KEY (n)
"""


@pytest.fixture(scope="session")
def installed() -> Iterator[Path]:
    """Give the programs as the full image has them: beside each other, with a cluster to copy."""
    try:
        bare = servers.installation(MAJOR)
    except servers.Unavailable as reason:
        pytest.skip(f"no PostgreSQL {MAJOR}: {reason}")
    home = Path(tempfile.mkdtemp(prefix="pg-preflight-full-", dir="/tmp"))
    home.chmod(0o755)
    (home / "bin").mkdir(mode=0o755)
    for name in ("postgres", "pg_dump", "pg_restore"):
        (home / "bin" / name).symlink_to(bare / "bin" / name)
    found = dataclasses.replace(local.find(MAJOR, str(bare / "bin" / "pg_dump"), ""), template=None)
    scratch = home / "scratch"
    scratch.mkdir(mode=0o777)
    scratch.chmod(0o777)
    with local.started(found, scratch, "template", need=0) as server:
        where = make_conninfo(**server.target())
        with psycopg.connect(where, autocommit=True) as session:
            session.execute("DROP DATABASE postgres")  # as image/assemble.py does
        server.end()
        (server.data / "postmaster.pid").unlink(missing_ok=True)
        shutil.copytree(server.data, home / local.TEMPLATE, copy_function=shutil.copyfile)
    yield home
    shutil.rmtree(home)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Give the directory that PREFLIGHT_REHEARSE_DIR names, which the server's user can enter."""
    made = Path(tempfile.mkdtemp(prefix="pg-preflight-scratch-", dir="/tmp"))
    made.chmod(0o777)
    yield made
    shutil.rmtree(made)


@pytest.fixture(autouse=True)
def settings(environment: dict[str, str], scratch: Path, installed: Path) -> None:
    """Begin with a database that was made by hand, and rehearse on a server of our own."""
    environment["PREFLIGHT_FIRST_CONTACT"] = "pending"
    environment["PREFLIGHT_REHEARSE"] = "always"
    environment["PREFLIGHT_REHEARSE_ON"] = "local"
    environment["PREFLIGHT_REHEARSE_DIR"] = str(scratch)
    environment["PATH"] = os.pathsep.join([str(installed / "bin"), "/usr/bin", "/bin"])


def verified(backup_dir: Path) -> list[str]:
    """Return how far each backup is verified, the oldest first."""
    found = [json.loads(each.read_bytes()) for each in backup_dir.glob("[!.]*/manifest.json")]
    return [each["verified"] for each in sorted(found, key=lambda each: each["sequence"])]


def reasons(result: program.Result) -> list[str]:
    """Return why nothing was rehearsed."""
    return [each["reason"] for each in result.event("rehearsal.skipped")]


def wal(database: servers.Database) -> int:
    """Return how much WAL a server has ever written."""
    (found,) = database.query("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::int8")
    return int(found)


def postmaster(scratch: Path) -> int:
    """Return the pid of the server that lives in a directory, 0 for none yet."""
    for each in scratch.glob(".*/data/postmaster.pid"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int(each.read_text().splitlines()[0])
    return 0


def backends(scratch: Path, doing: str) -> list[int]:
    """Return the processes of that server whose title says what they do."""
    found = []
    for pid in faults.processes_in(scratch):
        with contextlib.suppress(OSError):
            if doing in Path(f"/proc/{pid}/cmdline").read_text(errors="replace"):
                found.append(pid)
    return found


@pytest.fixture
def managed(
    server: servers.Server, database: servers.Database, environment: dict[str, str]
) -> Iterator[servers.Database]:
    """Give a database as a provider sells it: an app's role that may do little, and his own."""
    name = database.name
    with server.connect() as connection:
        for statement in (
            f"CREATE ROLE {name}_app LOGIN PASSWORD '{PASSWORD}' NOCREATEDB",
            f"CREATE ROLE {name}_admin CREATEROLE",
            f"CREATE ROLE {name}_boss SUPERUSER",
            f"CREATE ROLE {name}_reader",
            f"GRANT {name}_reader TO {name}_app",
            f"GRANT CREATE ON DATABASE {name} TO {name}_app",
        ):
            connection.execute(statement.encode())
    database.script(MANAGED.replace("{name}", name))
    environment |= database.env(user=f"{name}_app", password=PASSWORD)
    yield database
    with server.connect() as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
        for role in ("app", "admin", "boss", "reader"):
            connection.execute(f"DROP ROLE {name}_{role}".encode())


# --- what it is for -------------------------------------------------------------------------------


def test_role_that_may_not_create_a_database_proves_what_others_own(
    managed: servers.Database, run: Run, migrations: WriteMigrations, backup_dir: Path
) -> None:
    """Schemas, extensions, event triggers of a provider: on the live server it could never be."""
    migrations({"001_one.sql": "ALTER TABLE app.mine ADD note text DEFAULT auth.hello()::text;"})
    elsewhere = run("backup", env={"PREFLIGHT_REHEARSE_ON": "server"})
    result = run()

    assert "may not create a database" in elsewhere.finished["error"]["message"]
    assert (0, ["001_one"]) == (result.code, result.finished["applied"]), result
    assert ["read", "restored"] == verified(backup_dir)
    (started,), (passed,) = result.event("rehearsal.started"), result.event("rehearsal.passed")
    assert (managed.name, "local", None) == (
        started["database"],
        started["where"],
        started["fidelity"],
    )
    assert ("local", None) == (passed["where"], passed["wal_bytes"])
    assert "" == result.stderr  # no library speaks beside the log


def test_right_that_the_role_lacks_is_found_on_the_copy(
    managed: servers.Database, run: Run, migrations: WriteMigrations
) -> None:
    """The copy is restored by a superuser, but the files run as the run's own role.

    What a provider lets his customers do is no right on what others own.
    """
    managed.script(f"CREATE ROLE rds_superuser; GRANT rds_superuser TO {managed.name}_app")
    migrations({"001_one.sql": "SELECT 1;\nALTER TABLE auth.users ADD note text;"})
    result = run()
    managed.script("DROP ROLE rds_superuser")

    error = result.finished["error"]
    assert (27, "rehearsal.failed", "42501") == (result.code, error["code"], error["sqlstate"])
    assert ("001_one.sql", 2) == (error["file"], error["line"])
    assert [0] == managed.query("SELECT count(*) FROM preflight.migrations")


def test_right_of_a_superuser_that_a_provider_gives_is_no_fault_of_the_file(
    managed: servers.Database, run: Run, migrations: WriteMigrations
) -> None:
    """Its patched server lets the members of its role do it; who is none of them is told."""
    migrations({"001_one.sql": "SET session_replication_role = replica;"})
    refused = run("plan", "--rehearse")
    managed.script(f"CREATE ROLE rds_superuser; GRANT rds_superuser TO {managed.name}_app")
    excused = run("plan", "--rehearse")
    managed.script("DROP ROLE rds_superuser")

    found = [each.finished["error"]["code"] for each in (refused, excused)]
    assert ["rehearsal.failed", "rehearsal.unavailable"] == found


def test_production_writes_no_wal_for_its_copy(
    run: Run, database: servers.Database, migrations: WriteMigrations, backup_dir: Path
) -> None:
    """Nor has it room, a database or a session of it: it gives a dump."""
    database.script(BIG.format(200_000))
    database.query("VACUUM (FREEZE, ANALYZE) big")
    migrations(ONE)
    before = wal(database)
    result = run()
    written = wal(database) - before

    assert (0, ["restored"]) == (result.code, verified(backup_dir)), result
    assert written < 1_000_000
    assert [] == database.query(
        "SELECT 1 FROM preflight.journal WHERE event IN ('rehearsing', 'rehearsed')"
    )


def test_cluster_is_made_while_the_dump_is_written(
    run: Run, migrations: WriteMigrations, tmp_path: Path, installed: Path, scratch: Path
) -> None:
    """Here pg_dump waits for it; and what its version is it has to say once."""
    migrations(ONE)
    said = tmp_path / "said"
    wrapper = tmp_path / "pg_dump"
    wrapper.write_text(f"""#!/bin/sh
[ "$1" = --version ] && echo asked >> {said} && exec {installed}/bin/pg_dump "$@"
for _ in $(seq 600); do
 [ -n "$(find {scratch} -path '*/data/global/pg_control')" ] && exec {installed}/bin/pg_dump "$@"
 sleep 0.05
done
exit 9
""")
    wrapper.chmod(0o755)
    path = f"{tmp_path}:{installed}/bin:/usr/bin:/bin"
    result = run(env={"PATH": path})

    assert 0 == result.code, result
    assert ["asked"] == said.read_text().split()
    assert [] == list(scratch.iterdir())


def test_failed_dump_leaves_no_cluster(
    run: Run, migrations: WriteMigrations, tmp_path: Path, installed: Path, scratch: Path
) -> None:
    """What was made for a copy meanwhile goes with it."""
    migrations(ONE)
    wrapper = tmp_path / "pg_dump"
    wrapper.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && exec {installed}/bin/pg_dump "$@"\nexit 9\n'
    )
    wrapper.chmod(0o755)
    result = run(env={"PATH": f"{tmp_path}:{installed}/bin:/usr/bin:/bin"})

    assert (23, []) == (result.code, list(scratch.iterdir())), result


def test_only_what_the_database_holds_is_analyzed_on_the_copy(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """The system's sixty tables are as the server came, unless the database made them grow."""
    database.script("CREATE TABLE zoo AS SELECT 7 AS id FROM generate_series(1, 100)")
    counts = "'zoo'::regclass, 'pg_class'::regclass, 'pg_amop'::regclass"
    seen = f"""DO $$ BEGIN ASSERT '{{1,0,0}}' = (
        SELECT array_agg(pg_stat_get_analyze_count(oid)) FROM unnest(ARRAY[{counts}]) oid);
        END $$;"""
    migrations({"001_one.sql": seen})
    result = run("plan", "--rehearse")

    assert 0 == result.code, result


def test_wrapped_command_finds_postgres_where_the_image_has_none(
    run: Run, database: servers.Database
) -> None:
    """Many tools look at that database first, and ours is there while the copy is another's."""
    look = (
        "import psycopg; psycopg.connect(dbname='postgres').close();"
        "psycopg.connect(autocommit=True).execute('CREATE TABLE one (id int)')"
    )
    options = ("--rehearse", "--always", "--trust-environment")

    found = run("plan", *options, "--", sys.executable, "-c", look, env=database.env())

    assert 0 == found.code, found
    assert ["local"] == [each["where"] for each in found.event("wrap.rehearsed")]


def test_nothing_is_left_where_the_server_was(
    run: Run, migrations: WriteMigrations, scratch: Path
) -> None:
    """Neither when the files pass nor when one fails."""
    migrations(ONE)
    assert 0 == run().code
    migrations({"002_two.sql": "SELECT 1 / 0;"})
    assert 27 == run().code

    assert [] == list(scratch.iterdir())
    assert [] == faults.processes_in(scratch)


def test_size_is_no_limit_where_production_has_no_part_in_it(
    run: Run, migrations: WriteMigrations
) -> None:
    """REHEARSE_MAX_MB protects the live server, REHEARSE_WAL_MB_PER_MIN its replicas."""
    migrations(ONE)
    limits = {"PREFLIGHT_REHEARSE_MAX_MB": "0", "PREFLIGHT_REHEARSE_WAL_MB_PER_MIN": "1"}
    result = run(env={**limits, "PREFLIGHT_REHEARSE": "auto"})

    assert (0, []) == (result.code, reasons(result))


def test_partial_is_not_what_always_demands_unless_it_is_accepted(
    run: Run, database: servers.Database, migrations: WriteMigrations, backup_dir: Path
) -> None:
    """27; with PREFLIGHT_REHEARSE_PARTIAL=accept the duplicate is found, in little room."""
    database.script(
        f"{BIG.format(200_000)}; CREATE TABLE small AS SELECT 1 AS n FROM generate_series(1, 2)"
    )
    migrations({"001_one.sql": "CREATE UNIQUE INDEX ON small (n);"})
    room = {"PREFLIGHT_REHEARSE_DIR_MB": "302"}
    refused = run(env=room)
    accepted = run(env=room | {"PREFLIGHT_REHEARSE_PARTIAL": "accept"})

    assert (27, "rehearsal.unavailable") == (refused.code, refused.finished["error"]["code"])
    assert "PREFLIGHT_REHEARSE_PARTIAL=accept" in refused.finished["error"]["message"]
    assert (27, "23505") == (accepted.code, accepted.finished["error"].get("sqlstate")), accepted
    assert ["read"] * 2 == verified(backup_dir)


@pytest.mark.parametrize(
    ("command", "room_mb"),
    [("backup", "302"), ("up", "64")],
    ids=["no files", "no room for a row"],
)
def test_partial_rehearsal_is_not_advised_where_it_would_not_help(
    run: Run, database: servers.Database, migrations: WriteMigrations, command: str, room_mb: str
) -> None:
    """27 again would be the answer to who does what is said."""
    database.script(BIG.format(20_000))
    migrations(ONE)
    room = {"PREFLIGHT_REHEARSE_DIR_MB": room_mb}
    accepted = {"PREFLIGHT_REHEARSE_PARTIAL": "accept"}
    found = [run(command, env=room | partial) for partial in ({}, accepted)]

    assert [(27, "rehearsal.unavailable")] * 2 == [
        (each.code, each.finished["error"]["code"]) for each in found
    ], found
    assert "PREFLIGHT_REHEARSE_PARTIAL" not in found[0].finished["error"]["message"]


# --- what is tried there --------------------------------------------------------------------------


def test_what_stays_inside_the_server_is_tried_there(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Roles, rights and settings of databases and parameters: all of it is thrown away.

    What a file gives new sessions, the next one has on the copy as it will have it in earnest.
    """
    name = database.name
    migrations(
        {
            "001_one.sql": f"CREATE ROLE {name}_made; GRANT {name}_made TO CURRENT_USER;\n"
            f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC;\n"
            f"ALTER DATABASE {name} SET work_mem = '5MB';\n"
            f"GRANT SET ON PARAMETER log_duration TO {name}_made;\nSELECT 1 / 0;",
        }
    )
    failed = run()
    roles = database.query("SELECT 1 FROM pg_roles WHERE rolname LIKE '%_made'")
    migrations(
        {
            "001_one.sql": f"CREATE ROLE {name}_made; CREATE SCHEMA made;\n"
            f"ALTER DATABASE {name} SET search_path = made;",
            "001_one_rollback.sql": f"DROP ROLE {name}_made; DROP SCHEMA made;\n"
            f"ALTER DATABASE {name} RESET search_path;",
            "002_two.sql": "CREATE TABLE two (); DROP TABLE made.two; CREATE TABLE two ();",
            "002_two_rollback.sql": "DROP TABLE made.two;",
        }
    )
    result = run()
    database.script(f"DROP ROLE {name}_made")

    assert (27, 5) == (failed.code, failed.finished["error"]["line"]), failed
    assert [] == roles
    assert 0 == result.code, str(result)
    assert ["002_two", "001_one"] == result.event("rehearsal.passed")[0]["rollbacks_tried"]


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("COPY (SELECT 1) TO PROGRAM 'cat > /dev/null'", "a program or a file of the server"),
        ("DO $$ BEGIN PERFORM dblink_exec('x', 'y'); END $$", "dblink_exec"),
        ("ALTER SUBSCRIPTION s DISABLE", "connects to another server"),
        (
            "CREATE FOREIGN TABLE IF NOT EXISTS away (i int) SERVER s; INSERT INTO away VALUES (1)",
            "changes the foreign table away",
        ),
    ],
)
def test_what_leaves_the_server_is_not_tried(
    statement: str, reason: str, run: Run, migrations: WriteMigrations
) -> None:
    """27 with `always`, and named: a copy must not do to others what the file will do."""
    migrations({"001_one.sql": f"{statement};"})
    result = run()

    error = result.finished["error"]
    assert (27, "rehearsal.unavailable", 1) == (result.code, error["code"], error["line"]), result
    assert ("001_one", 1) == (error["migration"], error["version"])
    assert reason in error["message"]
    assert [] == result.event("rehearsal.started")


@pytest.mark.parametrize("where", ["local", "server"])
def test_rollback_that_reaches_another_server_is_not_tried(
    where: str,
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    environment: dict[str, str],
) -> None:
    """Nobody asked for it: the rows of a foreign table are the other server's, and stay."""
    host, port = database.server.host, database.server.port
    database.script(f"""
        CREATE EXTENSION postgres_fdw;
        CREATE TABLE near (id int); INSERT INTO near VALUES (1);
        CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw
         OPTIONS (host '{host}', port '{port}', dbname '{database.name}');
        CREATE USER MAPPING FOR CURRENT_USER SERVER far
         OPTIONS (user 'postgres', password {quoted(servers.PASSWORD)});
        CREATE FOREIGN TABLE remote (id int) SERVER far OPTIONS (table_name 'near');
        """)
    environment["PREFLIGHT_REHEARSE_ON"] = where
    migrations(
        {"001_one.sql": "CREATE TABLE one ();", "001_one_rollback.sql": "DELETE FROM remote;"}
    )
    result = run("plan", "--rehearse")

    assert 0 == result.code, result
    assert [] == result.event("rehearsal.passed")[0]["rollbacks_tried"]
    assert [1] == database.query("SELECT id FROM near")


def test_tablespace_is_tried_in_a_directory_of_the_copys_own(
    run: Run, migrations: WriteMigrations, scratch: Path, tmp_path: Path
) -> None:
    """Production's directory may be this machine's: the copy's server leaves it as it is.

    So is a database in it: nobody of ours is in the one that the server copies for that.
    """
    (tmp_path / "targets").write_text('{"name": "one"}\n')
    place = scratch / "place's"
    place.mkdir(mode=0o777)
    place.chmod(0o777)
    if os.geteuid() == 0:
        shutil.chown(place, "nobody")
    head, named = "-- preflight: no-transaction\n", str(place).replace("'", "''")
    made = (
        f"{head}CREATE TABLESPACE made LOCATION '{named}' WITH (seq_page_cost = 2);\n"
        "CREATE TABLE one (id int) TABLESPACE made;\n"
    )
    migrations({"001_one.sql": f"{made}VACUUM gone;"})  # what fails in no transaction ends the run
    failed = run("up", "--targets", str(tmp_path / "targets"))
    undone = f"{head}DROP DATABASE other;\nDROP TABLE one;\nDROP TABLESPACE made;"
    made += "CREATE DATABASE other TABLESPACE made;"
    migrations({"001_one.sql": made, "001_one_rollback.sql": undone})
    result = run("plan", "--rehearse")

    assert (27, 4) == (failed.code, failed.finished["error"]["line"]), failed
    assert 0 == result.code, result
    assert ["001_one"] == result.event("rehearsal.passed")[0]["rollbacks_tried"], result
    (warned,) = result.event("rehearsal.warned")
    assert ("001_one.sql", 2) == (warned["file"], warned["line"])
    assert "directory for a tablespace" in warned["reason"]
    assert [] == list(place.iterdir())


def test_what_nobody_can_read_is_tried_and_said(run: Run, migrations: WriteMigrations) -> None:
    """A text that is put together when it runs: a warning, and the file's own fault is found.

    Another statement of the file that leaves the server is found behind it.
    """
    unread = "DO $$ BEGIN EXECUTE (SELECT 'SELECT 1/' || {}); END $$;"
    done = {"001_one.sql": f"\n{unread.format(1)}", "001_one_rollback.sql": unread.format(1)}
    broken, away = unread.format(0), f"{unread.format(1)} COPY (SELECT 1) TO PROGRAM 'true';"
    results = []
    for files in (done, {"001_one.sql": broken}, {"001_one.sql": away}):
        migrations(files)
        results.append(run("plan", "--rehearse"))

    (warned,) = results[0].event("rehearsal.warned")
    assert ("warning", "001_one.sql", 2) == (warned["level"], warned["file"], warned["line"])
    assert ("001_one", 1) == (warned["migration"], warned["version"])
    assert ["001_one"] == results[0].event("rehearsal.passed")[0]["rollbacks_tried"], results[0]
    assert [0, 27, 27] == [result.code for result in results]
    errors = [result.finished["error"]["code"] for result in results[1:]]
    assert ["rehearsal.failed", "rehearsal.unavailable"] == errors


@pytest.mark.parametrize("how", ["''/etc/pg-preflight''", "PROGRAM ''cat > /etc/pg-preflight''"])
def test_file_that_writes_where_the_copy_may_not_is_not_at_fault(
    how: str, run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """A function of the live database writes a file there: the copy cannot, and says only that."""
    database.script(
        "CREATE FUNCTION write() RETURNS void LANGUAGE plpgsql AS "
        f"$$BEGIN EXECUTE 'COPY (SELECT 1) TO {how}'; END$$"
    )
    migrations({"001_one.sql": "CREATE TABLE one ();\nSELECT write();"})
    result = run("plan", "--rehearse")

    error = result.finished["error"]
    assert (27, "rehearsal.unavailable", 2) == (result.code, error["code"], error["line"]), result


@pytest.mark.skipif(not confined.available(), reason="this kernel has no Landlock (Linux 5.19)")
def test_rows_that_the_copy_may_not_check_say_nothing_of_the_backup(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """A CHECK function that reads a file of production's machine: no copy, but no bad backup."""
    database.script("""
        CREATE FUNCTION readable(text) RETURNS bool LANGUAGE sql
         AS $$SELECT pg_catalog.length(pg_catalog.pg_read_file($1)) >= 0$$;
        CREATE TABLE listed (name text CHECK (readable(name)));
        INSERT INTO listed VALUES ('/etc/hostname');
        """)
    migrations({"001_one.sql": "CREATE TABLE one ();"})
    result = run("plan", "--rehearse")

    error = result.finished["error"]
    assert (27, "rehearsal.unavailable") == (result.code, error["code"]), result
    assert "Permission denied" in error["message"]


def test_partition_of_another_server_keeps_no_statistics_from_the_others(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """What ANALYZE cannot read is left out alone: the file sees every other table's figures."""
    database.script("""
        CREATE EXTENSION postgres_fdw;
        CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '/nowhere');
        CREATE USER MAPPING FOR CURRENT_USER SERVER far;
        CREATE TABLE parted (id int) PARTITION BY LIST (id);
        CREATE TABLE near PARTITION OF parted FOR VALUES IN (1);
        CREATE FOREIGN TABLE away PARTITION OF parted FOR VALUES IN (2) SERVER far;
        CREATE TABLE zoo AS SELECT 7 AS id FROM generate_series(1, 100);
        INSERT INTO near SELECT 1 FROM generate_series(1, 50); ANALYZE near, zoo;
        """)
    seen = """DO $$ BEGIN ASSERT (SELECT array_agg(reltuples::int ORDER BY relname) = '{50,100}'
        FROM pg_class WHERE relname IN ('near', 'zoo')); END $$;"""
    migrations({"001_one.sql": seen})
    result = run("plan", "--rehearse")

    assert 0 == result.code, result


def test_other_servers_cannot_be_reached_from_the_copy(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """It holds production's passwords: a view, a trigger and dblink find nobody with them."""
    host, port = database.server.host, database.server.port
    database.script(f"""
        CREATE EXTENSION postgres_fdw; CREATE EXTENSION dblink;
        CREATE TABLE near (id int); INSERT INTO near VALUES (1); CREATE TABLE log (n int);
        CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw
         OPTIONS (host '{host}', port '{port}', dbname '{database.name}');
        CREATE USER MAPPING FOR CURRENT_USER SERVER far
         OPTIONS (user 'postgres', password {quoted(servers.PASSWORD)});
        CREATE FOREIGN TABLE remote (id int) SERVER far OPTIONS (table_name 'near');
        CREATE FUNCTION spread() RETURNS trigger LANGUAGE plpgsql AS
         $$BEGIN PERFORM dblink_exec('far', 'DELETE FROM near'); RETURN NEW; END$$;
        CREATE TRIGGER spreading BEFORE INSERT ON log FOR EACH ROW EXECUTE FUNCTION spread();
        """)
    said = []
    for text in ("SELECT * FROM remote;", "INSERT INTO log VALUES (1);"):
        migrations({"001_one.sql": f"CREATE TABLE one ();\n{text}"})
        result = run("plan", "--rehearse")
        said.append((result.code, result.finished["error"]["line"]))
    migrations(
        {
            "001_one.sql": "ALTER SERVER far OPTIONS (SET host 'elsewhere');\n"
            "ALTER USER MAPPING FOR CURRENT_USER SERVER far OPTIONS (SET password 'new');"
        }
    )
    result = run("plan", "--rehearse")

    assert [(27, 2), (27, 2)] == said
    assert [1] == database.query("SELECT id FROM near")
    assert 0 == result.code, result


def quoted(text: str) -> str:
    """Return a text as a literal."""
    return "E'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


@pytest.mark.parametrize(
    ("name", "error"),
    [("neighbour", "rehearsal.unavailable"), ("no_such_database", "rehearsal.failed")],
)
def test_database_that_only_the_live_server_has_is_no_fault_of_the_file(  # noqa: PLR0913, PLR0917 -- a case each
    name: str,
    error: str,
    run: Run,
    server: servers.Server,
    create_database: CreateDatabase,
    migrations: WriteMigrations,
) -> None:
    """A neighbour's is not on the copy's server; one that nobody has is a mistake of the file."""
    create_database(server, "neighbour")
    migrations(
        {"001_one.sql": f"SELECT 1;\nALTER DATABASE {name} SET work_mem = '5MB';\nSELECT 1 / 0;"}
    )
    result = run()

    found = result.finished["error"]
    assert (27, error, 2) == (result.code, found["code"], found["line"]), result


def test_wal_level_of_the_live_server_is_there_for_a_file_that_asks(
    run: Run, migrations: WriteMigrations
) -> None:
    """A restore point needs WAL that the restore has no need of."""
    migrations({"001_one.sql": "SELECT pg_create_restore_point('before');"})
    result = run()

    assert 0 == result.code, result
    assert 1 == len(result.event("rehearsal.passed"))


AROUND = """
CREATE ROLE guest LOGIN CONNECTION LIMIT 5 VALID UNTIL '2130-01-01'; COMMENT ON ROLE guest IS 'it';
ALTER ROLE guest SET search_path = app, "T wo"; ALTER ROLE guest SET nobody.knows = 'x';
COMMENT ON DATABASE {name} IS 'ours'; ALTER DATABASE {name} CONNECTION LIMIT 50;
CREATE TABLE parts (id int) PARTITION BY LIST (id) TABLESPACE place;
CREATE INDEX ON parts (id) TABLESPACE place;
CREATE TABLE afar (id int) PARTITION BY LIST (id) TABLESPACE pg_default;
"""
IS_AROUND = """
SELECT 'role' AS suite, rolname AS "check", (rolcanlogin, rolconnlimit, rolvaliduntil) =
 (true, 5, '2130-01-01') AND array_to_string(rolconfig, ' ') =
 'search_path=app, "T wo" nobody.knows=x'
 AND shobj_description(oid, 'pg_authid') = 'it' AS ok FROM pg_roles WHERE rolname = 'guest'
UNION ALL SELECT 'database', datname, datconnlimit = 50
 AND shobj_description(oid, 'pg_database') = 'ours' FROM pg_database WHERE datname = '{name}'
UNION ALL SELECT 'place', c.relname, t.spcname = 'place' FROM pg_class c
 LEFT JOIN pg_tablespace t ON t.oid = c.reltablespace WHERE c.relname LIKE 'part%'
UNION ALL SELECT 'commit', 'one', pg_xact_commit_timestamp(xmin) IS NULL FROM one;
"""


def test_what_is_around_the_database_is_there_for_a_file(
    run: Run,
    start_server: StartServer,
    create_database: CreateDatabase,
    migrations: WriteMigrations,
) -> None:
    """Other roles' limits and settings, comments, tablespaces; a slot's name is asked of it.

    The database lies in a tablespace of its own: only then a table may lie in pg_default by name.
    """
    live = {"track_commit_timestamp": "on", "allow_in_place_tablespaces": "on"}
    database = create_database(start_server(MAJOR, wal_level="logical", **live))
    database.script("CREATE TABLESPACE place LOCATION ''")
    database.script("CREATE TABLESPACE home LOCATION ''")
    there = servers.Database(database.server, "postgres")
    there.script(f"ALTER DATABASE {database.name} SET TABLESPACE home")
    database.script(AROUND.format(name=database.name))
    database.query("SELECT pg_create_logical_replication_slot('drain', 'pgoutput')::text")
    made = "CREATE TABLE part_1 PARTITION OF parts FOR VALUES IN (1);"
    made += "CREATE TABLE one AS SELECT 1 AS id;"
    again = IS_AROUND.format(name=database.name)
    said = []
    for statement in ("SELECT 1", *map("SELECT pg_drop_replication_slot('{}')".format, SLOTS)):
        migrations({"001_one.sql": f"{made}\n{statement};", "001_one_verify.sql": again})
        result = run("plan", "--rehearse", env=database.env())
        said.append(result.finished.get("error", {}).get("code"))

    assert [None, "rehearsal.unavailable", "rehearsal.failed"] == said, result


SLOTS = ("drain", "nobodys")


# --- what only this side lacks --------------------------------------------------------------------


def test_extension_that_only_this_side_lacks_is_named(
    run: Run, database: servers.Database, migrations: WriteMigrations, backup_dir: Path
) -> None:
    """A provider's own version is not in our image; the backup is no worse for that."""
    database.script("CREATE EXTENSION hstore")
    database.script("UPDATE pg_extension SET extversion = '9.9.prov' WHERE extname = 'hstore'")
    migrations(ONE)
    demanded = run()
    result = run(env={"PREFLIGHT_REHEARSE": "auto"})

    assert (27, "rehearsal.unavailable") == (demanded.code, demanded.finished["error"]["code"])
    assert (0, ["001_one"]) == (result.code, result.finished["applied"]), result
    (skipped,) = result.event("rehearsal.skipped")
    assert ["extension hstore"] == skipped["objects"]
    assert "9.9.prov" in skipped["reason"]
    assert ["read", "read"] == verified(backup_dir)


@pytest.mark.parametrize(
    ("major", "options", "text"),
    [
        pytest.param(
            15,
            "LOCALE_PROVIDER icu ICU_LOCALE 'de-u-kn-true' LOCALE 'C'",
            "(SELECT array_agg(v ORDER BY v) FROM t) = ARRAY['a2', 'a10']",
            id="icu",
        ),
        pytest.param(
            17,
            "LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8' LOCALE 'C'",
            "upper('é') = 'É'",
            id="builtin",
        ),
    ],
)
def test_locale_that_no_system_has_is_the_same_on_the_copy(  # noqa: PLR0913, PLR0917 -- fixtures
    run: Run,
    running: Callable[[int], servers.Server],
    create_database: CreateDatabase,
    migrations: WriteMigrations,
    backup_dir: Path,
    major: int,
    options: LiteralString,
    text: str,
) -> None:
    """ICU's and the built-in ones: the copy sorts as the live database does, and says nothing."""
    database = create_database(running(major), options=f"TEMPLATE template0 {options}")
    database.script(
        "CREATE TABLE t (v text PRIMARY KEY, CHECK (v < 'b')); INSERT INTO t VALUES ('a10'), ('a2')"
    )
    migrations(
        {"001_one.sql": f"DO $$ BEGIN IF NOT ({text}) THEN RAISE 'as in C'; END IF; END $$;"}
    )
    path = os.pathsep.join([str(servers.installation(major) / "bin"), program.path()])
    result = run(env={**database.env(), "PATH": path})

    assert (0, ["restored"]) == (result.code, verified(backup_dir)), result
    (passed,) = result.event("rehearsal.passed")
    assert ("local", None) == (passed["where"], passed["fidelity"])


@pytest.fixture
def foreign_server(start_server: StartServer, scratch: Path) -> servers.Server:
    """Give a server of a machine with a locale that this one lacks: letters as in C.UTF-8."""
    locales = scratch / "locales"
    shutil.copytree("/usr/lib/locale/C.utf8", locales / "xx_YY.UTF-8")
    server = start_server()
    server.stop()
    wrapper = server.home / "postgres"
    wrapper.write_text(f'#!/bin/sh\nLOCPATH={locales} exec {server.bin}/postgres "$@"\n', "ascii")
    wrapper.chmod(0o755)
    server.bin = server.home
    server.start()
    return server


def test_locale_of_numbers_that_only_this_side_lacks_is_told(
    run: Run,
    foreign_server: servers.Server,
    create_database: CreateDatabase,
    migrations: WriteMigrations,
    backup_dir: Path,
) -> None:
    """What is read by it fails for no fault of backup or file; one that is here is on the copy."""
    for name, value in {"lc_monetary": "C.UTF-8", "lc_numeric": "xx_YY.UTF-8"}.items():
        foreign_server.configure(**{name: value})
    foreign_server.restart()
    database = create_database(foreign_server)
    database.script("CREATE TABLE t (a text CHECK (current_setting('lc_monetary') = 'C.UTF-8'))")
    database.script("INSERT INTO t VALUES ('1,5')")
    env = {**database.env(), "PREFLIGHT_REHEARSE": "auto"}
    migrations(ONE)
    proven = run(env=env)
    read = "CASE current_setting('lc_numeric') WHEN 'xx_YY.UTF-8' THEN '1' ELSE a END"
    migrations({"002_two.sql": f"CREATE TABLE two AS SELECT ({read})::int FROM t;"})
    tried = run(env=env)
    database.script(f"ALTER TABLE t ADD CHECK (({read})::int > 0)")
    migrations({"003_three.sql": "CREATE TABLE three ();"})
    unproven = run(env=env)

    (passed,) = proven.event("rehearsal.passed")
    assert (0, "lc_numeric") == (proven.code, passed["fidelity"]), proven
    assert (0, 0) == (tried.code, unproven.code), (tried, unproven)
    told = "a locale of the live server is not here (lc_numeric)"
    assert [True] * 2 == [told in reasons(each)[0] for each in (tried, unproven)]
    assert ["restored", "restored", "read"] == verified(backup_dir)


def test_locale_of_numbers_excuses_nothing_else(
    run: Run,
    foreign_server: servers.Server,
    create_database: CreateDatabase,
    migrations: WriteMigrations,
) -> None:
    """Rows that break a rule, a failing verify file and a dump that cannot be restored stay so."""
    foreign_server.configure(lc_numeric="xx_YY.UTF-8")
    foreign_server.restart()
    database = create_database(foreign_server)
    env = {**database.env(), "PREFLIGHT_REHEARSE": "auto"}
    read = "CASE current_setting('lc_numeric') WHEN 'xx_YY.UTF-8' THEN '1' ELSE a END"
    database.script("CREATE TABLE t (a text); INSERT INTO t VALUES ('1,5')")
    migrations(ONE)
    assert 0 == run(env=env).code
    found = []
    for files in (
        {"002_two.sql": "ALTER TABLE t ADD CHECK (a <> '1,5');"},
        {"002_two.sql": "CREATE TABLE two ();", "002_two_verify.sql": FALSE},
        {"002_two.sql": "DO $$ BEGIN RAISE EXCEPTION 'no'; END $$;"},
    ):
        migrations(files)
        found.append(run(env=env).code)
    database.script(f"{BROKEN}; CREATE TABLE n (a text CHECK (({read})::int > 0))")
    database.script("INSERT INTO n VALUES ('1,5')")
    found.append(run(env=env).code)

    assert [27, 27, 27, 24] == found


FALSE = "SELECT 's' AS suite, 'c' AS check, false AS ok;"
# rows that break what is said of them by now, as no dump can be restored
BROKEN: LiteralString = """
CREATE FUNCTION fine(int) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT true';
CREATE TABLE broken (id int CHECK (fine(id))); INSERT INTO broken VALUES (1);
CREATE OR REPLACE FUNCTION fine(int) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT false';
"""


def test_rows_that_ask_for_a_setting_of_the_live_server_say_nothing_of_the_backup(
    run: Run,
    start_server: StartServer,
    create_database: CreateDatabase,
    migrations: WriteMigrations,
) -> None:
    """A CHECK or an index that reads one of its configuration; one that nobody has is 24.

    So is what fails beside it, for no want of its rows.
    """
    server = start_server(MAJOR, **{"app.tenant": "x"})
    migrations(ONE)
    found = []
    for setting, index, beside in (
        ("tenant", "", ""),
        ("tenant", "UNIQUE", ""),
        ("gone", "UNIQUE", ""),
        ("tenant", "", BROKEN),
    ):
        database = create_database(server)
        database.script(beside)
        read = f"current_setting('app.{setting}')"
        check = "" if index else f"CHECK (a = {read})"
        database.script(f"""
            ALTER DATABASE {database.name} SET app.gone = 'x'; SET app.gone = 'x';
            CREATE FUNCTION f(text) RETURNS text IMMUTABLE LANGUAGE sql AS $$SELECT $1 || {read}$$;
            CREATE TABLE t (a text {check}); INSERT INTO t VALUES ('x');
            CREATE {index} INDEX ON t (f(a)); ALTER DATABASE {database.name} RESET app.gone;
            """)
        result = run(env={**database.env(), "PREFLIGHT_REHEARSE": "auto"})
        found.append((result.code, len(reasons(result))))

    assert [(0, 1), (0, 1), (24, 0), (24, 0)] == found


def test_locale_that_only_this_side_lacks_is_told(
    run: Run,
    foreign_server: servers.Server,
    create_database: CreateDatabase,
    migrations: WriteMigrations,
    backup_dir: Path,
) -> None:
    """The copy sorts as C does, and says so; its rows are all there, and it knows their letters.

    What it does not know as the live database does is no fault of a file.
    """
    database = create_database(foreign_server, options=FOREIGN)
    database.script(f"{BIG.format(100)}; CREATE TABLE t AS SELECT '٣' AS v")
    migrations({"001_one.sql": "DO $$ BEGIN ASSERT upper('é') = 'É'; END $$;"})
    result = run(env=database.env())
    migrations({"002_two.sql": f"ALTER TABLE t ADD CHECK ({LETTER});"})
    unlike = run(env={**database.env(), "PREFLIGHT_REHEARSE": "auto"})

    assert (0, ["restored"] * 2) == (result.code, verified(backup_dir)), result
    assert ["collation"] * 2 == [
        each["fidelity"]
        for name in ("rehearsal.started", "rehearsal.passed")
        for each in result.event(name)
    ]
    (skipped,) = unlike.event("rehearsal.skipped")
    assert (0, "warning") == (unlike.code, skipped["level"]), unlike
    assert "sorts as C does" in skipped["reason"]


# what the system takes for a letter, as ISO C wants it, and PostgreSQL's own locale does not: a
# digit of another script
LETTER = "v ~ '^[[:alpha:]]$'"
FOREIGN: LiteralString = "TEMPLATE template0 LOCALE 'xx_YY.UTF-8'"
# as initdb finds it there: no dump holds what is in pg_catalog
COLLATION = (
    "SET allow_system_table_mods = on;"
    "CREATE COLLATION pg_catalog.\"xx_YY\" (provider = libc, locale = 'xx_YY.UTF-8')"
)
BY_LOCALE: list[tuple[LiteralString, str]] = [
    # the database's own
    (FOREIGN, f"CREATE TABLE t (v text CHECK ({LETTER})); INSERT INTO t VALUES ('٣')"),
    (FOREIGN, ("CREATE TABLE t AS SELECT v FROM unnest(ARRAY['٣', '3']) v;"
               f"CREATE UNIQUE INDEX ON t (({LETTER}))")),
    # a column's, or that of an expression anywhere
    ("", 'CREATE TABLE t (v text COLLATE "xx_YY")'),
    ("", 'CREATE TABLE t (v text); CREATE INDEX ON t (v COLLATE "xx_YY")'),
    ("", ("CREATE TABLE t (v text); CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS"
          " 'BEGIN RETURN new; END'; CREATE TRIGGER g BEFORE INSERT ON t FOR EACH ROW"
          " WHEN (new.v COLLATE \"xx_YY\" > 'a') EXECUTE FUNCTION f()")),
]  # fmt: skip


def test_what_a_missing_locale_breaks_is_no_fault_of_the_backup(
    run: Run,
    foreign_server: servers.Server,
    create_database: CreateDatabase,
    migrations: WriteMigrations,
    backup_dir: Path,
) -> None:
    """What PostgreSQL takes there and not here is no 24, nor a warning that blames the database."""
    migrations(ONE)
    results = []
    for options, text in BY_LOCALE:
        database = create_database(foreign_server, options=options)
        database.script(f"{COLLATION}; {text}")
        results.append(run(env={**database.env(), "PREFLIGHT_REHEARSE": "auto"}))

    assert [0] * len(BY_LOCALE) == [result.code for result in results], results
    assert [1] * len(BY_LOCALE) == [len(reasons(result)) for result in results], results
    assert all("locale" in reasons(result)[0] for result in results), results
    assert ["read"] * len(BY_LOCALE) == verified(backup_dir)


def test_dump_that_no_server_can_restore_is_no_backup_here_either(
    run: Run, database: servers.Database, migrations: WriteMigrations, backup_dir: Path
) -> None:
    """24 as on the live server: the throwaway one lacks nothing, and the rows could not be had."""
    database.script(
        "CREATE TABLE a (n int DEFAULT 9); CREATE TABLE b (n int DEFAULT 9);"
        "CREATE TABLE c () INHERITS (a, b); INSERT INTO c VALUES (1);"
        "ALTER TABLE ONLY b ALTER n SET DEFAULT 10"
    )
    migrations(ONE)
    result = run(env={"PREFLIGHT_REHEARSE": "auto"})

    error = result.finished["error"]
    assert (24, "backup.not_restorable") == (result.code, error["code"]), result
    assert "TABLE c " in error["message"]
    assert [] == verified(backup_dir)


@pytest.mark.parametrize(
    ("name", "outcome"), [("ours_alone", "skipped"), ("nobodys", "rehearsal.failed")]
)
def test_extension_that_a_file_makes_and_only_the_live_server_has_is_no_fault_of_the_file(  # noqa: PLR0913, PLR0917 -- a case each
    name: str,
    outcome: str,
    run: Run,
    start_server: StartServer,
    create_database: CreateDatabase,
    migrations: WriteMigrations,
    scratch: Path,
) -> None:
    """The live server is asked whether it has it; what nobody has is a mistake of the file."""
    (scratch / "extension").mkdir()
    (scratch / "extension" / "ours_alone.control").write_text("default_version = '1'\n")
    (scratch / "extension" / "ours_alone--1.sql").write_text("CREATE TABLE ours_alone ();\n")
    server = start_server(18, extension_control_path=f"{scratch}:$system")
    database = create_database(server)
    migrations({"001_one.sql": f"SELECT 1;\nCREATE EXTENSION {name};"})
    env = {"PATH": program.path(18), "PREFLIGHT_REHEARSE": "auto"}
    result = run(env={**database.env(), **env})

    if outcome == "skipped":
        assert (0, ["001_one"]) == (result.code, result.finished["applied"]), result
        assert "which only the throwaway server says" in reasons(result)[0]
        assert 2 == result.event("rehearsal.skipped")[0]["line"]
    else:
        error = result.finished["error"]
        assert (27, outcome, 2) == (result.code, error["code"], error["line"]), result


def test_version_of_an_extension_that_only_the_live_server_has_is_no_fault_of_the_file(
    run: Run,
    start_server: StartServer,
    create_database: CreateDatabase,
    migrations: WriteMigrations,
    scratch: Path,
) -> None:
    """Also where the file names none: the copy would get another one, and say nothing of it."""
    (scratch / "extension").mkdir()
    control = "default_version = '9.9'\nschema = pg_catalog\nrelocatable = false\n"
    (scratch / "extension" / "plpgsql.control").write_text(control)
    (scratch / "extension" / "plpgsql--1.0--9.9.sql").write_text("SELECT 1;\n")
    database = create_database(start_server(18, extension_control_path=f"{scratch}:$system"))
    env = {**database.env(), "PATH": program.path(18)}
    said = []
    for to in ("", " TO '9.9'", " TO '9.8'"):
        migrations({"001_one.sql": f"SELECT 1;\nALTER EXTENSION plpgsql UPDATE{to};"})
        error = run("plan", "--rehearse", env=env).finished["error"]
        said.append((error["code"], error["line"]))

    lacking, wrong = "rehearsal.unavailable", "rehearsal.failed"
    assert [(lacking, 2), (lacking, 2), (wrong, 2)] == said


def test_setting_of_the_live_server_is_on_the_copy_or_no_fault_of_the_file(
    run: Run,
    start_server: StartServer,
    create_database: CreateDatabase,
    migrations: WriteMigrations,
) -> None:
    """Everybody's, and how functions are read, are there; one of its own files is not."""
    live = {"app.tenant": "x", "plpgsql.variable_conflict": "use_column"}
    database = create_database(start_server(MAJOR, **live))
    database.script("""
        ALTER ROLE ALL SET app.everybodys = 'y';
        CREATE TABLE t (id int, a text DEFAULT current_setting('app.tenant'));
        CREATE TABLE u (id int, a text DEFAULT current_setting('app.nobodys'));
        """)
    function = "CREATE FUNCTION f(id int) RETURNS SETOF one LANGUAGE plpgsql AS 'BEGIN"
    one = f"{ONE['001_one.sql']}\n{function} RETURN QUERY SELECT * FROM one WHERE id = 1; END';\n"
    migrations({"001_one.sql": f"{one}SELECT f(1), current_setting('app.everybodys');"})
    tried = run(env=database.env())
    migrations({"002_two.sql": "SELECT 1;\nSELECT current_setting('app.tenant');"})
    skipped = run(env=database.env())
    reached = []
    for table in ("t", "u"):  # by a default, whose names are not told: they may be values
        migrations({"002_two.sql": f"SELECT 1;\nINSERT INTO {table} VALUES (1);"})
        reached.append(run(env=database.env()).finished["error"]["code"])

    assert 0 == tried.code, tried
    error = skipped.finished["error"]
    assert (27, "rehearsal.unavailable", 2) == (skipped.code, error["code"], error["line"]), skipped
    assert "which only the throwaway server says" in error["message"]
    assert ["rehearsal.unavailable", "rehearsal.failed"] == reached


def test_catalog_that_is_closed_to_the_role_is_a_reason_not_an_end(
    managed: servers.Database, run: Run, migrations: WriteMigrations
) -> None:
    """A hardened server keeps a list from the role: skipped, and named."""
    managed.script("REVOKE SELECT ON pg_catalog.pg_parameter_acl FROM PUBLIC")
    migrations({"001_one.sql": "CREATE TABLE app.one ();"})
    result = run(env={"PREFLIGHT_REHEARSE": "auto"})

    assert (0, ["001_one"]) == (result.code, result.finished["applied"]), result
    assert "permission denied for table pg_parameter_acl" in reasons(result)[0]


def test_setting_that_this_server_refuses_is_a_reason_not_an_end(
    run: Run, server: servers.Server, database: servers.Database, migrations: WriteMigrations
) -> None:
    """What a provider's build takes for a role, ours may not."""
    role = f"{database.name}_app"
    with server.connect() as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN SUPERUSER PASSWORD '{PASSWORD}'".encode())
        connection.execute(
            f"ALTER ROLE {role} SET work_mem = '8MB'; UPDATE pg_db_role_setting"
            f" SET setconfig = '{{work_memory_of_a_provider=8MB}}'"
            f" WHERE setrole = '{role}'::regrole".encode()
        )
    migrations(ONE)
    result = run(env={**database.env(user=role, password=PASSWORD), "PREFLIGHT_REHEARSE": "auto"})
    with server.connect() as connection:
        connection.execute(f"REASSIGN OWNED BY {role} TO postgres".encode())
    database.script(f"REASSIGN OWNED BY {role} TO postgres; DROP ROLE {role}")

    assert 0 == result.code, result
    assert "work_memory_of_a_provider" in reasons(result)[0]


def test_database_that_is_frozen_is_proven(
    run: Run, database: servers.Database, backup_dir: Path
) -> None:
    """Here and on its own server, though its sessions change nothing, as before a move.

    Also where every role is. Who asks for such a session himself gets no copy there, and hears of
    none that is left.
    """
    database.script(
        "DROP SCHEMA public; CREATE SCHEMA app; CREATE TABLE app.t AS SELECT 1 AS id;"
        f"ALTER DATABASE {database.name} SET default_transaction_read_only = on;"
        f"ALTER DATABASE {database.name} SET temp_file_limit = 0"
    )
    on_server = {"PREFLIGHT_REHEARSE_ON": "server"}
    proven = [run("backup")]
    asked = {"PGOPTIONS": "-c default_transaction_read_only=on"}
    refused = run("backup", env={**on_server, **asked})
    database.script(
        "SET transaction_read_only = off; ALTER ROLE ALL SET default_transaction_read_only = on;"
        f"ALTER DATABASE {database.name} RESET default_transaction_read_only"
    )
    try:
        proven.append(run("backup", env=on_server))
    finally:
        database.script("SET transaction_read_only = off; ALTER ROLE ALL RESET ALL")

    assert [0, 0] == [each.code for each in proven], proven
    assert ["restored", "read", "restored"] == verified(backup_dir)
    assert (27, "rehearsal.unavailable") == (refused.code, refused.finished["error"]["code"])
    assert "read-only" in refused.finished["error"]["message"]
    assert [] == [each for each in (*proven, refused) if each.event("rehearsal.warned")]


# --- room -----------------------------------------------------------------------------------------


def test_too_little_room_is_known_before_anything_is_made(
    run: Run, migrations: WriteMigrations, scratch: Path, backup_dir: Path
) -> None:
    """Skipped with the numbers, 27 with `always`; never on the live server instead."""
    migrations(ONE)
    small = {"PREFLIGHT_REHEARSE_DIR_MB": "100", "PREFLIGHT_REHEARSE_ON": "auto"}
    demanded = run(env=small)
    result = run(env={**small, "PREFLIGHT_REHEARSE": "auto"})

    assert (27, "rehearsal.unavailable") == (demanded.code, demanded.finished["error"]["code"])
    assert (0, ["001_one"]) == (result.code, result.finished["applied"])
    assert "below PREFLIGHT_REHEARSE_DIR_MB=100" in reasons(result)[0]
    assert [] == result.event("rehearsal.started")
    assert ["read", "read"] == verified(backup_dir)
    assert [] == list(scratch.iterdir())


def test_restore_ends_before_the_bound_of_its_directory(
    run: Run, database: servers.Database, migrations: WriteMigrations, scratch: Path
) -> None:
    """A kubelet evicts the pod whose emptyDir is too large: what the copy takes is measured."""
    database.script(
        "CREATE TABLE big (t text); INSERT INTO big SELECT repeat('x', 1000000)"
        " FROM generate_series(1, 600); ALTER TABLE big ALTER t SET STORAGE EXTERNAL"
    )  # which no row has been written with
    migrations(ONE)
    result = run(env={"PREFLIGHT_REHEARSE_DIR_MB": "340", "PREFLIGHT_REHEARSE": "auto"})

    assert (0, 1) == (result.code, len(result.event("rehearsal.started"))), result
    assert "left below PREFLIGHT_REHEARSE_DIR_MB=340" in reasons(result)[0]
    assert [] == list(scratch.iterdir())


@pytest.mark.parametrize("options", ["size=700m,noexec,nosuid,nodev"] if os.geteuid() == 0 else [])
def test_tmpfs_without_the_right_to_execute_will_do(
    options: str, run: Run, migrations: WriteMigrations, scratch: Path, backup_dir: Path
) -> None:
    """Volumes are mounted like that: nothing is executed from there."""
    command = ["/bin/mount", "-t", "tmpfs", "-o", f"{options},mode=0777", "tmpfs", str(scratch)]
    subprocess.run(command, check=True)
    migrations(ONE)
    try:
        result = run()
    finally:
        subprocess.run(["/bin/umount", "--lazy", scratch], check=True)

    assert (0, ["restored"]) == (result.code, verified(backup_dir)), result


# --- its end --------------------------------------------------------------------------------------


def test_killed_run_leaves_no_process_and_after_the_next_no_directory(
    start: Start, run: Run, migrations: WriteMigrations, scratch: Path
) -> None:
    """Kill -9 gives nobody a chance: the kernel ends the server, the next run the rest."""
    migrations(SLEEPER)
    process = start()
    process.wait_for_event("rehearsal.started")
    faults.until(lambda: backends(scratch, TRYING), "the copy's session sleeps")
    process.kill()
    faults.until(lambda: not faults.processes_in(scratch), "no process is left")
    left = list(scratch.iterdir())
    migrations(ONE)
    (migrations.directory / "001_sleeper.sql").unlink()
    result = run(env={"PREFLIGHT_REHEARSE": "off"})

    assert 1 == len(left)
    assert 0 == result.code
    assert [] == list(scratch.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_leaves_nothing(
    number: signal.Signals, start: Start, migrations: WriteMigrations, scratch: Path
) -> None:
    """A stopped run takes its server with it."""
    migrations(SLEEPER)
    process = start()
    process.wait_for_event("rehearsal.started")
    faults.until(lambda: backends(scratch, TRYING), "the copy's session sleeps")
    process.signal(number)
    result = process.wait(10)

    assert 128 + number == result.code
    assert ([], []) == (list(scratch.iterdir()), faults.processes_in(scratch))


@pytest.mark.parametrize("what", ["server", "session"])
def test_end_of_the_server_under_a_file_is_no_fault_of_the_file(
    what: str, start: Start, migrations: WriteMigrations, scratch: Path, backup_dir: Path
) -> None:
    """Out of memory in there is a skip with the server's words: neither 13 nor 27."""
    migrations({"001_one.sql": "CREATE TABLE one ();\nSELECT pg_sleep(1);\n"})
    process = start(env={"PREFLIGHT_REHEARSE": "auto"})
    process.wait_for_event("rehearsal.started")
    faults.until(lambda: backends(scratch, TRYING), "the copy's session sleeps")
    pid = postmaster(scratch) if what == "server" else backends(scratch, TRYING)[0]
    os.kill(pid, signal.SIGKILL)
    result = process.wait()

    assert (0, ["001_one"]) == (result.code, result.finished["applied"]), result
    assert "the throwaway server ended by itself" in reasons(result)[0]
    assert ["restored"] == verified(backup_dir)


# on the throwaway server, which has no address, its rows do not come to an end
ENDLESS = """
CREATE FUNCTION rests(n int) RETURNS boolean LANGUAGE sql AS
 'SELECT CASE WHEN pg_catalog.inet_server_addr() IS NULL AND n = 7 THEN
  pg_catalog.pg_sleep(600)::pg_catalog.text IS NULL ELSE true END';
CREATE TABLE endless (n int CHECK (rests(n)));
INSERT INTO endless SELECT generate_series(1, 9)
"""


@pytest.mark.parametrize("what", ["server", "session"])
def test_end_of_the_server_under_the_restore_is_no_fault_of_the_backup(  # noqa: PLR0913, PLR0917 -- a case each
    what: str,
    start: Start,
    database: servers.Database,
    migrations: WriteMigrations,
    scratch: Path,
    backup_dir: Path,
) -> None:
    """A skip, and the backup stays what it is: never 24."""
    database.script(ENDLESS)
    migrations(ONE)
    process = start(env={"PREFLIGHT_REHEARSE": "auto"})
    process.wait_for_event("rehearsal.started")
    faults.until(lambda: backends(scratch, "COPY"), "rows are restored")
    pid = postmaster(scratch) if what == "server" else backends(scratch, "COPY")[0]
    os.kill(pid, signal.SIGKILL)
    result = process.wait()

    assert (0, ["001_one"]) == (result.code, result.finished["applied"]), result
    assert "the throwaway server ended by itself" in reasons(result)[0]
    assert ["read"] == verified(backup_dir)


def test_many_at_once_start_one_server(
    start: Start, migrations: WriteMigrations, scratch: Path
) -> None:
    """The lock decides who proves and applies; the others find it done."""
    migrations(ONE)
    processes = [start() for _ in range(20)]
    results = [process.wait() for process in processes]

    assert [0] * 20 == [result.code for result in results]
    assert 1 == sum(len(result.event("rehearsal.started")) for result in results)
    assert [] == list(scratch.iterdir())


# --- where it cannot be ---------------------------------------------------------------------------


def test_auto_goes_to_the_live_server_where_there_is_no_place(
    run: Run, migrations: WriteMigrations, tmp_path: Path
) -> None:
    """`local` says why there is none, and never does something else instead."""
    migrations(ONE)
    nowhere = {"PREFLIGHT_REHEARSE_DIR": str(tmp_path / "nowhere")}
    demanded = run(env={**nowhere, "PREFLIGHT_REHEARSE_ON": "local"})
    result = run(env={**nowhere, "PREFLIGHT_REHEARSE_ON": "auto"})

    assert (27, "rehearsal.unavailable") == (demanded.code, demanded.finished["error"]["code"])
    assert "nowhere (PREFLIGHT_REHEARSE_DIR)" in demanded.finished["error"]["message"]
    assert (0, "server") == (result.code, result.event("rehearsal.started")[0]["where"])


@pytest.mark.usefixtures("managed")
def test_auto_that_can_be_nowhere_names_both_reasons(
    run: Run, migrations: WriteMigrations, tmp_path: Path
) -> None:
    """Who may not create a database learns what else there is."""
    migrations({"001_one.sql": "CREATE TABLE app.one ();"})
    nowhere = {"PREFLIGHT_REHEARSE_DIR": str(tmp_path / "nowhere"), "PREFLIGHT_REHEARSE_ON": "auto"}
    result = run(env={**nowhere, "PREFLIGHT_REHEARSE": "auto"})

    assert 0 == result.code
    assert "may not create a database" in reasons(result)[0]
    assert "no server of our own: there is no directory" in reasons(result)[0]


def test_throwaway_server_of_a_fleet_leaves_nothing(  # noqa: PLR0913, PLR0917 -- what it needs
    run: Run,
    database: servers.Database,
    create_database: CreateDatabase,
    migrations: WriteMigrations,
    scratch: Path,
    tmp_path: Path,
) -> None:
    """A copy of a target's rows is gone when the target's process is, the last one's, too."""
    other = create_database(database.server)
    for each in (database, other):
        each.script("CREATE TABLE filled AS SELECT 1 AS id")
    path = tmp_path / "targets.jsonl"
    path.write_text(
        "".join(
            json.dumps({"name": each.name, "database": each.name}) + "\n"
            for each in (database, other)
        )
    )
    migrations(ONE)
    result = run("up", "--targets", str(path))

    assert 0 == result.code, result
    assert 2 == len(result.event("rehearsal.passed"))
    assert [] == list(scratch.iterdir())
