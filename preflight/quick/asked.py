"""One question to the server by libpq itself: what is recorded, where the history is our own.

It is libpq of the psycopg that would be imported, so that both are the same library.
"""

import ctypes
import os
import sys

from preflight.files import names

WITHIN_S = 1.5  # for the connection and the answer; the full path has patience
LOCK_MS, ANSWER_MS = 500, 1000

# The division fails where the tables are not exactly as we make them, or not this very role's:
# then the rows are not even asked for. The full path knows who else may be believed.
SOUND = """SELECT 1 / CASE WHEN (
 SELECT pg_catalog.string_agg(t.said, ' / ' ORDER BY t.said) FROM (
  SELECT c.relname || ': ' || (
   SELECT pg_catalog.string_agg(a.attname::text || ' ' || pg_catalog.format_type(a.atttypid, NULL)
    || CASE WHEN a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' THEN ' needed' ELSE '' END
    || a.attgenerated::text, ', ' ORDER BY a.attname::text COLLATE "C")
   FROM pg_catalog.pg_attribute a
   WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS said
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_roles r ON r.rolname = current_user
  WHERE n.nspname = '{schema}' AND n.nspowner = r.oid AND c.relowner = r.oid AND c.relkind = 'r'
   AND NOT c.relrowsecurity
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_rewrite w WHERE w.ev_class = c.oid)
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE i.inhparent = c.oid)
   AND (c.relname = 'journal' OR EXISTS (SELECT FROM pg_catalog.pg_index k
    JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.indkey[0]
    WHERE k.indrelid = c.oid AND k.indisunique AND k.indimmediate AND k.indisvalid
     AND k.indnkeyatts = 1 AND k.indpred IS NULL AND a.attname = 'version'))
 ) t) = '{tables}'
 AND (SELECT pg_catalog.count(*) FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  WHERE n.nspname = '{schema}' AND c.relkind NOT IN ('i', 'S')) = 2
 THEN 1 ELSE 0 END"""
TABLES = (
    "journal: at timestamp with time zone, backup text, checksum text, checksum_before text, "
    "duration_ms bigint, error text, event text needed, host text needed, id bigint, "
    "name text needed, role text, run_id text needed, sqlstate text, tool_version text needed, "
    "version bigint needed / "
    "migrations: applied_at timestamp with time zone, applied_by text, backup text, "
    "breaking boolean, checksum text needed, duration_ms bigint, export_sql text, how text needed, "
    "name text needed, rollback_sql text, run_id text needed, state text needed, "
    "statements_done integer, statements_started integer, tool_version text needed, "
    "undoing boolean, up_sql text needed, verify_sql text, version bigint needed"
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
    return SOUND.format(schema=schema, tables=TABLES), ROWS.format(schema=schema)


def libpq() -> ctypes.CDLL | None:
    """Load the libpq that psycopg would: of its C part the system's, of its wheel that in it."""
    places = [place for place in sys.path if place]
    if any(os.path.isdir(f"{place}/psycopg_c") for place in places):  # noqa: PTH112
        return ctypes.CDLL("libpq.so.5")
    for place in places:
        libraries = f"{place}/psycopg_binary.libs"
        if os.path.isdir(libraries):  # noqa: PTH112
            for name in os.listdir(libraries):  # noqa: PTH208
                if name.startswith("libpq-"):
                    return ctypes.CDLL(f"{libraries}/{name}")
    return None


def recorded(target: dict[str, str], schema: str) -> list[str] | None:
    """Return a line for each row of the history; None when anything at all is in the way.

    A line is version, name, state, the forward file's hash and those of its companions (KINDS).
    """
    library = libpq()
    if library is None:
        return None
    pointer = ctypes.c_void_p
    library.PQconnectdbParams.restype = library.PQgetResult.restype = pointer
    library.PQgetvalue.restype = ctypes.c_char_p
    message = "; ".join((BEGIN, *statements(schema), "COMMIT"))
    connection = pointer(library.PQconnectdbParams(*_parameters(target), 0))
    try:
        if connection.value is None or library.PQstatus(connection):
            return None
        if not library.PQsendQuery(connection, message.encode()):
            return None
        return _lines(library, connection)
    finally:
        library.PQfinish(connection)


def _parameters(target: dict[str, str]) -> tuple[ctypes.Array[ctypes.c_char_p], ...]:
    said = target | {
        "application_name": f"pg-preflight@{os.uname().nodename}"[:63],
        "client_encoding": "UTF8",
        "connect_timeout": "2",
        "options": f"-c lock_timeout={LOCK_MS} -c statement_timeout={ANSWER_MS} "
        "-c client_min_messages=error",
    }
    texts = ctypes.c_char_p * (len(said) + 1)
    keys, values = ([text.encode() for text in each] for each in (said.keys(), said.values()))
    return texts(*keys, None), texts(*values, None)


def _lines(library: ctypes.CDLL, connection: ctypes.c_void_p) -> list[str] | None:
    """Return the lines of the last result that has rows; None when a result is an error."""
    command_ok, tuples_ok = 1, 2
    count, text, sound = b"", b"", True
    while address := library.PQgetResult(connection):
        result = ctypes.c_void_p(address)
        status = library.PQresultStatus(result)
        if status == tuples_ok and library.PQnfields(result) == 2:  # noqa: PLR2004 -- of ROWS
            count, text = (library.PQgetvalue(result, 0, column) for column in (0, 1))
        sound = sound and status in (command_ok, tuples_ok)
        library.PQclear(result)
    lines = (text or b"").decode().split("\n")
    return lines if sound and count.isdigit() and len(lines) == int(count) else None
