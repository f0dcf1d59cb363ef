"""Reading the migrations directory: what is accepted, and what is refused with which words."""

import hashlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from preflight.base.errors import ConfigInvalid, FilesInvalid, Problem
from preflight.files import due, migrations, reading
from preflight.files.layout import Source
from tests import servers
from tests.conftest import WriteMigrations

OK = "SELECT 1;\n"


def problems(directory: Path) -> list[Problem]:
    """Return everything that is wrong with the files in a directory."""
    with pytest.raises(FilesInvalid) as raised:
        reading.load(directory)
    return list(raised.value.problems)


def texts(script: migrations.Script) -> list[str]:
    """Return the statements that a script would run."""
    return [each.text(script.text).decode() for each in script.statements()]


# what is accepted


@pytest.mark.fault("D088")
def test_files_are_ordered_as_numbers(migrations: WriteMigrations) -> None:
    """010 comes after 9, whatever the width of the number."""
    loaded = load(migrations({f"{name}_x.sql": OK for name in ("010", "009", "1000", "000")}))

    assert [0, 9, 10, 1000] == [each.version for each in loaded]


def test_companions_belong_to_their_file(migrations: WriteMigrations) -> None:
    """Rollback, verify and export are found by the forward file's name."""
    kinds = ("", "_rollback", "_verify", "_export")
    (one,) = load(migrations({f"001_add_it{kind}.sql": OK for kind in kinds}))

    assert "001_add_it" == one.name
    assert ["001_add_it_rollback.sql", "001_add_it_verify.sql", "001_add_it_export.sql"] == [
        each.file for each in (one.rollback, one.verify, one.export) if each
    ]


@pytest.mark.fault("D077", "D080")
def test_line_ends_and_byte_order_mark_do_not_change_the_checksum(
    migrations: WriteMigrations,
) -> None:
    """A file that went through Windows is the same migration, and its lines are the same."""
    plain = "SELECT 'é',\n1;\n"
    loaded = load(
        migrations(
            {
                "001_lf.sql": plain,
                "002_crlf.sql": plain.replace("\n", "\r\n"),
                "003_bom.sql": b"\xef\xbb\xbf" + plain.replace("\n", "\r\n").encode(),
            }
        )
    )

    assert {hashlib.sha256(plain.encode()).hexdigest()} == {each.checksum for each in loaded}
    assert {plain.encode()} == {each.up.text for each in loaded}


@pytest.mark.fault("D090")
def test_other_files_are_ignored(migrations: WriteMigrations) -> None:
    """Hidden files, editors' leftovers and everything that does not end in .sql."""
    names = (".001_x.sql", "..data.sql", "README.md", "001_x.sql~", "001_x.sql.swp", "001_x.SQL")
    loaded = load(migrations({"001_x.sql": OK} | dict.fromkeys(names, "\\i nonsense")))

    assert ["001_x"] == [each.name for each in loaded]


def test_directives_are_obeyed(migrations: WriteMigrations) -> None:
    """Each of them, with every unit of time."""
    one, two, three = load(
        migrations(
            {
                "001_a.sql": "-- preflight: no-transaction\n--preflight:breaking\nVACUUM;",
                "002_b.sql": "-- why\n/* how */\n-- preflight: lock-timeout 5s\n"
                "-- preflight: statement-timeout 2min\nSELECT 1;",
                "003_c.sql": "-- Preflight: lock-timeout 250ms\n"
                "-- preflight: statement-timeout 1h\nSELECT 1;",
            }
        )
    )

    assert (False, True) == (one.up.transactional, one.up.breaking)
    assert (5000, 120_000) == (two.up.lock_timeout_ms, two.up.statement_timeout_ms)
    assert (250, 3_600_000) == (three.up.lock_timeout_ms, three.up.statement_timeout_ms)
    assert (True, False, None) == (two.up.transactional, two.up.breaking, one.up.lock_timeout_ms)


def test_number_without_a_unit_is_refused_of_what_has_not_run(migrations: WriteMigrations) -> None:
    """It is milliseconds, beside a variable in seconds; what is recorded keeps that, as does 0."""
    head = "-- preflight: lock-timeout 5\n--  preflight:  statement-timeout  30\n"
    (one, two) = load(
        migrations({"001_a.sql": f"{head}SELECT 1;", "002_b.sql": f"{head[:27]}0\nSELECT 1;"})
    )

    assert (5, 30, 0) == (
        one.up.lock_timeout_ms, one.up.statement_timeout_ms, two.up.lock_timeout_ms
    )  # fmt: skip
    found = due.refused(one.up)
    assert [(1, "'lock-timeout 5' says no unit, and is 5 ms"),
            (2, "'statement-timeout  30' says no unit, and is 30 ms")] == [
        (each.line, each.message.rpartition(": ")[2]) for each in found
    ]  # fmt: skip
    assert {"Write 500ms, 5s, 2min or 1h."} == {each.hint for each in found}
    assert [] == due.refused(two.up) + due.refused(one.up, back=True)


def test_time_that_is_said_twice_or_does_not_fit_is_refused_of_what_has_not_run(
    migrations: WriteMigrations,
) -> None:
    """Of two the last one would count, and what is too long would be cut, without a word."""
    head = "-- preflight: lock-timeout 5s\n-- preflight: lock-timeout 300ms\n"
    long = "-- preflight: statement-timeout 596h\n-- preflight: max-lock 597h\n"
    (one, two) = load(
        migrations({"001_a.sql": f"{head}SELECT 1;", "002_b.sql": f"{long}SELECT 1;"})
    )

    assert (300, 2_145_600_000, 2**31 - 1) == (
        one.up.lock_timeout_ms, two.up.statement_timeout_ms, two.up.max_lock_ms
    )  # fmt: skip
    assert [(2, "'lock-timeout 300ms' is said behind another lock-timeout", "Say each once."),
            (2, "'max-lock 597h' does not fit", "The longest is 596h.")] == [
        (each.line, each.message.rpartition(": ")[2], each.hint)
        for each in [*due.refused(one.up), *due.refused(two.up)]
    ]  # fmt: skip
    assert [] == due.refused(one.up, back=True) + due.refused(two.up, back=True)


@pytest.mark.parametrize("begin", ["BEGIN", "begin work", "START TRANSACTION"])
@pytest.mark.parametrize("commit", ["COMMIT", "END TRANSACTION"])
def test_transaction_around_the_file_is_dropped(
    migrations: WriteMigrations, begin: str, commit: str
) -> None:
    """The runner opens the transaction itself."""
    (one,) = load(
        migrations({"001_a.sql": f"-- c\n{begin};\nSELECT 1;\nSELECT 2;\n{commit};\n-- c"})
    )

    assert ["SELECT 1", "SELECT 2"] == texts(one.up)


@pytest.mark.parametrize(
    ("head", "tail", "expected"),
    [
        ("BEGIN ISOLATION LEVEL SERIALIZABLE, READ WRITE;", "COMMIT;", "SERIALIZABLE"),
        ("begin; set local transaction isolation level repeatable read;", "END;",
         "REPEATABLE READ"),
        ("SET a.b = 1; SET TRANSACTION READ WRITE ISOLATION LEVEL READ COMMITTED NOT DEFERRABLE;",
         "", ""),
        ("SET TRANSACTION READ ONLY; SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE;", "",
         "SERIALIZABLE"),
        ("BEGIN ISOLATION LEVEL SERIALIZABLE; SET TRANSACTION ISOLATION LEVEL READ COMMITTED;",
         "COMMIT;", ""),
        ("SET TRANSACTION ISOLATION LEVEL READ UNCOMMITTED;", "", ""),
        ("SET transaction_isolation = 'repeatable read';", "", "REPEATABLE READ"),
        ('BEGIN; SET/**/local "transaction_isolation" TO Serializable;', "COMMIT;",
         "SERIALIZABLE"),
        ("SET LOCAL TRANSACTION READ WRITE; SET transaction_isolation = 'Read Committed';", "", ""),
    ],
)  # fmt: skip
def test_level_of_the_transaction_is_said_before_anything_else(
    migrations: WriteMigrations, head: str, tail: str, expected: str
) -> None:
    """By a BEGIN around the file, or by a SET, which is not run; the last word counts."""
    (one,) = load(migrations({"001_a.sql": f"{head}\nSELECT 1;\n{tail}"}))

    assert expected == one.up.isolation
    assert ["SELECT 1"] == [each for each in texts(one.up) if each != "SET a.b = 1"]


def test_level_that_the_server_would_refuse_there_is_left_to_it(
    migrations: WriteMigrations,
) -> None:
    """Behind a query, without a transaction, and where it is no level of one."""
    level = "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"
    for text in (
        f"SELECT 1; {level}",
        f"-- preflight: no-transaction\n{level}; SELECT 1",
        "SET TRANSACTION SNAPSHOT 'x'; SELECT 1",
        "SET TRANSACTION; SELECT 1",
        "SET transaction_isolation = 'chaos'; SELECT 1",
        "SET transaction_isolation TO DEFAULT; SELECT 1",
        "SET a.b = 'set transaction_isolation = serializable'; SELECT 1",
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE; SELECT 1",
    ):
        (one,) = load(migrations({"001_a.sql": text}))
        assert ("", 2) == (one.up.isolation, len(texts(one.up)))


@pytest.mark.fault("D101")
def test_words_of_transaction_control_elsewhere_are_fine(migrations: WriteMigrations) -> None:
    """In comments, strings, bodies and CASE they control no transaction."""
    statements = [
        "SELECT 'COMMIT;', $$ROLLBACK;$$, \"BEGIN;\" /* COMMIT; */ -- COMMIT;\n FROM t",
        "DO $$ BEGIN RAISE NOTICE 'x'; END; $$",
        "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN a THEN 1 END; END",
        "SELECT CASE WHEN true THEN 1\nEND",
    ]
    (one,) = load(migrations({"001_a.sql": ";\n".join(statements)}))

    assert statements == texts(one.up)


@pytest.mark.fault("D091")
def test_real_configmap_is_read_once(tmp_path: Path) -> None:
    """Kubernetes mounts every file as a link through `..data` into a dated directory."""
    configmap(tmp_path, "..2026_11_23_1", {"001_a.sql": OK, "002_b.sql": OK})

    assert ["001_a", "002_b"] == [each.name for each in load(tmp_path)]


@pytest.mark.fault("D091")
def test_configmap_that_is_swapped_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is returned never mixes two versions of a mount."""
    configmap(
        tmp_path, "..2026_11_23_1", {"001_a.sql": "SELECT 'old a';", "002_b.sql": "SELECT 1;"}
    )
    script = reading._script  # noqa: SLF001 - the moment between two files has no other name

    def swap_after_the_first(
        directory: Path, name: str, source: Source, found: list[Problem], marks: dict[str, str]
    ) -> object:
        read = script(directory, name, source, found, marks)
        if name == "001_a.sql" and not (tmp_path / "..2026_11_23_2").exists():
            configmap(
                tmp_path, "..2026_11_23_2", {"001_a.sql": "SELECT 'new a';", "002_b.sql": "bad '"}
            )
            configmap(tmp_path, "..2026_11_23_3", {"001_a.sql": "SELECT 'new a';", "002_b.sql": OK})
        return read

    monkeypatch.setattr(reading, "_script", swap_after_the_first)

    assert ["SELECT 'new a'", "SELECT 1"] == [texts(each.up)[0] for each in load(tmp_path)]


# what is refused


@pytest.mark.parametrize(
    "make", [lambda _: None, Path.mkdir, Path.touch], ids=["missing", "empty", "file"]
)
def test_directory_without_files_is_a_configuration_error(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    """A wrong mount must not look like success."""
    directory = tmp_path / "migrations"
    make(directory)

    with pytest.raises(ConfigInvalid) as raised:
        reading.load(directory)

    assert "config.migrations_dir" == raised.value.code


@pytest.mark.fault("D089", "D090")
@pytest.mark.parametrize(
    "name",
    ["1_a.sql", "01_a.sql", "001.sql", "001_.sql", "001_A.sql", "001-a.sql", "001_a__b.sql",
     "a.sql", "001_a b.sql", "1234567890123456789_a.sql", "\u0660\u0660\u0661_a.sql",
     "001_é.sql", "V1__a.sql"],
)  # fmt: skip
def test_bad_name_is_refused(migrations: WriteMigrations, name: str) -> None:
    """What ends in .sql and is no migration may be a migration with a typo."""
    (problem,) = problems(migrations({"002_b.sql": OK, name: OK}))

    assert (name, None) == (problem.file, problem.line)
    assert "is not a migration's name" in problem.message


def test_name_that_is_not_utf8_is_refused(migrations: WriteMigrations) -> None:
    """Also with the bytes that nobody can print."""
    directory = migrations({"001_a.sql": OK})
    (directory / os.fsdecode(b"002_\xff.sql")).write_text(OK)

    (problem,) = problems(directory)

    assert "is not a migration's name" in problem.message


@pytest.mark.fault("D082", "D088")
def test_duplicate_version_names_both_files(migrations: WriteMigrations) -> None:
    """Numbers count, not digits."""
    (problem,) = problems(migrations({"002_b.sql": OK, "0002_c.sql": OK}))

    assert "version 2 is claimed by 0002_c.sql and 002_b.sql" == problem.message


@pytest.mark.parametrize("kind", ["rollback", "verify", "export"])
def test_companion_without_a_forward_file_is_refused(
    migrations: WriteMigrations, kind: str
) -> None:
    """A renamed forward file must not lose its companions silently.

    It may be a migration whose name ends so: what a companion must not hold is not told of it.
    """
    text = f"{OK}CREATE TABLE b ();\nCOMMIT;\n"
    (problem,) = problems(migrations({"001_a.sql": OK, f"001_b_{kind}.sql": text}))

    assert f"001_b_{kind}.sql has no forward file 001_b.sql" == problem.message
    assert "`_verify`, `_rollback` and `_export` at the end are reserved" in str(problem.hint)


@pytest.mark.fault("D076", "D078", "D079", "D097", "D101", "D102", "D104")
@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        (b"SELECT 1;\n-- \xc3\xa9\0;", (2, 5), "a NUL byte"),
        (b"-- \xc3\xa9\nSELECT 'caf\xe9';", (2, 12), "byte 0xe9 is not UTF-8"),
        (b"SELECT '\xed\xa0\x80';", (1, 9), "is not UTF-8"),
        ("SELECT 1;".encode("utf-16"), (1, 1), "UTF-16"),
        ("SELECT 1;".encode("utf-16-be"), (1, 1), "a NUL byte"),
        (b"SELECT 1;\n \\i other.sql", (2, 2), "psql meta-command \\i"),
        (b"\\restrict abc\nSELECT 1;", (1, 1), "psql meta-command \\restrict"),
        (b"SELECT 1;\nSELECT 'a;\n", (2, 8), "this string never ends"),
        (b'SELECT "a;', (1, 8), "this quoted name never ends"),
        (b"DO $x$ BEGIN END $y$;", (1, 4), "this $x$ never ends"),
        (b"SELECT 1; /* /* */", (1, 11), "this comment never ends"),
        (b"SELECT 1;\n  COMMIT;", (2, 3), "COMMIT: transaction control inside"),
        (b"BEGIN; SELECT 1;", (1, 1), "BEGIN: transaction control inside"),
        (b"BEGIN; COMMIT;", (1, 1), "BEGIN: transaction control inside"),
        (b"BEGIN READ ONLY; SELECT 1; COMMIT;", (1, 1), "BEGIN READ ONLY: transaction control"),
        (b"BEGIN; SELECT 1; COMMIT AND CHAIN;", (1, 1), "BEGIN: transaction control"),
        (b"BEGIN; SELECT 1; COMMIT; SELECT 2;", (1, 1), "BEGIN: transaction control"),
        (b"BEGIN; SELECT 1; ROLLBACK;", (1, 1), "BEGIN: transaction control"),
        (b"-- preflight: no-transaction\nBEGIN; VACUUM; COMMIT;", (2, 1), "BEGIN: transaction"),
        (b"SELECT 1; SAVEPOINT a;", (1, 11), "SAVEPOINT a: transaction control"),
        (b"PREPARE TRANSACTION 'a';", (1, 1), "PREPARE TRANSACTION 'a': transaction control"),
        (b"CREATE TABLE t (); -- x\rCOMMIT;", (1, 25), "COMMIT: transaction control"),
        (b"CREATE INDEX CONCURRENTLY ON t (a);", (1, 1), "cannot run inside a transaction"),
        (b"SELECT 1; VACUUM t;", (1, 11), "VACUUM t: cannot run inside a transaction"),
        (b"", None, "holds no statement"),
        (b" \n;\t;\n", None, "holds no statement"),
        (b"-- preflight: no-transactions\nSELECT 1;", (1, 1), "unknown directive"),
        (b"-- preflight: lock-timeout=5s\nSELECT 1;", (1, 1), "unknown directive"),
        (b"-- preflight: lock-timeout 5 days\nSELECT 1;", (1, 1), "'5 days' is not a duration"),
        (b"-- preflight: max-lock soon\nSELECT 1;", (1, 1), "'soon' is not a duration"),
        (b"-- preflight: max-lock 10\nSELECT 1;", (1, 1), "'10' is not a duration"),
        (b"-- preflight: statement-timeout\nSELECT 1;", (1, 1), "'' is not a duration"),
        (b"SELECT 1;\n-- preflight: breaking\n", (2, 1), "a directive after the first statement"),
        (b"SELECT\n-- preflight: breaking\n1;", (2, 1), "a directive after the first statement"),
        (b"COPY t FROM stdin;\n1\n", (1, 1), "the data of COPY"),
    ],
)  # fmt: skip
def test_file_is_refused_with_its_place(
    migrations: WriteMigrations, text: bytes, place: tuple[int, int] | None, words: str
) -> None:
    """File, line and column (in characters), and what is wrong there."""
    problem = problems(migrations({"001_a.sql": OK, "002_b.sql": text}))[0]

    where = "" if place is None else f"{place[0]}:{place[1]}: "
    assert problem.message.startswith(f"002_b.sql:{where or ' '}")
    assert words in problem.message
    assert place == (problem.line and (problem.line, problem.column))
    assert ("002_b.sql", "002_b", 2) == (problem.file, problem.migration, problem.version)


@pytest.mark.parametrize("kind", ["verify", "export"])
@pytest.mark.parametrize("text", ["DELETE FROM t;", "SELECT 1; COMMIT;", "SET a = 1; SELECT 1;"])
def test_only_queries_may_verify_and_export(
    migrations: WriteMigrations, kind: str, text: str
) -> None:
    """They look, they do not touch."""
    (problem,) = problems(migrations({"001_a.sql": OK, f"001_a_{kind}.sql": text}))

    article = {"verify": "a", "export": "an"}[kind]
    assert f": {article} {kind} file holds queries only" in problem.message
    assert "001_a" == problem.migration


def test_directives_belong_into_forward_and_rollback_files(migrations: WriteMigrations) -> None:
    """`breaking` may stand in both, and speaks of the forward file."""
    files = {
        "001_a.sql": OK,
        "001_a_verify.sql": "-- preflight: lock-timeout 5s\n" + OK,
        "001_a_rollback.sql": "-- preflight: breaking\n" + OK,
    }
    found = problems(migrations(files))

    assert ["001_a_verify.sql"] == [each.file for each in found]


@pytest.mark.parametrize(
    ("head", "hint"),
    [
        ("", "the runner opens and"),
        ("-- preflight: no-transaction\n", "each statement is committed"),
    ],
)
def test_transaction_control_is_told_what_opens_a_transaction(
    migrations: WriteMigrations, head: str, hint: str
) -> None:
    """In a file without one the runner opens none; one BEGIN and one COMMIT are no exception."""
    text = f"{head}BEGIN;\nSELECT 1;\nCOMMIT;\nBEGIN;\n"
    found = problems(migrations({"001_a.sql": OK, "001_a_rollback.sql": text}))

    assert [True] * 3 == [str(each.hint).startswith(f"Leave it out: {hint}") for each in found]


@pytest.mark.fault("D092")
@pytest.mark.parametrize("what", ["fifo", "device", "directory", "dangling", "loop", "socket"])
def test_what_is_not_a_file_is_refused(migrations: WriteMigrations, what: str) -> None:
    """And it is never waited for."""
    directory = migrations({"001_a.sql": OK})
    path = directory / "002_b.sql"
    listener = socket.socket(socket.AF_UNIX)
    match what:
        case "fifo":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "directory":
            path.mkdir()
        case "dangling":
            path.symlink_to("nowhere")
        case "loop":
            path.symlink_to(path)
        case "socket":
            with tempfile.TemporaryDirectory() as short:  # a socket's path may have 107 bytes
                listener.bind(f"{short}/s")
                os.link(f"{short}/s", path)
    listener.close()

    (problem,) = problems(directory)

    assert "002_b.sql" == problem.file


def test_everything_wrong_is_reported_at_once(migrations: WriteMigrations) -> None:
    """One run shows all problems of all files."""
    found = problems(
        migrations(
            {
                "001_a.sql": "\\i x\nCOMMIT;\nVACUUM;\n",
                "002_b.sql": b"\xff",
                "002_c.sql": OK,
                "003_d_verify.sql": "DROP TABLE t;",
                "bad.sql": OK,
            }
        )
    )

    assert 7 == len(found), [each.message for each in found]
    assert {"001_a.sql", "002_b.sql", "002_c.sql", "003_d_verify.sql", "bad.sql"} == {
        each.file for each in found
    }


def test_hopeless_file_is_not_reported_without_end(migrations: WriteMigrations) -> None:
    """A million wrong lines must not become a million problems."""
    found = problems(
        migrations({"001_a.sql": OK, "001_a_verify.sql": "DELETE FROM t;\n" * 100_000})
    )

    assert 51 == len(found)
    assert "so much is wrong" in found[-1].message


# how much it costs


@pytest.mark.parametrize(
    ("first", "repeated", "last"),
    [
        ("", "INSERT INTO t (id, name) VALUES (1, 'it''s a name; really');\n", ""),
        ("INSERT INTO t VALUES ", "(1, 'it''s; a name', E'\\n'),\n", "(2, 'b', 'c');\n"),
        ("COPY t FROM stdin;\n", "1\tit's a name; really\n", "\\.\n"),
        ("SELECT $$", "it's a name; really\r\n", "$$;\n"),
    ],
    ids=["statements", "statement", "copy", "crlf"],
)
def test_memory_is_at_most_three_times_the_file(
    tmp_path: Path, first: str, repeated: str, last: str
) -> None:
    """A big file is not copied for each thing that is asked of it."""
    size = 24_000_000
    file = tmp_path / "001_big.sql"
    file.write_bytes((first + repeated * (size // len(repeated)) + last).encode())
    code = (
        "import pathlib, sys\n"
        "from preflight.files import reading\n"
        "def peak(): return int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
        "before = peak()\n"
        "found, = reading.load(pathlib.Path(sys.argv[1]))\n"
        "count = sum(1 for _ in found.up.statements())\n"
        "print(count, (peak() - before) * 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        cwd=servers.REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )

    assert int(done.stdout.split()[1]) < 3 * size


def load(directory: Path) -> tuple[migrations.Migration, ...]:
    """Read a directory, which the fixture's name hides from a test."""
    return reading.load(directory)


def configmap(mount: Path, dated: str, files: dict[str, str]) -> None:
    """Write or swap a mount as the kubelet does: a dated directory, `..data`, a link a file."""
    (mount / dated).mkdir()
    for name, text in files.items():
        (mount / dated / name).write_text(text)
        if not (mount / name).is_symlink():
            (mount / name).symlink_to(f"..data/{name}")
    (mount / "..data_tmp").symlink_to(dated)
    (mount / "..data_tmp").rename(mount / "..data")


@pytest.mark.parametrize("name", ["001_a.sql", "001_a_rollback.sql"])
def test_file_of_comments_only_is_one_with_nothing_to_do(
    migrations: WriteMigrations, name: str
) -> None:
    """As every other tool has it; a verify file without a query would promise nothing."""
    directory = migrations({"001_a.sql": OK, name: "-- nothing to do on PostgreSQL\n/* x */;\n"})

    (file,) = reading.load(directory)

    script = file.rollback if "rollback" in name else file.up
    assert script is not None
    assert [] == list(script.statements())
    migrations({"001_a_verify.sql": "-- nothing\n"})
    assert "holds no statement" in problems(directory)[0].message


@pytest.mark.parametrize(
    ("between", "alone"), [("SELECT 1;\n", True), ("\\connect x\nSELECT 1;\n", False)]
)
def test_dump_is_told_what_is_in_its_way(
    migrations: WriteMigrations, between: str, *, alone: bool
) -> None:
    """Two lines, unless there is more."""
    text = f"\\restrict abc\n{between}\\unrestrict abc\n"

    found = problems(migrations({"001_a.sql": text}))

    assert alone == all("all that is in the way" in (each.hint or "") for each in found)
    assert (2 if alone else 3) == len(found)
