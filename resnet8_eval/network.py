"""The folded network, parsed once into typed layers.

Equalization, ranges, rounding, simulation and both writers walk these layers; none of them has a
table of operators of its own. A network that cannot be represented is refused here, in one
sentence, before anything is computed from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from resnet8_eval import onnx_graph
from resnet8_eval.errors import ModelError
from resnet8_eval.onnx_graph import settings

if TYPE_CHECKING:
    import onnx

CLASSES: Final = 10
IMAGE: Final = (3, 32, 32)
_TO_PLANES: Final = [0, 3, 1, 2]
"""NHWC to NCHW."""
_OTHERWISE_CALLED: Final = {
    "Clip": "ReLU6 or another Clip",
    "Gather": "arithmetic on the number of images",
    "LeakyRelu": "LeakyReLU",
    "Mul": "a scale that no convolution is next to",
    "Pad": "a padding that no convolution follows at once, or one that pads by itself",
    "ReduceMean": "an average of another kind",
    "Range": "arithmetic on the number of images",
    "Reshape": "a map that is flattened, but not averaged before",
    "Shape": "arithmetic on the number of images",
    "Softmax": "a softmax that does not give the scores",
    "Sum": "a sum of more than two maps",
    "Transpose": "a map that is flattened, but not averaged before",
}
"""By those who use Keras."""


@dataclass(frozen=True)
class _Layer:
    """`name` is the ONNX node's, `inputs` and `output` are tensors; `output` is the ReLU's."""

    name: str
    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True)
class Convolution(_Layer):
    """A convolution and the ReLU behind it, if there is one.

    Attributes
    ----------
    before_relu
        The tensor between convolution and ReLU; None where no ReLU follows.
    weight, bias
        Names of the constants, OIHW and (O,).
    strides
        Down, across.
    pads
        Top, left, bottom, right.
    """

    before_relu: str | None
    weight: str
    bias: str
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]


@dataclass(frozen=True)
class Addition(_Layer):
    """The sum of two maps and the ReLU behind it, if there is one, as in `Convolution`."""

    before_relu: str | None


@dataclass(frozen=True)
class Pooling(_Layer):
    """The average over a whole map, (N, channels, 1, 1).

    Attributes
    ----------
    flat
        The same values as (N, channels).
    window
        Height and width of the map.
    """

    flat: str
    window: tuple[int, int]

    @property
    def area(self) -> int:
        """How many values of a channel are averaged."""
        return self.window[0] * self.window[1]


@dataclass(frozen=True)
class Dense(_Layer):
    """The last layer: a matrix product whose result is the score.

    `weight` and `bias` name its constants, (in, out) and (out,).
    """

    weight: str
    bias: str


Layer = Convolution | Addition | Pooling | Dense


def output_first(layer: Convolution | Dense, weight: Any) -> Any:
    """A layer's weight with the output channel first, or such a one as the network has it."""
    return weight.T if isinstance(layer, Dense) else weight


@dataclass(frozen=True)
class Network:
    """A network in the order of its execution.

    Attributes
    ----------
    model
        Its ONNX form, with an average over the whole map as GlobalAveragePool: quantizers force an
        AveragePool's output onto its input's scale, and the mean of a mostly zero map would then
        use a fifth of the range.
    layers
        The last is the dense layer.
    input, planes
        The images as NHWC, and transposed to NCHW.
    output
        The graph's output: probabilities, or the dense layer's output where no softmax follows.
    """

    model: onnx.ModelProto
    layers: tuple[Layer, ...]
    input: str
    planes: str
    output: str

    @property
    def weighted(self) -> list[Convolution | Dense]:
        """The layers that have weights, in order."""
        return [layer for layer in self.layers if isinstance(layer, Convolution | Dense)]

    @property
    def maps(self) -> list[Convolution | Addition | Pooling]:
        """The layers that compute feature maps; each output has a grid of its own."""
        return [layer for layer in self.layers if not isinstance(layer, Dense)]

    @property
    def dense(self) -> Dense:
        """The last layer."""
        return next(layer for layer in self.layers if isinstance(layer, Dense))

    @property
    def softmax(self) -> bool:
        """Whether the output is probabilities."""
        return self.output != self.dense.output

    @property
    def moved(self) -> dict[str, str]:
        """Tensors that hold the values of another in another shape, and that other."""
        flat = {layer.flat: layer.output for layer in self.layers if isinstance(layer, Pooling)}
        return {self.planes: self.input, **flat}

    def walk(
        self,
        values: dict[str, Any],
        compute: Callable[[Layer, list[Any]], Any],
        flat: Callable[[Any], Any] = lambda pooled: pooled.reshape(len(pooled), -1),
        first: int = 0,
    ) -> dict[str, Any]:
        """Compute the layers in order; return every tensor by name.

        Parameters
        ----------
        values
            The planes, and the outputs of layers before `first`. The others are put there.
        compute
            A layer's output, from its inputs.
        flat
            A pooled map as (N, channels).
        first
            Place of the first layer to compute.
        """
        for layer in self.layers[first:]:
            values[layer.output] = compute(layer, [values[name] for name in layer.inputs])
            if isinstance(layer, Pooling):
                values[layer.flat] = flat(values[layer.output])
        return values

    def constants(self) -> dict[str, NDArray[Any]]:
        """Every constant by name."""
        return onnx_graph.constants(self.model.graph)

    def weights(self) -> dict[str, NDArray[np.float64]]:
        """Weights and biases of the layers by name, in float64."""
        constants = self.constants()
        names = [name for layer in self.weighted for name in (layer.weight, layer.bias)]
        return {name: constants[name].astype(np.float64) for name in names}

    def with_weights(self, weights: Mapping[str, NDArray[np.float64]]) -> Network:
        """The same network with other weights, stored as float32; those not named stay."""
        import onnx
        from onnx import numpy_helper

        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for entry in model.graph.initializer:
            if entry.name in weights:
                array = np.ascontiguousarray(weights[entry.name], dtype=np.float32)
                entry.CopyFrom(numpy_helper.from_array(array, entry.name))
        return replace(self, model=model)

    def save(self, path: Path) -> None:
        """Write its ONNX form."""
        import onnx

        onnx.save(self.model, path)


def read(path: Path, name: str | None = None) -> Network:
    """Parse the file of a folded float32 model as :func:`parse`; its name is the file's if none."""
    import onnx

    return parse(onnx.load(path), name or path.name)


def parse(model: onnx.ModelProto, name: str = "The model") -> Network:
    """Parse a folded float32 network.

    It is a graph of Transpose, Conv, Relu, Add, AveragePool or GlobalAveragePool, Reshape, Gemm and
    Softmax, as :func:`resnet8_eval.convert.fold.fold` writes it, and is not changed. ModelError,
    with the `name` that the user calls it by, if it has a part that cannot be represented.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    try:
        return _Parser(copy).network()
    except _PartError as error:
        raise ModelError(
            f"{name} is a network that this suite cannot quantize.",
            expected="convolutions, each with ReLU or none, additions of two maps, one average over"
            " the whole last map, and one dense layer with ten outputs",
            given=str(error),
            next_step="change that part of the network; docs/own-models.md says what is accepted",
        ) from None


class _PartError(Exception):
    pass


class _Parser:
    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._graph = model.graph
        self._constants = onnx_graph.constants(model.graph)
        self._shapes = onnx_graph.shapes(model)
        self._readers = onnx_graph.readers(model.graph)
        (self._input,) = (value.name for value in model.graph.input)
        (self._output,) = (value.name for value in model.graph.output)
        self._known: set[str] = set()
        """Maps that a layer may read: the image's planes and the outputs of layers."""
        self._planes = ""

    def network(self) -> Network:
        layers: list[Layer] = []
        for node in self._graph.node:
            match node.op_type:
                case "Transpose" if not self._planes:
                    self._planes = self._transpose(node)
                case "Conv":
                    layers.append(self._convolution(node))
                case "Add":
                    layers.append(self._addition(node))
                case "AveragePool" | "GlobalAveragePool":
                    layers.append(self._pooling(node))
                case "Gemm":
                    layers.append(self._dense(node, layers))
                case "Softmax" if self._is_last(node, layers):
                    pass
                case "Relu" | "Reshape" if node.output[0] in self._known:
                    pass  # part of the layer before
                case other:
                    said = _OTHERWISE_CALLED.get(other, other)
                    raise _PartError(f"{said} ({node.name or node.output[0]})")
        if not layers or not isinstance(layers[-1], Dense):
            raise _PartError("no dense layer at the end")
        if self._shapes.get(self._output, ())[1:] != (CLASSES,):
            raise _PartError(f"an output of shape {self._said(self._output)}")
        return Network(self._model, tuple(layers), self._input, self._planes, self._output)

    def _transpose(self, node: onnx.NodeProto) -> str:
        perm = settings(node).get("perm", [])
        if node.input[0] != self._input or perm != _TO_PLANES:
            raise _PartError(f"a transposition by {perm}")
        if self._shapes[node.output[0]][1:] != IMAGE:
            raise _PartError(f"images of shape {self._said(self._input)}")
        self._known.add(node.output[0])
        return node.output[0]

    def _convolution(self, node: onnx.NodeProto) -> Convolution:
        self._demand_maps(node, node.input[:1])
        self._demand_constants(node)
        given = settings(node)
        if given.get("group", 1) != 1:
            raise _PartError(f"a convolution in {given['group']} groups ({node.name})")
        if any(size != 1 for size in given.get("dilations", ())):
            raise _PartError(f"a dilated convolution ({node.name})")
        if given.get("auto_pad", b"NOTSET") != b"NOTSET":
            raise _PartError(f"a convolution whose padding is not written ({node.name})")
        taken, channels = self._constants[node.input[1]].shape[1], self._shapes[node.input[0]][1]
        if taken != channels:
            raise _PartError(f"a kernel for {taken} channels on a map of {channels} ({node.name})")
        down, across = given.get("strides", (1, 1))
        top, left, bottom, right = given.get("pads", (0, 0, 0, 0))
        output, before_relu = self._with_relu(node)
        return Convolution(
            node.name,
            (node.input[0],),
            output,
            before_relu,
            node.input[1],
            node.input[2],
            (down, across),
            (top, left, bottom, right),
        )

    def _addition(self, node: onnx.NodeProto) -> Addition:
        self._demand_maps(node, node.input)
        left, right = node.input
        if self._planes in node.input:
            raise _PartError(f"an addition to the image itself ({node.name})")
        if self._shapes[left] != self._shapes[right]:
            raise _PartError(
                f"an addition of {self._said(left)} and {self._said(right)} ({node.name})"
            )
        return Addition(node.name, (left, right), *self._with_relu(node))

    def _pooling(self, node: onnx.NodeProto) -> Pooling:
        self._demand_maps(node, node.input)
        height, width = whole = self._shapes[node.input[0]][2:]
        window = tuple(settings(node).get("kernel_shape", whole))
        if any(settings(node).get("pads", ())):
            raise _PartError(f"an average that pads its map ({node.name})")
        if window != whole:
            raise _PartError(
                f"an average over {_times(window)} of a map of {_times(whole)} ({node.name})"
            )
        readers = self._readers[node.output[0]]
        channels = self._shapes[node.input[0]][1]
        flat = [n.output[0] for n in readers if self._shapes[n.output[0]][1:] == (channels,)]
        if [reader.op_type for reader in readers] != ["Reshape"] or not flat:
            raise _PartError(f"an average that is not flattened ({node.name})")
        node.op_type = "GlobalAveragePool"
        del node.attribute[:]
        self._known.add(flat[0])
        return Pooling(node.name, (node.input[0],), node.output[0], flat[0], (height, width))

    def _dense(self, node: onnx.NodeProto, before: Iterable[Layer]) -> Dense:
        self._demand_constants(node)
        given = settings(node)
        plain = {"transA": 0, "transB": 0, "alpha": 1.0, "beta": 1.0}
        if any(given.get(name, value) != value for name, value in plain.items()):
            raise _PartError(f"a transposed or scaled matrix product ({node.name})")
        weight, bias = (self._constants[name].shape for name in node.input[1:])
        if bias != weight[1:]:
            raise _PartError(f"a bias of shape {bias} for {weight[1]} outputs ({node.name})")
        flattened = {layer.flat for layer in before if isinstance(layer, Pooling)}
        readers = self._readers[node.output[0]]
        if any(isinstance(layer, Dense) for layer in before) or any(
            reader.op_type != "Softmax" for reader in readers
        ):
            raise _PartError(f"more than one dense layer, or one with an activation ({node.name})")
        if node.input[0] not in flattened:
            raise _PartError(f"a dense layer on a map that is not averaged ({node.name})")
        return Dense(node.name, (node.input[0],), node.output[0], node.input[1], node.input[2])

    def _is_last(self, node: onnx.NodeProto, before: list[Layer]) -> bool:
        dense = before[-1] if before else None
        return (
            isinstance(dense, Dense)
            and node.input[0] == dense.output
            and node.output[0] == self._output
            and settings(node).get("axis", -1) in (-1, 1)
        )

    def _with_relu(self, node: onnx.NodeProto) -> tuple[str, str | None]:
        """The output of a node, past its ReLU, and the tensor between them."""
        name = node.output[0]
        readers = self._readers[name]
        if any(reader.op_type == "Relu" for reader in readers):
            if len(readers) > 1:
                raise _PartError(f"a map that is read both before and after its ReLU ({node.name})")
            self._known.add(readers[0].output[0])
            return readers[0].output[0], name
        self._known.add(name)
        return name, None

    def _demand_maps(self, node: onnx.NodeProto, names: Iterable[str]) -> None:
        for name in names:
            if name not in self._known:
                what = "a constant" if name in self._constants else name
                raise _PartError(f"{node.op_type} of {what} ({node.name})")

    def _demand_constants(self, node: onnx.NodeProto) -> None:
        """Weight and bias have to be there, and finite."""
        if len(node.input) != 3 or not all(n in self._constants for n in node.input[1:]):
            raise _PartError(f"{node.op_type} without constant weights ({node.name})")
        values = [self._constants[name] for name in node.input[1:]]
        if not all(np.isfinite(value).all() for value in values):
            raise _PartError(f"weights that are NaN or infinite ({node.name})")

    def _said(self, name: str) -> str:
        return f"({', '.join(str(size or 'N') for size in self._shapes.get(name, ()))})"


def _times(sizes: Iterable[int]) -> str:
    return "×".join(map(str, sizes))
