"""One question to the server by libpq itself: what is recorded, where the history is our own.

It is libpq of the psycopg that would be imported, so that both are the same library. It is called
by the part of `ctypes` that is C: what is Python in `ctypes` takes longer to load than the answer.
"""

import os
import sys
import time
from _ctypes import FUNCFLAG_CDECL, CFuncPtr, _SimpleCData, dlopen, dlsym

from preflight.base import plain
from preflight.files import names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from ctypes import Array

LOCK_MS, ANSWER_MS = 500, 2500
FULL = b":  53300: "  # as libpq writes that all connections are taken
SERVER = b'connection to server at "'  # as it begins what one server said
PAUSE_S = (0.05, 0.4)  # least and most between attempts: each costs the server a process
LAZY, VERBOSE = 1, 2  # RTLD_LAZY, PQERRORS_VERBOSE
BAD = 1  # CONNECTION_BAD
FAILED, READING, WRITING = 0, 1, 2  # PostgresPollingStatusType
POLLIN, POLLOUT = 1, 4

# The division fails where the tables are not exactly as we make them, or not this very role's:
# then the rows are not even asked for. The full path knows who else may be believed. Each catalog
# is read by an index, however many tables there are: pg_depend says what else is in the schema
# (relations are of pg_class, 1259, types of pg_type, 1247; pg_namespace is 2615).
SOUND = """SELECT 1 / CASE WHEN
 (SELECT pg_catalog.count(*) FROM pg_catalog.pg_class c WHERE c.oid IN ({migrations}, {journal})
  AND c.relkind = 'r' AND NOT (c.relrowsecurity OR c.relhasrules OR c.relhassubclass)
  AND pg_catalog.pg_get_userbyid(c.relowner) = current_user) = 2
 AND (SELECT pg_catalog.pg_get_userbyid(n.nspowner) FROM pg_catalog.pg_namespace n
  WHERE n.nspname = '{schema}') = current_user
 AND EXISTS (SELECT FROM pg_catalog.pg_index k WHERE k.indrelid = {migrations} AND k.indisunique
  AND k.indimmediate AND k.indisvalid AND k.indnkeyatts = 1 AND k.indpred IS NULL
  AND k.indkey[0] = 1)
 AND (SELECT pg_catalog.count(*) FROM pg_catalog.pg_depend d WHERE d.classid IN (1259, 1247)
  AND d.refclassid = 2615 AND d.refobjid = '{schema}'::pg_catalog.regnamespace) = 3
 AND (SELECT pg_catalog.string_agg(a.attname::text || ' ' || a.atttypid::text
   || CASE WHEN a.attnotnull THEN ' needed' ELSE '' END
   || CASE WHEN a.atthasdef THEN ' given' ELSE '' END
   || CASE a.attnum WHEN 1 THEN ' first' ELSE '' END || a.attidentity::text || a.attgenerated::text,
   ', ' ORDER BY a.attrelid = {migrations}, a.attname)
  FROM pg_catalog.pg_attribute a WHERE a.attrelid IN ({migrations}, {journal})
   AND a.attnum > 0 AND NOT a.attisdropped) = '{columns}'
 THEN 1 ELSE 0 END"""
# by the numbers of the types, which no server changes: boolean, bigint, integer, text, timestamptz
COLUMNS = (
    # journal; its identity's sequence is the third relation of the schema
    "at 1184 needed given, backup 25, checksum 25, checksum_before 25, duration_ms 20, error 25, "
    "event 25 needed, host 25 needed, id 20 needed firsta, name 25 needed, role 25 needed given, "
    "run_id 25 needed, sqlstate 25, tool_version 25 needed, version 20 needed, "
    # migrations; the first column is the one that is unique
    "applied_at 1184 needed given, applied_by 25 needed given, backup 25, "
    "breaking 16 needed given, checksum 25 needed, duration_ms 20, "
    "export_sql 25, how 25 needed, name 25 needed, rollback_sql 25, run_id 25 needed, "
    "state 25 needed, statements_done 23 needed given, statements_started 23 needed given, "
    "tool_version 25 needed, "
    "undoing 16 needed given, up_sql 25 needed, verify_sql 25, version 20 needed first"
)
_SUMS = " || '|' || ".join(
    f"CASE WHEN {kind}_sql <> '' THEN pg_catalog.encode(pg_catalog.sha256("
    f"pg_catalog.convert_to({kind}_sql, 'UTF8')), 'hex') ELSE '' END"
    for kind in names.KINDS
)
ROWS = f"""SELECT pg_catalog.count(*), pg_catalog.string_agg(
 version || '|' || name || '|' || state || '|' || checksum || '|' || {_SUMS}, pg_catalog.chr(10))
 FROM ONLY {{schema}}.migrations"""  # noqa: S608 -- a checked name
BEGIN = (
    "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; "
    "SET LOCAL search_path = pg_catalog, pg_temp; SET LOCAL row_security = off"
)


def statements(schema: str) -> tuple[str, str]:
    """Return what makes sure of the tables, by failing, and what reads them."""
    migrations, journal = (
        f"'{schema}.{table}'::pg_catalog.regclass" for table in ("migrations", "journal")
    )
    sound = SOUND.format(schema=schema, migrations=migrations, journal=journal, columns=COLUMNS)
    return sound, ROWS.format(schema=schema)


class _Address(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "P"


class _Text(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "z"


class _Number(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "i"


class _Function(CFuncPtr):
    _flags_ = FUNCFLAG_CDECL
    _restype_ = _Number


class _AddressOf(CFuncPtr):
    _flags_ = FUNCFLAG_CDECL
    _restype_ = _Address


class _TextOf(CFuncPtr):
    _flags_ = FUNCFLAG_CDECL
    _restype_ = _Text


class Libpq:
    """What is called of a libpq; raises OSError.

    It is loaded by the C library itself: a name is looked up when it is first called, not all of
    them at once, and the interpreter goes on meanwhile.
    """

    def __init__(self, path: str) -> None:
        process = dlopen(None, 0)  # type: ignore[arg-type]
        handle = _AddressOf(dlsym(process, "dlopen"))(path.encode(), LAZY)
        if not handle:
            raise OSError(path)

        def found(name: str) -> int:
            return dlsym(handle, name)

        self.begin = _AddressOf(found("PQconnectStartParams"))
        self.verbosity = _Function(found("PQsetErrorVerbosity"))
        self.noticed = _Function(found("PQsetNoticeReceiver"))
        self.no_matter = _Address(found("PQresultStatus"))
        self.poll = _Function(found("PQconnectPoll"))
        self.socket = _Function(found("PQsocket"))
        self.status = _Function(found("PQstatus"))
        self.error = _TextOf(found("PQerrorMessage"))
        self.send = _Function(found("PQsendQuery"))
        self.busy = _Function(found("PQisBusy"))
        self.consume = _Function(found("PQconsumeInput"))
        self.result = _AddressOf(found("PQgetResult"))
        self.result_status = _Function(found("PQresultStatus"))
        self.fields = _Function(found("PQnfields"))
        self.value = _TextOf(found("PQgetvalue"))
        self.clear = _Function(found("PQclear"))
        self.finish = _Function(found("PQfinish"))
        self.wait = _Function(dlsym(process, "poll"))
        self.handle = handle

    def warm_up(self) -> None:
        """Have OpenSSL ready for a password, while the server makes a process for us."""
        try:  # noqa: SIM105 -- without an import
            _Function(dlsym(self.handle, "RAND_status"))()
        except OSError:
            pass  # another library for that, or none


def place() -> str | None:
    """Return the libpq that psycopg would load: of its C part the system's, or its wheel's."""
    places = [place for place in sys.path if place]
    if any(os.path.isdir(f"{place}/psycopg_c") for place in places):  # noqa: PTH112
        return "libpq.so.5"
    for place in places:
        libraries = f"{place}/psycopg_binary.libs"
        if os.path.isdir(libraries):  # noqa: PTH112
            for name in os.listdir(libraries):  # noqa: PTH208
                if name.startswith("libpq-"):
                    return f"{libraries}/{name}"
    return None


class Answer:
    """What came of the question, and what it took."""

    def __init__(self) -> None:
        self.lines: list[str] | None = None  # None when anything at all is in the way
        self.attempts = 1
        self.refused: tuple[str, int] | None = None  # the first reason, and when


class Silent(Exception):
    """The server has said nothing for too long, or a signal came."""


def _library() -> Libpq:
    path = place()
    if path is None:
        raise OSError
    return Libpq(path)


class Call:
    """One connection; raises Silent."""

    def __init__(
        self,
        library: Libpq,
        target: dict[str, str],
        heard: "Callable[[], None]",
        left_s: "Callable[[], float]",
    ) -> None:
        self.library = library
        self.heard = heard
        self.left_s = left_s
        self.warm = "password" not in target
        self.connection = _Address(library.begin(*_parameters(target), 0))

    def wait(self, event: int) -> None:
        """Wait until libpq can go on."""
        events = event << 16 | event  # as a struct pollfd has them, in either order of bytes
        waited = (_Number * 2)(self.library.socket(self.connection), events)
        if self.library.wait(waited, 1, int(1000 * self.left_s())) < 1:
            raise Silent
        if event == POLLIN:
            self.heard()

    def connected(self) -> bool:
        """Drive the connection to its end; False when it is refused."""
        library, turn = self.library, WRITING
        if self.connection.value is None or library.status(self.connection) == BAD:
            return False
        library.verbosity(self.connection, VERBOSE)
        # what the server says at the login (of a collation's version, say) is no line for stderr,
        # where libpq writes it: it is told to a function that does nothing with nothing
        library.noticed(self.connection, library.no_matter, None)
        while turn in (READING, WRITING):
            if turn == READING and not self.warm:
                library.warm_up()
                self.warm = True
            self.wait(POLLIN if turn == READING else POLLOUT)
            turn = library.poll(self.connection)
        return turn != FAILED

    def lines(self, message: str) -> list[str] | None:
        """Return the lines of the last result that has rows; None when a result is an error."""
        command_ok, tuples_ok = 1, 2
        library, connection = self.library, self.connection
        if not library.send(connection, message.encode()):
            return None
        count, text, sound = b"", b"", True
        while address := self.result():
            result = _Address(address)
            status = library.result_status(result)
            if status == tuples_ok and library.fields(result) == 2:  # noqa: PLR2004 -- of ROWS
                count, text = (library.value(result, 0, column) for column in (0, 1))
            sound = sound and status in (command_ok, tuples_ok)
            library.clear(result)
        lines = (text or b"").decode().split("\n")
        return lines if sound and count.isdigit() and len(lines) == int(count) else None

    def result(self) -> int:
        """Return the next result's address; 0 after the last one."""
        while self.library.busy(self.connection):
            self.wait(POLLIN)
            if not self.library.consume(self.connection):
                raise Silent
        found: int = self.library.result(self.connection)
        return found

    def end(self) -> None:
        """Close it."""
        self.library.finish(self.connection)


def ask(
    target: dict[str, str],
    schema: str,
    full_s: float,
    heard: "Callable[[], None]",
    left_s: "Callable[[], float]",
) -> Answer:
    """Return a line for each row of the history; raises Silent, OSError.

    A line is version, name, state, the forward file's hash and those of its companions (KINDS).
    Where all connections are taken, a place is waited for as long as `full_s`.
    """
    answer, library = Answer(), _library()
    while True:
        call = Call(library, target, heard, left_s)
        try:
            if call.connected():
                answer.lines = call.lines("; ".join((BEGIN, *statements(schema), "COMMIT")))
                return answer
            reason = library.error(call.connection) or b""
        finally:
            call.end()
        if FULL not in reason:
            return answer
        now = time.time_ns()
        if reason.count(SERVER) > 1:  # several addresses, each with an answer of its own
            return answer
        answer.refused = answer.refused or (_shown(reason), now)
        if now - answer.refused[1] >= full_s * 1e9:
            return answer
        least, most = PAUSE_S
        pause_s = min(most, least * 1.5**answer.attempts) * (1 + os.urandom(1)[0] / 256) / 2
        if library.wait(None, 0, int(1000 * pause_s)):
            raise Silent
        answer.attempts += 1


def _shown(reason: bytes) -> str:
    """Return the reason as the full path shows it: it looks a name up itself."""
    name, named, rest = reason.partition(b'" (')
    if named and SERVER in name:
        address, _, rest = rest.partition(b")")
        reason = name[: name.index(SERVER)] + SERVER + address + b'"' + rest
    lines = reason.replace(FULL, b":  ").decode().splitlines()
    return "; ".join([line.strip() for line in lines if not line.startswith("LOCATION:")]).strip()


def _parameters(target: dict[str, str]) -> "tuple[Array[_Text], Array[_Text]]":
    said = target | {
        "application_name": f"pg-preflight@{plain.host()}"[:63],
        "client_encoding": "UTF8",
        "options": f"-c lock_timeout={LOCK_MS} -c statement_timeout={ANSWER_MS} "
        "-c client_min_messages=error",
    }
    texts = _Text * (len(said) + 1)
    keys, values = ([text.encode() for text in each] for each in (said.keys(), said.values()))
    return texts(*keys, None), texts(*values, None)
