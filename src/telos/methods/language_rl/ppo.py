r"""PPO for language models: token-level policy gradient with a critic, ratio clipping and a KL to a reference.

Schulman et al. 2017, arXiv 1707.06347; as RLHF uses it: Ziegler et al. 2019 (arXiv 1909.08593), Ouyang et al. 2022.
One step of training is one round: B completions of the current policy pi_old are scored, then several epochs of
minibatches are taken from them.

    r_t   = -beta (log pi_old(y_t) - log pi_ref(y_t)) + [t = T] r(x, y)
    A_t   = sum_l (gamma lambda)^l (r_{t+l} + gamma V_{t+l+1} - V_{t+l}),   G_t = A_t + V_t
    L_pi  = -mean_t min(rho_t A_t, clip(rho_t, 1 - eps, 1 + eps) A_t),      rho_t = pi(y_t) / pi_old(y_t)
    L_V   = 1/2 mean_t max((V - G)^2, (V_old + clip(V - V_old, +-eps_v) - G)^2)

Means are over the tokens of a minibatch; A is whitened over the round. The critic is a network of its own. Other
methods hold PPO as a field and change a round through `telos.lm.hooks.RoundHooks` (given as `hooks`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from telos.core.errors import TelosError
from telos.core.method import Learner, Method, Metrics, Spec, split
from telos.core.rng import Rng
from telos.data.records import Prompts, Record
from telos.lm.hooks import RoundHooks
from telos.lm.model import LanguageModel
from telos.lm.products import LanguagePolicy
from telos.lm.rollouts import Rollouts, RolloutSource, first_ratio
from telos.lm.setup import OPTIMIZERS, policy_and_reference, step_optimizer
from telos.lm.values import critic_network, token_values
from telos.ops.policy_gradients import clipped_surrogate, clipped_value_loss, gae, masked_moments

BASELINE = {
    "method": "PPO",
    "title": "Proximal Policy Optimization Algorithms; as in Fine-Tuning Language Models from Human Preferences",
    "reference": "arXiv 1707.06347, 1909.08593",
    "year": 2017,
    "purpose": ["reward"],
    "product": "Generator",
    "data": "prompts + purpose",
    "summary": "Token-level policy gradient with a critic and clipped ratios.",
    "equations": [
        r"r_t=-\beta\log\frac{\pi_{\mathrm{old}}(y_t\mid x,y_{<t})}{\pi_{\mathrm{ref}}(y_t\mid x,y_{<t})}"
        r"+\mathbb 1[t=T]\,r(x,y),\quad y\sim\pi_{\mathrm{old}}(\cdot\mid x)",
        r"\delta_t=r_t+\gamma V_{\mathrm{old},t+1}-V_{\mathrm{old},t},\quad "
        r"A_t=\sum_{l\ge 0}(\gamma\lambda)^l\,\delta_{t+l},\quad G_t=A_t+V_{\mathrm{old},t}",
        r"\rho_t=\frac{\pi_\theta(y_t\mid x,y_{<t})}{\pi_{\mathrm{old}}(y_t\mid x,y_{<t})},\quad"
        r"\tilde A_t=\frac{A_t-\operatorname{mean}(A)}{\operatorname{std}(A)}",
        r"\mathcal L_\pi=-\mathbb E_t\left[\min\left(\rho_t\tilde A_t,\ "
        r"\operatorname{clip}(\rho_t,1-\epsilon,1+\epsilon)\,\tilde A_t\right)\right]",
        r"\mathcal L_V=\frac{1}{2}\mathbb E_t\left[\max\left((V_t-G_t)^2,\ "
        r"(V_{\mathrm{old},t}+\operatorname{clip}(V_t-V_{\mathrm{old},t},-\epsilon_V,\epsilon_V)-G_t)^2\right)\right]",
    ],
    "deviations": ["The critic is a network of its own that starts from the policy's body (or a reward model)."],
}


@dataclass(frozen=True)
class PPO(Method):
    """PPO; `steps` counts rounds. Samples are drawn at temperature 1 from the policy that the loss is about.

    Given: model, purpose, reference (default: the model as it was), critic (a reward model to start the critic from;
    default: the policy's body with values 0), hooks (a `RoundHooks`, for methods that hold PPO).
    """

    data: ClassVar[type] = Prompts
    takes: ClassVar[tuple[str, ...]] = ("model", "purpose", "reference", "critic", "lora", "hooks")

    beta: float = 0.05
    """KL coefficient of a token, >= 0: larger stays closer to the reference. Ouyang et al.: 0.02."""
    kl_target: float | None = None
    """Adapts beta so that a completion's KL comes near this many nats; None keeps it. Ziegler et al.: 6 to 10."""
    clip: float = 0.2
    """Epsilon of the ratio, > 0: smaller steps less far in a round. Papers: 0.2."""
    value_clip: float = 0.2
    """Furthest that the critic's loss credits a value to move in a round; inf for the plain squared error."""
    discount: float = 1.0
    """Gamma in [0, 1]. Papers: 1."""
    trace: float = 0.95
    """Lambda of GAE in [0, 1]: 1 has no bias from the critic, 0 the least variance. Papers: 0.95."""
    prompts_per_batch: int = 64
    """Prompts a round. Papers: 512; 64 suits the bundled models."""
    samples_per_prompt: int = 1
    """Completions of each prompt."""
    epochs: int = 2
    """Passes over a round, >= 1. Papers: 4."""
    minibatch_size: int = 32
    """Completions in an optimisation step."""
    learning_rate: float = 1e-5
    """AdamW step size of the policy. Papers: 1e-5 to 1e-6; 3e-4 suits the bundled models."""
    critic_learning_rate: float = 1e-5
    """AdamW step size of the critic. Papers: 9e-6; 1e-3 suits the bundled models."""
    critic_warmup: int = 0
    """First rounds in which only the critic learns."""
    warmup_steps: int = 0
    """Linear warm-up, in optimisation steps of the policy."""
    max_grad_norm: float = 1.0
    """Clip of each network's gradient norm."""
    max_new_tokens: int = 64
    """Longest completion."""

    def __post_init__(self) -> None:
        sizes = (self.prompts_per_batch, self.samples_per_prompt, self.epochs, self.minibatch_size)
        if self.beta < 0 or min(self.clip, self.value_clip) <= 0 or min(sizes) < 1:
            raise TelosError(
                "an option of PPO is out of range",
                expected="beta >= 0; clip, value_clip > 0; counts >= 1",
                got=f"beta={self.beta}, clip={self.clip}, value_clip={self.value_clip}, counts={sizes}",
            )
        fractions = 0 <= self.discount <= 1 and 0 <= self.trace <= 1
        if not fractions or (self.kl_target is not None and self.kl_target <= 0):
            raise TelosError(
                "discount, trace or kl_target is out of range",
                expected="discount and trace in [0, 1], kl_target > 0 or None",
                got=f"{self.discount}, {self.trace}, {self.kl_target}",
            )

    def prepare(self, spec: Spec) -> Spec:
        spec.need("purpose", "a reward model, or a function of (prompts, completions)")
        return policy_and_reference(spec)

    def learner(self, spec: Spec, rng: Rng) -> PPOLearner:
        model = spec.given["model"]
        return PPOLearner(self, model, critic_network(spec, model), spec.given.get("hooks") or RoundHooks())

    def source(self, spec: Spec) -> RolloutSource:
        return RolloutSource.of(
            spec,
            prompts_per_batch=self.prompts_per_batch,
            n=self.samples_per_prompt,
            max_new_tokens=self.max_new_tokens,
        )


@dataclass(frozen=True)
class Round(Record):
    """Rollouts with what is computed once: (B, T) rollout-time values, advantages and returns."""

    rollouts: Rollouts
    values: Tensor
    advantages: Tensor
    returns: Tensor


class PPOLearner(Learner):
    """Policy and critic with an optimiser each."""

    constant: ClassVar[tuple[str, ...]] = ("model",)

    def __init__(self, method: PPO, model: LanguageModel, critic: nn.Module, hooks: RoundHooks):
        self.method, self.model, self.critic, self.hooks = method, model, critic, hooks.to(model.device)
        self.network, self.parameters = model.network, model.trainable()
        self.optimizer = OPTIMIZERS["adamw"](self.parameters, method.learning_rate)
        self.critic_parameters = list(critic.parameters())
        self.critic_optimizer = OPTIMIZERS["adamw"](self.critic_parameters, method.critic_learning_rate)
        self.beta = float(method.beta)
        self.updates = self.rounds = 0

    def update(self, batch: Rollouts, rng: Rng, micro: int = 1) -> Metrics:
        m = self.method
        batch = self.hooks.collected(batch, rng.at("collected"))
        round = self.prepare(batch)
        trace: list[Metrics] = []
        for epoch in range(m.epochs):
            order = torch.randperm(len(batch), generator=rng.at("epoch", epoch).torch())
            for number, index in enumerate(order.to(batch.rewards.device).split(m.minibatch_size)):
                first = epoch == 0 and number == 0
                trace.append(self.step(round[index], rng.at("step", epoch, number), micro, first))
        self.rounds += 1
        kl = (batch.log_ratios * batch.policy_mask).sum(-1).mean()
        beta = self.beta
        if m.kl_target is not None:
            self.beta *= float(1 + 0.1 * (kl / m.kl_target - 1).clamp(-0.2, 0.2))
        _, left = masked_moments(round.returns - round.values, batch.value_mask)
        _, spread = masked_moments(round.returns, batch.value_mask)
        lengths = (batch.sequences.lengths - batch.sequences.boundaries).float()
        means = {name: torch.stack([torch.as_tensor(step[name]) for step in trace]).mean() for name in trace[0]}
        return {
            "reward": batch.rewards.mean(),
            "kl": kl,
            "beta": beta,
            **means,
            "explained_variance": 1 - left / spread.clamp(min=1e-8),
            "length": lengths.mean(),
        }

    @torch.no_grad()
    def prepare(self, batch: Rollouts) -> Round:
        """Token rewards, rollout-time values, advantages and returns of a round."""
        m, sequences = self.method, batch.sequences
        parts = [sequences[i : i + m.minibatch_size] for i in range(0, len(batch), m.minibatch_size)]
        values = torch.cat([token_values(self.critic, part) for part in parts])
        rewards = self.hooks.token_rewards(batch) - self.beta * batch.log_ratios * batch.policy_mask
        rewards = rewards + batch.last * self.hooks.sequence_rewards(batch)[:, None]
        advantages, returns = gae(rewards, values, sequences.mask, m.discount, m.trace)
        return Round(batch, values, self.hooks.advantages(advantages, batch.policy_mask), returns)

    def step(self, minibatch: Round, rng: Rng, micro: int, first: bool) -> Metrics:
        """One optimisation step of both networks."""
        m = self.method
        count = minibatch.rollouts.policy_mask.sum().clamp(min=1)
        value_count = minibatch.rollouts.value_mask.sum().clamp(min=1)
        policy_loss = value_loss = clipped = torch.zeros((), device=count.device)
        for part in split(minibatch, micro):
            batch = part.rollouts
            log_probs = self.hooks.log_probs(self.model, batch)
            if first:
                first_ratio(log_probs, batch.sampler_log_probs, batch.policy_mask)
            log_ratio = (log_probs - batch.sampler_log_probs) * batch.policy_mask
            total, _ = clipped_surrogate(log_ratio, part.advantages, batch.policy_mask, m.clip)
            (total / count).backward()
            values = token_values(self.critic, batch.sequences)
            value_total, _ = clipped_value_loss(values, part.values, part.returns, batch.value_mask, m.value_clip)
            (value_total / value_count).backward()
            policy_loss = policy_loss + total.detach() / count
            value_loss = value_loss + value_total.detach() / value_count
            outside = (log_ratio.detach().exp() - 1).abs() > m.clip
            clipped = clipped + outside.sum() / count
        further = self.hooks.regulariser(self.model, rng)
        if further.requires_grad:
            further.backward()
        nn.utils.clip_grad_norm_(self.critic_parameters, m.max_grad_norm)
        self.critic_optimizer.step()
        self.critic_optimizer.zero_grad(set_to_none=True)
        norm = torch.zeros(())
        if self.rounds < m.critic_warmup:
            self.optimizer.zero_grad(set_to_none=True)
        else:
            norm = step_optimizer(self, m.warmup_steps, m.max_grad_norm)
        return {
            "loss": policy_loss + further.detach(),
            "value_loss": value_loss,
            "clipped": clipped,
            "grad_norm": norm,
        }

    def product(self) -> LanguagePolicy:
        return LanguagePolicy(self.model)
