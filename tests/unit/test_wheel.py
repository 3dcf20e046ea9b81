"""The wheel: what is in it, and that it needs no checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from resnet8_eval.requirements import MILESTONES, REGISTER

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content, in a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(installed: Path, where: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a module where there is no checkout."""
    return subprocess.run(  # noqa: S603 (our own words)
        [sys.executable, "-P", "-m", *words],  # nor is the folder that it runs in searched
        cwd=where,
        env={**os.environ, "PYTHONPATH": str(installed), "RESNET8_EVAL_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def files(folder: Path) -> set[str]:
    """All but what Python and pytest keep in folders of their own."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {
        path.as_posix()
        for path in found
        if not {"__pycache__", ".pytest_cache"}.intersection(path.parts)
    }


def test_every_file_of_the_package_is_in_it_and_no_other(installed: Path) -> None:
    expected = files(ROOT / "resnet8_eval")
    for name, folder in (("fixtures", "fixtures"), ("acceptance", "tests/acceptance")):
        expected |= {f"{name}/{file}" for file in files(ROOT / folder)}
    assert {"results.schema.json", "report/templates/report.css", "fixtures/assets.json"} < expected
    assert {path for path in files(installed) if ".dist-info/" not in path} == {
        f"resnet8_eval/{file}" for file in expected
    }


def test_it_runs_from_any_folder(installed: Path, tmp_path: Path) -> None:
    assert "quantize" in run(installed, tmp_path, "resnet8_eval", "--help").stdout
    words = ("run", "--assets", "stand-in", f"--cache-dir={tmp_path}")
    done = run(installed, tmp_path, "resnet8_eval", *words)
    assert done.returncode == 0, done.stderr
    assert "missing  onnx" in done.stdout
    code = "import resnet8_eval; print(resnet8_eval.__file__)"
    assert str(installed) in run(installed, tmp_path, "timeit", "-n1", "-r1", code).stdout


def test_the_requirement_tests_are_in_it(installed: Path, tmp_path: Path) -> None:
    """Also for one who stands in a checkout."""
    words = ("--collect-only", "-q", "--pyargs", "resnet8_eval.acceptance")
    for where, more in ((tmp_path, ()), (tmp_path, (f"--reports-dir={tmp_path}",)), (ROOT, ())):
        done = run(installed, where, "pytest", *words, *more, "-m", " or ".join(MILESTONES))
        assert done.returncode == 0, done.stdout
        collected = [line for line in done.stdout.splitlines() if "::" in line]
        assert len(collected) == len(REGISTER)


def test_without_a_checkout_pytest_says_where_they_are(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, "pytest", "-m", "v1_2", "--assets=stand-in")
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED
    assert "run with: pytest --pyargs resnet8_eval.acceptance" in done.stdout
