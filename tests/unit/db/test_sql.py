"""No statement is built from input: all SQL is written in the source, and values are parameters."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import db

ROOT = Path(db.__file__).parent
SOURCES = sorted(path for path in ROOT.rglob("*.py") if "migrations" not in path.parts)
# Calls that take SQL as text, by name. psycopg's own `execute` takes LiteralString, which the type checker holds.
SENDERS = {"exec_driver_sql", "text", "literal_column", "SQL", "DDL", "run_sql"}


class Module:
    """The names of a module that stand for text in its source, or in the source of the `db` module they come from."""

    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        self.constants: set[str] = set()
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("db."):
                source = ROOT.joinpath(*(node.module or "").split(".")[1:]).with_suffix(".py")
                known = Module(ast.parse(source.read_text())).constants if source.exists() else set()
                self.constants.update(each.name for each in node.names if each.name in known)
            targets, value = _assigned(node)
            if value is not None and self.literal(value, self.constants):
                self.constants.update(targets)

    def unsafe(self) -> Iterator[ast.Call]:
        """Return the calls that may send other SQL."""
        yield from self._unsafe(self.tree, self.constants)

    def _unsafe(self, scope: ast.AST, names: set[str]) -> Iterator[ast.Call]:
        for node in ast.iter_child_nodes(scope):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from self._unsafe(node, names | self._local(node, names))
                continue
            sends = isinstance(node, ast.Call) and _name(node.func) in SENDERS
            # `run_sql` has the connection before the statement.
            if sends and node.args and not self.literal(node.args[_name(node.func) == "run_sql"], names):
                yield node
            yield from self._unsafe(node, names)

    def _local(self, function: ast.FunctionDef | ast.AsyncFunctionDef, names: set[str]) -> set[str]:
        """Return a function's names that are bound only to such text, or declared as such."""
        arguments = [*function.args.args, *function.args.kwonlyargs]
        results = {
            each.arg
            for each in arguments
            if each.annotation and "LiteralString" in ast.unparse(each.annotation)
        }
        bound: dict[str, bool] = {}
        for node in ast.walk(function):
            targets, value = _assigned(node)
            for target in targets:
                good = value is not None and self.literal(value, names | results)
                bound[target] = bound.get(target, True) and good
        return results | {name for name, good in bound.items() if good}

    def literal(self, node: ast.expr, names: set[str]) -> bool:
        """Return whether the value consists of text in the source alone."""
        match node:
            case ast.Constant():
                return True
            case ast.Name():
                return node.id in names
            case ast.Subscript():
                return self.literal(node.value, names)
            case ast.BinOp():
                return self.literal(node.left, names) and self.literal(node.right, names)
            case ast.IfExp():
                return self.literal(node.body, names) and self.literal(node.orelse, names)
            case ast.JoinedStr():
                return all(self.literal(part, names) for part in node.values)
            case ast.FormattedValue():
                return self.literal(node.value, names)
            case ast.Tuple() | ast.List():
                return all(self.literal(each, names) for each in node.elts)
            case ast.Call(func=ast.Attribute(value=inner, attr="replace" | "strip")):
                return self.literal(inner, names) and all(self.literal(each, names) for each in node.args)
            case ast.Call(func=ast.Attribute(value=inner, attr="as_string")):
                # psycopg quotes what it composes; each SQL() is checked at its own call.
                return _composed(inner)
            case _:
                return False


def _composed(node: ast.expr) -> bool:
    match node:
        case ast.Call(func=ast.Attribute(value=inner, attr="format" | "join")):
            return _composed(inner)
        case ast.Call(func=func):
            return _name(func) == "SQL"
        case _:
            return isinstance(node, ast.Name)


def _assigned(node: ast.AST) -> tuple[list[str], ast.expr | None]:
    match node:
        case ast.Assign():
            return [each.id for each in node.targets if isinstance(each, ast.Name)], node.value
        case ast.AnnAssign(target=ast.Name(id=name), annotation=declared):
            # The type checker checks that.
            return [name], ast.Constant("") if "LiteralString" in ast.unparse(declared) else node.value
        case ast.For(target=ast.Name(id=name)):
            return [name], node.iter
        case _:
            return [], None


def _name(node: ast.expr) -> str:
    match node:
        case ast.Name():
            return node.id
        case ast.Attribute():
            return node.attr
        case _:
            return ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_statement_stands_in_the_source(path: Path) -> None:
    results = [
        f"{path.name}:{call.lineno}: {ast.unparse(call)}"
        for call in Module(ast.parse(path.read_text())).unsafe()
    ]
    assert results == []


@pytest.mark.parametrize(
    "source",
    [
        "def f(c, name): c.exec_driver_sql(f'SELECT {name}')",
        "def f(name): return text('SELECT ' + name)",
        "def f(c, name): return run_sql(c, 'SELECT ' + name)",
        "def f(name): return text('SELECT {}'.format(name))",
        "def f(name): return text('SELECT %s' % name)",
        "def f(name):\n query = 'SELECT ' + name\n return text(query)",
        "def f(name):\n query = 'SELECT 1'\n query = name\n return text(query)",
        "def f(name): return sql.SQL(name).format()",
        "def f(name: str): return literal_column(name)",
        "def f(names): return text(names[0])",
        "from db.privacy.erasure_sql import dataclass\ndef f(): return text(dataclass)",
    ],
)
def test_a_statement_built_from_input_is_seen(source: str) -> None:
    assert list(Module(ast.parse(source)).unsafe())


# Texts in plain: the empty one of the nil row, and texts that keyword search reads.
PLAIN_ONLY = {"erasure_sql.py", "keywords.py"}


@pytest.mark.parametrize(
    "path",
    [path for path in SOURCES if path.name not in PLAIN_ONLY],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_whatever_reads_or_writes_texts_knows_that_they_may_be_sealed(path: Path) -> None:
    texts = [
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    named = [text for text in texts if "text_inputs" in text and re.search(r"\bcontent\b", text)]
    assert [text for text in named if "sealed" not in text] == []
