"""The repository's own migrations, on the databases that Ops-Center has."""

from pathlib import Path

import pytest

from tests import servers
from tests.conftest import Run

MIGRATIONS = servers.REPOSITORY / "migrations"
FIRST = (MIGRATIONS / "001_create_llm_tables.sql").read_text()
SECOND = (MIGRATIONS / "002_add_system_api_keys.sql").read_text()
NAMES = ["001_create_llm_tables", "002_add_system_api_keys"]
OTHERS = (
    "CREATE TABLE schema_migrations (version text); INSERT INTO schema_migrations VALUES ('1');"
)


@pytest.fixture
def environment(environment: dict[str, str]) -> dict[str, str]:
    """Run with the files of the repository."""
    return environment | {"PREFLIGHT_MIGRATIONS_DIR": str(MIGRATIONS)}


def test_empty_database_gets_both(
    any_server: servers.Server, run: Run, database: servers.Database, backup_dir: Path
) -> None:
    """With a backup before, and nothing to do afterwards."""
    assert any_server is database.server

    result, again = run(), run()

    assert 0 == result.code, str(result)
    assert NAMES == result.finished["applied"]
    assert [result.finished["backup"]] == [each.name for each in backup_dir.iterdir()]
    assert 0 == again.code
    assert "applied" not in again.finished
    assert 1 == len(list(backup_dir.iterdir()))


def test_first_by_hand_is_adopted_and_the_second_applied(
    any_server: servers.Server, run: Run, database: servers.Database
) -> None:
    """Rows stay as they are, encrypted keys too."""
    assert any_server is database.server
    database.script(OTHERS + FIRST)
    rows = "SELECT id, provider_slug, updated_at FROM llm_providers ORDER BY id"
    before = database.query(rows)

    result = run()

    assert 0 == result.code, str(result)
    assert (NAMES[:1], NAMES[1:]) == (result.finished["adopted"], result.finished["applied"])
    assert before == database.query(rows)
    assert ["1"] == database.query("SELECT version FROM schema_migrations")


def test_both_by_hand_are_adopted_without_a_backup(
    run: Run, database: servers.Database, backup_dir: Path
) -> None:
    """There is nothing to do, and it is written down."""
    database.script(OTHERS + FIRST + SECOND)

    result = run()

    assert (0, NAMES) == (result.code, result.finished.get("adopted")), str(result)
    assert [] == list(backup_dir.iterdir())
    assert 0 == run("check").code


def test_half_of_the_second_stops_the_run(
    run: Run, database: servers.Database, backup_dir: Path
) -> None:
    """Two of five columns: 33 names what is missing, and nothing is touched, not even by us."""
    database.script(
        FIRST + "ALTER TABLE llm_providers ADD encrypted_api_key text, "
        "ADD api_key_source varchar(50) DEFAULT 'environment';"
    )

    result = run()

    assert 33 == result.code, str(result)
    assert NAMES[1] == result.finished["error"]["migration"]
    named = " ".join(each["check"] for each in result.event("check.failed"))
    for column in ("api_key_updated_at", "api_key_last_tested", "api_key_test_status"):
        assert column in named
    assert [0] == database.query("SELECT count(*) FROM pg_namespace WHERE nspname = 'preflight'")
    assert [] == list(backup_dir.iterdir())


def test_tables_of_others_alone_do_not_count(run: Run, database: servers.Database) -> None:
    """The verify files say absent, so both are pending."""
    database.script(OTHERS + "CREATE TABLE alembic_version (version_num text)")

    result = run()

    assert (0, NAMES) == (result.code, result.finished.get("applied")), str(result)
