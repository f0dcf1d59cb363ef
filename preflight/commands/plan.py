"""`plan`: what `up` would do, statement by statement."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import structlog

from preflight import gate
from preflight.apply import contact
from preflight.base import console
from preflight.commands import check, command, results
from preflight.files import due, folder, planned
from preflight.history import ledger, numbers, plan
from preflight.server import sessions

if TYPE_CHECKING:
    import argparse

    from preflight.base.config import Config
    from preflight.files.migrations import Migration
    from preflight.files.planned import Planned
    from preflight.server.sessions import Session


UNKNOWN = "not known"
BLOCKER = ("pid", "application", "user", "state", "age_s", "kind", "gid")  # what is told of one


def run(
    config: Config,
    *,
    form: str | None = None,
    rehearse: bool = False,
    tried: gate.Tried | None = None,
    **wrapped: Any,  # noqa: ANN401 -- options
) -> None:
    """Show what `up` would do, statement by statement; raises what would stop it.

    `tried` is what it took on a copy, where others were tried there, too.
    """
    if wrapped:
        from preflight.commands.wrapping import story  # noqa: PLC0415 -- only of a wrapped one

        story.plan(config, wrapped, form, rehearse=rehearse)
        return
    files = folder.load(config)
    with sessions.connect(config) as session:
        known = gate.recorded(session)
        files = numbers.settled(files, known)
        made = plan.of(config, files, known)
        adoptable, problem = contact.first_look(session, files, known)
        if problem:
            raise problem
        due.require(
            due.scripts(
                file
                for file in made.todo
                if file.name not in adoptable and file.version not in known.records
            )
        )
        todo = [file for file in made.todo if file.name not in adoptable]
        if todo:
            ledger.require_writable(session)
        gate.tell_ahead(made.ahead)
        resumes = part_way(session, todo, known)
        with ledger.looking(session):
            told_of = [planned.each(file, resumes.get(file.name, 0)) for file in todo]
            found = [statement for each in told_of for statement in each.statements]
            statements = _looked_at(session, found)
        database = session.facts.database if session.facts else config.database
        adopted = [file.name for file in made.todo if file.name in adoptable]
        names = [file.name for file in todo]
        more = _told(resumes, sum(each.untold for each in told_of))
        structlog.get_logger().info("plan.made", pending=names, adopts=adopted, **more)
        if rehearse and todo:
            costs, problem = tried or gate.tried(session, files, todo)
            statements = measured(statements, costs)
    told = [_data(statement, measured=rehearse) for statement in statements]
    document = {
        "database": database,
        "adopts": adopted,
        "pending": [file.name for file in todo],
        **more,
        "statements": told,
    }
    events = [("statement.planned", _without_nothing(each)) for each in told]
    table = _measured_table(statements) if rehearse else planned_table(statements)
    if untold := more.get("statements_untold"):
        row = ("", f"and {untold:,} more, only counted", *[""] * (len(table[0]) - 2))
        table[1].append(row)
    nothing = "nothing is pending"
    if adopted:
        nothing += f"; there already, and recorded by the next `up`: {', '.join(adopted)}"
    results.show(config, form, document, table, events, nothing=nothing, failure=problem)
    if problem:
        raise problem


def _looked_at(session: Session, statements: Sequence[Planned]) -> list[Planned]:
    """Return the statements with their locks on tables that are there, and who is in the way."""
    from preflight.server import lookup  # noqa: PLC0415 -- other commands do without

    known = lookup.Lookup(session)
    return [known.over(statement) for statement in statements]


def part_way(session: Session, todo: Sequence[Migration], known: plan.History) -> dict[str, int]:
    """Return after how many statements files go on that stopped part-way; raises NeedsRepair."""
    begun = [file for file in todo if file.version in known.records]
    if not begun:
        return {}
    with ledger.looking(session):
        if repair := check.stuck(session, begun, known):
            raise repair
    done = {row.version: row.statements_done or 0 for row in ledger.listing(session)}
    return {file.name: done[file.version] for file in begun if done.get(file.version)}


def _told(resumes: dict[str, int], untold: int) -> dict[str, Any]:
    known = {"resumes_after": resumes, "statements_untold": untold}
    return {key: value for key, value in known.items() if value}


def measured(
    statements: Sequence[Planned], costs: Mapping[tuple[str, int], dict[str, Any]]
) -> list[Planned]:
    """Return the statements with what they took on a copy."""
    return [
        dataclasses.replace(each, measured=costs.get((each.of.up.file, each.start)))
        for each in statements
    ]


def _data(statement: Planned, *, measured: bool) -> dict[str, Any]:
    blocked = [{key: getattr(each, key) for key in BLOCKER} for each in statement.blocked_by]
    told = {**statement.data(), "blocked_by": blocked}
    return told | ({"measured": statement.measured} if measured else {})


def _without_nothing(told: dict[str, Any]) -> dict[str, Any]:
    """Return what an event has; version 0 and a statement outside a transaction say something."""
    return {
        key: value
        for key, value in told.items()
        if value not in (None, []) and (key != "unknown" or value)
    }


def planned_table(statements: Sequence[Planned]) -> tuple[Sequence[str], list[Sequence[object]]]:
    """Return a plan as a table for people."""
    heads = ("place", "does", "lock", "destroys", "blocked now by")
    return heads, [
        (
            f"{statement.of.padded}:{statement.line}",
            _short(statement.does),
            console.some([f"{lock.mode} on {lock.table}" for lock in statement.locks])
            or (UNKNOWN if statement.unknown else ""),
            _short(statement.destroys or (UNKNOWN if statement.lost_unknown else "")),
            ", ".join(
                f"prepared transaction {each.gid!r}"
                if each.gid
                else f"pid {each.pid}{f' ({each.kind})' if each.kind else ''}"
                for each in statement.blocked_by
            ),
        )
        for statement in statements
    ]


def _measured_table(statements: Sequence[Planned]) -> tuple[Sequence[str], list[Sequence[object]]]:
    heads = ("place", "does", "took", "lock", "rewrites", "destroys", "blocked now by")
    _, rows = planned_table(statements)
    return heads, [
        (place, does, *(console.costs(found) if found else (None, lock, None)), destroys, blocked)
        for statement, (place, does, lock, destroys, blocked) in zip(statements, rows, strict=True)
        for found in [statement.measured]
    ]


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"  # noqa: PLR2004 -- a table must fit


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rehearse",
        action="store_true",
        default=None,
        help="try it on a restored copy, with times",
    )
    command.wrapped(parser)


COMMAND = command.Command(
    place=2,
    does="show what `up` would do: each statement, its locks, what it destroys, what blocks it now",
    example="entrypoint.py plan --rehearse --table",
    run=run,
    fleet=True,
    options=_options,
    result=True,
    wraps=True,
)
