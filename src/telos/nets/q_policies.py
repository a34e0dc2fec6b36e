"""Values of discrete actions, and the policy that takes the action of greatest value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from telos.core.errors import TelosError
from telos.core.products import Act, Policy
from telos.data.records import Discrete, Transitions
from telos.nets.mlp import MLP
from telos.nets.normaliser import Normaliser
from telos.nets.policies import as_batch, need_rng, probe_observations
from telos.ops.q_learning import eligible

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

Activation = Literal["relu", "selu", "tanh"]
ACTIVATIONS = {"relu": torch.relu_, "selu": torch.selu_, "tanh": torch.tanh_}


def discrete(data: Any, method: str) -> Discrete:
    """The action space of a data set, if it is discrete.

    Raises:
        TelosError: not a data set in memory, or continuous actions.
    """
    if not isinstance(data, Transitions):
        raise TelosError(f"{method} learns from a data set", expected="Transitions", got=type(data).__name__)
    if not isinstance(data.action_space, Discrete):
        raise TelosError(
            f"{method} needs discrete actions",
            expected="action_space=Discrete(size)",
            got=f"{data.action_space.size} continuous dimensions",
            fix="use a method for continuous actions, such as CQL or IQL",
        )
    return data.action_space


class ActivatedMLP(MLP):
    """Linear layers with an activation between them.

    Args:
        sizes: widths from input to output, at least two.
        activation: "relu" and "tanh" begin with PyTorch's default weights; "selu" with N(0, 1 / inputs) and biases 0,
            which keep its outputs normalised.
        rng: draws the initial weights; without it they are zeros, to be loaded.
    """

    def __init__(self, sizes: Sequence[int], activation: Activation, rng: torch.Generator | None = None):
        super().__init__(sizes, rng if activation != "selu" else None)
        self.activation = activation
        if activation == "selu" and rng is not None:
            for layer, inputs in zip(self.layers, sizes):
                assert isinstance(layer, nn.Linear)
                nn.init.normal_(layer.weight, std=inputs**-0.5, generator=rng)

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        activate = ACTIVATIONS[self.activation]
        *hidden, last = self.layers
        for layer in hidden:
            x = activate(layer(x))
        return last(x)


class QPolicy(Policy):
    """The action of greatest Q(s, .); with a threshold only actions count that a model of the data's behaviour finds
    probable enough.

    Args:
        observation_size: O.
        actions: how many there are, K.
        hidden: widths of the hidden layers.
        activation: between layers, see `ActivatedMLP`.
        epsilon: probability of an action drawn uniformly, where it explores.
        threshold: actions count whose probability under `behaviour` is more than this share of the largest one, 0 to
            below 1; None: all, and no `behaviour`.
        heads: values of each action (quantiles, members of an ensemble) on shared hidden layers; Q is their mean.
        rng: draws the initial weights; without it they are zeros, to be loaded.
    """

    def __init__(
        self,
        observation_size: int,
        actions: int,
        hidden: Sequence[int] = (256, 256),
        activation: Activation = "relu",
        epsilon: float = 0.05,
        threshold: float | None = None,
        heads: int = 1,
        rng: torch.Generator | None = None,
    ):
        super().__init__()
        self.actions, self.hidden, self.activation = actions, tuple(hidden), activation
        self.epsilon, self.threshold, self.heads = epsilon, threshold, heads
        self.normaliser = Normaliser.identity(observation_size)
        self.net = ActivatedMLP((observation_size, *hidden, heads * actions), activation, rng)
        sizes = (observation_size, *hidden, actions)
        self.behaviour = None if threshold is None else ActivatedMLP(sizes, activation, rng)

    def forward(self, states: Float[Tensor, "B O"]) -> Float[Tensor, "B K"]:
        """Q at normalised observations."""
        return self.net(states) if self.heads == 1 else self.head_values(self.net(states)).mean(1)

    def head_values(self, outputs: Float[Tensor, "B out"]) -> Float[Tensor, "B heads K"]:
        """What `net`, or a copy of it, gives, by heads."""
        return outputs.unflatten(-1, (self.heads, self.actions))

    def allowed(self, states: Float[Tensor, "B O"], mask: Any = None) -> Bool[Tensor, "B K"]:
        """The actions that count: of those that `mask` allows, the eligible ones."""
        allowed = torch.ones((len(states), self.actions), dtype=torch.bool, device=states.device)
        if mask is not None:
            allowed = allowed & torch.as_tensor(mask, dtype=torch.bool, device=states.device)
        if self.behaviour is None or self.threshold is None:
            return allowed
        return allowed & eligible(self.behaviour(states).masked_fill(~allowed, -torch.inf), self.threshold)

    def shares(self, states: Float[Tensor, "B O"], mask: Any = None) -> Float[Tensor, "B K"]:
        """Probabilities of all actions where it explores: epsilon is spread over those that count."""
        allowed = self.allowed(states, mask)
        best = self(states).masked_fill(~allowed, -torch.inf).argmax(-1)
        greedy = nn.functional.one_hot(best, self.actions)
        return (1 - self.epsilon) * greedy + self.epsilon * allowed / allowed.sum(-1, keepdim=True)

    def probabilities(self, obs: Any, mask: Any = None) -> Float[Tensor, "*B K"]:
        """(B, K) probabilities of all actions at raw observations, where it explores; (K,) for one."""
        batch, single = as_batch(obs, self.normaliser)
        shares = self.shares(self.normaliser(batch), mask)
        return shares[0] if single else shares

    def log_prob(self, obs: Any, action: Any, *, goal: Any = None, mask: Any = None) -> Float[Tensor, "*B"]:
        """(B,) log-probabilities of given actions (B,) at raw observations, where it explores; () for one of each."""
        batch, single = as_batch(obs, self.normaliser)
        actions = torch.as_tensor(action, dtype=torch.int64, device=batch.device).reshape(-1, 1)
        log_probs = self.shares(self.normaliser(batch), mask).gather(-1, actions).squeeze(-1).log()
        return log_probs[0] if single else log_probs

    @torch.no_grad()
    def act(
        self,
        obs: Any,
        *,
        goal: Any = None,
        state: Any = None,
        mask: Bool[Tensor, "*B K"] | None = None,
        rng: torch.Generator | None = None,
        explore: bool = False,
    ) -> Act:
        """Actions (B,) int64, or () for one observation; `mask` is True where an action is allowed."""
        batch, single = as_batch(obs, self.normaliser)
        states = self.normaliser(batch)
        if not explore:
            actions = self(states).masked_fill(~self.allowed(states, mask), -torch.inf).argmax(-1)
            return Act(actions[0] if single else actions)
        shares = self.shares(states, mask)
        actions = torch.multinomial(shares, 1, generator=need_rng(rng))
        log_prob = shares.gather(-1, actions).log()[:, 0]
        return Act(actions[0, 0], log_prob=log_prob[0]) if single else Act(actions[:, 0], log_prob=log_prob)

    def config(self) -> dict[str, Any]:
        return {
            "observation_size": len(self.normaliser.mean),
            "actions": self.actions,
            "hidden": list(self.hidden),
            "activation": self.activation,
            "epsilon": self.epsilon,
            "threshold": self.threshold,
            "heads": self.heads,
        }

    def probe(self) -> dict[str, Tensor]:
        observations = probe_observations(self.normaliser)
        states = self.normaliser(observations)
        outputs = {"observations": observations, "values": self(states)}
        return outputs if self.behaviour is None else {**outputs, "behaviour": self.behaviour(states)}
