"""What the environment says, where it says it plainly; None wherever it needs the full reading.

It is the configuration's part that most deployments use, and stricter: what is taken here,
`Config.from_env` takes in the same way. It never says what is wrong.
"""

import os
import stat

from preflight.base import plain

SOURCES = [  # the first that names a value wins
    {key: name for key, name in names.items() if key != "hostaddr"}
    for names in plain.VOCABULARIES.values()
]
SECRETS = ("DATABASE_URL", "PGPASSWORD", "POSTGRES_PASSWORD")
# what libpq reads by itself, and the official image's PGDATA; one name of libpq's holds a _
LIBPQ = frozenset(
    ("PGSSLMODE", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY", "PGCHANNELBINDING", "PGPASSFILE",
     "PGSSLNEGOTIATION", "PGGSSENCMODE", "PGREQUIREAUTH", "PGAPPNAME", "PGDATA")
)  # fmt: skip
TIMEOUT = "PGCONNECT_TIMEOUT"
KNOWN = (
    LIBPQ
    | {TIMEOUT}
    | {name for names in SOURCES for name in names.values()}
    | {f"{name}{end}" for name in SECRETS for end in ("", "_FILE")}
)
WORDS = {
    "BACKUP": ("required", "off"),
    "REHEARSE": ("auto", "always", "off"),
    "REHEARSE_ON": ("auto", "local", "server"),
    "REHEARSE_PARTIAL": ("refuse", "accept"),
    "FIRST_CONTACT": ("refuse", "pending"),
    "AHEAD": ("allow", "fail"),
    "OUT_OF_ORDER": ("fail", "allow"),
    "LOG": ("auto", "json", "gcp"),
    "LOG_LEVEL": ("info",),
    "LOG_SQL": ("off", "on"),
}
NUMBERS = (
    "BACKUP_KEEP", "WAIT_TIMEOUT_S", "LOCK_WAIT_S", "LOCK_TIMEOUT_MS", "LOCK_RETRY_S",
    "STATEMENT_TIMEOUT_S", "REHEARSE_MAX_MB", "REHEARSE_MAX_LOCK_S", "REHEARSE_WAL_MB_PER_MIN",
    "REHEARSE_DIR_MB",
)  # fmt: skip
PATHS = ("MIGRATIONS_DIR", "BACKUP_DIR", "REHEARSE_DIR", "TERMINATION_LOG")
SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
ODD = {"host": {*",@"}, "user": {*":="}, "dbname": {*":="}}  # of a list, a URL, a keyword string
_LOWER = frozenset("abcdefghijklmnopqrstuvwxyz")
_HEX = frozenset("0123456789abcdefABCDEF")
_IN_URLS = frozenset(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~!$&*+;:/@%="
)

Environment = dict[str, str]


class Unclear(Exception):
    """It is not said plainly."""


def environment() -> Environment:
    """Return what the process was told of us; raises Unclear."""
    try:
        return plain_ones(
            {
                name.decode(): value.decode()
                for name, value in os.environb.items()
                if name.startswith((b"PREFLIGHT_", b"PG", b"POSTGRES_", b"DATABASE_", b"PSYCOPG_"))
            }
        )
    except UnicodeDecodeError:
        raise Unclear from None


def plain_ones(said: Environment) -> Environment:
    """Return what is not empty; raises Unclear for what is never plain."""
    for name, value in said.items():
        if value[:1] in ("'", '"') or (not value and name.startswith("PG")):
            raise Unclear  # with its quotes on; or empty, which libpq would take for a value
    return {name: value for name, value in said.items() if value}


def settings(environ: Environment) -> Environment:
    """Return the settings by their names, in small letters; raises Unclear."""
    found = {}
    for variable, value in environ.items():
        if variable.startswith("PREFLIGHT_"):
            name = variable.removeprefix("PREFLIGHT_")
            if not _plain(name, value):
                raise Unclear
            found[name.lower()] = value
    return found


def _plain(name: str, value: str) -> bool:
    if name in WORDS:
        return value in WORDS[name]
    if name in NUMBERS:
        return _whole(value) and int(value) > 0
    if name in PATHS:
        bucket = value.startswith(("s3:", "gs:", "az:")) or "://" in value  # it has its own rules
        return value.isprintable() and not bucket
    if name == "SCHEMA":  # of letters and a digit or two: none of these is a reserved word
        return value == "preflight" or (
            value.startswith("preflight_") and _LOWER.issuperset(value[10:]) and len(value) <= 63  # noqa: PLR2004
        )
    return False


def _whole(value: str) -> bool:
    return value.isascii() and value.isdecimal() and len(value) <= 6  # noqa: PLR2004 -- digits


def target(environ: Environment) -> Environment:
    """Return the libpq parameters to connect with; raises Unclear."""
    _require_no_others(environ)
    _require_files(environ)
    sources = [
        {key: environ[name] for key, name in names.items() if name in environ} for names in SOURCES
    ]
    passwords = [{"password": _secret(environ, name)} for name in SECRETS[1:]]
    said: Environment = {}
    for source in (_url(environ), *sources, *passwords):
        for key, value in source.items():
            if value and said.setdefault(key, value) != value:
                raise Unclear  # two places that disagree
    if TIMEOUT in environ:
        if not _whole(environ[TIMEOUT]):
            raise Unclear
        said["connect_timeout"] = environ[TIMEOUT]
    found = plain.DEFAULTS | said
    port = found["port"]
    if not (_whole(port) and len(port) < 6 and 0 < int(port) < 65536):  # noqa: PLR2004 -- TCP's
        raise Unclear
    for key, value in found.items():
        if value[0] in "\"'" or not value.isprintable() or set(value) & ODD.get(key, set()):
            raise Unclear
    return found


def _require_files(environ: Environment) -> None:
    """Make sure that what libpq opens by itself is a file, or not there; raises Unclear.

    At a pipe it would wait for ever, and nothing could end that.
    """
    home = os.environb.get(b"HOME", b"").decode("utf-8", "surrogateescape")
    for _, variable, default in plain.OPENED:
        try:
            mode = os.stat(environ.get(variable) or f"{home}/{default}").st_mode  # noqa: PTH116 -- likewise
        except OSError:
            continue
        if not stat.S_ISREG(mode):
            raise Unclear


def _require_no_others(environ: Environment) -> None:
    """Make sure that nothing else speaks of the connection; raises Unclear."""
    for name in environ:
        if name in KNOWN or name.startswith("PREFLIGHT_"):
            continue
        theirs = "_" in name and not name.startswith("PSYCOPG_")  # this one says which libpq
        bare = name.removesuffix("_FILE")
        if not theirs or bare in KNOWN or bare == "PGHOSTADDR":  # what only a file tells
            raise Unclear


def _secret(environ: Environment, name: str) -> str:
    """Return a secret, of a variable or of the file that one names; "" for none."""
    value, path = environ.get(name, ""), environ.get(f"{name}_FILE")
    if path is None:
        return value
    if value:
        raise Unclear
    if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 -- as plain as what is around it
        raise Unclear  # a pipe: who writes there is let go as soon as it is opened, and only once
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        raw = os.read(descriptor, plain.SECRET_MAX_BYTES + 1)
    finally:
        os.close(descriptor)
    text = raw.removesuffix(b"\n")
    text = text.removesuffix(b"\r") if text != raw else text
    if not text or len(raw) > plain.SECRET_MAX_BYTES:
        raise Unclear
    return text.decode()


def _url(environ: Environment) -> Environment:
    """Return what `postgresql://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=…` says."""
    url = _secret(environ, "DATABASE_URL")
    if not url:
        return {}
    scheme, _, rest = url.partition("://")
    rest, asked, query = rest.partition("?")
    if scheme not in ("postgres", "postgresql") or not _IN_URLS.issuperset(rest):
        raise Unclear
    before, slash, database = rest.partition("/")
    login, at, address = before.rpartition("@")
    user, _, password = login.partition(":")
    host, colon, port = address.partition(":")
    odd = "@" in login + database or "/" in database or ":" in password + port + database
    if odd or (at and not user) or (colon and not port) or (slash and not database):
        raise Unclear
    pieces = {"user": user, "password": password, "host": host, "port": port, "dbname": database}
    found = {key: _unquoted(value) for key, value in pieces.items() if value}
    if asked:
        name, _, mode = query.partition("=")
        if name != "sslmode" or mode not in SSL_MODES:
            raise Unclear
        found["sslmode"] = mode
    return found


def needs_no_name(host: str) -> bool:
    """Tell whether a host is a socket's directory or an address: nothing has to be resolved."""
    parts = host.split(".")
    numbers = len(parts) == 4 and all(_whole(each) and int(each) < 256 for each in parts)  # noqa: PLR2004
    return host.startswith("/") or numbers


def _unquoted(text: str) -> str:
    first, *others = text.split("%")
    for each in others:
        if len(each) < 2 or not _HEX.issuperset(each[:2]):  # noqa: PLR2004
            raise Unclear
    if not others:
        return first
    raw = first.encode() + b"".join(bytes.fromhex(each[:2]) + each[2:].encode() for each in others)
    if b"\0" in raw:
        raise Unclear
    return raw.decode()
