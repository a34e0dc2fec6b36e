"""BVE and MCE: learn what the recorded behaviour earns after each action, then take the action after which it is most.

BVE: Gulcehre et al.: Regularized Behavior Value Estimation, 2021, arXiv 2103.09575, here without its regulariser.
MCE: Monte Carlo estimation; Sutton, Barto: Reinforcement Learning, 2018, chapter 5. Both as in Schweighofer et al.: A
Dataset Perspective on Offline Reinforcement Learning, CoLLAs 2022, arXiv 2111.04714.

With H the Huber loss and a' the action that was recorded next, each update takes one step on

    BVE:  mean H(r + discount * Q(s', a') - Q(s, a))                                                  (1)
    MCE:  mean H(G - Q(s, a)),    G = r + discount * r' + discount^2 * r'' + ...                      (2)

without a slow copy, since no maximum chases itself. The policy takes argmax Q(s, .): one step of policy improvement.
Where a time limit cut an episode the next action is not known, so (1) leaves that step out; G ends there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from telos.core.errors import TelosError
from telos.core.method import Learner, Method, Metrics, Spec, split
from telos.core.products import Product
from telos.core.rng import Rng
from telos.core.sources import Uniform
from telos.data.records import Record, Transitions
from telos.data.returns import returns_to_go
from telos.data.windows import episode_bounds
from telos.nets.normaliser import Normaliser
from telos.nets.q_policies import QPolicy, discrete
from telos.ops.q_learning import of_actions
from telos.ops.values import td_target

if TYPE_CHECKING:
    from jaxtyping import Float

BASELINE = {
    "method": "BVE, MCE",
    "title": "Regularized Behavior Value Estimation",
    "reference": "Gulcehre et al., 2021, arXiv 2103.09575; Monte Carlo: Sutton and Barto, Reinforcement Learning, 2018",
    "year": 2021,
    "purpose": ["reward"],
    "product": "Policy",
    "data": "offline transitions",
    "summary": "Values of the recorded behaviour, by its next action (BVE) or by its returns (MCE), and a policy that "
    "is greedy on them: a single step of improvement, for discrete actions.",
    "equations": [
        r"y_{\mathrm{BVE}}=r+\gamma\,\mathbb 1[s'\text{ not terminal}]\,Q(s',a'),\quad a'\text{ recorded}",
        r"y_{\mathrm{MCE}}=\sum_{k\geq 0}\gamma^{k}r_{t+k}",
        r"\mathcal L_Q=\mathbb E\left[H_{\delta}(Q(s,a)-y)\right]",
        r"\pi(s)=\operatorname{argmax}_{b}Q(s,b)",
    ],
    "deviations": [
        "BVE has no ranking regulariser and no reparametrised values, as in Schweighofer et al., arXiv 2111.04714.",
        "Time limits are no ends: BVE leaves out the step that one cut, where Schweighofer et al. store an end.",
    ],
}


@dataclass(frozen=True)
class Behaved(Record):
    """Steps with what the behaviour did next, and what it earned from each step on.

    Args:
        next_actions: (N,) int64; of any other step where the episode goes no further.
        returns: (N,) float32, discounted.
    """

    steps: Transitions
    next_actions: Tensor
    returns: Tensor


@dataclass(frozen=True)
class BVE(Method):
    """Values of the recorded behaviour by its next actions, from transitions with discrete actions in order."""

    data = Transitions

    discount: float = 0.99
    """Discount of the next step's value, 0 to 1. Paper: 0.99."""
    huber: float = 1.0
    """Where the loss turns from a parabola to a line, > 0. As Schweighofer et al."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this."""
    reward_shift: float = 0.0
    """Then this is added."""
    normalise: bool = False
    """Standardise observations with the data's mean and std + 0.001."""
    hidden: tuple[int, ...] = (256, 256, 256)
    """Widths of the hidden layers. As Schweighofer et al."""
    activation: Literal["relu", "selu", "tanh"] = "selu"
    """Between layers. As Schweighofer et al."""
    learning_rate: float = 1e-4
    """Of Adam. As Schweighofer et al."""
    batch_size: int = 128
    """Transitions an update. As Schweighofer et al."""

    def prepare(self, spec: Spec) -> Spec:
        data = behaved(self, spec, "BVE")
        last = torch.arange(len(data), device=spec.device) == episode_bounds(data.steps)[1]
        known = data.steps.terminated | ~last
        if not known.any():
            raise TelosError(
                "BVE: no step is followed by another one", expected="episodes of two steps or more, in order",
                got=f"{len(data)} steps, each cut from what followed", fix="record whole episodes, or use bve.mce",
            )  # fmt: skip
        return spec.replace(data=data[known])

    def source(self, spec: Spec) -> Uniform:
        return Uniform(spec.data, self.batch_size)

    def learner(self, spec: Spec, rng: Rng) -> BehaviourLearner:
        return BehaviourLearner(self, spec.data.steps, rng)

    def targets(self, policy: QPolicy, part: Behaved) -> Float[Tensor, " B"]:
        """r + discount * Q(s', a') for each row."""
        next_values = of_actions(policy(policy.normaliser(part.steps.next_observations)), part.next_actions)
        return td_target(part.steps.rewards, part.steps.terminated, next_values, self.discount)


@dataclass(frozen=True)
class MCE(Method):
    """Values of the recorded behaviour by its returns, from transitions with discrete actions in order."""

    data = Transitions

    discount: float = 0.99
    """Discount of later rewards, 0 to 1. As Schweighofer et al.: 0.95 or 0.99."""
    huber: float = 1.0
    """Where the loss turns from a parabola to a line, > 0. As Schweighofer et al."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this."""
    reward_shift: float = 0.0
    """Then this is added."""
    normalise: bool = False
    """Standardise observations with the data's mean and std + 0.001."""
    hidden: tuple[int, ...] = (256, 256, 256)
    """Widths of the hidden layers. As Schweighofer et al."""
    activation: Literal["relu", "selu", "tanh"] = "selu"
    """Between layers. As Schweighofer et al."""
    learning_rate: float = 1e-4
    """Of Adam. As Schweighofer et al."""
    batch_size: int = 128
    """Transitions an update. As Schweighofer et al."""

    def prepare(self, spec: Spec) -> Spec:
        return spec.replace(data=behaved(self, spec, "MCE"))

    def source(self, spec: Spec) -> Uniform:
        return Uniform(spec.data, self.batch_size)

    def learner(self, spec: Spec, rng: Rng) -> BehaviourLearner:
        return BehaviourLearner(self, spec.data.steps, rng)

    def targets(self, policy: QPolicy, part: Behaved) -> Float[Tensor, " B"]:
        """The recorded return of each row."""
        return part.returns


def behaved(method: BVE | MCE, spec: Spec, name: str) -> Behaved:
    """The data with scaled rewards, next actions and returns."""
    discrete(spec.data, name)
    data = replace(spec.data, rewards=method.reward_scale * spec.data.rewards + method.reward_shift)
    return Behaved(data, data.actions.roll(-1), returns_to_go(data, method.discount)).to(spec.device)


class BehaviourLearner(Learner):
    """A network of action values."""

    def __init__(self, method: BVE | MCE, data: Transitions, rng: Rng):
        self.method = method
        size, actions = data.observations.shape[1], discrete(data, "BVE").size
        policy = QPolicy(size, actions, method.hidden, method.activation, rng=rng.at("values").torch())
        if method.normalise:
            policy.normaliser = Normaliser.fitted(data.observations)
        self.policy = policy.to(data.observations.device)
        self.optimiser = torch.optim.Adam(self.policy.parameters(), method.learning_rate, fused=True)

    def update(self, batch: Behaved, rng: Rng, micro: int = 1) -> Metrics:
        parts = [(part,) for part in split(batch, micro)]
        return self.descend(self.optimiser, self.loss, parts, len(batch))

    def loss(self, part: Behaved) -> tuple[Tensor, dict[str, Tensor]]:
        """(1) or (2) summed over rows."""
        values = of_actions(self.policy(self.policy.normaliser(part.steps.observations)), part.steps.actions)
        with torch.no_grad():
            targets = self.method.targets(self.policy, part)
        loss = huber_loss(values, targets, reduction="sum", delta=self.method.huber)
        return loss, {"loss": loss}

    def product(self) -> Product:
        return self.policy
