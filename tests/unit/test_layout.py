"""The rooms of the house: who may import whom, and what only one room may do."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import servers

FILES = {
    path.stem: path
    for path in (
        servers.REPOSITORY / "entrypoint.py",
        *(servers.REPOSITORY / "preflight").glob("[!_]*.py"),
    )
    if path.is_file()
}

VALUES = {"migrations", "sql", "plan", "lasting"}
HELPERS = {"errors", "stop", "config", "logs", "report"}
EVERY_STEP = {*VALUES, *HELPERS, "dial", "server"}
STEPS = {"dial", "server", "lock", "history", "backup", "rehearsal", "apply", "verify"}
STEPS |= {"indexes", "statements", "steps", "watch", "undo", "restore", "store", "sibling"}
STEPS |= {"belongings", "burden", "catalog", "cluster", "local", "meter"}

MAY_IMPORT = {
    "errors": set(),
    "stop": {"errors"},
    "config": {"errors"},
    "sql": {"errors"},
    "migrations": {"errors", "sql"},
    "lasting": {"errors", "sql", "migrations"},
    "plan": {"errors", "sql", "migrations"},
    "report": {"errors", *VALUES},
    "logs": {"errors", "report"},
    "dial": {"stop"},
    "server": {*VALUES, *HELPERS, "dial"},
    "lock": EVERY_STEP,
    "tables": EVERY_STEP,
    "history": {*EVERY_STEP, "verify", "tables"},
    "archive": EVERY_STEP,
    "store": EVERY_STEP,
    "catalog": EVERY_STEP,
    "belongings": {*EVERY_STEP, "sibling"},
    "backup": {*EVERY_STEP, "archive", "belongings", "catalog", "store"},
    "sibling": {*EVERY_STEP, "history", "archive"},
    "burden": EVERY_STEP,
    "local": {*EVERY_STEP, "store"},
    "cluster": {*EVERY_STEP, "history", "sibling", "local"},
    "meter": {*EVERY_STEP, "explain", "statements"},
    "rehearsal": {
        *EVERY_STEP,
        "history",
        "archive",
        "backup",
        "catalog",
        "store",
        "sibling",
        "apply",
        "undo",
        "reach",
        "meter",
        "burden",
    },
    "statements": EVERY_STEP,
    "steps": {*EVERY_STEP, "history", "verify", "statements", "indexes", "watch"},
    "apply": {*EVERY_STEP, "reach", "history", "verify", "statements", "steps", "watch"},
    "verify": {*EVERY_STEP, "statements"},
    "indexes": EVERY_STEP,
    "watch": EVERY_STEP,
    "explain": {"errors", "sql"},
    "reach": {"errors", "sql", "explain"},
    "undo": {*EVERY_STEP, "history", "verify", "statements", "steps", "apply", "watch", "store"},
    "restore": {
        *EVERY_STEP,
        "history",
        "lock",
        "archive",
        "backup",
        "belongings",
        "catalog",
        "store",
        "sibling",
        "arguments",
    },
    "arguments": {"errors"},
    "commands": {*HELPERS, *VALUES, *STEPS, "arguments", "explain"},
    "entrypoint": {*HELPERS, *VALUES, *STEPS, "arguments", "commands"},
}

ONLY_IN: dict[str, str | tuple[str, ...]] = {
    "os.environ": "config",
    "os.environb": "config",
    "os.getenv": "config",
    "subprocess": ("archive", "local"),  # the clients' processes, and a server's
    "structlog.configure": "logs",
    "signal": "entrypoint",
    "sys.exit": "entrypoint",
}


def imported(path: Path) -> Iterator[str]:
    """Yield each dotted name that a file imports, wherever in the file it does."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{each.name}" for each in node.names)


def named(path: Path) -> Iterator[str]:
    """Yield what a file imports and each `module.name` that it mentions."""
    yield from imported(path)
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"


def rooms(path: Path) -> set[str]:
    """Return which rooms a file imports."""
    names = (each.split(".") for each in imported(path))
    found = {parts[1] for parts in names if parts[0] == "preflight" and len(parts) > 1}
    return found - {"__version__"}


def test_every_room_has_its_place() -> None:
    """A new module is a decision: it gets a line in the table above."""
    assert set() == FILES.keys() - MAY_IMPORT.keys()


@pytest.mark.parametrize("room", sorted(FILES.keys() & MAY_IMPORT.keys()))
def test_arrows_run_down(room: str) -> None:
    """A room imports only what lies below it."""
    assert set() == rooms(FILES[room]) - MAY_IMPORT[room]


@pytest.mark.parametrize(("what", "owners"), ONLY_IN.items())
def test_few_rooms_own_it(what: str, owners: str | tuple[str, ...]) -> None:
    """The environment, processes, the log set-up, signals and exits have their places."""
    users = {room for room, path in FILES.items() if what in named(path)}

    assert set() == users - ({owners} if isinstance(owners, str) else {*owners})


def test_imports_are_found_everywhere(tmp_path: Path) -> None:
    """An import in a function, of a module or of a name in it, counts."""
    file = tmp_path / "example.py"
    file.write_text(
        "from preflight import plan\n"
        "import preflight.sql\n"
        "def later():\n"
        "    from preflight.backup import take\n"
        "    os.environ['X']\n"
    )

    assert {"plan", "sql", "backup"} == rooms(file)
    assert "os.environ" in set(named(file))
