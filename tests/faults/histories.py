"""Histories: a folder and its database are changed at random, and a small model says what follows.

The database is hostile: `public` holds a twin of nearly every function and view of pg_catalog, each
of which fails, and stands before it in no path but that of who asks for it. What it gives a new
session is hostile, too.
`make histories SEED=7 MINUTES=10` goes on for as long as told; `SEED=7/123` does one again.
"""

import contextlib
import itertools
import random
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg

from tests import faults, program, servers

QUICKLY = {"PREFLIGHT_BACKUP": "off", "PREFLIGHT_REHEARSE": "off"}
OUTSIDE = "-- preflight: no-transaction\n"
# Each twin takes the very arguments of pg_catalog's; what plpgsql knows no type for is left out.
PLANT = r"""
DO $plant$
DECLARE found record; body text := $$ LANGUAGE plpgsql AS 'BEGIN RAISE ''trojan''; END' $$;
BEGIN
 SET LOCAL search_path = pg_catalog;
 CREATE FUNCTION public.trap() RETURNS bool LANGUAGE plpgsql AS 'BEGIN RAISE ''trojan''; END';
 FOR found IN SELECT p.proname, pg_get_function_identity_arguments(p.oid) AS arguments,
   pg_get_function_result(p.oid) AS returned FROM pg_proc p
  WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'f' AND p.pronargs < 4 LOOP
  BEGIN
   EXECUTE format('CREATE FUNCTION public.%I(%s) RETURNS %s', found.proname, found.arguments,
    found.returned) || body;
  EXCEPTION WHEN OTHERS THEN NULL;
  END;
 END LOOP;
 FOR found IN SELECT c.relname FROM pg_class c WHERE c.relkind IN ('r', 'v')
   AND c.relnamespace = 'pg_catalog'::regnamespace LOOP
  EXECUTE format('CREATE VIEW public.%I AS SELECT public.trap()', found.relname);
 END LOOP;
 FOR found IN SELECT o.oprname, o.oprleft::regtype AS l, o.oprright::regtype AS r,
   o.oprresult::regtype AS returned FROM pg_operator o
  WHERE o.oprnamespace = 'pg_catalog'::regnamespace AND o.oprkind = 'b'
   AND o.oprname IN ('=', '<>', '<', '>', '>=', '<=', '||', '-', '~', '~~') LOOP
  BEGIN
   EXECUTE format('CREATE FUNCTION public.trap(%s, %s) RETURNS %s', found.l, found.r,
    found.returned) || body;
  EXCEPTION WHEN OTHERS THEN NULL;
  END;
  BEGIN
   EXECUTE format('CREATE OPERATOR public.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = public.trap)',
    found.oprname, found.l, found.r);
  EXCEPTION WHEN OTHERS THEN NULL;
  END;
 END LOOP;
END $plant$;
"""
# What the program sets for itself and for files, as somebody may have it for a database.
DEFAULTS = {
    "statement_timeout": "200ms",
    "lock_timeout": "1ms",
    "idle_in_transaction_session_timeout": "1ms",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "synchronous_commit": "off",
    "standard_conforming_strings": "off",
    "client_min_messages": "error",
    "quote_all_identifiers": "on",
}
# Who watches over new schemas is slower than that timeout with that of the program.
WATCH = """
CREATE FUNCTION public.watch() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN
 IF pg_catalog.current_setting('application_name') OPERATOR(pg_catalog.~) '^pg-preflight' THEN
  PERFORM pg_catalog.pg_sleep(0.3);
 END IF;
END$$;
CREATE EVENT TRIGGER watch ON ddl_command_end WHEN TAG IN ('CREATE SCHEMA')
 EXECUTE FUNCTION public.watch();
"""
# What nobody but the owner has of the history, whatever new tables are open to; these columns all
# may read.
OPEN_TO_ALL = "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC"
OPENED = """
SELECT pg_catalog.concat_ws(' ', relname, attname, privilege_type)
FROM (SELECT oid, NULL AS attname, relacl AS acl FROM pg_catalog.pg_class
 UNION ALL SELECT attrelid, attname, attacl FROM pg_catalog.pg_attribute) AS each
JOIN pg_catalog.pg_class USING (oid) CROSS JOIN pg_catalog.aclexplode(acl)
WHERE relnamespace = 'preflight'::regnamespace AND grantee = 0 ORDER BY 1
"""
FOR_ALL = [
    f"migrations {each} SELECT" for each in ("breaking", "checksum", "name", "state", "version")
]
# What others write behind the address of a database.
FOR_OTHERS = "?schema=public&pgbouncer=true&pool_timeout=9&charset=utf8"
# So is a file, which divides by zero where a backslash escapes.
UNDISTURBED = r"""SELECT pg_catalog.pg_sleep(0.3);
SELECT 1 OPERATOR(pg_catalog./) (pg_catalog.length('a\b') OPERATOR(pg_catalog.-) 2);
CREATE TABLE public.t0 (x int);
"""
# What a file may do where nobody reads it, and whoever comes after it is not to notice.
SETS = (
    "SET SESSION AUTHORIZATION pg_monitor",
    "SET ROLE pg_monitor",
    "SET search_path = public, pg_catalog",
    "SET default_transaction_read_only = on",
    "SET default_transaction_isolation = serializable",
    "SET session_replication_role = replica",
    "SET standard_conforming_strings = off",
    "SET client_encoding = latin1",
)
LETS_GO = "SELECT pg_catalog.pg_advisory_unlock_all()"
TIMES_OUT = "SET transaction_timeout = 50; SELECT pg_catalog.pg_sleep(60)"
# How a file ends that does so, in a transaction and outside of one. Of what ends a session nobody
# can say whose word it was, unless it was a timeout.
ENDS = {
    TIMES_OUT: (30, 31),
    "SET transaction_read_only = on": (30, 31),
    "SELECT pg_catalog.pg_cancel_backend(pg_catalog.pg_backend_pid())": (30, 31),
    "SELECT pg_catalog.pg_terminate_backend(pg_catalog.pg_backend_pid())": (13, 13),
}
FORGETS = (
    "DISCARD ALL",
    "SELECT pg_advisory_unlock_all()",
    "PREPARE p AS SELECT 1",
    "CREATE TEMP TABLE passing (id int)",
    "SELECT set_config('search_path', 'other', false)",
    "LISTEN something",
    "SELECT 1 AS a INTO TEMP passing",
)
# Values that are shown in one way or the other, and what asks for the other.
ODD = "x, date '2020-02-01' AS d, bytea '\\x01' AS b, interval '1 day 2 h' AS i, 1 / 3::float8 AS f"
SHOWN = (
    "datestyle = 'German'", "bytea_output = 'escape'", "intervalstyle = 'iso_8601'",
    "extra_float_digits = -10",
)  # fmt: skip
HARMS = (
    "DROP TABLE preflight.journal",
    "ALTER TABLE preflight.migrations DROP CONSTRAINT migrations_pkey",
    "ALTER TABLE preflight.migrations DROP COLUMN how",
    "ALTER TABLE preflight.migrations ALTER duration_ms TYPE text",
    "ALTER TABLE preflight.migrations ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE preflight.journal ALTER role DROP DEFAULT",
    "CREATE RULE r AS ON INSERT TO preflight.journal DO INSTEAD NOTHING",
    "DROP TABLE preflight.migrations; CREATE VIEW preflight.migrations AS SELECT 1 AS version",
    "ALTER TABLE preflight.migrations OWNER TO {stranger}",
)
PATIENCE_S = 300.0  # none of these is a promise: only so that nothing hangs for ever


@dataclass(frozen=True)
class Effect:
    """What a file does, where it is counted, and whether it stays done when that is rolled back.

    `wanted` is what somebody else cannot have before it is; some are for a transaction only.
    """

    does: str
    counted: str
    beyond: bool = False
    wanted: str = ""
    inside: bool = False


# What goes beyond the database leaves a file, or a number in one, each time.
EFFECTS = (
    Effect("COPY (SELECT 1) TO PROGRAM 'cat >$(mktemp {trace}.XXXX)'", "trace", beyond=True),
    Effect("COPY (SELECT {next}) TO '{trace}'", "trace", beyond=True),
    Effect(
        "SELECT pg_catalog.lo_export(1, pg_catalog.concat('{trace}.', {next}))",
        "trace",
        beyond=True,
    ),
    Effect(
        "SELECT public.dblink_exec('{elsewhere}', 'INSERT INTO public.marks VALUES ({of})')",
        "marks",
        beyond=True,
    ),
    Effect("INSERT INTO public.marks VALUES ({of})", "marks", wanted="LOCK TABLE public.marks"),
    Effect("SELECT {next}", "tries"),
    Effect(
        "SELECT pg_catalog.pg_advisory_lock({of}), {next}",
        "tries",
        wanted="SELECT pg_advisory_xact_lock({of})",
        inside=True,
    ),
)


@dataclass(frozen=True)
class Obstacle:
    """What somebody holds, and what waits for it: a statement, or a query of the verify file."""

    held: str
    waits: str = ""
    verify: str = ""


OBSTACLES = (
    Obstacle("TABLE public.busy", "TRUNCATE public.busy;\n"),
    Obstacle("SELECT FROM public.parent FOR UPDATE", "UPDATE public.parent SET y = 1;\n"),
    Obstacle("SELECT FROM public.parent FOR UPDATE", "INSERT INTO public.child VALUES (1);\n"),
    Obstacle(
        "LOCK TABLE public.busy",
        verify="SELECT 's' AS suite, 'busy' AS \"check\", true AS ok, false AS effect"
        " FROM (SELECT pg_catalog.count(*) FROM public.busy) AS counted;\n",
    ),
)
OBSTACLES_MADE = """SELECT lo_from_bytea(1, '1');
CREATE TABLE public.marks (of int);
CREATE TABLE public.busy (x int);
CREATE TABLE public.parent (x int PRIMARY KEY, y int);
INSERT INTO public.parent VALUES (1);
CREATE TABLE public.child (x int REFERENCES public.parent DEFERRABLE INITIALLY DEFERRED);
"""
# How rows go in a rollback, whose table it may be, and by what an export sees them.
DESTROYS = (
    "DROP TABLE {of} CASCADE;\n",
    "TRUNCATE {of};\n",
    "DELETE FROM {of};\n",
    "ALTER TABLE {of} DROP COLUMN said CASCADE;\n",
    "UPDATE {of} SET said = NULL;\n",
)
KEPT_IN = {
    "{of}": "CREATE TABLE {of} (id int, said text);",
    "{of}_part": "CREATE TABLE {of} (id int, said text) PARTITION BY LIST (id);"
    " CREATE TABLE {of}_part PARTITION OF {of} DEFAULT;",
    "{of}_heir": "CREATE TABLE {of} (id int, said text);"
    " CREATE TABLE {of}_heir () INHERITS ({of});",
}
SEES = (
    "SELECT said FROM {of}",
    "TABLE {of}",
    "SELECT said FROM {of}_seen",
    "WITH {of_alone} AS (SELECT said FROM {of}) SELECT said FROM {of_alone}",
    "SELECT (SELECT pg_catalog.string_agg(said, ' ') FROM {of}) AS all_of_it",
    "SELECT a.said FROM {of}_seen AS a CROSS JOIN (SELECT 1) AS one",
)
# How a version is taken back, or not; what looks for it, and at what it would destroy.
LEAVES = "SELECT; -- there is nothing to take back\n"
UNDOES = (
    "DROP TABLE {of};\n",
    "DROP TABLE {of};\nSELECT 1/0;\n",
    f"{OUTSIDE}{LEAVES}",
    f"{OUTSIDE}COPY {{of}} FROM stdin;\n1\n\\.\nDROP TABLE {{of}};\nSELECT 1/0;\n",
)
NO_EFFECT = "SELECT 's' AS suite, 'c' AS \"check\", true AS ok, false AS effect;\n"
FAILS_THEN = (
    "SELECT 's' AS suite, 'c' AS \"check\","
    " 1/(CASE WHEN pg_catalog.to_regclass('{of}') IS NULL THEN 0 ELSE 1 END) IS NOT NULL AS ok;\n"
)
LOOKS = (
    ("", ""),
    ("", "SELECT x FROM {of} ORDER BY x;\n"),
    (NO_EFFECT, "TABLE {of};\nSELECT 1"),
)
WAITED = {"lock.busy", "migration.blocked", "migration.retried"}  # whoever was in the way
BAD_LOOKS = (("", "SELECT 1/0 FROM {of};\n"), (FAILS_THEN, ""))
READERS = (("check", "--json"), ("plan", "--json"), ("verify", "--json"), ("wait", "--schema"))
# part-way, in need of repair, or nobody knows: the last line leaves open what is with this one
OPEN = {13, 31, 32}
WRITERS = (("up",), ("rollback",), ("force", "0"), ("adopt", "0"))
RECORDED = "SELECT version::int FROM preflight.migrations WHERE state = 'done' ORDER BY 1"
ROWS = (
    "SELECT version, state, undoing, statements_done, statements_started FROM preflight.migrations"
    " ORDER BY version"
)
# Only the catalog knows that no transaction takes what is done to it.
VALUE = "canary"
PARTED = f"""
CREATE TABLE public.parted (x int PRIMARY KEY) PARTITION BY LIST (x);
COMMENT ON TABLE public.parted IS '{VALUE}';
"""
# Of an everyday size: a plan says what it does.
LONG = f"SELECT {' + '.join('1' * 60)};\n"
# How else a file fails: by what only its own session has, and at a value that nobody is to read.
PASSING = (
    "SELECT 's' AS suite, 'passing' AS \"check\","
    " pg_catalog.to_regclass('pg_temp.passing') IS NOT NULL AS ok;\n"
)
WRONGS = (
    ("CREATE TEMP TABLE passing (x int)", PASSING),
    ("SELECT pg_catalog.obj_description('public.parted'::regclass)::int", ""),
)
REAL = (
    "SELECT substr(tablename::text, 2)::int FROM pg_tables WHERE tablename ~ '^t[0-9]' ORDER BY 1"
)


class History:
    """A folder of files that make one table each, a hostile database, and what is to be true."""

    def __init__(self, database: servers.Database, home: Path, choice: random.Random) -> None:
        """Begin with an empty folder."""
        self.database, self.home, self.choice = database, home, choice
        self.files = home / "migrations"
        self.files.mkdir(parents=True)
        self.done: list[int] = []
        self.told: list[str] = []
        self.stranger = f"{database.name}_stranger"
        database.script(f"{PLANT}{WATCH}{OPEN_TO_ALL};{PARTED}")
        self.hostile(database)

    @staticmethod
    def hostile(database: servers.Database) -> None:
        """Have new sessions of a database begin with what bites."""
        with database.server.connect() as session:
            for name, value in DEFAULTS.items():
                session.execute(f"ALTER DATABASE {database.name} SET {name} = '{value}'".encode())

    def run(self, *command: str, **more: str) -> program.Result:
        """Run a command; of what is done to the database, the last line is to be true."""
        return self.during(lambda _: None, *command, **more)

    def during(
        self, meanwhile: Callable[[program.Process], object], *command: str, **more: str
    ) -> program.Result:
        """Run a command, and do something meanwhile."""
        environment = {
            **self.database.env(),
            **QUICKLY,
            "PATH": program.path(),
            "PREFLIGHT_MIGRATIONS_DIR": str(self.files),
            "PREFLIGHT_FIRST_CONTACT": "pending",
            "PREFLIGHT_TERMINATION_LOG": str(self.home / "none"),
            "PGOPTIONS": self.choice.choice(["", "-c search_path=public,pg_catalog"]),
        }
        environment |= more
        environment["DATABASE_URL"] = url(environment)
        main = program.Program(environment, self.home)
        ours = "PGDATABASE" not in more
        before = self.recorded() if ours else []
        try:
            process = main.start(*command)
            meanwhile(process)
            result = process.wait(PATIENCE_S)
        finally:
            main.close()
        self.told.append(f"{' '.join(command)} {more or ''} -> {result.code}")
        if ours:
            self.true(before, result)
        return result

    def recorded(self) -> list[int]:
        """Return the versions that the history says are done."""
        there = self.database.query("SELECT pg_catalog.to_regclass('preflight.migrations')")
        return self.database.query(RECORDED) if there != [None] else []

    def true(self, before: list[int], result: program.Result) -> None:
        """Hold the last line against the history: what it lists was done, and nothing else.

        Of a file that stopped part-way, or whose answer never came, it says what the code says.
        """
        said = result.finished
        assert result.code == said["exit_code"], f"{self}\n{result}"
        done, gone = (
            {int(name[:3]) for key in keys for name in said.get(key, [])}
            for keys in (("applied", "adopted"), ("rolled_back",))
        )
        open_ = {said["error"].get("version")} if result.code in OPEN else set()
        to_be, found = ({*before, *done} - gone) - open_, {*self.recorded()} - open_
        assert to_be == found, f"said to be {to_be}, is {found}: {self}\n{result}"

    def ends(self, code: int, *command: str, **more: str) -> program.Result:
        """Run a command that is to end so; then history and reality are to agree."""
        result = self.run(*command, **more)
        assert code == result.code, f"not {code}: {self}\n{result}"
        return result

    def agrees(self) -> None:
        """Raise AssertionError unless database, history and model are the same."""
        found = self.database.query(REAL), self.database.query(RECORDED)
        assert (self.done, self.done) == found, f"to be {self.done}, is {found}: {self}"
        assert self.database.query(OPENED) == FOR_ALL, f"{self}"

    def __str__(self) -> str:
        """Tell what was done, in order."""
        return "; ".join(self.told)

    # --- files

    def write(
        self,
        version: int,
        text: str = "",
        *,
        rollback: str = "",
        verify: str = "",
        export: str = "",
    ) -> Path:
        """Write a file that makes its table, with one that verifies it and one that undoes it.

        `verify` comes on top of that.
        """
        name = self.files / f"{version:03}_t{version}.sql"
        table = f"public.t{version}"
        name.write_text(text or f"CREATE TABLE {table} (x int);\n")
        there = f"pg_catalog.to_regclass('{table}') IS NOT NULL"
        name.with_name(f"{name.stem}_verify.sql").write_text(
            f"SELECT 's' AS suite, 'there' AS \"check\", {there} AS ok;\n{verify}"
        )
        name.with_name(f"{name.stem}_rollback.sql").write_text(rollback or f"DROP TABLE {table};\n")
        if export:
            name.with_name(f"{name.stem}_export.sql").write_text(export)
        return name

    def remove(self, version: int) -> dict[Path, bytes]:
        """Take the files of a version away; return them."""
        found = {each: each.read_bytes() for each in self.files.glob(f"{version:03}_*")}
        for each in found:
            each.unlink()
        return found

    def some(self) -> int:
        """Choose what is applied, but the newest: a file that is newer may be missing."""
        return self.choice.choice(self.done[:-1])

    # --- what can happen; each leaves a sound history behind

    def grows(self) -> None:
        """Have new files run, once."""
        new = (self.done or [-1])[-1] + self.choice.randint(1, 2)
        self.write(new)
        if self.done:
            self.ends(3, "check")
        self.ends(0, "up")
        self.done.append(new)
        self.agrees()
        self.ends(0, "check")

    def edited(self) -> None:
        """Expect 26 of a recorded file that was edited, renamed, removed, or is another one."""
        version = self.some()
        before = self.remove(version)
        for which in self.choice.sample(["text", "name", "gone", "other"], 4):
            self.told.append(f"{version}: {which}")
            for path, text in before.items():
                if which == "text":
                    path.write_bytes(text + b"-- more\n")
                elif which in ("name", "other"):
                    more = b"" if which == "name" else b"SELECT 1;\n"
                    path.with_name(path.name.replace("_t", "_u", 1)).write_bytes(text + more)
            self.ends(26, self.choice.choice(["check", "up"]))
            self.remove(version)
        for path, text in before.items():
            path.write_bytes(text)
        self.agrees()

    def replaced(self) -> None:
        """Put another migration under the newest number: its rollback file never runs."""
        newest = self.done[-1]
        before = self.remove(newest)
        other = self.files / f"{newest:03}_other.sql"
        other.write_text("CREATE TABLE public.other ();\n")
        other.with_name(f"{other.stem}_rollback.sql").write_text(
            f"DROP TABLE public.t{self.done[0]};\n"
        )
        self.told.append(f"{newest} is another migration")
        for command in (("up",), ("check",), *((each, str(newest)) for each in ("force", "adopt"))):
            self.ends(26, *command)
        back = self.run("rollback")  # by the recorded text, or not at all
        assert back.code in (0, 26), f"{self}\n{back}"
        if back.code == 0:
            self.done.remove(newest)
        self.remove(newest)
        for path, text in before.items():
            path.write_bytes(text)
        if back.code == 0:
            self.ends(0, "up")
            self.done.append(newest)
        self.agrees()

    def below(self) -> None:
        """Expect 26 of a file that comes below what is applied, unless that is allowed."""
        free = [each for each in range(self.done[-1]) if each not in self.done]
        if free:
            new = self.choice.choice(free)
            self.write(new)
            self.ends(26, "up")
            self.ends(0, "up", PREFLIGHT_OUT_OF_ORDER="allow")
            self.done = sorted([*self.done, new])
            self.agrees()

    def back(self) -> None:
        """Take back what is above, down to nothing; and have it come again."""
        before = self.done
        for to in (self.some(), 0):
            self.ends(0, "rollback", "--to", str(to))
            self.done = [each for each in self.done if to and each <= to]
            self.agrees()
        self.ends(0, "up")
        self.done = before
        self.agrees()

    def part_way(self) -> None:
        """Fail part-way, and go on only where what is done is unchanged, rows and all."""
        new = self.done[-1] + 1
        table = f"public.t{new}"
        rest = f"INSERT INTO {table} VALUES (9);\nREINDEX TABLE public.parted;\n{LONG}"
        text = f"{OUTSIDE}CREATE TABLE {table} (x int);\nCOPY {table} FROM stdin;\n1\n2\n\\.\n"
        path = self.write(new, f"{text}SELECT 1/0;\n{rest}")
        self.ends(31, "up")
        self.without(new)
        for edited in (text.replace("2\n", "2\n3\n"), text.replace("x int", "x int, y int")):
            path.write_text(edited + rest)
            self.ends(32, self.choice.choice(["up", "check"]))
        path.write_text(text + rest)
        left = self.ends(0, "plan", "--json").json()["statements"]
        assert [3, 4, 5] == [each["statement"] for each in left], str(self)
        assert not [each for each in left if "not understood" in each["does"]], f"{self}\n{left}"
        self.ends(0, "up")
        self.done.append(new)
        self.agrees()
        self.ends(31, "force", str(new))  # at its first statement, whose table is there
        self.agrees()
        assert [1, 2, 9] == self.database.query(f"SELECT x FROM {table} ORDER BY x"), str(self)

    def without(self, version: int) -> None:
        """Have an image look that has no file of a version that stopped part-way: it says so."""
        files = self.remove(version)
        (ahead,) = self.ends(0, "check").event("schema.ahead")
        assert [f"{version:03}_t{version}"] == ahead.get("part_way"), f"{self}\n{ahead}"
        for path, text in files.items():
            path.write_bytes(text)

    def forgets(self) -> None:
        """Expect 25 of what a resume could not bring back, or what gives our lock away."""
        new = self.done[-1] + 1
        which = self.choice.choice(FORGETS)
        self.told.append(which)
        path = self.write(new, f"{OUTSIDE}{which};\nCREATE TABLE public.t{new} ();\n")
        self.ends(25, "up")
        for always in FORGETS[:2]:
            path.write_text(f"{OUTSIDE}CREATE TABLE public.t{new} ();\n{always};\n")
            self.ends(25, "up")
        self.remove(new)
        self.agrees()

    def fails(self) -> None:
        """Fail by an error, or by a check that does not hold: rolled back."""
        new = self.done[-1] + 1
        wrong = self.choice.choice(["SELECT 1/0", f"DROP TABLE public.t{new}"])
        self.write(new, f"CREATE TABLE public.t{new} (x int);\n{wrong};\n")
        self.ends(30, "up")
        self.agrees()
        for wrong, verify in WRONGS:
            self.write(new, f"CREATE TABLE public.t{new} (x int);\n{wrong};\n", verify=verify)
            failed = self.ends(30, "up")
            assert VALUE not in failed.stdout + failed.stderr, f"{self}\n{failed}"
            self.agrees()
        self.write(new)
        self.ends(0, "up")
        self.done.append(new)
        self.agrees()

    def hidden(self, words: str) -> str:
        """Return a statement that does something of which its text says nothing."""
        does = f"BEGIN EXECUTE pg_catalog.reverse('{words[::-1]}'); END"
        if self.choice.random() < 1 / 2:
            return f"DO $${does}$$;\n"
        name = f"public.hidden_{self.choice.getrandbits(32)}"
        body = f"RETURNS void LANGUAGE plpgsql AS $${does}$$"
        self.database.script(f"CREATE FUNCTION {name}() {body}")
        return f"SELECT {name}();\n"

    def betrays(self) -> None:
        """Have files do in hiding what breaks a run's promises, there and back again."""
        before, new = self.done, [self.done[-1] + each for each in (1, 2, 3)]
        ends = [each for each in ENDS if each != TIMES_OUT or self.database.server.major >= 17]
        there = [self.write(version) for version in new]
        self.betrayed(("up",), there, ends[0], [*before, *new[:2]])
        self.done = [*before, *new]
        self.agrees()
        back = [path.with_name(f"{path.stem}_rollback.sql") for path in reversed(there)]
        command = ("rollback", "--to", str(before[-1]))
        self.betrayed(command, back, self.choice.choice(ends), [*before, new[0]])
        self.done = before
        self.agrees()
        for version in new:
            self.remove(version)

    def betrayed(
        self, command: tuple[str, ...], files: list[Path], bad: str, done: list[int]
    ) -> None:
        """Have one file leave settings behind, the next let the lock go, the last end badly.

        No file comes after the second one, up to which it is `done`; the last is corrected.
        """
        outside = plain = ""
        for path, harm in zip(files, (self.choice.choice(SETS), LETS_GO, bad), strict=True):
            outside = self.choice.choice(["", OUTSIDE])
            self.told.append(f"{path.name}: {outside.strip()} {harm}")
            plain = outside + path.read_text()
            path.write_text(plain + self.hidden(harm))
        lost = self.ends(13, *command)
        assert "lock.lost" == lost.finished["error"]["code"], f"{self}\n{lost}"
        self.done = done
        self.agrees()
        self.ends(ENDS[bad][bool(outside)], *command)
        if not outside:
            self.agrees()
        files[-1].write_text(plain)
        self.ends(0, *command)

    @contextlib.contextmanager
    def twin(self) -> Iterator[servers.Database]:
        """Make a copy of the database, beside a stranger's role; drop both."""
        name = self.database.name
        twin = servers.Database(self.database.server, f"{name}_twin")
        with self.database.server.connect() as session:
            session.execute(f"CREATE DATABASE {twin.name} TEMPLATE {name}".encode())
            session.execute(f"CREATE ROLE {self.stranger}".encode())
        try:
            yield twin
        finally:
            with self.database.server.connect() as session:
                session.execute(f"DROP DATABASE {twin.name} WITH (FORCE)".encode())
                session.execute(f"DROP ROLE {self.stranger}".encode())

    def harmed(self) -> None:
        """Expect 26 of a history that somebody changed, or that is somebody's."""
        for harm in self.choice.sample(HARMS, len(HARMS)):
            self.told.append(harm)
            newest = self.done[-1] + 1
            self.write(newest)
            with self.twin() as twin:
                twin.script(f"CREATE SCHEMA kept; {harm.format(stranger=self.stranger)}")
                # who writes has a second line of defence, so who reads is asked; but a superuser
                # is a member of any owner's role, and may read what is his
                asked = WRITERS if harm in (HARMS[0], HARMS[-1]) else READERS
                command = self.choice.choice(asked)
                said = self.ends(26, *command, PGDATABASE=twin.name)
                if "--json" in command:
                    assert 26 == said.json()["exit_code"], f"{self}\n{said}"
            self.remove(newest)

    def first_contact(self) -> None:
        """Forget the history: what is there is adopted, and nothing above an absent file runs."""
        gone = sorted(self.choice.sample(self.done, self.choice.randint(1, len(self.done) - 1)))
        absent = "; ".join(f"DROP TABLE public.t{each}" for each in gone)
        self.told.append(f"forgets all, and {gone}")
        self.database.script(f"DROP SCHEMA preflight CASCADE; {absent}")
        if gone[0] < max(each for each in self.done if each not in gone):
            self.ends(33, *self.choice.choice([("check",), ("up",), ("plan",)]))
            result = self.ends(0, "up", PREFLIGHT_OUT_OF_ORDER="allow")
        else:
            result = self.ends(0, "up")
        applied = [int(name[:3]) for name in result.finished["applied"]]
        assert gone == applied, f"{self}\n{result}"
        self.agrees()

    # --- a file in which nothing stands

    def does_nothing(self) -> None:
        """Have a file of comments alone, where nothing is to be done on PostgreSQL: it is done."""
        version = self.done[-1] + 1
        file = self.write(version, "-- nothing to do on PostgreSQL\n", rollback=LEAVES)
        file.with_name(f"{file.stem}_verify.sql").unlink()
        self.told.append(f"{version}: nothing but a comment")
        self.ends(0, "up")
        self.ends(0, "rollback", PREFLIGHT_BACKUP="off")
        self.remove(version)
        self.agrees()

    # --- an image without the files

    def without_files(self) -> None:
        """Have versions taken back by an image that has none of their files: it ends as with them.

        Of a copy by that image, then of the database by one that has them.
        """
        version = self.done[-1] + 1
        table = f"public.t{version}"
        some = self.choice.sample(UNDOES, 3)
        cases = [(undoes, *self.choice.choice(LOOKS), "command") for undoes in (LEAVES, *some)]
        cases.append((self.choice.choice(UNDOES), *self.choice.choice(BAD_LOOKS), "command"))
        cases.append((self.choice.choice(UNDOES), *LOOKS[1], "off"))  # no place for an export
        for case in self.choice.sample(cases, len(cases)):
            undoes, verify, export, kept = (each.format(of=table) for each in case)
            self.told.append(f"{version}: {undoes}{verify}{export}")
            self.write(version, rollback=undoes, verify=verify, export=export)
            self.ends(0, "up")
            self.database.script(f"INSERT INTO {table} VALUES (7), (8)")
            with self.twin() as twin:
                self.hostile(twin)
                files = self.remove(version)
                without = self.taken_back(twin, kept)
                for path, text in files.items():
                    path.write_bytes(text)
            found = self.taken_back(self.database, kept)
            assert found == without, f"without files {without}, with them {found}: {self}"
            self.database.script(
                f"DELETE FROM preflight.migrations WHERE version = {version};"
                f" DROP TABLE IF EXISTS {table}"
            )
            self.agrees()
            self.remove(version)

    def taken_back(self, database: servers.Database, kept: str) -> list[object]:
        """Take the newest back, again where it stopped part-way; return all that can be told."""
        place = Path(tempfile.mkdtemp(dir=self.home))
        more = {"PREFLIGHT_BACKUP": kept, "PGDATABASE": database.name}
        if kept == "command":
            more["PREFLIGHT_BACKUP_COMMAND"] = str(self.snapshot())
            more["PREFLIGHT_BACKUP_DIR"] = str(place)
        found: list[object] = []
        for code in (31, 0):
            result = self.run("rollback", **more)
            saved = {path.name: path.read_text() for path in place.rglob("export-*.csv")}
            events = [
                (each["event"], each.get("notice"))
                for each in result.events
                if each["event"] not in WAITED and "elapsed_s" not in each
            ]
            found += [result.code, events, result.finished.get("error"), saved]
            found += [database.query(REAL), database.query(ROWS)]
            if result.code != code:
                break
        return found

    # --- others write

    def written(self) -> None:
        """Have others write while a rollback destroys: no row that was committed is gone."""
        before, first = self.done, self.done[-1] + 1
        new = [
            Written(self, first + each, destroys)
            for each, destroys in enumerate(self.choice.sample(DESTROYS, len(DESTROYS)))
        ]
        self.ends(0, "up")
        self.done = [*before, *(each.version for each in new)]
        self.agrees()
        place = self.home / "exports"
        place.mkdir()
        with futures.ThreadPoolExecutor(len(new)) as pool:
            writers = [pool.submit(each.write) for each in new]
            try:
                assert all(each.began.wait(PATIENCE_S) for each in new)
                back = self.ends(
                    0,
                    *("rollback", "--to", str(before[-1])),
                    PREFLIGHT_BACKUP="command",
                    PREFLIGHT_BACKUP_COMMAND=str(self.snapshot()),
                    PREFLIGHT_BACKUP_DIR=str(place),
                )
            finally:
                for each in new:
                    each.over.set()
        for writer in writers:
            writer.result()
        self.done = before
        self.agrees()
        saved = {path.name: path.read_text() for path in place.rglob("export-*.csv")}
        last = {event["file"]: event["rows"] for event in back.event("export.saved")}
        assert last == {name: text.count("\n") - 1 for name, text in saved.items()}, (
            f"{self}\n{back}"
        )
        for each in new:
            gone = each.committed() - {word for text in saved.values() for word in each.said(text)}
            assert not gone - each.there(), f"{each}: {gone} is gone: {self}\n{back}"
            self.database.script(f"DROP TABLE IF EXISTS {each.of} CASCADE")
            self.remove(each.version)

    def kept(self) -> None:
        """Take more backups than are kept: what a rollback exported is still there, and as it was.

        However the database would have values shown.
        """
        version, place = self.done[-1] + 1, self.home / "kept"
        place.mkdir()
        more = {"PREFLIGHT_BACKUP": "required", "PREFLIGHT_BACKUP_DIR": str(place)}
        self.write(version, export=f"SELECT {ODD} FROM public.t{version};\n")
        self.ends(0, "up")
        self.database.script(f"INSERT INTO public.t{version} VALUES (7), (8)")
        name = self.database.name
        self.database.script("; ".join(f"ALTER DATABASE {name} SET {each}" for each in SHOWN))
        self.ends(0, "rollback", **more)
        for each in SHOWN:
            self.database.script(f"ALTER DATABASE {name} RESET {each.split()[0]}")
        self.remove(version)
        self.agrees()

        def saved() -> dict[str, str]:
            return {path.name: path.read_text() for path in place.rglob("export-*.csv")}

        before = saved()
        for _ in range(3):
            self.ends(0, "backup", **more, PREFLIGHT_BACKUP_KEEP="1")
        odd = "2020-02-01,\\x01,1 day 02:00:00,0.3333333333333333"
        assert [f"x,d,b,i,f\n7,{odd}\n8,{odd}\n"] == list(before.values()), f"{before}: {self}"
        assert before == saved(), f"{before} is gone: {self}"

    def snapshot(self) -> Path:
        """Write a program that says it has made a snapshot."""
        made = self.home / "snapshot"
        made.write_text(
            '#!/bin/sh\nprintf \'{"backup": "b", "taken_at": "%s", "restore": "r"}\''
            ' "$(date -u +%Y-%m-%dT%H:%M:%SZ)"\n'
        )
        made.chmod(0o755)
        return made

    # --- somebody is in the way

    def waits(self) -> None:
        """Have files wait for somebody after they did what a rollback undoes, or does not undo."""
        self.database.script(OBSTACLES_MADE)
        writer = f"{self.database.name}_writer"
        self.database.script(
            f"CREATE EXTENSION dblink SCHEMA public; CREATE ROLE {writer} LOGIN PASSWORD 'x';"
            f" GRANT INSERT ON public.marks TO {writer}"
        )
        try:
            for number, effect in enumerate(self.choice.sample(EFFECTS, len(EFFECTS))):
                self.there_and_back(
                    Waiting(self, effect, writer, 2 * number),
                    Waiting(self, effect, writer, 2 * number + 1),
                )
        finally:
            self.database.script(f"DROP OWNED BY {writer}; DROP ROLE {writer}")
            for each in self.database.server.home.glob(f"{self.database.name}_*_trace*"):
                each.unlink()

    def there_and_back(self, there: "Waiting", back: "Waiting") -> None:
        """Have one file do so, and its rollback file."""
        before, version = self.done, self.done[-1] + 1
        table = f"public.t{version}"
        self.write(
            version,
            there.text(f"CREATE TABLE {table} (x int);\n"),
            rollback=back.text(f"DROP TABLE {table};\n"),
            verify=there.obstacle.verify or back.obstacle.verify,
        )
        there.meets("up")
        self.done = [*before, version]
        self.agrees()
        back.meets("rollback")
        self.done = before
        self.agrees()
        self.remove(version)


class Written:
    """A table of somebody's that a rollback destroys, with one who writes to it meanwhile."""

    def __init__(self, history: History, version: int, destroys: str) -> None:
        """Make the table, and write the files."""
        choice, self.database, self.version = history.choice, history.database, version
        self.of = f"public.kept_{version}"
        self.began, self.over = threading.Event(), threading.Event()
        where, made = choice.choice(sorted(KEPT_IN.items()))
        self.where, seen = where.format(of=self.of), f"{self.of}_seen"
        self.database.script(
            f"{made.format(of=self.of)} INSERT INTO {self.where} VALUES (0, '<{version}>');"
            f" CREATE VIEW {seen}_by AS SELECT id, said FROM {self.of};"
            f" CREATE VIEW {seen} AS SELECT id, said FROM {seen}_by"
        )
        outside = choice.choice(["", "", OUTSIDE])
        # of a file without a transaction the writers are to be stopped; and some do not wait for us
        self.waits, self.once = bool(outside) or choice.random() < 2 / 3, bool(outside)
        sees = choice.choice(SEES).format(of=self.of, of_alone=self.of.partition(".")[2])
        history.write(
            version,
            rollback=f"{outside}{destroys.format(of=self.of)}DROP TABLE public.t{version};\n",
            export=f"{sees};\n",
        )
        self.told = f"{version}: {outside.strip()} {destroys.strip()} {self.where}, {sees}"
        history.told.append(self.told)
        self._committed: dict[int, str] = {0: f"<{version}>"}

    def __str__(self) -> str:
        """Tell what happens to which table."""
        return self.told

    def write(self) -> None:
        """Add a row, and change the first one, until all is over or there is no such table.

        Who waits, commits when somebody waits for him.
        """
        with self.database.server.connect(self.database.name) as app:
            for name in ("idle_in_transaction_session_timeout = 0", "synchronous_commit = on"):
                app.execute(f"SET {name}".encode())
            app.execute("SET default_transaction_isolation = 'read committed'")
            for number in itertools.count(1):
                try:
                    self._transact(app, number)
                except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):
                    return
                if self.once or self.over.is_set():
                    return

    def _transact(self, app: psycopg.Connection, number: int) -> None:
        said = {each: f"<{self.version}/{number}/{each}>" for each in (number, 0)}
        with app.transaction():
            app.execute(
                f"INSERT INTO {self.where} (id, said) VALUES ({number}, '{said[number]}')".encode()
            )
            changed = app.execute(
                f"UPDATE {self.where} SET said = '{said[0]}' WHERE id = 0".encode()
            )
            if not changed.rowcount:
                del said[0]
            self.began.set()
            while not self.over.wait(0.02) and self.waits and not self._waited_for(app):
                pass
        self._committed |= said

    def _waited_for(self, app: psycopg.Connection) -> bool:
        found = app.execute(
            "SELECT FROM pg_locks WHERE NOT granted"
            " AND pg_backend_pid() = ANY (pg_blocking_pids(pid))"
        ).fetchall()
        return bool(found)

    def committed(self) -> set[str]:
        """Return what each row was when it was last committed."""
        return set(self._committed.values())

    def there(self) -> set[str]:
        """Return what is in the table."""
        with self.database.server.connect(self.database.name) as session:
            try:
                found = session.execute(f"SELECT said FROM {self.of}".encode()).fetchall()
            except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):
                return set()
        return {said for (said,) in found}

    def said(self, text: str) -> set[str]:
        """Return what of this table's a text says."""
        return set(re.findall(rf"<{self.version}(?:/\d+)*>", text))


class Waiting:
    """A file that does something, and then meets somebody in its way."""

    def __init__(self, history: History, effect: Effect, writer: str, of: int) -> None:
        """Choose how it does so, and in whose way."""
        self.history, self.effect, self.of = history, effect, of
        self.database = history.database
        self.obstacle = history.choice.choice(OBSTACLES)
        self.outside = "" if effect.inside else history.choice.choice(["", "", OUTSIDE])
        self.form = history.choice.choice(["plain", "block", "routine"])
        self.counter = f"public.times_{of}"
        self.database.script(f"CREATE SEQUENCE {self.counter}")
        self.trace = self.database.server.home / f"{self.database.name}_{of}_trace"
        server = self.database.server
        self.does = effect.does.format(
            next=f"pg_catalog.nextval('{self.counter}')",
            trace=self.trace,
            of=of,
            elsewhere=f"host={server.host} port={server.port} dbname={self.database.name}"
            f" user={writer} password=x",
        )

    def __str__(self) -> str:
        """Tell what it does, and how."""
        return f"{self.outside.strip()} {self.form}: {self.does}; waits for {self.obstacle.held}"

    def text(self, last: str) -> str:
        """Return the file's text; what it is for comes last."""
        waits = self.obstacle.waits
        does = f"EXECUTE $e${self.does}$e$;"
        if self.form == "block":
            if waits:
                does = f"{does} EXECUTE $e${waits}$e$;"
            return f"{self.outside}DO $do$BEGIN {does} END$do$;\n{last}"
        if self.form == "plain":
            return f"{self.outside}{self.does};\n{waits}{last}"
        name = f"public.does_{self.of}()"
        return (
            f"{self.outside}CREATE FUNCTION {name} RETURNS void LANGUAGE plpgsql"
            f" AS $do$BEGIN {does} END$do$;\nSELECT {name};\n{waits}DROP FUNCTION {name};\n{last}"
        )

    def times(self) -> int:
        """Count how often it was done, and stays done."""
        if self.effect.counted == "trace":
            return sum(
                int(each.read_text()) for each in self.trace.parent.glob(f"{self.trace.name}*")
            )
        asked = f"SELECT last_value FROM {self.counter} WHERE is_called"
        if self.effect.counted == "marks":
            asked = f"SELECT count(*) FROM public.marks WHERE of = {self.of}"
        with self.database.server.connect(self.database.name) as session:
            found = session.execute(asked.encode()).fetchone()
        return int(found[0]) if found else 0

    @property
    def alone(self) -> bool:
        """Whether it is done for good, and marked, before anything waits."""
        return bool(self.outside) and not (self.form == "block" and self.obstacle.waits)

    def meets(self, command: str) -> None:
        """Run it while somebody is in its way, until it tries again or ends; then it comes through.

        Tried again is only what is as if it had never been done.
        """
        self.history.told.append(str(self))
        with self.database.server.connect(self.database.name) as holder:
            holder.execute("SET idle_in_transaction_session_timeout = 0")
            holder.execute("BEGIN")
            holder.execute(self.obstacle.held.encode())

            def tried(process: program.Process) -> bool:
                return any(each["event"] == "migration.retried" for each in process.events)

            def lets_go(process: program.Process) -> None:
                met = lambda: not process.running or tried(process)  # noqa: E731
                faults.until(met, "it tries again or ends", PATIENCE_S)
                if tried(process):  # rolled back, it lets others through
                    holder.execute("SET deadlock_timeout = '1h'; SET statement_timeout = '60s'")
                    holder.execute(self.effect.wanted.format(of=self.of).encode())
                holder.execute("ROLLBACK")

            result = self.history.during(
                lets_go,
                command,
                PREFLIGHT_LOCK_TIMEOUT_MS="100",
                PREFLIGHT_LOCK_RETRY_S="600",
            )
        tries = 1 + len(result.event("migration.retried"))
        told = f"{self.history}\n{result}"
        assert result.code in ((0, 31) if self.outside else (0, 12)), told
        if not (self.outside or self.effect.beyond):
            assert result.code == 0, told
        first = tries if self.effect.counted == "tries" else int(result.code == 0)
        first = 1 if self.alone or self.effect.beyond else first
        assert first == self.times(), f"{self.times()} times, and not {first}: {told}"
        if result.code == 0:
            return
        if not self.outside:
            self.history.agrees()
        self.history.ends(0, command)
        again = 0 if self.alone else 1
        assert first + again == self.times(), f"{self.times()} times: {self.history}"


EVENTS = (
    History.edited, History.replaced, History.below, History.back, History.part_way,
    History.forgets, History.fails, History.harmed, History.first_contact, History.grows,
    History.betrays, History.waits, History.written, History.without_files,
)  # fmt: skip


def walk(database: servers.Database, home: Path, seed: str) -> str:
    """Have everything happen once, in any order; return what was done.

    Raises AssertionError where the program and the model do not agree.
    """
    choice = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    history = History(database, home, choice)
    history.write(0, UNDISTURBED)
    history.write(2)  # there is room below
    history.ends(0, "up")
    history.done = [0, 2]
    history.grows()
    history.does_nothing()
    for each in choice.sample(EVENTS, len(EVENTS)):
        each(history)
    history.kept()
    return str(history)


def main() -> int:
    """Walk until the time is over; 1 when program and model did not agree."""
    return walks("histories", __doc__, walk)


def walks(
    what: str, about: str | None, walk: Callable[[servers.Database, Path, str], object]
) -> int:
    """Walk on one server, each time on a database of its own; 1 when something did not hold."""

    def one(server: servers.Server, home: Path, name: str, seed: str) -> None:
        with database(server, name) as made:
            walk(made, home, seed)

    return faults.walks_on_a_server(what, about, one)


def url(environment: Mapping[str, str]) -> str:
    """Return the address of a database as a URL that other readers have, too."""
    user, password = quote(environment["PGUSER"]), quote(environment["PGPASSWORD"])
    where = f"{environment['PGHOST']}:{environment['PGPORT']}/{environment['PGDATABASE']}"
    return f"postgresql://{user}:{password}@{where}{FOR_OTHERS}"


@contextlib.contextmanager
def database(server: servers.Server, name: str) -> Iterator[servers.Database]:
    """Make a database, and drop it."""
    with server.connect() as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    try:
        yield servers.Database(server, name)
    finally:
        with server.connect() as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


if __name__ == "__main__":
    sys.exit(main())
