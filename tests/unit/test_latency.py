"""LoadGen's runs of a small model, and what is made of them."""

from __future__ import annotations

import json
import re
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnet8_eval import lanes, latency, loadgen
from resnet8_eval.configurations import CONFIGURATIONS, Configuration
from resnet8_eval.lanes import open_lane
from resnet8_eval.latency import Plan, Target, measure, summarize
from resnet8_eval.loadgen import SCENARIOS, load_test
from resnet8_eval.pipeline import Pipeline, model_path
from resnet8_eval.preprocess import RAW, Feed
from resnet8_eval.requirements import MIN_QUERIES
from resnet8_eval.store import file_sha256
from tests.planted import timed

IMAGES = np.random.default_rng(0).integers(0, 256, (300, 32, 32, 3), dtype=np.uint8)
FLOAT32 = {"fast": "slow", "slow": "slow"}


def scores(batch: Any) -> Any:
    """A model without a framework: ten numbers of each image."""
    return np.ascontiguousarray(batch.reshape(len(batch), -1)[:, :10] / 255)


def test_one_image_at_a_time(tmp_path: Path) -> None:
    sizes = set()

    def model(batch: Any) -> Any:
        sizes.add(batch.shape)
        return scores(batch)

    run = load_test(model, IMAGES, "SingleStream", tmp_path / "run", seconds=0.05)
    assert run["valid"], run["reasons"]
    assert sizes == {(1, 32, 32, 3)}
    assert run["queries"] >= MIN_QUERIES
    assert 0 < run["figures"]["p50_ms"] <= run["figures"]["p90_ms"] <= run["figures"]["p99_ms"]
    assert run["wall_s"] >= run["clock_s"] > 0
    summary = (tmp_path / "run" / "mlperf_log_summary.txt").read_text()
    assert "Result is : VALID" in summary
    assert f"{run['queries']} queries" in summary or f"({run['queries']})" in summary
    for percentile in (50, 90, 99):
        (ns,) = re.findall(rf"{percentile}\.00 percentile latency \(ns\) *: (\d+)", summary)
        assert run["figures"][f"p{percentile}_ms"] == int(ns) / 1e6


def test_what_others_took_is_neither_idle_nor_the_runs_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ten seconds on four cores."""
    times = iter([np.array([100.0, 50.0, 300.0]), np.array([110.0, 52.0, 320.0])])
    monkeypatch.setattr(loadgen, "_times", lambda: next(times))
    monkeypatch.setattr("psutil.cpu_count", lambda: 4)
    run = load_test(scores, IMAGES, "SingleStream", tmp_path / "run")
    assert [run[f"{what}_s"] for what in ("wall", "own", "others", "capacity")] == [10, 2, 18, 40]


def test_all_images_in_batches(tmp_path: Path) -> None:
    sizes = []

    def model(batch: Any) -> Any:
        sizes.append(len(batch))
        time.sleep(0.05)  # far longer than what LoadGen itself needs
        return scores(batch)

    run = load_test(model, IMAGES, "Offline", tmp_path / "run", queries=250, batch=100)
    assert run["valid"], run["reasons"]
    assert sizes == [100, 100, 50]
    assert run["queries"] == 250
    assert run["figures"]["images_per_second"] == pytest.approx(250 / run["clock_s"], rel=0.1)


def test_accuracy_mode_gives_the_scores_of_every_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More images than LoadGen has in memory at a time."""
    monkeypatch.setattr(loadgen, "LOADED", 128)
    monkeypatch.setattr(latency, "_runtime", lambda _: scores)
    np.save(tmp_path / "images.npy", IMAGES)
    images = (tmp_path / "images.npy", RAW)
    found = latency._answers((tmp_path, 1, "kernel"), images, tmp_path / "run", 32)
    np.testing.assert_array_equal(found, scores(IMAGES.astype(np.float32)))


def test_an_answer_that_never_came_is_no_answer() -> None:
    expected = np.eye(10, dtype=np.float32)[:3]
    lost = expected.copy()
    lost[1] = np.nan
    found = latency._compared([expected, lost], expected)
    assert (found["answers"]["images"], found["answers"]["largest_difference"]) == (2, 1.0)
    assert not found["parity"].ok


def test_the_fastest_batch_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = {8: 1.0, 32: 2.0, 128: 16.0}
    now = [0.0]

    def model(batch: Any) -> Any:
        now[0] += ticks[len(batch)]
        return scores(batch)

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr(latency, "_runtime", lambda _: model)
    np.save(tmp_path / "images.npy", IMAGES)
    found = latency._fastest((tmp_path, 1, "kernel"), (tmp_path / "images.npy", RAW), (8, 32, 128))
    assert found == (32, 16.0)


def runs(change: Callable[[str, int], dict[str, Any]]) -> list[dict[str, Any]]:
    """Three rounds of two rows."""
    return [
        timed(row, "SingleStream", turn, **change(row, turn))
        for turn in (1, 2, 3)
        for row in FLOAT32
    ]


def test_a_row_is_compared_within_its_round() -> None:
    """A machine that slows down moves all rows, and no ratio."""

    def drifting(row: str, turn: int) -> dict[str, Any]:
        ms = float(turn * (1 if row == "fast" else 2))
        return {"figures": {"p50_ms": ms, "p90_ms": ms, "p99_ms": ms}}

    record = summarize(runs(drifting), FLOAT32)
    (fast,) = record["rows"]["fast"]["SingleStream"]
    assert fast["speedup"] == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert record["rows"]["fast"]["float32"] == "slow"
    assert fast["p50_ms"] == {"median": 2.0, "low": 1.0, "high": 3.0}
    assert record["rounds"] == 3
    assert record["told"] == []


def test_batches_are_compared_by_images_per_second_and_told_by_their_median() -> None:
    """Of three rounds that differ much, one does not count in float32."""
    rates = {"fast": (600.0, 800.0, 4000.0), "slow": (400.0, 200.0, 500.0)}
    found = summarize(
        [
            timed(row, "Offline", turn + 1, figures={"images_per_second": rate}, **more)
            for row in FLOAT32
            for turn, rate in enumerate(rates[row])
            for more in [
                {"queries": 400 + turn, "own_s": 0.1 * turn}
                if row == "fast"
                else {"valid": turn != 1, "reasons": ["it broke"]}
            ]
        ],
        FLOAT32,
    )
    (fast,) = found["rows"]["fast"]["Offline"]
    assert fast["images_per_second"] == {"median": 800, "low": 600, "high": 4000}
    assert fast["speedup"] == {"median": 4.75, "low": 1.5, "high": 8}
    assert fast["queries"] == 400
    assert fast["busy_percent"] == pytest.approx(100 * 0.3 / 0.75)
    assert found["others_percent"] == pytest.approx(100 * 0.01 / 0.5)


def test_a_round_that_does_not_count_enters_no_figure() -> None:
    def broken(row: str, turn: int) -> dict[str, Any]:
        figures = {"p50_ms": float(turn), "p90_ms": 1.0, "p99_ms": 1.0}
        return {"figures": figures, "valid": turn > 1 or row == "slow", "reasons": ["it broke"]}

    record = summarize(runs(broken), FLOAT32)
    (fast,) = record["rows"]["fast"]["SingleStream"]
    assert not fast["valid"]
    assert fast["p50_ms"] == {"median": 2.5, "low": 2.0, "high": 3.0}
    (told,) = record["told"]
    assert "fast, SingleStream, threads 1, round 1: this run does not count (it broke)" in told


def test_a_run_that_was_taken_again_counts_once() -> None:
    spoilt = timed("fast", "SingleStream", 1, valid=False, reasons=["it broke"])
    good = runs(lambda *_: {})
    record = summarize([spoilt, *good], FLOAT32)
    assert record["rows"] == summarize(good, FLOAT32)["rows"]
    assert record["told"] == ["1 of 7 LoadGen runs did not count; each was taken again."]


@pytest.mark.parametrize(("spoilt", "valid"), [(0, True), (2, True), (3, False)])
def test_a_run_that_does_not_count_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoilt: int, valid: bool
) -> None:
    folders = []

    def run(_: Any, __: Any, scenario: str, folder: Path, **___: Any) -> dict[str, Any]:
        folder.mkdir(parents=True)
        folders.append(folder)
        return timed("row", scenario, 1, valid=len(folders) > spoilt, reasons=["it broke"])

    monkeypatch.setattr(lanes, "open_lane", lambda *_: Here())
    monkeypatch.setattr(latency, "_opened", lambda _: None)
    monkeypatch.setattr(latency, "_described", lambda _: {})
    monkeypatch.setattr(latency, "_fastest", lambda *_: (8, 1000.0))
    monkeypatch.setattr(latency, "_answers", lambda *_: np.zeros((2, 10), np.float32))
    monkeypatch.setattr(latency, "_timed", run)
    monkeypatch.setattr(latency, "SCENARIOS", ("SingleStream",))
    np.save(tmp_path / "scores.npy", np.zeros((2, 10), np.float32))
    row = Target("row", "torch", tmp_path, "kernel", tmp_path / "scores.npy", "row")
    plan = Plan(rounds=1)
    found = measure([row], Feed(IMAGES[:2]), tmp_path, threads=[1], logs=tmp_path, plan=plan)
    assert [one["valid"] for one in found["rows"]["row"]["SingleStream"]] == [valid]
    assert len(set(folders)) == len(folders) == min(spoilt + 1, latency.TRIES)


class Here:
    """A lane that is no process."""

    def submit(self, call: Callable[..., Any], *words: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(call(*words, **named))
        return done

    def shutdown(self, **_: Any) -> None:
        pass


def test_a_row_without_any_valid_round_has_no_figures() -> None:
    record = summarize(runs(lambda *_: {"valid": False, "reasons": ["it broke"]}), FLOAT32)
    (fast,) = record["rows"]["fast"]["SingleStream"]
    assert fast["p50_ms"] is fast["speedup"] is None
    assert json.loads(json.dumps(record)) == record


@pytest.mark.parametrize(
    "row", [row for row in CONFIGURATIONS if not row.recipe], ids=lambda row: row.name
)
def test_a_session_says_its_file_and_how_many_threads_it_has(
    pipeline: Pipeline, tmp_path: Path, row: Configuration
) -> None:
    """Though its process was opened for another number."""
    path = model_path(pipeline, row)
    lane = open_lane(row.framework, 1, tmp_path)
    try:
        found = lane.submit(latency._described, (path, 2, row.session)).result()
    finally:
        lane.shutdown(kill_workers=True)
    assert found == {"threads": 2, "model_sha256": file_sha256(path)}


def test_stored_models_take_turns_in_processes_of_their_own(
    pipeline: Pipeline, standin_test: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "ANSWERED_IMAGES", 80)
    rows = [row for row in CONFIGURATIONS if row.framework == "onnxruntime"][:2]
    targets = [
        Target(
            row.name,
            row.framework,
            model_path(pipeline, row),
            row.session,
            tmp_path / f"{row.name}.npy",
            rows[0].name,
        )
        for row in rows
    ]
    images = standin_test.images[:200]
    for target in targets:
        known = np.load(pipeline.artifact(f"scores/{target.name}").path("scores.npy"))[:200]
        np.save(target.scores, known)
    said: list[str] = []
    out = tmp_path / "out"
    out.mkdir()
    record = measure(
        targets,
        Feed(images),
        out,
        threads=[1, 2],
        logs=tmp_path / "logs",
        plan=Plan(rounds=2, seconds=0.02, batches=(8, 32)),
        announce=said.append,
    )
    assert set(record["rows"]) == {row.name for row in rows}
    for row in record["rows"].values():
        assert row["answers"]["images"] == 80
        assert row["answers"]["disagreements"] == 0
        assert row["parity"].ok
        assert row["float32"] == rows[0].name
        for entry in (entry for scenario in SCENARIOS for entry in row[scenario]):
            assert entry["valid"]
            assert entry["queries"] >= MIN_QUERIES
    for target in targets:
        sha256 = file_sha256(target.path)
        assert record["rows"][target.name]["sessions"] == [
            {"threads": n, "model_sha256": sha256} for n in (1, 2)
        ]
    assert said[2:4] == ["LoadGen, round 1 of 2", "LoadGen, round 2 of 2"]
    with zipfile.ZipFile(out / "loadgen.zip") as kept:
        summaries = [name for name in kept.namelist() if name.endswith("summary.txt")]
    # rows × threads × (accuracy + rounds × scenarios)
    assert len(summaries) >= 2 * 2 * (1 + 2 * 2)  # one may have been taken again
