"""Which rows a partial rehearsal has."""

import dataclasses

import pytest

from preflight.base.errors import RehearsalFailed
from preflight.files import migrations
from preflight.rehearsal import scratch, some_rows

USERS, ORDERS, COUNTRIES, BULK, PARTS, PART, VIEW = range(1, 8)
SIZES = {USERS: 10, ORDERS: 30, COUNTRIES: 1, BULK: 100, PART: 20}


def graph() -> some_rows.Graph:
    """Return users, whom orders refer to, who refer to countries; a bulk; a partition; a view."""
    names = ("users", "orders", "countries", "bulk", "parts", "part", "everybody")
    return some_rows.Graph(
        {
            oid: some_rows.Relation(
                "public", name, "v" if oid == VIEW else "p" if oid == PARTS else "r",
                SIZES.get(oid, 0),
            )
            for oid, name in enumerate(names, 1)
        },
        {-1: some_rows.Function("public", "mend", "plpgsql", "BEGIN DELETE FROM Parts; END")},
        {
            11: some_rows.Key("of_user", ORDERS, USERS, "constraint of_user of public.orders"),
            12: some_rows.Key("at_home", USERS, COUNTRIES, "constraint at_home of public.users"),
            13: some_rows.Key("of_bulk", ORDERS, BULK, "constraint of_bulk of public.orders"),
        },
        parents=[(PART, PARTS)],
        leading=[(VIEW, USERS)],
        types=[("mail", USERS)],
    )  # fmt: skip


def choice(free: int, *names: str) -> some_rows.Choice:
    """Return what is chosen for some names without a schema."""
    said = some_rows.Said({("", name) for name in names}, set(names))
    return some_rows.choose(graph(), said, free, "why")


def test_touched_tables_come_with_what_they_refer_to_and_what_refers_to_them() -> None:
    """Keys from there to tables without rows are left out; a new row that needs one is doubted."""
    found = choice(50, "users")

    assert ("public.countries", "public.orders", "public.users") == found.tables
    assert (41, [13], {"of_bulk"}) == (found.size, list(found.keys), set(found.loose))
    assert {BULK: "public.bulk", PART: "public.part"} == {n: t.told for n, t in found.empty.items()}
    assert "" == found.doubt


def test_what_refers_to_them_goes_first_where_there_is_no_room() -> None:
    """Then what they refer to, and the largest of themselves last of all, which is said."""
    assert ("public.countries", "public.users") == choice(12, "users").tables
    assert ("public.users",) == choice(10, "users").tables
    assert (("public.users",), ("public.bulk",)) == (
        choice(10, "users", "bulk").tables,
        choice(10, "users", "bulk").left_out,
    )
    assert "the rows of public.bulk" == choice(10, "users", "bulk").doubt


def test_names_lead_on() -> None:
    """A view to its tables, a function to the words of its body, a type to whoever uses it."""
    assert choice(50, "users").tables == choice(50, "everybody").tables
    assert choice(50, "users").tables == choice(50, "mail").tables
    assert ("public.part",) == choice(50, "mend").tables
    assert () == choice(50, "nothing").tables


def test_name_with_a_schema_is_of_that_schema_alone() -> None:
    """One without is of any."""
    said = some_rows.Said({("other", "users")})

    assert () == some_rows.choose(graph(), said, 50, "why").tables


def failure(words: str, sqlstate: str) -> RehearsalFailed:
    """Return a failure on the copy with the server's words."""
    return RehearsalFailed("rehearsal.failed", words, "", sqlstate=sqlstate)


@pytest.mark.parametrize("name", ["of_bulk", "fk-orders-bulk", "key of bulk", "Key"])
def test_key_that_is_left_out_explains_a_failure_whatever_it_is_called(name: str) -> None:
    """With the server's quotes around it, or without."""
    left = dataclasses.replace(graph().keys[13], name=name)
    found = dataclasses.replace(choice(41, "users"), keys={13: left}, loose=frozenset({name}))
    words = f'constraint "{name}" of relation "orders" does not exist'

    assert some_rows.explained(found, failure(words, "42704"))
    assert not some_rows.explained(found, failure('constraint "other" does not exist', "42704"))


def test_lock_that_is_too_long_with_some_rows_is_too_long_with_all() -> None:
    """Whatever the copy is without: more rows take longer."""
    too_long = RehearsalFailed("rehearsal.lock_too_long", "held for 0.5 s on mid")
    deciding = dataclasses.replace(choice(10, "users", "bulk"), decides=True)

    assert None is some_rows.explained(deciding, too_long)


def test_duplicate_is_doubted_where_rows_are_computed_from_what_is_not_there() -> None:
    """Of files that only build an index it is certain."""
    found = choice(10, "users", "bulk")
    duplicate = failure('could not create unique index "u"', "23505")

    assert None is some_rows.explained(found, duplicate)
    assert some_rows.explained(dataclasses.replace(found, writes=True), duplicate)


PUT_TOGETHER = """
DO $$ DECLARE t text; BEGIN
    FOR t IN SELECT relname FROM pg_class LOOP
        EXECUTE format('UPDATE %I SET id = 1', t);
    END LOOP;
END $$
"""


@pytest.mark.parametrize(
    ("text", "unread", "writes"),
    [
        ("CREATE UNIQUE INDEX i ON users (id)", False, False),
        ("UPDATE users SET id = 1", False, True),
        ("CREATE TABLE two AS SELECT * FROM users", False, True),
        ("DO $$ BEGIN EXECUTE 'UPDATE users SET id = 1'; END $$", False, True),
        (PUT_TOGETHER, True, True),
    ],
)
def test_what_a_file_may_touch_unseen_is_known(text: str, unread: bool, writes: bool) -> None:  # noqa: FBT001
    """A name that is put together is known when it runs; rows may be computed."""
    found = some_rows.said([migrations.Script("001_a.sql", text.encode(), "sum")])

    assert (unread, writes) == (bool(found.unread), found.writes)


def test_table_that_was_renamed_since_the_dump_is_noticed() -> None:
    """By its number; under any name, and not where the archive is in another encoding."""
    odd = some_rows.Relation("public", "a\nb", "r")
    found = dataclasses.replace(
        choice(41, "users"), empty={1: odd, 2: some_rows.Relation("a", "ü", "r")}
    )

    assert [None, "public.a\nb", None, None] == [
        found.renamed(1, "public a b owner"),
        found.renamed(1, "public before owner"),
        found.renamed(2, "a ? owner"),
        found.renamed(3, "public other owner"),
    ]


def test_what_always_has_its_rows_may_be_too_much() -> None:
    """Then nothing is restored, and the reason is why not all."""
    ours = some_rows.Graph({1: some_rows.Relation("preflight", "journal", "r", 20, always=True)})

    with pytest.raises(scratch.Unavailable, match="why"):
        some_rows.choose(ours, some_rows.Said(), 10, "why")


def test_error_in_the_file_is_doubted_where_rows_decide_what_it_does() -> None:
    """What a block makes, or not, because of rows; and what a policy lets in."""
    found = choice(10, "users", "bulk")
    missing = failure('relation "made" does not exist', "42P01")
    deciding = dataclasses.replace(found, decides=True)

    assert None is some_rows.explained(found, missing)
    assert some_rows.explained(deciding, missing)
    assert some_rows.explained(found, failure("new row violates row-level security", "42501"))
