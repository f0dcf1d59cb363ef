"""Whether a file that stopped part-way may go on where it stopped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from preflight.base.errors import (
    NeedsRepair,
)
from preflight.files import kinds, lasting, parser, scan

if TYPE_CHECKING:
    from preflight.files.migrations import Migration
    from preflight.history import journal
    from preflight.server.sessions import Session

_ALLOWS = {  # time or room, and nothing of what a statement does
    "statement_timeout", "lock_timeout", "transaction_timeout", "idle_session_timeout",
    "idle_in_transaction_session_timeout", "maintenance_work_mem",
    "max_parallel_maintenance_workers",
}  # fmt: skip


def require_resumable(
    file: Migration, row: journal.Row, session: Session | None = None, *, back: bool = False
) -> None:
    """Make sure that a file which stopped part-way can go on; raises NeedsRepair.

    `back`: both are of its rollback file, as if that ran forward. Where there is a `session`, what
    an index without a name left INVALID is looked for.
    """
    if row.undoing:
        raise NeedsRepair(
            "migration.needs_repair",
            f"the rollback of {file.name} stopped after {row.statements_done} statements",
            f"Finish it: `rollback`. Or run the file again from its start: `force {file.written}`.",
            **file.named,
        )
    before = row.up_sql.encode()
    old = [_sent(statement, before) for statement in scan.statements(before)]
    reason = _in_the_way(file, row, old)
    if not reason:
        return
    from preflight.apply import indexes  # noqa: PLC0415 -- only where a file stopped part-way

    left = list[str]()
    if session and reason.endswith(_UNREAD):
        left = indexes.perhaps_left(session, old[row.statements_started - 1][0])
    hint = _hint(file, reason, back=back)
    if left:
        reason = f"{reason}; INVALID on its table: {', '.join(left)}"
        hint = f"What it left goes with {indexes.drops(left)} {hint}"
    raise NeedsRepair(
        "migration.needs_repair",
        f"{'the rollback of ' if back else ''}{file.name} stopped after {row.statements_done} "
        f"of {len(old)} statements, and {reason}",
        hint,
        **file.named,
    )


_INSIDE = "the file runs in a transaction now"
_CHANGED = "changed since they ran"
_UNREAD = "did cannot be read back"


def _in_the_way(
    file: Migration, row: journal.Row, old: Sequence[tuple[bytes, bytes]]
) -> str | None:
    """Return why a file cannot go on whose statements, as they were, are `old`."""
    new = [_sent(statement, file.up.text) for statement in file.up.statements()]
    begun = max(row.statements_done, row.statements_started)
    if not 0 <= row.statements_done <= begun <= len(old):
        return f"its marks ({row.statements_done}, {row.statements_started}) cannot be ours"
    if file.up.transactional:
        return _INSIDE
    if [*map(_lasts, old[:begun])] != [*map(_lasts, new[:begun])]:
        return f"the file's first {begun} statements {_CHANGED}"
    if row.statements_started > row.statements_done and not repeatable(new[begun - 1][0]):
        return f"what statement {begun} {_UNREAD}"
    return lasting.before(file.up, row.statements_done)


def _hint(file: Migration, reason: str, *, back: bool) -> str:
    look, again = "Look at the database.", f"from its start: `force {file.written}`."
    if back:
        return (
            f"{look} To go on: `rollback`, with the rollback file as it ran, and what is "
            f"missing behind that. To have the migration back, {again}"
        )
    hint = f"{look} All of it is there: `adopt {file.written}`. Run it again {again}"
    if reason.endswith(_CHANGED):
        return f"To go on, put them back as they ran, with what is missing behind them. {hint}"
    if reason == _INSIDE:
        return f"To go on, let it run in none, as it did. {file.up.outside} {hint}"
    return hint


def _sent(statement: scan.Statement, script: bytes) -> tuple[bytes, bytes]:
    """Return all that a statement sends: its text, and the rows of a COPY."""
    first, last = statement.data or (0, 0)
    return statement.text(script), script[first:last]


def _lasts(sent: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    """Return what a statement sends without how much it allows the ones behind it.

    Such a setting is made again on a resume, as it stands in the file then, and it was too little.
    """
    name, _ = lasting.setting(sent[0]) or ("", False)
    return (name.encode(), b"") if name in _ALLOWS else sent


def repeatable(text: bytes) -> bool:
    """Tell whether a statement outside a transaction can be read back or simply run again."""
    if scan.words(text[:400], 1)[:1] in (["VACUUM"], ["REINDEX"], ["CLUSTER"]):
        return True
    from preflight.apply import indexes  # noqa: PLC0415 -- likewise

    node = parser.parsed(text)
    kind = node.WhichOneof("node") if node else None
    if kinds.detached(text) or kinds.unsubscribed(text):
        return True
    return kind == "drop_stmt" or (kind == "index_stmt" and not indexes.unnamed_index(text))
