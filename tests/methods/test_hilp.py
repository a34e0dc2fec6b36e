"""HILP: the metric form, a chain, telescoping rewards, prompts in closed form, rotations, both backends."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.method import Spec
from telos.core.products import load_product
from telos.core.rng import Rng
from telos.data.records import Box, Discrete, Transitions
from telos.methods.goals.hilp import HILP, HILPLearner, HILPPolicy, ImplicitQ, SuccessorFeatures, hilbert_loss
from telos.nets.normed import NormedMLP
from telos.ops.latents import goal_values, laplacian_loss, solved, subgoals, toward

SMALL = {"latent": 3, "hidden": (16,), "phi_hidden": (16,), "batch_size": 32, "learning_rate": 1e-3}


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


def chain(n: int) -> Transitions:
    """Every state of a chain with both moves, many times over, in episodes of 2n steps."""
    generator = Rng(1000).torch()
    episodes, length = 60, 2 * n
    cells = [torch.randint(n, (episodes,), generator=generator)]
    moves = torch.randint(2, (episodes, length), generator=generator)
    for t in range(length):
        cells.append((cells[-1] + 2 * moves[:, t] - 1).clamp(0, n - 1))
    walks = torch.nn.functional.one_hot(torch.stack(cells, 1), n).float()
    ends = torch.zeros(episodes, length, dtype=torch.bool)
    ends[:, -1] = True
    return Transitions.validated(
        observations=walks[:, :-1].flatten(0, 1), actions=moves.flatten(), rewards=torch.zeros(episodes * length),
        next_observations=walks[:, 1:].flatten(0, 1), terminated=torch.zeros(episodes * length),
        truncated=ends.flatten(), action_space=Discrete(2),
    )  # fmt: skip


def learner(data: Transitions, **options: object) -> HILPLearner:
    method = HILP(**{**SMALL, **options})  # type: ignore[arg-type]
    return method.learner(method.prepare(Spec(data, {}, 10, torch.device("cpu"), Rng(0))), Rng(0))


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=Rng(1001).torch())


# The dossier's checks.


def test_values_are_a_metric_with_its_floor():
    a, b, c = draw(3, 200, 4)
    assert torch.allclose(goal_values(a, a), torch.tensor(-1e-3))
    assert torch.equal(goal_values(a, b), goal_values(b, a))
    assert (goal_values(a, c) >= goal_values(a, b) + goal_values(b, c) - 1e-5).all()
    assert torch.allclose(goal_values(a, b), -(a - b).norm(dim=-1), rtol=1e-5)


def test_on_a_chain_distances_become_numbers_of_steps():
    # Tables, and every state, move and goal in each batch.
    start, goal, move = torch.cartesian_prod(torch.arange(6), torch.arange(6), torch.tensor([-1, 1])).T
    end = (start + move).clamp(0, 5)
    phi = (0.1 * draw(2, 6, 4)).requires_grad_()
    target, optimiser = phi.detach().clone(), torch.optim.Adam([phi], lr=1e-2)
    for _ in range(1500):
        targets = target[:, start], target[:, end], target[:, goal]
        loss, count = hilbert_loss(phi[:, start], phi[:, goal], targets, start == goal, 0.999, 0.995)
        optimiser.zero_grad()
        (loss / count).backward()
        optimiser.step()
        target.lerp_(phi.detach(), 0.1)
    steps = (torch.arange(6)[:, None] - torch.arange(6)).abs().float()
    assert (torch.cdist(phi.detach(), phi.detach()) - steps).abs().max() < 0.15


def test_on_a_line_of_integers_shortest_ways_leave_no_error():
    # D = 1 suffices for a chain; what is left over is the share 1 - expectile of moves that lead away.
    start, goal, move = torch.cartesian_prod(torch.arange(7), torch.arange(7), torch.tensor([-1, 1])).T
    kept = (start + move >= 0) & (start + move < 7) & (start != goal)
    x, y, g = (v[kept].float()[None, :, None].expand(2, -1, -1) for v in (start, start + move, goal))
    best = (y - g).abs()[0, :, 0] < (x - g).abs()[0, :, 0]
    none = torch.zeros(len(best), dtype=torch.bool)

    def loss(rows: Tensor, expectile: float) -> float:
        x_, y_, g_ = x[:, rows], y[:, rows], g[:, rows]
        return float(hilbert_loss(x_, g_, (x_, y_, g_), none[rows], 1.0, expectile)[0])

    assert loss(best, 0.9) < 1e-4 * len(best)
    # A move away is 2 steps worse than the value, in both heads.
    assert loss(~best, 0.9) == pytest.approx(2 * 0.1 * 4 * int((~best).sum()), rel=1e-4)


def test_rewards_telescope():
    mine = learner(plane())
    data = plane()[:20]  # one episode
    z = toward(draw(3))
    with torch.no_grad():
        rewards = mine.policy.cumulants(data.observations, data.next_observations) @ z
        ends = mine.policy.latents(torch.stack([data.observations[0], data.next_observations[-1]]))
    assert torch.isclose(rewards.sum(), (ends[1] - ends[0]) @ z, atol=1e-5)


@pytest.mark.parametrize("cumulant", ["diff", "state"])
def test_the_prompt_for_a_reward_in_the_span_is_its_direction(cumulant: str):
    policy, data, w = learner(plane(), cumulant=cumulant).policy, plane(), draw(3)
    with torch.no_grad():
        rewards = policy.cumulants(data.observations, data.next_observations) @ w
    prompt = policy.prompt_reward(data, rewards).prompt
    assert prompt and torch.allclose(torch.tensor(prompt["value"]), w / w.norm(), atol=1e-3)


def test_without_full_rank_the_prompt_induces_the_same_rewards():
    features = draw(50, 2) @ draw(2, 5)
    w = draw(3, 5)[2]
    found = solved(features, features @ w)
    assert torch.allclose(features @ found, features @ w, atol=1e-4) and found.norm() < w.norm()


def test_a_rotation_changes_neither_loss_nor_induced_rewards():
    rotation = torch.linalg.qr(draw(4, 4)).Q
    latents = draw(6, 2, 30, 4)
    arrived = torch.arange(30) < 3

    def loss(x: Tensor) -> Tensor:
        return hilbert_loss(x[0], x[1], (x[2], x[3], x[4]), arrived, 0.95, 0.9)[0]

    turned = latents @ rotation
    assert torch.isclose(loss(latents), loss(turned), rtol=1e-5)

    def induced(x: Tensor) -> Tensor:
        z = toward(x[1, 0] - x[0, 0])
        return ((x[3, 0] - x[2, 0]) * z).sum(-1)

    assert torch.allclose(induced(latents), induced(turned), atol=1e-5)


# Losses by hand.


def test_the_loss_is_the_equation_with_its_detached_targets():
    x = draw(5, 2, 3, 4).requires_grad_()
    arrived = torch.tensor([False, False, True])
    loss, count = hilbert_loss(x[0], x[1], (x[2], x[3], x[4]), arrived, 0.9, 0.8)
    expected = 0.0
    for row in range(3):
        targets = [
            0.0 if arrived[row] else -1 - 0.9 * float((x[3, i, row] - x[4, i, row]).detach().norm()) for i in (0, 1)
        ]
        here = [-float((x[2, i, row] - x[4, i, row]).detach().norm()) for i in (0, 1)]
        weight = 0.2 if min(targets) - sum(here) / 2 < 0 else 0.8
        for i in (0, 1):
            expected += weight * (targets[i] + float((x[0, i, row] - x[1, i, row]).detach().norm())) ** 2
    assert count == 3 and float(loss.detach()) == pytest.approx(expected, rel=1e-4)
    loss.backward()
    assert x.grad is not None and (x.grad[:2] != 0).any() and (x.grad[2:] == 0).all()


def test_equal_states_pull_nowhere():
    x = torch.zeros(2, 1, 4, requires_grad=True)
    hilbert_loss(x, x, (x, x + 1, x), torch.tensor([True]), 0.9, 0.5)[0].backward()
    assert x.grad is not None and x.grad.isfinite().all() and (x.grad == 0).all()


def test_iql_along_directions_is_the_equation_and_nothing_terminates():
    data = dataclasses.replace(plane(), terminated=torch.ones(400, dtype=torch.bool))
    mine = learner(data)
    batch = mine.prompted(
        HILP(**SMALL).source(Spec(data, {}, 0, torch.device("cpu"), Rng(0))).next(mine.behaviour, Rng(1)), Rng(2)
    )
    assert torch.allclose(batch.directions.norm(dim=-1), torch.ones(32), atol=1e-5)
    assert isinstance(mine.skills, ImplicitQ)
    states = torch.cat([batch.steps.observations, batch.directions], -1)
    nexts = torch.cat([batch.steps.next_observations, batch.directions], -1)
    both = torch.cat([states, batch.steps.actions], -1)
    step = mine.policy.latents(batch.steps.next_observations) - mine.policy.latents(batch.steps.observations)
    y = (step * batch.directions).sum(-1) + 0.99 * mine.skills.value(nexts)[0, :, 0]
    q = mine.skills.critic(both)[..., 0]
    u = q.amin(0) - mine.skills.value(states)[0, :, 0]
    losses = mine.losses(batch)
    assert torch.isclose(losses["critic_loss"], (q - y).square().sum(), rtol=1e-4)
    assert torch.isclose(losses["value_loss"], (torch.where(u < 0, 0.1, 0.9) * u.square()).sum(), rtol=1e-4)
    log_probs = mine.policy.actor.log_likelihood(states, batch.steps.actions)  # type: ignore[union-attr]
    assert torch.isclose(losses["policy_loss"], -((10 * u).exp().clamp(max=100) * log_probs).sum(), rtol=1e-4)


@pytest.mark.parametrize("backend", ["iql", "sf_ddpg"])
def test_gradients_are_separate(backend: str):
    mine = learner(plane(), rl_backend=backend)
    source = HILP(**SMALL).source(Spec(plane(), {}, 0, torch.device("cpu"), Rng(0)))
    batch = mine.prompted(source.next(mine.behaviour, Rng(1)), Rng(2))
    own = {
        "phi_loss": mine.policy.phi, "policy_loss": mine.policy.actor,
        "critic_loss": mine.skills.critic,
    }  # fmt: skip
    every = [*mine.policy.parameters(), *mine.skills.parameters(), *mine.target.parameters()]
    losses = mine.losses(batch)
    for name, module in own.items():
        losses[name].backward(retain_graph=True)
        mine_too = {id(p) for p in module.parameters()}
        assert all((p.grad is not None) == (id(p) in mine_too) for p in every if p.requires_grad), name
        for p in every:
            p.grad = None


@pytest.mark.parametrize("q_loss", [False, True])
def test_successor_features_are_the_equation(q_loss: bool):
    mine = learner(plane(), rl_backend="sf_ddpg", q_loss=q_loss, skill_discount=0.0)
    source = HILP(**SMALL).source(Spec(plane(), {}, 0, torch.device("cpu"), Rng(0)))
    batch = mine.prompted(source.next(mine.behaviour, Rng(1)), Rng(2))
    assert isinstance(mine.skills, SuccessorFeatures)
    phi = mine.policy.cumulants(batch.steps.observations, batch.steps.next_observations).detach()
    both = torch.cat([batch.steps.observations, batch.directions, batch.steps.actions], -1)
    errors = mine.skills.critic(both) - phi
    expected = (errors * batch.directions).sum(-1).square().sum() if q_loss else errors.square().mean(-1).sum()
    assert torch.isclose(mine.losses(batch)["critic_loss"], expected, rtol=1e-4)


def test_directions_have_the_stated_length_and_some_point_at_states():
    mine = learner(plane(), rl_backend="sf_ddpg", direction_norm="root", mix=1.0)
    source = HILP(**SMALL).source(Spec(plane(), {}, 0, torch.device("cpu"), Rng(0)))
    steps = source.next(mine.behaviour, Rng(1))
    z = mine.prompted(steps, Rng(2)).directions
    assert torch.allclose(z.norm(dim=-1), torch.full((32,), math.sqrt(3)), atol=1e-5)
    nexts = mine.policy.latents(steps.next_observations)
    wanted = toward(nexts @ torch.linalg.inv(nexts.T @ nexts / 32 + 1e-6 * torch.eye(3)))
    # Each direction is that of one of the batch's states.
    assert torch.allclose(toward(z) @ wanted.T.detach(), (toward(z) @ wanted.T).detach())
    assert ((toward(z) @ wanted.T).amax(-1) > 0.999).all()


def test_laplacian_loss_by_hand():
    x, y, o = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[3.0, 4.0]]])
    loss, count = laplacian_loss(x, y, o)
    assert (float(loss), count) == (5.0 + 9.0 - 1.0 - 25.0, 1)


def test_subgoals_halve_the_way():
    line = torch.arange(0.0, 9.0)[:, None]
    here, goal = torch.tensor([[0.0]]), torch.tensor([[8.0]])
    assert [float(subgoals(here, goal, line, rounds, 1)) for rounds in (0, 1, 2, 3)] == [8.0, 4.0, 2.0, 1.0]
    assert float(subgoals(here, goal, line, 1, 3)) == 4.0
    # A wall bends the way: the straight middle is nobody's state.
    bent = torch.tensor([[0.0, 0.0], [4.0, 3.0], [8.0, 0.0]])
    assert subgoals(bent[:1], bent[2:], bent, 1, 1).tolist() == [[4.0, 3.0]]


def test_networks_normalise_after_the_activation():
    net = NormedMLP(2, (3, 8, 2), Rng(0).torch())
    x = draw(5, 3)
    hidden = torch.nn.functional.gelu(x @ net.weights[0][1] + net.biases[0][1], approximate="tanh")
    hidden = (hidden - hidden.mean(-1, keepdim=True)) / (hidden.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(net(x)[1], hidden @ net.weights[1][1] + net.biases[1][1], atol=1e-5)


# What it learns, and how it is asked.


@pytest.fixture(scope="module")
def walker() -> HILPPolicy:
    """Learnt from random moves in the plane."""
    options = {"latent": 2, "hidden": (64,), "phi_hidden": (32,), "batch_size": 128, "learning_rate": 3e-3}
    return HILP(**options, discount=0.9, skill_discount=0.8, tau=0.05).fit(plane(2000), steps=300, seed=0, device="cpu")


def headed(policy: HILPPolicy, wanted: Tensor, goal: Tensor | None = None) -> float:
    """Mean cosine of actions with wanted directions, from a grid of places."""
    grid = torch.cartesian_prod(torch.linspace(-0.6, 0.6, 5), torch.linspace(-0.6, 0.6, 5))
    actions = policy.act(grid, goal=goal).action
    return float(torch.cosine_similarity(actions, wanted - grid if goal is not None else wanted.expand(25, 2)).mean())


def test_it_goes_where_the_goal_is_and_along_rewards_and_demonstrations(walker: HILPPolicy):
    corner = torch.tensor([0.9, 0.9])
    assert headed(walker, corner, corner) > 0.8 and headed(walker, -corner, -corner) > 0.8
    data, right = plane(2000), torch.tensor([1.0, 0.0])
    rewards = data.next_observations[:, 0] - data.observations[:, 0]
    assert headed(walker.prompt_reward(data, rewards), right) > 0.7
    assert headed(walker.prompt_reward(data, -rewards), -right) > 0.7
    shown = torch.tensor([[0.0, -0.8], [0.0, 0.0], [0.0, 0.8]])
    assert headed(walker.prompt_demonstration(shown), torch.tensor([0.0, 1.0])) > 0.7


def test_planning_takes_the_same_way_in_the_open(walker: HILPPolicy):
    corner = torch.tensor([0.9, 0.9])
    planner = walker.plan(rounds=2, best=10)
    assert headed(planner, corner, corner) > 0.7 and walker.planning is None
    grid = torch.tensor([[-0.5, -0.5]])
    z, bent = walker.directions(grid, corner), planner.directions(grid, corner)
    assert not torch.equal(z, bent) and (z * bent).sum() > 0.8
    assert planner.plan(rounds=0).planning is None


def test_a_goal_overrules_the_prompt_and_the_direction_is_taken_anew(walker: HILPPolicy):
    goal = torch.tensor([0.5, 0.5])
    fixed = walker.prompt_goal(goal)
    for place in ([0.0, 0.0], [0.9, 0.9]):
        assert torch.equal(fixed.act(place).action, walker.act(place, goal=goal).action)
        assert torch.equal(fixed.act(place, goal=-goal).action, walker.act(place, goal=-goal).action)
    moved = walker.directions(torch.tensor([[0.0, 0.0], [0.9, 0.9]]), goal)
    assert (moved[0] * moved[1]).sum() < 0
    along = walker.prompt_direction([3.0, 4.0])
    assert torch.allclose(along.directions(torch.zeros(2, 2)), torch.tensor([0.6, 0.8]))


def test_prompts_are_saved_with_the_product(walker: HILPPolicy, tmp_path: Path):
    asked = walker.plan(rounds=1, best=5).prompt_goal([0.3, -0.4])
    loaded = load_product(asked.save(tmp_path / "asked"))
    assert torch.equal(loaded.act([0.1, 0.2]).action, asked.act([0.1, 0.2]).action)
    assert torch.equal(loaded.distances([[0.1, 0.2]], [0.5, 0.5]), walker.distances([[0.1, 0.2]], [0.5, 0.5]))
    assert torch.equal(loaded.prompt_direction([1.0, 0.0]).act([0.1, 0.2]).action,
                       walker.prompt_direction([1.0, 0.0]).act([0.1, 0.2]).action)  # fmt: skip


def test_log_probs_are_those_of_the_actions_drawn(walker: HILPPolicy):
    grid, goal = draw(6, 2).clamp(-1, 1), torch.tensor([0.5, 0.5])
    drawn = walker.act(grid, goal=goal, rng=Rng(0).torch(), explore=True)
    assert drawn.log_prob is not None
    assert torch.allclose(walker.log_prob(grid, drawn.action, goal=goal), drawn.log_prob, atol=1e-5)


def test_probabilities_of_discrete_actions_sum_to_one():
    policy, seen = HILP(**SMALL).fit(chain(4), steps=3, device="cpu"), torch.eye(4)
    for asked, goal in ((policy, [0.0, 0.0, 1.0, 0.0]), (policy.prompt_direction([1.0, 2.0, 0.5]), None)):
        shares = torch.stack([asked.log_prob(seen, torch.full((4,), a), goal=goal).exp() for a in (0, 1)], 1)
        assert torch.allclose(shares.sum(1), torch.ones(4), atol=1e-6)
        assert torch.equal(shares.argmax(1), asked.act(seen, goal=goal).action)


def test_chosen_columns_make_the_goal():
    data = plane()
    wide = dataclasses.replace(
        data, observations=torch.cat([draw(400, 1), data.observations], -1),
        next_observations=torch.cat([draw(400, 1), data.next_observations], -1),
    )  # fmt: skip
    policy = HILP(**SMALL, goal_columns=(1, 2), landmarks=30, normalise=True).fit(wide, steps=3, device="cpu")
    assert policy.landmarks.shape == (30, 2)
    near, far = policy.distances([[5.0, 0.1, 0.2], [-5.0, 0.1, 0.2]], [0.3, 0.4])
    assert near == far
    assert policy.act([5.0, 0.1, 0.2], goal=[0.3, 0.4]).action.shape == (2,)
    with pytest.raises(TelosError, match="the goal"):
        policy.act([5.0, 0.1, 0.2], goal=[0.0, 0.3, 0.4])


@pytest.mark.parametrize("kind", ["random", "identity", "laplacian"])
def test_other_representations(kind: str):
    method = HILP(**SMALL, representation=kind)  # type: ignore[arg-type]
    before, after = (method.fit(plane(), steps=n, seed=0, device="cpu").phi.state_dict() for n in (0, 5))
    assert any(not torch.equal(before[name], after[name]) for name in before) == (kind == "laplacian")
    if kind == "identity":
        policy, states = method.fit(plane(), steps=1, seed=0, device="cpu"), plane().observations[:5]
        assert policy.latent == 2 and torch.equal(policy.latents(states), states)


@pytest.mark.parametrize("backend", ["iql", "sf_ddpg"])
def test_parts_of_a_batch_agree_with_the_whole(backend: str):
    options = {"rl_backend": backend, "cumulant": "state"}
    whole, parts = learner(plane(), **options), learner(plane(), **options)
    source = HILP(**SMALL).source(Spec(plane(), {}, 0, torch.device("cpu"), Rng(0)))
    for step in range(3):
        batch = source.next(whole.behaviour, Rng(step))
        whole.update(batch, Rng(step), 1)
        parts.update(batch, Rng(step), 5)
    for name, value in whole.state()[0].items():
        assert torch.allclose(value.float(), parts.state()[0][name].float(), atol=2e-5), name
    assert whole.policy.centre.abs().max() > 0


def test_successor_features_learn_the_way_too():
    options = {"latent": 2, "hidden": (64,), "phi_hidden": (32,), "batch_size": 128, "learning_rate": 3e-3}
    policy = HILP(**options, rl_backend="sf_ddpg", discount=0.9, skill_discount=0.8, tau=0.05).fit(
        plane(2000), steps=300, seed=0, device="cpu"
    )
    corner = torch.tensor([0.9, 0.9])
    assert headed(policy, corner, corner) > 0.8
    with pytest.raises(TelosError, match="continuous"):
        HILP(**SMALL, rl_backend="sf_ddpg").fit(chain(4), steps=1, device="cpu")


def test_wrong_uses_are_refused(walker: HILPPolicy):
    with pytest.raises(TelosError, match="goal or a prompt"):
        walker.act([0.0, 0.0])
    with pytest.raises(TelosError, match="the rewards"):
        walker.prompt_reward(plane(), torch.zeros(400))
    with pytest.raises(TelosError, match="the rewards"):
        walker.prompt_reward(plane(), torch.ones(3))
    with pytest.raises(TelosError, match="zero"):
        walker.prompt_demonstration(torch.zeros(3, 2))
    with pytest.raises(TelosError, match="planning"):
        walker.plan(best=0)
    with pytest.raises(TelosError, match="observations"):
        walker.act([0.0, 0.0, 0.0], goal=[0.0, 0.0])
    with pytest.raises(TelosError, match="goals do not fit"):
        walker.act(torch.zeros(3, 2), goal=torch.zeros(2, 2))
    for options, name in (({"discount": 1.0}, "discount"), ({"latent": 0}, "latent"), ({"mix": 2.0}, "mix")):
        with pytest.raises(TelosError, match=name):
            HILP(**{**SMALL, **options}).fit(plane(), steps=1)  # type: ignore[arg-type]
    with pytest.raises(TelosError, match="goal_columns"):
        HILP(**SMALL, goal_columns=(2,)).fit(plane(), steps=1)
