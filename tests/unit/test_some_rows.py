"""Which rows a partial rehearsal has."""

from preflight.rehearsal import some_rows

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
        types=[("public", "mail", USERS)],
    )  # fmt: skip


def choice(free: int, *names: str) -> some_rows.Choice:
    """Return what is chosen for some names without a schema."""
    return some_rows.choose(graph(), some_rows.Said({("", name) for name in names}), free, "why")


def test_touched_tables_come_with_what_they_refer_to_and_what_refers_to_them() -> None:
    """Keys from there to tables without rows are left out; a new row that needs one is doubted."""
    found = choice(50, "users")

    assert ("public.countries", "public.orders", "public.users") == found.tables
    assert (41, [13], {"of_bulk"}) == (found.size, list(found.keys), set(found.loose))
    assert {BULK: "public.bulk", PART: "public.part"} == found.empty
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
