"""Policy gradients on whole completions: baselines and advantages."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def leave_one_out(rewards: Float[Tensor, "g n"]) -> Float[Tensor, "g n"]:
    """Reward minus the mean of the *other* samples of the same prompt (Ahmadian et al. 2024, arXiv 2402.14740).

    Unbiased, since a sample's baseline does not contain the sample; rows sum to 0; n >= 2.
    """
    n = rewards.shape[-1]
    return (rewards - rewards.mean(-1, keepdim=True)) * (n / (n - 1))


def reinforce(log_probs: Float[Tensor, "b"], advantages: Float[Tensor, "b"]) -> tuple[Float[Tensor, ""], int]:
    """-advantage * log pi(y|x) summed, and the count; advantages carry no gradient."""
    return -(advantages.detach() * log_probs).sum(), len(log_probs)
