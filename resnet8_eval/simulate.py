"""The quantized network in simulated arithmetic: any number of bits, in any choice of layers.

Every tensor is float32 and lies on its grid: rounded, clipped, and scaled back after each layer.
It computes what the reference executions do, so that one function serves the accuracy map, the
sensitivity of single layers, and the choice of recipes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch.nn import functional

from resnet8_eval.calibrate.parameters import Parameters, grid
from resnet8_eval.network import Addition, Convolution, Dense, Layer, Network, Pooling
from resnet8_eval.preprocess import Images, Scores, batches


class Simulation:
    """A network whose layers can be quantized one by one.

    `levels` is the largest integer of an activation's grid, 255 for 8 bits, or that of each map, by
    name; a map without one is left in float. The input keeps its 8 bits, and is quantized with the
    first layer.
    """

    def __init__(self, parameters: Parameters, levels: int | Mapping[str, int] = 255) -> None:
        self._network = parameters.exact
        self._float, self._rounded = _constants(parameters.exact), _constants(parameters.rounded)
        if not isinstance(levels, Mapping):
            levels = dict.fromkeys((layer.output for layer in self._network.maps), levels)
        self._grids = {
            name: (*grid(*parameters.activations[name], most), most)
            for name, most in levels.items()
        }
        self._input = grid(*parameters.activations[self._network.input])
        self.layers = [layer.name for layer in self._network.weighted]
        self._score = self._network.dense.output
        self._owner = owners(self._network)

    def logits(self, images: Images, layers: Collection[str] | None = None) -> Scores:
        """The scores before softmax.

        Parameters
        ----------
        layers
            Names of the layers (:attr:`layers`) to quantize, weights and outputs; by default all.
            The sum that a layer's output enters, and the pooled map, count with the layer before.
        """
        chosen = set(self.layers if layers is None else layers)
        with torch.inference_mode():
            parts = [
                self._run(torch.from_numpy(batch), chosen)[self._score] for batch in batches(images)
            ]
            return torch.cat(parts).numpy()

    def logits_by_layer(
        self, images: Images, layers: Collection[str]
    ) -> tuple[Scores, dict[str, Scores]]:
        """The scores before softmax, and those with one layer changed, by the layer's name.

        What comes before the changed layer is computed once for all. A changed layer is left in
        float if it is one of those to quantize (`layers`), and quantized if not.
        """
        chosen = set(layers)
        first = {layer.name: place for place, layer in enumerate(self._network.layers)}
        unchanged: list[torch.Tensor] = []
        changed: dict[str, list[torch.Tensor]] = {name: [] for name in self.layers}
        with torch.inference_mode():
            for batch in batches(images):
                values = self._run(torch.from_numpy(batch), chosen)
                unchanged.append(values[self._score])
                for name, parts in changed.items():
                    images_again = values[self._network.input]
                    rest = self._run(images_again, chosen ^ {name}, values, first[name])
                    parts.append(rest[self._score])
            return torch.cat(unchanged).numpy(), {
                name: torch.cat(parts).numpy() for name, parts in changed.items()
            }

    def _run(
        self,
        images: torch.Tensor,
        chosen: set[str],
        known: Mapping[str, torch.Tensor] = {},
        first: int = 0,
    ) -> dict[str, torch.Tensor]:
        """Every tensor; those of the layers before `first` are known."""
        network = self._network
        planes = images.permute(0, 3, 1, 2)
        if self.layers[0] in chosen:  # changes nothing where the integers are the pixels
            planes = torch.fake_quantize_per_tensor_affine(planes, *self._input, 0, 255)
        values = {**known, network.input: images, network.planes: planes}

        def quantized(layer: Layer, inputs: list[torch.Tensor]) -> torch.Tensor:
            y = compute(layer, inputs, self._rounded if layer.name in chosen else self._float)
            if layer.output in self._grids and self._owner[layer.output] in chosen:
                return _snapped(y, *self._grids[layer.output])
            return y

        return network.walk(values, quantized, first=first)


def _snapped(y: torch.Tensor, scale: float, zero_point: int, levels: int) -> torch.Tensor:
    """`y` on its grid, in place; PyTorch's own function is slower, as it keeps a mask."""
    y.mul_(1 / torch.tensor(scale)).round_().clamp_(-zero_point, levels - zero_point)
    return y.mul_(scale)


def _constants(network: Network) -> dict[str, torch.Tensor]:
    """Weights and biases; a convolution's weight in the layout of its input, channels last."""
    tensors = {n: torch.from_numpy(array.copy()) for n, array in network.constants().items()}
    return {
        name: tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
        for name, tensor in tensors.items()
    }


def owners(network: Network) -> dict[str, str]:
    """Each tensor's layer: the weighted one that last shaped it."""
    weighted = [layer.name for layer in network.weighted]
    owner: dict[str, str] = {}
    for layer in network.layers:
        if layer.name in weighted:
            owner[layer.output] = layer.name
        else:
            owner[layer.output] = max((owner[name] for name in layer.inputs), key=weighted.index)
    return owner


def compute(
    layer: Layer, inputs: list[torch.Tensor], constants: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """One layer in float32, from its inputs, weights and biases by name."""
    x = inputs[0]
    match layer:
        case Convolution():
            top, left, bottom, right = layer.pads
            weight, bias = constants[layer.weight], constants[layer.bias]
            even = (top, left) == (bottom, right)
            padded = x if even else functional.pad(x, (left, right, top, bottom))
            y = functional.conv2d(padded, weight, bias, layer.strides, (top, left) if even else 0)
        case Addition():
            y = x + inputs[1]
        case Pooling():
            return x.mean(dim=(2, 3), keepdim=True)
        case Dense():
            return x @ constants[layer.weight] + constants[layer.bias]
    return y.relu_() if layer.before_relu else y
