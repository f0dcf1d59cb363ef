"""The whole way of a backup through a store that is no directory of directories."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import flat, servers
from tests.conftest import WriteMigrations
from tests.program import Result


@pytest.fixture
def with_flat(environment: dict[str, str]) -> Callable[..., Result]:
    """Run the program with its backups in a flat store; it must succeed."""
    environment["PREFLIGHT_REHEARSE"] = "always"
    environment["PREFLIGHT_BACKUP_KEEP"] = "1"

    def run(*arguments: str) -> Result:
        command = [sys.executable, "-m", "tests.flat", *arguments]
        done = subprocess.run(
            command,
            env=environment,
            cwd=servers.REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        assert 0 == done.returncode, done.stdout + done.stderr
        return Result(done.returncode, done.stdout, done.stderr, 0.0)

    return run


def test_second_store_holds_what_the_first_does(
    with_flat: Callable[..., Result],
    migrations: WriteMigrations,
    database: servers.Database,
    backup_dir: Path,
) -> None:
    """A backup is taken, proven, listed, exported into, restored, swapped in and pruned there."""
    migrations(
        {
            "001_a.sql": "CREATE TABLE a (id int); INSERT INTO a VALUES (1);\n",
            "001_a_rollback.sql": "DROP TABLE a;\n",
            "001_a_export.sql": "SELECT id FROM a;\n",
        }
    )
    (taken,) = with_flat().event("backup.verified")
    backups = flat.Flat(backup_dir)
    (known,) = backups.listing()
    back = with_flat("rollback")
    rows = with_flat("backups").event("backup.listed")
    with_flat("restore", known.name, "--into", f"{database.name}_restored", "--swap")

    assert (known.name, "restored") == (taken["backup"], known.manifest.verified)
    assert "flat://backups" == taken["directory"]
    assert [(each.name, "restored") for each in backups.listing()] == [
        (row["backup"], row["verified"]) for row in rows
    ]
    assert ["export-001_a-1.csv"] == [each["file"] for each in back.event("export.saved")]
    assert [known.name] == [each["backup"] for each in with_flat("backup").event("backup.pruned")]
