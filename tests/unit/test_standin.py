"""The stand-in: pinned bytes, the official layout, and the weights of a ResNet8."""

import hashlib
import io
import json
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from resnet8_eval import standin

WEIGHTS = Path(__file__).parents[2] / "fixtures" / "standin" / "resnet8_standin.h5"

DRAW_SHA256 = "e520bf6f11b9bb5addb09ef275e4207ce852210424bd17b59dac14c7b3064a7d"
FILES_SHA256 = {
    "batches.meta": "0bcd6514e594efd7dc17c631920b9311a7753568340e34b08b0c7ec14caec438",
    "data_batch_1": "6992fde3e2a0feb76db5c0542526b7f6c35db4c1d650f534b6cb2f625dab3cdf",
    "data_batch_2": "fdbabd985f363bb3bc743ffec2ff1718b59fd9255a9fa713d5be0bb1c5cfb4b7",
    "data_batch_3": "8cb077096028de38f4b1e7a24f098cba7266d425c1203131fe40d43c3419c074",
    "data_batch_4": "0a6af95c5607913d4c0590cd0cebb1b5c25ca8bb42e47ffab6720f2c48cf9993",
    "data_batch_5": "c11e463c4f741cbf2ed0b602743844796d7c9e59a40b3b4005019e2381c4355b",
    "test_batch": "1cb87864867c9e1a25b7162dc0c0509fa1bee2600d4bc53de4125e242365251e",
}

# What `pickletools` finds in the official files.
OFFICIAL_GLOBALS = {"numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"}
OFFICIAL_OPCODES = """
PROTO STOP MARK EMPTY_DICT SETITEMS EMPTY_LIST APPENDS TUPLE TUPLE1 TUPLE2 TUPLE3 NONE NEWFALSE
BININT BININT1 BININT2 SHORT_BINSTRING BINSTRING GLOBAL REDUCE BUILD
"""


class RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        assert f"{module} {name}" in OFFICIAL_GLOBALS
        return super().find_class(module, name)


def read(path: Path) -> Any:
    return RestrictedUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("standin") / "new" / "cifar-10-batches-py"
    standin.materialise(folder)
    return folder


def test_draw_gives_balanced_rgb_bytes() -> None:
    images, labels = standin.draw(7, seed=42)
    assert images.shape == (70, 32, 32, 3)
    assert labels.shape == (70,)
    assert images.dtype == labels.dtype == np.uint8
    assert np.bincount(labels).tolist() == [7] * len(standin.CLASSES)
    assert not np.array_equal(labels, np.sort(labels))
    assert images.reshape(70, -1).std(axis=1).min() > 1


def test_draw_is_pinned_to_its_seed() -> None:
    images, labels = standin.draw(2, seed=42)
    assert hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() == DRAW_SHA256
    assert not np.array_equal(images, standin.draw(2, seed=43)[0])


def test_materialised_bytes_are_pinned(folder: Path) -> None:
    found = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
    assert found == FILES_SHA256


def test_pickles_use_only_what_the_official_files_use(folder: Path) -> None:
    for path in folder.iterdir():
        found = [(opcode.name, arg) for opcode, arg, _ in pickletools.genops(path.read_bytes())]
        assert found[0] == ("PROTO", 2)
        assert {name for name, _ in found} <= set(OFFICIAL_OPCODES.split())
        assert {arg for name, arg in found if name == "GLOBAL"} <= OFFICIAL_GLOBALS


@pytest.mark.parametrize(
    ("name", "title", "count"),
    [
        *((f"data_batch_{i}", b"training batch %d of 5" % i, 600) for i in range(1, 6)),
        ("test_batch", b"testing batch 1 of 1", 2000),
    ],
)
def test_batches_have_the_official_layout(
    folder: Path, name: str, title: bytes, count: int
) -> None:
    batch = read(folder / name)
    assert list(batch) == [b"batch_label", b"labels", b"data", b"filenames"]
    assert batch[b"batch_label"] == title
    assert batch[b"data"].shape == (count, 3072)
    assert batch[b"data"].dtype == np.uint8
    assert {type(label) for label in batch[b"labels"]} == {int}
    assert np.bincount(batch[b"labels"]).tolist() == [count // 10] * 10
    assert len(set(batch[b"filenames"])) == count
    for label, filename in zip(batch[b"labels"], batch[b"filenames"], strict=True):
        assert filename.startswith(standin.CLASSES[label].encode())


def test_data_rows_are_the_drawn_images_as_planes(folder: Path) -> None:
    images, labels = standin.draw(standin.TRAIN_PER_BATCH // 10, standin.TRAIN_SEEDS[2])
    batch = read(folder / "data_batch_3")
    planes = batch[b"data"].reshape(-1, 3, 32, 32)
    assert np.array_equal(planes.transpose(0, 2, 3, 1), images)
    assert batch[b"labels"] == labels.tolist()


def test_meta_names_the_classes(folder: Path) -> None:
    assert read(folder / "batches.meta") == {
        b"num_cases_per_batch": 600,
        b"label_names": [name.encode() for name in standin.CLASSES],
        b"num_vis": 3072,
    }


def test_no_image_occurs_twice_in_training_and_test(folder: Path) -> None:
    batches = [read(folder / name)[b"data"] for name in FILES_SHA256 if "batch_" in name]
    batches.append(read(folder / "test_batch")[b"data"])
    rows = {row.tobytes() for batch in batches for row in batch}
    assert len(rows) == standin.TRAIN_BATCHES * standin.TRAIN_PER_BATCH + standin.TEST_COUNT


# The MLPerf Tiny ResNet8: class, name, inputs; for convolutions also filters, size and stride.
ARCHITECTURE = """
InputLayer input_1
Conv2D conv2d input_1 16 3 1
BatchNormalization batch_normalization conv2d
Activation activation batch_normalization
Conv2D conv2d_1 activation 16 3 1
BatchNormalization batch_normalization_1 conv2d_1
Activation activation_1 batch_normalization_1
Conv2D conv2d_2 activation_1 16 3 1
BatchNormalization batch_normalization_2 conv2d_2
Add add activation,batch_normalization_2
Activation activation_2 add
Conv2D conv2d_3 activation_2 32 3 2
BatchNormalization batch_normalization_3 conv2d_3
Activation activation_3 batch_normalization_3
Conv2D conv2d_4 activation_3 32 3 1
Conv2D conv2d_5 activation_2 32 1 2
BatchNormalization batch_normalization_4 conv2d_4
Add add_1 conv2d_5,batch_normalization_4
Activation activation_4 add_1
Conv2D conv2d_6 activation_4 64 3 2
BatchNormalization batch_normalization_5 conv2d_6
Activation activation_5 batch_normalization_5
Conv2D conv2d_7 activation_5 64 3 1
Conv2D conv2d_8 activation_4 64 1 2
BatchNormalization batch_normalization_6 conv2d_7
Add add_2 conv2d_8,batch_normalization_6
Activation activation_6 add_2
AveragePooling2D average_pooling2d activation_6
Flatten flatten average_pooling2d
Dense dense flatten
"""
PARAMETERS = 78_666


def layers() -> list[dict[str, Any]]:
    with h5py.File(WEIGHTS) as file:
        model = json.loads(file.attrs["model_config"])
    assert (model["class_name"], model["config"]["name"]) == ("Functional", "model")
    return list(model["config"]["layers"])


def described(layer: dict[str, Any]) -> str:
    inputs = re.findall(r'"keras_history": \["(\w+)"', json.dumps(layer["inbound_nodes"]))
    words = [layer["class_name"], layer["name"], ",".join(inputs)]
    if layer["class_name"] == "Conv2D":
        config = layer["config"]
        (size, width), (stride, across) = config["kernel_size"], config["strides"]
        assert (size, stride) == (width, across)
        words += [str(config["filters"]), str(size), str(stride)]
    return " ".join(words).strip()


def test_weights_have_the_architecture_of_resnet8() -> None:
    assert [described(layer) for layer in layers()] == ARCHITECTURE.strip().splitlines()


def test_layer_settings_are_those_of_resnet8() -> None:
    expected: dict[str, dict[str, Any]] = {
        "InputLayer": {"batch_shape": [None, 32, 32, 3], "dtype": "float32"},
        "Conv2D": {"padding": "same", "use_bias": True, "activation": "linear", "groups": 1},
        "BatchNormalization": {"momentum": 0.99, "epsilon": 1e-3, "center": True, "scale": True},
        "Activation": {"activation": "relu"},
        "AveragePooling2D": {"pool_size": [8, 8], "strides": [8, 8], "padding": "valid"},
        "Dense": {"units": 10, "activation": "softmax", "use_bias": True},
    }
    for layer in layers():
        wanted = expected.get(layer["class_name"], {})
        assert {key: layer["config"][key] for key in wanted} == wanted, layer["name"]
        if layer["class_name"] in ("Conv2D", "Dense"):
            assert layer["config"]["kernel_initializer"]["class_name"] == "HeNormal"
        if layer["class_name"] == "Conv2D":
            assert layer["config"]["kernel_regularizer"]["config"] == {"l2": 1e-4}


def test_weight_shapes_are_those_of_resnet8() -> None:
    expected: dict[str, tuple[int, ...]] = {"dense/bias": (10,), "dense/kernel": (64, 10)}
    channels = {"input_1": 3}
    for line in ARCHITECTURE.strip().splitlines():
        kind, name, *rest = line.split()
        if kind == "Conv2D":
            before, filters, size = channels[rest[0]], int(rest[1]), int(rest[2])
            expected[f"{name}/kernel"] = (size, size, before, filters)
            expected[f"{name}/bias"] = (filters,)
            channels[name] = filters
        elif rest:
            channels[name] = channels[rest[0].split(",")[0]]
        if kind == "BatchNormalization":
            for part in ("gamma", "beta", "moving_mean", "moving_variance"):
                expected[f"{name}/{part}"] = (channels[name],)

    found: dict[str, tuple[int, ...]] = {}

    def collect(path: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            assert item.dtype == np.float32
            assert np.isfinite(item[()]).all()
            found["/".join(path.split("/")[1:])] = item.shape

    with h5py.File(WEIGHTS) as file:
        file["model_weights"].visititems(collect)
    assert found == expected
    assert sum(int(np.prod(shape)) for shape in found.values()) == PARAMETERS


def test_weights_carry_no_training_state() -> None:
    with h5py.File(WEIGHTS) as file:
        assert set(file) == {"model_weights"}
        assert set(file.attrs) == {"backend", "keras_version", "model_config"}
    assert WEIGHTS.stat().st_size < 450_000
