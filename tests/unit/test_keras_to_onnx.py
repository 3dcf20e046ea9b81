"""Keras to ONNX, with TensorFlow in this process: what is made, refused and logged."""

from __future__ import annotations

import errno
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
import pytest
from typer.testing import CliRunner, Result

from resnet8_eval import cli, hints
from resnet8_eval.cifar10 import Split
from resnet8_eval.convert import keras_to_onnx, names
from resnet8_eval.errors import ModelError
from resnet8_eval.manifest import fixtures_dir
from resnet8_eval.onnx_graph import constants
from resnet8_eval.pipeline import Pipeline
from resnet8_eval.store import file_sha256
from tests.planted import borrowing, nodes

STANDIN = fixtures_dir() / "standin" / "resnet8_standin.h5"
# What TensorFlow and its converters say to a Python that turns warnings into errors.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def model() -> Any:
    return keras_to_onnx.load(STANDIN)


@pytest.fixture(scope="module")
def as_keras(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in in Keras's newer format."""
    path = tmp_path_factory.mktemp("keras") / "standin.keras"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A conversion during which TensorFlow, tf2onnx and onnx each have something to say."""
    import tf2onnx

    folder = tmp_path_factory.mktemp("converted")
    honest = tf2onnx.convert.from_keras

    def talkative(*args: Any, **kwargs: Any) -> Any:
        warnings.warn("planted Python warning", RuntimeWarning, stacklevel=1)
        for name in ("tensorflow", "tf2onnx", "onnx"):
            logging.getLogger(name).warning("planted by %s", name)
        return honest(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf2onnx.convert, "from_keras", talkative)
        return folder, keras_to_onnx.convert(STANDIN, folder)


def test_a_converted_model_is_whole_and_checked(converted: tuple[Path, dict[str, Any]]) -> None:
    folder, record = converted
    found = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(found, full_check=True)
    assert {entry.domain: entry.version for entry in found.opset_import}[""] == record["opset"]
    assert found.producer_name == "tf2onnx"
    assert record["producer"].startswith("tf2onnx ")
    assert len(nodes(found, "Conv")) == 9
    assert not found.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")
    assert record["parameters"] == sum(layer["parameters"] for layer in record["layers"]) == 78_666
    with np.load(folder / "keras_weights.npz") as weights:
        assert sum(weights[name].size for name in weights.files) == 78_666


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("settings", [{}, {"scale": False}, {"center": False}])
def test_normalisations_have_the_bits_of_ieee_754(
    tmp_path: Path, bias: bool, settings: dict[str, bool]
) -> None:
    """TensorFlow's own constants have others, by the maker of the processor."""
    import keras

    image = keras.Input((32, 32, 3))
    convolution = keras.layers.Conv2D(64, 1, use_bias=bias, bias_initializer="random_normal")
    normalisation = keras.layers.BatchNormalization(**settings)
    flat = keras.layers.GlobalAveragePooling2D()(normalisation(convolution(image)))
    scores = keras.layers.Dense(10, activation="softmax")(flat)
    draw = np.random.default_rng(0)
    normalisation.set_weights([draw.uniform(0.1, 2, 64) for _ in normalisation.get_weights()])
    keras.Model(image, scores).save(tmp_path / "own.keras")
    keras_to_onnx.convert(tmp_path / "own.keras", tmp_path)
    with np.load(tmp_path / "keras_weights.npz") as weights:
        own = {
            weight.name: weights[f"{normalisation.name}/{weight.name}"].astype(np.float64)
            for weight in normalisation.weights
        }
        kernel = weights[f"{convolution.name}/kernel"].transpose(3, 2, 0, 1)
    scale = own.get("gamma", 1.0) / np.sqrt(own["moving_variance"] + normalisation.epsilon)
    shift = (own.get("beta", 0.0) - own["moving_mean"] * scale).astype(np.float32)
    scale = scale.astype(np.float32)
    if not bias:  # merged with the convolution
        scale = kernel * scale[:, None, None, None]
    stored = {
        value.tobytes() for value in constants(onnx.load(tmp_path / "model.onnx").graph).values()
    }
    assert {scale.tobytes(), shift.tobytes()} <= stored


@pytest.mark.parametrize(
    "message",
    ["planted Python warning", "planted by tensorflow", "planted by tf2onnx", "planted by onnx"],
)
def test_a_warning_is_found_once_in_the_record_and_in_the_log(
    converted: tuple[Path, dict[str, Any]], message: str
) -> None:
    folder, record = converted
    (found,) = [warning for warning in record["warnings"] if warning["message"] == message]
    assert found["step"] == "convert to ONNX"
    assert (folder / "conversion.log").read_text(encoding="utf-8").count(message) == 1


def test_each_step_is_logged_with_its_duration(converted: tuple[Path, dict[str, Any]]) -> None:
    folder, record = converted
    log = (folder / "conversion.log").read_text(encoding="utf-8")
    assert len(record["steps"]) == 6
    for step in record["steps"]:
        assert step["seconds"] >= 0
        assert f"{step['step']} ...\n" in log
    assert log.count("done in") == 6
    assert all(f"{name} {number}" in log for name, number in record["versions"].items())


def test_a_failed_conversion_leaves_its_log(tmp_path: Path) -> None:
    (tmp_path / "model.h5").write_bytes(STANDIN.read_bytes()[:1000])
    with pytest.raises(ModelError, match="is not a Keras model"):
        keras_to_onnx.convert(tmp_path / "model.h5", tmp_path)
    log = (tmp_path / "conversion.log").read_text(encoding="utf-8")
    assert "FAILED ModelError" in log
    assert not (tmp_path / "model.onnx").exists()


def test_two_conversions_in_processes_of_their_own_give_the_same_bytes(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    again = borrowing(pipeline, tmp_path).artifact("onnx")
    assert again.folder != pipeline.artifact("onnx").folder
    assert again.files["model.onnx"] == pipeline.artifact("onnx").files["model.onnx"]
    assert again.files["keras_weights.npz"] == pipeline.artifact("onnx").files["keras_weights.npz"]


def test_both_formats_convert_to_the_same_network(
    as_keras: Path, tmp_path: Path, converted: tuple[Path, dict[str, Any]]
) -> None:
    record = keras_to_onnx.convert(as_keras, tmp_path)
    assert record["layers"] == converted[1]["layers"]
    with (
        np.load(tmp_path / "keras_weights.npz") as ours,
        np.load(converted[0] / "keras_weights.npz") as theirs,
    ):
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs.files)


def test_keras_gives_the_scores_that_were_recorded(
    pipeline: Pipeline, as_keras: Path, standin_test: Split
) -> None:
    from resnet8_eval import backends

    recorded = np.load(pipeline.artifact("scores/keras-float32").path("scores.npy"))[:100]
    for path in (STANDIN, as_keras):
        found = backends.scores(path, standin_test.images[:100], threads=1)
        assert np.abs(found - recorded).max() <= 1e-5


# --- what is refused -----------------------------------------------------------------------------


def saved(folder: Path, *layers: Any, size: int = 32) -> Path:
    import keras

    stack = [keras.Input((size, size, 3)), *layers, keras.layers.Flatten()]
    model = keras.Sequential([*stack, keras.layers.Dense(10, activation="softmax")])
    path = folder / "model.keras"
    model.save(path)
    return path


def test_a_model_that_was_never_built_is_refused_as_that(tmp_path: Path) -> None:
    import keras

    keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)]).save(tmp_path / "own.keras")
    with pytest.raises(ModelError, match=r"own\.keras does not say what it takes") as caught:
        keras_to_onnx.load(tmp_path / "own.keras")
    assert "never built" in caught.value.given
    assert "model.build(" in caught.value.next_step


def test_a_lambda_layer_is_refused_before_keras_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import keras

    path = saved(tmp_path, keras.layers.Lambda(lambda x: x * 2))
    monkeypatch.setattr(keras.saving, "load_model", lambda *_, **__: pytest.fail("was opened"))
    with pytest.raises(ModelError, match="is not a Keras model") as caught:
        keras_to_onnx.load(path)
    assert "'Lambda'" in caught.value.given


def test_a_custom_activation_is_refused_before_keras_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import keras

    @keras.saving.register_keras_serializable("tests")
    def planted(x: Any) -> Any:
        return x

    path = saved(tmp_path, keras.layers.Conv2D(4, 3, activation=planted))
    monkeypatch.setattr(keras.saving, "load_model", lambda *_, **__: pytest.fail("was opened"))
    with pytest.raises(ModelError, match="is not a Keras model"):
        keras_to_onnx.load(path)


def test_an_initializer_from_elsewhere_is_not_run(tmp_path: Path) -> None:
    """The layers are known ones, but one of them names a callable of another package."""
    path = tmp_path / "model.h5"
    path.write_bytes(STANDIN.read_bytes())
    with h5py.File(path, "a") as file:
        config = json.loads(file.attrs["model_config"])
        config["config"]["layers"][1]["config"]["kernel_initializer"] = {
            "module": "os",
            "class_name": "system",
            "config": {"command": f"touch {tmp_path}/ran"},
            "registered_name": "os>system",
        }
        file.attrs["model_config"] = json.dumps(config)
    with pytest.raises(ModelError):
        keras_to_onnx.load(path)
    assert not (tmp_path / "ran").exists()


def test_another_input_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="another input or output") as caught:
        keras_to_onnx.load(saved(tmp_path, size=28))
    assert "(None, 28, 28, 3)" in caught.value.given


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.h5"
    path.write_bytes(STANDIN.read_bytes())
    with h5py.File(path, "a") as file:
        del file["model_weights"]["dense"]
    with pytest.raises(ModelError, match="Keras cannot load") as caught:
        keras_to_onnx.load(path)
    assert len(str(caught.value).splitlines()) == 4


@pytest.mark.parametrize("fault", ["operator", "shape", "cycle"])
def test_an_invalid_onnx_model_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    honest = names.as_in_keras

    def spoil(model: onnx.ModelProto, *args: Any) -> None:
        honest(model, *args)
        node = nodes(model, "Relu")[0]
        if fault == "operator":
            node.op_type = "Rectify"
        elif fault == "cycle":
            node.input[0] = node.output[0]
        else:
            model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 11

    monkeypatch.setattr(names, "as_in_keras", spoil)
    kinds = (onnx.checker.ValidationError, onnx.shape_inference.InferenceError)
    with pytest.raises(kinds) as caught:
        keras_to_onnx.convert(STANDIN, tmp_path)
    assert not (tmp_path / "model.onnx").exists()
    log = (tmp_path / "conversion.log").read_text(encoding="utf-8")
    assert f"check the ONNX model ...\n  FAILED {caught.typename}" in log


# --- the command line ----------------------------------------------------------------------------


@pytest.fixture
def invoke() -> Callable[..., Result]:
    runner = CliRunner()
    return lambda *words: runner.invoke(cli.app, [str(word) for word in words])


def test_convert_writes_the_whole_chain_and_says_what_it_checked(
    tmp_path: Path, invoke: Any
) -> None:
    done = invoke("convert", STANDIN, "-o", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert all(check["ok"] for check in record["checks"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "model.onnx",
        "conversion.log",
        "folded.onnx",
        "model.pt2",
    }


@pytest.mark.usefixtures("made_here")
def test_convert_leaves_nothing_where_it_refuses(tmp_path: Path, invoke: Any) -> None:
    (tmp_path / "model.h5").write_bytes(b"no model")
    done = invoke("convert", tmp_path / "model.h5", "-o", tmp_path / "out")
    assert done.exit_code == 1
    assert "error: model.h5 is not a Keras model" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model.h5"]


def test_evaluate_gives_keras_s_known_count(
    pipeline: Pipeline, invoke: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hints, "IMAGES", 20)
    cache = pipeline.settings.cache_dir
    done = invoke("evaluate", STANDIN, "--assets", "stand-in", "--cache-dir", cache, "--json")
    assert done.exit_code == 0, done.output
    assert (json.loads(done.stdout)["correct"], json.loads(done.stdout)["total"]) == (1766, 2000)
    assert file_sha256(STANDIN) == pipeline.settings.assets.model_sha256


def test_a_full_disk_is_not_taken_for_a_broken_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("resnet8_eval.convert.keras2.rewritten", fill)
    with pytest.raises(OSError, match="No space left on device"):
        keras_to_onnx.load(STANDIN)
