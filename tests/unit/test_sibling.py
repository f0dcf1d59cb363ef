"""What a restore says to the server and to pg_restore, and what it makes of the answer."""

from pathlib import Path

import psycopg
import pytest

from preflight.backup import new_database
from preflight.rehearsal import copies

PAIR = [
    'pg_restore: error: could not execute query: ERROR:  unrecognized "transaction_timeout"',
    "Command was: SET transaction_timeout = 0;",
]
GERMAN = [PAIR[0].replace("unrecognized", "unbekannt:"), PAIR[1]]
OTHER = [
    'pg_restore: error: could not execute query: ERROR:  role "x" does not exist',
    "Command was: ALTER TABLE public.t OWNER TO x;",
]
IGNORED = ["pg_restore: warning: errors ignored on restore: 1"]


@pytest.mark.parametrize(
    ("said", "problems", "waved"),
    [
        ([], 0, 0),
        (PAIR + IGNORED, 0, 1),
        (GERMAN + IGNORED, 0, 1),
        (PAIR + OTHER + IGNORED, 1, 1),
        (OTHER + PAIR, 1, 1),
        (PAIR[:1], 1, 0),
        ([OTHER[0], PAIR[1]], 1, 0),
        ([PAIR[0], "Command was: SET transaction_timeout = 0; DROP TABLE t;"], 1, 0),
        (["pg_restore: fatal: out of memory"], 1, 0),
    ],
)
def test_only_the_pair_about_transaction_timeout_is_accepted(
    said: list[str], problems: int, waved: int
) -> None:
    """Whatever the language; any other error is one, also beside it."""
    found, accepted = new_database.complaints(said, old=True)

    assert (problems, waved) == (len(found), accepted)


def test_server_that_knows_the_setting_has_no_excuse() -> None:
    """From 17 on the pair is an error like any other."""
    assert (1, 0) == (len(new_database.complaints(PAIR, old=False)[0]), 0)


@pytest.mark.parametrize(
    ("role", "setting", "command"),
    [
        (None, "work_mem=4MB", """DATABASE d SET "work_mem" TO '4MB'"""),
        ("a b", "my.own=it's=so", """ROLE "a b" IN DATABASE d SET "my"."own" TO 'it''s=so'"""),
        (
            None,
            'search_path="$user", public',
            "DATABASE d SET \"search_path\" TO '$user', 'public'",
        ),
        (None, 'search_path=""', "DATABASE d SET \"search_path\" TO ''"),
        (None, "search_path=", "DATABASE d SET \"search_path\" TO ''"),
        (None, 'search_path="a, ""b""", c', """DATABASE d SET "search_path" TO 'a, "b"', 'c'"""),
        (None, "DateStyle=SQL, DMY", """DATABASE d SET "DateStyle" TO 'SQL, DMY'"""),
    ],
)
def test_settings_are_said_as_they_were(role: str | None, setting: str, command: str) -> None:
    """A list of names is one of literals; any other value is one literal."""
    assert f"ALTER {command}" == new_database.Setting(role, setting).command("d")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({}, ""),
        ({"provider": "c"}, " LOCALE_PROVIDER libc"),
        ({"provider": "i", "locale": "de"}, " LOCALE_PROVIDER icu ICU_LOCALE 'de'"),
        (
            {"provider": "i", "locale": "de", "icu_rules": "&a<'b"},
            " LOCALE_PROVIDER icu ICU_LOCALE 'de' ICU_RULES '&a<''b'",
        ),
        ({"provider": "b", "locale": "C"}, " LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C'"),
    ],
)
def test_text_rules_are_said_as_each_version_keeps_them(found: dict[str, str], said: str) -> None:
    """13 and 14 have no provider, libc has no locale of its own."""
    rules = new_database.TextRules("UTF8", "C", "C", **found)

    assert f" ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'{said}" == rules.options()


def test_pg_restore_is_called_without_a_password() -> None:
    """Any name of a database is one argument."""
    command = new_database.restore_command(
        "pg_restore", {"dbname": "a 'b' \\"}, Path("/b/x.dump"), 4
    )
    (conninfo,) = [word for word in command if word.startswith("--dbname=")]

    assert {"--no-password", "--jobs=4", "--format=custom"} < set(command)
    assert {"dbname": "a 'b' \\"} == psycopg.conninfo.conninfo_to_dict(
        conninfo.removeprefix("--dbname=")
    )


def test_place_that_does_not_answer_is_left_to_pg_restore() -> None:
    """It says what the system said of the dump, and for whom; to us it is no bug of ours."""
    command = new_database.restore_command("pg_restore", {}, Path(f"/b/{'x' * 300}"), 1)

    assert "--format=custom" in command


def test_jobs_that_write_at_once_are_understood() -> None:
    """What stands before a message may be another job's; the message itself is one piece."""
    message = PAIR[0].removeprefix("pg_restore: error: ")
    said = [f"pg_restore: pg_restore: error: error: {message}", PAIR[1], message, PAIR[1]]
    said[2] = f"error: {message}"
    real = OTHER[0].removeprefix("pg_restore: ")

    assert ([], 2) == new_database.complaints(said, old=True)
    (found,), waved = new_database.complaints([*said, f"pg_restore: {real}", OTHER[1]], old=True)
    assert ('could not execute query: ERROR:  role "x" does not exist', 2) == (found.text, waved)


@pytest.mark.parametrize(
    ("rebuilt", "index", "command", "words"),
    [
        (True, "odd", "CREATE INDEX odd ON", "ERROR:  function plain(text) does not exist"),
        (True, "odd", "CREATE INDEX odd ON", "FEHLER:  Funktion plain(text) existiert nicht"),
        (True, "odd", "CREATE UNIQUE INDEX odd ON", "ERROR:  type public.t does not exist"),
        (False, "odd", "CREATE UNIQUE INDEX odd ON", "ERROR:  could not create unique index"),
        (False, "odd", "CREATE UNIQUE INDEX odd ON", "FEHLER:  konnte Index nicht erstellen"),
        (False, 'an "odd"', 'CREATE UNIQUE INDEX "an ""odd""" ON', "FEHLER:  konnte nicht"),
    ],
)
def test_rows_of_a_unique_index_are_to_blame_in_every_language(
    *, rebuilt: bool, index: str, command: str, words: str
) -> None:
    """Only a word that is known takes the blame from them: a backup with such rows is none."""
    said = [
        f"pg_restore: from TOC entry 9; 1259 16390 INDEX {index} unicorn",
        f"pg_restore: error: could not execute query: {words}",
        f"Command was: {command} public.named USING btree (n);",
    ]
    (found,), _ = new_database.complaints(said, old=False)

    assert rebuilt is found.rebuilt


def test_complaint_names_its_entry() -> None:
    """The archive's entry says what could not be restored."""
    said = ["pg_restore: from TOC entry 215; 1259 16386 TABLE orders unicorn", *OTHER]

    assert ["TABLE orders unicorn"] == [
        each.entry for each in new_database.complaints(said, old=True)[0]
    ]


def test_error_in_another_jobs_line_is_doubtful() -> None:
    """So is one that names no entry, or only content: one job alone then has the last word."""
    torn = ["pg_restore: error: pg_restore: finished item 7 TABLE DATA t", *PAIR[:1], PAIR[1]]
    torn[1] = torn[1].removeprefix("pg_restore: error: ")
    owner = ["pg_restore: from TOC entry 2; 1 2 TABLE t other", *OTHER]
    orphan = ["pg_restore: from TOC entry 2; 1 2 FK CONSTRAINT t f unicorn", *OTHER]

    found = [new_database.complaints(said, old=True)[0] for said in (torn, owner, orphan)]
    assert [[True], [False], [True]] == [[each.doubtful for each in one] for one in found]


REAL = 'could not execute query: ERROR:  insert or update on table "child" violates it'


@pytest.mark.parametrize(
    "line",
    [
        f"pg_restore: error: {REAL}",
        f" pg_restore:error: {REAL}",
        f" error: {REAL}",
        f"pg_restore:pg_restore:  error: {REAL}",
        f"pg_restore: pg_restore: error: {REAL}",
    ],
)
def test_error_is_heard_wherever_its_line_is_torn(line: str) -> None:
    """Name, blank, sort and words are written one by one, and another job's stand in between."""
    said = ["pg_restore: from TOC entry 9; 2606 1 FK CONSTRAINT child fk u", line, "DETAIL:  x"]
    (found,), _ = new_database.complaints(said, old=True)

    assert (REAL, "FK CONSTRAINT child fk u") == (found.text, found.entry)


COUNTED = "pg_restore: warning: errors ignored on restore: "


@pytest.mark.parametrize(
    ("unheard", "parallel", "said"),
    [
        (0, 1, []),
        (0, 1, [*PAIR, f"{COUNTED}1"]),
        (0, 1, [*PAIR, *OTHER, f"{COUNTED}2"]),
        (1, 1, [*PAIR, f"{COUNTED}2"]),
        (0, 2, [*PAIR, *PAIR, *PAIR, *PAIR, f"{COUNTED}2"]),
        (2, 2, [*PAIR, *PAIR, *PAIR, *PAIR, f"{COUNTED}4"]),
        (1, 2, [*PAIR, *PAIR, *PAIR, *OTHER, f"{COUNTED}4"]),
        (0, 2, [*OTHER, *OTHER, f"{COUNTED}1"]),
        (1, 2, [f"{COUNTED}1"]),
    ],
)
def test_error_that_is_counted_and_not_understood_is_missed(
    unheard: int, parallel: int, said: list[str]
) -> None:
    """pg_restore counts what its first session says, and of every other one an entry that failed.

    With several jobs the first session connects twice; what the others wave through is not counted.
    """
    heard = new_database.Heard(old=True)
    for line in said:
        heard.line(line)
    heard.end(parallel)

    assert unheard == heard.unheard


def test_each_call_of_pg_restore_counts_its_own() -> None:
    """What one call told does not stand for what the next one is silent about."""
    heard = new_database.Heard(old=True)
    for said in ([*PAIR, *PAIR, *OTHER, f"{COUNTED}3"], [*PAIR, *PAIR, f"{COUNTED}3"]):
        for line in said:
            heard.line(line)
        heard.end(2)

    assert 1 == heard.unheard


@pytest.mark.parametrize(
    ("listed", "entry", "schema"),
    [
        ("TABLE DATA public users unicorn", "TABLE DATA users unicorn", "public"),
        ("TABLE DATA a b c d e", "TABLE DATA c d e", "a b"),
        ("INDEX INDEX TABLE DATA", "INDEX TABLE DATA", "INDEX"),
        ("FK CONSTRAINT own orders orders_fk ", "FK CONSTRAINT orders orders_fk ", "own"),
        ("EXTENSION - known ", "EXTENSION known ", "-"),
        ("", "TABLE DATA users unicorn", ""),
    ],
)
def test_schema_of_an_entry_is_what_the_list_says_more(
    listed: str, entry: str, schema: str
) -> None:
    """An error names none; where the list says nothing it is not known."""
    problem = new_database.Complaint("no", entry, "7")

    assert [schema] == [each.schema for each in new_database.placed([problem], {"7": listed})]


def test_schema_with_a_line_end_is_known_by_the_list() -> None:
    """Which has it in one line."""
    entry = "TABLE DATA known provider"
    (problem,) = new_database.placed(
        [new_database.Complaint("no", entry, "7")], {"7": "TABLE DATA a b known provider"}
    )

    assert problem.touches([problem.name], {("a\nb", "known")})
    assert not problem.touches([problem.name], {("a", "known")})
    assert problem.fills('"a\nb".known')


@pytest.mark.parametrize(
    ("said", "lacks"),
    [
        ('ERROR:  column "a" inherits conflicting default values', False),
        ("ERROR:  generation expression is not immutable", True),
        ('ERROR:  there is no built-in function named "provider_now"', True),
        ("ERROR:  function pg_catalog.aurora_version() does not exist", True),
        ('ERROR:  could not access file "$libdir/ours": No such file or directory', True),
        ("ERROR:  compression method lz4 not supported", True),
        ("ERROR:  unsupported XML feature", True),
        ('ERROR:  could not create locale "xx_YY.utf8": No such file or directory', True),
        ('ERROR:  security label provider "selinux" is not loaded', True),
        ('ERROR:  extension "ours" is not available', True),
        ('ERROR:  unrecognized configuration parameter "rds.x"', True),
        ('ERROR:  foreign-data wrapper "w" has no handler', True),
    ],
)
def test_what_another_server_may_lack_is_told_by_its_words(said: str, lacks: bool) -> None:  # noqa: FBT001
    """What it cannot lack is a fault of the dump, wherever it is restored."""
    assert lacks == copies.may_lack(f"could not execute query: {said}")
