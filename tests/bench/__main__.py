"""`make bench`: measure, keep the figures in docs/benchmarks.json, draw docs/benchmarks.md.

Without names it measures every section: about a quarter of an hour on a quiet machine, QUICK=1
three minutes. One alone: `make bench ARGS=nothing`. What is not measured anew stays as it was.
"""

import argparse
import datetime as dt
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from tests import servers
from tests.bench import (
    crowd,
    figures,
    gate,
    ground,
    growth,
    image,
    nothing,
    page,
    pending,
    reaction,
)

SECTIONS: dict[str, Callable[[ground.Ground], list[figures.Row]]] = {
    "nothing": nothing.measure,
    "crowd": crowd.measure,
    "pending": pending.measure,
    "reaction": reaction.measure,
    "gate": gate.measure,
    "growth": growth.measure,
    "image": image.measure,
}
RESULTS = servers.REPOSITORY / "docs/benchmarks.json"


def main(arguments: Sequence[str]) -> int:
    """Measure what is asked for; return 1 when a section could not be."""
    asked = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _ended)
    failed = []
    names = [] if asked.page else asked.section or list(SECTIONS)
    wanted = ground.Wanted(asked.quick, asked.rounds, asked.gb, asked.large)
    for name in names:
        print(f"{name}:", flush=True)
        try:
            section = measured(name, wanted)
        except Exception:  # noqa: BLE001 -- the others are still to be measured
            failed.append(name)
            traceback.print_exc()
            continue
        keep({**known(), name: section})
        print(page.table(name, section), flush=True)
    if asked.page:
        page.write(known())
    if failed:
        print(f"Not measured, and left as they were: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def known() -> dict[str, figures.Section]:
    """Return what was measured before."""
    return figures.loaded(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}


def keep(sections: Mapping[str, figures.Section]) -> None:
    """Write the figures, in the order of the page, and the page as they give it."""
    ordered = {name: sections[name] for name in SECTIONS if name in sections}
    RESULTS.write_text(figures.dumped(ordered), encoding="utf-8")
    page.write(known())


def measured(name: str, wanted: ground.Wanted) -> figures.Section:
    """Measure one section, on a server of its own."""
    began, before = time.monotonic(), os.getloadavg()[0]
    settings: dict[str, str | int] = {"max_connections": 40} if name == "crowd" else {}
    with ground.made(wanted, **settings) as under:
        rows = SECTIONS[name](under)
    return figures.Section(
        date=dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        machine=machine(),
        load=[round(before, 1), round(os.getloadavg()[0], 1)],
        took_s=time.monotonic() - began,
        quick=wanted.quick,
        versions=under.versions,
        lacking=under.lacking,
        rows=rows,
    )


def machine() -> str:
    """Return what this machine is."""
    model = platform.machine()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next(
        (each.partition(": ")[2] for each in lines if each.startswith("model name")), model
    )
    return f"{os.cpu_count()} cores ({model}), {platform.system()} {platform.release()}"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    environment = os.environ.get
    found = argparse.ArgumentParser(
        prog="make bench ARGS='…', or python -m tests.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("section", nargs="*", type=_section, help=f"of {', '.join(SECTIONS)}")
    found.add_argument(
        "--quick", action="store_true", default=bool(environment("QUICK")), help="QUICK=1: less"
    )
    found.add_argument(
        "--rounds", type=int, default=int(environment("ROUNDS") or 0), help="ROUNDS: how many"
    )
    found.add_argument(
        "--gb",
        type=float,
        default=float(environment("GB") or 0),
        help="GB: how large the gate's database is (1; with QUICK 0.1)",
    )
    found.add_argument(
        "--large",
        action="store_true",
        default=bool(environment("LARGE")),
        help="LARGE=1: growth up to 10,000 tables, 100,000 large objects; takes long",
    )
    found.add_argument("--page", action="store_true", help="draw the page from what is known")
    return found


def _section(name: str) -> str:
    if name not in SECTIONS:
        raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(SECTIONS)}")
    return name


def _ended(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
