"""RLOO: its gradient by hand, what stops it, and that it learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from telos.core.errors import HealthError, TelosError
from telos.core.method import Spec
from telos.core.rng import Rng
from telos.data.records import Prompts
from telos.lm.log_probs import sequence_log_probs
from telos.lm.model import TINY, load_model
from telos.lm.products import LanguagePolicy
from telos.methods.language_rl.rloo import RLOO, RLOOLearner

PROMPTS = Prompts([f"topic{i}" for i in range(8)])


def good(prompts, completions):
    """The number of good words among the first eight."""
    return [sum(word.startswith("good") for word in text.split()[:8]) for text in completions]


def constant(prompts, completions):
    return [0.7] * len(completions)


def set_up(method, purpose=good, model=TINY, **given):
    spec = Spec(PROMPTS, {"model": model, "purpose": purpose, **given}, 1, torch.device("cpu"), Rng(1000))
    spec = method.prepare(spec)
    learner, source = method.learner(spec, Rng(1000)), method.source(spec)
    return learner, source.next(learner.behaviour, Rng(1000).at("batch")), spec


def perturbed():
    model = load_model(TINY)
    with torch.no_grad():
        for parameter in model.trainable():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=Rng(5).torch()))
    return model


@pytest.mark.parametrize("micro", [1, 5, 1000])
def test_gradient_by_hand_and_in_parts(micro):
    method = RLOO(
        beta=0.1,
        samples_per_prompt=3,
        prompts_per_batch=4,
        max_new_tokens=8,
        max_grad_norm=1e9,
    )
    learner, batch, spec = set_up(method, model=perturbed(), reference=TINY)
    log_probs = sequence_log_probs(learner.model, batch.sequences)
    with torch.no_grad():
        reference = sequence_log_probs(load_model(TINY), batch.sequences)
    returns = batch.rewards - 0.1 * (log_probs.detach() - reference)
    assert returns.std() > 0.1 and (log_probs.detach() - reference).abs().max() > 0.1
    loss = 0.0
    for i in range(12):
        others = [j for j in range(i // 3 * 3, i // 3 * 3 + 3) if j != i]
        loss = loss - (returns[i] - returns[others].mean()) * log_probs[i] / 12
    expected = torch.autograd.grad(loss, learner.parameters)
    seen = []
    learner.optimizer.register_step_pre_hook(lambda *_: seen.extend(p.grad.clone() for p in learner.parameters))
    metrics = learner.update(batch, Rng(0), micro)
    scale = max(g.abs().max() for g in expected)
    assert all(torch.allclose(a, b, atol=1e-4 * scale) for a, b in zip(seen, expected, strict=True))
    assert float(metrics["kl"]) == pytest.approx((log_probs.detach() - reference).mean().item(), abs=1e-4)
    assert float(metrics["loss"]) == pytest.approx(loss.item(), abs=1e-4)
    assert not any(p.requires_grad for p in spec.given["reference"].network.parameters())


def test_groups_stand_side_by_side_and_rewards_are_the_purposes():
    method = RLOO(samples_per_prompt=3, prompts_per_batch=4, max_new_tokens=8)
    learner, batch, _ = set_up(method)
    heads = batch.sequences.tokens[:, 1].view(4, 3)
    assert (heads == heads[:, :1]).all() and len(heads[:, 0].unique()) == 4
    assert batch.groups.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    texts = [
        learner.model.tokenizer.decode(row[cut:end], skip_special_tokens=True)
        for row, cut, end in zip(
            batch.sequences.tokens, batch.sequences.boundaries, batch.sequences.lengths, strict=True
        )
    ]
    assert batch.rewards.tolist() == good(None, texts)


def test_tampered_sampler_log_probs_stop_training():
    learner, batch, _ = set_up(RLOO(samples_per_prompt=2, prompts_per_batch=2, max_new_tokens=8))
    before = [p.clone() for p in learner.parameters]
    shifted = batch.sampler_log_probs.clone()
    shifted[0, int(batch.sequences.boundaries[0])] += 0.01
    with pytest.raises(HealthError, match="sampler and trainer disagree"):
        learner.update(replace(batch, sampler_log_probs=shifted), Rng(0))
    assert all(torch.equal(a, b) for a, b in zip(before, learner.parameters, strict=True))
    learner.update(batch, Rng(0))
    with pytest.raises(HealthError, match="disagree"):  # the policy has moved on since the batch was sampled
        for _ in range(20):
            learner.optimizer.param_groups[0]["peak"] = 1e-3
            learner.update(batch, Rng(0))


def test_a_constant_reward_without_kl_moves_nothing_and_is_reported():
    method = RLOO(beta=0.0, samples_per_prompt=2, prompts_per_batch=2, max_new_tokens=3)
    learner, batch, _ = set_up(method, purpose=constant)
    before = [p.clone() for p in learner.parameters]
    assert float(learner.update(batch, Rng(0))["grad_norm"]) == 0.0
    assert all(torch.equal(a, b) for a, b in zip(before, learner.parameters, strict=True))
    with pytest.raises(HealthError, match="gradient has been exactly zero"):
        method.fit(
            PROMPTS, model=TINY, purpose=constant, steps=60, device="cpu",
            evaluate=lambda step, product: {}, evaluate_every=1,
        )  # fmt: skip


def test_it_learns_over_six_seeds():
    gains = []
    policy = LanguagePolicy(load_model(TINY))
    for seed in range(1000, 1006):

        def evaluated(product, seed=seed):
            rng = Rng(seed).at("held-out").torch()
            drawn = product.generate(PROMPTS.prompts, n=16, rng=rng, max_new_tokens=8)
            return np.mean(good(drawn.prompts, drawn.texts))

        method = RLOO(beta=0.0, learning_rate=1e-3, max_new_tokens=8, prompts_per_batch=8)
        fitted = method.fit(PROMPTS, model=TINY, purpose=good, steps=15, seed=seed, device="cpu")
        gains.append(evaluated(fitted) - evaluated(policy))
    assert min(gains) > 0 and stats.ttest_1samp(gains, 0.0, alternative="greater").pvalue < 1e-3, gains


def test_options_out_of_range_are_errors():
    for bad in ({"samples_per_prompt": 1}, {"beta": -0.1}):
        with pytest.raises(TelosError, match="out of range"):
            RLOO(**bad)
    with pytest.raises(TelosError, match="'purpose' is missing"):
        RLOO().fit(PROMPTS, model=TINY, steps=1, device="cpu")
    with pytest.raises(TelosError, match="wrong number of scores"):
        RLOO(max_new_tokens=4).fit(PROMPTS, model=TINY, purpose=lambda p, c: [1.0], steps=1, device="cpu")


def test_learner_takes_nothing_from_the_purpose_but_numbers():
    """Shifting every reward of a prompt by a constant changes nothing, to rounding."""
    method = RLOO(samples_per_prompt=4, prompts_per_batch=2, max_new_tokens=6)
    learner, batch, _ = set_up(method)
    other = RLOOLearner(method, load_model(TINY))
    learner.update(batch, Rng(0))
    other.update(replace(batch, rewards=batch.rewards + 64.0 * batch.groups), Rng(0))
    for a, b in zip(learner.parameters, other.parameters, strict=True):
        assert torch.allclose(a, b, atol=2e-6)
