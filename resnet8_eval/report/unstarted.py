"""What a run leaves that could not begin: why, and what to do, in each form of the report."""

from __future__ import annotations

from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from resnet8_eval.errors import SuiteError
from resnet8_eval.report import written
from resnet8_eval.report.render import render

TITLE: Final = "This run could not be run: nothing was tested"
EXIT_STATUS: Final = 6
"""pytest's own are 0 to 5."""


def publish(error: SuiteError, command: str, folder: Path) -> None:
    """Write report.html, summary.md and junit.xml, and no results: there are none."""
    parts = {
        "Expected": error.expected,
        "Given": error.given,
        "What to do": error.next_step,
        "Command": command,
    }
    lines = {
        name: [line.strip().removeprefix("- ") for line in text.splitlines()]
        for name, text in parts.items()
    }
    for template, name in (("unstarted.html", "report.html"), ("unstarted.md", "summary.md")):
        written(folder / name, render(template, headline=TITLE, what=error.what, parts=lines))
    written(folder / "junit.xml", _junit(error))


def _junit(error: SuiteError) -> str:
    """One error, so that what reads JUnit files shows it and counts no test as failed."""
    suite = ElementTree.Element("testsuite", name="pytest", tests="1", errors="1", failures="0")
    case = ElementTree.SubElement(suite, "testcase", classname="resnet8_eval", name="assets")
    ElementTree.SubElement(case, "error", message=error.what).text = str(error)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)
