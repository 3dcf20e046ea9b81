"""Run a command, and tell how much memory each kind of its processes held at most.

    python -m tools.peak_memory                      # the acceptance run on the real assets, cold
    python -m tools.peak_memory -- --assets=stand-in # the same with other words
    python -m tools.peak_memory --command pytest tests/unit

Memory is resident set size, read from /proc several times a second; pages that processes share
count for each. Exit status 1 if one process held more than the bound, 2 if the command failed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tools import cold_run

PERIOD: Final = 0.1
"""Seconds between two samples."""


def sample(command: list[str], folder: Path) -> tuple[dict[str, int], int, int]:
    """Run a command to its end.

    Returns
    -------
    tuple
        Peak of each kind of process, peak of all of them at once (both in bytes), and the exit
        status.
    """
    process = cold_run.start(command, folder)
    peaks: defaultdict[str, int] = defaultdict(int)
    whole = 0
    while process.poll() is None:
        members = list(cold_run.members(process.pid))
        for member in members:
            peaks[member.kind] = max(peaks[member.kind], member.rss)
        whole = max(whole, sum(member.rss for member in members))
        time.sleep(PERIOD)
    return dict(peaks), whole, process.returncode


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--bound", type=float, default=2.5, help="GB that a process may hold (default 2.5)"
    )
    parser.add_argument(
        "--command", action="store_true", help="the words are a command, not options of pytest"
    )
    parser.add_argument("words", nargs="*")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="peak-memory-") as scratch:
        folder = Path(scratch)
        places = [f"--cache-dir={folder / 'cache'}", f"--reports-dir={folder / 'reports'}"]
        command = chosen.words if chosen.command else cold_run.acceptance(*places, *chosen.words)
        peaks, whole, status = sample(command, folder)
        if status:
            print((folder / "output.txt").read_text())
            print(f"the command ended with status {status}")
            return 2
    for kind, peak in sorted(peaks.items(), key=lambda entry: -entry[1]):
        print(f"{kind:18} {peak / 1e9:5.2f} GB")
    print(f"{'all at once':18} {whole / 1e9:5.2f} GB")
    over = [kind for kind, peak in peaks.items() if peak > chosen.bound * 1e9]
    print(f"over {chosen.bound:g} GB: {', '.join(over) or 'none'}")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
