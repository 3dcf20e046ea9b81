"""The conversion log: every step with its duration, and every warning anyone raised."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from logging.handlers import BufferingHandler
from typing import Any


@dataclass
class ConversionLog:
    """Steps and warnings, in the order in which they came.

    Attributes
    ----------
    steps
        ``{"step", "seconds"}`` of each finished step.
    warnings
        ``{"step", "source", "category", "message"}`` of each Python warning and of each log
        record of level WARNING or above.
    lines
        The same as readable text.
    """

    steps: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[dict[str, str]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step and collect what is raised in it."""
        self.lines.append(f"{name} ...")
        started = time.perf_counter()
        with ExitStack() as stack:
            caught = stack.enter_context(warnings.catch_warnings(record=True))
            warnings.simplefilter("always")
            handler = BufferingHandler(sys.maxsize)  # it keeps records until it is full
            handler.setLevel(logging.WARNING)
            for logger in _listened():
                logger.addHandler(handler)
                stack.callback(logger.removeHandler, handler)
            try:
                yield
            except BaseException as error:
                self.lines.append(f"  FAILED {type(error).__name__}: {error}")
                raise
            finally:
                for entry in caught:
                    self._warn(name, entry.filename, entry.category.__name__, str(entry.message))
                # A record comes once from each listened logger that it passes through.
                for record in {id(record): record for record in handler.buffer}.values():
                    self._warn(name, record.name, record.levelname, record.getMessage())
        seconds = time.perf_counter() - started
        self.steps.append({"step": name, "seconds": round(seconds, 3)})
        self.lines.append(f"  done in {seconds:.2f} s")

    def _warn(self, step: str, source: str, category: str, message: str) -> None:
        self.warnings.append(
            {"step": step, "source": source, "category": category, "message": message}
        )
        self.lines.append(f"  {category} from {source}: {message}")

    def text(self) -> str:
        """The whole log as text, one line each."""
        return "\n".join(self.lines) + "\n"


def handed_out(log: str, name: str) -> str:
    """A log as its reader gets it, with the name of the file that was given this time.

    The name is quoted as Python does it: it may have line breaks, or bytes that are no letters.
    """
    return f"file: {name!r}\n{log}"


def _listened() -> set[logging.Logger]:
    """The root, and every logger that keeps its records from the root."""
    known = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict)]
    # These create their loggers, and close them, while they are being imported.
    expected = [logging.getLogger(name) for name in ("tensorflow", "absl", "tf2onnx", "keras")]
    return {logging.root, *(logger for logger in known if not logger.propagate), *expected}
