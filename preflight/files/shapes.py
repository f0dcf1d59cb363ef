"""Whose folder it is, by the names in it."""

from __future__ import annotations

import re
from pathlib import Path

from preflight.files import reading
from preflight.files.layout import NATIVE

_NUMBERED = re.compile(r"[0-9]+_.*\.sql")
_PAIR = re.compile(r"[0-9]+_.*\.(?:up|down)\.sql")
_FLYWAY = re.compile(r"(?:[VUB][0-9][0-9._]*__.*|R__.*)\.sql")
_UNBOUND = b"-- no-transaction"


def marks(directory: Path) -> dict[str, str]:
    """Return which file has what tool's marks, whatever the file is called."""
    found: dict[str, str] = {}
    try:
        paths = [each for each in directory.iterdir() if each.suffix == ".sql" and each.is_file()]
        for path in sorted(paths):
            if (said := reading.marked(path.read_bytes().replace(b"\r\n", b"\n"))) is not None:
                found[path.name] = said
    except OSError:
        pass  # it is said where the folder is read
    return found


def tool(directory: Path) -> str | None:
    """Return whose folder it is; None when the names say nothing."""
    try:
        names = sorted(each.name for each in directory.iterdir() if not each.name.startswith("."))
    except OSError:
        return None
    inside = {name for each in names for name in _beside(directory / each)}
    files = [name for name in names if name.endswith(".sql")]
    ours = any(map(NATIVE.source, files))  # with a file in it that is misnamed
    pairs = not ours and any(map(_PAIR.fullmatch, files))
    signs = {
        "sqitch": "sqitch.plan" in names,
        "prisma": "migration_lock.toml" in names or "migration.sql" in inside,
        "diesel": "up.sql" in inside,
        "sqlx": not ours
        and any(_unbound(directory / name) for name in filter(_NUMBERED.fullmatch, files)),
        "golang-migrate": pairs,
        "flyway": not ours and any(map(_FLYWAY.fullmatch, [*files, *inside])),
        "graphile": "committed" in names,
    }
    return next((name for name, there in signs.items() if there), None)


def _beside(path: Path) -> list[str]:
    try:
        return [each.name for each in path.iterdir()] if path.is_dir() else []
    except OSError:
        return []


def _unbound(path: Path) -> bool:
    """Tell whether a file begins with the mark of sqlx."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(_UNBOUND)) == _UNBOUND
    except OSError:
        return False
