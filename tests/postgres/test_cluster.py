"""What is around a database: read from the live server by any role, made on a throwaway one."""

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from preflight.base.config import Config
from preflight.rehearsal import cluster, local
from preflight.server import sessions
from tests import servers
from tests.conftest import CreateDatabase

MAJORS = (16, 17, 18)
PASSWORD = "secret"  # noqa: S105 - of servers that live for a minute
NAMES = ("own", "app", "audit", "boss", "reader", 'odd "one"', "idle_boss", "chief")
ROLES = """
CREATE ROLE {own}; CREATE ROLE {app} LOGIN PASSWORD 'secret' CREATEDB;
CREATE ROLE {audit} BYPASSRLS NOINHERIT; CREATE ROLE {boss} SUPERUSER;
CREATE ROLE {reader}; CREATE ROLE {odd "one"} CREATEROLE; CREATE ROLE {idle_boss} SUPERUSER;
CREATE ROLE {chief} SUPERUSER; GRANT {chief} TO {app};
GRANT {own} TO {app} WITH INHERIT TRUE, SET FALSE; GRANT {reader} TO {audit} WITH ADMIN OPTION;
GRANT {own} TO {odd "one"} WITH ADMIN OPTION; GRANT {own} TO {app} GRANTED BY {odd "one"};
GRANT {own} TO {audit} WITH ADMIN OPTION GRANTED BY {odd "one"};
GRANT pg_read_all_data TO {app}; ALTER ROLE {app} SET work_mem = '8MB';
"""
OBJECTS = """
CREATE SCHEMA {boss} AUTHORIZATION {boss}; CREATE TABLE public.cat (name text);
ALTER TABLE public.cat OWNER TO {own}; ALTER TABLE public.cat ENABLE ROW LEVEL SECURITY;
CREATE POLICY mine ON public.cat TO {reader}; GRANT SELECT ON public.cat TO {audit};
ALTER DEFAULT PRIVILEGES FOR ROLE {odd "one"} GRANT SELECT ON TABLES TO {reader};
"""

GIVEN = """
ALTER TYPE geo.cube OWNER TO {own}; ALTER FUNCTION geo.cube_dim(geo.cube) OWNER TO {app};
ALTER OPERATOR CLASS geo.gist_cube_ops USING gist OWNER TO {boss};
CREATE TABLE geo.by_hand (); ALTER TABLE geo.by_hand OWNER TO {own};
ALTER EXTENSION cube ADD TABLE geo.by_hand;
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """Give a directory that the server's user can enter, whoever we are."""
    made = Path(tempfile.mkdtemp(prefix="pg-preflight-local-", dir="/tmp"))
    made.chmod(0o777)
    yield made
    shutil.rmtree(made)


@pytest.fixture(params=MAJORS)
def live(
    request: pytest.FixtureRequest,
    running: Callable[[int], servers.Server],
    create_database: CreateDatabase,
) -> Iterator[servers.Database]:
    """Give a database with roles around it, all of which go in the end."""
    database = create_database(running(request.param))
    with database.server.connect() as connection:
        connection.execute(named(ROLES, database).encode())
        name = database.name
        for statement in (
            "ALTER DATABASE {db} OWNER TO {own}",
            "REVOKE ALL ON DATABASE {db} FROM PUBLIC",
            "GRANT CONNECT, TEMPORARY ON DATABASE {db} TO {app}",
            "GRANT CONNECT ON DATABASE {db} TO {audit} WITH GRANT OPTION",
            "ALTER DATABASE {db} SET \"TimeZone\" = 'Europe/Berlin'",
            'ALTER ROLE {app} IN DATABASE {db} SET search_path = one, "T wo"',
            "GRANT SET ON PARAMETER log_min_duration_statement TO {app}",
        ):
            connection.execute(named(statement.replace("{db}", name), database).encode())
    database.script(named(OBJECTS, database))
    yield database
    with database.server.connect() as connection:
        connection.execute(f'DROP DATABASE "{database.name}" WITH (FORCE)'.encode())
        connection.execute(
            named(
                "REVOKE ALL ON PARAMETER log_min_duration_statement FROM {app}", database
            ).encode()
        )
        for each in NAMES:
            connection.execute(named(f"DROP ROLE {{{each}}}", database).encode())


def named(text: str, database: servers.Database) -> str:
    """Put the roles of a database's own into SQL."""
    for each in NAMES:
        name = f"{database.name} {each}".replace('"', '""')
        text = text.replace("{" + each + "}", f'"{name}"')
    return text


@contextmanager
def session_on(database: servers.Database, role: str) -> Iterator[tuple[sessions.Session, Config]]:
    """Yield a session of a plain role."""
    target = {
        "host": database.server.host,
        "port": str(database.server.port),
        "user": role,
        "password": PASSWORD,
        "dbname": database.name,
    }
    config = Config(target, {}, Path("/nowhere"), run_id="run", wait_timeout_s=15)
    with sessions.connect(config) as session:
        session.look()
        session.prepare()
        yield session, config


@contextmanager
def throwaway(
    database: servers.Database, directory: Path, around: cluster.Surroundings
) -> Iterator[local.Server]:
    """Yield a server of the live one's major."""
    major = database.server.major
    programs = local.find(major, str(database.server.bin / "pg_dump"), "")
    with local.started(programs, directory, "run", need=0, settings=around.settings) as where:
        yield where


def test_what_is_around_the_live_database_is_around_the_copy(
    live: servers.Database, directory: Path
) -> None:
    """Roles, memberships, rights, settings and extensions, read by a plain role and made anew."""
    app = f"{live.name} app"
    with session_on(live, app) as (session, config):
        around = cluster.look(session)
        with throwaway(live, directory, around) as where:
            with cluster.connected(config, where) as home:
                made = cluster.make(home, where, around)
            with cluster.connected(config, where, made.database, app) as copy:
                copied = cluster.look(copy)
                us = copy.execute(
                    "SELECT session_user::text, current_database()::text,"
                    " current_setting('TimeZone'), current_setting('work_mem')"
                ).fetchone()
                copy.reset()
                copy.execute("RESET search_path")
                path = copy.execute("SHOW search_path").fetchone()
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    copy.execute("CREATE ROLE more")

    mine = [role for role in around.roles if role.name.startswith(live.name)]
    assert cluster.Made(live.name) == made
    assert (app, live.name, "Europe/Berlin", "8MB") == us
    assert ('one, "T wo"',) == path
    assert set(NAMES) == {role.name.removeprefix(f"{live.name} ") for role in mine}
    # whether a superuser is needed is asked of the copy's objects, of which there are none yet
    plain = [dataclasses.replace(role, super=False) for role in copied.roles]
    assert [] == [role for role in mine if dataclasses.replace(role, super=False) not in plain]
    assert around.memberships == copied.memberships
    given = [each.member for each in copied.memberships if each.grantor == f'{live.name} odd "one"']
    assert [app, f"{live.name} audit"] == given
    rights = {right for right in around.rights if right.grantee != live.server.superuser}
    assert set() == rights - set(copied.rights)
    assert around.database_settings == copied.database_settings
    assert around.extensions == copied.extensions
    assert around.database.owner == copied.database.owner


def test_superuser_is_one_only_where_the_copy_needs_it(
    live: servers.Database, directory: Path
) -> None:
    """Who owns something, or whom we may become; the right is not spread for nothing."""
    with session_on(live, f"{live.name} app") as (session, _):
        around = cluster.look(session)
    found = {role.name.removeprefix(f"{live.name} "): role.super for role in around.roles}

    assert (True, True, False, False) == (
        found["boss"],
        found["chief"],
        found["idle_boss"],
        found["app"],
    )
    assert found[live.server.superuser]
    assert directory.is_dir()


def test_locale_that_only_this_system_lacks_is_told(
    live: servers.Database, directory: Path
) -> None:
    """A copy that sorts otherwise is said to; the rules of C are everywhere, and the letters."""
    with session_on(live, f"{live.name} app") as (session, config):
        around = cluster.look(session)
        there = {"lc_collate": "xx_YY.UTF-8", "lc_ctype": "xx_YY.UTF-8"}
        rules = dataclasses.replace(around.database.rules, **there)
        database = dataclasses.replace(around.database, rules=rules)
        odd = dataclasses.replace(around, database=database)
        with (
            throwaway(live, directory, odd) as where,
            cluster.connected(config, where) as home,
        ):
            made = cluster.make(home, where, odd)
            made_with = home.execute(
                "SELECT datcollate::text, pg_encoding_to_char(encoding)::text"
                " FROM pg_database WHERE datname = %s",
                [made.database],
            ).fetchone()
            with cluster.connected(config, where, made.database) as copy:
                capital = copy.execute("SELECT upper('é')").fetchone()

    assert (["collation"], ("É",)) == (made.fidelity, capital)
    assert ("C", "UTF8") == made_with


def test_extension_that_only_this_side_lacks_is_named_and_the_others_are_made(
    live: servers.Database, directory: Path
) -> None:
    """Also one whose very version is not here; each comes after what it needs.

    A `plpgsql` that somebody has made again is what a new database has already.
    Their members belong to whom they do live, but for what nobody has there but the live server.
    """
    with live.server.connect(live.name) as connection:
        connection.execute("DROP EXTENSION plpgsql; CREATE EXTENSION plpgsql")
        names = "SELECT name FROM pg_available_extensions WHERE name IN ('cube', 'earthdistance')"
        if len(connection.execute(names).fetchall()) == 2:
            connection.execute("CREATE SCHEMA geo; CREATE EXTENSION cube SCHEMA geo")
            connection.execute("CREATE EXTENSION earthdistance SCHEMA geo")
            connection.execute(named(GIVEN, live).encode())
    with session_on(live, f"{live.name} app") as (session, config):
        around = cluster.look(session)
        model = cluster.Extension(
            "no_such_thing",
            "1.0",
            "ext",
            live.server.superuser,
            live.server.superuser,
            its_own=False,
        )
        more = [model, *reversed(around.extensions)]
        wanted = dataclasses.replace(around, extensions=more)
        with throwaway(live, directory, wanted) as where:
            with cluster.connected(config, where) as home:
                made = cluster.make(home, where, wanted)
            with cluster.connected(config, where, made.database) as copy:
                found = cluster.look(copy).extensions

    assert ["extension no_such_thing"] == list(made.lacking)
    assert "1.0: " in made.lacking["extension no_such_thing"]
    again, *others = around.extensions
    assert "plpgsql" == again.name
    given = [
        ("function", "geo.cube_dim(geo.cube)", f"{live.name} app"),
        ("operator class", "geo.gist_cube_ops USING gist", f"{live.name} boss"),
        ("type", "geo.cube", f"{live.name} own"),
    ]
    assert (given if others else []) == [m for each in found for m in each.owned]
    alike, there = (
        {str(dataclasses.replace(each, owned=())) for each in extensions}
        for extensions in (others, found)
    )
    assert alike == there
    assert (["geo"] if others else []) == made.schemas


def test_membership_stands_behind_the_one_by_which_it_is_given() -> None:
    """Whatever their order was; one whose grantor may give none any more is the server's own."""
    first = cluster.Membership("r", "b", admin=True)
    second = cluster.Membership("r", "a", admin=True, grantor="b")
    third = cluster.Membership("r", "c", admin=False, grantor="a")
    stray = cluster.Membership("r", "d", admin=False, grantor="c")

    expected = [first, second, third, dataclasses.replace(stray, grantor=None)]
    assert expected == cluster.in_order([stray, third, second, first])


@pytest.mark.parametrize(
    ("live_limits", "wanted"),
    [
        ((100, 64, 0), ("100", "64")),
        ((1000, 64, 0), ("100", "640")),
        ((20, 10, 5), ("20", "10")),
        ((500, 64, 100), ("100", "192")),
    ],
)
def test_few_connections_have_all_the_locks_of_many(
    live_limits: tuple[int, int, int], wanted: tuple[str, str]
) -> None:
    """The lock table holds locks for all connections that may be; a copy has few of them."""
    connections, locks, prepared = live_limits
    made = cluster.server_settings(
        {
            "max_connections": str(connections),
            "max_locks_per_transaction": str(locks),
            "max_prepared_transactions": str(prepared),
        }
    )

    assert wanted == (made["max_connections"], made["max_locks_per_transaction"])


def test_database_of_a_copy_is_made_without_its_wal(
    live: servers.Database, directory: Path
) -> None:
    """Its first pages, 7 MB of them, are files that are copied."""
    with session_on(live, f"{live.name} app") as (session, config):
        around = dataclasses.replace(cluster.look(session), extensions=[])
        with (
            throwaway(live, directory, around) as where,
            cluster.connected(config, where) as home,
        ):
            wal = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::int8"
            before = (home.execute(wal).fetchone() or (0,))[0]
            cluster.make_roles(home, around.roles)
            cluster.make_database(home, dataclasses.replace(around, rights=[]))
            written = (home.execute(wal).fetchone() or (0,))[0] - before

    assert 0 < written < 1_000_000
