"""What a file leaves in its session that no RESET and no rollback takes away.

A setting whose name has a dot is empty afterwards, where in a new session it is NULL; a connection
to another server stays open. The next file would find it, and the next attempt of the same one.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from preflight.files import parser, scan

if TYPE_CHECKING:
    from collections.abc import Iterable

    from postgast.pg_query_pb2 import FuncCall

    from preflight.files.migrations import Script

_CONNECTS = re.compile(rb"(?i)dblink_connect|replication_origin_session_setup")
_NAME = rb"\"[^\"]{1,128}\""
_DOTTED = rb"(?:" + _NAME + rb"|[\w$]+)\.[\"\w]|\"[^\".]{1,128}\.[^\"]{1,128}\""
_SETS = re.compile(rb"(?i)\b(?:re)?set\s+(?:(?:local|session)\s+)?(?:" + _DOTTED + rb")")
_CONFIG = re.compile(rb"(?i)\bset_config\b")
# of lower-case text: what begins with plain letters is found ten times as fast
_MAY = re.compile(rb"set(?:_config|\s+(?:(?:local|session)\s+)?(?:" + _DOTTED + rb"))")
_CONNECTING = (b"dblink_connect", b"origin_session_setup")
_PIECE, _OVERLAP = 1 << 20, 1 << 10  # bytes of a text that are looked at together
_PLAIN = re.compile(rb"(?i)\bset_config\"?\s*\(\s*'[^'.]*'\s*,")  # its name is said, and has no dot


def left(scripts: Iterable[Script | None]) -> bool:
    """Tell whether something stays in the session that only a new one is without."""
    return any(script is not None and _leaves(script) for script in scripts)


def _leaves(script: Script) -> bool:
    return _may(script.text, 0, len(script.text)) and any(
        _stays(each.text(script.text))
        for each in script.statements()
        if _may(script.text, each.start, each.end)
    )


def _may(text: bytes, start: int, end: int) -> bool:
    """Tell whether such words stand in a part of a text, of which no second copy is made."""
    for at in range(start, end, _PIECE):
        piece = text[at : min(at + _PIECE + _OVERLAP, end)].lower()
        if _MAY.search(piece) or any(word in piece for word in _CONNECTING):
            return True
    return False


def _stays(text: bytes) -> bool:
    """Tell it of a statement: by its tree, or by its words where those may run later."""
    if _CONNECTS.search(text):
        return True
    node = parser.parsed(text)
    if node is None or scan.first_word(text, 0) in (b"DO", b"CREATE"):
        return bool(_SETS.search(text)) or len(_CONFIG.findall(text)) > len(_PLAIN.findall(text))
    return any(
        "." in item.name
        if item.DESCRIPTOR.name == "VariableSetStmt"
        else _is_set_config(item) and not _plain(item.args)
        for item in parser.every(node, "VariableSetStmt", "FuncCall")
    )


def _is_set_config(call: FuncCall) -> bool:
    """Tell whether a call is of the server's function: one's own may have the same last name."""
    *schema, name = [each.string.sval for each in call.funcname]
    return name == "set_config" and schema in ([], ["pg_catalog"]) and len(call.args) > 1


def _plain(arguments: Iterable[object]) -> bool:
    """Tell whether the name that set_config is given is said, and has no dot."""
    name = next(iter(arguments), None)
    constant = name.a_const  # type: ignore[attr-defined] # a node
    return constant.HasField("sval") and "." not in constant.sval.sval
