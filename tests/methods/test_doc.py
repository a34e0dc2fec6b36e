"""The dossier's checks of DoC, with numbers, and the Bernoulli bandit in seconds."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.method import Spec
from telos.core.products import load_product
from telos.core.registry import use
from telos.core.rng import Rng
from telos.data.records import Transitions
from telos.data.returns import returns_to_go
from telos.methods.offline_rl.doc import (
    DoC,
    DoCLearner,
    Future,
    bracket,
    draw_code,
    kl_to_prior,
)
from telos.worlds import bernoulli_bandit as bandit
from telos.worlds import bypass2d

SMALL = {"hidden": (16,), "batch_size": 64, "negatives": 16}
LATENTS = ("categorical", "gaussian")


def ready(method: DoC, data: Transitions) -> tuple[DoCLearner, Future]:
    spec = method.prepare(Spec(data, {}, 10, torch.device("cpu"), Rng(0)))
    learner = method.learner(spec, Rng(0))
    return learner, method.source(spec).next(learner.behaviour, Rng(1))  # type: ignore[return-value]


def pulls(n: int = 1000, p: float = 0.1) -> Transitions:
    return bandit.dataset(n, p, Rng(1000))


def information(learner: DoCLearner, batch: Future) -> float:
    with torch.no_grad():
        return float(learner.losses(batch)["bracket"].mean())


def copies(module: torch.nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def test_a_constant_energy_has_a_bracket_of_zero():
    assert bracket(torch.full((5,), 3.0), torch.full((5, 8), 3.0)).tolist() == [0.0] * 5
    learner, batch = ready(DoC(**SMALL), pulls())
    for parameter in learner.energy.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.constant_([*learner.energy.parameters()][-1], 2.5)
    assert information(learner, batch) == pytest.approx(0, abs=1e-6)
    found = bracket(torch.tensor([1.0]), torch.tensor([[0.0, 2.0]]))
    assert float(found) == pytest.approx(1 - float(torch.log((1 + torch.tensor(2.0).exp()) / 2)))


@pytest.mark.parametrize("latent", LATENTS)
def test_the_energy_raises_the_bracket_and_the_posterior_lowers_it(latent: str):
    method = DoC(latent=latent, beta=1e4, learning_rate=1e-5, energy_learning_rate=1e-4, **SMALL)  # type: ignore[arg-type]
    learner, batch = ready(method, pulls())
    with torch.no_grad():
        for parameter in learner.energy.parameters():  # an energy that reads the code
            parameter.mul_(3)
    before = information(learner, batch)
    energy, posterior = copies(learner.energy), copies(learner.posterior)
    learner.update(batch, Rng(2))
    with torch.no_grad():
        after_both = information(learner, batch)
        for parameter, old in zip(learner.posterior.parameters(), posterior):
            parameter.copy_(old)
        after_energy = information(learner, batch)
    assert after_energy > before
    # The step of q, with the energy as it is now.
    assert after_both <= after_energy + (1e-3 if latent == "categorical" else 0)
    assert any(not torch.equal(a, b) for a, b in zip(energy, learner.energy.parameters()))


def test_the_direct_gradient_of_the_posterior_descends_and_with_the_released_sign_ascends():
    for constraint, sign in (("minmax", 1), ("released", -1)):
        method = DoC(latent="gaussian", constraint=constraint, beta=1e6, **SMALL)  # type: ignore[arg-type]
        learner, batch = ready(method, pulls())
        gradients = torch.autograd.grad(learner.losses(batch)["bracket"].mean(), [*learner.posterior.parameters()])
        learner.energy_optimiser.param_groups[0]["lr"] = 0.0  # hold f, so that both gradients are at the same point
        learner.update(batch, Rng(2))
        for expected, parameter in zip(gradients, learner.posterior.parameters()):
            assert parameter.grad is not None
            scale = 1e6 * float(torch.cat([g.flatten() for g in gradients]).abs().max())
            assert torch.allclose(parameter.grad / scale, sign * 1e6 * expected / scale, atol=1e-4)


@pytest.mark.parametrize("latent", LATENTS)
def test_the_kl_sends_no_gradient_to_the_posterior_and_is_exact(latent: str):
    learner, batch = ready(DoC(latent=latent, **SMALL), pulls())  # type: ignore[arg-type]
    found = learner.losses(batch)["kl"].sum()
    gradients = torch.autograd.grad(found, [*learner.posterior.parameters()], allow_unused=True, retain_graph=True)
    assert all(g is None or not g.any() for g in gradients)
    assert any(g.abs().sum() > 0 for g in torch.autograd.grad(found, [*learner.policy.prior.parameters()]))
    q, p = (torch.randn(7, 6, generator=Rng(seed).torch()) for seed in (1, 2))
    if latent == "categorical":
        q_law, p_law = (torch.distributions.Categorical(logits=x) for x in (q, p))
        exact = torch.distributions.kl_divergence(q_law, p_law)
    else:
        q_law, p_law = (torch.distributions.Normal(x[:, :3], torch.exp(0.5 * x[:, 3:])) for x in (q, p))
        exact = torch.distributions.kl_divergence(q_law, p_law).sum(-1)
    assert torch.allclose(kl_to_prior(q, p, latent), exact, atol=1e-5)


@pytest.mark.parametrize("latent", LATENTS)
def test_a_variational_coders_posterior_is_held_near_the_prior(latent: str):
    method = DoC(latent=latent, constraint="vae", beta=0.7, **SMALL)  # type: ignore[arg-type]
    learner, batch = ready(method, pulls())
    losses = learner.losses(batch)
    wanted = (losses["policy_loss"] + 0.7 * losses["kl"] + losses["value_loss"]).mean()
    gradients = torch.autograd.grad(wanted, [*learner.posterior.parameters()])
    held = copies(learner.energy)
    learner.update(batch, Rng(2))
    for expected, parameter in zip(gradients, learner.posterior.parameters()):
        assert parameter.grad is not None and torch.allclose(parameter.grad, expected, atol=1e-6)
    kl = torch.autograd.grad(learner.losses(batch)["kl"].sum(), [*learner.posterior.parameters()])
    assert any(bool(g.any()) for g in kl) and all(torch.equal(a, b) for a, b in zip(held, learner.energy.parameters()))


def test_its_objective_bounds_the_likelihood_and_meets_it_at_the_exact_posterior():
    rng = Rng(3).torch()
    prior, actions = torch.randn(5, 4, generator=rng), torch.randn(5, 4, generator=rng).sigmoid()  # pi(a | z) of one a
    exact = prior.log_softmax(-1) + actions.log()
    likelihood = -exact.logsumexp(-1)

    def bound(q: Tensor) -> Tensor:
        return -(q.softmax(-1) * actions.log()).sum(-1) + kl_to_prior(q, prior, "categorical")

    assert torch.allclose(bound(exact), likelihood, atol=1e-5)
    assert (bound(torch.randn(5, 4, generator=rng)) > likelihood + 1e-3).all()


def test_a_variational_coder_does_what_the_data_do_with_codes_of_its_prior():
    options = {**SMALL, "learning_rate": 0.01, "constraint": "vae"}
    policy = DoC(**options).fit(pulls(), steps=500, seed=1000, device="cpu")  # type: ignore[arg-type]
    state = policy.normaliser(torch.zeros(1, 1))
    with torch.no_grad():
        shares = policy.prior(state).softmax(-1)[0]
        arms = policy.net(torch.cat([state.expand(4, 1), torch.eye(4)], -1)).softmax(-1)
    assert float(shares @ arms[:, 0]) == pytest.approx(0.1, abs=0.05)


@pytest.mark.parametrize("through", [False, True])
def test_the_value_trains_the_posterior_only_if_asked(through: bool):
    learner, batch = ready(DoC(value_grad_to_q=through, **SMALL), pulls())
    loss = learner.losses(batch)["value_loss"].sum()
    gradients = torch.autograd.grad(loss, [*learner.posterior.parameters()], allow_unused=True)
    assert any(g is not None and bool(g.any()) for g in gradients) == through


def test_codes_are_drawn_by_their_law_with_gradients():
    logits = torch.tensor([0.0, 1.0, 2.0]).expand(50_000, 3).clone().requires_grad_()
    z = draw_code(logits, torch.rand(50_000, 1, generator=Rng(1).torch()), "categorical")
    assert torch.allclose(z.detach().mean(0), logits[0].softmax(-1), atol=0.01)
    assert torch.allclose(z.detach().amax(1), torch.ones(50_000)) and z[:, 0].sum().requires_grad
    codes = torch.tensor([[1.0, -1.0, 0.0, 2.0]]).expand(50_000, 4)
    z = draw_code(codes, torch.randn(50_000, 2, generator=Rng(1).torch()), "gaussian")
    assert torch.allclose(z.mean(0), torch.tensor([1.0, -1.0]), atol=0.05)
    assert torch.allclose(z.std(0), torch.tensor([1.0, torch.e]), atol=0.05)


def test_futures_stay_in_their_episode_and_returns_are_what_follows():
    data = bypass2d.dataset(8, Rng(1000))
    data = replace(data, rewards=torch.rand(len(data), generator=Rng(3).torch()))
    _, batch = ready(DoC(future=6, discount=0.5, **{**SMALL, "batch_size": 300}), data)
    assert batch.mask.shape == (300, 6) and batch.mask[:, 0].all() and not batch.mask.all()
    assert batch.other_rewards.shape == (300, 16) and len(batch.other_rewards.unique()) > 100
    returns = returns_to_go(data, 0.5)
    exact = sum(0.5**k * float(data.rewards[20 + k]) for k in range(5))
    assert float(returns[20]) == pytest.approx(exact) and float(returns[24]) == pytest.approx(float(data.rewards[24]))
    for i in range(50):
        row = int((data.observations == batch.observations[i, 0]).all(1).nonzero()[0])
        assert float(batch.returns[i]) == float(returns[row])
        assert int(batch.mask[i].sum()) == min(6, 25 - row % 25)


@pytest.mark.parametrize("p", [0.1, 0.3])
def test_the_bracket_tends_to_the_information_that_no_code_changes(p: float):
    """With codes that tell nothing, the best energy has the bracket I(reward; arm)."""
    method = DoC(energy_learning_rate=0.01, constrained="reward", **{**SMALL, "batch_size": 512, "negatives": 64})
    data = pulls(5000, p)
    learner, _ = ready(method, data)
    for parameter in learner.posterior.parameters():
        torch.nn.init.zeros_(parameter)
    source = method.source(Spec(data, {}, 10, torch.device("cpu"), Rng(0)))
    found = []
    for step in range(250):
        batch: Future = source.next(learner.behaviour, Rng(5).at(step))  # type: ignore[assignment]
        learner.energy_optimiser.zero_grad()
        value = learner.information(batch, torch.full((512, 4), 0.25)).mean()
        (-value).backward()
        learner.energy_optimiser.step()
        found.append(float(value.detach()))
    assert sum(found[-100:]) / 100 == pytest.approx(bandit.information(p), abs=0.02)


def test_with_rewards_that_the_action_decides_the_constraint_changes_nothing():
    data = pulls()
    data = replace(data, rewards=(data.actions == 0).float())
    # The energy learns faster: where it lags, whole runs end at the other arm.
    options = {**SMALL, "constrained": "reward", "learning_rate": 0.004, "energy_learning_rate": 0.01}
    for beta in (0.0, 1.0):
        policy = DoC(beta=beta, **options).fit(data, steps=1000, seed=1000, device="cpu")  # type: ignore[arg-type]
        assert float(policy.probabilities([0.0])[0]) > 0.9


def test_doc_finds_the_good_arm_and_a_policy_told_the_return_cannot():
    data = pulls()
    options = {**SMALL, "constrained": "reward", "learning_rate": 0.01, "energy_learning_rate": 0.01}
    policy = DoC(**options).fit(data, steps=600, seed=1000, device="cpu")  # type: ignore[arg-type]
    assert bandit.expected_reward(policy.probabilities([0.0]), 0.1) > 0.8
    told = use("stitching", condition="return", augment_prob=0.0, hidden=(16,), learning_rate=0.01, batch_size=64)
    policy = told.fit(data, steps=300, seed=1000, device="cpu")
    logits = policy(policy.play.look([0.0], [1.0], None))[0, -1]
    paid = data.actions[data.rewards == 1]
    assert logits.softmax(-1)[0].item() == pytest.approx(float((paid == 0).float().mean()), abs=0.07)


@pytest.mark.parametrize("encoder", ["mlp", "deepset", "rnn", "transformer"])
@pytest.mark.parametrize("latent", LATENTS)
def test_every_encoder_and_latent_learns_saves_and_acts(encoder: str, latent: str, tmp_path: Path):
    data = bypass2d.dataset(8, Rng(1000))
    method = DoC(encoder=encoder, latent=latent, future=4, **SMALL)  # type: ignore[arg-type]
    policy = method.fit(data, steps=3, device="cpu")
    loaded = load_product(policy.save(tmp_path / "product"))
    a, b = (x.act(data.observations[:5], rng=Rng(2).torch()).action for x in (policy, loaded))
    assert torch.equal(a, b) and a.shape == (5, 2) and (a.abs() <= 1).all()
    learner, batch = ready(method, data)
    other, _ = ready(method, data)
    first, second = learner.update(batch, Rng(5)), other.update(batch, Rng(5), 5)
    for name, value in first.items():
        assert float(value) == pytest.approx(float(second[name]), rel=1e-4, abs=1e-6)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learner.posterior.parameters())


def test_a_code_that_the_prior_does_not_give_is_never_chosen():
    learner, _ = ready(DoC(**SMALL), pulls())
    policy = learner.policy
    with torch.no_grad():
        *_, weight, bias = policy.prior.parameters()
        weight.zero_()
        bias.copy_(torch.tensor([0.0, 0.0, -9.0, 0.0]))
        hidden, bias, out, _ = policy.value.parameters()  # the value of code i is 1, 2, 9, 0
        for parameter in (hidden, bias, out):
            parameter.zero_()
        hidden[:4, 1:] = torch.eye(4)
        out[0, :4] = torch.tensor([1.0, 2.0, 9.0, 0.0])
    assert policy.best_code(torch.zeros(3, 1), None).tolist() == [[0, 1, 0, 0]] * 3


@pytest.mark.parametrize(
    "options", [{"latent_size": 0}, {"future": 0}, {"negatives": 0}, {"beta": -1.0}, {"discount": 2.0}, {"hidden": ()}]
)
def test_wrong_options_are_refused(options: dict):
    with pytest.raises(TelosError, match="out of range"):
        DoC(**{**SMALL, **options}).fit(pulls(), steps=1, device="cpu")
