"""By which settings the names in a file are meant: its own search_path and role, once it sets them.

Only the server knows what they come to; what a file sets in a way that is not read here, or under
a role that is not there yet, only the run knows.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from preflight.base import quoting
from preflight.files import parser, scan

_SETTING = {"SET", "RESET"}
_RUNNING = {"SELECT", "WITH", "VALUES", "INSERT", "UPDATE", "DELETE", "MERGE", "DO", "CALL"}
_CALLED = re.compile(rb"(?i)\bset_config\b")
_IN_BLOCK = re.compile(
    rb"(?i)\bset_config\b|\bsearch_path\b"
    rb"|\bset\s+(?:(?:session|local)\s+)?(?:schema|role|session\s+authorization)\b"
)
_WHOM = {"role": "ROLE", "session_authorization": "SESSION AUTHORIZATION"}
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
    sets = _IN_BLOCK if said == ["DO"] else _CALLED
    if not _RUNNING.isdisjoint(said) and sets.search(text):
        return dataclasses.replace(where, open=True)
    return where


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
