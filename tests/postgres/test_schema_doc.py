"""SCHEMA.md is what the migrations make."""

from tests import schema_doc, servers
from tests.conftest import Run


def test_schema_document_is_what_the_migrations_make(run: Run, database: servers.Database) -> None:
    """Whoever changes a migration runs `make schema`; nothing is written by hand."""
    done = run("up", env={"PREFLIGHT_MIGRATIONS_DIR": str(schema_doc.MIGRATIONS)})

    assert 0 == done.code, done
    assert schema_doc.document(database) == schema_doc.DOCUMENT.read_text(encoding="utf-8")
