"""Overtaken: a run is in the middle of a file, its lock is another's, and that one goes on.

A file may give the lock away where nobody reads it, or somebody ends the run's session. Another
run, of the same release, an older or a newer one, comes meanwhile. Both end in a way of theirs, and
whatever each file did is done once, and is what the history says.
`make overtaken SEED=7 MINUTES=10` goes on for as long as told; `SEED=7/123` does one again.
"""

import functools
import random
import sys
from pathlib import Path

from tests import faults, program, servers
from tests.faults import histories

PATIENCE_S = 300.0  # no promise: only so that nothing hangs for ever
PATIENT = "-- preflight: lock-timeout 600s\n"
OUTSIDE = "-- preflight: no-transaction\n"
GATE = 4711
# Who comes to the gate while it is shut gives the lock away, if that is how it is, and waits.
MADE = f"""
CREATE TABLE ran (version int);
CREATE TABLE did (version int, what text);
CREATE TABLE how (gives bool);
INSERT INTO how VALUES (false);
CREATE FUNCTION pause() RETURNS void LANGUAGE plpgsql AS $$BEGIN
 IF EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = {GATE}
   AND mode = 'ExclusiveLock' AND granted) THEN
  IF (SELECT gives FROM public.how) THEN
   EXECUTE pg_catalog.reverse('{histories.LETS_GO[::-1]}');
  END IF;
  PERFORM pg_catalog.pg_advisory_xact_lock_shared({GATE});
 END IF;
END$$;
"""
WAITS = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
    " AND application_name LIKE 'pg-preflight%%' AND wait_event_type = 'Lock'"
    " AND wait_event = 'advisory'"
)
DONE = "SELECT version::int FROM preflight.migrations WHERE state = 'done' ORDER BY 1"
# of each file as often as it is said
AGREES = """SELECT version, what, n FROM (
 SELECT version, what, count(*) AS n FROM did GROUP BY 1, 2
 EXCEPT ALL SELECT version, CASE event WHEN 'rolled_back' THEN 'back' ELSE 'up' END, count(*)
 FROM preflight.journal WHERE event IN ('applied', 'forced', 'rolled_back') GROUP BY 1, 2
) AS differs"""
HOW = ("gives", "is ended")
CODES = {0, 11, 13}
OTHERS = ("up", "rollback")  # to force or to adopt is somebody's word against the history's


class Release:
    """A folder of files, up to a version."""

    def __init__(self, home: Path, name: str) -> None:
        """Have no file yet."""
        self.path = home / name
        self.path.mkdir()

    def write(self, version: int, outside: str) -> None:
        """Write a file that pauses, and one that takes it back, and pauses."""
        stem = f"{version:03}_pauses"

        def text(what: str, marks: str) -> str:
            last = f"INSERT INTO did VALUES ({version}, '{what}')"
            return f"{outside}{PATIENT}{marks};\nSELECT pause();\n{last};\n"

        there = f"INSERT INTO ran VALUES ({version})"
        (self.path / f"{stem}.sql").write_text(text("up", there))
        gone = f"DELETE FROM ran WHERE version = {version}"
        (self.path / f"{stem}_rollback.sql").write_text(text("back", gone))


class Overtaken:
    """A database, two releases of its app, and what is done with them."""

    def __init__(self, database: servers.Database, home: Path, choice: random.Random) -> None:
        """Apply two versions; both releases have them."""
        self.database, self.home, self.choice = database, home, choice
        self.told: list[str] = []
        self.one, self.two = Release(home, "one"), Release(home, "two")
        self.newest = 0
        database.script(MADE)
        for _ in range(2):
            self.more(self.one, self.two)
        assert 0 == self.start(self.one, "up").wait(PATIENCE_S).code

    def __str__(self) -> str:
        """Tell what was done, in order."""
        return "; ".join(self.told)

    def more(self, *releases: Release, outside: str = "") -> None:
        """Have another version in these."""
        self.newest += 1
        for each in releases:
            each.write(self.newest, outside)

    def start(self, release: Release, *command: str, **more: str) -> program.Process:
        """Start a command of a release."""
        environment = {
            **self.database.env(),
            **histories.QUICKLY,
            "PATH": program.path(),
            "PREFLIGHT_FIRST_CONTACT": "pending",
            "PREFLIGHT_LOCK_RETRY_S": "600",
            "PREFLIGHT_LOCK_TIMEOUT_MS": "100",
            "PREFLIGHT_MIGRATIONS_DIR": str(release.path),
            "PREFLIGHT_TERMINATION_LOG": str(self.home / "none"),
        }
        return program.Program(environment | more, self.home).start(*command)

    def done(self) -> list[int]:
        """Return what the history says is done."""
        return self.database.query(DONE)

    def meets(self, how: str, command: str, *, other: str, release: str, outside: str) -> None:
        """Have a run pause in the middle of a file, and another one come and go on."""
        self.more(self.one, self.two, outside=outside)
        if command == "rollback":
            assert 0 == self.start(self.one, "up").wait(PATIENCE_S).code, str(self)
        newer = {"one": [self.one], "two": [self.two], "neither": []}[release]
        if newer:
            self.more(*newer)
        self.told.append(f"{command} {outside.strip()} {how}; {release} has more; {other}")
        self.database.query("UPDATE how SET gives = %s RETURNING 1", how == "gives")
        with self.database.server.connect(self.database.name) as gate:
            gate.execute(f"SELECT pg_advisory_lock({GATE})".encode())
            first = self.start(self.one, command)
            at_gate = lambda: self.database.query(WAITS) or not first.running  # noqa: E731
            faults.until(at_gate, "it pauses", PATIENCE_S)
            second = self.start(self.two, other)
            met = lambda: not second.running or self.stands(second)  # noqa: E731
            faults.until(met, "the other one has come so far as it can", PATIENCE_S)
            if how == "is ended":
                gate.execute(f"SELECT pg_terminate_backend(pid) FROM ({WAITS}) w".encode())
        results = [each.wait(PATIENCE_S) for each in (first, second)]
        self.told[-1] += f" -> {[each.code for each in results]}"
        said = f"{self}\n{results[0]}\n{results[1]}"
        first_code, second_code = (each.code for each in results)
        assert first_code in CODES, said
        # who reads that a file is being taken back part-way cannot know that somebody is at it
        part_way = {32} if (command, other) == ("rollback", "up") and outside else set()
        assert second_code in CODES | part_way, said
        self.agrees(said)
        self.settles(said)

    def stands(self, second: program.Process) -> bool:
        """Tell whether the second run waits for the first one, or pauses, too."""
        busy = any(each["event"] == "lock.busy" for each in second.events)
        return busy or len(self.database.query(WAITS)) > 1

    def agrees(self, said: str) -> None:
        """Raise AssertionError unless what files did is done once, and what the history says."""
        assert [] == self.database.query(AGREES), f"not as the journal says: {said}"
        ran = self.database.query("SELECT version FROM ran ORDER BY 1")
        assert self.done() == ran, f"{ran} ran, {self.done()} is recorded: {said}"

    def settles(self, said: str) -> None:
        """Have the one that has all files apply what is left."""
        for each in (self.one, self.two):
            for path in each.path.iterdir():
                for there in (self.one, self.two):
                    (there.path / path.name).write_bytes(path.read_bytes())
        # who was overtaken may have applied what comes above a version that is taken back
        more = {"PREFLIGHT_OUT_OF_ORDER": "allow"}
        settled = self.start(self.two, "up", **more).wait(PATIENCE_S)
        assert 0 == settled.code, f"{said}\n{settled}"
        self.agrees(f"{said}\n{settled}")
        assert list(range(1, self.newest + 1)) == self.done(), f"{said}\n{settled}"


def walk(database: servers.Database, home: Path, seed: str, rounds: int = 1) -> str:
    """Have runs overtaken there and back, in each way; return what was done.

    Raises AssertionError where something was done twice, or not as it was said.
    """
    choice = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    overtaken = Overtaken(database, home, choice)
    for command in ("up", "rollback"):
        for how in HOW:
            some = [
                (other, choice.choice(["", OUTSIDE])) for other in OTHERS for _ in range(rounds)
            ]
            for other, outside in [(command, ""), *choice.sample(some, rounds)]:
                release = choice.choice(["neither", "one", "two"])
                overtaken.meets(how, command, other=other, release=release, outside=outside)
    return str(overtaken)


def main() -> int:
    """Walk until the time is over; 1 when something did not hold."""
    return histories.walks("overtaken", __doc__, functools.partial(walk, rounds=4))


if __name__ == "__main__":
    sys.exit(main())
