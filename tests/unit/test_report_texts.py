"""The report in the terminal, as Markdown, as CSV, and what is published."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from resnet8_eval.analysis import verdict_word
from resnet8_eval.checks import Check
from resnet8_eval.record import Results
from resnet8_eval.report import html, layers, markdown, publish, table, terminal, words
from resnet8_eval.report.render import escape
from resnet8_eval.requirements import BY_ID, MILESTONES, of_milestone
from resnet8_eval.results import Outcome, encode, requirement
from resnet8_eval.statistics import paired_interval_pp
from resnet8_eval.verdicts import sentence
from tests.unit import report_samples
from tests.unit.report_samples import record
from tests.unit.test_report_golden import SAMPLES


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_terminal_lines_fit(sample: str, width: int) -> None:
    lines = terminal.render(record(getattr(report_samples, sample)()), width)
    assert all(len(line) <= width for line in lines) or sample == "hostile"
    assert not re.search(r"[\x00-\x1f\x7f]", "".join(lines))


def test_terminal_says_what_makes_figures_of_speed_doubtful() -> None:
    results = report_samples.all_met()
    results["timing"] = {
        "processor": "A Xeon",
        "loadgen": "6.0.17",
        "rounds": 5,
        "min_queries": 100,
        "others_percent": 40.0,
        "told": ["The machine was not idle."],
    }
    assert "Speed: The machine was not idle." in terminal.render(record(results), 200)


def test_terminal_closes_with_the_verdicts() -> None:
    lines = terminal.render(record(report_samples.all_met()), 120)
    assert lines[-len(MILESTONES) :] == [
        f"{name} met: {len(of_milestone(name))} of {len(of_milestone(name))} requirements"
        for name in MILESTONES
    ]


def test_terminal_keeps_what_decides_on_a_narrow_screen() -> None:
    text = "\n".join(terminal.render(record(report_samples.flagged()), 70))
    assert "−14.69" in text
    assert "⚑ FLAGGED" in text
    assert "Size, kB" not in text


@pytest.mark.parametrize("render", [markdown.summary, markdown.comparison])
def test_standin_banner_is_in_every_markdown(render: object) -> None:
    assert callable(render)
    text = render(record(report_samples.standin()))
    assert words.STANDIN_TITLE in text
    assert "87.19" not in text


def test_a_model_of_the_users_is_no_standin_where_the_images_are() -> None:
    raw = report_samples.standin()
    raw["assets"].update(user_model=True, model_name="mine.h5")
    for text in (
        markdown.summary(record(raw)),
        html.section("verdict", record(raw)),
        " ".join(terminal.render(record(raw), 400)),
    ):
        assert words.STANDIN_TITLE in text
        assert "The images are the small stand-ins" in text
        assert "Model and images are" not in text
        assert "mine.h5 (stand-in)" not in text


@pytest.mark.parametrize(("stated", "told"), [(84.0, True), (85.0, False)])
def test_a_stated_accuracy_stands_beside_the_standard_one_if_it_is_another(
    stated: float, told: bool
) -> None:
    raw = report_samples.user_model()
    raw["assets"]["min_accuracy_percent"] = stated
    assert ("instead of 85 %" in words.user_model(record(raw))) is told


def test_markdown_takes_nothing_from_outside_for_markup() -> None:
    text = markdown.summary(record(report_samples.hostile()))
    assert "<" not in text
    rows = [line for line in text.splitlines() if line[:2] == "| " and "float32" in line[:40]]
    assert [line.count(" | ") for line in rows] == [16] * 3
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("given", "escaped"),
    [
        ("v1_2 met", "v1_2 met"),
        ("_init_", r"\_init\_"),
        ("a|b", r"a\|b"),
        ("<b>", "&lt;b&gt;"),
        ("a\nb", "a b"),
        ("@everyone", "@&#8203;everyone"),
        ("https://example.org", "http&#8203;s://example.org"),
    ],
)
def test_escape(given: str, escaped: str) -> None:
    assert escape(given) == escaped


def test_csv_has_one_row_for_each_configuration() -> None:
    results = report_samples.all_met()
    rows = list(csv.DictReader(io.StringIO(table.to_csv(record(results)))))
    assert [row["name"] for row in rows] == [found["name"] for found in results["configurations"]]
    for row, found in zip(rows, results["configurations"], strict=True):
        assert float(row["accuracy_percent"]) == found["accuracy_percent"]
    for row, found in zip(rows[1:], results["configurations"][1:], strict=True):
        assert float(row["delta_ci95_low_pp"]) == found["delta_ci95_pp"][0]
    assert rows[0]["word"] == "baseline"
    assert {rows[0][key] for key in ("delta_pp", "delta_ci95_low_pp", "mcnemar_p")} == {""}
    assert {row["assets"] for row in rows} == {"real"}


def test_csv_says_what_the_comparison_says() -> None:
    """Line by line, a row without numbers as well, and a small and certain loss as what it is."""
    raw = report_samples.two_recipes()
    raw["configurations"][4] |= {"word": "equivalent, lower", "delta_ci95_pp": [-0.4, -0.1]}
    results = record(raw)
    lines = list(csv.DictReader(io.StringIO(table.to_csv(results))))
    for row, line in zip(table.rows(results), lines, strict=True):
        assert line["name"] == row.due.name
        for key in ("dtype", "word"):
            assert line[key] == table.cell(row, table.BY_KEY[key])
        for key in ("delta_pp", "agreement_percent"):
            shown = table.cell(row, table.BY_KEY[key.partition("_")[0]])
            assert (line[key] == "") == (shown == words.NOTHING)
            if line[key]:
                assert float(line[key]) == pytest.approx(float(shown.strip("±+−")), abs=0.005) or (
                    float(line[key]) < 0
                )
    assert "not evaluated" in {line["word"] for line in lines}
    for text in (markdown.comparison(results), html.section("comparison", results)):
        assert "equivalent, lower" in text
    assert "equivalent, lower" in "\n".join(terminal.render(results, 140))


@pytest.mark.parametrize(
    "told",
    [
        lambda results: "\n".join(terminal.render(record(results), 60)),
        markdown.comparison,
        lambda results: html.section("comparison", record(results)),
        lambda results: html.section("hurts", record(results)),
        lambda results: html.section("made", record(results)),
    ],
    ids=["terminal", "markdown", "comparison", "hurts", "made"],
)
def test_two_recipes_of_one_cell_stand_side_by_side(told: Callable[[Results], str]) -> None:
    text = told(record(report_samples.two_recipes()))
    for recipe in ("tuned", "stock"):
        assert re.search(rf"ONNX Runtime int8, {recipe}|ONNX Runtime \| int8 \| {recipe}", text), (
            recipe
        )


def test_a_row_that_a_complete_run_has_is_shown_without_numbers() -> None:
    rows = table.rows(record(report_samples.two_recipes()))
    assert [row.due.name for row in rows if row.configuration is None] == ["torch-int8-stock"]
    assert [row.title for row in rows][3:6] == [
        *("ONNX Runtime int8, stock", "PyTorch int8, stock", "ONNX Runtime int8, tuned")
    ]


def test_csv_holds_no_formula() -> None:
    results = report_samples.flagged()
    results["configurations"][5]["flag_reason"] = '=HYPERLINK("x")'
    row = list(csv.DictReader(io.StringIO(table.to_csv(record(results)))))[5]
    assert row["flag_reason"] == '\'=HYPERLINK("x")'


def test_baseline_leads_the_comparison() -> None:
    results = report_samples.all_met()
    results["expected"].reverse()
    rows = table.rows(record(results))
    assert [row.is_baseline for row in rows] == [True] + 6 * [False]
    assert [row.due.name for row in rows[1:]] == [row["name"] for row in results["expected"][:-1]]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.3, "+0.30"), (-0.3, "−0.30"), (0.0, "±0.00"), (-0.001, "±0.00"), (None, "–")],
)
def test_signed(value: float | None, text: str) -> None:
    assert words.signed(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "< 0.001"), (0.00099, "< 0.001"), (0.001, "0.001"), (0.0094, "0.009"), (None, "–")],
)
def test_p_values_have_three_decimals_and_are_never_a_bare_zero(
    value: float | None, text: str
) -> None:
    assert words.p_value(value) == text


def read_off(shown: str) -> str:
    """The verdict of the limits that are shown, by the rule of README.md."""
    low, high = (float(limit.replace("−", "-").removeprefix("±")) for limit in shown.split(" to "))
    side = ", lower" if high < 0 else ", higher" if low > 0 else ""
    if low >= -0.5 and high <= 0.5:
        return "equivalent" + side
    return {"": "inconclusive", ", lower": "degraded", ", higher": "improved"}[side]


@pytest.mark.parametrize(
    ("lost", "gained", "shown"),
    [
        (390, 337, "−1.061 to −0.002"),
        (7, 42, "+0.223 to +0.503"),
        (4, 0, "−0.103 to −0.002"),
        (35, 32, "−0.20 to +0.13"),
    ],
)
def test_limits_have_the_digits_that_their_verdict_needs(
    lost: int, gained: int, shown: str
) -> None:
    limits = paired_interval_pp(lost, gained, 10_000)
    assert words.delta_interval(limits) == shown
    assert read_off(shown) == verdict_word(limits)


@pytest.mark.parametrize("total", [2000, 10_000])
def test_a_verdict_can_be_read_off_the_limits_beside_it(total: int) -> None:
    few = itertools.product(range(0, 60, 2), repeat=2)
    many = itertools.product(range(0, 480, 11), repeat=2)
    for lost, gained in (*few, *many):
        limits = paired_interval_pp(lost, gained, total)
        shown = words.delta_interval(limits)
        assert read_off(shown) == verdict_word(limits), (lost, gained, shown)


def test_limits_that_lie_on_zero_or_the_margin_have_two_decimals() -> None:
    assert words.delta_interval((-0.5, 0.0)) == "−0.50 to ±0.00"
    assert words.delta_interval((-0.5, 1e-20)) == "−0.5000000000 to ±0.0000000000"
    assert words.delta_interval(None) == words.NOTHING


def test_broken_check_is_the_reason_where_the_number_is_fine() -> None:
    results = report_samples.all_met()
    results["milestones"]["v1_0"].update(verdict="not met", met=5)
    requirement = results["requirements"][0]
    requirement["status"] = "not met"
    requirement["evidence"] = [{"name": "n", "expected": "1", "observed": "2", "ok": False}] * 8
    said = words.shortfall(record(results).requirements[0])
    assert said == "n: expected 1, observed 2; " * 6 + "and 2 more"


def test_publish_writes_all_three_files_and_leaves_nothing_else(tmp_path: Path) -> None:
    results = report_samples.all_met()
    folder = tmp_path / "new" / "reports"
    publish(record(results), folder)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(first) == {"results.json", "comparison.csv", "comparison.md", "summary.md"}
    written = json.loads(first["results.json"])
    assert written == json.loads(encode(record(results)))
    publish(record(written), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


def test_report_imports_no_model_code() -> None:
    program = (
        "import sys\n"
        "from resnet8_eval.report import html, diff, terminal, publish\n"
        "heavy = {'numpy', 'tensorflow', 'torch', 'onnx', 'onnxruntime', 'scipy',"
        " 'resnet8_eval.pipeline', 'resnet8_eval.gather'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)  # noqa: S603 (our own program)


def test_a_dropped_configuration_is_named_wherever_verdicts_are_told() -> None:
    results = report_samples.flagged()
    named = (
        "PyTorch int8, tuned: delta from the baseline: "
        "expected no lower than −5.00 pp, observed −14.69 pp"
    )
    assert named in " ".join(line.strip() for line in terminal.render(record(results), 300))
    assert named in markdown.summary(record(results))
    assert named in html.section("verdict", record(results))


def test_the_summary_names_what_failed_on_the_standin() -> None:
    raw = report_samples.standin()
    (entry,) = [found for found in raw["requirements"] if found["id"] == "CAL-01"]
    entry.update(outcome_on_standin="not met", measured=900.0, margin=-100.0)
    text = markdown.summary(record(raw)).partition("## Requirements ")[2]
    assert "CAL-01" in text
    assert "None." not in text


def test_markdown_speaks_of_no_colours_and_bars() -> None:
    text = markdown.summary(record(report_samples.extended()))
    assert layers.UNTOLD in text
    assert "grey" not in text
    assert "Bars" not in text


@pytest.mark.parametrize("id_", ["EVAL-03", "CAL-01", "CONV-01"])
def test_a_margin_reads_the_same_in_the_report_and_in_the_run(id_: str) -> None:
    (entry,) = [e for e in record(report_samples.all_met()).requirements if e.id == id_]
    assert entry.measured is not None
    said = sentence(BY_ID[id_], entry.measured)
    assert said.endswith(
        f"measured {words.measured(entry)}, required {words.required(entry)}, "
        f"margin {words.margin(entry)}"
    )
    shown = {"EVAL-03": "+2.19 pp", "CAL-01": "±0 images", "CONV-01": "±0 checks"}
    assert words.margin(entry) == shown[id_]


def test_rounding_does_not_carry_a_number_over_its_threshold() -> None:
    entry = requirement(BY_ID["EVAL-03"], Outcome("not met", 84.9996), standin=False)
    assert (words.measured(entry), words.margin(entry)) == ("84.9996 %", "−0.0004 pp")
    entry = requirement(BY_ID["EVAL-03"], Outcome("not met", 85.0), standin=False)
    assert (words.measured(entry), words.margin(entry)) == ("85.00 %", "±0.00 pp")


def test_one_thing_is_no_plural() -> None:
    found = [words.with_unit(*pair) for pair in (("1", "checks"), ("−1", "bytes"), ("12", "bytes"))]
    assert found == ["1 check", "−1 byte", "12 bytes"]
    assert words.with_unit("1.00", "%") == "1.00 %"


def test_a_sensitivity_of_no_layer_is_left_out() -> None:
    raw = report_samples.extended()
    raw["sensitivity"]["layers"] = []
    for row in raw["configurations"]:
        row.pop("layers", None)
    assert "## Layers" in markdown.summary(record(report_samples.extended()))
    assert "## Layers" not in markdown.summary(record(raw))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("torch-int8-tuned, a scale", "PyTorch int8, tuned: a scale"),
        ("seed 1: torch-int8-tuned, a scale", "seed 1: PyTorch int8, tuned: a scale"),
        ("seed 1: distinct images", "seed 1: distinct images"),
        ("torch-int8-tuned", "torch-int8-tuned"),
    ],
)
def test_a_check_of_a_row_calls_it_by_its_title_with_any_seed(name: str, said: str) -> None:
    assert words.check_name(Check(name, "1", "1", ok=True)) == said
