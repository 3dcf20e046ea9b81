"""Nothing opens a file in a way that can run code from it; ruff's S rules see only some ways."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from tools.pins import FILE, RESOLVED, normal, pins, updated

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
    "__import__",
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
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
    "runpy.run_path",
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.unsafe_load",
    "keras.models.load_model",
    "keras.config.enable_unsafe_deserialization",
}
DEMANDED = {
    "torch.load": ("weights_only", True),
    "torch.serialization.load": ("weights_only", True),
    "keras.saving.load_model": ("safe_mode", True),
}
FORBIDDEN = {"shell": True, "allow_pickle": True}
POSITIONS = {
    "numpy.load": {2: "allow_pickle"},
    "keras.saving.load_model": {3: "safe_mode"},
    **{
        f"subprocess.{name}": {8: "shell"}
        for name in ("Popen", "run", "call", "check_call", "check_output")
    },
}
"""Where words stand that need not be said by name."""

ALLOWED = {
    ("resnet8_eval/cifar10.py", "pickle.Unpickler"),  # allows three names; checksums come first
    ("tests/faults/test_asset_faults.py", "pickle.loads"),  # shows what a hostile file would do
    ("tests/unit/test_standin.py", "pickle.Unpickler"),  # notes which globals our own files name
}
"""Each of these uses is allowed once."""


def violations(source: str) -> Iterator[str]:
    """Each forbidden use in a module's source, by the full name of what is used."""
    nodes = list(ast.walk(ast.parse(source)))
    names = dict(_named(nodes))
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            yield f"{node.module}.*"
        if isinstance(node, ast.expr):
            name = _full_name(node, names)
            # Whatever is not called on the spot could be called anywhere, in any way.
            if name in NEVER or (name in DEMANDED and id(node) not in called):
                yield name
        if isinstance(node, ast.Call) and _wrongly_called(node, _full_name(node.func, names)):
            yield _full_name(node.func, names)


def _wrongly_called(call: ast.Call, name: str) -> bool:
    positions = POSITIONS.get(name, {})
    given = {positions[i]: word for i, word in enumerate(call.args) if i in positions}
    unknown = any(isinstance(word, ast.Starred) for word in call.args)
    for word in call.keywords:
        if word.arg:
            given[word.arg] = word.value
        elif isinstance(word.value, ast.Dict):
            keys = [key.value if isinstance(key, ast.Constant) else "" for key in word.value.keys]
            given.update(zip(map(str, keys), word.value.values, strict=True))
        else:
            unknown = True
    said = {
        word: value.value if isinstance(value, ast.Constant) else ...
        for word, value in given.items()
    }
    demanded, wanted = DEMANDED.get(name, ("", None))
    # What is no constant could be anything.
    return (
        bool(demanded and said.get(demanded) is not wanted)
        or any(said.get(word, not bad) in (bad, ...) for word, bad in FORBIDDEN.items())
        or (unknown and name == "numpy.load")
    )


def _named(nodes: list[ast.AST]) -> Iterator[tuple[str, str]]:
    """What each name stands for that was imported, or given to what was."""
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname:
                    yield alias.asname, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Name):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    yield target.id, node.value.id


def _full_name(node: ast.expr, names: dict[str, str]) -> str:
    match node:
        case ast.Attribute(value=owner, attr=name):
            full = f"{_full_name(owner, names)}.{name}"
        case ast.Call(func=ast.Name(id="getattr"), args=[owner, ast.Constant(value=str(name)), *_]):
            full = f"{_full_name(owner, names)}.{name}"
        case ast.Call(func=function, args=[ast.Constant(value=str(name)), *_]) if (
            _full_name(function, names) == "importlib.import_module"
        ):
            full = name
        case ast.Name(id=name):
            full = names.get(name, name)
        case _:
            full = ""
    return full.removeprefix("builtins.").removeprefix("tensorflow.")


def test_nothing_here_opens_a_file_by_running_it() -> None:
    found = [
        (str(path.relative_to(ROOT)), called)
        for path in SOURCES
        for called in violations(path.read_text(encoding="utf-8"))
    ]
    assert sorted(found) == sorted(ALLOWED)


def test_every_source_is_looked_at() -> None:
    names = {str(path.relative_to(ROOT)) for path in SOURCES}
    assert {"conftest.py", "resnet8_eval/cli/options.py", "tests/conftest.py"} <= names
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
    "keras inside tensorflow": "import tensorflow as tf\ntf.keras.saving.load_model('x')",
    "keras, by position": "import keras\nkeras.saving.load_model('x', None, False, False)",
    "numpy by position": "import numpy as np\nnp.load('x', None, True)",
    "numpy by a dictionary": "import numpy as np\nnp.load('x', **{'allow_pickle': True})",
    "numpy by whatever dictionary": "import numpy as np\nnp.load('x', **options)",
    "numpy by whatever list": "import numpy as np\nnp.load(*words)",
    "torch by its module": "import torch\ntorch.serialization.load('x')",
    "torch, to be called later": "import torch\nread = torch.load",
    "pickle, to be called later": "import pickle\nread = pickle.load\nread(file)",
    "pickle, given to another": "import pickle\nlist(map(pickle.loads, files))",
    "pickle, all of it": "from pickle import *\nload(file)",
    "pickle by another variable": "import pickle\np = pickle\np.load(file)",
    "pickle by getattr": "import pickle\ngetattr(pickle, 'load')(file)",
    "pickle by importlib": "import importlib\nimportlib.import_module('pickle').load(file)",
    "pickle by __import__": "__import__('pickle').load(file)",
    "an unpickler of one's own": "import pickle\nclass Mine(pickle.Unpickler): pass",
    "output of a shell": "import subprocess\nsubprocess.getoutput('ls')",
    "shell by position": (
        "import subprocess\nsubprocess.run('ls', -1, None, None, None, None, None, True, True)"
    ),
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
    "words for a process": "import subprocess\nsubprocess.run(['ls'], **options)",
    "keras": "import keras\nkeras.saving.load_model('x', None, False, True)",
    "pickle.dumps": "import pickle\npickle.dumps(1)",
}


@pytest.mark.parametrize("source", HARMLESS.values(), ids=HARMLESS)
def test_what_is_harmless_passes(source: str) -> None:
    assert list(violations(source)) == []


# --- what is installed ---------------------------------------------------------------------------


def needed(name: str, extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """The distributions that one needs here, with the extras asked of each."""
    from packaging.requirements import Requirement

    for line in metadata.requires(name) or []:
        entry = Requirement(line)
        wanted = [{"extra": extra} for extra in (*extras, "")]
        if entry.marker is None or any(entry.marker.evaluate(each) for each in wanted):
            yield normal(entry.name), frozenset(entry.extras)


def test_all_that_is_installed_for_the_suite_is_pinned() -> None:
    waiting, seen = [("resnet8-eval", frozenset({"dev"}))], set()
    while waiting:
        if (entry := waiting.pop()) not in seen:
            seen.add(entry)
            waiting += needed(*entry)
    names = {name for name, _ in seen} - {"resnet8-eval"}
    assert len(names) > 50
    unpinned = names - pins(FILE.read_text(encoding="utf-8")).keys()
    # CUDA's libraries come with torch's CUDA builds alone, each at the version that torch names.
    assert not {name for name in unpinned if not name.startswith(("nvidia", "cuda", "triton"))}


def test_each_distribution_that_is_named_in_pyproject_is_pinned_with_a_reason() -> None:
    from packaging.requirements import Requirement

    reasoned, _, rest = FILE.read_text(encoding="utf-8").partition(RESOLVED)
    lines = [line for line in reasoned.splitlines() if line and not line.startswith("#")]
    assert all(len(line.partition("  # ")[2]) > 4 for line in lines)
    named = {normal(Requirement(line).name) for line in metadata.requires("resnet8-eval") or []}
    assert named <= pins(reasoned).keys()
    assert not pins(reasoned).keys() & pins(rest).keys()


def test_versions_are_written_back_and_reasons_stay() -> None:
    text = f"# head\nBase_Lib==1.0  # why\nbuilder==3.0  # builds\n\n{RESOLVED}gone==1\nkept==1.0\n"
    assert updated(text, {"zeta": "9", "base-lib": "1.1", "kept": "2.0"}) == (
        f"# head\nBase_Lib==1.1  # why\nbuilder==3.0  # builds\n\n{RESOLVED}kept==2.0\nzeta==9\n"
    )
