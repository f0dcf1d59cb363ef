"""On a terminal each command tells what it tells a machine, and no line is shared."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from preflight.base import console
from tests import program, screens, servers
from tests.conftest import DEFAULT_MAJOR
from tests.faults import crash
from tests.screens import COLUMNS

STORIES = ("up", "rollback", "force", "adopt", "backup", "restore", "swap", "wrap")
BEGINS = re.compile(r"\d\d:\d\d:\d\d [\S ] ")


@pytest.mark.parametrize("told", STORIES)
def test_terminal_has_what_the_log_has_and_each_line_for_itself(
    running: Callable[[int], servers.Server], tmp_path: Path, told: str
) -> None:
    """A bar leaves nothing, and after the last event stands what it was about, to be typed."""
    how = {} if told == "wrap" else {"PREFLIGHT_REHEARSE": "auto"}
    server = running(DEFAULT_MAJOR)
    world = crash.World(server, tmp_path / "world", f"screens_{told}", told, how)
    world.keep()
    logged = world.run(**how)
    world.again()
    code, screen = screens.on_terminal(*world.story.command, env=world.environment, cwd=world.home)
    world.drop()

    assert (0, 0) == (logged.code, code), f"{logged}\n{screen.lines}"
    lines = [line for line in screen.lines if line]
    odd = [line for line in lines if not BEGINS.match(line) and not line.startswith(console.INDENT)]
    assert [] == odd
    assert [] == screen.broken
    assert [] == [line for line in screen.drawn if len(line) >= COLUMNS]
    first = max(n for n, line in enumerate(lines) if BEGINS.match(line))
    assert _kinds(logged.events) <= {line.strip().split("  ")[0] for line in lines[first + 1 :]}


def _kinds(events: list[program.Event]) -> set[str]:
    """Return what the lines behind the last event begin with, by what was done."""
    names = {each["event"] for each in events}
    found = {"applied", "go back"} if "migration.applied" in names else set()
    found |= {"backup", "proof"} if "backup.verified" in names else set()
    found |= {"kept"} if any(each.get("kept_as") for each in events) else set()
    return found
