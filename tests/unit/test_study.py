"""The study: resumable, the same on one machine and on a cluster, and nothing counted twice."""

from __future__ import annotations

import csv
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from resnet8_eval import backends, calibration, configurations, preprocess, study
from resnet8_eval.advanced import mixed
from resnet8_eval.advanced.stages import CHOSEN
from resnet8_eval.analysis import divergence
from resnet8_eval.calibrate import tuned
from resnet8_eval.calibrate.probe import Probe
from resnet8_eval.cifar10 import Split
from resnet8_eval.errors import StageError
from resnet8_eval.evaluate import softmax
from resnet8_eval.inputs import Labelled
from resnet8_eval.network import Network
from resnet8_eval.pipeline import Pipeline, model_path
from resnet8_eval.preprocess import Feed
from resnet8_eval.store import Store, file_sha256
from tests import small_network
from tests.planted import Bench

CELL = "onnxruntime-uint8-tuned"
CELLS = [row.name for row in configurations.calibrated()]
_NONE = np.zeros((0, 32, 32, 3), np.uint8)
STOCK = [row.name for row in configurations.stock()]
PIXELS, LABELS = small_network.images(1300), np.arange(1300) % 10


def network() -> Network:
    """The small one, its biases such that it does not give all images the same class."""
    small = small_network.parsed()
    (found,) = Probe(small, ["scores"]).run(PIXELS[:100])
    bias = small.weights()["dense/bias"] - found["scores"].mean(axis=0)
    return small.with_weights({"dense/bias": bias})


FOLDED = network().model.SerializeToString()
(_FOUND,) = Probe(network(), ["output"]).run(PIXELS[:100])
REFERENCE = _FOUND["output"].astype(np.float32)


def feed(task: study.Task) -> study.Images:
    """Each seed calibrates the small network with images of its own; the first 100 are judged."""
    first = 100 + task.seed * task.count
    calibration = PIXELS[first : first + task.count]
    return study.Images(calibration, PIXELS[:100], LABELS[:100], REFERENCE)


def tasks(*seeds: int, count: int = 50) -> list[study.Task]:
    return study.recipe_tasks(["minmax"], ["per-channel"], [count], seeds, [CELL])


def test_a_grid_has_one_task_for_each_calibration() -> None:
    grid = study.recipe_tasks(
        ["minmax", "mse"], ["per-channel", "per-tensor"], [250], [0, 1, 2], CELLS
    )
    assert len(grid) == len(set(grid)) == 12
    assert all(task.cells == tuple(CELLS) for task in grid)


def test_a_network_that_folding_made_another_is_not_studied(bench: Bench) -> None:
    broken = {"name": "top-1", "expected": "0", "observed": "3", "ok": False}
    bench.plant("folded", {"checks": [broken]})
    pipeline = cast("Pipeline", bench)
    with pytest.raises(StageError, match="Folding changed what the network computes: top-1"):
        study.measure_all(tasks(0), pipeline, on_test=False, validation_count=200)


def test_a_frameworks_own_quantizer_is_asked_once_for_each_calibration_set() -> None:
    grid = study.recipe_tasks(
        ["minmax", "mse"], ["per-channel", "per-tensor"], [250], [0, 1], [*STOCK, *CELLS]
    )
    assert [task.cells for task in grid] == 2 * [*4 * [tuple(CELLS)], tuple(STOCK)]
    assert [task.seed for task in grid if task.recipe == configurations.STOCK] == [0, 1]
    assert study.recipe_tasks(["mse"], ["per-tensor"], [250], [0], STOCK)[0].cells == tuple(STOCK)


def test_stock_rows_are_those_of_the_pipeline(
    pipeline: Pipeline, standin_test: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same images make the same files, byte for byte and in another process, so the same row.

    Its answers are the row's own, image by image.
    """
    made: dict[str, str] = {}
    for name in ("onnxruntime", "torch"):
        backend = backends.backend(name)

        def watched(*words: Any, quantize: Any = backend.quantize) -> Any:
            *_, row, path, _ = words
            census = quantize(*words)
            made[row.name] = file_sha256(path)
            return census

        monkeypatch.setattr(backend, "quantize", watched)
    folded = pipeline.artifact("folded").path("folded.onnx").read_bytes()
    scores = {
        name: np.load(pipeline.artifact(f"scores/{name}").path("scores.npy"))[:100]
        for name in ("onnxruntime-float32", *STOCK)
    }
    calibration = np.load(pipeline.artifact("calibration").path("images.npy"))
    judged, labels = standin_test.images[:100], standin_test.labels[:100]
    images = study.Images(calibration, judged, labels, scores["onnxruntime-float32"])
    count = pipeline.settings.calibration_count
    (task,) = study.recipe_tasks(["minmax"], ["per-channel"], [count], [0], STOCK)
    rows = dict(zip(STOCK, study.measure(task, folded, images), strict=True))
    assert made == {
        row.name: file_sha256(model_path(pipeline, row)) for row in configurations.stock()
    }
    for name, row in rows.items():
        what = {"recipe": "stock", "ranges": None, "granularity": None, "count": count}
        expected = study.judge(scores[name], images) | what
        assert {key: row[key] for key in expected} == expected
    # Other calibration images make another row, or the comparison above would show nothing.
    one = replace(task, cells=tuple(STOCK[:1]))
    (other,) = study.measure(one, folded, replace(images, calibration=calibration[:50]))
    assert other["divergence"] != rows[STOCK[0]]["divergence"]


def test_a_second_run_measures_only_what_is_missing(tmp_path: Path) -> None:
    asked: list[int] = []

    def watched(task: study.Task) -> study.Images:
        asked.append(task.seed)
        return feed(task)

    store = Store(tmp_path)
    first = study.run(tasks(0), FOLDED, watched, store, {}, jobs=1)
    again = study.run(tasks(0, 1), FOLDED, watched, store, {}, jobs=1)
    assert asked == [0, 1]
    assert again[:1] == first
    assert [row["seed"] for row in again] == [0, 1]
    assert all(row["total"] == 100 and row["agreement_percent"] > 90 for row in again)


def test_recipes_and_bits_of_one_calibration_set_share_what_is_collected_on_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collected: list[int] = []
    collect = tuned.collect

    def counted(model: Any, images: Any, *words: Any) -> Any:
        collected.append(len(images))
        return collect(model, images, *words)

    monkeypatch.setattr(tuned, "collect", counted)
    study._collected_once.cache_clear()
    grid = study.recipe_tasks(["minmax", "mse"], ["per-tensor"], [50], [0, 1], [CELL])
    grid += study.bit_tasks([4, 8], [50], [1])
    rows = [study.measure(task, FOLDED, feed(task)) for task in grid]
    assert collected == [50, 50]
    study._collected_once.cache_clear()
    assert rows[1] == study.measure(grid[1], FOLDED, feed(grid[1]))
    assert rows[5] == study.measure(grid[5], FOLDED, feed(grid[5]))


def test_another_model_is_another_study(tmp_path: Path) -> None:
    store = Store(tmp_path)
    study.run(tasks(0), FOLDED, feed, store, {"model": "a"}, jobs=1)
    study.run(tasks(0), FOLDED, feed, store, {"model": "b"}, jobs=1)
    assert len(list(store.artifacts())) == 2


def test_eight_simulated_bits_lose_little_and_two_lose_much(tmp_path: Path) -> None:
    corners = study.bit_tasks([2, 8], [50], [0])
    rows = study.run(corners, FOLDED, feed, Store(tmp_path), {}, jobs=1)
    agreement = {
        (row["weight_bits"], row["activation_bits"]): row["agreement_percent"] for row in rows
    }
    assert agreement[8, 8] >= 95
    assert agreement[2, 2] < agreement[8, 8]
    assert len({row["divergence"] for row in rows}) == 4  # bits of weights and of maps count alike


def test_fine_tuning_is_one_more_cell_of_few_bits(tmp_path: Path) -> None:
    def with_training(task: study.Task) -> study.Images:
        return replace(feed(task), training=Labelled(Feed(PIXELS[500:]), LABELS[500:]))

    grid = study.few_bit_tasks([0, 1], [50], [0])
    assert len({(task.weight_bits, task.activation_bits) for task in grid}) == 4
    few = [task for task in grid if (task.weight_bits, task.activation_bits) == (4, 4)]
    before, after = study.run(few, FOLDED, with_training, Store(tmp_path), {}, jobs=1)
    assert (before["epochs"], after["epochs"]) == (0, 1)
    assert before["total"] == after["total"] == 100
    assert before["divergence"] != after["divergence"]


def test_bits_are_chosen_within_each_budget_on_images_that_do_not_judge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    some = Labelled(Feed(PIXELS[500:600]), LABELS[500:600])
    (task,) = study.mixed_tasks([50, 60, 100], [50], [0])
    images = replace(feed(task), training=some)
    measured: list[Any] = []
    honest = mixed.sensitivities

    def watched(made: Any, given: Any) -> Any:
        measured.append(given)
        return honest(made, given)

    monkeypatch.setattr(mixed, "sensitivities", watched)
    rows = study.measure(task, FOLDED, images)
    assert [given is some.images for given in measured] == [True]
    assert [(row["recipe"], row["budget_percent"]) for row in rows] == [
        (name, percent) for name in CHOSEN for percent in (50, 60, 100)
    ]
    for least, middle, whole in (rows[:3], rows[3:]):
        assert least["bytes"] == whole["bytes"] / 2
        assert least["bytes"] < middle["bytes"] <= 0.6 * whole["bytes"]
        assert least["predicted"] > middle["predicted"] > whole["predicted"]
        assert least["divergence"] > whole["divergence"]
        assert set(least["weight_bits"].split()) == {"4"}
        assert set(middle["weight_bits"].split() + middle["activation_bits"].split()) == {"4", "8"}
    assert {row["activation_bits"] for row in rows[:3]} == {rows[5]["activation_bits"]}
    # 4 and 8 bits everywhere are those that are measured without a choice.
    few = {
        (t.weight_bits, t.activation_bits): study.measure(t, FOLDED, feed(t))[0]["divergence"]
        for t in study.few_bit_tasks([0], [50], [0])
    }
    found = [rows[k]["divergence"] for k in (0, 3, 2)]
    assert found == [few[4, 8], few[4, 4], few[8, 8]]


def test_a_choice_of_exactly_the_budget_is_within_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """29 of 100 bytes; in float64, 29 / 100 * 100 is less than 29."""
    parts = [
        mixed.Part(name, "weights", {4: 1.0, 8: 0.0}, {4: few, 8: many})
        for name, few, many in (("one", 4, 20), ("other", 9, 80))
    ]
    bits = SimpleNamespace(weights={}, activations={}, levels=dict)
    made = SimpleNamespace(exact=None, at=lambda _: None)
    monkeypatch.setattr(mixed, "variants", lambda _: made)
    monkeypatch.setattr(mixed, "sensitivities", lambda *_: parts)
    monkeypatch.setattr(mixed, "as_bits", lambda *_: bits)
    (task,) = study.mixed_tasks([29], [50], [0])
    images: Any = SimpleNamespace(training=SimpleNamespace(images=None))
    what, _, _ = next(study._mixed(task, None, images, Path()))
    assert what["bytes"] == 29


def test_costs_are_measured_on_training_images_that_neither_calibrate_nor_judge(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[study.Images] = []

    def watching(tasks: Any, _: Any, feed: Any, *words: Any, **named: Any) -> list[Any]:
        fed.extend(map(feed, tasks))
        return []

    monkeypatch.setattr(study, "run", watching)
    monkeypatch.setattr(study, "SENSITIVITY_IMAGES", 400)
    grid = [*study.mixed_tasks([60], [100], [0]), *study.bit_tasks([8], [100], [0])]
    study.measure_all(grid, pipeline, on_test=False, validation_count=200)
    costs, none = fed
    assert (len(costs.training.labels), len(none.training.labels)) == (400, 0)
    for others in (costs.calibration, costs.judged):
        assert calibration.shared(costs.training.images.pixels, preprocess.fed(others).pixels) == 0


@pytest.mark.parametrize("on_test", [False, True])
def test_each_row_is_judged_on_the_images_that_it_says(
    pipeline: Pipeline, standin_test: Split, monkeypatch: pytest.MonkeyPatch, on_test: bool
) -> None:
    fed: list[study.Images] = []

    def watching(tasks: Any, _: Any, feed: Any, *words: Any, **named: Any) -> list[Any]:
        fed.extend(map(feed, tasks))
        return [{}]

    monkeypatch.setattr(study, "run", watching)
    count = 3000 if on_test else 50  # where no training image judges, all may calibrate
    wanted = tasks(0, count=count)
    (told,) = study.measure_all(wanted, pipeline, on_test=on_test, validation_count=200)
    assert told == {"judged_on": "test" if on_test else "200 training images"}
    (images,) = fed
    judged = preprocess.fed(images.judged).pixels
    in_test = calibration.shared(judged, standin_test.images)
    assert (len(judged), in_test) == ((2000, 2000) if on_test else (200, 0))
    assert len(images.labels) == len(images.reference) == len(judged)
    assert len(images.calibration) == count
    right = images.reference.argmax(axis=1) == images.labels
    assert right.mean() > 0.8
    if on_test:
        assert np.array_equal(images.labels, standin_test.labels)


def test_a_cluster_that_loses_a_worker_loses_no_task_and_counts_none_twice(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    wanted = tasks(*range(4), count=300)  # so that the worker dies in the midst of one
    finished = 0
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address=None,
        local_directory=str(tmp_path / "dask"),
    ) as cluster:
        victim = next(iter(cluster.workers.values())).pid

        def advance() -> None:
            nonlocal finished
            finished += 1
            if finished == 2:
                os.kill(victim, signal.SIGKILL)

        rows = study.run(
            wanted,
            FOLDED,
            feed,
            Store(tmp_path / "store"),
            {},
            scheduler=cluster.scheduler_address,
            advance=advance,
        )
        assert victim not in [worker.pid for worker in cluster.workers.values()]
    assert finished == len(wanted)
    assert [row["seed"] for row in rows] == [task.seed for task in wanted]
    assert len(list(Store(tmp_path / "store").artifacts())) == len(wanted)
    alone = study.run(wanted[:1], FOLDED, feed, Store(tmp_path / "alone"), {}, jobs=1)
    assert rows[:1] == alone


def test_scores_that_are_logits_are_held_as_probabilities() -> None:
    random = np.random.default_rng(0)
    before, after = random.normal(size=(2, 20, 10)).astype(np.float32)
    labels = np.arange(20) % 10
    rows = [
        study.judge(scores, study.Images(_NONE, _NONE, labels, reference))
        for scores, reference in ((after, before), (softmax(after), softmax(before)))
    ]
    assert rows[0] == pytest.approx(rows[1], rel=1e-5)
    there, back = (
        divergence(softmax(one), softmax(other))["kl_nats"]
        for one, other in ((after, before), (before, after))
    )
    assert rows[0]["divergence"] == pytest.approx(there) != pytest.approx(back)


def test_a_worker_that_computes_otherwise_measures_nothing() -> None:
    """Planted: another release of ONNX Runtime than that of the process that keeps the results."""
    known = study._computed_with()
    known["packages"] = {**known["packages"], "onnxruntime": "1.0.0"}
    (task,) = tasks(0)
    with pytest.raises(StageError, match="computes otherwise") as caught:
        study._measured(task, b"", None, known)  # type: ignore[arg-type]
    assert "onnxruntime: 1.0.0" in caught.value.expected
    assert not {"cores", "model"} & known["cpu"].keys()  # a worker may have any


def test_recipes_are_summed_up_over_their_seeds(tmp_path: Path) -> None:
    what = {
        "framework": "torch",
        "dtype": "int8",
        "recipe": "tuned",
        "ranges": "mse",
        "granularity": "per-channel",
        "rounding": "gptq",
        "equalize": True,
        "correct_bias": True,
        "percentile": 99.999,
        "moment_stride": 4,
        "count": 1000,
        "total": 100,
        "float_correct": 90,
        "divergence": 0.001,
    }
    rows = [
        {**what, "seed": seed, "correct": correct, "agreement_percent": agreement}
        for seed, correct, agreement in ((0, 88, 97.0), (1, 90, 99.0))
    ]
    (recipe,) = study.summarize(rows)
    assert recipe["seeds"] == 2
    assert recipe["accuracy_mean_percent"] == 89
    assert recipe["accuracy_spread_pp"] == pytest.approx(np.std([88, 90], ddof=1), abs=1e-4)
    assert recipe["accuracy_worst_percent"] == 88
    assert recipe["delta_mean_pp"] == -1
    assert (recipe["agreement_mean_percent"], recipe["agreement_worst_percent"]) == (98, 97)
    study.write([recipe], tmp_path / "recipes.csv")
    with (tmp_path / "recipes.csv").open() as stream:
        assert next(csv.DictReader(stream))["accuracy_mean_percent"] == "89.0"
    assert json.loads((tmp_path / "recipes.json").read_text()) == [recipe]
