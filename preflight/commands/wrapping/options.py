"""Which arguments of a command name the live database, and what they become; pure.

Only what says so is led: a value that is the live server's, behind an option of that name.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from preflight.commands.wrapping import words

_OPTION = re.compile(r"--?(?P<name>[A-Za-z][\w.-]*)(?P<equals>=(?P<value>.*))?", re.DOTALL)
_PROPERTY = re.compile(r"\A[DP](?=[a-z][\w-]*\.)")  # of Java's programs: -Dflyway.url
# ends in -d NAME: flags that psql and others have, or any letters of an unknown one of PostgreSQL's
_FLAGS = re.compile(r"-(?:([qXAtewWv1])(?!\w*\1))+d")
_BUNDLE = re.compile(r"-[A-Za-z0-9]{1,5}d")
_GLUED = re.compile(r"-(?P<name>[hpUd])(?P<value>[^-].*)", re.DOTALL)
_SHORTS = {"h": "host", "p": "port", "U": "user", "u": "user", "d": "database"}
_OWN = {"pg_dumpall": {"l": "database"}}
_NAMING = {"-h", "-p", "-U", "-d"}
# what starts another program, by its letters behind which a value comes
_FRONT = {
    "env": "uC",
    "sudo": "ughpCDrtTUR",
    "doas": "uC",
    "runuser": "ugG",
    "nice": "n",
    "nohup": "",
    **dict.fromkeys(("gosu", "su-exec", "setuidgid", "s6-setuidgid"), ""),
}
_AS = {"gosu", "su-exec", "setuidgid", "s6-setuidgid"}  # whose first word is who
_FRONT_WORDS = r"--(?:user|group|host|prompt|chdir|chroot|unset|supp-group)"
_LIBPQ = re.compile(r"psql|pgbench|pg_\w+|vacuumdb|reindexdb|clusterdb|createuser|dropuser")
_NO_PLACE = {"pg_restore", "createuser", "dropuser"}  # what has no dash there is no database
_PLACED = {"psql", "pg_dump", "pgbench", "vacuumdb", "reindexdb", "clusterdb"}  # there it is one
_VALUED = {  # letters behind which a value comes, as each program's own getopt has them
    "psql": "cdfFhLopPRTUv",
    "pg_dump": "deEfFhjnNpStTUZ",
    "pg_dumpall": "dEfhlpSU",
    "pg_restore": "dfFhIjLnNpPStTU",
    "pgbench": "bcdDfFhIjLMpPRstTU",
    "createuser": "acghmpUv",
    "dropuser": "hpU",
    "vacuumdb": "dhjnNpPtU",
    "reindexdb": "dhijpStU",
    "clusterdb": "dhptU",
    "pg_amcheck": "dDhiIjprRsStTU",
    "pg_basebackup": "cdDFhilprsStTUXZ",
    "pg_receivewal": "dDEhpsSUZ",
    "pg_recvlogical": "dEfFhIopPsSU",
    "pg_isready": "dhptU",
}
_VALUED_ELSE = "deEfFhjnNpStTUZ"  # perhaps, of a pg_repack or pg_prove
# behind these comes NAME=value, a variable of the program's own
_ASSIGNING = re.compile(r"-[ev]|-D|--(?:set|var|variable|define|env|extra-vars)")
_ASSIGNING_LETTERS = {"psql": "v", "pgbench": "D"}
_VALUED_WORDS = re.compile(
    r"--(?:.*-)?(?:host|port|dbname|user(?:name)?|role|superuser|schema|table|table-data|children|"
    r"index|function|trigger|extension|tablespace|section|format|file|output|command|variable|set|"
    r"pset|separator|encoding|snapshot|jobs|server|filter|compress)"
)
# to these a name of a database is an alias of their settings
_ALIASES = re.compile(r"manage\.py|django(?:-admin(?:\.py)?)?|alembic|artisan|hasura(?:-cli)?")
# how the variables begin that say the same as a program's options
_OF_PROGRAMS = {"flyway": "flyway", "liquibase": "liquibase_command"}
_LONE = {"database", "db", "name"}
# what stands before NAME where that is no database's
OTHERS = ("SCHEMA", "ROLE", "OWNER", "SECTION", "SERVICE", "USER", "LOGIN", "HOST", "SERVER")
_PAIR = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_OF_DATABASES = re.compile(r"db|database|pg|postgres|sql")
# a whole address in the place of a part: it is led as one
_ADDRESS = re.compile(r"[\s=]|://")
_LIBPQS = re.compile(r"pg(host|hostaddr|port|user|password|database)")
_BEFORE = "before "  # begins the groups of a launcher
PAIRS = "="  # ends what stands before the last word of NAME=value
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
# an option behind which a program's name is its value: --client psql, -U psql, -tool psql
_TAKES = re.compile(r"-(?:[UC]|[A-Za-z]\w{2,})|--(?!no-)[\w.-]+")
_LAUNCHERS = {"u", "p"}  # letters that say something else of timeout, ssh or docker
_SHELL = re.compile(r"(?:ba|da|a|z|k)?sh")
_WHOLE = re.compile(r"(?:\s*\w+\s*=\s*(?:'[^']*'|[^\s']+)(?=\s|\Z))+\s*")


@dataclass(frozen=True, slots=True)
class Said:
    """An option's value: which argument holds it, behind which beginning of that."""

    at: int
    begins: str
    kind: str
    value: str
    name: str  # of the option


def groups(arguments: Sequence[str], known: Collection[str] = ()) -> dict[str, list[Said]]:
    """Return what options say of a database, by what stands before their last word.

    A letter with something glued to it may be any word (-path): where the program is not libpq's it
    counts where that is `known`, as a name of the live database's. NAME=value has groups of its
    own, whose names end with PAIRS.
    """
    found = _groups(arguments, known)
    return {stem: group for stem, group in found.items() if not _is_anybodys(stem, group)}


def _groups(arguments: Sequence[str], known: Collection[str] = ()) -> dict[str, list[Said]]:
    found: dict[str, list[Said]] = {}
    for stem, said in _said(arguments, known):
        if said.kind == "password" or (said.kind != "url" and not _ADDRESS.search(said.value)):
            found.setdefault(stem, []).append(said)
    return found


def _is_anybodys(stem: str, group: Sequence[Said]) -> bool:
    """Tell whether pairs say a host, or who is there: of what, nobody knows."""
    pairs = stem.endswith(PAIRS) and not _OF_DATABASES.search(stem)
    return pairs and not {"database", "port"} & {each.kind for each in group}


def said(group: Sequence[Said], *, libpq: bool) -> dict[str, str]:
    """Return what a group says, by kind: the last counts, and a word before a letter, or `name`."""
    vague = {*_SHORTS, "name"} if not libpq else set[str]()
    ordered = sorted(group, key=lambda each: each.name not in vague)
    return {each.kind: each.value for each in ordered}


_Found = Iterator[tuple[str, Said]]


def _said(arguments: Sequence[str], known: Collection[str]) -> _Found:
    """Yield what each argument says, behind what stands before its last word."""
    libpq = _libpq(arguments)
    own = "" if libpq is None else PurePath(arguments[libpq]).name
    at = program(arguments)
    while at < len(arguments):
        step = 1
        if own in _VALUED and libpq is not None and at > libpq and re.match("-[^-]", arguments[at]):
            name = _valued(arguments, own, at)
            yield from _letter(arguments, at, name, own)
            step = 2 if name and not arguments[at][name + 1 :] else 1
        elif arguments[at].startswith("-") and libpq is not None and at < libpq:
            words = _word(arguments, at, known, flags=False)
            yield from ((f"{_BEFORE}{stem}", said) for stem, said in words)
        elif arguments[at].startswith("-"):
            yield from _word(arguments, at, known, flags=libpq is not None)
        else:
            yield from _pair(at, "", arguments[at])
        at += step


def _valued(arguments: Sequence[str], program: str, at: int) -> int:
    """Return which letter of a bundle (-qXd) is the first behind which a value comes, or 0.

    None comes where another option would be lost for it: a letter may be new, or have been a flag.
    """
    text, following = arguments[at], "".join(arguments[at + 1 : at + 2])
    name = next((n for n, each in enumerate(text[1:], 1) if each in _VALUED[program]), 0)
    option = following in _NAMING or (following[:1] == "-" and text[-1] in _SHORTS)
    return 0 if option and name == len(text) - 1 else name


def _letter(arguments: Sequence[str], at: int, name: int, program: str) -> _Found:
    text = arguments[at]
    begins, value = text[: name + 1], text[name + 1 :]
    if not value and at + 1 < len(arguments):
        at, begins, value = at + 1, "", arguments[at + 1]
    if name and text[name] in _ASSIGNING_LETTERS.get(program, ""):
        yield from _pair(at, begins, value)
    elif name and value and (kind := {**_SHORTS, **_OWN.get(program, {})}.get(text[name])):
        yield "", Said(at, begins, kind, value, text[name])
        yield from _pair(at, begins, value)  # -d dbname=app


def _word(arguments: Sequence[str], at: int, known: Collection[str], *, flags: bool) -> _Found:
    """Yield what an option says; `flags`: its password and TLS have no value."""
    text, option = arguments[at], _OPTION.fullmatch(arguments[at])
    stem, kind = _named(_PROPERTY.sub("", option["name"])) if option else ("", "")
    following = next((each for each in arguments[at + 1 : at + 2] if each[:1] != "-"), None)
    if not option or (flags and kind in ("password", "tls")):
        return
    if kind and option["equals"]:
        begins = text[: len(text) - len(option["value"])]
        yield stem, Said(at, begins, kind, option["value"], option["name"])
    elif option["equals"]:
        yield from _pair(at, text[: len(text) - len(option["value"])], option["value"])
    elif kind and following is not None and _is_value(option["name"], following):
        yield stem, Said(at + 1, "", kind, following, option["name"])
    elif (glued := _GLUED.fullmatch(text)) and glued["value"] in known:
        yield "", Said(at, text[:2], _SHORTS[glued["name"]], glued["value"], glued["name"])


def _is_value(name: str, value: str) -> bool:
    """Tell whether what stands behind a letter may be what that stands for."""
    return name != "p" or re.fullmatch(r"[\d,]+", value) is not None


def _pair(at: int, begins: str, text: str) -> Iterator[tuple[str, Said]]:
    """Yield what NAME=value says; a name is a database's where the word before says so."""
    if pair := _PAIR.fullmatch(text):
        stem, kind = _named(pair[1])
        name = re.split(r"[._-]", pair[1].lower())[-1] == "name"
        if kind and not (name and not _OF_DATABASES.search(stem)):
            yield f"{stem}{PAIRS}", Said(at, f"{begins}{pair[1]}=", kind, pair[2], pair[1])


def assigned(arguments: Sequence[str]) -> set[int]:
    """Return which arguments set a variable of the program's own: it may be no address."""
    return {at for at, text in enumerate(arguments, 1) if _ASSIGNING.fullmatch(text)}


def _named(option: str) -> tuple[str, str]:
    if option in _SHORTS:
        return "", _SHORTS[option]
    *stem, last = re.split(r"[._-]", option.lower())
    if last == "name" and stem and stem[-1].upper() in OTHERS:
        *stem, last = stem
        last = last if last in ("user", "host") else ""
    if libpq := _LIBPQS.fullmatch(last):
        stem, last = [*stem, "pg"], libpq[1]
    return "_".join(stem), "url" if last in ("url", "uri") else words.KINDS.get(last, "")


def beside_urls(arguments: Sequence[str]) -> dict[str, Said]:
    """Return URLs, and who and his password, as variables of the same meaning would be called.

    -Dflyway.url is flyway_url, and so is -url of a program flyway; a `user` without a URL belongs
    to that of a variable, perhaps.
    """
    if _libpq(arguments) is not None or not arguments:
        return {}
    name = PurePath(arguments[min(program(arguments), len(arguments) - 1)]).name
    own = _OF_PROGRAMS.get(name, "options")
    found = [(stem, each) for stem, each in _said(arguments, ()) if len(each.name) > 1]
    wanted = [(stem, each) for stem, each in found if each.kind in ("url", "user", "password")]
    return {f"{stem.removesuffix(PAIRS) or own}_{each.kind}": each for stem, each in wanted}


def names(arguments: Sequence[str], group: Sequence[Said], *, hosted: bool) -> list[Said]:
    """Return which options of a group surely name a database, though it says no host.

    One letter, or a lone --database, may mean anything, except where something else says the host:
    `hosted`.
    """
    if is_libpqs(arguments, group):
        return [*group]
    if _are_aliases(arguments):
        return []
    alone = not {"host", "port", "user"} & {each.kind for each in group}
    vague = {*_SHORTS, *(_LONE if alone else ())} - ({"database", "db"} if hosted else set())
    return [each for each in group if each.name not in vague]


def vague(arguments: Sequence[str], database: str, known: Collection[str] = ()) -> list[int]:
    """Return which arguments may be the live database's name, or the same of something else."""
    pairs = re.compile(rf"(?is)(?:.*\s)?(?:database|db)\s*=\s*'?{re.escape(database)}'?(?!\S).*")
    named = (at for at, text in enumerate(arguments) if pairs.fullmatch(text))
    found = [at for at in named if _WHOLE.fullmatch(arguments[at]) or _is_script(arguments, at)]
    found += [] if _is_known(arguments) else _bundled(arguments, database)
    for group in [] if _are_aliases(arguments) else groups(arguments, known).values():
        sure = names(arguments, group, hosted=False)
        if not any(each.kind == "host" for each in group):
            names_it = [each for each in group if (each.kind, each.value) == ("database", database)]
            found += [each.at for each in names_it if each not in sure]
    return found


def _bundled(arguments: Sequence[str], database: str) -> list[int]:
    """Return which arguments are the database's name behind letters that end in d: -vd app."""
    ends = _FLAGS if _libpq(arguments) is None else _BUNDLE
    pairs = enumerate(itertools.pairwise(arguments), 1)
    return [at for at, (option, value) in pairs if value == database and ends.fullmatch(option)]


def _is_script(arguments: Sequence[str], at: int) -> bool:
    """Tell whether an argument is what a shell runs, behind its -c."""
    shells = any(_SHELL.fullmatch(PurePath(each).name) for each in arguments[: at - 1])
    return shells and re.fullmatch(r"-\w*c", arguments[at - 1]) is not None


def others(
    arguments: Sequence[str], database: str, here: Callable[[str, str], bool], *, hosted: bool
) -> list[int]:
    """Return which arguments name another database of the live server."""
    known = _is_known(arguments)
    found: list[int] = []
    for stem, group in groups(arguments).items():
        libpq = is_libpqs(arguments, group)
        kinds = said(group, libpq=libpq)
        there = here(kinds.get("host", ""), kinds.get("port", ""))
        unsaid = known and libpq and hosted and "host" not in kinds and not stem.endswith(PAIRS)
        if (there or unsaid) and kinds.get("database", database) != database:
            named = (each for each in group if each.kind == "database")
            found += [each.at for each in named if each.value == kinds["database"]]
    at, which = _libpq(arguments), place(arguments, database) if hosted else None
    if at is None or which is None or PurePath(arguments[at]).name not in _PLACED:
        return found
    if arguments[which] != database and not _ADDRESS.search(arguments[which]):
        found.append(which)
    return found


def place(arguments: Sequence[str], database: str) -> int | None:
    """Return which argument of psql or pg_dump is the database, as the first without a dash.

    Behind a long option that we do not know, what is not the live database's name is its value.
    """
    at = _libpq(arguments)
    options = (each for stem, each in _said(arguments, ()) if not stem.endswith(PAIRS))
    named = at is None or any(each.kind == "database" and each.at > at for each in options)
    if at is None or named or PurePath(arguments[at]).name in _NO_PLACE:
        return None
    letters = _letters(arguments[at])
    takes = re.compile(rf"-[^-{letters}]*[{letters}]")
    for before, text in enumerate(arguments[at + 1 :], at):
        valued = takes.fullmatch(arguments[before]) or _VALUED_WORDS.fullmatch(arguments[before])
        unknown = arguments[before].startswith("--") and "=" not in arguments[before]
        if not text.startswith("-") and not valued and not (unknown and text != database):
            return before + 1
    return None


def program(arguments: Sequence[str]) -> int:
    """Return which argument is the program itself: env, sudo and others only start it."""
    at = 0
    while at < len(arguments) and (front := PurePath(arguments[at]).name) in _FRONT:
        letters = _FRONT[front] or "-"
        takes = re.compile(rf"-[^-{letters}]*[{letters}]|{_FRONT_WORDS}")
        at += 1
        while at < len(arguments) and (arguments[at][:1] == "-" or _PAIR.fullmatch(arguments[at])):
            text, valued = arguments[at], takes.fullmatch(arguments[at])
            at += 2 if valued and text != "--" else 1
            if text == "--":
                break
        at += front in _AS
    return min(at, len(arguments))


def is_libpqs(arguments: Sequence[str], group: Sequence[Said]) -> bool:
    """Tell whether options are of a program that comes with PostgreSQL: none of its launcher's."""
    at = _libpq(arguments)
    return at is not None and group[0].at > at


def _libpq(arguments: Sequence[str]) -> int | None:
    """Return which argument is one of the programs that come with PostgreSQL."""
    start = program(arguments)
    for at, text in enumerate(arguments[start:], start):
        name = PurePath(text).name
        # sql/psql is a folder
        behind = name in _VALUED and ("/" not in text or PurePath(text).parent.name == "bin")
        if at < start + 3 and _LIBPQ.fullmatch(name):
            return at
        if behind and _is_launched(arguments, start, at):
            return at
    return None


def _is_launched(arguments: Sequence[str], start: int, at: int) -> bool:
    """Tell whether a program's name further on is what a launcher starts: timeout -k 5 60 psql.

    Behind a `--` it is; else it is no option's value, and nothing before it says where a database
    is.
    """
    if arguments[at - 1] == "--":
        return True
    if _TAKES.fullmatch(arguments[at - 1]):
        return False
    parts = (said for n in range(start, at) for _, said in _word(arguments, n, (), flags=False))
    return all(said.kind == "tls" or said.name in _LAUNCHERS for said in parts)


def _is_known(arguments: Sequence[str]) -> bool:
    """Tell whether the program is one whose letters are known: it is no pg_repack."""
    at = _libpq(arguments)
    return at is not None and PurePath(arguments[at]).name in _VALUED


def _letters(path: str) -> str:
    """Return the letters of a program of PostgreSQL's behind which a value comes."""
    return _VALUED.get(PurePath(path).name, _VALUED_ELSE)


def _are_aliases(arguments: Sequence[str]) -> bool:
    return any(_ALIASES.fullmatch(PurePath(each).name) for each in arguments[:6])


def inline(arguments: Sequence[str]) -> dict[str, int]:
    """Return the variables that `env NAME=value COMMAND` sets, and which argument does."""
    found = ((at, _PAIR.fullmatch(text)) for at, text in enumerate(arguments[: program(arguments)]))
    return {pair[1]: at for at, pair in found if pair}


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
    found += [at for at, text in enumerate(arguments) if text in whole]
    anybodys = (group for stem, group in _groups(arguments).items() if _is_anybodys(stem, group))
    found += [e.at for group in anybodys for e in group if e.kind == "host" and e.value in whole]
    return sorted({*found})
