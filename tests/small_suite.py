"""An acceptance suite in miniature: one quick test for each requirement, and no framework."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

# A run in this process forgets the modules that it was the first to import, and some cannot be
# imported twice.
import pytest

import resnet8_eval.backends.onnxruntime
import resnet8_eval.backends.torch
import resnet8_eval.gather
import resnet8_eval.report.html  # noqa: F401
from resnet8_eval.requirements import ON_DEMAND, REGISTER, Requirement

INI: Final = """
[pytest]
addopts = --strict-markers -p no:hypothesispytest
xfail_strict = true
"""
ROOT: Final = Path(__file__).parents[1]
LOCATE: Final = """
from pathlib import Path

from resnet8_eval import assets
from resnet8_eval.errors import AssetError

FILES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]


def locate(kind, keras_model=None, **_):
    if Path("no-assets").exists():
        raise AssetError("Missing: model.", expected="it", given="nothing", next_step="fetch it")
    return assets.Assets(
        kind="real" if kind == "auto" else kind,
        model=Path("model.h5"),
        model_sha256="1" * 64,
        user_model=keras_model is not None,
        dataset=Path("images"),
        dataset_md5=dict.fromkeys(FILES, "2" * 32),
        dataset_sha256=dict.fromkeys(FILES, "3" * 64),
    )


honest = assets.locate


def pytest_configure():
    assets.locate = locate


def pytest_unconfigure():
    assets.locate = honest
"""
CONFTEST: Final = (ROOT / "conftest.py").read_text(encoding="utf-8") + LOCATE


def good(requirement: Requirement) -> float:
    """A number that meets a requirement."""
    return requirement.threshold + {">": 1, "<": -1}.get(requirement.direction, 0)


def passing(requirement_id: str, before: str = "", body: str = "") -> str:
    """A requirement test that passes, but for the decorators and the statements planted in it."""
    (entry,) = [entry for entry in REGISTER if entry.id == requirement_id]
    name = requirement_id.lower().replace("-", "_")
    return (
        f"{before}\n"
        f'@pytest.mark.requirement("{entry.id}")\n'
        f"def test_{name}_small(requirement, run):\n"
        f"    {body or 'pass'}\n"
        f"    requirement.judge({good(entry)}, [equal('it', 1, 1)])\n"
    )


class Suite:
    """The miniature in a folder of its own, and what its last run left.

    Parameters
    ----------
    pytester
        Runs it.
    """

    def __init__(self, pytester: pytest.Pytester) -> None:
        self._pytester = pytester
        self.reports = pytester.path / "reports"
        pytester.makefile(".ini", pytest=INI)
        pytester.makeconftest(CONFTEST)
        (pytester.path / "acceptance").mkdir()
        (pytester.path / "resnet8_eval").mkdir()  # as in a checkout
        (pytester.path / "own.h5").touch()
        self.write()

    def write(self, planted: Mapping[str, str] = {}, extra: str = "") -> None:
        """Write the tests: passing ones, but for those `planted` by requirement."""
        head = (
            "import contextlib, os, signal, time\n"
            "import pytest\n"
            "from resnet8_eval.checks import equal\n"
        )
        tests = [planted.get(entry.id, passing(entry.id)) for entry in REGISTER]
        text = "\n\n".join([head, *tests, extra])
        (self._pytester.path / "acceptance" / "test_small.py").write_text(text)

    def run(
        self, *words: str, apart: bool = False, html: bool = False, ends_by_ctrl_c: bool = False
    ) -> Outcome:
        """Run pytest on it.

        Parameters
        ----------
        words
            Options.
        apart
            Whether the run is to have a process of its own, besides those of its workers: one that
            gets a signal, or that would leave something behind in this process, or find it there.
        html
            Whether pytest-html takes part.
        ends_by_ctrl_c
            Whether a test of it plants one; any other ends this run as well.
        """
        options = ["--cache-dir=cache", "acceptance"]
        if not any(word.startswith("--reports-dir") for word in words):
            options.append("--reports-dir=reports")
        if not html:
            options += ["-p", "no:html"]
        # The test may itself be run by a worker.
        self._pytester._monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
        if apart:
            done = self._pytester.runpytest_subprocess(*words, *options, timeout=60)
        else:
            done = self._pytester.runpytest_inprocess(
                *words, *options, no_reraise_ctrlc=ends_by_ctrl_c
            )
        return Outcome(int(done.ret), "\n".join([*done.outlines, *done.errlines]), self.reports)


class Outcome:
    """Exit status, output and results of one run."""

    def __init__(self, status: int, output: str, reports: Path) -> None:
        self.status = status
        self.output = output
        path = reports / "results.json"
        self.results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    @property
    def verdicts(self) -> dict[str, str]:
        """Milestone to verdict, of those that are always judged."""
        found = self.results["milestones"].items()
        return {name: said["verdict"] for name, said in found if name not in ON_DEMAND}

    def statuses(self, ids: Iterable[str] | None = None) -> dict[str, str]:
        """Requirement to status."""
        found = {entry["id"]: entry["status"] for entry in self.results["requirements"]}
        return found if ids is None else {name: found[name] for name in ids}

    def reason(self, requirement_id: str) -> str:
        """Why a requirement is not met."""
        (entry,) = [e for e in self.results["requirements"] if e["id"] == requirement_id]
        return str(entry["reason"])
