"""What only shows or selects imports no framework."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from resnet8_eval.requirements import BY_ID

ROOT = Path(__file__).parents[2]
HEAVY = ("tensorflow", "keras", "tf2onnx", "torch", "onnx", "onnxruntime", "onnx2torch", "scipy")

STATEMENTS = {
    "the command line": ("import resnet8_eval.cli", 240),
    "the plugin": ("import resnet8_eval.pytest_plugin", 353),
    "the results": ("import resnet8_eval.results", 207),
    "what goes into them": ("import resnet8_eval.gather", 360),
    "the report": ("import resnet8_eval.report, resnet8_eval.report.html", 221),
    "the pipeline": ("import resnet8_eval.pipeline", 353),
    "help": ("from resnet8_eval import cli; cli.app(['--help'], standalone_mode=False)", 410),
    "help of a command": (
        "from resnet8_eval import cli; cli.app(['quantize', '--help'], standalone_mode=False)",
        470,
    ),
    "collecting the requirement tests": (
        "import pytest; assert pytest.main("
        "['--collect-only', '-q', '-p', 'no:cacheprovider', 'tests/acceptance']) == 0",
        650,
    ),
}
"""What is run, and how many modules it may import: a tenth more than when this was written."""


@pytest.mark.parametrize(("statement", "most"), STATEMENTS.values(), ids=STATEMENTS)
def test_no_framework_is_imported_and_little_else(statement: str, most: int) -> None:
    tell = f"import sys; print([n for n in {HEAVY} if n in sys.modules], len(sys.modules))"
    done = subprocess.run(  # noqa: S603 (our own words)
        [sys.executable, "-c", f"{statement}\n{tell}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    heavy, _, count = done.stdout.splitlines()[-1].rpartition(" ")
    assert heavy == "[]"
    assert int(count) <= most


def test_collecting_touches_neither_assets_nor_reports(tmp_path: Path) -> None:
    options = [f"--assets-dir={tmp_path}", f"--cache-dir={tmp_path}/cache"]
    options += [f"--reports-dir={tmp_path}/reports", "-p", "no:cacheprovider"]
    done = subprocess.run(  # noqa: S603 (our own words)
        [sys.executable, "-m", "pytest", "--collect-only", "-q", *options, "tests/acceptance"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        ([], "."),
        (["-m", "v1_2"], "."),
        (["--requirement", "ORT-01"], "."),
        (["-m", "v1_2"], "docs"),
        (["-m", "v1_2"], "tests/unit/golden"),
    ],
)
def test_without_a_path_pytest_reads_the_requirement_tests_alone(
    words: list[str], folder: str
) -> None:
    done = subprocess.run(  # noqa: S603 (our own words)
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT / folder,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    found = re.search(r"^(?:\d+\/)?(\d+) tests collected", done.stdout, re.MULTILINE)
    assert found, done.stdout
    assert int(found[1]) == len(BY_ID)
