"""What a copy of some schemas can tell of a file, and what it cannot."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import psycopg

from preflight.base import quoting
from preflight.base.errors import causes
from preflight.files import named, scan
from preflight.rehearsal import scratch
from preflight.server import sessions

if TYPE_CHECKING:
    from preflight.backup.manifests import Part
    from preflight.base.errors import RehearsalFailed
    from preflight.files.migrations import Migration, Script
    from preflight.server.catalog import Key
    from preflight.server.sessions import Session

MISSING = {"42P01": "relation", "42883": "function", "42704": "type", "3F000": "schema"}
# what a relation has: a column by its name, and what ON CONFLICT asks for, which is not named
DECIDING = "deciding"
_MISSING_IN_ONE = {"42703": "column", "42P10": DECIDING}
_QUOTES = '"\u00ab\u00bb\u201e\u201c\u201d\u2018\u2019'  # in any language
# what a server's message names: in quotes, after a schema and a point, or before arguments
_NAMED = re.compile(
    rf"[{_QUOTES}] ?([^{_QUOTES}]+?)(?:\[\])* ?[{_QUOTES}]|([\w$]+\.[^\s(]+|[\w$]+(?=\())"
)
# whatever has one of these names, by schema, and whether it is an extension's
_FOUND = """
SELECT n.nspname::text, o.name::text, pg_catalog.bool_and(EXISTS (SELECT FROM pg_catalog.pg_depend d
 WHERE d.classid = o.catalog AND d.objid = o.oid AND d.deptype = 'e'))
FROM (
 SELECT c.relname AS name, c.relnamespace AS place, c.oid,
  'pg_catalog.pg_class'::regclass::oid AS catalog FROM pg_catalog.pg_class c
 UNION ALL SELECT p.proname, p.pronamespace, p.oid, 'pg_catalog.pg_proc'::regclass
 FROM pg_catalog.pg_proc p
 UNION ALL SELECT t.typname, t.typnamespace, t.oid, 'pg_catalog.pg_type'::regclass
 FROM pg_catalog.pg_type t WHERE t.typrelid = 0::oid
 UNION ALL SELECT o.oprname, o.oprnamespace, o.oid, 'pg_catalog.pg_operator'::regclass
 FROM pg_catalog.pg_operator o
 UNION ALL SELECT o.opcname, o.opcnamespace, o.oid, 'pg_catalog.pg_opclass'::regclass
 FROM pg_catalog.pg_opclass o
 UNION ALL SELECT c.collname, c.collnamespace, c.oid, 'pg_catalog.pg_collation'::regclass
 FROM pg_catalog.pg_collation c
 UNION ALL SELECT t.cfgname, t.cfgnamespace, t.oid, 'pg_catalog.pg_ts_config'::regclass
 FROM pg_catalog.pg_ts_config t
) o JOIN pg_catalog.pg_namespace n ON n.oid = o.place
WHERE o.name::text = ANY (%s::text[]) GROUP BY 1, 2
"""
_PATH = "SELECT pg_catalog.current_schemas(true)::text[]"
Found = Mapping[tuple[str, str], bool]


def beyond(
    session: Session, part: Part | None, files: Sequence[Sequence[Script | None]]
) -> tuple[int, scratch.Unavailable] | None:
    """Return which of some files first names what a backup leaves out, and how; None if none does.

    Each is given as the scripts that a rehearsal of it runs. The live database says where names
    without a schema lead to, and what is an extension's, which the copy has.
    """
    if part is None:
        return None
    scripts = [[script for script in file if script] for file in files]
    said = {script: list(_said(script)) for file in scripts for script in file}
    wanted = {name.name for found in said.values() for _, names, _ in found for name in names}
    found, path = _found(session, wanted), _path(session)
    look = _Look(part, found, path, session.config.named("schemas", "PREFLIGHT_SCHEMAS"))
    for number, file in enumerate(scripts):
        for script in file:
            if why := look.at(script, said[script]):
                return number, why
    return None


Said = tuple[scan.Statement, list[named.Name], list[str] | None]


def _said(script: Script) -> Iterator[Said]:
    for statement in script.statements():
        text = statement.read(script.text)
        yield statement, list(dict.fromkeys(named.names(text))), named.path_of(text)


class _Look:
    """Reads scripts one after the other, and what they make and set on the way."""

    def __init__(self, part: Part, found: Found, path: Sequence[str], said_in: str) -> None:
        self.part = part
        self.said_in = said_in  # which schemas it is of
        self.found = dict(found)
        self.path = path

    def at(self, script: Script, said: Sequence[Said]) -> scratch.Unavailable | None:
        """Return why a script tells nothing on the copy, if it names what is not there."""
        path = self.path
        for statement, names, set_path in said:
            if set_path is not None:
                path = ["pg_catalog", *set_path]
            for name in names:
                if what := self._outside(name, path):
                    line, column = scan.position(script.text, statement.start)
                    return scratch.Unavailable(
                        f"{script.file}:{line} names {what}, and the backup is of "
                        f"{', '.join(self.part.schemas)} alone ({self.said_in}): neither this "
                        "file is tried nor what comes after it",
                        level="warning",
                        file=script.file,
                        line=line,
                        column=column,
                    )
        return None

    def _outside(self, name: named.Name, path: Sequence[str]) -> str | None:
        """Say what of the other schemas a name leads to."""
        schema = name.schema
        if not schema:
            schema = self._place(name, path)
        if not schema or schema in self.part.schemas or named.SYSTEM.fullmatch(schema):
            if name.made and schema:
                self.found[schema, name.name] = False
            return None
        if self.found.get((schema, name.name)) or (name.perhaps and not self._known(schema)):
            return None
        if name.name:
            return f"{quoting.name(schema)}.{quoting.name(name.name)}"
        return f"the schema {quoting.name(schema)}"

    def _known(self, schema: str) -> bool:
        return schema in self.part.outside

    def _place(self, name: named.Name, path: Sequence[str]) -> str:
        """Return the schema in which a name without one is found, or made; none where nobody is."""
        if name.made:
            return next((each for each in path if not named.SYSTEM.fullmatch(each)), "")
        return next((each for each in path if (each, name.name) in self.found), "")


def _found(session: Session, names: Collection[str]) -> Found:
    rows = session.execute(_FOUND, [sorted(names)]).fetchall()
    return {(schema, name): member for schema, name, member in rows}


def _path(session: Session) -> list[str]:
    """Return the schemas that a file finds names in, as its role has them."""
    with sessions.transaction(session):
        session.execute(session.path("SET LOCAL"))
        (path,) = session.execute(_PATH).fetchone() or ([],)
    return list(path)


class Absent(NamedTuple):
    """What a copy has not though the live database has it; an empty kind or schema is any."""

    kind: str  # as in MISSING, `column`, or DECIDING
    schema: str
    name: str

    def meant(self, kind: str, said: Collection[str]) -> bool:
        """Tell whether an error that misses some names of one kind may miss this."""
        if self.kind not in {"", kind}:
            return False
        if self.schema:
            return not {self.name, self.told}.isdisjoint(said)
        return any(each == self.name or each.endswith(f".{self.name}") for each in said)

    @property
    def told(self) -> str:
        """Return it as a server's message names it."""
        return f"{self.schema}.{self.name}" if self.schema else self.name


def explained(
    session: Session, part: Part | None, lacking: Collection[Absent], failure: RehearsalFailed
) -> scratch.Unavailable | None:
    """Return why a failure tells nothing of the live database: what it misses is left out here."""
    state, said = failure.problem.sqlstate or "", named_in(scratch.server_said(failure))
    if kind := MISSING.get(state):
        return left_out(session, part, lacking, failure, kind, said)
    if (kind := _MISSING_IN_ONE.get(state)) is None:
        return None
    if kind == DECIDING:
        said = {each.name for each in lacking if each.kind == kind}
    return left_out(session, None, lacking, failure, kind, said)


class Altered(NamedTuple):
    """What a copy has in another state than the live database, and all that an error of it says."""

    told: str
    raised: str  # by which function of the server, which no server translates
    place: tuple[str, ...]  # schema, table and constraint
    named: tuple[str, ...]  # what stands in quotes, sorted: more where a row is still referred to


BOTH = 2  # triggers of a foreign key on each of its tables
_RAISES_KEY, _RAISES_PENDING = "ri_ReportViolation", "DeleteInheritsTuple"
# what may switch a foreign key on, as a column's new type does, make another of its name, or check
# rows of its own
_SWITCHES = re.compile(
    rb"(?i)\b(?:enable|attach|detach|validate|rename|set\s+schema|alter\s+constraint|enforced"
    rb"|alter\b[^;]*\btype)\b"
)
_MAKES_KEY = re.compile(rb"(?i)\b(?:references|foreign\s+key)\b")


def switched(keys: Collection[Key]) -> Iterator[Altered]:
    """Yield what is off on the live database, and what an error says where it is on.

    No error tells an INSERT from an UPDATE, or that from a DELETE: both are to be off.
    """
    for key, times in Counter(k._replace(name="", trigger="") for k in keys).items():
        if key.table and key.state == "D" and times == BOTH:
            referred = () if key.checks else (key.child,)
            named = tuple(sorted((key.on, key.constraint, *referred)))
            place = (key.schema, key.child, key.constraint)
            yield Altered(f"{key.told} is off", _RAISES_KEY, place, named)


def pending(what: str) -> Altered:
    """Return what an error says of a partition whose detaching is not pending on a copy."""
    name = quoting.parts(what)[2]
    return Altered(f"the detaching of {what} is pending", _RAISES_PENDING, (), (name,))


def unlike(
    session: Session,
    altered: Collection[Altered],
    scripts: Collection[Script],
    failure: RehearsalFailed,
) -> scratch.Unavailable | None:
    """Return why a failure tells nothing of the live database: its cause is in another state there.

    Only where all that the error says agrees, and no script may change what the state is of: else
    the live database may say the same.
    """
    error = next((each for each in causes(failure) if isinstance(each, psycopg.Error)), None)
    if error is None or not altered:
        return None
    diag, said = error.diag, scratch.server_said(failure)
    place = tuple(filter(None, (diag.schema_name, diag.table_name, diag.constraint_name)))
    named = tuple(sorted(quoted for quoted, _ in _NAMED.findall(said) if quoted))
    for each in altered:
        if each[1:] != (diag.source_function, place, named) or _in_doubt(session, each, scripts):
            continue
        return scratch.Unavailable(
            f"{failure}, and on the live database {each.told}", level="warning"
        )
    return None


def _in_doubt(session: Session, altered: Altered, scripts: Collection[Script]) -> bool:
    """Tell whether an error may be of another thing, or of what a script makes of this one."""
    if not altered.place:  # of a partition an error says no more than its name
        return len({place for place, _ in _found(session, altered.named)}) != 1
    table = altered.place[1].encode().lower()
    return any(
        _SWITCHES.search(text) or (_MAKES_KEY.search(text) and table in text.lower())
        for script in scripts
        for text in script.said()
    )


def named_in(said: str) -> set[str]:
    """Return what a server's message names, a schema before it where that is said."""
    return {quoted or bare for quoted, bare in _NAMED.findall(said)}


def left_out(  # noqa: PLR0913, PLR0917 -- an error, and all that it is judged by
    session: Session,
    part: Part | None,
    lacking: Collection[Absent],
    failure: object,
    kind: str,
    said: Collection[str],
) -> scratch.Unavailable | None:
    """Return why a failure tells nothing where one of the missing names is left out."""
    gone = sorted({each.told for each in lacking if each.meant(kind, said)})
    if part is None:
        if not gone:
            return None
        return scratch.Unavailable(
            f"{failure}, and the backup is without {', '.join(gone)}", level="warning"
        )
    found = _found(session, {each.rpartition(".")[2] for each in said})
    inside = {name for schema, name in found if schema in part.schemas}
    outside = {
        name
        for (schema, name), member in found.items()
        if schema in part.outside
        and not member
        and name not in inside
        and not {name, f"{schema}.{name}"}.isdisjoint(said)
    }
    places = {each.partition(".")[0] for each in said}
    if outside or gone or not places.isdisjoint(part.outside):
        return scratch.Unavailable(
            f"{failure}, and the backup is of {', '.join(part.schemas)} alone "
            f"({session.config.named('schemas', 'PREFLIGHT_SCHEMAS')})",
            level="warning",
        )
    return None


def scripts_of(file: Migration) -> tuple[Script | None, ...]:
    """Return what a rehearsal of a file runs for sure; its way back is taken where it can be."""
    return file.up, file.verify
