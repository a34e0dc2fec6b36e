"""TSCAC with deterministic actors, as the released code runs it.

Actors mu(s) with critics Q_i(s, a), fitted to r_i + gamma_i Q_i'(s', mu'(s')), minimise in stage 2

    c_1 E[rho -Q_1(s, mu(s))] + c_2 (mu(s) - a)^2 + c_3 sum_i lambda_i / Lambda (mu(s) - mu_i(s))^2       (4)

with rho the auxiliary actors' Gaussian density at mu(s), or at a over that of mu(s), at most 1 and held constant; in
stage 1 rho = 1 and the last term is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from telos.core.method import Metrics, split
from telos.core.rng import Rng
from telos.data.records import Transitions
from telos.methods.decisions.tscac import Logged, ResponseLearner
from telos.nets.critics import polyak_
from telos.nets.response_policies import log_density
from telos.ops.off_policy import effective_sample_size

if TYPE_CHECKING:
    from jaxtyping import Float


class DeterministicLearner(ResponseLearner):
    """(4), and in stage 1 its first two terms; actions are measured in half widths of their range."""

    def update(self, batch: Logged, rng: Rng, micro: int = 1) -> Metrics:
        rows, parts, rhos = len(batch), split(batch, micro), []
        errors = (self.critic_error(part.steps) / rows for part in parts)
        critic_loss = self.step(self.critic_optimiser, errors)
        actor_loss = self.improve_actor(self.actor_losses(part, rhos) / rows for part in parts)
        polyak_(self.target, self.policy, self.method.tau)
        rho = torch.cat(rhos)
        share = effective_sample_size(rho) / rows
        return {"loss": actor_loss, "critic_loss": critic_loss, "effective_share": share, "ratio": rho.mean()}

    def critic_error(self, steps: Transitions) -> Float[Tensor, ""]:
        """Squared errors against r_i + gamma_i Q_i'(s', mu'(s')), summed."""
        with torch.no_grad():
            targets = self.targets(steps, self.target.state_values(steps.next_observations))
        return (self.policy.action_values(steps.observations, steps.actions) - targets).square().sum()

    def actor_losses(self, part: Logged, rhos: list[Tensor]) -> Float[Tensor, " J"]:
        """(4) summed over rows, for each response where gradients are mixed; adds rho (B,) to `rhos`."""
        m, steps, policy = self.method, part.steps, self.policy
        chosen = policy.actions_at(steps.observations, steps.actions)
        values = policy.action_values(steps.observations, chosen)
        scale = policy.deterministic.scale
        unit, recorded, anchors = scale.unit(chosen), scale.unit(steps.actions), scale.unit(part.anchor)
        shares = [x / sum(self.lambdas) for x in self.lambdas] if anchors.shape[1] else []
        rho = self.rho(unit.detach(), recorded, anchors, shares)
        away = m.clone_coefficient * (unit - recorded).square().sum(-1)
        if shares:
            weights = torch.tensor(shares, device=unit.device)
            away = away + m.anchor_coefficient * (unit[:, None] - anchors).square().sum(-1) @ weights
        if not self.variant.pareto:
            values = self.combined(values)[None]
        rhos.append(rho)
        return (away - m.value_coefficient * rho * values).sum(-1)

    def rho(self, chosen: Tensor, recorded: Tensor, anchors: Tensor, shares: list[float]) -> Float[Tensor, " B"]:
        """At most 1; 1 without auxiliary actors."""
        if not shares:
            return torch.ones(len(chosen), device=chosen.device)
        sigma = self.method.sigma
        if self.method.rho == "near":
            return log_density(chosen, anchors, shares, sigma).clamp(max=0).exp()
        own = log_density(recorded, chosen[:, None], [1.0], sigma)
        return (log_density(recorded, anchors, shares, sigma) - own).clamp(max=0).exp()
