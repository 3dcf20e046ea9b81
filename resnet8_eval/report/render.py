"""The templates of every form of the report, and what each may ask for.

Each asks the modules of this package for what it shows. What an HTML template is given is escaped
by itself; in a Markdown template, whatever comes from outside goes through the filter ``md``.
"""

from __future__ import annotations

import functools
import re
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
    speed,
    table,
    tables,
    timeline,
    words,
)
from resnet8_eval.requirements import FINE_TUNED_WITHIN_PP, FLAGGED_DROP_PP, MILESTONES

if TYPE_CHECKING:
    from jinja2 import Environment

TITLE: Final = "ResNet8: conversion and quantization"
_TEMPLATES: Final = Path(__file__).with_name("templates")
_MODULES: Final = (
    *(advanced, charts, detail, diagnosis, diff, execution, history, layers, network, outcome),
    *(speed, table, tables, timeline, words),
)


def render(template: str, results: Results | None = None, **given: object) -> str:
    """What comes of a template, such as ``page.html``; Markdown in blocks with a line between.

    LookupError if it asks for what is not there, as Python code does.
    """
    from jinja2 import UndefinedError

    try:
        if results is not None:
            given |= {"results": results, "standin": words.is_standin(results)}
        text = _environment().get_template(f"{template}.j2").render(given)
    except UndefinedError as error:
        raise LookupError(str(error)) from error
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n" if template.endswith(".md") else text


def escape(text: object) -> str:
    """Text from outside, so that Markdown and HTML take none of it for markup."""
    plain = words.plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    plain = re.sub(r"([\\`*{}\[\]|~]|\b_|_\b(?!\w))", r"\\\1", plain)
    # GitHub makes links and mentions of these by itself.
    return re.sub(r"(?i)(@|(?<=http)(?=s?:)|(?<=www)(?=\.))", r"\1&#8203;", plain)


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
    )
    environment.filters.update(md=escape, plain=words.plain)
    environment.globals.update(
        {module.__name__.rpartition(".")[2]: module for module in _MODULES},
        fine_tuned_within=FINE_TUNED_WITHIN_PP,
        flagged_drop=FLAGGED_DROP_PP,
        milestone_titles=MILESTONES,
        source=_source,
        title=TITLE,
    )
    return environment


def _source(name: str) -> Any:
    """Our own CSS or JavaScript, as it is."""
    from markupsafe import Markup

    return Markup((_TEMPLATES / name).read_text(encoding="utf-8"))  # noqa: S704 (our own file)
