"""Can a command's program be started at all? Looked at before a backup is made for it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from preflight.base.errors import ConfigInvalid

HEAD = 256  # bytes of a file that the kernel looks at
_ENV = re.compile(r"env[ \t]+(?P<name>[^ \t\0=-][^ \t\0=]*)")
_BREAK = re.compile(r"[ \t\0]+")  # where the kernel ends an interpreter's name
_BOM = b"\xef\xbb\xbf"
_OTHERS = re.compile(rb"[\x00-\x08\x0e-\x1f\x7f]")  # bytes that no text has
_STARTS = ("", "")  # for all that is known
_ABSENT = "there is no such program"
_HERE = "Is it in this image, and executable?"
_ON_PATH = (
    "Is it in this image, executable, made for this system (its loader is here), and on the PATH "
    "that the command is given?"
)


def require_startable(program: str, environment: Mapping[str, str]) -> None:
    """Make sure that a program is there and that the kernel starts it; raises ConfigInvalid.

    `environment` is the command's own. Of several on its PATH the first that starts is run.
    """
    path = environment.get("PATH", os.defpath)
    first = None
    for each in _places(program, path):
        unfit = _unfit(each, path, named="/" in program)
        if unfit == _STARTS:
            return
        first = first or unfit
    raise not_started(program, *(first or (_ABSENT, "")))


def not_started(program: str, why: str, hint: str = "") -> ConfigInvalid:
    """Return the failure for a program that does not start."""
    return ConfigInvalid(
        "wrap.not_started", f"{program} cannot be started: {why}", hint or _ON_PATH
    )


def _places(name: str, path: str) -> list[Path]:
    """Return where a program of a name may be, in the order in which it is looked for."""
    return [Path(folder, name) for folder in ([""] if "/" in name else path.split(os.pathsep))]


def _unfit(file: Path, path: str, *, named: bool) -> tuple[str, str] | None:
    """Say what keeps a file from being started; None where there is none, or a folder not named."""
    with suppress(OSError):
        if file.is_dir():
            return (f"{file} is a directory", "") if named else None
        if file.is_file():
            if os.access(file, os.X_OK):
                return _unfit_head(file, path)
            return f"{file} is there and not executable", f"chmod +x {file}"
    return None


def _unfit_head(file: Path, path: str) -> tuple[str, str]:
    """Say what keeps the kernel from starting an executable file, by its first line."""
    try:
        with file.open("rb") as opened:
            head = opened.read(HEAD)
    except OSError:  # who may not read a program may start it all the same
        return _STARTS
    if not head.startswith(b"#!"):
        return _STARTS if _OTHERS.search(head) else _no_script(file, head)
    if len(head) == HEAD and b"\n" not in head:  # nobody knows where its last word ends
        return _STARTS
    line = os.fsdecode(head[2:].partition(b"\n")[0]).strip(" \t")
    return _unfit_line(line, file, path)


def _unfit_line(line: str, file: Path, path: str) -> tuple[str, str]:
    """Say that a line names an interpreter, or a program for `env` to find, that is not there.

    A carriage return behind any other argument is left to the interpreter: Perl allows it.
    """
    interpreter = _BREAK.split(line)[0]
    if not interpreter:
        return f"the line #! of {file} names none", _HERE
    missing = "" if os.access(interpreter, os.X_OK) else interpreter
    through = _ENV.fullmatch(line.rpartition("/")[2])
    if not missing and through and not _found(through["name"], path):
        missing = through["name"]
    if not missing:
        return _STARTS
    if missing.endswith("\r"):
        why = (
            f"the line #! of {file} ends with a carriage return, which is taken for a part of the "
            "interpreter's name"
        )
        return why, f"Save it with the line ends of Unix: sed -i 's/\\r$//' {file}"
    return f"the line #! of {file} names the interpreter {missing}, which is not there", _HERE


def _found(name: str, path: str) -> bool:
    """Tell whether a PATH has an executable file of a name."""
    return any(os.access(each, os.X_OK) and each.is_file() for each in _places(name, path))


def _no_script(found: Path, head: bytes) -> tuple[str, str]:
    before = "has something before its #!" if head.startswith(_BOM) else "has no line #!"
    return (
        f"{found} {before}, so the kernel does not know what runs it",
        f"Begin it with #!/bin/sh, or wrap what runs it: -- sh {found}.",
    )
