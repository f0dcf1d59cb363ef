"""How a command's result is shown: a table for people, a document, or events."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import structlog

from preflight.base import console, document, logs
from preflight.base.errors import ExitCode

if TYPE_CHECKING:
    from preflight.base.config import Config
    from preflight.base.errors import Failure


Table = tuple[Sequence[str], Sequence[Sequence[object]]]


def ended(failure: Failure | None) -> dict[str, Any]:
    """Return what the document of a command that fails has besides its result, or instead."""
    if failure is None or failure.exit_code == ExitCode.PENDING:
        return {}
    return {"exit_code": int(failure.exit_code), "error": failure.data()}


def show(  # noqa: PLR0913 -- each form's own content
    config: Config,
    form: str | None,
    whole: dict[str, Any],
    table: Table,
    events: Iterable[tuple[str, dict[str, Any]]],
    *,
    nothing: str = "",
    narrow: Table | None = None,
    failure: Failure | None = None,
) -> None:
    """Give a command's result: a table for people, a document for machines, else events.

    `form` is what was asked for, table or json; without it a terminal gets the table. `nothing` is
    said in the place of a table without rows, `narrow` where the terminal has no room for it. The
    document also tells with which `failure` the command is going to end; to be behind is none.
    """
    if form == "json":
        document.give(whole | ended(failure))
    elif form == "table" or logs.console_wanted(config.log, sys.stdout):
        colour = logs.colour_wanted(sys.stdout, no_color=config.child_env.get("NO_COLOR"))
        width = console.width(sys.stdout)
        if narrow and console.widest(*table) > width:
            table = narrow
        shown = console.table(*table, colour=colour, width=width)
        logs.give((shown if table[1] or not nothing else nothing) + "\n")
    else:
        log = structlog.get_logger()
        for name, data in events:
            known = {key: value for key, value in data.items() if value is not None}
            (log.error if name == "check.failed" else log.info)(name, **known)
