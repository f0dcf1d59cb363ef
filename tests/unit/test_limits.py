"""Which errors on a copy mean what the copy alone is without."""

from typing import TYPE_CHECKING, cast

import pytest

from preflight.backup.new_database import Complaint
from preflight.rehearsal import copies, limits

if TYPE_CHECKING:
    from preflight.server.sessions import Session

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


def test_copy_that_lacks_locales_of_numbers_is_as_the_database_for_first_contact() -> None:
    """Only where text sorts otherwise may a verify file say something else there."""
    nobody = cast("Session", None)
    found = [
        copies.Copy(nobody, "c", 0, 0, nobody, fidelity=lacking)
        for lacking in (None, "lc_numeric, lc_time", "collation, lc_time")
    ]

    assert [True, True, False] == [copy.whole for copy in found]
    assert [[], ["lc_numeric", "lc_time"], ["lc_time"]] == [copy.unspoken for copy in found]


def test_errors_are_for_one_reason_where_the_rest_only_lacks_its_rows() -> None:
    """A key to a table without rows fails then; a duplicate and a damaged archive do not."""
    rows, table = Complaint("ERROR:  x", "TABLE DATA t us"), Complaint("ERROR:  x", "TABLE t us")
    key = Complaint("ERROR:  x", "FK CONSTRAINT u of_t us")
    twice = Complaint("ERROR:  could not create unique index", "CONSTRAINT u u_key us")
    unmade = Complaint('ERROR:  relation "t" does not exist', "TABLE DATA t us")
    damaged = Complaint("could not read")

    assert [True, False, False, False, True] == [
        copies.one_reason([blamed, *others], [blamed])
        for blamed, others in (
            (rows, [key]), (rows, [key, twice]), (rows, [damaged]), (rows, [unmade]),
            (table, [unmade, key]),
        )
    ]  # fmt: skip
