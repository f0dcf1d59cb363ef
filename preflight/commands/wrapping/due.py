"""Is there anything for a wrapped command to do? Its key, beside that of the last success."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from preflight.commands.wrapping import key, tools
from preflight.history import wraps
from preflight.history.tables import unlocked

if TYPE_CHECKING:
    from preflight.commands.wrapping.asked import Wrapped
    from preflight.server.sessions import Session


@dataclass(frozen=True, slots=True)
class Look:
    """The key as it is now, and what it was made of in the database."""

    key: str
    current: bool
    tables: Sequence[tools.Table]
    rows: Sequence[str]
    known: bool  # there was a success

    def warn(self, wrapped: Wrapped) -> None:
        """Say that the table which `--history` names is not there, where that decides something."""
        named = wrapped.asked.history
        if self.current and named is not None and not self.tables:
            warning = f"there is no table {named} (--history): only the files tell what is to do"
            structlog.get_logger().warning("config.warned", warning=warning)


def look(session: Session, wrapped: Wrapped, until: float | None = None) -> Look:
    """Return the key of this moment, and whether the last success had the same.

    Raises HistoryConflict for a damaged history, TargetUnusable where the tool's rows may not be
    read, DatabaseBusy where somebody holds what is read: at `until`, or after LOCK_RETRY_S.
    """
    before = wraps.last(session, until)
    tables = tools.history(session, wrapped.asked.history)
    names = [table.name for table in tables]
    what = f"the history of the command's tool, {', '.join(names)},"
    rows = unlocked(session, what, names, lambda: tools.rows(session, tables), until)
    found = key.whole(wrapped.files_key, rows)
    return Look(
        found, found == before and not wrapped.asked.always, tables, rows, before is not None
    )
