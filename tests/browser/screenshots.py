"""Take the screenshots that the documentation shows.

``python -m tests.browser.screenshots reports/results.json docs`` writes ``report-desk-light.png``,
``report-desk-dark.png``, ``report-phone-light.png`` and ``report-phone-dark.png``. The gallery of
test images is left out: no picture of CIFAR-10 is committed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import msgspec

from resnet8_eval.report import html
from resnet8_eval.results import read
from tests.browser import browser


def take(results_path: Path, folder: Path) -> None:
    """Render results without the gallery, and look at them at a desk and on a phone."""
    missing = browser.missing()
    if missing:
        raise SystemExit(missing)
    results = read(results_path)
    rows = [msgspec.structs.replace(found, changed=()) for found in results.configurations]
    results = msgspec.structs.replace(results, configurations=tuple(rows))
    folder.mkdir(parents=True, exist_ok=True)
    with browser.chromium() as driver, tempfile.TemporaryDirectory() as room:
        page = Path(room) / "report.html"
        page.write_text(html.page(results), encoding="utf-8")
        for place, width, height in (("desk", 1280, 1750), ("phone", 390, 1900)):
            for dark in (False, True):
                browser.look(driver, width, dark=dark)
                driver.get(page.as_uri())
                name = f"report-{place}-{'dark' if dark else 'light'}.png"
                browser.picture(driver, folder / name, height)


if __name__ == "__main__":
    take(Path(sys.argv[1]), Path(sys.argv[2]))
