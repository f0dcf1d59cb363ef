"""Where there is no room for every row, the files meet those that they touch."""

import json
from pathlib import Path

import pytest

from tests import servers
from tests.conftest import Run, WriteMigrations

SHOP = """
CREATE TABLE countries (code text PRIMARY KEY);
INSERT INTO countries VALUES ('de'), ('fr');
CREATE TABLE users (id int PRIMARY KEY, email text, country text REFERENCES countries);
INSERT INTO users SELECT n, 'user-' || n, 'de' FROM generate_series(1, 1000) n;
INSERT INTO users VALUES (0, 'user-1', 'fr');
CREATE TABLE bulk (id int PRIMARY KEY, text text);
INSERT INTO bulk SELECT n, repeat(md5(n::text), 30) FROM generate_series(1, 10000) n;
CREATE TABLE orders (id int PRIMARY KEY, user_id int REFERENCES users, bulk_id int REFERENCES bulk);
INSERT INTO orders SELECT n, n, n FROM generate_series(1, 100) n;
CREATE TABLE notes (id int, text text);
INSERT INTO notes VALUES (1, 'a'), (1, 'b');
CREATE MATERIALIZED VIEW long_ones AS SELECT id FROM bulk WHERE length(text) > 10;
CREATE MATERIALIZED VIEW homes AS SELECT code FROM countries;
"""
DUPLICATE = "CREATE UNIQUE INDEX ON users (email);"


@pytest.fixture(autouse=True)
def settings(environment: dict[str, str]) -> None:
    """Allow 3 MB, and have 15."""
    environment["PREFLIGHT_FIRST_CONTACT"] = "pending"
    environment["PREFLIGHT_REHEARSE"] = "auto"
    environment["PREFLIGHT_REHEARSE_MAX_MB"] = "3"


def verified(backup_dir: Path) -> list[str]:
    """Return how far each backup is verified."""
    found = [json.loads(each.read_bytes()) for each in backup_dir.glob("[!.]*/manifest.json")]
    return [each["verified"] for each in found]


def test_duplicate_is_caught_by_a_partial_rehearsal(
    run: Run, database: servers.Database, migrations: WriteMigrations, backup_dir: Path
) -> None:
    """27 before anybody's table is locked; the backup is called read, for no more is known."""
    database.script(SHOP)
    migrations({"001_one.sql": DUPLICATE})
    result = run()

    (started,) = result.event("rehearsal.started")
    assert (27, "23505") == (result.code, result.finished["error"]["sqlstate"]), result
    assert (True, ["public.countries", "public.orders", "public.users"]) == (
        started["partial"],
        started["tables"],
    )
    assert ["read"] == verified(backup_dir)


def test_partial_rehearsal_says_what_it_had_and_proves_no_backup(
    run: Run, database: servers.Database, migrations: WriteMigrations, backup_dir: Path
) -> None:
    """`partial`, the tables with rows, and `read`; a limit on locks was not measured."""
    database.script(SHOP)
    migrations(
        {"001_one.sql": "-- preflight: max-lock 10s\nALTER TABLE users ADD age int;"}
        | {"001_one_rollback.sql": "ALTER TABLE users DROP age;"}
    )
    result = run()

    (passed,) = result.event("rehearsal.passed")
    assert (0, True, "read") == (result.code, passed["partial"], passed["verified"]), result
    assert ["public.countries", "public.orders", "public.users"] == passed["tables"]
    assert ["001_one"] == passed["rollbacks_tried"]
    assert ["read"] == verified(backup_dir)
    (warned,) = result.event("rehearsal.warned")
    assert "the rehearsal was partial" in warned["reason"]


@pytest.mark.parametrize(
    ("more", "statement"),
    [
        pytest.param(
            "CREATE VIEW everybody AS SELECT id, email FROM users",
            "CREATE TABLE emails AS SELECT * FROM everybody; "
            "CREATE UNIQUE INDEX ON emails (email);",
            id="view",
        ),
        pytest.param(
            "CREATE TABLE inbox (email text); CREATE FUNCTION stamp() RETURNS trigger "
            "LANGUAGE plpgsql AS 'BEGIN IF (SELECT count(*) FROM users u WHERE u.email = NEW.email)"
            " > 1 THEN RAISE unique_violation; END IF; RETURN NEW; END';"
            "CREATE TRIGGER stamp BEFORE INSERT ON inbox FOR EACH ROW EXECUTE FUNCTION stamp()",
            "INSERT INTO inbox VALUES ('user-1');",
            id="trigger",
        ),
        pytest.param(
            "CREATE TABLE parts (id int, email text) PARTITION BY RANGE (id);"
            "CREATE TABLE part_one PARTITION OF parts FOR VALUES FROM (0) TO (9);"
            "INSERT INTO parts VALUES (1, 'a'), (1, 'a')",
            "ALTER TABLE parts ADD UNIQUE (id);",
            id="partition",
        ),
        pytest.param("", f"DO $$BEGIN EXECUTE '{DUPLICATE}'; END$$;", id="block"),
        pytest.param("", f"DO $$BEGIN EXECUTE format('{DUPLICATE}', 1); END$$;", id="format"),
        pytest.param(
            "CREATE FUNCTION mend() RETURNS void LANGUAGE sql AS "
            "'INSERT INTO users SELECT id + 5000, email FROM users'",
            "CREATE UNIQUE INDEX ON notes (id, text); SELECT mend(); "
            "DO $$BEGIN IF (SELECT count(*) FROM users) > 10 THEN RAISE unique_violation; END IF; "
            "END$$;",
            id="function",
        ),
        pytest.param(
            "CREATE DOMAIN mail AS text; CREATE TABLE mails (m mail); "
            "INSERT INTO mails VALUES ('no')",
            "ALTER DOMAIN mail ADD CHECK (VALUE LIKE '%@%');",
            id="domain",
        ),
        pytest.param(
            "CREATE DOMAIN mail AS text; CREATE DOMAIN work AS mail; CREATE TABLE mails (m work); "
            "INSERT INTO mails VALUES ('no')",
            "ALTER DOMAIN mail ADD CHECK (VALUE LIKE '%@%');",
            id="domain over domain",
        ),
        pytest.param(
            "CREATE TYPE pair AS (a text); CREATE TABLE pairs OF pair; "
            "INSERT INTO pairs VALUES ('long')",
            "ALTER TYPE pair ALTER ATTRIBUTE a TYPE varchar(1) CASCADE;",
            id="table of a type",
        ),
        pytest.param(
            "CREATE TABLE homes_of (id int PRIMARY KEY, user_id int REFERENCES users "
            "ON DELETE CASCADE); INSERT INTO homes_of VALUES (1, 500);"
            "CREATE TABLE rooms (home_id int REFERENCES homes_of); INSERT INTO rooms VALUES (1)",
            "DELETE FROM users WHERE id = 500;",
            id="cascade",
        ),
        pytest.param(
            "CREATE SCHEMA old; CREATE TABLE old.t (id int); INSERT INTO old.t VALUES (1), (1)",
            "ALTER SCHEMA old RENAME TO new; CREATE UNIQUE INDEX ON new.t (id);",
            id="renamed schema",
        ),
        pytest.param(
            "",
            "DO $$BEGIN IF to_regclass('USERS') IS NULL THEN RETURN; END IF; END$$;"
            "SELECT 1 / (xpath('//n/text()', query_to_xml("
            "'SELECT (count(*) < 5)::int AS n FROM Notes', true, false, '')))[1]::text::int;"
            "DO $$DECLARE o notes%ROWTYPE; BEGIN SELECT * INTO STRICT o FROM notes; END$$;",
            id="text",
        ),
        pytest.param(
            "CREATE TABLE rules (tag text); INSERT INTO rules VALUES ('CREATE VIEW');"
            "CREATE FUNCTION look() RETURNS event_trigger LANGUAGE plpgsql AS "
            "'BEGIN IF EXISTS (SELECT FROM public.rules WHERE tag = tg_tag) "
            "THEN RAISE ''not so''; END IF; END';"
            "CREATE EVENT TRIGGER look ON ddl_command_end WHEN TAG IN ('CREATE VIEW') "
            "EXECUTE FUNCTION look()",
            "CREATE VIEW one AS SELECT 1 AS one;",
            id="event trigger",
        ),
    ],
)
def test_file_meets_the_rows_that_it_gets_to_by_other_ways(
    more: str,
    statement: str,
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
) -> None:
    """Through a view, a trigger, partitions, a block, a function, a type, a key, a name."""
    database.script(f"{SHOP};{more}")
    migrations({"001_one.sql": statement})
    result = run()

    assert (27, "rehearsal.failed") == (result.code, result.finished["error"]["code"]), result
    assert [True] == [each["partial"] for each in result.event("rehearsal.started")]


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        pytest.param(
            "DO $$BEGIN IF NOT EXISTS (SELECT FROM bulk) THEN RAISE 'nothing'; END IF; END$$;",
            "the rows of public.bulk",
            id="too large",
        ),
        pytest.param(
            "ALTER TABLE orders DROP CONSTRAINT orders_bulk_id_fkey;",
            "orders_bulk_id_fkey",
            id="foreign key",
        ),
        pytest.param("SELECT 1 / count(*) FROM long_ones;", "long_ones", id="view"),
        pytest.param(
            "DO $$BEGIN IF EXISTS (SELECT FROM bulk) THEN CREATE TABLE made (); END IF; END$$;"
            "ALTER TABLE made ADD x int;",
            "the rows of public.bulk",
            id="decided by rows",
        ),
        pytest.param(
            "SELECT count(*) FROM orders; DO $$BEGIN IF (SELECT count(*) FROM pg_constraint "
            "WHERE contype = 'f' AND conrelid = 'orders'::regclass) < 2 THEN RAISE 'x'; END IF; "
            "END$$;",
            "foreign keys",
            id="keys counted",
        ),
        pytest.param(
            "DO $$BEGIN IF (SELECT max(pg_relation_size(oid)) FROM pg_class) < 5000000 THEN "
            "RAISE 'x'; END IF; END$$;",
            "how many rows there are",
            id="sizes asked",
        ),
    ],
)
def test_rows_that_are_missing_are_no_reason_to_refuse_a_file(
    statement: str, why: str, run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """What fails for want of them is not rehearsed, and says so; in earnest it passes."""
    database.script(SHOP)
    migrations({"001_one.sql": statement})
    result = run()

    (skipped,) = result.event("rehearsal.skipped")
    assert 0 == result.code, result
    assert why in skipped["reason"]


@pytest.mark.parametrize(
    ("more", "statement", "said"),
    [
        pytest.param(
            "", "INSERT INTO orders VALUES (5000, 1, -1);", "orders_bulk_id_fkey", id="foreign key"
        ),
        pytest.param(
            "CREATE TABLE logins (user_id int REFERENCES users, note text);"
            "INSERT INTO logins SELECT 700, md5(n::text) FROM generate_series(1, 50000) n",
            "DELETE FROM users WHERE id = 700;",
            "rows of public.logins",
            id="referring rows",
        ),
        pytest.param(
            "CREATE FUNCTION ones() RETURNS SETOF int LANGUAGE sql AS 'VALUES (1), (1)';"
            "CREATE MATERIALIZED VIEW twice AS SELECT ones() AS one",
            "CREATE UNIQUE INDEX ON twice (one);",
            "the rows of public.twice",
            id="view",
        ),
    ],
)
def test_what_a_partial_rehearsal_cannot_try_is_said(  # noqa: PLR0913, PLR0917 -- fixtures
    more: str,
    statement: str,
    said: str,
    run: Run,
    database: servers.Database,
    migrations: WriteMigrations,
) -> None:
    """What stops the file in earnest did not on the copy: the log has named it before."""
    database.script(f"{SHOP};{more}")
    migrations({"001_one.sql": statement})
    result = run()

    assert 30 == result.code, result
    (passed,), warned = result.event("rehearsal.passed"), result.event("rehearsal.warned")
    assert said in f"{passed['without']} {[each['reason'] for each in warned]}"


def test_comment_on_a_key_that_is_left_out_is_left_out_with_it(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Under any name; the rehearsal says which keys it was without."""
    database.script(
        f'{SHOP}; CREATE TABLE "A. b""c\nd" (id int REFERENCES bulk, u int REFERENCES users);'
        'INSERT INTO "A. b""c\nd" VALUES (1, 1);'
        'COMMENT ON CONSTRAINT "A. b""c\nd_id_fkey" ON "A. b""c\nd" IS $$a\nb$$;'
        "COMMENT ON CONSTRAINT orders_bulk_id_fkey ON orders IS 'what is sold'"
    )
    migrations({"001_one.sql": "ALTER TABLE users ADD note text;"})
    result = run()

    (started,), (passed,) = result.event("rehearsal.started"), result.event("rehearsal.passed")
    assert 0 == result.code, result
    assert started["without"] == passed["without"]
    assert "constraint orders_bulk_id_fkey of public.orders" in passed["without"]


def test_jobs_are_as_many_as_was_said(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """PREFLIGHT_JOBS, whatever cores there are."""
    database.script(SHOP)
    migrations({"001_one.sql": "CREATE TABLE one ();"})
    result = run(env={"PREFLIGHT_JOBS": "3"})

    assert [3] == [each["jobs"] for each in result.event("rehearsal.started")], result


def test_text_that_is_only_known_when_it_runs_is_said(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """Which tables it touches nobody can read: the copy may be without their rows."""
    database.script(f"{SHOP}; CREATE FUNCTION name_of() RETURNS text LANGUAGE sql "
                    "AS 'SELECT ''no'' || ''tes'''")  # fmt: skip
    migrations({"001_one.sql": "CREATE TABLE one (); CALL p();"})
    database.script(
        "CREATE PROCEDURE p() LANGUAGE plpgsql AS "
        "$$BEGIN EXECUTE 'UPDATE ' || name_of() || ' SET id = 2'; END$$"
    )
    result = run()

    assert 0 == result.code, result
    assert "what the function public.p runs" in result.event("rehearsal.warned")[0]["reason"]


def test_partitions_large_objects_and_their_keys_restore_in_part(
    run: Run, database: servers.Database, migrations: WriteMigrations
) -> None:
    """A key to a table without rows is no part of the copy; large objects are, without bytes."""
    database.script(
        f"{SHOP}; SELECT lo_from_bytea(0, 'abc');"
        "CREATE TABLE sites (id int PRIMARY KEY) PARTITION BY RANGE (id);"
        "CREATE TABLE site_one PARTITION OF sites FOR VALUES FROM (0) TO (10);"
        "CREATE TABLE visits (id int REFERENCES sites, bulk_id int REFERENCES bulk) "
        "PARTITION BY RANGE (id);"
        "CREATE TABLE visit_one PARTITION OF visits FOR VALUES FROM (0) TO (10);"
        "INSERT INTO sites VALUES (1); INSERT INTO visits VALUES (1, 1)"
    )
    migrations({"001_one.sql": "ALTER TABLE visits ADD note int; UPDATE visits SET note = 1;"})
    result = run()

    (passed,) = result.event("rehearsal.passed")
    assert (0, True) == (result.code, passed["partial"]), result
    assert ["public.site_one", "public.visit_one"] == passed["tables"]
