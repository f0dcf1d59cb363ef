"""What a wrapped command's outcome depends on: its arguments, the watched files, its history."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from preflight.base.errors import ConfigInvalid

# what an editor or an interpreter leaves beside the files
_LEFT = re.compile(r"\..*|.*~|#.*#|.*\.(?:pyc|pyo|swp|swo)|__pycache__", re.DOTALL)
CHUNK = 1 << 20  # bytes
LONGEST = 1 << 8  # bytes, as no word is
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


def mentions(word: str, arguments: Sequence[str], watched: Sequence[Path]) -> bool:
    """Tell whether a word stands in the arguments, in a file that one names, or in a watched one.

    Names are written in any case in SQL. What cannot be read mentions nothing.
    """
    found = re.compile(rb"(?<![\w$])%s(?![\w$])" % re.escape(os.fsencode(word)), re.IGNORECASE)
    if any(found.search(os.fsencode(argument)) for argument in arguments):
        return True
    named = [Path(each) for each in arguments[1:] if os.path.isfile(each)]  # noqa: PTH113 -- any text
    for path in (*named, *watched):
        with suppress(ConfigInvalid, OSError, RuntimeError):
            root = path.resolve(strict=True)
            if any(_holds(file, found) for _, file in _files(path, root)):
                return True
    return False


def _holds(file: Path, found: re.Pattern[bytes]) -> bool:
    """Tell whether a pattern is found in a file, which may be large."""
    before = b""
    with file.open("rb") as content:
        while chunk := content.read(CHUNK):
            if found.search(before + chunk):
                return True
            before = chunk[-LONGEST:]
    return False


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
