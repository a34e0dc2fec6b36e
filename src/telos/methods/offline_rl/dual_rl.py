"""Dual RL: f-DVL, values by a stable implicit maximiser, and ReCOIL, imitation of few records among many poor ones.

Sikchi, Zheng, Zhang, Niekum: Dual RL: Unification and New Methods for Reinforcement and Imitation Learning,
ICLR 2024, arXiv 2302.08560.

Both take steps on V, then the policy, then Q, then move the target Q'. With d = Q'(s, a) - V(s), Q' the smaller of two,

    f-DVL   V:   mean of a loss in d whose minimiser lies between mean and maximum of Q'(s, .)      (1)
            Q_i: Huber loss of r + discount V(s') - Q_i(s, a)                                       (2)
            pi:  - mean min(exp(beta d), clip) log pi(a | s)                                        (3)

The losses of (1) stand in telos.ops.conjugates: chi2 and tv are the paper's, rkl is XQL's, expectile IQL's. ReCOIL
replaces (2). With expert records E and others S, of which each makes up a half of a batch, b = value_gap:

    V: (1) on S + b (mean over S of V - mean over E of V);  (3) on both halves                      (4)
    ls    Q: (Q(E) - u)^2 / 2 + (Q(s, a) - [-2 + discount (V(s') or, at the end, -u)])^2 / 2,
             u = 2 / (1 - discount), E's pairs in the first term and S's in the second              (5)
    dual  Q: m (mean Q(s, pi) - mean over E of Q) + 1/4 mean over m E + (1 - m) S of
             (discount Q(s', pi) - Q(s, a))^2                                                       (6)

where (6) is the paper's chi2 dual with m = mixture and s from S or from E. telos.methods.offline_rl.dual_rl_variants
holds the unifying view.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from telos.core.errors import TelosError
from telos.core.method import Learner, Method, Metrics, Source, Spec, split
from telos.core.products import Product
from telos.core.rng import Rng
from telos.core.sources import Beside, Both, Uniform
from telos.data.formats import load
from telos.data.records import Box, Discrete, Record, Transitions
from telos.nets.critics import frozen_copy, polyak_
from telos.nets.normaliser import Normaliser
from telos.nets.policies import BoxScale, CategoricalPolicy, GaussianPolicy, box
from telos.nets.state_values import StateValue, TwinQ
from telos.ops.conjugates import (
    chi2_maximiser,
    exact_maximiser,
    expectile_maximiser,
    gumbel_maximiser,
    gumbel_shift,
    tv_maximiser,
)
from telos.ops.values import advantage_weights, td_target

if TYPE_CHECKING:
    from jaxtyping import Float

PAPER = {
    "method": "Dual RL (ReCOIL, f-DVL)",
    "title": "Dual RL: Unification and New Methods for Reinforcement and Imitation Learning",
    "arxiv": "2302.08560",
    "year": 2023,
    "url": "https://arxiv.org/abs/2302.08560",
    "purpose": ["reward", "demonstration"],
    "product": "Policy",
    "data": "offline transitions, optional expert transitions",
    "summary": "Offline RL and imitation as convex duals of one problem. From this view come f-DVL, which finds values "
    "without the exponentials of XQL, and ReCOIL, which imitates a single recorded path with the help of arbitrary "
    "other records and without a discriminator.",
    "claim": "A quadratic or piecewise linear implicit maximiser keeps gradients tame where the Gumbel loss explodes; "
    "and expert records joined with random ones teach a policy to find back to the expert's path.",
    "paper_claim": {
        "where": "tables on D4RL; figures on recovered visitations and on the stability of XQL",
        "text": "f-DVL matches or beats XQL and IQL on D4RL and does not diverge as XQL does (a reviewer calls its "
        "gain over IQL marginal). ReCOIL gets close to the expert from one trajectory and mixed data where SMODICE "
        "and ORIL fail.",
        "value": "none that anybody has read in the paper (unverified)",
        "data": "D4RL MuJoCo, AntMaze, Kitchen and Adroit; random or medium records with few expert trajectories",
        "model": "actor, critics and value with two hidden layers of 256",
        "mechanism": "Fitting a value to noisy targets needs no RL, so the gradients of each maximiser can be watched "
        "alone. In four rooms one path is the expert's and random moves cover the rest, so a policy that only imitates "
        "knows nothing off the path. Function approximation and continuous actions are not tested there.",
    },
    "equations": [
        r"\max_\pi\min_Q\,(1-\gamma)\,\mathbb E_{d_0,\pi}[Q]+\alpha\,\mathbb E_{d^O}\left[f^*\left("
        r"\frac{\mathcal T^\pi Q-Q}{\alpha}\right)\right]",
        r"\min_V\,(1-\gamma)\,\mathbb E_{d_0}[V]+\alpha\,\mathbb E_{d^O}\left[f^*_p\left("
        r"\frac{\mathcal T V-V}{\alpha}\right)\right]",
        r"\mathcal L_V=\mathbb E\left[\lambda\max\left(u+\frac{u^2}{4},0\right)-(1-\lambda)u\right],\quad"
        r" u=\min_{i=1,2}Q'_i(s,a)-V(s)\quad(\chi^2)",
        r"\mathcal L_V=\mathbb E\left[\lambda\max(u,0)-(1-\lambda)u\right]\quad(\mathrm{TV})",
        r"y=r+\gamma\,\mathbb 1[s'\text{ not terminal}]\,V(s')",
        r"\mathcal L_Q=\sum_{i=1}^{2}\mathbb E\left[H_{20}(Q_i(s,a)-y)\right]",
        r"\mathcal L_\pi=-\mathbb E\left[\min\left(e^{\beta u},w_{\max}\right)\log\pi(a\mid s)\right]",
        r"\mathcal L_Q^{\mathrm{ReCOIL}}=\frac12\mathbb E_{d^E}\left[\left(Q(s,a)-\frac{2}{1-\gamma}\right)^2\right]"
        r"+\frac12\mathbb E_{d^S}\left[(Q(s,a)+2-\gamma V(s'))^2\right]",
        r"Q'_i\leftarrow\tau Q_i+(1-\tau)Q'_i",
    ],
    "deviations": [
        "The default maximiser is TV with weight 0.8; the paper's runs use chi^2 on MuJoCo and TV on AntMaze.",
        "The exact TV conjugate is used without its infinite barrier above 1/2, which no gradient could descend.",
        "ReCOIL's gap of mean values has weight 0 by default.",
        "Dropout of the value acts in its own loss only; the policy has none.",
        "Random actions are drawn within the action space's bounds, where the code has [-1, 1].",
        "Discrete actions are possible: one output of Q for each; hidden=() on one-hot states makes tables.",
    ],
    "traps": [
        "The code's chi^2 loss is flat while V is up to 4 above Q: with weight 1 nothing pulls V down, so keep it "
        "below 1 or add random actions. Beyond 4 it rises again, which the conjugate does not.",
        "The weight is a share for chi2, tv and exact losses, an expectile, and a temperature for rkl.",
        "The size of rewards sets that of the residuals, and with it what chi2 and rkl do: scale rewards.",
        "A clip hides the explosions of XQL's loss and biases its values downwards.",
        "Without the low value at the end ReCOIL's ls loss makes early termination attractive.",
        "Data said to hold random and expert records often hold unlabelled expert trajectories: report both.",
    ],
    "terms": [
        "Fenchel duality",
        "density ratio",
        "occupancy measure",
        "implicit Q-learning",
        "extreme Q-learning",
        "LS-IQ",
        "learning from demonstrations",
    ],
    "at_scale": "telos fit dual_rl --data minari:mujoco/hopper/medium-v0 --f chi2 --weight 1.0 --random-actions 1 "
    "--batch-size 1024 --steps 1000000 --device cuda",
    "usage": [
        "telos fit dual_rl --data transitions.npz --steps 100 --out runs/f-dvl",
        "telos eval runs/f-dvl --env Pendulum-v1 --episodes 2",
        'data = telos.load("transitions.npz")',
        "expert, others = data[:200], data[200:]",
        "policy = telos.ReCOIL().fit(others, expert=expert, steps=50)",
        'print(telos.evaluate(policy, "Pendulum-v1", episodes=2))',
        "policy = telos.FDVL(f='chi2', weight=0.8).fit(data, steps=50)",
        'policy.save("my-policy")',
    ],
}


@dataclass(frozen=True)
class FDVL(Method):
    """f-DVL: offline RL on recorded actions only, with a choice of implicit maximisers."""

    data = Transitions

    f: Literal["tv", "chi2", "rkl", "expectile"] = "tv"
    """The implicit maximiser: f-DVL's tv or chi2, XQL's rkl, IQL's expectile. Paper: chi2 (MuJoCo), tv (AntMaze)."""
    weight: float = 0.8
    """Share of the maximising term, above 0.5 and at most 1 (expectile below 1; rkl: a temperature, > 0). Paper: 0.8
    (AntMaze, tv); Repository: 1 (MuJoCo, chi2), 8 (rkl)."""
    exact: bool = False
    """With the divergence's conjugate in place of the code's loss (tv, chi2, rkl): then weight is a share for rkl too,
    and V may lie above the maximum. Repository: off."""
    clip: float | None = 5.0
    """Largest d / weight that counts in rkl's loss; None for no bound. Repository: 5."""
    random_actions: int = 0
    """Uniformly random actions a row besides the recorded one in V's loss, >= 0. Repository: 1 (MuJoCo)."""
    value_updates: int = 1
    """Steps on V an update, on one batch, >= 1. Repository: an option; telos: 1."""
    gradient_penalty: float = 0.0
    """Weight of max(|dQ/da| - 1, 0)^2 at recorded actions, in half widths of the range, >= 0. Repository: off."""
    huber: float = 20.0
    """Where Q's loss turns from a parabola to a line, > 0. Repository: 20."""
    beta: float = 3.0
    """Inverse temperature of the advantage weights, >= 0. Paper: 3 (MuJoCo), 10 (AntMaze), 0.5 (Kitchen, Adroit)."""
    advantage_clip: float = 100.0
    """Upper bound of the weights. Repository: 100."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """The policy's learning rate over the run: a cosine to 0, or constant (AntMaze). Paper: cosine."""
    discount: float = 0.99
    """Discount of the next step's value, 0 to 1. Paper: 0.99."""
    tau: float = 0.005
    """Step of the target critics towards the trained ones, 0 to 1. Paper: 0.005."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this. Paper: 1000 / (range of returns) for locomotion."""
    reward_shift: float = 0.0
    """Then this is added. Paper: -1 for AntMaze."""
    normalise: bool = False
    """Standardise observations with the data's mean and std + 0.001. Repository: off."""
    layer_norm: bool = True
    """Layer normalisation in V. Repository: on."""
    value_dropout: float = 0.0
    """Share of V's hidden units dropped in its loss, 0 to below 1. Repository: 0.5 (AntMaze)."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers of all networks; () for linear ones. Paper: 256, 256."""
    learning_rate: float = 3e-4
    """Of Adam, for all networks. Paper: 3e-4."""
    batch_size: int = 1024
    """Transitions an update. Paper: 1024."""

    def prepare(self, spec: Spec) -> Spec:
        bounded(spec.data, "f-DVL")
        high = {"rkl": math.inf, "expectile": 1 - 1e-9}.get("" if self.exact else self.f, 1.0)
        low = 0.0 if self.f == "rkl" and not self.exact else 0.5
        within("f-DVL", "weight", self.weight, low + 1e-9, high)
        within("f-DVL", "random_actions", self.random_actions, 0)
        within("f-DVL", "value_updates", self.value_updates, 1)
        if self.exact and self.f == "expectile":
            raise TelosError("f-DVL: an expectile has no conjugate", expected="exact with tv, chi2 or rkl", got=self.f)
        return spec.replace(data=spec.data.to(spec.device))

    def source(self, spec: Spec) -> Uniform:
        return Uniform(spec.data, self.batch_size)

    def learner(self, spec: Spec, rng: Rng) -> FDVLLearner:
        return FDVLLearner(self, spec.data, spec.steps, rng)


@dataclass(frozen=True)
class ReCOIL(Method):
    """ReCOIL: imitation of expert records with the help of other records, whose rewards are not read.

    `fit(others, expert=records_or_path)`; without `expert` the data themselves are the expert's.
    """

    data = Transitions
    takes: ClassVar[tuple[str, ...]] = ("expert",)

    loss: Literal["ls", "dual"] = "ls"
    """Q's loss: regression to fixed values (5), or the chi2 dual (6). Repository: ls."""
    maximiser: Literal["expectile", "gumbel"] = "expectile"
    """Which loss finds V. Paper: both; Repository: expectile."""
    weight: float = 0.8
    """Expectile, 0 to 1, or temperature of the Gumbel loss, > 0. telos: 0.8."""
    clip: float | None = 5.0
    """Largest d / weight that counts in the Gumbel loss; None for no bound. Repository: 5."""
    value_gap: float = 0.0
    """Weight of mean V on other records minus mean V on the expert's, >= 0. telos: 0."""
    mixture: float = 0.5
    """Share of the expert in the mixtures of the dual loss, 0 to 1. telos: 0.5."""
    first_states: Literal["offline", "expert"] = "offline"
    """Where the dual loss lowers Q at the policy's actions: at other records' states, or at the expert's, which its
    telescoped form has. Repository: offline, in V's loss."""
    beta: float = 3.0
    """Inverse temperature of the advantage weights, >= 0. Paper: 3."""
    advantage_clip: float = 100.0
    """Upper bound of the weights. Repository: 100."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """The policy's learning rate over the run: a cosine to 0, or constant. Paper: cosine."""
    discount: float = 0.99
    """Discount of the next step's value, 0 to below 1: it sets the values of (5). Paper: 0.99."""
    tau: float = 0.005
    """Step of the target critics towards the trained ones, 0 to 1. Paper: 0.005."""
    normalise: bool = False
    """Standardise observations with the data's mean and std + 0.001. Repository: off."""
    layer_norm: bool = True
    """Layer normalisation in V. Repository: on."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers of all networks; () for linear ones: tables, on one-hot states. Paper: 256, 256."""
    learning_rate: float = 3e-4
    """Of Adam, for all networks. Paper: 3e-4."""
    batch_size: int = 256
    """Transitions an update, half of them the expert's. Paper: 256."""

    def prepare(self, spec: Spec) -> Spec:
        bounded(spec.data, "ReCOIL")
        within("ReCOIL", "weight", self.weight, 1e-9, math.inf if self.maximiser == "gumbel" else 1 - 1e-9)
        within("ReCOIL", "mixture", self.mixture, 1e-9, 1.0)
        within("ReCOIL", "discount", self.discount, 0.0, 1 - 1e-9)
        within("ReCOIL", "batch_size", self.batch_size, 2)
        expert = spec.given.get("expert")
        if isinstance(expert, str | Path):
            expert = load(str(expert), kind=Transitions)
        if expert is not None:
            space = bounded(expert, "ReCOIL's expert")
            assert isinstance(expert, Transitions)
            sizes = [records.observations.shape[1] for records in (spec.data, expert)]
            if space != spec.data.action_space or sizes[0] != sizes[1] or not len(expert):
                raise TelosError(
                    "ReCOIL: the expert's records do not fit the others", expected=f"{sizes[0]} observed values and "
                    f"{spec.data.action_space}", got=f"{len(expert)} rows, {sizes[1]} values and {space}",
                )  # fmt: skip
            expert = expert.to(spec.device)
        return spec.replace(data=spec.data.to(spec.device), given={**spec.given, "expert": expert})

    def source(self, spec: Spec) -> Source:
        if spec.given["expert"] is None:
            return Uniform(spec.data, self.batch_size)
        half = self.batch_size // 2
        return Beside(Uniform(spec.data, half), Uniform(spec.given["expert"], half))

    def learner(self, spec: Spec, rng: Rng) -> ReCOILLearner:
        return ReCOILLearner(self, spec.data, spec.steps, rng)


def bounded(data: object, method: str) -> Box | Discrete:
    """The action space, if it is discrete or a bounded Box; TelosError otherwise."""
    if isinstance(data, Transitions) and isinstance(data.action_space, Discrete):
        return data.action_space
    return box(data, method)


def within(method: str, name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raises a TelosError for an option outside [low, high]."""
    if not low <= value <= high:
        raise TelosError(
            f"{method}: option {name} is out of range", expected=f"{low:.3g} to {high:.3g}", got=f"{value:g}"
        )


def maximiser_loss(
    name: str, d: Float[Tensor, "*b"], weight: float, exact: bool, clip: float | None, shift: Tensor
) -> Float[Tensor, ""]:
    """(1) summed; `d` = Q' - V with gradients to V, `shift` is the whole batch's (gumbel_shift)."""
    if exact:
        return exact_maximiser(name, d, weight).sum()
    if name in ("rkl", "gumbel"):
        return gumbel_maximiser(d, weight, clip, shift).sum()
    losses = {"chi2": chi2_maximiser, "tv": tv_maximiser, "expectile": expectile_maximiser}
    return losses[name](d, weight).sum()


def policy_loss(
    log_probs: Float[Tensor, " B"], advantages: Float[Tensor, " B"], beta: float, clip: float
) -> tuple[Float[Tensor, ""], int]:
    """(3) summed over rows, and their number; no gradient reaches the advantages."""
    return -(advantage_weights(advantages.detach(), beta, clip) * log_probs).sum(), len(log_probs)


def ls_targets(
    next_values: Float[Tensor, " B"], terminated: Tensor, discount: float
) -> tuple[Float[Tensor, " B"], float]:
    """(5): the targets of other pairs, and u, that of the expert's pairs; the lowest value is -u."""
    highest = 2 / (1 - discount)
    return -2 + discount * torch.where(terminated, -highest, next_values), highest


def dual_loss(
    at_policy: Float[Tensor, "members B"],
    expert: Float[Tensor, "members E"],
    errors: tuple[Float[Tensor, "members S"] | None, Float[Tensor, "members E"]],
    mixture: float,
) -> Float[Tensor, ""]:
    """(6), summed over members: means over rows, with gradients to all.

    Args:
        at_policy: Q(s, pi) at the states that (6) starts from; expert: Q(s, a) of the expert's pairs.
        errors: discount Q(s', pi) - Q(s, a) of other pairs and of the expert's; without others the expert has all.
    """
    others, own = errors
    share = 1.0 if others is None else mixture
    squares = share * own.square().mean(1)
    if others is not None:
        squares = squares + (1 - share) * others.square().mean(1)
    return (share * (at_policy.mean(1) - expert.mean(1)) + squares / 4).sum()


@dataclass(frozen=True)
class Drawn(Record):
    """A batch with all that is drawn for it: `uniform` (B, times, A), `dropout` (B, units) and `noise` (B, 3, A)."""

    batch: Transitions | Both
    uniform: Tensor
    dropout: Tensor
    noise: Tensor


def slope_penalty(q: Float[Tensor, "2 B"], actions: Float[Tensor, "B A"], scale: BoxScale) -> Float[Tensor, ""]:
    """max(|dQ/da| - 1, 0)^2 summed over members and rows, a in half widths of its range."""
    total = q.new_zeros(())
    for member in q:
        (slope,) = torch.autograd.grad(member.sum(), actions, create_graph=True)
        total = total + ((slope * scale.half_width).norm(dim=-1) - 1).clamp(min=0).square().sum()
    return total


def step(
    optimiser: torch.optim.Optimizer, loss: Callable[[Drawn], Tensor], parts: Sequence[Drawn], rows: int
) -> Tensor:
    """One step on the mean of a loss over all parts, which is returned."""
    optimiser.zero_grad()
    mean = torch.zeros(())
    for part in parts:
        share = loss(part) * (len(part) / rows)
        share.backward()
        mean = mean + share.detach()
    optimiser.step()
    return mean


class DualLearner(Learner, abc.ABC):
    """Twin critics with target copies, a value and a policy; what f-DVL and ReCOIL have in common."""

    constant = ("steps",)

    def __init__(self, method: FDVL | ReCOIL, data: Transitions, steps: int, rng: Rng):
        self.method, self.steps, self.updates = method, steps, 0
        self.space, size = data.action_space, data.observations.shape[1]
        device, weights = data.observations.device, rng.at("policy").torch()
        policy = (
            CategoricalPolicy(size, self.space.size, method.hidden, weights)
            if isinstance(self.space, Discrete)
            else GaussianPolicy(size, self.space.low, self.space.high, method.hidden, rng=weights)
        )
        if method.normalise:
            policy.normaliser = Normaliser.fitted(data.observations)
        self.policy = policy.to(device)
        self.critic = TwinQ(size, self.space, method.hidden, rng.at("critic").torch()).to(device)
        self.target_critic = frozen_copy(self.critic)
        dropout = method.value_dropout if isinstance(method, FDVL) else 0.0
        sizes = (size, *method.hidden, 1)
        self.value = StateValue(sizes, method.layer_norm, dropout, rng.at("value").torch()).to(device)
        self.value_optimiser, self.policy_optimiser, self.critic_optimiser = (
            torch.optim.Adam(module.parameters(), method.learning_rate, fused=True)
            for module in (self.value, self.policy, self.critic)
        )

    @abc.abstractmethod
    def residuals(self, part: Drawn) -> Float[Tensor, "B times"]:
        """d of (1), with gradients to V only."""

    @abc.abstractmethod
    def value_loss(self, part: Drawn, shift: Tensor) -> Float[Tensor, ""]:
        """(1) or (4), a mean over the part."""

    @abc.abstractmethod
    def critic_loss(self, part: Drawn) -> Float[Tensor, ""]:
        """(2), (5) or (6), a mean over the part."""

    @abc.abstractmethod
    def imitated(self, batch: Transitions | Both) -> list[Transitions]:
        """The records of (3)."""

    def update(self, batch: Transitions | Both, rng: Rng, micro: int = 1) -> Metrics:
        m, rows = self.method, len(batch)
        parts: list[Drawn] = split(self.drawn(batch, rng), micro)
        gumbel = (m.f == "rkl" and not m.exact) if isinstance(m, FDVL) else m.maximiser == "gumbel"
        metrics: Metrics = {}
        for _ in range(m.value_updates if isinstance(m, FDVL) else 1):
            shift = torch.zeros(())
            if gumbel:
                with torch.no_grad():
                    shift = torch.stack([gumbel_shift(self.residuals(part), m.weight, m.clip) for part in parts]).max()
            metrics["value_loss"] = step(self.value_optimiser, partial(self.value_loss, shift=shift), parts, rows)
        if m.schedule == "cosine":
            rate = 0.5 * m.learning_rate * (1 + math.cos(math.pi * self.updates / max(1, self.steps)))
            self.policy_optimiser.param_groups[0]["lr"] = rate
        metrics["policy_loss"] = step(self.policy_optimiser, self.policy_loss, parts, rows)
        metrics["critic_loss"] = step(self.critic_optimiser, self.critic_loss, parts, rows)
        polyak_(self.target_critic, self.critic, m.tau)
        self.updates += 1
        return metrics

    def drawn(self, batch: Transitions | Both, rng: Rng) -> Drawn:
        """Draws for the whole batch, so that its parts see what they would see together."""
        m, device, rows = self.method, self.policy.normaliser.mean.device, len(batch)
        size = 1 if isinstance(self.space, Discrete) else self.space.size
        times = m.random_actions if isinstance(m, FDVL) else 0

        def generator(name: str) -> torch.Generator:
            return rng.at(name).torch(device)

        uniform = torch.rand((rows, times, size), generator=generator("random"), device=device)
        dropout = torch.rand((rows, self.value.units), generator=generator("dropout"), device=device)
        noise = torch.randn((rows, 3, size), generator=generator("noise"), device=device)
        return Drawn(batch, uniform, dropout, noise)

    def states(self, observations: Float[Tensor, "B O"]) -> Float[Tensor, "B O"]:
        return self.policy.normaliser(observations)

    @torch.no_grad()
    def recorded(self, records: Transitions) -> Float[Tensor, " B"]:
        """Q'(s, a)."""
        return self.target_critic(self.states(records.observations), records.actions).amin(0)

    def policy_loss(self, part: Drawn) -> Float[Tensor, ""]:
        """(3) as a mean."""
        total, count = torch.zeros((), device=part.noise.device), 0
        for records in self.imitated(part.batch):
            states = self.states(records.observations)
            with torch.no_grad():
                advantages = self.recorded(records) - self.value(states)
            log_probs = self.policy.log_likelihood(states, records.actions)
            loss, rows = policy_loss(log_probs, advantages, self.method.beta, self.method.advantage_clip)
            total, count = total + loss, count + rows
        return total / count

    def product(self) -> Product:
        return self.policy


class FDVLLearner(DualLearner):
    """(1), (2), (3)."""

    method: FDVL

    def residuals(self, part: Drawn) -> Float[Tensor, "B times"]:
        records = part.batch
        assert isinstance(records, Transitions)
        states = self.states(records.observations)
        with torch.no_grad():
            values = [self.recorded(records)]
            values += [self.target_critic(states, a).amin(0) for a in self.random_actions(part.uniform)]
        return torch.stack(values, 1) - self.value(states, part.dropout)[:, None]

    def random_actions(self, uniform: Float[Tensor, "B times A"]) -> list[Tensor]:
        """Uniform numbers as actions, (B, A) or (B,) each."""
        if isinstance(self.space, Discrete):
            return list((uniform[..., 0] * self.space.size).long().unbind(1))
        assert isinstance(self.policy, GaussianPolicy)
        return list(self.policy.scale(2 * uniform - 1).unbind(1))

    def value_loss(self, part: Drawn, shift: Tensor) -> Float[Tensor, ""]:
        m, d = self.method, self.residuals(part)
        return maximiser_loss(m.f, d, m.weight, m.exact, m.clip, shift) / d.numel()

    def critic_loss(self, part: Drawn) -> Float[Tensor, ""]:
        m, records = self.method, part.batch
        assert isinstance(records, Transitions)
        states, actions = self.states(records.observations), records.actions
        with torch.no_grad():
            next_values = self.value(self.states(records.next_observations))
            rewards = m.reward_scale * records.rewards + m.reward_shift
            targets = td_target(rewards, records.terminated, next_values, m.discount)
        penalised = m.gradient_penalty > 0 and not isinstance(self.space, Discrete)
        if penalised:
            actions = actions.clone().requires_grad_()
        q = self.critic(states, actions)
        loss = huber_loss(q, targets.expand(2, -1), reduction="sum", delta=m.huber)
        if penalised:
            assert isinstance(self.policy, GaussianPolicy)
            loss = loss + m.gradient_penalty * slope_penalty(q, actions, self.policy.scale)
        return loss / len(records)

    def imitated(self, batch: Transitions | Both) -> list[Transitions]:
        assert isinstance(batch, Transitions)
        return [batch]


class ReCOILLearner(DualLearner):
    """(3), (4) and (5) or (6)."""

    method: ReCOIL

    def halves(self, batch: Transitions | Both) -> tuple[Transitions | None, Transitions]:
        """Other records, if there are any, and the expert's."""
        if isinstance(batch, Transitions):
            return None, batch
        assert isinstance(batch.first, Transitions) and isinstance(batch.second, Transitions)
        return batch.first, batch.second

    def residuals(self, part: Drawn) -> Float[Tensor, "B times"]:
        others, expert = self.halves(part.batch)
        records = expert if others is None else others
        return (self.recorded(records) - self.value(self.states(records.observations)))[:, None]

    def value_loss(self, part: Drawn, shift: Tensor) -> Float[Tensor, ""]:
        m, d = self.method, self.residuals(part)
        loss = maximiser_loss(m.maximiser, d, m.weight, False, m.clip, shift) / d.numel()
        others, expert = self.halves(part.batch)
        if m.value_gap and others is not None:
            values = [self.value(self.states(records.observations)).mean() for records in (others, expert)]
            loss = loss + m.value_gap * (values[0] - values[1])
        return loss

    def critic_loss(self, part: Drawn) -> Float[Tensor, ""]:
        others, expert = self.halves(part.batch)
        return self.by_ls(others, expert) if self.method.loss == "ls" else self.by_dual(others, expert, part.noise)

    def by_ls(self, others: Transitions | None, expert: Transitions) -> Float[Tensor, ""]:
        """(5), summed over both critics."""
        q = self.critic(self.states(expert.observations), expert.actions)
        loss = 0.5 * (q - 2 / (1 - self.method.discount)).square().mean(1).sum()
        if others is None:
            return loss
        with torch.no_grad():
            next_values = self.value(self.states(others.next_observations))
            targets, _ = ls_targets(next_values, others.terminated, self.method.discount)
        q = self.critic(self.states(others.observations), others.actions)
        return loss + 0.5 * (q - targets).square().mean(1).sum()

    def by_dual(
        self, others: Transitions | None, expert: Transitions, noise: Float[Tensor, "B 3 A"]
    ) -> Float[Tensor, ""]:
        """(6), summed over both critics; gradients run through the next pair's value, too."""
        m = self.method

        def errors(records: Transitions, q: Tensor, drawn: Tensor) -> Tensor:
            nexts = self.critic.expected(self.policy, self.states(records.next_observations), drawn)
            return m.discount * torch.where(records.terminated, 0.0, nexts) - q

        own = self.critic(self.states(expert.observations), expert.actions)
        first = expert if others is None or m.first_states == "expert" else others
        at_policy = self.critic.expected(self.policy, self.states(first.observations), noise[:, 0])
        theirs = None
        if others is not None:
            q = self.critic(self.states(others.observations), others.actions)
            theirs = errors(others, q, noise[:, 1])
        return dual_loss(at_policy, own, (theirs, errors(expert, own, noise[:, 2])), m.mixture)

    def imitated(self, batch: Transitions | Both) -> list[Transitions]:
        return [records for records in self.halves(batch) if records is not None]
