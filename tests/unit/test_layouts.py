"""What a folder's names mean: our own rule, and that another one fits."""

import re
from pathlib import Path

import pytest

from preflight.base.errors import FilesInvalid
from preflight.files import reading
from preflight.files.layout import KINDS, NATIVE, Source


class Toy:
    """A folder whose files are called `V2__add_email.sql` and `U2__add_email.sql`."""

    hint = "Name it V2__title.sql."
    _name = re.compile(r"(?P<kind>[VU])(?P<version>\d+)__(?P<title>\w+)\.sql")

    def counts(self, file: str) -> bool:
        """Tell whether it is SQL."""
        return file.endswith(".sql")

    def source(self, file: str) -> Source | None:
        """Read the name."""
        if (named := self._name.fullmatch(file)) is None:
            return None
        kind = "up" if named["kind"] == "V" else "rollback"
        return Source(int(named["version"]), named["title"], kind)

    def file(self, name: str, kind: str) -> str:
        """Write the name, as far as it is known without the number."""
        return f"{'U' if kind == 'rollback' else 'V'}...__{name}.sql"


def test_another_tools_folder_can_be_read(tmp_path: Path) -> None:
    """All that is judged is the same; only what a name means is another rule."""
    for name in ("V2__add_email.sql", "U2__add_email.sql", "V10__more.sql"):
        (tmp_path / name).write_text("SELECT 1;\n")

    found = reading.load(tmp_path, Toy())

    assert [(2, "add_email", True), (10, "more", False)] == [
        (each.version, each.name, each.rollback is not None) for each in found
    ]
    assert {"migration": "add_email", "version": 2} == found[0].up.named


def test_another_tools_rule_says_what_it_wants(tmp_path: Path) -> None:
    """A name that it does not know is refused in its own words, as is a companion alone."""
    for name in ("V2__add_email.sql", "001_ours.sql", "U3__alone.sql"):
        (tmp_path / name).write_text("SELECT 1;\n")

    with pytest.raises(FilesInvalid) as failure:
        reading.load(tmp_path, Toy())

    told = {each.file: f"{each.message} {each.hint}" for each in failure.value.problems}
    assert "V2__title.sql" in told["001_ours.sql"]
    assert "V...__alone.sql" in told["U3__alone.sql"]


@pytest.mark.parametrize("kind", ["up", *KINDS])
def test_name_and_part_are_found_again(kind: str) -> None:
    """What the rule writes is what it reads."""
    assert Source(7, "007_a_b", kind) == NATIVE.source(NATIVE.file("007_a_b", kind))
