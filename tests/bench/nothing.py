"""A start with nothing to do: the whole process, beside other tools and the least there is."""

import sys

from tests import servers
from tests.bench import figures, peers, turns
from tests.bench.ground import Ground

TABLE = "CREATE TABLE t{number} (id int)"
ROUNDS, QUICK_ROUNDS = 15, 3
LARGER = (1_000, 10_000)
FIRST = 100
UP_TO = {"golang-migrate": 1_000}  # at 10,000 it takes half a minute


def measure(ground: Ground) -> list[figures.Row]:
    """Measure with 100 files beside everybody, with more beside those that can be near."""
    there = ground.peers(peers.ALL)
    databases = {peer.name: applied(ground, peer) for peer in there}
    rounds = ground.wanted.times(ROUNDS, QUICK_ROUNDS)
    group = f"{FIRST} files"
    ways = [
        *floors(ground, group),
        *(way(ground, peer, group, databases[peer.name]) for peer in there),
    ]
    rows = turns.take(ways, rounds)
    near = [peer for peer in there if peer.recorded or peer.name == "pg-preflight"]
    near = [peer for peer in near if "pg_dump" not in peer.name]
    known = FIRST
    for count in LARGER:
        group = f"{count:,} files"
        near = [peer for peer in near if count <= UP_TO.get(peer.name, count)]
        for peer in near:
            _more(ground, peer, databases[peer.name], known + 1, count)
        known = count
        print(f"  {group}", flush=True)
        rows += turns.take(
            [way(ground, peer, group, databases[peer.name]) for peer in near], max(3, rounds // 2)
        )
    return rows


def floors(ground: Ground, group: str) -> list[turns.Way]:
    """Return the least there is: an interpreter, and a question asked without one."""
    environment = ground.bare | ground.database("floor").env()
    found = [
        turns.Way(group, "python -I -S -c ''", [sys.executable, "-I", "-S", "-c", ""], ground.bare),
        turns.Way(group, "psql -c 'SELECT 1'", ["psql", "-Xqc", "SELECT 1"], environment),
    ]
    if floor := ground.libpq():
        found.insert(0, turns.Way(group, "libpq in C", [str(floor)], environment))
    return found


def way(ground: Ground, peer: peers.Peer, group: str, database: servers.Database) -> turns.Way:
    """Return how a tool finds that there is nothing to do."""
    folder = ground.scratch / peer.plain / "files"
    return turns.Way(
        group,
        peer.name,
        [str(word) for word in peer.command(folder, database)],
        ground.bare | database.env() | dict(peer.environment(folder, database)),
        folder=folder,
    )


def applied(ground: Ground, peer: peers.Peer) -> servers.Database:
    """Return a database on which a tool has applied its first files."""
    database, folder = ground.database(peer.plain), ground.folder(peer.plain)
    for number in range(1, FIRST + 1):
        peer.write(folder, number, TABLE.format(number=number))
    first = way(ground, peer, "", database)
    turns.succeed(first.command, first.environment, folder)
    return database


def _more(
    ground: Ground, peer: peers.Peer, database: servers.Database, first: int, last: int
) -> None:
    """Give a tool more files, recorded as applied."""
    folder = ground.scratch / peer.plain / "files"
    for number in range(first, last + 1):
        peer.write(folder, number, "SELECT 1")
    if peer.recorded is None:  # ours: a history has hashes
        adopt = way(ground, peer, "", database)
        turns.succeed([*adopt.command, "adopt", "--through", last], adopt.environment, folder)
    elif peer.recorded.startswith("UPDATE"):
        database.script(peer.recorded.replace("= n", f"= {last}"))
    else:
        database.script(f"{peer.recorded} FROM generate_series({first}, {last}) n")
