"""Which arguments of a command name the live database, and what they become; pure.

Only what says so is led: a value that is the live server's, behind an option of that name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from preflight.commands.wrapping import words

_OPTION = re.compile(r"--?(?P<name>[A-Za-z][\w.-]*)(?P<equals>=(?P<value>.*))?", re.DOTALL)
_SHORT = re.compile(r"-(?P<name>[hpUd])(?P<value>[^-].*)", re.DOTALL)
_SHORTS = {"h": "host", "p": "port", "U": "user", "u": "user", "d": "database"}
_LIBPQ = re.compile(r"psql|pgbench|pg_\w+|vacuumdb|reindexdb|clusterdb|createuser|dropuser")
_INLINE = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True, slots=True)
class Said:
    """An option's value: which argument holds it, behind which beginning of that."""

    at: int
    begins: str
    kind: str
    value: str
    short: bool = False  # one letter, which may mean anything


def groups(arguments: Sequence[str]) -> dict[str, list[Said]]:
    """Return what options say of a database, by what stands before their last word."""
    found: dict[str, list[Said]] = {}
    for at, text in enumerate(arguments):
        option = _OPTION.fullmatch(text)
        stem, kind = _named(option["name"]) if option else ("", "")
        short = option is not None and option["name"] in _SHORTS
        if option and kind and option["equals"]:
            begins = text[: len(text) - len(option["value"])]
            found.setdefault(stem, []).append(Said(at, begins, kind, option["value"], short))
        elif kind and at + 1 < len(arguments) and not arguments[at + 1].startswith("-"):
            found.setdefault(stem, []).append(Said(at + 1, "", kind, arguments[at + 1], short))
        elif not kind and (glued := _SHORT.fullmatch(text)):
            said = Said(at, text[:2], _SHORTS[glued["name"]], glued["value"], short=True)
            found.setdefault("", []).append(said)
    return found


def _named(option: str) -> tuple[str, str]:
    if option in _SHORTS:
        return "", _SHORTS[option]
    *stem, last = re.split(r"[._-]", option.lower())
    return "_".join(stem), words.KINDS.get(last, "")


def are_libpq(arguments: Sequence[str]) -> bool:
    """Tell whether one of the programs that come with PostgreSQL is called."""
    return any(_LIBPQ.fullmatch(PurePath(each).name) for each in arguments[:3] if each)


def inline(arguments: Sequence[str]) -> dict[str, int]:
    """Return the variables that `env NAME=value COMMAND` sets, and which argument does."""
    if not arguments or PurePath(arguments[0]).name != "env":
        return {}
    found: dict[str, int] = {}
    for at, text in enumerate(arguments[1:], 1):
        match = _INLINE.fullmatch(text)
        if match:
            found[match[1]] = at
        elif not text.startswith("-") and not arguments[at - 1].startswith("-"):
            break
    return found


def left(
    arguments: Sequence[str], database: str, hosts: Collection[str], ports: Collection[str]
) -> list[int]:
    """Return which arguments still seem to name the live database, and could not be led.

    Where the copy is on the same server, there are no `hosts` and only the database's name tells.
    """
    whole = {*hosts} - _LOOPBACK
    known, at = ("|".join(map(re.escape, sorted(each))) for each in (whole, ports))
    name = re.escape(database)
    end = r"(?![\w.-])"
    patterns = [rf"(?:-d ?|--dbname[= ]|dbname=|PGDATABASE=)['\"]?{name}{end}"]
    if hosts:
        where = rf"(?:-h ?|host(?:name|addr)?[= ]|PGHOST=|//|@)['\"]?(?:{known}){end}"
        patterns = [where, rf"(?<![\w.-])(?:{known}):(?:{at})(?!\d)"] if whole else ["(?!)"]
    seems = re.compile(rf"(?!\S+://\S+\Z).*(?:{'|'.join(patterns)})", re.DOTALL)  # no URL by itself
    found = [at for at, text in enumerate(arguments) if seems.match(text)]
    return sorted({*found, *(at for at, text in enumerate(arguments) if text in whole)})
