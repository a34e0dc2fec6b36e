"""What a method that holds PPO may change in a round of it, without a loop of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from telos.core.rng import Rng
from telos.lm.log_probs import token_log_probs
from telos.lm.model import LanguageModel
from telos.ops.policy_gradients import whiten

if TYPE_CHECKING:
    from telos.lm.rollouts import Rollouts


class RoundHooks(nn.Module):
    """Six places of a round, each the plain PPO's here; a method overrides what its paper changes.

    In the order in which they are called: `collected`, `sequence_rewards`, `token_rewards`, `advantages` once a round;
    `log_probs` and `regulariser` at every optimisation step. What must survive a kill is a buffer or a parameter.
    Pass them with `spec.replace(given={**spec.given, "hooks": MyHooks()})` to the PPO that the method holds; a method
    that samples otherwise gives its own Source.
    """

    def collected(self, batch: Rollouts, rng: Rng) -> Rollouts:
        """What enters the round, of what was sampled: selection, resampling; also the place to refresh a mask."""
        return batch

    def sequence_rewards(self, batch: Rollouts) -> Tensor:
        """(B,) the rewards of whole completions: normalised, clipped, shaped."""
        return batch.rewards

    def token_rewards(self, batch: Rollouts) -> Tensor:
        """(B, T) rewards added to single tokens, besides the KL's and the last token's."""
        return batch.token_rewards

    def advantages(self, advantages: Tensor, mask: Tensor) -> Tensor:
        """(B, T) advantages as the policy's loss takes them."""
        return whiten(advantages, mask)

    def log_probs(self, model: LanguageModel, batch: Rollouts) -> Tensor:
        """(B, T) log-probs, with gradient, of the sampled tokens under what the sampler samples from."""
        return token_log_probs(model, batch.sequences)

    def regulariser(self, model: LanguageModel, rng: Rng) -> Tensor:
        """() a further loss of the policy, a mean of its own: pre-training text, targets, entropy."""
        return torch.zeros((), device=model.device)
