"""Some schemas of a database that others use, too: backed up, proven and migrated alone."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg.sql import SQL, Identifier

from tests import servers
from tests.conftest import Run, WriteMigrations

PASSWORD = "x"  # noqa: S105 - of roles that live for a minute
MINE = "CREATE SCHEMA a; CREATE TABLE a.t (id int PRIMARY KEY); INSERT INTO a.t VALUES (1), (2);"
THEIRS = "CREATE SCHEMA b; CREATE TABLE b.t (id int PRIMARY KEY); INSERT INTO b.t VALUES (1);"
HOLDS = """SELECT 'a' AS suite, 'is there' AS "check", to_regclass('a.x') IS NOT NULL AS ok;"""


@pytest.fixture(autouse=True)
def settings(environment: dict[str, str]) -> Iterator[None]:
    """Demand a proof, of one schema."""
    scratch = Path(tempfile.mkdtemp(prefix="pg-preflight-scratch-", dir="/tmp"))
    scratch.chmod(0o777)
    environment["PREFLIGHT_REHEARSE"] = "always"
    environment["PREFLIGHT_REHEARSE_DIR"] = str(scratch)
    environment["PREFLIGHT_SCHEMAS"] = "a"
    yield
    shutil.rmtree(scratch)


@pytest.fixture(params=["server", "local"])
def where(request: pytest.FixtureRequest) -> dict[str, str]:
    """Prove on the live server and on one of our own, in turn."""
    return {"PREFLIGHT_REHEARSE_ON": request.param}


@pytest.fixture
def beside(database: servers.Database) -> Iterator[str]:
    """Name a database to restore into, and drop it."""
    name = f"{database.name}_beside"
    yield name
    with database.server.connect() as connection:
        connection.execute(SQL("DROP DATABASE IF EXISTS {}").format(Identifier(name)))


@pytest.fixture
def apps(database: servers.Database) -> Iterator[dict[str, dict[str, str]]]:
    """Give two apps, `a` and `b`, each with a role and a schema that the other may not enter."""
    roles = {name: f"{database.name}_{name}" for name in "ab"}
    with database.server.connect(database.name) as connection:
        connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        for schema, role in roles.items():
            names = {"role": Identifier(role), "schema": Identifier(schema)}
            connection.execute(
                SQL("CREATE ROLE {role} LOGIN CREATEDB PASSWORD 'x'").format(**names)
            )
            connection.execute(SQL("CREATE SCHEMA {schema} AUTHORIZATION {role}").format(**names))
            connection.execute(
                SQL("GRANT CREATE ON DATABASE {} TO {role}").format(
                    Identifier(database.name), **names
                )
            )
            connection.execute(SQL("SET ROLE {role}").format(**names))
            connection.execute(
                SQL("CREATE TABLE {schema}.t (id serial PRIMARY KEY)").format(**names)
            )
            connection.execute(
                SQL("INSERT INTO {schema}.t SELECT FROM generate_series(1, 3)").format(**names)
            )
            connection.execute("RESET ROLE")
    yield {
        name: {
            "PGUSER": role,
            "PGPASSWORD": PASSWORD,
            "PGOPTIONS": f"-csearch_path={name}",
            "PREFLIGHT_SCHEMA": f"preflight_{name}",
            "PREFLIGHT_SCHEMAS": name,
            "PREFLIGHT_FIRST_CONTACT": "pending",
        }
        for name, role in roles.items()
    }
    with database.server.connect(database.name) as connection:
        for role in roles.values():
            connection.execute(SQL("DROP OWNED BY {} CASCADE").format(Identifier(role)))
            connection.execute(SQL("DROP ROLE {}").format(Identifier(role)))


def manifest(backup_dir: Path) -> dict[str, Any]:
    """Return the manifest of the only backup."""
    (found,) = backup_dir.glob("*/manifest.json")
    said: dict[str, Any] = json.loads(found.read_bytes())
    return said


def test_app_is_migrated_beside_one_that_it_cannot_read(
    where: dict[str, str],
    apps: dict[str, dict[str, str]],
    run: Run,
    migrations: WriteMigrations,
    backup_dir: Path,
) -> None:
    """Its own schemas are dumped, counted and proven; without them named it is told how."""
    migrations({"001_x.sql": "ALTER TABLE t ADD x int; CREATE TABLE u (id int REFERENCES t);"})
    refused = run(env=apps["a"] | {"PREFLIGHT_SCHEMAS": None})
    result = run(env=apps["a"] | where)

    assert (23, "backup.not_readable") == (refused.code, refused.finished["error"]["code"])
    assert "PREFLIGHT_SCHEMAS" in refused.finished["error"]["hint"]
    assert (0, ["001_x"]) == (result.code, result.event("rehearsal.passed")[0]["migrations"]), (
        result
    )
    said = manifest(backup_dir)
    assert "restored" == said["verified"]
    assert 0 < said["database_bytes"] < 1_000_000
    assert ["a", "preflight_a"] == said["partial"]["schemas"]
    assert {"a.t": 3, "preflight_a.journal": 0, "preflight_a.migrations": 0} == said["rows"]


CROSSING = """
CREATE SCHEMA b;
CREATE TABLE b.users (id int PRIMARY KEY); INSERT INTO b.users VALUES (1);
CREATE TYPE b.mood AS ENUM ('ok'); CREATE SEQUENCE b.numbers;
CREATE FUNCTION b.touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END';
CREATE FUNCTION b.five() RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 5';
CREATE SCHEMA a;
CREATE TABLE a.kept (id int PRIMARY KEY, owner int REFERENCES b.users);
INSERT INTO a.kept VALUES (1, 1), (2, 1);
CREATE TABLE a.child (id int REFERENCES a.kept); INSERT INTO a.child VALUES (2);
CREATE VIEW a.seen AS SELECT k.id, u.id AS u FROM a.kept k JOIN b.users u ON u.id = k.owner;
CREATE VIEW a.far AS SELECT id FROM a.seen; COMMENT ON VIEW a.far IS 'far';
CREATE RULE none AS ON INSERT TO a.far DO INSTEAD NOTHING; GRANT SELECT ON a.far TO PUBLIC;
CREATE TRIGGER touched BEFORE INSERT ON a.kept FOR EACH ROW EXECUTE FUNCTION b.touch();
CREATE INDEX odd ON a.kept ((id + b.five()));
CREATE FUNCTION a.moody(b.mood) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE POLICY p ON a.child USING (id IN (SELECT id FROM b.users));
CREATE MATERIALIZED VIEW a.filled AS SELECT count(*) AS n FROM b.users;
"""
ROWLESS = """
CREATE TABLE a.typed (m b.mood DEFAULT 'ok'); INSERT INTO a.typed VALUES ('ok');
CREATE TABLE a.counted (id int DEFAULT nextval('b.numbers')); INSERT INTO a.counted VALUES (1);
"""


def test_rows_that_a_table_has_in_another_schema_are_told(
    run: Run, database: servers.Database, backup_dir: Path
) -> None:
    """A copy's table is empty where the live one's is not: nothing that `always` would prove."""
    database.script(
        "CREATE SCHEMA a; CREATE SCHEMA b;"
        "CREATE TABLE a.p (k int) PARTITION BY LIST (k); CREATE TABLE a.base (k int);"
        "CREATE TABLE b.p_1 PARTITION OF a.p FOR VALUES IN (1); INSERT INTO a.p VALUES (1);"
        "CREATE TABLE b.child () INHERITS (a.base); CREATE TABLE a.child () INHERITS (a.base)"
    )
    whole = run("backup", env={"PREFLIGHT_SCHEMAS": "a,b"})
    result = run("backup")

    expected = ["rows of a.base in the schema b", "rows of a.p in the schema b"]
    assert [0, 27] == [whole.code, result.code], (whole, result)
    assert "rehearsal.incomplete" == result.finished["error"]["code"]
    newest = max(backup_dir.glob("*/manifest.json"), key=lambda path: path.stat().st_mtime)
    assert expected == [each["what"] for each in json.loads(newest.read_bytes())["without"]]


def test_what_needs_the_other_schemas_is_named_and_excused(
    where: dict[str, str], run: Run, database: servers.Database, backup_dir: Path
) -> None:
    """Keys, views and all that depends on them, triggers, defaults; of tables also the rows."""
    database.script(CROSSING + ROWLESS)
    demanded = run("backup", env=where)
    shutil.rmtree(next(backup_dir.glob("[!.]*")))
    result = run("backup", env=where | {"PREFLIGHT_REHEARSE": "auto"})

    assert (27, "rehearsal.incomplete") == (demanded.code, demanded.finished["error"]["code"])
    assert 0 == result.code, result
    said = manifest(backup_dir)
    assert "restored" == said["verified"]
    excepted = {" ".join(each.split()[:-1]) for each in said["except"]}
    named = {"FK CONSTRAINT kept kept_owner_fkey", "VIEW seen", "VIEW far", "TRIGGER kept touched"}
    named |= {"INDEX odd", "FUNCTION moody(b.mood)", "POLICY child p", "MATERIALIZED VIEW filled"}
    named |= {"TABLE typed", "TABLE DATA typed", "TABLE counted", "TABLE DATA counted"}
    assert set() == named - excepted, excepted
    assert not any("child_id_fkey" in each or "DATA kept" in each for each in excepted)
    (warned,) = result.event("rehearsal.warned")
    assert "PREFLIGHT_SCHEMAS leaves out" in warned["reason"]


def test_rows_stay_strict_beside_what_is_excused(
    run: Run, database: servers.Database, tmp_path: Path, environment: dict[str, str]
) -> None:
    """A restore that loses a row of a table that could be restored is no proof."""
    database.script(CROSSING)
    folder = tmp_path / "bin"
    folder.mkdir()
    real = shutil.which("pg_restore", path=environment["PATH"])
    fake = folder / "pg_restore"
    fake.write_text(
        "#!/bin/sh\n"
        'case "$*" in *--dbname*) ;; *) exec ' + f'{real} "$@";; esac\n'
        f'{real} "$@"; code=$?\n'
        'for last; do case "$last" in --dbname=*) target="${last#--dbname=}";; esac; done\n'
        f'{Path(str(real)).parent}/psql -qX "$target" -c "DELETE FROM a.child" >&2\nexit $code\n'
    )
    fake.chmod(0o755)
    result = run(
        "backup", env={"PATH": f"{folder}:{environment['PATH']}", "PREFLIGHT_REHEARSE": "auto"}
    )

    assert (24, "backup.restore_differs") == (result.code, result.finished["error"]["code"]), result
    assert "a.child has 0 rows" in result.finished["error"]["message"]


NAMING = {
    "ALTER TABLE b.t ADD x int;": "b",
    "CREATE TABLE a.n (id int REFERENCES b.t);": "b",
    "DO $$ BEGIN INSERT INTO b.t VALUES (9); END $$;": "b",
    "INSERT INTO theirs VALUES (1);": "public",  # unqualified, found behind the own schema
    "SET search_path TO b; CREATE TABLE made_there (id int);": "b",
    "GRANT USAGE ON SCHEMA b TO PUBLIC;": "b",
    "SELECT 'b.t'::regclass;": "b",
}


@pytest.mark.parametrize("script", NAMING)
def test_file_that_names_another_schema_is_not_tried(
    script: str, run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """It is said where; what comes before it is tried, the backup is proven, and `always` is 27."""
    database.script(MINE + THEIRS + "CREATE TABLE public.theirs (id int);")
    migrations(
        {"001_x.sql": "CREATE TABLE a.x (id int);", "002_y.sql": script, "003_z.sql": "SELECT 1;"}
    )
    settings = {"PGOPTIONS": "-csearch_path=a,public", "PREFLIGHT_FIRST_CONTACT": "pending"}
    demanded = run(env=settings)
    result = run(env=settings | {"PREFLIGHT_REHEARSE": "auto"})

    assert (27, "rehearsal.unavailable") == (demanded.code, demanded.finished["error"]["code"])
    assert 0 == result.code, result
    (skipped,) = result.event("rehearsal.skipped")
    assert ("002_y.sql", 1, "warning") == (skipped["file"], skipped["line"], skipped["level"])
    assert f'"{NAMING[script]}"' in skipped["reason"]
    assert ["001_x"] == result.event("rehearsal.passed")[0]["migrations"]


def test_tables_of_columns_and_triggers_are_no_schemas(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """All of it is rehearsed: each statement names a table of the schema, or none."""
    database.script(MINE + THEIRS)
    migrations({
        "001_x.sql": """
            CREATE TABLE x (id int CONSTRAINT x_key PRIMARY KEY);
            CREATE SEQUENCE s OWNED BY x.id;
            CREATE VIEW v (id, twice) AS SELECT id, 2 * id FROM x;
            CREATE POLICY p ON x;
            CREATE RULE r AS ON DELETE TO x DO ALSO NOTHING;
            CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
            CREATE TRIGGER g BEFORE INSERT ON x FOR EACH ROW EXECUTE FUNCTION f('x', 'id');
            CREATE DOMAIN d AS int CONSTRAINT positive CHECK (VALUE > 0);
        """,
        "002_y.sql": """
            COMMENT ON COLUMN x.id IS 'see b.t';
            COMMENT ON CONSTRAINT x_key ON x IS 'c';
            COMMENT ON CONSTRAINT positive ON DOMAIN d IS 'c';
            COMMENT ON TRIGGER g ON x IS 'c';
            COMMENT ON POLICY p ON x IS 'c';
            COMMENT ON RULE r ON x IS 'c';
            ALTER SEQUENCE s OWNED BY x.id;
            DROP TRIGGER g ON x;
            DROP POLICY p ON x;
            DROP RULE r ON x;
            CREATE FUNCTION h(x.id%TYPE) RETURNS int LANGUAGE sql AS 'SELECT 1';
        """,
    })  # fmt: skip
    settings = {"PGOPTIONS": "-csearch_path=a,public", "PREFLIGHT_FIRST_CONTACT": "pending"}
    result = run(env=settings)

    assert 0 == result.code, result
    assert ["001_x", "002_y"] == result.event("rehearsal.passed")[0]["migrations"]


def test_first_contact_that_needs_another_schema_is_no_fault_of_the_file(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """On the live database it is adopted; on a copy without that schema nobody can tell."""
    database.script(f"{MINE} {THEIRS}")
    check = "SELECT 's' AS suite, '{0}' AS \"check\", to_regclass('{0}') IS NOT NULL AS ok"
    migrations({
        "001_t.sql": "CREATE TABLE a.t (id int PRIMARY KEY);",
        "001_t_verify.sql": " UNION ALL ".join(check.format(each) for each in ("a.t", "b.t")),
        "002_u.sql": "CREATE TABLE a.u (id int);",
        "002_u_verify.sql": check.format("a.u"),
    })  # fmt: skip
    demanded = run("plan", "--rehearse")
    went_on = run(env={"PREFLIGHT_REHEARSE": "auto"})

    assert 27 == demanded.code, demanded
    assert "first contact" in demanded.finished["error"]["message"]
    assert (0, ["002_u"]) == (went_on.code, went_on.finished["applied"]), went_on


def test_what_only_runs_into_another_schema_is_no_fault_of_the_file(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """A function's body says nothing before it runs; what nobody has is a fault all the same."""
    database.script(MINE + THEIRS)
    body = "BEGIN RETURN count(*) FROM b.t; END"
    database.script(f"CREATE FUNCTION a.f() RETURNS int LANGUAGE plpgsql AS '{body}'")
    settings = {"PREFLIGHT_FIRST_CONTACT": "pending", "PREFLIGHT_REHEARSE": "auto"}
    migrations({"001_x.sql": "SELECT a.f();"})
    result = run(env=settings)
    migrations({"002_y.sql": "SELECT * FROM a.typo;"})
    wrong = run(env=settings)

    assert (0, "warning") == (result.code, result.event("rehearsal.skipped")[0]["level"]), result
    assert "b.t" in result.event("rehearsal.skipped")[0]["reason"]
    assert (27, "rehearsal.failed") == (wrong.code, wrong.finished["error"]["code"])


@pytest.mark.parametrize(
    ("names", "code", "said"),
    [
        ("a,nowhere", 22, '"nowhere"'),
        ("A", 22, 'There is "a"'),
        ("a*", 22, '"a*"'),
        ("a,", 20, "PREFLIGHT_SCHEMAS"),
        ("pg_catalog", 20, "PREFLIGHT_SCHEMAS"),
        ('a,"b', 20, "PREFLIGHT_SCHEMAS"),
    ],
)
def test_schema_that_is_not_there_is_refused(  # noqa: PLR0913, PLR0917 -- a case each
    names: str,
    code: int,
    said: str,
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
    backup_dir: Path,
) -> None:
    """Before anything is written; names are no patterns."""
    database.script(MINE)
    migrations({"001_x.sql": "CREATE TABLE a.x (id int);"})
    results = [
        run(command, env={"PREFLIGHT_SCHEMAS": names})
        for command in ("up", "backup", "plan", "check")
    ]

    assert [code] * 4 == [result.code for result in results], results
    error = results[0].finished["error"]
    assert said in f"{error['message']} {error.get('hint')}"
    assert [] == list(backup_dir.iterdir())
    assert [] == database.query("SELECT nspname FROM pg_namespace WHERE nspname = 'preflight'")


def test_schema_that_is_gone_is_told_where_nothing_is_due(
    run: Run, database: servers.Database, migrations: WriteMigrations, tmp_path: Path
) -> None:
    """One answer from every command: a name that is wrong is to be seen before work is due."""
    database.script(MINE)
    migrations({"001_x.sql": "CREATE TABLE a.x (id int);", "001_x_verify.sql": HOLDS})
    quickly = {"PREFLIGHT_BACKUP": "off", "PREFLIGHT_REHEARSE": "off"}
    assert 0 == run(env=quickly).code
    line = json.dumps({"name": "one", "search_path": "nowhere"})
    (tmp_path / "targets").write_text(f"{line}\n")
    commands = [("up",), ("check",), ("verify",), ("rollback", "--to", "001")]
    alone = [run(*each, env={"PREFLIGHT_SCHEMAS": "a,nowhere"}) for each in commands]
    among = [run(name, "--targets", str(tmp_path / "targets")) for name in ("up", "check")]

    for each in alone + among:
        error = each.finished["error"]
        assert (22, "target.no_schema") == (each.code, error["code"]), each


def test_our_own_schema_may_be_named_before_it_is_there(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """It is always among them, so whoever names it is right."""
    database.script(MINE)
    migrations({"001_x.sql": "CREATE TABLE a.x (id int);"})
    env = {"PREFLIGHT_SCHEMAS": "a,preflight", "PREFLIGHT_FIRST_CONTACT": "pending"}

    assert [0, 0] == [(result := run(command, env=env)).code for command in ("plan", "up")], result


def test_names_of_schemas_are_names(run: Run, database: servers.Database, backup_dir: Path) -> None:
    """Capitals, dots, stars and quotes are themselves; one with a comma stands in quotes."""
    odd = ["Odd.Name*", 'say "so"', "one, two", "$x|y", "ünï"]
    for name in [*odd, "oddxname", "one", "x"]:
        with database.server.connect(database.name) as connection:
            connection.execute(SQL("CREATE SCHEMA {}").format(Identifier(name)))
            connection.execute(SQL("CREATE TABLE {}.t ()").format(Identifier(name)))
    said = 'Odd.Name*,say "so", "one, two",$x|y,ünï'
    result = run("backup", env={"PREFLIGHT_SCHEMAS": said})

    assert 0 == result.code, result
    assert sorted([*odd, "preflight"]) == manifest(backup_dir)["partial"]["schemas"]
    assert len(odd) == len(manifest(backup_dir)["rows"])


def test_schema_without_objects_is_empty_whatever_others_hold(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """First contact asks no more than these schemas: the files run."""
    database.script(THEIRS + "CREATE SCHEMA a")
    migrations({"001_x.sql": "CREATE TABLE a.x (id int);"})

    assert 0 == run().code
    assert ["x"] == database.query("SELECT relname FROM pg_class WHERE relname = 'x'")


def test_backups_of_some_schemas_push_out_no_others(
    run: Run, database: servers.Database, beside: str
) -> None:
    """Each set of schemas has its own number of backups, and its own `latest`."""
    database.script(MINE + THEIRS)
    environment: dict[str, str | None] = {"PREFLIGHT_BACKUP_KEEP": "1", "PREFLIGHT_REHEARSE": "off"}
    for schemas in (None, "a", "b", "a", "a"):
        assert 0 == run("backup", env=environment | {"PREFLIGHT_SCHEMAS": schemas}).code
    kept = run("backups", "--json").json()["backups"]
    whole = run("restore", "latest", "--into", beside, env={"PREFLIGHT_SCHEMAS": None})
    swapped = run("restore", "latest", "--swap")
    table = run("backups", "--table").stdout

    assert [None, ["b", "preflight"], ["a", "preflight"]] == [each["schemas"] for each in kept]
    assert (0, 3) == (whole.code, whole.event("restore.finished")[0]["rows"]), whole
    assert (22, "restore.partial") == (swapped.code, swapped.finished["error"]["code"])
    assert "only a, preflight" in table


def test_extensions_that_the_schemas_need_are_made_first(
    where: dict[str, str], run: Run, database: servers.Database, backup_dir: Path, beside: str
) -> None:
    """Also in a schema of their own, and in one that is dumped."""
    database.script(
        "CREATE SCHEMA a; CREATE SCHEMA tools; CREATE EXTENSION citext SCHEMA tools;"
        "CREATE EXTENSION hstore SCHEMA a; CREATE EXTENSION pg_trgm;"
        "CREATE EXTENSION cube; CREATE EXTENSION earthdistance;"
        "CREATE TABLE a.t (n tools.citext, h a.hstore, at earth);"
        "INSERT INTO a.t VALUES ('x', 'k=>v', ll_to_earth(1, 1));"
        "CREATE INDEX ON a.t USING gin (lower(n::text) gin_trgm_ops)"
    )
    result = run("backup", env=where)
    restored = run("restore", "latest", "--into", beside)
    with database.server.connect(beside) as connection:
        rows = connection.execute("SELECT h OPERATOR(a.->) 'k' FROM a.t").fetchone()

    assert (0, 0, ("v",)) == (result.code, restored.code, rows), (result, restored)
    extensions = manifest(backup_dir)["partial"]["extensions"]
    needed = {"citext", "hstore", "pg_trgm", "cube", "earthdistance"}
    assert needed == {each["name"] for each in extensions if each["needed"]}


def test_partial_backup_is_restored_without_what_lies_outside(
    run: Run, database: servers.Database, beside: str
) -> None:
    """With a warning that names it; a table whose rows would be lost has to be left out by hand."""
    database.script(CROSSING)
    assert 0 == run("backup", env={"PREFLIGHT_REHEARSE": "off"}).code
    found = run("restore", "latest", "--into", beside)
    database.script(ROWLESS)
    assert 0 == run("backup", env={"PREFLIGHT_REHEARSE": "off"}).code
    refused = run("restore", "latest", "--into", f"{beside}_2")

    assert 0 == found.code, found
    (warned,) = found.event("config.warned")
    assert "VIEW seen" in warned["warning"]
    assert (22, "restore.lacking") == (refused.code, refused.finished["error"]["code"]), refused
    assert "TABLE" in refused.finished["error"]["message"]
