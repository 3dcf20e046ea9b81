"""A Keras file is read before any framework opens it, and refused unless it is plain layers."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from resnet8_eval.convert import keras2, keras_file, keras_size
from resnet8_eval.errors import ModelError
from resnet8_eval.manifest import fixtures_dir

STANDIN = fixtures_dir() / "standin" / "resnet8_standin.h5"

Config = dict[str, Any]
Change = Callable[[list[Config]], object]


def config() -> Config:
    with h5py.File(STANDIN) as file:
        return dict(json.loads(file.attrs["model_config"]))


def changed(change: Change) -> str:
    found = config()
    change(found["config"]["layers"])
    return json.dumps(found)


def as_h5(path: Path, model_config: str) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = model_config
        file.create_group("model_weights")["kernel"] = np.zeros(3, np.float32)
    return path


def as_keras(path: Path, model_config: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", model_config)
        archive.writestr("metadata.json", "{}")
    return path


FORMATS = {"model.h5": as_h5, "model.keras": as_keras}


def write(folder: Path, name: str, change: Change = lambda _: None) -> Path:
    return FORMATS[name](folder / name, changed(change))


def write_changed(folder: Path, name: str, change: Callable[[Config], object]) -> Path:
    found = config()
    change(found)
    return FORMATS[name](folder / name, json.dumps(found))


def refusal(path: Path) -> str:
    with pytest.raises(
        ModelError, match="is not a Keras model that this suite can judge"
    ) as caught:
        keras_file.demand_known(path)
    assert str(path) in caught.value.given
    return caught.value.given


def described(path: Path) -> list[Config]:
    """The layers of a file that is not refused."""
    keras_file.demand_known(path)
    return keras_size.layers_of(keras2.read(path)[1])


def test_the_stand_in_is_described() -> None:
    layers = described(STANDIN)
    kinds = [layer["class_name"] for layer in layers]
    assert (kinds.count("Conv2D"), kinds.count("Dense"), kinds[0]) == (9, 1, "InputLayer")
    assert layers[-1]["config"]["units"] == 10


@pytest.mark.parametrize("name", FORMATS)
def test_both_formats_give_the_same_layers(tmp_path: Path, name: str) -> None:
    assert described(write(tmp_path, name)) == described(STANDIN)


def replace_layer(class_name: str, **settings: Any) -> Change:
    def change(layers: list[Config]) -> None:
        layers[3] = {"class_name": class_name, "config": {"name": "planted", **settings}}

    return change


def set_activation(value: object) -> Change:
    def change(layers: list[Config]) -> None:
        layers[1]["config"]["activation"] = value

    return change


def replace_operation(module: str) -> Change:
    """Put something in that has the name of a known layer and comes from elsewhere."""

    def change(layers: list[Config]) -> None:
        layers[3] = {
            "class_name": "Add",
            "module": module,
            "config": {"name": "planted"},
            "registered_name": "Add",
        }

    return change


FAULTS: dict[str, tuple[Change, str]] = {
    "Lambda": (replace_layer("Lambda", function=["4wEAAAA=", None, None]), "'Lambda'"),
    "TFOpLambda": (replace_layer("TFOpLambda", function="io.write_file"), "'TFOpLambda'"),
    "custom layer": (replace_layer("MyLayer"), "'MyLayer'"),
    "Lambda in a model in the model": (
        replace_layer("Functional", layers=[{"class_name": "Lambda", "config": {}}]),
        "'Lambda'",
    ),
    "an operation of another module": (replace_operation("os"), "the module 'os'"),
    "wrapper": (replace_layer("TimeDistributed", layer={"class_name": "Lambda"}), "'TimeDist"),
    "custom activation": (set_activation("my_activation"), "'my_activation'"),
    "activation that is an object": (
        set_activation({"module": "os", "class_name": "function", "config": "system"}),
        "activation",
    ),
    "activation that is a list": (set_activation(["relu"]), "activation"),
    "layer without a class": (lambda layers: layers[2].pop("class_name"), "KeyError"),
    "layer without settings": (lambda layers: layers[2].pop("config"), "KeyError"),
    "layer that is none": (lambda layers: layers.append("planted"), "TypeError"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("change", "given"), FAULTS.values(), ids=FAULTS)
def test_what_a_resnet8_does_not_have_is_refused(
    tmp_path: Path, name: str, change: Change, given: str
) -> None:
    assert given in refusal(write(tmp_path, name, change))


LAMBDA = {"class_name": "Lambda", "config": {"function": {"class_name": "__lambda__"}}}


def set_first(name: str, value: object) -> Callable[[Config], object]:
    """Put something into the settings of the first convolution."""
    return lambda model: model["config"]["layers"][1]["config"].update({name: value})


def as_top_level(class_name: str) -> Callable[[Config], object]:
    function = {"module": "builtins", "class_name": "function", "config": "eval"}
    return lambda model: model.update(
        class_name=class_name, config={"layers": [], "function": function, "name": "planted"}
    )


def in_a_connection(model: Config) -> None:
    model["config"]["layers"][1]["inbound_nodes"][0]["kwargs"]["mask"] = LAMBDA


OBJECTS: dict[str, tuple[Callable[[Config], object], str]] = {
    "Lambda as the model": (as_top_level("Lambda"), "'Lambda'"),
    "TFSMLayer as the model": (as_top_level("TFSMLayer"), "'TFSMLayer'"),
    "class of the model that is none": (
        lambda model: model.update(class_name=["Model"]),
        "'Model'",
    ),
    "Lambda as an initializer": (set_first("kernel_initializer", LAMBDA), "'Lambda'"),
    "layer as an initializer": (
        set_first("bias_initializer", {"class_name": "Conv2D", "config": {}}),
        "'Conv2D'",
    ),
    "TorchModuleWrapper as a regularizer": (
        set_first("kernel_regularizer", {"class_name": "TorchModuleWrapper", "config": {}}),
        "'TorchModuleWrapper'",
    ),
    "StringLookup as a constraint": (
        set_first("kernel_constraint", {"class_name": "StringLookup", "config": {}}),
        "'StringLookup'",
    ),
    "TFSMLayer as a type": (
        set_first("dtype", {"class_name": "TFSMLayer", "config": {"filepath": "/x"}}),
        "'TFSMLayer'",
    ),
    "Lambda deep in a list": (set_first("strides", [[{"deep": [LAMBDA]}]]), "'Lambda'"),
    "Lambda in a connection": (in_a_connection, "'Lambda'"),
    "module of something else": (
        set_first("bias_initializer", {"module": "os", "class_name": "Zeros", "config": {}}),
        "the module 'os'",
    ),
    "module without a class": (set_first("kernel_constraint", {"module": "os"}), "class None"),
    "module of Keras that makes no layers": (
        lambda model: model["config"]["layers"][1].update(module="keras.src.utils.file_utils"),
        "the module",
    ),
    "registered name of a model": (
        lambda model: model.update(registered_name="My>Model"),
        "the registered name 'My>Model'",
    ),
    "registered name of a layer": (
        lambda model: model["config"]["layers"][1].update(registered_name="My>Conv"),
        "the registered name 'My>Conv'",
    ),
    "registered name without a class": (
        set_first("kernel_constraint", {"registered_name": "My>Constraint"}),
        "class None",
    ),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("change", "given"), OBJECTS.values(), ids=OBJECTS)
def test_objects_that_no_resnet8_holds_are_refused(
    tmp_path: Path, name: str, change: Callable[[Config], object], given: str
) -> None:
    assert given in refusal(write_changed(tmp_path, name, change))


def policy(module: str, registered: str | None = None, **settings: object) -> Config:
    return {
        "class_name": "Policy",
        "module": module,
        "registered_name": registered,
        "config": {"name": "float32", **settings},
    }


def as_operator(module: str) -> Callable[[Config], object]:
    """Put what Keras 2 wrote of a function in the place of a layer."""

    def change(model: Config) -> None:
        model["config"]["layers"][3] = {
            "class_name": "TFOpLambda",
            "module": module,
            "config": {"name": "planted", "function": "nn.relu"},
            "inbound_nodes": [["conv2d", 0, 0, {"name": None}]],
        }

    return change


TRANSLATED = {
    "module of a policy": set_first("dtype", policy("planted")),
    "registered name of a policy": set_first(
        "dtype", policy("keras.mixed_precision", "planted>Policy")
    ),
    "Lambda in a policy": set_first("dtype", policy("keras.mixed_precision", x=LAMBDA)),
    "module of an operator": as_operator("planted"),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("change", TRANSLATED.values(), ids=TRANSLATED)
def test_what_a_translation_drops_is_not_given_to_keras(
    tmp_path: Path, name: str, change: Callable[[Config], object]
) -> None:
    path = claimed(write_changed(tmp_path, name, change), "2.21.0")
    keras_file.demand_known(path)
    (tmp_path / "copy").mkdir()
    copy = keras2.rewritten(path, tmp_path / "copy")
    assert keras2.read(copy)[0] == keras2.read(path)[1] != keras2.read(path)[0]
    refusal(claimed(path, "3.15.1"))


@pytest.mark.parametrize("name", FORMATS)
def test_a_translation_is_judged_by_the_version_that_the_file_claims(
    tmp_path: Path, name: str
) -> None:
    change = set_first("dtype", policy("keras.mixed_precision"))
    path = write_changed(tmp_path, name, change)
    assert described(claimed(path, "2.21.0"))
    assert "'Policy'" in refusal(claimed(path, "3.15.1"))


def claimed(path: Path, version: str | None) -> Path:
    """The file, as one that a version of Keras wrote."""
    if version and path.suffix == ".h5":
        with h5py.File(path, "r+") as file:
            file.attrs["keras_version"] = version
    elif version:
        with zipfile.ZipFile(path) as archive:
            description = archive.read("config.json")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", description)
            archive.writestr("metadata.json", json.dumps({"keras_version": version}))
    return path


def test_what_is_not_compiled_need_not_be_known(tmp_path: Path) -> None:
    optimizer = {"module": "keras.optimizers", "class_name": "Adam", "config": {}}
    path = write_changed(
        tmp_path, "model.keras", lambda m: m.update(compile_config={"optimizer": optimizer})
    )
    assert described(path) == described(STANDIN)


# --- networks that are far too large -------------------------------------------------------------


def many_layers(model: Config) -> None:
    model["config"]["layers"] += 1000 * [{"class_name": "Flatten", "config": {}}]


def padded(padding: object) -> Callable[[Config], object]:
    return lambda model: model["config"]["layers"].append(
        {"class_name": "ZeroPadding2D", "config": {"padding": padding}}
    )


def dense(**settings: object) -> Callable[[Config], object]:
    return lambda model: model["config"]["layers"][-1]["config"].update(settings)


VALUES = "values of one image"
LARGE: dict[str, tuple[Callable[[Config], object], str]] = {
    "filters": (set_first("filters", 15_000_000), VALUES),
    "filters that are no whole number": (set_first("filters", 1.5e7), VALUES),
    "filters without end": (set_first("filters", float("inf")), "inf values"),
    "filters that are no number": (set_first("filters", float("nan")), "inf values"),
    "kernel": (set_first("kernel_size", [3000, 3000]), "weights"),
    "kernel without end": (set_first("kernel_size", float("inf")), "nan values"),
    "kernel of one number": (set_first("kernel_size", 3000), "weights"),
    "units": (dense(units=2**26), VALUES),
    "adapter": (dense(lora_rank=2**26), "weights"),
    "dilation": (set_first("dilation_rate", [1000, 1000]), VALUES),
    "padding": (padded([[9999, 0], [0, 0]]), VALUES),
    "padding on every side": (padded(9999), VALUES),
    "image": (
        lambda model: model["config"]["layers"][0]["config"].update(
            batch_shape=[None, 9999, 9999, 3]
        ),
        VALUES,
    ),
    "image of the model": (
        lambda model: model["config"].update(build_input_shape=[None, 9999, 9999, 3]),
        VALUES,
    ),
    "image of a layer": (
        lambda model: model["config"]["layers"][1].update(
            build_config={"input_shape": [None, 32, 32, 2**26]}
        ),
        "weights",
    ),
    "layers": (many_layers, "1,030 layers"),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("change", "given"), LARGE.values(), ids=LARGE)
def test_a_network_far_too_large_is_refused(
    tmp_path: Path, name: str, change: Callable[[Config], object], given: str
) -> None:
    assert given in refusal(write_changed(tmp_path, name, change))


def test_weights_that_unpack_to_huge_ones_are_refused(tmp_path: Path) -> None:
    """HDF5 stores nothing of what was never written, and little of what is all the same."""
    path = write(tmp_path, "model.h5")
    with h5py.File(path, "a") as file:
        for number in range(3):
            file.create_dataset(f"w{number}", (2**23,), "f4", chunks=(2**20,), compression="gzip")
    assert path.stat().st_size < 100_000
    assert "weights of 100,663,308 bytes" in refusal(path)


def test_weights_that_are_named_again_and_again_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "model.h5")
    with h5py.File(path, "a") as file:
        group = file["model_weights"].create_group("conv2d")
        group.create_dataset("kernel", (2**14,), "f4")
        group.attrs["weight_names"] = 4000 * [b"kernel"]
    assert "weights of 262,144,000 bytes" in refusal(path)


def test_more_names_than_any_network_has_weights_are_refused(tmp_path: Path) -> None:
    """A minute of reading for each megabyte of them, though the weight itself is empty."""
    path = write(tmp_path, "model.h5")
    with h5py.File(path, "a") as file:
        group = file["model_weights"].create_group("conv2d")
        group.create_dataset("k", (0,), "f4")
        for place in range(10):
            group.attrs[f"weight_names{place}"] = np.full(60_000, b"k", "S1")
    assert "600,000 names of weights" in refusal(path)


def test_weights_without_an_architecture_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "model.h5", "w") as file:
        file["kernel"] = np.zeros(3)
    assert "KeyError" in refusal(tmp_path / "model.h5")


@pytest.mark.parametrize(
    "content",
    [b"", b"not a model", STANDIN.read_bytes()[:5000], STANDIN.read_bytes()[4:], b"PK\x03\x04junk"],
    ids=["empty", "text", "truncated", "without its head", "half a zip"],
)
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_no_keras_file_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    refusal(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "other", "given"),
    [("model.keras", "model.h5", "an HDF5 file"), ("model.h5", "model.keras", "a zip archive")],
)
def test_a_file_by_the_name_of_the_other_format_is_to_be_renamed(
    tmp_path: Path, name: str, other: str, given: str
) -> None:
    path = write(tmp_path, other).rename(tmp_path / name)
    with pytest.raises(ModelError) as caught:
        keras_file.demand_known(path)
    assert caught.value.given == f"{given} by another name, in {path}"
    assert caught.value.next_step == f"rename it to {other}"


def test_a_file_cut_near_its_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.h5").write_bytes(STANDIN.read_bytes()[:-2000])
    refusal(tmp_path / "model.h5")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "FileNotFoundError" in refusal(tmp_path / "model.h5")


def test_a_zip_without_a_description_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        archive.writestr("readme.txt", "no")
    assert "KeyError" in refusal(tmp_path / "model.keras")


def test_a_huge_file_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras_file, "MAX_FILE_BYTES", STANDIN.stat().st_size - 1)
    (tmp_path / "model.h5").write_bytes(STANDIN.read_bytes())
    assert f"{STANDIN.stat().st_size:,} bytes" in refusal(tmp_path / "model.h5")


def test_a_description_that_unpacks_to_a_huge_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keras_file, "MAX_FILE_BYTES", 100_000)
    with zipfile.ZipFile(tmp_path / "model.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", " " * 200_000)
    assert "too large" in refusal(tmp_path / "model.keras")


def test_a_stowaway_in_a_keras_archive_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "model.keras")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("assets/table.txt", "no")
    assert "'assets/table.txt'" in refusal(path)


# --- data that lies elsewhere --------------------------------------------------------------------


def virtual(file: h5py.File, elsewhere: Path) -> None:
    layout = h5py.VirtualLayout(shape=(3,), dtype="f4")
    layout[:] = h5py.VirtualSource(str(elsewhere), "model_weights/kernel", shape=(3,))
    file["model_weights"].create_virtual_dataset("planted", layout)


def external(file: h5py.File, elsewhere: Path) -> None:
    file["model_weights"].create_dataset("planted", (3,), "f4", external=[(str(elsewhere), 0, 12)])


def external_link(file: h5py.File, elsewhere: Path) -> None:
    file["model_weights/planted"] = h5py.ExternalLink(str(elsewhere), "/model_weights/kernel")


def soft_link(file: h5py.File, elsewhere: Path) -> None:
    del elsewhere
    file["planted"] = h5py.SoftLink("/model_weights/kernel")


def linked_twice(file: h5py.File, elsewhere: Path) -> None:
    """Two links on each level to the next: 2^39 paths in some kilobytes."""
    del elsewhere
    group = file
    for _ in range(39):
        below = group.create_group("planted")
        group["again"] = below
        group = below


def linked_to_itself(file: h5py.File, elsewhere: Path) -> None:
    del elsewhere
    file["model_weights/planted"] = file["/"]


ELSEWHERE = [virtual, external, external_link, soft_link, linked_twice, linked_to_itself]


@pytest.mark.parametrize("plant", ELSEWHERE, ids=lambda plant: plant.__name__)
def test_data_that_lies_elsewhere_is_refused(
    tmp_path: Path, plant: Callable[[h5py.File, Path], None]
) -> None:
    elsewhere = as_h5(tmp_path / "elsewhere.h5", "{}")
    path = write(tmp_path, "model.h5")
    with h5py.File(path, "a") as file:
        plant(file, elsewhere)
    assert "planted" in refusal(path)


@pytest.mark.parametrize("plant", ELSEWHERE, ids=lambda plant: plant.__name__)
def test_weights_inside_a_keras_archive_are_looked_into_as_well(
    tmp_path: Path, plant: Callable[[h5py.File, Path], None]
) -> None:
    elsewhere = as_h5(tmp_path / "elsewhere.h5", "{}")
    weights = as_h5(tmp_path / "model.weights.h5", "{}")
    with h5py.File(weights, "a") as file:
        plant(file, elsewhere)
    path = write(tmp_path, "model.keras")
    with zipfile.ZipFile(path, "a") as archive:
        archive.write(weights, "model.weights.h5")
    assert "planted" in refusal(path)


def test_a_file_of_two_formats_is_read_as_keras_would_read_it(tmp_path: Path) -> None:
    """Keras goes by the name: what is appended to an .h5 must not speak for it."""
    path = write(tmp_path, "model.h5", replace_layer("Lambda"))
    honest = write(tmp_path, "model.keras").read_bytes()
    path.write_bytes(path.read_bytes() + honest)
    assert zipfile.is_zipfile(path)
    assert "'Lambda'" in refusal(path)


def weights(path: Path, optimizer: str) -> Path:
    with h5py.File(path, "w") as file:
        file["model_weights/conv/kernel"] = np.zeros((3, 3, 3, 16), np.float32)
        file["model_weights/conv/bias"] = np.zeros(16, np.float32)
        file[f"{optimizer}/momentum"] = np.zeros((3, 3, 3, 16), np.float32)
    return path


def test_what_training_left_beside_the_weights_is_told_apart(tmp_path: Path) -> None:
    sizes = {"weights_bytes": 4 * (432 + 16), "optimizer_bytes": 4 * 432}
    assert keras_file.array_bytes(weights(tmp_path / "a.h5", "optimizer_weights")) == sizes
    inner = weights(tmp_path / "model.weights.h5", "optimizer/vars")
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as archive:
        archive.write(inner, inner.name)
    assert keras_file.array_bytes(tmp_path / "a.keras") == sizes
    assert keras_file.array_bytes(STANDIN)["weights_bytes"] == 4 * 78_666
