"""What a configuration was computed in, and what to know of that before deploying it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import combinations
from typing import Final, NamedTuple

from resnet8_eval.record import Results
from resnet8_eval.report import table, words
from resnet8_eval.row_record import ConfigurationResult, Lowering

DEFINITIONS: Final = {
    "kernel": "in the runtime's integer kernels, which are what one would deploy on",
    "reference": "in float32, each operator between a dequantize and a quantize step, on the same "
    "8-bit numbers; it has the accuracy and the size of 8 bits, not their speed",
}
"""What the words under *execution* mean for a quantized model."""
_ONNX_OPERATORS: Final = {
    "convolutions": ("Conv", "QLinearConv"),
    "matrix products": ("Gemm", "QGemm"),
    "additions": ("Add", "QLinearAdd"),
}


class Note(NamedTuple):
    """Where a default session would not do what was measured: of which row, what, and why."""

    row: table.Row
    short: str
    more: str


def before_deploying(results: Results) -> list[Note]:
    """Notes on the quantized configurations: how else they may run, and on which processors."""
    notes = []
    for row, found in table.measured(results):
        if found.recipe is None:
            continue
        short, more = _left_in_float(found), ""
        if found.execution == "reference":
            short = f"It was computed {DEFINITIONS['reference']}."
            more = _lowered(found, found.lowering) if found.lowering else _refusals(found)
        elif found.recipe.runs_as:
            short = (
                f"It was measured with {words.plain(found.recipe.runs_as)}. Open it with "
                f"resnet8_eval.backends.onnxruntime.open_session, as this suite does. {short}"
            )
            more = _SIGNED_KERNELS
        if found.execution == "kernel" and found.weights_bits:
            short = f"{short.strip()} {_range(found)}"
        if short:
            notes.append(Note(row, short.strip(), more))
    return notes


def _range(found: ConfigurationResult) -> str:
    if found.needs:
        return (
            f"It needs {words.plain(found.needs)}: its signed weights have 8 bits, on which other "
            "x86 kernels saturate without a word and give other answers."
        )
    if found.weights_bits == 7:
        return "Its weights have 7 bits (±63), on which no x86 kernel can saturate."
    return "Its weights have 8 bits and are unsigned, on which no x86 kernel can saturate."


def against_integers(results: Results) -> list[str]:
    """How integer kernels compare with exact integers, row by row in one sentence."""
    told = [
        f"{row.title}: {held.disagreements} of {held.total} images of another class, scores within "
        f"{held.largest_difference:.1g}"
        for row, found in table.measured(results)
        if (held := found.exact_integers)
    ]
    return [f"Kernels held against exact integers. {'; '.join(told)}."] if told else []


def same_weights(results: Results) -> list[str]:
    """Sentences on rows that hold the same weights, so that nobody takes them for two findings."""
    groups: dict[str, list[ConfigurationResult]] = defaultdict(list)
    for entry in results.configurations:
        if entry.integers_sha256:
            groups[entry.integers_sha256].append(entry)
    return [_same(results, group) for group in groups.values() if len(group) > 1]


def _same(results: Results, group: list[ConfigurationResult]) -> str:
    by_framework: dict[str, list[str]] = defaultdict(list)
    for entry in group:
        by_framework[entry.framework].append(words.title(entry))
    said = [f"{words.listed([words.title(entry) for entry in group])} hold the same weights."]
    said += [
        f"{words.listed(alike)} are one measurement, not {len(alike)}."
        for alike in by_framework.values()
        if len(alike) > 1
    ]
    if len(by_framework) > 1:
        said.append("The frameworks differ in how they round biases and sums.")
    shares = [
        found.percent[found.rows.index(one.name)][found.rows.index(other.name)]
        for one, other in combinations(group, 2)
        if (found := results.agreement) and {one.name, other.name} <= set(found.rows)
    ]
    if shares:
        least, most = words.percent(min(shares)), words.percent(max(shares))
        both = least if least == most else f"{least} to {most}"
        said.append(f"Any two of them agree on {both} % of the images.")
    return " ".join(said)


def _lowered(found: ConfigurationResult, tried: Lowering) -> str:
    """What came of the framework's own lowering to integer kernels."""
    if tried.differing is None:
        return f"Its lowering to integer kernels failed: “{words.plain(tried.said)}”"
    return (
        f"Lowered to integer kernels by {words.framework(found)}'s own tool, it gave other answers "
        f"than the model itself on {tried.differing or 'none'} of {tried.images} images."
    )


_SIGNED_KERNELS: Final = (
    "The session option session.qdqisint8allowed alone keeps them in integers too, in kernels "
    "that take seven to ten times as long, depending on the processor (docs/performance.md)."
)


def _left_in_float(found: ConfigurationResult) -> str:
    """What a default session leaves in float, if it leaves something."""
    kernels = found.default_kernels or {}
    left = [
        f"{kernels[exact]} of {kernels[exact] + kernels.get(integer, 0)} {name}"
        for name, (exact, integer) in _ONNX_OPERATORS.items()
        if kernels.get(exact)
    ]
    return f"A default session leaves {words.listed(left)} in float." if left else ""


def _refusals(found: ConfigurationResult) -> str:
    """What each engine says to weights of this type."""
    if found.support is None or found.support.unsigned_weights:
        return ""
    engines: dict[str, list[str]] = {}
    for engine, answer in sorted(found.support.said.items()):
        engines.setdefault(words.plain(answer), []).append(words.plain(engine))
    answers = "; ".join(f"{', '.join(names)}: “{answer}”" for answer, names in engines.items())
    return (
        f"No engine of the installed {words.framework(found)} has integer kernels for its "
        f"weights. {answers}"
    )


def operators(found: ConfigurationResult) -> dict[str, str]:
    """How many operators read 8-bit tensors, how many float ones, and what they are computed in.

    Heading to text, counted in the same way for every framework.
    """
    census, told = found.census, {}
    if census and census.weights:
        eight = sum(dtype in {"int8", "uint8"} for dtype in census.weights.values())
        told["weighted layers with 8-bit weights"] = f"{eight} of {len(census.weights)}"
    reference = found.execution == "reference"
    told["operators on 8-bit tensors"] = _counted(census.quantized_ops if census else {})
    told["arithmetic on 8-bit tensors"] = (
        "float32, between dequantize and quantize steps" if reference else "integer kernels"
    )
    told["operators on float tensors"] = _counted(census.float_ops if census else {})
    return told


def _counted(operators: Mapping[str, int]) -> str:
    return f"{sum(operators.values())} ({words.said(operators)})" if operators else "none"
