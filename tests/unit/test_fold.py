"""Folding batch normalisation: the same function with less in it, or a plain refusal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resnet8_eval.convert.fold import fold
from resnet8_eval.errors import ModelError

NORMALISATION = ["scale", "shift", "mean", "variance"]
IMAGES = np.random.default_rng(5).normal(size=(2, 4, 8, 8)).astype(np.float32)


def network(path: Path, *nodes: tuple[str, list[str]]) -> Path:
    """Operators of four channels, one after the other."""
    random = np.random.default_rng(6)
    constants = {
        "kernel": random.normal(size=(4, 4, 3, 3)),
        **{name: 1 + random.random(4) for name in NORMALISATION},
        "factor": random.normal(size=(1, 4, 1, 1)),
        "term": random.normal(size=(1, 4, 1, 1)),
    }
    stored = [numpy_helper.from_array(v.astype(np.float32), name) for name, v in constants.items()]
    chain = []
    for position, (kind, words) in enumerate(nodes):
        source = "x" if position == 0 else str(position)
        target = "y" if position == len(nodes) - 1 else str(position + 1)
        chain.append(helper.make_node(kind, [source, *words], [target], f"{kind}{position}"))
        if kind == "BatchNormalization":
            chain[-1].attribute.append(helper.make_attribute("epsilon", 0.5))
    used = {name for node in chain for name in node.input}
    graph = helper.make_graph(
        chain,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, "height", "width"])],
        [entry for entry in stored if entry.name in used],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def output(path: Path) -> np.ndarray:
    import onnxruntime as ort

    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": IMAGES})[0])


@pytest.mark.parametrize(
    "nodes",
    [[("BatchNormalization", NORMALISATION)], [("Mul", ["factor"]), ("Add", ["term"])]],
    ids=["whole", "as tf2onnx writes it"],
)
def test_a_normalisation_goes_into_the_convolution_before_it(
    tmp_path: Path, nodes: list[tuple[str, list[str]]]
) -> None:
    source = network(tmp_path / "source.onnx", ("Conv", ["kernel"]), *nodes)
    record = fold(source, tmp_path / "folded.onnx")
    assert record["operators"]["before"] == {"Conv": 1, **{kind: 1 for kind, _ in nodes}}
    assert record["operators"]["after"] == {"Conv": 1}
    assert np.abs(output(tmp_path / "folded.onnx") - output(source)).max() < 1e-5


@pytest.mark.parametrize(
    ("kind", "words"),
    [("BatchNormalization", NORMALISATION), ("Mul", ["factor"])],
    ids=["whole", "as tf2onnx writes it"],
)
def test_a_normalisation_without_a_convolution_is_refused(
    tmp_path: Path, kind: str, words: list[str]
) -> None:
    source = network(tmp_path / "source.onnx", (kind, words))
    with pytest.raises(ModelError, match="could not be folded whole") as caught:
        fold(source, tmp_path / "folded.onnx")
    assert kind in caught.value.given
