"""Plans: what `plan` says of a file's statements, held against the server that runs them.

Tables with keys that cascade, partitions, heirs, views on views, materialised views, in two schemas
and under odd names, with rows; then a handful of statements at random, of which the server takes
those that it can, one after the other in a transaction that is rolled back. Each lock that it took
is in the plan, and no stronger one that it did not take; each table, view or column that went, or
lost rows, is in what the plan says is destroyed. `make plans SEED=7 MINUTES=10` goes on for as long
as told; `SEED=7/123` does one again.
"""

import json
import random
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from preflight.files import effects
from tests import program, servers
from tests.faults import histories

PATIENCE_S = 120.0  # no promise: only so that nothing hangs for ever
FILES, STATEMENTS, TRIES = 4, 12, 80
ACTIONS = ("CASCADE", "CASCADE", "SET NULL", "NO ACTION")
MODES = {mode.title().replace(" ", "") + "Lock": mode for mode in effects.STRENGTH}
TOLD = effects.STRENGTH.index(effects.ROW_EXCLUSIVE)  # what is weaker is in nobody's way
# who has it so keeps writers out already: what a file's own foreign keys lock later is not told
WAITING = effects.STRENGTH.index(effects.SHARE_ROW)
HELD = (
    "SELECT relation::bigint, mode FROM pg_locks WHERE pid = pg_backend_pid()"
    " AND locktype = 'relation'"
)
THERE = (  # what can be destroyed: its number, its name, its rows where it has its own
    "SELECT c.oid::bigint, c.oid::regclass::text, CASE WHEN relispartition THEN 'part'"
    " ELSE c.relkind::text END FROM pg_class c"
    " WHERE relkind IN ('r', 'p', 'v', 'm') AND relnamespace IN"
    " (SELECT oid FROM pg_namespace WHERE nspname IN ('public', 'app')) ORDER BY 1"
)
COLUMNS = (
    "SELECT attrelid::bigint, attnum FROM pg_attribute WHERE attnum > 0 AND NOT attisdropped"
    " AND attrelid = ANY (%s)"
)
ABOVE = (
    "WITH RECURSIVE up AS (SELECT inhrelid::bigint AS below, inhparent::bigint AS above FROM"
    " pg_inherits UNION SELECT up.below, i.inhparent::bigint FROM pg_inherits i"
    " JOIN up ON i.inhrelid = up.above) SELECT below, above FROM up"
)
SPELLED = (
    "SELECT format('%%s.%%s', quote_ident(nspname), quote_ident(relname)), quote_ident(relname)"
    " FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE c.oid = %s"
)
NAME = re.compile(r'(?:"[^"]+"|[\w$]+)(?:\.(?:"[^"]+"|[\w$]+))*')
# heirs are analyzed with a parent from 18 on, triggers are switched in partitions that have some
DEPENDS = re.compile("ANALYZE|.* DISABLE TRIGGER")
# a view has no rows: only one that goes along is told; what is detached is there still
TELLS_NOTHING = re.compile("DROP (?:VIEW|MATERIALIZED)|.* DETACH PARTITION")
PLAIN = re.compile(r'"([a-z_][a-z0-9_]*)"')
NAMES = ("a", "b", "c", "app.d", 'app."E e"', '"select"')
TEMPLATES = (
    "DELETE FROM {r}",
    "DELETE FROM {r} WHERE id IN (SELECT id FROM {r2} LIMIT 2)",
    "WITH x AS (DELETE FROM {r} RETURNING id) SELECT count(*) FROM x",
    "UPDATE {r} SET n = n + 1",
    "UPDATE {r} SET id = id + 100 WHERE id = 3",
    "INSERT INTO {r} (id, n) SELECT max(id) + 1, 1 FROM {r2}",
    "TRUNCATE {t}",
    "TRUNCATE {t}, {t2}",
    "TRUNCATE {t} CASCADE",
    "TRUNCATE ONLY {t}",
    "DROP TABLE {t}",
    "DROP TABLE {t} CASCADE",
    "DROP TABLE IF EXISTS {t}, {t2} CASCADE",
    "DROP VIEW {v}",
    "DROP VIEW {v} CASCADE",
    "DROP MATERIALIZED VIEW {m}",
    "REFRESH MATERIALIZED VIEW {m}",
    "ALTER TABLE {t} ADD COLUMN more_{k} int",
    "ALTER TABLE {t} ADD COLUMN ref_{k} int REFERENCES {t2} ON DELETE CASCADE",
    "ALTER TABLE {t} DROP COLUMN n",
    "ALTER TABLE {t} DROP COLUMN n CASCADE",
    "ALTER TABLE {t} ALTER COLUMN n TYPE bigint",
    "ALTER TABLE {t} ALTER COLUMN said SET NOT NULL",
    "ALTER TABLE {t} ADD CONSTRAINT more_{k} CHECK (n >= 0)",
    "ALTER TABLE {t} ADD CONSTRAINT more_{k} CHECK (n >= 0) NOT VALID",
    "ALTER TABLE {t} ADD CONSTRAINT fk_{k} FOREIGN KEY (n) REFERENCES {t2} NOT VALID",
    "ALTER TABLE {t} RENAME TO to_{k}",
    "ALTER TABLE {t} RENAME COLUMN said TO spoken",
    "ALTER TABLE {t} SET SCHEMA app",
    "ALTER TABLE {t} SET (fillfactor = 80)",
    "ALTER TABLE {t} DISABLE TRIGGER ALL",
    "ALTER TABLE {t} DETACH PARTITION {t2}",
    "ALTER TABLE {t} NO INHERIT {t2}",
    "ALTER TABLE {t} DROP CONSTRAINT {t_index} CASCADE",
    "CREATE INDEX ON {t} (n)",
    "CREATE UNIQUE INDEX ON {t} (id, n)",
    "CREATE TABLE new_{k} (LIKE {t})",
    "CREATE TABLE new_{k} AS SELECT * FROM {r}",
    "CREATE TABLE new_{k} (id int REFERENCES {t})",
    "CREATE TABLE new_{k} () INHERITS ({t})",
    "CREATE VIEW new_{k} AS SELECT * FROM {r}",
    "CREATE TRIGGER new_{k} AFTER DELETE ON {t} FOR EACH ROW EXECUTE FUNCTION other()",
    "DROP FUNCTION nothing CASCADE",
    "DROP TYPE mood CASCADE",
    "DROP SCHEMA app CASCADE",
    "LOCK TABLE {r} IN SHARE ROW EXCLUSIVE MODE",
    "LOCK TABLE ONLY {t} IN SHARE MODE",
    "REINDEX TABLE {t}",
    "ANALYZE {t}",
    "COMMENT ON TABLE {t} IS 'x'",
    "CLUSTER {t} USING {t_index}",
    "SELECT * FROM {r} FOR UPDATE",
    "SET search_path = app, public",
    "SET LOCAL search_path = public, app",
    "RESET search_path",
    "DO $$ BEGIN DELETE FROM {r}; END $$",
    "DO $$ BEGIN IF true THEN ALTER TABLE {t} ADD COLUMN done_{k} int; END IF; END $$",
    "MERGE INTO {t} USING {t2} ON {t}.id = {t2}.id WHEN MATCHED THEN DELETE",
)


class World:
    """A database, its tables and views by name, and what is said of it."""

    def __init__(self, database: servers.Database, home: Path, choice: random.Random) -> None:
        """Make tables, views and rows."""
        self.database, self.home, self.choice = database, home, choice
        self.tables: list[str] = []
        self.views: list[str] = []
        self.folder = home / "files"
        self.folder.mkdir()
        self.told: list[str] = []
        made = (
            "CREATE SCHEMA app; CREATE TYPE mood AS ENUM ('good');"
            "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN RETURN NULL; END';"
            "CREATE FUNCTION other() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
        )
        said = [made]
        for name in choice.sample(NAMES, choice.randint(3, len(NAMES))):
            said.append(self._table(name))
            self.tables.append(name)
        said += self._parts()
        of = choice.choice(self.tables)
        said.append(
            f"CREATE TRIGGER one AFTER DELETE ON {of} FOR EACH ROW EXECUTE FUNCTION nothing()"
        )
        said += [self._view(f"v{k}") for k in range(choice.randint(1, 4))]
        said.append(f"CREATE MATERIALIZED VIEW m AS SELECT id, n FROM {choice.choice(self.rows)}")
        self.told.append(";\n".join(said))
        database.script(";\n".join(said))

    def __str__(self) -> str:
        """Tell what there is, and what was asked."""
        return "\n".join(self.told)

    @property
    def rows(self) -> list[str]:
        """Return what rows can be asked of."""
        return [*self.tables, *self.views]

    def _table(self, name: str) -> str:
        choice = self.choice
        keys = "".join(
            f", k{i} int REFERENCES {other} ON DELETE {choice.choice(ACTIONS)}"
            f" ON UPDATE {choice.choice(ACTIONS)}"
            for i, other in enumerate(choice.sample(self.tables, min(len(self.tables), 2)))
            if choice.random() < 0.7
        )
        filled = ", id" * keys.count("REFERENCES")
        mood = choice.choice(["mood", "text"])
        return (
            f"CREATE TABLE {name} (id int PRIMARY KEY, n int, said {mood}{keys});"
            f"INSERT INTO {name} SELECT id, id, 'good'{filled} FROM generate_series(1, 5) id"
        )

    def _parts(self) -> list[str]:
        """Return a table with partitions of two levels, and one with an heir."""
        self.tables += ["p", "app.p1", "p2", "p21", "base", "heir"]
        refers = self.choice.choice(["", f", k int REFERENCES {self.tables[0]} ON DELETE CASCADE"])
        parts = "PARTITION BY RANGE (id)"
        return [
            f"CREATE TABLE p (id int PRIMARY KEY, n int, said text{refers}) {parts}",
            "CREATE TABLE app.p1 PARTITION OF p FOR VALUES FROM (0) TO (4)",
            "CREATE TABLE p2 PARTITION OF p DEFAULT PARTITION BY RANGE (id)",
            "CREATE TABLE p21 PARTITION OF p2 DEFAULT",
            "INSERT INTO p (id, n, said) SELECT id, id, '' FROM generate_series(1, 9) id",
            "CREATE TABLE base (id int, n int, said text)",
            "CREATE TABLE heir (own int) INHERITS (base)",
            "INSERT INTO base VALUES (1, 1, ''), (2, 2, '')",
            "INSERT INTO heir VALUES (1, 1, '', 1), (2, 2, '', 2)",
        ]

    def _view(self, name: str) -> str:
        of = self.choice.choice(self.rows)
        kept = self.choice.choice(["", " WHERE n > 0", f" WHERE id IN (SELECT id FROM {of})"])
        self.views.append(name)
        return f"CREATE VIEW {name} AS SELECT id, n FROM {of}{kept}"

    def statement(self, k: str) -> str:
        """Return one at random; the server may not take it."""
        choice = self.choice
        t, t2 = choice.choice(self.tables), choice.choice(self.tables)
        return choice.choice(TEMPLATES).format(
            t=t, t2=t2, r=choice.choice(self.rows), r2=choice.choice(self.rows),
            v=choice.choice(self.views), m="m", k=k,
            t_index=f'"{t.rpartition(".")[2].strip(chr(34))}_pkey"',
        )  # fmt: skip


class Seen:
    """What a session has at a moment, in its transaction: locks, rows, columns, ancestors."""

    def __init__(self, session: psycopg.Connection) -> None:
        """Look; what is counted is locked so weakly that nobody is told."""
        self.locks: dict[int, int] = {}
        for oid, mode in session.execute(HELD).fetchall():
            strength = effects.STRENGTH.index(MODES[mode])
            self.locks[oid] = max(strength, self.locks.get(oid, 0))
        there = session.execute(THERE).fetchall()
        self.names: dict[int, str] = {oid: name for oid, name, _ in there}
        self.rows: dict[int, int] = {}
        for oid, name, kind in there:
            if kind in "rp":  # of partitions together: a row may move from one to another
                query = f"SELECT count(*) FROM {'ONLY ' * (kind == 'r')}{name}"
                ((self.rows[oid],),) = session.execute(query.encode()).fetchall()
        self.columns: dict[int, set[int]] = {oid: set() for oid in self.names}
        for oid, number in session.execute(COLUMNS, [list(self.names)]).fetchall():
            self.columns[oid].add(number)
        self.over: dict[int, set[int]] = {oid: {oid} for oid in self.names}
        for oid, above in session.execute(ABOVE).fetchall():
            self.over.setdefault(oid, {oid}).add(above)

    def lost(self, after: "Seen") -> set[int]:
        """Return what is gone afterwards, or has lost rows or columns."""
        gone = self.names.keys() - after.names.keys()
        fewer = {oid for oid, rows in self.rows.items() if rows > after.rows.get(oid, 0)}
        less = {oid for oid, had in self.columns.items() if had - after.columns.get(oid, set())}
        return gone | fewer | less


@dataclass(frozen=True)
class Step:
    """A statement that the server took, what was there before and after, and what names meant."""

    text: str
    before: Seen
    after: Seen
    meant: Mapping[str, int]

    def wrong(self, said: Mapping[str, Any], old: Collection[int]) -> list[str]:
        """Return where a plan's words differ from it; only of what was there before the file."""
        claimed: dict[int, int] = {}
        for lock in said["locks"]:
            strength = effects.STRENGTH.index(lock["mode"])
            if (oid := self.meant.get(lock["table"])) is not None:
                claimed[oid] = max(strength, claimed.get(oid, 0))
        found = []
        for oid in old:
            name = self.before.names.get(oid, f"{oid}")
            has, had = self.after.locks.get(oid, 0), self.before.locks.get(oid, 0)
            less = has > max(had, claimed.get(oid, 0), TOLD - 1) and had < WAITING
            if less and not said["unknown"]:
                found.append(f"{name} is locked in {effects.STRENGTH[has]}")
            more = claimed.get(oid, 0) > max(has, TOLD) and not DEPENDS.match(self.text)
            if more and oid in self.after.names and name in NAME.findall(self.text):
                found.append(f"{name} is not locked in {effects.STRENGTH[claimed[oid]]}")
        destroyed = said["destroys"] or ""
        named = {
            self.meant[part]
            for each in NAME.findall(destroyed)
            for part in (each, each.rpartition(".")[0])
            if part in self.meant
        }
        over = self.before.over
        if not said["unknown"] and not TELLS_NOTHING.match(self.text):
            found += [
                f"{self.before.names[oid]} is destroyed"
                for oid in self.before.lost(self.after) & set(old)
                if not over[oid] & named and not any(oid in over.get(each, ()) for each in named)
            ]
        return found


def steps(world: World, k: str) -> Iterator[Step]:
    """Run statements at random in a transaction, rolled back; yield what was taken."""
    with world.database.server.connect(world.database.name) as session:
        session.execute("BEGIN")
        taken = 0
        first: dict[str, int] = {}  # what is reached has the name that it has on the server now
        for n in range(TRIES):
            text = world.statement(f"{k}_{n}")
            before = Seen(session)
            meant = dict(first)
            for oid, name in before.names.items():
                meant |= dict.fromkeys(_spellings(session, oid, name), oid)
            if not first:  # and a path may take its schema off
                first = {part: oid for name, oid in meant.items() for part in (name, _last(name))}
            session.execute("SAVEPOINT here")
            try:
                session.execute(text.encode())
            except psycopg.Error:
                session.execute("ROLLBACK TO here")
                continue
            yield Step(text, before, Seen(session), meant)
            taken += 1
            if taken == STATEMENTS:
                break
        session.execute("ROLLBACK")


def _spellings(session: psycopg.Connection, oid: int, name: str) -> list[str]:
    """Return a name as it is written with its schema, and without where that means the same."""
    ((whole, short),) = session.execute(SPELLED, [oid]).fetchall()
    found = [name, whole] if name == short else [whole]
    return found + [PLAIN.sub(r"\1", each) for each in found]  # a word of SQL, as people say it


def _last(name: str) -> str:
    """Return a name without its schema."""
    return name.removeprefix("app.").removeprefix("public.")


def hold(world: World, k: str) -> None:
    """Hold one file's plan against the server."""
    ran = list(steps(world, k))
    for each in world.folder.iterdir():
        each.unlink()
    file = world.folder / "001_a.sql"
    file.write_text("".join(f"{step.text};\n" for step in ran))
    environment = {
        **world.database.env(),
        "PATH": program.path(),
        "PREFLIGHT_FIRST_CONTACT": "pending",
        "PREFLIGHT_MIGRATIONS_DIR": str(world.folder),
    }
    main = program.Program(environment, world.home)
    try:
        result = main.start("plan", "--json").wait(PATIENCE_S)
    finally:
        main.close()
    world.told.append(f"--- file {k}\n{file.read_text()}{result.stdout}")
    assert result.code == 0, f"{world}\n{result}"
    said = json.loads(result.stdout)["statements"]
    old = ran[0].before.names if ran else {}
    wrong = {
        f"{number}: {step.text}": found
        for number, (step, each) in enumerate(zip(ran, said, strict=True), 1)
        if (found := step.wrong(each, old))
    }
    assert not wrong, f"{wrong}\n{world}"


def walk(database: servers.Database, home: Path, seed: str) -> str:
    """Hold some files' plans against the server; return what was done.

    Raises AssertionError where a plan says less, or more, than the server did.
    """
    choice = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    world = World(database, home, choice)
    for k in range(FILES):
        hold(world, str(k))
    return str(world)


def main() -> int:
    """Walk until the time is over; 1 when a plan was wrong."""
    return histories.walks("plans", __doc__, walk)


if __name__ == "__main__":
    sys.exit(main())
