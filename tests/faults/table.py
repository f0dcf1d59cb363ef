"""The fault table: what can go wrong around a run, and what happens then.

The rows are in rows.txt. A test stands for one by `@pytest.mark.fault("B036")`, and
`pytest -k B036` finds it. `make faults` writes docs/faults.md from both.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests import servers

ROOT = servers.REPOSITORY
PAGE = ROOT / "docs/faults.md"
WHERE = ("unit", "postgres", "faults", "image", "cluster")


@dataclass(frozen=True)
class Row:
    """One fault: what goes wrong, what happens then, and the exit code of the run that meets it."""

    fault: str
    outcome: str
    code: str


@dataclass(frozen=True)
class Proof:
    """A test that stands for rows: its file below `tests`, its name, and the case if it is one."""

    file: str
    name: str
    case: str = ""


def _read() -> tuple[dict[str, str], dict[str, Row]]:
    """Return the titles of the parts, and the rows by their ids."""
    parts: dict[str, str] = {}
    rows: dict[str, Row] = {}
    for line in Path(__file__).with_name("rows.txt").read_text("utf-8").splitlines():
        if line.startswith("# "):
            parts[line[2]] = line.partition(": ")[2]
        elif line:
            name, *cells = (each.strip() for each in line.split("|"))
            rows[name] = Row(*cells)
    return parts, rows


PARTS, ROWS = _read()


def proofs() -> dict[str, list[Proof]]:
    """Return the tests that stand for each row, in the order of their files."""
    found: dict[str, list[Proof]] = {name: [] for name in ROWS}
    for where in WHERE:
        for path in sorted((ROOT / "tests" / where).glob("test_*.py")):
            for node in ast.parse(path.read_bytes()).body:
                if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                    for row, case in _marks(node):
                        file = str(path.relative_to(ROOT / "tests"))
                        found.setdefault(row, []).append(Proof(file, node.name, case))
    return found


def _marks(test: ast.FunctionDef) -> Iterator[tuple[str, str]]:
    """Yield the rows that a test is marked with, and the case that carries the mark."""
    for decorator in test.decorator_list:
        if _is_mark(decorator):
            yield from ((row, "") for row in _texts(decorator))
        for node in ast.walk(decorator):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.param":
                case = [text for each in node.keywords if each.arg == "id" for text in _texts(each)]
                for each in ast.walk(node):
                    if _is_mark(each):
                        yield from ((row, "".join(case)) for row in _texts(each))


def _is_mark(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault"


def _texts(node: ast.AST) -> list[str]:
    return [
        each.value
        for each in ast.walk(node)
        if isinstance(each, ast.Constant) and isinstance(each.value, str)
    ]


def page() -> str:
    """Return docs/faults.md."""
    found = proofs()
    lines = [
        "# Faults",
        "",
        f"{len(ROWS)} things that go wrong around a migration, and what happens then.",
        "Each row has a test that makes it go wrong in earnest: real servers, clients, signals.",
        "`make test ARGS='-k B036'` runs what stands for one row.",
        "`image` and `cluster` need docker: `make test-image` and `make test-cluster`.",
        "Written by `make faults` from `tests/faults/rows.txt` and the tests' marks.",
        "[What runs where](../CONTRIBUTING.md#what-runs-where).",
        "",
        "The code is that of the run that meets the fault; 0 where it gets over it.",
    ]
    for part, title in PARTS.items():
        lines += [
            "",
            f"## {title}",
            "",
            "| id | fault | what happens | code | test |",
            f"{'|---' * 5}|",
        ]
        lines += [_line(name, found[name]) for name in ROWS if name.startswith(part)]
    return "\n".join(lines) + "\n"


def _line(name: str, tests: list[Proof]) -> str:
    row = ROWS[name]
    said = "<br>".join(map(_said, tests))
    return f"| {name} | {row.fault} | {row.outcome} | {row.code} | {said} |"


def _said(proof: Proof) -> str:
    case = f" ({proof.case})" if proof.case else ""
    return f"[`{proof.name}`](../tests/{proof.file}){case}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
