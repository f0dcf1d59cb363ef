"""PostgreSQL's own parser, asked where its crash is not ours."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from postgast.pg_query_pb2 import Node

SHALLOW = 8192  # bytes; what is shorter cannot nest so deeply that the parser's stack ends


def parsed(text: bytes) -> Node | None:
    """Return what PostgreSQL's parser makes of one statement.

    None is "not known what it does": newer grammar, or nested too deeply for the parser.
    """
    if len(text) > SHALLOW and not survived(lambda: _parsed(text)):
        return None
    return _parsed(text)


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
