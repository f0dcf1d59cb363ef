"""Give a command a lock_timeout: by PGOPTIONS, and in URLs whose drivers do not read that; pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePath
from urllib.parse import quote

from preflight.commands.wrapping import options

# whose drivers send `options` to the server; SQLAlchemy's asyncpg, Ecto and R2DBC stumble over it
_URL = re.compile(
    r"(?i)(?:postgres(?:ql)?(?:\+psycopg2?)?|pgx[45]?|jdbc:(?:[\w-]+:)?postgresql)://\S+"
)
_WORDS = re.compile(  # a value ends where a space is: it may hold many =
    r"(?=.*\b(?:host|dbname)\s*=)(?:\s*[a-z_]+\s*=\s*(?:'[^']*'|[^\s;']+(?=\s|\Z)))+\s*"
)
_LONE = re.compile(r"\s*\w+\s*=\s*(?:'[^']*'|[^\s']*)\s*")
_HAS = re.compile(r"(?<=[?&]options=)[^&]*")
_HAS_WORD = re.compile(r"(?<![\w-])options\s*=\s*(?:'([^']*)'|(\S+))")
_STUMBLES = re.compile(r"php[\d.]*|artisan|aerich|phinx|doctrine(?:-\w+)?(?:\.php)?")  # over it


def given(
    environ: Mapping[str, str], arguments: Sequence[str], names: Collection[str], said: str
) -> tuple[dict[str, str], list[str]]:
    """Return environment and arguments that set a lock_timeout, behind what was set already.

    `names` are the variables, and `argument 3`, that name the command's database.
    """
    option = f"-c lock_timeout={said}"
    found = {**environ, "PGOPTIONS": f"{environ.get('PGOPTIONS', '')} {option}".strip()}
    told = list(arguments)
    if any(_STUMBLES.fullmatch(PurePath(each).name) for each in told[:4]):
        return found, told
    for name in names & found.keys():
        found[name] = _into(found[name], option)
    own = options.assigned(told)
    for at, text in enumerate(told):
        pairs = _WORDS.fullmatch(text)
        if pairs and (at in own or _LONE.fullmatch(text)):
            continue  # it may be anything, and libpq reads PGOPTIONS
        if f"argument {at + 1}" in names:
            begins = re.match(r"-{0,2}[A-Za-z_][\w.-]*=(?=\S+://)", text)
            end = begins.end() if begins else 0
            told[at] = text[:end] + _into(text[end:], option)
    return found, told


def _into(text: str, option: str) -> str:
    """Return a URL or a keyword string with one more option; anything else as it is."""
    if _URL.fullmatch(text):
        if _HAS.search(text):
            return _HAS.sub(lambda has: f"{has[0]}%20{quote(option, safe='')}", text)
        return f"{text}{'&' if '?' in text else '?'}options={quote(option, safe='')}"
    if not _WORDS.fullmatch(text):
        return text
    if has := _HAS_WORD.search(text):
        more = f"options='{has[1] or has[2] or ''} {option}'"
        return text[: has.start()] + more + text[has.end() :]
    return f"{text.rstrip()} options='{option}'"
