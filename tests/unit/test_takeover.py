"""What another tool's history says is applied, and what speaks against believing it."""

import hashlib
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from preflight.base.errors import HistoryConflict
from preflight.files import folder, foreign, reading
from preflight.history import remembered, takeover

NAMES = {
    "golang-migrate": "{}_t.up.sql",
    "sqlx": "{}_t.sql",
    "prisma": "{}_t/migration.sql",
    "flyway": "V{}__t.sql",
}


def text(number: int) -> str:
    """Return a file as the tool ran it."""
    return f"CREATE TABLE t{number} ();\n"


def signed(crc: int) -> int:
    """Return a checksum as Flyway keeps it."""
    return crc - (1 << 32) * (crc >> 31)


def sqlx_rows(failed: int) -> list[tuple[object, ...]]:
    """Return its rows up to a version that failed."""
    return [
        (number, number != failed, hashlib.sha384(text(number).encode()).digest())
        for number in range(1, failed + 1)
    ]


def prisma_rows(failed: int) -> list[tuple[object, ...]]:
    """Return its rows up to a version that failed."""
    return [
        (f"{n}_t", hashlib.sha256(text(n).encode()).hexdigest(), n != failed or None, None)
        for n in range(1, failed + 1)
    ]


def flyway_rows(failed: int = 0, last: int = 0) -> list[tuple[object, ...]]:
    """Return its rows up to a version, the last one failed or none."""
    return [
        (n, str(n), "t", "SQL", signed(zlib.crc32(text(n).strip().encode())), n != failed)
        for n in range(1, (failed or last) + 1)
    ]


ROWS: dict[str, Callable[[int], list[tuple[object, ...]]]] = {
    "golang-migrate": lambda failed: [(failed, True)],
    "sqlx": sqlx_rows,
    "prisma": prisma_rows,
    "flyway": flyway_rows,
}


def covered(  # noqa: PLR0913 -- what there is to be said
    tool: str,
    folder: Path,
    rows: list[tuple[object, ...]],
    recorded: int = 0,
    *,
    vouched: bool = False,
    edited: tuple[int, ...] = (),
) -> list[int] | set[str]:
    """Return which of five files are taken over, or what is said against it."""
    for number in range(1, 6):
        file = folder / NAMES[tool].format(number)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text(number) + "-- a word\n" * (number in edited))
    layout, files = foreign.load(tool, folder)
    found = takeover.Found("public.x", layout.said(rows))
    known = {file.version for file in files[:recorded]}
    try:
        there = takeover.covered(layout, found, files, known, vouched=vouched)
    except HistoryConflict as refused:
        return {problem.message.partition(" (")[0] for problem in refused.problems}
    return [files.index(file) + 1 for file in there]


@pytest.mark.parametrize("tool", NAMES)
def test_version_that_a_tool_left_unfinished_is_never_taken_over(tool: str, tmp_path: Path) -> None:
    """26; recorded by name it is a person's word; vouched for right up to it, it is to run."""
    rows = ROWS[tool](4)
    name = "4_t" if tool == "prisma" else "4"
    refused = {f"{tool} left version {name} unfinished"}

    assert refused == covered(tool, tmp_path, rows)
    assert refused == covered(tool, tmp_path, rows, 3)
    assert refused == covered(tool, tmp_path, rows, 2, vouched=True)
    assert [1, 2, 3] == covered(tool, tmp_path, rows, 3, vouched=True)
    assert [1, 2, 3] == covered(tool, tmp_path, rows, 4)
    if tool != "golang-migrate":  # it keeps no checksums
        assert [1, 2, 3] == covered(tool, tmp_path, rows, 3, vouched=True, edited=(4,))


def test_who_vouches_for_one_edited_file_has_not_vouched_for_another(tmp_path: Path) -> None:
    """What is recorded is judged no more, all above it is."""
    rows, edited = flyway_rows(last=5), (2, 4)

    def judged(recorded: int, *, vouched: bool = True) -> list[int] | set[str]:
        return covered("flyway", tmp_path, rows, recorded, vouched=vouched, edited=edited)

    of = "V{}__t was edited after flyway applied it: its checksum there is another one"
    assert {of.format(2), of.format(4)} == judged(0, vouched=False)
    assert {of.format(4)} == judged(2) == judged(2, vouched=False)
    assert [1, 2, 3, 4, 5] == judged(4) == judged(4, vouched=False)
    assert {"flyway has applied version 6"} == covered(
        "flyway", tmp_path / "other", flyway_rows(last=6), 5
    )


def test_who_vouches_for_missing_files_means_those_below(tmp_path: Path) -> None:
    """The file of a newer version may come yet, and would run once more.

    Where nothing is left to run, nobody is kept from anything: it is taken over once it comes.
    """
    below = (9, "4.1", "t", "SQL", 1, True)

    there = covered("flyway", tmp_path, [*flyway_rows(last=5), below], 4, vouched=True)
    above = covered("flyway", tmp_path, flyway_rows(last=6), 4, vouched=True)
    settled = covered("flyway", tmp_path, flyway_rows(last=6), 5, vouched=True)

    every = [1, 2, 3, 4, 5]
    assert (every, {"flyway has applied version 6"}, every) == (there, above, settled)


ON: dict[str, Callable[[int], list[tuple[object, ...]]]] = {
    "golang-migrate": lambda last: [(last, False)],
    "sqlx": lambda last: [(n, True, b"") for n in range(1, last + 1)],
    "prisma": lambda last: [(f"{n}_t", "", True, None) for n in range(1, last + 1)],
    "flyway": lambda last: flyway_rows(last=last),
    "goose": lambda last: [(n, n, True) for n in range(last + 1)],
    "dbmate": lambda last: [(f"{n:03}",) for n in range(1, last + 1)],
    "supabase": lambda last: [(f"{n:03}",) for n in range(1, last + 1)],
    "graphile": lambda last: [(f"{n:06}.sql", "") for n in range(1, last + 1)],
}


@pytest.mark.parametrize("tool", ON)
@pytest.mark.parametrize("anew", [False, True], ids=["as it is", "written anew"])
def test_what_a_tool_applied_since_is_settled_once_all_of_it_is_recorded(
    tool: str, anew: object, tmp_path: Path
) -> None:
    """A file that is still to come is none of it; nor where the folder was written anew."""
    if anew or tool not in NAMES:
        names, rule, theirs = "{:03}_t.sql", None, foreign.layout(tool, tmp_path)
    else:
        names, theirs = NAMES[tool], foreign.layout(tool, tmp_path)
        rule = theirs
    for number in range(1, 5):
        file = tmp_path / names.format(number)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text(number))
    files = folder.Folder(foreign.load(tool, tmp_path)[1] if rule else reading.load(tmp_path), rule)
    names_of = [file.written for file in files]

    def left(last: int, recorded: int) -> list[str]:
        now = takeover.Found("public.x", theirs.said(ON[tool](last)))
        return remembered.unsettled(theirs, now, files, names_of[:recorded])

    untold = rule is None and theirs.labelled  # by versions that are text: it may be any file
    assert ([], names_of[3:]) == (left(4, 4), left(4, 3))
    assert (names_of[3:] if untold else []) == left(3, 3)
    assert ([] if untold else [theirs.version("5_t" if tool == "prisma" else "5")]) == left(5, 4)


def test_file_of_flyway_that_failed_when_it_ran_again_is_not_taken_over(tmp_path: Path) -> None:
    """A person vouched for the versions: that one is still to run."""
    (tmp_path / "V1__t.sql").write_text(text(1))
    (tmp_path / "R__view.sql").write_text("SELECT 1;")
    crc = zlib.crc32(b"SELECT 1;")
    layout, files = foreign.load("flyway", tmp_path)

    def taken(*, success: bool) -> list[str]:
        row = (9, None, "view", "SQL", signed(crc), success)
        found = takeover.Found("public.x", layout.said([row]))
        return [file.name for file in takeover.repeated(layout, found, files)]

    assert (["R__view"], []) == (taken(success=True), taken(success=False))


def ran(*numbers: int) -> list[tuple[object, ...]]:
    """Return the rows of Flyway's for versions that it ran."""
    return [row for row in flyway_rows(last=6) if row[0] in numbers]


def baselined(version: str) -> list[tuple[object, ...]]:
    """Return the row of Flyway's for a database that it found as it was."""
    return [(0, version, "<< Flyway Baseline >>", "BASELINE", None, True)]


MISSED = {f"flyway has applied version {number}" for number in range(1, 6)}
OLDER = (
    "B5__b is a baseline, for a database that flyway has not migrated yet, and what is applied "
    "here is older"
)
BASELINES: dict[str, tuple[str, list[tuple[object, ...]], list[str] | set[str]]] = {
    "nothing was run": ("5", [], []),
    "older versions": ("5", ran(1, 2, 3), {*sorted(MISSED)[:3], OLDER}),
    "its own version": ("5", ran(1, 2, 3, 4, 5), ["B5__b"]),
    "all but its own version": ("5_1", ran(1, 2, 3, 4, 5), MISSED | {OLDER.replace("5", "5_1")}),
    "an older baseline": ("5", baselined("4"), {OLDER}),
    "a newer baseline": ("5", baselined("5.2"), ["B5__b"]),
    "a newer version alone": ("5", [*baselined("0"), *ran(6)], ["B5__b", "V6__t"]),
}


@pytest.mark.parametrize("case", BASELINES)
def test_baseline_of_flyway_never_runs_on_what_flyway_has_migrated(
    case: str, tmp_path: Path
) -> None:
    """Flyway passes over it there, and misses the files of older versions."""
    version, rows, expected = BASELINES[case]
    (tmp_path / f"B{version}__b.sql").write_text(text(1))
    (tmp_path / "V6__t.sql").write_text(text(6))
    layout, files = foreign.load("flyway", tmp_path)
    found = takeover.Found("public.x", layout.said(rows))
    told: list[str] | set[str]

    try:
        told = [file.name for file in takeover.covered(layout, found, files)]
    except HistoryConflict as refused:
        told = {
            message.partition(" (")[0] for message in [each.message for each in refused.problems]
        }

    assert expected == told
