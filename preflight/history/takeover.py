"""The history of another tool, read and never written: which table it is, and what it says."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg

from preflight.base import quoting
from preflight.base.errors import HistoryConflict, Problem
from preflight.history import tables
from preflight.server.sessions import PATH

if TYPE_CHECKING:
    from preflight.files import foreign
    from preflight.files.foreign import Foreign, Said
    from preflight.files.migrations import Migration
    from preflight.server.sessions import Session

# What is read is believed, so it has to belong to this role, or to one that could do anything here
# anyway.
_BELIEVED = """(pg_catalog.pg_has_role(c.relowner, 'MEMBER')
  OR pg_catalog.pg_has_role(c.relowner, d.datdba, 'USAGE'))"""
# Tables of anybody with the columns that are looked for.
_LIKE = """
SELECT n.nspname::text, c.relname::text, c.relkind::text,
 {believed} AS believed,
 pg_catalog.pg_get_userbyid(c.relowner)::text,
 ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
  WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
 ARRAY(SELECT pg_catalog.format_type(a.atttypid, NULL) FROM pg_catalog.pg_attribute a
  WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_database d ON d.datname = pg_catalog.current_database()
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname <> 'information_schema'
 AND n.nspname::text NOT LIKE 'pg\\_%%' AND n.nspname <> %s::name
 AND %s::text[] <@ ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
  WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
ORDER BY 1, 2
""".replace("{believed}", _BELIEVED)
_IS = """
SELECT c.relkind IN ('r', 'p') AND {believed} FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_database d ON d.datname = pg_catalog.current_database()
WHERE c.oid = pg_catalog.to_regclass(%s)
""".replace("{believed}", _BELIEVED)
# the schemas in which this role finds what it names without one, in their order
_PATH = f"{{theirs}}; SELECT pg_catalog.current_schemas(false)::text[] AS path; SET LOCAL {PATH}"
_KEPT_BACK = """SELECT pg_catalog.has_table_privilege(%s::pg_catalog.regclass, 'SELECT')
 AND pg_catalog.row_security_active(%s::pg_catalog.regclass)"""
_MANY = 3  # so many versions in common are no accident
_LONG = 12  # digits of a version that is a time: one that somebody counted is shorter
_APART = (
    " Where they lie in another, leave that, and name both schemas in PREFLIGHT_SCHEMAS: theirs "
    "and that of the right one."
)
_VOUCH = (
    "Or vouch for what is there yourself: `adopt --through VERSION`; the files after it run with "
    "PREFLIGHT_FIRST_CONTACT=pending, where the role's names lead."
)
_GONE = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.InsufficientPrivilege,
)


@dataclass(frozen=True, slots=True)
class Found:
    """The other tool's history, and what it says."""

    place: str  # schema and table, quoted
    said: Said

    @property
    def digest(self) -> str:
        """What it says, in a form that is the same only when it says the same."""
        applied = self.said.applied if self.said.lasting is None else self.said.lasting
        rows = sorted(applied) + [f"broken {each}" for each in self.said.broken]
        rows += sorted(f"{name} {checksum}" for name, checksum in self.said.repeated.items())
        if self.said.through is not None and self.said.through not in applied:
            rows.append(f"through {self.said.through}")
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()

    @property
    def newest(self) -> str:
        """The newest version, as far as its order is the usual one, or that of its rows."""
        said = self.said
        if said.lasting is not None:
            return next(reversed([*said.applied]), "none")
        told = [*said.applied, *([said.through] if said.through else [])]
        return max(told, key=lambda each: (len(each), each), default="none")


def look(session: Session, layout: Foreign, files: Sequence[Migration]) -> Found | None:
    """Return what the other tool's history says; None where there is none of these files.

    Call inside a transaction. Raises HistoryConflict where it is not certain which table it is, or
    whether it can be believed.
    """
    place = _place(session, layout, files)
    if place is None:
        return None
    try:
        with session.connection.transaction():
            return Found(place, read(session, layout, place))
    except psycopg.errors.InsufficientPrivilege as error:
        raise HistoryConflict(
            "takeover.not_believed",
            f"the history of {layout.tool}, {place}, may not be read by this role",
            f"GRANT SELECT ON {place} to it.",
            sqlstate=error.sqlstate,
        ) from error


def read(session: Session, layout: Foreign, place: str, *, patient: bool = True) -> Said:
    """Return what a table says; raises HistoryConflict, and DatabaseBusy where it is waited for."""
    columns = ", ".join(map(quoting.name, layout.table.read))
    query = f"SELECT {columns} FROM {place}"  # noqa: S608 -- quoted
    rows = (_rows if patient else _selected)(session, layout, place, query)
    try:
        return layout.said(rows)
    except (AttributeError, TypeError, ValueError) as error:  # NULL, or no version
        raise HistoryConflict(
            "takeover.refused",
            f"{place} has a row that {layout.tool} does not write",
            f"Was it written by hand? Look at the table, and settle it with {layout.tool}.",
        ) from error


def _rows(session: Session, layout: Foreign, place: str, query: str) -> list[Any]:
    """Return the rows once nobody is in the way; raises DatabaseBusy after LOCK_RETRY_S."""
    look = partial(_selected, session, layout, place, query)
    return tables.unlocked(session, f"the history of {layout.tool}, {place},", [place], look)


def _selected(session: Session, layout: Foreign, place: str, query: str) -> list[Any]:
    """Return all rows, or none: raises HistoryConflict where row security would keep some back."""
    try:
        with session.connection.transaction(force_rollback=True):  # the setting goes back with it
            session.execute("SET LOCAL row_security = off")
            return session.execute(query).fetchall()
    except psycopg.errors.InsufficientPrivilege as error:
        (row,) = session.execute(_KEPT_BACK, [place] * 2).fetchall()
        if not row[0]:  # who may not read it at all
            raise
        raise HistoryConflict(
            "takeover.not_believed",
            f"the history of {layout.tool}, {place}, cannot be read whole: row security keeps rows "
            "back from this role",
            "ALTER TABLE … DISABLE ROW LEVEL SECURITY, or give the role BYPASSRLS; or vouch for "
            "what is there yourself: `adopt --through VERSION`.",
        ) from error


def _place(session: Session, layout: Foreign, files: Sequence[Migration]) -> str | None:
    """Return the other tool's history table, quoted; raises HistoryConflict."""
    named = _alike(session, layout)
    if named and not _bound(layout):
        named = _meant(session, layout, files, named)
    elif len(named) > 1:
        named = next(filter(None, _in_turn([[at] for at in _path(session)], named)), named)
    if len(named) > 1:
        raise _ambiguous(layout, named)
    if not named:
        return None
    name, relation, kind, believed, owner, *_ = named[0]
    if kind not in ("r", "p") or not believed:
        raise _not_believed(layout, f"{name}.{relation}", kind, owner)
    if layout.table.amid and [name] != (path := _path(session)[:1]):
        raise _aside(layout, name, relation, path)
    return _quoted(named[0])


def _not_believed(layout: Foreign, place: str, kind: str, owner: str) -> HistoryConflict:
    """Say why what looks like the history says nothing: a view runs what its maker wrote."""
    what, hint = "it is no table", f"Put a table with what it shows in its place, if {layout.tool}"
    hint += " migrated this database; or"
    if kind in ("r", "p"):
        what = f"it belongs to {owner!r}, a stranger"
        hint = f"GRANT {quoting.name(owner)} to this role if that one migrates this database; or"
    return HistoryConflict(
        "takeover.not_believed",
        f"the history of {layout.tool}, {place}, is not believed: {what}",
        f"{hint} vouch for what is there yourself: `adopt --through VERSION`.",
    )


def _alike(session: Session, layout: Foreign) -> list[Sequence[Any]]:
    """Return the tables that have the shape of the tool's, and a name that it may have."""
    table = layout.table
    rows = session.execute(_LIKE, [session.config.schema, list(table.columns)]).fetchall()
    rows = [row for row in rows if _fits(table, dict(zip(row[5], row[6], strict=True)))]
    schema, _, usual = table.usual.rpartition(".")
    if _bound(layout):
        return [row for row in rows if row[1] == usual and (not schema or row[0] == schema)]
    like = [row for row in rows if len(row[5]) == len(table.columns) and table.like in row[1]]
    return [row for row in rows if row[1] == usual or (table.renamed and row in like)]


def usual(session: Session, layout: Foreign) -> str:
    """Return where the tool would make its history, quoted: where this role's names lead."""
    schema, _, table = layout.table.usual.rpartition(".")
    if not schema:
        schema = layout.tool if layout.table.apart else (*_path(session), "public")[0]
    return f"{quoting.name(schema)}.{quoting.name(table)}"


def believed(session: Session, place: str) -> bool | None:
    """Tell whether what is called so is a table whose word counts; None: nothing is."""
    row = session.execute(_IS, [place]).fetchone()
    return row[0] if row else None


def seen(session: Session, layout: Foreign) -> bool:
    """Tell whether a table may be the tool's history, wherever it lies and whoever owns it."""
    return bool(_alike(session, layout))


def _bound(layout: Foreign) -> bool:
    """Tell whether the tool's table has a schema that no search_path changes."""
    return layout.table.apart or "." in layout.table.usual


def outside(session: Session, layout: Foreign, files: Sequence[Migration]) -> str | None:
    """Name a table that PREFLIGHT_SCHEMAS leaves out, and that may be the history of the files."""
    only = session.config.only
    if not only or _bound(layout):
        return None
    rows = [row for row in _alike(session, layout) if row[0] not in only]
    may = (row for row in rows if _judged(session, layout, files, row).plausible)
    return next((f"{row[0]}.{row[1]}" for row in may), None)


def _path(session: Session) -> list[str]:
    (row,) = session.rows(_PATH.format(theirs=session.path("SET LOCAL")))
    return [each for each in row["path"] if not each.startswith("pg_")]


def _in_turn(
    places: Sequence[Sequence[str]], rows: Sequence[Sequence[Any]]
) -> Iterator[list[Sequence[Any]]]:
    """Yield the tables that lie in the schemas of each place."""
    return ([row for row in rows if row[0] in place] for place in places)


def _meant(
    session: Session, layout: Foreign, files: Sequence[Migration], rows: Sequence[Sequence[Any]]
) -> list[Sequence[Any]]:
    """Return the tables that could be this database's history, of those of the right shape.

    Several tools of one kind may be at work in one database: where the folder's own would look
    decides, and then what the tables say. Raises HistoryConflict where one elsewhere may be meant.
    """
    path, only = _path(session), session.config.only
    near = _near(layout, path, only)
    for there in _in_turn(near, rows):
        if left := _fitting(session, layout, files, there):
            return left
    close = [row for row in rows if any(row[0] in each for each in near)]
    usual = [row for row in close if row[1] == layout.table.usual]
    # of what a run is not limited to only that is asked about which the tool itself would find
    far = [row for row in rows if row not in close and (not only or row[0] in path[:1])]
    told = [(row, _judged(session, layout, files, row)) for row in far]
    told = [(row, said) for row, said in told if said.plausible]
    if told:
        (row, said), *others = told
        sure = layout.table.amid or (said.certain and path[:1] in ([], ["public"]))
        if only or others or usual or not sure:
            raise _ambiguous(layout, [*usual, *(row for row, _ in told)], path, only)
        return [row]
    return usual[:1] or close


def _near(layout: Foreign, path: Sequence[str], only: Sequence[str]) -> list[Sequence[str]]:
    """Return the schemas in which the tool itself would find its history, in its order.

    Most look into the first one of the search_path alone. What a run is limited to is all there is.
    """
    along = path if layout.table.along else path[:1]
    near: list[Sequence[str]] = [[each] for each in along if not only or each in only]
    return [*near, only] if only else near


def _fitting(
    session: Session, layout: Foreign, files: Sequence[Migration], rows: Sequence[Sequence[Any]]
) -> list[Sequence[Any]]:
    """Return those of some tables in one place that nothing rules out.

    One of the usual name alone is the tool's, whatever it says. Beside another it is left out only
    where a checksum says that it is of other files; a renamed one is believed as far as it fits
    these: it has versions of theirs, and of several those count that nothing speaks against.
    """
    usual = [row for row in rows if row[1] == layout.table.usual]
    if len(rows) == len(usual) == 1:
        return usual
    told = [(row, _judged(session, layout, files, row)) for row in rows]
    shared = [(row, said) for row, said in told if said.shared]
    if not shared:
        return [row for row, said in told if row in usual and not said.rows][:1]
    known = [(row, said) for row, said in shared if said.known]
    left = [row for row, _ in known or [each for each in shared if each[1].whole] or shared]
    stays = [
        row
        for row, said in told
        if row in usual and not (said.other and (known or not said.checked))
    ]
    return [row for row in rows if row in left or row in stays]


@dataclass(frozen=True, slots=True)
class _Judged:
    """What a table says, held against the files; where it cannot be read that is nothing."""

    rows: int = 0  # versions that it speaks of
    shared: int = 0  # of them those that have a file, which is not of another text
    checked: int = 0  # of these those that the tool's own checksum knows
    timed: int = 0  # of the rest those that are a time
    other: int = 0  # those whose file is of another text, by the tool's checksum
    whole: bool = False  # nothing in it speaks against these files

    @property
    def plausible(self) -> bool:
        """It may be of these files: everything fits, or most of it more than by its number."""
        return bool(self.shared) and (self.whole or (self.checked + self.timed) * 2 > self.rows)

    @property
    def certain(self) -> bool:
        """It is of these files."""
        return self.whole and (self.checked > 0 or self.timed >= _MANY)

    @property
    def known(self) -> bool:
        """Every version of it is of these files, by its text."""
        return self.whole and 0 < self.checked == self.rows


def _judged(
    session: Session, layout: Foreign, files: Sequence[Migration], row: Sequence[Any]
) -> _Judged:
    """Hold what a table says against the files."""
    if row[2] not in ("r", "p") or not row[3]:
        return _Judged()
    try:
        with session.connection.transaction():
            said = read(session, layout, _quoted(row))
    except (HistoryConflict, *_GONE):
        return _Judged()
    by_key = {layout.key(file): file for file in files}
    keys = {*said.applied, *said.broken}
    missing = [key for key in keys if key not in by_key and not layout.forgets(key, files, said)]
    checked = {key: said.applied.get(key) for key in keys & by_key.keys()}
    other = {
        key
        for key, checksum in checked.items()
        if checksum is not None and not layout.agrees(by_key[key], checksum)
    }
    same = checked.keys() - other
    by_text = {key for key in same if checked[key] is not None}
    below = applied(layout, Found("", said), files) if said.through not in keys else ()
    return _Judged(
        len(keys) + (said.through is not None and said.through not in keys),
        len(same | {layout.key(file) for file in below} - other),
        len(by_text),
        sum(len(key) >= _LONG for key in same - by_text),
        len(other),
        not missing and not other,
    )


def _ambiguous(
    layout: Foreign,
    rows: Sequence[Sequence[Any]],
    path: Sequence[str] = (),
    only: Sequence[str] = (),
) -> HistoryConflict:
    """Ask which of some tables is meant, and say how to answer."""
    names = [f"{row[0]}.{row[1]}" for row in rows]
    if len({row[0] for row in rows}) == 1 < len(rows):
        hint = "Drop the one that nobody uses, where there is one."
    elif only and len(rows) == 1:
        hint = (
            "If it is this app's, name its schema in PREFLIGHT_SCHEMAS, too. If it is another's, "
            "set the role's search_path to the schema of this app in which its files are to run."
        )
    else:
        hint = (
            "Where the app's tables lie beside the right one, set the role's search_path to that "
            f"schema.{'' if layout.table.amid else _APART} Where none is this app's, name its "
            "schemas alone in PREFLIGHT_SCHEMAS."
        )
    hint = f"{hint} {_VOUCH}"
    if len(names) > 1:
        question = f"which history of {layout.tool} is this database's? There are "
        return HistoryConflict("takeover.ambiguous", question + " and ".join(names), hint)
    here = f"in {path[0]!r}, where this role's names lead to," if path else "on the search_path"
    why = "it is in none of PREFLIGHT_SCHEMAS" if only else f"{here} there is none"
    return HistoryConflict(
        "takeover.ambiguous",
        f"is {names[0]} this database's history of {layout.tool}, or another app's? Versions in it "
        f"have files here, and {why}",
        hint,
    )


def _aside(layout: Foreign, schema: str, table: str, path: Sequence[str]) -> HistoryConflict:
    """Say that the tool ran its files in another schema than the one in which they would run."""
    leads = f"to {path[0]!r}" if path else "nowhere"
    return HistoryConflict(
        "takeover.ambiguous",
        f"is {schema}.{table} this database's history of {layout.tool}, or another app's? "
        f"{layout.tool} runs its files in the schema of its history, and this role's names lead "
        f"{leads}",
        f"If it is this app's, set the role's search_path to that schema: ALTER ROLE … IN DATABASE "
        f"… SET search_path = {quoting.name(schema)}. If it is another's, name the schemas of this "
        f"app in PREFLIGHT_SCHEMAS. {_VOUCH}",
    )


def _quoted(row: Sequence[Any]) -> str:
    return f"{quoting.name(row[0])}.{quoting.name(row[1])}"


def _fits(table: foreign.Table, types: dict[str, str]) -> bool:
    return all(types.get(name) in kinds.split("|") for name, kinds in table.columns.items())


def covered(
    layout: Foreign,
    found: Found,
    files: Sequence[Migration],
    recorded: Container[int] = (),
    *,
    vouched: bool = False,
) -> list[Migration]:
    """Return the files that the other tool has applied; one that it left unfinished is not.

    Raises HistoryConflict: a failed version, one without a file, a file that was edited. Of what is
    `recorded` nothing is said any more. A person who has `vouched` for all up to a version, when
    the history said what it says now, knows of missing files below, and of a failed one right
    above. Of one that is newer than all files nobody would know once its file has come.
    """
    said = found.said
    by_key = {layout.key(file): file for file in files}
    left = [file.version for file in files if file.version not in recorded]
    due = left[1:] if vouched else left
    broken = [(version, by_key.get(version)) for version in said.broken]
    problems = [
        _unfinished(layout, found, version, files)
        for version, file in broken
        if (not vouched if file is None else file.version in due)
    ]
    # where all is recorded and vouched for, who is missing was one that a person knew of
    above = newer(layout, found, files) if left or not vouched else ()
    problems += [
        Problem(
            f"{layout.tool} has applied version {key} ({found.place}), and its file is missing",
            _way_out(layout)
            if key in above
            else "Put the file back; was an old or a wrong "
            "directory mounted? Or vouch for what is there: `adopt --through VERSION`.",
        )
        for key in said.applied
        if key in above
        or (not vouched and key not in by_key and not layout.forgets(key, files, said))
    ]
    there = applied(layout, found, files)
    problems += [
        Problem(
            f"{file.name} is a baseline, for a database that {layout.tool} has not migrated yet, "
            f"and what is applied here is older ({found.place})",
            f"{layout.tool} would pass over it. Put the files that it stands for back; or, where "
            f"all of it is there, vouch for it: `adopt --through {file.written}`.",
            **file.named,
        )
        for file in files
        if file.version in left
        and file not in there
        and layout.stands(file.name, file.label, said) is False
    ]
    for file in there:
        checksum = said.applied.get(layout.key(file))
        if file.version in left and checksum is not None and not layout.agrees(file, checksum):
            problems.append(
                Problem(
                    f"{file.name} was edited after {layout.tool} applied it: its checksum there is "
                    f"another one ({found.place})",
                    "Restore the file as it ran. Or, where it had to be changed to be read here or "
                    "what it says now is there as well, accept it, and all below it: `adopt "
                    f"--through {file.written}`.",
                    **file.named,
                )
            )
    if problems:
        raise HistoryConflict.of("takeover.refused", problems)
    return there


def applied(layout: Foreign, found: Found, files: Sequence[Migration]) -> list[Migration]:
    """Return the files that the other tool says it has applied, whatever else is to be said."""
    said = found.said
    last = None if said.through is None else layout.order(said.through)
    keys = [(file, layout.key(file)) for file in files]
    return [
        file
        for file, key in keys
        if key not in said.broken
        and (
            key in said.applied
            or (last is not None and layout.order(key) <= last)
            or layout.stands(file.name, file.label, said)
        )
    ]


def sure(
    session: Session, layout: Foreign, found: Found, files: Sequence[Migration]
) -> list[Migration]:
    """Return the files that are applied by a history of which it is sure that it is meant here.

    That is where the tool itself looks, under its usual name; under another one it has to be sure
    of the files, as `certain`.
    """
    if not near(session, layout, found):
        return []
    _, _, usual_name = layout.table.usual.rpartition(".")
    if _bound(layout) or found.place.endswith(f".{quoting.name(usual_name)}"):
        return applied(layout, found, files)
    return certain(layout, found, files)


def near(session: Session, layout: Foreign, found: Found) -> bool:
    """Tell whether a history is in a schema where the tool itself would look."""
    near = _near(layout, _path(session), session.config.only)
    schemas = {quoting.name(schema) for each in near for schema in each}
    return _bound(layout) or any(found.place.startswith(f"{each}.") for each in schemas)


def certain(layout: Foreign, found: Found, files: Sequence[Migration]) -> list[Migration]:
    """Return the files that are applied by this history, and that it is of certainly.

    By the tool's checksum, or by their versions where three of them are times.
    """
    said = found.said.applied
    there = [(file, layout.key(file)) for file in applied(layout, found, files)]
    timed = sum(len(key) >= _LONG for _, key in there)
    return [
        file
        for file, key in there
        if ((checksum := said.get(key)) is not None and layout.agrees(file, checksum))
        or (checksum is None and timed >= _MANY)
    ]


def _way_out(layout: Foreign) -> str:
    return (
        "It is newer than every file here: was an old or a wrong directory mounted? Start the "
        f"version that has it; where it is gone for good, settle it with {layout.tool}."
    )


def _unfinished(layout: Foreign, found: Found, version: str, files: Sequence[Migration]) -> Problem:
    """Say what a version is that the other tool did not finish, and what a person can do."""
    at = next((at for at, file in enumerate(files) if layout.key(file) == version), None)
    hint = f"Look at the database, settle it with {layout.tool} as it advises, and run again."
    if at is not None:
        hint += f" Or vouch for what is there: all of it, `adopt --through {files[at].written}`"
        below = f"; nothing of it, `adopt --through {files[at - 1].written}`, and it will run"
        hint += f"{below if at else ''}."
    return Problem(f"{layout.tool} left version {version} unfinished ({found.place})", hint)


def repeated(layout: Foreign, found: Found, files: Sequence[Migration]) -> list[Migration]:
    """Return the files without a version whose text is the one that the other tool ran last."""
    said = found.said.repeated
    pairs = [(file, said.get(layout.repeats(file))) for file in files]
    return [file for file, checksum in pairs if checksum and layout.agrees(file, checksum)]


def newer(layout: Foreign, found: Found, files: Sequence[Migration]) -> list[str]:
    """Return what is applied above all files here: once its file has come, it would run again."""
    behind = layout.newer(list(found.said.applied), files)
    return [key for key in behind if not layout.forgets(key, files, found.said)]
