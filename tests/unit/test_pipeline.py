"""The flow: what decides each stage, what is made when, and by whom."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from resnet8_eval import configurations, environment, lanes, store
from resnet8_eval.advanced import stages as advanced
from resnet8_eval.configurations import CONFIGURATIONS, FRAMEWORKS, TUNED, Recipe
from resnet8_eval.errors import StageError, SuiteError
from resnet8_eval.inputs import Settings
from resnet8_eval.lanes import lane_environment, open_lane
from resnet8_eval.pipeline import Pipeline, model_path
from resnet8_eval.preprocess import USUAL, Preprocessing
from resnet8_eval.stages import Stage
from resnet8_eval.store import SCHEDULING, TRAINING, file_sha256
from tests.planted import borrowing

QUANTIZED = {
    f"{kind}/{row.name}"
    for kind in ("model", "scores", "compare")
    for row in configurations.calibrated()
}
EVERY_SCORE = {f"scores/{row.name}" for row in CONFIGURATIONS}

Change = Callable[[Settings], Settings]


def assets(**changes: Any) -> Change:
    return lambda settings: replace(settings, assets=replace(settings.assets, **changes))


def dataset(name: str) -> Change:
    def change(settings: Settings) -> Settings:
        sums = {**settings.assets.dataset_sha256, name: "0" * 64}
        return assets(dataset_sha256=sums)(settings)

    return change


def keys(settings: Settings) -> dict[str, str]:
    """Key of each stage, afresh."""
    found = Pipeline(settings)
    return {name: found.key(name) for name in found.stages}


def moved(before: dict[str, str], after: dict[str, str]) -> set[str]:
    assert list(before) == list(after)
    return {name for name in before if before[name] != after[name]}


# What changes, some stages whose key must move with it, and some whose key must not.
DECISIVE: dict[str, tuple[Change, set[str], set[str]]] = {
    "the model": (
        assets(model_sha256="0" * 64),
        {"onnx", "folded", "torch", "parameters/tuned", *EVERY_SCORE, *QUANTIZED},
        {"calibration"},
    ),
    "the test images": (
        dataset("test_batch"),
        {"calibration", *EVERY_SCORE, *QUANTIZED},
        {"onnx", "folded", "torch"},
    ),
    "the training images": (
        dataset("data_batch_3"),
        {"calibration", "parameters/tuned", *QUANTIZED},
        {"onnx", "scores/keras-float32", "scores/torch-float32", "compare/torch-float32"},
    ),
    "the names of the classes": (
        dataset("batches.meta"),
        {"calibration", *EVERY_SCORE, *(f"compare/{row.name}" for row in CONFIGURATIONS)},
        {"onnx", "folded", "torch"},
    ),
    "the calibration seed": (
        lambda settings: replace(settings, calibration_seed=7),
        {"calibration", "parameters/tuned", "feed/tuned", *QUANTIZED},
        {"onnx", "torch", "scores/keras-float32", "structure/onnx"},
    ),
    "the calibration count": (
        lambda settings: replace(settings, calibration_count=1010),
        {"calibration", "parameters/tuned", *QUANTIZED},
        {"onnx", "torch", "scores/keras-float32", "structure/onnx"},
    ),
}


@pytest.mark.parametrize(("change", "must", "must_not"), DECISIVE.values(), ids=DECISIVE)
def test_a_key_moves_with_what_decides_it(
    pipeline: Pipeline, change: Change, must: set[str], must_not: set[str]
) -> None:
    found = moved(keys(pipeline.settings), keys(change(pipeline.settings)))
    assert must <= found
    assert not must_not & found


@pytest.mark.parametrize(
    "change",
    [
        lambda settings: replace(settings, cache_dir=Path("/elsewhere")),
        assets(model=Path("/elsewhere/other.h5")),
        assets(dataset=Path("/elsewhere/cifar-10-batches-py")),
        assets(dataset_md5={}),
    ],
    ids=["where artefacts lie", "where the model lies", "where the images lie", "another checksum"],
)
def test_a_key_stays_with_what_does_not_decide_it(pipeline: Pipeline, change: Change) -> None:
    assert moved(keys(pipeline.settings), keys(change(pipeline.settings))) == set()


def patched(name: str, value: Any) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(environment, name, lambda: value)


@pytest.mark.parametrize(
    "change",
    [
        patched("packages", {**environment.packages(), "onnxruntime": "0.0.0"}),
        patched("code_sha256", "0" * 64),
        patched("cpu", {**environment.cpu(), "flags": ["avx2"]}),
        patched("cpu", {**environment.cpu(), "onednn_max_cpu_isa": "AVX2"}),
        patched("cpu", {**environment.cpu(), "variables": {"XLA_FLAGS": "planted"}}),
        patched("cpu", {**environment.cpu(), "cores": 99}),
        patched("cpu", {**environment.cpu(), "model": "Another Xeon"}),
        lambda patch: patch.setattr("platform.python_version", lambda: "3.11.0"),
        lambda patch: patch.setattr("platform.machine", lambda: "aarch64"),
    ],
    ids=[
        "a package",
        "our own code",
        "what the processor can",
        "what oneDNN may use of it",
        "a variable that chooses kernels",
        "cores",
        "the model of the processor",
        "Python",
        "kind of processor",
    ],
)
def test_every_key_moves_with_the_environment(
    pipeline: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[pytest.MonkeyPatch], None],
) -> None:
    before = keys(pipeline.settings)
    change(monkeypatch)
    assert moved(before, keys(pipeline.settings)) == set(before)


def with_row(
    monkeypatch: pytest.MonkeyPatch, name: str, **change: Any
) -> configurations.Configuration:
    """Change one row of the list."""
    rows = [
        replace(row, **change) if row.name == name else row for row in configurations.CONFIGURATIONS
    ]
    monkeypatch.setattr(configurations, "CONFIGURATIONS", tuple(rows))
    return next(row for row in rows if row not in CONFIGURATIONS)


@pytest.mark.parametrize("change", [{"execution": "reference"}, {"weights_dtype": "uint8"}])
def test_a_row_moves_its_own_stages_alone(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    before = keys(pipeline.settings)
    with_row(monkeypatch, "torch-int8-tuned", **change)
    after = keys(pipeline.settings)
    found = {name for name in before if name in after and before[name] != after[name]}
    own = {f"{kind}/torch-int8-tuned" for kind in ("model", "scores", "compare")}
    assert own <= found
    beside = {"agreement", "latency", "proof/torch-uint8-tuned"}  # they read its scores
    explored = {f"granularity/torch-int8-tuned-{seed}" for seed in range(advanced.SEEDS)}
    assert all(name.endswith("torch-int8-tuned") for name in found - beside - explored)


OTHERS: dict[str, Any] = {
    "ranges": "mse",
    "granularity": "per-tensor",
    "rounding": "nearest",
    "clip_weights": True,
    "equalize": False,
    "correct_bias": False,
    "percentile": 99.9,
    "moment_stride": 2,
    "reduce_range": False,
    "float_layers": (0,),
}


@pytest.mark.parametrize("field", [f.name for f in fields(Recipe) if f.name not in ("name", "by")])
def test_a_recipe_moves_all_that_is_made_by_it(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    before = keys(pipeline.settings)
    recipe = replace(TUNED, **{field: OTHERS[field]})
    rows = [replace(row, recipe=recipe) if row.recipe == TUNED else row for row in CONFIGURATIONS]
    monkeypatch.setattr(configurations, "CONFIGURATIONS", tuple(rows))
    after = keys(pipeline.settings)
    names = [row.name for row in CONFIGURATIONS if row.recipe == TUNED]
    for kind in ("model", "scores", "proof", "compare"):
        for name in names:
            assert before[f"{kind}/{name}"] != after[f"{kind}/{name}"]
    for name in ("onnx", "torch", "calibration", "scores/torch-float32", "model/torch-int8-stock"):
        assert before[name] == after[name]


def test_a_second_recipe_of_one_cell_stands_beside_the_first(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys(pipeline.settings)
    other = replace(TUNED, name="coarse", granularity="per-tensor")
    row = replace(configurations.of("torch-int8-tuned"), recipe=other)
    monkeypatch.setattr(configurations, "CONFIGURATIONS", (*CONFIGURATIONS, row))
    after = keys(pipeline.settings)
    # Both are of all rows.
    assert {name for name in before if after[name] != before[name]} == {"agreement", "latency"}
    assert {
        *("parameters/coarse", "sensitivity/coarse", "feed/coarse"),
        *(f"{kind}/torch-int8-coarse" for kind in ("model", "scores", "proof", "compare")),
    } <= set(after) - set(before)
    assert Pipeline(pipeline.settings).stages["proof/torch-int8-coarse"].needs == (
        "parameters/coarse",
        "model/torch-int8-coarse",
        "scores/torch-int8-coarse",
        "integers/torch-int8-coarse",
    )


@pytest.mark.parametrize("name", ["KERAS_BACKEND", "KERAS_HOME"])
def test_what_would_decide_and_has_no_place_in_a_key_is_the_same_in_every_lane(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before = lane_environment()[name]
    monkeypatch.setenv(name, "another")
    assert lane_environment()[name] == before


def test_keys_are_all_different(pipeline: Pipeline) -> None:
    found = keys(pipeline.settings)
    assert len(set(found.values())) == len(found)


def test_the_table_of_stages_is_sound(pipeline: Pipeline) -> None:
    stages = pipeline.stages
    assert set(FRAMEWORKS) <= {stage.lane for stage in stages.values()}
    before: set[str] = set()
    for stage in stages.values():
        assert set(stage.needs) <= before, stage.name
        before.add(stage.name)
    for row in CONFIGURATIONS:
        scores, compare = f"scores/{row.name}", f"compare/{row.name}"
        assert {scores, compare} <= set(stages)
        assert set(stages[compare].needs) == {"scores/keras-float32", scores}


@pytest.mark.parametrize("row", CONFIGURATIONS, ids=lambda row: row.name)
def test_a_score_names_the_bytes_that_it_comes_from(
    pipeline: Pipeline, row: configurations.Configuration
) -> None:
    path = model_path(pipeline, row)
    record = pipeline.artifact(f"scores/{row.name}").record
    assert record["model_sha256"] == file_sha256(path)
    assert record["size_bytes"] == path.stat().st_size


@pytest.mark.parametrize("name", [row.name for row in CONFIGURATIONS])
def test_a_record_is_what_the_stored_scores_say(pipeline: Pipeline, name: str) -> None:
    """Computed anew, by other means."""
    import numpy as np

    from resnet8_eval.cifar10 import read_split

    labels = read_split(pipeline.settings.assets.dataset, "test").labels
    answers, baseline = (
        np.load(pipeline.artifact(f"scores/{one}").path("scores.npy")).argmax(axis=1)
        for one in (name, "keras-float32")
    )
    record = pipeline.artifact(f"scores/{name}").record
    compared = pipeline.artifact(f"compare/{name}").record
    assert record["correct"] == sum(int(a == b) for a, b in zip(answers, labels, strict=True))
    assert record["total"] == 2000
    assert [entry["correct"] for entry in record["per_class"]] == [
        sum(1 for a, b in zip(answers, labels, strict=True) if a == b == k) for k in range(10)
    ]
    assert compared["delta_pp"] == pytest.approx(
        100 * ((answers == labels).mean() - (baseline == labels).mean())
    )
    assert compared["agreement_percent"] == pytest.approx(100 * (answers == baseline).mean())


def test_calibration_images_are_training_images(pipeline: Pipeline) -> None:
    import numpy as np

    from resnet8_eval.cifar10 import read_split

    made = pipeline.artifact("calibration")
    train = read_split(pipeline.settings.assets.dataset, "train")
    indices = np.load(made.path("indices.npy"))
    assert np.array_equal(np.load(made.path("images.npy")), train.images[indices])
    assert np.bincount(train.labels[indices]).tolist() == made.record["per_class"]


# --- making --------------------------------------------------------------------------------------


@pytest.fixture
def fresh(pipeline: Pipeline, tmp_path: Path) -> Pipeline:
    """The same pipeline with an empty store."""
    return Pipeline(replace(pipeline.settings, cache_dir=tmp_path / "cache"))


def test_nothing_is_made_by_looking(fresh: Pipeline) -> None:
    assert all(fresh.peek(name) is None for name in fresh.stages)
    assert not fresh.settings.cache_dir.exists()


def test_a_stage_is_made_in_a_lane_and_then_served(fresh: Pipeline) -> None:
    said: list[str] = []
    asked = Pipeline(fresh.settings, said.append)
    made = asked.artifact("calibration")
    assert [line.split()[0] for line in said] == ["calibration"]
    assert asked.artifact("calibration") is made
    asked.prepare(["calibration"])
    assert Pipeline(fresh.settings, said.append).artifact("calibration") == made
    assert len(said) == 1


def test_a_lane_is_told_all_that_was_asked_for(pipeline: Pipeline, tmp_path: Path) -> None:
    own = Preprocessing("own", 0.5, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), channels="BGR")
    asked = replace(pipeline.settings, preprocessing=own, min_accuracy=80.0, seeds=2, gate=1.0)
    lane = open_lane("keras", 1, tmp_path)
    try:
        assert lane.submit(keys, asked).result() == keys(asked) != keys(pipeline.settings)
    finally:
        lane.shutdown(kill_workers=True)


def test_a_stage_needs_what_it_says_and_nothing_else(pipeline: Pipeline, tmp_path: Path) -> None:
    """Making one stage makes those that it needs, directly or not."""
    asked = Pipeline(replace(pipeline.settings, cache_dir=tmp_path))
    assert set(asked.closure(["structure/torch", "parity/torch"])) == {
        "onnx",
        "folded",
        "torch",
        "scores/onnxruntime-float32",
        "scores/torch-float32",
        "structure/torch",
        "parity/torch",
    }


def test_a_failure_is_told_by_the_stage_that_failed_and_by_those_that_need_it(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    asked = borrowing(pipeline, tmp_path, "onnx", "folded", calibration_count=9)
    asked.prepare(["feed/tuned"])  # says nothing yet
    with pytest.raises(StageError, match="stratified choice of 9 images cannot be drawn"):
        asked.artifact("calibration")
    with pytest.raises(StageError, match="because calibration could not be made") as caught:
        asked.artifact("parameters/tuned")
    assert "choose another --calibration-count" in str(caught.value)


def test_a_cache_that_cannot_be_written_says_what_to_do(pipeline: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    asked = Pipeline(replace(pipeline.settings, cache_dir=tmp_path / "file" / "cache"))
    with pytest.raises(StageError, match="cannot be written"):
        asked.artifact("calibration")


def test_a_cache_that_may_only_be_read_serves_what_it_has(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    asked = Pipeline(pipeline.settings)
    asked.prepare(["structure/torch", "compare/torch-int8-tuned"])
    assert asked.artifact("structure/torch").record


def test_what_is_forgotten_is_made_anew_with_all_that_it_needs(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    names = ("onnx", "folded", "calibration")
    asked = borrowing(pipeline, tmp_path, *names)
    asked = Pipeline(replace(asked.settings, run="another"))
    asked.forget(asked.closure(["folded"]))
    assert [name for name in names if asked.peek(name) is None] == ["onnx", "folded"]
    again = asked.artifact("calibration")
    of_its_run = Pipeline(replace(asked.settings, run=again.run))
    of_its_run.forget(["calibration"])
    assert of_its_run.peek("calibration") == again


def test_a_training_that_is_forgotten_begins_anew(pipeline: Pipeline, tmp_path: Path) -> None:
    """Planted: it would go on from its last whole epoch, which may be the last of all."""
    asked = borrowing(pipeline, tmp_path, run="another")
    kept = tmp_path / TRAINING / "0123" / "checkpoint.npz"
    kept.parent.mkdir(parents=True)
    kept.touch()
    name = "qat-training/W8A8-0"
    asked.forget(["calibration", "latency"])
    asked.store.produce(name, asked.key(name), lambda _: {})  # by another worker of the run
    asked.forget([name])
    assert kept.exists()
    Pipeline(replace(asked.settings, run="a third")).forget([name])
    assert not kept.parent.exists()


def test_an_artefact_that_vanished_is_made_again(fresh: Pipeline) -> None:
    first = fresh.artifact("calibration")
    first.path("images.npy").unlink()
    again = Pipeline(fresh.settings).artifact("calibration")
    assert again.path("images.npy").is_file()
    assert again.files == first.files


def test_an_unknown_stage_is_an_error(pipeline: Pipeline) -> None:
    with pytest.raises(KeyError):
        pipeline.artifact("scores/caffe")


def test_two_recipes_of_one_name_are_refused(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the numbers of one would silently stand for the other."""
    tuned = configurations.of("torch-int8-tuned")
    other = replace(tuned, dtype="uint8", recipe=replace(configurations.TUNED, percentile=99.0))
    monkeypatch.setattr(configurations, "CONFIGURATIONS", (*CONFIGURATIONS, other))
    with pytest.raises(ValueError, match="two stages are called parameters/tuned"):
        Pipeline(pipeline.settings)


def test_nothing_is_forgotten_under_the_hands_of_a_run_that_makes_it(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits says so: another run may take half an hour."""
    monkeypatch.setattr(store, "_PATIENCE_SECONDS", 0.05)
    said: list[str] = []
    other = Pipeline(pipeline.settings, said.append)
    forgetting = threading.Thread(target=other.forget, args=([],))
    with pipeline.store.lock(SCHEDULING):
        forgetting.start()
        forgetting.join(0.2)
        assert forgetting.is_alive()
    forgetting.join(10)
    assert not forgetting.is_alive()
    cache = pipeline.settings.cache_dir
    process = "another process, of this run or of another,"
    assert said == [f"Waiting for {process} which makes artefacts in {cache}."]


def test_one_run_at_a_time_makes_what_is_missing_and_the_next_finds_it_made(
    fresh: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else two would share the cores, and `latency` would be timed beside another's stages."""
    meeting = threading.Barrier(2)
    asked: list[list[str]] = []

    def work(missing: list[Stage], *_: object) -> dict[str, SuiteError]:
        asked.append([stage.name for stage in missing])
        with suppress(threading.BrokenBarrierError):
            meeting.wait(0.5)
        for stage in missing:
            fresh.store.produce(stage.name, fresh.key(stage.name), lambda _: {})
        return {}

    monkeypatch.setattr(lanes, "run", work)
    runs = [Pipeline(fresh.settings) for _ in range(2)]
    for run in runs:
        run.key("calibration")  # so that both begin together
    threads = [threading.Thread(target=run.prepare, args=(["calibration"],)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert meeting.broken  # nobody came while the other worked
    assert asked == [["calibration"], []]


def test_the_command_for_a_stage_has_what_the_run_was_asked_for(pipeline: Pipeline) -> None:
    own = replace(pipeline.settings.assets, user_model=True, model=Path("/my model.h5"))
    settings = replace(
        pipeline.settings, assets=own, preprocessing=USUAL["unit"], calibration_count=1010
    )
    assert shlex.split(settings.alone("folded", "--json") or "") == [
        *("python", "-m", "resnet8_eval", "run", "folded", "--json", "--assets", "stand-in"),
        *("--keras-model", "/my model.h5", "--preprocessing", "unit"),
        *("--calibration-count", "1010", "--calibration-seed", "0"),
        *("--cache-dir", str(settings.cache_dir)),
    ]
    assert replace(settings, assets=replace(own, model=Path("own.onnx"))).alone("folded") is None
