"""Nothing short of a passed measurement makes a requirement, or its milestone, read *met*."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socketserver
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import junitparser
import pytest

from resnet8_eval import environment
from resnet8_eval.pytest_plugin import requirement_of
from resnet8_eval.report.folder import ReportFolder
from resnet8_eval.report.unstarted import EXIT_STATUS
from resnet8_eval.requirements import ALWAYS, BY_ID, of_milestone
from tests.small_suite import CONFTEST, Outcome, Suite, good, passing

FIXTURES = """
@pytest.fixture
def broken_setup():
    raise RuntimeError("planted in setup")

@pytest.fixture
def broken_teardown():
    yield
    raise RuntimeError("planted in teardown")

@pytest.fixture
def ctrl_c_in_teardown():
    yield
    raise KeyboardInterrupt

@pytest.fixture(scope="session")
def ctrl_c_at_the_end():
    yield
    raise KeyboardInterrupt

@pytest.fixture
def exit_in_teardown():
    yield
    pytest.exit("planted")

@pytest.fixture
def exit_with_0_in_teardown():
    yield
    pytest.exit("planted", returncode=0)

@pytest.fixture
def crash_in_teardown():
    yield
    os._exit(3)

@pytest.fixture(scope="session")
def full_disk():
    raise OSError(28, "No space left on device")
"""


def planted(requirement_id: str, fault: str) -> str:
    """The test of a requirement with one fault: decorators or a fixture, "|", statements."""
    before, _, body = fault.partition("|")
    body = body.replace("GOOD", str(good(BY_ID[requirement_id])))
    if before.startswith("fixture "):
        source = passing(requirement_id, body=body)
        return source.replace("(requirement, run)", f"(requirement, run, {before[8:]})")
    return passing(requirement_id, before, body)


# Decorators and statements planted in a test, and what the reason must say. GOOD is a number that
# would meet the requirement.
FAULTS = {
    "skipped": ("@pytest.mark.skip(reason='planted')|", "planted"),
    "skipped while it runs": ("|pytest.skip('planted')", "planted"),
    "expected to fail, and fails": ("@pytest.mark.xfail(reason='planted')|assert False", ""),
    "expected to fail, and passes": ("@pytest.mark.xfail(strict=False)|", "expected failure"),
    "strictly expected to fail": ("@pytest.mark.xfail(strict=True)|", "XPASS"),
    "broken in setup": ("fixture broken_setup|", "planted in setup"),
    "broken in teardown": ("fixture broken_teardown|", "planted in teardown"),
    "measures nothing": ("|return", "without measuring"),
    "fails": ("|raise RuntimeError('planted')", "planted"),
    "measures less than required": ("|requirement.judge(-1); return", "measured −1"),
    "measures what is no number": ("|requirement.judge(float('nan')); return", "measured nan"),
    "measures infinity": ("|requirement.judge(float('inf')); return", "measured inf"),
    "has evidence against it": (
        "|requirement.judge(GOOD, [equal('planted', 1, 2)]); return",
        "planted",
    ),
    "has no evidence": ("|requirement.judge_checks([])", "nothing was checked"),
    "warns": ("|__import__('warnings').warn('planted')", "planted"),
    "judges again until it is good": ("|requirement.judge(-1)", "more than once"),
    "breaks after a good number": (
        "|requirement.judge(GOOD)\n    raise RuntimeError('planted')",
        "planted",
    ),
    "has a subtest that fails": (
        "fixture subtests|with subtests.test(): assert False, 'planted'",
        "planted",
    ),
}

BY_NUMBER = {"measures less than required", "has evidence against it"}
"""Those that leave a number, and nothing but the number keeps them from *met*."""
FAILS = FAULTS["fails"][0]

FAILING = [name for name in FAULTS if not name.startswith(("skipped", "expected to fail"))]
"""Those that make pytest itself fail; of the others, each is planted alone."""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> Suite:
    return Suite(pytester)


@pytest.fixture
def before(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a complete run left in the folder of reports; it is run once, and copied."""
    kept = tmp_path_factory.getbasetemp() / "complete"
    if not kept.exists():
        assert suite.run(html=True).results["complete"]
        shutil.copytree(suite.reports, kept)
    elif not suite.reports.exists():
        shutil.copytree(kept, suite.reports)
    return files(suite.reports)


def told(suite: Suite, faults: dict[str, str], *words: str) -> Outcome:
    """Plant a fault for each of these requirements, run, and see each of them told."""
    suite.write({name: planted(name, FAULTS[fault][0]) for name, fault in faults.items()}, FIXTURES)
    done = suite.run(*words)
    assert done.status == pytest.ExitCode.TESTS_FAILED
    expected = {name: "not met" if name in faults else "met" for name in ALWAYS}
    assert done.statuses(ALWAYS) == expected
    for name, fault in faults.items():
        assert FAULTS[fault][1] in done.reason(name)
    touched = {BY_ID[name].milestone for name in faults}
    assert done.verdicts == {m: "not met" if m in touched else "met" for m in done.verdicts}
    assert done.results["complete"] == all(fault in BY_NUMBER for fault in faults.values())
    return done


@pytest.mark.parametrize("fault", [name for name in FAULTS if name not in FAILING])
def test_what_pytest_lets_pass_fails_the_run_and_its_milestone(suite: Suite, fault: str) -> None:
    assert "v1_1 not met: 4 of 5" in told(suite, {"PT-03": fault}).output


@pytest.mark.parametrize("start", range(0, len(FAILING), 3))
def test_what_fails_keeps_its_milestone_from_met(suite: Suite, start: int) -> None:
    ids = ("CONV-01", "PT-03", "CAL-02")  # one of each milestone
    told(suite, dict(zip(ids, FAILING[start : start + 3], strict=False)))


def test_with_workers_it_is_the_same(suite: Suite) -> None:
    told(suite, dict(zip(list(ALWAYS)[2:], FAULTS, strict=False)), "-n2")
    told(suite, {"ANL-01": "skipped"}, "-n1")


# --- tests that were not run ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("-k", "not conv_02"),
        ("--deselect", "acceptance/test_small.py::test_conv_02_small"),
        ("-n1", "-k", "not conv_02"),
    ],
    ids=["by expression", "by name", "with a worker"],
)
def test_a_deselected_requirement_is_not_met(suite: Suite, words: tuple[str, ...]) -> None:
    done = suite.run(*words)
    assert done.status == pytest.ExitCode.OK  # what was selected is met
    assert done.results["milestones"]["v1_0"]["verdict"] == "not met"
    assert "not run: " in done.results["milestones"]["v1_0"]["reason"]
    assert done.statuses(["CONV-02"]) == {"CONV-02": "not evaluated"}
    assert not done.results["complete"]
    assert "asked for 24 of 25 requirements" in done.output


def test_the_commit_is_that_of_the_code_when_the_run_began(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves = iter([("a" * 40, False), ("b" * 40, True)])
    monkeypatch.setattr(environment, "current_checkout", lambda: next(moves))
    found = suite.run("--requirement", "CONV-01").results["environment"]
    assert (found["git_commit"], found["dirty"]) == ("a" * 40, False)


def test_a_requirement_without_a_test_is_not_met(suite: Suite) -> None:
    suite.write({"ANL-02": ""})
    done = suite.run()
    assert done.verdicts == {
        "v1_0": "met",
        "v1_1": "met",
        "v1_2": "not met",
        "v1_3": "met",
    }
    assert "ANL-02" in done.results["milestones"]["v1_2"]["reason"]
    assert not done.results["complete"]


BAD_NUMBER = FAULTS["measures less than required"][0]


@pytest.mark.parametrize("fault", [FAILS, BAD_NUMBER], ids=["an error", "a number"])
@pytest.mark.parametrize("words", [("-x",), ("--maxfail=1",)], ids=" ".join)
def test_what_came_after_the_first_failure_is_not_met(
    suite: Suite, words: tuple[str, ...], fault: str
) -> None:
    suite.write({"CONV-01": planted("CONV-01", fault)})
    done = suite.run(*words)
    assert done.statuses(["CONV-01", "CONV-02"]) == {
        "CONV-01": "not met",
        "CONV-02": "not evaluated",
    }
    assert done.status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    assert done.verdicts["v1_0"] == "not met"
    assert "met" not in done.verdicts.values()
    assert not done.results["complete"]


@pytest.mark.parametrize(
    ("fault", "words"),
    [(FAILS, ()), (BAD_NUMBER, ()), (BAD_NUMBER, ("-n1",))],
    ids=["an error", "a number", "a number with a worker"],
)
def test_only_the_failed_ones_run_again_is_no_complete_run(
    suite: Suite, fault: str, words: tuple[str, ...]
) -> None:
    suite.write({"CONV-01": planted("CONV-01", fault)})
    suite.run(*words)
    suite.write()
    done = suite.run("--lf")
    assert done.statuses(["CONV-01", "CONV-02"]) == {
        "CONV-01": "met",
        "CONV-02": "not evaluated",
    }
    assert done.verdicts == {
        "v1_0": "not met",
        "v1_1": "not evaluated",
        "v1_2": "not evaluated",
        "v1_3": "not evaluated",
    }


LEFT_OUT = ["terminal", "runner", "skipping", "cacheprovider", "junitxml"]
"""Plugins. With workers, the last two write in the controller alone."""


@pytest.mark.parametrize("words", [*LEFT_OUT, *(f"{plugin} -n1" for plugin in LEFT_OUT[:3])])
def test_no_plugin_that_is_left_out_makes_a_milestone_met(suite: Suite, words: str) -> None:
    plugin, *workers = words.split()
    suite.write(
        {"PT-03": planted("PT-03", FAILS), "CAL-01": planted("CAL-01", "@pytest.mark.skip|")}
    )
    # A run in this process knows the marker of a plugin that it does not load.
    done = suite.run("-p", f"no:{plugin}", *workers, apart=plugin == "skipping")
    assert done.status != pytest.ExitCode.OK
    assert not done.results or done.verdicts["v1_1"] == done.verdicts["v1_2"] == "not met"


def test_a_run_without_the_plugin_of_warnings_is_judged(suite: Suite) -> None:
    """Then no warning can be made an error, and its marker is none that pytest knows."""
    assert suite.run("-m", "v1_0", "-p", "no:warnings", apart=True).verdicts["v1_0"] == "met"


def test_nothing_selected_is_no_success(suite: Suite) -> None:
    assert suite.run("-k", "nothing").status == pytest.ExitCode.NO_TESTS_COLLECTED


@pytest.mark.parametrize("word", ["--setup-plan", "--setup-only"])
@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "with a worker"])
def test_a_run_that_calls_no_test_meets_nothing(
    suite: Suite, word: str, workers: tuple[str, ...]
) -> None:
    done = suite.run(word, "-m", "v1_0", *workers)
    assert done.status == pytest.ExitCode.NO_TESTS_COLLECTED
    assert "No test was called; reports is as it was." in done.output
    assert "v1_0 met" not in done.output
    assert not suite.reports.exists()


def test_a_fixture_that_fails_where_no_test_is_called_is_told(
    suite: Suite, before: dict[str, bytes]
) -> None:
    suite.write({"PT-03": planted("PT-03", "fixture broken_setup|")}, FIXTURES)
    done = suite.run("--setup-only")
    assert done.status == pytest.ExitCode.TESTS_FAILED
    assert files(suite.reports) == before


# --- runs that did not end by themselves ----------------------------------------------------------

# Planted in a requirement test; each breaks the run off after its number was good.
BREAKS = {
    "Ctrl-C in teardown": "fixture ctrl_c_in_teardown|",
    "Ctrl-C in the teardown of the session": "fixture ctrl_c_at_the_end|",
    "exit in teardown": "fixture exit_in_teardown|",
    "exit with 0 in teardown": "fixture exit_with_0_in_teardown|",
    "Ctrl-C after a subtest passed": (
        "fixture subtests|requirement.judge(GOOD)\n"
        "    with subtests.test(): pass\n"
        "    raise KeyboardInterrupt"
    ),
}


@pytest.mark.parametrize("words", [(), ("-n1",)], ids=["alone", "with a worker"])
@pytest.mark.parametrize("fault", BREAKS)
def test_a_test_that_breaks_the_run_off_is_not_met(
    suite: Suite, fault: str, words: tuple[str, ...]
) -> None:
    last = of_milestone("v1_0")[-1].id
    suite.write({last: planted(last, BREAKS[fault])}, FIXTURES)
    done = suite.run("-m", "v1_0", *words, ends_by_ctrl_c=True)
    assert done.status != pytest.ExitCode.OK
    assert "met" not in {done.verdicts["v1_0"], *done.statuses([last]).values()}
    assert not done.results["complete"]


def test_a_crash_after_the_number_was_good_meets_nothing(suite: Suite) -> None:
    suite.write({"ANL-02": planted("ANL-02", "fixture crash_in_teardown|")}, FIXTURES)
    done = suite.run("-n1")
    assert done.status == pytest.ExitCode.TESTS_FAILED
    assert done.verdicts == {
        "v1_0": "met",
        "v1_1": "met",
        "v1_2": "not met",
        "v1_3": "met",
    }
    assert "crashed" in done.reason("ANL-02")


def test_a_worker_that_crashes_takes_its_requirement_with_it(suite: Suite) -> None:
    suite.write({"PT-03": passing("PT-03", body="os._exit(3)")})
    done = suite.run("-n1")
    assert done.status != pytest.ExitCode.OK
    assert done.verdicts["v1_1"] == "not met"
    assert "crashed" in done.reason("PT-03")


def test_ctrl_c_meets_nothing_that_had_not_ended(suite: Suite) -> None:
    suite.write({"PT-03": passing("PT-03", body="raise KeyboardInterrupt")})
    done = suite.run(ends_by_ctrl_c=True)
    assert done.status == pytest.ExitCode.INTERRUPTED
    assert done.statuses(["PT-03", "PT-04"]) == dict.fromkeys(["PT-03", "PT-04"], "not evaluated")
    assert done.verdicts["v1_1"] == done.verdicts["v1_2"] == "not evaluated"
    where = "SIGINT (Ctrl-C) at acceptance/test_small.py::test_pt_03_small"
    assert done.results["stopped"] == where
    assert f"v1_1 not evaluated: ended by {where}; 2 of 5 were met before" in done.output
    assert "Diagnosis: The run was ended by SIGINT (Ctrl-C)" in done.output
    assert not done.results["complete"]


@pytest.fixture
def heeding_ctrl_c() -> Iterator[None]:
    """A shell has what it puts into the background ignore it, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeding_ctrl_c")
def test_ctrl_c_with_a_worker_is_the_same(suite: Suite) -> None:
    interrupt = "os.kill(os.getppid(), signal.SIGINT); time.sleep(1)"
    suite.write({"PT-03": passing("PT-03", body=interrupt)})
    done = suite.run("-n1", apart=True)
    assert done.status == pytest.ExitCode.INTERRUPTED
    assert "met" not in (done.verdicts["v1_1"], done.verdicts["v1_2"])
    assert not done.results["complete"]


@pytest.mark.parametrize("words", [(), ("-n1",)], ids=["alone", "with a worker"])
def test_exit_from_within_a_test_meets_nothing(suite: Suite, words: tuple[str, ...]) -> None:
    suite.write({"PT-03": passing("PT-03", body="pytest.exit('planted', returncode=0)")})
    done = suite.run(*words)
    assert done.status != pytest.ExitCode.OK
    assert done.verdicts["v1_1"] != "met"


# --- tests that are not what they say ------------------------------------------------------------


@pytest.mark.parametrize("words", [(), ("-n1",)], ids=["alone", "with a worker"])
def test_two_tests_of_one_requirement_are_refused(suite: Suite, words: tuple[str, ...]) -> None:
    suite.write(extra=passing("CAL-01").replace("_small", "_again"))
    done = suite.run(*words)
    assert done.status == pytest.ExitCode.USAGE_ERROR
    assert "CAL-01 has two tests" in done.output
    assert done.results == {}


def test_a_parametrised_requirement_test_is_two_tests(suite: Suite) -> None:
    before = "@pytest.mark.parametrize('n', [1, 2])"
    source = passing("CAL-01", before).replace("(requirement, run)", "(requirement, run, n)")
    suite.write({"CAL-01": source})
    done = suite.run()
    assert done.status == pytest.ExitCode.USAGE_ERROR
    assert "CAL-01 has two tests" in done.output


def test_a_marker_that_names_no_requirement_is_refused(suite: Suite) -> None:
    suite.write(extra="@pytest.mark.requirement('CAL-99')\ndef test_more(): pass\n")
    done = suite.run()
    assert done.status == pytest.ExitCode.USAGE_ERROR
    assert "names no requirement" in done.output


@pytest.mark.parametrize(
    "arguments", [("cal-01",), (), ("CAL-01", "CAL-02"), (1,), (None,)], ids=str
)
def test_a_marker_that_names_none_or_two_is_refused(arguments: tuple[Any, ...]) -> None:
    marker = pytest.mark.requirement(*arguments) if arguments else pytest.mark.requirement
    item = SimpleNamespace(nodeid="test_it", get_closest_marker=lambda _: marker.mark)
    with pytest.raises(pytest.UsageError, match="names no requirement"):
        requirement_of(cast("pytest.Item", item))


def test_a_test_that_only_has_the_name_of_a_requirement_is_refused(suite: Suite) -> None:
    suite.write(extra="def test_cal_01_more(): pass")
    done = suite.run()
    assert done.status == pytest.ExitCode.USAGE_ERROR
    assert "its name says that it is the test of CAL-01, but it has no" in done.output
    assert done.results == {}


@pytest.mark.parametrize("name", ["test_cal_01", "test_calibration", "test_cal_2", "test_CAL_02"])
def test_a_name_that_does_not_say_its_requirement_is_refused(suite: Suite, name: str) -> None:
    skipped = passing("CAL-02", "@pytest.mark.skip").replace("test_cal_02", name)
    suite.write({"CAL-01": "", "CAL-02": skipped})
    done = suite.run("-m", "v1_2")
    assert done.status == pytest.ExitCode.USAGE_ERROR
    assert f"{name}_small: the name of CAL-02's test must begin with test_cal_02_" in done.output
    assert done.results == {}


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "with a worker"])
@pytest.mark.parametrize(
    ("outcome", "body", "reason"),
    [
        ("passed", "requirement.judge(12); return", "measured 12.00 %"),
        ("rerun", "", "ended as rerun"),
    ],
    ids=["a bad number passed", "a good one at the second try"],
)
def test_what_another_plugin_makes_of_a_report_meets_nothing(
    suite: Suite,
    pytester: pytest.Pytester,
    outcome: str,
    body: str,
    reason: str,
    workers: tuple[str, ...],
) -> None:
    conftest = pytester.path / "conftest.py"
    conftest.write_text(conftest.read_text() + REPORTED_AS.format(outcome=outcome))
    suite.write({"EVAL-03": passing("EVAL-03", body=body)})
    done = suite.run(*workers)
    assert done.status == pytest.ExitCode.TESTS_FAILED
    assert done.verdicts == {
        "v1_0": "not met",
        "v1_1": "met",
        "v1_2": "met",
        "v1_3": "met",
    }
    assert reason in done.reason("EVAL-03")


REPORTED_AS = """
import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if "eval_03" in item.name and call.when == "call":
        report.outcome, report.longrepr = "{outcome}", None
    return report
"""


@pytest.mark.parametrize("words", [(), ("-n1",)], ids=["alone", "with a worker"])
def test_a_test_that_is_run_again_meets_nothing(
    suite: Suite, pytester: pytest.Pytester, words: tuple[str, ...]
) -> None:
    """Its second number, which may be another, must not pass for the first."""
    conftest = pytester.path / "conftest.py"
    conftest.write_text(conftest.read_text() + AGAIN)
    suite.write({"EVAL-03": passing("EVAL-03", body="requirement.judge(86); return")})
    done = suite.run(*words)
    assert done.status == pytest.ExitCode.TESTS_FAILED
    assert done.verdicts["v1_0"] == "not met"
    assert "run more than once" in done.reason("EVAL-03")
    assert not done.results["complete"]


AGAIN = """
import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    items += [item for item in items if "eval_03" in item.name]
"""


@pytest.mark.parametrize("words", [(), ("-n1",), ("--pyargs",)], ids=" ".join)
def test_tests_of_one_checkout_do_not_judge_the_package_of_another(
    suite: Suite, pytester: pytest.Pytester, words: tuple[str, ...]
) -> None:
    """Planted: a clone's ``pytest`` whose environment has another checkout installed."""
    other = Path(requirement_of.__code__.co_filename).parent
    here = pytester.path / "resnet8_eval"  # a folder of that name, and no package
    assert suite.run(*words).status == pytest.ExitCode.OK
    here.rmdir()
    here.symlink_to(other)
    assert suite.run(*words).status == pytest.ExitCode.OK
    here.unlink()
    here.mkdir()
    (here / "__init__.py").touch()
    conftest = pytester.path / "conftest.py"
    conftest.write_text(f"import resnet8_eval.new_in_this_checkout\n{conftest.read_text()}")
    before = files(suite.reports)
    done = suite.run(*words)
    assert done.status == pytest.ExitCode.USAGE_ERROR
    (line,) = [line for line in done.output.splitlines() if line]
    assert line.startswith("ERROR: The package that was imported is not the one beside these tests")
    for said in (f"Expected {here}", f"imported: {other}", f"python -m pytest in {here.parent},"):
        assert said in line
    assert files(suite.reports) == before


# --- the stand-in --------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [(), ("-n1",)], ids=["alone", "with a worker"])
def test_the_stand_in_never_gives_met(suite: Suite, words: tuple[str, ...]) -> None:
    done = suite.run("--assets=stand-in", *words)
    assert done.status == pytest.ExitCode.OK
    assert set(done.verdicts.values()) == {"not evaluated"}
    assert set(done.statuses().values()) == {"not evaluated"}
    assert {found["met"] for found in done.results["milestones"].values()} == {0}
    assert "v1_2 not evaluated: stand-in; 12 of 12 tests passed on it" in done.output
    assert "STAND-IN RUN" in done.output
    assert " met:" not in done.output
    assert re.search(r"CAL-01 +passed +calibration images: measured 1000 images", done.output)
    assert not re.search(r"[A-Z]+-\d\d +met ", done.output)


def test_a_failure_on_the_stand_in_fails_the_run(suite: Suite) -> None:
    suite.write({"PT-03": planted("PT-03", FAILS)})
    done = suite.run("--assets=stand-in")
    assert done.status == pytest.ExitCode.TESTS_FAILED
    assert "stand-in; 4 of 5 tests passed on it" in done.output


def test_a_run_on_the_stand_in_that_stops_at_its_first_failure_leaves_its_report(
    suite: Suite,
) -> None:
    suite.write({"CONV-02": planted("CONV-02", FAILS)})
    done = suite.run("--assets=stand-in", "-x")
    assert done.status == pytest.ExitCode.TESTS_FAILED
    assert set(done.verdicts.values()) == {"not evaluated"}
    found = {entry["id"]: entry["outcome_on_standin"] for entry in done.results["requirements"]}
    assert (found["CONV-01"], found["CONV-02"], found["CONV-03"]) == ("met", "not met", None)
    assert not done.results["complete"]


DIVIDED = """
import os
from dataclasses import replace

located = locate
real_ones = {real_ones}


def locate(kind, **options):
    here = os.environ.get("PYTEST_XDIST_WORKER", "controller")
    return replace(located(kind, **options), kind="real" if here in real_ones else "stand-in")
"""


@pytest.mark.parametrize(
    ("real_ones", "workers"),
    [(["gw0", "controller"], "-n2"), (["controller"], "-n1")],
    ids=["one worker", "the controller"],
)
def test_tests_that_ran_on_other_assets_than_the_report_says_meet_nothing(
    suite: Suite, pytester: pytest.Pytester, real_ones: list[str], workers: str
) -> None:
    """With ``--assets auto``, a download that fails in one process need not fail in another."""
    conftest = pytester.path / "conftest.py"
    conftest.write_text(conftest.read_text() + DIVIDED.format(real_ones=real_ones))
    done = suite.run(workers)
    assert "met" not in done.verdicts.values()


# --- what is left of earlier runs ----------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A run that is not complete, whatever its tests say, and the exit status it has to have."""

    status: int
    words: tuple[str, ...] = ()
    plants: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    apart: bool = False


NO_PT = {name: "" for name in ALWAYS if name.startswith("PT-")}
UNREADABLE = {"acceptance/test_more.py": "raise RuntimeError('planted')"}
INTERNAL_ERROR = "\ndef pytest_runtest_logstart():\n    raise RuntimeError('planted')\n"
END_ITSELF = (
    "|worker = 'PYTEST_XDIST_WORKER' in os.environ\n"
    "    os.kill(os.getppid() if worker else os.getpid(), {})\n"
    "    time.sleep(1)"
)
INCOMPLETE = {
    "one milestone": Run(0, ("-m", "v1_0")),
    "some by expression": Run(0, ("-k", "not pt_")),
    "one by its ID": Run(0, ("--requirement=CAL-01",)),
    "nothing": Run(5, ("-k", "nothing")),
    "no expression": Run(4, ("-m", "v1_2 and")),
    "no such file": Run(4, ("acceptance/test_nope.py",)),
    "all skipped": Run(1, plants=dict.fromkeys(ALWAYS, "@pytest.mark.skip|")),
    "all on a full disk": Run(1, plants=dict.fromkeys(ALWAYS, "fixture full_disk|")),
    "only set up": Run(5, ("--setup-only",)),
    "only planned": Run(5, ("--setup-plan",)),
    "one breaks": Run(1, plants={"PT-03": "|raise RuntimeError('planted')"}),
    "stopped at the first": Run(1, ("-x",), {"PT-03": "|requirement.judge(12); return"}),
    "no tests of a milestone": Run(0, plants=NO_PT),
    "a file that cannot be read": Run(2, plants=NO_PT, files=UNREADABLE),
    "the same, and going on": Run(
        1, ("--continue-on-collection-errors",), plants=NO_PT, files=UNREADABLE
    ),
    "without assets": Run(6, files={"no-assets": ""}),
    "refused": Run(4, plants={"PT-03": "@pytest.mark.parametrize('requirement', [1, 2])|"}),
    "interrupted": Run(2, plants={"PT-03": "|raise KeyboardInterrupt"}),
    "told to end": Run(2, plants={"PT-03": END_ITSELF.format(15)}, apart=True),
    "killed": Run(-9, plants={"PT-03": END_ITSELF.format(9)}, apart=True),
    "pytest fails": Run(3, files={"conftest.py": CONFTEST + INTERNAL_ERROR}),
}


WITH_WORKERS = {
    **dict.fromkeys(("one breaks", "without assets", "interrupted", "told to end", "killed")),
    "pytest fails": None,
    "stopped at the first": 2,
    "a file that cannot be read": 1,
}
"""Those in which workers have a part, and the exit status where it is another with them."""


@pytest.mark.parametrize(
    ("way", "workers"),
    [*((way, ()) for way in INCOMPLETE), *((way, ("-n1",)) for way in WITH_WORKERS)],
    ids=lambda given: given if isinstance(given, str) else "with a worker" if given else "alone",
)
def test_a_run_that_is_not_complete_says_so_and_keeps_the_last_that_was(
    suite: Suite,
    pytester: pytest.Pytester,
    before: dict[str, bytes],
    way: str,
    workers: tuple[str, ...],
) -> None:
    run = INCOMPLETE[way]
    suite.write(
        {name: fault and planted(name, fault) for name, fault in run.plants.items()}, FIXTURES
    )
    for name, text in run.files.items():
        (pytester.path / name).write_text(text)
    done = suite.run(*run.words, *workers, apart=run.apart, ends_by_ctrl_c=way == "interrupted")
    assert done.status == ((workers and WITH_WORKERS[way]) or run.status)
    if done.status in {4, 5}:  # nothing was run
        assert files(suite.reports) == before
        assert not (suite.reports / "last-complete").exists()
        said = "No test was called" if way in {"only set up", "only planned"} else "Nothing was run"
        assert f"{said}; reports is as it was." in done.output
        return
    assert files(suite.reports / "last-complete" / "real") == before
    own_page = {"report.html"} if way == "without assets" else set()
    assert set(files(suite.reports)) <= set(before) - {"report.html"} | own_page
    if done.results:
        assert not done.results["complete"]
    if done.status in {0, 1, 2, 6}:  # otherwise pytest has no last words
        assert "on the real assets is kept in reports/last-complete/real" in done.output


def files(folder: Path) -> dict[str, bytes]:
    """The files directly in a folder, but for the history, which outlives runs."""
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    found.pop("history.json", None)
    return found


def test_what_is_kept_outlives_any_number_of_runs(suite: Suite) -> None:
    complete = suite.run().results
    kept = suite.reports / "last-complete"
    for words in (("-k", "conv_01"), ("-m", "v1_0"), ("-m", "v1_1"), ("--assets=stand-in",)):
        done = suite.run(*words)
        assert done.status == pytest.ExitCode.OK
        assert json.loads((kept / "real" / "results.json").read_text()) == complete
    assert done.results["complete"]
    suite.run("-k", "conv_01")
    assert {path.name for path in kept.iterdir()} == {"real", "stand-in"}
    assert suite.run().results["complete"]
    assert [path.name for path in kept.iterdir()] == ["stand-in"]
    suite.run("--assets=stand-in")
    assert [path.name for path in kept.iterdir()] == ["real"]


def test_it_is_told_what_was_asked_for(suite: Suite) -> None:
    assert suite.run().results["selected"] == list(ALWAYS)
    asked = suite.run("-m", "v1_1", "-n1").results["selected"]
    assert asked == [entry.id for entry in of_milestone("v1_1")]


@pytest.mark.parametrize(
    "words", [("-p", "no:html", "-p", "no:junitxml"), ("--rootdir=.",)], ids=["no plugins", "plain"]
)
@pytest.mark.usefixtures("before")
def test_no_report_of_an_earlier_run_stands_beside_other_results(
    suite: Suite, pytester: pytest.Pytester, words: tuple[str, ...]
) -> None:
    suite.write({"EVAL-03": planted("EVAL-03", FAILS)})
    (pytester.path / "acceptance").rename(pytester.path / "small")
    pytester.runpytest_inprocess(*words, "--reports-dir=reports", "--cache-dir=cache")
    written = {"results.json", "comparison.csv", "comparison.md", "summary.md"}
    assert set(files(suite.reports)) == written
    assert "report.html" in files(suite.reports / "last-complete" / "real")


SHOWN = [
    *("--collect-only", "--setup-plan", "--setup-only"),
    *("--fixtures", "--fixtures-per-test", "--markers", "--cache-show"),
]


@pytest.mark.parametrize("word", [*SHOWN, "--help", "--no-such-option", "--requirement=CAL-99"])
def test_what_runs_no_test_leaves_the_reports_alone(
    suite: Suite, before: dict[str, bytes], word: str
) -> None:
    let_go = ReportFolder(suite.reports).hold()
    assert "Another run" not in suite.run(word).output  # nor need it wait for one
    let_go()
    assert files(suite.reports) == before
    assert not (suite.reports / "last-complete").exists()


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "with a worker"])
@pytest.mark.parametrize("named", [True, False], ids=["named", "found"])
def test_a_second_run_in_one_folder_is_refused_and_touches_nothing(
    suite: Suite,
    pytester: pytest.Pytester,
    before: dict[str, bytes],
    named: bool,
    workers: tuple[str, ...],
) -> None:
    """Planted: what ends last stays, be it the older run, or a part in the place of a whole."""
    suite.write({"CONV-01": passing("CONV-01", body="open('ran', 'w').close()")})
    if not named:
        (pytester.path / "acceptance").rename(pytester.path / "small")
    options = ("--reports-dir=reports", "--cache-dir=cache", *workers)
    let_go = ReportFolder(suite.reports).hold()
    done = pytester.runpytest_inprocess(*options, *(["acceptance"] if named else ["-pno:html"]))
    refusal = "ERROR: Another run is at work in reports, and its reports must be of one run alone."
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert done.errlines[0].startswith(refusal)
    assert "Wait until it has ended, or name another folder with --reports-dir=" in done.errlines[0]
    assert files(suite.reports) == before
    assert not (suite.reports / "last-complete").exists()
    assert not (pytester.path / "ran").exists()
    let_go()
    done = pytester.runpytest_inprocess(*options, "-pno:html")
    assert done.ret == pytest.ExitCode.OK


HOLDS = """|
    from resnet8_eval.report.folder import ReportFolder
    with pytest.raises(BlockingIOError): ReportFolder(run.settings.cache_dir / "../reports").hold()
"""


@pytest.mark.parametrize("words", [(), ("-n2",)], ids=["alone", "with workers"])
def test_a_run_keeps_others_out_of_its_folder_to_its_end(
    suite: Suite, words: tuple[str, ...]
) -> None:
    suite.write({name: planted(name, HOLDS) for name in ("CONV-01", "ANL-02")})
    assert suite.run(*words).status == pytest.ExitCode.OK
    ReportFolder(suite.reports).hold()()


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "with a worker"])
@pytest.mark.parametrize(
    ("options", "made"),
    [
        ("--reports-dir=taken", "taken"),
        ("--reports-dir=taken/reports", "taken"),
        ("--reports-dir=/proc/reports", ""),
        ("--reports-dir=/dev/null", ""),
        ("--reports-dir=$HOME/reports", ""),
        ("--reports-dir=reports", "reports/results.json/"),
        ("--reports-dir=reports", "reports/report.html/"),
        ("--reports-dir=reports", "reports/junit.xml/"),
    ],
)
def test_a_folder_that_takes_no_reports_is_told_before_anything_runs(
    suite: Suite, pytester: pytest.Pytester, options: str, made: str, workers: tuple[str, ...]
) -> None:
    if made.endswith("/"):
        (pytester.path / made).mkdir(parents=True)
    elif made:
        (pytester.path / made).touch()
    suite.write({"CONV-01": passing("CONV-01", body="open('ran', 'w').close()")})
    done = suite.run(options, *workers, html=True)
    assert done.status == pytest.ExitCode.USAGE_ERROR
    assert re.search(r"^ERROR: The report files cannot be written to ", done.output, re.MULTILINE)
    assert "Traceback" not in done.output
    assert not (pytester.path / "ran").exists()


@pytest.mark.parametrize("words", [("-k", "nothing"), ("-p", "no:python")], ids=" ".join)
def test_a_call_in_which_nothing_runs_leaves_an_empty_folder_empty(
    suite: Suite, words: tuple[str, ...]
) -> None:
    suite.reports.mkdir()
    done = suite.run("-m", "v1_2", *words, html=True)
    assert done.status == pytest.ExitCode.NO_TESTS_COLLECTED
    assert "Nothing was run; reports is as it was." in done.output
    assert "enerated" not in done.output  # as pytest and pytest-html announce their files
    assert list(suite.reports.iterdir()) == []


def test_a_plugin_whose_log_is_no_path_is_left_alone(
    suite: Suite, pytester: pytest.Pytester
) -> None:
    pytester.makepyfile(loud="import sys; logfile = sys.stderr")
    pytester.syspathinsert()
    suite.reports.mkdir()
    done = suite.run("-m", "v1_2", "-k", "nothing", "-p", "loud", html=True)
    assert done.status == pytest.ExitCode.NO_TESTS_COLLECTED
    assert "Nothing was run; reports is as it was." in done.output


def test_results_that_cannot_be_written_are_no_success(suite: Suite) -> None:
    into = "|os.mkdir('reports/results.json')"
    suite.write({"ANL-02": planted("ANL-02", into)})
    done = suite.run()
    assert done.status == pytest.ExitCode.TESTS_FAILED
    assert "Not all results could be written" in done.output
    assert "Traceback" not in done.output


def test_missing_assets_end_the_run_before_any_test(
    suite: Suite, pytester: pytest.Pytester
) -> None:
    (pytester.path / "no-assets").touch()
    suite.write({"CONV-01": passing("CONV-01", body="open('ran', 'w').close()")})
    done = suite.run()
    assert done.status == EXIT_STATUS
    assert done.results == {}
    assert not (pytester.path / "ran").exists()
    lines = [line for line in done.output.splitlines() if line]
    assert len(lines) <= 25
    assert any("Missing: model." in line for line in lines[-10:])
    assert done.output.count("next:     fetch it") == 1
    for name in ("report.html", "summary.md", "junit.xml"):
        text = (suite.reports / name).read_text(encoding="utf-8")
        for said in ("Missing: model.", "nothing", "fetch it"):
            assert said in text
    assert "could not be run" in (suite.reports / "report.html").read_text(encoding="utf-8")
    (group,) = junitparser.JUnitXml.fromfile(str(suite.reports / "junit.xml"))
    assert (group.tests, group.errors, group.failures) == (1, 1, 0)


@pytest.mark.parametrize("words", [(), ("-n1",)], ids=["alone", "with a worker"])
@pytest.mark.parametrize(
    "options",
    [
        "--keras-model=/nofile.h5",
        "--keras-model=acceptance",
        "--assets-dir=/nodir",
        "--keras-model=own.h5 --preprocessing=/nofile.toml",
    ],
)
def test_a_file_or_a_folder_that_is_not_there_is_a_wrong_call(
    suite: Suite, options: str, words: tuple[str, ...]
) -> None:
    done = suite.run(*options.split(), *words)
    assert done.status == pytest.ExitCode.USAGE_ERROR
    (line,) = [line for line in done.output.splitlines() if line]
    assert line.startswith("ERROR: ")
    assert not suite.reports.exists()


class Proxy(socketserver.ThreadingTCPServer):
    """Counts what it is asked for. It refuses all, or never answers."""

    daemon_threads = True
    answers = True

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        super().__init__(("127.0.0.1", 0), Asked)


class Asked(socketserver.StreamRequestHandler):
    server: Proxy

    def handle(self) -> None:
        self.server.asked.append(self.rfile.readline())
        if self.server.answers:
            self.wfile.write(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")
        else:
            self.rfile.read()


SEARCHING = """
from resnet8_eval import download

download._CONNECT_SECONDS = 1
locate = honest
assets._checkouts = lambda: []
"""


@pytest.mark.parametrize(
    ("answers", "words"),
    [(True, ()), (True, ("-n1",)), (False, ())],
    ids=["refuses", "refuses, with workers", "never answers"],
)
def test_a_proxy_sees_one_attempt_for_each_file(
    suite: Suite,
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    answers: bool,
    words: tuple[str, ...],
) -> None:
    conftest = pytester.path / "conftest.py"
    conftest.write_text(conftest.read_text() + SEARCHING)
    monkeypatch.delenv("RESNET8_EVAL_ASSETS", raising=False)
    monkeypatch.delenv("RESNET8_EVAL_OFFLINE", raising=False)
    with Proxy() as proxy:
        proxy.answers = answers
        threading.Thread(target=proxy.serve_forever, args=(0.01,), daemon=True).start()
        for name in ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.server_address[1]}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        started = time.monotonic()
        done = suite.run(*words, apart=True)
        assert time.monotonic() - started < 45
        proxy.shutdown()
    assert done.status == EXIT_STATUS
    assert len(proxy.asked) == 2
    assert all(line.startswith(b"CONNECT ") for line in proxy.asked)
    assert done.output.count("Downloading data from") == 2
    assert len([line for line in done.output.splitlines() if line]) <= 25 + 2
