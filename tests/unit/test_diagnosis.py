"""Each rule of the diagnosis: the run that it speaks of, and runs of which it keeps silent."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from resnet8_eval.report import diagnosis, html, markdown, outcome, terminal
from resnet8_eval.requirements import REGISTER
from tests.unit import report_samples as samples
from tests.unit.report_samples import Raw, record

ALL = len(REGISTER)


def said(raw: Raw, milestone: str) -> list[str]:
    return [str(found) for found in diagnosis.of(record(raw), milestone)]


BROKEN: dict[str, tuple[Callable[[], Raw], str, str]] = {
    "the model itself": (
        samples.weak_model,
        "v1_0",
        "The model itself is not above 85 %: 84.46 % (8446/10000, Keras float32). Conversion lost "
        "nothing: float32 in ONNX Runtime and PyTorch gets as many right, agreement 100.00 %.",
    ),
    "conversion": (
        samples.bad_conversion,
        "v1_1",
        "PyTorch float32 gets 8119 of 10000 images right; Keras 8719, and ONNX Runtime float32 "
        "still as many. Conversion lost the rest",
    ),
    "one layer": (
        samples.one_bad_layer,
        "v1_2",
        "One layer explains most of the loss. conv2d_8, left alone in float takes 95 % of the "
        "divergence from float32 away; quantized alone it agrees with float32 on 91.20 %",
    ),
    "no single layer": (
        samples.many_bad_layers,
        "v1_2",
        "No single layer explains most of the loss. conv2d_0, the most costly, left alone in float "
        "takes 10 %",
    ),
    "kernels saturate": (
        samples.saturated,
        "v1_2",
        "The kernels of ONNX Runtime int8, tuned saturate: they get 8144 of 10000 right, and the "
        "same integers computed exactly 8714. Probable cause: 8-bit kernels that saturate",
    ),
    "one row": (
        samples.flagged,
        "v1_2",
        "PyTorch int8, tuned alone is off, by −14.69 pp. The other quantized rows (3) lose at most "
        "0.09 pp",
    ),
    "layers not measured": (
        samples.all_rows_off,
        "v1_2",
        "Which layer loses it was not measured. Run: pytest -m v1_2 --layers",
    ),
    "a step failed": (
        samples.failed_stage,
        "v1_2",
        "ORT-01, ORT-02 and ORT-03 could not be measured: Stage parameters/tuned failed; given: "
        "MemoryError: planted",
    ),
    "nothing fits": (
        samples.one_failed,
        "v1_2",
        "CAL-02: first batch: expected sha256 aa…, observed sha256 bb…. Look at the "
        "calibration images",
    ),
    "not asked for": (
        samples.missing,
        "v1_1",
        "5 of 5 requirements were not run. Run: pytest -m v1_1",
    ),
    "stand-in": (samples.standin, "v1_0", "Run: pytest -m v1_0 --assets real"),
}


def test_a_step_that_many_need_comes_before_their_names() -> None:
    raw = samples.failed_stage()
    said = next(entry["reason"] for entry in raw["requirements"] if entry["id"] == "ORT-03")
    for name in ("ORT-04", "PTQ-01", "PTQ-02"):
        samples._fail(raw, name, None, said, [])
    (found,) = diagnosis.of(samples.record(raw), "v1_2")
    assert found.text == (
        "6 requirements could not be measured: Stage parameters/tuned failed; given: "
        "MemoryError: planted."
    )


@pytest.mark.parametrize("of", [samples.missing, samples.standin])
def test_what_ended_a_run_is_named_where_it_was_asked_for(of: Callable[[], Raw]) -> None:
    raw = of()
    raw.update(complete=False, stopped="SIGTERM while it made onnx")
    entries = [entry for entry in raw["requirements"] if entry["milestone"] in ("v1_1", "v1_2")]
    for entry in entries:
        entry.update(status="not evaluated", outcome_on_standin=None)
    raw["selected"] = [entry["id"] for entry in entries if entry["milestone"] == "v1_2"]
    results = samples.record(raw)
    (found,) = diagnosis.of(results, "v1_2")
    said = (
        "The run was ended by SIGTERM while it made onnx; 12 of 12 requirements were not reached."
    )
    assert (found.text, found.command) == (said, results.command)
    (found,) = diagnosis.of(results, "v1_1")
    assert "SIGTERM" not in found.text


def test_what_was_settled_before_a_run_was_ended_was_reached() -> None:
    raw = samples.standin()
    raw.update(complete=False, stopped="SIGINT (Ctrl-C)")
    entries = [entry for entry in raw["requirements"] if entry["milestone"] == "v1_2"]
    for entry in entries[9:]:
        entry.update(outcome_on_standin=None)
    (found,) = diagnosis.of(record(raw), "v1_2")
    assert "; 3 of 12 requirements were not reached." in found.text
    (found,) = diagnosis.of(record(raw), "v1_0")
    assert found.text == "The stand-in gives no verdict."


def classes_swapped(raw: Raw) -> None:
    for line in raw["baseline"]["confusion"]:
        line[3], line[5] = line[5], line[3]
    raw["baseline"]["correct"] = sum(line[k] for k, line in enumerate(raw["baseline"]["confusion"]))


def one_answer(raw: Raw) -> None:
    raw["baseline"]["confusion"] = [[200] + [0] * 5 + [800] + [0] * 3] * 10


def a_channel_of_zeros(raw: Raw) -> None:
    raw["network"] = samples.extended()["network"]
    raw["network"]["layers"][4]["weights"]["channels"][1] = [0.0, 0.0, -1e-6, 1e-6]


def fed_otherwise(raw: Raw) -> None:
    raw["preprocessings"] = {
        "images": 500,
        "percent": {"raw": 11.2, "unit": 93.4},
        "hint": "it gets 93.40 % with --preprocessing unit",
    }


WEAK: dict[str, tuple[Callable[[Raw], None], str]] = {
    "classes in another order": (classes_swapped, "it answers cat as dog and dog as cat."),
    "one answer": (one_answer, "It answers frog for 80 % of the images, whatever they show."),
    "a channel of zeros": (a_channel_of_zeros, "weights of channel 1 of conv2d_4 are all zero."),
    "other pixels": (fed_otherwise, "it gets 93.40 % with --preprocessing unit"),
    "nothing that is seen": (lambda raw: None, "Look at the model: its weights, its training"),
}


@pytest.mark.parametrize("case", WEAK)
def test_what_is_wrong_with_a_weak_model_is_named_and_nothing_else(case: str) -> None:
    raw = samples.weak_model()
    raw["assets"]["user_model"] = True
    raw["configurations"] = []  # as in a run of v1_0 alone
    WEAK[case][0](raw)
    texts = said(raw, "v1_0")
    assert len(texts) == 1
    assert [name for name, (_, reason) in WEAK.items() if reason in texts[0]] == [case]


@pytest.mark.parametrize("measured", [True, False])
def test_layers_are_not_promised_of_what_a_framework_quantized(measured: bool) -> None:
    """--layers measures the tuned recipe alone, and says nothing of stock rows."""
    raw = samples.two_recipes()
    raw["configurations"][3].update(delta_pp=-43.0)
    assert raw["sensitivity"]
    if not measured:
        raw["sensitivity"] = None
    texts = said(raw, "v1_2")
    assert any("ONNX Runtime int8, stock alone is off, by −43.00 pp" in text for text in texts)
    assert not any("layer" in text for text in texts)


def test_the_models_that_are_known_by_checksum_are_not_doubted() -> None:
    (text,) = said(samples.weak_model(), "v1_0")
    assert "Model and images are those that were asked for, by their checksums" in text


@pytest.mark.parametrize(
    ("others", "because"),
    [
        (88.0, " round 3: the clocks disagree. Other processes took 88 % of the machine while"),
        (1.0, " round 3: the clocks disagree. Measure again"),
    ],
)
def test_a_row_that_could_not_be_timed_is_named_with_what_disturbed_it(
    others: float, because: str
) -> None:
    raw = samples.all_met()
    samples._fail(raw, "EVAL-05", 6, "", [])
    session = {
        "threads": 1,
        "batch": 1,
        "queries": 100,
        "busy_percent": 99.0,
        "speedup": None,
        "p50_ms": None,
        "p90_ms": None,
        "p99_ms": None,
    }
    for k, row in enumerate(raw["configurations"]):
        row["latency"] = [session | {"valid": k != 4}]
    raw["timing"] = {
        "processor": "one",
        "loadgen": "6",
        "rounds": 5,
        "min_queries": 100,
        "others_percent": others,
        "told": ["round 3: the clocks disagree."],
    }
    raw["command"] = "pytest -m v1_3"
    (text,) = said(raw, "v1_3")
    assert text.startswith("ONNX Runtime uint8, tuned could not be timed in every session.")
    assert because in text
    assert text.endswith("Run: pytest -m v1_3 --fresh-timing")
    for row in raw["configurations"]:
        row["latency"] = [session | {"valid": True}]
    too_slow = f"torch-int8-tuned, {diagnosis.SPEED_CHECK}"
    evidence = [samples._check(too_slow, "at least 2 times", "1.50 times", ok=False)]
    samples._fail(raw, "EVAL-05", 12, "", evidence)
    (text,) = said(raw, "v1_3")
    assert "1.50 times. Look at latency and throughput" in text
    evidence.append(samples._check(diagnosis.OTHERS_CHECK, "at most 10", "88", ok=others < 10))
    (text,) = said(raw, "v1_3")
    assert text.startswith("Other processes took 88 %") == (others > 10)


@pytest.mark.parametrize(
    ("command", "other"),
    [
        ("pytest", "pytest"),
        ("pytest -q -m 'v1_0 or v1_2' -n2", "pytest -q -n2"),
        ("pytest -mv1_0 -k bias tests/acceptance/test_ort.py::test_x -x", "pytest -x"),
        (
            "pytest --pyargs resnet8_eval.acceptance --requirement=ORT-01 --requirement ORT-02",
            "pytest --pyargs resnet8_eval.acceptance",
        ),
        ("pytest --deselect tests/a.py::t -c b.py", "pytest -c b.py"),
        ("pytest --lf --ignore=tests/a.py --stepwise -x", "pytest -x"),
        ("pytest -k 'it'\"'\"'s x' 'tests/a b.py::t[a b]' -x", "pytest -x"),
        ("pytest -m 'half of a quotation", "pytest"),
        ("PYTEST_ADDOPTS='-k \"' pytest -x", "pytest"),
        ("PYTEST_ADDOPTS='-m v1_0' pytest -x", "pytest -x"),
        ("PYTEST_ADDOPTS=' ' pytest -x", "pytest -x"),
        (
            "PYTEST_ADDOPTS='-k \"a b\" --seeds 2' pytest -x",
            "PYTEST_ADDOPTS='--seeds 2' pytest -x",
        ),
        (
            "pytest --keras-model=/home/a.pyenv/own.keras --preprocessing unit --maxfail=1",
            "pytest --keras-model=/home/a.pyenv/own.keras --preprocessing unit --maxfail=1",
        ),
    ],
)
def test_the_command_to_run_next_is_for_the_same_package_and_model(
    command: str, other: str
) -> None:
    """A wheel has no `pytest -m`, and the pretrained model is not the user's."""
    raw = samples.missing()
    raw["command"] = command
    (found,) = diagnosis.of(record(raw), "v1_1")
    assert found.command == f"{other} -m v1_1"
    for width in range(60, 100):
        found_there = " ".join(terminal.render(record(raw), width)).split()
        assert " ".join(f"{other} -m v1_1".split()) in " ".join(found_there)
    raw = samples.standin()
    raw["command"] = f"{command} --assets stand-in"
    (found,) = diagnosis.of(record(raw), "v1_1")
    assert found.command == f"{other} -m v1_1 --assets real"


@pytest.mark.parametrize("case", BROKEN)
def test_each_rule_names_its_cause_in_every_form(case: str) -> None:
    sample, milestone, cause = BROKEN[case]
    results = record(sample())
    told = said(sample(), milestone)
    assert sum(cause in text for text in told) == 1, told
    assert len(told) == (2 if case == "nothing fits" else 1), told
    plain = " ".join(" ".join(terminal.render(results, 110)).split())
    assert f"Diagnosis: {cause}"[:60] in plain or cause in plain
    assert "**Diagnosis:**" in markdown.summary(results)
    page = html.page(results)
    for found in diagnosis.of(results, milestone):
        assert found.anchor is None or f'id="{found.anchor}"' in page


@pytest.mark.parametrize("case", BROKEN)
def test_a_verdict_that_is_not_met_is_always_explained(case: str) -> None:
    results = record(BROKEN[case][0]())
    for name, found in results.milestones.items():
        told = diagnosis.of(results, name)
        assert told or found.verdict == "met"
        failed = {
            e.id for e in results.requirements if e.milestone == name and e.status == "not met"
        }
        assert failed <= frozenset[str]().union(*(one.explains for one in told))


@pytest.mark.parametrize(
    ("off", "told"),
    [
        (["torch-int8-tuned", "torch-uint8-tuned"], "Only the PyTorch rows are off."),
        (["torch-int8-tuned", "onnxruntime-int8-tuned"], "Only the int8 rows are off."),
        (["torch-int8-tuned", "onnxruntime-uint8-tuned"], None),
        (["torch-int8-tuned"], "PyTorch int8, tuned alone is off,"),
    ],
)
def test_what_rows_that_are_off_have_in_common_is_named(off: list[str], told: str | None) -> None:
    rows = [row for row in record(samples.all_met()).configurations if row.recipe]
    found = diagnosis._in_common([row for row in rows if row.name in off], rows)
    assert (found or "None").startswith(str(told))


def test_nothing_is_said_where_all_is_met() -> None:
    results = record(samples.extended())
    assert [diagnosis.of(results, name) for name in results.milestones] == [[]] * len(
        results.milestones
    )


def test_a_large_loss_that_nothing_forbids_is_told_under_a_met_verdict() -> None:
    raw = samples.one_bad_layer()
    met = samples.all_met()
    raw.update(milestones=met["milestones"], requirements=met["requirements"])
    assert any("One layer explains most" in text for text in said(raw, "v1_2"))


def test_what_fails_stands_before_a_loss_that_nothing_forbids() -> None:
    raw = samples.one_failed()
    raw["configurations"][5]["delta_pp"] = -1.2
    texts = said(raw, "v1_2")
    assert "PyTorch int8, tuned alone is off, by −1.20 pp" in texts[-1]
    assert any("CAL-02: first batch" in text for text in texts[:-1])


def test_a_row_that_holds_the_weights_of_a_good_one_is_the_framework_s_fault() -> None:
    raw = samples.flagged()
    for row in raw["configurations"][3:6:2]:
        row["integers_sha256"] = "ab" * 32
    assert any(
        "ONNX Runtime int8, tuned holds the same weights, so look at how the framework" in text
        for text in said(raw, "v1_2")
    )


def test_what_another_rule_explains_is_not_named_again() -> None:
    texts = said(samples.saturated(), "v1_2")
    assert len(texts) == 1


def test_kernels_are_not_named_where_nothing_fails() -> None:
    raw = samples.saturated()
    assert [said(raw, name) for name in raw["milestones"] if name != "v1_2"] == [[]] * 4


def test_hostile_texts_stay_on_one_line() -> None:
    raw = samples.hostile()
    results = record(json.loads(json.dumps(raw)))
    for name in results.milestones:
        for found in diagnosis.of(results, name):
            assert len(str(found).splitlines()) == 1
            assert "\x1b" not in str(found)


def test_the_outcome_is_four_figures_that_the_record_holds() -> None:
    raw = samples.all_met()
    raw["configurations"][3]["latency"] = [
        {
            "threads": 1,
            "batch": 1,
            "queries": 1000,
            "valid": True,
            "busy_percent": 99.0,
            "speedup": {"median": 1.4, "low": 1.3, "high": 1.5},
            "p50_ms": None,
            "p90_ms": None,
            "p99_ms": None,
        }
    ]
    results = record(raw)
    found = {figure.name: (figure.value, figure.of) for figure in outcome.figures(results)}
    assert found["Worst change"] == ("−0.09 pp", "ONNX Runtime uint8, tuned")
    assert found["Weights against float32"][0] == "3.15 times smaller"
    assert found["Speed against float32"][0] == "1.40 times as fast"
    assert found["Requirements met"] == (f"{ALL} of {ALL}", "of all milestones")
    assert outcome.headline(results) == f"{ALL} of {ALL} requirements met; worst change −0.09 pp"


def test_the_outcome_of_a_failed_run_is_no_success() -> None:
    results = record(samples.flagged())
    words = f"{ALL - 1} of {ALL} requirements met; worst change −14.69 pp"
    assert outcome.headline(results) == words
    assert outcome.headline(record(samples.standin())).startswith("No verdict")
    assert outcome.headline(record(samples.incomplete())) == "Nothing was evaluated"


def test_it_is_told_on_which_processor_counts_may_differ() -> None:
    raw = samples.all_met()
    assert "No row needs a certain x86 processor" in outcome.machine(record(raw))
    raw["configurations"][3].update(needs="VNNI", weights_bits=8)
    said = outcome.machine(record(raw))
    assert "other counts of ONNX Runtime int8, tuned (x86 with VNNI)" in said
    assert "stock rows" not in said
    assert "stock rows may differ by a few images" in outcome.machine(record(samples.two_recipes()))
