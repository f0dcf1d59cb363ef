"""The documents say what the program does: nothing left out, nothing that is gone."""

import ast
import contextlib
import dataclasses
import io
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from preflight.base import config, errors, plain
from preflight.commands import arguments, registry
from preflight.history import tables
from tests import codes, house, servers

pytestmark = pytest.mark.xdist_group("sources")  # whoever has read them all keeps them
ROOT = servers.REPOSITORY
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "migrations/README.md"]
)
CODE = [ROOT / "entrypoint.py", *sorted((ROOT / "preflight").rglob("*.py"))]
assert len(CODE) >= house.ROOMS_AT_LEAST, CODE  # a walk that finds fewer has gone blind
LOG_METHODS = {"debug", "info", "warning", "error"}
DOTTED = re.compile(r"[a-z]{2,}\.[a-z_]+")
FILES = {
    "entrypoint.py",
    "database.dump",
    "database.dir",
    "toc.dat",
    "manifest.json",
    "point.json",
    "postmaster.pid",
    "down.sql",
    "sqitch.conf",
    "export.sql",
    "metadata.toml",
    "migration.sql",
    "sqitch.plan",
    "up.sql",
    "verify.sql",
    "pgaudit.log",
    "plpgsql.extra_errors",
    "plpgsql.variable_conflict",
}  # dotted, and no event
FAILURES = {
    name: found
    for name, found in vars(errors).items()
    if isinstance(found, type) and issubclass(found, errors.Failure)
}
REGISTRIES = ("pypi.", "pythonhosted.", "npmjs.", "crates.", "rubygems.", "proxy.golang.")


def text(name: str) -> str:
    """Return a document."""
    return (ROOT / name).read_text(encoding="utf-8")


def rows(name: str, head: str) -> list[list[str]]:
    """Return the rows of a document's table whose first column has that head."""
    found = re.search(
        rf"^\| {re.escape(head)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text(name), re.MULTILINE
    )
    assert found, f"{name} has no table of {head}"
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in found[1].splitlines()
    ]


def words(cell: str) -> list[str]:
    """Return what stands in backticks in a cell."""
    return re.findall(r"`([^`]+)`", cell)


# --- what the program says of itself --------------------------------------------------------------


def helped(name: str) -> str:
    """Return the help of a command."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit):
        arguments.parse([name, "--help"])
    return said.getvalue()


def constants() -> Iterator[tuple[str, str, int | None]]:
    """Yield each dotted name in the code: event or error, the name, the exit code if known."""
    for path in CODE:
        tree = ast.parse(path.read_bytes())
        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
                continue
            if DOTTED.fullmatch(node.value) and node.value not in FILES:
                kind, code = _kind(node, parents)
                yield kind, node.value, code


def _kind(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> tuple[str, int | None]:
    parent = parents[node]
    if isinstance(parent, ast.Dict):
        keys = [key.value for key in parent.keys if isinstance(key, ast.Constant)]
        return ("error" if "code" in keys else "event"), None
    if not isinstance(parent, ast.Call):
        return "event", None
    called = parent.func
    if isinstance(called, ast.Attribute) and called.attr == "of":
        called = called.value
    name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
    if name in FAILURES:
        return "error", int(FAILURES[name].exit_code)
    logged = name in LOG_METHODS or isinstance(called, ast.Call | ast.IfExp)
    return ("event" if logged else "either"), None


@dataclasses.dataclass(frozen=True)
class Names:
    """The dotted names in the code; `errors` with the exit codes that they surely lead to.

    `either` went through a function of ours on its way to a logger or into a failure.
    """

    events: set[str]
    errors: dict[str, set[int]]
    either: set[str]


def dotted_names() -> Names:
    """Return the names of all events and errors."""
    found = Names(set(), {}, set())
    for kind, name, code in constants():
        if kind == "error":
            found.errors.setdefault(name, set()).update([] if code is None else [code])
        else:
            (found.events if kind == "event" else found.either).add(name)
    return found


def documented_events() -> dict[str, set[str]]:
    """Return the keys of each event in docs/log-events.md."""
    return {words(row[0])[0]: set(words(row[2])) for row in rows("docs/log-events.md", "event")}


def documented_errors() -> dict[str, set[int]]:
    """Return the exit codes of each error in docs/exit-codes.md."""
    return {
        words(row[0])[0]: {int(number) for number in row[1].split(",")}
        for row in rows("docs/exit-codes.md", "error code")
    }


# --- commands -------------------------------------------------------------------------------------


def test_every_command_is_documented() -> None:
    """README's table and docs/commands.md name the commands that there are, in their order."""
    sections = re.findall(r"^### (.*)", text("docs/commands.md"), re.MULTILINE)

    assert list(registry.COMMANDS) == sections
    assert list(registry.COMMANDS) == [words(row[0])[0] for row in rows("README.md", "command")]


@pytest.mark.parametrize("name", registry.COMMANDS)
def test_every_option_is_documented(name: str) -> None:
    """A command's section names the options that its help names, and no other."""
    section = text("docs/commands.md").split(f"### {name}\n")[1].split("\n### ")[0]
    options = set(re.findall(r"^ +(?:-h, )?(--[a-z-]+)", helped(name), re.MULTILINE)) - {"--help"}

    assert options == {word.split()[0] for word in words(section) if word.startswith("--")}


def test_every_spelling_is_documented() -> None:
    """The old spellings stand at the top of docs/commands.md."""
    head = text("docs/commands.md").split("## Output")[0]

    assert arguments.SPELLINGS.keys() == {
        word for word in words(head) if re.fullmatch(r"--\w+", word)
    }


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_show_commands_that_exist(path: Path) -> None:
    """Each `entrypoint.py …` in a document can be parsed as it stands."""
    shown = re.findall(
        r"(?:^|`|[A-Z_]+=\S+ )entrypoint\.py([^`\n]*)", path.read_text("utf-8"), re.MULTILINE
    )
    for line in shown:
        said = line.partition("#")[0].replace("VERSION", "2").split()
        if "COMMAND" in line or "--help" in said or said[:1] in (["after"], ["stands"]):
            continue
        arguments.parse(said)


# --- exit codes and errors ------------------------------------------------------------------------


def test_every_exit_code_is_documented() -> None:
    """docs/exit-codes.md has the codes of the program, with their names."""
    signals = {errors.ExitCode.SIGINT, errors.ExitCode.SIGTERM}
    codes = {
        int(code): "signal" if code in signals else code.name.lower() for code in errors.ExitCode
    }

    assert codes == {int(row[0]): row[1] for row in rows("docs/exit-codes.md", "code")}


def test_every_exit_code_says_what_to_do() -> None:
    """Name, meaning, state of the database, next step: no cell is empty."""
    assert all(all(row) and len(row) == 5 for row in rows("docs/exit-codes.md", "code"))


def test_readme_has_every_exit_code_in_a_range() -> None:
    """The short table covers each code."""
    covered: set[int] = set()
    for cell, *_ in rows("README.md", "code"):
        numbers = [int(number) for number in re.findall(r"\d+", cell)]
        covered |= set(range(numbers[0], numbers[-1] + 1)) if " to " in cell else set(numbers)

    assert set() == {int(code) for code in errors.ExitCode} - covered


def test_every_error_code_is_documented() -> None:
    """docs/exit-codes.md has the dotted codes of the program, with the exit codes they lead to."""
    found, documented = dotted_names(), documented_errors()

    assert sorted(found.errors.keys() | (found.either & documented.keys())) == sorted(documented)
    assert {} == {name: codes for name, codes in found.errors.items() if codes - documented[name]}


def test_every_error_code_is_named_by_a_test() -> None:
    """Whole or put together as in f"backup.{code}"; `make test` sees that each is met as well."""
    assert sorted(documented_errors()) == sorted(codes.documented())
    told: set[str] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        nodes = list(ast.walk(ast.parse(path.read_bytes())))
        texts = {str(node.value) for node in nodes if isinstance(node, ast.Constant)}
        heads = {
            str(node.values[0].value)
            for node in nodes
            if isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant)
        }
        told |= {head + text for head in heads for text in texts} | texts

    assert [] == sorted(documented_errors().keys() - told)


def test_every_name_is_an_event_or_an_error() -> None:
    """No dotted name in the code is missing in both tables."""
    known = documented_events().keys() | documented_errors().keys()

    assert set() == dotted_names().either - known


# --- variables ------------------------------------------------------------------------------------


def test_every_setting_is_documented_with_its_default() -> None:
    """docs/configuration.md has the settings of the program and their defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(config.Config)}
    said: dict[object, str] = {None: "none", (): "all"}
    shown = {
        config.PREFIX + name: said.get(value, f"{value}")
        for name in config.SETTINGS
        for value in [defaults[name.lower()]]
        if name != "MIGRATIONS_DIR"  # no field default: it is the directory beside entrypoint.py
    }
    shown["PREFLIGHT_MIGRATIONS_DIR"] = "migrations"
    documented = {
        words(row[0])[0]: row[1].strip("`") for row in rows("docs/configuration.md", "variable")
    }

    assert shown == documented


def test_readme_shows_true_defaults() -> None:
    """The short table says what the long one says."""
    documented = {
        words(row[0])[0]: row[1].strip("`") for row in rows("docs/configuration.md", "variable")
    }
    short = {words(row[0])[0]: row[1].strip("`") for row in rows("README.md", "variable")}

    assert short.items() <= documented.items()


def test_every_other_variable_is_documented() -> None:
    """Each PG…, POSTGRES_… and …_FILE that the program reads stands in docs/configuration.md."""
    vocabularies = {name for names in plain.VOCABULARIES.values() for name in names.values()}
    secrets = {*config.SECRETS, *(f"{name}_FILE" for name in config.SECRETS)}
    read = {
        node.value
        for path in CODE
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"PG[A-Z]{3,}|POSTGRES_[A-Z]+|DATABASE_URL|NO_COLOR", node.value)
    }
    documented = set(words(text("docs/configuration.md")))

    assert set() == (vocabularies | secrets | read) - documented


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_name_settings_that_exist(path: Path) -> None:
    """A variable that is gone is gone from the documents as well."""
    known = {config.PREFIX + name for name in config.SETTINGS} | config.AS_FILES
    named = re.findall(r"\bPREFLIGHT_[A-Z_]*[A-Z]\b", path.read_text("utf-8"))

    assert set() == set(named) - known


# --- log events -----------------------------------------------------------------------------------


def test_every_log_event_is_documented() -> None:
    """docs/log-events.md has the events that the program logs, and no other."""
    found, documented = dotted_names(), documented_events().keys()

    assert sorted(documented) == sorted(found.events | (found.either & documented))


def test_every_key_of_an_event_is_documented() -> None:
    """What is passed to a logger by name, or in a dict that is written out, stands beside it."""
    documented = documented_events()
    missing = {
        (name, key)
        for name, call in log_calls()
        for key in keys(call)
        if key not in documented.get(name, set())
    }

    assert set() == missing


def keys(call: ast.Call) -> Iterator[str]:
    """Yield the keys of an event that a call tells."""
    for keyword in call.keywords:
        if keyword.arg:
            yield keyword.arg
        else:
            yield from written_out(keyword.value)


def written_out(node: ast.expr | None) -> Iterator[str]:
    """Yield the keys of a dict, of one of two, or of two in one, as far as they are written out."""
    if isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant):
                yield str(key.value)
            else:
                yield from written_out(value)
    elif isinstance(node, ast.IfExp):
        yield from (*written_out(node.body), *written_out(node.orelse))
    elif isinstance(node, ast.BinOp):
        yield from (*written_out(node.left), *written_out(node.right))


def logged() -> set[str]:
    """Return the names that are passed straight to a logger."""
    return {name for name, _ in log_calls()}


def log_calls() -> Iterator[tuple[str, ast.Call]]:
    """Yield each call of a logger, with the name of its event."""
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_bytes())):
            if (
                isinstance(node, ast.Call)
                and (
                    isinstance(node.func, ast.Call | ast.IfExp)  # getattr(log, level)(…)
                    or (isinstance(node.func, ast.Name) and node.func.id == "say")
                    or (isinstance(node.func, ast.Attribute) and node.func.attr in LOG_METHODS)
                )
                and node.args
                and isinstance(node.args[0], ast.Constant)
                and isinstance(node.args[0].value, str)
            ):
                yield node.args[0].value, node


def test_every_logged_name_is_an_event() -> None:
    """`<noun>.<what is true>`, constant text."""
    assert [] == [name for name in sorted(logged()) if not DOTTED.fullmatch(name)]


def test_a_new_event_would_be_noticed() -> None:
    """What collects the names sees both a logger's argument and a pair in a result."""
    found = dotted_names()

    assert {"run.started", "check.failed", "backup.listed", "migration.progressed"} <= found.events
    assert {"lock.busy", "internal.error", "files.invalid"} <= found.errors.keys()


def test_every_column_of_the_history_is_documented() -> None:
    """docs/operations.md has the tables that we make, with their columns and no other."""
    documented = {
        words(table)[0]: set(words(re.sub(r"\([^)]*\)", "", columns)))
        for table, _, columns in rows("docs/operations.md", "table")
    }
    made = {
        name: {*tables.COLUMNS[name], *tables.ADDED[name], *tables.OPTIONAL[name]}
        for name in tables.COLUMNS
    }

    assert documented.keys() == {*made, "repeatables", "takeovers"}
    assert made == {name: documented[name] for name in made}


# --- links and places -----------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """Return what a link into a document may name."""
    heads = re.findall(r"^#+ (.*)", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    """A link within the repository names a file that is there, and a heading in it."""
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        if re.match(r"https?://", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)

    assert [] == lost


def test_readme_lists_every_page() -> None:
    """Each page of docs/ stands once in README's list, and so do the other documents."""
    listed = re.findall(r"\]\(([^)#]+)\)", text("README.md").split("## Documents")[1])
    pages = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")}
    others = {path.name for path in ROOT.glob("*.md")} - {"README.md"}

    assert sorted(set(listed)) == sorted(listed)
    assert set() == (pages | others) - set(listed)


def test_every_decision_is_in_the_index() -> None:
    """Under its number, which no other has, and its title; none has more than 40 lines."""
    files = sorted((ROOT / "docs/decisions").glob("0*.md"))
    lines = [path.read_text("utf-8").splitlines() for path in files]
    titles = {path.name: f"# {path.name[:4]}: " for path in files}
    index = rows("docs/decisions/README.md", "number")

    assert [] == [path.name for path, text in zip(files, lines, strict=True) if len(text) > 40]
    assert len(files) == len({path.name[:4] for path in files})
    assert [text[0] for text in lines] == [
        titles[path.name] + title for path, (_, title) in zip(files, index, strict=True)
    ]
    assert [f"[{path.name[:4]}]({path.name})" for path in files] == [number for number, _ in index]


def test_no_package_registry_is_named() -> None:
    """Where packages come from is the business of whoever installs them."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],  # noqa: S607 - any git
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split()
    names = listed or [str(path.relative_to(ROOT)) for path in (*DOCUMENTS, *CODE)]
    hosts = re.compile("|".join(rf"\b{re.escape(each)}(?:org|com|io|net)\b" for each in REGISTRIES))
    found = [
        name
        for name in names
        if (ROOT / name).is_file() and hosts.search((ROOT / name).read_text("utf-8", "replace"))
    ]

    assert [] == found


def test_page_of_fleets_says_which_commands_take_many_and_which_have_a_document() -> None:
    """No command is said to take `--json` there that refuses it."""
    many = {name for name, each in registry.COMMANDS.items() if each.fleet}
    page = text("docs/fleets.md")
    for taken, expected in (
        ("them", many),
        ("`--table` and `--json`", {name for name in many if registry.COMMANDS[name].result}),
    ):
        (said,) = re.findall(rf"((?:`\w+`(?:, | and )?)+) take {taken}", page)
        assert expected == set(words(said))
