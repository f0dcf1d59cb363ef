"""What a statement leaves in its session alone, where no run that takes up the file can have it.

What SET holds is set again on a resume, and an advisory lock that is taken alone is taken again;
this is about the rest, and about what ends with a statement that has its own transaction. A file
that would need it is refused before it runs, and one that stopped behind it is not resumed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise, takewhile
from typing import TYPE_CHECKING, Any

from preflight.files import kinds, parser, scan

if TYPE_CHECKING:
    from preflight.base.errors import Problem
    from preflight.files.migrations import Script

_SUSPECT = re.compile(
    rb"(?i)set_config|temp|\bprepare\b|\bhold\b|\bload\b|\blisten\b|\bdiscard\b|pg_settings"
    rb"|advisory_(?:unlock_all|lock)|\block\b|\bcursor\b"
)
_WITH_BODY = re.compile(rb"(?i)\s*(?:do|create)\b")
_SETS = re.compile(rb"(?i)\b(?:re)?set\b")
_TEMPORARY = re.compile(r"pg_temp(?:_\d+)?")
_QUOTED = re.compile(r"(?<![\w$])(?P<tag>\$(?:[^\W\d]\w*)?\$)|'(?P<text>(?:[^']++|''|)*+)'")
REFUSED_MAX = 50  # of one file: what follows is most often more of the same
_OPENING = {"BEGIN", "THEN", "ELSE", "LOOP"}
_UNLOCKS = "pg_advisory_unlock_all"
_DISCARDS = "DISCARD ALL"
_LOCKS = "LOCK TABLE"
_CURSOR = "a cursor without HOLD"
_ADVISORY = "an advisory lock"
_UNLOCKING = re.compile(rb"(?i)advisory_unlock_all")
_RELEASES = re.compile(rb"(?i)advisory_unlock")
_ADVISES = re.compile(rb"(?i)advisory_(?:un)?lock")
_LOCKING = re.compile(r"pg_(?:try_)?advisory_(un)?lock(?:_shared)?")
_NEW = (_LOCKS, _CURSOR, _ADVISORY)  # refused on the way forward alone: the way back is recorded
# what a key is made of, the same in every session of the role
_KEYS = {
    "hashtext", "hashtextextended", "md5", "sha256", "encode", "decode", "convert_to", "substr",
    "substring", "left", "right", "lower", "upper", "concat", "format", "abs", "length", "ascii",
    "current_database", "current_schema",
}  # fmt: skip
_RUNS = {
    "select_stmt", "insert_stmt", "update_stmt", "delete_stmt", "merge_stmt", "call_stmt",
    "create_table_as_stmt",
}  # fmt: skip
_BY_KIND = {
    "lock_stmt": _LOCKS,
    "prepare_stmt": "PREPARE",
    "load_stmt": "LOAD",
    "listen_stmt": "LISTEN",
}
_WHOM = ("session_authorization", "role")
_HOLD = 0x20  # CURSOR_OPT_HOLD
_DROPPED = 4  # ONCOMMIT_DROP: gone with the transaction that every statement has


def refused(script: Script, *, back: bool = False) -> list[Problem]:
    """Name every statement whose effect a later one would miss, or that gives our lock away.

    Of a way `back` less is refused: its text may be the history's, which nobody can edit.
    """
    if script.transactional:  # done or not done; a lock that it lets go is missed before the next
        return [] if back else _giving_away(script)
    found: list[Problem] = []
    held: tuple[scan.Statement, str] | None = None
    for statement, what in _each(script):
        if len(found) >= REFUSED_MAX:
            break
        if held:
            found.append(_problem(script, *held, _lost(held[1])))
        passed = (_DISCARDS, _UNLOCKS, *(_NEW if back else ()))
        held = (statement, what) if what and what not in passed else None
        if what in (_DISCARDS, _UNLOCKS):
            found.append(_problem(script, statement, what, _gives(what)))
    return found


def _giving_away(script: Script) -> list[Problem]:
    """Name what gives our lock away, the only thing that outlives a transaction and harms a run."""
    if _UNLOCKING.search(script.text) is None:
        return []  # the common case, at the speed of memory
    calls = (statement for statement, what in _each(script) if what == _UNLOCKS)
    return [
        _problem(script, statement, _UNLOCKS, _gives(_UNLOCKS))
        for statement in islice(calls, REFUSED_MAX)
    ]


def _gives(what: str) -> str:
    return f"{what} gives away the lock of this run"


def before(script: Script, done: int) -> str | None:
    """Name what the first `done` statements left in a session that is gone, if more are to come."""
    found = None
    for number, (_, what) in enumerate(_each(script), 1):
        if number > done:
            return found
        if what and what not in (_LOCKS, _CURSOR):  # those ended when they were done
            found = found or f"statement {number}: {_lost(what)}"
    return None


def _lost(what: str) -> str:
    if what in (_LOCKS, _CURSOR):
        return f"{what} ends with its own statement: each has a transaction of its own here"
    return f"{what} lasts as long as its session, and a run that is taken up has another"


def _problem(script: Script, statement: scan.Statement, what: str, said: str) -> Problem:
    hints = {
        _LOCKS: "Put it and what it protects into one DO block, or run the file in a transaction.",
        _ADVISORY: "Write SELECT pg_advisory_lock(…), with a constant key and nothing else in the "
        "statement: that is taken again. Or release it in the same statement.",
        _DISCARDS: kinds.DISCARDS,
        _UNLOCKS: "Release each lock by its key: pg_advisory_unlock(…).",
        "set_config": "Write SET, which is set again, or name schemas in full.",
        "a temporary table, view, sequence or function": "Make it a permanent one and drop it in "
        "the end, or do all of it in one statement (a DO block, ON COMMIT DROP).",
    }
    hint = hints.get(what, "Leave it out, or run the file in a transaction.")
    return script.problem(statement, said, hint)


def _each(script: Script) -> Iterator[tuple[scan.Statement, str | None]]:
    """Yield each statement and what it leaves in its session."""
    functions: dict[str, str] = {}
    for statement in script.statements():
        yield statement, left(statement.read(script.text), functions)


def locks(text: bytes) -> bool:
    """Tell whether a statement takes or releases an advisory lock of its session, and no more."""
    node = parser.parsed(text) if _ADVISES.search(text) else None
    return node is not None and _only_locks(node.select_stmt)


def again(script: Script, done: int) -> bool:
    """Tell whether the locks that the first `done` statements took are to be taken again.

    Not where one of them released some in another way than alone.
    """
    texts = [each.read(script.text) for each in islice(script.statements(), done)]
    return all(locks(text) for text in texts if _RELEASES.search(text))


def setting(text: bytes) -> tuple[str, bool] | None:
    """Return what SET or RESET names, in lower case, and whether it is for a transaction alone.

    None for any other statement; no name where it has none, or is not understood.
    """
    if scan.words(text[:400], 1)[:1] not in (["SET"], ["RESET"]):
        return None
    node = parser.parsed(text)
    said = node.variable_set_stmt if node else None
    return (said.name.lower(), said.is_local) if said else ("", False)


def superseded(script: Script, done: int) -> set[int]:
    """Return which of the first `done` statements set a role that no later setting needs.

    Such a statement need not run again, and its role may be gone. Under whose rights a setting was
    made belongs to it.
    """
    whom: dict[str, int] = {}
    roles: set[int] = set()
    needed: set[int] = set()
    for number, statement in enumerate(islice(script.statements(), done), 1):
        name, local = setting(statement.read(script.text)) or ("", True)
        if local:
            continue
        if name not in _WHOM:
            needed.update(whom.values())
            continue
        roles.add(number)
        # another session user is there without the role of the one before
        whom = {name: number} if name == _WHOM[0] else whom | {name: number}
    return roles - needed - {*whom.values()}


def _only_locks(select: Any) -> bool:  # noqa: ANN401 -- a SelectStmt, empty in another statement
    """Tell whether a query is one such call, whose key is a constant or made of constants."""
    parts = [field.name for field, _ in select.ListFields()]
    calls = [item.funcname[-1].string.sval for item in _all(select, {"FuncCall"})]
    locking = [name for name in calls if _LOCKING.fullmatch(name)]
    return (
        {*parts} <= {"target_list", "from_clause", "limit_option", "op"}
        and len(select.target_list) == len(locking) == 1
        and all(name in locking or name in _KEYS for name in calls)
        and not any(_all(select, {"SubLink", "RangeVar", "RangeSubselect"}))
    )


def _takes(text: bytes) -> str | None:
    """Name the advisory lock that the words of a text take for the session and do not release."""
    if not _ADVISES.search(text):
        return None
    found = [way[1] for word in scan.bare(text) if (way := _LOCKING.fullmatch(word.lower()))]
    return _ADVISORY if found and "un" not in found else None


def left(text: bytes, functions: dict[str, str]) -> str | None:
    """Name what a statement leaves in its session, where no resume brings it back.

    `functions` are those that the file made before, and what a call leaves: it is added to.
    """
    called = functions and any(name.encode() in text.lower() for name in functions)
    with_body = _WITH_BODY.match(text) and _SETS.search(text)
    if not (called or with_body or _SUSPECT.search(text)):
        return None
    node = parser.parsed(text) or parser.parsed(text, texts=False)
    if node is None:  # a grammar newer than the parser's, or too large for a tree
        return _in_body(text, functions) or _takes(text)
    kind = str(node.WhichOneof("node"))
    statement = getattr(node, kind)
    if kind == "do_stmt":
        body = _body(statement.args, text)
        return _in_body(body, functions, plpgsql=_is_plpgsql(statement.args)) or _takes(body)
    if kind == "create_function_stmt":
        return _function(statement, text, functions)
    found = _in_tree(kind, statement, functions)
    if found or kind not in _RUNS or _only_locks(node.select_stmt):
        return found
    return _takes(text)


def _function(
    statement: Any,  # noqa: ANN401 -- a node
    text: bytes,
    functions: dict[str, str],
) -> str | None:
    """Keep what a call of a new function leaves; making it leaves only one in pg_temp."""
    names = [item.string.sval for item in statement.funcname]
    body = _body(statement.options, text)
    inside = _in_body(body, functions, plpgsql=_is_plpgsql(statement.options))
    if statement.HasField("sql_body"):
        inside = _in_tree("", statement.sql_body, functions)
    if inside := inside or _takes(body or text):
        functions[names[-1].lower()] = inside
    return _TEMPORARIES if _TEMPORARY.fullmatch(names[0]) and len(names) > 1 else None


_TEMPORARIES = "a temporary table, view, sequence or function"


def _by_kind(kind: str, statement: Any) -> str | None:  # noqa: ANN401 -- a node
    """Name what a statement leaves by its own kind."""
    if kind == "discard_stmt":
        return _DISCARDS if statement.target == 1 else None  # DISCARD_ALL
    if kind == "declare_cursor_stmt":
        return "a cursor WITH HOLD" if statement.options & _HOLD else _CURSOR
    names: Sequence[Any] = ()
    if kind == "variable_set_stmt" and statement.name == "search_path" and statement.args:
        return _TEMPORARIES if _TEMPORARY.fullmatch(statement.args[0].a_const.sval.sval) else None
    if kind in ("create_domain_stmt", "define_stmt", "create_enum_stmt", "create_range_stmt"):
        field = {"create_domain_stmt": "domainname", "define_stmt": "defnames"}
        names = getattr(statement, field.get(kind, "type_name"))
    if len(names) > 1 and _TEMPORARY.fullmatch(names[0].string.sval):
        return _TEMPORARIES
    return _BY_KIND.get(kind)


def _in_tree(kind: str, statement: Any, functions: dict[str, str]) -> str | None:  # noqa: ANN401
    if what := _by_kind(kind, statement):
        return what
    made = kind.startswith(("create", "define", "composite", "view"))
    into = {_mention(item.rel) for item in _all(statement, {"IntoClause"})}
    rules: dict[str, Callable[[Any], str | None]] = {
        "FuncCall": lambda item: _called(item, functions),
        "RangeVar": lambda item: (
            _TEMPORARIES if _is_temporary(item, made=made or _mention(item) in into) else None
        ),
        "UpdateStmt": lambda item: "set_config" if _settings(item) else None,
    }
    dropped = {
        _mention(item.rel) for item in _all(statement, {"IntoClause"}) if item.on_commit == _DROPPED
    }
    if kind == "create_stmt" and statement.oncommit == _DROPPED:
        dropped.add(_mention(statement.relation))
    for item in _all(statement, set(rules)):
        if item.DESCRIPTOR.name == "RangeVar" and _mention(item) in dropped:
            continue
        if what := rules[item.DESCRIPTOR.name](item):
            return what
    return None


def _mention(table: Any) -> tuple[str, int]:  # noqa: ANN401 -- a RangeVar
    """Tell one mention of a table from another: its name and its place."""
    return table.relname, table.location


def _is_temporary(table: Any, *, made: bool) -> bool:  # noqa: ANN401 -- a RangeVar
    """Tell whether a table is made as a temporary one; one that is only named is there."""
    in_schema = made and _TEMPORARY.fullmatch(table.schemaname) is not None
    return table.relpersistence == "t" or in_schema


def _settings(update: Any) -> bool:  # noqa: ANN401 -- an UpdateStmt
    return str(update.relation.relname) == "pg_settings"


def _called(call: Any, functions: dict[str, str]) -> str | None:  # noqa: ANN401 -- a FuncCall
    name = call.funcname[-1].string.sval.lower()
    if name == "set_config":
        last = call.args[-1] if call.args else None
        local = last is not None and _is_true(last)
        return None if local else "set_config"
    return _UNLOCKS if name == _UNLOCKS else functions.get(name)


def _is_true(node: Any) -> bool:  # noqa: ANN401 -- a node
    cast = node.WhichOneof("node") == "type_cast"
    constant = node.type_cast.arg.a_const if cast else node.a_const
    return bool(constant.boolval.boolval) or constant.sval.sval.lower() in ("t", "true", "on")


def _all(message: Any, kinds: set[str]) -> Iterator[Any]:  # noqa: ANN401 -- any protobuf message
    """Yield every message of some kinds in a tree; without recursion, which deep ones would end."""
    waiting = [message]
    while waiting:
        found = waiting.pop()
        if found.DESCRIPTOR.name in kinds:
            yield found
        for field, value in found.ListFields():
            if field.message_type is not None:
                waiting.extend([value] if hasattr(value, "DESCRIPTOR") else value)


def _body(options: Sequence[Any], text: bytes) -> bytes:
    """Return the text of a DO block or of a function; a long one may not be in the tree."""
    if len(text) > parser.LARGEST_TEXT:
        long = [text[at:end] for at, end in scan.bodies(text, parser.LONG)]
        if long:
            return b";".join(long)
    for option in options:
        if option.def_elem.defname == "as":
            argument = option.def_elem.arg
            items = argument.list.items
            said = str(items[0].string.sval if items else argument.string.sval)
            return said.encode()
    return b""


def _is_plpgsql(options: Sequence[Any]) -> bool:
    """Tell whether a block or a function is in PL/pgSQL: a block is, unless it says otherwise."""
    said = [
        item.def_elem.arg.string.sval.lower()
        for item in options
        if item.def_elem.defname == "language"
    ]
    return said in ([], ["plpgsql"])


def _in_body(text: bytes, functions: dict[str, str], *, plpgsql: bool = False) -> str | None:
    """Name what a body leaves, by its words: strings count where EXECUTE runs them."""
    declares = False  # between DECLARE and BEGIN a name stands first
    for statement in scan.statements(text):
        piece = statement.text(text)
        executes = False
        for words, first in scan.windows(piece):
            if what := _in_words(words, functions, first, plpgsql=plpgsql, declares=declares):
                return what
            executes = executes or "EXECUTE" in words
            declares = plpgsql and (declares or _begins(words, "DECLARE")) and "BEGIN" not in words
        joined = executes and _JOINED.search(piece) is not None
        for quoted in _texts(piece.decode("utf-8", "replace")) if executes else ():
            alone = quoted.isidentifier() and not joined  # a name or a value
            if not alone and (what := _in_body(quoted.encode(), functions)):
                return what
    return None


_JOINED = re.compile(rb"(?i)\|\||concat|%\d*\$?-?\d*s")  # a statement is put together of pieces


def _begins(words: Sequence[str], word: str) -> bool:
    return any(
        found == word and before in ("", *_OPENING) for before, found in pairwise(["", *words])
    )


def _texts(piece: str) -> Iterator[str]:
    """Yield what is quoted; a tag that never closes is looked for once."""
    at, open_tags = 0, set[str]()
    while (found := _QUOTED.search(piece, at)) is not None:
        at = found.end()
        tag = found["tag"]
        if tag is None:
            yield found["text"].replace("''", "'")
        elif tag in open_tags or (close := piece.find(tag, at)) < 0:
            open_tags.add(tag)
            at -= 1  # its last sign may begin another
        else:
            yield piece[at:close]
            at = close + len(tag)


def _in_words(
    words: Sequence[str],
    functions: dict[str, str],
    first: int = 0,
    *,
    plpgsql: bool = False,
    declares: bool = False,
) -> str | None:
    """Name what some words leave; those before the `first` only stand before it."""
    for at in range(first, len(words)):
        what = _anywhere(words, at, functions, plpgsql=plpgsql)
        if words[at] in _LEAVING and _at_a_beginning(words, at, declares=declares):
            what = what or _by_first_word(words[at:])
        if what:
            return what
    return None


def _anywhere(
    words: Sequence[str], at: int, functions: dict[str, str], *, plpgsql: bool
) -> str | None:
    """Name what a word leaves that may stand inside a statement."""
    word = words[at]
    called = words[at + 1 : at + 2] == ["("]
    if word == "SET_CONFIG" and called and not _local(words[at + 1 :]):
        return "set_config"
    if word == _UNLOCKS.upper():
        return _UNLOCKS
    if word == "CREATE" and _makes_temporary(words[at:]):
        return _TEMPORARIES
    # in PL/pgSQL a variable follows it
    if word == "INTO" and not plpgsql and _into_temporary(words[at:]):
        return _TEMPORARIES
    return functions.get(word.lower()) if called else None


def _at_a_beginning(words: Sequence[str], at: int, *, declares: bool) -> bool:
    """Tell whether a statement begins here, and not the name of a variable or of a column."""
    return not declares if at == 0 else words[at - 1] in _OPENING and not _in_case(words[at:])


def _by_first_word(words: Sequence[str]) -> str | None:
    """Name what a statement leaves, by its first word."""
    word, *following = words[:4]
    if word == "PREPARE" and _prepares(words):
        return word
    if word in ("LISTEN", "LOAD") and len(following) <= 1 and following not in _SIGNS:
        return word
    if (word, *following) == ("DISCARD", "ALL"):
        return _DISCARDS
    if (word, *following[:1]) == ("UPDATE", "PG_SETTINGS"):
        return "set_config"
    return "SET inside a block" if _sets([word, *following]) else None


_LEAVING = {"LISTEN", "LOAD", "PREPARE", "DISCARD", "UPDATE", "SET", "RESET"}
_SIGNS = ["="], ["."], ["("], [","]  # behind the name of a variable


def _in_case(words: Sequence[str]) -> bool:
    """Tell whether an expression goes on here: the END of its CASE is in the same statement."""
    depth = 0
    for word in words:
        depth += {"CASE": 1, "END": -1}.get(word, 0)
        if depth < 0:
            return True
    return False


def _prepares(words: Sequence[str]) -> bool:
    """Tell whether PREPARE, and what follows it, is a statement: a name, types, AS."""
    rest = list(words[1:])
    at = next((at for at, word in enumerate(rest[:2]) if word in ("(", "AS")), None)
    if at is None or rest[at] == "AS":
        return at is not None
    return (")", "AS") in pairwise(rest[at:])  # a type may have brackets of its own


def _makes_temporary(words: Sequence[str]) -> bool:
    """Tell whether CREATE, and what follows it, makes something temporary that stays."""
    name = list(takewhile(lambda word: word not in ("(", "AS", "ON"), words[1:9]))
    said = [word for word in name if word not in ("OR", "REPLACE", "LOCAL", "GLOBAL")]
    kind = said[:1] in (["TEMP"], ["TEMPORARY"])
    schema = any(_TEMPORARY.fullmatch(word.lower()) for word in name)
    return (kind or schema) and "ON COMMIT DROP" not in " ".join(words)


def _into_temporary(words: Sequence[str]) -> bool:
    """Tell whether INTO makes a temporary table, whose name follows; not a variable, or a table."""
    said = [word for word in words[1:5] if word not in ("LOCAL", "GLOBAL", "TABLE")]
    named = re.fullmatch(r"[^\W\d][\w$]*", "".join(said[1:2]))
    temporary = said[:1] in (["TEMP"], ["TEMPORARY"])
    return bool(temporary and named and said[1] not in _BEHIND_INTO)


_BEHIND_INTO = {
    "FROM", "WHERE", "GROUP", "HAVING", "WINDOW", "UNION", "INTERSECT", "EXCEPT", "ORDER", "LIMIT",
    "OFFSET", "FETCH", "FOR", "USING", "VALUES", "SELECT", "DEFAULT", "AS", "WITH",
}  # fmt: skip


def _sets(words: Sequence[str]) -> bool:
    if words[0] == "RESET" and words[1:2] in _SIGNS:
        return False
    return words[0] in ("SET", "RESET") and words[1:2] not in (
        ["LOCAL"],
        ["TRANSACTION"],
        ["CONSTRAINTS"],
    )


def _local(words: Sequence[str]) -> bool:
    """Tell whether the call that opens here ends with `true`: until the transaction's end."""
    depth = 0
    for at, word in enumerate(words):
        depth += {"(": 1, ")": -1}.get(word, 0)
        if depth <= 0:
            return words[at - 1] == "TRUE"
    return False
