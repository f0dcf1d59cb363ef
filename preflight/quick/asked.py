"""One question to the server by libpq itself: what is recorded, where the history is our own.

It is libpq of the psycopg that would be imported, so that both are the same library. It is called
by the part of `ctypes` that is C: what is Python in `ctypes` takes longer to load than the answer.
"""

import os
import sys
from _ctypes import FUNCFLAG_CDECL, CFuncPtr, _SimpleCData, dlopen, dlsym

from preflight.files import names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctypes import Array

WITHIN_S = 1.5  # for the connection and the answer; the full path has patience
LOCK_MS, ANSWER_MS = 500, 1000

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
   || CASE WHEN a.attnotnull AND NOT a.atthasdef THEN ' needed' ELSE '' END
   || CASE a.attnum WHEN 1 THEN ' first' ELSE '' END || a.attidentity::text || a.attgenerated::text,
   ', ' ORDER BY a.attrelid = {migrations}, a.attname)
  FROM pg_catalog.pg_attribute a WHERE a.attrelid IN ({migrations}, {journal})
   AND a.attnum > 0 AND NOT a.attisdropped) = '{columns}'
 THEN 1 ELSE 0 END"""
# by the numbers of the types, which no server changes: boolean, bigint, integer, text, timestamptz
COLUMNS = (
    # journal; its identity's sequence is the third relation of the schema
    "at 1184, backup 25, checksum 25, checksum_before 25, duration_ms 20, error 25, "
    "event 25 needed, host 25 needed, id 20 needed firsta, name 25 needed, role 25, "
    "run_id 25 needed, sqlstate 25, tool_version 25 needed, version 20 needed, "
    # migrations; the first column is the one that is unique
    "applied_at 1184, applied_by 25, backup 25, breaking 16, checksum 25 needed, duration_ms 20, "
    "export_sql 25, how 25 needed, name 25 needed, rollback_sql 25, run_id 25 needed, "
    "state 25 needed, statements_done 23, statements_started 23, tool_version 25 needed, "
    "undoing 16, up_sql 25 needed, verify_sql 25, version 20 needed first"
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
    """What is called of a libpq; raises OSError."""

    def __init__(self, path: str) -> None:
        handle = dlopen(path, 0)

        def found(name: str) -> int:
            return dlsym(handle, name)

        self.connect = _AddressOf(found("PQconnectdbParams"))
        self.result = _AddressOf(found("PQgetResult"))
        self.value = _TextOf(found("PQgetvalue"))
        self.status = _Function(found("PQstatus"))
        self.send = _Function(found("PQsendQuery"))
        self.result_status = _Function(found("PQresultStatus"))
        self.fields = _Function(found("PQnfields"))
        self.clear = _Function(found("PQclear"))
        self.finish = _Function(found("PQfinish"))


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


def recorded(target: dict[str, str], schema: str) -> list[str] | None:
    """Return a line for each row of the history; None when anything at all is in the way.

    A line is version, name, state, the forward file's hash and those of its companions (KINDS).
    """
    path = place()
    if path is None:
        return None
    library = Libpq(path)
    message = "; ".join((BEGIN, *statements(schema), "COMMIT"))
    connection = _Address(library.connect(*_parameters(target), 0))
    try:
        if connection.value is None or library.status(connection):
            return None
        if not library.send(connection, message.encode()):
            return None
        return _lines(library, connection)
    finally:
        library.finish(connection)


def _parameters(target: dict[str, str]) -> "tuple[Array[_Text], Array[_Text]]":
    said = target | {
        "application_name": f"pg-preflight@{os.uname().nodename}"[:63],
        "client_encoding": "UTF8",
        "connect_timeout": "2",
        "options": f"-c lock_timeout={LOCK_MS} -c statement_timeout={ANSWER_MS} "
        "-c client_min_messages=error",
    }
    texts = _Text * (len(said) + 1)
    keys, values = ([text.encode() for text in each] for each in (said.keys(), said.values()))
    return texts(*keys, None), texts(*values, None)


def _lines(library: Libpq, connection: _Address) -> list[str] | None:
    """Return the lines of the last result that has rows; None when a result is an error."""
    command_ok, tuples_ok = 1, 2
    count, text, sound = b"", b"", True
    while address := library.result(connection):
        result = _Address(address)
        status = library.result_status(result)
        if status == tuples_ok and library.fields(result) == 2:  # noqa: PLR2004 -- of ROWS
            count, text = (library.value(result, 0, column) for column in (0, 1))
        sound = sound and status in (command_ok, tuples_ok)
        library.clear(result)
    lines = (text or b"").decode().split("\n")
    return lines if sound and count.isdigit() and len(lines) == int(count) else None
