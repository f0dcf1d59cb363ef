"""First contact with a database: what is there already is recorded, never guessed."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import psycopg
import structlog

from preflight.apply import resume, verify
from preflight.base.config import OTHER_LAYOUTS
from preflight.base.errors import (
    Failure,
    HistoryConflict,
    VerifyFailed,
)
from preflight.files import due, folder
from preflight.files.layout import OURS
from preflight.history import fence, ledger, plan, repeats, tables
from preflight.server import sessions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from preflight.files.foreign import Foreign
    from preflight.files.migrations import Migration
    from preflight.history import takeover
    from preflight.history.plan import History
    from preflight.server.sessions import Session
# nothing of anybody's: no relation, type or function but the system's, extensions' and our tables
_EMPTY = """
WITH theirs AS (
 SELECT n.oid FROM pg_catalog.pg_namespace n
 WHERE n.nspname NOT IN ('pg_catalog', 'information_schema')
  AND n.nspname::text NOT LIKE 'pg\\_%%' {only}
), members AS (
 -- of an extension, or made along with something else: a row's type, an array, a multirange
 SELECT d.classid, d.objid FROM pg_catalog.pg_depend d WHERE d.deptype IN ('e', 'i')
 UNION ALL
 SELECT 'pg_catalog.pg_class'::regclass, c.oid
 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = %s::name AND c.relname IN ('migrations', 'journal') AND c.relkind = 'r'
  AND pg_catalog.pg_has_role(c.relowner, 'USAGE')
  AND (SELECT pg_catalog.count(*) FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid
   AND a.attname::text = ANY (ARRAY['version', 'name', 'checksum', 'run_id', 'tool_version'])) = 5
 UNION ALL
 SELECT 'pg_catalog.pg_class'::regclass, c.oid
 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = %s::name AND c.relname IN ('takeovers', 'repeatables') AND c.relkind = 'r'
  AND pg_catalog.pg_has_role(c.relowner, 'USAGE')
  AND (SELECT pg_catalog.count(*) FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid
   AND a.attname::text = ANY (ARRAY['run_id', 'tool_version'])) = 2
 UNION ALL
 SELECT 'pg_catalog.pg_class'::regclass, c.oid
 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = %s::name AND c.relname = 'wraps' AND c.relkind = 'r'
  AND pg_catalog.pg_has_role(c.relowner, 'USAGE')
  AND (SELECT pg_catalog.count(*) FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid
   AND a.attname::text = ANY (ARRAY['key', 'command', 'watched', 'run_id', 'tool_version'])) = 5
)
SELECT NOT EXISTS (
 SELECT FROM pg_catalog.pg_class c JOIN theirs ON theirs.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f', 'c') AND NOT EXISTS (
  SELECT FROM members m WHERE m.classid = 'pg_catalog.pg_class'::regclass AND m.objid = c.oid)
) AND NOT EXISTS (
 SELECT FROM pg_catalog.pg_type t JOIN theirs ON theirs.oid = t.typnamespace
 WHERE NOT EXISTS (
  SELECT FROM members m WHERE m.classid = 'pg_catalog.pg_type'::regclass AND m.objid = t.oid)
) AND NOT EXISTS (
 SELECT FROM pg_catalog.pg_proc p JOIN theirs ON theirs.oid = p.pronamespace
 WHERE NOT EXISTS (
  SELECT FROM members m WHERE m.classid = 'pg_catalog.pg_proc'::regclass AND m.objid = p.oid)
)
"""


def settle(session: Session, files: Sequence[Migration]) -> History:
    """Return the history as it stands under the lock, made or completed where it is missing.

    First contact: what is already there is adopted. Raises HistoryConflict, NeedsRepair,
    VerifyFailed (partial), TargetUnusable (no right to make the tables), FilesInvalid (a file that
    is to run could not be taken up).
    """
    session.prepare()
    closed, adopted = verify.unlocked(session, lambda: _settled(session, files))
    tables.tell_closed(session, closed)
    tell_adopted(adopted)
    history = ledger.read(session)
    for row in ledger.unfinished(session):
        file = next((file for file in files if file.version == row.version), None)
        if file is not None:
            resume.require_resumable(file, row, session)
    new = [file for file in files if file.version not in history.records]
    due.require(due.scripts(new))
    return history


def _settled(
    session: Session, files: Sequence[Migration]
) -> tuple[list[str], list[tuple[Migration, tuple[verify.Check, ...]]]]:
    """Make or complete the history; return whose rights were taken back, and what was adopted."""
    adopted: list[tuple[Migration, tuple[verify.Check, ...]]] = []
    with fence.made(session), sessions.transaction(session):
        new, closed = ledger.make_tables(session)
        if any(file.label for file in files):
            tables.labelled(session)
        if folder.repeats(files):
            repeats.ensure(session)
        first, bare = (True, True) if new else _looked(session)
        if first:
            adopted = _first_contact(session, files)
        elif bare and tables.there(session, "takeovers"):
            from preflight.history import remembered  # noqa: PLC0415 -- only where there was one

            remembered.follow(session)  # all was taken back: nobody asks what was known
        if not first:
            _require_new(session, files)
        ledger.keep(session, files)
    return closed, adopted


def untold(session: Session) -> bool:
    """Tell whether first contact is still to come: nothing ran, nothing but named files adopted."""
    return _looked(session)[0]


def _looked(session: Session) -> tuple[bool, bool]:
    """Tell whether first contact is still to come, and whether nothing is recorded."""
    schema = session.config.schema
    row = session.execute(
        f"""SELECT NOT EXISTS (SELECT FROM {schema}.migrations m WHERE m.how <> 'adopted')
 AND NOT EXISTS (SELECT FROM {schema}.journal j
  WHERE j.event NOT IN ('failed', 'vouched', 'rehearsing', 'rehearsed', 'wrapped',
   'pointed', 'running')), NOT EXISTS (SELECT FROM {schema}.migrations)"""  # noqa: S608 -- a checked name
    ).fetchone()
    return row or (False, False)


def _first_contact(
    session: Session, files: Sequence[Migration]
) -> list[tuple[Migration, tuple[verify.Check, ...]]]:
    schema = session.config.schema
    rows = session.execute(f"SELECT version FROM {schema}.migrations").fetchall()  # noqa: S608
    known = {version for (version,) in rows}
    unrecorded = [file for file in files if file.version not in known]
    adopted = []
    if (theirs := _theirs(session, files, unrecorded)) is not None:
        layout, found, there = theirs
        from preflight.history import remembered, takeover  # noqa: PLC0415 -- only here

        tables.ready_to_take_over(session)
        remembered.remember(session, layout, found)
        for file, checks in _agreeing(session, unrecorded, there):
            ledger.adopt(session, file, how="taken_over")
            adopted.append((file, checks))
        for file in takeover.repeated(layout, found, folder.repeats(files)):
            repeats.claim(session, file, how="taken_over")
            adopted.append((file, ()))
    else:
        if not is_empty(session):
            for file, checks in adoptable(session, unrecorded, folder.rule(files), len(known)):
                ledger.adopt(session, file)
                adopted.append((file, checks))
        _watch(session, files)
    _require_no_other(session, files, unrecorded, {file.name for file, _ in adopted})
    return adopted


def _watch(session: Session, files: Sequence[Migration]) -> None:
    """Remember that the folder's tool has no history here, should it have one later."""
    layout = folder.rule(files)
    if layout is not None and not session.copy:
        from preflight.history import remembered  # noqa: PLC0415 -- only for another tool's folder

        remembered.begin(session, layout)


def _require_new(session: Session, files: Sequence[Migration], *, write: bool = True) -> None:
    """Make sure that the folder's tool has not applied what is due here; raises HistoryConflict."""
    layout = folder.rule(files)
    if layout is not None and not session.copy:
        from preflight.history import remembered  # noqa: PLC0415 -- only for another tool's folder

        (remembered.watch if write else remembered.require_new)(session, layout, files)


def _require_no_other(
    session: Session,
    files: Sequence[Migration],
    unrecorded: Sequence[Migration],
    there: Container[str],
) -> None:
    """Make sure that no other tool, who reads this folder too, says that what is due is applied.

    Names are shared by several: a history decides whose it is, and two are a question. Who has said
    it, by PREFLIGHT_LAYOUT, is not asked. Raises HistoryConflict.
    """
    due = {file.up.file: file for file in unrecorded if file.name not in there}
    if session.config.layout != "auto" or session.copy or not due or is_empty(session):
        return
    own = folder.rule(files)
    for tool in OTHER_LAYOUTS:
        if own is not None and tool == own.tool:
            continue
        place, sure = _certain(session, tool)
        if again := [due[file.up.file] for file in sure if file.up.file in due]:
            mine, names = own.tool if own else OURS, ", ".join(file.name for file in again[:5])
            read = f"Read as {mine}'s" if own else "In our layout"
            raise HistoryConflict(
                "takeover.ambiguous",
                f"whose folder is this? {read}, {names} is to run, and {tool}'s history, "
                f"{place}, says that it is applied",
                f"PREFLIGHT_LAYOUT={tool} takes that history over. Nobody goes by it any more: "
                f"PREFLIGHT_LAYOUT={mine}.",
                **again[0].named,
            )


def _certain(session: Session, tool: str) -> tuple[str, Sequence[Migration]]:
    """Return a tool's history, and of which files of the folder it says certainly that they ran."""
    from preflight.files import foreign  # noqa: PLC0415 -- only at first contact
    from preflight.history import takeover  # noqa: PLC0415 -- likewise

    with suppress(Failure, OSError):
        if takeover.seen(session, foreign.layout(tool, session.config.migrations_dir)):
            layout, files, found = _read_as(session, tool)
            if found is not None and takeover.near(session, layout, found):
                return found.place, takeover.certain(layout, found, files)
    return "", ()


def _read_as(
    session: Session, tool: str
) -> tuple[Foreign, Sequence[Migration], takeover.Found | None]:
    """Return the folder as a tool reads it, and what its history says; raises Failure, OSError."""
    from preflight.files import foreign  # noqa: PLC0415 -- only where it may be another tool's
    from preflight.history import takeover  # noqa: PLC0415 -- likewise

    layout, files = foreign.load(tool, session.config.migrations_dir)
    return layout, files, takeover.look(session, layout, files)


def _theirs(
    session: Session, files: Sequence[Migration], unrecorded: Sequence[Migration]
) -> tuple[Foreign, takeover.Found, set[int]] | None:
    """Return what the history of the folder's own tool says is applied; None without one.

    Raises HistoryConflict where that cannot be taken over. Of one that cannot be believed, or told
    from another, nothing is asked once a person has vouched for what is there.
    """
    layout = folder.rule(files)
    if layout is None:
        return None
    from preflight.history import remembered, takeover  # noqa: PLC0415 -- only for a tool's folder

    try:
        found = takeover.look(session, layout, files)
    except HistoryConflict:
        if len(unrecorded) == len(files):
            raise
        return None
    if found is None:
        return None
    recorded = {file.version for file in files} - {file.version for file in unrecorded}
    vouched = remembered.known(session, found)
    there = takeover.covered(layout, found, files, recorded, vouched=vouched)
    return layout, found, {file.version for file in there}


def _agreeing(
    session: Session, unrecorded: Sequence[Migration], there: set[int]
) -> Iterator[tuple[Migration, tuple[verify.Check, ...]]]:
    """Yield what another tool says is applied, with its checks; raises VerifyFailed."""
    for file in unrecorded:
        if file.version not in there:
            continue
        checks = verify.run(session, file.verify) if file.verify else ()
        if verify.failed(checks):
            verify.report(file, checks)
            raise VerifyFailed(
                "verify.not_there",
                f"{file.name} is applied, says the tool before us, but not in the database as it "
                f"should be: {verify.described(checks)}",
                "Nothing was recorded. Complete it by hand, or correct the verify file.",
                **file.named,
            )
        yield file, checks


def tell_adopted(adopted: Sequence[tuple[Migration, tuple[verify.Check, ...]]]) -> None:
    """Log what was adopted; call after the COMMIT, before which it is not true."""
    for file, checks in adopted:
        structlog.get_logger().info("migration.adopted", **file.named, checks=len(checks))


def adoptable(
    session: Session,
    unrecorded: Sequence[Migration],
    own: Foreign | None = None,
    recorded: int = 0,
) -> Iterator[tuple[Migration, tuple[verify.Check, ...]]]:
    """Yield the files that a database already holds, with their checks; reads only.

    `own` is the layout of the folder, where it is another tool's; so many are `recorded` already.

    Call inside a transaction. Raises VerifyFailed (partial, or there above one that is absent),
    HistoryConflict (cannot be told).
    """
    absent: Migration | None = None
    for file in unrecorded:
        checks = verify.run(session, file.verify) if file.verify else ()
        answer = verify.answer(checks)
        guess = absent is None and session.config.first_contact != "pending"
        if answer == "unknown" and guess:
            raise _cannot_tell(session, file, own, recorded)
        if answer == "untold" and guess:
            raise _untold(file, checks)
        if answer == "partial":
            raise _in_part(file, checks, absent)
        if answer != "present":
            absent = absent or file
        elif absent is not None and session.config.out_of_order == "fail":
            raise _above(file, absent)
        else:
            yield file, checks


def _tool_before(session: Session) -> tuple[str | None, str | None]:
    """Name the tool whose history is here and who reads these very files, if there is one.

    And its table, where PREFLIGHT_SCHEMAS leaves that out.
    """
    from preflight.history import takeover  # noqa: PLC0415 -- only before a failure

    left: tuple[str, str | None] | None = None
    for tool in OTHER_LAYOUTS:
        with suppress(Failure, OSError, psycopg.Error):
            layout, files, found = _read_as(session, tool)
            if found is None and (place := takeover.outside(session, layout, files)) is not None:
                left = left or (tool, place)
            if found is not None and takeover.certain(layout, found, files):
                left = left or (tool, None)  # also where it is refused: a version failed
            if found is not None and takeover.covered(layout, found, files):
                return tool, None
    return left or (None, None)


def _cannot_tell(
    session: Session, file: Migration, own: Foreign | None, recorded: int
) -> HistoryConflict:
    from preflight.history import takeover  # noqa: PLC0415 -- only before a failure

    tool, outside = _tool_before(session)
    said = file.written
    how = "`up`" if own and own.tool == tool else f"PREFLIGHT_LAYOUT={tool}"
    first = f"A history of {tool} is here: {how} takes it over. Or: " * bool(tool)
    if tool is None and own and own.table.like and not takeover.seen(session, own):
        first = (
            f"{own.tool}'s history is looked for where a table has `{own.table.like}` in its name: "
            "one that is called otherwise is not taken over. "
        )
    if outside is not None:
        first = (
            f"A history of {tool}, {outside}, is in none of PREFLIGHT_SCHEMAS: if it is this "
            "app's, name its schema there, too. Or: "
        )
    before = "the database has objects but nothing was ever run here"
    if recorded:
        before = f"nothing was ever run here, {recorded} files are vouched for"
    return HistoryConflict(
        "history.first_contact",
        f"{before}, and {file.name} has no verify file that could tell whether it was applied",
        f"{first}It is there: `adopt {said}`, or all up to it: `adopt --through {said}`. "
        "It is not: set PREFLIGHT_FIRST_CONTACT=pending, and it will run.",
        **file.named,
    )


def _in_part(
    file: Migration, checks: Sequence[verify.Check], absent: Migration | None
) -> VerifyFailed:
    verify.report(file, checks)
    below = f"; and {absent.name} below it is absent" if absent else ""
    return VerifyFailed(
        "verify.partial",
        f"{file.name} is in the database only in part: {verify.described(checks)}{below}",
        "Complete it or take it back by hand, then run again; "
        f"`verify {file.written}` lists every check.",
        **file.named,
    )


def _untold(file: Migration, checks: Sequence[verify.Check]) -> VerifyFailed:
    verify.report(file, checks)
    return VerifyFailed(
        "verify.untold",
        f"whether {file.name} is in the database cannot be told: {verify.described(checks)}, "
        "and a query that fails says nothing of the other checks that it would have made",
        "Write one query a check, with to_regclass in place of FROM. Or say it yourself: it is "
        "not there, also not in part: PREFLIGHT_FIRST_CONTACT=pending.",
        **file.named,
    )


def _above(file: Migration, absent: Migration) -> VerifyFailed:
    adopted = f"`adopt {absent.written}`"
    if absent.verify:
        adopted = f"correct its verify file, then {adopted}"
    return VerifyFailed(
        "verify.out_of_order",
        f"{file.name} is in the database, but {absent.name} below it is not",
        f"{absent.name} is there all the same: {adopted}. It is to run although "
        f"{file.name} is there: PREFLIGHT_OUT_OF_ORDER=allow. {file.name} is not there: mark the "
        "checks that hold without it with `false AS effect`.",
        **file.named,
    )


def is_empty(session: Session) -> bool:
    """Tell whether the database, or what of it we are limited to, holds nothing of anybody's."""
    from preflight.server import catalog  # noqa: PLC0415 -- only at first contact

    only = catalog.only(session.config.only).replace("%", "%%")
    row = session.execute(_EMPTY.replace("{only}", only), [session.config.schema] * 3).fetchone()
    return bool(row and row[0])


def first_look(
    session: Session, files: Sequence[Migration], known: plan.History
) -> tuple[set[str], Failure | None]:
    """While nothing was ever run here: return the names that `up` would adopt; writes nothing.

    The failure is what would stop it; the names are then those before.
    """
    unrecorded = [file for file in files if file.version not in known.records]
    found: set[str] = set()

    def look() -> None:
        found.clear()
        with ledger.looking(session):
            if not _told(session, known):
                for file, _ in _there_already(session, files, unrecorded):
                    found.add(file.name)
                _require_no_other(session, files, unrecorded, found)
            elif unrecorded:
                _require_new(session, files, write=False)

    try:
        verify.unlocked(session, look)
    except (VerifyFailed, HistoryConflict) as failure:
        return found, failure
    return found, None


def require_told(session: Session, files: Sequence[Migration]) -> None:
    """Make sure that first contact is over, or that there is nothing to record and to ask.

    Raises HistoryConflict, VerifyFailed: a file that is run or taken back would end it.
    """
    found, failure = first_look(session, files, ledger.read(session))
    if failure:
        raise failure
    if found:
        names = ", ".join(sorted(found)[:5])
        raise HistoryConflict(
            "history.first_contact",
            f"{len(found)} files are there already and not recorded ({names}), so no other is run "
            "again or taken back yet",
            "Run `up` first: it records what is there without running it.",
        )


def _there_already(
    session: Session, files: Sequence[Migration], unrecorded: Sequence[Migration]
) -> Iterator[tuple[Migration, tuple[verify.Check, ...]]]:
    """Yield what first contact would record, with its checks; raises as that."""
    if (theirs := _theirs(session, files, unrecorded)) is not None:
        from preflight.history import takeover  # noqa: PLC0415 -- only here

        layout, history, there = theirs
        yield from _agreeing(session, unrecorded, there)
        for file in takeover.repeated(layout, history, folder.repeats(files)):
            yield file, ()
    elif not is_empty(session):
        recorded = len(files) - len(unrecorded)
        yield from adoptable(session, unrecorded, folder.rule(files), recorded)


def _told(session: Session, known: plan.History) -> bool:
    try:
        with session.connection.transaction():
            return known.present and not untold(session)
    except psycopg.errors.InsufficientPrivilege:
        return True  # the journal is not for everyone: nothing to tell by
