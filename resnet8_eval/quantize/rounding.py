"""Round the weights to 8 bits so that what each layer computes changes least."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from resnet8_eval.quantize.graph import Probe, Weights, ints, weighted
from resnet8_eval.quantize.parameters import WEIGHT_LIMIT
from resnet8_eval.quantize.recipes import Method

DEFAULT_METHOD: Final = Method()
_DAMPING = 0.01
"""Added to the diagonal, relative to its mean (Frantar et al. 2022, section 3.3)."""


class Rounded(NamedTuple):
    """Weights on their grid.

    Attributes
    ----------
    model
        The network with rounded weights and corrected biases.
    scales, integers
        As in :class:`resnet8_eval.quantize.parameters.Parameters`.
    """

    model: onnx.ModelProto
    scales: dict[str, NDArray[np.float32]]
    integers: dict[str, NDArray[np.int8]]


Moments = dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Weight name to the mean, shape (in,), and covariance, shape (in, in), of its layer's inputs."""


def round_weights(
    model: onnx.ModelProto,
    moments: Moments,
    method: Method = DEFAULT_METHOD,
    limit: int = WEIGHT_LIMIT,
) -> Rounded:
    """Round every weight, one layer at a time, and correct the biases.

    Each output channel has its own symmetric scale. Within a channel the weights are rounded one
    after the other, and the error of each is made up for by those still free, as the covariance
    of the layer's inputs tells (GPTQ: Frantar et al. 2022, *GPTQ: Accurate Post-Training
    Quantization for Generative Pre-trained Transformers*). What is left of the mean error goes
    into the bias (Nagel et al. 2019, section 4.2). No gradient, no label, no random number.

    Parameters
    ----------
    model
        Folded float32 network.
    moments
        Of its inputs, from :func:`input_moments`.
    method
        Its ``granularity``, ``rounding`` and ``correct_bias`` count here.
    limit
        Largest magnitude of a rounded weight.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    weights = Weights(result)
    scales, integers = {}, {}
    for node in weighted(result):
        name, bias = node.input[1], node.input[2]
        transposed = node.op_type == "Gemm"
        weight = weights[name].T if transposed else weights[name]
        flat = weight.reshape(len(weight), -1)
        mean, covariance = moments[name]
        largest = np.maximum(np.abs(flat).max(axis=1), 1e-12)
        if method.granularity == "per-tensor":
            largest = np.full_like(largest, largest.max())
        # The scale is stored as float32: round against the scale that will be used.
        scale = (largest / limit).astype(np.float32)
        if method.rounding == "gptq":
            rounded = gptq(flat, covariance, scale.astype(np.float64), limit)
        else:
            rounded = np.clip(np.round(flat / scale[:, None].astype(np.float64)), -limit, limit)
        on_grid = rounded * scale[:, None].astype(np.float64)
        grid_weight = on_grid.reshape(weight.shape)
        weights[name] = grid_weight.T if transposed else grid_weight
        if method.correct_bias:
            weights[bias] = weights[bias] + (flat - on_grid) @ mean
        scales[name], integers[name] = scale, rounded.reshape(weight.shape).astype(np.int8)
    return Rounded(result, scales, integers)


def gptq(
    weight: NDArray[np.float64],
    covariance: NDArray[np.float64],
    scale: NDArray[np.float64],
    limit: int = WEIGHT_LIMIT,
) -> NDArray[np.float64]:
    """Round a matrix column by column, spreading each error over the columns still free.

    Parameters
    ----------
    weight
        Shape (out, in).
    covariance
        Of the layer's inputs, shape (in, in).
    scale
        Step of each output channel, shape (out,).
    limit
        Largest magnitude of a whole number.

    Returns
    -------
    ndarray
        Whole numbers in [-limit, limit], shape (out, in).
    """
    hessian = covariance.copy()
    diagonal = np.diag_indices_from(hessian)
    hessian[diagonal] += _DAMPING * hessian[diagonal].mean() + 1e-12
    order = np.argsort(-hessian[diagonal], kind="stable")
    upper = np.linalg.cholesky(np.linalg.inv(hessian[np.ix_(order, order)])).T
    free = weight[:, order].copy()
    rounded = np.empty_like(free)
    for column in range(free.shape[1]):
        steps = np.round(free[:, column] / scale)
        rounded[:, column] = np.clip(steps, -limit, limit)
        error = (free[:, column] - rounded[:, column] * scale) / upper[column, column]
        free[:, column + 1 :] -= np.outer(error, upper[column, column + 1 :])
    result = np.empty_like(rounded)
    result[:, order] = rounded
    return result


def input_moments(model: onnx.ModelProto, images: NDArray[np.uint8], threads: int) -> Moments:
    """Mean and covariance of the inputs of every weighted layer.

    Parameters
    ----------
    model
        Folded float32 network.
    images
        Calibration images, uint8 (N, 32, 32, 3).
    threads
        Threads for ONNX Runtime.
    """
    nodes = weighted(model)
    count = dict.fromkeys((node.input[1] for node in nodes), 0)
    total: dict[str, Any] = {name: np.float64(0) for name in count}
    squares: dict[str, Any] = {name: np.float64(0) for name in count}
    probe = Probe(model, list(dict.fromkeys(node.input[0] for node in nodes)), threads)
    for values in probe.run(images):
        for node in nodes:
            name, rows = node.input[1], _rows(node, values[node.input[0]])
            count[name] += len(rows)
            total[name] = total[name] + rows.sum(axis=0, dtype=np.float64)
            squares[name] = squares[name] + (rows.T @ rows).astype(np.float64)
    means = {name: np.asarray(total[name] / count[name]) for name in count}
    return {
        name: (mean, np.asarray(squares[name] / count[name] - np.outer(mean, mean)))
        for name, mean in means.items()
    }


def _rows(node: onnx.NodeProto, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vectors that a layer multiplies by its weights, shape (rows, in)."""
    if node.op_type == "Gemm":
        return values
    top, left, bottom, right = ints(node, "pads", [0, 0, 0, 0])
    down, across = ints(node, "strides", [1, 1])
    kernel = ints(node, "kernel_shape", [1, 1])
    padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=(2, 3))
    windows = windows[:, :, ::down, ::across].transpose(0, 2, 3, 1, 4, 5)
    return windows.reshape(-1, values.shape[1] * kernel[0] * kernel[1])
