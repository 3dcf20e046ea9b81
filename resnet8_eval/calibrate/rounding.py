"""Round the weights to 8 bits so that what each layer computes changes least."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from resnet8_eval.calibrate.parameters import Parameters, Ranges, grid
from resnet8_eval.calibrate.probe import Probe, Tensor
from resnet8_eval.configurations import TUNED, Recipe
from resnet8_eval.environment import WEIGHT_LIMIT
from resnet8_eval.network import Convolution, Network, output_first
from resnet8_eval.preprocess import Images

_DAMPING: Final = 0.01
"""Added to the diagonal, relative to its mean (Frantar et al. 2022, section 3.3)."""
_LOST: Final = 1e-12
"""Of an input's mean square: a variance of less is what float64 rounds away."""


_MOST_STEPS: Final = 2**23
"""Of the sum of products, in a bias: as fine as float32 holds it, and far from the 32 bits in which
it is stored."""
_SHARES: Final = np.linspace(0.5, 1.0, 11)
"""Steps that are tried, relative to the one that spans the largest weight."""
Moments = dict[str, tuple[Tensor, Tensor]]
"""Weight name to the mean, shape (in,), and covariance, shape (in, in), of its layer's inputs."""


def round_weights(
    network: Network,
    moments: Moments,
    ranges: Ranges,
    recipe: Recipe = TUNED,
    limit: int = WEIGHT_LIMIT,
) -> Parameters:
    """Round every weight, one layer at a time, and correct the biases.

    Each output channel has its own symmetric scale. Within a channel the weights are rounded one
    after the other. The weights not yet rounded make up for the error of each, as the covariance
    of the layer's inputs prescribes (GPTQ: Frantar et al. 2022, *GPTQ: Accurate Post-Training
    Quantization for Generative Pre-trained Transformers*). What is left of the mean error goes
    into the bias (Nagel et al. 2019, section 4.2). No gradient, no label, no random number.

    Parameters
    ----------
    moments
        Of the network's inputs, from :func:`input_moments`.
    ranges
        Of the network's activations. A bias is stored in steps of the input's scale times the
        weight's.
    recipe
        Its ``granularity``, ``rounding``, ``clip_weights``, ``correct_bias`` and ``float_layers``
        count here.
    limit
        Largest magnitude of a rounded weight.
    """
    weights = network.weights()
    scales, integers = {}, {}
    left_in_float = [network.weighted[place] for place in recipe.float_layers]
    for layer in network.weighted:
        if layer in left_in_float:
            continue
        name = layer.weight
        weight = output_first(layer, weights[name])
        flat = weight.reshape(len(weight), -1)
        mean, covariance = moments[name]
        # Pruning leaves channels of zeros, and training some that are next to nothing beside
        # their bias: the step must be large enough for that to fit.
        (source,) = layer.inputs
        step = grid(*ranges[network.moved.get(source, source)]).scale
        floor = limit * np.abs(weights[layer.bias]) / (step * _MOST_STEPS)
        largest = np.maximum(np.abs(flat).max(axis=1), np.maximum(1e-12, floor))
        if recipe.granularity == "per-tensor":
            largest = np.full_like(largest, largest.max())
        # The scale is stored as float32: round against the scale that will be used.
        scale = (largest / limit).astype(np.float32)
        if recipe.clip_weights:
            scale = least_error_scales(flat, covariance, scale, limit)
        if recipe.rounding == "gptq":
            rounded = gptq(flat, covariance, scale.astype(np.float64), limit)
        else:
            rounded = np.clip(np.round(flat / scale[:, None].astype(np.float64)), -limit, limit)
        on_grid = rounded * scale[:, None].astype(np.float64)
        weights[name] = output_first(layer, on_grid.reshape(weight.shape))
        if recipe.correct_bias:
            weights[layer.bias] = weights[layer.bias] + (flat - on_grid) @ mean
        scales[name], integers[name] = scale, rounded.reshape(weight.shape).astype(np.int8)
    return Parameters(network, network.with_weights(weights), ranges, scales, integers)


def gptq(weight: Tensor, covariance: Tensor, scale: Tensor, limit: int = WEIGHT_LIMIT) -> Tensor:
    """Round a matrix column by column, spreading each error over the columns still free.

    Parameters
    ----------
    weight
        Shape (out, in).
    covariance
        Of the layer's inputs, shape (in, in).
    scale
        Step of each output channel, shape (out,).

    Returns
    -------
    ndarray
        Whole numbers in [-limit, limit], shape (out, in).
    """
    hessian = covariance.copy()
    diagonal = np.diag_indices_from(hessian)
    hessian[diagonal] += _DAMPING * hessian[diagonal].mean() + 1e-12
    # Taps of one channel can have the same variance up to the last bit, which another processor
    # sums otherwise; in float32 they are equal, and their place decides.
    order = np.argsort(-hessian[diagonal].astype(np.float32), kind="stable")
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


def least_error_scales(
    weight: Tensor, covariance: Tensor, scale: NDArray[np.float32], limit: int
) -> NDArray[np.float32]:
    """The scale of each channel that changes its outputs least, among :data:`_SHARES` of `scale`.

    With few bits, clipping the largest weights costs less than coarse steps for all. The error is
    that after :func:`gptq`, whose parameters these are: the variance of what an output changes by.
    """
    candidates = np.outer(_SHARES, scale).astype(np.float32)
    steps = candidates.astype(np.float64)[..., None]
    # Channels are rounded each by itself, so all candidates are at once.
    many = np.tile(weight, (len(steps), 1))
    rounded = gptq(many, covariance, steps.ravel(), limit).reshape(len(steps), *weight.shape)
    least, best = np.full(len(scale), np.inf), scale.copy()
    for candidate, change in zip(candidates, weight - rounded * steps, strict=True):
        error = np.einsum("oi,ij,oj->o", change, covariance, change, optimize=True)
        better = error < least
        least[better], best[better] = error[better], candidate[better]
    return best


def input_moments(network: Network, images: Images) -> Moments:
    """Mean and covariance of the inputs of every weighted layer on the calibration images."""
    layers = network.weighted
    weights = network.constants()
    count: dict[str, int] = Counter()
    total: dict[str, Any] = defaultdict(float)
    squares: dict[str, Any] = defaultdict(float)
    probe = Probe(network, list(dict.fromkeys(layer.inputs[0] for layer in layers)))
    for values in probe.run(images):
        for layer in layers:
            name, rows = layer.weight, values[layer.inputs[0]]
            if isinstance(layer, Convolution):
                rows = _windows(layer, weights[name].shape[2:], rows)
            count[name] += len(rows)
            total[name] = total[name] + rows.sum(axis=0)
            squares[name] = squares[name] + rows.T @ rows
    moments: Moments = {}
    for layer in layers:
        name, shape = layer.weight, weights[layer.weight].shape
        order = np.arange(len(total[name]))
        if isinstance(layer, Convolution):  # from channels last to that of the weight
            order = order.reshape(*shape[2:], shape[1]).transpose(2, 0, 1).ravel()
        mean = (total[name] / count[name])[order]
        square = (squares[name] / count[name])[np.ix_(order, order)]
        covariance = square - np.outer(mean, mean)
        # What is left of an input that never changes is rounding, and may be below zero. It goes
        # whole: a matrix without some of its numbers alone may have no inverse.
        still = np.diagonal(covariance) < _LOST * np.diagonal(square)
        covariance[still] = covariance[:, still] = 0
        moments[name] = (mean, covariance)
    return moments


def _windows(layer: Convolution, kernel: tuple[int, ...], values: Tensor) -> Tensor:
    """What a convolution multiplies by its weights, (rows, height x width x channels)."""
    top, left, bottom, right = layer.pads
    down, across = layer.strides
    maps = np.moveaxis(values, 1, -1)
    padded = np.pad(maps, ((0, 0), (top, bottom), (left, right), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=(1, 2))
    windows = windows[:, ::down, ::across].transpose(0, 1, 2, 4, 5, 3)
    return windows.reshape(-1, maps.shape[-1] * kernel[0] * kernel[1])
