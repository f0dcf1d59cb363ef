"""Managed services: a healthy database under each is backed up, proven and migrated."""

import contextlib
from collections.abc import Iterator

import pytest

from tests import faults, servers
from tests.conftest import DEFAULT_MAJOR, Run, WriteMigrations
from tests.faults import clouds

FILES = {
    "001_toys.sql": "CREATE TABLE toys (id int PRIMARY KEY, cat int REFERENCES cats);\n",
    "001_toys_rollback.sql": "DROP TABLE toys;\n",
}


@pytest.fixture(scope="module")
def provider() -> Iterator[servers.Server]:
    """Give a server whose roles are the services' own."""
    try:
        server = servers.start(DEFAULT_MAJOR)
    except servers.Unavailable as reason:
        pytest.skip(str(reason))
    yield server
    server.remove()


@pytest.fixture
def opened() -> Iterator[contextlib.ExitStack]:
    """Close what a test opens."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("name", clouds.CLOUDS)
def test_database_of_a_managed_service_is_backed_up_proven_and_migrated(
    run: Run,
    provider: servers.Server,
    migrations: WriteMigrations,
    opened: contextlib.ExitStack,
    name: str,
) -> None:
    """As far as the role can; what it lacks is said, and what must be granted is named."""
    cloud = clouds.CLOUDS[name]
    user = f"app_{name.replace(' ', '_')}"
    database = clouds.make(provider, cloud, user)
    migrations(FILES)
    env = {
        **database.env(user, clouds.PASSWORD),
        "PREFLIGHT_FIRST_CONTACT": "pending",
        "PREFLIGHT_REHEARSE": "auto",
        "PREFLIGHT_REHEARSE_ON": "server",
    }
    if cloud.own_keys:
        env |= opened.enter_context(faults.through(provider, faults.OwnKeys())).env()
    if cloud.grants:
        refused = run(env=env)
        error = refused.finished["error"]
        assert error["code"] in {"backup.not_readable", "target.denied"}, str(refused)
        assert cloud.asks_for in error["message"]
        assert "GRANT" in error["hint"]
        database.script(cloud.grants.format(user=user))
    result = run(env=env)

    assert (0, ["001_toys"]) == (result.code, result.finished["applied"]), str(result)
    passed, skipped = result.event("rehearsal.passed"), result.event("rehearsal.skipped")
    assert 1 == len(passed) + len(skipped), str(result)
    assert all("restored" == each["verified"] for each in passed)
    assert all(each["reason"] for each in skipped)
    assert 0 == run("rollback", env=env).code
