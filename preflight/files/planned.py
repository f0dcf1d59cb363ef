"""What each statement of a file does, as a plan and lint tell it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from preflight.base import quoting

if TYPE_CHECKING:
    from postgast.pg_query_pb2 import Node

    from preflight.files.effects import Effect, Lock, Reach, Through
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
    through: tuple[Through, ...] = ()
    covers: tuple[str, ...] = ()
    below: str = ""
    alone: tuple[str, ...] = ()
    perhaps: tuple[str, ...] = ()  # of its locks: on tables that the file makes if they are absent
    unknown: bool = False  # what it destroys and locks
    keeps: bool = False  # no row is lost: only its locks are unknown
    where: Where | None = None  # the settings by which its names are meant
    measured: dict[str, object] | None = None  # on a copy

    @property
    def lost_unknown(self) -> bool:
        """Whether nobody knows what the statement destroys."""
        return self.unknown and not self.keeps

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


_OF_TABLES = {"relation", "deleted", "updated"}  # what of a Reach takes rows or columns of a table
_LOCKS_ONLY = {"default", "referred", "referring"}  # and what of one only looks for others to lock


class _Names:
    """Relations that a file has made, by the names under which it may mean them again.

    One without a schema is another's under another path, and nobody's where only the run knows.
    """

    def __init__(self) -> None:
        self._found: dict[str, set[tuple[Where | None, str]]] = {}  # by their last parts

    def has(self, where: Where, name: str) -> bool:
        """Tell whether a name means one of these."""
        last, known = _known(where, name)
        return known is not None and known in self._found.get(last, ())

    def add(self, where: Where, name: str) -> None:
        """Add what a name means."""
        last, known = _known(where, name)
        if known is not None:
            self._found.setdefault(last, set()).add(known)

    def drop(self, names: Iterable[str]) -> None:
        """Take out what these may mean, in whichever schema: a path may lead there."""
        for name in names:
            self._found.pop(_parts(name)[-1], None)

    def clear(self) -> None:
        """Take out all."""
        self._found.clear()


def _parts(name: str) -> list[str]:
    return (quoting.parts(name) if '"' in name else name.split(".")) or [name]


def _known(where: Where, name: str) -> tuple[str, tuple[Where | None, str] | None]:
    """Return the last part of a name, and what the name is known by if that is certain."""
    parts = _parts(name)
    if len(parts) > 1:
        return parts[-1], (None, name)
    return parts[-1], None if where.open else (where, name)


@dataclass(frozen=True, slots=True)
class _New:
    """What a file has made so far."""

    named: _Names = field(default_factory=_Names)  # all of it: nobody waits for that
    alone: _Names = field(default_factory=_Names)  # the tables whose rows are nobody else's
    moved: list[str] = field(default_factory=list)  # relations that went to another schema
    led: list[str] = field(default_factory=list)  # tables whose rows others have begun to follow

    def make(self, effect: Effect, where: Where, *, transactional: bool) -> None:
        """Take in what a statement makes for certain."""
        if not effect.creates or effect.if_absent:
            return
        self.named.add(where, effect.creates)
        there = transactional or not effect.passing
        hidden = "pg_temp" in (where.path or ())  # others may come before a temporary table
        if effect.empty and there and not hidden:
            self.alone.add(where, effect.creates)

    def follow(self, effect: Effect, where: Where) -> None:
        """Follow a statement that takes away what was made, names it anew, or has others join."""
        self.alone.drop([*effect.joins, *effect.leading])
        self.moved.extend(effect.moves)
        self.led.extend(effect.leading)
        if not all(self.named.has(where, name) for name in effect.joins):
            self.named.drop(effect.joins)
        for names in (self.named, self.alone):
            names.drop(effect.gone)
            if effect.renames:
                before, after = effect.renames
                kept = names.has(where, before)
                names.drop(effect.renames)
                if kept:
                    names.add(where, after)
            if effect.shuffles:
                names.clear()
        if effect.unknown:
            self.alone.clear()

    def _farther(self, reach: Reach) -> bool:
        """Tell whether something may reach what it does not reach yet: the file has led it there.

        What is in a schema by then, and whose rows go with a table's, or with one of its parts.
        """
        if reach.kind == "schema" and self.moved:
            return True
        return bool(self.led) and (
            reach.rows or (reach.kind == "deleted" and reach.name in self.led)
        )

    def of_others(self, effect: Effect, where: Where) -> Effect:
        """Leave out what happens to the file's own tables: nobody has rows in them, or waits."""
        lost = effect.losing and all(self.alone.has(where, name) for name in effect.losing)

        def stays(reach: Reach) -> bool:
            if reach.kind in _OF_TABLES:
                return not self.alone.has(where, reach.name)
            return reach.kind not in _LOCKS_ONLY or not self.named.has(where, reach.name)

        return dataclasses.replace(
            effect,
            unknown=effect.unknown or any(map(self._farther, effect.reaches)),
            locks=tuple(lock for lock in effect.locks if not self.named.has(where, lock.table)),
            destroys=None if lost else effect.destroys,
            reaches=tuple(filter(stays, effect.reaches)),
        )


def each(file: Migration, done: int = 0) -> Told:
    """Return what each statement of a file does; the parser is loaded here.

    Of very many, those that destroy, lock out others or are unknown come before the rest. What the
    first ones made that an earlier run has `done` may be in use: only what they set still counts.
    """
    from preflight.files import effects, scan, where  # noqa: PLC0415 -- for a plan and lint alone

    room = {True: MOST, False: MOST}
    found: list[Planned] = []
    number = 0
    new = _New()
    perhaps = _Names()  # made if it is not there, which only a server knows
    now = where.START
    starts = (statement.start for statement in file.up.statements())
    places = scan.places(file.up.text, starts)
    for number, statement in enumerate(file.up.statements(), 1):
        text = statement.read(file.up.text)
        line, column = next(places)
        meant, now = now, where.after(now, text, transactional=file.up.transactional)
        if number <= done:
            continue
        effect = _of(text)
        meant = now if now.open else meant  # it may be a block that sets it for itself, too
        if effect.creates and effect.if_absent:
            perhaps.add(meant, effect.creates)
        for name in effect.perhaps:
            perhaps.add(meant, name)
        new.make(effect, meant, transactional=file.up.transactional)
        if effect.several:
            new.follow(effect, meant)
        of_others = new.of_others(effect, meant)
        new.follow(effect, meant)
        effect = of_others
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
                through=effect.through,
                covers=effect.covers,
                below=effect.below,
                alone=effect.alone,
                perhaps=tuple(
                    lock.table for lock in effect.locks if perhaps.has(meant, lock.table)
                ),
                unknown=effect.unknown,
                keeps=effect.keeps,
                where=meant,
            )
        )
    return Told(found, number - done)


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
        losing=tuple(
            dict.fromkeys(name for each in inside if each.destroys for name in each.losing)
        )
        if all(each.losing for each in inside if each.destroys)
        else (),
        gone=tuple(name for each in inside for name in (*each.gone, *(each.renames or ()))),
        moves=tuple(name for each in inside for name in each.moves),
        joins=tuple(name for each in inside for name in each.joins),
        leading=tuple(name for each in inside for name in each.leading),
        shuffles=any(each.shuffles for each in inside),
        several=True,
        external=_together(each.external for each in inside),
        reaches=tuple(dict.fromkeys(found for each in inside for found in each.reaches)),
        through=tuple(dict.fromkeys(found for each in inside for found in each.through)),
        covers=tuple(name for each in inside for name in each.covers),
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
        through=tuple(found for found in effect.through if not _OPEN.fullmatch(found.name)),
        unknown=effect.unknown or effects.matters(left_out),
    )


def _together(said: Iterable[str | None]) -> str | None:
    return ", ".join(dict.fromkeys(filter(None, said))) or None
