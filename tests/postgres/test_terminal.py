"""What people see on a terminal of 80 columns: the bytes, read as a terminal does."""

from pathlib import Path

import pytest

from tests import servers
from tests.conftest import WriteMigrations
from tests.screens import COLUMNS, on_terminal


def test_run_ends_with_a_summary_on_a_terminal(
    environment: dict[str, str], migrations: WriteMigrations, tmp_path: Path, backup_dir: Path
) -> None:
    """What was done, where the backup is, how far proven, the way back; bars leave nothing."""
    migrations({"001_a.sql": "CREATE TABLE a AS SELECT generate_series(1, 1000) n;"})
    code, _ = on_terminal(env=environment, cwd=tmp_path)
    migrations({"002_b.sql": "ALTER TABLE a ADD x int;", "002_b_rollback.sql": "SELECT 1;"})
    again, screen = on_terminal(env=environment | {"PREFLIGHT_REHEARSE": "auto"}, cwd=tmp_path)

    assert (0, 0) == (code, again), screen.lines
    tail = screen.lines[next(i for i, line in enumerate(screen.lines) if "✓ applied" in line) :]
    heads = ["applied", "backup", "proof", "go back"]
    assert heads == [line.split("  ")[0] for line in map(str.strip, tail[1:5])]
    assert f"backup   {backup_dir}/" in tail[2].strip()
    assert "restored and compared" in tail[3]
    assert any(line.startswith("compare ") for line in screen.drawn), screen.drawn
    assert any(line.startswith("rehearse ") for line in screen.drawn), screen.drawn
    assert not any("█" in line or "░" in line for line in screen.lines)
    assert COLUMNS > max(map(len, screen.drawn))
    assert [] == screen.broken


def test_caret_stands_under_the_place_on_a_terminal(
    environment: dict[str, str], migrations: WriteMigrations, tmp_path: Path
) -> None:
    """Of the statement that failed, whatever stands before it on its line."""
    long = "SELECT 'ü', " + "1, " * 40 + "nowhere FROM pg_class;"
    migrations({"001_a.sql": f"SELECT 1;\n  {long}"})
    code, screen = on_terminal(env=environment, cwd=tmp_path)

    assert 30 == code, screen.lines
    at = next(i for i, line in enumerate(screen.lines) if line.strip() == "^")
    assert COLUMNS >= max(len(screen.lines[at - 1]), len(screen.lines[at]))
    assert [] == screen.broken
    assert "excerpt" not in screen.text
    assert "nowhere" == screen.lines[at - 1][screen.lines[at].index("^") :][:7]


def test_table_of_backups_fits_a_terminal(
    environment: dict[str, str], database: servers.Database, tmp_path: Path
) -> None:
    """Each on a line, by a beginning of its name that `restore` takes."""
    database.script("CREATE TABLE t AS SELECT 1 AS id")
    codes = [on_terminal("backup", env=environment, cwd=tmp_path)[0] for _ in range(2)]
    code, screen = on_terminal("backups", env=environment, cwd=tmp_path)
    rows = [line for line in screen.lines if line.startswith(f"{database.name}-")]
    names = [row.split()[0] for row in rows]
    restored, last = on_terminal(
        "restore", names[0], "--into", f"{database.name}_r", env=environment, cwd=tmp_path
    )
    database.query("SELECT 1")
    with database.server.connect() as connection:
        connection.execute(f"DROP DATABASE {database.name}_r".encode())

    assert [0, 0, 0, 0] == [*codes, code, restored], last.lines
    assert 2 == len(set(names))
    assert COLUMNS >= max(map(len, screen.lines))


@pytest.mark.parametrize("command", ["check", "plan", "lint"])
def test_result_is_a_table_on_a_terminal(
    command: str, environment: dict[str, str], migrations: WriteMigrations, tmp_path: Path
) -> None:
    """No line wraps."""
    migrations({"001_a_name_that_is_rather_long.sql": "CREATE TABLE a (id int PRIMARY KEY);"})
    code, screen = on_terminal(command, env=environment, cwd=tmp_path)

    assert code in {0, 3}, screen.lines
    assert "001" in screen.text
    assert COLUMNS >= max(len(line) for line in screen.lines if not line[:2].isdigit())
