"""Real reports, and a real browser to read them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resnet8_eval.report import html
from tests.browser import browser
from tests.unit import report_samples

CONFTEST = """
from pathlib import Path

import pytest

from resnet8_eval.acceptance_run import fill_page
from resnet8_eval.results import read

RESULTS = read(Path(__file__).with_name("results.json"))


def pytest_html_results_summary(session):
    fill_page(session.config, RESULTS)


@pytest.fixture
def broken():
    raise RuntimeError("the session ended")
"""
SAMPLES = (
    "extended",
    "two_recipes",
    "one_failed",
    "flagged",
    "one_milestone",
    "standin",
    "missing",
    "incomplete",
    "hostile",
    "weak_model",
    "bad_conversion",
    "one_bad_layer",
    "saturated",
    "failed_stage",
)
TEST = """
def {name}({fixture}):
    print("measured", {measured!r})
    assert {passes}
"""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "browser: reads the report with headless Chromium")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder with every report that these tests read."""
    found = tmp_path_factory.mktemp("reports")
    for sample in SAMPLES:
        results = report_samples.record(getattr(report_samples, sample)())
        (found / f"{sample}.html").write_text(html.page(results), encoding="utf-8")
    for sample in ("one_failed", "standin"):
        _run_pytest(found / f"pytest-{sample}", getattr(report_samples, sample)())
    return found


def _run_pytest(folder: Path, results: dict[str, Any]) -> None:
    """Have pytest-html itself write a report of tests named like the requirements'."""
    for requirement in results["requirements"]:
        path, _, name = requirement["test"].partition("::")
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as out:
            out.write(
                TEST.format(
                    name=name,
                    measured=requirement["measured"],
                    passes=requirement["status"] != "not met",
                    fixture="" if requirement["evidence"] else "broken",
                )
            )
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    (folder / "conftest.py").write_text(CONFTEST, encoding="utf-8")
    done = subprocess.run(  # noqa: S603 (our own pytest)
        [
            *(sys.executable, "-m", "pytest", "-p", "no:resnet8_eval", "-p", "no:cacheprovider"),
            *("--rootdir", str(folder), "--html", "report.html", "--self-contained-html"),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (folder / "report.html").exists(), done.stdout + done.stderr


@pytest.fixture(scope="session")
def _chromium() -> Iterator[Any]:
    missing = browser.missing()
    if missing:
        pytest.skip(missing)
    with browser.chromium() as driver:
        yield driver


@pytest.fixture
def chromium(_chromium: Any) -> Iterator[Any]:
    """Headless Chromium, at a desk, in daylight; what it complains about fails the test."""
    _chromium.get("about:blank")  # first, or the page that was open would be laid out once more
    browser.look(_chromium)
    _chromium.get_log("browser")
    _chromium.get_log("performance")
    yield _chromium
    assert not _chromium.get_log("browser")


@pytest.fixture(scope="session")
def axe() -> str:
    """Source of axe-core: the file named by ``AXE_CORE``, or what ``make test`` installs by npm."""
    installed = Path(sys.prefix) / "axe" / "node_modules" / "axe-core" / "axe.min.js"
    path = Path(os.environ.get("AXE_CORE") or installed)
    if not path.is_file():
        pytest.skip(
            f"axe-core is absent: {path}; make test installs it where npm is, or set AXE_CORE"
        )
    return path.read_text(encoding="utf-8")
