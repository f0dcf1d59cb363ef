"""The story of a wrapped command: from its key to the record that it has run."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import psycopg
import structlog

from preflight import gate
from preflight.backup import points
from preflight.base import console, quoting, stop
from preflight.base.errors import (
    ConfigInvalid,
    ConnectionLost,
    Failure,
    MigrationFailed,
    MigrationPartial,
    VerifyFailed,
)
from preflight.commands.wrapping import asked as asking
from preflight.commands.wrapping import due, key, orphans
from preflight.history import wraps
from preflight.server import lock, prepared, sessions

if TYPE_CHECKING:
    from preflight.backup.take import Taken
    from preflight.base.config import Config
    from preflight.commands.wrapping import child, written
    from preflight.commands.wrapping.asked import Asked, Wrapped
    from preflight.commands.wrapping.rehearsed import Rehearsed
    from preflight.server.sessions import Session

T = TypeVar("T")
_NOTHING = "nothing of it stays on the live database"
_AS_FAR_AS_SEEN = (
    "no object, row or sequence of the live database is another one; whether its server's slots or "
    "settings are (ALTER SYSTEM), this role may not see"
)


def run(config: Config, asked: Asked) -> None:
    """Run a command behind the gate, if it has anything to do."""
    wrapped = asking.read(config, asked)  # 20 25
    with sessions.connect(config) as session:  # 10 21 22
        if planned(due.look(session, wrapped), wrapped):  # 26
            require_startable(wrapped)  # 20
            gate.enter(session)  # 11 22
            orphans.wait(session)  # 12
            look = due.look(session, wrapped)
            if planned(look, wrapped):  # else another run did it
                _Run(session, wrapped).through(look)


def planned(look: due.Look, wrapped: Wrapped) -> bool:
    """Tell, and say, whether the command has anything to do."""
    look.warn(wrapped)
    pending = [] if look.current else [wrapped.name]
    structlog.get_logger().info("plan.made", pending=pending)
    return bool(pending)


def require_startable(wrapped: Wrapped) -> None:
    """Make sure that there is such a program, and that it starts; raises ConfigInvalid."""
    from preflight.commands.wrapping import child, program  # noqa: PLC0415 -- only when work is due

    program.require_startable(wrapped.asked.command[0], child.own(wrapped.environ))


class _Run:
    """One command that is due, under the lock."""

    def __init__(self, session: Session, wrapped: Wrapped) -> None:
        self.session = session
        self.wrapped = wrapped
        self.backup: str | None = None
        self.began = time.monotonic()
        self.doubts: list[str] = []  # what people may believe was looked at, and was not
        self.unseen: str | None = None  # sessions on the live database
        self.still: list[int] = []  # who is at work there yet
        self.maybe = False  # whose session is still at work there, nobody knows
        self.settled: list[prepared.Prepared] = []  # transactions, before it began
        self.prepared: list[prepared.Prepared] = []  # those that came meanwhile, and stay
        self.numbers: set[str] = set()  # of transactions that its sessions were seen in
        self.noted = orphans.Noted(session, wrapped)

    def through(self, look: due.Look) -> None:
        """Back up, prove, try, run, compare, verify, record."""
        from preflight.commands.wrapping import rehearsed, written  # noqa: PLC0415 -- only when work is due

        wraps.ensure(self.session)  # 22 26 28

        def tried(saved: Taken | None) -> Rehearsed | None:
            self.backup = saved.name if saved else None
            return rehearsed.rehearse(self.session, self.wrapped, look, saved)

        due_now = {"command": self.wrapped.name, "key": self.wrapped.files_key}
        copy, self.backup = self._noted(  # 14 23 24 27 31
            lambda: gate.proven_for(self.session, due_now, tried)
        )
        before = written.look(self.session, self.wrapped.asked.history)
        self.settled = prepared.there(self.session)
        lock.require(self.session)  # 13
        stop.leaves(self.session, "what the command has committed stays")
        ended = self._noted(partial(self._in_earnest, before, copy))  # 20 30 31
        stop.leaves(self.session, "what the command has committed stays, but it is not recorded")
        try:
            self._look_for_prepared()
            self._look_for_invalid(before, copy)
            its = self._its_prepared(rehearsed=copy is not None)
            if its:
                self.doubts.append(_held(its)[2:])
            self._noted(partial(self._matched, copy, before))  # 33
            self._noted(self._verified)  # 33
            self._record(ended)
        except psycopg.OperationalError as error:
            if not self.session.lost:
                raise
            raise self._unrecorded(error) from error  # 13
        stop.leaves(self.session, None)

    def _noted(self, work: Callable[[], T]) -> T:
        """Return what some work returns; its failure is noted in the journal."""
        try:
            return work()
        except Failure as failure:
            with suppress(psycopg.Error):
                if not self.session.lost:
                    self._journal(failure)
            raise

    def _journal(self, failure: Failure) -> None:
        wraps.journal(
            self.session,
            "failed",
            self.wrapped.name,
            self.wrapped.files_key,
            duration_ms=round(1000 * (time.monotonic() - self.began)),
            backup=self.backup,
            error=str(failure),
        )

    def _in_earnest(self, before: written.Before, copy: Rehearsed | None) -> child.Ended:
        """Run the command with its own environment; raises MigrationFailed, MigrationPartial."""
        from preflight.commands.wrapping import child, leading, lock_timeout, onlooker, rehearsed  # noqa: PLC0415 -- likewise

        asked, environ = self.wrapped.asked, self.wrapped.environ
        command: Sequence[str] = asked.command
        if asked.lock_timeout:
            names = leading.names(self.session, self.wrapped)
            environ, command = lock_timeout.given(environ, command, names, asked.lock_timeout)
        live, alone = onlooker.OnLive(self.session), False
        self.unseen = onlooker.UNSEEN if live.blind else None
        self.numbers = live.numbers

        def each(running: child.Child) -> None:
            live.look(running)
            self.noted.note(live)

        structlog.get_logger().info("wrap.started", command=self.wrapped.name, backup=self.backup)
        try:
            ended = child.run(
                command,
                environ,
                secrets=self.wrapped.secrets,
                timeout_s=asked.timeout,
                each=each,
            )
            cut = live.cut_off(ended) if ended.code == 0 else []
            if ended.code is None or (ended.code and ended.left):  # ended by us, not by itself
                live.end()
            if ended.code != 0 or cut:
                alone = live.gone(all_new=True)
                self.maybe, self.still = live.unsure, live.still
                self._look_for_prepared()
        except stop.Stopped:
            with suppress(psycopg.Error):
                live.end()
            raise
        except psycopg.OperationalError as error:
            if not self.session.lost:
                raise
            raise self._unwatched(error) from error
        if ended.code != 0 or cut:
            how = rehearsed.how(ended) + onlooker.cut_off(cut)
            raise self._failed(how, ended, before, alone=alone, copy=copy)
        return ended

    def _unwatched(self, error: psycopg.OperationalError) -> MigrationPartial:
        """Return what it means when our own connection is lost while the command runs."""
        return MigrationPartial(
            "wrap.partial",
            f"{sessions.lost(error)}, and the run's lock with it, while the command ran; it was "
            "ended, and what it had committed stays",
            f"Look at the database, then run again; {self._back()}.",
            sqlstate=error.sqlstate,
        )

    def _unrecorded(self, error: psycopg.OperationalError) -> ConnectionLost:
        """Return what it means when our own connection is lost once the command has ended."""
        return ConnectionLost(
            "connection.lost",
            f"{sessions.lost(error)}; the command had ended well, and what it has committed stays, "
            "but it is not recorded",
            "Run again: it is started once more, and finds nothing to do if it keeps a history.",
            sqlstate=error.sqlstate,
        )

    def _back(self) -> str:
        if self.backup is None:
            return "there is no backup (PREFLIGHT_BACKUP=off)"
        if points.names_one(self.backup):
            return f"`restore {self.backup}` says how to come back to the point before it"
        if self.session.config.schemas:
            return f"`restore {self.backup}` makes a database beside it, to copy from"
        return f"`restore {self.backup} --swap` puts the backup in its place"

    def _failed(
        self,
        how: str,
        ended: child.Ended,
        before: written.Before,
        *,
        alone: bool,
        copy: Rehearsed | None,
    ) -> Failure:
        """Return what its end means: whether anything stays of what it did."""
        how += f": {'; '.join(ended.why)}" if ended.last else ""
        if copy and copy.shared:
            how += (
                "; while it was tried, by it or by somebody else the live server was changed: "
                f"{console.some(copy.shared)}"
            )
        context = ended.context
        try:
            what = self._left(before, alone=alone)
        except psycopg.Error as error:  # its session may hold what we look at
            reason = str(sessions.lost(error)) if self.session.lost else (
                f"what is needed for that cannot be read: {error.diag.message_primary or error}"
            )  # fmt: skip
            what = f"what stays of it nobody can tell: {reason}{self._at_work(alone=alone)}"
            what += _held(self.prepared)
        first = (_late(copy) if ended.code is None else "") + self._in_the_way(ended, before)
        if what is None:
            same = "The same went well on the copy: what is different here? " if copy else ""
            same = first or same
            return MigrationFailed(
                "wrap.failed",
                f"{how}; {_NOTHING if before.sees_all else _AS_FAR_AS_SEEN}",
                f"{same}Run again when the cause is removed.",
                context=context,
            )
        return MigrationPartial(
            "wrap.partial",
            f"{how}; {what}",
            f"{first}Look at the database. Run again when the tool can go on from there; "
            f"{self._back()}.",
            context=context,
        )

    def _in_the_way(self, ended: child.Ended, before: written.Before) -> str:
        """Say which INVALID indexes it has left, or speaks of in its last lines; or nothing."""
        from preflight.commands.wrapping import written  # noqa: PLC0415 -- likewise

        found, told = list[str](), "\n".join((*ended.telling, *ended.last))
        with suppress(psycopg.Error):
            now = written.invalid(self.session)
            left = written.left(before, now)
            found = [e.remedy for e in now if not e.busy and (e in left or _names(told, e.name))]
        return (
            "The live database has INVALID indexes, which no dump holds and which may be in the "
            f"way there: {console.some(found)}. "
        ) if found else ""  # fmt: skip

    def _left(self, before: written.Before, *, alone: bool) -> str | None:
        """Say what stays of a command that failed; None: nothing. Raises psycopg.Error."""
        from preflight.commands.wrapping import written  # noqa: PLC0415 -- likewise

        changed = written.changed(self.session, before, self.wrapped.asked.history)
        changed += written.lasting(self.session, before)
        aborted = written.aborted(self.session, before, self.noted.numbers)
        moved = written.moved(self.session, before)
        if alone and not changed and aborted and not moved:
            return None
        what = "no object was changed"
        if changed:
            what = f"it has changed {console.some(changed)}"
        elif not aborted:
            what += f", but whether it wrote rows nobody can tell: {written.BY_WHOM}"
        elif moved:
            what = f"no row stays, but no rollback takes back where {console.some(moved)} stands"
        return what + self._at_work(alone=alone) + _held(self.prepared)

    def _at_work(self, *, alone: bool) -> str:
        """Say, behind what stays of it, that a session goes on; nothing where none does."""
        if alone:
            return ""
        what = "a session came meanwhile that may be its own, and is" if self.maybe else (
            "a session of it is"
        )  # fmt: skip
        return f"; {what} still at work (pid {console.some(list(map(str, self.still)))})"

    def _look_for_prepared(self) -> None:
        """Look which transactions were prepared meanwhile, and stay; a look takes nothing away."""
        try:
            self.prepared = prepared.staying(self.session, self.settled)
        except psycopg.Error:
            if self.session.lost:
                raise

    def _look_for_invalid(self, before: written.Before, copy: Rehearsed | None) -> None:
        """Look which INVALID indexes a command has left, or passed over, that ended well.

        CREATE INDEX IF NOT EXISTS is content with one. That takes no success away.
        """
        from preflight.commands.wrapping import written  # noqa: PLC0415 -- likewise

        try:
            now = written.invalid(self.session)
        except psycopg.Error:
            if self.session.lost:
                raise
            return
        found = written.left(before, now)
        made = copy.changes.made if copy else {}
        found += [e for e in now if e not in found and not e.busy and f"index {e.name}" in made]
        if found:
            self.doubts.append(
                "INVALID indexes are there, which serve no query and slow every write: "
                f"{console.some([each.remedy for each in found])}; make anew what is dropped"
            )

    def _its_prepared(self, *, rehearsed: bool) -> list[prepared.Prepared]:
        """Return those that may be the command's where it has ended well.

        One that a session of it was seen in is. Of the others none where it left none on its copy,
        nor where the owner had some before it began: an app that uses them.
        """
        owners = {owner for _, owner, _ in self.settled}
        return [
            (gid, owner, number)
            for gid, owner, number in self.prepared
            if number in self.numbers or not (rehearsed or owner in owners)
        ]

    def _matched(self, copy: Rehearsed | None, before: written.Before) -> None:
        """Say whether what happened is what was rehearsed; raises VerifyFailed with --strict."""
        from preflight.commands.wrapping import compared  # noqa: PLC0415 -- likewise

        if copy is None:
            if self.wrapped.asked.strict:
                self.doubts.append("it was not rehearsed, so --strict had nothing to compare")
            return
        try:
            now = compared.state(self.session)
        except psycopg.Error as error:
            if self.session.lost:
                raise
            self._uncompared(error)
            return
        happened = compared.between(before.state, now, self.session.config.schema)
        different = compared.differing(copy.changes, happened, bare=copy.bare)
        log = structlog.get_logger()
        if not different:
            log.info("wrap.matched", command=self.wrapped.name, **happened.data())
            return
        log.warning("wrap.differs", command=self.wrapped.name, objects=different[:100])
        if self.wrapped.asked.strict:
            raise VerifyFailed(
                "wrap.not_as_rehearsed",
                f"what happened is not what was rehearsed: {console.some(different)}",
                "The command has run. Look at what is named: did somebody else change it "
                "meanwhile, or does the command do here what it did not do there?",
            )

    def _uncompared(self, error: psycopg.Error) -> None:
        """Keep in mind that nobody could look: that takes no success away; VerifyFailed if strict.

        Somebody may hold a lock on what a definition is made of, and the command has run.
        """
        what = "what happened could not be compared with what was rehearsed"
        why = f"{what}: {error.diag.message_primary or error}"
        if self.wrapped.asked.strict:
            raise VerifyFailed(
                "wrap.not_compared",
                why,
                "The command has run. Who holds a lock there? Let him end; the next run starts the "
                "command once more.",
                sqlstate=error.sqlstate,
            ) from error
        self.doubts.append(why)

    def _verified(self) -> None:
        from preflight.commands.wrapping import checked, compared  # noqa: PLC0415 -- likewise

        compared.asked(self.session, lambda session: checked.require(session, self.wrapped.checks))

    def _files_moved(self) -> bool:
        """Tell whether what is watched is another than it was, where that makes it due again.

        The command may have written there, or somebody who changed what it was to read.
        """
        asked = self.wrapped.asked
        if asked.always:
            return False
        try:
            return key.of_files(asked.command, asked.watch) != self.wrapped.files_key
        except ConfigInvalid:  # it cannot be watched any more
            return True

    def _record(self, ended: child.Ended) -> None:
        """Record the key: the files as they were read, and what the tool's history holds now."""
        from preflight.commands.wrapping import compared  # noqa: PLC0415 -- likewise

        look = compared.asked(self.session, lambda session: due.look(session, self.wrapped))
        named = self.wrapped.asked.history
        if named is not None and not look.tables:
            self.doubts.append(f"there is no table {named} (--history) after the command has run")
        if self._files_moved():
            self.doubts.append(
                "the watched files changed while it ran, and a start that finds them as they are "
                "now runs the command again: if it writes there itself (a schema dump), name with "
                "--watch only what it reads, the folder of its migrations"
            )
        wraps.record(
            self.session,
            look.key,
            command=self.wrapped.name,
            watched=" ".join(map(str, self.wrapped.asked.watch)),
            duration_ms=round(1000 * ended.duration_s),
            backup=self.backup,
        )
        log = structlog.get_logger()
        (log.warning if self.doubts else log.info)(
            "wrap.finished",
            command=self.wrapped.name,
            exit_code=ended.code,
            backup=self.backup,
            command_s=ended.duration_s,
            duration_s=round(time.monotonic() - self.began, 3),
            **({"unseen": self.unseen} if self.unseen else {}),
            **({"prepared": [gid for gid, _, _ in self.prepared]} if self.prepared else {}),
            **({"reason": "; ".join(self.doubts)} if self.doubts else {}),
        )


def _names(told: str, name: str) -> bool:
    """Tell whether a text has the bare name of an object in it."""
    bare = re.escape(quoting.parts(name)[-1])
    return re.search(rf"(?<!\w){bare}(?!\w)", told) is not None


def _late(copy: Rehearsed | None) -> str:
    """Say what to do about a command that did not end in time."""
    from preflight.commands.wrapping import rehearsed  # noqa: PLC0415 -- likewise

    if copy is None:
        return f"{rehearsed.ENDLESS[:1].upper()}{rehearsed.ENDLESS[1:]}. "
    return "On the copy it ended in time: does it wait for a lock here? Else a longer --timeout. "


def _held(found: Sequence[prepared.Prepared]) -> str:
    """Say, behind what stays of it, which prepared transactions came meanwhile; or nothing."""
    if not found:
        return ""
    return (
        f"; {prepared.named(found)}, prepared meanwhile by the command or by somebody else, keeps "
        "its locks until somebody says COMMIT PREPARED or ROLLBACK PREPARED"
    )
