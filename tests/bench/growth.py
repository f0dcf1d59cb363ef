"""Growth: one thing at a time becomes more, and nothing may cost more than the work itself."""

from dataclasses import dataclass

from tests.bench import figures, gate
from tests.bench.ground import Ground

TABLES = """
DO $$ BEGIN FOR n IN 1..{count} LOOP
 EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY, name text)', n);
 EXECUTE format('INSERT INTO t%s SELECT g, md5(g::text) FROM generate_series(1, 10) g', n);
END LOOP; END $$
"""
OBJECTS = """
SELECT count(lo_from_bytea(0, convert_to(md5(n::text), 'UTF8')))
FROM generate_series(1, {count}) n
"""
PARTITIONS = """
CREATE TABLE whole (id int, name text) PARTITION BY RANGE (id);
DO $$ BEGIN FOR n IN 1..{count} LOOP
 EXECUTE format('CREATE TABLE p%s PARTITION OF whole FOR VALUES FROM (%s) TO (%s)', n, n, n + 1);
END LOOP; END $$;
INSERT INTO whole SELECT n, md5(n::text) FROM generate_series(1, {count}) n
"""
SCHEMAS = """
DO $$ BEGIN FOR n IN 1..{count} LOOP
 EXECUTE format('CREATE SCHEMA s%s', n);
 FOR m IN 1..10 LOOP
  EXECUTE format('CREATE TABLE s%s.t%s (id int PRIMARY KEY, name text)', n, m);
 END LOOP;
END LOOP; END $$
"""
ONE = (
    "CREATE TABLE filled (id int); INSERT INTO filled VALUES (1);"  # an empty one is not rehearsed
)


@dataclass(frozen=True)
class Kind:
    """What becomes more: how it is made, and how many there are."""

    name: str
    script: str
    quick: tuple[int, ...]
    usual: tuple[int, ...]
    large: tuple[int, ...]

    def counts(self, ground: Ground) -> tuple[int, ...]:
        """Return how many there are to be this time."""
        if ground.wanted.large:
            return self.large
        return self.quick if ground.wanted.quick else self.usual


KINDS = (
    Kind("tables", TABLES, (10, 500), (10, 1_000), (10, 1_000, 10_000)),
    Kind("large objects", OBJECTS, (1_000,), (1, 10_000), (1, 1_000, 100_000)),
    Kind("partitions", PARTITIONS, (500,), (10, 1_000), (10, 1_000, 10_000)),
    Kind("schemas of 10 tables", SCHEMAS, (20,), (1, 100), (1, 10, 100)),
)
MB, QUICK_MB, LARGE_MB = (10, 100), (20,), (100, 1_000, 10_000)


def measure(ground: Ground) -> list[figures.Row]:
    """Run the gate beside the same by hand, at each of the sizes."""
    ground.server.configure(max_locks_per_transaction=512)
    ground.server.restart()
    rows = []
    for kind in KINDS:
        for count in kind.counts(ground):
            rows += _at(ground, f"{count:,} {kind.name}", kind.script.format(count=count))
    sizes = LARGE_MB if ground.wanted.large else QUICK_MB if ground.wanted.quick else MB
    for megabytes in sizes:
        events = int(gate.ROWS_A_GB * megabytes / 1000)
        script = gate.TABLES.format(people=events // 5, events=events)
        rows += _at(ground, f"{megabytes:,} MB", script)
    return rows


def _at(ground: Ground, group: str, script: str) -> list[figures.Row]:
    print(f"  {group}", flush=True)
    database = ground.database("growth")
    database.script(ONE)
    database.script(script)
    rounds = ground.wanted.times(1, 1)
    return gate.beside(ground, database, rounds, group, (gate.OURS, gate.HAND))
