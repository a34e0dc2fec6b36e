"""DQN: Q-learning with a neural network and a slow copy of it, on its own steps or on recorded ones.

Mnih et al.: Human-level control through deep reinforcement learning, Nature 2015.
van Hasselt, Guez, Silver: Deep Reinforcement Learning with Double Q-learning, AAAI 2016, arXiv 1509.06461.

Each update takes one step on

    mean H(r + discount * Q'(s', a') - Q(s, a)),    a' = argmax Q(s', .)  (double)  or  argmax Q'(s', .)      (1)

with H the Huber loss, and Q' becomes Q every `target_every` updates. The policy takes argmax Q(s, .). The second term
of the target is left out where the task itself ended, and there only: a time limit does not end it.

Given an environment, experience is the policy's own, with a share of uniform actions that falls from `epsilon` to
`final_epsilon`; given transitions, it is theirs, and nothing keeps the policy near them. Environments begin anew where
a checkpoint is due, so `checkpoint_every` is part of an online run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from telos.core import together
from telos.core.errors import TelosError
from telos.core.interaction import Interaction
from telos.core.method import Learner, Method, Metrics, Source, Spec, Stages, split
from telos.core.products import Product
from telos.core.rng import Rng
from telos.core.sources import Uniform
from telos.data.formats import save_npz
from telos.data.records import Transitions
from telos.nets.critics import frozen_copy
from telos.nets.normaliser import Normaliser
from telos.nets.q_policies import QPolicy, discrete
from telos.ops.q_learning import chosen_values, of_actions
from telos.ops.values import td_target

if TYPE_CHECKING:
    from jaxtyping import Float

BASELINE = {
    "method": "DQN",
    "title": "Human-level control through deep reinforcement learning",
    "reference": "Mnih et al., Nature 2015; Double DQN: van Hasselt, Guez and Silver, AAAI 2016, arXiv 1509.06461",
    "year": 2015,
    "purpose": ["reward"],
    "product": "Policy",
    "data": "environment, or offline transitions",
    "summary": "Q-learning for discrete actions with a slow copy for its targets, from the policy's own steps or from "
    "recorded ones, near which nothing keeps the policy.",
    "equations": [
        r"a'=\operatorname{argmax}_{b}Q(s',b)",
        r"y=r+\gamma\,\mathbb 1[s'\text{ not terminal}]\,Q'(s',a')",
        r"\mathcal L_Q=\mathbb E\left[H_{\delta}(Q(s,a)-y)\right]",
        r"Q'\leftarrow Q\text{ every }N\text{ updates}",
    ],
    "deviations": [
        "Vectors are observed, not images: hidden layers with SELU, Adam and short target periods, as in Schweighofer "
        "et al., arXiv 2111.04714.",
    ],
}


@dataclass(frozen=True)
class DQN(Method):
    """Q-learning with discrete actions from a replay memory of the policy's own steps; or from recorded ones.

    Given: env (a registered name, or a function that makes an environment), unless there are data; experience, a file
    .npz into which all steps of a single environment are written in the end, also those that the memory had to forget.
    """

    accepts: ClassVar[tuple[type, ...]] = (Transitions,)
    takes: ClassVar[tuple[str, ...]] = ("env", "experience")

    double: bool = True
    """Whether the trained network chooses the next action and its copy only values it (Double DQN)."""
    discount: float = 0.99
    """Discount of the next step's value, 0 to 1. Paper: 0.99."""
    target_every: int = 100
    """Updates between copies of the network for the targets, >= 1. As Schweighofer et al.; paper: 10,000."""
    huber: float = 1.0
    """Where the loss turns from a parabola to a line, > 0. Paper: 1."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this. Paper: 1, after clipping to [-1, 1]."""
    reward_shift: float = 0.0
    """Then this is added. Paper: 0."""
    normalise: bool = False
    """Recorded data: standardise observations with their mean and std + 0.001. Paper: off."""
    hidden: tuple[int, ...] = (256, 256, 256)
    """Widths of the hidden layers. As Schweighofer et al."""
    activation: Literal["relu", "selu", "tanh"] = "selu"
    """Between layers. As Schweighofer et al.; paper: relu."""
    learning_rate: float = 1e-4
    """Of Adam. As Schweighofer et al.; paper: 2.5e-4, RMSProp."""
    batch_size: int = 128
    """Transitions an update. As Schweighofer et al., online 32; paper: 32."""
    epsilon: float = 1.0
    """Online: share of uniform actions at the first update, 0 to 1. Paper: 1."""
    final_epsilon: float = 0.01
    """Online: that share in the end, 0 to 1. As Schweighofer et al.; paper: 0.1."""
    epsilon_updates: int = 1_000
    """Online: updates over which it falls, >= 0. As Schweighofer et al.; paper: 250,000."""
    environments: int = 1
    """Online: copies of the environment that are stepped together. Paper: 1."""
    steps_per_update: int = 1
    """Online: steps of every copy before each update. As Schweighofer et al.; paper: 4."""
    warmup: int = 128
    """Online: transitions with uniform actions before the first update. As Schweighofer et al.: a batch."""
    capacity: int = 50_000
    """Online: the newest transitions, which are learnt from. As Schweighofer et al.; paper: 1e6."""

    def prepare(self, spec: Spec) -> Spec:
        if spec.data is not None:
            discrete(spec.data, "DQN")
            if spec.given.get("experience") is not None:
                raise TelosError(
                    "DQN: experience is what was seen in an environment", fix="leave data or experience out"
                )
            return spec.replace(data=spec.data.to(spec.device))
        shares = (self.epsilon, self.final_epsilon)
        if not 0 <= min(shares) <= max(shares) <= 1 or self.epsilon_updates < 0:
            raise TelosError(
                "DQN: an option is out of range", expected="shares of 0 to 1, epsilon_updates >= 0",
                got=f"epsilon={shares[0]}, final_epsilon={shares[1]}, epsilon_updates={self.epsilon_updates}",
            )  # fmt: skip
        if self.normalise:
            raise TelosError(
                "DQN: normalise needs recorded data", fix="leave it off, or scale what the environment shows"
            )
        env: Any = spec.need("env", "the environment to learn in, or recorded transitions as data")
        own = Interaction(
            env, spec.rng.at("environment"), batch_size=self.batch_size, capacity=self.stored(spec), warmup=self.warmup,
            environments=self.environments, steps=self.steps_per_update, device=spec.device, newest=self.capacity,
        )  # fmt: skip
        discrete(own.memory, "DQN")
        return spec.replace(data=own)

    def stored(self, spec: Spec) -> int:
        """Transitions that are stored: all of the run where they are asked for."""
        file = spec.given.get("experience")
        if file is None:
            return self.capacity
        several = together.several()
        if Path(file).suffix != ".npz" or self.environments != 1 or spec.steps < 1 or several:
            raise TelosError(
                "DQN: the experience cannot be written", expected="a .npz, one environment, one seed, a step or more",
                got=f"{file}, environments={self.environments}, steps={spec.steps}, several seeds: {several}",
            )  # fmt: skip
        return max(self.capacity, self.warmup + spec.steps * self.steps_per_update)

    def source(self, spec: Spec) -> Source:
        return spec.data if isinstance(spec.data, Interaction) else Uniform(spec.data, self.batch_size)

    def learner(self, spec: Spec, rng: Rng) -> DQNLearner:
        return DQNLearner(self, spec.data.memory if isinstance(spec.data, Interaction) else spec.data, rng)

    def stages(self, spec: Spec, rng: Rng) -> Stages:
        product = yield from super().stages(spec, rng)
        if (file := spec.given.get("experience")) is not None:
            seen = spec.data.experience()
            seen.truncated[-1] |= ~seen.terminated[-1]  # the recording ends here, if not the episode
            save_npz(seen, file)
        return product


class DQNLearner(Learner):
    """A network of action values, and the copy that its targets are computed from."""

    def __init__(self, method: DQN, data: Transitions, rng: Rng):
        self.method, self.updates = method, 0
        size, actions = data.observations.shape[1], discrete(data, "DQN").size
        policy = QPolicy(size, actions, method.hidden, method.activation, rng=rng.at("values").torch())
        if method.normalise:
            policy.normaliser = Normaliser.fitted(data.observations)
        self.policy = policy.to(data.observations.device)
        self.target = frozen_copy(self.policy.net)
        self.optimiser = torch.optim.Adam(self.policy.parameters(), method.learning_rate, fused=True)

    def update(self, batch: Transitions, rng: Rng, micro: int = 1) -> Metrics:
        parts = [(part,) for part in split(batch, micro)]
        metrics = self.descend(self.optimiser, self.loss, parts, len(batch))
        self.updates += 1
        if self.updates % self.method.target_every == 0:
            self.target.load_state_dict(self.policy.net.state_dict())
        return metrics

    def loss(self, part: Transitions) -> tuple[Tensor, dict[str, Tensor]]:
        """(1) summed over rows."""
        values = of_actions(self.policy(self.policy.normaliser(part.observations)), part.actions)
        loss = huber_loss(values, self.targets(part), reduction="sum", delta=self.method.huber)
        return loss, {"loss": loss}

    @torch.no_grad()
    def targets(self, part: Transitions) -> Float[Tensor, " B"]:
        """r + discount * Q'(s', a') for each row."""
        m, states = self.method, self.policy.normaliser(part.next_observations)
        values = self.target(states)
        next_values = chosen_values(values, self.policy(states) if m.double else values)
        return td_target(m.reward_scale * part.rewards + m.reward_shift, part.terminated, next_values, m.discount)

    def behaviour(self) -> Product:
        """The policy, with the share of uniform actions that is due."""
        m = self.method
        left = max(0.0, 1 - self.updates / m.epsilon_updates) if m.epsilon_updates else 0.0
        self.policy.epsilon = m.final_epsilon + left * (m.epsilon - m.final_epsilon)
        return self.policy

    def product(self) -> Product:
        return self.policy
