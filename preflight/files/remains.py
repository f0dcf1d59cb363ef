"""What a file leaves in its session that no RESET and no rollback takes away.

A setting whose name has a dot is empty afterwards, where in a new session it is NULL; a connection
to another server stays open. The next file would find it, and the next attempt of the same one.
Which names are left the server tells, of those that any text says.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from preflight.files import parser, scan

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from postgast.pg_query_pb2 import FuncCall

    from preflight.files.migrations import Script

NAMES = 200  # of a run; more are said by rows of texts, not by statements
_WORD = rb"\"?[\w$]{1,63}\"?"  # others would not be in every encoding
# of lower-case text: what begins with plain letters is found ten times as fast
_SAID = re.compile(
    rb"set(?:_config\"?\s{0,99}\(\s{0,99}(?:setting_name\s{0,99}[:=]?[=>]\s{0,99})?e?'{1,4}"
    rb"|\s{1,99}(?:(?:local|session)\s{1,99})?)(" + _WORD + rb"(?:\." + _WORD + rb"){1,4})"
)
_CONFIG = b"set_config"
_CONNECTING = (b"dblink_connect", b"origin_session_setup")
_PIECE, _OVERLAP = 1 << 20, 1 << 10  # bytes of a text that are looked at together
# its name is said: in a call it can be found, or it has no dot
_PLAIN = re.compile(rb"set_config\"?\s*\(\s*'+[\w$.]+'+\s*,")
_DEFINES = re.compile(rb"(?i)CREATE\s+(?:OR\s+REPLACE\s+)?(?:FUNCTION|PROCEDURE)\b")


def names(scripts: Iterable[Script | None]) -> set[str]:
    """Return the settings with a dot that texts say, also in bodies that run later."""
    found: set[str] = set()
    for piece in _pieces(scripts):
        for match in _SAID.finditer(piece):
            if len(found) == NAMES:
                return found
            found.add(_name(match[1]))
    return found


def _name(name: bytes) -> str:
    return name.replace(b'"', b"").decode("ascii")


def unknown(scripts: Iterable[Script | None]) -> bool:
    """Tell whether something may stay that the server cannot be asked for: a connection.

    Or a setting whose name only the statement itself knows.
    """
    words = (_CONFIG, *_CONNECTING)
    return any(
        script is not None
        and any(word in piece for piece in _pieces([script]) for word in words)
        and any(_hides(each.read(script.text)) for each in script.statements())
        for script in scripts
    )


def _pieces(scripts: Iterable[Script | None]) -> Iterator[bytes]:
    """Yield what texts have, in lower case: of a large one no second copy is made."""
    for script in scripts:
        if script is not None:
            for at in range(0, len(script.text), _PIECE):
                yield script.text[at : at + _PIECE + _OVERLAP].lower()


def _hides(text: bytes) -> bool:
    """Tell it of a statement: by its tree, or by its words where a body is run at once."""
    words = text.lower()
    connects = any(word in words for word in _CONNECTING)
    if not connects and _CONFIG not in words:
        return False
    if _DEFINES.match(text):
        return False
    if connects:
        return True
    if words.count(_CONFIG) == len(_PLAIN.findall(words)):
        return False
    node = parser.parsed(text)
    if node is None or scan.first_word(text, 0) == b"DO":
        return True
    said = {_name(found[1]) for found in _SAID.finditer(words)}
    calls = parser.every(node, "FuncCall")
    return any(_is_set_config(call) and not _says(call.args[0], said) for call in calls)


def _is_set_config(call: FuncCall) -> bool:
    """Tell whether a call is of the server's function: one's own may have the same last name."""
    *schema, name = [each.string.sval for each in call.funcname]
    return name == "set_config" and schema in ([], ["pg_catalog"]) and len(call.args) > 1


def _says(argument: object, said: set[str]) -> bool:
    """Tell whether the name that set_config is given has no dot, or is among those that are said.

    A text may be in other clothes than a look at the words knows.
    """
    constant = argument.a_const  # type: ignore[attr-defined] # a node
    name = constant.sval.sval.lower()
    return bool(constant.HasField("sval")) and ("." not in name or name in said)
