"""Write the versions that are installed here into constraints.txt.

What is named there with a reason stays where it is; the rest is what pip resolved for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Final

FILE: Final = Path(__file__).parents[1] / "constraints.txt"
RESOLVED: Final = "# --- what pip resolved for them ---\n"
_PIN: Final = re.compile(r"^([\w.-]+)==(\S+)", re.MULTILINE)


def normal(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text: str) -> dict[str, str]:
    """The version of each distribution, by its normal name."""
    return {normal(name): version for name, version in _PIN.findall(text)}


def updated(text: str, installed: Mapping[str, str]) -> str:
    """The text with other versions.

    Parameters
    ----------
    text
        constraints.txt.
    installed
        Versions of all distributions, by the name that each gives itself.
    """
    versions = {normal(name): version for name, version in installed.items()}
    reasoned = text.partition(RESOLVED)[0]
    rest = {name: v for name, v in installed.items() if normal(name) not in pins(reasoned)}
    lines = [f"{name}=={rest[name]}\n" for name in sorted(rest, key=normal)]
    reasoned = _PIN.sub(
        # What builds the package is installed for that moment alone.
        lambda pin: f"{pin[1]}=={versions.get(normal(pin[1]), pin[2])}",
        reasoned,
    )
    return reasoned + RESOLVED + "".join(lines)


def main() -> None:
    found = {
        entry.name: entry.version.partition("+")[0]  # without the build: 2.13.0+cpu meets 2.13.0
        for entry in metadata.distributions()
        if normal(entry.name) not in ("pip", "resnet8-eval")
    }
    FILE.write_text(updated(FILE.read_text(encoding="utf-8"), found), encoding="utf-8")


if __name__ == "__main__":
    main()
