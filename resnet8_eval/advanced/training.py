"""Quantization-aware training: fine-tune the tuned parameters with fake quantization.

The float network teaches (Hinton et al. 2015, *Distilling the Knowledge in a Neural Network*): the
loss is the cross-entropy between the quantized network's probabilities and the mean of the float
network's, on the same augmented images, and the label. Weights, biases and every step are learned
(LSQ: Esser et al. 2020, *Learned Step Size Quantization*), from post-training parameters.

torchao has a flow of its own for this. It inserts fake quantization with observed steps that no
gradient reaches, starts from rounding to nearest, and folds batch normalisation while training,
which is folded here already. So the loop is ours, on PyTorch's fused operators for learned steps.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from resnet8_eval.advanced import bits as bits_module
from resnet8_eval.advanced.bits import Bits, limit
from resnet8_eval.analysis import alike
from resnet8_eval.calibrate.parameters import Parameters, grid
from resnet8_eval.evaluate import softmax
from resnet8_eval.inputs import Labelled
from resnet8_eval.network import Dense, Layer, Network, Pooling, output_first
from resnet8_eval.preprocess import Feed, batches, preprocess
from resnet8_eval.simulate import compute

BATCH: Final = 100
WARM_UP: Final = 20
"""Steps until the whole learning rate is reached."""
SHIFT: Final = 4
"""An image moves by up to this many pixels each way, and half of them are mirrored."""
SMALLER: Final = 0.2
"""Of the learning rate, for what a few large gradients would throw off."""
EVERY_S: Final = 10.0
"""Seconds between two lines of progress; the end of an epoch has one in any case."""
CHECKPOINT: Final = "checkpoint.npz"


@dataclass(frozen=True)
class Course:
    """How the training goes.

    Attributes
    ----------
    epochs
        Passes over the images.
    rate
        Adam's learning rate, after a few steps of warming up; it falls to zero along a cosine.
        Weights are learned in shares of their channel's largest, the steps of maps in shares of
        themselves. The steps of weights, and biases, in shares of their map's range, have
        :data:`SMALLER` of it.
    labels
        How much of what is taught is the label; the rest is the float network's.
    seed
        Of the order of the images and of their augmentation.
    """

    epochs: int
    rate: float = 1e-3
    labels: float = 0.5
    seed: int = 0


def train(
    parameters: Parameters,
    bits: Bits,
    images: Labelled,
    validating: Feed,
    course: Course,
    folder: Path,
    announce: Callable[[str], None] = lambda _: None,
) -> tuple[Parameters, list[dict[str, float]]]:
    """Fine-tune a quantized network; goes on from the last whole epoch if it was interrupted.

    Parameters
    ----------
    parameters
        Where to start: integers and ranges for `bits`.
    images
        N images to train on, at least one batch, and their labels.
    validating
        To watch it on, and for nothing else.
    folder
        Where checkpoints are kept, under a name made of all that decides them.
    announce
        Told one line every :data:`EVERY_S` and at the end of each epoch, with the time left.

    Returns
    -------
    parameters : Parameters
        What was learned, rounded to its grids.
    history : list of dict
        For the start and each epoch: ``kl_nats`` and ``agreement_percent``, from the float network
        on the validation images, and the mean ``loss`` (absent for the start).
    """
    place = folder / _decided_by(parameters, bits, images, validating, course) / CHECKPOINT
    teacher = _teacher(parameters.exact)
    reference = softmax(_scores(teacher, validating))
    student, optimizer = _begin(parameters, bits)
    history = _resume(place, student, optimizer)
    found = alike(softmax(_scores(student, validating)), reference)
    if history and not math.isclose(found["kl_nats"], history[-1]["kl_nats"], rel_tol=1e-3):
        # What computes is no longer what trained this far.
        student, optimizer = _begin(parameters, bits)
        history, found = [], alike(softmax(_scores(student, validating)), reference)
    history = history or [found]
    done = len(history) - 1
    pixels, how = images.images.pixels, images.images.preprocessing
    steps = len(pixels) // BATCH
    total, began = steps * course.epochs, time.monotonic()
    due = began + EVERY_S
    for epoch in range(done, course.epochs):
        order = np.random.default_rng((course.seed, epoch))
        shuffled = order.permutation(len(pixels))
        losses = 0.0
        for step in range(steps):
            at = epoch * steps + step
            for group in optimizer.param_groups:
                warm = min(1.0, (at + 1) / WARM_UP)
                cosine = (1 + math.cos(math.pi * at / total)) / 2
                group["lr"] = course.rate * group["share"] * warm * cosine
            chosen = np.sort(shuffled[step * BATCH : (step + 1) * BATCH])
            moved = Feed(augmented(pixels[chosen], order), how)
            batch = torch.from_numpy(preprocess(moved))
            labels = torch.from_numpy(images.labels[chosen])
            with torch.no_grad():
                taught = teacher(batch).softmax(1)
                one = functional.one_hot(labels, taught.shape[1]).to(taught)
                taught = taught.lerp(one, course.labels)
            loss = functional.cross_entropy(student(batch), taught)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses += float(loss.detach())
            now = time.monotonic()
            if now >= due or step + 1 == steps:
                due = now + EVERY_S
                left = (now - began) / (at + 1 - done * steps) * (total - at - 1)
                announce(
                    f"epoch {epoch + 1} of {course.epochs}, step {step + 1} of {steps}, "
                    f"loss {losses / (step + 1):.4f}, {left / 60:.1f} min left"
                )
        found = alike(softmax(_scores(student, validating)), reference)
        history.append({**found, "loss": losses / steps})
        _keep(place, student, optimizer, history)
    return student.rounded(), history


class Student(torch.nn.Module):
    """A network with fake quantization whose weights, biases and steps are learned.

    It starts at the middle of each weight's step. Near a step's edge, where many of the float
    weights lie, the first small changes would undo what GPTQ rounded.
    """

    def __init__(self, parameters: Parameters, bits: Bits) -> None:
        super().__init__()
        self.start, self.bits = parameters, bits
        self.network = parameters.rounded
        self.levels = bits.levels()
        # PyTorch's integer pooling cannot rescale: the ratio of the two steps stays as it is.
        self.pooled = {
            layer.output: layer.inputs[0]
            for layer in self.network.maps
            if isinstance(layer, Pooling)
        }
        biases = self.network.constants()
        self.fixed: dict[str, torch.Tensor] = {}
        self.learned: dict[str, torch.Tensor] = {}
        for layer in self.network.weighted:
            name, most = layer.weight, limit(bits.weights[layer.weight])
            integers, scale = parameters.integers[name], parameters.scales[name]
            self._learn(f"weight {name}", integers / most)
            self._fix(f"unit {name}", scale.reshape(-1, *[1] * (integers.ndim - 1)) * most)
            self._learn(f"step {name}", np.zeros(len(scale)))
            self._learn(f"bias {name}", np.zeros(len(scale)))
            self._fix(f"step {name}", scale)
            self._fix(f"bias {name}", biases[layer.bias])
            low, high = parameters.activations.get(layer.output, (0.0, 1.0))
            self._fix(f"range {name}", np.array(high - low))
        for name, levels in self.levels.items():
            distance, zero_point = grid(*parameters.activations[name], levels)
            self._fix(f"step {name}", np.array([distance]))
            self._fix(f"zero {name}", np.array([zero_point]))
            if name not in self.pooled:
                self._learn(f"step {name}", np.zeros(1))
        self.input = grid(*parameters.activations[self.network.input])

    def _learn(self, name: str, values: NDArray[Any]) -> None:
        self.learned[name] = torch.nn.Parameter(torch.from_numpy(values.astype(np.float32)))

    def _fix(self, name: str, values: NDArray[Any]) -> None:
        self.fixed[name] = torch.from_numpy(np.array(values, np.float32))

    def _step(self, name: str) -> torch.Tensor:
        change = self.learned[f"step {self.pooled.get(name, name)}"].exp()
        return self.fixed[f"step {name}"] * change

    def _bias(self, name: str) -> torch.Tensor:
        change = self.fixed[f"range {name}"] * self.learned[f"bias {name}"]
        return self.fixed[f"bias {name}"] + change

    def _weight(self, name: str) -> torch.Tensor:
        return self.learned[f"weight {name}"] * self.fixed[f"unit {name}"]

    def share(self, name: str) -> float:
        """How much of the learning rate something that is learned has."""
        kind, of = name.split(" ", 1)
        return 1.0 if kind == "weight" or of in self.levels else SMALLER

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Scores before softmax of preprocessed images, float32 (n, 32, 32, 3)."""
        batch = torch.fake_quantize_per_tensor_affine(batch, *self.input, 0, 255)
        constants = {}
        for layer in self.network.weighted:
            name, most = layer.weight, limit(self.bits.weights[layer.weight])
            weight = torch._fake_quantize_learnable_per_channel_affine(
                self._weight(name),
                self._step(name),
                torch.zeros(len(self.fixed[f"step {name}"])),
                0,
                -most,
                most,
            )
            constants[name] = output_first(layer, weight)
            constants[layer.bias] = self._bias(name)

        def quantize(name: str, values: torch.Tensor) -> torch.Tensor:
            return torch._fake_quantize_learnable_per_tensor_affine(
                values, self._step(name), self.fixed[f"zero {name}"], 0, self.levels[name]
            )

        return _walk(self.network, batch, constants, quantize)

    @torch.no_grad()
    def rounded(self) -> Parameters:
        """What was learned, on its grids."""
        scales, integers, weights = {}, {}, {}
        for layer in self.network.weighted:
            name, most = layer.weight, limit(self.bits.weights[layer.weight])
            scale, weight = self._step(name), self._weight(name)
            step = scale.reshape(-1, *[1] * (weight.ndim - 1))
            whole = (weight / step).round().clamp(-most, most)
            scales[name], integers[name] = scale.numpy(), whole.numpy().astype(np.int8)
            on_grid = (whole * step).numpy().astype(np.float64)
            weights[name] = output_first(layer, on_grid)
            weights[layer.bias] = self._bias(name).numpy().astype(np.float64)
        activations = dict(self.start.activations)
        for name, levels in self.levels.items():
            distance, zero = float(self._step(name)), float(self.fixed[f"zero {name}"])
            activations[name] = (-zero * distance, (levels - zero) * distance)
        learned = self.network.with_weights(weights)
        return Parameters(self.start.exact, learned, activations, scales, integers)


def augmented(images: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    """Shift and mirror images, uint8 (n, 32, 32, 3), at random; an edge is repeated beyond it."""
    margin = (SHIFT, SHIFT)
    padded = np.pad(images, ((0, 0), margin, margin, (0, 0)), "edge")
    size = images.shape[1]
    out = np.empty_like(images)
    places = random.integers(0, 2 * SHIFT + 1, (len(images), 2))
    mirrored = random.integers(0, 2, len(images))
    for i, (y, x) in enumerate(places):
        image = padded[i, y : y + size, x : x + size]
        out[i] = image[:, ::-1] if mirrored[i] else image
    return out


def _walk(
    network: Network,
    batch: torch.Tensor,
    constants: Mapping[str, torch.Tensor],
    quantize: Callable[[str, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """The scores of a batch; every map passes through `quantize`."""
    # Images have their channels last, and so have all maps that are computed from them.
    planes = {network.planes: batch.permute(0, 3, 1, 2)}

    def quantized(layer: Layer, inputs: list[torch.Tensor]) -> torch.Tensor:
        y = compute(layer, inputs, constants)
        return y if isinstance(layer, Dense) else quantize(layer.output, y)

    scores: torch.Tensor = network.walk(planes, quantized)[network.dense.output]
    return scores


def _teacher(network: Network) -> Callable[[torch.Tensor], torch.Tensor]:
    constants = {name: torch.from_numpy(v.copy()) for name, v in network.constants().items()}
    return lambda batch: _walk(network, batch, constants, lambda _, values: values)


@torch.no_grad()
def _scores(model: Callable[[torch.Tensor], torch.Tensor], images: Feed) -> NDArray[np.float32]:
    return np.concatenate([model(torch.from_numpy(batch)).numpy() for batch in batches(images)])


def _begin(parameters: Parameters, bits: Bits) -> tuple[Student, torch.optim.Adam]:
    student = Student(parameters, bits)
    return student, torch.optim.Adam(
        {"params": [values], "share": student.share(name)}
        for name, values in student.learned.items()
    )


def _decided_by(
    parameters: Parameters, bits: Bits, images: Labelled, validating: Feed, course: Course
) -> str:
    """A name made of all that decides a checkpoint; of the code, only what trains counts."""
    how = [validating.preprocessing.describe(), parameters.activations, torch.__version__]
    total = hashlib.sha256(json.dumps([*how, asdict(bits), asdict(course)]).encode())
    arrays: list[NDArray[Any]] = [images.labels, images.images.pixels, validating.pixels]
    for kind in (parameters.integers, parameters.scales):
        arrays += kind.values()
    for model in (parameters.exact, parameters.rounded):
        arrays += model.weights().values()
    for array in arrays:
        total.update(array.tobytes())
    for module in (__file__, bits_module.__file__):
        total.update(Path(module).read_bytes())
    return total.hexdigest()[:20]


def _keep(
    place: Path,
    student: Student,
    optimizer: torch.optim.Adam,
    history: list[dict[str, float]],
) -> None:
    arrays: dict[str, Any] = {"history": json.dumps(history)}
    for name, values in student.learned.items():
        kept = {"value": values.detach(), **optimizer.state[values]}
        arrays |= {f"{kind} {name}": tensor.numpy() for kind, tensor in kept.items()}
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name("partial.npz")
    np.savez(partial, **arrays)
    partial.replace(place)


def _resume(place: Path, student: Student, optimizer: torch.optim.Adam) -> list[dict[str, float]]:
    """What was seen until the last whole epoch; the file's own sums tell if it is whole."""
    try:
        with place.open("rb") as stream, np.load(stream) as kept:
            arrays: Mapping[str, Any] = dict(kept)
    except (OSError, ValueError, EOFError, BadZipFile):
        return []
    for name, values in student.learned.items():
        values.data = torch.from_numpy(arrays[f"value {name}"])
        optimizer.state[values] = {
            kind: torch.from_numpy(arrays[f"{kind} {name}"])
            for kind in ("step", "exp_avg", "exp_avg_sq")
        }
    return json.loads(str(arrays["history"]))
