"""Names, arguments and defaults are those of the 2021 documentation; importing costs nothing and warns once."""

import importlib.util
import inspect
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
API = json.loads((HERE / "legacy_api.json").read_text())
MODULES = sorted({name.split(".")[2] for name in API})
HEAVY = ["boto3", "paramiko", "asyncssh", "mpi4py", "SimpleITK", "cloudvolume", "joblib"]


def documented(text):
    """Return the signature that the documentation states."""
    with_arrays = text.replace("array([1e-4]*3)", "numpy.array([1e-4] * 3)")
    space = {"numpy": np}
    exec(f"def function({with_arrays}): ...", space)
    return inspect.signature(space["function"])


def test_the_list_is_the_whole_documentation():
    # 104 documented ones, and the entry points of two modules that the documentation only names.
    assert len(API) == 106 and len(MODULES) == 16


@pytest.mark.parametrize("name", sorted(API))
def test_signatures_are_the_documented_ones(legacy, name):
    _, _, module, attribute = name.split(".")
    found = getattr(legacy(module), attribute)
    if API[name].startswith("class("):
        made = found("s3://bucket/key")
        assert (made.bucket, made.key, made.url) == ("bucket", "key", "s3://bucket/key")
        return
    wanted = list(documented(API[name]).parameters.values())
    parameters = list(inspect.signature(found).parameters.values())
    assert [p.name for p in parameters[: len(wanted)]] == [p.name for p in wanted]
    for parameter, expected in zip(parameters, wanted, strict=False):
        assert parameter.kind == expected.kind
        if expected.default is inspect.Parameter.empty:
            assert parameter.default is inspect.Parameter.empty, parameter
        else:
            np.testing.assert_array_equal(parameter.default, expected.default)
            assert type(parameter.default) is type(expected.default), parameter
    # What is new is optional and comes last.
    for parameter in parameters[len(wanted) :]:
        assert parameter.default is not inspect.Parameter.empty, parameter


IMPORTS = """
import importlib, json, sys, warnings
told = {}
for module in sys.argv[2:]:
    for name in [n for n in sys.modules if n.startswith("cloudreg.scripts")]:
        del sys.modules[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        importlib.import_module(f"cloudreg.scripts.{module}")
    loaded = [name for name in sys.argv[1].split() if name in sys.modules]
    told[module] = [[str(w.message) for w in caught if w.category is FutureWarning], loaded]
print(json.dumps(told))
"""


def test_a_module_warns_once_with_the_new_way_and_loads_nothing_heavy():
    words = [sys.executable, "-c", IMPORTS, " ".join(HEAVY), *MODULES]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert sorted(told) == MODULES
    for module, (warned, loaded) in told.items():
        assert len(warned) == 1, (module, warned)
        assert f"cloudreg.scripts.{module} " in warned[0] and ": use " in warned[0]
        assert not loaded, (module, loaded)


def test_nothing_new_imports_the_old_interface():
    source = Path(importlib.util.find_spec("cloudreg").origin).parent
    for file in source.rglob("*.py"):
        if source / "scripts" not in file.parents:
            assert "cloudreg.scripts" not in file.read_text(), file
