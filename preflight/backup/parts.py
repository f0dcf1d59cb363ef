"""A backup of some schemas: what a copy of it needs first, and what it cannot have.

`pg_dump --schema` leaves out what lies in no schema, extensions among it, and whatever lies in
another one, though views, keys and defaults may need it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import psycopg

from preflight.backup import manifests
from preflight.base import quoting
from preflight.server import catalog

if TYPE_CHECKING:
    from preflight.backup.new_database import Complaint
    from preflight.server.sessions import Session

PUBLIC = "public"  # every new database has it

_CHOSEN = """chosen AS (
 SELECT n.oid FROM pg_catalog.pg_namespace n WHERE n.nspname::text = ANY (%(only)s::text[])
)"""
# what of an extension is used by what the schemas hold; a body's words say nothing to the catalogs
_EXTENSIONS = f"""
WITH RECURSIVE {_CHOSEN}, relations AS (
 SELECT c.oid FROM pg_catalog.pg_class c JOIN chosen ON chosen.oid = c.relnamespace
), held(classid, objid) AS (
 SELECT 'pg_catalog.pg_class'::regclass::oid, r.oid FROM relations r
 UNION ALL SELECT 'pg_catalog.pg_rewrite'::regclass, w.oid
 FROM pg_catalog.pg_rewrite w JOIN relations r ON r.oid = w.ev_class
 UNION ALL SELECT 'pg_catalog.pg_attrdef'::regclass, a.oid
 FROM pg_catalog.pg_attrdef a JOIN relations r ON r.oid = a.adrelid
 UNION ALL SELECT 'pg_catalog.pg_trigger'::regclass, t.oid
 FROM pg_catalog.pg_trigger t JOIN relations r ON r.oid = t.tgrelid
 UNION ALL SELECT 'pg_catalog.pg_policy'::regclass, p.oid
 FROM pg_catalog.pg_policy p JOIN relations r ON r.oid = p.polrelid
 UNION ALL SELECT 'pg_catalog.pg_constraint'::regclass, c.oid
 FROM pg_catalog.pg_constraint c JOIN chosen ON chosen.oid = c.connamespace
 UNION ALL SELECT 'pg_catalog.pg_proc'::regclass, p.oid
 FROM pg_catalog.pg_proc p JOIN chosen ON chosen.oid = p.pronamespace
 UNION ALL SELECT 'pg_catalog.pg_type'::regclass, t.oid
 FROM pg_catalog.pg_type t JOIN chosen ON chosen.oid = t.typnamespace
 UNION ALL SELECT 'pg_catalog.pg_operator'::regclass, o.oid
 FROM pg_catalog.pg_operator o JOIN chosen ON chosen.oid = o.oprnamespace
 UNION ALL SELECT 'pg_catalog.pg_opclass'::regclass, o.oid
 FROM pg_catalog.pg_opclass o JOIN chosen ON chosen.oid = o.opcnamespace
 UNION ALL SELECT 'pg_catalog.pg_ts_config'::regclass, t.oid
 FROM pg_catalog.pg_ts_config t JOIN chosen ON chosen.oid = t.cfgnamespace
), needed AS (
 SELECT e.oid FROM pg_catalog.pg_extension e JOIN chosen ON chosen.oid = e.extnamespace
 UNION SELECT m.refobjid FROM held
 JOIN pg_catalog.pg_depend d ON d.classid = held.classid AND d.objid = held.objid
 JOIN pg_catalog.pg_depend m ON m.classid = d.refclassid AND m.objid = d.refobjid
  AND m.deptype = 'e'
 UNION SELECT d.refobjid FROM needed JOIN pg_catalog.pg_depend d ON d.objid = needed.oid
  AND d.classid = 'pg_catalog.pg_extension'::regclass AND d.refclassid = d.classid
)
SELECT e.extname::text, n.nspname::text, pg_catalog.pg_get_userbyid(n.nspowner)::text,
 EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.refobjid = e.oid AND d.objid = n.oid
  AND d.classid = 'pg_catalog.pg_namespace'::regclass AND d.deptype = 'e'),
 e.oid IN (SELECT needed.oid FROM needed), e.extversion
FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace
WHERE e.oid >= 16384::oid ORDER BY e.oid
"""  # noqa: S608 -- a constant
_OUTSIDE = """
SELECT n.nspname::text FROM pg_catalog.pg_namespace n
WHERE n.nspname::text <> ALL (%s::text[]) AND n.nspname::text NOT LIKE 'pg\\_%%'
 AND n.nspname <> 'information_schema'
UNION ALL SELECT s.srvname::text FROM pg_catalog.pg_foreign_server s ORDER BY 1
"""
# By pages, where they were ever counted: a look at the file would queue behind whoever has a table
# for himself.
_SIZE = """
SELECT coalesce(pg_catalog.sum(CASE WHEN c.relpages > 0 THEN
 (c.relpages::int8 + coalesce(t.relpages, 0)) * pg_catalog.current_setting('block_size')::int8
 ELSE pg_catalog.pg_table_size(c.oid) END), 0)::int8
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_class t ON t.oid = c.reltoastrelid
WHERE n.nspname::text = ANY (%s::text[]) AND c.relkind IN ('r', 'm')
"""
_DATABASE = """s.refclassid = 'pg_catalog.pg_authid'::regclass AND s.dbid =
 (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())"""
_ROLES = f"""
SELECT r.rolname::text FROM pg_catalog.pg_shdepend s
JOIN pg_catalog.pg_roles r ON r.oid = s.refobjid WHERE {_DATABASE}
"""  # noqa: S608 -- a constant
_ROLES_OF_SOME = f"""
WITH {_CHOSEN}, held(classid, objid) AS (
 SELECT 'pg_catalog.pg_class'::regclass::oid, c.oid
 FROM pg_catalog.pg_class c JOIN chosen ON chosen.oid = c.relnamespace
 UNION ALL SELECT 'pg_catalog.pg_proc'::regclass, p.oid
 FROM pg_catalog.pg_proc p JOIN chosen ON chosen.oid = p.pronamespace
 UNION ALL SELECT 'pg_catalog.pg_type'::regclass, t.oid
 FROM pg_catalog.pg_type t JOIN chosen ON chosen.oid = t.typnamespace
 UNION ALL SELECT 'pg_catalog.pg_namespace'::regclass, chosen.oid FROM chosen
 UNION ALL SELECT 'pg_catalog.pg_policy'::regclass, p.oid FROM pg_catalog.pg_policy p
 JOIN pg_catalog.pg_class c ON c.oid = p.polrelid JOIN chosen ON chosen.oid = c.relnamespace
 UNION ALL SELECT 'pg_catalog.pg_default_acl'::regclass, a.oid
 FROM pg_catalog.pg_default_acl a JOIN chosen ON chosen.oid = a.defaclnamespace
)
SELECT r.rolname::text FROM pg_catalog.pg_shdepend s
JOIN held ON held.classid = s.classid AND held.objid = s.objid
JOIN pg_catalog.pg_roles r ON r.oid = s.refobjid WHERE {_DATABASE}
"""  # noqa: S608 -- a constant
# The roles that every server has from the start, a superuser of any name first, are not in
# pg_shdepend. What is made with a database, or with an extension, is no dump's to give away.
_PINNED = """
WITH schemas AS (
 SELECT n.* FROM pg_catalog.pg_namespace n
 WHERE n.nspname::text NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema' {only}
), held(classid, objid, owner, acl) AS (
 SELECT 'pg_catalog.pg_namespace'::regclass::oid, n.oid, n.nspowner, n.nspacl
 FROM schemas n WHERE n.nspname <> 'public'
 UNION ALL SELECT 'pg_catalog.pg_class'::regclass, c.oid, c.relowner, c.relacl
 FROM pg_catalog.pg_class c JOIN schemas n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f', 'c')
 UNION ALL SELECT 'pg_catalog.pg_class'::regclass, c.oid, c.relowner, a.attacl
 FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
 JOIN schemas n ON n.oid = c.relnamespace WHERE a.attacl IS NOT NULL AND c.relkind <> 'c'
 UNION ALL SELECT 'pg_catalog.pg_proc'::regclass, p.oid, p.proowner, p.proacl
 FROM pg_catalog.pg_proc p JOIN schemas n ON n.oid = p.pronamespace
 UNION ALL SELECT 'pg_catalog.pg_type'::regclass, t.oid, t.typowner, t.typacl
 FROM pg_catalog.pg_type t JOIN schemas n ON n.oid = t.typnamespace
 WHERE t.typtype IN ('b', 'd', 'e', 'r') AND t.typrelid = 0::oid AND t.typcategory <> 'A'
), named(oid) AS (
 SELECT h.owner FROM held h WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
  WHERE d.classid = h.classid AND d.objid = h.objid AND d.deptype = 'e')
 UNION SELECT a.grantee FROM held h, pg_catalog.aclexplode(h.acl) a
 WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
  WHERE d.classid = h.classid AND d.objid = h.objid AND d.deptype = 'e')
 UNION SELECT r.oid FROM pg_catalog.pg_policy p
 JOIN pg_catalog.pg_class c ON c.oid = p.polrelid JOIN schemas n ON n.oid = c.relnamespace,
 pg_catalog.unnest(p.polroles) r(oid)
)
SELECT r.rolname::text FROM named JOIN pg_catalog.pg_roles r ON r.oid = named.oid
WHERE r.oid < 16384::oid
"""
# large objects lie in no schema; those of whoever owns a table of ours are probably ours
_LARGE_OBJECTS = f"""
WITH {_CHOSEN} SELECT pg_catalog.count(*) FROM pg_catalog.pg_largeobject_metadata o
WHERE o.lomowner IN (SELECT c.relowner FROM pg_catalog.pg_class c
 JOIN chosen ON chosen.oid = c.relnamespace WHERE c.relkind IN ('r', 'p'))
"""  # noqa: S608 -- a constant
# of partitioned and inherited tables: a query of the table reads them, its dump does not
_ROWS_OUTSIDE = f"""
WITH {_CHOSEN} SELECT DISTINCT pg_catalog.format('rows of %%I.%%I in the schema %%I',
 pn.nspname, p.relname, n.nspname)
FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class p ON p.oid = i.inhparent
JOIN chosen ON chosen.oid = p.relnamespace JOIN pg_catalog.pg_namespace pn ON pn.oid = chosen.oid
JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'f') AND c.relpersistence <> 't'
 AND n.oid NOT IN (SELECT chosen.oid FROM chosen) ORDER BY 1
"""  # noqa: S608 -- a constant


# the live database


def look(session: Session) -> manifests.Part | None:
    """Return what a backup of the run's schemas needs and leaves out; None when it is of all."""
    if not (only := session.config.only):
        return None
    outside = session.execute(_OUTSIDE, [list(only)]).fetchall()
    return manifests.Part(
        only,
        extensions(session),
        tuple(name for (name,) in outside),
    )


def extensions(session: Session) -> tuple[manifests.Extension, ...]:
    """Return the extensions of the database, and which of them the run's schemas need."""
    found = session.execute(_EXTENSIONS, {"only": list(session.config.only)}).fetchall()
    return tuple(manifests.Extension(*row) for row in found)


def size(session: Session) -> int:
    """Return how many bytes the tables of the run's schemas have, as the server counted last."""
    (found,) = session.execute(_SIZE, [list(session.config.only)]).fetchone() or (0,)
    return int(found)


def roles(session: Session) -> list[str]:
    """Return which roles own something that is dumped, or have a right on it: names alone."""
    only = session.config.only
    parameters = {"only": list(only)} if only else None
    query = _ROLES_OF_SOME if only else _ROLES
    found = {name for (name,) in session.execute(query, parameters).fetchall()}
    pinned = session.execute(_PINNED.replace("{only}", catalog.only(only))).fetchall()
    return sorted(found.union(name for (name,) in pinned))


def lacking(session: Session) -> list[manifests.Lacking]:
    """Return what belongs to the schemas, but lies in none, or in another one."""
    only = {"only": list(session.config.only)}
    row = session.execute(_LARGE_OBJECTS, only).fetchone()
    count = row[0] if row else 0
    why = "they lie in no schema (PREFLIGHT_SCHEMAS)"
    found = [manifests.Lacking(f"{count} large objects", why)] if count else []
    why = "its partitions, or the tables that inherit, are there: add it to PREFLIGHT_SCHEMAS"
    rows = session.execute(_ROWS_OUTSIDE, only).fetchall()
    return [*found, *(manifests.Lacking(what, why) for (what,) in rows)]


# a new database


def there(part: manifests.Part | None) -> frozenset[str]:
    """Return which schemas a new database has before a partial dump is restored into it."""
    if part is None:
        return frozenset()
    return frozenset({PUBLIC, *(each.schema for each in part.extensions)})


def dated(
    session: Session, wanted: Sequence[manifests.Extension]
) -> tuple[manifests.Extension, ...]:
    """Return which extensions this server has in the version that is wanted, though not by default.

    Rows that a dump has of them fit that version.
    """
    names = [each.name for each in wanted]
    found = session.execute(_OTHER_VERSIONS, [names]).fetchall()
    return tuple(each for each in wanted if (each.name, each.version) in found)


_OTHER_VERSIONS = """
SELECT v.name::text, v.version FROM pg_catalog.pg_available_extension_versions v
JOIN pg_catalog.pg_available_extensions a ON a.name = v.name
WHERE v.name::text = ANY (%s::text[]) AND v.version <> a.default_version
"""


def make(inside: Session, wanted: Sequence[manifests.Extension]) -> dict[str, str]:
    """Make extensions in a new database; return what is needed and cannot be had, and why.

    One that nothing is known to need is made where that is possible: a function's body may.
    """
    left = list(wanted)
    old = dated(inside, wanted)
    failed: dict[str, str] = {}
    while left:
        failed = {each.name: why for each in left if (why := _made(inside, each, old=each in old))}
        if len(failed) == len(left):  # else those that need another come after it
            break
        left = [each for each in left if each.name in failed]
    return {each.name: failed[each.name] for each in left if each.needed}


def _made(inside: Session, extension: manifests.Extension, *, old: bool) -> str | None:
    try:
        if not extension.its_own:
            _make_schema(inside, extension)
        where = "" if extension.its_own else f" SCHEMA {quoting.name(extension.schema)}"
        where += f" VERSION {quoting.literal(extension.version)}" if old else ""
        inside.execute(f"CREATE EXTENSION IF NOT EXISTS {quoting.name(extension.name)}{where}")
    except psycopg.Error as error:
        if inside.lost:
            raise
        return str(error.diag.message_primary or error)
    return None


def _make_schema(inside: Session, extension: manifests.Extension) -> None:
    """Make it for its owner, or for us where he cannot be had."""
    command = f"CREATE SCHEMA IF NOT EXISTS {quoting.name(extension.schema)}"
    try:
        inside.execute(f"{command} AUTHORIZATION {quoting.name(extension.schema_owner)}")
    except psycopg.Error:
        if inside.lost:
            raise
        inside.execute(command)


# what it cannot have

_KINDS = (
    "MATERIALIZED VIEW DATA", "MATERIALIZED VIEW", "FOREIGN TABLE", "TABLE DATA", "TABLE ATTACH",
    "TABLE", "VIEW", "FK CONSTRAINT", "CHECK CONSTRAINT", "CONSTRAINT", "DEFAULT", "INDEX ATTACH",
    "INDEX", "TRIGGER", "RULE", "POLICY", "ROW SECURITY", "FUNCTION", "PROCEDURE", "AGGREGATE",
    "SHELL TYPE", "TYPE", "DOMAIN", "SEQUENCE OWNED BY", "SEQUENCE SET", "SEQUENCE",
    "OPERATOR CLASS", "OPERATOR FAMILY", "OPERATOR", "STATISTICS",
)  # fmt: skip
_OPENS, _CLOSES = (
    "[\"'\u00ab\u201e\u201c\u2018]",
    "[\"'\u00bb\u201c\u201d\u2019]",
)  # in any language


def marked(problems: Sequence[Complaint], part: manifests.Part | None) -> list[Complaint]:
    """Return pg_restore's complaints, those marked that are because of what a backup leaves out.

    They name it, or name what failed because of it: what an entry needs is named in full, and
    pg_restore works with several at once, in any order.
    """
    if part is None or not problems:
        return list(problems)
    outside = re.compile("|".join(_mention(name) for name in part.outside) or "(?!)")
    found = [dataclasses.replace(p, outside=bool(outside.search(p.text))) for p in problems]
    while True:
        lost = {name for p in found if p.outside and (name := thing(p.entry))}
        words = re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in lost) or "(?!)")
        again = [
            dataclasses.replace(p, outside=p.outside or bool(words.search(p.text))) for p in found
        ]
        if again == found:
            return found
        found = again


def _mention(name: str) -> str:
    """Return a pattern for a schema before a name, or for a name in anybody's quotes."""
    plain = "|".join({re.escape(name), re.escape(quoting.name(name))})
    return rf"(?<![\w.])(?:{plain})\.|{_OPENS}\s?{re.escape(name)}\s?{_CLOSES}"


def lost(refused: Sequence[Complaint]) -> list[tuple[str, str]]:
    """Return schema and name of what could not be restored: it needs what a backup leaves out."""
    return [(problem.schema, thing(problem.entry)) for problem in refused if problem.outside]


def thing(entry: str) -> str:
    """Return what an entry of an archive makes, without its table, kind and owner."""
    return " ".join(_tail(entry)[-1:])


def _tail(entry: str) -> list[str]:
    """Return an entry's name, and before it the name of its table, where it has one."""
    kind = next((kind for kind in _KINDS if entry.startswith(f"{kind} ")), None)
    if kind is None:
        return []
    rest = entry.removeprefix(f"{kind} ").rpartition(" ")[0]
    if kind.startswith(("FUNCTION", "PROCEDURE", "AGGREGATE", "OPERATOR")):
        return [rest.partition("(")[0]]
    if kind.endswith("CONSTRAINT") or kind in {"DEFAULT", "TRIGGER", "RULE", "POLICY"}:
        return rest.split(" ", 1)
    return [rest]


def excused(name: str, refused: Sequence[Complaint]) -> bool:
    """Tell whether an object, as the catalog calls it, is one of what could not be restored."""
    kind, _, rest = name.partition(" ")
    what, _, table = rest.replace(" on ", " of ").rpartition(" of ")
    place = quoting.parts((what and table) or rest.partition("(")[0])
    own = quoting.parts(what)[0] if what else place[-1] if place else ""
    if kind == "column" and len(place) > 2:  # noqa: PLR2004 -- schema, table, column
        place.pop()
    schema, relation = ["", "", *place][-2:]
    for problem in refused:
        tail = _tail(problem.entry)
        if schema and problem.schema not in {"", schema}:
            continue
        if tail and tail in ([relation], [own], [relation, own]):
            return True
    return False
