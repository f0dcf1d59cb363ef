"""`up` over a fleet: look at all, prove and rehearse all, then change them in waves."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from preflight import gate
from preflight.apply import contact, resume
from preflight.base.errors import ConfigInvalid, Failure, Problem, RehearsalFailed, blamed
from preflight.commands.fleet import apart, targets
from preflight.files import due, folder
from preflight.history import ledger, numbers, plan
from preflight.server import lock, ready, sessions

if TYPE_CHECKING:
    from preflight.base.config import Config
    from preflight.commands.fleet.apart import Outcome
    from preflight.commands.fleet.targets import Target
    from preflight.files.migrations import Migration
    from preflight.server.sessions import Session


Prove = Callable[["folder.Folder", Sequence["Target"], "Target"], dict[str, Any]]
LOCK = "many targets"  # in a history's place: no schema of ours is called so
# a copy of a server has its identifier, too, and was not started in the same microsecond
_DATABASE = """SELECT pg_catalog.concat_ws(' ', s.system_identifier, d.oid,
 EXTRACT(epoch FROM pg_catalog.pg_postmaster_start_time()))
FROM pg_catalog.pg_control_system() s, pg_catalog.pg_database d
WHERE d.datname = pg_catalog.current_database()"""


@dataclass(frozen=True, slots=True)
class Look:
    """What is due in one target, and what stands there already."""

    todo: Sequence[Migration]
    adopts: frozenset[str]
    known: plan.History

    @property
    def mark(self) -> str:
        """Return what is equal as long as the same is to be done on the same history."""
        stood = [
            [each.version, each.name, each.checksum, each.state]
            for _, each in sorted(self.known.records.items())
            if each.name not in self.adopts
        ]
        said = json.dumps([stood, [[each.name, each.checksum] for each in self.todo]])
        return hashlib.sha256(said.encode()).hexdigest()  # one is kept for each target


@dataclass(frozen=True, slots=True)
class Proof:
    """What was backed up and rehearsed for a target, `mark` was due, and when that began."""

    mark: str
    adopts: Sequence[str]
    at: float
    backup: str | None = None
    point: dict[str, object] | None = None
    whole: bool = False  # of all schemas of its database
    last: bool = False  # made for its turn, so that no younger one is waited for

    def old(self, config: Config) -> bool:
        """Tell whether it is older than it may be at a turn."""
        age_s = time.monotonic() - self.at
        return not self.last and age_s > config.target_max_age_min * 60


@dataclass(slots=True)
class Fleet:
    """One `up` over many targets; `outcomes` is how each ended that anything was done for."""

    files: folder.Folder
    chosen: Sequence[Target]
    sizes: Sequence[int]
    outcomes: list[Outcome] = field(default_factory=list)
    proofs: dict[str, Proof] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)  # which database each is that is due

    def up(self) -> None:
        """Bring all of them up to date, or stop where the first one cannot be."""
        with apart.spoken(self.outcomes, self.chosen):
            due = self._looked_at(self.chosen)
            if self._failed or not due:
                return
            self._require_apart(due)
            # of two at once each would let go the backups of the other
            with sessions.connect(_for_all(self.chosen[0].config)) as session:
                if alone(session):
                    due = self._looked_at(due)
                if self._proven(due):
                    self._tell_old(due)
                    self._waves(due)

    def _tell_old(self, due: Sequence[Target]) -> None:
        """Say so where what was proven first is too old before the first one has its turn."""
        most_min = self.chosen[0].config.target_max_age_min
        oldest = min(self.proofs[each.name].at for each in due) if due else time.monotonic()
        if (minutes := (time.monotonic() - oldest) / 60) > most_min:
            structlog.get_logger().warning(
                "config.warned",
                warning=f"backing up and rehearsing all took {minutes:.1f} min, and "
                f"PREFLIGHT_TARGET_MAX_AGE_MIN is {most_min:g}: those whose proof is older at "
                "their turn are backed up and proven again; raise it",
            )

    def _waves(self, due: Sequence[Target]) -> None:
        """Change them, some at a time, until one fails."""
        for number, wave in enumerate(targets.waves(self.sizes, due), 1):
            old = [each for each in wave if self._old(each)]
            if not self._proven(old, prove_again):
                return
            names = [each.name for each in wave]
            structlog.get_logger().info("wave.started", number=number, targets=names)
            if not self._all(self._turn, wave, len(wave)):
                return

    def _old(self, target: Target) -> bool:
        """Tell whether what was proven for it, among others, is too old by now."""
        proof = self.proofs.get(target.name)
        return proof is not None and proof.whole and proof.old(target.config)

    @property
    def _failed(self) -> bool:
        return any(each.exit_code for each in self.outcomes)

    def _all(self, work: apart.Work, chosen: Sequence[Target], most: int) -> bool:
        """Do a work for each until one fails; tell whether none did."""
        apart.each(work, chosen, most, self.outcomes.append, over=lambda: self._failed)
        return not self._failed

    def _looked_at(self, chosen: Sequence[Target]) -> list[Target]:
        """Look at every one; return those where something is due."""
        due: list[Target] = []

        def seen(outcome: Outcome) -> None:
            if outcome.exit_code or not outcome.given:
                self.outcomes.append(outcome)
            else:
                due.append(outcome.target)
                self.places[outcome.target.name] = outcome.given

        apart.each(self._seen, chosen, max(self.sizes), seen)
        order = {each.name: number for number, each in enumerate(chosen)}
        return sorted(due, key=lambda each: order[each.name])

    def _seen(self, target: Target) -> str | None:
        """Return which database it is where something is due."""
        with sessions.connect(target.config) as session:
            return database(session) if look(session, self.files).todo else None

    def _require_apart(self, due: Sequence[Target]) -> None:
        """Make sure that no two of them are one under two addresses; raises ConfigInvalid."""
        if found := targets.clashes(due, lambda target: self.places[target.name]):
            raise ConfigInvalid.of("config.targets", [Problem(each) for each in found])

    def _proven(self, due: Sequence[Target], work: Prove | None = None) -> bool:
        """Back up and rehearse all, a database at a time; tell whether none failed."""
        for group in targets.databases(due, self.places):

            def proven(outcome: Outcome, group: Sequence[Target] = group) -> None:
                if not outcome.exit_code:
                    self.proofs |= {name: Proof(**said) for name, said in outcome.given.items()}
                    return
                blamed = (each for each in group if each.name == outcome.given)
                outcome.target = next(blamed, group[0])
                self.outcomes.append(outcome)

            if not self._failed:
                apart.each(partial(work or prove, self.files, group), group[:1], 1, proven)
        return not self._failed

    def _turn(self, target: Target) -> None:
        turn(self.files, target, self.proofs.get(target.name))


def _for_all(config: Config) -> Config:
    """Return how the session is opened that holds the lock of a whole fleet."""
    return dataclasses.replace(config, schema=LOCK)


def alone(session: Session) -> bool:
    """Be the only fleet with work in this database; tell whether another one was waited for."""
    if session.look().pooler and not session.own():
        structlog.get_logger().warning(
            "config.warned",
            warning="a connection pooler stands before the first target, and no lock holds there: "
            "a second run over many targets would not wait for this one",
        )
        return False
    return bool(lock.acquire(session))


def database(session: Session) -> str:
    """Return what is different for each database, however one goes there."""
    (found,) = session.execute(_DATABASE).fetchone() or ("",)
    return str(found)


def look(session: Session, files: folder.Folder) -> Look:
    """Return what is due, and raise what stands in its way; nothing is changed."""
    config = session.config
    known = gate.recorded(session)
    on_disk = numbers.settled(files, known)
    made = plan.of(config, on_disk, known)
    if made.empty:
        return Look((), frozenset(), known)
    ready.require_writable(session)
    adopts, problem = contact.first_look(session, on_disk, known)
    if problem:
        raise problem
    _require_resumable(session, on_disk, known)
    todo = [file for file in made.todo if file.name not in adopts]
    new = [file for file in todo if file.version not in known.records]
    due.require(due.scripts(new))
    ledger.require_rights(session)
    # what is only to be recorded is due, too: it has a turn, and needs no proof
    return Look(todo or made.todo, frozenset(adopts), known)


def _require_resumable(session: Session, files: Sequence[Migration], known: plan.History) -> None:
    begun = [each for each in files if each.version in known.records]
    if all(known.done(each.version) for each in begun):
        return
    with ledger.looking(session):
        if lock.holder(session):
            return  # it may belong to a run that lives; decided under the lock
        for row in ledger.unfinished(session):
            file = next((each for each in files if each.version == row.version), None)
            if file is not None:
                resume.require_resumable(file, row, session)


def prove(files: folder.Folder, group: Sequence[Target], first: Target) -> dict[str, Any]:
    """Back a database up once, and rehearse on one copy what is due in each target of it.

    Return a Proof for each target's name, as a pipe can carry it.
    """
    # of tenants of one database the backup is of all; of one alone where nothing less will do
    demanded = first.config.rehearse == "always" and "search_path" in first.extra
    among = len(group) > 1 or (demanded and _names_others(files, first))
    return _prove(files, group, first.whole() if among else first, whole=among)


def prove_again(files: folder.Folder, group: Sequence[Target], first: Target) -> dict[str, Any]:
    """Do so again for targets whose backup was of all, where files name more than their schemas.

    The others are backed up alone, each at its turn.
    """
    more = []
    for target in group:
        with blamed(target.name):
            more += [target] if _names_others(files, target) else []
    found = _prove(files, more, first.whole(), whole=True) if more else {}
    return {name: said | {"last": True} for name, said in found.items()}


def tried(group: Sequence[Target], first: Target) -> dict[str, Any]:
    """Try on one copy of a database what is due in each target of it, as `prove` does.

    Return what it took and what failed for each target's name, as a pipe can carry it. One that
    cannot be looked at is left out, and so is one that needs no more than its own schemas.
    """
    from preflight.rehearsal import trial  # noqa: PLC0415 -- only when asked

    files, parts = folder.load(first.config), list[trial.Tenant]()
    for target in group:
        with suppress(Failure):  # which its own plan raises
            with sessions.connect(target.config) as own:
                seen = look(own, files)
            if todo := [each for each in seen.todo if each.name not in seen.adopts]:
                settled = numbers.settled(files, seen.known)
                parts.append(trial.Tenant(target.name, target.config, target.extra, settled, todo))
    if not parts or (len(group) == 1 and not _names_others(files, first)):
        return {}
    with sessions.connect(first.whole().config) as session:
        found = gate.tried_all(session, parts)
    return {
        name: [[[*at, cost] for at, cost in costs.items()], failed and failed.data()]
        for name, (costs, failed) in found.items()
    }


def heard(said: Any) -> gate.Tried:  # noqa: ANN401 -- of a pipe
    """Return what was tried for one target, as it came through a pipe."""
    costs, error = said
    failed = None
    if error is not None:
        problems = error.pop("problems", ())
        failed = RehearsalFailed(**error)
        failed.problems = tuple(Problem(**each) for each in problems)
    return {(file, start): cost for file, start, cost in costs}, failed


def _names_others(files: folder.Folder, target: Target) -> bool:
    """Tell whether a file that is due names what a backup of the target's schemas leaves out."""
    from preflight.backup import parts  # noqa: PLC0415 -- only when work is due
    from preflight.rehearsal import limits  # noqa: PLC0415 -- likewise

    if target.config.backup in {"off", *gate.INSTEAD}:
        return False  # there is no backup of some schemas
    with sessions.connect(target.config) as session:
        todo = look(session, files).todo
        session.prepare()
        scripts = [limits.scripts_of(file) for file in todo]
        return limits.beyond(session, parts.look(session), scripts) is not None


def _prove(
    files: folder.Folder, group: Sequence[Target], goes: Target, *, whole: bool
) -> dict[str, Any]:
    from preflight.rehearsal import trial  # noqa: PLC0415 -- only when work is due

    found: dict[str, Look] = {}
    with sessions.connect(goes.config) as session:
        session.look()
        ready.require_writable(session)
        session.prepare()
        parts: list[trial.Tenant] = []
        for target in group:
            with blamed(target.name), sessions.connect(target.config) as own:
                seen = look(own, files)
            found[target.name] = seen
            todo = [each for each in seen.todo if each.name not in seen.adopts]
            if todo:
                settled = numbers.settled(files, seen.known)
                parts.append(trial.Tenant(target.name, target.config, target.extra, settled, todo))
        at = time.monotonic()  # a backup is as old as its beginning
        backup, point = gate.proven_all(session, parts) if parts else (None, None)
    return {
        name: dataclasses.asdict(
            Proof(each.mark, sorted(each.adopts), at, backup, point, whole=whole)
        )
        for name, each in found.items()
    }


def turn(files: folder.Folder, target: Target, proof: Proof | None) -> None:
    """Change one target; it is proven again where its proof is old or its history has moved."""
    from preflight.apply import forward  # noqa: PLC0415 -- as in entrypoint.py

    with sessions.connect(target.config) as session:
        for attempt in gate.rounds(session, files):
            with attempt:
                fresh = proof is not None and attempt.first and _holds(session, attempt, proof)
                backup = proof.backup if fresh and proof else attempt.proven()
                if fresh and proof and backup and proof.point:
                    gate.note_point(session, attempt.todo, backup, proof.point)
                for migration in attempt.todo:
                    forward.forward(session, migration, backup)


def _holds(session: Session, attempt: gate.Round, proof: Proof) -> bool:
    """Tell whether what was proven is what is to be done now."""
    if proof.old(session.config):
        return False
    adopted = frozenset(proof.adopts)
    if any(file.name in adopted for file in attempt.todo):
        return False  # it was there when all were looked at, and nobody has tried the file
    known = ledger.read(session)
    return Look(attempt.todo, adopted, known).mark == proof.mark and _there(
        session.config, proof.backup
    )


def _there(config: Config, backup: str | None) -> bool:
    """Tell whether a backup that others share with us is still one."""
    from preflight.backup import manifests, points, stores  # noqa: PLC0415 -- when work is due

    if backup is None or points.names_one(backup):
        return True
    try:
        stores.of(config).read(backup)
    except (OSError, manifests.Unreadable):
        return False
    return True
