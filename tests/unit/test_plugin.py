"""The plugin: what it selects, what it says, and what it leaves behind."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any, Final

import junitparser
import pytest

from resnet8_eval import requirements
from resnet8_eval.pipeline import Pipeline
from resnet8_eval.report import html
from resnet8_eval.requirements import ALWAYS, BY_ID, MILESTONES, ON_DEMAND, of_milestone
from resnet8_eval.results import checked
from resnet8_eval.verdicts import MADE_IN
from tests.small_suite import ROOT, Suite, passing

JUST_ABOVE_80: Final = "requirement.judge(80.5, [equal('images', 1, 1)]); return"


@pytest.fixture
def suite(pytester: pytest.Pytester) -> Suite:
    return Suite(pytester)


@pytest.mark.parametrize("words", [(), ("-v",), ("-n2",)], ids=["alone", "verbose", "with workers"])
def test_a_run_in_which_all_is_met(suite: Suite, words: tuple[str, ...]) -> None:
    done = suite.run(*words, html=True)
    assert done.status == pytest.ExitCode.OK
    assert set(done.statuses(ALWAYS).values()) == set(done.verdicts.values()) == {"met"}
    assert done.results["complete"]
    assert done.results["command"].startswith("pytest ")
    for name, entry in ALWAYS.items():
        pattern = (
            rf"{name} +met +{re.escape(entry.quantity)}: measured .*, required .*, margin [+±]"
        )
        assert len(re.findall(pattern, done.output)) == 1
    for line in ("v1_0 met: 6 of 6", "v1_1 met: 5 of 5", "v1_2 met: 12 of 12", "v1_3 met: 2 of 2"):
        assert done.output.count(line) == 1
    assert {path.name for path in suite.reports.iterdir()} == {
        "report.html",
        "results.json",
        "comparison.csv",
        "comparison.md",
        "history.json",
        "summary.md",
        "junit.xml",
    }
    page = (suite.reports / "report.html").read_text(encoding="utf-8")
    assert page.count('<a href="#req-CAL-01">CAL-01</a>') == 1
    assert page.count('data-result="Passed"') == len(ALWAYS)
    assert "No earlier complete run on the same assets" in page


def test_reports_of_tests_in_a_package_lie_where_they_were_asked_for(
    suite: Suite, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not in the root of the project around that folder, among its own reports."""
    below = pytester.mkdir("below")
    monkeypatch.chdir(below)
    pytester.runpytest_inprocess("--pyargs", "--cache-dir=cache", "../acceptance", "-p", "no:html")
    assert (below / "reports" / "results.json").is_file()
    assert not suite.reports.exists()
    pytester.runpytest_inprocess("--cache-dir=cache", "../acceptance", "-p", "no:html")
    assert (suite.reports / "results.json").is_file()


@pytest.mark.parametrize("words", [(), ("-m", "v2")], ids=["all", "a marker"])
def test_the_tests_of_another_project_are_left_alone(
    pytester: pytest.Pytester, words: tuple[str, ...]
) -> None:
    """Where it is installed, pytest loads the plugin for every project."""
    pytester.makeini(
        "[pytest]\nmarkers = v2: theirs\naddopts = -p no:hypothesispytest -p no:html\n"
        "junit_family = legacy"
    )
    theirs = pytester.mkdir("reports") / "results.json"
    theirs.write_text("theirs")
    test = pytester.mkdir("acceptance") / "test_theirs.py"
    test.write_text(
        "import pytest\n\n@pytest.mark.v2\n"
        "def test_it(record_property): record_property('evidence', 'photo.png')"
    )
    done = pytester.runpytest_inprocess("acceptance", "--junitxml=junit.xml", *words)
    done.assert_outcomes(passed=1)
    junit = (pytester.path / "junit.xml").read_text(encoding="utf-8")
    assert '<property name="evidence" value="photo.png" />' in junit
    assert [path.read_text() for path in theirs.parent.iterdir()] == ["theirs"]


def test_what_changed_since_the_last_complete_run_is_told(suite: Suite) -> None:
    suite.run()
    suite.run("--requirement=CAL-01")  # not complete, so that nothing is held against it
    same = suite.run(html=True)
    assert "Since the last complete run on the same assets. Nothing moved." in same.output
    suite.write({"CAL-01": "import pytest\n" + passing("CAL-01", body="assert False")})
    broken = suite.run(html=True)
    moved = "Moved: verdicts (1): v1_2 met, 12 of 12 → not met, 11 of 12; requirements (1): CAL-01"
    assert moved in broken.output
    page = (suite.reports / "report.html").read_text(encoding="utf-8")
    assert moved in page
    assert page.count('<span class="small">this run</span>') == 1
    other = suite.run("--assets=stand-in", html=True)
    assert "Since the last complete run" not in other.output


@pytest.mark.parametrize("option", ["--cache-dir", "--reports-dir"])
@pytest.mark.parametrize(
    ("given", "folder"),
    [("~/folder", "/home/someone/folder"), ("~nobody-of-that-name/x", "~nobody-of-that-name/x")],
)
def test_a_tilde_behind_an_equals_sign_is_the_users_own_folder(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    given: str,
    folder: str,
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    # Hypothesis warns when it is loaded into a process that has used it before.
    config = pytester.parseconfig("-pno:hypothesispytest", f"{option}={given}")
    assert config.getoption(option) == Path(folder)


@pytest.mark.parametrize("words", [(), ("-n1",)], ids=["alone", "with a worker"])
def test_a_junit_reader_shows_each_requirement_and_its_numbers(
    suite: Suite, words: tuple[str, ...]
) -> None:
    body = "requirement.judge(84.2512, [equal('images', 10, 9), equal('rows', 3, 3)]); return"
    suite.write({"PT-05": passing("PT-05", body=body)})
    suite.run(*words)
    found = {}
    for group in junitparser.JUnitXml.fromfile(str(suite.reports / "junit.xml")):
        told = {entry.name: entry.value for entry in group.properties()}
        assert told["assets"] == "real"
        assert "PT-05: images: expected 10, observed 9." in told["diagnosis of v1_1"]
        assert set(told) == {"assets", MADE_IN, "diagnosis of v1_1"}
        for case in group:
            properties = case.child(junitparser.Properties)
            shown: dict[str, Any] = {entry.name: entry.value for entry in properties}
            shown["evidence"] = [e.value for e in properties if e.name == "evidence"]
            found[shown["requirement"]] = (case, shown)
    assert set(found) == set(ALWAYS)
    for name, (case, shown) in found.items():
        entry = BY_ID[name]
        assert (shown["milestone"], shown["threshold"]) == (entry.milestone, entry.required)
        assert entry.is_met_by(float(shown["measured"])) == case.is_passed == (name != "PT-05")
        assert shown["evidence"]
    failed = found["PT-05"][1]
    assert failed["measured"] == "84.25"
    assert failed["judged"] == "accuracy: measured 84.25 %, required > 85 %, margin −0.75 pp"
    assert failed["evidence"] == [
        "BROKEN: images: expected 10, observed 9",
        "holds: rows: 3, as expected",
    ]


SLOW: Final = """

import time

from resnet8_eval.acceptance_run import AcceptanceRun

honestly = AcceptanceRun.prepared


def prepared(self, items):
    if not self._prepared:
        time.sleep(1.5)
    return honestly(self, items)


AcceptanceRun.prepared = prepared
"""


@pytest.mark.parametrize("words", [(), ("-n1",)], ids=["alone", "with a worker"])
def test_the_time_of_the_pipeline_is_no_test_s(suite: Suite, words: tuple[str, ...]) -> None:
    conftest = suite.reports.with_name("conftest.py")
    conftest.write_text(conftest.read_text(encoding="utf-8") + SLOW, encoding="utf-8")
    suite.run(*words, apart=True)
    (group,) = junitparser.JUnitXml.fromfile(str(suite.reports / "junit.xml"))
    told = {entry.name: entry.value for entry in group.properties()}
    assert 1.5 <= float(told[MADE_IN]) < 60
    assert max(case.time for case in group) < 1.5


def test_workers_change_nothing_in_the_report_but_times(suite: Suite) -> None:
    pages = []
    first: dict[str, Any] = {}
    for words in ((), ("-n2",)):
        results = suite.run(*words).results
        first = first or results
        times = {key: first[key] for key in ("created", "command", "stages")}
        pages.append(html.page(checked({**results, **times})))
    assert "CAL-01" in pages[0]
    assert pages[0] == pages[1]


@pytest.mark.parametrize("words", [(), ("-n1",)], ids=["alone", "with a worker"])
def test_a_failure_says_id_measured_required_and_margin(
    suite: Suite, words: tuple[str, ...]
) -> None:
    body = "requirement.judge(84.25, [equal('images', 10, 9), equal('labels', 1, 1)]); return"
    suite.write({"PT-05": passing("PT-05", body=body)})
    done = suite.run(*words)
    sentence = "accuracy: measured 84.25 %, required > 85 %, margin −0.75 pp"
    assert re.search(rf"PT-05 +NOT MET +{re.escape(sentence)}", done.output)
    assert f"PT-05 not met: {sentence}" in done.output
    assert re.search(r"^FAILED acceptance/test_small.py::test_pt_05_small", done.output, re.M)
    assert "images: expected 10, observed 9 [FAILED]" in done.output
    (entry,) = [entry for entry in done.results["requirements"] if entry["id"] == "PT-05"]
    assert (entry["measured"], entry["margin"]) == (84.25, -0.75)
    assert [check["ok"] for check in entry["evidence"]] == [False, True]
    assert entry["test"] == "acceptance/test_small.py::test_pt_05_small"
    assert entry["reason"].startswith(f"PT-05 not met: {sentence}")
    assert [e["status"] for e in done.results["requirements"]].count("not met") == 1


@pytest.mark.parametrize("milestone", MILESTONES)
def test_a_milestone_s_marker_selects_its_tests(suite: Suite, milestone: str) -> None:
    done = suite.run("-m", milestone)
    wanted = {entry.id for entry in of_milestone(milestone)}
    assert {name for name, status in done.statuses().items() if status == "met"} == wanted
    assert set(done.results["selected"]) == wanted
    assert not done.results["complete"]
    assert done.verdicts == {
        name: "met" if name == milestone else "not evaluated" for name in done.verdicts
    }


NEW_MILESTONE = {
    "MILESTONES: Final = {\n": '    "v9_9": "Something new",\n',
    "REGISTER: Final[tuple[Requirement, ...]] = (\n": (
        '    Requirement("NEW-01", "v9_9", 9, "It is new", "new things", ">=", 1, "things"),\n'
    ),
}


@pytest.mark.parametrize("words", [(), ("-n1",)], ids=["alone", "with a worker"])
def test_a_new_milestone_is_two_entries_in_the_register_and_a_test(
    suite: Suite, pytester: pytest.Pytester, words: tuple[str, ...]
) -> None:
    package = pytester.path / "resnet8_eval"  # the folder of a run comes first on its path
    shutil.copytree(Path(requirements.__file__).parent, package, dirs_exist_ok=True)
    text = (package / "requirements.py").read_text(encoding="utf-8")
    for place, entry in NEW_MILESTONE.items():
        assert text.count(place) == 1
        text = text.replace(place, place + entry)
    (package / "requirements.py").write_text(text, encoding="utf-8")
    test = passing("ANL-01").replace("ANL-01", "NEW-01").replace("anl_01", "new_01")
    suite.write(extra=test)
    (pytester.path / "acceptance").rename(pytester.path / "small")
    options = ("--cache-dir=cache", "--reports-dir=reports")
    done = pytester.runpytest_subprocess("-m", "v9_9", *words, *options)
    assert done.ret == pytest.ExitCode.OK
    done.stdout.fnmatch_lines(["*NEW-01*met*new things: measured 12 things, required ≥ 1 things*"])
    done.stdout.fnmatch_lines(["v9_9 met: 1 of 1 requirement"])
    results = json.loads((suite.reports / "results.json").read_text())
    assert results["selected"] == ["NEW-01"]
    assert {name: found["verdict"] for name, found in results["milestones"].items()} == {
        "v9_9": "met",
        **dict.fromkeys(MILESTONES, "not evaluated"),
    }
    assert {"report.html", "junit.xml"} <= {path.name for path in suite.reports.iterdir()}
    assert "v9_9 met" in (suite.reports / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("expression", "name", "words"),
    [
        ("v1_9", "v1_9", ()),
        ("v1_9", "v1_9", ("-n1",)),
        ("v1_0 or v1_9", "v1_9", ()),
        ("not v2_0", "v2_0", ()),
        ("V1_2", "V1_2", ()),
        ("v1.2", "v1.2", ()),
    ],
)
def test_an_unknown_milestone_is_refused_in_one_line_before_anything_is_done(
    suite: Suite, expression: str, name: str, words: tuple[str, ...]
) -> None:
    done = suite.run("-m", expression, *words)
    assert done.status == pytest.ExitCode.USAGE_ERROR
    refusal = (
        f"-m {name}: there is no such milestone; the register has v1_0, v1_1, v1_2, v1_3, v1_4"
    )
    assert done.output.split("\n", 1)[0] == f"ERROR: {refusal}"
    assert "test session starts" not in done.output
    assert not suite.reports.exists()


@pytest.mark.parametrize(
    ("expression", "milestones"),
    [
        ("v1_0 or v1_1", {"v1_0", "v1_1"}),
        ("not v1_2", {"v1_0", "v1_1", "v1_3"}),
        ("v1_1 and not requirement(needs='v1_9')", {"v1_1"}),
        ("requirement", {"v1_0", "v1_1", "v1_2", "v1_3"}),
    ],
)
def test_other_marker_expressions_select_as_ever(
    suite: Suite, expression: str, milestones: set[str]
) -> None:
    done = suite.run("-m", expression)
    wanted = [name for name, entry in BY_ID.items() if entry.milestone in milestones]
    assert done.status == pytest.ExitCode.OK
    assert done.results["selected"] == wanted


ON_DEMAND_IDS = [name for name, entry in BY_ID.items() if entry.milestone in ON_DEMAND]


@pytest.mark.parametrize("words", [(), ("-n1",), ("-m", "not v1_0")], ids=" ".join)
def test_what_takes_long_is_left_out_unless_it_is_named(
    suite: Suite, words: tuple[str, ...]
) -> None:
    done = suite.run(*words)
    assert done.status == pytest.ExitCode.OK
    assert done.results["milestones"]["v1_4"] == {
        "verdict": "not evaluated",
        "met": 0,
        "total": len(ON_DEMAND_IDS),
        "reason": "judged only where it is asked for, with -m v1_4",
    }
    assert done.statuses(ON_DEMAND_IDS) == dict.fromkeys(ON_DEMAND_IDS, "not evaluated")
    assert done.results["complete"] == ("-m" not in words)


@pytest.mark.parametrize(
    ("words", "selected"),
    [(("-m", "v1_4"), ON_DEMAND_IDS), (("--requirement", "ADV-03"), ["ADV-03"])],
)
def test_what_takes_long_is_judged_where_it_is_named(
    suite: Suite, words: tuple[str, ...], selected: list[str]
) -> None:
    done = suite.run(*words)
    assert done.status == pytest.ExitCode.OK
    assert done.results["selected"] == selected
    assert set(done.statuses(selected).values()) == {"met"}


def test_markers_are_those_of_the_register(suite: Suite) -> None:
    lines = suite.run("--markers").output.splitlines()
    for name, title in MILESTONES.items():
        assert f"@pytest.mark.{name}: milestone {name}, {title}" in lines


LISTENING = """
import os


def pytest_runtest_logreport(report):
    if "pt_05" in report.nodeid and report.when == "call":
        where = os.environ.get("PYTEST_XDIST_WORKER", "controller")
        Path(where).write_text(report.outcome)
"""


@pytest.mark.parametrize(
    ("words", "said"),
    [((), {"controller": "failed"}), (("-n1",), {"gw0": "passed", "controller": "failed"})],
    ids=["alone", "with a worker"],
)
def test_the_controller_alone_judges_before_others_are_told(
    suite: Suite, pytester: pytest.Pytester, words: tuple[str, ...], said: dict[str, str]
) -> None:
    conftest = pytester.path / "conftest.py"
    conftest.write_text(conftest.read_text() + LISTENING)
    suite.write({"PT-05": passing("PT-05", body="requirement.judge(84); return")})
    assert suite.run(*words).status == pytest.ExitCode.TESTS_FAILED
    assert {name: (pytester.path / name).read_text() for name in said} == said


def test_a_test_names_its_stages_or_a_function_that_does(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[str] = []
    monkeypatch.setattr(Pipeline, "prepare", lambda _, needs: prepared.extend(needs))
    marker = '@pytest.mark.requirement("{}"'
    suite.write(
        {
            name: passing(name).replace(
                marker.format(name), f"{marker.format(name)}, needs={needs}"
            )
            for name, needs in {"CAL-01": '["a", "b"]', "CAL-02": 'lambda: ["b", "c"]'}.items()
        }
    )
    suite.run()
    assert prepared == ["a", "b", "c"]


FORGOTTEN = [
    "statistics",
    "onnx",
    "calibration",
    "folded",
    "torch",
    "parameters",
    "model",
    "scores",
    "latency",
]


@pytest.mark.parametrize(
    ("option", "forgotten"),
    [("--fresh-timing", ["latency"]), ("--fresh", FORGOTTEN)],
)
def test_what_is_to_be_made_anew_is_forgotten(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, option: str, forgotten: list[str]
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(Pipeline, "prepare", lambda *_: None)
    monkeypatch.setattr(Pipeline, "forget", lambda _, names: seen.extend(names))
    marker = '@pytest.mark.requirement("EVAL-05"'
    suite.write(
        {"EVAL-05": passing("EVAL-05").replace(marker, f'{marker}, needs=["latency", "onnx"]')}
    )
    suite.run(option)
    assert {name.partition("/")[0] for name in seen} == set(forgotten)


@pytest.mark.parametrize(
    ("option", "shown"),
    [
        ("--seeds=2", ["compare/torch-int8-stock", "compare/torch-int8-stock@1"]),
        ("--layers", ["layers/torch-int8-tuned", "compare/torch-int8-tuned"]),
    ],
)
def test_what_an_option_measures_is_made_for_the_report_of_any_selection(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, option: str, shown: list[str]
) -> None:
    seen: set[str] = set()
    monkeypatch.setattr(Pipeline, "prepare", lambda _, names: seen.update(names))
    suite.run(option, "-m", "v1_0")
    assert seen >= set(shown)


def test_a_demand_on_speed_reaches_the_requirement(suite: Suite) -> None:
    suite.write({"EVAL-05": passing("EVAL-05", body="assert run.settings.min_speedup == 1.25")})
    assert suite.run("--min-speedup=1.25").statuses(["EVAL-05"]) == {"EVAL-05": "met"}


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--gate=half", "expected equivalent, or the largest drop in percentage points"),
        ("--gate=-1", "expected equivalent, or the largest drop in percentage points"),
        ("--calibration-count=9", "expected a whole number from 10, such as 1000; got 9"),
        ("--calibration-seed=-1", "expected a whole number from 0; got -1"),
        ("--seeds=0", "expected a whole number from 1 to 1000, such as 5; got 0"),
        ("--seeds=1001", "expected a whole number from 1 to 1000, such as 5; got 1001"),
        ("--seeds=many", "expected a whole number from 1 to 1000, such as 5; got many"),
    ],
)
def test_an_option_that_means_nothing_is_refused(suite: Suite, option: str, said: str) -> None:
    done = suite.run(option)
    assert done.status == pytest.ExitCode.USAGE_ERROR
    assert said in " ".join(done.output.split())


@pytest.mark.parametrize(
    "words",
    [("--min-speedup=1.2", "-m", "v1_2"), ("--fresh-timing", "--requirement=CAL-01", "-n1")],
)
def test_an_option_of_speed_without_its_requirement_is_refused(
    suite: Suite, words: tuple[str, ...]
) -> None:
    done = suite.run(*words)
    assert (done.status, done.results) == (pytest.ExitCode.USAGE_ERROR, {})
    assert f"{words[0].partition('=')[0]} would do nothing: it is for EVAL-05" in done.output


@pytest.mark.parametrize("given", ["0", "-1", "nan", "inf", "fast"])
def test_a_demand_that_is_no_speed_is_refused(suite: Suite, given: str) -> None:
    done = suite.run(f"--min-speedup={given}")
    assert done.status == pytest.ExitCode.USAGE_ERROR
    assert f"expected a number above 0, such as 1.2; got {given}" in done.output


def test_a_stated_accuracy_is_told_wherever_the_threshold_is(suite: Suite) -> None:
    """Here 80.5 % is enough; without the statement it is not (next test)."""
    suite.write({name: passing(name, body=JUST_ABOVE_80) for name in ("EVAL-03", "PT-05")})
    done = suite.run("--keras-model=own.h5", "--min-accuracy=80", html=True)
    assert done.statuses(["EVAL-03", "PT-05"]) == {"EVAL-03": "met", "PT-05": "met"}
    assert done.results["assets"]["min_accuracy_percent"] == 80
    sentence = "It must exceed 80 %, as --min-accuracy says, instead of 85 %."
    title = "ONNX Runtime accuracy above 80 % (--min-accuracy; 85 % else)"
    report, table, junit = (
        (suite.reports / name).read_text(encoding="utf-8")
        for name in ("report.html", "comparison.md", "junit.xml")
    )
    for said in (" ".join(done.output.split()), report, table):
        assert sentence in said
    assert f'name="title" value="{title}"' in junit
    assert "measured 80.50 %, required &gt; 80 %, margin +0.50 pp" in junit
    assert 'name="margin" value="0.5"' in junit
    assert title in report
    assert title in [entry["title"] for entry in done.results["requirements"]]
    assert re.search(r"EVAL-03 +met +accuracy: measured 80.50 %, required > 80 %", done.output)


def test_without_a_statement_the_register_decides_of_an_own_model(suite: Suite) -> None:
    suite.write({"EVAL-03": passing("EVAL-03", body=JUST_ABOVE_80)})
    done = suite.run("--keras-model=own.h5")
    assert done.statuses(["EVAL-03"]) == {"EVAL-03": "not met"}
    assert "min_accuracy_percent" not in done.results["assets"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--min-accuracy=80"], "name it with --keras-model"),
        (["--keras-model=own.h5", "--min-accuracy=nan"], "less than 100, such as 80; got nan"),
        (["--keras-model=own.h5", "--min-accuracy=100"], "less than 100, such as 80; got 100"),
    ],
)
def test_a_stated_accuracy_that_means_nothing_is_refused(
    suite: Suite, words: list[str], said: str
) -> None:
    done = suite.run(*words)
    assert done.status == pytest.ExitCode.USAGE_ERROR
    assert said in done.output


@pytest.mark.parametrize("option", ["--assets-dir", "--cache-dir", "--reports-dir"])
def test_a_folder_without_a_name_is_refused(pytester: pytest.Pytester, option: str) -> None:
    with pytest.raises(pytest.UsageError, match="expected a folder; got no name"):
        pytester.parseconfig("-pno:hypothesispytest", f"{option}=")


def test_what_another_plugin_warns_about_outside_of_tests_is_its_own(
    pytester: pytest.Pytester,
) -> None:
    for name in ("pyproject.toml", "conftest.py"):
        (pytester.path / name).write_text((ROOT / name).read_text(encoding="utf-8"))
    warning = "import warnings\ndef {}():\n    warnings.warn('planted')\n"
    pytester.makepyfile(
        another=warning.format("pytest_configure"),
        test_it=warning.format("test_it") + "def test_that():\n    pass\n",
    )
    done = pytester.runpytest_subprocess("-p", "another", "test_it.py")
    done.assert_outcomes(passed=1, failed=1)


def test_requirement_picks_by_id(suite: Suite) -> None:
    done = suite.run("--requirement=CAL-01", "--requirement", "PT-02", "-n1")
    assert done.status == pytest.ExitCode.OK
    assert {n for n, s in done.statuses().items() if s == "met"} == {"CAL-01", "PT-02"}
    assert "met" not in done.verdicts.values()


@pytest.mark.parametrize("words", [("-m", "v1_0"), ("--requirement", "CONV-01")])
def test_a_call_from_another_folder_of_the_checkout_collects_the_requirements_alone(
    suite: Suite,
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
) -> None:
    ini, folder = pytester.path / "pytest.ini", pytester.path / "unit"
    ini.write_text(f"{ini.read_text()}\ntestpaths = acceptance\n")
    folder.mkdir()
    (folder / "test_other.py").write_text("raise RuntimeError('collected')\n")
    monkeypatch.chdir(folder)
    done = pytester.runpytest_inprocess(*words, "--collect-only", "-q")
    assert done.ret == 0, done.stdout.str()
    assert "acceptance/test_small.py::" in done.stdout.str()
    done = pytester.runpytest_inprocess(*words, "--collect-only", "-q", ".")
    assert "RuntimeError: collected" in done.stdout.str()  # a path that is named counts


def test_an_unknown_requirement_is_told_what_there_is(suite: Suite) -> None:
    done = suite.run("--requirement=CAL-99")
    assert done.status == pytest.ExitCode.USAGE_ERROR
    assert "CAL-99: there is no such requirement" in done.output
    assert "CAL-01, CAL-02" in done.output


def test_the_suite_s_errors_come_without_a_trace(suite: Suite) -> None:
    body = (
        "from resnet8_eval.errors import StageError\n"
        "    raise StageError('Planted.', expected='a', given='b', next_step='c')"
    )
    suite.write({"CAL-01": passing("CAL-01", body=body)})
    done = suite.run()
    assert "  next:     c" in done.output
    assert "Traceback" not in done.output
    assert "test_small.py:" not in done.output.partition("short test summary")[0]


def test_tests_without_a_requirement_leave_no_reports(
    suite: Suite, pytester: pytest.Pytester
) -> None:
    (pytester.path / "acceptance" / "test_small.py").write_text("def test_it(): pass\n")
    assert suite.run().status == pytest.ExitCode.OK
    assert not (suite.reports / "results.json").exists()


def test_a_test_that_asks_for_the_judge_needs_a_marker(suite: Suite) -> None:
    suite.write(extra="def test_more(requirement): pass\n")
    done = suite.run()
    assert done.status != pytest.ExitCode.OK
    assert "carries no requirement marker" in done.output


def test_it_says_in_its_help_what_its_options_do(pytester: pytest.Pytester) -> None:
    found = pytester.runpytest_subprocess("--help").stdout.str()
    for option in ("assets", "assets-dir", "keras-model", "requirement", "reports-dir"):
        assert f"--{option}" in found
    assert "no milestone is ever met on it" in re.sub(r"\s+", " ", found)


def test_no_key_moves_with_how_a_run_is_called(
    suite: Suite, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Workers are to run this code, whichever is installed.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    body = "with open('keys', 'a') as keys: print(*map(run.key, run.stages), file=keys)"
    suite.write({"CAL-01": passing("CAL-01", body=body)})
    ways: list[tuple[str, ...]] = [(), ("-vv",), ("-q", "--tb=short"), ("-n1",)]
    for words in ways:
        suite.run("--requirement=CAL-01", *words)
        suite.reports.rename(suite.reports.with_name(f"reports of {words}"))
    found = (pytester.path / "keys").read_text().splitlines()
    assert len(found) == len(ways)
    assert len(set(found)) == 1


def test_folders_above_the_checkout_may_have_any_name(
    suite: Suite, pytester: pytest.Pytester
) -> None:
    suite.run()
    checkout = pytester.path / "acceptance" / "checkout"
    checkout.mkdir()
    for name in ("pytest.ini", "conftest.py", "reports"):
        (pytester.path / name).rename(checkout / name)
    (checkout / "test_unit.py").write_text("def test_it(): pass\n")
    done = pytester.runpytest_inprocess(f"--rootdir={checkout}", checkout / "test_unit.py")
    assert done.ret == pytest.ExitCode.OK
    assert (checkout / "reports" / "results.json").exists()


@pytest.mark.parametrize("words", [("--assets=auto",), ("--assets", "auto")], ids=" ".join)
def test_the_command_that_is_recorded_names_the_assets_that_were_used(
    suite: Suite, words: tuple[str, ...]
) -> None:
    command = suite.run("--requirement=CAL-01", *words).results["command"]
    assert "auto" not in command
    assert "--assets=real" in command


@pytest.mark.parametrize(
    ("addopts", "recorded"),
    [
        ("--seeds=2", "--seeds=2"),
        ("--assets=auto", "--assets=real"),
        ("-k 'cal_01 or x' --assets auto", "-k 'cal_01 or x' --assets=real"),
    ],
)
def test_the_command_that_is_recorded_has_the_options_of_the_environment(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, addopts: str, recorded: str
) -> None:
    """Planted: without them it gives other numbers, for its calibration is another."""
    monkeypatch.setenv("PYTEST_ADDOPTS", addopts)
    monkeypatch.setattr(Pipeline, "prepare", lambda *_: None)
    command = suite.run("--requirement=CAL-01").results["command"]
    assert command.startswith("PYTEST_ADDOPTS=")  # in quotes, it would be the name of a program
    assert shlex.split(command)[:2] == [f"PYTEST_ADDOPTS={recorded}", "pytest"]
