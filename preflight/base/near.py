"""What was meant by a word that nobody knows, where a slip of the finger explains it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LIKE = 0.75  # of 1: two letters changed places in a word of four


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that this one is a slip of; a merely similar one would mislead.

    One that was not written to its end is the one with which all begin that begin so.
    """
    known = list(known)
    begun = sorted((each for each in known if each.startswith(f"{word}_")), key=len)
    if begun and all(each.startswith(begun[0]) for each in begun):
        return begun[0]
    return next(iter(difflib.get_close_matches(word, known, 1, LIKE)), None)
