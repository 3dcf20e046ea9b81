"""One acceptance run: its pipeline, its verdicts, its report files.

The plugin's hooks ask it; it lives as long as the pytest session.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest
from _pytest.junitxml import xml_key  # the only way to a property of the suite outside of a test

from resnet8_eval import configurations, verdicts
from resnet8_eval.errors import AssetError, SuiteError
from resnet8_eval.record import Results
from resnet8_eval.report import diagnosis, unstarted, words
from resnet8_eval.report.folder import Earlier, ReportFolder
from resnet8_eval.requirements import ALWAYS, MILESTONES, asked
from resnet8_eval.results import Outcome

_LIKE_A_MILESTONE: Final = re.compile(r"""(?<![\w"'])v\d[\w.-]*""", re.IGNORECASE)
"""A name in a marker expression; what stands in quotes is a value."""
_OF_SPEED: Final = ("--min-speedup", "--fresh-timing")
_RUN_NAME: Final = "resnet8_eval_run"
"""What a worker is told the name of its run by."""
_NOTHING_RUN: Final = (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED)
_SETTINGS: Final = (
    *("calibration_count", "calibration_seed", "min_speedup", "min_accuracy", "gate", "seeds"),
)
_CALLING_NO_TEST: Final = (
    *("collectonly", "showfixtures", "show_fixtures_per_test", "cacheshow"),
    "setuponly",  # which --setup-plan sets, too
)


def fill_page(config: pytest.Config, results: Results, earlier: Earlier | None = None) -> None:
    """Have pytest-html put its data, the table of tests, into our page."""
    from pytest_html.basereport import BaseReport

    from resnet8_eval.report import html

    page = SimpleNamespace(render=lambda **given: html.page(results, given, earlier))
    for plugin in config.pluginmanager.get_plugins():
        if isinstance(plugin, BaseReport):
            plugin._template = page  # it has no hook for this


class AcceptanceRun:
    """One session: what was selected, what came of it, and where it is written."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        # Without a checkout, pytest's root is that of whatever project this folder lies in.
        here = config.invocation_params.dir if config.option.pyargs else config.rootpath
        self.folder = ReportFolder(config.getoption("--reports-dir") or here / "reports")
        self.selected: set[str] = set()
        self.results: Results | None = None
        self.earlier: Earlier | None = None
        self.register = asked(config.getoption("--min-accuracy"))
        self._verdicts = verdicts.Verdicts(self.register)
        self._pipeline: Any = None
        self._checkout: Any = None
        self._notes: list[str] = []
        self._said: set[str] = set()
        self._cleared: dict[str, bytes] | None = None
        self._prepared = False
        self._missing: AssetError | None = None
        self._heading: Path | None = None
        self._at = ""
        self._stopped: str | None = None
        self._before: Any = None
        self._made_in = 0.0
        # Workers are of the run of their controller; else each would make all anew with --fresh.
        given = getattr(config, "workerinput", {})
        self._name = given.get(_RUN_NAME) or os.urandom(8).hex()
        self._started = time.monotonic()

    @property
    def pipeline(self) -> Any:
        """The pipeline, set up at its first use; AssetError if the assets cannot be had."""
        if self._missing is not None:  # one attempt in a run, not one for each test
            raise self._missing
        if self._pipeline is None:
            from resnet8_eval import assets, environment
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
            said = {name: option(f"--{name.replace('_', '-')}") for name in _SETTINGS}
            settings = Settings(found, cache_dir, preprocessing=how, run=self._name, **said)
            self._pipeline = Pipeline(settings, self._announce)
            # Now: whoever commits while the run is at work changes what git says.
            self._checkout = environment.current_checkout()
        return self._pipeline

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """Find the assets before anything is collected, where requirements are asked for."""
        if not is_acceptance_run(self.config):
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

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(
        self, session: pytest.Session, exitstatus: int
    ) -> Generator[None, object, object]:
        """Write the report files, and let nothing short of *met* exit with 0.

        Where nothing was run, the folder is given back to the run before.
        """
        is_good = exitstatus == pytest.ExitCode.OK
        if self.selected and calls_tests(self.config):
            self._conclude(interrupted=not is_good and exitstatus != pytest.ExitCode.TESTS_FAILED)
            if is_good and not self._all_met:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
        elif self.selected and is_good:  # with -m, that would read as a milestone that is met
            session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
        result = yield
        cleared = self._cleared  # of an empty folder, nothing; yet others have written there since
        if cleared is not None and self.results is None and exitstatus in _NOTHING_RUN:
            self.folder.restore(cleared)
            self._hush()
            self._notes.append(f"Nothing was run; {self.folder.path} is as it was.")
        return result

    def _hush(self) -> None:
        """Have no other plugin announce a file that is no longer there, or is an earlier run's."""
        for plugin in self.config.pluginmanager.get_plugins():
            path = getattr(plugin, "_report_path", getattr(plugin, "logfile", None))
            if not isinstance(path, str | Path):  # another plugin's, of whatever kind
                continue
            if Path(path).resolve().parent == self.folder.path.resolve():
                self.config.pluginmanager.unregister(plugin)
                if plugin is self.config.stash.get(xml_key, None):
                    del self.config.stash[xml_key]

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
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker which run it is of."""
        node.workerinput[_RUN_NAME] = self._name

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
        self._part_time(report)
        if report.when == "teardown" and self.config.stash.get(xml_key, None) is not None:
            # The JUnit file takes them from the last report of a test; nothing else reads that.
            told = verdicts.readable(report.user_properties, self.register)
            report.user_properties = list(told)
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

    def _part_time(self, report: pytest.TestReport) -> None:
        """Count the time of the pipeline for the run, and not for the test that came first."""
        seconds = float(str(dict(report.user_properties).get(verdicts.MADE_IN, 0)))
        if report.when == "setup" and seconds:
            report.duration = max(report.duration - seconds, 0.0)
            self._made_in = max(self._made_in, seconds)  # workers wait for one another

    @property
    def _all_met(self) -> bool:
        """Whether every selected requirement and ``--gate`` was met, and the results say so."""
        if self.results is None:
            return False
        outcomes = self._outcomes()
        gate, demanded = self.results.gate, self.config.getoption("--gate") is not None
        return (not demanded or (gate is not None and gate.met)) and all(
            name in outcomes and outcomes[name].status == "met" for name in self.selected
        )

    def _conclude(self, *, interrupted: bool) -> None:
        """Build the results and write every report file but pytest-html's and JUnit's own."""
        try:
            self.results = self._published(interrupted)
        except SuiteError as error:
            self._notes.append(f"No results were written. {self.once(error)}")
        except OSError as error:
            self._notes.append(f"Not all results could be written. {error}")
        self._tell_junit()

    def _tell_junit(self) -> None:
        """Properties of the suite: kind of assets, the pipeline's time, diagnoses, the gate."""
        xml = self.config.stash.get(xml_key, None)
        if xml is None or self.results is None:
            return
        xml.add_global_property("assets", self.results.assets.kind)
        xml.add_global_property(verdicts.MADE_IN, f"{self._made_in:.1f}")
        for name in self.results.milestones:
            for found in diagnosis.of(self.results, name):
                xml.add_global_property(f"diagnosis of {name}", str(found))
        if gate := words.gate(self.results):
            xml.add_global_property("gate", "; ".join(gate))

    def _called(self) -> str:
        given = ["pytest", *self.config.invocation_params.args]
        return words.call(given, os.environ.get(words.ADDOPTS, ""))

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_results_summary(self) -> None:
        """Have pytest-html fill our page instead of its own, which is empty without scripts."""
        if self.results is not None:
            fill_page(self.config, self.results, self.earlier)

    @pytest.hookimpl(tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Close with the comparison table and one verdict line for each milestone."""
        for line in self._closing_lines(terminalreporter._tw.fullwidth):
            terminalreporter.write_line(line)

    def _closing_lines(self, width: int) -> list[str]:
        """The comparison table and the verdicts, and what is kept of earlier runs."""
        if self._cleared is None:
            said = f"No test was called; {self.folder.path} is as it was."
            return [said] if self.selected else []
        from resnet8_eval.report import terminal

        shown = [] if self.results is None else terminal.render(self.results, width)
        if not self.selected and self.config.inipath is None:
            self._notes.append(
                "No requirement test was found: this is no checkout. Those of the installed package"
                " run with: pytest --pyargs resnet8_eval.acceptance"
            )
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
            if further := self.pipeline.settings.further_seeds:
                needs += [f"compare/{row.name}" for row in configurations.quantized()]
                needs += [
                    again
                    for seed in further
                    for name in needs
                    if (again := of_seed(name, seed)) in self.pipeline.stages
                ]
            if self.config.getoption("--layers"):
                # For one recipe only: it takes a minute, and the others do not differ noticeably.
                needs += [
                    f"{kind}/{row.name}"
                    for kind in ("layers", "compare")  # what is not compared is not shown
                    for row in configurations.calibrated()
                    if row.recipe == configurations.TUNED
                ]
            if self.config.getoption("--fresh"):
                self.pipeline.forget(self.pipeline.closure(needs))
            if self.config.getoption("--fresh-timing"):
                stages = self.pipeline.stages
                self.pipeline.forget([name for name in needs if stages[name].alone])
            self.pipeline.prepare(dict.fromkeys(needs))
            self._prepared = True
        return self.pipeline

    def once(self, error: SuiteError) -> str:
        """The whole message the first time, a line of it afterwards."""
        known = str(error) in self._said
        self._said.add(str(error))
        return error.what.splitlines()[0] + words.SAID_ABOVE if known else str(error)

    def _begin(self) -> None:
        """From here on, the folder is this run's, and holds nothing that an earlier one left."""
        if self._cleared is None:
            with self._told():
                self.config.add_cleanup(self.folder.hold())
                self._cleared = self.folder.clear()

    def demand_folder(self) -> None:
        """Refuse a folder that takes no report files, before other plugins open theirs."""
        with self._told():
            named = str(self.folder.path)
            if (other := os.path.expandvars(named)) != named:
                raise OSError(
                    "pytest fills in the variable in that name, and would put report.html and "
                    f"junit.xml into {other}"
                )
            self.folder.demand_writable()

    @contextmanager
    def _told(self) -> Generator[None]:
        try:
            yield
        except BlockingIOError:
            raise pytest.UsageError(
                f"Another run is at work in {self.folder.path}, and its reports must be of one run "
                "alone. Wait until it has ended, or name another folder with --reports-dir=DIR"
            ) from None
        except OSError as error:
            raise pytest.UsageError(
                f"The report files cannot be written to {self.folder.path}: {error}. Make it a "
                "folder with room that takes files, or name another with --reports-dir=DIR"
            ) from None

    def _select(self, nodeids: Iterable[str]) -> None:
        selected = {found for nodeid in nodeids if (found := verdicts.id_in(nodeid))}
        idle = [name for name in _OF_SPEED if self.config.getoption(name)]
        if selected and "EVAL-05" not in selected and idle:
            raise pytest.UsageError(
                f"{idle[0]} would do nothing: it is for EVAL-05, which this call does not select. "
                "Leave it out, or add v1_3 to -m, or --requirement EVAL-05"
            )
        if selected and calls_tests(self.config):
            self._begin()
        self.selected |= selected  # what is refused has selected nothing, and writes nothing

    def _published(self, interrupted: bool) -> Results:
        from resnet8_eval.convert.log import handed_out
        from resnet8_eval.gather import gather
        from resnet8_eval.report import diff, publish

        pipeline = self.pipeline
        kind = f"--assets={pipeline.settings.assets.kind}"  # what "auto" came to
        outcomes = self._outcomes()
        complete = not interrupted and all(
            name in outcomes and outcomes[name].decided for name in {*ALWAYS, *self.selected}
        )
        for name in self.selected:
            outcomes.setdefault(name, Outcome("not evaluated", reason="was not reached"))
        made = gather(
            pipeline,
            outcomes,
            complete=complete,
            stopped=self._stopped,
            command=re.sub(r"(?<=[ ='])--assets[= ]auto(?=[ ']|$)", kind, self._called()),
            started=self._started,
            checkout=self._checkout,
        )
        publish(made, self.folder.path)
        converted = pipeline.peek("onnx")
        if converted is not None:
            log = converted.path("conversion.log").read_text(encoding="utf-8")
            (self.folder.path / "conversion.log").write_text(
                handed_out(log, pipeline.settings.assets.model.name), encoding="utf-8"
            )
        self.earlier = self.folder.earlier(made)
        if self.earlier.last:
            moved = diff.summary(diff.since(self.earlier.last, made))
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


def calls_tests(config: pytest.Config) -> bool:
    """Whether tests are called, and not only shown, planned or set up."""
    return not any(getattr(config.option, name, None) for name in _CALLING_NO_TEST)


def is_acceptance_run(config: pytest.Config) -> bool:
    """Whether the command line asks for requirement tests; decided before collection."""
    return calls_tests(config) and bool(
        config.getoption("--requirement")
        or milestones_asked(config)
        or (is_own(config) and any("acceptance" in _names(config, arg) for arg in config.args))
    )


def is_own(config: pytest.Config) -> bool:
    """Whether the tests are the suite's, not those of another project that it is installed for."""
    given = config.args if config.option.pyargs else ()
    named = any(argument.startswith("resnet8_eval.") for argument in given)
    return named or (config.rootpath / "resnet8_eval").is_dir()


def _names(config: pytest.Config, argument: str) -> Sequence[str]:
    """The folders of an argument below the root, or with ``--pyargs`` the packages."""
    path, root = config.invocation_params.dir / argument, config.rootpath
    if config.option.pyargs:
        return path.name.split(".")
    return (path.relative_to(root) if path.is_relative_to(root) else path).parts


def milestones_asked(config: pytest.Config) -> list[str]:
    """The names in ``-m`` that have the form of a milestone's; in another project, milestones."""
    found = _LIKE_A_MILESTONE.findall(config.getoption("-m") or "")
    return [name for name in found if name in MILESTONES or is_own(config)]
