"""A PostgreSQL URL as people have it: what libpq reads, and what is meant for other readers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

from preflight.base.near import nearest

ESCAPE = "In a URL write the characters @ : / ? # % of a password as %40 %3A %2F %3F %23 %25."
FORM = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
QUOTES = "\"'`"
# other drivers' names for the same thing
_SCHEME = re.compile(r"(?i)^(?:jdbc:)?(?:postgres(?:ql)?|pgsql|psql|postgis|ecto)(?:\+\w+)?://")
_ANY_SCHEME = re.compile(r"(?i)^(?:jdbc:)?[a-z][a-z0-9+.-]{0,30}://")
_NAME = re.compile(r"[A-Za-z_][\w.-]{0,40}", re.ASCII)
# what tells a pool, a cache or a driver how to work, and nothing about the session that we need
_OTHERS = frozenset(
    """pgbouncer connection_limit pool_timeout socket_timeout statement_cache_size
    single_use_connections pool pool_size pool_max_conns pool_min_conns pool_max_conn_lifetime
    pool_max_conn_idle_time pool_health_check_period pool_max_conn_lifetime_jitter pool_mode
    max_pool_size min_pool_size maxsize minsize max_overflow pool_recycle pool_pre_ping
    poolclass max_connections conn_max_age idle_timeout max_lifetime checkout_timeout
    reaping_frequency reconnect prepared_statements prepare prepared_statement_cache_size
    prepared_statement_name_func default_query_exec_mode statement_cache_capacity
    statement_cache_mode description_cache_capacity uselibpqcompat binary_parameters
    async_fallback command_timeout timeout serverversion server_version driver adapter
    preparethreshold preparedstatementcachequeries preparedstatementcachesizemib
    rewritebatchedinserts rewritebatchedinsertssize defaultrowfetchsize logintimeout
    sockettimeout connecttimeout canceltimeout tcpkeepalive tcpnodelay stringtype binarytransfer
    autosave assumeminserverversion loggerlevel loggerfile loadbalancehosts hostrecheckseconds
    disablecolumnsanitiser unknownlength logunclosedconnections adaptivefetch reapinterval
    maxresultbuffer supa workaround""".split()  # noqa: SIM905 -- seventy words in some lines
)
# harmless with these values only; with another one they say what libpq's way of saying is for
_SEARCH_PATH = ("schema", "currentschema", "search_path", "schema_search_path", "searchpath")
_WITH_VALUE = {
    **dict.fromkeys(_SEARCH_PATH, frozenset({"public"})),
    **dict.fromkeys(("charset", "encoding", "unicode"), frozenset({"utf8", "utf-8", "unicode"})),
}
_INSTEAD = {
    **dict.fromkeys(
        _SEARCH_PATH,
        "Say the schema so that the server knows it: options=-csearch_path%3DNAME in the URL, or "
        "ALTER ROLE … IN DATABASE … SET search_path.",
    ),
    **dict.fromkeys(("applicationname", "application"), "libpq calls it application_name."),
    "username": "libpq calls it user.",
    "statement_timeout": "Leave it out: here PREFLIGHT_STATEMENT_TIMEOUT_S says it.",
    "lock_timeout": "Leave it out: here PREFLIGHT_LOCK_TIMEOUT_MS says it.",
    "connectiontimeoutmillis": "libpq calls it connect_timeout, in seconds.",
    "targetservertype": "libpq calls it target_session_attrs: primary, standby, prefer-standby or "
    "any.",
    "sslrootcertificate": "libpq calls it sslrootcert.",
    **dict.fromkeys(("sslca", "ca"), "libpq calls it sslrootcert."),
    "sslaccept": "libpq calls it sslmode: require, verify-ca or verify-full.",
}
# what is of a wrapped command's sessions, and not of ours; of TLS only what libpq does anyway
_OF_SESSIONS = {
    *_SEARCH_PATH,
    *("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"),
    *("timezone", "applicationname", "application", "connectiontimeoutmillis"),
}
_UNVERIFIED = ("sslaccept", "accept_invalid_certs")
_OF_THE_COMMAND = (
    "Where only the command reads that, have it get its URL from a variable of another name: "
    "wrap … -- sh -c 'DATABASE_URL=\"$APP_URL\" exec …'."
)
_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_SAME = {  # as libpq writes it; encrypted, and not verified, is its `require`
    **{f"ssl={mode}": f"sslmode={mode}" for mode in _MODES},
    **dict.fromkeys(("ssl=1", "ssl=no-verify", "sslmode=no-verify"), "sslmode=require"),
    **dict.fromkeys(("ssl=false", "ssl=0"), ""),
}


class Unreadable(Exception):
    """What is wrong with a URL, without a piece of it that may be secret, and what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def quoted(value: str) -> bool:
    """Tell whether a value still has the quotes of the file that it was written in."""
    return len(value) > 1 and value[0] in QUOTES and value[-1] == value[0]


def read(url: str, *, wrapping: bool = False) -> tuple[dict[str, str], list[str]]:
    """Return libpq's parameters, and the names of the options that are left out.

    `wrapping`: a command has the URL, too, as it is, so what its sessions are told is left out
    here. Raises Unreadable, which repeats no value.
    """
    url = url.strip()
    if quoted(url):
        url = url[1:-1].strip()  # no URL begins with a quote: docker's --env-file takes none off
    elif url[:1] and url[0] in QUOTES:
        raise Unreadable("begins with a quote", "Take the quote off.")
    known = _SCHEME.match(url)
    other = _ANY_SCHEME.match(url)
    if other and not known:
        raise Unreadable(f"begins with {other[0]}, which is not PostgreSQL", f"{FORM}.")
    if not known:
        return _parsed(url), []
    rest = url[known.end() :]
    if (
        "@" in rest.partition("@")[2].partition("?")[0]
        or "@" in (rest.partition("?")[0].partition("/")[2])
    ):
        # libpq would take a piece of the password for the host or the database
        raise Unreadable("holds an unescaped @ or /", ESCAPE)
    address, mark, query = rest.partition("?")
    kept, dropped = _sorted(query, wrapping=wrapping)
    return _parsed(f"postgresql://{address}{mark if kept else ''}{'&'.join(kept)}"), dropped


def schemas(url: str) -> tuple[str, ...]:
    """Return the schemas that a URL names for other readers than libpq."""
    items = (item.partition("=") for item in url.strip().partition("?")[2].split("&"))
    found = [unquote(value) for name, _, value in items if unquote(name).lower() in _SEARCH_PATH]
    names = (each.strip().strip(QUOTES) for value in found for each in value.split(","))
    return tuple(dict.fromkeys(filter(None, names)))


def _sorted(query: str, *, wrapping: bool) -> tuple[list[str], list[str]]:
    """Return the options for libpq, and the names of those that are not; raises Unreadable."""
    libpq = {each.keyword.decode() for each in pq.Conninfo.get_defaults()} | {"ssl"}
    kept, dropped, secret = [], [], "@" in query  # a piece of a password may look like an option
    items = [_SAME.get(item, item) for item in query.split("&")]
    for number, item in enumerate(filter(None, items), 1):
        name, has_value, value = item.partition("=")
        name, low = unquote(name), unquote(name).lower()
        if name in libpq:
            secret = secret or "password" in name
            kept.append(item)
        elif (
            low in _OTHERS
            or unquote(value).lower() in _WITH_VALUE.get(low, ())
            or (low.startswith("x-") and has_value)
            or (wrapping and (low in _OF_SESSIONS or (low, unquote(value).lower()) == _UNVERIFIED))
        ):
            dropped.append(name)
        else:
            shown = has_value and not secret and _NAME.fullmatch(name)
            what = f"the option {name}," if shown else f"an option, number {number} after the `?`,"
            hint = _instead(low, libpq) if shown else ESCAPE
            hint += f" {_OF_THE_COMMAND}" if shown and wrapping else ""
            raise Unreadable(f"holds {what} which libpq does not know", hint)
    return kept, dropped


def _instead(name: str, libpq: Iterable[str]) -> str:
    """Return what to write in the place of an option."""
    if name in _INSTEAD:
        return _INSTEAD[name]
    near = nearest(name, libpq)
    return f"Did you mean {near}?" if near else f"Leave it out. {ESCAPE}"


def _parsed(conninfo: str) -> dict[str, str]:
    try:
        found = conninfo_to_dict(conninfo)
    except (psycopg.Error, UnicodeError):
        # libpq quotes the text that it could not read, and that may be the password
        raise Unreadable(
            "cannot be read as a PostgreSQL URL",
            f"{FORM}; write special characters of the password percent-encoded (@ as %40), and "
            "only options that libpq knows.",
        ) from None
    return {key: str(value) for key, value in found.items() if value not in (None, "")}
