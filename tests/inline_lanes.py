"""Lanes without processes, for tests of what is made and not of where.

A framework is then imported once for all tests of a process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from resnet8_eval import lanes
from resnet8_eval.errors import SuiteError
from resnet8_eval.lanes import Announce, Job, Make


def run(
    jobs: Sequence[Job],
    make: Make,
    logs: Path,
    announce: Announce,
    alone: Callable[[str], str | None],
) -> dict[str, SuiteError]:
    """Stand in for :func:`resnet8_eval.lanes.run`; `jobs` have what they need before them."""
    failures: dict[str, SuiteError] = {}
    for job in jobs:
        if not set(job.needs) & set(failures):
            try:
                make(job.name, 1)
            except SuiteError as error:
                failures[job.name] = error
            except Exception as error:
                log = lanes.log_path(job.lane, logs)
                failures[job.name] = lanes.explained(job.name, error, log, alone(job.name))
            if job.name in failures:
                announce(f"{job.name} FAILED")
        lanes._spread(failures, jobs)
    return failures
