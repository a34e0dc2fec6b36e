"""TDA-OCBC: goal-conditioned cloning whose goals are swapped with those of episodes that pass nearby.

Ghugare, Geist, Berseth, Eysenbach: Closing the Gap between TD Learning and Supervised Learning - A Generalisation
Point of View, ICLR 2024, arXiv 2401.11237.

Cloning with goals from the step's own future learns pairs of state and goal that one episode joins. With probability
`augment_prob` the goal is one that two episodes join: with c(s) the cluster of a state,

    w = s_k,  k > t in the step's episode;     w~ with c(w~) = c(w), in any episode;                 (1)
    g = a state of w~'s episode, not before w~

k and g's time are uniform over what the episode still holds, or k - t is geometric. The policy minimises

    mean || pi(s_t, g) - a_t ||^2,     or  - mean log pi(a_t | s_t, g)  for discrete actions         (2)

The transformer reads windows of steps: those up to w, then those that follow w~. With condition="return" the goal is
the return that the joined way earns: the rewards from t until w, and what w~'s episode earns from there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.cluster.vq import kmeans2
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.method import Learner, Method, Metrics, Source, Spec, split
from telos.core.products import Act, Policy, Product
from telos.core.rng import Rng
from telos.data.goals import GOALS, Clusters, Episodes, junctions
from telos.data.records import Box, Discrete, Record, Transitions
from telos.data.returns import returns_to_go
from telos.data.windows import episode_bounds
from telos.nets.denoisers import Sizes, make_denoiser
from telos.nets.mlp import MLP
from telos.nets.normaliser import Normaliser
from telos.nets.play import SCALINGS, Play, State, Window, select
from telos.nets.policies import box

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

PAPER = {
    "method": "TDA-OCBC (temporal data augmentation)",
    "title": "Closing the Gap between TD Learning and Supervised Learning – A Generalisation Point of View",
    "arxiv": "2401.11237",
    "year": 2024,
    "url": "https://arxiv.org/abs/2401.11237",
    "purpose": ["goal"],
    "product": "Policy",
    "data": "offline trajectories with goals",
    "summary": "Lets goal-conditioned cloning join trajectories by swapping in goals of other trajectories that pass "
    "nearby.",
    "claim": "On a U-shaped corridor goal swapping adds 0.4 success on start-goal pairs that no trajectory joins; ten "
    "times the data adds nothing.",
    "paper_claim": {
        "where": "bar charts on the six new maze data sets; ablations of data and network size",
        "text": "Cloning with an MLP or a transformer fails on pairs of start and goal that no single episode joins; "
        "more data and larger networks do not help; swapping goals raises success on most of the sets, and methods "
        "with temporal differences join episodes without it.",
        "value": "bar charts, no table (numbers unverified)",
        "data": "PointMaze and AntMaze, three sizes each: a million transitions, collected region by region",
        "model": "MLP with two hidden layers of 1024; transformer of 3 blocks, width 128, context 5",
        "mechanism": "Our corridor is recorded in two halves that share the bend, so every test pair needs exactly one "
        "joint, and coordinates mislead: the other arm looks near. Whether success on control from raw velocities "
        "rises, and joints of more than two episodes, is not tested.",
    },
    "equations": [
        r"w=s_k\text{ with }k>t\text{ in the episode of }s_t",
        r"\tilde w\sim\operatorname{unif}\left\{\tilde s\in\mathcal D:c(\tilde s)=c(w)\right\}",
        r"g=s_{t'}\text{ in the episode of }\tilde w,\text{ not before }\tilde w,"
        r"\text{ with probability }\varepsilon;\text{ else in the episode of }s_t,\ t'>t",
        r"\mathcal L=\mathbb E\left[\left\lVert\pi(s,g)-a\right\rVert^2\right]"
        r"\text{ or }-\mathbb E\left[\log\pi(a\mid s,g)\right]",
    ],
    "deviations": [
        "A state at which an episode begins is not taken as the other state (rows name the states they lead to).",
        "Clusters are those of scaled states; k-means starts by the k-means++ rule and stops at the number of "
        "distinct states.",
        "In a transformer's window the steps from the goal on, or after an episode's end, are masked; the code draws "
        "anew until a window is whole.",
        "With condition='return' the MLP only; the return left is to be given at each step.",
        "Observations and goals are scaled to [-1, 1] unless scaling says otherwise.",
    ],
    "traps": [
        "Clusters must be tight in what can be reached: one that spans a thin wall makes false joints. With too few, "
        "goals are wrong; with too many, nothing is swapped.",
        "With velocities take cluster_space='state': equal positions with other speeds cannot be joined.",
        "Where two ways lead to a goal, swapped goals ask for both, and the most probable action may go in circles.",
        "One swap joins two episodes; longer chains are left to the network.",
        "A benchmark that the network can extrapolate hides the effect.",
    ],
    "terms": [
        "combinatorial generalisation",
        "RvS",
        "Decision Transformer",
        "hindsight relabelling",
        "OGBench",
        "goal-conditioned supervised learning",
        "trajectory stitching",
    ],
    "at_scale": "telos fit stitching --data minari:D4RL/pointmaze/umaze-v2 --augment-prob 0.5 --n-clusters 20 "
    "--steps 1000000 --device cuda",
    "usage": [
        "telos fit stitching --data play.npz --n-clusters 30 --hidden 64 64 --steps 100 --out runs/stitching",
        "import torch",
        'play = telos.load("play.npz")',
        "policy = telos.Stitching(n_clusters=30, hidden=(64, 64)).fit(play, steps=100)",
        "print(policy.act(torch.tensor([[0.2, 0.5]]), goal=(0.92, 0.5)).action)",
        'policy.save("my-policy")',
    ],
}


@dataclass(frozen=True)
class Stitching(Method):
    """Goal-conditioned cloning with goals that two episodes join; continuous and discrete actions."""

    data = Transitions

    augment_prob: float = 0.5
    """Probability that a goal is swapped, 0 (plain cloning) to 1. Paper: 0.5; its repository: 0 unless set."""
    n_clusters: int = 40
    """Groups of states that count as one place, >= 1. Paper: 20 (umaze), 40 (medium), 80 (large)."""
    cluster_space: Literal["state", "achieved_goal", "identity"] = "state"
    """What is clustered: states, the goal's columns of them, or nothing: only equal states are one place. Repository:
    state (MLP), achieved_goal (transformer)."""
    goal_time: Literal["uniform", "geometric"] = "uniform"
    """How far ahead goals lie: uniform over the rest of the episode, or geometric. Repository: uniform; paper's text:
    geometric."""
    discount: float = 0.99
    """Of the geometric law, 0 to below 1. telos: 0.99."""
    condition: Literal["goal", "return"] = "goal"
    """What the policy is told: a state to reach, or the return that is left to earn (MLP only). Paper: goal."""
    observation_columns: tuple[int, ...] | None = None
    """Columns of the observation that are the state; None for all. telos: None."""
    goal_columns: tuple[int, ...] | None = None
    """Columns of the observation that are the goal; None for all. Paper: the two of the position."""
    network: Literal["mlp", "transformer"] = "mlp"
    """An MLP on state and goal, or a causal transformer over goal, states and actions. Paper: both."""
    hidden: tuple[int, ...] = (1024, 1024)
    """Widths of the MLP's hidden layers. Paper: 1024, 1024."""
    context: int = 5
    """Steps that the transformer sees, >= 1. Paper: 5."""
    layers: int = 3
    """Of the transformer. Paper: 3."""
    width: int = 128
    """Of the transformer. Paper: 128."""
    heads: int = 1
    """Of the transformer. Paper: 1."""
    dropout: float = 0.1
    """Of the transformer, on attention and on what each block adds, 0 to below 1. Paper: 0.1."""
    scaling: Literal["minmax", "standardise", "none"] = "minmax"
    """Of observations and goals. telos: minmax."""
    learning_rate: float = 1e-3
    """Of AdamW. Paper: 1e-3."""
    weight_decay: float = 0.0
    """Of AdamW. Paper: 0 (MLP), 1e-4 (transformer)."""
    warmup_steps: int = 0
    """Updates over which the learning rate rises. Paper: 0 (MLP), 1000 (transformer)."""
    grad_clip: float = 0.25
    """Largest norm of the gradient, > 0. Paper: 0.25."""
    batch_size: int = 256
    """Steps, or windows, an update. Paper: 256."""

    def prepare(self, spec: Spec) -> Spec:
        if not isinstance(getattr(spec.data, "action_space", None), Discrete):
            box(spec.data, "TDA-OCBC")
        shares = 0 <= self.augment_prob <= 1 and 0 <= self.discount < 1 and 0 <= self.dropout < 1
        if not shares or min(self.n_clusters, self.context) < 1 or self.grad_clip <= 0:
            raise TelosError(
                "TDA-OCBC: an option is out of range",
                expected="augment_prob 0 to 1; discount, dropout 0 to below 1; n_clusters, context >= 1; grad_clip > 0",
                got=f"{self.augment_prob}; {self.discount}, {self.dropout}; {self.n_clusters}, {self.context}; "
                f"{self.grad_clip}",
            )
        if self.condition == "return" and self.network != "mlp":
            raise TelosError("TDA-OCBC: condition='return' is for network='mlp'", got=self.network)
        return spec.replace(data=spec.data.to(spec.device))

    def play(self, data: Transitions) -> Play:
        """Columns and scales of observations, goals and actions; discrete actions are rows of 0 and 1."""
        space, device = data.action_space, data.observations.device
        bounds = Box((0.0,) * space.size, (1.0,) * space.size) if isinstance(space, Discrete) else space
        of_return = self.condition == "return"
        play = Play(
            data.observations.shape[1], bounds.low, bounds.high, self.observation_columns,
            (0,) if of_return else self.goal_columns, self.window,
        ).to(device)  # fmt: skip
        fitted = SCALINGS[self.scaling]
        play.observations = fitted(select(data.observations, self.observation_columns))
        goals = returns_to_go(data)[:, None] if of_return else select(data.observations, self.goal_columns)
        play.goals = fitted(goals)
        if not isinstance(space, Discrete):
            low, high = (torch.tensor(bound, device=device) for bound in (bounds.low, bounds.high))
            play.actions = Normaliser((low + high) / 2, (high - low) / 2)
        return play

    @property
    def window(self) -> int:
        """Steps that the network sees."""
        return self.context if self.network == "transformer" else 1

    def network_config(self) -> dict[str, Any]:
        """What the policy builds its network from."""
        if self.network == "mlp":
            return {"kind": "mlp", "hidden": list(self.hidden)}
        rates = {"attention_dropout": self.dropout, "residual_dropout": self.dropout}
        return {"kind": "transformer", "layers": self.layers, "width": self.width, "heads": self.heads, **rates}

    def source(self, spec: Spec) -> Stretches:
        return Stretches(self, spec.data, self.clusters(spec.data, spec.rng.at("clusters")))

    def clusters(self, data: Transitions, rng: Rng) -> Clusters:
        """The groups of all states that rows lead to."""
        play = self.play(data)
        places = play.scaled_states(data.next_observations)
        if self.cluster_space == "identity" or not self.augment_prob:
            return Clusters.of(torch.unique(places, dim=0, return_inverse=True)[1])
        if self.cluster_space == "achieved_goal" and self.condition == "goal":
            places = play.scaled_goals(data.next_observations)
        labels = k_means(places.cpu().double().numpy(), self.n_clusters, rng.numpy())
        return Clusters.of(torch.from_numpy(labels).long().to(places.device))

    def learner(self, spec: Spec, rng: Rng) -> StitchingLearner:
        return StitchingLearner(self, spec.data, rng)


def k_means(points: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """(N,) groups of points (N, D): k of them, or as many as there are distinct points."""
    centres, distance = [points[rng.integers(len(points))]], np.full(len(points), np.inf)
    for _ in range(k - 1):
        distance = np.minimum(distance, np.square(points - centres[-1]).sum(1))
        if not distance.any():
            break
        centres.append(points[rng.choice(len(points), p=distance / distance.sum())])
    return kmeans2(points, np.stack(centres), iter=20, minit="matrix")[1]


@dataclass(frozen=True)
class Stretch(Record):
    """A batch of stretches of k steps, each with one goal, the earliest step first.

    Args:
        observations: (B, k, O); actions: (B, k, A) or (B, k); mask: (B, k), False from the goal on.
        goals: (B, 1, g) raw.
        dropout: (B, numbers) uniform, once the learner has drawn them.
    """

    observations: Tensor
    actions: Tensor
    mask: Tensor
    goals: Tensor
    dropout: Tensor | None = None


@dataclass(frozen=True)
class Joined:
    """Rows that (1) draws.

    Args:
        steps: (B, k) rows of the stretch; mask: (B, k) which of them lie before the goal.
        goals: (B,) the row that leads to the goal.
        swap: (B,) bool: the goal was swapped, at the states that the rows between and other (B,) lead to.
    """

    steps: Tensor
    mask: Tensor
    goals: Tensor
    swap: Tensor
    between: Tensor
    other: Tensor


def joined(
    rows: Int[Tensor, " B"],
    episodes: Episodes,
    clusters: Clusters,
    length: int,
    augment_prob: float,
    law: Callable[[Tensor, Episodes, Tensor], Tensor],
    draws: Float[Tensor, "4 B"],
) -> Joined:
    """(1): stretches of `length` steps from `rows` on and their goals; draws are uniform in [0, 1)."""
    swap = draws[0] < augment_prob
    between, other = junctions(rows, episodes, clusters, draws[1:3], law)
    goals = law(torch.where(swap, other, rows), episodes, draws[3])
    ahead = rows[:, None] + torch.arange(length, device=rows.device)
    after = swap[:, None] & (ahead > between[:, None])
    steps = torch.where(after, ahead + (other - between)[:, None], ahead)
    end = torch.where(after, goals[:, None], torch.where(swap, between, goals)[:, None])
    return Joined(torch.minimum(steps, end), steps <= end, goals, swap, between, other)


class Stretches(Source):
    """Stretches from uniform rows, with goals by (1)."""

    def __init__(self, method: Stitching, data: Transitions, clusters: Clusters):
        self.method, self.data, self.clusters = method, data, clusters
        self.episodes = Episodes(episode_bounds(data)[1], method.discount)
        self.law = GOALS["future" if method.goal_time == "uniform" else "geometric"]
        self.left = returns_to_go(data) if method.condition == "return" else None

    def next(self, behaviour: Callable[[], Product], rng: Rng) -> Stretch:
        m, data, device = self.method, self.data, self.data.observations.device
        generator = rng.torch(device)
        rows = torch.randint(len(data), (m.batch_size,), generator=generator, device=device)
        draws = torch.rand((4, m.batch_size), generator=generator, device=device)
        drawn = joined(rows, self.episodes, self.clusters, m.window, m.augment_prob, self.law, draws)
        goals = select(data.next_observations[drawn.goals], m.goal_columns)
        if self.left is not None:
            after = self.left - data.rewards
            gained = torch.where(drawn.swap, after[drawn.other] - after[drawn.between], 0.0)
            goals = (self.left[rows] + gained)[:, None]
        return Stretch(data.observations[drawn.steps], data.actions[drawn.steps], drawn.mask, goals[:, None])


def action_loss(
    outputs: Float[Tensor, "B k A"], actions: Tensor, mask: Bool[Tensor, "B k"]
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """(2) summed over real steps, and their number.

    Args:
        outputs: of the network: before the tanh, or logits.
        actions: (B, k, A) in [-1, 1], or (B, k) int64 for discrete ones.
    """
    if actions.dim() == 2:
        errors = F.cross_entropy(outputs.transpose(1, 2), actions, reduction="none")
    else:
        errors = (torch.tanh(outputs) - actions).square().mean(-1)
    return (errors * mask).sum(), mask.sum()


class StitchingLearner(Learner):
    """A policy and its optimiser."""

    def __init__(self, method: Stitching, data: Transitions, rng: Rng):
        self.method, self.updates = method, 0
        play, discrete = method.play(data), isinstance(data.action_space, Discrete)
        self.policy = StitchingPolicy(play.config(), method.network_config(), discrete, rng.at("policy").torch())
        self.policy.play.load_state_dict(play.state_dict())
        self.policy.to(data.observations.device)
        self.optimiser = torch.optim.AdamW(
            self.policy.net.parameters(), method.learning_rate, weight_decay=method.weight_decay, fused=True
        )

    def update(self, batch: Stretch, rng: Rng, micro: int = 1) -> Metrics:
        loss, play, device = 0.0, self.policy.play, batch.observations.device
        count = batch.mask.sum()
        if dropouts := getattr(self.policy.net, "dropouts", 0):
            shape, generator = (len(batch), dropouts), rng.at("dropout").torch(device)
            batch = dataclasses.replace(batch, dropout=torch.rand(shape, generator=generator, device=device))
        self.optimiser.zero_grad()
        for part in split(batch, micro):
            actions = F.one_hot(part.actions, len(play.low)).float() if self.policy.discrete else part.actions
            window = Window(
                play.scaled_states(part.observations), play.actions(actions)[:, :-1], part.mask, play.goals(part.goals),
                part.mask[:, 0], False,
            )  # fmt: skip
            targets = part.actions if self.policy.discrete else play.actions(actions)
            total, _ = action_loss(self.policy(window, part.dropout), targets, part.mask)
            (total / count).backward()
            loss = loss + total.detach() / count
        self.updates += 1
        for group in self.optimiser.param_groups:
            group["lr"] = self.method.learning_rate * min(1.0, self.updates / max(1, self.method.warmup_steps))
        grad_norm = torch.nn.utils.clip_grad_norm_(self.policy.net.parameters(), self.method.grad_clip)
        self.optimiser.step()
        return {"loss": loss, "grad_norm": grad_norm}

    def product(self) -> Product:
        return self.policy


class StitchingPolicy(Policy):
    """The mean action, or the most probable one, at the newest states and a goal.

    Args:
        play: the configuration of columns, scaling and window.
        network: what the network is made of.
        discrete: whether actions are numbers; then `play` holds them as rows of 0 and 1.
        rng: draws the initial weights; without it they are zeros, to be loaded.
    """

    def __init__(
        self, play: Mapping[str, Any], network: Mapping[str, Any], discrete: bool, rng: torch.Generator | None = None
    ):
        super().__init__()
        self.play, self.network, self.discrete = Play(**play), dict(network), discrete
        p, actions = self.play, len(self.play.low)
        self.action_space = Discrete(actions) if discrete else Box(p.low, p.high)
        if network["kind"] == "mlp":
            self.net = MLP((p.state_size + p.goal_size, *network["hidden"], actions), rng)
        else:
            same = p.observation_columns == p.goal_columns
            self.net = make_denoiser(Sizes(p.state_size, p.goal_size, actions, p.window, 1, same), network, rng)

    def forward(self, window: Window, dropout: Tensor | None = None) -> Float[Tensor, "B k A"]:
        """The network's outputs at each step; the transformer's also reads the actions before it."""
        assert window.goals is not None
        if isinstance(self.net, MLP):
            return self.net(torch.cat([window.states, window.goals], -1))
        before = F.pad(window.past, (0, 0, 1, 0))
        constant = before.new_ones(len(before))
        return self.net(before, window.states, window.goals, constant, window.mask, dropout)

    @torch.no_grad()
    def act(
        self,
        obs: Any,
        *,
        goal: Any = None,
        state: State | None = None,
        mask: Any = None,
        rng: torch.Generator | None = None,
        explore: bool = False,
    ) -> Act:
        """Actions (B, A) or (B,), without B for one observation; goal and state as telos.nets.play takes them."""
        window = self.play.look(obs, goal, state)
        if window.goals is None:
            raise TelosError("the policy needs a goal", expected=f"goal of {self.play.goal_size} values")
        outputs = self(window)[:, -1]
        if not self.discrete:
            return Act(*self.play.finish(window, torch.tanh(outputs)))
        chosen, state = self.play.finish(window, F.one_hot(outputs.argmax(-1), outputs.shape[-1]).float())
        return Act(chosen.argmax(-1), state)

    def log_prob(self, obs: Any, action: Any, *, goal: Any = None, mask: Any = None) -> Float[Tensor, "*B"]:
        """(B,) log-probabilities of discrete actions on the way to the goal; () for one observation.

        Raises:
            TelosError: no goal; continuous actions, which have none; a transformer, which reads the steps before.
        """
        if not self.discrete or self.play.window > 1:
            kind = "transformer's actions depend on the steps before" if self.discrete else "mean has no density"
            raise TelosError(f"TDA-OCBC: no log_prob, for a {kind}", expected="discrete actions and network='mlp'")
        window = self.play.look(obs, goal, None)
        if window.goals is None:
            raise TelosError("the policy needs a goal", expected=f"goal of {self.play.goal_size} values")
        logits = self(window)[:, -1]
        if mask is not None:
            logits = logits.masked_fill(~torch.as_tensor(mask, device=logits.device), -torch.inf)
        actions = torch.as_tensor(action, device=logits.device).reshape(-1, 1)
        found = logits.log_softmax(-1).gather(-1, actions)
        return found[0, 0] if window.single else found[:, 0]

    def config(self) -> dict[str, Any]:
        return {"play": self.play.config(), "network": self.network, "discrete": self.discrete}

    def probe(self) -> dict[str, Tensor]:
        window, _ = self.play.probe(1)
        return self.play.probed(window, self(window))
