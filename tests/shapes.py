"""Checks the jaxtyping annotations of functions when they are called.

The package names jaxtyping under `if TYPE_CHECKING` only, since it is no dependency of its users. Here those imports
are run in each module after all, and its functions are decorated, before anything has taken them from it.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType

from beartype import beartype
from jaxtyping import jaxtyped


def check_package(name: str) -> None:
    """Imports every module of the package `name` and checks its functions from now on."""
    for module in pkgutil.walk_packages(importlib.import_module(name).__path__, name + "."):
        check_module(importlib.import_module(module.name))


def check_module(module: ModuleType) -> None:
    """Decorates the functions that `module` defines."""
    file = str(module.__file__)
    for node in ast.parse(Path(file).read_text()).body:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            exec(compile(ast.Module(node.body, []), file, "exec"), vars(module))
    for name, function in list(vars(module).items()):
        if inspect.isfunction(function) and function.__module__ == module.__name__:
            setattr(module, name, jaxtyped(typechecker=beartype)(function))
