"""The fault table: 150 rows, a test that stands for each, and a page that says so."""

from tests.faults import table


def test_every_fault_has_a_test() -> None:
    """No row without one, and no test for a row that is not there."""
    found = table.proofs()

    assert [f"{part}{number:03}" for part, number in numbered()] == list(table.ROWS)
    assert {} == {name: tests for name, tests in found.items() if name not in table.ROWS}
    assert [] == [name for name, tests in found.items() if not tests]


def numbered() -> list[tuple[str, int]]:
    """Return the ids that the table has: six parts, numbered through."""
    parts = zip("ABCDEF", (0, 30, 43, 75, 107, 127), (30, 43, 75, 107, 127, 150), strict=True)
    return [(part, each + 1) for part, first, end in parts for each in range(first, end)]


def test_no_cell_of_the_table_is_empty() -> None:
    """What goes wrong, what happens then, with which code."""
    rows = table.ROWS.items()

    assert [] == [name for name, row in rows if not (row.fault and row.outcome and row.code)]


def test_page_of_the_faults_is_what_the_tests_say() -> None:
    """`make faults` writes it anew."""
    assert table.page() == table.PAGE.read_text("utf-8")
