"""Residual networks as users have them: converted, and held against Keras alone."""

from __future__ import annotations

import functools
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from resnet8_eval import backends, configurations, network, stock
from resnet8_eval.calibrate.parameters import EXACT, Parameters
from resnet8_eval.calibrate.tuned import collect, decide
from resnet8_eval.checks import failed
from resnet8_eval.convert import flat, fold, keras_to_onnx, onnx_to_torch, pixels, structure
from resnet8_eval.errors import ModelError
from resnet8_eval.evaluate import parity, probabilities, same_function
from resnet8_eval.inputs import Labelled
from resnet8_eval.integers import ExactNetwork, rounding
from resnet8_eval.preprocess import fed
from resnet8_eval.proof import prove
from resnet8_eval.requirements import PARITY_ATOL
from tests import small_network
from tests.own_networks import Maker, residual, trained

# What TensorFlow and its converters say to a Python that turns warnings into errors.
pytestmark = pytest.mark.filterwarnings("ignore")
IMAGES = small_network.images(24)


def under(policy: str, make: Maker) -> Any:
    import keras

    keras.mixed_precision.set_global_policy(policy)
    try:
        return make()
    finally:
        keras.mixed_precision.set_global_policy("float32")


def layers() -> Any:
    from keras import layers as of_keras

    return of_keras


def plus(one: Any, other: Any) -> Any:
    return one + other


def added(one: Any, other: Any) -> Any:
    import keras

    return keras.ops.add(one, other)


def rectified() -> Any:
    import keras

    return keras.activations.relu


def adapted() -> Any:
    layer = layers().Normalization()
    layer.adapt(IMAGES.astype(np.float32))
    return layer


def nested() -> Any:
    """An augmentation, a network and a head, models all, with the same names inside."""
    import keras

    taken = keras.Input((32, 32, 3))
    augment = keras.Sequential([layers().RandomFlip(), layers().GaussianNoise(0.1)])
    inner = keras.Sequential([keras.Input((32, 32, 3)), layers().Conv2D(3, 1, name="conv")])
    x = inner(augment(layers().Rescaling(1 / 255)(taken)))
    x = layers().Conv2D(5, 3, name="conv", activation="relu")(x)
    x = layers().GlobalAveragePooling2D()(x)
    return trained(keras.Model(taken, keras.Sequential([layers().Dense(10)])(x)))


def augmenting() -> Any:
    """As TensorFlow's tutorials have it."""
    import keras

    return keras.Sequential([layers().RandomFlip("horizontal"), layers().RandomRotation(0.1)])


def standardised(x: Any) -> Any:
    return (x / 255.0 - np.array([0.47, 0.49, 0.43], np.float32)) / 0.24


def inverted_bytes(x: Any) -> Any:
    import keras

    return 1 - keras.ops.cast(x, "float32") * (1 / 255)


def stack(*between: Any, size: int | None = 32, head: Any = None) -> Any:
    """A convolution, other layers, an average and scores; for images of some size or any."""
    import keras

    of = layers()
    taken = keras.Input((size, size, 3))
    x = of.Conv2D(4, 3, 2, activation="relu")(taken)
    for make in between:
        x = make(x)
    x = head(x) if head else of.Dense(10)(of.GlobalAveragePooling2D()(x))
    return trained(keras.Model(taken, x))


def average(x: Any) -> Any:
    return layers().GlobalAveragePooling2D()(x)


def in_dictionaries(model: Any) -> Any:
    import keras

    return keras.Model({"image": model.inputs[0]}, {"scores": model.outputs[0]})


def normalise(x: Any) -> Any:
    return layers().BatchNormalization()(x)


def of_one_relu(**settings: Any) -> Any:
    relu = layers().ReLU()
    return residual(relu=lambda: relu, **settings)


def idle_convolution() -> Any:
    """Zeros, as initialized; `trained` leaves these weights alone."""
    return layers().Conv2D(4, 3, padding="same", kernel_initializer="zeros", trainable=False)


def idle_dense() -> Any:
    import keras

    bias = keras.initializers.RandomNormal(seed=0)
    return layers().Dense(10, kernel_initializer="zeros", bias_initializer=bias, trainable=False)


def alike(name: str) -> Any:
    """A convolution that could stand in the place of another."""
    return layers().Conv2D(4, 3, padding="same", activation="relu", name=name)


def sum_of_three(x: Any) -> Any:
    of = layers()
    return of.ReLU()(of.Add()([x, of.Conv2D(4, 1)(x), of.Conv2D(4, 3, padding="same")(x)]))


def with_equal_layers(model: Any) -> Any:
    alike = [x for x in model.layers if x.weights and x.weights[0].shape == (3, 3, 4, 4)]
    alike[1].set_weights(alike[0].get_weights())
    return model


def pruned(model: Any) -> Any:
    """A convolution and its normalisation give zeros."""
    (convolution, *_), (normalisation, *_) = (
        [layer for layer in model.layers if type(layer).__name__ == kind][1:]
        for kind in ("Conv2D", "BatchNormalization")
    )
    convolution.set_weights([0 * value for value in convolution.get_weights()])
    gamma, beta, mean, variance = normalisation.get_weights()
    normalisation.set_weights([gamma, 0 * beta, 0 * mean, variance])
    return model


def decayed(model: Any) -> Any:
    """Weight decay left next to nothing of two layers, but the bias of the second."""
    for name, size, kept in (("fading", 1e-39, 1e-39), ("faded", 1e-20, 1)):
        kernel, bias = model.get_layer(name).get_weights()
        model.get_layer(name).set_weights([kernel * size, bias * kept])
    return model


def untrained() -> Any:
    """A sequential one; of weights at random, some few networks give all images one score."""
    import keras

    keras.utils.set_random_seed(0)
    of = layers()
    blocks = [
        layer
        for _ in range(2)
        for layer in (of.Conv2D(4, 3, 2), of.BatchNormalization(), of.ReLU())
    ]
    return keras.Sequential(
        [keras.Input((32, 32, 3)), *blocks, of.GlobalAveragePooling2D(), of.Dense(10)]
    )


# Each has several features, since one conversion shows them all; NOTES go by these names.
NETWORKS: dict[str, Maker] = {
    "without normalisation, layers of ReLU, standardised by images, equal layers": lambda: (
        with_equal_layers(residual(relu=lambda: layers().ReLU(), first=[adapted()]))
    ),
    "no biases, keras.ops.add, 16×16, kernels of 5, in dictionaries": lambda: in_dictionaries(
        residual(norm={}, bias=False, add=added, strides=(1, 2), kernel=5)
    ),
    "neither scale nor center, logits without biases, (x / 255 - mean) / deviation": lambda: (
        residual(
            norm={"scale": False, "center": False},
            first=[standardised],
            head=layers().Dense(10, use_bias=False),
        )
    ),
    "no scale, no biases, layers that pad, Reshape, bytes": lambda: residual(
        norm={"scale": False},
        bias=False,
        padding="layer",
        first=[layers().Rescaling(1 / 255)],
        last=lambda x: layers().Reshape((6,))(layers().AveragePooling2D(8)(x)),
        dtype="uint8",
    ),
    "no center, global average, augmented by a model, then rescaled, a batch of 128, float64": (
        lambda: under(
            "float64",
            lambda: residual(
                norm={"center": False},
                first=[augmenting(), layers().Rescaling(1 / 255)],
                last=average,
                batch_size=128,
            ),
        )
    ),
    "4×4, sizes kept, Softmax, umlauts and spaces, pixels in [-1, 1], equal weights": lambda: (
        with_equal_layers(
            residual(
                norm={},
                first=[layers().Rescaling(1 / 127.5, -1)],
                strides=(4, 2),
                last=lambda x: layers().Flatten()(
                    layers().GlobalAveragePooling2D(keepdims=True)(x)
                ),
                head=lambda x: layers().Softmax()(layers().Dense(10)(x)),
                name="große conv {}",
            )
        )
    ),
    "+, relu of keras, names with dots, 1 - x / 255 of bytes": lambda: residual(
        norm={},
        first=[inverted_bytes],
        add=plus,
        relu=rectified,
        name="block.conv.{}",
        dtype="uint8",
    ),
    "inert layers, standardised pixels, one ReLU, used everywhere, a pruned layer": lambda: pruned(
        of_one_relu(
            norm={},
            first=[
                layers().RandomTranslation(0.1, 0.1),
                layers().RandomContrast(0.1),
                layers().Normalization(mean=[120.0, 125, 110], variance=[3600.0, 3700, 4000]),
            ],
            between=[layers().Dropout(0.1), layers().SpatialDropout2D(0.1)],
        )
    ),
    "three summands, a layer of zeros, decayed layers, images of any size": lambda: decayed(
        stack(
            sum_of_three,
            lambda x: layers().Add()([x, idle_convolution()(x)]),
            lambda x: layers().Add()([x, alike("faded")(alike("fading")(x))]),
            size=None,
        )
    ),
    "ReLU twice, padded on one side, one channel, flat averages flattened": lambda: stack(
        layers().ReLU(),
        layers().ZeroPadding2D(((1, 0), (0, 2))),
        layers().Conv2D(5, (2, 3), (2, 1)),
        layers().Conv2D(1, 3, activation="relu"),
        lambda x: layers().Add()([x, layers().Conv2D(1, 3, padding="same")(x)]),
        layers().Conv2D(1, 3),
        layers().ReLU(),
        head=lambda x: layers().Dense(10)(layers().Flatten()(average(x))),
    ),
    "names that differ in dots alone, names of attributes and of words of Python": lambda: stack(
        *(alike(name) for name in ("block.1", "block_1", "class", "training")),
        lambda x: layers().Add(name="def")([x, alike("forward")(x)]),
        head=lambda x: layers().Dense(10, name="type")(average(x)),
    ),
    "models in the model": nested,
    "untrained, sequential": untrained,
    "a dense layer of zeros": lambda: stack(average, head=idle_dense()),
}
OF_ZEROS = [
    "a dense layer of zeros",
    "three summands, a layer of zeros, decayed layers, images of any size",
]


class Converted:
    """A network on its way to PyTorch."""

    def __init__(self, model: Any, folder: Path, name: str = "own.keras") -> None:
        self.folder, self.path, self.model = folder, folder / name, model
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras calls its own .h5 format old
            model.save(self.path)
        self.record = keras_to_onnx.convert(self.path, folder)
        self.onnx, self.folded = folder / "model.onnx", folder / "folded.onnx"
        fold.fold(self.onnx, self.folded)
        self.network = network.read(self.folded)

    def structure(self) -> dict[str, str]:
        """The checks of the structure that fail."""
        with np.load(self.folder / "keras_weights.npz") as weights:
            checks, _ = structure.verify_onnx(self.onnx, self.record["layers"], dict(weights))
        return {check.name: check.observed for check in failed(checks)}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Converted]:
    """Converts a network once for all tests."""

    @functools.cache
    def convert(name: str) -> Converted:
        return Converted(NETWORKS[name](), tmp_path_factory.mktemp("own"))

    return convert


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_ones_own_stays_the_same_network(
    name: str, converted: Callable[[str], Converted], tmp_path: Path
) -> None:
    own = converted(name)
    model = own.model
    batch = model.inputs[0].shape[0]
    images = np.resize(IMAGES, (batch or len(IMAGES), 32, 32, 3)).astype(np.float32)
    scores = model(images, training=False)
    scores = scores["scores"] if isinstance(scores, dict) else scores
    expected = np.asarray(scores, np.float32)[: len(IMAGES)]
    # Else no image could tell another network from this one.
    assert (np.ptp(expected, axis=0).max() > 0.01) != (name == "a dense layer of zeros")
    module = onnx_to_torch.convert(own.folded)
    onnx_to_torch.export(module, tmp_path / "model.pt2")
    for path in (own.path, own.onnx, own.folded, tmp_path / "model.pt2"):
        scores = backends.scores(path, IMAGES, threads=1)
        assert failed(parity(path.name, expected, scores, PARITY_ATOL)) == []
    assert own.structure() == {}
    assert failed(onnx_to_torch.verify(own.folded, module)) == []
    found = {layer["name"]: layer["parameters"] for layer in own.record["layers"]}
    assert sum(found.values()) == own.record["parameters"] == model.count_params()


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_made_of_it_in_8_bits_is_proven(
    name: str, converted: Callable[[str], Converted], tmp_path: Path
) -> None:
    """The evidence of the pretrained model, for each tuned row."""
    own = converted(name)
    labels = np.arange(len(IMAGES)) % 10
    recipes = {row.quantized_by.key: row.quantized_by for row in configurations.calibrated()}
    for key, recipe in recipes.items():
        (tmp_path / key).mkdir()
        found = collect(own.network, IMAGES, recipe)
        decide(found, recipe, recipe.weight_limit).save(tmp_path / key)
        assert failed(same_function("both", own.onnx, tmp_path / key / EXACT, IMAGES, 1)) == []
    for row in configurations.calibrated():
        backend = backends.backend(row.framework)
        parameters = Parameters.load(tmp_path / row.quantized_by.key)
        path = tmp_path / row.name.replace("/", "-") / backends.file_of(row)
        path.parent.mkdir()
        backend.write(parameters, row, path)
        scores = backends.scores(path, IMAGES, threads=1, execution=row.session)
        stored = backend.read_back(path, parameters.rounded)
        exact = (
            ExactNetwork(parameters.rounded, stored, rounding(row.framework)).scores(IMAGES)
            if row.execution == "kernel"
            else None
        )
        proof = prove(row, path, parameters, Labelled(fed(IMAGES), labels), scores, exact)
        assert failed(proof["checks"]) == []
        assert exact is None or proof["exact_integers"]["disagreements"] == 0


@pytest.mark.parametrize("row", configurations.stock(), ids=lambda row: row.name)
@pytest.mark.parametrize("name", OF_ZEROS)
def test_a_stock_model_without_a_sure_class_or_of_a_silent_layer_is_proven(
    name: str,
    row: configurations.Configuration,
    converted: Callable[[str], Converted],
    tmp_path: Path,
) -> None:
    """ONNX Runtime spans probabilities from 0 to 1, whatever it sees; a map of zeros by 1.0."""
    own = converted(name)
    backend = backends.backend(row.framework)
    path = tmp_path / backends.file_of(row)
    record = backend.quantize(own.folded, IMAGES, row, path, 1)
    spans = stock.spans(own.network, IMAGES)
    proof = stock.prove(row, path, own.network, IMAGES, record, spans)
    assert failed(proof["checks"]) == []


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_is_computed_in_float32_and_said(policy: str, tmp_path: Path) -> None:
    own = Converted(under(policy, lambda: stack(layers().Conv2D(4, 3), normalise)), tmp_path)
    assert own.record["notes"] == [f"{policy}: weights and arithmetic are float32 here"]
    assert own.record["notes"][0] in (tmp_path / "conversion.log").read_text(encoding="utf-8")
    scores = [backends.scores(path, IMAGES, threads=1) for path in (own.path, own.folded)]
    assert failed(parity("", scores[0], scores[1], PARITY_ATOL)) == []
    assert own.structure() == {}


@pytest.mark.parametrize("name", ["own.h5", "own.hdf5", "own.H5"])
def test_each_name_of_the_older_format_is_read(name: str, tmp_path: Path) -> None:
    model = stack()
    model.compile("adam", "sparse_categorical_crossentropy")
    path = tmp_path / "own.h5"
    model.save(path)
    path = path.rename(tmp_path / name)
    assert keras_to_onnx.load(path).count_params() == model.count_params()


INERT, OPERATORS = "inert at inference, left out: ", "operators, written as layers: "
AGAIN = "used more than once, written once for each use: "
RENAMED = "layers were renamed: letters that TensorFlow does not take, or a name twice"
NOTES = [
    ("augmented", INERT + "RandomFlip, RandomRotation"),
    ("inert layers", INERT + "Dropout, RandomContrast, RandomTranslation, SpatialDropout2D"),
    ("models in", INERT + "GaussianNoise, RandomFlip"),
    (" model", "models inside the model were made part of it"),
    ("sequential", "a sequential model, written as a functional one"),
    ("bytes", "uint8: weights and arithmetic are float32 here"),
    ("float64", "float64: weights and arithmetic are float32 here"),
    ("of 128", "saved for batches of 128; takes batches of any size here"),
    ("any size", "saved for images of any size; takes 32×32 here"),
    ("dictionaries", "its input or output lies in a dictionary; taken out of it here"),
    ("one ReLU", AGAIN + "re_lu, dropout, spatial_dropout2d"),
    ("keras.ops.add", OPERATORS + "add, add"),
    ("deviation", OPERATORS + "true_divide, subtract, true_divide"),
    ("+", OPERATORS + "cast, multiply, subtract, add, add"),
    ("umlauts", RENAMED),
    ("models in", RENAMED),
]
"""A feature in the name of a network, and what is said of it, in this order."""


@pytest.mark.parametrize("name", NETWORKS)
def test_what_was_written_otherwise_is_said(
    name: str, converted: Callable[[str], Converted]
) -> None:
    notes = [re.sub(r"_\d+\b", "", note) for note in converted(name).record["notes"]]
    assert notes == [note for feature, note in NOTES if feature in name]


def test_a_flat_network_that_is_another_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = stack(layers().Dropout(0.1), layers().Conv2D(4, 3), layers().Activation("relu"))
    monkeypatch.setattr(flat, "INERT", flat.INERT | {"Activation"})
    with pytest.raises(ModelError, match="could not be written as one flat network"):
        flat.flattened(model, "own.keras")


@pytest.mark.parametrize("batch", [None, 1, 2, 3, 32])
def test_it_is_held_against_the_one_that_was_loaded_at_any_batch(
    batch: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: twice the brightness, of which a black image says nothing."""
    import keras

    taken = keras.Input((32, 32, 3), batch_size=batch)
    x = layers().GlobalAveragePooling2D()(taken / 255)
    model = keras.Model(taken, layers().Dense(10)(x))
    flat.flattened(model, "own.keras")

    def planted(kind: str, constant: Any, *, reverse: bool) -> dict[str, list[float]]:
        return {"scale": (2 / constant).tolist(), "offset": [0.0]}

    monkeypatch.setattr(flat, "rescaling", planted)
    with pytest.raises(ModelError, match="could not be written as one flat network"):
        flat.flattened(model, "own.keras")


# --- what is refused -----------------------------------------------------------------------------


def block(*, normalise: bool) -> Any:
    """A pre-activation block."""
    import keras

    of = layers()
    taken = keras.Input((32, 32, 3))
    x = y = of.Conv2D(4, 3, 2)(taken)
    y = of.BatchNormalization()(y) if normalise else y
    x = of.Add()([x, of.Conv2D(4, 3, padding="same")(of.ReLU()(y))])
    x = of.BatchNormalization()(x) if normalise else x
    return keras.Model(taken, of.Dense(10)(of.GlobalAveragePooling2D()(of.ReLU()(x))))


def two_outputs() -> Any:
    import keras

    model = stack()
    return keras.Model(model.inputs, [model.outputs[0], model.layers[-2].output])


def twice() -> Any:
    """One layer, used twice."""
    import keras

    of = layers()
    taken = keras.Input((32, 32, 3))
    same = of.Conv2D(3, 3, padding="same")
    return keras.Model(taken, of.Dense(10)(of.GlobalAveragePooling2D()(same(same(taken)))))


def vectors() -> Any:
    import keras

    taken = keras.Input((3072,))
    return keras.Model(taken, layers().Dense(10)(layers().Reshape((3072,))(taken)))


def convolution_for_scores() -> Any:
    import keras

    x = taken = keras.Input((32, 32, 3))
    x = layers().Conv2D(4, 3, activation="relu")(x)
    x = layers().Conv2D(10, 1)(layers().GlobalAveragePooling2D(keepdims=True)(x))
    return keras.Model(taken, layers().Flatten()(x))


REFUSED: dict[str, tuple[Maker, str]] = {
    "ReLU6": (lambda: stack(layers().ReLU(6.0)), "ReLU6 or another Clip"),
    "a ReLU that leaks": (lambda: stack(layers().ReLU(None, 0.1)), "LeakyReLU"),
    "LeakyReLU": (lambda: stack(layers().LeakyReLU()), "'LeakyReLU'"),
    "depthwise": (lambda: stack(layers().DepthwiseConv2D(3)), "'DepthwiseConv2D'"),
    "pool7": (
        lambda: stack(layers().AveragePooling2D(5), layers().Flatten(), head=layers().Dense(10)),
        "an average over 5×5 of a map of 15×15",
    ),
    "two dense layers": (
        lambda: stack(average, layers().Dense(9), head=layers().Dense(10)),
        "more than one dense layer",
    ),
    "a dense layer with ReLU": (
        lambda: stack(average, head=layers().Dense(10, activation="relu")),
        "one with an activation",
    ),
    "before its normalisation": (lambda: block(normalise=True), "that follows Add ("),
    "normalised pixels": (
        lambda: residual(first=[layers().BatchNormalization()]),
        "that follows InputLayer (",
    ),
    "groups": (
        lambda: stack(layers().Conv2D(6, 3, groups=2)),
        "a convolution in 2 groups (",
    ),
    "a ReLU with a threshold": (
        lambda: stack(layers().ReLU(threshold=0.5)),
        "a ReLU with a threshold (",
    ),
    "a convolution for scores": (convolution_for_scores, "an average that is not flattened ("),
    "a layer that is used twice": (twice, "a layer that is used 2 times ("),
    "before its ReLU": (lambda: block(normalise=False), "both before and after its ReLU"),
    "two outputs": (two_outputs, "output (None, 10) and (None, 4)"),
    "CIFAR-100": (lambda: stack(average, head=layers().Dense(100)), "output (None, 100)"),
    "normalised twice": (
        lambda: stack(layers().Conv2D(4, 3), layers().BatchNormalization(), normalise),
        "that follows BatchNormalization (",
    ),
    "normalised rows": (
        lambda: stack(layers().Conv2D(4, 3), layers().BatchNormalization(axis=1)),
        "a batch normalisation over axis 1 (",
    ),
    "a scale inside": (
        lambda: stack(lambda x: x * 0.5),
        "Rescaling that does not follow the input",
    ),
    "a product of maps": (lambda: stack(lambda x: x * x), "Multiply of two maps"),
    "one divided by a map": (lambda: stack(lambda x: 1 / (x + 1)), "no scale and shift ("),
    "a sum of a map and its averages": (
        lambda: stack(lambda x: x + layers().GlobalAveragePooling2D(keepdims=True)(x)),
        "an average that is not flattened (",
    ),
    "a sum of a map and one channel": (
        lambda: stack(lambda x: x + layers().Conv2D(1, 3, padding="same")(x)),
        "an addition of (N, 4, 15, 15) and (N, 1, 15, 15) (",
    ),
    "no average": (
        lambda: stack(layers().Flatten(), head=layers().Dense(10)),
        "a map that is flattened, but not averaged",
    ),
    "a dense layer on a map": (
        lambda: stack(layers().Dense(10), head=average),
        "a dense layer on maps of (15, 15, 4) (",
    ),
    "a padded average": (
        lambda: stack(layers().ZeroPadding2D()),
        "a padding that no convolution follows at once",
    ),
    "softmax twice": (
        lambda: stack(average, layers().Dense(10, activation="softmax"), head=layers().Softmax()),
        "a softmax that does not give the scores",
    ),
    "vectors": (vectors, "an input of shape [None, 3072]"),
    "a random crop": (lambda: residual(first=[layers().RandomCrop(32, 32)]), "'RandomCrop'"),
}


@pytest.mark.parametrize(("make", "given"), REFUSED.values(), ids=REFUSED)
def test_another_network_is_refused_in_one_sentence(
    make: Maker, given: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError) as caught:
        Converted(make(), tmp_path)
    assert given in caught.value.given
    assert "docs/own-models.md" in caught.value.next_step or "CIFAR-10" in caught.value.next_step


def test_code_of_ones_own_is_refused_with_what_to_do(tmp_path: Path) -> None:
    import keras

    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.inner = stack()

        def call(self, images: Any) -> Any:
            return self.inner(images)

    own = Own()
    own(IMAGES)
    called = stack(layers().Lambda(lambda x: x))
    for model, given in ((own, "a model of class 'Own'"), (called, "a layer of class 'Lambda'")):
        model.save(tmp_path / "own.keras")
        with pytest.raises(ModelError, match="from Keras's own layers, without Lambda") as caught:
            keras_to_onnx.load(tmp_path / "own.keras")
        assert given in caught.value.given


def test_what_keras_cannot_read_itself_is_said_in_its_last_words(tmp_path: Path) -> None:
    stack(lambda x: plus(x, x)).save(tmp_path / "own.h5")
    with pytest.raises(ModelError, match=r"Keras cannot load own\.h5") as caught:
        keras_to_onnx.load(tmp_path / "own.h5")
    assert "config={" not in caught.value.given


def test_weights_alone_are_refused(tmp_path: Path) -> None:
    stack().save_weights(tmp_path / "own.weights.h5")
    with pytest.raises(ModelError, match="not its weights alone") as caught:
        keras_to_onnx.load(tmp_path / "own.weights.h5")
    assert "weights without a network" in caught.value.given


# --- planted faults ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """Its normalisations are merged into its convolutions, and its pixels shifted."""
    first = [layers().Rescaling(1 / 127.5, -1)]
    return Converted(residual(norm={}, bias=False, first=first), tmp_path_factory.mktemp("merged"))


def changed(own: Converted, change: Callable[[dict[str, NDArray[Any]]], object]) -> set[str]:
    """The checks that fail after a change of the constants of the ONNX model."""
    whole = own.onnx.read_bytes()
    model = onnx.load_from_string(whole)
    constants = {x.name: numpy_helper.to_array(x).copy() for x in model.graph.initializer}
    change(constants)
    for entry in model.graph.initializer:
        entry.CopyFrom(numpy_helper.from_array(constants[entry.name], entry.name))
    try:
        own.onnx.write_bytes(model.SerializeToString())
        return set(own.structure())
    finally:
        own.onnx.write_bytes(whole)


def by_a_thousandth(ndim: int) -> Callable[[dict[str, NDArray[Any]]], object]:
    """Change the largest value of the second constant of some number of dimensions."""

    def change(constants: dict[str, NDArray[Any]]) -> None:
        value = [x for x in constants.values() if x.ndim == ndim and x.dtype == np.float32][1]
        value.flat[np.abs(value).argmax()] *= np.float32(1.001)

    return change


LOST, FOREIGN = "layers whose weights are not in ONNX", "ONNX weights that are not from Keras"


def test_a_fault_in_a_merged_convolution_is_seen(merged: Converted) -> None:
    assert changed(merged, lambda constants: None) == set()
    for ndim in (4, 1):  # kernel, bias
        assert {LOST, FOREIGN} <= changed(merged, by_a_thousandth(ndim))


def test_a_fault_in_what_is_done_to_pixels_is_seen(merged: Converted) -> None:
    for name in pixels.front(onnx.load(merged.onnx).graph).constants:
        assert changed(merged, lambda c, n=name: c.update({n: c[n] * np.float32(1.001)})) == {  # type: ignore[misc]
            "scale and shift of pixels, relative"
        }


def test_a_layer_that_changes_pixels_is_missed(merged: Converted) -> None:
    layers_ = merged.record["layers"]
    merged.record["layers"] = [layer for layer in layers_ if "scale" not in layer]
    try:
        counted = "float32 values in the ONNX file, from Keras"
        assert set(merged.structure()) == {FOREIGN, counted}
    finally:
        merged.record["layers"] = layers_


def test_one_convolution_does_not_stand_for_two_layers(tmp_path: Path) -> None:
    model = with_equal_layers(stack(layers().Conv2D(4, 3), layers().Conv2D(4, 3)))
    own = Converted(model, tmp_path)
    model = onnx.load(own.onnx)
    kernels = [node.input[1] for node in model.graph.node if node.op_type == "Conv"]
    (kernel,) = {name for name in kernels if kernels.count(name) == 2}
    node = next(n for n in model.graph.node if n.op_type == "Conv" and n.input[1] == kernel)
    model.graph.node.remove(node)
    own.onnx.write_bytes(model.SerializeToString())
    assert {"convolutions", LOST} <= set(own.structure())


def test_the_edges_of_shifted_pixels_are_exact(merged: Converted, tmp_path: Path) -> None:
    """Without what the second convolution adds, only the edges of the first map would differ."""
    model = onnx.load(merged.folded)
    (edge,) = (node for node in model.graph.node if node.name.endswith("/edge"))
    (bias,) = (entry for entry in model.graph.initializer if entry.name == edge.input[2])
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 1, bias.name))
    (tmp_path / "other.onnx").write_bytes(model.SerializeToString())
    scores = [
        backends.scores(path, IMAGES, threads=1) for path in (merged.onnx, tmp_path / "other.onnx")
    ]
    assert failed(parity("", scores[0], scores[1], PARITY_ATOL)) != []


def test_softmax_is_applied_to_logits_only() -> None:
    logits = np.array([[2, -1, 0], [900, 0, 0]], np.float32)
    made = probabilities(logits)
    np.testing.assert_allclose(made.sum(1), 1, rtol=1e-6)
    assert probabilities(made) is made
    assert (made.argmax(1) == logits.argmax(1)).all()


def test_a_record_is_of_built_in_types(merged: Converted) -> None:
    assert json.loads(json.dumps(merged.record)) == merged.record
