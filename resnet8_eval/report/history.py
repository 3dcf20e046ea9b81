"""What the last complete runs came to, so that a run can be seen beside those before it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import msgspec

from resnet8_eval.record import Assets, Results

_SHOWN: Final = 10
_KEPT: Final = 100
"""Of all assets together, so that the file stays small however many models are judged."""


class Run(msgspec.Struct, frozen=True):
    """One complete run: verdict by milestone, and images right by row."""

    created: str
    commit: str | None
    assets: str
    verdicts: dict[str, str]
    correct: dict[str, int]
    total: int


def read(path: Path) -> tuple[Run, ...]:
    """The runs that a file keeps, the latest last; none where there is no such file."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=tuple[Run, ...])
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ()


def of_same_assets(runs: tuple[Run, ...], results: Results) -> tuple[Run, ...]:
    """The last ten of those that judged the same model on the same files."""
    return tuple(run for run in runs if run.assets == fingerprint(results.assets))[-_SHOWN:]


def written(path: Path, results: Results) -> None:
    """Add a run to the file, which is replaced whole."""
    from resnet8_eval import report  # which imports this module

    runs, added = read(path), run_of(results)
    same = (*of_same_assets(runs, results), added)[-_SHOWN:]
    others = tuple(run for run in runs if run.assets != added.assets)
    kept = (*others[len(same) - _KEPT :], *same)
    report.written(path, msgspec.json.format(msgspec.json.encode(kept), indent=1).decode())


def run_of(results: Results) -> Run:
    """A run, as it is kept."""
    return Run(
        results.created,
        results.environment.git_commit,
        fingerprint(results.assets),
        {name: found.verdict for name, found in results.milestones.items()},
        {row.name: row.correct for row in results.configurations},
        results.baseline.total if results.baseline else 0,
    )


def fingerprint(assets: Assets) -> str:
    """What is the same in two runs on the same model, the same files and the same preprocessing."""
    told = (assets.kind, assets.model_sha256, sorted(assets.dataset_md5.items()))
    return hashlib.sha256(msgspec.json.encode((*told, assets.preprocessing))).hexdigest()[:16]
