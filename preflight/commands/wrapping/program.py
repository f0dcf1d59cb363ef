"""Can a command's program be started at all? Looked at before a backup is made for it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from preflight.base.errors import ConfigInvalid

HEAD = 256  # bytes of a file that the kernel looks at
_ENV = re.compile(r"env\s+(?P<name>[^\s=-][^\s=]*)")
_BOM = b"\xef\xbb\xbf"
_OTHERS = re.compile(rb"[\x00-\x08\x0e-\x1f\x7f]")  # bytes that no text has
_ON_PATH = (
    "Is it in this image, executable, made for this system (its loader is here), and on the PATH "
    "that the command is given?"
)


def require_startable(program: str, environment: Mapping[str, str]) -> None:
    """Make sure that a program is there and that the kernel starts it; raises ConfigInvalid.

    `environment` is the command's own.
    """
    path = environment.get("PATH", os.defpath)
    found = shutil.which(program, path=path)
    why, hint = _absent(program, path) if found is None else _unfit(found, path)
    if why:
        raise not_started(program, why, hint)


def not_started(program: str, why: str, hint: str = "") -> ConfigInvalid:
    """Return the failure for a program that does not start."""
    return ConfigInvalid(
        "wrap.not_started", f"{program} cannot be started: {why}", hint or _ON_PATH
    )


def _absent(program: str, path: str) -> tuple[str, str]:
    """Say why none is found: it may be there, and no program."""
    folders = [""] if "/" in program else path.split(os.pathsep)
    for each in (Path(folder, program) for folder in folders):
        with suppress(OSError):
            if each.is_file():
                return f"{each} is there and not executable", f"chmod +x {each}"
            if each.is_dir() and "/" in program:
                return f"{each} is a directory", ""
    return "there is no such program", ""


def _unfit(found: str, path: str) -> tuple[str, str]:
    """Say what keeps the kernel from starting a file; nothing where that is not known."""
    try:
        with Path(found).open("rb") as file:
            head = file.read(HEAD)
    except OSError:  # who may not read a program may start it all the same
        return "", ""
    if not head.startswith(b"#!"):
        return ("", "") if _OTHERS.search(head) else _no_script(found, head)
    line = os.fsdecode(head[2:].partition(b"\n")[0])
    if "\r" in line:
        why = (
            f"the line #! of {found} ends with a carriage return, which is taken for a part of the "
            "interpreter's name"
        )
        return why, f"Save it with the line ends of Unix: sed -i 's/\\r$//' {found}"
    if len(head) == HEAD and b"\n" not in head:  # nobody knows where its last word ends
        return "", ""
    interpreter, *_ = line.split() or [""]
    missing = "" if os.access(interpreter, os.X_OK) else interpreter
    through = _ENV.fullmatch(line.strip().rpartition("/")[2])
    if not missing and through and shutil.which(through["name"], path=path) is None:
        missing = through["name"]
    if missing or not interpreter:
        named = f"names the interpreter {missing}, which is not there" if missing else "names none"
        return f"the line #! of {found} {named}", "Is it in this image, and executable?"
    return "", ""


def _no_script(found: str, head: bytes) -> tuple[str, str]:
    before = "has something before its #!" if head.startswith(_BOM) else "has no line #!"
    return (
        f"{found} {before}, so the kernel does not know what runs it",
        f"Begin it with #!/bin/sh, or wrap what runs it: -- sh {found}.",
    )
