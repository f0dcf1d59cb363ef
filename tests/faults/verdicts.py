"""Verdicts: a whole database is never called bad, and a damaged dump always is.

Databases of every kind are put together at random, with odd names, other owners, extensions, and
writers at work, who also set sequences back. A damage that passes costs a fresh dump and no more;
a dump that is misread is 24 whoever restores it; of a backup that is without something no proof
can be demanded, and none is withheld where the role that makes copies has one by hand, but for rows
that only a provider may write. Writers may keep a backup away, which is counted; when they have
stopped there is one. Each seventh time `scarce` is asked, too, on a server that has little.
`make verdicts SEED=7 MINUTES=60` goes on for as long as told; `SEED=7/123` does number 123 of that
seed again.
"""

import argparse
import contextlib
import copy
import dataclasses
import itertools
import json
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from tests import fakes, faults, program, servers
from tests.faults import scarce

INTERRUPTED = 14
SCARCE_EACH = 7  # databases, of which one is then put on a server that has little
MOVED = "changed while it was dumped"
ENOUGH = 20  # databases, before the share of those that moved says anything
NAMES = (
    "plain", "Mixed Case", "select", "with.dot", 'quo"te', "semi;colon", "日本", "percent%s", "a'b",
    "tab\there", "back\\slash", "new\nline", "{brace}", "$dollar$", "trailing ", "ñandú", "-dash",
    "x" * 63,
)  # fmt: skip
# What a schema may hold; {s} is the schema, {n} a name in it, {m} another; each stands alone.
KINDS = {
    "table": "CREATE TABLE {s}.{n} (id int PRIMARY KEY, {m} text);"
    "INSERT INTO {s}.{n} SELECT g, md5(g::text) FROM generate_series(1, {r}) g",
    "serial": "CREATE TABLE {s}.{n} (id bigserial, at timestamptz DEFAULT now());"
    "INSERT INTO {s}.{n} SELECT FROM generate_series(1, {r})",
    "identity": "CREATE TABLE {s}.{n} ({m} int GENERATED ALWAYS AS IDENTITY (INCREMENT 7), v int);"
    "INSERT INTO {s}.{n} (v) SELECT generate_series(1, {r})",
    "generated": "CREATE TABLE {s}.{n} (a int, {m} int GENERATED ALWAYS AS (a * 2) STORED);"
    "INSERT INTO {s}.{n} SELECT generate_series(1, {r})",
    "partitioned": "CREATE TABLE {s}.{n} (id int, k text) PARTITION BY LIST (k);"
    "CREATE TABLE {s}.{m} PARTITION OF {s}.{n} FOR VALUES IN ('a', 'b');"
    "CREATE TABLE {s}.{o} PARTITION OF {s}.{n} DEFAULT;"
    "INSERT INTO {s}.{n} SELECT g, chr(97 + g % 5) FROM generate_series(1, {r}) g",
    "hashed": "CREATE TABLE {s}.{n} (id int) PARTITION BY HASH (id);"
    "CREATE TABLE {s}.{m} PARTITION OF {s}.{n} FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
    "CREATE TABLE {s}.{o} PARTITION OF {s}.{n} FOR VALUES WITH (MODULUS 2, REMAINDER 1);"
    "INSERT INTO {s}.{n} SELECT generate_series(1, {r})",
    "inherited": "CREATE TABLE {s}.{n} (id int CHECK (id > 0));"
    "CREATE TABLE {s}.{m} (more text) INHERITS ({s}.{n}); INSERT INTO {s}.{m} VALUES (1, 'x')",
    "references": "CREATE TABLE {s}.{n} (id int PRIMARY KEY, up int REFERENCES {s}.{n});"
    "CREATE TABLE {s}.{m} (id int REFERENCES {s}.{n} ON DELETE CASCADE DEFERRABLE);"
    "INSERT INTO {s}.{n} VALUES (1, 1), (2, 1); INSERT INTO {s}.{m} VALUES (2)",
    "not valid": "CREATE TABLE {s}.{n} (id int); INSERT INTO {s}.{n} VALUES (-1);"
    "ALTER TABLE {s}.{n} ADD CONSTRAINT {m} CHECK (id > 0) NOT VALID",
    "indexes": "CREATE TABLE {s}.{n} (a text, b int, j jsonb); CREATE INDEX ON {s}.{n} (lower(a));"
    "CREATE UNIQUE INDEX ON {s}.{n} (b DESC) WHERE b > 3; CREATE INDEX ON {s}.{n} USING gin (j);"
    "CREATE INDEX ON {s}.{n} USING brin (b); INSERT INTO {s}.{n} VALUES ('x', 5, '{{}}')",
    "excluded": "CREATE TABLE {s}.{n} (r int4range, EXCLUDE USING gist (r WITH &&));"
    "INSERT INTO {s}.{n} VALUES ('[1,3)')",
    "enum": "CREATE TYPE {s}.{n} AS ENUM ('ok', 'it''s', 'ß'); CREATE TABLE {s}.{m} (v {s}.{n}[]);"
    "INSERT INTO {s}.{m} VALUES ('{{ok,ß}}')",
    "domain": "CREATE DOMAIN {s}.{n} AS text CHECK (VALUE <> ''); CREATE TABLE {s}.{m}"
    " (v {s}.{n} DEFAULT 'x'); INSERT INTO {s}.{m} DEFAULT VALUES",
    "composite": "CREATE TYPE {s}.{n} AS (a int, b text); CREATE TABLE {s}.{m} (v {s}.{n});"
    "INSERT INTO {s}.{m} VALUES (ROW(1, 'x'))",
    "range": "CREATE TYPE {s}.{n} AS RANGE (subtype = float8); CREATE TABLE {s}.{m} (v {s}.{n})",
    "sequence": "CREATE SEQUENCE {s}.{n} INCREMENT -3 MINVALUE -9999 MAXVALUE 5 CYCLE;"
    "SELECT nextval('{q}')",
    "unused sequence": "CREATE SEQUENCE {s}.{n} AS smallint CACHE 20",
    "view": "CREATE TABLE {s}.{n} (id int); CREATE VIEW {s}.{m} AS SELECT id FROM {s}.{n}",
    "matview": "CREATE MATERIALIZED VIEW {s}.{n} AS SELECT g FROM generate_series(1, {r}) g;"
    "CREATE UNIQUE INDEX ON {s}.{n} (g)",
    "unfilled matview": "CREATE MATERIALIZED VIEW {s}.{n} AS SELECT 1 AS a WITH NO DATA",
    "function": "CREATE FUNCTION {s}.{n}(a int DEFAULT 1) RETURNS int LANGUAGE sql IMMUTABLE"
    " AS 'SELECT a + 1'; CREATE PROCEDURE {s}.{m}() LANGUAGE plpgsql AS 'BEGIN END'",
    "aggregate": "CREATE AGGREGATE {s}.{n}(int) (sfunc = int4pl, stype = int, initcond = '0')",
    "trigger": "CREATE TABLE {s}.{n} (id int); CREATE FUNCTION {s}.{m}() RETURNS trigger"
    " LANGUAGE plpgsql AS 'BEGIN RETURN new; END'; CREATE TRIGGER {o} BEFORE INSERT ON {s}.{n}"
    " FOR EACH ROW EXECUTE FUNCTION {s}.{m}(); ALTER TABLE {s}.{n} DISABLE TRIGGER {o}",
    "rule": "CREATE TABLE {s}.{n} (id int);"
    "CREATE RULE {m} AS ON DELETE TO {s}.{n} DO INSTEAD NOTHING",
    "row security": "CREATE TABLE {s}.{n} (id int); INSERT INTO {s}.{n} VALUES (1);"
    "ALTER TABLE {s}.{n} ENABLE ROW LEVEL SECURITY;"
    "CREATE POLICY {m} ON {s}.{n} USING (id > 5)",
    "unlogged": "CREATE UNLOGGED TABLE {s}.{n} (id int); INSERT INTO {s}.{n} VALUES (1)",
    "no columns": "CREATE TABLE {s}.{n} (); INSERT INTO {s}.{n} DEFAULT VALUES",
    "dropped columns": "CREATE TABLE {s}.{n} (a int, b text, c int);"
    "ALTER TABLE {s}.{n} DROP b; INSERT INTO {s}.{n} VALUES (1, 2)",
    "bytes": "CREATE TABLE {s}.{n} (b bytea, x xml, n numeric, f float8);"
    "INSERT INTO {s}.{n} VALUES ('\\x00ff', '<a/>', 'NaN', '-infinity')",
    "comments": "CREATE TABLE {s}.{n} (id int); COMMENT ON TABLE {s}.{n} IS 'it''s; \\ odd'",
    "grants": "CREATE TABLE {s}.{n} (id int); GRANT SELECT (id) ON {s}.{n} TO PUBLIC;"
    "ALTER DEFAULT PRIVILEGES IN SCHEMA {s} GRANT SELECT ON TABLES TO PUBLIC",
    "statistics": "CREATE TABLE {s}.{n} (a int, b int); CREATE STATISTICS {s}.{m} ON a, b"
    " FROM {s}.{n}; INSERT INTO {s}.{n} VALUES (1, 2); ANALYZE {s}.{n}",
    "text search": "CREATE TEXT SEARCH CONFIGURATION {s}.{n} (COPY = english)",
    "collation": "CREATE COLLATION {s}.{n} (provider = libc, locale = 'C')",
    "large object": "SELECT lo_from_bytea(0, '\\x0102')",
    "operator": "CREATE FUNCTION {s}.{n}(int, int) RETURNS bool LANGUAGE sql IMMUTABLE"
    " AS 'SELECT $1 = $2'; CREATE OPERATOR {s}.=== (leftarg = int, rightarg = int,"
    " function = {s}.{n}); CREATE OPERATOR {s}.=#= (leftarg = int, rightarg = int,"
    " function = {s}.{n}, negator = operator({s}.=!=)); DROP OPERATOR {s}.=#= (int, int)",
}
BY_SUPERUSER = {
    "event trigger": "CREATE FUNCTION {s}.{n}() RETURNS event_trigger LANGUAGE plpgsql AS"
    " 'BEGIN END'; CREATE EVENT TRIGGER {m} ON ddl_command_end EXECUTE FUNCTION {s}.{n}()",
    "publication": "CREATE TABLE {s}.{n} (id int); CREATE PUBLICATION {m} FOR TABLE {s}.{n}",
    "foreign": "CREATE FOREIGN DATA WRAPPER {n}; CREATE SERVER {m} FOREIGN DATA WRAPPER {n};"
    "CREATE FOREIGN TABLE {s}.{o} (id int) SERVER {m}",
    "cast": "CREATE TYPE {s}.{n} AS (a int); CREATE FUNCTION {s}.{m}(int) RETURNS {s}.{n}"
    " LANGUAGE sql AS $body$SELECT ROW($1)::{s}.{n}$body$; CREATE CAST (int AS {s}.{n})"
    " WITH FUNCTION {s}.{m}(int)",
}
# What an administrator has put into a database that a dump is silently without: no dump has it, or
# not the one of an ordinary role. {n} is a name.
SILENT = {
    "function of the system": "CREATE FUNCTION pg_catalog.{n}() RETURNS int LANGUAGE sql"
    " AS 'SELECT 1'",
    "type of the system": "CREATE TYPE pg_catalog.{n} AS ENUM ('a')",
    "view of the system": "SET allow_system_table_mods = on;"
    "CREATE VIEW information_schema.{n} AS SELECT 1 AS one; RESET allow_system_table_mods",
    "table of an extension": "CREATE EXTENSION IF NOT EXISTS tablefunc;"
    "CREATE TABLE public.{n} AS SELECT 1 AS id; GRANT SELECT ON public.{n} TO PUBLIC;"
    "ALTER EXTENSION tablefunc ADD TABLE public.{n}",
    "view that was moved": "CREATE EXTENSION IF NOT EXISTS pg_stat_statements;"
    "CREATE SCHEMA IF NOT EXISTS {n}; ALTER VIEW pg_stat_statements SET SCHEMA {n}",
    "user mapping": "CREATE FOREIGN DATA WRAPPER its_own;"
    "CREATE SERVER IF NOT EXISTS {n} FOREIGN DATA WRAPPER its_own;"
    "CREATE USER MAPPING FOR PUBLIC SERVER {n} OPTIONS (password 'x')",
    "subscription": "CREATE SUBSCRIPTION {n} CONNECTION 'dbname=x' PUBLICATION p"
    " WITH (connect = false, slot_name = NONE)",
}
# A provider's extensions: control file, script, and what is added afterwards; {s} is a schema.
PROVIDED = {
    "verdict_known": (
        "relocatable = true\ntrusted = true\n",
        """CREATE TABLE known (id int, name text); CREATE SEQUENCE knowing;
        GRANT SELECT ON known, knowing TO PUBLIC; CREATE FUNCTION knows() RETURNS int LANGUAGE sql
        AS 'SELECT 1'; SELECT pg_catalog.pg_extension_config_dump('known', '')""",
        "INSERT INTO {s}.known SELECT g, 'a' FROM generate_series(1, 9) g",
    ),
    "verdict_listed": (
        "relocatable = true\ntrusted = true\n",
        """CREATE TABLE listed (id serial, ours bool DEFAULT false);
        INSERT INTO listed (ours) VALUES (true), (true);
        GRANT SELECT ON listed, listed_id_seq TO PUBLIC;
        SELECT pg_catalog.pg_extension_config_dump('listed', 'WHERE NOT ours');
        SELECT pg_catalog.pg_extension_config_dump('listed_id_seq', '')""",
        "INSERT INTO {s}.listed DEFAULT VALUES; SELECT nextval('{q}.listed_id_seq')",
    ),
    "verdict_odd": (
        "relocatable = true\ntrusted = true\n",
        """CREATE TYPE "Odd One" AS ENUM ('a'); CREATE TABLE "Odd; Table" ("a b" "Odd One" UNIQUE);
        CREATE TABLE parts (id int) PARTITION BY LIST (id); CREATE TABLE part PARTITION OF parts
        DEFAULT; CREATE VIEW "Odd View" AS SELECT count(*) AS n FROM "Odd; Table";
        GRANT SELECT ON "Odd; Table", parts, part, "Odd View" TO PUBLIC;
        SELECT pg_catalog.pg_extension_config_dump('"Odd; Table"', 'WHERE "a b" IS NOT NULL');
        SELECT pg_catalog.pg_extension_config_dump('part', '')""",
        """INSERT INTO {s}."Odd; Table" VALUES ('a'); INSERT INTO {s}.parts VALUES (1), (2)""",
    ),
    "verdict_untrusted": (
        "relocatable = true\n",
        """CREATE TABLE settled (k text PRIMARY KEY, v text); GRANT SELECT ON settled TO PUBLIC;
        INSERT INTO settled VALUES ('own', '1');
        SELECT pg_catalog.pg_extension_config_dump('settled', 'WHERE k > ''own'' ')""",
        "INSERT INTO {s}.settled VALUES ('ypsilon', 'b')",
    ),
}
BY_OWNER = "SET ROLE verdict_owner_{number}; {made}; RESET ROLE"
TABLES_GIVEN = """DO $$ DECLARE t regclass; BEGIN FOR t IN SELECT objid FROM pg_depend
WHERE deptype = 'e' AND classid = 'pg_class'::regclass AND refobjid =
(SELECT oid FROM pg_extension WHERE extname = '{name}')
LOOP EXECUTE format('GRANT ALL ON %s TO verdict_owner_{number}', t); END LOOP; END $$"""
# An app's own table is called as one of an extension's, in another schema.
TWINS = (
    "CREATE SCHEMA twins; CREATE TABLE twins.known AS SELECT 1 AS id;"
    "ALTER SCHEMA twins OWNER TO verdict_owner_{number};"
    "ALTER TABLE twins.known OWNER TO verdict_owner_{number}"
)
OF_THE_TWIN = "TABLE DATA twins known"
OF_EXTENSIONS = """SELECT c.relname::text FROM pg_class c JOIN pg_depend d ON d.objid = c.oid
WHERE d.deptype = 'e' AND d.classid = 'pg_class'::regclass"""
DENIED = re.compile("ERROR: +permission denied for (?:table|sequence) (.*)")
DROPPED = """DO $$ DECLARE s text; BEGIN FOR s IN SELECT subname FROM pg_subscription
JOIN pg_database d ON d.oid = subdbid WHERE datname = current_database()
LOOP EXECUTE format('DROP SUBSCRIPTION %I', s); END LOOP; END $$"""  # no database goes with one
EXTENSIONS = (
    "hstore", "citext", "pg_trgm", "btree_gist", "btree_gin", "ltree", "cube", "intarray", "isn",
    "seg", "bloom", "fuzzystrmatch", "tablefunc", "unaccent", "dict_int", "pageinspect", "lo",
    "pg_stat_statements", "postgres_fdw", "tcn", "tsm_system_rows", "pgcrypto", "uuid-ossp",
)  # fmt: skip
WRITES = (
    "INSERT INTO written (v) SELECT generate_series(1, 20)",
    "UPDATE written SET v = v + 1 WHERE id % 3 = 0",
    "DELETE FROM written WHERE id % 7 = 0",
    "SELECT nextval('counted')",
    "SELECT setval('counted', 1)",
    "SELECT lo_unlink(lo_from_bytea(0, '\\x01'))",
)
# What is done to sequences all the time that do not only go on: how one is made, and a step of it.
STEPS = {
    "cycles": ("MAXVALUE 2 CYCLE", "nextval(s)"),
    "cycles_down": ("INCREMENT -1 MINVALUE -3 CYCLE", "nextval(s)"),
    "set": ("", "setval(s, 1 + (random() * 3)::int)"),
    "set_down": ("INCREMENT -2", "setval(s, -1 - random()::int)"),
    "begun_anew": ("", "setval(s, 1 + random()::int, random() < 0.5)"),
}
OF_EACH = 6
STEPPED = "SELECT CASE WHEN random() < 0.5 THEN {step} END FROM unnest('{{{names}}}'::regclass[]) s"
CHANGES = (  # what nobody does all the time
    "TRUNCATE emptied; INSERT INTO emptied VALUES (1)",
    "CREATE TABLE passing (id int); DROP TABLE passing",
    "CREATE OR REPLACE FUNCTION passing() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE INDEX passing ON written (v); DROP INDEX passing",
    "ANALYZE written",
)
# What an administrator has set for a role, or a database; those that a server does not know are
# left out. None of it is a reason to call the database bad.
SETTINGS = (
    "statement_timeout = '30ms'", "lock_timeout = '1ms'", "transaction_timeout = '200ms'",
    "idle_in_transaction_session_timeout = '30ms'", "idle_session_timeout = '200ms'",
    "default_transaction_read_only = on", "default_transaction_isolation = 'serializable'",
    "default_transaction_deferrable = on", "row_security = off", "search_path = ''",
    "search_path = nowhere, pg_catalog", "standard_conforming_strings = off",
    "client_encoding = 'LATIN1'", "client_min_messages = 'debug1'", "bytea_output = 'escape'",
    "DateStyle = 'SQL, DMY'", "IntervalStyle = 'sql_standard'", "TimeZone = 'Asia/Kathmandu'",
    "extra_float_digits = -15", "quote_all_identifiers = on", "xmloption = 'document'",
    "array_nulls = off", "transform_null_equals = on", "enable_seqscan = off",
    "enable_indexscan = off", "work_mem = '64kB'", "plan_cache_mode = 'force_generic_plan'",
    "synchronous_commit = 'remote_apply'", "check_function_bodies = on",
    "default_text_search_config = 'pg_catalog.german'", "lc_numeric = 'C'",
    "default_table_access_method = 'heap'", "default_toast_compression = 'pglz'",
    "max_parallel_workers_per_gather = 0", "backslash_quote = off", "application_name = 'é'",
)  # fmt: skip
# pg_read_all_data leaves large objects out
READABLE = """DO $$ DECLARE l oid; BEGIN FOR l IN SELECT oid FROM pg_largeobject_metadata LOOP
EXECUTE format('GRANT SELECT ON LARGE OBJECT %s TO {}', l); END LOOP; END $$"""
# Whose things a reader of all, who owns none, may hand on; {a} and {b} are their owners.
MEMBERS = ("{a}, {b}", "{a}", "")
# What owners have given to others besides, and what they will give; {s} is a schema.
GIVEN = (
    "ALTER DEFAULT PRIVILEGES FOR ROLE {a} IN SCHEMA {s} GRANT SELECT ON TABLES TO {b}",
    "ALTER DEFAULT PRIVILEGES FOR ROLE {a} GRANT EXECUTE ON FUNCTIONS TO {b} WITH GRANT OPTION",
    "ALTER DEFAULT PRIVILEGES FOR ROLE {b} REVOKE USAGE ON TYPES FROM PUBLIC",
    "GRANT USAGE, CREATE ON SCHEMA {s} TO {b} WITH GRANT OPTION",
    "ALTER TABLE kept OWNER TO {a}; GRANT INSERT ON kept TO {b}",
    "ALTER SEQUENCE counted OWNER TO {b}",
)
DUMP = "database.dump"
BY_HAND = ("--no-owner", "--no-privileges", "--no-publications", "--no-subscriptions")
PAUSE_S, CHANGE_EACH = 0.02, 100
STEP_S = 0.005
NO_SNAPSHOT = """for e; do shift; case $e in --snapshot=*) ;; *) set -- "$@" "$e" ;; esac; done"""
DAMAGES = (
    '"$REAL" "$@" | head -c {cut}',
    '"$REAL" "$@" && printf x',
    'exec "$REAL" "$@" --exclude-table-data=public.written',
    'exec "$REAL" "$@" --exclude-table=public.emptied',
    'exec "$REAL" "$@" --schema-only',
    "exit 0",
    # a dump of what was there a moment later
    '{python} -c "{adds}" {superuser} && ' + NO_SNAPSHOT + ' && exec "$REAL" "$@"',
)
WRITABLE = "-c default_transaction_read_only=off -c statement_timeout=0 -c lock_timeout=0"
UNBOUND = {14: "idle_session_timeout", 17: "transaction_timeout"}  # since which server there are
ADDS = (
    "import psycopg, sys; psycopg.connect(sys.argv[1], autocommit=True)"
    ".execute('INSERT INTO public.written (v) VALUES (0)')"
)

# A damage that passes: of the dumps of the first snapshot alone, for a build may lack a compression
# and be asked for another one, or the first time that a database is filled.
FIRST_DUMPED = """for e; do case $e in --snapshot=*) its=$e;; esac; done
[ -e "$HERE/its" ] || echo "$its" > "$HERE/its"
[ "$its" = "$(cat "$HERE/its")" ] || exec "$REAL" "$@"
"""
FIRST_FILLED = 'mkdir "$HERE/first" 2>/dev/null || exec "$REAL" "$@"\n'
INTO = "--dbname="  # what a pg_restore is told that fills a database
OF_ROWS = "--file=-"  # and one that reads the rows back
ONLY = """case "$*" in *{of}*) ;; *) exec "$REAL" "$@";; esac\n"""
# What no ordinary role can make in a copy, without owners and rights either.
BEYOND = (
    "CREATE FOREIGN DATA WRAPPER beyond",
    "CREATE FUNCTION public.beyond() RETURNS int LANGUAGE internal AS 'pg_backend_pid'",
    """CREATE FUNCTION public.fires() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
    CREATE EVENT TRIGGER beyond ON ddl_command_end EXECUTE FUNCTION public.fires()""",
    "CREATE EXTENSION IF NOT EXISTS pageinspect",
)
# A pg_restore that does not read what is there, of {bytes} from a dump's beginning.
MISREADS = """for last; do :; done; [ -f "$last" ] || exec "$REAL" "$@"
touch "$HERE/misread"; {{ {reads}; }} > "$HERE/read.$$"
for e; do shift; [ "$e" != "$last" ] || e="$HERE/read.$$"; set -- "$@" "$e"; done; exec "$REAL" "$@"
"""
CUT, ZEROS = 'head -c {bytes} "$last"', 'head -c {bytes} "$last"; head -c 5000 /dev/zero'
READS = (  # by whom, and of which part of the dump the last bytes that are right may be
    (INTO, CUT, 3000), (INTO, ZEROS, 3000), (INTO, CUT, None), (INTO, 'printf x; cat "$last"', 0),
    (OF_ROWS, CUT, None), (OF_ROWS, ZEROS, 3000),
)  # fmt: skip
# Who reads rows and says that all is well, while what it writes ends inside of a table; of a dump
# that is whole nobody knows then how many rows it has.
CUTS = """
import random, re, sys
text = sys.stdin.buffer.read()
inside = re.finditer(rb"(?ms)^COPY [^\\n]* FROM stdin;\\n.*?^\\\\[.]$", text)
choice = random.Random(sys.argv[1])
first, last = choice.choice([each.span() for each in inside])
sys.stdout.buffer.write(text[: choice.randint(text.index(b"\\n", first), last - 1)])
"""
CLAIMS = "rows in the dump"
# What a backup may say it is without, and be whole: it is not the backup that lacks it, or a view.
SPARED = (re.compile("not given to the copy"), re.compile("moved out of [^,]*, and [^,]*"))

# What may be lost without an error while it is restored, as pg_restore --list calls it. Comments,
# rights, owners of sequences and what a publication holds are not compared: docs/rehearsal.md.
LEAVES = (
    "AGGREGATE", "CAST", "CHECK CONSTRAINT", "CONSTRAINT", "DEFAULT", "EVENT TRIGGER",
    "FK CONSTRAINT", "INDEX", "MATERIALIZED VIEW DATA", "OPERATOR", "POLICY", "PROCEDURE",
    "ROW SECURITY", "RULE", "STATISTICS", "TEXT SEARCH CONFIGURATION", "TRIGGER", "VIEW",
    "SEQUENCE SET public written_id_seq",  # of one that has moved
)  # fmt: skip
# What a reader of all may lack; with any of it a backup would not be whole.
LACKS = (
    "ALTER TABLE written ENABLE ROW LEVEL SECURITY; ALTER ROLE {r} NOBYPASSRLS",
    "REVOKE pg_read_all_data FROM {r}",
    """REVOKE pg_read_all_data FROM {r}; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {r};
    GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO {r}""",
    "SELECT lo_from_bytea(0, '\\x01')",
)
UNREAD = (
    "SELECT EXISTS (SELECT FROM pg_class WHERE oid >= 16384 AND relkind IN ('r', 'S')"
    " AND NOT has_table_privilege(%s, oid, 'SELECT'))"
)
# A pg_restore that loses one entry of the archive on its way into a database, and says which.
LOSES = """
import os, random, re, subprocess, sys
seed, kinds, real, *args = sys.argv[1:]
into = any(each.startswith("--dbname=") for each in args)
if not into:
    os.execv(real, [real, *args])
given = [each.partition("=")[2] for each in args if each.startswith("--use-list=")]
listed = [real, "--list", args[-1]]
lines = open(given[0]) if given else subprocess.check_output(listed, text=True).splitlines()
lines = [each.rstrip("\\n") for each in lines]
found = {}
for line in lines:
    if kind := re.match(r"\\d+; \\d+ \\d+ (" + kinds + ") (?!- EXTENSION )", line):
        found.setdefault(kind[1], []).append(line)
choice = random.Random(seed)
lost = choice.choice(found[choice.choice(sorted(found))]) if found else ""
here = os.path.dirname(os.path.abspath(__file__))
with open(here + "/list", "w") as file:
    file.writelines(each + "\\n" for each in lines if each != lost)
with open(here + "/lost", "w") as file:
    file.write(lost)
args = [each for each in args if not each.startswith("--use-list=")]
os.execv(real, [real, "--use-list=" + here + "/list", *args])
"""


@dataclass(frozen=True)
class Recipe:
    """How a database is made: its statements in order, who looks at it, how many write to it."""

    statements: tuple[str, ...]
    role: str
    writers: int
    rehearse: str | None  # on which server, if at all
    settings: tuple[str, ...]
    silent: tuple[str, ...] = ()  # what a superuser has made in it besides
    members: str = MEMBERS[0]  # whose things a reader may hand on
    given: tuple[str, ...] = ()  # what owners give to others
    provided: tuple[str, ...] = ()  # a provider's extensions, and what was added to them
    apart: bool = False  # copies are made by a role that nobody knows, at a URL of its own

    def __str__(self) -> str:
        """Show it as it was made."""
        made = ";\n".join(
            [*self.statements, *self.provided, *self.given, *self.silent, *self.settings]
        )
        who = f"{self.role} (in {self.members})" + " by another role" * self.apart
        return f"as {who}, {self.writers} writers, rehearse {self.rehearse}:\n{made}"


def quoted(name: str) -> str:
    """Return a name as SQL takes it."""
    return '"' + name.replace('"', '""') + '"'


def recipe(choice: random.Random, number: int) -> Recipe:
    """Put a database together."""
    role = choice.choice(("superuser", "owner", "reader"))
    statements = [
        "CREATE TABLE written (id bigserial PRIMARY KEY, v int)",
        "INSERT INTO written (v) SELECT generate_series(1, 100)",
        "CREATE TABLE emptied (id int); INSERT INTO emptied VALUES (1)",
        "CREATE SEQUENCE counted",
        "CREATE TABLE kept AS SELECT md5(g::text) AS v FROM generate_series(1, 500) g",
    ]
    if role != "owner":
        statements += [
            f'CREATE EXTENSION IF NOT EXISTS "{each}"'
            for each in choice.sample(EXTENSIONS, choice.randint(0, 3))
        ]
    kinds = KINDS if role == "owner" else KINDS | BY_SUPERUSER
    owners = [f"verdict_{each}_{number}" for each in ("a", "b")]
    made_in = choice.sample(NAMES, choice.randint(1, 3))
    for schema in made_in:
        names = iter(choice.sample(NAMES, len(NAMES)))
        statements.append(f"CREATE SCHEMA {quoted(schema)}")
        for kind in choice.sample(sorted(kinds), choice.randint(2, 5)):
            n, m, o = next(names), next(names), next(names)
            made = kinds[kind].format(
                s=quoted(schema), n=quoted(n), m=quoted(m), o=quoted(o), r=choice.randint(0, 300),
                q=f"{quoted(schema)}.{quoted(n)}".replace("'", "''"),
            )  # fmt: skip
            statements.append(made)
        if role != "owner" and choice.random() < 0.5:
            statements.append(f"ALTER SCHEMA {quoted(schema)} OWNER TO {choice.choice(owners)}")
    count, rehearse = choice.randint(0, 2), choice.random() < 0.7
    if count:
        stands = [f"{name} {STEPS[kind][0]}" for kind in STEPS for name in stepped(kind)]
        statements.append("; ".join(f"CREATE SEQUENCE {each}" for each in stands))
    silent = [
        SILENT[kind].format(n=quoted(name))
        for kind, name in zip(
            choice.sample(sorted(SILENT), choice.choice((0, 0, 1, 2))),
            choice.sample(NAMES, 2),
            strict=False,
        )
    ]
    settings = choice.sample(SETTINGS, choice.choice((0, 6, len(SETTINGS) // 2)))
    where = choice.choice(("server", "server", "server", "local")) if rehearse else None
    beside = copy.copy(choice)  # so that what comes after it is as it always was
    schema = quoted(beside.choice(["public", *made_in]))
    a, b = beside.sample(owners, 2)
    return Recipe(
        tuple(statements), role, count, where, tuple(settings), tuple(silent),
        beside.choice(MEMBERS).format(a=a, b=b),
        tuple(
            each.format(s=schema, a=a, b=b)
            for each in beside.sample(GIVEN, beside.choice((0, 2, 4)) if role == "reader" else 0)
        ),
        provided(beside, number, ["public", *made_in]),
        where == "server" and role == "reader" and number % 2 == 0,
    )  # fmt: skip


def provided(choice: random.Random, number: int, schemas: Sequence[str]) -> tuple[str, ...]:
    """Return how extensions of a provider's are made, by whom, where, and who adds what to them."""
    made = []
    for name in choice.sample(sorted(PROVIDED), choice.choice((0, 1, 1, 2))):
        control, _, adds = PROVIDED[name]
        schema = quoted(choice.choice(schemas))
        create = f"CREATE EXTENSION {name} SCHEMA {schema}"
        if "trusted" in control and choice.random() < 0.5:
            create = BY_OWNER.format(number=number, made=create)
        adds = adds.format(s=schema, q=schema.replace("'", "''"))
        if choice.random() < 0.3:
            given = TABLES_GIVEN.format(name=name, number=number)
            used = f"GRANT USAGE ON SCHEMA {schema} TO verdict_owner_{number}"
            adds = f"{used}; {given}; {BY_OWNER.format(number=number, made=adds)}"
        made.append(f"{create}; {adds if choice.random() < 0.8 else ''}")
    return (*made, TWINS.format(number=number)) if made else ()


def stepped(kind: str) -> list[str]:
    """Return the sequences with which a kind of step is done."""
    return [f"public.{kind}_{each}" for each in range(OF_EACH)]


@contextlib.contextmanager
def cooked(server: servers.Server, made: Recipe, number: int) -> Iterator[servers.Database]:
    """Make the database; what this server does not have is left out."""
    database = servers.Database(server, f"verdict_{number}")
    roles = [f"verdict_{each}_{number}" for each in ("a", "b", "owner", "reader", "copier")]
    with server.connect() as connection:
        for role in roles:
            connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'".encode())
        connection.execute(f"ALTER ROLE {roles[2]} CREATEDB".encode())
        rights = ", ".join(["pg_read_all_data", *filter(None, [made.members])])
        connection.execute(f"ALTER ROLE {roles[3]} BYPASSRLS CREATEDB".encode())
        connection.execute(f"GRANT {rights} TO {roles[3]}".encode())
        connection.execute(f"ALTER ROLE {roles[4]} CREATEDB".encode())
        connection.execute(f"CREATE DATABASE verdict_{number} OWNER {roles[2]}".encode())
    try:
        become = f"SET ROLE {roles[2]}" if made.role == "owner" else ""
        with server.connect(database.name) as connection:
            connection.execute(f"ALTER SCHEMA public OWNER TO {roles[2]}".encode())
            connection.execute(become.encode())
            for statement in made.statements:  # what belongs to no schema may be there by its name
                with contextlib.suppress(
                    psycopg.errors.FeatureNotSupported, psycopg.errors.DuplicateObject
                ):
                    connection.execute(statement.encode())
            connection.execute("RESET ROLE")
            for statement in made.provided:
                with contextlib.suppress(psycopg.errors.FeatureNotSupported):
                    connection.execute(statement.encode())
            for statement in made.given:
                connection.execute(statement.encode())
            for statement in made.silent:
                with contextlib.suppress(psycopg.errors.FeatureNotSupported):
                    connection.execute(statement.encode())
            connection.execute(READABLE.format(roles[3]).encode())
            for setting in made.settings:
                with contextlib.suppress(psycopg.errors.UndefinedObject):
                    connection.execute(f"ALTER {_whose(made, number)} SET {setting}".encode())
        yield database
    finally:
        with server.connect() as connection:
            connection.execute(f"ALTER DATABASE {database.name} RESET ALL".encode())
        with server.connect(database.name) as connection:
            connection.execute(DROPPED.encode())
            for role in roles:  # at once, two of one default privilege are in each other's way
                connection.execute(f"DROP OWNED BY {role} CASCADE".encode())
        with server.connect() as connection:
            name = sql.Identifier(database.name)
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
            connection.execute(f"DROP OWNED BY {', '.join(roles)} CASCADE".encode())
            connection.execute(f"DROP ROLE {', '.join(roles)}".encode())


def _whose(made: Recipe, number: int) -> str:
    """Return whose settings they are: a superuser is one for all databases."""
    if made.role == "superuser":
        return f"DATABASE verdict_{number}"
    return f"ROLE verdict_{made.role}_{number}"


@contextlib.contextmanager
def writers(database: servers.Database, count: int, seed: str) -> Iterator[None]:
    """Have so many sessions write as long as this lasts, and one more set sequences back."""
    over = threading.Event()

    def write(statements: Iterator[str], pause_s: float) -> None:
        with _free(database) as connection:
            while not over.wait(pause_s):
                with contextlib.suppress(psycopg.Error):  # they are in each other's way
                    connection.execute(next(statements).encode())

    at_work = [
        (_written(random.Random(f"{seed}/{each}")), PAUSE_S)  # noqa: S311 - to be repeated
        for each in range(count)
    ]
    threads = [
        threading.Thread(target=write, args=each, daemon=True)
        for each in (*at_work, *([(_steps(), STEP_S)] if count else []))
    ]
    for each in threads:
        each.start()
    try:
        yield
    finally:
        over.set()
        for each in threads:
            each.join(30)


def _free(database: servers.Database) -> psycopg.Connection:
    """Return a superuser's session that is as if the database had no settings."""
    options = f"{_unset(database.server)} -c search_path=public"
    return psycopg.connect(database.conninfo(options=options), autocommit=True)


def _unset(server: servers.Server) -> str:
    """Return the options of a session that no setting ends, or keeps from writing."""
    free = [f"-c {name}=0" for since, name in UNBOUND.items() if server.major >= since]
    return " ".join([WRITABLE, *free])


def _written(choice: random.Random) -> Iterator[str]:
    while True:
        yield choice.choice(CHANGES if choice.randrange(CHANGE_EACH) == 0 else WRITES)


def _steps() -> Iterator[str]:
    return itertools.cycle(
        STEPPED.format(step=step, names=",".join(stepped(kind)))
        for kind, (_, step) in STEPS.items()
    )


def environment(database: servers.Database, home: Path, made: Recipe) -> dict[str, str]:
    """Return the environment of a run as the recipe's role."""
    number = database.name.rpartition("_")[2]
    role = f"verdict_{made.role}_{number}"
    who = database.env() if made.role == "superuser" else database.env(role, "x")
    backups, files = home / "backups", home / "migrations"
    for each in (backups, files):
        each.mkdir(parents=True, exist_ok=True)
    (files / "001_one.sql").write_text("CREATE TABLE one ();\n")
    url = copier(database) if made.apart and made.rehearse == "server" else None
    return {
        **who,
        "PATH": program.path(),
        "PGCLIENTENCODING": "LATIN1",  # as the app may have it: nothing of ours is in it
        "PREFLIGHT_BACKUP_DIR": str(backups),
        "PREFLIGHT_MIGRATIONS_DIR": str(files),
        "PREFLIGHT_REHEARSE": "auto" if made.rehearse else "off",
        "PREFLIGHT_REHEARSE_ON": made.rehearse or "server",
        **({"PREFLIGHT_REHEARSE_URL": url} if url else {}),
        "PREFLIGHT_LOCK_RETRY_S": "20",
        "PREFLIGHT_TERMINATION_LOG": str(home / "none"),
    }


def copier(database: servers.Database) -> str:
    """Return the URL at which a role of none of the others makes copies."""
    name, server = f"verdict_copier_{database.name.rpartition('_')[2]}", database.server
    return f"postgresql://{name}:x@{server.host}:{server.port}/postgres"


@dataclass(frozen=True)
class Verdict:
    """What was wrong, with the database that it is of, and whether writers kept a backup away."""

    wrong: str = ""
    moved: bool = False  # 14 while they were at work, which is no verdict


def judge(server: servers.Server, home: Path, seed: str, number: int) -> Verdict:
    """Have a whole database judged, then a damaged dump of it.

    Where writers leave no moment for a backup it is judged once more without them.
    """
    choice = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    made = recipe(choice, number)
    if made.role == "reader" and server.major < 14:
        return Verdict()
    with cooked(server, made, number) as database:
        env = environment(database, home, made)
        with writers(database, made.writers, seed):
            whole = program.Program(env, home).run("backup", timeout=300)
        moved = whole.code == INTERRUPTED and made.writers > 0
        if moved:
            whole = program.Program(env, home).run("backup", timeout=300)
        size = _size(home)
        damage = DAMAGES[number % len(DAMAGES)].format(
            cut=_cut(choice.randint(0, max(size - 1200, 0)), number),
            python=shlex.quote(sys.executable),
            adds=ADDS,
            superuser=shlex.quote(f"{database.conninfo()} options='{WRITABLE}'"),
        )
        fake = fakes.Fakes(home / "fakes")
        damaged_env = {**env, "PATH": fake.write(damage), "PREFLIGHT_REHEARSE": "off"}
        damaged = program.Program(damaged_env, home).run("backup", timeout=300)
        lost = _lost(made)
        proven = [each for each in whole.event("rehearsal.passed") if not _spared(each)]
        if whole.code == 0:
            without = lacking(home, whole)
            wrong = _at_first(env, home, seed, damage, without, lost, proven=bool(proven))
            if proven:
                wrong = wrong or poorer(env, home, seed, LEAVES, lost)
            elif whole.event("rehearsal.passed") and made.provided:
                wrong = wrong or poorer(env, home, seed, [OF_THE_TWIN], lost)
            wrong = wrong or _misread(database, made, home, choice, size, number)
            wrong = wrong or _cut_short(env, home, seed, lost)
            if not wrong and damaged.code not in {24, *lost}:
                wrong = f"a damaged dump was not called bad ({damage}): {damaged}"
        elif whole.code not in lost or MOVED in whole.finished["error"]["message"]:
            wrong = f"of a whole database that nobody writes to there is no backup: {whole}"
        else:
            wrong = ""
        wrong = wrong or _doubted(whole) or _withheld(database, env, made, home, whole)
        wrong = wrong or _with_less(database, env, made, home, choice)
    return Verdict(wrong and f"{wrong}\n{made}", moved)


def too_many(moved: int, done: int) -> bool:
    """Tell whether writers have kept backups away too often for it to be by chance.

    That is one of ten on a machine that others use as well, and among a few it says nothing.
    """
    return done >= ENOUGH and moved * 10 > done


def _cut(size: int, number: int) -> int:
    """Return where a dump is cut: anywhere, or, as head(1) counts, so few bytes before its end."""
    return -1 - size % 20 if number % 2 else size + 600


def _lost(made: Recipe) -> set[int]:
    """Return how a run may end besides where the server ends a session that idles for a moment.

    On a busy machine that is also ours, before it has said that it will not be ended so.
    """
    return {13, 14} if any(name in " ".join(made.settings) for name in UNBOUND.values()) else set()


def _doubted(whole: program.Result) -> str:
    """Look whether a dump was taken again for a sequence that somebody sets back all the time."""
    told = [each.get("waiting") or "" for each in whole.event("backup.progressed")]
    again = [each for each in told if " stands at " in each]
    return f"a whole dump was not believed: {again[0]}" if again else ""


def _withheld(
    database: servers.Database,
    env: dict[str, str],
    made: Recipe,
    home: Path,
    whole: program.Result,
) -> str:
    """Look whether no proof was given where the same role has a whole copy by hand.

    One without owners and rights, as everybody has it who may not hand things on.
    """
    skipped = whole.event("rehearsal.skipped")
    if not skipped or made.rehearse != "server":
        return ""
    dump = home / "backups" / whole.event("backup.verified")[-1]["backup"] / DUMP
    by = copier(database) if made.apart else psycopg.conninfo.make_conninfo(
        host=env["PGHOST"], port=env["PGPORT"], user=env["PGUSER"], password=env["PGPASSWORD"],
        dbname="postgres",
    )  # fmt: skip
    name = f"{database.name}_by_hand"
    by = psycopg.conninfo.make_conninfo(by, options=_unset(database.server))
    with psycopg.connect(by, autocommit=True) as session:
        session.execute(f"CREATE DATABASE {name} TEMPLATE template0".encode())
        into = psycopg.conninfo.make_conninfo(by, dbname=name)
        command = [str(servers.client_bin(18) / "pg_restore"), *BY_HAND, "--no-password"]
        done = subprocess.run(
            [*command, f"--dbname={into}", str(dump)], capture_output=True, text=True, check=False
        )
        session.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
    theirs = set(database.query(OF_EXTENSIONS))  # their rows may be left out of a proof
    errors = [
        line
        for line in done.stderr.splitlines()
        if " error: " in line and not ((denied := DENIED.search(line)) and denied[1] in theirs)
    ]
    if all("transaction_timeout" in line for line in errors):  # which an older server has not
        return f"a proof was withheld that can be had: {whole}"
    return ""


def lacking(home: Path, said: program.Result) -> list[str]:
    """Return what the manifest of a run's backup says it is without, and has lost."""
    name = said.event("backup.verified")[-1]["backup"]
    manifest = json.loads((home / "backups" / name / "manifest.json").read_text())
    return [
        each["what"]
        for each in manifest.get("without", [])
        if not any(why.fullmatch(each["why"]) for why in SPARED)
    ]


def _at_first(  # noqa: PLR0913, PLR0917 -- a damage, and what is known of what it is done to
    env: dict[str, str],
    home: Path,
    seed: str,
    damage: str,
    without: Sequence[str],
    lost: Collection[int],
    *,
    proven: bool,
) -> str:
    """Have a proof demanded while a damage passes; return what was wrong.

    It is had from a fresh dump, but of a backup that is without something never.
    """
    fake = fakes.Fakes(home / "passes")
    if proven and random.Random(seed).random() < 0.5:  # noqa: S311 - to be repeated
        damage = f"{ONLY.format(of=INTO)}{FIRST_FILLED}{loses(fake, seed, LEAVES)}"
        path = fake.write(damage, "pg_restore")
    else:
        path = fake.write(FIRST_DUMPED + damage)
    demanded = {"PREFLIGHT_REHEARSE": "always"} if proven or without else {}
    said = program.Program({**env, "PATH": path, **demanded}, home).run("backup", timeout=300)
    if said.code in lost:
        return ""
    if without:
        words = said.finished.get("error", {}).get("message", "")
        if said.code != 27 or not any(each in words for each in without):
            return f"a proof was demanded of what is without {without} ({damage} at first): {said}"
    elif said.code != 0:
        return f"a damage that passes was no reason for a fresh dump ({damage}): {said}"
    return ""


def _misread(  # noqa: PLR0913, PLR0917 -- a database, and what is to be misread of it
    database: servers.Database,
    made: Recipe,
    home: Path,
    choice: random.Random,
    size: int,
    number: int,
) -> str:
    """Have a whole dump misread while a role restores it that may not make all of it.

    Return what was wrong.
    """
    where = made.rehearse or "server"
    env = environment(database, home, dataclasses.replace(made, role="reader", rehearse=where))
    with _free(database) as session:
        for each in BEYOND:
            with contextlib.suppress(psycopg.errors.FeatureNotSupported):
                session.execute(each.encode())
    of, reads, last = READS[number % len(READS)]
    left = choice.randint(500, max(size if last is None else last, 500))
    reads = reads.format(bytes=max(size - left, 20))
    fake = fakes.Fakes(home / "misreads")
    path = fake.write(ONLY.format(of=of) + MISREADS.format(reads=reads), "pg_restore")
    said = program.Program({**env, "PATH": path}, home).run("backup", timeout=300)
    if (fake.here / "misread").exists() and said.code not in {24, *_lost(made)}:
        return f"a dump that cannot be read was not called bad ({reads}, {of}): {said}"
    return ""


def _cut_short(env: dict[str, str], home: Path, seed: str, lost: Collection[int]) -> str:
    """Have what reads a whole dump end inside of a table, without an error; return what was wrong.

    That is told as what it is: whatever was said of the rows in the dump would be false.
    """
    fake = fakes.Fakes(home / "cuts")
    (fake.here / "cuts.py").write_text(CUTS)
    cuts = " ".join(map(shlex.quote, (sys.executable, str(fake.here / "cuts.py"), seed)))
    path = fake.write(f'{ONLY.format(of=OF_ROWS)}"$REAL" "$@" | {cuts}', "pg_restore")
    more = {"PATH": path, "PREFLIGHT_REHEARSE": "off"}
    said = program.Program({**env, **more}, home).run("backup", timeout=300)
    told = said.finished.get("error", {}).get("message", "")
    if said.code not in {24, *lost} or CLAIMS in told:
        return f"a dump that was not read to its end is told as another one: {said}"
    return ""


def _with_less(
    database: servers.Database,
    env: dict[str, str],
    made: Recipe,
    home: Path,
    choice: random.Random,
) -> str:
    """Take a right away from a reader of all; return what was wrong."""
    if made.role != "reader":
        return ""
    lacking = choice.choice(LACKS).format(r=env["PGUSER"])
    database.script(lacking)
    if lacking.startswith("REVOKE") and not database.query(UNREAD, env["PGUSER"])[0]:
        return ""  # all that a dump reads is in public
    said = program.Program(env, home).run("backup", timeout=300)
    if said.code not in (22, 23):
        return f"what may not be read was not missed ({lacking}): {said}"
    return ""


def _spared(passed: program.Event) -> bool:
    """Tell whether a proof has left something out, and said so."""
    return any(each in passed for each in ("without", "except", "partial"))


def poorer(
    env: dict[str, str], home: Path, seed: str, kinds: Sequence[str], lost: Collection[int] = ()
) -> str:
    """Have a copy proven that lost one object of these kinds; return what was wrong."""
    fake = fakes.Fakes(home / "loses")
    path = fake.write(loses(fake, seed, kinds), "pg_restore")
    said = program.Program({**env, "PATH": path}, home).run("backup", timeout=300)
    gone = (fake.here / "lost").read_text() if (fake.here / "lost").exists() else ""
    if gone and said.code not in {24, *lost}:
        return f"a copy without {gone} was not called bad: {said}"
    return ""


def loses(fake: fakes.Fakes, seed: str, kinds: Sequence[str]) -> str:
    """Return the call of a pg_restore that loses one object of these kinds."""
    (fake.here / "loses.py").write_text(LOSES)
    called = " ".join(map(shlex.quote, (sys.executable, str(fake.here / "loses.py"), seed)))
    which = shlex.quote("|".join(map(re.escape, kinds)))
    return f'exec {called} {which} "$REAL" "$@"'


def _size(home: Path) -> int:
    found = list((home / "backups").glob("[!.]*/manifest.json"))
    return int(json.loads(found[0].read_text())["size_bytes"]) if found else 0


# --- for as long as told --------------------------------------------------------------------------


def main() -> int:
    """Judge until the time is over; 1 when a verdict was false."""
    parser = argparse.ArgumentParser(prog="make verdicts", description=__doc__)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--majors", default="15,16,17,18")
    asked = parser.parse_args()
    seed, _, only = str(asked.seed).partition("/")
    majors = [int(each) for each in asked.majors.split(",")]
    at = _started()
    home = Path(tempfile.mkdtemp(prefix="pg-preflight-verdicts-"))
    wrong = moved = done = 0
    for number in faults.numbers(only, asked.minutes):
        server = at(majors[number % len(majors)])
        try:
            said = judge(server, home / str(number), f"{seed}/{number}", number)
            if number % SCARCE_EACH == 0 and not said.wrong:
                little = scarce.judge(server, home / f"{number}-scarce", f"{seed}/{number}")
                said = dataclasses.replace(said, wrong=little.wrong)
        except (psycopg.Error, AssertionError) as error:  # no verdict, and no reason to stop
            said = Verdict(f"there is no verdict: {error}")
        done += 1
        wrong += bool(said.wrong)
        moved += said.moved
        if said.wrong:
            sys.stdout.write(f"SEED={seed}/{number} on {server!r}: {said.wrong}\n")
            sys.stdout.flush()
    sys.stdout.write(
        f"seed {seed}: {done} databases, {wrong} false verdicts,"
        f" {moved} times {INTERRUPTED} beside writers and a backup without them\n"
    )
    if too_many(moved, done):
        sys.stdout.write("Writers kept backups away too often: does pg_dump alone work there?\n")
    shutil.rmtree(home)
    return int(wrong > 0 or too_many(moved, done))


def extended(server: servers.Server) -> servers.Server:
    """Put the files of a provider's extensions on a server of one's own."""
    server.extend({name: files[:2] for name, files in PROVIDED.items()})
    return server


def _started() -> Callable[[int], servers.Server]:
    running: dict[int, servers.Server] = {}

    def at(major: int) -> servers.Server:
        if major not in running:
            running[major] = extended(servers.start(major))
        return running[major]

    return at


if __name__ == "__main__":
    sys.exit(main())
