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
from preflight.files import reading
from preflight.history import ledger, plan
from preflight.server import sessions

if TYPE_CHECKING:
    from preflight.base.config import Config
    from preflight.commands.arguments import Arguments

POLL_S = (0.2, 1.0)


def run(config: Config, said: Arguments) -> None:
    """Wait for the server; with `schema`, until the migrations are applied. Raises Pending."""
    if not said.schema:
        with sessions.connect(config, asked=True):
            return
    files = reading.load(config.migrations_dir) if said.version is None else ()
    with sessions.connect(config) as session:
        known = ledger.read(session)
        told = False
        while True:
            if said.version is not None:
                left = [] if known.done(said.version) else [f"version {said.version}"]
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
