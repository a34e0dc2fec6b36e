"""GC-TD3: discounted distances in closed form, its losses by hand, and what it joins that cloning does not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from telos.claims.stitching import walker
from telos.core.errors import TelosError
from telos.core.method import Spec
from telos.core.products import load_product
from telos.core.rng import Rng
from telos.data.goals import GoalSteps
from telos.data.records import Box, Discrete, Transitions
from telos.methods.goals.gc_td3 import GCTD3, GoalQLearner, GoalTD3Learner, goal_targets
from telos.worlds import corridor

SMALL: dict[str, Any] = {"hidden": (16,), "batch_size": 32, "learning_rate": 1e-3}
OPEN: dict[str, Any] = {"hidden": (64,), "batch_size": 128, "learning_rate": 3e-3, "discount": 0.8, "tau": 0.05}


def plane(rows: int = 400) -> Transitions:
    """Random moves in the square [-1, 1]^2, in episodes of 20: s' = clip(s + 0.1 a), actions in [-2, 2]."""
    generator = Rng(1000).torch()
    moves = 4 * torch.rand(rows, 2, generator=generator) - 2
    states, nexts = torch.zeros(rows, 2), torch.zeros(rows, 2)
    for t in range(rows):
        states[t] = 2 * torch.rand(2, generator=generator) - 1 if t % 20 == 0 else nexts[t - 1]
        nexts[t] = (states[t] + 0.1 * moves[t]).clamp(-1, 1)
    return Transitions.validated(
        observations=states, actions=moves, rewards=torch.zeros(rows), next_observations=nexts,
        terminated=torch.zeros(rows), truncated=torch.arange(rows) % 20 == 19,
        action_space=Box((-2.0, -2.0), (2.0, 2.0)),
    )  # fmt: skip


def chain(n: int = 5) -> Transitions:
    """Random moves on a chain of n states, one-hot, in episodes of 12."""
    moves = torch.randint(2, (100, 12), generator=Rng(1000).torch())
    cells = [torch.arange(100) % n]
    for t in range(12):
        cells.append((cells[-1] + 2 * moves[:, t] - 1).clamp(0, n - 1))
    places = one_hot(torch.stack(cells, 1), n).float()
    ends = torch.zeros(100, 12, dtype=torch.bool)
    ends[:, -1] = True
    return Transitions.validated(
        observations=places[:, :-1].flatten(0, 1), actions=moves.flatten(), rewards=torch.zeros(1200),
        next_observations=places[:, 1:].flatten(0, 1), terminated=torch.zeros(1200), truncated=ends.flatten(),
        action_space=Discrete(2),
    )  # fmt: skip


def spec(method: GCTD3, data: Transitions) -> Spec:
    return method.prepare(Spec(data, {}, 10, torch.device("cpu"), Rng(0)))


def learner(data: Transitions, **options: Any) -> Any:
    method = GCTD3(**{**SMALL, **options})
    return method.learner(spec(method, data), Rng(0))


def batch(method: GCTD3, data: Transitions) -> GoalSteps:
    drawn = method.source(spec(method, data)).next(lambda: None, Rng(1))  # type: ignore[arg-type, return-value]
    assert isinstance(drawn, GoalSteps)
    return drawn


def test_targets_end_with_the_step_that_reaches_the_goal_and_stay_within_the_returns_there_are():
    reached, later = torch.tensor([True, False, False, False]), torch.tensor([-3.0, -1.0, -9.0, 4.0])
    assert goal_targets("minus_one", reached, later, 0.5).tolist() == [0.0, -1.5, -2.0, 0.0]
    assert goal_targets("zero_one", reached, later, 0.5).tolist() == [1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("reward", ["minus_one", "zero_one"])
def test_on_a_chain_the_targets_repeated_give_discounted_distances(reward: str):
    # Every state, move and goal in a table: Q is what is left after the move.
    cells = torch.arange(7)
    nexts = torch.stack([(cells - 1).clamp(min=0), (cells + 1).clamp(max=6)], 1)
    table = torch.zeros(7, 2, 7)
    for _ in range(60):
        reached = nexts[..., None] == cells
        table = goal_targets(reward, reached.flatten(), table.amax(1)[nexts].flatten(), 0.8).view(7, 2, 7)
    apart = (nexts[..., None] - cells).abs().float()
    wanted = -(1 - 0.8**apart) / 0.2 if reward == "minus_one" else 0.8**apart
    assert torch.allclose(table, wanted, atol=1e-4)


def test_the_losses_of_discrete_actions_are_the_equation():
    mine = learner(chain(), discount=0.9, bc_weight=0.3)
    part = batch(mine.method, chain())
    assert isinstance(mine, GoalQLearner)
    for parameter in mine.target.parameters():
        parameter.mul_(1.7)  # so that who chooses and who values are told apart
    x, after = (torch.cat([o, part.goals], -1) for o in (part.observations, part.next_observations))
    net = mine.policy.actor.net
    rows = torch.arange(32)
    later = mine.target(after)[rows, net(after).argmax(-1)]
    reached = (part.next_observations == part.goals).all(-1)
    assert 0 < reached.sum() < 32
    y = torch.where(reached, 0.0, -1 + 0.9 * later).clamp(-10, 0)
    losses = mine.losses(part)
    q = net(x)
    assert torch.isclose(losses["critic_loss"], (q[rows, part.actions] - y).square().sum(), rtol=1e-4)
    assert torch.isclose(losses["gap"], -0.3 * q.log_softmax(-1)[rows, part.actions].sum(), rtol=1e-4)


def test_the_losses_of_continuous_actions_are_the_equations():
    mine = learner(plane(), discount=0.9, bc_weight=0.3, tolerance=0.3, policy_noise=0.4, noise_clip=0.3)
    assert isinstance(mine, GoalTD3Learner)
    part = batch(mine.method, plane())
    noise = torch.randn(32, 2, generator=Rng(2).torch())
    x, after = (torch.cat([o, part.goals], -1) for o in (part.observations, part.next_observations))
    smoothed = (2 * torch.tanh(mine.policy.actor.net(after)) + 2 * (0.4 * noise).clamp(-0.3, 0.3)).clamp(-2, 2)
    near = (part.next_observations - part.goals).norm(dim=-1) <= 0.3
    assert 0 < near.sum() < 32
    y = torch.where(near, 0.0, -1 + 0.9 * mine.critic(after, smoothed).amin(0)).clamp(-10, 0)
    assert torch.allclose(mine.targets(part, noise), y, atol=1e-6)
    errors = (mine.critic(x, part.actions) - y).square().sum(0).mean()
    chosen = 2 * torch.tanh(mine.policy.actor.net(x))
    q = mine.critic(x, chosen)[0]
    wanted = -q.mean() / q.abs().mean() + 0.3 * ((chosen - part.actions) / 2).square().mean()
    before = [p.detach().clone() for p in mine.critic.parameters()]
    assert float(mine.improve_policy([part], 32)["policy_loss"]) == pytest.approx(wanted.item(), rel=1e-4)
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, mine.critic.parameters()))
    assert mine.critic_loss(part, noise)[0].item() / 32 == pytest.approx(errors.item(), rel=1e-4)


def test_the_policy_and_the_copies_move_every_other_update():
    mine = learner(plane(), tau=0.1)
    first, *_ = mine.policy.parameters()
    copied, *_ = mine.target_critic.parameters()
    for update in range(1, 5):
        policy, copy = first.detach().clone(), copied.clone()
        mine.update(batch(mine.method, plane()), Rng(update))
        assert torch.equal(policy, first) == torch.equal(copy, copied) == bool(update % 2)


@pytest.mark.parametrize("data", [plane(), chain()], ids=["continuous", "discrete"])
def test_parts_of_a_batch_agree_with_the_whole(data: Transitions):
    whole, parts = learner(data), learner(data)
    for step in range(4):
        drawn = batch(whole.method, data)
        first, second = whole.update(drawn, Rng(step)), parts.update(drawn, Rng(step), 5)
        assert first.keys() == second.keys()
        assert all(float(first[name]) == pytest.approx(float(second[name]), rel=1e-4, abs=1e-6) for name in first)
    for a, b in zip(whole.policy.parameters(), parts.policy.parameters()):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"reward": "zero_one", "tolerance": 0.2}])
def test_from_random_moves_it_goes_where_the_goal_is(options: dict[str, Any]):
    made = GCTD3(**{**OPEN, "tolerance": 0.2, **options}).fit(plane(2000), steps=600, seed=0, device="cpu")
    grid = torch.cartesian_prod(torch.linspace(-0.6, 0.6, 5), torch.linspace(-0.6, 0.6, 5))
    for goal in (torch.tensor([0.9, 0.9]), torch.tensor([-0.9, -0.9])):
        actions = made.act(grid, goal=goal).action
        assert torch.cosine_similarity(actions, goal - grid).mean() > 0.7


def test_values_of_a_chain_are_its_distances_and_the_policy_is_saved(tmp_path: Path):
    data = chain()
    mine = learner(data, **OPEN, bc_weight=0.0)
    source = mine.method.source(spec(mine.method, data))
    for step in range(400):
        mine.update(source.next(mine.behaviour, Rng(1).at(step)), Rng(0))
    places = torch.eye(5)
    cells = torch.tensor([0, 1, 3, 4])
    assert torch.equal(mine.policy.act(places[cells], goal=places[2]).action, (cells < 2).long())
    values = mine.policy.actor.net(torch.cat([places, places[2].expand(5, -1)], -1))
    # After the move left or right: so many steps are left.
    left = torch.tensor([[2.0, 1], [2, 0], [1, 1], [0, 2], [1, 2]])
    assert (values - -(1 - 0.8**left) / 0.2).abs().max() < 0.35
    loaded = load_product(mine.policy.save(tmp_path / "product"))
    assert torch.equal(loaded.act(places, goal=places[2]).action, mine.policy.act(places, goal=places[2]).action)


def test_it_joins_episodes_where_no_single_one_leads_to_the_goal():
    # Cloning with plain goals reaches less than 0.2 of these pairs (test_stitching).
    data = corridor.demonstrations(500, Rng(1000))
    options = {**OPEN, "hidden": (64, 64), "discount": 0.9, "tau": 0.02, "future_goals": 0.3}
    policy = GCTD3(**options).fit(data, steps=1600, seed=1000, device="cpu")
    found = corridor.measures(lambda: walker(policy, corridor.one_hot))
    assert found["seen"] > 0.95 and found["unseen"] > 0.8


def test_what_does_not_fit_is_refused():
    for name, value in (
        ("discount", 1.0), ("future_goals", 1.1), ("bc_weight", -0.1), ("tolerance", -1.0), ("policy_every", 0),
        ("goal_columns", ()), ("observation_columns", (9,)),
    ):  # fmt: skip
        with pytest.raises(TelosError, match=name):
            GCTD3(**{name: value}).fit(plane(), steps=1)  # type: ignore[arg-type]


def test_the_goal_is_what_the_columns_say():
    mine = learner(plane(), goal_columns=(1,), observation_columns=(0,))
    part = batch(mine.method, plane())
    assert part.goals.shape == (32, 1)
    seen = torch.tensor([[0.3, 0.7], [0.3, -0.7]])
    actions: Tensor = mine.policy.act(seen, goal=[0.2]).action
    assert torch.equal(actions[0], actions[1]) and actions.shape == (2, 2)
