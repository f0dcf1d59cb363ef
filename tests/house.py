"""The house as its imports draw it; `make picture` writes it into docs/architecture.md."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

from tests import servers

ROOT = servers.REPOSITORY
PAGE = ROOT / "docs/architecture.md"
# from the top: each imports only what stands below it
WINGS = (
    "entrypoint",
    "quick",
    "commands",
    "run",
    "gate",
    "rehearsal",
    "backup",
    "apply",
    "history",
    "server",
    "files",
    "base",
)
STORY = "entrypoint"
ROOMS_AT_LEAST = 40  # a walk that finds fewer has gone blind


def rooms() -> dict[str, Path]:
    """Return every module of the program by its name below the package: `backup.store`."""
    package = ROOT / "preflight"
    found = {"entrypoint": ROOT / "entrypoint.py"}
    for path in sorted(package.rglob("*.py")):
        if path.name != "__init__.py":
            found[".".join(path.relative_to(package).with_suffix("").parts)] = path
    assert len(found) >= ROOMS_AT_LEAST, f"only {len(found)} rooms were found"
    return found


def imported(path: Path) -> Iterator[str]:
    """Yield each dotted name that a file imports, wherever in the file it does."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{each.name}" for each in node.names)


def wing(room: str) -> str:
    """Return the wing that a room is in."""
    return room.partition(".")[0]


@functools.cache  # every file is parsed
def arrows() -> frozenset[tuple[str, str]]:
    """Return which room imports which."""
    known = rooms()
    return frozenset(
        (room, name.removeprefix("preflight."))
        for room, path in known.items()
        for name in imported(path)
        if name.removeprefix("preflight.") in known and name != room
    )


def between_wings() -> set[tuple[str, str]]:
    """Return which wing imports which other one; the story in the entrypoint is no wing."""
    found = {(wing(room), wing(other)) for room, other in arrows() if room != STORY}
    return {(one, other) for one, other in found if one != other}


def _read_by_the_story() -> set[tuple[str, str]]:
    return {(STORY, wing(other)) for room, other in arrows() if room == STORY}


def picture() -> str:
    """Return the drawing as the page shows it: a table of the wings, and the arrows as Mermaid."""
    known = sorted(rooms())
    lines = ["| wing | what it is | rooms |", "|---|---|---|"]
    for name in WINGS:
        inside = [room.partition(".")[2] for room in known if wing(room) == name and "." in room]
        lines.append(f"| `{name}` | {_said(name)} | {', '.join(inside) or '-'} |")
    lines += ["", "```mermaid", "flowchart TD"]
    lines += [
        f"  {one} --> {other}"
        for one, other in sorted(
            _direct(between_wings() | _read_by_the_story()),
            key=lambda arrow: [WINGS.index(each) for each in arrow],
        )
    ]
    lines += ["```", ""]
    lines.append(
        f"{len(between_wings())} arrows between wings, none up; drawn are those that no other way "
        "implies."
    )
    return "\n".join(lines)


def _said(name: str) -> str:
    """Return the sentence that a wing opens with."""
    path = ROOT / "preflight" / name / "__init__.py"
    path = path if path.exists() else rooms()[name]
    return (ast.get_docstring(ast.parse(path.read_bytes())) or "").partition("\n")[0]


def _direct(pairs: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return the arrows that are not implied by others."""
    below: dict[str, set[str]] = {}
    for name in reversed(WINGS):
        below[name] = {other for one, other in pairs if one == name}
        below[name] |= {far for other in below[name] for far in below.get(other, ())}
    return {
        (one, other)
        for one, other in pairs
        if not any(other in below[via] for first, via in pairs if first == one and via != other)
    }


def written(page: str) -> str:
    """Return the page with the drawing of today."""
    return re.sub(
        r"(?<=<!-- drawn -->\n).*?(?=\n<!-- /drawn -->)",
        lambda _: picture(),
        page,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
