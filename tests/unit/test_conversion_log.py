"""The conversion log: every step timed, every warning caught, once."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator

import pytest

from resnet8_eval.convert.log import ConversionLog

LOGGERS = ("tensorflow", "tf2onnx", "tf2onnx.tfonnx", "onnx", "keras", "absl", "somebody.else")


@pytest.fixture(autouse=True)
def _loggers_as_they_were() -> Iterator[None]:
    names = [*LOGGERS, "closed", "closed.child"]
    before = {n: (logging.getLogger(n).propagate, logging.getLogger(n).level) for n in names}
    yield
    for name, (propagate, level) in before.items():
        logging.getLogger(name).propagate = propagate
        logging.getLogger(name).setLevel(level)


def messages(log: ConversionLog) -> list[str]:
    return [warning["message"] for warning in log.warnings]


@pytest.mark.parametrize("name", LOGGERS)
@pytest.mark.parametrize("propagate", [True, False], ids=["open", "closed"])
def test_a_planted_log_record_is_found_once_in_record_and_text(name: str, propagate: bool) -> None:
    logging.getLogger(name).propagate = propagate
    log = ConversionLog()
    with log.step("convert"):
        logging.getLogger(name).warning("planted %d", 1)
    expected = {"step": "convert", "source": name, "category": "WARNING", "message": "planted 1"}
    assert log.warnings == [expected]
    assert log.text().count("planted 1") == 1


@pytest.mark.parametrize("name", ["tensorflow", "tf2onnx", "absl", "keras"])
def test_a_logger_that_closes_during_the_step_is_still_heard(name: str) -> None:
    log = ConversionLog()
    with log.step("import"):
        logging.getLogger(name).propagate = False
        logging.getLogger(name).error("planted")
    assert messages(log) == ["planted"]


def test_a_child_of_a_closed_logger_is_heard_once() -> None:
    logging.getLogger("closed").propagate = False
    log = ConversionLog()
    with log.step("convert"):
        logging.getLogger("closed.child").warning("planted")
    assert messages(log) == ["planted"]


def test_a_planted_python_warning_is_found_once_in_record_and_text() -> None:
    log = ConversionLog()
    with log.step("convert"):
        warnings.warn("planted", FutureWarning, stacklevel=1)
    (found,) = log.warnings
    assert (found["step"], found["category"], found["message"]) == (
        "convert",
        "FutureWarning",
        "planted",
    )
    assert found["source"] == __file__
    assert log.text().count("planted") == 1


def test_a_warning_that_repeats_is_told_each_time_whatever_the_filters_say() -> None:
    log = ConversionLog()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with log.step("convert"):
            for _ in range(2):
                warnings.warn("planted", UserWarning, stacklevel=1)
    assert messages(log) == ["planted", "planted"]


@pytest.mark.parametrize(
    ("level", "heard"),
    [("debug", False), ("info", False), ("warning", True), ("error", True), ("critical", True)],
)
def test_levels(level: str, heard: bool) -> None:
    logging.getLogger("tf2onnx").setLevel(logging.DEBUG)
    log = ConversionLog()
    with log.step("convert"):
        getattr(logging.getLogger("tf2onnx"), level)("planted")
    assert bool(log.warnings) is heard


def test_nothing_is_heard_between_steps_and_no_handler_stays() -> None:
    before = {name: list(logging.getLogger(name).handlers) for name in (None, *LOGGERS)}
    log = ConversionLog()
    with log.step("one"):
        pass
    logging.getLogger("tf2onnx").warning("between")
    with log.step("two"):
        pass
    assert log.warnings == []
    assert {name: logging.getLogger(name).handlers for name in before} == before


def test_each_step_has_a_duration_and_a_line() -> None:
    log = ConversionLog()
    with log.step("one"):
        pass
    with log.step("two"):
        pass
    assert [step["step"] for step in log.steps] == ["one", "two"]
    assert all(step["seconds"] >= 0 for step in log.steps)
    done = r"  done in \d+\.\d\d s\n"
    assert re.fullmatch(rf"one \.\.\.\n{done}two \.\.\.\n{done}", log.text())


def test_warnings_stay_with_their_step() -> None:
    log = ConversionLog()
    for name in ("one", "two"):
        with log.step(name):
            logging.getLogger("onnx").warning("in %s", name)
    assert [(w["step"], w["message"]) for w in log.warnings] == [
        ("one", "in one"),
        ("two", "in two"),
    ]


def test_a_step_that_fails_keeps_its_warnings_and_says_why() -> None:
    log = ConversionLog()

    def fail() -> None:
        logging.getLogger("tf2onnx").warning("planted")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"), log.step("convert"):
        fail()
    assert log.steps == []
    assert messages(log) == ["planted"]
    assert "FAILED ValueError: broken" in log.text()
