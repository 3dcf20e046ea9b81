"""One observation held against what was expected of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Final

MINUS: Final = "−"


@dataclass(frozen=True)
class Check:
    """A named comparison and its outcome, both sides in words."""

    name: str
    expected: str
    observed: str
    ok: bool

    def __str__(self) -> str:
        mark = "ok" if self.ok else "FAILED"
        return f"{self.name}: expected {self.expected}, observed {self.observed} [{mark}]"


def equal(name: str, expected: object, observed: object) -> Check:
    """A check that holds when both sides are equal."""
    return Check(name, said(expected), said(observed), bool(expected == observed))


def at_most(name: str, limit: float, observed: float) -> Check:
    """A check that holds when `observed` is a number no larger than `limit`.

    It is said in three digits, or in as many as it takes to read on its own side of the limit.
    """
    ok = bool(observed <= limit)
    texts = (f"{observed:.{digits}g}" for digits in range(3, 18))
    text = next(text for text in texts if (float(text) <= limit) == ok)
    return Check(name, f"at most {_with_minus(f'{limit:g}')}", _with_minus(text), ok)


def said(value: object) -> str:
    """A value of built-in types in plain writing, without Python's brackets or ``True``.

    Entries of a list that repeat are counted, as in ``10 × int8``.
    """
    if value is None or (isinstance(value, Mapping | list) and not value):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Real):
        return _with_minus(str(value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {said(value[key])}" for key in sorted(value))
    if isinstance(value, tuple):
        return f"({', '.join(map(said, value))})"
    if isinstance(value, list):
        runs = [(len(list(run)), text) for text, run in itertools.groupby(map(said, value))]
        return ", ".join(text if count == 1 else f"{count} × {text}" for count, text in runs)
    return str(value)


def _with_minus(number: str) -> str:
    return number.replace("-", MINUS)


def failed(checks: Iterable[Check]) -> list[Check]:
    """Those that do not hold."""
    return [check for check in checks if not check.ok]


def from_records(records: Iterable[dict[str, Any]]) -> list[Check]:
    """The checks that a record carries."""
    return [Check(**record) for record in records]
