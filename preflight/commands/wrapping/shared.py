"""What all databases of a server share, and what a trial on a copy beside them does to it for good.

Roles, memberships, settings, databases, tablespaces: no copy has them of its own. Others may change
them meanwhile, so a change counts as the command's where what it reads names it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from preflight.rehearsal import scratch
from preflight.server import packed

if TYPE_CHECKING:
    from preflight.server.sessions import Session

KNOWS_PARAMETER_RIGHTS = 15
ROLE, DATABASE = "role ", "database "
# the copy's own, and those of other runs, are nobody's loss
_COPIES = f"{scratch.PREFIX.replace('_', chr(92) + '_')}%"
_LASTS = f"d.datname <> pg_catalog.current_database() AND d.datname::text NOT LIKE '{_COPIES}'"
_SHARED = f"""
SELECT '{ROLE}' || r.rolname,
 (pg_catalog.to_jsonb(r) - '{{rolpassword,rolconfig}}'::text[])::text
  || coalesce(pg_catalog.shobj_description(r.oid, 'pg_authid'), ''), ARRAY[r.rolname::text]
FROM pg_catalog.pg_roles r
UNION ALL
SELECT 'membership of ' || m.rolname || ' in ' || r.rolname,
 pg_catalog.string_agg((pg_catalog.to_jsonb(a) - 'oid')::text, ' ' ORDER BY a.grantor),
 ARRAY[m.rolname::text, r.rolname::text]
FROM pg_catalog.pg_auth_members a JOIN pg_catalog.pg_roles r ON r.oid = a.roleid
JOIN pg_catalog.pg_roles m ON m.oid = a.member GROUP BY m.rolname, r.rolname
UNION ALL
SELECT 'settings of ' || coalesce(nullif(pg_catalog.concat_ws(
  ' in ', '{ROLE}' || r.rolname, '{DATABASE}' || d.datname), ''), 'every role'),
 s.setconfig::text, pg_catalog.array_remove(ARRAY[r.rolname::text, d.datname::text], NULL)
FROM pg_catalog.pg_db_role_setting s LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole
LEFT JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase
WHERE d.oid IS NULL OR {_LASTS}
UNION ALL
SELECT '{DATABASE}' || d.datname,
 (pg_catalog.to_jsonb(d) - '{{datfrozenxid,datminmxid,dathasloginevt}}'::text[])::text
  || coalesce(pg_catalog.shobj_description(d.oid, 'pg_database'), ''), ARRAY[d.datname::text]
FROM pg_catalog.pg_database d WHERE {_LASTS}
UNION ALL
SELECT 'tablespace ' || t.spcname, pg_catalog.to_jsonb(t)::text
  || coalesce(pg_catalog.shobj_description(t.oid, 'pg_tablespace'), ''), ARRAY[t.spcname::text]
FROM pg_catalog.pg_tablespace t
"""  # noqa: S608 -- constants
_PARAMETERS = """
UNION ALL
SELECT 'rights on parameter ' || p.parname, p.paracl::text, ARRAY[p.parname]
FROM pg_catalog.pg_parameter_acl p
"""
# NULL where a server has no such view
_SEES_SETTINGS = """pg_catalog.has_table_privilege(
 pg_catalog.to_regclass('pg_catalog.pg_file_settings'), 'SELECT')
 AND pg_catalog.has_function_privilege(
 pg_catalog.to_regprocedure('pg_catalog.pg_show_all_file_settings()'), 'EXECUTE')"""
_SEES_ALL = f"""
SELECT pg_catalog.has_table_privilege('pg_catalog.pg_authid', 'SELECT') AND {_SEES_SETTINGS}
"""
_SETTINGS = """
SELECT 'parameter ' || f.name, pg_catalog.string_agg(f.setting, ' ' ORDER BY f.seqno),
 ARRAY[f.name]
FROM pg_catalog.pg_file_settings f
WHERE f.name IS NOT NULL AND f.sourcefile LIKE '%postgresql.auto.conf' GROUP BY f.name
"""
# a temporary one goes with its session
_SLOTS = """
SELECT 'replication slot ' || s.slot_name, s.slot_type, ARRAY[s.slot_name::text]
FROM pg_catalog.pg_replication_slots s WHERE NOT s.temporary
"""
# those of a copy go with it
_OTHERS_SLOTS = f"""
UNION ALL
{_SLOTS} AND s.database IS DISTINCT FROM pg_catalog.current_database()
 AND coalesce(s.database::text, '') NOT LIKE '{_COPIES}'
"""
_SEES_SLOTS = """pg_catalog.has_table_privilege(
 pg_catalog.to_regclass('pg_catalog.pg_replication_slots'), 'SELECT')"""
# made, changed and dropped in no transaction, or outside of it: each query, and who may ask it
_LASTING = ((_SLOTS, f"SELECT {_SEES_SLOTS}"), (_SETTINGS, f"SELECT {_SEES_SETTINGS}"))
_FOR_SUPERUSERS = f"""
UNION ALL
SELECT 'password of {ROLE}' || r.rolname, pg_catalog.encode(pg_catalog.sha256(
 pg_catalog.convert_to(r.rolpassword, 'UTF8')), 'hex'), ARRAY[r.rolname::text]
FROM pg_catalog.pg_authid r WHERE r.rolpassword IS NOT NULL
UNION ALL
{_SETTINGS}
"""  # noqa: S608 -- constants
_USED = """
SELECT DISTINCT r.rolname::text FROM pg_catalog.pg_shdepend s
JOIN pg_catalog.pg_roles r ON r.oid = s.refobjid
WHERE s.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass AND s.dbid =
 (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
"""


@dataclass(frozen=True, slots=True)
class Change:
    """What was changed, how, and all that it names."""

    what: str
    how: str  # `made`, `changed`, `dropped`
    names: tuple[str, ...]

    def __str__(self) -> str:
        """Return it as people read it."""
        return f"{self.what} {self.how}"

    def concerns(self, live: str) -> bool:
        """Tell whether it is no other database's affair: those come and go."""
        return not self.what.startswith(DATABASE) or self.names == (live,)


def state(copy: Session) -> packed.Rows:
    """Return all that the copy's server shares among its databases, as far as this role sees it."""
    query = _SHARED
    if copy.facts and copy.facts.major >= KNOWS_PARAMETER_RIGHTS:
        query += _PARAMETERS
    if copy.execute(f"SELECT {_SEES_SLOTS}").fetchone() == (True,):
        query += _OTHERS_SLOTS
    if copy.execute(_SEES_ALL).fetchone() == (True,):
        query += _FOR_SUPERUSERS
    return _rows(copy, query)


def lasting(session: Session) -> tuple[packed.Rows, bool]:
    """Return what no rollback takes back on a server, and whether this role sees all of it.

    Replication slots, and what ALTER SYSTEM has set.
    """
    asked = [query for query, may in _LASTING if session.execute(may).fetchone() == (True,)]
    found = [row for query in asked for row in _rows(session, query)]
    return sorted(found), len(asked) == len(_LASTING)


def _rows(session: Session, query: str) -> list[packed.Row]:
    rows = session.execute(query).fetchall()
    return sorted((what, how or "", *names) for what, how, names in rows)


def between(before: packed.Rows, after: packed.Rows) -> list[Change]:
    """Return what changed."""
    found: list[Change] = []
    for what, one, other in packed.unlike(before, after):
        how = "made" if one is None else "dropped" if other is None else "changed"
        _, _, *names = one or other or (what, "")
        found.append(Change(what, how, tuple(names)))
    return found


def used(copy: Session) -> set[str]:
    """Return the roles that own something on the copy, or have a right there."""
    return {name for (name,) in copy.execute(_USED).fetchall()}


def its(
    changes: Sequence[Change], used: Collection[str], named: Callable[[str], bool]
) -> list[Change]:
    """Return which changes are a command's, as far as anybody can tell.

    Those of which all is `named` in what it reads; those of a role that was made meanwhile and is
    `used` on the copy, where nobody is but the command; and what comes and goes with such a role.
    """
    own = {
        each.names[0]
        for each in changes
        if each.what.startswith(ROLE)
        and ((each.how == "made" and each.names[0] in used) or named(each.names[0]))
        and each.how != "changed"
    }
    return [
        each for each in changes if not own.isdisjoint(each.names) or all(map(named, each.names))
    ]
