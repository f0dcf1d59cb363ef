"""Try a wrapped command on a restored copy, and see what it does there."""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
import structlog

from preflight.base import console, quoting, stop
from preflight.base.errors import MigrationPartial, RehearsalFailed, VerifyFailed
from preflight.commands.wrapping import (
    checked,
    child,
    compared,
    environment,
    fences,
    key,
    leading,
    lock_timeout,
    onlooker,
    said,
    shared,
    tools,
    written,
)
from preflight.rehearsal import limits, scratch, trial
from preflight.server import prepared, sessions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from preflight.backup.take import Taken
    from preflight.base.config import Config
    from preflight.commands.wrapping.asked import Wrapped
    from preflight.commands.wrapping.due import Look
    from preflight.rehearsal.copies import Copy
    from preflight.server import packed
    from preflight.server.sessions import Session

_KINDS = {"schema": "schema", "type": "type", "domain": "type"} | dict.fromkeys(
    ("function", "procedure", "aggregate"), "function"
)  # the others are relations
_PREPARED = "a prepared transaction, which keeps its locks for ever:"
_BEFORE = ", before it was seen there"
_FROM_FILE = (
    "Does it take its address from a file (.env, a configuration), from its code or an argument? "
    "Put what that says into the environment, under the names that the command reads, or have the "
    "file read it from there. A variable that is there and has a form of its own is named with "
    "--url-variable"
)
ENDLESS = (
    "wrap only what migrates, if it starts the app afterwards, which does not end; else give it a "
    "longer --timeout"
)
_TLS = (
    "PREFLIGHT_REHEARSE_ON=server, or a PREFLIGHT_REHEARSE_URL of a server with TLS, has it tried"
)
_SIZE = "SELECT pg_catalog.pg_database_size(pg_catalog.current_database())"


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What a command did to the copy, and what was seen meanwhile, as log data."""

    changes: compared.Changes
    bare: bool  # the copy had neither owners nor rights, or not the same
    told: dict[str, Any]
    shared: tuple[str, ...] = ()  # what was changed meanwhile of what all databases share


def rehearse(
    session: Session,
    wrapped: Wrapped,
    look: Look,
    saved: Taken | None,
    config: Config | None = None,
) -> Rehearsed | None:
    """Run the command on a restored copy; None, and why, where there can be none.

    Raises RehearsalFailed, MigrationPartial (it changed the live database), ConfigInvalid (it
    cannot be started), and what `trial.opened` raises.
    """
    with trial.opened(session, saved, config) as copy:
        if copy is not None:
            _require_history(copy, look)
            return _Trial(session, wrapped, look, copy, saved).run()
    return None


def _require_history(copy: Copy, look: Look) -> None:
    """Raise Unavailable where a command would not find on the copy what has run already."""
    schemas = copy.part.schemas if copy.part else ()
    beyond = [table.name for table in look.tables if table.schema not in schemas]
    if schemas and beyond and len(beyond) == len(look.tables):
        raise scratch.Unavailable(
            f"the tool's history is {console.some(beyond)}, and the backup is of "
            f"{', '.join(schemas)} alone (PREFLIGHT_SCHEMAS): on the copy all would run again; "
            "--history names another table",
            level="warning",
        )


class _Trial:
    """One rehearsal of a command."""

    def __init__(
        self, session: Session, wrapped: Wrapped, look: Look, copy: Copy, saved: Taken | None
    ) -> None:
        self.session = session
        self.wrapped = wrapped
        self.tables = look.tables
        self.live_is = ""  # what is true of the live database once the command has been tried
        self.walled = False  # it can connect to the copy alone
        self.others: tuple[str, ...] = ()  # what leads to another database of the live server
        self.left: tuple[str, ...] = ()  # what seems to lead to the live one, and is not led
        self.copy = copy
        self.backup = saved.name if saved and saved.visible else None  # no draft of `plan`
        self.shared: packed.Rows | None = None  # where the copy's server is not thrown away
        self.unsure: list[str] = []  # changes of that, and nobody can tell whose
        self.prepared = prepared.there(copy.session)  # on a clone: those of others
        self.began = time.monotonic()

    def run(self) -> Rehearsed:
        """Run it, judge what it did there, run it once more."""
        asked, copy = self.wrapped.asked, self.copy.session
        with ExitStack() as stack:
            led = stack.enter_context(leading.to_copy(self.session, self.copy, self.wrapped))
            fence = stack.enter_context(
                fences.around(
                    self.session,
                    self.copy,
                    self.tables,
                    trust=asked.trust_environment,
                    named=asked.history,
                )
            )
            self.walled, self.others, self.left = fence.sure, led.others, led.left
            live = written.look(self.session, asked.history)
            say = structlog.get_logger()
            (say.warning if fence.kind == fences.TRUST or led.left else say.info)(
                "wrap.redirected",
                variables=list(led.variables),
                kept_off=fence.kind,
                where=self.copy.where,
                database=self.copy.name,
                **({"unseen": fence.unseen} if fence.unseen else {}),
                **({"not_led": list(led.left)} if led.left else {}),
            )
            self._warn_of_invalid()
            before, size = compared.state(copy), self._size()
            if self.copy.server is None:
                self.shared = compared.asked(copy, shared.state)
            there = onlooker.OnCopy(copy)
            ended = self._started(led, fence, there, live)
            cut = there.cut_off(ended)
            left = prepared.roll_back(copy, self.prepared)
            there.seen |= bool(left)
            if cut and ended.code == 0:
                self._require_untouched(live, fence, on_copy=True, ended=ended)
                raise self._failed(ended, onlooker.cut_off(cut))
            changes = self._changes(before, ended, left)
            on_copy = there.was_there() or bool(changes.names)
            self._require_untouched(live, fence, on_copy=on_copy, ended=ended)
            self._require_tls(ended, fence, on_copy=on_copy)
            self._require_there(there, changes, ended, fence)
            if ended.code != 0:
                raise self._left_out(ended) or self._failed(ended)
            if left:
                raise self._failed(ended, f" and left {_PREPARED} {prepared.named(left)}")
            self._require_checks()
            cost = there.cost()
            there.begin()
            again = self._again(led, fence, there, live)
            self._require_untouched(live, fence, on_copy=there.was_there())
        told = {
            "backup": self.backup,
            "verified": "restored" if self.copy.where != "clone" else None,
            "where": self.copy.where,
            "fidelity": self.copy.fidelity,
            "without": list(self.copy.without) or None,
            **changes.data(),
            **cost,
            "command_s": ended.duration_s,
            "size_before_bytes": size,
            "size_after_bytes": self._size(),
            "second_run": "changed" if again else "unchanged",
            "restore_s": round(self.copy.restore_s, 3),
            "duration_s": round(time.monotonic() - self.copy.began, 3),
        }
        told = {name: value for name, value in told.items() if value is not None}
        structlog.get_logger().info("wrap.rehearsed", command=self.wrapped.name, **told)
        bare = bool(self.copy.without) or led.renamed
        return Rehearsed(changes, bare, told, tuple(self.unsure))

    def _warn_of_invalid(self) -> None:
        """Name the live database's INVALID indexes that the copy lacks: no dump holds them."""
        there = {each.name for each in written.invalid(self.copy.session)}
        within = self.copy.part.schemas if self.copy.part else ()
        found = [
            each
            for each in written.invalid(self.session)
            if not (each.busy or each.name in there)
            and (not within or quoting.parts(each.name)[0] in within)
        ]
        if found:
            remedies = console.some([each.remedy for each in found])
            structlog.get_logger().warning(
                "rehearsal.warned",
                reason="the live database has INVALID indexes, and the copy has not, for no dump "
                "holds them: a command that makes one of such a name goes well on the copy and "
                f"fails in earnest. Before that: {remedies}",
                objects=[f"INVALID index {each.name} of {each.table}" for each in found][:100],
            )

    def _changes(
        self, before: compared.State, ended: child.Ended, left: Sequence[prepared.Prepared]
    ) -> compared.Changes:
        """Return what it did; nothing where that is held, and its failure is known without it.

        By a prepared transaction that this role may not roll back, say.
        """
        copy = self.copy.session
        try:
            return compared.between(before, compared.state(copy), copy.config.schema)
        except psycopg.Error as error:
            failed = ended.code != 0 or left
            if copy.lost or not failed or not sessions.passing(error):
                raise
            return compared.Changes({}, {}, {})

    def _size(self) -> int:
        return int((self.copy.session.execute(_SIZE).fetchone() or (0,))[0])

    def _started(
        self,
        led: environment.Led,
        fence: fences.Fence,
        there: onlooker.OnCopy,
        live: written.Before,
    ) -> child.Ended:
        """Run it to its end, or to ours, where it is found on the live database."""
        try:
            return self._on_copy(led, fence, there)
        except stop.Stopped:
            with suppress(psycopg.Error):
                if its := self._changed_for_all():
                    what = f"what the command has changed on the live server: {console.some(its)}"
                    stop.leaves(self.session, f"unfinished work is rolled back, but not {what}")
            raise
        except (_Waits, onlooker.Stays) as stray:  # it was ended: what it did until then stays
            self._require_untouched(live, fence, on_copy=there.seen)
            if isinstance(stray, _Waits):
                how = "it waits for the tool's history table on the live database"
                raise self._elsewhere(how) from None
            raise RehearsalFailed(
                "wrap.not_kept_off",
                "while it was to be tried on a copy, the command had a session on the live "
                "database that this role may not end; so the command was ended",
                f"{_FROM_FILE}. Or rehearse where the copy has a port of its own. {self.live_is}.",
            ) from None

    def _on_copy(
        self, led: environment.Led, fence: fences.Fence, there: onlooker.OnCopy
    ) -> child.Ended:
        asked = self.wrapped.asked
        environ, arguments = led.environment, led.arguments
        if asked.lock_timeout:
            names = set(led.variables)
            environ, arguments = lock_timeout.given(environ, arguments, names, asked.lock_timeout)
        stuck = _Stuck()

        def each(running: child.Child) -> None:
            there.look(running)
            fence.look(running)
            if not there.seen and stuck.since(waits=fence.waited_for()):
                raise _Waits

        return child.run(
            arguments,
            environ,
            secrets=self.wrapped.secrets | environment.secrets(environ, led.files),
            timeout_s=asked.timeout,
            wall=fence.wall,
            each=each,
            rehearsal=True,
        )

    def _require_untouched(
        self,
        before: written.Before,
        fence: fences.Fence,
        *,
        on_copy: bool,
        ended: child.Ended | None = None,
    ) -> None:
        """Make sure that the live database and its server are what they were; MigrationPartial."""
        its = self._changed_for_all()
        self._require_database_untouched(before, fence, on_copy=on_copy, also=its)
        if self.unsure:
            self.live_is += (
                "; of what all databases of its server share, this was changed meanwhile, by the "
                f"command or by somebody else: {console.some(self.unsure)}"
            )
        if its:
            failed = f"; {how(ended)}" if ended and ended.code != 0 else ""
            raise MigrationPartial(
                "wrap.changed_server",
                "while the command was tried on a copy, the live server, which has the copy, too, "
                f"was changed for good: {console.some(its)}{failed}",
                "Roles, databases and their settings are the whole server's. Look at what is "
                "named, and take back what the command is to do in earnest. Then run again with a "
                "copy on a server that is thrown away (PREFLIGHT_REHEARSE_ON=local), or without "
                "one (PREFLIGHT_REHEARSE=off).",
                context=ended.context if ended else None,
            )

    def _changed_for_all(self) -> list[str]:
        """Return what the command has changed of what the live server's databases share.

        What is not known to be its doing is said: whose that is nobody can tell.
        """
        if self.shared is None:
            return []
        copy, asked = self.copy, self.wrapped.asked
        before, self.shared = self.shared, compared.asked(copy.session, shared.state)
        changes = shared.between(before, self.shared)
        if not changes:
            return []
        its = shared.its(
            changes,
            shared.used(copy.session),
            lambda name: key.mentions(name, asked.command, asked.watch),
        )
        told, reason = list(map(str, its)), "the command changed the copy's server for good"
        if copy.beside:
            live = self.session.connection.info.dbname
            told = [str(each) for each in changes if each not in its and each.concerns(live)]
            self.unsure += told
            reason = "by the command or by somebody else the live server was changed meanwhile"
        if told:
            structlog.get_logger().warning(
                "rehearsal.warned", reason=f"{reason}: {console.some(told)}", objects=told[:100]
            )
        return list(map(str, its)) if copy.beside else []

    def _require_database_untouched(
        self,
        before: written.Before,
        fence: fences.Fence,
        *,
        on_copy: bool,
        also: Sequence[str] = (),
    ) -> None:
        """Make sure that the live database is what it was; raises MigrationPartial, with `also`.

        Who is kept off by TCP and was not seen `on_copy` may have gone by a Unix socket. Rows are
        nobody's to compare: who wrote, where one of the command was seen, nobody can tell.
        """
        gone = fence.live is None or fence.live.gone()
        away = fence.sure and on_copy
        busy = fence.live is not None and fence.live.at_work(but=fence.holder)
        try:
            whole = written.nothing(self.session, before)
            changed = written.changed(self.session, before, self.wrapped.asked.history)
        except psycopg.Error as error:  # what it left at work there may hold what we look at
            if away or self.session.lost or not sessions.passing(error):
                raise
            held = "nobody can tell: a lock that is held there keeps us from looking"
            raise self._changed(fence, [held, *also], "may have been") from error
        if not changed and fence.crossed and not whole:
            changed = [f"rows or sequences, perhaps: {written.BY_WHOM}"]
        if not gone:
            changed.append("a session of the command is still at work there")
        if not changed:
            why = "a session that came meanwhile is still at work" if whole else written.BY_WHOM
            untouched = away or (whole and not busy)
            self.live_is = "The live database was not changed" if untouched else (
                "No object of the live database was changed; whether it wrote rows there nobody "
                f"can tell: {why}"
            )  # fmt: skip
            return
        if away:
            structlog.get_logger().warning(
                "rehearsal.warned",
                reason="somebody else changed the live database during the rehearsal; the command "
                "could not reach it by TCP",
                objects=changed[:100],
            )
            self.live_is = "The command could not reach the live database"
            return
        raise self._changed(fence, [*changed, *also])

    def _changed(
        self, fence: fences.Fence, changed: Sequence[str], was: str = "was"
    ) -> MigrationPartial:
        seen = "a session of the command was seen there"
        seen = seen if fence.crossed else "by the command or by somebody else"
        return MigrationPartial(
            "wrap.changed_live",
            f"the live database {was} changed while the command was to be tried on a copy "
            f"({seen}): {console.some(changed)}",
            f"{_FROM_FILE}. Or rehearse where the copy has a port of its own. Look at what is named"
            + (f"; the backup {self.backup} is from before it." if self.backup else "."),
        )

    def _require_tls(self, ended: child.Ended, fence: fences.Fence, *, on_copy: bool) -> None:
        """Raise Unavailable where the command demands TLS, and the copy's server has none.

        The live one may have it; where that has the copy, too, the failure is the command's. So it
        is where it was `on_copy` all the same: it was tried there.
        """
        line = self._demanding_tls(ended)
        if line is None or on_copy or fence.crossed:
            return
        raise scratch.Unavailable(
            f"on the restored copy {how(ended)}: {line.strip()}; it demands TLS by settings of its "
            f"own, and {'the throwaway server' if self.copy.server else 'that server'} has none: "
            f"{_TLS}",
            level="warning",
        )

    def _demanding_tls(self, ended: child.Ended) -> str | None:
        """Return the line by which it ended of TLS that only the live server may have."""
        if not ended.failed or self.copy.where == "server" or self.copy.beside:
            return None
        return said.without_tls(ended.telling)

    def _require_there(
        self,
        there: onlooker.OnCopy,
        changes: compared.Changes,
        ended: child.Ended,
        fence: fences.Fence,
    ) -> None:
        """Make sure that it was tried; raises RehearsalFailed.

        Who fails before he connects to anything says why himself.
        """
        if there.was_there() or changes.names:
            return
        if not ended.code or fence.crossed or (fence.sure and ended.closed):
            raise self._elsewhere(how(ended), ended.context, self._apart(ended))
        raise self._failed(ended, _BEFORE)

    def _apart(self, ended: child.Ended) -> str:
        """Say what leads where it could not connect, and what helps; nothing where it did not say.

        That is elsewhere than to the copy, where a wall is.
        """
        if not (self.walled and ended.closed):
            return ""
        if not self.others:
            return (
                "it could connect to the copy alone: have it need no other service or database, or "
                "rehearse beside the live database (PREFLIGHT_REHEARSE_ON=server)"
            )
        return (
            "it could connect to the copy alone, and there is no copy of other databases of the "
            f"live server ({console.some(self.others)}): have a wrap for each database, or, where "
            "it may do for good there what it does in each trial, rehearse beside the live one "
            "(PREFLIGHT_REHEARSE_ON=server)"
        )

    def _unled(self) -> str:
        """Say, behind that option, what was not led; nothing where all that is known was."""
        if not self.left:
            return ""
        return f" (not led: {console.some(self.left)}; what was named so, give as a URL)"

    def _elsewhere(self, how: str, said: str | None = None, apart: str = "") -> RehearsalFailed:
        return RehearsalFailed(
            "wrap.not_redirected",
            f"the command was led to the copy, and no session of it was seen there: {how}",
            f"{_FROM_FILE}{self._unled()}. {self.live_is}"
            + (f"; {apart}." if self.others and apart else "."),
            context=said,
        )

    def _require_checks(self) -> None:
        try:
            checked.require(self.copy.session, self.wrapped.checks)
        except VerifyFailed as failure:
            checks = [self.wrapped.checks]
            if beyond := limits.beyond(self.session, self.copy.part, checks):
                raise beyond[1] from failure
            where = failure.problem.data() | {"hint": f"{self.live_is}."}
            message = f"on the restored copy: {where.pop('message')}"
            raise RehearsalFailed("wrap.rehearsal_failed", message, **where) from failure  # type: ignore[arg-type]

    def _left_out(self, ended: child.Ended) -> scratch.Unavailable | None:
        """Return why its failure tells nothing: what it misses is left out on the copy."""
        line = said.missing(ended.last, ended.telling) if ended.failed else None
        found = said.missed(line) if line else None
        if found is None:
            return None
        failure, kind = f"on the restored copy {how(ended)}: {line}", _KINDS.get(found[0])
        return limits.left_out(
            *(self.session, self.copy.part, self.copy.lacking),
            *(failure, kind or "relation", [found[1]]),
        )

    def _failed(self, ended: child.Ended, more: str = "") -> RehearsalFailed:
        what, last = "correct the data or the migration", ended.why
        apart, (refused, later) = self._apart(ended), said.refusal(ended.telling)
        if more == _BEFORE:
            what = (
                "correct what its last lines say, or, where they speak of an address that a file "
                "has, put that into the environment, and name a variable that has a form of its "
                f"own with --url-variable{self._unled()}"
            )
        elif _PREPARED in more:
            what = "have it end with COMMIT PREPARED or ROLLBACK PREPARED what it prepares"
        elif more:
            what = "have it wait for all that it starts"
        elif ended.code is None:
            what = f"{ENDLESS}; {apart}" if apart else ENDLESS
        elif apart and not later:
            what, last = apart, tuple(filter(None, dict.fromkeys((refused, *last))))
        elif apart and refused:
            last = (*last, f"it also said: {refused}")
        elif self._demanding_tls(ended):
            what += f", or, where only the live server has the TLS that it demands, {_TLS}"
        if self.copy.server is None and said.made_before(ended.telling):
            what += (
                ", or take back what an earlier trial has left on the copy's server, and have the "
                "copy on one that is thrown away (PREFLIGHT_REHEARSE_ON=local)"
            )
        if self.copy.part:
            what += (
                f", or, where it needs more than the schemas {', '.join(self.copy.part.schemas)} "
                "(PREFLIGHT_SCHEMAS), go without a trial (PREFLIGHT_REHEARSE=off)"
            )
        return RehearsalFailed(
            "wrap.rehearsal_failed",
            f"on the restored copy {how(ended)}{more}{': ' if last else ''}{'; '.join(last)}",
            f"{self.live_is}: {what}, and run again.",
            context=ended.context,
        )

    def _again(
        self,
        led: environment.Led,
        fence: fences.Fence,
        there: onlooker.OnCopy,
        live: written.Before,
    ) -> list[str]:
        """Run it a second time, which should change nothing; warn and return what it does."""
        copy, asked = self.copy.session, self.wrapped.asked
        before, counted = compared.state(copy), there.counted()
        rows = tools.rows(copy, tools.history(copy, asked.history))
        ended = self._started(led, fence, there, live)
        cut = there.cut_off(ended)
        left = prepared.roll_back(copy, self.prepared)
        changed = compared.between(before, compared.state(copy), copy.config.schema).names
        if tools.rows(copy, tools.history(copy, asked.history)) != rows:
            changed.append("rows of the tool's history table")
        changed += [f"rows of table {name}" for name in there.moved(counted)]
        changed += [f"prepared transaction {prepared.named([each])} made" for each in left]
        if ended.code != 0 or cut:
            changed.append(how(ended) + onlooker.cut_off(cut))
        if changed:
            structlog.get_logger().warning(
                "rehearsal.warned",
                reason=f"a second run of the command changes something: {console.some(changed)}",
                objects=changed[:100],
            )
        return changed


class _Waits(Exception):
    """The command waits for the net, and is nowhere on the copy."""


class _Stuck:
    """Since when something holds without a break."""

    def __init__(self) -> None:
        self.began: float | None = None

    def since(self, *, waits: bool) -> bool:
        """Tell whether it has held for too long."""
        now = time.monotonic()
        self.began = (self.began or now) if waits else None
        return self.began is not None and now - self.began > fences.STUCK_S


def how(ended: child.Ended) -> str:
    """Say how a command ended."""
    if ended.code is None:
        return f"the command was ended after {ended.duration_s:.0f} s (--timeout)"
    if ended.code < 0:
        return f"the command was ended by signal {-ended.code}"
    return f"the command ended with exit code {ended.code}"
