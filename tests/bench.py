"""`make bench`: what a start with nothing to do costs, beside other tools in the same minutes.

The tools take turns, so that a busy moment meets all of them; what counts is the ratio. Writes
docs/benchmarks.md and its chart. `QUICK=1` takes fewer rounds.
"""

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from tests import program, servers

CACHE = servers.REPOSITORY / ".cache/bench"
PAGE = servers.REPOSITORY / "docs/benchmarks.md"
CHART = servers.REPOSITORY / "docs/nothing-pending.svg"
FILES = 100
ROUNDS, QUICK_ROUNDS = 25, 7
FLOOR = "psql -c 'SELECT 1'"
MIGRATE = "github.com/golang-migrate/migrate/v4/cmd/migrate@latest"
ROW, LEFT, WIDE = 26, 210, 420  # of the chart, in pixels


@dataclass
class Contestant:
    """What takes part: how it makes its database, and what is measured."""

    name: str
    command: list[str]
    environment: Mapping[str, str]
    first: list[str] | None = None  # applies the files, before
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def run(self) -> None:
        """Run it once and keep what it took."""
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        self.do(self.command)
        self.seconds.append(time.perf_counter() - began)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    def do(self, command: list[str]) -> None:
        """Run a command of it; raises what it said when it fails."""
        done = subprocess.run(
            command, env=dict(self.environment), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(
                f"{self.name}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
            )


def golang_migrate() -> str | None:
    """Return the path of golang-migrate, installed when there is a Go to do it with."""
    if not (CACHE / "migrate").exists() and shutil.which("go"):
        print("Installing golang-migrate ...", flush=True)
        subprocess.run(
            ["go", "install", "-tags", "postgres", MIGRATE],  # noqa: S607 -- whichever is on PATH
            env=os.environ | {"GOBIN": str(CACHE), "CGO_ENABLED": "0"},
            check=True,
        )
    return str(CACHE / "migrate") if (CACHE / "migrate").exists() else None


def yoyo() -> str:
    """Return the path of yoyo, installed into a virtual environment of its own."""
    home = CACHE / "yoyo"
    if not (home / "bin/yoyo").exists():
        print("Installing yoyo ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        wanted = ["yoyo-migrations", "psycopg[binary]", "setuptools<81"]
        subprocess.run(
            [home / "bin/python", "-m", "pip", "install", "--quiet", *wanted], check=True
        )
    return str(home / "bin/yoyo")


@contextmanager
def contestants() -> Iterator[list[Contestant]]:
    """Give those that this machine can have, each with a database that needs nothing."""
    CACHE.mkdir(parents=True, exist_ok=True)
    server = servers.start(17)
    with tempfile.TemporaryDirectory(prefix="pg-preflight-bench-") as scratch:
        found = list(_contestants(server, Path(scratch)))
        for each in found:
            if each.first:
                each.do(each.first)
        yield found
    server.remove()


def _contestants(server: servers.Server, scratch: Path) -> Iterator[Contestant]:
    plain, updown = scratch / "plain", scratch / "updown"
    plain.mkdir()
    updown.mkdir()
    for number in range(1, FILES + 1):
        text = f"CREATE TABLE t{number} (id int);\n"
        (plain / f"{number:03}_t.sql").write_text(text)
        (updown / f"{number:03}_t.up.sql").write_text(text)
    bare = {"PATH": f"{servers.client_bin(17)}:{os.environ['PATH']}", "HOME": str(scratch)}

    def environment(name: str) -> dict[str, str]:
        with server.connect() as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return bare | server.env(name)

    def url(said: Mapping[str, str], scheme: str = "postgres") -> str:
        return (
            f"{scheme}://{said['PGUSER']}:{quote(said['PGPASSWORD'], safe='')}@{said['PGHOST']}:"
            f"{said['PGPORT']}/{said['PGDATABASE']}"
        )

    yield Contestant("python -I -S -c ''", [sys.executable, "-I", "-S", "-c", ""], bare)
    yield Contestant(FLOOR, ["psql", "-Xqc", "SELECT 1"], environment("floor"))
    if migrate := golang_migrate():
        said = environment("golang_migrate")
        target = ["-database", f"{url(said)}?sslmode=disable"]
        command = [migrate, "-path", str(updown), *target, "up"]
        yield Contestant("golang-migrate", command, said, command)
    said = environment("yoyo")
    command = [yoyo(), "apply", "--batch", "-d", url(said, "postgresql+psycopg"), str(plain)]
    yield Contestant("yoyo", command, said, command)
    said = environment("pg_preflight") | {
        "PREFLIGHT_MIGRATIONS_DIR": str(plain),
        "PREFLIGHT_BACKUP": "off",
    }
    command = [sys.executable, str(program.ENTRYPOINT)]
    yield Contestant("pg-preflight", command, said, command)


def table(found: list[Contestant]) -> str:
    """Return the figures as a Markdown table, in milliseconds."""
    floor = next(each for each in found if each.name == FLOOR)
    lines = [
        "| | median, times psql | median ms | minimum ms | processor ms |",
        "|---|---|---|---|---|",
    ]
    for each in sorted(found, key=lambda each: statistics.median(each.seconds)):
        median = statistics.median(each.seconds)
        ratio = median / statistics.median(floor.seconds)
        figures = [1000 * median, 1000 * min(each.seconds), 1000 * statistics.median(each.cpu)]
        shown = " | ".join(f"{figure:.0f}" for figure in figures)
        lines.append(f"| `{each.name}` | {ratio:.1f} | {shown} |")
    return "\n".join(lines)


def chart(found: list[Contestant]) -> str:
    """Return the processor time of each as bars, in SVG."""
    ordered = sorted(found, key=lambda each: statistics.median(each.cpu))
    most = statistics.median(ordered[-1].cpu)
    height = ROW * len(ordered) + 12
    size = f'width="{LEFT + WIDE + 90}" height="{height}"'
    font = 'font-family="sans-serif" font-size="13"'
    drawn = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font}>']
    for number, each in enumerate(ordered):
        cpu, top = statistics.median(each.cpu), ROW * number + 8
        fill = "#336791" if each.name == "pg-preflight" else "#b8c4ce"
        wide = max(2, round(WIDE * cpu / most))
        drawn += [
            f'<text x="{LEFT - 8}" y="{top + 14}" text-anchor="end" fill="#777">{each.name}</text>',
            f'<rect x="{LEFT}" y="{top}" width="{wide}" height="{ROW - 8}" fill="{fill}"/>',
            f'<text x="{LEFT + wide + 6}" y="{top + 14}" fill="#777">{1000 * cpu:.0f} ms</text>',
        ]
    return "\n".join([*drawn, "</svg>\n"])


def page(found: list[Contestant], rounds: int) -> str:
    """Return the whole page."""
    machine = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.0f}"
    return f"""# Benchmarks

Written by `make bench` (`QUICK=1`: fewer rounds).

## A start with nothing to do

{FILES} files, all of them applied; the whole process, on PostgreSQL 17 with SCRAM over TCP.
{rounds} rounds in which the tools took turns; {machine}.
On a busy machine times say little: ratios and processor time hold.

{table(found)}

![processor time](nothing-pending.svg)

Why it is what it is: [decision 70](decisions/0070-the-first-question.md).
"""


def main() -> None:
    """Measure, and write the page."""
    rounds = QUICK_ROUNDS if os.environ.get("QUICK") else ROUNDS
    with contestants() as found:
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", flush=True)
            for each in found:
                each.run()
        CHART.write_text(chart(found), encoding="utf-8")
        PAGE.write_text(page(found, rounds), encoding="utf-8")
        print(table(found))


if __name__ == "__main__":
    main()
