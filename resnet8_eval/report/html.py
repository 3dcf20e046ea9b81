"""The report as HTML: one file, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Final

from resnet8_eval.record import Results
from resnet8_eval.report import session, words
from resnet8_eval.report.folder import Earlier
from resnet8_eval.report.render import render

SECTIONS: Final = ("verdict", "comparison", "requirements", "hurts", "made")


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
    more = {"session": found, "data": data, "earlier": earlier, "sections": SECTIONS}
    return render("page.html", results=results, standin=words.is_standin(results), **more)


def section(name: str, results: Results) -> str:
    """One of :data:`SECTIONS`."""
    standin = words.is_standin(results)
    return render(f"{name}.html", results=results, standin=standin, session=None)
