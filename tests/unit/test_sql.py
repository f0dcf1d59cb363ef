"""Cutting a script into statements, and telling what they are."""

import random
import re

import postgast
import pytest

from preflight.files import effects, kinds, parser, scan

# every piece that begins, ends or disguises something
PIECES = (
    "'", "'", "''", "E'", "e'", "\\'", "\\\\", "U&'", "B'", "N'", "$$", "$a$", "$é$", "$a", "$1",
    "--", "-", "\n", "\n", "\r", "/*", "*/", "/", "*", ";", ";", ";", "(", ")", '"', '""', " ", " ",
    "a", "e", "E", "é", "1", "x_", "date", "select", "+", "a$b", "\t", ".", "-- preflight: x",
)  # fmt: skip
# valid statements that look like several, or like none
STATEMENTS = (
    "SELECT 1",
    "SELECT ';'",
    "SELECT 'it''s; here', E'a\\';', U&'d\\0061t;', B'01', N'x;', date'2020-01-01'",
    "SELECT E'a'\n  '\\';'",
    'SELECT "a;b" FROM "c""d;"',
    'SELECT U&"d\\0061t;" FROM t',
    "SELECT $$a;b$$ || $x$;$$;$x$ || $é_1$;$é_1$",
    "SELECT a$b$c FROM t",
    "SELECT 1 /* ; /* nested ; */ ' */ + 2",
    "SELECT 1 -- ; ' $$ /* (\n + 2",
    "SELECT 5*/*;*/3, 5/ 3, - -1",
    "SELECT ((1)), (SELECT (2 + (3 * (4))))",
    "SELECT * FROM f(',', ';', $$($$)",
    "INSERT INTO t VALUES (1, 'a;'), (2, E'\\\\'), (3, $$;$$)",
    "DO $do$ BEGIN PERFORM 1; COMMIT; END $do$",
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS $$ SELECT 1; SELECT 2; $$",
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1; SELECT 2'",
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; SELECT 2; END",
    """CREATE OR REPLACE /* ; */ FUNCTION f() RETURNS int BEGIN ATOMIC
      SELECT CASE WHEN true THEN 1 ELSE CASE 1 WHEN 1 THEN 2 END END; SELECT 3; END""",
    "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT t.end, 1 AS case FROM t; SELECT 2; END",
    "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT begin FROM t; SELECT 2; END",
    'CREATE PROCEDURE "begin"(atomic int) BEGIN ATOMIC INSERT INTO t VALUES (1); END',
    "CREATE FUNCTION atomic() RETURNS int RETURN 1",
    "CREATE RULE r AS ON INSERT TO t DO ALSO (INSERT INTO u VALUES (1); DELETE FROM v;)",
    "CREATE TABLE t (\n  a int, -- first;\n  b text DEFAULT ';' /* ; */\n)",
    "CREATE TRIGGER tr BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f(';')",
    "COMMENT ON TABLE t IS 'a; -- b'",
    "BEGIN",
    "END",
    "COPY t TO STDOUT",
)
GAPS = ("", " ", "\n", "-- c;'\n", "/* ;' */", "\n\n-- $$\n/* /* */ */\t", ";", " ; ;")


def cut(text: str) -> list[str]:
    """Return the texts of the statements in a script without defects."""
    script = text.encode()
    found = list(scan.items(script))
    assert not [item for item in found if isinstance(item, scan.Defect)], found
    return [each.text(script).decode() for each in found if isinstance(each, scan.Statement)]


def tokens_say(text: str) -> list[int]:
    """Return where statements end, from the tokens of PostgreSQL's own scanner."""
    script, ends, depth, begun = text.encode(), [], 0, False
    for token in postgast.scan(text).tokens:
        word = script[token.start : token.end]
        if word.startswith((b"--", b"/*")):
            continue
        if word == b";" and depth == 0:
            ends += [token.start] if begun else []
            begun = False
            continue
        begun = True
        depth = max(0, depth + (word == b"(") - (word == b")"))
    return ends + ([len(script)] if begun else [])


def test_noise_is_cut_where_postgresql_would_cut_it() -> None:
    """Whatever quotes, comments and names are thrown together, the scanners agree."""
    dice, compared, unterminated = random.Random(20261123), 0, 0  # noqa: S311 - repeatable noise
    while compared < 15_000:
        text = "".join(dice.choices(PIECES, k=dice.randint(1, 25)))
        found = list(scan.items(text.encode()))
        defects = [item for item in found if isinstance(item, scan.Defect)]
        if any("meta-command" in defect.message for defect in defects):
            continue  # a backslash: not SQL
        if re.search(r"'\s*--", text):
            continue  # the server goes on with a string after a comment; libpg_query does not
        try:
            expected = tokens_say(text)
        except postgast.PgQueryError as error:
            refused = str(error)
        else:
            refused = ""
        if refused:
            assert defects or "unterminated" not in refused, f"{text!r}: {refused}"
            unterminated += "unterminated" in refused
            continue
        compared += 1
        ends = [item.end for item in found if isinstance(item, scan.Statement)]
        assert (expected, []) == (ends, defects), repr(text)
    assert unterminated > 1000


def test_string_goes_on_after_a_comment_and_a_line_end() -> None:
    """What the scanner above cannot be asked; every server from 13 to 18 does it."""
    assert ["SELECT E'a' -- c\n '\\';'", "SELECT 2"] == cut("SELECT E'a' -- c\n '\\';'; SELECT 2")


def test_statements_are_cut_where_the_grammar_ends_them() -> None:
    """Every tricky statement beside every other, as PostgreSQL's parser splits them."""
    dice = random.Random(18)  # noqa: S311 - repeatable
    for _ in range(400):
        chosen = dice.choices(STATEMENTS, k=dice.randint(1, 6))
        text = dice.choice(GAPS)
        for statement in chosen:
            text += statement + dice.choice(("", " ", "\n")) + ";" + dice.choice(GAPS)
        expected = [each.strip() for each in postgast.split(text, method="parser")]
        assert expected == [each.strip() for each in cut(text)], text


# what stands in a body: numbers as they may be written, and END, CASE, BEGIN where they end nothing
VALUES = (
    "1.", ".5", "1.5", "0.0", "1e5", "1.e-5", "1_000", "0x1F", "0b1", "$1", "a", "t.a", "t.*",
    "t.end", "t . case", "t./* ; */end", "t.-- ;\n begin", "x.end.case", '"end"', '"case"',
    "atomic", "begin * atomic", "'END;'", "$$; END;$$", "E'\\'; END'", "a[1:2]", "count(*)",
    "f(a => 1.)", "a::numeric(3, 1)", "(SELECT 1. end)", "CASE WHEN a THEN 1. END",
    "CASE a.end WHEN 1 THEN 2 ELSE .5 END",
    "CASE CASE WHEN true THEN 0.0 END WHEN 1 THEN (CASE WHEN b THEN 1 END) END",
)  # fmt: skip
LABELS = ("", "", "", " AS end", " end", " case", " AS case", ' AS "end"', " atomic", " AS begin")
SIGNS = (" + ", " * ", "*", " - ", " || ", " @-+ ", "\n-- END;\n+ ", " /* ; */ - ", "/")
KINDS = (
    "SELECT {}", "SELECT {} FROM t", "SELECT 1, {}", "RETURN {}", "VALUES (1.), (.5)", "",
    "WITH x AS (SELECT {}) TABLE x", "INSERT INTO t VALUES (1) RETURNING {}",
    "UPDATE t SET begin = {}", "DELETE FROM t AS atomic WHERE {}",
    "CREATE RULE r AS ON INSERT TO t DO (SELECT 1.; SELECT 2)",
)  # fmt: skip
HEADS = (
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql {}",
    "create or replace procedure s . /* ; */ p(a int DEFAULT 1., begin atomic = 'x;') {}",
    "CREATE FUNCTION s.-- ;\n f(text DEFAULT $$;$$) RETURNS TABLE (begin atomic) COST 0.5 {}",
    'CREATE FUNCTION "BEGIN ATOMIC"() RETURNS begin {}',
)
ASIDES = (" ", "/* ; */", "-- END;\n")


def body(dice: random.Random) -> str:
    """Return a body in SQL as somebody might write it, without the semicolon behind it."""
    if dice.random() < 0.1:
        return f"RETURN {dice.choice(VALUES)}"
    said = ""
    for kind in dice.choices(KINDS, k=dice.randint(0, 4)):
        value = dice.choice(VALUES)
        for _ in range(dice.randint(0, 3)):
            value += dice.choice(SIGNS) + dice.choice(VALUES)
        if kind.startswith(("SELECT", "INSERT", "WITH")):
            value += dice.choice(LABELS)
        said += f" {kind.format(value)}{dice.choice(ASIDES)};"
    return f"BEGIN{dice.choice(ASIDES)}ATOMIC{said}{dice.choice(ASIDES)}END"


def test_bodies_in_sql_end_where_the_grammar_ends_them() -> None:
    """Numbers, operators and names before an END neither hide it nor make one of it."""
    dice, compared = random.Random(14), 0  # noqa: S311 - repeatable
    while compared < 1500:
        made = [dice.choice(HEADS).format(body(dice)) for _ in range(2)]
        text = f"{made[0]};\nSELECT 0.5;\n{made[1]};\nCOMMIT"
        try:
            expected = [each.strip() for each in postgast.split(text, method="parser")]
        except postgast.PgQueryError:
            continue
        compared += 1
        assert expected == [each.strip() for each in cut(text)], text


@pytest.mark.parametrize("rest", ["SELECT 1 END", "SELECT 1; SELECT CASE WHEN a THEN 1 END"])
def test_body_in_sql_that_never_ends_is_told(rest: str) -> None:
    """The server would take what follows for a part of it, and refuse all of it."""
    text = f"SELECT 1;\nCREATE FUNCTION f() RETURNS int BEGIN ATOMIC {rest};\nCOMMIT;"
    (defect,) = [item for item in scan.items(text.encode()) if isinstance(item, scan.Defect)]

    assert (10, "this BEGIN ATOMIC never ends") == (defect.start, defect.message)


def test_lone_carriage_return_ends_a_comment() -> None:
    """The server runs what follows it, so it must not hide a COMMIT."""
    assert ["COMMIT"] == cut("-- harmless\rCOMMIT;")


def test_mark_of_goose_ends_a_statement_as_a_semicolon_does() -> None:
    """At the beginning of a line, alone or behind a semicolon; elsewhere it is a comment."""
    mark = "-- +goose StatementEnd\n"
    begun = "-- +goose StatementBegin\n"
    texts = [
        "CREATE FUNCTION f() AS $$;$$\n",
        "SELECT (1\n  " + mark + ")",
        "SELECT 'a\n" + mark + "'",
    ]
    script = f"{begun}{texts[0]}{mark}{begun}{texts[1]};\n{mark}{mark}{texts[2]}\n;{mark}"

    assert [each.strip() for each in texts] == [each.strip() for each in cut(script)]


def test_quoting_needs_standard_strings_only_where_it_says_so() -> None:
    """A backslash ends nothing in a plain string, and escapes in E'…'."""
    assert [r"SELECT 'a\'", "SELECT 'b'"] == cut(r"SELECT 'a\'; SELECT 'b'")
    assert [r"SELECT E'a\'; '"] == cut(r"SELECT E'a\'; '")


OFF = "SET standard_conforming_strings = off"
# what a server reads as one statement only while backslashes escape in every text
ESCAPED = (
    r"SELECT 'it\'s; ok', '\\', '\'; --'",
    r"SELECT date'\'', ('a\'(', 'b')" + "\n -- it\\'s\n",
    "SELECT 'a'\n  '\\';'",
    r"COPY t FROM '/a\' FROM STDIN; '",
    r"""CREATE FUNCTION f() RETURNS text BEGIN ATOMIC
      SELECT '\'END;', CASE WHEN true THEN 'a\'' END; SELECT '\'; END'; END""",
    r"DO 'BEGIN PERFORM \'; /*\'; END'",
)


@pytest.mark.parametrize("text", ESCAPED)
@pytest.mark.parametrize(
    "said",
    [
        OFF,
        OFF.upper(),
        "SET LOCAL standard_conforming_strings TO 'off'",
        "/* a */ set /* ' */ session -- '\n \"standard_conforming_strings\"=false",
        "SET standard_conforming_strings TO 0",
    ],
)
def test_backslash_escapes_where_a_file_sets_it(said: str, text: str) -> None:
    """Behind such a SET a plain text is cut as the server reads it, and others as ever."""
    assert [said.removeprefix("/* a */ "), text, "SELECT 1"] == cut(f"{said};\n{text};\nSELECT 1")


@pytest.mark.parametrize(
    "said",
    [
        "SET standard_conforming_strings = on",
        "SET standard_conforming_strings TO DEFAULT",
        "RESET standard_conforming_strings",
        "RESET /* a */ ALL",
        "set Local standard_conforming_strings to 'on'",
    ],
)
def test_backslash_escapes_until_a_file_sets_it_back(said: str) -> None:
    """What is set to nothing of that kind, or to on, ends it."""
    assert [OFF, r"SELECT 'a\';'", said, r"SELECT 'b\'", "SELECT 1"] == cut(
        rf"{OFF};SELECT 'a\';';{said};SELECT 'b\';SELECT 1"
    )


@pytest.mark.parametrize(
    "said",
    [
        "SELECT 'SET standard_conforming_strings = off'",
        "-- SET standard_conforming_strings = off;\nSELECT 1",
        "SET escape_string_warning = off",
        "SET LOCAL standard_conforming_strings_2 = off",
        "UPDATE t SET standard_conforming_strings = off",
    ],
)
def test_backslash_escapes_for_nothing_else(said: str) -> None:
    """A text, a comment, another setting, a column."""
    assert [r"SELECT 'a\'", "SELECT 1"] == cut(rf"{said};SELECT 'a\';SELECT 1")[1:]


def test_local_setting_decides_nothing_without_a_transaction() -> None:
    """There it ends with its own statement."""
    said = OFF.replace("SET", "SET LOCAL")
    text = rf"{said};SELECT 'a\';SELECT 1"
    for found in (
        cut(f"-- preflight: no-transaction\n{text}"),
        [
            each.text(text.encode()).decode()
            for each in scan.statements(text.encode(), unbound=True)
        ],
    ):
        assert [said, r"SELECT 'a\'", "SELECT 1"] == found


@pytest.mark.parametrize("text", [each for each in ESCAPED if "FROM" not in each])
def test_statement_with_escapes_is_understood(text: str) -> None:
    """To PostgreSQL's parser and all that looks at words it is a text of the same length."""
    script = f"{OFF};{text}".encode()
    _, statement = scan.statements(script)
    read = statement.read(script)

    assert text.encode() == statement.text(script)
    assert len(text.encode()) == len(read)
    assert parser.parsed(read)
    assert not parser.parsed(statement.text(script))


@pytest.mark.parametrize(
    ("text", "message", "place"),
    [
        ("SELECT 1;\nSELECT 'it;\n", "this string never ends", (2, 8)),
        ("SELECT E'it\\';", "this string never ends", (1, 9)),
        ('é; SELECT "a;', "this quoted name never ends", (1, 11)),
        ("SELECT $body$ a $$ $BODY$;", "this $body$ never ends", (1, 8)),
        ("SELECT 1; /* a /* b */ ;", "this comment never ends", (1, 11)),
        ("\\i other.sql\nSELECT 1;", "psql meta-command \\i", (1, 1)),
        ("SELECT 1;\n  \\set x 'y;\n", "psql meta-command \\set", (2, 3)),
        ("SELECT 1 \\gexec\n", "psql meta-command \\gexec", (1, 10)),
        ("\\.\n", "\\. ends inline COPY data, but no COPY … FROM stdin is open", (1, 1)),
        ("COPY t FROM stdin;", "COPY … FROM stdin without its data on the next line", (1, 1)),
        ("COPY t FROM stdin; SELECT 1;\n1\n\\.\n",
         "COPY … FROM stdin without its data on the next line", (1, 1)),
        ("SELECT 1;\nCOPY t FROM stdin;\n1\n\\. \n",
         "the data of COPY … FROM stdin never ends", (2, 1)),
    ],
)  # fmt: skip
def test_defect_is_named_with_its_place(text: str, message: str, place: tuple[int, int]) -> None:
    """What never ends is reported where it begins; the column counts characters."""
    script = text.encode()
    defect = next(item for item in scan.items(script) if isinstance(item, scan.Defect))

    assert (message, place) == (defect.message, scan.position(script, defect.start))


@pytest.mark.fault("D097")
def test_all_meta_commands_are_found() -> None:
    """One does not hide the next."""
    found = scan.items(b"\\i a\nSELECT 1;\n\\i b\n\\connect c\n")
    assert [0, 15, 20] == [item.start for item in found if isinstance(item, scan.Defect)]


def test_backslash_inside_quotes_and_comments_is_no_command() -> None:
    r"""'\i', "\i", $$\i$$ and comments are the user's business."""
    text = r"""SELECT '\i', "\i", $$\i$$, E'\\i' -- \i
 /* \i */"""
    assert [text] == cut(text)


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("COPY t FROM stdin;\n1\ta\n2\tb\n\\.\n", "1\ta\n2\tb\n"),
        ("copy t (a, b)\n from STDIN with (format csv); -- rows\n1,';\n\\.", "1,';\n"),
        ("COPY t FROM stdin;\n\\.\n", ""),
        ("COPY t FROM stdin;\nSELECT 1; -- '\n/*\nx\\.\n\\.y\n \\.\n\\.\n",
         "SELECT 1; -- '\n/*\nx\\.\n\\.y\n \\.\n"),
        ("COPY t FROM STDOUT;\n1\n\\.\n", "1\n"),
        ("COPY t (" + ", ".join(f"c{i}" for i in range(300)) + ") FROM stdin;\n1\n\\.\n", "1\n"),
    ],
)  # fmt: skip
def test_copy_data_is_found(text: str, data: str) -> None:
    r"""Rows begin after the line of the semicolon and end before the line that is exactly `\.`."""
    script = text.encode() + b"\nSELECT 'next'"
    first, second = scan.statements(script)
    begin, end = scan.copy_data(script, first)

    assert data == script[begin:end].decode()
    assert b"SELECT 'next'" == second.text(script)


def test_copy_data_may_end_with_the_file() -> None:
    r"""The last line needs no line end."""
    script = b"COPY t FROM stdin;\n1\n\\."
    (only,) = scan.statements(script)
    begin, end = scan.copy_data(script, only)

    assert b"1\n" == script[begin:end]


@pytest.mark.parametrize(
    "text",
    [
        "COPY t FROM '/a/file'",
        "COPY t TO STDOUT",
        "COPY (SELECT * FROM stdin) TO STDOUT",
        "COPY t FROM PROGRAM 'cat stdin'",
        "SELECT 1 FROM stdin",
    ],
)
def test_other_copies_have_no_data(text: str) -> None:
    """Only COPY … FROM stdin is followed by rows."""
    assert [text, "SELECT 2"] == [each.strip() for each in cut(text + ";\nSELECT 2;")]


def test_directives_are_comments_of_their_own_kind() -> None:
    """They are found wherever they stand, and nothing else is taken for one."""
    script = (
        b"-- preflight: no-transaction\n--PREFLIGHT:lock-timeout 5s  \n/* preflight: breaking */\n"
        b"-- about preflight: x\nSELECT '-- preflight: a', $$\n-- preflight: b\n$$ --preflight: c\n"
    )
    found = [item.text for item in scan.items(script) if isinstance(item, scan.Directive)]

    assert ["no-transaction", "lock-timeout 5s", "c"] == found


@pytest.mark.fault("D101")
@pytest.mark.parametrize(
    "text",
    [
        "BEGIN", "begin work", "START TRANSACTION", "COMMIT AND CHAIN", "End", "ROLLBACK",
        "ABORT", "SAVEPOINT a", "RELEASE a", "ROLLBACK TO a", "PREPARE /* */ TRANSACTION 'x'",
        "COMMIT PREPARED 'x'",
    ],
)  # fmt: skip
def test_transaction_control_is_recognised(text: str) -> None:
    """All of it, in any case and however it is spaced."""
    assert kinds.is_control(text.encode())


@pytest.mark.parametrize(
    "text",
    ["PREPARE p AS SELECT 1", "SET TRANSACTION READ ONLY", "DO $$ BEGIN COMMIT; END $$",
     "SELECT 'COMMIT'", "CREATE TABLE begin ()"],
)  # fmt: skip
def test_other_statements_are_no_transaction_control(text: str) -> None:
    """Words in bodies, names and strings do not count."""
    assert not kinds.is_control(text.encode())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT 1", True),
        ("( /* c */ (SELECT 1))", True),
        ("WITH a AS (SELECT 1) TABLE a", True),
        ("VALUES (1)", True),
        ("INSERT INTO t SELECT 1", False),
        ("EXPLAIN SELECT 1", False),
        ("SET x = 1", False),
    ],
)
def test_queries_are_recognised(text: str, *, expected: bool) -> None:
    """Verify and export files hold nothing else."""
    assert expected == kinds.reads_only(text.encode())


def test_places_of_many_are_those_of_each() -> None:
    """Counted in one go, because a file may have a million statements."""
    script = "SELECT 'é'; SELECT 2;\n\n  SELECT\n 3;SELECT 4".encode()
    starts = [statement.start for statement in scan.statements(script)]

    assert [scan.position(script, start) for start in starts] == [*scan.places(script, starts)]
    assert [(1, 1), (1, 13), (3, 3), (4, 4)] == [*scan.places(script, starts)]


@pytest.mark.parametrize(
    "text",
    [
        "SELECT " + "1 + " * 500 + "1",
        "SELECT '<td>'" + " || coalesce(a, '') || '</td>'" * 60,
        "SELECT " + "f(" * 200 + "1" + ")" * 200,
        " UNION ALL ".join(["SELECT 1"] * 600),
        "INSERT INTO t VALUES " + ", ".join(["(1, 'x')"] * 5000),
        "SELECT " + " OR ".join(f"a = {n}" for n in range(3000)),
    ],
    ids=["operators", "concatenations", "calls", "unions", "rows", "conditions"],
)
def test_everyday_size_is_understood(text: str) -> None:
    """48 operators in a row were a bug of ours."""
    assert parser.parsed(text.encode()) is not None
    assert "not understood" not in effects.of(text.encode()).does


@pytest.mark.parametrize("times", [50_000, 300_000])
@pytest.mark.parametrize("what", ["1 + ", "- ", "("])
def test_what_ends_the_parser_ends_only_the_look(what: str, times: int) -> None:
    """It is not known what such a statement does; the server has the last word."""
    text = f"SELECT {what * times}1{')' * times if what == '(' else ''}".encode()

    assert None is parser.parsed(text)
    assert "select" in effects.of(text).does


@pytest.mark.parametrize(
    ("text", "queues_nobody"),
    [
        ("CREATE INDEX CONCURRENTLY i ON t (a)", True),
        ("create unique index /* now */ concurrently i ON t (a)", True),
        ("DROP INDEX CONCURRENTLY i", True),
        ("REINDEX (VERBOSE, CONCURRENTLY) TABLE t", True),
        ("REINDEX (CONCURRENTLY off) TABLE CONCURRENTLY t", True),
        ("REINDEX SCHEMA CONCURRENTLY s", True),
        ("REINDEX (CONCURRENTLY off) SCHEMA s", False),
        ("REINDEX (CONCURRENTLY 0) SCHEMA s", False),
        ("REINDEX (CONCURRENTLY 'false') SCHEMA s", False),
        ("REINDEX /* not CONCURRENTLY */ DATABASE d", False),
        ("REINDEX TABLE concurrently.t", False),
        ('DROP INDEX "concurrently"', False),
        ("CREATE INDEX i ON t (a) WHERE b = 'concurrently'", False),
        ("-- not concurrently\nVACUUM FULL t", False),
        ("VACUUM FULL concurrently", False),
        ("DO $$BEGIN /* concurrently */ END$$", False),
        ("ALTER TABLE t DETACH PARTITION p CONCURRENTLY", False),
        ("REFRESH MATERIALIZED VIEW CONCURRENTLY m", False),
        ("CREATE INDEX CONCURRENTLY i ON t (a) WITHOUT GRAMMAR OF TODAY", False),
    ],
)
def test_word_in_the_text_decides_nothing(text: str, queues_nobody: bool) -> None:  # noqa: FBT001
    """Only what PostgreSQL's parser calls CONCURRENTLY may wait for its locks without end."""
    assert queues_nobody == kinds.queues_nobody(text.encode())


@pytest.mark.parametrize(
    ("text", "sets"),
    [
        ("SET lock_timeout = 0", True),
        ('SET SESSION "lock_timeout" TO DEFAULT', True),
        ("RESET lock_timeout", True),
        ("RESET ALL", True),
        ("SET LOCAL lock_timeout = 0", False),
        ("SET search_path = lock_timeout", False),
    ],
)
def test_file_that_sets_lock_timeout_is_known_by_its_grammar(text: str, sets: bool) -> None:  # noqa: FBT001
    """Quoted it is the same setting, and as a value it is none."""
    assert sets == kinds.sets_lock_timeout(text.encode())
