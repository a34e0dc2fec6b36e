"""Features that HILP is compared with: losses by hand and at their optima, successor measures in closed form."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_hilp import SMALL, chain, draw, headed, learner, plane
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.method import Spec
from telos.core.products import load_product
from telos.core.rng import Rng
from telos.methods.goals.hilp import HILP, HILPLearner, Prompted
from telos.methods.goals.hilp_variants import Contrastive, ForwardDynamics
from telos.ops.latents import contrastive_loss, measure_loss, orthonormal_loss, toward

WALKER: dict[str, Any] = {
    "latent": 2, "hidden": (64,), "phi_hidden": (32,), "batch_size": 128, "learning_rate": 3e-3, "discount": 0.9,
    "skill_discount": 0.8, "tau": 0.05,
}  # fmt: skip
FB: dict[str, Any] = {"representation": "forward_backward", "rl_backend": "sf_ddpg", "direction_norm": "root"}


def prompted(mine: HILPLearner, step: int = 1) -> Prompted:
    source = mine.method.source(Spec(plane(), {}, 0, torch.device("cpu"), Rng(0)))
    return mine.prompted(source.next(mine.behaviour, Rng(step)), Rng(2))


# Contrastive.


def test_contrastive_loss_by_hand():
    here, own = torch.tensor([[3.0, 4.0], [0.0, -2.0]]), torch.tensor([[5.0, 0.0], [0.0, -1.0]])
    every = torch.tensor([[5.0, 0.0], [0.0, -1.0], [-1.0, 0.0]])
    loss, count = contrastive_loss(here, own, every)
    first = math.log(math.exp(0.6) + math.exp(-0.8) + math.exp(-0.6)) - 0.6
    second = math.log(1 + math.e + 1) - 1
    assert count == 2 and float(loss) == pytest.approx(first + second, rel=1e-5)
    assert float(contrastive_loss(here.new_ones(4, 3), here.new_ones(4, 3), here.new_ones(4, 3))[0]) == pytest.approx(
        4 * math.log(4)
    )


def test_places_that_never_meet_get_opposite_features():
    # States 0, 1 are followed by 0, 1, and 2, 3 by 2, 3: the least loss has cosines of 1 within and -1 across.
    state, goal = torch.cartesian_prod(torch.arange(4), torch.arange(2)).T
    goal = 2 * (state // 2) + goal
    phi, mu = (draw(2, 4, 2)).requires_grad_().unbind(0)
    tables = [x.detach().clone().requires_grad_() for x in (phi, mu)]
    optimiser = torch.optim.Adam(tables, 0.05)
    loss = torch.zeros(())
    for _ in range(300):
        loss = contrastive_loss(tables[0][state], tables[1][goal], tables[1][goal])[0] / 8
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) == pytest.approx(math.log(4 * (math.e + 1 / math.e)) - 1, abs=1e-3)
    cosines = toward(tables[0].detach()) @ toward(tables[1].detach()).T
    together = (torch.arange(4)[:, None] // 2) == (torch.arange(4) // 2)
    assert torch.allclose(cosines, torch.where(together, 1.0, -1.0), atol=0.02)


def test_its_goals_lie_ahead_and_the_denominator_is_of_the_whole_batch():
    mine = learner(plane(), representation="contrastive")
    batch = prompted(mine)
    seen = batch.steps
    ahead = (plane().next_observations[:, None] == seen.goals).all(-1).float().argmax(0)
    here = (plane().observations[:, None] == seen.observations).all(-1).float().argmax(0)
    assert (ahead >= here).all() and torch.equal(ahead // 20, here // 20)
    phi, mu = mine.policy.phi(seen.observations)[0], mine.policy.phi(seen.goals)[1]
    cosines = torch.cosine_similarity(phi[:, None], mu, dim=-1)
    wanted = -cosines.log_softmax(-1).diagonal().sum()
    assert isinstance(mine.features, Contrastive)
    assert torch.isclose(mine.losses(batch)["phi_loss"], wanted, rtol=1e-4)
    halves = batch.split(2)
    assert torch.isclose(sum(mine.losses(part)["phi_loss"] for part in halves), wanted, rtol=1e-4)  # type: ignore[arg-type]


# Forward dynamics.


def test_forward_dynamics_predicts_the_next_state_from_features_and_action():
    mine = learner(chain(4), representation="forward")
    assert isinstance(mine.features, ForwardDynamics)
    source = mine.method.source(Spec(chain(4), {}, 0, torch.device("cpu"), Rng(0)))
    batch = mine.prompted(source.next(mine.behaviour, Rng(1)), Rng(2))
    seen = batch.steps
    pairs = torch.cat([mine.policy.phi(seen.observations)[0], torch.eye(2)[seen.actions]], -1)
    wanted = (mine.features.decoder(pairs)[0] - seen.next_observations).square().mean(-1).sum()
    assert torch.isclose(mine.losses(batch)["phi_loss"], wanted, rtol=1e-5)
    # The decoder is learnt along: on a deterministic chain nothing is left over.
    made = learner(chain(4), representation="forward", learning_rate=1e-2)
    for step in range(300):
        made.update(source.next(made.behaviour, Rng(step)), Rng(step))
    assert float(made.losses(batch)["phi_loss"].detach()) / 32 < 0.02 < float(wanted.detach()) / 32


# Forward-backward.


def cycle(states: int) -> Tensor:
    """(S A,) next states of a ring, for each state and action in turn: action 1 goes round, 0 stays."""
    return torch.cartesian_prod(torch.arange(states), torch.arange(2)).sum(1) % states


def measures(states: int, policy: Tensor, discount: float) -> Tensor:
    """(S A, S) sum_t discount^t P(s_{t+1} | s, a), exactly."""
    nexts = cycle(states)
    step = torch.zeros(2 * states, states, dtype=torch.float64)
    step[torch.arange(2 * states), nexts] = 1
    onward = torch.zeros(2 * states, 2 * states, dtype=torch.float64)  # from (s, a) to (s', a')
    for a in range(2):
        onward[torch.arange(2 * states), 2 * nexts + a] = policy[nexts, a].double()
    return torch.linalg.solve(torch.eye(2 * states, dtype=torch.float64) - discount * onward, step)


def test_the_fixed_point_of_the_measures_loss_is_the_successor_measure():
    states, discount = 5, 0.8
    policy = torch.rand(states, 2, generator=Rng(4).torch())
    policy = policy / policy.sum(1, keepdim=True)
    nexts = cycle(states)
    exact = measures(states, policy, discount).float()
    assert torch.allclose(exact.sum(1), torch.tensor(1 / (1 - discount)), atol=1e-4)
    # B orthonormal under the uniform share of states, F so that <F, B> is the density.
    backward = (states**0.5 * torch.eye(states)).requires_grad_()
    forward = (exact * states / states**0.5).requires_grad_()
    table = forward.detach().view(states, 2, states)
    later = (policy[nexts][..., None] * table[nexts]).sum(1)
    loss, count = measure_loss(
        forward.expand(2, -1, -1), backward[nexts], backward, (later.expand(2, -1, -1), backward.detach()), discount
    )
    loss.backward()
    assert count == 10 and forward.grad is not None and backward.grad is not None
    assert forward.grad.abs().max() < 1e-5 and backward.grad.abs().max() < 1e-5
    # What is asked for by z = E[r B] is valued as it is.
    rewards = draw(states)
    z = (rewards[:, None] * backward.detach()).mean(0)
    assert torch.allclose(forward.detach() @ z, exact @ rewards, atol=1e-4)


def test_the_min_of_two_and_the_orthonormal_term_by_hand():
    own, every = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    forward = torch.tensor([[[1.0, 1.0]], [[2.0, 0.0]]])
    later = torch.tensor([[[4.0, 0.0]], [[0.0, 1.0]]]), every
    # Densities at the two states: (1, 3) and (2, 0); targets 0.5 min((4, 0), (0, 3)) = 0.
    wanted = 0.5 * ((1 + 9) / 2 + (4 + 0) / 2) - (3 + 2)
    assert float(measure_loss(forward, own, every, later, 0.5)[0]) == pytest.approx(wanted)
    assert float(orthonormal_loss(own, every)[0]) == pytest.approx((1 + 36) / 2 - 2 * 5)
    orthonormal = (2**0.5 * torch.linalg.qr(draw(2, 2)).Q).requires_grad_()
    orthonormal_loss(orthonormal, orthonormal)[0].backward()
    assert orthonormal.grad is not None and orthonormal.grad.abs().max() < 1e-5


def test_tables_learn_the_successor_measure_from_steps():
    states, discount = 4, 0.7
    policy = torch.tensor([[0.3, 0.7]]).expand(states, 2)
    nexts = cycle(states)
    exact = measures(states, policy, discount).float()
    forward, backward = (0.3 * draw(2, 2 * states, states)).requires_grad_(), torch.eye(states).requires_grad_()
    target = forward.detach().clone(), backward.detach().clone()
    optimiser = torch.optim.Adam([forward, backward], 0.02)
    for _ in range(1500):
        table = target[0].view(2, states, 2, states)
        later = (policy[nexts][..., None] * table[:, nexts]).sum(2)
        losses = (
            measure_loss(forward, backward[nexts], backward, (later, target[1]), discount)[0],
            orthonormal_loss(backward[nexts], backward)[0],
        )
        optimiser.zero_grad()
        (sum(losses) / (2 * states)).backward()  # type: ignore[union-attr]
        optimiser.step()
        for slow, fast in zip(target, (forward, backward)):
            slow.lerp_(fast.detach(), 0.05)
    density = forward.detach() @ backward.detach().T
    assert torch.allclose(density / states, exact.expand(2, -1, -1), atol=0.03)
    assert torch.allclose(backward.detach().T @ backward.detach() / states, torch.eye(states), atol=0.05)


def test_the_learners_loss_is_the_equation_and_gradients_are_separate():
    mine = learner(plane(), **FB, skill_discount=0.6)
    batch = prompted(mine)
    seen, z = batch.steps, batch.directions
    assert mine.policy.cumulant == "measure" and torch.allclose(z.norm(dim=-1), torch.full((32,), 3**0.5), atol=1e-5)
    nexts = mine.policy.prompted(seen.next_observations, z)
    noise = (0.2 * batch.noise[:, 0]).clamp(-0.3, 0.3)
    chosen = (mine.policy.actor(nexts) + noise).clamp(-1, 1)  # type: ignore[operator]
    later = mine.skills.target(torch.cat([nexts, chosen], -1))
    b = mine.policy.phi(seen.goals)[0]
    own = mine.policy.phi(seen.next_observations)[0]
    f = mine.skills.critic(torch.cat([mine.policy.prompted(seen.observations, z), seen.actions], -1))
    wanted = 0.6 * (later @ mine.target(seen.goals)[0].T).amin(0)
    by_hand = (0.5 * (f @ b.T - wanted).square().mean(-1) - (f * own).sum(-1)).sum()
    by_hand = by_hand + ((own @ b.T).square().mean(-1) - 2 * own.square().sum(-1)).sum()
    losses = mine.losses(batch)
    assert losses.keys() == {"critic_loss", "policy_loss"}
    assert torch.isclose(losses["critic_loss"], by_hand, rtol=1e-4)
    losses["policy_loss"].backward(retain_graph=True)
    assert all(p.grad is None for p in (*mine.policy.phi.parameters(), *mine.skills.parameters()))
    losses["critic_loss"].backward()
    assert mine.policy.phi.weights[0].grad is not None


def test_goals_rewards_and_demonstrations_are_asked_for_by_what_b_says(tmp_path: Path):
    policy, data = learner(plane(), **FB).policy, plane()
    b = policy.latents(data.next_observations)
    assert torch.allclose(policy.directions(data.observations[:3], data.observations[7]), toward(
        policy.latents(data.observations[7])).expand(3, -1), atol=1e-6)  # fmt: skip
    rewards = data.next_observations[:, 0]
    found = policy.prompt_reward(data, rewards).prompt
    assert found and torch.allclose(torch.tensor(found["value"]), toward((rewards[:, None] * b).mean(0)), atol=1e-4)
    shown = policy.prompt_demonstration(data.observations[:20]).prompt
    wanted = toward(policy.latents(data.observations[:20]).mean(0))
    assert shown and torch.allclose(torch.tensor(shown["value"]), wanted, atol=1e-5)
    loaded = load_product(policy.prompt_reward(data, rewards).save(tmp_path / "asked"))
    assert loaded.cumulant == "measure" and loaded.prompt == found


# What they learn.


@pytest.mark.parametrize("kind", ["contrastive", "forward", "forward_backward"])
def test_parts_of_a_batch_agree_with_the_whole(kind: str):
    options = {"representation": kind, "rl_backend": "sf_ddpg"}
    whole, parts = learner(plane(), **options), learner(plane(), **options)
    for step in range(3):
        source = whole.method.source(Spec(plane(), {}, 0, torch.device("cpu"), Rng(0)))
        batch = source.next(whole.behaviour, Rng(step))
        whole.update(batch, Rng(step), 1)
        parts.update(batch, Rng(step), 5)
    for name, value in whole.state()[0].items():
        assert torch.allclose(value.float(), parts.state()[0][name].float(), atol=2e-5), name


@pytest.mark.parametrize("options", [{"representation": "forward"}, FB])
def test_what_they_have_learnt_is_carried_over(options: dict[str, Any]):
    first, second = learner(plane(), **options), learner(plane(), **options)
    source = first.method.source(Spec(plane(), {}, 0, torch.device("cpu"), Rng(0)))
    for step in range(3):
        first.update(source.next(first.behaviour, Rng(step)), Rng(step))
    tensors, numbers = first.state()
    second.load_state({name: tensor.clone() for name, tensor in tensors.items()}, numbers)
    for mine in (first, second):
        mine.update(source.next(mine.behaviour, Rng(9)), Rng(9))
    assert all(torch.equal(first.state()[0][name], value) for name, value in second.state()[0].items())


def test_from_random_moves_they_go_where_the_goal_is_and_random_features_do_not():
    corners = torch.tensor([[0.9, 0.9], [-0.9, -0.9], [0.9, -0.9]])
    found = {}
    for kind, options in (
        ("contrastive", {}), ("forward", {}), ("random", {}), ("forward_backward", {**FB, "latent": 4}),
    ):  # fmt: skip
        method = HILP(**{**WALKER, "representation": kind, **options})  # type: ignore[arg-type]
        policy = method.fit(plane(2000), steps=400, seed=0, device="cpu")
        found[kind] = min(headed(policy, corner, corner) for corner in corners)
    assert min(found["contrastive"], found["forward"], found["forward_backward"]) > 0.75 and found["random"] < 0.6


def test_what_does_not_fit_is_refused():
    with pytest.raises(TelosError, match="sf_ddpg"):
        HILP(**SMALL, representation="forward_backward").fit(plane(), steps=1, device="cpu")
