"""Signs that a run cannot be learning; each stops it with the reason."""

from __future__ import annotations

import math
from collections.abc import Mapping

from telos.core.errors import HealthError


class Health:
    """Watches the metrics of consecutive updates.

    Stops on NaN or infinity at once, and when the gradient has been exactly zero for `patience` updates
    in a row (metric `grad_norm`, where a learner reports it).
    """

    def __init__(self, patience: int = 50):
        self.patience = patience
        self.zero_gradients = 0

    def check(self, step: int, metrics: Mapping[str, float]) -> None:
        """Raises HealthError naming the metric and the step."""
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise HealthError(
                    f"{name} became {value} at step {step}",
                    expected="finite numbers",
                    fix="lower the learning rate, clip gradients, or look for NaN and outliers in the data",
                )
        self.zero_gradients = self.zero_gradients + 1 if metrics.get("grad_norm") == 0.0 else 0
        if self.zero_gradients >= self.patience:
            raise HealthError(
                f"the gradient has been exactly zero for {self.patience} updates (step {step})",
                expected="a gradient: nothing is being learned",
                fix="look for identical chosen and rejected texts, a constant reward, or frozen parameters",
            )
