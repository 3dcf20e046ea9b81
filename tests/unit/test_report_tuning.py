"""What the report says of rows that hold the same weights."""

from __future__ import annotations

from resnet8_eval.report import tuning
from resnet8_eval.report.html import page as render
from resnet8_eval.report.markdown import comparison
from tests.unit.report_samples import Raw, all_met, record

TWO = "ONNX Runtime int8, tuned and ONNX Runtime uint8, tuned"
THREE = "ONNX Runtime int8, tuned, ONNX Runtime uint8, tuned and PyTorch int8, tuned"


def _sharing(*places: int) -> Raw:
    raw = all_met()
    for place in places:
        raw["configurations"][place]["integers_sha256"] = "a" * 64
    names = [raw["configurations"][place]["name"] for place in (3, 4, 5)]
    percent = [[100.0, 99.9, 99.2], [99.9, 100.0, 99.3], [99.2, 99.3, 100.0]]
    raw["agreement"] = {"rows": names, "percent": percent}
    return raw


def test_two_rows_of_one_framework_are_one_measurement() -> None:
    assert tuning.same_weights(record(_sharing(3, 4))) == [
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
    assert tuning.same_weights(results) == [sentence]
    assert sentence in render(results)
    assert sentence in comparison(results)


def test_a_row_of_its_own_weights_is_not_named() -> None:
    assert tuning.same_weights(record(_sharing(3))) == []
