"""Layer by layer: how much noise quantization adds, and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from resnet8_eval import statistics
from resnet8_eval.analysis import divergences
from resnet8_eval.backends import backend
from resnet8_eval.calibrate.parameters import Parameters
from resnet8_eval.calibrate.probe import Probe
from resnet8_eval.configurations import Configuration
from resnet8_eval.evaluate import softmax
from resnet8_eval.preprocess import Images, Labels, Scores
from resnet8_eval.store import Record

COST_IMAGES: Final = 1600
"""As many as some seven seconds of one core allow. Half as many tell every layer's own divergence
from zero, but fewer of what is recovered with it in float."""
NOISE_IMAGES: Final = 200
SIMULATED: Final = "8-bit integers simulated in float32"


def sensitivity(parameters: Parameters, images: Images, labels: Labels, threads: int) -> Record:
    """What one layer costs: quantized alone, and left in float alone, for each layer.

    Every framework quantizes from these parameters, so this holds for all. It is measured on
    training images that did not calibrate, with integers simulated in PyTorch's float arithmetic.

    The result has the fields of :class:`resnet8_eval.record.Sensitivity`. Intervals are by the
    bootstrap for means, Wilson's for shares, Tango's for the difference of two.
    """
    import torch

    from resnet8_eval.simulate import Simulation

    torch.set_num_threads(threads)
    simulation = Simulation(parameters)
    exact, alone = simulation.logits_by_layer(images, [])
    whole, others = simulation.logits_by_layer(images, simulation.layers)
    shares, answers = softmax(exact), exact.argmax(axis=1)

    def held(logits: Scores) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        return divergences(softmax(logits), shares), logits.argmax(axis=1) == answers

    lies, agrees = held(whole)
    layers = []
    for name in simulation.layers:
        lies_alone, agrees_alone = held(alone[name])
        lies_less, agrees_more = held(others[name])
        layers.append(
            {
                "name": name,
                **_mean("divergence_alone", lies_alone),
                **_share("agreement_alone", agrees_alone),
                **_mean("divergence_recovered", lies - lies_less),
                **_difference("agreement_recovered", agrees, agrees_more),
            }
        )
    return {
        "images": len(labels),
        "arithmetic": SIMULATED,
        "float_percent": statistics.percent(answers == labels),
        "quantized_percent": statistics.percent(whole.argmax(axis=1) == labels),
        **_mean("divergence", lies),
        **_share("agreement", agrees),
        "layers": layers,
    }


def _mean(name: str, values: NDArray[np.float64]) -> Record:
    interval = list(statistics.mean_interval(values))
    return {f"{name}_nats": float(values.mean()), f"{name}_ci95_nats": interval}


def _share(name: str, hits: NDArray[np.bool_]) -> Record:
    interval = statistics.wilson_interval_percent(int(hits.sum()), len(hits))
    return {f"{name}_percent": statistics.percent(hits), f"{name}_ci95_percent": list(interval)}


def _difference(name: str, before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Record:
    lost, gained = int((before & ~after).sum()), int((after & ~before).sum())
    interval = statistics.paired_interval_pp(lost, gained, len(before))
    return {f"{name}_pp": 100 * (gained - lost) / len(before), f"{name}_ci95_pp": list(interval)}


def noise(
    row: Configuration, model: Path, parameters: Parameters, images: Images, threads: int
) -> list[dict[str, Any]]:
    """Signal-to-quantization-noise ratio of every layer's weights and outputs of a stored model.

    `parameters` are what it was made from, with the equalized float32 network to compare with.

    Returns
    -------
    list of dict
        As :class:`resnet8_eval.row_record.LayerNoise`; the output is that of the ReLU where one
        follows, and carries the noise of all layers before.
    """
    layers = parameters.exact.weighted
    names = [layer.output for layer in layers]
    signal, error = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    quantized = backend(row.framework).tensors(model, parameters, row, images, threads)
    probe = Probe(parameters.exact, names)
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
