"""Settings and the three connection vocabularies, read once; every problem is reported at once."""

from __future__ import annotations

import os
import re
import socket
import stat
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from preflight.base import plain, stop, unopened
from preflight.base.errors import ConfigInvalid, Problem

if TYPE_CHECKING:
    from preflight.base import notify

PREFIX = "PREFLIGHT_"
PASSWORDS = ("PGPASSWORD", "POSTGRES_PASSWORD")
REHEARSE_URLS = ("PREFLIGHT_REHEARSE_URL", "PREFLIGHT_REHEARSE_CLONE_URL")
FILED = ("PREFLIGHT_NOTIFY_URL", "PREFLIGHT_BACKUP_RECIPIENTS")
SECRETS = ("DATABASE_URL", *PASSWORDS, *REHEARSE_URLS, *FILED)
AS_FILES = frozenset(f"{name}_FILE" for name in SECRETS if name.startswith(PREFIX))
MOST_SECONDS = 2_147_483  # what fits into PostgreSQL's timeouts, which are milliseconds

_SERVICE_LINK = re.compile(
    r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$"
)
_SERVICE_PORT_VALUE = re.compile(r"(tcp|udp|sctp)://")
# PostgreSQL's reserved words, which would have to be quoted wherever the schema is named
_RESERVED = frozenset(
    """all analyse analyze and any array as asc asymmetric authorization binary both case cast check
    collate collation column concurrently constraint create cross current_catalog current_date
    current_role current_schema current_time current_timestamp current_user default deferrable desc
    distinct do else end except false fetch for foreign freeze from full grant group having ilike in
    initially inner intersect into is isnull join lateral leading left like limit localtime
    localtimestamp natural not notnull null offset on only or order outer overlaps placing primary
    references returning right select session_user similar some symmetric system_user table
    tablesample then to trailing true union unique user using variadic verbose when where window
    with information_schema public""".split()  # noqa: SIM905 -- a hundred words in eleven lines
)
_NAMES = {name for names in plain.VOCABULARIES.values() for name in names.values()}
_READ = frozenset(f"{name}{end}" for name in _NAMES.union(SECRETS) for end in ("", "_FILE"))
_QUOTED = re.compile(r"""(["']).*\1""", re.DOTALL)
_FILES = "a shell takes quotes off, `docker run --env-file` does not"
_LINE_ENDS = "Windows line ends in a .env file leave a \\r, `echo` in a Secret a \\n"
_DIGITS = re.compile(r"[0-9\s,]{1,40}")
# names of a connection's parts, as other programs end theirs
_OF_CONNECTIONS = re.compile(
    r"(?:(?:DB|DATABASE|PG|POSTGRES|POSTGRESQL|SERVER|TARGET|CONNECTION)_?)?"
    r"(?:URL|URI|DSN|HOST|HOSTNAME|PORT|USER|USERNAME|PASSWORD|DB|DATABASE|NAME)(?:_FILE)?"
)
_BUCKET = re.compile(
    r"(s3|gs|az)://[a-zA-Z0-9][a-zA-Z0-9._-]*(/(?!\.{1,2}(?:/|\Z))[^/?#\s\x00-\x1f]+)*/?"
)
_RECIPIENT = re.compile(r"age1[02-9ac-hj-np-z]{58}|ssh-(ed25519|rsa) [A-Za-z0-9+/]+={0,2}( .*)?")
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_LISTED = re.compile(r'\s*(?:"((?:[^"]|"")+)"\s*|([^,"][^,]*))(?:,|\Z)')
_NAME_BYTES = 63
_OF_SERVICES = plain.VOCABULARIES["PG*"] | {
    "password": "PGPASSWORD",
    "options": "PGOPTIONS",
    "connect_timeout": "PGCONNECT_TIMEOUT",
}
_UNSAID = "-\x01-"  # no host, no number, nobody's name
_PIPED: dict[str, bytes] = {}  # what pipes held


@dataclass(frozen=True, slots=True)
class Config:
    """What one run was told; seconds, milliseconds and megabytes as the names say."""

    target: Mapping[str, str] = field(repr=False)
    child_env: Mapping[str, str] = field(repr=False)  # of pg_dump and pg_restore
    migrations_dir: Path
    layout: str = "auto"
    schema: str = "preflight"
    schemas: tuple[str, ...] = ()  # as they were named; `only` has ours, too
    backup_dir: Path | str = Path("/backups")  # a text is the address of a bucket
    backup_endpoint: str | None = None
    backup_recipients: tuple[str, ...] | None = None  # public keys
    spool_dir: Path | None = None
    backup: str = "required"
    backup_command: tuple[str, ...] | None = None
    archive_max_age_h: float = 26
    target_max_age_min: float = 30
    archive_status_file: Path | None = None
    backup_keep: int = 5
    wait_timeout_s: float = 120
    lock_wait_s: float = 600
    lock_timeout_ms: int = 2000
    lock_retry_s: float = 300
    jobs: int | str = "auto"  # sessions that dump and restore
    parallel_mb: int = 1000  # of a database that more than one dumps
    statement_timeout_s: float = 0
    rehearse: str = "auto"
    rehearse_max_mb: int = 2048
    rehearse_partial: str = "refuse"
    rehearse_max_lock_s: float = 0
    rehearse_wal_mb_per_min: int = 2000
    rehearse_on: str = "auto"
    rehearse_dir: Path = Path("/scratch")
    rehearse_dir_mb: int = 0
    rehearse_url: Mapping[str, str] | None = field(default=None, repr=False)  # as libpq reads it
    rehearse_clone_url: Mapping[str, str] | None = field(default=None, repr=False)
    first_contact: str = "refuse"
    ahead: str = "allow"
    out_of_order: str = "fail"
    log: str = "auto"
    log_level: str = "info"
    log_sql: str = "off"
    termination_log: Path = Path("/dev/termination-log")
    metrics_file: Path | None = None
    notify_url: notify.Address | None = field(default=None, repr=False)
    run_id: str = ""
    near: tuple[str, ...] = ()  # the schemas that a wrapped command's own URL names
    warnings: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)  # as it was given to us
    said_in: Mapping[str, str] = field(default_factory=dict)  # of a target: what says what is its

    def named(self, key: str, variables: str) -> str:
        """Return what people call the place that says a value: a target's own, or variables."""
        return self.said_in.get(key, variables)

    @property
    def database(self) -> str:
        """The database's name, as far as it is known before a connection."""
        return self.target.get("dbname", "")

    @property
    def only(self) -> tuple[str, ...]:
        """The schemas that a run is limited to, ours among them; none: all."""
        return tuple(sorted({*self.schemas, self.schema})) if self.schemas else ()

    @classmethod
    def from_env(
        cls,
        environ: Mapping[str, str],
        migrations_dir: Path,
        run_id: str,
        *,
        wrapping: bool = False,
    ) -> Config:
        """Read every setting; raises ConfigInvalid that names all problems, never a secret.

        `wrapping`: another tool's command reads the same environment.
        """
        reader = _Reader(environ, wrapping=wrapping)
        target = reader.target()
        settings = reader.settings()
        reader.unknown_settings()
        if reader.problems:
            raise ConfigInvalid.of("config.invalid", reader.problems)
        settings.setdefault("migrations_dir", migrations_dir)
        return cls(
            target=target,
            child_env=child_environment(environ),
            run_id=run_id,
            near=reader.near,
            warnings=tuple(reader.warnings),
            environ=environ,
            **settings,  # type: ignore[arg-type]
        )


def environment() -> dict[str, str]:
    """Return the process environment as UTF-8, whatever the locale says.

    An empty value is no value: libpq would take PGSSLMODE= for a wrong one, so that goes. So does
    the password, once it is read: libpq would offer it to a scratch server, too.
    """
    for name in [name for name, value in os.environb.items() if name[:2] == b"PG" and not value]:
        del os.environb[name]
    found = {
        name.decode("utf-8", "surrogateescape"): value.decode("utf-8", "surrogateescape")
        for name, value in os.environb.items()
    }
    os.environb.pop(b"PGPASSWORD", None)
    return found


def notified(environ: Mapping[str, str]) -> notify.Address | None:
    """Return the address that is told of runs, whatever else is wrong with the settings."""
    return _Reader(environ)._address("PREFLIGHT_NOTIFY_URL")  # noqa: SLF001 -- of this room


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what pg_dump and pg_restore may see: no secret, no locale, no vocabulary of ours."""
    hidden = {*SECRETS, "PGDATABASE", "PGHOST", "PGHOSTADDR", "PGPORT", "PGUSER"}
    hidden |= {"PGCLIENTENCODING"}  # ours is fixed; a dump is in the database's own encoding
    kept = {name: value for name, value in environ.items() if name not in hidden}
    return kept | {"LC_ALL": "C", "LANGUAGE": "C"}


def strangers_environment(child_env: Mapping[str, str]) -> dict[str, str]:
    """Return what a program may see that is no client: not where the database is, nor its keys."""
    hidden = {f"{name}_FILE" for name in SECRETS} | {"PGSERVICE", "PGSERVICEFILE", "PGPASSFILE"}
    hidden |= _NAMES
    return {name: value for name, value in child_env.items() if name not in hidden}


def contents(path: str) -> bytes:
    """Return what a secret's file holds; a pipe, which is empty then, is read once in a process."""
    if path in _PIPED:
        return _PIPED[path]
    # a FIFO without a writer must not hang us; one that has one may be slower
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    os.set_blocking(descriptor, True)
    with os.fdopen(descriptor, "rb") as file, stop.allowed():
        raw = file.read(plain.SECRET_MAX_BYTES + 1)
        if raw and not stat.S_ISREG(os.fstat(descriptor).st_mode):
            _PIPED[path] = raw
    return raw


def completed(target: Mapping[str, str]) -> dict[str, str]:
    """Return libpq's parameters with those that it adds: a service's, the environment's, its own.

    It is asked for what it refuses before it looks for a host, and before it reads a passfile.
    """
    from psycopg import pq  # noqa: PLC0415 -- not needed to read the settings
    from psycopg.conninfo import make_conninfo  # noqa: PLC0415 -- likewise

    refused = {"password": "-", "sslmode": "-"}
    pgconn = pq.PGconn.connect_start(make_conninfo("", **{**target, **refused}).encode())
    added = {
        each.keyword.decode(): each.val.decode(errors="replace") for each in pgconn.info if each.val
    }
    pgconn.finish()
    return {name: value for name, value in added.items() if name not in refused} | dict(target)


def unknown_service(target: Mapping[str, str]) -> str:
    """Say which service no file has; of a URL no name is shown: it may be a password's piece."""
    if "service" in target:
        return "the URL names a service that no service file has"
    return f"PGSERVICE names {os.environ.get('PGSERVICE', '')!r}, which no service file has"


def unopenable(url: Mapping[str, str], environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return what libpq would wait at for ever, before it is asked for anything: see `unopened`."""
    service = url.get("service") or environ.get("PGSERVICE")
    if service and (wrong := list(unopened.services(url, environ))):
        return wrong
    theirs = completed({**url, "service": service}) if service else {}
    return list(unopened.others(url, theirs, environ))


def of_service(service: str) -> dict[str, str]:
    """Return what a service alone says, which libpq takes before the environment's.

    The environment says meanwhile what nobody would, so that all else is the service's own.
    """
    from psycopg import pq  # noqa: PLC0415 -- likewise
    from psycopg.conninfo import make_conninfo  # noqa: PLC0415 -- likewise

    before = {name: os.environ.get(name) for name in _OF_SERVICES.values()}
    try:
        os.environ.update(dict.fromkeys(before, _UNSAID))
        pgconn = pq.PGconn.connect_start(make_conninfo("", service=service, sslmode="-").encode())
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    said = {
        each.keyword.decode(): (each.val or b"").decode(errors="replace") for each in pgconn.info
    }
    pgconn.finish()
    return {key: said[key] for key in _OF_SERVICES if said.get(key, _UNSAID) not in ("", _UNSAID)}


def _text(value: str) -> str:
    """A URL."""  # noqa: D401 -- part of an error's sentence
    return value


def _keys(value: str) -> str:
    """Public keys of age, one a line or with commas between them."""
    return value


def _path(value: str) -> Path:
    """A path."""  # noqa: D401 -- likewise
    if "://" in value:
        raise ValueError
    return Path(value)


def _place(value: str) -> Path | str:
    """A directory, or s3://, gs:// or az:// with a bucket and perhaps a prefix."""  # noqa: D401
    if "://" not in value:
        if re.match("(?:s3|gs|az):", value):  # a slash was forgotten: no directory of that name
            raise ValueError
        return Path(value)
    if not _BUCKET.fullmatch(value) or (value.startswith("az:") and "\\" in value):
        raise ValueError  # Azure reads \ as /, and would give what it was not asked for
    return value


def _endpoint(value: str) -> str:
    """An address that begins with http:// or https://, without a login."""  # noqa: D401
    from urllib.parse import urlsplit  # noqa: PLC0415 -- only where one is named

    parts = urlsplit(value)
    if not re.fullmatch(r"https?://[^\s@?#]+", value) or not parts.hostname:
        raise ValueError
    parts.port  # noqa: B018 -- raises ValueError for one that there cannot be
    return value


def _seconds(value: str) -> float:
    """A number from 0 to 2147483."""  # noqa: D401 -- part of an error's sentence
    if not _NUMBER.fullmatch(value) or float(value) > MOST_SECONDS:
        raise ValueError
    return float(value)


def _command(value: str) -> tuple[str, ...]:
    """A program and its arguments, quoted as for a shell, which it is not given to."""  # noqa: D401
    import shlex  # noqa: PLC0415 -- only where one is named

    found = tuple(shlex.split(value))
    if not found or not found[0]:
        raise ValueError
    return found


def _whole(least: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", value) or int(value) < least:
            raise ValueError
        return int(value)

    parse.__doc__ = f"a whole number from {least} to 999999999"
    return parse


def _jobs(value: str) -> int | str:
    """A whole number from 1 to 999999999, or auto."""  # noqa: D401
    return value if value == "auto" else _whole(1)(value)


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in words:
            raise ValueError
        return value

    parse.__doc__ = "one of " + ", ".join(words)
    return parse


def _schema(value: str) -> str:
    """A lower-case name of 1 to 63 letters, digits and _, not public, a system's or reserved."""  # noqa: D401
    if (
        value.startswith("pg_")
        or value in _RESERVED
        or not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", value)
    ):
        raise ValueError
    return value


def _schemas(value: str) -> tuple[str, ...]:
    """Names of schemas with commas between them; one that holds a comma in double quotes."""
    found: list[str] = []
    at = 0
    while at < len(value):
        item = _LISTED.match(value, at)
        if item is None:
            raise ValueError
        found.append(item[1].replace('""', '"') if item[1] else item[2].strip())
        at = item.end()
    if value.endswith(",") or not all(map(_is_schema, found)):
        raise ValueError
    return tuple(dict.fromkeys(found))


def _is_schema(name: str) -> bool:
    system = name.startswith("pg_") or name == "information_schema"
    return 0 < len(name.encode()) <= _NAME_BYTES and not system


# of other tools: each has a room below files/layouts
OTHER_LAYOUTS = (
    "golang-migrate",
    "dbmate",
    "goose",
    "flyway",
    "supabase",
    "prisma",
    "sqlx",
    "diesel",
    "graphile",
    "sqitch",
)
SETTINGS: dict[str, Callable[[str], object]] = {
    "MIGRATIONS_DIR": _path,
    "LAYOUT": _one_of("auto", "ours", *OTHER_LAYOUTS),
    "SCHEMA": _schema,
    "SCHEMAS": _schemas,
    "BACKUP_DIR": _place,
    "BACKUP_ENDPOINT": _endpoint,
    "BACKUP_RECIPIENTS": _keys,
    "SPOOL_DIR": _path,
    "BACKUP": _one_of("required", "archive", "command", "off"),
    "BACKUP_COMMAND": _command,
    "ARCHIVE_MAX_AGE_H": _seconds,
    "TARGET_MAX_AGE_MIN": _seconds,
    "ARCHIVE_STATUS_FILE": _path,
    "BACKUP_KEEP": _whole(1),
    "WAIT_TIMEOUT_S": _seconds,
    "LOCK_WAIT_S": _seconds,
    "LOCK_TIMEOUT_MS": _whole(1),
    "LOCK_RETRY_S": _seconds,
    "JOBS": _jobs,
    "PARALLEL_MB": _whole(0),
    "STATEMENT_TIMEOUT_S": _seconds,
    "REHEARSE": _one_of("auto", "always", "off"),
    "REHEARSE_MAX_MB": _whole(0),
    "REHEARSE_PARTIAL": _one_of("refuse", "accept"),
    "REHEARSE_MAX_LOCK_S": _seconds,
    "REHEARSE_WAL_MB_PER_MIN": _whole(0),
    "REHEARSE_ON": _one_of("auto", "local", "server"),
    "REHEARSE_DIR": _path,
    "REHEARSE_DIR_MB": _whole(0),
    "REHEARSE_URL": _text,
    "REHEARSE_CLONE_URL": _text,
    "FIRST_CONTACT": _one_of("refuse", "pending"),
    "AHEAD": _one_of("allow", "fail"),
    "OUT_OF_ORDER": _one_of("fail", "allow"),
    "LOG": _one_of("auto", "json", "gcp", "console"),
    "LOG_LEVEL": _one_of("debug", "info", "warning", "error"),
    "LOG_SQL": _one_of("off", "on"),
    "TERMINATION_LOG": _path,
    "METRICS_FILE": _path,
    "NOTIFY_URL": _text,
}


_NO_DATABASE = {
    "PREFLIGHT_REHEARSE_URL": "Write one at its end to connect to, as /postgres: a copy is a new "
    "database beside it.",
    "PREFLIGHT_REHEARSE_CLONE_URL": "Write the clone's at its end, as /unicorn_db.",
}
_NOT_IN_HOSTS = ":/[]" + string.whitespace
_OF_A_DATABASE = re.compile(r"postgres\w*://|://.*@|(?:^|\s)(?:dbname|user|password)\s*=")
_ADDRESS = re.compile(r"\w://|(?:^|\s)(?:host|hostaddr|password|service)\s*=")


def _is_no_host(host: str) -> bool:
    """Tell whether what should be a host can be none: a URL, or one with its port."""
    if host.startswith("/") or not set(host) & set(_NOT_IN_HOSTS):
        return False
    try:
        socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    except (OSError, ValueError):
        return True
    return False


def misaddressed(target: Mapping[str, str]) -> Iterator[tuple[str, str | None]]:
    """Yield what is wrong with an address, and what to do: libpq would say so late.

    No value is shown: in a URL with a stray character it may be a piece of the password.
    """
    if _OF_A_DATABASE.search(target.get("host", "")):
        yield "the host is a whole URL or connection string", "Say that as DATABASE_URL."
    elif target.get("host", "").startswith("@/"):
        yield "the host is an abstract Unix socket, which is not supported", "Name a directory."
    elif "@" in target.get("host", ""):
        yield "the host holds an '@'", "In a URL write the @ of a password as %40."
    elif odd := next(filter(_is_no_host, target.get("host", "").split(",")), None):
        held = next((each for each in odd if each in _NOT_IN_HOSTS), "")
        yield (
            f"the host is no name and no address: it holds {held!r}",
            _frayed(odd, target["host"])
            or "It stands alone there; the port has a place of its own (POSTGRES_PORT).",
        )
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,9}\s*", target.get("connect_timeout") or "0"):
        yield "the connect_timeout is not a whole number of seconds", None
    for key in ("hostaddr", "user", "dbname"):
        if _ADDRESS.search(target.get(key, "")):
            yield f"the {key} is a whole URL or connection string", "Say that as DATABASE_URL."
    for port in filter(None, target.get("port", "").split(",")):
        if not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:  # noqa: PLR2004 -- TCP's range
            yield "the port is not a number from 1 to 65535", _frayed(port, target["port"])


def frayed(value: str) -> str | None:
    """Return what to do about a blank or a line end around a value; None where there is none."""
    if value == value.strip():
        return None
    if not value[-1].isspace():
        return f"Take the {value[0]!r} off its front."
    return f"Take the {value[-1]!r} off its end{_why(value)}."


def _frayed(each: str, whole: str) -> str | None:
    """Return what to do about a blank around one of a list."""
    blank = "Write the list without a blank beside a comma."
    return frayed(whole) or (blank if each != each.strip() else None)


def _quoted(name: str) -> str:
    """Return the warning for a password, or a file's text, with its quotes on."""
    why = "" if name.endswith("_FILE names") else f": {_FILES}"
    return f"{name} begins and ends with a quote, which counts{why}"


def _ended(name: str, value: str) -> str:
    return f"{name} ends with {value[-1]!r}, which counts{_why(value)}"


def _why(value: str) -> str:
    return f": {_LINE_ENDS}" if value[-1] in "\r\n" else ""


def whole(url: Mapping[str, str]) -> dict[str, str]:
    """Return what a URL means that is of another server than the configured one.

    Of a host without a port it is the usual one: PGPORT, which libpq would take, is of the
    configured server, as is PGHOST of a URL that names no host.
    """
    alone = {"host", "hostaddr"}.isdisjoint(url) or "service" in url
    return {**({} if alone else {"port": plain.DEFAULTS["port"]}), **url}


def _dialled(target: Mapping[str, str], service: Mapping[str, str]) -> dict[str, str]:
    """Return a target with what a service says of its host: else that is asked for nothing more."""
    known = ("hostaddr", "port") if "host" in target else ()
    return {key: service[key] for key in known if key in service} | dict(target)


def _database(service: str, target: Mapping[str, str]) -> dict[str, str]:
    """Return the database that a service leads to: libpq calls it like its user if nobody does."""
    user = {"user": target["user"]} if "user" in target else {}
    known = completed({"service": service, **user})
    return {"dbname": known["dbname"]} if "dbname" in known else {}


def _said(by: str, service: Mapping[str, str], key: str) -> dict[str, str]:
    """Return what a service says of one thing, with who named the service."""
    return {by: service[key]} if key in service else {}


class _Reader:
    """Collects problems and warnings while the environment is read; an empty value is no value."""

    def __init__(self, environ: Mapping[str, str], *, wrapping: bool = False) -> None:
        self.wrapping = wrapping
        self.near: tuple[str, ...] = ()
        self.problems: list[Problem] = []
        self.warnings: list[str] = []
        self.links = [name for name, value in environ.items() if _is_service_link(name, value)]
        self.environ = {
            name: value for name, value in environ.items() if value and name not in self.links
        }
        self._take_quotes()
        self._see_line_ends()

    def wrong(self, message: str, hint: str | None = None) -> None:
        self.problems.append(Problem(message, hint))

    def _take_quotes(self) -> None:
        """Name what has its quotes on: a shell takes them off, docker's --env-file does not."""
        for name, value in sorted(self.environ.items()):
            listed = name == f"{PREFIX}SCHEMAS" and value.startswith('"')  # SQL's quotes
            if listed or not _QUOTED.fullmatch(value) or not _is_read(name):
                continue
            if name in PASSWORDS:  # they may belong to it
                self.warnings.append(_quoted(name))
            elif name not in SECRETS:
                self.wrong(f"{name} has its quotes on", f"Take them off: {_FILES}.")
                del self.environ[name]

    def _see_line_ends(self) -> None:
        """Name what ends with a line end that nobody takes off: a server would only say no."""
        self.warnings += [
            _ended(name, value)
            for name, value in sorted(self.environ.items())
            if name in _NAMES.union(PASSWORDS) and value[-1] in "\r\n"
        ]

    def secret(self, name: str) -> str | None:
        """Return the value of NAME or of the file that NAME_FILE names."""
        value, path = self.environ.get(name), self.environ.get(f"{name}_FILE")
        if path is None:
            return self._clean(name, value)
        if value is not None:
            self.wrong(f"{name} and {name}_FILE are both set", "Keep one of the two.")
            return None
        try:
            raw = contents(path)
        except OSError as error:
            # a password set where its file's name belongs must not be shown
            shown = path if path.startswith("/") else "a file"
            self.wrong(
                f"{name}_FILE names {shown}, which cannot be read: {error.strerror}",
                frayed(path)
                or "Check the path, and that this user may read it (mode 0400, or 0440 with "
                "fsGroup).",
            )
            return None
        if len(raw) > plain.SECRET_MAX_BYTES:
            self.wrong(f"{name}_FILE names {path}, which is larger than 64 KiB: not a secret")
            return None
        text = re.sub(r"\r?\n\Z", "", raw.decode("utf-8", "surrogateescape"))
        if name.endswith("_URL"):
            text = text.removeprefix("\ufeff")  # as some editors begin a file
        if not text:
            self.wrong(f"{name}_FILE names {path}, which is empty")
            return None
        if name in _NAMES.union(PASSWORDS):
            said = f"what {name}_FILE names"
            self.warnings += [_quoted(said)] if _QUOTED.fullmatch(text) else []
            self.warnings += [_ended(said, text)] if text[-1] in "\r\n" else []
        return self._clean(f"{name}_FILE", text)

    def _clean(self, name: str, value: str | None) -> str | None:
        if value is None:
            return None
        if "\0" in value:
            self.wrong(f"{name} holds a NUL byte")
            return None
        try:
            value.encode()
        except UnicodeEncodeError:
            self.wrong(f"{name} is not valid UTF-8")
            return None
        return value

    def target(self) -> dict[str, str]:
        """Return the libpq parameters to connect with."""
        sources = {"DATABASE_URL": self._url("DATABASE_URL")}
        for vocabulary, names in plain.VOCABULARIES.items():
            sources[vocabulary] = {
                key: value
                for key, name in names.items()
                if (value := self._clean(name, self.environ.get(name)))
            }
        if not self._opened("DATABASE_URL", sources["DATABASE_URL"]):
            return {}
        return self._told_by(sources)

    def _told_by(self, sources: dict[str, dict[str, str]]) -> dict[str, str]:
        by, service = self._service(sources["DATABASE_URL"])
        theirs = of_service(service) if service else {}
        self._from_files(sources, theirs)
        passwords = {
            "DATABASE_URL": sources["DATABASE_URL"].pop("password", None),
            "PGPASSWORD": self.secret("PGPASSWORD"),
            "POSTGRES_PASSWORD": self.secret("POSTGRES_PASSWORD"),
        }
        target: dict[str, str] = {}
        for key in ("host", "hostaddr", "port", "user", "dbname"):
            found = {name: source[key] for name, source in sources.items() if key in source}
            said = {} if key in sources["DATABASE_URL"] else _said(by, theirs, key)
            self._agree(key, said | found)
            if found:
                target[key] = next(iter(found.values()))
        self._check_hostaddr({**sources, by: theirs | sources.get(by, {})})
        found = {name: value for name, value in passwords.items() if value}
        said = {} if passwords["DATABASE_URL"] else _said(by, theirs, "password")
        self._agree("password", said | found)
        if found:
            target["password"] = next(iter(found.values()))
        for key, name in (("options", "PGOPTIONS"), ("connect_timeout", "PGCONNECT_TIMEOUT")):
            value = theirs.get(key) or self._clean(name, self.environ.get(name))
            if value and key not in sources["DATABASE_URL"]:
                target[key] = value
        target = _dialled(target, theirs)
        for key, value in (theirs | sources["DATABASE_URL"] | target).items():
            for message, hint in misaddressed({key: value}):
                else_by = by if key in theirs else "PGCONNECT_TIMEOUT"
                self.wrong(f"{self._named(key, value, sources, else_by)}: {message}", hint)
        defaults = _database(service, target) if service else dict(plain.DEFAULTS)
        if "hostaddr" in target:
            defaults.pop("host", None)
        return sources["DATABASE_URL"] | defaults | target

    def _opened(self, name: str, url: dict[str, str]) -> bool:
        """Tell whether libpq can be asked: whatever it opens is a file, but for a passfile.

        One that is none is ignored, as psql does.
        """
        whole = True
        for key, wrong in unopenable(url, {**os.environ, **self.environ}):
            said = f"{name}: {wrong}" if wrong.startswith("the URL ") else wrong
            if key == "passfile":
                warning = f"{said}: it is ignored"
                self.warnings += [warning] if warning not in self.warnings else []
                url["passfile"] = unopened.NOWHERE
            else:
                self.wrong(said, unopened.HINT)
                whole = False
        return whole

    def _service(self, url: Mapping[str, str]) -> tuple[str, str | None]:
        """Return who names a service, and which."""
        if "service" in url:
            return "DATABASE_URL", url["service"]
        return "PGSERVICE", self._clean("PGSERVICE", self.environ.get("PGSERVICE"))

    def _named(
        self, key: str, value: str, sources: Mapping[str, Mapping[str, str]], else_by: str
    ) -> str:
        """Return who says a value; a port's own variable with it, which is no secret."""
        vocabulary = next((name for name, source in sources.items() if key in source), else_by)
        name = plain.VOCABULARIES.get(vocabulary, {}).get(key, vocabulary)
        name = name if name in self.environ else f"{name}_FILE"
        shown = key == "port" and name in _NAMES and _DIGITS.fullmatch(value)
        return f"{name}={value!r}" if shown else name

    def _from_files(self, sources: dict[str, dict[str, str]], service: Mapping[str, str]) -> None:
        """Add what only a file tells, as POSTGRES_DB_FILE does for the official image."""
        given = set(service).union(*sources.values())
        for vocabulary, names in plain.VOCABULARIES.items():
            for key, name in names.items():
                asked = key not in given or name in self.environ  # the latter: both are set
                if asked and f"{name}_FILE" in self.environ and (value := self.secret(name)):
                    sources[vocabulary][key] = value

    def _agree(self, key: str, found: Mapping[str, str]) -> None:
        if len(set(found.values())) > 1:
            names = " and ".join(found)
            odd = [each for value in found.values() for each in misaddressed({key: value})]
            shown = "" if odd or key == "password" else ": " + " / ".join(found.values())
            self.wrong(
                f"{names} name different values for {key}{shown}",
                "Keep one way to say where the database is and unset the others.",
            )

    def _check_hostaddr(self, sources: Mapping[str, Mapping[str, str]]) -> None:
        """A host's address must come with its host: alone it would lead another name elsewhere."""  # noqa: D401
        hosts = next((name for name, source in sources.items() if "host" in source), None)
        address = next((name for name, source in sources.items() if "hostaddr" in source), None)
        if hosts and address and "host" not in sources[address]:
            self.wrong(
                f"the host comes from {hosts} and its address (hostaddr) from {address}",
                "Unset PGHOSTADDR, or say both in one place.",
            )

    def _other(self, name: str) -> dict[str, str]:
        """Return where another database than the target is."""
        found = self._url(name)
        for message, hint in misaddressed(found):
            self.wrong(f"{name}: {message}", hint)
        if found and not self._opened(name, found):
            return {}
        if found and {"dbname", "service"}.isdisjoint(found):  # libpq would take the user's name
            self.wrong(f"{name} names no database", _NO_DATABASE[name])
        return whole(found) if found else found

    def _url(self, name: str) -> dict[str, str]:
        url = self.secret(name)
        if url is None:
            return {}
        from preflight.base import urls  # noqa: PLC0415 -- not needed without a URL

        theirs = self.wrapping and name == "DATABASE_URL"
        try:
            found, dropped = urls.read(url, wrapping=theirs)
        except urls.Unreadable as wrong:
            self.wrong(f"{name} {wrong}", wrong.hint)
            return {}
        self.near = urls.schemas(url) if theirs else self.near
        if dropped:
            self.warnings.append(f"{name}: {', '.join(dropped)}: not for PostgreSQL, left out")
        return found

    def _address(self, name: str) -> notify.Address | None:
        url = self.secret(name)
        if url is None:
            return None
        from preflight.base import notify  # noqa: PLC0415 -- not needed without an address

        try:
            return notify.Address(url)
        except notify.Unusable as wrong:
            self.wrong(f"{name} {wrong}")
            return None

    def _recipients(self, name: str) -> tuple[str, ...]:
        """Return age's public keys, of which nothing is shown: one may be secret by mistake."""
        said = self.secret(name) or ""
        lines = [line.strip() for line in re.split(r"[\n,]", said)]
        keys = [line for line in lines if line and not line.startswith("#")]
        if "AGE-SECRET-KEY-" in said or "PRIVATE KEY-----" in said:
            self.wrong(
                f"{name} holds a secret key",
                "Put its public key there, as `age-keygen -y FILE` prints it. Who could read the "
                "secret one here can open what it opens: make a new pair.",
            )
            return ()
        for number, key in enumerate(keys, 1):
            if not _RECIPIENT.fullmatch(key):
                self.wrong(
                    f"{name}: key {number} is no public key that can be used",
                    "age1… as age-keygen prints it, or ssh-ed25519 … or ssh-rsa …: one a line, or "
                    "with commas. Keys of age's plugins cannot be used.",
                )
        if said and not keys:
            self.wrong(f"{name} holds no key")
        return tuple(dict.fromkeys(keys))

    def settings(self) -> dict[str, object]:
        """Return the values of the settings that are set."""
        found: dict[str, object] = {}
        readers: dict[str, Callable[[str], object]] = {
            "NOTIFY_URL": self._address,
            "BACKUP_RECIPIENTS": self._recipients,
        }
        for name, parse in SETTINGS.items():
            variable = PREFIX + name
            if variable in SECRETS:
                read = readers.get(name, self._other)
                if target := read(variable):
                    found[name.lower()] = target
                continue
            value = self._clean(variable, self.environ.get(variable))
            if value is None:
                continue
            try:
                found[name.lower()] = parse(value)
            except ValueError:
                said = "…" if name == "BACKUP_COMMAND" else without_login(value)
                self.wrong(f"{variable}={said!r} is not {described(parse)}", frayed(value))
        if {"rehearse_url", "rehearse_clone_url"} <= found.keys():
            self.wrong(f"{' and '.join(REHEARSE_URLS)} are both set", "Keep one of the two.")
        if (found.get("backup") == "command") != ("backup_command" in found):
            self.wrong(
                "PREFLIGHT_BACKUP=command and PREFLIGHT_BACKUP_COMMAND belong together",
                "Set both, or neither.",
            )
        return found

    def unknown_settings(self) -> None:
        """Report every PREFLIGHT_ variable that is no setting, with the nearest one that is."""
        known = {*SETTINGS, *(name.removeprefix(PREFIX) for name in AS_FILES)}
        for name in sorted(self.environ):
            if name.startswith(PREFIX) and (bare := name.removeprefix(PREFIX)) not in known:
                self.wrong(f"{name} is not a setting", _meant(bare, known))
        if relevant := [name for name in self.links if name.startswith(PREFIX) or name in _NAMES]:
            self.warnings.append("ignored Kubernetes service links: " + ", ".join(sorted(relevant)))


def _meant(bare: str, known: Iterable[str]) -> str:
    """Return what to write for a setting that is none; said without its prefix, as the known."""
    from preflight.base import near  # noqa: PLC0415 -- only for a typo

    if bare in _READ:
        return f"It is {bare}, without the prefix."
    if found := near.nearest(bare, known):
        return f"Did you mean {PREFIX}{found}?"
    if _OF_CONNECTIONS.fullmatch(bare):
        return "Where the database is say DATABASE_URL or the PG* variables, without the prefix."
    return "See `entrypoint.py --help`, which has every setting."


def without_login(value: str) -> str:
    """Return a value as it may be shown: without a login, also one that lacks its @ or holds a /.

    And without a URL's query, and what stands behind the name of a secret.
    """
    value = re.sub(r"(?s)\A(\w[\w+.-]*://)?.*@", r"\1…@", value)
    value = re.sub(r"(?s)\A(?!https?:[^:]*:\d{1,5}(/|\Z))(\w[\w+.-]*://[^/:?]*:).*", r"\2…", value)
    return re.sub(r"(?si)(\?|\w*(?:pass|pwd|secret|token|key)\w*\s*=).*", r"\1…", value)


def described(parse: Callable[[str], object]) -> str:
    """Return what a setting's value must be."""
    words = (parse.__doc__ or "valid").rstrip(".")
    return words[0].lower() + words[1:]


def _is_read(name: str) -> bool:
    """Tell whether a variable is one of those that we read, or libpq."""
    if name.startswith(PREFIX) or name in _READ:
        return True
    if not name.startswith("PG") or "_" in name:  # no name of libpq's holds one
        return False
    from psycopg import pq  # noqa: PLC0415 -- only for what has its quotes on

    known = {each.envvar.decode() for each in pq.Conninfo.get_defaults() if each.envvar}
    return name in known | {"PGSERVICEFILE", "PGSYSCONFDIR", "PGDATESTYLE", "PGTZ", "PGGEQO"}


def _is_service_link(name: str, value: str) -> bool:
    link = name.endswith("_PORT") and _SERVICE_PORT_VALUE.match(value)
    return bool(link or _SERVICE_LINK.search(name))
