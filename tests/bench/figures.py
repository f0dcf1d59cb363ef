"""What was measured: rows of bare figures, and what is told of them."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

DIGITS = 4


@dataclass
class Row:
    """One thing that was measured, in each round: seconds, and seconds of processors."""

    group: str
    name: str
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    more: dict[str, float] = field(default_factory=dict)  # what only this section has

    @property
    def median(self) -> float:
        """What a round takes, in seconds."""
        return statistics.median(self.seconds)

    @property
    def processors(self) -> float:
        """What a round takes of the processors, in seconds."""
        return statistics.median(self.cpu)


@dataclass
class Section:
    """One section, with what has to be known to read it."""

    date: str
    machine: str
    load: list[float]  # before and after
    took_s: float
    quick: bool
    versions: dict[str, str]
    lacking: dict[str, str]  # what could not be had, and why
    rows: list[Row]

    def groups(self) -> dict[str, list[Row]]:
        """Return the rows by their groups, in the order in which they were measured."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.group, []).append(row)
        return found


def times(row: Row, other: Row) -> float:
    """Return how many times as long a row takes.

    What took turns is compared round by round, so that a busy minute meets both.
    """
    if len(row.seconds) == len(other.seconds):
        pairs = zip(row.seconds, other.seconds, strict=True)
        return statistics.median([ours / theirs for ours, theirs in pairs])
    return row.median / other.median


def worst(values: Sequence[float]) -> float:
    """Return the largest."""
    return max(values)


def floor(rows: Iterable[Row], names: Sequence[str]) -> Row | None:
    """Return the first of these that was measured."""
    by_name = {row.name: row for row in rows}
    return next((by_name[name] for name in names if name in by_name), None)


def dumped(sections: Mapping[str, Section]) -> str:
    """Return the sections as JSON, a line for each row, so that a change can be read."""
    parts = []
    for name, section in sections.items():
        head = {key: value for key, value in asdict(section).items() if key != "rows"}
        rows = ",\n".join(f"   {json.dumps(_short(asdict(row)))}" for row in section.rows)
        parts.append(f' "{name}": {json.dumps(_short(head))[:-1]}, "rows": [\n{rows}\n ]}}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def loaded(text: str) -> dict[str, Section]:
    """Return the sections of such a text."""
    return {
        name: Section(**{**section, "rows": [Row(**row) for row in section["rows"]]})
        for name, section in json.loads(text).items()
    }


def _short(value: Any) -> Any:  # noqa: ANN401 -- whatever JSON has
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, dict):
        return {key: _short(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_short(each) for each in value]
    return value
