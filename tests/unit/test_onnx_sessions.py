"""Signed activations as unsigned ones, and the arithmetic that a session computes in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resnet8_eval.backends import Execution
from resnet8_eval.backends import onnxruntime as ort_backend
from resnet8_eval.backends.onnxruntime import open_session, unsigned
from resnet8_eval.cifar10 import Split
from resnet8_eval.pipeline import Pipeline
from resnet8_eval.preprocess import batches
from resnet8_eval.store import file_sha256
from tests.planted import edited


def stored(pipeline: Pipeline, dtype: str) -> Path:
    return pipeline.artifact(f"model/onnxruntime-{dtype}-tuned").path("model.onnx")


def outputs(path: Path, images: Any, execution: Execution) -> Any:
    session = open_session(path, 1, execution)
    feed = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {feed: batch})[0] for batch in batches(images)])


def zero_points(model: bytes | str) -> set[str]:
    graph = (onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(model)).graph
    kinds = {entry.name: entry.data_type for entry in graph.initializer}
    names = {n.input[2] for n in graph.node if n.op_type == "QuantizeLinear"}
    return {TensorProto.DataType.Name(kinds[name]) for name in names}


def test_every_signed_activation_becomes_unsigned_and_the_file_stays(pipeline: Pipeline) -> None:
    path = stored(pipeline, "int8")
    before = file_sha256(path)
    assert zero_points(str(path)) == {"INT8"}
    assert zero_points(unsigned(path)) == {"UINT8"}
    assert file_sha256(path) == before


def test_a_shift_moves_zero_points_by_128(tmp_path: Path) -> None:
    path = small(tmp_path, lambda _: None, INT8)
    (moved,) = [
        numpy_helper.to_array(entry)
        for entry in onnx.load_from_string(bytes(unsigned(path))).graph.initializer  # type: ignore[arg-type]
        if entry.name == "zero+128"
    ]
    assert str(moved.dtype) == "uint8"
    assert int(moved) == 3 + 128


def test_signed_kernels_are_allowed_where_they_are_asked_for(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    saved = tmp_path / "optimized.onnx"
    open_session(stored(pipeline, "int8"), 1, "signed kernel", save_to=saved)
    kinds = [node.op_type for node in onnx.load(saved).graph.node]
    assert kinds.count("QLinearConv") == 9


def convolutions(pipeline: Pipeline, folder: Path) -> Path:
    """The stored int8 model up to its first addition: integer arithmetic and nothing else."""
    model = onnx.load(stored(pipeline, "int8"))
    before = next(node for node in model.graph.node if node.op_type == "Add").input[1]
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(before, TensorProto.FLOAT, None))
    path = folder / "convolutions.onnx"
    onnx.save(model, path)
    return path


def test_convolutions_give_the_same_to_the_bit(
    pipeline: Pipeline, standin_test: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort_backend, "is_x86", lambda: True)
    path, images = convolutions(pipeline, tmp_path), standin_test.images[:100]
    assert np.array_equal(outputs(path, images, "kernel"), outputs(path, images, "signed kernel"))


def test_a_shift_by_another_number_would_show(
    pipeline: Pipeline, standin_test: Split, tmp_path: Path
) -> None:
    """So equality says something."""

    def shift(model: Any) -> None:
        wrong = [entry for entry in model.graph.initializer if entry.name.endswith("+128")][1]
        value = numpy_helper.to_array(wrong) + np.uint8(1)
        wrong.CopyFrom(numpy_helper.from_array(np.asarray(value), wrong.name))

    path, images = convolutions(pipeline, tmp_path), standin_test.images[:100]
    right, wrong = tmp_path / "right.onnx", tmp_path / "wrong.onnx"
    right.write_bytes(bytes(unsigned(path)))  # type: ignore[arg-type]
    wrong.write_bytes(edited(right, shift))
    exact = outputs(path, images, "signed kernel")
    assert np.array_equal(outputs(right, images, "kernel"), exact)
    assert not np.array_equal(outputs(wrong, images, "kernel"), exact)


def test_the_whole_network_differs_by_what_additions_round(
    pipeline: Pipeline, standin_test: Split
) -> None:
    path, images = stored(pipeline, "int8"), standin_test.images[:600]
    apart = [outputs(path, images, kind).argmax(1) for kind in ("kernel", "signed kernel")]
    assert 100 * (apart[0] != apart[1]).mean() <= 0.5


def test_elsewhere_the_model_runs_as_it_is_stored(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> bytes:
        raise AssertionError("not to be called")

    monkeypatch.setattr(ort_backend, "unsigned", refuse)
    for execution in ("signed kernel", "reference"):
        open_session(stored(pipeline, "int8"), 1, execution)
    monkeypatch.setattr(ort_backend, "is_x86", lambda: False)
    open_session(stored(pipeline, "int8"), 1, "kernel")


@pytest.mark.parametrize("stage", ["uint8", "float32"])
def test_a_model_without_signed_activations_is_left_alone(pipeline: Pipeline, stage: str) -> None:
    path = (
        stored(pipeline, stage)
        if stage == "uint8"
        else pipeline.artifact("folded").path("folded.onnx")
    )
    assert unsigned(path) == str(path)


def small(tmp_path: Path, change: Callable[[list[Any]], None], zero: Any) -> Path:
    """A model of one quantize and one dequantize step, after `change`."""
    steps = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    change(steps)
    outputs = {name for step in steps for name in step.output} & {"q out", "y"}
    graph = helper.make_graph(
        steps,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in sorted(outputs)],
        [
            numpy_helper.from_array(np.array(0.5, np.float32), "scale"),
            numpy_helper.from_array(zero, "zero"),
            numpy_helper.from_array(np.array(5, np.int8), "other"),
        ],
    )
    path = tmp_path / "small.onnx"
    onnx.save(helper.make_model(graph), path)
    return path


INT8, INT16 = np.array(3, np.int8), np.array(3, np.int16)


def _reads_otherwise(steps: list[Any]) -> None:
    steps.append(helper.make_node("Cast", ["q"], ["cast"], to=TensorProto.FLOAT))


def _reads_the_zero_point_otherwise(steps: list[Any]) -> None:
    steps.append(helper.make_node("Clip", ["q", "other", "zero"], ["clipped"]))


def _other_zero_point(steps: list[Any]) -> None:
    steps[1].input[2] = "other"


def _is_an_output(steps: list[Any]) -> None:
    steps[0].output[0] = steps[1].input[0] = "q out"


def _has_an_output_type(steps: list[Any]) -> None:
    steps[0].attribute.append(helper.make_attribute("output_dtype", TensorProto.INT8))


LEFT_ALONE: dict[str, tuple[Callable[[list[Any]], None], Any]] = {
    "read by something else": (_reads_otherwise, INT8),
    "read by something else, with its zero point": (_reads_the_zero_point_otherwise, INT8),
    "another zero point": (_other_zero_point, INT8),
    "an output of the model": (_is_an_output, INT8),
    "a type of its own": (_has_an_output_type, INT8),
    "sixteen bits": (lambda _: None, INT16),
}


@pytest.mark.parametrize(("change", "zero"), LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_what_cannot_be_shifted_exactly_is_left_alone(
    tmp_path: Path, change: Callable[[list[Any]], None], zero: Any
) -> None:
    usual = small(tmp_path, lambda _: None, INT8)
    assert unsigned(usual) != str(usual)
    other = small(tmp_path, change, zero)
    assert unsigned(other) == str(other)


def test_reference_arithmetic_fuses_nothing_into_integer_kernels(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    saved = tmp_path / "optimized.onnx"
    open_session(stored(pipeline, "int8"), 1, "reference", save_to=saved)
    kinds = [node.op_type for node in onnx.load(saved).graph.node]
    assert kinds.count("Conv") == 9
    assert not [kind for kind in kinds if kind.startswith(("QLinear", "QGemm"))]
