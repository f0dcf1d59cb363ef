"""What a database is made of, object by object, to compare it with another or with itself later.

Two views: `shapes` survive a dump and a restore (names, types, labels), `definitions` do not (the
server prints the expression of a restored CHECK another way) and compare one database with itself.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import operator
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg

from preflight.base import quoting, stop
from preflight.server import packed, sessions

if TYPE_CHECKING:
    from preflight.server.sessions import Session

# One row an object: what it is called, whether a dump holds it, its shape, and its definition.
# Members of extensions are the extension's; indexes left INVALID are in no dump, and neither are
# the names of constraints and triggers that partitions have from their parents. A restore numbers
# columns anew, leaves unfilled what reads from an unfilled materialized view, and gives a child in
# an inheritance its parent's defaults, NOT NULL and NOT VALID where it had dropped, outlived or
# never had them. That a partitioned table is UNLOGGED means nothing, and pg_dump 18 drops it; the
# sequence of its identity goes with it. The functions that make a range come with its type, which
# does not take them along when it is moved.
_OBJECTS = """
WITH RECURSIVE members AS (
 SELECT d.classid, d.objid FROM pg_catalog.pg_depend d WHERE d.deptype = 'e'
), schemas AS (
 SELECT n.* FROM pg_catalog.pg_namespace n
 WHERE n.nspname::text NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema' {only}
), relations AS (
 SELECT c.*, pg_catalog.format('%I.%I', n.nspname, c.relname) AS name,
  CASE c.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'table' WHEN 'v' THEN 'view'
   WHEN 'm' THEN 'materialized view' WHEN 'S' THEN 'sequence' WHEN 'f' THEN 'foreign table'
   ELSE 'type' END AS kind
 FROM pg_catalog.pg_class c JOIN schemas n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f', 'c') AND NOT EXISTS (SELECT FROM members m
  WHERE m.classid = 'pg_catalog.pg_class'::regclass AND m.objid = c.oid)
), unfilled AS (
 SELECT c.oid FROM pg_catalog.pg_class c WHERE NOT c.relispopulated
 UNION SELECT w.ev_class FROM unfilled u JOIN pg_catalog.pg_depend d ON d.refobjid = u.oid
  AND d.refclassid = 'pg_catalog.pg_class'::regclass
  AND d.classid = 'pg_catalog.pg_rewrite'::regclass
 JOIN pg_catalog.pg_rewrite w ON w.oid = d.objid AND w.rulename = '_RETURN'
), types AS (
 SELECT t.*, pg_catalog.format('%I.%I', n.nspname, t.typname) AS name
 FROM pg_catalog.pg_type t JOIN schemas n ON n.oid = t.typnamespace
 WHERE t.typtype IN ('b', 'd', 'e', 'r') AND t.typrelid = 0::oid
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_type e WHERE e.typarray = t.oid)
  AND NOT EXISTS (SELECT FROM members m
   WHERE m.classid = 'pg_catalog.pg_type'::regclass AND m.objid = t.oid)
)
SELECT {columns} FROM (
SELECT 'schema ' || pg_catalog.quote_ident(n.nspname::text), true, '',
 pg_catalog.concat_ws(' ', pg_catalog.pg_get_userbyid(n.nspowner),
  pg_catalog.obj_description(n.oid, 'pg_namespace'), {schema_acl})
FROM schemas n WHERE NOT EXISTS (SELECT FROM members m
 WHERE m.classid = 'pg_catalog.pg_namespace'::regclass AND m.objid = n.oid)
UNION ALL
SELECT r.kind || ' ' || r.name, true,
 pg_catalog.concat_ws(' ', r.relkind, CASE WHEN r.relkind <> 'p' AND (r.relkind <> 'S'
   OR NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
    JOIN pg_catalog.pg_class t ON t.oid = d.refobjid AND t.relkind = 'p'
    WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = r.oid
    AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.deptype = 'i'))
   THEN r.relpersistence END,
  r.relispartition,
  r.oid NOT IN (SELECT u.oid FROM unfilled u), r.relrowsecurity, r.relforcerowsecurity),
 pg_catalog.concat_ws(' ', pg_catalog.pg_get_userbyid(r.relowner), {relation_options},
  pg_catalog.obj_description(r.oid, 'pg_class'), {relation_acl}, r.relreplident,
  r.relispopulated, r.relpersistence,
  CASE WHEN r.relkind IN ('v', 'm') THEN pg_catalog.pg_get_viewdef(r.oid) END,
  CASE WHEN r.relkind = 'p' THEN pg_catalog.pg_get_partkeydef(r.oid) END,
  CASE WHEN r.relispartition THEN pg_catalog.pg_get_expr(r.relpartbound, r.oid) END,
  (SELECT pg_catalog.concat_ws(' ', s.seqtypid::regtype, s.seqstart, s.seqincrement, s.seqmax,
   s.seqmin, s.seqcache, s.seqcycle) FROM pg_catalog.pg_sequence s WHERE s.seqrelid = r.oid))
FROM relations r
UNION ALL
SELECT pg_catalog.format('column %s.%I', r.name, a.attname), true,
 pg_catalog.concat_ws(' ', pg_catalog.format_type(a.atttypid, a.atttypmod),
  CASE WHEN a.attinhcount = 0 OR r.relispartition THEN pg_catalog.concat_ws(' ', a.attnotnull,
   a.atthasdef AND pg_catalog.pg_get_expr(d.adbin, d.adrelid) !~ '^NULL(::|$)') END,
  'i' || a.attidentity::text, 'g' || a.attgenerated::text),
 pg_catalog.concat_ws(' ', a.attnotnull, pg_catalog.pg_get_expr(d.adbin, d.adrelid),
  pg_catalog.col_description(r.oid, a.attnum), {column_acl}, a.attcollation::regcollation,
  a.attstorage, {column_options})
FROM relations r JOIN pg_catalog.pg_attribute a ON a.attrelid = r.oid
LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = r.oid AND d.adnum = a.attnum
WHERE r.relkind <> 'S' AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT pg_catalog.format('index %I.%I', n.nspname, c.relname), true,
 pg_catalog.concat_ws(' ', r.name, i.indisunique, i.indisprimary, i.indnatts, i.indnkeyatts),
 pg_catalog.concat_ws(' ', {index}, pg_catalog.obj_description(c.oid, 'pg_class'),
  i.indisclustered, i.indisreplident, i.indisvalid)
FROM pg_catalog.pg_index i JOIN relations r ON r.oid = i.indrelid
JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE i.indisvalid OR c.relkind = 'I'
UNION ALL
SELECT pg_catalog.format('constraint %I of %s', c.conname, coalesce(r.name, t.name)), true,
 pg_catalog.concat_ws(' ', c.contype, CASE WHEN c.coninhcount = 0 THEN c.convalidated END,
  c.condeferrable, c.condeferred,
  (SELECT pg_catalog.array_agg(a.attname ORDER BY k.place)
   FROM pg_catalog.unnest(c.conkey) WITH ORDINALITY k(attnum, place)
   JOIN pg_catalog.pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.attnum)),
 pg_catalog.concat_ws(' ', pg_catalog.pg_get_constraintdef(c.oid),
  pg_catalog.obj_description(c.oid, 'pg_constraint'))
FROM pg_catalog.pg_constraint c LEFT JOIN relations r ON r.oid = c.conrelid
LEFT JOIN types t ON t.oid = c.contypid
WHERE coalesce(r.name, t.name) IS NOT NULL AND c.contype <> 'n' AND c.conparentid = 0::oid
UNION ALL
SELECT pg_catalog.format('trigger %I on %s', t.tgname, r.name), true,
 pg_catalog.concat_ws(' ', t.tgtype, t.tgenabled), pg_catalog.pg_get_triggerdef(t.oid)
FROM pg_catalog.pg_trigger t JOIN relations r ON r.oid = t.tgrelid
WHERE NOT t.tgisinternal AND t.tgparentid = 0::oid
UNION ALL
SELECT pg_catalog.format('policy %I on %s', p.polname, r.name), true,
 pg_catalog.concat_ws(' ', p.polcmd, p.polpermissive),
 pg_catalog.concat_ws(' ', {policy_roles}, pg_catalog.pg_get_expr(p.polqual, p.polrelid),
  pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid))
FROM pg_catalog.pg_policy p JOIN relations r ON r.oid = p.polrelid
UNION ALL
SELECT pg_catalog.format('rule %I on %s', w.rulename, r.name), true,
 pg_catalog.concat_ws(' ', w.ev_type, w.ev_enabled), pg_catalog.pg_get_ruledef(w.oid)
FROM pg_catalog.pg_rewrite w JOIN relations r ON r.oid = w.ev_class
WHERE w.rulename <> '_RETURN'
UNION ALL
SELECT pg_catalog.format('function %I.%I(%s)', n.nspname, p.proname,
  pg_catalog.pg_get_function_identity_arguments(p.oid)),
 NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
  WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = p.oid
  AND d.refclassid = 'pg_catalog.pg_type'::regclass AND d.deptype = 'i'),
 pg_catalog.concat_ws(' ', p.prokind, l.lanname, p.prosecdef, p.provolatile, p.proisstrict,
  pg_catalog.pg_get_function_result(p.oid)),
 pg_catalog.concat_ws(' ', CASE WHEN p.prokind <> 'a' THEN {function} END,
  pg_catalog.pg_get_userbyid(p.proowner), pg_catalog.obj_description(p.oid, 'pg_proc'),
  {function_acl})
FROM pg_catalog.pg_proc p JOIN schemas n ON n.oid = p.pronamespace
JOIN pg_catalog.pg_language l ON l.oid = p.prolang
WHERE NOT EXISTS (SELECT FROM members m
 WHERE m.classid = 'pg_catalog.pg_proc'::regclass AND m.objid = p.oid)
UNION ALL
SELECT 'type ' || t.name, true,
 pg_catalog.concat_ws(' ', t.typtype, t.typnotnull,
  CASE WHEN t.typtype = 'd' THEN pg_catalog.format_type(t.typbasetype, t.typtypmod) END,
  (SELECT pg_catalog.array_agg(e.enumlabel ORDER BY e.enumsortorder)
   FROM pg_catalog.pg_enum e WHERE e.enumtypid = t.oid)),
 pg_catalog.concat_ws(' ', pg_catalog.pg_get_userbyid(t.typowner), t.typdefault,
  pg_catalog.obj_description(t.oid, 'pg_type'), {type_acl})
FROM types t
UNION ALL
SELECT 'extension ' || pg_catalog.quote_ident(e.extname::text), true, '',
 pg_catalog.concat_ws(' ', e.extversion, e.extnamespace::regnamespace)
FROM pg_catalog.pg_extension e
UNION ALL
SELECT pg_catalog.format('%s %I.%I', o.kind, n.nspname, o.name), true, '', o.owner
FROM (
 SELECT 'collation' AS kind, c.collname AS name, c.collnamespace AS place, c.oid,
  'pg_catalog.pg_collation'::regclass AS catalog, c.collowner::text AS owner
 FROM pg_catalog.pg_collation c
 UNION ALL SELECT 'statistics', s.stxname, s.stxnamespace, s.oid,
  'pg_catalog.pg_statistic_ext'::regclass, pg_catalog.pg_get_statisticsobjdef(s.oid)
 FROM pg_catalog.pg_statistic_ext s
 UNION ALL SELECT 'operator class', o.opcname, o.opcnamespace, o.oid,
  'pg_catalog.pg_opclass'::regclass, o.opcowner::text FROM pg_catalog.pg_opclass o
 UNION ALL SELECT 'operator', o.oprname, o.oprnamespace, o.oid,
  'pg_catalog.pg_operator'::regclass, o.oprowner::text FROM pg_catalog.pg_operator o
  WHERE o.oprcode <> 0::oid
 UNION ALL SELECT 'text search configuration', t.cfgname, t.cfgnamespace, t.oid,
  'pg_catalog.pg_ts_config'::regclass, t.cfgowner::text FROM pg_catalog.pg_ts_config t
 UNION ALL SELECT 'text search dictionary', t.dictname, t.dictnamespace, t.oid,
  'pg_catalog.pg_ts_dict'::regclass, {dictionary_options} FROM pg_catalog.pg_ts_dict t
 UNION ALL SELECT 'operator family', f.opfname, f.opfnamespace, f.oid,
  'pg_catalog.pg_opfamily'::regclass, f.opfowner::text FROM pg_catalog.pg_opfamily f
 UNION ALL SELECT 'conversion', c.conname, c.connamespace, c.oid,
  'pg_catalog.pg_conversion'::regclass, c.conowner::text FROM pg_catalog.pg_conversion c
) o JOIN schemas n ON n.oid = o.place
WHERE NOT EXISTS (SELECT FROM members m WHERE m.classid = o.catalog AND m.objid = o.oid)
UNION ALL
SELECT pg_catalog.format('cast %s AS %s', pg_catalog.format_type(c.castsource, NULL),
  pg_catalog.format_type(c.casttarget, NULL)), true,
 pg_catalog.concat_ws(' ', c.castcontext, c.castmethod), c.castfunc::regprocedure::text
FROM pg_catalog.pg_cast c WHERE c.oid >= 16384::oid AND NOT EXISTS (SELECT FROM members m
 WHERE m.classid = 'pg_catalog.pg_cast'::regclass AND m.objid = c.oid)
UNION ALL
SELECT 'foreign data wrapper ' || pg_catalog.quote_ident(w.fdwname::text), true, '',
 pg_catalog.concat_ws(' ', {wrapper_options}, w.fdwhandler)
FROM pg_catalog.pg_foreign_data_wrapper w WHERE NOT EXISTS (SELECT FROM members m
 WHERE m.classid = 'pg_catalog.pg_foreign_data_wrapper'::regclass AND m.objid = w.oid)
UNION ALL
SELECT 'foreign server ' || pg_catalog.quote_ident(s.srvname::text), true, '',
 {server_options}::text
FROM pg_catalog.pg_foreign_server s
UNION ALL
SELECT 'event trigger ' || pg_catalog.quote_ident(e.evtname::text), true, e.evtevent::text,
 e.evtenabled::text
FROM pg_catalog.pg_event_trigger e WHERE NOT EXISTS (SELECT FROM members m
 WHERE m.classid = 'pg_catalog.pg_event_trigger'::regclass AND m.objid = e.oid)
UNION ALL
SELECT 'publication ' || pg_catalog.quote_ident(p.pubname::text), false, '', p.puballtables::text
FROM pg_catalog.pg_publication p
UNION ALL
SELECT 'large objects', true, count(*)::text, '' FROM pg_catalog.pg_largeobject_metadata
) AS object(name, dumped, shape, definition) ORDER BY pg_catalog.convert_to(name, 'UTF8')
"""
_ACL = """(SELECT pg_catalog.string_agg(a::text, ',' ORDER BY a::text) FROM pg_catalog.unnest(
 coalesce({acl}, pg_catalog.acldefault('{kind}', {owner}))) AS a)"""
# What is set or granted anew comes last: what went and came back is the same in another order.
_SORTED = """CASE WHEN pg_catalog.cardinality({these}) > 1 THEN (SELECT
 pg_catalog.array_agg(o ORDER BY o::text) FROM pg_catalog.unnest({these}) AS o) ELSE {these} END"""
_APART = """CASE WHEN pg_catalog.cardinality({these}) > 1 THEN pg_catalog.concat_ws(' ',
 pg_catalog.regexp_replace({whole}, '{part}', ''), {sorted}) ELSE {whole} END"""


def _sorted(these: str) -> str:
    return _SORTED.format(these=these)


def _sorted_apart(whole: str, part: str, these: str) -> str:
    """Return SQL that reads a definition, and what is a list in it apart from the rest."""
    return _APART.format(whole=whole, part=part, these=these, sorted=_sorted(these))


_OPTIONS = "pg_catalog.string_to_array(t.dictinitoption, ', ')"
_PARTS = {
    "schema_acl": _ACL.format(acl="n.nspacl", kind="n", owner="n.nspowner"),
    "relation_acl": _ACL.format(acl="r.relacl", kind="r", owner="r.relowner"),
    "function_acl": _ACL.format(acl="p.proacl", kind="f", owner="p.proowner"),
    "type_acl": _ACL.format(acl="t.typacl", kind="T", owner="t.typowner"),
    "column_acl": _sorted("a.attacl"),
    "policy_roles": _sorted("p.polroles::regrole[]"),
    "relation_options": _sorted("r.reloptions"),
    "column_options": _sorted("a.attoptions"),
    "wrapper_options": _sorted("w.fdwoptions"),
    "server_options": _sorted("s.srvoptions"),
    "dictionary_options": f"pg_catalog.array_to_string({_sorted(_OPTIONS)}, ', ')",
    "index": _sorted_apart("pg_catalog.pg_get_indexdef(c.oid)", r" WITH \([^)]*\)", "c.reloptions"),
    "function": _sorted_apart(
        "pg_catalog.pg_get_functiondef(p.oid)", r"(?:\n SET [^\n]+)+", "p.proconfig"
    ),
}
_LARGE = "large objects"
_BORDER = "\0"  # between a shape and a digest
SET_BACK_S = 1.0  # for as long a sequence that may have been set back is looked at
# a cycle may have begun anew meanwhile
_SEQUENCES = """
SELECT pg_catalog.format('%I.%I', n.nspname, c.relname), s.seqincrement > 0,
 pg_catalog.pg_sequence_last_value(c.oid)
FROM pg_catalog.pg_sequence s JOIN pg_catalog.pg_class c ON c.oid = s.seqrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE NOT s.seqcycle AND c.relpersistence <> 't' {only}
 AND CASE WHEN c.relkind = 'S' -- NULL if it was just dropped
  THEN pg_catalog.has_sequence_privilege(c.oid, 'USAGE, SELECT') END
 AND NOT EXISTS (
 SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::regclass
  AND d.objid = c.oid AND d.deptype = 'e')
"""
# No dump holds them, and no definition tells them; both have that of a partitioned table which
# lacks one of a partition. Who builds one holds its table, from his first transaction to his last;
# who drops one, or builds it anew, the index itself.
_INVALID = """
SELECT c.oid::int8, pg_catalog.format('%I.%I', n.nspname, c.relname),
 pg_catalog.format('%I.%I', m.nspname, t.relname),
 EXISTS (SELECT FROM pg_catalog.pg_locks l
  LEFT JOIN pg_catalog.pg_stat_progress_create_index p ON p.pid = l.pid
  WHERE l.granted AND l.pid <> pg_catalog.pg_backend_pid() AND l.database =
   (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
  AND l.mode IN ('ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock',
   'ExclusiveLock', 'AccessExclusiveLock')
  AND (l.relation = i.indexrelid OR l.relation = i.indrelid AND p.pid IS NOT NULL)),
 EXISTS (SELECT FROM pg_catalog.pg_inherits h WHERE h.inhrelid = i.indexrelid)
FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_class t ON t.oid = i.indrelid
JOIN pg_catalog.pg_namespace m ON m.oid = t.relnamespace
WHERE NOT i.indisvalid AND c.relkind = 'i' AND n.nspname::text NOT LIKE 'pg\\_%' {only} ORDER BY 2
"""
_SEES_BUILDERS = """SELECT pg_catalog.bool_and(pg_catalog.has_table_privilege(
 pg_catalog.to_regclass('pg_catalog.' || v), 'SELECT'))
FROM pg_catalog.unnest(ARRAY['pg_locks', 'pg_stat_progress_create_index']) v
"""
# What a lock on the tables does not hold still: one row each with its version. pg_dump lists the
# objects in its snapshot, but prints what they are from the catalogs as they are by then. REFRESH
# and REINDEX write to pg_class and change nothing that is dumped: there the name is the version.
# So it is with a sequence that begins anew. A version is the number of who wrote the row last; who
# writes it anew as it was (CREATE OR REPLACE with the same text, a GRANT of what was granted, a
# trigger switched off and on) changes nothing either, but to say so each row is read as a whole.
_MARKS = """
WITH schemas AS (
 SELECT n.oid, n.xmin::text AS version, n.nspname FROM pg_catalog.pg_namespace n
 WHERE n.nspname::text NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema' {only}
), relations AS (
 SELECT c.oid, c.xmin::text AS version, c.relkind,
  pg_catalog.format('%I.%I', n.nspname, c.relname) AS name
 FROM pg_catalog.pg_class c JOIN schemas n ON n.oid = c.relnamespace
)
SELECT m.kind || ' ' || m.oid, m.version, m.name FROM (
SELECT 'schema', n.oid::text, n.version, pg_catalog.quote_ident(n.nspname::text) FROM schemas n
UNION ALL SELECT 'function', p.oid::text, p.xmin::text,
 pg_catalog.format('%I.%I', n.nspname, p.proname)
FROM pg_catalog.pg_proc p JOIN schemas n ON n.oid = p.pronamespace
UNION ALL SELECT 'type', t.oid::text, t.xmin::text,
 pg_catalog.format('%I.%I', n.nspname, t.typname)
FROM pg_catalog.pg_type t JOIN schemas n ON n.oid = t.typnamespace
WHERE t.typrelid = 0::oid AND t.typcategory <> 'A'
UNION ALL SELECT 'label', e.oid::text, e.xmin::text, e.enumtypid::regtype::text
FROM pg_catalog.pg_enum e JOIN pg_catalog.pg_type t ON t.oid = e.enumtypid
JOIN schemas n ON n.oid = t.typnamespace
UNION ALL SELECT 'relation', r.oid::text,
 CASE WHEN r.relkind IN ('v', 'f', 'c') THEN r.version ELSE r.name END, r.name
FROM relations r WHERE r.relkind IN ('v', 'f', 'c', 'm', 'S', 'i', 'I')
UNION ALL SELECT 'sequence', s.seqrelid::text, pg_catalog.concat_ws(' ', s.seqtypid, s.seqstart,
 s.seqincrement, s.seqmax, s.seqmin, s.seqcache, s.seqcycle), r.name
FROM pg_catalog.pg_sequence s JOIN relations r ON r.oid = s.seqrelid
UNION ALL SELECT 'column', a.attrelid::text || '.' || a.attnum, a.xmin::text,
 pg_catalog.format('%s.%I', r.name, a.attname)
FROM pg_catalog.pg_attribute a JOIN relations r ON r.oid = a.attrelid
WHERE r.relkind IN ('v', 'f', 'c') AND a.attnum > 0
UNION ALL SELECT 'default', d.oid::text, d.xmin::text, r.name
FROM pg_catalog.pg_attrdef d JOIN relations r ON r.oid = d.adrelid
UNION ALL SELECT 'rule', w.oid::text, w.xmin::text,
 pg_catalog.format('%I on %s', w.rulename, r.name)
FROM pg_catalog.pg_rewrite w JOIN relations r ON r.oid = w.ev_class
UNION ALL SELECT 'trigger', t.oid::text, t.xmin::text,
 pg_catalog.format('%I on %s', t.tgname, r.name)
FROM pg_catalog.pg_trigger t JOIN relations r ON r.oid = t.tgrelid WHERE NOT t.tgisinternal
UNION ALL SELECT 'constraint', c.oid::text, c.xmin::text,
 pg_catalog.quote_ident(c.conname::text)
FROM pg_catalog.pg_constraint c JOIN schemas n ON n.oid = c.connamespace
UNION ALL SELECT 'policy', p.oid::text, p.xmin::text,
 pg_catalog.format('%I on %s', p.polname, r.name)
FROM pg_catalog.pg_policy p JOIN relations r ON r.oid = p.polrelid
UNION ALL SELECT o.kind, o.oid::text, o.version, pg_catalog.format('%I.%I', n.nspname, o.name)
FROM (
 SELECT 'operator' AS kind, o.oid, o.xmin::text AS version, o.oprname AS name,
  o.oprnamespace AS place FROM pg_catalog.pg_operator o
 UNION ALL SELECT 'operator class', o.oid, o.xmin::text, o.opcname, o.opcnamespace
 FROM pg_catalog.pg_opclass o
 UNION ALL SELECT 'operator family', o.oid, o.xmin::text, o.opfname, o.opfnamespace
 FROM pg_catalog.pg_opfamily o
 UNION ALL SELECT 'collation', o.oid, o.xmin::text, o.collname, o.collnamespace
 FROM pg_catalog.pg_collation o
 UNION ALL SELECT 'conversion', o.oid, o.xmin::text, o.conname, o.connamespace
 FROM pg_catalog.pg_conversion o
 UNION ALL SELECT 'text search configuration', o.oid, o.xmin::text, o.cfgname, o.cfgnamespace
 FROM pg_catalog.pg_ts_config o
 UNION ALL SELECT 'text search dictionary', o.oid, o.xmin::text, o.dictname, o.dictnamespace
 FROM pg_catalog.pg_ts_dict o
 UNION ALL SELECT 'statistics', o.oid, o.xmin::text, o.stxname, o.stxnamespace
 FROM pg_catalog.pg_statistic_ext o
) o JOIN schemas n ON n.oid = o.place
UNION ALL SELECT 'cast', c.oid::text, c.xmin::text,
 pg_catalog.format('%s AS %s', c.castsource::regtype, c.casttarget::regtype)
FROM pg_catalog.pg_cast c WHERE c.oid >= 16384::oid
UNION ALL SELECT 'extension', e.oid::text, e.xmin::text, e.extname::text
FROM pg_catalog.pg_extension e
UNION ALL SELECT 'language', l.oid::text, l.xmin::text, l.lanname::text
FROM pg_catalog.pg_language l WHERE l.oid >= 16384::oid
UNION ALL SELECT 'event trigger', e.oid::text, e.xmin::text, e.evtname::text
FROM pg_catalog.pg_event_trigger e
UNION ALL SELECT 'foreign data wrapper', w.oid::text, w.xmin::text, w.fdwname::text
FROM pg_catalog.pg_foreign_data_wrapper w
UNION ALL SELECT 'foreign server', s.oid::text, s.xmin::text, s.srvname::text
FROM pg_catalog.pg_foreign_server s
) m(kind, oid, version, name) ORDER BY (m.kind || ' ' || m.oid) COLLATE "C"
"""
# md5() is refused where OpenSSL runs in FIPS mode
_WHOLE = re.sub(
    r"(\w)\.xmin::text",
    r"pg_catalog.sha256(pg_catalog.convert_to(\1::text, pg_catalog.getdatabaseencoding()))::text",
    _MARKS,
)
# What is compared by number and version only. Left out is what the server writes to by itself, for
# a temporary table, and in VACUUM FULL and REINDEX.
_CATALOGS = """
SELECT c.relname::text, pg_catalog.has_table_privilege('public', c.oid, 'SELECT')
FROM pg_catalog.pg_class c
WHERE c.relnamespace = 'pg_catalog'::regnamespace AND c.relkind = 'r' AND NOT c.relisshared
 AND pg_catalog.has_table_privilege(c.oid, 'SELECT') AND c.relname <> ALL (%s::name[])
ORDER BY 1
"""
_RESTLESS = [
    *("pg_statistic", "pg_statistic_ext_data", "pg_class", "pg_attribute", "pg_attrdef", "pg_type"),
    *("pg_namespace", "pg_index", "pg_depend", "pg_constraint", "pg_sequence", "pg_rewrite"),
    *("pg_trigger", "pg_largeobject", "pg_largeobject_metadata"),
]
# What pg_dump leaves out without failing: what only others, or a superuser, may see, and what
# somebody has made in the system's schemas.
_UNSEEN = """
SELECT pg_catalog.format('options of the user mapping for %s on server %I',
 coalesce(pg_catalog.quote_ident(nullif(u.usename::text, 'public')), 'PUBLIC'), u.srvname),
 'only the mapped role and a superuser may see them'
FROM pg_catalog.pg_user_mappings u JOIN pg_catalog.pg_foreign_server s ON s.oid = u.srvid
JOIN pg_catalog.pg_roles r ON r.rolname = current_user
WHERE u.umoptions IS NULL AND NOT r.rolsuper AND NOT CASE WHEN u.umuser = 0::oid
 THEN pg_catalog.pg_has_role(s.srvowner, 'USAGE')
 ELSE u.umuser = r.oid AND (pg_catalog.pg_has_role(s.srvowner, 'USAGE')
  OR pg_catalog.has_server_privilege(s.oid, 'USAGE')) END
UNION ALL
SELECT pg_catalog.format('subscription %I', s.subname), 'only a superuser may dump subscriptions'
FROM pg_catalog.pg_subscription s JOIN pg_catalog.pg_database d ON d.oid = s.subdbid
JOIN pg_catalog.pg_roles r ON r.rolname = current_user
WHERE d.datname = pg_catalog.current_database() AND NOT r.rolsuper
UNION ALL
SELECT pg_catalog.format('%s %I.%I', o.kind, n.nspname, o.name), 'no dump has what is there'
FROM (
 SELECT 'relation' AS kind, c.relname AS name, c.relnamespace AS place, c.oid,
  'pg_catalog.pg_class'::regclass AS catalog
 FROM pg_catalog.pg_class c WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
 UNION ALL SELECT 'function', p.proname, p.pronamespace, p.oid, 'pg_catalog.pg_proc'::regclass
 FROM pg_catalog.pg_proc p
 UNION ALL SELECT 'type', t.typname, t.typnamespace, t.oid, 'pg_catalog.pg_type'::regclass
 FROM pg_catalog.pg_type t WHERE t.typrelid = 0::oid AND t.typcategory <> 'A'
) o JOIN pg_catalog.pg_namespace n ON n.oid = o.place
WHERE o.oid >= 16384::oid AND n.nspname IN ('pg_catalog', 'information_schema')
 AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
  WHERE d.classid = o.catalog AND d.objid = o.oid AND d.deptype = 'e')
ORDER BY 1
"""
# functions that make a value of a range, where they are not called as its type is by now
_CONSTRUCTORS = """
SELECT DISTINCT pg_catalog.format('function %I.%I', n.nspname, p.proname),
 pg_catalog.format('%I.%I', m.nspname, t.typname)
FROM pg_catalog.pg_type t JOIN pg_catalog.pg_depend d ON d.refobjid = t.oid
 AND d.refclassid = 'pg_catalog.pg_type'::regclass
 AND d.classid = 'pg_catalog.pg_proc'::regclass AND d.deptype = 'i'
JOIN pg_catalog.pg_proc p ON p.oid = d.objid
JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
JOIN pg_catalog.pg_namespace m ON m.oid = t.typnamespace
WHERE t.oid >= 16384::oid AND (p.proname, p.pronamespace) <> (t.typname, t.typnamespace) {only}
 AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend e WHERE e.deptype = 'e'
  AND e.classid = 'pg_catalog.pg_type'::regclass AND e.objid = t.oid)
ORDER BY 1, 2
"""
CALLED = "a restore calls it "  # by another name: nothing else is lost
SWITCHED = "it is switched off, and pg_restore switches it on"
PENDING = "its detaching is pending, and a restore attaches it"
INVALID = "INVALID, no dump holds it"
NO_LOSS = (CALLED, SWITCHED, PENDING, INVALID)  # what is said so of is in the dump, or of no use
# The triggers that a foreign key is made of, each by what it does, on which table, and of which key
# as it was declared: a trigger's own name is of this database alone, and so may be the name of a
# partition's part of a key. No dump says that one is switched off.
_KEYS = """
WITH RECURSIVE keys AS (
 SELECT k.oid, k.oid AS top, k.conparentid AS above FROM pg_catalog.pg_constraint k
 WHERE k.contype = 'f'
 UNION ALL SELECT k.oid, k.above, p.conparentid FROM keys k
 JOIN pg_catalog.pg_constraint p ON p.oid = k.above
)
SELECT pg_catalog.format('%s of foreign key %I of %I.%I on %I.%I', f.proname, k.conname, m.nspname,
  w.relname, q.nspname, o.relname),
 t.tgenabled::text,
 pg_catalog.format('foreign key %I of %I.%I', k.conname, m.nspname, w.relname)
  || CASE WHEN c.oid <> k.oid THEN pg_catalog.format(' on %I.%I', q.nspname, o.relname) ELSE '' END,
 pg_catalog.format('ALTER TABLE ONLY %I.%I ', q.nspname, o.relname),
 pg_catalog.format(' TRIGGER %I', t.tgname),
 f.proname LIKE 'RI_FKey_check_%', n.nspname::text, r.relname::text, c.conname::text,
 o.relname::text
FROM pg_catalog.pg_trigger t
JOIN pg_catalog.pg_constraint c ON c.oid = t.tgconstraint
JOIN keys u ON u.oid = c.oid AND u.above = 0::oid
JOIN pg_catalog.pg_constraint k ON k.oid = u.top
JOIN pg_catalog.pg_class r ON r.oid = c.conrelid
JOIN pg_catalog.pg_namespace n ON n.oid = r.relnamespace
JOIN pg_catalog.pg_class w ON w.oid = k.conrelid
JOIN pg_catalog.pg_namespace m ON m.oid = w.relnamespace
JOIN pg_catalog.pg_class o ON o.oid = t.tgrelid
JOIN pg_catalog.pg_namespace q ON q.oid = o.relnamespace
JOIN pg_catalog.pg_proc f ON f.oid = t.tgfoid
WHERE t.tgisinternal {only} ORDER BY 1
"""
_SWITCHED_OFF = "AND t.tgenabled <> 'O'"
_STATES = {"O": "ENABLE", "D": "DISABLE", "R": "ENABLE REPLICA", "A": "ENABLE ALWAYS"}
# a partition that only waits for transactions to end; 13 has no such thing
_PENDING = """
SELECT pg_catalog.format('partition %I.%I of %I.%I', n.nspname, c.relname, m.nspname, p.relname),
 true
FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_class p ON p.oid = i.inhparent
JOIN pg_catalog.pg_namespace m ON m.oid = p.relnamespace
WHERE (pg_catalog.to_jsonb(i) ->> 'inhdetachpending')::bool {only}
UNION ALL SELECT pg_catalog.format('index %I.%I', n.nspname, c.relname), false
FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE NOT i.indisvalid AND c.relkind = 'i' AND n.nspname::text NOT LIKE 'pg\\_%' {only}
ORDER BY 2 DESC, 1
"""
# what a standby has no content of: pg_dump leaves it out there, and says nothing
_UNLOGGED = """
SELECT pg_catalog.format(CASE c.relkind WHEN 'S' THEN 'the place of the sequence %I.%I'
 ELSE 'rows of %I.%I' END, n.nspname, c.relname)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE pg_catalog.pg_is_in_recovery() AND c.relpersistence = 'u' AND c.relkind IN ('r', 'S') {only}
ORDER BY c.relkind = 'S', 1
"""
# each extension, and each of its relations: those that its script makes, and others that were added
_MEMBERS = """
SELECT e.extname::text, e.extversion, '', '', '', '' FROM pg_catalog.pg_extension e
UNION ALL
SELECT e.extname::text, e.extversion, c.relkind::text, n.nspname::text, c.relname::text,
 pg_catalog.format('%I.%I', n.nspname, c.relname)
FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_depend d ON d.refobjid = e.oid
 AND d.refclassid = 'pg_catalog.pg_extension'::regclass
 AND d.classid = 'pg_catalog.pg_class'::regclass AND d.deptype = 'e'
JOIN pg_catalog.pg_class c ON c.oid = d.objid AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
"""
# What the relations of each extension have. All that its script makes is made elsewhere, too: where
# nobody wrote to it since, as an update does, or a move to another server's files (pg_upgrade).
# Else nobody can tell whose an index is, and nothing is said.
_ATTACHED = """
WITH once AS (
 SELECT e.oid, e.extname, e.extversion, NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
  WHERE d.refobjid = e.oid AND d.refclassid = 'pg_catalog.pg_extension'::regclass
   AND d.deptype = 'e' AND d.xmin <> e.xmin) AS sure
 FROM pg_catalog.pg_extension e
), members AS (
 SELECT c.*, once.extname, once.extversion, once.sure, n.nspname,
  pg_catalog.format('%I.%I', n.nspname, c.relname) AS told
 FROM once JOIN pg_catalog.pg_depend d ON d.refobjid = once.oid AND d.deptype = 'e'
  AND d.refclassid = 'pg_catalog.pg_extension'::regclass
  AND d.classid = 'pg_catalog.pg_class'::regclass
 JOIN pg_catalog.pg_class c ON c.oid = d.objid AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
)
SELECT m.extname::text, m.extversion, m.nspname::text, m.told, o.kind,
 pg_catalog.concat(o.kind, ' ' || pg_catalog.quote_ident(o.name::text), ' of ', m.told),
 o.name::text, o.decides, m.sure
FROM members m JOIN (
 SELECT c.oid AS place, '' AS kind, NULL::name AS name, false AS decides FROM members c
 UNION ALL SELECT c.oid, 'row security', NULL, false FROM members c WHERE c.relrowsecurity
 UNION ALL SELECT a.attrelid, 'column', a.attname, false FROM pg_catalog.pg_attribute a
  WHERE a.attnum > 0 AND NOT a.attisdropped
 UNION ALL SELECT i.indrelid, 'index', c.relname, i.indisunique FROM pg_catalog.pg_index i
  JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
  WHERE i.indisvalid AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint k
   WHERE k.conindid = i.indexrelid AND k.conrelid = i.indrelid)
 UNION ALL SELECT k.conrelid, 'constraint', k.conname, k.contype IN ('p', 'u', 'x')
  FROM pg_catalog.pg_constraint k WHERE k.contype IN ('c', 'f', 'p', 'u', 'x')
 UNION ALL SELECT t.tgrelid, 'trigger', t.tgname, false FROM pg_catalog.pg_trigger t
  WHERE NOT t.tgisinternal
 UNION ALL SELECT p.polrelid, 'policy', p.polname, false FROM pg_catalog.pg_policy p
 UNION ALL SELECT w.ev_class, 'rule', w.rulename, false FROM pg_catalog.pg_rewrite w
  WHERE w.rulename <> '_RETURN'
) o ON o.place = m.oid
"""
Objects = packed.Rows  # of names and shapes, in the order of the names
Marks = packed.Rows  # of kind and oid, version, and name
Sequences = Mapping[str, tuple[bool, int | None]]
# extension and version, and of a relation kind, schema, name, and how it is told
Members = frozenset[tuple[str, str, str, str, str, str]]

# what reads, near or far, from a foreign table: a refresh calls the other server
_CALLING = """
WITH RECURSIVE calling AS (
 SELECT c.oid, c.relkind FROM pg_catalog.pg_class c WHERE c.relkind = 'f'
 UNION SELECT v.oid, v.relkind FROM calling
 JOIN pg_catalog.pg_depend d ON d.refobjid = calling.oid
  AND d.refclassid = 'pg_catalog.pg_class'::regclass
  AND d.classid = 'pg_catalog.pg_rewrite'::regclass
 JOIN pg_catalog.pg_rewrite w ON w.oid = d.objid
 JOIN pg_catalog.pg_class v ON v.oid = w.ev_class
)
SELECT c.oid::int8, pg_catalog.format('%I.%I', n.nspname, c.relname) FROM calling
JOIN pg_catalog.pg_class c ON c.oid = calling.oid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'm' ORDER BY 2
"""


# what lies in no schema: in no dump of some schemas
_NOWHERE = (
    "extension ", "cast ", "foreign data wrapper ", "foreign server ", "event trigger ",
    "language ", "publication ", "large objects",
)  # fmt: skip


def only(schemas: Sequence[str]) -> str:
    """Return what limits a query to some schemas, of which `n` is one; none: to nothing."""
    names = ", ".join(map(quoting.literal, schemas))
    return f"AND n.nspname::text IN ({names})" if names else ""


def _within(schemas: Sequence[str], name: str) -> bool:
    """Tell whether an object can be in one of some schemas."""
    return not (schemas and name.startswith(_NOWHERE))


def calling(session: Session) -> dict[int, str]:
    """Return the materialised views whose refresh asks another server, by oid."""
    return dict(session.execute(_CALLING).fetchall())


def shapes(session: sessions.Place, schemas: Sequence[str] = ()) -> packed.Packed:
    """Return each object that a dump holds with what of it a dump and a restore leave as it is.

    Of all schemas, or of these and what lies in them.
    No definition is computed for it: in production others may be dropping what it is made of.
    """
    query = _OBJECTS.format(columns="name, shape, dumped", only=only(schemas), **_PARTS)

    def kept(rows: Iterator[tuple[Any, ...]]) -> packed.Packed:
        dumped = (row for row in rows if row[2] and _within(schemas, row[0]))
        return packed.Packed((name, _joined(same, 1)) for name, same in _named_alike(dumped))

    return sessions.read(session, query, kept)


def definitions(session: sessions.Place) -> packed.Packed:
    """Return each object with its shape and the digest of all else that is known of it."""
    query = _OBJECTS.format(columns="name, shape, definition", only="", **_PARTS)

    def kept(rows: Iterator[tuple[Any, ...]]) -> packed.Packed:
        return packed.Packed((name, _defined(same)) for name, same in _named_alike(rows))

    return sessions.read(session, query, kept)


def shape_of(definition: str) -> str:
    """Return an object's shape alone, from what `definitions` says of it."""
    return definition.partition(_BORDER)[0]


def _named_alike(rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[str, list[tuple[Any, ...]]]]:
    """Yield the rows of each name: operators and operator classes share theirs with others."""
    for name, same in itertools.groupby(rows, operator.itemgetter(0)):
        yield name, list(same)


def _joined(rows: Iterable[tuple[Any, ...]], column: int) -> str:
    return "\n".join(sorted(row[column] or "" for row in rows))


def _defined(rows: Sequence[tuple[Any, ...]]) -> str:
    shape = _joined(rows, 1)
    if rows[0][0] == _LARGE:
        return shape  # their number is told
    return f"{shape}{_BORDER}{hashlib.sha256(_joined(rows, 2).encode()).hexdigest()[:32]}"


def sequences(session: Session, schemas: Sequence[str] = ()) -> dict[str, tuple[bool, int | None]]:
    """Return for each sequence whether it counts upwards, and its last value (None: not used)."""
    query = _SEQUENCES.replace("{only}", only(schemas))
    return {name: (up, last) for name, up, last in session.execute(query).fetchall()}


def invalid_indexes(session: Session, schemas: Sequence[str] = ()) -> list[Invalid]:
    """Return the indexes that are INVALID, in the order of their names.

    None for a role that may not see who is building one.
    """
    if session.execute(_SEES_BUILDERS).fetchone() != (True,):
        return []
    query = _INVALID.replace("{only}", only(schemas))
    return [Invalid(*row) for row in session.execute(query).fetchall()]


def marks(
    session: sessions.Place, schemas: Sequence[str] = (), *, whole: bool = False
) -> packed.Packed:
    """Return the version of each object that no lock on a table holds still.

    `whole`: the digest of all that is known of it, which takes longer to read.
    """

    def kept(rows: Iterator[tuple[Any, ...]]) -> packed.Packed:
        return packed.Packed(row for row in rows if _within(schemas, row[0]))

    query = _WHOLE if whole else _MARKS
    return sessions.read(session, query.replace("{only}", only(schemas)), kept)


def counts(session: Session) -> dict[str, int]:
    """Return how many rows each catalog has that everybody may read: what was dropped shows."""
    found = session.execute(_CATALOGS, [_RESTLESS]).fetchall()
    queries = [
        f"SELECT '{name}', count(*) FROM pg_catalog.{name}"  # noqa: S608 -- a catalog's name
        for name, public in found
        if public
    ]
    return dict(session.execute(" UNION ALL ".join(queries)).fetchall()) if queries else {}


def written_since(session: Session, transaction: int) -> list[str]:
    """Name the catalogs with rows that were written after a transaction, by its 64-bit number."""
    recent = f"pg_catalog.age(t.xmin) < pg_catalog.age('{transaction % 2**32}'::xid)"
    found = session.execute(_CATALOGS, [_RESTLESS]).fetchall()
    queries = [
        f"SELECT '{name}' WHERE EXISTS (SELECT FROM pg_catalog.{name} t WHERE {recent})"  # noqa: S608 -- a catalog's name
        for name, _ in found
    ]
    rows = session.execute(" UNION ALL ".join(queries)).fetchall() if queries else []
    return [name for (name,) in rows]


def unseen(session: Session) -> list[tuple[str, str]]:
    """Return what this role's dump will be without, though nothing fails: what, and why."""
    return [(what, why) for what, why in session.execute(_UNSEEN).fetchall()]


def constructors(session: Session, schemas: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Return the functions of ranges that a restore calls otherwise: what, and why."""
    found = session.execute(_CONSTRUCTORS.replace("{only}", only(schemas))).fetchall()
    return [(what, f"{CALLED}{now}, as its type is called by now") for what, now in found]


class Invalid(NamedTuple):
    """An INVALID index: its number, its name, its table's, and whether somebody is at it now.

    `attached`: it is a partition's part of a partitioned table's.
    """

    oid: int
    name: str
    table: str
    busy: bool
    attached: bool

    @property
    def remedy(self) -> str:
        """The statement that helps beside whoever is at work on its table: no part is dropped."""
        return f"{'REINDEX' if self.attached else 'DROP'} INDEX CONCURRENTLY {self.name}"


class Key(NamedTuple):
    """One of the triggers that a foreign key is made of, and what an error that it raises names."""

    name: str
    state: str  # as in _STATES
    told: str  # of which key it is
    table: str = ""  # these two make the command that switches it, with the word between them
    trigger: str = ""
    checks: bool = False  # on the table that refers to another
    schema: str = ""  # of the table that refers to another
    child: str = ""
    constraint: str = ""
    on: str = ""  # the table that it is on


def _keys(session: Session, which: str) -> list[Key]:
    return [Key(*row) for row in session.execute(_KEYS.replace("{only}", which)).fetchall()]


def switched(session: Session, schemas: Sequence[str] = ()) -> list[str]:
    """Return the triggers of foreign keys that do not fire as they do by default, state first."""
    return [f"{key.state} {key.name}" for key in _keys(session, _SWITCHED_OFF + only(schemas))]


def altered(session: Session, schemas: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Return what a restore has in another state, or an INVALID index: what, and why."""
    keys = _keys(session, _SWITCHED_OFF + only(schemas))
    found = session.execute(_PENDING.replace("{only}", only(schemas))).fetchall()
    off = [(what, SWITCHED) for what in dict.fromkeys(key.told for key in keys)]
    return [*off, *((what, PENDING if pending else INVALID) for what, pending in found)]


def switch(session: Session, wanted: Collection[str]) -> list[Key]:
    """Give triggers of foreign keys their states again; return those for which that cannot be.

    Only a superuser may. What is not found, or not for sure, is left as it is. A dump may switch
    another than is meant, for it says which by a name that holds a number of its own database.
    """
    if not wanted:
        return []
    found: dict[str, list[Key]] = {}
    for key in _keys(session, ""):
        found.setdefault(key.name, []).append(key)
    names = {each.partition(" ")[2] for each in wanted}
    hit = [k for same in found.values() if len(same) == 1 for k in same if k.state != "O"]
    left = []
    for each in (*wanted, *(f"O {key.name}" for key in hit if key.name not in names)):
        state, _, name = each.partition(" ")
        lost = Key(name, state, name.partition(" of ")[2])
        same = found.get(name, [])
        key = same[0] if len(same) == 1 else lost
        try:
            if key.table and key.state != state:
                session.execute(key.table + _STATES[state] + key.trigger)
        except psycopg.errors.InsufficientPrivilege:
            left.append(key._replace(state=state))
        else:
            left += [] if key.table else [lost]
    return left


def unlogged(session: Session, schemas: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Return what a dump of this server is without as it is a standby: what, and why."""
    found = session.execute(_UNLOGGED.replace("{only}", only(schemas))).fetchall()
    return [(what, "UNLOGGED: the primary has it, and no standby") for (what,) in found]


def members(session: sessions.Place) -> Members:
    """Return the extensions in their versions, and with each of their relations."""
    return sessions.read(session, _MEMBERS, frozenset)


class Attached(NamedTuple):
    """Something that a relation of an extension has; of kind `` the relation itself."""

    extension: str
    version: str
    schema: str
    table: str  # as it is told
    kind: str
    told: str
    name: str | None
    decides: bool  # whether rows are the same: ON CONFLICT needs it
    sure: bool  # that all that the extension's script made is made with it anywhere


def attached(session: sessions.Place) -> frozenset[Attached]:
    """Return what the relations of extensions have."""
    return sessions.read(session, _ATTACHED, lambda rows: frozenset(Attached(*row) for row in rows))


def detached(
    wanted: Iterable[Attached], found: Iterable[Attached], schemas: Sequence[str] = ()
) -> list[Attached]:
    """Return what was added to relations of extensions, and so is in no dump; of some schemas.

    It is not there where the same version of the extension was made anew.
    """
    has = {(each[:4], each.told) for each in found}
    there = {place for place, _ in has}
    lost = (
        each
        for each in wanted
        if each.sure
        and each[:4] in there
        and (each[:4], each.told) not in has
        and (not schemas or each.schema in schemas)
    )
    return sorted(lost, key=lambda each: (each.table, each.told))


class Unmade(NamedTuple):
    """A relation that an extension has, and has not where it was made anew: it is in no dump."""

    name: str
    table: bool  # rows are lost with it
    moved: str  # from this schema, where it is made anew; else none


def unmade(wanted: Members, found: Members, schemas: Sequence[str] = ()) -> list[Unmade]:
    """Return what extensions have, and not where they were made anew; of all schemas, or of these.

    What has its name and kind there, and there alone, is the same before it was moved.
    """
    made = {(extension, version) for extension, version, *_ in found}
    before = {
        (extension, kind, name): schema for extension, _, kind, schema, name, _ in found - wanted
    }
    return sorted(
        Unmade(told, kind in {"r", "p"}, before.get((extension, kind, name), ""))
        for extension, version, kind, schema, name, told in wanted - found
        if (extension, version) in made and (not schemas or schema in schemas)
    )


def moved(before: Marks, after: Marks) -> list[str]:
    """Name what was changed or dropped in between; what is new is in no dump."""
    return sorted(
        {
            f"{key.rpartition(' ')[0]} {one[2]}"
            for key, one, _ in packed.unlike(before, after)
            if one
        }
    )


def _short_of(first: int, last: int, *, up: bool) -> bool:
    """Tell whether a sequence that counts up, or down, stands before a place."""
    return last < first if up else last > first


def settled(before: Sequences, after: Sequences) -> dict[str, tuple[bool, int | None]]:
    """Return where the sequences stand at least in a dump that was made between two looks.

    One that was set back meanwhile may stand anywhere in it, one that went on also where it was
    set back to and came from.
    """
    found: dict[str, tuple[bool, int | None]] = {}
    for name, (up, first) in before.items():
        _, last = after.get(name, (up, None))
        if first is None or last is None or _short_of(first, last, up=up):
            continue
        found[name] = (up, first if last == first else -(1 << 63) if up else (1 << 63))
    return found


def undoing(before: Objects, after: Objects) -> dict[str, str | None]:
    """Return what leads from a state back to the one before it: little, where states are large."""
    return {name: one[1] if one else None for name, one, _ in packed.unlike(before, after)}


def undone(after: Objects, changes: Mapping[str, str | None]) -> packed.Packed:
    """Return the state before `changes`, which `undoing` has found."""
    left = (row for row in after if row[0] not in changes)
    back = sorted((name, said) for name, said in changes.items() if said is not None)
    return packed.Packed(heapq.merge(left, back))


def lacking(wanted: Objects, found: Objects, excused: Collection[str] = ()) -> list[str]:
    """Name what a copy lacks or has in another shape; what it has besides is template0's."""
    return [
        _named(name, one, other)
        + (f": {_told(other[1])}, not {_told(one[1])}" if other and name != _LARGE else "")
        for name, one, other in packed.unlike(wanted, found)
        if one and name not in excused
    ]


def reshaped(wanted: Objects, found: Objects) -> list[str]:
    """Name what a copy has in another shape; how many large objects there are is none."""
    found_so = packed.unlike(wanted, found)
    return [name for name, one, other in found_so if one and other and name != _LARGE]


def unfilled(wanted: Objects, found: Objects) -> list[str]:
    """Name the views that only differ in that a copy's read from what was never filled there."""
    return [
        name
        for name, one, other in packed.unlike(wanted, found)
        if name.startswith(("view ", "materialized view "))
        if one and other and other[1] == _FILLED.sub(" f", one[1])
    ]


def difference(before: Objects, after: Objects) -> list[str]:
    """Name what was added, removed or changed."""
    return [_named(name, one, other) for name, one, other in packed.unlike(before, after)]


_FILLED = re.compile(r"(?<=^\w \w \w) t\b")  # the fourth word of a relation's shape


def _named(name: str, before: packed.Row | None, after: packed.Row | None) -> str:
    if after is None:
        return f"{name} is missing"
    if before is None:
        return f"{name} is new"
    if name == _LARGE:
        return f"there are {after[1]} large objects, not {before[1]}"
    return f"{name} differs"


def _told(shape: str) -> str:
    """Return a shape, of which nobody needs to read very much."""
    text = " ".join(shape.replace("\0", " ").split())
    return f"`{text[:80]}…`" if len(text) > 80 else f"`{text}`"  # noqa: PLR2004 -- a line's worth


def set_back(session: Session, since: Sequences, schemas: Sequence[str] = ()) -> dict[str, bool]:
    """Return which sequences somebody sets back, seen to stand lower than before within a second.

    Such a one may have stood anywhere while it was dumped, also where it stood before and after as
    it did `since`. True: it was also seen as if it had not been used (`setval(…, 1, false)`).
    """
    before, found = dict(since), dict[str, bool]()
    for waited in stop.looks(0.01, 0.03):
        for name, (up, last) in sequences(session, schemas).items():
            _, earlier = before.get(name, (up, None))
            if earlier is not None and (last is None or _short_of(earlier, last, up=up)):
                found[name] = last is None or found.get(name, False)
            before[name] = (up, last)
        if waited >= SET_BACK_S:
            break
    return found


def behind(wanted: Sequences, found: Sequences) -> list[str]:
    """Name the sequences that do not stand at least where they should; one may have gone on."""
    short = []
    for name, (upwards, least) in wanted.items():
        _, last = found.get(name, (upwards, None))
        if least is not None and (last is None or _short_of(least, last, up=upwards)):
            short.append(f"sequence {name} stands at {last}, not {least}")
    return short
