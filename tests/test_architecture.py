"""The structure that the design promises, held by tests beside the import contracts."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "quantstudio"
SOURCES = sorted(PACKAGE.rglob("*.py"))
BLOCKED = ("torch", "transformers", "torchao", "compressed_tensors", "quantstudio.engine", "quantstudio.worker")


def calls(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            yield name, node


def keyword(call, name):
    for argument in call.keywords:
        if argument.arg == name:
            return getattr(argument.value, "value", None)
    return None


def test_the_window_s_side_imports_with_torch_blocked():
    """Every module of gui, client and core, in a process where the work's side cannot be imported."""
    modules = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for side in ("core", "client", "gui")
        for path in sorted((PACKAGE / side).rglob("*.py"))
    ]
    code = (
        "import sys, importlib\n"
        f"sys.modules.update(dict.fromkeys({BLOCKED!r}))\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_models_are_loaded_as_hostile_input(path):
    for name, call in calls(path):
        # torch's embedding of that name takes a tensor, and reads no file.
        if name == "from_pretrained" and ast.unparse(call.func) != "nn.Embedding.from_pretrained":
            assert keyword(call, "trust_remote_code") is False, (
                f"line {call.lineno}: trust_remote_code=False is missing"
            )
            if "Model" in ast.unparse(call.func):
                assert keyword(call, "use_safetensors") is True, f"line {call.lineno}: use_safetensors=True is missing"
        if name == "from_config":
            assert keyword(call, "trust_remote_code") is False, (
                f"line {call.lineno}: trust_remote_code=False is missing"
            )
        assert name not in {"exec", "system", "popen"} or not isinstance(call.func, ast.Name), f"line {call.lineno}"
        assert not (name == "eval" and isinstance(call.func, ast.Name)), f"line {call.lineno}: eval"
        assert not (name in {"load", "loads"} and "pickle" in ast.unparse(call.func)), f"line {call.lineno}: pickle"
        if name == "load" and ast.unparse(call.func) == "torch.load":
            assert path.name == "convert_pickles.py", f"line {call.lineno}: torch.load"
            assert keyword(call, "weights_only") is True, f"line {call.lineno}: weights_only=True is missing"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_readable(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or path.name == "__init__.py"


def test_torchao_is_imported_in_one_file_per_use():
    """Its modules move between releases, so that a move must touch one file."""
    using = [path for path in SOURCES if "torchao" in path.read_text(encoding="utf-8")]
    importing = [
        path.name
        for path in using
        if any(
            isinstance(node, (ast.Import, ast.ImportFrom)) and "torchao" in ast.unparse(node)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        )
    ]
    assert len(importing) <= 2, importing
