"""What belongs to a database itself and is in no archive's objects: read, remembered, given.

Owner, text rules, tablespace, connection limit, comment, settings, rights on the database, and
whether others may be made from it. A backup's manifest carries them for the day when the live
database is gone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg

from preflight.backup import new_database
from preflight.backup.new_database import Setting, TextRules
from preflight.base import quoting

if TYPE_CHECKING:
    from preflight.server.sessions import Session

PRIVILEGES = ("CREATE", "TEMPORARY", "CONNECT")
NEVER = 2**31  # no connection limit is so high
_GRANTS = """
SELECT CASE WHEN a.grantee <> 0::oid THEN pg_catalog.pg_get_userbyid(a.grantee)::text END,
 a.privilege_type, a.is_grantable
FROM pg_catalog.pg_database d, pg_catalog.aclexplode(
 coalesce(d.datacl, pg_catalog.acldefault('d', d.datdba))) a
WHERE d.oid = %s::oid ORDER BY 1, 2, 3
"""
_SUBSCRIPTIONS = """
SELECT s.subname::text FROM pg_catalog.pg_subscription s WHERE s.subdbid = %s::oid ORDER BY 1
"""
_TABLESPACE = """
SELECT pg_catalog.has_tablespace_privilege(t.oid, 'CREATE') OR t.oid = (
 SELECT d.dattablespace FROM pg_catalog.pg_database d WHERE d.datname = 'template0')
FROM pg_catalog.pg_tablespace t WHERE t.spcname = %s::name
"""


@dataclass(frozen=True, slots=True)
class Grant:
    """A right on the database; PUBLIC is None."""

    role: str | None
    privilege: str
    grantable: bool


@dataclass(frozen=True, slots=True)
class Command:
    """One command that gives a database something, and what to call it when it is refused.

    `early`: before it is filled, for what it is filled with is read by it. `parameter`: what is
    set, and for which `role` (None: everybody, so that no right but to that can be lacking).
    """

    what: str
    sql: str
    early: bool = False
    parameter: str | None = None
    role: str | None = None


class Refused(NamedTuple):
    """What the server does not give and why, its SQLSTATE, and on what a right is lacking.

    A parameter, or a role whose setting it is. None: it was not asked, or it is another thing.
    """

    text: str
    sqlstate: str | None = None
    parameter: str | None = None
    role: str | None = None


@dataclass(frozen=True, slots=True)
class Belongings:
    """All of it; the names are the keys in a manifest. None: the server's version has none."""

    owner: str
    encoding: str
    lc_collate: str
    lc_ctype: str
    locale_provider: str | None
    locale: str | None
    icu_rules: str | None
    tablespace: str | None
    connection_limit: int
    comment: str | None
    settings: tuple[Setting, ...]
    grants: tuple[Grant, ...]
    subscriptions: tuple[str, ...] = ()  # named for whoever restores it: they are left out
    is_template: bool = False

    def told(self) -> dict[str, Any]:
        """Return it as a manifest holds it."""
        return dataclasses.asdict(self)

    def rules(self, major: int) -> TextRules:
        """Return the text rules that CREATE DATABASE is to follow on a server of a version."""
        provider = self.locale_provider or "c"
        rules = TextRules(self.encoding, self.lc_collate, self.lc_ctype)
        if provider == "c" and major < new_database.KNOWS_PROVIDERS:
            return rules
        return dataclasses.replace(
            rules, provider=provider, locale=self.locale, icu_rules=self.icu_rules
        )

    def commands(self, name: str, without: Collection[str] = ()) -> list[Command]:
        """Return what gives a new database all but its text rules, tablespace and comment."""
        here = quoting.name(name)
        found = []
        for each in () if "settings" in without else self.settings:
            whose = f" of role {each.role}" if each.role else ""
            command = each.command(here)
            what = f"setting {each.name}{whose}"
            found.append(Command(what, command, not each.late, each.name, each.role))
        limit = f"ALTER DATABASE {here} CONNECTION LIMIT {self.connection_limit}"
        found.append(Command("connection limit", limit))
        if self.is_template and "settings" not in without:
            found.append(Command("template", f"ALTER DATABASE {here} IS_TEMPLATE true"))
        return found if "grants" in without else [*found, *self._rights(here)]

    def _rights(self, here: str) -> list[Command]:
        """Return the owner first: he takes over what the one before him was granted."""
        owner = quoting.name(self.owner)
        found = [Command(f"owner {self.owner}", f"ALTER DATABASE {here} OWNER TO {owner}")]
        for each in self.grants:
            if each.role == self.owner:
                continue
            command = new_database.grant_command(
                f"DATABASE {here}", each.privilege, each.role, grantable=each.grantable
            )
            found.append(Command(f"grant of {each.privilege} to {each.role or 'PUBLIC'}", command))
        kept = {each.privilege for each in self.grants if each.role == self.owner}
        found += [
            Command(
                f"revoke of {each} from {self.owner}",
                f"REVOKE {each} ON DATABASE {here} FROM {owner}",
            )
            for each in PRIVILEGES
            if each not in kept
        ]
        return found

    @property
    def settled(self) -> list[str]:
        """What `--without settings` leaves out, by its names; the values may be secrets."""
        found = [f"{each.name} of role {each.role}" for each in self.settings if each.role]
        found += [each.name for each in self.settings if not each.role]
        return sorted(found, key=str.lower) + ["IS_TEMPLATE"] * self.is_template

    def roles(self, without: Collection[str] = ()) -> dict[str, set[str]]:
        """Return the roles that each part of it names, of those that are not left out."""
        named = {
            "grants": {self.owner, *(each.role for each in self.grants if each.role)},
            "settings": {each.role for each in self.settings if each.role},
        }
        return {part: roles for part, roles in named.items() if part not in without}

    def differing(self, other: Belongings) -> list[str]:
        """Name the keys that differ but for the comment."""
        names = [each.name for each in dataclasses.fields(self) if each.name != "comment"]
        return [name for name in names if getattr(self, name) != getattr(other, name)]


def read(session: Session, name: str) -> Belongings | None:
    """Return what belongs to a database; None when there is none of that name."""
    found = new_database.described(session, name)
    if found is None:
        return None
    subscriptions = session.execute(_SUBSCRIPTIONS, [found.oid]).fetchall()
    rules = found.rules
    return Belongings(
        owner=found.owner,
        encoding=rules.encoding,
        lc_collate=rules.lc_collate,
        lc_ctype=rules.lc_ctype,
        locale_provider=rules.provider,
        locale=rules.locale,
        icu_rules=rules.icu_rules,
        tablespace=found.tablespace,
        connection_limit=found.connection_limit,
        comment=found.comment,
        settings=tuple(sorted(new_database.settings(session, found), key=repr)),
        grants=grants(session, found),
        subscriptions=tuple(name for (name,) in subscriptions),
        is_template=found.template,
    )


def grants(session: Session, found: new_database.Database) -> tuple[Grant, ...]:
    """Return who has which right on a database."""
    return tuple(Grant(*each) for each in session.execute(_GRANTS, [found.oid]).fetchall())


def of_manifest(said: object) -> Belongings | None:
    """Return what a manifest says; None when it says nothing. Raises ValueError: not as it should.

    What is not known is left out, so that a later version may say more.
    """
    if said is None:
        return None
    if not isinstance(said, dict):
        raise ValueError("belongings")  # noqa: TRY004 -- JSON of another type is a wrong value
    texts = ("owner", "encoding", "lc_collate", "lc_ctype")
    for key in (*texts, "locale_provider", "locale", "icu_rules", "tablespace", "comment"):
        value = said.get(key)
        if not isinstance(value, str) and (key in texts or value is not None):
            raise ValueError(key)
    limit = said.get("connection_limit")
    if type(limit) is not int or not -1 <= limit < NEVER:
        raise ValueError("connection_limit")
    plain: dict[str, Any] = {
        each.name: said.get(each.name) for each in dataclasses.fields(Belongings)
    }
    plain["settings"] = tuple(
        Setting(_role(each, "settings"), each["setting"])
        for each in _dicts(said, "settings", setting=str)
        if "=" in each["setting"]
    )
    plain["grants"] = tuple(
        Grant(_role(each, "grants"), each["privilege"], each["grantable"])
        for each in _dicts(said, "grants", privilege=str, grantable=bool)
        if each["privilege"] in PRIVILEGES
    )
    names = said.get("subscriptions", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("subscriptions")
    plain["subscriptions"] = tuple(names)
    plain["is_template"] = said.get("is_template", False)
    if type(plain["is_template"]) is not bool:
        raise ValueError("is_template")
    found = Belongings(**plain)
    if found.locale_provider not in (None, "c") and found.locale is None:
        raise ValueError("locale")
    if "\0" in "".join(_strings(found.told())):
        raise ValueError("belongings")
    return found


def _strings(value: object) -> list[str]:
    """Return every text in a value; raises ValueError where one cannot be sent as UTF-8."""
    if isinstance(value, str):
        value.encode()
        return [value]
    inner = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(inner, list | tuple):
        return []
    return [text for each in inner for text in _strings(each)]


def _dicts(said: dict[str, Any], key: str, **types: type) -> Sequence[dict[str, Any]]:
    found = said.get(key)
    if not isinstance(found, list):
        raise ValueError(key)  # noqa: TRY004 -- see above
    for each in found:
        if not isinstance(each, dict) or any(
            not isinstance(each.get(name), kind) for name, kind in types.items()
        ):
            raise ValueError(key)
    return found


def _role(each: dict[str, Any], key: str) -> str | None:
    role = each.get("role")
    if role is not None and not isinstance(role, str):
        raise ValueError(key)
    return role


def no_place(session: Session, wanted: Belongings) -> str | None:
    """Say why its tablespace cannot be had on this server; None when it can."""
    if wanted.tablespace is None:
        return None
    row = session.execute(_TABLESPACE, [wanted.tablespace]).fetchone()
    if row and row[0]:
        return None
    why = "this role has no CREATE on it" if row else "there is none of that name"
    return f"tablespace {wanted.tablespace}: {why}"


def refused(session: Session, commands: Sequence[Command]) -> list[Refused]:
    """Try all and take them back; return what is refused."""
    problems = []
    session.execute("BEGIN")
    try:
        for each in commands:
            session.execute("SAVEPOINT preflight_command")
            try:
                session.execute(each.sql)
            except psycopg.Error as error:
                if session.lost:
                    raise
                text = f"{each.what}: {error.diag.message_primary}"
                its_own = each.role is None or "to set parameter" in text
                on = (each.parameter, None) if its_own else (None, each.role)
                problems.append(Refused(text, error.sqlstate, *on))
                session.execute("ROLLBACK TO SAVEPOINT preflight_command")
    finally:
        if not session.lost:
            session.connection.execute("ROLLBACK")
    return problems


def give(session: Session, commands: Sequence[Command], *, early: bool) -> None:
    """Do those of before the database is filled, or the others; raises psycopg.Error."""
    for each in commands:
        if each.early == early:
            session.execute(each.sql)
