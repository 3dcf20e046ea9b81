"""Results files of version 1, which runs of release 1.2.0 and before left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from resnet8_eval.requirements import BY_ID

_TOLD_BESIDE: Final = (
    *("framework", "dtype", "weights_dtype", "activations_dtype", "execution"),
    *("file_name", "engine", "runs_as"),
)
"""Fields of a recipe of version 1 that stand elsewhere now."""
_ROWS: Final = (
    *("keras-float32", "onnxruntime-float32", "torch-float32", "onnxruntime-int8"),
    *("onnxruntime-uint8", "torch-int8", "torch-uint8"),
)
_NOISE: Final = ("name", "sqnr_weights_db", "sqnr_output_db")


def upgraded(old: Mapping[str, Any]) -> dict[str, Any]:
    """Version 1 in the form of version 2.

    Version 1 knew one recipe, ``tuned``, and always the same seven rows. It did not record in
    which lane and when a stage was made. What it says of a layer's cost in accuracy goes: all of
    it lies within its noise, and none of it has an interval.
    """
    kept = {key: old[key] for key in old if key not in ("timing", "cache", "needs")}
    needs = old.get("needs", {})
    return {
        **kept,
        "schema_version": 2,
        "selected": old.get("selected", []),
        "requirements": [
            {**entry, "phase": BY_ID[entry["id"]].phase if entry["id"] in BY_ID else 0}
            for entry in old["requirements"]
        ],
        "expected": [
            {
                "name": _row(name),
                "framework": framework,
                "dtype": dtype,
                "recipe": None if dtype == "float32" else "tuned",
            }
            for name in _ROWS
            for framework, dtype in [name.split("-")]
        ],
        "configurations": [
            {
                **entry,
                "name": _row(entry["name"]),
                "recipe": _recipe(entry["recipe"]),
                "layers": [
                    {key: layer[key] for key in _NOISE} for layer in entry.get("layers", ())
                ],
            }
            for entry in old["configurations"]
        ],
        "sensitivity": None,
        "stages": {
            _row(name): {
                "lane": None,
                "needs": [_row(need) for need in needs.get(name, ())],
                "seconds": seconds,
                "cache": old["cache"].get(name, "miss"),
                "started": None,
                "ended": None,
            }
            for name, seconds in old["timing"].items()
        },
    }


def _row(name: str) -> str:
    """A row of version 1, or a stage of it, by its name in version 2."""
    return f"{name}-tuned" if name.endswith(("-int8", "-uint8")) else name


def _recipe(old: Mapping[str, Any]) -> dict[str, Any] | None:
    return (
        {
            "name": "tuned",
            "reduce_range": old["weight_limit"] < 127 if "weight_limit" in old else None,
            "method": {key: old[key] for key in old if key not in _TOLD_BESIDE},
            "engine": old.get("engine"),
            "runs_as": old.get("runs_as"),
        }
        if old
        else None
    )
