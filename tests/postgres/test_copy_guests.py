"""Who and what else meets a restored copy: triggers at login, other servers, statement logs."""

import socket

import pytest

from tests import servers
from tests.conftest import CreateDatabase, Run, StartServer, WriteMigrations

ONE = {"001_one.sql": "CREATE TABLE one (id int);"}
LOGIN = """
CREATE TABLE logins (who text);
CREATE FUNCTION note() RETURNS event_trigger LANGUAGE plpgsql AS
 $$ BEGIN INSERT INTO public.logins VALUES (session_user); END $$;
CREATE EVENT TRIGGER note ON login EXECUTE FUNCTION note();
ALTER EVENT TRIGGER note ENABLE ALWAYS;
"""
HERE = "CREATE TABLE here (id int); INSERT INTO here VALUES (1), (2);"
FAR = """
CREATE EXTENSION postgres_fdw;
CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw
 OPTIONS (host '{host}', port '{port}', dbname '{name}');
CREATE USER MAPPING FOR PUBLIC SERVER far OPTIONS (user '{user}', password '{password}');
CREATE FOREIGN TABLE there (id int) SERVER far OPTIONS (table_name 'here');
CREATE VIEW between AS SELECT id FROM there;
CREATE MATERIALIZED VIEW cached AS SELECT id FROM between;
CREATE MATERIALIZED VIEW "cached Again" AS SELECT id FROM cached;
CREATE MATERIALIZED VIEW own AS SELECT id FROM here;
ALTER SERVER far OPTIONS (SET port '1');
"""
LOST = """
CREATE TABLE t (id int);
CREATE FUNCTION many() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM public.t';
CREATE MATERIALIZED VIEW counted AS SELECT many() AS n;
CREATE OR REPLACE FUNCTION many() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM t';
"""


def fill_from_afar(database: servers.Database) -> None:
    """Fill views from a foreign table, whose server is down afterwards."""
    database.script(HERE)
    user, port = servers.SUPERUSER, database.server.port
    password = servers.PASSWORD.replace("'", "''")
    where = {"host": servers.HOST, "port": port, "name": database.name}
    database.script(FAR.format(**where, user=user, password=password))


@pytest.mark.parametrize("major", [17, 18])
def test_trigger_at_login_makes_no_healthy_backup_a_bad_one(
    major: int,
    start_server: StartServer,
    create_database: CreateDatabase,
    run: Run,
    migrations: WriteMigrations,
) -> None:
    """It would write into the copy before that is compared; the files meet it as ever."""
    database = create_database(start_server(major))
    database.script(LOGIN)
    migrations({"001_one.sql": "CREATE TABLE one AS SELECT count(*) AS n FROM logins;"})
    env = database.env()

    first = run(env={**env, "PREFLIGHT_REHEARSE": "always", "PREFLIGHT_FIRST_CONTACT": "pending"})
    restored = run("restore", "latest", env=env)
    again = run("restore", "latest", env=env)

    assert [0, 0, 0] == [first.code, restored.code, again.code], str(first) + str(restored)
    assert "restored" == first.event("rehearsal.passed")[0]["verified"]


def test_other_server_is_not_asked_for_a_proof(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """What reads foreign tables stays unfilled in the copy, and says so; all else is proven."""
    fill_from_afar(database)
    migrations(ONE)
    env = {"PREFLIGHT_REHEARSE": "always", "PREFLIGHT_FIRST_CONTACT": "pending"}

    result = run(env=env)

    assert 0 == result.code, str(result)
    (warned,) = result.event("rehearsal.warned")
    assert ['public."cached Again"', "public.cached"] == sorted(warned["objects"])
    assert "info" == warned["level"]
    assert "restored" == result.event("rehearsal.passed")[0]["verified"]


def test_file_that_reads_what_is_not_filled_in_the_copy_cannot_be_tried(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """In production it is filled: no fault of the file. What fails otherwise is the file's own."""
    fill_from_afar(database)
    database.script("CREATE VIEW totals AS SELECT count(*) AS n FROM cached")
    migrations({"001_one.sql": "CREATE TABLE one AS SELECT id FROM cached;"})
    env = {"PREFLIGHT_FIRST_CONTACT": "pending", "PREFLIGHT_REHEARSE": "auto"}

    result = run(env=env)
    wrong = []
    for text in ("CREATE SEQUENCE two; SELECT currval('two');", "UPDATE totals SET n = 1;"):
        migrations({"002_two.sql": text})
        wrong.append(run(env=env))

    assert 0 == result.code, str(result)
    (skipped,) = result.event("rehearsal.skipped")
    assert "001_one.sql" in str(skipped["reason"]) or "001_one" in str(skipped["reason"])
    assert [2] == database.query("SELECT count(*) FROM one")
    said = [(each.code, each.finished["error"]["sqlstate"]) for each in wrong]
    assert [(27, "55000")] * 2 == said, str(wrong)


def test_view_that_cannot_be_filled_again_is_no_lost_row(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Its query fails after any restore: a warning with the name, and 27 where all is demanded."""
    database.script(LOST)
    migrations(ONE)
    env = {"PREFLIGHT_FIRST_CONTACT": "pending", "PREFLIGHT_REHEARSE": "auto"}

    demanded = run(env={**env, "PREFLIGHT_REHEARSE": "always"})
    result = run(env=env)
    restored = run("restore", "latest")

    (warned,) = result.event("rehearsal.warned")
    assert (27, "rehearsal.incomplete") == (demanded.code, demanded.finished["error"]["code"])
    assert (0, 0) == (result.code, restored.code), str(result) + str(restored)
    assert "counted" in warned["reason"]
    assert "warning" == warned["level"]
    assert any("counted" in each["warning"] for each in restored.event("config.warned"))


def test_statement_log_does_not_show_the_copy(
    start_server: StartServer,
    create_database: CreateDatabase,
    run: Run,
    migrations: WriteMigrations,
) -> None:
    """Where the role may, the copy's sessions write none of production's rows there again."""
    server = start_server(17, log_statement="all", log_min_duration_statement=0)
    database = create_database(server)
    database.script("CREATE TABLE secret (word text); INSERT INTO secret VALUES ('canary');")
    migrations({"001_one.sql": "INSERT INTO secret VALUES ('bird');"})

    result = run(
        env={**database.env(), "PREFLIGHT_FIRST_CONTACT": "pending", "PREFLIGHT_REHEARSE": "auto"}
    )

    lines = server.log.read_text(encoding="utf-8", errors="replace").splitlines()
    assert 0 == result.code, str(result)
    assert "restored" == result.event("rehearsal.passed")[0]["verified"]
    assert [] == [line for line in lines if "@preflight_scratch_" in line and "LOG:" in line]


PARTS = """
CREATE EXTENSION postgres_fdw;
CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw
 OPTIONS (host '{host}', port '{port}', dbname 'x');
CREATE USER MAPPING FOR PUBLIC SERVER far OPTIONS (user 'x', password 'x');
CREATE TABLE whole (id int, name text) PARTITION BY RANGE (id);
CREATE TABLE near PARTITION OF whole FOR VALUES FROM (0) TO (1000) PARTITION BY RANGE (id);
CREATE TABLE nearest PARTITION OF near FOR VALUES FROM (0) TO (1000);
CREATE FOREIGN TABLE afar PARTITION OF whole FOR VALUES FROM (1000) TO (2000) SERVER far;
CREATE TABLE parent (id int);
CREATE FOREIGN TABLE heir () INHERITS (parent) SERVER far;
INSERT INTO whole SELECT n, 'x' FROM generate_series(0, 999) n;
INSERT INTO parent VALUES (1);
"""


def test_statistics_of_a_copy_ask_no_other_server(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """A parent's are taken from foreign children, too; what is here has statistics all the same."""
    with socket.create_server((servers.HOST, 0)) as far:
        port = far.getsockname()[1]
        database.script(PARTS.format(host=servers.HOST, port=port))
        seen = "(SELECT count(*) FROM pg_stats WHERE tablename IN ('near', 'nearest')) = 4"
        text = f"CREATE TABLE one (ok bool CHECK (ok)); INSERT INTO one SELECT {seen};"
        migrations({"001_one.sql": text})
        env = {"PREFLIGHT_REHEARSE": "always", "PREFLIGHT_FIRST_CONTACT": "pending"}
        result = run(env=env)
        restored = run("restore", "latest", "--into", f"{database.name}_r")
        database.query(f"DROP DATABASE {database.name}_r")
        far.settimeout(0)
        with pytest.raises(BlockingIOError):
            far.accept()

    # live, nobody has analyzed: what fails there shows that the copy had them
    assert 30 == result.code, result
    assert 1 == len(result.event("rehearsal.passed"))
    assert 0 == restored.code, restored
