"""Rows of words in the order of their first: packed, to be kept for long, and read one by one.

A database has sixty thousand objects where it has ten thousand tables. As strings in a dictionary
they take 300 bytes each, and here 10: neighbours have nearly the same name.
"""

from __future__ import annotations

import itertools
import marshal
import zlib
from collections.abc import Iterable, Iterator

Row = tuple[str, ...]
Rows = Iterable[Row]
AT_ONCE = 1000  # rows that are unpacked at a time


class Packed:
    """Rows that are read from the start, as often as wanted."""

    def __init__(self, rows: Rows) -> None:
        left = iter(rows)
        blocks = iter(lambda: list(itertools.islice(left, AT_ONCE)), [])
        self._blocks = [zlib.compress(marshal.dumps(block), 1) for block in blocks]

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows as they came."""
        for block in self._blocks:
            yield from marshal.loads(zlib.decompress(block))  # noqa: S302 -- our own, from memory

    def __contains__(self, name: str) -> bool:
        """Tell whether there is a row of that name."""
        return any(row[0] == name for row in self)


def paired(before: Rows, after: Rows) -> Iterator[tuple[str, Row | None, Row | None]]:
    """Yield each first word with the rows that both sides have of it; None where one lacks it."""
    left, right = iter(before), iter(after)
    one, other = next(left, None), next(right, None)
    while one or other:
        if other is None or (one is not None and one[0] < other[0]):
            assert one  # noqa: S101 -- else the loop had ended
            yield one[0], one, None
            one = next(left, None)
        elif one is None or other[0] < one[0]:
            yield other[0], None, other
            other = next(right, None)
        else:
            yield one[0], one, other
            one, other = next(left, None), next(right, None)


def unlike(before: Rows, after: Rows) -> Iterator[tuple[str, Row | None, Row | None]]:
    """Yield those whose second words are not the same, and what only one side has."""
    for name, one, other in paired(before, after):
        if one is None or other is None or one[1] != other[1]:
            yield name, one, other
