"""Glue between pytest and the suite: options, markers, fixtures, verdicts, report files.

Nothing is measured here. A requirement test asks the ``run`` fixture for records and hands a
number to the ``requirement`` fixture; `resnet8_eval.verdicts` judges it in the controller.
"""

from __future__ import annotations

import argparse
import math
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Collection, Generator, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Final

import pytest
from _pytest.junitxml import xml_key  # the only way to a property of the suite outside of a test

from resnet8_eval import configurations, gate, verdicts
from resnet8_eval.assets import expanded, given_folder, given_model
from resnet8_eval.errors import AssetError, SuiteError
from resnet8_eval.record import Results
from resnet8_eval.report import diagnosis, unstarted, words
from resnet8_eval.report.folder import Earlier, ReportFolder
from resnet8_eval.requirements import (
    BY_ID,
    MILESTONES,
    MIN_ACCURACY_PERCENT,
    MIN_CALIBRATION_IMAGES,
    Requirement,
    asked,
)
from resnet8_eval.results import Outcome

_LIKE_A_MILESTONE: Final = re.compile(r"""(?<![\w"'])v\d[\w.-]*""", re.IGNORECASE)
"""A name in a marker expression; what stands in quotes is a value."""
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
        "--min-accuracy",
        type=_accuracy,
        metavar="PERCENT",
        help="with --keras-model: the accuracy that its float32 must exceed, instead of "
        f"{MIN_ACCURACY_PERCENT:g} %%; every report says so",
    )
    group.addoption(
        "--preprocessing",
        metavar="raw|unit|standard|caffe|FILE",
        help="with --keras-model: what it is fed; raw pixels 0-255 (default), unit [0, 1], "
        "standardised, caffe's BGR less the mean, or as a TOML file says (docs/own-models.md)",
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
        "--seeds",
        type=_seeds,
        default=1,
        metavar="N",
        help="also make and score the quantized rows with the N - 1 seeds that follow, and report "
        "mean, standard deviation and worst of each row (default 1: no more)",
    )
    group.addoption(
        "--fresh",
        action="store_const",
        const=math.inf,
        help="make everything anew, whatever the cache has",
    )
    group.addoption(
        "--fresh-timing",
        action="store_const",
        const=math.inf,
        help="measure latency and throughput anew, whatever the cache has",
    )
    group.addoption(
        "--min-speedup",
        type=_speedup,
        metavar="X",
        help="demand of EVAL-05 that every quantized row that runs in integer kernels is at least "
        "X times as fast as float32 of its framework (default: no demand)",
    )
    group.addoption(
        "--gate",
        type=_gate,
        metavar="DEMAND",
        help="beyond the requirements, demand of every row but the stock ones that it is "
        "equivalent to the baseline (--gate equivalent), or drops by no more than so many "
        "percentage points (--gate 1.0); else the exit status is 1",
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
    config.addinivalue_line(
        "markers",
        "requirement(id, needs): the one test of a requirement, and the stages that it needs",
    )
    for name, title in MILESTONES.items():
        config.addinivalue_line("markers", f"{name}: milestone {name}, {title}")
    _refuse_unknown("--requirement", config.getoption("--requirement") or (), "requirement", BY_ID)
    _refuse_unknown("-m", _milestones(config), "milestone", MILESTONES)
    folders = [config.getoption(f"--{name}-dir") for name in ("assets", "cache", "reports")]
    if config.inipath is None and any(folders):
        raise pytest.UsageError(
            "pytest found no configuration. Run it in the checkout, and write options that name "
            "a folder with an equals sign, such as --reports-dir=FOLDER: pytest takes a folder "
            "that stands alone for the place of its configuration"
        )
    for name in ("--min-accuracy", "--preprocessing"):
        if config.getoption(name) is not None and not config.getoption("--keras-model"):
            raise pytest.UsageError(
                f"{name} is for a model of your own; name it with --keras-model. The pretrained "
                f"model is fed raw pixels and must exceed {MIN_ACCURACY_PERCENT:g} %"
            )
    if not hasattr(config, "workerinput"):
        _refuse_missing(config)
    for name in ("fresh", "fresh_timing"):
        if getattr(config.option, name) == math.inf:
            # Workers are given the moment at which their run began, and make nothing twice.
            setattr(config.option, name, time.time())
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
def pytest_pyfunc_call() -> Generator[None, object, object]:
    """The suite's errors need no trace."""
    try:
        return (yield)
    except SuiteError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None


def _mark(items: Iterable[pytest.Item]) -> None:
    """Mark each requirement test; refuse a requirement's second test, and a wrongly named one."""
    owners: dict[str, pytest.Item] = {}
    for item in items:
        requirement, named = requirement_of(item), verdicts.id_in(item.nodeid)
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


@pytest.fixture
def requirement(request: pytest.FixtureRequest) -> verdicts.Judge:
    """The judge of the requirement that this test carries."""
    found = requirement_of(request.node)
    if found is None:
        raise pytest.UsageError(f"{request.node.nodeid} carries no requirement marker")
    return verdicts.Judge(request.node, request.config.stash[_RUN].register[found.id])


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
    """Leave out the dot of a requirement's test: a line of its own says more."""
    if config.get_verbosity() != 0 or verdicts.line(report, BY_ID) is None:
        return None
    return (report.outcome, "", report.outcome.upper())


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the report files, and let nothing short of *met* exit with 0."""
    if hasattr(session.config, "workerinput"):
        return
    run = session.config.stash[_RUN]
    if not run.selected:
        return
    run.conclude(interrupted=exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED))
    if exitstatus == pytest.ExitCode.OK and not (run.all_selected_met and run.gate_met):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(tryfirst=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Close with the comparison table and one verdict line for each milestone."""
    run = config.stash[_RUN]
    for line in run.closing_lines(terminalreporter._tw.fullwidth):
        terminalreporter.write_line(line)


@pytest.hookimpl(optionalhook=True)
def pytest_html_results_summary(session: pytest.Session) -> None:
    """Have pytest-html fill our page instead of its own, which is empty without scripts."""
    run = session.config.stash[_RUN]
    if run.results is not None:
        ReportPage(run.results, run.earlier).take_place(session.config)


class ReportPage:
    """What pytest-html takes for its template.

    Parameters
    ----------
    results
        What the run found.
    earlier
        The runs before it.
    """

    def __init__(self, results: Results, earlier: Earlier | None = None) -> None:
        self._results = results
        self._earlier = earlier

    def take_place(self, config: pytest.Config) -> None:
        """Become the template of this session's pytest-html."""
        from pytest_html.basereport import BaseReport

        for plugin in config.pluginmanager.get_plugins():
            if isinstance(plugin, BaseReport):
                plugin._template = self  # it has no hook for this

    def render(self, **given: Any) -> str:
        """The page, with pytest-html's data in the table of tests."""
        from resnet8_eval.report import html

        return html.page(self._results, given, self._earlier)


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
        self.earlier: Earlier | None = None
        self.register = asked(config.getoption("--min-accuracy"))
        self._verdicts = verdicts.Verdicts(self.register)
        self._pipeline: Any = None
        self._notes: list[str] = []
        self._said: set[str] = set()
        self._begun = False
        self._prepared = False
        self._missing: AssetError | None = None
        self._heading: Path | None = None
        self._at = ""
        self._stopped: str | None = None
        self._before: Any = None
        self._started = time.time()

    @property
    def pipeline(self) -> Any:
        """The pipeline, set up at its first use.

        Raises
        ------
        AssetError
            If the assets asked for cannot be had.
        """
        if self._missing is not None:  # one attempt in a run, not one for each test
            raise self._missing
        if self._pipeline is None:
            from resnet8_eval import assets
            from resnet8_eval.inputs import Settings
            from resnet8_eval.pipeline import Pipeline
            from resnet8_eval.preprocess import chosen

            option = self.config.getoption
            cache_dir = option("--cache-dir") or assets.default_cache_dir()
            try:
                how = chosen(option("--preprocessing") or "raw")
                with self._uncaptured():  # a download shows its progress
                    found = assets.locate(
                        option("--assets"),
                        assets_dir=option("--assets-dir"),
                        cache_dir=cache_dir,
                        keras_model=option("--keras-model"),
                        announce=self._announce,
                    )
            except AssetError as error:
                self._missing = error
                raise
            settings = Settings(
                found,
                cache_dir,
                option("--calibration-count"),
                option("--calibration-seed"),
                option("--min-speedup"),
                option("--min-accuracy"),
                option("--gate"),
                how,
                option("--seeds"),
            )
            self._pipeline = Pipeline(settings, self._announce)
        return self._pipeline

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """Find the assets before anything is collected, where requirements are asked for."""
        if not _is_acceptance_run(self.config):
            return
        self._begin()
        try:
            # Workers are told what "auto" came to, and look for nothing else.
            self.config.option.assets = self.pipeline.settings.assets.kind
        except SuiteError as error:
            unstarted.publish(error, self._called(), self.folder.path)
            with self._uncaptured():
                print(*self.folder.kept(), error, sep="\n", file=sys.stderr)
            pytest.exit(f"{unstarted.TITLE}. {error.what}", unstarted.EXIT_STATUS)
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, _terminated)

    def pytest_unconfigure(self) -> None:
        """Leave SIGTERM as it was."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Remember the test at hand."""
        self._at = nodeid

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Remember what ended the run, and what it was doing."""
        error = excinfo.value
        by = f"pytest.exit ({error.msg})" if isinstance(error, pytest.exit.Exception) else None
        notes = getattr(error, "__notes__", []) or [f"at {self._at or 'the start'}"]
        self._stopped = " ".join([by or str(error) or "SIGINT (Ctrl-C)", *notes])

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

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> Generator[None]:
        """Judge a requirement before anyone else sees its report, so that all see the same."""
        self._verdicts.note(report)
        yield
        line = verdicts.line(report, self.register)
        terminal = self.config.pluginmanager.getplugin("terminalreporter")
        if line is None or terminal is None or self.config.get_verbosity() < 0:
            return
        look = {"green": report.passed, "red": report.failed}
        if self.config.get_verbosity() > 0:
            terminal.ensure_newline()
            terminal.write(f"  {line}", **look)
            terminal.currentfspath = -2  # the next test begins a line, as after any other
            return
        # A line of its own would make the reporter repeat the file's name before the next.
        heading = self.config.rootpath / report.nodeid.split("::")[0]
        if self._heading == heading or self.config.getoption("numprocesses", None):
            terminal.currentfspath = None
        terminal.write_line(f"  {line}", **look)
        self._heading = terminal.currentfspath = heading

    @property
    def all_selected_met(self) -> bool:
        """Whether every selected requirement was measured and met, and the results say so."""
        outcomes = self._outcomes()
        return self.results is not None and all(
            name in outcomes and outcomes[name].status == "met" for name in self.selected
        )

    @property
    def gate_met(self) -> bool:
        """Whether the rows are what ``--gate`` demands, if it demands anything."""
        if self.config.getoption("--gate") is None:
            return True
        return self.results is not None and self.results.gate is not None and self.results.gate.met

    def conclude(self, *, interrupted: bool) -> None:
        """Build the results and write every report file but pytest-html's and JUnit's own."""
        try:
            self.results = self._published(interrupted)
        except SuiteError as error:
            self._notes.append(f"No results were written. {self.once(error)}")
        except OSError as error:
            self._notes.append(f"Not all results could be written. {error}")
        self._tell_junit()

    def _tell_junit(self) -> None:
        """Properties of the suite: the kind of assets, and each verdict's diagnosis."""
        xml = self.config.stash.get(xml_key, None)
        if xml is None or self.results is None:
            return
        xml.add_global_property("assets", self.results.assets.kind)
        for name in self.results.milestones:
            for found in diagnosis.of(self.results, name):
                xml.add_global_property(f"diagnosis of {name}", str(found))

    def _called(self) -> str:
        return shlex.join(["pytest", *self.config.invocation_params.args])

    def _command(self) -> str:
        """What was called, with the kind of assets that ``auto`` came to."""
        kind = self.pipeline.settings.assets.kind
        return re.sub(r"(?<= )--assets[= ]auto(?= |$)", f"--assets={kind}", self._called())

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
            from resnet8_eval.stages import of_seed

            needs: list[str] = []
            for item in items:
                if marker := item.get_closest_marker("requirement"):
                    named = marker.kwargs.get("needs", ())
                    needs += named() if callable(named) else named
            if self.config.getoption("--gate") is not None:
                needs += [f"compare/{row.name}" for row in configurations.gated()]
            if self.pipeline.settings.assets.user_model:
                needs.append("preprocessings")
            needs += [
                of_seed(f"compare/{row.name}", seed)
                for seed in self.pipeline.settings.further_seeds
                for row in configurations.quantized()
            ]
            if self.config.getoption("--layers"):
                # For one recipe only: it takes a minute, and the others do not differ noticeably.
                needs += [
                    f"layers/{row.name}"
                    for row in configurations.calibrated()
                    if row.recipe == configurations.TUNED
                ]
            if moment := self.config.getoption("--fresh"):
                self.pipeline.forget(self.pipeline.closure(needs), moment)
            if moment := self.config.getoption("--fresh-timing"):
                stages = self.pipeline.stages
                self.pipeline.forget([name for name in needs if stages[name].alone], moment)
            self.pipeline.prepare(dict.fromkeys(needs))
            self._prepared = True
        return self.pipeline

    def once(self, error: SuiteError) -> str:
        """The whole message the first time, a line of it afterwards."""
        known = str(error) in self._said
        self._said.add(str(error))
        return error.what.splitlines()[0] + words.SAID_ABOVE if known else str(error)

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
        self.selected.update(found for nodeid in nodeids if (found := verdicts.id_in(nodeid)))
        if self.selected:
            self._begin()

    def _published(self, interrupted: bool) -> Results:
        from resnet8_eval.gather import gather
        from resnet8_eval.report import diff, publish

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
            stopped=self._stopped,
            command=self._command(),
            started=self._started,
        )
        publish(made, self.folder.path)
        log = pipeline.peek("onnx")
        if log is not None:
            shutil.copyfile(log.path("conversion.log"), self.folder.path / "conversion.log")
        self.earlier = self.folder.earlier(made)
        if self.earlier.last:
            moved = diff.summary(diff.changes(self.earlier.last, made))
            self._notes.append(f"Since the last complete run on the same assets. {moved}")
        self.folder.settle(made)
        return made

    def _outcomes(self) -> dict[str, Outcome]:
        used = self._pipeline
        return self._verdicts.outcomes(None if used is None else used.settings.assets.kind)

    def _announce(self, line: str) -> None:
        """One line of progress, past pytest's capturing."""
        with self._uncaptured():
            print(f"  {line}", file=sys.stderr, flush=True)

    def _uncaptured(self) -> AbstractContextManager[None]:
        capture = self.config.pluginmanager.getplugin("capturemanager")
        return nullcontext() if capture is None else capture.global_and_fixture_disabled()


def _terminated(*_: object) -> None:
    """End the run as Ctrl-C does, with its reports."""
    raise KeyboardInterrupt("SIGTERM")


def _speedup(text: str) -> float:
    """A demand on speed, from the command line."""
    try:
        demand = float(text)
    except ValueError:
        demand = math.nan
    if not 0 < demand < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, such as 1.2, got {text}")
    return demand


def _accuracy(text: str) -> float:
    """A demand on accuracy, from the command line."""
    try:
        demand = float(text)
    except ValueError:
        demand = math.nan
    if not 0 <= demand < 100:
        raise argparse.ArgumentTypeError(f"expected percent, such as 80, got {text}")
    return demand


def _seeds(text: str) -> int:
    """A number of calibration seeds, from the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, such as 5; got {text}")
    return int(text)


def _gate(text: str) -> gate.Demand:
    """A demand on the rows, from the command line."""
    try:
        return gate.demand(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _is_acceptance_run(config: pytest.Config) -> bool:
    """Whether the command line asks for requirement tests; decided before collection."""
    return not any(getattr(config.option, name, None) for name in _ONLY_SHOWING) and bool(
        config.getoption("--requirement")
        or _milestones(config)
        or any("acceptance" in _in_checkout(config, argument).parts for argument in config.args)
    )


def _milestones(config: pytest.Config) -> list[str]:
    """The names in ``-m`` that have the form of a milestone's."""
    return _LIKE_A_MILESTONE.findall(config.getoption("-m") or "")


def _refuse_unknown(option: str, names: Iterable[str], what: str, known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise pytest.UsageError(
                f"{option} {name}: there is no such {what}; the register has {', '.join(known)}"
            )


def _refuse_missing(config: pytest.Config) -> None:
    """Refuse a folder or a model that is named and is not there."""
    try:
        given_folder(config.getoption("--assets-dir"))
        if (model := config.getoption("--keras-model")) is not None:
            given_model(model)
    except AssetError as error:
        raise pytest.UsageError(
            f"{error.what} Expected {error.expected}; given: {error.given}. {error.next_step}"
        ) from None


def _in_checkout(config: pytest.Config, argument: str) -> Path:
    """A path of the command line, from the root: the folders above it may have any name."""
    path = config.invocation_params.dir / argument
    return path.relative_to(config.rootpath) if path.is_relative_to(config.rootpath) else path
