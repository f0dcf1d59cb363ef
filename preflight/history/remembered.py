"""What another tool's history said is kept in a table of one row, and compared.

Where it says something else later, somebody still runs the other tool. That it said nothing, for
there was none, is remembered as well.
"""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg
import structlog

from preflight import __version__
from preflight.base import quoting
from preflight.base.config import OTHER_LAYOUTS
from preflight.base.errors import HistoryConflict, PlanChanged, Problem
from preflight.files import folder, foreign
from preflight.files.foreign import Said
from preflight.history import journal, repeats, tables, takeover
from preflight.history.plan import Record
from preflight.history.takeover import Found

if TYPE_CHECKING:
    from preflight.files.foreign import Foreign
    from preflight.files.migrations import Migration
    from preflight.server.sessions import Session

_TABLE = """
CREATE TABLE {schema}.takeovers (
  tool pg_catalog.text NOT NULL,
  place pg_catalog.text NOT NULL PRIMARY KEY,
  said pg_catalog.text NOT NULL,
  newest pg_catalog.text NOT NULL,
  at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
  tool_version pg_catalog.text NOT NULL,
  run_id pg_catalog.text NOT NULL
)
"""
_NOTHING = Found("", Said({}))
_BACK = ("rolled_back", "taken_back")
_FEW = 5  # names in a sentence
_ONE = "One of the two has to migrate this database."
_GONE = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.InsufficientPrivilege,
)


def remember(session: Session, layout: Foreign, found: Found) -> None:
    """Keep what the other tool's history said; call under the lock, in the transaction."""
    schema = session.config.schema
    columns = "tool, place, said, newest, at, tool_version, run_id"
    tables.add(session, "takeovers", _TABLE, columns)
    session.execute(f"DELETE FROM {schema}.takeovers")  # noqa: S608 -- a checked name
    session.execute(
        f"""INSERT INTO {schema}.takeovers (tool, place, said, newest, tool_version, run_id)
 VALUES (%s, %s, %s, %s, %s, %s)""",  # noqa: S608 -- a checked name
        [
            layout.tool, found.place, found.digest, found.newest, __version__,
            session.config.run_id,
        ],
    )  # fmt: skip


def begin(session: Session, layout: Foreign, found: Found | None) -> None:
    """Keep what the history of the folder's tool says, or that there is none where it would be.

    A table that is there and was not found is another's, or nobody could tell. Where anything is
    kept already, that stays. Call as `remember`.
    """
    if tables.there(session, "takeovers") and _places(session):
        return
    if found is None:
        found = Found(takeover.usual(session, layout), _NOTHING.said)
        if _there(session, found.place):
            return
    remember(session, layout, found)


def _places(session: Session) -> list[str]:
    """Return the tables of which something is kept, there or not."""
    query = f"SELECT t.place FROM ONLY {session.config.schema}.takeovers t"  # noqa: S608 -- a checked name
    return [place for (place,) in session.execute(query).fetchall()]


def _there(session: Session, place: str) -> bool:
    query = "SELECT pg_catalog.to_regclass(%s) IS NOT NULL"
    (row,) = session.execute(query, [place]).fetchall()
    return bool(row[0])


def watch(session: Session, layout: Foreign, files: Sequence[Migration]) -> None:
    """Make sure of what is due, as `require_new`, and begin to watch where nobody did yet."""
    begin(session, layout, require_new(session, layout, files))


def require_new(session: Session, layout: Foreign, files: Sequence[Migration]) -> Found | None:
    """Make sure that no file is due which the other tool has applied; return its history.

    What was recorded here and taken back may run again, whatever that says. Raises HistoryConflict.
    Where it cannot be told from another, or not be believed, a person has vouched.
    """
    try:
        found = takeover.look(session, layout, files)
    except HistoryConflict:
        return None
    if found is None or (ran := _ever_recorded(session)) is None:
        return found
    versions, called = ran
    newest = max(versions, default=0)
    again = [
        file
        for file in takeover.applied(layout, found, files)
        if file.version not in versions
        and file.name not in called
        # one row may speak of all below it: not of a file that has come later
        and (layout.key(file) in found.said.applied or file.version > newest)
    ]
    if again:
        names = ", ".join(file.name for file in again[:_FEW])
        raise HistoryConflict(
            "takeover.refused",
            f"{layout.tool} has applied {names} ({found.place}), which is not recorded here: it "
            "would run a second time",
            f"{_ONE} Stop {layout.tool}; what it applied is recorded without running it: "
            f"`adopt --through {again[-1].written}`.",
            **again[0].named,
        )
    return found


def _ever_recorded(session: Session) -> tuple[set[int], set[str]] | None:
    """Return the versions that are recorded or were taken back, and the names of the latter.

    None where this role may not read that. A version that is text may have had another number.
    """
    schema = session.config.schema
    query = f"""SELECT m.version, NULL AS name FROM ONLY {schema}.migrations m
 UNION SELECT j.version, j.name FROM ONLY {schema}.journal j WHERE j.event = ANY (%s)"""  # noqa: S608 -- a checked name
    try:
        with session.connection.transaction():
            rows = session.execute(query, [list(_BACK)]).fetchall()
    except psycopg.errors.InsufficientPrivilege:
        return None
    return {version for version, _ in rows}, {name for _, name in rows if name is not None}


def follow(session: Session, text: bytes | None = None) -> None:
    """Keep what it says after a file of ours that speaks of its table; call in its transaction.

    Some do: a schema that was dumped whole brings the rows of its history with it. What cannot be
    read stays as it was known. Without a text, what it says now is what we begin from.
    """
    for tool, place, said, _ in _kept(session):
        table = place.rpartition(".")[2].strip('"')
        if text is not None and not re.search(re.escape(table.encode()), text, re.IGNORECASE):
            continue
        layout = _layout(session, tool)
        with suppress(HistoryConflict, *_GONE), session.connection.transaction():
            found = Found(place, takeover.read(session, layout, place, patient=False))
            if found.digest != said:
                remember(session, layout, found)


def vouched(
    session: Session, files: Sequence[Migration], recorded: Container[str], through: Migration
) -> list[Migration]:
    """Keep what it says now: a person has looked, and vouched for all `through` a version.

    Without a takeover before, it is that of the folder's tool. What it has applied since, and is
    not `recorded` as people write it, is not known by that: it would run again. Nor is what it took
    back: above that version it is pending again. Returns the files without a version that are
    recorded by it.
    """
    again: list[Migration] = []
    layout = folder.rule(files)
    kept = _kept(session) if tables.there(session, "takeovers") else ()
    for tool, place, said, newest in kept:
        theirs = layout if layout and layout.tool == tool else _layout(session, tool)
        now = Found(place, takeover.read(session, theirs, place))
        if now.digest == said:
            continue
        if layout is None and newest == _NOTHING.newest:
            _forget(session)  # the files are no more that tool's, and never were run by it
        elif left := unsettled(theirs, now, files, recorded):
            _warn(_unvouched(theirs, now, left, alike=_same_names(theirs, files)))
        else:
            _settle(session, theirs, now, through)
            remember(session, theirs, now)
            again += _run_there(session, theirs, now, files) if theirs is layout else ()
    if not kept and layout is not None:
        with suppress(HistoryConflict):
            if (found := takeover.look(session, layout, files)) is not None:
                coming = [each for each in _coming(layout, found, files) if each not in recorded]
                if coming:  # known, it would be asked for no more, and run once its file has come
                    _warn(_unvouched(layout, found, coming, alike=True))
                else:
                    remember(session, layout, found)
    return again


def _warn(warning: str) -> None:
    structlog.get_logger().warning("config.warned", warning=warning)


def _forget(session: Session) -> None:
    session.execute(f"DELETE FROM {session.config.schema}.takeovers")  # noqa: S608 -- a checked name


def _settle(session: Session, theirs: Foreign, now: Found, through: Migration) -> None:
    """Let the records say what the other tool's history does, as far as a person has said it."""
    schema = session.config.schema
    back = _taken_back(session, theirs, now)
    if above := [record for record in back if record.version > through.version]:
        for record in above:
            journal.journal(session, "taken_back", record)
        gone = [record.version for record in above]
        session.execute(f"DELETE FROM {schema}.migrations WHERE version = ANY (%s)", [gone])  # noqa: S608
        _warn(
            f"{theirs.tool} took {_names(above)} back ({now.place}): no longer recorded, and "
            "pending again"
        )
    if kept := [record for record in back if record.version <= through.version]:
        held = [record.version for record in kept]
        session.execute(
            f"UPDATE {schema}.migrations SET how = 'adopted' WHERE version = ANY (%s)",  # noqa: S608
            [held],
        )
        _warn(
            f"{now.place} says no more that {_names(kept)} {_is(kept)} applied, and stays recorded "
            "as somebody vouched for: is it there?"
        )
    tables.ready_to_take_over(session)
    told = [
        record.version for record in _recorded(session, "adopted") if _says(theirs, now, record)
    ]
    session.execute(  # what is taken over is missed when it is taken back
        f"""UPDATE {schema}.migrations SET how = 'taken_over' WHERE version = ANY (%s)
 AND EXISTS (SELECT FROM {schema}.migrations m WHERE m.how <> 'adopted')""",  # noqa: S608 -- a checked name
        [told],
    )


def _taken_back(session: Session, theirs: Foreign, now: Found) -> list[Record]:
    """Return what was taken over and is not applied there any more, as far as that can be told."""
    with suppress(psycopg.errors.InsufficientPrivilege), session.connection.transaction():
        return [
            record for record in _recorded(session, "taken_over") if not _says(theirs, now, record)
        ]
    return []


def _recorded(session: Session, how: str) -> list[Record]:
    """Return what is recorded in one way."""
    schema = session.config.schema
    rows = session.execute(  # a column that the table lacks is found one level further out
        f"""SELECT r.* FROM (SELECT NULL::text AS label) lacking,
 LATERAL (SELECT m.version, m.name, m.checksum, label FROM ONLY {schema}.migrations m
  WHERE m.state = 'done' AND m.how = %s ORDER BY m.version) r""",  # noqa: S608 -- a checked name
        [how],
    ).fetchall()
    return [Record(version, name, checksum, label=label) for version, name, checksum, label in rows]


def _says(theirs: Foreign, now: Found, record: Record) -> bool:
    """Tell whether the other tool's history says that a version is applied, or nobody can tell."""
    said = now.said
    if theirs.labelled and record.label is None:  # its file has another name since
        return True
    if theirs.stands(record.name, record.label or "", said):
        return True
    written = record.written if theirs.labelled else str(record.version)
    told = {key if theirs.labelled else str(theirs.order(key)) for key in said.applied}
    last = None if said.through is None else theirs.order(said.through)
    return written in told or (last is not None and theirs.order(written) <= last)


def _names(records: Sequence[Record]) -> str:
    more = f" and {len(records) - _FEW} more" * (len(records) > _FEW)
    return ", ".join(record.written for record in records[:_FEW]) + more


def _is(records: Sequence[Record]) -> str:
    return "is" if len(records) == 1 else "are"


def _run_there(
    session: Session, layout: Foreign, now: Found, files: Sequence[Migration]
) -> list[Migration]:
    """Record the files without a version that the other tool ran last as they are.

    What ran here since is not known by that: its table may tell of what it ran before.
    """
    known = [file for file in folder.repeats(files) if layout.repeats(file) in now.said.repeated]
    if not known:
        return []
    repeats.ensure(session)
    here = repeats.ran_here(session)
    mine = [file for file in known if file.name not in here]
    there = takeover.repeated(layout, now, mine)
    if other := [file.name for file in mine if file not in there]:
        _warn(
            f"{layout.tool} last ran {', '.join(other)} with another text than is here, and that "
            "is not recorded: a file with that text runs once more when it comes"
        )
    return [file for file in there if repeats.claim(session, file, how="taken_over")]


def unsettled(
    theirs: Foreign, now: Found, files: Sequence[Migration], recorded: Container[str]
) -> list[str]:
    """Name what is applied there and not recorded here: the files that are, or would come.

    Where one of the two has versions that are text, and the files are in another layout, nothing
    tells which of them those are: it may be any.
    """
    alike = _same_names(theirs, files)
    there = takeover.applied(theirs, now, files) if alike else files
    coming = _coming(theirs, now, files) if alike else ()
    return [each for each in (*(file.written for file in there), *coming) if each not in recorded]


def _coming(theirs: Foreign, now: Found, files: Sequence[Migration]) -> list[str]:
    """Name what is applied there and newer than every file here, as people write it."""
    keys = takeover.newer(theirs, now, files)
    return [key if theirs.labelled else str(theirs.order(key)) for key in keys]


def _same_names(theirs: Foreign, files: Sequence[Migration]) -> bool:
    """Tell whether files are known by what the other tool calls them."""
    layout = folder.rule(files)
    return layout is theirs or not (theirs.labelled or (layout and layout.labelled))


def _unvouched(theirs: Foreign, now: Found, left: Sequence[str], *, alike: bool) -> str:
    gone_on = f"{theirs.tool} has gone on ({now.place}), and this is not recorded: "
    if not alike:
        return (
            f"{gone_on}{', '.join(left)}; nothing tells which of these it has run. Vouch with an "
            "image whose newest file is the last that it ran, and for no file that nobody ran; "
            "what is planned stays refused until then"
        )
    return (
        f"{gone_on}{', '.join(left)}; what is planned stays refused until "
        "`adopt --through VERSION` names it, with its files at hand, or "
        f"{theirs.tool}'s table says no more that it is applied"
    )


def known(session: Session, found: Found) -> bool:
    """Tell whether a person vouched, or a takeover went well, when it said what it says now."""
    kept = _kept(session) if tables.there(session, "takeovers") else ()
    return any((place, said) == (found.place, found.digest) for _, place, said, _ in kept)


def _layout(session: Session, tool: str) -> Foreign:
    if tool not in OTHER_LAYOUTS:
        raise tables.damaged(session, f"takeovers names {tool!r}, which is no tool that is known")
    return foreign.layout(tool, session.config.migrations_dir)


def _kept(session: Session) -> list[Sequence[Any]]:
    schema = session.config.schema
    query = f"""SELECT t.tool, n.nspname::text, c.relname::text, t.said, t.newest
 FROM ONLY {schema}.takeovers t
 JOIN pg_catalog.pg_class c ON c.oid = pg_catalog.to_regclass(t.place)
 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p')"""  # noqa: S608 -- a checked name
    return [  # quoted anew: what is recorded is nothing that we would run
        (tool, f"{quoting.name(place)}.{quoting.name(table)}", said, newest)
        for tool, place, table, said, newest in session.execute(query).fetchall()
    ]


def moved(session: Session) -> Problem | None:
    """Tell whether the other tool was run since its history was taken over.

    Who may not read the table, or finds it gone, is told nothing.
    """
    with suppress(*_GONE), session.looking():
        session.execute(session.beginning)
        return _went_on(session)
    return None


def require_unmoved(session: Session) -> None:
    """Raise PlanChanged where the other tool was run since: who plans anew is told what it did.

    Call in a transaction, which goes on.
    """
    try:
        with suppress(*_GONE), session.connection.transaction():
            if _went_on(session):
                raise PlanChanged
    except HistoryConflict as unreadable:
        raise PlanChanged from unreadable


def _went_on(session: Session) -> Problem | None:
    for tool, place, said, newest in _kept(session):
        layout = _layout(session, tool)
        now = Found(place, takeover.read(session, layout, place))
        if now.digest != said:
            return _moved(tool, now, newest, _taken_back(session, layout, now))
    return None


def _moved(tool: str, now: Found, newest: str, back: Sequence[Record]) -> Problem:
    since = "after its history was taken over"
    gone = f"{now.place} went from {newest} to {now.newest}"
    if back:
        gone = f"it took {_names(back)} back ({now.place})"
    elif newest == _NOTHING.newest:
        since = "on a database that had no history of it"
        gone = f"{now.place} says {now.newest}"
    elif newest == now.newest:  # a file that ran again, or an older version
        gone = f"the newest version of {now.place} is still {newest}, but it says something else"
        gone += f"; its last row is of {now.said.last}" if now.said.last else ""
    unfinished = f", and left {', '.join(now.said.broken)} unfinished" if now.said.broken else ""
    hint = f"{_ONE} Stop {tool}; what it applied meanwhile is recorded without running it: "
    hint += "`adopt --through VERSION`, with all its files at hand."
    if back:
        hint += f" What it took back above VERSION is pending again by that. Or let {tool} apply "
        hint += "it again."
    if now.said.repeated:
        hint += " A file without a version that ran here since may run once more."
    if newest == _NOTHING.newest:
        hint += " Where the table is another app's: `convert` this folder; its newest version is "
        hint += "VERSION then."
    return Problem(f"{tool} was run {since}: {gone}{unfinished}", hint)
