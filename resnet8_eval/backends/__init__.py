"""Keras, ONNX Runtime and PyTorch behind one protocol.

Each framework is one module of this package that has the functions of :class:`Backend`. It is
imported when it is needed, and imports its framework only when it is asked for something.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from resnet8_eval.assets import MODEL_SUFFIXES
from resnet8_eval.batchwise import Share, batchwise
from resnet8_eval.errors import ModelError
from resnet8_eval.preprocess import Images, Scores, batches

if TYPE_CHECKING:
    from resnet8_eval.calibrate.parameters import Parameters
    from resnet8_eval.configurations import Configuration, Framework
    from resnet8_eval.network import Network
    from resnet8_eval.store import Record

Tensors = dict[str, NDArray[np.float32]]
Runtime = Callable[[NDArray[np.float32]], Scores]
"""float32 (n, 32, 32, 3) in [0, 255] to float32 scores (n, 10)."""
Execution = Literal["kernel", "signed kernel", "reference", "default"]

SUFFIXES: Final[dict[str, Framework]] = {
    **dict.fromkeys(MODEL_SUFFIXES, "keras"),
    ".onnx": "onnxruntime",
    ".pt2": "torch",
    ".pt": "torch",
}
FLOAT_MODELS: Final = {"onnxruntime": "onnx", "torch": "torch"}
"""The stage that makes each framework's float32 model; Keras's is the asset."""
FILES: Final = {"onnxruntime": ("model.onnx", "model.onnx"), "torch": ("model.pt2", "model.pt")}
"""Names of a framework's models: float32 or stock, and those of the suite's parameters."""
CONVOLUTIONS: Final = ("Conv", "conv2d", "conv2d_relu", "_convolution")
PRODUCTS: Final = ("Gemm", "MatMul", "linear", "addmm", "matmul", "qlinear_pointwise")
"""What ONNX and PyTorch call the operators that have weights."""


@dataclass(frozen=True)
class Session:
    """A stored model that a framework has opened; called as a :data:`Runtime`.

    Attributes
    ----------
    run
        Gives the scores of a batch.
    threads
        Asks the framework how many threads its operators have now.
    """

    run: Runtime
    threads: Callable[[], int]

    def __call__(self, batch: NDArray[np.float32]) -> Scores:
        """Scores of a batch."""
        return self.run(batch)


@dataclass(frozen=True)
class StoredTensor:
    """A quantized tensor as it was read back from a stored model.

    Attributes
    ----------
    name
        The network's name of it; a bias goes by the name of its layer's weight.
    axis
        The axis that the scales lie along; None if there is one scale.
    scales, zero_points
        As stored; none for a float bias. For activations each pair that a step at it holds, so one.
    values
        For weights, the integers less their zero point, output channel first; for biases, the real
        numbers; None for activations.
    wrong_axis
        Whether the scales lie along another axis than the output channels.
    """

    name: str
    kind: Literal["activation", "weight", "bias"]
    dtype: str
    axis: int | None
    scales: list[float]
    zero_points: list[int]
    values: NDArray[Any] | None = None
    wrong_axis: bool = False


def integers_sha256(found: Iterable[StoredTensor]) -> str:
    """Hash of the weights of a stored model: integers less their zero points, and scales."""
    total = hashlib.sha256()
    for entry in sorted(found, key=lambda entry: entry.name):
        if entry.kind == "weight":
            total.update(np.asarray(entry.values, np.int16).tobytes())
            total.update(np.asarray(entry.scales, np.float32).tobytes())
    return total.hexdigest()


def counted(
    operators: Sequence[tuple[str, bool]],
    maker: str,
    weights: dict[str, str],
    activations: Iterable[str],
) -> Record:
    """The record of :meth:`Backend.census`; each operator with whether it is quantized."""
    counts = [Counter(n for n, exact in operators if exact is which) for which in (True, False)]
    return {
        "quantized_ops": dict(counts[0]),
        "float_ops": dict(counts[1]),
        "convolutions": [sum(count[name] for name in CONVOLUTIONS) for count in counts],
        "products": [sum(count[name] for name in PRODUCTS) for count in counts],
        "weights": weights,
        "activations": sorted(activations),
        "maker": maker,
    }


class Backend(Protocol):
    """What a framework's module offers."""

    def open_model(self, path: Path, threads: int, execution: Execution) -> Session:
        """Open a stored model to run it."""

    def quantize(
        self, folded: Path, images: Images, row: Configuration, path: Path, threads: int
    ) -> Record:
        """Quantize with the framework's own static quantizer and its documented defaults.

        Parameters
        ----------
        folded
            float32 ONNX network with batch normalisation folded.
        images
            Calibration images, fed in the suite's batches.
        row
            A stock row of this framework.

        Returns
        -------
        dict
            As :meth:`census`, and ``fed_sha256``, the hash of all the bytes that were fed.
        """

    def lower(self, path: Path, row: Configuration, images: Images) -> Record | None:
        """Try the framework's own lowering of a stock model to integer kernels.

        Returns
        -------
        dict or None
            As :class:`resnet8_eval.row_record.Lowering`: how the lowered model answers the last
            batch of `images`, beside the model itself. None where there is no such step.
        """

    def write(self, parameters: Parameters, row: Configuration, path: Path) -> Record:
        """Write a quantized model from given parameters.

        Returns :meth:`census`, and what else the framework has to say of the model.
        """

    def weights_bytes(self, path: Path) -> int:
        """Bytes of the weights, scales, zero points and biases of a model, as they are stored."""

    def census(self, path: Path) -> Record:
        """Count which operators of a stored model compute with 8-bit tensors, and which in float.

        An operator is quantized if every tensor that it computes with is 8-bit or comes directly
        from an 8-bit one. Operators that only move or convert, and ReLU, are not counted. In
        reference arithmetic a quantized operator still computes in float32.

        Returns
        -------
        dict
            ``quantized_ops`` and ``float_ops``, operator to count; ``convolutions`` and
            ``products``, each ``[quantized, in float]``; ``weights``, layer to the dtype that its
            weight is stored in; ``activations``, the dtypes that activations are quantized to;
            ``maker``, the tool that quantized the model, as the file names it.
        """

    def read_back(self, path: Path, network: Network) -> list[StoredTensor]:
        """Read every quantized tensor of a stored model; shares no code with :meth:`write`."""

    def signed_weights(self, path: Path) -> int:
        """Largest magnitude of the int8 weights that a stored model's kernels multiply by.

        ModelError if it holds weights of a kind that is not read.
        """

    def tensors(
        self, path: Path, parameters: Parameters, row: Configuration, images: Images, threads: int
    ) -> Iterator[Tensors]:
        """Yield what each layer with weights gives, dequantized, by tensor and batch by batch."""


def backend(framework: str) -> Backend:
    """The module of a framework."""
    return cast("Backend", import_module(f"resnet8_eval.backends.{framework}"))


def file_of(row: Configuration) -> str:
    """File name of a row's model."""
    theirs, ours = FILES[row.framework]
    return theirs if row.recipe is None or row.is_stock else ours


def model_file(row: Configuration) -> tuple[str, str] | None:
    """Stage and file name of a row's model; None for the baseline, whose model is an asset."""
    if row.framework not in FILES:
        return None
    return f"model/{row.name}" if row.recipe else FLOAT_MODELS[row.framework], file_of(row)


def framework_of(path: Path) -> Framework:
    """The framework that opens this kind of file; ModelError if none does."""
    try:
        return SUFFIXES[path.suffix]
    except KeyError:
        raise ModelError(
            f"{path.name} is no kind of model that can be evaluated.",
            expected="a file named " + ", ".join(f"*{suffix}" for suffix in SUFFIXES),
            given=str(path),
            next_step="give a Keras, ONNX or PyTorch model (torch.export or TorchScript)",
        ) from None


def scores(
    path: Path,
    images: Images,
    *,
    threads: int,
    share: Share | None = None,
    execution: Execution = "kernel",
) -> Scores:
    """Run a stored model on stored images.

    Parameters
    ----------
    path
        Keras ``.h5`` or ``.keras``, ``.onnx``, ``.pt2`` (``torch.export``) or ``.pt``
        (TorchScript).
    threads
        Of Keras's operators. ONNX Runtime and PyTorch compute so many batches at once, each in one
        thread, so that their number changes no score.
    share
        How many that is, where it changes; `threads` if not given.
    execution
        For ONNX Runtime, see :func:`resnet8_eval.backends.onnxruntime.open_session`. A PyTorch
        file is what it was saved as.

    Raises
    ------
    ModelError
        If the model cannot be opened, or does not give finite scores of shape (N, 10).
    """
    score = scorer(path, threads, share, execution)
    try:
        result = score(images)
    except Exception as error:  # each framework raises its own for images of another shape
        raise ModelError(
            f"{path.name} cannot be run on the images.",
            expected="a network from float32 (N, 32, 32, 3), for any N, to one output (N, 10)",
            given=_otherwise(open_runtime(path, threads, execution), images)
            or f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}",
            next_step="export the network with that input and output",
        ) from error
    if result.shape != (len(images), 10) or not np.isfinite(result).all():
        raise ModelError(
            f"{path.name} does not give one finite score for each class.",
            expected=f"finite float32 of shape ({len(images)}, 10)",
            given=f"shape {result.shape}, {int((~np.isfinite(result)).sum())} not finite",
            next_step="check the model's weights for NaN and its output for ten classes",
        )
    return result.astype(np.float32, copy=False)


def _otherwise(runtime: Runtime, images: Images) -> str | None:
    """What a model takes that refuses a batch of images, if it is one of the usual things."""
    batch = next(batches(images))
    ways = {
        "images one at a time": batch[:1],
        "channels first, (N, 3, 32, 32)": batch.transpose(0, 3, 1, 2),
        "channels first and one at a time, (1, 3, 32, 32)": batch[:1].transpose(0, 3, 1, 2),
        "uint8 images": batch.astype(np.uint8),
        "float64 images": batch.astype(np.float64),
        "float16 images": batch.astype(np.float16),
    }
    for said, fed in ways.items():
        with suppress(Exception):  # each framework raises its own
            runtime(np.ascontiguousarray(fed))
            return f"a network that takes {said}"
    return None


def open_runtime(path: Path, threads: int, execution: Execution = "kernel") -> Session:
    """Open a stored model in its own framework; parameters as for :func:`scores`."""
    return backend(framework_of(path)).open_model(path, threads, execution)


def scorer(
    path: Path, threads: int, share: Share | None = None, execution: Execution = "kernel"
) -> Callable[[Images], Scores]:
    """Open a stored model to run it on stored images; parameters as for :func:`scores`."""
    at_once = None if framework_of(path) == "keras" else share or (lambda: threads)
    runtime = open_runtime(path, 1 if at_once else threads, execution)
    return lambda images: run(runtime, images, at_once)


def run(runtime: Runtime, images: Images, share: Share | None = None) -> Scores:
    """Feed images to a runtime, preprocessed batch by batch; with a share, several at once."""
    if share is None:
        return np.concatenate([runtime(batch) for batch in batches(images)])
    return batchwise(lambda some: runtime(next(batches(some, len(some)))), images, share)
