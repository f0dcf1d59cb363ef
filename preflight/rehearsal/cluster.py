"""What a database has around it: the roles, rights, extensions and settings of its server.

A copy on another server shows what production would do only if all of it is there, too. It is read
from the live server's catalogs, which every role may read, and made on a throwaway server, where we
are superuser. No password is read or made.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg

from preflight.backup import new_database
from preflight.base import logs, quoting
from preflight.base.config import completed
from preflight.base.errors import Failure
from preflight.rehearsal import local
from preflight.server import sessions

if TYPE_CHECKING:
    from preflight.base.config import Config
    from preflight.rehearsal.local import Server
    from preflight.server.sessions import Session

# Limits that a file can run into, and what its statements are read with. No more connections than
# a copy needs, but as many locks as the live server has for all of its own.
_SETTINGS = """
SELECT * FROM (
 SELECT n.n, coalesce(s.reset_val, pg_catalog.current_setting(n.n, true)) AS value
 FROM pg_catalog.unnest(%s::text[]) n (n) LEFT JOIN pg_catalog.pg_settings s ON s.name = n.n
) found WHERE found.value IS NOT NULL
"""  # pg_settings has none of a language that no session has used yet
LIMITS = (
    "max_connections", "max_locks_per_transaction", "max_prepared_transactions",
    "max_pred_locks_per_transaction",
)  # fmt: skip
MEANING = (
    "TimeZone", "DateStyle", "IntervalStyle", "bytea_output", "extra_float_digits", "xmloption",
    "xmlbinary", "array_nulls", "transform_null_equals", "backslash_quote", "lo_compat_privileges",
    "default_text_search_config", "default_toast_compression",
    "createrole_self_grant", "password_encryption", "search_path", "check_function_bodies",
    "row_security", "max_stack_depth", "plpgsql.variable_conflict", "plpgsql.extra_errors",
    "track_commit_timestamp",
)  # fmt: skip
COLLATION = "collation"  # text sorts as in C, for want of the live database's locale
LOCALES = ("lc_monetary", "lc_numeric", "lc_time")
# to PostgreSQL money, numbers and days look the same in these
_LIKE_C = re.compile(r"(?:C|POSIX|en_US)(?:\..*)?|")
WAL = ("wal_level", "max_replication_slots")
MOST_CONNECTIONS = 100
ROOMY = 20  # connections: with fewer a database would not let in all who work on a copy
# what loads a library that is not here
LOADS = {"session_preload_libraries", "local_preload_libraries", "shared_preload_libraries"}

# A superuser's rights go with what it owns (a view, a function of its definer, an event trigger),
# and with those who may become it.
_ROLES = """
WITH us AS (
 SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname IN (session_user, current_user)
), owners AS (
 SELECT d.refobjid AS oid FROM pg_catalog.pg_shdepend d
 WHERE d.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass AND d.deptype = 'o' AND d.dbid = (
  SELECT b.oid FROM pg_catalog.pg_database b WHERE b.datname = pg_catalog.current_database())
 UNION SELECT b.datdba FROM pg_catalog.pg_database b
  WHERE b.datname = pg_catalog.current_database()
 UNION SELECT 10::oid
)
SELECT r.rolname::text AS name,
 r.rolsuper AND (r.oid IN (SELECT u.oid FROM us u) OR r.oid IN (SELECT o.oid FROM owners o)
  OR EXISTS (SELECT FROM us u WHERE pg_catalog.pg_has_role(u.oid, r.oid, 'MEMBER'))) AS super,
 r.rolinherit AS inherit, r.rolcreaterole AS createrole, r.rolcreatedb AS createdb,
 r.rolreplication AS replication, r.rolbypassrls AS bypassrls,
 r.oid IN (SELECT u.oid FROM us u) AS ours, coalesce(r.rolconfig, '{}') AS settings,
 r.rolcanlogin AS login, r.rolconnlimit AS connection_limit,
 CASE WHEN pg_catalog.isfinite(r.rolvaliduntil) THEN pg_catalog.to_char(
   pg_catalog.timezone('UTC', r.rolvaliduntil), 'YYYY-MM-DD HH24:MI:SS.US+00')
  ELSE r.rolvaliduntil::text END AS valid_until,
 pg_catalog.shobj_description(r.oid, 'pg_authid') AS comment
FROM pg_catalog.pg_roles r WHERE r.rolname::text NOT LIKE 'pg\\_%' ORDER BY r.oid
"""
_SET = """
INSERT INTO pg_catalog.pg_db_role_setting (setdatabase, setrole, setconfig)
SELECT 0::oid, r.oid, %s::text[] FROM pg_catalog.pg_roles r WHERE r.rolname = %s::name
"""
_MEMBERSHIPS = """
SELECT r.rolname::text, m.rolname::text, a.admin_option{options}
FROM pg_catalog.pg_auth_members a JOIN pg_catalog.pg_roles r ON r.oid = a.roleid
JOIN pg_catalog.pg_roles m ON m.oid = a.member WHERE m.rolname::text NOT LIKE 'pg\\_%'
ORDER BY 1, 2, a.grantor
"""
_OPTIONS = """, a.inherit_option, a.set_option,
 CASE WHEN a.grantor <> 10::oid THEN pg_catalog.pg_get_userbyid(a.grantor)::text END
"""
OPTIONS_SINCE, STRATEGIES_SINCE, BUILTIN_SINCE = 16, 15, 17
_RIGHTS = """
SELECT {kind}, o.{name}::text, CASE WHEN a.grantee <> 0::oid
 THEN pg_catalog.pg_get_userbyid(a.grantee)::text END, a.privilege_type, a.is_grantable
FROM pg_catalog.{catalog} o, pg_catalog.aclexplode(o.{acl}) a WHERE {which}
"""
PARAMETERS_SINCE = 15
_EXTENSIONS = """
SELECT e.extname::text AS name, e.extversion AS version, n.nspname::text AS schema,
 pg_catalog.pg_get_userbyid(n.nspowner)::text AS schema_owner,
 pg_catalog.pg_get_userbyid(e.extowner)::text AS owner,
 EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.refobjid = e.oid AND d.objid = n.oid
  AND d.classid = 'pg_catalog.pg_namespace'::pg_catalog.regclass AND d.deptype = 'e') AS its_own
FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace
WHERE e.oid >= 16384::oid ORDER BY e.oid
"""
# what the server's first role owns, as that of a copy will, is not among them; nor is what only a
# superuser may be given
_OWNED = """
SELECT e.extname::text, i.type, i.identity, pg_catalog.pg_get_userbyid(s.refobjid)::text
FROM pg_catalog.pg_extension e
JOIN pg_catalog.pg_depend d ON d.refobjid = e.oid AND d.deptype = 'e'
 AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass
JOIN pg_catalog.pg_shdepend s ON s.classid = d.classid AND s.objid = d.objid AND s.deptype = 'o'
 AND s.dbid = (
 SELECT b.oid FROM pg_catalog.pg_database b WHERE b.datname = pg_catalog.current_database()),
 pg_catalog.pg_identify_object(d.classid, d.objid, 0) i
WHERE e.oid >= 16384::oid AND i.type NOT IN ('foreign-data wrapper', 'event trigger')
ORDER BY i.type = 'sequence', i.type, i.identity
"""
_MEMBERS = """
SELECT i.type, i.identity FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_depend d
 ON d.refobjid = e.oid AND d.deptype = 'e'
 AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass,
 pg_catalog.pg_identify_object(d.classid, d.objid, 0) i WHERE e.extname = %s::name
"""
# where ALTER calls a kind of object otherwise
_KINDS = {"statistics object": "statistics"} | dict.fromkeys(
    ("function", "aggregate", "procedure"), "routine"
)
_TABLESPACES = """
SELECT t.spcname::text, pg_catalog.pg_get_userbyid(t.spcowner)::text,
 coalesce(t.spcoptions, '{}') FROM pg_catalog.pg_tablespace t
WHERE t.spcname::text NOT LIKE 'pg\\_%' ORDER BY t.oid
"""


@dataclass(frozen=True, slots=True)
class Role:
    """A role of the live server; `ours` is who the run logs in as, or becomes."""

    name: str
    super: bool  # also: but only where a copy needs it
    inherit: bool
    createrole: bool
    createdb: bool
    replication: bool
    bypassrls: bool
    ours: bool
    settings: Sequence[str] = ()
    login: bool = False
    connection_limit: int = -1
    valid_until: str | None = None
    comment: str | None = None


@dataclass(frozen=True, slots=True)
class Membership:
    """Who is a member of which role; before PostgreSQL 16 there is no option but ADMIN.

    From then on only its grantor can end it, or who may act as he; none: the server's first role.
    """

    role: str
    member: str
    admin: bool
    inherit: bool | None = None
    set: bool | None = None
    grantor: str | None = None


@dataclass(frozen=True, slots=True)
class Right:
    """A right on the database, a tablespace or a parameter; nobody's name is PUBLIC."""

    kind: str
    name: str
    grantee: str | None
    privilege: str
    grantable: bool


@dataclass(frozen=True, slots=True)
class Extension:
    """An extension of the live database."""

    name: str
    version: str
    schema: str
    schema_owner: str
    owner: str
    its_own: bool  # the schema belongs to the extension, which makes it
    owned: Sequence[tuple[str, str, str]] = ()  # members: kind, name, and whose they are


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is around the live database."""

    database: new_database.Database
    database_settings: Sequence[new_database.Setting]
    settings: Mapping[str, str]  # of the server
    wal: Mapping[str, str]  # settings that cost WAL, for files that ask for it
    locales: Mapping[str, str]  # of money, numbers and days, that this system may not have
    roles: Sequence[Role]
    memberships: Sequence[Membership]
    rights: Sequence[Right]
    extensions: Sequence[Extension]
    tablespaces: Sequence[tuple[str, str, Sequence[str]]]


@dataclass(slots=True)
class Made:
    """What was made, and in what it is not as the live one."""

    database: str
    fidelity: list[str] = field(default_factory=list)  # such as `collation`
    lacking: dict[str, str] = field(default_factory=dict)  # what this side lacks, and why
    schemas: list[str] = field(default_factory=list)  # made for extensions: in the archive, too


# reading the live one


def look(session: Session) -> Surroundings:
    """Read what is around the live database that a session is on; needs no right but to connect."""
    major = session.facts.major if session.facts else 0
    (name,) = session.execute("SELECT pg_catalog.current_database()::text").fetchone() or ("",)
    database = new_database.described(session, name)
    if database is None:
        raise local.Broken(f"the live database is not called {name!r} any more")
    options = _OPTIONS if major >= OPTIONS_SINCE else ""
    members = session.execute(_MEMBERSHIPS.format(options=options)).fetchall()
    # what ALTER ROLE ALL has set; locales are asked for as they count
    anybody = new_database.settings(session, dataclasses.replace(database, oid=0))
    everybodys = [each for each in anybody if each.role is None and each.name[:3] != "lc_"]
    return Surroundings(
        database,
        [*everybodys, *new_database.settings(session, database)],
        *_settings(session),
        [Role(**row) for row in _rows(session, _ROLES)],
        [Membership(*row) for row in members],
        [Right(*row) for row in session.execute(_rights_query(major)).fetchall()],
        _extensions(session),
        session.execute(_TABLESPACES).fetchall(),
    )


def _extensions(session: Session) -> list[Extension]:
    owned: dict[str, list[tuple[str, str, str]]] = {}
    for name, *member in session.execute(_OWNED).fetchall():
        owned.setdefault(name, []).append(tuple(member))
    rows = _rows(session, _EXTENSIONS)
    return [Extension(**row, owned=owned.get(row["name"], ())) for row in rows]


def _rows(session: Session, query: str) -> list[dict[str, Any]]:
    cursor = session.execute(query)
    names = [column.name for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _rights_query(major: int) -> str:
    current = "o.datname = pg_catalog.current_database()"
    sources = [
        ("DATABASE", "datname", "pg_database", "datacl", current),
        ("TABLESPACE", "spcname", "pg_tablespace", "spcacl", "o.spcname::text NOT LIKE 'pg\\_%'"),
    ]
    if major >= PARAMETERS_SINCE:
        sources.append(("PARAMETER", "parname", "pg_parameter_acl", "paracl", "true"))
    parts = [
        _RIGHTS.format(kind=f"'{kind}'", name=name, catalog=catalog, acl=acl, which=which)
        for kind, name, catalog, acl, which in sources
    ]
    return " UNION ALL ".join(parts)


def _settings(session: Session) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    found = dict(session.execute(_SETTINGS, [[*LIMITS, *MEANING, *WAL, *LOCALES]]).fetchall())
    wal, locales = ({name: found[name] for name in names if name in found}
                    for names in (WAL, LOCALES))  # fmt: skip
    return server_settings(found), wal, locales


def server_settings(live: Mapping[str, str]) -> dict[str, str]:
    """Return the settings for a server of few connections and all the locks of the live one."""
    made = {name: value for name, value in live.items() if name in MEANING}
    limits = {name: int(live[name]) for name in LIMITS if name in live}
    connections = limits.get("max_connections", MOST_CONNECTIONS)
    prepared = limits.get("max_prepared_transactions", 0)
    few = min(connections, MOST_CONNECTIONS)
    for name in ("max_locks_per_transaction", "max_pred_locks_per_transaction"):
        if name in limits:
            made[name] = str(-(-limits[name] * (connections + prepared) // (few + prepared)))
    made |= {"max_connections": str(few), "max_prepared_transactions": str(prepared)}
    if "max_stack_depth" in made:
        made["max_stack_depth"] += "kB"
    return made


# making it


@contextmanager
def connected(
    config: Config, where: Server, database: str = local.HOME, role: str = local.SUPERUSER
) -> Iterator[Session]:
    """Yield a session on a throwaway server; raises local.Broken when that is no more."""
    led = led_to(config, where, database, role)
    with ExitStack() as stack:
        try:
            with logs.muted():
                session = stack.enter_context(sessions.connect(led))
            session.look()
            session.prepare()
        except Failure as failure:
            raise where.death() or local.Broken(
                f"the throwaway server lets nobody in: {failure}"
            ) from failure
        yield session


def led_to(
    config: Config, where: Server, database: str = local.HOME, role: str = local.SUPERUSER
) -> Config:
    """Return the run's configuration led to a throwaway server, and nowhere else."""
    target = where.target(database, role)
    if role != local.SUPERUSER:  # as on the live server; a `-c role=…` is not for who makes roles
        target["options"] = config.target.get("options", "")
    service = config.target.get("service")
    asked = completed({"service": service} if service else {})
    lenient = sessions.LENIENT.items()
    target |= {name: value for name, value in lenient if asked.get(name, value) != value}
    child_env = {name: value for name, value in config.child_env.items() if name[:2] != "PG"}
    return dataclasses.replace(
        config, target=target, child_env=child_env, wait_timeout_s=sessions.BESIDE_S
    )


def make(home: Session, where: Server, live: Surroundings) -> Made:
    """Make roles, tablespaces, the database with its rights and settings, and its extensions.

    `home` is a superuser's session on the throwaway server. The database gets the live one's name.
    """
    make_roles(home, live.roles, live.memberships)
    _make_tablespaces(home, where, live)
    return make_database(home, live)


def make_database(home: Session, live: Surroundings) -> Made:
    """Make the database anew, with its rights and settings, and its extensions."""
    made = Made(live.database.name)
    if not _create(home, live):
        made.fidelity.append(COLLATION)
    made.fidelity += _unspoken(home, live.locales)
    _grant(home, live.rights)
    settle(home, live, made, late=False)
    if live.database.comment:
        new_database.say(home, made.database, live.database.comment)
    if (limit := live.database.connection_limit) >= ROOMY:
        home.execute(f"ALTER DATABASE {quoting.name(made.database)} CONNECTION LIMIT {limit}")
    if live.extensions:
        with sessions.beside(home, made.database, new_database.filling(home)) as inside:
            _make_extensions(inside, live.extensions, made)
    return made


def make_roles(
    home: Session, roles: Sequence[Role], memberships: Sequence[Membership] = ()
) -> None:
    """Make roles without a password; whoever may log in, the server lets nobody in but us."""
    with sessions.transaction(home):
        known = {name for (name,) in home.execute("SELECT rolname::text FROM pg_catalog.pg_roles")}
        for role in roles:
            if role.name not in known:
                home.execute(role_command(role))
            if role.comment:
                said = f"{quoting.name(role.name)} IS {quoting.literal(role.comment)}"
                home.execute(f"COMMENT ON ROLE {said}")
            settings = [each for each in role.settings if each.partition("=")[0] not in LOADS]
            if settings and not role.ours:  # what this server does not know is told to him alone
                home.execute(_SET, [settings, role.name])
            for setting in settings if role.ours else ():
                home.execute(
                    f"ALTER ROLE {quoting.name(role.name)} {new_database.assignment(setting)}"
                )
        known |= {role.name for role in roles}
        for each in in_order(memberships):
            if {each.role, each.member, each.grantor} - {None} <= known:
                home.execute(membership_command(each))


def role_command(role: Role) -> str:
    """Return the CREATE ROLE for a role as it is, but without its password.

    Limits of ours would keep us out: we connect more often than in earnest.
    """
    said = {
        "SUPERUSER": role.super,
        "INHERIT": role.inherit,
        "CREATEROLE": role.createrole,
        "CREATEDB": role.createdb,
        "REPLICATION": role.replication,
        "BYPASSRLS": role.bypassrls,
        "LOGIN": role.ours or role.login,
    }
    options = " ".join(name if on else f"NO{name}" for name, on in said.items())
    if not role.ours and role.connection_limit >= 0:
        options += f" CONNECTION LIMIT {role.connection_limit}"
    if not role.ours and role.valid_until:
        options += f" VALID UNTIL {quoting.literal(role.valid_until)}"
    return f"CREATE ROLE {quoting.name(role.name)} {options}"


def in_order(memberships: Sequence[Membership]) -> list[Membership]:
    """Return memberships so that each stands behind the one by which its grantor may give it.

    What nobody may give, as far as is known, comes last, and from the server's first role.
    """
    found, left, may = list[Membership](), list(memberships), set[tuple[str, str]]()
    while left:
        ready, later = list[Membership](), list[Membership]()
        for each in left:
            given = not each.grantor or (each.role, each.grantor) in may
            (ready if given else later).append(each)
        if not ready:
            return [*found, *(dataclasses.replace(each, grantor=None) for each in left)]
        may |= {(each.role, each.member) for each in ready if each.admin}
        found += ready
        left = later
    return found


def membership_command(each: Membership) -> str:
    """Return the GRANT that makes a role a member of another."""
    options = {"ADMIN": each.admin, "INHERIT": each.inherit, "SET": each.set}
    if each.inherit is None:
        said = " WITH ADMIN OPTION" if each.admin else ""
    else:
        said = " WITH " + ", ".join(
            f"{name} {'TRUE' if on else 'FALSE'}" for name, on in options.items()
        )
    if each.grantor:
        said += f" GRANTED BY {quoting.name(each.grantor)}"
    return f"GRANT {quoting.name(each.role)} TO {quoting.name(each.member)}{said}"


def _make_tablespaces(home: Session, where: Server, live: Surroundings) -> None:
    for number, (name, owner, options) in enumerate(live.tablespaces):
        folder = where.folder(f"tablespace-{number}")
        command = f"CREATE TABLESPACE {quoting.name(name)} OWNER {quoting.name(owner)}"
        home.execute(f"{command} LOCATION {quoting.literal(str(folder))}")
        for option in options:
            said, _, value = option.partition("=")
            home.execute(
                f"ALTER TABLESPACE {quoting.name(name)} SET ({said} = {quoting.literal(value)})"
            )


def _create(home: Session, live: Surroundings) -> bool:
    """Create the database; return False when it sorts as C does and not as the live one."""
    name, owner = quoting.name(live.database.name), quoting.name(live.database.owner)
    home.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")  # initdb's own `postgres`
    rules, major = live.database.rules, home.facts.major if home.facts else 0
    alike, others = [rules], [new_database.TextRules(rules.encoding, "C", "C")]
    if rules.provider in new_database.OWN_LOCALE:  # the system's locale matters little there
        alike.append(dataclasses.replace(rules, lc_collate="C", lc_ctype="C"))
    if rules.encoding == "UTF8":  # then it knows at least what is a letter
        others.insert(0, _letters(major))
    tries = [*alike, *others]
    # where it lies decides what pg_default means in it, and a table may name that
    place = f" TABLESPACE {quoting.name(live.database.tablespace)}"
    # else each page goes through the WAL: that spares a checkpoint, which costs nothing here
    copied = " STRATEGY FILE_COPY" if major >= STRATEGIES_SINCE else ""
    for number, each in enumerate(tries, 1):
        command = f"CREATE DATABASE {name} TEMPLATE template0{copied} OWNER {owner}{place}"
        try:
            home.execute(command + each.options())
        except psycopg.Error:
            if home.lost or number == len(tries):
                raise
        else:
            return number <= len(alike)
    raise AssertionError  # the last try returns or raises


def _unspoken(home: Session, locales: Mapping[str, str]) -> list[str]:
    """Give every session the live server's locales; return which are not here, and matter."""
    missing = []
    for name, value in locales.items():
        try:
            home.execute(f"ALTER ROLE ALL SET {name} TO {quoting.literal(value)}")
        except psycopg.Error:
            if home.lost:
                raise
            if not _LIKE_C.fullmatch(value):
                missing.append(name)
    return missing


def _letters(major: int) -> new_database.TextRules:
    """Return rules that sort as C does and know every letter; before 17 the system has to."""
    if major >= BUILTIN_SINCE:
        return new_database.TextRules("UTF8", "C", "C", "b", "C.UTF-8")
    return new_database.TextRules("UTF8", "C", "C.UTF-8")


def _grant(home: Session, rights: Sequence[Right]) -> None:
    """Give the rights that stand in the catalogs, and no others: where one stands, all do."""
    for kind, name in dict.fromkeys((right.kind, right.name) for right in rights):
        if kind != "PARAMETER":
            home.execute(f"REVOKE ALL ON {kind} {quoting.name(name)} FROM PUBLIC")
    for right in rights:
        parts = right.name.split(".") if right.kind == "PARAMETER" else [right.name]
        on = f"{right.kind} {'.'.join(map(quoting.name, parts))}"
        command = new_database.grant_command(
            on, right.privilege, right.grantee, grantable=right.grantable
        )
        try:
            home.execute(command)
        except psycopg.errors.UndefinedObject:  # a role dropped meanwhile, a provider's own
            continue


def settle(home: Session, live: Surroundings, made: Made, *, late: bool) -> None:
    """Give the database its settings, before or after it is filled.

    What this server does not know is named.
    """
    for each in live.database_settings:
        if each.name in LOADS or each.late != late:
            continue
        try:
            home.execute(each.command(quoting.name(made.database)))
        except psycopg.Error as error:
            if home.lost:
                raise
            made.lacking[f"setting {each.name}"] = str(error.diag.message_primary or error)


def _make_extensions(inside: Session, extensions: Sequence[Extension], made: Made) -> None:
    """Create the extensions at the live versions; those that need another come after it."""
    query = "SELECT e.extname::text, e.extversion FROM pg_catalog.pg_extension e"
    there = inside.execute(query).fetchall()  # a new database has plpgsql
    left = [each for each in extensions if (each.name, each.version) not in there]
    while left:
        failed = []
        for extension in left:
            if why := _extended(inside, extension, made):
                made.lacking[f"extension {extension.name}"] = why
                failed.append(extension)
            else:
                made.lacking.pop(f"extension {extension.name}", None)
        if len(failed) == len(left):
            return
        left = failed


def _extended(inside: Session, extension: Extension, made: Made) -> str | None:
    """Create one extension; return why this server cannot."""
    name, schema = quoting.name(extension.name), quoting.name(extension.schema)
    try:
        with sessions.transaction(inside):
            if not extension.its_own:
                before = inside.execute(
                    "SELECT FROM pg_catalog.pg_namespace n WHERE n.nspname = %s",
                    [extension.schema],
                ).fetchone()
                if before is None:
                    owner = quoting.name(extension.schema_owner)
                    inside.execute(f"CREATE SCHEMA {schema} AUTHORIZATION {owner}")
            inside.execute(
                f"CREATE EXTENSION {name} VERSION {quoting.literal(extension.version)}"
                + ("" if extension.its_own else f" SCHEMA {schema}")
            )
            # there is no ALTER EXTENSION … OWNER, and its owner may update it
            inside.execute(
                "UPDATE pg_catalog.pg_extension SET extowner = r.oid FROM pg_catalog.pg_roles r"
                " WHERE r.rolname = %s AND extname = %s",
                [extension.owner, extension.name],
            )
            _give(inside, extension)
    except psycopg.Error as error:
        if inside.lost:
            raise
        return f"{extension.version}: {error.diag.message_primary or error}"
    if not extension.its_own and before is None:
        made.schemas.append(extension.schema)
    return None


def _give(inside: Session, extension: Extension) -> None:
    """Give members to whom they belong on the live server, where who made it owns them."""
    if not extension.owned:
        return
    there = set(inside.execute(_MEMBERS, [extension.name]).fetchall())
    for kind, name, owner in extension.owned:
        if (kind, name) in there:
            whom = quoting.name(owner)
            inside.execute(f"ALTER {_KINDS.get(kind, kind)} {name} OWNER TO {whom}")
