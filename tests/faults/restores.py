"""Restores: backups, restores and swaps at random, with others at work, beside a small model.

The model knows what the database held at each backup, and what is in the copy beside it and who
touched that. `make restores SEED=7 MINUTES=10` goes on for as long as told; `SEED=7/123` does one
again.
"""

import dataclasses
import os
import random
import sys
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from tests import faults, program, servers
from tests.faults import crash

# Two versions of an extension whose rows a dump takes along; those of the older do not fit 2.
VERSIONS = {
    "1": "CREATE TABLE noted (n int, gone int);"
    "SELECT pg_catalog.pg_extension_config_dump('noted', '');",
    "1--2": "ALTER TABLE noted DROP COLUMN gone;",
}
CONTENT = """
CREATE TABLE t (n int, old int); CREATE SEQUENCE s; CREATE VIEW v AS SELECT n FROM t;
CREATE SCHEMA tools; CREATE EXTENSION noted SCHEMA tools VERSION '1';
INSERT INTO tools.noted VALUES (1, 1);
CREATE TABLE public.of_visitor (n int); ALTER TABLE of_visitor OWNER TO visitor;
GRANT INSERT ON t TO visitor; CREATE PUBLICATION p FOR TABLE t;
ALTER DATABASE live SET work_mem = '9MB'; ALTER DATABASE live CONNECTION LIMIT 90;
CREATE SUBSCRIPTION sub CONNECTION 'dbname=x' PUBLICATION p WITH (connect = false)
"""
# What a database holds, and what belongs to it; a comment stays with a name, not with a content.
FACTS = {
    "rows": "SELECT coalesce(array_agg(n ORDER BY n), '{}') FROM t",
    "sequence": "SELECT last_value FROM s",
    "noted": "SELECT array_agg(n ORDER BY n) FROM tools.noted",
    "large objects": "SELECT array_agg(oid ORDER BY oid) FROM pg_largeobject_metadata",
    "extension": "SELECT extversion FROM pg_extension WHERE extname = 'noted'",
    "relations": """SELECT array_agg(concat_ws(' ', relname, relowner::regrole, relacl::text,
 obj_description(oid)) ORDER BY relname) FROM pg_class
 WHERE relnamespace = 'public'::regnamespace""",
    "columns": """SELECT array_agg(attname || format_type(atttypid, atttypmod) ORDER BY attnum)
 FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 0 AND NOT attisdropped""",
    "publications": "SELECT array_agg(pubname ORDER BY pubname) FROM pg_publication",
    "database": """SELECT concat_ws(' ', datdba::regrole, datconnlimit, datistemplate, datallowconn)
 FROM pg_database WHERE datname = current_database()""",
    "rights": """
 SELECT array_agg(grantee::regrole || privilege_type ORDER BY grantee, privilege_type)
 FROM pg_database, aclexplode(coalesce(datacl, acldefault('d', datdba)))
 WHERE datname = current_database()""",
    "settings": """SELECT array_agg(setrole::regrole || setconfig::text ORDER BY setrole)
 FROM pg_db_role_setting JOIN pg_database d ON d.oid = setdatabase
 WHERE datname = current_database()""",
}
KEPT = ("rows", "sequence", "noted", "large objects", "extension")  # whatever is left out
SUBSCRIPTIONS = (
    "SELECT count(*) FROM pg_subscription JOIN pg_database d ON d.oid = subdbid"
    " WHERE datname = current_database()"
)
# What makes a database another one: rows as many as before, rows, what it is made of, what belongs
# to it. {d} is its name, {n} a number that was not there before.
AS_MANY = (
    "UPDATE tools.noted SET n = n",
    "WITH gone AS (DELETE FROM tools.noted RETURNING n) INSERT INTO tools.noted SELECT n FROM gone",
)
ROWS = (
    "INSERT INTO t VALUES ({n})",
    "TRUNCATE t; INSERT INTO t VALUES ({n})",
    "SELECT setval('s', {n})",
    "SELECT lo_create(0)",
)
OBJECTS = (
    "CREATE TABLE later{n} ()",
    "ALTER TABLE t ALTER old SET DEFAULT {n}",
    "ALTER TABLE t ADD more{n} text",
    "COMMENT ON TABLE t IS '{n}'",
    "CREATE OR REPLACE VIEW v AS SELECT n, {n} AS one FROM t",
    "CREATE PUBLICATION p{n} FOR TABLE t",
)
BELONGINGS = (
    "ALTER DATABASE {d} SET work_mem = '{n}MB'",
    "ALTER ROLE visitor IN DATABASE {d} SET work_mem = '{n}MB'",
    "ALTER DATABASE {d} CONNECTION LIMIT {n}",
)
# The same, unless it is so already.
STATES = (
    "GRANT SELECT ON t TO PUBLIC",
    "ALTER TABLE of_visitor OWNER TO postgres",
    "ALTER EXTENSION noted UPDATE TO '2'",
    "ALTER DATABASE {d} OWNER TO visitor",
    "GRANT CREATE ON DATABASE {d} TO visitor",
    "REVOKE TEMPORARY ON DATABASE {d} FROM PUBLIC",
)
ALL = (*AS_MANY, *ROWS, *OBJECTS, *BELONGINGS, *STATES)
# What leaves it what it was.
LOOKS = (
    "SELECT count(*) FROM t",
    "VACUUM ANALYZE t",
    "CHECKPOINT",
    "CREATE TEMP TABLE passing AS SELECT * FROM t",
    "BEGIN; INSERT INTO t VALUES (8); CREATE TABLE never (); ROLLBACK",
)
OPTIONS: tuple[tuple[str, ...], ...] = (
    *((),) * 4,
    ("--without", "settings"),
    ("--skip", "VIEW public v"),
    ("--no-owner",),
)

Facts = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Backup:
    """A backup: its name, whether it is of our server, and what the database held then."""

    name: str
    ours: bool
    facts: Facts


@dataclasses.dataclass(frozen=True)
class Copy:
    """What is beside the live database: of which backup, with which options, as it was made."""

    of: Backup
    options: tuple[str, ...]
    facts: Facts


class Visits(faults.Lacks):
    """From a message on, an ordinary user tries to get into the copy at each, until he wrote."""

    def __init__(self, copy: servers.Database, first: int) -> None:
        """Begin at that message of the server's; rows are not counted."""
        self.copy, self.first, self.seen = copy, first, 0
        self.wrote = self.late = False

    def to_client(self, kind: bytes, message: bytes) -> bytes:
        """Visit when it is time."""
        self.seen += kind not in b"Dd"
        if self.seen >= self.first and not self.wrote and not self.late:
            self.visit()
        return message

    def visit(self) -> None:
        """Write a row, if the server lets a user in; one who has to wait gives up for good."""
        try:
            with psycopg.connect(self.copy.conninfo(user="visitor", connect_timeout=2)) as session:
                session.execute("SET lock_timeout = '100ms'")
                session.execute("INSERT INTO t VALUES (-1)")
            self.wrote = True
        except psycopg.errors.ConnectionTimeout:
            self.late = True
        except psycopg.Error:
            pass


class Restores:
    """A database, its backups, and those of a server that has one of the same name."""

    def __init__(
        self, here: servers.Server, there: servers.Server, home: Path, choice: random.Random
    ) -> None:
        """Make the database on both."""
        self.home, self.choice = home, choice
        self.live = servers.Database(here, "live")
        self.copied = servers.Database(here, "live_restored")
        self.other = servers.Database(there, "live")
        self.backups: list[Backup] = []
        self.copy: Copy | None = None
        self.source: Backup | None = None  # of what is live
        self.swapped: set[str] = set()
        self.told: list[str] = []
        self.between = crash.Through()
        self.proxy = faults.Proxy(here, self.between)
        self.between.now = faults.Lacks()  # nothing here needs what such a server has not
        (home / "backups").mkdir()
        plant(home / "backups")
        self.number = 100
        self.messages = 100  # that a swap of what is there has, about
        for each in (self.live, self.other):
            servers.Database(each.server, "postgres").query("CREATE DATABASE live")
            each.script(CONTENT)

    # --- the program

    def run(self, *command: str, on: servers.Database | None = None) -> program.Result:
        """Run a command against our server, or the other."""
        more = {} if on else self.proxy.env()
        environment = {
            **(on or self.live).env(),
            **more,
            "PATH": program.path(),
            "PREFLIGHT_BACKUP_DIR": str(self.home / "backups"),
            "PREFLIGHT_BACKUP_KEEP": "100",
            "PREFLIGHT_REHEARSE": "off",
            "PREFLIGHT_TERMINATION_LOG": str(self.home / "none"),
        }
        main = program.Program(environment, self.home)
        try:
            result = main.run(*command, timeout=300)  # no promise: only so that nothing hangs
        finally:
            main.close()
        self.told.append(f"{' '.join(command)} -> {result.code}")
        return result

    def ends(self, code: int, error: str, *command: str) -> program.Result:
        """Run a command that is to end so, with an error of that code if any."""
        result = self.run(*command)
        said = (result.code, (result.finished.get("error") or {}).get("code", ""))
        assert (code, error) == said, f"not {code} {error}: {self}\n{result}"
        return result

    def agrees(self) -> None:
        """Raise AssertionError unless the copy is there, or not, and as the model has it."""
        found = facts(self.copied) if exists(self.copied) else None
        expected = self.copy.facts if self.copy else None
        assert expected == found, f"the copy is to be\n{expected}, is\n{found}: {self}"

    def forgets(self) -> None:
        """Drop the copy."""
        if self.copy:
            self.told.append("drop the copy")
            drop(self.copied)
            self.copy = None

    def __str__(self) -> str:
        """Tell what was done, in order."""
        return "; ".join(self.told)

    # --- what can happen

    def writes(self) -> None:
        """Change the live database in some ways."""
        for each in self.choice.sample(ALL, 3):
            self._change(self.live, each)

    def _change(self, database: servers.Database, what: str) -> None:
        self.number += 1
        said = what.format(d=database.name, n=self.number)
        self.told.append(f"in {database.name}: {said}")
        database.script(said)

    def saves(self) -> None:
        """Take a backup here, and maybe one of the other server, into the same directory."""
        for ours in (True, False)[: self.choice.randint(1, 2)]:
            on = self.live if ours else self.other
            self.told.append("here" if ours else "there")
            result = self.run("backup", on=None if ours else on)
            assert 0 == result.code, f"{self}\n{result}"
            name = result.event("backup.verified")[-1]["backup"]
            self.backups.append(Backup(name, ours, facts(on)))

    def chosen(self) -> tuple[str, Backup]:
        """Choose a backup, and one of the ways to name it."""
        if self.choice.random() < 0.4:
            return "latest", [each for each in self.backups if each.ours][-1]
        backup = self.choice.choice(self.backups)
        path = self.home / "backups" / backup.name
        others = [each.name for each in path.parent.iterdir() if each != path]
        beginning = next(
            backup.name[:end]
            for end in range(1, len(backup.name) + 1)
            if not any(each.startswith(backup.name[:end]) for each in others)
        )
        return self.choice.choice([beginning, str(path)]), backup

    def restores(self) -> None:
        """Restore beside; what is there is believed if it is the same, made in the same way."""
        for _ in range(3):
            name, backup = self.chosen()
            options = self.choice.choice(OPTIONS)
            if self.copy and (self.copy.of, self.copy.options) != (backup, options):
                self.ends(22, "restore.exists", "restore", name, *options)
            else:
                self.ends(0, "", "restore", name, *options)
                self._made(backup, options)
            self.agrees()

    def _made(self, backup: Backup, options: tuple[str, ...]) -> None:
        """Remember what must be there now."""
        if self.copy is None:
            found = facts(self.copied)
            if not options:
                assert backup.facts == found, f"was\n{backup.facts}, is\n{found}: {self}"
            for each in KEPT:
                assert backup.facts[each] == found[each], f"{backup.facts}, {found}: {self}"
            assert [0] == self.copied.query(SUBSCRIPTIONS), str(self)
            self.copy = Copy(backup, options, found)

    def repeated(self) -> None:
        """Look at a copy and expect to be believed; touch it, and expect not to be."""
        for kind in (AS_MANY, ROWS, OBJECTS, BELONGINGS):
            if self.copy is None:
                self.restores()
            assert self.copy
            again = ("restore", self.copy.of.name, *self.copy.options)
            if kind is AS_MANY:
                for look in self.choice.sample(LOOKS, 2):
                    self._change(self.copied, look)
                self.ends(0, "", *again)
            self._change(self.copied, self.choice.choice(kind))
            before, touched = facts(self.live), facts(self.copied)
            swap = ["--swap"] * self.choice.randint(0, 1)
            if swap and self.copy.of.name in self.swapped:
                swap.append("--again")
            self.ends(22, "restore.changed", *again, *swap)
            assert (before, touched) == (facts(self.live), facts(self.copied)), str(self)
            self.forgets()

    def swaps(self) -> None:
        """Put a backup in the live one's place, while somebody tries to get into the copy."""
        name, backup = self.chosen()
        options = self.choice.choice(OPTIONS)
        if self.copy and self.choice.random() < 0.5:
            name, backup, options = self.copy.of.name, self.copy.of, self.copy.options
        asked = ("restore", name, *options, "--swap")
        if backup.name in self.swapped:
            self._asked_twice(backup, asked)
            asked = (*asked, "--again")
        if self.copy and (self.copy.of, self.copy.options) != (backup, options):
            self.ends(22, "restore.exists", *asked)
            self.forgets()
        first = self.choice.randint(1, self.messages)
        swapped = False
        while not swapped:  # the visitor comes later and later
            if self.copy is None:
                self.ends(0, "", "restore", name, *options)
                self._made(backup, options)
            swapped = self._visited(asked, first)
            first += max(10, (self.messages - first) // 2)

    def _asked_twice(self, backup: Backup, asked: tuple[str, ...]) -> None:
        """Expect that a swap that was done is not done again by itself."""
        before = facts(self.live)
        if self.source == backup:
            self.ends(0, "", *asked)
        else:
            self.ends(22, "restore.swapped", *asked)
        assert before == facts(self.live), str(self)
        self.agrees()

    def _visited(self, asked: tuple[str, ...], first: int) -> bool:
        """Swap the copy in: all of it or, where somebody wrote into it, nothing; tell which."""
        assert self.copy
        before, made = facts(self.live), self.copy
        visits = self.between.now = Visits(self.copied, first)
        self.told.append(f"a visitor from message {visits.first} on")
        try:
            result = self.run(*asked)
        finally:
            self.between.now = faults.Lacks()
        if result.code:
            assert (22, "restore.changed") == (result.code, result.finished["error"]["code"]), (
                f"{self}\n{result}"
            )
            assert visits.wrote, f"nobody changed it: {self}\n{result}"
            assert before == facts(self.live), str(self)
            self.forgets()
            return False
        self.messages = visits.seen
        found = facts(self.live)
        assert made.facts == found, f"is to be\n{made.facts}, is\n{found}: {self}\n{result}"
        kept = servers.Database(self.live.server, result.event("restore.finished")[-1]["kept_as"])
        assert before == facts(kept), f"{self}\n{result}"
        drop(kept)
        self.copy, self.source = None, made.of
        self.swapped.add(made.of.name)
        self.agrees()
        return True

    def close(self) -> None:
        """Drop all."""
        self.proxy.close()
        for each in (self.copied, self.live, self.other):
            drop(each)


EVENTS = (
    Restores.writes, Restores.saves, Restores.restores, Restores.repeated, Restores.swaps,
)  # fmt: skip


def walk(here: servers.Server, there: servers.Server, home: Path, seed: str) -> str:
    """Have everything happen, in any order; return what was done.

    Raises AssertionError where the program and the model do not agree.
    """
    choice = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    restores = Restores(here, there, home, choice)
    try:
        restores.writes()
        restores.saves()
        restores.swaps()
        for each in choice.sample(EVENTS, len(EVENTS)):
            each(restores)
        return str(restores)
    finally:
        restores.close()


def plant(backups: Path) -> None:
    """Put there what is no backup, and has no end that anybody could read to."""
    for name in ("live_pipe", "live_device", "live_deep"):
        (backups / name).mkdir()
    os.mkfifo(backups / "live_pipe/manifest.json")
    (backups / "live_device/manifest.json").symlink_to("/dev/zero")
    (backups / "live_deep/manifest.json").write_text("[" * 100_000)


def facts(database: servers.Database) -> Facts:
    """Return what a database holds, and what belongs to it."""
    together = ", ".join(f'({each}) AS "{name}"' for name, each in FACTS.items())
    found: Facts = database.query(f"SELECT to_jsonb(f) FROM (SELECT {together}) f")[0]
    return found


def exists(database: servers.Database) -> bool:
    """Tell whether it is there."""
    there = "SELECT count(*) FROM pg_database WHERE datname = %s"
    return [1] == servers.Database(database.server, "postgres").query(there, database.name)


def drop(database: servers.Database) -> None:
    """Drop it, if it is there."""
    if not exists(database):
        return
    if database.query(SUBSCRIPTIONS) != [0]:
        database.script("ALTER SUBSCRIPTION sub SET (slot_name = NONE); DROP SUBSCRIPTION sub")
    with database.server.connect() as session:
        gone = sql.SQL("DROP DATABASE {} WITH (FORCE)")
        session.execute(gone.format(sql.Identifier(database.name)))


def prepare(server: servers.Server) -> None:
    """Give a server (18 or later) the extension and the user."""
    place = server.put("mark", "").parent / "ext" / "extension"
    place.mkdir(parents=True)
    (place / "noted.control").write_text("default_version = '2'\nrelocatable = true\n")
    (place / "noted--1.sql").write_text(VERSIONS["1"])
    (place / "noted--1--2.sql").write_text(VERSIONS["1--2"])
    for each in (place.parent, place):
        each.chmod(0o755)
    server.configure(extension_control_path=f"$system:{place.parent}")
    server.reload()
    with server.connect() as session:
        role = sql.SQL("CREATE ROLE visitor LOGIN PASSWORD {}")
        session.execute(role.format(sql.Literal(servers.PASSWORD)))


def main() -> int:
    """Walk until the time is over; 1 when program and model did not agree."""
    here, there = servers.start(18), servers.start(18)
    try:
        for each in (here, there):
            prepare(each)
        return faults.walks(
            "restores", __doc__, lambda _, home, seed: walk(here, there, home, seed)
        )
    finally:
        for each in (here, there):
            each.remove()


if __name__ == "__main__":
    sys.exit(main())
