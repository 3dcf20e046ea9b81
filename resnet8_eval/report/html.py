"""The report as HTML: one file, nothing loaded from elsewhere.

Each section's template asks the modules of this package for what it shows.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from resnet8_eval.record import Results
from resnet8_eval.report import (
    advanced,
    charts,
    detail,
    diagnosis,
    diff,
    execution,
    history,
    layers,
    network,
    outcome,
    session,
    speed,
    table,
    tables,
    timeline,
    words,
)
from resnet8_eval.report.folder import Earlier
from resnet8_eval.requirements import FLAGGED_DROP_PP, MILESTONES

if TYPE_CHECKING:
    from jinja2 import Environment

SECTIONS: Final = ("verdict", "comparison", "requirements", "hurts", "made")
TITLE: Final = "ResNet8: conversion and quantization"
_TEMPLATES: Final = Path(__file__).with_name("templates")
_MODULES: Final = (
    *(advanced, charts, detail, diagnosis, diff, execution, history, layers, network, outcome),
    *(speed, table, tables, timeline, words),
)


def page(
    results: Results, given: Mapping[str, Any] | None = None, earlier: Earlier | None = None
) -> str:
    """The report as one page, which needs no script to be read.

    Parameters
    ----------
    results
        What the run found.
    given
        The variables of pytest-html's template, for the table of tests; without them, none.
    earlier
        Complete runs before this one, for what changed; without them, no such section.
    """
    from resnet8_eval.results import encode

    found = None if given is None else session.session(results, given)
    data = base64.b64encode(encode(results).encode()).decode()
    return _rendered("page", results, session=found, data=data, earlier=earlier)


def unstarted(title: str, what: str, parts: dict[str, list[str]]) -> str:
    """The page of a run that could not begin: why in one sentence, and parts by heading."""
    found = _environment().get_template("unstarted.html.j2")
    return str(found.render(headline=TITLE, title=title, what=what, parts=parts))


def section(name: str, results: Results) -> str:
    """One of :data:`SECTIONS`."""
    return _rendered(name, results, session=None)


def _rendered(name: str, results: Results, **more: object) -> str:
    found = _environment().get_template(f"{name}.html.j2")
    return str(found.render(results=results, standin=words.is_standin(results), **more))


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
    )
    environment.globals.update(
        {module.__name__.rpartition(".")[2]: module for module in _MODULES},
        flagged_drop=FLAGGED_DROP_PP,
        milestone_titles=MILESTONES,
        source=_source,
        title=TITLE,
        sections=SECTIONS,
    )
    return environment


def _source(name: str) -> Any:
    """Our own CSS or JavaScript, as it is."""
    from markupsafe import Markup

    return Markup((_TEMPLATES / name).read_text(encoding="utf-8"))  # noqa: S704 (our own file)
