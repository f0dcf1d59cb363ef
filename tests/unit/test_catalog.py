"""How two catalogs are compared, once they have been read."""

import itertools

import pytest

from preflight.files import effects
from preflight.rehearsal import meter
from preflight.server import catalog, packed

LIVE = {"table public.a": "r", "column public.a.id": "integer", "large objects": "2"}


@pytest.mark.parametrize(
    ("copy", "lacking"),
    [
        (LIVE, []),
        (LIVE | {"schema public": ""}, []),
        (
            {**LIVE, "column public.a.id": "bigint"},
            ["column public.a.id differs: `bigint`, not `integer`"],
        ),
        ({**LIVE, "large objects": "1"}, ["there are 1 large objects, not 2"]),
        ({"large objects": "2"}, ["column public.a.id is missing", "table public.a is missing"]),
    ],
)
def test_copy_may_have_more_but_not_less(copy: dict[str, str], lacking: list[str]) -> None:
    """What template0 brings along is no defect of a backup."""
    assert lacking == catalog.lacking(sorted(LIVE.items()), sorted(copy.items()))


def test_view_that_nobody_has_filled_is_no_lack_of_a_copy() -> None:
    """One that is filled in the live database, and not in the copy, is all that a file may miss."""
    live = [("materialized view m", "m p f t f f"), ("materialized view n", "m p f f f f")]
    copy = [(name, "m p f f f f") for name, _ in live]

    assert ["materialized view m"] == catalog.unfilled(live, copy)


def test_difference_names_what_came_and_went() -> None:
    """Of one database, before and after."""
    after = {"table public.b": "r", "column public.a.id": "bigint", "large objects": "2"}

    assert [
        "column public.a.id differs",
        "table public.a is missing",
        "table public.b is new",
    ] == catalog.difference(sorted(LIVE.items()), sorted(after.items()))


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 2500])
def test_packed_rows_come_back_as_they_were(count: int) -> None:
    """Whatever the words hold, and as often as they are read."""
    rows = [(f"{number:05d}", "\0\n\x1f", "é\U0001f600") for number in range(count)]
    found = packed.Packed(iter(rows))

    assert [rows, rows] == [list(found), list(found)]


def test_state_before_a_file_is_found_from_the_one_after_it() -> None:
    """What was made goes, what was dropped comes back in its place, what changed is as it was."""
    before = [("a", "1"), ("b", "1"), ("d", "1"), ("f", "1")]
    after = [("b", "1"), ("c", "1"), ("d", "2"), ("f", "1")]

    assert before == list(catalog.undone(after, catalog.undoing(before, after)))


def test_every_name_is_found_beside_its_own() -> None:
    """Whichever side is longer, and wherever it begins or ends."""
    names = "abcdef"
    sides = [
        [(name, "") for number, name in enumerate(names) if mask >> number & 1]
        for mask in range(1 << len(names))
    ]
    for before, after in itertools.product(sides, sides):
        wanted = sorted({*before, *after})
        found = list(packed.paired(before, after))
        assert [name for name, _ in wanted] == [name for name, _, _ in found]
        assert before == [one for _, one, _ in found if one]
        assert after == [other for _, _, other in found if other]


@pytest.mark.parametrize(
    ("wanted", "found", "behind"),
    [
        ((True, 5), (True, 5), []),
        ((True, 5), (True, 9), []),
        ((True, 5), (True, 4), ["sequence s stands at 4, not 5"]),
        ((True, 5), (True, None), ["sequence s stands at None, not 5"]),
        ((True, None), (True, None), []),
        ((False, -5), (False, -9), []),
        ((False, -5), (False, -4), ["sequence s stands at -4, not -5"]),
    ],
)
def test_sequence_may_have_gone_on_but_not_back(
    wanted: tuple[bool, int | None], found: tuple[bool, int | None], behind: list[str]
) -> None:
    """A dump reads a sequence a moment after the snapshot; one may count downwards."""
    assert behind == catalog.behind({"s": wanted}, {"s": found})


@pytest.mark.parametrize(
    ("lock", "mode"),
    [
        ("AccessShareLock", "ACCESS SHARE"),
        ("ShareUpdateExclusiveLock", "SHARE UPDATE EXCLUSIVE"),
        ("AccessExclusiveLock", "ACCESS EXCLUSIVE"),
        ("SIReadLock", None),  # nobody waits for what a serializable transaction has read
    ],
)
def test_lock_modes_are_said_as_sql_says_them(lock: str, mode: str | None) -> None:
    """`pg_locks` writes them another way."""
    rank = meter.rank_of(lock)

    assert mode == (effects.STRENGTH[rank] if rank >= 0 else None)


def member(kind: str, schema: str, name: str) -> tuple[str, str, str, str, str, str]:
    """Return a relation as an extension has it."""
    return "e", "1", kind, schema, name, f"{schema}.{name}"


EXTENSION = ("e", "1", "", "", "", "")
BY_SCRIPT = member("v", "public", "seen")


@pytest.mark.parametrize(
    ("live", "expected"),
    [
        ([BY_SCRIPT], []),
        ([BY_SCRIPT, member("r", "mq", "q")], [catalog.Unmade("mq.q", table=True, moved="")]),
        ([member("v", "mq", "seen")], [catalog.Unmade("mq.seen", table=False, moved="public")]),
        (
            [BY_SCRIPT, member("v", "mq", "seen")],
            [catalog.Unmade("mq.seen", table=False, moved="")],
        ),
        ([member("r", "mq", "seen")], [catalog.Unmade("mq.seen", table=True, moved="")]),
        ([member("r", "other", "q")], []),
    ],
)
def test_relation_of_an_extension_was_moved_where_its_script_makes_it_elsewhere(
    live: list[tuple[str, str, str, str, str, str]], expected: list[catalog.Unmade]
) -> None:
    """Of its name and kind, and not there any more; anything else was added. Of some schemas."""
    found = catalog.unmade(
        frozenset([EXTENSION, *live]), frozenset([EXTENSION, BY_SCRIPT]), ("public", "mq")
    )

    assert expected == found
