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


def test_faults_that_lines_put_back_are_faults_of_the_list() -> None:
    """A number that nobody knows would count for none."""
    put_back = {fault for mutant in mutants.MUTANTS for fault in mutant.faults.split()}

    assert put_back <= mutants.FAULTS.keys()


def is_there(file: str, test: str = "") -> bool:
    """Tell whether a file of tests is there, and the test in it if one is named."""
    path = mutants.ROOT / file
    return path.is_file() and f"def {test}" in path.read_text(encoding="utf-8")
