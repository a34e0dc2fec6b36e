"""SMORe: a score that is raised where a recorded step enters its goal, and made consistent with itself elsewhere.

Sikchi, Chitnis, Touati, Geramifard, Zhang, Niekum: Score Models for Offline Goal-Conditioned Reinforcement Learning,
ICLR 2024, arXiv 2311.02013.

rho are steps of the data with goals from their own future, q are steps with the very state that they lead to as goal
(a share of both has the goal that was recorded beside the step instead, if there is one). No reward is read. With
S_1, S_2 two scores of (s, a, g), S' the smaller of their target copies, M their expectile within the data, r = bonus:

    M:    mean_rho |eta - 1(u < 0)| u^2,   u = S'(s, a, g) - M(s, g),   eta = expectile                (1)
    S_i:  mean_q l_q + mean_rho l_rho,  with one of the losses, M = M(s', g) held fixed and d = discount M - S:

    stable          l_q = (S - r / (1 - discount))^2
                    l_rho = (d - r)^2 / 2 + 1e-4 (1 - discount) S^2                                    (2)
    chi2            l_q = b (d + d^2 / 4)
                    l_rho = b (1 - discount) S + (1 - b) d^2 / 4,   b = mixture                        (3)
    code_original   l_q = - S
                    l_rho = d^2 / 2 + 1e-4 S                                                           (4)

    pi:   - mean_rho min(exp(temperature u), clip) log pi(a | s, g)                                    (5)

(3) is the dual of matching mixtures of the policy's visits and q with rho in Pearson's chi2: f*(x) = x + x^2 / 4. Its
start term is taken at recorded states and actions, as the weak second term of (4) is in the code. Nothing terminates.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.method import Learner, Method, Metrics, Source, Spec, split
from telos.core.products import Product
from telos.core.rng import Rng
from telos.core.sources import Beside, Both, UniformGoals
from telos.data.goals import GoalSteps
from telos.data.records import Discrete, Transitions
from telos.nets.critics import frozen_copy, polyak_
from telos.nets.goal_policies import ReachingPolicy, goal_space
from telos.nets.policies import BoxScale, DeterministicPolicy
from telos.nets.state_values import StateValue, TwinQ
from telos.ops.values import advantage_weights, expectile_loss

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

PAPER = {
    "method": "SMORe",
    "title": "Score Models for Offline Goal-Conditioned Reinforcement Learning",
    "arxiv": "2311.02013",
    "year": 2023,
    "url": "https://arxiv.org/abs/2311.02013",
    "purpose": ["goal"],
    "product": "Policy",
    "data": "offline trajectories with goals",
    "summary": "Offline goal reaching by a score that is raised where a transition enters the goal and kept "
    "Bellman-consistent elsewhere.",
    "claim": "On four-rooms data with 10 % expert paths SMORe's discounted return is above that of hindsight goal "
    "cloning on each seed.",
    "paper_claim": {
        "where": "main table over reaching, manipulation and locomotion tasks; figure over shares of expert data",
        "text": "Highest discounted return on most tasks of goal-conditioned benchmarks; when the share of expert data "
        "falls, it loses less than a method with a discriminator.",
        "value": "expert share from 5 % to 1 %: about 16 % lost, GoFAR 36 % (read second-hand); tables unverified",
        "data": "Fetch, Sawyer, HandReach, and locomotion to a target velocity: 10 % expert, 90 % random episodes",
        "model": "MLPs of 3 x 256",
        "mechanism": "What entering a goal is worth is learnt from the steps that enter it, and spread backwards over "
        "all recorded ways; so random walks can be joined to short ways, which imitation cannot do. In our rooms the "
        "shortest ways are known. Contact-rich tasks, images and noise in actions are not tested.",
    },
    "equations": [
        r"\mathcal L_M=\mathbb E_\rho\left[|\eta-\mathbb 1[u<0]|\,u^2\right],\quad "
        r"u=\min_{i=1,2}S'_i(s,a,g)-M(s,g)",
        r"\mathcal L_{\text{stable}}=\mathbb E_q\left[\left(S-\frac{r}{1-\gamma}\right)^2\right]"
        r"+\frac{1}{2}\mathbb E_\rho\left[\left(S+r-\gamma M(s',g)\right)^2\right]"
        r"+\varepsilon(1-\gamma)\,\mathbb E_\rho\left[S^2\right]",
        r"\mathcal L_{\chi^2}=\beta(1-\gamma)\,\mathbb E_\rho[S]+\beta\,\mathbb E_q\left[\gamma M(s',g)-S\right]"
        r"+\frac{1}{4}\mathbb E_{\beta q+(1-\beta)\rho}\left[(\gamma M(s',g)-S)^2\right]",
        r"\mathcal L_\pi=-\mathbb E_\rho\left[\min\left(e^{\alpha u},w_{\max}\right)\log\pi(a\mid s,g)\right]",
        r"S'_i\leftarrow\tau S_i+(1-\tau)S'_i",
    ],
    "deviations": [
        "All losses read the parameters from before the update, and one optimiser step serves them; the code goes M, "
        "policy, S in turn.",
        "Steps of q are uniform over the data; the code takes the step before a uniformly later time, which favours "
        "the ends of episodes. A recorded goal counts as entered by the state after the step.",
        "chi2's start term is taken at recorded steps, not at the policy's first ones. Policies extracted with "
        "extraction='deterministic' minimise weighted squares.",
        "r is 2 in the code; here it is an option.",
    ],
    "traps": [
        "Without q the stable loss has one solution, the constant -r / (1 - discount): nothing is learnt.",
        "code_original has no lower bound on its own: it needs expectile < 1 and layer normalisation. Nothing may be "
        "masked where a goal is entered.",
        "Scores span twice r / (1 - discount), so at temperature 3 weights are 0 or at their bound: a filter. Small "
        "problems ask for a lower discount or temperature.",
        "The released flag --beta is the expectile; its --alpha does nothing.",
        "On expert data alone imitation does as well, and the method is hidden.",
    ],
    "terms": ["GCRL", "hindsight relabelling (HER)", "WGCSL", "f-divergence", "sparse rewards", "occupancy matching"],
    "at_scale": "telos fit smore --data minari:D4RL/pointmaze/umaze-v2 --observation-columns 4 5 6 7 "
    "--goal-columns 0 1 --desired-columns 2 3 --tolerance 0.45 --steps 1000000 --device cuda",
    "usage": [
        "telos fit smore --data play.npz --hidden 64 64 --discount 0.95 --steps 100 --out runs/smore",
        "import torch",
        'play = telos.load("play.npz")',
        "policy = telos.SMORe(hidden=(64, 64), discount=0.95).fit(play, steps=100)",
        "print(policy.act(torch.tensor([[0.2, 0.5]]), goal=(0.9, 0.3)).action)",
        'policy.save("my-policy")',
    ],
}


@dataclass(frozen=True)
class SMORe(Method):
    """Offline goal reaching without rewards and without a discriminator; continuous and discrete actions."""

    data = Transitions

    loss: Literal["stable", "chi2", "code_original"] = "stable"
    """The score's loss: (2), (3) or (4). Repository: stable."""
    expectile: float = 0.8
    """Which expectile of S(s, ., g) M is, above 0, below 1. Repository: 0.8 (its examples), tuned by task."""
    temperature: float = 3.0
    """Inverse temperature alpha of the advantage weights, >= 0 (0: imitation). Repository: 3."""
    advantage_clip: float = 100.0
    """Upper bound of the weights, > 0. Repository: 100."""
    bonus: float = 2.0
    """r of the stable loss, > 0: what a step costs, and (1 - discount) times what entering a goal is worth.
    Repository: 2."""
    mixture: float = 0.5
    """Share b of q in the mixtures of chi2, above 0 to 1. telos: 0.5."""
    discount: float = 0.99
    """0 to below 1. Paper: 0.99."""
    tau: float = 0.005
    """Step of the target scores towards the trained ones, 0 to 1. Paper: 0.005."""
    her_ratio: float = 0.8
    """Share of goals taken in hindsight where goals were recorded too; else all are. Repository: 0.8."""
    gradient_penalty: float = 0.0
    """Weight of max(|dS/da| - 1, 0)^2 at recorded actions, in half widths of the range, >= 0. Repository: 1 if on."""
    extraction: Literal["stochastic", "deterministic"] = "stochastic"
    """A Gaussian by (5), or a function by squares with the same weights; discrete actions: only (5). Repository: both,
    stochastic unless set."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """The policy's learning rate over the run: a cosine to 0, or constant. Repository: cosine."""
    observation_columns: tuple[int, ...] | None = None
    """Columns of the observation that are the state; None for all. telos: None."""
    goal_columns: tuple[int, ...] | None = None
    """Columns of the observation that are a goal; None for all. telos: None."""
    desired_columns: tuple[int, ...] | None = None
    """Columns of the observation that hold the goal recorded for the episode; None: none was. telos: None."""
    tolerance: float = 0.0
    """How near to a recorded goal a step must lead to enter it, Euclidean, >= 0. Paper: the task's own."""
    normalise: bool = False
    """Standardise states and goals with the data's mean and std + 0.001. Repository: off."""
    layer_norm: bool = True
    """Layer normalisation in M. Repository: on."""
    hidden: tuple[int, ...] = (256, 256, 256)
    """Widths of the hidden layers of all networks; () for tables, on one-hot states. Paper: 3 of 256."""
    learning_rate: float = 3e-4
    """Of Adam, for all networks. Paper: 3e-4."""
    batch_size: int = 256
    """Steps an update from rho, and as many from q. Paper: 256."""

    def prepare(self, spec: Spec) -> Spec:
        names = ("observation_columns", "goal_columns", "desired_columns")
        space = goal_space(spec.data, "SMORe", {name: getattr(self, name) for name in names})
        ranges = {
            "expectile": 0 < self.expectile < 1, "discount": 0 <= self.discount < 1, "mixture": 0 < self.mixture <= 1,
            "her_ratio": 0 <= self.her_ratio <= 1, "bonus": self.bonus > 0, "temperature": self.temperature >= 0,
            "gradient_penalty": self.gradient_penalty >= 0, "tolerance": self.tolerance >= 0,
            "advantage_clip": self.advantage_clip > 0,
        }  # fmt: skip
        for name, fine in ranges.items():
            if not fine:
                raise TelosError(f"SMORe: option {name} is out of range", got=str(getattr(self, name)))
        goals = spec.data.observations.shape[1] if self.goal_columns is None else len(self.goal_columns)
        if self.desired_columns is not None and len(self.desired_columns) != goals:
            raise TelosError(
                "SMORe: recorded goals have another size", expected=f"{goals} desired_columns, as a goal has",
                got=str(len(self.desired_columns)),
            )  # fmt: skip
        if isinstance(space, Discrete) and (self.gradient_penalty or self.extraction == "deterministic"):
            raise TelosError(
                "SMORe: discrete actions have no slope and no mean", expected="gradient_penalty 0 and "
                "extraction='stochastic', or continuous actions",
            )  # fmt: skip
        return spec.replace(data=spec.data.to(spec.device))

    def source(self, spec: Spec) -> Beside:
        """rho, and beside it q."""
        data, every = spec.data, torch.arange(len(spec.data), device=spec.data.observations.device)
        enter = every if self.desired_columns is None else every[entered_rows(self, data)]
        return Beside(Pursuits(self, data, "future", every), Pursuits(self, data, "entered", enter))

    def learner(self, spec: Spec, rng: Rng) -> SMOReLearner:
        return SMOReLearner(self, spec.data, spec.steps, rng)


def entered_rows(method: SMORe, data: Transitions) -> Bool[Tensor, " N"]:
    """Which steps lead to within `tolerance` of the goal that was recorded for them."""
    goals = range(data.observations.shape[1]) if method.goal_columns is None else method.goal_columns
    assert method.desired_columns is not None
    wanted = data.observations[:, list(method.desired_columns)]
    return (data.next_observations[:, list(goals)] - wanted).norm(dim=-1) <= method.tolerance


class Pursuits(Source):
    """Steps with goals in hindsight, or for a share of them with the goals that were recorded for them.

    Args:
        sampler: of goals in hindsight, one of telos.data.goals.
        rows: the steps that may come with their recorded goal; where there is none, all goals are in hindsight.
    """

    def __init__(self, method: SMORe, data: Transitions, sampler: str, rows: Int[Tensor, " R"]):
        self.data, self.rows, self.share = data, rows, method.her_ratio
        self.desired = None if method.desired_columns is None else list(method.desired_columns)
        self.hindsight = UniformGoals(data, method.batch_size, {sampler: 1.0}, method.discount, method.goal_columns)

    def next(self, behaviour: Callable[[], Product], rng: Rng) -> GoalSteps:
        steps = self.hindsight.next(behaviour, rng)
        if self.desired is None or not len(self.rows) or self.share == 1:
            return steps
        device = self.rows.device
        generator = rng.at("recorded").torch(device)
        rows = self.rows[torch.randint(len(self.rows), (len(steps),), generator=generator, device=device)]
        own = torch.rand(len(steps), generator=generator, device=device) >= self.share
        recorded = {
            "observations": self.data.observations[rows], "actions": self.data.actions[rows],
            "next_observations": self.data.next_observations[rows],
            "goals": self.data.observations[rows][:, self.desired], "reached": torch.zeros_like(own),
        }  # fmt: skip
        mixed = {
            name: torch.where(own.view(-1, *[1] * (column.dim() - 1)), recorded[name], column)
            for name, column in steps.columns().items()
        }
        return dataclasses.replace(steps, **mixed)


Term = Callable[[Tensor, Tensor, SMORe], Tensor]
"""What each score (..., B) costs, given discounted M(s', g) (B,), and the options."""

LOSSES: dict[str, tuple[Term, Term]] = {
    "stable": (
        lambda s, later, m: (s - m.bonus / (1 - m.discount)).square(),
        lambda s, later, m: 0.5 * (later - m.bonus - s).square() + 1e-4 * (1 - m.discount) * s.square(),
    ),
    "chi2": (
        lambda s, later, m: m.mixture * ((later - s) + (later - s).square() / 4),
        lambda s, later, m: m.mixture * (1 - m.discount) * s + (1 - m.mixture) * (later - s).square() / 4,
    ),
    "code_original": (
        lambda s, later, m: -s,
        lambda s, later, m: 0.5 * (later - s).square() + 1e-4 * s,
    ),
}
"""(2), (3), (4): l_q and l_rho."""


def slope_penalty(scores: Float[Tensor, "2 B"], actions: Float[Tensor, "B A"], scale: BoxScale) -> Float[Tensor, ""]:
    """max(|dS/da| - 1, 0)^2 summed over members and rows, a in half widths of its range."""
    total = scores.new_zeros(())
    for member in scores:
        (slope,) = torch.autograd.grad(member.sum(), actions, create_graph=True)
        total = total + ((slope * scale.half_width).norm(dim=-1) - 1).clamp(min=0).square().sum()
    return total


class SMOReLearner(Learner):
    """Twin scores with target copies, M, and a policy, under one optimiser."""

    constant = ("steps",)

    def __init__(self, method: SMORe, data: Transitions, steps: int, rng: Rng):
        self.method, self.steps, self.updates = method, steps, 0
        device, columns = data.observations.device, (method.observation_columns, method.goal_columns)
        kind = "gaussian" if method.extraction == "stochastic" else "deterministic"
        self.policy = ReachingPolicy.of(data, columns, kind, method.hidden, method.normalise, rng.at("policy").torch())
        size = self.policy.input_size
        self.score = TwinQ(size, data.action_space, method.hidden, rng.at("score").torch()).to(device)
        self.target_score = frozen_copy(self.score)
        self.value = StateValue((size, *method.hidden, 1), method.layer_norm, 0.0, rng.at("value").torch()).to(device)
        values = [*self.score.parameters(), *self.value.parameters()]
        self.optimiser = torch.optim.Adam(
            [{"params": values}, {"params": [*self.policy.parameters()]}], method.learning_rate, fused=True
        )

    def update(self, batch: Both, rng: Rng, micro: int = 1) -> Metrics:
        metrics: Metrics = {}
        self.optimiser.zero_grad()
        for part in split(batch, micro):
            losses = self.losses(part.first, part.second)
            (sum(losses.values(), torch.zeros(())) / len(batch)).backward()
            for name, loss in losses.items():
                metrics[name] = loss.detach() / len(batch) + metrics.get(name, 0.0)
        if self.method.schedule == "cosine":
            rate = 0.5 * self.method.learning_rate * (1 + math.cos(math.pi * self.updates / max(1, self.steps)))
            self.optimiser.param_groups[1]["lr"] = rate
        self.optimiser.step()
        polyak_(self.target_score, self.score, self.method.tau)
        self.updates += 1
        return metrics

    def losses(self, rho: GoalSteps, q: GoalSteps) -> dict[str, Float[Tensor, ""]]:
        """(1), (2) to (4), and (5), each summed over rows."""
        m = self.method
        at_goal, elsewhere = LOSSES[m.loss]
        states, entering = self.policy.states(rho.observations, rho.goals), self.policy.states(q.observations, q.goals)
        with torch.no_grad():
            later = m.discount * self.value(self.policy.states(rho.next_observations, rho.goals))
            inside = m.discount * self.value(self.policy.states(q.next_observations, q.goals))
            recorded = self.target_score(states, rho.actions).amin(0)
        actions = rho.actions.clone().requires_grad_(m.gradient_penalty > 0)
        scores, advantages = self.score(states, actions), recorded - self.value(states)
        weights = advantage_weights(advantages.detach(), m.temperature, m.advantage_clip)
        losses = {
            "value_loss": expectile_loss(advantages, m.expectile)[0],
            "q_loss": at_goal(self.score(entering, q.actions), inside, m).sum(),
            "rho_loss": elsewhere(scores, later, m).sum(),
            "policy_loss": (weights * self.surprise(states, rho.actions)).sum(),
        }
        if m.gradient_penalty > 0:
            actor: Any = self.policy.actor
            losses["gradient_penalty"] = m.gradient_penalty * slope_penalty(scores, actions, actor.scale)
        return losses

    def surprise(self, states: Float[Tensor, "B SG"], actions: Tensor) -> Float[Tensor, " B"]:
        """- log pi of recorded actions; of a deterministic policy half its squared error, in half widths."""
        actor = self.policy.actor
        if isinstance(actor, DeterministicPolicy):
            return 0.5 * (actor.scale.unit(actor(states)) - actor.scale.unit(actions)).square().sum(-1)
        return -actor.log_likelihood(states, actions)

    def product(self) -> Product:
        return self.policy
