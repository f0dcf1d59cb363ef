"""The list of `make mutate` is of the lines that are there."""

import pytest

from tests import mutants


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: str(mutant.what))
def test_mutant_breaks_a_line_that_is_there(mutant: mutants.Mutant) -> None:
    """Once, and its tests are there, too: else the list says nothing of today's code."""
    text = (mutants.ROOT / mutant.file).read_text(encoding="utf-8")

    assert text != mutant.broken(text)
    assert [] == [name for name in mutant.tests if not is_there(*name.split("::"))]


def is_there(file: str, test: str = "") -> bool:
    """Tell whether a file of tests is there, and the test in it if one is named."""
    path = mutants.ROOT / file
    return path.is_file() and f"def {test}" in path.read_text(encoding="utf-8")
