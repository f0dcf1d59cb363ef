"""How long to wait for a server, and what to say meanwhile."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from psycopg import pq

from preflight.base import quoting, threads
from preflight.base.config import completed, unknown_service
from preflight.base.errors import (
    AuthFailed,
    ConfigInvalid,
    Failure,
    NotReady,
    TargetUnusable,
)
from preflight.server.dial import NO_ANSWER, NO_THREAD, POOLED, Refused, called

if TYPE_CHECKING:
    from tenacity import RetryCallState

GRACE_S = 15.0  # a role or a database may be created a moment after the server
PAUSE_S = (0.05, 0.1)  # least and most between attempts while refused or starting up
POOLED_PAUSE_S = 1.0  # most, where a pooler says what may be a matter of the password, too
FINAL = ("config", "options")  # nothing is waited for
# what a server says once it is there
LASTING = ("auth", "closed", "options_refused", "no_right", "database", "alien", "role")
NAMES = "PGDATABASE, POSTGRES_DB or DATABASE_URL"
# by SQLSTATE, what helps with a server that is there and lets nobody in
_STARTS = (
    "It is there, and starting, recovering or shutting down, as it says. If it takes longer than "
    "this run has waited, raise PREFLIGHT_WAIT_TIMEOUT_S, and run again; a standby without "
    "hot_standby lets nobody in: connect to its primary."
)
ANSWERED = {
    "53300": "It is there, and every session that this user may have is taken: who holds them says "
    "pg_stat_activity. Let them end, or raise max_connections or the limit of the role or of the "
    "database (CONNECTION LIMIT), and run again.",
    "57P01": _STARTS,
    "57P02": _STARTS,
    "57P03": _STARTS,
    "55000": "It is there, and the database is closed. As its owner, in another database: ALTER "
    "DATABASE {database} ALLOW_CONNECTIONS true. What an interrupted DROP DATABASE has left can "
    "only be dropped.",
    POOLED: "A pooler answers: is the server behind it running, and has the pooler a place free? "
    "Then run again.",
}
OTHERWISE = "It is there, and its log says more about the reason. Then run again."
# libpq's words under the C locale: what has a value that it does not take
_WRONG = re.compile(r"invalid \"?(\w+)\"? value: |for connection option \"(\w+)\"")
_NAMELESS = "local user with ID"
AUTH_PAUSE_S = 3.0  # a lock-out policy must not be provoked


class Patience:
    """How long to wait and what to say meanwhile."""

    def __init__(
        self,
        target: Mapping[str, str],
        began: float,
        deadline: float,
        first: Refused,
        said_in: Mapping[str, str] | None = None,
    ) -> None:
        self.target = target
        self.said_in = said_in or {}  # what says a value, where no variable does
        self.known = completed(target)
        self.where = called(target)
        self.deadline = deadline
        self.began = began
        self.answered: float | None = None
        self.attempts = 1
        self.said: tuple[str, float] = ("", 0.0)
        self.first: Refused | None = first
        self.named: Refused | None = None  # what a pooler said of why it lets nobody in

    def attempt(self, connect_once: Callable[[], None]) -> None:
        """Connect once more, and say why not."""
        if self.first is not None:  # made before tenacity was imported
            first, self.first = self.first, None
            self._reason(first)
            self.tell(first)
            raise first
        try:
            connect_once()
        except Refused as refused:
            self.attempts += 1
            reason = self._reason(refused)
            self.tell(reason)
            raise reason from None

    def _reason(self, refused: Refused) -> Refused:
        """Return why nobody is let in: a pooler that has said so holds the next login for a while.

        Its silence is that reason still.
        """
        if self.named and str(refused).startswith(NO_ANSWER):
            return self.named
        lasting = refused.sqlstate == POOLED and refused.kind in LASTING
        self.named = refused if lasting else None
        return refused

    def tell(self, refused: Refused) -> None:
        """Say what is waited for, now and then."""
        if refused.kind in FINAL:
            return
        now = time.monotonic()
        if refused.kind in LASTING and self.answered is None:
            self.answered = now
        key = f"{refused.kind} {refused.sqlstate}"
        if key == self.said[0] and now - self.said[1] < 10:  # noqa: PLR2004 -- seconds
            return
        self.said = (key, now)
        data = {"sqlstate": refused.sqlstate} if refused.sqlstate else {}
        structlog.get_logger().info(
            "server.waiting",
            host=self.where,
            reason=str(refused),
            attempts=self.attempts,
            **data,
        )

    def pause(self, state: RetryCallState) -> float:
        """Return how many seconds to wait before the next attempt."""
        error = state.outcome.exception() if state.outcome else None
        left = max(0.0, self.deadline - time.monotonic())
        if isinstance(error, Refused) and error.kind in LASTING:
            return min(AUTH_PAUSE_S, left)
        least, most = PAUSE_S
        if isinstance(error, Refused) and error.sqlstate == POOLED:
            most = POOLED_PAUSE_S
        longest = min(most, least * 2 ** min(state.attempt_number, 10))
        return min(random.uniform(least, longest), left)  # noqa: S311 -- jitter, not a secret

    def over(self, state: RetryCallState) -> bool:
        """Tell whether no further attempt is made."""
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, Refused) and error.kind in FINAL:
            return True
        now = time.monotonic()
        return now >= self.deadline or (
            self.answered is not None
            and isinstance(error, Refused)
            and error.kind in LASTING
            and now - self.answered >= GRACE_S
        )

    def failure(self, refused: Refused) -> Failure:
        """Return what the last refusal means."""
        where = self.where
        waited = f"after {time.monotonic() - self.began:.1f} s"
        database, user = self.known.get("dbname"), self.known.get("user")
        said = f"{refused} ({waited}, {self.attempts} attempts)"
        state = refused.sqlstate
        match refused.kind:
            case "config" | "options" | "role":  # options: not ours, which were left out
                hint = self._settings(refused)
                if refused.kind == "role":
                    names_it = self.said_in.get("role", "the options that name it (PGOPTIONS)")
                    hint = f"Create the role, or correct {names_it}."
                found = f"{where}: {refused}"
                if str(refused).startswith("definition of service "):
                    found = unknown_service(self.target)
                    hint = "Correct the name, or let PGSERVICEFILE say which file has it."
                elif _NAMELESS in str(refused):
                    found = f"no user is said, and this process's has no name: {refused}"
                    hint = "Say it as PGUSER, or as user in the service."
                elif not {"host", "hostaddr"} & self.known.keys():
                    found = str(refused)  # nobody is called before a service file is read
                return ConfigInvalid("config.connection", found, hint)
            case "auth" | "closed" | "options_refused" | "no_right":
                return AuthFailed(
                    "auth.rejected",
                    f"{where} does not accept user {user!r}: {said}",
                    self._way_in(refused.kind) + self._of_passfile(refused),
                    sqlstate=state,
                )
            case "database":
                return TargetUnusable(
                    "target.no_database",
                    f"{where} has no database {database!r}: {said}",
                    f"Create it, or correct the name ({self.said_in.get('dbname', NAMES)}).",
                    sqlstate=state,
                )
            case "alien":
                return TargetUnusable(
                    "target.not_postgresql",
                    f"what listens on {where} does not speak PostgreSQL: {said}",
                    f"Check host and port{self._in('host')}.",
                    sqlstate=state,
                )
            case "standby":
                return TargetUnusable(
                    "target.read_only",
                    f"no host of {where} is in the state that was asked for: {said}",
                    f"Check PGTARGETSESSIONATTRS and the host list{self._in('host')}.",
                    sqlstate=state,
                )
            case _:
                return NotReady(
                    "server.not_ready",
                    f"{where} was not usable: {said}",
                    self._to_be_usable(refused),
                    sqlstate=state,
                )

    def _in(self, key: str) -> str:
        """Return in brackets what says a value, of a target whose own it is."""
        return f" ({self.said_in[key]})" if key in self.said_in else ""

    def _to_be_usable(self, refused: Refused) -> str:
        """Return what makes a server usable: one that gives a reason is there, and reached."""
        if str(refused).startswith(NO_THREAD):
            return f"{threads.LIMITED}. Nobody was called."
        state = refused.sqlstate
        if state is None:
            if self.known.get("sslnegotiation") == "direct" and "unexpected eof" in str(refused):
                return (
                    "Is it PostgreSQL 17 or later, which PGSSLNEGOTIATION=direct needs? Then run "
                    "again."
                )
            reached = f"may this container reach it{self._in('host')}"
            return f"Is the database running, and {reached}? Then run again."
        database = quoting.name(self.known.get("dbname") or "…")
        return ANSWERED.get(state, OTHERWISE).format(database=database)

    def _settings(self, refused: Refused) -> str:
        """Return what to correct: libpq names what it takes no value of, the server an option."""
        if named := _WRONG.search(str(refused)):
            key = named[1] or named[2]
            variables = [
                each.envvar.decode()
                for each in pq.Conninfo.get_defaults()
                if each.keyword.decode() == key and each.envvar
            ]
            said = self.said_in.get("host") or " or ".join([*variables, "DATABASE_URL"])
            return f"Correct {key}, as {said} says it."
        if refused.sqlstate and "options" in self.known:
            said = self.said_in.get("options", "PGOPTIONS, or options in DATABASE_URL")
            return f"Correct what is set for the session ({said})."
        return f"Check the connection settings{self._in('host')}."

    def _of_passfile(self, refused: Refused) -> str:
        """Return why libpq took no password from its passfile, as far as that can be seen."""
        path = Path(self.known.get("passfile") or "~/.pgpass")
        shown = "the passfile" if "passfile" in self.target else f"the passfile {path}"
        try:
            mode = path.expanduser().stat().st_mode & 0o777
        except (OSError, RuntimeError, ValueError):
            return ""
        if "no password supplied" not in str(refused):
            return ""
        if mode & 0o077:
            return f" libpq ignores {shown} for its mode {mode:04o}: chmod 0600."
        if not os.access(path.expanduser(), os.R_OK):
            return f" This user may not read {shown}."
        return f" In {shown} no line is for this host, port, database and user."

    def _way_in(self, kind: str) -> str:
        """Return what lets a user in whom the server does not accept."""
        database, user = (
            quoting.name(name) if (name := self.known.get(key)) else "…"
            for key in ("dbname", "user")
        )
        match kind:
            case "closed":
                return (
                    "User and password are right. As the database's owner: "
                    f"GRANT CONNECT ON DATABASE {database} TO {user}."
                )
            case "options_refused":
                how = self.said_in.get("role", "PGOPTIONS")
                return (
                    f"User and password are right. One of the options ({how}) sets what {user} "
                    "may not: leave it out, or give the right to it."
                )
            case "no_right":
                return (
                    "User and password are right. The server says what is missing: a login "
                    "trigger, or a setting of the role or of the database, may ask for it."
                )
            case _:
                return (
                    f"Check user, password{self._in('user')}, pg_hba.conf and the TLS settings "
                    "(PGSSLMODE, PGSSLROOTCERT); nothing was sent without the protection that was "
                    "asked for."
                )
