"""What ``--gate`` demands, at its borders, and a planted row that only the gate stops."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnet8_eval import configurations, gate
from resnet8_eval.cifar10 import Split
from resnet8_eval.evaluate import evaluate
from resnet8_eval.pipeline import Pipeline
from resnet8_eval.report import html, markdown, outcome, terminal
from resnet8_eval.store import Record
from tests.unit import report_samples

ROW = "torch-int8-tuned"


@pytest.mark.parametrize(
    ("demand", "word", "delta", "met"),
    [
        ("equivalent", "equivalent", 0.0, True),
        ("equivalent", "equivalent, lower", -0.3, True),
        ("equivalent", "inconclusive", -0.3, False),
        ("equivalent", "degraded", -4.9, False),
        ("equivalent", "improved", 1.0, False),
        ("1.0", "degraded", -1.0, True),
        ("1.0", "degraded", -1.01, False),
        ("0", "equivalent, lower", -0.01, False),
        ("0", "improved", 2.0, True),
    ],
)
def test_a_row_passes_or_not(demand: str, word: str, delta: float, met: bool) -> None:
    good = {"word": "equivalent", "delta_pp": 0.0}
    given = {"word": word, "delta_pp": delta}
    for seeds in ([given], [good, given]):  # alone, and with the second of two calibration seeds
        compared = {"one": [good, good], "other": seeds}
        found = gate.judge(gate.demand(demand), compared)
        assert (found["met"], found["failing"]) == (met, [] if met else ["other"])


def test_a_row_without_a_number_fails() -> None:
    there = {"word": "", "delta_pp": 0.0}
    found = gate.judge(5.0, {"there": [there], "absent": [None], "once": [there, None]})
    assert (found["met"], found["failing"]) == (False, ["absent", "once"])


@pytest.mark.parametrize("text", ["", "same", "-1", "nan", "inf", "Equivalent"])
def test_a_demand_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="expected equivalent, or the largest drop"):
        gate.demand(text)


def test_stock_rows_and_the_baseline_are_not_judged() -> None:
    names = {row.name for row in configurations.gated()}
    assert configurations.baseline().name not in names
    assert not names & {row.name for row in configurations.stock()}
    assert names | {row.name for row in configurations.stock()} == {
        row.name for row in configurations.CONFIGURATIONS[1:]
    }


@pytest.mark.parametrize("told", [terminal.render, html.section, markdown.summary])
def test_every_form_of_the_report_says_which_gate(told: Callable[..., Any]) -> None:
    raw = report_samples.flagged()
    name = raw["configurations"][5]["name"]
    raw["gate"] = {"demand": 1.0, "met": False, "rows": [name, "gone"], "failing": [name, "gone"]}
    spread = {"mean": -1.0, "deviation": 0.1, "worst": -7.5}
    figures = dict.fromkeys(("accuracy_percent", "delta_pp", "agreement_percent"), spread)
    seeded = {"name": name, "correct": [1, 2], **figures}
    raw["seeds"] = {"seeds": [0, 1], "total": 10_000, "rows": [seeded]}
    found = report_samples.record(raw)
    if told is terminal.render:
        text = "\n".join(terminal.render(found, 200))
    else:
        text = html.section("verdict", found) if told is html.section else markdown.summary(found)
    assert "gate not met: 0 of 2 rows no more than 1 pp below the baseline with each of 2" in text
    assert "worst of its seeds −7.50 pp" in text
    assert "PyTorch int8, tuned: degraded, −" in text
    assert "gone: not evaluated" in text
    assert outcome.headline(found).startswith("27 of 28 requirements met; gate not met; worst")
    assert '<p class="small"></p>' not in text  # it has no title, as milestones have
    assert max(map(len, terminal.render(found, 80))) <= 80


@pytest.fixture(scope="module")
def planted(
    pipeline: Pipeline, standin_test: Split, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A cache in which one row classes 4.9 % of the images otherwise, all of them wrongly."""
    cache = tmp_path_factory.mktemp("cache")
    for found in filter(None, map(pipeline.peek, pipeline.stages)):
        shutil.copytree(found.folder, cache / "artifacts" / found.folder.name)
    own = Pipeline(replace(pipeline.settings, cache_dir=cache, run="planting"))
    honest = own.artifact(f"scores/{ROW}")
    labels = standin_test.labels
    scores = np.load(own.artifact("scores/keras-float32").path("scores.npy"))
    right = np.flatnonzero(scores.argmax(axis=1) == labels)[: round(0.049 * len(labels))]
    scores[right] = np.roll(scores[right], 1, axis=1)

    def make(out: Path) -> Record:
        np.save(out / "scores.npy", scores)
        return {**honest.record, **evaluate(scores, labels)}

    for stage in (f"scores/{ROW}", f"compare/{ROW}"):
        own.store.discard(stage, own.key(stage))
    own.store.produce(f"scores/{ROW}", own.key(f"scores/{ROW}"), make)
    again = Pipeline(own.settings)
    assert again.make(f"compare/{ROW}", 1).record["delta_pp"] == pytest.approx(-4.9)
    return cache


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ((), 0, None),
        (("--gate", "equivalent"), 1, "rows equivalent to the baseline (--gate equivalent;"),
        (("--gate", "1.0"), 1, "6 of 7 rows no more than 1 pp below the baseline (--gate 1;"),
    ],
)
def test_a_row_at_minus_4_9_pp_passes_without_a_gate_and_fails_with_one(
    planted: Path,
    tmp_path: Path,
    words: tuple[str, ...],
    status: int,
    said: str | None,
    pytestconfig: pytest.Config,
) -> None:
    done = subprocess.run(  # noqa: S603 (our own words)
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:html", "--requirement", "ANL-02"),
            *("--assets", "stand-in", f"--cache-dir={planted}"),
            *(f"--reports-dir={tmp_path}", *words),
        ],
        cwd=pytestconfig.rootpath,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8")).get("gate")
    assert ('name="gate" value="gate not met' in (tmp_path / "junit.xml").read_text()) == bool(said)
    if said is None:
        assert found is None
        assert "gate" not in done.stdout
        return
    assert said in " ".join(done.stdout.split())
    assert not found["met"]
    assert ROW in found["failing"]
