"""Nothing that comes from outside is ever unpickled: no module that could is imported, no such switch is thrown."""

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest

PACKAGES = ("hadakv_cli", "hadakv_client", "hadakv_kernels", "hadakv_service")
# They make objects, and so run code, from bytes.
UNSAFE = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
CALLS = {"eval", "exec", "compile", "__import__"}


def modules() -> list[Path]:
    found = []
    for package in PACKAGES:
        spec = find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations
        found += [path for folder in spec.submodule_search_locations for path in sorted(Path(folder).rglob("*.py"))]
    assert len(found) > 40
    return found


def faults(source: str) -> list[str]:
    """What in a module's source could run what it reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.partition(".")[0] in UNSAFE]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in UNSAFE:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            pickles = [key for key in node.keywords if key.arg == "allow_pickle" and ast.unparse(key.value) != "False"]
            # What `numpy.load` does by default depends on its version.
            unclear = name in ("np.load", "numpy.load") and not any(key.arg == "allow_pickle" for key in node.keywords)
            if pickles or unclear or name in CALLS:
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_no_module_can_run_what_it_reads(path: Path) -> None:
    assert faults(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import os, marshal as m",
        "from shelve import open",
        "import joblib.numpy_pickle",
        "np.load(path)",
        "numpy.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=trusted)",
        "np.save(path, x, allow_pickle=True)",
        "eval(text)",
        "def f():\n    import pickle",
    ],
)
def test_what_could_is_seen(source: str) -> None:
    assert len(faults(source)) == 1


def test_what_cannot_is_not() -> None:
    assert faults("import re\nnp.load(path, allow_pickle=False)\nre.compile('a')\nself.load(path)") == []


def test_an_array_of_objects_is_no_tensor() -> None:
    """Arrays come from `frombuffer` with dtypes of a fixed list, of which `object` is none."""
    from hadakv_service.errors import InvalidRequest
    from hadakv_service.wire.messages import Tensor

    for dtype in ("object", "O", "V8", "datetime64"):
        with pytest.raises(InvalidRequest):
            Tensor(dtype, [1], memoryview(bytes(8))).array("x", "float32", "float16")
