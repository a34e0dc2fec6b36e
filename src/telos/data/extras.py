"""Packages that are not core dependencies: imported when used, and named with their extra when missing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from telos.core.errors import TelosError


@contextlib.contextmanager
def extra(name: str, why: str) -> Iterator[None]:
    """Turns a failed import in its block into a TelosError that says which extra of telos brings the package.

    Args:
        name: the extra ("rl", "lm", "mujoco").
        why: what needs the package, for the message.
    """
    try:
        yield
    except ImportError as error:
        raise TelosError(
            f"{why}: the package '{error.name}' is not installed", fix=f'pip install "telos[{name}]"'
        ) from error
