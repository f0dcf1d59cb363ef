"""Resumes: a file without a transaction that was killed at any place ends as if nobody had, or not.

Its session held things, and is gone. An older version of the program began it, which refused
nothing of it: what that did, and the row that it left, are made here by a session of our own.
What goes on where another one stopped ends with what one session sees to the end, or is refused
with nothing done; what SET has set, and a lock that is taken alone, are no reason to refuse.
`make resumes SEED=7 MINUTES=10` goes on for as long as told; `SEED=7/123` does one again.
"""

import random
import sys
from dataclasses import dataclass
from pathlib import Path

from tests import program, servers
from tests.faults import histories

OUTSIDE = "-- preflight: no-transaction\n"
# {o} is another role, {d} the database.
MADE = """
CREATE SCHEMA app; CREATE TABLE public.seen (n int, what text); CREATE TABLE public.kept (x int);
CREATE SEQUENCE public.kept_id; CREATE ROLE {o}; GRANT ALL ON ALL TABLES IN SCHEMA public TO {o};
GRANT ALL ON SCHEMA public TO {o};
"""
LOCKS = (
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
    " AND (classid, objid) = (0, 42)"
)
KEPT_IS = "SELECT relpersistence FROM pg_class WHERE oid = to_regclass('kept')"
SCHEMA = "SELECT current_schema()"


@dataclass(frozen=True)
class Held:
    """What a session takes, what shows that it has it, and whether a resume brings that back."""

    takes: str
    shows: str
    again: bool = False


HELD = (
    Held("SET search_path = app", SCHEMA, again=True),
    Held("SET ROLE {o}", "SELECT current_user", again=True),
    Held("SET SESSION AUTHORIZATION {o}", "SELECT session_user", again=True),
    Held("SET my.own = 'set'", "SELECT current_setting('my.own', true)", again=True),
    Held("SET TIME ZONE 'Asia/Kathmandu'", "SELECT current_setting('TimeZone')", again=True),
    Held(
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SELECT current_setting('default_transaction_isolation')",
        again=True,
    ),
    Held("SELECT pg_advisory_lock(42)", LOCKS, again=True),
    Held("SELECT pg_advisory_lock(42) FROM public.kept_id", LOCKS),
    Held("DO $$ BEGIN PERFORM pg_advisory_lock(42); END $$", LOCKS),
    Held("SELECT set_config('search_path', 'app', false)", SCHEMA),
    Held("UPDATE pg_settings SET setting = 'app' WHERE name = 'search_path'", SCHEMA),
    Held("DO $$ BEGIN SET search_path = app; END $$", SCHEMA),
    Held("DO $$ BEGIN PERFORM set_config('search_path', 'app', false); END $$", SCHEMA),
    Held("DO $$ BEGIN EXECUTE 'CREATE TEMP TABLE kept (x int)'; END $$", KEPT_IS),
    Held("CREATE TEMP TABLE kept (x int)", KEPT_IS),
    Held("CREATE TABLE pg_temp.kept AS SELECT 1 AS x", KEPT_IS),
    Held("SELECT 1 AS x INTO TEMP kept", KEPT_IS),
    Held("CREATE TEMP VIEW kept AS SELECT 1 AS x", KEPT_IS),
    Held("CREATE TEMP SEQUENCE kept", KEPT_IS),
    Held(
        "CREATE FUNCTION pg_temp.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "SELECT count(*) FROM pg_proc WHERE pronamespace = pg_my_temp_schema()",
    ),
    Held("PREPARE mine AS SELECT 1", "SELECT count(*) FROM pg_prepared_statements WHERE from_sql"),
    Held("DECLARE mine CURSOR WITH HOLD FOR SELECT 1", "SELECT count(*) FROM pg_cursors"),
    Held("LISTEN mine", "SELECT count(*) FROM pg_listening_channels()"),
    Held("LOAD 'auto_explain'", "SELECT current_setting('auto_explain.log_analyze', true)"),
)
# What is held no more is no reason for anything; what only looks like it neither.
GIVES_BACK = (
    "RESET search_path", "RESET ROLE", "SET search_path = public", "SELECT pg_advisory_unlock(42)",
    "SET LOCAL my.own = 'no'", "SELECT 1", "CREATE TABLE IF NOT EXISTS public.more ()",
)  # fmt: skip
FAILED, KILLED = "failed", "running"  # how a row stands whose run said so, or could not
LEFT = """
INSERT INTO preflight.migrations (version, name, checksum, state, how, statements_done,
 statements_started, up_sql, tool_version, run_id)
VALUES (2, '002_held', 'of an older version', %s, 'applied', %s, %s, %s, '0.0.1', 'older')
"""
SEEN = "SELECT n, what FROM public.seen ORDER BY n"
PENDING, REFUSED = 3, 32


class Resumes:
    """A database with a history, and a folder."""

    def __init__(self, database: servers.Database, home: Path, choice: random.Random) -> None:
        """Apply a first file."""
        self.database, self.choice = database, choice
        self.other = f"{database.name}_other"
        self.files = home / "migrations"
        self.files.mkdir(parents=True)
        (self.files / "001_one.sql").write_text("CREATE TABLE public.one ();\n")
        environment = {
            **database.env(),
            **histories.QUICKLY,
            "PATH": program.path(),
            "PREFLIGHT_MIGRATIONS_DIR": str(self.files),
            "PREFLIGHT_FIRST_CONTACT": "pending",
            "PREFLIGHT_TERMINATION_LOG": str(home / "none"),
        }
        self.main = program.Program(environment, home)
        done = self.main.run()
        assert 0 == done.code, str(done)
        self.database.script(MADE.format(o=self.other))

    def text(self, held: Held) -> tuple[list[str], bool]:
        """Return the statements of a file whose session holds this, and may hold another thing.

        And whether a resume anywhere brings all of it back.
        """
        choice, all_ = self.choice, [held]
        if choice.random() < 1 / 3:
            all_.append(choice.choice([each for each in HELD if each.shows != held.shows]))
        shown = [each.shows for each in all_]
        said = [each.takes for each in all_]
        said += [*shown, *([choice.choice(GIVES_BACK)] * choice.randint(0, 1)), *shown]
        texts = [
            f"INSERT INTO public.seen SELECT {number}, ({text})::text" if text in shown else text
            for number, text in enumerate(said)
        ]
        return [each.format(o=self.other) for each in texts], all(each.again for each in all_)

    def seen(self, statements: list[str]) -> list[object]:
        """Have one session run these statements, as any version does; return what it has seen."""
        with self.database.server.connect(self.database.name) as session:
            for each in statements:
                session.execute(each.encode())
        return self.database.query(SEEN)

    def goes_on(self, held: Held) -> int:
        """Have a file killed, and go on; return how that ended.

        Raises AssertionError where it did not end as promised.
        """
        statements, again = self.text(held)
        place = self.choice.randint(1, len(statements) - 1)
        self.database.script("TRUNCATE public.seen")
        whole = self.seen(statements)
        self.database.script("TRUNCATE public.seen")
        before = self.seen(statements[:place])
        text = OUTSIDE + "".join(f"{each};\n" for each in statements)
        (self.files / "002_held.sql").write_text(text)
        self.database.query(LEFT, self.choice.choice([FAILED, KILLED]), place, place, text)
        asked = self.main.run("check") if self.choice.random() < 1 / 4 else None
        result = self.main.run()
        told = f"after {place} of\n{text}{asked or ''}\n{result}"
        found = self.database.query(SEEN)
        if result.code == REFUSED and not again:
            assert before == found, f"refused, and {found}: {told}"
        else:
            assert (0, whole) == (result.code, found), f"{found} is not {whole}: {told}"
        assert asked is None or asked.code == (result.code or PENDING), f"check differs: {told}"
        self.database.query("DELETE FROM preflight.migrations WHERE version = 2")
        return result.code

    def close(self) -> None:
        """Drop what is the server's."""
        self.main.close()
        self.database.script(f"DROP OWNED BY {self.other}; DROP ROLE {self.other}")


def walk(database: servers.Database, home: Path, seed: str) -> set[int]:
    """Have everything be held once; return how that ended.

    Raises AssertionError where a resumed file ends otherwise than one that nobody killed.
    """
    choice = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    resumes = Resumes(database, home, choice)
    try:
        return {resumes.goes_on(each) for each in choice.sample(HELD, len(HELD))}
    finally:
        resumes.close()


def main() -> int:
    """Walk until the time is over; 1 when something was not as promised."""
    return histories.walks("resumes", __doc__, walk)


if __name__ == "__main__":
    sys.exit(main())
