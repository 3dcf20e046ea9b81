"""Where everything stands in the drawings of speed; the templates put the ink there."""

from __future__ import annotations

import math

from resnet8_eval.record import Results
from resnet8_eval.report import table, words
from resnet8_eval.report.charts import Axis, Drawing, log_ticks, scatter


def tradeoff(results: Results) -> Drawing | None:
    """Every quantized configuration by its speed beside float32, and its delta from the baseline.

    Returns
    -------
    dict or None
        As :func:`resnet8_eval.report.charts.scatter`; None where no speed was measured.
    """
    points = [
        (row, speedup.median, found.delta_pp, found.delta_ci95_pp)
        for row, found in table.measured(results)
        if found.recipe and found.delta_ci95_pp
        for speedup in [found.latency[0].speedup if found.latency else None]
        if speedup
    ]
    if not points:
        return None
    across = Axis([1.0, *(speedup for _, speedup, *_ in points)], margin=0.06, start=0.0)
    ticks = [{"x": across.percent(v), "label": f"{v:g}"} for v in across.ticks()]
    return scatter(points, across, ticks, ("speedup", "delta"))


def percentiles(results: Results) -> Drawing | None:
    """The 50th, 90th and 99th percentile of one image's latency, with one thread, row by row.

    Returns
    -------
    dict or None
        Places of rows, marks and ticks; None where no latency was measured.
    """
    timed = [
        (row, [spread.median for spread in (one.p50_ms, one.p90_ms, one.p99_ms) if spread])
        for row, found in table.measured(results)
        for one in found.latency[:1]
    ]
    timed = [(row, values) for row, values in timed if values]
    if not timed:
        return None
    axis = Axis([math.log10(ms) for _, values in timed for ms in values], margin=0.04)
    step = 38
    return {
        "bottom": step * len(timed),
        "height": step * len(timed) + 40,
        "rows": [
            {
                "label": f"{words.framework(row.due)} {words.plain(row.due.dtype)}",
                "recipe": words.recipe(row.due) if row.due.recipe else "",
                "half": f"{values[0]:.3g} ms",
                "y": step * i + step // 2,
                "places": [axis.percent(math.log10(ms)) for ms in values],
            }
            for i, (row, values) in enumerate(timed)
        ],
        "ticks": [
            {"x": axis.percent(math.log10(v)), "label": f"{v:g}"}
            for v in log_ticks(axis.low, axis.high)
        ],
    }
