"""Looking into an ONNX network while calibration images run through it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from resnet8_eval.errors import ModelError
from resnet8_eval.preprocess import batches

Tensor = NDArray[np.float32]
LARGEST = 1e8
"""A value of a trained network is some thousands at most. At 1e13, TorchScript could not read back
the scales that it had written."""


class Probe:
    """A session whose outputs are tensors from inside the network.

    Parameters
    ----------
    model
        float32 network.
    names
        The tensors to see.
    threads
        Threads for ONNX Runtime.
    """

    def __init__(self, model: onnx.ModelProto, names: Sequence[str], threads: int) -> None:
        import onnxruntime as ort

        exposed = onnx.ModelProto()
        exposed.CopyFrom(model)
        del exposed.graph.output[:]
        exposed.graph.output.extend(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
        )
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = ort.InferenceSession(
            exposed.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._input = model.graph.input[0].name
        self._names = list(names)
        self._fed = hashlib.sha256()

    def run(self, images: NDArray[np.uint8]) -> Iterator[dict[str, Tensor]]:
        """Yield the tensors of each batch of `images`, uint8 (N, 32, 32, 3).

        Raises
        ------
        ModelError
            If a value is not finite, or beyond what 8 bits are any use for.
        """
        for batch in batches(images):
            self._fed.update(batch.data)
            outputs = self._session.run(None, {self._input: batch})
            values = dict(zip(self._names, outputs, strict=True))
            for name, value in values.items():
                largest = max(float(value.max()), -float(value.min()))
                if not largest < LARGEST:  # NaN is not, either
                    raise ModelError(
                        "The network overflows on the calibration images.",
                        expected=f"finite values below {LARGEST:,.0f} in every layer",
                        given=f"{largest:.3g} in {name}",
                        next_step="check the size of the model's weights",
                    )
            yield values

    @property
    def fed_sha256(self) -> str:
        """SHA-256 of all the bytes that the session has been fed."""
        return self._fed.hexdigest()


def ints(node: onnx.NodeProto, name: str, default: list[int]) -> list[int]:
    """An attribute that is a list of integers."""
    return next((list(a.ints) for a in node.attribute if a.name == name), default)


def weighted(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The convolutions and the matrix product, in graph order."""
    return [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]


class Weights:
    """The initializers of a model, read and replaced by name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._entries = {entry.name: entry for entry in model.graph.initializer}

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        return numpy_helper.to_array(self._entries[name]).astype(np.float64)

    def __setitem__(self, name: str, value: NDArray[np.float64]) -> None:
        array = np.ascontiguousarray(value, dtype=np.float32)
        self._entries[name].CopyFrom(numpy_helper.from_array(array, name))
