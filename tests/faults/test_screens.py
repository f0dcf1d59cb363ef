"""On a terminal each command tells what it tells a machine, and no line is shared."""

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from preflight.base import console
from tests import faults, program, screens, servers
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


class Held(faults.Fault):
    """Keeps rows that are copied back until they are let go."""

    def __init__(self) -> None:
        """Hold them."""
        self.let_go = threading.Event()

    def to_client(self, kind: bytes, message: bytes) -> bytes:
        """Wait with a row."""
        if kind == b"d":
            self.let_go.wait(program.TIMEOUT_S)
        return message


def test_log_for_programs_on_a_terminal_has_whole_lines_beside_a_bar(
    running: Callable[[int], servers.Server], tmp_path: Path
) -> None:
    """A dump takes so long that its event comes while its bar is drawn."""
    world = crash.World(running(DEFAULT_MAJOR), tmp_path / "world", "screens_bar", "backup", None)
    world.between.now = held = Held()
    code, screen = screens.on_terminal(
        *world.story.command,
        env={**world.environment, "PREFLIGHT_LOG": "json"},
        cwd=world.home,
        see=lambda shown: held.let_go.set() if b"backup.progressed" in shown else None,
    )
    world.drop()

    events = [json.loads(line)["event"] for line in screen.lines if line]
    assert (0, "run.finished") == (code, events[-1]), screen.lines
    assert "backup.progressed" in events
    assert [line for line in screen.drawn if line.startswith("backup ")]


def _kinds(events: list[program.Event]) -> set[str]:
    """Return what the lines behind the last event begin with, by what was done."""
    names = {each["event"] for each in events}
    found = {"applied", "go back"} if "migration.applied" in names else set()
    found |= {"backup", "proof"} if "backup.verified" in names else set()
    found |= {"kept"} if any(each.get("kept_as") for each in events) else set()
    return found
