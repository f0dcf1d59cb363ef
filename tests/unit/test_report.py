"""What people read: lines, tables, and the message that Kubernetes keeps."""

import contextlib
import json
import os
import pty
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import structlog

from preflight import run
from preflight.backup import progress
from preflight.base import console, errors

FAILED: dict[str, Any] = {
    "event": "run.finished",
    "level": "error",
    "command": "up",
    "outcome": "failed",
    "exit_code": 25,
    "duration_s": 0.01,
    "error": {"code": "files.invalid", "message": "001_a.sql:1:1: no", "hint": "Do this."},
}


def test_failure_says_what_is_true_and_what_to_do() -> None:
    """The exit code, the sentence, the next step."""
    line = console.event_line(FAILED, colour=False)

    assert "✗ exit 25: 001_a.sql:1:1: no (0.01 s)" in line
    assert line.endswith("→ Do this.")


@pytest.mark.parametrize("failure", errors.Failure.__subclasses__())
def test_every_failure_says_what_to_do_next(failure: type[errors.Failure]) -> None:
    """Who reads `hint` finds one, also where nothing better is known than to look."""
    said = failure("x.y", "it is wrong").data()

    assert ["code", "message", "hint"] == list(said)
    assert str(said["hint"]).endswith("run again.")


def test_failure_shows_every_problem_and_each_hint_once() -> None:
    """All that is wrong stands on lines of its own."""
    problems = [{"message": f"problem {i}", "hint": "Same hint."} for i in range(3)]
    line = console.event_line(
        FAILED | {"error": FAILED["error"] | {"problems": problems}}, colour=False
    )

    assert ["problem 0", "problem 1", "problem 2"] == [
        each.strip(" -") for each in line.splitlines()[1:4]
    ]
    assert 1 == line.count("Same hint.")


def test_success_says_what_was_applied() -> None:
    """In one line."""
    done = {"event": "run.finished", "outcome": "applied", "exit_code": 0, "duration_s": 1.0}
    line = console.event_line(done | {"applied": ["001_a", "002_b"]}, colour=False)

    assert line.endswith("✓ applied 001_a, 002_b (1.00 s)")


def test_table_is_aligned() -> None:
    """Columns as wide as their widest cell; nothing for None, nothing at a line's end."""
    assert "A    LONG\nx    1\nyyy" == console.table(("a", "long"), [("x", 1), ("yyy", None)])


def test_table_shows_no_control_characters() -> None:
    """A name from the database cannot draw on the terminal."""
    assert "A\nx?[31m y" == console.table(("a",), [("x\x1b[31m\ny",)])


@pytest.mark.fault("F146")
@pytest.mark.parametrize(
    "data",
    [
        FAILED,
        FAILED | {"applied": [f"{n:03d}_a_rather_long_name" for n in range(1000)]},
        FAILED | {"error": {"code": "x.y", "message": "é" * 5000, "hint": "\0" * 5000}},
        FAILED | {"error": {"code": "x.y", "message": "m", "problems": [FAILED["error"]] * 500}},
        FAILED | {"error": {"code": "x.y"} | {f"key{n}": '\x1b"\\' * 2000 for n in range(12)}},
        FAILED | {"command": "up" * 5000},
        FAILED | {"error": {"code": "x.y", "message": "name \udcff.sql"}},
    ],
    ids=["small", "many", "long", "problems", "nasty", "command", "bytes"],
)
def test_termination_message_is_whole_and_small(data: dict[str, Any]) -> None:
    """At most 4096 bytes, always valid JSON, the exit code always in it."""
    message = run.termination_message(data)

    assert len(message) <= 4096
    assert 25 == json.loads(message)["exit_code"]
    assert data["error"]["code"] == json.loads(message)["error"]["code"]


def test_small_termination_message_loses_nothing() -> None:
    """What fits is the very object of `run.finished`."""
    assert FAILED == json.loads(run.termination_message(FAILED))


def test_size_is_said_in_the_unit_that_fits() -> None:
    """40 kB are not 0.0 MB."""
    said = [console.size(count) for count in (0, 999, 40_000, 1_500_000, 2e9, 3e15)]

    assert ["0 B", "999 B", "40.0 kB", "1.5 MB", "2.0 GB", "3000.0 TB"] == said


def test_rehearsal_is_told_a_line_a_statement_that_matters() -> None:
    """What was in nobody's way and took no time is not worth a line."""
    lock = {"table": "users", "mode": "ACCESS EXCLUSIVE", "held_s": 0.8}
    rewrite = {"table": "users", "before_bytes": 120_000_000, "after_bytes": 121_000_000}
    event = {
        "event": "rehearsal.passed",
        "level": "info",
        "statements": [
            {"file": "002.sql", "line": 1, "duration_s": 0.01},
            {
                "file": "002.sql",
                "line": 14,
                "duration_s": 0.7,
                "locks": [lock],
                "rewrites": [rewrite],
            },
        ],
    }

    (line,) = console.event_line(event, colour=False).splitlines()[1:]
    took = "002.sql:14  took 0.70 s; ACCESS EXCLUSIVE on users, 0.80 s"
    assert f"{took}; rewrites users 120.0 MB → 121.0 MB" == line.strip()


def test_each_problem_stands_above_its_hint() -> None:
    """Which hint belongs to which problem is seen at once."""
    pairs = [("a is wrong", "Mend a."), ("b is wrong", "Mend b."), ("c is wrong", "Mend a.")]
    problems = [{"message": message, "hint": hint} for message, hint in pairs]
    line = console.event_line(
        FAILED | {"error": FAILED["error"] | {"problems": problems}}, colour=False
    )

    assert ["- a is wrong", "- c is wrong", "→ Mend a.", "- b is wrong", "→ Mend b."] == [
        each.strip() for each in line.splitlines()[1:]
    ]


def test_table_that_is_too_wide_goes_on_in_its_cells() -> None:
    """A terminal would break it in the middle of a cell, and the columns with it."""
    rows = [("001:1", "ALTER TABLE the_first_table ADD COLUMN a int", "x")]

    shown = console.table(("place", "does", "lock"), rows, width=30)

    assert max(map(len, shown.splitlines())) <= 30
    assert "ALTER TABLE the_first_table ADD COLUMN a int" == " ".join(
        line[7:].removesuffix("x").strip() for line in shown.splitlines()[1:]
    )


def test_wide_characters_take_their_two_columns() -> None:
    """And an accent of its own takes none: what stands behind them stays in its column."""
    rows = [("日本語", "x"), ("cafe\u0301", "x"), ("ascii", "x")]
    shown = console.table(("suite", "check"), rows)

    assert "SUITE   CHECK\n日本語  x\ncafe\u0301    x\nascii   x" == shown
    assert [6, 4, 5] == [console.columns(suite) for suite, _ in rows]
    assert 13 == console.widest(("suite", "check"), rows)


@pytest.mark.parametrize(
    "text", ["日本語 表が存在する 日本語", "日本語" * 9, "a " * 20 + "日本語" * 9]
)
def test_wide_characters_go_on_below_like_others(text: str) -> None:
    """No line is wider than the terminal, and nothing is lost."""
    shown = console.table(("a", "b"), [(text, "x")], width=24)

    assert all(console.columns(line) <= 24 for line in shown.splitlines())
    cells = [line.removesuffix("x") for line in shown.splitlines()[1:]]
    assert text.replace(" ", "") == "".join(cells).replace(" ", "")
    assert "日本" == console.cut("日本語", 5)


@pytest.mark.parametrize(
    ("share", "elapsed_s", "left"),
    [(0.5, 10, ", 10 s left"), (0.25, 100, ", 5 min left"), (0.5, 1, ""), (0.01, 60, "")],
)  # fmt: skip
def test_bar_says_how_long_it_will_take(share: float, elapsed_s: float, left: str) -> None:
    """Once that can be told."""
    told = console.Bar("backup").told(share, "1 MB", elapsed_s)

    assert told.endswith(f" % 1 MB{left}")


def test_bar_on_a_terminal_that_was_closed_is_drawn_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who closed it sees nothing, and the run ends as it would: a stop is no fault of the bar."""
    ours, theirs = pty.openpty()
    stderr = os.fdopen(theirs, "w")
    monkeypatch.setattr(sys, "stderr", stderr)
    with console.Bar("backup") as bar:
        bar.show(0.1, "1 MB")
        os.close(ours)
        bar.shown = 0.0
        bar.show(0.2, "2 MB")
    with contextlib.suppress(OSError):  # what was left to be written
        stderr.close()

    assert not bar.on


@pytest.mark.parametrize(
    ("share", "elapsed_s", "told"),
    [(None, 9.0, ""), (0.4, 1.0, ", 40 %"), (0.25, 30.0, ", 25 %, 2 min left")],
)
def test_others_are_told_how_far_it_is(share: float | None, elapsed_s: float, told: str) -> None:
    """Who waits for the lock is told a share, and a time that is left once one can be known."""
    assert told == console.part(share, elapsed_s)


@pytest.mark.parametrize(
    ("share", "elapsed_s", "told"),
    [(None, 9.0, {}), (0.0, 9.0, {}), (0.4, 1.0, {}), (0.25, 30.0, {"left_s": 90})],
)
def test_events_say_the_seconds_that_are_left(
    share: float | None, elapsed_s: float, told: dict[str, int]
) -> None:
    """Once they can be known, and not before."""
    assert told == console.left_s(share, elapsed_s)


@pytest.mark.parametrize(
    ("size", "known"), [(0, False), (50, True), (99, False), (100, False), (140, False)]
)
def test_copy_that_outgrows_the_live_database_has_no_known_end(size: int, known: bool) -> None:  # noqa: FBT001 -- what is expected
    """A restore that is not over is never told as one with nothing left to do."""
    restoring = progress.Progress("restore.progressed", "expected_bytes", 100)
    restoring.began = restoring.told = restoring.began - 1000
    with structlog.testing.capture_logs() as events:
        restoring.tell(lambda: size)

    assert [known] == ["left_s" in each for each in events]


def test_run_ends_with_what_people_need_next() -> None:
    """What was done, where the backup is and how far proven, and the way back."""
    summary = console.Summary()
    for event in (
        {"event": "plan.made", "pending": ["002_b", "003_c"], "above": 1},
        {"event": "backup.verified", "backup": "shop-1-a", "directory": "/backups"},
        {"event": "rehearsal.skipped", "reason": "the role may not"},
        {"event": "migration.applied", "migration": "002_b", "version": 2, "duration_s": 0.5},
        {"event": "migration.applied", "migration": "003_c", "version": 3, "duration_s": 1},
    ):
        summary.see(event)

    last = {"event": "run.finished", "outcome": "applied", "exit_code": 0, "duration_s": 1.0}
    assert [
        "applied  002_b in 0.50 s",
        "applied  003_c in 1.00 s",
        "backup   /backups/shop-1-a",
        "proof    read back whole, not restored: the role may not",
        "go back  `rollback --to 1` runs the rollback files",
        "`restore shop-1-a --swap` puts the backup in its place",
    ] == [line.strip() for line in summary.line(last, colour=False).splitlines()[1:]]


@pytest.mark.parametrize(
    ("above", "applied", "said"),
    [
        (20240101, [20240301, 20240401], "`rollback --to 20240101` runs the rollback files"),
        (20240101, [20240301], "`rollback` runs the rollback files"),
        ("1.1", [3000, 4000, None], "`rollback --to 1.1` runs the rollback files"),
        (None, [2], "`rollback` takes the newest version back, `rollback --to VERSION` all above"),
        (3, [None], "a file without a version is taken back by its earlier text"),
    ],
    ids=["dates", "one", "text", "not-the-newest", "repeatable"],
)
def test_way_back_takes_back_what_was_applied_and_no_more(
    above: int | str | None, applied: Sequence[int | None], said: str
) -> None:
    """Versions have gaps, and some files have none; where no one command does it, it says so."""
    summary = console.Summary()
    summary.see({"event": "plan.made", "pending": ["x"], **({"above": above} if above else {})})
    for each in applied:
        named = {"migration": "x", **({"version": each} if each else {})}
        summary.see({"event": "migration.applied", "duration_s": 1.0, **named})

    told = dict(summary.told({"event": "run.finished"}))

    assert told["go back"].startswith(said)


@pytest.mark.parametrize(("code", "shown"), [(23, 2), (24, 0)])
def test_backup_is_shown_unless_it_is_none(code: int, shown: int) -> None:
    """It may be the only way back from what was taken back before another one failed."""
    summary = console.Summary()
    summary.see({"event": "backup.verified", "backup": "x", "directory": "/b"})
    last = {"exit_code": code, "error": {"code": "backup.no_export"}, "rolled_back": ["002_b"]}

    told = dict(summary.told({"event": "run.finished", **last}))

    assert shown == len(told.keys() & {"backup", "go back"})


def test_file_without_a_rollback_file_has_no_way_back_by_rollback() -> None:
    """It would be refused; the backup is the way."""
    summary = console.Summary()
    summary.see({"event": "plan.made", "pending": ["1_x", "2_y"], "above": 0})
    for number, name in ((1, "1_x"), (2, "2_y")):
        lacking = {"rollback": False} if number == 2 else {}
        said = {"migration": name, "version": number, "duration_s": 1.0, **lacking}
        summary.see({"event": "migration.applied", **said})

    told = dict(summary.told({"event": "run.finished"}))

    assert "none by `rollback`: 2_y has no rollback file" == told["go back"]


TO_1 = "`rollback --to 1` runs the rollback files"


@pytest.mark.parametrize(
    ("code", "more", "said"),
    [
        (31, {"transactional": False}, TO_1),
        (
            31,
            {"transactional": False, "rollback": False},
            f"{TO_1}, but not while 003_c is recorded: it has no rollback file",
        ),
        (143, {"transactional": False}, TO_1),
        (13, {"transactional": True}, TO_1),
        (12, {"transactional": True}, "`rollback` runs the rollback files"),
        (30, {"transactional": True, "rollback": False}, "`rollback` runs the rollback files"),
    ],
    ids=["part-way", "no-way-back", "stopped", "in-doubt", "busy", "failed"],
)
def test_way_back_counts_what_may_stand_above(
    code: int, more: Mapping[str, object], said: str
) -> None:
    """`rollback` would take back a file that stopped part-way, and leave what was applied."""
    third = {"migration": "003_c", "version": 3, **more}
    summary = console.Summary()
    for event in (
        {"event": "plan.made", "pending": ["002_b", "003_c"], "above": 1},
        {"event": "migration.started", "migration": "002_b", "version": 2, "transactional": False},
        {"event": "migration.applied", "migration": "002_b", "version": 2, "duration_s": 0.5},
        {"event": "migration.started", **third},
    ):
        summary.see(event)

    assert said == dict(summary.told({"exit_code": code}))["go back"]


@pytest.mark.parametrize(
    ("passed", "proof"),
    [
        ({"where": "local", "verified": "restored"}, "restored and compared"),
        (
            {"where": "local", "verified": "read", "partial": True, "without": ["FK CONSTRAINT a"]},
            "read back whole, not restored; the files were tried with some of the rows",
        ),
        (
            {"where": "clone", "verified": "read"},
            "read back whole, not restored; the files were tried on a clone",
        ),
    ],
    ids=["whole", "partial", "clone"],
)
def test_proof_is_what_was_restored_and_no_more(passed: Mapping[str, object], proof: str) -> None:
    """Files that were tried without it prove no backup."""
    summary = console.Summary()
    summary.see({"event": "backup.verified", "backup": "shop-1-a", "verified": "read"})
    summary.see({"event": "rehearsal.passed", **passed})

    assert proof == dict(summary.told({"event": "run.finished"}))["proof"]


@pytest.mark.parametrize(
    ("later", "proof"),
    [
        ([], "restored and compared, without the owners"),
        (
            [{"event": "rehearsal.skipped", "reason": "no such role"}],
            "restored and compared, without the owners; not all files were tried: no such role",
        ),
        (
            [{"event": "backup.verified", "backup": "b", "verified": "read"}],
            "read back whole, not restored",
        ),
    ],
    ids=["failed", "skipped", "another-backup"],
)
def test_proof_is_of_this_backup_whatever_became_of_the_files(
    later: Sequence[Mapping[str, object]], proof: str
) -> None:
    """It was compared before a file was tried on it, and says nothing of the next backup."""
    summary = console.Summary()
    said = {"backup": "a", "verified": "restored", "without": ["the owners"]}
    summary.see({"event": "rehearsal.skipped", "reason": "of an earlier backup"})
    summary.see({"event": "backup.verified", "backup": "a", "verified": "read"})
    summary.see({"event": "rehearsal.progressed", **said})
    summary.see({"event": "rehearsal.progressed", "size_bytes": 1})
    for event in later:
        summary.see(event)

    assert proof == dict(summary.told({"event": "run.finished"}))["proof"]


def test_nothing_done_needs_no_summary() -> None:
    """One line, as before."""
    last = {"event": "run.finished", "outcome": "ok", "exit_code": 0, "duration_s": 1.0}

    assert 1 == len(console.Summary().line(last, colour=False).splitlines())


def test_swap_names_what_waits_to_be_dropped() -> None:
    """As it has to be typed; the database that was live before takes its room until then."""
    kept, beside = "my-app_before_20261130T070512Z", "my-app_restored"
    swapped, restored = console.Summary(), console.Summary()
    swapped.see({"event": "restore.finished", "database": "my-app", "kept_as": kept, "note": "so"})
    restored.see({"event": "restore.finished", "database": beside, "kept_as": None})

    assert f'DROP DATABASE "{kept}" when' in str(swapped.told({}))
    assert ("mind", "so") in swapped.told({})
    assert f'DROP DATABASE "{beside}" removes' in str(restored.told({}))


def test_line_for_people_is_broken_between_words() -> None:
    """Below its head; a word that no line has room for, and an excerpt with its caret, stay."""
    path = "/backups/" + "x" * 90
    text = f"12:00:00 ! head {'word ' * 20}\n   backup   {path}\n{'long ' * 20}\n    ^"
    broken = console.fitted(text, 60).splitlines()

    assert all(len(line) <= 60 for line in broken[:3]), broken
    assert broken[1].startswith(f"{console.INDENT}  word")
    assert [f"   backup   {path}", "long " * 20, "    ^"] == broken[-3:]
