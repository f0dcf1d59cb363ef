"""What a statement names, and in which schema: for a run that is limited to some."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from preflight.files import parser, reach

if TYPE_CHECKING:
    from postgast.pg_query_pb2 import Node

SYSTEM = re.compile(r"pg_.*|information_schema")
# fields, and options, whose texts are the parts of one name; of other lists each text is for itself
_NAMES = {
    "names", "funcname", "func_name", "name", "oper_name", "use_op", "exclusions", "collname",
    "collation", "opclass", "opclassname", "opfamilyname", "order_family", "objname", "defnames",
    "domainname", "type_name", "conversion_name", "dictname", "cfgname", "dicts", "handler_name",
    "plhandler", "plinline", "plvalidator", "method",
    "sequence_name", "from", "support", "handler", "validator", "commutator", "negator", "sortop",
}  # fmt: skip
# what has its table's name before its own, and what is within a relation
_WITHIN = {
    "OBJECT_COLUMN", "OBJECT_TABCONSTRAINT", "OBJECT_TRIGGER", "OBJECT_POLICY", "OBJECT_RULE",
    "owned_by", "pct_type",
}  # fmt: skip
_OF_METHODS = {"OBJECT_OPCLASS", "OBJECT_OPFAMILY"}  # these have their access method's before it
# what is called by one name alone: relations are told by their own kind of node
_SINGLE = {"funcname", "names", "defnames", "domainname", "type_name"} | _WITHIN
# where the name of a schema stands alone
_SCHEMAS = {"schemaname", "newschema", "local_schema"}
_KINDS = ("objtype", "object_type", "rename_type", "remove_type")
_MAKES = {
    "create_stmt", "view_stmt", "create_seq_stmt", "create_function_stmt", "create_domain_stmt",
    "create_enum_stmt", "create_range_stmt", "composite_type_stmt", "create_table_as_stmt",
    "create_foreign_table_stmt", "define_stmt",
}  # fmt: skip
_QUALIFIED = re.compile(r'(?<![\w."])("(?:[^"]|"")+"|[^\W\d][\w$]*)\s*\.')
# columns that hold a schema's name
_OF_CATALOGS = re.compile(rb"(?i)\b(?:\w+_schema|schema_?name|nspname|schema)\b")
_DEEPEST = 5
_ABOUT = {"PublicationObjSpec": "pubtable", "ReindexStmt": "relation"}  # else it is of a schema
_ALL_IN_SCHEMA = 2  # ACL_TARGET_ALL_IN_SCHEMA


@dataclass(frozen=True, slots=True)
class Name:
    """A name as a statement has it; without a schema where it says none, `made` if it is new.

    Without a name it is the schema's own. One out of a text may be no name at all: `perhaps`.
    """

    schema: str
    name: str
    made: bool = False
    perhaps: bool = False


def names(text: bytes, depth: int = 0) -> Iterator[Name]:
    """Yield what a statement names, also in the bodies that it holds and in its texts."""
    node = parser.parsed(text, whole=True)
    if node is None:
        yield from _by_words(text)
        return
    made = _made(node)
    for schema, name in _in_tree(node):
        yield Name(schema, name, (schema, name) == made)
    alone = _OF_CATALOGS.search(text) is not None
    for constant in parser.every(node, "A_Const"):
        yield from _in_text(constant.sval.sval, alone=alone)
    if depth == _DEEPEST:
        return
    for inner in reach.inner(node, text):
        if isinstance(inner, str):
            yield from names(inner.encode(), depth + 1)


def path_of(text: bytes) -> list[str] | None:
    """Return the search_path that a statement sets with plain names; None where it sets none."""
    if b"search_path" not in text.lower() or (node := parser.parsed(text)) is None:
        return None
    if node.WhichOneof("node") != "variable_set_stmt":
        return None
    said = node.variable_set_stmt
    if said.name != "search_path" or not said.args:
        return None
    return [item.a_const.sval.sval for item in said.args]


def _made(node: Node) -> tuple[str, str] | None:
    """Return the name of what a statement makes."""
    kind = str(node.WhichOneof("node"))
    if kind not in _MAKES:
        return None
    for name in _in_tree(node):  # the outer names come first
        return name
    return None


def _in_tree(node: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401 -- any protobuf message
    rest = [(node, "")]
    while rest:
        found, what = rest.pop()
        kind = found.DESCRIPTOR.name
        if kind == "RangeVar":
            yield found.schemaname, found.relname
            continue
        yield from ((schema, "") for schema in _schemas(found))
        below: list[tuple[Any, str]] = []
        for field, value in found.ListFields():
            if field.message_type is None:
                continue
            inner = [value] if hasattr(value, "DESCRIPTOR") else list(value)
            said = what if kind in {"Node", "List"} else _what(found, field.name)
            if not (parts := _strings(inner)):
                below += ((item, said) for item in inner)
            elif kind == "List" or not said.startswith("OBJECT_"):  # else each is a name for itself
                yield from _name(said, parts)
        rest += reversed(below)


def _what(message: Any, field: str) -> str:  # noqa: ANN401 -- likewise
    """Return what a list of texts in a field is of: the kind of an object, an option, the field."""
    from postgast import pg_query_pb2  # noqa: PLC0415 -- parsed, so it is loaded

    if field in {"object", "objects"}:
        for each in _KINDS:
            if each in message.DESCRIPTOR.fields_by_name:
                return str(pg_query_pb2.ObjectType.Name(getattr(message, each)))
    if field == "arg" and message.DESCRIPTOR.name == "DefElem":
        return str(message.defname)
    return "pct_type" if field == "names" and message.pct_type else field


def _name(what: str, parts: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the schema and the name that some texts are, if they are one."""
    if what in _WITHIN:
        parts = parts[:-1]
    elif what in _OF_METHODS:
        parts = parts[1:]
    elif what not in _NAMES and not what.startswith("OBJECT_"):
        return
    if len(parts) > 1:
        yield parts[-2], parts[-1]
    elif parts and what in _SINGLE:
        yield "", parts[0]


def _strings(nodes: Sequence[Any]) -> list[str]:
    """Return the texts of a list, if it has nothing else."""
    if any(item.DESCRIPTOR.name != "Node" or item.WhichOneof("node") != "string" for item in nodes):
        return []
    return [item.string.sval for item in nodes]


def _schemas(message: Any) -> Iterator[str]:  # noqa: ANN401 -- likewise
    """Yield the schemas that a part of a statement names as such."""
    from postgast import pg_query_pb2  # noqa: PLC0415 -- parsed, so it is loaded

    kind, fields = message.DESCRIPTOR.name, message.DESCRIPTOR.fields_by_name
    if kind == "DefElem" and message.defname in {"schema", "schemas"}:
        yield from (text.sval for text in parser.every(message.arg, "String"))
    elif (about := _ABOUT.get(kind)) and not message.HasField(about):
        yield message.name
    for name in _SCHEMAS:
        if name in fields and (said := getattr(message, name)):
            yield said
    of_schemas = any(
        getattr(message, each) == pg_query_pb2.OBJECT_SCHEMA for each in _KINDS if each in fields
    )
    if of_schemas or (kind == "GrantStmt" and message.targtype == _ALL_IN_SCHEMA):
        nodes = getattr(message, "objects", [])
        nodes = [*nodes, message.object] if "object" in fields else nodes
        yield from (text.sval for node in nodes for text in parser.every(node, "String"))
        if "subname" in fields and message.subname:
            yield message.subname


def _in_text(text: str, *, alone: bool) -> Iterator[Name]:
    """Yield a name in a text, as `to_regclass` is given one; `alone`: or all of it."""
    for found in _QUALIFIED.finditer(text):
        yield Name(_bare(found[1]), "", perhaps=True)
    if alone:
        yield Name(text, "", perhaps=True)


def _by_words(text: bytes) -> Iterator[Name]:
    plain = text.decode("utf-8", "replace")
    return (Name(_bare(found[1]), "", perhaps=True) for found in _QUALIFIED.finditer(plain))


def _bare(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name
