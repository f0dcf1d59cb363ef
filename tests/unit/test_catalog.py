"""How two catalogs are compared, once they have been read."""

import pytest

from preflight.rehearsal import meter
from preflight.server import catalog

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
        ({"large objects": "2"}, ["table public.a is missing", "column public.a.id is missing"]),
    ],
)
def test_copy_may_have_more_but_not_less(copy: dict[str, str], lacking: list[str]) -> None:
    """What template0 brings along is no defect of a backup."""
    assert lacking == catalog.lacking(LIVE, copy)


def test_difference_names_what_came_and_went() -> None:
    """Of one database, before and after."""
    after = {"table public.b": "r", "column public.a.id": "bigint", "large objects": "2"}

    assert [
        "column public.a.id differs",
        "table public.a is missing",
        "table public.b is new",
    ] == catalog.difference(LIVE, after)


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
    ],
)
def test_lock_modes_are_said_as_sql_says_them(lock: str, mode: str) -> None:
    """`pg_locks` writes them another way."""
    assert mode == meter.mode_of(lock)
