"""What each statement of a file does, as a plan and lint tell it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from postgast.pg_query_pb2 import Node

    from preflight.files.effects import Effect, Lock, Reach
    from preflight.files.migrations import Migration
    from preflight.files.where import Where


@dataclass(frozen=True, slots=True)
class Blocker:
    """Who is in a statement's way: a session, or (pid 0) a prepared transaction."""

    pid: int
    application: str | None = None
    user: str | None = None
    state: str | None = None
    age_s: float | None = None  # of its transaction
    kind: str | None = None  # None: a client's session
    gid: str | None = None  # of a prepared transaction
    query: str | None = None

    def data(self) -> dict[str, Any]:
        """Return what is known, as an event has it."""
        return {
            key: value for key, value in dataclasses.asdict(self).items() if value or key in KEPT
        }


KEPT = ("pid", "age_s")  # zeros that say something


@dataclass(frozen=True, slots=True)
class Planned:
    """One statement: where it stands, what it does, and what it is held up by."""

    of: Migration
    number: int
    start: int  # its offset in the file
    line: int
    column: int
    does: str
    locks: tuple[Lock, ...] = ()
    destroys: str | None = None
    external: str | None = None
    blocked_by: tuple[Blocker, ...] = ()
    reaches: tuple[Reach, ...] = ()
    below: str = ""
    alone: tuple[str, ...] = ()
    perhaps: tuple[str, ...] = ()  # of its locks: on tables that the file makes if they are absent
    unknown: bool = False  # what it destroys and locks
    keeps: bool = False  # no row is lost: only its locks are unknown
    where: Where | None = None  # the settings by which its names are meant
    measured: dict[str, object] | None = None  # on a copy

    def data(self) -> dict[str, Any]:
        """Return it as an event and a document have it."""
        return {
            **self.of.named,
            "statement": self.number,
            "line": self.line,
            "column": self.column,
            "does": self.does,
            "locks": [{"table": lock.table, "mode": lock.mode} for lock in self.locks],
            "destroys": self.destroys,
            "external": self.external,
            "unknown": self.unknown,
            "in_transaction": self.of.up.transactional,
        }


MOST = 10_000  # statements of a file that are told, and as many that matter; it may have millions


@dataclass(frozen=True, slots=True)
class Told:
    """What the statements of a file do, and how many there are: those that matter most are told."""

    statements: list[Planned]
    count: int

    @property
    def untold(self) -> int:
        """Return how many are only counted."""
        return self.count - len(self.statements)


Made = tuple["Where | None", str]


def _made(where: Where, name: str) -> Made:
    """Return what a name is known by: one without a schema is another's under another path."""
    return (None if "." in name else where, name)


def _follow(new: set[Made], effect: Effect, where: Where) -> None:
    """Follow a statement that takes away a table which the file has made, or names it anew."""
    for name in effect.gone:
        new.discard(_made(where, name))
    if effect.renames:
        before, after = (_made(where, name) for name in effect.renames)
        change = new.add if before in new else new.discard
        change(after)
        new.discard(before)


def _of_others(effect: Effect, new: Collection[Made], where: Where) -> Effect:
    """Leave out what happens to tables that the file itself has made: nobody has rows in them."""
    if not new:
        return effect
    lost = effect.losing and all(_made(where, name) in new for name in effect.losing)
    return dataclasses.replace(
        effect,
        locks=tuple(lock for lock in effect.locks if _made(where, lock.table) not in new),
        destroys=None if lost else effect.destroys,
        reaches=tuple(reach for reach in effect.reaches if _made(where, reach.name) not in new),
    )


def each(file: Migration) -> Told:
    """Return what each statement of a file does; the parser is loaded here.

    Of very many, those that destroy, lock out others or are unknown come before the rest.
    """
    from preflight.files import effects, scan, where  # noqa: PLC0415 -- for a plan and lint alone

    room = {True: MOST, False: MOST}
    found: list[Planned] = []
    number = 0
    new: set[Made] = set()  # nobody waits for a table that this file makes
    perhaps: set[Made] = set()  # made if it is not there, which only a server knows
    now = where.START
    starts = (statement.start for statement in file.up.statements())
    places = scan.places(file.up.text, starts)
    for number, statement in enumerate(file.up.statements(), 1):
        text = statement.text(file.up.text)
        effect = _of(text)
        line, column = next(places)
        meant, now = now, where.after(now, text, transactional=file.up.transactional)
        meant = now if now.open else meant  # it may be a block that sets it for itself, too
        if effect.creates:
            (perhaps if effect.if_absent else new).add(_made(meant, effect.creates))
        perhaps.update(_made(meant, name) for name in effect.perhaps)
        effect = _of_others(effect, new, meant)
        _follow(new, effect, meant)
        matters = effects.matters(effect)
        room[matters] -= 1
        if room[matters] < 0:
            continue
        found.append(
            Planned(
                file,
                number,
                statement.start,
                line,
                column,
                effect.does,
                effect.locks,
                effect.destroys,
                effect.external,
                reaches=effect.reaches,
                below=effect.below,
                alone=effect.alone,
                perhaps=tuple(
                    lock.table for lock in effect.locks if _made(meant, lock.table) in perhaps
                ),
                unknown=effect.unknown,
                keeps=effect.keeps,
                where=meant,
            )
        )
    return Told(found, number)


_DEEPEST = 5  # a block in a block in a block
# words of what may destroy, or lock others out; a block that only makes and fills does neither
_TELLING = {
    "DROP", "DELETE", "TRUNCATE", "UPDATE", "MERGE", "ALTER", "LOCK", "INDEX", "TRIGGER", "REFRESH",
    "CLUSTER", "REINDEX", "EXECUTE",
}  # fmt: skip
_SYSTEM = re.compile(r"(?:pg_catalog|information_schema)\..*|pg_\w+")  # read in many a condition
_OPEN = re.compile(r"(?:.*\.)?x")  # what stands where a name is only known when it runs


def _of(text: bytes, depth: int = 0) -> Effect:
    """Return what a statement does; of a block what the statements in it do."""
    from preflight.files import effects, parser, scan  # noqa: PLC0415 -- see `each`

    effect = effects.of(text)
    if scan.words(text[:400], 1) != ["DO"] or effect.unknown:
        return effect
    if depth == _DEEPEST:
        return dataclasses.replace(effect, unknown=True)
    try:
        return _of_block(effect, parser.parsed(text), text, depth)
    except Exception:  # noqa: BLE001 -- a plan that says less beats none
        return dataclasses.replace(effect, unknown=True)


def _of_block(block: Effect, node: Node | None, text: bytes, depth: int) -> Effect:
    """Return what a block does if all of it runs, as a condition may or may not have it."""
    from preflight.files import effects, reach  # noqa: PLC0415 -- see `each`

    if node is None or not reach.telling(node, text):
        return dataclasses.replace(block, unknown=_may_destroy(text))
    inside = [
        _closed(_of(each.encode(), depth + 1), each)
        if isinstance(each, str)
        else dataclasses.replace(block, unknown=not each.certain)
        for each in reach.inner(node, text)
    ]
    # whether it is there already depends on the way through the block, and its order
    made = dict.fromkeys(name for each in inside for name in (each.creates, *each.perhaps) if name)
    below = {each.below for each in inside if each.locks}
    return dataclasses.replace(
        block,
        locks=effects.strongest(
            lock for each in inside for lock in each.locks if not _SYSTEM.fullmatch(lock.table)
        ),
        destroys=_together(each.destroys for each in inside),
        losing=tuple(dict.fromkeys(name for each in inside for name in each.losing))
        if all(each.losing for each in inside if each.destroys)
        else (),
        gone=tuple(name for each in inside for name in (*each.gone, *(each.renames or ()))),
        external=_together(each.external for each in inside),
        reaches=tuple(dict.fromkeys(found for each in inside for found in each.reaches)),
        below=next((way for way in ("all", "partitions") if way in below), ""),
        alone=tuple(dict.fromkeys(name for each in inside for name in each.alone)),
        perhaps=tuple(made),
        unknown=any(each.unknown for each in inside),
        keeps=all(each.keeps for each in inside if each.unknown),
    )


def _may_destroy(text: bytes) -> bool:
    """Tell whether a block that cannot be read may destroy something or lock others out."""
    from preflight.files import scan  # noqa: PLC0415 -- see `each`

    return any(
        not _TELLING.isdisjoint(words)
        for at, end in scan.bodies(text, 0)
        for words, _ in scan.windows(text, at, end)
    )


def _closed(effect: Effect, text: str) -> Effect:
    """Leave out what only gets its name when it runs: what happens to that is not known."""
    from preflight.files import effects, reach  # noqa: PLC0415 -- see `each`

    if reach.OPEN not in text:
        return effect
    known = tuple(lock for lock in effect.locks if not _OPEN.fullmatch(lock.table))
    left_out = dataclasses.replace(
        effect,
        locks=tuple(lock for lock in effect.locks if lock not in known),
        destroys=effect.destroys if re.search(r"\bx\b", effect.destroys or "") else None,
        reaches=tuple(
            found
            for found in effect.reaches
            if _OPEN.fullmatch(found.name)
            or "x" in (found.column, found.constraint)
            or _OPEN.fullmatch(found.other)
        ),
        external=None,
        unknown=False,
    )
    return dataclasses.replace(
        effect,
        locks=known,
        destroys=None if left_out.destroys else effect.destroys,
        reaches=tuple(found for found in effect.reaches if found not in left_out.reaches),
        unknown=effect.unknown or effects.matters(left_out),
    )


def _together(said: Iterable[str | None]) -> str | None:
    return ", ".join(dict.fromkeys(filter(None, said))) or None
