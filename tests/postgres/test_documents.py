"""What the documents show is run as it stands there."""

import re
import shlex
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from tests import servers
from tests.conftest import Run, Start, WriteMigrations

DOCS = servers.REPOSITORY / "docs"
MIGRATIONS = servers.REPOSITORY / "migrations"


def blocks(name: str, section: str, language: str) -> list[str]:
    """Return the code blocks of a section of a document."""
    text = (DOCS / name).read_text("utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)


def test_examples_of_writing_migrations_run(
    migrations: WriteMigrations, run: Run, database: servers.Database
) -> None:
    """They pass lint without a remark that matters, apply, verify, and can be taken back."""
    text = (DOCS / "writing-migrations.md").read_text("utf-8")
    shown = dict(
        re.findall(r"^`(\d{3}_\w+\.sql)`:\n\n```sql\n(.*?)```", text, re.MULTILINE | re.DOTALL)
    )
    migrations({path.name: path.read_bytes() for path in MIGRATIONS.glob("*.sql")} | shown)

    assert 6 == len(shown)
    assert 0 == run("lint").code
    assert 0 == run("up").code
    assert ["003_add_teams", "004_index_usage_by_session"] == database.query(
        "SELECT name FROM preflight.migrations WHERE version > 2 ORDER BY version"
    )
    assert 0 == run("verify", "3").code
    assert 0 == run("rollback", "--to", "2").code
    assert 33 == run("verify", "3").code
    assert 0 == run("up").code


def test_lock_query_names_the_holder(
    migrations: WriteMigrations, start: Start, database: servers.Database
) -> None:
    """What docs/operations.md gives an operator finds the run that holds the lock, and no other."""
    (query,) = blocks("operations.md", "Who holds the lock", "sql")
    migrations({"001_wait_for_me.sql": "SELECT pg_advisory_xact_lock(1);"})
    with psycopg.connect(database.conninfo(application_name="stranger")) as stranger:
        stranger.execute("SELECT pg_advisory_xact_lock(1)")
        holder = start("up")
        holder.wait_for_event("migration.started")
        found = stranger.execute(query.encode()).fetchall()

    assert 1 == len(found)
    assert found[0][1].startswith("pg-preflight@")
    assert 0 == holder.wait().code


@pytest.fixture
def others(database: servers.Database) -> Iterator[None]:
    """Drop the databases that a restore leaves beside the live one."""
    yield
    with database.server.connect() as connection:
        left = connection.execute(
            "SELECT datname FROM pg_database WHERE datname ~ %s",
            [f"^{database.name}_(drill|restored|before_)"],
        ).fetchall()
        for (name,) in left:
            connection.execute(
                sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
            )


@pytest.mark.usefixtures("others")
def test_restore_drill_can_be_done_as_it_is_written(run: Run, database: servers.Database) -> None:
    """Backup, restore beside, look, then swap: the lost rows are back and the old ones kept."""
    shown = "\n".join(blocks("operations.md", "Restore drill", "sh"))
    env = {"PREFLIGHT_MIGRATIONS_DIR": str(MIGRATIONS)}
    providers = "SELECT count(*) FROM llm_providers"
    assert 0 == run("up", env=env).code

    for line in shown.replace("unicorn_drill", f"{database.name}_drill").splitlines():
        if not (words := shlex.split(line)):
            continue
        target = {"PGDATABASE": words.pop(0).partition("=")[2]} if "=" in words[0] else {}
        if words[1:] == ["restore", "latest", "--swap"]:
            database.query("DELETE FROM llm_providers")
        done = run(*words[1:], env={**env, **target})

        assert 0 == done.code, done

    assert [7] == database.query(providers)
    (old,) = database.query(
        "SELECT datname FROM pg_database WHERE datname LIKE %s", f"{database.name}_before_%"
    )
    assert [0] == servers.Database(database.server, old).query(providers)


@pytest.mark.usefixtures("others")
def test_swap_refuses_while_somebody_is_connected_and_goes_on_from_there(
    run: Run, database: servers.Database
) -> None:
    """Sessions of other roles count, though an owner may see little of them."""
    role = sql.Identifier(f"{database.name}_owner")
    name = sql.Identifier(database.name)
    database.query(sql.SQL("CREATE ROLE {} LOGIN CREATEDB PASSWORD 'of a minute'").format(role))
    database.query(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(name, role))
    owner = {"PGUSER": f"{database.name}_owner", "PGPASSWORD": "of a minute"}
    try:
        assert 0 == run("backup", env=owner).code
        with psycopg.connect(database.conninfo(application_name="the app")) as app:
            refused = run("restore", "latest", "--swap", env=owner)
            pid = app.info.backend_pid

        assert 22 == refused.code, refused
        assert "restore.sessions" == refused.finished["error"]["code"]
        assert f"pid {pid}" in refused.finished["error"]["message"]
        assert 0 == run("restore", "latest", "--swap", env=owner).code
    finally:
        with database.server.connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
            kept = connection.execute(
                "SELECT datname FROM pg_database WHERE datname LIKE %s", [f"{database.name}_%"]
            ).fetchall()
            for (each,) in kept:
                connection.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(each)))
            connection.execute(sql.SQL("DROP ROLE {}").format(role))
