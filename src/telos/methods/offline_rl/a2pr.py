"""A2PR: TD3 pulled to the better of recorded action and VAE proposal, where that one beats the state's value.

Liu, Li, Wei, Lv, Ma, Wang: Adaptive Advantage-Guided Policy Regularization for Offline Reinforcement Learning,
ICML 2024, arXiv 2405.19909.

Each update: TD3's critics, a value of the data's actions, and a VAE of the better ones among these,

    y    = r + discount min_i Q_i'(s', a'),   a' = clip(pi'(s') + clip(noise));  squared error      (1)
    V:     min(y, r + discount min_i Q_i(s', a')) with the critics just updated; squared error      (2)
    VAE:   w_v 1(A(s, a) > eps) mean (vae(s, a) - a)^2 + KL / 2,   A(s, a) = Q_1(s, a) - V(s)       (3)

Every `policy_every` updates the actor, with lambda = alpha / mean |Q_1(s, pi(s))| held constant, minimises

    - lambda mean Q_1(s, pi(s)) + mean w_m m (pi(s) - b)^2                                          (4)

where b is the proposal vae(s, pi(s)) if its advantage is at least that of the recorded action, else the latter, and
m = 1 where b's advantage is not below eps, else 0. So the VAE encodes the policy's own action and projects it onto
those of high advantage.

Differs from the paper and follows its code: no threshold by default, weights w_v and w_m, the projection instead of a
sample from the prior, and gradients run through the proposal into the policy (`detach_target` stops them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from telos.core.errors import TelosError
from telos.core.method import Learner, Method, Metrics, Spec, split
from telos.core.products import Product
from telos.core.rng import Rng
from telos.core.sources import Uniform
from telos.data.records import Transitions
from telos.nets.critics import EnsembleQ, frozen_copy, polyak_
from telos.nets.mlp import MLP
from telos.nets.normaliser import Normaliser
from telos.nets.policies import BoxScale, DeterministicPolicy, box
from telos.ops.values import ensemble_mse, smoothed_actions, td_target

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

PAPER = {
    "method": "A2PR",
    "title": "Adaptive Advantage-Guided Policy Regularization for Offline Reinforcement Learning",
    "arxiv": "2405.19909",
    "year": 2024,
    "url": "https://arxiv.org/abs/2405.19909",
    "purpose": ["reward"],
    "product": "Policy",
    "data": "offline transitions",
    "summary": "TD3 whose policy imitates, state by state, the better of the recorded action and a proposal of a VAE "
    "that was trained on good actions, and neither of them where both fall short of the state's value.",
    "claim": "Among mostly poor records a pull to the action of higher advantage earns more than TD3+BC's pull to "
    "every recorded action, at equal weight of the value, and still keeps away from actions that nobody recorded.",
    "paper_claim": {
        "where": "main table on D4RL v2",
        "text": "Best on 16 of 18 D4RL tasks; a larger margin on mixtures with much poor data, as random with expert "
        "(that figure unverified).",
        "value": "D4RL normalised scores, read second-hand in a later paper's table, for medium / medium-replay / "
        "medium-expert: halfcheetah 68.6 / 56.6 / 98.3, hopper 100.8 / 101.5 / 112.1, walker2d 89.7 / 94.4 / 114.6; "
        "mean 93.0, where TD3+BC has 75.3, IQL 83.3 and CQL 77.6",
        "data": "D4RL v2 HalfCheetah, Hopper and Walker2d; mixtures of random and better data",
        "model": "critics and value with four hidden layers of 256, an actor of width 256, a VAE of width 750",
        "mechanism": "In our bandit nine of ten recorded actions are poor, the good tenth lies close to a cliff that "
        "the data do not show. Imitation of all records, imitation of the good ones and no imitation at all end in "
        "three different places. With one step there is nothing to bootstrap: how errors of values spread over time "
        "is not tested.",
    },
    "equations": [
        r"a'=\operatorname{clip}\left(\pi'(s')+\operatorname{clip}(\epsilon,-c,c),a_{\min},a_{\max}\right),\quad"
        r"\epsilon\sim\mathcal N(0,\sigma^2)",
        r"y=r+\gamma\,\mathbb 1[s'\text{ not terminal}]\,\min_{i=1,2}Q'_i(s',a')",
        r"\mathcal L_Q=\sum_{i=1}^{2}\mathbb E\left[(Q_i(s,a)-y)^2\right]",
        r"\mathcal L_V=\mathbb E\left[\left(V(s)-\min\left(y,\,r+\gamma\,\mathbb 1[s'\text{ not terminal}]\,"
        r"\min_{i=1,2}Q_i(s',a')\right)\right)^2\right]",
        r"A(s,a)=Q_1(s,a)-V(s)",
        r"\mathcal L_{\mathrm{VAE}}=w_v\,\mathbb E\left[\mathbb 1[A(s,a)>\epsilon_A](\hat a-a)^2\right]"
        r"+\frac12\,\mathrm{KL}\left(\mathcal N(\mu,\sigma_z^2)\parallel\mathcal N(0,1)\right)",
        r"\bar a=\arg\max_{a'\in\{\hat a(s,\pi(s)),\,a\}}A(s,a'),"
        r"\quad m=w_m\,\mathbb 1[A(s,\bar a)\ge\epsilon_A]",
        r"\mathcal L_\pi=-\lambda\,\mathbb E\left[Q_1(s,\pi(s))\right]+\mathbb E\left[m\,(\pi(s)-\bar a)^2\right],"
        r"\quad\lambda=\frac{\alpha}{\mathbb E\left[|Q_1(s,\pi(s))|\right]}",
        r"Q'_i\leftarrow\tau Q_i+(1-\tau)Q'_i,\quad\pi'\leftarrow\tau\pi+(1-\tau)\pi'",
    ],
    "deviations": [
        "As the official code, and unlike the paper's formulas: the VAE proposes by encoding the policy's own action, "
        "the threshold is 0, and both penalties carry weights.",
        "Gradients run through the proposal into the policy, as in the official code; detach_target=True reads the "
        "paper's formula instead.",
        "Without the recorded action among the candidates, or without the proposal, the mask asks for the advantage of "
        "the one that is left.",
    ],
    "traps": [
        "Where no candidate beats the value the policy is unconstrained: watch Q with a large alpha.",
        "The value must average over recorded actions: if it were fitted to the policy's, the mask would be 0 nearly "
        "everywhere.",
        "The KL term is a mean over latent dimensions with weight 1/2; as a sum it makes the VAE collapse.",
        "Third-party runs of 50,000 steps show no gain over TD3+BC yet (hopper-medium-replay); it comes late.",
    ],
    "terms": [
        "batch RL",
        "generative model",
        "out-of-distribution actions",
        "overestimation",
        "behaviour cloning",
        "MuJoCo",
        "continuous control",
    ],
    "at_scale": "telos fit a2pr --data minari:mujoco/halfcheetah/medium-v0 --alpha 40 --mask-weight 1.0 "
    "--steps 1000000 --device cuda",
    "usage": [
        "telos fit a2pr --data transitions.npz --steps 100 --out runs/a2pr",
        "telos eval runs/a2pr --env Pendulum-v1 --episodes 2",
        'data = telos.load("transitions.npz")',
        "policy = telos.A2PR(alpha=2.5).fit(data, steps=50)",
        'print(telos.evaluate(policy, "Pendulum-v1", episodes=2))',
        'policy.save("my-policy")',
    ],
}


@dataclass(frozen=True)
class A2PR(Method):
    """Offline RL for continuous actions: TD3 that imitates the better of recorded and proposed actions."""

    data = Transitions

    alpha: float = 2.5
    """Weight of the value against the penalty, > 0. Repository: 2.5; halfcheetah-medium 40."""
    mask_weight: float = 0.5
    """Weight of the penalty where it is on, >= 0; without a mask it is 1. Repository: 0.5; hopper-medium 0.4,
    halfcheetah-medium and walker2d-medium 1."""
    vae_weight: float = 1.0
    """Weight of the VAE's squared error against half its KL, >= 0. Repository: 1; walker2d-medium 1.5."""
    target: Literal["adaptive", "dataset", "vae_only"] = "adaptive"
    """What is imitated: the candidate of higher advantage, always the recorded action (without a mask this is TD3+BC),
    or always the VAE's proposal. Paper: adaptive."""
    mask: bool = True
    """Imitate only where the target's advantage is not below the threshold. Paper: on."""
    vae_filter: bool = True
    """Train the VAE on recorded actions whose advantage is above the threshold only. Paper: on."""
    advantage_threshold: float = 0.0
    """epsilon_A of mask and filter, in units of value, >= 0. Repository: 0."""
    detach_target: bool = False
    """Stop gradients that run through the VAE's proposal into the policy. Repository: off."""
    rescale_actions: bool = False
    """Measure action distances with every dimension scaled to [-1, 1]; without it in raw units. Repository: off."""
    discount: float = 0.99
    """Discount of the next step's value, 0 to 1. Repository: 0.99; Hopper 0.995."""
    tau: float = 0.005
    """Step of the target networks towards the trained ones, 0 to 1. Repository: 0.005."""
    policy_noise: float = 0.2
    """Std of the noise on target actions, in half widths of the action range. Repository: 0.2."""
    noise_clip: float = 0.5
    """Bound of that noise, same units. Repository: 0.5."""
    policy_every: int = 2
    """Updates of critics, value and VAE to one of the policy and the targets, >= 1. Repository: 2."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this. Repository: 1."""
    reward_shift: float = 0.0
    """Then this is added. Repository: 0."""
    normalise: bool = True
    """Standardise observations with the data's mean and std + 0.001. Repository: on."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the policy's hidden layers. Repository: width 256; telos: two layers."""
    critic_hidden: tuple[int, ...] = (256, 256, 256, 256)
    """Widths of the hidden layers of critics and value. Repository: four of 256."""
    vae_hidden: tuple[int, ...] = (750, 750)
    """Widths of the hidden layers of the VAE's encoder, and of its decoder. Repository: 750, 750."""
    latent_size: int | None = None
    """Dimensions of the VAE's code; None: twice the action's. Repository: twice the action's."""
    learning_rate: float = 3e-4
    """Of Adam, for policy, critics and value. Repository: 3e-4."""
    vae_learning_rate: float = 1e-3
    """Of Adam, for the VAE. Repository: 1e-3."""
    batch_size: int = 256
    """Transitions an update. Repository: 256."""

    def prepare(self, spec: Spec) -> Spec:
        box(spec.data, "A2PR")
        for name in ("alpha", "mask_weight", "vae_weight", "advantage_threshold"):
            value = getattr(self, name)
            if value < 0 or (name == "alpha" and value == 0):
                raise TelosError(
                    f"A2PR: option {name} is out of range", expected="alpha > 0, others >= 0", got=f"{value:g}"
                )
        return spec.replace(data=spec.data.to(spec.device))

    def source(self, spec: Spec) -> Uniform:
        return Uniform(spec.data, self.batch_size)

    def learner(self, spec: Spec, rng: Rng) -> A2PRLearner:
        return A2PRLearner(self, spec.data, rng)


class ActionVAE(nn.Module):
    """A conditional VAE of actions: (s, a) -> a Gaussian code -> an action within the Box.

    Args:
        sizes: widths of observation, action and code.
        scale: maps (-1, 1) onto the Box.
        rng: draws the initial weights.
    """

    def __init__(self, sizes: tuple[int, int, int], hidden: Sequence[int], scale: BoxScale, rng: torch.Generator):
        super().__init__()
        observation, action, latent = sizes
        self.encoder = MLP((observation + action, *hidden, 2 * latent), rng)
        self.decoder = MLP((observation + latent, *hidden, action), rng)
        self.scale, self.latent = scale, latent

    def encode(
        self, states: Float[Tensor, "B O"], actions: Float[Tensor, "B A"]
    ) -> tuple[Float[Tensor, "B Z"], Float[Tensor, "B Z"]]:
        """Mean and log of the deviation of the code."""
        mean, log_std = self.encoder(torch.cat([states, actions], -1)).chunk(2, -1)
        return mean, log_std.clamp(-4, 15)

    def decode(self, states: Float[Tensor, "B O"], codes: Float[Tensor, "B Z"]) -> Float[Tensor, "B A"]:
        return self.scale(torch.tanh(self.decoder(torch.cat([states, codes], -1))))

    def forward(
        self, states: Float[Tensor, "B O"], actions: Float[Tensor, "B A"], noise: Float[Tensor, "B Z"]
    ) -> tuple[Float[Tensor, "B A"], Float[Tensor, "B Z"], Float[Tensor, "B Z"]]:
        """A reconstruction with standard normal `noise`, and what `encode` gives."""
        mean, log_std = self.encode(states, actions)
        return self.decode(states, mean + log_std.exp() * noise), mean, log_std


def vae_loss(
    reconstructed: Float[Tensor, "B A"],
    actions: Float[Tensor, "B A"],
    mean: Float[Tensor, "B Z"],
    log_std: Float[Tensor, "B Z"],
    weights: Float[Tensor, " B"],
    unit: Float[Tensor, " A"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], int]:
    """The two terms of (3), each summed over rows and averaged over dimensions, and the number of rows.

    Args:
        weights: w_v 1(A > eps); they concern the first term only.
    """
    errors = ((reconstructed - actions) / unit).square().mean(-1)
    kl = -0.5 * (1 + 2 * log_std - mean.square() - (2 * log_std).exp()).mean(-1)
    return (weights * errors).sum(), 0.5 * kl.sum(), len(actions)


def choose(
    recorded: Float[Tensor, " B"], proposed: Float[Tensor, " B"], target: str, threshold: float
) -> tuple[Bool[Tensor, " B"], Bool[Tensor, " B"]]:
    """From the advantages of both candidates: where the proposal is the target, and where the mask of (4) is on.

    At the threshold itself a proposal counts and a recorded action does not.
    """
    propose = {
        "adaptive": proposed >= recorded,
        "dataset": torch.zeros_like(recorded, dtype=torch.bool),
        "vae_only": torch.ones_like(recorded, dtype=torch.bool),
    }[target]
    return propose, torch.where(propose, proposed >= threshold, recorded > threshold)


def actor_loss(
    q: Float[Tensor, " B"],
    actions: Float[Tensor, "B A"],
    targets: Float[Tensor, "B A"],
    weights: Float[Tensor, " B"],
    q_weight: Float[Tensor, ""],
    unit: Float[Tensor, " A"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], int]:
    """(4) as sums over rows, and their number: the loss, and the penalty in it. `q_weight` is lambda."""
    penalty = (weights * ((actions - targets) / unit).square().mean(-1)).sum()
    return -q_weight * q.sum() + penalty, penalty, len(q)


class A2PRLearner(Learner):
    """Twin critics and a deterministic actor, with target copies of both; a value and a VAE."""

    constant = ("unit",)

    def __init__(self, method: A2PR, data: Transitions, rng: Rng):
        self.method = method
        bounds = box(data, "A2PR")
        sizes = data.observations.shape[1], bounds.size
        device = data.observations.device
        policy = DeterministicPolicy(sizes[0], bounds.low, bounds.high, method.hidden, rng=rng.at("policy").torch())
        if method.normalise:
            policy.normaliser = Normaliser.fitted(data.observations)
        self.policy = policy.to(device)
        self.critic = EnsembleQ(2, *sizes, method.critic_hidden, rng.at("critic").torch()).to(device)
        self.target_policy, self.target_critic = frozen_copy(self.policy), frozen_copy(self.critic)
        self.value = MLP((sizes[0], *method.critic_hidden, 1), rng.at("value").torch()).to(device)
        latent = method.latent_size or 2 * sizes[1]
        scale = BoxScale(bounds.low, bounds.high)
        self.vae = ActionVAE((*sizes, latent), method.vae_hidden, scale, rng.at("vae").torch()).to(device)
        self.policy_optimiser, self.critic_optimiser, self.value_optimiser, self.vae_optimiser = (
            torch.optim.Adam(module.parameters(), rate, fused=True)
            for module, rate in (
                (self.policy, method.learning_rate), (self.critic, method.learning_rate),
                (self.value, method.learning_rate), (self.vae, method.vae_learning_rate),
            )
        )  # fmt: skip
        self.updates = 0
        half = self.policy.scale.half_width
        self.unit = half.clone() if method.rescale_actions else torch.ones_like(half)

    def update(self, batch: Transitions, rng: Rng, micro: int = 1) -> Metrics:
        device = batch.actions.device

        def normal(name: str, size: int) -> Tensor:
            return torch.randn((len(batch), size), generator=rng.at(name).torch(device), device=device)

        parts = split(batch, micro)
        noise = normal("noise", batch.actions.shape[1]).tensor_split(len(parts))
        codes = normal("codes", self.vae.latent).tensor_split(len(parts))
        metrics = self.improve_critic_and_value(parts, noise, len(batch))
        metrics |= self.descend(self.vae_optimiser, self.reconstruction_loss, list(zip(parts, codes)), len(batch))
        self.updates += 1
        if self.updates % self.method.policy_every == 0:
            proposals = normal("proposals", self.vae.latent).tensor_split(len(parts))
            metrics |= self.improve_policy(parts, proposals, len(batch))
            polyak_(self.target_critic, self.critic, self.method.tau)
            polyak_(self.target_policy, self.policy, self.method.tau)
        return metrics

    def improve_critic_and_value(self, parts: list[Transitions], noises: Sequence[Tensor], rows: int) -> Metrics:
        """One step on (1), then one on (2) with the critics that it gave."""
        smoothed = [self.next_actions(part, noise) for part, noise in zip(parts, noises)]
        targets = [self.targets(self.target_critic, part, nexts) for part, nexts in zip(parts, smoothed)]
        each = list(zip(parts, smoothed, targets))
        metrics = self.descend(self.critic_optimiser, self.critic_loss, each, rows)
        return metrics | self.descend(self.value_optimiser, self.value_loss, each, rows)

    def critic_loss(
        self, part: Transitions, nexts: Float[Tensor, "B A"], target: Float[Tensor, " B"]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(1) summed over rows and critics."""
        total, _ = ensemble_mse(self.critic(self.policy.normaliser(part.observations), part.actions), target)
        return total, {"critic_loss": total}

    def value_loss(
        self, part: Transitions, nexts: Float[Tensor, "B A"], target: Float[Tensor, " B"]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(2) summed over rows."""
        values = self.value(self.policy.normaliser(part.observations)).squeeze(-1)
        total = (values - torch.minimum(target, self.targets(self.critic, part, nexts))).square().sum()
        return total, {"value_loss": total}

    @torch.no_grad()
    def next_actions(self, part: Transitions, noise: Float[Tensor, "B A"]) -> Float[Tensor, "B A"]:
        """a' of (1)."""
        m, scale = self.method, self.policy.scale
        actions = self.target_policy(self.policy.normaliser(part.next_observations))
        return smoothed_actions(actions, noise, m.policy_noise, m.noise_clip, scale.low, scale.high)

    @torch.no_grad()
    def targets(self, critic: EnsembleQ, part: Transitions, next_actions: Float[Tensor, "B A"]) -> Float[Tensor, " B"]:
        """(1) for each row, with the target critics or with others."""
        m = self.method
        values = critic(self.policy.normaliser(part.next_observations), next_actions).amin(0)
        return td_target(m.reward_scale * part.rewards + m.reward_shift, part.terminated, values, m.discount)

    def reconstruction_loss(self, part: Transitions, noise: Float[Tensor, "B Z"]) -> tuple[Tensor, dict[str, Tensor]]:
        """(3) summed over rows."""
        states = self.policy.normaliser(part.observations)
        weights = self.vae_weights(states, part.actions)
        reconstructed, mean, log_std = self.vae(states, part.actions, noise)
        error, kl, _ = vae_loss(reconstructed, part.actions, mean, log_std, weights, self.unit)
        return error + kl, {"vae_error": error, "vae_kl": kl}

    @torch.no_grad()
    def vae_weights(self, states: Float[Tensor, "B O"], actions: Float[Tensor, "B A"]) -> Float[Tensor, " B"]:
        """w_v times the filter of (3)."""
        m = self.method
        kept = self.advantages(states, actions) > m.advantage_threshold
        return m.vae_weight * (kept | (not m.vae_filter)).float()

    @torch.no_grad()
    def advantages(self, states: Float[Tensor, "B O"], actions: Float[Tensor, "B A"]) -> Float[Tensor, " B"]:
        """A(s, a) = Q_1(s, a) - V(s)."""
        return self.critic.first(states, actions) - self.value(states).squeeze(-1)

    def improve_policy(self, parts: list[Transitions], noises: Sequence[Tensor], rows: int) -> Metrics:
        """One step on (4). Lambda is a statistic of the whole batch: in parts, a first pass finds it."""
        mean_abs_q = None
        if len(parts) > 1:
            with torch.no_grad():
                mean_abs_q = torch.stack([self.act(part)[0].abs().sum() for part in parts]).sum() / rows
        each = [(part, noise, mean_abs_q) for part, noise in zip(parts, noises)]
        return self.descend(self.policy_optimiser, self.policy_loss, each, rows, list(self.policy.parameters()))

    def policy_loss(
        self, part: Transitions, noise: Float[Tensor, "B Z"], mean_abs_q: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(4) summed over rows; without `mean_abs_q` that of this part."""
        q, states, actions = self.act(part)
        magnitude = q.detach().abs().mean() if mean_abs_q is None else mean_abs_q
        targets, weights, proposed = self.imitated(states, actions, part.actions, noise)
        loss, penalty, _ = actor_loss(q, actions, targets, weights, self.method.alpha / magnitude, self.unit)
        sums = {"actor_loss": loss, "penalty": penalty, "q": q.sum(), "proposed": proposed.float().sum(),
                "imitating": (weights > 0).float().sum()}  # fmt: skip
        return loss, sums

    def imitated(
        self,
        states: Float[Tensor, "B O"],
        actions: Float[Tensor, "B A"],
        recorded: Float[Tensor, "B A"],
        noise: Float[Tensor, "B Z"],
    ) -> tuple[Float[Tensor, "B A"], Float[Tensor, " B"], Bool[Tensor, " B"]]:
        """b and w_m m of (4), and where b is the proposal; `actions` are the policy's."""
        m = self.method
        proposals, _, _ = self.vae(states, actions, noise)
        if m.detach_target:
            proposals = proposals.detach()
        both = self.advantages(states, recorded), self.advantages(states, proposals.detach())
        proposed, kept = choose(*both, m.target, m.advantage_threshold)
        targets = torch.where(proposed[:, None], proposals, recorded)
        weights = m.mask_weight * kept.float() if m.mask else torch.ones_like(both[0])
        return targets, weights, proposed

    def act(self, part: Transitions) -> tuple[Tensor, Tensor, Tensor]:
        """Q_1(s, pi(s)), normalised observations s and pi(s)."""
        states = self.policy.normaliser(part.observations)
        actions = self.policy(states)
        return self.critic.first(states, actions), states, actions

    def product(self) -> Product:
        return self.policy
