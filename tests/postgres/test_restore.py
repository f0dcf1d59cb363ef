"""Restore a backup beside the live database, and put it in its place."""

import json
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

import psycopg
import pytest
from psycopg.sql import SQL, Identifier, Literal

from preflight.base.errors import RehearsalFailed
from preflight.files.migrations import Script
from preflight.rehearsal import limits
from preflight.server import catalog
from tests import faults, program, servers
from tests.conftest import CreateDatabase, Run, Start, StartServer, WriteMigrations
from tests.fakes import Fakes, run_without_privileges

if TYPE_CHECKING:
    from preflight.server.sessions import Session

SUPER = servers.PASSWORD
SECRET = "p'w: \\%é"  # noqa: S105 - of a role that lives for a test
DATABASE = (
    "SELECT to_jsonb(d) - '{oid,datname,datfrozenxid,datminmxid,datacl}'::text[] "
    "FROM pg_database d WHERE datname = %s"
)
GRANTS = (
    "SELECT a.grantee::regrole::text, a.privilege_type, a.is_grantable FROM pg_database d, "
    "aclexplode(coalesce(datacl, acldefault('d', datdba))) a WHERE datname = %s ORDER BY 1, 2"
)
SETTINGS = (
    "SELECT setrole::regrole::text, unnest(setconfig) FROM pg_db_role_setting "
    "JOIN pg_database d ON d.oid = setdatabase WHERE datname = %s ORDER BY 1, 2"
)


@pytest.fixture
def filled(database: servers.Database) -> Iterator[servers.Database]:
    """Give a database with rows; what is restored beside it is dropped with it."""
    database.script(
        "CREATE TABLE t (id int PRIMARY KEY, t text); INSERT INTO t VALUES (1,'one'),(2,'é')"
    )
    yield database
    drop_beside(database)


@pytest.fixture
def role(filled: servers.Database) -> Iterator[str]:
    """Give a role that may log in and nothing else; its name is the database's, and odd."""
    name = f'{filled.name} "ro\\le'
    with filled.server.connect() as connection:
        connection.execute(
            SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(Identifier(name), Literal(SECRET))
        )
    yield name
    drop_beside(filled)
    with filled.server.connect() as connection:
        connection.execute(
            SQL("ALTER DATABASE {} OWNER TO postgres").format(Identifier(filled.name))
        )
        with filled.server.connect(filled.name) as inside:
            inside.execute(SQL("REASSIGN OWNED BY {} TO postgres").format(Identifier(name)))
            inside.execute(SQL("DROP OWNED BY {}").format(Identifier(name)))
        connection.execute(SQL("DROP ROLE {}").format(Identifier(name)))


def drop_beside(database: servers.Database) -> None:
    """Drop what was restored beside a database, or kept when it was swapped."""
    with database.server.connect() as connection:
        for name in [database.name, *beside(database)]:
            connection.execute(SQL("ALTER DATABASE {} IS_TEMPLATE false").format(Identifier(name)))
        for name in beside(database):
            connection.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))


def beside(database: servers.Database) -> list[str]:
    """Return the databases whose names begin like this one's."""
    return [
        name
        for name in database.query("SELECT datname::text FROM pg_database ORDER BY 1")
        if name.startswith(f"{database.name}_")
    ]


def restored(database: servers.Database, suffix: str = "_restored") -> servers.Database:
    """Return the database beside."""
    return servers.Database(database.server, f"{database.name}{suffix}")


def facts(database: servers.Database) -> tuple[Any, ...]:
    """Return everything that belongs to a database and not to what is in it."""
    (row,) = database.query(DATABASE, database.name)
    return row, database.query(GRANTS, database.name), database.query(SETTINGS, database.name)


def error_of(result: program.Result) -> dict[str, Any]:
    """Return the error that a run ended with."""
    found: dict[str, Any] = result.finished["error"]
    return found


ROWS = "SELECT id, t FROM t ORDER BY id"
ALL = [(1, "one"), (2, "é")]


READ_BY_SETTINGS = """
CREATE TABLE read_by (
 at timestamptz, day text, own text, n int[], CHECK (day::date = at::date), CHECK (n[2] IS NULL),
 CHECK (own = current_setting('my.own')));
INSERT INTO read_by VALUES
 ('2020-12-30 20:00+00', '31/12/2020', current_setting('my.own'), ARRAY[1, NULL]);
CREATE MATERIALIZED VIEW stored AS SELECT at::date::text AS day FROM read_by
"""
READ = "SELECT r.own, r.n, s.day FROM read_by r, stored s"

# --- beside ---------------------------------------------------------------------------------------


def test_backup_is_restored_beside_the_live_database(
    run: Run, filled: servers.Database, backup_dir: Path, tmp_path: Path
) -> None:
    """By `latest`, by name or by path, under a name of one's own or a derived one.

    A database that only a service file names is named as well.
    """
    run("backup")
    (path,) = backup_dir.iterdir()
    filled.script("DELETE FROM t")
    (tmp_path / "services").write_text(f"[prod]\ndbname={filled.name}\n")
    service = {"PGSERVICEFILE": str(tmp_path / "services"), "PGSERVICE": "prod", "PGDATABASE": None}
    done = [
        run("restore", "latest", env=service),
        run("restore", path.name, "--into", f"{filled.name}_by name"),
        run("restore", str(path), "--into", f'{filled.name}_by "path"'),
    ]

    assert [0, 0, 0] == [result.code for result in done], done[0]
    names = ["_restored", "_by name", '_by "path"']
    assert [ALL] * 3 == [restored(filled, name).query(ROWS) for name in names]
    assert [0] == filled.query("SELECT count(*) FROM t")
    (event,) = done[0].event("restore.finished")
    assert (2, path.name) == (event["rows"], event["backup"])
    assert "kept_as" not in event or event["kept_as"] is None


def test_table_of_any_name_is_restored(run: Run, filled: servers.Database) -> None:
    """A space, a dot, a quote or a parenthesis in it, or in its schema's, is no matter.

    Where one without its schema means several to --skip, a warning names them all.
    """
    filled.script(
        """CREATE SCHEMA "a b.c"; CREATE TABLE "a b.c"."d ""e"" (f).g" (id int);
        CREATE TABLE "order items" (id int); CREATE TABLE "(" (id int);
        CREATE SCHEMA s; CREATE TABLE s.u (id int); CREATE TABLE u (id int)"""
    )
    run("backup")
    whole = run("restore", "latest", "--into", f"{filled.name}_whole")
    part = run(
        *("restore", "latest", "--into", f"{filled.name}_part"),
        *("--skip", "TABLE DATA public order items postgres", "--skip", "TABLE u postgres"),
    )

    assert [0, 0] == [whole.code, part.code], f"{whole}{part}"
    said = [each["warning"] for each in part.event("config.warned")]
    both = "TABLE public u postgres, TABLE s u postgres"
    assert f"--skip 'TABLE u postgres' leaves out 2 entries: {both}; with" in said[-1]


def test_word_to_skip_that_means_no_entry_is_refused(run: Run, filled: servers.Database) -> None:
    """Before a database is made: what it should leave out would go live."""
    run("backup")
    slipped = run("restore", "latest", "--swap", "--skip", "TABEL t", "--skip", "TABLE  DATA t")
    unknown = run("restore", "latest", "--skip", "CAST nobodys")
    everywhere = (
        "--skip",
        "SCHEMA public",
        "--skip",
        "EXTENSION - plpgsql",
        "--skip",
        "DATABASE x",
    )
    made = run("restore", "latest", "--into", f"{filled.name}_e", *everywhere)  # some archives do
    with filled.server.connect() as connection:
        connection.execute(f"DROP DATABASE {filled.name}_e".encode())

    assert 0 == made.code, str(made)
    refused = [(each.code, error_of(each)["code"]) for each in (slipped, unknown)]
    assert [(20, "config.arguments")] * 2 == refused, slipped
    assert "--skip 'TABEL t' means no entry of " in error_of(slipped)["message"]
    assert error_of(slipped)["hint"].startswith("Did you mean 'TABLE t'? ")
    assert error_of(unknown)["hint"].startswith("`pg_restore --list` names all entries")
    assert [] == beside(filled)


def test_everything_that_belongs_to_a_database_is_carried_over(
    any_server: servers.Server, run: Run, filled: servers.Database, role: str
) -> None:
    """Owner, rights, settings of all kinds, connection limit, text rules, comment, a template.

    The settings that rows and views are read by are there before these.
    """
    assert any_server is filled.server
    names = {"d": Identifier(filled.name), "r": Identifier(role)}
    with any_server.connect() as connection:
        for command in (
            "ALTER DATABASE {d} CONNECTION LIMIT 17",
            "ALTER DATABASE {d} OWNER TO {r}",
            "GRANT CREATE ON DATABASE {d} TO pg_monitor WITH GRANT OPTION",
            "REVOKE TEMPORARY ON DATABASE {d} FROM PUBLIC",
            'ALTER DATABASE {d} SET search_path TO "$user", public, "odd, \'one"',
            "ALTER DATABASE {d} SET work_mem TO '5MB'",
            "ALTER DATABASE {d} SET \"my.own\" TO 'it''s \"so\" \\ here'",
            "ALTER DATABASE {d} SET datestyle TO 'SQL, DMY'",
            "ALTER DATABASE {d} SET timezone TO 'Asia/Tokyo'",
            "ALTER DATABASE {d} SET array_nulls TO off",
            "ALTER ROLE {r} IN DATABASE {d} SET search_path TO ''",
            "ALTER ROLE {r} IN DATABASE {d} SET statement_timeout TO '3min'",
            "COMMENT ON DATABASE {d} IS 'the ''live'' one'",
            "ALTER DATABASE {d} IS_TEMPLATE true",
        ):
            connection.execute(SQL(command).format(**names))
    filled.script(READ_BY_SETTINGS)
    before, read = facts(filled), filled.query(READ)
    assert 0 == run("backup").code
    beside_it = run("restore", "latest")

    assert 0 == beside_it.code, beside_it
    assert before == facts(restored(filled))
    assert read == restored(filled).query(READ)
    swapped = run("restore", "latest", "--swap")
    assert 0 == swapped.code, swapped
    assert before == facts(filled)
    assert ["the 'live' one"] == filled.query(
        "SELECT shobj_description(oid, 'pg_database') FROM pg_database "
        "WHERE datname = current_database()"
    )
    assert ALL == filled.query(ROWS)


@pytest.mark.parametrize(
    ("major", "options"),
    [
        (17, "ENCODING 'LATIN1' LOCALE 'C'"),
        (15, "LOCALE_PROVIDER icu ICU_LOCALE 'de-DE' LOCALE 'C'"),
        (18, "LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8' LOCALE 'C'"),
    ],
)
def test_text_rules_of_any_provider_are_carried_over(
    running: Any,  # noqa: ANN401 - the fixture's function
    create_database: CreateDatabase,
    run: Run,
    major: int,
    options: Any,  # noqa: ANN401 - a literal string
) -> None:
    """Encoding, collation, and the locale of ICU or of the server itself."""
    try:
        database = create_database(running(major), None, f"TEMPLATE template0 {options}")
    except psycopg.errors.FeatureNotSupported as reason:
        pytest.skip(f"this build of the server cannot: {reason}")
    assert 0 == run("backup", env=database.env()).code
    result = run("restore", "latest", env=database.env())

    assert 0 == result.code, result
    assert facts(database) == facts(restored(database))
    drop_beside(database)


def test_public_is_locked_out_until_the_rows_are_compared(
    run: Run, start: Start, filled: servers.Database, role: str, fakes: Fakes
) -> None:
    """Whoever may connect to the live database may connect to the new one only at the end."""
    run("backup")
    target = restored(filled)
    path = fakes.hold_restore()
    process = start("restore", "latest", env={"PATH": path})
    faults.until((fakes.here / "waiting").exists, "pg_restore has begun")
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        psycopg.connect(target.conninfo(user=role, password=SECRET)).close()
    fakes.let_go()
    result = process.wait()

    assert 0 == result.code, result
    psycopg.connect(target.conninfo(user=role, password=SECRET)).close()


def test_password_of_a_passfile_for_one_database_is_enough(
    run: Run, filled: servers.Database, tmp_path: Path
) -> None:
    """A copy on the live server, a restore and a swap go to other databases of the same server."""
    passfile = tmp_path / "passfile"
    said = SUPER.replace("\\", "\\\\").replace(":", "\\:")
    passfile.write_text(f"127.0.0.1:{filled.server.port}:{filled.name}:postgres:{said}\n")
    passfile.chmod(0o600)
    env = {"PGPASSWORD": "", "PGPASSFILE": str(passfile)}
    on = {"PREFLIGHT_REHEARSE_ON": "server", "PREFLIGHT_REHEARSE": "always"}
    results = [run("backup", env=env | on), run("restore", "latest", "--swap", env=env)]

    assert [0, 0] == [each.code for each in results], results
    assert "restored" == results[0].event("rehearsal.passed")[0]["verified"]


def test_new_server_without_the_live_database_is_enough(
    run: Run, start_server: StartServer, filled: servers.Database
) -> None:
    """A restore with --swap makes the database there; PUBLIC may connect, as by default."""
    run("backup")
    elsewhere = servers.Database(start_server(), filled.name)
    result = run("restore", "latest", "--swap", env=elsewhere.env())

    assert 0 == result.code, result
    assert ALL == elsewhere.query(ROWS)
    assert [filled.name] == [event["database"] for event in result.event("restore.finished")]


# --- other versions -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"), [(13, 17), (14, 18), (15, 17), (16, 18), (18, 16), (17, 13), (16, 16)]
)
def test_backup_is_restored_on_another_major(
    running: Any,  # noqa: ANN401 - the fixture's function
    create_database: CreateDatabase,
    run: Run,
    old: int,
    new: int,
) -> None:
    """From an older one and from a newer one; a client 18 complains to old servers of one thing.

    An event trigger that writes is made after the views are filled, by which it would fire.
    """
    source = create_database(running(old))
    source.script(
        "CREATE TABLE t (id int PRIMARY KEY, t text); INSERT INTO t VALUES (1,'one'),(2,'é');"
        "CREATE MATERIALIZED VIEW v AS TABLE t; CREATE FUNCTION f() RETURNS event_trigger LANGUAGE "
        "plpgsql AS 'BEGIN DELETE FROM public.t; END';"
        "CREATE EVENT TRIGGER e ON ddl_command_end EXECUTE FUNCTION f();"
        "COMMENT ON EVENT TRIGGER e IS 'odd'"
    )
    assert 0 == run("backup", env=source.env()).code
    target = create_database(running(new), f"{source.name}_other")
    name = f"{source.name}_copy"
    result = run(
        "restore", "latest", "--into", name, env={**target.env(), "PGDATABASE": source.name}
    )

    assert 0 == result.code, result
    copy = servers.Database(running(new), name)
    assert ALL == copy.query(ROWS) == copy.query("TABLE v ORDER BY id")
    assert ["odd"] == copy.query("SELECT obj_description(oid) FROM pg_event_trigger")
    drop_beside(servers.Database(running(new), target.name))


@pytest.mark.parametrize("major", [16, 17])
def test_no_other_error_is_waved_through(
    running: Any,  # noqa: ANN401 - the fixture's function
    create_database: CreateDatabase,
    run: Run,
    backup_dir: Path,
    major: int,
) -> None:
    """A role that the other server lacks, and of which an older manifest says nothing: 22, gone."""
    source = create_database(running(18))
    gone = SQL("{}").format(Identifier(f"{source.name}_owner"))
    with running(18).connect(source.name) as connection:
        connection.execute(SQL("CREATE ROLE {}").format(gone))
        connection.execute("CREATE TABLE t (id int)")
        connection.execute(SQL("ALTER TABLE t OWNER TO {}").format(gone))
    try:
        assert 0 == run("backup", env=source.env()).code
        (manifest,) = backup_dir.glob("*/manifest.json")
        said = json.loads(manifest.read_bytes())
        assert [f"{source.name}_owner"] == said.pop("roles")
        manifest.write_text(json.dumps(said))
        target = {**source.env(), "PGPORT": str(running(major).port)}
        result = run("restore", "latest", env=target)

        assert (22, "restore.lacking") == (result.code, error_of(result)["code"]), result
        assert f"{source.name}_owner" in error_of(result)["message"]
        with running(major).connect() as connection:
            names = connection.execute("SELECT datname::text FROM pg_database").fetchall()
        assert (f"{source.name}_restored",) not in names
    finally:
        with running(18).connect(source.name) as connection:
            connection.execute("DROP TABLE t")
            connection.execute(SQL("DROP ROLE {}").format(gone))


# --- refused --------------------------------------------------------------------------------------


def test_database_that_is_there_already_is_left_alone(
    run: Run, filled: servers.Database, create_database: CreateDatabase, backup_dir: Path
) -> None:
    """Somebody else's, and also the complete restore of another backup."""
    run("backup")
    run("backup")
    first, second = sorted(path.name for path in backup_dir.iterdir())
    foreign = create_database(filled.server, f"{filled.name}_foreign")
    foreign.script("CREATE TABLE theirs ()")

    taken = run("restore", first, "--into", foreign.name)
    done, again, other = (run("restore", name) for name in (first, first, second))

    assert (22, "restore.exists") == (taken.code, error_of(taken)["code"])
    assert ["theirs"] == foreign.query(
        "SELECT relname::text FROM pg_class WHERE relname = 'theirs'"
    )
    assert [0, 0, 22] == [done.code, again.code, other.code]
    assert first in error_of(other)["message"]


def test_wrong_names_are_20(run: Run, filled: servers.Database) -> None:
    """No such backup, the live database itself, a name that the server would cut."""
    assert 20 == run("restore", "latest").code
    run("backup")

    assert 20 == run("restore", "nonesuch").code
    assert 20 == run("restore").code
    assert 20 == run("restore", "latest", "--into", filled.name).code
    assert 20 == run("restore", "latest", "--into", "é" * 32).code
    assert [] == beside(filled)


def test_wrong_names_are_told_what_is_there(
    run: Run, filled: servers.Database, start_server: StartServer, backup_dir: Path
) -> None:
    """The live one's own name, which need not be there, and `latest` of another database.

    On a new server neither is, and what the hint says goes on.
    """
    run("backup")
    new = start_server()
    env = servers.Database(new, filled.name).env()
    gone = run("restore", "latest", "--into", filled.name, env=env)
    other = run("restore", "latest", env={**env, "PGDATABASE": "postgres"})
    done = run("restore", "latest", "--swap", env=env)

    assert [20, 20, 0] == [each.code for each in (gone, other, done)], done
    assert f"--into {filled.name!r} is the live database's own name" == error_of(gone)["message"]
    assert "--swap alone puts it in its place, or makes it where" in error_of(gone)["hint"]
    said = f"there is no backup 'latest' of the database 'postgres' in {backup_dir}"
    assert said == error_of(other)["message"]
    hint = error_of(other)["hint"]
    assert hint.startswith(f"There are some of {filled.name}: name that database (PGDATABASE")


@pytest.mark.parametrize("what", ["dump", "rows"])
def test_damaged_backup_is_not_restored(
    run: Run, filled: servers.Database, backup_dir: Path, what: str
) -> None:
    """A flipped bit, or counts that differ from what is in the new database: 24, and it is gone."""
    run("backup")
    (path,) = backup_dir.iterdir()
    dump, manifest = path / "database.dump", path / "manifest.json"
    if what == "dump":
        content = bytearray(dump.read_bytes())
        content[len(content) // 2] ^= 1
        dump.write_bytes(content)
    else:
        said = json.loads(manifest.read_bytes())
        said["rows"]["public.t"] = 3
        manifest.write_text(json.dumps(said))
    result = run("restore", "latest", "--swap")

    code = {"dump": "backup.corrupt", "rows": "restore.rows_differ"}[what]
    assert (24, code) == (result.code, error_of(result)["code"])
    assert [] == beside(filled)
    assert ALL == filled.query(ROWS)


def test_role_without_rights_is_told_what_it_lacks(
    run: Run, filled: servers.Database, role: str
) -> None:
    """To create a database, to give it the owner of the live one, and another role's settings."""
    run("backup")
    login = {"PGUSER": role, "PGPASSWORD": SECRET}
    no_createdb = run("restore", "latest", env=login)
    with filled.server.connect() as connection:
        connection.execute(SQL("ALTER ROLE {} CREATEDB").format(Identifier(role)))
        connection.execute(SQL("GRANT pg_read_all_data TO {}").format(Identifier(role)))
    filled.script("ALTER TABLE t OWNER TO " + Identifier(role).as_string(None))
    filled.script(f"ALTER ROLE postgres IN DATABASE {filled.name} SET work_mem = '8MB'")
    run("backup")
    no_owner = run("restore", "latest", env=login)

    assert (22, "restore.no_right") == (no_createdb.code, error_of(no_createdb)["code"])
    assert (22, "restore.no_right") == (no_owner.code, error_of(no_owner)["code"]), no_owner
    assert "setting work_mem of role postgres" in error_of(no_owner)["message"]
    admin = ' and ADMIN on "postgres"' * (filled.server.major >= 16)
    who = f"Run as a superuser, or as the live database's owner and with CREATEROLE{admin}. Or "
    assert error_of(no_owner)["hint"].startswith(who), no_owner
    assert [] == beside(filled)


def test_owner_without_the_right_to_a_setting_is_told_which_grant_gives_it(
    run: Run, filled: servers.Database, role: str
) -> None:
    """A superuser's word, which goes on when it is typed; what `--without settings` drops is named.

    Who owns the database is not told to run as its owner.
    """
    name, owner = filled.name, Identifier(role).as_string(None)
    filled.script(
        f"ALTER DATABASE {name} OWNER TO {owner}; ALTER TABLE t OWNER TO {owner};"
        f"ALTER ROLE {owner} CREATEDB; ALTER DATABASE {name} SET my.tenant = 'x';"
        f"ALTER DATABASE {name} SET timezone = 'Asia/Tokyo';"
        f"ALTER DATABASE {name} SET log_min_messages = 'error';"
        f"ALTER ROLE postgres IN DATABASE {name} SET work_mem = '8MB'"
    )
    login = {"PGUSER": role, "PGPASSWORD": SECRET}
    dumped = run("backup", env=login)
    besides = run("restore", "latest", env=login)
    filled.script(f"ALTER ROLE postgres IN DATABASE {name} RESET work_mem")
    assert 0 == run("backup", env=login).code
    refused = run("restore", "latest", env=login)
    option = ("--into", f"{name}_without", "--without", "settings")
    without = run("restore", "latest", *option, env=login)
    hint = error_of(refused)["hint"]
    grants = re.findall(r"GRANT SET ON PARAMETER .+? TO .+?;", hint)
    filled.script(" ".join(grants))
    given = run("restore", "latest", env=login)
    settings = [filled.query(SETTINGS, each) for each in (name, f"{name}_restored")]

    assert [0, 22, 0, 0] == [each.code for each in (dumped, refused, without, given)], refused
    assert "restore.no_right" == error_of(refused)["code"]
    assert 2 == len(grants), hint
    assert "owner" not in hint
    assert "--without settings" in hint
    assert (
        'and run with CREATEROLE and ADMIN on "postgres"; or run as one.'
        in error_of(besides)["hint"]
    )
    (warned,) = without.event("config.warned")
    assert "without its settings log_min_messages, my.tenant, TimeZone" in warned["warning"]
    assert 3 == len(settings[0])
    assert settings[0] == settings[1]


def test_role_that_restores_for_the_owner_keeps_its_own_rights(
    run: Run, database: servers.Database
) -> None:
    """Also where PUBLIC has none, and it could not connect without them.

    What only a superuser could drop from the new database, as from the live one, is named.
    """
    name, owner, role = database.name, f"{database.name}_owner", f"{database.name}_deployer"
    database.script(
        f"CREATE ROLE {owner}; CREATE ROLE {role} LOGIN CREATEDB PASSWORD 'x' IN ROLE {owner};"
        f"ALTER DATABASE {name} OWNER TO {owner}; REVOKE ALL ON DATABASE {name} FROM PUBLIC;"
        f"GRANT CREATE, CONNECT ON DATABASE {name} TO {role}; DROP EXTENSION plpgsql;"
        f"ALTER DATABASE {name} IS_TEMPLATE true"
    )
    try:
        assert 0 == run("backup").code
        env = database.env(user=role, password="x")  # noqa: S106 -- as it says
        result = run("restore", "latest", env=env)
        rights = [database.query(GRANTS, each) for each in (name, f"{name}_restored")]
    finally:
        drop_beside(database)
        database.script(
            f"ALTER DATABASE {name} OWNER TO postgres; DROP OWNED BY {owner}, {role};"
            f"DROP ROLE {owner}, {role}"
        )

    assert 0 == result.code, result
    assert 5 == len(rights[0])
    assert rights[0] == rights[1]
    (warned,) = result.event("config.warned")
    assert "has extension plpgsql, which the live database had not" in warned["warning"]


# --- swap -----------------------------------------------------------------------------------------


def test_swap_keeps_the_old_database_under_a_dated_name(run: Run, filled: servers.Database) -> None:
    """What was written since the backup is in it."""
    run("backup")
    filled.script("INSERT INTO t VALUES (3, 'later')")
    result = run("restore", "latest", "--swap")
    (event,) = result.event("restore.finished")

    assert 0 == result.code, result
    assert ALL == filled.query(ROWS)
    assert [event["kept_as"]] == beside(filled)
    assert [*ALL, (3, "later")] == servers.Database(filled.server, event["kept_as"]).query(ROWS)


@pytest.mark.parametrize("name", ['a "b" \\ %s é', "é" * 31, "x" * 63])
def test_swap_works_with_any_name(
    run: Run, server: servers.Server, create_database: CreateDatabase, name: str
) -> None:
    """Also one that leaves no room for a suffix."""
    database = create_database(server, name)
    database.script("CREATE TABLE t ()")
    before = set(database.query("SELECT datname::text FROM pg_database"))
    assert 0 == run("backup", env=database.env()).code
    result = run("restore", "latest", "--swap", env=database.env())

    assert 0 == result.code, result
    (event,) = result.event("restore.finished")
    assert "applies them again" in event["note"]
    (kept,) = set(database.query("SELECT datname::text FROM pg_database")) - before
    assert (name, kept) == (event["database"], event["kept_as"])
    servers.Database(server, kept).query("SELECT 1")
    database.query(SQL("DROP DATABASE {}").format(Identifier(kept)))


def test_swap_refuses_while_somebody_is_connected(
    run: Run, filled: servers.Database, role: str
) -> None:
    """It names who, keeps the copy, and the same command finishes it once they are gone."""
    run("backup")
    filled.script("DELETE FROM t")
    app = {"user": role, "password": SECRET, "application_name": "the app"}
    with psycopg.connect(filled.conninfo(**app)) as session:
        refused = run("restore", "latest", "--swap")
        kept = beside(filled)
        pid = session.info.backend_pid
    faults.until(
        lambda: not filled.query("SELECT 1 FROM pg_stat_activity WHERE pid = %s", pid), "gone"
    )
    finished = run("restore", "latest", "--swap")

    assert (22, "restore.sessions") == (refused.code, error_of(refused)["code"])
    assert "the app" in error_of(refused)["message"]
    assert [f"{filled.name}_restored"] == kept
    assert 0 == finished.code, finished
    assert ALL == filled.query(ROWS)


def test_swap_ends_sessions_when_told_to(run: Run, filled: servers.Database) -> None:
    """Of an application that comes back at once, too."""
    run("backup")
    filled.script("DELETE FROM t")
    with psycopg.connect(filled.conninfo()) as session:
        result = run("restore", "latest", "--swap", "--end-sessions")

        assert 0 == result.code, result
        with pytest.raises(psycopg.OperationalError):
            session.execute("SELECT 1")
    assert ALL == filled.query(ROWS)


def test_session_that_this_role_may_not_end_is_named(
    run: Run, filled: servers.Database, role: str
) -> None:
    """With what gives the right: who may rename databases has none to end others' sessions."""
    run("backup")
    app = f"{filled.name} app"
    filled.script(f"CREATE ROLE \"{app}\" LOGIN PASSWORD 'x'")
    filled.query(SQL("ALTER ROLE {} CREATEDB").format(Identifier(role)))
    how = ("--swap", "--end-sessions", "--no-owner", "--without", "grants")
    said = {"user": app, "password": "x", "application_name": "the app"}
    try:
        with psycopg.connect(filled.conninfo(**said)) as session:
            pid = session.info.backend_pid
            login = {"PGUSER": role, "PGPASSWORD": SECRET}
            refused = run("restore", "latest", *how, env=login)
            session.execute("SELECT 1")
    finally:
        filled.script(f'DROP ROLE "{app}"')

    error = error_of(refused)
    assert (22, "restore.no_right") == (refused.code, error["code"]), refused
    assert f"may not end a session: pid {pid} (the app, {app}): " in error["message"]
    us = Identifier(role).as_string(None)
    grants = f'GRANT "{app}" TO {us}, or GRANT pg_signal_backend TO {us}'
    assert error["hint"].startswith(grants)
    assert "is complete and waits" in error["hint"]


class Renames(faults.Held):
    """Holds the first renaming of a database until it is let go, and counts them."""

    def __init__(self) -> None:
        """Count none before the first."""
        super().__init__(b" RENAME TO ")
        self.count = 0

    def to_server(self, kind: bytes, message: bytes) -> bytes:
        """Count it before it is held."""
        self.count += self.words in message
        return super().to_server(kind, message)


def test_swap_ends_whoever_comes_back_before_the_name_is_locked(
    run: Run, start: Start, filled: servers.Database
) -> None:
    """In one go: else the server waits for him to leave, for 5 s, and nobody else gets in."""
    run("backup")
    filled.script("DELETE FROM t")
    renames = Renames()
    with faults.through(filled.server, renames) as proxy:
        process = start("restore", "latest", "--swap", "--end-sessions", env=proxy.env())
        assert renames.reached.wait(60)
        with psycopg.connect(filled.conninfo()):
            renames.free.set()
            result = process.wait()

    assert (0, 2) == (result.code, renames.count), result
    assert ALL == filled.query(ROWS)


def test_two_apps_of_one_database_do_not_drop_each_others_restore(
    run: Run, start: Start, filled: servers.Database
) -> None:
    """The second one waits for the name, and finds the database complete."""
    run("backup")
    held = faults.Held(b"COMMENT ON DATABASE")  # it is there, and nobody has said whose it is
    with faults.through(filled.server, held) as proxy:
        one = start("restore", "latest", env=proxy.env() | {"PREFLIGHT_SCHEMA": "pa"})
        assert held.reached.wait(60)
        two = start("restore", "latest", "--swap", env={"PREFLIGHT_SCHEMA": "pb"})
        two.wait_for_event("lock.busy")
        held.free.set()
        results = [one.wait(), two.wait()]

    assert [0, 0] == [each.code for each in results], results
    assert ALL == filled.query(ROWS)


NOT_OURS = ("--no-owner", "--without", "grants")


def test_role_that_is_kept_out_of_other_databases_may_restore(
    run: Run, filled: servers.Database, role: str
) -> None:
    """Through the live one, where it goes through none else; not for a swap, which says so."""
    assert 0 == run("backup", env={"PREFLIGHT_REHEARSE": "off"}).code
    env = {"PGUSER": role, "PGPASSWORD": SECRET, "PREFLIGHT_WAIT_TIMEOUT_S": "0"}
    others = "CONNECT ON DATABASE postgres, template1"
    with filled.server.connect() as session:
        session.execute(SQL("ALTER ROLE {} CREATEDB").format(Identifier(role)))
        session.execute(f"REVOKE {others} FROM PUBLIC".encode())
        try:
            swapped = run("restore", "latest", "--swap", env=env)
            aside = run("restore", "latest", *NOT_OURS, env=env)
        finally:
            session.execute(f"GRANT {others} TO PUBLIC".encode())
        session.execute(SQL("ALTER ROLE {} NOLOGIN").format(Identifier(role)))
        nowhere = run("restore", "latest", env=env)

    assert (21, "28000") == (nowhere.code, error_of(nowhere)["sqlstate"]), nowhere
    assert "pg_hba.conf and the TLS settings" in error_of(nowhere)["hint"]
    assert (21, "42501") == (swapped.code, error_of(swapped)["sqlstate"]), swapped
    assert 'GRANT CONNECT ON DATABASE "postgres"' in error_of(swapped)["hint"]
    assert 0 == aside.code, aside
    assert ALL == restored(filled).query(ROWS)


def test_slots_and_subscriptions_that_stay_with_the_old_database_are_named(
    run: Run, start_server: StartServer, create_database: CreateDatabase
) -> None:
    """They hear of no change any more, and keep WAL; so are its subscriptions, which go on."""
    live = create_database(start_server(wal_level="logical"), "live")
    run("backup", env=live.env())
    live.query("SELECT pg_create_logical_replication_slot('feed', 'pgoutput')")
    for name in ("off", '"o N"'):
        live.query(
            SQL("CREATE SUBSCRIPTION {} CONNECTION 'dbname=x' PUBLICATION p WITH (connect = false)")
            .format(SQL(name))
        )  # fmt: skip
    live.script("UPDATE pg_subscription SET subenabled = subname = 'o N'")
    result = run("restore", "latest", "--swap", "--end-sessions", env=live.env())

    assert 0 == result.code, result
    (kept,) = live.query("SELECT database::text FROM pg_replication_slots")
    assert [kept] == [each["kept_as"] for each in result.event("restore.finished")]
    slots, subscribed = (each["warning"] for each in result.event("config.warned"))
    assert f"slots stay with '{kept}': feed." in slots
    assert f"'{kept}' goes on receiving what it has subscribed to: o N, and" in subscribed
    assert f"""Connect to '{kept}' and ALTER SUBSCRIPTION "o N" DISABLE; then""" in subscribed


# --- interrupted ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_interrupted_restore_is_settled_by_the_next_call(
    run: Run, start: Start, filled: servers.Database, fakes: Fakes, how: str
) -> None:
    """SIGTERM leaves nothing; what kill -9 leaves is recognised and made anew."""
    run("backup")
    process = start("restore", "latest", env={"PATH": fakes.hold_restore()})
    faults.until((fakes.here / "waiting").exists, "pg_restore has begun")
    if how == "stop":
        process.signal(signal.SIGTERM)
        assert 143 == process.wait(10).code
        assert [] == beside(filled)
    else:
        process.kill()
        assert [f"{filled.name}_restored"] == beside(filled)
        fakes.let_go()
    result = run("restore", "latest")

    assert 0 == result.code, result
    assert ALL == restored(filled).query(ROWS)


@pytest.mark.parametrize(("script", "code"), [("kill -9 $$", 14), ("exit 1", 14), ("exit 0", 24)])
def test_client_that_restores_nothing_is_found_out(
    run: Run, filled: servers.Database, fakes: Fakes, script: str, code: int
) -> None:
    """Killed, failed without a word, or lying: the new database is dropped again."""
    run("backup")
    result = run("restore", "latest", env={"PATH": fakes.write(script, "pg_restore")})

    assert code == result.code, result
    assert [] == beside(filled)


@pytest.mark.parametrize(
    ("any_server", "may"),
    [pytest.param(14, False, id="pg14-closed"), pytest.param(13, True, id="pg13-open")],
    indirect=["any_server"],
)
@pytest.mark.usefixtures("any_server")
def test_schema_that_was_closed_to_everybody_stays_so(
    run: Run, filled: servers.Database, backup_dir: Path, *, may: bool
) -> None:
    """A client from 15 on writes rights as they differ from what 15 gives; a copy has them, too.

    So it is with a backup of an older version of ours, which did not say so.
    """
    asked = "SELECT has_schema_privilege('public', 'public', 'CREATE')"
    if not may:
        filled.query("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    proven = run("backup", env={"PREFLIGHT_REHEARSE": "always"})
    swapped = run("restore", "latest", "--swap")
    file = next(backup_dir.glob("*/manifest.json"))
    said = json.loads(file.read_bytes())
    file.write_text(json.dumps({**said, "lacks": []}))
    beside = run("restore", "latest")

    assert [0, 0, 0] == [proven.code, swapped.code, beside.code], (proven, swapped, beside)
    assert ("restored", 0 if may else 1) == (said["verified"], len(said.get("lacks", [])))
    assert [may, may] == [*filled.query(asked), *restored(filled).query(asked)]


@pytest.mark.parametrize("any_server", [14], indirect=True, ids=["pg14"])
@pytest.mark.usefixtures("any_server")
def test_schema_public_is_closed_by_a_backup_that_has_it(
    run: Run, filled: servers.Database
) -> None:
    """One of other schemas knows nothing of its rights, and leaves what a new database gives.

    Without owners and rights those who had it besides are not given it, which is said.
    """
    asked = "SELECT has_schema_privilege('public', 'public', 'CREATE')"
    filled.script("CREATE SCHEMA app; REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    for schemas, name, may in (("app", "_p", True), ("app,public", "_q", False)):
        env = {"PREFLIGHT_SCHEMAS": schemas}
        assert 0 == run("backup", env=env).code
        assert 0 == run("restore", "latest", "--into", filled.name + name, env=env).code
        assert [may] == restored(filled, name).query(asked)
    bare = run("restore", "latest", "--no-owner", env=env)

    assert 0 == bare.code, bare
    assert [False] == restored(filled).query(asked)
    (warned,) = bare.event("config.warned")
    assert "has no CREATE for everybody on schema public" in warned["warning"]


OFF = """
CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child (p int CONSTRAINT "child FK" REFERENCES
 parent); ALTER TABLE child DISABLE TRIGGER ALL; GRANT ALL ON child TO PUBLIC;
"""
# parts of a key are numbered anew by a restore, and a partition alone is switched by a number
PARTITIONED = """
CREATE TABLE par (id int PRIMARY KEY) PARTITION BY LIST (id);
CREATE TABLE rest PARTITION OF par DEFAULT;
CREATE TABLE ch (id int, p int REFERENCES par) PARTITION BY LIST (id);
CREATE TABLE c1 PARTITION OF ch FOR VALUES IN (1); CREATE TABLE c2 PARTITION OF ch DEFAULT;
CREATE TABLE p1 PARTITION OF par FOR VALUES IN (1);
CREATE TABLE p2 PARTITION OF par FOR VALUES IN (2);
ALTER TABLE par DETACH PARTITION p1; DROP TABLE p1;
ALTER TABLE c2 DISABLE TRIGGER ALL; ALTER TABLE rest DISABLE TRIGGER ALL
"""
ERRORS = (
    "INSERT INTO child VALUES (7)", "UPDATE child SET p = 7", "DELETE FROM parent",
    "UPDATE parent SET id = 2",
)  # fmt: skip
ALIKE = """
CREATE SCHEMA alike; CREATE TABLE alike.parent (id int PRIMARY KEY);
CREATE TABLE alike.child (p int CONSTRAINT "child FK" REFERENCES alike.parent)
"""
DETACHING = """
CREATE TABLE pt (a int) PARTITION BY LIST (a);
CREATE TABLE "Pt1" PARTITION OF pt FOR VALUES IN (1); INSERT INTO pt VALUES (1)
"""


def test_foreign_key_that_is_off_is_off_in_a_copy_and_a_restored_database(
    run: Run, filled: servers.Database, migrations: WriteMigrations
) -> None:
    """pg_restore switches it on; rows that the live database takes are no fault of a file."""
    filled.script(OFF)
    migrations({"001_a.sql": "INSERT INTO child VALUES (7)"})
    tried = run("up", env={"PREFLIGHT_REHEARSE": "always", "PREFLIGHT_FIRST_CONTACT": "pending"})
    filled.query("DELETE FROM child")
    assert 0 == run("backup").code
    swapped = run("restore", "latest", "--swap")

    assert [0, 0] == [tried.code, swapped.code], (tried, swapped)
    (without,) = tried.event("backup.verified")[0]["without"]
    assert 'foreign key "child FK" of public.child' == without["what"]
    assert [] == swapped.event("config.warned")
    filled.query("INSERT INTO child VALUES (8)")


def test_foreign_key_that_is_off_for_a_partition_alone_is_found_again(
    run: Run, filled: servers.Database
) -> None:
    """By the key as it was declared, its table and what it does; what is not meant is on."""
    filled.script(PARTITIONED)
    proven = run("backup", env={"PREFLIGHT_REHEARSE": "always"})
    beside = run("restore", "latest")
    found = []
    for database in (filled, restored(filled)):
        with database.server.connect(database.name) as connection:
            session = cast("Session", connection)
            found.append(catalog.switched(session))
            connection.execute("ALTER TABLE c1 DISABLE TRIGGER ALL")
            assert [] == catalog.switch(session, found[-1])
            assert found[-1] == catalog.switched(session)

    assert [0, 0, []] == [proven.code, beside.code, beside.event("config.warned")], (proven, beside)
    assert [4, found[0]] == [len(found[0]), found[1]]


def test_foreign_key_that_a_role_cannot_switch_off_proves_nothing(
    run: Run, filled: servers.Database, role: str, migrations: WriteMigrations
) -> None:
    """Only a superuser may: the file is not tried, and a restored database says what is on.

    A key of the same name that is on stops a file as ever.
    """
    filled.script(OFF + ALIKE)
    filled.query(SQL("ALTER ROLE {} CREATEDB").format(Identifier(role)))
    tables = ("t", "parent", "child", "alike.parent", "alike.child")
    for what in ("DATABASE {0}", "SCHEMA alike", *(f"TABLE {table}" for table in tables)):
        filled.query(
            SQL(f"ALTER {what} OWNER TO {{1}}").format(*map(Identifier, (filled.name, role)))
        )
    as_role = filled.env(user=role, password=SECRET)
    trial = {"PREFLIGHT_REHEARSE": "auto", "PREFLIGHT_FIRST_CONTACT": "pending"}
    migrations({"001_a.sql": "INSERT INTO alike.child VALUES (7)"})
    alike = run("up", env=as_role | trial)
    migrations({"001_a.sql": "INSERT INTO child VALUES (7)"})
    tried = run("up", env=as_role | trial)
    filled.query("DELETE FROM child")
    assert 0 == run("backup", env=as_role).code
    beside = run("restore", "latest", env=as_role)

    assert [27, 0, 0] == [alike.code, tried.code, beside.code], (alike, tried, beside)
    (skipped,) = tried.event("rehearsal.skipped")
    assert 'live database foreign key "child FK" of public.child is off' in skipped["reason"]
    assert any("switched on: foreign key" in e["warning"] for e in beside.event("config.warned"))


@pytest.mark.parametrize(
    ("off", "said", "before"),
    [
        ("child", ["INSERT INTO child VALUES (7)", "UPDATE child SET p = 7"], ""),
        ("parent", ["DELETE FROM parent", "UPDATE parent SET id = 2"], ""),
        ("child", [], "ALTER TABLE child ENABLE TRIGGER ALL"),
        ("child", [], "ALTER TABLE child ADD FOREIGN KEY (p) REFERENCES parent"),
        ("child", [], "ALTER TABLE child ALTER p TYPE bigint"),
    ],
)
def test_error_of_a_foreign_key_is_excused_by_what_is_off_alone(
    filled: servers.Database, off: str, said: list[str], before: str
) -> None:
    """Not by another key of that name, nor by its other side; nor where a file may switch it on."""
    filled.script(OFF + ALIKE)
    told = []
    with filled.server.connect(filled.name) as connection:
        session = cast("Session", connection)
        connection.execute("ALTER TABLE child ENABLE TRIGGER ALL")
        connection.execute(f"ALTER TABLE {off} DISABLE TRIGGER ALL".encode())
        names = catalog.switched(session)
        connection.execute(f"ALTER TABLE {off} ENABLE TRIGGER ALL; SET ROLE pg_monitor".encode())
        left = catalog.switch(session, names)
        connection.execute("RESET ROLE")
        assert [] == [*limits.switched(left[:1])]
        for place in ("public", "alike"):
            connection.execute(f"SET search_path = {place}".encode())
            connection.execute("INSERT INTO parent VALUES (1); INSERT INTO child VALUES (1)")
            for text in ERRORS:
                failure = RehearsalFailed("a.b", "c")
                with pytest.raises(psycopg.errors.ForeignKeyViolation) as raised:
                    connection.execute(text.encode())
                failure.__cause__ = raised.value
                scripts = [Script("a.sql", f"{before};{text}".encode(), "")]
                if limits.unlike(session, [*limits.switched(left)], scripts, failure):
                    told.append(text if place == "public" else place)

    assert said == told


def test_partition_that_is_being_detached_is_said_to_come_back(
    run: Run, filled: servers.Database, migrations: WriteMigrations
) -> None:
    """A restore attaches it, so a file that finishes the detaching cannot be tried there."""
    filled.script(DETACHING)
    detach = 'ALTER TABLE pt DETACH PARTITION "Pt1" CONCURRENTLY'
    with filled.server.connect(filled.name) as reader, filled.server.connect(filled.name) as other:
        reader.execute("BEGIN; SELECT FROM pt")
        other.execute("SET lock_timeout = 1")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            other.execute(detach.encode())
    migrations({"001_a.sql": detach.replace("CONCURRENTLY", "FINALIZE")})
    proven = run("backup", env={"PREFLIGHT_REHEARSE": "always"})
    beside = run("restore", "latest", "--into", f"{filled.name}_r")
    trial = {"PREFLIGHT_REHEARSE": "auto", "PREFLIGHT_FIRST_CONTACT": "pending"}
    done = run("up", env=trial)

    assert [0, 0, 0] == [proven.code, beside.code, done.code], (proven, beside, done)
    (without,) = proven.event("backup.verified")[0]["without"]
    assert 'partition public."Pt1" of public.pt' == without["what"]
    (skipped,) = done.event("rehearsal.skipped")
    assert 'the detaching of partition public."Pt1" of public.pt is pending' in skipped["reason"]
    (warned,) = beside.event("config.warned")
    assert 'attached again: partition public."Pt1"' in warned["warning"]


# a pg_restore of whose errors nothing is understood, as where jobs tear each other's lines
_UNHEARD = """[ "$1" = --list ] && exec "$REAL" "$@"
{ "$REAL" "$@" 2>&1; echo $? > "$HERE/code"; } | grep -v 'error: could not .*violates' >&2
exit $(cat "$HERE/code")"""
# … and one that does not even say that there were any
_SILENT = '[ "$1" = --list ] && exec "$REAL" "$@"\n"$REAL" "$@" 2>/dev/null || exit 0'
_UNFIT = """
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (p int CONSTRAINT child_fk REFERENCES parent);
ALTER TABLE child DISABLE TRIGGER ALL; INSERT INTO child VALUES (99)
"""


@pytest.mark.parametrize("any_server", [pytest.param(16, id="pg16")], indirect=True)
@pytest.mark.parametrize(("script", "said"), [(_UNHEARD, "counts 1 errors"), (_SILENT, "child_fk")])
@pytest.mark.usefixtures("any_server")
def test_lost_constraint_is_missed_whatever_is_heard(
    run: Run, filled: servers.Database, fakes: Fakes, script: str, said: str
) -> None:
    """Rows are no witness of it; what a client 18 says of transaction_timeout hides nothing."""
    filled.script(_UNFIT)
    run("backup")
    result = run("restore", "latest", "--swap", env={"PATH": fakes.write(script, "pg_restore")})

    assert (24, "restore.failed") == (result.code, error_of(result)["code"])
    assert said in error_of(result)["message"]
    assert [] == beside(filled)


class _CutsRestore(faults.Fault):
    """Cuts the connection of each pg_restore at its first table."""

    def __init__(self) -> None:
        self._caller = threading.local()  # a connection has a thread of its own

    def startup(self, message: bytes) -> None:
        self._caller.restores = b"application_name\0pg_restore\0" in message

    def connected(self) -> faults.Fault:
        return _CutsTable() if self._caller.restores else faults.Fault()


class _CutsTable(faults.Fault):
    def to_client(self, kind: bytes, message: bytes) -> bytes:
        if kind == b"C" and b"CREATE TABLE" in message:
            raise faults.Cut
        return message


@pytest.mark.parametrize("command", [["restore", "latest"], ["backup"]], ids=["restore", "proof"])
def test_lost_connection_of_pg_restore_is_nobodys_lack(
    run: Run, filled: servers.Database, command: list[str]
) -> None:
    """Neither a right of this role's (22) nor a damaged backup (24): run again (14)."""
    with faults.through(filled.server, _CutsRestore()) as proxy:
        run("backup", env=proxy.env())  # a backup is of an address
        proven = {"PREFLIGHT_REHEARSE": "auto", "PREFLIGHT_REHEARSE_ON": "server"}

        result = run(*command, env=proxy.env() | proven)

    assert 14 == result.code, str(result)
    message = result.finished["error"]["message"]
    assert "connection of pg_restore was" in message
    assert "lost" in message
    assert [] == beside(filled)


# --- believed only after a look -------------------------------------------------------------------

CHANGES = {
    "a row deleted": "DELETE FROM t WHERE id = 2",
    "a row changed": "UPDATE t SET t = 'other' WHERE id = 1",
    "a row replaced": "DELETE FROM t WHERE id = 1; INSERT INTO t VALUES (1, 'one')",
    "a table more": "CREATE TABLE notes (id int)",
    "a table less": "DROP TABLE t",
    "another table of that name": "ALTER TABLE t RENAME TO u; CREATE TABLE t AS SELECT * FROM u",
    "a function more": "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "a right more": "GRANT SELECT ON t TO PUBLIC",
    "a sequence on": "SELECT nextval('s')",
    "a right on what will be made": "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC",
    "a default right gone": "ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO PUBLIC",
    "a comment on a language": "COMMENT ON LANGUAGE plpgsql IS 'other'",
    "a large object changed": "SELECT lo_put(4711, 0, 'other')",
}


@pytest.mark.parametrize("change", CHANGES)
def test_restored_database_that_was_written_to_is_not_believed(
    run: Run, filled: servers.Database, change: str
) -> None:
    """Neither as an answer nor as the live one, whatever it was; both stay as they are."""
    filled.script(
        "CREATE SEQUENCE s; SELECT nextval('s'); SELECT lo_from_bytea(4711, 'first'); "
        "ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC"
    )
    run("backup")
    assert 0 == run("restore", "latest").code
    copy = restored(filled)
    copy.script(CHANGES[change])
    answers = [run("restore", "latest"), run("restore", "latest", "--swap")]

    assert [(22, "restore.changed")] * 2 == [(a.code, error_of(a)["code"]) for a in answers]
    if "row" in change or ("table" in change and "more" not in change):
        assert "public." in error_of(answers[0])["message"]
    assert "DROP DATABASE" in error_of(answers[1])["hint"]
    assert [copy.name] == beside(filled)
    assert ALL == filled.query(ROWS)
    copy.query("SELECT 1")  # it can still be looked at


@pytest.mark.parametrize("marks", ["", " (5326 f132)"])
def test_restored_database_of_an_older_version_is_told_as_one(
    marks: str, run: Run, filled: servers.Database
) -> None:
    """Its comment has fewer marks, which are nothing to read out to anybody."""
    run("backup")
    assert 0 == run("restore", "latest").code
    copy = restored(filled)
    query = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s"
    (comment,) = copy.query(query, copy.name)
    whose = comment.partition(" (")[0]
    said = SQL("COMMENT ON DATABASE {} IS {}")
    copy.query(said.format(Identifier(copy.name), Literal(whose + marks)))

    result = run("restore", "latest")

    assert (22, "restore.exists") == (result.code, error_of(result)["code"])
    name = whose.removeprefix("pg-preflight restore: ")
    assert f"is the restore of {name} by an older version, which" in error_of(result)["message"]


def test_restored_database_that_nobody_touched_is_believed(
    outer_server: servers.Server, run: Run, filled: servers.Database
) -> None:
    """Also after VACUUM, a temporary table, and with settings that print values another way.

    For a swap no parallel worker compares, which not every server lets into a closed database.
    """
    assert outer_server is filled.server
    tells = filled.query("SHOW server_version_num")[0] >= "180000"  # how many workers there were
    filled.script("CREATE TABLE d (at timestamptz DEFAULT '2020-01-02 03:04:05+00', x int)")
    with outer_server.connect() as connection:
        for query in (
            "ALTER DATABASE {} SET datestyle TO 'SQL, DMY'",
            "ALTER DATABASE {} SET timezone TO 'Asia/Tokyo'",
            *(["ALTER DATABASE {} SET debug_parallel_query TO on"] if tells else []),
        ):
            connection.execute(SQL(query).format(Identifier(filled.name)))
    run("backup")
    first = run("restore", "latest")
    restored(filled).query("VACUUM FREEZE")
    restored(filled).query("ANALYZE")
    restored(filled).script("CREATE TEMP TABLE own (id serial PRIMARY KEY)")
    restored(filled).script("VACUUM FULL t")
    restored(filled).script("REINDEX TABLE t")
    again = run("restore", "latest")
    workers = [filled.query(WORKERS, restored(filled).name)] if tells else []
    swapped = run("restore", "latest", "--swap")
    workers += [filled.query(WORKERS, filled.name)] if tells else []

    assert [0, 0, 0] == [first.code, again.code, swapped.code], again
    assert ALL == filled.query(ROWS)
    assert workers[:1] == workers[1:]
    assert [0] not in workers


WORKERS = "SELECT parallel_workers_to_launch FROM pg_stat_database WHERE datname = %s"


def test_nobody_gets_in_between_the_comparison_and_the_swap(
    run: Run, start: Start, start_server: StartServer, create_database: CreateDatabase
) -> None:
    """While the rows are compared for a swap, no new session is let in; when it fails, again."""
    live = create_database(start_server(max_prepared_transactions=1), "live")
    live.script("CREATE TABLE t AS SELECT 1 AS id")
    run("backup", env=live.env())
    run("restore", "latest", env=live.env())
    copy = restored(live)
    copy.query("BEGIN; LOCK TABLE t; PREPARE TRANSACTION 'no session, but its lock'")
    process = start("restore", "latest", "--swap", env=live.env())
    closed = "SELECT NOT datallowconn FROM pg_database WHERE datname = %s"
    faults.until(lambda: [True] == live.query(closed, copy.name), "the copy is closed")
    with pytest.raises(psycopg.OperationalError, match="not currently accepting"):
        psycopg.connect(copy.conninfo()).close()

    assert 12 == process.wait().code
    copy.query("ROLLBACK PREPARED 'no session, but its lock'")
    live.query("BEGIN; CREATE TABLE u (); PREPARE TRANSACTION 'order 7'")
    refused = run("restore", "latest", "--swap", "--end-sessions", env=live.env())
    live.query("ROLLBACK PREPARED 'order 7'")
    assert (22, "restore.sessions") == (refused.code, error_of(refused)["code"])
    assert "'order 7' of postgres in 'live'" in error_of(refused)["message"]
    assert "let it finish" in error_of(refused)["hint"]
    assert "ROLLBACK PREPARED 'order 7'" in error_of(refused)["hint"]
    # one that its coordinator ends meanwhile is waited for, as the server does
    live.query("BEGIN; CREATE TABLE v (); PREPARE TRANSACTION 'order 8'")
    patient = start("restore", "latest", "--swap", env=live.env())
    asking = (
        "SELECT FROM pg_stat_activity WHERE query LIKE '%pg_prepared_xacts%' "
        "AND pid <> pg_backend_pid()"
    )
    with live.server.connect() as other:
        faults.until(lambda: other.execute(asking).fetchone() is not None, "it waits")
    live.query("ROLLBACK PREPARED 'order 8'")
    assert 0 == patient.wait().code


def test_swap_that_is_refused_leaves_the_copy_open(run: Run, filled: servers.Database) -> None:
    """Whoever may connect to it before may connect to it after."""
    run("backup")
    run("restore", "latest")
    with psycopg.connect(filled.conninfo()):
        assert 22 == run("restore", "latest", "--swap").code
        assert ALL == restored(filled).query(ROWS)


# --- whose backup it is ---------------------------------------------------------------------------


def test_latest_is_of_this_server(
    run: Run, start_server: StartServer, filled: servers.Database
) -> None:
    """Another server's database of the same name is newer, in the same directory."""
    assert 0 == run("backup").code
    other = servers.Database(start_server(), filled.name)
    with other.server.connect() as connection:
        connection.execute(SQL("CREATE DATABASE {}").format(Identifier(filled.name)))
    assert 0 == run("backup", env=other.env()).code
    result = run("restore", "latest", "--swap")

    assert 0 == result.code, result
    assert ALL == filled.query(ROWS)
    (started,) = result.event("restore.started")
    assert "info" == started["level"]


@pytest.mark.parametrize("what", ["damaged", "another address"])
def test_swap_of_latest_is_refused_where_a_newer_one_may_be_meant(
    run: Run, filled: servers.Database, backup_dir: Path, what: str
) -> None:
    """Rows of an older one would go live in silence: both are named; beside, it is a warning.

    A damaged one whose manifest says that it is of another server is in nobody's way.
    """
    run("backup")
    (path,) = backup_dir.iterdir()
    newer = backup_dir / f"{filled.name}-29991231T000000Z-newer"
    shutil.copytree(path, newer)
    if what == "damaged":
        (newer / "database.dump").write_bytes(b"")
        theirs = backup_dir / f"{filled.name}-29991231T000001Z-theirs"
        shutil.copytree(newer, theirs)
        rewrite(theirs, system_identifier="1")
    else:
        rewrite(newer, sequence=2, address="the.same:5432")
    filled.script("INSERT INTO t VALUES (3, 'since')")
    listed, refused = run("backups"), run("restore", "latest", "--swap")
    drill = run("restore", "latest")

    assert (20, "config.arguments") == (refused.code, error_of(refused)["code"])
    assert newer.name in error_of(refused)["message"]
    assert "-theirs" not in error_of(refused)["message"]
    assert f"restore {path.name} --swap" in error_of(refused)["hint"]
    assert [*ALL, (3, "since")] == filled.query(ROWS)
    assert 0 == drill.code, drill
    assert newer.name in drill.event("config.warned")[0]["warning"]
    assert int(what == "damaged") == len(listed.event("config.warned"))


def kept_by_others(place: Path) -> dict[str, str]:
    """Return what has a tool make each point, which is named `it's`."""
    script = place / "snapshot.py"
    script.write_text(
        "import datetime, json; now = datetime.datetime.now(datetime.UTC).isoformat()\n"
        """print(json.dumps({"backup": "it's", "taken_at": now, "restore": "aws rds x"}))"""
    )
    return {
        "PREFLIGHT_BACKUP": "command",
        "PREFLIGHT_BACKUP_COMMAND": f"{sys.executable} {script}",
        "PREFLIGHT_FIRST_CONTACT": "pending",
    }


def test_latest_is_not_older_than_a_point_that_others_keep(
    run: Run, filled: servers.Database, migrations: WriteMigrations, backup_dir: Path, role: str
) -> None:
    """A swap is refused, beside is a warning, and both say how to come back to the point.

    So does a directory without a dump. Where the history cannot be read it is as it was.
    """
    migrations({"001_one.sql": "CREATE TABLE one ();\n"})
    env = kept_by_others(backup_dir.parent)
    up, alone = run("up", env=env), run("restore", "latest")
    dumped, older = run("backup"), run("restore", "latest")
    (path,) = backup_dir.iterdir()
    filled.script("INSERT INTO t VALUES (3, 'since')")
    pointed = run("backup", env=env)
    refused, drill = run("restore", "latest", "--swap"), run("restore", "latest")
    with filled.server.connect(filled.name) as holder, holder.transaction():
        holder.execute("LOCK TABLE preflight.journal")
        locked = run("restore", "latest", env={"PREFLIGHT_LOCK_TIMEOUT_MS": "100"})
    filled.script("ALTER ROLE " + Identifier(role).as_string(None) + " CREATEDB")
    option = ("--into", f"{filled.name}_other", "--without", "grants", "--no-owner")
    unread = run("restore", "latest", *option, env={"PGUSER": role, "PGPASSWORD": SECRET})

    done = [up, dumped, older, pointed, drill, locked, unread]
    assert [0] * 7 == [each.code for each in done], done
    assert 2 * [(20, "config.arguments")] == [
        (each.code, error_of(each)["code"]) for each in (alone, refused)
    ]
    back = """`restore 'command:it'"'"'s'` says how to come back"""
    assert back in error_of(alone)["hint"]
    assert f"`latest` is {path.name}, and newer" in error_of(refused)["message"]
    assert f"`restore {path.name} --swap` takes the older one" in error_of(refused)["hint"]
    assert back in error_of(refused)["hint"]
    assert [*ALL, (3, "since")] == filled.query(ROWS)
    assert [0, 1, 0] == [len(each.event("config.warned")) for each in (older, drill, locked)]
    assert back in drill.event("config.warned")[0]["warning"]


@pytest.mark.usefixtures("filled")
def test_point_is_not_offered_before_a_newer_dump_that_cannot_be_used(
    run: Run, migrations: WriteMigrations, backup_dir: Path
) -> None:
    """Who comes back to the point loses what the dump has: that is named first, and why."""
    migrations({"001_one.sql": "CREATE TABLE one ();\n"})
    up, backup = run("up", env=kept_by_others(backup_dir.parent)), run("backup")
    (path,) = backup_dir.iterdir()
    manifest = path / "manifest.json"
    kept = manifest.read_text()
    manifest.write_text("{")
    broken = run("restore", "latest")
    manifest.write_text(kept)
    (path / "database.dump").write_bytes(b"")
    damaged = run("restore", "latest")
    rewrite(path, snapshot_at="2000-01-01T00:00:00Z")
    older = run("restore", "latest")

    codes = [each.code for each in (up, backup, broken, damaged, older)]
    assert [0, 0, 20, 20, 20] == codes, broken
    for result in (broken, damaged):
        hint = error_of(result)["hint"]
        assert hint.startswith(f"Newer than what others keep, and of no use as it is: {path.name}")
        assert hint.index("Correct its rights") < hint.index("A point of 2")
    assert error_of(older)["hint"].startswith("A point of 2")


@pytest.mark.usefixtures("filled")
def test_point_stops_no_swap_that_was_done_and_none_of_another_server_s_backup(
    run: Run, migrations: WriteMigrations, backup_dir: Path
) -> None:
    """A job that was evicted is done; what is made of another's dump at night has its own points.

    They are named in a warning then. With --again it is another swap, and refused.
    """
    migrations({"001_one.sql": "CREATE TABLE one ();\n"})
    backup, swapped = run("backup"), run("restore", "latest", "--swap")
    up = run("up", env=kept_by_others(backup_dir.parent))
    once, again = run("restore", "latest", "--swap"), run("restore", "latest", "--swap", "--again")
    (path,) = backup_dir.iterdir()
    rewrite(path, address="old:5432")
    elsewhere = run("restore", "latest", "--swap", "--again")
    rewrite(path, system_identifier="1")
    theirs = run("restore", "latest", "--swap", "--again")

    done = [backup, swapped, up, once, again, elsewhere, theirs]
    assert [0, 0, 0, 0, 20, 20, 0] == [each.code for each in done], done
    assert "swapped in already (20" in once.event("restore.finished")[0]["reason"]
    assert "kept by another tool" in error_of(again)["message"]
    assert "kept by another tool" in theirs.event("config.warned")[0]["warning"]


HANGS = """
CREATE FUNCTION hang() RETURNS event_trigger LANGUAGE plpgsql AS
 $$ BEGIN IF session_user = {} THEN PERFORM pg_sleep(600); END IF; END $$;
CREATE EVENT TRIGGER hang ON login EXECUTE FUNCTION hang();
ALTER EVENT TRIGGER hang ENABLE ALWAYS
"""


def test_history_that_does_not_answer_is_in_no_way_of_the_swap(
    run: Run, filled: servers.Database, role: str
) -> None:
    """Nobody of ours stays connected to the live database who was not let in in time."""
    run("backup")
    who, live = Identifier(role).as_string(None), Identifier(filled.name).as_string(None)
    filled.script(f"ALTER ROLE {who} CREATEDB; ALTER DATABASE {live} OWNER TO {who}")
    filled.script(HANGS.format(Literal(role).as_string(None)))
    env = {"PGUSER": role, "PGPASSWORD": SECRET, "PREFLIGHT_WAIT_TIMEOUT_S": "1"}
    result = run("restore", "latest", "--swap", "--no-owner", "--without", "grants", env=env)

    assert 0 == result.code, result
    assert ALL == filled.query(ROWS)


def test_look_at_the_history_needs_no_right_that_a_hardened_server_takes(
    run: Run, start_server: StartServer, create_database: CreateDatabase
) -> None:
    """Nor does it lose the role that a login trigger chose, which may make databases."""
    live = create_database(start_server())
    live.script(
        f"CREATE ROLE own CREATEDB; CREATE ROLE enters LOGIN PASSWORD 'x' IN ROLE own;"
        f"CREATE TABLE t AS SELECT 1 AS n; ALTER DATABASE {live.name} OWNER TO own"
    )
    servers.Database(live.server, "postgres").script(
        "REVOKE EXECUTE ON FUNCTION pg_terminate_backend(int, bigint) FROM PUBLIC;"
        "CREATE FUNCTION chosen() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF session_user = 'enters' THEN PERFORM set_config('role', 'own', false); END IF; END $$;"
        "CREATE EVENT TRIGGER chosen ON login EXECUTE FUNCTION chosen()"
    )
    backup = run("backup", env=live.env())
    options = ("--into", "beside", "--no-owner", "--without", "grants")
    result = run("restore", "latest", *options, env=live.env("enters", "x"))

    assert (0, 0) == (backup.code, result.code), result
    assert [1] == servers.Database(live.server, "beside").query("SELECT n FROM t")


@pytest.mark.usefixtures("filled")
def test_latest_that_may_be_of_several_servers_is_refused_with_the_list(
    run: Run, backup_dir: Path
) -> None:
    """On a server that has none of its own; by name it goes, with a warning."""
    run("backup")
    run("backup")
    paths = sorted(backup_dir.iterdir())
    for path, system in zip(paths, ("1", "2"), strict=True):
        rewrite(path, system_identifier=system)
    refused = run("restore", "latest")
    named = run("restore", paths[0].name)

    assert (20, "config.arguments") == (refused.code, error_of(refused)["code"])
    assert all(path.name in error_of(refused)["message"] for path in paths)
    assert 0 == named.code, named
    (started,) = named.event("restore.started")
    assert ("warning", True) == (started["level"], "server 1" in started["reason"])


@pytest.mark.usefixtures("filled")
def test_backup_of_the_only_other_server_is_restored_with_a_warning(
    run: Run, backup_dir: Path
) -> None:
    """On the day when the old server is gone."""
    run("backup")
    (path,) = backup_dir.iterdir()
    rewrite(path, system_identifier="1", address="old:5432")
    result = run("restore", "latest")

    assert 0 == result.code, result
    (started,) = result.event("restore.started")
    assert ("warning", True) == (started["level"], "old:5432" in started["reason"])


def rewrite(path: Path, **said: object) -> None:
    """Change what a backup's manifest says; None removes a key."""
    manifest = {**json.loads((path / "manifest.json").read_bytes()), **said}
    kept = {key: value for key, value in manifest.items() if value is not None}
    (path / "manifest.json").write_text(json.dumps(kept))


# --- twice ----------------------------------------------------------------------------------------


def test_swap_of_the_same_backup_is_not_done_twice(
    run: Run, filled: servers.Database, backup_dir: Path
) -> None:
    """A job whose exit status was lost runs again: what was written since stays live."""
    run("backup")
    (path,) = backup_dir.iterdir()
    first = run("restore", "latest", "--swap")
    filled.script("INSERT INTO t VALUES (3, 'since')")
    filled.query(SQL("DROP DATABASE {}").format(Identifier(beside(filled)[0])))
    again = run("restore", "latest", "--swap")
    drill = run("restore", "latest")
    assert [0, 0, 0] == [first.code, again.code, drill.code], again
    (event,) = again.event("restore.finished")
    assert ("warning", True) == (event["level"], path.name in event["reason"])
    assert [*ALL, (3, "since")] == filled.query(ROWS)

    (record,) = path.glob("swap-*.json")
    said = json.loads(record.read_bytes())
    record.write_text(json.dumps({**said, "epoch_s": said["epoch_s"] - 25 * 3600}))
    late = run("restore", "latest", "--swap")
    assert (22, "restore.swapped") == (late.code, error_of(late)["code"])
    assert "--again" in error_of(late)["hint"]
    assert [*ALL, (3, "since")] == filled.query(ROWS)

    assert 0 == run("restore", "latest", "--swap", "--again").code
    assert ALL == filled.query(ROWS)


def test_swap_again_whose_outcome_is_unknown_is_not_done_once_more(
    run: Run, filled: servers.Database
) -> None:
    """13 names the command without --again, and that says when the backup was swapped in last."""
    run("backup")
    assert 0 == run("restore", "latest", "--swap").code
    env = {"PREFLIGHT_WAIT_TIMEOUT_S": "0.5"}
    with faults.through(filled.server, faults.LostAndGone()) as proxy:
        lost = run("restore", "latest", "--swap", "--again", env=proxy.env() | env)
    again = run("restore", "latest", "--swap")

    assert (13, 0) == (lost.code, again.code), str(lost)
    assert "without --again" in str(error_of(lost)["hint"])
    assert "swapped in already (20" in again.event("restore.finished")[0]["reason"]


def test_swap_of_a_backup_that_another_one_replaced_is_not_done_again(
    run: Run, filled: servers.Database, backup_dir: Path
) -> None:
    """A retry that comes late would throw out what took its place: 22, unless it is wanted."""
    run("backup")
    (older,) = backup_dir.iterdir()
    filled.script("INSERT INTO t VALUES (3, 'newer')")
    run("backup")
    swaps = [run("restore", name, "--swap").code for name in (older.name, "latest")]

    again = run("restore", older.name, "--swap")

    assert [0, 0] == swaps
    assert (22, "restore.swapped") == (again.code, error_of(again)["code"])
    assert [*ALL, (3, "newer")] == filled.query(ROWS)
    assert 0 == run("restore", older.name, "--swap", "--again").code
    assert ALL == filled.query(ROWS)


def test_swap_into_another_database_is_nobodys_second_one(
    run: Run, filled: servers.Database, create_database: CreateDatabase
) -> None:
    """What was tried in the place of one is put in the place of the other all the same."""
    staging = create_database(filled.server)
    assert 0 == run("backup").code
    (name,) = (each["backup"] for each in run("backups", "--json").json()["backups"])
    tried = run("restore", name, "--swap", env=staging.env())
    filled.script("TRUNCATE t")
    swapped = run("restore", name, "--swap")
    drop_beside(staging)

    assert [0, 0] == [tried.code, swapped.code], swapped
    assert ALL == staging.query(ROWS) == filled.query(ROWS)


def test_swap_that_failed_is_not_taken_for_done(
    run: Run, filled: servers.Database, backup_dir: Path
) -> None:
    """Its record is there, but the database of that number is not the live one.

    Where there is none of that number any more it may have been.
    """
    run("backup")
    filled.script("DELETE FROM t")
    run("restore", "latest")
    (path,) = backup_dir.iterdir()
    (oid,) = filled.query("SELECT oid FROM pg_database WHERE datname = %s", restored(filled).name)
    system = json.loads((path / "manifest.json").read_bytes())["system_identifier"]
    record = {"database": filled.name, "epoch_s": time.time(), "at": "a moment ago"}
    (path / f"swap-{system}-{oid}.json").write_text(json.dumps(record))
    other = path / f"swap-{system}-1000000001.json"
    other.write_text(json.dumps(record))
    unknown = run("restore", "latest", "--swap")
    other.unlink()

    assert (22, "restore.swapped") == (unknown.code, error_of(unknown)["code"])
    assert "may have been swapped in before" in error_of(unknown)["message"]
    assert 0 == run("restore", "latest", "--swap").code
    assert ALL == filled.query(ROWS)


def test_swap_whose_renames_failed_is_forgotten_with_its_database(
    run: Run, filled: servers.Database, role: str
) -> None:
    """It was recorded before them; what is restored again after that is swapped in."""
    run("backup")
    filled.query(SQL("ALTER ROLE {} CREATEDB").format(Identifier(role)))
    login = {"PGUSER": role, "PGPASSWORD": SECRET}
    options = ("--swap", "--no-owner", "--without", "grants")
    failed = run("restore", "latest", *options, env=login)
    filled.query(SQL("DROP DATABASE {}").format(Identifier(restored(filled).name)))
    done = run("restore", "latest", "--swap")

    assert (22, "restore.no_right") == (failed.code, error_of(failed)["code"]), failed
    assert 0 == done.code, done


def test_swap_that_cannot_be_recorded_is_refused(
    run: Run, filled: servers.Database, backup_dir: Path
) -> None:
    """It could be done twice; --again says that this is known."""
    run("backup")
    (path,) = backup_dir.iterdir()
    assert 0 == run("restore", "latest").code
    (number,) = filled.query(
        "SELECT oid FROM pg_database WHERE datname = %s", restored(filled).name
    )
    system = json.loads((path / "manifest.json").read_bytes())["system_identifier"]
    (path / f".swap-{system}-{number}.json.new").mkdir()
    refused = run("restore", "latest", "--swap")

    assert (23, "backup.directory") == (refused.code, error_of(refused)["code"])
    assert 0 == run("restore", "latest", "--swap", "--again").code


# --- what reaches others, and what cannot be dropped ----------------------------------------------


def test_subscription_does_not_come_alive_in_a_restored_database(
    run: Run, filled: servers.Database
) -> None:
    """It would take its origin's place at the publisher, and keep the copy from being dropped."""
    filled.query(
        "CREATE SUBSCRIPTION live_sub CONNECTION 'dbname=x' PUBLICATION p WITH (connect = false)"
    )
    try:
        run("backup")
        result = run("restore", "latest")

        assert 0 == result.code, result
        assert [["subscription live_sub"]] == [
            event["left_out"] for event in result.event("restore.finished")
        ]
        assert [] == restored(filled).query(
            "SELECT s.subname::text FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid "
            "WHERE d.datname = current_database()"
        )
    finally:
        filled.query("ALTER SUBSCRIPTION live_sub SET (slot_name = NONE)")
        filled.query("DROP SUBSCRIPTION live_sub")


def test_database_that_cannot_be_dropped_hides_no_reason(
    run: Run, start: Start, start_server: StartServer, create_database: CreateDatabase, fakes: Fakes
) -> None:
    """The failure is the first one; the next call says what is in the way, and --into goes on."""
    live = create_database(start_server(max_prepared_transactions=1), "live")
    live.script("CREATE TABLE t AS SELECT 1 AS id")
    run("backup", env=live.env())
    path = fakes.hold_restore("exit 1")
    process = start("restore", "latest", env={**live.env(), "PATH": path})
    faults.until((fakes.here / "waiting").exists, "pg_restore has begun")
    restored(live).query("BEGIN; CREATE TABLE x (); PREPARE TRANSACTION 'in the way'")
    fakes.let_go()
    first, second = process.wait(), run("restore", "latest", env=live.env())
    third = run("restore", "latest", "--into", "another", env=live.env())

    assert (14, "restore.client") == (first.code, error_of(first)["code"])
    assert [True] == ["dropped" in event["warning"] for event in first.event("config.warned")]
    assert (22, "restore.exists") == (second.code, error_of(second)["code"])
    assert "prepared" in error_of(second)["message"]
    assert 0 == third.code, third


# --- manifests that somebody else wrote -----------------------------------------------------------


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    "what", ["fifo", "link to a device", "nested", "rows", "taken_for", "dump is a fifo"]
)
def test_bad_backup_hides_no_good_one(run: Run, backup_dir: Path, what: str) -> None:
    """It is left out of the list; asked for by name it is 24, saying what is wrong."""
    run("backup")
    (good,) = backup_dir.iterdir()
    bad = backup_dir / f"{good.name}-bad"
    shutil.copytree(good, bad)
    manifest, dump = bad / "manifest.json", bad / "database.dump"
    match what:
        case "fifo":
            manifest.unlink()
            os.mkfifo(manifest)
        case "link to a device":
            manifest.unlink()
            manifest.symlink_to("/dev/zero")
        case "nested":
            manifest.write_text("[" * 100_000)
        case "rows":
            rewrite(bad, rows=["public.t"])
        case "taken_for":
            rewrite(bad, taken_for="up")
        case "dump is a fifo":
            dump.unlink()
            os.mkfifo(dump)
            rewrite(bad, size_bytes=0)
    listed, restores, named = run("backups"), run("restore", "latest"), run("restore", bad.name)

    assert [good.name] == [event["backup"] for event in listed.event("backup.listed")]
    assert [0, 0, 24] == [listed.code, restores.code, named.code], named
    assert "backup.corrupt" == error_of(named)["code"]


def test_newest_backup_that_lost_its_manifest_stops_latest(
    run: Run, filled: servers.Database, backup_dir: Path
) -> None:
    """An older one never goes live without a word; `backups` and the next backup say it, too."""
    run("backup")
    (older,) = backup_dir.iterdir()
    filled.script("INSERT INTO t VALUES (3, 'three')")
    run("backup")
    (newest,) = {*backup_dir.iterdir()} - {older}
    (newest / "manifest.json").unlink()
    swapped, named = run("restore", "latest", "--swap"), run("restore", newest.name)
    listed, after = run("backups"), run("backup")

    assert [20, 24, 0, 0] == [each.code for each in (swapped, named, listed, after)], swapped
    assert [1, 2, 3] == filled.query("SELECT id FROM t ORDER BY id")
    lost = "its manifest.json is not there"
    assert f"{newest.name} (cannot be used: {lost})" in error_of(swapped)["message"]
    said = [str(each.event("config.warned")) for each in (listed, after)]
    assert [True] * 2 == [f"{newest.name} ({lost})" in each for each in said]


@pytest.mark.usefixtures("filled")
def test_backup_of_another_user_is_not_called_a_damaged_one(
    run: Run, environment: dict[str, str], backup_dir: Path
) -> None:
    """By its name it is 23, with who made it; nobody says that there is none at all."""
    run("backup")
    (path,) = backup_dir.iterdir()

    def ask(*args: str, shut: Path = path) -> program.Result:
        rights = shut.stat().st_mode
        shut.chmod(0)
        result = run_without_privileges(environment, *args)
        shut.chmod(rights)
        return result

    named, latest, table = ask("restore", path.name), ask("restore", "latest"), ask("backups")
    listed = ask("backups", "--table", shut=path / "manifest.json")
    place = ask("restore", "latest", shut=backup_dir)

    whose = f"Permission denied (it is of user {os.getuid()}, and this is user {os.getuid()})"
    assert (23, "backup.directory") == (named.code, error_of(named)["code"])
    assert whose in error_of(named)["message"]
    assert error_of(named)["hint"].startswith("Correct its rights, or run as the user that made")
    assert [20, 0, 0, 23] == [each.code for each in (latest, table, listed, place)]
    assert whose in error_of(latest)["hint"]
    assert whose in table.event("config.warned")[0]["warning"]
    none = f"there is no backup in {backup_dir} that can be used, and 1 that cannot\n"
    assert none == listed.stdout
    assert error_of(place)["hint"].startswith("Correct its rights")


@pytest.mark.parametrize("key", ["rows", "sha256"])
def test_manifest_that_lacks_what_is_compared_is_24(
    run: Run, filled: servers.Database, backup_dir: Path, key: str
) -> None:
    """Without the hash or the counts nobody can say that it is whole."""
    run("backup")
    (path,) = backup_dir.iterdir()
    rewrite(path, **{key: None})
    result = run("restore", "latest")

    assert (24, "backup.corrupt") == (result.code, error_of(result)["code"])
    assert key in error_of(result)["message"]
    assert [] == beside(filled)


# --- what belongs to the database itself ----------------------------------------------------------

BELONGINGS = (
    "ALTER DATABASE {d} CONNECTION LIMIT 20",
    "REVOKE ALL ON DATABASE {d} FROM PUBLIC",
    "GRANT CONNECT ON DATABASE {d} TO {r}",
    "ALTER DATABASE {d} OWNER TO {r}",
    "REVOKE CREATE ON DATABASE {d} FROM {r}",
    "ALTER DATABASE {d} SET search_path TO shop, public",
    "ALTER DATABASE {d} SET TimeZone TO 'Asia/Tokyo'",
    "ALTER ROLE {r} IN DATABASE {d} SET statement_timeout TO '3min'",
    "COMMENT ON DATABASE {d} IS 'the one'",
)
PLACE = (
    "SELECT spcname::text, pg_encoding_to_char(encoding)::text, datcollate::text, "
    "shobj_description(d.oid, 'pg_database') FROM pg_database d "
    "JOIN pg_tablespace t ON t.oid = dattablespace WHERE datname = %s"
)


BROUGHT = (
    "SELECT nspname::text FROM pg_namespace WHERE nspname = 'public' "
    "UNION ALL SELECT extname::text FROM pg_extension"
)


def own(database: servers.Database) -> list[Any]:
    """Return what belongs to a database, in words that hold on every server."""
    found: list[Any] = [database.query(query, database.name) for query in (PLACE, GRANTS, SETTINGS)]
    return [
        *found,
        database.query(BROUGHT),
        database.query("SELECT datconnlimit FROM pg_database WHERE datname = %s", database.name),
    ]


def provide(server: servers.Server, *tablespaces: str) -> None:
    """Give a server of the test's own the role and tablespaces."""
    with server.connect() as connection:
        connection.execute("CREATE ROLE keeper LOGIN PASSWORD 'keeper'")
        connection.execute("SET allow_in_place_tablespaces = on")
        for name in tablespaces or ("big", "fast"):
            connection.execute(SQL("CREATE TABLESPACE {} LOCATION ''").format(Identifier(name)))


@pytest.fixture
def special(start_server: StartServer, create_database: CreateDatabase) -> servers.Database:
    """Give a database with belongings of every kind, on a server of its own."""
    server = start_server()
    provide(server)
    options = "TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C' TABLESPACE big"
    made = create_database(server, "special", options)
    made.script("DROP SCHEMA public; DROP EXTENSION plpgsql")
    made.script(
        "CREATE SCHEMA shop; CREATE TABLE shop.t AS SELECT 1 AS id;"
        "ALTER TABLE shop.t ADD PRIMARY KEY (id) USING INDEX TABLESPACE fast"
    )
    names = {"d": Identifier("special"), "r": Identifier("keeper")}
    with server.connect() as connection:
        for command in BELONGINGS:
            connection.execute(SQL(command).format(**names))
    return made


@pytest.mark.parametrize("there", [False, True])
def test_new_server_gets_everything_that_belonged_to_the_database(
    run: Run, start_server: StartServer, special: servers.Database, *, there: bool
) -> None:
    """Also where somebody has made an empty database of that name."""
    assert 0 == run("backup", env=special.env()).code
    before = own(special)
    elsewhere = servers.Database(start_server(), special.name)
    provide(elsewhere.server)
    if there:
        with elsewhere.server.connect() as connection:
            connection.execute("CREATE DATABASE special")
            connection.execute("COMMENT ON DATABASE special IS 'the one'")
    result = run("restore", "latest", "--swap", env=elsewhere.env())

    assert 0 == result.code, result
    assert before == own(elsewhere)
    assert [1] == elsewhere.query("SELECT id FROM t")
    (started,) = result.event("restore.started")
    assert there == ("grants" in started["differs"])


def test_what_the_new_server_lacks_is_named_before_anything_is_restored(
    run: Run, start_server: StartServer, special: servers.Database
) -> None:
    """All of it at once; without it the restore goes on, and lets nobody in.

    A tablespace that holds an index alone is found lacking later, and no reason to leave that out.
    Without tablespaces none is used, whatever the database's settings say.
    """
    special.query("ALTER DATABASE special SET default_tablespace = 'fast'")
    assert 0 == run("backup", env=special.env()).code
    flat = run(
        "restore", "latest", "--into", "special_flat", "--without", "tablespace", env=special.env()
    )
    assert 0 == flat.code, flat
    assert [] == restored(special, "_flat").query(
        "SELECT relname::text FROM pg_class WHERE reltablespace <> 0 AND NOT relisshared"
    )
    special.query("ALTER DATABASE special RESET default_tablespace")
    elsewhere = servers.Database(start_server(), special.name)
    refused = run("restore", "latest", "--swap", env=elsewhere.env())
    with elsewhere.server.connect() as connection:
        left = connection.execute("SELECT datname FROM pg_database WHERE datname ~ 'spec'")
        assert [] == left.fetchall()
    provide(elsewhere.server, "big")
    placeless = run("restore", "latest", env=elsewhere.env())
    options = ("--swap", "--without", "tablespace,grants,settings")
    result = run("restore", "latest", *options, env=elsewhere.env())

    assert (22, "restore.lacking") == (refused.code, error_of(refused)["code"])
    message = error_of(refused)["message"]
    assert [] == [
        what
        for what in ("tablespace big", "owner keeper", "statement_timeout of role keeper")
        if what not in message
    ]
    assert "--without tablespace,grants,settings (grants" in error_of(refused)["hint"]
    assert (22, "restore.lacking") == (placeless.code, error_of(placeless)["code"])
    assert "CREATE TABLESPACE" in error_of(placeless)["hint"]
    assert "--without tablespace" in error_of(placeless)["hint"]
    assert "--skip" not in error_of(placeless)["hint"]
    assert 0 == result.code, result
    assert [("pg_default", "LATIN1", "C", "the one")] == elsewhere.query(PLACE, special.name)
    assert [] == elsewhere.query(SETTINGS, special.name)
    rights = elsewhere.query(GRANTS, special.name)
    assert {"postgres"} == {role for role, *_ in rights}
    assert any("GRANT CONNECT" in event["warning"] for event in result.event("config.warned"))


def test_older_backup_on_a_new_server_lets_nobody_in(
    run: Run, start_server: StartServer, filled: servers.Database, backup_dir: Path
) -> None:
    """It does not say who might connect; the way to let them in is said."""
    run("backup")
    (path,) = backup_dir.iterdir()
    rewrite(path, belongings=None)
    elsewhere = servers.Database(start_server(), filled.name)
    result = run("restore", "latest", "--swap", env=elsewhere.env())

    assert 0 == result.code, result
    assert {"postgres"} == {role for role, *_ in elsewhere.query(GRANTS, filled.name)}
    (warned,) = result.event("config.warned")
    assert "GRANT CONNECT" in warned["warning"]


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    "said",
    [
        [],
        {"owner": "postgres"},
        {"settings": [{"role": 1, "setting": "a=b"}]},
        {"grants": ["CREATE"]},
        {"owner": "post\0gres"},
        {"locale_provider": "i"},
    ],
)
def test_belongings_that_somebody_else_wrote_are_24(
    run: Run,
    backup_dir: Path,
    said: Any,  # noqa: ANN401 - JSON
) -> None:
    """Of another type, cut, or with what no name can hold; the key is named."""
    run("backup")
    (path,) = backup_dir.iterdir()
    known = json.loads((path / "manifest.json").read_bytes())["belongings"]
    changed = {**known, **said} if isinstance(said, dict) and len(said) == 1 else said
    rewrite(path, belongings={"owner": "postgres"} if said == {"owner": "postgres"} else changed)
    result = run("restore", "latest")

    assert (24, "backup.corrupt") == (result.code, error_of(result)["code"])


def test_restored_database_whose_rights_were_changed_is_not_believed(
    run: Run, filled: servers.Database
) -> None:
    """Its settings and who may connect would go live with it."""
    run("backup")
    run("restore", "latest")
    copy = restored(filled)
    copy.query(SQL("GRANT CREATE ON DATABASE {} TO PUBLIC").format(Identifier(copy.name)))
    result = run("restore", "latest", "--swap")

    assert (22, "restore.changed") == (result.code, error_of(result)["code"])


def test_scratch_copy_lies_where_its_origin_does_or_not_at_all(
    run: Run, start_server: StartServer, special: servers.Database
) -> None:
    """A role that may not use the tablespace would fill the default disk: skipped, and said.

    On a server of its own it lies anywhere: what is compared is not where.
    """
    url = f"postgresql://postgres:{quote(servers.PASSWORD)}@{servers.HOST}:{start_server().port}/"
    on_url = {"PREFLIGHT_REHEARSE": "always", "PREFLIGHT_REHEARSE_URL": f"{url}postgres"}
    apart = run("backup", env={**special.env(), **on_url})
    assert (0, 1) == (apart.code, len(apart.event("rehearsal.passed"))), str(apart)
    assert [] == apart.event("rehearsal.progressed")
    with special.server.connect() as connection:
        connection.execute("ALTER ROLE keeper CREATEDB")
        connection.execute("GRANT pg_read_all_data TO keeper")
    special.script("ALTER SCHEMA shop OWNER TO keeper; ALTER TABLE shop.t OWNER TO keeper")
    login = {"PGUSER": "keeper", "PGPASSWORD": "keeper"}
    env = {**special.env(), **login, "PREFLIGHT_REHEARSE": "auto"}
    skipped = run("backup", env=env)
    for space in ("big", "fast"):
        special.query(SQL("GRANT CREATE ON TABLESPACE {} TO keeper").format(Identifier(space)))
    passed = run("backup", env=env)
    special.script(
        "REVOKE CREATE ON TABLESPACE fast FROM keeper;"
        "ALTER TABLE shop.t DROP CONSTRAINT t_pkey; CREATE INDEX i ON shop.t (id) TABLESPACE fast"
    )
    without_index = run("backup", env=env)

    assert 0 == skipped.code, skipped
    (event,) = skipped.event("rehearsal.skipped")
    assert (0, True) == (skipped.code, "tablespace big" in event["reason"])
    assert (0, 1) == (passed.code, len(passed.event("rehearsal.passed"))), passed
    (event,) = without_index.event("rehearsal.skipped")
    assert (0, True) == (without_index.code, "INDEX i" in event["reason"]), event
    assert [] == without_index.event("rehearsal.progressed")  # owners and rights are not to blame


def test_role_that_the_server_lacks_is_named_and_can_be_done_without(
    run: Run, database: servers.Database
) -> None:
    """All of them at once, before a row is restored (22); what the hint says goes on, typed so.

    The database itself may belong to one: no more is left out than has to be.
    """
    gone = [f"{database.name}_gone_{n}" for n in range(2)]
    database.script(
        f"CREATE TABLE t AS SELECT 1 id; CREATE ROLE {gone[0]}; CREATE ROLE {gone[1]}; "
        f"GRANT SELECT ON t TO {gone[0]}; CREATE TABLE theirs (); "
        f"ALTER TABLE theirs OWNER TO {gone[1]}; ALTER DATABASE {database.name} SET my.own = 'x'; "
        f"GRANT CREATE ON DATABASE {database.name} TO {gone[0]}"
    )
    assert 0 == run("backup").code
    database.script(
        f"DROP TABLE theirs; REVOKE ALL ON t FROM {gone[0]}; "
        f"REVOKE ALL ON DATABASE {database.name} FROM {gone[0]}; DROP ROLE {gone[0]}; "
        f"DROP ROLE {gone[1]}"
    )

    refused = run("restore", "latest")
    itself = run("restore", "latest", "--no-owner")
    done = run("restore", "latest", "--no-owner", "--without", "grants", "--swap")

    error = refused.finished["error"]
    assert (22, "restore.lacking") == (refused.code, error["code"]), refused
    assert [] == [role for role in gone if f'CREATE ROLE "{role}";' not in error["hint"]]
    assert "rights: --no-owner --without grants (grants: also the owner)." in error["hint"]
    again = "out: --no-owner --without grants (grants: also the owner)."
    assert again in error_of(itself)["hint"]
    assert 0 == done.code, done
    assert ["my.own=x"] == [setting for _, setting in database.query(SETTINGS, database.name)]
    assert [1] == database.query("SELECT id FROM t")
    database.query("SELECT * FROM theirs")


def test_policy_that_names_a_lacking_role_is_left_out_as_the_hints_say(
    run: Run, filled: servers.Database
) -> None:
    """Each hint, typed as it stands, has what was said before, and asks for nothing again."""
    gone = f"{filled.name} gone"
    filled.script(
        f'CREATE ROLE "{gone}"; CREATE POLICY one ON t TO "{gone}"; ALTER TABLE t OWNER TO "{gone}"'
        f';CREATE POLICY two ON t TO "{gone}"; GRANT CREATE ON DATABASE {filled.name} TO "{gone}"'
    )
    run("backup")
    filled.script(
        "ALTER TABLE t OWNER TO postgres; DROP POLICY one ON t; DROP POLICY two ON t;"
        f'REVOKE CREATE ON DATABASE {filled.name} FROM "{gone}"; DROP ROLE "{gone}"'
    )
    first = run("restore", "latest")
    said = re.search(r"rights: (--no-owner .+) \(grants:", error_of(first)["hint"])
    assert said, first
    second = run("restore", "latest", *shlex.split(said[1]))
    more = re.search(r"go without: (--no-owner .+) leaves entries out", error_of(second)["hint"])
    assert more, second
    third = run("restore", "latest", *shlex.split(more[1]))

    assert (22, 22, 0) == (first.code, second.code, third.code), third
    skips = [f"--skip 'POLICY public t {name} {gone}'" for name in ("one", "two")]
    assert f"--no-owner {' '.join(skips)} --without grants" == more[1]
    assert ALL == restored(filled).query(ROWS)


@pytest.mark.parametrize(
    "options",
    [
        ("--no-owner",),
        ("--without", "grants"),
        ("--skip", "TABLE t", "--skip", "TABLE DATA t", "--skip", "CONSTRAINT t t_pkey"),
    ],
)
def test_restore_with_other_options_is_not_swapped_in(
    run: Run, filled: servers.Database, options: tuple[str, ...]
) -> None:
    """What lacks owners, rights or a table takes no place that nobody gave it."""
    assert 0 == run("backup").code
    first = run("restore", "latest", *options)
    refused = run("restore", "latest", "--swap")
    again = run("restore", "latest", *options)
    swapped = run("restore", "latest", *options, "--swap")

    assert (0, 0, 0) == (first.code, again.code, swapped.code), (first, again, swapped)
    error = refused.finished["error"]
    assert (22, "restore.exists") == (refused.code, error["code"]), refused
    assert "with other options" in error["message"]
    (rows,) = {result.event("restore.finished")[0]["rows"] for result in (first, again, swapped)}
    assert (0 if "--skip" in options else 2) == rows
    assert bool(rows) == filled.query("SELECT to_regclass('t') IS NOT NULL")[0]


@pytest.mark.parametrize("lack", ["disk", "room", "right"])
def test_what_the_server_lacks_makes_no_backup_a_bad_one(
    run: Run, database: servers.Database, lack: str
) -> None:
    """A limit, the number of connections, and a right are the server's and the role's: not 24."""
    role, owner = f"{database.name}_limited", f"{database.name}_owner"
    limits = {
        "disk": f"ALTER ROLE {role} SET temp_file_limit = '64kB';"
        f"ALTER ROLE {role} SET maintenance_work_mem = '1MB'",
        "room": f"ALTER ROLE {role} CONNECTION LIMIT 1",
        "right": f"ALTER ROLE {role} NOINHERIT",
    }
    database.script(
        f"CREATE ROLE {owner}; CREATE ROLE {role} LOGIN CREATEDB PASSWORD 'x';"
        f"GRANT {owner} TO {role}; GRANT CREATE ON SCHEMA public TO {owner};"
        "CREATE TABLE many AS SELECT n, md5(n::text) AS name FROM generate_series(1, 100000) n;"
        f"ALTER TABLE many ADD PRIMARY KEY (name); ALTER TABLE many OWNER TO {owner}"
    )
    assert 0 == run("backup").code
    database.script(limits[lack])
    env = database.env(user=role, password="x")  # noqa: S106 -- as it says
    try:
        refused = run("restore", "latest", "--without", "grants", env=env)
        left = beside(database)
    finally:
        drop_beside(database)
        database.script(
            f"DROP OWNED BY {owner}, {role} CASCADE; DROP ROLE {role}; DROP ROLE {owner}"
        )

    error = refused.finished["error"]
    codes = {"disk": "restore.no_room", "room": "server.not_ready", "right": "restore.lacking"}
    assert codes[lack] == error["code"], refused
    assert [] == left


def test_what_a_role_cannot_have_is_named_and_can_be_skipped(
    run: Run, database: servers.Database
) -> None:
    """22 and the very options that go without; the rest is there, and no limit is in the way."""
    role = f"{database.name}_plain"
    database.script(
        "CREATE EXTENSION pageinspect; CREATE TABLE t AS SELECT 1 id; GRANT SELECT ON t TO PUBLIC; "
        f"CREATE ROLE {role} LOGIN CREATEDB PASSWORD 'x';"
        "CREATE FUNCTION sorts() RETURNS int LANGUAGE sql SET temp_file_limit = -1 AS 'SELECT 1'"
    )
    assert 0 == run("backup").code
    env = database.env(user=role, password="x")  # noqa: S106 -- as it says
    how = ("restore", "latest", "--into", f"{database.name}_r", "--without", "grants", "--no-owner")
    skip = ("--skip", "EXTENSION pageinspect", "--skip", "FUNCTION public sorts()")
    try:
        refused = [run(*how, *skip[:some], env=env) for some in (0, 2)]
        done = run(*how, *skip, env=env)
        restored = servers.Database(database.server, f"{database.name}_r")
        rows = restored.query("SELECT id FROM t") if done.code == 0 else None
    finally:
        with database.server.connect() as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {database.name}_r WITH (FORCE)".encode())
            connection.execute(f"DROP ROLE {role}".encode())

    assert ["restore.lacking"] * 2 == [each.finished["error"]["code"] for each in refused], refused
    for entry, each in zip(skip[1::2], refused, strict=True):
        assert f"--skip '{entry}" in each.finished["error"]["hint"]
    assert (0, [1]) == (done.code, rows), done


def test_hint_that_says_what_to_skip_goes_on_when_it_is_typed(
    run: Run, filled: servers.Database, role: str
) -> None:
    """Each one has what was said before, and what is nothing without that goes along: it ends."""
    other, me = f"{filled.name}_other", Identifier(role).as_string(None)
    filled.script(
        f"CREATE ROLE {other}; CREATE SCHEMA au AUTHORIZATION {other}; ALTER ROLE {me} CREATEDB;"
        'CREATE TABLE au."it\'s" (id int PRIMARY KEY, x int DEFAULT 1); CREATE INDEX ON '
        f'au."it\'s" (x); ALTER TABLE au."it\'s" OWNER TO {other}; ALTER TABLE t OWNER TO {me};'
        'ALTER TABLE t ADD FOREIGN KEY (id) REFERENCES au."it\'s" NOT VALID;'
        "GRANT SELECT ON ALL TABLES IN SCHEMA au TO PUBLIC"
    )
    login = {"PGUSER": role, "PGPASSWORD": SECRET}
    how = ["restore", "latest", "--without", "grants"]
    hints: list[list[str]] = []
    try:
        assert 0 == run("backup").code
        result = run(*how, env=login)
        while result.code == 22 and len(hints) < 4:
            said = re.search(r"(--skip [^,]+) leaves entries out", error_of(result)["hint"])
            assert said, result
            hints.append(shlex.split(said[1]))
            result = run(*how[:2], *hints[-1], env=login)
        rows = restored(filled).query(ROWS) if result.code == 0 else None
    finally:
        drop_beside(filled)
        filled.script(f"DROP OWNED BY {other} CASCADE; DROP ROLE {other}")

    skip = ["--skip", f"SCHEMA au {other}", "--skip", f"TABLE au it's {other}"]
    key = ["--skip", f"FK CONSTRAINT public t t_id_fkey {role}"]
    assert [[*skip, *how[2:]], [*skip, *key, *how[2:]]] == hints
    assert (0, ALL) == (result.code, rows), result
    along = [each["warning"] for each in result.event("config.warned") if "--skip" in str(each)]
    assert f"TABLE DATA au it's {other}" in along[0]


def test_beginning_of_a_name_is_enough_where_only_one_has_it(
    run: Run, database: servers.Database, backup_dir: Path
) -> None:
    """Several are listed (20); a typing error is told what was meant."""
    for _ in range(2):
        assert 0 == run("backup").code
    first, second = sorted(path.name for path in backup_dir.iterdir())
    common = first[: len(database.name) + 3]

    several = run("restore", common)
    typo = run("restore", "lastest")
    one = run("restore", first[:-1])

    assert (20, 20, 0) == (several.code, typo.code, one.code), one
    assert first in several.finished["error"]["message"]
    assert second in several.finished["error"]["message"]
    assert "Did you mean latest?" in typo.finished["error"]["hint"]
    assert first == one.event("restore.finished")[0]["backup"]


KNOWN = """
CREATE TABLE known ({}); SELECT pg_catalog.pg_extension_config_dump('known', '');
"""
ONLY_HERE = """
DO $$ BEGIN IF pg_catalog.current_database() <> 'd' THEN RAISE 'only in d'; END IF; END $$;
CREATE TABLE job (id int); SELECT pg_catalog.pg_extension_config_dump('job', '');
"""


def test_extension_that_is_old_or_fits_one_database_has_a_way_back(
    run: Run, start_server: StartServer
) -> None:
    """The old one is made in its version, where its rows fit; the other is left out by name.

    What one brings along that is in no backup is nothing that somebody made since.
    """
    server = start_server(18)
    place = server.put("mark", "").parent / "ext" / "extension"
    place.mkdir(parents=True)
    (place / "grown.control").write_text("default_version = '2'\nrelocatable = true\n")
    (place / "grown--1.sql").write_text(KNOWN.format("id int, gone text"))
    (place / "grown--2.sql").write_text(KNOWN.format("id int"))
    (place / "crony.control").write_text("default_version = '1'\nrelocatable = true\n")
    (place / "crony--1.sql").write_text(ONLY_HERE)
    for path in (place.parent, place):
        path.chmod(0o755)
    server.configure(extension_control_path=f"$system:{place.parent}")
    server.reload()
    servers.Database(server, "postgres").query("CREATE DATABASE d")
    database = servers.Database(server, "d")
    database.script(
        "CREATE SCHEMA tools; CREATE EXTENSION grown SCHEMA tools VERSION '1';"
        "INSERT INTO tools.known VALUES (1, 'x'); CREATE TABLE mine AS SELECT 1 AS id"
    )
    env = database.env()
    assert 0 == run("backup", env=env).code
    old = run("restore", "latest", "--into", "e", env=env)
    alone = env | {"PREFLIGHT_SCHEMAS": "public"}
    assert 0 == run("backup", env=alone).code
    part = [run("restore", "latest", "--into", "g", env=alone) for _ in range(2)]
    servers.Database(server, "g").query("CREATE TABLE later ()")
    part.append(run("restore", "latest", "--into", "g", env=alone))
    database.script("CREATE EXTENSION crony; INSERT INTO job VALUES (1)")
    assert 0 == run("backup", env=env).code
    refused = run("restore", "latest", "--into", "f", env=env)
    skips = ("--skip", "EXTENSION crony", "--skip", "TABLE DATA job")
    without = run("restore", "latest", "--into", "f", *skips, env=env)

    assert 0 == old.code, old
    version = "SELECT extversion FROM pg_extension WHERE extname = 'grown'"
    assert ["1"] == servers.Database(server, "e").query(version)
    assert [(1, "x")] == servers.Database(server, "e").query("SELECT * FROM tools.known")
    assert (22, "restore.lacking") == (refused.code, refused.finished["error"]["code"]), refused
    assert "--skip 'EXTENSION crony'" in refused.finished["error"]["hint"]
    assert 0 == without.code, without
    assert [1] == servers.Database(server, "f").query("SELECT id FROM mine")
    assert [0, 0, 22] == [each.code for each in part], part[1]
    assert "tools.known" not in error_of(part[2])["message"]
