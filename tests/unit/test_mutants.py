"""The list of `make mutate` is of the lines that are there."""

import pytest

from tests import mutants


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: str(mutant.what))
def test_mutant_breaks_a_line_that_is_there(mutant: mutants.Mutant) -> None:
    """Once, and its tests are there, too: else the list says nothing of today's code."""
    text = (mutants.ROOT / mutant.file).read_text(encoding="utf-8")

    assert text != mutant.broken(text)
    named = (*mutant.tests, *mutant.general)
    assert [] == [name for name in named if not is_there(*name.split("::"))]


def test_every_fault_of_the_reviews_is_put_back() -> None:
    """By a line that is broken, or it says which test would find it."""
    put_back = {fault for mutant in mutants.MUTANTS for fault in mutant.faults.split()}

    assert mutants.FAULTS.keys() == put_back | mutants.ELSEWHERE.keys()
    assert not put_back & mutants.ELSEWHERE.keys()
    assert all(
        is_there(*each.split("::")) for tests in mutants.ELSEWHERE.values() for each in tests
    )


def is_there(file: str, test: str = "") -> bool:
    """Tell whether a file of tests is there, and the test in it if one is named."""
    path = mutants.ROOT / file
    return path.is_file() and f"def {test}" in path.read_text(encoding="utf-8")
