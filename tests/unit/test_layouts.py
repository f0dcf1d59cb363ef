"""What a folder's names mean: our own rule, and that another one fits."""

import dataclasses
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from preflight.apply import back
from preflight.base import config
from preflight.base.errors import ConfigInvalid, FilesInvalid, HistoryConflict
from preflight.commands import command, convert
from preflight.files import folder, foreign, reading
from preflight.files.layout import KINDS, NATIVE, Source
from preflight.files.layouts import flyway
from preflight.history import numbers, plan
from preflight.quick import door, told
from tests import program, servers, tools
from tests.conftest import Run


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


@pytest.mark.parametrize(
    ("files", "pipe"),
    [
        (["001_x.up.sql"], "002_y.up.sql"),
        (["V1__x.sql"], "V1__x.sql.conf"),
        (["2024-01-01-000000_x/up.sql"], "2024-01-01-000000_x/metadata.toml"),
        (["deploy/a.sql"], "sqitch.plan"),
    ],
    ids=["sqlx", "flyway", "diesel", "sqitch"],
)
def test_pipe_in_another_tools_folder_hangs_nobody(
    files: list[str], pipe: str, tmp_path: Path
) -> None:
    """It is no file, and named; nobody would ever write into it."""
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("SELECT 1;\n")
    os.mkfifo(tmp_path / pipe)
    command = [sys.executable, str(servers.REPOSITORY / "entrypoint.py"), "lint"]
    env = {"PREFLIGHT_MIGRATIONS_DIR": str(tmp_path)}

    result = subprocess.run(command, env=env, capture_output=True, timeout=60, check=False)

    (error,) = (each["error"] for each in program.parse(result.stdout.decode()) if "error" in each)
    assert result.returncode in {20, 25}, result
    assert "not a regular file" in error["message"]
    assert Path(pipe).name in error["message"]


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


# --- other tools' folders -------------------------------------------------------------------------


def configured(directory: Path, layout: str = "auto") -> config.Config:
    """Return a configuration that knows a folder and no server."""
    return config.Config(target={}, child_env={}, migrations_dir=directory, layout=layout)


def written(directory: Path, files: Mapping[str, str]) -> config.Config:
    """Write a folder and return the configuration that names it."""
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    return configured(directory)


def refused(found: config.Config) -> list[str]:
    """Return what is wrong with a folder."""
    with pytest.raises(FilesInvalid) as failure:
        numbers.settled(folder.load(found), plan.History())
    return [problem.message for problem in failure.value.problems]


def graphile(previous: str, body: str) -> tuple[str, str]:
    """Return a committed file and its hash, as graphile-migrate makes them."""
    before = "" if previous == "-" else previous
    text = f"{before}\n{body}".strip() + "\n"
    digest = f"sha1:{hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()}"
    return f"--! Previous: {previous}\n--! Hash: {digest}\n\n{body}", digest


FIRST, DIGEST = graphile("-", "SELECT 1;\n")
FOLDERS = {
    "golang-migrate": (
        {"2_b.up.sql": "SELECT 1;", "10_c.up.sql": "SELECT 1;", "2_x.down.sql": "SELECT 2;"},
        [("2_b", ""), ("10_c", "")],
    ),
    "dbmate": (
        {"01_b.sql": "-- migrate:up\nSELECT 1;\n-- migrate:down\nSELECT 2;\n"},
        [("01_b", "")],
    ),
    "goose": (
        {"001_b.sql": "-- +goose Up\nSELECT 1;\n-- +goose Down\nSELECT 2;\n"},
        [("001_b", "")],
    ),
    "flyway": (
        {
            "V1.9__a.sql": "SELECT 1;",
            "sub/V1_10__b.sql": "SELECT 1;",
            "V1__z.sql": "SELECT 1;",
            "U1_9__a.sql": "SELECT 2;",
            "notes.txt": "",
            "createTables.sql": "of no version, and no callback",
        },
        [("V1__z", "1"), ("V1.9__a", "1.9"), ("V1_10__b", "1.10")],
    ),
    "prisma": (
        {
            "migration_lock.toml": "",
            "01_init/migration.sql": "SELECT 1;",
            "01_init/down.sql": "SELECT 2;",
            "02_more/migration.sql": "SELECT 1;",
        },
        [("01_init", "01_init"), ("02_more", "02_more")],
    ),
    "diesel": (
        {
            "2019-02-26-002946_b/up.sql": "SELECT 1;",
            "2019-02-26-002946_b/down.sql": "SELECT 2;",
            "00000000000000_a/up.sql": "SELECT 1;",
        },
        [("00000000000000_a", "00000000000000"), ("2019-02-26-002946_b", "20190226002946")],
    ),
    "graphile": ({"committed/000001-a.sql": FIRST}, [("000001-a", "")]),
    "sqitch": (
        {
            "sqitch.plan": "%syntax-version=1.0.0\n%project=app\n\n"
            "b 2024-01-01T00:00:00Z A <a@b> # b\na [b] 2024-01-01T00:00:00Z A <a@b> # a\n",
            "deploy/a.sql": "SELECT 1;",
            "deploy/b.sql": "BEGIN;\nSELECT 1;\nCOMMIT;\n",
            "revert/b.sql": "SELECT 2;",
        },
        [("b", "b"), ("a", "a")],
    ),
    "sqlx": (
        {"1_a.up.sql": "-- no-transaction\nVACUUM;\n", "1_a.down.sql": "SELECT 2;"},
        [("1_a", "")],
    ),
    "ours": ({"20240101000000_a.sql": "SELECT 1;"}, [("20240101000000_a", "")]),
}


@pytest.mark.parametrize("tool", FOLDERS)
def test_folder_says_whose_it_is(tool: str, tmp_path: Path) -> None:
    """By marks and names alone; versions come in the order of its own tool."""
    files, expected = FOLDERS[tool]

    found = folder.load(written(tmp_path, files))

    assert (tool, expected) == (found.tool, [(each.name, each.label) for each in found])
    backward = [each.rollback for each in found if each.rollback]
    assert all(b"SELECT 2" in each.text and b"SELECT 1" not in each.text for each in backward)
    assert any("SELECT 2" in text for text in files.values()) == bool(backward)


def test_way_forward_that_golang_migrate_misses_is_empty(tmp_path: Path) -> None:
    """It is a version all the same; what the file beside it says speaks for the way back alone."""
    files = {
        "1_a.up.sql": "SELECT 1;",
        "2_b.down.sql": "-- preflight: no-transaction\nSELECT 2;",
        "preflight/verify_2_b.sql": "SELECT true;",
    }

    _, found = folder.load(written(tmp_path, files))

    assert found.rollback is not None
    assert found.verify is not None
    assert ("2_b", [], True, hashlib.sha256().hexdigest()) == (
        found.name, [*found.up.statements()], found.up.transactional, found.checksum,
    )  # fmt: skip
    assert (1, False) == (len([*found.rollback.statements()]), found.rollback.transactional)
    written(tmp_path, {"2_c.down.sql": "SELECT 2;"})
    assert ["version 2 is claimed by 2_b.down.sql (up) and 2_c.down.sql (up)"] == refused(
        configured(tmp_path)
    )


@pytest.mark.parametrize("tool", sorted({*FOLDERS} - {"ours"}))
def test_layout_that_is_named_is_the_one_that_is_found(tool: str, tmp_path: Path) -> None:
    """`auto` and the tool's own name read the same."""
    found = written(tmp_path, FOLDERS[tool][0])

    assert tuple(folder.load(found)) == tuple(folder.load(configured(tmp_path, tool)))


UNBOUND = {
    "golang-migrate": {"1_a.up.sql": "CREATE INDEX CONCURRENTLY i ON a (x);"},
    "dbmate": {"1_a.sql": "-- migrate:up transaction:false\nVACUUM;\n"},
    "goose": {"1_a.sql": "-- +goose NO TRANSACTION\n-- +goose Up\nVACUUM;\n"},
    "flyway": {"V1__a.sql": "VACUUM;\nSELECT 1;", "V1__a.sql.conf": "executeInTransaction=false"},
    "prisma": {"1_a/migration.sql": "CREATE INDEX CONCURRENTLY i ON a (x);"},
    "diesel": {"1_a/up.sql": "VACUUM;", "1_a/metadata.toml": "run_in_transaction = false"},
    "sqlx": {"1_a.up.sql": "-- no-transaction\nVACUUM;\n"},
    "sqlx, plain": {"1_a.sql": "-- no-transaction\nVACUUM;\n"},
    "sqlx, as ours": {"001_a.sql": "-- no-transaction\nVACUUM;\nSELECT 1;\n"},
    "graphile": {"committed/000001.sql": graphile("-", "--! no-transaction\nVACUUM;\n")[0]},
}


@pytest.mark.parametrize("tool", UNBOUND)
def test_each_tools_mark_for_no_transaction_is_ours(tool: str, tmp_path: Path) -> None:
    """Also in the history, which a later image reads without the file or what stood beside it."""
    (found,) = folder.load(written(tmp_path, UNBOUND[tool]))

    kept = reading.kept(1, "x", "up", found.up.kept)

    assert (False, False) == (found.up.transactional, kept.transactional)
    assert [each.text(found.up.text) for each in found.up.statements()] == [
        each.text(kept.text) for each in kept.statements()
    ]


@pytest.mark.parametrize(
    ("up", "down"), [("-- +goose Up", "-- +goose Down"), ("-- migrate:up", "-- migrate:down")]
)
def test_directives_above_all_marks_speak_for_the_file(
    up: str, down: str, run_bare: Run, tmp_path: Path
) -> None:
    """At the top, where ours stand; what is hashed stays the section, whose places stay true."""
    body = f"{up}\nSELECT 1;\n"
    head = "-- preflight: breaking\n-- preflight: lock-timeout 30s\n-- preflight: max-lock 10s\n"
    back = f"{down}\n-- preflight: lock-timeout 2s\nSELECT 2;\n"
    (file,) = folder.load(written(tmp_path / "theirs", {"1_a.sql": head + body + back}))
    assert file.rollback is not None

    done = run_bare("convert", str(tmp_path / "theirs"), str(tmp_path / "ours"))

    (ours,) = reading.load(tmp_path / "ours")
    assert (True, 30_000, 10_000) == (
        file.up.breaking,
        file.up.lock_timeout_ms,
        file.up.max_lock_ms,
    )
    assert (False, 2_000, 10_000) == (
        file.rollback.breaking,
        file.rollback.lock_timeout_ms,
        file.rollback.max_lock_ms,
    )
    assert hashlib.sha256(body.encode()).hexdigest() == file.checksum
    assert (5, 8) == tuple(
        each.text[: next(each.statements()).start].count(b"\n") + 1
        for each in (file.up, file.rollback)
    )
    assert (0, True, 30_000) == (done.code, ours.up.breaking, ours.up.lock_timeout_ms), str(done)
    wrong = head.replace("lock-timeout", "lock-timout") + body + back
    (told,) = refused(written(tmp_path / "wrong", {"1_a.sql": wrong}))
    assert "1_a.sql:2:1: unknown directive 'lock-timout 30s'" == told


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("BEGIN;\nSELECT 1;\nCOMMIT;\n", []),
        ("BEGIN;\nVACUUM;\nCOMMIT;\n", ["cannot run inside a transaction"]),
        ("SELECT 1;\nBEGIN;\nCOMMIT;\n", ["transaction control"] * 2),
    ],
)
@pytest.mark.parametrize(
    ("name", "mark"),
    [
        ("001_a.sql", "-- no-transaction"),
        ("1_a.sql", "-- migrate:up transaction:false"),
        ("1_a.sql", "-- +goose NO TRANSACTION\n-- +goose Up"),
    ],
)
def test_file_that_opens_its_own_transaction_runs_in_one(
    name: str, mark: str, text: str, problems: list[str], tmp_path: Path
) -> None:
    """The tool opens none around it, and the file one of its own: all of it or nothing."""
    found = written(tmp_path, {name: f"{mark}\n{text}"})

    if problems:
        told = refused(found)
        assert len(problems) == len(told)
        assert all(words in each for words, each in zip(problems, told, strict=True))
    else:
        assert [(True, True)] == [
            (each.up.transactional, each.up.wrapped) for each in folder.load(found)
        ]


def test_words_behind_the_mark_of_sqlx_make_it_a_comment_of_ours(tmp_path: Path) -> None:
    """In our own layout only the bare line is a mark: more may say the opposite."""
    text = "-- no-transaction is wrong here\nUPDATE a SET x = 1;\nUPDATE b SET x = 1;\n"

    (found,) = folder.load(written(tmp_path, {"001_a.sql": text}))

    assert found.up.transactional


def test_metadata_of_diesel_without_a_word_is_no_transaction(tmp_path: Path) -> None:
    """Diesel CLI reads a key that is not there as false, where the file is there."""
    (found,) = folder.load(written(tmp_path, {"1_a/up.sql": "VACUUM;", "1_a/metadata.toml": ""}))

    assert not found.up.transactional


def test_word_that_begins_as_a_mark_of_dbmate_is_none(tmp_path: Path) -> None:
    """`migrate:update` is a comment there."""
    text = "-- migrate:up\nSELECT 1;\n-- migrate:update the rest by hand\nSELECT 2;\n"

    (found,) = folder.load(written(tmp_path, {"1_a.sql": text}))

    assert ["SELECT 1", "SELECT 2"] == [
        each.text(found.up.text).decode().split("\n")[-1] for each in found.up.statements()
    ]


MIXED = "SELECT 1;\nVACUUM;\n"
OUTSIDE = {
    "dbmate": ({"1_a.sql": f"-- migrate:up\n{MIXED}"}, "transaction:false"),
    "goose": ({"1_a.sql": f"-- +goose Up\n{MIXED}"}, "+goose NO TRANSACTION"),
    "flyway": ({"V1__a.sql": MIXED}, "executeInTransaction=false"),
    "sqlx": ({"1_a.up.sql": MIXED}, "`-- no-transaction`"),
    "diesel": ({"1_a/up.sql": "SELECT 1;\n", "1_a/down.sql": MIXED}, "metadata.toml"),
    "graphile": ({"committed/000001.sql": graphile("-", MIXED)[0]}, "--! no-transaction"),
    "golang-migrate": ({"1_a.up.sql": MIXED}, "preflight: no-transaction"),
}


@pytest.mark.parametrize("tool", OUTSIDE)
def test_what_needs_no_transaction_is_told_its_own_tools_mark(tool: str, tmp_path: Path) -> None:
    """Ours would be none to that tool, and a file that it has hashed is not to be edited."""
    files, words = OUTSIDE[tool]
    written(tmp_path, files)

    with pytest.raises(FilesInvalid) as failure:
        folder.load(configured(tmp_path, tool))

    assert [True] == [words in str(each.hint) for each in failure.value.problems]


SECOND, _ = graphile(DIGEST, "SELECT 2;\n")
OTHER, _ = graphile(f"sha1:{'0' * 40}", "SELECT 2;\n")
LATE, _ = graphile(graphile(DIGEST, "SELECT 2;\n")[1], "SELECT 3;\n")
REFUSED = {
    "a committed file is gone": (
        {"committed/000001.sql": FIRST, "committed/000003.sql": LATE},
        "committed/000003.sql follows another file",
    ),
    "the first committed file is gone": (
        {"committed/000002.sql": SECOND}, "committed/000002.sql follows another file",
    ),
    "a committed file that follows none": (
        {"committed/000001.sql": FIRST, "committed/000002.sql": OTHER},
        "and committed/000001.sql is",
    ),
    "a way back of Flyway's without a way forward": (
        {"V1__a.sql": "SELECT 1;", "U2__b.sql": "SELECT 1;"}, "no forward file V2__b.sql",
    ),
    "goose's environment": ({"1_a.sql": "-- +goose Up\n-- +goose ENVSUB ON\nSELECT 1;\n"}, ":2:1:"),
    "goose's mark, indented": (
        {"1_a.sql": "-- +goose Up\nSELECT 1;\n  -- +goose Down\nDROP TABLE a;\n"}, ":3:1:",
    ),
    "goose's mark in capitals": (
        {"1_a.sql": "-- +goose Up\nSELECT 1;\n-- +Goose Down\nDROP TABLE a;\n"}, ":3:1:",
    ),
    "goose's mark after a word": (
        {"1_a.sql": "-- +goose Up\nSELECT 1;\n-- and +goose Down\nDROP TABLE a;\n"}, ":3:1:",
    ),
    "dbmate's mark, indented": (
        {"1_a.sql": "-- migrate:up\nSELECT 1;\n\t-- migrate:down\nDROP TABLE a;\n"}, ":3:1:",
    ),
    "dbmate's mark with a space": (
        {"1_a.sql": "-- migrate:up\nSELECT 1;\n-- migrate: down\nDROP TABLE a;\n"}, ":3:1:",
    ),
    "dbmate's mark in capitals": (
        {"1_a.sql": "-- migrate:up\nSELECT 1;\n-- Migrate:Down\nDROP TABLE a;\n"}, ":3:1:",
    ),
    "goose in Go": (
        {"1_a.sql": "-- +goose Up\nSELECT 1;\n", "2_b.go": "package x"}, "written in Go",
    ),
    "no end of a block": (
        {"1_a.sql": "-- +goose Up\n-- +goose StatementBegin\nSELECT 1;"}, ":2:1:",
    ),
    "dbmate's order": (
        {"1_a.sql": "-- migrate:up\nSELECT 1;", "10_b.sql": "-- migrate:up\nSELECT 1;",
         "2_c.sql": "-- migrate:up\nSELECT 1;"},
        "another order",
    ),
    "SQL above the mark": ({"1_a.sql": "SELECT 1;\n-- migrate:up\nSELECT 1;\n"}, ":1:1:"),
    "down before up": ({"1_a.sql": "-- migrate:down\n-- migrate:up\nSELECT 1;\n"}, "is read here"),
    "COMMIT in a section": (
        {"1_a.sql": "-- migrate:up\nSELECT 1;\nCOMMIT;\nSELECT 2;\n-- migrate:down\n"}, ":3:1:",
    ),
    "psql in a section": (
        {"1_a.sql": "-- +goose Up\nSELECT 1;\n-- +goose Down\n\\connect x\n"}, ":4:1:",
    ),
    "a placeholder": ({"V1__a.sql": "SELECT 1;\nCREATE SCHEMA ${name};"}, ":2:15:"),
    "a callback": ({"V1__a.sql": "SELECT 1;", "afterMigrate.sql": "SELECT 1;"}, "callback"),
    "a key of .conf": (
        {"V1__a.sql": "SELECT 1;", "V1__a.sql.conf": "shouldExecute=false"}, "shouldExecute",
    ),
    "one version twice": ({"V1__a.sql": "SELECT 1;", "V1.0__b.sql": "SELECT 1;"}, "version 1 is"),
    "an edited commit": ({"committed/000001.sql": FIRST + "SELECT 2;"}, "edited"),
    "a placeholder of graphile": (
        {"committed/000001.sql": graphile("-", "GRANT a TO :DATABASE_OWNER;\n")[0]}, ":4:12:",
    ),
    "a placeholder of graphile behind a letter": (
        {"committed/000001.sql": graphile("-", "SELECT 'x:DATABASE_NAME';\n")[0]}, ":4:10:",
    ),
    "a placeholder of graphile behind a colon": (
        {"000001.sql": graphile("-", "SELECT 1::DATABASE_OWNER;\n")[0]}, ":4:10:",
    ),
    "two tools": (
        {"001_a.sql": "-- migrate:up\nSELECT 1;\n", "002_b.sql": "-- +goose Up\nSELECT 1;\n"},
        "dbmate and of goose",
    ),
    "two ups": (
        {"1_a.sql": "-- migrate:up\nSELECT 1;\n-- migrate:down\n-- migrate:up\nSELECT 2;\n"},
        ":4:1:",
    ),
    "goose's own version": (
        {"00000_a.sql": "-- +goose Up\nSELECT 1;", "00001_b.sql": "-- +goose Up\nSELECT 1;"},
        "'00000_a.sql' is not a file of goose",
    ),
    "tern's file": (
        {"001_a.sql": "SELECT 1;\n---- create above / drop below ----\nDROP TABLE a;\n"},
        "marks of tern",
    ),
    "sql-migrate's file": (
        {"001_a.sql": "-- +migrate Up\nSELECT 1;\n-- +migrate Down\nDROP TABLE a;\n"},
        "marks of sql-migrate",
    ),
    "node-pg-migrate's file": (
        {"001_a.sql": "-- Up Migration\nSELECT 1;\n-- Down Migration\nDROP TABLE a;\n"},
        "marks of node-pg-migrate",
    ),
    "node-pg-migrate's file, with words behind the marks": (
        {"001_a.sql": "-- up migration: a\nSELECT 1;\n--- Down  Migration - back\nSELECT 2;"},
        "marks of node-pg-migrate",
    ),
    "tern's mark, indented": (
        {"001_a.sql": "SELECT 1;\n  ---- create above / drop below ----\nDROP TABLE a;\n"},
        "marks of tern",
    ),
    "MyBatis' mark behind a word": (
        {"001_a.sql": "-- // a\nSELECT 1;\n-- // the @UNDO of it\nDROP TABLE a;\n"},
        "marks of MyBatis",
    ),
    "rambler's mark without a space": (
        {"001_a.sql": "-- rambler up\nSELECT 1;\n-- ramblerdown\nDROP TABLE a;\n"},
        "marks of rambler",
    ),
    "Liquibase's mark, as it takes it, too": (
        {"001_a.sql": " -- Liquibase Formatted\n--changeset a:1 context:test\nSELECT 1;\n"},
        "marks of Liquibase",
    ),
    "Liquibase's mark below comments and empty lines": (
        {"001_a.sql": "-- a\n\n-- b\n--liquibase formatted sql logicalFilePath:a\nSELECT 1;\n"},
        "marks of Liquibase",
    ),
    "node-pg-migrate's file, the way back first": (
        {"001_a.sql": "-- Down migration of a\nSELECT 2;\n-- Up migration of a\nSELECT 1;"},
        "marks of node-pg-migrate",
    ),
    "MyBatis' file": (
        {"001_a.sql": "-- // a\nSELECT 1;\n-- //@UNDO\nDROP TABLE a;\n"}, "marks of MyBatis",
    ),
    "rambler's file": (
        {"001_a.sql": "-- rambler up\nSELECT 1;\n-- rambler down\nDROP TABLE a;\n"},
        "marks of rambler",
    ),
    "shmig's file": (
        {"001_a.sql": "-- ==== UP ====\nSELECT 1;\n-- ==== DOWN ====\nDROP TABLE a;\n"},
        "marks of shmig",
    ),
    "Atlas' archive": (
        {"001_a.sql": "-- atlas:txtar\n\n-- migration.sql --\nSELECT 1;\n\n-- down.sql --\nDROP "
         "TABLE a;\n"},
        "marks of Atlas: all parts of an archive would run",
    ),
    "Atlas' checkpoint": (
        {"001_a.sql": "SELECT 1;\n", "002_b.sql": "-- atlas:checkpoint v1\n\nSELECT 1;\n"},
        "002_b.sql has marks of Atlas",
    ),
    "Liquibase's file": (
        {"001_a.sql": "--liquibase formatted sql\n--changeset a:1 context:test\nSELECT 1;\n"},
        "marks of Liquibase",
    ),
    "Micrate's file without a way forward": (
        {"001_a.sql": "-- +micrate Up\n-- +micrate Down\n-- SQL; undone\nDROP TABLE a;\n"},
        "sql:2:1: `-- +micrate Down` heads",
    ),
    "dbmate's marks, all indented": (
        {"001_a.sql": " -- migrate:up\nSELECT 1;\n -- migrate:down\nDROP TABLE a;\n"}, ":1:1:",
    ),
    "goose's marks without a space": (
        {"001_a.sql": "-- +gooseUp\nSELECT 1;\n-- +gooseDown\nDROP TABLE a;\n"}, ":1:1:",
    ),
    "a block before Up": (
        {"001_a.sql": "-- +goose StatementBegin\n-- +goose Up\nSELECT 1;\n-- +goose StatementEnd"},
        ":1:1:",
    ),
    "an extension in capitals": (
        {"1_a.up.sql": "SELECT 1;", "2_b.up.SQL": "SELECT 1;"}, "'2_b.up.SQL' is not a file",
    ),
    "another extension": (
        {"1_a.up.sql": "SELECT 1;", "2_b.up.pgsql": "SELECT 1;"}, "'2_b.up.pgsql' is not a file",
    ),
    "two ways back": (
        {"1_a.up.sql": "SELECT 1;", "1_a.down.sql": "SELECT 2;", "1_b.down.sql": "SELECT 3;"},
        "the same part",
    ),
    "a way back beside one": (
        {"1_a.sql": "-- migrate:up\nSELECT 1;\n-- migrate:down\nSELECT 2;\n",
         "preflight/rollback_1_a.sql": "SELECT 3;"},
        "the same part",
    ),
    "a file that runs again, twice": (
        {"V1__a.sql": "SELECT 1;", "b/R__x.sql": "SELECT 1;", "c/R__x.sql": "SELECT 2;"},
        "the same part",
    ),
    "Flyway in Java": ({"V1__a.sql": "SELECT 1;", "V2__b.java": "class"}, "no SQL"),
    "a folder without up.sql": (
        {"1_a/up.sql": "SELECT 1;", "2_b/UP.sql": "SELECT 1;"}, "2_b/up.sql: cannot be read",
    ),
    "a folder without migration.sql": (
        {"1_a/migration.sql": "SELECT 1;", "2_b/m.sql": "SELECT 1;"}, "2_b/migration.sql: cannot",
    ),
    "another provider": (
        {"1_a/migration.sql": "SELECT 1;", "migration_lock.toml": 'provider = "sqlite"\n'},
        "for sqlite",
    ),
    "too many digits": ({"1_a.up.sql": "SELECT 1;", f"{'9' * 19}_b.up.sql": "SELECT 1;"}, "'9"),
}  # fmt: skip


def test_hint_of_several_blocks_does_not_ask_for_the_mark_that_is_there(tmp_path: Path) -> None:
    """Dbmate runs each block, and then fails at its own row."""
    block = "-- migrate:up\nSELECT 1;\n-- migrate:down\nSELECT 2;\n"
    with pytest.raises(FilesInvalid) as failure:
        folder.load(written(tmp_path, {"1_a.sql": block * 2}))

    (problem,) = failure.value.problems
    assert (problem.hint or "").startswith("Put what stands below each mark below the first of")


@pytest.mark.parametrize(
    "text", ["-- +goose Up\n-- +goose Down\n", "-- migrate:up\n\n-- migrate:down\n"]
)
def test_file_that_is_empty_both_ways_can_be_taken_back(text: str, tmp_path: Path) -> None:
    """Nothing was done, and nothing is to be undone; as golang-migrate's empty pair."""
    (found,) = folder.load(written(tmp_path, {"1_a.sql": text}))

    assert found.rollback is not None
    assert [] == [*found.up.statements(), *found.rollback.statements()]


WHEN = "2024-01-01T00:00:00Z A <a@b> # x"


@pytest.mark.parametrize(
    "lines",
    [
        ["a", "b [a]", "c [a b]"],
        ["a", "b [nope]"],
        ["a [b]", "b"],
        ["a", "@v1", "b [a@v1 @v1]"],
        ["a", "b [a@v2]"],
        ["a", "b [@v9]"],
        ["a", "b [app:a other:zz !zz]"],
        ["a", "b [app:nope]"],
        ["a", "b [a @HEAD]"],
        ["a", "b 2024-01-01T00:00:00Z a[bot] [x] <a@b> # [y]"],
    ],
)
def test_plan_that_sqitch_refuses_is_refused(lines: list[str], tmp_path: Path) -> None:
    """What a change requires stands above it; asked of sqitch itself."""
    names = [line.partition(" ")[0] for line in lines]
    head = "%syntax-version=1.0.0\n%project=app\n\n"
    changes = head + "".join(f"{line}\n" if "<" in line else f"{line} {WHEN}\n" for line in lines)
    scripts = {f"deploy/{name}.sql": "SELECT 1;\n" for name in names if name[0] != "@"}
    found = written(tmp_path, {"sqitch.plan": changes, **scripts})
    written(tmp_path, {"sqitch.conf": "[core]\n\tengine = pg\n"})

    theirs = tools.call([tools.found("sqitch"), "plan"], cwd=tmp_path)

    if theirs.returncode == 0:
        assert len(scripts) == len(folder.load(found))
    else:
        assert [True] == ["requires" in each for each in refused(found)], theirs.stderr


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_run_as_it_is_meant_is_refused_at_its_line(case: str, tmp_path: Path) -> None:
    """In the tool's own terms, with the file's own line."""
    files, words = REFUSED[case]

    assert any(words in each for each in refused(written(tmp_path, files)))


@pytest.mark.parametrize(
    "head",
    [
        "-- Down", "-- DOWN:", "--down", "-- @DOWN", "-- +down", "-- +mig Down", "-- !Downs",
        "-- rollback", "-- --- Rollback ---", "  -- undo  ", "-- [down]",
        "-- Down Migration - drops it",
    ],
)  # fmt: skip
def test_way_back_below_a_comment_of_nobody_we_know_is_refused(head: str, tmp_path: Path) -> None:
    """Whose it is does not matter: forward and back would run one after the other."""
    text = f"BEGIN;\n-- Up\nCREATE TABLE a ();\n\n{head}\n/* all of it */ DROP TABLE a;\nCOMMIT;\n"

    (said,) = refused(written(tmp_path, {"001_a.sql": text}))

    assert f"`{head.strip()}` heads a way back" in said


@pytest.mark.parametrize(
    "head",
    [
        "-- Up Migration: nothing yet\n\n-- Down Migration: drops it",
        "-- Up Migration\n-- see ticket 4\n\n-- Down Migration (undo)",
        "-- Up Migration\n-- Down Migration",
    ],
)
def test_way_back_behind_an_empty_way_forward_is_refused(head: str, tmp_path: Path) -> None:
    """The tool would run nothing of it; with a rollback file beside it they are words."""
    text = f"{head}\nDROP TABLE a;\n"

    (said,) = refused(written(tmp_path, {"001_a.sql": text}))

    assert "heads a way back" in said or "node-pg-migrate" in said


@pytest.mark.parametrize(
    ("above", "below"),
    [("DROP TABLE a;", "CREATE TABLE a ();"), ("CREATE TABLE a ();", "SELECT 1;\nDROP TABLE a;")],
)
def test_way_back_below_a_down_migration_may_begin_otherwise(
    above: str, below: str, tmp_path: Path
) -> None:
    """It makes what was dropped, or drops at its end; not where a rollback file is the way back."""
    text = f"{above}\n-- Down migration: back\n{below}\n"

    (said,) = refused(written(tmp_path, {"001_a.sql": text}))
    beside = folder.load(written(tmp_path, {"001_a_rollback.sql": "SELECT 1;"}))

    assert "001_a.sql:2:1: `-- Down migration: back` heads a way back" in said
    assert beside == numbers.settled(beside, plan.History())


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1;\n-- Rollback:\n-- DROP TABLE a;\n",
        "SELECT 1;\n-- Rollback:\n-- DROP TABLE a;\nSELECT 2;\n",
        "SELECT 1;\n/*\n-- Down\nDROP TABLE a;\n*/\nSELECT 2;\n",
        "BEGIN;\nSELECT 1;\n-- rollback\nCOMMIT;\n",
        "-- Undo\nDROP TABLE a;\n",
        "DO $$ BEGIN\n-- rollback\nRAISE NOTICE 'a'; END $$;\n",
        "COPY a FROM stdin;\n-- down\n\\.\nSELECT 1;\n",
        "SELECT 1; -- down\nSELECT 2;\n",
        "SELECT 1;\n-- what is shut\n-- down.\nSELECT 2;\n",
        "SELECT 1;\n-- Down payments\nSELECT 2;\n",
        "-- down migration: see the other file\nDROP TABLE a;\n-- Down migration: there\n",
        "SELECT 1;\n-- Down migration: no, none of it\n-- DROP TABLE a;\nDROP TABLE c;\n",
        "SELECT 1;\n-- Rollback migration: there\nSELECT 2;\n",
        "-- Up migration of a; the\n-- down migration is 001_a_rollback.sql\nDROP TABLE a;\n",
        "-- Liquibase formatted changelogs were moved here\nSELECT 1;\n",
        "SELECT 1;\n-- liquibase formatted sql\nSELECT 2;\n",
        "SELECT 1;\n-- rollback:\n--   ALTER TABLE a DROP b\nDROP TABLE c;\n",
        "SELECT 1;\n-- Rollback\n-- not possible\nDROP TABLE a;\n",
        "SELECT 1;\n-- Rollback\n/* DROP TABLE a */\nSELECT 2;\n",
        "-- @rollback\n-- DROP TABLE a;\nCREATE TABLE a ();\n",
        "SELECT 1;\n-- undo\nCREATE TABLE undo ();\n",
    ],
)
def test_comment_with_no_way_back_below_is_none(text: str, tmp_path: Path) -> None:
    """One that is a comment itself, or a word inside a statement or its data, runs nothing."""
    files = {"001_a.sql": text, "001_a_rollback.sql": "SELECT 1;\n-- Down\nSELECT 2;\n"}

    found = folder.load(written(tmp_path, files))

    assert found == numbers.settled(found, plan.History())


@pytest.mark.parametrize(
    ("tool", "files", "words"),
    [
        ("supabase", {f"{'9' * 19}_a.sql": "SELECT 1;"}, "is not a file of supabase"),
        ("supabase", {"10_a.sql": "SELECT 1;", "9_b.sql": "SELECT 1;"}, "another order"),
        ("supabase", {"1_a/b.sql": "SELECT 1;", "2_c.sql": "SELECT 1;"}, "1_a/b.sql"),
        ("dbmate", {f"{'1' * 20}_b.sql": "-- migrate:up\nSELECT 1;"}, "is not a file of dbmate"),
        ("goose", {"+5_a.sql": "-- +goose Up\nSELECT 1;"}, "is not a file of goose"),
        ("flyway", {"V1__\udcff.sql": "SELECT 1;"}, "is not UTF-8"),
        ("flyway", {"R__\udcff.sql": "SELECT 1;"}, "is not UTF-8"),
        ("dbmate", {"1_\udcff.sql": "-- migrate:up\nSELECT 1;"}, "is not UTF-8"),
    ],
)
def test_what_the_tool_would_run_is_never_passed_over(
    tool: str, files: dict[str, str], words: str, tmp_path: Path
) -> None:
    """A name or a place that only the tool knows what to do with is refused."""
    written(tmp_path, files)

    assert [True] == [words in each for each in refused(configured(tmp_path, tool))]


@pytest.mark.parametrize("tool", sorted({*FOLDERS} - {"ours"}))
def test_what_the_tool_passes_over_is_passed_over(tool: str, tmp_path: Path) -> None:
    """Notes beside the migrations are none, in whatever folder they lie."""
    files, expected = FOLDERS[tool]
    beside = {str(Path(file).parent / "notes.sql"): "SELECT 'of no version';" for file in files}

    found = folder.load(written(tmp_path, {**files, **beside}))

    assert (tool, expected) == (found.tool, [(each.name, each.label) for each in found])


def test_comment_that_speaks_of_a_mark_is_none(tmp_path: Path) -> None:
    """Who uses our own names is not stopped by a word."""
    text = (
        "-- Down migration: see 001_a_rollback.sql\n-- this migrate:down was left out\n"
        "-- the goose is up\n-- migrate:update later\n-- +migrate Up\n-- create above\n"
        "--! mind\n-- UNDO: none\n-- atlas:txmode none\n-- atlas:nolint\nSELECT 'migrated';\n"
    )

    found = folder.load(written(tmp_path, {"001_a.sql": text}))

    assert ("ours", {}) == (numbers.settled(found, plan.History()).tool, found.marks)


def test_comment_on_the_down_migration_of_what_takes_nothing_away_is_none(tmp_path: Path) -> None:
    """With a rollback file or without one."""
    text = "CREATE TABLE a (i int);\n-- down migration: drops both\nCREATE INDEX ON a (i);\n"

    found = folder.load(written(tmp_path, {"001_a.sql": text}))

    assert found == numbers.settled(found, plan.History())


def test_recorded_file_is_not_judged_by_a_mark(tmp_path: Path) -> None:
    """It ran as it is; what is to run yet is another matter."""
    marks = {"001_a.sql": "---- create above / drop below ----", "002_b.sql": "-- Down"}
    files = {name: f"SELECT 1;\n{mark}\nSELECT 2;\n" for name, mark in marks.items()}
    found = folder.load(written(tmp_path, files))
    records = {file.version: plan.Record(file.version, file.name, file.checksum) for file in found}

    assert "ours" == numbers.settled(found, plan.History(records)).tool


MARKED = {  # what each tool would cut a file at
    "dbmate": "-- migrate:up\n-- migrate:down transaction:false",
    "goose": "-- +goose Up\n  -- +goose Down",
    "tern": "---- create above / drop below ----",
    "sql-migrate": "-- +migrate Down",
    "node-pg-migrate": "-- Up Migration\nSELECT 1;\n-- Down Migration",
    "MyBatis": "-- //@UNDO",
    "rambler": "-- rambler down",
    "shmig": "-- ==== DOWN ====",
    "Atlas": "-- atlas:txtar\n-- atlas:checkpoint",
    "Liquibase": "--liquibase formatted sql",
}
WITHIN = {  # a script in which that is nothing but data
    "dollars": "CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $a$\n{}\n$a$;\n",
    "a text": "SELECT 'it''s: \n{}\n', E'\\'\n{}\n', \"--\";\n",
    "a text with escapes": "SET standard_conforming_strings = off;\nSELECT '\\'\n{}\n';\n",
    "rows": "COPY t FROM stdin;\nit's\n{}\n\\.\nSELECT 'a\n{}\n';\n",
    "a comment": "/* 'as in\n{}\n/* */\n*/ SELECT 1; -- it's\n",
    "a comment at the end": "SELECT 1;\n/*\n{}\n*/",
}


@pytest.mark.parametrize("within", WITHIN)
@pytest.mark.parametrize("tool", MARKED)
def test_mark_that_is_data_is_none(tool: str, within: str, tmp_path: Path) -> None:
    """In a text, a row or a block comment it is written about, whether anything is recorded."""
    text = WITHIN[within].replace("{}", MARKED[tool])
    config = written(tmp_path, {"001_a.sql": "SELECT 1;\n", "002_b.sql": text})
    record = plan.Record(1, "001_a", hashlib.sha256(b"SELECT 1;\n").hexdigest())
    found = folder.load(config)

    assert ("ours", {}) == (found.tool, found.marks)
    for records in ({}, {1: record}):
        assert found == numbers.settled(found, plan.History(records))
    assert found == folder.load(dataclasses.replace(config, layout="ours"))


@pytest.mark.parametrize("within", [each for each in WITHIN if "end" not in each])
@pytest.mark.parametrize("tool", [each for each in MARKED if each != "Liquibase"])
def test_mark_beside_data_is_one(tool: str, within: str, tmp_path: Path) -> None:
    """Below a text that holds one, and between statements that hold none."""
    text = WITHIN[within].replace("{}", MARKED[tool])
    text += f"SELECT 2;\nSELECT 3\n{MARKED[tool]}\n;SELECT 4;\n"
    config = written(tmp_path, {"001_a.sql": "SELECT 1;\n", "002_b.sql": text})
    record = plan.Record(1, "001_a", hashlib.sha256(b"SELECT 1;\n").hexdigest())

    with pytest.raises(FilesInvalid, match=rf"002_b\.sql has marks of {tool}"):
        numbers.settled(
            folder.load(dataclasses.replace(config, layout="ours")), plan.History({1: record})
        )


UP, DOWN = "-- +goose Up\nSELECT 1;\n", "-- +goose Down\nSELECT 2;\n"
MIGRATE = "-- migrate:up\nSELECT 1;\n"


@pytest.mark.parametrize(
    ("files", "new", "wrong"),
    [
        (
            {"001_a.sql": UP, "002_b.sql": UP + DOWN},
            {"003_go.go": ""},
            "003_go.go: a migration written in",
        ),
        (
            {"001_a.sql": UP, "002_b.sql": UP},
            {"003_go.go": ""},
            "003_go.go: a migration written in Go",
        ),
        (
            {"001_a.sql": MIGRATE},
            {"002_b.sql": "SELECT 1;\n"},
            "002_b.sql:1:1: one `-- migrate:up` is",
        ),
    ],
    ids=["one has a way back", "none has one", "dbmate"],
)
def test_folder_that_its_tool_refuses_does_not_become_ours(
    files: dict[str, str], new: dict[str, str], wrong: str, tmp_path: Path
) -> None:
    """A file that is the same text in both readings speaks for neither; nor one that failed."""
    found = numbers.settled(folder.load(written(tmp_path, files)), plan.History())
    written(tmp_path, new)

    for state in ("done", "failed"):
        records = {
            file.version: plan.Record(file.version, file.name, file.checksum, state)
            for file in found
        }
        with pytest.raises(FilesInvalid) as refused:
            numbers.settled(folder.load(written(tmp_path, files)), plan.History(records))
        assert [True] == [each.message.startswith(wrong) for each in refused.value.problems]
    with pytest.raises(told.Unclear):
        door.read(str(tmp_path))


def test_file_that_is_to_run_on_is_judged_by_a_mark(tmp_path: Path) -> None:
    """It stopped part-way: the way back stands in what is left of it."""
    text = f"SELECT 1;\n{UP}{DOWN}"
    found = folder.load(written(tmp_path, {"001_a.sql": "SELECT 1;\n", "002_b.sql": text}))
    records = {1: plan.Record(1, "001_a", hashlib.sha256(b"SELECT 1;\n").hexdigest())}
    part_way = plan.Record(2, "002_b", "", "failed")

    with pytest.raises(FilesInvalid, match=r"002_b\.sql has marks of goose"):
        numbers.settled(found, plan.History(records | {2: part_way}))


def test_flyway_s_files_are_found_where_flyway_finds_them(tmp_path: Path) -> None:
    """Without a title, in capitals, behind a link to a folder; once, whatever the links are."""
    written(tmp_path / "far", {"V3__c.sql": "SELECT 1;"})
    files = {"V1.sql": "SELECT 1;", "V2__b.SQL": "SELECT 1;", "V1__note.txt": ""}
    found = written(tmp_path / "near", files)
    (tmp_path / "near/sub").symlink_to(tmp_path / "far")
    (tmp_path / "far/up").symlink_to(tmp_path / "near")

    loaded = folder.load(dataclasses.replace(found, layout="flyway"))

    assert ["V1", "V2__b", "V3__c"] == [each.name for each in loaded]


def test_file_that_the_supabase_cli_leaves_out_is_left_out(tmp_path: Path) -> None:
    """The dump that its first versions began with; a later one of that name runs."""
    files = {"20211001000000_init.sql": "SELECT 1;", "20220101000000_init.sql": "SELECT 1;"}
    written(tmp_path, files)

    found = folder.load(configured(tmp_path, "supabase"))

    assert ["20220101000000_init"] == [each.name for each in found]
    assert foreign.layout("supabase", tmp_path).forgets("20211001000000", found, foreign.Said({}))


def test_invalid_hash_that_graphile_migrate_allows_is_allowed(tmp_path: Path) -> None:
    """With its header, which has no value; the title of a file is not in its history."""
    text = FIRST.replace("--! Hash", "--! AllowInvalidHash\n--! Hash") + "SELECT 2;\n"
    found = folder.load(written(tmp_path, {"committed/000001-a.sql": text}))

    assert ["000001.sql"] == [found.layout.key(each) for each in found if found.layout]
    assert [True] == [found.layout.agrees(each, DIGEST) for each in found if found.layout]


SAID: dict[str, tuple[str, list[tuple[Any, ...]], list[str], list[str], str | None]] = {
    "taken back in part": ("golang-migrate", [(-1, True)], [], ["-1"], None),
    "taken back": ("golang-migrate", [], [], [], None),
    "made by a baseline file": (
        "flyway",
        [(1, "5", "base", "SQL_BASELINE", 7, True), (2, "6", "more", "SQL", 8, True)],
        ["6"], [], "5",
    ),
    "in a schema that Flyway 3 made": (
        "flyway",
        [(0, "0", "<< Flyway Schema Creation >>", "SCHEMA", None, True),
         (1, "1", "first", "SQL", 7, True)],
        ["1"], [], None,
    ),
    "in a schema that Flyway made": (
        "flyway", [(0, None, "<< Flyway Schema Creation >>", "SCHEMA", None, True)], [], [], None,
    ),
    "a repeated file failed": ("flyway", [(1, None, "x", "SQL", 7, False)], [], ["R__x"], None),
    "a repeated file is right again": (
        "flyway", [(1, None, "x", "SQL", 7, False), (2, None, "x", "SQL", 8, True)], [], [], None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SAID)
def test_rows_mean_what_they_mean_to_their_tool(case: str, tmp_path: Path) -> None:
    """What is applied, what failed, and up to where there are no rows."""
    tool, rows, applied, broken, through = SAID[case]

    said = foreign.layout(tool, tmp_path).said(rows)

    assert (applied, broken, through) == ([*said.applied], [*said.broken], said.through)


@pytest.mark.parametrize("layout", ["auto", "goose"])
@pytest.mark.parametrize(
    ("names", "named"),
    [
        (["__init__.py", "0001_initial.py"], "0001_initial.py"),
        (["20240101000000_a.rb"], "20240101000000_a.rb"),
        (["db.changelog-master.xml"], "db.changelog-master.xml"),
        (["20240101_a.exs", "20240102_b.exs", ".formatter.exs"], "20240101_a.exs"),
        (["env.py", "docker-compose.yml", "V3__java.java"], "V3__java.java"),
        (["README.md", ".keep", "__init__.py"], None),
        ([], None),
    ],
)
def test_folder_of_programs_is_told_of_wrap(
    layout: str, names: list[str], named: str | None, tmp_path: Path
) -> None:
    """It is no wrong mount, or not only: the tool that reads it goes behind the same gate."""
    written(tmp_path, dict.fromkeys(names, ""))

    with pytest.raises(ConfigInvalid) as failure:
        folder.load(configured(tmp_path, layout))

    hint = failure.value.problem.hint or ""
    wrap = f"If {named} is a migration, put its tool behind this gate: `wrap`."
    assert (True, named is not None) == ("Is the volume mounted" in hint, hint.endswith(wrap))


PLAN = "%project=app\n\na 2024-01-01T00:00:00Z A <a@b> # a\n"
THROUGH = ["--through 1"]
# what is refused in a file that may be applied already, and the step behind the change that it asks
CHANGED: dict[str, tuple[str, dict[str, str], list[str]]] = {
    "a placeholder of Flyway": ("flyway", {"V1__a.sql": "CREATE SCHEMA ${name};"}, THROUGH),
    "a COMMIT for Flyway": ("flyway", {"V1__a.sql": "SELECT 1;\nCOMMIT;"}, THROUGH),
    "a way back of Flyway": ("flyway", {"V1__a.sql": "", "U1__a.sql": "SELECT ${name};"}, []),
    "a baseline of Flyway": ("flyway", {"B1__a.sql": "SELECT ${name};"}, []),
    "a file of Flyway that runs again": ("flyway", {"R__a.sql": "SELECT ${name};"}, []),
    "a COMMIT for sqlx": ("sqlx", {"1_a.up.sql": "SELECT 1;\nCOMMIT;"}, THROUGH),
    "a COMMIT for Prisma": ("prisma", {"1/migration.sql": "SELECT 1;\nCOMMIT;"}, THROUGH),
    "a COMMIT for golang-migrate": ("golang-migrate", {"1_a.up.sql": "SELECT 1;\nCOMMIT;"}, []),
    "a command of psql": (
        "sqitch", {"sqitch.plan": PLAN, "deploy/a.sql": "\\set x 1\n"}, ["--through a"],
    ),
    "a variable of sqitch": (
        "sqitch",
        {
            "sqitch.plan": PLAN,
            "deploy/a.sql": "SELECT :x;",
            "sqitch.conf": '[deploy "variables"]\n\tx = 1\n',
        },
        ["--through a"],
    ),
    "a placeholder of graphile": (
        "graphile", {"000001.sql": graphile("-", "GRANT a TO :DATABASE_OWNER;\n")[0]},
        ["--! AllowInvalidHash"],
    ),
    "a COMMIT for graphile": (
        "graphile", {"000001.sql": graphile("-", "SELECT 1;\nCOMMIT;\n")[0]},
        ["--! AllowInvalidHash"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGED)
def test_hint_of_a_refused_file_says_what_its_tool_s_checksum_takes_then(
    case: str, tmp_path: Path
) -> None:
    """Changed to be read here, it is another file to a history that has its checksum."""
    tool, files, expected = CHANGED[case]
    written(tmp_path, files)

    with pytest.raises(FilesInvalid) as failure:
        folder.load(configured(tmp_path, tool))

    (problem,) = failure.value.problems
    assert expected == re.findall(r"--through \w+|--! AllowInvalidHash", problem.hint or "")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("V1__a.sql", "-- ${x}\nGRANT ${a} TO ${b}; -- ${c}\n  -- ${d} ${e}\nGRANT ${b} TO ${d};"),
        ("000001.sql", graphile("-", "GRANT :A_A TO :B_B; -- :C_C\n\nGRANT :B_B TO :D_D;")[0]),
    ],
    ids=["flyway", "graphile"],
)
def test_every_placeholder_of_a_file_is_told_once(tmp_path: Path, name: str, text: str) -> None:
    """Where it stands first; a comment behind a statement is no line of comments."""
    told = refused(written(tmp_path, {name: text}))
    first = text.count("\n", 0, text.index("GRANT")) + 1

    assert [first, first, first, first + 2] == [int(each.split(":")[1]) for each in told]
    assert ["a", "b", "c", "d"] == [
        re.search(r"placeholder \W+(\w)", each)[1].lower() for each in told  # type: ignore[index]
    ]  # fmt: skip


def test_placeholders_of_graphile_are_those_of_its_settings(tmp_path: Path) -> None:
    """The tool replaces them anywhere; a cast, a slice or a word behind a colon is none."""
    text = "SELECT x::TEXT, a[1:PORT], 'role:APP_ROLE', 'is:OTHER', ':DATABASE_NAMES';\n"
    at = tmp_path / "migrations/committed"
    written(at, {"000001.sql": graphile("-", text.replace("':", "'a:"))[0]})
    settings = '{\n  // ":OTHER": "a",\n  "placeholders": {":A_B": "!ENV", %s: "b"}}'

    plain = folder.load(configured(at.parent, "graphile"))
    (tmp_path / ".gmrc").write_text(settings % '":OTHER_ONE"')
    others = folder.load(configured(at, "graphile"))
    (tmp_path / ".gmrc").write_text(settings % "':APP_ROLE'")

    assert [1, 1] == [len(plain), len(others)]
    for each in (at, at.parent):
        (told,) = refused(configured(each, "graphile"))
        assert "the placeholder :APP_ROLE is not replaced here" in told


@pytest.mark.parametrize(
    ("name", "settings", "placeholder"),
    [
        (".gmrc.js", "module.exports = {placeholders: {':APP_ROLE': 'app'}};", ":APP_ROLE"),
        (".gmrc.cjs", "module.exports = {placeholders: {[`:APP_ROLE`]: p}};",
         ":APP_ROLE"),
        (".gmrc.js", "const {placeholders} = require('x');\nmodule.exports = {placeholders};",
         ":APP_ROLE"),
        (".gmrc.mjs", "export default {...base, blankMigrationContent: () => ''};", ":APP_ROLE"),
        (".gmrc.js", "module.exports = require('../.gmrc');", ":APP_ROLE"),
        (".gmrc.js", "module.exports = {placeholders: {':A_B': f({}), ...base}};", ":APP_ROLE"),
        (".gmrc.js", "module.exports = {placeholders: {':A_B': 'c', [name]: 'd'}};", ":APP_ROLE"),
        (".gmrc.js", "module.exports = {placeholders: {}, x: [1], ...base};", ":APP_ROLE"),
        (".gmrc.js", "const url = 'a://b', placeholders = f();", ":APP_ROLE"),
        (".gmrc.js", 'const url = "a://b", placeholders = f();', ":APP_ROLE"),
        (".gmrc.js", "module.exports = {blank: 'write here ...', a: '{'};", ""),
        (".gmrc.js", "exports = {...base, pgSettings: {...x}, 'placeholders': {':A_B': 'c'}};", ""),
        (".gmrc.js", "require('dotenv').config();\nmodule.exports = {connectionString: 'x'};", ""),
        (".gmrc.js", "module.exports = {placeholders: {}, migrationsFolder: './migrations'};", ""),
        (".gmrc.js", "require('../env');\nmodule.exports = {placeholders: {':A_B': '!ENV'}};", ""),
        (".gmrc.js", "const x = require('./env');\nmodule.exports = {databaseOwner: x.me};", ""),
        (".gmrc.js", "const x = {a: 1}; // and so on ...\nmodule.exports = x; // placeholders", ""),
        (".gmrc.js", "module.exports = {placeholders: { // names ...\n/* : */':A_B': 'c'}};", ""),
        (".gmrc.js", "module.exports = {afterReset: [{command: 'echo ...'}, ...more]};", ""),
    ],
)  # fmt: skip
def test_settings_of_graphile_may_be_a_program(
    name: str, settings: str, placeholder: str, tmp_path: Path
) -> None:
    """Its keys are read; where it has them from elsewhere, what looks like one behind a letter is.

    What a comment or a text says brings none, nor does a file that other settings come from.
    """
    text = "SELECT to_char(now(), 'HH24:MI:SS'), x::TEXT, 'role:APP_ROLE';\n"
    at = tmp_path / "migrations/committed"
    written(at, {"000001.sql": graphile("-", text)[0]})
    (tmp_path / name).write_text(settings)

    if placeholder:
        (told,) = refused(configured(at.parent, "graphile"))
        assert f"the placeholder {placeholder} is not replaced here" in told
    else:
        assert 1 == len(folder.load(configured(at.parent, "graphile")))


def test_hours_and_minutes_are_no_placeholders_of_graphile(tmp_path: Path) -> None:
    """Wherever its names come from: behind a letter or digit these are of a pattern for dates."""
    text = "SELECT to_char(now(), 'HH24:MI:SS, HH:MI AM, YYYY:MM:DD, HH24:MI:SSTZH:TZM');\n"
    at = tmp_path / "migrations/committed"
    written(at, {"000001.sql": graphile("-", text)[0]})
    (tmp_path / ".gmrc.js").write_text("module.exports = require('./base');")

    assert 1 == len(folder.load(configured(at, "graphile")))

    written(at, {"000001.sql": graphile("-", text.replace(":SS,", ":SS_A,"))[0]})
    (told,) = refused(configured(at, "graphile"))
    assert "the placeholder :SS_A is not replaced here" in told


def test_repeated_file_that_flyway_forgot_runs_again(tmp_path: Path) -> None:
    """Its row of type DELETE says that the file was gone."""
    rows = [(1, None, "x", "SQL", 7, True), (2, None, "y", "SQL", 8, True)]
    gone = (3, None, "x", "DELETE", None, True)

    said = foreign.layout("flyway", tmp_path).said([*rows, gone])

    assert {"y": "8"} == said.repeated


@pytest.mark.parametrize(
    ("tool", "name", "hashed"),
    [("sqlx", "1_a.sql", hashlib.sha384), ("prisma", "1_a/migration.sql", hashlib.sha256)],
)
def test_file_of_mixed_line_ends_is_not_taken_for_edited(
    tool: str, name: str, hashed: Callable[[bytes], Any], tmp_path: Path
) -> None:
    """The tool hashed its very bytes; those of another text are still another file."""
    text = b"SELECT 1;\r\nSELECT 2;\nSELECT 3;\r\n"
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(text)
    found = folder.load(configured(tmp_path, tool))
    assert found.layout is not None
    (file,) = found

    assert found.layout.agrees(file, hashed(text).hexdigest())
    (tmp_path / name).write_bytes(b"SELECT 4;\n")
    assert not found.layout.agrees(file, hashed(b"SELECT 4;\n").hexdigest())


def test_repeatable_files_stand_beside_the_versions(tmp_path: Path) -> None:
    """They have no version, and come by their titles."""
    files = {"R__b.sql": "SELECT 1;", "R__a.sql": "SELECT 1;", "V1__c.sql": "SELECT 1;"}

    found = folder.load(written(tmp_path, files))

    assert (["V1__c"], ["R__a", "R__b"]) == (
        [each.name for each in found],
        [each.name for each in found.repeats],
    )


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ({"V1__a.sql": "SELECT 1;", "B2__b.sql": "SELECT 1;", "V3__c.sql": "SELECT 1;"},
         ["V1__a", "V3__c"]),
        ({"B1__a.sql": "SELECT 1;", "B2__b.sql": "SELECT 1;", "V3__c.sql": "SELECT 1;"},
         ["B2__b", "V3__c"]),
        ({"B2__b.sql": "SELECT 1;", "V3__c.sql": "SELECT 1;", "V4__d.sql": "SELECT 1;",
          "B4__d.sql": "SELECT 1;"},
         ["B2__b", "V3__c", "V4__d"]),
        ({"B2__b.sql": "SELECT 1;", "B4__d.sql": "SELECT 1;", "V5__e.sql": "SELECT 1;"},
         ["B4__d", "V5__e"]),
    ],
)  # fmt: skip
def test_baseline_runs_where_nothing_else_is_there(
    files: dict[str, str], names: list[str], tmp_path: Path
) -> None:
    """One way to a version, never both, and none that begins in the middle."""
    assert names == [each.name for each in folder.load(written(tmp_path, files))]


def test_misnamed_file_among_ours_is_ours(tmp_path: Path) -> None:
    """A folder of ours does not become another's by one wrong name."""
    files = {"001_a.sql": "SELECT 1;", "002_b.up.sql": "SELECT 1;"}

    assert ["'002_b.up.sql' is not a migration's name"] == refused(written(tmp_path, files))


def test_text_versions_keep_the_numbers_that_they_were_given(tmp_path: Path) -> None:
    """What comes between two recorded ones gets a number between theirs."""
    files = {f"V{each}__x.sql": "SELECT 1;" for each in ("1", "1.5", "2", "3")}
    found = folder.load(written(tmp_path, files))
    records = {
        number: plan.Record(number, f"V{label}__x", "", label=label)
        for number, label in ((7, "1"), (9, "2"))
    }

    settled = numbers.settled(found, plan.History(records))

    assert [("1", 7), ("1.5", 8), ("2", 9), ("3", 1009)] == [
        (each.label, each.version) for each in settled
    ]
    assert [8, 1009] == [numbers.of(settled, plan.History(records), each) for each in ("1.5", 1009)]


def recorded(*labels: str, state: str = "done") -> plan.History:
    """Return a history of such text versions, numbered as they are at first."""
    return plan.History(
        {
            1000 * place: plan.Record(1000 * place, f"V{label}__x", "", state, label=label)
            for place, label in enumerate(labels, 1)
        }
    )


WORKED_OVER = {
    "sqitch.plan": "%syntax-version=1.0.0\n%project=x\n\nusers 2026-01-01T00:00:00Z A <a@b>\n"
    "@v1 2026-01-01T00:00:00Z A <a@b>\nroles 2026-01-01T00:00:00Z A <a@b>\n"
    "@v2 2026-01-01T00:00:00Z A <a@b>\nusers [users@v2] 2026-01-01T00:00:00Z A <a@b>\n",
    "deploy/users.sql": "SELECT 2;",
    "deploy/users@v2.sql": "SELECT 1;",
    "deploy/roles.sql": "SELECT 1;",
}


@pytest.mark.parametrize(
    ("files", "labels", "said", "there"),
    [
        ({}, ("1000", "1001"), "2000", False),
        ({}, ("1000", "1001"), "1001", True),
        ({}, (f"{'1' * 20}", "2"), "1" * 20, True),
        ({"V1_1__x.sql": "SELECT 1;"}, ("1", "1.1"), "1_1", True),
        ({"V1_1__x.sql": "SELECT 1;"}, ("1", "1.1"), "1.0", True),
        ({"V1_1__x.sql": "SELECT 1;"}, ("1", "1.1"), "1.2", False),
        ({"2019-02-26-002946_x/up.sql": "SELECT 1;"}, ("20190226002946",), "2019-02-26-002946",
         True),
        ({}, ("00000000000000",), "00000000000000", True),
        ({}, ("00000000000000",), "0", False),
        (WORKED_OVER, ("users@v2", "roles", "users"), "users:2", True),
        (WORKED_OVER, ("users@v2", "roles", "users"), "users", True),
        (WORKED_OVER, ("users", "roles"), "users", True),
        (WORKED_OVER, ("users", "roles"), "users:2", False),
    ],
)  # fmt: skip
def test_text_version_is_waited_for_as_people_spell_it(
    files: dict[str, str], labels: tuple[str, ...], said: str, *, there: bool, tmp_path: Path
) -> None:
    """What another version's number happens to be is no spelling of it."""
    found = folder.load(written(tmp_path, files)) if files else folder.Folder(())

    assert there == numbers.applied(found, recorded(*labels), command.version(said))
    assert not numbers.applied(found, recorded(*labels, state="failed"), command.version(said))


def test_next_steps_name_text_versions_by_their_texts(tmp_path: Path) -> None:
    """V1001 has the number 2000 here: `adopt 2000` would record V2000, which never ran."""
    files = {f"V{each}__x.sql": "SELECT 1;" for each in ("1000", "1001", "1001.5", "2000")}
    history = recorded("1000", "1001", "2000")
    settled = numbers.settled(folder.load(written(tmp_path, files)), history)

    with pytest.raises(HistoryConflict) as failure:
        plan.make(settled, history)

    assert [
        ["adopt 1000", "force 1000"],
        ["adopt 1001", "force 1001"],
        ["adopt 2000", "force 2000"],
        ["adopt 1001.5"],
    ] == [
        re.findall(r"(?:adopt|force) [\d.]*\d", each.hint or "") for each in failure.value.problems
    ]
    assert "version 2000 was applied before it" in failure.value.problems[-1].message
    assert [1000, 2000, 3000] == [
        numbers.of(settled, history, command.version(each)) for each in ("1000", "1001", "2000")
    ]


def test_version_of_many_digits_is_known_by_its_text(tmp_path: Path) -> None:
    """As our own next steps write it; where there is none of that text it is refused."""
    many = "20240101120000123456"
    found = folder.load(written(tmp_path, {f"V{many}__x.sql": "SELECT 1;"}))

    assert many == numbers.file(found, plan.History(), command.version(many)).written
    with pytest.raises(ConfigInvalid, match="there is no version"):
        numbers.of(found, plan.History(), command.version(f"{many}7"))


def test_converted_file_is_known_by_its_own_number(tmp_path: Path) -> None:
    """What was recorded before under a text that looks like it is another migration."""
    files = {f"{each}_x.sql": "SELECT 1;" for each in (1000, 2000, 3000)}
    found = folder.load(written(tmp_path, files))

    chosen = numbers.file(found, recorded("1000", "1001", "2000"), command.version("2000"))

    assert "2000_x" == chosen.name


def planned(
    directory: Path, lines: Sequence[str], scripts: Sequence[str], more: str = ""
) -> folder.Folder:
    """Write a plan of sqitch and scripts, each of which says what it is called; return it read."""
    said = "".join(f"{line} 2024-01-01T00:00:00Z A <a@b> # x\n" for line in lines)
    deploys = {f"deploy/{each}.sql": more or f"SELECT '{each}';" for each in scripts}
    reverts = {f"revert/{each}.sql": more or f"SELECT '{each}';" for each in scripts}
    files = {"sqitch.plan": f"%project=app\n\n{said}", **deploys, **reverts}
    return folder.load(written(directory, files))


@pytest.mark.parametrize(
    ("lines", "scripts"),
    [
        (["a", "@v1", "a [a@v1]"], ["a@v1", "a"]),
        (["a", "@v1", "b", "@v2", "a [a@v2]"], ["a@v2", "b", "a"]),
        (["a", "@v1", "b", "@v2", "a [a@v2]"], ["a@v1", "b", "a"]),
        (["a", "@v1", "@v2", "b", "a [a@v1]", "@v3", "a [a@v3]"], ["a@v1", "b", "a@v3", "a"]),
    ],
)
def test_old_script_of_a_change_is_found_under_any_tag_between(
    lines: list[str], scripts: list[str], tmp_path: Path
) -> None:
    """Sqitch writes the last tag's name, and takes what is there; for the way back, too."""
    found = planned(tmp_path, lines, scripts)

    assert [f"deploy/{each}.sql" for each in scripts] == [each.up.file for each in found]
    assert [f"revert/{each}.sql" for each in scripts] == [
        each.rollback.file for each in found if each.rollback
    ]


def test_missing_old_script_of_a_change_is_called_by_the_last_tag(tmp_path: Path) -> None:
    """That is where sqitch puts it."""
    lines = ["a", "@v1", "b", "@v2", "a [a@v2]"]

    with pytest.raises(FilesInvalid) as failure:
        planned(tmp_path, lines, ["a", "b"])

    assert "deploy/a@v2.sql" == failure.value.problem.file


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([], ["a", "b", "a:2", "a:3"]),
        (["a", "b"], ["a", "b", "a:2", "a:3"]),
        (["a", "b", "a:2"], ["a", "b", "a:2", "a:3"]),
        (["a@v1", "b", "a"], ["a@v1", "b", "a", "a:3"]),  # as it was recorded at first
        (["a@v1", "b", "a", "a:3"], ["a@v1", "b", "a", "a:3"]),
        (["a@v1"], ["a@v1", "b", "a:2", "a:3"]),
    ],
)
def test_change_that_is_worked_over_stays_what_it_was_recorded_as(
    labels: list[str], names: list[str], tmp_path: Path
) -> None:
    """The plan only grows: what is added to it gives nothing in it another name or number."""
    lines = ["a", "@v1", "b", "a [a@v1]", "@v2", "a [a@v2]"]
    found = planned(tmp_path, lines, ["a@v1", "b", "a@v2", "a"])

    settled = numbers.settled(found, recorded(*labels))

    assert names == [each.name for each in settled] == [each.label for each in settled]
    assert names == [each.up.migration for each in settled]
    assert [1000, 2000, 3000, 4000] == [each.version for each in settled]
    assert [each.up.file for each in found] == [each.up.file for each in settled]
    assert ["a", "b", "a:2", "a:3"] == [settled.layout.key(each) for each in settled]  # type: ignore[union-attr]


def test_change_that_sqitch_has_deployed_more_often_is_without_a_file(tmp_path: Path) -> None:
    """An older folder knows nothing of the script that ran last."""
    found = planned(tmp_path, ["a"], ["a"])
    rows = [("a", digest, "app", digest) for digest in ("1", "2")]

    said = found.layout.said(rows) if found.layout else None

    assert said is not None
    assert {"a": "1", "a:2": "2"} == said.applied


def test_text_version_below_one_that_is_gone_stays_below(tmp_path: Path) -> None:
    """An older image's new file is late, not newest."""
    found = folder.load(written(tmp_path, {"V1__x.sql": "SELECT 1;", "V1.5__x.sql": "SELECT 1;"}))
    records = {
        number: plan.Record(number, "x", "", label=label)
        for number, label in ((1000, "1"), (2000, "2"))
    }

    settled = numbers.settled(found, plan.History(records))

    assert [1000, 1500] == [each.version for each in settled]


def test_checksum_of_flyway_is_of_the_lines() -> None:
    """As Flyway reckons it, whatever the line ends are: a signed CRC-32."""
    assert "-390611389" == flyway._crc(b"a\n")  # noqa: SLF001 -- the number itself
    assert flyway._crc(b"a\nb") == flyway._crc(b"a\r\nb\n")  # noqa: SLF001


def test_converted_folder_has_the_same_statements(run_bare: Run, tmp_path: Path) -> None:
    """In our layout, byte for byte, the way back and what runs outside a transaction included."""
    text = (
        "-- +goose NO TRANSACTION\n-- +goose Up\n-- +goose StatementBegin\nDO $$ BEGIN\n"
        "-- +goose Down\nEND $$\n-- +goose StatementEnd\nSELECT 'é';\n"
    )
    files = {
        "1_FirstThing.sql": "-- +goose Up\nCREATE TABLE a ();\n-- +goose Down\nDROP TABLE a;\n",
        "12_b.sql": text.replace("-- +goose Down\nEND", "END"),
    }
    written(tmp_path / "theirs", files)

    done = run_bare("convert", str(tmp_path / "theirs"), str(tmp_path / "ours"))
    again = run_bare("convert", str(tmp_path / "theirs"), str(tmp_path / "ours"))

    assert (0, 20) == (done.code, again.code), str(done)
    assert ["001_firstthing.sql", "001_firstthing_rollback.sql", "012_b.sql"] == sorted(
        path.name for path in (tmp_path / "ours").iterdir()
    )
    assert b"-- preflight: no-transaction\n" in (tmp_path / "ours/012_b.sql").read_bytes()
    assert [b"CREATE TABLE a ()", b"DO $$ BEGIN\nEND $$\n", "SELECT 'é'".encode()] == [
        said for file in reading.load(tmp_path / "ours") for said in file.up.said()
    ]


def test_folder_of_files_that_run_again_alone_is_read(run_bare: Run, tmp_path: Path) -> None:
    """`lint` says of them what they do, as of any; only our layout has no place for them."""
    source = tmp_path / "theirs"
    written(source, {"R__a.sql": "DROP TABLE a;\nCREATE TABLE a ();\n"})

    done = run_bare("lint", "--json", env={"PREFLIGHT_MIGRATIONS_DIR": str(source)})
    refused = run_bare("convert", str(source), str(tmp_path / "ours"))

    assert 0 == done.code, str(done)
    assert [("R__a", None, ["line 1 destroys table a"])] == [
        (each["migration"], each["version"], each["remarks"]) for each in done.json()["files"]
    ]
    assert (25, False) == (refused.code, (tmp_path / "ours").exists())
    assert "no file with a version" in refused.finished["error"]["message"]


def test_transaction_around_nothing_is_nothing_to_do(run_bare: Run, tmp_path: Path) -> None:
    """As sqitch's own template leaves it; in our layout it is a comment."""
    files = {
        "sqitch.plan": "%syntax-version=1.0.0\n%project=app\n\n"
        "a 2024-01-01T00:00:00Z A <a@b> # a\n",
        "deploy/a.sql": "BEGIN;\nSELECT 1;\nCOMMIT;\n",
        "revert/a.sql": "-- Revert app:a from pg\nBEGIN;\n-- XXX Add DDLs here.\nCOMMIT;\n",
    }
    (found,) = folder.load(written(tmp_path / "theirs", files))
    assert found.rollback
    kept = reading.kept(1, "a", "rollback", found.rollback.kept)

    done = run_bare("convert", str(tmp_path / "theirs"), str(tmp_path / "ours"))

    assert (0, [], []) == (done.code, found.rollback.said(), kept.said()), str(done)


def test_title_that_ends_as_a_companion_s_is_converted(run_bare: Run, tmp_path: Path) -> None:
    """`add_rollback` is what a file is about, and no file for the way back."""
    files = {
        "1_a.up.sql": "SELECT 1;",
        "2_a_rollback.up.sql": "SELECT 2;",
        "3_verify.up.sql": "SELECT 3;",
    }
    written(tmp_path / "theirs", files)

    done = run_bare("convert", str(tmp_path / "theirs"), str(tmp_path / "ours"))

    assert 0 == done.code, str(done)
    assert [None, None, None] == [each.rollback for each in reading.load(tmp_path / "ours")]


def test_what_up_would_refuse_in_a_converted_folder_is_named(run_bare: Run, tmp_path: Path) -> None:
    """The other tool ran all of it; ours asks what a comment means that heads a way back."""
    files = {
        "1_a.up.sql": "CREATE TABLE a ();\n",
        "2_b.up.sql": "INSERT INTO a DEFAULT VALUES;\n-- rollback\nDELETE FROM a;\n",
        "3_c.up.sql": "-- +migrate Down\nSELECT 1;\n",
    }
    written(tmp_path / "theirs", files)
    ours = tmp_path / "ours"

    done = run_bare("convert", str(tmp_path / "theirs"), str(ours), "--from", "golang-migrate")
    problems = done.finished["error"]["problems"]

    assert (25, "files.layout") == (done.code, done.finished["error"]["code"])
    assert ["003_c.sql has marks", "002_b.sql:2:1: `-- rollback`"] == [
        " ".join(each["message"].split()[:3]) for each in problems
    ]
    assert all(f"All is written to {ours}; there: " in each["hint"] for each in problems)
    (ours / "002_b.sql").write_text(files["2_b.up.sql"].replace("rollback", "rows of no use"))
    (ours / "003_c.sql").write_text("SELECT 1;\n")
    assert 0 == run_bare("lint", env={"PREFLIGHT_MIGRATIONS_DIR": str(ours)}).code


def test_comment_that_we_take_for_a_mark_is_not_carried_over(run_bare: Run, tmp_path: Path) -> None:
    """To goose it is a comment: the file runs in a transaction, here as there."""
    text = "-- +goose Up\n-- no-transaction\nSELECT 1;\n"
    written(tmp_path / "theirs", {"00001_a.sql": text})

    done = run_bare("convert", str(tmp_path / "theirs"), str(tmp_path / "ours"))

    assert 0 == done.code, str(done)
    assert [True] == [each.up.transactional for each in reading.load(tmp_path / "ours")]


@pytest.mark.parametrize("tool", sorted({*FOLDERS} - {"ours"}))
def test_every_folder_can_be_converted(tool: str, run_bare: Run, tmp_path: Path) -> None:
    """What was written is read again, and compared statement by statement."""
    written(tmp_path / "theirs", FOLDERS[tool][0])

    done = run_bare("convert", str(tmp_path / "theirs"), str(tmp_path / "ours"), "--from", tool)

    assert 0 == done.code, str(done)
    assert len(FOLDERS[tool][1]) == len(reading.load(tmp_path / "ours"))


FORWARD = {tool: files for tool, (files, _) in FOLDERS.items()} | {
    "supabase": {"20240101000000_a.sql": "SELECT 1;"},
    "sqitch": {
        "sqitch.plan": "%project=app\n\na # a\n@v1 # v\na [a@v1] # a\n",
        "deploy/a@v1.sql": "SELECT 1;",
        "deploy/a.sql": "SELECT 1;",
    },
    "sqlx": {"1_a.sql": "SELECT 1;", "2_b.up.sql": "SELECT 1;"},
}


@pytest.mark.parametrize("tool", FORWARD)
def test_rollback_file_that_is_advised_is_read(tool: str, tmp_path: Path) -> None:
    """Written under the name that the refusal gives, it is the way back of that migration."""
    forward = {
        name: re.split(r"-- (?:migrate:down|\+goose Down)", text)[0]
        for name, text in FORWARD[tool].items()
        if text != "SELECT 2;"
    }
    written(tmp_path, forward)
    found = folder.load(configured(tmp_path, tool))
    advised = {}
    for each in found:
        problem = back._unwritten(found, each, each)  # noqa: SLF001 -- its advice is followed
        (advised[each.name],) = re.findall(r"Write (\S+),", problem.hint or "")

    written(tmp_path, {file: f"SELECT '{name}';" for name, file in advised.items()})

    again = folder.load(configured(tmp_path, tool))
    assert [(each.name, f"SELECT '{each.name}';".encode()) for each in found] == [
        (each.name, each.rollback and each.rollback.text) for each in again
    ]


@pytest.mark.parametrize("tool", FOLDERS)
def test_file_that_is_to_be_put_back_is_called_as_it_was(tool: str, tmp_path: Path) -> None:
    """Where nothing of a version is on disk, its way back alone would be refused."""
    found = folder.load(written(tmp_path, FOLDERS[tool][0]))

    for each in found:
        said = back._unwritten(found, each, None).hint or ""  # noqa: SLF001 -- as above
        assert re.match(rf"Put \S*{re.escape(Path(each.up.file).name)} back as it ran", said)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("[core]\n\tdeploy_dir = sql", "sqitch.conf says deploy_dir = sql, and deploy beside it"),
        ('[Engine "pg"] Extension = "d\\"dl" ; so', 'says extension = d"dl, and scripts that end'),
        ("[core]\n\tplan_file = \\\n  my.plan # x", "plan_file = my.plan, and sqitch.plan beside"),
        ("[core]\n\ttop_dir = sql", "top_dir = sql, and sqitch.plan beside"),
        ('[core]\ntarget = a\n[target "a"]\nrevert_dir = b', "revert_dir = b, and revert beside"),
        ("[core]\n\treworked_dir = old", "reworked_dir = old, and deploy beside"),
        (
            '[deploy "variables"]\n\tsch = public',
            "deploy/a.sql:1:9: the variable sch of sqitch.conf",
        ),
        ('[engine "pg.variables"]\n\tcol=x', "deploy/a.sql:1:25: the variable col of sqitch.conf"),
        ('[revert "variables"]\n\tcol=x', "revert/a.sql:1:25: the variable col of sqitch.conf"),
    ],
)
def test_what_sqitch_s_settings_change_is_refused(said: str, words: str, tmp_path: Path) -> None:
    """Another plan, other scripts and the values that psql puts in: sqitch would run them."""
    (tmp_path / "sqitch.conf").write_text(f"[core]\n\tengine = pg\n{said}\n")

    with pytest.raises(FilesInvalid) as failure:
        planned(tmp_path, ["a", "@v1", "a [a@v1]"], ["a@v1", "a"], "SELECT  :'sch'::text || :col;")

    assert any(words in each.message for each in failure.value.problems), failure.value.problems


def test_settings_of_sqitch_that_change_nothing_are_let_be(tmp_path: Path) -> None:
    """The usual places in other words, another engine's, and a name that is no variable there."""
    same = (
        "[core]\n\tengine = pg\n\t# plan_file = my.plan\n\ttop_dir = sql\n"
        '\tdeploy_dir = ./sql/deploy\n\treworked_dir = old\n[engine "mysql"]\n\textension = ddl\n'
        '[deploy "variables"]\n\tMI = 1\n'
    )
    (tmp_path / "sqitch.conf").write_text(same)
    text = "SELECT 'HH:MI', $$:MI$$, 1::MI; -- :MI"

    found = planned(tmp_path / "sql", ["a"], ["a"], text)
    (tmp_path / "sqitch.conf").write_text(f"{same}[core]\n\textension = ddl\n")

    assert ["a"] == [each.name for each in found]
    with pytest.raises(FilesInvalid, match="extension = ddl"):
        folder.load(configured(tmp_path / "sql"))


def test_no_room_between_two_recorded_versions_is_said(tmp_path: Path) -> None:
    """Renumbering what is recorded is out of the question, and so is a guess."""
    files = {f"V{each}__x.sql": "SELECT 1;" for each in ("1", "1.5", "2")}
    records = {
        number: plan.Record(number, "x", "", label=label) for number, label in ((1, "1"), (2, "2"))
    }

    with pytest.raises(HistoryConflict) as failure:
        numbers.settled(folder.load(written(tmp_path, files)), plan.History(records))

    assert "history.no_room" == failure.value.code


@pytest.mark.parametrize("text", ["SELECT 2;", "-- preflight: breaking\nSELECT 1;"])
def test_folder_that_was_not_carried_over_as_it_is_is_refused(text: str, tmp_path: Path) -> None:
    """What `convert` wrote is read again: one byte in a statement is another statement."""
    before = folder.load(written(tmp_path / "one", {"001_a.sql": "SELECT 1;"}))
    after = folder.load(written(tmp_path / "two", {"001_a.sql": text}))

    with pytest.raises(FilesInvalid) as failure:
        convert._require_same(before, after)  # noqa: SLF001 -- no folder is known that gets here

    assert "files.converted" == failure.value.code


def test_long_line_is_looked_through_once() -> None:
    """Rows of a single line that hold many dashes: a look at each to the line's end took hours."""
    looked = (
        "from preflight.files import reading\n"
        "print(reading.marked(b\"INSERT INTO t VALUES ('\" + b'a -- b ' * 300_000 + b\"');\"))\n"
        "print(reading.marked(b'SELECT 1; ' * 104_857 + b'\\n--  MIGRATE:down\\n'))\n"
    )
    done = program.bounded(looked)

    assert (0, "None\ndbmate\n") == (done.returncode, done.stdout), done.stderr
