"""GCIQL: values on a chain in closed form, its losses by hand, its goals, a classifier's odds, both extractions."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.method import Spec
from telos.core.products import load_product
from telos.core.rng import Rng
from telos.core.sources import Both
from telos.data.goals import GoalSteps
from telos.data.records import Box, Discrete, Transitions
from telos.methods.goals.gciql import GCIQL, GCIQLLearner, goal_targets

SMALL = {"hidden": (16,), "batch_size": 32, "learning_rate": 1e-3}


def plane(rows: int = 400) -> Transitions:
    """Random moves in the square [-1, 1]^2, in episodes of 20: s' = clip(s + 0.2 a)."""
    generator = Rng(1000).torch()
    moves = 2 * torch.rand(rows, 2, generator=generator) - 1
    states, nexts = torch.zeros(rows, 2), torch.zeros(rows, 2)
    for t in range(rows):
        states[t] = 2 * torch.rand(2, generator=generator) - 1 if t % 20 == 0 else nexts[t - 1]
        nexts[t] = (states[t] + 0.2 * moves[t]).clamp(-1, 1)
    return Transitions.validated(
        observations=states, actions=moves, rewards=torch.zeros(rows), next_observations=nexts,
        terminated=torch.zeros(rows), truncated=torch.arange(rows) % 20 == 19,
        action_space=Box((-1.0, -1.0), (1.0, 1.0)),
    )  # fmt: skip


def chain(n: int = 5) -> Transitions:
    """Random moves on a chain of n states, one-hot, in episodes of 12."""
    moves = torch.randint(2, (100, 12), generator=Rng(1000).torch())
    cells = [torch.arange(100) % n]
    for t in range(12):
        cells.append((cells[-1] + 2 * moves[:, t] - 1).clamp(0, n - 1))
    one_hot = torch.nn.functional.one_hot(torch.stack(cells, 1), n).float()
    ends = torch.zeros(100, 12, dtype=torch.bool)
    ends[:, -1] = True
    return Transitions.validated(
        observations=one_hot[:, :-1].flatten(0, 1), actions=moves.flatten(), rewards=torch.zeros(1200),
        next_observations=one_hot[:, 1:].flatten(0, 1), terminated=torch.zeros(1200), truncated=ends.flatten(),
        action_space=Discrete(2),
    )  # fmt: skip


def spec(method: GCIQL, data: Transitions) -> Spec:
    return method.prepare(Spec(data, {}, 10, torch.device("cpu"), Rng(0)))


def learner(data: Transitions, **options: object) -> GCIQLLearner:
    method = GCIQL(**{**SMALL, **options})  # type: ignore[arg-type]
    return method.learner(spec(method, data), Rng(0))


def batch(method: GCIQL, data: Transitions) -> Both:
    return method.source(spec(method, data)).next(lambda: None, Rng(1))  # type: ignore[arg-type, return-value]


def steps(record: object) -> GoalSteps:
    assert isinstance(record, GoalSteps)
    return record


def joined(part: GoalSteps, following: bool = False) -> Tensor:
    return torch.cat([part.next_observations if following else part.observations, part.goals], -1)


def test_targets_end_at_the_goal_and_only_there():
    arrived, odds, later = torch.tensor([True, False]), torch.tensor([0.3, -0.7]), torch.tensor([5.0, -4.0])
    assert torch.allclose(goal_targets("minus_one", arrived, odds, later, 0.5), torch.tensor([0.0, -3.0]))
    assert torch.allclose(goal_targets("zero_one", arrived, odds, later, 0.5), torch.tensor([1.0, -2.0]))
    assert torch.allclose(goal_targets("log_ratio", arrived, odds, later, 0.5), torch.tensor([2.8, -2.7]))


@pytest.mark.parametrize("reward", ["minus_one", "zero_one"])
def test_on_a_chain_the_targets_repeated_give_discounted_distances(reward: str):
    # Every state, move and goal in a table, V the maximum over moves.
    cells = torch.arange(7)
    nexts = torch.stack([(cells - 1).clamp(min=0), (cells + 1).clamp(max=6)], 1)
    values = torch.zeros(7, 7)
    for _ in range(60):
        after = values[nexts].flatten(2).amax(1)  # the discount is positive: the better move has the larger target
        arrived = (cells[:, None] == cells).flatten()
        values = goal_targets(reward, arrived, torch.zeros(49), after.flatten(), 0.8).view(7, 7)
    apart = (cells[:, None] - cells).abs().float()
    wanted = -(1 - 0.8**apart) / 0.2 if reward == "minus_one" else 0.8**apart
    assert torch.allclose(values, wanted, atol=1e-4)


def test_the_losses_are_the_equations():
    mine = learner(plane(), discount=0.9, current_goals=0.5, future_goals=0.5)
    drawn = batch(mine.method, plane())
    part, own = steps(drawn.first), steps(drawn.second)
    x, after = joined(part), joined(part, following=True)
    here = (part.goals == part.observations).all(-1)
    assert 5 < here.sum() < 27
    y = torch.where(here, 0.0, -1 + 0.9 * mine.value(after))
    u = mine.target_critic(x, part.actions).amin(0) - mine.value(x)
    losses = mine.losses(drawn, torch.ones(()))
    assert torch.isclose(losses["critic_loss"], (mine.critic(x, part.actions) - y).square().sum(), rtol=1e-4)
    assert torch.isclose(losses["value_loss"], (torch.where(u < 0, 0.1, 0.9) * u**2).sum(), rtol=1e-4)
    x = joined(own)
    u = mine.target_critic(x, own.actions).amin(0) - mine.value(x)
    log_probs = mine.policy.actor.log_likelihood(x, own.actions)  # type: ignore[operator]
    assert torch.isclose(losses["policy_loss"], -((3 * u).exp().clamp(max=100) * log_probs).sum(), rtol=1e-4)


def test_ddpg_bc_is_the_equation_and_moves_the_policy_alone():
    mine = learner(plane(), extraction="ddpg_bc", bc_weight=0.7)
    drawn = batch(mine.method, plane())
    own = steps(drawn.second)
    x = joined(own)
    q = mine.target_critic(x, torch.tanh(mine.policy.actor.net(x))).amin(0)  # type: ignore[operator]
    log_probs = mine.policy.actor.log_likelihood(x, own.actions)  # type: ignore[operator]
    found = mine.losses(drawn, mine.value_size(drawn))["policy_loss"]
    assert torch.isclose(found, -q.sum() / q.abs().mean() - 0.7 * log_probs.sum(), rtol=1e-4)
    found.backward()
    others = [*mine.critic.parameters(), *mine.value.parameters(), *mine.target_critic.parameters()]
    assert all(p.grad is None for p in others) and all(p.grad is not None for p in mine.policy.parameters())


def test_goals_come_from_where_the_options_say():
    data = plane()
    method = GCIQL(batch_size=3000, current_goals=0.2, future_goals=0.5)
    drawn = batch(method, data)
    part, own = steps(drawn.first), steps(drawn.second)

    def row(states: Tensor, where: Tensor) -> Tensor:
        return (states[:, None] == where).all(-1).float().argmax(1)

    here = (part.goals == part.observations).all(-1)
    assert 0.17 < here.float().mean() < 0.23
    episode, goal = row(part.observations, data.observations) // 20, row(part.goals, data.next_observations) // 20
    # A goal from any other episode: 0.3 of them, less one in 20.
    assert 0.25 < (episode != goal)[~here].float().mean() * (~here).float().mean() < 0.32
    first, last = row(own.observations, data.observations), row(own.goals, data.next_observations)
    later = (last >= first) & (first // 20 == last // 20)
    assert later.float().mean() > 0.97  # corners are visited twice: then the first visit is found


def test_within_the_tolerance_counts_as_there():
    mine = learner(plane(), tolerance=0.5, current_goals=0.0, future_goals=1.0)
    drawn = batch(mine.method, plane())
    part = steps(drawn.first)
    near = (part.goals - part.observations).norm(dim=-1) <= 0.5
    assert 0 < near.sum() < 32
    y = torch.where(near, 0.0, -1 + 0.99 * mine.value(joined(part, following=True)))
    wanted = (mine.critic(joined(part), part.actions) - y).square().sum()
    assert torch.isclose(mine.losses(drawn, torch.ones(()))["critic_loss"], wanted, rtol=1e-4)


def test_the_classifier_learns_log_odds_of_entering_and_they_are_the_reward():
    mine = learner(plane(), reward="log_ratio")
    drawn = batch(mine.method, plane())
    assert isinstance(drawn.second, Both)
    part, entering = steps(drawn.first), steps(drawn.second.second)
    assert torch.equal(entering.goals, entering.next_observations)
    yes, no = mine.classifier(joined(entering), entering.actions), mine.classifier(joined(part), part.actions)
    losses = mine.losses(drawn, torch.ones(()))
    cross_entropy = -(torch.sigmoid(yes).log().sum() + torch.sigmoid(-no).log().sum())
    assert torch.isclose(losses["classifier_loss"], cross_entropy, rtol=1e-4)
    y = no.mean(0) + 0.99 * mine.value(joined(part, following=True))
    assert torch.isclose(losses["critic_loss"], (mine.critic(joined(part), part.actions) - y).square().sum(), rtol=1e-4)
    options = {"hidden": (32,), "batch_size": 256, "learning_rate": 1e-2, "reward": "log_ratio", "discount": 0.5}
    method = GCIQL(**options, current_goals=0.0, future_goals=0.0)  # type: ignore[arg-type]
    made, source = method.learner(spec(method, chain()), Rng(0)), method.source(spec(method, chain()))
    for step in range(150):
        made.update(source.next(made.behaviour, Rng(1).at(step)), Rng(0))
    # Goals are random here: a step to the right from 1 enters 2, which rho asks for as often as 2 is visited.
    places = torch.eye(5)
    asked = torch.cat([places[[1, 1]], places[[2, 4]]], -1)
    odds = made.classifier(asked, torch.ones(2, dtype=torch.int64)).mean(0).detach()
    share = (chain().next_observations.argmax(-1) == 2).float().mean()
    assert float(odds[0]) == pytest.approx(-float(share.log()), abs=0.5) and odds[1] < -2


OPEN = {"hidden": (64,), "batch_size": 128, "learning_rate": 3e-3, "discount": 0.8, "tau": 0.05}


@pytest.mark.parametrize("options", [{}, {"reward": "zero_one", "beta": 20.0}, {"extraction": "ddpg_bc"}])
def test_from_random_moves_it_goes_where_the_goal_is(options: dict[str, object]):
    made = GCIQL(**{**OPEN, **options}).fit(plane(2000), steps=250, seed=0, device="cpu")  # type: ignore[arg-type]
    grid = torch.cartesian_prod(torch.linspace(-0.6, 0.6, 5), torch.linspace(-0.6, 0.6, 5))
    for goal in (torch.tensor([0.9, 0.9]), torch.tensor([-0.9, -0.9])):
        actions = made.act(grid, goal=goal).action
        assert torch.cosine_similarity(actions, goal - grid).mean() > 0.7


def test_discrete_actions_and_values_on_a_chain(tmp_path: Path):
    method = GCIQL(**OPEN, normalise=False)  # type: ignore[arg-type]
    made, source = method.learner(spec(method, chain()), Rng(0)), method.source(spec(method, chain()))
    for step in range(300):
        made.update(source.next(made.behaviour, Rng(1).at(step)), Rng(0))
    places = torch.eye(5)
    cells = torch.tensor([0, 1, 3, 4])
    assert torch.equal(made.policy.act(places[cells], goal=places[2]).action, (cells < 2).long())
    values = made.value(torch.cat([places, places[2].expand(5, -1)], -1))
    wanted = -(1 - 0.8 ** torch.tensor([2.0, 1, 0, 1, 2])) / 0.2
    assert (values - wanted).abs().max() < 0.4
    loaded = load_product(made.policy.save(tmp_path / "product"))
    assert torch.equal(loaded.act(places, goal=places[2]).action, made.policy.act(places, goal=places[2]).action)


def test_what_does_not_fit_is_refused():
    for options, match in (
        ({"expectile": 1.0}, "expectile"), ({"discount": 1.0}, "discount"), ({"goal_columns": ()}, "goal_columns"),
        ({"current_goals": 0.6, "future_goals": 0.6}, "future_goals"),
    ):  # fmt: skip
        with pytest.raises(TelosError, match=match):
            GCIQL(**options).fit(plane(), steps=1)  # type: ignore[arg-type]
    with pytest.raises(TelosError, match="continuous"):
        GCIQL(extraction="ddpg_bc").fit(chain(), steps=1)
    unbounded = dataclasses.replace(plane(), action_space=Box((-1.0, -1.0), (1.0, float("inf"))))
    with pytest.raises(TelosError, match="bounded"):
        GCIQL().fit(unbounded, steps=1)
