"""Preference games with few responses, where equilibria are exact: small circles, and 30 arms with styles and quality.

A policy is a vector of log-probs over the n responses. `STYLES` arms of the style game: arm i has the style i mod 3 and
a quality q_i; its preferences are sigma(q_i - q_j + c) with c = +2 where i's style beats j's, in a circle, -2 where it
loses and 0 where they are equal. No scalar reward has these preferences.

Sources: the matrices and the style game of our dossiers on INPO (arXiv 2407.00617), DNO (arXiv 2404.03715) and Nash-MD
(arXiv 2312.00886). `style_oracle` is the same circle among texts of TinySent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.special import expit

from telos.core.rng import Rng
from telos.data.records import Record
from telos.ops import games
from telos.worlds import tiny_sent
from telos.worlds.bit_strings import minimise
from telos.worlds.tiny_sent import Floats, Ints

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

STYLES = 3

MATRICES: dict[str, tuple[tuple[float, ...], ...]] = {
    "uneven": ((0.5, 0.9, 0.2), (0.1, 0.5, 0.7), (0.8, 0.3, 0.5)),
    "even": ((0.5, 0.9, 0.1), (0.1, 0.5, 0.9), (0.9, 0.1, 0.5)),
    "dice": ((0.5, 5 / 9, 4 / 9), (4 / 9, 0.5, 5 / 9), (5 / 9, 4 / 9, 0.5)),
}
"""Circles of three responses: of uneven strength (equilibrium 2/9, 3/9, 4/9), of even strength, and the three dice."""


@dataclass(frozen=True)
class Game:
    """A game with its reference policy.

    Args:
        preferences: P[i, j], the chance that i is preferred to j, P + P^T = 1.
        log_reference: log-probs.
    """

    preferences: Float[Tensor, "n n"]
    log_reference: Float[Tensor, "n"]

    def equilibrium(self, tau: float) -> Float[Tensor, "n"]:
        """log-probs of the equilibrium regularised with tau > 0."""
        return games.equilibrium(self.preferences, self.log_reference, tau)

    def distances(self, log_policy: Float[Tensor, "n"], aim: Float[Tensor, "n"]) -> dict[str, float]:
        """How far a policy is from the equilibrium `aim`, and what its best opponent wins.

        tv: total variation to it; exploitability: max_i P(i > pi) - 1/2; excess: that less the equilibrium's own;
        style: the mass of the largest style.
        """
        exploitability, least = (float(games.exploitability(self.preferences, p)) for p in (log_policy, aim))
        return {
            "tv": float(games.total_variation(log_policy, aim)), "exploitability": exploitability,
            "excess": exploitability - least, "style": float(style_masses(log_policy).max()),
        }  # fmt: skip


def circle(name: str, reference: tuple[float, ...] = (0.6, 0.3, 0.1)) -> Game:
    """A game of `MATRICES`, in float64."""
    return Game(
        torch.tensor(MATRICES[name], dtype=torch.float64), torch.tensor(reference, dtype=torch.float64).log()
    )  # fmt: skip


def style_game(rng: Rng, arms: int = 30, spread: float = 0.7, edge: float = 2.0) -> Game:
    """The style game: qualities and the reference's logits are normal with the deviation `spread`; float64."""
    generator = rng.torch()
    quality, logits = spread * torch.randn((2, arms), generator=generator, dtype=torch.float64)
    style = np.arange(arms) % STYLES
    bonus = torch.from_numpy(circular(style[:, None], style[None, :], edge))
    return Game((quality[:, None] - quality[None, :] + bonus).sigmoid(), logits.log_softmax(-1))


def circular(styles: Ints, others: Ints, edge: float = 2.0) -> Floats:
    """+edge where a style beats the other (0 beats 1, 1 beats 2, 2 beats 0), -edge where it loses, 0 where they are
    equal or one is unknown (-1)."""
    ahead = (others - styles) % STYLES
    known = (styles >= 0) & (others >= 0)
    return edge * known * ((ahead == 1).astype(float) - (ahead == 2).astype(float))


def style_oracle(prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Floats:
    """The oracle of TinySent's styles: sigma of the circle of the texts' styles, +-2, and 0.3 times the gap of gold."""
    gap = tiny_sent.gold(prompts, first) - tiny_sent.gold(prompts, second)
    return expit(circular(tiny_sent.styles(first), tiny_sent.styles(second)) + 0.3 * gap)


def style_circle(prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Floats:
    """The same without gold: styles alone decide."""
    return expit(circular(tiny_sent.styles(first), tiny_sent.styles(second)))


def style_exploitability(completions: Sequence[str], edge: float = 2.0) -> float:
    """What the best style wins against these texts beyond one half, where styles alone decide: 0 to sigma(edge) - 1/2.

    A style wins against the one that it beats, loses against the one that beats it, and draws otherwise.
    """
    found = tiny_sent.styles(completions)
    masses = np.array([(found == style).mean() for style in range(STYLES)])
    gains = masses[[1, 2, 0]] - masses[[2, 0, 1]]
    return float((expit(edge) - 0.5) * gains.max())


def style_masses(log_policy: Float[Tensor, "n"]) -> Float[Tensor, "3"]:
    """The probability of each style."""
    probabilities = log_policy.exp()
    return torch.stack([probabilities[style::STYLES].sum() for style in range(STYLES)])


@dataclass(frozen=True)
class Duels(Record):
    """Pairs of a game, the preferred response first.

    Args:
        responses: (P, 2) numbers of responses.
        chance: (P,) that the first is preferred, as the game has it.
    """

    responses: Tensor
    chance: Tensor

    def of(self, log_policy: Tensor) -> Tensor:
        """(P, 2) their log-probs under a policy."""
        return log_policy[self.responses]


def duels(game: Game, log_policy: Float[Tensor, "n"], count: int, generator: torch.Generator) -> Duels:
    """`count` independent pairs of a policy, each labelled by one draw."""
    drawn = torch.multinomial(log_policy.exp(), 2 * count, replacement=True, generator=generator).view(count, 2)
    first = torch.rand(count, generator=generator, dtype=torch.float64) < game.preferences[drawn[:, 0], drawn[:, 1]]
    ordered = torch.where(first[:, None], drawn, drawn.flip(1))
    return Duels(ordered, game.preferences[ordered[:, 0], ordered[:, 1]])


def observed_win_rates(pairs: Duels, arms: int) -> Float[Tensor, "n"]:
    """The share of its duels that each response won, 1/2 without any: estimates P(i > pi) from independent pairs."""
    won = torch.bincount(pairs.responses[:, 0], minlength=arms).double()
    fought = torch.bincount(pairs.responses.flatten(), minlength=arms).double()
    return torch.where(fought > 0, won / fought.clamp(min=1), 0.5)


def fitted(
    log_policy: Float[Tensor, "n"],
    loss: Callable[[Float[Tensor, "n"]], Tensor],
    steps: int = 100,
    learning_rate: float = 0.05,
) -> Float[Tensor, "n"]:
    """A tabular softmax policy after Adam's steps on loss(log-probs) from `log_policy`."""
    logits = log_policy.clone().requires_grad_()
    minimise(lambda: loss(logits.log_softmax(-1)), [logits], steps, learning_rate)
    return logits.detach().log_softmax(-1)


def average(log_policies: Float[Tensor, "t n"]) -> Float[Tensor, "n"]:
    """log of the even mixture of policies."""
    return log_policies.logsumexp(0).log_softmax(-1)


def rewards(game: Game, pairs: Int[Tensor, "p 2"], steps: int = 300, learning_rate: float = 0.05) -> Float[Tensor, "n"]:
    """A Bradley-Terry reward fitted to pairs by Adam, the preferred response first; its mean is 0."""
    values = torch.zeros_like(game.log_reference).requires_grad_()

    def loss() -> Tensor:
        return -torch.nn.functional.logsigmoid(values[pairs[:, 0]] - values[pairs[:, 1]]).mean()

    minimise(loss, [values], steps, learning_rate)
    return values.detach() - values.detach().mean()
