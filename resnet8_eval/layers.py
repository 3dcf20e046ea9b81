"""Layer by layer: how much noise quantization adds, and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from resnet8_eval.backends import backend
from resnet8_eval.calibrate.parameters import Parameters
from resnet8_eval.calibrate.probe import Probe
from resnet8_eval.configurations import Configuration
from resnet8_eval.store import Record

NOISE_IMAGES: Final = 200
SIMULATED: Final = "8-bit integers simulated in float32"
Answers = NDArray[np.integer[Any]]


def sensitivity(
    parameters: Parameters,
    images: NDArray[np.uint8],
    labels: NDArray[np.integer],
    threads: int,
) -> Record:
    """Accuracy with one layer in float, and with one layer quantized, for each layer.

    Parameters
    ----------
    parameters
        From calibration; every framework quantizes from them, so this holds for all.
    images, labels
        Training images that did not calibrate, uint8 (N, 32, 32, 3), and their labels (N,).
    threads
        Threads for PyTorch, in whose float arithmetic the integers are simulated.

    Returns
    -------
    dict
        ``images``, ``arithmetic``; accuracies ``float_percent`` and ``quantized_percent`` of the
        whole network; ``layers``, each with ``name``, ``float_alone_percent`` (every other layer
        quantized), ``recovery_pp`` (that minus ``quantized_percent``),
        ``quantized_alone_percent``, ``sensitivity_pp`` (that minus ``float_percent``) and
        ``agreement_alone_percent`` (share of images classed as in float with it alone quantized).
    """
    import torch

    from resnet8_eval.simulate import Simulation

    torch.set_num_threads(threads)
    simulation = Simulation(parameters)

    def answers(layers: list[str]) -> tuple[Answers, dict[str, Answers]]:
        unchanged, changed = simulation.logits_by_layer(images, layers)
        return unchanged.argmax(axis=1), {k: v.argmax(axis=1) for k, v in changed.items()}

    def percent(hits: NDArray[np.bool_]) -> float:
        return 100 * float(hits.mean())

    exact, quantized_alone = answers([])
    whole, float_alone = answers(simulation.layers)
    in_float, in_integers = percent(exact == labels), percent(whole == labels)
    layers = []
    for name in simulation.layers:
        alone, others = quantized_alone[name], float_alone[name]
        layers.append(
            {
                "name": name,
                "float_alone_percent": percent(others == labels),
                "recovery_pp": percent(others == labels) - in_integers,
                "quantized_alone_percent": percent(alone == labels),
                "sensitivity_pp": percent(alone == labels) - in_float,
                "agreement_alone_percent": percent(alone == exact),
            }
        )
    return {
        "images": len(labels),
        "arithmetic": SIMULATED,
        "float_percent": in_float,
        "quantized_percent": in_integers,
        "layers": layers,
    }


def noise(
    row: Configuration,
    model: Path,
    parameters: Parameters,
    images: NDArray[np.uint8],
    threads: int,
) -> list[dict[str, Any]]:
    """Signal-to-quantization-noise ratio of every layer's weights and outputs.

    Parameters
    ----------
    row, model
        A stored quantized model.
    parameters
        What it was made from, with the equalized float32 network to compare with.
    images
        uint8 (N, 32, 32, 3).
    threads
        Threads for both frameworks.

    Returns
    -------
    list of dict
        For each layer ``name``, ``sqnr_weights_db`` and ``sqnr_output_db`` in decibels; the output
        is that of the ReLU where one follows, and carries the noise of all layers before.
    """
    layers = parameters.exact.weighted
    names = [layer.output for layer in layers]
    signal, error = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    quantized = backend(row.framework).tensors(model, parameters, row, names, images, threads)
    probe = Probe(parameters.exact, names, threads)
    for clean, noisy in zip(probe.run(images), quantized, strict=True):
        for name in names:
            signal[name] += float(np.square(clean[name], dtype=np.float64).sum())
            difference = clean[name].astype(np.float64) - noisy[name]
            error[name] += float(np.square(difference).sum())
    before, after = parameters.exact.weights(), parameters.rounded.weights()
    return [
        {
            "name": layer.name,
            "sqnr_weights_db": decibels(
                float(np.square(before[layer.weight]).sum()),
                float(np.square(before[layer.weight] - after[layer.weight]).sum()),
            ),
            "sqnr_output_db": decibels(signal[layer.output], error[layer.output]),
        }
        for layer in layers
    ]


def decibels(signal: float, error: float) -> float | None:
    """Ratio of two powers in dB; None where there is no noise or no signal."""
    return 10 * float(np.log10(signal / error)) if signal > 0 and error > 0 else None
