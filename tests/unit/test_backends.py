"""One interface for three frameworks: images in, finite probabilities out, or a plain refusal."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from resnet8_eval import backends, batchwise, configurations
from resnet8_eval.backends import framework_of, scores
from resnet8_eval.backends import onnxruntime as ort_backend
from resnet8_eval.cifar10 import Split
from resnet8_eval.errors import ModelError
from resnet8_eval.pipeline import Pipeline, model_path
from resnet8_eval.preprocess import preprocess

IMAGES = np.zeros((7, 32, 32, 3), np.uint8)
WITHOUT_TENSORFLOW = [row for row in configurations.CONFIGURATIONS if row.framework != "keras"]


@pytest.mark.parametrize(
    ("name", "framework"),
    [
        ("a.h5", "keras"),
        ("a.keras", "keras"),
        ("a.onnx", "onnxruntime"),
        ("a.pt2", "torch"),
        ("a.pt", "torch"),
        ("a.H5", "keras"),
    ],
)
def test_the_suffix_tells_the_framework(name: str, framework: str) -> None:
    assert framework_of(Path(name)) == framework


@pytest.mark.parametrize("name", ["a.tflite", "a", "a.onnx.gz"])
def test_another_suffix_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="no kind of model that can be evaluated") as caught:
        framework_of(Path(name))
    assert "*.onnx" in caught.value.expected


@pytest.mark.parametrize("share", [None, 1, 3])
def test_images_are_fed_in_order_and_preprocessed(
    share: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[NDArray[np.float32]] = []
    at_once = share or 1
    monkeypatch.setattr(batchwise, "usable_cores", lambda: at_once)
    all_in = threading.Barrier(at_once, timeout=60)  # breaks unless so many are computed at once

    def runtime(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        all_in.wait()
        fed.append(batch)
        return batch[:, 0, 0, :1].repeat(10, axis=1)

    images = np.zeros((250, 32, 32, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(250)
    result = backends.run(runtime, images, (lambda: at_once) if share else None)
    fed.sort(key=lambda batch: batch[0, 0, 0, 0])
    assert [len(batch) for batch in fed] == [100, 100, 50]
    assert np.concatenate(fed).tobytes() == preprocess(images).tobytes()
    assert result[:, 3].tolist() == list(range(250))


@pytest.mark.parametrize(
    ("result", "given"),
    [
        (np.full((7, 10), np.nan), "70 not finite"),
        (np.array([[0.1] * 9 + [np.inf]] * 7), "7 not finite"),
        (np.zeros((6, 10)), "shape (6, 10)"),
        (np.zeros((7, 11)), "shape (7, 11)"),
        (np.zeros((7, 10, 1)), "shape (7, 10, 1)"),
    ],
    ids=["nan", "infinite", "fewer than images", "11 classes", "another rank"],
)
def test_scores_that_are_none_are_refused(
    monkeypatch: pytest.MonkeyPatch, result: NDArray[np.float64], given: str
) -> None:
    monkeypatch.setattr(
        ort_backend, "open_model", lambda *_: lambda _batch: result.astype(np.float32)
    )
    with pytest.raises(ModelError, match="does not give one finite score for each class") as caught:
        scores(Path("model.onnx"), IMAGES, threads=1)
    assert given in caught.value.given


@pytest.mark.parametrize("execution", ["kernel", "signed kernel", "reference"])
def test_a_session_computes_as_it_was_asked_to(
    monkeypatch: pytest.MonkeyPatch, execution: Any
) -> None:
    def session(path: Path, threads: int, arithmetic: str) -> Any:
        asked.append((path.name, threads, arithmetic))
        run = lambda _, feed: [np.zeros((len(feed["x"]), 10), np.float32)]  # noqa: E731
        return SimpleNamespace(get_inputs=lambda: [SimpleNamespace(name="x")], run=run)

    asked: list[tuple[str, int, str]] = []
    monkeypatch.setattr(ort_backend, "open_session", session)
    scores(Path("model.onnx"), IMAGES, threads=1, execution=execution)
    assert asked == [("model.onnx", 1, execution)]


def test_scores_are_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        ort_backend, "open_model", lambda *_: lambda batch: np.zeros((len(batch), 10))
    )
    assert scores(Path("model.onnx"), IMAGES, threads=1).dtype == np.float32


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2", "model.pt"])
@pytest.mark.parametrize("content", [b"", b"not a model"], ids=["empty", "text"])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match="cannot be opened"):
        scores(tmp_path / name, IMAGES, threads=1)


@pytest.mark.parametrize("row", WITHOUT_TENSORFLOW, ids=lambda row: row.name)
def test_a_model_cut_short_is_refused(
    tmp_path: Path, pipeline: Pipeline, row: configurations.Configuration
) -> None:
    path = model_path(pipeline, row)
    (tmp_path / path.name).write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(ModelError, match="cannot be opened"):
        scores(tmp_path / path.name, IMAGES, threads=1)


@pytest.mark.parametrize("row", WITHOUT_TENSORFLOW, ids=lambda row: row.name)
def test_a_stored_model_gives_the_scores_that_were_recorded(
    pipeline: Pipeline, standin_test: Split, row: configurations.Configuration
) -> None:
    """Whatever ran before in this process, and however many threads it has."""
    recorded = np.load(pipeline.artifact(f"scores/{row.name}").path("scores.npy"))[:200]
    path = model_path(pipeline, row)
    found = scores(path, standin_test.images[:200], threads=2, execution=row.session)
    assert found.shape == (200, 10)
    # A quantized softmax, as stock models have, gives steps of 1/256.
    assert found.sum(axis=1) == pytest.approx(np.ones(200), abs=0.02 if row.is_stock else 1e-4)
    assert np.array_equal(found, recorded)


@pytest.mark.parametrize("row", WITHOUT_TENSORFLOW, ids=lambda row: row.name)
def test_an_image_s_scores_do_not_depend_on_its_batch(
    pipeline: Pipeline, standin_test: Split, row: configurations.Configuration
) -> None:
    together = np.load(pipeline.artifact(f"scores/{row.name}").path("scores.npy"))
    path = model_path(pipeline, row)
    alone = scores(path, standin_test.images[4:5], threads=1, execution=row.session)
    assert np.abs(together[4] - alone[0]).max() <= 1e-5


@pytest.mark.parametrize("name", ["onnxruntime-int8-tuned", "onnxruntime-uint8-tuned"])
def test_kernels_and_reference_arithmetic_agree(
    pipeline: Pipeline, standin_test: Split, name: str
) -> None:
    kernel = np.load(pipeline.artifact(f"scores/{name}").path("scores.npy"))[:500]
    path = model_path(pipeline, configurations.of(name))
    reference = scores(path, standin_test.images[:500], threads=1, execution="reference")
    assert not np.array_equal(kernel, reference)
    assert (kernel.argmax(axis=1) != reference.argmax(axis=1)).sum() <= 2
