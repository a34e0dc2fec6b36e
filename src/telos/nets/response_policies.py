"""A policy with policies of further responses and critics beside it, for logs with several rewards a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from telos.core.errors import TelosError
from telos.core.products import Act, Policy
from telos.core.rng import Rng
from telos.data.records import Box, Discrete, Transitions
from telos.nets.critics import EnsembleQ
from telos.nets.mlp import EnsembleMLP
from telos.nets.normaliser import Normaliser
from telos.nets.policies import (
    CategoricalPolicy,
    DeterministicPolicy,
    GaussianPolicy,
    as_batch,
    probe_observations,
)

if TYPE_CHECKING:
    from jaxtyping import Float


class ResponsePolicy(Policy):
    """The main policy, which acts; beside it those of auxiliary responses, and the critics.

    Args:
        observation_size: O.
        size: A, dimensions of an action or number of actions.
        bounds: (2, A) of continuous actions; None for discrete ones.
        deterministic: continuous actors without a density.
        hidden: widths of the hidden layers.
        policies: names, the one that acts first.
        critics: names of the responses with a critic.
        observation_names, action_names: what the log calls them; empty where it does not say.
        rng: draws the initial weights; without it they are zeros, to be loaded.
    """

    def __init__(
        self,
        observation_size: int,
        size: int,
        bounds: list[list[float]] | None,
        deterministic: bool,
        hidden: Sequence[int],
        policies: Sequence[str],
        critics: Sequence[str],
        observation_names: Sequence[str] = (),
        action_names: Sequence[str] = (),
        rng: torch.Generator | None = None,
    ):
        super().__init__()
        self.size, self.bounds, self.is_deterministic = size, bounds, deterministic
        self.hidden, self.policies, self.critics = tuple(hidden), tuple(policies), tuple(critics)
        self.observation_names, self.action_names = tuple(observation_names), tuple(action_names)
        self.action_space = Discrete(size) if bounds is None else Box(tuple(bounds[0]), tuple(bounds[1]))
        self.normaliser = Normaliser.identity(observation_size)
        made: list[CategoricalPolicy | GaussianPolicy | DeterministicPolicy] = []
        for _ in policies:
            if bounds is None:
                made.append(CategoricalPolicy(observation_size, size, hidden, rng))
            elif deterministic:
                made.append(DeterministicPolicy(observation_size, bounds[0], bounds[1], hidden, rng=rng))
            else:
                made.append(GaussianPolicy(observation_size, bounds[0], bounds[1], hidden, rng=rng))
        self.actors = nn.ModuleList(made)
        self.critic = (
            EnsembleQ(len(critics), observation_size, size, hidden, rng)
            if deterministic
            else EnsembleMLP(len(critics), (observation_size, *hidden, 1), rng)
        )

    @property
    def actor(self) -> Any:
        """The policy that acts."""
        return self.actors[0]

    @property
    def deterministic(self) -> DeterministicPolicy:
        """It, as a deterministic one."""
        assert isinstance(self.actor, DeterministicPolicy)
        return self.actor

    def only(self, name: str) -> Policy:
        """The policy of one response alone, for example "like"; it shares its weights with this one."""
        if name not in self.policies:
            raise TelosError(f"no policy is called '{name}'", expected=" or ".join(self.policies))
        policy = self.actors[self.policies.index(name)]
        assert isinstance(policy, Policy)
        policy.provenance = self.provenance
        return policy

    def log_likelihood(self, observations: Float[Tensor, "B O"], actions: Tensor) -> Float[Tensor, " B"]:
        """Log-probabilities or densities of actions at raw observations, with gradients."""
        return self.actor.log_likelihood(self.actor.normaliser(observations), actions)

    def actions_at(self, observations: Float[Tensor, "B O"], actions: Tensor) -> Float[Tensor, "B A"]:
        """mu(s) of a deterministic policy, with gradients; the given actions are not read."""
        return self.deterministic(self.deterministic.normaliser(observations))

    def cloning(self, observations: Float[Tensor, "B O"], actions: Tensor) -> Float[Tensor, " B"]:
        """The loss of stage 0 for each row."""
        if not self.is_deterministic:
            return -self.log_likelihood(observations, actions)
        scale = self.deterministic.scale
        return (scale.unit(self.actions_at(observations, actions)) - scale.unit(actions)).square().mean(-1)

    def action_values(self, observations: Float[Tensor, "B O"], actions: Tensor) -> Float[Tensor, "k B"]:
        """Q_i(s, a) of deterministic policies."""
        assert isinstance(self.critic, EnsembleQ)
        return self.critic(self.normaliser(observations), self.deterministic.scale.unit(actions))

    def state_values(self, observations: Float[Tensor, "B O"]) -> Float[Tensor, "k B"]:
        """V_i(s), or Q_i(s, mu(s)), at raw observations."""
        if self.is_deterministic:
            return self.action_values(observations, self.actions_at(observations, observations))
        return self.critic(self.normaliser(observations)).squeeze(-1)

    @torch.no_grad()
    def values(self, obs: Any) -> dict[str, Tensor]:
        """Each critic's discounted response from here on, (B,), or () for one observation."""
        batch, single = as_batch(obs, self.normaliser)
        found = self.state_values(batch)
        return {name: row[0] if single else row for name, row in zip(self.critics, found)}

    @torch.no_grad()
    def probabilities(self, obs: Any, mask: Any = None) -> Float[Tensor, "*B K"]:
        """(B, K) probabilities of all discrete actions; (K,) for one observation."""
        if not isinstance(self.actor, CategoricalPolicy):
            raise TelosError("a policy over continuous actions has no probabilities", fix="ask for log_prob")
        return self.actor.probabilities(obs, mask)

    def log_prob(self, obs: Any, action: Any, *, goal: Any = None, mask: Any = None) -> Float[Tensor, "*B"]:
        """(B,) log-probability or log-density of given actions; TelosError for a deterministic policy."""
        return self.actor.log_prob(obs, action, goal=goal, mask=mask)

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
        """Actions of the main policy: the most probable one or the mean, or with `explore` drawn."""
        return self.actor.act(obs, goal=goal, state=state, mask=mask, rng=rng, explore=explore)

    def config(self) -> dict[str, Any]:
        return {
            "observation_size": len(self.normaliser.mean),
            "size": self.size,
            "bounds": self.bounds,
            "deterministic": self.is_deterministic,
            "hidden": list(self.hidden),
            "policies": list(self.policies),
            "critics": list(self.critics),
            "observation_names": list(self.observation_names),
            "action_names": list(self.action_names),
        }

    def probe(self) -> dict[str, Tensor]:
        observations = probe_observations(self.normaliser)
        found = {"observations": observations}
        for name, actor in zip(self.policies, self.actors):
            assert isinstance(actor, CategoricalPolicy | GaussianPolicy | DeterministicPolicy)
            outputs = actor(actor.normaliser(observations))
            for index, output in enumerate(outputs if isinstance(outputs, tuple) else (outputs,)):
                found[f"{name}.{index}"] = output
        return found | ({"values": self.state_values(observations)} if self.critics else {})


def untrained(
    data: Transitions,
    policies: Sequence[str],
    critics: Sequence[str],
    deterministic: bool,
    hidden: Sequence[int],
    normalise: bool,
    rng: Rng,
) -> ResponsePolicy:
    """A policy for the data's observations and actions, where the data are; `rng` draws its weights."""
    space = data.action_space
    bounds = None if isinstance(space, Discrete) else [list(space.low), list(space.high)]
    policy = ResponsePolicy(
        data.observations.shape[1], space.size, bounds, deterministic, hidden, policies, critics,
        data.observation_names, data.action_names, rng.at("networks").torch(),
    )  # fmt: skip
    if normalise:
        for module in (policy, *policy.actors):
            module.normaliser = Normaliser.fitted(data.observations)
    return policy.to(data.observations.device)


def together(parts: Sequence[ResponsePolicy]) -> ResponsePolicy:
    """One product of several stages': the first one's policy acts."""
    config = parts[0].config()
    names = {key: [name for part in parts for name in part.config()[key]] for key in ("policies", "critics")}
    whole = ResponsePolicy(**{**config, **names}).to(parts[0].normaliser.mean.device)
    whole.normaliser.load_state_dict(parts[0].normaliser.state_dict())
    for actor, source in zip(whole.actors, [actor for part in parts for actor in part.actors]):
        actor.load_state_dict(source.state_dict())
    with torch.no_grad():
        for parameter, *pieces in zip(whole.critic.parameters(), *(part.critic.parameters() for part in parts)):
            parameter.copy_(torch.cat(pieces))
    return whole


def log_density(
    actions: Float[Tensor, "B A"], centres: Float[Tensor, "B n A"], shares: Sequence[float], sigma: float
) -> Float[Tensor, " B"]:
    """sum_i w_i log N(a; mu_i, sigma^2 I); 0 where there are no centres."""
    if not shares:
        return actions.new_zeros(len(actions))
    squares = ((actions[:, None] - centres) / sigma).square().sum(-1)
    constant = actions.shape[-1] * (math.log(sigma) + 0.5 * math.log(2 * math.pi))
    return (-0.5 * squares - constant) @ torch.tensor(list(shares), device=actions.device)
