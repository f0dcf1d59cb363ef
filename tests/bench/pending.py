"""500 small files on an empty database: the whole process, without backup and rehearsal."""

from collections.abc import Callable
from pathlib import Path

from tests import servers
from tests.bench import figures, nothing, peers, turns
from tests.bench.ground import Ground

FILES = 500
TABLE = "CREATE TABLE t{number} (id int PRIMARY KEY, name text)"
ROUNDS, QUICK_ROUNDS = 5, 1
SLOW = (peers.script, peers.yoyo, peers.alembic, peers.django, peers.node_pg_migrate)
SLOWEST = (peers.flyway, peers.sqitch)
FLOOR = "psql -f, one connection"


def measure(ground: Ground) -> list[figures.Row]:
    """Let those that are quick take turns; the slow ones take one turn, and none in a hurry."""
    group = f"{FILES} files"
    wanted = ground.wanted
    quick = [psql(ground, group), *ways(ground, group, peers.FAST)]
    rows = turns.take(quick, wanted.times(ROUNDS, QUICK_ROUNDS))
    if not wanted.quick:
        rows += turns.take(ways(ground, group, (*SLOW, *SLOWEST)), 1)
    return rows


def psql(ground: Ground, group: str) -> turns.Way:
    """Return the least: one connection, a transaction for each file, nothing recorded."""
    folder = ground.folder("psql")
    names = []
    for number in range(1, FILES + 1):
        names.append(folder / f"{number:05}.sql")
        names[-1].write_text(f"BEGIN;\n{TABLE.format(number=number)};\nCOMMIT;\n")
    command = ["psql", "-Xq", "-v", "ON_ERROR_STOP=1"]
    for name in names:
        command += ["-f", str(name)]
    environment = ground.bare | ground.database("psql").env()
    return turns.Way(group, FLOOR, command, environment, _anew(ground, "psql"))


def ways(
    ground: Ground, group: str, wanted: tuple[Callable[[], peers.Peer], ...]
) -> list[turns.Way]:
    """Return how each applies them all, on a database made anew before."""
    found = []
    for peer in ground.peers(wanted):
        folder = ground.folder(peer.plain)
        _write(peer, folder)
        way = nothing.way(ground, peer, group, ground.database(peer.plain))
        found.append(
            turns.Way(
                group, peer.name, way.command, way.environment, _anew(ground, peer.plain), folder
            )
        )
    return found


def _write(peer: peers.Peer, folder: Path) -> None:
    for number in range(1, FILES + 1):
        peer.write(folder, number, TABLE.format(number=number))


def _anew(ground: Ground, name: str) -> Callable[[], servers.Database]:
    return lambda: ground.database(name)
