"""The section on milestone v1_4: what was fine-tuned, as the report shows it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from resnet8_eval.report import diff, html
from tests.unit.report_samples import all_met, record


def fine_tuned(name: str, seed: int, *, in_torch: bool = True) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": name,
        "correct": 8560,
        "total": 10000,
        "accuracy_percent": 85.6,
        "accuracy_ci95_percent": [84.9, 86.3],
        "delta_pp": -1.59,
        "delta_ci95_pp": [-2.1, -1.1],
        "lost": 400,
        "gained": 241,
        "mcnemar_p": 0.0001,
        "agreement_percent": 92.3,
        "divergence": {"largest": 0.9, "mean": 0.01, "kl_nats": 0.12},
        "word": "degraded",
        "size_bytes": 60000,
        "weights_bytes": 38680,
        "model_sha256": "a" * 64,
        "disagreements": 3,
        "largest_difference": 0.001,
        "training": {
            "seed": seed,
            "trained_on": 45000,
            "validated_on": 5000,
            "moved_percent": 20.5,
            "history": [
                {"kl_nats": 0.117, "agreement_percent": 92.0},
                {"kl_nats": 0.09, "agreement_percent": 92.5, "loss": 0.36},
            ],
        },
        "beside": {
            "delta_pp": 1.94,
            "delta_ci95_pp": [1.4, 2.5],
            "lost": 200,
            "gained": 394,
            "mcnemar_p": 0.00001,
        },
    }
    if in_torch:
        row["torch"] = {
            "correct": 8559,
            "total": 10000,
            "weights_bytes": 78000,
            "model_sha256": "b" * 64,
            "disagreements": 0,
            "other_than_onnx": 17,
            "said": "Unsupported qscheme: <one>",
        }
    return row


def results() -> dict[str, Any]:
    raw = all_met()
    raw["advanced"] = {
        "granularity": [],
        "ranges": {},
        "mixed": None,
        "fine_tuned": [fine_tuned("W4A4-0", 7), fine_tuned("W4A8-0", 7, in_torch=False)],
        "means": [
            {
                "bits": bits,
                "seeds": 3,
                "accuracy_percent": 85.7,
                "delta_pp": -1.5033,
                "gain_pp": 2.0,
                "gain_ci95_pp": [1.5, 2.5],
            }
            for bits in ("W8A8", "W4A4")
        ],
    }
    return raw


def test_each_training_is_a_line_and_so_is_each_mean() -> None:
    text = html.section("hurts", record(results()))
    section = text[text.index('id="fine-tuned"') :]
    lines = re.findall(r'<tr><th scope="row" class="name">(.*?)</tr>', section)
    whole, few, first, second = (re.split(r"(?:</t[hd]>(?:<td.*?>)?)", line)[:-1] for line in lines)
    assert first[:4] == ["W4A4", "7", "85.60", "8560/10000"]
    assert first[-4:] == ["0.1170 → 0.0900", "3/10000", "8559/10000", "17/10000"]
    assert second[-2:] == ["", ""]
    assert whole[4] == "no worse"
    assert few[2:6] == ["85.700", "−1.503", "−1.50 and better", "+2.000"]  # and is not met


def test_no_table_has_two_columns_of_one_name() -> None:
    heads = re.findall(r"<thead>.*?</thead>", html.page(record(results())), re.DOTALL)
    assert len(heads) > 3
    for head in heads:
        names = re.findall(r"<th\b[^>]*>(.*?)</th>", head, re.DOTALL)
        assert len({*names}) == len(names), names


def test_the_page_says_who_taught_and_what_pytorch_cannot_hold() -> None:
    text = html.page(record(results()))
    assert 'id="fine-tuned"' in text
    assert "45000 training images" in text
    assert "Unsupported qscheme: &lt;one&gt;" in text


def test_nothing_is_said_of_what_was_not_trained() -> None:
    raw = results()
    raw["advanced"] |= {"fine_tuned": [], "means": []}
    assert 'id="fine-tuned"' not in html.page(record(raw))


def test_a_difference_tells_which_model_of_few_bits_moved() -> None:
    old, new = results(), results()
    new["advanced"]["fine_tuned"][0]["correct"] = 8390
    (moved,) = diff.changes(record(old), record(new))["comparison"]
    assert moved == diff.Change("W4A4-0: correct", "8560/10000", "8390/10000")
    assert diff.is_changed(record(old), record(new))
    del new["advanced"]  # a run that did not ask for v1_4
    assert not diff.is_changed(record(old), record(new))


@pytest.mark.parametrize(
    ("chosen", "said"),
    [(0, "Ring: chosen."), (None, "None passed on the training images that held them.")],
)
def test_a_front_tells_whether_a_choice_passed(chosen: int | None, said: str) -> None:
    raw, part = results(), {"layer": "conv2d", "kind": "weights"}
    widths = {bits: {"kl_nats": 0.1, "bytes": 100} for bits in ("4", "8")}
    point = {"bits": [8], "bytes": 100, "predicted": 0.1, "measured": None}
    front = {"parts": [part], "points": [point], "held": [], "chosen": chosen}
    raw["advanced"]["mixed"] = {
        "measured_on": 500,
        "held_on": 500,
        "parts": [{**part, "widths": widths}],
        "fronts": {"mixed-weights": front},
        "bits": {},
        "rows": [],
    }
    text = html.page(record(raw))
    assert f"Dots: as measured. {said}</figcaption>" in text
    assert "Weights of 8 bits keep within ±63" in text
