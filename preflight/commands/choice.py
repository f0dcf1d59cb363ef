"""Which command the arguments mean; the parser is loaded only where there is something to parse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from preflight.base.config import Config

Story = Callable[["Config"], None]


def made(arguments: Sequence[str], up: Story) -> tuple[Story, str, bool]:
    """Return the command to run, its name, and whether its result has stdout for itself.

    Raises ConfigInvalid; prints help and exits for --help.
    """
    if not arguments or list(arguments) == ["up"]:
        return up, "up", False  # every pod start: no parser
    from preflight.commands import arguments as parser  # noqa: PLC0415 -- see above

    said = parser.parse(arguments)
    if said.name == "up":
        return up, "up", False
    from preflight.commands import stories  # noqa: PLC0415 -- see above

    story = stories.STORIES[said.name]
    return lambda config: story(config, said), said.name, said.result is not None
