"""How much WAL a restore may write in a minute, and when it is not the restore."""

import pytest

from preflight.rehearsal import burden

MB = 1_000_000


def test_restore_pauses_until_its_minute_is_over() -> None:
    """What was written more than a minute ago does not count; the pause is counted."""
    minute = burden.Minute(10 * MB)
    said = [
        minute.above(now, written * MB)
        for now, written in [(0, 100), (1, 105), (2, 112), (59, 112), (61, 112), (62, 113)]
    ]

    assert [False, False, True, True, False, False] == said
    assert 59.0 == minute.paused_s


def test_pause_that_changes_nothing_is_given_up() -> None:
    """When others alone write more, the restore would wait for ever."""
    minute = burden.Minute(10 * MB)
    said = [minute.above(now, now * MB // 3) for now in range(97)]

    assert ([False] * 31, [True] * 66) == (said[:31], said[31:])
    with pytest.raises(burden.Overloaded, match=r"20\.\d MB of WAL in a minute"):
        minute.above(98, 98 * MB // 3)


def test_work_of_ours_that_no_pause_stops_is_not_blamed_on_others() -> None:
    """An index is built on though its client stands still; others are blamed once it is done."""
    minute = burden.Minute(10 * MB)
    busy = [True] * 2
    said = [minute.above(now, now * MB, lambda: bool(busy and busy.pop())) for now in range(200)]

    assert [True] * 189 == said[11:]
    with pytest.raises(burden.Overloaded):
        minute.above(220, 220 * MB)


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ("1.5 1.5", "1.5 1.5", False),
        ("1.5 1.5", "2.5 2.5", True),
        ("1.5 1.5", "1.5 2.5", False),
        ("", "2.5 2.5", False),
    ],
    ids=["as it was", "crashed", "one was reset", "unknown"],
)
def test_crash_is_told_from_a_restart(before: str, now: str, *, expected: bool) -> None:
    """A crash forgets all statistics; somebody may reset some of them."""
    assert expected == burden.crashed(before, now)
