"""`wait`: until the server, or the schema, can be used."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import structlog

from preflight.base import stop
from preflight.base.errors import (
    Pending,
)
from preflight.commands import command
from preflight.files import reading
from preflight.history import ledger, plan
from preflight.server import sessions

if TYPE_CHECKING:
    import argparse

    from preflight.base.config import Config

POLL_S = (0.2, 1.0)
FILES = -1  # `--schema` without a version: what is on disk


def run(config: Config, *, schema: int | None = None) -> None:
    """Wait for the server; with `schema` until that version, or FILES, is there. Raises Pending."""
    if schema is None:
        with sessions.connect(config, asked=True):
            return
    files = reading.load(config.migrations_dir) if schema == FILES else ()
    with sessions.connect(config) as session:
        known = ledger.read(session)
        told = False
        while True:
            if schema != FILES:
                left = [] if known.done(schema) else [f"version {schema}"]
            else:
                made = plan.make(files, known, ahead=config.ahead, out_of_order=config.out_of_order)
                left = [file.name for file in made.todo]
            if not left:
                return
            if time.monotonic() >= session.deadline:
                raise Pending(
                    "schema.pending",
                    f"{', '.join(left)} not applied after {config.wait_timeout_s:g} s",
                    "Does the job that migrates run, and did it succeed?",
                )
            if not told:
                told = True
                structlog.get_logger().info(
                    "server.waiting", reason="migrations are pending", pending=left
                )
            stop.sleep(random.uniform(*POLL_S))  # noqa: S311 -- jitter, not a secret
            known = ledger.read(session)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--schema",
        nargs="?",
        type=command.version,
        const=FILES,
        metavar="VERSION",
        help="until every file on disk, or VERSION, is applied; exit 3 at the deadline",
    )


COMMAND = command.Command(
    place=10,
    does="wait for the server; with --schema until migrations are applied (writes nothing)",
    example="entrypoint.py wait --schema     # in front of an app whose migrations a Job runs",
    run=run,
    options=_options,
)
