"""What HILP is compared with in zero-shot RL: other features phi, and DDPG along directions of any of them.

Touati, Rapin, Ollivier: Does Zero-Shot Reinforcement Learning Exist?, ICLR 2023, arXiv 2209.14935, compare features
that are learnt from steps (s, a, s') and later states g of the episode, by

    laplacian      mean || phi(s) - phi(s') ||^2,  features of independent states orthonormal                     (9)
    contrastive    - mean log exp c(s, g) / sum_j exp c(s, g_j),  c the cosine of phi(s) and mu(g), over a batch  (10)
    forward        mean || d(phi(s), a) - s' ||^2,  d a decoder                                                   (11)

In (10) mu is the second head of phi. Forward-backward representations (Touati, Ollivier: Learning One Representation to
Optimize All Rewards, NeurIPS 2021, arXiv 2103.07945) learn B = phi together with F so that <F(s, a, z), B(s'')> is the
density of s'' among the discounted future of pi_z: with s'' any states and a' = pi(s', z) + clipped noise,

    F, B:  mean (<F(s, a, z), B(s'')> - discount_s min_i <F_i'(s', a', z), B'(s'')>)^2 / 2 - mean <F(s, a, z), B(s')>
           + || E B B^T - I ||^2                                                                                  (12)

and a goal g is asked for by z ~ B(g), rewards by z ~ mean r B(s'), a demonstration by the mean of its states' B.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from telos.core.rng import Rng
from telos.nets.critics import frozen_copy
from telos.nets.normed import NormedMLP
from telos.nets.policies import DeterministicPolicy
from telos.ops.latents import (
    contrastive_loss,
    laplacian_loss,
    measure_loss,
    orthonormal_loss,
    successor_loss,
    successor_targets,
)
from telos.ops.values import smoothed_actions

if TYPE_CHECKING:
    from jaxtyping import Float

    from telos.methods.goals.hilp import HILP, HILPPolicy, Prompted


@dataclass(frozen=True)
class Seen:
    """Steps and goals as phi sees them: `here`, `nexts` and `goals` (B, G), `actions` (B, A), and the goals of the
    whole batch, `every` (N, G)."""

    here: Tensor
    nexts: Tensor
    goals: Tensor
    actions: Tensor
    every: Tensor


class Features(nn.Module, abc.ABC):
    """How phi is learnt.

    Args:
        columns, actions: G and A.
    """

    future: ClassVar[float | None] = None
    """Share of goals from the step's own future that the loss needs; None leaves it to the option."""
    trained: ClassVar[bool] = True

    def __init__(self, method: HILP, columns: int, actions: int, rng: Rng):
        super().__init__()
        self.method = method

    @abc.abstractmethod
    def forward(self, phi: NormedMLP, target: NormedMLP, seen: Seen) -> Float[Tensor, ""]:
        """phi's loss summed over rows; `target` is phi's slow copy."""


class Laplacian(Features):
    """(9)."""

    future = 0.0

    def forward(self, phi: NormedMLP, target: NormedMLP, seen: Seen) -> Float[Tensor, ""]:
        return laplacian_loss(phi(seen.here), phi(seen.nexts), phi(seen.goals))[0]


class Contrastive(Features):
    """(10)."""

    future = 1.0

    def forward(self, phi: NormedMLP, target: NormedMLP, seen: Seen) -> Float[Tensor, ""]:
        return contrastive_loss(phi(seen.here)[0], phi(seen.goals)[1], phi(seen.every)[1])[0]


class ForwardDynamics(Features):
    """(11), with a decoder as wide as phi."""

    def __init__(self, method: HILP, columns: int, actions: int, rng: Rng):
        super().__init__(method, columns, actions, rng)
        sizes = (method.latent + actions, *method.phi_hidden, columns)
        self.decoder = NormedMLP(1, sizes, rng.at("decoder").torch())

    def forward(self, phi: NormedMLP, target: NormedMLP, seen: Seen) -> Float[Tensor, ""]:
        decoded = self.decoder(torch.cat([phi(seen.here)[0], seen.actions], -1))[0]
        return (decoded - seen.nexts).square().mean(-1).sum()


class Fixed(Features):
    """phi stays what it is: random features, the state itself, or what (12) makes of it."""

    future = 0.0
    trained = False

    def forward(self, phi: NormedMLP, target: NormedMLP, seen: Seen) -> Float[Tensor, ""]:
        return seen.here.new_zeros(())


FEATURES: dict[str, type[Features]] = {
    "laplacian": Laplacian, "contrastive": Contrastive, "forward": ForwardDynamics, "forward_backward": Fixed,
    "random": Fixed, "identity": Fixed,
}  # fmt: skip


class Directed(nn.Module, abc.ABC):
    """DDPG along directions z with vector-valued critics: Q = <F(s, z, a), z>."""

    actor = "deterministic"

    def __init__(self, method: HILP, size: int, latent: int, actions: int, rng: Rng):
        super().__init__()
        self.method = method
        self.critic = NormedMLP(2, (size + latent + actions, *method.hidden, latent), rng.at("critic").torch())
        self.target = frozen_copy(self.critic)

    @abc.abstractmethod
    def critic_loss(
        self, features: Float[Tensor, "2 B D"], later: Float[Tensor, "2 B D"], part: Prompted,
        cumulants: Float[Tensor, "B D"], maps: tuple[HILPPolicy, NormedMLP],
    ) -> Float[Tensor, ""]:  # fmt: skip
        """Summed over members and rows, from F at recorded actions and F' at the policy's next ones."""

    def losses(
        self, policy: HILPPolicy, part: Prompted, cumulants: Float[Tensor, "B D"], target: NormedMLP
    ) -> dict[str, Tensor]:
        """(5) or (12), each summed over rows."""
        z, actor = part.directions, policy.actor
        assert isinstance(actor, DeterministicPolicy)
        states, nexts = policy.prompted(part.steps.observations, z), policy.prompted(part.steps.next_observations, z)
        noise, bounds = part.noise.unbind(1), (0.2, 0.3, actor.scale.low, actor.scale.high)
        with torch.no_grad():
            later = self.target(torch.cat([nexts, smoothed_actions(actor(nexts), noise[0], *bounds)], -1))
        features = self.critic(torch.cat([states, part.steps.actions], -1))
        # The policy's loss must not reach the features: it sees constants in their place.
        frozen = {name: value.detach() for name, value in self.critic.named_parameters()}
        pairs = torch.cat([states, smoothed_actions(actor(states), noise[1], *bounds)], -1)
        followed = torch.func.functional_call(self.critic, frozen, (pairs,))
        return {
            "critic_loss": self.critic_loss(features, later, part, cumulants, (policy, target)),
            "policy_loss": -(followed * z).sum(-1).amin(0).sum(),
        }


class SuccessorFeatures(Directed):
    """(5)."""

    def critic_loss(
        self, features: Float[Tensor, "2 B D"], later: Float[Tensor, "2 B D"], part: Prompted,
        cumulants: Float[Tensor, "B D"], maps: tuple[HILPPolicy, NormedMLP],
    ) -> Float[Tensor, ""]:  # fmt: skip
        m, z = self.method, part.directions
        return successor_loss(features, successor_targets(cumulants, later, z, m.skill_discount), z, m.q_loss)[0]


class ForwardBackward(Directed):
    """(12)."""

    def critic_loss(
        self, features: Float[Tensor, "2 B D"], later: Float[Tensor, "2 B D"], part: Prompted,
        cumulants: Float[Tensor, "B D"], maps: tuple[HILPPolicy, NormedMLP],
    ) -> Float[Tensor, ""]:  # fmt: skip
        policy, target = maps
        (every,) = part.every
        own, others = policy.phi(policy.chosen(part.steps.next_observations))[0], policy.phi(policy.scaled(every))[0]
        with torch.no_grad():
            wanted = later, target(policy.scaled(every))[0]
        measured, _ = measure_loss(features, own, others, wanted, self.method.skill_discount)
        return measured + orthonormal_loss(own, others)[0]
