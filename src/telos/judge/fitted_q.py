"""Fitted Q evaluation: the value of a target policy from transitions of any other, by repeated regression.

    Q <- argmin over Q' of sum_i (Q'(s_i, a_i) - r_i - discount (1 - terminated_i) E_{a' ~ pi} Q(s'_i, a'))^2 + ridge

(Le, Voloshin and Yue 2019, arXiv 1903.08738.) Q is linear in fixed features, a constant, the standardised inputs and
random Fourier features (Rahimi and Recht 2007) of several widths, so each regression is a product with a matrix that is
computed once. Three draws of the features are averaged. Where the iteration does not contract, the penalty is raised.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.rng import Rng
from telos.data.records import Discrete, Transitions

MODELS = 3
FEATURES = 256
WIDTHS = (0.5, 1.0, 2.0)
"""Of the Fourier features, in units of the median distance between two rows."""
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Tried in turn, relative to the mean square of a feature summed over the rows; constants are free."""
CHUNK = 4096
SETTLED = 1e-6
MOST_ITERATIONS = 20_000

Choices = Callable[[Tensor, Rng], tuple[Tensor, Tensor]]
"""Observations (B, O) -> the target's actions (B, S, A), or (B, S) discrete ones, and their probabilities (B, S)."""


@dataclass(frozen=True)
class FittedQ:
    """What fitted Q evaluation found.

    Args:
        values: (E,) float64 value of each episode's first observation, the models averaged.
        spread: standard deviation over the models of the mean value: how much the draw of features matters.
        penalty: the ridge penalty, relative to the mean square of a feature.
    """

    values: Tensor
    spread: float
    penalty: float


def fitted_q(data: Transitions, choices: Choices, first: Tensor, discount: float, rng: Rng) -> FittedQ:
    """The value of the policy that `choices` describes at the observations of the rows `first` (E,).

    `terminated` alone ends the sum of rewards: truncated rows are continued from their next observation.

    Raises:
        TelosError: the iteration diverges at every penalty.
    """
    models = [Model(Features(data, rng.at("features", i))) for i in range(MODELS)]
    for start in range(0, len(data), CHUNK):
        rows = data[start : start + CHUNK]
        chosen = choices(rows.next_observations, rng.at("next", start))
        for model in models:
            model.add(rows, *chosen)
    starts = data.observations[first]
    begun: list[list[Tensor]] = [[] for _ in models]
    for start in range(0, len(starts), CHUNK):
        chosen = choices(starts[start : start + CHUNK], rng.at("first", start))
        for part, model in zip(begun, models, strict=True):
            part.append(model.features.expected(starts[start : start + CHUNK], *chosen))
    steps = int(torch.diff(first, append=torch.tensor([len(data)])).max())
    bound = 3 * float(data.rewards.abs().max()) * (1 / (1 - discount) if discount < 1 else steps) + 1e-9
    found = [model.solved(torch.cat(part), discount, bound) for part, model in zip(begun, models, strict=True)]
    values = torch.stack([value for value, _ in found])
    return FittedQ(values.mean(0), float(values.mean(1).std()), max(penalty for _, penalty in found))


class Model:
    """The sums over transitions that one draw of the features needs."""

    def __init__(self, features: Features):
        self.features, size = features, features.size
        self.rows = 0
        self.gram = torch.zeros(size, size, dtype=torch.float64)
        self.onward = torch.zeros_like(self.gram)
        self.moment = torch.zeros(size, dtype=torch.float64)

    def add(self, rows: Transitions, actions: Tensor, shares: Tensor) -> None:
        """Adds transitions, with the target's next actions and their probabilities."""
        now = self.features(rows.observations, rows.actions)
        after = self.features.expected(rows.next_observations, actions, shares)
        self.rows += len(rows)
        self.gram += now.T @ now
        self.onward += now.T @ torch.where(rows.terminated[:, None], 0.0, after)
        self.moment += now.T @ rows.rewards.double()

    def solved(self, begin: Tensor, discount: float, bound: float) -> tuple[Tensor, float]:
        """Values of rows with features `begin` (E, P), and the relative penalty at which the iteration settled."""
        scale = float(self.gram.diagonal().mean())
        ridge = torch.full_like(self.moment, scale)
        ridge[: self.features.constants] = 1e-9 * scale
        right = torch.cat([self.onward, self.moment[:, None]], 1)
        for penalty in PENALTIES:
            step = torch.linalg.solve(self.gram + torch.diag(penalty * ridge), right)
            weights = self.iterate(discount * step[:, :-1], step[:, -1], bound, SETTLED * max(1 - discount, 1e-4))
            if weights is not None:
                return begin @ weights, penalty
        raise TelosError(
            "fitted Q evaluation diverges",
            expected="an iteration that settles",
            got=f"values beyond {bound:.3g} with every penalty up to {PENALTIES[-1]:g}",
            fix="lower the discount, or give data that cover what the policy does",
        )

    def iterate(self, onward: Tensor, constant: Tensor, bound: float, tolerance: float) -> Tensor | None:
        """The fixed point of w = constant + onward w, by the root mean square of Q over the data; None without one."""
        weights = constant
        for _ in range(MOST_ITERATIONS):
            change = -weights
            weights = constant + onward @ weights
            change = change + weights
            if not float(weights @ self.gram @ weights) / self.rows <= bound**2:
                return None
            if float(change @ self.gram @ change) / self.rows <= (tolerance * bound) ** 2:
                return weights
        return None


class Features:
    """Features of (observation, action), (B, P) float64: Fourier features of the observation for each discrete action,
    or of both together."""

    def __init__(self, data: Transitions, rng: Rng):
        self.discrete = data.action_space.size if isinstance(data.action_space, Discrete) else 0
        inputs = self.inputs(data.observations, None if self.discrete else data.actions)
        self.mean = inputs.mean(0)
        spread = inputs.std(0, correction=0)
        self.scale = torch.where(spread > 1e-6 * inputs.abs().amax(0).clamp(min=1e-12), spread, torch.inf)
        generator = rng.torch()
        pick = torch.randint(len(inputs), (2, 1000), generator=generator)
        z = (inputs - self.mean) / self.scale
        distance = float((z[pick[0]] - z[pick[1]]).norm(dim=-1).median())
        count = max(24, FEATURES // max(1, self.discrete))
        widths = torch.tensor(WIDTHS, dtype=torch.float64)[torch.arange(count) % len(WIDTHS)] * (distance or 1.0)
        self.frequencies = torch.randn(z.shape[1], count, generator=generator, dtype=torch.float64) / widths
        self.phases = 2 * math.pi * torch.rand(count, generator=generator, dtype=torch.float64)
        self.constants = max(1, self.discrete)
        self.size = (1 + z.shape[1] + count) * self.constants

    @staticmethod
    def inputs(observations: Tensor, actions: Tensor | None) -> Tensor:
        """(B, I): what the Fourier features are taken of."""
        parts = [observations] if actions is None else [observations, actions]
        return torch.cat([part.double() for part in parts], -1)

    def of(self, inputs: Tensor) -> Tensor:
        """(B, F) of inputs."""
        z = (inputs - self.mean) / self.scale
        waves = math.sqrt(2 / self.frequencies.shape[1]) * torch.cos(z @ self.frequencies + self.phases)
        return torch.cat([torch.ones(len(z), 1, dtype=torch.float64), z, waves], 1)

    def __call__(self, observations: Tensor, actions: Tensor) -> Tensor:
        """(B, P) of given actions."""
        if not self.discrete:
            return self.of(self.inputs(observations, actions))
        chosen = torch.nn.functional.one_hot(actions, self.discrete).double()
        return self.spread(self.of(self.inputs(observations, None)), chosen)

    def expected(self, observations: Tensor, actions: Tensor, shares: Tensor) -> Tensor:
        """(B, P), the mean over actions (B, S, A) or (B, S) with probabilities (B, S)."""
        if self.discrete:
            probabilities = torch.zeros(len(actions), self.discrete, dtype=torch.float64)
            probabilities.scatter_add_(1, actions, shares.double())
            return self.spread(self.of(self.inputs(observations, None)), probabilities)
        each = [self.of(self.inputs(observations, actions[:, i])) * shares[:, i, None] for i in range(actions.shape[1])]
        return torch.stack(each).sum(0)

    @staticmethod
    def spread(features: Tensor, shares: Tensor) -> Tensor:
        """(B, F) and (B, K) -> (B, F K), the constants of all actions first."""
        return (features[:, :, None] * shares[:, None, :]).flatten(1)
