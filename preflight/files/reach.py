"""What a statement reaches beyond its database."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

from preflight.files import effects, parser, scan

if TYPE_CHECKING:
    from postgast.pg_query_pb2 import Node

    from preflight.files.migrations import Script

_MAY_REACH = re.compile(
    rb"(?i)\b(role|user|group|tablespace|database|system|subscription|copy|grant|revoke|owned|"
    rb"parameter|pg_\w+|foreign|do|function|procedure|prepare|execute|schema|rule|explain|declare)\b"
)
_FOREIGN_WORD = re.compile(rb"(?i)\bforeign\b")
# the functions of servers and extensions by their whole names: an app's own may begin like them
_CALLS_AWAY = (  # to files, to other servers
    r"dblink(?:_(?:connect(?:_u)?|disconnect|exec|open|fetch|close|send_query|is_busy|get_notify|"
    r"get_result|cancel_query|error_message))?|lo_import|lo_export|"
    r"pg_file_(?:write|sync|rename|unlink|read|length)|"
    r"http(?:_(?:get|post|put|patch|delete|head))?|"
    r"run_command_on_(?:workers|(?:colocated_)?placements|shards|all_nodes|coordinator)|"
    r"citus_(?:(?:add|add_inactive|add_secondary|activate|disable|remove|update|drain)_node|"
    r"check_connection_to_node)"
)
_CALLS = (
    rf"{_CALLS_AWAY}|pg_terminate_backend|pg_cancel_backend|pg_reload_conf|"
    r"pg_rotate_logfile|pg_switch_wal|pg_promote|pg_logical_emit_message|"
    r"pg_stat_reset_(?:shared|slru|replication_slot)|pg_(?:start|stop)_backup|"
    r"pg_backup_(?:start|stop)|pg_create_restore_point|pg_wal_replay_(?:pause|resume)|"
    r"pg_(?:create|copy)_(?:logical|physical)_replication_slot|pg_drop_replication_slot|"
    r"pg_replication_origin_(?:create|drop|advance|(?:session|xact)_(?:setup|reset))|"
    r"pg_replication_slot_advance|pg_logical_slot_get_(?:binary_)?changes"
)
_SCHEMAS_AWAY = (
    r"cron\.(?:schedule|schedule_in_database|unschedule|alter_job)|"
    r"aws_(?:s3|lambda|ml|sagemaker|comprehend|bedrock)\.\w+|"
    r"azure_(?:storage|ai|openai|cognitive|ml)\.\w+|(?:pglogical|spock|bdr)\.\w+|"
    r"net\.http_(?:get|post|delete)|supabase_functions\.http_request"
)
# these are large, and most files need none of them: compiled where one is first asked
_CALLED = rf"(?s)(?:.*\.)?(?:{_CALLS})|{_SCHEMAS_AWAY}"
_CALLED_AWAY = rf"(?s)(?:.*\.)?(?:{_CALLS_AWAY})|{_SCHEMAS_AWAY}"
_MAY_CALL = re.compile(
    rb"(?i)\b(?:%b|cron|aws_\w+|azure_\w+|pglogical|spock|bdr|net)\b" % _CALLS.encode()
)
_SAID_AWAY = _SCHEMAS_AWAY.replace(r"\.", r" \. ")  # as words
# for a body that no parser reads: its words, without comments and quotes
_WORDS = (
    r"(?i)\b(?:create|alter|drop|comment on|security label on) (?:role|"
    r"user(?! mapping)|group|tablespace|database|subscription)\b|"
    r"\b(?:grant|revoke) (?:(?!on\b|;)\S+ )+on (?:database|tablespace|parameter)\b|"
    r"\b(?:reassign|drop) owned\b|"
    r"\bgrant (?:(?!on\b|;)\S+ )+to\b|\brevoke (?:(?!on\b|;)\S+ )+from\b|\balter system\b|"
    r"\bcopy [^;]*\b(?:program\b)|"
    r"\b(?:insert into|update|delete from|truncate) (?:pg_catalog \. )?"
    r"pg_(?:database|authid|auth_members|tablespace|db_role_setting|shdepend|shdescription|"
    r"shseclabel|parameter_acl|subscription|replication_origin)\b|"
    rf"\b(?:{_CALLS}|{_SAID_AWAY}) \("
)
# for the text of a routine, in whose own texts a word counts: it may run them
_TEXT_OR_COMMENT = re.compile(r"('(?:[^']|'')*')|--[^\n]*|/\*.*?\*/", re.DOTALL)
_PIECE = re.compile(r"[\w$]+|[^\w\s]")
# without one of these, nothing of the words above and below is there
_MAY_SAY = (
    rb"(?i)\b(?:role|user|group|tablespace|database|subscription|parameter|owned|grant|revoke|system|"
    rb"program|import|pg_\w+)\b|%b" % _MAY_CALL.pattern.removeprefix(b"(?i)")
)
_MAY_EXECUTE = re.compile(rb"(?i)\bexecute\b")
_WORDS_AWAY = (
    r"(?i)\b(?:create|alter|drop|comment on|security label on) subscription\b|"
    r"\bcreate tablespace\b|\bimport foreign schema\b|\bcopy [^;]*\b(?:program\b)|"
    r"\b(?:insert into|update|delete from|truncate) (?:pg_catalog \. )?pg_subscription\b|"
    rf"\b(?:{_CALLS_AWAY}|{_SAID_AWAY}) \("
)
_WORDS_LEFT = rf"{_WORDS_AWAY}|\b(?:{_CALLS}) \("
_SHARED = {  # what belongs to the whole server, as the parser names kinds of objects
    "OBJECT_DATABASE", "OBJECT_ROLE", "OBJECT_TABLESPACE", "OBJECT_PARAMETER_ACL",
    "OBJECT_SUBSCRIPTION",
}  # fmt: skip
_SHARED_CATALOGS = {
    "pg_database", "pg_authid", "pg_auth_members", "pg_tablespace", "pg_db_role_setting",
    "pg_shdepend", "pg_shdescription", "pg_shseclabel", "pg_parameter_acl", "pg_subscription",
    "pg_replication_origin", "pg_roles", "pg_user", "pg_shadow", "pg_settings",
}  # fmt: skip
_ELSEWHERE = {
    "reassign_owned_stmt": "owned objects may be of the whole server",
    "drop_owned_stmt": "owned objects may be of the whole server",
    "alter_table_move_all_stmt": "tablespaces belong to the whole server",
    "import_foreign_schema_stmt": "connects to another server",
}
# what leaves the whole server: for its files, or for another one
_AWAY = {
    "copy_stmt", "import_foreign_schema_stmt",
    "create_subscription_stmt", "alter_subscription_stmt", "drop_subscription_stmt",
}  # fmt: skip
_SHARED_AWAY = {"OBJECT_SUBSCRIPTION"}
_SHARED_CATALOGS_AWAY = {"pg_subscription"}
_BODY = "holds `{}`, which reaches beyond the database"
_UNKNOWN = "runs `{}`, a text that is only known when it runs"
_ITS_DIRECTORY = "names a directory for a tablespace, which nobody can try but the live server"
_FOREIGN = "has a body in {}, which cannot be read here"
_UNREAD = "is not understood here, and may reach beyond the database"
_TOO_LARGE = "is too large to be understood here, and may reach beyond the database"
# what begins so does nothing beyond the database by its kind
_READABLE = {"INSERT", "SELECT", "UPDATE", "DELETE", "WITH", "VALUES", "("}
_READABLE_MADE = {
    "TABLE", "TEMP", "TEMPORARY", "UNLOGGED", "VIEW", "MATERIALIZED", "RECURSIVE", "INDEX",
    "UNIQUE", "TYPE", "OR", "FUNCTION", "PROCEDURE",
}  # fmt: skip
OPEN = '"x"'  # stands in a text for a name that is only known when it runs
_DEEPEST = 5  # a body in a body in a body


@dataclass(frozen=True, slots=True)
class Reach:
    """What a statement reaches beyond its bounds; not `certain` where it could not be read."""

    words: str
    certain: bool = True


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a statement is to stay inside of: its database; or its server, if that is thrown away.

    `foreign` are the names of foreign tables. With `calls`, what a function does beyond the
    database is beyond the server, too: no rollback takes it back.
    """

    foreign: Collection[str] = ()
    server: bool = False
    calls: bool = False


DATABASE = Bounds()
# roles, too, and what else belongs to the whole server, are as they were after a rollback
ROLLED_BACK = Bounds(server=True, calls=True)


def foreign_made(script: Script) -> set[str]:
    """Return the names of the foreign tables that a file makes, outside of blocks and routines."""
    if not _FOREIGN_WORD.search(script.text):
        return set()
    texts = (statement.read(script.text) for statement in script.statements())
    nodes = [
        parser.parsed(text)
        for text in texts
        if scan.words(text, 3) == ["CREATE", "FOREIGN", "TABLE"]
    ]
    return {node.create_foreign_table_stmt.base_stmt.relation.relname for node in nodes if node}


def beyond(text: bytes, bounds: Bounds = DATABASE, depth: int = 0) -> Reach | None:
    """Return what a statement reaches beyond its bounds, if it does or may."""
    try:
        return _beyond(text, bounds, depth)
    except Exception:  # noqa: BLE001 -- not known is an answer, too
        return Reach(_UNREAD, certain=False)


def _beyond(text: bytes, bounds: Bounds, depth: int) -> Reach | None:
    if not (_MAY_REACH.search(text) or _MAY_CALL.search(text) or bounds.foreign):
        return None
    node = parser.parsed(text)
    if node is None:
        return _of_large(text, bounds) if len(text) > parser.SHALLOW else _by_words(text, bounds)
    if found := _named(node, text, bounds):
        return Reach(found)
    if bounds.server and node.HasField("create_table_space_stmt"):
        return Reach(_ITS_DIRECTORY, certain=False)
    if depth == _DEEPEST:
        return None
    return _in_bodies(node, text, bounds, depth)


def _of_large(text: bytes, bounds: Bounds) -> Reach | None:
    """Look at what is too large for a tree: at its words, and at what could be spelled otherwise.

    Of what is only large in its texts there is a tree without them; bodies are read by their words.
    """
    if node := parser.parsed(text, texts=False):
        named = _named(node, text, bounds)
        return Reach(named) if named else _in_long_bodies(node, text, bounds)
    if (found := _by_words(text, bounds)) or parser.fits(text):
        return found
    first, *more = [*scan.words(text, 2), ""]
    readable = first in _READABLE or (first in ("CREATE", "ALTER") and more[0] in _READABLE_MADE)
    return Reach(_TOO_LARGE, certain=False) if not readable or _suspicious(text, bounds) else None


def _suspicious(text: bytes, bounds: Bounds) -> bool:
    """Tell whether the code of a statement has a name that leads beyond its bounds, if quoted."""
    names = [re.escape(name.encode()) for name in (*_SHARED_CATALOGS, *bounds.foreign)]
    named = re.compile(rb"%b|%b" % (_MAY_CALL.pattern, b"|".join(names)))
    return bool(named.search(text)) and any(named.search(piece) for piece in scan.code(text))


def _in_long_bodies(node: Node, text: bytes, bounds: Bounds) -> Reach | None:
    """Look at the words of what a block or a routine holds, where that is too long for a tree."""
    language, _ = _body(node)
    if language in (None, "c", "internal"):
        return None
    if language not in ("sql", "plpgsql"):
        return Reach(_FOREIGN.format(language), certain=False)
    found = [_in_words(text, at, end, bounds) for at, end in scan.bodies(text, parser.LONG)]
    return next(filter(None, found), None)


def _named(node: Node, text: bytes, bounds: Bounds) -> str | None:
    """Say what a statement, or one inside it, reaches by its kind, its target or a call."""
    for inner in parser.every(node, "Node"):
        kind = str(inner.WhichOneof("node"))
        if kind == "func_call":
            name = ".".join(part.string.sval for part in inner.func_call.funcname).lower()
            called = _CALLED_AWAY if bounds.server and not bounds.calls else _CALLED
            if re.fullmatch(called, name):
                return f"calls {name}, which reaches beyond the database"
        elif kind.endswith("_stmt") and (
            found := _of_kind(inner, kind, bounds)
            or _shared(getattr(inner, kind), _SHARED_AWAY if bounds.server else _SHARED)
        ):
            return found
    return _written_beyond(effects.of_node(node, text), bounds)


def _of_kind(node: Node, kind: str, bounds: Bounds) -> str | None:
    if bounds.server and kind not in _AWAY:
        return None
    return _ELSEWHERE.get(kind) or effects.external(node)


def _written_beyond(effect: effects.Effect, bounds: Bounds) -> str | None:
    """Tell whether rows are changed that are not inside the bounds."""
    catalogs = _SHARED_CATALOGS_AWAY if bounds.server else _SHARED_CATALOGS
    for lock in effect.locks:
        name = lock.table.rpartition(".")[2].strip('"')
        if effects.STRENGTH.index(lock.mode) < effects.STRENGTH.index(effects.ROW_EXCLUSIVE):
            continue
        if name in catalogs:
            return f"changes {name}, which belongs to the whole server"
        if name in bounds.foreign:
            return f"changes the foreign table {lock.table}"
    return None


def _shared(statement: Any, kinds: Collection[str]) -> str | None:  # noqa: ANN401 -- protobuf
    """Tell whether a statement changes something of the whole server: its owner, rights, words."""
    from postgast.pg_query_pb2 import ObjectType  # noqa: PLC0415 -- parsed, so it is loaded

    fields = {field.name for field in statement.DESCRIPTOR.fields}
    for field in {"objtype", "object_type", "rename_type"} & fields:
        named = str(ObjectType.Name(getattr(statement, field)))
        if named in kinds:
            word = named.removeprefix("OBJECT_").removesuffix("_ACL").lower()
            return f"{word}s belong to the whole server"
    return None


def holding(words: str) -> str:
    """Say what a text holds that reaches beyond the database."""
    return _BODY.format(words)


def in_routine(language: str, body: str) -> str | None:
    """Return what a routine that is there already holds, if it reaches beyond the database.

    Where nobody can read what EXECUTE runs, the words of its texts say it: no word, no reach.
    """
    if not re.search(_MAY_SAY, body.encode()):
        return None
    said = _TEXT_OR_COMMENT.sub(lambda found: found[1] or " ", body)
    words = re.search(_WORDS, " ".join(_PIECE.findall(said)).lower())
    quote = "$preflight_routine$"
    made = f'CREATE FUNCTION f() RETURNS trigger LANGUAGE "{language}" AS {quote}{body}{quote}'
    return words[0][:60] if words and beyond(made.encode()) else None


# bodies


def _in_bodies(node: Node, text: bytes, bounds: Bounds, depth: int) -> Reach | None:
    """Look at what a block or a routine holds; what could not be read is told last."""
    unread = None
    for statement in inner(node, text, bounds):
        if isinstance(statement, Reach):
            found: Reach | None = statement
        else:
            found = beyond(statement.encode(), bounds, depth + 1)
            if found and found.certain and not found.words.startswith("holds"):
                found = Reach(_BODY.format(" ".join(statement.split())[:60]))
        if found and found.certain:
            return found
        unread = unread or found
    return unread


def inner(node: Node, text: bytes, bounds: Bounds = DATABASE) -> Iterator[str | Reach]:
    """Yield the statements of a body, and instead of one that cannot be read why."""
    language, body = _body(node)
    if body is None or language in ("c", "internal"):
        return  # RETURN and BEGIN ATOMIC are part of the tree
    if language == "sql":
        yield from _statements(body)
    elif language == "plpgsql":
        yield from _of_plpgsql(text, body, bounds)
    else:
        yield Reach(_FOREIGN.format(language), certain=False)


def _body(node: Node) -> tuple[str | None, str | None]:
    """Return the language and the text of what a block or a routine holds, if it is one."""
    kind = str(node.WhichOneof("node"))
    if kind == "do_stmt":
        options = {item.def_elem.defname: item.def_elem.arg for item in node.do_stmt.args}
    elif kind == "create_function_stmt":
        made = node.create_function_stmt
        options = {item.def_elem.defname: item.def_elem.arg for item in made.options}
    else:
        return None, None
    language = options["language"].string.sval.lower() if "language" in options else "plpgsql"
    said = parser.every(options["as"], "String") if "as" in options else ()
    return language, next((item.sval for item in said), None)


def _statements(body: str) -> Iterator[str | Reach]:
    script = body.encode()
    for item in scan.items(script):
        if isinstance(item, scan.Statement):
            yield item.text(script).decode()


def _of_plpgsql(text: bytes, body: str, bounds: Bounds) -> Iterator[str | Reach]:
    tree = _safe_tree(text)
    if tree is not None:
        yield from _expressions(tree)
        return
    words = body.encode()
    if found := _in_words(words, 0, len(words), bounds):
        yield found


def _in_words(text: bytes, at: int, end: int, bounds: Bounds) -> Reach | None:
    """Look at the words of a body that has no tree: also for what EXECUTE may run."""
    if found := _by_words(text, bounds, at, end):
        return found
    if not _MAY_EXECUTE.search(text, at, end):
        return None
    said = pairwise(chain(scan.bare(text, at, end), [""]))
    if any(word == "EXECUTE" and after not in ("FUNCTION", "PROCEDURE") for word, after in said):
        return Reach(_UNKNOWN.format("EXECUTE"), certain=False)
    return None


def telling(node: Node, text: bytes) -> bool:
    """Tell whether `inner` yields all that a body says: not of one in PL/pgSQL without a tree."""
    language, body = _body(node)
    return body is None or language != "plpgsql" or _safe_tree(text) is not None


@functools.lru_cache(2)  # it is asked for twice; a large one is tried in another process before
def _safe_tree(text: bytes) -> object | None:
    """Return the tree of a PL/pgSQL body that is not too large for one."""
    short = len(text) <= parser.SHALLOW  # it takes 250 times the bytes of its text
    if short or (len(text) <= parser.LARGEST and parser.survived(lambda: _tree(text))):
        return _tree(text)
    return None


def _tree(text: bytes) -> object | None:
    """Return the tree of a PL/pgSQL body; None where it has a type that only the server knows."""
    import postgast  # noqa: PLC0415 -- parsed, so it is loaded
    from postgast.native import lib  # noqa: PLC0415 -- likewise

    result = lib.pg_query_parse_plpgsql(text)
    try:
        postgast.errors.check_error(result)
        # a trigger's own variables are written as `{}}`
        found: object = json.loads(re.sub(rb"(?<=[,\[])\{\}\}", b"{}", result.plpgsql_funcs))
    except (postgast.PgQueryError, ValueError, RecursionError):
        return None
    else:
        return found
    finally:
        lib.pg_query_free_plpgsql_parse_result(result)


def _expressions(tree: Any) -> Iterator[str | Reach]:  # noqa: ANN401 -- JSON
    """Yield each SQL text of a PL/pgSQL tree, and what EXECUTE is given where that is constant."""
    rest = [tree]
    while rest:
        found = rest.pop()
        if isinstance(found, list):
            rest += reversed(found)
            continue
        if not isinstance(found, dict):
            continue
        for name, value in found.items():
            dynamic = {"PLpgSQL_stmt_dynexecute": "query", "PLpgSQL_stmt_dynfors": "query"}
            dynamic |= {"PLpgSQL_stmt_return_query": "dynquery", "PLpgSQL_stmt_open": "dynquery"}
            given = value.get(dynamic[name]) if name in dynamic else None
            if given:
                said = given["PLpgSQL_expr"]["query"]
                text = _constant(said)
                yield (
                    Reach(_UNKNOWN.format(f"EXECUTE {' '.join(said.split())[:40]}"), certain=False)
                    if text is None
                    else text
                )
            if name == "PLpgSQL_expr":
                yield _sql_of(value)
        rest += reversed(list(found.values()))


def _sql_of(expression: dict[str, Any]) -> str:
    """Return an expression of PL/pgSQL as a statement: some are none by themselves."""
    text, mode = str(expression["query"]), expression.get("parseMode", 0)
    if mode == 0:
        return text
    if mode > 2:  # noqa: PLR2004 -- an assignment, whose target does nothing
        text = re.split(r":=|=", text, maxsplit=1)[-1]
    return f"SELECT {text}"


_ONLY_NAMES = re.compile(r"(?:[^%]|%%|%(?:\d+\$)?-?\d*[IL])*", re.DOTALL)


def _constant(expression: str) -> str | None:
    """Return the text that an expression gives but for names and values; None if nobody knows."""
    node = parser.parsed(b"SELECT " + expression.encode())
    if node is None or len(node.select_stmt.target_list) != 1:
        return None
    return _folded(node.select_stmt.target_list[0].res_target.val)


def _folded(node: Node) -> str | None:  # noqa: PLR0911 -- one line a kind of expression
    kind = node.WhichOneof("node")
    if kind == "a_const":
        return str(node.a_const.sval.sval) if node.a_const.HasField("sval") else None
    if kind == "type_cast":
        return _folded(node.type_cast.arg)
    if kind == "a_expr" and [part.string.sval for part in node.a_expr.name] == ["||"]:
        left, right = _folded(node.a_expr.lexpr), _folded(node.a_expr.rexpr)
        return None if left is None or right is None else left + right
    if kind != "func_call":
        return None
    name = node.func_call.funcname[-1].string.sval
    if name in ("quote_ident", "quote_literal", "quote_nullable"):
        return OPEN if name == "quote_ident" else "'x'"
    if name == "format" and node.func_call.args:
        form = _folded(node.func_call.args[0])
        if form is not None and _ONLY_NAMES.fullmatch(form):
            named = re.sub(r"%(?:\d+\$)?-?\d*I", OPEN, form)
            return re.sub(r"%(?:\d+\$)?-?\d*L", "'x'", named).replace("%%", "%")
    return None


def _by_words(text: bytes, bounds: Bounds, at: int = 0, end: int | None = None) -> Reach | None:
    """Look at the words of what no parser reads, without comments and quotes, some at a time."""
    end = len(text) if end is None else end
    if not re.compile(_MAY_SAY).search(text, at, end):
        return None
    wide = _WORDS_LEFT if bounds.calls else _WORDS_AWAY
    pattern = wide if bounds.server else _WORDS
    for words, _ in scan.windows(text, at, end):
        if found := re.search(pattern, " ".join(words).lower()):
            return Reach(_BODY.format(found[0][:60]))
    return None
