import math
from pathlib import Path

import numpy as np
import pytest
import torch

from telos.core.errors import TelosError
from telos.core.products import Policy, load_product
from telos.core.rng import Rng
from telos.data.records import Box, Discrete, Transitions
from telos.nets.normaliser import Normaliser
from telos.nets.policies import CategoricalPolicy, DeterministicPolicy, GaussianPolicy, box

LOW, HIGH = (-2.0, 0.0), (2.0, 0.5)


def policies() -> list[Policy]:
    made = [
        DeterministicPolicy(3, LOW, HIGH, (16,), noise=0.3, rng=Rng(0).torch()),
        GaussianPolicy(3, LOW, HIGH, (16,), rng=Rng(1).torch()),
        GaussianPolicy(3, LOW, HIGH, (16,), state_dependent_std=True, rng=Rng(2).torch()),
        CategoricalPolicy(3, 4, (16,), rng=Rng(3).torch()),
    ]
    for policy in made:
        policy.normaliser = Normaliser(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 1.0, 2.0]))
    return made


@pytest.mark.parametrize("policy", policies()[:3])
@pytest.mark.parametrize("explore", [False, True])
def test_actions_stay_in_the_box_whatever_the_observation(policy: Policy, explore: bool):
    obs = 1e4 * torch.randn(500, 3, generator=Rng(4).torch())
    actions = policy.act(obs, explore=explore, rng=Rng(5).torch()).action
    assert actions.shape == (500, 2)
    assert (actions >= torch.tensor(LOW)).all() and (actions <= torch.tensor(HIGH)).all()
    # Such observations saturate the tanh, so the whole range is in use.
    assert (actions[:, 0].min(), actions[:, 0].max()) == (-2.0, 2.0)


@pytest.mark.parametrize("policy", policies())
def test_one_observation_of_any_kind_gives_the_batches_first_action(policy: Policy):
    obs = np.array([[0.3, -1.0, 2.0], [1.0, 0.0, 0.0]])
    batch = policy.act(obs).action
    for single in (obs[0], obs[0].tolist(), torch.tensor(obs[0])):
        action = policy.act(single).action
        assert action.shape == batch.shape[1:] and torch.allclose(action.float(), batch[0].float(), atol=1e-6)


@pytest.mark.parametrize("policy", policies())
def test_a_wrong_width_is_refused_with_the_expected_one(policy: Policy):
    for wrong in (torch.zeros(5, 4), torch.zeros(2), torch.zeros(1, 2, 3)):
        with pytest.raises(TelosError, match=r"\(batch, 3\)"):
            policy.act(wrong)


@pytest.mark.parametrize("policy", policies())
def test_exploration_needs_and_obeys_its_generator(policy: Policy):
    obs = torch.zeros(50, 3)
    with pytest.raises(TelosError, match="generator"):
        policy.act(obs, explore=True)
    first = policy.act(obs, explore=True, rng=Rng(6).torch()).action
    assert torch.equal(first, policy.act(obs, explore=True, rng=Rng(6).torch()).action)
    assert not torch.equal(first, policy.act(obs, explore=True, rng=Rng(7).torch()).action)
    assert torch.equal(policy.act(obs).action, policy.act(obs).action)


@pytest.mark.parametrize("policy", policies())
def test_saved_and_loaded_it_acts_the_same(policy: Policy, tmp_path: Path):
    loaded = load_product(policy.save(tmp_path / "policy"))
    obs = torch.randn(20, 3, generator=Rng(8).torch())
    assert torch.equal(policy.act(obs).action, loaded.act(obs).action)
    assert loaded.config() == policy.config()


def test_the_normaliser_is_part_of_what_acts():
    policy = DeterministicPolicy(1, (-1.0,), (1.0,), (8,), rng=Rng(9).torch())
    plain = policy.act(torch.tensor([[0.5]])).action
    policy.normaliser = Normaliser(torch.tensor([10.0]), torch.tensor([2.0]))
    assert torch.allclose(policy.act(torch.tensor([[11.0]])).action, plain, atol=1e-7)


def test_exploration_noise_has_its_size():
    policy = DeterministicPolicy(1, (-4.0,), (4.0,), (8,), noise=0.1)
    actions = policy.act(torch.zeros(20_000, 1), explore=True, rng=Rng(10).torch()).action
    # Zero weights give the centre; 0.1 of the half width 4; the standard error of a std is 0.5 %.
    assert abs(actions.std().item() - 0.4) < 0.01 and abs(actions.mean().item()) < 0.015


def test_gaussian_log_prob_is_a_normal_density_of_raw_actions():
    policy = GaussianPolicy(3, LOW, HIGH, (16,), rng=Rng(11).torch())
    assert policy.log_std is not None
    policy.log_std.data = torch.tensor([-1.0, 0.3])
    states, actions = torch.randn(6, 3, generator=Rng(12).torch()), torch.rand(6, 2, generator=Rng(13).torch()) / 2
    mean, log_std = policy(states)
    half, centre = torch.tensor([2.0, 0.25]), torch.tensor([0.0, 0.25])
    normal = torch.distributions.Normal(centre + half * mean, half * log_std.exp())
    assert torch.allclose(policy.log_likelihood(states, actions), normal.log_prob(actions).sum(-1), atol=1e-5)


def test_gaussian_reports_the_log_prob_of_the_action_it_returns():
    policy = GaussianPolicy(2, (-1.0,), (1.0,), (8,), rng=Rng(14).torch())
    obs = torch.randn(30, 2, generator=Rng(15).torch())
    act = policy.act(obs, explore=True, rng=Rng(16).torch())
    assert act.log_prob is not None and torch.allclose(act.log_prob, policy.log_prob(obs, act.action), atol=1e-6)
    assert policy.act(obs).log_prob is None


def test_log_std_is_clipped():
    policy = GaussianPolicy(2, (-1.0,), (1.0,), (8,), log_std_min=-3, log_std_max=1)
    assert policy.log_std is not None
    for value, kept in [(-9.0, -3.0), (9.0, 1.0)]:
        policy.log_std.data.fill_(value)
        assert policy(torch.zeros(1, 2))[1].item() == kept


def test_categorical_draws_with_its_probabilities_and_never_what_is_masked():
    policy = CategoricalPolicy(1, 3, ())
    policy.net.layers[-1].bias.data = torch.tensor([0.5, 0.3, 0.2]).log()
    obs = torch.zeros(20_000, 1)
    act = policy.act(obs, explore=True, rng=Rng(17).torch())
    frequency = torch.bincount(act.action, minlength=3) / 20_000
    assert torch.allclose(frequency, torch.tensor([0.5, 0.3, 0.2]), atol=0.015)
    assert act.log_prob is not None and math.isclose(
        act.log_prob[act.action == 1][0].item(), math.log(0.3), abs_tol=1e-5
    )
    mask = torch.tensor([False, True, True]).expand(20_000, 3)
    masked = policy.act(obs, mask=mask, explore=True, rng=Rng(18).torch()).action
    assert (masked != 0).all() and abs((masked == 1).float().mean().item() - 0.6) < 0.015
    assert policy.act(obs[:1], mask=mask[:1]).action.item() == 1


def test_log_prob_takes_raw_observations_and_given_actions():
    rng = Rng(19).torch()
    obs = 5 + 3 * torch.randn(40, 2, generator=rng)
    gaussian = GaussianPolicy(2, LOW, HIGH, (8,), rng=rng)
    categorical = CategoricalPolicy(2, 3, (8,), rng=rng)
    for policy in (gaussian, categorical):
        policy.normaliser = Normaliser.fitted(obs)
        act = policy.act(obs, explore=True, rng=rng)
        assert act.log_prob is not None
        assert torch.allclose(policy.log_prob(obs, act.action), act.log_prob, atol=1e-5)
        assert torch.allclose(policy.log_prob(obs[0], act.action[0]), act.log_prob[0], atol=1e-5)
    shares = categorical.probabilities(obs)
    assert torch.allclose(shares.sum(-1), torch.ones(40)) and categorical.probabilities(obs[3]).shape == (3,)
    assert torch.allclose(shares[:, 1].log(), categorical.log_prob(obs, torch.ones(40)), atol=1e-6)
    mask = torch.tensor([True, True, False]).expand(40, 3)
    masked = categorical.probabilities(obs, mask)
    assert torch.allclose(masked[:, :2], shares[:, :2] / shares[:, :2].sum(-1, keepdim=True), atol=1e-6)
    assert (categorical.log_prob(obs, torch.full((40,), 2), mask=mask) == -math.inf).all()
    with pytest.raises(TelosError, match="no action probabilities"):
        DeterministicPolicy(2, LOW, HIGH, (8,)).log_prob(obs, torch.zeros(40, 2))


def data(space: Box | Discrete) -> Transitions:
    actions = torch.zeros(2, dtype=torch.int64) if isinstance(space, Discrete) else torch.full((2, space.size), 1.0)
    columns = {name: torch.zeros(2) for name in ("rewards", "terminated", "truncated", "observations")}
    return Transitions.validated(
        **columns, actions=actions, next_observations=columns["observations"], action_space=space
    )


def test_unbounded_or_discrete_actions_are_refused():
    assert box(data(Box((-1.0,), (1.0,))), "PRDC").high == (1.0,)
    with pytest.raises(TelosError, match="discrete"):
        box(data(Discrete(3)), "PRDC")
    for bad in (Box((-1.0, -math.inf), (1.0, 1.0)), Box((-1.0, 1.0), (1.0, 1.0))):
        with pytest.raises(TelosError, match="dimension 1"):
            box(data(bad), "PRDC")
    with pytest.raises(TelosError, match="data set"):
        box([1, 2, 3], "PRDC")
