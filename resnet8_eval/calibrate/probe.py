"""Looking into a float32 network while calibration images run through it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray

from resnet8_eval.errors import ModelError
from resnet8_eval.network import Network
from resnet8_eval.preprocess import Images, batches

Tensor = NDArray[np.float32]
LARGEST: Final = 1e8
"""A value of a trained network is some thousands at most. At 1e13, TorchScript could not read back
the scales that it had written."""


class Probe:
    """A session whose outputs are tensors from inside the network.

    Parameters
    ----------
    network
        float32.
    names
        The tensors to see.
    threads
        Threads for ONNX Runtime.
    """

    def __init__(self, network: Network, names: Sequence[str], threads: int) -> None:
        import onnxruntime as ort

        exposed = onnx.ModelProto()
        exposed.CopyFrom(network.model)
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
        self._input = network.input
        self._names = list(names)
        self._fed = hashlib.sha256()

    def run(self, images: Images) -> Iterator[dict[str, Tensor]]:
        """Yield the tensors of each batch of `images`, uint8 (N, 32, 32, 3).

        Raises
        ------
        ModelError
            If a value is not finite, or too large for 8 bits to be of any use.
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
