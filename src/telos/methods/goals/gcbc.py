"""GCBC: goal-conditioned behaviour cloning, the mean action that play takes on the way to a goal.

Lynch, Khansari, Xiao, Kumar, Tompson, Levine, Sermanet: Learning Latent Plans from Play, CoRL 2019, arXiv 1903.01973
(the baseline there); Ding et al., Goal-conditioned Imitation Learning, NeurIPS 2019, arXiv 1906.05838.

Goals are states that followed in the same episode. With s the newest k states, it minimises

    mean || pi(s, g) - a ||^2                                                                         (1)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.method import Learner, Method, Metrics, Spec, split
from telos.core.products import Act, Policy, Product
from telos.core.rng import Rng
from telos.core.sources import UniformWindows
from telos.data.records import Transitions
from telos.data.windows import Windows
from telos.nets.mlp import MLP
from telos.nets.play import Play, State
from telos.nets.policies import box

if TYPE_CHECKING:
    from jaxtyping import Float

BASELINE = {
    "method": "GCBC",
    "title": "Goal-conditioned Imitation Learning",
    "reference": "Ding, Florensa, Phielipp and Abbeel, NeurIPS 2019, arXiv 1906.05838; Lynch et al., CoRL 2019",
    "year": 2019,
    "purpose": ["goal", "demonstration"],
    "product": "Policy",
    "data": "play trajectories",
    "summary": "Regression of the recorded action on the state and a future state taken as the goal.",
    "equations": [
        r"s=s_{t-k+1:t},\quad a=a_t,\quad g=s_{t'}\text{ with }t'>t",
        r"\mathcal L=\mathbb E\left[\left\lVert\pi(s,g)-a\right\rVert^2\right]",
    ],
    "deviations": ["Goals are drawn uniformly from the episode's future, or are its end, as option final_goals says."],
}


@dataclass(frozen=True)
class GCBC(Method):
    """Goal-conditioned behaviour cloning from play: episodes of observations and actions, without rewards."""

    data = Transitions

    window: int = 1
    """States that the policy sees, >= 1."""
    goal_length: int = 1
    """Consecutive future states that make a goal, >= 1."""
    observation_columns: tuple[int, ...] | None = None
    """Columns of the observation that are the state; None for all."""
    goal_columns: tuple[int, ...] | None = None
    """Columns of the observation that are the goal; None for all."""
    final_goals: float = 0.0
    """Share of training goals that are the episode's end; the others are uniform over its future."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers."""
    scaling: Literal["minmax", "standardise", "none"] = "minmax"
    """Of observations, goals and actions."""
    learning_rate: float = 3e-4
    """Of Adam. As BC."""
    batch_size: int = 256
    """Windows an update. As BC."""

    def prepare(self, spec: Spec) -> Spec:
        box(spec.data, "GCBC")
        if min(self.window, self.goal_length) < 1 or not 0 <= self.final_goals <= 1:
            raise TelosError(
                "GCBC: an option is out of range", expected="window, goal_length >= 1; final_goals 0 to 1",
                got=f"{self.window}, {self.goal_length}, {self.final_goals}",
            )  # fmt: skip
        return spec.replace(data=spec.data.to(spec.device))

    def source(self, spec: Spec) -> UniformWindows:
        goals = {"future": 1 - self.final_goals, "final": self.final_goals}
        return UniformWindows(spec.data, self.batch_size, self.window, self.goal_length, goals)

    def learner(self, spec: Spec, rng: Rng) -> GCBCLearner:
        return GCBCLearner(self, spec.data, rng)


def squared_error(
    net: MLP, states: Float[Tensor, "B k S"], goals: Float[Tensor, "B G g"], actions: Float[Tensor, "B A"]
) -> tuple[Float[Tensor, ""], int]:
    """(1) for scaled actions: mean over dimensions, sum over rows, and their number."""
    predicted = net(torch.cat([states.flatten(1), goals.flatten(1)], -1))
    return (predicted - actions).square().mean(-1).sum(), len(actions)


class GCBCLearner(Learner):
    """A policy and its optimiser."""

    def __init__(self, method: GCBC, data: Transitions, rng: Rng):
        columns = {name: getattr(method, name) for name in ("observation_columns", "goal_columns")}
        play = Play.fitted(data, method.scaling, window=method.window, goal_length=method.goal_length, **columns)
        self.policy = GCBCPolicy(play.config(), method.hidden, rng.at("policy").torch())
        self.policy.play.load_state_dict(play.state_dict())
        self.policy.to(data.actions.device)
        self.optimiser = torch.optim.Adam(self.policy.net.parameters(), method.learning_rate, fused=True)

    def update(self, batch: Windows, rng: Rng, micro: int = 1) -> Metrics:
        loss, play = 0.0, self.policy.play
        self.optimiser.zero_grad()
        for part in split(batch, micro):
            goals = play.scaled_goals(part.goals) * part.has_goal[:, None, None]
            states, actions = play.scaled_states(part.observations), play.actions(part.actions[:, -1])
            total, _ = squared_error(self.policy.net, states, goals, actions)
            (total / len(batch)).backward()
            loss = loss + total.detach() / len(batch)
        grad_norm = torch.nn.utils.get_total_norm([p.grad for p in self.policy.parameters() if p.grad is not None])
        self.optimiser.step()
        return {"loss": loss, "grad_norm": grad_norm}

    def product(self) -> Product:
        return self.policy


class GCBCPolicy(Policy):
    """The mean action at the newest states and a goal; deterministic.

    Args:
        play: the configuration of columns, scaling and window.
        hidden: widths of the hidden layers.
        rng: draws the initial weights; without it they are zeros, to be loaded.
    """

    def __init__(self, play: Mapping[str, Any], hidden: Sequence[int], rng: torch.Generator | None = None):
        super().__init__()
        self.play, self.hidden = Play(**play), tuple(hidden)
        p = self.play
        self.low, self.high = p.low, p.high
        inputs = p.window * p.state_size + p.goal_length * p.goal_size
        self.net = MLP((inputs, *hidden, len(p.low)), rng)

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
        """Actions (B, A), or (A,) for one observation; goal and state as telos.nets.play takes them."""
        window = self.play.look(obs, goal, state)
        if window.goals is None:
            raise TelosError("the policy needs a goal", expected=f"goal of {self.play.goal_size} values")
        action = self.net(torch.cat([window.states.flatten(1), window.goals.flatten(1)], -1))
        return Act(*self.play.finish(window, action))

    def config(self) -> dict[str, Any]:
        return {"play": self.play.config(), "hidden": list(self.hidden)}

    def probe(self) -> dict[str, Tensor]:
        window, _ = self.play.probe(1)
        assert window.goals is not None
        outputs = self.net(torch.cat([window.states.flatten(1), window.goals.flatten(1)], -1))
        return self.play.probed(window, outputs)
