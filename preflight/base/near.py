"""What was meant by a word that nobody knows, where a slip of the finger explains it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LIKE = 0.75  # of 1: two letters changed places in a word of four


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that this one is a slip of; a merely similar one would mislead."""
    return next(iter(difflib.get_close_matches(word, list(known), 1, LIKE)), None)
