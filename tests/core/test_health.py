import math

import pytest
import torch

from telos.core.errors import HealthError
from telos.core.health import Health


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_stops_at_once(bad: float):
    health = Health()
    health.check(1, {"loss": 1.0, "kl": -3.0})
    with pytest.raises(HealthError, match=f"kl became {bad} at step 2"):
        health.check(2, {"loss": 1.0, "kl": bad})


def test_a_gradient_of_zero_is_borne_for_a_while():
    health = Health(patience=50)
    for step in (10, 20, 30, 40, 50):
        health.check(step, {"grad_norm": 0.0})
    with pytest.raises(HealthError, match="50 updates"):
        health.check(60, {"grad_norm": 0.0})


def test_one_gradient_in_between_starts_the_count_again():
    health = Health(patience=50)
    for step in range(10, 300, 10):
        health.check(step, {"grad_norm": 1e-9 if step % 50 == 0 else 0.0})
    for step in range(300, 600, 10):
        health.check(step, {"loss": 0.0})


def test_a_parameter_that_is_not_finite_is_named():
    health = Health()
    health.check_state(1, {"net.weight": torch.ones(2), "count": torch.tensor([1])})
    with pytest.raises(HealthError, match=r"net\.bias holds nan or infinity at step 4"):
        health.check_state(4, {"net.weight": torch.ones(2), "net.bias": torch.tensor([1.0, math.inf])})
