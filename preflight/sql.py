"""What a script contains: statements and where they stand, found without a server.

The text is cut as psql cuts it (quotes, dollar quotes, comments, parentheses, BEGIN ATOMIC bodies,
inline COPY data), one statement at a time, so that a file of 100 MB needs no second copy of itself.
What a statement *does* is asked of PostgreSQL's own parser (libpg_query, through postgast), and
only when its first words leave a doubt: the import costs 0.12 s.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from postgast.pg_query_pb2 import Node

_TOKEN = re.compile(
    rb"""
    (?P<comment>--[^\n]*)
  | (?P<block>/\*)
  | (?P<string>(?<![\w$\x80-\xff])[eE]'(?:[^'\\]++|\\.|'')*+' | '[^']*+')
  | (?P<name>"[^"]*+")
  | (?P<dollar>(?<![\w$\x80-\xff])\$(?:[A-Za-z_\x80-\xff][\w\x80-\xff]*+)?\$)
  | (?P<end>;)
  | (?P<open>\() | (?P<close>\))
  | (?P<meta>\\[^\s\\]*)
  | (?P<broken>['"])
    """,
    re.VERBOSE | re.DOTALL,
)
_BLOCK_EDGE = re.compile(rb"/\*|\*/")
_SOLID = re.compile(rb"[^\s]")
_WORD = re.compile(
    rb"""--[^\n]*|/\*|(?<![\w$\x80-\xff])[eE]'(?:[^'\\]++|\\.|'')*+'|'[^']*+'|"[^"]*+"
    |(?<![\w$\x80-\xff])(?P<tag>\$(?:[A-Za-z_\x80-\xff][\w\x80-\xff]*+)?\$)
    |(?P<word>[A-Za-z_\x80-\xff][\w$\x80-\xff]*+)|(?P<sign>[(),=.])""",
    re.VERBOSE | re.DOTALL,
)
_COPY_END = re.compile(rb"^\\\.[ \t]*(?:\n|\Z)", re.MULTILINE)
_DIRECTIVE = re.compile(rb"--\s*preflight\s*:\s*(.*?)\s*\Z", re.DOTALL)

CONTROL = {"BEGIN", "START", "COMMIT", "END", "ROLLBACK", "ABORT", "SAVEPOINT", "RELEASE"}
READING = {"SELECT", "WITH", "VALUES", "TABLE"}
_DOUBTFUL = {"VACUUM", "REINDEX", "CLUSTER", "DISCARD", "PREPARE"}
_DOUBTFUL_PAIRS = {
    ("CREATE", "DATABASE"),
    ("DROP", "DATABASE"),
    ("ALTER", "DATABASE"),
    ("CREATE", "TABLESPACE"),
    ("DROP", "TABLESPACE"),
    ("ALTER", "SYSTEM"),
    ("CREATE", "SUBSCRIPTION"),
    ("ALTER", "SUBSCRIPTION"),
    ("DROP", "SUBSCRIPTION"),
}


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement: byte offsets in its script, and the inline COPY data that follows it."""

    start: int
    end: int
    data: tuple[int, int] | None = None

    def text(self, script: bytes) -> bytes:
        """Return the statement without its semicolon; the script itself if it is all of it."""
        return (
            script if (self.start, self.end) == (0, len(script)) else script[self.start : self.end]
        )


@dataclass(frozen=True, slots=True)
class Directive:
    """A `-- preflight: …` comment and where it stands."""

    start: int
    text: str


@dataclass(frozen=True, slots=True)
class Defect:
    """Something that no server would run as it was meant, and what to do about it."""

    start: int
    message: str
    hint: str | None = None


def position(script: bytes, offset: int) -> tuple[int, int]:
    """Return the line and the column (in characters) of a byte offset, both from 1."""
    line_start = script.rfind(b"\n", 0, offset) + 1
    column = len(script[line_start:offset].decode("utf-8", "replace"))
    return script.count(b"\n", 0, offset) + 1, column + 1


def statements(script: bytes) -> Iterator[Statement]:
    """Yield the statements of a script that was found sound."""
    return (item for item in scan(script) if isinstance(item, Statement))


def scan(  # noqa: C901, PLR0912 -- one branch a kind of token
    script: bytes,
) -> Iterator[Statement | Directive | Defect]:
    """Yield what a script contains, in order; stops at a defect after which nothing is certain."""
    start, depth, at = -1, 0, 0
    while True:
        token = _TOKEN.search(script, at)
        found = token.start() if token else len(script)
        if start < 0 and (solid := _SOLID.search(script, at, found)):
            start = solid.start()
        if token is None:
            break
        kind, at = token.lastgroup, token.end()
        if start < 0 and kind not in ("comment", "block", "end", "meta"):
            start = found
        if kind == "comment":
            if directive := _DIRECTIVE.match(token.group()):
                yield Directive(found, directive[1].decode("utf-8", "replace"))
        elif kind == "block":
            at = _block_end(script, at)
            if at < 0:
                yield Defect(found, "this comment never ends", "Close it with */.")
                return
        elif kind == "dollar":
            close = script.find(token.group(), at)
            if close < 0:
                yield Defect(found, f"this {token.group().decode()} quote never ends")
                return
            at = close + len(token.group())
        elif kind == "broken":
            what = "string" if token.group() == b"'" else "quoted name"
            yield Defect(found, f"this {what} never ends", "Its closing quote is missing.")
            return
        elif kind == "meta":
            yield _meta_command(token)
            line_end = script.find(b"\n", at)
            at = len(script) if line_end < 0 else line_end
            start, depth = -1, 0
        elif kind == "open":
            depth += 1
        elif kind == "close":
            depth = max(0, depth - 1)
        elif kind == "end" and depth == 0 and not _inside_atomic(script, start, found):
            if start >= 0:
                item = _statement(script, start, found)
                yield item
                if isinstance(item, Defect):
                    return
                at = item.data[1] if item.data else at
            start = -1
    if start >= 0:
        yield _statement(script, start, len(script))


def _block_end(script: bytes, at: int) -> int:
    depth = 1
    while depth:
        edge = _BLOCK_EDGE.search(script, at)
        if edge is None:
            return -1
        depth += 1 if edge.group() == b"/*" else -1
        at = edge.end()
    return at


def _meta_command(token: re.Match[bytes]) -> Defect:
    command = token.group().decode("utf-8", "replace")
    if command == "\\.":
        return Defect(token.start(), "\\. ends inline COPY data, but no COPY … FROM stdin is open")
    hint = "Only psql knows this command; write plain SQL"
    hint += (
        " (this looks like a dump: restore it with psql, do not migrate with it)."
        if command in ("\\restrict", "\\unrestrict", "\\connect")
        else "."
    )
    return Defect(token.start(), f"psql meta-command {command}", hint)


def _statement(script: bytes, start: int, end: int) -> Statement | Defect:
    statement = Statement(start, end)
    if script[start : start + 4].upper() != b"COPY" or not _copies_from_stdin(script[start:end]):
        return statement
    line_end = script.find(b"\n", end)
    if line_end < 0 or script[end + 1 : line_end].strip():
        return Defect(end, "COPY … FROM stdin without its data on the next line")
    close = _COPY_END.search(script, line_end + 1)
    if close is None:
        return Defect(start, "the data of COPY … FROM stdin never ends", r"End it with a line \.")
    return Statement(start, end, (line_end + 1, close.end()))


def copy_data(script: bytes, statement: Statement) -> tuple[int, int]:
    r"""Return the byte range of a statement's inline data, without the closing \. line."""
    first, last = statement.data or (0, 0)
    return first, max(first, script.rfind(b"\\.", first, last))


def _copies_from_stdin(text: bytes) -> bool:
    said = words(text, 200)
    return any(pair == ("FROM", "STDIN") for pair in pairwise(said))


def _inside_atomic(script: bytes, start: int, end: int) -> bool:
    """Tell whether a semicolon stands inside BEGIN ATOMIC … END, as psql counts it."""
    if start < 0 or script[start : start + 6].upper() != b"CREATE":
        return False
    head = [word for word in words(script[start : start + 400], 8) if word not in ("OR", "REPLACE")]
    if len(head) < 2 or head[1] not in ("FUNCTION", "PROCEDURE"):  # noqa: PLR2004 -- two words
        return False
    depth, before = 0, ""
    for word in words(script[start:end]):
        if (depth and word in ("BEGIN", "CASE")) or (before == "BEGIN" and word == "ATOMIC"):
            depth += 1
        elif depth and word == "END":
            depth -= 1
        before = word
    return depth > 0


def words(text: bytes, limit: int | None = None) -> list[str]:
    """Return the bare words and the signs ( ) , = . of a statement, upper case, quotes left out."""
    found: list[str] = []
    at = 0
    while limit is None or len(found) < limit:
        token = _WORD.search(text, at)
        if token is None:
            break
        at = token.end()
        if token.group() == b"/*":
            at = _block_end(text, at)
            if at < 0:
                break
        elif token["tag"]:
            close = text.find(token["tag"], at)
            at = len(text) if close < 0 else close + len(token["tag"])
        elif token["word"] or token["sign"]:
            found.append(token.group().decode("utf-8", "replace").upper())
    return found


def is_control(text: bytes) -> bool:
    """Tell whether a statement begins or ends a transaction or a savepoint."""
    head = words(text[:400], 2)
    return bool(head) and (head[0] in CONTROL or head == ["PREPARE", "TRANSACTION"])


def opens_transaction(text: bytes) -> bool:
    """Tell whether a statement is a BEGIN that asks for nothing else."""
    return words(text) in (
        ["BEGIN"],
        ["BEGIN", "WORK"],
        ["BEGIN", "TRANSACTION"],
        ["START", "TRANSACTION"],
    )


def closes_transaction(text: bytes) -> bool:
    """Tell whether a statement is a plain COMMIT."""
    said = words(text)
    return (
        bool(said) and said[0] in ("COMMIT", "END") and said[1:] in ([], ["WORK"], ["TRANSACTION"])
    )


def reads_only(text: bytes) -> bool:
    """Tell whether a statement is a query."""
    return words(text[:4000].lstrip(b"( \t\n"), 1)[:1] in [[word] for word in READING]


def outside_transaction(text: bytes) -> bool:
    """Tell whether PostgreSQL refuses a statement inside a transaction (SQLSTATE 25001).

    The list was tried against PostgreSQL 15 and 18; REINDEX of a partitioned relation cannot be
    told from the text, so the server has the last word.
    """
    head = words(text[:400], 2)
    pair = tuple(head)
    if not head or not (
        head[0] in _DOUBTFUL
        or pair in _DOUBTFUL_PAIRS
        or (head[0] in ("CREATE", "DROP", "ALTER") and re.search(rb"(?i)concurrently", text))
    ):
        return False
    node = parsed(text)
    return node is not None and _refused_in_transaction(node)


def parsed(text: bytes) -> Node | None:
    """Return what PostgreSQL's parser makes of one statement, or None for newer grammar."""
    import postgast  # noqa: PLC0415 -- 0.12 s, and only for statements in doubt

    try:
        tree = postgast.parse(text.decode())
    except postgast.PgQueryError:
        return None
    return tree.stmts[0].stmt if len(tree.stmts) == 1 else None


def _refused_in_transaction(node: Node) -> bool:  # noqa: C901, PLR0911 -- one line a statement
    kind = node.WhichOneof("node")
    match kind:
        case "index_stmt":
            return bool(node.index_stmt.concurrent)
        case "drop_stmt":
            return bool(node.drop_stmt.concurrent)
        case "vacuum_stmt":
            return bool(node.vacuum_stmt.is_vacuumcmd)
        case "cluster_stmt":
            return not node.cluster_stmt.HasField("relation")
        case "discard_stmt":
            return bool(node.discard_stmt.target == 1)  # DISCARD_ALL
        case "reindex_stmt":
            whole = node.reindex_stmt.kind in (3, 4, 5)  # SCHEMA, SYSTEM, DATABASE
            return whole or _options(node.reindex_stmt.params).get("concurrently", False)
        case "alter_table_stmt":
            commands = [item.alter_table_cmd for item in node.alter_table_stmt.cmds]
            return any(
                getattr(command, "def").partition_cmd.concurrent
                for command in commands
                if getattr(command, "def").WhichOneof("node") == "partition_cmd"
            )
        case "alter_database_stmt":
            return "tablespace" in _options(node.alter_database_stmt.options)
        case "create_subscription_stmt":
            said = _options(node.create_subscription_stmt.options)
            return said.get("connect", True) and said.get("create_slot", True)
        case "alter_subscription_stmt":  # SET, ADD, DROP PUBLICATION and REFRESH
            said = _options(node.alter_subscription_stmt.options)
            return node.alter_subscription_stmt.kind in range(3, 7) and said.get("refresh", True)
        case _:
            return kind in (
                "createdb_stmt",
                "dropdb_stmt",
                "create_table_space_stmt",
                "drop_table_space_stmt",
                "alter_system_stmt",
            )


def _options(items: Iterable[Node]) -> dict[str, bool]:
    """Return the names of a statement's options and whether each is switched on."""
    said = {item.def_elem.defname: item.def_elem.arg for item in items}
    return {
        name: str(argument.string.sval).lower() not in ("false", "off", "0")
        and not (argument.WhichOneof("node") == "boolean" and not argument.boolean.boolval)
        for name, argument in said.items()
    }
