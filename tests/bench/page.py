"""The page and its charts, drawn from the figures alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests import servers
from tests.bench import charts, figures, gate, pending
from tests.bench.figures import Row, Section

DOCS = servers.REPOSITORY / "docs"
US = "pg-preflight"
C, PSQL, DBMATE = "libpq in C", "psql -c 'SELECT 1'", "dbmate"
TRIED = Path(__file__).with_name("tried.md")
HEAD = """# Benchmarks

Written by `make bench`, from docs/benchmarks.json. `QUICK=1` measures less, in a few minutes;
`make bench ARGS=nothing` one section; `make bench ARGS=--page` nothing, and draws this page anew;
`make bench ARGS=--help` says the rest.

What is compared takes turns, so that a busy moment meets everybody. *times* is the median of the
rounds' ratios. Where a machine is busy seconds say little, and ratios and processor time hold.
Seconds are those of whole processes; processor time is that of the process and its children, in the
section on the gate also that of both servers. The servers write to the disk as in production
(`fsync`), and are reached over TCP with SCRAM. The other tools are those that the tests
have pinned; versions stand below each table.
"""


@dataclass(frozen=True)
class Column:
    """A column: its head, and what it says of a row among those of its group."""

    head: str
    cell: Callable[[Row, Sequence[Row]], str]


@dataclass(frozen=True)
class Part:
    """How a section is told."""

    title: str
    text: str
    columns: Sequence[Column]
    chart: Callable[[Section], list[charts.Group]] | None = None
    chart_title: str = ""
    after: str = ""


def number(value: float) -> str:
    """Return a figure with as many digits as it is worth: three at most."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def beside(*names: str) -> Column:
    """Return the column of ratios to the first of these that was measured."""

    def cell(row: Row, rows: Sequence[Row]) -> str:
        floor = figures.floor(rows, names)
        return number(figures.times(row, floor)) if floor and row.seconds else ""

    return Column(f"times `{names[0]}`", cell)


def of_seconds(head: str, scale: float, value: Callable[[Sequence[float]], float]) -> Column:
    """Return a column of the whole process's seconds."""
    return Column(head, lambda row, _: number(scale * value(row.seconds)) if row.seconds else "")


def _processors(head: str, scale: float) -> Column:
    return Column(head, lambda row, _: number(scale * row.processors) if row.cpu else "")


def more(head: str, key: str, scale: float = 1) -> Column:
    """Return a column of what only this section has."""
    return Column(head, lambda row, _: number(scale * row.more[key]) if key in row.more else "")


def whole(head: str, key: str) -> Column:
    """Return a column of numbers that are counted."""
    return Column(head, lambda row, _: f"{row.more.get(key, 0):,.0f}")


def _median(values: Sequence[float]) -> float:
    return Row("", "", list(values)).median


MEDIAN_MS, LEAST_MS = of_seconds("median ms", 1000, _median), of_seconds("minimum ms", 1000, min)
MEDIAN_S, LEAST_S = of_seconds("median s", 1, _median), of_seconds("minimum s", 1, min)
CPU_MS, CPU_S = _processors("processor ms", 1000), _processors("processor s", 1)


def _cpu_times(other: str) -> Column:
    def cell(row: Row, rows: Sequence[Row]) -> str:
        floor = figures.floor(rows, [other])
        return number(row.processors / floor.processors) if floor and row.cpu else ""

    return Column("of processors", cell)


def bars(
    section: Section, group: str, unit: str, scale: float, names: Sequence[str] = ()
) -> charts.Group:
    """Return the medians of a group as bars, the shortest first."""
    rows = [
        row
        for row in section.groups().get(group, [])
        if row.seconds and (not names or row.name in names)
    ]
    return charts.Group(
        f"{group}, {unit}",
        [
            charts.Bar(row.name, row.median, number(scale * row.median), row.name.startswith(US))
            for row in sorted(rows, key=lambda row: row.median)
        ],
    )


def _every(unit: str, scale: float) -> Callable[[Section], list[charts.Group]]:
    return lambda section: [bars(section, group, unit, scale) for group in section.groups()]


PARTS: Mapping[str, Part] = {
    "nothing": Part(
        "A start with nothing to do",
        "All files are applied. Beside the tools the least there is: an interpreter that does "
        "nothing, and one question asked from C. With more than 100 files those tools that come "
        "near it (golang-migrate takes half a minute at 10,000); their histories were written by "
        "hand. `dbmate` is `dbmate migrate`, which asks "
        "less than `up`. `script` is what people write where there is no gate: it dumps every "
        "time.",
        (beside(C, PSQL), beside(DBMATE), MEDIAN_MS, LEAST_MS, CPU_MS),
        lambda section: [bars(section, "100 files", "milliseconds", 1000)],
        "A start with nothing to do",
        "Why it is what it is: [decision 70](decisions/0070-the-first-question.md).",
    ),
    "crowd": Part(
        "200 starts at once",
        "With nothing to do, 100 files, on a server that takes 40 connections. The seconds are "
        "those until the last is through; *failed* counts over all rounds. An interpreter alone "
        "(with and without `site`) is the least that 200 starts of a Python program can take.",
        (beside("python -I -S -c ''"), MEDIAN_S, LEAST_S, whole("failed", "failed")),
        _every("seconds", 1),
        "200 starts at once, 40 connections",
    ),
    "pending": Part(
        "500 small files",
        "On an empty database, each file a table with a key. Backup and rehearsal are off, as "
        "others have none; checksums, lock, fence and history are as ever. `psql` has one "
        "connection, a transaction for each file and records nothing. The slow ones took one "
        "turn.",
        (beside(pending.FLOOR), beside(DBMATE), MEDIAN_S, LEAST_S, CPU_S),
        _every("seconds", 1),
        "500 small files",
        "What a file costs beside its statements: [decision "
        "71](decisions/0071-what-a-file-costs.md).",
    ),
    "reaction": Part(
        "A server becomes usable",
        "They wait in the same seconds, each at a door of its own, until it is heard to wait; "
        "then it opens. The milliseconds are those until the connection that gets through. "
        "Attempts can be counted where somebody answers.",
        (
            MEDIAN_MS,
            of_seconds("worst ms", 1000, figures.worst),
            more("attempts a second, at most", "attempts_a_second"),
        ),
        _every("milliseconds", 1000),
        "From usable to connected",
    ),
    "gate": Part(
        "The gate when a file is pending",
        "Tables of numbers, text and jsonb with their indexes and a foreign key; one file to "
        "apply. By hand: `pg_dump`, a throwaway server, `pg_restore --jobs=2`, once with our "
        "compression and once as `pg_dump` comes. In no case by hand is anything compared, "
        "counted or read back. `GB=10 make bench ARGS=gate` takes another size.",
        (
            beside(gate.HAND),
            _cpu_times(gate.HAND),
            MEDIAN_S,
            LEAST_S,
            CPU_S,
            more("own peak MB", "peak_mb"),
            more("dump MB", "dump_bytes", 1e-6),
        ),
        _every("seconds", 1),
        "One file pending: seconds",
        "What a proof costs: decisions [77](decisions/0077-what-a-proof-costs.md) and "
        "[80](decisions/0080-read-while-it-is-written.md).",
    ),
    "growth": Part(
        "Growth",
        "One thing becomes more, the same gate. *compare* is what follows the restore: the "
        "comparison of catalogs and rows, and the rehearsal of one small file. `LARGE=1 make "
        "bench ARGS=growth` goes to 10,000 tables and partitions, 100,000 large objects and 10 "
        "GB.",
        (
            beside(gate.HAND),
            _cpu_times(gate.HAND),
            MEDIAN_S,
            CPU_S,
            more("backup s", "backup_s"),
            more("restore s", "restore_s"),
            more("compare s", "compare_s"),
            more("own peak MB", "peak_mb"),
        ),
        lambda section: [
            charts.Group(
                "times the same by hand",
                [
                    charts.Bar(group, ratio, number(ratio), ours=True)
                    for group, rows in section.groups().items()
                    for ratio in [figures.times(rows[0], rows[1])]
                ],
            )
        ],
        "A whole run beside pg_dump and pg_restore by hand",
    ),
    "image": Part(
        "In the image",
        "`docker run` to its end, 100 files, nothing to do; beside it the same image with a "
        "program that does nothing. The difference is what the start costs.",
        (
            Column(
                "ms more than nothing",
                lambda row, rows: number(1000 * (row.median - rows[0].median)),
            ),
            MEDIAN_MS,
            LEAST_MS,
        ),
    ),
}
GATE_CHART = DOCS / "charts/gate-cost.svg"
NEAR = (US, C, DBMATE, "golang-migrate", "yoyo", "Alembic", "Django", "Flyway")


def table(name: str, section: Section) -> str:
    """Return the figures of a section as Markdown tables, one for each group."""
    part = PARTS[name]
    tables: list[str] = []
    one = name == "growth" or len(section.groups()) == 1
    heads = [column.head for column in part.columns]
    head = [f"| {' | '.join(['', *heads])} |", f"|{'---|' * (len(heads) + 1)}"]
    for group, rows in section.groups().items():
        ordered = rows if name == "growth" else sorted(rows, key=_order)
        lines = [_line(part, row, rows, group if name == "growth" else "") for row in ordered]
        if one:
            tables = [*(tables or head), *lines]
        else:
            tables += [f"{group}:\n", *head, *lines, ""]
    return "\n".join(tables).strip()


def _order(row: Row) -> float:
    return row.median if row.seconds else float("inf")


def _line(part: Part, row: Row, rows: Sequence[Row], group: str) -> str:
    cells = [column.cell(row, rows) for column in part.columns]
    named = f"{group}: {row.name}" if group else row.name
    return f"| {f'**{named}**' if row.name.startswith(US) else named} | {' | '.join(cells)} |"


def told(name: str, section: Section) -> str:
    """Return a section of the page."""
    part = PARTS[name]
    rounds = sorted({len(row.seconds) for row in section.rows if row.seconds})
    several = (
        " to ".join(str(each) for each in dict.fromkeys((rounds[0], rounds[-1]))) if rounds else ""
    )
    when = f"{section.date}, {section.machine}, load {section.load[0]:.0f} to {section.load[1]:.0f}"
    lines = [f"## {part.title}", "", part.text, ""]
    if rounds:
        hurry = "; in a hurry (`QUICK=1`)" if section.quick else ""
        lines += [
            f"{several} {'round' if rounds == [1] else 'rounds'}; {when}{hurry}.",
            "",
            table(name, section),
            "",
        ]
        if part.chart:
            lines += [
                f"![{charts.said(part.chart_title, part.chart(section))}](charts/{name}.svg)",
                "",
            ]
    else:
        lines += [f"Not measured; {when}.", ""]
    if section.lacking:
        lines += [f"- Not to be had: {each}: {why}" for each, why in section.lacking.items()] + [""]
    if section.versions:
        have = ", ".join(f"{each} {version}" for each, version in section.versions.items())
        lines += [f"Versions: {have}.", ""]
    return "\n".join([*lines, part.after, ""] if part.after else lines)


def gate_cost(sections: Mapping[str, Section]) -> list[charts.Group]:
    """Return what the gate costs, for somebody who reads one chart."""
    found = []
    if "nothing" in sections:
        group = bars(sections["nothing"], "100 files", "milliseconds", 1000, NEAR)
        found.append(charts.Group("Nothing to do, 100 files: milliseconds", group.bars))
    if "gate" in sections:
        section = sections["gate"]
        group = bars(section, next(iter(section.groups())), "seconds", 1)
        found.append(charts.Group(f"One file pending, {group.title}", group.bars))
    return found


def files(sections: Mapping[str, Section]) -> dict[Path, str]:
    """Return all that is drawn from the figures: the page and its charts."""
    parts = [HEAD, *(told(name, section) for name, section in sections.items())]
    found = {DOCS / "benchmarks.md": "\n".join([*parts, TRIED.read_text("utf-8")])}
    for name, section in sections.items():
        if (chart := PARTS[name].chart) and any(row.seconds for row in section.rows):
            drawn = charts.drawn(PARTS[name].chart_title, chart(section))
            found[DOCS / f"charts/{name}.svg"] = drawn
    if groups := gate_cost(sections):
        found[GATE_CHART] = charts.drawn("What the gate costs", groups)
    return found


def write(sections: Mapping[str, Section]) -> None:
    """Write them."""
    for path, text in files(sections).items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
