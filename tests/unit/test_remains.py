"""What stays in a session although all that was set is reset."""

import pytest

from preflight.files import remains
from preflight.files.migrations import Script


@pytest.mark.parametrize(
    "text",
    [
        "SET app.user = '7'",
        "SET LOCAL app.user TO 7",
        "SET SESSION \"app.user\" = 'x'",
        "RESET app.user",
        "SELECT set_config('app.user', '7', true)",
        "SELECT pg_catalog.set_config('app.' || 'user', '7', true)",
        "INSERT INTO t SELECT set_config(name, '7', true) FROM u",
        "DO $$ BEGIN PERFORM set_config('app.user', '7', true); END $$",
        "DO $$ BEGIN SET LOCAL app.user = '7'; END $$",
        "CREATE FUNCTION f() RETURNS int SET app.user = '7' LANGUAGE sql AS 'SELECT 1'",
        "ALTER DATABASE d SET app.user = '7'",
        "NEWER GRAMMAR set_config(name)",
        "SELECT dblink_connect('c', 'dbname=x')",
    ],
)
def test_what_no_reset_takes_away_is_seen(text: str) -> None:
    """A name with a dot, said or not known, also where a body holds it; a connection."""
    assert remains.left([None, Script("001_a.sql", f"SELECT 1; {text};".encode(), "")])


@pytest.mark.parametrize(
    "text",
    [
        "SET search_path = app",
        "SELECT pg_catalog.set_config('search_path', '', false)",
        "DO $$ BEGIN PERFORM set_config('work_mem', '8MB', true); END $$",
        "-- it is set up.\nUPDATE t SET a = b.c FROM b",
        "INSERT INTO t VALUES ('set app.user = 1; set_config(x)')",
        "SELECT set_config()",
        "SELECT app.set_config(name, '7', true) FROM u",
        "COPY t FROM stdin;\nset app.user\n\\.\n",
    ],
)
def test_what_is_reset_or_only_written_of_costs_no_new_session(text: str) -> None:
    """Settings of the server come back, and a text is no statement."""
    assert not remains.left([Script("001_a.sql", f"SELECT 1;\n{text};".encode(), "")])
