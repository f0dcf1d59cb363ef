"""What is told of figures: ratios, charts, and the page, which says only what was measured."""

from xml.etree import ElementTree as ET

import pytest

from tests.bench import __main__ as bench
from tests.bench import charts, figures, page
from tests.bench.figures import Row, Section

ROWS = [
    Row("100 files", "libpq in C", [0.01, 0.02, 0.04], [0.004, 0.005, 0.006]),
    Row("100 files", "dbmate", [0.02, 0.02, 0.08], [0.01, 0.01, 0.01]),
    Row("100 files", "pg-preflight", [0.03, 0.05, 0.12], [0.02, 0.03, 0.02], {"failed": 1}),
]


def section(rows: list[Row], **other: dict[str, str]) -> Section:
    """Return a section with these rows."""
    known = {"versions": {"PostgreSQL": "17.1"}, "lacking": {}}
    return Section(
        "2026-11-28", "2 cores", [1.0, 2.0], 9.5, quick=False, **known | other, rows=rows
    )


def test_ratio_is_the_median_of_the_rounds() -> None:
    """A busy round meets both, so round is compared with round; without as many, medians are."""
    floor, other, ours = ROWS

    assert (0.05, 0.02) == (ours.median, ours.processors)
    assert 3.0 == pytest.approx(figures.times(ours, floor))
    assert 2.5 == pytest.approx(figures.times(Row("", "", [0.05]), other))


def test_floor_is_the_first_that_was_measured() -> None:
    """Without a C compiler psql stands in."""
    assert ROWS[1] == figures.floor(ROWS, ["psql", "dbmate", "libpq in C"])
    assert figures.floor(ROWS, ["psql"]) is None


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0449, "0.04"), (1.256, "1.26"), (12.34, "12.3"), (12345.6, "12,346")]
)
def test_figure_has_the_digits_that_it_is_worth(value: float, shown: str) -> None:
    """Three at most, below a thousand."""
    assert shown == page.number(value)


def test_results_survive_being_written() -> None:
    """A row is a line; what is read is what was written."""
    sections = {"nothing": section(ROWS), "image": section([], lacking={"the image": "no docker"})}

    text = figures.dumped(sections)

    assert sections == figures.loaded(text)
    assert len(ROWS) == sum('"seconds"' in line for line in text.splitlines())


def test_table_has_ratios_beside_both_floors() -> None:
    """The quickest first; the program is to be seen at once."""
    lines = page.table("nothing", section(ROWS)).splitlines()

    assert lines[0].startswith("|  | times `libpq in C` | times `dbmate` | median ms |")
    assert ["libpq in C", "dbmate", "**pg-preflight**"] == [
        line.split("|")[1].strip() for line in lines[2:]
    ]
    assert "| **pg-preflight** | 3.00 | 1.50 | 50.0 | 30.0 | 20.0 |" == lines[-1]


def test_what_is_lacking_is_said_and_not_measured() -> None:
    """A tool or a section that this machine cannot have is a line with the reason."""
    told = page.told("image", section([], lacking={"the image": "docker does not answer"}))

    assert "Not measured" in told
    assert "- Not to be had: the image: docker does not answer" in told
    assert "charts/image.svg" not in told


def test_chart_is_drawn_to_scale_and_said_in_words() -> None:
    """It is read without eyes, too, and in the dark."""
    bars = [charts.Bar("a & b", 1, "1.00"), charts.Bar("ours", 4, "4.00", ours=True)]

    drawn = charts.drawn("Title", [charts.Group("seconds", bars)])

    root = ET.fromstring(drawn)  # noqa: S314 -- drawn here
    wide = [
        int(each.attrib["width"])
        for each in root.iter("{http://www.w3.org/2000/svg}rect")
        if each.attrib["class"] in ("bar", "us")
    ]
    assert [charts.WIDE // 4, charts.WIDE] == wide
    assert "Title. seconds: a & b 1.00, ours 4.00." == root.attrib["aria-label"]
    assert "prefers-color-scheme:dark" in drawn


def test_benchmarks_are_what_was_measured() -> None:
    """`make bench ARGS=--page` draws page and charts anew from docs/benchmarks.json."""
    known = figures.loaded(bench.RESULTS.read_text("utf-8"))
    drawn = page.files(known)

    assert list(known) == [name for name in bench.SECTIONS if name in known]
    assert set(page.PARTS) == set(bench.SECTIONS)
    for path, text in drawn.items():
        assert text == path.read_text("utf-8"), path
    assert set(drawn) - {page.DOCS / "benchmarks.md"} == set((page.DOCS / "charts").glob("*"))
