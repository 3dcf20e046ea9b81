"""What the report says of rows that hold the same weights."""

from __future__ import annotations

import csv
import io

from resnet8_eval.report import execution, table, terminal
from resnet8_eval.report.html import page as render
from resnet8_eval.report.markdown import comparison, summary
from tests.unit.report_samples import Raw, all_met, record, two_recipes

TWO = "ONNX Runtime int8, tuned and ONNX Runtime uint8, tuned"
THREE = "ONNX Runtime int8, tuned; ONNX Runtime uint8, tuned; and PyTorch int8, tuned"


def _sharing(*places: int) -> Raw:
    raw = all_met()
    for place in places:
        raw["configurations"][place]["integers_sha256"] = "a" * 64
    names = [raw["configurations"][place]["name"] for place in (3, 4, 5)]
    percent = [[100.0, 99.9, 99.2], [99.9, 100.0, 99.3], [99.2, 99.3, 100.0]]
    raw["agreement"] = {"rows": names, "percent": percent}
    return raw


def test_two_rows_of_one_framework_are_one_measurement() -> None:
    assert execution.same_weights(record(_sharing(3, 4))) == [
        f"{TWO} hold the same weights. {TWO} are one measurement, not 2. "
        "Any two of them agree on 99.90 % of the images."
    ]


def test_frameworks_differ_in_what_they_round() -> None:
    results = record(_sharing(3, 4, 5))
    sentence = (
        f"{THREE} hold the same weights. {TWO} are one measurement, not 2. "
        "The frameworks differ in how they round biases and sums. "
        "Any two of them agree on 99.20 to 99.90 % of the images."
    )
    assert execution.same_weights(results) == [sentence]
    assert sentence in render(results)
    assert sentence in comparison(results)


def test_a_row_of_its_own_weights_is_not_named() -> None:
    assert execution.same_weights(record(_sharing(3))) == []


def test_what_tuning_changed_stands_in_every_output() -> None:
    """With its interval, its exact test, and the range of the weights before and after."""
    raw = two_recipes()
    stock, tuned = "onnxruntime-int8-stock", "onnxruntime-int8-tuned"
    raw["tuning"] = [
        {
            "stock": stock,
            "tuned": tuned,
            "delta_pp": 0.58,
            "delta_ci95_pp": [0.21, 0.97],
            "lost": 110,
            "gained": 168,
            "mcnemar_p": 0.012,
            "agreement_percent": 98.3,
        }
    ]
    results = record(raw)
    texts = [render(results), comparison(results), summary(results)]
    texts.append(" ".join(" ".join(terminal.render(results, 100)).split()))
    for text in texts:
        for said in ("86.57 → 87.15", "+0.58", "+0.21 to +0.97", "0.012"):
            assert said in text
        assert "8 bits: x86 with VNNI → 7 bits: any x86" in text
    rows = {line["name"]: line for line in csv.DictReader(io.StringIO(table.to_csv(results)))}
    assert (rows[stock]["weights_bits"], rows[stock]["needs"]) == ("8", "VNNI")
    assert (rows[tuned]["weights_bits"], rows[tuned]["needs"]) == ("7", "")
    held = {key: value for key, value in rows[tuned].items() if key.startswith("change_from_stock")}
    assert list(map(float, held.values())) == [0.58, 0.21, 0.97, 0.012]
