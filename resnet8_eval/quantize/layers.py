"""Layer by layer: how much noise quantization adds, and what it costs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from resnet8_eval.preprocess import batches
from resnet8_eval.quantize.graph import Probe, Weights, weighted
from resnet8_eval.quantize.parameters import EQUALIZED, Parameters
from resnet8_eval.quantize.recipes import Recipe
from resnet8_eval.store import Record

NOISE_IMAGES: Final = 200
SIMULATED: Final = "8-bit integers simulated in float32"
Tensors = dict[str, NDArray[np.float32]]
Answers = NDArray[np.integer[Any]]


def sensitivity(
    parameters_folder: Path,
    images: NDArray[np.uint8],
    labels: NDArray[np.integer],
    threads: int,
) -> Record:
    """Accuracy with one layer in float, and with one layer quantized, for each layer.

    Parameters
    ----------
    parameters_folder
        What calibration wrote; both frameworks quantize from it, so this holds for both.
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

    from resnet8_eval.quantize.simulate import Simulation

    torch.set_num_threads(threads)
    parameters = Parameters.load(parameters_folder)
    simulation = Simulation(
        onnx.load(parameters_folder / EQUALIZED),
        onnx.load(parameters.model),
        parameters.activations,
    )

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
    recipe: Recipe, model: Path, parameters_folder: Path, images: NDArray[np.uint8], threads: int
) -> list[dict[str, Any]]:
    """Signal-to-quantization-noise ratio of every layer's weights and outputs.

    Parameters
    ----------
    recipe, model
        A stored quantized model. ONNX Runtime computes it in reference arithmetic, because looking
        at a tensor keeps it from the integer kernels; PyTorch as the recipe executes.
    parameters_folder
        What calibration wrote, with the equalized float32 network to compare with.
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
    parameters = Parameters.load(parameters_folder)
    exact = onnx.load(parameters_folder / EQUALIZED)
    relu = {n.input[0]: n.output[0] for n in exact.graph.node if n.op_type == "Relu"}
    nodes = weighted(exact)
    outputs = {n.name: relu.get(n.output[0], n.output[0]) for n in nodes}
    names = list(outputs.values())
    signal, error = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    if recipe.framework == "torch":
        quantized = _torch_tensors(recipe, parameters, names, images, threads)
    else:
        quantized = _onnx_tensors(model, names, images, threads)
    for clean, noisy in zip(Probe(exact, names, threads).run(images), quantized, strict=True):
        for name in names:
            signal[name] += float(np.square(clean[name], dtype=np.float64).sum())
            difference = clean[name].astype(np.float64) - noisy[name]
            error[name] += float(np.square(difference).sum())
    before, after = Weights(exact), Weights(onnx.load(parameters.model))
    return [
        {
            "name": node.name,
            "sqnr_weights_db": decibels(
                float(np.square(before[node.input[1]]).sum()),
                float(np.square(before[node.input[1]] - after[node.input[1]]).sum()),
            ),
            "sqnr_output_db": decibels(signal[outputs[node.name]], error[outputs[node.name]]),
        }
        for node in nodes
    ]


def decibels(signal: float, error: float) -> float | None:
    """Ratio of two powers in dB; None where there is no noise or no signal."""
    return 10 * float(np.log10(signal / error)) if signal > 0 and error > 0 else None


def _onnx_tensors(
    path: Path, names: list[str], images: NDArray[np.uint8], threads: int
) -> Iterator[Tensors]:
    """What the stored ONNX model holds for these tensors, dequantized."""
    from resnet8_eval.onnx_session import open_session

    model = onnx.load(path)
    quantized = {n.input[0]: n.output[0] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    dequantized = {
        n.input[0]: n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"
    }
    seen = [dequantized[quantized[name]] if name in quantized else name for name in names]
    del model.graph.output[:]
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in seen
    )
    with tempfile.TemporaryDirectory() as folder:
        exposed = Path(folder) / "exposed.onnx"
        onnx.save(model, exposed)
        session = open_session(exposed, threads, "reference")
    feed = session.get_inputs()[0].name
    for batch in batches(images):
        yield dict(zip(names, session.run(None, {feed: batch}), strict=True))


def _torch_tensors(
    recipe: Recipe,
    parameters: Parameters,
    names: list[str],
    images: NDArray[np.uint8],
    threads: int,
) -> Iterator[Tensors]:
    """What the PyTorch network computes for these tensors, dequantized."""
    import torch

    from resnet8_eval import torchscript
    from resnet8_eval.quantize.torch_quantize import network

    torch.set_num_threads(threads)
    module = network(parameters, recipe, kernels=recipe.execution == "kernel")
    for batch in batches(images):
        with torch.inference_mode(), torchscript.deprecations_ignored():
            found = module.tensors(torch.from_numpy(batch))
        yield {name: found[name].dequantize().numpy() for name in names}
