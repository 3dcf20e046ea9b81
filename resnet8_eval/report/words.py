"""Numbers and verdicts in words, the same in every form of the report."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Final

from resnet8_eval import checks
from resnet8_eval.checks import Check
from resnet8_eval.configurations import CONFIGURATIONS, FRAMEWORKS
from resnet8_eval.record import Milestone, RequirementResult, Results
from resnet8_eval.requirements import (
    EQUIVALENCE_MARGIN_PP,
    MIN_ACCURACY_PERCENT,
    ON_DEMAND,
    condition,
)
from resnet8_eval.row_record import ConfigurationResult, ExpectedRow, Recipe, Spread

MINUS: Final = checks.MINUS
NOTHING: Final = "–"
"""Stands where there is no number."""
_FRAMEWORKS: Final = {str(key): name for key, name in FRAMEWORKS.items()}
_MOST: Final = 6
"""Broken checks that a shortfall names: each configuration besides the baseline may have one."""
SAID_ABOVE: Final = " (said in full above)"
STANDIN_TITLE: Final = "STAND-IN RUN: NOT A VERDICT"
_STANDIN_TEXT: Final = (
    "Model and images are the small stand-ins that come with the suite, not the pretrained ResNet8 "
    "and not CIFAR-10. Nothing here says how the real model does, and no milestone can be met. "
    "Every delta is from the stand-in's own float32 baseline."
)
_STANDIN_IMAGES_TEXT: Final = (
    "The images are the small stand-ins that come with the suite, not CIFAR-10. Nothing here says "
    "how the model does on CIFAR-10, and no milestone can be met."
)
INCOMPLETE_TEXT: Final = (
    "This run is not complete: it ended early, or its numbers do not settle every requirement of "
    "all milestones."
)


UNCORRECTED: Final = "McNemar p, uncorrected"
STATISTICS: Final = (
    "The interval of a delta is Tango's score interval for paired proportions. A row is equivalent "
    f"if two one-sided tests at 2.5 % each, with a margin of ±{EQUIVALENCE_MARGIN_PP:g} pp, find "
    "it so: the whole interval lies within the margin. If it also leaves zero out, the row reads "
    "equivalent, lower or equivalent, higher. Otherwise a row is degraded (all of the interval "
    "below zero), improved (all above) or inconclusive. McNemar's test is exact and two-sided, and "
    "not corrected for the number of rows. Intervals and tests cover the choice of test images, "
    "and not that of calibration images: each row is one calibration (pytest --seeds 5 makes more)."
)
"""What the figures of the comparison rest on."""


ADDOPTS: Final = "PYTEST_ADDOPTS"
"""The environment variable whose options pytest puts in front of those that it is given."""


def call(words: Sequence[str], addopts: str = "") -> str:
    """A call of pytest as one would type it, with what :data:`ADDOPTS` holds."""
    before = f"{ADDOPTS}={shlex.quote(addopts)} " if addopts else ""
    return before + shlex.join(words)


def median(found: Spread | None, digits: int) -> str:
    """A figure that was measured in rounds."""
    return NOTHING if found is None else f"{found.median:.{digits}f}"


def min_accuracy(results: Results) -> float:
    """What the baseline must exceed in this run, in percent."""
    stated = results.assets.min_accuracy_percent
    return MIN_ACCURACY_PERCENT if stated is None else stated


def user_model(results: Results) -> str:
    """What a run says that judges a model of the user's; nothing for the pretrained one."""
    if not results.assets.user_model:
        return ""
    said = (
        "This run judges a model of the user's, not the pretrained one. The baseline is that "
        "model's own float32 accuracy, measured in this run."
    )
    least = min_accuracy(results)
    if least != MIN_ACCURACY_PERCENT:
        said += (
            f" It must exceed {least:g} %, as --min-accuracy says, instead of "
            f"{MIN_ACCURACY_PERCENT:g} %."
        )
    how = results.assets.preprocessing
    if how is not None:
        said += (
            f" It is fed pixels as --preprocessing {plain(how.name)} says: times {how.scale:.6g}, "
            f"less {_three(how.mean)}, over {_three(how.std)}, {how.channels}."
        )
    if results.preprocessings and results.preprocessings.hint:
        said += f" Hint: {plain(results.preprocessings.hint)}"
    return said


def _three(values: Sequence[float]) -> str:
    shown = [f"{value:.6g}" for value in values]
    return f"({', '.join(shown)})" if len({*shown}) > 1 else shown[0]


def standin(results: Results) -> str:
    """What a run on the stand-in says: a model of the user's is none, but the images are."""
    return _STANDIN_IMAGES_TEXT if results.assets.user_model else _STANDIN_TEXT


def incomplete(results: Results) -> str:
    """What an incomplete run leaves open; an empty string for a complete one."""
    if results.complete:
        return ""
    if results.stopped:
        return (
            f"This run was ended by {plain(results.stopped)}. What it had not reached is not "
            "evaluated."
        )
    asked, every = set(results.selected), due(results)
    settled = {entry.id for entry in every if entry.measured is not None}
    if asked and len(asked) < len(every) and asked <= settled:
        return (
            f"This run was asked for {len(asked)} of {len(every)} requirements, and says nothing "
            "of the others."
        )
    return INCOMPLETE_TEXT


def due(results: Results) -> list[RequirementResult]:
    """The requirements that a run answers for: all, but for those on demand that it did not ask."""
    return [
        entry
        for entry in results.requirements
        if entry.milestone not in ON_DEMAND or entry.id in results.selected
    ]


def plain(text: object) -> str:
    """Text from outside as one line without control characters."""
    return " ".join(
        "".join("�" if unicodedata.category(c) in {"Cc", "Cf"} else c for c in word)
        for word in str(text).split()
    )


def said(value: object) -> str:
    """A value of unknown shape, as one line."""
    return plain(checks.said(value))


def percent(value: float | None, digits: int = 2) -> str:
    """Such as ``87.19``.

    A mean over seeds has three decimals: with two, it and its delta can be rounded apart.
    """
    return NOTHING if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 2) -> str:
    """With its sign, such as ``+0.12``, ``−0.30`` or ``±0.00``."""
    if value is None:
        return NOTHING
    size = f"{abs(value):.{digits}f}"
    if float(size) == 0:
        return f"±{size}"
    return f"{'+' if value > 0 else MINUS}{size}"


def accuracy_interval(limits: Sequence[float]) -> str:
    """Limits in percent, such as ``86.52 to 87.83``."""
    return f"{limits[0]:.2f} to {limits[1]:.2f}"


def delta_interval(limits: Sequence[float] | None) -> str:
    """Limits in percentage points, such as ``−0.12 to +0.35``."""
    if limits is None:
        return NOTHING
    low, high = (signed(limit, delta_digits(limits)) for limit in limits)
    return f"{low} to {high}"


def delta_digits(limits: Sequence[float]) -> int:
    """Decimals with which limits of a delta show the verdict that they led to."""
    return digits(limits, (-EQUIVALENCE_MARGIN_PP, 0.0, EQUIVALENCE_MARGIN_PP))


def digits(values: Sequence[float], marks: Sequence[float], least: int = 2) -> int:
    """The fewest decimals, ten at most, that round no value onto a mark that it misses."""
    pairs = [(value, mark) for value in values for mark in marks if value != mark]
    fine = (n for n in range(least, 10) if all(round(value, n) != mark for value, mark in pairs))
    return next(fine, 10)


def p_value(value: float | None) -> str:
    """Three decimals, and never a bare zero."""
    if value is None:
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def kilobytes(size: int) -> str:
    """In units of 1000 bytes, one decimal."""
    return f"{size / 1000:.1f}"


def seconds(value: float) -> str:
    """One decimal, and never a bare zero."""
    return "< 0.1" if value < 0.05 else f"{value:.1f}"


def figure(value: float, form: str = "g") -> str:
    """As a format has it, with the typographic minus."""
    return f"{value:{form}}".replace("-", MINUS)


def number(value: float, unit: str = "", digits: int = 2) -> str:
    """So many decimals for percent, else as many digits as it has (ten at most)."""
    return figure(value, f".{digits}f" if unit == "%" else ".10g")


def with_unit(text: str, unit: str) -> str:
    """A number and its unit, if it has one; one thing is no plural."""
    unit = unit.removesuffix("s") if text.lstrip(f"+{MINUS}") == "1" else unit
    return f"{text} {unit}" if unit else text


def listed(names: Sequence[str]) -> str:
    """Such as ``a, b and c``; with semicolons where a name has a comma of its own."""
    if len(names) > 2 and any(", " in name for name in names):
        return f"{'; '.join(names[:-1])}; and {names[-1]}"
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def framework(row: ExpectedRow | ConfigurationResult) -> str:
    """Such as ``ONNX Runtime``."""
    return plain(_FRAMEWORKS.get(row.framework, row.framework))


def recipe(row: ExpectedRow | ConfigurationResult) -> str:
    """The name of its recipe; :data:`NOTHING` for a float32 row."""
    found = row.recipe.name if isinstance(row.recipe, Recipe) else row.recipe
    return plain(found) if found else NOTHING


def title(row: ExpectedRow | ConfigurationResult) -> str:
    """Such as ``Keras float32`` or ``ONNX Runtime int8, tuned``."""
    cell = f"{framework(row)} {plain(row.dtype)}"
    return f"{cell}, {recipe(row)}" if row.recipe else cell


WEIGHTS_RANGE: Final = "Weights: run exactly on"
"""Heading of what :func:`weights_range` says."""
_TITLES: Final = {row.name: title(ExpectedRow.of(row)) for row in CONFIGURATIONS}
_A_ROW: Final = re.compile("|".join(sorted(_TITLES, key=len, reverse=True)))


def titled(text: str) -> str:
    """A sentence in which rows go by their titles, not by their names."""
    return _A_ROW.sub(lambda found: _TITLES[found[0]], plain(text))


def runs_on(row: ConfigurationResult) -> str:
    """The x86 processors on which its kernels cannot saturate; :data:`NOTHING` if not known."""
    if row.weights_bits is None:
        return NOTHING
    return f"x86 with {plain(row.needs)}" if row.needs else "any x86"


def weights_range(row: ConfigurationResult) -> str:
    """The range of its 8-bit weights and where it runs exactly, such as ``7 bits: any x86``."""
    return NOTHING if row.weights_bits is None else f"{row.weights_bits} bits: {runs_on(row)}"


def title_of(results: Results, name: str) -> str:
    """The title of a row of a complete run, by its name."""
    return next((title(row) for row in results.expected if row.name == name), plain(name))


def baseline(results: Results) -> str:
    """The baseline, such as ``87.19 % (8719/10000, Keras float32)``."""
    found = results.baseline
    if found is None:
        return "not measured"
    where = title_of(results, found.configuration)
    where += " on the stand-in" if is_standin(results) else ""
    return f"{percent(found.accuracy_percent)} % ({found.correct}/{found.total}, {where})"


def is_standin(results: Results) -> bool:
    """Whether the run says nothing about the real model."""
    return results.assets.kind == "stand-in"


def failures_first(results: Results) -> list[RequirementResult]:
    """Every requirement: those that are not met, those that are, and the others."""
    order = ("not met", "met", "not evaluated")
    return sorted(
        results.requirements,
        key=lambda entry: order.index(entry.outcome_on_standin or entry.status),
    )


def measured(requirement: RequirementResult) -> str:
    """What was measured, with its unit."""
    value = requirement.measured
    if value is None:
        return NOTHING
    return with_unit(number(value, requirement.unit, decimals(requirement)), requirement.unit)


def decimals(requirement: RequirementResult) -> int:
    """Two, and more where two would round a number onto the threshold that it misses."""
    return digits([requirement.measured or 0.0], [requirement.threshold])


def required(requirement: RequirementResult) -> str:
    """The condition, such as ``> 85 %``."""
    return condition(requirement.direction, requirement.threshold, requirement.unit)


def margin(requirement: RequirementResult) -> str:
    """How far the measured number lies on the good side of the threshold, such as ``+2.19 pp``."""
    value, unit = requirement.margin, requirement.unit
    if value is None:
        return NOTHING
    if unit == "%":
        return f"{signed(value, decimals(requirement))} pp"
    sign = "+" if value > 0 else "" if value else "±"
    return with_unit(f"{sign}{number(value)}", unit)


def judged(requirement: RequirementResult) -> str:
    """Measured, required and margin in one line."""
    return (
        f"{plain(requirement.quantity)}: measured {measured(requirement)}, "
        f"required {required(requirement)}, margin {margin(requirement)}"
    )


def milestone(name: str, found: Milestone) -> str:
    """One sentence, such as ``v1_2 met: 12 of 12 requirements``."""
    name = plain(name)
    if found.verdict == "not evaluated":
        return f"{name} not evaluated: {plain(found.reason or 'not part of this run')}"
    plural = "" if found.total == 1 else "s"
    return f"{name} {found.verdict}: {found.met} of {found.total} requirement{plural}"


def worst_deltas(results: Results) -> dict[str, float]:
    """The lowest delta of each row over calibration seeds; empty without them."""
    return {row.name: row.delta_pp.worst for row in results.seeds.rows} if results.seeds else {}


def gate(results: Results) -> list[str]:
    """What ``--gate`` demanded and whether it is so, then each row that fails; [] without one."""
    found = results.gate
    if found is None:
        return []
    demanded, wanted = "equivalent", "equivalent to the baseline"
    if not isinstance(found.demand, str):
        demanded = f"{found.demand:g}"
        wanted = f"no more than {demanded} pp below the baseline"
    count = f"{len(found.rows) - len(found.failing)} of {len(found.rows)}"
    where = " on the stand-in" if is_standin(results) else ""
    worst = worst_deltas(results)
    seeds = f" with each of {len(results.seeds.seeds)} calibration seeds" if results.seeds else ""
    said = [
        f"gate {'met' if found.met else 'not met'}{where}: {count} rows {wanted}{seeds} "
        f"(--gate {demanded}; stock rows are not judged)"
    ]
    rows = {row.name: row for row in results.configurations}
    for name in found.failing:
        row = rows.get(name)
        why = f"{row.word}, {signed(row.delta_pp)} pp" if row else "not evaluated"
        if row and row.delta_ci95_pp:
            why += f" ({delta_interval(row.delta_ci95_pp)})"
        if name in worst:
            why += f"; worst of its seeds {signed(worst[name])} pp"
        said.append(f"{title_of(results, name)}: {why}")
    return said


def shortfalls(results: Results, name: str) -> Iterator[str]:
    """Which requirements of a milestone that is not met failed, and by how much.

    What was not measured is left to the diagnosis.
    """
    if results.milestones[name].verdict != "not met":
        return
    asked = [entry for entry in results.requirements if entry.milestone == name]
    for entry in asked:
        if entry.status == "not met" and entry.measured is not None:
            yield f"{plain(entry.id)}: {shortfall(entry)}"
    absent = [plain(entry.id) for entry in asked if entry.status == "not evaluated"]
    if absent:
        yield f"not run: {', '.join(absent)}"


def shortfall(requirement: RequirementResult) -> str:
    """Why a requirement is not met: by how much, and which checks do not hold."""
    parts = []
    if requirement.measured is not None and not _reaches(requirement):
        parts.append(judged(requirement))
    broken = checks.failed(requirement.evidence)
    parts += [check(found).removeprefix("BROKEN: ") for found in broken[:_MOST]]
    if len(broken) > _MOST:
        parts.append(f"and {len(broken) - _MOST} more")
    return "; ".join(parts) or reason(requirement)


def reason(requirement: RequirementResult) -> str:
    """The recorded reason, without the requirement's own name in front."""
    found = plain(requirement.reason or "no reason was recorded")
    return found.removeprefix(f"{plain(requirement.id)} not met: ")


def check(found: Check) -> str:
    """One line of evidence."""
    name, observed = check_name(found), plain(found.observed)
    if found.ok and found.expected == found.observed:
        return f"holds: {name}: {observed}, as expected"
    mark = "holds" if found.ok else "BROKEN"
    return f"{mark}: {name}: expected {plain(found.expected)}, observed {observed}"


def check_name(found: Check) -> str:
    """What was looked at, with a row called by its title."""
    seed, row, what = check_parts(found)
    return f"{seed}{_TITLES[row]}: {what}" if what and row in _TITLES else plain(found.name)


def check_parts(found: Check) -> tuple[str, str, str]:
    """The further calibration seed, the row, and what was looked at, as far as a check names it."""
    name, _, what = plain(found.name).partition(", ")
    seed, colon, row = name.rpartition(": ")
    return seed + colon, row, what


def _reaches(requirement: RequirementResult) -> bool:
    found, strict = requirement.margin, requirement.direction in (">", "<")
    return found is not None and (found > 0 or (found == 0 and not strict))
