"""The list of mutants stays sound, and what plants them tells a killed one from a survivor."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from tools.mutate import PACKAGE, ROOT, Mutant, judge, load

MUTANTS = load()
FAMILIES = (
    "preprocess",
    "cifar10",
    "calibration",
    "convert",
    "calibrate",
    "backends",
    "proof",
    "evaluate",
    "statistics",
    "analysis",
    "requirements",
    "checks",
    "store",
    "environment",
    "pipeline",
    "results",
    "acceptance_run",
    "pytest_plugin",
    "verdicts",
)


@pytest.fixture(scope="module")
def places() -> dict[str, Path]:
    """The file of each mutant. Finding them takes seconds, which no other worker need spend."""
    return {mutant.id: mutant.place(ROOT / PACKAGE) for mutant in MUTANTS}


def test_there_are_enough_and_each_has_an_id_of_its_own() -> None:
    assert 60 <= len(MUTANTS) <= 130  # distinct faults that a user would suffer
    assert [name for name, n in Counter(mutant.id for mutant in MUTANTS).items() if n > 1] == []
    pairs = Counter((mutant.old, mutant.new) for mutant in MUTANTS)
    assert [pair for pair, n in pairs.items() if n > 1] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_modules_has_mutants(family: str, places: dict[str, Path]) -> None:
    parts = (place.relative_to(ROOT / PACKAGE).parts for place in places.values())
    assert family in {first.removesuffix(".py") for first, *_ in parts}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_a_mutant_fits_the_code_and_names_tests_that_exist(
    mutant: Mutant, places: dict[str, Path]
) -> None:
    source = places[mutant.id].read_text(encoding="utf-8")
    changed = ast.dump(ast.parse(mutant.applied(source)))
    assert changed != ast.dump(ast.parse(source)), "`new` must be other code"
    assert mutant.fault
    assert mutant.tests
    for test in mutant.tests:
        path, _, name = test.partition("::")
        assert f"def {name or 'test_'}" in (ROOT / path).read_text(encoding="utf-8")


# --- the program that plants them ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("new", "verdict", "by"),
    [
        ("a - b", "killed", "test_it.py::test_sum"),
        ("b + a", "survived", "all tests passed"),
        ("a +", "broken", "error during collection"),
    ],
)
def test_the_verdict_on_a_mutant(tmp_path: Path, new: str, verdict: str, by: str) -> None:
    checkout, scratch = tmp_path / "checkout", tmp_path / "scratch"
    (checkout / PACKAGE).mkdir(parents=True)
    scratch.mkdir()
    for name in ("__init__.py", "pytest_plugin.py"):  # an entry point; pytest always imports it
        (checkout / PACKAGE / name).touch()
    source = checkout / PACKAGE / "small.py"
    source.write_text("def add(a, b):\n    return a + b\n")
    (checkout / "test_it.py").write_text(
        f"from {PACKAGE}.small import add\ndef test_sum():\n    assert add(2, 1) == 3\n"
    )
    mutant = Mutant("small", "a + b", new, "a fault", ("test_it.py",))
    found = judge(checkout, scratch, mutant.tests, mutant, None)
    assert (found.verdict, by in found.by) == (verdict, True), found.by
    assert source.read_text() == "def add(a, b):\n    return a + b\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [("a + b\na + b\n", "occurs in small.py, small.py"), ("a - b\n", "occurs in nowhere")],
)
def test_a_mutant_that_does_not_fit_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "small.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        Mutant("twice", "a + b", "b", "a fault", ("test_it.py",)).place(tmp_path)


def test_a_mutant_survives_a_move_and_other_line_breaks(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    moved = tmp_path / "inner" / "moved.py"
    moved.write_text("x = f(\n    a\n    + b\n)\n")
    mutant = Mutant("moved", "f(a + b)", "f(a - b)", "a fault", ("test_it.py",))
    assert mutant.place(tmp_path) == moved
    assert mutant.applied(moved.read_text()) == "x = f(a - b)\n"
