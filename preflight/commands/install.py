"""`install`: copy the program out of its image, to run in the app's."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from preflight.base.errors import ConfigInvalid
from preflight.commands import command

if TYPE_CHECKING:
    import argparse

    from preflight.base.config import Config

APP = Path(__file__).resolve().parents[2]
BUILD = "build-id"  # image/assemble.py: a hash of all that lies in the directory
BIN = "bin"
PART = ".part"
PREFIX = ".pg-preflight-"


def run(_config: Config, *, directory: Path, home: Path | None = None) -> None:
    """Copy everything below `home` into a directory; raises ConfigInvalid.

    The copy has a name of its own until it is whole; `bin` is a link that is turned to it at once.
    The version before it stays: a run may be at work with it, and loads some of it late.
    """
    home = home or APP.parent
    try:
        build = (home / BUILD).read_text(encoding="ascii").strip()
    except OSError as error:
        raise ConfigInvalid(
            "install.not_here",
            "this is not the image: there is no program here that could be copied",
            "Run the image: `docker run --rm -v shared:/shared IMAGE install /shared`.",
        ) from error
    try:
        copied, left = _copied(home, directory, f"{PREFIX}{build}")
    except (OSError, shutil.Error) as error:
        raise ConfigInvalid(
            "install.failed",
            f"nothing was installed in {directory}: {_reason(error)}",
            "Name a directory, or a place for one, that this user may write to and that has room "
            "for 50 MB, 130 MB with a server. Run again: what is there so far does no harm.",
        ) from error
    for warning in left:
        structlog.get_logger().warning("config.warned", warning=warning)
    structlog.get_logger().info(
        "install.finished", directory=str(directory), build=build, copied=copied
    )


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}" + (f" ({error.filename})" if error.filename else "")
    found = error.args[0] if error.args else error  # of a tree's copy: a list of all
    return str(found[0][2] if isinstance(found, list) and found else found)


def _copied(home: Path, directory: Path, name: str) -> tuple[bool, list[str]]:
    """Have the copy of that name in a directory, and the one before it, and no other one.

    Tell whether it was made now, and what could not be removed.
    """
    link, target = directory / BIN, directory / name
    if os.path.lexists(link) and not (link.is_symlink() and _ours(link.readlink())):
        raise FileExistsError(0, "there is another `bin`", str(link))
    directory.mkdir(parents=True, exist_ok=True)
    with _alone(directory):
        made = not target.is_dir()
        if made:
            part = directory / f"{name}{PART}"
            _remove(part)
            shutil.copytree(home, part, symlinks=True)
            part.rename(target)
        before = link.readlink().parts[0] if link.is_symlink() else name
        if before == name:  # nobody knows which of the others was the one before
            others = directory.glob(f"{PREFIX}*{PART}")
        else:
            others = (each for each in directory.glob(f"{PREFIX}*") if each.name != before)
        turned = directory / f"{PREFIX}{BIN}{PART}"
        _remove(turned)
        turned.symlink_to(f"{name}/{BIN}")
        turned.replace(link)
        # older versions, and what runs left that were killed
        left = [_left(other) for other in others if other != target]
    return made, [each for each in left if each]


def _left(path: Path) -> str | None:
    """Remove what nobody needs any more; say why it could not be."""
    try:
        _remove(path)
    except (OSError, shutil.Error) as error:
        return f"{path} is needed no more and could not be removed: {_reason(error)}"
    return None


def _ours(link: Path) -> bool:
    return str(link).startswith(PREFIX)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Let one run at a time write there, where the file system has locks."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "directory",
        type=Path,
        metavar="DIR",
        help="where it goes: DIR/bin/pg-preflight starts it, in any image of the same processor",
    )


COMMAND = command.Command(
    place=20,
    does="copy the program out of its image into DIR, a volume that the app's image mounts",
    example="entrypoint.py install /shared     # in an init container",
    run=run,
    options=_options,
)
