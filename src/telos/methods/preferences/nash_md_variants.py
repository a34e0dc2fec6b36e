r"""Nash-MD on finite games, exactly, and the recursions that it is compared with.

With P(y > pi) the win rates of a finite game, tau its temperature and mu its reference, step t = 0, 1, ... is

    nash_md            centre = opponent = pi^(1 - eta tau) mu^(eta tau) / Z,  pi' = centre exp(eta P(. > opponent)) / Z
    omd                the same centre, but the opponent is pi
    self_play          centre = opponent = pi: multiplicative weights, which know no tau
    fictitious_play    pi moves by 1 / (t + 2) towards mu exp(P(. > pi) / tau) / Z, the best answer to it

eta multiplies the preference (INPO's and DNO's divides it). With eta_t = 2 / (tau (t + 2)) the theorem bounds Nash-MD's
last iterate, KL(pi* || pi_T) <= 8 / (tau^2 (T + 1)); with a constant eta it settles at the pi that is its own mixture's
answer, pi = mu exp(P(. > mixture) / tau) / Z, beside the equilibrium.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from telos.core.errors import TelosError
from telos.ops import games

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

Step = Callable[["Tensor", "Tensor", "Tensor", float, float, int], "Tensor"]
"""(P (n, n), log pi_t (n,), log mu (n,), tau, eta_t, t) -> log pi_{t+1} (n,)."""


def nash_md(
    preferences: Float[Tensor, "n n"], policy: Float[Tensor, "n"], reference: Float[Tensor, "n"],
    tau: float, eta: float, t: int,
) -> Float[Tensor, "n"]:  # fmt: skip
    """The mixture is both the opponent and the centre of the step."""
    mixed = games.mixture(policy, reference, eta * tau)
    return games.mirror_step(games.win_rates(preferences, mixed), mixed, eta)


def omd(
    preferences: Float[Tensor, "n n"], policy: Float[Tensor, "n"], reference: Float[Tensor, "n"],
    tau: float, eta: float, t: int,
) -> Float[Tensor, "n"]:  # fmt: skip
    """Online mirror descent: the mixture is the centre, the opponent is the policy."""
    centre = games.mixture(policy, reference, eta * tau)
    return games.mirror_step(games.win_rates(preferences, policy), centre, eta)


def self_play(
    preferences: Float[Tensor, "n n"], policy: Float[Tensor, "n"], reference: Float[Tensor, "n"],
    tau: float, eta: float, t: int,
) -> Float[Tensor, "n"]:  # fmt: skip
    """Multiplicative weights of the plain game."""
    return games.mirror_step(games.win_rates(preferences, policy), policy, eta)


def fictitious_play(
    preferences: Float[Tensor, "n n"], policy: Float[Tensor, "n"], reference: Float[Tensor, "n"],
    tau: float, eta: float, t: int,
) -> Float[Tensor, "n"]:  # fmt: skip
    """The policy is the average of the best answers to it so far, with the first policy among them."""
    answer = games.best_response(preferences, policy, reference, tau)
    return ((1 - 1 / (t + 2)) * policy.exp() + answer.exp() / (t + 2)).log()


STEPS: dict[str, Step] = {
    "nash_md": nash_md, "omd": omd, "self_play": self_play, "fictitious_play": fictitious_play,
}  # fmt: skip


def decaying(tau: float, t: int) -> float:
    """eta_t of the theorem; eta_0 tau = 1, so that the first step starts from the reference wherever pi_0 is."""
    return 2 / (tau * (t + 2))


def trajectory(
    kind: str,
    preferences: Float[Tensor, "n n"],
    log_reference: Float[Tensor, "n"],
    steps: int,
    tau: float,
    eta: float | None = None,
) -> Float[Tensor, "t n"]:
    """log pi_0 .. pi_steps from pi_0 = mu.

    Args:
        kind: a name in `STEPS`.
        tau: > 0.
        eta: of every step, 0 < eta <= 1 / tau; None: the theorem's decaying one.

    Raises:
        TelosError: another kind, or a number out of range.
    """
    if kind not in STEPS or not tau > 0 or (eta is not None and not 0 < eta * tau <= 1):
        raise TelosError(
            "kind, tau or eta is out of range",
            expected=f"{' or '.join(STEPS)}; tau > 0; 0 < eta <= 1 / tau, or None",
            got=f"kind={kind!r}, tau={tau}, eta={eta}",
        )
    policy, found = log_reference, [log_reference]
    for t in range(steps):
        rate = decaying(tau, t) if eta is None else eta
        policy = STEPS[kind](preferences, policy, log_reference, tau, rate, t)
        found.append(policy)
    return torch.stack(found)


def bound(tau: float, count: int) -> Float[Tensor, "t"]:
    """The theorem's bound 8 / (tau^2 (T + 1)) on KL(pi* || pi_T), nats, for T = 1 .. count."""
    return 8 / (tau**2 * (torch.arange(1, count + 1, dtype=torch.float64) + 1))
