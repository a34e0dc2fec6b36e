"""Leave-one-out against loops, and the estimator's expectation by enumeration of every outcome."""

from itertools import product

import pytest
import torch

from telos.core.rng import Rng
from telos.ops.policy_gradients import leave_one_out, reinforce


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
