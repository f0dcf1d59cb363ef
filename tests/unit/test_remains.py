"""What stays in a session although all that was set is reset."""

import pytest

from preflight.files import remains
from preflight.files.migrations import Script


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SET app.user = '7'", {"app.user"}),
        ("SET\n LOCAL App.User TO 7; RESET app.b", {"app.user", "app.b"}),
        ('SET SESSION "app.user" = \'x\'; SET "app"."b" = 1', {"app.user", "app.b"}),
        ("SELECT set_config('app.user', '7', true)", {"app.user"}),
        ("SELECT set_config(setting_name => 'app.user', new_value => '7')", {"app.user"}),
        ("SELECT \"pg_catalog\".\"set_config\" (E'app.user', '7', true)", {"app.user"}),
        ("DO $$ BEGIN PERFORM set_config('app.user', '7', true); END $$", {"app.user"}),
        ("DO $$ BEGIN EXECUTE 'SELECT set_config(''app.user'', NULL)'; END $$", {"app.user"}),
        ("CREATE FUNCTION f() SET app.user = '7' AS 'SET LOCAL app.b = 1'", {"app.user", "app.b"}),
        ("UPDATE t SET a.b = 1", {"a.b"}),  # nothing of that name is set
        ("SET search_path = app; SELECT set_config('work_mem', '8MB', true)", set()),
        ("-- it is set up.\nUPDATE t SET a = b.c, d = 'set_config(x)' FROM b", set()),
        ("SET LOCAL app.größe = 1", {"app.gr"}),  # not every encoding has it
    ],
)
def test_names_with_a_dot_are_found_wherever_they_are_said(text: str, expected: set[str]) -> None:
    """The server is asked for each: which of them is set no text tells."""
    assert expected == remains.names(
        [None, Script("001_a.sql", f"SELECT 1;\n{text};".encode(), "")]
    )


def test_names_are_found_across_the_pieces_of_a_large_text() -> None:
    """It is not looked through as a whole; and the names of rows have an end."""
    lead = b"SELECT 1;" + b" " * ((1 << 20) - 15)
    said = Script("001_a.sql", lead + b"SET LOCAL app.user = 1;", "")
    rows = Script("001_a.sql", b"".join(b"('set a.b%d')," % n for n in range(999)), "")

    assert {"app.user"} == remains.names([said])
    assert 200 == len(remains.names([rows]))


@pytest.mark.parametrize(
    "text",
    [
        "SELECT pg_catalog.set_config('app.' || 'user', '7', true)",
        "INSERT INTO t SELECT set_config(name, '7', true) FROM u",
        "SELECT set_config(\n-- whose\n'app.user', '7', true)",
        "SELECT set_config($$app.user$$, '7', true)",
        "SELECT set_config(('app.user'), '7', true)",
        "DO $$ BEGIN PERFORM set_config('app.' || 'user', '7', true); END $$",
        "NEWER GRAMMAR set_config(name)",
        "SELECT dblink_connect('c', 'dbname=x')",
        "DO $$ BEGIN PERFORM dblink_connect('c', 'dbname=x'); END $$",
    ],
)
def test_what_the_server_cannot_be_asked_for_is_doubted(text: str) -> None:
    """A name that only the statement knows; a connection."""
    assert remains.unknown([None, Script("001_a.sql", f"SELECT 1; {text};".encode(), "")])


@pytest.mark.parametrize(
    "text",
    [
        "SET LOCAL app.user = 'x'",
        "SELECT pg_catalog.set_config('app.user', '', false)",
        "SELECT pg_catalog.set_config('search_path', '', false)",
        "DO $$ BEGIN PERFORM set_config('work_mem', '8MB', true); END $$",
        "INSERT INTO t VALUES ('set app.user = 1; set_config(x)')",
        "SELECT set_config()",
        "SELECT app.set_config(name, '7', true) FROM u",
        "COPY t FROM stdin;\nset_config(x)\n\\.\n",
        "CREATE FUNCTION f() RETURNS void LANGUAGE sql AS 'SELECT set_config(name, 1) FROM u'",
        "create or replace procedure p() LANGUAGE sql AS 'SELECT dblink_connect(1)'",
    ],
)
def test_what_is_only_defined_or_can_be_asked_for_is_not_doubted(text: str) -> None:
    """A definition sets nothing, and a text is no statement."""
    assert not remains.unknown([Script("001_a.sql", f"SELECT 1;\n{text};".encode(), "")])
