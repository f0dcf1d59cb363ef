"""`wrap`: any migrator behind the gate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from preflight.commands import command

if TYPE_CHECKING:
    from preflight.base.config import Config


def run(config: Config, **said: Any) -> None:  # noqa: ANN401 -- as `command.wrapped` says it
    """Run another tool's command behind the gate, if it has anything to do."""
    from preflight.commands.wrapping import story  # noqa: PLC0415 -- no other command needs it

    story.run(config, **said)


COMMAND = command.Command(
    place=12,
    does="run another tool's migrations behind the same gate",
    example="entrypoint.py wrap --watch migrations/ -- alembic upgrade head",
    run=run,
    options=command.wrapped,
    wraps=True,
)
