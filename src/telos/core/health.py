"""Signs that a run cannot be learning; each stops it with the reason."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from telos.core.errors import HealthError

if TYPE_CHECKING:
    from torch import Tensor


class Health:
    """Watches the metrics of consecutive updates.

    Stops on NaN or infinity at once, and when the gradient was exactly zero in all that it saw of `patience` updates
    (metric `grad_norm`, where a learner reports it).
    """

    def __init__(self, patience: int = 50):
        self.patience = patience
        self.zero_since: int | None = None

    def check(self, step: int, metrics: Mapping[str, float]) -> None:
        """Raises HealthError naming the metric and the step."""
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise HealthError(
                    f"{name} became {value} at step {step}",
                    expected="finite numbers",
                    fix="lower the learning rate, clip gradients, or look for NaN and outliers in the data",
                )
        if metrics.get("grad_norm") != 0.0:
            self.zero_since = None
            return
        self.zero_since = step if self.zero_since is None else self.zero_since
        if step - self.zero_since >= self.patience:
            raise HealthError(
                f"the gradient has been exactly zero for {self.patience} updates (step {step})",
                expected="a gradient: nothing is being learned",
                fix="look for identical chosen and rejected texts, a constant reward, or frozen parameters",
            )

    def check_state(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Raises HealthError naming a parameter that is not finite: the reason for an error further on."""
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise HealthError(
                    f"{name} holds nan or infinity at step {step}",
                    expected="finite numbers",
                    fix="lower the learning rate, clip gradients, or look for NaN and outliers in the data",
                )
