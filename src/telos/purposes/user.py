"""The user's own function, named as `file.py:function`.

It takes what TRL's reward functions take, by name, each a list of N:

    def reward(prompts, completions, answer, **kwargs): ...

`prompts` and `completions`; `completion_ids` (lists of token ids) if it names them; every other parameter is a column
of the data, and `**kwargs` takes all of these. A function whose first two parameters have other names takes prompts
and completions by position. It returns N numbers, higher is better. None means that the purpose does not apply to that
row: in a weighted sum the term is left out there (it counts 0, as in TRL), anywhere else it is an error.

Scores are remembered by content. A function whose score depends on chance, time or on the other rows of the call says
so with `function.cache = False`; so does one with a network inside, whose rounding depends on the size of its batch, if
a run with it is to be resumed bit for bit.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from telos.core.errors import TelosError
from telos.purposes.scoring import Rows, call


@dataclass(frozen=True)
class UserPurpose:
    """The user's function of prompts, completions and columns of the data; N numbers, higher is better.

    Args:
        origin: file name, function and the file's SHA-256: what a run records, and compares when it resumes.
    """

    function: Callable[..., Any]
    origin: str

    @property
    def cache(self) -> bool:
        """Whether its scores may be remembered: the function's own attribute `cache`, True without one."""
        return bool(getattr(self.function, "cache", True))

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> Any:
        """What the function returns, unchecked."""
        return call(self, Rows(prompts, completions, columns))


def user_function(file: Path, name: str) -> UserPurpose:
    """The function `name` of the user's `file`, imported as a module of its own.

    Raises:
        TelosError: no such file or function, or a file that cannot be imported.
    """
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise TelosError(f"{file} cannot be read", got=error.strerror or str(error), fix="check the path") from error
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
