"""`wait`: until the server, or the schema, can be used."""

from __future__ import annotations

import dataclasses
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import structlog

from preflight.base import stop
from preflight.base.errors import ConfigInvalid, FilesInvalid, Pending
from preflight.commands import command
from preflight.files import folder
from preflight.history import ledger, numbers, plan
from preflight.server import sessions

if TYPE_CHECKING:
    import argparse

    from preflight.base.config import Config

POLL_S = (0.2, 1.0)
FILES = -1  # `--schema` without a version: what is on disk


def run(config: Config, *, schema: int | str | None = None, **wrapped: Any) -> None:  # noqa: ANN401 -- options
    """Wait for the server; with `schema` until that version, or FILES, is there. Raises Pending."""
    if wrapped:
        from preflight.commands.wrapping import story  # noqa: PLC0415 -- only of a wrapped one

        story.wait(config, wrapped, schema=schema)
        return
    if schema is None:
        with sessions.connect(config, asked=True):
            return
    files = folder.load(config) if schema == FILES else _perhaps(config)
    retry_s = min(config.lock_retry_s, config.wait_timeout_s)  # whoever holds another's history
    config = dataclasses.replace(config, lock_retry_s=retry_s)
    with sessions.connect(config) as session:
        for waited in stop.looks(*POLL_S):
            known = ledger.read(session, others=schema == FILES, until=session.deadline)
            left = _left(config, files, known, schema)
            if not left:
                return
            if time.monotonic() >= session.deadline:
                raise Pending(
                    "schema.pending",
                    f"{', '.join(left)} not applied after {config.wait_timeout_s:g} s",
                    "Does the job that migrates run, and did it succeed?",
                )
            if not waited:
                structlog.get_logger().info(
                    "server.waiting", reason="migrations are pending", pending=left
                )


def _perhaps(config: Config) -> folder.Folder:
    """Return the files where they can be read: they tell how a version is spelled."""
    with suppress(ConfigInvalid, FilesInvalid):
        return folder.load(config)
    return folder.Folder(())


def _left(
    config: Config, files: folder.Folder, known: plan.History, schema: int | str
) -> list[str]:
    """Name what is not applied yet of what is waited for; raises ConfigInvalid.

    Where versions are numbers, on disk and as recorded, none will ever be a text.
    """
    if schema != FILES:
        if files and not files.open and not any(each.label for each in known.records.values()):
            numbers.of(files, known, schema)
        there = numbers.applied(files, known, schema)
        return [] if there else [f"version {schema}"]
    made = plan.of(config, numbers.settled(files, known), known)
    return [file.name for file in made.todo]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--schema",
        nargs="?",
        type=command.version,
        const=FILES,
        metavar="VERSION",
        help="until every file on disk, or VERSION, is applied; exit 3 at the deadline",
    )
    command.wrapped(parser)


COMMAND = command.Command(
    place=10,
    does="wait for the server; with --schema until migrations are applied (writes nothing)",
    example="entrypoint.py wait --schema     # in front of an app whose migrations a Job runs",
    run=run,
    options=_options,
    wraps=True,
)
