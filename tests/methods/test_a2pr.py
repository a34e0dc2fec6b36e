from pathlib import Path

import pytest
import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.method import Spec
from telos.core.rng import Rng
from telos.data.records import Box, Transitions
from telos.methods.offline_rl.a2pr import A2PR, A2PRLearner, actor_loss, choose, vae_loss
from telos.methods.offline_rl.td3_bc import TD3BC, TD3BCLearner
from telos.ops.values import td_target
from telos.worlds import cliff_bandit

SMALL = {"hidden": (16,), "critic_hidden": (16,), "vae_hidden": (16,), "batch_size": 32}


def transitions(rows: int = 300, bound: float = 1.0) -> Transitions:
    rng = Rng(1000).torch()
    return Transitions.validated(
        observations=torch.randn(rows, 3, generator=rng),
        actions=bound * (2 * torch.rand(rows, 2, generator=rng) - 1),
        rewards=torch.randn(rows, generator=rng),
        next_observations=torch.randn(rows, 3, generator=rng),
        terminated=torch.rand(rows, generator=rng) < 0.1,
        truncated=torch.rand(rows, generator=rng) < 0.1,
        action_space=Box((-bound,) * 2, (bound,) * 2),
    )


def learner(method: A2PR, data: Transitions) -> A2PRLearner:
    spec = method.prepare(Spec(data, {}, 100, torch.device("cpu"), Rng(0)))
    return method.learner(spec, Rng(0))


def trained(method: A2PR, data: Transitions, updates: int = 6) -> A2PRLearner:
    mine = learner(method, data)
    for step in range(updates):
        mine.update(data[torch.randint(300, (32,), generator=Rng(step).torch())], Rng(0).at(step))
    return mine


def parameters(module: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def codes(rows: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(rows, 4, generator=Rng(seed).at("codes").torch())


@torch.no_grad()
def lift(mine: A2PRLearner, q: float, v: float) -> None:
    """Adds constants to Q and V."""
    mine.critic.net.biases[-1].add_(q)
    last = mine.value.layers[-1]
    assert isinstance(last, torch.nn.Linear)
    last.bias.add_(v)


def balanced(mine: A2PRLearner) -> A2PRLearner:
    """With a value that half of the recorded actions beat."""
    data = transitions()
    lift(mine, 0.0, mine.advantages(mine.policy.normaliser(data.observations), data.actions).median().item())
    return mine


def test_with_the_recorded_target_and_no_mask_training_is_that_of_td3_bc_bit_for_bit():
    data = transitions()
    other = TD3BC(hidden=(16,), batch_size=32)
    spec = Spec(data, {}, 100, torch.device("cpu"), Rng(0))
    baseline = TD3BCLearner(other, other.prepare(spec).data, Rng(0))
    mine = trained(A2PR(target="dataset", mask=False, **SMALL), data)
    full = trained(A2PR(**SMALL), data)
    for step in range(6):
        baseline.update(data[torch.randint(300, (32,), generator=Rng(step).torch())], Rng(0).at(step))
    assert torch.equal(parameters(mine.policy), parameters(baseline.policy))
    assert torch.equal(parameters(mine.critic), parameters(baseline.critic))
    assert torch.equal(parameters(mine.target_policy), parameters(baseline.target_policy))
    assert not torch.equal(parameters(full.policy), parameters(baseline.policy))


def test_where_no_action_beats_the_value_the_vae_learns_nothing_but_its_kl():
    data = transitions()[:32]
    mine = trained(A2PR(**SMALL), transitions())
    lift(mine, 0.0, 1000.0)
    states = mine.policy.normaliser(data.observations)
    weights = mine.vae_weights(states, data.actions)
    reconstructed, mean, log_std = mine.vae(states, data.actions, codes())
    error, kl, count = vae_loss(reconstructed, data.actions, mean, log_std, weights, mine.unit)
    decoder = list(mine.vae.decoder.parameters())
    assert (weights.abs().max().item(), error.item(), count) == (0.0, 0.0, 32) and kl.item() > 0
    for gradient in torch.autograd.grad(error, decoder, retain_graph=True):
        assert gradient.abs().max().item() == 0.0
    encoder = list(mine.vae.encoder.parameters())
    total = torch.autograd.grad(error + kl, encoder, retain_graph=True)
    for a, b in zip(total, torch.autograd.grad(kl, encoder)):
        assert torch.equal(a, b) and a.abs().max() > 0
    lift(mine, 0.0, -2000.0)
    assert mine.vae_weights(states, data.actions).min().item() == 1.0
    off = learner(A2PR(vae_filter=False, vae_weight=1.5, **SMALL), transitions())
    lift(off, 0.0, 1000.0)
    assert off.vae_weights(states, data.actions).unique().tolist() == [1.5]


def test_a_constant_added_to_q_and_v_changes_no_choice():
    data = transitions()
    mine = balanced(trained(A2PR(mask_weight=0.5, **SMALL), data))
    states = mine.policy.normaliser(data.observations)
    actions = mine.policy(states)

    def decided() -> tuple[Tensor, ...]:
        with torch.no_grad():
            chosen = mine.imitated(states, actions, data.actions, codes(300))
            return *chosen, mine.vae_weights(states, data.actions)

    before, q = decided(), mine.act(data)[0].abs().mean()
    lift(mine, 8.0, 8.0)
    for a, b in zip(before, decided()):
        assert torch.equal(a, b)
    # Every choice occurs, so that the comparison says something; lambda does change.
    assert all(column.float().std() > 0 for column in (before[1], before[2], before[3]))
    assert mine.act(data)[0].abs().mean() > 2 * q


def test_the_mask_is_off_exactly_where_both_advantages_are_negative():
    recorded = torch.tensor([-1.0, -1.0, 1.0, 0.0, 0.0, -1.0, -2.0])
    proposed = torch.tensor([-2.0, 1.0, -1.0, -1.0, 0.0, 0.0, -2.0])
    propose, kept = choose(recorded, proposed, "adaptive", 0.0)
    assert propose.tolist() == [False, True, False, False, True, True, True]
    # Row 3: the recorded action is the better one, but at 0 it does not count; a proposal does (4, 5).
    assert kept.tolist() == [False, True, True, False, True, True, False]
    assert torch.equal(kept, (proposed >= 0) | (recorded > 0))
    assert choose(recorded, proposed, "adaptive", 1.0)[1].tolist() == [False, True, *[False] * 5]
    assert torch.equal(choose(recorded, proposed, "dataset", 0.0)[1], recorded > 0)
    assert torch.equal(choose(recorded, proposed, "vae_only", 0.0)[1], proposed >= 0)


def test_targets_and_weights_are_those_of_the_choice():
    data = transitions()[:32]
    mine = balanced(trained(A2PR(mask_weight=0.4, **SMALL), transitions()))
    states = mine.policy.normaliser(data.observations)
    actions = mine.policy(states).detach()
    proposals = mine.vae(states, actions, codes())[0]
    for target in ("adaptive", "dataset", "vae_only"):
        mine.method = A2PR(mask_weight=0.4, target=target, **SMALL)
        targets, weights, proposed = mine.imitated(states, actions, data.actions, codes())
        best = torch.maximum(mine.advantages(states, data.actions), mine.advantages(states, proposals.detach()))
        assert torch.equal(targets[proposed], proposals[proposed])
        assert torch.equal(targets[~proposed], data.actions[~proposed])
        assert proposed.all() == (target == "vae_only") and proposed.any() == (target != "dataset")
        if target == "adaptive":
            assert torch.equal(mine.advantages(states, targets.detach()), best)
            assert torch.equal(weights, 0.4 * (best >= 0))
    mine.method = A2PR(mask=False, mask_weight=0.4, **SMALL)
    assert mine.imitated(states, actions, data.actions, codes())[1].unique().tolist() == [1.0]


def test_the_actors_step_leaves_critic_value_and_vae_alone():
    mine = trained(A2PR(mask=False, target="vae_only", **SMALL), transitions())
    others = {name: getattr(mine, name) for name in ("critic", "value", "vae")}
    for module in others.values():
        module.zero_grad()
    before = {name: parameters(module) for name, module in others.items()}
    policy = parameters(mine.policy)
    mine.improve_policy([transitions()[:32]], [codes()], 32)
    assert not torch.equal(policy, parameters(mine.policy))
    for name, module in others.items():
        assert all(p.grad is None for p in module.parameters()) and torch.equal(before[name], parameters(module))


def test_gradients_through_the_proposal_can_be_stopped():
    data = transitions()[:32]
    found = {}
    for detach in (False, True):
        mine = trained(A2PR(mask=False, target="vae_only", detach_target=detach, **SMALL), transitions(), updates=1)
        _, states, actions = mine.act(data)
        targets, weights, _ = mine.imitated(states, actions, data.actions, codes())
        assert targets.requires_grad is not detach
        _, penalty, _ = actor_loss(torch.zeros(32), actions, targets, weights, torch.tensor(1.0), mine.unit)
        found[detach] = torch.autograd.grad(penalty, mine.policy.net.layers[0].weight)[0]
    assert not torch.allclose(found[False], found[True])


def test_losses_by_hand():
    loss, penalty, count = actor_loss(
        torch.tensor([1.0, 3.0]), torch.tensor([[0.5], [0.0]]), torch.tensor([[0.0], [1.0]]), torch.tensor([0.5, 1.0]),
        torch.tensor(1.25), torch.tensor([2.0]),
    )  # fmt: skip
    assert (penalty.item(), count) == (0.5 * 0.0625 + 0.25, 2) and loss.item() == -1.25 * 4 + 0.28125
    # KL of N(1, 1) to N(0, 1) is 1/2 a dimension; halved once more by the loss. Deviation e: (e^2 - 3) / 2.
    mean, log_std = torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    error, kl, _ = vae_loss(torch.zeros(2, 1), torch.tensor([[2.0], [1.0]]), mean, log_std, torch.tensor([1.0, 0.0]),
                            torch.tensor([1.0]))  # fmt: skip
    assert error.item() == 4.0 and abs(kl.item() - (0.25 + (torch.e**2 - 3) / 4)) < 1e-6


def test_the_values_target_is_the_smaller_of_both_critics_and_reads_terminated_only():
    data = transitions(rows=64)
    mine = trained(A2PR(reward_scale=10.0, reward_shift=-1.0, discount=0.9, policy_noise=0.0, **SMALL), transitions())
    nexts = mine.next_actions(data, torch.randn(64, 2, generator=Rng(1).torch()))
    states = mine.policy.normaliser(data.next_observations)
    assert torch.equal(nexts, mine.target_policy(states).clamp(-1, 1))
    for critic in (mine.critic, mine.target_critic):
        values = critic(states, nexts).amin(0)
        expected = td_target(10 * data.rewards - 1, data.terminated, values, 0.9)
        assert torch.allclose(mine.targets(critic, data, nexts), expected)
        assert values.abs().min() > 1e-4
    assert (mine.targets(mine.critic, data, nexts)[data.terminated] == 10 * data.rewards[data.terminated] - 1).all()


def test_the_value_is_the_mean_over_recorded_actions_in_a_bandit():
    data = cliff_bandit.dataset(2000, Rng(1000))
    method = A2PR(hidden=(16,), critic_hidden=(32, 32), vae_hidden=(16,), learning_rate=5e-3, batch_size=256)
    mine = learner(method, data)
    for step in range(300):
        mine.update(data[torch.randint(2000, (256,), generator=Rng(step).torch())], Rng(0).at(step))
    states = mine.policy.normaliser(data.observations)
    assert abs(mine.value(states).mean().item() - data.rewards.mean().item()) < 0.05
    good = data.actions[:, 0] > 0
    kept = mine.vae_weights(states, data.actions)
    assert kept[good].mean() > 0.98 and kept[~good].mean() < 0.7


def test_lambda_is_a_statistic_of_the_whole_batch_so_parts_agree():
    data = transitions()
    whole, parts = learner(A2PR(**SMALL), data), learner(A2PR(**SMALL), data)
    for step in (5, 6):
        first, second = whole.update(data[:32], Rng(step), 1), parts.update(data[:32], Rng(step), 8)
    assert {"critic_loss", "value_loss", "vae_error", "vae_kl", "actor_loss", "penalty"} <= set(first)
    for name, value in first.items():
        assert abs(float(value) - float(second[name])) < 1e-5, name
    for name in ("policy", "critic", "value", "vae"):
        assert torch.allclose(parameters(getattr(whole, name)), parameters(getattr(parts, name)), atol=1e-5), name


def test_policy_and_targets_move_every_second_update_only():
    data = transitions()
    mine = learner(A2PR(tau=0.1, **SMALL), data)
    policy, targets = parameters(mine.policy), parameters(mine.target_critic)
    mine.update(data[:32], Rng(1))
    assert torch.equal(policy, parameters(mine.policy)) and torch.equal(targets, parameters(mine.target_critic))
    mine.update(data[:32], Rng(2))
    assert not torch.equal(policy, parameters(mine.policy))
    assert torch.allclose(parameters(mine.target_critic), 0.9 * targets + 0.1 * parameters(mine.critic), atol=1e-7)


def test_proposals_stay_within_the_box():
    data = transitions(bound=3.0)
    mine = learner(A2PR(**SMALL), data)
    states = mine.policy.normaliser(data.observations)
    proposals, _, log_std = mine.vae(states, data.actions, 100 * codes(300))
    assert proposals.abs().max() <= 3.0 and proposals.abs().max() > 1.0 and log_std.min() >= -4


def test_wrong_options_and_data_are_refused():
    for options in ({"alpha": 0.0}, {"mask_weight": -1.0}, {"advantage_threshold": -0.1}):
        with pytest.raises(TelosError, match=next(iter(options))):
            A2PR(**options).fit(transitions(), steps=1)


def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path):
    data, method = transitions(), A2PR(**SMALL)
    whole = method.fit(data, steps=30, seed=3, device="cpu")

    def kill(step: int, product: object) -> dict[str, float]:
        raise KeyboardInterrupt

    run = {"steps": 30, "seed": 3, "device": "cpu", "out": tmp_path / "run", "checkpoint_every": 7}
    with pytest.raises(KeyboardInterrupt):
        method.fit(data, **run, evaluate=kill, evaluate_every=25)
    assert torch.equal(parameters(whole), parameters(method.fit(data, **run, resume=True)))


def test_among_poor_records_it_earns_more_than_td3_bc_and_does_not_fall():
    data = cliff_bandit.dataset(2000, Rng(1000))
    shared = {"alpha": 1.0, "hidden": (32,), "learning_rate": 3e-3, "batch_size": 128}
    mine = A2PR(critic_hidden=(32, 32), vae_hidden=(32,), mask_weight=1.0, **shared)
    found = cliff_bandit.measure(mine.fit(data, steps=600, seed=1000, device="cpu"))
    copy = cliff_bandit.measure(TD3BC(**shared).fit(data, steps=600, seed=1000, device="cpu"))
    assert found["fallen"] == 0.0 and found["reward"] > copy["reward"] + 0.2
