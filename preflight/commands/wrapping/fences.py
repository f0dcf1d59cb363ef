"""What keeps a command off the live database while it is tried: a wall, a net, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg

from preflight.base.errors import Failure, RehearsalFailed
from preflight.commands.wrapping import onlooker, tools, wall
from preflight.server import sessions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from preflight.commands.wrapping.child import Child
    from preflight.rehearsal.copies import Copy
    from preflight.server.sessions import Session

WALL, NET, TRUST = "wall", "net", "trust"
STUCK_S = 5.0  # somebody who waits for the net and is nowhere on the copy is the command
_WAITING = """
SELECT count(*) FROM pg_catalog.pg_stat_activity a
WHERE %s::int4 = ANY (pg_catalog.pg_blocking_pids(a.pid))
"""


@dataclass(slots=True)
class Fence:
    """What stands between a command and the live database."""

    kind: str
    wall: wall.Wall | None = None
    live: onlooker.OnLive | None = None
    holder: int | None = None  # the pid of the session that holds the net

    @property
    def sure(self) -> bool:
        """Tell whether the command could not have reached the live database."""
        return self.kind == WALL

    @property
    def crossed(self) -> bool:
        """Tell whether a session of the command was seen on the live database."""
        return self.live is not None and bool(self.live.pids)

    @property
    def unseen(self) -> str | None:
        """Say which sessions on the live database could not be seen."""
        return onlooker.UNSEEN if self.live is not None and self.live.blind else None

    def look(self, child: Child) -> None:
        """End the command's sessions on the live database, if it has any; raises Stays."""
        if self.live is not None:
            self.live.look(child)

    def waited_for(self) -> bool:
        """Tell whether anybody waits for the net."""
        if self.live is None or self.holder is None:
            return False
        row = self.live.session.execute(_WAITING, [self.holder]).fetchone()
        return bool(row and row[0])


@contextmanager
def around(
    session: Session,
    copy: Copy,
    tables: Sequence[tools.Table],
    *,
    trust: bool,
    named: str | None = None,
) -> Iterator[Fence]:
    """Yield what keeps a command off the live database; raises RehearsalFailed where nothing can.

    The wall is the kernel's: only the copy's port can be connected to. The net is a lock that
    keeps writers from the tool's history table (`named`, or known), and nobody else.
    """
    if walled(session, copy):
        yield Fence(WALL, wall.Wall(_ports(copy)))
        return
    with ExitStack() as stack:
        beside = (copy.name,) if copy.beside else ()
        live = onlooker.OnLive(session, to_end=True, meant=beside)
        try:
            fence = Fence(NET, None, live, _held(stack, session, tables, named))
        except (psycopg.Error, Failure) as error:
            if session.lost:
                raise
            if not trust:
                raise _refused(session, error) from error
            fence = Fence(TRUST, None, live)
        yield fence


def walled(session: Session, copy: Copy) -> bool:
    """Tell whether a command can be kept from all ports but the copy's."""
    apart = not session.local and session.connection.info.port not in _ports(copy)
    return apart and wall.available()


def _ports(copy: Copy) -> tuple[int, ...]:
    """Return the TCP port by which the copy is reached; none for a Unix socket."""
    if copy.server is not None:
        return (copy.server.port,)
    info = copy.home.connection.info
    return () if info.host.startswith("/") else (info.port,)


def _held(
    stack: ExitStack, session: Session, tables: Sequence[tools.Table], named: str | None
) -> int:
    """Lock the history tables against writers; return the pid of the session that does."""
    if not tables:
        none = f"there is no table {named} (--history)" if named else (
            "there is no history table of a known tool yet"
        )  # fmt: skip
        raise RehearsalFailed("wrap.not_kept_off", none)
    other = stack.enter_context(sessions.beside(session))
    stack.enter_context(sessions.transaction(other))
    tools.lock(other, tables)
    return other.pid


def _refused(session: Session, error: Exception) -> RehearsalFailed:
    message = error.diag.message_primary if isinstance(error, psycopg.Error) else str(error)
    why = "is reached through a Unix socket" if session.local else "has the copy's port, too"
    if not wall.available():
        why = "cannot be closed to it by this kernel (Landlock's TCP rules came with Linux 6.7)"
    return RehearsalFailed(
        "wrap.not_kept_off",
        f"nothing would keep the command off the live database while it is tried: that {why}, and "
        f"the tool's history table cannot be locked: {message}",
        "Name it with --history; or rehearse elsewhere (PREFLIGHT_REHEARSE_ON=local with a "
        "directory, PREFLIGHT_REHEARSE_URL). If the command takes its address from its environment "
        "and nothing else, --trust-environment goes on. Nothing was started.",
    )
