"""Headless Chromium: started without ever reaching for the network, and how it looks at a page."""

from __future__ import annotations

import base64
import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

ARGUMENTS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
DESK: Final = 1280
PHONE: Final = 360


def missing() -> str | None:
    """What is absent, in words; None if a browser can be started."""
    if importlib.util.find_spec("selenium") is None:
        return "Selenium is absent: pip install selenium"
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            return f"{program} is absent: apt-get install chromium chromium-driver"
    return None


@contextmanager
def chromium() -> Iterator[Any]:
    """Chromium with a profile of its own, which goes when it goes."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = Service(str(shutil.which("chromedriver")))
        driver = webdriver.Chrome(options=options, service=service)
        try:
            yield driver
        finally:
            driver.quit()


def look(driver: Any, width: int = DESK, *, dark: bool = False) -> None:
    """Set the width of the window in pixels, and the theme."""
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    features = [
        {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
        {"name": "prefers-reduced-motion", "value": "reduce"},  # nothing glides while we click
    ]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def unfold(driver: Any) -> None:
    """Open everything that is folded away."""
    driver.execute_script("for (const e of document.querySelectorAll('details')) e.open = true;")


def picture(driver: Any, path: Path, height: int | None = None) -> None:
    """Write the page as a PNG: all of it, or its first `height` pixels."""
    width, full = driver.execute_script(
        "return [innerWidth, document.documentElement.scrollHeight]"
    )
    clip = {"x": 0, "y": 0, "width": width, "height": min(height or full, full), "scale": 1}
    found = driver.execute_cdp_cmd(
        "Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip}
    )
    path.write_bytes(base64.b64decode(found["data"]))
