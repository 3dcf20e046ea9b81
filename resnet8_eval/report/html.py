"""The report as HTML: one file, nothing loaded from elsewhere."""

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
    reliability,
    seeds,
    session,
    speed,
    speed_charts,
    table,
    timeline,
    tuning,
    words,
)
from resnet8_eval.report.folder import Earlier
from resnet8_eval.requirements import (
    FLAGGED_DROP_PP,
    MILESTONES,
)

if TYPE_CHECKING:
    from jinja2 import Environment

SECTIONS: Final = ("verdict", "comparison", "requirements", "hurts", "made")
TITLE: Final = "ResNet8: conversion and quantization"
_TEMPLATES: Final = Path(__file__).with_name("templates")
_ORDER: Final = {"not met": 0, "met": 1, "not evaluated": 2}


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
    changed = None if earlier is None else _changed(results, earlier)
    page_ = _template("page").render(_view(results), session=found, data=data, changed=changed)
    return str(page_)


def _changed(results: Results, earlier: Earlier) -> dict[str, Any]:
    """What moved since the last complete run, and what the last ones came to, this one at the end.

    Its own entry is marked as this run's, whether it is complete or not.
    """
    moved = {} if earlier.last is None else diff.changes(earlier.last, results)
    runs = [*earlier.runs, history.run_of(results)]
    return {
        "since": earlier.last
        and f"{detail.date(earlier.last)}, commit {detail.commit(earlier.last)}",
        "summary": diff.summary(moved),
        "parts": diff.titled(moved),
        "rows": table.measured(results),
        "runs": [(detail.minute(run.created), run) for run in runs],
    }


def unstarted(title: str, what: str, parts: dict[str, list[str]]) -> str:
    """The page of a run that could not begin: why in one sentence, and parts by heading."""
    found = _template("unstarted")
    return str(found.render(headline=TITLE, title=title, what=what, parts=parts))


def section(name: str, results: Results) -> str:
    """One of :data:`SECTIONS`."""
    return _template(name).render(_view(results), session=None)


def _template(name: str) -> Any:
    return _environment().get_template(f"{name}.html.j2")


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
        words=words,
        table=table,
        detail=detail,
        definitions=execution.DEFINITIONS,
        source=_source,
        title=TITLE,
        sections=SECTIONS,
    )
    return environment


def _source(name: str) -> Any:
    """Our own CSS or JavaScript, as it is."""
    from markupsafe import Markup

    return Markup((_TEMPLATES / name).read_text(encoding="utf-8"))  # noqa: S704 (our own file)


def _view(results: Results) -> dict[str, Any]:
    requirements = sorted(
        results.requirements,
        key=lambda entry: _ORDER.get(entry.outcome_on_standin or entry.status, 3),
    )
    drawn = results.network
    return {
        "results": results,
        "standin": words.is_standin(results),
        "headline": outcome.headline(results),
        "figures": outcome.figures(results),
        "machine": outcome.machine(results),
        "milestone_titles": MILESTONES,
        "diagnoses": {name: diagnosis.of(results, name) for name in results.milestones},
        "shortfalls": {name: diagnosis.further(results, name) for name in results.milestones},
        "rows": table.rows(results),
        "size_note": table.size_note(results),
        "tuning_headers": tuning.HEADERS,
        "tuning": tuning.lines(results),
        "seeds_headers": seeds.HEADERS,
        "seeds": seeds.lines(results),
        "seeds_terms": seeds.terms(results),
        "speed_headers": speed.HEADERS,
        "speed": speed.lines(results),
        "speed_conditions": speed.conditions(results),
        "timed_columns": [c.key for c in table.columns(results) if c.key in table.SPEED],
        "tradeoff": speed_charts.tradeoff(results),
        "percentiles": speed_charts.percentiles(results),
        "reliability": reliability.curves(results),
        "recommendation": speed.recommendation(results),
        "same_weights": tuning.same_weights(results),
        "against_integers": execution.against_integers(results),
        "deployment": execution.before_deploying(results),
        "requirements": requirements,
        "thresholds": {
            "drop": FLAGGED_DROP_PP,
        },
        "delta_plot": charts.delta_plot(results),
        "plane": charts.plane(results),
        "timeline": timeline.timeline(results),
        "heat_map": detail.heat_map(results),
        "confusions": detail.confusions(results),
        "galleries": detail.galleries(results),
        "network": network.picture(results),
        "places": {layer.name: k for k, layer in enumerate(drawn.layers)} if drawn else {},
        "layers": layers.layers(results),
        "layer_terms": layers.terms(results.sensitivity) if results.sensitivity else None,
        "layer_legend": layers.LEGEND,
        "advanced": advanced.advanced(results),
        "recipes": detail.recipes(results),
        "tensors": detail.tensors(results),
        "environment": detail.environment(results),
    }
