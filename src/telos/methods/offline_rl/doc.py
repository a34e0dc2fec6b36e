"""DoC: a policy conditioned on a code of the future from which rewards and transitions cannot be told.

Yang, Schuurmans, Abbeel, Nachum: Dichotomy of Control: Separating What You Can Control from What You Cannot, ICLR
2023, arXiv 2210.13435.

A posterior q codes the future tau of a step as z; the policy imitates with it, and an energy f asks what z gives away
about the luck of the step. With rho the distribution of (r, s') in the data,

    B = E[ f(r, s', z, s, a) - log E_rho exp f(r~, s~', z, s, a) ]                                   (1)
    f:      max B                                                                                    (2)
    pi, q:  min E[-log pi(a | s, z)] + beta B                                                        (3)
    V, p:   min E[(V(s, z) - R)^2] + KL(q(z | tau) || p(z | s)),  q and z held constant              (4)

constraint="vae" is a variational coder of the future: pi, q and p minimise E[-log pi(a | s, z)] + beta KL(q || p).

B at its maximum over f is the information of z on (r, s') given (s, a), and a term that no z changes. To act, codes
are drawn from the prior p, the one with the highest V is kept, and pi(a | s, z) follows it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.method import Learner, Method, Metrics, Source, Spec, split
from telos.core.products import Act, Policy, Product
from telos.core.rng import Rng
from telos.data.records import Box, Discrete, Record, Transitions
from telos.data.returns import returns_to_go
from telos.data.windows import episode_bounds
from telos.nets.encoders import WindowEncoder
from telos.nets.mlp import MLP
from telos.nets.normaliser import Normaliser
from telos.nets.policies import BoxScale, as_batch, box, need_rng, probe_observations

if TYPE_CHECKING:
    from jaxtyping import Float

PAPER = {
    "method": "DoC",
    "title": "Dichotomy of Control: Separating What You Can Control from What You Cannot",
    "arxiv": "2210.13435",
    "year": 2022,
    "url": "https://arxiv.org/abs/2210.13435",
    "purpose": ["reward"],
    "product": "Policy",
    "data": "offline trajectories",
    "summary": "Conditions the policy on a latent code of the future that an adversarial information constraint frees "
    "from luck.",
    "claim": "On the Bernoulli bandit with p = 0.1 DoC earns 0.85 or more on each seed, return-conditioned learning "
    "0.5.",
    "paper_claim": {
        "where": "Bernoulli bandit; FrozenLake and Gym-MuJoCo figures",
        "text": "Conditioning on the return earns the same on the bandit however lopsided it is, imitation earns less "
        "than that, DoC nearly the best; on slippery FrozenLake and noisy MuJoCo DoC is above the Decision "
        "Transformer, the more so the more chance there is.",
        "value": "bandit: 0.5, 2p(1 - p) and 1 - p in closed form; figures for the rest (exact numbers unverified)",
        "data": "1,000 pulls of a two-armed bandit; 100 episodes of FrozenLake; MuJoCo data with noisy rewards",
        "model": "tables on the bandit; transformers of 3 layers, width 128 elsewhere",
        "mechanism": "In the bandit a reward is all luck once the arm is known, so a code that gives the reward away "
        "makes the policy believe that it can choose it. Long episodes, where luck and skill mix, are not tested.",
    },
    "equations": [
        r"\mathcal B=\mathbb E\left[f(r,s',z,s,a)-\log\mathbb E_{(\tilde r,\tilde s')\sim\rho}"
        r"\left[e^{f(\tilde r,\tilde s',z,s,a)}\right]\right],\quad z\sim q(z\mid\tau)",
        r"\min_{\pi,q}\max_f\ \mathbb E\left[-\log\pi(a\mid s,z)\right]+\beta\,\mathcal B",
        r"\mathcal L_V=\mathbb E\left[(V(s,z)-R(\tau))^2\right]",
        r"\mathcal L_p=\mathrm{KL}\left(\operatorname{sg}[q(z\mid\tau)]\,\Vert\,p(z\mid s)\right)",
        r"z^*=\arg\max_{z\in\{z_1,\dots,z_n\}}V(s,z),\quad z_i\sim p(z\mid s)",
    ],
    "deviations": [
        "The released code lets posterior and energy pull the same way, so that z is pushed to give luck away "
        "(constraint='released'); here they play against each other, as the paper's text has it.",
        "With the constraint on, the code does not train the prior; here it follows the posterior, as in the paper.",
        "The energy is a scalar net with (r, s') of other rows of the data as negatives; the code's product of two "
        "embeddings shuffles its positives too.",
        "Policy, prior and value read the state, where the paper reads the history; put the past into the "
        "observation where the state does not hold it.",
        "Small nets take the place of the paper's tables and transformers; the posterior has all four encoders.",
        "With categorical codes those are compared of which samples_at_test draws would hold one on average.",
    ],
    "traps": [
        "If the value trains the posterior, codes tell luck and the best one is a lucky one.",
        "With fewer categorical codes than actions, actions cannot be told apart.",
        "The energy must keep up: several ascents an update, or a higher learning rate.",
        "The bracket does not go to 0 but to the part that no code changes: on the bandit the information of the arm "
        "on the reward.",
        "A code that the prior never gives has an unlearnt value: take few draws rather than many.",
    ],
    "terms": [
        "Decision Transformer (DT)",
        "RvS",
        "stochastic environments",
        "upside-down RL",
        "mutual information",
        "optimism bias",
        "future-conditioned",
    ],
    "at_scale": "telos fit doc --data minari:mujoco/halfcheetah/medium-v0 --latent gaussian --latent-size 32 "
    "--future 20 --encoder transformer --hidden 128 128 --learning-rate 1e-4 --steps 500000 --device cuda",
    "usage": [
        "telos fit doc --data transitions.npz --latent gaussian --hidden 32 --steps 50 --out runs/doc",
        "telos eval runs/doc --env Pendulum-v1 --episodes 2",
        'data = telos.load("transitions.npz")',
        'policy = telos.DoC(future=5, encoder="rnn", hidden=(32,)).fit(data, steps=50)',
        'policy.save("my-policy")',
    ],
}


@dataclass(frozen=True)
class DoC(Method):
    """Future-conditioned imitation for stochastic environments; continuous and discrete actions."""

    data = Transitions

    latent: Literal["categorical", "gaussian"] = "categorical"
    """Codes: one of a few, with straight-through gradients, or Gaussian. Paper: categorical (bandit), gaussian."""
    latent_size: int = 4
    """Number of codes (at least as many as actions) or dimensions. Paper: 4 (bandit), 32."""
    future: int = 1
    """Steps that the posterior reads, the step itself included, >= 1. Paper: 1 (bandit), 20."""
    encoder: Literal["mlp", "deepset", "rnn", "transformer"] = "mlp"
    """How the posterior reads them. Paper: transformer."""
    constraint: Literal["minmax", "released", "vae", "none"] = "minmax"
    """Whether the energy's information is taken away from codes, as in the paper; put into them, by the sign of the
    released code; let be, but codes held near the prior by beta KL(q || p), a variational coder of the future; or let
    be (none). Paper: minmax."""
    constrained: Literal["reward", "next_state", "both"] = "both"
    """What codes must not tell. Paper: both."""
    beta: float = 1.0
    """Weight of the constraint, >= 0. Paper: 1."""
    value_grad_to_q: bool = False
    """Let the value train the posterior too, which invites luck into codes. Paper: off."""
    negatives: int = 64
    """Rows of the data a step that stand for rho, >= 1. telos: 64."""
    energy_steps: int = 1
    """Ascents of the energy an update, >= 1. telos: 1."""
    energy_learning_rate: float = 3e-3
    """Of Adam, for the energy. Paper: 0.01 (bandit)."""
    discount: float = 1.0
    """Of the returns that the value predicts, 0 to 1. telos: 1."""
    samples_at_test: int = 100
    """Codes drawn a decision, >= 1. Paper: 100."""
    normalise: bool = True
    """Standardise observations with the data's mean and std + 0.001. telos: on."""
    hidden: tuple[int, ...] = (64,)
    """Widths of the hidden layers of all networks, at least one. telos: 64."""
    learning_rate: float = 1e-3
    """Of Adam, for all other networks. Paper: 0.01 (bandit), 1e-4."""
    batch_size: int = 64
    """Steps an update. Paper: 64."""

    def prepare(self, spec: Spec) -> Spec:
        if not isinstance(getattr(spec.data, "action_space", None), Discrete):
            box(spec.data, "DoC")
        counts = (self.latent_size, self.future, self.negatives, self.energy_steps, self.samples_at_test)
        if min(counts) < 1 or self.beta < 0 or not 0 <= self.discount <= 1 or not self.hidden:
            raise TelosError(
                "DoC: an option is out of range",
                expected="latent_size, future, negatives, energy_steps, samples_at_test >= 1; beta >= 0; discount 0 to "
                "1; at least one hidden layer",
                got=f"{counts}; {self.beta}; {self.discount}; {self.hidden}",
            )
        return spec.replace(data=spec.data.to(spec.device))

    def source(self, spec: Spec) -> Futures:
        return Futures(self, spec.data)

    def learner(self, spec: Spec, rng: Rng) -> DoCLearner:
        return DoCLearner(self, spec.data, rng)


@dataclass(frozen=True)
class Future(Record):
    """A batch of steps, each with the H steps from it on, M draws of rho, and the return from it on.

    Args:
        observations: (B, H, O); actions: (B, H, A) or (B, H); rewards: (B, H); mask: (B, H) within the episode.
        next_observations: (B, O) after the first step; returns: (B,).
        other_rewards: (B, M); other_next_observations: (B, M, O).
        noise: what draws the code: (B, 1) uniform or (B, Z) normal.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    mask: Tensor
    next_observations: Tensor
    returns: Tensor
    other_rewards: Tensor
    other_next_observations: Tensor
    noise: Tensor


class Futures(Source):
    """Uniform rows with their futures."""

    def __init__(self, method: DoC, data: Transitions):
        self.method, self.data, self.last = method, data, episode_bounds(data)[1]
        self.returns = returns_to_go(data, method.discount)

    def next(self, behaviour: Any, rng: Rng) -> Future:
        m, data, device = self.method, self.data, self.data.observations.device
        generator = rng.torch(device)
        rows = torch.randint(len(data), (m.batch_size,), generator=generator, device=device)
        others = torch.randint(len(data), (m.batch_size, m.negatives), generator=generator, device=device)
        ahead = rows[:, None] + torch.arange(m.future, device=device)
        steps = torch.minimum(ahead, self.last[rows, None])
        shape, draw = ((m.latent_size,), torch.randn) if m.latent == "gaussian" else ((1,), torch.rand)
        return Future(
            data.observations[steps], data.actions[steps], data.rewards[steps], ahead == steps,
            data.next_observations[rows], self.returns[rows], data.rewards[others], data.next_observations[others],
            draw((m.batch_size, *shape), generator=generator, device=device),
        )  # fmt: skip


def bracket(positive: Float[Tensor, " B"], negatives: Float[Tensor, "B M"]) -> Float[Tensor, " B"]:
    """(1) for each row: the energy of what happened, less the log-mean-exp of that of draws of rho."""
    return positive - (negatives.logsumexp(-1) - math.log(negatives.shape[-1]))


def draw_code(codes: Float[Tensor, "B P"], noise: Tensor, latent: str) -> Float[Tensor, "B Z"]:
    """z by its parameters, with gradients: straight-through one-hot, or mean + std * noise.

    Args:
        codes: logits (P = Z), or mean and log variance (P = 2 Z).
        noise: uniform (B, 1), or standard normal (B, Z).
    """
    if latent == "gaussian":
        mean, log_variance = codes.chunk(2, -1)
        return mean + torch.exp(0.5 * log_variance) * noise
    shares = codes.softmax(-1)
    chosen = (shares.cumsum(-1) < noise).sum(-1).clamp(max=shares.shape[-1] - 1)
    return F.one_hot(chosen, shares.shape[-1]) + shares - shares.detach()


def kl_to_prior(posterior: Float[Tensor, "B P"], prior: Float[Tensor, "B P"], latent: str) -> Float[Tensor, " B"]:
    """KL(q || p) of codes' parameters."""
    if latent == "categorical":
        log_q, log_p = posterior.log_softmax(-1), prior.log_softmax(-1)
        return (log_q.exp() * (log_q - log_p)).sum(-1)
    (mean_q, log_q), (mean_p, log_p) = posterior.chunk(2, -1), prior.chunk(2, -1)
    ratio = torch.exp(log_q - log_p) + (mean_q - mean_p).square() * torch.exp(-log_p)
    return 0.5 * (ratio - 1 - log_q + log_p).sum(-1)


class DoCLearner(Learner):
    """Posterior, policy, prior and value under one optimiser, the energy under another."""

    def __init__(self, method: DoC, data: Transitions, rng: Rng):
        self.method, device = method, data.observations.device
        size, space = data.observations.shape[1], data.action_space
        actions = space.size
        codes = method.latent_size * (2 if method.latent == "gaussian" else 1)
        bounds = None if isinstance(space, Discrete) else [list(space.low), list(space.high)]
        self.policy = DoCPolicy(
            size, actions, bounds, method.latent, method.latent_size, method.hidden, method.samples_at_test,
            rng.at("policy").torch(),
        ).to(device)  # fmt: skip
        if method.normalise:
            self.policy.normaliser = Normaliser.fitted(data.observations).to(device)
        self.posterior = WindowEncoder(
            method.encoder, method.future, size + actions + 1, method.hidden, codes, rng.at("posterior").torch()
        ).to(device)
        told = {"reward": 1, "next_state": size, "both": 1 + size}[method.constrained]
        inputs = told + method.latent_size + size + actions
        self.energy = MLP((inputs, *method.hidden, 1), rng.at("energy").torch()).to(device)
        self.rewards = Normaliser.fitted(data.rewards[:, None]).to(device)
        self.returns = Normaliser.fitted(returns_to_go(data, method.discount)[:, None]).to(device)
        self.trained = [*self.posterior.parameters(), *self.policy.parameters()]
        self.optimiser = torch.optim.Adam(self.trained, method.learning_rate, fused=True)
        # The bracket does not see a constant in the energy, so the last bias would follow rounding errors.
        self.contesting = [*self.energy.parameters()][:-1]
        self.energy_optimiser = torch.optim.Adam(self.contesting, method.energy_learning_rate, fused=True)

    def update(self, batch: Future, rng: Rng, micro: int = 1) -> Metrics:
        m, metrics = self.method, {}
        parts = split(batch, micro)
        if m.constraint == "minmax":
            for _ in range(m.energy_steps):
                self.energy_optimiser.zero_grad()
                for part in parts:
                    with torch.no_grad():
                        z = draw_code(self.coded(part), part.noise, m.latent)
                    (-self.information(part, z).sum() / len(batch)).backward()
                self.energy_optimiser.step()
        together = m.constraint == "released"
        self.optimiser.zero_grad()
        self.energy_optimiser.zero_grad()
        for part in parts:
            losses = {name: loss.sum() / len(batch) for name, loss in self.losses(part).items()}
            weight = {"minmax": m.beta, "released": -m.beta}.get(m.constraint, 0.0)
            near = m.beta if m.constraint == "vae" else 1.0
            total = losses["policy_loss"] + losses["value_loss"] + near * losses["kl"]
            total = total + weight * losses["bracket"] if weight else total
            total.backward(inputs=[*self.trained, *(self.contesting if together and m.beta else [])])
            for name, loss in losses.items():
                metrics[name] = loss.detach() + metrics.get(name, 0.0)
        self.optimiser.step()
        if together:
            self.energy_optimiser.step()
        return metrics

    def act_rows(self, actions: Tensor) -> Float[Tensor, "*B A"]:
        """Actions as numbers for networks: rows of 0 and 1, or scaled to [-1, 1]."""
        scale = self.policy.scale
        return F.one_hot(actions, self.policy.size).float() if scale is None else scale.unit(actions)

    def coded(self, part: Future) -> Float[Tensor, "B P"]:
        """The posterior's parameters."""
        states, rewards = self.policy.normaliser(part.observations), self.rewards(part.rewards[..., None])
        return self.posterior(torch.cat([states, self.act_rows(part.actions), rewards], -1), part.mask)

    def information(self, part: Future, z: Float[Tensor, "B Z"]) -> Float[Tensor, " B"]:
        """The bracket (1) of each row at codes z."""
        known = [z, self.policy.normaliser(part.observations[:, 0]), self.act_rows(part.actions[:, 0])]
        rewards = torch.cat([part.rewards[:, :1], part.other_rewards], 1)
        nexts = torch.cat([part.next_observations[:, None], part.other_next_observations], 1)
        told = {"reward": [self.rewards(rewards[..., None])], "next_state": [self.policy.normaliser(nexts)]}
        columns = told["reward"] + told["next_state"] if self.method.constrained == "both" else told[
            self.method.constrained
        ]  # fmt: skip
        given = torch.cat(known, -1)[:, None].expand(-1, rewards.shape[1], -1)
        energies = self.energy(torch.cat([*columns, given], -1)).squeeze(-1)
        return bracket(energies[:, 0], energies[:, 1:])

    def losses(self, part: Future) -> dict[str, Float[Tensor, " B"]]:
        """(3) without its weight, and (4), for each row."""
        m, policy = self.method, self.policy
        codes = self.coded(part)
        z = draw_code(codes, part.noise, m.latent)
        states, actions = policy.normaliser(part.observations[:, 0]), part.actions[:, 0]
        outputs = policy.net(torch.cat([states, z], -1))
        if policy.scale is None:
            policy_loss = F.cross_entropy(outputs, actions, reduction="none")
        else:
            policy_loss = (torch.tanh(outputs) - policy.scale.unit(actions)).square().mean(-1)
        values = policy.value(torch.cat([states, z if m.value_grad_to_q else z.detach()], -1))
        return {
            "policy_loss": policy_loss,
            "bracket": self.information(part, z),
            "value_loss": (values - self.returns(part.returns[:, None])).square().squeeze(-1),
            # Only a variational coder's posterior follows the prior, too.
            "kl": kl_to_prior(codes if m.constraint == "vae" else codes.detach(), policy.prior(states), m.latent),
        }

    def product(self) -> Product:
        return self.policy


class DoCPolicy(Policy):
    """pi(a | s, z) at the code with the highest value among those that the prior gives.

    Args:
        observation_size: O.
        size: A, dimensions of an action or number of actions.
        bounds: (2, A) of continuous actions; None for discrete ones.
        latent, latent_size: the kind of codes, and how many or how wide.
        hidden: widths of the hidden layers.
        samples: codes drawn a decision.
        rng: draws the initial weights; without it they are zeros, to be loaded.
    """

    def __init__(
        self,
        observation_size: int,
        size: int,
        bounds: list[list[float]] | None,
        latent: str,
        latent_size: int,
        hidden: tuple[int, ...],
        samples: int,
        rng: torch.Generator | None = None,
    ):
        super().__init__()
        self.size, self.bounds, self.latent, self.latent_size = size, bounds, latent, latent_size
        self.hidden, self.samples = tuple(hidden), samples
        self.scale = None if bounds is None else BoxScale(*bounds)
        self.action_space = Discrete(size) if bounds is None else Box(tuple(bounds[0]), tuple(bounds[1]))
        self.normaliser = Normaliser.identity(observation_size)
        inputs, codes = observation_size + latent_size, latent_size * (2 if latent == "gaussian" else 1)
        self.net, self.value = MLP((inputs, *hidden, size), rng), MLP((inputs, *hidden, 1), rng)
        self.prior = MLP((observation_size, *hidden, codes), rng)

    def best_code(self, states: Float[Tensor, "B O"], rng: torch.Generator | None) -> Float[Tensor, "B Z"]:
        """z* at normalised observations; Gaussian codes are drawn, categorical ones compared."""
        prior = self.prior(states)
        if self.latent == "gaussian":
            shape = (len(states), self.samples, self.latent_size)
            noise = torch.randn(shape, generator=need_rng(rng), device=states.device)
            mean, log_variance = prior[:, None].chunk(2, -1)
            codes, likely = mean + torch.exp(0.5 * log_variance) * noise, None
        else:
            codes = torch.eye(self.latent_size, device=states.device).expand(len(states), -1, -1)
            shares = prior.softmax(-1)
            likely = shares >= shares.amax(-1, keepdim=True).clamp(max=1 / self.samples)
        repeated = states[:, None].expand(-1, codes.shape[1], -1)
        values = self.value(torch.cat([repeated, codes], -1)).squeeze(-1)
        best = (values if likely is None else values.masked_fill(~likely, -torch.inf)).argmax(-1)
        return codes[torch.arange(len(states), device=states.device), best]

    def outputs(self, obs: Any, rng: torch.Generator | None) -> tuple[Float[Tensor, "B A"], bool]:
        """Logits or means before the tanh at the best codes, and whether there was only one observation."""
        batch, single = as_batch(obs, self.normaliser)
        states = self.normaliser(batch)
        return self.net(torch.cat([states, self.best_code(states, rng)], -1)), single

    @torch.no_grad()
    def probabilities(self, obs: Any, rng: torch.Generator | None = None) -> Float[Tensor, "*B A"]:
        """Of discrete actions (B, A), or (A,) for one observation."""
        outputs, single = self.outputs(obs, rng)
        return outputs.softmax(-1)[0] if single else outputs.softmax(-1)

    @torch.no_grad()
    def act(
        self,
        obs: Any,
        *,
        goal: Any = None,
        state: Any = None,
        mask: Any = None,
        rng: torch.Generator | None = None,
        explore: bool = False,
    ) -> Act:
        """Actions (B, A), or (B,) the most probable ones, drawn with `explore`; without B for one observation."""
        outputs, single = self.outputs(obs, rng)
        if self.scale is not None:
            actions = self.scale(torch.tanh(outputs))
        elif explore:
            actions = torch.multinomial(outputs.softmax(-1), 1, generator=need_rng(rng)).squeeze(-1)
        else:
            actions = outputs.argmax(-1)
        return Act(actions[0] if single else actions)

    def config(self) -> dict[str, Any]:
        return {
            "observation_size": len(self.normaliser.mean), "size": self.size, "bounds": self.bounds,
            "latent": self.latent, "latent_size": self.latent_size, "hidden": list(self.hidden),
            "samples": self.samples,
        }  # fmt: skip

    def probe(self) -> dict[str, Tensor]:
        observations = probe_observations(self.normaliser)
        states = self.normaliser(observations)
        with_code = torch.cat(
            [states, torch.sin(torch.arange(4.0 * self.latent_size)).view(4, -1).to(states.device)], -1
        )
        return {
            "observations": observations, "outputs": self.net(with_code), "value": self.value(with_code),
            "prior": self.prior(states),
        }  # fmt: skip
