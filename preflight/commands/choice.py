"""Which command the arguments mean; the parser is loaded only where there is something to parse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
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
    from preflight.commands import registry  # noqa: PLC0415 -- see above

    said = parser.parse(arguments)
    story = registry.COMMANDS[said.name].run or up
    if not {"targets", "each_database", "waves"}.isdisjoint(said.options):
        from preflight.commands import fleets  # noqa: PLC0415 -- only over many

        story = partial(fleets.run, said.name, None if story is up else story)
    return partial(story, **said.options), said.name, "form" in said.options
