"""Our exceptions cross from a replica of Ray to another process, so each must survive pickling."""

import ast
import builtins
import importlib
import inspect
import pickle
from pathlib import Path

import pytest

_PACKAGES = ("db", "registry", "serving")


def _exceptions() -> list[type[BaseException]]:
    """Return every exception class of ours, found in the sources so that few modules are imported."""
    classes: dict[str, list[tuple[str, set[str]]]] = {}
    for package in _PACKAGES:
        for path in Path(package).rglob("*.py"):
            module = ".".join(path.with_suffix("").parts)
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    bases = {ast.unparse(base).split(".")[-1] for base in node.bases}
                    classes.setdefault(node.name, []).append((module, bases))
    known = {
        name
        for name, each in vars(builtins).items()
        if isinstance(each, type) and issubclass(each, BaseException)
    }
    while True:
        more = {name for name, places in classes.items() if any(bases & known for _, bases in places)}
        if more <= known:
            break
        known |= more
    found = [
        getattr(importlib.import_module(module), name)
        for name, places in sorted(classes.items())
        for module, bases in places
        if bases & known
    ]
    return [each for each in found if issubclass(each, BaseException)]


@pytest.mark.parametrize("kind", _exceptions(), ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_an_exception_survives_pickling_with_all_that_it_holds(kind: type[BaseException]) -> None:
    spelled = inspect.isfunction(kind.__init__)
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:] if spelled else []
    required = [each for each in parameters if each.default is each.empty]
    positional = [f"{each.name}!" for each in required if each.kind is each.POSITIONAL_OR_KEYWORD]
    named = {each.name: f"{each.name}!" for each in required if each.kind is each.KEYWORD_ONLY}
    error = kind(*(positional if spelled else ["why"]), **named)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (kind, str(error), vars(error))
