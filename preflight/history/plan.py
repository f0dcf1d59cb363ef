"""Files and history in, what to do out, or the conflict; pure, no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from preflight.base.errors import HistoryConflict, Problem, SchemaAhead
from preflight.files import folder

if TYPE_CHECKING:
    from preflight.base.config import Config
    from preflight.files.migrations import Migration


@dataclass(frozen=True, slots=True)
class Record:
    """One row of the history, as everyone may read it."""

    version: int
    name: str
    checksum: str
    state: str = "done"
    breaking: bool = False
    label: str | None = None  # its version where the layout has no numbers

    @property
    def written(self) -> str:
        """Its version as people write it."""
        return self.label or str(self.version)

    @property
    def kept(self) -> str:
        """Its version as `rollback --to` takes it to leave it there: 0 is below version 000."""
        return self.written if self.version or self.written != "0" else "000"


@dataclass(frozen=True, slots=True)
class History:
    """What the database says was applied; not `present` before first contact."""

    records: Mapping[int, Record] = field(default_factory=dict)
    present: bool = True
    repeated: Mapping[str, str] = field(default_factory=dict)  # files without a version: checksums
    moved: Problem | None = None  # another tool goes on with what was taken over from it

    def done(self, version: int) -> bool:
        """Tell whether a version was applied completely."""
        return version in self.records and self.records[version].state == "done"

    def kept_below(self, version: int) -> str:
        """Return to what `rollback --to` takes that version back, all above it, and no more."""
        below = max((each for each in self.records if each < version), default=None)
        return "0" if below is None else self.records[below].kept


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do: files to run in order, and newer migrations that we do not have."""

    todo: tuple[Migration, ...]
    ahead: tuple[Record, ...] = ()

    @property
    def empty(self) -> bool:
        """Tell whether there is nothing to do."""
        return not self.todo


def make(
    files: Sequence[Migration],
    history: History,
    *,
    ahead: str = "allow",
    out_of_order: str = "fail",
) -> Plan:
    """Return what is pending, in order.

    Raises HistoryConflict (edited, missing, out of order), then SchemaAhead.
    """
    plan = Plan((*pending(files, history), *again(files, history)), newer(files, history))
    problems = [history.moved] if history.moved else []
    problems += contradicted(files, history) + missing(files, history)
    if out_of_order == "fail":
        problems += late(plan.todo, history)
    else:
        problems += moved_down(files, history) if plan.ahead else []
    if problems:
        raise HistoryConflict.of("history.conflict", problems)
    _refuse_ahead(files, plan.ahead, ahead)
    return plan


def of(config: Config, files: Sequence[Migration], history: History) -> Plan:
    """Return what is pending under the configured rules; raises what `make` raises."""
    return make(files, history, ahead=config.ahead, out_of_order=config.out_of_order)


def require_alone(history: History) -> None:
    """Make sure that no other tool went on with what was taken over; raises HistoryConflict."""
    if history.moved:
        raise HistoryConflict.of("history.conflict", [history.moved])


def pending(files: Sequence[Migration], history: History) -> tuple[Migration, ...]:
    """Return the files that are not applied completely."""
    return tuple(file for file in files if not history.done(file.version))


def again(files: Sequence[Migration], history: History) -> tuple[Migration, ...]:
    """Return the files without a version whose text is to run.

    Where the database is ahead, another text of one is that of the newer version. A folder of
    nothing else knows of no version.
    """
    ahead, repeated = bool(files) and bool(newer(files, history)), history.repeated
    return tuple(
        file
        for file in folder.repeats(files)
        if repeated.get(file.name) != file.checksum and not (ahead and file.name in repeated)
    )


def newer(files: Sequence[Migration], history: History) -> tuple[Record, ...]:
    """Return the recorded migrations above every file on disk."""
    last = max((file.version for file in files), default=-1)
    return tuple(record for version, record in sorted(history.records.items()) if version > last)


def compared(file: Migration, record: Record) -> str:
    """Return whether a file is what was recorded under its number: same, edited, renamed, other.

    One that stopped part-way may be edited or renamed: what is left of it is still to run.
    """
    alike, part_way = file.checksum == record.checksum, record.state != "done"
    if file.name == record.name:
        return "same" if alike or part_way else "edited"
    if not alike:
        return "other"
    return "same" if part_way else "renamed"


def contradicted(files: Sequence[Migration], history: History) -> list[Problem]:
    """Name every file that is not what was recorded under its number."""
    pairs = ((file, history.records.get(file.version)) for file in files)
    problems = {
        file.version: problem
        for file, record in pairs
        if record and (problem := contradiction(file, record)) is not None
    }
    moved = renumbered(files, history) if problems else {}
    for file, record in moved.values():
        if (problem := problems.get(record.version)) is not None:
            problems[record.version] = replace(problem, hint=_moves(file, record))
    return list(problems.values())


def renumbered(
    files: Sequence[Migration], history: History
) -> Mapping[int, tuple[Migration, Record]]:
    """Return each new file, by its version, whose text is recorded under a number that has no file.

    Or that another file has now. Not where that text is recorded, or new, more than once.
    """
    here = {file.version: file for file in files}
    gone: dict[str, list[Record]] = {}
    for version, record in history.records.items():
        file = here.get(version)
        if record.state == "done" and (file is None or compared(file, record) == "other"):
            gone.setdefault(record.checksum, []).append(record)
    new: dict[str, list[Migration]] = {}
    for file in files:
        if file.version not in history.records:
            new.setdefault(file.checksum, []).append(file)
    pairs = ((mine, gone.get(checksum, [])) for checksum, mine in new.items())
    return {mine[0].version: (mine[0], was[0]) for mine, was in pairs if len(mine) == len(was) == 1}


def _moves(file: Migration, record: Record) -> str:
    return (
        f"{file.name} has the text of {record.name}: was it given another number? `adopt "
        f"{file.written}` records it under that one, without running it."
    )


def foreign(files: Sequence[Migration], history: History) -> list[Problem]:
    """Name every file that is another migration than the one recorded under its number."""
    records = history.records
    others = [
        file
        for file in files
        if file.version in records and compared(file, records[file.version]) == "other"
    ]
    return contradicted(others, history)


def contradiction(file: Migration, record: Record) -> Problem | None:
    """Say how a file differs from what was recorded under its number, or None."""
    match compared(file, record):
        case "edited":
            said = (
                f"{file.name} was edited after it was applied: "
                f"recorded {record.checksum[:12]}, file {file.checksum[:12]}"
            )
            hint = (
                f"Restore the file, or accept the edit: `adopt {file.written}` records it without "
                f"running it, `force {file.written}` runs it again, once no other file differs."
            )
        case "renamed":
            said = f"{file.name} was recorded as {record.name}: the file was renamed, not edited"
            hint = (
                f"Give it its name back, or accept the new one: `adopt {file.written}` records it "
                "without running anything."
            )
        case "other":
            said = (
                f"another migration has the number of {file.name}: the database holds "
                f"{record.name}, another text under another name"
            )
            hint = (
                f"Give {file.name} a number above the newest, and put {record.name} back; was "
                "another branch or a wrong directory mounted? `rollback` takes back what is "
                "recorded, with the text that the history keeps. Did `convert` write it? `adopt "
                "--through VERSION` accepts it where its statements are the same."
            )
        case _:
            return None
    return Problem(said, hint, **file.named)


def missing(files: Sequence[Migration], history: History) -> list[Problem]:
    """Name every recorded migration that has no file though newer files are there."""
    known = {file.version for file in files}
    last = max(known, default=-1)
    gone = [
        record
        for version, record in sorted(history.records.items())
        if version not in known and version < last
    ]
    moved = renumbered(files, history) if gone else {}
    now = {record.version: file for file, record in moved.values()}
    return [
        Problem(
            f"{record.name} is recorded in the database but its file is missing",
            _moves(now[record.version], record)
            if record.version in now
            else "Put the file back; was an old or a wrong directory mounted? Where it is not to "
            f"come back, {_taken_back(record, history)}, with the text that the history keeps.",
            migration=record.name,
            version=record.version,
        )
        for record in gone
    ]


def _taken_back(record: Record, history: History) -> str:
    """Say which command takes a version back: the newest alone needs no number."""
    if record.version == max(history.records):
        return "`rollback` takes it back"
    return f"`rollback --to {history.kept_below(record.version)}` takes it back, and all above it"


def late(todo: Sequence[Migration], history: History) -> list[Problem]:
    """Name every pending file below one that was applied already."""
    newest = max(history.records, default=-1)
    return [
        Problem(
            f"{file.name} is pending but version {history.records[newest].written} was "
            "applied before it",
            "Give it a number above the newest, or set PREFLIGHT_OUT_OF_ORDER=allow to run it; if "
            f"it is in the database already: `adopt {file.written}`.",
            **file.named,
        )
        for file in todo
        if file.version < newest and file.version not in history.records and not file.repeat
    ]


def moved_down(files: Sequence[Migration], history: History) -> list[Problem]:
    """Name every file that is recorded, as it is, under a higher number than it has now."""
    return [
        Problem(
            f"{file.name} is pending, and the database holds {record.name}, of the same text",
            _moves(file, record),
            **file.named,
        )
        for file, record in renumbered(files, history).values()
        if file.version < record.version and _title(file.name) == _title(record.name)
    ]


def _title(name: str) -> str:
    return name.partition("_")[2]


def _refuse_ahead(files: Sequence[Migration], records: Sequence[Record], ahead: str) -> None:
    if not records:
        return
    names = ", ".join(
        record.name + ("" if record.state == "done" else " (part-way)") for record in records
    )
    if breaking := [record for record in records if record.breaking]:
        raise SchemaAhead(
            "schema.ahead",
            f"the database holds newer migrations ({names}), and {breaking[0].name} is marked "
            "breaking: this version must not start on it",
            "Start a newer version, or roll back to this version's newest file: "
            f"`rollback --to {_newest(files)}`.",
            migration=breaking[0].name,
            version=breaking[0].version,
        )
    if ahead == "fail":
        raise SchemaAhead(
            "schema.ahead",
            f"the database holds newer migrations: {names}",
            "Start a newer version, or set PREFLIGHT_AHEAD=allow.",
            migration=records[0].name,
            version=records[0].version,
        )


def _newest(files: Sequence[Migration]) -> str:
    """Return the newest version on disk as `rollback --to` takes it: 0 is below version 000."""
    newest = max((file for file in files if not file.repeat), key=_version, default=None)
    if newest is None:
        return "0"
    return newest.written if newest.version else newest.padded


def _version(file: Migration) -> int:
    return file.version
