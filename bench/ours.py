"""The gate of telos's own workers."""

from __future__ import annotations

from dataclasses import asdict

from serve import Gate
from telos.core.numerics import current


def gate(*packages: str, **amounts: float) -> Gate:
    """A Gate that tells the numerical path besides the versions."""
    made = Gate("telos", "torch", *packages, **amounts)
    made.about["versions"] |= asdict(current())
    return made
