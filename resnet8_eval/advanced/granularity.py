"""One weight scale for each layer, or one for each channel: what the choice costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet8_eval import backends, proof, stock
from resnet8_eval.analysis import alike, compare
from resnet8_eval.calibrate.parameters import Ranges
from resnet8_eval.calibrate.tuned import Statistics, decide
from resnet8_eval.configurations import Configuration
from resnet8_eval.inputs import Labelled
from resnet8_eval.network import Network, output_first, read
from resnet8_eval.preprocess import Images
from resnet8_eval.store import Record, file_sha256


def explore(
    row: Configuration,
    folded: Path,
    images: Images,
    spans: Ranges,
    statistics: Statistics,
    test: Labelled,
    out: Path,
    threads: int,
) -> tuple[Record, NDArray[np.float32]]:
    """Quantize a row of :func:`resnet8_eval.configurations.explored`, and score the test images.

    The framework's own quantizer takes the `folded` network and calibration `images`, and is held
    against `spans` (:func:`resnet8_eval.stock.spans`). The suite's takes what was collected on the
    images. Model and scores are written into `out`.

    Returns
    -------
    record : dict
        As :class:`resnet8_eval.advanced_record.Cell`, with ``checks``.
    scores : ndarray
        float32 (N, 10).
    """
    recipe, backend, network = row.quantized_by, backends.backend(row.framework), read(folded)
    path = out / f"{recipe.granularity}-{backends.file_of(row)}"
    if row.is_stock:
        made = backend.quantize(folded, images, row, path, threads)
        checks = stock.prove(row, path, network, images, made, spans)["checks"]
    else:
        parameters = decide(statistics, recipe, recipe.weight_limit)
        made = backend.write(parameters, row, path)
        checks = proof.held(backend.read_back(path, network), parameters, row)
    scores = backends.scores(path, test.images, threads=threads, execution=row.session)
    np.save(out / f"{recipe.granularity}.npy", scores)
    found = backend.read_back(path, network)
    distinct = [len(set(entry.scales)) for entry in found if entry.kind == "weight"]
    return {
        "name": row.name,
        "granularity": recipe.granularity,
        "model_sha256": file_sha256(path),
        "correct": int((scores.argmax(axis=1) == test.labels).sum()),
        "total": len(scores),
        "scales": [min(distinct, default=0), max(distinct, default=0)],
        "weights": sorted(set(made["weights"].values())),
        "activations": made["activations"],
        "checks": checks,
    }, scores


def paired(
    tensor: NDArray[np.float32],
    channel: NDArray[np.float32],
    baseline: NDArray[np.float32],
    labels: NDArray[np.integer],
) -> Record:
    """Hold scores (N, 10) with a scale a channel against those with one a layer, image by image.

    Returns
    -------
    dict
        As :func:`resnet8_eval.analysis.compare`, per-channel minus per-tensor, with
        ``from_baseline``, how :func:`~resnet8_eval.analysis.alike` each is to float32.
    """
    beside = {"per-tensor": alike(tensor, baseline), "per-channel": alike(channel, baseline)}
    return {**compare(channel, tensor, labels), "from_baseline": beside}


def weight_ranges(network: Network) -> list[dict[str, Any]]:
    """The largest magnitude of each channel's weights, layer by layer, ascending."""
    weights = network.weights()
    ranges = []
    for layer in network.weighted:
        weight = output_first(layer, weights[layer.weight])
        largest = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
        ranges.append({"name": layer.name, "largest": np.sort(largest).round(6).tolist()})
    return ranges
