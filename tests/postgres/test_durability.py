"""What is on the disk when: the order of fsync and rename, recorded in a real run."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import servers
from tests.conftest import WriteMigrations

# runs the program and writes down what it makes durable, in order, by the names of the moment
RECORDER = """
import json, os, sys

told = open(sys.argv.pop(1), "w", buffering=1)
real = {name: getattr(os, name) for name in ("fsync", "rename", "replace")}

def fsync(descriptor):
    real["fsync"](descriptor)
    print(json.dumps(["fsync", os.readlink(f"/proc/self/fd/{descriptor}")]), file=told)

def moving(name):
    def move(old, new, **more):
        real[name](old, new, **more)
        print(json.dumps(["rename", os.fspath(old), os.fspath(new)]), file=told)
    return move

os.fsync, os.rename, os.replace = fsync, moving("rename"), moving("replace")
sys.path.insert(0, os.getcwd())
import entrypoint
sys.exit(entrypoint.main())
"""
MIGRATION = {
    "001_a.sql": "CREATE TABLE a (id int); INSERT INTO a VALUES (1);\n",
    "001_a_rollback.sql": "DROP TABLE a;\n",
    "001_a_export.sql": "SELECT id FROM a;\n",
}

Told = list[tuple[str, ...]]
Record = Callable[..., Told]


@pytest.fixture
def record(environment: dict[str, str], tmp_path: Path, backup_dir: Path) -> Record:
    """Run a command and return what it made durable below the backup directory."""
    environment["PREFLIGHT_REHEARSE"] = "off"

    def run(*arguments: str) -> Told:
        file = tmp_path / "told"
        done = subprocess.run(
            [sys.executable, "-c", RECORDER, file, *arguments],
            env=environment,
            cwd=servers.REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        assert 0 == done.returncode, done.stdout + done.stderr
        prefix = str(backup_dir)
        return [
            tuple(_short(Path(name), prefix) if name.startswith("/") else name for name in each)
            for each in map(json.loads, file.read_text().splitlines())
            if each[1].startswith(prefix)
        ]

    return run


def _short(path: Path, prefix: str) -> str:
    """Name a path below the directory: a hidden backup is `.`, one that can be seen is `+`."""
    parts = path.relative_to(prefix).parts
    if not parts:
        return "/"
    return "/".join(["." if parts[0].startswith(".") else "+", *parts[1:]])


def test_backup_is_whole_on_the_disk_before_it_can_be_seen(
    record: Record, migrations: WriteMigrations
) -> None:
    """Dump and manifest first, then the names beside them, then the name, then its directory."""
    migrations(MIGRATION)
    told = record("backup")
    (seen,) = [n for n, each in enumerate(told) if each == ("rename", ".", "+")]

    assert [
        ("fsync", "./database.dump"),
        ("fsync", "./.manifest.json.new"),
        ("rename", "./.manifest.json.new", "./manifest.json"),
        ("fsync", "."),
    ] == [each for each in told[:seen] if ".lock" not in each[1]][:4]
    assert ("fsync", ".") == told[seen - 1]
    assert ("fsync", "/") == told[seen + 1]


def test_export_is_on_the_disk_before_its_rows_are_destroyed(
    record: Record, migrations: WriteMigrations
) -> None:
    """The file first, then its name, then the directory that has the name."""
    migrations(MIGRATION)
    record()
    told = record("rollback")
    (named,) = [n for n, each in enumerate(told) if each[-1] == "+/export-001_a-1.csv"]

    hidden, final = told[named][1:]
    assert [("fsync", hidden), ("rename", hidden, final), ("fsync", "+")] == told[
        named - 1 : named + 2
    ]
