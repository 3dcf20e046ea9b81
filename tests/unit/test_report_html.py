"""The HTML report: whole, self-contained, honest and safe, whatever the results say."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final

import pytest

from resnet8_eval import results as results_json
from resnet8_eval.report import detail, execution, html, layers, markdown, table, terminal
from resnet8_eval.report.words import INCOMPLETE_TEXT, incomplete
from tests.unit import report_samples
from tests.unit.report_samples import record
from tests.unit.test_report_golden import SAMPLES

ALL: Final = (*SAMPLES, "extended")
VOID: Final = {"meta", "link", "br", "img"}
TEMPLATES: Final = Path(html.__file__).with_name("templates")


class Page(HTMLParser):
    """The elements of a page; refuses tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] not in {"style", "script"}:
            self.text.append(data)

    @property
    def visible(self) -> str:
        return " ".join(" ".join(self.text).split())

    def values(self, *names: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.elements for name in names if name in attrs]


@pytest.mark.parametrize("sample", ALL)
def test_page_is_well_formed(sample: str) -> None:
    page = Page(html.page(record(getattr(report_samples, sample)())))
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    targets = [link[1:] for link in page.values("href") if link.startswith("#")]
    named = [name for value in page.values("aria-labelledby") for name in value.split()]
    assert set(targets) | set(named) <= set(ids)


@pytest.mark.parametrize("sample", ALL)
def test_every_heading_can_be_linked_to(sample: str) -> None:
    page = Page(html.page(record(getattr(report_samples, sample)())))
    headings = [attrs for tag, attrs in page.elements if re.fullmatch("h[1-6]", tag)]
    assert len(headings) > 5
    assert all("id" in attrs for attrs in headings)


@pytest.mark.parametrize("sample", ALL)
def test_the_page_holds_the_results_that_it_is_drawn_from(sample: str) -> None:
    results = record(getattr(report_samples, sample)())
    ((_, link),) = [found for found in Page(html.page(results)).elements if "download" in found[1]]
    head, _, data = str(link["href"]).partition(",")
    assert (link["download"], head) == ("results.json", "data:application/json;base64")
    assert base64.b64decode(data).decode() == results_json.encode(results)


@pytest.mark.parametrize("sample", ALL)
def test_same_results_give_the_same_bytes(sample: str) -> None:
    results = getattr(report_samples, sample)
    assert html.page(record(results())) == html.page(record(results()))


@pytest.mark.parametrize("sample", ALL)
def test_results_from_memory_and_from_the_file_give_the_same_bytes(sample: str) -> None:
    built = record(getattr(report_samples, sample)())
    read = record(json.loads(results_json.encode(built)))
    assert read == built
    assert html.page(read) == html.page(built)
    assert markdown.summary(read) == markdown.summary(built)
    assert terminal.render(read, 100) == terminal.render(built, 100)


@pytest.mark.parametrize("sample", ALL)
def test_nothing_is_loaded_from_elsewhere(sample: str) -> None:
    text = html.page(record(getattr(report_samples, sample)()))
    page = Page(text)
    loaded = page.values("src", "srcset", "action", "data", "poster", "background")
    assert all(value.startswith("data:image/png;base64,") for value in loaded)
    assert all(value.startswith(("#", "data:")) for value in page.values("href"))
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest|import\(", text)
    assert len(text.encode()) < 3_000_000


def test_text_from_outside_stays_text() -> None:
    page = Page(html.page(record(report_samples.hostile())))
    harmless = Page(html.page(record(report_samples.one_failed())))
    count = [tag for tag, _ in page.elements].count
    assert count("script") == [tag for tag, _ in harmless.elements].count("script")
    assert count("img") == 0
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    assert "49" not in " ".join(re.findall(r"onerror=alert\(1\)> (\S+)", page.visible))
    assert "<script>alert('x')</script>" in page.visible


def test_verdict_comes_first() -> None:
    page = Page(html.page(record(report_samples.one_failed())))
    order = [name for name in page.values("id") if name in html.SECTIONS]
    assert order == list(html.SECTIONS)
    assert page.visible.index("v1_2 not met: 10 of 12") < page.visible.index("McNemar p")


def test_failed_requirement_is_named_with_how_much_it_lacks() -> None:
    visible = Page(html.section("verdict", record(report_samples.one_failed()))).visible
    assert "EVAL-03: accuracy: measured 84.31 %, required > 85 %, margin −0.69 pp" in visible
    assert "ORT-03 could not be measured: RuntimeError: the session ended" in visible


def test_failures_lead_the_requirements() -> None:
    text = html.section("requirements", record(report_samples.one_failed()))
    statuses = re.findall(r'data-status="([^"]+)"', text)
    assert statuses == sorted(statuses, key=["not met", "met", "not evaluated"].index)
    assert statuses.count("not met") == 3


def test_standin_is_never_held_against_the_real_baseline() -> None:
    text = html.page(record(report_samples.standin()))
    page = Page(text)
    assert "STAND-IN RUN: NOT A VERDICT" in page.visible
    assert "Stand-in run: no verdict on the real model" in page.visible
    assert "87.19" not in text
    assert "met: " not in page.visible.replace("not met: ", "")


def test_incomplete_run_says_so_before_anything_else() -> None:
    visible = Page(html.section("verdict", record(report_samples.incomplete()))).visible
    assert visible.index("This run is not complete") < visible.index("v1_0")


def of_one_milestone() -> dict[str, Any]:
    results = report_samples.all_met()
    asked = [entry["id"] for entry in results["requirements"] if entry["milestone"] == "v1_2"]
    for entry in results["requirements"]:
        if entry["id"] not in asked:
            entry.update(status="not evaluated", measured=None, margin=None, evidence=[])
            results["milestones"][entry["milestone"]].update(verdict="not evaluated", met=0)
    return {**results, "complete": False, "selected": asked}


def test_a_run_that_did_all_it_was_asked_for_is_no_alarm() -> None:
    results = of_one_milestone()
    text = html.section("verdict", record(results))
    asked = "asked for 12 of 25"  # as many as its figures count
    assert f"{asked} requirements, and says nothing of the others" in text
    assert "<b>12 of 25</b>" in text
    assert "notice bad" not in text
    assert asked in markdown.summary(record(results))
    assert asked in " ".join(terminal.render(record(results), 200))


@pytest.mark.parametrize("selected", [[], ["CONV-01"], ["ORT-01", "ORT-02"]])
def test_a_run_that_did_not_do_all_it_was_asked_for_is(selected: list[str]) -> None:
    results = of_one_milestone()
    results["selected"] = selected
    for entry in results["requirements"]:
        if entry["id"] == "ORT-02":
            entry["measured"] = None
    assert "notice bad" in html.section("verdict", record(results))


def test_a_run_asked_for_all_that_is_always_judged_left_nothing_out() -> None:
    results = {**report_samples.all_met(), "complete": False}
    results["selected"] = [e["id"] for e in results["requirements"] if e["milestone"] != "v1_4"]
    assert incomplete(record(results)) == INCOMPLETE_TEXT


def test_user_model_is_its_own_baseline() -> None:
    visible = Page(html.section("verdict", record(report_samples.user_model()))).visible
    assert "The baseline is that model's own float32 accuracy" in visible


def test_missing_configurations_are_shown_as_missing() -> None:
    text = html.section("comparison", record(report_samples.missing()))
    assert text.count("not evaluated") == 5


def test_class_that_differs_is_marked() -> None:
    visible = Page(html.section("hurts", record(report_samples.extended()))).visible
    assert visible.count("✱") == 2  # one class, and what the mark means
    assert "✱" not in Page(html.section("hurts", record(report_samples.all_met()))).visible


def test_the_colour_of_a_class_is_that_of_its_change_in_images() -> None:
    raw = report_samples.all_met()
    before, row = raw["configurations"][0], raw["configurations"][3]
    name = row["per_class"][0]["name"]
    for found, correct in ((before, 686), (row, 636)):  # 100 * 636 / 1000 - 100 * 686 / 1000 > -5
        found["per_class"][0].update(correct=correct, total=1000, accuracy_percent=correct / 10)
    row["per_class_delta_pp"][name] = -5.0
    assert '<td class="number loss-4"><b>−5.00</b>' in html.section("hurts", record(raw))


def test_probable_cause_is_told_where_kernels_and_reference_part() -> None:
    visible = Page(html.section("made", record(report_samples.extended()))).visible
    assert "9/10000 images differ (0.09 %); exact integers get 8714 right" in visible
    assert visible.count("probable cause: kernels that saturate") == 3


def test_layers_are_one_table_that_says_what_it_was_measured_on() -> None:
    text = html.section("hurts", record(report_samples.extended()))
    visible = Page(text).visible
    assert text.count('<table class="layers">') == 1
    for words in (
        "on 4900 images of the training split, none of which calibrated",
        "8-bit integers simulated in float32",
        "With every layer quantized, divergence is 900 (800 to 1000) in µnat and agreement 99.24 %",
        "92.06 %, float32 92.18 %",
        "on 205 of these images",
    ):
        assert words in visible
    assert '<a href="#net-3">conv2d_3<' in text


def test_images_that_also_calibrated_are_owned_up_to() -> None:
    results = report_samples.extended()
    results["sensitivity"]["calibrated"] = 12
    assert "12 of which also calibrated" in Page(html.section("hurts", record(results))).visible


def test_what_is_not_told_from_zero_is_grey_and_says_so() -> None:
    text = html.section("hurts", record(report_samples.extended()))
    body = text.partition('<table class="layers">')[2].partition("</table>")[0]
    lines = re.findall(r"<tr[^>]*><th scope=\"row\">.*?</tr>", body, re.DOTALL)
    cells = [
        [
            (look, re.sub("<[^>]*>", "", shown))
            for look, shown in re.findall(r'<td class="number([^"]*)"[^>]*>(.*?)</td>', line)
        ]
        for line in lines
    ]
    for row in cells:
        for look, shown in row:
            assert ("untold" in look) == ("not told from zero" in shown)
        assert [("bar" in look) for look, _ in row[1:]] == [False] * 6
    alone, agreement, recovered = ([row[i] for row in cells] for i in (0, 1, 2))
    assert alone[0] == (" untold", "0 (0 to 0), not told from zero")
    assert alone[8] == (" bar", "160 (144 to 176)")
    assert agreement[0][0] == " untold"
    assert agreement[1] == ("", "99.95 (99.65 to 99.97)")
    assert recovered[5] == ("", "+90 (+30 to +150)")
    assert recovered[0] == (" untold", "−60 (−120 to ±0), not told from zero")


def test_a_cost_that_is_told_from_zero_does_not_read_as_zero() -> None:
    results = report_samples.extended()
    results["sensitivity"]["layers"][3] |= {
        "divergence_recovered_nats": 3e-6,
        "divergence_recovered_ci95_nats": [2e-7, 6e-6],
        "agreement_recovered_pp": 0.1,
        "agreement_recovered_ci95_pp": [0.004, 0.2],
    }
    results["sensitivity"]["layers"][4] |= {
        "divergence_recovered_nats": -3e-6,
        "divergence_recovered_ci95_nats": [-6e-6, -4e-7],
    }
    body = re.sub("<[^>]*>", "", html.section("hurts", record(results)))
    assert "+3.0 (+0.2 to +6.0)" in body
    assert "−3.0 (−6.0 to −0.4)" in body
    assert "−3.0 (−6.0 to −0.4), not told" not in body
    assert "+0.10 (+0.004 to +0.200)" in body


def test_markdown_has_the_layers_too() -> None:
    text = markdown.summary(record(report_samples.extended()))
    assert "| conv2d_8 | 160 (144 to 176) | 99.60 (99.30 to 99.76) | +180 (+120 to +240) |" in text
    assert "| conv2d_0 | 0 (0 to 0), not told from zero |" in text
    assert "## Layers" not in markdown.summary(record(report_samples.all_met()))


def test_configurations_whose_noise_reads_alike_share_a_column() -> None:
    found = layers.layers(record(report_samples.extended()))
    assert found is not None
    assert found["columns"][4:] == [
        ("Weights, dB", "all configurations"),
        ("Output, dB", "ONNX Runtime int8, tuned; ONNX Runtime uint8, tuned"),
        ("Output, dB", "PyTorch int8, tuned; PyTorch uint8, tuned"),
    ]


def test_results_without_the_terms_of_the_sensitivity_show_noise_alone() -> None:
    results = report_samples.extended()
    results["sensitivity"] = None
    visible = Page(html.section("hurts", record(results))).visible
    assert "Divergence alone" not in visible
    assert "Not in this results.json: what each layer costs." in visible


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["m/a/BiasAdd", "m/b/MatMul/Fused"], ["a", "b"]),
        (["a", "b"], ["a", "b"]),
        (["m/x/a", "m/x/b"], ["a", "b"]),
        (["m/x/a", "m/y/a", "m/y/b"], ["m/x/a", "m/y/a", "m/y/b"]),
        (["m/only"], ["only"]),
    ],
)
def test_a_layer_is_called_by_its_own_part_of_the_path(names: list[str], short: list[str]) -> None:
    assert list(layers.short_names(names).values()) == short


def test_what_a_default_session_would_do_otherwise_is_told_where_it_would() -> None:
    signed, *_, reference = execution.before_deploying(record(report_samples.all_met()))
    titles = [signed.row.title, reference.row.title]
    assert titles == ["ONNX Runtime int8, tuned", "PyTorch uint8, tuned"]
    assert "leaves 6 of 9 convolutions and 2 of 3 additions in float" in signed.short
    assert "open_session" in signed.short
    assert "session.qdqisint8allowed" in signed.more
    assert reference.short.startswith("It was computed in float32")
    assert "No engine of the installed PyTorch" in reference.more
    assert "fbgemm, x86: “found QUInt8”" in reference.more


def test_notes_on_deployment_come_from_the_records() -> None:
    results = report_samples.all_met()
    ort, torch = results["configurations"][3], results["configurations"][6]
    ort["default_kernels"] = ort["kernels"]
    torch["support"]["unsigned_weights"] = True
    signed, *_, reference = execution.before_deploying(record(results))
    assert "A default session" not in signed.short
    assert reference.more == ""
    del ort["recipe"]["runs_as"]
    torch["execution"] = "kernel"
    for entry in results["configurations"]:
        entry.pop("weights_bits", None)
    assert execution.before_deploying(record(results)) == []


def test_what_weights_need_stands_before_deployment_and_in_the_table() -> None:
    results = report_samples.all_met()
    ort, unsigned, torch = results["configurations"][3:6]
    torch |= {"weights_bits": 8, "needs": "AVX-512 VNNI"}
    found = record(results)
    said = {note.row.due.name: note.short for note in execution.before_deploying(found)}
    assert said[ort["name"]].endswith("7 bits (±63), on which no x86 kernel can saturate.")
    assert said[unsigned["name"]].startswith("Its weights have 8 bits and are unsigned")
    assert said[torch["name"]].startswith("It needs AVX-512 VNNI: its signed weights have 8 bits")
    columns = [table.BY_KEY[key] for key in ("bits", "needs")]
    shown = {
        row.due.name: [table.cell(row, column) for column in columns] for row in table.rows(found)
    }
    assert shown[ort["name"]] == ["7", "any x86"]
    assert shown[unsigned["name"]] == ["8", "any x86"]
    assert shown[torch["name"]] == ["8", "x86 with AVX-512 VNNI"]
    assert shown["torch-float32"] == ["–", "–"]


def test_execution_is_defined_where_something_was_quantized() -> None:
    visible = Page(html.section("comparison", record(report_samples.all_met()))).visible
    for word, meaning in execution.DEFINITIONS.items():
        assert f"{word} , {meaning}" in visible
    assert (
        "Execution"
        not in Page(html.section("comparison", record(report_samples.missing()))).visible
    )


def test_operators_are_counted_alike_and_reference_arithmetic_is_float() -> None:
    found = detail.recipes(record(report_samples.all_met()))
    assert found is not None
    told = dict(found["rows"])
    assert told["weighted layers with 8-bit weights"] == ["10 of 10"] * 4
    assert told["operators on 8-bit tensors"] == ["10 (Conv: 9, Gemm: 1)"] * 4
    assert told["arithmetic on 8-bit tensors"] == ["integer kernels"] * 3 + [
        "float32, between dequantize and quantize steps"
    ]


def test_one_layer_with_float_weights_is_not_counted_among_those_of_8_bits() -> None:
    results = report_samples.all_met()
    results["configurations"][3]["census"]["weights"]["layer_4"] = "float32"
    assert (
        execution.operators(record(results).configurations[3])["weighted layers with 8-bit weights"]
        == "9 of 10"
    )


def test_optimizer_state_is_not_taken_for_weights() -> None:
    results = report_samples.all_met()
    visible = Page(html.section("comparison", record(results))).visible
    assert "holds 314.7 kB of weights; 625.5 kB are optimizer state" in visible
    assert "weights 314.7" in visible
    results["configurations"][0]["optimizer_bytes"] = 0
    assert "optimizer" not in html.section("comparison", record(results))


def test_fingerprints_of_model_and_data_are_below_and_the_verdict_leads_there() -> None:
    results = report_samples.all_met()
    top, text = (html.section(name, record(results)) for name in ("verdict", "made"))
    assert results["assets"]["model_sha256"] not in top
    assert 'href="#assets"' in top
    assert 'id="assets"' in text
    assert results["assets"]["model_sha256"] in text
    known = "".join(f"{md5}  {n}\n" for n, md5 in sorted(results["assets"]["dataset_md5"].items()))
    assert hashlib.sha256(known.encode()).hexdigest()[:16] in text
    moved = report_samples.all_met()
    moved["assets"]["dataset_md5"]["test_batch"] = "0" * 32
    assert detail.data_fingerprint(record(moved)) != detail.data_fingerprint(record(results))


def test_a_build_that_the_pin_does_not_name_is_installed_first() -> None:
    results = report_samples.all_met()
    line = "pip install torch==2.13.0+cpu # cpu build, from the project's own index"
    visible = Page(html.section("made", record(results))).visible
    assert visible.index(line) < visible.index("pip install -c constraints.txt")
    results["environment"]["packages"]["torch"] = "2.13.0"
    assert "own index" not in html.section("made", record(results))


def test_changes_of_a_confusion_are_coloured_by_what_they_do() -> None:
    results = report_samples.all_met()
    for found in results["configurations"][1:]:
        found["confusion"] = [list(line) for line in results["configurations"][0]["confusion"]]
    planted = results["configurations"][4]["confusion"]
    planted[3][3] -= 30
    planted[3][5] += 30
    planted[5][5] += 3
    planted[5][3] -= 3
    baseline, *others = detail.confusions(record(results))
    assert [found["open"] for found in others] == [False, False, False, True, False, False]
    assert not baseline["open"]
    before, shown = (
        re.findall(r'<td class="number (.*?)">(.*?)</td>', table)
        for table in html.section("hurts", record(results)).split('<table class="matrix">')[1:]
        if re.search(r">[−+]30<|>893<", table)
    )
    assert before[0] == (" diagonal", "893")
    assert (shown[33], shown[35]) == (("loss-4 diagonal", "−30"), ("loss-4", "+30"))
    assert (shown[55], shown[53]) == (("gain-2 diagonal", "+3"), ("gain-2", "−3"))
    assert [text for _, text in shown[:100]].count("") == 96
    assert others[3]["worst"] == "cat taken for dog, +30"


def test_gallery_says_which_images_it_shows_and_lists_them() -> None:
    results = report_samples.extended()
    shown = results["configurations"][3]["changed"]
    results["configurations"][4]["lost"] = 6
    text = html.section("hurts", record(results))
    visible = Page(text).visible
    assert "the 6 that it is surest of, among the 52 test images" in visible
    assert "all 6 test images" in visible
    answers = [report_samples.CLASSES[shown[0][key]] for key in ("baseline_answer", "answer")]
    alt = f"float32 answers {answers[0]}, int8 answers {answers[1]}"
    assert f'alt="Test image 17: true class {answers[0]}, {alt}"' in text
    assert text.count("The same as a table") == 4


def test_models_that_get_the_same_images_wrong_share_a_gallery() -> None:
    results = report_samples.extended()
    one, other = results["configurations"][3:5]
    other.update(lost=one["lost"], changed=one["changed"])
    assert [len(sharing) for sharing in detail.galleries(record(results))] == [2, 1, 1]
    title = "<b>ONNX Runtime int8, tuned and ONNX Runtime uint8, tuned</b>:"
    assert title in html.section("hurts", record(results))
    other["changed"] = [{**image, "answer": (image["answer"] + 1) % 10} for image in one["changed"]]
    assert len(detail.galleries(record(results))) == 4


def test_verdicts_sort_by_what_they_mean() -> None:
    results = report_samples.flagged()
    results["configurations"][4]["word"] = "improved"
    results["configurations"][3]["word"] = "inconclusive"
    results["configurations"].pop()
    text = html.section("comparison", record(results))
    found = re.findall(
        r'class="word answer" data-order="(-?\d)"><span[^>]*>.</span> ([\w ]+)', text
    )
    assert [word for _, word in sorted(found, key=lambda pair: int(pair[0]))] == [
        *("not evaluated", "degraded", "inconclusive"),
        *("baseline", "equivalent", "equivalent", "improved"),
    ]


@pytest.mark.parametrize("theme", ["light", "dark", "print"])
def test_colours_have_the_contrast_of_wcag_aa(theme: str) -> None:
    colours = _colours(theme)
    papers = [colours[name] for name in ("paper", "raised", "good-wash", "bad-wash")]
    papers += [_mixed(colours[k], colours["paper"], 0.48) for k in ("gain", "loss")]
    for paper in papers:
        assert _contrast(colours["ink"], paper) >= 4.5
    for name in ("quiet", "good", "bad", "accent"):
        for behind in ("paper", "raised", "bad-wash"):
            assert _contrast(colours[name], colours[behind]) >= 4.5, (name, behind)
    for name in ("gain", "loss", "mark", "frame"):
        assert _contrast(colours[name], colours["paper"]) >= 3, name


Colour = tuple[float, float, float]


def _colours(theme: str) -> dict[str, Colour]:
    """The custom properties that a theme ends up with."""
    css = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    light, dark, paper = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    assert "(" not in light + dark + paper  # a function that a browser does not know paints black
    found = light + {"light": "", "dark": dark, "print": paper}[theme]
    return {name: _rgb(value) for name, value in re.findall(r"--([\w-]+): (#[0-9a-f]+);", found)}


def _rgb(value: str) -> Colour:
    digits = value[1:] if len(value) == 7 else "".join(2 * digit for digit in value[1:])
    red, green, blue = (int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4))
    return red, green, blue


def _mixed(one: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (share * a + (1 - share) * b for a, b in zip(one, other, strict=True))
    return red, green, blue


def _contrast(one: Colour, other: Colour) -> float:
    """Contrast ratio by WCAG 2."""
    dark, light = sorted(
        sum(
            weight * (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4)
            for weight, part in zip((0.2126, 0.7152, 0.0722), colour, strict=True)
        )
        for colour in (one, other)
    )
    return (light + 0.05) / (dark + 0.05)


def test_each_term_that_is_linked_is_explained() -> None:
    linked: set[str] = set()
    for sample in (report_samples.standin, report_samples.extended):
        page = html.page(record(sample()))
        explained = set(re.findall(r'id="(term-[^"]+)"', page))
        found = set(re.findall(r'href="#(term-[^"]+)"', page))
        assert found <= explained
        linked |= found
    assert linked == explained


def test_only_on_the_stand_in_does_a_milestone_without_a_verdict_stand_out() -> None:
    raw = report_samples.all_met()
    raw["milestones"]["v1_4"].update(verdict="not evaluated", met=0, reason="only on demand")
    assert html.section("verdict", record(raw)).count("milestone neutral quiet") == 1
    standin = html.section("verdict", record(report_samples.standin()))
    assert "milestone neutral" in standin
    assert "milestone neutral quiet" not in standin


def test_a_requirement_leads_to_its_error_and_not_to_a_pass_of_the_same_test() -> None:
    reports = [{"result": kind, "duration": "1 ms"} for kind in ("Passed", "Error")]
    given = {
        "test_data": json.dumps({"tests": {"test_it": reports}, "environment": {}}),
        "additional_summary": {"prefix": [], "summary": [], "postfix": []},
        **{"run_count": "1 test", "date": "today", "time": "now", "version": "4"},
    }
    found = html._session(report_samples.record(report_samples.all_met()), given)
    assert [test["result"] for test in found["tests"]] == ["Error", "Passed"]
    assert found["anchors"] == {"test_it": found["tests"][0]["anchor"]}
