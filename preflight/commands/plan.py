"""`plan`: what `up` would do, statement by statement."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import structlog

from preflight import gate
from preflight.apply import contact
from preflight.base import console
from preflight.base.errors import (
    RehearsalFailed,
)
from preflight.commands import command, results
from preflight.files import lasting, reading
from preflight.history import ledger, plan
from preflight.server import ready, sessions

if TYPE_CHECKING:
    import argparse

    from preflight.base.config import Config
    from preflight.files.migrations import Migration
    from preflight.server.sessions import Session


def run(config: Config, *, form: str | None = None, rehearse: bool = False) -> None:
    """Show what `up` would do, statement by statement; raises what would stop it."""
    from preflight.server import watch  # noqa: PLC0415 -- other commands do without

    files = reading.load(config.migrations_dir)
    with sessions.connect(config) as session:
        known = ledger.read(session)
        made = plan.make(files, known, ahead=config.ahead, out_of_order=config.out_of_order)
        adoptable, problem = contact.first_look(session, made.todo, known)
        if problem:
            raise problem
        lasting.require(
            [file.up for file in made.todo if file.version not in {*adoptable, *known.records}]
        )
        todo = [file for file in made.todo if file.version not in adoptable]
        steps = [step for file in todo for step in planned(file)]
        in_the_way = cache(partial(watch.in_the_way, session))  # a file may say one thing often
        with ledger.looking(session):
            for step in steps:
                for item in step["locks"]:
                    if index := item.pop("index", None):
                        item["table"] = watch.table_of(session, index)
                step["locks"] = [item for item in step["locks"] if item["table"]]
                step["blocked_by"] = [
                    found
                    for item in step["locks"]
                    for found in in_the_way(item["table"], item["mode"])
                ]
        database = session.facts.database if session.facts else config.database
        adopted = [file.name for file in made.todo if file.version in adoptable]
        names = [file.name for file in todo]
        structlog.get_logger().info("plan.made", pending=names, adopts=adopted)
        if rehearse and todo:
            try:
                measure(session, files, todo, steps)
            except RehearsalFailed as failure:
                problem = failure
    for step in steps:
        del step["start"]
    document = {
        "database": database,
        "adopts": adopted,
        "pending": [file.name for file in todo],
        "statements": steps,
    }
    events = [("statement.planned", {k: v for k, v in step.items() if v}) for step in steps]
    table = _measured_table(steps) if rehearse else _plan_table(steps)
    nothing = "nothing is pending"
    if adopted:
        nothing += f"; there already, and recorded by the next `up`: {', '.join(adopted)}"
    results.show(config, form, document, table, events, nothing=nothing)
    if problem:
        raise problem


def measure(
    session: Session,
    files: Sequence[Migration],
    todo: Sequence[Migration],
    steps: Sequence[dict[str, Any]],
) -> None:
    """Try the plan on a copy and write beside each of its steps what it took."""
    from preflight.backup import take  # noqa: PLC0415 -- only when asked
    from preflight.rehearsal import meter, trial  # noqa: PLC0415 -- only when asked

    ready.require_writable(session)
    session.grow_up()
    gauge = meter.Meter()

    def look() -> None:
        with take.draft(session, todo) as saved:
            trial.look(session, saved, files, todo, gauge)

    try:
        gate.twice(look)
    finally:  # what passed was measured, whatever came after it
        for step in steps:
            item = gauge.found.get((f"{step['migration']}.sql", step["start"]))
            told = item is not None and step["version"] in gauge.passed
            step["measured"] = item.data() if item and told else None


def planned(file: Migration) -> list[dict[str, Any]]:
    """Return what each statement of a file does."""
    from preflight.files import effects, scan  # noqa: PLC0415 -- only a plan and lint need the parser

    found: list[dict[str, Any]] = []
    new: set[str] = set()  # nobody waits for a table that this file makes
    starts = (statement.start for statement in file.up.statements())
    places = scan.places(file.up.text, starts)
    for number, statement in enumerate(file.up.statements(), 1):
        effect = effects.of(statement.text(file.up.text))
        line, column = next(places)
        if effect.creates:
            new.add(effect.creates)
        found.append(
            {
                "migration": file.name,
                "version": file.version,
                "statement": number,
                "start": statement.start,
                "line": line,
                "column": column,
                "does": effect.does,
                "locks": [
                    {"table": taken.table, "mode": taken.mode}
                    | ({"index": taken.table} if taken.of_index else {})
                    for taken in effect.locks
                    if taken.table not in new
                ],
                "destroys": effect.destroys,
                "external": effect.external,
                "in_transaction": file.up.transactional,
            }
        )
    return found


def _plan_table(steps: Sequence[dict[str, Any]]) -> tuple[Sequence[str], list[Sequence[object]]]:
    heads = ("place", "does", "lock", "destroys", "blocked now by")
    return heads, [
        (
            f"{step['version']:03d}:{step['line']}",
            _short(step["does"]),
            ", ".join(f"{item['mode']} on {item['table']}" for item in step["locks"]),
            step["destroys"] and _short(step["destroys"]),
            ", ".join(f"pid {found['pid']}" for found in step.get("blocked_by", ())),
        )
        for step in steps
    ]


def _measured_table(
    steps: Sequence[dict[str, Any]],
) -> tuple[Sequence[str], list[Sequence[object]]]:
    heads = ("place", "does", "took", "lock", "rewrites", "destroys", "blocked now by")
    _, rows = _plan_table(steps)
    return heads, [
        (place, does, *(console.costs(found) if found else (None, lock, None)), destroys, blocked)
        for step, (place, does, lock, destroys, blocked) in zip(steps, rows, strict=True)
        for found in [step.get("measured")]
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


COMMAND = command.Command(
    place=2,
    does="show what `up` would do: each statement, its locks, what it destroys, what blocks it now",
    example="entrypoint.py plan --rehearse --table",
    run=run,
    options=_options,
    result=True,
)
