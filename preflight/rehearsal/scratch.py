"""A scratch database on a server: made, marked, swept when its run is dead."""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import psycopg
import structlog

from preflight.backup import belongings, manifests, new_database
from preflight.base import logs, quoting
from preflight.base.errors import (
    Failure,
    causes,
)
from preflight.files import parser, scan
from preflight.server import prepared, ready, sessions

if TYPE_CHECKING:
    from preflight.base.config import Config
    from preflight.files.migrations import Script
    from preflight.server.sessions import Session

PREFIX = "preflight_scratch_"
MARK = "pg-preflight: scratch copy of "
DISK_FULL, NO_DATABASE, NO_OBJECT, DENIED = "53100", "3D000", "42704", "42501"
_EXTENSION = "SELECT FROM pg_catalog.pg_available_extensions e WHERE e.name = %s::name"
_VERSION = """
SELECT FROM pg_catalog.pg_available_extension_versions e WHERE e.name = %s::name AND e.version = %s
"""
_UPDATE = """
SELECT FROM pg_catalog.pg_extension_update_paths(%s::name) u
WHERE u.source = %s AND u.target = %s AND u.path IS NOT NULL
"""
_NO_SETTING = r'unrecognized configuration parameter "(.*)"'
_SETTING = "SELECT WHERE pg_catalog.current_setting(%s, true) IS NOT NULL"
_INVALID = """SELECT FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
WHERE NOT i.indisvalid AND c.relkind = 'i' AND c.relname = %s::name"""
# what an error says is not there, in which words: has the live server got it?
_LACKED = (
    (NO_OBJECT, r'index "(?:.*\.)?(.*)" does not exist', _INVALID),  # no dump holds one
    ("42P01", r'relation "(?:.*\.)?(.*)" does not exist', _INVALID),
    (
        NO_DATABASE,
        r'database "(.*)" does not exist',
        "SELECT FROM pg_catalog.pg_database d WHERE d.datname = %s::name",
    ),
    (NO_OBJECT, _NO_SETTING, _SETTING),
    (
        NO_OBJECT,
        r'replication slot "(.*)" does not exist',
        "SELECT FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = %s::name",
    ),
    (
        NO_OBJECT,
        r'replication origin "(.*)" does not exist',
        "SELECT FROM pg_catalog.pg_replication_origin o WHERE o.roname = %s",
    ),
    (
        "P0001",  # pg_cron's words: it fits one database only, and no copy is called like that
        r"can only create extension in database ((?:(?! \().)*)",
        "SELECT WHERE pg_catalog.current_database() = %s::name",
    ),
    ("0A000", r'extension "(.*)" is not available', _EXTENSION),
    ("58P01", r'extension control file ".*/(.*)\.control"', _EXTENSION),  # before 15
    ("22023", r'extension "(.*)" has no installation .* version "(.*)"', _VERSION),
    (
        "22023",
        r'extension "(.*)" has no update path from version "(.*)" to version "(.*)"',
        _UPDATE,
    ),
)
# what CREATE and ALTER EXTENSION … UPDATE without a version would make of it
_DEFAULT = """
SELECT e.default_version, e.installed_version FROM pg_catalog.pg_available_extensions e
WHERE e.name = %s::name
"""
RIGHTS = """
SELECT r.rolcreatedb OR r.rolsuper, r.rolsuper, current_user::text
FROM pg_catalog.pg_roles r WHERE r.rolname = current_user
"""
FOREIGN = """
SELECT c.relname::text FROM pg_catalog.pg_class c WHERE c.relkind = 'f'
"""
# when a session began is not for everyone to see, so a number that is in use again counts as alive
_ALIVE = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_activity a WHERE a.pid = %s::int4
 AND (a.backend_start IS NULL OR %s::text IS NULL OR {since} = %s::text))
"""
_SINCE = "EXTRACT(epoch FROM a.backend_start)::text"
_MYSELF = f"""
SELECT a.pid, {_SINCE}, session_user::text, current_user::text
FROM pg_catalog.pg_stat_activity a WHERE a.pid = pg_catalog.pg_backend_pid()
"""  # noqa: S608 -- a constant


class Unavailable(Exception):
    """Nothing can be rehearsed here; `objects` are what only the scratch side lacks.

    At level warning where a better informed look might have rehearsed it; `hint` is what helps
    where another place would not.
    """

    def __init__(
        self,
        reason: str,
        objects: Sequence[str] = (),
        *,
        level: str = "info",
        hint: str = "",
        **where: object,
    ) -> None:
        super().__init__(reason)
        self.objects = list(objects)
        self.hint = hint
        self.level = level
        self.where = where


class Full(Unavailable):
    """The server that has the copy has no room for it."""

    sqlstate = DISK_FULL


class NoRight(Unavailable):
    """Owners and rights cannot be had here; without them it may do."""


def server_said(failure: BaseException) -> str:
    """Return the server's own words of a failure: whole, and without the file's name and ours.

    What is told of a failure has no names that may be values of rows.
    """
    found = (each.diag for each in causes(failure) if isinstance(each, psycopg.Error))
    return next((diag.message_primary for diag in found if diag.message_primary), str(failure))


def lacks(session: Session, failure: Failure) -> bool:
    """Tell whether a file fails on a copy for what the live server has: a database, a setting."""
    said, state = server_said(failure), failure.problem.sqlstate
    return any(_there(session, said, *how) for of, *how in _LACKED if of == state)


def has_setting(session: Session, said: str) -> bool:
    """Tell whether an error is, in these words, for want of a setting that the live server has."""
    return _there(session, said, f"^{_NO_SETTING}$", _SETTING)


def _there(session: Session, said: str, words: str, query: str) -> bool:
    """Tell whether the live server has what an error names in such words."""
    try:
        return _has(session, said, words, query)
    except psycopg.errors.InsufficientPrivilege:  # there, and not for this role to read
        return True


def require_same_version(
    live: Session, copy: Session, script: Script, statement: scan.Statement
) -> None:
    """Raise Unavailable where an extension gets a version that is named by the server's files.

    Before such a statement runs, for on the copy it would make another one, and say nothing.
    """
    verb, *what = [*islice(scan.bare(script.text, statement.start, statement.end), 2)]
    if what != ["EXTENSION"] or verb not in {"CREATE", "ALTER"}:
        return
    if (node := parser.parsed(statement.read(script.text))) is None:
        return
    said = node.create_extension_stmt if verb == "CREATE" else node.alter_extension_stmt
    if any(option.def_elem.defname == "new_version" for option in said.options):
        return  # which this server has, or says that it has not
    try:
        there, _ = live.execute(_DEFAULT, [said.extname]).fetchone() or (None, None)
    except psycopg.errors.InsufficientPrivilege:
        return
    here, installed = copy.execute(_DEFAULT, [said.extname]).fetchone() or (None, None)
    if None in {there, here} or there == here or (verb == "CREATE" and installed):
        return
    line, column = scan.position(script.text, statement.start)
    raise Unavailable(
        f"{script.file}:{line} makes the extension {said.extname} what the server has: "
        f"{there} in earnest, {here} on the copy",
        [f"extension {said.extname}"],
        file=script.file,
        line=line,
        column=column,
    )


def names_a_publication(session: Session, failure: Failure) -> bool:
    """Tell whether a failure says that a publication is not there which the live database has."""
    query = "SELECT FROM pg_catalog.pg_publication p WHERE p.pubname = %s::name"
    return _has(session, server_said(failure), r'publication "(.*)" does not exist', query)


def _has(session: Session, said: str, words: str, query: str) -> bool:
    """Ask the live server for what an error names in such words."""
    found = re.search(words, said)
    return found is not None and session.execute(query, found.groups()).fetchone() is not None


@contextmanager
def home(session: Session) -> Iterator[Session]:
    """Yield the session that makes and drops the copy: ours, or one on the scratch server."""
    config = session.config
    if config.rehearse_url is None:
        with _writable(session), _waiting_for_nobody(session):
            yield session
        return
    with (
        elsewhere(config, config.rehearse_url, "the server of PREFLIGHT_REHEARSE_URL") as other,
        _waiting_for_nobody(other),
    ):
        yield other


@contextmanager
def _waiting_for_nobody(session: Session) -> Iterator[None]:
    """Have a session wait for no standby as long as it makes and drops a copy."""
    (said,) = session.execute("SHOW synchronous_commit").fetchone() or ("on",)
    session.execute("SET synchronous_commit = local")
    try:
        yield
    finally:
        if not session.lost:
            with suppress(psycopg.Error):
                session.execute(f"SET synchronous_commit = {said}")


def _alone(home: Session) -> dict[str, str]:
    """Return what keeps a session on the copy from waiting for a standby, where there may be one.

    Whether the copy is elsewhere, too, is nobody's concern, and one that is gone would stop it.
    """
    (names,) = home.execute("SHOW synchronous_standby_names").fetchone() or ("",)
    return {"synchronous_commit": "local"} if names else {}


# by the server's own configuration it may be for want of room
_FROZEN = """
SELECT FROM pg_catalog.pg_settings s WHERE s.name = 'default_transaction_read_only'
 AND s.setting = 'on' AND s.source IN ('global', 'database', 'user', 'database user')
"""


@contextmanager
def _writable(session: Session) -> Iterator[None]:
    """Let a session make and drop databases where the live one, or its role, is frozen."""
    if session.execute(_FROZEN).fetchone() is None:
        yield
        return
    session.execute("SET default_transaction_read_only TO off")
    try:
        yield
    finally:
        if not session.lost:
            with suppress(psycopg.Error):
                session.execute("RESET default_transaction_read_only")


@contextmanager
def elsewhere(config: Config, target: Mapping[str, str], name: str) -> Iterator[Session]:
    """Yield a session on another server that takes changes; raises Unavailable that names it.

    The live server's service is the environment's, too: its password is not for others.
    """
    wait_s = min(config.wait_timeout_s, sessions.BESIDE_S)
    if "service" not in target:
        target = {**sessions.UNSAID, **target}
    there = dataclasses.replace(config, target=target, wait_timeout_s=wait_s)
    with ExitStack() as stack:
        try:
            with logs.muted():
                other = stack.enter_context(sessions.connect(there))
            other.look()
            ready.require_writable(other)
            other.prepare()
        except Failure as failure:
            raise Unavailable(f"{name}: {failure}") from failure
        yield other


def fidelity(live: Session, other: Session) -> str | None:
    """Return in what another server is not as the live one: its major version; None: in nothing."""
    here, there = _major(live), _major(other)
    return None if here == there else f"PostgreSQL {there}, not {here}"


def _major(session: Session) -> int:
    return session.facts.major if session.facts else 0


def require_no_older(live: Session, other: Session, name: str) -> None:
    """Raise Unavailable where another server's major is an older one; say so of a newer one."""
    if not (unlike := fidelity(live, other)):
        return
    here = _major(live)
    if _major(other) < here:
        raise Unavailable(
            f"{name} is {unlike}: an older one may not take what the live server has; name one of "
            f"PostgreSQL {here}",
            level="warning",
        )
    structlog.get_logger().warning(
        "rehearsal.warned",
        reason=f"{name} is {unlike}: what only the newer one takes is not found there; name one of "
        f"PostgreSQL {here} to be sure",
    )


@contextmanager
def made(
    home: Session,
    identity: manifests.Identity,
    live: new_database.Database | None,
    *,
    placed: bool = True,
) -> Iterator[str]:
    """Make the scratch database; its name and its comment tell which session made it.

    `placed`: in the live one's tablespace.
    """
    pid, since, logged_in, us = home.execute(_MYSELF).fetchone() or (0, "", "", "")
    name = f"{_family(identity)}{home.config.run_id}_{pid}"
    try:
        try:
            rules = live.rules if live else None
            place = live.tablespace if live and placed else None
            mark = _mark(name, identity.database, since)
            new_database.create(home, name, rules, place, mark)
            _open(home, name, logged_in, us)
        except psycopg.Error as error:
            if home.lost:
                raise
            raise Unavailable(
                f"no copy can be made: {error.diag.message_primary or error}",
            ) from error
        yield name
    finally:
        _drop(home, name)


def _open(home: Session, name: str, logged_in: str, us: str) -> None:
    """Let the role in that logs in, where it becomes another one at once by its own settings."""
    if logged_in != us:
        here, whom = quoting.name(name), quoting.name(logged_in)
        home.execute(f"GRANT CONNECT ON DATABASE {here} TO {whom}")


def share_rights(session: Session, home: Session, live: new_database.Database, name: str) -> None:
    """Give on the copy whatever rights there are on the live database, but to connect to it.

    They go with it. Raises Unavailable.
    """
    for each in belongings.grants(session, live):
        if each.privilege == "CONNECT":
            continue
        on = f"DATABASE {quoting.name(name)}"
        command = new_database.grant_command(on, each.privilege, each.role, grantable=False)
        try:
            home.execute(command)
        except psycopg.errors.UndefinedObject:  # a role that another server has not
            continue
        except psycopg.Error as error:
            if home.lost:
                raise
            raise Unavailable(
                f"the copy cannot have the rights of the live database: "
                f"{error.diag.message_primary or error}"
            ) from error


class _Standing(NamedTuple):
    """What a role is in a database: as its owner, and by its grants."""

    owns: bool = False
    enters: bool = False
    makes: bool = False
    makes_temporary: bool = False


_STANDING = """
SELECT pg_catalog.pg_has_role(%(role)s::name, d.datdba, 'USAGE'),
 pg_catalog.has_database_privilege(%(role)s::name, d.oid, 'CONNECT'),
 pg_catalog.has_database_privilege(%(role)s::name, d.oid, 'CREATE'),
 pg_catalog.has_database_privilege(%(role)s::name, d.oid, 'TEMPORARY')
FROM pg_catalog.pg_database d WHERE d.datname = %(name)s::name
"""


def kept_back(session: Session, home: Session, name: str, role: str, said: str) -> str | None:
    """Say what the copy alone keeps from a role whose right was refused in these words."""
    live, copy = (
        _standing(session, session.connection.info.dbname, role),
        _standing(home, name, role),
    )
    if live.owns and not copy.owns:
        return f"the copy does not belong to whom the database of {role} does"
    if live.makes_temporary and not copy.makes_temporary and "temporary tables" in said:
        return f"{role} has no TEMPORARY on the copy"
    if live.makes and "permission denied for database" in said:  # live it is not for want of that
        if not copy.makes:
            return f"{role} has no CREATE on the copy"
        if live.enters and not copy.enters:
            return f"nobody lets {role} into the copy"
    return None


def _standing(session: Session, name: str, role: str) -> _Standing:
    found = session.execute(_STANDING, {"role": role, "name": name}).fetchone()
    return _Standing(*found) if found else _Standing()


def make_anew(home: Session, name: str) -> None:
    """Drop the scratch database and make it again as it was made; raises psycopg.Error."""
    _, _, logged_in, us = home.execute(_MYSELF).fetchone() or (0, "", "", "")
    new_database.make_anew(home, name)
    _open(home, name, logged_in, us)


def _family(identity: manifests.Identity) -> str:
    """Return how the names of all copies of one database begin."""
    whose = zlib.crc32(f"{identity.system}/{identity.database}".encode())
    return f"{PREFIX}{whose:08x}_"


def _mark(name: str, database: str, since: str) -> str:
    """Return the comment that says what a scratch database is."""
    run_id = name.split("_")[-2]
    return f"{MARK}{database}, of run {run_id}, by a session of {since}"


def sweep(home: Session, identity: manifests.Identity) -> None:
    """Drop what killed runs left of this database's copies: those whose session is gone."""
    family, dead = _family(identity), []
    for found in new_database.like(home, family.replace("_", r"\_") + "%"):
        name, said = found.name, found.comment or ""
        pid, since = name.rpartition("_")[2], said.rpartition(" ")[2] or None
        ours = found.newborn or said == _mark(name, identity.database, str(since))
        if name.count("_") != family.count("_") + 1 or not pid.isdecimal() or not ours:
            continue
        query = _ALIVE.format(since=_SINCE)
        (alive,) = home.execute(query, [int(pid), since, since]).fetchone() or (True,)
        if not alive:
            dead.append(name)
    if dead:
        with _writable(home):
            for name in dead:
                _drop(home, name)


def _drop(home: Session, name: str) -> None:
    """Drop a scratch database; what cannot be dropped is named, and the next run tries again."""
    try:
        _drop_settled(home, name)
    except psycopg.Error as error:
        if not home.lost and new_database.described(home, name):
            structlog.get_logger().warning(
                "rehearsal.warned",
                reason=f"the scratch database {name} could not be dropped: "
                f"{error.diag.message_primary or error}",
            )


def _drop_settled(home: Session, name: str) -> None:
    """Drop a scratch database, with the prepared transactions that keep it; psycopg.Error."""
    try:
        new_database.drop(home, name)
    except psycopg.errors.ObjectInUse:
        with suppress(Failure), sessions.beside(home, name) as copy:
            prepared.roll_back(copy)
        new_database.drop(home, name)


@contextmanager
def reached(
    home: Session, name: str, settings: Mapping[str, str], config: Config | None = None
) -> Iterator[Session]:
    """Yield a session on the copy; where pg_hba.conf or a limit lets none in, Unavailable.

    `config` is of whom it is for, where that is somebody else.
    """
    with ExitStack() as stack:
        try:
            more = {**_alone(home), **settings}
            copy = stack.enter_context(sessions.beside(home, name, more, config))
        except Failure as failure:
            raise Unavailable(f"the copy cannot be connected to: {failure}") from failure
        copy.copy = True
        yield copy


def settings_for(
    session: Session, live: new_database.Database | None
) -> tuple[new_database.Setting, ...]:
    """Return the live database's settings, for every role and for ours, but what makes noise."""
    (us,) = session.execute("SELECT session_user::text").fetchone() or ("",)
    return tuple(
        each
        for each in (new_database.settings(session, live) if live else ())
        if each.role in {None, us} and each.name not in new_database.QUIET
    )


def apply_settings(home: Session, settings: Sequence[new_database.Setting], name: str) -> None:
    """Give the copy settings of the live database; raises Unavailable.

    It is without what is logged and counted of it where the role may not set that.
    """
    for each in settings:
        try:
            command = each.command(quoting.name(name))
            # its own settings a role may change only as itself
            home.execute(f"SET ROLE NONE; {command}; RESET ROLE" if each.role else command)
        except psycopg.Error as error:
            if home.lost:
                raise
            home.execute("RESET ROLE")
            if each.looks_on and error.sqlstate == DENIED:
                continue
            raise Unavailable(
                f"the copy cannot have the setting {each.name} of the live "
                f"database: {error.diag.message_primary or error}"
            ) from error
