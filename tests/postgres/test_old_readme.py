"""What the old README told people to type, done with what docs/old-commands.md says instead."""

import csv
import json
import re
import shlex
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from psycopg import sql

from tests import schema_doc, servers
from tests.conftest import Run
from tests.program import Result

PAGE = servers.REPOSITORY / "docs" / "old-commands.md"
EVENTS = servers.REPOSITORY / "docs" / "log-events.md"
MIGRATIONS = servers.REPOSITORY / "migrations"
KEY = "gAAAAAB-not-a-real-key"  # a system key, as the application stores it


# --- the page -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """One row of the page: what was typed, and what does it now."""

    before: str
    now: tuple[tuple[str, ...], ...]


def lines() -> list[Line]:
    """Return the rows of all tables of the page."""
    found = []
    for row in re.findall(r"^\| (?!before|--)(.*) \|$", PAGE.read_text("utf-8"), re.MULTILINE):
        before, now, _ = (cell.strip() for cell in re.split(r"(?<!\\)\|", row))
        commands = re.findall(r"`([^`]+)`", now)
        found.append(
            Line(before.replace("\\|", "|"), tuple(tuple(shlex.split(c)) for c in commands))
        )
    return found


def documented_keys() -> dict[str, set[str]]:
    """Return the keys that docs/log-events.md lists for each event."""
    rows = re.findall(
        r"^\| `([a-z_.]+)` \| \w+ \| (.*?) \| ", EVENTS.read_text("utf-8"), re.MULTILINE
    )
    return {name: set(re.findall(r"`([^`]+)`", keys)) for name, keys in rows}


# --- a database as it was -------------------------------------------------------------------------


@dataclass(frozen=True)
class Old:
    """The database of the old README: 001 by hand, rows in it, and no history."""

    run: Run
    database: servers.Database
    backups: Path

    def make(self) -> None:
        """Apply 001 by hand, and let two users bring a key."""
        self.database.script((MIGRATIONS / "001_create_llm_tables.sql").read_text("utf-8"))
        self.database.script(
            "INSERT INTO user_api_keys (user_id, provider_id, encrypted_api_key)"
            " SELECT 'user ' || id, id, 'key of ' || provider_slug FROM llm_providers WHERE id < 3"
        )

    def current(self) -> None:
        """Bring it up to date, and let the operator store one system key."""
        assert 0 == self.do("entrypoint.py", "up").code
        self.store_a_key()

    def by_hand(self) -> None:
        """Apply 002 with psql as well."""
        self.database.script((MIGRATIONS / "002_add_system_api_keys.sql").read_text("utf-8"))
        self.store_a_key()

    def store_a_key(self) -> None:
        """Store one system key."""
        self.database.query(
            "UPDATE llm_providers SET encrypted_api_key = %s WHERE provider_slug = 'groq'", KEY
        )

    def do(self, program: str, *args: str, **env: str) -> Result:
        """Run a command of the page; its events hold no key that the documents do not list."""
        assert "entrypoint.py" == program
        done = self.run(*args, env={"PREFLIGHT_MIGRATIONS_DIR": str(MIGRATIONS), **env})
        keys, common = documented_keys(), {"timestamp", "level", "event", "run_id", "message"}
        unlisted = {
            (event["event"], key)
            for event in done.events
            for key in event.keys() - common - keys.get(event["event"], set())
        }
        assert set() == unlisted, done
        return done

    def rows(self) -> tuple[list[Any], list[Any]]:
        """Return what must survive everything: the users' keys and the providers."""
        return (
            self.database.query("SELECT user_id, encrypted_api_key FROM user_api_keys ORDER BY id"),
            self.database.query(
                "SELECT id, provider_slug, updated_at FROM llm_providers ORDER BY id"
            ),
        )

    def system_keys(self) -> list[str]:
        """Return the stored system keys."""
        return self.database.query(
            "SELECT encrypted_api_key FROM llm_providers WHERE encrypted_api_key IS NOT NULL"
        )

    def has_002(self) -> bool:
        """Tell whether the columns of 002 are there."""
        found = self.database.query(
            "SELECT count(*) FROM pg_attribute WHERE attrelid = to_regclass('llm_providers')"
            " AND attname IN ('encrypted_api_key', 'api_key_source') AND NOT attisdropped"
        )
        return [2] == found

    def history(self) -> list[tuple[int, str]]:
        """Return the recorded versions, and how each came."""
        return self.database.query(
            "SELECT version, how FROM preflight.migrations WHERE state = 'done' ORDER BY version"
        )

    def saved(self) -> list[Path]:
        """Return the backups."""
        return sorted(path for path in self.backups.iterdir() if not path.name.startswith("."))


@pytest.fixture
def old(run: Run, database: servers.Database, backup_dir: Path) -> Iterator[Old]:
    """Give the database of the old README; what was restored beside it is dropped."""
    made = Old(run, database, backup_dir)
    made.make()
    yield made
    with database.server.connect() as connection:
        connection.execute(
            sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(
                sql.Identifier(f"{database.name}_restored")
            )
        )


# --- what each line does --------------------------------------------------------------------------


def states(old: Old) -> dict[str, str]:
    """Return the states that `check` shows."""
    done = old.do("entrypoint.py", "check", "--json")
    return {each["name"]: each["state"] for each in done.json()["migrations"]}


def shows_what_is_pending(old: Old, now: tuple[str, ...]) -> None:
    """Before the first run: 001 would be adopted, 002 is pending, and nothing is written."""
    before = old.rows()
    done = old.do(*now)

    assert 3 == done.code
    assert "schema.pending" == done.finished["error"]["code"]
    assert not old.has_002()
    assert [None] == old.database.query("SELECT to_regclass('preflight.migrations')")
    assert before == old.rows()
    assert {"001_create_llm_tables": "adoptable", "002_add_system_api_keys": "pending"} == states(
        old
    )


def brings_up_to_date(old: Old, now: tuple[str, ...]) -> None:
    """001 is recognised, 002 applied after one backup; every row stays; once is enough."""
    before = old.rows()

    assert 0 == old.do(*now).code
    assert old.has_002()
    assert [(1, "adopted"), (2, "applied")] == old.history()
    assert 1 == len(old.saved())
    assert before == old.rows()
    assert "ok" == old.do(*now).finished["outcome"]
    assert 1 == len(old.saved())


def takes_back(old: Old, now: tuple[str, ...]) -> None:
    """002 goes, and what that destroys is saved as CSV in a backup; the rest stays."""
    old.current()
    before = old.rows()
    done = old.do(*now)

    assert 0 == done.code, done
    assert not old.has_002()
    assert [(1, "adopted")] == old.history()
    assert before == old.rows()
    assert [("groq", KEY)] == [
        (row["provider_slug"], row["encrypted_api_key"]) for row in exported(old)
    ]
    assert [1] == [event["rows"] for event in done.event("export.saved")]


def exported(old: Old) -> list[dict[str, str]]:
    """Return the rows of the one file that holds the system keys."""
    (path,) = old.backups.glob("*/export-002_add_system_api_keys-1.csv")
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def takes_all_back(old: Old, now: tuple[str, ...]) -> None:
    """All five tables go; what they held is saved, and can be restored."""
    old.current()

    assert 0 == old.do(*now).code
    assert [None] == old.database.query("SELECT to_regclass('llm_providers')")
    assert [] == old.history()
    users = [path for path in old.backups.glob("*/export-001*.csv") if "key of" in path.read_text()]
    assert 1 == len(users)


def runs_again(old: Old, now: tuple[str, ...]) -> None:
    """002 runs once more; the stored keys stay."""
    old.current()
    before = old.rows()

    assert 0 == old.do(*now).code
    assert [(1, "adopted"), (2, "forced")] == old.history()
    assert [KEY] == old.system_keys()
    assert before == old.rows()


def verifies(old: Old, now: tuple[str, ...]) -> None:
    """At least the 9 suites and 18 checks of the old script; and a missing index is found."""
    old.current()
    done = old.do(*now)
    checks = old.do("entrypoint.py", "verify", "2", "--json").json()["checks"]

    assert 0 == done.code
    assert 9 <= len({check["suite"] for check in checks})
    assert 18 <= len(checks)
    old.database.script("DROP INDEX idx_llm_providers_has_db_key")
    assert 33 == old.do(*now).code


def verifies_the_columns(old: Old, now: tuple[str, ...]) -> None:
    """Missing columns are 33, present ones are 0, and each is named."""
    absent = old.do(*now)
    old.current()
    present = old.do(*now)

    assert (33, 0) == (absent.code, present.code)
    for column in ("encrypted_api_key", "api_key_source"):
        assert f"column llm_providers.{column} exists" in present.stdout


def shows_the_tables(old: Old, now: tuple[str, ...]) -> None:
    """Each column of the table is asked for; SCHEMA.md lists the same ones."""
    done = old.do(*now)
    columns = old.database.query(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'llm_providers'::regclass AND attnum > 0"
    )
    section = (
        schema_doc.DOCUMENT.read_text("utf-8").split("## llm_providers\n")[1].split("\n## ")[0]
    )

    assert 0 == done.code
    assert done.json()["ok"]
    assert [] == [name for name in columns if f"llm_providers.{name}" not in done.stdout]
    assert [] == [name for name in columns if f"| `{name}` |" not in section]


def reads_the_files(old: Old, now: tuple[str, ...]) -> None:
    """Read the files where they are, without a server."""
    done = old.do(*now, PGHOST="127.0.0.1", PGPORT=str(closed_port()))

    assert 0 == done.code
    assert "002_add_system_api_keys" in done.stdout


def recognises_what_was_done_by_hand(old: Old, now: tuple[str, ...]) -> None:
    """Pending files are applied; those that somebody applied with psql are recorded."""
    old.by_hand()

    assert 0 == old.do(*now).code
    assert [(1, "adopted"), (2, "adopted")] == old.history()
    assert [KEY] == old.system_keys()


def backs_up(old: Old, now: tuple[str, ...]) -> None:
    """One backup, read back, with the rows of every table counted."""
    done = old.do(*now)
    (path,) = old.saved()
    rows = json.loads((path / "manifest.json").read_bytes())["rows"]

    assert 0 == done.code
    assert (2, 7) == (rows["public.user_api_keys"], rows["public.llm_providers"])
    assert [path.name] == [event["backup"] for event in done.event("backup.verified")]


def lists_backups(old: Old, now: tuple[str, ...]) -> None:
    """Its name is that of the directory which `up` made."""
    old.current()
    done = old.do(*now)

    assert 0 == done.code, done
    assert old.saved()[0].name in done.stdout


def restores(old: Old, now: tuple[str, ...]) -> None:
    """Rows are back in a database beside the live one, which is not touched."""
    assert 0 == old.do("entrypoint.py", "backup").code
    kept = old.rows()
    old.database.query("DELETE FROM user_api_keys")
    done = old.do(*now)
    restored = servers.Database(old.database.server, f"{old.database.name}_restored")

    assert 0 == done.code, done
    assert kept == Old(old.run, restored, old.backups).rows()
    assert [0] == old.database.query("SELECT count(*) FROM user_api_keys")


def plans(old: Old, now: tuple[str, ...]) -> None:
    """Each statement with its lock; nothing is written."""
    done = old.do(*now)

    assert 0 == done.code, done
    assert "ACCESS EXCLUSIVE on llm_providers" in done.stdout
    assert not old.has_002()


def shows_the_history(old: Old, now: tuple[str, ...]) -> None:
    """Version, name, state, when, how long, by whom; from the database."""
    old.current()
    done = old.do(*now)
    first, second = done.json()["migrations"]

    assert 0 == done.code
    assert done.json()["current"]
    assert ("001_create_llm_tables", "adopted") == (first["name"], first["state"])
    assert ("002_add_system_api_keys", "applied") == (second["name"], second["state"])
    assert servers.SUPERUSER == second["applied_by"]
    assert second["applied_at"].startswith("20")
    assert second["duration_ms"] >= 0


def creates_what_is_missing(old: Old, *now: tuple[str, ...]) -> None:
    """Where 001 is missing, both are pending, and both are applied in order."""
    old.database.script("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    look, apply = now

    assert 3 == old.do(*look).code
    assert 0 == old.do(*apply).code
    assert [(1, "applied"), (2, "applied")] == old.history()


def takes_back_and_applies(old: Old, *now: tuple[str, ...]) -> None:
    """Columns go and come again; the history says so."""
    old.current()
    back, apply = now

    assert 0 == old.do(*back).code
    assert not old.has_002()
    assert 0 == old.do(*apply).code
    assert old.has_002()
    assert [(1, "adopted"), (2, "applied")] == old.history()


def adopts(old: Old, now: tuple[str, ...]) -> None:
    """002 is recorded without running; one that is not there is refused with 33."""
    assert 0 == old.do("entrypoint.py", "adopt").code
    assert 33 == old.do(*now).code
    old.by_hand()

    assert 0 == old.do(*now).code
    assert [(1, "adopted"), (2, "adopted")] == old.history()
    assert [KEY] == old.system_keys()


def waits(old: Old, now: tuple[str, ...]) -> None:
    """0 when it is there, 10 with the address when it is not."""
    port = closed_port()
    refused = old.do(*now, PGPORT=str(port), PREFLIGHT_WAIT_TIMEOUT_S="0.2")

    assert 0 == old.do(*now).code
    assert 10 == refused.code
    assert f"127.0.0.1:{port}" in refused.finished["error"]["message"]


def closed_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# --- each line of the page, and no other ----------------------------------------------------------

IN_CONTAINER = "docker exec ops-center-direct"
PSQL = "docker exec unicorn-postgresql psql -U unicorn -d unicorn_db"
EFFECTS: dict[str, Callable[..., None]] = {
    "`python3 /app/run_migration.py --check`": shows_what_is_pending,
    "`python3 /app/run_migration.py`": brings_up_to_date,
    "`python3 /app/run_migration.py --rollback`": takes_back,
    "`python3 /app/run_migration.py --force`": runs_again,
    "`bash /app/test_migration.sh`": verifies,
    f"`{IN_CONTAINER} python3 /app/run_migration.py --check`": shows_what_is_pending,
    f"`{IN_CONTAINER} python3 /app/run_migration.py`": brings_up_to_date,
    f"`{IN_CONTAINER} bash /app/test_migration.sh`": verifies,
    f"`{IN_CONTAINER} python3 /app/run_migration.py --rollback`": takes_back,
    f'`{PSQL} -c "SELECT column_name FROM information_schema.columns WHERE '
    "table_name='llm_providers' AND column_name IN ('encrypted_api_key', 'api_key_source');\"`": (
        verifies_the_columns
    ),
    f'`{PSQL} -c "\\d llm_providers"`': shows_the_tables,
    "`docker cp migrations/002_add_system_api_keys.sql unicorn-postgresql:/tmp/`": reads_the_files,
    f"`{PSQL} -f /tmp/002_add_system_api_keys.sql`": recognises_what_was_done_by_hand,
    "`docker exec unicorn-postgresql pg_dump -U unicorn unicorn_db > "
    "backup_$(date +%Y%m%d).sql`": backs_up,
    "Find a backup": lists_backups,
    "Restore a backup": restores,
    "Test on development first": plans,
    "Use the Python script": brings_up_to_date,
    "Verify after migration": verifies,
    "The table in the README": shows_the_history,
    "`001_*.sql` → (not applicable, initial schema)": takes_all_back,
    "`002_add_system_api_keys.sql` → `002_add_system_api_keys_rollback.sql`": takes_back,
    f'`{PSQL} -c "SELECT provider_slug, encrypted_api_key FROM llm_providers WHERE '
    'encrypted_api_key IS NOT NULL;" > system_keys_backup.txt`': takes_back,
    'Migration fails with "relation does not exist": '
    f"`{PSQL} -c \"SELECT tablename FROM pg_tables WHERE tablename LIKE 'llm_%';\"`": (
        creates_what_is_missing
    ),
    "Column already exists: `python3 run_migration.py --rollback`, `python3 run_migration.py`": (
        takes_back_and_applies
    ),
    "Column already exists: Use `--force` to re-apply": runs_again,
    "Column already exists: it was applied by hand": adopts,
    "Connection refused: `docker ps | grep postgresql`, `docker logs unicorn-postgresql`": waits,
}
MADE = "Document changes"  # by `make schema`, which test_schema_doc.py proves


@pytest.mark.parametrize(
    "line",
    [line for line in lines() if line.before != MADE],
    ids=lambda line: line.before.strip("`"),
)
def test_old_command_has_one_that_does_it_now(old: Old, line: Line) -> None:
    """Each line of the page is run, and does what the old one was for."""
    EFFECTS[line.before](old, *line.now)


def test_page_lists_every_old_command() -> None:
    """No line of the page is untested, and no line of the old README is missing."""
    assert sorted([*EFFECTS, MADE]) == sorted(line.before for line in lines())
