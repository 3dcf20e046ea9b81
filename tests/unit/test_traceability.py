"""Register, tests and README name the same requirements, in both directions."""

from __future__ import annotations

import ast
import csv
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from resnet8_eval.requirements import BY_ID, REGISTER

ROOT = Path(__file__).parents[2]
START, END = "<!-- requirements -->", "<!-- /requirements -->"
HEADER = ("ID", "Milestone", "Phase", "Requirement", "Measured", "Required", "Test", "Evidence")


class Marked(NamedTuple):
    """A test that carries a requirement marker."""

    file: str
    name: str
    requirement: str
    evidence: str
    """What it checks besides the number: its docstring."""


def marked_tests(path: Path) -> list[Marked]:
    """The marked tests of a file, read without running it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith(
                    "mark.requirement"
                ):
                    requirement = ast.literal_eval(decorator.args[0])
                    evidence = ast.get_docstring(node) or ""
                    found.append(Marked(path.name, node.name, requirement, evidence))
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


@pytest.mark.parametrize("test", TESTS, ids=lambda test: test.requirement.lower())
def test_a_test_says_in_one_line_what_evidence_it_holds(test: Marked) -> None:
    assert re.fullmatch(r"[^|\n]+\.", test.evidence)


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


def table() -> str:
    """README's table of requirements, to be put between the two comments."""
    lines = [HEADER, ("---",) * len(HEADER)]
    for e in REGISTER:
        (test,) = (test for test in TESTS if test.requirement == e.id)
        found = (e.id, e.milestone, str(e.phase), e.title, e.quantity, e.required)
        lines.append((*found, f"`{test.name}`", test.evidence))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def test_readme_has_the_requirements_of_the_register_and_their_tests() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    wanted = f"{START}\n\n{table()}\n\n{END}"
    assert text.count(wanted) == text.count(START) == 1, f"README.md must hold\n\n{wanted}"


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.csv")), ids=lambda path: path.stem)
def test_every_line_of_a_published_table_has_as_many_fields_as_the_first(path: Path) -> None:
    """A verdict such as *equivalent, lower* has a comma of its own."""
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))
    assert len(lines) > 2
    assert {len(line) for line in lines} == {len(lines[0])}
