"""Stock models: what each framework's own quantizer makes, and what is no such model."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from resnet8_eval import backends, configurations, network, stock
from resnet8_eval.backends import StoredTensor
from resnet8_eval.checks import failed, from_records
from resnet8_eval.configurations import Configuration
from resnet8_eval.network import Network
from resnet8_eval.pipeline import Pipeline, model_path
from resnet8_eval.preprocess import batches
from tests import small_network
from tests.planted import Bench, as_npy

ROWS = configurations.stock()
EXPLORED = [
    row
    for rows in configurations.explored()
    for row in rows
    if row.is_stock and row.framework == "onnxruntime"
]
TUNED = [tuned for _, tuned in configurations.tunings()]
IDS: Any = {"ids": lambda row: row.name}


@pytest.fixture(scope="module")
def folded(pipeline: Pipeline) -> Network:
    return network.read(pipeline.artifact("folded").path("folded.onnx"))


def read_back(pipeline: Pipeline, row: Configuration, folded: Network) -> list[StoredTensor]:
    return backends.backend(row.framework).read_back(model_path(pipeline, row), folded)


def test_every_cell_with_a_stock_row_has_a_tuned_one() -> None:
    assert [before for before, _ in configurations.tunings()] == ROWS
    assert len({row.name for row in configurations.CONFIGURATIONS}) == 12


@pytest.mark.parametrize("row", ROWS, **IDS)
def test_an_honest_stock_model_passes(pipeline: Pipeline, row: Configuration) -> None:
    checks = from_records(pipeline.artifact(f"proof/{row.name}").record["checks"])
    assert len(checks) == 8
    assert failed(checks) == []


@pytest.mark.parametrize("row", ROWS, **IDS)
def test_every_weight_and_activation_is_read_back(
    pipeline: Pipeline, row: Configuration, folded: Network
) -> None:
    found = read_back(pipeline, row, folded)
    kinds = [entry.kind for entry in found]
    assert (kinds.count("weight"), kinds.count("bias")) == (10, 10)
    assert kinds.count("activation") >= 14
    weights = [entry for entry in found if entry.kind == "weight"]
    assert {entry.dtype for entry in weights} == {row.weights_dtype}
    assert {entry.name for entry in weights} == {layer.weight for layer in folded.weighted}
    activations = {entry.dtype for entry in found if entry.kind == "activation"}
    assert activations == {row.activations_dtype}


@pytest.mark.parametrize("row", ROWS, **IDS)
def test_weights_whose_scale_is_no_number_are_seen(
    pipeline: Pipeline, row: Configuration, folded: Network
) -> None:
    found = read_back(pipeline, row, folded)
    place = next(n for n, entry in enumerate(found) if entry.kind == "weight")
    found[place] = replace(found[place], scales=[np.nan] * len(found[place].scales))
    assert not stock.nearest(found, folded).ok


@pytest.mark.parametrize("row", ROWS, **IDS)
def test_weights_of_fewer_bits_are_seen(
    pipeline: Pipeline, row: Configuration, folded: Network
) -> None:
    """Rounded to the nearest, too, of a sixteenth as many steps."""
    found = read_back(pipeline, row, folded)
    place = next(n for n, entry in enumerate(found) if entry.kind == "weight")
    weight, (layer, *_) = found[place], folded.weighted
    assert weight.name == layer.weight
    scales = 16 * np.asarray(weight.scales)
    values = np.rint(folded.weights()[layer.weight] / scales.reshape(-1, 1, 1, 1))
    found[place] = replace(weight, scales=scales.tolist(), values=values)
    assert stock.nearest(found, folded).observed == layer.name


@pytest.mark.parametrize("row", EXPLORED, **IDS)
@pytest.mark.parametrize("spoilt", ["a channel of zeros", "a decayed layer"])
def test_steps_that_are_wide_with_reason_pass(
    tmp_path: Path, row: Configuration, spoilt: str
) -> None:
    """ONNX Runtime's: 1 for such a channel, and behind such a layer as wide as biases need them."""
    model = small_network.network()
    for entry in model.graph.initializer:
        values = onnx.numpy_helper.to_array(entry).copy()
        if spoilt == "a channel of zeros" and entry.name == "first/weight":
            values[1] = 0
        elif spoilt == "a decayed layer" and entry.name.startswith("first/"):
            values *= np.float32(1e-9)
        entry.CopyFrom(onnx.numpy_helper.from_array(values, entry.name))
    source, path = tmp_path / "folded.onnx", tmp_path / backends.file_of(row)
    onnx.save(model, source)
    parsed, backend = network.read(source), backends.backend(row.framework)
    backend.quantize(source, small_network.images(), row, path, 1)
    assert stock.nearest(backend.read_back(path, parsed), parsed).ok


@pytest.mark.parametrize("row", TUNED, **IDS)
def test_our_parameters_under_a_stock_label_are_seen(
    pipeline: Pipeline, row: Configuration, folded: Network
) -> None:
    assert not stock.nearest(read_back(pipeline, row, folded), folded).ok


def test_the_stock_model_of_another_framework_is_seen(pipeline: Pipeline, folded: Network) -> None:
    ort, torch = (
        next(row for row in ROWS if row.framework == name) for name in ("onnxruntime", "torch")
    )
    found = read_back(pipeline, torch, folded)
    assert stock.nearest(found, folded).ok
    assert not stock.granularity(ort, found).ok
    assert not stock.ranges(found, folded, pipeline.artifact("spans").record).ok


@pytest.mark.parametrize("row", ROWS, **IDS)
def test_another_calibration_than_the_recorded_one_is_seen(
    tmp_path: Path, row: Configuration
) -> None:
    """Quantized on the first half of the images, and said to be on all."""
    parsed, images = small_network.parsed(), small_network.images(100)
    backend, folded = backends.backend(row.framework), tmp_path / "folded.onnx"
    parsed.save(folded)
    path = tmp_path / backends.file_of(row)
    record = backend.quantize(folded, images[:50], row, path, 1)
    found = stock.prove(row, path, parsed, images, record, stock.spans(parsed, images))
    broken = {check.name for check in failed(found["checks"])}
    assert "SHA-256 of what calibration fed" in broken
    if row.framework == "onnxruntime":
        assert stock.NOT_FROM_IMAGES in broken


def test_what_pytorch_is_said_to_have_calibrated_on_is_what_its_observers_saw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ranges would not tell that batches were hashed and then left out."""
    from torchao.quantization.pt2e import quantize_pt2e

    prepare, seen = quantize_pt2e.prepare_pt2e, hashlib.sha256()

    def prepared(*words: Any) -> Any:
        module = prepare(*words)
        module.register_forward_pre_hook(lambda _, given: seen.update(given[0].numpy().data))
        return module

    monkeypatch.setattr(quantize_pt2e, "prepare_pt2e", prepared)
    parsed, images = small_network.parsed(), small_network.images(250)
    parsed.save(tmp_path / "folded.onnx")
    row = next(row for row in ROWS if row.framework == "torch")
    backend = backends.backend("torch")
    path = tmp_path / backends.file_of(row)
    record = backend.quantize(tmp_path / "folded.onnx", images, row, path, 1)
    assert record["fed_sha256"] == seen.hexdigest()
    assert (
        seen.hexdigest()
        == hashlib.sha256(b"".join(batch.data for batch in batches(images))).hexdigest()
    )


@pytest.mark.parametrize("row", ROWS, **IDS)
@pytest.mark.parametrize(("kind", "times", "more"), [("scales", 0.5, 0.0), ("zero_points", 1, 1)])
def test_one_number_that_its_quantizer_did_not_find_is_named(
    pipeline: Pipeline, row: Configuration, folded: Network, kind: str, times: float, more: float
) -> None:
    """Narrower steps than those of the observers, or a zero elsewhere, cost a stock row little."""
    found, spans = read_back(pipeline, row, folded), pipeline.artifact("spans").record
    place = next(n for n, entry in enumerate(found) if entry.kind == "activation" and n > 5)
    changed: Any = {kind: [getattr(found[place], kind)[0] * times + more]}
    found[place] = replace(found[place], **changed)
    check = (
        stock.ranges(found, folded, spans)
        if row.framework == "onnxruntime"
        else stock.observed(found, pipeline.artifact(f"model/{row.name}").record["observed"])
    )
    assert check.observed == found[place].name


@pytest.mark.parametrize("row", ROWS, **IDS)
def test_a_bias_that_is_another_is_named(
    pipeline: Pipeline, row: Configuration, folded: Network
) -> None:
    found = read_back(pipeline, row, folded)
    place = max(n for n, entry in enumerate(found) if entry.kind == "bias")
    values = np.asarray(found[place].values).copy()
    values[-1] += 0.01
    layer = next(layer for layer in folded.weighted if layer.weight == found[place].name)
    found[place] = replace(found[place], values=values)
    assert stock.biases(found, folded).observed == layer.name
    del found[place]
    assert stock.biases(found, folded).observed == layer.name


@pytest.mark.parametrize(
    ("options", "broken"),
    [
        ({"per_channel": True}, "weight scales"),
        (
            {"extra_options": {"WeightSymmetric": False}},
            "layers whose weights are not the float32 ones rounded to nearest",
        ),
    ],
)
def test_what_is_not_a_default_of_onnx_runtime_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], broken: str
) -> None:
    from onnxruntime import quantization

    honest = quantization.quantize_static
    monkeypatch.setattr(
        quantization, "quantize_static", lambda *a, **k: honest(*a, **{**k, **options})
    )
    parsed, images = small_network.parsed(), small_network.images(100)
    parsed.save(tmp_path / "folded.onnx")
    path = tmp_path / backends.file_of(ROWS[0])
    record = backends.backend("onnxruntime").quantize(
        tmp_path / "folded.onnx", images, ROWS[0], path, 1
    )
    proof = stock.prove(ROWS[0], path, parsed, images, record, stock.spans(parsed, images))
    assert [check.name for check in failed(proof["checks"])] == [broken]


def test_one_scale_that_is_not_from_the_images_is_named(
    pipeline: Pipeline, folded: Network
) -> None:
    found, spans = read_back(pipeline, ROWS[0], folded), pipeline.artifact("spans").record
    place = next(n for n, entry in enumerate(found) if entry.kind == "activation" and n > 5)
    found[place] = replace(found[place], scales=[found[place].scales[0] * 1.01])
    check = stock.ranges(found, folded, spans)
    assert check.observed == found[place].name
    # Its own, and another zero point out of integers than into them.
    (scale,) = read_back(pipeline, ROWS[0], folded)[place].scales
    found[place] = replace(found[place], scales=[scale, scale], zero_points=[0, 1])
    check = stock.ranges(found, folded, spans)
    assert check.observed == found[place].name
    # That of another tensor of the same network.
    other = next(entry for entry in found if entry.kind == "activation")
    found[place] = replace(found[place], scales=other.scales)
    check = stock.ranges(found, folded, spans)
    assert check.observed == found[place].name


def test_a_stock_row_that_is_not_proven_makes_its_requirement_red(bench: Bench) -> None:
    name = next(row.name for row in ROWS if row.framework == "torch")
    images = np.load(bench.artifact("calibration").path("images.npy"))
    bench.plant("calibration", files={"images.npy": as_npy(images[::-1])})
    bench.remake(f"proof/{name}")
    assert f"{name}, SHA-256 of what calibration fed" in bench.verdict("PTQ-03")


def test_what_tuning_changed_has_to_add_up(bench: Bench) -> None:
    name = f"tuning/{TUNED[0].name}"
    bench.plant(name, {"gained": bench.artifact(name).record["gained"] + 1})
    assert "images that tuning gains less those it loses" in bench.verdict("ANL-01")


def test_a_torchao_that_lowers_rightly_is_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference row would then be out of date; on a user's model it may be chance."""
    name = next(row.name for row in ROWS if (row.framework, row.dtype) == ("torch", "int8"))
    lowering = {"images": 100, "differing": 0, "said": None}
    bench.plant(f"model/{name}", {"lowering": lowering})
    assert "lowering to integer kernels" in bench.verdict("PTQ-01")
    own = replace(bench.settings.assets, user_model=True)
    monkeypatch.setattr(Bench, "settings", replace(bench.settings, assets=own))
    assert bench.verdict("PTQ-01") == ""
