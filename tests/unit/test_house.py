"""The layout of the packages: imports without circles, readable folders, one meaning a class name, plain openings."""

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = ("serving", "registry", "db")
MOST_MODULES = 15
"""About a dozen; folders that list one thing of a kind each may hold more."""
MOST_OF_A_KIND = 24
OF_A_KIND = ("routes", "schemas", "cli")
FRAGMENTS = {"What", "Of", "Where", "So", "With", "Whoever", "Who", "Nothing,", "Why", "As", "That"}
"""The words that open no docstring: it says what is done, or names a thing."""


@cache
def modules() -> dict[str, ast.Module]:
    """Return every module of the packages by its dotted name; a package's name is that of its `__init__`."""
    results = {}
    for layer in LAYERS:
        for file in sorted((ROOT / layer).rglob("*.py")):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            results[name.removesuffix(".__init__")] = ast.parse(file.read_text())
    return results


def run_time(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes below this one, without those that only type checkers read."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield from (other, *run_time(other))
            continue
        yield from (child, *run_time(child))


def imports(name: str, tree: ast.Module, known: set[str]) -> set[str]:
    """Return the modules among the known ones that a module imports, at its top or inside a function."""
    results: set[str] = set()
    for node in run_time(tree):
        if isinstance(node, ast.Import):
            results.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            # A name that isn't a module is defined in the module itself.
            results.update(inner & known or {node.module}, {node.module} if inner - known else set())
    return (results & known) - {name}


def circle(trees: dict[str, ast.Module]) -> list[str]:
    """Return the modules of one import circle, or none."""
    graph = {name: imports(name, tree, set(trees)) for name, tree in trees.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_module_imports_itself_by_a_detour() -> None:
    assert circle(modules()) == []


@pytest.mark.parametrize(
    ("first", "found"),
    [
        ("import b", True),
        ("from b import thing", True),
        ("def later():\n    import b", True),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import b", False),
    ],
)
def test_a_circle_is_found_wherever_the_import_stands(first: str, found: bool) -> None:
    trees = {"a": ast.parse(first), "b": ast.parse("class thing:\n    import a")}
    assert bool(circle(trees)) is found


def test_no_folder_is_crowded() -> None:
    names = Counter(
        file.parent.relative_to(ROOT)
        for layer in LAYERS
        for file in (ROOT / layer).rglob("*.py")
        if file.name != "__init__.py" and "versions" not in file.parts[-2:]
    )
    crowded = {
        str(folder): count
        for folder, count in names.items()
        if count > (MOST_OF_A_KIND if folder.name in OF_A_KIND else MOST_MODULES)
    }
    assert crowded == {}


def test_a_class_name_means_one_thing_in_a_layer() -> None:
    places: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, tree in modules().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and "migrations" not in name:
                places[name.split(".")[0], node.name].append(name)
    assert {" ".join(named): where for named, where in places.items() if len(where) > 1} == {}


def docstrings() -> Iterator[tuple[str, str]]:
    """Yield every docstring of the packages with the name of its module."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, kinds) and (text := ast.get_docstring(node)):
                yield name, text


def class_bases() -> dict[str, set[str]]:
    """Return every class of the packages with the names of its bases."""
    results: dict[str, set[str]] = defaultdict(set)
    for tree in modules().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                results[node.name] |= {ast.unparse(base).split(".")[-1] for base in node.bases}
    return results


def values_by_name(bases: dict[str, set[str]]) -> set[str]:
    """Return the CamelCase names of the classes that are no errors: only errors are named in plain prose."""
    errors = {"Exception", "ValueError", "RuntimeError"}
    while more := {name for name, over in bases.items() if over & errors} - errors:
        errors |= more
    return {name for name in bases.keys() - errors if re.search("[a-z0-9][A-Z]", name)}


def test_no_docstring_opens_as_a_fragment() -> None:
    assert [
        f"{name}: {text.splitlines()[0]}" for name, text in docstrings() if text.split()[0] in FRAGMENTS
    ] == []


def test_docstrings_put_class_names_in_backticks() -> None:
    names = values_by_name(class_bases())
    assert [
        f"{name}: {word}"
        for name, text in docstrings()
        for word in re.findall(r"\w+", re.sub("`[^`]*`", "", text))
        if word in names
    ] == []
