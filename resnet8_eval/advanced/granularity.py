"""One weight scale for each layer, or one for each channel: what the choice costs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet8_eval import backends
from resnet8_eval.analysis import compare
from resnet8_eval.calibrate.parameters import Parameters
from resnet8_eval.calibrate.tuned import Statistics, decide
from resnet8_eval.configurations import Configuration
from resnet8_eval.evaluate import evaluate
from resnet8_eval.inputs import Labelled
from resnet8_eval.network import Dense, Network, read
from resnet8_eval.preprocess import Images
from resnet8_eval.store import Record, file_sha256

PAIRED = ("delta_pp", "delta_ci95_pp", "lost", "gained", "mcnemar_p", "agreement_percent", "word")
"""What a paired comparison keeps."""


def explore(
    row: Configuration,
    folded: Path,
    images: Images,
    statistics: Statistics,
    test: Labelled,
    out: Path,
    threads: int,
) -> tuple[Record, NDArray[np.float32]]:
    """Quantize as a row says, and score the test images.

    Parameters
    ----------
    row
        From :func:`resnet8_eval.configurations.explored`.
    folded
        float32 ONNX network, for the framework's own quantizer.
    images
        Calibration images, uint8 (N, 32, 32, 3).
    statistics
        What was collected on them, for the suite's quantizer.
    test
        Images and labels.
    out
        Folder for the model and its scores.
    threads
        Threads for the framework.

    Returns
    -------
    record : dict
        ``name``, ``granularity``, ``model_sha256``, ``correct``, ``total``, ``scales`` (fewest and
        most distinct scales of a layer, as read back from the stored model), and ``weights`` and
        ``activations``, the dtypes stored.
    scores : ndarray
        float32 (N, 10).
    """
    recipe, backend = row.quantized_by, backends.backend(row.framework)
    file = backend.STOCK_FILE if row.is_stock else backend.MODEL_FILE
    path = out / f"{recipe.granularity}-{file}"
    if row.is_stock:
        made = backend.quantize(folded, images, row, path, threads)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            decide(statistics, Path(scratch), recipe, recipe.weight_limit)
            made = backend.write(Parameters.load(Path(scratch)), row, path)
    scores = backends.scores(path, test.images, threads=threads, execution=row.session)
    np.save(out / f"{recipe.granularity}.npy", scores)
    judged = evaluate(scores, test.labels)
    return {
        "name": row.name,
        "granularity": recipe.granularity,
        "model_sha256": file_sha256(path),
        "correct": judged["correct"],
        "total": judged["total"],
        "scales": stored_scales(row, path, read(folded)),
        "weights": sorted(set(made["weights"].values())),
        "activations": made["activations"],
    }, scores


def stored_scales(row: Configuration, path: Path, network: Network) -> list[int]:
    """Fewest and most distinct weight scales of a layer, as a stored model has them."""
    found = backends.backend(row.framework).read_back(path, network)
    distinct = [len(set(entry.scales)) for entry in found if entry.kind == "weight"]
    return [min(distinct, default=0), max(distinct, default=0)]


def paired(
    tensor: NDArray[np.float32],
    channel: NDArray[np.float32],
    baseline: NDArray[np.float32],
    labels: NDArray[np.integer],
) -> Record:
    """Hold per-channel scales against per-tensor ones, image by image.

    Parameters
    ----------
    tensor, channel, baseline
        Scores of both and of the float32 baseline, (N, 10).
    labels
        Of the images, (N,).

    Returns
    -------
    dict
        :data:`PAIRED` of per-channel minus per-tensor, and ``from_baseline``, of each granularity
        the ``agreement_percent`` with the baseline and the ``kl_nats`` from it.
    """
    found = compare(channel, tensor, labels)
    beside = {
        name: compare(scores, baseline, labels)
        for name, scores in (("per-tensor", tensor), ("per-channel", channel))
    }
    return {
        **{key: found[key] for key in PAIRED},
        "from_baseline": {
            name: {
                "agreement_percent": entry["agreement_percent"],
                "kl_nats": entry["divergence"]["kl_nats"],
            }
            for name, entry in beside.items()
        },
    }


def weight_ranges(network: Network) -> list[dict[str, Any]]:
    """The largest magnitude of each channel's weights, layer by layer, ascending."""
    weights = network.weights()
    ranges = []
    for layer in network.weighted:
        weight = weights[layer.weight].T if isinstance(layer, Dense) else weights[layer.weight]
        largest = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
        ranges.append({"name": layer.name, "largest": np.sort(largest).round(6).tolist()})
    return ranges
