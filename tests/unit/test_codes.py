"""The comparison of the error codes that tests have met with those that there are."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from preflight.base import config, errors
from preflight.commands import install
from tests import codes, servers, tools

TOOL = f"{tools.LACKING}pgbackrest is not on PATH"


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> codes.Notes:
    """Note elsewhere what this test meets: it is no meeting."""
    apart = codes.Notes()
    apart.directory = tmp_path
    monkeypatch.setattr(codes, "NOTES", apart)
    return apart


def test_code_counts_as_met_once_a_run_has_ended_with_it(notes: codes.Notes) -> None:
    """Whatever stands around its last line, and whoever else named it."""
    codes.told(
        'no JSON "run.finished"\n{"event": "run.finished", "exit_code": 0}\n',
        '{"event": "run.failed", "error": {"code": "lock.fence"}}\n'
        '{"event": "run.finished", "error": {"code": "lock.busy"}}\n',
    )

    assert {("ended", "lock.busy")} == notes.met()


def test_failure_that_a_test_makes_itself_is_not_met(notes: codes.Notes) -> None:
    """Only what the program's own lines make is noted, and as raised alone."""
    errors.LockBusy("lock.busy", "made by a test")
    errors.LockBusy.of("lock.fence", [errors.Problem("made by a test")])
    with pytest.raises(errors.ConfigInvalid):
        install.run(config.Config({}, {}, Path("/")), directory=Path("/nowhere"))

    assert {("raised", "install.not_here")} == notes.met()


RAISED = next(iter(codes.RAISED_ONLY))
WANTED = ["lock.busy", RAISED, *codes.WITH_DOCKER]


@pytest.mark.parametrize(
    ("seen", "skipped", "failing", "excused"),
    [
        ({("ended", "lock.busy"), ("ended", RAISED)}, [], [], []),
        ({("ended", "lock.busy"), ("raised", RAISED)}, [TOOL], [], []),
        ({("raised", "lock.busy"), ("raised", RAISED)}, [TOOL], ["lock.busy"], []),
        ({("ended", "lock.busy")}, [], [RAISED], []),
        (set(), [TOOL, "no PostgreSQL 13: npm is missing"], [], sorted(["lock.busy", RAISED])),
    ],
)
def test_code_that_no_test_has_met_fails_the_run_and_is_named(
    seen: set[tuple[str, str]], skipped: list[str], failing: list[str], excused: list[str]
) -> None:
    """Unless tests were skipped that may have been the ones: then it is said."""
    found = codes.unmet(WANTED, seen, skipped)

    assert codes.Unmet(tuple(failing), tuple(excused)) == found
    assert failing == [line.split()[-1] for line in found.lines() if "FAILED" in line]
    assert len(failing + excused) == len(found.lines())


def test_exceptions_are_codes_with_a_reason_each_in_one_place_only() -> None:
    """A code that is gone is gone from there as well."""
    tables = (codes.RAISED_ONLY, codes.WITH_DOCKER)
    excepted = [code for table in tables for code in table]

    assert [] == sorted({*excepted} - {*codes.documented()})
    assert len({*excepted}) == len(excepted)
    assert all(reason for table in tables for reason in table.values())


def test_run_is_told_which_codes_none_of_its_tests_has_met() -> None:
    """All its tests have passed, and it is a failed run."""
    wanted = "install.not_here,lock.busy"
    asked = ["-q", "-n", "0", "-p", "no:cacheprovider", "-k", "itself and not_here"]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *asked, f"--codes={wanted}", "tests/unit/test_install.py"],
        cwd=servers.REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )

    named = re.findall(r"FAILED no test has met the error code (\S+)", ended.stdout)
    assert (1, ["lock.busy"]) == (ended.returncode, named), ended.stdout + ended.stderr
    assert "1 passed" in ended.stdout
