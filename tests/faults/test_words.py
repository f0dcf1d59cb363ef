"""What people type who know another migrator: each word of its help leads to what does it here."""

import re
from collections.abc import Callable

import pytest

from preflight.base.errors import ConfigInvalid
from preflight.commands import arguments, registry
from tests import migrators, tools

ALEMBIC = ("alembic", "sqlalchemy", "psycopg[binary]", "asyncpg", "greenlet")
# what prints the help of each, got as the tests of its files get it
HELPS: dict[str, Callable[[], list[object]]] = {
    "alembic": lambda: [tools.python(*ALEMBIC), "-m", "alembic", "--help"],
    "dbmate": lambda: [tools.dbmate(), "--help"],
    "golang-migrate": lambda: [tools.go("migrate"), "-help"],
    "goose": lambda: [tools.go("goose"), "-h"],
    "knex": lambda: [tools.npm(*migrators.NODE) / ".bin/knex", "--help"],
}
COMMAND = re.compile(r"^ {2,4}([a-z][\w:-]+)(?:[,|] ?([\w:-]{3,}))?", re.MULTILINE)
# what nobody here does in any way: several heads, templates, data for trying out
NOTHING = {"ensure_version", "list_templates", "merge", "seed:make", "seed:run"}


@pytest.mark.parametrize("name", HELPS)
def test_words_of_another_tool_s_help_lead_to_ours(name: str) -> None:
    """A hint names the command of ours, or it is one of ours itself."""
    done = tools.call(HELPS[name]())
    said = re.split(r"(?im)^(?:commands|positional arguments):", done.stdout + done.stderr)[-1]
    words = {word for found in COMMAND.findall(said) for word in found if word} - NOTHING
    ours = {*registry.COMMANDS, "version", "help"}

    assert {"up", "upgrade", "migrate:latest"} & words
    for word in sorted(words - ours):
        with pytest.raises(ConfigInvalid) as failure:
            arguments.parse([word])
        hint = failure.value.problem.hint or ""
        named = re.findall(r"`([a-z]+)[ `]|Did you mean ([a-z]+)\?", hint)
        assert {each for found in named for each in found if each} & ours, f"{word}: {hint}"
