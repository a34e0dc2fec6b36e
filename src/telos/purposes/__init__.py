"""Purposes by name: a saved reward model, or a function in a file of the user's."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from telos.core.errors import TelosError

FORMS = "the folder of a saved reward model, or file.py:function"


@dataclass(frozen=True)
class UserPurpose:
    """The user's function (prompts, completions) -> N numbers, higher is better.

    Args:
        origin: file name, function and the file's SHA-256: what a run records, and compares when it resumes.
    """

    function: Callable[..., Any]
    origin: str

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any]) -> Any:
        return self.function(prompts, completions)


def resolve(text: str) -> Any:
    """The purpose that `text` names; it has an attribute `origin`, a string.

    Args:
        text: a folder with a saved Scorer (or a run that trained one), or `file.py:function`. The file is imported
            as a module of its own; what it imports must be installed or on the path.

    Raises:
        TelosError: no such folder, file or function; a product that does not score; a file that cannot be imported.
    """
    folder = Path(text).expanduser()
    if folder.is_dir():
        return scorer(folder)
    file, colon, name = text.rpartition(":")
    if not colon or not file.endswith(".py") or not name:
        raise TelosError(f"no such purpose: {text}", expected=FORMS, fix="check the path")
    return user_function(Path(file).expanduser(), name)


def scorer(folder: Path) -> Any:
    """The saved Scorer in `folder`."""
    from telos.core.products import Scorer, load_product

    product = load_product(folder)
    if not isinstance(product, Scorer):
        raise TelosError(f"{folder} does not score", expected="a Scorer", got=type(product).__name__)
    vars(product)["origin"] = str(folder.absolute())
    return product


def user_function(file: Path, name: str) -> UserPurpose:
    """The function `name` of the user's `file`."""
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise TelosError(f"{file} cannot be read", expected=FORMS, got=error.strerror or str(error)) from error
    module_name = f"telos_purpose_{file.stem}_{digest[:8]}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by its name.
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise TelosError(f"{file} cannot be imported", got=f"{type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        own = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise TelosError(f"{file} has no function '{name}'", expected=" or ".join(own) or "a function")
    return UserPurpose(function, f"{file.name}:{name} sha256:{digest}")
