"""The rule of the house: each wing imports only what stands below it; what only one room may do."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import house

pytestmark = pytest.mark.xdist_group("sources")  # whoever has read them all keeps them
ONLY_IN: dict[str, set[str]] = {
    "os.environ": {"base.config", "base.unloadable"},  # the second can rely on no other room
    "os.environb": {"base.config", "quick.told"},
    "subprocess": {
        "backup.children",
        "backup.clients",
        "rehearsal.local",
        "commands.wrapping.child",
    },  # the clients' processes, a server's, and somebody else's command
    "os.fork": {"files.parser", "commands.fleet.apart", "commands.wrapping.keeper"},
    "structlog.configure": {"base.logs"},
    "signal.signal": {
        "base.stop",
        "commands.wrapping.keeper",
    },  # a process of its own
    "sys.exit": {"entrypoint"},
    "os.uname": {"base.plain"},  # a host's name may be no text
    "socket.gethostname": set(),
}
MOST = 39  # arrows between wings; a new one is a decision, and one less lowers the number


@functools.cache
def named(path: Path) -> frozenset[str]:
    """Return what a file imports and each `module.name` that it mentions."""
    return frozenset(_named(path))


def _named(path: Path) -> Iterator[str]:
    yield from house.imported(path)
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"


def test_every_room_is_in_a_wing() -> None:
    """A new wing is a decision: it gets its place in the list."""
    assert set(house.WINGS) == {house.wing(room) for room in house.rooms()}


def test_arrows_run_down() -> None:
    """A wing imports only what stands below it."""
    order = {name: number for number, name in enumerate(house.WINGS)}

    assert [] == sorted(
        (room, other)
        for room, other in house.arrows()
        if order[house.wing(room)] > order[house.wing(other)]
    )


def test_arrows_between_wings_do_not_grow() -> None:
    """Each arrow more between wings is a way more that a change can travel."""
    assert len(house.between_wings()) <= MOST


def test_no_room_imports_itself_on_a_way_round() -> None:
    """Inside a wing nothing goes in a circle."""
    below = {
        room: {other for one, other in house.arrows() if one == room} for room in house.rooms()
    }
    while free := {room for room, others in below.items() if not others}:
        below = {room: others - free for room, others in below.items() if room not in free}

    assert {} == below


@pytest.mark.parametrize(("what", "owners"), ONLY_IN.items())
def test_one_room_owns_it(what: str, owners: set[str]) -> None:
    """The environment, processes, the log set-up, signals and exits have one place each."""
    users = {room for room, path in house.rooms().items() if what in named(path)}

    assert set() == users - owners


def test_imports_are_found_everywhere(tmp_path: Path) -> None:
    """An import in a function, of a module or of a name in it, counts."""
    file = tmp_path / "example.py"
    file.write_text(
        "from preflight.history import plan\n"
        "import preflight.files.scan\n"
        "def later():\n"
        "    from preflight.backup.take import take\n"
        "    os.environ['X']\n"
    )

    names = set(named(file))
    assert {"preflight.history.plan", "preflight.files.scan", "preflight.backup.take"} < names
    assert "os.environ" in names


def test_page_shows_the_house_as_it_is() -> None:
    """The drawing is made from the imports; `make picture` makes it anew."""
    page = house.PAGE.read_text(encoding="utf-8")

    assert house.picture() in page
    assert house.written(page) == page
