"""By which settings the names in a file are meant: its own search_path and role, once it sets them.

Only the server knows what they come to; what a file sets in a way that is not read here, or under
a role that is not there yet, only the run knows.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from preflight.base import quoting
from preflight.files import parser, scan

_SETTING = {"SET", "RESET"}
_RUNNING = {"SELECT", "WITH", "VALUES", "INSERT", "UPDATE", "DELETE", "MERGE", "DO", "CALL"}
_CALLED = re.compile(rb"(?i)\bset_config\b")
_MAY_SET = re.compile(rb"(?i)\bset_config\b|\bsearch_path\b|\b(?:re)?set\b")
# for a block that is not read: what sets, and not UPDATE … SET role = or ALTER … SET SCHEMA
_IN_BLOCK = re.compile(
    rb"(?i)\bset_config\b|\bsearch_path\b|\bset\s+(?:(?:session|local)\s+)?"
    rb"(?:session\s+authorization\b|session_authorization\b|schema\s*'+\w|role\b(?!\s*=))"
    rb"|(?:[;'$]|\b(?:begin|then|else|loop)\b)\s*set\s+(?:(?:session|local)\s+)?(?:role|schema)\b"
)
_WHOM = {"role": "ROLE", "session_authorization": "SESSION AUTHORIZATION"}
_OURS = {"search_path", *_WHOM}
_TO_VALUE, _RESET_ALL = 1, 6  # libpg_query's VariableSetKind


@dataclass(frozen=True, slots=True)
class Where:
    """The settings in force when a statement runs."""

    path: tuple[str, ...] | None = None  # None: the role's own
    whom: tuple[tuple[str, str], ...] = ()  # SESSION AUTHORIZATION and ROLE that the file has set
    open: bool = False  # where a name without a schema leads only the run knows

    def sets(self) -> list[str]:
        """Return the statements that make them so until the transaction is rolled back."""
        path = "DEFAULT" if self.path is None else ", ".join(map(quoting.literal, self.path))
        whom = [f"SET LOCAL {what} {quoting.literal(role)}" for what, role in self.whom]
        return [*whom, f"SET LOCAL search_path TO {path}"]


START = Where()


def after(where: Where, text: bytes, *, transactional: bool) -> Where:
    """Return the settings in force after a statement; a block may have them for itself, too."""
    said = scan.words(text[:400], 1)[:1]
    if not _SETTING.isdisjoint(said):
        return _set(where, text, transactional=transactional)
    sets = _block_sets if said == ["DO"] else _call_sets
    if not where.open and not _RUNNING.isdisjoint(said) and sets(text):
        return dataclasses.replace(where, open=True)
    return where


def _call_sets(text: bytes) -> bool:
    """Tell whether a statement may call set_config for one of our settings."""
    if not _CALLED.search(text):
        return False
    node = parser.parsed(text)
    return node is None or any(
        call.funcname[-1].string.sval == "set_config" and _may_be_ours(call)
        for call in parser.every(node, "FuncCall")
    )


def _may_be_ours(call: Any) -> bool:  # noqa: ANN401 -- a protobuf message
    """Tell whether a call of set_config may set one of our settings: a constant says which."""
    said = call.args[0] if call.args else None
    while said is not None and said.WhichOneof("node") == "type_cast":
        said = said.type_cast.arg
    if said is None or said.WhichOneof("node") != "a_const":
        return True
    return said.a_const.sval.sval.lower() in _OURS


def _block_sets(text: bytes) -> bool:
    """Tell whether a block may set one of our settings."""
    from preflight.files import reach  # noqa: PLC0415 -- for such a block alone

    if not _MAY_SET.search(text):
        return False
    node = parser.parsed(text)
    if node is None or not reach.telling(node, text):
        return bool(_IN_BLOCK.search(text))
    return any(
        _inside_sets(each.encode()) if isinstance(each, str) else bool(_IN_BLOCK.search(text))
        for each in reach.inner(node, text)
    )


def _inside_sets(text: bytes) -> bool:
    """Tell whether a statement in a block may set one of our settings."""
    said = scan.words(text[:400], 1)[:1]
    if said == ["DO"]:
        return _block_sets(text)
    if _SETTING.isdisjoint(said):
        return _call_sets(text)
    node = parser.parsed(text)
    setting = node.variable_set_stmt if node is not None else None
    return setting is None or setting.kind == _RESET_ALL or setting.name in _OURS


def _set(where: Where, text: bytes, *, transactional: bool) -> Where:
    node = parser.parsed(text)
    if node is None or node.WhichOneof("node") != "variable_set_stmt":
        return where
    said = node.variable_set_stmt
    if said.is_local and not transactional:
        return where  # it ends with its own statement
    values = [item.a_const.sval.sval for item in said.args] if said.kind == _TO_VALUE else []
    if said.kind == _RESET_ALL or said.name == "search_path":
        return Where(tuple(values) or None, where.whom)
    if (what := _WHOM.get(said.name)) is None:
        return where
    kept = [each for each in where.whom if what == "ROLE" and each[0] != what]
    own = not values or (what == "ROLE" and values[0].lower() == "none")
    return dataclasses.replace(where, whom=(*kept, *([] if own else [(what, values[0])])))
