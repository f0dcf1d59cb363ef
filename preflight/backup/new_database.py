"""A new database beside the live one: made closed, filled by pg_restore, dropped.

It is made from template0 with the live one's encoding and locale, and closed to PUBLIC before a
row is in it: a new database lets everyone connect. `restore` keeps one, `rehearsal` drops it.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import make_conninfo

from preflight.backup import children, clients, passfile
from preflight.base import quoting, stop
from preflight.base.errors import Failure
from preflight.server import sessions

if TYPE_CHECKING:
    from preflight.server.sessions import Session

KNOWS_IDLE_TIMEOUT = 14
KNOWS_PROVIDERS = 15
KNOWS_TRANSACTION_TIMEOUT = 17
NEWBORN_LIMIT = 70_613  # the connection limit of a database that has no comment yet
MOST_JOBS = 4  # more did not help on any machine that was measured
# settings whose value is a list of quoted names already (pg_dump's variable_is_guc_list_quote)
_WORD = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^",\s]+))\s*(?:,|$)')
LISTS = {
    "local_preload_libraries", "search_path", "session_preload_libraries",
    "shared_preload_libraries", "temp_tablespaces", "unix_socket_directories",
}  # fmt: skip

_DATABASE = """
SELECT d.oid, d.datname::text, pg_catalog.pg_get_userbyid(d.datdba)::text, t.spcname::text,
 d.datconnlimit, d.datallowconn, d.datistemplate,
 pg_catalog.shobj_description(d.oid, 'pg_database'),
 pg_catalog.pg_encoding_to_char(d.encoding)::text, d.datcollate::text, d.datctype::text,
 j.j ->> 'datlocprovider', coalesce(j.j ->> 'datlocale', j.j ->> 'daticulocale'),
 j.j ->> 'daticurules'
FROM pg_catalog.pg_database d JOIN pg_catalog.pg_tablespace t ON t.oid = d.dattablespace,
 pg_catalog.to_jsonb(d) j (j)
WHERE d.datname::text LIKE %s ORDER BY d.datname
"""
_SETTINGS = """
SELECT CASE WHEN s.setrole <> 0::oid THEN pg_catalog.pg_get_userbyid(s.setrole)::text END,
 pg_catalog.unnest(s.setconfig)
FROM pg_catalog.pg_db_role_setting s WHERE s.setdatabase = %s::oid
"""
# the default one may be used without any right on it, but not named
_TABLESPACE = """
SELECT t.spcname::text FROM pg_catalog.pg_tablespace t WHERE t.spcname = %s::name
 AND t.oid <> (SELECT d.dattablespace FROM pg_catalog.pg_database d WHERE d.datname = 'template0')
"""
# what a session on a copy had better be without, where its role may: triggers that make the copy
# differ, and logs and statistics of production's server that would hold production's rows twice
QUIET = {
    "event_triggers": "off",
    "log_statement": "none",
    "log_duration": "off",
    "log_min_duration_statement": "-1",
    "log_min_duration_sample": "-1",
    "log_transaction_sample_rate": "0",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_parameter_max_length": "0",
    "auto_explain.log_min_duration": "-1",
    "pgaudit.log": "none",
    "pg_stat_statements.track": "none",
}
# libraries that only look on, and settings of what is logged and counted, by their names: their
# category is told in the server's language. deadlock_timeout is when somebody looks for one
_LOOKS_ON = (
    "auto_explain", "pg_qualstats", "pg_stat_kcache", "pg_stat_monitor", "pg_stat_statements",
    "pg_store_plans", "pg_wait_sampling", "pgaudit",
)  # fmt: skip
_LOOKING_ON = re.compile(
    rf"(log|track|debug_print|debug_pretty)_\w+|(compute_query_id|deadlock_timeout"
    rf"|update_process_title)|({'|'.join(_LOOKS_ON)})\.\w+"
)
# what those who fill a database would stumble over: a database gets it when it is filled. All other
# settings stand before, as with pg_restore -C: checks, defaults and views are read by them
LATE = {
    "default_transaction_read_only", "lc_messages", "local_preload_libraries", "role",
    "session_preload_libraries", "session_replication_role", "temp_file_limit",
}  # fmt: skip
# whatever a role, a database or a server says, they are not: a NULL in an array would be a word
FILLING = {
    "array_nulls": "on",
    "default_transaction_deferrable": "off",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "default_tablespace": "",  # pg_restore sets it wherever it has to, if it is to
}
# what every new database has, and one may have dropped
BROUGHT = {
    "schema public": "DROP SCHEMA IF EXISTS public",
    "extension plpgsql": "DROP EXTENSION IF EXISTS plpgsql",
}
# a right that it has before 15. pg_dump writes how those on the schema differ from what 15 gives,
# whatever the server's version: there, a right that was taken away would come back
PUBLIC_CLOSED = 15
OPEN = "CREATE for everybody on schema public"
_CLOSE = "REVOKE CREATE ON SCHEMA public FROM PUBLIC"
_OPEN = """
SELECT pg_catalog.has_schema_privilege('public'::name, n.oid, 'CREATE'),
 pg_catalog.pg_has_role(n.nspowner, 'USAGE')
FROM pg_catalog.pg_namespace n WHERE n.nspname = 'public'
"""
_QUIET = """
SELECT s.name::text FROM pg_catalog.pg_settings s
WHERE s.name = ANY (%s::text[]) AND (s.context = 'user' OR {})
"""
_SUPERUSER = "(SELECT r.rolsuper FROM pg_catalog.pg_roles r WHERE r.rolname = session_user)"
_MAY_SET = "pg_catalog.has_parameter_privilege(session_user, s.name, 'SET')"  # also a superuser
KNOWS_PARAMETER_RIGHTS = 15
OWN_LOCALE = ("i", "b")  # providers that do not follow the system's locale
# how many sessions this role may still open; the server keeps some for superusers
_ROOM = """
SELECT least(
 pg_catalog.current_setting('max_connections')::int4
  - pg_catalog.current_setting('superuser_reserved_connections')::int4
  - (SELECT count(*) FROM pg_catalog.pg_stat_activity a WHERE a.usesysid IS NOT NULL),
 (SELECT CASE WHEN r.rolconnlimit < 0 THEN 2147483647 ELSE r.rolconnlimit
   - (SELECT count(*) FROM pg_catalog.pg_stat_activity a WHERE a.usesysid = r.oid) END
  FROM pg_catalog.pg_roles r WHERE r.rolname = session_user))
"""


# as the role that logged in: the one that it became may not end its sessions
_END_OURS = """
SET ROLE NONE;
SELECT pg_catalog.pg_terminate_backend(a.pid) FROM pg_catalog.pg_stat_activity a
WHERE a.datname = {name}::name AND a.usename = session_user;
RESET ROLE
"""
DROP_TRIES = 3  # each waits for 5 s
# who has not been let in yet has its name already
_CALLED = """
SELECT a.pid FROM pg_catalog.pg_stat_activity a
WHERE a.datname = {name}::name AND a.usename = session_user AND a.application_name = {called}
"""
_END_CALLED = f"""
SET ROLE NONE;
SELECT pg_catalog.pg_terminate_backend(c.pid) FROM ({_CALLED}) c;
{{back}}
"""  # noqa: S608 -- what is given is quoted
ENDED_S = 5.0  # what a session is given to end that was told to
GIVE_BACK_S = 5.0  # how long the tables of a database that is too large are tried to be dropped
# what this role does not own in a database, and so may not fill
_THEIRS = """
SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n
 ON n.oid = c.relnamespace AND n.nspname::text NOT LIKE 'pg\\_%'
WHERE NOT pg_catalog.pg_has_role(c.relowner, 'USAGE')
"""
# every table with rows of its own, and partitioned ones, whose partitions are read for them; of
# the system's, which are sixty, those that have grown by what the database holds. A parent's
# statistics are taken from its children, too, and a foreign one would be asked for them
_ANALYZED = """
WITH RECURSIVE abroad AS (
 SELECT i.inhparent FROM pg_catalog.pg_inherits i
 JOIN pg_catalog.pg_class f ON f.oid = i.inhrelid AND f.relkind = 'f'
 UNION SELECT i.inhparent FROM pg_catalog.pg_inherits i JOIN abroad a ON a.inhparent = i.inhrelid)
SELECT c.oid::pg_catalog.regclass::text, c.relispartition AND NOT EXISTS (
  SELECT FROM pg_catalog.pg_inherits i JOIN abroad a ON a.inhparent = i.inhparent
  WHERE i.inhrelid = c.oid),
 EXISTS (SELECT FROM abroad)
FROM pg_catalog.pg_class c
WHERE c.relkind IN ('r', 'p', 'm') AND c.oid NOT IN (SELECT a.inhparent FROM abroad a)
 AND (c.oid >= 16384::oid
 OR pg_catalog.pg_relation_size(c.oid) > 2 * 8192 * greatest(c.relpages, 2) AND NOT c.relisshared)
ORDER BY c.oid LIMIT %s::int8
"""
FEW_TABLES = 1000  # that are named; of more, all are analyzed


# the database


@dataclass(frozen=True, slots=True)
class TextRules:
    """How a database keeps and sorts text; None: the server's version has no such thing."""

    encoding: str
    lc_collate: str
    lc_ctype: str
    provider: str | None = None  # `c`, `i` or `b`
    locale: str | None = None  # which the versions call otherwise
    icu_rules: str | None = None

    def options(self) -> str:
        """Return the options of CREATE DATABASE that give a new one these rules."""
        options = f" ENCODING {quoting.literal(self.encoding)}"
        options += f" LC_COLLATE {quoting.literal(self.lc_collate)}"
        options += f" LC_CTYPE {quoting.literal(self.lc_ctype)}"
        if self.provider == "c":
            return f"{options} LOCALE_PROVIDER libc"
        if self.provider not in OWN_LOCALE or self.locale is None:
            return options
        locale = quoting.literal(self.locale)
        if self.provider == "b":
            return f"{options} LOCALE_PROVIDER builtin BUILTIN_LOCALE {locale}"
        options += f" LOCALE_PROVIDER icu ICU_LOCALE {locale}"
        return (
            f"{options} ICU_RULES {quoting.literal(self.icu_rules)}" if self.icu_rules else options
        )


@dataclass(frozen=True, slots=True)
class Database:
    """What the server knows of a database."""

    oid: int
    name: str
    owner: str
    tablespace: str
    connection_limit: int
    open: bool  # to connections
    template: bool  # for whoever may create a database
    comment: str | None
    rules: TextRules

    @property
    def newborn(self) -> bool:
        """Tell whether it was made by us and never opened."""
        return not self.comment and self.connection_limit == NEWBORN_LIMIT and not self.open


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting, `name=value` as the server keeps it, of one role or of every one (None)."""

    role: str | None
    setting: str

    @property
    def name(self) -> str:
        """What is set."""
        return self.setting.partition("=")[0]

    @property
    def late(self) -> bool:
        """Whether a database gets it only when it is filled."""
        return self.name in LATE

    @property
    def looks_on(self) -> bool:
        """Whether no statement does anything else for it: it is of logs and statistics."""
        if self.name.endswith("_preload_libraries"):
            found = [inner or bare for inner, bare in _WORD.findall(self.setting.partition("=")[2])]
            return set(found) <= set(_LOOKS_ON)
        return _LOOKING_ON.fullmatch(self.name) is not None

    def command(self, database: str) -> str:
        """Return the ALTER that gives it to a (quoted) database; "": to its role in any."""
        whom = f"DATABASE {database}" if database else ""
        if self.role:
            whom = f"ROLE {quoting.name(self.role)}" + (f" IN {whom}" if whom else "")
        return f"ALTER {whom} {assignment(self.setting)}"


def grant_command(on: str, privilege: str, role: str | None, *, grantable: bool) -> str:
    """Return the GRANT of a right on something (quoted, after its kind); nobody is PUBLIC."""
    whom = quoting.name(role) if role else "PUBLIC"
    return f"GRANT {privilege} ON {on} TO {whom}" + (
        " WITH GRANT OPTION" if grantable and role else ""
    )


def described(session: Session, name: str) -> Database | None:
    """Return what the server knows of a database, or None when there is none of that name."""
    return next(iter(like(session, re.sub(r"([%_\\])", r"\\\1", name))), None)


def like(session: Session, pattern: str) -> list[Database]:
    """Return what the server knows of each database whose name is LIKE a pattern."""
    rows = session.execute(_DATABASE, [pattern]).fetchall()
    return [
        Database(oid, known, owner, place, limit, may_connect, model, comment, TextRules(*rules))
        for oid, known, owner, place, limit, may_connect, model, comment, *rules in rows
    ]


def size_of(session: Session, name: str) -> int:
    """Return a database's size in bytes."""
    query = "SELECT pg_catalog.pg_database_size(%s::name)"
    (size,) = session.execute(query, [name]).fetchone() or (0,)
    return int(size)


def create(
    session: Session, name: str, rules: TextRules | None, tablespace: str | None, comment: str
) -> None:
    """Make a database with these text rules, closed to PUBLIC; raises psycopg.Error.

    It lies in the tablespace, where this server has one of that name. A kill in between leaves one
    that is `newborn`.
    """
    command = f"CREATE DATABASE {quoting.name(name)} TEMPLATE template0 ALLOW_CONNECTIONS false"
    command += f" CONNECTION LIMIT {NEWBORN_LIMIT}"
    command += rules.options() if rules else ""
    if tablespace and (row := session.execute(_TABLESPACE, [tablespace]).fetchone()):
        command += f" TABLESPACE {quoting.name(row[0])}"
    session.execute(command)
    try:
        with sessions.transaction(session):  # nobody was let in before PUBLIC is locked out
            session.execute(f"REVOKE ALL ON DATABASE {quoting.name(name)} FROM PUBLIC")
            say(session, name, comment)
            session.execute(
                f"ALTER DATABASE {quoting.name(name)} ALLOW_CONNECTIONS true CONNECTION LIMIT -1"
            )
    except BaseException:
        if not session.lost:
            drop(session, name)
        raise


def say(session: Session, name: str, text: str) -> None:
    """Write the comment on a database, which says what it is."""
    session.execute(f"COMMENT ON DATABASE {quoting.name(name)} IS {quoting.literal(text)}")


def drop(session: Session, name: str) -> None:
    """Drop a database with whoever is connected to it; a stop request waits for that.

    Raises psycopg.Error.
    """
    try:
        session.connection.execute(
            f"DROP DATABASE IF EXISTS {quoting.name(name)} WITH (FORCE)".encode()
        )
    except psycopg.errors.InsufficientPrivilege:  # autovacuum, or sessions of another name
        _drop_gently(session, name)


def _drop_gently(session: Session, name: str) -> None:
    """Drop without FORCE, which a plain role may not use against autovacuum; this cancels it."""
    for attempt in range(1, DROP_TRIES + 1):
        session.connection.execute(_END_OURS.format(name=quoting.literal(name)).encode())
        try:
            session.connection.execute(f"DROP DATABASE IF EXISTS {quoting.name(name)}".encode())
        except psycopg.errors.ObjectInUse:
            if attempt == DROP_TRIES:
                raise
        else:
            return


def end_called(session: Session, name: str, called: str) -> None:
    """End our own sessions of this name in a database, and see them gone: some never got in."""
    said = {"name": quoting.literal(name), "called": quoting.literal(called)}
    back = "; ".join(session.role("SET")) or "RESET ROLE"
    for waited in stop.looks(0.05, 0.1):
        if waited >= ENDED_S or not session.execute(_CALLED.format(**said)).fetchone():
            return
        with suppress(psycopg.errors.InsufficientPrivilege):  # it may be taken from everybody
            session.connection.execute(_END_CALLED.format(**said, back=back).encode())


def settings(session: Session, live: Database) -> list[Setting]:
    """Return the settings of a database."""
    return [Setting(*row) for row in session.execute(_SETTINGS, [live.oid]).fetchall()]


def assignment(setting: str) -> str:
    """Return the SET of an ALTER DATABASE or ALTER ROLE for a setting, `name=value`."""
    name, _, value = setting.partition("=")
    words = [inner.replace('""', '"') or plain for inner, plain in _WORD.findall(value)]
    said = (
        ", ".join(map(quoting.literal, words))
        if name in LISTS and value
        else quoting.literal(value)
    )
    return f"SET {quoting.parameter(name)} TO {said}"


def quiet(session: Session) -> dict[str, str]:
    """Return the settings with which this role's sessions on a copy are heard of least."""
    new = session.facts is not None and session.facts.major >= KNOWS_PARAMETER_RIGHTS
    query = _QUIET.format(_MAY_SET if new else _SUPERUSER)
    rows = session.execute(query, [list(QUIET)]).fetchall()
    return {name: QUIET[name] for (name,) in rows}


def filling(session: Session) -> dict[str, str]:
    """Return the settings of this role's sessions that fill a database, and compare it."""
    idle = session.facts is not None and session.facts.major >= KNOWS_IDLE_TIMEOUT
    waiting = {"idle_session_timeout": "0"} if idle else {}  # of a job that others keep waiting
    return quiet(session) | FILLING | waiting


def theirs(inside: Session) -> set[tuple[str, str]]:
    """Return schema and name of what this role does not own in a session's database."""
    return set(inside.execute(_THEIRS).fetchall())


def strip(inside: Session, lacks: Collection[str]) -> list[str]:
    """Drop what a new database brings along and the live one lacks; return what this role cannot.

    Before PostgreSQL 15 all of it is the superuser's.
    """
    left = []
    if OPEN in lacks and is_open(inside)[0]:
        with suppress(psycopg.errors.InsufficientPrivilege):  # or it is no more than a warning
            inside.execute(_CLOSE)
        left += [OPEN] if is_open(inside)[0] else []
    for what, command in BROUGHT.items():
        try:
            if what in lacks:
                inside.execute(command)
        except psycopg.Error:
            if inside.lost:
                raise
            left.append(what)
    return left


def is_open(inside: Session) -> tuple[bool, bool]:
    """Tell whether everybody may CREATE in the schema public, and whether this role decides it."""
    may, ours = inside.execute(_OPEN).fetchone() or (False, False)
    return may, ours


# its content


@dataclass(frozen=True, slots=True)
class Complaint:
    """One error of pg_restore: its words, and which entry of the archive it is about."""

    text: str
    entry: str = ""  # such as `TABLE DATA users unicorn`
    number: str = ""  # of that entry in the archive
    schema: str = ""  # where its object stands, which pg_restore does not say; where it is known
    listed: str = ""  # that entry as the archive's list has it: with the schema, or a dash for none
    unique: bool = False  # of an index: it makes a promise about rows
    outside: bool = False  # because of what a partial backup leaves out
    lost: bool = False  # the client's connection ended meanwhile, so that it may tell nothing else

    @property
    def sort(self) -> str:
        """Tell what it may be a lack of: `archive`, `content`, `refresh`, `program` or `right`."""
        if not self.entry:
            return "archive"
        if self.no_tablespace:
            return "right"
        if self.entry.startswith(REFRESH):
            return "refresh"
        if self.entry.startswith(CONTENT):
            return "content"
        return "program" if self.entry.startswith("EXTENSION") else "right"

    @property
    def whole(self) -> str:
        """Return the entry with its schema, as no other one is called."""
        return self.entry if self.schema in {"", "-"} else self.listed

    @property
    def said(self) -> str:
        """Return the server's own words, where it speaks English."""
        return self.text.partition("ERROR:  ")[2]

    @property
    def name(self) -> str:
        """Return the bare name of what an entry fills or builds."""
        kind = next((kind for kind in FILLED if self.entry.startswith(f"{kind} ")), "")
        return self.entry.removeprefix(f"{kind} ").rpartition(" ")[0]

    def fills(self, name: str) -> bool:
        """Tell whether this is what fills or builds the object of a qualified name."""
        schema, own = map(clients.in_a_line, quoting.halves(name))
        return own == self.name and self.schema in {"", schema}

    def touches(self, names: Collection[str], objects: Collection[tuple[str, str]]) -> bool:
        """Tell whether a complaint that says these names is about one of these objects."""
        return any(
            own in names and self.schema in {"", schema}
            for schema, own in (map(clients.in_a_line, each) for each in objects)
        )

    @property
    def no_tablespace(self) -> bool:
        """Tell whether it is only about where on the server an object is to lie."""
        return "default_tablespace" in self.text or "denied for tablespace" in self.text

    @property
    def no_room(self) -> bool:
        """Tell whether the server's disk is full."""
        return FULL in self.text

    @property
    def limited(self) -> bool:
        """Tell whether a limit of the server is in the way.

        An archive that cannot be read may ask for any size. Only who reads rows needs temporary
        files: who makes a function may lack the right to set their limit.
        """
        if self.sort in {"content", "refresh"} and _TEMPORARY in self.text:
            return True
        return self.sort != "archive" and any(words in self.text for words in _SHORT)

    @property
    def empty(self) -> bool:
        """Tell whether nothing is lost by it.

        Only its owner may comment on an extension. What is off of a partition's part of a foreign
        key alone is said by a name that no other database has, and switched off afterwards.
        """
        return _NO_LOSS.match(self.entry) is not None

    @property
    def rebuilt(self) -> bool:
        """Tell whether it is an index that PostgreSQL cannot build again, and no row is to blame.

        Its functions rely on a search_path, for example. Of a unique one the rows may be to blame:
        unless the server says in words that we know that something does not exist, they are.
        """
        said = not self.unique or "does not exist" in self.text
        return self.entry.startswith("INDEX ") and said and not self.no_tablespace

    @property
    def doubtful(self) -> bool:
        """Tell whether other jobs may be to blame for it."""
        mixed = not self.entry or "pg_restore: " in self.text
        return mixed or self.lost or self.entry.startswith(CONTENT)


FULL = "No space left on device"
_TABLES = """
SELECT pg_catalog.format('%I.%I', n.nspname, c.relname)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.oid >= 16384 ORDER BY pg_catalog.pg_total_relation_size(c.oid) DESC
"""
# names of settings, which no server translates, and the system's own words
_TEMPORARY = "temp_file_limit"
_SHORT = (
    "max_locks_per_transaction", "Disk quota exceeded", ": out of memory", ": out of shared memory",
)  # fmt: skip
# libpq's own words, which no server translates
_LOST = re.compile(r"server closed the connection unexpectedly|no connection to the server")
_NO_LOSS = re.compile(r"COMMENT (?:- )?EXTENSION |TRIGGER .* RI_ConstraintTrigger_[ac]_\d+ ")
FILLED = ("TABLE DATA", "SEQUENCE SET", "INDEX")
BARE = ("--no-owner", "--no-privileges")  # for a role, or on a server, that cannot give them
REFRESH = "MATERIALIZED VIEW DATA"  # no rows of the dump, but a query that runs anew
# entries that need no right but to their tables, which the role has made itself a moment ago
CONTENT = (
    "TABLE DATA", "BLOBS", "BLOB", "LARGE OBJECT", "SEQUENCE SET", "INDEX", "CONSTRAINT",
    "FK CONSTRAINT", "CHECK CONSTRAINT", "MATERIALIZED VIEW DATA", "STATISTICS DATA", "TRIGGER",
    "RULE",
)  # fmt: skip


def fill(  # noqa: PLR0913 -- what is filled from what, and what happens meanwhile
    session: Session,
    name: str,
    dump: Path,
    parallel: int,
    *options: str,
    settings: Mapping[str, str] | None = None,
    tick: Callable[[], None] = lambda: None,
    hold: Callable[[], bool] | None = None,
    anew: Callable[[], None] | None = None,
    there: Collection[str] = (),
) -> tuple[int, list[Complaint]]:
    """Run pg_restore into a new database; return its exit code and its errors.

    The code is 0 when the only errors were those that every client 17 makes on an older server.
    Its jobs may deadlock with each other, as over the partitions of a table that another's foreign
    key is checked against, and they write into each other's lines: where either may be the reason
    of an error, or of one that pg_restore counts and nobody heard, the database is made anew (by
    `anew`, or as it is) and filled by one. A disk that is full is not filled a second time, and is
    given back what was taken at once. The schemas that are `there` are in the archive, too, and
    their owners with them. Where the settings do not keep event triggers from firing, they are made
    when all else is there.
    """
    how: dict[str, Any] = {"name": name, "tick": tick, "hold": hold, "there": there}
    how["settings"] = settings or {}
    how["fires"] = "event_triggers" not in (settings or {})
    code, problems, unheard = _filled(session, dump, parallel, *options, **how)
    unsaid = unheard or (code != 0 and not problems)  # the word stood in another job's line
    doubtful = unsaid or any(problem.doubtful for problem in problems)
    if any(problem.no_room for problem in problems):
        _give_back(session, name, settings or {})
    elif parallel > 1 and doubtful:
        try:
            (anew or partial(make_anew, session, name))()
        except psycopg.errors.ObjectInUse:  # as by a prepared transaction: the first answer stands
            if problems:
                raise
            return code, problems
        code, problems, unheard = _filled(session, dump, 1, *options, **how)
    if unheard:  # of one job: what it is silent about may be anything
        problems.append(Complaint(f"it counts {unheard} errors that it does not tell"))
    return code, problems


def _give_back(session: Session, name: str, settings: Mapping[str, str]) -> None:
    """Drop the tables of a database that its server has no room for, the largest first.

    DROP DATABASE asks for a checkpoint before it frees anything, and a server that finds no room at
    a checkpoint ends for everybody; a table's room is back when its DROP is committed. Who needs a
    page of memory whose own place on the disk is not there yet fails, too, and may get another one
    the next time.
    """
    for waited in stop.looks(0.02, 0.1):
        with suppress(Failure, psycopg.Error), sessions.beside(session, name, settings) as inside:
            tables = inside.execute(_TABLES).fetchall()
            done = [_dropped(inside, table) for (table,) in tables]  # each: another one may go
            if all(done):
                return
        if waited >= GIVE_BACK_S:
            return


def _dropped(inside: Session, table: str) -> bool:
    """Drop a table, and return whether that need not be tried again."""
    try:
        inside.execute(f"DROP TABLE IF EXISTS {table} CASCADE".encode())
    except psycopg.Error as error:  # another reason, as that it belongs to an extension, stays
        return not isinstance(error, psycopg.errors.DiskFull)
    return True


def make_anew(session: Session, name: str) -> None:
    """Drop a database, and make it again as it was made; raises psycopg.Error."""
    before = described(session, name)
    drop(session, name)
    rules, place = (before.rules, before.tablespace) if before else (None, None)
    create(session, name, rules, place, before.comment or "" if before else "")


def _filled(  # noqa: PLR0913 -- see above
    session: Session,
    dump: Path,
    parallel: int,
    *options: str,
    name: str,
    settings: Mapping[str, str],
    tick: Callable[[], None],
    hold: Callable[[], bool] | None,
    there: Collection[str],
    fires: bool,
) -> tuple[int, list[Complaint], int]:
    """Return also how many errors it counted and did not tell."""
    counted = clients.clients(session.config, session)
    old = session.facts is not None and session.facts.major < KNOWS_TRANSACTION_TIMEOUT
    heard = Heard(old=old)
    code = 0
    calls: list[Sequence[str]] = [options]
    with ExitStack() as stack:
        environment, address = stack.enter_context(passfile.passfile(session))
        address = sessions.with_settings({**address, "dbname": name}, settings)
        if fires:
            calls = stack.enter_context(clients.in_turn(dump, counted, environment, options))
        for each in calls:
            command = restore_command(counted.pg_restore, address, dump, parallel, *each)
            code = clients.listen(command, environment, heard.line, tick, hold) or code
            heard.end(parallel)
            if code not in (0, 1):  # it was ended, and did not end
                break
        found, waved = heard.all()
        if any(problem.number for problem in found):
            with suppress(children.ClientFailed):
                found = placed(found, clients.entries(dump, counted, environment))
    made = tuple(f"SCHEMA {name} " for name in there)
    problems = [p for p in found if not p.empty and not (made and p.entry.startswith(made))]
    waved += len(found) - len(problems)
    clean = waved and not problems and not heard.unheard
    return (0 if code == 1 and clean else code), problems, heard.unheard


def jobs(session: Session, beside: int = 0) -> int:
    """Return how many sessions a client may have: as told or by the cores, as far as limits let.

    One that is free is left for the app, and as many as stand `beside`.
    """
    (room,) = session.execute(_ROOM).fetchone() or (1,)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
    wanted, auto = session.config.jobs, min(MOST_JOBS, max(2, cores))
    return max(1, min(wanted if isinstance(wanted, int) else auto, room - 1 - beside))


def analyze(inside: Session) -> None:
    """Give the planner the statistics that it has in production, as far as they can be had.

    Table by table where one cannot be read, for a function in an index fails: no fault of the
    backup or the files. Nothing is asked of a parent with a foreign child, which would be read.
    """
    found = inside.execute(_ANALYZED, [FEW_TABLES + 1]).fetchall()
    many = len(found) > FEW_TABLES
    if many and found[0][2]:
        found, many = inside.execute(_ANALYZED, [None]).fetchall(), False
    named = ", ".join(table for table, with_its_parent, _ in found if not with_its_parent)
    try:
        if found:
            inside.execute(f"ANALYZE {'' if many else named}")
    except psycopg.Error:
        if inside.lost:
            raise
        for table, _, _ in inside.execute(_ANALYZED, [None]).fetchall():
            with suppress(psycopg.Error):
                inside.execute(f"ANALYZE {table}")


def restore_command(
    pg_restore: str, address: Mapping[str, str], dump: Path, parallel: int, *options: str
) -> list[str]:
    """Return the pg_restore call; the password is in a passfile, never here."""
    conninfo = make_conninfo("", **address)
    return [
        pg_restore,
        # of a place that does not answer pg_restore says so itself
        f"--format={'directory' if os.path.isdir(dump) else 'custom'}",  # noqa: PTH112 -- raises
        f"--jobs={parallel}",
        "--no-password",
        "--verbose",  # else an error does not say which entry of the archive it is about
        *options,
        f"--dbname={conninfo}",
        str(dump),
    ]


# it writes its name, a blank, the sort and the words one by one: another job's may stand in between
_ERROR = re.compile(r"(?:^ ?|: *)(?:error|fatal): (.*)")
_COUNTED = re.compile(r"errors ignored on restore: (\d+)$")  # the last line, when all jobs ended
_ENTRY = re.compile(r"from TOC entry (\d+); \d+ \d+ (.*)")
_WAVED = re.compile(r"Command was: SET transaction_timeout = 0;")
_UNIQUE = re.compile(r"Command was: CREATE UNIQUE INDEX (\"(?:[^\"]|\"\")+\"|\S+) ON ")
# what it says of a command that it sent for an entry; any other error ends it, whatever entry it
# named last: an archive that cannot be read, a connection that is gone
_OF_ENTRY = re.compile(
    r"could not execute query: |COPY failed for table |could not set |could not write to large obj"
)
WAVED_BY_FIRST = 2  # as the first one connects, and again when the others are done
KEPT = 200  # complaints from the beginning, and as many from the end


def complaints(said: Iterable[str], *, old: bool) -> tuple[list[Complaint], int]:
    """Return pg_restore's errors but the one that a client 17 causes on an older server.

    It sends SET transaction_timeout whatever wrote the archive, in every one of its jobs. The
    server's words may be localised, but the setting's name and the command on the next line are
    not; jobs write at once, so that what stands before a message may be another's. Also return how
    many of these there were. Of many errors the first and the last are kept, and one of each sort.
    """
    heard = Heard(old=old)
    for line in said:
        heard.line(line)
    return heard.all()


def placed(problems: Sequence[Complaint], listed: Mapping[str, str]) -> list[Complaint]:
    """Say of each complaint in which schema its object stands, by the archive's list."""
    lines = {each.number: listed.get(each.number, "") for each in problems}
    return [
        dataclasses.replace(
            each, listed=lines[each.number], schema=_schema(lines[each.number], each.entry)
        )
        for each in problems
    ]


def _schema(listed: str, said: str) -> str:
    """Return what stands between kind and name in the list, and not in an error."""
    words = said.split(" ")
    for number in range(1, len(words)):
        kind, rest = " ".join([*words[:number], ""]), " ".join(["", *words[number:]])
        between = len(listed) - len(kind) - len(rest)
        if between > 0 and listed.startswith(kind) and listed.endswith(rest):
            return listed[len(kind) : -len(rest)]
    return ""


class Heard:
    """What pg_restore complained of, told line by line: it may be more than anybody can keep."""

    def __init__(self, *, old: bool) -> None:
        """`old`: the server is older than what is waved through."""
        self.unheard = 0  # errors that it counts, and that nobody understood
        self._told = self._passed = self._counted = 0  # by the call that is listened to
        self._old = old
        self._number = self._entry = ""
        self._setting: str | None = None  # may be waved through, as the next line will tell
        self._waved = 0
        self._lost = False
        self._unique: set[str] = set()  # indexes, as an entry names them
        self._first: list[Complaint] = []
        self._sorts: set[str] = set()
        self._last: deque[Complaint] = deque(maxlen=KEPT)

    def line(self, line: str) -> None:
        """Take the next line."""
        self._lost = self._lost or _LOST.search(line) is not None
        if self._setting is not None:
            text, self._setting = self._setting, None
            if _WAVED.fullmatch(line.strip()):
                self._waved += 1
                self._passed += 1
                return
            self._keep(text)
        if found := _COUNTED.search(line):
            self._counted = int(found[1])
        if found := _ENTRY.search(line):
            self._number = found[1]
            self._entry = found[2].removesuffix("(no owner)")  # as if it had said none
        if found := _UNIQUE.search(line):
            quoted = found[1].startswith('"')
            self._unique.add(found[1][1:-1].replace('""', '"') if quoted else found[1])
        if (found := _ERROR.search(line)) is None:
            return
        text = re.sub(r"^(?:error: )+", "", found[1])
        if self._old and "could not execute query" in line and "transaction_timeout" in line:
            self._setting = text
        else:
            self._keep(text)

    def end(self, parallel: int) -> None:
        """Take that this call has ended, with so many jobs, and what it counted and did not tell.

        Of what is waved through, the count has that of its first session alone; of several errors
        of one entry another session made, it has one.
        """
        self._flush()
        passed = self._passed if parallel == 1 else min(self._passed, WAVED_BY_FIRST)
        self.unheard += max(0, self._counted - self._told - passed)
        self._told = self._passed = self._counted = 0

    def _flush(self) -> None:
        if self._setting is not None:
            text, self._setting = self._setting, None
            self._keep(text)

    def _keep(self, text: str) -> None:
        self._told += 1
        about = (self._entry, self._number) if _OF_ENTRY.match(text) else ()
        problem = Complaint(text, *about)
        if len(self._first) < KEPT:
            self._first.append(problem)
        elif problem.sort in self._sorts:
            self._last.append(problem)
        else:
            self._first.append(problem)
        self._sorts.add(problem.sort)

    def all(self) -> tuple[list[Complaint], int]:
        """Return what was kept, and how many were waved through."""
        self._flush()
        kept = self._first + list(self._last)
        unique, lost = self._unique, self._lost
        told = [dataclasses.replace(p, unique=p.name in unique, lost=lost) for p in kept]
        return told, self._waved
