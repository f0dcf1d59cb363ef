"""Log lines: one object each, whatever they carry."""

import io
import json
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog

from preflight.base import logs, terminal

NASTY = 'a\nb\r\n\x1b[31mred\x1b[0m "quoted" \\ \0 é \u2028 \udcff'


class Terminal(io.StringIO):
    """A stream that people read."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def logged(stream: io.StringIO | None = None, **settings: str) -> io.StringIO:
    """Set the logs up on a stream."""
    stream = stream or io.StringIO()
    chosen: dict[str, Any] = {"choice": "json", "level": "info", "run_id": "r1", **settings}
    logs.set_up(stream, **chosen)
    return stream


@pytest.mark.fault("F148")
def test_event_is_one_json_object_a_line() -> None:
    """Line ends, colours and quotes in values stay inside their strings."""
    stream = logged()
    structlog.get_logger().warning("thing.done", name=NASTY, size_bytes=3, items=[NASTY])

    (line,) = stream.getvalue().splitlines()
    event = json.loads(line)
    first = ["timestamp", "level", "event", "run_id", "message"]
    assert [*first, "name", "size_bytes", "items"] == list(event)
    assert ("warning", "thing.done", "r1") == (event["level"], event["event"], event["run_id"])
    assert (NASTY, 3, [NASTY]) == (event["name"], event["size_bytes"], event["items"])
    assert event["timestamp"].endswith("Z")


def test_every_time_is_iso_8601() -> None:
    """Also one that an event holds, and in a list: with a T, as the timestamp."""
    out = logged()
    at = datetime(2026, 11, 29, 23, 54, 59, 500_000, tzinfo=UTC)
    structlog.get_logger().info("migration.listed", applied_at=at, others=[{"at": at}])

    event = json.loads(out.getvalue())
    said = "2026-11-29T23:54:59.500000+00:00"
    assert (said, [{"at": said}]) == (event["applied_at"], event["others"])


def test_console_shows_one_line_without_control_characters() -> None:
    """A value cannot colour the terminal or forge a second event."""
    stream = logged(choice="console")
    structlog.get_logger().info("thing.done", migration=NASTY, name=NASTY)

    assert 1 == len(stream.getvalue().splitlines())
    assert not [char for char in stream.getvalue() if char != "\n" and not char.isprintable()]


@pytest.mark.parametrize(
    "data",
    [
        {"items": [f"public.table_{number}" for number in range(10_000)], "count": 10_000},
        {"items": [{"locks": [{"table": "é" * 60}] * 500}] * 50, "items_untold": 7},
        {"error": {"message": "x" * 100_000, "problems": [{"message": "y" * 1000}] * 500}},
    ],
    ids=["many names", "lists in lists", "long texts"],
)
def test_no_line_is_longer_than_log_drivers_take(data: dict[str, Any]) -> None:
    """Docker and containerd split at 16 kB; a list that is cut says how much of it is missing."""
    stream = logged()
    structlog.get_logger().info("thing.done", **data)
    structlog.get_logger().info("thing.done", items=["a"])

    long, short = stream.getvalue().splitlines()
    event = json.loads(long)
    assert len(long.encode()) < 16_000
    assert data.keys() <= event.keys()
    assert ["a"] == json.loads(short)["items"]
    if "items" in data:
        all_of_it = len(data["items"]) + data.get("items_untold", 0)
        assert all_of_it == len(event["items"]) + event["items_untold"]


@pytest.mark.parametrize("problems", [0, None, "none", [1] * 300])
def test_what_others_call_problems_is_cut_as_all_else_is(problems: object) -> None:
    """An object that a wrapped command has written is nobody's error, and gets no key of ours."""
    stream = logged(choice="json")
    said = {"code": 1, "problems": problems, "text": "п" * 9000}
    structlog.get_logger().info("wrap.said", object=said, error=None)

    assert said.keys() == json.loads(stream.getvalue())["object"].keys()


def test_line_has_as_many_problems_as_fit_and_counts_the_others() -> None:
    """The console shows all of them."""
    problems = [{"message": f"{number:<300}", "hint": "y" * 100} for number in range(60)]
    told = []
    for choice in ("json", "console"):
        stream = logged(choice=choice)
        event = {"exit_code": 25, "duration_s": 1.0, "error": {"message": "x", "hint": "z"}}
        event["error"] |= {"problems": problems}  # type: ignore[operator]
        structlog.get_logger().error("run.finished", **event)
        told.append(stream.getvalue())
    error = json.loads(told[0])["error"]

    assert (35, 25) == (len(error["problems"]), error["problems_untold"])
    assert 60 == told[1].count("    - ")


@pytest.mark.parametrize(
    ("choice", "terminal", "expected"),
    [
        ("auto", True, False),
        ("auto", False, True),
        ("json", True, True),
        ("console", False, False),
    ],
)
def test_json_is_for_machines(choice: str, *, terminal: bool, expected: bool) -> None:
    """`auto` looks at the stream; a choice is a choice."""
    stream = logged(Terminal() if terminal else io.StringIO(), choice=choice)
    structlog.get_logger().info("thing.done")

    assert expected == stream.getvalue().startswith("{")


@pytest.mark.parametrize(
    ("stream", "no_color", "expected"),
    [(Terminal(), "", True), (Terminal(), "1", False), (io.StringIO(), "", False)],
    ids=["terminal", "NO_COLOR", "pipe"],
)
def test_colour_is_for_terminals(stream: io.StringIO, no_color: str, *, expected: bool) -> None:
    """Never into a pipe, and not with NO_COLOR."""
    logged(stream, choice="console", no_color=no_color)
    structlog.get_logger().error("thing.failed")

    assert expected == ("\x1b[" in stream.getvalue())


def test_level_filters_all_but_the_end() -> None:
    """`run.finished` is there at every level."""
    stream = logged(level="error")
    for name in ("thing.done", "run.finished"):
        structlog.get_logger().info(name)

    assert ["run.finished"] == [json.loads(x)["event"] for x in stream.getvalue().splitlines()]


@pytest.mark.parametrize(("choice", "told"), [("json", ["thing.listed"]), ("console", [])])
def test_result_is_told_at_every_level_where_programs_read(choice: str, told: list[str]) -> None:
    """People have a table of it."""
    stream = io.StringIO()
    logs.set_up(stream, choice=choice, level="error", run_id="r", results={"thing.listed"})
    for name in ("thing.listed", "thing.done"):
        structlog.get_logger().info(name)

    assert told == [json.loads(line)["event"] for line in stream.getvalue().splitlines()]


def test_observer_sees_what_the_level_hides() -> None:
    """What was done is counted also when it is not shown."""
    seen: list[str] = []
    logs.set_up(
        io.StringIO(),
        choice="json",
        level="error",
        run_id="r1",
        observe=lambda event: seen.append(event["event"]),
    )
    structlog.get_logger().debug("thing.done")

    assert ["thing.done"] == seen


def test_nothing_is_told_of_a_copy_but_how_long_it_takes() -> None:
    """A long statement of a rehearsal shows that it goes on, under a name of its own."""
    stream = io.StringIO()
    logs.set_up(stream, choice="json", level="debug", run_id="r")
    log = structlog.get_logger()
    with logs.muted():
        log.info("migration.applied", migration="001_a")
        log.warning("migration.progressed", migration="001_a", notice="a row's value")
        log.info("migration.progressed", migration="001_a", elapsed_s=10.0)
    log.info("migration.applied", migration="001_a")

    told = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    assert ["rehearsal.progressed", "migration.applied"] == told


@pytest.mark.parametrize(
    "data",
    [
        {f"key{n}": "x" * 300 for n in range(500)},
        {"rows": {f"public.table_{n}": n for n in range(5000)}},
        {"k" * 20_000: 1},
        {"error": {"code": "x.y", "problems": [{f"k{n}": "\0" * 300 for n in range(300)}]}},
    ],
    ids=["keys", "map", "a key", "nested"],
)
def test_whatever_an_event_holds_it_is_bounded(data: dict[str, Any]) -> None:
    """Also keys, of which nobody can keep the first: they are left out, and that is said."""
    stream = logged()
    structlog.get_logger().info("thing.done", exit_code=3, **data)

    event = json.loads(stream.getvalue())
    assert len(stream.getvalue().encode()) <= 16_000
    assert ("thing.done", "r1", 3) == (event["event"], event["run_id"], event["exit_code"])
    assert 0 < event["left_out_count"]


def test_json_has_a_sentence_for_viewers_that_show_one() -> None:
    """The event in words, and why."""
    stream = logged()
    structlog.get_logger().info("migration.applied", migration="001_a", version=1)
    structlog.get_logger().info("run.finished", error={"message": "no such table"})

    said = [json.loads(line)["message"] for line in stream.getvalue().splitlines()]
    assert ["migration applied 001_a", "run finished: no such table"] == said


def test_google_cloud_gets_its_severity() -> None:
    """The level under the name, and in the words, that its logging reads."""
    stream = logged(choice="gcp")
    structlog.get_logger().warning("thing.done")

    event = json.loads(stream.getvalue())
    assert "WARNING" == event["severity"]
    assert "level" not in event


def test_line_of_the_log_does_not_share_one_with_a_bar() -> None:
    """The bar goes before the line is written."""
    stream = logged(choice="console")
    cleared: list[str] = []
    terminal.bars.append(lambda: cleared.append(stream.getvalue()))
    try:
        structlog.get_logger().info("thing.done")
    finally:
        terminal.bars.clear()

    assert [""] == cleared
