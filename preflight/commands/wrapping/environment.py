"""Which variables name the live database, and what they become so that they name its copy; pure.

A variable that names another database of the server, or another server's, is left as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import quote, unquote

from preflight.base import masks, plain
from preflight.commands.wrapping import options, words

SHORTEST = 3  # characters of a secret: to mask less would garble all output

_POSTGRES = re.compile(
    r"(?i)postgre|pgsql|psql|postgis|ecto|cockroach|crdb|timescale|psycopg|\bpg\b"
)
_SCHEME = r"[A-Za-z][A-Za-z0-9+.:-]{0,60}"
_WHOLE_URL = re.compile(rf"(?P<scheme>{_SCHEME})://(?P<rest>\S*)")
_URL = re.compile(rf"(?P<scheme>{_SCHEME})://(?P<rest>[^\s\"'`<>;|\\]*)")
_JDBC_BARE = re.compile(r"(?i)(jdbc:postgresql):(?!//)/?([^/?\s:]*)(\?\S*)?")
_TARGET = re.compile(r"(?i)(db:(?:pg|postgres(?:ql)?):)([^/?:\s]+)")  # sqitch's; libpq has the rest
_ASKING = re.compile(r"(?i)(?:jdbc|r2dbc|vertx-reactive):[a-z0-9+:-]*://(\S*)")  # not for PGUSER
_PAIR = re.compile(
    r"\s*([A-Za-z_]\w*)\s*=\s*('(?:[^'\\]|\\.)*'|(?:[^\s';\\]|\\.)*)(?=\s|$)", re.ASCII
)
_ADO = re.compile(
    r"""\s*([A-Za-z][\w ]*?)\s*=\s*("(?:[^"]|"")*"|'(?:[^']|'')*'|[^;]*?)\s*(?:;|$)"""
)
_PDO = "pgsql:"
# `name=` of a keyword string is anybody's
_NOT_IN_STRINGS = {"name", "addr", "address", "endpoint", "seeds", "sslmode", "ssl", "tls"}
_NOT_NPGSQL = {"server", "datasource", "addr", "initialcatalog"}
_VARIABLE = re.compile(
    r"(?i)(?P<prefix>.+?)_*(?P<word>HOSTNAME|HOST|SERVER|ENDPOINT|ADDRESS|ADDR|SEEDS|PORT|"
    r"USERNAME|USER|(?<=_)(?:HOST|USER|ROLE)_NAME|PASSWORD|PASSWD|PASS|PWD|PW|DATABASE|NAME|DB|"
    r"SSL_?MODE|SSL|TLS|URL|URI)"
)
_SAYS_HOST = re.compile(r"(?i).*(?:HOST|SERVER|ADDR|ENDPOINT).*")
_WORDS = {**words.KINDS, "url": "url", "uri": "url", "rolename": "role"}
_OF_SERVICES = re.compile(r"(?i).*_(?:SERVICE_|PORT_\d+_(?:TCP|UDP)).*")  # Kubernetes' links

_BARE = re.compile(r"(?i)(?:.*_)?(?:NAME|DB|DATABASE|DBNAME)|PGDATABASE")
_OF_ANOTHER = re.compile(
    rf"(?i:(?:.*_)?(?:{'|'.join(options.OTHERS)})_*NAME)"
    rf"|.*(?:{'|'.join(map(str.title, options.OTHERS))})Name"
)
_OF_DATABASES = re.compile(r"(?i)db|database|pg|postgres|sql|data_?source|jdbc")
_OF_ADDRESSES = re.compile(r"(?i)dsn|conn|ur[il]$|database")
_NOT_POSTGRES = re.compile(
    r"(?i)mysql|maria|mongo|mssql|sql_?server|oracle|sqlite|redis|couch|influx|clickhouse|cassandra"
)
_TLS = re.compile(r"(?i)ssl|channel_?binding|gssenc|require_?auth|tls")
_ELSEWHERE = re.compile(r"(?i)service|passfile|target_?session_?attr|targetservertype|hostaddr")
_TOLD = re.compile(  # a secret behind its name: an option, a line of a file, JSON
    r"""(?ix)(?: pass(?:wor)?d | passwd | passphrase | (?<![a-z])pass | pwd | secret | token
    | (?:api|access|private|secret)[_-]?key )
    (?: ["']?\s*[:=]\s* (?: "(?P<double>(?:[^"\\]|\\.)*)" | '(?P<single>(?:[^'\\]|\\.)*)' )
    | \s*=\s*(?P<bare>[^\s"'&;]+) )"""
)
_PLAIN_VALUES = {"true", "false", "none", "null", "required", "prefer"}
_FIELD = re.compile(r"(?:^|(?<=:))((?:\\.|[^\\:])*)(?=:|$)")  # of a passfile's line
_DATABASE = 2  # the third
_LIBPQ_NAMES = {"host": "host", "port": "port", "user": "user", "password": "password",
                "database": "dbname"}  # fmt: skip
_ADO_NAMES = {"host": "Host", "port": "Port", "user": "Username", "password": "Password",
              "database": "Database"}  # fmt: skip
# of libpq and of drivers that read the like; `database` is pgx's
_KEYWORDS = {*_LIBPQ_NAMES.values(), "database", "hostaddr", "service", "sslmode", "options",
             "application_name", "connect_timeout", "search_path"}  # fmt: skip
LIBPQ = plain.VOCABULARIES["PG*"]
_LEADING = {"PGSERVICE", "PGHOSTADDR"}
_DEMANDS = {"PGTARGETSESSIONATTRS", "PGREQUIREAUTH"}
_HOSTS = ("PGHOST", "PGHOSTADDR")
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
OURS = "PREFLIGHT_"
FILE = "_FILE"


@dataclass(frozen=True, slots=True)
class Live:
    """The live database by all names that are known of its server."""

    database: str
    hosts: frozenset[str]  # names, addresses and socket directories
    ports: frozenset[str]
    user: str
    password: str | None = field(default=None, repr=False)
    roles: frozenset[str] = frozenset()  # of those that a command names, who is there
    options: str = ""  # that PGSERVICE leads to: they hold before those of PGOPTIONS


@dataclass(frozen=True, slots=True)
class Copy:
    """Where the copy is; who is one of `users` there keeps his name, anybody else is `user`.

    Unless it is `away`, on another server, everybody and his password are what they are.
    """

    host: str
    port: str
    database: str
    user: str
    password: str | None = field(default=None, repr=False)
    users: frozenset[str] = frozenset()
    away: bool = False
    plain: bool = False  # its server has no TLS


@dataclass(frozen=True, slots=True)
class Led:
    """An environment that leads to the copy, and which variables had to change for it.

    `files` are the new contents of the files that variables name; `users` all that were named;
    `left` what names the live server and could not be led; `others` what names another database of
    it, and is left alone; `passfile`: it needs what it has of one for the copy, as the gate's
    password is not everybody's; `renamed`: somebody has another name there.
    """

    environment: Mapping[str, str] = field(repr=False)
    arguments: Sequence[str] = field(repr=False)
    variables: tuple[str, ...]
    files: Mapping[str, str] = field(repr=False)
    users: frozenset[str]
    left: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    passfile: bool = False
    renamed: bool = False


def led(  # noqa: PLR0913 -- what is led, from where, to where
    environ: Mapping[str, str],
    live: Live,
    copy: Copy,
    *,
    arguments: Sequence[str] = (),
    also: Collection[str] = (),
    files: Mapping[str, str] | None = None,
    services: Collection[str] = (),
) -> Led:
    """Return the environment led to the copy.

    `also` are variables that name the live database whatever they look like: where their form is
    not known, each of its parts in them is led; `files` holds what is in the files that variables
    called NAME_FILE name; `services` are those that libpq knows.
    """
    way = _Way(live, copy)
    ours = {name: text for name, text in environ.items() if not name.startswith(OURS)}
    ours = {name: text for name, text in ours.items() if text or _is_password(name)}
    # that one is where this program has the address from
    sure = {*also, *(name.removesuffix(FILE) for name in also), "DATABASE_URL"}
    in_files = _in_files(files or {}, ours)
    said = ours | in_files
    inline = options.inline(arguments)
    said |= {name: arguments[at].partition("=")[2] for name, at in inline.items()}
    optional = {n: e for n, e in options.beside_urls(arguments).items() if n not in said}
    optional = _of_urls(optional, said, way)
    said = {name: each.value for name, each in optional.items()} | said
    groups = _groups(said)
    beside = _users_of_urls(groups, said)
    found = _variables(said, groups, beside, sure, way)
    found |= _named(also, said, groups, found, way)
    unled = [name for name in also if name.removesuffix(FILE) not in found]
    nobody = _nobody(groups, said, beside, arguments, _Way(live, copy))
    others = _others(said, sure | found.keys(), arguments, _Way(live, copy))
    still = _hosts_left(groups, {n: found.get(n, said[n]) for n in (*ours, *in_files)}, way)
    contents = _led_files(files or {}, ours, way)
    contents |= {f"{name}{FILE}": found.pop(name) for name in in_files if name in found}
    hosted = bool(found) or "PGSERVICE" in ours or _says_host(groups, said, way)
    places = {n: (each.at, each.begins) for n, each in optional.items()}
    places |= {name: (at, f"{name}=") for name, at in inline.items()}
    told = _arguments(arguments, places, found | way.libpq(ours), way, hosted=hosted)
    found = {name: text for name, text in found.items() if name not in places or name in ours}
    gone = _elsewhere(copy) & ours.keys()
    led_to = {name: text for name, text in environ.items() if name not in gone}
    if copy.away:
        led_to.pop("PGPASSWORD", None)
    led_to |= way.libpq(ours) | found
    # whoever has his password from a passfile or a service has no line for the copy there; one that
    # the environment gives goes before both, and a service's before that
    unsaid = not copy.away and live.password and ("PGSERVICE" in gone or "PGPASSWORD" not in ours)
    if unsaid:
        led_to |= way.unsaid({name: led_to[name] for name in found})
    if "PGSERVICE" in gone and live.options:
        led_to["PGOPTIONS"] = live.options
    if copy.plain:
        led_to = {name: text for name, text in led_to.items() if not _pg_tls(name)}
        led_to["PGSSLMODE"] = "disable"
    aside = {name for name in ours if _pg_tls(name)} | _DEMANDS
    changed = {name for name in ours if led_to.get(name) != ours[name]} - aside
    moved = [f"argument {n}" for n, new in enumerate(told, 1) if new != arguments[n - 1]]
    names = (*sorted(changed | contents.keys()), *moved)
    where = {name: f"{name}{FILE}" for name in in_files}
    there = where | {name: f"argument {at + 1}" for name, (at, _) in places.items()}
    left = _by_service({n: found.get(n, text) for n, text in ours.items()}, told, services)
    left += [f"argument {at + 1}" for at in _seems(told, way) if told[at] == arguments[at]]
    left += [where.get(name, name) for name in still] + unled
    left += [there.get(name, name) for name in nobody if copy.users]
    return Led(
        led_to,
        told,
        names,
        contents,
        frozenset(way.users | way.perhaps),
        tuple(dict.fromkeys(left)),
        tuple(dict.fromkeys(there.get(name, name) for name in others)),
        passfile=bool(unsaid and not way.alone()),
        renamed=way.renames() or bool(copy.away and nobody),
    )


def passfile(text: str, live: Live, copy: Copy, *, gate: bool) -> str:
    """Return a passfile that has for the copy what it has for the live database, and the gate's.

    Nothing where it is good for the copy as it is; unless the `gate` itself has its password from
    elsewhere.
    """
    found: list[str] = []
    for line in text.splitlines():
        fields = _FIELD.findall(line)
        if len(fields) > _DATABASE and re.sub(r"\\(.)", r"\1", fields[_DATABASE]) == live.database:
            fields[_DATABASE] = copy.database
            found.append(":".join(fields))
        found.append(line)
    if not gate and len(found) == len(text.splitlines()):
        return ""
    ours = (re.sub(r"([\\:])", r"\\\1", each) for each in (live.user, live.password or ""))
    return "\n".join([*found, ":".join(("*", "*", copy.database, *ours)), ""])


def secrets(environ: Mapping[str, str], files: Mapping[str, str] | None = None) -> frozenset[str]:
    """Return what nobody may see of an environment: passwords, tokens, keys; longest needs first.

    In URLs and keyword strings only the passwords in them.
    """
    found: set[str] = set()
    for name, text in {**environ, **(files or {})}.items():
        inside = _passwords(text)
        found |= {each for each in inside if len(each) >= SHORTEST}
        bare = name.removesuffix(FILE)
        guessed = masks.is_secret(bare) and not inside
        value = text.strip()
        path = name.endswith(FILE) and name in environ and name not in (files or {})
        if guessed and not path and value.lower() not in _PLAIN_VALUES:
            lines = [value, *value.splitlines()]
            found |= {each for each in lines if len(each) >= masks.SHORTEST}
    return frozenset(found)


def secrets_of_arguments(arguments: Sequence[str]) -> frozenset[str]:
    """Return what nobody may see of a command: in its arguments, or behind an option's name."""
    found: set[str] = set()
    for option, text in zip(("", *arguments), arguments, strict=False):
        inside = _passwords(text)
        if text.startswith("-") and "=" in text:
            inside |= _passwords(text.partition("=")[2])
        name = option.replace("-", "_")
        secret = option.startswith("-") and "=" not in option and masks.is_secret(name)
        if secret and not text.startswith("-") and not name.lower().endswith(("file", "path")):
            inside.add(text)
        found |= {each for each in inside if len(each) >= SHORTEST}
    return frozenset(found)


# values


@dataclass(frozen=True, slots=True)
class _Who:
    """Who connects where an address does not say it, and whether a password stands beside it."""

    user: str = ""
    password: bool = False


_NOBODY = _Who()


class _Way:
    """From the live database to its copy."""

    def __init__(self, live: Live, copy: Copy) -> None:
        self.live = live
        self.copy = copy
        self.users: set[str] = set()
        self.perhaps: set[str] = set()  # who may be one
        self.other = False  # another database of the live server was seen
        self.without_password: set[str] = set()  # of them, who has it from somewhere else

    def value(
        self,
        text: str,
        *,
        name: str = "",
        certain: bool = False,
        who: _Who = _NOBODY,
        adds: bool = True,
    ) -> str | None:
        """Return a new value of a variable `name`; None where it does not name the live database.

        `who` connects where a URL does not say it; `adds`: what is missing is added to pairs.
        """
        bare = text.strip()
        if new := self._jdbc_bare(bare):
            return new
        if (target := _TARGET.fullmatch(bare)) and target[2] == self.live.database:
            return f"{target[1]}{self.copy.database}"
        if whole := _WHOLE_URL.fullmatch(bare):
            return self._url(whole["scheme"], whole["rest"], certain=certain, other=who)
        if bare[:1] in ("{", "[") and (new := self._json(bare, certain=certain, who=who)):
            return new
        if (new := self._pairs(bare, name=name, certain=certain, adds=adds)) is not None:
            return new
        inside = _URL.sub(lambda m: self._url(m["scheme"], m["rest"]) or m[0], text)
        return inside if inside != text else None

    def parts(self, text: str, name: str) -> str | None:
        """Return a text of any form with each part of the live database's that stands in it led.

        None where there is none, or where one may be two things of which only one is led; what
        stands there once and may be the database's name, is that.
        """
        live, copy = self.live, self.copy
        if text in live.hosts and _SAYS_HOST.fullmatch(name):
            return copy.host
        pairs = [(host, copy.host) for host in live.hosts]
        pairs += [(port, copy.port) for port in live.ports]
        who = [(live.user, self.user(live.user, password=True))]
        if live.password:
            who.append((live.password, copy.password or "" if copy.away else live.password))
        once = len(re.findall(rf"(?<![\w.-]){re.escape(live.database)}(?![\w.-])", text)) == 1
        pairs += [each for each in who if not (once and each[0] == live.database)]
        new = dict([*pairs, (live.database, copy.database)])
        longest = "|".join(map(re.escape, sorted(new, key=len, reverse=True)))
        part = re.compile(rf"(?<![\w.-])(?:{longest})(?![\w.-])")
        there = part.findall(text)
        unsure = any(old in there and new[old] != led_to for old, led_to in pairs)
        return part.sub(lambda m: new[m[0]], text) if there and not unsure else None

    def exactly(self, kind: str, text: str) -> str | None:
        """Return what stands for a part of the live database's where a text is that and no more."""
        live, copy = self.live, self.copy
        if kind == "user" and text == live.user:
            return self.user(text)
        if kind == "password" and text == live.password:
            return copy.password or "" if copy.away else text
        known = {"host": live.hosts, "port": live.ports, "database": {live.database}}
        new = {"host": copy.host, "port": copy.port, "database": copy.database}
        return new[kind] if text in known.get(kind, ()) else None

    def argument(self, text: str, *, adds: bool = True) -> str:
        """Return an argument, led where it, or what stands behind its =, names the database."""
        name, equals, behind = text.partition("=")
        new = None
        if equals and name.isidentifier() and name.lower() not in _KEYWORDS:
            new = self._pairs(behind.strip(), name=name, adds=adds)  # conn='host=db dbname=app'
            new = None if new is None else f"{name}={new}"
        new = self.value(text, adds=adds) if new is None else new
        if new is None and (tcp := re.fullmatch(r"(tcp://)?([^\s/@]+:\d+)/?", text)):
            new = f"{tcp[1] or ''}{_netloc(self.copy)}" if self.here(tcp[2]) else None
        if new is None and text.startswith("-") and equals:
            new = self.value(behind, name=name, adds=adds)
            new = None if new is None else f"{name}={new}"
        return text if new is None else new

    def mentioned(self, text: str) -> bool:
        """Tell whether a text has a name of the live server's in it."""
        said = unquote(text).lower()
        return any(host.lower() in said for host in self.live.hosts)

    def see(self, database: str, hosts: str, ports: str, *, known: bool = False) -> None:
        """Remember another database of the live server.

        Without a port on this machine it may be any server's, unless it is `known` as PostgreSQL's.
        """
        sure = known or ports or not {*hosts.split(",")} & _LOOPBACK
        if sure and database not in ("", self.live.database) and self.same_host(hosts, ports):
            self.other = True

    def sees(self, look: Callable[[], object]) -> bool:
        """Tell whether a look at what is said comes upon another database of the live server."""
        self.other = False
        look()
        return self.other

    def host(self, said: str) -> str:
        """Return the copy's host as somebody said the live one: with its port, or without."""
        return _netloc(self.copy) if _at(said)[1] else self.copy.host

    def here(self, said: str, ports: str = "") -> bool:
        """Tell whether a host, perhaps with its port, is the live server's."""
        hosts, own = _at(said)
        return self.same_host(hosts, own or ports)

    def same_host(self, hosts: str, ports: str = "") -> bool:
        """Tell whether one of several hosts, with commas, is known as the live server's."""
        known = {each.strip("[]").lower() for each in self.live.hosts}
        there = {each.strip("[] ").lower() for each in hosts.split(",")}
        at = {each.strip() for each in ports.split(",") if each.strip()}
        return bool(known & there) and (not at or bool(at & self.live.ports))

    def user(self, name: str, *, password: bool = False) -> str:
        """Return who somebody is on the copy; `password`: his own stands beside him."""
        if name:
            self.users.add(name)
        if name and not password:
            self.without_password.add(name)
        return name if name in self.copy.users or not self.copy.away else self.copy.user

    def is_role(self, name: str) -> bool:
        """Tell whether a name that may be anything is a role's, as far as it is known."""
        self.perhaps.add(name)
        return name == self.live.user or name in self.live.roles

    def known(self) -> frozenset[str]:
        """Return the names of the live database's parts."""
        live = self.live
        return live.hosts | live.ports | live.roles | {live.database, live.user}

    def alone(self) -> bool:
        """Tell whether nobody but the gate has his password from somewhere else."""
        return self.without_password <= {self.live.user}

    def unsaid(self, found: Mapping[str, str]) -> dict[str, str]:
        """Return which of the variables that were led, or libpq's, give the gate its password.

        Never an argument: others see those of a process.
        """
        if self.alone():
            return {"PGPASSWORD": self.live.password or ""}
        return {name: self._with_password(text) for name, text in found.items()}

    def _with_password(self, text: str) -> str:
        """Return a URL or keyword string with the gate's password, where it has none."""
        ours, password = self.live.user, self.live.password or ""
        if whole := _WHOLE_URL.fullmatch(text):
            said, at, place = whole["rest"].partition("@")
            bare = at and unquote(said) == ours and "password=" not in place
            return (
                f"{whole['scheme']}://{said}:{quote(password, safe='')}@{place}" if bare else text
            )
        said = {_kind(name): _unquoted(value) for name, value in _all(_PAIR, text)}
        if said.get("user") != ours or said.get("password"):
            return text
        return f"{text} password={_quoted(password, libpq=True)}"

    def renames(self) -> bool:
        """Tell whether anybody who was named, or the gate, has another name on the copy."""
        return any(self.user(name) != name for name in self.users | {self.live.user})

    def _jdbc_bare(self, text: str) -> str | None:
        found = _JDBC_BARE.fullmatch(text)
        if not found or unquote(found[2]) not in ("", self.live.database):
            return None
        return self._url(found[1], f"/{found[2]}{found[3] or ''}", certain=True)

    def _url(
        self, scheme: str, rest: str, *, certain: bool = False, other: _Who = _NOBODY
    ) -> str | None:
        where, mark, query = _where(rest)
        said, at, place = where.rpartition("@")
        hosts, slash, path = place.partition("/")
        options = [item.partition("=") for item in query.split("&")] if mark else []
        more = {_plain_key(name): unquote(value) for name, _, value in options}
        names, ports = _addresses(unquote(hosts))
        names, ports = more.get("host") or names, more.get("port") or ports
        user, _, secret = said.partition(":")
        whose = unquote(user) or more.get("user", "") or other.user
        own = bool(secret or more.get("password")) or other.password
        database = unquote(path.rstrip("/")) or more.get("dbname") or more.get("database", "")
        known = bool(_POSTGRES.search(scheme))
        if not (certain or self._named(database, names, ports, known=known)):
            if known or ports:
                self.see(database, names, ports, known=known)
            return None
        whose = self.user(whose, password=own)
        password = self.copy.password or ""
        credentials = f"{quote(whose, safe='')}:{quote(password, safe='')}"
        if self.copy.away and at:
            said = credentials
        jdbc = scheme.lower().startswith("jdbc:")
        if self.copy.away and not at and not {"user", "password"} & more.keys():
            if jdbc:
                options += [("user", "=", whose), ("password", "=", "")]
            else:
                said, at = credentials, "@"
        options = [each for each in options if self._kept(each[0])]
        socket = self.copy.host.startswith("/")
        in_query = "host" in more or socket
        netloc = "" if in_query else _netloc(self.copy)
        wanted = {
            **({"user": whose, "password": password} if self.copy.away else {}),
            **({"host": self.copy.host, "port": self.copy.port} if in_query else {}),
            **({"sslmode": "disable"} if self.copy.plain else {}),
            "dbname": self.copy.database,
            "database": self.copy.database,
        }
        if in_query:
            there = {_plain_key(name) for name, _, _ in options}
            options += [(each, "=", "") for each in ("host", "port") if each not in there]
        items = [_option(*each, wanted) for each in options if each[0] or each[1]]
        led_to = quote(self.copy.database, safe="")
        tail = f"?{'&'.join(items)}" if items else ""
        has_path = slash or not ({"dbname", "database"} & more.keys())
        return f"{scheme}://{said}{at}{netloc}{f'/{led_to}' if has_path else ''}{tail}"

    def _named(self, database: str, hosts: str, ports: str, *, known: bool) -> bool:
        """Tell whether a URL's parts name the live database.

        A pooler has another address and leads there all the same, so of a driver's URL the
        database's name is enough.
        """
        if database:
            same = database == self.live.database
            return same and (known or self.same_host(hosts, ports or next(iter(self.live.ports))))
        return known and bool(hosts) and self.same_host(hosts, ports)

    def _kept(self, name: str) -> bool:
        """Tell whether a URL's option is good for the copy, too."""
        if _ELSEWHERE.search(name):
            return False
        return not (self.copy.plain and _TLS.search(name) and name.lower() != "sslmode")

    def _pairs(
        self, text: str, *, name: str = "", certain: bool = False, adds: bool = True
    ) -> str | None:
        """Return a keyword string, libpq's or with semicolons, led to the copy.

        To pairs that may be anybody's nothing is added; one of a single word, database=app, is a
        tag unless the `name` of what holds it is an address's.
        """
        prefix = _PDO if text.lower().startswith(_PDO) else ""
        body = text[len(prefix) :]
        libpq = _all(_PAIR, body)
        pairs = libpq or _all(_ADO, body)
        if not pairs:
            return None
        kinds = {_kind(name): _unquoted(value) for name, value in pairs}
        written = {name.lower().replace(" ", "").replace("_", "") for name, _ in pairs}
        whole = certain or not libpq or bool(prefix) or _is_address(pairs)
        several = len(kinds.keys() & _LIBPQ_NAMES.keys()) > 1
        alone = {"dbname"} == written or ("database" in kinds and _OF_ADDRESSES.search(name))
        if not (whole or several or alone):
            return None
        if not certain and not self._pairs_name_it(kinds, written, bool(libpq or prefix)):
            return None
        whose = self.user(kinds.get("user", ""), password=bool(kinds.get("password")))
        wanted = {"host": self.copy.host, "port": self.copy.port, "database": self.copy.database}
        if self.copy.away:
            wanted |= {"user": whose, "password": self.copy.password or ""}
        if not (whole and adds):
            wanted = {kind: new for kind, new in wanted.items() if kind in kinds}
        names = _LIBPQ_NAMES if libpq or prefix else _ADO_NAMES
        return prefix + self._joined(pairs, wanted, names, libpq=bool(libpq))

    def _pairs_name_it(
        self,
        kinds: Mapping[str, str],
        written: Collection[str],
        libpq: bool,  # noqa: FBT001
    ) -> bool:
        """Tell whether pairs name the live database."""
        at, port = kinds.get("host"), kinds.get("port", "")
        same = bool(at and self.same_host(at, port))
        here = same and bool(kinds.get("user"))
        name = kinds.get("database", self.live.database if here else "")  # else PGDATABASE's
        if name != self.live.database or ({*written} & _NOT_NPGSQL and not same):
            self.see(name, at or "", port)
            return False
        return bool(at or kinds.get("user") or libpq)

    def _json(self, text: str, *, certain: bool, who: _Who) -> str | None:
        """Return JSON, whose parts or which itself names the database, led to the copy."""
        try:
            said = json.loads(text)
            new = self._part(said, certain=certain, who=who)
            return None if new == said else json.dumps(new)
        except (ValueError, RecursionError):
            return None

    def _part(self, said: Any, *, certain: bool = False, who: _Who = _NOBODY) -> Any:  # noqa: ANN401 -- JSON
        if isinstance(said, str):
            new = self.value(said, who=who)
            return said if new is None else new
        if isinstance(said, list):
            return [self._part(each, certain=certain, who=who) for each in said]
        if not isinstance(said, dict):
            return said
        members = _members(said)
        own = "password" in members
        who = _Who(next(iter(members.get("user", ())), who.user), own or who.password)
        inner = {name: self._part(each, who=who) for name, each in said.items()}
        url = any(_is_url(each) and each != inner[name] for name, each in said.items())
        if not ("host" in members or url) or not (certain or self._ours(members, url=url)):
            return inner
        beside = {"name"} if "host" not in members else set()  # that of an app with a URL
        found = {
            n: self._led(n, each, own=own) for n, each in inner.items() if _member(n) not in beside
        }
        return inner | found | self._port_too(said, members)

    def _ours(self, members: Mapping[str, Sequence[str]], *, url: bool) -> bool:
        """Tell whether an object's members, a URL that was led among them, name the database."""
        hosts, port = members.get("host", ()), ",".join(members.get("port", ()))
        databases = {*members.get("database", ())}
        if databases - {self.live.database}:
            for host, own in map(_at, hosts):
                self.see(min(databases - {self.live.database}), host, own or port)
            return False
        if any(self.here(host, port) for host in hosts):
            return url or bool({"database", "port", "user"} & members.keys())  # else anybody's
        return url and bool(databases or not hosts)

    def _led(self, name: str, said: Any, *, own: bool) -> Any:  # noqa: ANN401 -- JSON
        """Return one member of an object that names the live database."""
        kind = _member(name)
        if kind in ("host", "port") and isinstance(said, list):
            return [self._led(name, each, own=own) for each in said]
        if self.copy.plain and _TLS.search(name):
            return "disable" if isinstance(said, str) else False
        if isinstance(said, dict | list | bool) or (kind != "password" and _is_url(said)):
            return said
        if isinstance(said, str) and kind in ("host", "user"):
            return self.host(said) if kind == "host" else self.user(said, password=own)
        port, database = self.copy.port, self.copy.database
        new: dict[str, Any] = {
            "port": port if isinstance(said, str) else int(port),
            "database": database,
            "name": database if said == self.live.database else said,
            "password": self.copy.password or "" if self.copy.away else said,
        }
        return new.get(kind, said)

    def _port_too(
        self, said: Mapping[str, Any], members: Mapping[str, Sequence[str]]
    ) -> dict[str, int]:
        """Return an object's port where it has none and the copy has another than the default."""
        kinds = {_member(name): name for name in said}
        at = any(_at(host)[1] for host in members.get("host", ()))
        if "host" not in members or "port" in kinds or at or self.copy.port in self.live.ports:
            return {}
        return {_port_beside(kinds["host"]): int(self.copy.port)}

    def _joined(
        self,
        pairs: Sequence[tuple[str, str]],
        wanted: Mapping[str, str],
        names: Mapping[str, str],
        *,
        libpq: bool,
    ) -> str:
        kept = [(name, value) for name, value in pairs if self._kept(name.replace(" ", ""))]
        left = dict(wanted)
        said: list[tuple[str, str]] = []
        for name, value in kept:
            kind = _kind(name)
            left.pop(kind, None)
            if name.lower().replace(" ", "") == "sslmode" and self.copy.plain:
                said.append((name, "disable"))
            elif kind in wanted:
                said.append((name, _quoted(wanted[kind], libpq=libpq)))
            else:
                said.append((name, value))
        said += [(names[kind], _quoted(value, libpq=libpq)) for kind, value in left.items()]
        return (" " if libpq else ";").join(f"{name}={value}" for name, value in said)

    def libpq(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return libpq's own variables; whoever leaves something out of his URL reads them."""
        user = self.user(environ.get("PGUSER", ""))
        found = {
            "PGHOST": self.copy.host,
            "PGPORT": self.copy.port,
            "PGDATABASE": self.copy.database,
            "PGUSER": user or self.copy.user,
        }
        password = self.copy.password if self.copy.away else None
        return found | ({"PGPASSWORD": password} if password else {})


# libpq's own, which alone has services
_BY_SERVICE = re.compile(r"postgres(?:ql)?:///?\?(?:\S*&)?service=[^\s&]")
_LOOSE = re.compile(r"([\w.-]+:\d+)(?:[/:]\S*)?")  # an address with its port, and no scheme
_LINE = re.compile(  # of YAML, of a file of settings
    r"""(?im)^[\t "'-]*(?:\w+[_.-])?(?:db|pg)?host(?:name|addr)?["']?[\t ]*[:=][\t ]*"""
    r"""["']?([\w./:-]+)["']?,?[\t ]*$"""
)
_TWICE = re.compile(r"(?<=db)_?db$")
_Group = dict[str, list[str]]  # the names of its variables, by what they say


def _in_files(files: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return what variables called NAME_FILE say as if NAME itself said it."""
    found = {name.removesuffix(FILE): files[name].strip() for name in files if name in environ}
    said = {name: text for name, text in found.items() if text or _is_password(name)}
    return {name: text for name, text in said.items() if not environ.get(name)}


def _users_of_urls(groups: Mapping[str, _Group], environ: Mapping[str, str]) -> dict[str, _Who]:
    """Return who is named beside a URL, of each that has somebody there, or his password."""
    found: dict[str, _Who] = {}
    for prefix, group in groups.items():
        near = [prefix, *sorted((each for each in groups if _above(each, prefix)), key=len)[::-1]]
        users = [environ[groups[each]["user"][0]] for each in near if "user" in groups[each]]
        who = _Who(
            next(iter(users), ""), any(_has_password(groups[each], environ) for each in near)
        )
        found |= dict.fromkeys(group.get("url", ()), who)
    return found


def _of_urls(
    optional: Mapping[str, options.Said], environ: Mapping[str, str], way: _Way
) -> dict[str, options.Said]:
    """Return the options beside URLs without those that are of something else.

    A URL that says who connects needs nobody beside it: --user is an app's account there, unless it
    is a role, and so is its password, unless it is the live one or what the URL has not.
    """
    said = {**{name: each.value for name, each in optional.items()}, **environ}
    groups = _groups(said)
    gone: set[str] = set()
    for prefix, group in groups.items():
        near = [each for each in groups if each == prefix or _above(each, prefix)]
        urls = [said[name] for each in near for name in groups[each].get("url", ())]
        if not urls or not all(map(_says_who, urls)):
            continue
        users = group.get("user", ())
        gone |= {name for name in users if name in optional and not way.is_role(said[name])}
        unknown = gone & {*users} if users else any(map(_passwords, urls))
        passwords = group.get("password", ()) if unknown else ()
        gone |= {name for name in passwords if said[name] != way.live.password}
    return {name: each for name, each in optional.items() if name not in gone}


def _says_who(url: str) -> bool:
    """Tell whether a URL, or a keyword string in its place, names who connects."""
    return "@" in url or re.search(r"(?i)\buser(?:name| ?id)?\s*=", url) is not None


def _is_password(name: str) -> bool:
    """Tell whether a variable is a password's: an empty one means none, which the copy asks for."""
    part = _VARIABLE.fullmatch(name)
    kind = _WORDS[part["word"].lower().replace("_", "")] if part else ""
    return kind == "password" and name != "PGPASSWORD"


def _has_password(group: _Group, environ: Mapping[str, str]) -> bool:
    return any(environ[name] for name in group.get("password", ()))


def _names(group: _Group) -> list[str]:
    return [name for names in group.values() for name in names]


def _above(prefix: str, other: str) -> bool:
    """Tell whether another prefix begins with this one and a whole word more: kc_db, kc_db_url."""
    return other.startswith(f"{prefix}_")


def _groups(environ: Mapping[str, str]) -> dict[str, _Group]:
    """Return the variables that have one prefix."""
    groups: dict[str, _Group] = {}
    for name in environ:
        if name in LIBPQ.values() or not (part := _VARIABLE.fullmatch(name)):
            continue
        kind = _WORDS[part["word"].lower().replace("_", "")]
        if kind == "database" and _OF_ANOTHER.fullmatch(name):
            continue
        # DB_SERVICE_HOST is what Kubernetes says of a service called db
        prefix = part["prefix"].lower().removesuffix("_service")
        prefix = _TWICE.sub("", prefix)  # MB_DB_DBNAME, which belongs to MB_DB_HOST
        groups.setdefault(prefix, {}).setdefault(kind, []).append(name)
    return groups


def _says_host(groups: Mapping[str, _Group], environ: Mapping[str, str], way: _Way) -> bool:
    """Tell whether a variable names the live server."""
    hosts = [environ[name] for prefix, group in groups.items() for name in group.get("host", ())
             if not _NOT_POSTGRES.search(prefix)]  # fmt: skip
    return any(map(way.here, hosts)) or any(
        way.here(environ.get(name, ""), environ.get("PGPORT", "")) for name in _HOSTS
    )


def _grouped(
    groups: Mapping[str, _Group], environ: Mapping[str, str], found: Mapping[str, str], way: _Way
) -> dict[str, str]:
    """Return the variables of groups that name the live database together."""
    changed: dict[str, str] = {}
    for prefix, group in groups.items():
        if not _names_together(prefix, group, environ, found, way):
            continue
        wanted = {"host": way.copy.host, "port": way.copy.port, "database": way.copy.database}
        if way.copy.away:
            wanted["password"] = way.copy.password or ""
        whose = [name for kind in ("user", "role") for name in group.get(kind, ())]
        own = _has_password(group, environ)
        users = {name: way.user(environ[name], password=own) for name in whose if name not in found}
        changed |= users if way.copy.away else {}
        for kind, new in wanted.items():
            changed |= {
                name: way.host(environ[name]) if kind == "host" else new
                for name in group.get(kind, ())
                if name not in found and (kind != "database" or environ[name] == way.live.database)
            }
        changed |= _without_tls(group, environ, way)
        changed |= _port_too(group, environ, way)
    return changed


def _port_too(group: _Group, environ: Mapping[str, str], way: _Way) -> dict[str, str]:
    """Return the port's variable where a group has none: the copy has another than the default."""
    hosts = [name for name in group.get("host", ()) if not _OF_SERVICES.fullmatch(name)]
    if "port" in group or way.copy.port in way.live.ports or not hosts or _at(environ[hosts[0]])[1]:
        return {}
    part = _VARIABLE.fullmatch(hosts[0])
    word = part["word"] if part else ""
    return {f"{hosts[0].removesuffix(word)}{_port_beside(word)}": way.copy.port}


def _without_tls(group: _Group, environ: Mapping[str, str], way: _Way) -> dict[str, str]:
    """Return what says that there is TLS, as it is where the copy's server has none."""
    said = {name: environ[name].lower() for name in group.get("tls", ()) if way.copy.plain}
    off = {"true": "false", "on": "off", "yes": "no", "1": "0"}
    off |= dict.fromkeys(("require", "prefer", "allow", "verify-ca", "verify-full"), "disable")
    return {name: off[text] for name, text in said.items() if text in off}


def _hosts_left(groups: Mapping[str, _Group], environ: Mapping[str, str], way: _Way) -> list[str]:
    """Name the variables that say the live server's name, and of no other database of it."""
    if not way.copy.away or way.same_host(way.copy.host):
        return []
    grouped = {name for group in groups.values() for name in _names(group)}
    found = [name for name in environ if name.upper() == "HOST"]  # in no group
    for prefix, group in groups.items():
        databases = {environ.get(name) for name in group.get("database", ())}
        if not _NOT_POSTGRES.search(prefix) and databases <= {way.live.database}:
            found += [name for name in group.get("host", ()) if not _OF_SERVICES.fullmatch(name)]
    left = [name for name in found if name in environ and way.here(environ[name])]
    loose = [name for name in environ if name not in grouped]
    loose += [name for group in groups.values() for name in group.get("url", ())]
    loose = [name for name in loose if name in environ and not _NOT_POSTGRES.search(name)]
    left += [name for name in loose if _says_server(environ[name], way)]
    alone = [name for name in loose if _SAYS_HOST.fullmatch(name) and name not in LIBPQ.values()]
    left += [name for name in alone if environ[name] in way.live.hosts - _LOOPBACK]
    return list(dict.fromkeys(left))


def _by_service(
    environ: Mapping[str, str], arguments: Sequence[str], services: Collection[str]
) -> list[str]:
    """Name what leads by a service, of which nobody says whither: psql service=app.

    An argument of that form may be anybody's: it is one where libpq knows that service.
    """
    found = [name for name, text in environ.items() if _BY_SERVICE.search(text)]
    for number, text in enumerate(arguments, 1):
        said = {name: _unquoted(value) for name, value in _all(_PAIR, text)}
        if _BY_SERVICE.search(text) or said.get("service") in services:
            found.append(f"argument {number}")
    return found


def _others(
    said: Mapping[str, str], found: Collection[str], arguments: Sequence[str], way: _Way
) -> list[str]:
    """Name what leads to another database of the live server: there is no copy of that.

    What says no host is led to the copy's, which is the live one where that is not `away`.
    """
    names: list[str] = []
    for name, text in said.items():
        ask = name not in found and not _NOT_POSTGRES.search(name) and way.mentioned(text)
        names += [name] if ask and way.sees(partial(way.value, text)) else []
    for prefix, group in _groups(said).items():
        databases = group.get("database", [])
        hosts = [each for each in group.get("host", ()) if not (way.copy.away and each in found)]
        ports = ",".join(said[each] for each in group.get("port", ()) if said[each].isdecimal())
        ours = way.live.database in (said[each] for each in databases)
        if ours or _NOT_POSTGRES.search(prefix) or not _OF_DATABASES.search(prefix):
            continue
        for host, database in ((host, database) for host in hosts for database in databases):
            at, port = _at(said[host])
            look = partial(way.see, said[database], at, port or ports)
            names += [database] if way.sees(look) else []
    hosted = not way.copy.away
    numbers = {*options.others(arguments, way.live.database, way.here, hosted=hosted)}
    for number, text in enumerate(arguments):
        if way.mentioned(text) and way.sees(partial(way.argument, text)):
            numbers.add(number)
    return [*dict.fromkeys(names), *(f"argument {number + 1}" for number in sorted(numbers))]


def services(text: str) -> frozenset[str]:
    """Return the names of the services in a service file of libpq's."""
    return frozenset(re.findall(r"(?m)^[\t ]*\[([^\]\n]+)\]", text))


def _says_server(said: Any, way: _Way) -> bool:  # noqa: ANN401 -- JSON
    """Tell whether a value still says the live server's name, and of no other database of it."""
    if isinstance(said, str):
        return _text_says_server(said, way)
    if not isinstance(said, dict):
        return isinstance(said, list) and any(_says_server(each, way) for each in said)
    members = _members(said)
    texts = {n: each for n, each in said.items() if _is_text(each) and _member(n) != "host"}
    inside = any(_says_server(each, way) for each in said.values() if not _is_text(each))
    if {*members.get("database", ())} - {way.live.database}:
        return inside
    port = ",".join(members.get("port", ()))
    here = any(way.here(host, port) for host in members.get("host", ()))
    return inside or here or bool(_hosts_left(_groups(texts), texts, way))


def _text_says_server(said: str, way: _Way) -> bool:
    if loose := _LOOSE.fullmatch(said):
        return way.here(loose[1])
    with suppress(ValueError, RecursionError):
        return not _is_text(found := json.loads(said)) and _says_server(found, way)
    pairs = {_kind(name): _unquoted(value) for name, value in _all(_PAIR, said) or _all(_ADO, said)}
    if "host" in pairs:
        same = pairs.get("database", way.live.database) == way.live.database
        return same and way.here(pairs["host"], pairs.get("port", ""))
    return any(way.here(line[1]) for line in _LINE.finditer(said))


def _beside(
    groups: Mapping[str, _Group], environ: Mapping[str, str], found: Mapping[str, str], way: _Way
) -> dict[str, str]:
    """Return who and his password, where they stand beside a group or URL that was led.

    QUARKUS_DATASOURCE_PASSWORD beside QUARKUS_DATASOURCE_JDBC_URL; the password of something else
    is left as it is.
    """
    changed: dict[str, str] = {}
    led_to = [each for each, group in groups.items() if any(map(found.__contains__, _names(group)))]
    for prefix, group in groups.items():
        near = any(_above(prefix, each) or _above(each, prefix) for each in led_to)
        if not near or not way.copy.away or {"host", "database", "url"} & group.keys():
            continue
        own = {way.live.user, way.live.password} & {environ[name] for name in _names(group)}
        if not (own or _OF_DATABASES.search(prefix)) or _NOT_POSTGRES.search(prefix):
            continue
        changed |= {name: way.user(environ[name]) for name in group.get("user", ())}
        changed |= dict.fromkeys(group.get("password", ()), way.copy.password or "")
        changed |= _without_tls(group, environ, way)
    return {name: text for name, text in changed.items() if name not in found}


def _variables(
    environ: Mapping[str, str],
    groups: Mapping[str, _Group],
    beside: Mapping[str, _Who],
    sure: Collection[str],
    way: _Way,
) -> dict[str, str]:
    """Return what the variables become that name the live database."""
    found: dict[str, str] = {}
    for name, text in environ.items():
        new = way.value(text, name=name, certain=name in sure, who=beside.get(name, _NOBODY))
        if new is not None:
            found[name] = new
    found |= _grouped(groups, environ, found, way)
    found |= _beside(groups, environ, found, way)
    return dict.fromkeys(_bare(environ, way.live, sure), way.copy.database) | found


def _named(
    also: Collection[str],
    environ: Mapping[str, str],
    groups: Mapping[str, _Group],
    found: Mapping[str, str],
    way: _Way,
) -> dict[str, str]:
    """Return what was named by hand, led by its parts, and what is the live one's beside it.

    Beside it stands what has its prefix, or its name as prefix; each is led by itself, and only
    where it is exactly the live host, port, user, password or database.
    """
    changed: dict[str, str] = {}
    named = [name.removesuffix(FILE) for name in also]
    for name in named:
        unknown = name in environ and (name not in found or environ[name] == way.live.database)
        if unknown and (new := way.parts(environ[name], name)):
            changed[name] = new
    theirs = [name for name in named if name in changed or name in found]
    for prefix, group in groups.items():
        if any(_is_of(name, prefix, group) for name in theirs):
            changed |= {
                name: new
                for kind, names in group.items()
                for name in names
                if name not in {*found, *changed} and (new := way.exactly(kind, environ[name]))
            }
    # the copy has its host or port, too: a text that says no more leads nowhere by itself
    led = {name for name, new in {**found, **changed}.items() if new != environ.get(name)}
    beside = [each for each in groups.items() if led.intersection(_names(each[1]))]
    return {
        name: new
        for name, new in changed.items()
        if name in led or any(_is_of(name, *each) for each in beside)
    }


def _is_of(name: str, prefix: str, group: _Group) -> bool:
    return name in _names(group) or _above(prefix, f"{name.lower()}_")


def _seems(arguments: Sequence[str], way: _Way) -> list[int]:
    """Return which arguments seem to name the live server or database, as far as that is needed."""
    live, copy = way.live, way.copy
    seems = {*options.left(arguments, live.database, live.hosts if copy.away else (), live.ports)}
    if copy.database != live.database:
        seems |= {*options.vague(arguments, live.database, way.known())}
    return sorted(seems)


def _nobody(
    groups: Mapping[str, _Group],
    environ: Mapping[str, str],
    beside: Mapping[str, _Who],
    arguments: Sequence[str],
    way: _Way,
) -> list[str]:
    """Name the URLs whose drivers ask for somebody, where nothing says who that is.

    On the copy it is the gate; as it is where something names its role.
    """
    users = {environ[name] for group in groups.values() for name in group.get("user", ())}
    texts = {name: text for name, text in environ.items() if not beside.get(name, _NOBODY).user}
    known = {*environ.values()}
    texts |= {f"argument {n}": text for n, text in enumerate(arguments, 1) if text not in known}
    asking = [name for name, text in texts.items() if _says_nobody(text) and way.value(text)]
    return [] if way.live.user in users else asking


def _says_nobody(text: str) -> bool:
    if bare := _JDBC_BARE.fullmatch(text.strip()):
        return "user=" not in (bare[3] or "")
    whole = _ASKING.fullmatch(text.strip())
    return whole is not None and "@" not in whole[1] and "user=" not in whole[1]


def _bare(environ: Mapping[str, str], live: Live, also: Collection[str]) -> list[str]:
    """Name the variables that are the live database's bare name."""
    found = [name for name, text in environ.items() if text == live.database]
    others = {name for name in found if _OF_ANOTHER.fullmatch(name) or _NOT_POSTGRES.search(name)}
    return [n for n in found if (_BARE.fullmatch(n) and n not in others) or n in also]


def _names_together(
    prefix: str,
    group: Mapping[str, Sequence[str]],
    environ: Mapping[str, str],
    found: Mapping[str, str],
    way: _Way,
) -> bool:
    """Tell whether variables with one prefix name the live database."""
    if prefix == "postgres":
        return True  # as this program reads them
    if any(name in found for name in group.get("url", ())):
        return True
    if _NOT_POSTGRES.search(prefix):
        return False
    said = {kind: [environ[name] for name in names] for kind, names in group.items()}
    hosts, ports = said.get("host", []), said.get("port", [])
    ports = [port for port in ports if port.isdecimal()]  # Kubernetes' are tcp://…
    same = any(way.here(host, *ports[:1]) for host in hosts)
    if "database" in said:
        if way.live.database not in said["database"]:
            return False
        of_ours = way.live.user in said.get("user", ())
        return same or of_ours or bool(_OF_DATABASES.search(prefix))
    plain = any(not _OF_SERVICES.fullmatch(name) for name in group.get("host", ()))
    return same and ("user" in said or bool(plain and _OF_DATABASES.search(prefix)))


def _arguments(
    arguments: Sequence[str],
    places: Mapping[str, tuple[int, str]],
    new: Mapping[str, str],
    way: _Way,
    *,
    hosted: bool,
) -> list[str]:
    """Return the arguments of a command, led to the copy; `hosted`: its variables name the host.

    `places` are which of them stand for variables, and how those begin.
    """
    changed = {at: f"{begins}{new[n]}" for n, (at, begins) in places.items() if n in new}
    changed |= {at: f"_{name}=" for name, (at, _) in places.items() if name in _LEADING}
    changed |= _said_by_options(arguments, way, hosted=hosted)
    own = options.assigned(arguments)
    return [
        changed.get(at) or way.argument(text, adds=at not in own)
        for at, text in enumerate(arguments)
    ]


def _said_by_options(arguments: Sequence[str], way: _Way, *, hosted: bool) -> dict[int, str]:
    """Return the arguments that say host, port, user, password and database of the live one."""
    changed: dict[int, str] = {}
    groups = options.groups(arguments, way.known())
    libpq = {stem: options.is_libpqs(arguments, group) for stem, group in groups.items()}
    at = {stem: options.said(group, libpq=libpq[stem]) for stem, group in groups.items()}
    near = {
        stem for stem, kinds in at.items() if way.here(kinds.get("host", ""), kinds.get("port", ""))
    }
    for stem, group in groups.items():
        here, database = stem in near, at[stem].get("database")
        if _NOT_POSTGRES.search(stem) or database not in (None, way.live.database):
            continue
        if not here and ("host" in at[stem] or database is None):
            continue
        names = options.names(arguments, group, hosted=hosted or bool(near))
        own = "password" in at[stem]
        for each in group:
            letter = not libpq[stem] and len(each.name) == 1
            new = _option_said(each, way, here=here, own=own, letter=letter)
            if new is not None and (each.kind != "database" or here or each in names):
                changed[each.at] = f"{each.begins}{new}"
    place = options.place(arguments, way.live.database)
    if place is not None and arguments[place] == way.live.database:
        changed[place] = way.copy.database
    return changed


def _option_said(
    said: options.Said, way: _Way, *, here: bool, own: bool, letter: bool
) -> str | None:
    """Return an option's new value; None where it stays what it is.

    A `letter` may be for another thing: it says who connects where there is such a role.
    """
    if said.kind == "database":
        return way.copy.database if said.value == way.live.database else None
    new = None
    match said.kind if here else "":
        case "host" if way.here(said.value):
            new = way.host(said.value)
        case "port" if {*said.value.split(",")} & way.live.ports:
            new = way.copy.port
        case "user" if not letter or way.is_role(said.value):
            new = way.user(said.value, password=own)
        case "password" if way.copy.away:
            new = way.copy.password or ""
        case "tls" if way.copy.plain and said.value not in ("true", "false"):
            new = "disable"
    return new


def _led_files(files: Mapping[str, str], environ: Mapping[str, str], way: _Way) -> dict[str, str]:
    """Return the new contents of files that variables name."""
    found: dict[str, str] = {}
    for name, text in files.items():
        new = way.value(text) if name in environ else None
        if new is not None:
            found[name] = new
        elif way.copy.away and text.strip() == way.live.password:
            found[name] = way.copy.password or ""
    return found


def _elsewhere(copy: Copy) -> set[str]:
    """Return libpq's variables that would lead elsewhere, or ask for what the copy has not."""
    return _LEADING | (_DEMANDS if copy.away else set())


def _pg_tls(name: str) -> bool:
    return name.startswith("PG") and bool(_TLS.search(name))


# small parts


def _where(rest: str) -> tuple[str, str, str]:
    """Return what stands before a URL's options, ?, and the options; a password may hold a ?."""
    credentials = re.match(r"[^@/?]*:[^@/=]*@", rest)
    at = credentials.end() if credentials else 0
    where, mark, query = rest[at:].partition("?")
    return rest[:at] + where, mark, query


def _addresses(netloc: str) -> tuple[str, str]:
    """Return the hosts and the ports of a URL's address, each with commas."""
    names, ports = [], []
    for part in netloc.split(","):
        head, bracket, tail = part.rpartition("]")
        name, _, port = (tail if bracket else part).partition(":")
        names.append(f"{head}{bracket}{name}" if bracket else name)
        ports.append(port)
    return ",".join(names), ",".join(filter(None, ports))


def _at(said: str) -> tuple[str, str]:
    """Return host and port of an address that may have both: db:5432, [::1]:5432, ::1, a socket."""
    alone = said.startswith("/") or (said.count(":") > 1 and "[" not in said and "," not in said)
    return (said, "") if alone else _addresses(said)


def _netloc(copy: Copy) -> str:
    host = f"[{copy.host}]" if ":" in copy.host else copy.host
    return f"{host}:{copy.port}"


def _plain_key(name: str) -> str:
    return {"username": "user"}.get(unquote(name).lower(), unquote(name).lower())


def _option(name: str, equals: str, value: str, wanted: Mapping[str, str | None]) -> str:
    new = wanted.get(_plain_key(name))
    return f"{name}{equals}{value}" if new is None else f"{name}={quote(new, safe='')}"


def _all(pattern: re.Pattern[str], text: str) -> list[tuple[str, str]]:
    """Return all pairs of a text that holds nothing else, else none."""
    found: list[tuple[str, str]] = []
    at = 0
    while at < len(text):
        match = pattern.match(text, at)
        if not match or match.end() == at:
            return [] if text[at:].strip() else found
        found.append((match[1], match[2]))
        at = match.end()
    return found


def _is_address(pairs: Sequence[tuple[str, str]]) -> bool:
    """Tell whether pairs are a connection string: one of a single word may mean anything."""
    names = {name.lower() for name, _ in pairs}
    return len(names) > 1 and ("dbname" in names or len(names & _KEYWORDS) > 1)


def _port_beside(host: str) -> str:
    """Return a port's name in the letters of a host's."""
    return "PORT" if host.isupper() else "port" if host.islower() else "Port"


def _is_text(said: object) -> bool:
    return isinstance(said, str)


def _is_url(said: object) -> bool:
    bare = said.strip() if isinstance(said, str) else ""
    return bool(_WHOLE_URL.fullmatch(bare) or _JDBC_BARE.fullmatch(bare))


def _members(said: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return what the members of a JSON object say of a database, by kind."""
    found: dict[str, list[str]] = {}
    for name, each in said.items():
        several = each if isinstance(each, list) else [each]
        texts = [str(one) for one in several if type(one) in (str, int) and one]
        if texts := [text for text in texts if not _is_url(text)]:
            found.setdefault(_member(name), []).extend(texts)
    if "database" not in found and {"name", "host"} <= found.keys():
        found["database"] = found["name"]
    return found


def _member(name: str) -> str:
    """Return what a JSON object's member says; a `name` may be anybody's."""
    more = {"name": "name", "hosts": "host", "ports": "port", "servername": "host",
            "portnumber": "port", "databasename": "database"}  # fmt: skip
    return more.get(name.lower().replace("_", "")) or _kind(name)


def _kind(name: str) -> str:
    bare = name.lower().replace(" ", "").replace("_", "")
    return "" if bare in _NOT_IN_STRINGS else words.KINDS.get(bare, "")


def _unquoted(value: str) -> str:
    if value[:1] == "'" and value[-1:] == "'" and len(value) > 1:
        return re.sub(r"\\(.)", r"\1", value[1:-1]).replace("''", "'")
    if value[:1] == '"' and value[-1:] == '"' and len(value) > 1:
        return value[1:-1].replace('""', '"')
    return value


def _quoted(value: str, *, libpq: bool) -> str:
    if re.fullmatch(r"[\w./:@%+-]+", value):
        return value
    if libpq:
        return "'" + value.replace("\\", r"\\").replace("'", r"\'") + "'"
    return '"' + value.replace('"', '""') + '"'


def _passwords(text: str) -> set[str]:
    """Return the passwords in a value's URLs and keyword strings, as written and as meant."""
    found: set[str] = set()
    bare = text.strip()
    whole = _WHOLE_URL.fullmatch(bare)
    for match in [whole] if whole else _URL.finditer(text):
        where, _, query = _where(match["rest"])
        said = where.rpartition("@")[0].partition(":")[2]
        found |= {said, unquote(said)}
        for item in query.split("&"):
            name, _, value = item.partition("=")
            if re.search(r"(?i)passw|pwd|secret|token", name):
                found |= {value, unquote(value)}
    body = bare[len(_PDO) :] if bare.lower().startswith(_PDO) else bare
    for name, value in _all(_PAIR, body) or _all(_ADO, body):
        if _kind(name) == "password":
            found.add(_unquoted(value))
    for match in _TOLD.finditer(text):
        written = match["double"] or match["single"] or match["bare"] or ""
        found |= {written, re.sub(r"\\(.)", r"\1", written)}
    return {each for each in found if each and each.lower() not in _PLAIN_VALUES}
