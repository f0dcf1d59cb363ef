"""What a wrapped command's outcome depends on: its arguments, the watched files, its history."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from preflight.base.errors import ConfigInvalid

# what an editor or an interpreter leaves beside the files
_LEFT = re.compile(r"\..*|.*~|#.*#|.*\.(?:pyc|pyo|swp|swo)|__pycache__", re.DOTALL)
CHUNK = 1 << 20  # bytes
_HINT = "Name with --watch what the command reads, as this container sees it."


def of_files(arguments: Sequence[str], watched: Sequence[Path]) -> str:
    """Return the SHA-256 of the arguments and of what lies below each watched path.

    Names count relative to the path, so another mount point changes nothing. Raises ConfigInvalid.
    """
    found = hashlib.sha256()
    for argument in arguments:
        _add(found, os.fsencode(argument))
    for digest in sorted(map(_below, watched)):
        _add(found, digest)
    return found.hexdigest()


def whole(files: str, history: Iterable[str]) -> str:
    """Return the key: what `of_files` gave, and what the history tables hold."""
    found = hashlib.sha256(files.encode())
    for digest in history:
        _add(found, digest.encode())
    return found.hexdigest()


def _add(found: hashlib._Hash, part: bytes) -> None:
    """Add a part with its length: no two lists of parts are the same bytes."""
    found.update(b"%d:" % len(part))
    found.update(part)


def _below(path: Path) -> bytes:
    """Return the digest of a watched path."""
    try:
        root = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise _wrong(path, getattr(error, "strerror", None) or "it leads in a circle") from error
    found, count = hashlib.sha256(), 0
    for name, file in sorted(_files(path, root), key=lambda pair: os.fsencode(pair[0])):
        count += 1
        _add(found, os.fsencode(name))
        _add(found, _hash(file))
    if not count:
        raise _wrong(path, "there is no file below it")
    return found.digest()


def _files(path: Path, root: Path) -> Iterator[tuple[str, Path]]:
    """Yield each file with its name below the root; a file is its own root, with an empty name."""
    if not root.is_dir():
        _require_file(path, root)
        yield "", root
        return
    places: list[tuple[str, Path, tuple[Path, ...]]] = [("", root, (root,))]
    while places:
        prefix, place, above = places.pop()
        try:
            names = os.listdir(place)  # noqa: PTH208 -- names, not paths
        except OSError as error:
            raise _wrong(place, error.strerror) from error
        for name in names:
            if _LEFT.fullmatch(name):
                continue
            there = _inside(place / name, root)
            if not there.is_dir():
                _require_file(place / name, there)
                yield f"{prefix}{name}", there
            elif there in above:
                raise _wrong(place / name, "it is a link to a directory that it lies in")
            else:
                places.append((f"{prefix}{name}/", there, (*above, there)))


def _inside(path: Path, root: Path) -> Path:
    """Return where a path leads, which must be below the root."""
    try:
        there = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise _wrong(path, getattr(error, "strerror", None) or "it leads in a circle") from error
    if not there.is_relative_to(root):
        raise _wrong(path, f"it is a link out of {root}")
    return there


def _require_file(path: Path, there: Path) -> None:
    try:
        mode = there.stat().st_mode
    except OSError as error:
        raise _wrong(path, error.strerror) from error
    if not stat.S_ISREG(mode):
        raise _wrong(path, "it is neither a file nor a directory")


def _hash(file: Path) -> bytes:
    found = hashlib.sha256()
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as content:
            while chunk := content.read(CHUNK):
                found.update(chunk)
    except OSError as error:
        raise _wrong(file, error.strerror) from error
    return found.digest()


def _wrong(path: Path, why: str | None) -> ConfigInvalid:
    return ConfigInvalid("wrap.watch", f"{path} cannot be watched: {why}", _HINT)
