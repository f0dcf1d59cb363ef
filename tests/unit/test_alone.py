"""One target of a fleet by hand: the variables that lead a command to it, and no secret in them."""

import ast
import json
import re
from pathlib import Path

import pytest

from preflight.base.config import Config
from preflight.commands.fleet import alone, targets
from preflight.server import dial
from tests import servers

LIBPQ = {"PGHOST": "db", "PGUSER": "u", "PGDATABASE": "d", "PGPASSWORD": "secret"}
OURS = {"POSTGRES_HOST": "db", "POSTGRES_DB": "d", "POSTGRES_PASSWORD": "secret"}
URL = {"DATABASE_URL": "postgresql://u:secret@db/d"}
SCHEMA = {"schema": "p_own", "search_path": "own, public"}


def target(
    environ: dict[str, str], said: dict[str, str], folder: Path, more: str = ""
) -> targets.Target:
    """Return the only target of a file."""
    (folder / "url").write_text(f"postgresql://u:secret@far/d?{more}\n")
    path = folder / "targets.jsonl"
    path.write_text(json.dumps({"name": "one", **said}))
    (found,) = targets.listed(Config.from_env(environ, Path("/"), "run"), path)
    return found


@pytest.mark.parametrize(
    ("environ", "said", "expected"),
    [
        (LIBPQ, {"database": "other"}, "PGDATABASE=other"),
        (OURS, {"database": "an other"}, "POSTGRES_DB='an other'"),
        ({"PGHOST": "db"}, {"database": "other"}, "PGDATABASE=other"),
        (LIBPQ | OURS, {"database": "e"}, "PGDATABASE=e POSTGRES_DB=e"),
        (URL, {"database": "other"}, None),  # it would have to be written anew, password and all
        (
            URL,
            SCHEMA,
            r"PREFLIGHT_SCHEMA=p_own PREFLIGHT_SCHEMAS=own PGOPTIONS='-c search_path=own,\ public'",
        ),
        (
            LIBPQ | {"PGOPTIONS": "-c my.key=secret"},
            {"role": "r"},
            """PGOPTIONS="$PGOPTIONS "'-c role=r'""",
        ),
        ({"DATABASE_URL": "postgresql://db/d?options=-cgeqo%3Doff"}, SCHEMA, None),
        (
            LIBPQ,
            {"search_path": '"a,b"'},
            """PREFLIGHT_SCHEMAS='"a,b"' PGOPTIONS='-c search_path="a,b"'""",
        ),
        (
            LIBPQ,
            {"url_file": "url"},
            "env -u PGDATABASE -u PGHOST -u PGPASSWORD -u PGUSER DATABASE_URL_FILE={}/url",
        ),
        (
            {"PGHOST": "db", "PGPORT": "7777"},
            {"url_file": "url"},
            "env -u PGHOST -u PGPORT DATABASE_URL_FILE={}/url",
        ),
        (URL, {"url_file": "url"}, "env -u DATABASE_URL DATABASE_URL_FILE={}/url"),
        (LIBPQ, {"url_file": "url", "database": "other"}, None),
    ],
)
def test_variables_lead_to_one_target(
    environ: dict[str, str], said: dict[str, str], expected: str | None, tmp_path: Path
) -> None:
    """As a shell takes them before a command; what they cannot say is left to the page."""
    found = alone.variables(target(environ, said, tmp_path))

    assert (expected and expected.format(tmp_path)) == found
    assert "secret" not in str(found)


def test_url_without_a_port_means_the_usual_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file's URL is whole: PGPORT is of the fleet's own server. What is said agrees with that."""
    environ = LIBPQ | {"PGPORT": "7777", "PREFLIGHT_REHEARSE_URL": "postgresql://u@other/d"}
    monkeypatch.setenv("PGPORT", "7777")
    own, far = (target(environ, said, tmp_path).config for said in ({}, {"url_file": "url"}))
    by_service = target(environ, {"url_file": "url"}, tmp_path, "service=s").config

    assert "db:7777" == dial.called(own.target)
    assert ("far:5432", "5432") == (dial.called(far.target), far.target["port"])
    assert "other:5432" == dial.called(own.rehearse_url or {})
    assert "port" not in by_service.target


@pytest.mark.parametrize("said", ["postgresql:///d", "hostaddr=10.0.0.9 dbname=d"])
def test_url_that_names_no_host_means_the_configured_one(said: str, tmp_path: Path) -> None:
    """Its port goes with it, as libpq has both: PGHOST and PGPORT are of one server."""
    environ = LIBPQ | {"PGPORT": "7777", "PREFLIGHT_REHEARSE_URL": said}
    url = target(environ, {}, tmp_path).config.rehearse_url or {}
    assert ("5432" if "hostaddr" in url else None) == url.get("port")


@pytest.mark.parametrize(
    ("environ", "said", "hint", "expected"),
    [
        (LIBPQ, {"database": "e"}, "`adopt 2`.", " For this target alone, by hand: `PGDATABASE=e "),
        (URL, {"database": "e"}, "`force 2`.", f" For this target alone, by hand: {alone.PAGE}."),
        (LIBPQ, {"database": "e"}, "Run `up`.", ""),
        (LIBPQ, {}, "`adopt 2`.", ""),
    ],
)
def test_next_step_leads_to_the_target(
    environ: dict[str, str], said: dict[str, str], hint: str, expected: str, tmp_path: Path
) -> None:
    """Where it names a command that is not of many."""
    told = alone.told(target(environ, said, tmp_path), {"code": "a.b", "hint": hint})

    assert told["hint"].startswith(hint + expected)
    assert bool(expected) == (told["hint"] != hint)


@pytest.mark.parametrize(
    ("url", "password"),
    [
        ("postgresql://u@far/d", ""),
        ("postgresql://u:its@far/d", "its"),
        ("postgresql:///d?service=far", None),
    ],
)
def test_password_of_the_service_is_not_for_a_target_s_own_server(
    url: str, password: str | None, tmp_path: Path
) -> None:
    """Where its URL says none, libpq would offer it; a service of its own has its own."""
    (tmp_path / "own").write_text(url)
    found = target({"PGSERVICE": "live"}, {"url_file": "own"}, tmp_path)

    assert password == found.config.target.get("password")


def test_command_without_its_value_is_none_to_type(tmp_path: Path) -> None:
    """What ends in such an option is words about it, and leads nowhere by hand."""
    found = target(LIBPQ, SCHEMA, tmp_path)
    for said in ("rollback --to", "adopt --through"):
        assert {"hint": f"`{said}` helps."} == alone.told(found, {"hint": f"`{said}` helps."})
    assert "rollback --to 2`." in alone.told(found, {"hint": "`rollback --to 2`"})["hint"]


def test_commands_that_are_said_have_their_values() -> None:
    """What stands in backticks of a message can be typed, or names in capitals what is missing."""
    said = []
    for path in (servers.REPOSITORY / "preflight").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        said += [
            (path.name, node.lineno)
            for node in nodes
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
            if id(node) not in docstrings
            if re.search("--(to|through|into|targets|each-database|skip|waves)`", node.value)
        ]

    assert [] == said
