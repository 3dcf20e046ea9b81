"""The timeline of a run: a lane for each process, in it a bar for each stage that was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from graphlib import TopologicalSorter
from typing import Any, Final

from resnet8_eval.record import Results
from resnet8_eval.report import words
from resnet8_eval.report.charts import Axis

_WIDTH: Final = 960
"""Of the drawing in pixels, of which a stage without duration has a pixel."""
_LINE: Final = 22
"""Height of a bar with its name."""
_LETTER: Final = 6.2
"""Width of a letter of a name, at most."""


def longest_chain(seconds: Mapping[str, float], needs: Mapping[str, Sequence[str]]) -> list[str]:
    """The stages that each wait for the one before and together take longest.

    Parameters
    ----------
    seconds
        What each stage took.
    needs
        The stages that each waits for; those that are not in `seconds` do not count.

    Returns
    -------
    list of str
        In the order in which they are made.
    """
    made_from = {
        stage: sorted(need for need in needs.get(stage, ()) if need in seconds)
        for stage in sorted(seconds)
    }
    chains: dict[str, tuple[float, list[str]]] = {}
    for stage in TopologicalSorter(made_from).static_order():
        before = max((chains[need] for need in made_from[stage]), default=(0.0, []))
        chains[stage] = (before[0] + seconds[stage], [*before[1], stage])
    return max(chains.values(), default=(0.0, []))[1]


def timeline(results: Results) -> dict[str, Any] | None:
    """Lanes with their bars, in pixels, the stages that were made, and the longest chain.

    None where there is no stage.
    """
    stages = results.stages
    if not stages:
        return None
    chain = longest_chain(
        {name: stage.seconds for name, stage in stages.items()},
        {name: stage.needs for name, stage in stages.items()},
    )
    made = {name: stage for name, stage in stages.items() if stage.cache == "miss"}
    spans = sorted(
        (stage.started, stage.ended, name)
        for name, stage in made.items()
        if stage.started is not None and stage.ended is not None
    )
    axis = Axis(
        [0.1, *(end for _, end, _ in spans)], margin=0, start=min([0.0, *(s for s, _, _ in spans)])
    )
    lanes, top = [], _LINE
    for lane in dict.fromkeys(stages[name].lane for _, _, name in spans):
        free: list[float] = []  # where each line of the lane is free again
        bars = []
        for started, ended, name in spans:
            if stages[name].lane != lane:
                continue
            x, end = _WIDTH * axis.share(started), _WIDTH * axis.share(ended)
            letters = _LETTER * len(name)
            left = min(x, max(_WIDTH - letters, 0))
            line = next((k for k, place in enumerate(free) if place <= left), len(free))
            free[line : line + 1] = [max(end, left + letters) + 6]
            bars.append(
                {
                    "name": words.plain(name),
                    "x": round(x, 1),
                    "width": round(max(end - x, 1), 1),
                    "text_x": round(left, 1),
                    "y": top + _LINE * line,
                    "chain": name in chain,
                    "seconds": words.seconds(ended - started),
                }
            )
        lanes.append({"name": words.plain(lane), "y": top, "bars": bars})
        top += _LINE * (len(free) + 1)
    return {
        "width": _WIDTH,
        "height": top,
        "lanes": lanes,
        "ticks": [(round(_WIDTH * axis.share(t), 1), t) for t in axis.ticks()],
        "cached": [words.plain(name) for name in stages if name not in made],
        "chain": [words.plain(name) for name in chain] if len(chain) > 1 else [],
        "chain_seconds": sum(stages[name].seconds for name in chain),
        "made": list(made.values()),
    }
