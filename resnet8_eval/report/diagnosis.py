"""Why a verdict is not *met*: rules over the record, each with what to look at or to run next.

A rule says nothing where the record does not bear it out. What no rule explains is named with the
first evidence against it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from resnet8_eval import checks
from resnet8_eval.record import RequirementResult, Results, Sensitivity
from resnet8_eval.report import layers, weak_model, words
from resnet8_eval.requirements import MAX_OTHERS_PERCENT, NOTABLE_DROP_PP, ON_DEMAND
from resnet8_eval.row_record import ConfigurationResult, Status

BASELINE_CHECK: Final = "accuracy of the baseline that every delta is from"
EXACT_CHECK: Final = "images that kernels and exact integers class apart"
OTHERS_CHECK: Final = "share of the processor time that others took meanwhile, in percent"
SPEED_CHECK: Final = "least speed over float32 of both scenarios and thread counts"
"""What acceptance tests call these checks."""
_MOST: Final = 0.5
"""The share of a loss from which something explains most of it."""
_NAMED: Final = 5
"""Requirements that are named one by one."""
_NOT_RUN: Final = re.compile(r"^(Stage \S+ was not run, because \S+ could not be made\. )+")
_SELECTING: Final = ("-m", "-k", "--requirement", "--deselect", "--ignore", "--ignore-glob")
_SELECTING_ALONE: Final = frozenset(
    {"--lf", "--last-failed", "--sw", "--stepwise", "--sw-skip", "--stepwise-skip"}
)
_TEST: Final = re.compile(r"[^-].*\.py(::.*)?")
_WITH_A_VALUE: Final = frozenset({"-c", "-o", "-p", "-W", "--confcutdir", "--rootdir"})
"""What chooses among tests in a call of pytest, with a value and without; options whose value may
look like a test's file."""
_PLACES: Final = {
    1: "conversion.log, and the versions of tf2onnx and TensorFlow under “How it was made”",
    2: "the images and labels that were scored",
    3: "the version of onnx2torch under “How it was made”",
    4: "the images and labels that were scored",
    5: "the calibration images and how they are read",
    6: "the recipe, and the operators of the ONNX Runtime rows under “How it was made”",
    7: "the recipe, and the operators of the PyTorch rows under “How it was made”",
    8: "the comparison",
    "EVAL-05": "latency and throughput, and LoadGen's logs",
}
"""By phase of the requirement, or by its own name, what else to look at."""


@dataclass(frozen=True)
class Diagnosis:
    """One line under a verdict.

    Attributes
    ----------
    text
        What the record shows, in one or two sentences.
    anchor, place
        Where the report shows more: an id, and what stands there; None where nowhere does.
    command
        What to run next, if a command answers more.
    explains
        IDs of the requirements that fail for this reason.
    """

    text: str
    anchor: str | None = None
    place: str = ""
    command: str | None = None
    explains: frozenset[str] = frozenset()

    def __str__(self) -> str:
        """Without a link, as the terminal and JUnit show it."""
        return f"{self.text} Run: {self.command}" if self.command else self.text


def of(results: Results, milestone: str) -> list[Diagnosis]:
    """What explains the verdict on a milestone; also a large loss that no requirement forbids."""
    entries = [entry for entry in results.requirements if entry.milestone == milestone]
    failed = [e for e in entries if "not met" in (e.status, e.outcome_on_standin)]
    told = [found for rule in _RULES for found in rule(results, failed)]
    losses = list(_loss(results, entries, failed))
    told += [found for found in losses if found.explains]
    explained = frozenset[str]().union(*(found.explains for found in told))
    told += _first_evidence([entry for entry in failed if entry.id not in explained])
    told = told or _not_asked(results, milestone, entries)
    return [*told, *(found for found in losses if not found.explains)]


class Verdict(NamedTuple):
    """A verdict as it is told, on a milestone or on the gate.

    `lines`: what fell short and by how much, but for what the diagnoses say already.
    """

    name: str
    status: Status
    sentence: str
    diagnoses: Sequence[Diagnosis]
    lines: Sequence[str]


def verdicts(results: Results, *, failures_first: bool = False) -> list[Verdict]:
    """On each milestone, and on the gate where there is one."""
    told = []
    for name, milestone in results.milestones.items():
        causes = of(results, name)
        said = " ".join(cause.text for cause in causes)
        lines = [line for line in words.shortfalls(results, name) if line not in said]
        sentence = words.milestone(name, milestone)
        told.append(Verdict(name, milestone.verdict, sentence, causes, lines))
    if results.gate:
        sentence, *lines = words.gate(results)
        met: Status = "met" if results.gate.met else "not met"
        told.append(Verdict("gate", met, sentence, (), lines))
    return sorted(told, key=lambda one: failures_first and one.status != "not met")


Entries = Sequence[RequirementResult]
Rows = Sequence[ConfigurationResult]


def _not_made(results: Results, failed: Entries) -> Iterator[Diagnosis]:
    """A step that failed, and all that could not be measured for want of it."""
    roots: dict[str, list[str]] = {}
    for entry in failed:
        if entry.measured is None:
            said = _NOT_RUN.sub("", words.reason(entry)).removesuffix(words.SAID_ABOVE)
            cause = next((root for root in roots if root.startswith(said.rstrip(". "))), said)
            roots.setdefault(cause, []).append(entry.id)
    for said, ids in roots.items():
        named = words.listed(ids) if len(ids) <= _NAMED else f"{len(ids)} requirements"
        yield Diagnosis(
            f"{named} could not be measured: {said.rstrip('. ')}.",
            f"req-{ids[0]}",
            ids[0],
            explains=frozenset(ids),
        )


def _float32(results: Results, failed: Entries) -> Iterator[Diagnosis]:
    """Accuracy too low in float32: the model itself, or what conversion made of it."""
    low = [entry for entry in failed if entry.quantity == "accuracy" and entry.measured is not None]
    only_baseline = [entry for entry in failed if _broken([entry]) == {BASELINE_CHECK}]
    baseline, least = results.baseline, words.min_accuracy(results)
    if baseline is None or not (low or only_baseline):
        return
    floats = [
        row
        for row in results.configurations
        if row.recipe is None and row.name != baseline.configuration
    ]
    reason = frozenset(entry.id for entry in (*low, *only_baseline))
    if baseline.accuracy_percent <= least:
        whole = [row for row in floats if row.correct == baseline.correct]
        text = (
            f"The model itself is not above {least:g} %: {words.baseline(results)}. "
            + _lost_nothing(whole, floats)
        )
        text += " ".join(weak_model.reasons(results, baseline))
        yield Diagnosis(text, "comparison", "comparison", explains=reason)
        return
    for row in floats:
        if row.accuracy_percent > least:
            continue
        same = [words.title(one) for one in floats if one.correct == baseline.correct]
        beside = f", and {words.listed(same)} still as many" if same else ""
        lost = f"gets {row.correct} of {row.total} images right; Keras {baseline.correct}{beside}"
        yield Diagnosis(
            f"{words.title(row)} {lost}. Conversion lost the rest: look for a layer or a weight "
            f"that differs, in the structure checks of this milestone.",
            "comparison",
            "comparison",
            explains=frozenset(e.id for e in low if e.title.startswith(words.framework(row))),
        )


def _lost_nothing(whole: Rows, floats: Rows) -> str:
    if not whole:
        return ""
    alike = words.listed([words.framework(row) for row in whole])
    agreement = min(row.agreement_percent for row in whole)
    nothing = "Conversion lost nothing" if len(whole) == len(floats) else f"{alike} lost nothing"
    same = f"float32 in {alike} gets as many right, agreement {words.percent(agreement)} %"
    return f"{nothing}: {same}. "


def _kernels(results: Results, failed: Entries) -> Iterator[Diagnosis]:
    """Kernels that answer otherwise than exact integers do on the same stored numbers."""
    named = _broken(failed)
    parted = [
        (row, row.exact_integers)
        for row in results.configurations
        if row.exact_integers
        and row.exact_integers.disagreements
        and (f"{row.name}, {EXACT_CHECK}" in named or (failed and _is_off_by_kernels(row)))
    ]
    starts = tuple(f"{row.name}, " for row, _ in parted)
    reason = frozenset(
        entry.id
        for entry in failed
        if (broken := _broken([entry])) and all(name.startswith(starts) for name in broken)
    )
    for row, exact in parted:
        saturate = "saturate" in exact.probable_cause
        what = "saturate" if saturate else "do not compute what the model holds"
        text = (
            f"The kernels of {words.title(row)} {what}: they get {row.correct} of {row.total} "
            f"right, and the same integers computed exactly {exact.correct}. "
            f"Probable cause: {words.plain(exact.probable_cause)}."
        )
        yield Diagnosis(text, "recipes", "recipes", explains=reason)


def _is_off_by_kernels(row: ConfigurationResult) -> bool:
    """Whether exact integers give back most of what a row loses."""
    exact, lost = row.exact_integers, row.lost - row.gained
    return exact is not None and _is_off(row) and exact.correct - row.correct >= _MOST * lost


def _timing(results: Results, failed: Entries) -> Iterator[Diagnosis]:
    """Rows that were not timed in every session, and what disturbed them or made them slow."""
    timing = results.timing
    timed = [entry for entry in failed if entry.quantity.endswith("in both scenarios")]
    rows = [
        words.title(row)
        for row in results.configurations
        if not all([*(one.valid for one in row.latency), *(one.valid for one in row.throughput)])
    ]
    broken = _broken(timed)
    of_speed = all(name.endswith((OTHERS_CHECK, SPEED_CHECK)) for name in broken)
    if timing is None or not timed or not of_speed or not (rows or OTHERS_CHECK in broken):
        return
    why = ""
    if rows:
        told = words.titled(timing.told[0] if timing.told else "LoadGen says why in its logs")
        why = f"{words.listed(rows)} could not be timed in every session. {told.rstrip('.')}. "
    if timing.others_percent > MAX_OTHERS_PERCENT:
        share = f"{timing.others_percent:.0f} % of the machine"
        why += f"Other processes took {share} while speed was measured. "
    yield Diagnosis(
        f"{why}Measure again on an idle machine.",
        "speed",
        "latency and throughput",
        f"{words.plain(results.command)} --fresh-timing",
        frozenset(entry.id for entry in timed),
    )


_RULES: Final = (_not_made, _float32, _kernels, _timing)


def _loss(results: Results, entries: Entries, failed: Entries) -> Iterator[Diagnosis]:
    """Quantized rows that lose much: which have it in common, and which layer it comes from."""
    flagging = [entry for entry in entries if entry.quantity.startswith("configurations that drop")]
    rows = [row for row in results.configurations if row.recipe]
    off = [row for row in rows if _is_off(row) and not _is_off_by_kernels(row)]
    if not flagging or not off:
        return
    explains = frozenset(entry.id for entry in flagging if entry in failed)
    others = [row for row in rows if row not in off]
    if common := _in_common(off, rows):
        text = f"{common}. {_others(off, others)}"
        yield Diagnosis(text, "comparison", "comparison", explains=explains)
    # What a framework's own quantizer loses in each layer, no option measures.
    recipes = {words.recipe(row) for row in off} - {"stock"}
    if results.sensitivity and results.sensitivity.recipe in recipes:
        yield _one_layer(results.sensitivity, explains)
    elif recipes and not (results.sensitivity or recipes & {words.recipe(row) for row in others}):
        yield Diagnosis(
            f"{'' if common else f'{_worst(off)}. '}Which layer loses it was not measured.",
            command=f"{words.plain(results.command)} --layers",
            explains=explains,
        )
    elif not common:
        yield Diagnosis(f"{_worst(off)}.", "comparison", "comparison", explains=explains)


def _one_layer(measured: Sensitivity, explains: frozenset[str]) -> Diagnosis:
    costs, whole = measured.layers, measured.divergence_nats
    worst = max(costs, key=lambda cost: cost.divergence_recovered_nats)
    name = layers.short_names([cost.name for cost in costs])[worst.name]
    share = worst.divergence_recovered_nats / whole if whole else 0.0
    most = share >= _MOST and worst.divergence_recovered_ci95_nats[0] > 0
    return Diagnosis(
        f"{'One' if most else 'No single'} layer explains most of the loss. {name}, "
        f"{'' if most else 'the most costly, '}left alone in float takes {100 * share:.0f} % of "
        "the divergence from float32 away; quantized alone it agrees with float32 on "
        f"{words.percent(worst.agreement_alone_percent)} % of {measured.images} training images.",
        f"layer-{costs.index(worst)}",
        f"layer {name}",
        explains=explains,
    )


def _in_common(off: Rows, rows: Rows) -> str | None:
    """What tells the rows that are off from all others; None where nothing does."""
    if len(off) == len(rows):
        return None
    if len(off) == 1:
        return f"{words.title(off[0])} alone is off, by {words.signed(off[0].delta_pp)} pp"
    kinds: tuple[Callable[[ConfigurationResult], str], ...] = (
        words.framework,
        words.recipe,
        lambda row: words.plain(row.dtype),
        lambda row: words.plain(row.execution),
    )
    for kind in kinds:
        values = {kind(row) for row in off}
        if len(values) == 1 and len([row for row in rows if kind(row) in values]) == len(off):
            return f"Only the {values.pop()} rows are off. {_worst(off)}"
    return None


def _worst(off: Rows) -> str:
    worst = min(off, key=lambda row: row.delta_pp)
    return f"{words.title(worst)} is off by {words.signed(worst.delta_pp)} pp"


def _others(off: Rows, others: Rows) -> str:
    """What the other rows say: that the network survives 8 bits, and whether the weights do."""
    most = max(-min(row.delta_pp for row in others), 0.0)
    said = f"The other quantized rows ({len(others)}) lose at most {most:.2f} pp"
    held = {row.integers_sha256 for row in off if row.integers_sha256}
    twins = [words.title(row) for row in others if row.integers_sha256 in held]
    if twins:
        hold = "holds" if len(twins) == 1 else "hold"
        same = f"{words.listed(twins)} {hold} the same weights"
        return f"{said}; {same}, so look at how the framework writes or runs them."
    return f"{said}, so look at what is done otherwise here."


def _first_evidence(failed: Entries) -> Iterator[Diagnosis]:
    """What no rule explains: the first check of it that does not hold, and where to look."""
    if not failed:
        return
    first, others = failed[0], len(failed) - 1
    more = f", the first of {others + 1} that fail" if others else ""
    broken = checks.failed(first.evidence)
    said = words.check(broken[0]).removeprefix("BROKEN: ") if broken else words.shortfall(first)
    place = _PLACES.get(first.id) or _PLACES.get(first.phase, "its test")
    yield Diagnosis(
        f"{first.id}{more}: {said}. Look at {place}.",
        f"req-{first.id}",
        first.id,
        explains=frozenset(entry.id for entry in failed),
    )


def _not_asked(results: Results, name: str, entries: Entries) -> list[Diagnosis]:
    """A verdict that is not *met* because something was not run."""
    called = words.plain(results.command)
    asked = {entry.id for entry in entries} & set(results.selected)
    if results.milestones[name].verdict == "met" or (name in ON_DEMAND and not asked):
        return []
    outcomes = [entry.outcome_on_standin or entry.status for entry in entries]
    absent = outcomes.count("not evaluated")
    if results.stopped and absent and (asked or not results.selected):
        by = words.plain(results.stopped)
        said = (
            f"The run was ended by {by}; {absent} of {len(entries)} requirements were not reached."
        )
        return [Diagnosis(said, command=called)]
    if words.is_standin(results):
        command = _asking_for(words.plain(name), called, "--assets")
        return [Diagnosis("The stand-in gives no verdict.", command=f"{command} --assets real")]
    command = _asking_for(words.plain(name), called)
    return [Diagnosis(f"{absent} of {len(entries)} requirements were not run.", command=command)]


def _asking_for(milestone: str, command: str, *without: str) -> str:
    """A call of pytest with another selection: the same package, model and settings."""
    try:
        given = shlex.split(command)
        name, _, options = given[0].partition("=")
        addopts = shlex.split(options) if name == words.ADDOPTS else None
    except (ValueError, IndexError):  # half a quotation, or nothing: any program may write records
        given, addopts = ["pytest"], None
    left_out = (*_SELECTING, *without)
    called = _but(left_out, given if addopts is None else given[1:])
    return words.call([*called, "-m", milestone], shlex.join(_but(left_out, addopts or [])))


def _but(left_out: Sequence[str], given: Sequence[str]) -> list[str]:
    """The words of a call without these options and the tests that it names."""
    kept, before = [], ""
    for word in given:
        name, attached, _ = word.partition("=")
        selects = name in left_out or word[:2] in _SELECTING or word in _SELECTING_ALONE
        is_test = _TEST.fullmatch(word) and before not in _WITH_A_VALUE
        if before not in left_out and not selects and not is_test:
            kept.append(word)
        before = "" if attached or before in left_out else word
    return kept


def _is_off(row: ConfigurationResult) -> bool:
    return row.recipe is not None and row.delta_pp < -NOTABLE_DROP_PP


def _broken(failed: Entries) -> set[str]:
    """The names of checks that do not hold."""
    return {check.name for entry in failed for check in checks.failed(entry.evidence)}
