"""P3O: the dossier's checks of the two clipped losses, the exact invariance to offsets, and that it learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from telos.core.errors import HealthError, TelosError
from telos.core.method import Spec
from telos.core.rng import Rng
from telos.data.records import Prompts
from telos.lm.log_probs import sequence_log_probs
from telos.lm.model import TINY, load_model
from telos.lm.products import LanguagePolicy
from telos.methods.language_rl.p3o import LOSSES, P3O, P3OLearner, differences, joint_clipping, separate_clipping
from telos.ops.policy_gradients import leave_one_out, reinforce

PROMPTS = Prompts([f"topic{i}" for i in range(8)])
NONE = float("inf")
CLIPPED = [separate_clipping, joint_clipping]


def good(prompts, completions):
    """The number of good words among the first eight."""
    return [sum(word.startswith("good") for word in text.split()[:8]) for text in completions]


def leaves(*values):
    return [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values]


def gradients(loss, log_rho_1, log_rho_2, delta, clip=0.2, bound=NONE):
    first, second = leaves(log_rho_1, log_rho_2)
    total, count = loss(first, second, torch.tensor(delta, dtype=torch.float64), clip, bound)
    assert count == len(delta)
    return torch.autograd.grad(total, (first, second))


def set_up(method, purpose=good, **given):
    spec = Spec(PROMPTS, {"model": TINY, "purpose": purpose, **given}, 1, torch.device("cpu"), Rng(1000))
    spec = method.prepare(spec)
    learner, source = method.learner(spec, Rng(1000)), method.source(spec)
    return learner, source.next(learner.behaviour, Rng(1000).at("batch"))


@pytest.mark.parametrize("loss", LOSSES.values())
def test_at_ratio_one_the_gradient_is_that_of_rloo_with_two_samples(loss):
    rewards = torch.tensor([[3.0, 1.0], [0.0, 5.0], [2.0, 2.0]], dtype=torch.float64)
    log_probs = torch.tensor([[-4.0, -6.0], [-3.0, -2.0], [-1.0, -1.5]], dtype=torch.float64, requires_grad=True)
    log_rho = log_probs - log_probs.detach()
    total, count = loss(log_rho[:, 0], log_rho[:, 1], rewards[:, 0] - rewards[:, 1], 0.2, NONE)
    (pairwise,) = torch.autograd.grad(total / count, log_probs)
    total, count = reinforce(log_probs.flatten(), leave_one_out(rewards).flatten())
    (rloo,) = torch.autograd.grad(total / count, log_probs)
    assert torch.allclose(pairwise, rloo, atol=1e-12)
    assert pairwise[0].tolist() == pytest.approx([-1 / 3, 1 / 3])  # -1/2 Delta / 3 pairs, Delta = 2
    assert pairwise[2].tolist() == [0.0, 0.0]  # equal rewards: no pull


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(*[st.floats(-1.5, 1.5)] * 3), min_size=1, max_size=5), st.sampled_from([*LOSSES]))
def test_swapping_the_two_completions_changes_nothing(rows, name):
    first, second, delta = (list(column) for column in zip(*rows, strict=True))
    a = gradients(LOSSES[name], first, second, delta)
    b = gradients(LOSSES[name], second, first, [-d for d in delta])
    assert torch.allclose(a[0], b[1], atol=1e-12) and torch.allclose(a[1], b[0], atol=1e-12)
    there = LOSSES[name](*leaves(first, second, delta), 0.2, NONE)[0]
    back = LOSSES[name](*leaves(second, first, [-d for d in delta]), 0.2, NONE)[0]
    assert float(there) == pytest.approx(float(back), abs=1e-12)


def test_joint_clipping_stops_where_the_pair_has_moved_far_enough_the_right_way():
    # log rho_1 - log rho_2 = 0.3 > 0.2 in favour of the better one: exactly nothing; the wrong way: pull back.
    for first, second, delta in ((0.2, -0.1, 1.5), (-0.1, 0.2, -1.5), (0.21, 0.0, 1.0)):
        right = gradients(joint_clipping, [first], [second], [delta])
        assert [float(g) for g in right] == [0.0, 0.0]
        wrong = gradients(joint_clipping, [second], [first], [delta])
        weight = delta * np.exp(first + second)
        assert float(wrong[0]) == pytest.approx(-0.5 * weight) and float(wrong[1]) == pytest.approx(0.5 * weight)
    inside = gradients(joint_clipping, [0.1], [0.0], [2.0])
    assert float(inside[0]) == pytest.approx(-0.5 * 2.0 * np.exp(0.1))
    value = joint_clipping(*leaves([0.1, 0.5], [0.0, 0.0], [2.0, 2.0]), 0.2, NONE)[0]
    assert float(value) == pytest.approx(-0.5 * (2 * np.exp(0.1) * 0.1 + 2 * np.exp(0.5) * 0.2))


def test_separate_clipping_stops_each_ratio_by_itself():
    better, worse = gradients(separate_clipping, [0.3], [0.0], [2.0])
    assert float(better) == 0.0  # 1.35 > 1.2: credited enough
    assert float(worse) == pytest.approx(0.5 * 2.0 * np.exp(0.3))  # -1/2 w_2 rho_2, w_2 = -Delta rho_1
    better, worse = gradients(separate_clipping, [0.0], [-0.3], [2.0])
    assert float(worse) == 0.0 and float(better) == pytest.approx(-0.5 * 2.0 * np.exp(-0.3))
    wrong, _ = gradients(separate_clipping, [-0.5], [0.0], [2.0])
    assert float(wrong) == pytest.approx(-0.5 * 2.0 * np.exp(-0.5))  # far out, but on the wrong side
    value = separate_clipping(*leaves([0.3], [0.0], [2.0]), 0.2, NONE)[0]
    assert float(value) == pytest.approx(-0.5 * (2.0 * 1.2 - 2.0 * np.exp(0.3)))


@pytest.mark.parametrize("loss", CLIPPED)
def test_bounded_weights(loss):
    free, held = (gradients(loss, [0.0], [0.5], [1.0], bound=bound)[0] for bound in (NONE, 0.2))
    assert float(free) == pytest.approx(-0.5 * np.exp(0.5)) and float(held) == pytest.approx(-0.5 * 1.2)


def test_the_two_sample_gradient_is_the_policy_gradient_by_enumeration():
    logits = torch.tensor([0.3, -0.8, 1.1, 0.0], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)
    rewards = torch.tensor([1.0, 4.0, -2.0, 0.5], dtype=torch.float64)
    (truth,) = torch.autograd.grad((logits.softmax(-1) * rewards).sum(), logits)
    for loss in CLIPPED:
        expected = torch.zeros(4, dtype=torch.float64)
        for i in range(4):
            for j in range(4):
                log_rho = logits.log_softmax(-1)[[i, j]] - old.log()[[i, j]]
                delta = (rewards[i] - rewards[j]).view(1)
                # Wide clips: what is left is the identity with both importance ratios.
                total, _ = loss(log_rho[:1], log_rho[1:], delta, 1e6, NONE)
                (gradient,) = torch.autograd.grad(total, logits)
                expected -= old[i] * old[j] * gradient
        assert torch.allclose(expected, truth, atol=1e-12), loss.__name__


def test_differences_by_hand_and_their_invariance():
    rewards = torch.tensor([[1.0, 3.0, 0.0]], dtype=torch.float64)
    kl = torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64)
    delta, first, second = differences(rewards, kl, 0.5)
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 2)]
    assert delta.tolist() == [[-2.0 - 0.5, 1.0 - 1.0, 3.0 - 0.5]]
    shifted, _, _ = differences(rewards + 1e4, kl, 0.5)
    assert torch.equal(shifted, delta)


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("clipping", [*LOSSES])
def test_an_offset_of_the_prompt_leaves_the_parameters_bit_for_bit(clipping, scale):
    method = P3O(
        clipping=clipping, scale=scale, samples_per_prompt=3, prompts_per_batch=4, minibatch_prompts=2,
        max_new_tokens=6, learning_rate=1e-3, epochs=3,
    )  # fmt: skip
    learner, batch = set_up(method)
    other = P3OLearner(method, load_model(TINY))
    first, second = (
        learner.update(batch, Rng(0)),
        other.update(replace(batch, rewards=batch.rewards + 4096.0 * (1 + batch.groups)), Rng(0)),
    )
    assert float(first["steps"]) >= 2
    assert float(first["loss"]) == float(second["loss"])
    assert all(torch.equal(a, b) for a, b in zip(learner.parameters, other.parameters, strict=True))
    assert learner.pairs == (12 if scale else 0)


def test_the_first_step_by_hand_with_all_pairs_and_the_kl():
    method = P3O(beta=0.5, samples_per_prompt=3, prompts_per_batch=4, epochs=1, max_new_tokens=6, max_grad_norm=1e9)
    model = load_model(TINY)
    with torch.no_grad():
        for parameter in model.trainable():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=Rng(5).torch()))
    learner, batch = set_up(method, model=model, reference=TINY)
    log_probs = sequence_log_probs(learner.model, batch.sequences)
    with torch.no_grad():
        kl = log_probs - sequence_log_probs(load_model(TINY), batch.sequences)
    returns = batch.rewards - 0.5 * kl.detach()
    assert kl.abs().max() > 0.1
    loss = 0.0
    for prompt in range(4):
        for i, j in ((0, 1), (0, 2), (1, 2)):
            a, b = 3 * prompt + i, 3 * prompt + j
            loss = loss - 0.5 * (returns[a] - returns[b]) * (log_probs[a] - log_probs[b]) / 12
    expected = torch.autograd.grad(loss, learner.parameters)
    for micro in (1, 3):
        seen = []
        hook = learner.optimizer.register_step_pre_hook(
            lambda *_, seen=seen: seen.extend(p.grad.clone() for p in learner.parameters)
        )
        learner.optimizer.param_groups[0]["peak"] = 0.0  # the parameters stay where they are
        metrics = learner.update(batch, Rng(0), micro)
        hook.remove()
        scale = max(g.abs().max() for g in expected)
        assert all(torch.allclose(a, b, atol=1e-4 * scale) for a, b in zip(seen, expected, strict=True))
    assert float(metrics["kl"]) == pytest.approx(float(kl.mean()), abs=1e-4)


def test_a_round_ends_where_ratios_run_away_and_always_takes_its_first_step():
    options = {"prompts_per_batch": 4, "minibatch_prompts": 2, "max_new_tokens": 6, "learning_rate": 1e-2, "epochs": 4}
    learner, batch = set_up(P3O(stop_log_ratio=0.1, **options))
    metrics = learner.update(batch, Rng(0))
    assert 1 <= float(metrics["steps"]) < 8 and float(metrics["log_ratio"]) > 0.1
    learner, batch = set_up(P3O(stop_log_ratio=NONE, **options))
    assert float(learner.update(batch, Rng(0))["steps"]) == 8


def test_tampered_sampler_log_probs_stop_training():
    learner, batch = set_up(P3O(prompts_per_batch=2, max_new_tokens=6))
    wrong = batch.sampler_log_probs.clone()
    wrong[0, int(batch.sequences.boundaries[0])] += 0.01
    with pytest.raises(HealthError, match="sampler and trainer disagree"):
        learner.update(replace(batch, sampler_log_probs=wrong), Rng(0))


@pytest.mark.parametrize("clipping", ["joint", "separate"])
def test_it_learns_over_five_seeds(clipping):
    gains = []
    for seed in range(1000, 1005):

        def reached(product, seed=seed):
            rng = Rng(seed).at("held-out").torch()
            drawn = product.generate(PROMPTS.prompts, n=16, rng=rng, max_new_tokens=8)
            return np.mean(good(drawn.prompts, drawn.texts))

        method = P3O(
            clipping=clipping, beta=0.0, learning_rate=1e-3, max_new_tokens=8, prompts_per_batch=16,
            minibatch_prompts=8,
        )  # fmt: skip
        fitted = method.fit(PROMPTS, model=TINY, purpose=good, steps=8, seed=seed, device="cpu")
        gains.append(reached(fitted) - reached(LanguagePolicy(load_model(TINY))))
    assert min(gains) > 0 and stats.ttest_1samp(gains, 0.0, alternative="greater").pvalue < 1e-3, gains


def test_options_out_of_range_are_errors():
    for bad in (
        {"samples_per_prompt": 1}, {"beta": -0.1}, {"clip": 0.0}, {"epochs": 0}, {"minibatch_prompts": 0},
        {"stop_log_ratio": 0.0},
    ):  # fmt: skip
        with pytest.raises(TelosError, match="out of range"):
            P3O(**bad)
    with pytest.raises(TelosError, match="clipping 'v3' is unknown"):
        P3O(clipping="v3")
    with pytest.raises(TelosError, match="'purpose' is missing"):
        P3O().fit(PROMPTS, model=TINY, steps=1, device="cpu")
