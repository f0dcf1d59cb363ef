"""Partial: what a rehearsal with some rows says is what the server says with all, or is announced.

Tables, keys, views, triggers and a file over them are put together at random; one or two tables
are too large for the copy. `make partial SEED=7 MINUTES=60` goes on for as long as told.
"""

import argparse
import collections
import random
import sys
import tempfile
import time
from pathlib import Path

import psycopg
from psycopg import sql

from tests import program, servers

TABLES = range(6)
ACTIONS = ("", "", "ON DELETE CASCADE", "ON DELETE SET NULL", "ON DELETE CASCADE ON UPDATE CASCADE")
# what a trigger does; {b} is another table
FIRED = (
    "IF (SELECT count(*) FROM {b}) > 2 THEN RAISE 'too many'; END IF;",
    "IF NOT EXISTS (SELECT FROM {b}) THEN RAISE 'none'; END IF;",
    "INSERT INTO {b} VALUES (9000 + (SELECT count(*) FROM {b}), 1, NULL);",
)
# {a} and {b} are tables, {n} a small number
STATEMENTS = (
    "CREATE UNIQUE INDEX ON {a} (v)", "ALTER TABLE {a} ALTER v SET NOT NULL",
    "ALTER TABLE {a} ALTER ref SET NOT NULL", "DELETE FROM {a} WHERE id = {n}",
    "UPDATE {a} SET v = (SELECT max(v) FROM {b})", "UPDATE {a} SET id = 7000 WHERE id = {n}",
    "INSERT INTO {a} (id, v) SELECT id + 5000, v FROM seen LIMIT 20", "TRUNCATE {a}",
    "DO $$BEGIN IF (SELECT count(*) FROM {a}) < 2 THEN RAISE 'few'; END IF; END$$",
    "ALTER TABLE {a} ADD CHECK (v >= {n} - 3)", "DROP TABLE {a}", "SELECT 1 / counted()",
    "ALTER TABLE {a} ADD FOREIGN KEY (v) REFERENCES {b}", "SELECT 1 / count(*) FROM seen",
    "ALTER TABLE {a} ALTER v TYPE smallint", "ALTER TABLE {a} ALTER id TYPE bigint",
    "DO $$BEGIN EXECUTE 'CREATE UNIQUE INDEX ON ' || upper('{a}') || ' (v)'; END$$",
    "DO $$BEGIN EXECUTE 'ALTER TABLE ' || 'public.{a} ADD UNIQUE (v)'; END$$",
    "DO $$DECLARE x {a}%ROWTYPE; BEGIN SELECT * INTO STRICT x FROM {a} WHERE id = {n}; END$$",
    "INSERT INTO {a} VALUES (8000, 1, {n} * 9999)", "INSERT INTO {a} VALUES (8000, 1, {n})",
    "DELETE FROM {a} WHERE v IN (SELECT v FROM {b})", "ALTER TABLE {a} ADD EXCLUDE (v WITH =)",
    "ALTER TABLE {a} DROP COLUMN ref", "ALTER TABLE {a} DROP CONSTRAINT {a}_ref_fkey",
    "CREATE UNIQUE INDEX ON kept (v)", "REFRESH MATERIALIZED VIEW kept",
    "ALTER TABLE {a} RENAME TO other; CREATE UNIQUE INDEX ON other (v)",
)  # fmt: skip


def table(chance: random.Random, number: int, *, large: bool) -> str:
    """Return a table with rows, that may refer to one before it."""
    name, rows = f"t{number}", 1500 if large else chance.randint(3, 25)
    key, ref = "", "NULL::int"
    if number and chance.random() < 0.8:
        key = f"REFERENCES t{chance.randrange(number)} {chance.choice(ACTIONS)}"
        ref = f"nullif(n % 3 + 1, {chance.randint(1, 6)})"
    value = chance.choice(("n", "n % 5", "nullif(n, 3)", "n * 2"))
    pad = "repeat(md5(n::text), 40)" if large else "'x'"
    return (
        f"CREATE TABLE {name} (id int PRIMARY KEY, v int, ref int {key}, pad text);"
        f"INSERT INTO {name} SELECT n, {value}, {ref}, {pad} FROM generate_series(1, {rows}) n;"
    )


def schema(chance: random.Random) -> str:
    """Return the statements that make a database."""
    large = chance.sample(TABLES, chance.choice((1, 1, 2)))
    made = [table(chance, number, large=number in large) for number in TABLES]
    a, b, c, d = (f"t{chance.choice(TABLES)}" for _ in range(4))
    body = f"BEGIN {chance.choice(FIRED).format(b=d)} RETURN coalesce(NEW, OLD); END"
    made += [
        f"CREATE VIEW seen AS SELECT id, v FROM {a} WHERE v > {chance.randint(0, 2)};",
        f"CREATE MATERIALIZED VIEW kept AS SELECT id, v FROM {b};",
        f"CREATE FUNCTION counted() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM {c}';",
        f"CREATE FUNCTION fired() RETURNS trigger LANGUAGE plpgsql AS $${body}$$;",
    ]
    if chance.random() < 0.5:
        when = (
            f"{chance.choice(('AFTER', 'BEFORE'))} {chance.choice(('INSERT', 'DELETE OR UPDATE'))}"
        )
        made.append(
            f"CREATE TRIGGER fired {when} ON t{chance.choice(TABLES)} "
            "FOR EACH ROW EXECUTE FUNCTION fired();"
        )
    return "".join(made)


def file(chance: random.Random) -> str:
    """Return a file of one to three statements."""
    return "".join(
        f"{statement.format(a=a, b=b, n=chance.randint(1, 8))};\n"
        for statement in chance.sample(STATEMENTS, chance.choice((1, 2, 2, 3)))
        for a, b in [[f"t{number}" for number in chance.sample(TABLES, 2)]]
    )


def in_earnest(database: servers.Database, text: str) -> str | None:
    """Return the SQLSTATE that a file ends with where every row is there; nothing of it stays."""
    with database.server.connect(database.name) as connection:
        connection.execute("BEGIN")
        try:
            connection.execute(text.encode())
        except psycopg.Error as error:
            return error.sqlstate
        connection.execute("ROLLBACK")
    return None


def rehearsed(database: servers.Database, text: str, home: Path) -> program.Result:
    """Return what the program says of a file with room for 1 MB."""
    for name in ("files", "backups"):
        (home / name).mkdir()
    (home / "files" / "001_one.sql").write_text(text)
    environment = {
        "PATH": program.path(),
        "PREFLIGHT_BACKUP_DIR": str(home / "backups"),
        "PREFLIGHT_MIGRATIONS_DIR": str(home / "files"),
        "PREFLIGHT_FIRST_CONTACT": "pending",
        "PREFLIGHT_REHEARSE_ON": "server",
        "PREFLIGHT_REHEARSE_MAX_MB": "1",
    }
    main = program.Program(environment | database.env(), home)
    try:
        return main.run()
    finally:
        main.close()


def judged(wanted: str | None, result: program.Result) -> str:
    """Return how a partial verdict is beside that of the server."""
    if result.event("rehearsal.skipped"):
        return "skipped"
    if result.code == 27:
        return "same" if wanted else "FALSE ALARM"
    (passed,) = result.event("rehearsal.passed")
    if wanted is None:
        return "same"
    return "announced" if result.event("rehearsal.warned") or passed["without"] else "MISSED"


def once(server: servers.Server, seed: int) -> str:
    """Put a database and a file together, and return the judgement; print what is wrong."""
    chance = random.Random(seed)  # noqa: S311 -- to be had again
    database, text = servers.Database(server, f"partial_{seed}"), file(chance)
    name = sql.Identifier(database.name)
    with server.connect() as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(name))
    try:
        database.script(schema(chance))
        wanted = in_earnest(database, text)
        with tempfile.TemporaryDirectory() as home:
            result = rehearsed(database, text, Path(home))
    finally:
        with server.connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
    verdict = judged(wanted, result)
    if verdict.isupper():
        sys.stdout.write(f"SEED={seed} {verdict}: with all rows {wanted}\n{text}{result}\n")
        sys.stdout.flush()
    return verdict


def main() -> int:
    """Go on for as long as told; 1 where a verdict was wrong."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1)
    said = parser.parse_args()
    ends, seed, tally = time.monotonic() + said.minutes * 60, said.seed, collections.Counter[str]()
    server = servers.start(17)
    try:
        while time.monotonic() < ends:
            tally[once(server, seed)] += 1
            seed += 1
    finally:
        server.remove()
    sys.stdout.write(f"SEED={said.seed} to {seed - 1}: {dict(tally)}\n")
    return any(verdict.isupper() for verdict in tally)


if __name__ == "__main__":
    raise SystemExit(main())
