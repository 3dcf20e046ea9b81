"""Quantization parameters: grids that hold zero, and a folder that gives back what it got."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet8_eval import configurations, environment
from resnet8_eval.calibrate.parameters import (
    Parameters,
    grid,
)
from resnet8_eval.environment import REDUCED_LIMIT
from resnet8_eval.pipeline import Pipeline
from tests import small_network

floats = st.floats(-1e4, 1e4, width=32).map(lambda value: round(value, 6))


@settings(derandomize=True, deadline=None)
@given(low=floats, high=floats, levels=st.sampled_from([127, 255]))
def test_a_grid_holds_zero_and_spans_the_range(low: float, high: float, levels: int) -> None:
    scale, zero_point = grid(low, high, levels)
    assert scale == float(np.float32(scale)) > 0
    assert 0 <= zero_point <= levels
    lowest, highest = (0 - zero_point) * scale, (levels - zero_point) * scale
    # Rounding the zero point moves the range by at most half a step.
    assert lowest <= min(low, 0) + 0.501 * scale
    assert highest >= max(high, 0) - 0.501 * scale


@pytest.mark.parametrize(
    ("low", "high", "levels", "expected"),
    [
        (0, 255, 255, (1.0, 0)),
        (-128, 127, 255, (1.0, 128)),
        (0, 127, 127, (1.0, 0)),
        (-255, 0, 255, (1.0, 255)),
        (2, 255, 255, (1.0, 0)),
        (-255, -5, 255, (1.0, 255)),
        (0, 0, 255, (1.0, 0)),
    ],
)
def test_grids_by_hand(low: float, high: float, levels: int, expected: tuple[float, int]) -> None:
    assert grid(low, high, levels) == expected


def test_weights_keep_seven_bits_wherever_a_kernel_could_add_pairs_in_sixteen() -> None:
    """Whatever the processor: signed weights in a framework's kernels, and no others."""
    for row in configurations.calibrated():
        assert row.recipe is not None
        signed = row.weights_dtype == "int8" and row.execution == "kernel"
        assert row.recipe.weight_limit == (63 if signed else 127), row.name


@pytest.mark.parametrize("flags", [[], ["avx2", "avx512_vnni"]])
def test_no_recipe_depends_on_the_processor(
    monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    before = [(recipe, recipe.weight_limit) for recipe in configurations.recipes()]
    monkeypatch.setattr(environment, "cpu", lambda: {"flags": flags, "onednn_max_cpu_isa": "AVX2"})
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert [(recipe, recipe.weight_limit) for recipe in configurations.recipes()] == before


def test_saving_and_loading_changes_nothing(tmp_path: Path) -> None:
    network = small_network.parsed()
    saved = Parameters(
        network,
        network.with_weights({"first/bias": np.ones(4)}),
        {"a/b:0": (-0.1, 0.7), "images": (0.0, 255.0)},
        {"w 1/x:0": np.array([0.1, 3e-5], np.float32)},
        {"w 1/x:0": np.array([[-127, 3], [0, 127]], np.int8)},
    )
    saved.save(tmp_path)
    loaded = Parameters.load(tmp_path)
    assert loaded.activations == saved.activations
    for name in ("exact", "rounded"):
        before_, after_ = getattr(saved, name), getattr(loaded, name)
        assert before_.layers == after_.layers
        assert before_.model.SerializeToString() == after_.model.SerializeToString()
    for kind in ("scales", "integers"):
        ((name, before),) = getattr(saved, kind).items()
        after = getattr(loaded, kind)[name]
        assert (after.dtype, after.tolist()) == (before.dtype, before.tolist())


def test_the_stand_in_s_weights_lie_on_their_grids(pipeline: Pipeline) -> None:
    found = Parameters.load(pipeline.artifact("parameters/tuned").folder)
    stored = found.rounded.constants()
    assert len(found.integers) == len(found.scales) == 10
    for name, integers in found.integers.items():
        weight = stored[name].T if stored[name].ndim == 2 else stored[name]
        scale = found.scales[name].reshape(-1, *[1] * (weight.ndim - 1)).astype(np.float64)
        assert np.abs(integers.astype(int)).max() <= REDUCED_LIMIT
        assert np.array_equal((integers * scale).astype(np.float32), weight)
        # A channel's largest weight uses nearly all of its range, or its steps would be too wide.
        largest = np.abs(integers.astype(int)).reshape(len(integers), -1).max(axis=1)
        assert (largest >= 0.75 * REDUCED_LIMIT).all()


NEARLY = (-1.5447485446929932, 1.5447486639022827)
"""One float32 more above zero than below; a sum in float32 is that of equal halves."""


@pytest.mark.parametrize(
    ("low", "high"), [NEARLY, *((-b, b) for b in (3.096597194671631, 0.7, 1.3, 255.0))]
)
def test_a_range_around_zero_ends_on_the_integer_that_onnxruntime_takes(
    low: float, high: float
) -> None:
    from onnxruntime.quantization.quant_utils import compute_scale_zp

    whole = np.array(-128, np.int8), np.array(127, np.int8)
    theirs, _ = compute_scale_zp(np.float32(low), np.float32(high), *whole)
    assert grid(low, high)[1] - 128 == int(theirs)
