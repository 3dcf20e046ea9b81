"""Many processes at once, on one cold cache: each artefact is made once, and all get the same."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from resnet8_eval.lanes import SLOTS
from tests import small_flow
from tests.small_flow import STAGES, command_line, ended_well, made, site
from tests.small_suite import Suite, passing

ASKING = {"CAL-01": "last", "PT-03": "right", "ORT-03": "left", "PTQ-03": "first"}
"""Requirements whose tests here ask for a stage."""


@pytest.fixture
def asking(pytester: pytest.Pytester) -> Suite:
    """A suite in miniature that asks for the stages of the flow in miniature."""
    suite = Suite(pytester)
    suite.write(
        {
            name: passing(name, body=f"assert run.artifact({stage!r}).record['name'] == {stage!r}")
            for name, stage in ASKING.items()
        }
    )
    return suite


def pytest_run(
    cache: Path, reports: Path, environment: Mapping[str, str], *words: str
) -> subprocess.Popen[str]:
    """The tests that ask for a stage, in the folder of the suite."""
    options = [f"--cache-dir={cache}", f"--reports-dir={reports}", "-p", "no:cacheprovider"]
    # The flow in miniature is imported before pytest could rewrite the assertions of its modules.
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    wanted = [f"--requirement={name}" for name in ASKING]
    return subprocess.Popen(  # noqa: S603 (our own words)
        [sys.executable, "-m", "pytest", "-p", "no:html", *words, *options, *wanted, "acceptance"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def assert_all_met(reports: Path) -> None:
    results = json.loads((reports / "results.json").read_text())
    statuses = {entry["id"]: entry["status"] for entry in results["requirements"]}
    assert {name: statuses[name] for name in ASKING} == dict.fromkeys(ASKING, "met")


@pytest.mark.usefixtures("asking")
def test_a_crowd_on_a_cold_cache_makes_each_artefact_once(tmp_path: Path) -> None:
    """A suite with two workers, and as many commands as make eight processes at once."""
    cache, environment = tmp_path / "cache", site(tmp_path / "site")
    crowd = [pytest_run(cache, tmp_path / "reports", environment, "-n2")]
    crowd += [command_line(cache, environment) for _ in range(5)]
    said = [ended_well(process) for process in crowd]
    assert small_flow.begun(cache) == dict.fromkeys(STAGES, 1)
    assert small_flow.at_once(cache) <= SLOTS
    assert set(made(cache)) == set(STAGES)
    told = [line for text in said[1:] for line in text.splitlines()]
    folders = {line for line in told if not line.startswith("  ")}  # the rest is progress
    assert len(folders) == len(STAGES)  # every command was given the same artefacts
    assert_all_met(tmp_path / "reports")


CLOCK: Final = """
import time

honestly = time.time
time.time = lambda: honestly() - {}
"""


def test_a_fresh_run_makes_each_artefact_anew_and_once_whatever_the_clock_says(
    asking: Suite, tmp_path: Path
) -> None:
    """Planted: the clock steps back before each run, and the last says that it made all."""
    needing = {
        name: passing(name).replace(f'"{name}"', f'"{name}", needs=["{stage}"]')
        for name, stage in ASKING.items()
    }
    asking.write(needing)
    cache, reports = tmp_path / "cache", tmp_path / "reports"
    now, earlier, before = (
        site(tmp_path / f"{hours} hours", small_flow.SITE + CLOCK.format(3600 * hours))
        for hours in range(3)
    )
    ended_well(command_line(cache, now))
    ended_well(command_line(cache, earlier, "--fresh"))
    assert small_flow.begun(cache) == dict.fromkeys(STAGES, 2)
    began = time.monotonic()
    ended_well(pytest_run(cache, reports, before, "-n2", "--fresh"))
    took = time.monotonic() - began
    assert small_flow.begun(cache) == dict.fromkeys(STAGES, 3)
    stages = json.loads((reports / "results.json").read_text())["stages"]
    assert {name: stages[name]["cache"] for name in STAGES} == dict.fromkeys(STAGES, "miss")
    for stage in stages.values():
        assert 0 <= stage["started"] < stage["ended"] <= took


@pytest.mark.usefixtures("asking")
def test_more_workers_start_no_more_lanes(tmp_path: Path) -> None:
    cache, environment = tmp_path / "cache", site(tmp_path / "site")
    ended_well(pytest_run(cache, tmp_path / "reports", environment, f"-n{SLOTS + 1}"))
    assert small_flow.begun(cache) == dict.fromkeys(STAGES, 1)
    assert small_flow.at_once(cache) <= SLOTS
    assert_all_met(tmp_path / "reports")
