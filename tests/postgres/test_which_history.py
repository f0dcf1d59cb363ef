"""Which of several tables is the history of the folder's tool; one that is seen in part is none."""

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from preflight.base.config import Config
from preflight.base.errors import HistoryConflict
from preflight.files import folder as loading
from preflight.files import foreign
from preflight.files.migrations import Migration
from preflight.history import ledger, takeover
from preflight.server import sessions
from tests import servers
from tests.conftest import Run

FILES = {f"{number}_t": f"CREATE TABLE t{number} ();\n" for number in range(1, 7)}
UP = "CREATE SCHEMA app; CREATE SCHEMA other; "
LONG = 20240101093000
APP_FIRST = "app, public"
ASKED = "takeover.ambiguous"


def golang(table: str, version: int) -> str:
    """Return what makes golang-migrate's table."""
    return (
        f"CREATE TABLE {table} (version bigint PRIMARY KEY, dirty boolean NOT NULL); "
        f"INSERT INTO {table} SELECT {version}, false WHERE {version} > 0; "
    )


def dbmate(table: str, *versions: int) -> str:
    """Return what makes dbmate's table."""
    rows = "".join(f"INSERT INTO {table} VALUES ('{version}'); " for version in versions)
    return f"CREATE TABLE {table} (version varchar PRIMARY KEY); {rows}"


def goose(table: str, *versions: int) -> str:
    """Return what makes goose's table."""
    rows = "".join(
        f"INSERT INTO {table} (version_id, is_applied) VALUES ({version}, true); "
        for version in (0, *versions)
    )
    return (
        f"CREATE TABLE {table} (id serial PRIMARY KEY, version_id bigint NOT NULL, is_applied "
        f"boolean NOT NULL, tstamp timestamp DEFAULT now()); {rows}"
    )


def sqlx(table: str, versions: int, others: int = 0) -> str:
    """Return what makes sqlx's table, the first versions of these files, the next of others."""
    rows = "".join(
        f"INSERT INTO {table} VALUES ({number}, '', now(), true, '\\x{digest}', 1); "
        for number, (_, text) in enumerate([*FILES.items()][: versions + others], 1)
        for digest in [hashlib.sha384(text.encode() * (1 + (number > versions))).hexdigest()]
    )
    return (
        f"CREATE TABLE {table} (version bigint PRIMARY KEY, description text NOT NULL, "
        "installed_on timestamptz NOT NULL, success boolean NOT NULL, checksum bytea NOT NULL, "
        f"execution_time bigint NOT NULL); {rows}"
    )


def flyway(table: str, versions: int) -> str:
    """Return what makes Flyway's table, the first versions of these files."""
    crc = [zlib.crc32(text.strip().encode()) for text in FILES.values()]
    rows = "".join(
        f"INSERT INTO {table} VALUES ({number}, '{number}', 't', 'SQL', 'x', "
        f"{crc[number - 1] - (1 << 32) * (crc[number - 1] >> 31)}, 'me', now(), 1, true); "
        for number in range(1, versions + 1)
    )
    return (
        f"CREATE TABLE {table} (installed_rank integer, version varchar, description varchar, type "
        "varchar, script varchar, checksum integer, installed_by varchar, installed_on timestamp, "
        f"execution_time integer, success boolean); {rows}"
    )


def prisma(table: str, versions: int) -> str:
    """Return what makes Prisma's table, the first versions of these files."""
    rows = "".join(
        f"INSERT INTO {table} VALUES ('{hashlib.sha256(text.encode()).hexdigest()}', now(), "
        f"'{name}', NULL); "
        for name, text in [*FILES.items()][:versions]
    )
    return (
        f"CREATE TABLE {table} (checksum varchar, finished_at timestamptz, migration_name varchar, "
        f"rolled_back_at timestamptz); {rows}"
    )


def diesel(table: str, *versions: int) -> str:
    """Return what makes Diesel's table."""
    rows = "".join(f"INSERT INTO {table} VALUES ('{version}'); " for version in versions)
    return f"CREATE TABLE {table} (version varchar); {rows}"


GOLANG = {f"{name}.up.sql": text for name, text in FILES.items()}
DBMATE = {f"{name}.sql": f"-- migrate:up\n{text}" for name, text in FILES.items()}
TIMED = {f"{LONG + n}_t.sql": f"-- migrate:up\n{t}" for n, t in enumerate(FILES.values(), 1)}
GOOSE = {f"{name}.sql": f"-- +goose Up\n{text}" for name, text in FILES.items()}
SQLX = {f"{name}.up.sql": text for name, text in FILES.items()}
FLYWAY = {f"V{name.replace('_', '__')}.sql": text for name, text in FILES.items()}
PRISMA = {f"{name}/migration.sql": text for name, text in FILES.items()}
DIESEL = {f"{LONG + n}_t/up.sql": text for n, text in enumerate(FILES.values(), 1)}
TIMES = [LONG + number for number in range(1, 5)]
USUAL, RENAMED = "public.schema_migrations", "public.our_migrations"

NULL = (
    "CREATE TABLE other.schema_migrations (version bigint, dirty boolean); "
    "INSERT INTO other.schema_migrations DEFAULT VALUES; "
)
# files, what is there, the search_path, PREFLIGHT_SCHEMAS; how many are taken over, or the question
WHICH: dict[str, tuple[dict[str, str], str, str, str, int | str | None]] = {
    "a renamed one beside another app's with the same numbers": (
        GOLANG, golang(USUAL, 5) + golang(RENAMED, 3), "", "", ASKED,
    ),
    "a renamed one beside one that nobody wrote to": (
        GOLANG, golang(USUAL, 0) + golang(RENAMED, 3), "", "", ASKED,
    ),
    "a renamed one beside a stale one": (
        GOOSE, goose("public.goose_db_version", 1, 2) + goose(RENAMED, 1, 2, 3, 4), "", "", ASKED,
    ),
    "a renamed one beside another app's of other numbers": (
        GOLANG, golang(USUAL, 40) + golang(RENAMED, 2), "", "", ASKED,
    ),
    "a renamed one beside another app's of more numbers": (
        DBMATE, dbmate(USUAL, *range(1, 9)) + dbmate(RENAMED, 1, 2), "", "", ASKED,
    ),
    "a renamed one beside another app's of other texts": (
        SQLX, sqlx("public._sqlx_migrations", 1, 2) + sqlx(RENAMED, 2), "", "", 2,
    ),
    "an older image's beside a renamed one": (
        GOOSE, goose("public.goose_db_version", *range(1, 9)) + goose(RENAMED, 1, 2), "", "", ASKED,
    ),
    "the usual one, of these texts, beside a renamed one that is edited": (
        SQLX, sqlx("public._sqlx_migrations", 3) + sqlx(RENAMED, 1, 1), "", "", 3,
    ),
    "one of these texts elsewhere": (
        SQLX, sqlx("other._sqlx_migrations", 1), "", "", 1,
    ),
    "one where the tool would find it, beside the schemas that are ours": (
        DBMATE, dbmate(USUAL, 1, 2), "", "app", ASKED,
    ),
    "one where the tool would find it, once its schema is named, too": (
        DBMATE, dbmate(USUAL, 1, 2), "", "app,public", 2,
    ),
    "another app's where the tool would look, beside the schemas that are ours": (
        DBMATE, dbmate(USUAL, 70, 80), "", "app", None,
    ),
    "the usual one beside what only looks alike": (
        GOLANG, golang(USUAL, 2) + golang("public.device_models", 700) + golang(RENAMED, 0), "", "",
        2,
    ),
    "the usual one beside a view of it": (
        GOLANG, golang(USUAL, 2) + f"CREATE VIEW {RENAMED} AS TABLE {USUAL}; ", "", "",
        2,
    ),
    "the usual one where the tool would look, and a tenant's": (
        GOLANG, golang("app.schema_migrations", 1) + golang(USUAL, 3), APP_FIRST, "",
        1,
    ),
    "one further on the search_path, where the tool would begin anew": (
        GOLANG, golang(USUAL, 3), APP_FIRST, "", ASKED,
    ),
    "one further on the search_path of other numbers": (
        GOLANG, golang(USUAL, 40), APP_FIRST, "", None,
    ),
    "one further on the search_path, which the tool would find": (
        GOOSE, goose("public.goose_db_version", 1, 2), APP_FIRST, "", 2,
    ),
    "a new tenant's, beside what is in public": (
        GOLANG, golang(USUAL, 3), APP_FIRST, "app", None,
    ),
    "a new tenant's, beside what the tool would find in public": (
        GOOSE, goose("public.goose_db_version", 1, 2), APP_FIRST, "app", None,
    ),
    "one of the schemas that are ours, and another app's on the search_path": (
        GOLANG, golang("app.schema_migrations", 4) + golang(USUAL, 1), "", "app",
        4,
    ),
    "a neighbour's with the same numbers": (
        GOLANG, golang("other.schema_migrations", 2), "", "", ASKED,
    ),
    "a neighbour's with other numbers": (
        GOLANG, golang("other.schema_migrations", 37), "", "", None,
    ),
    "a neighbour's with more numbers": (
        DBMATE, dbmate("other.schema_migrations", *range(1, 20)), "", "", None,
    ),
    "a neighbour's of other texts": (
        SQLX, sqlx("other._sqlx_migrations", 1, 3), "", "", None,
    ),
    "a neighbour's with a row that no tool writes": (
        GOLANG, NULL, "", "", None,
    ),
    "one elsewhere of the same texts": (
        SQLX, sqlx("other._sqlx_migrations", 3), "", "", 3,
    ),
    "one elsewhere with versions that are times": (
        TIMED, dbmate("other.schema_migrations", *TIMES), "", "", 4,
    ),
    "another tenant's of the same texts": (
        SQLX, sqlx("other._sqlx_migrations", 3), "app", "", ASKED,
    ),
    "Flyway's in another schema than names lead to": (
        FLYWAY, flyway("app.flyway_schema_history", 3), "", "", ASKED,
    ),
    "Flyway's in another schema that is ours": (
        FLYWAY, flyway("app.flyway_schema_history", 3), "", "app", ASKED,
    ),
    "Flyway's where names lead to": (
        FLYWAY, flyway("app.flyway_schema_history", 3), APP_FIRST, "", 3,
    ),
    "Flyway's of another app": (
        FLYWAY, flyway("app.flyway_schema_history", 3), "", "public", None,
    ),
    "Prisma's in another schema than names lead to": (
        PRISMA, prisma("app._prisma_migrations", 2), "", "", ASKED,
    ),
    "Prisma's further on the search_path": (
        PRISMA, prisma("public._prisma_migrations", 2), APP_FIRST, "", ASKED,
    ),
    "Prisma's where names lead to": (
        PRISMA, prisma("app._prisma_migrations", 2), APP_FIRST, "", 2,
    ),
    "Diesel's in another schema than names lead to": (
        DIESEL, diesel("app.__diesel_schema_migrations", *TIMES), "", "", ASKED,
    ),
    "two elsewhere of the same texts": (
        SQLX, sqlx("other._sqlx_migrations", 3) + sqlx("app._sqlx_migrations", 2), "", "", ASKED,
    ),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give the migrations directory."""
    return tmp_path / "migrations"


def write(folder: Path, files: dict[str, str]) -> None:
    """Write the folder."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def answered(
    session: sessions.Session, layout: foreign.Foreign, files: Sequence[Migration]
) -> int | str | None:
    """Return how many files are taken over; None without a history; or the code of the question."""
    try:
        found = takeover.look(session, layout, files)
    except HistoryConflict as asked:
        return asked.code if "`adopt --through VERSION`" in str(asked.problem.hint) else None
    return None if found is None else len(takeover.covered(layout, found, files))


@pytest.mark.parametrize("case", WHICH)
def test_history_is_the_one_that_the_tool_would_find_or_a_question(
    case: str, database: servers.Database, folder: Path
) -> None:
    """Another app's is left alone; what may be either is asked for, with the ways to answer."""
    files, there, path, schemas, expected = WHICH[case]
    write(folder, files)
    database.script(UP + there)
    if path:
        database.script(
            f'ALTER ROLE CURRENT_USER IN DATABASE "{database.name}" SET search_path = {path}'
        )
    env = database.env() | ({"PREFLIGHT_SCHEMAS": schemas} if schemas else {})
    layout = {"PREFLIGHT_LAYOUT": "sqlx"} if files is SQLX else {}
    config = Config.from_env(env | layout, folder, "run")
    found = loading.load(config)
    assert found.layout is not None

    with sessions.connect(config) as session, ledger.looking(session):
        told = answered(session, found.layout, found)

    assert expected == told


def test_run_that_finds_two_histories_asks_and_does_nothing(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """26, whatever made them: no tool has to be there for it."""
    files, there, *_ = next(case for case in WHICH.values() if case[2:] == ("", "", ASKED))
    write(folder, files)
    database.script(UP + there)
    result = run(env={"PREFLIGHT_BACKUP": "off"})

    assert (26, ASKED) == (result.code, result.finished["error"]["code"]), str(result)
    assert [None] == database.query("SELECT to_regclass('preflight.migrations')")


def test_history_that_schemas_leave_out_is_named(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """It may be the neighbour's or this app's: the way to say which is in the hint."""
    write(folder, GOLANG)
    database.script(f"{UP} CREATE TABLE app.t1 (); {golang('other.schema_migrations', 1)}")

    result = run("check", env={"PREFLIGHT_SCHEMAS": "app"})
    both = run("check", env={"PREFLIGHT_SCHEMAS": "app,other"})

    assert "history.first_contact" == result.finished["error"]["code"]
    assert (
        "other.schema_migrations, is in none of PREFLIGHT_SCHEMAS"
        in result.finished["error"]["hint"]
    )
    assert "adoptable" == both.event("migration.listed")[0]["state"]


def test_history_apart_from_where_names_lead_is_taken_over_once_they_lead_there(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """Flyway ran its files in the schema of its history: in another one ours are not run."""
    write(folder, FLYWAY)
    made = "".join(f"CREATE TABLE app.t{number} (); " for number in range(1, 6))
    database.script(UP + flyway("app.flyway_schema_history", 5) + made)

    asked = run()
    database.script(f'ALTER ROLE CURRENT_USER IN DATABASE "{database.name}" SET search_path = app')
    result = run()

    error = asked.finished["error"]
    assert (26, ASKED) == (asked.code, error["code"]), str(asked)
    assert "names lead to 'public'" in error["message"]
    assert 'SET search_path = "app".' in error["hint"]
    assert (0, ["6_t"]) == (
        result.code,
        [each[1:].replace("__", "_") for each in result.finished["applied"]],
    )
    assert ["app"] == database.query(
        "SELECT schemaname::text FROM pg_tables WHERE tablename = 't6'"
    )


def test_history_of_dbmate_under_another_name_is_to_be_vouched_for(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """One column of text may be anybody's: the hint says by what name dbmate's is known."""
    write(folder, {name: DBMATE[name] for name in ("1_t.sql", "2_t.sql")})
    database.script(f"{UP} CREATE TABLE t1 (); {dbmate('app.versions', 1)}")

    looks, vouched, result = (run("check"), run()), run("adopt", "--through", "1"), run()

    known = "dbmate's history is looked for where a table has `migration` in its name"
    assert [(26, True)] * 2 == [
        (each.code, known in each.finished["error"]["hint"]) for each in looks
    ]
    assert 0 == vouched.code, str(vouched)
    assert "2_t has no verify file" in result.finished["error"]["message"]
    applied = run(env={"PREFLIGHT_FIRST_CONTACT": "pending"})
    assert (0, ["2_t"]) == (applied.code, applied.finished["applied"]), str(applied)


# where the history is, and the search_path with which the tool ran its files: what leads there
APART: dict[str, tuple[str, str, str, str]] = {
    "apart from the tables": ("app.our_migrations", "public", "", "app,public"),
    "beside the tables": ("app.schema_migrations", "app", "app", ""),
}


@pytest.mark.parametrize("case", APART)
def test_hint_of_a_history_elsewhere_leads_the_files_to_their_tables(
    case: str, run: Run, database: servers.Database, folder: Path
) -> None:
    """Beside its tables: the search_path; apart from them: both schemas are named, and no path."""
    table, schema, path, schemas = APART[case]
    write(folder, {"1_t.up.sql": GOLANG["1_t.up.sql"], "2_t.up.sql": GOLANG["2_t.up.sql"]})
    database.script(f"{UP} CREATE TABLE {schema}.t1 (); {golang(table, 1)}")

    asked = run()
    if path:
        database.script(
            f'ALTER ROLE CURRENT_USER IN DATABASE "{database.name}" SET search_path = {path}'
        )
    result = run(env={"PREFLIGHT_SCHEMAS": schemas} if schemas else {})

    assert (26, ASKED) == (asked.code, asked.finished["error"]["code"]), str(asked)
    beside, apart = asked.finished["error"]["hint"].split(". ")[:2]
    assert "Where the app's tables lie beside the right one, set the role's search_path" in beside
    assert "Where they lie in another, leave that, and name both schemas" in apart
    assert (0, ["2_t"]) == (result.code, result.finished.get("applied")), str(result)
    assert [schema] == database.query(
        "SELECT schemaname::text FROM pg_tables WHERE tablename = 't2'"
    )


def test_hint_of_a_history_elsewhere_offers_flyway_no_schemas_apart(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """It runs its files in the schema of its history, whichever of two that is."""
    write(folder, FLYWAY)
    database.script(
        UP + flyway("app.flyway_schema_history", 3) + flyway("other.flyway_schema_history", 2)
    )

    error = run("check").finished["error"]

    assert (ASKED, True, False) == (
        error["code"], "search_path" in error["hint"], "both schemas" in error["hint"],
    )  # fmt: skip


@pytest.fixture
def migrator(database: servers.Database) -> Iterator[str]:
    """Give a role that may do all that a migration does, and is no superuser."""
    role = f"migrator_of_{database.name}"
    database.script(
        f"CREATE ROLE {role} LOGIN PASSWORD 'p'; GRANT ALL ON SCHEMA public TO {role};"
        f'GRANT CREATE ON DATABASE "{database.name}" TO {role}'
    )
    yield role
    database.script(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_history_that_row_security_hides_is_not_taken_for_empty(
    run: Run, database: servers.Database, migrator: str, folder: Path
) -> None:
    """All of it or a part: what was applied would run again. It is asked before each file, too."""
    write(folder, {name: text for name, text in DBMATE.items() if name < "3"})
    database.script(
        f"{dbmate(USUAL, 1)}; CREATE TABLE t1 (); ALTER TABLE {USUAL} ENABLE ROW LEVEL SECURITY;"
        f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {migrator}"
    )
    env = {**database.env(migrator, "p"), "PREFLIGHT_BACKUP": "off", "PREFLIGHT_REHEARSE": "off"}

    looks = run("check", env=env), run(env=env)
    database.script(f"ALTER TABLE {USUAL} DISABLE ROW LEVEL SECURITY")
    seen = run(env=env)
    database.script(f"ALTER TABLE {USUAL} ENABLE ROW LEVEL SECURITY")
    write(folder, {"3_t.sql": DBMATE["3_t.sql"]})
    later = run(env=env)

    assert [(26, "takeover.not_believed")] * 3 == [
        (each.code, each.finished["error"]["code"]) for each in (*looks, later)
    ]
    assert "ROW LEVEL SECURITY" in later.finished["error"]["hint"]
    assert (0, ["1_t"], ["2_t"]) == (
        seen.code, seen.finished["adopted"], seen.finished["applied"],
    ), str(seen)  # fmt: skip


def test_history_that_may_not_be_read_is_a_matter_of_rights(
    run: Run, database: servers.Database, migrator: str, folder: Path
) -> None:
    """26, and what to grant; who once read it and may not any more is told nothing."""
    write(folder, {"1_t.sql": DBMATE["1_t.sql"]})
    database.script(f"{dbmate(USUAL, 1)}; ALTER TABLE {USUAL} ENABLE ROW LEVEL SECURITY")
    env = {**database.env(migrator, "p"), "PREFLIGHT_BACKUP": "off", "PREFLIGHT_REHEARSE": "off"}

    refused = run(env=env)
    database.script(f"ALTER TABLE {USUAL} DISABLE ROW LEVEL SECURITY; CREATE TABLE t1 ()")
    database.script(f"GRANT SELECT ON {USUAL} TO {migrator}")
    taken = run(env=env)
    database.script(
        f"REVOKE SELECT ON {USUAL} FROM {migrator}; ALTER TABLE {USUAL} ENABLE ROW LEVEL SECURITY"
    )
    write(folder, {"2_t.sql": DBMATE["2_t.sql"]})

    assert (26, "takeover.not_believed") == (refused.code, refused.finished["error"]["code"])
    assert 'GRANT SELECT ON "public"."schema_migrations"' in refused.finished["error"]["hint"]
    assert (0, ["1_t"]) == (taken.code, taken.finished["adopted"]), str(taken)
    assert (0, ["2_t"]) == ((later := run(env=env)).code, later.finished["applied"]), str(later)


def test_row_security_is_as_it_was_when_a_file_runs(
    run: Run, database: servers.Database, folder: Path
) -> None:
    """The other tool's history is asked in the file's own transaction, with it switched off."""
    write(folder, {"1_t.sql": DBMATE["1_t.sql"]})
    database.script(f"{dbmate(USUAL, 1)}; CREATE TABLE t1 ()")
    assert 0 == run().code
    kept = "CREATE TABLE kept AS SELECT current_setting('row_security')"
    write(folder, {"2_t.sql": f"-- migrate:up\n{kept};\n"})

    assert 0 == (result := run()).code, str(result)
    assert ["on"] == database.query("TABLE kept")
