"""Verdicts, a sample of them: `make verdicts` puts databases together for as long as it is told."""

import threading
from collections.abc import Callable
from concurrent import futures
from pathlib import Path

import pytest

from tests import servers
from tests.conftest import StartServer
from tests.faults import scarce, verdicts

MAJORS = (15, 16, 17, 18)
SAMPLE = range(1, 5)  # one on each: a minute


@pytest.mark.parametrize(
    ("number", "major"),
    [
        pytest.param(
            number, MAJORS[number % 4], marks=pytest.mark.xdist_group(f"pg{MAJORS[number % 4]}")
        )
        for number in SAMPLE
    ],
)
def test_whole_database_is_never_called_bad_and_a_damaged_dump_always_is(
    running: Callable[[int], servers.Server], tmp_path: Path, number: int, major: int
) -> None:
    """Whatever it holds, whoever owns it, whoever writes to it meanwhile."""
    said = verdicts.judge(running(major), tmp_path / "home", f"sample/{number}", number)
    if said.wrong:
        pytest.fail(said.wrong)  # all of it: it may not come again


def test_rows_that_only_a_provider_may_write_are_no_reason_against_a_proof(
    start_server: StartServer, tmp_path: Path
) -> None:
    """They are of an extension of his; a table of the app's that is called so has to be there."""
    server = verdicts.extended(start_server(18))
    said = verdicts.judge(server, tmp_path / "home", "provider/111", 111)
    if said.wrong:
        pytest.fail(said.wrong)


def test_what_pg_dump_can_do_on_a_server_with_little_the_program_can(
    start_server: StartServer, tmp_path: Path
) -> None:
    """Beside a stranger who leaves it no more locks than it needs."""
    said = scarce.judge(start_server(17), tmp_path / "home", "s/6")
    if said.wrong:
        pytest.fail(said.wrong)
    assert said.things > 0


def test_backups_that_writers_keep_away_may_be_few() -> None:
    """One of ten, on a machine that is busy; among a few databases it says nothing."""
    shares = [(0, 100), (10, 100), (11, 100), (2, 20), (3, 20), (19, 19)]

    assert [False, False, True, False, True, False] == [
        verdicts.too_many(moved, done) for moved, done in shares
    ]


THINGS = """
CREATE TABLE things (id int PRIMARY KEY, n int DEFAULT 7 CHECK (n > 0));
INSERT INTO things VALUES (1);
ALTER TABLE things ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON things USING (n < 9);
CREATE FUNCTION same() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END';
CREATE TRIGGER kept BEFORE INSERT ON things FOR EACH ROW EXECUTE FUNCTION same();
CREATE TABLE more (id int CONSTRAINT of_things REFERENCES things);
CREATE SEQUENCE moved; SELECT setval('moved', 9);
CREATE SEQUENCE down INCREMENT -1; SELECT setval('down', -9);
"""


@pytest.mark.parametrize(
    "kind", ["CONSTRAINT", "POLICY", "SEQUENCE SET public moved", "SEQUENCE SET public down"]
)
def test_copy_that_lost_any_one_object_is_no_proof(
    database: servers.Database, environment: dict[str, str], tmp_path: Path, kind: str
) -> None:
    """Each kind that can be lost without an error, where all rows are there."""
    database.script(THINGS)
    env = environment | {"PREFLIGHT_REHEARSE": "auto"}
    over = threading.Event()

    def go_on() -> None:
        with database.server.connect(database.name) as session:
            while not over.wait(0.01):
                session.execute("SELECT nextval('moved'), nextval('down')")

    with futures.ThreadPoolExecutor(1) as pool:
        writer = pool.submit(go_on)
        try:
            assert "" == verdicts.poorer(env, tmp_path, kind, [kind])
        finally:
            over.set()
        writer.result()
    assert f" {kind} " in (tmp_path / "loses/lost").read_text()
