"""What an archive lists, looked for in the database that was made from it.

A restore is believed by what it holds, not by what pg_restore says: an index, a constraint, a
trigger, a policy or a rule leaves no row behind that a count of rows would miss.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from preflight.server.sessions import Session

# what is made with a name of its own, as pg_restore lists it: kind, schema, and what it is called
_THERE = """
WITH relations AS (
 SELECT c.*, n.nspname FROM pg_catalog.pg_class c
 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid >= 16384::oid
)
SELECT pg_catalog.convert_to(pg_catalog.translate(o.kind || ' ' || o.place || ' ' || o.name,
 E'\\n\\r', '  '), pg_catalog.getdatabaseencoding())
FROM (
 SELECT CASE r.relkind WHEN 'r' THEN 'TABLE' WHEN 'p' THEN 'TABLE' WHEN 'v' THEN 'VIEW'
   WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE' WHEN 'f' THEN 'FOREIGN TABLE'
   ELSE 'INDEX' END AS kind, r.nspname AS place, r.relname::text AS name
 FROM relations r WHERE r.relkind IN ('r', 'p', 'v', 'm', 'S', 'f', 'i', 'I')
 UNION ALL SELECT CASE WHEN r.relkind IN ('i', 'I') THEN 'INDEX ATTACH' ELSE 'TABLE ATTACH' END,
  r.nspname, r.relname::text FROM relations r WHERE r.relispartition
 UNION ALL SELECT 'ROW SECURITY', r.nspname, r.relname::text FROM relations r WHERE r.relrowsecurity
 UNION ALL SELECT CASE c.contype WHEN 'f' THEN 'FK CONSTRAINT' WHEN 'c' THEN 'CHECK CONSTRAINT'
  ELSE 'CONSTRAINT' END, r.nspname, r.relname || ' ' || c.conname
 FROM pg_catalog.pg_constraint c JOIN relations r ON r.oid = c.conrelid
 UNION ALL SELECT 'CHECK CONSTRAINT', n.nspname, t.typname || ' ' || c.conname
 FROM pg_catalog.pg_constraint c JOIN pg_catalog.pg_type t ON t.oid = c.contypid
 JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
 UNION ALL SELECT 'TRIGGER', r.nspname, r.relname || ' ' || t.tgname
 FROM pg_catalog.pg_trigger t JOIN relations r ON r.oid = t.tgrelid
 UNION ALL SELECT 'RULE', r.nspname, r.relname || ' ' || w.rulename
 FROM pg_catalog.pg_rewrite w JOIN relations r ON r.oid = w.ev_class
 UNION ALL SELECT 'POLICY', r.nspname, r.relname || ' ' || p.polname
 FROM pg_catalog.pg_policy p JOIN relations r ON r.oid = p.polrelid
 UNION ALL SELECT 'EVENT TRIGGER', '-', e.evtname::text FROM pg_catalog.pg_event_trigger e
) o
"""
_ENTRY = re.compile(
    rb"(\d+); \d+ \d+ ((?:TABLE ATTACH|INDEX ATTACH|ROW SECURITY|FK CONSTRAINT|CHECK CONSTRAINT|"
    rb"CONSTRAINT|TRIGGER|RULE|POLICY|EVENT TRIGGER|TABLE|VIEW|MATERIALIZED VIEW|SEQUENCE|"
    rb"FOREIGN TABLE|INDEX) (?!ATTACH |DATA |SET |OWNED BY ).*)"
)
# a foreign key's own, by a name that holds its number, where its state is not that of its parent
_OF_KEY = re.compile(rb"\d+; 2620 (\d+) TRIGGER .* RI_ConstraintTrigger_[ac]_\1 ")


def lacking(
    inside: Session, lines: Iterable[bytes], known: Collection[str], *, readable: bool
) -> list[str]:
    """Name what an archive lists and a database has not, but for entries whose lack is known.

    `known` has their numbers. Where the list is not `readable`, in another encoding, what of it is
    not ASCII is passed over. The owner, who stands at the end, may be called anything.
    """
    there = {bytes(row[0]) for row in inside.execute(_THERE).fetchall()}
    missing = []
    for line in lines:
        found = _ENTRY.match(line.rstrip(b"\r\n"))
        if found is None or found[1].decode() in known or not (readable or line.isascii()):
            continue
        if _OF_KEY.match(line):
            continue
        ends = [each.start() for each in re.finditer(b" |$", found[2])]
        if not any(found[2][:end] in there for end in ends):
            missing.append(found[2].decode("utf-8", "replace").rstrip())
    return missing
