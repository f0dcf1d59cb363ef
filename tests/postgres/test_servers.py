"""The servers and databases that the other tests stand on."""

import signal

import psycopg
import pytest

from tests import servers
from tests.conftest import CreateDatabase, StartServer


def test_server_is_the_major_version_asked_for(any_server: servers.Server) -> None:
    """The server that says 13 is a 13."""
    with any_server.connect() as connection:
        assert any_server.major == connection.info.server_version // 10000


def test_database_is_utf8_and_empty(any_server: servers.Server, database: servers.Database) -> None:
    """Every test starts with a database of its own that holds nothing."""
    assert any_server is database.server
    assert ["UTF8"] == database.query("SHOW server_encoding")
    assert [0] == database.query(
        "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    )


@pytest.mark.parametrize("name", ["plain", 'Ünicorn\'s "db" = 100%', "-d", "a\\b c"])
def test_database_of_any_name_can_be_reached(
    server: servers.Server, create_database: CreateDatabase, name: str
) -> None:
    """Odd names and odd passwords reach the server as they are."""
    database = create_database(server, name)

    assert [name] == database.query("SELECT current_database()")


def test_password_is_asked_for(database: servers.Database) -> None:
    """A server that lets everyone in would hide every password bug."""
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(database.conninfo(password="wrong"))  # noqa: S106 - it is wrong


def test_statement_values_are_passed(database: servers.Database) -> None:
    """Values go beside the statement, and a statement without any may hold a percent sign."""
    assert [("a", 1)] == database.query("SELECT %s::text, %s::int", "a", 1)
    assert ["100%"] == database.query("SELECT '100%'")


def test_only_our_own_sessions_are_counted(database: servers.Database) -> None:
    """The observer and strangers do not count."""
    assert 0 == database.sessions()
    with psycopg.connect(database.conninfo(application_name="pg-preflight up on host")):
        assert 1 == database.sessions()


def test_server_comes_back_on_its_port(start_server: StartServer) -> None:
    """Stopped, restarted and killed: data and port stay."""
    server = start_server()
    port = server.port
    with server.connect() as connection:
        connection.execute("CREATE TABLE kept ()")

    server.restart("immediate")
    server.signal_postmaster(signal.SIGKILL)
    server.restart()

    assert port == server.port
    assert [0] == servers.Database(server, "postgres").query("SELECT count(*) FROM kept")


def test_settings_change_with_a_reload(start_server: StartServer) -> None:
    """What is configured holds after reload() has returned."""
    server = start_server(work_mem="5MB")
    database = servers.Database(server, "postgres")

    assert ["5MB"] == database.query("SHOW work_mem")

    server.configure(work_mem="6MB", search_path='"$user", public')
    server.reload()

    assert ["6MB"] == database.query("SHOW work_mem")


def test_removed_server_leaves_nothing(start_server: StartServer) -> None:
    """No process, no files."""
    server = start_server()

    server.remove()

    assert not server.running
    assert not server.home.exists()


@pytest.mark.parametrize("major", [16, 17, 18])
def test_client_is_the_major_version_asked_for(major: int) -> None:
    """The directory of a client holds what a backup needs."""
    found = servers.client_bin(major)

    assert (found / "pg_dump").is_file()
    assert (found / "pg_restore").is_file()
