"""Conversions of the same network come out the same."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from resnet8_eval.convert.canonical import canonical


def network(number: int, *, computed: bool) -> onnx.ModelProto:
    """An average and a flattening, as tf2onnx writes it, with its numbers and with its whims."""
    shape, pooled = f"const_fold_opt__{number}", f"AvgPool__{number}:0"
    constants = [numpy_helper.from_array(np.array([-1, 4], np.int64), shape)]
    nodes = [
        helper.make_node("AveragePool", ["images"], [pooled], f"p__{number}", kernel_shape=[8, 8])
    ]
    if computed:
        constants = [numpy_helper.from_array(np.array([4], np.int64), f"four__{number}")]
        zero = numpy_helper.from_array(np.array([0], np.int64), f"zero__{number}")
        constants.append(zero)
        nodes += [
            helper.make_node("Shape", [pooled], ["all"], f"s__{number}"),
            helper.make_node("Gather", ["all", f"zero__{number}"], ["batch"]),
            helper.make_node("Concat", ["batch", f"four__{number}"], [shape], axis=0),
        ]
    nodes.append(helper.make_node("Reshape", [pooled, shape], ["flat"], "Flatten"))
    batch = f"unk__{number}"
    graph = helper.make_graph(
        nodes,
        "tf2onnx",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 4, 8, 8])],
        [helper.make_tensor_value_info("flat", TensorProto.FLOAT, [batch, 4])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_numbers_do_not_matter() -> None:
    first, second = (canonical(network(number, computed=False)) for number in (12, 345))
    assert first.SerializeToString() == second.SerializeToString()


def test_a_computed_shape_becomes_the_constant_that_it_always_is() -> None:
    model = canonical(network(12, computed=True))
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["AveragePool", "Reshape"]
    (target,) = model.graph.initializer
    assert numpy_helper.to_array(target).tolist() == [-1, 4]
    assert model.SerializeToString() == canonical(network(7, computed=False)).SerializeToString()
