"""Whatever a role cannot read is told before anything begins: rights at random, and all is tried.

What is right is asked of the server: the role itself locks and copies each table, as a dump does.
"""

import random
import shutil
from pathlib import Path

import psycopg
import pytest

from tests import program, servers
from tests.conftest import Run
from tests.fakes import manifest, only

ROUNDS = 16
# {d} is the database's name, which the roles' names end with: roles are the server's.
CONTENT = """
CREATE SCHEMA inside; CREATE SEQUENCE inside.counted;
CREATE TABLE plain (n int, more text); INSERT INTO plain SELECT g FROM generate_series(1, 5) g;
CREATE TABLE inside.owned (n int GENERATED ALWAYS AS IDENTITY); INSERT INTO inside.owned DEFAULT VALUES;
CREATE TABLE parted (n int) PARTITION BY RANGE (n);
CREATE TABLE part PARTITION OF parted FOR VALUES FROM (1) TO (9); INSERT INTO parted VALUES (1), (2);
CREATE TABLE parent (n int); CREATE TABLE inside.child () INHERITS (parent);
INSERT INTO inside.child VALUES (3); CREATE MATERIALIZED VIEW kept AS TABLE plain;
SELECT lo_create(4711); CREATE ROLE keeper_{d}; CREATE ROLE reader_{d} LOGIN PASSWORD '{password}'
"""  # noqa: E501
TOLD = {"backup.not_readable", "backup.row_security"}
TABLES = ("plain", "inside.owned", "parted", "part", "parent", "inside.child")
SEQUENCES = ("inside.counted", "inside.owned_n_seq")
# What undoes all that is below.
WHOLE = (
    "ALTER ROLE reader_{d} NOBYPASSRLS; REVOKE keeper_{d}, pg_read_all_data FROM reader_{d};"
    "ALTER LARGE OBJECT 4711 OWNER TO postgres; GRANT SELECT ON LARGE OBJECT 4711 TO reader_{d};"
    "ALTER SCHEMA inside OWNER TO postgres; GRANT USAGE ON SCHEMA inside, public TO reader_{d};"
    + "".join(
        f"ALTER TABLE {each} OWNER TO postgres; DROP POLICY IF EXISTS one ON {each};"
        f"DROP POLICY IF EXISTS other ON {each};"
        f"ALTER TABLE {each} DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY;"
        for each in TABLES
    )
    + f"REVOKE ALL ON {', '.join(TABLES)} FROM reader_{{d}};"
    f"GRANT SELECT ON {', '.join(TABLES)} TO reader_{{d}};"
    f"GRANT SELECT ON SEQUENCE {', '.join(SEQUENCES)} TO reader_{{d}}"
)
# What takes away, what gives, and what only looks like one of these; {t} is a table.
TAKEN = (
    "REVOKE SELECT ON {t} FROM reader_{d}",
    "REVOKE SELECT ON {t} FROM reader_{d}; GRANT SELECT (n) ON {t} TO reader_{d}",
    "REVOKE SELECT ON {t} FROM reader_{d}; GRANT INSERT, UPDATE ON {t} TO reader_{d}",
    "ALTER TABLE {t} ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE {t} ENABLE ROW LEVEL SECURITY; CREATE POLICY one ON {t} USING (true)",
    "ALTER TABLE {t} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
    "REVOKE SELECT ON SEQUENCE inside.counted FROM reader_{d}",
    "REVOKE SELECT ON SEQUENCE inside.owned_n_seq FROM reader_{d}",
    "REVOKE USAGE ON SCHEMA inside FROM reader_{d}",
    "REVOKE SELECT ON LARGE OBJECT 4711 FROM reader_{d}",
)
GIVEN = (
    "ALTER TABLE {t} OWNER TO reader_{d}",
    "ALTER TABLE {t} OWNER TO keeper_{d}",
    "GRANT keeper_{d} TO reader_{d}",
    "GRANT keeper_{d} TO reader_{d} WITH INHERIT FALSE",
    "GRANT pg_read_all_data TO reader_{d}",
    "ALTER ROLE reader_{d} BYPASSRLS",
    "ALTER LARGE OBJECT 4711 OWNER TO keeper_{d}",
    "CREATE POLICY other ON {t} USING (true)",
    "ALTER TABLE {t} FORCE ROW LEVEL SECURITY",
)


def changes(choice: random.Random, number: int) -> list[str]:
    """Return what is done to the rights: first each thing is taken alone, then some at once."""
    if number < len(TAKEN):
        words = [TAKEN[number]]
    else:
        words = choice.sample(TAKEN, choice.randint(0, 2)) + choice.sample(GIVEN, 2)
    tables = choice.sample(TABLES, choice.randint(1, 2))
    return [each.replace("{t}", choice.choice(tables)) for each in words]


def called(name: str) -> str:
    """Return a relation's name as a refusal has it."""
    schema, _, table = f"{'' if '.' in name else 'public.'}{name}".partition(".")
    return f'"{schema}"."{table}"'


def tries() -> dict[str, str]:
    """Return what shows of each thing whether it may be dumped.

    A column that every table has is read by who has a right on the table, and not on columns alone.
    Of a partitioned table nobody reads rows but of its parts, so none are hidden from a dump.
    """
    read = {each: f"SELECT ctid, * FROM ONLY {each}" for each in TABLES}
    read["parted"] = "SET LOCAL row_security = on; SELECT tableoid FROM parted"
    return {
        **{
            called(each): f"LOCK TABLE {each} IN ACCESS SHARE MODE; {read[each]}" for each in TABLES
        },
        **{called(each): f"SELECT last_value FROM {each}" for each in SEQUENCES},
        "large object 4711": "SELECT lo_get(4711)",
    }


def unreadable(database: servers.Database, role: str) -> set[str]:
    """Return what the server refuses to a role that does what a dump does."""
    found = set()
    with psycopg.connect(database.conninfo(user=role), autocommit=True) as session:
        for name, words in tries().items():
            try:
                session.execute(f"BEGIN; SET LOCAL row_security = off; {words}".encode())
            except psycopg.errors.InsufficientPrivilege:
                found.add(name)
            session.execute("ROLLBACK")
    return found


def require_told(
    database: servers.Database, role: str, result: program.Result, backup_dir: Path
) -> bool:
    """Raise AssertionError unless a backup is whole, or was refused as promised; tell which."""
    closed = unreadable(database, role)
    if not closed:
        assert 0 == result.code, str(result)
        made = only(backup_dir)
        count = "SELECT count(*) FROM ONLY "
        rows = {
            called(each).replace('"', ""): database.query((count + each).encode())[0]  # type: ignore[arg-type]
            for each in TABLES
            if each != "parted"
        }
        assert rows == manifest(made)["rows"], str(result)
        shutil.rmtree(made)
        return True
    error = result.finished["error"]
    assert (23, True) == (result.code, error["code"] in TOLD), f"{closed}\n{result}"
    named = {each for each in tries() if each in error["message"]}
    assert named, f"{closed}\n{result}"
    assert named <= closed, f"{closed}\n{result}"
    assert [] == result.event("backup.started"), f"{closed}\n{result}"
    assert [] == list(backup_dir.iterdir()), str(result)
    return False


@pytest.mark.parametrize("seed", ["sample/1"])
def test_whatever_a_role_may_read_it_is_told_before_anything_begins(
    run: Run, database: servers.Database, backup_dir: Path, seed: str
) -> None:
    """What it cannot read is named, no client is started; else the backup has every row."""
    choice = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    role = f"reader_{database.name}"

    def script(words: str) -> None:
        database.script(words.replace("{d}", database.name))

    ends = []
    script(CONTENT.replace("{password}", servers.PASSWORD.replace("'", "''")))
    try:
        for number in range(ROUNDS):
            done = changes(choice, number)
            script("; ".join([WHOLE, *done]))
            try:
                ends.append(
                    require_told(database, role, run("backup", env={"PGUSER": role}), backup_dir)
                )
            except AssertionError as error:
                raise AssertionError(f"{'; '.join(done)}: {error}") from error
    finally:
        script(WHOLE + "; DROP OWNED BY reader_{d}, keeper_{d}; DROP ROLE reader_{d}, keeper_{d}")

    assert {True, False} == set(ends)
