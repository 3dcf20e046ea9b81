"""Register, tests and README name the same requirements, in both directions."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from resnet8_eval.requirements import BY_ID, REGISTER

ROOT = Path(__file__).parents[2]
START, END = "<!-- requirements -->", "<!-- /requirements -->"
HEADER = ("ID", "Milestone", "Requirement", "Measured", "Required")


class Marked(NamedTuple):
    """A test that carries a requirement marker."""

    file: str
    name: str
    requirement: str


def marked_tests(path: Path) -> list[Marked]:
    """The marked tests of a file, read without running it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith(
                    "mark.requirement"
                ):
                    found.append(Marked(path.name, node.name, ast.literal_eval(decorator.args[0])))
    return found


TESTS = [
    test
    for path in sorted((ROOT / "tests" / "acceptance").glob("*.py"))
    for test in marked_tests(path)
]


def test_each_requirement_has_exactly_one_test_and_each_test_a_requirement() -> None:
    assert sorted(test.requirement for test in TESTS) == sorted(BY_ID)


@pytest.mark.parametrize("test", TESTS, ids=lambda test: test.requirement.lower())
def test_a_test_and_its_file_are_named_after_the_requirement(test: Marked) -> None:
    family, number = test.requirement.lower().split("-")
    assert test.file == f"test_{family}.py"
    assert re.fullmatch(rf"test_{family}_{number}_[a-z0-9_]+", test.name)


def test_requirement_markers_stand_in_the_acceptance_tests_alone() -> None:
    others = [
        path
        for path in (ROOT / "tests").rglob("*.py")
        if path.parent.name != "acceptance" and marked_tests(path)
    ]
    assert others == []


def test_no_other_test_has_the_name_of_a_requirement() -> None:
    """The verdict goes by names where a crashed worker leaves nothing else."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        if path.parent.name != "acceptance":
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef):
                    found = re.match(r"test_([a-z]+)_(\d\d)_", node.name)
                    assert not found or f"{found[1].upper()}-{found[2]}" not in BY_ID, path


def test_every_acceptance_test_carries_a_marker() -> None:
    marked = {(test.file, test.name) for test in TESTS}
    for path in (ROOT / "tests" / "acceptance").glob("test_*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                assert (path.name, node.name) in marked


def rows() -> list[tuple[str, ...]]:
    """The register as the rows of README's table."""
    return [(e.id, e.milestone, e.title, e.quantity, e.required) for e in REGISTER]


def table() -> str:
    """README's requirement table, to be put between the two comments."""
    lines = [HEADER, ("---",) * len(HEADER), *rows()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def test_readme_has_the_requirements_of_the_register() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    wanted = f"README.md must hold\n\n{START}\n\n{table()}\n\n{END}"
    assert text.count(START) == text.count(END) == 1, wanted
    between = text.partition(START)[2].partition(END)[0]
    lines = [line for line in between.splitlines() if line.strip().startswith("|")]
    cells = [tuple(cell.strip() for cell in line.strip().strip("|").split("|")) for line in lines]
    assert cells[:1] == [HEADER], wanted
    assert sorted(cells[2:]) == sorted(rows()), wanted
