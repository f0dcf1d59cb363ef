"""A server becomes usable while somebody waits: how soon he is there, how often he knocked."""

import random
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests import faults, servers
from tests.bench import figures, nothing, peers
from tests.bench.ground import Ground

ROUNDS, QUICK_ROUNDS = 15, 4
KNOCKS = 3  # have to be heard before the wait begins: who is still loading does not wait
LEAST_S, MOST_S = 0.1, 1.2  # how long it is not usable after that
UNHEARD_S = 1.5  # how long before, where nobody hears them knock
GIVEN_UP_S = 30
STARTING = faults.refusal(b"57P03", b"the database system is starting up")
REFUSED, ANSWERED = "nobody listens", "the server answers that it is starting up"
ISREADY = "until pg_isready -q; do sleep {pause}; done"


class Door(faults.Fault):
    """Lets nobody in until it is open, and keeps when somebody knocked."""

    def __init__(self) -> None:
        """Begin closed."""
        self.opened = threading.Event()
        self.let_in = threading.Event()
        self.waited_for = threading.Event()
        self.knocks: list[float] = []
        self.entered = 0.0

    def startup(self, message: bytes) -> bytes | None:  # noqa: ARG002 -- whoever it is
        """Say that the server is starting, or let the caller through."""
        now = time.perf_counter()
        if not self.opened.is_set():
            self.knocks.append(now)
            if len(self.knocks) >= KNOCKS:
                self.waited_for.set()
            return STARTING
        if not self.let_in.is_set():
            self.entered = now
            self.let_in.set()
        return None


@dataclass(frozen=True)
class Waiter:
    """Who waits: a command that is led by libpq's variables, or by DATABASE_URL."""

    name: str
    command: Sequence[str]
    environment: Callable[[int], dict[str, str]]  # of the port


@dataclass
class Seen:
    """What one waiter did in all rounds."""

    seconds: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    failed: int = 0


def measure(ground: Ground) -> list[figures.Row]:
    """Let them all wait in the same seconds, each at a door of its own."""
    waiting = waiters(ground)
    rounds = ground.wanted.times(ROUNDS, QUICK_ROUNDS)
    chosen = random.Random(1)  # noqa: S311 -- the same waits every time
    rows = []
    for group in (ANSWERED, REFUSED):
        seen = [Seen() for _ in waiting]
        for number in range(rounds):
            delay = chosen.uniform(LEAST_S, MOST_S)
            threads = [
                threading.Thread(target=once, args=(ground, group, who, delay, kept))
                for who, kept in zip(waiting, seen, strict=True)
            ]
            for each in threads:
                each.start()
            for each in threads:
                each.join()
            print(f"  round {number + 1} of {rounds}: {group}", flush=True)
        for who, kept in zip(waiting, seen, strict=True):
            more: dict[str, float] = {"failed": kept.failed}
            if kept.rates:
                more["attempts_a_second"] = max(kept.rates)
            rows.append(figures.Row(group, who.name, kept.seconds, more=more))
    return rows


def waiters(ground: Ground) -> list[Waiter]:
    """Return who waits: ours, dbmate as it comes, and a loop of pg_isready."""
    found = []
    for peer in ground.peers((peers.ours, peers.dbmate)):
        database = nothing.applied(ground, peer)
        folder = ground.scratch / peer.plain / "files"
        said = ground.bare | database.env() | dict(peer.environment(folder, database))
        command = [str(word) for word in peer.command(folder, database)]
        if peer.name == "dbmate":
            command = [*command[: command.index("--url")], "wait"]
        found.append(Waiter(peer.name, command, _led(said, database)))
    database = ground.database("isready")
    for pause in ("1", "0.1"):
        script = ["sh", "-c", ISREADY.format(pause=pause)]
        found.append(
            Waiter(
                f"pg_isready, sleep {pause}", script, _led(ground.bare | database.env(), database)
            )
        )
    return found


def _led(said: dict[str, str], database: servers.Database) -> Callable[[int], dict[str, str]]:
    url = peers.url(database)

    def led(port: int) -> dict[str, str]:
        there = url.replace(f":{database.server.port}/", f":{port}/")
        plain = {"PGPORT": str(port), "PGSSLMODE": "disable"}
        return {**said, **plain} | ({} if "PREFLIGHT_BACKUP" in said else {"DATABASE_URL": there})

    return led


def once(ground: Ground, group: str, who: Waiter, delay: float, kept: Seen) -> None:
    """Let one wait, open its door, and keep how soon it came."""
    door = Door()
    refused = group == REFUSED
    if refused:
        door.opened.set()
    proxy = faults.Proxy(ground.server, door, listens=not refused)
    log = Path(ground.scratch / f"{who.name.replace(' ', '-')}.log")
    with log.open("w") as output:
        child = subprocess.Popen(
            list(who.command),
            env=who.environment(proxy.port),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            door.waited_for.wait(UNHEARD_S if refused else GIVEN_UP_S)
            time.sleep(delay)  # how long the server is not there is what is chosen
            opened = time.perf_counter()
            proxy.listen() if refused else door.opened.set()
            if door.let_in.wait(GIVEN_UP_S) and child.wait(GIVEN_UP_S) == 0:
                kept.seconds.append(door.entered - opened)
                if len(door.knocks) > 1:
                    kept.rates.append((len(door.knocks) - 1) / (door.knocks[-1] - door.knocks[0]))
            else:
                print(f"  {who.name} did not come: {log.read_text()[-300:]}", flush=True)
                kept.failed += 1
        finally:
            child.kill()
            child.wait()
            proxy.close()
