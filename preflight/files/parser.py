"""PostgreSQL's own parser, asked where its crash is not ours."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from postgast.pg_query_pb2 import Node

SHALLOW = 8192  # bytes; what is shorter cannot nest so deeply that the parser's stack ends
# a row of plain values, and what may stand before the first
_NAME = rb'(?:"(?:[^"]|"")+"|[A-Za-z_][\w$]*)'
_VALUE = (
    rb"(?:[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|'[^'\\]*+(?:''[^'\\]*+)*+'"
    rb"|(?i:null|true|false|default))"
)
_ROW = re.compile(rb"\(\s*" + _VALUE + rb"(?:\s*,\s*" + _VALUE + rb")*+\s*\)")
_NEXT_ROWS = re.compile(rb"(?:\s*,\s*" + _ROW.pattern + rb")*+")
_INTO = re.compile(
    rb"(?i:insert\s+into)\s+(?:" + _NAME + rb"\s*\.\s*)?" + _NAME + rb"\s*"
    rb"(?:\(\s*" + _NAME + rb"(?:\s*,\s*" + _NAME + rb")*+\s*\)\s*)?(?i:values)\s*"
)
TYPICAL_MAX = 256  # statements that are remembered; a file of rows fills few tables


def parsed(text: bytes, *, whole: bool = False) -> Node | None:
    """Return what PostgreSQL's parser makes of one statement.

    None is "not known what it does": newer grammar, or nested too deeply for the parser. Of a long
    INSERT the rows of plain values behind the first are only in it where the `whole` is wanted.
    """
    text = text if whole else shortened(text)
    if len(text) > SHALLOW and not survived(lambda: _parsed(text)):
        return None
    return _parsed(text)


def shortened(text: bytes) -> bytes:
    """Return a long INSERT without the rows of plain values behind its first one.

    A tree takes a hundred times the bytes of its text. A row is plain when every value is a number
    or a text without a backslash, which nobody could read in two ways.
    """
    rows = _plain_rows(text) if len(text) > SHALLOW else None
    return text if rows is None else text[: rows[1]] + text[rows[2] :]


def typical(text: bytes) -> bytes:
    """Return the same for every INSERT of nothing but plain rows into a table; else the text."""
    rows = _plain_rows(text)
    if rows is None or text[rows[2] :].strip(b" \t\r\n;"):
        return text
    return text[: rows[0]] + b"(NULL)"


def _plain_rows(text: bytes) -> tuple[int, int, int] | None:
    """Return where an INSERT's first row begins and ends, and where its plain rows end."""
    into = _INTO.match(text)
    first = _ROW.match(text, into.end()) if into else None
    others = _NEXT_ROWS.match(text, first.end()) if first else None
    return (first.start(), first.end(), others.end()) if first and others else None


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


def complaint(text: bytes) -> str | None:
    """Return what PostgreSQL's grammar says against a statement; a newer server may know better."""
    same = typical(text)
    return _complaint(shortened(text)) if same is text else _complaint_of_typical(same)


def _complaint(text: bytes) -> str | None:
    import postgast  # noqa: PLC0415 -- only for what is looked at closely

    if len(text) > SHALLOW and not survived(lambda: _parsed(text)):
        return None
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


def every(message: Any, kind: str) -> Iterator[Any]:  # noqa: ANN401 -- any protobuf message
    """Yield the messages of a kind in a tree, the outer ones first; as deep as it may be."""
    rest = [message]
    while rest:
        found = rest.pop()
        if found.DESCRIPTOR.name == kind:
            yield found
        below: list[Any] = []
        for field, value in found.ListFields():
            if field.message_type is not None:
                below += [value] if hasattr(value, "DESCRIPTOR") else value
        rest += reversed(below)
