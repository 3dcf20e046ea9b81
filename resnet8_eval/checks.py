"""One observation held against what was expected of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """A named comparison and its outcome.

    Attributes
    ----------
    name
        What was looked at.
    expected, observed
        Both sides in words.
    ok
        Whether they agree.
    """

    name: str
    expected: str
    observed: str
    ok: bool

    def as_dict(self) -> dict[str, Any]:
        """Built-in types, for a record."""
        return asdict(self)

    def __str__(self) -> str:
        mark = "ok" if self.ok else "FAILED"
        return f"{self.name}: expected {self.expected}, observed {self.observed} [{mark}]"


def equal(name: str, expected: object, observed: object) -> Check:
    """A check that holds when both sides are equal."""
    return Check(name, str(expected), str(observed), bool(expected == observed))


def at_most(name: str, limit: float, observed: float) -> Check:
    """A check that holds when `observed` is a number no larger than `limit`."""
    return Check(name, f"at most {limit:g}", f"{observed:.3g}", bool(observed <= limit))


def failed(checks: Iterable[Check]) -> list[Check]:
    """Those that do not hold."""
    return [check for check in checks if not check.ok]


def from_records(records: Iterable[dict[str, Any]]) -> list[Check]:
    """The checks that a record carries."""
    return [Check(**record) for record in records]
