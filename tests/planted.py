"""Planting faults: artefacts that are not what they should be, and what the suite says of them."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from resnet8_eval import onnx_graph
from resnet8_eval.checks import at_most
from resnet8_eval.configurations import CONFIGURATIONS
from resnet8_eval.inputs import Inputs, Settings
from resnet8_eval.latency import summarize
from resnet8_eval.loadgen import SCENARIOS
from resnet8_eval.pipeline import Pipeline
from resnet8_eval.requirements import ALWAYS, ANSWERED_IMAGES, PARITY_ATOL, asked
from resnet8_eval.store import Artifact, as_json
from resnet8_eval.verdicts import Judge, shortfall


class Bench:
    """A made pipeline whose artefacts can be replaced, and the requirement tests to judge it.

    Its latencies are made up (:func:`timing`): tests that run beside others cannot measure any.

    It stands in for the pipeline: requirement tests call :meth:`artifact` and read `settings`.

    Parameters
    ----------
    pipeline
        With every stage made; its artefacts are never changed.
    folder
        An empty folder for the planted ones.
    """

    def __init__(self, pipeline: Pipeline, folder: Path) -> None:
        self._pipeline = pipeline
        self._folder = folder
        made_up = Artifact("latency", "", self._new_folder(), timing(pipeline), {}, 0.0, 0.0)
        self._planted: dict[str, Artifact] = {"latency": made_up}

    @property
    def settings(self) -> Settings:
        """What the pipeline was asked for."""
        return self._pipeline.settings

    def artifact(self, stage: str) -> Artifact:
        """The planted artefact of a stage, or the honest one."""
        return self._planted.get(stage) or self._pipeline.artifact(stage)

    def plant(
        self, stage: str, record: Mapping[str, Any] = {}, files: Mapping[str, bytes] = {}
    ) -> None:
        """Replace parts of an artefact's record, and files of it by name."""
        honest = self.artifact(stage)
        folder = self._new_folder()
        for path in honest.folder.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        for name, content in files.items():
            (folder / name).write_bytes(content)
        self._planted[stage] = replace(honest, folder=folder, record={**honest.record, **record})

    def remake(self, *stages: str) -> None:
        """Make stages anew, in this process, from what now stands on the bench."""
        for name in stages:
            stage = self._pipeline.stages[name]
            needed = {need: self.artifact(need) for need in stage.needs}
            folder = self._new_folder()
            made = stage.make(Inputs(self.settings, needed, threads=1, out=folder))
            record = json.loads(json.dumps(made, default=as_json))
            self._planted[name] = replace(self.artifact(name), folder=folder, record=record)

    def verdict(self, requirement_id: str) -> str:
        """Why the requirement is not met, or an empty string where it is."""
        family, number = requirement_id.lower().split("-")
        module = importlib.import_module(f"tests.acceptance.test_{family}")
        (test,) = [
            found
            for name, found in vars(module).items()
            if name.startswith(f"test_{family}_{number}_")
        ]
        item = cast("pytest.Item", SimpleNamespace(user_properties=[]))
        requirement = asked(self.settings.min_accuracy)[requirement_id]
        try:
            test(Judge(item, requirement), self)
        except pytest.fail.Exception as failure:
            return str(failure)
        return shortfall(requirement, item.user_properties)

    def verdicts(self) -> dict[str, str]:
        """What each requirement that is not met says; of those that are always judged."""
        return {name: said for name in ALWAYS if (said := self.verdict(name))}

    def _new_folder(self) -> Path:
        folder = self._folder / str(len(list(self._folder.iterdir())))
        folder.mkdir()
        return folder


def timed(row: str, scenario: str, turn: int, threads: int = 1, **other: Any) -> dict[str, Any]:
    """One run of LoadGen, made up: Keras takes 1 ms for an image, the others half of that."""
    ms = 1.0 if row == "keras-float32" else 0.5
    single = {"p50_ms": ms, "p90_ms": 1.1 * ms, "p99_ms": 1.5 * ms}
    return {
        "row": row,
        "scenario": scenario,
        "threads": threads,
        "round": turn,
        "batch": 1 if scenario == "SingleStream" else 32,
        "valid": True,
        "reasons": [],
        "queries": 400,
        "figures": single if scenario == "SingleStream" else {"images_per_second": 1000 / ms},
        "loadgen_s": 0.2,
        "clock_s": 0.2,
        "wall_s": 0.25,
        "own_s": 0.24,
        "others_s": 0.01,
        "capacity_s": 0.5,
        **other,
    }


def timing(pipeline: Pipeline) -> dict[str, Any]:
    """The record of the stage that measures speed, made up, of the models that were scored."""
    rows = [row.name for row in CONFIGURATIONS]
    runs = [
        timed(row, scenario, turn, threads)
        for turn in (1, 2)
        for threads in (1, 2)
        for row in rows
        for scenario in SCENARIOS
    ]
    float32 = {row.name: f"{row.framework}-float32" for row in CONFIGURATIONS}
    record = summarize(runs, float32)
    for row in rows:
        scored = pipeline.artifact(f"scores/{row}").record["model_sha256"]
        record["rows"][row] |= {
            "answers": {
                "images": ANSWERED_IMAGES,
                "disagreements": 0,
                "largest_difference": 0.0,
            },
            "parity": asdict(
                at_most("answers to LoadGen: largest difference in probability", PARITY_ATOL, 0.0)
            ),
            "sessions": [{"threads": n, "model_sha256": scored} for n in (1, 2)],
        }
    return {"loadgen": "6.0.17", **record}


def borrowing(pipeline: Pipeline, cache_dir: Path, *stages: str, **settings: Any) -> Pipeline:
    """A pipeline with a store of its own that has these stages of another already.

    Parameters
    ----------
    pipeline
        Whose artefacts to copy.
    cache_dir
        Where the new store is.
    stages
        Those whose key the new settings do not move.
    settings
        What to ask for instead, by name.
    """
    for name in stages:
        folder = pipeline.artifact(name).folder
        shutil.copytree(folder, cache_dir / "artifacts" / folder.name)
    made = Pipeline(replace(pipeline.settings, cache_dir=cache_dir, **settings))
    assert all(made.peek(name) for name in stages)
    return made


def as_npy(array: Any) -> bytes:
    """An array as ``numpy.save`` writes it."""
    import io

    import numpy as np

    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def edited(path: Path, change: Callable[[Any], object]) -> bytes:
    """The bytes of an ONNX file after `change` has been made to its model."""
    import onnx

    model = onnx.load(path)
    change(model)
    return bytes(model.SerializeToString())


def nodes(model: Any, kind: str) -> list[Any]:
    """The nodes of one type, in graph order."""
    return [node for node in model.graph.node if node.op_type == kind]


def perturb(
    kind: str, position: int, argument: int, relative: float = 0.1, *, ulp: bool = False
) -> Callable[[Any], None]:
    """Move the largest value of one initializer.

    Parameters
    ----------
    kind, position, argument
        Which argument of which node of a type; among `Add`s, only those with a constant count.
    relative
        By how much of itself.
    ulp
        Whether to move it to the next representable number instead.
    """
    import numpy as np
    from onnx import numpy_helper

    def change(model: Any) -> None:
        stored = {entry.name: entry for entry in model.graph.initializer}
        having = [node for node in nodes(model, kind) if node.input[argument] in stored]
        entry = stored[having[position].input[argument]]
        values = numpy_helper.to_array(entry).copy()
        largest = np.unravel_index(np.abs(values).argmax(), values.shape)
        if ulp:
            values[largest] = np.nextafter(values[largest], np.float32(0))
        else:
            values[largest] *= 1 + relative
        entry.CopyFrom(numpy_helper.from_array(values, entry.name))

    return change


def float_weight(kind: str, position: int) -> Callable[[Any], None]:
    """Store the weight of one node of a QDQ model in float32, with the values that it stood for."""
    import numpy as np
    from onnx import numpy_helper

    def change(model: Any) -> None:
        node = nodes(model, kind)[position]
        dequantize = onnx_graph.makers(model.graph)[node.input[1]]
        stored = onnx_graph.constants(model.graph)
        integers, scale, zero = (stored[name].astype(np.float32) for name in dequantize.input)
        zero, scale = (
            onnx_graph.along_axis(dequantize, part, integers.ndim) for part in (zero, scale)
        )
        values = (integers - zero) * scale
        entry = numpy_helper.from_array(values.astype(np.float32), "planted")
        model.graph.initializer.append(entry)
        node.input[1] = "planted"
        model.graph.node.remove(dequantize)

    return change


def float_activation(kind: str, position: int) -> Callable[[Any], None]:
    """Feed one node of a QDQ model the tensor before it was quantized."""

    def change(model: Any) -> None:
        node = nodes(model, kind)[position]
        makers = onnx_graph.makers(model.graph)
        node.input[0] = makers[makers[node.input[0]].input[0]].input[0]

    return change


def weight_made_8_bit_on_the_fly(position: int) -> Callable[[Any], None]:
    """Store one convolution's weight in float32, and quantize it whenever the model runs."""
    import onnx

    def change(model: Any) -> None:
        node = nodes(model, "Conv")[position]
        dequantize = onnx_graph.makers(model.graph)[node.input[1]]
        float_weight("Conv", position)(model)
        (axis,) = dequantize.attribute
        for kind, source, target in (
            ("QuantizeLinear", "planted", "planted 8"),
            ("DequantizeLinear", "planted 8", "planted again"),
        ):
            inputs = [source, *dequantize.input[1:]]
            made = onnx.helper.make_node(kind, inputs, [target], axis=axis.i)
            model.graph.node.insert(0 if kind == "QuantizeLinear" else 1, made)
        node.input[1] = "planted again"

    return change
