"""What another tool's history said is kept in a table of one row, and compared.

Where it says something else later, somebody still runs the other tool. That there was none is
remembered as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

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
  run_id pg_catalog.text NOT NULL,
  told pg_catalog.text
)
"""
_COLUMNS = "tool, place, said, newest, at, tool_version, run_id, told"
_ABSENT = "absent"  # in place of the newest version, where there is no table yet
# how a version was recorded that was there before any file of it ran here
_THERE = ("adopted", "vouched", "taken_over")
_FEW = 5  # names in a sentence
_ONE = "One of the two has to migrate this database."
_GONE = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.InsufficientPrivilege,
)


class Kept(NamedTuple):
    """What is remembered of another tool's history, and where that is now."""

    tool: str
    place: str
    digest: str
    newest: str
    said: Said | None  # what it said; None: kept by an older version, as the digest alone

    @property
    def absent(self) -> bool:
        """Whether there was none."""
        return self.newest == _ABSENT


def remember(
    session: Session,
    layout: Foreign,
    found: Found,
    newest: str | None = None,
    known: Said | None = None,
) -> None:
    """Keep what the other tool's history said; call under the lock, in the transaction.

    `known`: what of that a person knows, where it is not all.
    """
    schema = session.config.schema
    tables.add(session, "takeovers", _TABLE, _COLUMNS)
    tables.widen(session, "takeovers", "told", "pg_catalog.text")
    session.execute(f"DELETE FROM {schema}.takeovers")  # noqa: S608 -- a checked name
    known = known or found.said
    told = {"applied": list(known.applied), "through": known.through}
    session.execute(
        f"""INSERT INTO {schema}.takeovers (tool, place, said, newest, tool_version, run_id, told)
 VALUES (%s, %s, %s, %s, %s, %s, %s)""",  # noqa: S608 -- a checked name
        [
            layout.tool, found.place, found.digest, newest or found.newest, __version__,
            session.config.run_id, json.dumps(told),
        ],
    )  # fmt: skip


def begin(session: Session, layout: Foreign, found: Found | None = None) -> None:
    """Keep what the history of the folder's tool says, or that there is none where it would be.

    Only of one that speaks of what is recorded here: another is a neighbour's, or nobody can tell.
    Where anything is kept already, that stays. Call as `remember`.
    """
    if tables.there(session, "takeovers") and _any(session):
        return
    if found is None:
        nothing = Found(takeover.usual(session, layout), Said({}))
        if takeover.believed(session, nothing.place) is None:
            remember(session, layout, nothing, _ABSENT)
    elif takeover.usual(session, layout) == found.place and _shares(session, layout, found):
        remember(session, layout, found)


def _any(session: Session) -> bool:
    query = f"SELECT EXISTS (SELECT FROM ONLY {session.config.schema}.takeovers)"  # noqa: S608 -- a checked name
    (row,) = session.execute(query).fetchall()
    return bool(row[0])


def _shares(session: Session, layout: Foreign, found: Found) -> bool:
    """Tell whether a history speaks of what is recorded here."""
    return any(map(_telling(layout, found.said), _recorded(session)))


def watch(session: Session, layout: Foreign, files: Sequence[Migration]) -> None:
    """Make sure of what is due, as `require_new`, and begin to watch where nobody did yet."""
    begin(session, layout, require_new(session, layout, files))


def require_new(session: Session, layout: Foreign, files: Sequence[Migration]) -> Found | None:
    """Make sure that no file is due which the other tool has applied; return its history.

    What it said before may run again here once it was taken back. Raises HistoryConflict. Where its
    history cannot be told from another, or not be believed, a person has vouched.
    """
    try:
        found = takeover.look(session, layout, files)
    except HistoryConflict:
        return None
    if found is None:
        return found
    due, known = _due(session, layout, files)
    told = {file.version: file for file in takeover.sure(session, layout, found, files)}
    newest = max((file.version for file in files if file.version not in due), default=0)
    again = [
        file
        for version, file in told.items()
        if version in due
        and version not in known
        # one row may speak of all below it: not of a file that has come later
        and (layout.key(file) in found.said.applied or version > newest)
    ]
    if again:
        last = again[-1]
        between = [
            due[version] for version in due if version < last.version and version not in told
        ]
        names = ", ".join(file.name for file in again[:_FEW])
        raise HistoryConflict(
            "takeover.refused",
            f"{layout.tool} has applied {names} ({found.place}), which is not recorded here: it "
            "would run a second time",
            f"{_ONE} Stop {layout.tool}; what it applied is recorded without running it: "
            f"`adopt --through {last.written}`.{_also(between, layout.tool)}",
            **again[0].named,
        )
    return found


def _also(files: Sequence[Migration], tool: str) -> str:
    """Say what is recorded along with others though nobody ran it, and what runs it then."""
    if not files:
        return ""
    names = ", ".join(file.written for file in files[:_FEW])
    return f" That records {names} as well, which {tool} has not applied: `force` runs it then."


def _due(
    session: Session, layout: Foreign, files: Sequence[Migration]
) -> tuple[dict[int, Migration], Container[int]]:
    """Return the files that are not recorded, and which of them were there before us.

    All where this role may not read that. A version that is text may have had another number.
    """
    schema = session.config.schema
    rows = session.execute(f"SELECT m.version FROM ONLY {schema}.migrations m").fetchall()  # noqa: S608
    recorded = {version for (version,) in rows}
    due = {file.version: file for file in files if file.version not in recorded}
    query = f"SELECT j.version, j.name FROM ONLY {schema}.journal j WHERE j.event = ANY (%s)"  # noqa: S608
    try:
        with session.connection.transaction():
            ran = session.execute(query, [list(_THERE)]).fetchall()
    except psycopg.errors.InsufficientPrivilege:
        return due, due
    versions, names = {version for version, _ in ran}, {name for _, name in ran}
    before = [
        _telling(layout, each.said)
        for each in (_kept(session) if tables.there(session, "takeovers") else ())
        if each.tool == layout.tool and each.said is not None
    ]
    return due, {
        version
        for version, file in due.items()
        if version in versions or file.name in names or any(said(_record(file)) for said in before)
    }


def _record(file: Migration) -> Record:
    return Record(file.version, file.name, file.checksum, label=file.label or None)


def follow(session: Session, text: bytes | None = None) -> None:
    """Keep what it says after a file of ours that speaks of its table; call in its transaction.

    Some do: a schema that was dumped whole brings the rows of its history with it. What cannot be
    read stays as it was known. Without a text, what it says now is what we begin from.
    """
    for kept in _kept(session):
        table = kept.place.rpartition(".")[2].strip('"')
        if text is not None and not re.search(re.escape(table.encode()), text, re.IGNORECASE):
            continue
        layout = _layout(session, kept.tool)
        with suppress(HistoryConflict, *_GONE), session.connection.transaction():
            said = takeover.read(session, layout, kept.place, patient=False)
            if (found := Found(kept.place, said)).digest != kept.digest:
                remember(session, layout, found)


def vouched(
    session: Session,
    files: Sequence[Migration],
    recorded: Container[str],
    believed: Sequence[Migration],
    through: int,
) -> list[Migration]:
    """Keep what it says now: a person has looked, and vouched for all `through` a version.

    Without a takeover before, it is that of the folder's tool. What it has applied since, and is
    not `recorded` as people write it, is not known by that: it would run again. Nor is what it took
    back: above that version it is pending again. `believed` is what was recorded on that word
    alone. Returns the files without a version that are recorded by it.
    """
    again: list[Migration] = []
    layout = folder.rule(files)
    kept = _kept(session) if tables.there(session, "takeovers") else ()
    for each in kept:
        theirs = layout if layout and layout.tool == each.tool else _layout(session, each.tool)
        now = Found(each.place, takeover.read(session, theirs, each.place))
        if now.digest == each.digest:
            continue
        if left := unsettled(theirs, now, files, recorded):
            _warn(_unvouched(theirs, now, left, alike=_same_names(theirs, files)))
            continue
        _settle(session, theirs, each, now, through)
        says = _telling(theirs, now.said)
        unsaid = [file for file in believed if not says(_record(file))]
        if unsaid and _same_names(theirs, files):
            _warn(_also(unsaid, theirs.tool).strip())
        remember(session, theirs, now)
        again += _run_there(session, theirs, now, files) if theirs is layout else ()
    if not kept and layout is not None:
        with suppress(HistoryConflict):
            if (found := takeover.look(session, layout, files)) is not None:
                there = takeover.applied(layout, found, files)
                here = Said(dict.fromkeys(map(layout.key, there)))
                remember(session, layout, found, known=here)
                if coming := [
                    each for each in _coming(layout, found, files) if each not in recorded
                ]:
                    _warn(_ahead(layout, found, coming))
    return again


def _warn(warning: str) -> None:
    structlog.get_logger().warning("config.warned", warning=warning)


def _ahead(theirs: Foreign, now: Found, coming: Sequence[str]) -> str:
    return (
        f"{theirs.tool} has applied {', '.join(coming)} ({now.place}), newer than every file here: "
        "nobody vouches for that. It is not recorded, and what is due beside it stays refused"
    )


def _settle(session: Session, theirs: Foreign, kept: Kept, now: Found, through: int) -> None:
    """Let the records say what the other tool took back, as far as a person has said it."""
    schema = session.config.schema
    back = _taken_back(session, theirs, kept, now)
    if above := [record for record in back if record.version > through]:
        for record in above:
            journal.journal(session, "taken_back", record)
        gone = [record.version for record in above]
        session.execute(f"DELETE FROM {schema}.migrations WHERE version = ANY (%s)", [gone])  # noqa: S608
        _warn(
            f"{theirs.tool} took {_names(above)} back ({now.place}): no longer recorded, and "
            "pending again"
        )
    if stays := [record for record in back if record.version <= through]:
        _warn(
            f"{now.place} says no more that {_names(stays)} {_is(stays)} applied, and stays "
            "recorded as somebody vouched for: is it there?"
        )


def _taken_back(session: Session, theirs: Foreign, kept: Kept, now: Found) -> list[Record]:
    """Return what is recorded, was said to be applied there, and is no more.

    Of what an older version kept that is what was taken over.
    """
    try:
        with session.connection.transaction():
            records = _recorded(session, taken_over=kept.said is None)
    except psycopg.errors.InsufficientPrivilege:
        return []
    said = _telling(theirs, kept.said) if kept.said else lambda _: True
    says = _telling(theirs, now.said)
    return [each for each in records if each.state == "done" and said(each) and not says(each)]


def _recorded(session: Session, *, taken_over: bool = False) -> list[Record]:
    """Return what is recorded, in any way or from the other tool alone."""
    where = "WHERE m.how = 'taken_over'" if taken_over else ""
    rows = session.execute(  # a column that the table lacks is found one level further out
        f"""SELECT r.* FROM (SELECT NULL::text AS label) lacking,
 LATERAL (SELECT m.version, m.name, m.checksum, m.state, label
  FROM ONLY {session.config.schema}.migrations m {where} ORDER BY m.version) r"""  # noqa: S608 -- a checked name
    ).fetchall()
    return [
        Record(version, name, checksum, state, label=label)
        for version, name, checksum, state, label in rows
    ]


def _telling(theirs: Foreign, said: Said) -> Callable[[Record], bool]:
    """Return what tells whether a history says that a version is applied, or nobody can tell."""
    told = {key if theirs.labelled else str(theirs.order(key)) for key in said.applied}
    last = None if said.through is None else theirs.order(said.through)

    def says(record: Record) -> bool:
        if theirs.labelled and record.label is None:  # its file has another name since
            return True
        if theirs.stands(record.name, record.label or "", said):
            return True
        written = record.written if theirs.labelled else str(record.version)
        return written in told or (last is not None and theirs.order(written) <= last)

    return says


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
    return any(
        (each.place, each.digest) == (found.place, found.digest) for each in kept if not each.absent
    )


def _layout(session: Session, tool: str) -> Foreign:
    if tool not in OTHER_LAYOUTS:
        raise tables.damaged(session, f"takeovers names {tool!r}, which is no tool that is known")
    return foreign.layout(tool, session.config.migrations_dir)


def _kept(session: Session) -> list[Kept]:
    """Return what is remembered of each table that is there now.

    Where there was none it is looked for where the tool would make it by now.
    """
    schema = session.config.schema
    rows = session.execute(  # a column that the table lacks is found one level further out
        f"""SELECT r.* FROM (SELECT NULL::text AS told) lacking,
 LATERAL (SELECT t.tool, n.nspname::text, c.relname::text, t.said, t.newest, told
  FROM ONLY {schema}.takeovers t
  LEFT JOIN pg_catalog.pg_class c
   ON c.oid = pg_catalog.to_regclass(t.place) AND c.relkind IN ('r', 'p')
  LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace) r"""  # noqa: S608 -- a checked name
    ).fetchall()
    found = []
    for tool, home, table, digest, newest, told in rows:
        if newest == _ABSENT:
            place = takeover.usual(session, _layout(session, tool))
            if not takeover.believed(session, place):
                continue
        elif table is None:
            continue
        else:  # quoted anew: what is recorded is nothing that we would run
            place = f"{quoting.name(home)}.{quoting.name(table)}"
        found.append(Kept(tool, place, digest, newest, _before(session, told)))
    return found


def _before(session: Session, told: str | None) -> Said | None:
    if told is None:
        return None
    try:
        said = json.loads(told)
        return Said(dict.fromkeys(map(str, said["applied"])), through=said["through"])
    except (ValueError, KeyError, TypeError) as error:
        raise tables.damaged(session, "takeovers says something that we do not write") from error


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
    for kept in _kept(session):
        layout = _layout(session, kept.tool)
        now = Found(kept.place, takeover.read(session, layout, kept.place))
        if now.digest != kept.digest and not (kept.absent and not _shares(session, layout, now)):
            return _moved(kept, now, _taken_back(session, layout, kept, now))
    return None


def _moved(kept: Kept, now: Found, back: Sequence[Record]) -> Problem:
    since = "after its history was taken over"
    gone = f"{now.place} went from {kept.newest} to {now.newest}"
    if back:
        gone = f"it took {_names(back)} back ({now.place})"
    elif kept.absent:
        since = "on a database that had no history of it"
        gone = f"{now.place} says {now.newest}"
    elif kept.newest == now.newest:  # a file that ran again, or an older version
        gone = (
            f"the newest version of {now.place} is still {kept.newest}, but it says something else"
        )
        gone += f"; its last row is of {now.said.last}" if now.said.last else ""
    unfinished = f", and left {', '.join(now.said.broken)} unfinished" if now.said.broken else ""
    hint = f"{_ONE} Stop {kept.tool}; what it applied meanwhile is recorded without running it: "
    hint += "`adopt --through VERSION`, with all its files at hand."
    if back:
        hint += (
            " What it took back above VERSION, which may be 0, is pending again by that. Or let "
        )
        hint += f"{kept.tool} apply it again."
    if now.said.repeated:
        hint += " A file without a version that ran here since may run once more."
    return Problem(f"{kept.tool} was run {since}: {gone}{unfinished}", hint)
