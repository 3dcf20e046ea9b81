"""Fine-tuning, on a small network: what it learns, what it keeps, and what would betray it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnet8_eval import calibration
from resnet8_eval.advanced import lowbit, mixed, qat, training
from resnet8_eval.advanced import stages as advanced
from resnet8_eval.advanced.bits import Bits
from resnet8_eval.advanced.mixed import Variants
from resnet8_eval.advanced.training import CHECKPOINT, Course, Student, augmented, train
from resnet8_eval.calibrate.parameters import Parameters, grid
from resnet8_eval.calibrate.tuned import collect
from resnet8_eval.checks import failed
from resnet8_eval.configurations import TUNED
from resnet8_eval.evaluate import softmax
from resnet8_eval.inputs import Labelled
from resnet8_eval.preprocess import USUAL, Feed, preprocess
from resnet8_eval.simulate import Simulation
from tests import small_network
from tests.planted import Bench

ROOT = Path(__file__).parents[2]
COURSE = Course(3, labels=0.0)
STEPS = 3
"""In an epoch."""
WIDTHS = {"W4A4": (4, 4), "W4A8": (4, 8), "W8A8": (8, 8)}


def made() -> Variants:
    return mixed.variants(collect(small_network.parsed(), small_network.images(60), TUNED))


@pytest.fixture(scope="module")
def variants() -> Variants:
    return made()


def images() -> Labelled:
    some = small_network.images(100 * STEPS + 7)  # seven are left over in each epoch
    brightness = some.mean(axis=(1, 2, 3))
    return Labelled(Feed(some), (brightness > np.median(brightness)).astype(np.int64))


def trained(
    variants: Variants,
    folder: Path,
    name: str = "W4A4",
    course: Course = COURSE,
    announce: Callable[[str], None] = lambda _: None,
) -> Any:
    bits = Bits.all(variants.exact, *WIDTHS[name])
    watching = Feed(small_network.images(400)[300:])
    return train(variants.at(bits), bits, images(), watching, course, folder, announce)


def saved(found: tuple[Parameters, Any], folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    found[0].save(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- what is trained -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", WIDTHS)
def test_before_training_it_computes_what_was_decided(variants: Variants, name: str) -> None:
    bits, some = Bits.all(variants.exact, *WIDTHS[name]), small_network.images(50)
    parameters = variants.at(bits)
    student = Student(parameters, bits)
    found = training._scores(student, Feed(some))
    expected = Simulation(parameters, bits.levels()).logits(some)
    assert np.abs(softmax(found) - softmax(expected)).max() < 1e-5
    learned = student.rounded()
    for weight, integers in parameters.integers.items():
        assert np.array_equal(learned.integers[weight], integers)
    for tensor, most in bits.levels().items():
        before, after = (grid(*p.activations[tensor], most) for p in (parameters, learned))
        assert before[1] == after[1]
        assert after[0] == pytest.approx(before[0], rel=1e-6)


@pytest.mark.parametrize("name", WIDTHS)
def test_what_is_learned_is_what_was_trained(variants: Variants, tmp_path: Path, name: str) -> None:
    learned, history = trained(variants, tmp_path, name, Course(12, rate=1e-2, labels=1.0))
    assert len(history) == 13
    assert history[-1]["loss"] < history[1]["loss"] - 0.5
    bits = Bits.all(variants.exact, *WIDTHS[name])
    assert qat.moved_percent(variants.at(bits), learned) > 0
    for weight, values in learned.integers.items():
        assert np.abs(values).max() <= (7 if bits.weights[weight] == 4 else 63)
    watching = small_network.images(400)[300:]
    before, after = (
        softmax(Simulation(learned, levels).logits(watching, layers))
        for levels, layers in ((bits.levels(), ()), (bits.levels(), None))
    )
    alike = 100 * float((before.argmax(axis=1) == after.argmax(axis=1)).mean())
    assert alike == pytest.approx(history[-1]["agreement_percent"], abs=1)


def test_labels_count_as_the_course_says(variants: Variants, tmp_path: Path) -> None:
    teacher, labels = (
        trained(variants, tmp_path, course=Course(1, labels=share))[1][-1]["loss"]
        for share in (0.0, 1.0)
    )
    assert labels > teacher + 0.5  # they say nothing about these images


def test_images_move_and_are_mirrored_and_keep_their_pixels() -> None:
    some = small_network.images(40)
    moved = augmented(some, np.random.default_rng(0))
    assert (moved.dtype, moved.shape) == (some.dtype, some.shape)
    assert all(set(np.unique(a)) <= set(np.unique(b)) for a, b in zip(moved, some, strict=True))
    assert not np.array_equal(moved, some)
    assert np.array_equal(moved, augmented(some, np.random.default_rng(0)))
    assert not np.array_equal(moved, augmented(some, np.random.default_rng(1)))
    preprocess(moved)


def test_even_a_short_training_says_how_long_it_will_take(
    variants: Variants, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    trained(variants, tmp_path / "every epoch", announce=lines.append)
    assert [line.split(", loss")[0] for line in lines] == [
        f"epoch {k} of 3, step {STEPS} of {STEPS}" for k in (1, 2, 3)
    ]
    left = [float(line.removesuffix(" min left").rsplit(", ", 1)[1]) for line in lines]
    assert left == sorted(left, reverse=True)
    assert left[-1] == 0
    monkeypatch.setattr(training, "EVERY_S", 0.0)
    trained(variants, tmp_path / "every step", announce=lines.append)
    assert len(lines) == 3 + 3 * STEPS


# --- interruptions -------------------------------------------------------------------------------

DYING = """
import os, signal, sys
from pathlib import Path
from resnet8_eval.advanced import training
from tests.unit import test_training

honest, calls = training.augmented, []

def dying(*arguments):
    calls.append(0)
    if len(calls) == test_training.STEPS + 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return honest(*arguments)

training.augmented = dying
test_training.trained(test_training.made(), Path(sys.argv[1]))
"""


def test_a_training_that_was_killed_goes_on_and_ends_the_same(
    variants: Variants, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = saved(trained(variants, tmp_path / "whole"), tmp_path / "first")
    killed = subprocess.run(  # noqa: S603 (our own words)
        [sys.executable, "-c", DYING, str(tmp_path / "killed")], cwd=ROOT, check=False, timeout=120
    )
    assert killed.returncode == -signal.SIGKILL
    steps: list[int] = []

    def counted(*arguments: Any) -> Any:
        steps.append(0)
        return augmented(*arguments)

    monkeypatch.setattr(training, "augmented", counted)
    assert saved(trained(variants, tmp_path / "killed"), tmp_path / "second") == whole
    assert len(steps) == 2 * STEPS  # the first epoch was kept
    assert saved(trained(variants, tmp_path / "killed"), tmp_path / "third") == whole
    assert len(steps) == 2 * STEPS


def test_a_checkpoint_that_is_none_is_not_used(variants: Variants, tmp_path: Path) -> None:
    """Cut, empty, and of another network."""
    whole = saved(trained(variants, tmp_path / "place"), tmp_path / "whole")
    (kept,) = (tmp_path / "place").rglob(CHECKPOINT)
    content = kept.read_bytes()
    with np.load(kept) as arrays:
        other = {k: v + 0.3 if k.startswith("value weight") else v for k, v in arrays.items()}
    np.savez(tmp_path / "other.npz", **other)
    damages = (content[: len(content) // 2], b"", (tmp_path / "other.npz").read_bytes())
    for number, damage in enumerate(damages):
        kept.write_bytes(damage)
        assert saved(trained(variants, tmp_path / "place"), tmp_path / str(number)) == whole, number


def test_another_course_has_a_checkpoint_of_its_own(variants: Variants, tmp_path: Path) -> None:
    first, _ = trained(variants, tmp_path)
    changes: list[dict[str, Any]] = [{"seed": 1}, {"epochs": 2}, {"rate": 2e-3}, {"labels": 0.5}]
    for number, change in enumerate(changes, 2):
        second, _ = trained(variants, tmp_path, course=replace(COURSE, **change))
        assert len(list(tmp_path.rglob(CHECKPOINT))) == number, change
        assert (
            any(not np.array_equal(first.integers[n], v) for n, v in second.integers.items())
            or first.activations != second.activations
        ), change


def test_all_that_decides_a_training_names_its_checkpoint(variants: Variants) -> None:
    """Else a run would go on with what was learned from something else."""
    bits = Bits.all(variants.exact, 4, 4)
    start, some = variants.at(bits), images()
    watching = Feed(small_network.images(400)[300:])
    (name, values), *_ = start.integers.items()
    place, (low, high) = next(iter(start.activations.items()))
    bias = start.rounded.weighted[0].bias
    other_bias = start.rounded.with_weights({bias: start.rounded.constants()[bias] + 1})
    other_exact = start.exact.with_weights({bias: start.exact.constants()[bias] + 1})
    changes: list[dict[str, Any]] = [
        {},
        {"parameters": replace(start, integers={**start.integers, name: -values})},
        {"parameters": replace(start, scales={**start.scales, name: start.scales[name] * 2})},
        {"parameters": replace(start, activations={**start.activations, place: (low, high + 1)})},
        {"parameters": replace(start, rounded=other_bias)},
        {"parameters": replace(start, exact=other_exact)},
        {"bits": Bits.all(variants.exact, 4, 8)},
        {"images": some._replace(labels=1 - some.labels)},
        {"images": some._replace(images=some.images[::-1])},
        {"validating": watching[::-1]},
        {"validating": replace(watching, preprocessing=USUAL["unit"])},
        {"course": replace(COURSE, seed=1)},
    ]
    whole: dict[str, Any] = {
        "parameters": start,
        "bits": bits,
        "images": some,
        "validating": watching,
        "course": COURSE,
    }
    assert len({training._decided_by(**whole | change) for change in changes}) == len(changes)


# --- what would betray it ------------------------------------------------------------------------


def test_all_that_does_not_validate_trains() -> None:
    labels = np.arange(3000) % 10
    training_images, validating = qat.divided(labels, 1000, 0)
    both = np.concatenate([training_images, validating])
    assert len(validating) == 300
    assert np.array_equal(np.sort(both), np.arange(3000))
    assert np.bincount(labels[validating]).tolist() == [30] * 10


def test_a_shared_image_is_found_by_its_pixels() -> None:
    some = small_network.images(20)
    assert calibration.shared(some[10:], some[:10]) == 0
    assert calibration.shared(some[9:], some[:10]) == 1


def test_a_leak_is_told_by_the_stage(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = qat.divided

    def leaking(*arguments: Any) -> Any:
        training_images, validating = honest(*arguments)
        training_images[0] = validating[0]
        return training_images, validating

    monkeypatch.setattr(qat, "divided", leaking)
    monkeypatch.setitem(advanced.EPOCHS, "W8A8", 0)
    stage = "qat-training/W8A8-0"
    assert bench.artifact(stage).record["shared"] == 0
    bench.remake(stage)
    record = bench.artifact(stage).record
    assert (record["shared"], record["moved_percent"]) == (1, 0.0)


def test_a_float_network_under_a_label_of_few_bits_is_found(
    variants: Variants, tmp_path: Path
) -> None:
    bits = Bits.all(variants.exact, 4, 8)
    parameters = variants.at(bits)
    path = tmp_path / "model.onnx"
    variants.exact.save(path)
    some = small_network.images()
    labels = np.arange(len(some)) % 10
    baseline = np.eye(10, dtype=np.float32)[labels]
    record = lowbit.judge(
        path,
        parameters,
        bits,
        Labelled(Feed(some), labels),
        baseline,
        tmp_path,
        threads=1,
    )
    broken = {check.name for check in failed(record["checks"])}
    assert "types of the stored weights" in broken
    assert record["exact_integers"]["disagreements"] == len(some)


# --- in PyTorch ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:No complete tensor found:UserWarning")
@pytest.mark.parametrize("name", WIDTHS)
def test_pytorch_holds_the_same_integers_and_computes_them(
    variants: Variants, tmp_path: Path, name: str
) -> None:
    learned, _ = trained(variants, tmp_path / "place", name)
    bits = Bits.all(variants.exact, *WIDTHS[name])
    some = small_network.images(200)
    test = Labelled(Feed(some), np.arange(len(some)) % 10)
    record, scores = qat.in_torch(learned, bits, tmp_path / "model.pt", test, threads=1)
    assert failed(record["checks"]) == []
    assert record["disagreements"] <= 1
    assert "qscheme" in record["said"]
    simulated = Simulation(lowbit.with_whole_biases(learned, bits), bits.levels()).logits(some)
    assert (scores.argmax(axis=1) != simulated.argmax(axis=1)).sum() <= 4


def test_pytorch_maps_that_are_not_held_to_their_levels_are_found(
    variants: Variants, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bits = Bits.all(variants.exact, 4, 4)
    some = small_network.images(20)
    test = Labelled(Feed(some), np.arange(len(some)) % 10)
    from resnet8_eval.backends import torch_network

    monkeypatch.setattr(torch_network.QuantizedNetwork, "_held", lambda _, y, __: y)
    record, _ = qat.in_torch(variants.at(bits), bits, tmp_path / "model.pt", test, threads=1)
    (found,) = failed(record["checks"])
    assert found.name == "PyTorch, types of the stored maps"


# --- the mean of the seeds -----------------------------------------------------------------------


def test_the_mean_of_seeds_is_held_against_the_same_images() -> None:
    labels = np.zeros(1000, int)
    right, wrong = np.eye(10, dtype=np.float32)[[0, 1]]
    before = np.where(np.arange(1000)[:, None] < 800, right, wrong)
    baseline = np.where(np.arange(1000)[:, None] < 900, right, wrong)
    one, other = (np.where(np.arange(1000)[:, None] < n, right, wrong) for n in (840, 860))
    found = qat.mean_of_seeds([one, other], before, baseline, labels)
    assert found["seeds"] == 2
    assert found["accuracy_percent"] == pytest.approx(85)
    assert found["delta_pp"] == pytest.approx(-5)
    assert found["gain_pp"] == pytest.approx(5)
    low, high = found["gain_ci95_pp"]
    assert 3.5 < low < 5 < high < 6.5
    low, _ = qat.mean_of_seeds([before], before, baseline, labels)["gain_ci95_pp"]
    assert low == 0


def test_a_mean_of_seeds_that_loses_exactly_what_is_allowed_is_not_rounded_above_it() -> None:
    """150 right answers in 30,000."""
    right, wrong = np.eye(10, dtype=np.float32)[[0, 1]]
    counts = (8700, 8619, 8650, 8681, 8600)
    baseline, *trained, before = (
        np.where(np.arange(10_000)[:, None] < n, right, wrong) for n in counts
    )
    found = qat.mean_of_seeds(trained, before, baseline, np.zeros(10_000, int))
    assert (found["accuracy_percent"], found["delta_pp"], found["gain_pp"]) == (86.5, -0.5, 0.5)
