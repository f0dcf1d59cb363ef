"""200 starts at once with nothing to do, against 40 connections."""

import subprocess
import sys
import time

from tests.bench import figures, nothing, peers, turns
from tests.bench.ground import Ground

STARTS = 200
ROUNDS, QUICK_ROUNDS = 3, 1
FILES = 100


def measure(ground: Ground) -> list[figures.Row]:
    """Let crowds take turns: bare interpreters, ours, and others'."""
    group = f"{STARTS} at once"
    there = ground.peers((peers.ours, peers.dbmate, peers.golang_migrate))
    ways = [
        each
        for each in nothing.floors(ground, group)
        if each.name.startswith("python") or each.name.startswith("psql")
    ]
    ways += [nothing.way(ground, peer, group, nothing.applied(ground, peer)) for peer in there]
    site = [sys.executable, "-I", "-c", ""]
    ways.insert(1, turns.Way(group, "python -I -c ''", site, ground.bare))
    rows = [figures.Row(group, way.name, more={"failed": 0}) for way in ways]
    rounds = ground.wanted.times(ROUNDS, QUICK_ROUNDS)
    for number in range(rounds):
        for way, row in zip(ways, rows, strict=True):
            seconds, failed = at_once(way)
            row.seconds.append(seconds)
            row.cpu.append(0.0)
            row.more["failed"] += failed
        print(f"  round {number + 1} of {rounds}", flush=True)
    return rows


def at_once(way: turns.Way) -> tuple[float, int]:
    """Start them all; return when the last was through, and how many failed."""
    began = time.perf_counter()
    crowd = [
        subprocess.Popen(
            list(way.command),
            env=dict(way.environment),
            cwd=way.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(STARTS)
    ]
    try:
        codes = [each.wait() for each in crowd]
    except BaseException:
        for each in crowd:
            each.kill()
        raise
    return time.perf_counter() - began, sum(code != 0 for code in codes)
