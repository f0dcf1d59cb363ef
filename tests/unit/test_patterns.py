"""Regular expressions that mean the same to each Python that the program runs with."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from re import _constants, _parser  # type: ignore[attr-defined]

import pytest

from preflight.base import unloadable
from tests import servers

COMPILED = """
import importlib, json, pkgutil, re, sys
compiled, found = re._compile, set()
def _compile(pattern, flags):
    if isinstance(pattern, str | bytes):
        text = pattern if isinstance(pattern, str) else pattern.decode("latin-1")
        found.add((text, int(flags)))
    return compiled(pattern, flags)
re._compile = _compile
import preflight
for each in pkgutil.walk_packages(preflight.__path__, "preflight."):
    importlib.import_module(each.name)
from preflight.files import parser, scan
parser._rows(), scan._run(escaped=False), scan._run(escaped=True)
json.dump(sorted(found), sys.stdout)
"""
CUT = """
import json, sys
from preflight.files import scan
files = json.load(sys.stdin)
cut = [[repr(each) for each in scan.items(text.encode())] for text in files]
json.dump([sys.version_info[:3], cut], sys.stdout)
"""
SAMPLES = (
    "-- preflight: no-transaction\nVACUUM;",
    "SELECT 1 -- preflight: x\n; SELECT 2;",
    "SELECT 'a' -- it's one; text\n; SELECT 2;",
    "SELECT 'a'\n'b' -- isn't; it\n; SELECT 2;",
    "SELECT E'a\\'b' -- it's; one\n, E'' /* ; */ ; SELECT 2;",
    "-- +goose StatementBegin\nSELECT 1;\n-- +goose StatementEnd\nSELECT 2;",
    "SET /* it's */ standard_conforming_strings -- off;\n = off; SELECT 'a\\';'; SELECT 2;",
    "INSERT INTO t VALUES (1, 'a'), (2, 'b;'), nothing; SELECT 2;",
)


def test_possessive_group_takes_nothing_in_the_end() -> None:
    """A Python before 3.11.5 goes on in the wrong place after a try that fails part-way."""
    run = [sys.executable, "-c", COMPILED]
    said = subprocess.run(run, cwd=servers.REPOSITORY, check=True, capture_output=True).stdout
    patterns = [(text, flags) for text, flags in json.loads(said)]
    bound = [text for text, flags in patterns if any(_bound(_parser.parse(text, flags)))]

    assert any("*+" in text for text, _ in patterns)
    assert [] == bound


def _bound(pattern: _parser.SubPattern) -> Iterator[bool]:
    """Yield whether each possessive group of a pattern has to match something."""
    for kind, of in pattern:
        if kind is _constants.POSSESSIVE_REPEAT:
            least, _, group = of
            last = group[0][1][1][-1] if group[0][0] is _constants.BRANCH else group
            yield not _of_one(group) and (least > 0 or bool(len(last)))
        todo = [of]
        while todo:
            each = todo.pop()
            if isinstance(each, _parser.SubPattern):
                yield from _bound(each)
            elif isinstance(each, tuple | list):
                todo.extend(each)


def _of_one(group: _parser.SubPattern) -> bool:
    """Tell whether a group is one character, which is another instruction."""
    one = (_constants.LITERAL, _constants.NOT_LITERAL, _constants.IN, _constants.ANY)
    return len(group) == 1 and group[0][0] in one


@pytest.mark.parametrize("name", ["/usr/bin/python3", "python3.11", "python3.12", "python3.13"])
def test_files_are_cut_alike_by_every_python(name: str) -> None:
    """By those that a system has beside the one that runs the tests: Debian 12 has 3.11.2."""
    other = shutil.which(name)
    runs = "import sys; sys.exit(sys.version_info < (3, 11))"
    if other is None or subprocess.run([other, "-c", runs], check=False).returncode:
        pytest.skip(f"no {name} here, or none that is recent enough")
    folders = (servers.REPOSITORY / "migrations", servers.REPOSITORY / "tests")
    files = [each.read_text("utf-8") for folder in folders for each in folder.rglob("*.sql")]
    cut = [
        json.loads(
            subprocess.run(
                [python, "-c", CUT],
                cwd=servers.REPOSITORY,
                input=json.dumps([*SAMPLES, *files]),
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for python in (other, sys.executable)
    ]

    assert unloadable.LEAST <= tuple(cut[0][0])
    assert cut[1][1] == cut[0][1], cut[0][0]
