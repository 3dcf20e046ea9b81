"""A user's own models: each is carried through, or refused in one sentence that says why."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.external_data_helper import set_external_data
from typer.testing import CliRunner, Result

from resnet8_eval import backends, cli, errors, hints
from resnet8_eval.backends import torchscript
from resnet8_eval.convert import (
    flat,
    keras2,
    keras_file,
    keras_size,
    keras_to_onnx,
    onnx_file,
    pixels,
)
from resnet8_eval.pipeline import Pipeline
from tests import small_network
from tests.unit.test_keras_file import STANDIN

Run = Callable[..., Result]
COUNT = ("--calibration-count", "50")
FUZZ_EXAMPLES = int(os.environ.get("RESNET8_EVAL_FUZZ_EXAMPLES", "300"))
"""For a long run: RESNET8_EVAL_FUZZ_EXAMPLES=10000 pytest tests/faults/test_own_models.py"""


@pytest.fixture
def run(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_here: None
) -> Run:
    """Run a command on the stand-in, with `out` as the folder to write to."""
    monkeypatch.setenv("RESNET8_EVAL_CACHE", str(pipeline.settings.cache_dir))
    monkeypatch.setenv("RESNET8_EVAL_OFFLINE", "1")
    monkeypatch.setattr(hints, "IMAGES", 20)
    monkeypatch.setenv("COLUMNS", "400")  # one line to a message

    def run(command: str, *models: Path) -> Result:
        words = {
            "convert": ["-o", tmp_path / "out", "--to", "onnx"],
            "quantize": ["-o", tmp_path / "out", "--assets", "stand-in", *COUNT],
        }.get(command, ["--assets", "stand-in"])
        return CliRunner().invoke(cli.app, [str(word) for word in (command, *models, *words)])

    return run


def refused(done: Result, folder: Path, *parts: str) -> None:
    """Hold a refusal to its form; nothing is left of what was begun."""
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.stdout == ""
    for part in ("error: ", "expected:", "given:", "next:", *parts):
        assert part in done.stderr
    assert [
        path.name for path in folder.iterdir() if path.name[0] == "." or path.name == "out"
    ] == []


# --- Keras ---------------------------------------------------------------------------------------

Weights = NDArray[np.float32]


def network(size: tuple[int, int, int] = (32, 32, 3), classes: int = 10, last: Any = None) -> Any:
    from keras import Input, Model, layers

    taken = x = Input(size)
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="convolution")(x)
    x = layers.Flatten()(x)
    x = last(x) if last else x
    return Model(taken, layers.Dense(classes, activation="softmax", name="scores")(x))


OTHER_NETWORKS: dict[str, tuple[Callable[[], Any], str, str]] = {
    "another size": (lambda: network((28, 28, 3)), "own.h5", "input (None, 28, 28, 3)"),
    "grey images": (lambda: network((32, 32, 1)), "own.keras", "input (None, 32, 32, 1)"),
    "channels first": (lambda: network((3, 32, 32)), "own.keras", "input (None, 3, 32, 32)"),
    "100 classes": (lambda: network(classes=100), "own.h5", "output (None, 100)"),
}


@pytest.mark.parametrize(("make", "name", "given"), OTHER_NETWORKS.values(), ids=OTHER_NETWORKS)
def test_a_network_for_other_data_is_refused(
    run: Run, tmp_path: Path, make: Callable[[], Any], name: str, given: str
) -> None:
    path = save(make(), tmp_path / name)
    for command in ("convert", "quantize", "evaluate"):
        refused(run(command, path), tmp_path, given)


def test_another_network_is_evaluated_but_not_converted(run: Run, tmp_path: Path) -> None:
    path = save(network(), tmp_path / "own.keras")
    for command in ("convert", "quantize"):
        said = "own.keras is a network that this suite cannot quantize"
        refused(run(command, path), tmp_path, said, "Transpose")
    assert "own.keras" in run("evaluate", path).stdout


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_all_that_keras_writes_of_known_layers_is_let_through(tmp_path: Path, suffix: str) -> None:
    from keras import Input, Model, constraints, initializers, layers, regularizers

    taken = x = Input((32, 32, 3))
    x = layers.Normalization(mean=0.0, variance=1.0)(layers.Rescaling(1 / 255)(x))
    if suffix == ".keras":  # Keras cannot write all of these as .h5
        for name in sorted(flat.INERT):
            make = getattr(layers, name)
            parameters = inspect.signature(make).parameters.values()
            needed = [p for p in parameters if p.default is p.empty and p.kind.value == 1]
            x = make(*[0.1 for _ in needed])(x)
    x = layers.ZeroPadding2D(1)(x)
    for number, name in enumerate(sorted(keras_file.KNOWN_PARTS & set(dir(initializers)))):
        options = {"value": 1.0} if name == "Constant" else {}
        initializer = getattr(initializers, name)(**options)
        x = layers.Conv2D(2 + number, 3, activation="relu", kernel_initializer=initializer)(x)
    x = layers.BatchNormalization()(layers.Conv2D(x.shape[-1], 1)(x))
    x = layers.Dropout(0.1, seed=2**40)(layers.ReLU()(x))
    x = layers.Reshape(x.shape[1:])(x)
    x = layers.GlobalAveragePooling2D()(layers.AveragePooling2D(2)(layers.Add()([x, x])))
    for kernel, bias, constraint in [
        (regularizers.L1(), regularizers.L2(), constraints.MaxNorm(3)),
        (regularizers.L1L2(), None, constraints.MinMaxNorm()),
        (None, None, constraints.NonNeg()),
        (None, None, constraints.UnitNorm()),
    ]:
        x = layers.Dense(
            9, kernel_regularizer=kernel, bias_regularizer=bias, kernel_constraint=constraint
        )(x)
    x = layers.Activation("relu")(layers.Flatten()(x))
    model = Model(taken, layers.Softmax()(layers.Dense(10)(x)))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    path = save(model, tmp_path / f"own{suffix}")
    keras_file.demand_known(path)
    found = {layer["class_name"] for layer in keras_size.layers_of(keras2.read(path)[1])}
    assert found | (set() if suffix == ".keras" else flat.INERT) == keras_file.KNOWN_LAYERS
    assert keras_to_onnx.load(path).count_params() == model.count_params()


def save(model: Any, path: Path) -> Path:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras calls its own .h5 format old
        model.save(path)
    return path


Change = tuple[str, int, int, Callable[[Weights], Weights]]
"""Kind of a layer, which of them, which of its weights, and what is done to it."""


def changed(model: Any, path: Path, *changes: Change) -> Path:
    """Save a model with some weights changed."""
    for kind, number, weight, change in changes:
        layer = [each for each in model.layers if type(each).__name__ == kind][number]
        weights = layer.get_weights()
        weights[weight] = change(weights[weight].copy())
        layer.set_weights(weights)
    return save(model, path)


def standin() -> Any:
    import keras

    return keras.saving.load_model(STANDIN, compile=False, safe_mode=True)


def with_value(value: float, channel: int = 0) -> Callable[[Weights], Weights]:
    def change(weights: Weights) -> Weights:
        weights[..., channel] = value
        return weights

    return change


UNSOUND: dict[str, tuple[Change, str]] = {
    "NaN in a kernel": (
        ("Conv2D", 0, 0, with_value(np.nan)),
        "NaN or infinity in convolution/kernel",
    ),
    "infinity in a bias": (
        ("Conv2D", 0, 1, with_value(-np.inf)),
        "NaN or infinity in convolution/bias",
    ),
    "NaN in the last layer": (
        ("Dense", 0, 0, with_value(np.nan)),
        "NaN or infinity in scores/kernel",
    ),
    "a negative variance": (
        ("BatchNormalization", 0, 3, with_value(-1)),
        "a negative one in normalisation/moving_variance",
    ),
}


@pytest.mark.parametrize(("change", "given"), UNSOUND.values(), ids=UNSOUND)
def test_weights_that_cannot_be_computed_with_are_refused(
    run: Run, tmp_path: Path, change: Change, given: str
) -> None:
    from keras import layers

    model = network(last=layers.BatchNormalization(name="normalisation"))
    path = changed(model, tmp_path / "own.keras", change)
    for command in ("convert", "quantize", "evaluate"):
        refused(run(command, path), tmp_path, given)


def test_a_resnet8_of_ones_own_goes_all_the_way(
    run: Run, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Channels are of zeros or without variance, a layer gives its bias alone, one is silent."""
    path = changed(
        standin(),
        tmp_path / "own.keras",
        ("Conv2D", 1, 0, with_value(0)),
        ("BatchNormalization", 1, 3, with_value(0, channel=1)),
        ("BatchNormalization", 3, 0, lambda weights: 0 * weights),
        ("BatchNormalization", 5, 1, lambda weights: weights - 1e6),
    )
    done = run("quantize", path)
    assert done.exit_code == 0, done.output
    request.getfixturevalue("few")
    compared = run("compare", path, tmp_path / "out" / "model.onnx")
    assert compared.exit_code == 0, compared.output
    lines = [line for line in compared.stdout.splitlines() if line[0] != " "]
    assert len(lines) == 2


@pytest.mark.usefixtures("few")
def test_what_is_computed_otherwise_than_in_the_file_is_said(run: Run, tmp_path: Path) -> None:
    """Half precision has other scores than are judged here; `evaluate` leaves no log to say so."""
    from keras import Input, Model, layers

    taken = Input((32, 32, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, dtype="mixed_bfloat16")(taken))
    half = save(Model(taken, layers.Dense(10)(x)), tmp_path / "half.keras")
    for command, *models in (("evaluate", half), ("compare", half, STANDIN)):
        lines = run(command, *models).stdout.splitlines()
        said = [line.strip() for line in lines if "float32" in line]
        assert said == ["note: mixed_bfloat16: weights and arithmetic are float32 here"]
    words = ["evaluate", str(half), "--assets", "stand-in", "--json"]
    told = json.loads(CliRunner().invoke(cli.app, words).stdout)
    assert [f"note: {note}" for note in told["notes"]] == said


def test_a_network_that_overflows_is_refused(run: Run, tmp_path: Path) -> None:
    scaled = ("BatchNormalization", 1, 0, lambda weights: 1e30 * weights)
    path = changed(standin(), tmp_path / "own.keras", scaled)
    refused(run("quantize", path), tmp_path, "overflows on the calibration images")


# --- ONNX ----------------------------------------------------------------------------------------

OwnOnnx = Callable[[Callable[[onnx.ModelProto], object]], Path]


@pytest.fixture
def own(pipeline: Pipeline, tmp_path: Path) -> OwnOnnx:
    """Write the converted stand-in with a change."""

    def own(change: Callable[[onnx.ModelProto], object]) -> Path:
        model = onnx.load(pipeline.artifact("onnx").path("model.onnx"))
        change(model)
        path = tmp_path / "folder" / "own.onnx"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(model.SerializeToString())
        return path

    return own


def kernel(model: onnx.ModelProto) -> onnx.TensorProto:
    return max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))


@pytest.mark.parametrize(
    "place", ["{tmp}/secret", "../secret", "link", "inside", "nowhere", "/dev/zero"]
)
@pytest.mark.parametrize("command", ["quantize", "evaluate", "compare"])
def test_weights_in_another_file_are_not_read(
    run: Run, own: OwnOnnx, tmp_path: Path, command: str, place: str
) -> None:
    def move(model: onnx.ModelProto) -> None:
        tensor = kernel(model)
        content = tensor.raw_data
        for name in ("secret", "folder/inside"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(content)
        (tmp_path / "folder" / "link").symlink_to(tmp_path / "secret")
        set_external_data(tensor, place.format(tmp=tmp_path), 0, len(content))
        tensor.ClearField("raw_data")

    path = own(move)
    done = run(command, *([path] if command != "compare" else [path, path]))
    refused(done, tmp_path, "data kept in another file")


def elsewhere(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """Make it a tensor that lies in a file that does not exist."""
    tensor.CopyFrom(numpy_helper.from_array(np.zeros(1, np.float32), "planted"))
    set_external_data(tensor, "secret", 0, 4)
    tensor.ClearField("raw_data")
    return tensor


def sparse(model: onnx.ModelProto) -> onnx.AttributeProto:
    """Append a constant that is kept as a sparse tensor."""
    values = helper.make_tensor("v", onnx.TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", onnx.TensorProto.INT64, [1], [0])
    node = helper.make_node(
        "Constant", [], ["c"], sparse_value=helper.make_sparse_tensor(values, indices, [4])
    )
    model.graph.node.append(node)
    return model.graph.node[-1].attribute[0]


HIDDEN: dict[str, Callable[[onnx.ModelProto], object]] = {
    "a sparse constant": lambda m: sparse(m).sparse_tensor.values.CopyFrom(
        elsewhere(onnx.TensorProto())
    ),
    "indices of a sparse constant": lambda m: sparse(m).sparse_tensor.indices.CopyFrom(
        elsewhere(onnx.TensorProto())
    ),
    "a list of sparse constants": lambda m: elsewhere(sparse(m).sparse_tensors.add().values),
    "a sparse initializer": lambda m: elsewhere(m.graph.sparse_initializer.add().values),
    "a constant": lambda m: elsewhere(m.graph.node[1].attribute.add().t),
    "a list of constants": lambda m: elsewhere(m.graph.node[1].attribute.add().tensors.add()),
    "training": lambda m: elsewhere(m.training_info.add().algorithm.initializer.add()),
    "the start of training": lambda m: elsewhere(
        m.training_info.add().initialization.node.add().attribute.add().t
    ),
    "a function": lambda m: elsewhere(m.functions.add().node.add().attribute.add().t),
    "a subgraph": lambda m: elsewhere(m.graph.node[1].attribute.add().g.initializer.add()),
    "a subgraph of many": lambda m: elsewhere(
        m.graph.node[1].attribute.add().graphs.add().initializer.add()
    ),
    "without a place": lambda m: m.graph.initializer.add(
        name="planted", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL
    ),
}


@pytest.mark.parametrize("change", HIDDEN.values(), ids=HIDDEN)
def test_weights_in_another_file_are_found_wherever_a_file_can_hold_weights(
    own: OwnOnnx, change: Callable[[onnx.ModelProto], object]
) -> None:
    with pytest.raises(errors.ModelError, match="is not an ONNX model") as caught:
        onnx_file.demand_readable(own(change))
    assert "data kept in another file, 'planted'" in caught.value.given


def listed_in_a_later_version(model: onnx.ModelProto) -> None:
    small_network.listed(model)
    model.ir_version = 8


def of_opset_8(model: onnx.ModelProto) -> None:
    """As those exporters wrote it; an axis from the end was not yet known."""
    model.opset_import[0].version = 8
    (softmax,) = (node for node in model.graph.node if node.op_type == "Softmax")
    softmax.attribute[0].i = 1


def of_any(*places: int) -> Callable[[onnx.ModelProto], None]:
    """Some sizes of the image are not stated."""

    def change(model: onnx.ModelProto) -> None:
        for place in places:
            model.graph.input[0].type.tensor_type.shape.dim[place].dim_param = f"any {place}"

    return change


OTHERWISE_WRITTEN: dict[str, Callable[[onnx.ModelProto], None]] = {
    "initializers among the inputs": small_network.listed,
    "the same in a later version": listed_in_a_later_version,
    "height and width open": of_any(1, 2),
    "channels open": of_any(3),
    "all open": of_any(1, 2, 3),
}


@pytest.mark.parametrize("change", OTHERWISE_WRITTEN.values(), ids=OTHERWISE_WRITTEN)
def test_the_same_network_otherwise_written_is_taken_in_one_form(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None]
) -> None:
    model = small_network.network()
    change(model)
    onnx.save(model, tmp_path / "own.onnx")
    onnx_file.demand_readable(tmp_path / "own.onnx")
    onnx_file.take(tmp_path / "own.onnx", tmp_path / "taken.onnx")
    taken = onnx.load(tmp_path / "taken.onnx")
    onnx.checker.check_model(taken, full_check=True)
    assert taken.graph == small_network.network().graph


@pytest.mark.parametrize(("opset", "taken_as"), [(19, 18), (22, 18), (18, 18), (12, 13)])
def test_operators_are_taken_as_every_later_step_reads_them(
    own: OwnOnnx, tmp_path: Path, opset: int, taken_as: int
) -> None:
    """onnx2torch knows no Reshape of opset 19."""
    path = own(lambda model: setattr(model.opset_import[0], "version", opset))
    onnx_file.take(path, tmp_path / "taken.onnx")
    taken = onnx.load(tmp_path / "taken.onnx")
    onnx.checker.check_model(taken, full_check=True)
    given = onnx.load(path)
    assert taken.opset_import[0].version == taken_as
    assert [node.op_type for node in taken.graph.node] == [n.op_type for n in given.graph.node]
    assert taken.graph.initializer == given.graph.initializer


def test_a_file_in_the_usual_form_is_taken_as_it_is(own: OwnOnnx, tmp_path: Path) -> None:
    path = own(lambda model: None)
    onnx_file.take(path, tmp_path / "taken.onnx")
    assert (tmp_path / "taken.onnx").read_bytes() == path.read_bytes()


def test_the_same_network_otherwise_written_gives_the_same(run: Run, tmp_path: Path) -> None:
    plain, own = tmp_path / "plain.onnx", tmp_path / "own.onnx"
    onnx.save(small_network.network(), plain)
    model = small_network.network()
    of_any(1, 2)(model)
    small_network.listed(model)
    of_opset_8(model)
    onnx.save(model, own)
    judged = [run("evaluate", path) for path in (plain, own)]
    assert [done.exit_code for done in judged] == [0, 0], judged[1].output
    assert judged[1].stdout == judged[0].stdout.replace("plain.onnx", "own.onnx")
    made = []
    for path in (plain, own):
        done = run("quantize", path)
        assert done.exit_code == 0, done.output
        made.append(onnx.load(tmp_path / "out" / "model.onnx").graph)
        shutil.rmtree(tmp_path / "out")
    assert made[0].initializer == made[1].initializer
    assert [node.op_type for node in made[0].node] == [node.op_type for node in made[1].node]


def test_a_network_that_folding_made_another_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(model: onnx.ModelProto) -> None:
        values = numpy_helper.to_array(kernel(model)) * np.float32(1.1)
        kernel(model).CopyFrom(numpy_helper.from_array(values, kernel(model).name))

    monkeypatch.setattr(pixels, "fold", spoil)
    # No other test may find in the cache what is made of it.
    model = small_network.network()
    model.doc_string = "to be spoilt"
    onnx.save(model, tmp_path / "own.onnx")
    refused(
        *(run("quantize", tmp_path / "own.onnx"), tmp_path),
        "does not stand for it: folded network against the one that was given",
    )


def test_an_older_network_that_cannot_be_brought_to_today_s_operators_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no adapter\nat all")

    model = small_network.network()
    of_opset_8(model)
    onnx.save(model, tmp_path / "own.onnx")
    monkeypatch.setattr(onnx.version_converter, "convert_version", fail)
    said = "operators that cannot be brought to opset 13 (no adapter), in "
    refused(run("quantize", tmp_path / "own.onnx"), tmp_path, said)


def test_a_network_that_other_operators_made_another_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: a converter of versions that changes a weight."""
    honest = onnx.version_converter.convert_version

    def spoil(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
        made = honest(model, opset)
        values = numpy_helper.to_array(kernel(made)) * np.float32(1.1)
        kernel(made).CopyFrom(numpy_helper.from_array(values, kernel(made).name))
        return made

    monkeypatch.setattr(onnx.version_converter, "convert_version", spoil)
    # No other test may find in the cache what is made of it.
    model = small_network.network()
    of_opset_8(model)
    model.doc_string = "to be spoilt"
    onnx.save(model, tmp_path / "own.onnx")
    refused(
        *(run("quantize", tmp_path / "own.onnx"), tmp_path),
        "does not stand for it: folded network against the one that was given",
    )


def infinite(model: onnx.ModelProto) -> None:
    values = numpy_helper.to_array(kernel(model)).copy()
    values.flat[0] = np.inf
    kernel(model).CopyFrom(numpy_helper.from_array(values, kernel(model).name))


def one_image(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def custom(model: onnx.ModelProto) -> None:
    model.graph.node[1].domain = "own"
    model.opset_import.append(helper.make_opsetid("own", 1))


def branching(model: onnx.ModelProto) -> None:
    model.graph.node[1].attribute.append(
        helper.make_attribute("body", helper.make_graph([], "g", [], []))
    )


def text(model: onnx.ModelProto) -> None:
    model.graph.initializer.add(
        name="planted", data_type=onnx.TensorProto.STRING, dims=[1], string_data=[b"\xff\xfe"]
    )


def another_output(model: onnx.ModelProto) -> None:
    """First, where it would be taken for the scores."""
    (scores,) = model.graph.output
    model.graph.node.append(helper.make_node("Identity", [scores.name], ["another"]))
    other = onnx.ValueInfoProto()
    other.CopyFrom(scores)
    other.name = "another"
    model.graph.output.insert(0, other)


def of_no_type(model: onnx.ModelProto) -> None:
    kernel(model).data_type = 9999


def another_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("other", 1, [1]))


UNUSABLE = {
    "two inputs": (another_input, "input of shape (None, 32, 32, 3), (1,), in "),
    "infinite weights": (infinite, "NaN or infinite"),
    "one image at a time": (one_image, "input of shape (1, 32, 32, 3)"),
    "two outputs": (another_output, "2 outputs"),
    "a custom operator": (custom, "the custom operator own."),
    "a subgraph": (branching, "no ResNet8 needs: onnx.AttributeProto.g"),
    "a function": (lambda m: m.functions.add(), "no ResNet8 needs: onnx.ModelProto.functions"),
    "training": (lambda m: m.training_info.add(), "onnx.ModelProto.training_info"),
    "a sparse tensor": (sparse, "onnx.AttributeProto.sparse_tensor"),
    "text that is none": (text, "UnicodeDecodeError"),
    "weights of no type": (of_no_type, "in "),
    "no graph": (lambda model: model.ClearField("graph"), "in "),
    "a node that reads nothing": (lambda m: m.graph.node[1].ClearField("input"), "in "),
}


@pytest.mark.parametrize(("change", "given"), UNUSABLE.values(), ids=UNUSABLE)
@pytest.mark.parametrize("command", ["quantize", "evaluate"])
def test_an_unusable_onnx_model_is_refused(
    run: Run,
    own: OwnOnnx,
    tmp_path: Path,
    command: str,
    change: Callable[[onnx.ModelProto], object],
    given: str,
) -> None:
    refused(run(command, own(change)), tmp_path, "own.onnx is not an ONNX model", given)


@settings(
    max_examples=FUZZ_EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_a_mutated_onnx_model_is_evaluated_or_refused(own: OwnOnnx, data: st.DataObject) -> None:
    path = own(lambda model: None)
    content = bytearray(path.read_bytes())
    weights = [bytes(t.raw_data) for t in onnx.load(path).graph.initializer]
    where = [(content.index(each), len(each)) for each in weights if len(each) > 16]
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - sum(size for _, size in where) - 1))
        # Positions are counted outside the weights, where most mutations would be sound.
        for start, size in sorted(where):
            position += size if position >= start else 0
        content[position] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(errors.ModelError):
        onnx_file.demand_readable(path)
        backends.scores(path, np.zeros((2, 32, 32, 3), np.uint8), threads=1)


@pytest.mark.parametrize("content", [b"", b"<html></html>", STANDIN.read_bytes()[:999]])
@pytest.mark.parametrize("command", ["quantize", "evaluate"])
def test_what_is_no_onnx_file_is_refused(
    run: Run, tmp_path: Path, command: str, content: bytes
) -> None:
    path = tmp_path / "own.onnx"
    path.write_bytes(content)
    refused(run(command, path), tmp_path, "own.onnx is not an ONNX model")


def test_a_huge_onnx_file_is_not_parsed(tmp_path: Path) -> None:
    with (tmp_path / "own.onnx").open("wb") as file:
        file.truncate(onnx_file.MAX_FILE_BYTES + 1)  # sparse
    with pytest.raises(errors.ModelError, match="67,108,865 bytes"):
        onnx_file.demand_readable(tmp_path / "own.onnx")


def test_a_network_that_cannot_be_run_is_not_quantized(
    run: Run, own: OwnOnnx, tmp_path: Path
) -> None:
    """ONNX's checker does not see that a kernel has fewer channels than it is fed."""

    def narrow(model: onnx.ModelProto) -> None:
        values = numpy_helper.to_array(kernel(model))[:, ::2].copy()
        kernel(model).CopyFrom(numpy_helper.from_array(values, kernel(model).name))

    refused(run("quantize", own(narrow)), tmp_path, "cannot quantize", "on a map of")


# --- PyTorch -------------------------------------------------------------------------------------


def traced(path: Path, size: tuple[int, ...], classes: int, *, twice: bool = False) -> Path:
    import torch

    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = torch.nn.Linear(int(np.prod(size)), classes)

        def forward(self, images: torch.Tensor) -> Any:
            scores = self.dense(images.flatten(1)).softmax(-1)
            return (scores, scores) if twice else scores

    with torchscript.deprecations_ignored():
        torch.jit.save(torch.jit.trace(Own(), torch.zeros(2, *size)), str(path))
    return path


def test_a_torchscript_model_of_ones_own_is_evaluated(run: Run, tmp_path: Path) -> None:
    path = traced(tmp_path / "own.pt", (32, 32, 3), 10)
    assert "own.pt" in run("evaluate", path).stdout
    refused(run("quantize", path), tmp_path, "own.pt cannot be used as the model.", ".onnx")


@pytest.mark.parametrize(
    ("size", "classes", "twice", "what"),
    [
        ((28, 28, 3), 10, False, "own.pt cannot be run on the images."),
        ((32, 32, 3), 10, True, "the network gives a tuple, not one tensor"),
        ((32, 32, 3), 100, False, "own.pt does not give one finite score for each class."),
    ],
    ids=["another size", "two outputs", "100 classes"],
)
def test_a_torchscript_model_for_other_data_is_refused(
    run: Run, tmp_path: Path, size: tuple[int, ...], classes: int, twice: bool, what: str
) -> None:
    path = traced(tmp_path / "own.pt", size, classes, twice=twice)
    refused(run("evaluate", path), tmp_path, what)


class Mode(NamedTuple):
    """A way to save a network, and what is said of it."""

    training: bool = False
    batch_norm: bool = False
    dropout: float = 0.0
    by_function: bool = False
    refusal: str = ""


MODES: Final = {
    "for use": Mode(batch_norm=True, dropout=0.3),
    "batch statistics": Mode(
        training=True, batch_norm=True, refusal="own answers by what else is in the batch."
    ),
    "dropout": Mode(
        training=True,
        dropout=0.3,
        refusal="own gives the same image other scores from one time to the next.",
    ),
    "dropout as a function": Mode(
        dropout=0.3,
        by_function=True,
        refusal="own gives the same image other scores from one time to the next.",
    ),
}


@pytest.mark.parametrize("suffix", [".pt", ".pt2"])
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_a_network_that_was_saved_in_training_mode_is_refused(
    run: Run, tmp_path: Path, mode: Mode, suffix: str
) -> None:
    """Its accuracy would be one of the batches that it happened to get."""
    import torch

    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(3072) if mode.batch_norm else torch.nn.Identity()
            self.drop = torch.nn.Dropout(0.0 if mode.by_function else mode.dropout)
            self.rate = mode.dropout if mode.by_function else 0.0
            self.dense = torch.nn.Linear(3072, 10)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            values = self.drop(self.norm(images.flatten(1) / 255))
            return self.dense(torch.nn.functional.dropout(values, self.rate))

    torch.manual_seed(0)
    module, images = Own().train(mode.training), torch.rand(2, 32, 32, 3)
    path = tmp_path / f"own{suffix}"
    with torchscript.deprecations_ignored():
        if suffix == ".pt":
            torch.jit.save(torch.jit.script(module), str(path))
        else:
            sizes = ({0: torch.export.Dim("n")},)
            torch.export.save(torch.export.export(module, (images,), dynamic_shapes=sizes), path)
    done = run("evaluate", path)
    if mode.refusal:
        refused(done, tmp_path, mode.refusal.replace("own", path.name, 1), "module.eval()")
    else:
        assert "batch" not in done.stdout + done.stderr


def test_of_a_model_that_is_quantized_batch_by_batch_this_is_said(
    run: Run, pipeline: Pipeline, tmp_path: Path
) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # The quantizer writes a file beside the one that it reads.
    source, path = tmp_path / "float.onnx", tmp_path / "dynamic.onnx"
    shutil.copyfile(pipeline.artifact("onnx").path("model.onnx"), source)
    quantize_dynamic(source, path, weight_type=QuantType.QUInt8)
    done = run("evaluate", path)
    assert "warning: scores depend on the batch, as where activations are" in done.stdout
    assert "scores depend" not in run("evaluate", source).stdout


@pytest.mark.parametrize("name", ["own.pt", "own.pt2"])
@pytest.mark.parametrize("content", [b"", b"<html></html>"], ids=["empty", "a web page"])
def test_what_is_no_pytorch_file_is_refused(
    run: Run, tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    refused(run("evaluate", tmp_path / name), tmp_path, f"{name} cannot be opened.")


def _module() -> Any:
    import torch

    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))


@pytest.mark.parametrize("name", ["own.pt", "own.pt2"])
@pytest.mark.parametrize(
    "content",
    [
        lambda: _module().state_dict(),
        lambda: {"epoch": 3, "loss": np.float64(0.5), "model": _module().state_dict()},
        _module,
    ],
    ids=["state_dict", "checkpoint", "module"],
)
def test_what_torch_save_leaves_is_refused_as_that(
    run: Run, tmp_path: Path, name: str, content: Callable[[], Any]
) -> None:
    import torch

    path = tmp_path / name
    torch.save(content(), path)
    what = f"error: {name} holds no network of the kind that its name says."
    helps = ("as torch.save makes it of weights", "torch.export.save(", "torch.jit.save(")
    refused(run("evaluate", path), tmp_path, what, *helps)
    torch.save(content(), path, _use_new_zipfile_serialization=False)  # as before 2020
    refused(run("evaluate", path), tmp_path, f"error: {name} cannot be opened.")


@pytest.mark.parametrize(
    ("shape", "type_", "said"),
    [
        (
            ("n", 3, 32, 32),
            onnx.TensorProto.FLOAT,
            "input of shape (None, 3, 32, 32) (channels first: put",
        ),
        (
            ("n", 3, "h", "w"),
            onnx.TensorProto.FLOAT,
            "input of shape (None, 3, None, None) (channels first: put",
        ),
        (
            (1, 3, 32, 32),
            onnx.TensorProto.FLOAT,
            "input of shape (1, 3, 32, 32) (channels first: put",
        ),
        (
            (1, 32, 32, 3),
            onnx.TensorProto.FLOAT,
            "input of shape (1, 32, 32, 3) (a fixed batch: export it",
        ),
        (("n", 32, 32, 3), onnx.TensorProto.UINT8, "a network that takes uint8 images"),
        (("n", 32, 32, 3), onnx.TensorProto.DOUBLE, "a network that takes float64 images"),
    ],
)
def test_an_onnx_model_that_takes_other_images_is_told_which(
    run: Run, tmp_path: Path, shape: Any, type_: int, said: str
) -> None:
    make, path = onnx.helper, tmp_path / "own.onnx"
    nodes = [
        make.make_node("Cast", ["x"], ["f"], to=onnx.TensorProto.FLOAT),
        make.make_node("Flatten", ["f"], ["flat"]),
        make.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    weight = onnx.numpy_helper.from_array(np.ones((3072, 10), np.float32), "w")
    graph = make.make_graph(
        nodes,
        "own",
        [make.make_tensor_value_info("x", type_, shape)],
        [make.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (shape[0], 10))],
        [weight],
    )
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=9), path)
    refused(run("evaluate", path), tmp_path, said)
    if type_ != onnx.TensorProto.FLOAT:
        refused(run("quantize", path), tmp_path, said)


def test_an_archive_of_another_kind_is_no_exported_program(run: Run, tmp_path: Path) -> None:
    """torch.export.load would go on to its older readers, which unpickle."""
    with zipfile.ZipFile(tmp_path / "own.pt2", "w") as archive:
        archive.writestr("own/model.json", "{}")
    refused(run("evaluate", tmp_path / "own.pt2"), tmp_path, "an archive of another kind")


def test_a_pytorch_file_of_the_other_suffix_is_told_its_own(run: Run, tmp_path: Path) -> None:
    import torch

    script, program = traced(tmp_path / "script.pt2", (32, 32, 3), 10), tmp_path / "program.pt"
    torch.export.save(torch.export.export(_module(), (torch.zeros(2, 32, 32, 3),)), program)
    what = " holds no network of the kind that its name says."
    refused(run("evaluate", script), tmp_path, what, "a TorchScript file", "rename it if it is")
    refused(
        run("evaluate", program), tmp_path, what, "a torch.export archive", "rename it if it is"
    )


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["convert", "quantize", "evaluate"])
def test_a_file_that_may_not_be_read(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    path = tmp_path / "own.h5"
    path.touch()
    # The tests may be run by a user who may read everything.
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda p, mode: p != path and allowed(p, mode))
    done = run(command, path)
    assert done.exit_code == 2
    assert "is not readable" in done.stderr
    assert done.stdout == ""
