"""What the plan is, from the files and the history alone."""

from typing import TYPE_CHECKING, cast

import pytest

from preflight.base.errors import HistoryConflict, SchemaAhead
from preflight.commands import adopt, check
from preflight.files import folder
from preflight.files.migrations import Migration, Script
from preflight.history import plan

if TYPE_CHECKING:
    from preflight.server.sessions import Session


def files(*versions: int) -> list[Migration]:
    """Give migrations of these versions, each with a text of its own."""
    return [
        Migration(each, f"{each:03d}_step", Script(f"{each:03d}_step.sql", b"", f"sum-{each}"))
        for each in versions
    ]


def applied(
    *versions: int, state: str = "done", checksum: str = "", breaking: bool = False
) -> dict[int, plan.Record]:
    """Give the history's rows of these versions, as they were applied from `files`."""
    return {
        each: plan.Record(each, f"{each:03d}_step", checksum or f"sum-{each}", state, breaking)
        for each in versions
    }


def pending(made: plan.Plan) -> list[int]:
    """Give the versions that a plan would run."""
    return [each.version for each in made.todo]


def test_everything_is_pending_before_first_contact() -> None:
    """A database that was never migrated gets every file, in order."""
    assert [1, 2, 10] == pending(plan.make(files(1, 2, 10), plan.History(present=False)))


def test_nothing_is_pending_when_all_is_applied() -> None:
    """The common case has an empty plan."""
    assert plan.make(files(1, 2), plan.History(applied(1, 2))).empty


def test_only_what_was_not_applied_is_pending() -> None:
    """What is recorded does not run again; a gap in the numbers means nothing."""
    assert [3, 7] == pending(plan.make(files(1, 3, 7), plan.History(applied(1))))


@pytest.mark.parametrize("state", ["running", "failed"])
def test_unfinished_file_is_pending(state: str) -> None:
    """A row that is not done is settled under the lock: before it, it is only pending."""
    history = plan.History(applied(1) | applied(2, state=state, checksum="another"))

    assert [2] == pending(plan.make(files(1, 2), history))


def test_edited_file_is_a_conflict() -> None:
    """An applied file whose text changed is named, with both checksums and both ways out."""
    history = plan.History(applied(1, checksum="c0ffee") | applied(2))

    with pytest.raises(HistoryConflict) as raised:
        plan.make(files(1, 2), history)

    problem = raised.value.problem
    assert ("001_step", 1) == (problem.migration, problem.version)
    assert "c0ffee" in problem.message
    assert "sum-1" in problem.message
    assert problem.hint is not None
    assert "adopt 1" in problem.hint
    assert "force 1" in problem.hint


def test_missing_file_below_the_newest_is_a_conflict() -> None:
    """A recorded migration without a file, below a file that is there, is named."""
    with pytest.raises(HistoryConflict, match="002_step is recorded"):
        plan.make(files(1, 3), plan.History(applied(1, 2, 3)))


def test_missing_file_below_a_pending_one_is_a_conflict() -> None:
    """It also is one when the newer file was not applied yet."""
    with pytest.raises(HistoryConflict, match="002_step is recorded"):
        plan.make(files(1, 3), plan.History(applied(1, 2)))


@pytest.mark.parametrize(
    ("recorded", "gone", "way"),
    [
        ((1, 2), 1, "`rollback --to 0`"),
        ((0, 1, 2), 1, "`rollback --to 000`"),
        ((0, 1, 2, 3), 2, "`rollback --to 1`"),
        ((0, 1), 1, "`rollback`"),
    ],
)
def test_way_back_to_before_a_missing_file_takes_no_earlier_version_along(
    recorded: tuple[int, ...], gone: int, way: str
) -> None:
    """0 is below version 000, which is written so where it is to stay."""
    there = [version for version in (*recorded, 9) if version != gone]
    with pytest.raises(HistoryConflict) as raised:
        plan.make(files(*there), plan.History(applied(*recorded)))

    assert f"come back, {way} takes it back" in str(raised.value.problem.hint)


@pytest.mark.fault("B042")
def test_database_may_be_ahead() -> None:
    """An older image starts on a newer schema, and the plan says what it does not know."""
    made = plan.make(files(1), plan.History(applied(1, 2, 3)))

    assert made.empty
    assert [2, 3] == [record.version for record in made.ahead]


def test_older_image_runs_no_earlier_text_over_that_of_a_newer_one() -> None:
    """A file without a version that is recorded with another text has the newer version's."""
    repeats = [
        Migration(0, name, Script(f"{name}.sql", b"", "old"), repeat=True)
        for name in ("R__new", "R__same", "R__unknown")
    ]
    there = folder.Folder(files(1), repeats=repeats)
    repeated = {"R__new": "new", "R__same": "old"}

    def shown(*versions: int) -> list[tuple[str, str]]:
        history = plan.History(applied(*versions), repeated=repeated)
        states = {each.name: each.state for each in check.repeating(there, history, ())}
        assert [name for name in states if states[name] == "pending"] == [
            each.name for each in plan.make(there, history).todo
        ]
        return list(states.items())

    rest = [("R__same", "applied"), ("R__unknown", "pending")]
    assert [("R__new", "ahead"), *rest] == shown(1, 2)
    assert [("R__new", "pending"), *rest] == shown(1)
    there = folder.Folder((), repeats=repeats)  # which knows of no version
    assert [("R__new", "pending"), *rest] == shown(1)


def test_database_ahead_is_refused_when_asked() -> None:
    """AHEAD=fail turns it into an error that names the first unknown migration."""
    with pytest.raises(SchemaAhead) as raised:
        plan.make(files(1), plan.History(applied(1, 2, 3)), ahead="fail")

    assert 2 == raised.value.problem.version


def test_breaking_migration_ahead_is_always_refused() -> None:
    """AHEAD=allow does not let an older app start on a migration that breaks it."""
    history = plan.History(applied(1, 2) | applied(3, breaking=True) | applied(4))

    with pytest.raises(SchemaAhead, match="003_step is marked breaking") as raised:
        plan.make(files(1), history, ahead="allow")

    assert 3 == raised.value.problem.version


@pytest.mark.parametrize(("versions", "to"), [((1, 2), "2"), ((0,), "000"), ((), "0")])
def test_way_back_from_a_breaking_migration_can_be_typed(
    versions: tuple[int, ...], to: str
) -> None:
    """The hint has the number of the newest file; 0 alone would be below version 000."""
    history = plan.History(applied(*versions) | applied(3, breaking=True))

    with pytest.raises(SchemaAhead) as raised:
        plan.make(files(*versions), history)

    assert f"`rollback --to {to}`" in str(raised.value.problem.hint)


def test_breaking_migration_that_we_know_is_no_obstacle() -> None:
    """The image that brings a breaking migration starts on it."""
    assert plan.make(files(1, 2), plan.History(applied(1) | applied(2, breaking=True))).empty


def test_late_file_is_a_conflict() -> None:
    """A file below the newest applied one did not exist when that was tested."""
    with pytest.raises(HistoryConflict, match="002_step is pending but version 3") as raised:
        plan.make(files(1, 2, 3), plan.History(applied(1, 3)))

    assert 2 == raised.value.problem.version


def test_late_file_runs_when_allowed() -> None:
    """OUT_OF_ORDER=allow runs it, before newer ones."""
    history = plan.History(applied(1, 3))

    assert [2, 4] == pending(plan.make(files(1, 2, 3, 4), history, out_of_order="allow"))


def test_late_file_that_has_begun_may_finish() -> None:
    """A file that was let in out of order and stopped half-way is not refused at its re-run."""
    history = plan.History(applied(1, 3) | applied(2, state="failed"))

    assert [2] == pending(plan.make(files(1, 2, 3), history))


def test_all_conflicts_are_reported_at_once() -> None:
    """Edited, missing and late: one run shows them all, and a conflict comes before `ahead`."""
    history = plan.History(applied(1, checksum="x") | applied(2, 4) | applied(9, breaking=True))

    with pytest.raises(HistoryConflict) as raised:
        plan.make(files(1, 3, 4), history)

    assert [1, 2, 3] == [problem.version for problem in raised.value.problems]
    assert "(and 2 more)" in str(raised.value)


def test_vouching_for_many_files_compares_no_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """`adopt --through` takes as long for each of thousands of files as for each of few."""
    many = files(*range(1, 50))
    compared: list[object] = []

    def equal(file: Migration, other: object) -> bool:
        compared.append(other)
        return file is other

    monkeypatch.setattr(Migration, "__eq__", equal)
    session = cast("Session", None)  # a file without checks asks nothing

    there = adopt._there(session, many, many, many[-1], ())  # noqa: SLF001 -- what was slow
    assert len(many) == len(list(there))
    assert [] == compared
