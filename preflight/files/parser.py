"""PostgreSQL's own parser, asked where its crash is not ours."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from preflight.files import scan

if TYPE_CHECKING:
    from postgast.pg_query_pb2 import Node

SHALLOW = 8192  # bytes; what is shorter cannot nest so deeply that the parser's stack ends
# a tree takes up to 300 times the bytes of its text, and a walk through it 7 s a megabyte
LARGEST = 1 << 17  # bytes without comments and long texts
LARGEST_TEXT = 1 << 20  # bytes with them: of what is looked at in them, too
LONG = 256  # bytes; a text that is longer is no name
# a row of plain values, and what may stand before the first
_NAME = rb'(?:"(?:[^"]|"")+"|[A-Za-z_][\w$]*)'
_TEXT = rb"'[^']*+(?:''[^']*+|)*+'"
_TYPE = (  # PostgreSQL's own, and none that looks up a name
    rb"(?i:text|(?:character\s+varying|varchar|character|char|bpchar|numeric|decimal|bit)"
    rb"(?:\s*\(\s*\d+(?:\s*,\s*\d+)?\s*\))?|smallint|int[248]?|integer|bigint|real|float[48]"
    rb"|double\s+precision|bool(?:ean)?|date|timestamptz|timetz"
    rb"|time(?:stamp)?(?:\s+with(?:out)?\s+time\s+zone)?|interval|uuid|jsonb?|bytea|inet|cidr"
    rb"|macaddr|money|xml|tsvector)(?![\w$])(?:\s*\[\s*\]|)*+"
)
_CONSTANT = (
    rb"(?:[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?|" + _TEXT + rb"|[xXbB]'[0-9A-Fa-f]*+'"
    rb"|[eE]'(?:[^'\\]++|''|\\[\\'\"nrtbf/]|)*+'|(?i:null|true|false)\b"
    rb"|(?i:date|timestamptz|timestamp|interval)\s*" + _TEXT + rb")"
    rb"(?:\s*::\s*" + _TYPE + rb"|)*+"
)
_CONSTANTS = _CONSTANT + rb"(?:\s*,\s*" + _CONSTANT + rb"|)*+"
_CALLED = (  # what stands in pg_catalog, and neither changes nor reads anything
    rb"(?i:now|(?:clock|statement|transaction)_timestamp|gen_random_uuid|random|md5|lower|upper"
    rb"|decode|to_timestamp|to_date|jsonb?_build_(?:object|array))"
)
_VALUE = (
    rb"(?:" + _CONSTANT + rb"|(?i:default|current_(?:timestamp|date|time)|localtimestamp)\b"
    rb"|(?:" + _CALLED + rb"\s*\(\s*(?:" + _CONSTANTS + rb"\s*|)?+\)"
    rb"|(?i:array)\s*\[\s*(?:" + _CONSTANTS + rb"\s*|)?+\])(?:\s*::\s*" + _TYPE + rb"|)*+)"
)
_ROW = rb"\(\s*" + _VALUE + rb"(?:\s*,\s*" + _VALUE + rb"|)*+\s*\)"
_INTO = re.compile(
    rb"(?i:insert\s+into)\s+(?:" + _NAME + rb"\s*\.\s*)?" + _NAME + rb"\s*"
    rb"(?:\(\s*" + _NAME + rb"(?:\s*,\s*" + _NAME + rb"|)*+\s*\)\s*)?"
    rb"(?i:overriding\s+(?:system|user)\s+value\s+)?(?i:values)\s*"
)
# what makes a text or a number something else than it seems
_ODD = re.compile(rb"[\\$\"]|--|/\*")
_TEXTS = re.compile(_TEXT)
_NUMBER = re.compile(rb"(?<![\w.\x80-\xff])\d++(?:\.\d++)?(?![\w.\x80-\xff])")
TYPICAL_MAX = 256  # statements that are remembered; a file of rows fills few tables


def parsed(text: bytes, *, whole: bool = False, texts: bool = True) -> Node | None:
    """Return what PostgreSQL's parser makes of one statement.

    None is "not known what it does": newer grammar, nested too deeply for the parser, or too large
    for a tree. Of a long INSERT the rows of plain values behind the first are only in it where the
    `whole` is wanted; long texts are others where what `texts` say is not.
    """
    text = text if whole else shortened(text)
    if len(text) <= SHALLOW:
        return _parsed(text)
    outline = outlined(text)
    if outline is None or (texts and len(text) > LARGEST_TEXT):
        return None
    text = text if texts else outline
    deep = len(text) > SHALLOW and not survived(lambda: _parsed(text))
    return None if deep else _parsed(text)


def fits(text: bytes) -> bool:
    """Tell whether a statement is small enough for a tree without what it has in its texts."""
    return len(text) <= SHALLOW or outlined(shortened(text)) is not None


def outlined(text: bytes) -> bytes | None:
    """Return a statement with other texts for the long ones and without its comments.

    None where it is too large for a tree all the same.
    """
    kept, size, at = [], 0, 0
    for start, end in scan.asides(text, LARGEST):
        comment = text[start] in b"-/"
        stays = not comment and end - start <= LONG
        size += (end if stays else start) - at + 3
        if size > LARGEST:
            return None
        kept.append(text[at:end] if stays else text[at:start] + (b" " if comment else b"'x'"))
        at = end
    kept.append(text[at : at + LARGEST + 1])
    found = b"".join(kept)
    return found if len(found) <= LARGEST else None


def shortened(text: bytes) -> bytes:
    """Return a long INSERT without the rows of plain values behind its first one.

    A row is plain when every value is a constant, an array of some, or a call of what only makes a
    value of some: nothing that could name a table, read one or do anything.
    """
    rows = _plain_rows(text) if len(text) > SHALLOW else None
    if rows is None or rows[1] == rows[2]:
        return text  # no copy: its only row may be as long as the file
    return text[: rows[1]] + text[rows[2] :]


def typical(text: bytes) -> bytes:
    """Return the same for every INSERT of nothing but plain rows into a table; else the text."""
    rows = _plain_rows(text)
    if rows is None or text[rows[2] :].strip(b" \t\r\n;"):
        return text
    return text[: rows[0]] + b"(NULL)"


def alike(text: bytes) -> bytes:
    """Return the same for all short statements that differ in numbers and texts; else the text."""
    if (same := typical(text)) is not text or len(text) > SHALLOW or _ODD.search(text):
        return same
    return _NUMBER.sub(b"1", _TEXTS.sub(b"'x'", text))


def _plain_rows(text: bytes) -> tuple[int, int, int] | None:
    """Return where an INSERT's first row begins and ends, and where its plain rows end."""
    if (into := _INTO.match(text)) is None:
        return None
    row, next_rows = _rows()
    first = row.match(text, into.end())
    others = next_rows.match(text, first.end()) if first else None
    return (first.start(), first.end(), others.end()) if first and others else None


@functools.cache
def _rows() -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    """Return what a row of plain values matches, and what all that follow it do.

    To compile them takes 15 ms, a tenth of what all imports do, and few files have such rows.
    """
    return re.compile(_ROW), re.compile(rb"(?:\s*,\s*" + _ROW + rb"|)*+")


def _parsed(text: bytes) -> Node | None:
    import postgast  # noqa: PLC0415 -- 0.12 s, and only for statements in doubt
    from google.protobuf import message  # type: ignore[import-untyped] # noqa: PLC0415 -- its own
    from google.protobuf.internal import (  # type: ignore[import-untyped] # noqa: PLC0415 -- likewise
        api_implementation,
    )

    with suppress(AttributeError):  # else 48 operators in a row are too deep for its messages
        api_implementation._c_module.SetAllowOversizeProtos(True)  # noqa: FBT003, SLF001 -- the only way
    try:
        tree = postgast.parse(text.decode())
    except (postgast.PgQueryError, message.DecodeError):
        return None
    return tree.stmts[0].stmt if len(tree.stmts) == 1 else None


def several(text: bytes) -> bool:
    """Tell whether PostgreSQL's parser surely reads more than one statement in a text.

    What it does not read, of a newer grammar or too large, is not known to be.
    """
    if len(text) <= SHALLOW:
        return _several(text)
    outline = outlined(text)
    known = outline is not None and survived(lambda: _several(outline))
    return known and outline is not None and _several(outline)


def _several(text: bytes) -> bool:
    try:
        import postgast  # noqa: PLC0415 -- only for what has semicolons in it

        return len(postgast.split(text.decode(), method="parser")) > 1
    except Exception:  # noqa: BLE001 -- not read, whatever the cause, is no finding
        return False


def complaint(text: bytes) -> str | None:
    """Return what PostgreSQL's grammar says against a statement; a newer server may know better."""
    same = alike(text)
    if same is not text and _complaint_of_typical(same) is None:
        return None
    return _complaint(shortened(text))


def _complaint(text: bytes) -> str | None:
    import postgast  # noqa: PLC0415 -- only for what is looked at closely

    if len(text) > SHALLOW:
        outline = outlined(text)
        if outline is None or not survived(lambda: _parsed(outline)):
            return None
        text = outline
    try:
        postgast.parse(text.decode())
    except postgast.PgQueryError as error:
        return str(error)
    except Exception:  # noqa: BLE001 -- too deep to be read, and no syntax error
        return None
    return None


_complaint_of_typical = functools.lru_cache(TYPICAL_MAX)(_complaint)


def written(node: Node) -> str:
    """Return a parsed statement as SQL."""
    import postgast  # noqa: PLC0415 -- it was parsed, so it is loaded
    from postgast import pg_query_pb2  # noqa: PLC0415 -- likewise

    raw = pg_query_pb2.RawStmt(stmt=node)
    return str(postgast.deparse(pg_query_pb2.ParseResult(stmts=[raw])))


def survived(attempt: Callable[[], object]) -> bool:
    """Tell whether a call comes to its end: it is tried in a child, whose crash is not ours.

    50,000 operators in a row end the parser's stack, and the process with it.
    """
    import faulthandler  # noqa: PLC0415 -- only for what is long
    import resource  # noqa: PLC0415 -- likewise

    child = os.fork()
    if child == 0:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            faulthandler.disable()  # a crash is what is asked about, not what is to be reported
            attempt()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return status == 0


def every(
    message: Any,  # noqa: ANN401 -- any protobuf message
    *kinds: str,
    without: frozenset[str] = frozenset(),
) -> Iterator[Any]:
    """Yield the messages of some kinds in a tree, the outer ones first; as deep as it may be.

    Nothing is looked for in fields that it is to be `without`.
    """
    rest = [message]
    while rest:
        found = rest.pop()
        if found.DESCRIPTOR.name in kinds:
            yield found
        below: list[Any] = []
        for field, value in found.ListFields():
            if field.message_type is not None and field.name not in without:
                below += [value] if hasattr(value, "DESCRIPTOR") else value
        rest += reversed(below)
