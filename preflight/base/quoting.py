"""Write names and texts so that SQL takes them as they are."""

from __future__ import annotations


def name(name: str) -> str:
    """Return a name as an identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return a text as a literal; standard_conforming_strings is on in our sessions."""
    return "'" + text.replace("'", "''") + "'"
