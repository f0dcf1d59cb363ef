"""`backup`: make one proven backup."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from preflight import gate
from preflight.commands import command
from preflight.server import lock, ready, sessions

if TYPE_CHECKING:
    from preflight.base.config import Config


def run(config: Config) -> None:
    """Make one verified backup, also with PREFLIGHT_BACKUP=off, and restore it as proof."""
    if config.backup == "off":
        config = dataclasses.replace(config, backup="required")
    with sessions.connect(config) as session:
        session.look()  # whatever the history is like
        ready.require_direct(session)  # a standby can be backed up
        ready.require_schemas(session)
        lock.acquire(session)
        gate.proven(session, (), "backup")


COMMAND = command.Command(
    place=7,
    does="make one backup, and restore it as proof",
    example="entrypoint.py backup",
    run=run,
    fleet=True,
)
