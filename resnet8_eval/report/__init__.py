"""From results.json to HTML, Markdown, CSV and the terminal: pure functions, no model code.

The same results give the same bytes, and ``results.json`` alone is enough.
"""

from __future__ import annotations

import os
from pathlib import Path

from resnet8_eval import results as results_json
from resnet8_eval.record import Results
from resnet8_eval.report import markdown, table


def publish(results: Results, folder: Path) -> None:
    """Write results.json, comparison.csv and .md, and summary.md, each whole or not at all.

    The folder is made if it is not there. ResultsError if a number is NaN or infinite; nothing is
    written then.
    """
    texts = {
        "results.json": results_json.encode(results),
        "comparison.csv": table.to_csv(results),
        "comparison.md": markdown.comparison(results),
        "summary.md": markdown.summary(results),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        written(folder / name, text)


def written(path: Path, text: str) -> None:
    """Write a file, whole or not at all; an OSError names it."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        partial.replace(path)
    except OSError as error:
        error.filename = str(path)  # a full disk names no file, and nobody knows the partial one
        raise
    finally:
        partial.unlink(missing_ok=True)
