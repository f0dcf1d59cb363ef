"""Regular expressions that mean the same to each Python that the program runs with."""

import json
import os
import pathlib
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


def _pythons() -> list[str]:
    """List each Python of this machine that the program runs with, the tests' own among them."""
    root = pathlib.Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    named = [shutil.which(f"python3.{minor}") for minor in range(11, 20)]
    paths = [sys.executable, "/usr/bin/python3", *filter(None, named)]
    paths += map(str, root.glob("versions/*/bin/python3"))
    found: dict[str, str] = {}
    for each in paths:
        asked = "import sys; print(*sys.version_info[:3]); sys.exit(sys.version_info < (3, 11))"
        try:
            said = subprocess.run([each, "-c", asked], check=False, capture_output=True, text=True)
        except OSError:  # not here
            continue
        if not said.returncode:
            found.setdefault(said.stdout, each)
    return list(found.values())


@pytest.mark.parametrize("python", _pythons())
def test_files_are_cut_alike_by_every_python(python: str) -> None:
    """By each that the machine has beside the one that runs the tests: Debian 12 has 3.11.2."""
    folders = (servers.REPOSITORY / "migrations", servers.REPOSITORY / "tests")
    files = [each.read_text("utf-8") for folder in folders for each in folder.rglob("*.sql")]
    (version, cut), (_, ours) = (
        json.loads(
            subprocess.run(
                [each, "-c", CUT],
                cwd=servers.REPOSITORY,
                input=json.dumps([*SAMPLES, *files]),
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for each in (python, sys.executable)
    )

    assert unloadable.LEAST <= tuple(version)
    assert [2, 3, 2, 2, 2, 2, 3, 2] == [len(each) for each in cut[: len(SAMPLES)]]
    assert ours == cut
