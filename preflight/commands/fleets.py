"""A command over many databases or schemas: each on its own, one outcome for all."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preflight import gate
from preflight.base import console, document, errors, logs
from preflight.base.errors import ConfigInvalid, ExitCode, Failure
from preflight.commands.fleet import apart, story, targets

if TYPE_CHECKING:
    from preflight.base.config import Config
    from preflight.commands.fleet.apart import Outcome
    from preflight.commands.fleet.targets import Target

WAVES = (1, 5)
PLACE = ("migration", "version", "file", "line", "column", "sqlstate")
HEADS = ("target", "outcome", "code", "applied", "why")
PLANNED = ("target", "outcome", "code", "due", "why")


class Broken(Failure):
    """A bug of ours, in the process of a target."""

    exit_code = ExitCode.INTERNAL


class Interrupted(Failure):
    """Somebody ended the process of a target by SIGINT."""

    exit_code = ExitCode.SIGINT


class Ended(Failure):
    """Somebody ended the process of a target by SIGTERM or SIGHUP."""

    exit_code = ExitCode.SIGTERM


def run(  # noqa: PLR0913 -- what the command line says
    name: str,
    story_of_one: Callable[..., None] | None,
    config: Config,
    *,
    targets: Path | None = None,
    each_database: str | None = None,
    waves: Sequence[int] = WAVES,
    form: str | None = None,
    **options: Any,  # noqa: ANN401 -- of the command
) -> None:
    """Run a command, or `up` (None), for every target; raises what the worst one ended with."""
    if "command" in options:
        raise ConfigInvalid(
            "config.arguments",
            "another tool's command is for one database",
            "Run it for each, without --targets and --each-database.",
        )
    if name == "up":
        files = gate.files(config)  # 20 25: before anybody is asked
    chosen = [
        # its own: drafts, copies and backups are named by it
        dataclasses.replace(
            each, config=dataclasses.replace(each.config, run_id=f"{config.run_id}-{number}")
        )
        for number, each in enumerate(_chosen(config, targets, each_database), 1)
    ]
    if story_of_one is None:
        fleet = story.Fleet(files, chosen, waves)
        outcomes, work = fleet.outcomes, fleet.up
    else:
        outcomes = []
        one, more = partial(story_of_one, **options), {"rehearse": bool(options.get("rehearse"))}
        work = partial(_each, name, one, chosen, waves, form, outcomes, **more)
    apart.settle()
    try:
        work()
    finally:
        _show(config, form, chosen, outcomes, PLANNED if name == "plan" else HEADS)
    _raise_worst(chosen, outcomes, goes_on=name == "up")


def _chosen(config: Config, path: Path | None, pattern: str | None) -> list[Target]:
    if path is not None:
        return targets.listed(config, path)
    if pattern is not None:
        return targets.each_database(config, pattern)
    raise ConfigInvalid(
        "config.arguments",
        "--waves is of many: name them",
        "--targets FILE or --each-database LIKE.",
    )


def _each(  # noqa: PLR0913, PLR0917 -- of one command
    name: str,
    command: Callable[..., None],
    chosen: Sequence[Target],
    waves: Sequence[int],
    form: str | None,
    outcomes: list[Outcome],
    *,
    rehearse: bool = False,
) -> None:
    """Run a command that changes none of them for each; where one fails, the others go on."""
    with apart.spoken(outcomes, chosen):
        if name != "backup":
            known = _tried(chosen, outcomes) if rehearse else {}
            ended = {outcome.target.name for outcome in outcomes}
            left = [each for each in chosen if each.name not in ended]
            apart.each(partial(_one, command, form, known), left, max(waves), outcomes.append)
            return
        for group in targets.databases(chosen):  # one backup of a database, for all its schemas

            def done(outcome: Outcome, group: Sequence[Target] = group) -> None:
                outcomes.extend(dataclasses.replace(outcome, target=each) for each in group)

            first = group[0].whole() if len(group) > 1 else group[0]
            apart.each(partial(_one, command, None, {}), [first], 1, done)


def _tried(chosen: Sequence[Target], outcomes: list[Outcome]) -> dict[str, Any]:
    """Try the plans of the schemas of a database on one copy; return by name what came of it.

    Where that cannot be done, it is how each of them ends.
    """
    known: dict[str, Any] = {}
    for group in targets.databases(chosen):

        def done(outcome: Outcome, group: Sequence[Target] = group) -> None:
            if outcome.exit_code:
                outcomes.extend(dataclasses.replace(outcome, target=each) for each in group)
            else:
                known.update(outcome.given)

        if len(group) > 1 or "search_path" in group[0].extra:
            apart.each(partial(story.tried, group), group[:1], 1, done)
    return known


def _one(
    command: Callable[..., None], form: str | None, known: Mapping[str, Any], target: Target
) -> Any:  # noqa: ANN401 -- its document
    if target.name in known:
        command = partial(command, tried=story.heard(known[target.name]))
    config = dataclasses.replace(target.config, log="json")
    if form != "json":
        command(config)
        return None
    said = io.StringIO()
    document.begin()
    failure: Failure | None = None
    with redirect_stdout(said):
        try:
            command(config, form="json")
        except Failure as one:
            failure = one
    given = json.loads(said.getvalue()) if said.getvalue() else {}
    if failure:
        told = ("exit_code", "error")  # of a target they say more, and what leads to it alone
        failure.given = {key: value for key, value in given.items() if key not in told}
        raise failure
    return given


def _show(
    config: Config,
    form: str | None,
    chosen: Sequence[Target],
    outcomes: Sequence[Outcome],
    heads: Sequence[str],
) -> None:
    """Give the result of all: a document, or a table for people; the events are told already."""
    known = {each.target.name: each for each in outcomes}
    rows = [known.get(each.name) or apart.Outcome(each, int(ExitCode.PENDING)) for each in chosen]
    if form == "json":
        document.begin()
        document.give({"targets": {each.target.name: _data(each) for each in rows}})
    elif form == "table" or logs.console_wanted(config.log, sys.stdout):
        colour = logs.colour_wanted(sys.stdout, no_color=config.child_env.get("NO_COLOR"))
        shown = console.table(
            heads, list(map(_row, rows)), colour=colour, width=console.width(sys.stdout)
        )
        logs.give(shown + "\n")


def _data(outcome: Outcome) -> dict[str, Any]:
    told: dict[str, Any] = {"outcome": outcome.word, "exit_code": outcome.exit_code}
    told |= {key: files for key, files in outcome.done.items() if files}
    told |= {"error": outcome.told} if outcome.error else {}
    return told | (outcome.given if isinstance(outcome.given, dict) else {})


def _row(outcome: Outcome) -> Sequence[object]:
    why = (outcome.error or {}).get("message", "")
    done = ", ".join([*outcome.applied, *(f"{each} adopted" for each in outcome.adopted)])
    due = outcome.planned.due if outcome.planned else ""
    return outcome.target.name, outcome.word, outcome.exit_code, done or due, why


def _raise_worst(chosen: Sequence[Target], outcomes: Sequence[Outcome], *, goes_on: bool) -> None:
    """Raise what the worst target ended with; those that nobody came to are behind.

    `goes_on`: the next run of the command does what this one has left.
    """
    ended = [each for each in outcomes if each.exit_code]
    worst = min(ended, key=lambda each: each.rank, default=None)
    if worst is None:
        return
    kinds = {
        kind.exit_code: kind
        for kind in [*vars(errors).values(), Broken, Interrupted, Ended]
        if isinstance(kind, type) and issubclass(kind, Failure) and kind is not Failure
    }
    said = worst.told
    if worst.word == "stopped":
        said.pop("code", None)  # run.stopped is of its own run
    behind = len(chosen) - len(outcomes)
    rest = f" ({behind} are untouched)" if behind else ""
    message = said.pop("message", "it was stopped")
    where = {key: said[key] for key in PLACE if key in said}
    raise kinds[ExitCode(worst.exit_code)](
        said.get("code", "target.stopped"),
        f"{worst.target.name}: {message}{rest}",
        f"{said.get('hint') or 'Run again.'}"
        + " The next run goes on with those that are left." * goes_on,
        **where,
    )
