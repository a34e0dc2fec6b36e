"""Diffusion in the units of Karras et al. (arXiv 2206.00364): x = data + sigma * noise, and D(x; sigma) = E[data | x].

Samplers solve dx/dsigma = (x - D(x; sigma)) / sigma from large to small sigma. Samplers, schedules and densities of
sigma are in tables by name, as BESO (arXiv 2304.02532) offers them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

Denoise = Callable[[Tensor, float], Tensor]
"""D(x, sigma): x (B, ...) at one noise level > 0 to the expected data, of the same shape."""


def preconditioning(
    sigma: Float[Tensor, "*B"], sigma_data: float
) -> tuple[Float[Tensor, "*B"], Float[Tensor, "*B"], Float[Tensor, "*B"]]:
    """c_skip, c_out, c_in of D(x) = c_skip x + c_out F(c_in x), which keep inputs and targets of F at variance 1.

    Args:
        sigma_data: standard deviation of the data.
    """
    total = sigma.square() + sigma_data**2
    return sigma_data**2 / total, sigma * sigma_data * total.rsqrt(), total.rsqrt()


def masked_mse(
    output: Float[Tensor, "B k A"], target: Float[Tensor, "B k A"], mask: Bool[Tensor, "B k"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Squared error as a mean over dimensions and a sum over real steps, and the number of these."""
    return ((output - target).square().mean(-1) * mask).sum(), mask.sum().to(output.dtype)


def guided(
    conditional: Float[Tensor, "*S"], unconditional: Float[Tensor, "*S"], strength: float
) -> Float[Tensor, "*S"]:
    """Classifier-free guidance: unconditional + strength (conditional - unconditional)."""
    return unconditional + strength * (conditional - unconditional)


# Densities of sigma for training: an inverse distribution function on [low, high] at uniform draws u.


def loglogistic(u: Float[Tensor, " B"], low: float, high: float, sigma_data: float) -> Float[Tensor, " B"]:
    """log sigma is logistic around log sigma_data with scale 1/2, cut to the range."""
    first, last = (1 / (1 + math.exp(-2 * math.log(bound / sigma_data))) for bound in (low, high))
    return torch.exp(torch.logit(first + (last - first) * u) / 2 + math.log(sigma_data))


def lognormal(u: Float[Tensor, " B"], low: float, high: float, sigma_data: float) -> Float[Tensor, " B"]:
    """log sigma is normal with mean -1.2 and deviation 1.2 (EDM's constants, made for sigma_data = 0.5), cut."""
    centre = -1.2 + math.log(sigma_data / 0.5)
    first, last = (math.erf((math.log(bound) - centre) / (1.2 * math.sqrt(2))) for bound in (low, high))
    return torch.exp(torch.erfinv(first + (last - first) * u) * (1.2 * math.sqrt(2)) + centre)


def loguniform(u: Float[Tensor, " B"], low: float, high: float, sigma_data: float) -> Float[Tensor, " B"]:
    """log sigma is uniform."""
    return low * (high / low) ** u


def uniform(u: Float[Tensor, " B"], low: float, high: float, sigma_data: float) -> Float[Tensor, " B"]:
    """sigma is uniform."""
    return low + (high - low) * u


def v_diffusion(u: Float[Tensor, " B"], low: float, high: float, sigma_data: float) -> Float[Tensor, " B"]:
    """The angle arctan(sigma / sigma_data) is uniform, as where the velocity is predicted at uniform times."""
    first, last = math.atan(low / sigma_data), math.atan(high / sigma_data)
    return sigma_data * torch.tan(first + (last - first) * u)


DENSITIES: dict[str, Callable[[Tensor, float, float, float], Tensor]] = {
    "loglogistic": loglogistic,
    "lognormal": lognormal,
    "loguniform": loguniform,
    "uniform": uniform,
    "v_diffusion": v_diffusion,
}


# Schedules for sampling: n levels from high to low. `levels` adds the final zero.


def exponential(n: int, low: float, high: float) -> list[float]:
    """Even in log sigma. The variance-exploding schedule of EDM's table is the same."""
    return [high * (low / high) ** t for t in fractions(n)]


def linear(n: int, low: float, high: float) -> list[float]:
    """Even in sigma."""
    return [high + (low - high) * t for t in fractions(n)]


def karras(n: int, low: float, high: float, rho: float = 5.0) -> list[float]:
    """Even in sigma^(1/rho); BESO takes rho = 5, EDM 7."""
    first, last = high ** (1 / rho), low ** (1 / rho)
    return [(first + (last - first) * t) ** rho for t in fractions(n)]


def vp(n: int, low: float, high: float, slope: float = 19.9, offset: float = 0.1) -> list[float]:
    """Even in the time of variance-preserving diffusion with beta(t) = offset + slope t, cut to the range."""

    def time(sigma: float) -> float:
        return (math.sqrt(offset**2 + 2 * slope * math.log1p(sigma**2)) - offset) / slope

    times = [time(high) + (time(low) - time(high)) * t for t in fractions(n)]
    return [math.sqrt(math.expm1(slope / 2 * t**2 + offset * t)) for t in times]


def iddpm(n: int, low: float, high: float, chain: int = 1000) -> list[float]:
    """Of the levels of improved DDPM's chain that lie in the range, n at even distances."""

    def alpha_bar(j: int) -> float:
        return math.sin(math.pi / 2 * j / (chain * 1.008)) ** 2

    found, sigma = [], 0.0
    for j in range(chain, 0, -1):
        sigma = math.sqrt((sigma**2 + 1) / max(alpha_bar(j - 1) / alpha_bar(j), 1e-3) - 1)
        if low <= sigma <= high:
            found.append(sigma)
    found = [low, high] if len(found) < 2 else found
    return [found[round((len(found) - 1) * (1 - t))] for t in fractions(n)]


def cosine(n: int, low: float, high: float) -> list[float]:
    """Even in arctan sigma: the cosine schedule's time, where alpha-bar is cos^2, cut to the range."""
    first, last = math.atan(high), math.atan(low)
    return [math.tan(first + (last - first) * t) for t in fractions(n)]


SCHEDULES: dict[str, Callable[[int, float, float], list[float]]] = {
    "exponential": exponential,
    "linear": linear,
    "karras": karras,
    "vp": vp,
    "ve": exponential,
    "iddpm": iddpm,
    "cosine": cosine,
}


def fractions(n: int) -> list[float]:
    """n even fractions from 0 to 1; 0 alone for n = 1, so that a single level is the highest."""
    return [i / max(n - 1, 1) for i in range(n)]


def levels(schedule: str, n: int, low: float, high: float) -> list[float]:
    """The n + 1 noise levels of a schedule: n from `high` down to `low`, then 0."""
    return [*SCHEDULES[schedule](n, low, high), 0.0]


# Samplers: from x at sigmas[0] to sigmas[-1]. A step to 0 returns D itself, so no logarithm of 0 is taken and no
# network is called there. `churn` adds noise back before each step (EDM, algorithm 2); only euler and heun use it.


def ddim(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], rng: torch.Generator | None = None, churn: float = 0.0
) -> Tensor:
    """First order: x moves to D by the fraction 1 - sigma' / sigma."""
    for now, then in pairwise(sigmas):
        x = towards(x, denoise(x, now), now, then)
    return x


def euler(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], rng: torch.Generator | None = None, churn: float = 0.0
) -> Tensor:
    """Euler's method in sigma. Without churn each step equals ddim's."""
    for now, then in pairwise(sigmas):
        x, now = churned(x, now, len(sigmas) - 1, churn, rng)
        x = towards(x, denoise(x, now), now, then)
    return x


def heun(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], rng: torch.Generator | None = None, churn: float = 0.0
) -> Tensor:
    """Heun's method in sigma, second order, two calls a step but for the step to 0."""
    for now, then in pairwise(sigmas):
        x, now = churned(x, now, len(sigmas) - 1, churn, rng)
        target = denoise(x, now)
        guess = towards(x, target, now, then)
        if then > 0:
            slope = ((x - target) / now + (guess - denoise(guess, then)) / then) / 2
            guess = x + (then - now) * slope
        x = guess
    return x


def euler_ancestral(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], rng: torch.Generator | None = None, churn: float = 0.0
) -> Tensor:
    """Euler to a lower level than the next, then fresh noise up to it."""
    for now, then in pairwise(sigmas):
        down, up = ancestral(now, then)
        x = towards(x, denoise(x, now), now, down)
        if up > 0:
            x = x + up * torch.randn(x.shape, generator=rng, device=x.device)
    return x


def dpmpp_2s(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], rng: torch.Generator | None = None, churn: float = 0.0
) -> Tensor:
    """DPM-Solver++(2S): a midpoint in log sigma, second order, two calls a step but for the step to 0."""
    for now, then in pairwise(sigmas):
        target = denoise(x, now)
        if then > 0:
            middle = math.sqrt(now * then)
            target = denoise(towards(x, target, now, middle), middle)
        x = towards(x, target, now, then)
    return x


def dpmpp_2m(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], rng: torch.Generator | None = None, churn: float = 0.0
) -> Tensor:
    """DPM-Solver++(2M): D extrapolated from the step before, second order, one call a step."""
    before, width_before = None, 0.0
    for now, then in pairwise(sigmas):
        target = denoise(x, now)
        if then == 0:
            return target
        width = math.log(now / then)
        ahead = target if before is None else target + (target - before) * (width / (2 * width_before))
        before, width_before = target, width
        x = towards(x, ahead, now, then)
    return x


SAMPLERS: dict[str, Callable[[Denoise, Tensor, Sequence[float], torch.Generator | None, float], Tensor]] = {
    "ddim": ddim,
    "euler": euler,
    "heun": heun,
    "euler_ancestral": euler_ancestral,
    "dpmpp_2s": dpmpp_2s,
    "dpmpp_2m": dpmpp_2m,
}


def towards(x: Float[Tensor, "*S"], target: Float[Tensor, "*S"], now: float, then: float) -> Float[Tensor, "*S"]:
    """From level `now` to `then` as if D stayed at `target`: exactly `target` at 0."""
    return target if then == 0 else torch.lerp(x, target, 1 - then / now)


def ancestral(now: float, then: float) -> tuple[float, float]:
    """sigma_down to go to, and sigma_up of the noise to add there: sigma_down^2 + sigma_up^2 = then^2."""
    up = min(then, math.sqrt(then**2 * (now**2 - then**2) / now**2))
    return math.sqrt(then**2 - up**2), up


def churned(
    x: Float[Tensor, "*S"], sigma: float, steps: int, churn: float, rng: torch.Generator | None
) -> tuple[Float[Tensor, "*S"], float]:
    """x with noise added up to sigma (1 + min(churn / steps, sqrt 2 - 1)), and that level."""
    gamma = min(churn / steps, math.sqrt(2) - 1)
    if gamma == 0:
        return x, sigma
    higher = sigma * (1 + gamma)
    noise = torch.randn(x.shape, generator=rng, device=x.device)
    return x + math.sqrt(higher**2 - sigma**2) * noise, higher


# A fixed chain (DDPM, arXiv 2006.11239).


def chain_alpha_bars(steps: int, kind: str = "cosine") -> Float[Tensor, " steps"]:
    """The products alpha-bar of a chain of `steps` steps, decreasing.

    Args:
        kind: "cosine" (Nichol and Dhariwal 2021, each beta at most 0.999) or "linear" (Ho et al., scaled to the
            number of steps).
    """
    if kind == "linear":
        betas = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64) * (1000 / steps)
    else:
        times = torch.arange(steps + 1, dtype=torch.float64) / steps
        exact = torch.cos((times + 0.008) / 1.008 * math.pi / 2).square()
        betas = 1 - exact[1:] / exact[:-1]
    return torch.cumprod(1 - betas.clamp(max=0.999), 0).float()


def chain_step(
    x: Float[Tensor, "*S"], data: Float[Tensor, "*S"], noise: Float[Tensor, "*S"], now: float, then: float
) -> Float[Tensor, "*S"]:
    """One draw of q(x_then | x_now, data): from alpha-bar `now` to the larger `then` (1 at the chain's end).

    Args:
        data: the predicted clean data; noise: standard normal.
    """
    ratio = now / then
    mean = math.sqrt(then) * (1 - ratio) / (1 - now) * data + math.sqrt(ratio) * (1 - then) / (1 - now) * x
    return mean + math.sqrt((1 - then) * (1 - ratio) / (1 - now)) * noise
