"""Slips that a person makes, one at a time: where a module's code can be changed, and the changed code.

Not changed: messages, log lines, annotations, decorators, and what only a type checker reads.
"""

from __future__ import annotations

import ast
import copy
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
_LARGE = 50
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}
SPOKEN = ("log.", "_log.", "logging.", "print", "assert_never", "warnings.")
"""Calls that only say something; `assert_never` is for the type checker."""


@dataclass(frozen=True, slots=True)
class _Site:
    """A node of a module's tree that may be changed."""

    tree: ast.Module
    function: str
    node: ast.AST
    parent: ast.AST
    field: str
    index: int | None
    lines: tuple[int, int]

    def put(self, node: ast.AST) -> None:
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change. `key` names it by module, function and text, so that it outlives others."""

    module: str
    function: str
    text: str
    nth: int
    """Of those with the same text in the same function."""
    site: _Site
    changed: ast.AST

    @property
    def key(self) -> str:
        again = f" #{self.nth}" if self.nth > 1 else ""
        return f"{self.module}::{self.function}::{self.text}{again}"

    @property
    def drawn(self) -> bytes:
        """Orders a module's mutants by chance, the same at each call."""
        return hashlib.sha256(self.key.encode()).digest()

    @property
    def lines(self) -> range:
        """Of the statement, from 1: a test that runs none of them cannot notice."""
        return range(self.site.lines[0], self.site.lines[1] + 1)

    @property
    def source(self) -> str:
        """The whole changed module."""
        self.site.put(self.changed)
        try:
            return ast.unparse(ast.fix_missing_locations(self.site.tree))
        finally:
            self.site.put(self.site.node)


def mutants(module: str, source: str) -> list[Mutant]:
    """Every mutant of a module, in the order of its lines."""
    seen: Counter[tuple[str, str]] = Counter()
    found = []
    for site in _Sites(ast.parse(source)).found:
        if not site.function and _is_choice(site.node):
            continue
        for text, changed in _changed(site.node, site.parent):
            seen[site.function, text] += 1
            found.append(Mutant(module, site.function, text, seen[site.function, text], site, changed))
    return found


def function_source(source: str, function: str) -> str:
    """The text of one function or class; of the whole module where `function` is empty or not found."""
    body: list[ast.stmt] = ast.parse(source).body
    node: ast.stmt | None = None
    for name in filter(None, function.split(".")):
        node = next((n for n in body if getattr(n, "name", None) == name), None)
        body = getattr(node, "body", [])
    return source if node is None else ast.unparse(node)


class _Sites:
    """Walks a module and finds the nodes that may be changed."""

    def __init__(self, tree: ast.Module):
        self._tree = tree
        self.found: list[_Site] = []
        self._walk(tree, "", (1, 1))

    def _walk(self, node: ast.AST, function: str, lines: tuple[int, int]) -> None:
        for field, value in ast.iter_fields(node):
            if _silent(node, field):
                continue
            children = value if isinstance(value, list) else [value]
            for index, child in enumerate(children):
                if not isinstance(child, ast.AST) or _spoken(child):
                    continue
                name = f"{function}.{child.name}".lstrip(".") if isinstance(child, _NAMED) else function
                where = _header(child) if isinstance(child, ast.stmt) else lines
                at = index if isinstance(value, list) else None
                self.found.append(_Site(self._tree, name, child, node, field, at, where))
                self._walk(child, name, where)


_NAMED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _silent(node: ast.AST, field: str) -> bool:
    """Whether what stands here says nothing to the running program."""
    if field in ("annotation", "returns", "decorator_list", "bases", "type_params", "msg"):
        return True
    if isinstance(node, ast.AnnAssign | ast.Assign) and field in ("target", "targets"):
        return True
    if isinstance(node, ast.Raise):
        return True
    return isinstance(node, ast.Assign) and any(getattr(t, "id", "") == "__all__" for t in node.targets)


def _spoken(node: ast.AST) -> bool:
    if isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom | ast.Assert):
        return True
    if isinstance(node, ast.If):
        return ast.unparse(node.test) in ("__name__ == '__main__'", "TYPE_CHECKING")
    if not isinstance(node, ast.Expr):
        return False
    if isinstance(node.value, ast.Call):
        return ast.unparse(node.value.func).startswith(SPOKEN)
    return isinstance(node.value, ast.Constant)


def _header(node: ast.stmt) -> tuple[int, int]:
    """Lines that run when this statement is reached: of one with a body, those before it."""
    body = getattr(node, "body", None)
    last = node.end_lineno or node.lineno
    if not body or isinstance(node, _NAMED):
        return node.lineno, last
    heads = [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.expr | ast.withitem)]
    ends = [e for n in heads for c in ast.walk(n) if (e := getattr(c, "end_lineno", None))]
    return node.lineno, max(ends, default=node.lineno)


def _short(node: ast.AST) -> str:
    if isinstance(node, ast.If):
        return f"if {_short(node.test)}"
    return " ".join(ast.unparse(node).split())[:120]


def _changed(node: ast.AST, parent: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What takes the node's place, with the text that names the change."""
    if isinstance(node, ast.Constant):
        around = _short(parent if isinstance(parent, ast.expr | ast.keyword | ast.stmt) else node)
        for value in _other_values(node.value):
            yield f"{around}: {node.value!r} -> {value!r}", ast.Constant(value)
        return
    for after in _others(node):
        yield f"{_short(node)} -> {_short(after)}", after


def _is_choice(node: ast.AST) -> bool:
    """A module's own large number: whether it is 200 or 201 is nobody's promise."""
    value = node.value if isinstance(node, ast.Constant) else None
    return isinstance(value, int | float) and value >= _LARGE


def _other_values(value: object) -> Iterator[bool | float]:
    match value:
        case bool():
            yield not value
        case int() | float():
            yield value + 1
            if value > 1:
                yield value - 1


def _others(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Compare(ops=ops):
            for i, op in enumerate(ops):
                flipped = COMPARISONS[type(op)]()
                yield _with(node, ops=[*ops[:i], flipped, *ops[i + 1 :]])
        case ast.BoolOp(op=op, values=values):
            yield _with(node, op=ast.Or() if isinstance(op, ast.And) else ast.And())
            for i in range(len(values)):
                rest = [*values[:i], *values[i + 1 :]]
                yield rest[0] if len(rest) == 1 else _with(node, values=rest)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield operand
        case ast.BinOp(op=op) if type(op) in OPERATORS and not _text(node):
            yield _with(node, op=OPERATORS[type(op)]())
        case ast.Call(func=ast.Name(id=name)) if name in NAMES:
            yield _with(node, func=ast.Name(NAMES[name], ast.Load()))
        case ast.Call(func=ast.Name(id="replace"), keywords=keywords) if len(keywords) > 1:
            for left_out in keywords:
                yield _with(node, keywords=[k for k in keywords if k is not left_out])
        case ast.Subscript(slice=ast.Slice(), ctx=ast.Load(), value=value):
            yield value
        case ast.IfExp(body=body, orelse=orelse):
            yield body
            yield orelse
        case ast.If(test=ast.Name() | ast.Attribute() | ast.Call() | ast.NamedExpr() as test, body=body):
            yield ast.If(ast.UnaryOp(ast.Not(), test), body, node.orelse)
        case ast.comprehension(ifs=[_, *_]):
            yield _with(node, ifs=[])
        case ast.Return(value=ast.expr() as value) if not _none(value):
            yield ast.Return(ast.Constant(None))
        case ast.Break():
            yield ast.Continue()
        case (
            ast.Expr(value=ast.Call())
            | ast.AugAssign()
            | ast.Assign(targets=[ast.Attribute() | ast.Subscript()])
            | ast.Delete()
            | ast.Raise()
            | ast.Continue()
        ):
            yield ast.Pass()


def _with(node: ast.AST, **fields: object) -> ast.AST:
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def _text(node: ast.BinOp) -> bool:
    """Whether strings are put together, as far as one can see, or types."""
    sides = (node.left, node.right)
    return any(
        isinstance(s, ast.JoinedStr)
        or (isinstance(s, ast.Constant) and isinstance(s.value, str | type(None)))
        for s in sides
    )


def _none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None
