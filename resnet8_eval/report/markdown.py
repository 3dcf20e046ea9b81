"""The report as Markdown: the comparison by itself, a summary for a CI job, and two runs."""

from __future__ import annotations

from resnet8_eval.record import Results
from resnet8_eval.report import table
from resnet8_eval.report.render import render


def comparison(results: Results) -> str:
    """The comparison table, below all that a reader needs to know about the run."""
    return _text("comparison", results)


def summary(results: Results) -> str:
    """The report, shortened: verdicts, what is not met, the comparison."""
    return _text("summary", results)


def difference(old: Results, new: Results) -> str:
    """Hold two runs against each other.

    Parameters
    ----------
    old, new
        What two runs found. Where both keep which test images a configuration gets right
        (``right_base64``), its accuracies are compared image by image.

    Returns
    -------
    str
        Verdicts, requirements, accuracies, what the comparison says of them, recipes, versions and
        fingerprints, of each only what differs. Durations and cache hits are left out.
    """
    return render("difference.md", old=old, new=new)


def _text(template: str, results: Results) -> str:
    # What decides stands where a narrow page shows it.
    first = [table.BY_KEY[key] for key in ("framework", "dtype", "recipe", "word", "flag")]
    left_out = [*first, table.BY_KEY["title"], table.BY_KEY["interval"]]
    columns = [*first, *(c for c in table.columns(results) if c not in left_out)]
    return render(f"{template}.md", results, columns=columns)
