"""The examples in docstrings run; every public class has one; all that is public is documented and typed."""

import ast
import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import virst_hf

PACKAGE = Path(virst_hf.__file__).parent
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def name_of(path):
    return ".".join(("virst_hf", *path.relative_to(PACKAGE).with_suffix("").parts))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_examples_run(path):
    result = doctest.testmod(importlib.import_module(name_of(path)), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_every_public_class_has_an_example():
    classes = [value for value in (getattr(virst_hf, name) for name in virst_hf.__all__) if inspect.isclass(value)]
    assert len(classes) > 10
    assert [cls.__name__ for cls in classes if ">>>" not in (cls.__doc__ or "")] == []


def public_definitions(tree):
    """Public functions, classes and methods of public classes."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (
                    child
                    for child in node.body
                    if isinstance(child, ast.FunctionDef) and (not child.name.startswith("_"))
                )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_is_public_is_documented_and_every_function_typed(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [node.name for node in public_definitions(tree) if not ast.get_docstring(node)] == []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            untyped = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            assert not untyped, f"{path.name}: {node.name} does not type {untyped}"
            assert node.returns is not None, f"{path.name}: {node.name} has no return type"
