"""PPO for language models: a round by hand, the hooks, the critic, adaptive KL, and that it learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from telos.core.errors import HealthError, TelosError
from telos.core.method import Spec
from telos.core.rng import Rng
from telos.data.records import Prompts
from telos.lm.hooks import RoundHooks
from telos.lm.log_probs import token_log_probs
from telos.lm.model import TINY, load_model
from telos.lm.products import LanguagePolicy, RewardScorer
from telos.lm.values import token_values
from telos.methods.language_rl.ppo import PPO

PROMPTS = Prompts([f"topic{i}" + " word1" * (i % 2) for i in range(8)])
SMALL = {"prompts_per_batch": 6, "minibatch_size": 3, "max_new_tokens": 6}


def good(prompts, completions):
    """The number of good words among the first eight."""
    return [sum(word.startswith("good") for word in text.split()[:8]) for text in completions]


def set_up(method, purpose=good, **given):
    spec = Spec(PROMPTS, {"model": TINY, "purpose": purpose, **given}, 1, torch.device("cpu"), Rng(1000))
    spec = method.prepare(spec)
    learner, source = method.learner(spec, Rng(1000)), method.source(spec)
    return learner, source.next(learner.behaviour, Rng(1000).at("batch"))


def perturbed():
    model = load_model(TINY)
    with torch.no_grad():
        for parameter in model.trainable():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=Rng(5).torch()))
    return model


def test_rollouts_carry_what_methods_need():
    learner, batch = set_up(PPO(samples_per_prompt=2, **SMALL), model=perturbed(), reference=TINY)
    mask = batch.sequences.mask
    assert batch.groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    with torch.no_grad():
        own = token_log_probs(learner.model, batch.sequences)
        reference = token_log_probs(load_model(TINY), batch.sequences)
    for name in ("sampler_log_probs", "log_probs", "reference_log_probs", "token_rewards"):
        assert getattr(batch, name).shape == mask.shape and not getattr(batch, name)[~mask].any()
    assert torch.allclose(batch.log_probs, own, atol=1e-5)
    assert torch.allclose(batch.reference_log_probs, reference, atol=1e-5)
    assert torch.allclose(batch.log_ratios, own - reference, atol=1e-5) and batch.log_ratios.abs().max() > 0.1
    assert torch.equal(batch.policy_mask, mask) and torch.equal(batch.value_mask, mask)
    assert batch.last.sum(-1).eq(1).all() and (batch.last & mask).sum() == len(batch)


@pytest.mark.parametrize("micro", [1, 2])
def test_a_round_by_hand(micro):
    method = PPO(
        beta=0.3, epochs=1, prompts_per_batch=4, minibatch_size=4, max_new_tokens=6, max_grad_norm=1e9, trace=0.9,
        discount=0.95,
    )  # fmt: skip
    learner, batch = set_up(method, model=perturbed(), reference=TINY)
    with torch.no_grad():
        learner.critic.score.weight.normal_(generator=Rng(3).torch())
        values = token_values(learner.critic, batch.sequences)
    assert values.abs().max() > 0.1
    mask, log_ratios = batch.sequences.mask, batch.log_ratios
    advantages, returns = torch.zeros_like(values), torch.zeros_like(values)
    for row in range(4):
        places = mask[row].nonzero()[:, 0].tolist()
        rewards = {t: -0.3 * float(log_ratios[row, t]) for t in places}
        rewards[places[-1]] += float(batch.rewards[row])
        carried, following = 0.0, 0.0
        for t in reversed(places):
            carried = rewards[t] + 0.95 * following - float(values[row, t]) + 0.95 * 0.9 * carried
            following = float(values[row, t])
            advantages[row, t], returns[row, t] = carried, carried + following
    inside = advantages[mask]
    white = (inside - inside.mean()) / inside.std(correction=0)
    log_probs = token_log_probs(learner.model, batch.sequences)
    expected = torch.autograd.grad(-(log_probs[mask] * white).mean(), learner.parameters)
    error = token_values(learner.critic, batch.sequences)[mask] - returns[mask]
    expected_critic = torch.autograd.grad(0.5 * error.square().mean(), learner.critic_parameters, allow_unused=True)
    seen, seen_critic = [], []
    learner.optimizer.register_step_pre_hook(lambda *_: seen.extend(p.grad.clone() for p in learner.parameters))
    learner.critic_optimizer.register_step_pre_hook(
        lambda *_: seen_critic.extend(p.grad for p in learner.critic_parameters)
    )
    metrics = learner.update(batch, Rng(0), micro)
    for found, truth in ((seen, expected), (seen_critic, expected_critic)):
        scale = max(g.abs().max() for g in truth if g is not None)
        for a, b in zip(found, truth, strict=True):
            assert (a is None and b is None) or torch.allclose(a, b, atol=2e-4 * scale)
    assert float(metrics["value_loss"]) == pytest.approx(float(0.5 * error.detach().square().mean()), rel=1e-3)
    assert float(metrics["kl"]) == pytest.approx(float(log_ratios.sum(-1).mean()), abs=1e-5)


def test_values_are_of_what_stands_before_a_token():
    learner, batch = set_up(PPO(**SMALL))
    with torch.no_grad():
        learner.critic.score.weight.normal_(generator=Rng(3).torch())
        before = token_values(learner.critic, batch.sequences)
        row, place = 0, int(batch.sequences.boundaries[0]) + 1
        tokens = batch.sequences.tokens.clone()
        tokens[row, place] = (tokens[row, place] + 1) % 30
        after = token_values(learner.critic, replace(batch.sequences, tokens=tokens))
    assert torch.allclose(before[row, : place + 1], after[row, : place + 1], atol=1e-6)
    assert not torch.allclose(before[row, place + 1], after[row, place + 1], atol=1e-6)
    assert not before[~batch.sequences.mask].any()


class Recording(RoundHooks):
    """Every hook changes something that can be seen."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.calls = []

    def collected(self, batch, rng):
        self.calls.append("collected")
        self.seen += len(batch)
        return batch[batch.rewards >= batch.rewards.median()]

    def sequence_rewards(self, batch):
        self.calls.append("sequence_rewards")
        return torch.full_like(batch.rewards, 100.0)

    def token_rewards(self, batch):
        self.calls.append("token_rewards")
        return torch.zeros_like(batch.token_rewards)

    def advantages(self, advantages, mask):
        self.calls.append("advantages")
        assert float(advantages[mask].mean()) == pytest.approx(100.0, rel=0.01)
        return torch.zeros_like(advantages)

    def log_probs(self, model, batch):
        self.calls.append("log_probs")
        return token_log_probs(model, batch.sequences)

    def regulariser(self, model, rng):
        self.calls.append("regulariser")
        return model.trainable()[0].square().sum()


def test_hooks_are_called_in_order_and_change_the_round():
    hooks = Recording()
    method = PPO(beta=0.0, epochs=1, trace=1.0, **{**SMALL, "minibatch_size": 100})
    learner, batch = set_up(method, hooks=hooks)
    grads = []
    learner.optimizer.register_step_pre_hook(lambda *_: grads.extend(p.grad.clone() for p in learner.parameters))
    learner.update(batch, Rng(0))
    assert hooks.calls == ["collected", "token_rewards", "sequence_rewards", "advantages", "log_probs", "regulariser"]
    assert grads[0].abs().max() > 0  # the regulariser's alone: advantages are 0
    assert all(not g.any() for g in grads[1:])
    assert float(learner.state()[0]["hooks.seen"]) == len(batch)


def test_masks_keep_a_guides_tokens_out():
    """Tokens off the policy mask give it no gradient and no KL reward; off the value mask, the critic none."""
    learner, batch = set_up(PPO(beta=0.5, epochs=1, **SMALL))
    none = torch.zeros_like(batch.policy_mask)
    before = [p.clone() for p in [*learner.parameters, *learner.critic_parameters]]
    metrics = learner.update(replace(batch, policy_mask=none, value_mask=none), Rng(0))
    assert float(metrics["kl"]) == 0.0 and float(metrics["loss"]) == 0.0
    after = [*learner.parameters, *learner.critic_parameters]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_critic_warm_up_moves_the_critic_alone():
    learner, batch = set_up(PPO(critic_warmup=1, critic_learning_rate=1e-3, **SMALL))
    before = [p.clone() for p in learner.parameters]
    critic = [p.clone() for p in learner.critic_parameters]
    learner.update(batch, Rng(0))
    assert all(torch.equal(a, b) for a, b in zip(before, learner.parameters, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(critic, learner.critic_parameters, strict=True))
    learner.update(batch, Rng(1))
    assert not all(torch.equal(a, b) for a, b in zip(before, learner.parameters, strict=True))


def test_beta_follows_the_kl_target():
    learner, batch = set_up(PPO(beta=0.5, kl_target=1.0, **SMALL), model=perturbed(), reference=TINY)
    kl = float(learner.update(batch, Rng(0))["kl"])
    step = max(-0.2, min(0.2, kl / 1.0 - 1))
    assert learner.beta == pytest.approx(0.5 * (1 + 0.1 * step)) and learner.state()[1]["beta"] == learner.beta


def test_the_critic_may_start_from_a_reward_model():
    scorer = RewardScorer.from_language_model(load_model(TINY), Rng(0))
    with torch.no_grad():
        scorer.network.score.weight.fill_(0.1)
    learner, _ = set_up(PPO(**SMALL), critic=scorer)
    assert (learner.critic.score.weight == 0.1).all()
    assert learner.critic is not scorer.network and all(p.requires_grad for p in learner.critic.parameters())
    with pytest.raises(TelosError, match="'critic' is no reward model"):
        set_up(PPO(**SMALL), critic=LanguagePolicy(load_model(TINY)))


def test_tampered_sampler_log_probs_stop_training():
    learner, batch = set_up(PPO(prompts_per_batch=2, max_new_tokens=6))
    wrong = batch.sampler_log_probs.clone()
    wrong[0, int(batch.sequences.boundaries[0])] += 0.01
    with pytest.raises(HealthError, match="sampler and trainer disagree"):
        learner.update(replace(batch, sampler_log_probs=wrong), Rng(0))


def test_it_learns_over_five_seeds():
    gains = []
    for seed in range(1000, 1005):

        def reached(product, seed=seed):
            rng = Rng(seed).at("held-out").torch()
            drawn = product.generate(PROMPTS.prompts, n=16, rng=rng, max_new_tokens=8)
            return np.mean(good(drawn.prompts, drawn.texts))

        method = PPO(
            beta=0.0, learning_rate=1e-3, critic_learning_rate=1e-3, max_new_tokens=8, prompts_per_batch=32,
            minibatch_size=16,
        )  # fmt: skip
        fitted = method.fit(PROMPTS, model=TINY, purpose=good, steps=8, seed=seed, device="cpu")
        gains.append(reached(fitted) - reached(LanguagePolicy(load_model(TINY))))
    assert min(gains) > 0 and stats.ttest_1samp(gains, 0.0, alternative="greater").pvalue < 1e-3, gains


def test_options_out_of_range_are_errors():
    for bad in ({"beta": -0.1}, {"clip": 0.0}, {"epochs": 0}, {"discount": 1.1}, {"trace": -0.1}, {"kl_target": 0.0}):
        with pytest.raises(TelosError, match="out of range"):
            PPO(**bad)
