"""Glue between pytest and the suite: options, markers, fixtures, verdicts, report files.

Nothing is measured here. A requirement test asks the ``run`` fixture for records and hands a
number to the ``requirement`` fixture; what it hands over travels to the controller in the test
report's ``user_properties``, as built-in types, whether or not there are workers.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import sys
import time
from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any, Final

import pytest

from resnet8_eval import results
from resnet8_eval.assets import expanded
from resnet8_eval.checks import Check, failed
from resnet8_eval.errors import SuiteError
from resnet8_eval.record import RequirementResult, Results
from resnet8_eval.report import words
from resnet8_eval.report.folder import ReportFolder
from resnet8_eval.requirements import BY_ID, MIN_CALIBRATION_IMAGES, Requirement
from resnet8_eval.results import Outcome

_IN_TEST_NAME: Final = re.compile(r"::test_([a-z]+)_(\d\d)_")
_ONLY_SHOWING: Final = ("collectonly", "showfixtures", "show_fixtures_per_test", "cacheshow")
_RUN: Final = pytest.StashKey["AcceptanceRun"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the suite's options."""
    group = parser.getgroup("resnet8-eval", "ResNet8 acceptance")
    group.addoption(
        "--assets",
        choices=("real", "auto", "stand-in"),
        default="real",
        help="real: the pretrained model and CIFAR-10, or an error (default). auto: real if they "
        "can be had, else the stand-in. stand-in: the embedded one; no milestone is ever met on it",
    )
    group.addoption(
        "--assets-dir",
        type=Path,
        metavar="DIR",
        help="look for the assets here first (also: RESNET8_EVAL_ASSETS)",
    )
    group.addoption(
        "--keras-model",
        type=Path,
        metavar="FILE",
        help="judge this ResNet8-shaped Keras model (.h5 or .keras) instead of the pretrained one; "
        "its own float32 accuracy is the baseline",
    )
    group.addoption(
        "--requirement",
        action="append",
        metavar="ID",
        help="run only the test of this requirement, such as CAL-01; may be repeated",
    )
    group.addoption(
        "--calibration-count",
        type=int,
        default=MIN_CALIBRATION_IMAGES,
        metavar="N",
        help=f"calibration images, stratified (default {MIN_CALIBRATION_IMAGES})",
    )
    group.addoption(
        "--calibration-seed", type=int, default=0, metavar="N", help="their seed (default 0)"
    )
    group.addoption(
        "--fresh",
        action="store_const",
        const=math.inf,
        help="make everything anew, whatever the cache has",
    )
    group.addoption(
        "--layers",
        action="store_true",
        help="also measure each layer's noise and sensitivity, for the report",
    )
    group.addoption(
        "--cache-dir",
        type=expanded,
        metavar="DIR",
        help="where downloads and artefacts are kept (also: RESNET8_EVAL_CACHE)",
    )
    group.addoption(
        "--reports-dir",
        type=expanded,
        metavar="DIR",
        help="where report.html, results.json and the others go (default: reports/)",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Set the run up, and have an acceptance run leave its report files."""
    unknown = [name for name in config.getoption("--requirement") or () if name not in BY_ID]
    if unknown:
        raise pytest.UsageError(
            f"--requirement {unknown[0]}: there is no such requirement; "
            f"the register has {', '.join(BY_ID)}"
        )
    folders = [config.getoption(f"--{name}-dir") for name in ("assets", "cache", "reports")]
    if config.inipath is None and any(folders):
        raise pytest.UsageError(
            "pytest found no configuration. Run it in the checkout, and write options that name "
            "a folder with an equals sign, such as --reports-dir=FOLDER: pytest takes a folder "
            "that stands alone for the place of its configuration"
        )
    if config.option.fresh == math.inf:
        # Workers are given the moment at which their run began, and make nothing twice.
        config.option.fresh = time.time()
    run = AcceptanceRun(config)
    config.stash[_RUN] = run
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(run)
    if _is_acceptance_run(config) and not hasattr(config, "workerinput"):
        # Other plugins read these when they are configured, after this hook.
        option = config.option
        if config.pluginmanager.hasplugin("html") and not option.htmlpath:
            option.htmlpath = str(run.folder.path / "report.html")
            option.self_contained_html = True
        if config.pluginmanager.hasplugin("junitxml") and not option.xmlpath:
            option.xmlpath = str(run.folder.path / "junit.xml")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give requirement tests the markers of their milestones; keep only those asked for."""
    try:
        _mark(items)
    except pytest.UsageError as error:
        if not hasattr(config, "workeroutput"):
            raise
        # A worker's usage error would be shown as an internal one; the controller raises it.
        config.workeroutput["refused"] = str(error)
        items.clear()
    wanted = config.getoption("--requirement")
    if wanted:
        chosen = [item for item in items if (r := requirement_of(item)) and r.id in wanted]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """A requirement test passes by its number alone; the suite's errors need no trace."""
    try:
        result = yield
    except SuiteError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None
    requirement = requirement_of(pyfuncitem)
    if requirement is not None:
        lacking = _shortfall(requirement, pyfuncitem.user_properties)
        if lacking is not None:
            pytest.fail(f"{requirement.id} not met: {lacking}", pytrace=False)
    return result


def _mark(items: Iterable[pytest.Item]) -> None:
    """Mark each requirement test; refuse two of one requirement, and one of another name."""
    owners: dict[str, pytest.Item] = {}
    for item in items:
        requirement, named = requirement_of(item), _id_in(item.nodeid)
        if requirement is None and named is None:
            continue
        if requirement is None:
            raise pytest.UsageError(
                f"{item.nodeid}: its name says that it is the test of {named}, but it has no "
                f'@pytest.mark.requirement("{named}")'
            )
        if owners.setdefault(requirement.id, item) is not item:
            raise pytest.UsageError(
                f"{requirement.id} has two tests, {owners[requirement.id].nodeid} and "
                f"{item.nodeid}; a requirement is met by exactly one"
            )
        if named != requirement.id:
            raise pytest.UsageError(
                f"{item.nodeid}: the name of {requirement.id}'s test must begin with "
                f"test_{requirement.id.lower().replace('-', '_')}_; the report of a crashed worker "
                "carries nothing but the name"
            )
        item.add_marker(getattr(pytest.mark, requirement.milestone))
        item.user_properties.append(("requirement", requirement.id))
        item.user_properties.append(("milestone", requirement.milestone))


def requirement_of(item: pytest.Item) -> Requirement | None:
    """The requirement that a test carries.

    Raises
    ------
    pytest.UsageError
        If its marker names none of the register.
    """
    marker = item.get_closest_marker("requirement")
    if marker is None:
        return None
    if len(marker.args) != 1 or marker.args[0] not in BY_ID:
        raise pytest.UsageError(
            f"{item.nodeid}: @pytest.mark.requirement{marker.args} names no requirement of "
            "resnet8_eval/requirements.py"
        )
    return BY_ID[marker.args[0]]


class Judge:
    """Hands a measured number over to the verdict.

    Parameters
    ----------
    item
        The requirement test.
    requirement
        What it must fulfil.
    """

    def __init__(self, item: pytest.Item, requirement: Requirement) -> None:
        self._item = item
        self._requirement = requirement

    def judge(self, measured: float, checks: Iterable[Check] = ()) -> None:
        """Record the number and its evidence, and fail unless the requirement is met.

        Parameters
        ----------
        measured
            In the requirement's unit.
        checks
            Evidence; each must hold as well.
        """
        requirement, evidence = self._requirement, list(checks)
        properties: dict[str, Any] = {
            "measured": float(measured),
            "threshold": requirement.required,
            "margin": requirement.margin(float(measured)),
            "evidence": json.dumps([check.as_dict() for check in evidence]),
        }
        self._item.user_properties.extend(properties.items())
        broken = failed(evidence)
        if broken or not requirement.is_met_by(measured):
            pytest.fail(
                "\n  ".join(
                    [
                        f"{requirement.id} not met: {sentence(requirement, measured)}",
                        *map(str, broken),
                    ]
                ),
                pytrace=False,
            )

    def judge_checks(self, checks: Iterable[Check]) -> None:
        """Judge by the number of checks that fail; none at all is no evidence."""
        evidence = list(checks)
        if not evidence:
            pytest.fail(f"{self._requirement.id} not met: nothing was checked", pytrace=False)
        self.judge(len(failed(evidence)), evidence)


def sentence(requirement: Requirement, measured: float) -> str:
    """Measured, required and margin in one line."""
    entry = _entry(requirement, measured)
    return (
        f"{requirement.quantity}: measured {words.measured(entry)}, "
        f"required {words.required(entry)}, margin {words.margin(entry)}"
    )


def _entry(requirement: Requirement, measured: float) -> RequirementResult:
    """A measurement as the record holds it, for the report's words."""
    return results.requirement(requirement, Outcome("met", measured), standin=False)


@pytest.fixture
def requirement(request: pytest.FixtureRequest) -> Judge:
    """The judge of the requirement that this test carries."""
    found = requirement_of(request.node)
    if found is None:
        raise pytest.UsageError(f"{request.node.nodeid} carries no requirement marker")
    return Judge(request.node, found)


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Any:
    """The pipeline of this run: ``run.artifact(stage)`` and its ``record``.

    What the selected tests need is made at the first use, overlapping where it can.
    """
    state = request.config.stash[_RUN]
    try:
        pipeline = state.prepared(request.session.items)
    except SuiteError as error:
        raise pytest.fail.Exception(state.once(error), pytrace=False) from None
    kind = pipeline.settings.assets.kind
    request.node.user_properties.append(("assets", kind))
    return pipeline


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(
    report: pytest.CollectReport | pytest.TestReport, config: pytest.Config
) -> tuple[str, str, str] | None:
    """Give a requirement's measurement the place of its dot, or of PASSED."""
    line = _requirement_line(report)
    if line is None:
        return None
    verbose = config.get_verbosity() > 0
    return (report.outcome, "" if report.passed else "F", line if verbose else "")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the report files, and let nothing short of *met* exit with 0."""
    if hasattr(session.config, "workerinput"):
        return
    run = session.config.stash[_RUN]
    if not run.selected:
        return
    run.conclude(interrupted=exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED))
    if exitstatus == pytest.ExitCode.OK and not run.all_selected_met:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(tryfirst=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Close with the comparison table and one verdict line for each milestone."""
    run = config.stash[_RUN]
    for line in run.closing_lines(terminalreporter._tw.fullwidth):
        terminalreporter.write_line(line)


@pytest.hookimpl(optionalhook=True)
def pytest_html_report_title(report: Any) -> None:
    """Title of the HTML report."""
    report.title = "ResNet8: conversion and quantization"


@pytest.hookimpl(optionalhook=True)
def pytest_html_results_summary(prefix: list[str], session: pytest.Session) -> None:
    """Put our own content above pytest-html's table of tests."""
    results = session.config.stash[_RUN].results
    if results is not None:
        from resnet8_eval.report import html

        prefix.append(html.render(results))


@pytest.hookimpl(optionalhook=True)
def pytest_html_results_table_header(cells: list[str]) -> None:
    """Columns for requirement, measured and required."""
    numbers = (f'<th class="number">{name}</th>' for name in ("Measured", "Required"))
    cells[2:2] = ["<th>Requirement</th>", *numbers]


@pytest.hookimpl(optionalhook=True)
def pytest_html_results_table_row(report: pytest.TestReport, cells: list[str]) -> None:
    """Fill those columns."""
    found = dict(getattr(report, "user_properties", ()))  # a collection report has none
    name, shown = found.get("requirement", ""), ("", "")
    if "measured" in found and name in BY_ID:
        entry = _entry(BY_ID[name], float(found["measured"]))
        shown = (words.measured(entry), words.required(entry))
    cells[2:2] = [
        f"<td>{escape(name)}</td>",
        *(f'<td class="number">{escape(text)}</td>' for text in shown),
    ]


@dataclass
class _Seen:
    """What was reported of one requirement test."""

    nodeid: str
    phases: dict[str | None, str] = field(default_factory=dict)
    failure: str | None = None
    properties: list[tuple[str, Any]] = field(default_factory=list)

    def note(self, report: pytest.TestReport) -> None:
        """Note one report; that of a subtest, or of a crashed worker, ends no phase."""
        # A crashed worker's report has none, and what was measured before stays of interest.
        self.properties = list(report.user_properties) or self.properties
        expected_to_fail = hasattr(report, "wasxfail")
        if type(report) is pytest.TestReport:
            self.phases[report.when] = "xfail" if expected_to_fail else report.outcome
        if report.failed:
            self.failure = _last_line(report)
        elif report.skipped:
            self.failure = f"was skipped: {_last_line(report)}"
        elif expected_to_fail:
            self.failure = "was marked as an expected failure"
        elif not report.passed:
            self.failure = f"ended as {report.outcome}"

    def outcome(self, requirement: Requirement) -> Outcome:
        """What that makes of the requirement; all three phases must have passed to meet it."""
        numbers = _numbers(self.properties)
        lacking = _shortfall(requirement, self.properties)
        finished = {"setup", "call", "teardown"} <= self.phases.keys()
        reason = self.failure or (lacking if finished else "did not finish")
        by_number = "passed" if lacking is None else "failed"
        decided = {"setup": "passed", "call": by_number, "teardown": "passed"}
        # JSON has no word for what is not finite; the reason says what it was.
        measured = numbers[0] if len(numbers) == 1 and math.isfinite(numbers[0]) else None
        return Outcome(
            status="met" if reason is None else "not met",
            measured=measured,
            evidence=json.loads(dict(self.properties).get("evidence", "[]")),
            test=self.nodeid,
            reason=reason,
            decided=measured is not None and self.phases == decided,
        )


class AcceptanceRun:
    """One session: what was selected, what came of it, and where it is written.

    Parameters
    ----------
    config
        The session's configuration.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.folder = ReportFolder(config.getoption("--reports-dir") or config.rootpath / "reports")
        self.selected: set[str] = set()
        self.results: Results | None = None
        self._seen: dict[str, _Seen] = {}
        self._pipeline: Any = None
        self._notes: list[str] = []
        self._said: set[str] = set()
        self._begun = False
        self._prepared = False
        self._heading: Path | None = None
        self._started = time.time()

    @property
    def pipeline(self) -> Any:
        """The pipeline, set up at its first use.

        Raises
        ------
        AssetError
            If the assets asked for cannot be had.
        """
        if self._pipeline is None:
            from resnet8_eval import assets
            from resnet8_eval.pipeline import Pipeline
            from resnet8_eval.stages import Settings

            option = self.config.getoption
            cache_dir = option("--cache-dir") or assets.default_cache_dir()
            with self._uncaptured():  # a download shows its progress
                found = assets.locate(
                    option("--assets"),
                    assets_dir=option("--assets-dir"),
                    cache_dir=cache_dir,
                    keras_model=option("--keras-model"),
                    announce=self._announce,
                )
            settings = Settings(
                found, cache_dir, option("--calibration-count"), option("--calibration-seed")
            )
            self._pipeline = Pipeline(settings, self._announce)
        return self._pipeline

    def pytest_sessionstart(self) -> None:
        """Begin as soon as it is known that requirements are asked for."""
        if _is_acceptance_run(self.config):
            self._begin()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Note which requirements were selected (without workers)."""
        if not self.config.getoption("collectonly"):
            self._select(item.nodeid for item in session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        """Note which requirements were selected (with workers)."""
        self._select(ids)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Refuse what a worker refused."""
        refused = getattr(node, "workeroutput", {}).get("refused")
        if refused is not None:
            raise pytest.UsageError(refused)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note what is reported of a requirement test."""
        name = _id_in(report.nodeid)
        if name is None:
            return
        self._seen.setdefault(name, _Seen(report.nodeid)).note(report)
        line = _requirement_line(report)
        terminal = self.config.pluginmanager.getplugin("terminalreporter")
        if line and terminal and self.config.get_verbosity() == 0:
            # A line of its own would make the reporter repeat the file's name before the next.
            heading = self.config.rootpath / report.nodeid.split("::")[0]
            if self._heading == heading or self.config.getoption("numprocesses", None):
                terminal.currentfspath = None
            terminal.write_line(f"  {line}", green=report.passed, red=report.failed)
            self._heading = terminal.currentfspath = heading

    @property
    def all_selected_met(self) -> bool:
        """Whether every selected requirement was measured and met, and the results say so."""
        outcomes = self._outcomes()
        return self.results is not None and all(
            name in outcomes and outcomes[name].status == "met" for name in self.selected
        )

    def conclude(self, *, interrupted: bool) -> None:
        """Build the results and write every report file but pytest-html's and JUnit's own."""
        try:
            self.results = self._published(interrupted)
        except SuiteError as error:
            self._notes.append(f"No results were written. {self.once(error)}")
        except OSError as error:
            self._notes.append(f"Not all results could be written. {error}")

    def _command(self) -> str:
        """What was called, with the kind of assets that ``auto`` came to."""
        called = shlex.join(["pytest", *self.config.invocation_params.args])
        kind = self.pipeline.settings.assets.kind
        return re.sub(r"(?<= )--assets[= ]auto(?= |$)", f"--assets={kind}", called)

    def closing_lines(self, width: int) -> list[str]:
        """The comparison table and the verdicts, and what is kept of earlier runs."""
        if not self._begun:
            return []
        from resnet8_eval.report import terminal

        shown = [] if self.results is None else terminal.render(self.results, width)
        return [*shown, *self._notes, *self.folder.kept()]

    def prepared(self, items: Iterable[pytest.Item]) -> Any:
        """The pipeline, with all that the requirement tests among `items` need."""
        if not self._prepared:
            needs = [
                need
                for item in items
                if (marker := item.get_closest_marker("requirement"))
                for need in marker.kwargs.get("needs", ())
            ]
            if self.config.getoption("--layers"):
                needs += [name for name in self.pipeline.stages if name.startswith("layers/")]
            if self.config.getoption("--fresh"):
                self.pipeline.forget(needs, self.config.getoption("--fresh"))
            self.pipeline.prepare(dict.fromkeys(needs))
            self._prepared = True
        return self.pipeline

    def once(self, error: SuiteError) -> str:
        """The whole message the first time, a line of it afterwards."""
        known = str(error) in self._said
        self._said.add(str(error))
        return f"{error.what.splitlines()[0]} (said in full above)" if known else str(error)

    def _begin(self) -> None:
        """From here on, the folder holds nothing that an earlier run left."""
        if self._begun:
            return
        try:
            self.folder.clear()
        except OSError as error:
            raise pytest.UsageError(
                f"The report files cannot be written to {self.folder.path}: {error}. Make room "
                "there, or name another folder with --reports-dir=DIR"
            ) from None
        self._begun = True

    def _select(self, nodeids: Iterable[str]) -> None:
        self.selected.update(found for nodeid in nodeids if (found := _id_in(nodeid)))
        if self.selected:
            self._begin()

    def _published(self, interrupted: bool) -> Results:
        from resnet8_eval.gather import gather
        from resnet8_eval.report import publish

        pipeline = self.pipeline
        outcomes = self._outcomes()
        complete = not interrupted and all(
            name in outcomes and outcomes[name].decided for name in BY_ID
        )
        for name in self.selected:
            outcomes.setdefault(name, Outcome("not evaluated", reason="was not reached"))
        made = gather(
            pipeline,
            outcomes,
            complete=complete,
            command=self._command(),
            started=self._started,
        )
        publish(made, self.folder.path)
        log = pipeline.peek("onnx")
        if log is not None:
            shutil.copyfile(log.path("conversion.log"), self.folder.path / "conversion.log")
        self.folder.settle(made)
        return made

    def _outcomes(self) -> dict[str, Outcome]:
        outcomes = {name: seen.outcome(BY_ID[name]) for name, seen in self._seen.items()}
        kinds = {str(dict(seen.properties).get("assets", "")) for seen in self._seen.values()}
        if self._pipeline is not None:
            kinds.add(self._pipeline.settings.assets.kind)
        kinds.discard("")
        if len(kinds) > 1:
            reason = f"ran while other tests used other assets ({', '.join(sorted(kinds))})"
            for name, found in outcomes.items():
                outcomes[name] = replace(
                    found, status="not met", reason=found.reason or reason, decided=False
                )
        return outcomes

    def _announce(self, line: str) -> None:
        """One line of progress, past pytest's capturing."""
        with self._uncaptured():
            print(f"  {line}", file=sys.stderr, flush=True)

    def _uncaptured(self) -> AbstractContextManager[None]:
        capture = self.config.pluginmanager.getplugin("capturemanager")
        return nullcontext() if capture is None else capture.global_and_fixture_disabled()


def _is_acceptance_run(config: pytest.Config) -> bool:
    """Whether the command line asks for requirement tests; decided before collection."""
    return not any(getattr(config.option, name, None) for name in _ONLY_SHOWING) and bool(
        config.getoption("--requirement")
        or re.search(r"\bv1_[012]\b", config.getoption("-m") or "")
        or any("acceptance" in _in_checkout(config, argument).parts for argument in config.args)
    )


def _in_checkout(config: pytest.Config, argument: str) -> Path:
    """A path of the command line, from the root: the folders above it may have any name."""
    path = config.invocation_params.dir / argument
    return path.relative_to(config.rootpath) if path.is_relative_to(config.rootpath) else path


def _id_in(nodeid: str) -> str | None:
    """The requirement in the name of a test; a crashed worker's report carries nothing else."""
    found = _IN_TEST_NAME.search(nodeid)
    name = f"{found[1].upper()}-{found[2]}" if found else None
    return name if name in BY_ID else None


def _numbers(properties: Iterable[tuple[str, Any]]) -> list[float]:
    return [value for key, value in properties if key == "measured"]


def _shortfall(requirement: Requirement, properties: list[tuple[str, Any]]) -> str | None:
    """What a test handed over that does not meet its requirement; None if all of it does."""
    numbers = _numbers(properties)
    if not numbers:
        return (
            f"its test ended without measuring {requirement.quantity}; "
            "a requirement test must call requirement.judge"
        )
    if len(numbers) > 1:
        return "its test judged more than once"
    if not requirement.is_met_by(numbers[0]):
        return sentence(requirement, numbers[0])
    broken = [c["name"] for c in json.loads(dict(properties)["evidence"]) if not c["ok"]]
    return f"failed: {', '.join(broken)}" if broken else None


def _requirement_line(report: pytest.CollectReport | pytest.TestReport) -> str | None:
    """One line on a requirement test that was carried out: ID, measured, required, margin."""
    if report.when != "call" or not isinstance(report, pytest.TestReport) or report.skipped:
        return None
    found = dict(report.user_properties)
    if "measured" not in found or found.get("requirement") not in BY_ID:
        return None
    requirement = BY_ID[str(found["requirement"])]
    good = "met" if found.get("assets") == "real" else "passed"
    word = good if report.passed else "NOT MET"
    return f"{requirement.id:8}{word:8}{sentence(requirement, float(str(found['measured'])))}"


def _last_line(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, "reprcrash", None)
    text = report.longreprtext if crash is None else crash.message
    lines = [line.removeprefix("Failed: ").strip() for line in text.splitlines()]
    # Under xdist a report without a place in the code starts with the worker's name.
    said = [line for line in lines if line and not line.startswith("[gw")]
    return "; ".join(said[:2]) if said else "failed"
