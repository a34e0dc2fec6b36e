"""The options of a method for `telos fit METHOD --help`, read from its source: importing its module imports torch."""

from __future__ import annotations

import ast
import builtins
import dataclasses
import functools
import importlib
import itertools
import operator
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import tyro

from telos.core.registry import PACKAGE, entry

NOT_UNDERSTOOD = (AttributeError, LookupError, OSError, TypeError, ValueError)
"""What comes of reading a source that says more than is understood here."""


def outline(name: str) -> type[Any] | None:
    """A dataclass with the options of a method, their defaults and texts; None where only the class itself has them."""
    try:
        return outlined(name)
    except NOT_UNDERSTOOD:
        return None


def outlined(name: str) -> type[Any]:
    """The outline of `slug` or `slug.variant`."""
    slug, _, variant = name.partition(".")
    found = entry(slug)
    classes = {one.lower(): one for one in found.classes} | {"": found.classes[0]}
    return told(found.module, classes[variant.lower().replace("_", "")])


@functools.cache
def told(module: str, name: str) -> Any:
    """What `name` is in a module: in one of telos by its source, in any other by import."""
    if (module, name) == ("telos.core.registry", "use"):
        return lambda method, **options: outlined(method)(**options)
    if module.partition(".")[0] == "telos":
        return names(module)[name]()
    return getattr(importlib.import_module(module), name)


@functools.cache
def names(module: str) -> dict[str, Callable[[], Any]]:
    """What the statements of a module's source define, each worked out when it is asked for."""
    found: dict[str, Callable[[], Any]] = {}
    for node in ast.parse(PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py").read_text()).body:
        found |= DEFINE.get(type(node), lambda node, module: {})(node, module)
    return found


DEFINE: dict[type[ast.stmt], Callable[[Any, str], dict[str, Callable[[], Any]]]] = {
    ast.ClassDef: lambda node, module: {node.name: partial(options, node, module)},
    ast.Assign: lambda node, module: {ast.unparse(one): partial(value, node.value, module) for one in node.targets},
    ast.AnnAssign: lambda node, module: {ast.unparse(node.target): partial(value, node.value, module)},
    ast.Import: lambda node, _: {it.asname or it.name: partial(importlib.import_module, it.name) for it in node.names},
    ast.ImportFrom: lambda node, _: {it.asname or it.name: partial(told, node.module, it.name) for it in node.names},
}


def options(node: ast.ClassDef, module: str) -> type[Any]:
    """A dataclass with the fields of another; the texts after them are annotations, as tyro finds no source here."""
    text = ast.get_docstring(node, clean=False)
    if text is None or [ast.unparse(one) for one in node.decorator_list] != ["dataclass(frozen=True)"]:
        raise LookupError(f"{node.name} is not understood")
    fields = [
        (ast.unparse(one.target), Annotated[value(one.annotation, module), described(after)], value(one.value, module))
        for one, after in itertools.zip_longest(node.body, node.body[1:], fillvalue=ast.Pass())
        if isinstance(one, ast.AnnAssign) and not ast.unparse(one.annotation).startswith("ClassVar")
    ]
    bases = tuple(value(base, module) for base in node.bases)
    return dataclasses.make_dataclass(node.name, fields, bases=bases, namespace={"__doc__": text}, frozen=True)


def described(node: ast.stmt) -> Any:
    """The text after a field as tyro's annotation."""
    text = ast.get_docstring(ast.Module([node], []))
    if text is None or "\n\n" in text:  # tyro looks for comments then, and sets paragraphs in its own way
        raise LookupError("no text of one paragraph")
    return tyro.conf.arg(help=text)


def value(node: Any, module: str) -> Any:
    """What an expression in a module means."""
    return VALUES[type(node)](node, module)


def named(node: ast.Name, module: str) -> Any:
    return told(module, node.id) if node.id in names(module) else getattr(builtins, node.id)


def called(node: ast.Call, module: str) -> Any:
    arguments = [value(one, module) for one in node.args]
    return value(node.func, module)(*arguments, **{str(one.arg): value(one.value, module) for one in node.keywords})


OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.BitOr: operator.or_,
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}
VALUES: dict[type[ast.AST], Callable[[Any, str], Any]] = {
    ast.Constant: lambda node, module: node.value,
    ast.Name: named,
    ast.Attribute: lambda node, module: getattr(value(node.value, module), node.attr),
    ast.Tuple: lambda node, module: tuple(value(one, module) for one in node.elts),
    ast.Subscript: lambda node, module: value(node.value, module)[value(node.slice, module)],
    ast.BinOp: lambda node, module: OPERATORS[type(node.op)](value(node.left, module), value(node.right, module)),
    ast.UnaryOp: lambda node, module: OPERATORS[type(node.op)](value(node.operand, module)),
    ast.Call: called,
}
