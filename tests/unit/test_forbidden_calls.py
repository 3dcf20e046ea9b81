"""What opens a file by running it is called nowhere; ruff's S rules see only some of it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    [
        ROOT / "conftest.py",
        *(
            p
            for d in ("resnet8_eval", "benchmarks", "tests", "tools")
            for p in (ROOT / d).rglob("*.py")
        ),
    ]
)

NEVER = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "_pickle.load",
    "_pickle.loads",
    "_pickle.Unpickler",
    "cloudpickle.load",
    "cloudpickle.loads",
    "dill.load",
    "dill.loads",
    "marshal.load",
    "marshal.loads",
    "shelve.open",
    "joblib.load",
    "pandas.read_pickle",
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.unsafe_load",
    "tensorflow.keras.models.load_model",
    "keras.models.load_model",
    "keras.config.enable_unsafe_deserialization",
}
DEMANDED = {
    "torch.load": ("weights_only", True),
    "keras.saving.load_model": ("safe_mode", True),
}
FORBIDDEN = {"shell": True, "allow_pickle": True}

ALLOWED = {
    ("tests/faults/test_asset_faults.py", "pickle.loads"),  # shows that the canary sings
    ("tests/unit/test_cifar10.py", "pickle.loads"),  # the reference, on files of our own
}


def violations(source: str) -> Iterator[str]:
    """Each forbidden call in a module's source, by the full name of what is called."""
    tree = ast.parse(source)
    names = dict(_imported(tree))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = _full_name(node.func, names).removeprefix("builtins.")
        given = {
            word.arg: word.value.value if isinstance(word.value, ast.Constant) else ...
            for word in node.keywords
        }
        word, value = DEMANDED.get(called, ("", None))
        if called in NEVER or (word and given.get(word) is not value):
            yield called
        # What is no constant could be anything.
        if any(given.get(word, not bad) in (bad, ...) for word, bad in FORBIDDEN.items()):
            yield called


def _imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """What each imported name stands for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname:
                    yield alias.asname, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _full_name(node: ast.expr, names: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_full_name(node.value, names)}.{node.attr}"
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    return ""


def test_nothing_here_opens_a_file_by_running_it() -> None:
    found = {
        (str(path.relative_to(ROOT)), called)
        for path in SOURCES
        for called in violations(path.read_text(encoding="utf-8"))
    }
    assert found == ALLOWED


def test_every_source_is_looked_at() -> None:
    names = {str(path.relative_to(ROOT)) for path in SOURCES}
    assert {"conftest.py", "resnet8_eval/cli.py", "tests/conftest.py"} <= names
    assert any(name.startswith("tools/") for name in names)


PLANTED = {
    "eval": "eval('1')",
    "exec": "exec('x = 1')",
    "builtins": "import builtins\nbuiltins.eval('1')",
    "os.system": "import os\nos.system('ls')",
    "shell": "import subprocess\nsubprocess.run('ls', shell=True)",
    "shell that may be": "import subprocess\nsubprocess.run('ls', shell=flag)",
    "pickle": "import pickle\npickle.load(file)",
    "pickle from bytes": "import pickle\npickle.loads(b'')",
    "pickle under another name": "import pickle as p\np.loads(b'')",
    "pickle by its function": "from pickle import loads as read\nread(b'')",
    "an unpickler": "import pickle\npickle.Unpickler(file).load()",
    "inside a function": "def f():\n    from joblib import load\n    return load('x')",
    "joblib": "import joblib\njoblib.load('x')",
    "marshal": "import marshal\nmarshal.loads(b'')",
    "shelve": "import shelve\nshelve.open('x')",
    "pandas": "import pandas as pd\npd.read_pickle('x')",
    "yaml": "import yaml\nyaml.load(text)",
    "yaml with a loader": "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
    "torch": "import torch\ntorch.load('x')",
    "torch, unpickling": "import torch\ntorch.load('x', weights_only=False)",
    "torch, perhaps": "import torch\ntorch.load('x', weights_only=flag)",
    "numpy": "import numpy as np\nnp.load('x', allow_pickle=True)",
    "numpy, perhaps": "import numpy as np\nnp.load('x', allow_pickle=flag)",
    "keras": "import keras\nkeras.saving.load_model('x')",
    "keras, unsafe": "import keras\nkeras.saving.load_model('x', safe_mode=False)",
    "keras by its old name": "import keras\nkeras.models.load_model('x')",
}


@pytest.mark.parametrize("source", PLANTED.values(), ids=PLANTED)
def test_each_forbidden_form_is_seen(source: str) -> None:
    assert len(list(violations(source))) == 1


HARMLESS = {
    "a method of that name": "model.eval()",
    "a regular expression": "import re\nre.compile('x')",
    "json": "import json\njson.loads('1')",
    "yaml": "import yaml\nyaml.safe_load(text)",
    "numpy": "import numpy as np\nnp.load('x')",
    "numpy that says so": "import numpy as np\nnp.load('x', allow_pickle=False)",
    "torch": "import torch\ntorch.load('x', weights_only=True)",
    "no shell": "import subprocess\nsubprocess.run(['ls'], shell=False)",
    "pickle.dumps": "import pickle\npickle.dumps(1)",
}


@pytest.mark.parametrize("source", HARMLESS.values(), ids=HARMLESS)
def test_what_is_harmless_passes(source: str) -> None:
    assert list(violations(source)) == []


# --- what is installed ---------------------------------------------------------------------------


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(name: str, extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """The distributions that one needs here, with the extras asked of each."""
    from packaging.requirements import Requirement

    for line in metadata.requires(name) or []:
        entry = Requirement(line)
        wanted = [{"extra": extra} for extra in (*extras, "")]
        if entry.marker is None or any(entry.marker.evaluate(each) for each in wanted):
            yield normal(entry.name), frozenset(entry.extras)


def test_all_that_is_installed_for_the_suite_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    waiting, seen = [("resnet8-eval", frozenset({"dev"}))], set()
    while waiting:
        if (entry := waiting.pop()) not in seen:
            seen.add(entry)
            waiting += needed(*entry)
    names = {name for name, _ in seen} - {"resnet8-eval"}
    assert len(names) > 50
    unpinned = names - {normal(name) for name in pins}
    # CUDA's libraries come with torch's CUDA builds alone, each at the version that torch names.
    assert not {name for name in unpinned if not name.startswith(("nvidia", "cuda", "triton"))}
