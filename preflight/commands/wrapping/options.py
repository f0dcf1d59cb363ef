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
_NO_PLACE = {"pg_restore", "createuser", "dropuser"}  # what has no dash there is no database
_VALUED = {  # letters behind which a value comes
    "psql": "cdfFhLopPRTUv",
    "pgbench": "bcDfFhIjLMpPRstTU",
    "vacuumdb": "dhjnNpPtU",
    "reindexdb": "dhijpStU",
    "clusterdb": "dhptU",
}
_VALUED_ELSE = "deEfFhjnNpStTUZ"
_VALUED_WORDS = re.compile(
    r"--(?:.*-)?(?:host|port|dbname|user(?:name)?|role|superuser|schema|table|table-data|children|"
    r"index|function|trigger|extension|tablespace|section|format|file|output|command|variable|set|"
    r"pset|separator|encoding|snapshot|jobs|server|filter|compress)"
)
# to these a name of a database is an alias of their settings
_ALIASES = re.compile(r"manage\.py|django(?:-admin(?:\.py)?)?|alembic|artisan|hasura(?:-cli)?")
_LONE = {"database", "db", "name"}
# what stands before NAME where that is no database's
OTHERS = ("SCHEMA", "ROLE", "OWNER", "SECTION", "SERVICE", "USER", "LOGIN", "HOST", "SERVER")
_INLINE = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True, slots=True)
class Said:
    """An option's value: which argument holds it, behind which beginning of that."""

    at: int
    begins: str
    kind: str
    value: str
    name: str  # of the option


def groups(arguments: Sequence[str]) -> dict[str, list[Said]]:
    """Return what options say of a database, by what stands before their last word."""
    found: dict[str, list[Said]] = {}
    for at, text in enumerate(arguments):
        option = _OPTION.fullmatch(text)
        stem, kind = _named(option["name"]) if option else ("", "")
        if option and kind and option["equals"]:
            begins = text[: len(text) - len(option["value"])]
            said = Said(at, begins, kind, option["value"], option["name"])
            found.setdefault(stem, []).append(said)
        elif option and kind and at + 1 < len(arguments) and not arguments[at + 1].startswith("-"):
            said = Said(at + 1, "", kind, arguments[at + 1], option["name"])
            found.setdefault(stem, []).append(said)
        elif not kind and (glued := _SHORT.fullmatch(text)):
            said = Said(at, text[:2], _SHORTS[glued["name"]], glued["value"], glued["name"])
            found.setdefault("", []).append(said)
    return found


def _named(option: str) -> tuple[str, str]:
    if option in _SHORTS:
        return "", _SHORTS[option]
    *stem, last = re.split(r"[._-]", option.lower())
    if last == "name" and stem and stem[-1].upper() in OTHERS:
        *stem, last = stem
        last = last if last in ("user", "host") else ""
    return "_".join(stem), words.KINDS.get(last, "")


def names(arguments: Sequence[str], group: Sequence[Said], *, hosted: bool) -> list[Said]:
    """Return which options of a group surely name a database, though it says no host.

    One letter, or a lone --database, may mean anything, except where something else says the host:
    `hosted`.
    """
    if _libpq(arguments) is not None:
        return [*group]
    if _are_aliases(arguments):
        return []
    alone = not {"host", "port", "user"} & {each.kind for each in group}
    vague = {*_SHORTS, *(_LONE if alone else ())} - ({"database", "db"} if hosted else set())
    return [each for each in group if each.name not in vague]


def vague(arguments: Sequence[str], database: str) -> list[int]:
    """Return which arguments may be the live database's name, or the same of something else."""
    found: list[int] = []
    for group in [] if _are_aliases(arguments) else groups(arguments).values():
        sure = names(arguments, group, hosted=False)
        if not any(each.kind == "host" for each in group):
            names_it = [each for each in group if (each.kind, each.value) == ("database", database)]
            found += [each.at for each in names_it if each not in sure]
    return found


def place(arguments: Sequence[str], database: str) -> int | None:
    """Return which argument of psql or pg_dump is the database, as the first without a dash.

    Behind a long option that we do not know, what is not the live database's name is its value.
    """
    at = _libpq(arguments)
    named = any(each.kind == "database" for group in groups(arguments).values() for each in group)
    if at is None or named or (program := PurePath(arguments[at]).name) in _NO_PLACE:
        return None
    letters = _VALUED.get(program, _VALUED_ELSE)
    takes = re.compile(rf"-[^-{letters}]*[{letters}]")
    for before, text in enumerate(arguments[at + 1 :], at):
        valued = takes.fullmatch(arguments[before]) or _VALUED_WORDS.fullmatch(arguments[before])
        unknown = arguments[before].startswith("--") and "=" not in arguments[before]
        if not text.startswith("-") and not valued and not (unknown and text != database):
            return before + 1
    return None


def _libpq(arguments: Sequence[str]) -> int | None:
    """Return which argument is one of the programs that come with PostgreSQL."""
    found = (at for at, each in enumerate(arguments[:3]) if _LIBPQ.fullmatch(PurePath(each).name))
    return next(found, None)


def _are_aliases(arguments: Sequence[str]) -> bool:
    return any(_ALIASES.fullmatch(PurePath(each).name) for each in arguments[:6])


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
