"""How fast each stored model runs, measured with MLCommons LoadGen (EVAL-05).

Each framework runs in a process of its own, one for each number of threads, and LoadGen runs in
that process. Rows take turns, round by round, so that a machine that drifts moves all of them
alike, and a row is compared with float32 of its framework in the same round.
"""

from __future__ import annotations

import functools
import itertools
import json
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np

from resnet8_eval import backends, lanes
from resnet8_eval.backends import Execution, Session
from resnet8_eval.evaluate import difference
from resnet8_eval.loadgen import SCENARIOS, Scenario, load_test
from resnet8_eval.preprocess import Feed, Preprocessing, Scores, preprocess
from resnet8_eval.requirements import (
    ANSWERED_IMAGES,
    MAX_OTHERS_PERCENT,
    MIN_QUERIES,
    PARITY_ATOL,
)
from resnet8_eval.store import Record, file_sha256

MAX_WAITING: Final = 0.25
"""How much more of the time than the busiest row a one-thread row may be off the processor."""
TRIES: Final = 3
"""How often a run is taken, until it counts: a busy machine spoils one now and then."""


@dataclass(frozen=True)
class Plan:
    """How much is measured: turns of each row, length of a LoadGen run, Offline's batch sizes."""

    rounds: int = 5
    seconds: float = 0.08
    batches: tuple[int, ...] = (8, 32, 128)


@dataclass(frozen=True)
class Target:
    """One stored model.

    `path` and `execution` are as :func:`resnet8_eval.backends.scores` takes them; `scores` is a
    ``.npy`` file of those that the evaluation found, float32 (N, 10); `float32` names the row that
    its speed is compared with.
    """

    name: str
    framework: str
    path: Path
    execution: Execution
    scores: Path
    float32: str


def measure(
    targets: Sequence[Target],
    images: Feed,
    out: Path,
    *,
    threads: Iterable[int],
    logs: Path,
    plan: Plan = Plan(),
    announce: Callable[[str], None] = lambda _: None,
) -> Record:
    """Measure stored models, in turn, on images whose scores are known.

    Parameters
    ----------
    out
        A folder, for LoadGen's own logs in ``loadgen.zip``.
    threads
        Numbers of threads to measure with.
    logs
        Folder for what native code writes to standard error.
    announce
        Told one line as each part begins.

    Returns
    -------
    dict
        As :func:`summarize`, with ``loadgen`` (its version) and, in each entry of ``rows``,
        ``answers``, from LoadGen's accuracy mode in each session that was timed, with its best
        batch: ``images``, how many every session answered; ``disagreements`` with the evaluation's
        classes, in all; and the ``largest_difference`` of the scores. ``parity`` holds these scores
        against the evaluation's. ``sessions`` says what each was, once it had been timed, in the
        order of `threads`: how many ``threads`` its framework says it has, and the
        ``model_sha256`` of the file that it was opened from.
    """
    counts = sorted(set(threads))
    runs: list[Record] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=out)))
        kept, given = folder / "kept", (folder / "images.npy", images.preprocessing)
        np.save(given[0], images.pixels)
        chosen = np.linspace(0, len(images) - 1, min(ANSWERED_IMAGES, len(images))).astype(int)
        few = (folder / "few.npy", images.preprocessing)
        np.save(few[0], images.pixels[chosen])
        crew: dict[tuple[str, int], Any] = {}
        for key in dict.fromkeys((target.framework, n) for n in counts for target in targets):
            crew[key] = lanes.open_lane(*key, logs)
            stack.callback(crew[key].shutdown, kill_workers=True)

        def ask(call: Callable[..., Any], target: Target, n: int, *words: Any, **named: Any) -> Any:
            model = (target.path, n, target.execution)
            return crew[target.framework, n].submit(call, model, *words, **named)

        sessions = [(target, n) for n in counts for target in targets]
        announce("Opening every row in each of its sessions")
        for one in [ask(_opened, *session) for session in sessions]:
            one.result()
        speeds = {
            session: ask(_fastest, *session, given, plan.batches).result() for session in sessions
        }
        announce(f"LoadGen, accuracy mode: every session on {len(chosen)} images")
        answers: dict[str, list[Scores]] = defaultdict(list)
        # One at a time: sessions of several threads that share cores wait for one another.
        for target, n in sessions:
            where, (batch, _) = kept / "accuracy" / target.name / f"{n}-threads", speeds[target, n]
            answers[target.name].append(ask(_answers, target, n, few, where, batch).result())
        found = {
            target.name: _compared(answers[target.name], np.load(target.scores)[chosen])
            for target in targets
        }
        for turn in range(1, plan.rounds + 1):
            announce(f"LoadGen, round {turn} of {plan.rounds}")
            for (target, n), scenario in itertools.product(sessions, SCENARIOS):
                where = kept / target.name / f"{scenario}-{n}-threads" / f"round-{turn}"
                offline = scenario == "Offline"
                batch, rate = speeds[target, n] if offline else (1, 0)
                seconds = 0.0 if offline else plan.seconds
                queries = max(MIN_QUERIES, round(plan.seconds * rate))
                length = {"seconds": seconds, "queries": queries, "batch": batch}
                labels = {"row": target.name, "scenario": scenario, "threads": n, "round": turn}
                for attempt in range(TRIES):
                    place = where / f"try-{attempt + 1}" if attempt else where
                    run = ask(_timed, target, n, given, scenario, place, **length).result()
                    runs.append({**labels, "batch": batch, **run})
                    if run["valid"]:
                        break
        for target in targets:
            found[target.name]["sessions"] = [ask(_described, target, n).result() for n in counts]
        shutil.make_archive(str(out / "loadgen"), "zip", kept)
    summary = summarize(runs, {target.name: target.float32 for target in targets})
    for line in summary["told"]:
        announce(line)
    for target in targets:
        summary["rows"][target.name] |= found[target.name]
    return {"loadgen": version("mlcommons-loadgen"), **summary}


def summarize(runs: Sequence[Record], float32: Mapping[str, str]) -> Record:
    """Summarize the runs of all rounds.

    Parameters
    ----------
    runs
        Each as :func:`resnet8_eval.loadgen.load_test` returns it, with ``row``, ``scenario``,
        ``threads``, ``round`` and ``batch``. Of several of one round, the last counts.
    float32
        Row to the row that its speed is compared with.

    Returns
    -------
    dict
        ``rounds``, ``min_queries``, ``others_percent`` and ``told`` as
        :class:`resnet8_eval.record.Timing`; ``rows``, each ``{"float32": row, "SingleStream":
        [...], "Offline": [...]}`` with a :class:`resnet8_eval.row_record.Latency` or ``Throughput``
        for each number of threads. A figure is over the valid rounds, or None where there is none.
    """
    last = {(run["row"], run["scenario"], run["threads"], run["round"]): run for run in runs}
    told = [
        f"{row}, {scenario}, threads {threads}, round {turn}: this run does not count "
        f"({'; '.join(run['reasons'])})."
        for (row, scenario, threads, turn), run in last.items()
        if not run["valid"]
    ]
    if again := len(runs) - len(last):
        told.append(f"{again} of {len(runs)} LoadGen runs did not count; each was taken again.")
    others = 100 * sum(run["others_s"] for run in runs) / sum(run["capacity_s"] for run in runs)
    if others > MAX_OTHERS_PERCENT:
        told.append(
            f"The machine was not idle: other processes took {others:.0f} % of its processor time "
            "while it was measured. Close them and measure again with --fresh-timing."
        )
    grouped: dict[tuple[str, str, int], dict[int, Record]] = defaultdict(dict)
    for (name, scenario, threads, turn), run in last.items():
        grouped[name, scenario, threads][turn] = run
    busy = {
        key: sum(r["own_s"] for r in group.values()) / sum(r["wall_s"] for r in group.values())
        for key, group in grouped.items()
    }
    # On a busy machine every row loses the processor now and then; a row that waits, more often.
    busiest = max((busy[key] for key in busy if key[2] == 1), default=0.0)
    waiting: dict[str, float] = {}
    for (name, _, threads), share in busy.items():
        if threads == 1 and busiest - share > MAX_WAITING:
            waiting[name] = max(waiting.get(name, 0.0), 1 - share)
    rows: dict[str, dict[str, Any]] = {name: {"float32": base} for name, base in float32.items()}
    for (name, scenario, threads), group in grouped.items():
        valid = {turn: run["figures"] for turn, run in group.items() if run["valid"]}
        base = grouped[rows[name]["float32"], scenario, threads]
        ratios = [
            _speed(valid[turn]) / _speed(base[turn]["figures"])
            for turn in valid
            if base[turn]["valid"]
        ]
        entry = {
            "threads": threads,
            "batch": group[1]["batch"],
            "queries": min(run["queries"] for run in group.values()),
            "valid": len(valid) == len(group),
            "busy_percent": 100 * busy[name, scenario, threads],
            "speedup": _spread(ratios),
        }
        for figure in group[1]["figures"]:
            entry[figure] = _spread([figures[figure] for figures in valid.values()])
        rows[name].setdefault(scenario, []).append(entry)
    if waiting:
        each = ", ".join(f"{name} {100 * share:.0f} %" for name, share in waiting.items())
        told.append(
            "With one thread, these rows were off the processor far more of the time than others: "
            f"{each}. Something makes them wait."
        )
    return {
        "rounds": max(run["round"] for run in runs),
        "min_queries": MIN_QUERIES,
        "others_percent": min(100.0, max(0.0, others)),
        "rows": rows,
        "told": told,
    }


def _speed(figures: Mapping[str, float]) -> float:
    """The figure that rows are compared by: more is faster."""
    return 1 / figures["p50_ms"] if "p50_ms" in figures else figures["images_per_second"]


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    """Median, lowest and highest over the rounds; None if no round counts."""
    if not values:
        return None
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def _compared(answers: Sequence[Scores], expected: Scores) -> Record:
    """What several sessions answered, held against the evaluation's scores of the same images."""
    scores = np.stack(answers)
    known, given = np.concatenate([expected] * len(answers)), np.concatenate(answers)
    return {
        "answers": {
            "images": int(np.isfinite(scores).all(axis=(0, 2)).sum()),
            "disagreements": int((scores.argmax(axis=2) != expected.argmax(axis=1)).sum()),
            # An answer that never came is no number; JSON would not hold it.
            "largest_difference": float(np.nan_to_num(np.abs(scores - expected), nan=1.0).max()),
        },
        "parity": difference("answers to LoadGen", known, given, PARITY_ATOL),
    }


# What follows runs in a framework's own process.

_Model = tuple[Path, int, Execution]
"""As :func:`resnet8_eval.backends.open_runtime` takes it."""
_Images = tuple[Path, Preprocessing]
"""Where pixels lie, and how they are fed."""


@functools.cache
def _runtime(model: _Model) -> Session:
    return backends.open_runtime(*model)


@functools.cache
def _images(images: _Images) -> Feed:
    path, preprocessing = images
    return Feed(np.asarray(np.load(path, mmap_mode="r")), preprocessing)


def _opened(model: _Model) -> None:
    _runtime(model)(np.zeros((1, 32, 32, 3), np.float32))


def _described(model: _Model) -> Record:
    return {"threads": _runtime(model).threads(), "model_sha256": file_sha256(model[0])}


def _fastest(model: _Model, images: _Images, batches: Sequence[int]) -> tuple[int, float]:
    """The batch with the most images per second, and how many those are."""
    rates = {}
    for batch in batches:
        fed, took = preprocess(_images(images)[:batch]), []
        for _ in range(3):
            started = time.perf_counter()
            _runtime(model)(fed)
            took.append(time.perf_counter() - started)
        rates[batch] = len(fed) / min(took)
    return max(rates.items(), key=lambda item: item[1])


def _timed(
    model: _Model, images: _Images, scenario: Scenario, folder: Path, **length: Any
) -> Record:
    return load_test(_runtime(model), _images(images), scenario, folder, **length)


def _answers(model: _Model, images: _Images, folder: Path, batch: int) -> Scores:
    """Scores of every image, (N, 10), as LoadGen's accuracy log has them."""
    known = _images(images)
    load_test(_runtime(model), known, "Offline", folder, batch=batch, accuracy=True)
    scores = np.full((len(known), 10), np.nan, np.float32)
    for entry in json.loads((folder / "mlperf_log_accuracy.json").read_text()):
        scores[entry["qsl_idx"]] = np.frombuffer(bytes.fromhex(entry["data"]), np.float32)
    return scores
