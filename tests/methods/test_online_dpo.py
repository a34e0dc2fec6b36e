"""Online DPO: its step by hand, ties, labels, and that it learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from telos.core.errors import TelosError
from telos.core.method import Spec
from telos.core.rng import Rng
from telos.data.records import Prompts
from telos.lm.log_probs import sequence_log_probs
from telos.lm.model import TINY, load_model
from telos.lm.products import LanguagePolicy
from telos.methods.preferences.online_dpo import OnlineDPO, by_bradley_terry, by_order

PROMPTS = Prompts([f"topic{i}" for i in range(8)])


def good(prompts, completions):
    """The number of good words among the first eight."""
    return [sum(word.startswith("good") for word in text.split()[:8]) for text in completions]


def set_up(method, **given):
    spec = Spec(PROMPTS, {"model": TINY, "purpose": good, **given}, 1, torch.device("cpu"), Rng(1000))
    spec = method.prepare(spec)
    learner, source = method.learner(spec, Rng(1000)), method.source(spec)
    return learner, source.next(learner.behaviour, Rng(1000).at("batch"))


@pytest.mark.parametrize("micro", [1, 3])
def test_the_step_by_hand(micro):
    model = load_model(TINY)
    with torch.no_grad():
        for parameter in model.trainable():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=Rng(5).torch()))
    method = OnlineDPO(beta=0.7, prompts_per_batch=5, max_new_tokens=6, max_grad_norm=1e9)
    learner, batch = set_up(method, model=model, reference=TINY)
    log_probs = sequence_log_probs(learner.model, batch.sequences)
    with torch.no_grad():
        reference = sequence_log_probs(load_model(TINY), batch.sequences)
    loss, ties = 0.0, 0
    for i in range(0, 10, 2):
        a, b = (i, i + 1) if batch.rewards[i] > batch.rewards[i + 1] else (i + 1, i)
        if batch.rewards[a] == batch.rewards[b]:
            ties += 1
            continue
        h = (log_probs[a] - reference[a]) - (log_probs[b] - reference[b])
        loss = loss - torch.nn.functional.logsigmoid(0.7 * h) / 5
    assert 0 < ties < 5
    expected = torch.autograd.grad(loss, learner.parameters)
    seen = []
    learner.optimizer.register_step_pre_hook(lambda *_: seen.extend(p.grad.clone() for p in learner.parameters))
    metrics = learner.update(batch, Rng(0), micro)
    scale = max(g.abs().max() for g in expected)
    assert all(torch.allclose(a, b, atol=1e-4 * scale) for a, b in zip(seen, expected, strict=True))
    assert float(metrics["loss"]) == pytest.approx(float(loss.detach()), abs=1e-5)
    assert float(metrics["ties"]) == pytest.approx(ties / 5)


def test_labels():
    rewards = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 1.0]])
    assert by_order(rewards, Rng(0)).tolist() == [1.0, -1.0, 0.0]
    drawn = by_bradley_terry(torch.tensor([[1.0, 0.0]]).expand(20_000, 2), Rng(0))
    assert set(drawn.tolist()) == {1.0, -1.0}
    assert float((drawn > 0).float().mean()) == pytest.approx(torch.tensor(1.0).sigmoid().item(), abs=0.015)


def test_an_offset_of_the_prompt_changes_nothing():
    method = OnlineDPO(prompts_per_batch=5, max_new_tokens=6, learning_rate=1e-3)
    learner, batch = set_up(method)
    other, _ = set_up(method)
    learner.update(batch, Rng(0))
    other.update(replace(batch, rewards=batch.rewards + 64.0 * batch.groups), Rng(0))
    assert all(torch.equal(a, b) for a, b in zip(learner.parameters, other.parameters, strict=True))


def test_it_learns_over_five_seeds():
    gains = []
    for seed in range(1000, 1005):

        def reached(product, seed=seed):
            rng = Rng(seed).at("held-out").torch()
            drawn = product.generate(PROMPTS.prompts, n=16, rng=rng, max_new_tokens=8)
            return np.mean(good(drawn.prompts, drawn.texts))

        method = OnlineDPO(learning_rate=1e-3, max_new_tokens=8, prompts_per_batch=16, minibatch_prompts=8)
        fitted = method.fit(PROMPTS, model=TINY, purpose=good, steps=10, seed=seed, device="cpu")
        gains.append(reached(fitted) - reached(LanguagePolicy(load_model(TINY))))
    assert min(gains) > 0 and stats.ttest_1samp(gains, 0.0, alternative="greater").pvalue < 1e-3, gains


def test_options_out_of_range_are_errors():
    for bad in ({"beta": 0.0}, {"label": "coin"}, {"epochs": 0}):
        with pytest.raises(TelosError, match="out of range"):
            OnlineDPO(**bad)
