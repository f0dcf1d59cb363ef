"""`adopt`: record what is in the database already, without running it."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import structlog

from preflight import gate
from preflight.apply import contact, verify
from preflight.base.errors import (
    ConfigInvalid,
    FilesInvalid,
    HistoryConflict,
    VerifyFailed,
)
from preflight.commands import command
from preflight.files import folder, reading
from preflight.history import ledger, numbers, plan
from preflight.server import sessions

if TYPE_CHECKING:
    import argparse

    from preflight.base.config import Config
    from preflight.base.errors import Problem
    from preflight.files.migrations import Migration
    from preflight.server.sessions import Session

    Found = tuple[Migration, tuple[verify.Check, ...]]


def run(
    config: Config, *, version: int | str | None = None, through: int | str | None = None
) -> None:
    """Record what is in the database already; raises VerifyFailed when it is not."""
    files = folder.load(config)
    if version is not None and through is not None:
        raise ConfigInvalid(
            "config.arguments", "VERSION and --through VERSION are both given", "Give one of them."
        )
    said = through if version is None else version
    with sessions.connect(config) as session:
        known = gate.recorded(session)
        files = numbers.settled(files, known)
        nothing = _is_nothing(files, through)
        chosen = None if said is None or nothing else numbers.file(files, known, said)
        gate.enter(session)
        ledger.ensure(session, labelled=files.labelled)
        known = ledger.read(session)
        todo = [] if nothing else _todo(files, known, chosen, up_to=through is not None)
        moves = _moves(todo, files, known)
        going = {} if through is not None else moves  # who vouches for all names none of them
        if foreign := _foreign(session, files, known, going):  # they say nothing of this database
            raise HistoryConflict.of("history.conflict", foreign)
        if chosen is not None:
            numbers.refuse_marked(files, todo)

        def record() -> tuple[list[Found], list[str]]:
            with sessions.transaction(session):  # all of it or, when one is refused, nothing
                return _recorded(
                    session, files, todo, known, chosen, moves, through=through is not None
                )

        adopted, already = verify.unlocked(session, record)
        contact.tell_adopted(adopted)
        left = plan.missing(files, ledger.read(session, others=False))
    for problem in left:
        warning = f"{problem.message}: nothing was recorded of that. {problem.hint}"
        structlog.get_logger().warning("config.warned", warning=warning)
    _tell(todo, [file.name for file, _ in adopted], already)


def _recorded(  # noqa: PLR0913, PLR0917 -- what is there, and what of it is asked for
    session: Session,
    files: folder.Folder,
    todo: Sequence[Migration],
    known: plan.History,
    chosen: Migration | None,
    moves: Mapping[int, plan.Record],
    *,
    through: bool,
) -> tuple[list[Found], list[str]]:
    """Record what is there; return it, and the names of what was recorded as it is already."""
    there = contact.adoptable(session, todo, files.layout, len(known.records))
    if chosen is not None:
        there = _there(session, todo, todo if through else [chosen], chosen, known.records)
    adopted: list[Found] = []
    already: list[str] = []
    for file, checks in there:
        if file.version in known.records and ledger.holds(session, file):
            already.append(file.name)  # its checks hold, and there is nothing to settle
        else:
            was = moves.get(file.version)
            ledger.adopt(session, file, by_name=chosen is not None, was=was)
            adopted.append((file, checks))
    if through:  # one file says nothing of the others
        recorded = {record.written for record in known.records.values()}
        recorded |= {file.written for file, _ in adopted}
        believed = [file for file, checks in adopted if not checks]
        last = chosen.version if chosen else -1
        again = _vouch_for_the_other_tool(session, files, recorded, believed, last)
        adopted += [(file, ()) for file in again]
    return adopted, already


def _is_nothing(files: Sequence[Migration], through: int | str | None) -> bool:
    """Tell whether it is said that nothing is there: another tool has taken all of it back."""
    return str(through) == "0" and all(file.written != "0" for file in files)


def _todo(
    files: Sequence[Migration], known: plan.History, chosen: Migration | None, *, up_to: bool
) -> list[Migration]:
    """Return the files to ask for, in order: all, the chosen one, or all up to it."""
    new = [file for file in files if file.version not in known.records]
    if chosen is None:
        return new
    if up_to:
        below = [file for file in files if file.version <= chosen.version]
        return [file for file in below if not _settled(file, known)]
    below = new if chosen in new else []  # what is below a new record must be recorded, too
    return [file for file in below if file.version < chosen.version] + [chosen]


def _tell(todo: Sequence[Migration], adopted: Sequence[str], already: Sequence[str]) -> None:
    """Say what is left to do, and of which file nothing was to be recorded."""
    log = structlog.get_logger()
    for name in already:
        warning = f"{name} is recorded already, as it is: nothing was recorded anew"
        log.warning("config.warned", warning=warning)
    if left := [file.name for file in todo if file.name not in {*adopted, *already}]:
        log.info("plan.made", pending=left, adopts=[])


def _moves(
    todo: Sequence[Migration], files: Sequence[Migration], known: plan.History
) -> dict[int, plan.Record]:
    """Return under which other number each file that is asked for is recorded."""
    moved = plan.renumbered(files, known)
    return {file.version: moved[file.version][1] for file in todo if file.version in moved}


def _foreign(
    session: Session,
    files: Sequence[Migration],
    known: plan.History,
    moves: Mapping[int, plan.Record],
) -> list[Problem]:
    """Name every file that is another migration than the one recorded under its number.

    One with the same statements is the same: `convert` writes it under another name, without the
    other tool's marks. What is about to be recorded under its own number is in nobody's way.
    """
    going = {record.version for record in moves.values()}
    others = [file for file in files if file.version not in going]
    if not plan.foreign(others, known):
        return []
    return plan.foreign([file for file in others if not _rewritten(session, file)], known)


def _rewritten(session: Session, file: Migration) -> bool:
    row = ledger.row_of(session, file.version)
    if row is None:
        return False
    try:
        before = reading.kept(row.version, row.name, "up", row.up_sql.encode())
    except FilesInvalid:
        return False
    return before.said() == file.up.said() and before.transactional == file.up.transactional


def _settled(file: Migration, known: plan.History) -> bool:
    """Tell whether there is nothing to record of a file."""
    return known.done(file.version) and plan.compared(file, known.records[file.version]) == "same"


def _vouch_for_the_other_tool(
    session: Session,
    files: folder.Folder,
    recorded: Container[str],
    believed: Sequence[Migration],
    through: int,
) -> list[Migration]:
    """Take what another tool did since it was taken over for known: a person has looked."""
    from preflight.history import remembered  # noqa: PLC0415 -- only here

    return remembered.vouched(session, files, recorded, believed, through)


def _there(
    session: Session,
    files: Sequence[Migration],
    vouched: Sequence[Migration],
    chosen: Migration,
    recorded: Container[int],
) -> Iterator[tuple[Migration, tuple[verify.Check, ...]]]:
    """Yield the files up to the chosen one, with their checks, which must hold.

    Of those that a person vouches for some may have no checks.
    """
    named = {file.name for file in vouched}  # to compare files is to compare their texts
    for file in files:
        checks = verify.run(session, file.verify) if file.verify else ()
        answer = verify.answer(checks)
        if answer == "unknown" and file.name not in named:
            raise HistoryConflict(
                "history.first_contact",
                f"{file.name} has no verify file that could tell whether it is there",
                f"Nothing was recorded. If you know that it is: `adopt {file.written}`; or all up "
                f"to {chosen.name}: `adopt --through {chosen.written}`.",
                **file.named,
            )
        if answer != "present" and file.name not in named:
            verify.report(file, checks)
            raise HistoryConflict(
                "history.gap",
                f"{file.name} is neither recorded nor in the database as it should be "
                f"({verify.described(checks)}), so {chosen.name} above it cannot be recorded",
                "Nothing was recorded. `up` applies what is absent; what is there in part needs a "
                "look.",
                **file.named,
            )
        if verify.failed(checks):
            verify.report(file, checks)
            raise VerifyFailed(
                "verify.not_there",
                f"{file.name} is not in the database as it should be: {verify.described(checks)}",
                f"Nothing was recorded. {_instead(session, file, recorded)}",
                **file.named,
            )
        yield file, checks


def _instead(session: Session, file: Migration, recorded: Container[int]) -> str:
    """Say what helps with a file that is not there."""
    if file.version not in recorded:
        return "`up` applies what is absent; what is there in part needs a look."
    row = ledger.row_of(session, file.version)
    if row is not None and row.undoing:
        return (
            "It was being taken back: `rollback` finishes that, and `force "
            f"{file.written}` has it there again."
        )
    return f"Put the file back as it was recorded, or `force {file.written}` runs it again."


def refuse_contradiction(file: Migration, record: plan.Record) -> None:
    """Raise what stands against a file that is not what was recorded under its number."""
    if problem := plan.contradiction(file, record):
        raise HistoryConflict.of("history.conflict", [problem])


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--through",
        type=command.version,
        metavar="VERSION",
        help="vouch for all up to this one, in one transaction, with or without verify files",
    )


COMMAND = command.Command(
    place=6,
    does="record files that are in the database already, without running them",
    example="entrypoint.py adopt 1     # also settles an edited checksum or an exit 32",
    run=run,
    options=_options,
    version="this one, also when it has no verify file (default: all whose verify file agrees)",
)
