"""The sections of `make bench`, each as small as can be: somebody who calls it gets figures."""

from types import ModuleType

import pytest

from tests.bench import crowd, gate, ground, pending, reaction

SMALL = ground.Wanted(quick=True, rounds=1, gigabytes=0.001)


@pytest.mark.parametrize("section", [reaction, crowd, pending, gate])
def test_section_gives_a_figure_for_everybody(
    section: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever takes part comes through in each round."""
    monkeypatch.setattr(crowd, "STARTS", 2)
    monkeypatch.setattr(crowd, "FILES", 2)
    monkeypatch.setattr(pending, "FILES", 2)
    with ground.made(SMALL) as there:
        rows = section.measure(there)

    assert {(row.name, 1) for row in rows} == {(row.name, len(row.seconds)) for row in rows}
    assert not [row.name for row in rows if row.more.get("failed")]
