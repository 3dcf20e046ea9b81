"""From results.json to HTML, Markdown, CSV and the terminal: pure functions, no model code.

The same results give the same bytes, and ``results.json`` alone is enough.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from resnet8_eval.report import markdown, table
from resnet8_eval.report.words import Results

__all__ = ["Results", "publish"]


def publish(results: Results, folder: Path) -> None:
    """Write results.json, comparison.csv and comparison.md, each whole or not at all.

    Parameters
    ----------
    results
        What the run found, in the form of ``results.schema.json``.
    folder
        Where they go; made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = json.dumps(results, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    for name, text in {
        "results.json": f"{record}\n",
        "comparison.csv": table.to_csv(results),
        "comparison.md": markdown.comparison(results),
    }.items():
        _write(folder / name, text)


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
