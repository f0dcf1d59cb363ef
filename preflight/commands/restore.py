"""`restore`: put a backup into a new database, or in the live one's place."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from preflight.base.config import Config
    from preflight.commands.arguments import Arguments


def run(config: Config, said: Arguments) -> None:
    """Restore a backup into a new database and, when asked, put it in the live one's place."""
    from preflight.backup import restore, restored  # noqa: PLC0415 -- only when asked

    restore.run(
        config,
        restored.Asked(
            backup=said.backup,
            into=said.into,
            swap=said.swap,
            end_sessions=said.end_sessions,
            again=said.again,
            without=said.without,
        ),
    )
