"""Leave-one-out against loops, and the estimator's expectation by enumeration of every outcome."""

from itertools import product

import pytest
import torch

from telos.core.rng import Rng
from telos.ops.policy_gradients import clipped_surrogate, clipped_value_loss, gae, leave_one_out, reinforce, whiten


@pytest.mark.parametrize("n", [2, 3, 7])
def test_leave_one_out_is_the_loop_and_its_rows_sum_to_zero(n):
    rewards = torch.randn(4, n, generator=Rng(0).torch(), dtype=torch.float64)
    advantages = leave_one_out(rewards)
    for row in range(4):
        for i in range(n):
            others = [rewards[row, j].item() for j in range(n) if j != i]
            assert advantages[row, i].item() == pytest.approx(rewards[row, i].item() - sum(others) / (n - 1), abs=1e-12)
    assert advantages.sum(-1).abs().max() < 1e-12


def test_two_samples_get_their_difference_and_a_shift_of_the_prompt_nothing():
    rewards = torch.tensor([[3.0, 1.0], [0.0, 5.0]])
    assert leave_one_out(rewards).tolist() == [[2.0, -2.0], [-5.0, 5.0]]
    assert torch.allclose(leave_one_out(rewards + torch.tensor([[100.0], [-7.0]])), leave_one_out(rewards))


@pytest.mark.parametrize("n", [2, 3])
def test_the_expected_gradient_over_all_outcomes_is_the_true_one(n):
    logits = torch.tensor([0.3, -0.8, 1.1], dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([1.0, 4.0, -2.0], dtype=torch.float64)
    (truth,) = torch.autograd.grad((logits.softmax(-1) * rewards).sum(), logits)
    expected = torch.zeros(3, dtype=torch.float64)
    for outcome in product(range(3), repeat=n):
        log_probs = logits.log_softmax(-1)[list(outcome)]
        total, count = reinforce(log_probs, leave_one_out(rewards[list(outcome)][None])[0])
        (gradient,) = torch.autograd.grad(total / count, logits)
        expected -= log_probs.sum().exp().detach() * gradient  # the loss is minus the objective
    assert torch.allclose(expected, truth, atol=1e-12)


def test_kl_inside_the_reward_has_the_gradient_of_the_kl():
    """E[(log pi - log ref) grad log pi] = grad KL(pi || ref): the reward's own gradient has expectation zero."""
    logits = torch.tensor([0.3, -0.8, 1.1], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    log_probs = logits.log_softmax(-1)
    (truth,) = torch.autograd.grad((log_probs.exp() * (log_probs - reference)).sum(), logits, retain_graph=True)
    expected = torch.zeros(3, dtype=torch.float64)
    for outcome in product(range(3), repeat=2):
        index = list(outcome)
        kl = (log_probs - reference).detach()[index]
        total, count = reinforce(log_probs[index], leave_one_out(-kl[None])[0])
        (gradient,) = torch.autograd.grad(total / count, logits, retain_graph=True)
        expected += log_probs[index].sum().exp().detach() * gradient
    assert torch.allclose(expected, truth, atol=1e-12)


def test_reinforce_sums_and_advantages_carry_no_gradient():
    log_probs = torch.tensor([-1.0, -2.0], requires_grad=True)
    advantages = torch.tensor([0.5, -1.5], requires_grad=True)
    total, count = reinforce(log_probs, advantages)
    assert (total.item(), count) == (0.5 - 3.0, 2)
    total.backward()
    assert log_probs.grad.tolist() == [-0.5, 1.5]
    assert advantages.grad is None


def by_loops(rewards, values, start, end, discount, trace):
    """Advantages of one row whose actions are start .. end - 1, from the definition's double sum."""
    found = torch.zeros_like(rewards)
    for t in range(start, end):
        for k in range(t, end):
            following = values[k + 1] if k + 1 < end else 0.0
            found[t] += (discount * trace) ** (k - t) * (rewards[k] + discount * following - values[k])
    return found


@pytest.mark.parametrize(("discount", "trace"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.7, 0.0)])
def test_gae_is_the_double_sum_on_ragged_rows(discount, trace):
    rewards, values = torch.randn(2, 3, 7, generator=Rng(3).torch(), dtype=torch.float64)
    spans = [(2, 6), (1, 7), (4, 5)]
    mask = torch.zeros(3, 7, dtype=torch.bool)
    for row, (start, end) in enumerate(spans):
        mask[row, start:end] = True
    advantages, returns = gae(rewards, values, mask, discount, trace)
    for row, (start, end) in enumerate(spans):
        expected = by_loops(rewards[row], values[row], start, end, discount, trace)
        assert torch.allclose(advantages[row], expected, atol=1e-12)
        assert torch.allclose(returns[row], (expected + values[row]) * mask[row], atol=1e-12)


def test_gae_limits():
    rewards = torch.tensor([[0.0, 1.0, 2.0, 4.0]])
    values = torch.tensor([[9.0, 0.5, 0.25, 3.0]])
    mask = torch.tensor([[False, True, True, True]])
    to_go, returns = gae(rewards, values, mask, 1.0, 1.0)
    assert to_go.tolist() == [[0.0, 7.0 - 0.5, 6.0 - 0.25, 4.0 - 3.0]] and returns.tolist() == [[0.0, 7.0, 6.0, 4.0]]
    one_step, _ = gae(rewards, values, mask, 1.0, 0.0)
    assert one_step.tolist() == [[0.0, 1.0 + 0.25 - 0.5, 2.0 + 3.0 - 0.25, 4.0 - 3.0]]


def test_clipped_surrogate_by_hand():
    ratio = torch.tensor([[1.3, 0.7, 1.3, 0.7, 1.0]], dtype=torch.float64).log().requires_grad_()
    advantages = torch.tensor([[2.0, 2.0, -2.0, -2.0, 5.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, True, False]])
    total, count = clipped_surrogate(ratio, advantages, mask, 0.2)
    assert float(total) == pytest.approx(-(1.2 * 2 + 0.7 * 2 - 1.3 * 2 - 0.8 * 2)) and int(count) == 4
    (gradient,) = torch.autograd.grad(total, ratio)
    # Credited enough (1.3 up, 0.7 down): nothing; the wrong way: -rho A.
    assert gradient[0].tolist() == pytest.approx([0.0, -0.7 * 2, 1.3 * 2, 0.0, 0.0])


def test_at_ratio_one_the_surrogate_has_the_score_function_gradient():
    log_probs = torch.randn(2, 3, generator=Rng(1).torch(), dtype=torch.float64, requires_grad=True)
    advantages = torch.randn(2, 3, generator=Rng(2).torch(), dtype=torch.float64)
    mask = torch.ones(2, 3, dtype=torch.bool)
    total, _ = clipped_surrogate(log_probs - log_probs.detach(), advantages, mask, 0.2)
    (gradient,) = torch.autograd.grad(total, log_probs)
    assert torch.allclose(gradient, -advantages, atol=1e-12)


def test_clipped_value_loss_by_hand():
    values = torch.tensor([[1.0, 1.0, 0.1, 7.0]], dtype=torch.float64, requires_grad=True)
    old, returns = torch.zeros(1, 4, dtype=torch.float64), torch.tensor([[2.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False]])
    total, count = clipped_value_loss(values, old, returns, mask, 0.2)
    # near = 0.2, 0.2, 0.1: errors (1 or 1.8)^2, (0 or 0.8)^2, 0.9^2.
    assert float(total) == pytest.approx(0.5 * (1.8**2 + 0.8**2 + 0.9**2)) and int(count) == 3
    (gradient,) = torch.autograd.grad(total, values)
    assert gradient[0].tolist() == pytest.approx([0.0, 0.0, -0.9, 0.0])
    plain, _ = clipped_value_loss(values, old, returns, mask, float("inf"))
    assert float(plain) == pytest.approx(0.5 * (1.0 + 0.0 + 0.81))


def test_whiten_over_the_mask_only():
    values = torch.tensor([[1.0, 3.0, 100.0], [5.0, 7.0, -9.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, True, False]])
    white = whiten(values, mask)
    assert white[~mask].tolist() == [0.0, 0.0]
    assert float(white[mask].mean()) == pytest.approx(0.0, abs=1e-12)
    assert float(white[mask].square().mean()) == pytest.approx(1.0, abs=1e-6)
    assert torch.allclose(whiten(3 * values + 2, mask), white, atol=1e-6)
