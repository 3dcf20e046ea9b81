"""Glue between pytest and the suite: options, markers, fixtures.

Nothing is measured here. A requirement test asks the ``run`` fixture for records and hands a
number to the ``requirement`` fixture; `resnet8_eval.verdicts` judges it in the controller.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Collection, Generator, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest

from resnet8_eval import gate, verdicts
from resnet8_eval.acceptance_run import AcceptanceRun, is_acceptance_run, milestones_asked
from resnet8_eval.assets import NAMELESS, expanded, given_folder, given_model
from resnet8_eval.errors import AssetError, SuiteError
from resnet8_eval.requirements import (
    BY_ID,
    MILESTONES,
    MIN_ACCURACY_PERCENT,
    MIN_CALIBRATION_IMAGES,
    MOST_SEEDS,
    ON_DEMAND,
    Requirement,
)

_RUN: Final = pytest.StashKey[AcceptanceRun]()


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
        type=_folder,
        metavar="DIR",
        help="look for the assets here first (also: RESNET8_EVAL_ASSETS)",
    )
    group.addoption(
        "--keras-model",
        type=Path,
        metavar="FILE",
        help="judge this Keras model (.h5, .hdf5 or .keras) instead of the pretrained one; "
        "its own float32 accuracy is the baseline",
    )
    group.addoption(
        "--min-accuracy",
        type=_value(
            "a percentage from 0 to less than 100, such as 80",
            float,
            lambda number: 0 <= number < 100,
        ),
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
        type=_value("a whole number from 10, such as 1000", int, lambda number: number >= 10),
        default=MIN_CALIBRATION_IMAGES,
        metavar="N",
        help=f"calibration images, stratified (default {MIN_CALIBRATION_IMAGES})",
    )
    group.addoption(
        "--calibration-seed",
        type=_value("a whole number from 0", int, lambda number: number >= 0),
        default=0,
        metavar="N",
        help="their seed (default 0)",
    )
    group.addoption(
        "--seeds",
        type=_value(
            f"a whole number from 1 to {MOST_SEEDS}, such as 5",
            int,
            lambda number: 1 <= number <= MOST_SEEDS,
        ),
        default=1,
        metavar="N",
        help="also make and score the quantized rows with the N - 1 seeds that follow, and report "
        "mean, standard deviation and worst of each row (default 1: no more)",
    )
    group.addoption(
        "--fresh",
        action="store_true",
        help="make everything anew, whatever the cache has",
    )
    group.addoption(
        "--fresh-timing",
        action="store_true",
        help="measure latency and throughput anew, whatever the cache has",
    )
    group.addoption(
        "--min-speedup",
        type=_value("a number above 0, such as 1.2", float, lambda number: 0 < number < math.inf),
        metavar="X",
        help="demand of EVAL-05 that every quantized row that runs in integer kernels is at least "
        "X times as fast as float32 of its framework (default: no demand)",
    )
    group.addoption(
        "--gate",
        type=gate.demand,
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
        type=_folder,
        metavar="DIR",
        help="where downloads and artefacts are kept (also: RESNET8_EVAL_CACHE)",
    )
    group.addoption(
        "--reports-dir",
        type=_folder,
        metavar="DIR",
        help="where report.html, results.json and the others go (default: reports/)",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Refuse the package of another checkout, before a ``conftest.py`` fails for its sake."""
    given = early_config.known_args_namespace
    named = [Path(word.partition("::")[0]) for word in given.file_or_dir]
    if given.pyargs and named and not any(path.exists() for path in named):
        return  # the tests are the package's own
    imported, here = Path(__file__).parent, early_config.rootpath / "resnet8_eval"
    if (here / "__init__.py").is_file() and not here.samefile(imported):
        raise pytest.UsageError(
            "The package that was imported is not the one beside these tests, which would judge "
            f"other code. Expected {here}; imported: {imported}. Call python -m pytest in "
            f"{here.parent}, or use make there, which makes an environment for it"
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
    _refuse_unknown("-m", milestones_asked(config), "milestone", MILESTONES)
    wanted = config.getoption("--requirement") or milestones_asked(config)
    if wanted and config.args_source is config.ArgsSource.INVOCATION_DIR:
        # Called without paths in a folder of the checkout: as in its root, not all tests there.
        paths = config.getini("testpaths")
        config.args = [str(config.rootpath / path) for path in paths] or config.args
    folders = [config.getoption(f"--{name}-dir") for name in ("assets", "cache", "reports")]
    if config.inipath is None and any(folders) and not config.option.pyargs:
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
    run = config.stash[_RUN] = AcceptanceRun(config)
    if hasattr(config, "workerinput"):
        return
    _refuse_missing(config)
    config.pluginmanager.register(run)
    if is_acceptance_run(config):
        run.demand_folder()
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
    wanted = config.getoption("--requirement") or ()
    named = set(milestones_asked(config))

    def is_asked_for(item: pytest.Item) -> bool:
        found = requirement_of(item)
        if wanted:
            return found is not None and found.id in wanted
        return found is None or found.milestone not in ON_DEMAND - named

    chosen = [item for item in items if is_asked_for(item)]
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
    state, began = request.config.stash[_RUN], time.monotonic()
    try:
        pipeline = state.prepared(request.session.items)
    except SuiteError as error:
        raise pytest.fail.Exception(state.once(error), pytrace=False) from None
    kind = pipeline.settings.assets.kind
    made_in = (verdicts.MADE_IN, time.monotonic() - began)
    request.node.user_properties.extend([("assets", kind), made_in])
    return pipeline


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(
    report: pytest.CollectReport | pytest.TestReport, config: pytest.Config
) -> tuple[str, str, str] | None:
    """Leave out the dot of a requirement's test: a line of its own says more."""
    if config.get_verbosity() != 0 or verdicts.line(report, BY_ID) is None:
        return None
    return (report.outcome, "", report.outcome.upper())


def _value(
    expected: str, kind: Callable[[str], Any], is_one: Callable[[Any], bool]
) -> Callable[[str], Any]:
    """How a number is read from the command line."""

    def read(text: str) -> Any:
        with suppress(ValueError):
            if is_one(number := kind(text)):
                return number
        raise argparse.ArgumentTypeError(f"expected {expected}; got {text}")

    return read


def _folder(text: str) -> Path:
    """A folder from the command line."""
    if not text:
        raise argparse.ArgumentTypeError(NAMELESS)
    return expanded(text)


def _refuse_unknown(option: str, names: Iterable[str], what: str, known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise pytest.UsageError(
                f"{option} {name}: there is no such {what}; the register has {', '.join(known)}"
            )


def _refuse_missing(config: pytest.Config) -> None:
    """Refuse a folder, a model or a preprocessing that is named and is not there."""
    try:
        given_folder(config.getoption("--assets-dir"))
        if (model := config.getoption("--keras-model")) is not None:
            given_model(model)
        if (how := config.getoption("--preprocessing")) is not None:
            from resnet8_eval.preprocess import chosen

            chosen(how)
    except AssetError as error:
        raise pytest.UsageError(
            f"{error.what} Expected {error.expected}; given: {error.given}. {error.next_step}"
        ) from None
