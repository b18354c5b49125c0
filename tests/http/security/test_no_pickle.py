"""Input is never unpickled or executed: no module imports or calls anything that could."""

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest

PACKAGES = ("hadakv_cli", "hadakv_client", "hadakv_kernels", "hadakv_service")
# Modules that create objects from bytes, and so can run code.
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


def unsafe_uses(source: str) -> list[str]:
    """Return the imports and calls in a module's source that could execute input."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.partition(".")[0] in UNSAFE]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in UNSAFE:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            pickles = [key for key in node.keywords if key.arg == "allow_pickle" and ast.unparse(key.value) != "False"]
            # The default of `numpy.load` depends on its version.
            unclear = name in ("np.load", "numpy.load") and not any(key.arg == "allow_pickle" for key in node.keywords)
            if pickles or unclear or name in CALLS:
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_module_cannot_execute_input(path: Path) -> None:
    assert unsafe_uses(path.read_text("utf-8")) == []


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
def test_unsafe_code_is_found(source: str) -> None:
    assert len(unsafe_uses(source)) == 1


def test_safe_code_is_not_reported() -> None:
    assert unsafe_uses("import re\nnp.load(path, allow_pickle=False)\nre.compile('a')\nself.load(path)") == []


def test_tensor_of_objects_is_rejected() -> None:
    """Arrays are created by `frombuffer` with dtypes of a fixed list, which does not contain `object`."""
    from hadakv_service.errors import InvalidRequest
    from hadakv_service.wire.messages import Tensor

    for dtype in ("object", "O", "V8", "datetime64"):
        with pytest.raises(InvalidRequest):
            Tensor(dtype, [1], memoryview(bytes(8))).array("x", "float32", "float16")
