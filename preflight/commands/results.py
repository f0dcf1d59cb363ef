"""How a command's result is shown: a table for people, a document, or events."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import structlog

from preflight.base import console, logs

if TYPE_CHECKING:
    from preflight.base.config import Config


Table = tuple[Sequence[str], Sequence[Sequence[object]]]


def show(
    config: Config,
    form: str | None,
    document: dict[str, Any],
    table: Table,
    events: Iterable[tuple[str, dict[str, Any]]],
) -> None:
    """Give a command's result: a table for people, a document for machines, else events.

    `form` is what was asked for, table or json; without it a terminal gets the table.
    """
    if form == "json":
        sys.stdout.write(json.dumps(document, default=_plain, indent=2) + "\n")
    elif form == "table" or logs.console_wanted(config.log, sys.stdout):
        colour = logs.colour_wanted(sys.stdout, no_color=config.child_env.get("NO_COLOR"))
        sys.stdout.write(console.table(*table, colour=colour) + "\n")
    else:
        log = structlog.get_logger()
        for name, data in events:
            known = {key: value for key, value in data.items() if value is not None}
            (log.error if name == "check.failed" else log.info)(name, **known)


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
