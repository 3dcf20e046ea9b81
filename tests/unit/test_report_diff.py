"""What moved between two runs."""

from __future__ import annotations

import base64

import pytest

from resnet8_eval.report.diff import changes, is_changed, since, summary
from resnet8_eval.report.markdown import difference as diff
from resnet8_eval.statistics import mcnemar_p
from tests.unit import report_samples
from tests.unit.report_samples import record


def section(text: str, title: str) -> str:
    return text.partition(f"## {title}\n\n")[2].partition("\n\n## ")[0]


def test_nothing_moved() -> None:
    text = diff(record(report_samples.all_met()), record(report_samples.all_met()))
    assert text.count("Nothing moved.") == 8  # all in all, and each part


def test_three_things_that_moved_in_one_line() -> None:
    old, new = report_samples.all_met(), report_samples.all_met()
    new["environment"]["packages"]["torch"] = "2.14.0"
    new["configurations"][5]["correct"] = 8700
    new["configurations"][5]["accuracy_percent"] = 87.0
    new["configurations"][3]["recipe"]["method"]["weight_limit"] = 63
    found = changes(record(old), record(new))
    assert summary(found) == (
        "Moved: accuracies (1): torch-int8-tuned 87.25 (8725/10000) → 87.00 (8700/10000); "
        "recipes (1): onnxruntime-int8-tuned: largest magnitude of an 8-bit weight; "
        "versions and machine (1): torch."
    )
    assert is_changed(record(old), record(new))
    assert diff(record(old), record(new)).startswith("# What moved\n\nMoved: accuracies")


def test_what_a_run_was_not_asked_for_has_not_moved_since_the_last() -> None:
    last, now = report_samples.all_met(), report_samples.one_milestone()
    now["selected"] = [e["id"] for e in now["requirements"] if e["milestone"] == "v1_2"]
    now["complete"] = False
    gone = now["configurations"].pop()
    found = since(record(last), record(now))
    assert [change.what for change in found["verdicts"]] == ["v1_2"]
    assert [change.what for change in found["requirements"]] == ["ANL-02"]
    assert [change.what for change in found["accuracies"]] == ["torch-int8-tuned"]
    assert gone["name"] not in summary(found)
    whole = changes(record(last), record(now))
    assert len(whole["verdicts"]) > 1
    assert len(whole["accuracies"]) == 2


def test_what_only_may_move_outcomes_is_no_change_of_them() -> None:
    old, new = report_samples.all_met(), report_samples.all_met()
    new["environment"]["git_commit"] = "f" * 40
    assert not is_changed(record(old), record(new))
    new["assets"]["dataset_md5"]["test_batch"] = "0" * 32
    assert is_changed(record(old), record(new))


def test_the_same_count_of_other_images_has_moved() -> None:
    old, new = report_samples.extended(), report_samples.extended()
    rows = new["configurations"]
    rows[3]["right_base64"] = base64.b64encode(bytes(1250)).decode()
    (moved,) = changes(record(old), record(new))["accuracies"]
    assert moved.new == f"{moved.old}, others"


def test_moved_verdict_requirement_and_accuracy() -> None:
    text = diff(record(report_samples.all_met()), record(report_samples.flagged()))
    assert "| v1_2 | met, 12 of 12 | not met, 11 of 12 |" in section(text, "Verdicts")
    assert "| ANL-02 | met, 0 (asked: = 0) | not met, 1 (asked: = 0) |" in section(
        text, "Requirements"
    )
    beside = section(text, "Comparison with the baseline")
    assert "| torch-int8-tuned: Verdict | equivalent | degraded |" in beside
    assert "| torch-int8-tuned: Flag | none | ⚑ FLAGGED |" in beside
    assert "| torch-int8-tuned: Delta, pp | +0.06 | −14.69 |" in beside
    accuracies = section(text, "Accuracies")
    assert (
        "| torch-int8-tuned | 87.25 (8725/10000) | 72.50 (7250/10000) | −14.75 | – |" in accuracies
    )
    assert "does not keep which images are right" in accuracies


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("word", "inconclusive", "Verdict | equivalent | inconclusive |"),
        ("flagged", True, "Flag | none | ⚑ FLAGGED |"),
        ("delta_pp", -6.0, "Delta, pp | +0.06 | −6.00 |"),
        (
            "delta_ci95_pp",
            [-7.0, -5.0],
            "Delta 95 % interval, pp | −0.14 to +0.26 | −7.00 to −5.00",
        ),
        ("agreement_percent", 50.0, "Agreement, % | 98.89 | 50.00 |"),
        ("mcnemar_p", 0.0004, "McNemar p, uncorrected | 0.617 | &lt; 0.001 |"),
        ("size_bytes", 1000, "Size, kB | 128.7 | 1.0 |"),
        ("weights_bits", 8, "Weights, bits | 7 | 8 |"),
        ("needs", "VNNI", "Runs exactly on | any x86 | x86 with VNNI |"),
    ],
)
def test_what_moves_while_the_answers_stay_is_told(key: str, value: object, line: str) -> None:
    """As where the baseline moved, or a rule of the analysis."""
    old, new = report_samples.all_met(), report_samples.all_met()
    new["configurations"][5][key] = value
    text = diff(record(old), record(new))
    assert f"| torch-int8-tuned: {line}" in section(text, "Comparison with the baseline")
    assert section(text, "Accuracies") == "Nothing moved."


def test_a_threshold_that_was_moved_is_told() -> None:
    old, new = report_samples.all_met(), report_samples.all_met()
    (entry,) = (one for one in new["requirements"] if one["id"] == "EVAL-03")
    entry["threshold"] = 70
    text = section(diff(record(old), record(new)), "Requirements")
    assert "(asked: &gt; 85 %) | met" in text
    assert "(asked: &gt; 70 %) |" in text
    assert is_changed(record(old), record(new))


def test_seeds_and_exact_integers_are_told() -> None:
    old, new = report_samples.extended(), report_samples.extended()
    spread = {"mean": 87.0, "deviation": 0.1, "worst": 86.9}
    row = {"name": "torch-int8-tuned", "correct": [8710, 8690]}
    for run, worst in ((old, 86.9), (new, 75.0)):
        figures = ("accuracy_percent", "delta_pp", "agreement_percent")
        told = {key: {**spread, "worst": worst} for key in figures}
        run["seeds"] = {"seeds": [0, 1], "total": 10000, "rows": [{**row, **told}]}
        exact = {"disagreements": 45 if run is new else 0, "largest_difference": 0.0}
        held = run["configurations"][5]
        held["exact_integers"] = {**exact, "total": 10000, "correct": 8725, "probable_cause": ""}
    text = section(diff(record(old), record(new)), "Comparison with the baseline")
    line = "torch-int8-tuned: accuracy over seeds | mean 87.000, worst 86.90 of 2 | mean 87.000,"
    assert f"{line} worst 75.00 of 2 |" in text
    assert f"| {held['name']}: images unlike exact integers | " in text
    assert " | 45 |" in text


def test_a_configuration_that_one_run_lacks_is_told_once() -> None:
    text = diff(record(report_samples.missing()), record(report_samples.all_met()))
    assert "torch-int8" in section(text, "Accuracies")
    assert section(text, "Comparison with the baseline") == "Nothing moved."


def test_paired_test_where_both_runs_keep_which_images_are_right() -> None:
    old, new = report_samples.extended(), report_samples.extended()
    bits = int.from_bytes(base64.b64decode(old["configurations"][3]["right_base64"]), "big")
    moved = new["configurations"][3]
    # Lose the first 40 images that were right, and win one that was wrong: the very last.
    for k in range(40):
        bits ^= 1 << (9998 - k)
    bits |= 1
    moved["right_base64"] = base64.b64encode((bits & ~(1 << 9999)).to_bytes(1250, "big")).decode()
    moved["correct"] = (bits & ~(1 << 9999)).bit_count()
    moved["accuracy_percent"] = moved["correct"] / 100
    line = next(
        line
        for line in section(diff(record(old), record(new)), "Accuracies").splitlines()
        if line.startswith("| onnxruntime-int8-tuned")
    )
    lost, gained = 41, 1
    assert f"| {lost}, {gained} | < 0.001 |" in line
    assert mcnemar_p(lost, gained) < 0.001
    new["assets"]["dataset_md5"]["test_batch"] = "0" * 32  # there is no pairing of other images
    assert f"| {lost}, {gained} |" not in section(diff(record(old), record(new)), "Accuracies")


def test_bits_that_contradict_the_count_are_not_used() -> None:
    old, new = report_samples.extended(), report_samples.extended()
    moved = new["configurations"][3]
    moved["correct"] -= 1
    moved["accuracy_percent"] = moved["correct"] / 100
    assert "does not keep which images are right" in section(
        diff(record(old), record(new)), "Accuracies"
    )


def test_versions_recipes_and_fingerprints() -> None:
    old, new = report_samples.all_met(), report_samples.all_met()
    new["environment"]["packages"]["torch"] = "2.14.0"
    new["configurations"][5]["execution"] = "reference"
    new["configurations"][5]["recipe"]["method"]["weight_limit"] = 63
    new["assets"]["model_sha256"] = "a" * 64
    text = diff(record(old), record(new))
    assert "| torch | 2.13.0+cpu | 2.14.0 |" in section(text, "Versions and machine")
    assert "| torch-int8-tuned: execution | kernel | reference |" in section(text, "Recipes")
    assert "| torch-int8-tuned: largest magnitude of an 8-bit weight | 127 | 63 |" in section(
        text, "Recipes"
    )
    assert f"pretrainedResnet.h5, {'a' * 64} |" in section(text, "Fingerprints")


def test_standin_is_not_compared_with_the_real_model() -> None:
    text = diff(record(report_samples.standin()), record(report_samples.all_met()))
    assert "The old run is a **stand-in** run" in text
    assert section(text, "Accuracies").startswith("Not compared")
    assert section(text, "Comparison with the baseline").startswith("Not compared")


def test_a_second_recipe_of_a_cell_is_another_configuration() -> None:
    text = diff(record(report_samples.extended()), record(report_samples.two_recipes()))
    accuracies = section(text, "Accuracies")
    assert "| onnxruntime-int8-stock | not there | 86.57 (8657/10000) |" in accuracies
    assert "The same in both: keras-float32," in accuracies
    assert "| onnxruntime-int8-stock: recipe | not there | stock |" in section(text, "Recipes")


def test_text_from_outside_is_escaped() -> None:
    assert "<" not in diff(record(report_samples.all_met()), record(report_samples.hostile()))
