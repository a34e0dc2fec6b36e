"""HILP: a latent space in which distances count steps, and one policy that moves in every direction of it.

Park, Kreiman, Levine: Foundation Policies with Hilbert Representations, ICML 2024, arXiv 2402.15567.

Stage 1. phi_i, i = 1, 2, map a state to R^D, and values of goals are distances of latents:

    V_i(s, g) = - || phi_i(s) - phi_i(g) ||                                                         (1)
    y_i = -1 + discount V'_i(s', g),  0 where s is g;  u = min_i y_i - mean_i V'_i(s, g)
    phi: sum_i mean |eta - 1(u < 0)| (y_i - V_i(s, g))^2                                            (2)

with V' of target copies. Goals are later states of the same episode (geometric) or any state of the data.

Stage 2. Directions z are uniform on a sphere, drawn anew for every sample, and moving along z is rewarded:

    r(s, z, s') = <phi_1(s') - phi_1(s), z>                                                         (3)

The policy pi(a | s, z) learns this by IQL (u = Q'(s, a, z) - V(s, z), nothing terminates):

    V: mean |eta_s - 1(u < 0)| u^2;    Q_i: mean (r + discount_s V(s', z) - Q_i(s, a, z))^2
    pi: - mean min(exp(beta u), clip) log pi(a | s, z)                                              (4)

or by DDPG on successor features F_i(s, z, a) in R^D, with Q = <F, z> and a' = pi(s', z) + clipped noise:

    F_i: mean (phi~ + discount_s F'(s', z, a') - F_i(s, z, a))^2,    F' the member of smaller Q;    pi: - min_i Q_i  (5)

telos.methods.goals.hilp_variants has (5), and the other features that phi may be.

Stage 3. Prompts, without further training:

    a goal g:           z = (phi(g) - phi(s)) / || . ||, anew at each step                          (6)
    rewards r:          z ~ argmin_w mean (r - <phi(s') - phi(s), w>)^2                             (7)
    a demonstration:    z ~ phi(its last state) - phi(its first state)
    planning to g:      repeat: phi(g) <- mean of the k latents phi(w) of recorded states w with the least
                        max(|| phi(s) - phi(w) ||, || phi(w) - phi(g) ||)                           (8)
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from telos.core.errors import TelosError
from telos.core.method import Learner, Method, Metrics, Spec, split
from telos.core.products import Act, Policy, Product
from telos.core.rng import Rng
from telos.core.sources import UniformGoals
from telos.data.goals import GoalSteps
from telos.data.records import Discrete, Record, Transitions
from telos.methods.goals.hilp_variants import FEATURES, Features, ForwardBackward, Seen, SuccessorFeatures
from telos.nets.critics import frozen_copy, polyak_
from telos.nets.normaliser import Normaliser
from telos.nets.normed import NormedMLP
from telos.nets.policies import CategoricalPolicy, DeterministicPolicy, GaussianPolicy, box
from telos.nets.policies import probe_observations as fixed_observations
from telos.ops.latents import goal_values, solved, subgoals, toward
from telos.ops.values import advantage_weights, ensemble_mse, expectile_loss

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

PAPER = {
    "method": "HILP",
    "title": "Foundation Policies with Hilbert Representations",
    "arxiv": "2402.15567",
    "year": 2024,
    "url": "https://arxiv.org/abs/2402.15567",
    "purpose": ["reward", "goal", "demonstration"],
    "product": "Policy",
    "data": "reward-free trajectories",
    "summary": "Learns a latent space whose distances count steps and a policy for each direction in it; goals, "
    "rewards and demonstrations become directions.",
    "claim": "From random walks in four rooms, moving along learned Hilbert directions reaches more goals than moving "
    "along raw coordinates.",
    "paper_claim": {
        "where": "tables on D4RL AntMaze and Kitchen and on ExORL; ablation of planning",
        "text": "One policy trained without rewards is prompted with goals and rewards; it does best of the compared "
        "methods on ExORL and is close to goal-conditioned IQL in mazes, above it with planning.",
        "value": "AntMaze large-diverse 46.0, with planning 64.5, GC-IQL 56.0; ultra-diverse 21.2, 59.2 and 40.8 (read "
        "second-hand)",
        "data": "D4RL AntMaze and Kitchen, states and pixels; ExORL walker, cheetah, quadruped and jaco",
        "model": "MLPs of 3 x 512 with 32 latent dimensions; 2 x 1024 with 50 dimensions for rewards",
        "mechanism": "In rooms joined by doors the straight line is blocked by walls, so that a direction leads to a "
        "goal only if latent distances are numbers of steps: these are known exactly here. The grid is deterministic "
        "and small; pixels, dynamics and latents that cannot hold the distances are not tested.",
    },
    "equations": [
        r"V_i(s,g)=-\left\lVert\phi_i(s)-\phi_i(g)\right\rVert",
        r"y_i=-\mathbb 1[s\ne g]\left(1-\gamma V'_i(s',g)\right),\quad u=\min_{i=1,2}y_i-\frac{1}{2}\sum_i V'_i(s,g)",
        r"\mathcal L_\phi=\sum_{i=1}^{2}\mathbb E\left[|\eta-\mathbb 1[u<0]|\left(y_i-V_i(s,g)\right)^2\right]",
        r"r(s,z,s')=\left\langle\phi_1(s')-\phi_1(s),z\right\rangle,\quad z\sim\mathcal U(S^{D-1})",
        r"\mathcal L_V=\mathbb E\left[|\eta_s-\mathbb 1[u_s<0]|\,u_s^2\right],\quad "
        r"u_s=\min_{i=1,2}Q'_i(s,a,z)-V(s,z)",
        r"\mathcal L_Q=\sum_{i=1}^{2}\mathbb E\left[(Q_i(s,a,z)-r-\gamma_s V(s',z))^2\right]",
        r"\mathcal L_\pi=-\mathbb E\left[\min\left(e^{\beta u_s},w_{\max}\right)\log\pi(a\mid s,z)\right]",
        r"z_g=\frac{\phi(g)-\phi(s)}{\left\lVert\phi(g)-\phi(s)\right\rVert},\quad "
        r"z_r\propto\arg\min_w\mathbb E\left[\left(r-\left\langle\phi(s')-\phi(s),w\right\rangle\right)^2\right]",
    ],
    "deviations": [
        "One file for both released programs: the goal-conditioned one is the default, the zero-shot one is "
        "rl_backend=sf_ddpg with its own constants (at the options). All losses read the parameters from before the "
        "update, and both share one optimiser.",
        "phi, V and Q have GELU and LayerNorm as in the goal-conditioned program, also for sf_ddpg; the policy is the "
        "ReLU network of the other methods, and its mean passes a tanh.",
        "s is g where the two are equal, not where their row numbers are. Nothing else changes: there (1) is constant.",
        "States for planning are drawn once and kept in the product; the code draws them at each step.",
        "The mean latent that cumulant=state subtracts follows by 0.005 an update.",
        "Prompting with a demonstration is ours: its displacement is a direction. The hierarchy over directions (as "
        "with OPAL) is not here.",
        "Of the other features that were compared raw states, random, Laplacian, contrastive, forward-dynamics and "
        "forward-backward ones are here; inverse dynamics, auto-encoders and low-rank ones are not. They are not "
        "scaled to one length, and the contrastive denominator holds the row's own goal too.",
    ],
    "traps": [
        "Distances saturate at 1 / (1 - discount): goals further away look alike, and planning mends that.",
        "Distances are symmetric: worlds with one-way passages break them.",
        "The difference of latents is what reaches goals; the zero-shot program's default is cumulant=state, with "
        "direction_norm=root.",
        "Rewards that depend on where one is, and not on the way, are only followed as far as one direction goes.",
        "Goals must be states that can be met: with goal_columns, columns that a state is recognised by.",
        "Under compilation the released code reused one batch of directions for the whole run; its branch 'reproduce' "
        "keeps that, and the paper's figures come from it.",
    ],
    "terms": ["unsupervised RL", "skill discovery", "METRA", "temporal distance", "pretraining", "zero-shot transfer"],
    "at_scale": "telos fit hilp --data minari:D4RL/antmaze/large-diverse-v1 --steps 1000000 --device cuda",
    "usage": [
        "telos fit hilp --data play.npz --hidden 64 64 --phi-hidden 64 64 --latent 8 --batch-size 128 --steps 100 "
        "--out runs/hilp",
        "import torch",
        'play = telos.load("play.npz")',
        "policy = telos.HILP(hidden=(64, 64), phi_hidden=(64, 64), latent=8, batch_size=128).fit(play, steps=100)",
        "action = policy.act([0.2, 0.5], goal=[0.9, 0.3]).action  # the direction is taken anew at each step",
        "to_the_right = play.next_observations[:, 0] - play.observations[:, 0]",
        "action = policy.prompt_reward(play, to_the_right).act([0.2, 0.5]).action",
        "action = policy.prompt_demonstration(play.observations[:20]).act([0.2, 0.5]).action",
        "planner = policy.plan(rounds=3, best=10).prompt_goal([0.9, 0.3])",
        "print(policy.distances([[0.2, 0.5]], [0.9, 0.3]), planner.act([0.2, 0.5]).action)",
        'planner.save("my-policy")',
    ],
}


@dataclass(frozen=True)
class HILP(Method):
    """A foundation policy from trajectories without rewards, for continuous and discrete actions."""

    data = Transitions

    latent: int = 32
    """Dimensions of the latent space, >= 1. Paper: 32; zero-shot RL 50."""
    representation: Literal[
        "hilbert", "laplacian", "contrastive", "forward", "forward_backward", "random", "identity"
    ] = "hilbert"
    """What phi is: (2); or for comparison what hilp_variants has (forward_backward: with sf_ddpg), random features, or
    the state itself. Paper: hilbert."""
    rl_backend: Literal["iql", "sf_ddpg"] = "iql"
    """Which offline RL learns the policy: (4), or (5) for continuous actions. Paper: iql; zero-shot RL sf_ddpg."""
    cumulant: Literal["diff", "state"] = "diff"
    """phi~ of the reward <phi~, z>: phi(s') - phi(s), or phi(s') less its mean; not read by forward_backward. Paper:
    diff; its repository: state."""
    direction_norm: Literal["one", "root"] = "one"
    """Length of the directions that the policy sees: 1 or sqrt(latent). Paper: one; zero-shot RL root."""
    discount: float = 0.99
    """Of distances, 0 to below 1; 1 / (1 - discount) is the longest. Paper: 0.99; zero-shot RL 0.96 to 0.98."""
    expectile: float = 0.95
    """0.5: distances of the recorded behaviour; towards 1: shortest ways. Paper: 0.95; pixels 0.7, zero-shot RL 0.5."""
    skill_discount: float = 0.99
    """Of the reward along directions, 0 to 1. Paper: 0.99; zero-shot RL 0.98."""
    skill_expectile: float = 0.9
    """Of IQL's value, 0.5 to below 1. Paper: 0.9; pixels 0.7."""
    beta: float = 10.0
    """Inverse temperature of the advantage weights, >= 0. Paper: 10."""
    advantage_clip: float = 100.0
    """Upper bound of the weights. Paper: 100."""
    q_loss: bool = False
    """With sf_ddpg: regress <F, z> in place of F. Paper: off for walker and cheetah, on for quadruped and jaco."""
    mix: float = 0.5
    """With sf_ddpg: share of directions that point at a state of the data, 0 to 1. Paper: 0.5."""
    tau: float = 0.005
    """Step of all target networks towards the trained ones, 0 to 1. Paper: 0.005; successor features 0.01."""
    future_goals: float = 0.625
    """Share of goals from the step's own future; the others are any states. Paper: 0.625."""
    goal_columns: tuple[int, ...] | None = None
    """Columns of an observation that phi reads and that make a goal; None for all. Paper: all."""
    landmarks: int = 50_000
    """States that the product keeps for planning; fewer where the data have fewer. Paper: 50,000."""
    normalise: bool = False
    """Standardise observations with the data's mean and std + 0.001. Paper: off."""
    phi_hidden: tuple[int, ...] = (512, 512, 512)
    """Widths of the hidden layers of phi; none make it linear. Paper: 3 of 512."""
    hidden: tuple[int, ...] = (512, 512, 512)
    """Widths of the hidden layers of values and policy. Paper: 3 of 512; successor features 2 of 1024."""
    learning_rate: float = 3e-4
    """Of Adam. Paper: 3e-4; zero-shot RL 1e-4."""
    phi_rate: float = 1.0
    """Factor on the learning rate of phi. Paper: 1; zero-shot RL 5."""
    batch_size: int = 1024
    """Steps an update. Paper: 1024; pixels 256."""

    def prepare(self, spec: Spec) -> Spec:
        if self.rl_backend == "sf_ddpg" or not isinstance(getattr(spec.data, "action_space", None), Discrete):
            box(spec.data, "HILP")
        ranges = {
            "discount": 0 <= self.discount < 1, "expectile": 0 < self.expectile < 1,
            "skill_expectile": 0 < self.skill_expectile < 1, "future_goals": 0 <= self.future_goals <= 1,
            "mix": 0 <= self.mix <= 1, "latent": self.latent >= 1, "landmarks": self.landmarks >= 1,
        }  # fmt: skip
        for name, fine in ranges.items():
            if not fine:
                raise TelosError(f"HILP: option {name} is out of range", got=str(getattr(self, name)))
        if self.representation == "forward_backward" and self.rl_backend != "sf_ddpg":
            raise TelosError("HILP: forward_backward features are learnt by sf_ddpg", got=self.rl_backend)
        columns, size = self.goal_columns, spec.data.observations.shape[1]
        if columns is not None and (not columns or not all(0 <= c < size for c in columns)):
            raise TelosError(
                "HILP: option goal_columns is wrong", expected=f"column numbers 0 to {size - 1}", got=str(columns)
            )
        return spec.replace(data=spec.data.to(spec.device))

    def source(self, spec: Spec) -> UniformGoals:
        wanted = FEATURES[self.representation].future if self.representation in FEATURES else None
        future = self.future_goals if wanted is None else wanted
        goals = {"geometric": future, "random": 1 - future}
        return UniformGoals(spec.data, self.batch_size, goals, self.discount, self.goal_columns)

    def learner(self, spec: Spec, rng: Rng) -> HILPLearner:
        return HILPLearner(self, spec.data, rng)


def hilbert_loss(
    latents: Float[Tensor, "2 B D"],
    goals: Float[Tensor, "2 B D"],
    targets: tuple[Float[Tensor, "2 B D"], Float[Tensor, "2 B D"], Float[Tensor, "2 B D"]],
    arrived: Bool[Tensor, " B"],
    discount: float,
    expectile: float,
) -> tuple[Float[Tensor, ""], int]:
    """(2) summed over rows and members, and the number of rows.

    Args:
        latents, goals: of the trained phi, which gradients reach.
        targets: of the target copies, for states, next states and goals.
        arrived: the state is the goal.
    """
    here, nexts, ends = targets
    wanted = torch.where(arrived, 0.0, -1 + discount * goal_values(nexts, ends)).detach()
    advantages = wanted.amin(0) - goal_values(here, ends).mean(0)
    weights = torch.where(advantages < 0, 1 - expectile, expectile).detach()
    return (weights * (wanted - goal_values(latents, goals)).square()).sum(), len(arrived)


@dataclass(frozen=True)
class Prompted(Record):
    """A batch of steps with a direction each, (B, D), and standard normal noise, (B, 2, A), for actions; every part of
    it knows the goals of the whole batch, `every`."""

    steps: GoalSteps
    directions: Tensor
    noise: Tensor
    every: tuple[Tensor]


class Hilbert(Features):
    """(2)."""

    def forward(self, phi: NormedMLP, target: NormedMLP, seen: Seen) -> Float[Tensor, ""]:
        m, (here, nexts, goals) = self.method, (seen.here, seen.nexts, seen.goals)
        targets, arrived = (target(here), target(nexts), target(goals)), (here == goals).all(-1)
        return hilbert_loss(phi(here), phi(goals), targets, arrived, m.discount, m.expectile)[0]


class ImplicitQ(nn.Module):
    """IQL for every direction: (4)."""

    actor = "gaussian"

    def __init__(self, method: HILP, size: int, latent: int, actions: int, rng: Rng):
        super().__init__()
        self.method = method
        self.critic = NormedMLP(2, (size + latent + actions, *method.hidden, 1), rng.at("critic").torch())
        self.value = NormedMLP(1, (size + latent, *method.hidden, 1), rng.at("value").torch())
        self.target = frozen_copy(self.critic)

    def losses(
        self, policy: HILPPolicy, part: Prompted, cumulants: Float[Tensor, "B D"], target: NormedMLP
    ) -> dict[str, Tensor]:
        """(4), each summed over rows."""
        m, z = self.method, part.directions
        states, nexts = policy.prompted(part.steps.observations, z), policy.prompted(part.steps.next_observations, z)
        pairs = torch.cat([states, policy.encoded(part.steps.actions)], -1)
        with torch.no_grad():
            wanted = (cumulants * z).sum(-1) + m.skill_discount * self.value(nexts)[0, :, 0]
            recorded = self.target(pairs)[..., 0].amin(0)
        advantages = recorded - self.value(states)[0, :, 0]
        weights = advantage_weights(advantages.detach(), m.beta, m.advantage_clip)
        assert not isinstance(policy.actor, DeterministicPolicy)
        return {
            "value_loss": expectile_loss(advantages, m.skill_expectile)[0],
            "critic_loss": ensemble_mse(self.critic(pairs)[..., 0], wanted)[0],
            "policy_loss": -(weights * policy.actor.log_likelihood(states, part.steps.actions)).sum(),
        }


BACKENDS: dict[str, type[ImplicitQ | SuccessorFeatures | ForwardBackward]] = {
    "iql": ImplicitQ, "sf_ddpg": SuccessorFeatures, "forward_backward": ForwardBackward,
}  # fmt: skip


class HILPLearner(Learner):
    """phi with its target copy, the networks of the RL backend, and the policy, under one optimiser."""

    def __init__(self, method: HILP, data: Transitions, rng: Rng):
        self.method = method
        size, space, device = data.observations.shape[1], data.action_space, data.observations.device
        columns = list(range(size)) if method.goal_columns is None else list(method.goal_columns)
        identity = method.representation == "identity"
        latent = len(columns) if identity else method.latent
        generator = rng.at("landmarks").torch(device)
        rows = torch.randperm(len(data), generator=generator, device=device)[: method.landmarks]
        measured = method.representation == "forward_backward"
        backend = BACKENDS[method.representation if measured else method.rl_backend]
        self.policy = HILPPolicy(
            size, columns, latent, "categorical" if isinstance(space, Discrete) else backend.actor,
            space.size if isinstance(space, Discrete) else [list(space.low), list(space.high)],
            () if identity else method.phi_hidden, method.hidden, "measure" if measured else method.cumulant,
            latent**0.5 if method.direction_norm == "root" else 1.0, len(rows), rng=rng.at("policy"),
        )  # fmt: skip
        self.policy.to(device)
        self.policy.landmarks.copy_(data.next_observations[rows][:, columns])
        if method.normalise:
            self.policy.normalise(Normaliser.fitted(data.observations))
        if identity:
            with torch.no_grad():
                self.policy.phi.weights[0].copy_(torch.eye(latent))
                self.policy.phi.biases[0].zero_()
        kind = FEATURES.get(method.representation, Hilbert)
        self.features = kind(method, len(columns), space.size, rng.at("features")).to(device)
        self.policy.phi.requires_grad_(kind.trained or measured)
        self.skills = backend(method, size, latent, space.size, rng.at("skills")).to(device)
        self.target = frozen_copy(self.policy.phi)
        modules = self.policy.actor, self.skills, self.features
        others = [p for module in modules for p in module.parameters() if p.requires_grad]
        phi = {"params": [*self.policy.phi.parameters()], "lr": method.phi_rate * method.learning_rate}
        self.optimiser = torch.optim.Adam([{"params": others}, phi], method.learning_rate, fused=True)

    def update(self, batch: GoalSteps, rng: Rng, micro: int = 1) -> Metrics:
        metrics: Metrics = {}
        self.optimiser.zero_grad()
        for part in split(self.prompted(batch, rng), micro):
            losses = self.losses(part)
            (sum(losses.values(), torch.zeros(())) / len(batch)).backward()
            for name, loss in losses.items():
                metrics[name] = loss.detach() / len(batch) + metrics.get(name, 0.0)
        self.optimiser.step()
        polyak_(self.target, self.policy.phi, self.method.tau)
        polyak_(self.skills.target, self.skills.critic, self.method.tau)
        return metrics

    @torch.no_grad()
    def prompted(self, batch: GoalSteps, rng: Rng) -> Prompted:
        """Draws for the whole batch, so that its parts see what they would see together."""
        m, p, rows, device = self.method, self.policy, len(batch), batch.observations.device
        generator = rng.at("directions").torch(device)
        directions = toward(torch.randn(rows, p.latent, generator=generator, device=device))
        nexts = p.latents(batch.next_observations)
        if m.rl_backend == "sf_ddpg":
            order = torch.randperm(rows, generator=generator, device=device)
            covariance = nexts.T @ nexts / rows + 1e-6 * torch.eye(p.latent, device=device)
            wanted = toward(nexts if p.cumulant == "measure" else torch.linalg.solve(covariance, nexts.T).T)
            mixed = torch.rand(rows, 1, generator=generator, device=device) < m.mix
            directions = torch.where(mixed, wanted[order], directions)
        if p.cumulant == "state":
            p.centre.lerp_(nexts.mean(0), 0.005)
        size = 1 if batch.actions.dim() == 1 else batch.actions.shape[1]
        noise = torch.randn(rows, 2, size, generator=generator, device=device)
        return Prompted(batch, p.length * directions, noise, (batch.goals,))

    def losses(self, part: Prompted) -> dict[str, Float[Tensor, ""]]:
        """phi's loss, and (4) or (5), each summed over rows."""
        p, steps = self.policy, part.steps
        cumulants = p.cumulants(steps.observations, steps.next_observations)
        losses = self.skills.losses(p, part, cumulants, self.target)
        if self.features.trained:
            seen = Seen(
                p.chosen(steps.observations), p.chosen(steps.next_observations), p.scaled(steps.goals),
                p.encoded(steps.actions), p.scaled(part.every[0]),
            )  # fmt: skip
            losses["phi_loss"] = self.features(p.phi, self.target, seen)
        return losses

    def product(self) -> Product:
        return self.policy


Prompt = dict[str, Any]
"""{"kind": "goal", "value": (G,) raw goal} or {"kind": "direction", "value": (D,) of length 1}."""


class HILPPolicy(Policy):
    """phi, and a policy for every direction. It acts on `goal`, or on the prompt that one of the `prompt_*` set.

    Args:
        observation_size: O.
        columns: which columns of an observation phi reads: a goal's.
        latent: D.
        kind: of the actor: "gaussian", "deterministic" or "categorical".
        space: [low (A,), high (A,)], or the number of discrete actions.
        phi_hidden, hidden: widths of the hidden layers of phi and of the actor.
        cumulant: "diff" or "state"; "measure": phi is the B of forward-backward representations.
        length: of the directions that the actor sees.
        landmarks: how many states are kept for planning.
        prompt: what it acts on without a goal; see `Prompt`.
        planning: {"rounds": of planning, "best": states averaged}; None acts without.
        rng: draws the initial weights; without it they are zeros, to be loaded.
    """

    centre: Tensor
    landmarks: Tensor

    def __init__(
        self, observation_size: int, columns: Sequence[int], latent: int, kind: str, space: Any,
        phi_hidden: Sequence[int], hidden: Sequence[int], cumulant: str, length: float, landmarks: int,
        prompt: Prompt | None = None, planning: Mapping[str, int] | None = None, rng: Rng | None = None,
    ):  # fmt: skip
        super().__init__()
        self.columns, self.latent, self.cumulant, self.length = list(columns), latent, cumulant, length
        self.phi_hidden, self.hidden, self.kind_of_actor, self.space = list(phi_hidden), list(hidden), kind, space
        self.prompt, self.planning = prompt, dict(planning) if planning else None
        self.observation_size, inputs = observation_size, observation_size + latent
        weights = rng.at("actor").torch() if rng else None
        if kind == "categorical":
            self.actions: int = space
            self.actor = CategoricalPolicy(inputs, space, hidden, weights)
        else:
            self.low, self.high = tuple(space[0]), tuple(space[1])
            make = GaussianPolicy if kind == "gaussian" else DeterministicPolicy
            self.actor = make(inputs, self.low, self.high, hidden, rng=weights)
        weights = rng.at("phi").torch() if rng else None
        self.phi = NormedMLP(2, (len(self.columns), *phi_hidden, latent), weights)
        self.register_buffer("centre", torch.zeros(latent))
        self.register_buffer("landmarks", torch.zeros(landmarks, len(self.columns)))
        self.known: Tensor | None = None

    def normalise(self, observations: Normaliser) -> None:
        """Sets the constants that observations are standardised with."""
        constants = self.actor.normaliser
        constants.mean[: self.observation_size] = observations.mean
        constants.std[: self.observation_size] = observations.std

    # What learning needs: observations as the networks see them.

    def prompted(self, observations: Float[Tensor, "B O"], directions: Float[Tensor, "B D"]) -> Float[Tensor, "B OD"]:
        """What the actor sees."""
        return self.actor.normaliser(torch.cat([observations, directions], -1))

    def scaled(self, goals: Float[Tensor, "*B G"]) -> Float[Tensor, "*B G"]:
        """Raw goals as phi sees them."""
        constants = self.actor.normaliser
        return (goals - constants.mean[self.columns]) / constants.std[self.columns]

    def chosen(self, observations: Float[Tensor, "*B O"]) -> Float[Tensor, "*B G"]:
        """Raw observations as phi sees them."""
        return self.scaled(observations[..., self.columns])

    def encoded(self, actions: Tensor) -> Float[Tensor, "B A"]:
        """Actions as critics see them: one of K as K numbers."""
        if self.kind_of_actor == "categorical":
            return torch.nn.functional.one_hot(actions, self.actions).float()
        return actions

    def cumulants(self, observations: Float[Tensor, "B O"], nexts: Float[Tensor, "B O"]) -> Float[Tensor, "B D"]:
        """phi~ of steps: the reward along z is its product with z."""
        after = self.latents(nexts)
        return after - self.latents(observations) if self.cumulant == "diff" else after - self.centre

    # What a user asks for.

    @torch.no_grad()
    def latents(self, observations: Any) -> Float[Tensor, "B D"]:
        """phi of raw observations (B, O)."""
        return self.phi(self.chosen(self.raw(observations, self.observation_size, "observations")))[0]

    @torch.no_grad()
    def goal_latents(self, goals: Any) -> Float[Tensor, "B D"]:
        """phi of raw goals (B, G) or (G,), the observation's chosen columns."""
        return self.phi(self.scaled(self.raw(goals, len(self.columns), "the goal")))[0]

    def distances(self, observations: Any, goals: Any) -> Float[Tensor, " B"]:
        """About how many steps it takes from raw observations (B, O) to goals (B, G) or (G,), discounted."""
        here = self.latents(observations)
        return -goal_values(here, self.goal_latents(goals).expand_as(here))

    def prompt_goal(self, goal: Any) -> HILPPolicy:
        """This policy on its way to a raw goal (G,), wherever it is; it shares its weights."""
        (value,) = self.raw(goal, len(self.columns), "the goal").tolist()
        return self.changed(prompt={"kind": "goal", "value": value})

    def prompt_direction(self, direction: Any) -> HILPPolicy:
        """This policy along a latent direction (D,) of any length above 0."""
        (value,) = toward(self.raw(direction, self.latent, "the direction"))
        if not value.any():
            raise TelosError("the direction is zero", expected="a latent that says where to go")
        return self.changed(prompt={"kind": "direction", "value": value.tolist()})

    def prompt_reward(self, data: Transitions, rewards: Any = None, rows: int = 10_000) -> HILPPolicy:
        """This policy along the direction that explains rewards best, (7).

        Args:
            rewards: (N,) of the steps in `data`; by default the recorded ones.
            rows: how many steps are read, evenly spaced.

        Raises:
            TelosError: another number of rewards, or rewards that no direction explains (all 0).
        """
        given = torch.as_tensor(data.rewards if rewards is None else rewards, dtype=torch.float32)
        if given.shape != (len(data),) or not given.any():
            raise TelosError(
                "the rewards cannot be a prompt", got=f"shape {tuple(given.shape)}, largest {given.abs().max():g}",
                expected=f"({len(data)},), one for each step of the data, not all of them 0",
            )  # fmt: skip
        kept = torch.linspace(0, len(data) - 1, min(rows, len(data))).long()
        features = self.cumulants(data.observations[kept], data.next_observations[kept])
        told = given[kept].to(features.device)
        return self.prompt_direction(told @ features if self.cumulant == "measure" else solved(features, told))

    def prompt_demonstration(self, observations: Any) -> HILPPolicy:
        """This policy along the displacement of a demonstration, raw observations (T, O), from first to last; with
        forward-backward features, to where it has been."""
        latents = self.latents(observations)
        return self.prompt_direction(latents.sum(0) if self.cumulant == "measure" else latents[-1] - latents[0])

    def plan(self, rounds: int = 3, best: int = 50) -> HILPPolicy:
        """This policy with planning, (8): goals are approached by way of recorded states.

        Args:
            rounds: how often the way is halved, >= 0; 0 acts without planning.
            best: recorded states that a sub-goal averages, >= 1.
        """
        if rounds < 0 or best < 1:
            raise TelosError("planning is out of range", expected="rounds >= 0, best >= 1", got=f"{rounds}, {best}")
        return self.changed(planning={"rounds": rounds, "best": best} if rounds else None)

    def changed(self, **changes: Any) -> HILPPolicy:
        """A copy that shares weights."""
        other = copy.copy(self)
        other.known = None
        for name, value in changes.items():
            setattr(other, name, value)
        return other

    def raw(self, values: Any, size: int, what: str) -> Float[Tensor, "B n"]:
        """Numbers as a batch of rows of `size`, where the policy lives."""
        tensor = torch.as_tensor(values, dtype=torch.float32, device=self.centre.device)
        rows = tensor[None] if tensor.dim() == 1 else tensor
        if rows.dim() != 2 or rows.shape[1] != size or not rows.isfinite().all():
            raise TelosError(
                f"{what}: the shape does not fit the policy, or numbers are not finite", got=str(tuple(tensor.shape)),
                expected=f"({size},) or (B, {size})" + (f": columns {self.columns}" if what == "the goal" else ""),
            )  # fmt: skip
        return rows

    def directions(self, observations: Float[Tensor, "B O"], goal: Any = None) -> Float[Tensor, "B D"]:
        """Unit directions towards a goal, else of the prompt.

        Raises:
            TelosError: neither goal nor prompt, or a goal that does not fit.
        """
        if goal is None and self.prompt is None:
            raise TelosError(
                "the policy needs a goal or a prompt", fix="pass goal=..., or use prompt_goal, prompt_reward, ..."
            )
        if goal is None and self.prompt and self.prompt["kind"] == "direction":
            return self.raw(self.prompt["value"], self.latent, "the direction").expand(len(observations), -1)
        goals = self.goal_latents(self.prompt["value"] if goal is None and self.prompt else goal)
        if len(goals) not in (1, len(observations)):
            raise TelosError("goals do not fit", expected=f"1 or {len(observations)}", got=str(len(goals)))
        here, goals = self.latents(observations), goals.expand(len(observations), -1)
        if self.planning:
            known = self.goal_latents(self.landmarks) if self.known is None else self.known
            goals, self.known = subgoals(here, goals, known, **self.planning), known
        return toward(goals if self.cumulant == "measure" else goals - here)

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
        """Actions (B, A) or (B,), or one for one observation; the actor's mean or mode unless it explores.

        Args:
            goal: raw, (G,) or (B, G): chosen columns of an observation; without it the prompt holds.
        """
        return self.actor.act(self.seen(obs, goal), mask=mask, rng=rng, explore=explore)

    @torch.no_grad()
    def log_prob(self, obs: Any, action: Any, *, goal: Any = None, mask: Any = None) -> Float[Tensor, "*B"]:
        """(B,) log-probabilities of given actions on the way to the goal, or under the prompt."""
        return self.actor.log_prob(self.seen(obs, goal), action, mask=mask)

    def seen(self, obs: Any, goal: Any) -> Float[Tensor, "*B OD"]:
        """Raw observations (B, O) or (O,) with their directions."""
        batch = self.raw(obs, self.observation_size, "observations")
        seen = torch.cat([batch, self.length * self.directions(batch, goal)], -1)
        return seen[0] if torch.as_tensor(obs).dim() == 1 else seen

    def config(self) -> dict[str, Any]:
        return {
            "observation_size": self.observation_size, "columns": self.columns, "latent": self.latent,
            "kind": self.kind_of_actor, "space": self.space, "phi_hidden": self.phi_hidden, "hidden": self.hidden,
            "cumulant": self.cumulant, "length": self.length, "landmarks": len(self.landmarks),
            "prompt": self.prompt, "planning": self.planning,
        }  # fmt: skip

    def probe(self) -> dict[str, Tensor]:
        """Latents of both heads and what the actor computes, at fixed observations and directions."""
        seen = fixed_observations(self.actor.normaliser)
        outputs = self.actor(self.actor.normaliser(seen))
        parts = outputs if isinstance(outputs, tuple) else (outputs,)
        return {
            "seen": seen, "latents": self.phi(self.chosen(seen[:, : self.observation_size])),
            "kept": torch.cat([self.landmarks.mean(0), self.centre]),
            **{f"output_{i}": part for i, part in enumerate(parts)},
        }  # fmt: skip
