"""PRDC: TD3 whose policy is pulled to the nearest state-action pair of the whole data set.

Ran, Li, Zhang, Zhang, Yu: Policy Regularization with Dataset Constraint for Offline Reinforcement Learning,
ICML 2023, arXiv 2306.06569.

The distance of a pair to the data, with states normalised and weighted by beta:

    d(s, a) = min over (s', a') in D of || (beta s, a) - (beta s', a') ||                           (1)

The actor minimises, every `policy_every` updates, with lambda = alpha / mean |Q_1(s, pi(s))| held constant,

    - lambda mean Q_1(s, pi(s)) + mean (pi(s) - a_nn)^2                                             (2)

where a_nn is the action of the row that attains (1) at (s, pi(s)). Critics: TD3's, every update,

    r + discount * min_i Q_i'(s', clip(pi'(s') + clip(noise)))   for both heads, squared error      (3)

Differs from the paper: (2) is the official code's squared distance of the action part (mean over dimensions), where
the paper writes the distance itself; the state part of (1) has no gradient. For k > 1 neighbours the mean of their
actions is used (the code's broadcasting allows k = 1 only).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from scipy.spatial import KDTree
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.method import Learner, Method, Metrics, Spec, split
from telos.core.products import Product
from telos.core.rng import Rng
from telos.core.sources import Uniform
from telos.data.records import Transitions
from telos.nets.critics import EnsembleQ, frozen_copy, polyak_
from telos.nets.normaliser import Normaliser
from telos.nets.policies import DeterministicPolicy, box
from telos.ops.neighbours import NearestRows
from telos.ops.values import ensemble_mse, smoothed_actions, td_target

if TYPE_CHECKING:
    from jaxtyping import Float, Int

PAPER = {
    "method": "PRDC",
    "title": "Policy Regularization with Dataset Constraint for Offline Reinforcement Learning",
    "arxiv": "2306.06569",
    "year": 2023,
    "url": "https://arxiv.org/abs/2306.06569",
    "purpose": ["reward"],
    "product": "Policy",
    "data": "offline transitions",
    "summary": "TD3 whose policy is pulled to the nearest state-action pair of the whole data set, so that it may use "
    "good actions that were recorded at neighbouring states.",
    "claim": "A constraint to the nearest pair of the data set escapes wrong recorded actions that a constraint to "
    "each state's own action copies, and still keeps away from actions that nobody recorded.",
    "paper_claim": {
        "where": "didactic Lineworld; D4RL tables",
        "text": "Only PRDC solves the Lineworld whose states carry a wrong action; best average among the compared "
        "methods on D4RL Gym and on AntMaze.",
        "value": "Lineworld: solved or not, no number. D4RL normalised scores: hopper-medium-replay 100.1, "
        "walker2d-medium-replay 92.0; halfcheetah-medium 63.5, antmaze-umaze 98.8 (the last two unverified)",
        "data": "Lineworld, a toy of one dimension; D4RL v2 HalfCheetah, Hopper, Walker2d and AntMaze",
        "model": "actor and critics with two hidden layers of 256",
        "mechanism": "In every other cell of our line the only recorded action leads the wrong way, while neighbouring "
        "cells show the right one, and actions outside the data crash. So a pull to a state's own action, a pull to "
        "the nearest pair and no pull at all end in different places. Whether scores on D4RL rise is not tested.",
    },
    "equations": [
        r"a'=\operatorname{clip}\left(\pi'(s')+\operatorname{clip}(\epsilon,-c,c),a_{\min},a_{\max}\right),\quad"
        r"\epsilon\sim\mathcal N(0,\sigma^2)",
        r"y=r+\gamma\,\mathbb 1[s'\text{ not terminal}]\,\min_{i=1,2}Q'_i(s',a')",
        r"\mathcal L_Q=\sum_{i=1}^{2}\mathbb E\left[(Q_i(s,a)-y)^2\right]",
        r"d^\beta_{\mathcal D}(s,a)=\min_{(\hat s,\hat a)\in\mathcal D}"
        r"\left\lVert(\beta s)\oplus a-(\beta\hat s)\oplus\hat a\right\rVert_2",
        r"a_{\mathrm{nn}}=\hat a\text{ of the pair that attains }d^\beta_{\mathcal D}(s,\pi(s))",
        r"\mathcal L_\pi=-\lambda\,\mathbb E\left[Q_1(s,\pi(s))\right]"
        r"+\mathbb E\left[(\pi(s)-a_{\mathrm{nn}})^2\right],\quad"
        r"\lambda=\frac{\alpha}{\mathbb E\left[|Q_1(s,\pi(s))|\right]}",
        r"Q'_i\leftarrow\tau Q_i+(1-\tau)Q'_i,\quad\pi'\leftarrow\tau\pi+(1-\tau)\pi'",
    ],
    "deviations": [
        "The penalty is squared and on the action part only, as in the official code; the paper writes the distance.",
        "For k > 1 the mean of the neighbours' actions; the official code is usable with k = 1 only.",
        "search='auto' takes the KD-tree on a CPU up to 12 dimensions, else comparison; both find the same rows.",
    ],
    "traps": [
        "States are normalised before the search is built, and the policy carries the same statistics.",
        "beta is relative to actions in [-1, 1]: with other bounds choose it accordingly or set rescale_actions.",
        "Rows at equal distance: which one is the neighbour is arbitrary.",
        "A KD-tree degrades to comparison with every row above some 20 dimensions.",
    ],
    "terms": [
        "batch RL",
        "nearest neighbour",
        "out-of-distribution actions",
        "overestimation",
        "behaviour regularisation",
        "MuJoCo",
        "continuous control",
    ],
    "at_scale": "telos fit prdc --data minari:mujoco/halfcheetah/medium-v0 --alpha 40 --steps 1000000 --device cuda",
    "usage": [
        "telos fit prdc --data transitions.npz --steps 100 --out runs/prdc",
        "telos eval runs/prdc --env Pendulum-v1 --episodes 2",
        'data = telos.load("transitions.npz")',
        "policy = telos.PRDC(beta=2.0).fit(data, steps=50)",
        'print(telos.evaluate(policy, "Pendulum-v1", episodes=2))',
        'policy.save("my-policy")',
    ],
}


@dataclass(frozen=True)
class PRDC(Method):
    """Offline RL for continuous actions: TD3 with a penalty on the distance to the nearest recorded pair."""

    data = Transitions

    alpha: float = 2.5
    """Weight of the value against the penalty, > 0. Paper: 2.5 (Hopper, Walker2d), 40 (HalfCheetah), 7.5 (AntMaze)."""
    beta: float = 2.0
    """Weight of normalised states in the search, >= 0: 0 any recorded action will do, large as TD3+BC. Paper: 2;
    AntMaze 7.5."""
    k: int = 1
    """Neighbours whose mean action is the anchor, >= 1. Paper: 1."""
    regulariser: Literal["dataset", "bc", "none"] = "dataset"
    """Towards what the policy is pulled: the nearest pair of the data set, the action recorded at the state
    (TD3+BC), or nothing. Paper: dataset."""
    search: Literal["auto", "kdtree", "brute", "faiss"] = "auto"
    """How neighbours are found: a KD-tree on the CPU, comparison with all rows on the device, or FAISS; auto is the
    tree on a CPU up to 12 dimensions, else comparison. Paper: KD-tree."""
    rescale_actions: bool = False
    """Measure action distances with every dimension scaled to [-1, 1]; without it in raw units. Repository: off."""
    discount: float = 0.99
    """Discount of the next step's value, 0 to 1. Paper: 0.99."""
    tau: float = 0.005
    """Step of the target networks towards the trained ones, 0 to 1. Paper: 0.005."""
    policy_noise: float = 0.2
    """Std of the noise on target actions, in half widths of the action range. Paper: 0.2."""
    noise_clip: float = 0.5
    """Bound of that noise, same units. Paper: 0.5."""
    policy_every: int = 2
    """Critic updates to one update of the policy and the targets, >= 1. Paper: 2."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this. Paper: 10000 for AntMaze."""
    reward_shift: float = 0.0
    """Then this is added. Paper: -1 for AntMaze."""
    normalise: bool = True
    """Standardise observations with the data's mean and std + 0.001. Paper: on."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers of policy and critics. Paper: 256, 256."""
    learning_rate: float = 3e-4
    """Of Adam, for policy and critics. Paper: 3e-4."""
    batch_size: int = 256
    """Transitions an update. Paper: 256."""

    def prepare(self, spec: Spec) -> Spec:
        box(spec.data, "PRDC")
        data: Transitions = spec.data.to(spec.device)
        if not 1 <= self.k <= len(data):
            raise TelosError("PRDC: option k is out of range", expected=f"1 to {len(data)} (rows)", got=str(self.k))
        if self.beta < 0 or self.alpha <= 0:
            raise TelosError(
                "PRDC: beta must not be negative and alpha must be positive",
                got=f"beta={self.beta}, alpha={self.alpha}",
            )
        return spec.replace(data=data)

    def source(self, spec: Spec) -> Uniform:
        return Uniform(spec.data, self.batch_size)

    def learner(self, spec: Spec, rng: Rng) -> PRDCLearner:
        return PRDCLearner(self, spec.data, rng)


# The search for (1). Each builder takes the rows (N, D) and returns a function: keys (B, D), k -> indices (B, k).
Search = Callable[["Float[Tensor, 'B D']", int], "Int[Tensor, 'B k']"]


def kdtree_search(rows: Float[Tensor, "N D"]) -> Search:
    """scipy's tree in float64, on as many threads as torch's; `balanced_tree` off makes it quick to build."""
    options: dict[str, Any] = {"leafsize": 32, "balanced_tree": False, "compact_nodes": False}
    data = rows.to("cpu", torch.float64, copy=True).numpy()
    # With the rows in the order of a tree, those of a leaf lie side by side in memory; by column needs no second copy.
    order = KDTree(data, **options).indices.astype("int32")
    for column in data.T:
        column[:] = column[order]
    tree = KDTree(data, **options)

    def search(keys: Float[Tensor, "B D"], k: int) -> Int[Tensor, "B k"]:
        _, place = tree.query(keys.cpu().double().numpy(), k=k, workers=torch.get_num_threads())
        return torch.as_tensor(order[place], dtype=torch.int64, device=keys.device).view(len(keys), k)

    return search


def faiss_search(rows: Float[Tensor, "N D"]) -> Search:
    """An exact flat index of FAISS."""
    try:
        import faiss
    except ImportError as error:
        raise TelosError(
            "search='faiss' needs the package faiss", got=str(error), fix="install faiss-cpu, or use search='brute'"
        ) from error
    index = faiss.IndexFlatL2(rows.shape[1])
    index.add(rows.cpu().numpy())
    return lambda keys, k: torch.as_tensor(index.search(keys.cpu().numpy(), k)[1], device=keys.device)


def auto_search(rows: Float[Tensor, "N D"]) -> Search:
    """The tree where it pays: in few dimensions, on a CPU."""
    return kdtree_search(rows) if rows.device.type == "cpu" and rows.shape[1] <= 12 else NearestRows(rows)


SEARCHES = {"auto": auto_search, "kdtree": kdtree_search, "brute": NearestRows, "faiss": faiss_search}


class DatasetAnchor:
    """a_nn of (2): the mean action of the k recorded pairs nearest to (states, actions).

    Args:
        states: (N, O) normalised observations of the data; actions: (N, A) recorded at them.
        unit: (A,) the length that counts as 1 in each action dimension.
    """

    def __init__(
        self,
        states: Float[Tensor, "N O"],
        actions: Float[Tensor, "N A"],
        beta: float,
        k: int,
        unit: Float[Tensor, " A"],
        search: str = "auto",
    ):
        self.actions, self.beta, self.k, self.unit = actions, beta, k, unit
        self.search = SEARCHES[search](self.rows(states, actions))

    def rows(self, states: Float[Tensor, "B O"], actions: Float[Tensor, "B A"]) -> Float[Tensor, "B D"]:
        return torch.cat([self.beta * states, actions / self.unit], -1)

    def __call__(
        self, states: Float[Tensor, "B O"], actions: Float[Tensor, "B A"], recorded: Float[Tensor, "B A"]
    ) -> Float[Tensor, "B A"]:
        return self.actions[self.search(self.rows(states, actions), self.k)].mean(1)


def bc_anchor(
    states: Float[Tensor, "B O"], actions: Float[Tensor, "B A"], recorded: Float[Tensor, "B A"]
) -> Float[Tensor, "B A"]:
    """TD3+BC: the action recorded at the state."""
    return recorded


def no_anchor(
    states: Float[Tensor, "B O"], actions: Float[Tensor, "B A"], recorded: Float[Tensor, "B A"]
) -> Float[Tensor, "B A"]:
    """Nothing pulls: the policy's own action is at distance 0."""
    return actions


def actor_loss(
    q: Float[Tensor, " B"],
    actions: Float[Tensor, "B A"],
    anchors: Float[Tensor, "B A"],
    q_weight: Float[Tensor, ""],
    unit: Float[Tensor, " A"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], int]:
    """(2) as sums over rows, and their number: the loss, and the penalty in it. `q_weight` is lambda."""
    penalty = ((actions - anchors) / unit).square().mean(-1).sum()
    return -q_weight * q.sum() + penalty, penalty, len(q)


class PRDCLearner(Learner):
    """Twin critics and a deterministic actor, with target copies of both."""

    constant = ("unit",)

    def __init__(self, method: PRDC, data: Transitions, rng: Rng):
        self.method = method
        bounds = box(data, "PRDC")
        sizes = data.observations.shape[1], bounds.size
        device = data.observations.device
        policy = DeterministicPolicy(sizes[0], bounds.low, bounds.high, method.hidden, rng=rng.at("policy").torch())
        if method.normalise:
            policy.normaliser = Normaliser.fitted(data.observations)
        self.policy = policy.to(device)
        self.critic = EnsembleQ(2, *sizes, method.hidden, rng.at("critic").torch()).to(device)
        self.target_policy, self.target_critic = frozen_copy(self.policy), frozen_copy(self.critic)
        self.policy_optimiser = torch.optim.Adam(self.policy.parameters(), method.learning_rate, fused=True)
        self.critic_optimiser = torch.optim.Adam(self.critic.parameters(), method.learning_rate, fused=True)
        self.updates = 0
        half = self.policy.scale.half_width
        self.unit = half.clone() if method.rescale_actions else torch.ones_like(half)
        self.anchor = self._anchor(data)

    def _anchor(self, data: Transitions) -> Callable[..., Tensor]:
        method = self.method
        if method.regulariser == "dataset":
            states = self.policy.normaliser(data.observations)
            return DatasetAnchor(states, data.actions, method.beta, method.k, self.unit, method.search)
        return {"bc": bc_anchor, "none": no_anchor}[method.regulariser]

    def update(self, batch: Transitions, rng: Rng, micro: int = 1) -> Metrics:
        noise = torch.randn(
            batch.actions.shape, generator=rng.at("noise").torch(batch.actions.device), device=batch.actions.device
        )
        parts = split(batch, micro)
        drawn = list(zip(parts, noise.tensor_split(len(parts))))
        metrics = self.descend(self.critic_optimiser, self.critic_loss, drawn, len(batch))
        self.updates += 1
        if self.updates % self.method.policy_every == 0:
            metrics |= self.improve_policy(parts, len(batch))
            polyak_(self.target_critic, self.critic, self.method.tau)
            polyak_(self.target_policy, self.policy, self.method.tau)
        return metrics

    def critic_loss(self, part: Transitions, noise: Float[Tensor, "B A"]) -> tuple[Tensor, dict[str, Tensor]]:
        """(3) summed over rows and critics."""
        targets = self.targets(part, noise)
        total, _ = ensemble_mse(self.critic(self.policy.normaliser(part.observations), part.actions), targets)
        return total, {"critic_loss": total}

    @torch.no_grad()
    def targets(self, part: Transitions, noise: Float[Tensor, "B A"]) -> Float[Tensor, " B"]:
        """(3) for each row."""
        m, scale = self.method, self.policy.scale
        states = self.policy.normaliser(part.next_observations)
        actions = smoothed_actions(
            self.target_policy(states), noise, m.policy_noise, m.noise_clip, scale.low, scale.high
        )
        rewards = m.reward_scale * part.rewards + m.reward_shift
        return td_target(rewards, part.terminated, self.target_critic(states, actions).amin(0), m.discount)

    def improve_policy(self, parts: list[Transitions], rows: int) -> Metrics:
        """One step on (2). A first pass finds what has no gradients: the anchors, and lambda of the whole batch."""
        with torch.no_grad():
            found = [self.value(part) for part in parts]
            mean_abs_q = torch.stack([q.abs().sum() for q, _, _ in found]).sum() / rows
            anchors = [self.anchor(states, actions, part.actions) for part, (_, states, actions) in zip(parts, found)]
        each = [(part, pulled, mean_abs_q) for part, pulled in zip(parts, anchors)]
        return self.descend(self.policy_optimiser, self.policy_loss, each, rows, list(self.policy.parameters()))

    def policy_loss(
        self, part: Transitions, anchors: Float[Tensor, "B A"], mean_abs_q: Float[Tensor, ""]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(2) summed over rows."""
        q, _, actions = self.value(part)
        loss, penalty, _ = actor_loss(q, actions, anchors, self.method.alpha / mean_abs_q, self.unit)
        return loss, {"actor_loss": loss, "penalty": penalty, "q": q.sum()}

    def value(self, part: Transitions) -> tuple[Float[Tensor, " B"], Float[Tensor, "B O"], Float[Tensor, "B A"]]:
        """Q_1(s, pi(s)), normalised observations s and pi(s)."""
        states = self.policy.normaliser(part.observations)
        actions = self.policy(states)
        return self.critic.first(states, actions), states, actions

    def product(self) -> Product:
        return self.policy
