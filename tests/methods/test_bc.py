import math
from pathlib import Path

import pytest
import torch

from telos.core.products import load_product
from telos.core.rng import Rng
from telos.data.records import Box, Discrete, Transitions
from telos.methods.offline_rl.bc import BC, negative_log_likelihood, squared_error
from telos.nets.policies import CategoricalPolicy, DeterministicPolicy


def record(observations: torch.Tensor, actions: torch.Tensor, space: Box | Discrete) -> Transitions:
    rows = len(observations)
    return Transitions.validated(
        observations=observations,
        actions=actions,
        rewards=torch.zeros(rows),
        next_observations=observations,
        terminated=torch.zeros(rows),
        truncated=torch.zeros(rows),
        action_space=space,
    )


def coins(rows: int = 600) -> Transitions:
    """Actions 1.5 in three quarters of the rows and -0.5 in the others, whatever the observation."""
    actions = torch.where(torch.arange(rows) % 4 == 0, -0.5, 1.5)[:, None]
    return record(torch.randn(rows, 2, generator=Rng(1000).torch()), actions, Box((-2.0,), (2.0,)))


OPTIONS = {"hidden": (16,), "learning_rate": 5e-3, "batch_size": 128}


@pytest.mark.parametrize("kind", ["deterministic", "gaussian"])
def test_it_learns_the_mean_of_the_recorded_actions(kind: str):
    policy = BC(kind=kind, **OPTIONS).fit(coins(), steps=400, seed=1000, device="cpu")
    actions = policy.act(coins().observations).action
    assert abs(actions.mean().item() - 1.0) < 0.06 and actions.std().item() < 0.15


def test_the_gaussians_width_is_that_of_the_data():
    policy = BC(kind="gaussian", **OPTIONS).fit(coins(), steps=600, seed=1000, device="cpu")
    # sqrt(3/4 * 1/4) * 2 = 0.866, in half widths of 2.
    assert abs(policy.log_std.exp().item() * 2 - math.sqrt(0.75)) < 0.08


def test_discrete_actions_are_classified():
    rng = Rng(1001).torch()
    observations = torch.randn(600, 2, generator=rng)
    labels = (observations[:, 0] > 0).long() + 2 * (observations[:, 1] > 0).long()
    policy = BC(**OPTIONS).fit(record(observations, labels, Discrete(4)), steps=300, seed=1000, device="cpu")
    assert (policy.act(observations).action == labels).float().mean() > 0.95


def test_losses_by_hand():
    policy = DeterministicPolicy(1, (-2.0,), (2.0,), ())
    total, count = squared_error(policy, torch.zeros(2, 1), torch.tensor([[1.0], [-2.0]]))
    assert (total.item(), count) == (0.25 + 1.0, 2)
    total, count = negative_log_likelihood(CategoricalPolicy(1, 4, ()), torch.zeros(3, 1), torch.tensor([0, 1, 3]))
    assert math.isclose(total.item(), 3 * math.log(4), rel_tol=1e-6) and count == 3


@pytest.mark.parametrize("kind", ["deterministic", "gaussian"])
def test_parts_of_a_batch_agree_with_the_whole(kind: str):
    runs = [BC(kind=kind, **OPTIONS).fit(coins(), steps=3, device="cpu", micro=micro) for micro in (1, 8)]
    first, second = (torch.cat([p.detach().flatten() for p in run.parameters()]) for run in runs)
    assert torch.allclose(first, second, atol=1e-5)


def test_a_killed_run_resumes_bit_for_bit_and_loads(tmp_path: Path):
    method, data = BC(kind="gaussian", **OPTIONS), coins()
    whole = method.fit(data, steps=20, seed=3, device="cpu")

    def kill(step: int, product: object) -> dict[str, float]:
        raise KeyboardInterrupt

    run = {"steps": 20, "seed": 3, "device": "cpu", "out": tmp_path / "run", "checkpoint_every": 9}
    with pytest.raises(KeyboardInterrupt):
        method.fit(data, **run, evaluate=kill, evaluate_every=15)
    method.fit(data, **run, resume=True)
    loaded = load_product(tmp_path / "run")
    assert torch.equal(loaded.act(data.observations).action, whole.act(data.observations).action)
