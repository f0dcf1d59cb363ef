"""Every command, in the order of the help: what the files beside this one say of themselves."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from preflight.commands.command import Command

NO_COMMANDS = {"arguments", "choice", "command", "fleets", "registry", "results"}


def _found() -> dict[str, Command]:
    beside = pkgutil.iter_modules([str(Path(__file__).parent)])
    names = {each.name for each in beside if not each.ispkg}  # a folder holds rooms of one
    rooms = {name: importlib.import_module(f"{__package__}.{name}") for name in names - NO_COMMANDS}
    commands = {name: room.COMMAND for name, room in rooms.items()}
    return dict(sorted(commands.items(), key=lambda item: item[1].place))


COMMANDS = _found()
