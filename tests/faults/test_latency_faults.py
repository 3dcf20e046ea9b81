"""EVAL-04 and EVAL-05: figures that are not what they seem."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from resnet8_eval import latency, loadgen
from resnet8_eval.configurations import CONFIGURATIONS
from resnet8_eval.evaluate import softmax
from resnet8_eval.latency import Target, summarize
from resnet8_eval.loadgen import SCENARIOS, Scenario, load_test
from resnet8_eval.pipeline import Pipeline
from resnet8_eval.requirements import MAX_OTHERS_PERCENT, PARITY_ATOL
from tests.planted import Bench, timed
from tests.unit.test_latency import IMAGES, scores

ROW, FLOAT = "torch-int8-tuned", "torch-float32"
ONE_SHORT = f"measured {len(CONFIGURATIONS) - 1}, required"


# --- what a run can suffer -----------------------------------------------------------------------


def told(run: dict[str, Any]) -> list[str]:
    """What a record says that has this run, and that of a row to which nothing happened."""
    labels = {"row": "row", "scenario": "SingleStream", "threads": 1, "round": 1, "batch": 1}
    other = timed("other", "SingleStream", 1)
    record = summarize([{**run, **labels}, other], {"row": "row", "other": "other"})
    return list(record["told"])


def test_a_model_that_sleeps_in_its_session_is_told(tmp_path: Path) -> None:
    def slowed(batch: Any) -> Any:
        time.sleep(0.002)
        return scores(batch)

    run = load_test(slowed, IMAGES, "SingleStream", tmp_path / "run", seconds=0.2)
    assert run["valid"], run["reasons"]
    assert run["figures"]["p50_ms"] > 2
    (line,) = (line for line in told(run) if "off the processor" in line)
    assert "row " in line
    assert "other " not in line


def test_a_row_slowed_on_purpose_has_a_low_ratio() -> None:
    rows = {"slowed": "float", "float": "float"}
    figures = {"p50_ms": 5.0, "p90_ms": 5.0, "p99_ms": 5.0}
    slow = timed("slowed", "SingleStream", 1, figures=figures)
    runs = [slow, timed("float", "SingleStream", 1)]
    (entry,) = summarize(runs, rows)["rows"]["slowed"]["SingleStream"]
    assert entry["speedup"]["median"] == pytest.approx(0.1)


def test_a_busy_machine_is_told(tmp_path: Path) -> None:
    loop = "import time\nend = time.monotonic() + 20\nwhile time.monotonic() < end: pass"
    others = [
        subprocess.Popen([sys.executable, "-c", loop])  # noqa: S603 (our own words)
        for _ in range(psutil.cpu_count() or 1)
    ]
    try:
        time.sleep(0.3)
        run = load_test(scores, IMAGES, "SingleStream", tmp_path / "run", seconds=0.5)
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert 100 * run["others_s"] / run["capacity_s"] > MAX_OTHERS_PERCENT
    assert any("The machine was not idle" in line for line in told(run))


def test_an_idle_machine_is_not_called_busy() -> None:
    assert told(timed("row", "SingleStream", 1)) == []


def test_a_clock_that_jumps_spoils_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the system's time, which LoadGen follows, had been set back by ten seconds."""
    calls = iter(range(10**9))
    monkeypatch.setattr(
        loadgen, "_clock", lambda: time.monotonic() + (10 if next(calls) > 100 else 0)
    )
    run = load_test(scores, IMAGES, "SingleStream", tmp_path / "run", seconds=0.05)
    assert not run["valid"]
    assert "clocks disagree" in run["reasons"][0]
    assert any("clocks disagree" in line for line in told(run))


def test_a_loadgen_that_runs_out_of_queries_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loadgen, "FASTEST_NS", 10**9)
    run = load_test(scores, IMAGES, "SingleStream", tmp_path / "run", seconds=1)
    assert not run["valid"]
    assert any("LoadGen calls the run INVALID" in line for line in told(run))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_fewer_queries_than_the_minimum_do_not_count(tmp_path: Path, scenario: Scenario) -> None:
    run = load_test(scores, IMAGES, scenario, tmp_path / "run", queries=10)
    assert not run["valid"]
    assert "10 queries, fewer than 100" in run["reasons"]


PERCENTILES = {50: 2_000_000, 90: 3_000_000, 99: 5_000_000}
STREAM = {f"result_{p}.00_percentile_latency_ns": ns for p, ns in PERCENTILES.items()}
LOGGED: dict[Scenario, dict[str, Any]] = {
    "SingleStream": {**STREAM, "result_mean_latency_ns": 2_500_000},
    "Offline": {"result_samples_per_second": 400},
}


def judged(path: Path, scenario: Scenario, said: dict[str, Any], clock_s: float = 1.0) -> Any:
    """What is made of a log of 400 queries."""
    entries = [
        {"key": key, "value": value, "metadata": {"is_error": False}}
        for key, value in {"result_validity": "VALID", **said}.items()
    ]
    path.write_text("".join(f":::MLLOG {json.dumps(entry)}\n" for entry in entries))
    return loadgen._judged(path, scenario, 400, clock_s, accuracy=False)


def test_figures_are_those_of_the_log_in_their_units(tmp_path: Path) -> None:
    """LoadGen writes nanoseconds, and images a second."""
    figures = {
        "SingleStream": {"p50_ms": 2.0, "p90_ms": 3.0, "p99_ms": 5.0},
        "Offline": {"images_per_second": 400},
    }
    for scenario, said in LOGGED.items():
        found = judged(tmp_path / "log", scenario, said)
        assert (found["valid"], found["reasons"]) == (True, [])
        assert found["figures"] == figures[scenario]
        assert found["loadgen_s"] == 1.0
        assert "clocks disagree" in judged(tmp_path / "log", scenario, said, 1.3)["reasons"][0]


@pytest.mark.parametrize(
    ("scenario", "absent"), [(scenario, key) for scenario in LOGGED for key in LOGGED[scenario]]
)
def test_a_log_without_one_of_its_figures_does_not_count(
    tmp_path: Path, scenario: Scenario, absent: str
) -> None:
    said = {key: value for key, value in LOGGED[scenario].items() if key != absent}
    assert not judged(tmp_path / "log", scenario, said)["valid"]


def test_a_log_that_breaks_off_does_not_count(tmp_path: Path) -> None:
    load_test(scores, IMAGES, "SingleStream", tmp_path / "run", seconds=0.02)
    detail = tmp_path / "run" / "mlperf_log_detail.txt"
    lines = detail.read_text().splitlines()
    detail.write_text("\n".join(line for line in lines if '"result_' not in line))
    judged = loadgen._judged(detail, "SingleStream", 400, 0.02, accuracy=False)
    assert not judged["valid"]
    assert "LoadGen calls the run nothing" in judged["reasons"]


def test_answers_that_are_not_the_evaluations_are_counted() -> None:
    """In either session."""
    known = scores(IMAGES.astype(np.float32))
    given = known.copy()
    given[0] = np.roll(given[0], 1)
    for answers in ([known, given], [given, known]):
        found = latency._compared(answers, known)["answers"]
        assert (found["images"], found["disagreements"]) == (len(known), 1)
    given[1] = np.nan
    assert latency._compared([known, given], known)["answers"]["images"] == len(known) - 1


def test_probabilities_that_are_not_the_evaluations_are_told() -> None:
    """In either session, though no image gets another class."""
    known = softmax(scores(IMAGES.astype(np.float32)))
    near, far = known.copy(), known.copy()
    near[5, 0] += PARITY_ATOL / 2
    far[5, 0] += 2 * PARITY_ATOL
    assert latency._compared([known, near], known)["parity"].ok
    for answers in ([known, far], [far, known]):
        found = latency._compared(answers, known)
        assert found["answers"]["disagreements"] == 0
        assert not found["parity"].ok


# --- what the requirements say -------------------------------------------------------------------


def planted(bench: Bench, change: Callable[[Any], object]) -> str:
    """What EVAL-05 says of a changed row."""
    rows = copy.deepcopy(bench.artifact("latency").record["rows"])
    change(rows)
    bench.plant("latency", record={"rows": rows})
    return bench.verdict("EVAL-05")


def test_the_honest_record_meets_both(bench: Bench) -> None:
    assert bench.verdict("EVAL-04") == bench.verdict("EVAL-05") == ""


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows.pop(ROW),
        lambda rows: rows[ROW].pop("Offline"),
        lambda rows: rows[ROW]["SingleStream"][1].update(valid=False),
        lambda rows: rows[ROW]["Offline"][0].update(queries=99),
    ],
    ids=["no row", "one scenario", "an invalid run", "too few queries"],
)
def test_a_row_that_was_not_measured_is_missed(bench: Bench, change: Callable[[Any], None]) -> None:
    assert ONE_SHORT in planted(bench, change)


def test_other_answers_than_the_evaluations_fail(bench: Bench) -> None:
    said = planted(bench, lambda rows: rows[ROW]["answers"].update(disagreements=3))
    assert f"{ROW}, answers to LoadGen that are not the evaluation's: expected 0" in said


def test_other_probabilities_than_the_evaluations_fail(bench: Bench) -> None:
    said = planted(bench, lambda rows: rows[ROW]["parity"].update(observed="0.01", ok=False))
    assert f"{ROW}, answers to LoadGen: largest difference in probability: expected at most" in said


def test_a_model_of_another_framework_is_not_timed_as_a_row_s_own(bench: Bench) -> None:
    def swapped(rows: Any) -> None:
        rows[FLOAT]["sessions"] = rows["onnxruntime-float32"]["sessions"]

    said = planted(bench, swapped)
    assert f"{FLOAT}, sha256 of the model that was timed: expected" in said


def test_a_session_that_has_other_threads_than_its_figures_say_fails(bench: Bench) -> None:
    said = planted(bench, lambda rows: rows[ROW]["sessions"][1].update(threads=1))
    assert f"{ROW}, threads of its sessions: expected 1, 2, observed 2 × 1" in said


@pytest.mark.parametrize("planned", [{}, {ROW: "onnxruntime-float32"}, {FLOAT: "keras-float32"}])
def test_speed_is_compared_with_float32_of_the_same_framework(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, planned: dict[str, str]
) -> None:
    """What the stage asks for, and with a row that is compared with another framework's."""

    def measure(targets: Sequence[Target], *_: Any, **__: Any) -> dict[str, Any]:
        rows = {target.name: planned.get(target.name, target.float32) for target in targets}
        runs = [
            timed(row, scenario, 1, n) for n in (1, 2) for row in rows for scenario in SCENARIOS
        ]
        made = summarize(runs, rows)
        return {**made, "rows": {row: {**honest[row], **made["rows"][row]} for row in rows}}

    honest = bench.artifact("latency").record["rows"]
    monkeypatch.setattr(latency, "measure", measure)
    bench.remake("latency")
    said = bench.verdict("EVAL-05")
    assert bool(said) == bool(planned)
    for row, other in planned.items():
        expected = f"{row}, row that its speed is compared with: expected {FLOAT}"
        assert f"{expected}, observed {other}" in said


def test_float32_that_is_not_as_fast_as_itself_fails(bench: Bench) -> None:
    double = {"median": 2.0, "low": 1.0, "high": 2.0}
    said = planted(bench, lambda rows: rows[FLOAT]["Offline"][1].update(speedup=double))
    assert f"{FLOAT}, its speed over its own: expected 1.0, observed 1.0, 2.0" in said


def test_images_without_an_answer_fail(bench: Bench) -> None:
    said = planted(bench, lambda rows: rows[ROW]["answers"].update(images=999))
    assert f"{ROW}, images answered to LoadGen: expected 1000, observed 999" in said


def test_speed_is_judged_only_where_it_is_demanded(
    pipeline: Pipeline, bench: Bench, tmp_path: Path
) -> None:
    slow = {"median": 0.5, "low": 0.4, "high": 0.6}
    assert planted(bench, lambda rows: rows[ROW]["Offline"][0].update(speedup=slow)) == ""
    settings = replace(pipeline.settings, min_speedup=0.9)
    (tmp_path / "bench").mkdir()
    demanding = Bench(Pipeline(settings), tmp_path / "bench")
    assert demanding.verdict("EVAL-05") == ""
    said = planted(demanding, lambda rows: rows[ROW]["Offline"][0].update(speedup=slow))
    assert "expected at least 0.9 times, observed 0.50 times" in said
    slow["median"] = 0.8996
    said = planted(demanding, lambda rows: rows[ROW]["Offline"][0].update(speedup=slow))
    assert "expected at least 0.9 times, observed 0.8996 times" in said
    demanding.plant("latency", record={"others_percent": 40.0})
    assert "that others took meanwhile, in percent: expected at most 10" in demanding.verdict(
        "EVAL-05"
    )


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("agreement_percent", lambda _: 99.95, "agreement with Keras in percent: expected 100.0"),
        (
            "divergence",
            lambda old: {**old, "kl_nats": np.nan},
            ONE_SHORT,
        ),
        (
            "reliability",
            lambda old: {**old, "bins": old["bins"][:-1]},
            "images in the reliability curve after: expected 2000",
        ),
    ],
    ids=["agreement", "divergence", "reliability"],
)
def test_a_comparison_with_keras_that_is_not_whole_fails(
    bench: Bench, part: str, change: Callable[[Any], Any], said: str
) -> None:
    stage = "compare/onnxruntime-float32"
    bench.plant(stage, record={part: change(bench.artifact(stage).record[part])})
    assert said in bench.verdict("EVAL-04")
