"""PyTorch's quantized models: made alike twice, counted for what they are, and what torch says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from resnet8_eval import backends, configurations, making, proof, study
from resnet8_eval.backends import torch as torch_backend
from resnet8_eval.backends import torch_network, torchscript
from resnet8_eval.calibrate.parameters import Parameters
from resnet8_eval.checks import failed
from resnet8_eval.cifar10 import Split
from resnet8_eval.convert import onnx_to_torch
from resnet8_eval.errors import StageError
from resnet8_eval.inputs import Inputs
from resnet8_eval.network import Network
from resnet8_eval.pipeline import Pipeline
from resnet8_eval.store import file_sha256

ROWS = configurations.calibrated("torch")
NAMES = [row.name for row in ROWS]
KERNELS, REFERENCE = "torch-int8-tuned", "torch-uint8-tuned"


@pytest.fixture(autouse=True)
def _engine_as_it_was() -> Iterator[None]:
    before = torch.backends.quantized.engine
    yield
    torch.backends.quantized.engine = before


def stored(pipeline: Pipeline, name: str) -> Path:
    return pipeline.artifact(f"model/{name}").path("model.pt")


def test_models_made_twice_are_the_same_to_the_byte(pipeline: Pipeline, tmp_path: Path) -> None:
    """Whichever the process made before: TorchScript numbers the classes that it has seen.

    The pipeline's were made in another process, and in another order.
    """
    for row in [*ROWS[::-1], *ROWS]:
        parameters = Parameters.load(pipeline.artifact(f"parameters/{row.quantized_by.key}").folder)
        torch_backend.write(parameters, row, tmp_path / "model.pt")
        assert file_sha256(tmp_path / "model.pt") == file_sha256(stored(pipeline, row.name))


def test_a_model_says_nothing_of_the_machine_that_made_it(pipeline: Pipeline) -> None:
    package = str(Path(backends.__file__).parents[2])
    for name in NAMES:
        assert package.encode() not in stored(pipeline, name).read_bytes()


def test_the_census_of_integer_kernels(pipeline: Pipeline) -> None:
    found = torch_backend.census(stored(pipeline, KERNELS))
    counts = found["quantized_ops"]
    assert counts["conv2d"] + counts["conv2d_relu"] == 9
    assert counts["qlinear_pointwise"] == 1
    assert counts.get("add", 0) + counts.get("add_relu", 0) == 3
    assert counts["avg_pool2d"] == 1
    assert found["float_ops"] == {"softmax": 1}
    assert list(found["weights"].values()) == ["int8"] * 10
    assert found["activations"] == ["uint8"]


def test_the_census_of_reference_arithmetic(pipeline: Pipeline) -> None:
    found = torch_backend.census(stored(pipeline, REFERENCE))
    assert found["quantized_ops"] == {"_convolution": 9, "add": 3, "avg_pool2d": 1, "linear": 1}
    assert found["float_ops"] == {"softmax": 1}
    assert list(found["weights"].values()) == ["uint8"] * 10
    assert found["activations"] == ["uint8"]


def test_the_census_of_a_float_model(pipeline: Pipeline, tmp_path: Path) -> None:
    module = onnx_to_torch.convert(pipeline.artifact("folded").path("folded.onnx"))
    torchscript.save(module, tmp_path / "model.pt")
    found = torch_backend.census(tmp_path / "model.pt")
    assert found["quantized_ops"] == {}
    assert sum(found["float_ops"].values()) == 15
    assert set(found["weights"].values()) == {"float32"}
    assert found["activations"] == []


class FloatLayer(torch.nn.Module):
    """A quantized convolution's double that computes in float and only quantizes its result."""

    def __init__(self, honest: Any) -> None:
        super().__init__()
        self.honest_padding, self.stride = honest.pad, honest.stride
        self.relu, self.out = honest.relu, honest.out
        self.weight = torch.nn.Parameter(honest.weight.dequantize(), requires_grad=False)
        self.bias = torch.nn.Parameter(honest.bias, requires_grad=False)
        self.padding = honest.padding

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.conv2d(
            self.honest_padding(x.dequantize()), self.weight, self.bias, self.stride, self.padding
        )
        scale, zero_point = self.out
        return torch.quantize_per_tensor(
            y.relu() if self.relu else y, scale, zero_point, torch.quint8
        )


def in_float(network: Any, name: str) -> None:
    network.layers[name] = FloatLayer(network.layers[name])


def float_storage(network: Any, name: str) -> None:
    """Stored in float, and used as it is."""
    network.layers[name].weight = network.layers[name].weight.dequantize()


def float_result(network: Any, name: str) -> None:
    """The result is not quantized, and the next layer dequantizes it all the same."""
    layer = network.layers[name]
    honest = layer.forward
    layer.forward = lambda x: honest(x).dequantize()


@pytest.mark.parametrize("name", [row.name for row in configurations.calibrated()])
def test_one_network_has_the_same_number_of_operators_in_every_census(
    pipeline: Pipeline, name: str
) -> None:
    record = pipeline.artifact(f"model/{name}").record
    counts = [sum(record[key].values()) for key in ("quantized_ops", "float_ops")]
    assert counts == [14, 1]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("place", [1, -1])
def test_a_layer_that_the_recipe_leaves_in_float_is_in_float(
    pipeline: Pipeline, tmp_path: Path, row: configurations.Configuration, place: int
) -> None:
    parameters = Parameters.load(pipeline.artifact("parameters/tuned").folder)
    layer = parameters.exact.weighted[place]
    weights, exact = parameters.rounded.weights(), parameters.exact.weights()
    kept = {name: exact[name] for name in (layer.weight, layer.bias)}
    parameters = replace(
        parameters,
        rounded=parameters.rounded.with_weights(weights | kept),
        scales={name: s for name, s in parameters.scales.items() if name != layer.weight},
    )
    found = torch_backend.write(parameters, row, tmp_path / "model.pt")
    (called,) = (name for name in found["weights"] if name.endswith(f"_{layer.name}"))
    assert found["weights"][called] == "float32"
    assert found["convolutions"] == ([8, 1] if place == 1 else [9, 0])
    assert found["products"] == ([1, 0] if place == 1 else [0, 1])
    stored_tensors = torch_backend.read_back(tmp_path / "model.pt", parameters.rounded)
    assert not failed(proof.compare(stored_tensors, parameters, row))


# --- names of layers -----------------------------------------------------------------------------


def renamed(pipeline: Pipeline, names: dict[int, str]) -> Parameters:
    """The stand-in's parameters, some of its layers with weights called otherwise."""
    parameters = Parameters.load(pipeline.artifact("parameters/tuned").folder)
    weighted = parameters.rounded.weighted
    others = {weighted[place].name: name for place, name in names.items()}

    def called(network: Network) -> Network:
        layers = [replace(y, name=others.get(y.name, y.name)) for y in network.layers]
        return replace(network, layers=tuple(layers))

    return replace(parameters, exact=called(parameters.exact), rounded=called(parameters.rounded))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_layers_may_have_any_names(
    pipeline: Pipeline, tmp_path: Path, row: configurations.Configuration
) -> None:
    """Names decide no number, nor what a file is read back as."""
    some = ["block.1", "block_1", "block_1", "", "forward", "class", 'große "1"\\', "n00_x", "1²"]
    found = []
    for names in ({}, dict(enumerate(some))):
        parameters = renamed(pipeline, names)
        torch_backend.write(parameters, row, tmp_path / "model.pt")
        stored = torch_backend.read_back(tmp_path / "model.pt", parameters.rounded)
        assert not failed(proof.compare(stored, parameters, row))
        images = np.load(pipeline.artifact("calibration").path("images.npy"))[:20]
        scores = backends.scores(tmp_path / "model.pt", images, threads=1)
        found.append((backends.integers_sha256(stored), scores.tobytes()))
    assert found[0] == found[1]
    assert list(torch_backend.census(tmp_path / "model.pt")["weights"])[1] == "n01_block_1"


@pytest.fixture
def mistaken(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Parameters:
    """Parameters of two layers that PyTorch is given under one name: one has both's weights."""
    for module in (torch_backend, torch_network):
        monkeypatch.setattr(module, "module_name", lambda _, name: name.replace(".", "_"))
    return renamed(pipeline, {1: "block.1", 2: "block_1"})


def test_a_model_that_holds_other_weights_is_found_where_it_is_made(
    pipeline: Pipeline, tmp_path: Path, mistaken: Parameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands hand out a model without its proof."""
    row = configurations.of(KERNELS)
    monkeypatch.setattr(Inputs, "parameters", lambda *_: mistaken)
    record = making.model(Inputs(pipeline.settings, {}, 1, tmp_path), row=row)
    (wrong, *_) = failed(record["checks"])
    assert wrong.name == "stored scales, zero points and integers of weights"
    assert "wrong: " + mistaken.rounded.weighted[1].weight in wrong.observed


def test_a_model_that_holds_other_weights_is_not_measured_in_a_study(
    tmp_path: Path, mistaken: Parameters
) -> None:
    with pytest.raises(StageError, match="does not hold what was decided: stored scales"):
        study._write(mistaken, configurations.of(KERNELS), tmp_path / "model.pt")


@pytest.fixture
def network(pipeline: Pipeline) -> Any:
    """The reference network, to plant faults in."""
    parameters = Parameters.load(pipeline.artifact("parameters/tuned").folder)
    return torch_backend._network(parameters, configurations.of(REFERENCE))


def census(network: Any, folder: Path) -> dict[str, Any]:
    with torchscript.deprecations_ignored():
        torchscript.save(network, folder / "model.pt")
    return torch_backend.census(folder / "model.pt")


@pytest.mark.parametrize("position", [0, 8])
@pytest.mark.parametrize(("plant", "left"), [(in_float, 1), (float_storage, 1)])
def test_one_layer_with_float_weights_is_counted(
    tmp_path: Path, network: Any, plant: Callable[[Any, str], None], left: int, position: int
) -> None:
    plant(network, list(network.layers)[position])
    found = census(network, tmp_path)
    assert sum(found["float_ops"].values()) == left + 1  # the softmax
    assert sorted(found["weights"].values()) == ["float32"] + ["uint8"] * 9


def test_one_layer_whose_input_was_never_quantized_is_counted(tmp_path: Path, network: Any) -> None:
    float_result(network, next(iter(network.layers)))
    found = census(network, tmp_path)
    assert found["float_ops"]["_convolution"] >= 1


@pytest.mark.parametrize("operator", ["add", "avg_pool2d"])
def test_an_operator_without_weights_that_reads_float_is_counted(
    tmp_path: Path, network: Any, operator: str
) -> None:
    method = {"add": "_add", "avg_pool2d": "_pool"}[operator]
    honest = getattr(network, method)
    setattr(network, method, lambda layer, x, *others: honest(layer, x.dequantize().abs(), *others))
    assert census(network, tmp_path)["float_ops"][operator] >= 1


# --- engines -------------------------------------------------------------------------------------


def test_no_engine_of_this_torch_takes_unsigned_weights_and_each_says_why() -> None:
    found = torch_backend.unsigned_kernel_support()
    engines = {name for name in torch.backends.quantized.supported_engines if name != "none"}
    assert found["unsigned_weights"] is False
    assert set(found["said"]) == engines
    for words in found["said"].values():
        assert len(words.split()) > 3
        assert words != "accepted"


def test_an_engine_that_accepts_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Accepting:
        conv2d_prepack = staticmethod(lambda *_: None)
        conv2d = staticmethod(lambda *_: None)

    monkeypatch.setattr(torch.ops, "quantized", Accepting)
    assert torch_backend.unsigned_kernel_support()["unsigned_weights"] is True


def test_asking_leaves_the_engine_that_this_suite_uses() -> None:
    torch_backend.unsigned_kernel_support()
    assert torch.backends.quantized.engine == torchscript.engine()


@pytest.mark.parametrize(
    ("machine", "engine"),
    [("x86_64", "x86"), ("AMD64", "x86"), ("aarch64", "qnnpack"), ("arm64", "qnnpack")],
)
def test_the_engine_is_the_processors(
    monkeypatch: pytest.MonkeyPatch, machine: str, engine: str
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert torchscript.engine() == engine


def test_a_model_runs_on_the_kernels_of_another_processor(
    pipeline: Pipeline, standin_test: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QNNPACK is in torch for x86 as well; it rounds additions otherwise."""
    monkeypatch.setattr(torchscript, "engine", lambda: "qnnpack")
    scores = backends.scores(stored(pipeline, KERNELS), standin_test.images, threads=1)
    here = np.load(pipeline.artifact(f"scores/{KERNELS}").path("scores.npy"))
    assert 0 < (scores.argmax(1) != here.argmax(1)).sum() < 0.1 * len(here)


@pytest.mark.parametrize("engine", ["fbgemm", "onednn", "x86", "qnnpack"])
def test_scores_do_not_depend_on_the_engine_that_was_set_before(
    pipeline: Pipeline, standin_test: Split, engine: str
) -> None:
    if engine not in torch.backends.quantized.supported_engines:
        pytest.skip(f"this torch has no {engine}")
    torch.backends.quantized.engine = engine
    found = backends.scores(stored(pipeline, KERNELS), standin_test.images[:300], threads=1)
    recorded = np.load(pipeline.artifact(f"scores/{KERNELS}").path("scores.npy"))[:300]
    assert np.array_equal(found, recorded)


ELSEWHERE = """
import json, sys
from pathlib import Path
import numpy as np
import torch
from resnet8_eval import backends, configurations
from resnet8_eval.backends.torch import write
from resnet8_eval.calibrate.parameters import Parameters
from resnet8_eval.cifar10 import read_split

parameters, dataset = map(Path, sys.argv[1:])
path = Path("model.pt")
write(Parameters.load(parameters), configurations.of("torch-int8-tuned"), path)
test = read_split(dataset, "test")
scores = backends.scores(path, test.images, threads=1)
correct = int((scores.argmax(1) == test.labels).sum())

torch.manual_seed(0)
layers = [torch.nn.Flatten(), torch.nn.Linear(3072, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)]
module = torch.nn.Sequential(*layers).eval()
torch.jit.save(torch.jit.trace(module, torch.rand(2, 32, 32, 3)), path)
images = np.random.default_rng(0).integers(0, 256, (400, 32, 32, 3), dtype=np.uint8)
expected = backends.run(backends.open_runtime(path, 1), images)
found = [backends.scores(path, images, threads=2) for _ in range(3)]
print(json.dumps([correct, [int((scores != expected).any(axis=1).sum()) for scores in found]]))
"""


@pytest.fixture(scope="module")
def elsewhere(
    pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, list[int]]:
    """What a process finds in which oneDNN may use no VNNI, and OpenMP is told eight threads.

    Images that are right; and those whose scores differ where batches are computed at once, by run.
    oneDNN is told by its former variable, which is the easier one to overlook.
    """
    arguments = [pipeline.artifact("parameters/tuned").folder, pipeline.settings.assets.dataset]
    done = subprocess.run(  # noqa: S603 (our own words)
        [sys.executable, "-W", "ignore", "-c", ELSEWHERE, *map(str, arguments)],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        env={**os.environ, "DNNL_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "8"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    correct, differing = json.loads(done.stdout.splitlines()[-1])
    return correct, differing


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="oneDNN saturates on x86 alone")
def test_without_vnni_the_model_stays_within_one_point_of_float(
    pipeline: Pipeline, elsewhere: tuple[int, list[int]]
) -> None:
    record = pipeline.artifact("scores/keras-float32").record
    assert configurations.TUNED.weight_limit == 63
    assert abs(elsewhere[0] - record["correct"]) <= record["total"] / 100


def test_each_batch_is_computed_in_one_thread_whatever_openmp_is_told(
    elsewhere: tuple[int, list[int]],
) -> None:
    """OpenMP counts for each calling thread: a new one had all cores, and gave other last bits."""
    assert elsewhere[1] == [0, 0, 0]
