"""Write names and texts so that SQL takes them as they are."""

from __future__ import annotations

import re
from collections.abc import Sequence


def parameter(text: str) -> str:
    """Return a setting's name as an identifier: each part of one with dots is quoted alone."""
    return ".".join(name(part) for part in text.split("."))


def name(name: str) -> str:
    """Return a name as an identifier."""
    return '"' + name.replace('"', '""') + '"'


_PART = re.compile(r'"(?:[^"]|"")*"|[^.\s"()]+')


def parts(said: str) -> list[str]:
    """Return the plain names in a qualified one, as the server's %I.%I or regclass writes it."""
    return [*map(_plain, _PART.findall(said))]


_HALF = re.compile(r'"(?:[^"]|"")*"|[^."]+')


def halves(said: str) -> tuple[str, str]:
    """Return schema and name of one that is qualified, as %I.%I writes it, or a manifest.

    That quotes only what holds a dot or a quote.
    """
    schema, own = map(_plain, _HALF.findall(said))
    return schema, own


def _plain(part: str) -> str:
    return part[1:-1].replace('""', '"') if part.startswith('"') else part


def literal(text: str) -> str:
    """Return a text as a literal; standard_conforming_strings is on in our sessions."""
    return "'" + text.replace("'", "''") + "'"


def filled(query: str, values: Sequence[object]) -> str:
    """Return a statement with its %s replaced: by texts, numbers, truths, NULL for None."""
    return query % tuple(map(_value, values))


def _value(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bool | int):
        return str(value)
    return literal(value.decode() if isinstance(value, bytes) else str(value))
