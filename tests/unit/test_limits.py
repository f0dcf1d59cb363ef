"""Which errors on a copy mean what the copy alone is without."""

import pytest

from preflight.rehearsal import limits

QUEUE = limits.Absent("relation", "mq", "orders")
OURS = limits.Absent("function", "pg_catalog", "of_ours")
STATUS = limits.Absent("type", "pg_catalog", "status")
LOST = limits.Absent("", "", "total")


@pytest.mark.parametrize(
    ("state", "said", "expected"),
    [
        ("42P01", 'relation "mq.orders" does not exist', [QUEUE]),
        ("42P01", "Relation \u00bbmq.orders\u00ab existiert nicht", [QUEUE]),
        ("42P01", "la relation \u00ab mq.orders \u00bb n'existe pas", [QUEUE]),
        ("42P01", 'table "orders" does not exist', [QUEUE]),
        ("42P01", 'relation "public.orders" does not exist', []),
        ("42P01", 'relation "of_ours" does not exist', []),
        ("42P01", 'relation "status" does not exist', []),
        ("42704", 'constraint "orders" of relation "t" does not exist', []),
        ("42704", 'type "status[]" does not exist', [STATUS]),
        ("42883", "function of_ours(integer) does not exist", [OURS]),
        ("42883", "function pg_catalog.of_ours() does not exist", [OURS]),
        ("42883", "function public.of_ours() does not exist", []),
        ("42883", "function total.of(integer) does not exist", []),
        ("42883", "function shop.total(integer) does not exist", [LOST]),
        ("42P01", 'relation "shop.total" does not exist', [LOST]),
    ],
)
def test_error_is_excused_by_what_has_the_name_the_schema_and_the_kind(
    state: str, said: str, expected: list[limits.Absent]
) -> None:
    """A plain mistake stops the run, whatever else bears the same name."""
    names, kind = limits.named_in(said), limits.MISSING[state]
    assert expected == [each for each in (QUEUE, OURS, STATUS, LOST) if each.meant(kind, names)]
